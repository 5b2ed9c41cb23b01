"""The dispatcher, in a hooks directory of the test's own, runs real scripts."""

import hashlib
import os
import pty
import random
import re
import resource
import shutil
import signal
import subprocess
import time
import unittest
from pathlib import Path

from harness import CAPTURES, PHASES, Syslog, TestCase, install_dispatcher, run, snapshot

PREPARE = ("prepare", "begin", "-")
CRASHED = ("release", "end", "crashed")
DIRECTORY = "lxc_prepare_begin_-.d"
LIBVIRT = {"PATH": os.environ["PATH"], "HOME": "/", "LC_ALL": "C"}  # a hook's whole environment
OTHER = 1000  # some user who is not root
AS_OTHER = {"user": OTHER, "group": OTHER, "extra_groups": []}
XML = b"<domain type='lxc'><name>web</name></domain>\n"
SAY_PATH = "echo PATH >>RECORD"
PYTHON = "#!/usr/bin/python3 -IS"

REASONS = "unknown shutdown destroyed crashed migrated saved failed daemon".split()
REASONS.append("from snapshot")

ODD_NAMES = [
    *("vm one", "  two  ", "-dash", "--help", "-h", "-", "--", "-c", "-IS", "--guest=x", "é"),
    *("x;y", "$(reboot)", "`reboot`", "$HOME", "'", '"', "\\", "*", "[a]", "{}", "%s%n", "~"),
    *("...", ".hidden", "a.d", "10-name", "migrate", "restore", "timeout", "x" * 255, "日本"),
]


# Answers the kernel's first message, takes the others and stays silent: a process that asks for a
# file waits, SIGKILL or not (fuse(4); struct fuse_init_out)
SILENT_FILE_SYSTEM = """
import ctypes, os, struct, sys
device = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
libc = ctypes.CDLL(None, use_errno=True)
if libc.mount(b"silent", os.fsencode(sys.argv[1]), b"fuse", 0, options):
    sys.exit(os.strerror(ctypes.get_errno()))
_length, _opcode, unique = struct.unpack_from("IIQ", os.read(device, 1 << 20))
answer = struct.pack("IIIIHHII", 7, 31, 0, 0, 0, 0, 1 << 16, 1) + bytes(36)
os.write(device, struct.pack("IiQ", 16 + len(answer), 0, unique) + answer)
print("mounted", flush=True)
while True:
    os.read(device, 1 << 20)
"""
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), "")


def wait_for(condition):
    until = time.monotonic() + 50
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError
        time.sleep(0.01)


class DispatcherTestCase(TestCase):
    """A test with self.hooks, a hooks directory with the dispatcher in it."""

    def setUp(self):
        super().setUp()
        self.hooks = self.directory / "hooks"
        self.hooks.mkdir()
        self.record = self.directory / "record"
        install_dispatcher(self.hooks / "lxc")

    def add(self, path, commands=SAY_PATH, mode=0o755, shebang="#!/bin/sh"):
        """Put a script into the hooks directory; without commands it adds its path to the record.

        path: from the hooks directory on. In commands, PATH is that and RECORD the record's path.
        """
        quoted = "'" + path.replace("'", "'\\''") + "'"
        commands = commands.replace("echo PATH", f"printf '%s\\n' {quoted}")
        commands = commands.replace("RECORD", str(self.record))
        whole = self.hooks / path
        whole.parent.mkdir(parents=True, exist_ok=True)
        whole.write_bytes(os.fsencode(f"{shebang}\n{commands}\n"))
        whole.chmod(mode)
        return whole

    def link(self, path, target):
        """Put a link into the hooks directory."""
        whole = self.hooks / path
        whole.parent.mkdir(parents=True, exist_ok=True)
        whole.symlink_to(target)
        return whole

    def start(self, *arguments, name="lxc", **options):
        """Start the dispatcher; by default for the phase "prepare begin -" of the guest web."""
        pipe = subprocess.PIPE
        options = {"env": LIBVIRT, "stdin": pipe, "stdout": pipe, "stderr": pipe, **options}
        command = [self.hooks / name, *(arguments or ("web", *PREPARE))]
        process = subprocess.Popen(command, **options)
        self.addCleanup(end, process)
        return process

    def finish(self, process, xml=None):
        """Wait for the dispatcher's end and the end of its output, and return what it did."""
        out, err = process.communicate(xml, timeout=60)
        out, err = (None if stream is None else os.fsdecode(stream) for stream in (out, err))
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def dispatch(self, *arguments, xml=XML, **options):
        """Run the dispatcher; by default for the phase "prepare begin -" of the guest web."""
        return self.finish(self.start(*arguments, **options), None if "stdin" in options else xml)

    def recorded(self):
        """The lines that the scripts have recorded since this was last asked for."""
        try:
            return os.fsdecode(self.record.read_bytes()).splitlines()
        except FileNotFoundError:
            return []
        finally:
            self.record.unlink(missing_ok=True)

    def assert_silent_success(self, result):
        self.assertEqual((result.returncode, result.stdout, result.stderr), (0, "", ""))

    def assert_runs(self, *expected, arguments=(), **options):
        """A run succeeds in silence, and these scripts, or what they record, are run in it."""
        self.assert_silent_success(self.dispatch(*arguments, **options))
        self.assertEqual(self.recorded(), list(expected))

    def assert_refused(self, result, *parts):
        """A run has failed before any script ran, with one line that has these parts in it."""
        self.assertEqual((result.stdout, self.recorded()), ("", []), result.stderr)
        self.assertNotEqual(result.returncode, 0)
        self.assertRegex(result.stderr, r"\Avirt-hooks: lxc web [^\n]+\n\Z")
        for part in parts:
            self.assertIn(str(part), result.stderr)

    def process_recorded(self):
        """The id of the process that a script has recorded, which is killed after the test."""
        (pid,) = map(int, self.recorded())
        self.addCleanup(kill, pid)
        return pid


def end(process):
    if process.poll() is None:
        process.kill()
        process.wait(60)
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream:
            stream.close()


def kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def is_alive(pid):
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except FileNotFoundError:
        return False


class Driver(DispatcherTestCase):
    """Point 1."""

    def test_the_driver_is_the_name_it_is_called_by(self):
        install_dispatcher(self.hooks / "network")
        self.link("qemu", "lxc")
        for driver in ("lxc", "network", "qemu"):
            self.add(f"{driver}_prepare_begin_-.d/10-a")
        for driver in ("lxc", "network", "qemu"):
            with self.subTest(driver=driver):
                self.assert_runs(f"{driver}_prepare_begin_-.d/10-a", name=driver)

    def test_the_hooks_directory_is_where_the_link_lies_and_not_where_it_leads(self):
        self.add("qemu_prepare_begin_-.d/10-beside-the-program")
        self.add("../elsewhere/qemu_prepare_begin_-.d/10-beside-the-link")
        self.link("../elsewhere/qemu", self.hooks / "lxc")
        expected = "../elsewhere/qemu_prepare_begin_-.d/10-beside-the-link"
        self.assert_runs(expected, name="../elsewhere/qemu")

    def test_a_relative_call_finds_the_same_scripts(self):
        self.add(f"{DIRECTORY}/10-a")
        self.add(f"{DIRECTORY}/web/20-b")
        for command, cwd in (
            (["./lxc"], self.hooks),
            (["hooks/lxc"], self.directory),
            (["/usr/bin/python3", "-IS", "lxc"], self.hooks),
        ):
            with self.subTest(command=command):
                command = [*command, "web", *PREPARE]
                subprocess.run(command, input=XML, cwd=cwd, timeout=60, check=True)
                self.assertEqual(self.recorded(), [f"{DIRECTORY}/10-a", f"{DIRECTORY}/web/20-b"])

    def test_a_run_leaves_nothing_behind_but_the_file_of_its_lock(self):
        self.add(f"{DIRECTORY}/10-a")
        self.add(f"{DIRECTORY}/20-b", "pass", shebang=PYTHON)
        for place in ("/run", "/tmp"):  # in which nothing of an earlier run lies
            subprocess.run(["mount", "-t", "tmpfs", "tests", place], check=True)
            self.addCleanup(subprocess.run, ["umount", place], check=True)
        places = (self.hooks, Path("/run"), Path("/tmp"))
        before = list(map(snapshot, places))
        self.assert_runs(f"{DIRECTORY}/10-a")
        lock = Path("/run/virt-hooks/lock")
        self.assertEqual(lock.read_bytes(), b"")
        lock.unlink()
        lock.parent.rmdir()
        self.assertEqual(list(map(snapshot, places)), before)


