"""The real libvirtd, real containers and QEMU guests, in the tests' own namespace."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from xml.sax.saxutils import escape

from harness import CHECKOUT, mount_points, run

HOOKS = Path("/etc/libvirt/hooks")
# The tests' /dev/pts cannot be moved; two libvirtds would share guests' cgroups; sudo(8) may have
# limited core files to nothing, which libvirt then cannot raise.
QEMU_CONF = "namespaces = []\ncgroup_controllers = []\nmax_core = 0\n"
LXC, QEMU, NETWORK = "lxc:///system", "qemu:///system", "network:///system"
PID_FILE = Path("/run/libvirtd.pid")
LOG = Path("/var/log/libvirt/libvirtd.log")
APPLETS = "sh cat echo df ln ls mkdir mount mv rm rmdir sleep touch umount"


class Libvirtd:
    """A libvirtd of the tests' own, from start() to stop()."""

    def start(self):
        if str(HOOKS.parent) not in mount_points():
            raise RuntimeError("run this through tests/run: here is the host's own libvirt")
        self.cgroups = machine_cgroups()
        HOOKS.with_name("qemu.conf").write_text(QEMU_CONF)
        with open(LOG, "ab") as log:
            self.virtlogd = subprocess.Popen(["virtlogd"], stdout=log, stderr=log)
        self.launch()

    def launch(self):
        with open(LOG, "ab") as log:
            self.process = subprocess.Popen(["libvirtd"], stdout=log, stderr=log)
        try:
            wait_until(lambda: self.process.poll() is not None or virsh("uri").returncode == 0)
            if self.process.poll() is not None:
                raise RuntimeError(f"libvirtd has ended: {LOG.read_text()}")
        except BaseException:
            self.stop()
            raise

    def crash(self):
        """Kill the daemon, whatever hooks it waits for, and start another one."""
        self.process.kill()
        self.process.wait(60)
        self.launch()

    def stop(self):
        if self.process.poll() is None:
            for uri in (LXC, QEMU):
                for guest in virsh("list", "--name", uri=uri).stdout.split("\n"):
                    if guest:
                        virsh("destroy", f"--domain={guest}", uri=uri)
            self.process.terminate()
            self.process.wait(60)
        self.virtlogd.terminate()
        self.virtlogd.wait(60)
        # libvirt leaves these, and the cgroup file systems are not the namespace's but the host's
        for path in sorted(machine_cgroups() - self.cgroups, reverse=True):
            try:
                path.rmdir()
            except OSError:
                pass  # it is somebody else's: there is a process in it

    def reload(self):
        os.kill(int(PID_FILE.read_text()), signal.SIGHUP)


def start_libvirtd(add_cleanup):
    """Start a libvirtd, until a clean-up of a test, a class or a module stops it."""
    libvirtd = Libvirtd()
    libvirtd.start()
    add_cleanup(libvirtd.stop)
    return libvirtd


def start_libvirtd_with_hooks(add_cleanup, *options):
    """Install the checkout's hooks, with options of install.sh, and start a libvirtd."""
    install(*options, "--no-reload")
    add_cleanup(shutil.rmtree, HOOKS)
    return start_libvirtd(add_cleanup)


def put_hook(test, path, text, mode=0o755):
    """Put a script into the hooks directory, until a test is over; return its path."""
    path = HOOKS / path
    for directory in (path.parent.parent, path.parent):
        if not directory.exists():
            directory.mkdir()
            test.addCleanup(directory.rmdir)
    path.write_text(text)
    path.chmod(mode)
    test.addCleanup(path.unlink, missing_ok=True)
    return path


class LostGuest(Exception):
    """libvirtd has lost its connection to a guest's controller, and so misses the guest's end.

    It happens, rarely, to libvirt 9.0 and 11.3 on a busy machine, with hooks or without. Such a
    test tells nothing; tests/module.py runs it again.
    """


