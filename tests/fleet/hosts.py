"""Hosts for the tests: roots of Debian 12 and 13, each with namespaces of its own.

tests/fleet/prepare has made the roots. A test's own changes to one are in a layer on top of it,
which goes with the test.
"""

import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent.parent
PLACE = Path("/var/tmp/virt-hooks-fleet")
ANSIBLE = PLACE / "ansible/bin"
HOOKS = "etc/libvirt/hooks"
ELEMENTS = """<hooks xmlns="urn:virt-hooks:1">
    <mkdirs><dir>/srv/web/www</dir><dir>/srv/web/log</dir></mkdirs>
    <ramdisk><dir size="1M">/srv/web/www</dir></ramdisk>
    <preload><dircopy><src>/srv/golden</src><dst>/srv/web/www</dst></dircopy></preload>
    <archive><dircopy><src>/srv/web/www</src><dst>/srv/archive/log</dst></dircopy></archive>
    <post-rm-rf><dir>/srv/web/www</dir><dir>/srv/web/log</dir></post-rm-rf>
</hooks>"""

sys.path.insert(0, str(HERE.parent))
from harness import run, snapshot  # noqa: E402
from libvirt import definition, machine_cgroups, root_directory, wait_until  # noqa: E402

GUEST = "fleet-web"  # on one host at a time: guests of one name share cgroups


class TestCase(unittest.TestCase):
    """A test with an empty directory of its own, self.directory."""

    def setUp(self):
        temporary = tempfile.TemporaryDirectory(prefix="virt-hooks-fleet-")
        self.addCleanup(temporary.cleanup)
        self.directory = Path(temporary.name)

    def done(self, command, **options):
        """Run a command, which must succeed; return what it printed."""
        result = run(command, **options)
        said = f"{result.stdout}{result.stderr}"
        self.assertEqual(result.returncode, 0, f"{command}\n{said}")
        return said

    def host(self, suite, fresh=False):
        host = Host(suite, fresh)
        self.addCleanup(host.stop)
        return host


class Host:
    """A root of a suite in mount, network, PID and UTS namespaces of its own.

    self.root is where it can be seen from outside. A fresh one is as debootstrap made it, and on
    the machine's own network, so that it can install packages.
    """

    def __init__(self, suite, fresh=False):
        self.suite = suite
        self.work = Path(tempfile.mkdtemp(prefix="virt-hooks-host-", dir="/var/tmp"))
        lower = [PLACE / suite] if fresh else [PLACE / f"{suite}.host", PLACE / suite]
        for name in ("upper", "work", "root"):
            (self.work / name).mkdir()
        options = f"lowerdir={':'.join(map(str, lower))}"
        options += f",upperdir={self.work}/upper,workdir={self.work}/work"
        self.namespaces = ["--mount", "--uts", "--pid", *([] if fresh else ["--net"])]
        self.init = subprocess.Popen(
            ["unshare", *self.namespaces, "--propagation", "private", "--fork", "--kill-child"]
            + [HERE / "init", self.work / "root", options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = int(self.init.stdout.readline() or 0)  # of the namespaces' first process
        if not self.pid:
            raise RuntimeError(f"no host of {suite} came up")
        self.root = Path(f"/proc/{self.pid}/root")

    def command(self, *command):
        """A command as it is to be given to be run on the host."""
        enter = ["nsenter", f"--target={self.pid}", *self.namespaces, "--root", "--wd"]
        return enter + [
            "env", "-i", "HOME=/root",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive", *command,
        ]  # fmt: skip

    def run(self, *command, **options):
        return run(self.command(*command), **options)

    def done(self, *command, **options):
        """Run a command on it, which must succeed; return what it printed."""
        result = self.run(*command, **options)
        if result.returncode:
            raise AssertionError(f"{self.suite}: {command}\n{result.stdout}{result.stderr}")
        return result.stdout

    def virsh(self, *arguments):
        return self.run("virsh", "-c", "lxc:///system", *arguments)

    def start_libvirtd(self):
        """Start libvirtd, and define the guest, whose metadata uses four of the scripts."""
        self.cgroups = machine_cgroups()
        (self.root / "var/log/libvirt").mkdir(exist_ok=True)
        self.done("libvirtd", "--daemon")
        wait_until(lambda: self.virsh("uri").returncode == 0)
        root_directory(self.root / "srv/web/rootfs")
        self.write("srv/golden/greeting", "Hello\n")
        text = definition(GUEST, "/srv/web/rootfs", "exec sleep 1000", ELEMENTS)
        self.write("srv/web.xml", text)
        self.done("virsh", "-c", "lxc:///system", "define", "/srv/web.xml")

    def live(self):
        """Start the guest and end it; return what there was while it ran and what there is after.

        Each is (whether the ramdisk was mounted, what was in it, the archives).
        """
        started = self.virsh("start", GUEST)
        if started.returncode:
            raise AssertionError(started.stderr)
        during = self.traces()
        self.virsh("destroy", GUEST)
        return during, self.traces()

    def traces(self):
        mounted = self.run("mountpoint", "-q", "/srv/web/www").returncode == 0
        names = [
            p.name for place in ("web/www", "archive") for p in self.root.glob(f"srv/{place}/*")
        ]
        return mounted, *names

    def stop_libvirtd(self):
        self.virsh("destroy", GUEST)
        self.done("sh", "-c", "kill $(cat /run/libvirtd.pid)")
        wait_until(lambda: not (self.root / "run/libvirtd.pid").exists())
        # libvirt leaves these, and the cgroup file systems are the machine's
        for path in sorted(machine_cgroups() - self.cgroups, reverse=True):
            if path.is_dir() and not (path / "cgroup.procs").read_text():
                path.rmdir()

    def hooks(self):
        """What is below its hooks directory: {path: (type and mode, owner, group, contents)}."""
        top = self.root / HOOKS
        found = snapshot(top) if top.is_dir() else {}
        return {os.path.relpath(path, top): what for path, what in found.items()}

    def write(self, path, text, mode=0o644):
        path = self.root / path.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path

    def end(self):
        """End its first process, and with it all others and the mounts."""
        self.init.stdin.close()
        self.init.wait(60)
        self.init.stdout.close()

    def stop(self):
        self.end()
        subprocess.run(["rm", "-rf", "--one-file-system", self.work], check=True)