class PhaseDirectories(DispatcherTestCase):
    """Point 2."""

    def test_only_the_phase_that_is_called_runs(self):
        phases = {
            ("prepare", "begin", "-"): "lxc_prepare_begin_-.d/10-a",
            ("stopped", "end", "-"): "lxc_stopped_end_-.d/10-a",
            ("port-created", "begin", "-"): "lxc_port-created_begin_-.d/10-a",
            ("start", "-", "start"): "lxc_start_-_start.d/10-a",
            ("reload", "begin", "SIGHUP"): "lxc_reload_begin_SIGHUP.d/10-a",
            ("a b", "c  d", "e f"): "lxc_a_b_c__d_e_f.d/10-a",
            ("prepare",): "lxc_prepare.d/10-a",
        }
        # only the last argument has a dash in its place
        for path in (*phases.values(), "lxc_a_b_-_e_f.d/10-a", "lxc_-_begin_SIGHUP.d/10-a"):
            self.add(path)
        for phase, path in phases.items():
            with self.subTest(phase=phase):
                self.assert_runs(path, arguments=("web", *phase))

    def test_a_directory_serves_one_shutoff_reason_and_the_one_with_a_dash_serves_all(self):
        general = "lxc_release_end_-.d/10-a"
        own = {r: f"lxc_release_end_{r.replace(' ', '_')}.d/20-b" for r in REASONS}
        for path in (general, *own.values()):
            self.add(path)
        for reason in ("-", *REASONS):
            with self.subTest(reason=reason):
                expected = [general, own[reason]] if reason in own else [general]
                self.assert_runs(*expected, arguments=("web", "release", "end", reason))

    def test_a_subdirectory_serves_its_guest_alone(self):
        self.add("lxc_release_end_-.d/web/10-a")
        self.add("lxc_release_end_crashed.d/web/10-b")
        both = ["lxc_release_end_-.d/web/10-a", "lxc_release_end_crashed.d/web/10-b"]
        for guest, expected in (("web", both), ("web2", []), ("we", []), ("WEB", [])):
            with self.subTest(guest=guest):
                self.assert_runs(*expected, arguments=(guest, *CRASHED))

    def test_a_guest_called_dot_or_dot_dot_has_no_subdirectory(self):
        self.add(f"{DIRECTORY}/10-a")
        self.add("20-in-the-hooks-directory")
        for guest in (".", "..", ""):
            with self.subTest(guest=guest):
                self.assert_runs(f"{DIRECTORY}/10-a", arguments=(guest, *PREPARE))

    def test_a_guest_may_have_any_name_and_none_is_an_option(self):
        tell = """printf '%s\\0' "${0##*/}" "$@" >>RECORD"""
        self.add(f"{DIRECTORY}/10-all", tell)
        for guest in ODD_NAMES:
            with self.subTest(guest=guest):
                self.add(f"{DIRECTORY}/{guest}/20-own", tell)
                given = f"\0{guest}\0prepare\0begin\0-\0"
                self.assert_runs(f"10-all{given}20-own{given}", arguments=(guest, *PREPARE))

    def test_a_guest_called_timeout_may_be_under_a_time_limit(self):
        self.write(f"hooks/{DIRECTORY}/timeout", "50\n")
        self.add(f"{DIRECTORY}/10-a")
        self.assert_runs(f"{DIRECTORY}/10-a", arguments=("timeout", *PREPARE))


class Names(DispatcherTestCase):
    """Point 3."""

    RUN = [
        *("0-a", "00-a", "1-", "1_", "1a", "10-a", "10-A", "10-a-b", "10-a_b", "10A", "10_a", "2x"),
        *("10-a.sh", "10-a.bash", "10-a.py", "10-a.pl", "10-a.rb", "9a9", "100-a", "10-Z", "10-_"),
        *("10-bak", "10-a-dpkg-new", "99-README", "2025-11-25-mine", "10-mkdirs"),
    ]
    LEFT_OUT = [
        # other people's, and what editors and package managers leave behind
        *("README", "a", "a10", "-10-a", "_10", ".10-a", " 10-a", "timeouts", "4913", "10", "0"),
        *("10-a~", ".10-a.swp", "#10-a#", "10-a.bak", "10-a.orig", "10-a.rej", "10-a.save"),
        *("10-a (copy)", "10-a copy", "10-a.old", "10-a.disabled", "10-a.sh.bak", "10-a.sh~"),
        *("10-a.dpkg-new", "10-a.dpkg-old", "10-a.ucf-dist", "10-a.rpmnew", "10-a.rpmsave"),
        # at the edges of the rule
        *("10.sh", "1.py", "10-a.", "10-a.SH", "10-a.sh.py", "10-a.py.sh", "10-a.txt", "10-a.b"),
        *("10-a.pyc", "10-a.xsh", "10-a\n", "10-a.sh\n", "10-a,v", "10+a", "10-a:1", "10-a;x"),
        *("10-é", "é10", "٣-a", "10-a٣", "²-a", "10-\udcff", "10-ａ"),
    ]  # fmt: skip

    def test_what_keeps_the_rule_runs_in_byte_order_whatever_else_lies_there(self):
        for name in self.RUN:
            self.add(f"{DIRECTORY}/{name}")
            self.add(f"{DIRECTORY}/web/{name}")
        for name in self.LEFT_OUT:  # nor is its mode anybody's business
            self.add(f"{DIRECTORY}/{name}", mode=0o777)
            self.add(f"{DIRECTORY}/web/{name}", mode=0o777)
        expected = [f"{DIRECTORY}/{own}{name}" for name in sorted(self.RUN) for own in ("", "web/")]
        for environment in (LIBVIRT, {"LC_ALL": "C.UTF-8"}, {"LC_ALL": "tr_TR.UTF-8"}, {}):
            with self.subTest(environment=environment):
                self.assert_runs(*expected, env=environment)

    def test_of_the_same_name_the_more_general_directory_is_first(self):
        places = ("lxc_release_end_-.d", "lxc_release_end_crashed.d")
        places = [*places, *(f"{place}/web" for place in places)]
        for place in reversed(places):
            self.add(f"{place}/10-a")
            self.add(f"{place}/20-b")
        expected = [f"{place}/{name}" for name in ("10-a", "20-b") for place in places]
        self.assert_runs(*expected, arguments=("web", *CRASHED))

    def test_only_executable_regular_files_are_scripts(self):
        directory = self.hooks / DIRECTORY
        self.add(f"{DIRECTORY}/10-not-executable", mode=0o644)
        self.add(f"{DIRECTORY}/web/10-not-executable", mode=0o666)
        self.add(f"{DIRECTORY}/20-directory/10-a")
        os.mkfifo(directory / "30-fifo")
        (directory / "30-fifo").chmod(0o777)
        self.link(f"{DIRECTORY}/40-link-to-directory", "20-directory")
        self.link(f"{DIRECTORY}/50-link-to-not-executable", "10-not-executable")
        self.add(f"{DIRECTORY}/60-a", mode=0o700)
        self.assert_runs(f"{DIRECTORY}/60-a")

    def test_links_are_followed_and_the_links_name_counts(self):
        self.add("lib/shared")
        self.add("lib/10-a.bak")
        self.link(f"{DIRECTORY}/10-relative", "../lib/shared")
        self.link(f"{DIRECTORY}/20-absolute", self.hooks / "lib/shared")
        self.link(f"{DIRECTORY}/30-chain", "10-relative")
        self.link(f"{DIRECTORY}/40-a", "../lib/10-a.bak")
        self.link(f"{DIRECTORY}/50-a.bak", "../lib/shared")
        self.assert_runs("lib/shared", "lib/shared", "lib/shared", "lib/10-a.bak")


