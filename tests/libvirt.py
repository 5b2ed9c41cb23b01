"""The real libvirtd with its LXC driver, and real containers, in the tests' own namespace."""

import os
import shutil
import subprocess
import time
from pathlib import Path

from harness import run

HOOKS = Path("/etc/libvirt/hooks")


class Libvirtd:
    """A libvirtd that runs as long as the block does."""

    def __enter__(self):
        self.process = subprocess.Popen(
            ["libvirtd"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until = time.monotonic() + 30
        while virsh("uri").returncode:
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError("libvirtd does not answer")
            time.sleep(0.05)
        return self

    def __exit__(self, *_exception):
        for guest in virsh("list", "--name").stdout.split("\n"):
            if guest:
                virsh("destroy", "--domain", guest)
        self.process.terminate()
        self.process.wait(30)


def virsh(*arguments):
    return run(["virsh", "-c", "lxc:///system", *arguments])


def rootfs(directory):
    """Make a root file system for a container, with busybox in it."""
    for name in ("bin", "proc", "sys", "dev", "tmp", "etc"):
        (directory / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", directory / "bin")
    for name in ("sh", "sleep", "cat", "ls", "mount", "ln", "mkdir", "mv", "touch", "echo", "df"):
        os.link(directory / "bin/busybox", directory / "bin" / name)


def definition(name, directory, command, elements="", metadata=None):
    """A container's XML: it runs a shell command in the root file system at a directory."""
    if metadata is None:
        metadata = f'<hooks xmlns="urn:virt-hooks:1">{elements}</hooks>' if elements else ""
    return f"""
        <domain type='lxc'>
          <name>{name}</name>
          <metadata>{metadata}</metadata>
          <memory unit='MiB'>64</memory>
          <os>
            <type>exe</type>
            <init>/bin/sh</init><initarg>-c</initarg><initarg>{command}</initarg>
          </os>
          <devices>
            <filesystem type='mount'><source dir='{directory}'/><target dir='/'/></filesystem>
            <console type='pty'/>
          </devices>
        </domain>"""
