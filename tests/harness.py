"""What the tests have in common: a directory of their own, hooks in it, runs of them, syslog."""

import os
import shutil
import socket
import subprocess
import tempfile
import threading
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent
CAPTURES = HERE / "captures"
PHASES = ("0-prepare", "1-start", "2-started", "3-stopped", "4-release")
PATHS = [path.relative_to(CHECKOUT) for path in sorted(CHECKOUT.glob("lxc_*.d/[0-9]*"))]
# {name: directory} of the scripts, and {path: target} of the links to them
SCRIPTS = {path.name: path.parent.name for path in PATHS if not (CHECKOUT / path).is_symlink()}
LINKS = {
    str(path): os.readlink(CHECKOUT / path) for path in PATHS if (CHECKOUT / path).is_symlink()
}
NAMESPACE = "urn:virt-hooks:1"


def script(name):
    """The path of a script in the checkout."""
    return CHECKOUT / SCRIPTS[name] / name


def install_dispatcher(path):
    """Put the dispatcher at a path, which ends in the name of a driver."""
    shutil.copy(CHECKOUT / "hooks/lxc", path)


class TestCase(unittest.TestCase):
    """A test with an empty directory of its own, self.directory, which is removed afterwards.

    What is mounted below it is unmounted then; the mounts are in the tests' own namespace.
    """

    SCRIPT = ""  # the script that it tests, if it tests one

    def setUp(self):
        # directly in /srv, a tmpfs of ours: no part of the path is a link, whatever TMPDIR says
        self.directory = Path(tempfile.mkdtemp(prefix="test-", dir="/srv"))
        self.addCleanup(self.remove_directory)
        self.addTypeEqualityFunc(dict, self.assert_same_entries)

    def assert_same_entries(self, first, second, msg=None):
        """Of big directories unittest's own assertDictEqual takes minutes to show what differs."""
        names = [n for n in first.keys() | second.keys() if first.get(n) != second.get(n)]
        if names:
            some = "".join(f"\n{n}: {first.get(n)} != {second.get(n)}" for n in sorted(names)[:3])
            self.fail(self._formatMessage(msg, f"{len(names)} entries differ, such as: {some}"))

    def remove_directory(self):
        for point in reversed(mount_points()):
            if f"{point}/".startswith(f"{self.directory}/"):
                subprocess.run(["umount", "--lazy", point], check=True)
        shutil.rmtree(self.directory)

    def write(self, path, text, mode=0o644):
        """Write a file below self.directory, with its parents; return its path."""
        path = self.directory / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path

    def assert_succeeds(self, result):
        self.assertEqual((result.returncode, result.stderr), (0, ""))

    def assert_error(self, result, *values, name="", guest="web", programs_said=False):
        """A run failed, and its last line says what failed: script, guest, element and values.

        Before it there is what the program said that failed, if one did (None: it does not matter).
        """
        name = name or self.SCRIPT
        self.assertEqual(result.returncode, 1, result.stderr)
        *said, line, end = ["", *result.stderr.split("\n")]
        self.assertEqual(end, "", result.stderr)
        self.assertIn(programs_said, (None, bool(said[1:])), result.stderr)
        self.assertNotIn("Traceback", result.stderr)
        self.assertIn(name, line)
        rest = line.replace(name, "", 1)
        element = name.partition("-")[2] if name in SCRIPTS else ""  # an example's may differ
        for part in (guest, element, *values):
            self.assertIn(str(part), rest)


def run(command, **options):
    """subprocess.run, with text captured."""
    options.setdefault("timeout", 60)
    return subprocess.run(command, capture_output=True, text=True, **options)


def mount_points():
    """The mount points of this namespace, in the order in which they were mounted."""
    with open("/proc/self/mountinfo", "rb") as file:
        fields = [line.split(b" ")[4] for line in file]
    return [os.fsdecode(field.decode("unicode_escape").encode("latin-1")) for field in fields]


def network_state():
    """All that policies and routing tables may change: {command or file: what it shows}."""
    commands = ("nft --stateless list ruleset", "ip rule", "ip -6 rule",
                "ip route show table all", "ip -6 route show table all")  # fmt: skip
    shown = {command: run(command.split()).stdout for command in commands}
    files = (path for path in Path("/etc/iproute2").rglob("*") if path.is_file())
    return shown | {str(path): path.read_bytes() for path in files}


def snapshot(directory):
    """What is in a directory, for comparison: {path: (type and mode, owner, group, contents)}."""
    found = {}
    for path in [directory, *sorted(Path(directory).rglob("*"))]:
        status = path.lstat()
        contents = None
        if path.is_symlink():
            contents = os.readlink(path)
        elif path.is_file():
            contents = path.read_bytes()
        found[str(path)] = status.st_mode, status.st_uid, status.st_gid, contents
    return found


class Syslog:
    """Listens at /dev/log, which in the tests' namespace is ours; lines are in self.lines."""

    def __enter__(self):
        self.lines = []
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("/dev/log")
        self.thread = threading.Thread(target=self.listen)
        self.thread.start()
        return self

    def listen(self):
        while data := self.socket.recv(1 << 16):
            # "<30>Nov 22 11:54:17 virt-hooks: ..."
            self.lines.append(data.decode(errors="replace").partition("virt-hooks: ")[2])

    def __exit__(self, *_exception):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.sendto(b"", "/dev/log")  # after all that was sent before
        self.thread.join()
        self.socket.close()
        os.unlink("/dev/log")