class Elements(DispatcherTestCase):
    """Point 4."""

    def test_a_script_with_an_element_runs_only_where_the_xml_has_its_name(self):
        self.add(f"{DIRECTORY}/10-mkdirs", f"# element: mkdirs\n{SAY_PATH}")
        self.add("lib/own", f"# element: post-rm-rf\n{SAY_PATH}", shebang="#!/bin/sh -eu")
        self.link(f"{DIRECTORY}/web/20-own", "../../lib/own")
        self.add(f"{DIRECTORY}/30-always")
        mkdirs, own, always = f"{DIRECTORY}/10-mkdirs", "lib/own", f"{DIRECTORY}/30-always"
        for xml, expected in (
            (b"", [always]),
            (XML, [always]),
            (b"<metadata><mkdirs/></metadata>", [mkdirs, always]),
            (b"<h:mkdirs>\xff\0</h:mkdirs><h:post-rm-rf>", [mkdirs, own, always]),
            (b"<mkdir/><post-rm/><MKDIRS/><post_rm_rf/>", [always]),
            (b"x" * ((40 << 20) - 5) + b"<post-rm-rf/>\xff", [own, always]),
        ):
            with self.subTest(xml=xml[-60:]):
                self.assert_runs(*expected, xml=xml)

    def test_only_the_second_line_names_an_element(self):
        first = "# element: mkdirs"
        self.add(f"{DIRECTORY}/10-third", f"\n{first}\n{SAY_PATH}")
        self.add(f"{DIRECTORY}/20-not-alone", f"true {first}\n{SAY_PATH}")
        self.assert_runs(f"{DIRECTORY}/10-third", f"{DIRECTORY}/20-not-alone")


class Processes(DispatcherTestCase):
    """Point 5."""

    def test_each_script_is_a_process_of_its_own_in_a_group_of_its_own(self):
        shell = "cut -d' ' -f1,4,5 /proc/$$/stat >>RECORD"
        python = "print(*map(open('/proc/self/stat').read().split().__getitem__, (0, 3, 4)))"
        self.add(f"{DIRECTORY}/10-a", shell)
        self.add(f"{DIRECTORY}/20-b", python, shebang=PYTHON)
        process = self.start()
        result = self.finish(process, XML)
        lines = [*self.recorded(), result.stdout]
        self.assertEqual((result.returncode, len(lines)), (0, 2), result.stderr)
        (one, parent, group), (two, other_parent, other_group) = (
            map(int, line.split()) for line in lines
        )
        self.assertEqual((group, other_group), (one, two))
        self.assertEqual(len({one, two, process.pid}), 3)
        self.assertEqual((parent, other_parent), (process.pid, process.pid))

    def test_ps_and_audit_see_the_script_and_its_interpreter(self):
        see = "import sys; sys.stdout.write(open('/proc/self/%s').read())"
        for shebang, commands in (("#!/bin/sh", "cat /proc/$$/%s"), (PYTHON, see)):
            with self.subTest(shebang):
                path = self.add(f"{DIRECTORY}/10-a", commands % "comm", shebang=shebang)
                self.assertEqual(self.dispatch().stdout, "10-a\n")
                self.add(f"{DIRECTORY}/10-a", commands % "cmdline", shebang=shebang)
                expected = [*shebang[2:].split(), str(path), "web", *PREPARE, ""]
                self.assertEqual(self.dispatch().stdout.split("\0"), expected)

    def test_a_script_may_be_a_program(self):
        (self.hooks / DIRECTORY).mkdir()
        shutil.copy("/bin/busybox", self.hooks / DIRECTORY / "10-a")
        result = self.dispatch("echo", *PREPARE)
        # as "10-a", which is no applet, busybox fails; that it says so shows that it ran
        self.assertIn("10-a: applet not found", result.stderr)
        self.assertEqual(result.returncode, 127)

    def test_every_script_gets_the_arguments_byte_for_byte(self):
        arguments = (b"a b", b"rel*$HOME", b"", b"'\"\\", b"\xff\xc3\xa9", b"from snapshot")
        for name in ("10-a", "20-b"):
            path = os.fsdecode(b"lxc_rel*$HOME__'\"\\_\xff\xc3\xa9_-.d")
            self.add(f"{path}/{name}", "printf '%s\\0' \"$@\" >>RECORD")
        self.assert_silent_success(self.dispatch(*arguments))
        self.assertEqual(self.record.read_bytes(), (b"\0".join(arguments) + b"\0") * 2)

    def test_the_environment_is_the_same_byte_for_byte(self):
        self.add(f"{DIRECTORY}/10-a", "/bin/cat /proc/$$/environ >RECORD")
        odd = {b"Z": b"last", b"A": b"", b"EQ": b"a=b=c", b"NL": b"a\nb", b"BYTES": b"\xff\xfe"}
        for name, environment in (
            ("env -i", {}),
            ("libvirt's", LIBVIRT),
            ("no locale", {"PATH": LIBVIRT["PATH"]}),  # Python would add LC_CTYPE to it
            ("a locale", {"LANG": "C", "LC_CTYPE": "POSIX"}),
            ("UTF-8", {"LC_ALL": "C.UTF-8"}),
            ("for Python", {"PYTHONPATH": "/nowhere", "PYTHONHOME": "/nowhere"}),
            ("odd", odd),
        ):
            with self.subTest(environment=name):
                self.assert_silent_success(self.dispatch(env=environment))
                items = ((os.fsencode(k), os.fsencode(v)) for k, v in environment.items())
                given = b"".join(key + b"=" + value + b"\0" for key, value in items)
                self.assertEqual(self.record.read_bytes(), given)

    def test_each_script_reads_the_whole_xml_however_much_an_earlier_one_read(self):
        xml = b"<domain>\0\xff" + random.Random(1).randbytes(40 << 20) + b"</domain>"
        for name, commands in (
            ("10-nothing", "echo nothing >>RECORD"),
            ("20-closes", "exec <&-; echo closed >>RECORD"),
            ("30-a-bit", "head -c 8 >>RECORD; echo >>RECORD"),
            ("40-all", "sha256sum >>RECORD"),
            ("50-a-bit", "head -c 8 >>RECORD; echo >>RECORD"),
            ("60-all-through-a-pipe", "cat | sha256sum >>RECORD"),
        ):
            self.add(f"{DIRECTORY}/{name}", commands)
        digest = f"{hashlib.sha256(xml).hexdigest()}  -"
        self.assert_runs("nothing", "closed", "<domain>", digest, "<domain>", digest, xml=xml)

    def test_sigpipe_is_at_its_default(self):
        self.add(f"{DIRECTORY}/10-a", "exec grep -E '^Sig(Ign|Blk):' /proc/self/status >RECORD")
        self.assert_silent_success(self.dispatch())
        masks = dict(line.split() for line in self.recorded())
        self.assertEqual(int(masks["SigBlk:"], 16), 0)
        self.assertFalse(int(masks["SigIgn:"], 16) & 1 << (signal.SIGPIPE - 1))


class FailStop(DispatcherTestCase):
    """Point 6."""

    def assert_ends_the_run(self, commands, status, reason=""):
        for path in ("10-a", "web/15-own", "web/20-b", "30-c"):
            self.add(f"{DIRECTORY}/{path}")
        self.add(f"{DIRECTORY}/20-b", commands)
        result = self.dispatch()
        self.assertEqual((result.returncode, result.stdout), (status, ""))
        line = rf"\Avirt-hooks: lxc web prepare begin -: 20-b: [^\n]*{reason}\n\Z"
        self.assertRegex(result.stderr, line)
        self.assertEqual(self.recorded(), [f"{DIRECTORY}/10-a", f"{DIRECTORY}/web/15-own"])

    def test_the_first_script_that_fails_ends_the_run_with_its_exit_status(self):
        for status in (1, 2, 77, 126, 127, 128, 143, 255):
            with self.subTest(status=status):
                self.assert_ends_the_run(f"exit {status}", status, f"exit status {status}")

    def test_a_script_killed_by_signal_n_ends_the_run_with_128_and_n(self):
        for number in (1, 2, 9, 10, 13, 15, 34, 64):
            with self.subTest(signal=number):
                commands = f"ulimit -c 0; kill -{number} $$; sleep 50"
                self.assert_ends_the_run(commands, 128 + number)

    def test_an_xml_that_cannot_be_read_is_a_failure(self):
        self.add(f"{DIRECTORY}/10-a")
        with open("/proc/self/mem", "rb") as unreadable:  # at 0, where no process has memory
            self.assert_refused(self.dispatch(stdin=unreadable))


