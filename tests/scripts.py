"""What the tests of the scripts have in common."""

import contextlib
import hashlib
import os
import re
import shlex
import shutil
import stat
import subprocess
import tempfile
import time
import unittest
import uuid
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from harness import NAMESPACE, SCRIPTS, TestCase, run, script

RELEASE = ("release", "end", "-")
STOPPED = ("stopped", "end", "-")
A_TIME = 1_234_567_890_123_456_789  # in nanoseconds
ESCAPES = {"\n": "&#10;", "\r": "&#13;", "\t": "&#9;"}  # else XML makes spaces of some

# Exchanges two names, a directory and a link, as fast as one process can (renameat2, 2: EXCHANGE)
SWAPPER = """
import ctypes, os, random, sys, time
names = [os.fsencode(name) for name in sys.argv[1:]]
libc = ctypes.CDLL(None)
print("swapping", flush=True)
while True:
    libc.renameat2(-100, names[0], -100, names[1], 2)
    if random.random() < 0.5:
        time.sleep(random.random() / 2000)
"""


def directory(path, **attributes):
    """A <dir> with a path, which may have any character."""
    given = "".join(f" {key}={quoteattr(value, ESCAPES)}" for key, value in attributes.items())
    return f"<dir{given}>{escape(str(path), ESCAPES)}</dir>"


def dircopy(src, dst, options=""):
    src, dst = escape(str(src), ESCAPES), escape(str(dst), ESCAPES)
    return f"<dircopy{options}><src>{src}</src><dst>{dst}</dst></dircopy>"


def uuid_of(guest):
    return str(uuid.uuid5(uuid.NAMESPACE_URL, guest))


def guest_xml(elements, guest="web", kind="lxc", more="", has_uuid=True):
    """A guest's XML with these elements in its <hooks>, and with more after its metadata."""
    uuid_element = f"<uuid>{uuid_of(guest)}</uuid>" if has_uuid else ""
    return (
        f"<domain type='{kind}'><name>{escape(guest)}</name>{uuid_element}<metadata>"
        f'<hooks xmlns="{NAMESPACE}">{elements}</hooks></metadata>{more}<devices/></domain>'
    )


def mode_owner_group(path):
    status = os.lstat(path)
    return stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid


def extended(path):
    """Extended attributes of a file, ACLs and capabilities with them."""
    names = os.listxattr(path, follow_symlinks=False)
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names}


def details(directory):
    """All that a copy is to keep: {path in it: type, mode, owners, time, links, contents, ...}."""
    found, inodes = {}, {}
    for path in [directory, *sorted(Path(directory).rglob("*"))]:
        status = path.lstat()
        name = str(path.relative_to(directory))
        contents = None
        if path.is_symlink():
            contents = os.readlink(path)
        elif path.is_file():
            contents = path.read_bytes()
            if len(contents) > 1000:  # too long to be shown where two differ
                contents = len(contents), hashlib.sha256(contents).hexdigest()
        found[name] = (
            status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, status.st_rdev,
            contents, extended(path), inodes.setdefault(status.st_ino, name),
        )  # fmt: skip
    return found


def fill(directory):
    """Put a file of every kind, but no device, into a directory."""
    inner = directory / "inner/closed"
    inner.mkdir(parents=True)
    (inner / "text").write_text("golden")
    os.link(inner / "text", directory / "hard link")
    (directory / "link").symlink_to("inner/closed/text")
    (directory / "dangling").symlink_to("/srv/nowhere")
    (directory / "to directory").symlink_to("inner")
    os.lchown(directory / "link", 1003, 1004)
    os.utime(directory / "link", ns=(A_TIME, A_TIME + 7), follow_symlinks=False)
    os.mkfifo(directory / "fifo", 0o620)
    (directory / "-empty\n").touch()
    with open(directory / "sparse", "wb") as file:
        file.write(b"x")
        file.truncate(4 << 20)
        file.seek(2 << 20)
        file.write(b"y" * 5000)
    (directory / "attributes").write_text("x")
    os.setxattr(directory / "attributes", "trusted.virt-hooks", b"\0\xff")
    with contextlib.suppress(OSError):  # a tmpfs has had these since Linux 6.6 only
        os.setxattr(directory / "attributes", "user.virt-hooks", b"value")
    shutil.copy("/bin/true", directory / "capable")
    for command in (
        ["setcap", "cap_net_raw+ep", directory / "capable"],
        ["setfacl", "-m", "u:1005:rw,g:1006:r", directory / "attributes"],
        ["setfacl", "-m", "u:1005:rwx,d:u:1005:rwx,d:g:1006:r", directory / "inner"],
    ):
        run(command, check=True)
    for name, mode in {
        "attributes": 0o640,
        "hard link": 0o4751,
        "inner": 0o3770,
        "sparse": 0o600,
        "inner/closed": 0,
    }.items():
        os.chown(directory / name, 1001, 1002)
        (directory / name).chmod(mode)
    for path in (*directory.rglob("*"), directory):
        if not path.is_symlink():
            os.utime(path, ns=(A_TIME, A_TIME + len(path.name)))