class Guest:
    """A container that is defined, with a root file system of its own.

    It runs a shell command, and then waits to be asked to end: of a guest that ends while it still
    starts, libvirt 9.0 often misses the end, and takes it for running ever after.
    """

    def __init__(self, name, root, command="true", elements="", metadata=None, devices=""):
        self.name, self.root = name, root
        if metadata is None:
            metadata = f'<hooks xmlns="urn:virt-hooks:1">{elements}</hooks>' if elements else ""
        self.define(command, metadata, devices)

    def define(self, command, metadata, devices=""):
        file = self.root.with_name(f"{self.root.name}.xml")
        command = f"{command}; until [ -e /end ]; do sleep 0.05; done"
        text = definition(self.name, self.root, command, metadata, devices)
        file.write_text(text, "utf-8")
        result = virsh("define", file)
        if result.returncode:
            raise RuntimeError(result.stderr)

    def virsh(self, command, *arguments):
        return virsh(command, f"--domain={self.name}", *arguments)

    def start(self):
        """Start it; raise RuntimeError where that fails."""
        self.log_before = self.log()
        result = self.virsh("start")
        if result.returncode:
            raise RuntimeError(result.stderr)

    def is_off(self):
        """Whether it is shut off. Its release phase is over then: libvirt answers only after it."""
        return self.virsh("domstate").stdout.strip() == "shut off"

    def has_controller(self):
        """Whether the guest's controller runs, as it does for as long as the guest itself."""
        command = f"libvirt_lxc --name {re.escape(self.name)} "
        return run(["pgrep", "--full", command]).returncode == 0

    def log(self):
        """What its controller has logged."""
        path = LOG.with_name("lxc") / f"{self.name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def end(self):
        """Let it end by itself, after its command; wait until its release phase is over."""
        (self.root / "end").touch()
        lost = "because libvirtd is not connected"
        try:
            wait_until(lambda: self.is_off() or lost in self.log()[len(self.log_before) :])
        except TimeoutError:
            if self.has_controller():
                raise
        if not self.is_off():
            raise LostGuest
        (self.root / "end").unlink()

    def live(self):
        self.start()
        self.end()

    def remove(self):
        self.virsh("destroy")  # which fails where it does not run
        self.virsh("undefine")


def virsh(*arguments, uri=LXC):
    return run(["virsh", "-c", uri, *arguments])


def version():
    """libvirtd's version, such as (9, 0, 0)."""
    text = run(["libvirtd", "--version"]).stdout.split()[-1]
    return tuple(int(number) for number in text.split("."))


def shutoff_reason(reason):
    """What libvirt gives as the last argument of "release end"."""
    return reason if version() >= (10, 5) else "-"


def machine_cgroups():
    """The cgroups that are, or could be, libvirt's."""
    found = set()
    for top in [*Path("/sys/fs/cgroup").glob("machine"), *Path("/sys/fs/cgroup").glob("*/machine")]:
        found |= {Path(directory) for directory, _directories, _files in os.walk(top)}
    return found


def install(*options):
    """Run install.sh, which installs the checkout's hooks in the tests' own /etc/libvirt."""
    result = run([CHECKOUT / "install.sh", *options])
    if result.returncode:
        raise RuntimeError(f"install.sh: {result.stdout}{result.stderr}")


def root_directory(path):
    """Make a root file system for a container, with busybox in it."""
    for name in ("bin", "proc", "sys", "dev", "tmp", "etc"):
        (path / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", path / "bin")
    for name in APPLETS.split():
        (path / "bin" / name).symlink_to("busybox")
    return path


def definition(name, root, command, metadata, devices=""):
    """A container's XML: it runs a shell command in a root file system."""
    return f"""<?xml version='1.0' encoding='UTF-8'?>
        <domain type='lxc'>
          <name>{escape(name)}</name>
          <metadata>{metadata}</metadata>
          <memory unit='MiB'>64</memory>
          <os>
            <type>exe</type>
            <init>/bin/sh</init><initarg>-c</initarg><initarg>{escape(command)}</initarg>
          </os>
          <devices>
            <filesystem type='mount'><source dir='{root}'/><target dir='/'/></filesystem>
            <console type='pty'/>{devices}
          </devices>
        </domain>"""


def wait_until(condition, seconds=60):
    """Wait until a condition holds; raise TimeoutError where it does not come to."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(0.02)