class Unclear(DispatcherTestCase):
    """Point 6: where it is unclear which scripts there are, none is run."""

    GENERAL, OWN = "lxc_release_end_-.d", "lxc_release_end_crashed.d"

    def setUp(self):
        super().setUp()
        self.deletion = f"{self.GENERAL}/30-post-rm-rf"
        self.add(self.deletion)

    def test_a_link_that_leads_nowhere_or_to_a_file_keeps_all_from_running(self):
        directories = (f"{self.GENERAL}/web", self.OWN, f"{self.OWN}/web")
        scripts = (f"{self.GENERAL}/10-archive", f"{self.GENERAL}/40-later")
        scripts = (*scripts, f"{self.GENERAL}/web/10-archive", f"{self.OWN}/10-archive")
        program = self.hooks / "lxc"
        for path in (*directories, *scripts):
            itself = os.path.basename(path)
            for target in ("/gone", "gone/10-archive", program / "10-archive", itself, program):
                if path in scripts and target == program:
                    continue
                with self.subTest(path=path, target=target):
                    link = self.link(path, target)
                    self.assert_refused(self.dispatch("web", *CRASHED), link)
                    link.unlink()
                    if link.parent not in (self.hooks, self.hooks / self.GENERAL):
                        link.parent.rmdir()
        self.assert_runs(self.deletion, arguments=("web", *CRASHED))

    def test_a_file_in_place_of_a_directory_keeps_all_from_running(self):
        for path in (f"{self.GENERAL}/web", self.OWN, f"{self.OWN}/web"):
            with self.subTest(path=path):
                file = self.write(f"hooks/{path}", "")
                self.assert_refused(self.dispatch("web", *CRASHED), file)
                file.unlink()

    def test_what_cannot_be_read_ends_the_run(self):
        """root may read everything, so somebody else calls."""
        self.directory.chmod(0o1777)  # for the record
        directories = (self.GENERAL, self.OWN, f"{self.GENERAL}/web", f"{self.OWN}/web")
        scripts = [f"{directory}/10-archive" for directory in directories]
        for script in scripts:
            self.add(script)
        for path in (*directories, *scripts):
            for mode in (0o700, 0o711, 0o744) if path in directories else (0o711,):
                with self.subTest(path=path, mode=oct(mode)):
                    whole = self.hooks / path
                    whole.chmod(mode)
                    result = self.dispatch("web", *CRASHED, **AS_OTHER)
                    whole.chmod(0o755)
                    # scripts before one that cannot be read may have run
                    ran = [] if path in directories else scripts[: scripts.index(path)]
                    self.assertIn(self.recorded(), ([], ran))
                    self.assertNotEqual(result.returncode, 0)
                    self.assertRegex(result.stderr, rf"\Avirt-hooks: [^\n]*{whole}[^\n]*\n\Z")
        self.assert_runs(*scripts, self.deletion, arguments=("web", *CRASHED), **AS_OTHER)

    def test_what_is_no_script_or_another_guests_may_lead_nowhere(self):
        for path in ("README", "10-a.bak", "4913", "other-guest", "web/README", "web/10-a~"):
            self.link(f"{self.GENERAL}/{path}", "/gone")
        self.link("lxc_prepare_begin_-.d", "/gone")
        self.assert_runs(self.deletion, arguments=("web", *CRASHED))


class Filters(DispatcherTestCase):
    """Point 7."""

    def filter(self, operation, *scripts, xml=b"<a/>\n", **options):
        """Run scripts with these commands in a phase of this operation."""
        directory = f"lxc_{operation}_begin_-.d"
        shutil.rmtree(self.hooks / directory, ignore_errors=True)
        for number, commands in enumerate(scripts, 1):
            self.add(f"{directory}/{number}0-a", commands)
        return self.dispatch("web", operation, "begin", "-", xml=xml, **options)

    def test_what_a_script_prints_unless_empty_is_the_next_ones_stdin(self):
        cases = (
            (["sed s/a/b/", "sed s/b/cc/", "tr c d"], "<dd/>\n"),
            (["cat >/dev/null", "sed s/a/b/", "sed s/b/c/"], "<c/>\n"),
            (["sed s/a/b/", "sed s/b/c/", ":"], "<c/>\n"),
            (["sed s/a/b/", "echo '<new/>'"], "<new/>\n"),
            (["head -c 3; echo '>'", "cat"], "<a/>\n"),
            (["echo '<b>' >/dev/stdout; echo '</b>' >/dev/stdout"], "<b>\n</b>\n"),
            ([":", "cat >/dev/null", ":"], ""),
            ([], ""),
        )
        for operation in ("migrate", "restore"):
            for scripts, expected in cases:
                with self.subTest(operation=operation, scripts=scripts):
                    result = self.filter(operation, *scripts)
                    done = (result.returncode, result.stdout, result.stderr)
                    self.assertEqual(done, (0, expected, ""))

    def test_every_byte_of_a_big_xml_passes(self):
        xml = b"<" + random.Random(2).randbytes(40 << 20)
        result = self.filter("restore", "cat", ":", "cat", xml=xml)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertTrue(os.fsencode(result.stdout) == xml)

    def test_a_run_that_fails_prints_nothing_on_stdout(self):
        for operation in ("migrate", "restore"):
            for scripts, status in (
                (["sed s/a/b/", "cat; exit 3"], 3),
                (["cat; exit 4", "cat"], 4),
                (["cat", "cat; kill -9 $$"], 137),
                (["echo '<half>'; exit 5"], 5),
            ):
                with self.subTest(operation=operation, scripts=scripts):
                    result = self.filter(operation, *scripts)
                    self.assertEqual((result.returncode, result.stdout), (status, ""))

    def test_output_that_is_no_xml_is_a_failure_which_names_the_script_and_shows_the_output(self):
        for operation in ("migrate", "restore"):
            for scripts, name, shown in (
                (["echo starting up; cat"], "10-a", "starting up"),
                (["cat", "echo; echo '  done'", "cat"], "20-a", "done"),
                (["printf '\\377\\n'"], "10-a", "xff"),
            ):
                with self.subTest(operation=operation, scripts=scripts):
                    result = self.filter(operation, *scripts)
                    self.assertNotEqual(result.returncode, 0)
                    self.assertEqual(result.stdout, "")
                    (line,) = result.stderr.splitlines()
                    self.assertIn(f": {name}: ", line)
                    self.assertIn(shown, line)

    def test_white_space_before_the_xml_passes_and_alone_is_nothing_as_for_libvirt(self):
        for scripts, expected in (
            (["echo; cat"], "\n<a/>\n"),
            (["echo"], ""),
            (["cat", "echo"], "<a/>\n"),
        ):
            with self.subTest(scripts=scripts):
                result = self.filter("restore", *scripts)
                self.assertEqual(
                    (result.returncode, result.stdout, result.stderr), (0, expected, "")
                )

    def test_output_that_cannot_be_kept_or_written_is_a_failure(self):
        big = b"<" + b"x" * 100_000

        def limited():
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

        with open("/dev/full", "wb") as full:
            cases = {
                "no room": (["cat"], {"stdout": full}),
                "limit of the XML": (["cat"], {"preexec_fn": limited, "xml": big}),
                "limit of the output": (
                    ["head -c 100000 /dev/zero; echo later >>RECORD; sleep 300"],
                    {"preexec_fn": limited},
                ),
            }
            for case, (scripts, options) in cases.items():
                with self.subTest(case):
                    result = self.filter("restore", *scripts, **options)
                    self.assertNotEqual(result.returncode, 0)
                    self.assertIn(result.stdout, (None, ""))
                    self.assertRegex(
                        result.stderr, r"\Avirt-hooks: lxc web restore begin -: [^\n]+\n\Z"
                    )

    def test_every_byte_passes_where_the_dispatcher_is_stopped_while_it_writes(self):
        xml = b"<" + random.Random(3).randbytes(480_017)
        self.add("lxc_restore_begin_-.d/10-a", "cat")
        for _ in range(5):
            out, out_end = os.pipe()
            process = self.start("web", "restore", "begin", "-", stdout=out_end)
            os.close(out_end)
            process.stdin.write(xml)
            process.stdin.close()
            received = os.read(out, 1)
            for _ in range(5):
                process.send_signal(signal.SIGSTOP)
                received += os.read(out, 5000)
                process.send_signal(signal.SIGCONT)
            with open(out, "rb") as rest:
                received += rest.read()
            self.assertEqual(process.wait(60), 0)
            self.assertTrue(received == xml, len(received))

    def test_other_phases_are_no_filters(self):
        self.add(f"{DIRECTORY}/10-a", "echo one")
        self.add(f"{DIRECTORY}/20-b", "cat; echo two; exit 3")
        for guest in ("web", "migrate", "restore"):
            with self.subTest(guest=guest):
                result = self.dispatch(guest, *PREPARE, xml=b"<a/>\n")
                self.assertEqual((result.returncode, result.stdout), (3, "one\n<a/>\ntwo\n"))


