"""Faults: whatever is killed or refused, and at whichever system call, no data is lost.

strace makes the faults. One process of a run is under it, the dispatcher, a script, or a program
that a script runs, and is killed, or gets an error, at its Nth call of a kind: for each kind that
changes something, with N from 1 on, until the process makes no such call any more.
"""

import concurrent.futures
import itertools
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
import unittest
from collections import Counter
from pathlib import Path

from harness import CHECKOUT, TestCase, mount_points, run, script
from scripts import details, guest_xml
from test_archive import archived
from test_routing_table import RoutingTable, route, rule, setUpModule, table  # noqa: F401

CHANGES = (
    *("mkdir", "mkdirat", "mknod", "mknodat", "link", "linkat", "symlink", "symlinkat"),
    *("rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir", "chown", "lchown"),
    *("fchown", "fchownat", "chmod", "fchmod", "fchmodat", "utimensat", "write", "ftruncate"),
    *("copy_file_range", "fallocate", "setxattr", "lsetxattr", "fsetxattr", "removexattr"),
    *("fsync", "syncfs", "open_tree", "mount_setattr", "mount", "umount2", "fsopen", "fsconfig"),
    *("fsmount", "move_mount", "memfd_create", "clone", "clone3", "vfork", "exit_group"),
)
OF_PROGRAMS = (*CHANGES, "openat", "ioctl")
OF_SCRIPTS = (*CHANGES, "openat", "readlink", "getdents64")
# a script's own calls of the last two are Python's, of the modules that it imports
OF_DISPATCHER = (*OF_SCRIPTS, "newfstatat", "statx")
ERRORS = {
    **dict.fromkeys(("fsync", "syncfs"), ("EIO", "ENOSPC", "EDQUOT")),
    **dict.fromkeys(("open_tree", "mount_setattr", "memfd_create"), ("ENOMEM", "EMFILE")),
    **dict.fromkeys(("clone", "clone3", "vfork"), ("ENOMEM", "EAGAIN")),
    **dict.fromkeys(("mount", "umount2"), ("ENOMEM", "EBUSY", "EPERM", "EIO")),
    **dict.fromkeys(("fsopen", "fsconfig", "fsmount", "move_mount"), ("ENOMEM", "EBUSY", "EIO")),
    **dict.fromkeys(("unlink", "unlinkat", "rmdir"), ("EROFS", "EIO", "EBUSY")),
    **dict.fromkeys(("readlink", "getdents64", "newfstatat", "statx"), ("EIO", "ENOMEM")),
    "openat": ("EMFILE", "ENFILE", "ENOMEM", "EIO", "ENOSPC"),
    "exit_group": (),
}
OTHER_ERRORS = ("ENOSPC", "EDQUOT", "EROFS", "EIO")
SCRIPTS = {
    phase: sorted(path.name for path in CHECKOUT.glob(f"lxc_{phase}_*.d/*"))
    for phase in ("prepare", "release")
}
PHASES = {"prepare": ("prepare", "begin", "-"), "release": ("release", "end", "shutdown")}
PROGRAMS = {
    "10-archive": ("cp", "chmod", "sync"),
    "20-ramdisk": ("mount", "umount"),
    "30-preload": ("cp",),
    "30-post-rm-rf": ("rm",),
}
OF_NETWORK = (*(set(CHANGES) - {"exit_group"}), "sendto", "sendmsg", "flock")
NETWORK_PHASES = {
    "start": ("start", "begin", "-"),
    "start again": ("start", "begin", "-"),  # in a running guest
    "stopped": ("stopped", "end", "-"),
}
NETWORK_PROGRAMS = {"10-routing-table": ("ip",), "20-network-policy": ("nft",)}
NETWORK = {
    "10-routing-table": table(route(), rule()) + table(rule("from fd00::5"), id="9", name="x"),
    "20-network-policy": "<network-policy><nft>chain c { }</nft></network-policy>",
}
SECONDS = 300  # to wait for what takes a moment, on a machine that has other work
WORKERS = 3  # runs at once: much of one is waiting
# for libfaketime: files keep their times, and the kernel's own clock never jumps
JUST_NOW = {"NO_FAKE_STAT": "1", "DONT_FAKE_MONOTONIC": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
MARKER = "VIRT_HOOKS_TEST"  # in the environment of all that a run starts
MOUNTING = threading.Lock()


class Life:
    """A guest's directories, elements and hooks, in a directory of its own."""

    def __init__(self, directory):
        self.directory = directory
        self.guest, self.store = directory / "guest", directory / "store"
        self.log, self.tmp, self.cache = (self.guest / name for name in ("log", "tmp", "cache"))
        self.golden, self.trace = directory / "golden", directory / "trace"
        self.allowed = ()  # what a directory that preload creates may have become
        self.environment = environment(directory)
        for path in (self.guest, self.store, self.golden):
            path.mkdir(parents=True)
        for phase, scripts in SCRIPTS.items():
            phase_directory = self.phase_directory(phase)
            phase_directory.mkdir(parents=True)
            for name in scripts:
                (phase_directory / name).symlink_to(CHECKOUT / phase_directory.name / name)
        self.dispatcher = directory / "hooks/lxc"
        self.dispatcher.symlink_to(CHECKOUT / "hooks/lxc")
        fill(self.golden)
        os.chown(self.golden, 1008, 1009)
        self.golden.chmod(0o41751)
        self.before = details(self.golden)
        self.elements = f"""
            <mkdirs>
              <dir mode="0750" owner="1000" group="1001">{self.log}</dir>
              <dir>{self.tmp}</dir><dir>{self.cache}/a/b</dir>
            </mkdirs>
            <ramdisk><dir size="4M" mode="0711" owner="7">{self.tmp}</dir></ramdisk>
            <preload>
              <dircopy><src>{self.golden}</src><dst>{self.tmp}</dst></dircopy>
              <dircopy><src>{self.golden}</src><dst>{self.cache}/copy</dst></dircopy>
            </preload>
            <archive>
              <dircopy optional="yes"><src>{self.log}</src><dst>{self.store}/D/log</dst></dircopy>
              <dircopy><src>{self.tmp}</src><dst>{self.store}/D/tmp</dst></dircopy>
              <datestr><format>day</format><replace>D</replace></datestr>
            </archive>
            <post-rm-rf><dir>{self.log}</dir><dir>{self.cache}</dir></post-rm-rf>
        """

    def phase_directory(self, phase):
        return self.directory / "hooks" / f"lxc_{'_'.join(PHASES[phase][:2])}_-.d"

    def live(self):
        """Let the guest have run: it leaves a log, a ramdisk with data, and a cache."""
        for path in (self.log, self.tmp, self.cache):
            path.mkdir()
        with MOUNTING:
            run(["mount", "-t", "tmpfs", "-o", "size=4M", "virt-hooks", self.tmp], check=True)
        for path in (self.log, self.tmp):
            fill(path)
        (self.cache / "page").write_text("page")
        self.note_data()

    def note_data(self):
        """What there is now is the data that must not be lost."""
        self.data = {path: details(path) for path in (self.log, self.tmp)}
        self.whole = {path: archived(path) for path in (self.log, self.tmp)}

    def call(self, phase, wrap=(), **options):
        """Run the dispatcher, as libvirt does."""
        command = [*wrap, self.dispatcher, "web", *PHASES[phase]]
        options.setdefault("timeout", SECONDS)
        return run(command, input=guest_xml(self.elements), env=self.environment, **options)

    def put_under_strace(self, phase, name, program, calls, inject=""):
        """Put a process under strace; return what is to come before the dispatcher's command.

        name: of a script, or lxc for the dispatcher; program: that it runs, or None for itself.
        """
        self.trace.unlink(missing_ok=True)
        command = strace(self.trace, calls, inject)
        if name == "lxc":
            return command
        path = self.phase_directory(phase) / name
        real = CHECKOUT / path.parent.name / name
        path.unlink()
        if not program:
            write_program(path, f'exec {shlex.join([*command, "-D"])} {real} "$@"')
            return []
        programs = program_under_strace(self.directory / "bin", program, command)
        write_program(path, f'PATH={programs}:$PATH\nexport PATH\nexec {real} "$@"')
        return []

    def remove_strace(self, phase):
        for name in SCRIPTS[phase]:
            path = self.phase_directory(phase) / name
            path.unlink()
            path.symlink_to(CHECKOUT / path.parent.name / name)

    def traced(self):
        return self.trace.read_text(errors="replace") if self.trace.exists() else ""

    def archives(self, path):
        """The archives of a directory, whole or not."""
        found = self.store.glob(f"day/{path.name}*")
        return {archive: archived(archive) for archive in found}

    def what_is_lost(self):
        """The directories of which neither the guest has all its data nor an archive."""
        return [
            path
            for path in (self.log, self.tmp)
            if self.whole[path] not in self.archives(path).values()
            and (not path.exists() or details(path) != self.data[path])
        ]

    def left(self):
        """Temporary names, mounts and processes of this life."""
        names = [str(path) for path in self.directory.rglob(".*")]
        mounts = [point for point in mount_points() if point.startswith(f"{self.directory}/")]
        return [*names, *mounts, *processes(self.directory)]

    def remove(self):
        for point in reversed(mount_points()):
            if point.startswith(f"{self.directory}/"):
                subprocess.run(["umount", "--lazy", point], check=True)
        shutil.rmtree(self.directory)


def fill(directory):
    """Put into a directory what an archive has to keep."""
    (directory / "inner/empty").mkdir(parents=True)
    (directory / "inner/text").write_text(f"text of {directory.name}\n" * 1000)
    (directory / "short").write_text("short")
    (directory / "none").touch()
    os.link(directory / "inner/text", directory / "hard link")
    (directory / "link").symlink_to("inner/text")
    (directory / "nowhere").symlink_to("/srv/nowhere")
    os.mkfifo(directory / "fifo", 0o620)
    os.lchown(directory / "link", 1003, 1004)
    for name, mode in {"inner": 0o1770, "short": 0o4640, "inner/empty": 0o2700}.items():
        os.chown(directory / name, 1001, 1002)
        (directory / name).chmod(mode)
    directory.chmod(0o751)
    for path in (*directory.rglob("*"), directory):
        os.utime(path, ns=(1, 10**18 + len(path.name)), follow_symlinks=False)


def strace(trace, calls, inject=""):
    """The command that puts one process, but none that it starts, under strace."""
    command = ["strace", "-qq", "-A", "-o", str(trace), "-e", f"trace={','.join(calls)}"]
    return [*command, "-e", f"inject={inject}"] if inject else command


def program_under_strace(directory, program, command):
    """Put into a directory for PATH a program that is under strace; return the directory."""
    directory.mkdir(exist_ok=True)
    # -D: the process keeps its number and its parent
    command = [*command, "-D", shutil.which(program)]
    # no sh: it says so where its directory has no name, as the one has that cp works in
    text = f"import os, sys\nos.execvp({command[0]!r}, {command!r} + sys.argv[1:])"
    write_program(directory / program, text, "/usr/bin/python3 -IS")
    return directory


def environment(marker):
    return {"PATH": os.environ["PATH"], "LC_ALL": "C", MARKER: str(marker)}


def processes(marker):
    """The processes that have a marker in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARKER}={marker}" in (path / "environ").read_text(errors="replace").split("\0"):
                found.append(int(path.name))
        except OSError:
            continue  # it has ended
    return found


def wait_for_processes(marker):
    """Wait until what a run has started is at its end; raise TimeoutError where it is not."""
    until = time.monotonic() + SECONDS
    while left := processes(marker):
        if time.monotonic() > until:
            raise TimeoutError(f"still there: {left}")
        time.sleep(0.01)


def write_program(path, text, interpreter="/bin/sh"):
    path.write_text(f"#!{interpreter}\n{text}\n")
    path.chmod(0o755)


def overwrite(path, at, data):
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


def processes_of(phase):
    """The processes of a phase's scripts as (script, program)."""
    found = []
    for name in SCRIPTS[phase]:
        programs = PROGRAMS.get(name, ())
        if name == "20-ramdisk":
            programs = ("mount",) if phase == "prepare" else ("umount",)
        found += [(name, None), *((name, program) for program in programs)]
    return found


class FaultCase(TestCase):
    def setUp(self):
        super().setUp()
        self.number, self.lock = 0, threading.Lock()
        self.tried = Counter()

    def new_life(self):
        with self.lock:
            self.number += 1
            return Life(self.directory / str(self.number))

    def each(self, function, jobs):
        """Call a function with each job's arguments, some at once; fail with what they raise."""
        with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
            running = {pool.submit(function, *job): job for job in jobs}
            for future in concurrent.futures.as_completed(running):
                with self.subTest(running[future]):
                    future.result()

    def calls_of(self, phase, name, program, calls):
        """The system calls, of these, that a process makes in a run without a fault.

        As {call: the number of the first one that is not the interpreter's own, as it starts}.
        """
        life = self.new_life()
        if phase == "release":
            life.live()
        traced = [f"?{call}" for call in (*calls, "openat")]
        wrap = life.put_under_strace(phase, name, program, traced)
        self.assert_succeeds(life.call(phase, wrap))
        wait_for_processes(life.directory)
        lines = life.traced().splitlines()
        life.remove()
        begun = 0
        if not program:
            own = f'"{life.phase_directory(phase)}' if name == "lxc" else f'"{life.directory}'
            begun = next(number for number, line in enumerate(lines) if own in line)
        names = [re.match(r"\w*", line)[0] for line in lines]
        return {call: names[:begun].count(call) + 1 for call in calls if call in names[begun:]}

    def assert_nothing_lost(self, phase, life):
        """All data is in its place or in an archive, and each archive that is there is whole."""
        if phase == "release":
            self.assertEqual(life.what_is_lost(), [])
            for path in (life.log, life.tmp):
                for contents in life.archives(path).values():
                    self.assertEqual(contents, life.whole[path])
        self.assertEqual(details(life.golden), life.before)

    def assert_released(self, life):
        for path in (life.log, life.tmp):
            self.assertIn(life.whole[path], life.archives(path).values())
        self.assertFalse(life.log.exists())
        self.assertFalse(life.cache.exists())
        self.assertEqual(os.listdir(life.tmp), [])
        self.assertEqual(life.left(), [])

    def assert_prepared(self, life):
        copy, new = (0o41751, 1008, 1009), (0o40755, 0, 0)
        for path, *expected in (
            (life.log, (0o40750, 1000, 1001)),
            *((life.cache / name, new) for name in (".", "a", "a/b")),
            (life.cache / "copy", copy, *life.allowed),
        ):
            status = path.stat()
            self.assertIn((status.st_mode, status.st_uid, status.st_gid), expected, path)
        for path in (life.tmp, life.cache / "copy"):
            found = details(path)
            del found["."]  # which keeps its own attributes
            self.assertEqual(found, {n: e for n, e in life.before.items() if n != "."})
        self.assertEqual(details(life.golden), life.before)
        self.assertEqual(life.left(), [str(life.tmp)])

    def assert_done(self, phase, life):
        if phase == "prepare":
            self.assert_prepared(life)
        else:
            self.assert_released(life)

    def assert_second_run(self, phase, life):
        """A second run, without a fault, finishes the work."""
        life.remove_strace(phase)
        before = {a: d for path in (life.log, life.tmp) for a, d in life.archives(path).items()}
        result = life.call(phase)
        self.assertEqual(result.returncode, 0, result.stderr)
        if phase == "release":
            self.assertEqual(result.stderr, "")
            self.assert_released(life)
            for archive, contents in before.items():
                self.assertEqual(archived(archive), contents)
        else:
            self.assert_prepared(life)
            life.note_data()
            self.assert_succeeds(life.call("release"))
            self.assert_released(life)
        life.remove()

    def one_by_one(self, process, call, first, what, happened, check):
        """Make a fault at one call after the other of a kind, of a process, from the first on.

        process: (phase, script, program); what: strace is to inject; happened: its trace then has
        this. check(phase, life, result) is called after each.
        """
        phase, name, program = process
        for number in itertools.count(first):
            life = self.new_life()
            if phase == "release":
                life.live()
            if (name, program) == ("30-preload", None):  # in the moment between mkdir and chmod
                life.allowed = (0o40755, 0, 0), (0o40755, 1008, 1009)
            inject = f"{call}:{what}:when={number}"
            wrap = life.put_under_strace(phase, name, program, [call], inject)
            result = life.call(phase, wrap)
            wait_for_processes(life.directory)
            if happened not in life.traced():
                life.remove()
                return
            try:
                self.assert_nothing_lost(phase, life)
                check(phase, life, result)
                self.assert_second_run(phase, life)
            except BaseException as error:
                raise AssertionError(f"{process}: {inject}: {result}") from error
            with self.lock:
                self.tried[phase] += 1

    def say_what_was_tried(self, faults):
        print(f"\n{faults}: {dict(self.tried)}", file=sys.stderr)


class Killed(FaultCase):
    def kill(self, *process):
        phase, _name, program = process
        killed = "signal=KILL", "killed by SIGKILL"
        for call, first in self.calls_of(*process, OF_PROGRAMS if program else CHANGES).items():
            self.one_by_one(process, call, first, *killed, lambda *_: None)

    def test_a_release_that_is_killed_anywhere_loses_nothing_and_the_next_finishes_it(self):
        self.each(self.kill, [("release", *process) for process in processes_of("release")])
        self.say_what_was_tried("killed at a system call")

    def test_a_prepare_that_is_killed_anywhere_loses_nothing_and_the_next_finishes_it(self):
        self.each(self.kill, [("prepare", *process) for process in processes_of("prepare")])
        self.say_what_was_tried("killed at a system call")


class Refused(FaultCase):
    def refuse(self, *process):
        _phase, name, program = process
        calls = OF_PROGRAMS if program else OF_DISPATCHER if name == "lxc" else OF_SCRIPTS
        for call, first in self.calls_of(*process, calls).items():
            for error in ERRORS.get(call, OTHER_ERRORS):
                injected = f"error={error}", "(INJECTED)"
                self.one_by_one(process, call, first, *injected, self.assert_told)

    def assert_told(self, phase, life, result):
        """Either all is done, or who called reads that it is not, and by which script."""
        self.assertNotIn("Traceback", result.stderr)
        if result.returncode == 0:
            self.assert_done(phase, life)
            return
        *said, last = result.stderr.splitlines()
        begin = f"virt-hooks: lxc web {' '.join(PHASES[phase])}: "
        self.assertTrue(last.startswith(begin), result.stderr)
        if last.endswith(": exit status 1") and "first line" not in last:  # it did start
            self.assertIn(last[len(begin) :].partition(":")[0], said[-1])

    def test_a_release_that_gets_an_error_anywhere_says_so_and_loses_nothing(self):
        self.each(self.refuse, [("release", *process) for process in processes_of("release")])
        self.say_what_was_tried("errors of system calls")

    def test_a_prepare_that_gets_an_error_anywhere_says_so_and_the_next_finishes_it(self):
        self.each(self.refuse, [("prepare", *process) for process in processes_of("prepare")])
        self.say_what_was_tried("errors of system calls")


class Dispatcher(FaultCase):
    """The same for the dispatcher itself."""

    kill, refuse, assert_told = Killed.kill, Refused.refuse, Refused.assert_told

    def test_a_dispatcher_that_is_killed_anywhere_loses_nothing_and_the_next_run_finishes_it(self):
        self.each(self.kill, [(phase, "lxc", None) for phase in PHASES])
        self.say_what_was_tried("dispatchers killed at a system call")

    def test_a_dispatcher_that_gets_an_error_anywhere_says_so_and_loses_nothing(self):
        self.each(self.refuse, [(phase, "lxc", None) for phase in PHASES])
        self.say_what_was_tried("errors of the dispatcher's system calls")


class Limited(FaultCase):
    """A script that gets too little of something, down to where Python itself does not start."""

    def limit(self, phase, name, limit):
        life = self.new_life()
        if phase == "release":
            life.live()
        if name == "30-preload":  # in the moment between mkdir and chmod
            life.allowed = (0o40755, 0, 0), (0o40755, 1008, 1009)
        path = life.phase_directory(phase) / name
        real = path.resolve()
        path.unlink()
        write_program(path, f'ulimit {limit}\nexec {real} "$@"')
        result = life.call(phase)
        wait_for_processes(life.directory)
        try:
            self.assert_nothing_lost(phase, life)
            if result.returncode == 0:
                self.assert_done(phase, life)
            elif not limit.startswith("-v"):  # of memory, Python itself may have too little
                self.assertNotIn("Traceback", result.stderr)
            if result.returncode:
                last = result.stderr.splitlines()[-1]
                begin = f"virt-hooks: lxc web {' '.join(PHASES[phase])}: {name}: "
                self.assertTrue(last.startswith(begin), result.stderr)
            self.assert_second_run(phase, life)
        except BaseException as error:
            raise AssertionError(f"{phase}: {name}: {limit}: {result}") from error
        with self.lock:
            self.tried[limit.split()[0]] += 1

    def test_with_few_descriptors_little_memory_or_short_files_nothing_is_lost(self):
        limits = [
            *(f"-n {number}" for number in range(3, 24)),
            *(f"-v {megabytes << 10}" for megabytes in (*range(6, 40, 2), 60, 100)),
            *(f"-f {blocks}" for blocks in (0, 1, 8, 100)),
        ]
        scripts = [(phase, name) for phase, names in SCRIPTS.items() for name in names]
        self.each(self.limit, [(*script, limit) for script in scripts for limit in limits])
        self.say_what_was_tried("runs with a limit")


class Machine(FaultCase):
    """What disks, clocks, guests and administrators really do."""

    def lived(self):
        life = self.new_life()
        life.live()
        return life

    def time_of(self, phase, prepare=lambda life: None):
        """How long a run of a phase takes that nothing disturbs, in seconds."""
        life = self.lived() if phase == "release" else self.new_life()
        prepare(life)
        began = time.monotonic()
        self.assert_succeeds(life.call(phase))
        took = time.monotonic() - began
        life.remove()
        return took

    def assert_archive_fails(self, life, *parts):
        result = life.call("release")
        wait_for_processes(life.directory)
        self.assertEqual(result.returncode, 1, result.stderr)
        *_said, reason, last = result.stderr.splitlines()
        for line in (reason, last):
            self.assertIn("10-archive", line)
        for part in parts:
            self.assertIn(part, result.stderr)
        self.assertNotIn("Traceback", result.stderr)
        self.assert_nothing_lost("release", life)
        for path in (life.log, life.tmp):
            self.assertEqual(details(path), life.data[path])

    def mount_image(self, image, point, *options):
        run(["mount", "-o", ",".join(("loop", *options)), image, point], check=True)

    def make_btrfs(self, life):
        image = life.directory / "image"
        with open(image, "wb") as file:
            file.truncate(120 << 20)
        run(["mkfs.btrfs", "-q", image], check=True)
        return image

    def test_a_disk_that_fails_when_it_is_flushed_keeps_the_archive_from_being_one(self):
        life = self.lived()
        backing = life.directory / "backing"
        backing.mkdir()
        run(["mount", "-t", "tmpfs", "-o", "size=3M", "tests", backing], check=True)
        with open(backing / "image", "wb") as file:
            file.truncate(64 << 20)  # which the disk only seems to have
        run(["mkfs.ext4", "-q", "-O", "^has_journal", backing / "image"], check=True)
        self.mount_image(backing / "image", life.store)
        (life.log / "big").write_bytes(os.urandom(8 << 20))
        life.note_data()
        self.assert_archive_fails(life, "sync")  # an error of input and output, or no space
        run(["umount", life.store], check=True)
        run(["umount", backing], check=True)
        self.assert_second_run("release", life)

    def test_a_disk_that_cannot_be_read_keeps_what_is_on_it(self):
        life = self.lived()
        image = self.make_btrfs(life)
        shutil.rmtree(life.log)
        life.log.mkdir()
        self.mount_image(image, life.log)
        fill(life.log)
        big = os.urandom(8 << 20)
        (life.log / "big").write_bytes(big)
        life.note_data()
        run(["umount", life.log], check=True)
        at = image.read_bytes().index(big[5 << 20 :][:4096])
        overwrite(image, at, b"rot" + bytes(5))
        self.mount_image(image, life.log)
        result = life.call("release")
        self.assertEqual(result.returncode, 1, result.stderr)
        self.assertIn("Input/output error", result.stderr)
        self.assertIn("10-archive", result.stderr.splitlines()[-1])
        self.assertEqual(life.archives(life.log), {})
        run(["umount", life.log], check=True)
        overwrite(image, at, big[5 << 20 :][:8])
        self.mount_image(image, life.log)
        self.assert_nothing_lost("release", life)
        # 30-post-rm-rf removes no file system that is mounted
        elements = life.elements
        life.elements = elements.partition("<post-rm-rf>")[0]
        self.assert_succeeds(life.call("release"))
        self.assertIn(life.whole[life.log], life.archives(life.log).values())

    def test_a_quota_that_is_used_up(self):
        life = self.lived()
        self.mount_image(self.make_btrfs(life), life.store)
        (life.log / "big").write_bytes(os.urandom(4 << 20))
        life.note_data()
        for command in ("quota enable", "qgroup limit 1M"):
            run(["btrfs", *command.split(), life.store], check=True)
        self.assert_archive_fails(life, "Disk quota exceeded")
        run(["btrfs", "quota", "disable", life.store], check=True)
        result = life.call("release")
        self.assert_succeeds(result)
        self.assertEqual(life.what_is_lost(), [])
        self.assertFalse(life.log.exists())

    def test_a_clock_that_jumps_overwrites_nothing(self):
        [library] = Path("/usr/lib").glob("*/faketime/libfaketime.so.1")
        jumps = ("-3d", "+400d", "-3d", "-20y", "+0", "-3d", "-56y")
        life = self.new_life()
        life.elements = life.elements.replace("<format>day<", "<format>%Y-%m-%d<")
        life.environment |= {"LD_PRELOAD": str(library), "FAKETIME_DONT_RESET": "1", **JUST_NOW}
        archives = {}
        for jump in jumps:
            life.environment["FAKETIME"] = jump
            life.live()
            (life.log / "jump").write_text(jump)
            life.note_data()
            self.assert_succeeds(life.call("release"))
            for archive, contents in archives.items():
                self.assertEqual(archived(archive), contents)
            found = {path: archived(path) for path in life.store.glob("*/*")}
            new = [found[path] for path in found.keys() - archives.keys()]
            self.assertEqual(len(new), 2)
            for path in (life.log, life.tmp):
                self.assertIn(life.whole[path], new)
            archives = found
            life.tmp.rmdir()
        self.assertEqual(len({path.parent for path in archives}), 5)
        self.assertEqual(life.left(), [])

    def test_a_clock_that_jumps_while_it_archives(self):
        [library] = Path("/usr/lib").glob("*/faketime/libfaketime.so.1")
        stamp = self.directory / "stamp"
        stop = threading.Event()

        def jump():
            while not stop.is_set():
                for when in ("-3d", "+3d", "-30y", "+0"):
                    stamp.with_name("new").write_text(when)
                    stamp.with_name("new").rename(stamp)

        stamp.write_text("+0")
        thread = threading.Thread(target=jump)
        thread.start()
        try:
            for _ in range(20):
                life = self.lived()
                life.elements = life.elements.replace("<format>day<", "<format>%Y<")
                given = {
                    "FAKETIME_TIMESTAMP_FILE": str(stamp),
                    "FAKETIME_NO_CACHE": "1",
                    **JUST_NOW,
                }
                life.environment |= {"LD_PRELOAD": str(library), **given}
                self.assert_succeeds(life.call("release"))
                [year] = life.store.iterdir()
                year.rename(life.store / "day")
                self.assert_released(life)
                life.remove()
        finally:
            stop.set()
            thread.join()

    def test_a_ramdisk_that_a_process_sits_in_is_released_and_the_process_keeps_it(self):
        life = self.lived()
        with subprocess.Popen(["sleep", "600"], cwd=life.tmp) as process:
            result = life.call("release")
            kept = Path(f"/proc/{process.pid}/cwd/short").read_text()
            process.kill()
        self.assert_succeeds(result)
        self.assert_released(life)
        self.assertEqual(kept, "short")
        life.remove()

    def test_a_source_that_vanishes_meanwhile_is_an_error_in_one_line_or_archived_before(self):
        def enlarge(life):
            for name in range(1000):
                (life.log / f"inner/{name}").write_text("text")
            life.note_data()

        failed, took = 0, self.time_of("release", enlarge)
        for number in range(60):
            life = self.lived()
            enlarge(life)
            delay = took * number / 60
            gone = life.directory / "gone"
            if number % 2:
                command = ["rm", "-rf", life.log]
            else:
                command = ["mv", life.log, gone]
            command = ["sh", "-c", 'sleep "$0"; exec "$@"', str(delay), *command]
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL)  # it may come too late
            result = life.call("release")
            process.wait()
            self.assertIn(result.returncode, (0, 1))
            self.assertNotIn("Traceback", result.stderr)
            if result.returncode:
                failed += 1
                last = result.stderr.splitlines()[-1]
                self.assertRegex(last, "^virt-hooks: lxc web release end shutdown: [1-3]0-")
            elif gone.exists() and details(gone) != life.data[life.log]:  # rm was at it already
                self.assertIn(life.whole[life.log], life.archives(life.log).values())
            self.assertEqual([p for p in life.left() if "/." in str(p)], [])
            wait_for_processes(life.directory)
            life.remove()
        self.assertTrue(failed)  # or it never happened in the middle

    def test_a_dispatcher_that_is_killed_leaves_its_script_to_its_work(self):
        """The script that runs may go on; those after it do not start; the next run finishes."""
        chance = random.Random(2)
        within = Counter()
        for phase in ("prepare", "release"):
            took = self.time_of(phase)
            for _ in range(60):
                life = self.new_life()
                if phase == "release":
                    life.live()
                command = [life.dispatcher, "web", *PHASES[phase]]
                process = subprocess.Popen(
                    command, env=life.environment, text=True, stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                )  # fmt: skip
                process.stdin.write(guest_xml(life.elements))
                process.stdin.close()
                time.sleep(chance.random() * took)
                process.kill()
                within[phase] += process.wait() == -9
                wait_for_processes(life.directory)
                self.assert_nothing_lost(phase, life)
                life.allowed = (0o40755, 0, 0), (0o40755, 1008, 1009)
                self.assert_second_run(phase, life)
        self.assertTrue(within["prepare"] and within["release"], within)
        print(f"\nthe dispatcher killed at a random moment: {dict(within)}", file=sys.stderr)