def mounted_on(path):
    """(type, source, options, options of the file system) of each mount on a path, in order."""
    found = []
    for line in Path("/proc/self/mountinfo").read_bytes().split(b"\n")[:-1]:
        fields, _dash, rest = line.partition(b" - ")
        fields = fields.split(b" ")
        point = re.sub(rb"\\(\d{3})", lambda match: bytes([int(match[1], 8)]), fields[4])
        if point == os.fsencode(path):
            kind, source, options = rest.decode().split(" ")
            found.append((kind, source, set(fields[5].decode().split(",")), options.split(",")))
    return found


@contextlib.contextmanager
def swapping(one, other, *unmounted):
    """A process exchanges two names as long as the block runs.

    unmounted: mount points that are none in its own mount namespace, so that it can rename them.
    """
    command = ["/usr/bin/python3", "-IS", "-c", SWAPPER, one, other]
    if unmounted:
        text = f'umount {shlex.join(map(str, unmounted))} && exec "$@"'
        private = ["unshare", "--mount", "--propagation", "private", "sh", "-c", text, "sh"]
        command = [*private, *command]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


def for_seconds(seconds):
    """Yield as often as the time allows, at least once."""
    until = time.monotonic() + seconds
    number = 0
    while not number or time.monotonic() < until:
        yield number
        number += 1


def put_copy_over_etc():
    """Keep the host's own /etc out of a module's tests: a copy is mounted over it meanwhile."""
    copy = tempfile.mkdtemp(prefix="etc-", dir="/srv")
    run(["cp", "-a", "/etc/.", copy], check=True)
    run(["mount", "--bind", copy, "/etc"], check=True)
    unittest.addModuleCleanup(shutil.rmtree, copy)
    unittest.addModuleCleanup(run, ["umount", "--lazy", "/etc"], check=True)


class ScriptCase(TestCase):
    """A test of one script, SCRIPT, whose element has the name that follows its number."""

    EXAMPLE = ""  # an element for which it has something to do; D is a directory of the test's
    PROGRAM = ""  # that it runs then, if it runs one

    def call(
        self, elements, *phase, guest="web", name="", dry_run=False, environment=None, **options
    ):
        """Run a script on a guest's elements, or on a whole XML text, in its own phase or another.

        name: of the script, by default SCRIPT.
        """
        name = name or self.SCRIPT
        phase = phase or SCRIPTS[name].removesuffix(".d").split("_")[1:]
        xml = elements if elements.startswith("<domain") else guest_xml(elements, guest)
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", **(environment or {})}
        if dry_run:
            environment["VIRT_HOOKS_DRY_RUN"] = "1"
        return run([script(name), guest, *phase], input=xml, env=environment, **options)

    def everything(self):
        """All that a script may change."""
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        return details(self.directory), [line for line in mounts if str(self.directory) in line]

    def assert_says(self, result, *values):
        """A run succeeded, and printed lines that have these values in them, and no others."""
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        lines = result.stdout.splitlines()
        for value in values:
            self.assertTrue([line for line in lines if str(value) in line], (value, lines))
        for line in lines:
            self.assertTrue([value for value in values if str(value) in line], line)

    def assert_refused(self, elements, *values, phase=(), name="", guest="web", **options):
        """These elements are an error, in one line, and nothing at all has been done."""
        before = self.everything()
        result = self.call(elements, *phase, name=name, guest=guest, **options)
        self.assert_error(result, *values, name=name, guest=guest)
        self.assertEqual(result.stdout, "")
        self.assertEqual(self.everything(), before)

    def path_with(self, program, text):
        """What makes a program of this text, in Python, come first in PATH."""
        # no sh: it complains where its directory has no name, as the one that cp works in
        self.write(f"bin/{program}", f"#!/usr/bin/python3 -IS\n{text}", 0o755)
        return {"PATH": f"{self.directory}/bin:{os.environ['PATH']}"}

    def mount(self, *arguments):
        run(["mount", *arguments], check=True)

    def mount_image(self, name, size, *make):
        """A file system of its own in a file, made by a command, mounted in the directory."""
        image, point = self.directory / f"{name}.image", self.directory / name
        with open(image, "wb") as file:
            file.truncate(size)
        run([*make, image], check=True)
        point.mkdir()
        self.mount("-o", "loop", image, point)
        return point

    def command(self, name=""):
        """The command by which libvirt would run the script, without the dispatcher."""
        name = name or self.SCRIPT
        return [script(name), "web", *SCRIPTS[name].removesuffix(".d").split("_")[1:]]