class Refusals(DispatcherTestCase):
    """Point 8."""

    def setUp(self):
        super().setUp()
        general, own = "lxc_release_end_-.d", "lxc_release_end_crashed.d"
        self.scripts = [f"{general}/10-a", "guests/all/web/20-b", "lib/deep/a", "home/deep/a"]
        for path in self.scripts:
            self.add(f"../{path}" if path.startswith("home") else path)
        self.link(f"{own}/web", "../guests/all/web")
        self.link(f"{general}/web/30-link", "../../lib/deep/a")
        self.link(f"{general}/40-chain", "../lib/links/outside")
        self.link("lib/links/outside", self.directory / "opt/../home/deep/a")
        (self.directory / "opt").mkdir()
        self.scripts[-1] = "../home/deep/a"
        # whoever can change one of these can change what runs
        self.links = [f"{own}/web", f"{general}/web/30-link", f"{general}/40-chain"]
        self.links.append("lib/links/outside")
        self.files = [f"{general}/10-a", "guests/all/web/20-b", "lib/deep/a", "../home/deep/a"]
        self.directories = [".", "..", "../..", general, f"{general}/web", own, "guests"]
        self.directories += ["guests/all", "guests/all/web", "lib", "lib/deep", "lib/links"]
        self.directories += ["../opt", "../home", "../home/deep"]
        for path in (*self.files, *self.directories):
            os.chown(self.hooks / path, 0, OTHER)  # a group that cannot write may be any

    def assert_unsafe(self, paths, change, undo):
        """Whichever path is changed, nothing runs, and it is named."""
        for path in paths:
            with self.subTest(path=path):
                whole = os.path.normpath(self.hooks / path)
                change(whole)
                result = self.dispatch("web", *CRASHED)
                undo(whole)
                self.assert_refused(result, f" {whole}: ")

    def test_what_belongs_to_somebody_else_is_refused(self):
        for owner in (OTHER, 1):
            self.assert_unsafe(
                [*self.links, *self.files, *self.directories],
                lambda path, owner=owner: os.lchown(path, owner, 0),
                lambda path: os.lchown(path, 0, 0),
            )
        self.assert_runs(*self.scripts, arguments=("web", *CRASHED))

    def test_what_group_or_others_can_write_is_refused(self):
        for mode in (0o775, 0o757, 0o777):
            self.assert_unsafe(
                [*self.files, *self.directories],
                lambda path, mode=mode: os.chmod(path, mode),
                lambda path: os.chmod(path, 0o755),
            )
        self.assert_unsafe(
            self.files, lambda path: os.chmod(path, 0o1777), lambda path: os.chmod(path, 0o755)
        )
        self.assert_runs(*self.scripts, arguments=("web", *CRASHED))

    def test_in_a_sticky_directory_others_cannot_change_what_is_roots(self):
        for path in self.directories:
            (self.hooks / path).chmod(0o1777)
        self.addCleanup(self.directory.parent.chmod, 0o755)
        self.assert_runs(*self.scripts, arguments=("web", *CRASHED))

    def test_a_user_cannot_put_another_file_below_a_home_that_a_link_leads_through(self):
        home = self.directory / "home"
        os.chown(home, OTHER, OTHER)
        home.joinpath("deep").rename(home / "before")
        home.joinpath("deep").mkdir()
        script = self.write("home/deep/a", f"#!/bin/sh\necho owned >>{self.record}\n", 0o755)
        os.chown(script, 0, 0)  # a hard link to a file of root's, say
        self.assert_refused(self.dispatch("web", *CRASHED), home)

    def test_what_belongs_to_the_caller_is_safe_for_the_caller(self):
        self.directory.chmod(0o1777)  # for the record
        for path in (*self.links, *self.files, *self.directories):
            if path not in ("..", "../.."):
                os.lchown(self.hooks / path, OTHER, OTHER)
        self.assert_runs(*self.scripts, arguments=("web", *CRASHED), **AS_OTHER)
        os.chown(self.hooks / "guests", 1, 0)
        self.assert_refused(self.dispatch("web", *CRASHED, **AS_OTHER))

    def test_a_phase_argument_with_a_slash_is_refused(self):
        self.add("elsewhere/10-a")
        for phase in (
            ("prepare/begin", "begin", "-"),
            ("prepare", "begin", "x/../../elsewhere"),
            ("../lxc_prepare", "begin", "-"),
            ("none/such",),
        ):
            with self.subTest(phase=phase):
                argument = next(argument for argument in phase if "/" in argument)
                self.assert_refused(self.dispatch("web", *phase), argument)

    def test_a_script_that_cannot_be_started_fails_and_is_named(self):
        for name, contents, part in (
            ("interpreter is missing", "#!/usr/bin/no-such-python -I\n", "/usr/bin/no-such-python"),
            ("interpreter with a carriage return", "#!/bin/sh\r\n", "/bin/sh"),
            ("no interpreter", "echo run >>RECORD\n", ""),
            ("empty", "", ""),
            ("rubbish", "".join(map(chr, range(256))), ""),
        ):
            with self.subTest(name):
                shutil.rmtree(self.hooks / DIRECTORY, ignore_errors=True)
                self.write(f"hooks/{DIRECTORY}/20-b", contents, 0o755)
                self.add(f"{DIRECTORY}/30-c")
                result = self.dispatch()
                self.assert_refused(result, "20-b", part)
                self.assertNotIn("\r", result.stderr)


class TimeLimit(DispatcherTestCase):
    """Point 9."""

    def limit(self, text, directory=DIRECTORY):
        path = self.hooks / directory / "timeout"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode("latin-1"))
        return path

    def test_past_it_the_group_gets_sigterm_and_5_s_later_sigkill_and_the_run_fails(self):
        wait = "while :; do sleep 0.1; done"
        member = "echo $$ >>RECORD; exec sleep 300"
        started, gone = "until [ -s RECORD ]; do sleep 0.05; done", "the process recorded is gone"
        cases = {
            # driver: (at least so many seconds, what is recorded, path, commands)
            "heeds": (1, gone, "10-a", member),
            "exits-0": (1, [], "10-a", f"trap 'exit 0' TERM; {wait}"),
            "tidies": (1, ["tidied"], "10-a", f"trap 'echo tidied >>RECORD; exit' TERM; {wait}"),
            "ignores": (6, gone, "10-a", f"trap '' TERM; {member}"),
            "guests-own": (1, gone, "web/10-a", member),
            "leaves": (1, gone, "10-a", f"sh -c '{member}' & {started}; exec sleep 300"),
            "leaves-one-that-tidies": (1, ["told", "tidied"], "10-a", """
                sh -c 'trap "sleep 1; echo tidied >>RECORD; exit" TERM; echo told >>RECORD
                    while :; do sleep 0.1; done' >/dev/null 2>&1 &
                until [ -s RECORD ]; do sleep 0.05; done; exec sleep 300"""),
            "leaves-one-that-ignores": (1, gone, "10-a", f"""
                sh -c 'trap "" TERM; {member}' >/dev/null 2>&1 & {started}; exec sleep 300"""),
        }  # fmt: skip
        runs = {}
        for driver, (_seconds, _recorded, path, commands) in cases.items():
            # all at once, since each takes its time
            directory = f"{driver}_prepare_begin_-.d"
            self.record = self.directory / driver
            self.add(f"{directory}/{path}", commands)
            self.add(f"{directory}/20-b")
            self.limit("1\n", directory)
            install_dispatcher(self.hooks / driver)
            process = self.start(name=driver, stdin=subprocess.DEVNULL)
            runs[driver] = process, time.monotonic()
        for driver, (seconds, recorded, _path, _commands) in cases.items():
            with self.subTest(case=driver):
                self.record = self.directory / driver
                process, began = runs[driver]
                result = self.finish(process)
                self.assertGreaterEqual(time.monotonic() - began, seconds)
                self.assertNotEqual(result.returncode, 0)
                last = result.stderr.splitlines()[-1]
                self.assertRegex(last, rf"\Avirt-hooks: {driver} web prepare begin -: \S*10-a: ")
                if recorded == gone:
                    pid = self.process_recorded()
                    until = time.monotonic() + 50
                    while is_alive(pid) and time.monotonic() < until:
                        time.sleep(0.01)
                    self.assertFalse(is_alive(pid))
                else:
                    self.assertEqual(self.recorded(), recorded)

    def test_each_script_has_the_whole_limit(self):
        self.limit(" 4 \n\n")
        for path in ("10-a", "20-b", "web/15-own", "30-c", "40-d"):
            self.add(f"{DIRECTORY}/{path}", "sleep 0.9; echo done >>RECORD")
        self.assert_runs(*["done"] * 5)

    def test_it_holds_for_its_own_phase_directory_and_a_guests_has_none(self):
        self.limit("1", "lxc_release_end_-.d")
        self.add("lxc_release_end_crashed.d/20-b", "sleep 1.5; echo b >>RECORD")
        self.add("lxc_release_end_crashed.d/web/30-c", "echo c >>RECORD")
        self.limit("rubbish", "lxc_release_end_crashed.d/web")
        self.assert_runs("b", "c", arguments=("web", *CRASHED))

    def test_what_is_no_number_of_seconds_is_refused_before_anything_runs(self):
        self.add("lxc_release_end_-.d/10-a")
        self.add("lxc_release_end_crashed.d/20-b")
        for text in ("", "\n", "abc", "0", "-1", "1s", "5 m", "1,5", "10 20", "\xff", "1:00"):
            with self.subTest(text=text):
                path = self.limit(text, "lxc_release_end_crashed.d")
                self.assert_refused(self.dispatch("web", *CRASHED), path)
        path.unlink()
        path.symlink_to("nowhere")
        self.assert_refused(self.dispatch("web", *CRASHED), path)

    def test_a_script_that_the_kernel_cannot_end_has_failed_all_the_same(self):
        point = self.directory / "silent"
        point.mkdir()
        command = ["/usr/bin/python3", "-IS", "-c", SILENT_FILE_SYSTEM, point]
        server = subprocess.Popen(command, stdout=subprocess.PIPE)
        self.addCleanup(end, server)
        server.stdout.readline()
        self.add(f"{DIRECTORY}/10-a", f"echo $$ >>RECORD; exec cat {point}/file")
        self.add(f"{DIRECTORY}/20-b", "echo ran >>RECORD")
        self.limit("1")
        with Syslog() as syslog:
            result = self.dispatch()
        pid = self.process_recorded()
        self.assertTrue(is_alive(pid), "SIGKILL has ended it: this tells nothing")
        self.assertNotEqual(result.returncode, 0)
        self.assertRegex(result.stderr, r"\Avirt-hooks: lxc web prepare begin -: 10-a: [^\n]+\n\Z")
        self.assertTrue(any(f"{pid}" in line for line in syslog.lines), syslog.lines)