class Network(RoutingTable):
    """The same for 10-routing-table and 20-network-policy: what they change is the network."""

    def setUp(self):
        super().setUp()
        self.tried = Counter()

    def run_as(self, phase, name, program=None, calls=(), inject=""):
        """Run a script, itself or its program under strace; return its result and the trace."""
        trace, variables = self.directory / "trace", environment(self.directory)
        trace.unlink(missing_ok=True)
        command = strace(trace, calls, inject) if calls else []
        if program:
            programs = program_under_strace(self.directory / "bin", program, command)
            variables["PATH"] = f"{programs}:{variables['PATH']}"
            command = []
        command = [*command, script(name), "web", *NETWORK_PHASES[phase]]
        result = run(command, input=guest_xml(NETWORK[name]), env=variables, timeout=SECONDS)
        wait_for_processes(self.directory)
        return result, trace.read_text(errors="replace") if trace.exists() else ""

    def fault(self, phase, name, program, call, what, number):
        """Make a fault; return whether it happened. After it, a stop leaves nothing."""
        if phase != "start":
            self.assert_succeeds(self.run_as("start", name)[0])
        inject = f"{call}:{what}:when={number}"
        result, trace = self.run_as(phase, name, program, [call], inject)
        self.assertNotIn("Traceback", result.stderr)
        if what.startswith("error") and result.returncode:
            self.assertEqual(result.returncode, 1)
            self.assertIn(name, result.stderr.splitlines()[-1])
        if phase == "start again":
            shown = run(["ip", "rule"]).stdout + run(["nft", "list", "ruleset"]).stdout
            self.assertRegex(shown, "from 10.77.0.5 lookup uplink2|chain c")
        self.assert_succeeds(self.run_as("stopped", name)[0])
        self.assertEqual(self.everything(), self.before, (phase, name, program, inject))
        happened = "killed by SIGKILL" in trace or "(INJECTED)" in trace
        self.tried[what.partition("=")[0]] += happened
        return happened

    def test_whatever_fails_the_stop_leaves_the_network_as_it_was(self):
        self.before = self.everything()
        for phase, (name, programs) in itertools.product(NETWORK_PHASES, NETWORK_PROGRAMS.items()):
            for program in (None, *programs):
                if phase != "start":
                    self.assert_succeeds(self.run_as("start", name)[0])
                traced = [f"?{call}" for call in OF_NETWORK]
                result, trace = self.run_as(phase, name, program, traced)
                self.assert_succeeds(result)
                self.run_as("stopped", name)
                for call in sorted(set(re.findall(r"^(\w+)\(", trace, re.MULTILINE))):
                    for what in ("signal=KILL", "error=ENOMEM"):
                        if (program, call) == ("ip", "write") and what != "signal=KILL":
                            continue  # ip(8) does not say that it could not write
                        with self.subTest((phase, name, program, call, what)):
                            numbers = itertools.count(1)
                            while self.fault(phase, name, program, call, what, next(numbers)):
                                pass
        print(f"\nfaults of network scripts: {dict(self.tried)}", file=sys.stderr)


if __name__ == "__main__":
    unittest.main()