class OneAtATime(DispatcherTestCase):
    """Point 14."""

    STATE = Path("/run/virt-hooks")

    def setUp(self):
        super().setUp()
        self.addCleanup(shutil.rmtree, self.STATE, ignore_errors=True)
        self.running = self.directory / "running"

    def add_slow(self, directory, commands="sleep 0.3"):
        """Put a script there that fails while another run of it is under way."""
        self.add(
            f"{directory}/10-slow",
            f"mkdir {self.running} || exit 9; echo in >>RECORD\n{commands}\nrmdir {self.running}",
        )

    def assert_one_after_the_other(self, *runs):
        processes = [self.start(*arguments, **options) for arguments, options in runs]
        for process in processes:
            process.stdin.write(XML)
            process.stdin.close()
        results = [process.wait(60) for process in processes]
        said = [process.stderr.read() for process in processes]
        self.assertEqual((results, said), ([0] * len(runs), [b""] * len(runs)))
        self.assertEqual(self.recorded(), ["in"] * len(runs))

    def test_two_calls_of_a_phase_for_a_guest_run_one_after_the_other(self):
        for phase in (PREPARE, ("start", "begin", "-"), ("started", "begin", "-"),
                      ("reconnect", "begin", "-"), ("stopped", "end", "-"), CRASHED,
                      ("release", "end", "-"), ("migrate", "begin", "-"),
                      ("restore", "begin", "-")):  # fmt: skip
            with self.subTest(phase=phase):
                self.add_slow("_".join(["lxc", *phase]) + ".d")
                self.assert_one_after_the_other(*[(("web", *phase), {})] * 3)

    def test_a_start_waits_for_the_release_before_it_and_syslog_says_so(self):
        self.add_slow("lxc_release_end_-.d", "sleep 1; echo released >>RECORD")
        self.add(f"{DIRECTORY}/10-a", "echo prepared >>RECORD")
        with Syslog() as syslog:
            release = self.start("web", *CRASHED)
            release.stdin.close()
            wait_for(self.running.exists)
            self.assert_silent_success(self.dispatch())
            self.assertEqual(release.wait(60), 0)
        self.assertEqual(self.recorded(), ["in", "released", "prepared"])
        waits = [line for line in syslog.lines if "waits" in line]
        self.assertEqual(len(waits), 1, syslog.lines)
        self.assertIn("lxc web prepare begin -: ", waits[0])

    def test_another_guest_or_driver_or_a_dry_run_or_a_user_does_not_wait(self):
        self.directory.chmod(0o755)
        self.add_slow("lxc_release_end_-.d", "sleep 300")
        for driver in ("lxc", "qemu"):
            self.add(f"{driver}_prepare_begin_-.d/10-a", ": VIRT_HOOKS_DRY_RUN")
        install_dispatcher(self.hooks / "qemu")
        release = self.start("web", *CRASHED)
        release.stdin.close()
        wait_for(self.running.exists)
        for case, arguments, options in (
            ("guest", ("web2", *PREPARE), {}),
            ("driver", (), {"name": "qemu"}),
            ("dry run", (), {"env": {**LIBVIRT, "VIRT_HOOKS_DRY_RUN": "1"}}),
            ("user", (), AS_OTHER),
            ("nothing to run", ("web", "start", "begin", "-"), {}),
        ):
            with self.subTest(case):
                self.assert_silent_success(self.dispatch(*arguments, **options))

    def test_a_script_does_not_hold_the_lock_that_its_dispatcher_has_held(self):
        self.add(f"{DIRECTORY}/10-a", "sleep 300 >/dev/null 2>&1 & echo $! >>RECORD")
        self.assert_silent_success(self.dispatch())
        self.process_recorded()
        self.assert_silent_success(self.dispatch())
        self.process_recorded()

    def test_only_root_can_open_what_is_locked(self):
        self.add(f"{DIRECTORY}/10-a")
        os.umask(0)
        self.addCleanup(os.umask, 0o022)
        self.dispatch()
        for path in (self.STATE, *self.STATE.iterdir()):
            self.assertEqual(path.stat().st_mode & 0o077, 0, path)

    def test_a_state_directory_that_others_can_write_is_refused(self):
        self.add(f"{DIRECTORY}/10-a")
        for mode, owner in ((0o777, 0), (0o770, 0), (0o700, OTHER)):
            with self.subTest(mode=oct(mode), owner=owner):
                self.STATE.mkdir(exist_ok=True)
                self.STATE.chmod(mode)
                os.chown(self.STATE, owner, owner)
                self.assert_refused(self.dispatch(), self.STATE)
        self.STATE.rmdir()
        self.STATE.symlink_to(self.directory)
        self.addCleanup(self.STATE.unlink)
        self.directory.chmod(0o777)
        self.assert_refused(self.dispatch(), self.directory)

    def test_a_users_own_session_runs_whatever_the_modes_of_the_state_directory(self):
        self.directory.chmod(0o1777)  # for the record
        self.add(f"{DIRECTORY}/10-a")
        self.assert_runs(f"{DIRECTORY}/10-a", **AS_OTHER)
        for mode in (0o700, 0o755, 0o777, 0):
            self.STATE.mkdir(exist_ok=True)
            self.STATE.chmod(mode)
            self.assert_runs(f"{DIRECTORY}/10-a", **AS_OTHER)
            self.assertEqual(list(self.STATE.iterdir()), [])


class Background(DispatcherTestCase):
    """Point 10."""

    def test_nobody_waits_for_what_a_script_leaves_in_the_background(self):
        # sleep outlives the 60 s that finish() waits for the end of stdout and stderr
        self.write(f"hooks/{DIRECTORY}/timeout", "50\n")  # it is not the script
        started = "until [ -s RECORD ]; do sleep 0.05; done"
        for name, commands in (
            ("holds both", "sleep 300 & echo $! >>RECORD"),
            ("another session", f"setsid sh -c 'echo $$ >>RECORD; exec sleep 300' & {started}"),
        ):
            for phase in (PREPARE, ("restore", "begin", "-")):
                with self.subTest(case=name, phase=phase):
                    self.add(f"lxc_{phase[0]}_begin_-.d/10-a", f"echo '<a/>'; {commands}")
                    self.add(f"lxc_{phase[0]}_begin_-.d/20-b", "echo said >&2")
                    result = self.dispatch("web", *phase)
                    self.assertTrue(is_alive(self.process_recorded()))
                    done = (result.returncode, result.stdout, result.stderr)
                    self.assertEqual(done, (0, "<a/>\n", "said\n"))

    def test_what_it_leaves_in_the_background_goes_on_when_it_prints(self):
        wait = "until [ -e ../go ]; do sleep 0.05; done"
        for stream in (1, 2):
            with self.subTest(stream=stream):
                left = f"( {wait}; echo late; echo later; echo done >>RECORD ) >&{stream} &"
                self.add(f"{DIRECTORY}/10-a", f'cd "${{0%/*}}"; {left}')
                self.assertEqual(self.dispatch().returncode, 0)
                (self.hooks / "go").touch()
                until = time.monotonic() + 50
                while not self.record.exists() and time.monotonic() < until:
                    time.sleep(0.05)
                self.assertEqual(self.record.read_text(), "done\n")
                self.record.unlink()
                (self.hooks / "go").unlink()

    def test_what_a_helper_prints_just_after_the_script_reaches_the_caller(self):
        # as tee(1) does, in a hook that begins with "exec > >(tee -a LOG) 2>&1"
        self.add(f"{DIRECTORY}/10-a", "(sleep 0.01; echo late >&2) & exit 3")
        for _ in range(20):  # on a busy machine it may come too late
            result = self.dispatch()
            self.assertEqual(result.returncode, 3)
            if "late" in result.stderr:
                break
        self.assertTrue(result.stderr.startswith("late\n"), result.stderr)

    def test_a_long_line_is_passed_on_as_it_comes(self):
        self.add(f"{DIRECTORY}/10-a", "head -c 100000000 /dev/zero | tr '\\0' x")
        result = self.dispatch()  # within 60 s; a time that grows with the square takes far longer
        self.assertEqual((result.returncode, len(result.stdout)), (0, 100000000))

    def test_what_the_script_itself_printed_is_complete_and_its_status_counts(self):
        commands = "head -c 3000000 /dev/zero | tr '\\0' x >&2; echo >&2; sleep 300 &"
        self.add(f"{DIRECTORY}/10-a", f"{commands} echo $! >>RECORD; exit 3")
        result = self.dispatch()
        self.assertTrue(is_alive(self.process_recorded()))
        line = "virt-hooks: lxc web prepare begin -: 10-a: exit status 3"
        self.assertEqual((result.returncode, result.stderr), (3, f"{'x' * 3000000}\n{line}\n"))


class Messages(DispatcherTestCase):
    """Point 11."""

    LINE = "virt-hooks: lxc web prepare begin -: 20-ramdisk: exit status 1\n"

    def test_a_failure_adds_one_line_to_what_the_scripts_said(self):
        for said in ("echo no room", "printf 'no room'"):  # it stands alone in either case
            with self.subTest(said):
                self.add(f"{DIRECTORY}/10-a", "echo first >&2")
                self.add(f"{DIRECTORY}/20-ramdisk", f"{said} >&2; exit 1")
                self.assertEqual(self.dispatch().stderr, f"first\nno room\n{self.LINE}")

    def test_every_byte_of_a_scripts_output_reaches_the_caller(self):
        text = bytes(range(256)) * 4 + b"\xff\r\n\n\n\x1b[0m before\0after"
        (self.hooks / "text").write_bytes(text)
        self.add(f"{DIRECTORY}/10-a", 'cd "${0%/*}"; cat ../text; cat ../text >&2')
        for environment in ({}, LIBVIRT, {"LC_ALL": "C.UTF-8"}):
            with self.subTest(environment=environment), Syslog() as syslog:
                result = self.dispatch(env=environment)
                self.assertEqual(result.returncode, 0, result.stderr)
                self.assertTrue(os.fsencode(result.stdout) == os.fsencode(result.stderr) == text)
            self.assertTrue(all("10-a" in line for line in syslog.lines), syslog.lines)
            self.assertTrue(any("after" in line for line in syslog.lines[:-1]), syslog.lines)

    def test_a_flood_reaches_the_caller_whole_and_does_not_keep_the_result_from_syslog(self):
        size = 8 << 20
        for name, source in (
            ("lines", f"yes 'a line of a script that says much' | head -c {size}"),
            ("no newlines", f"head -c {size} /dev/zero"),
            ("empty lines", f"yes '' | head -c {size}"),
        ):
            with self.subTest(flood=name):
                self.add(f"{DIRECTORY}/20-ramdisk", f"{source}; {source} >&2; exit 1")
                with Syslog() as syslog:
                    result = self.dispatch()
                self.assertEqual((result.returncode, len(result.stdout)), (1, size))
                self.assertIn(len(result.stderr) - len(self.LINE), (size, size + 1))
                self.assertTrue(result.stderr.endswith(self.LINE))
                self.assertTrue(any("20-ramdisk: exit status 1" in i for i in syslog.lines[-2:]))

    def test_a_reader_that_has_gone_does_not_stop_the_work(self):
        """libvirtd was restarted meanwhile: a guest's end is still finished."""
        self.add(f"{DIRECTORY}/10-a", "echo a >&2; echo a; echo a >>RECORD")
        self.add(f"{DIRECTORY}/20-b", "yes | head -c 200000 >&2; echo b >>RECORD")
        self.add(f"{DIRECTORY}/30-c", "exit 3")
        process = self.start()
        process.stderr.close()
        process.stdout.close()
        process.stdout = process.stderr = None
        self.assertEqual(self.finish(process, XML).returncode, 3)
        self.assertEqual(self.recorded(), ["a", "b"])

    def test_syslog_gets_result_and_duration_of_each_script(self):
        self.add(f"{DIRECTORY}/10-a", "sleep 0.2")
        self.add(f"{DIRECTORY}/web/20-own", "sleep 0.2; exit 3")
        self.add(f"{DIRECTORY}/30-c")
        with Syslog() as syslog:
            self.assertEqual(self.dispatch().returncode, 3)
        done, *failed = syslog.lines
        failed = " ".join(failed)
        self.assertRegex(done, r"\Alxc web prepare begin -: 10-a: ")
        self.assertRegex(failed, r"\Alxc web prepare begin -: [^ ]*20-own: ")
        self.assertIn("exit status 3", failed)
        self.assertNotIn("30-c", failed)
        for line in (done, failed):
            (number, unit) = re.findall(r"(\d+(?:\.\d+)?) ?(m?s)\b", line)[-1]
            seconds = float(number) / (1000 if unit == "ms" else 1)
            self.assertTrue(0.2 <= seconds < 50, line)

    def test_syslog_gets_the_name_of_a_script_that_is_still_running(self):
        self.add(f"{DIRECTORY}/10-quick")
        self.add(f"{DIRECTORY}/20-slow", "sleep 43")
        # 20 s for each second
        faster = {"LD_PRELOAD": FAKETIME, "FAKETIME": "+0 x20", **LIBVIRT}
        with Syslog() as syslog:
            self.assertEqual(self.dispatch(env=faster).returncode, 0)
        said = [line for line in syslog.lines if "20-slow" in line]
        *reports, _result = [int(re.search(r"(\d+)(\.\d+)? s", line)[1]) for line in said]
        self.assertEqual(len(reports), 3, said)
        for report, expected in zip(reports, (10, 20, 40)):
            self.assertTrue(expected <= report < 2 * expected, said)
        self.assertFalse([line for line in syslog.lines if "10-quick" in line][1:], syslog.lines)

    def test_where_it_is_asked_to_it_names_each_script_before_its_output(self):
        self.add(f"{DIRECTORY}/10-a", "echo a")
        self.add(f"{DIRECTORY}/web/20-b", "exit 0")
        self.add("lxc_restore_begin_-.d/10-filter", "echo '<a/>'")
        verbose = {**LIBVIRT, "VIRT_HOOKS_VERBOSE": "1"}
        result = self.dispatch(env=verbose)
        self.assertEqual((result.stdout, result.stderr), ("== 10-a\na\n== web/20-b\n", ""))
        result = self.dispatch("web", "restore", "begin", "-", env=verbose)
        self.assertEqual((result.stdout, result.stderr), ("<a/>\n", "== 10-filter\n"))

    def test_syslog_gets_a_refusal(self):
        path = self.add(f"{DIRECTORY}/10-a", mode=0o777)
        with Syslog() as syslog:
            self.assert_refused(self.dispatch(), path)
        self.assertTrue(any(str(path) in line for line in syslog.lines), syslog.lines)

    def test_syslog_gets_what_scripts_print_line_by_line(self):
        self.add(
            f"{DIRECTORY}/10-a", "printf o; sleep 0.2; echo ne; echo '%s%n two'; printf unfinished"
        )
        self.add(f"{DIRECTORY}/20-b", "echo said >&2; echo é >&2; exit 3")
        with Syslog() as syslog:
            self.assertEqual(self.dispatch().returncode, 3)
        run = "lxc web prepare begin -: "
        said = [f"{run}10-a: one", f"{run}10-a: %s%n two", f"{run}10-a: unfinished"]
        said += [f"{run}20-b: said", f"{run}20-b: é"]
        self.assertEqual([line for line in syslog.lines if line in said], said)
        self.assertIn(len(syslog.lines) - len(said), (2, 3))  # with two results, and the reason

    def test_syslog_gets_what_filters_say_and_not_the_xml_which_may_have_passwords(self):
        self.add("lxc_restore_begin_-.d/10-a", "echo said >&2; cat")
        with Syslog() as syslog:
            result = self.dispatch("web", "restore", "begin", "-")
        self.assertEqual((result.returncode, os.fsencode(result.stdout)), (0, XML))
        self.assertEqual(syslog.lines[0], "lxc web restore begin -: 10-a: said")
        self.assertEqual(len(syslog.lines), 2, syslog.lines)


class NothingToDo(DispatcherTestCase):
    """Point 12."""

    def test_where_there_is_nothing_for_this_guest_it_succeeds_in_silence(self):
        for name, path, mode, commands in (
            ("no directory", "", 0, ""),
            ("only a README", f"{DIRECTORY}/README", 0o755, SAY_PATH),
            ("only what is not executable", f"{DIRECTORY}/10-a", 0o644, SAY_PATH),
            ("only another guest's", f"{DIRECTORY}/web2/10-a", 0o755, SAY_PATH),
            ("only another phase's", "lxc_start_begin_-.d/10-a", 0o755, SAY_PATH),
            ("only for an element", f"{DIRECTORY}/10-a", 0o755, f"# element: mkdirs\n{SAY_PATH}"),
            ("an empty directory", f"{DIRECTORY}/", 0, ""),
        ):
            with self.subTest(case=name), Syslog() as syslog:
                shutil.rmtree(self.hooks / DIRECTORY, ignore_errors=True)
                if mode:
                    self.add(path, commands, mode)
                elif path:
                    (self.hooks / path).mkdir()
                self.assert_runs()
            self.assertEqual(syslog.lines, [])


class ByHand(DispatcherTestCase):
    """Point 13."""

    def setUp(self):
        super().setUp()
        self.master, self.terminal = pty.openpty()
        self.addCleanup(os.close, self.master)
        self.addCleanup(os.close, self.terminal)

    def assert_usage(self, result):
        self.assertEqual(result.returncode, 2)
        self.assertIn("GUEST", result.stdout + result.stderr)
        self.assertNotIn("Traceback", result.stderr)
        self.assertEqual(self.recorded(), [])

    def test_with_fewer_than_two_arguments_it_prints_how_to_use_it(self):
        self.add("lxc_-.d/10-a")
        for arguments in ([], ["web"], ["--help"], [""]):
            with self.subTest(arguments=arguments):
                command = [self.hooks / "lxc", *arguments]
                self.assert_usage(run(command, input=""))

    def test_with_a_terminal_on_stdin_it_prints_how_to_use_it(self):
        self.add(f"{DIRECTORY}/10-a")
        for phase in (PREPARE, ("start", "begin", "-")):  # whether or not there is a script
            with self.subTest(phase=phase):
                self.assert_usage(self.dispatch("web", *phase, stdin=self.terminal))

    def test_a_terminal_for_the_output_is_no_reason_for_it(self):
        self.add(f"{DIRECTORY}/10-a")
        result = self.dispatch(stderr=self.terminal, stdout=self.terminal)
        self.assertEqual((result.returncode, self.recorded()), (0, [f"{DIRECTORY}/10-a"]))

    def test_in_a_dry_run_scripts_that_do_not_know_it_are_named_and_left_out(self):
        knows = 'echo "knows $VIRT_HOOKS_DRY_RUN" >>RECORD'
        self.add(f"{DIRECTORY}/10-knows", knows)
        self.add(f"{DIRECTORY}/20-blind")
        self.add(f"{DIRECTORY}/web/30-own-blind", "exit 3")
        self.add("lib/knows", knows)
        self.link(f"{DIRECTORY}/40-link", "../lib/knows")
        self.add(f"{DIRECTORY}/50-not-this-guests", f"# element: mkdirs\n{knows}")
        result = self.dispatch(env={**LIBVIRT, "VIRT_HOOKS_DRY_RUN": "1"})
        self.assertEqual((result.returncode, self.recorded()), (0, ["knows 1", "knows 1"]))
        one, other = result.stderr.splitlines()
        self.assertIn("20-blind", one)
        self.assertIn("30-own-blind", other)


class Foreign(DispatcherTestCase):
    """Hook scripts that were written for other dispatchers, in the manner of public ones."""

    def test_a_shell_script_that_hands_the_xml_on_to_scripts_below_itself(self):
        handing_on = """
            GUEST="$1" OPERATION="$2" STATE="$3"
            BELOW="$(dirname "$0")/$GUEST.d/$OPERATION/$STATE"
            XML=$(cat)
            set -e
            find -L "$BELOW" -maxdepth 1 -type f -executable | while read -r script; do
                eval "\"$script\"" "$@" <<< "$XML"
            done"""
        self.add(f"{DIRECTORY}/50-hand-on", handing_on, shebang="#!/usr/bin/env bash")
        below = f"{DIRECTORY}/web.d/prepare/begin/tell"
        self.add(below, 'echo "$*: $(grep -c "<name>$1</name>")" >>RECORD')
        self.assert_silent_success(self.dispatch())
        self.assertEqual(self.recorded(), ["web prepare begin -: 1"])

    def test_a_python_script_with_its_settings_beside_it_and_the_xml_in_an_element_tree(self):
        settings = '{"web": {"ports": [80, 443]}}'
        python = """
import json, os, subprocess, sys
import xml.etree.ElementTree as ElementTree
here = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(here, "forward.json")) as file:
    settings = json.load(file)
guest, action = sys.argv[1:3]
name = ElementTree.parse(sys.stdin).getroot().findtext("name")
if name in settings and action in ("prepare", "reconnect"):
    for port in settings[name]["ports"]:
        subprocess.check_call(f"echo {name} {port} >>RECORD", shell=True)
"""
        self.add(f"{DIRECTORY}/50-forward", python, shebang="#!/usr/bin/env python3")
        self.write(f"hooks/{DIRECTORY}/forward.json", settings)
        self.assert_silent_success(self.dispatch())
        self.assertEqual(self.recorded(), ["web 80", "web 443"])

    def test_one_script_for_all_phases_that_looks_at_its_arguments(self):
        script = self.add("all-phases", 'case $2 in prepare|release) echo "$2" >>RECORD ;; esac')
        for phase in ("prepare_begin", "started_begin", "release_end"):
            (self.hooks / f"lxc_{phase}_-.d").mkdir()
            (self.hooks / f"lxc_{phase}_-.d/50-all-phases").symlink_to(script)
        for phase in (PREPARE, ("started", "begin", "-"), ("release", "end", "shutdown")):
            self.assert_silent_success(self.dispatch("web", *phase))
        self.assertEqual(self.recorded(), ["prepare", "release"])


class Replay(DispatcherTestCase):
    """What libvirt 9.0.0 and 11.3.0 really handed to their hooks."""

    def test_what_each_script_gets_is_byte_for_byte_what_libvirt_gave(self):
        captures = sorted(CAPTURES.iterdir())
        self.assertEqual(len(captures), 2)
        for capture in captures:
            for phase in PHASES:
                with self.subTest(libvirt=capture.name, phase=phase):
                    arguments = (capture / f"{phase}.args").read_bytes().split(b"\n")[:-1]
                    xml = (capture / f"{phase}.xml").read_bytes()
                    guest, operation, suboperation, extra = map(os.fsdecode, arguments)
                    start = f"lxc_{operation}_{suboperation}"
                    for path in (f"{start}_-.d/10-a", f"{start}_{extra}.d/{guest}/20-b"):
                        self.add(path, "{ printf '%s\\0' \"$@\"; cat; } >>RECORD")
                    self.assert_silent_success(self.dispatch(*arguments, xml=xml))
                    given = b"\0".join(arguments) + b"\0" + xml
                    self.assertEqual(self.record.read_bytes(), given * 2)
                    self.record.unlink()


if __name__ == "__main__":
    unittest.main()
