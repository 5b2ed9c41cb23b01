"""The dispatcher, both halves, in a hooks directory of the test's own, runs real scripts."""

import errno
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

from harness import CAPTURES, PHASES, Syslog, TestCase, install_dispatcher

PREPARE = ("prepare", "begin", "-")
DIRECTORY = "lxc_prepare_begin_-.d"
KEPT = "/run/virt-hooks-code"
LIBVIRT = {"PATH": os.environ["PATH"], "HOME": "/", "LC_ALL": "C"}  # a hook's whole environment
OTHER = 1000  # some user who is not root
XML = b"<domain type='lxc'><name>web</name></domain>\n"

REASONS = "unknown shutdown destroyed crashed migrated saved failed daemon".split()
REASONS.append("from snapshot")

ODD_NAMES = [
    *(b"web", b"vm one", b"-dash", b"--help", b"-h", b"-", b"--", b"-IS", b"-c", b"x;y"),
    *("é".encode(), b"\xff\xfe\x80", b"caf\xe9", b"$(reboot)", b"`reboot`", b"$HOME", b"a\nb"),
    *(b"\n", b" ", b"  two  ", b"\t", b"'", b'"', b"\\", b"*", b"?", b"[a]", b"{}", b"%s%n", b"~"),
    *(b"...", b".hidden", b"a.d", b"web.bak", b"10-name", b"\x01\x1b[31m", b"migrate", b"restore"),
    *("\U0001f600".encode(), b"x" * 255, "日本".encode()),
]


class DispatcherTestCase(TestCase):
    """A test with self.hooks, a hooks directory with the dispatcher in it."""

    def setUp(self):
        super().setUp()
        self.hooks = self.directory / "hooks"
        self.hooks.mkdir()
        self.record = self.directory / "record"
        install_dispatcher(self.hooks / "lxc")

    def add(self, path, commands="", mode=0o755, shebang="#!/bin/sh"):
        """Put a script into the hooks directory; without commands it adds its path to the record.

        path: from the hooks directory on, text or bytes. In commands, RECORD is the record's path.
        """
        path = os.fsdecode(path)
        if not commands:
            quoted = path.replace("'", "'\\''")
            commands = f"printf '%s\\n' '{quoted}' >>RECORD"
        commands = commands.replace("RECORD", str(self.record))
        whole = os.path.join(self.hooks, path)
        os.makedirs(os.path.dirname(whole), exist_ok=True)
        with open(whole, "wb") as file:
            file.write(os.fsencode(f"{shebang}\n{commands}\n"))
        os.chmod(whole, mode)
        return self.hooks / path

    def start(self, *arguments, name="lxc", **options):
        """Start the dispatcher; by default for the phase "prepare begin -" of the guest web."""
        options = {"env": LIBVIRT, "stdin": subprocess.PIPE, **options}
        pipe = subprocess.PIPE
        options = {"stdout": pipe, "stderr": pipe, **options}
        command = [os.path.join(self.hooks, name), *(arguments or ("web", *PREPARE))]
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

    def assert_refused(self, result, *parts):
        """Nothing has run, and the run has failed with one line that has these parts in it."""
        self.assertEqual((result.returncode, result.stdout), (1, ""), result.stderr)
        self.assertEqual(self.recorded(), [])
        self.assertRegex(result.stderr, r"\Avirt-hooks: [^\n]+\n\Z")
        for part in parts:
            self.assertIn(str(part), result.stderr)

    def wait_for(self, condition, what):
        until = time.monotonic() + 50
        while not condition():
            self.assertLess(time.monotonic(), until, f"waited in vain until {what}")
            time.sleep(0.01)

    def process_recorded(self):
        """The id of the process that a script has recorded, which is killed after the test."""
        (pid,) = map(int, self.recorded())
        self.addCleanup(kill, pid)
        return pid


def snapshot_of_times(directory):
    """When each file of a directory was made, and which it is."""
    found = {entry.name: entry.stat() for entry in os.scandir(directory)}
    return {name: (status.st_ino, status.st_mtime_ns) for name, status in found.items()}


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
        for driver in ("lxc", "qemu", "network", "libxl", "bhyve", "ch", "my-driver"):
            self.add(f"{driver}_start_begin_-.d/10-a")
        for driver in ("qemu", "network", "libxl", "bhyve", "ch", "my-driver"):
            install_dispatcher(self.hooks / driver)
            with self.subTest(driver=driver):
                self.assert_silent_success(self.dispatch("web", "start", "begin", "-", name=driver))
                self.assertEqual(self.recorded(), [f"{driver}_start_begin_-.d/10-a"])

    def test_a_link_beside_it_is_a_driver_of_its_own(self):
        (self.hooks / "qemu").symlink_to("lxc")
        self.add("qemu_start_begin_-.d/10-a")
        self.add("lxc_start_begin_-.d/10-a")
        self.assert_silent_success(self.dispatch("web", "start", "begin", "-", name="qemu"))
        self.assertEqual(self.recorded(), ["qemu_start_begin_-.d/10-a"])

    def test_the_hooks_directory_is_where_the_link_lies_and_not_where_it_leads(self):
        self.add(f"{DIRECTORY}/10-beside-the-program")
        self.add("../elsewhere/lxc_prepare_begin_-.d/10-beside-the-link")
        (self.directory / "elsewhere/lxc").symlink_to(self.hooks / "lxc")
        self.assert_silent_success(self.dispatch(name="../elsewhere/lxc"))
        self.assertEqual(self.recorded(), ["../elsewhere/lxc_prepare_begin_-.d/10-beside-the-link"])

    def test_a_relative_call_finds_the_same_scripts(self):
        self.add(f"{DIRECTORY}/10-a")
        self.add(f"{DIRECTORY}/web/20-b")
        for command, cwd in (
            (["./lxc"], self.hooks),
            (["hooks/lxc"], self.directory),
            (["../hooks/lxc"], self.hooks),
            (["/usr/bin/python3", "-IS", "lxc"], self.hooks),
        ):
            with self.subTest(command=command):
                result = subprocess.run(
                    [*command, "web", *PREPARE],
                    input=XML,
                    capture_output=True,
                    cwd=cwd,
                    timeout=60,
                )
                self.assertEqual((result.returncode, result.stderr), (0, b""))
                self.assertEqual(self.recorded(), [f"{DIRECTORY}/10-a", f"{DIRECTORY}/web/20-b"])


class PhaseDirectories(DispatcherTestCase):
    """Point 2."""

    def test_only_the_phase_that_is_called_runs(self):
        phases = {
            ("lxc", "prepare", "begin", "-"): "lxc_prepare_begin_-.d/10-a",
            ("lxc", "start", "begin", "-"): "lxc_start_begin_-.d/10-a",
            ("lxc", "reconnect", "begin", "-"): "lxc_reconnect_begin_-.d/10-a",
            ("lxc", "stopped", "end", "-"): "lxc_stopped_end_-.d/10-a",
            ("lxc", "release", "end", "-"): "lxc_release_end_-.d/10-a",
            ("network", "port-created", "begin", "-"): "network_port-created_begin_-.d/10-a",
            ("daemon", "start", "-", "start"): "daemon_start_-_start.d/10-a",
            ("daemon", "shutdown", "-", "shutdown"): "daemon_shutdown_-_shutdown.d/10-a",
            ("daemon", "reload", "begin", "SIGHUP"): "daemon_reload_begin_SIGHUP.d/10-a",
        }
        for path in phases.values():
            self.add(path)
        for driver in ("daemon", "network"):
            install_dispatcher(self.hooks / driver)
        for (driver, *phase), path in phases.items():
            with self.subTest(driver=driver, phase=phase):
                guest = "-" if driver == "daemon" else "web"
                self.assert_silent_success(self.dispatch(guest, *phase, name=driver))
                self.assertEqual(self.recorded(), [path])

    def test_the_directory_with_a_dash_serves_whatever_the_last_argument(self):
        self.add("lxc_release_end_-.d/10-a")
        for reason in ("-", *REASONS):
            with self.subTest(reason=reason):
                self.assert_silent_success(self.dispatch("web", "release", "end", reason))
                self.assertEqual(self.recorded(), ["lxc_release_end_-.d/10-a"])

    def test_a_directory_with_a_shutoff_reason_serves_only_that_reason(self):
        paths = {reason: f"lxc_release_end_{reason}.d/10-a" for reason in REASONS}
        paths["from snapshot"] = "lxc_release_end_from_snapshot.d/10-a"
        for path in paths.values():
            self.add(path)
        for reason in ("-", *REASONS):
            with self.subTest(reason=reason):
                self.assert_silent_success(self.dispatch("web", "release", "end", reason))
                self.assertEqual(self.recorded(), [paths[reason]] if reason in paths else [])

    def test_spaces_in_every_argument_become_underscores(self):
        self.add("lxc_a_b_c__d_e_f.d/10-a")
        self.add("lxc_a_b_c__d_-.d/10-b")
        self.assert_silent_success(self.dispatch("web", "a b", "c  d", "e f"))
        self.assertEqual(self.recorded(), ["lxc_a_b_c__d_e_f.d/10-a", "lxc_a_b_c__d_-.d/10-b"])

    def test_only_the_last_argument_has_a_dash_in_its_place(self):
        self.add("lxc_release_-_crashed.d/10-a")
        self.add("lxc_-_end_crashed.d/10-b")
        self.add("lxc_-.d/10-c")
        self.assert_silent_success(self.dispatch("web", "release", "end", "crashed"))
        self.assertEqual(self.recorded(), [])

    def test_two_arguments_are_enough(self):
        self.add("lxc_prepare.d/10-a")
        self.add("lxc_-.d/10-b")
        self.assert_silent_success(self.dispatch("web", "prepare"))
        self.assertEqual(self.recorded(), ["lxc_prepare.d/10-a", "lxc_-.d/10-b"])

    def test_a_subdirectory_serves_its_guest_alone(self):
        self.add("lxc_release_end_-.d/web/10-a")
        self.add("lxc_release_end_crashed.d/web/10-b")
        for guest, runs in (
            ("web", ["lxc_release_end_-.d/web/10-a", "lxc_release_end_crashed.d/web/10-b"]),
            ("web2", []),
            ("we", []),
            ("WEB", []),
        ):
            with self.subTest(guest=guest):
                self.assert_silent_success(self.dispatch(guest, "release", "end", "crashed"))
                self.assertEqual(self.recorded(), runs)

    def test_a_guest_subdirectory_is_not_searched_any_deeper(self):
        self.add(f"{DIRECTORY}/web/deeper/10-a")
        self.assert_silent_success(self.dispatch())
        self.assertEqual(self.recorded(), [])

    def test_a_guest_called_dot_or_dot_dot_has_no_subdirectory(self):
        self.add(f"{DIRECTORY}/10-a")
        self.add("20-in-the-hooks-directory")
        for guest in (".", "..", ""):
            with self.subTest(guest=guest):
                self.assert_silent_success(self.dispatch(guest, *PREPARE))
                self.assertEqual(self.recorded(), [f"{DIRECTORY}/10-a"])

    def test_a_guest_with_a_slash_in_its_name_has_no_subdirectory(self):
        self.add(f"{DIRECTORY}/10-a")
        self.add(f"{DIRECTORY}/web/20-b")
        self.add(f"{DIRECTORY}/web/sub/20-c")
        self.add("elsewhere/20-d")
        for guest in ("web/", "web/sub", "./web", "../elsewhere", f"{self.hooks}/elsewhere", "/"):
            with self.subTest(guest=guest):
                self.assert_silent_success(self.dispatch(guest, *PREPARE))
                self.assertEqual(self.recorded(), [f"{DIRECTORY}/10-a"])


class GuestNames(DispatcherTestCase):
    """No name of a guest is special, but for those without a subdirectory (see above)."""

    RECORD = """printf '%s\\0' "${0##*/}" "$@" >>RECORD"""

    def setUp(self):
        super().setUp()
        self.add(f"{DIRECTORY}/10-all", self.RECORD)

    def assert_runs_for(self, guest):
        """The scripts for all guests and for this guest run, and get its name byte for byte."""
        self.add(f"{DIRECTORY}/".encode() + guest + b"/20-own", self.RECORD)
        self.record.write_bytes(b"")
        self.assert_silent_success(self.dispatch(guest, *PREPARE))
        phase = b"\0prepare\0begin\0-\0"
        self.assertEqual(
            self.record.read_bytes(), b"10-all\0" + guest + phase + b"20-own\0" + guest + phase
        )

    def test_a_guest_may_have_any_name(self):
        for guest in ODD_NAMES:
            with self.subTest(guest=guest):
                self.assert_runs_for(guest)

    def test_random_names(self):
        source = random.Random(7)
        alphabet = bytes(set(range(1, 256)) - {ord("/")})
        for _ in range(100):
            guest = bytes(source.choices(alphabet, k=source.randint(1, 40)))
            if guest not in (b".", b".."):
                with self.subTest(guest=guest):
                    self.assert_runs_for(guest)

    def test_a_name_too_long_for_a_directory_is_one_without_a_subdirectory(self):
        guest = "x" * 256
        self.assert_silent_success(self.dispatch(guest, *PREPARE))
        self.assertEqual(self.record.read_text(), f"10-all\0{guest}\0prepare\0begin\0-\0")

    def test_a_guest_may_be_called_like_a_script(self):
        self.record.write_bytes(b"")
        self.assert_silent_success(self.dispatch("10-all", *PREPARE))
        self.assertEqual(self.record.read_bytes(), b"10-all\x0010-all\0prepare\0begin\0-\0")

    def test_a_guest_may_be_called_timeout(self):
        self.assert_runs_for(b"timeout")
        shutil.rmtree(self.hooks / DIRECTORY / "timeout")
        (self.hooks / DIRECTORY / "timeout").write_text("50\n")
        self.record.write_bytes(b"")
        self.assert_silent_success(self.dispatch("timeout", *PREPARE))
        self.assertEqual(self.record.read_bytes(), b"10-all\0timeout\0prepare\0begin\0-\0")

    def test_a_failure_is_one_line_whatever_the_name(self):
        self.add(f"{DIRECTORY}/10-all", "exit 3")
        for guest in ODD_NAMES:
            with self.subTest(guest=guest):
                result = self.dispatch(guest, *PREPARE)
                self.assertEqual(result.returncode, 3)
                end_of_line = r" prepare begin -: 10-all: exit status 3\n\Z"
                self.assertRegex(result.stderr, rf"\Avirt-hooks: lxc [^\n]+{end_of_line}")
                if b"\n" not in guest:
                    self.assertIn(os.fsdecode(guest), result.stderr)

    def test_every_name_reaches_syslog(self):
        with Syslog() as syslog:
            for guest in ODD_NAMES:
                self.assertEqual(self.dispatch(guest, *PREPARE).returncode, 0)
        lines = [line for line in syslog.lines if re.search(r": 10-all: done in ", line)]
        self.assertEqual(len(lines), len(ODD_NAMES))
        for line in ("lxc $(reboot) prepare", "lxc é prepare", "lxc caf\\xe9 prepare"):
            self.assertTrue(any(given.startswith(line) for given in lines), line)


class Scripts(DispatcherTestCase):
    """Point 3."""

    def test_only_names_that_start_with_a_digit_are_scripts(self):
        runs = ("0", "00-a", "10-a", "10.sh", "1", "9z", "99-README.md", "5 spaces in it", "7;x")
        others = ("a", "README", "-10-a", "_10", ".10-a", " 10-a", "a10", "٣-a", "²", "timeout")
        for name in (*runs, *others):
            self.add(f"{DIRECTORY}/{name}")
        (self.hooks / DIRECTORY / "timeout").write_text("50\n")
        self.assert_silent_success(self.dispatch())
        self.assertEqual(self.recorded(), [f"{DIRECTORY}/{name}" for name in sorted(runs)])

    def test_what_editors_and_package_managers_leave_behind_does_not_run(self):
        endings = (
            *("~", ".bak", ".orig", ".rej", ".swp", ".tmp", ".new", ".old", ".disabled"),
            *(".dpkg-new", ".dpkg-old", ".dpkg-dist", ".dpkg-tmp", ".dpkg-bak", ".dpkg-anything"),
            *(".ucf-new", ".ucf-old", ".ucf-dist", ".rpmnew", ".rpmsave", ".rpmorig"),
        )
        for ending in endings:
            path = self.add(f"{DIRECTORY}/10-a{ending}")
            with self.subTest(ending=ending):
                self.assert_silent_success(self.dispatch())
                self.assertEqual(self.recorded(), [])
            path.unlink()
            self.add(f"{DIRECTORY}/web/10-a{ending}")
        self.assert_silent_success(self.dispatch())
        self.assertEqual(self.recorded(), [])

    def test_a_name_that_only_resembles_what_is_left_behind_runs(self):
        names = [
            *("10-bak", "10-a.bak2", "10-a~b", "10-a.new.sh", "10-a.tmpl", "10-a.older"),
            *("10-old", "10-a.dpkg", "10-a.ucf", "10-a.rpmnew.sh", "10-a.rpmsave2", "10-a.BAK"),
            *("10-disabled", "10-a.swpx", "10-a.orig-1", "10-rpmnew"),
        ]
        for name in names:
            self.add(f"{DIRECTORY}/{name}")
        self.assert_silent_success(self.dispatch())
        self.assertEqual(self.recorded(), [f"{DIRECTORY}/{name}" for name in sorted(names)])

    def test_a_file_that_is_not_executable_does_not_run(self):
        self.add(f"{DIRECTORY}/10-a", mode=0o644)
        self.add(f"{DIRECTORY}/web/20-b", mode=0o600)
        self.assert_silent_success(self.dispatch())
        self.assertEqual(self.recorded(), [])

    def test_one_executable_bit_is_enough(self):
        for mode in (0o744, 0o700, 0o654, 0o645):
            with self.subTest(mode=oct(mode)):
                self.add(f"{DIRECTORY}/10-a", mode=mode)
                self.assert_silent_success(self.dispatch())
                self.assertEqual(self.recorded(), [f"{DIRECTORY}/10-a"])

    def test_only_regular_files_are_scripts(self):
        directory = self.hooks / DIRECTORY
        (directory / "10-directory").mkdir(parents=True)
        os.mkfifo(directory / "20-fifo")
        (directory / "20-fifo").chmod(0o755)
        os.mknod(directory / "30-null", 0o020755, os.makedev(1, 3))
        (directory / "40-link-to-directory").symlink_to("10-directory")
        (directory / "50-link-to-fifo").symlink_to("20-fifo")
        self.add(f"{DIRECTORY}/60-a")
        self.assert_silent_success(self.dispatch())
        self.assertEqual(self.recorded(), [f"{DIRECTORY}/60-a"])

    def test_links_are_followed(self):
        self.add("scripts/shared")
        self.add("scripts/not-executable", mode=0o644)
        self.add("scripts/10-a.bak")
        (self.hooks / DIRECTORY).mkdir()
        for name, target in (
            ("10-relative", "../scripts/shared"),
            ("20-absolute", self.hooks / "scripts/shared"),
            ("30-chain", "10-relative"),
            ("40-not-executable", "../scripts/not-executable"),
            ("50-backup", "../scripts/10-a.bak"),  # the link's name counts
            ("60-a.bak", "../scripts/shared"),
            ("without-digit", "../scripts/shared"),
        ):
            (self.hooks / DIRECTORY / name).symlink_to(target)
        self.assert_silent_success(self.dispatch())
        self.assertEqual(self.recorded(), [*["scripts/shared"] * 3, "scripts/10-a.bak"])

    def test_a_directory_of_scripts_may_be_a_link(self):
        self.add("phase/10-a")
        self.add("guest/20-b")
        (self.hooks / DIRECTORY).symlink_to("phase")
        (self.hooks / "phase/web").symlink_to("../guest")
        self.assert_silent_success(self.dispatch())
        self.assertEqual(self.recorded(), ["phase/10-a", "guest/20-b"])

    def test_all_directories_scripts_run_in_byte_order_whatever_the_locale(self):
        names = [
            *(b"1", b"10", b"10-A", b"10-Z", b"10-_", b"10-a", b"10-b", b"10.a", b"100-a", b"2-a"),
            *("10-é".encode(), "10-\ufffd".encode(), "10-\U0001f600".encode(), b"10-\xff", b"10 a"),
            *(b"9", b"99", b"10-caf\xe9", "20-я".encode(), b"20-z"),
        ]
        places = ("lxc_release_end_-.d", "lxc_release_end_crashed.d")
        places = [*places, *(f"{place}/web" for place in places)]
        for number, name in enumerate(names):
            self.add(places[number % 4].encode() + b"/" + name, """echo "${0##*/}" >>RECORD""")
        expected = [os.fsdecode(name) for name in sorted(names)]
        for locale in ("C", "POSIX", "C.UTF-8", "en_US.UTF-8", "sv_SE", None):
            environment = {**LIBVIRT, "LC_ALL": locale} if locale else {}
            with self.subTest(locale=locale):
                result = self.dispatch("web", "release", "end", "crashed", env=environment)
                self.assert_silent_success(result)
                self.assertEqual(self.recorded(), expected)

    def test_of_the_same_name_the_more_general_directory_is_first(self):
        places = [
            "lxc_release_end_-.d",
            "lxc_release_end_crashed.d",
            "lxc_release_end_-.d/web",
            "lxc_release_end_crashed.d/web",
        ]
        for place in reversed(places):
            self.add(f"{place}/10-a")
            self.add(f"{place}/20-b")
        self.assert_silent_success(self.dispatch("web", "release", "end", "crashed"))
        expected = [f"{place}/{name}" for name in ("10-a", "20-b") for place in places]
        self.assertEqual(self.recorded(), expected)


class Processes(DispatcherTestCase):
    """Point 4."""

    def test_every_script_gets_the_same_arguments(self):
        for path in (f"{DIRECTORY}/10-a", f"{DIRECTORY}/20-b"):
            self.add(path, """printf '%s\\0' "$@" >>RECORD""")
        self.assert_silent_success(self.dispatch())
        self.assertEqual(self.record.read_bytes(), b"web\0prepare\0begin\0-\0" * 2)

    def test_arguments_are_not_touched(self):
        arguments = (b"a b", b"rel*$HOME", b"", b"'\"\\", b"\xff\xfe", b"from snapshot")
        self.add(b"lxc_rel*$HOME__'\"\\_\xff\xfe_-.d/10-a", """printf '%s\\0' "$@" >>RECORD""")
        self.assert_silent_success(self.dispatch(*arguments))
        self.assertEqual(self.record.read_bytes(), b"\0".join(arguments) + b"\0")

    def test_the_environment_is_the_same_byte_for_byte(self):
        self.add(f"{DIRECTORY}/10-a", "/bin/cat /proc/$$/environ >RECORD")
        odd = {b"Z": b"last", b"A": b"", b"EQ": b"a=b=c", b"NL": b"a\nb", b"BYTES": b"\xff\xfe"}
        for name, environment in (
            ("env -i", {}),
            ("libvirt's", LIBVIRT),
            ("no locale", {"PATH": LIBVIRT["PATH"], "HOME": "/"}),
            ("LANG", {"LANG": "C"}),
            ("LC_CTYPE", {"LC_CTYPE": "POSIX"}),
            ("UTF-8", {"LC_ALL": "C.UTF-8"}),
            ("for Python", {"PYTHONPATH": "/nowhere", "PYTHONHOME": "/nowhere"}),
            ("odd", odd),
            ("big", {f"V{n}": "x" * 1000 for n in range(200)}),
        ):
            with self.subTest(environment=name):
                given = b"".join(
                    os.fsencode(key) + b"=" + os.fsencode(value) + b"\0"
                    for key, value in environment.items()
                )
                self.assert_silent_success(self.dispatch(env=environment))
                self.assertEqual(self.record.read_bytes(), given)

    def test_python_settings_of_the_caller_do_not_reach_the_dispatcher(self):
        (self.directory / "syslog.py").write_text("raise SystemExit('not the real one')\n")
        self.add(f"{DIRECTORY}/10-a")
        self.assert_silent_success(
            self.dispatch(env={**LIBVIRT, "PYTHONPATH": self.directory}, cwd=self.directory)
        )
        self.assertEqual(self.recorded(), [f"{DIRECTORY}/10-a"])

    def test_each_script_reads_the_whole_xml_however_much_an_earlier_one_read(self):
        xml = b"<domain>\0\xff" + random.Random(1).randbytes(40 << 20) + b"</domain>"
        for name, commands in (
            ("10-nothing", "echo nothing >>RECORD"),
            ("20-closes", "exec <&-; echo closed >>RECORD"),
            ("30-a-bit", "head -c 8 >>RECORD; echo >>RECORD"),
            ("40-all", "sha256sum >>RECORD"),
            ("50-a-bit", "head -c 8 >>RECORD; echo >>RECORD"),
            ("60-all-bytes-at-once", "cat | sha256sum >>RECORD"),
        ):
            self.add(f"{DIRECTORY}/{name}", commands)
        self.assert_silent_success(self.dispatch(xml=xml))
        digest = f"{hashlib.sha256(xml).hexdigest()}  -"
        expected = ["nothing", "closed", "<domain>", digest, "<domain>", digest]
        self.assertEqual(self.recorded(), expected)

    def test_no_xml_at_all_is_fine(self):
        self.add(f"{DIRECTORY}/10-a", "wc -c >>RECORD")
        self.assert_silent_success(self.dispatch(xml=b""))
        self.assert_silent_success(self.dispatch(stdin=subprocess.DEVNULL))
        self.assertEqual(self.recorded(), ["0", "0"])

    def test_each_script_is_a_process_in_a_group_of_its_own(self):
        for name in ("10-a", "20-b"):
            self.add(f"{DIRECTORY}/{name}", "cut -d' ' -f1,4,5 /proc/$$/stat >>RECORD")
        process = self.start()
        self.assertEqual(self.finish(process, XML).returncode, 0)
        (one, parent, group), (two, other_parent, other_group) = (
            map(int, line.split()) for line in self.recorded()
        )
        self.assertEqual((group, other_group), (one, two))
        self.assertNotEqual(one, two)
        self.assertEqual((parent, other_parent), (process.pid, process.pid))

    def test_signals_that_python_ignores_are_at_their_default(self):
        self.add(f"{DIRECTORY}/10-a", "exec grep -E '^Sig(Ign|Blk):' /proc/self/status >RECORD")

        def ignore():
            for number in (signal.SIGPIPE, signal.SIGXFSZ):
                signal.signal(number, signal.SIG_IGN)

        for caller, options in (
            ("default", {}),
            ("ignores", {"preexec_fn": ignore, "restore_signals": False}),
        ):
            with self.subTest(caller=caller):
                self.assert_silent_success(self.dispatch(**options))
                masks = dict(line.split() for line in self.recorded())
                self.assertEqual(int(masks["SigBlk:"], 16), 0)
                for number in (signal.SIGPIPE, signal.SIGXFSZ):
                    ignored = int(masks["SigIgn:"], 16) >> (number - 1) & 1
                    self.assertEqual(ignored, 0, number)

    def test_a_script_inherits_no_descriptor_but_the_standard_three(self):
        commands = """
import os
for descriptor in range(256):
    try:
        os.fstat(descriptor)
    except OSError:
        continue
    with open("RECORD", "a") as file:
        file.write(f"{descriptor}\\n")"""
        for driver, directory in (("lxc", DIRECTORY), ("qemu", "qemu_restore_begin_-.d")):
            for name in ("10-a", "20-b"):
                self.add(f"{directory}/{name}", commands, shebang="#!/usr/bin/python3 -IS")
            if driver == "qemu":
                install_dispatcher(self.hooks / driver)
            phase = PREPARE if driver == "lxc" else ("restore", "begin", "-")
            with self.subTest(driver=driver):
                self.assert_silent_success(self.dispatch("web", *phase, name=driver))
                self.assertEqual(self.recorded(), ["0", "1", "2"] * 2)

    def test_many_scripts_need_no_more_descriptors_than_one(self):
        for number in range(60):
            self.add(f"{DIRECTORY}/{number:02}-a")

        def few_descriptors():
            resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))

        self.assert_silent_success(self.dispatch(preexec_fn=few_descriptors))
        self.assertEqual(len(self.recorded()), 60)

    def test_directory_and_umask_are_the_callers(self):
        self.add(f"{DIRECTORY}/10-a", "pwd >>RECORD; umask >>RECORD")
        place = self.directory / "some where"
        place.mkdir()
        old = os.umask(0o027)
        try:
            self.assert_silent_success(self.dispatch(cwd=place))
        finally:
            os.umask(old)
        self.assertEqual(self.recorded(), [str(place), "0027"])

    def test_it_works_where_the_caller_has_closed_a_standard_descriptor(self):
        self.add(f"{DIRECTORY}/10-a")
        self.add(f"{DIRECTORY}/20-b", "cat >/dev/null; echo out; echo err >&2; echo b >>RECORD")
        for closed in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
            with self.subTest(closed=closed):
                command = f'"$0" "$@" {closed}'
                result = subprocess.run(
                    ["sh", "-c", command, str(self.hooks / "lxc"), "web", *PREPARE],
                    input=XML,
                    capture_output=True,
                    timeout=60,
                )
                self.assertEqual(result.returncode, 0, result.stderr)
                self.assertEqual(self.recorded(), [f"{DIRECTORY}/10-a", "b"])

    def test_a_script_may_be_a_program(self):
        (self.hooks / DIRECTORY).mkdir()
        shutil.copy("/bin/busybox", self.hooks / DIRECTORY / "10-a")
        result = self.dispatch("echo", *PREPARE)
        # as "10-a", which is no applet, busybox fails; that it says so shows that it ran
        self.assertIn("10-a: applet not found", result.stderr)
        self.assertEqual(result.returncode, 127)


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


class FailStop(DispatcherTestCase):
    """Point 5."""

    def assert_ends_the_run(self, commands, status, reason):
        self.add(f"{DIRECTORY}/10-a")
        self.add(f"{DIRECTORY}/20-b", commands)
        self.add(f"{DIRECTORY}/30-c")
        self.add(f"{DIRECTORY}/web/15-own")
        self.add(f"{DIRECTORY}/web/40-own")
        result = self.dispatch()
        self.assertEqual((result.returncode, result.stdout), (status, ""))
        self.assertEqual(result.stderr, f"virt-hooks: lxc web prepare begin -: 20-b: {reason}\n")
        self.assertEqual(self.recorded(), [f"{DIRECTORY}/10-a", f"{DIRECTORY}/web/15-own"])

    def test_the_first_script_that_fails_ends_the_run_with_its_exit_status(self):
        for status in (1, 2, 3, 77, 126, 127, 128, 143, 255):
            with self.subTest(status=status):
                self.assert_ends_the_run(f"exit {status}", status, f"exit status {status}")

    def test_a_script_killed_by_signal_n_ends_the_run_with_128_and_n(self):
        for number in (1, 2, 9, 10, 13, 14, 15, 25, 34, 64):
            with self.subTest(signal=number):
                commands = f"ulimit -c 0; kill -{number} $$; sleep 50"
                self.assert_ends_the_run(commands, 128 + number, f"killed by signal {number}")

    def test_a_guests_own_script_ends_the_run_too(self):
        self.add(f"{DIRECTORY}/web/10-own", "exit 4")
        self.add(f"{DIRECTORY}/20-b")
        result = self.dispatch()
        self.assertEqual(result.returncode, 4)
        self.assertEqual(
            result.stderr, "virt-hooks: lxc web prepare begin -: web/10-own: exit status 4\n"
        )
        self.assertEqual(self.recorded(), [])

    def test_output_alone_is_no_failure(self):
        self.add(f"{DIRECTORY}/10-a", "echo warning >&2")
        self.add(f"{DIRECTORY}/20-b")
        result = self.dispatch()
        self.assertEqual((result.returncode, result.stderr), (0, "warning\n"))
        self.assertEqual(self.recorded(), [f"{DIRECTORY}/20-b"])

    def test_a_script_that_closes_its_output_is_waited_for(self):
        self.add(f"{DIRECTORY}/10-a", "exec >&- 2>&-; sleep 0.3; echo a >>RECORD; exit 5")
        result = self.dispatch()
        self.assertEqual((result.returncode, self.recorded()), (5, ["a"]))

    def test_an_xml_that_cannot_be_read_is_a_failure(self):
        self.add(f"{DIRECTORY}/10-a")
        with open("/proc/self/mem", "rb") as unreadable:  # at 0, where no process has memory
            result = self.dispatch(stdin=unreadable)
        self.assert_refused(result, "stdin", os.strerror(errno.EIO))


class Filters(DispatcherTestCase):
    """Point 6."""

    def setUp(self):
        super().setUp()
        install_dispatcher(self.hooks / "qemu")

    def filter(self, operation, *scripts, xml=b"<a/>\n", **options):
        """Run the scripts with these commands as qemu's of a phase."""
        directory = self.hooks / f"qemu_{operation}_begin_-.d"
        shutil.rmtree(directory, ignore_errors=True)
        for number, commands in enumerate(scripts, 1):
            self.add(f"{directory.name}/{number}0-a", commands)
        return self.dispatch("web", operation, "begin", "-", name="qemu", xml=xml, **options)

    def test_what_a_script_prints_unless_empty_is_the_next_ones_stdin(self):
        cases = (
            ("three", ["sed s/a/b/", "sed s/b/cc/", "tr c d"], b"<dd/>\n"),
            ("the first prints nothing", ["cat >/dev/null", "sed s/a/b/", "sed s/b/c/"], b"<c/>\n"),
            ("the second prints nothing", ["sed s/a/b/", ":", "sed s/b/c/"], b"<c/>\n"),
            ("the last prints nothing", ["sed s/a/b/", "sed s/b/c/", ":"], b"<c/>\n"),
            ("one alone", ["sed s/a/b/"], b"<b/>\n"),
            ("one that ignores stdin", ["sed s/a/b/", "echo '<new/>'"], b"<new/>\n"),
            ("one that reads a bit", ["head -c 3; echo '>'", "cat"], b"<a/>\n"),
            ("none prints", [":", "cat >/dev/null", ":"], b""),
            ("empty chain", [], b""),
        )
        for operation in ("migrate", "restore"):
            for name, scripts, expected in cases:
                with self.subTest(operation=operation, case=name):
                    result = self.filter(operation, *scripts)
                    self.assertEqual((result.returncode, result.stderr), (0, ""))
                    self.assertEqual(result.stdout, expected.decode())

    def test_every_byte_of_a_big_xml_passes(self):
        xml = random.Random(2).randbytes(40 << 20)
        result = self.filter("restore", "cat", ":", "cat", xml=xml)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertEqual(len(result.stdout), len(os.fsdecode(xml)))
        self.assertTrue(os.fsencode(result.stdout) == xml)

    def test_a_run_that_fails_prints_nothing_on_stdout(self):
        for name, scripts, status in (
            ("the last fails", ["sed s/a/b/", "cat; exit 3"], 3),
            ("the first fails", ["cat; exit 4", "cat"], 4),
            ("killed", ["cat", "cat; kill -9 $$"], 137),
            ("only one", ["echo '<half>'; exit 5"], 5),
        ):
            for operation in ("migrate", "restore"):
                with self.subTest(case=name, operation=operation):
                    result = self.filter(operation, *scripts)
                    self.assertEqual((result.returncode, result.stdout), (status, ""))

    def test_a_refused_run_prints_nothing_on_stdout(self):
        self.add("qemu_restore_begin_-.d/web/20-b", "cat", mode=0o777)
        self.add("qemu_restore_begin_-.d/10-a", "cat")
        result = self.dispatch("web", "restore", "begin", "-", name="qemu")
        self.assertEqual((result.returncode, result.stdout), (1, ""))

    def test_output_that_cannot_be_written_is_a_failure(self):
        with open("/dev/full", "wb") as full:
            result = self.filter("restore", "cat", stdout=full)
        self.assertEqual(result.returncode, 1)
        self.assertRegex(result.stderr, r"\Avirt-hooks: qemu web restore begin -: .*No space")

    def test_stderr_is_no_part_of_the_xml(self):
        result = self.filter("restore", "echo warning >&2; cat")
        self.assertEqual((result.stdout, result.stderr), ("<a/>\n", "warning\n"))

    def test_the_guests_own_scripts_are_part_of_the_chain(self):
        self.add("qemu_restore_begin_-.d/web/15-own", "sed s/b/c/")
        self.add("qemu_restore_begin_-.d/10-a", "sed s/a/b/")
        self.add("qemu_restore_begin_-.d/20-b", "sed s/c/d/")
        result = self.dispatch("web", "restore", "begin", "-", name="qemu", xml=b"<a/>")
        self.assertEqual((result.returncode, result.stdout), (0, "<d/>"))

    def test_other_phases_are_no_filters(self):
        self.add(f"{DIRECTORY}/10-a", "echo one")
        self.add(f"{DIRECTORY}/20-b", "cat; echo two; exit 3")
        for guest in ("web", "migrate", "restore"):
            with self.subTest(guest=guest):
                result = self.dispatch(guest, *PREPARE, xml=b"<a/>\n")
                self.assertEqual((result.returncode, result.stdout), (3, "one\n<a/>\ntwo\n"))


class Refusals(DispatcherTestCase):
    """Point 7."""

    def setUp(self):
        super().setUp()
        self.add(f"{DIRECTORY}/10-a")
        self.add(f"{DIRECTORY}/web/20-b")
        self.add("lib/shared")
        (self.hooks / DIRECTORY / "30-link").symlink_to("../lib/shared")
        self.all = [f"{DIRECTORY}/10-a", f"{DIRECTORY}/web/20-b", "lib/shared"]
        # each could be replaced, or replace what runs, by whom it belongs to or who can write it
        self.paths = {
            "script": f"{DIRECTORY}/10-a",
            "guest's script": f"{DIRECTORY}/web/20-b",
            "phase directory": DIRECTORY,
            "guest's subdirectory": f"{DIRECTORY}/web",
            "hooks directory": ".",
            "link's target": "lib/shared",
            "directory of a link's target": "lib",
        }

    def assert_all_run(self, **options):
        self.assert_silent_success(self.dispatch(**options))
        self.assertEqual(self.recorded(), self.all)

    def test_what_belongs_to_somebody_else_is_refused(self):
        for name, path in self.paths.items():
            for owner in (OTHER, 1, 65534):
                with self.subTest(path=name, owner=owner):
                    path = self.hooks / path
                    os.chown(path, owner, 0)
                    named = self.hooks / DIRECTORY / "30-link" if name == "link's target" else path
                    self.assert_refused(self.dispatch(), named, f"user {owner}")
                    os.chown(path, 0, 0)
        self.assert_all_run()

    def test_what_group_or_others_can_write_is_refused(self):
        for name, path in self.paths.items():
            for mode in (0o775, 0o757, 0o777, 0o1777, 0o722, 0o2775):
                with self.subTest(path=name, mode=oct(mode)):
                    path = self.hooks / path
                    path.chmod(mode)
                    named = self.hooks / DIRECTORY / "30-link" if name == "link's target" else path
                    self.assert_refused(self.dispatch(), named, f"{mode:04o}")
                    path.chmod(0o755)
        self.assert_all_run()

    def test_a_directory_between_a_link_and_its_target_is_looked_at_too(self):
        between = self.directory / "between"
        between.mkdir()
        (between / "link").symlink_to(self.hooks / "lib/shared")
        link = self.hooks / DIRECTORY / "30-link"
        link.unlink()
        link.symlink_to(between / "link")
        self.assert_all_run()
        between.chmod(0o777)
        self.assert_refused(self.dispatch(), between, "0777")

    def test_the_directory_above_a_guests_own_scripts_is_looked_at_too(self):
        directory = self.hooks / "lxc_start_begin_-.d"
        self.add("lxc_start_begin_-.d/web/10-a")
        directory.chmod(0o775)
        self.assert_refused(self.dispatch("web", "start", "begin", "-"), f"{directory} ", "0775")

    def test_of_several_phase_directories_each_is_looked_at(self):
        for place in ("lxc_release_end_-.d", "lxc_release_end_crashed.d"):
            self.add(f"{place}/10-a")
            self.add(f"{place}/web/10-a")
        for place in ("-.d", "crashed.d", "-.d/web", "crashed.d/web", "-.d/10-a", "crashed.d/10-a"):
            with self.subTest(place=place):
                path = self.hooks / f"lxc_release_end_{place}"
                path.chmod(0o775)
                self.assert_refused(self.dispatch("web", "release", "end", "crashed"), path)
                path.chmod(0o755)

    def test_group_may_be_any_that_cannot_write(self):
        for path in self.paths.values():
            os.chown(self.hooks / path, 0, OTHER)
            (self.hooks / path).chmod(0o755)
        self.assert_all_run()

    def test_what_belongs_to_the_caller_is_safe_for_the_caller(self):
        self.directory.chmod(0o755)
        self.record.write_bytes(b"")
        os.chown(self.record, OTHER, OTHER)
        for path in self.paths.values():
            os.chown(self.hooks / path, OTHER, OTHER)
        as_other = {"user": OTHER, "group": OTHER, "extra_groups": []}
        self.assert_silent_success(self.dispatch(**as_other))
        self.assertEqual(self.record.read_text().split("\n")[:-1], self.all)
        self.record.unlink()
        os.chown(self.hooks / DIRECTORY, 1, 0)
        self.assert_refused(self.dispatch(**as_other), self.hooks / DIRECTORY, "user 1")

    def test_a_script_that_cannot_run_is_not_looked_at(self):
        self.add(f"{DIRECTORY}/15-a.bak", mode=0o777)
        self.add(f"{DIRECTORY}/15-not-executable", mode=0o666)
        self.add(f"{DIRECTORY}/README", mode=0o777)
        self.assert_all_run()

    def test_a_link_that_leads_nowhere_is_refused(self):
        for target in ("nowhere", "/nowhere/10-a", "15-link", "../lib/shared/x"):
            with self.subTest(target=target):
                link = self.hooks / DIRECTORY / "15-link"
                link.symlink_to(target)
                self.assert_refused(self.dispatch(), link)
                link.unlink()
        (self.hooks / DIRECTORY / "README").symlink_to("nowhere")
        (self.hooks / DIRECTORY / "15-a.bak").symlink_to("nowhere")
        self.assert_all_run()

    def test_a_script_of_which_nobody_can_tell_what_it_is_keeps_all_from_running(self):
        """Were it left out, what depends on it would run: a deletion without its archive."""
        archive = self.add(f"{DIRECTORY}/10-archive")
        self.add(f"{DIRECTORY}/30-post-rm-rf")
        for error, reason in (
            ("EIO", "Input/output error"),
            ("ESTALE", "Stale file handle"),
            ("EACCES", "Permission denied"),
            ("ENOMEM", "Cannot allocate memory"),
        ):
            with self.subTest(error):
                inject = f"inject=?newfstatat,?statx,?stat:error={error}"
                command = ["strace", "-qq", "-o", "/dev/null", "-P", archive, "-e", inject]
                command += [self.hooks / "lxc", "web", *PREPARE]
                result = subprocess.run(
                    command, env=LIBVIRT, stdin=subprocess.DEVNULL, capture_output=True, text=True
                )
                self.assert_refused(result, f"{archive}: {reason}")

    def test_a_phase_argument_with_a_slash_is_refused(self):
        self.add("elsewhere/10-a")
        for phase in (
            ("prepare/begin", "begin", "-"),
            ("prepare", "begin", "/"),
            ("prepare", "begin", "x/../../elsewhere"),
            ("prepare", "/etc", "-"),
            ("../lxc_prepare", "begin", "-"),
            ("prepare", "begin", "-/"),
            ("none/such",),
        ):
            with self.subTest(phase=phase):
                argument = next(argument for argument in phase if "/" in argument)
                self.assert_refused(self.dispatch("web", *phase), repr(argument), "slash")

    def assert_does_not_start(self, *parts):
        """The script 20-b does not start, those after it do not run, and the message says why."""
        shutil.rmtree(self.hooks / DIRECTORY / "web")
        result = self.dispatch()
        self.assertEqual((result.returncode, result.stdout), (1, ""), result.stderr)
        self.assertEqual(self.recorded(), [f"{DIRECTORY}/10-a"])
        prefix = "virt-hooks: lxc web prepare begin -: 20-b: "
        self.assertRegex(result.stderr, rf"\A{prefix}[^\n]+\n\Z")
        for part in parts:
            self.assertIn(part, result.stderr)
        return result.stderr

    def test_a_missing_interpreter_is_named(self):
        self.add(f"{DIRECTORY}/20-b", shebang="#!/usr/bin/no-such-python -I")
        self.assert_does_not_start("/usr/bin/no-such-python", "No such file")

    def test_an_interpreter_with_a_carriage_return_is_shown_with_it(self):
        self.add(f"{DIRECTORY}/20-b", shebang="#!/bin/sh\r")
        self.assert_does_not_start("/bin/sh\\r")

    def test_a_file_without_an_interpreter_is_refused(self):
        self.add(f"{DIRECTORY}/20-b", shebang="echo run")
        self.assert_does_not_start("#!")

    def test_an_empty_file_is_refused(self):
        self.add(f"{DIRECTORY}/20-b").write_bytes(b"")
        self.assert_does_not_start("#!")

    def test_binary_rubbish_is_refused(self):
        self.add(f"{DIRECTORY}/20-b").write_bytes(bytes(range(256)) * 10)
        self.assert_does_not_start("Exec format error")

    def test_where_a_mount_forbids_programs_it_is_not_the_interpreter_that_is_blamed(self):
        mount = self.directory / "noexec"
        mount.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "noexec,mode=0755", "tests", mount]
        subprocess.run(command, check=True)
        shutil.copy(self.add("lib/b"), mount)
        (self.hooks / DIRECTORY / "20-b").symlink_to(mount / "b")
        message = self.assert_does_not_start("Permission denied")
        self.assertNotIn("interpreter", message)

    def test_where_a_script_is_being_written_it_is_not_the_interpreter_that_is_blamed(self):
        with open(self.add(f"{DIRECTORY}/20-b"), "ab"):
            message = self.assert_does_not_start("Text file busy")
        self.assertNotIn("interpreter", message)


class TimeLimit(DispatcherTestCase):
    """Point 8."""

    def limit(self, text, directory=DIRECTORY):
        path = self.hooks / directory / "timeout"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode("latin-1"))
        return path

    def test_past_it_the_group_gets_sigterm_and_5_s_later_sigkill_and_the_run_fails(self):
        # tidies: whoever heeds SIGTERM has time to; left: the process whose id is recorded is gone
        wait = "while :; do sleep 0.1; done"
        member = "echo $$ >>RECORD; exec sleep 300"
        started = "until [ -s RECORD ]; do sleep 0.05; done"
        cases = {
            # name: (exit status, at least so many seconds, what is recorded, commands)
            "heeds": (143, 2, "left", f"{member}"),
            "exits-7": (7, 2, [], f"trap 'exit 7' TERM; {wait}"),
            "exits-0": (143, 2, [], f"trap 'exit 0' TERM; {wait}"),
            "tidies": (3, 3, ["tidied"],
                       f"trap 'sleep 1; echo tidied >>RECORD; exit 3' TERM; {wait}"),
            "ignores": (137, 7, "left", f"trap '' TERM; {member}"),
            "floods": (137, 7, "left", "trap '' TERM; echo $$ >>RECORD; exec yes >&2"),
            "member-tidies": (143, 3, ["told", "tidied"], """sh -c '
                trap "sleep 1; echo tidied >>RECORD; exit" TERM
                echo told >>RECORD
                while :; do sleep 0.1; done' &
                until [ -s RECORD ]; do sleep 0.05; done; exec sleep 300"""),
            "member-ignores": (143, 7, "left",
                               f"""sh -c 'trap "" TERM; {member}' & {started}; exec sleep 300"""),
            "member-holds-nothing": (143, 7, "left", f"""sh -c 'trap "" TERM; {member}' >&- 2>&- &
                {started}; exec sleep 300"""),
        }  # fmt: skip
        runs = {}
        for name, (_status, _seconds, _recorded, commands) in cases.items():
            # all at once, since each takes its time
            directory = f"{name}_prepare_begin_-.d"
            self.record = self.directory / name
            self.add(f"{directory}/10-a", commands)
            self.add(f"{directory}/20-b")
            self.limit("2\n", directory)
            install_dispatcher(self.hooks / name)
            process = self.start("web", *PREPARE, name=name, stdin=subprocess.DEVNULL)
            runs[name] = process, time.monotonic()
        for name, (status, seconds, recorded, _commands) in cases.items():
            with self.subTest(case=name):
                self.record = self.directory / name
                process, began = runs[name]
                result = self.finish(process)
                self.assertEqual((result.returncode, result.stdout), (status, ""))
                self.assertGreaterEqual(time.monotonic() - began, seconds)
                line = f"virt-hooks: {name} web prepare begin -: 10-a: time limit of 2 s exceeded\n"
                self.assertEqual(result.stderr.splitlines(True)[-1], line)
                self.assertEqual(result.stderr.count("virt-hooks:"), 1)
                if recorded == "left":
                    pid = self.process_recorded()
                    self.wait_for(lambda pid=pid: not is_alive(pid), "nothing is left")
                else:
                    self.assertEqual(self.recorded(), recorded)

    def test_each_script_of_the_directory_and_its_guest_subdirectories_has_the_whole_limit(self):
        self.limit("2\n")
        for path in ("10-a", "20-b", "web/15-own"):
            self.add(f"{DIRECTORY}/{path}", "sleep 0.8; echo done >>RECORD")
        self.assert_silent_success(self.dispatch())
        self.assertEqual(self.recorded(), ["done"] * 3)

    def test_it_holds_for_a_guests_own_scripts(self):
        self.limit("0.2")
        self.add(f"{DIRECTORY}/web/10-own", "exec sleep 50")
        result = self.dispatch()
        self.assertEqual(result.returncode, 143)
        self.assertIn("web/10-own: time limit of 0.2 s exceeded\n", result.stderr)

    def test_it_holds_for_its_own_phase_directory_alone(self):
        self.limit("1.5", "lxc_release_end_-.d")
        self.add("lxc_release_end_-.d/10-a")
        self.add("lxc_release_end_crashed.d/20-b", "sleep 1.8; echo b >>RECORD")
        self.add("lxc_release_end_crashed.d/web/30-c", "echo c >>RECORD")
        self.assert_silent_success(self.dispatch("web", "release", "end", "crashed"))
        self.assertEqual(self.recorded(), ["lxc_release_end_-.d/10-a", "b", "c"])

    def test_a_guests_subdirectory_has_no_limit_of_its_own(self):
        self.add(f"{DIRECTORY}/web/10-a")
        self.limit("rubbish", f"{DIRECTORY}/web")
        self.assert_silent_success(self.dispatch())
        self.assertEqual(self.recorded(), [f"{DIRECTORY}/web/10-a"])

    def test_it_ends_a_filter_phase_without_output(self):
        self.limit("0.3", "lxc_restore_begin_-.d")
        self.add("lxc_restore_begin_-.d/10-a", "cat; exec sleep 50")
        result = self.dispatch("web", "restore", "begin", "-")
        self.assertEqual((result.returncode, result.stdout), (143, ""))

    def test_seconds_may_be_any_number_above_0(self):
        self.add(f"{DIRECTORY}/10-a")
        for text in ("50", "50\n", " 50 \n\n", "50.5\n", "050", "99999999", "50\r\n"):
            with self.subTest(text=text):
                self.limit(text)
                self.assert_silent_success(self.dispatch())
                self.assertEqual(self.recorded(), [f"{DIRECTORY}/10-a"])

    def test_what_is_no_number_of_seconds_is_refused_before_anything_runs(self):
        self.add(f"{DIRECTORY}/10-a")
        for text in (
            *("", "\n", "abc", "0", "0.0", "-1", "1s", "5 m", "1,5", "10 20", "10\n20\n", "nan"),
            *("inf", "-inf", "1e400", "0x10", "\xff", "50 # seconds", "=5", "1:00", "\0", "1e9"),
            "9" * 200,
        ):
            with self.subTest(text=text):
                path = self.limit(text)
                self.assert_refused(self.dispatch(), path, "seconds")

    def test_a_bad_limit_of_a_later_script_keeps_the_earlier_from_running(self):
        self.add("lxc_release_end_-.d/10-a")
        self.add("lxc_release_end_crashed.d/20-b")
        path = self.limit("soon", "lxc_release_end_crashed.d")
        self.assert_refused(self.dispatch("web", "release", "end", "crashed"), path, "'soon'")

    def test_a_link_to_a_limit_that_leads_nowhere_is_refused(self):
        self.add(f"{DIRECTORY}/10-a")
        path = self.hooks / DIRECTORY / "timeout"
        path.symlink_to("nowhere")
        self.assert_refused(self.dispatch(), path)


class Copies(DispatcherTestCase):
    """A script of the dispatcher's own interpreter runs in a copy of it, which nobody can tell."""

    OWN, FRESH = "#!/usr/bin/python3 -IS", "#!/usr/bin/python3 -ISB"  # the other is started anew
    PROBE = """
import os, resource, signal, sys
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
for key in ("Name", "Umask", "SigBlk", "SigCgt", "Threads", "CapEff", "NoNewPrivs"):
    print(key, status[key])
print("ignored", int(status["SigIgn"], 16) & ~(3 << 31))  # signals 32 and 33 are glibc's own
print("group", os.getpgrp() == os.getpid(), os.getsid(0) == os.getsid(os.getppid()))
print("environ", sorted(os.environb.items()), open("/proc/self/environ", "rb").read())
print("arguments", sys.argv[1:], os.path.basename(sys.argv[0]), __file__ == sys.argv[0])
print("name", __name__, __doc__, sorted(globals().keys() & {"main", "Failure", "copy", "script"}))
print("python", sys.path, sys.flags.isolated, sys.flags.no_site, sys.executable, sys.exc_info())
print("open", [fd for fd in range(200) if os.path.exists(f"/proc/self/fd/{fd}")], os.getcwd())
for stream in (sys.stdin, sys.stdout, sys.stderr):
    print(stream.fileno(), stream.encoding, stream.errors, stream.line_buffering)
print("first", sys.stdin.readline(), sys.stdin.seekable(), sys.stdin.seek(0), sys.stdin.read())
print([signal.getsignal(n) for n in (signal.SIGINT, signal.SIGPIPE, signal.SIGTERM)])
print("limits", resource.getrlimit(resource.RLIMIT_NOFILE), os.nice(0))
"""

    def both(self, commands, xml=XML, **options):
        """What the dispatcher does with a script that it copies itself for, and one it starts."""
        results = []
        for shebang in (self.OWN, self.FRESH):
            self.add(f"{DIRECTORY}/10-a", commands, shebang=shebang)
            result = self.dispatch(xml=xml, **options)
            results.append((result.returncode, result.stdout, result.stderr, self.recorded()))
        return results

    def test_it_is_a_copy(self):
        commands = "import os, sys; sys.stderr.write(open('/proc/self/cmdline').read())"
        copied, started = self.both(commands)
        self.assertIn(f"{self.hooks}/lxc", copied[2])
        self.assertNotIn(f"{self.hooks}/lxc\0", started[2])

    def test_it_has_all_that_a_new_process_has_and_nothing_else(self):
        for environment in (LIBVIRT, {}, {"LANG": "C.UTF-8", "X": "y"}, {"LC_CTYPE": "POSIX"}):
            for options in ({}, {"cwd": "/"}, {"stdin": subprocess.DEVNULL}):
                with self.subTest(environment=environment, options=options):
                    copied, started = self.both(self.PROBE, env=environment, **options)
                    self.assertEqual(copied[0], 0, copied[2])
                    self.assertEqual(copied[1].splitlines(), started[1].splitlines())
                    self.assertEqual(copied[2:], started[2:])

    def test_it_ends_as_a_new_process_does(self):
        for commands in (
            "pass",
            "import sys; sys.exit(7)",
            "import sys; sys.exit()",
            "import sys; sys.exit('what went wrong')",
            "raise SystemExit(300)",
            "import os; os._exit(9)",
            "import os; os.kill(os.getpid(), 9)",
            "import os; os.kill(os.getpid(), 15)",
            "import atexit; atexit.register(print, 'at exit'); print('before')",
            "import sys; sys.stdout.write('no end of line'); sys.stderr.write('nor here')",
            "import threading; threading.Timer(0.2, lambda: print('thread')).start()",
            "import os; os.setsid() if os.getpgrp() != os.getpid() else None; print('session')",
            "import os; os.close(1); os.close(2)",
            "x = 'é'; import sys; sys.stdout.buffer.write(x.encode())",
            "import syslog; syslog.openlog('another'); syslog.syslog('text')",
        ):
            with self.subTest(commands):
                copied, started = self.both(commands)
                self.assertEqual(copied, started)

    def test_an_error_in_it_is_shown_as_python_shows_it(self):
        for commands, shown in (
            ("x = 1/0", "ZeroDivisionError: division by zero"),
            ("def f(:", "SyntaxError: invalid syntax"),
            ("import nowhere", "ModuleNotFoundError: No module named 'nowhere'"),
            ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ):
            with self.subTest(commands):
                copied, started = self.both(commands)
                self.assertEqual(copied[0], started[0])
                for result in (copied, started):
                    self.assertIn(f"{shown}\n", result[2])
                    self.assertIn(f'File "{self.hooks}/{DIRECTORY}/10-a", line 2', result[2])
                    self.assertNotIn("During handling", result[2])
                self.assertEqual(copied[2], started[2])

    def test_a_later_script_is_run_by_the_dispatcher_and_not_by_the_copy(self):
        self.add(f"{DIRECTORY}/10-a", "pass", shebang=self.OWN)
        self.add(f"{DIRECTORY}/20-b", "import os; print(os.getppid())", shebang=self.OWN)
        self.add(f"{DIRECTORY}/30-c", "echo $PPID")
        process = self.start()
        self.assertEqual(self.finish(process, XML).stdout, f"{process.pid}\n" * 2)

    def test_at_once_past_its_time_limit_it_is_ended(self):
        self.add(f"{DIRECTORY}/10-a", "import time; time.sleep(50)", shebang=self.OWN)
        (self.hooks / DIRECTORY / "timeout").write_text("0.0001")
        result = self.dispatch()
        self.assertEqual(result.returncode, 143)
        self.assertEqual(result.stderr.count("\n"), 1)

    def test_a_script_runs_as_it_now_is_whatever_its_size_and_its_time(self):
        for number in (1, 2, 1):
            path = f"{DIRECTORY}/10-a"
            self.add(path, f"import sys; sys.stderr.write('{number}')", shebang=self.OWN)
            os.utime(self.hooks / path, (1, 1))
            for _ in range(2):
                self.assertEqual(self.dispatch().stderr, f"{number}")

    def test_what_is_kept_of_its_code_is_used_and_only_root_can_write_it(self):
        self.add(f"{DIRECTORY}/10-a", "pass", shebang=self.OWN)
        shutil.rmtree(KEPT, ignore_errors=True)
        old = os.umask(0)
        self.addCleanup(os.umask, old)
        self.assert_silent_success(self.dispatch())
        os.umask(old)
        status = os.stat(KEPT)
        self.assertEqual((status.st_uid, status.st_mode & 0o777), (0, 0o700))
        names = [f"{self.hooks}/lxc_run.py", f"{self.hooks}/{DIRECTORY}/10-a"]
        self.assertEqual(set(os.listdir(KEPT)), {name.replace("/", "%") for name in names})
        before = snapshot_of_times(KEPT)
        self.assert_silent_success(self.dispatch())
        self.assertEqual(snapshot_of_times(KEPT), before)

    def test_where_there_is_no_room_for_its_code_nothing_is_left_of_it(self):
        self.add(f"{DIRECTORY}/10-a", "import sys; sys.stderr.write('ran')", shebang=self.OWN)
        shutil.rmtree(KEPT, ignore_errors=True)
        os.mkdir(KEPT, 0o700)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4K", "tests", KEPT], check=True)
        self.addCleanup(subprocess.run, ["umount", KEPT], check=True)
        self.assertEqual(self.dispatch().stderr, "ran")
        self.assertEqual([name for name in os.listdir(KEPT) if "_run.py" in name], [])

    def test_where_its_code_cannot_be_kept_it_runs_all_the_same(self):
        self.add(f"{DIRECTORY}/10-a", "import sys; sys.stderr.write('ran')", shebang=self.OWN)
        shutil.rmtree(KEPT, ignore_errors=True)
        Path(KEPT).touch()
        self.addCleanup(os.unlink, KEPT)
        self.assertEqual(self.dispatch().stderr, "ran")


class OtherHalf(DispatcherTestCase):
    """hooks/lxc_run.py, which the dispatcher loads where there is something to run."""

    def setUp(self):
        super().setUp()
        self.add(f"{DIRECTORY}/10-a")
        self.path = self.hooks / "lxc_run.py"

    def assert_nothing_is_run(self, reason):
        result = self.dispatch()
        self.assert_refused(result, f"lxc web prepare begin -: {self.path}: ", reason)
        self.assert_silent_success(self.dispatch("web", "start", "begin", "-"))  # has no script

    def test_where_it_is_missing_nothing_is_run(self):
        self.path.unlink()
        self.assert_nothing_is_run("No such file or directory")

    def test_where_it_cannot_be_read_nothing_is_run(self):
        self.path.unlink()
        self.path.mkdir()
        self.assert_nothing_is_run("Is a directory")

    def test_where_it_is_damaged_or_of_another_version_nothing_is_run(self):
        text = self.path.read_text()
        for other, reason in (
            (
                text.replace("find_scripts\n", "find_scripts, of_a_later_version\n"),
                "cannot import name",
            ),
            (text[:5000], "Error: "),
            ("\0" * len(text), "null bytes"),
            ("", "KeyError: 'main'"),
        ):
            self.path.write_text(other)
            self.assert_nothing_is_run(reason)

    def test_syslog_gets_it_too(self):
        self.path.unlink()
        with Syslog() as syslog:
            result = self.dispatch(b"caf\xe9\n", *PREPARE)
        self.assertEqual(len(syslog.lines), 1, syslog.lines)
        self.assertIn(f"{self.path}: No such file or directory", syslog.lines[0])
        self.assertIn("No such file or directory", result.stderr)
        self.assertEqual((result.returncode, result.stderr.count("\n")), (1, 1))

    def test_it_lies_beside_the_file_that_a_link_leads_to(self):
        (self.directory / "elsewhere").mkdir()
        (self.hooks / "lxc").rename(self.directory / "elsewhere/dispatcher")
        self.path.rename(self.directory / "elsewhere/dispatcher_run.py")
        (self.hooks / "lxc").symlink_to("../elsewhere/dispatcher")
        self.assert_silent_success(self.dispatch())
        self.assertEqual(self.recorded(), [f"{DIRECTORY}/10-a"])

    def test_it_runs_as_it_now_is_whatever_its_size_and_its_time(self):
        text = self.path.read_text()
        for line in ("one", "two", "one"):
            self.path.write_text(f"{text}\npass_on(b'{line}', 2)\n")
            os.utime(self.path, (1, 1))
            for _ in range(2):
                self.assertEqual(self.dispatch().stderr, line)


class Background(DispatcherTestCase):
    """Point 9."""

    def test_nobody_waits_for_what_a_script_leaves_in_the_background(self):
        # sleep outlives the 60 s that finish() waits for the end of stdout and stderr
        install_dispatcher(self.hooks / "qemu")
        started = "until [ -s RECORD ]; do sleep 0.05; done"
        for name, commands in (
            ("holds both", "sleep 300 & echo $! >>RECORD"),
            ("holds stderr", "sleep 300 >/dev/null & echo $! >>RECORD"),
            ("holds stdout", "sleep 300 2>/dev/null & echo $! >>RECORD"),
            ("another session", f"setsid sh -c 'echo $$ >>RECORD; exec sleep 300' & {started}"),
        ):
            for phase in (PREPARE, ("restore", "begin", "-"), ("migrate", "begin", "-")):
                with self.subTest(case=name, phase=phase):
                    self.add(f"qemu_{phase[0]}_begin_-.d/10-a", f"echo '<a/>'; {commands}")
                    self.add(f"qemu_{phase[0]}_begin_-.d/20-b", "echo said >&2")
                    result = self.dispatch("web", *phase, name="qemu")
                    self.assertTrue(is_alive(self.process_recorded()))
                    self.assertEqual(
                        (result.returncode, result.stdout, result.stderr), (0, "<a/>\n", "said\n")
                    )

    def test_a_script_that_fails_and_leaves_one_behind_ends_the_run_at_once(self):
        self.add(f"{DIRECTORY}/10-a", "sleep 300 & echo $! >>RECORD; echo bad >&2; exit 3")
        result = self.dispatch()
        self.assertTrue(is_alive(self.process_recorded()))
        line = "virt-hooks: lxc web prepare begin -: 10-a: exit status 3\n"
        self.assertEqual((result.returncode, result.stderr), (3, f"bad\n{line}"))

    def test_one_left_behind_within_a_time_limit_is_left_alone(self):
        self.add(f"{DIRECTORY}/10-a", "sleep 300 & echo $! >>RECORD")
        (self.hooks / DIRECTORY / "timeout").write_text("20\n")
        self.assert_silent_success(self.dispatch())
        self.assertTrue(is_alive(self.process_recorded()))

    def test_what_the_script_itself_printed_is_complete(self):
        commands = "head -c 60000 /dev/zero | tr '\\0' x >&2; sleep 300 & echo $! >>RECORD"
        self.add(f"{DIRECTORY}/10-a", commands)
        result = self.dispatch()
        self.process_recorded()
        self.assertEqual(result.stderr, "x" * 60000)

    def test_what_is_left_in_a_big_pipe_is_complete(self):
        commands = """
import fcntl, os
fcntl.fcntl(2, 1031, 1 << 20)  # F_SETPIPE_SZ
left = 1 << 20
while left:
    left -= os.write(2, b"x" * left)"""
        self.add(f"{DIRECTORY}/10-a", commands, shebang="#!/usr/bin/python3 -IS")
        result = self.dispatch()
        self.assertEqual((result.returncode, result.stderr), (0, "x" * (1 << 20)))

    def test_one_that_goes_on_printing_does_not_change_what_comes_after(self):
        commands = "sh -c 'echo $$ >>RECORD; exec yes background >&2' &"
        self.add(f"{DIRECTORY}/10-a", f"{commands} until [ -s RECORD ]; do sleep 0.05; done")
        self.add(f"{DIRECTORY}/20-b", "sleep 0.3; echo b >&2; exit 3")
        result = self.dispatch()
        self.process_recorded()
        line = "virt-hooks: lxc web prepare begin -: 20-b: exit status 3\n"
        self.assertTrue(result.stderr.endswith(f"b\n{line}"), result.stderr[-200:])

    def test_what_one_prints_later_is_no_part_of_a_filters_output(self):
        go, gone = self.directory / "go", self.directory / "gone"
        wait = "until [ -e '{}' ]; do sleep 0.05; done"
        echo = f"(trap '' PIPE; {wait.format(go)}; echo '<late/>'; touch '{gone}') 2>/dev/null"
        self.add("lxc_restore_begin_-.d/10-a", f"echo '<a/>'; {echo} & echo $! >>RECORD")
        self.add("lxc_restore_begin_-.d/20-b", f"touch '{go}'; {wait.format(gone)}; cat")
        result = self.dispatch("web", "restore", "begin", "-")
        self.process_recorded()
        self.assertEqual((result.returncode, result.stdout, result.stderr), (0, "<a/>\n", ""))


class Messages(DispatcherTestCase):
    """Point 10."""

    LINE = "virt-hooks: lxc web prepare begin -: 20-ramdisk: exit status 1\n"

    def test_success_is_silent(self):
        self.add(f"{DIRECTORY}/10-a")
        self.add(f"{DIRECTORY}/20-b", "cat >/dev/null")
        self.assert_silent_success(self.dispatch())

    def test_a_failure_adds_one_line_to_what_the_script_said(self):
        self.add(f"{DIRECTORY}/10-a", "echo first >&2")
        self.add(f"{DIRECTORY}/20-ramdisk", "echo no room >&2; exit 1")
        result = self.dispatch()
        self.assertEqual(result.stderr, f"first\nno room\n{self.LINE}")

    def test_the_line_stands_alone_when_the_script_left_its_own_unfinished(self):
        self.add(f"{DIRECTORY}/20-ramdisk", "printf 'no room' >&2; exit 1")
        result = self.dispatch()
        self.assertEqual(result.stderr, f"no room\n{self.LINE}")

    def test_every_byte_of_a_scripts_stderr_reaches_stderr(self):
        text = bytes(range(256)) * 4 + b"\0\xff\r\n\n\n\x1b[0m end"
        (self.directory / "text").write_bytes(text)
        self.add(f"{DIRECTORY}/10-a", f"cat '{self.directory}/text' >&2")
        result = self.dispatch()
        self.assertEqual((result.returncode, os.fsencode(result.stderr)), (0, text))

    def test_what_a_script_says_is_passed_on_at_once(self):
        go = self.directory / "go"
        self.add(f"{DIRECTORY}/10-a", f"printf said >&2; until [ -e '{go}' ]; do sleep 0.05; done")
        process = self.start(stdin=subprocess.DEVNULL)
        self.assertEqual(process.stderr.read(4), b"said")
        self.assertIsNone(process.poll())
        go.touch()
        self.assertEqual(self.finish(process).returncode, 0)

    def test_a_flood_on_stderr_reaches_stderr_whole(self):
        size = 20 << 20
        for name, source in (
            ("lines", f"yes 'a line of a script that says much' | head -c {size}"),
            ("no newlines", f"head -c {size} /dev/zero"),
            ("empty lines", f"yes '' | head -c {size}"),
        ):
            with self.subTest(flood=name):
                self.add(f"{DIRECTORY}/10-a", f"{source} >&2; exit 3")
                self.add(f"{DIRECTORY}/20-b")
                result = self.dispatch()
                self.assertEqual((result.returncode, self.recorded()), (3, []))
                said, _, line = result.stderr.rpartition("virt-hooks:")
                self.assertIn(len(said), (size, size + 1))  # with a newline before the line
                self.assertEqual(line, " lxc web prepare begin -: 10-a: exit status 3\n")

    def test_a_reader_of_stderr_that_has_gone_does_not_stop_the_work(self):
        self.add(f"{DIRECTORY}/10-a", "echo a >&2; echo a; echo a >>RECORD")
        self.add(f"{DIRECTORY}/20-b", "yes | head -c 1000000 >&2; echo b >>RECORD")
        process = self.start()
        process.stderr.close()
        process.stdout.close()
        process.stdout = process.stderr = None
        self.assertEqual(self.finish(process, XML).returncode, 0)
        self.assertEqual(self.recorded(), ["a", "b"])

    def test_a_reader_of_stderr_that_has_gone_does_not_change_the_exit_status(self):
        self.add(f"{DIRECTORY}/10-a", "exit 3")
        process = self.start()
        process.stderr.close()
        process.stderr = None
        self.assertEqual(self.finish(process, XML).returncode, 3)

    def test_syslog_gets_result_and_duration_of_each_script(self):
        self.add(f"{DIRECTORY}/10-a", "sleep 0.2")
        self.add(f"{DIRECTORY}/web/20-own")
        with Syslog() as syslog:
            self.assert_silent_success(self.dispatch())
        run = "lxc web prepare begin -: "
        self.assertEqual(len(syslog.lines), 2, syslog.lines)
        for line, name in zip(syslog.lines, ("10-a", "web/20-own")):
            self.assertRegex(line, rf"\A{run}{name}: done in \d+\.\d\d\d s\Z")
        duration = float(re.search(r"done in (\d+\.\d+) s", syslog.lines[0])[1])
        self.assertGreaterEqual(duration, 0.2)
        self.assertLess(duration, 50)

    def test_syslog_gets_a_failure(self):
        for commands, reason in (
            ("exit 3", "exit status 3"),
            ("kill -9 $$", "killed by signal 9"),
            ("exec sleep 50", "time limit of 0.3 s exceeded"),
        ):
            with self.subTest(commands=commands):
                self.add(f"{DIRECTORY}/10-a", commands)
                self.add(f"{DIRECTORY}/20-b")
                if "limit" in reason:
                    (self.hooks / DIRECTORY / "timeout").write_text("0.3\n")
                with Syslog() as syslog:
                    self.assertNotEqual(self.dispatch().returncode, 0)
                run = "lxc web prepare begin -: 10-a: "
                self.assertEqual(len(syslog.lines), 2, syslog.lines)
                self.assertRegex(syslog.lines[0], rf"\A{run}failed after \d+\.\d\d\d s\Z")
                self.assertEqual(syslog.lines[1], run + reason)

    def test_syslog_gets_a_refusal(self):
        path = self.add(f"{DIRECTORY}/10-a", mode=0o777)
        with Syslog() as syslog:
            result = self.dispatch()
        self.assert_refused(result, path)
        self.assertEqual([f"virt-hooks: {line}\n" for line in syslog.lines], [result.stderr])

    def test_syslog_gets_what_scripts_print_line_by_line(self):
        self.add(f"{DIRECTORY}/10-a", "echo one; echo two; printf unfinished")
        self.add(f"{DIRECTORY}/20-b", "echo said >&2; printf 'a\\0b' >&2; exit 3")
        with Syslog() as syslog:
            self.assertEqual(self.dispatch().returncode, 3)
        lines = [line.removeprefix("lxc web prepare begin -: ") for line in syslog.lines]
        expected = ["10-a: one", "10-a: two", "10-a: unfinished", "10-a: done in TIME"]
        expected += ["20-b: said", "20-b: a\\0b", "20-b: failed after TIME", "20-b: exit status 3"]
        self.assertEqual([re.sub(r"\d\.\d+ s", "TIME", line) for line in lines], expected)

    def test_syslog_gets_one_line_for_a_line_written_in_pieces(self):
        self.add(f"{DIRECTORY}/10-a", "printf on; sleep 0.2; printf e; sleep 0.2; echo ' line'")
        with Syslog() as syslog:
            self.assertEqual(self.dispatch().returncode, 0)
        self.assertEqual(syslog.lines[0], "lxc web prepare begin -: 10-a: one line")
        self.assertEqual(len(syslog.lines), 2)

    def test_syslog_gets_every_byte_in_a_way_that_can_be_read(self):
        (self.directory / "text").write_bytes(b"a\0b\xffc\xe9d \xc3\xa9\n%s%n %m\n")
        self.add(f"{DIRECTORY}/10-a", f"cat '{self.directory}/text' >&2")
        for environment in ({}, LIBVIRT, {"LC_ALL": "C.UTF-8"}):
            with self.subTest(environment=environment), Syslog() as syslog:
                self.assertEqual(self.dispatch(env=environment).returncode, 0)
            lines = [line.partition("10-a: ")[2] for line in syslog.lines]
            self.assertEqual(lines[:2], ["a\\0b\\xffc\\xe9d é", "%s%n %m"])

    def test_syslog_gets_what_filters_say_and_not_the_xml(self):
        self.add("lxc_restore_begin_-.d/10-a", "echo said >&2; cat")
        with Syslog() as syslog:
            result = self.dispatch("web", "restore", "begin", "-")
        self.assertEqual((result.returncode, os.fsencode(result.stdout)), (0, XML))
        self.assertEqual(len(syslog.lines), 2, syslog.lines)
        self.assertEqual(syslog.lines[0], "lxc web restore begin -: 10-a: said")

    def test_a_flood_does_not_keep_the_result_from_syslog(self):
        for source in ("yes | head -c 20000000", "head -c 20000000 /dev/zero"):
            self.add(f"{DIRECTORY}/10-a", f"{source} >&2; exit 3")
            with self.subTest(source=source), Syslog() as syslog:
                self.assertEqual(self.dispatch(stderr=subprocess.DEVNULL).returncode, 3)
            self.assertIn("10-a: failed after ", syslog.lines[-2])
            self.assertTrue(syslog.lines[-1].endswith("10-a: exit status 3"))
            self.assertTrue(all(line.startswith("lxc web prepare") for line in syslog.lines))
            self.assertLess(len(syslog.lines), 1010)

    def test_verbose_shows_by_hand_what_syslog_gets(self):
        self.add(f"{DIRECTORY}/10-a", "echo out; echo err >&2; printf unfinished >&2")
        self.add(f"{DIRECTORY}/20-b", "exit 3")
        with Syslog() as syslog:
            result = self.dispatch(env={**LIBVIRT, "VIRT_HOOKS_VERBOSE": "1"})
        self.assertEqual((result.returncode, result.stdout), (3, ""))
        self.assertEqual(result.stderr, "".join(f"virt-hooks: {line}\n" for line in syslog.lines))
        run = "virt-hooks: lxc web prepare begin -: "
        lines = [line.removeprefix(run) for line in result.stderr.splitlines()]
        lines = [re.sub(r"\d\.\d+ s", "TIME", line) for line in lines]
        self.assertEqual(sorted(lines[:3]), ["10-a: err", "10-a: out", "10-a: unfinished"])
        expected = ["10-a: done in TIME", "20-b: failed after TIME", "20-b: exit status 3"]
        self.assertEqual(lines[3:], expected)

    def test_verbose_leaves_a_filters_output_alone(self):
        self.add("lxc_restore_begin_-.d/10-a", "cat; echo said >&2")
        environment = {**LIBVIRT, "VIRT_HOOKS_VERBOSE": "1"}
        result = self.dispatch("web", "restore", "begin", "-", env=environment)
        self.assertEqual((result.returncode, os.fsencode(result.stdout)), (0, XML))
        self.assertIn("virt-hooks: lxc web restore begin -: 10-a: said\n", result.stderr)

    def test_verbose_is_off_when_it_is_0_or_empty(self):
        self.add(f"{DIRECTORY}/10-a")
        for value in ("0", ""):
            with self.subTest(value=value):
                environment = {**LIBVIRT, "VIRT_HOOKS_VERBOSE": value}
                self.assert_silent_success(self.dispatch(env=environment))


class NothingToDo(DispatcherTestCase):
    """Point 11."""

    def test_no_phase_directory_or_nothing_in_it_is_success_with_stdin_untouched(self):
        def only(path, mode=0o755):
            return lambda: self.add(f"{DIRECTORY}/{path}", mode=mode)

        for name, prepare in (
            ("no directory", lambda: None),
            ("empty directory", (self.hooks / DIRECTORY).mkdir),
            ("a README", only("README")),
            ("not executable", only("10-a", 0o644)),
            ("a backup", only("10-a~")),
            ("another guest's", only("web2/10-a")),
            ("a bad timeout", only("timeout")),
            ("a file for a directory", lambda: (self.hooks / DIRECTORY).touch()),
        ):
            with self.subTest(case=name):
                prepare()
                xml = self.write("xml", "<domain/>")
                with open(xml, "rb", buffering=0) as stdin, Syslog() as syslog:
                    self.assert_silent_success(self.dispatch(stdin=stdin))
                    self.assertEqual(stdin.tell(), 0)
                self.assertEqual((syslog.lines, self.recorded()), ([], []))
            if (self.hooks / DIRECTORY).is_dir():
                shutil.rmtree(self.hooks / DIRECTORY)
            else:
                (self.hooks / DIRECTORY).unlink(missing_ok=True)

    def test_it_does_not_wait_for_a_stdin_that_nobody_closes(self):
        process = self.start()
        self.assertEqual(process.wait(60), 0)

    def test_it_imports_nothing_that_is_slow_to_import(self):
        command = ["/usr/bin/python3", "-IS", "-X", "importtime", self.hooks / "lxc"]
        slow = {
            *("re", "signal", "subprocess", "shutil", "argparse", "pathlib", "tempfile", "logging"),
            *("enum", "socket", "threading", "typing", "dataclasses", "collections", "functools"),
            *("selectors", "contextlib", "locale", "datetime", "json", "xml", "site"),
        }
        self.add("lxc_start_begin_-.d/10-a")
        for phase in (PREPARE, ("start", "begin", "-")):
            with self.subTest(phase=phase):
                result = subprocess.run(
                    [*command, "web", *phase], input=b"", capture_output=True, timeout=60
                )
                lines = result.stderr.decode().splitlines()
                imported = {line.rpartition("|")[2].strip() for line in lines}
                self.assertIn("io", imported)
                self.assertEqual(slow & imported, set())
                if phase == PREPARE:  # in which nothing is to be done
                    self.assertEqual({"os", "select", "syslog"} & imported, set())


class ByHand(DispatcherTestCase):
    """Point 12."""

    def assert_usage(self, result):
        self.assertEqual(result.returncode, 2)
        self.assertIn("GUEST OPERATION SUB-OPERATION EXTRA", result.stderr)
        self.assertNotIn("Traceback", result.stderr)
        self.assertEqual(self.recorded(), [])

    def test_with_fewer_than_two_arguments_it_prints_how_to_use_it(self):
        self.add("lxc_-.d/10-a")
        for arguments in ([], ["web"], ["--help"], ["-h"], [""]):
            with self.subTest(arguments=arguments):
                result = subprocess.run(
                    [self.hooks / "lxc", *arguments], input="", capture_output=True, text=True
                )
                self.assert_usage(result)
                self.assertEqual(result.stdout, "")

    def test_with_a_terminal_on_stdin_it_prints_how_to_use_it(self):
        self.add(f"{DIRECTORY}/10-a")
        master, terminal = pty.openpty()
        self.addCleanup(os.close, master)
        self.addCleanup(os.close, terminal)
        for phase in (PREPARE, ("start", "begin", "-")):
            with self.subTest(phase=phase):
                self.assert_usage(self.dispatch("web", *phase, stdin=terminal))

    def test_a_terminal_on_stderr_alone_is_no_reason_for_it(self):
        self.add(f"{DIRECTORY}/10-a")
        master, terminal = pty.openpty()
        self.addCleanup(os.close, master)
        self.addCleanup(os.close, terminal)
        self.assertEqual(self.dispatch(stderr=terminal, stdout=terminal).returncode, 0)
        self.assertEqual(self.recorded(), [f"{DIRECTORY}/10-a"])

    def test_a_guests_name_is_never_read_as_an_option(self):
        self.add(f"{DIRECTORY}/10-a", """echo "$1" >>RECORD""")
        for guest in ("--help", "-h", "--version", "-", "--", "-V", "-c", "-m", "-E", "--guest=x"):
            with self.subTest(guest=guest):
                self.assert_silent_success(self.dispatch(guest, *PREPARE))
                self.assertEqual(self.recorded(), [guest])

    def test_an_interrupt_reaches_the_script_and_ends_the_run(self):
        self.add(f"{DIRECTORY}/10-a", "echo $$ >>RECORD; exec sleep 50")
        self.add(f"{DIRECTORY}/20-b")
        process = self.start(stdin=subprocess.DEVNULL)
        self.wait_for(lambda: self.record.exists() and self.record.read_text(), "the script runs")
        pid = self.process_recorded()
        process.send_signal(signal.SIGINT)
        result = self.finish(process)
        self.assertEqual((result.returncode, result.stderr), (130, ""))
        self.wait_for(lambda: not is_alive(pid), "the script is interrupted")
        self.assertEqual(self.recorded(), [])


class DryRun(DispatcherTestCase):
    """With VIRT_HOOKS_DRY_RUN=1 no script is run that would not know it."""

    def test_scripts_that_do_not_know_it_are_named_and_left_out(self):
        self.add(f"{DIRECTORY}/10-knows", 'echo "knows $VIRT_HOOKS_DRY_RUN" >>RECORD')
        self.add(f"{DIRECTORY}/20-blind", "echo blind >>RECORD")
        self.add(f"{DIRECTORY}/web/30-blind", "exit 3")
        self.add(f"{DIRECTORY}/40-knows", "# VIRT_HOOKS_DRY_RUN\necho knows >>RECORD")
        with Syslog() as syslog:
            result = self.dispatch(env={**LIBVIRT, "VIRT_HOOKS_DRY_RUN": "1"})
        names = ("20-blind", "web/30-blind")
        said = [
            f"lxc web prepare begin -: {name}: not run, since it knows no dry run" for name in names
        ]
        self.assertEqual(result.returncode, 0)
        self.assertEqual(result.stderr, "".join(f"virt-hooks: {line}\n" for line in said))
        self.assertEqual(self.recorded(), ["knows 1", "knows"])
        self.assertLessEqual(set(said), set(syslog.lines))

    def test_without_it_all_are_run(self):
        self.add(f"{DIRECTORY}/20-blind", "echo blind >>RECORD")
        for value in ("", "0"):
            self.assert_silent_success(self.dispatch(env={**LIBVIRT, "VIRT_HOOKS_DRY_RUN": value}))
            self.assertEqual(self.recorded(), ["blind"])


class Replay(DispatcherTestCase):
    """What libvirt 9.0.0 and 11.3.0 really handed to their hooks."""

    def test_what_each_script_gets_is_byte_for_byte_what_libvirt_gave(self):
        record = """
printf '%s\\0' "$@" >RECORD-${0##*/}.args
cat >RECORD-${0##*/}.xml"""
        captures = sorted(CAPTURES.iterdir())
        self.assertEqual(len(captures), 2)
        for capture in captures:
            for phase in PHASES:
                with self.subTest(libvirt=capture.name, phase=phase):
                    given = (capture / f"{phase}.args").read_bytes().split(b"\n")[:-1]
                    xml = (capture / f"{phase}.xml").read_bytes()
                    guest, operation, suboperation, extra = map(os.fsdecode, given)
                    general = f"lxc_{operation}_{suboperation}_-.d"
                    own = f"lxc_{operation}_{suboperation}_{extra}.d"
                    paths = (f"{general}/10-a", f"{general}/{guest}/20-b", f"{own}/30-c")
                    for path in paths:
                        self.add(path, record)
                    self.assert_silent_success(self.dispatch(*given, xml=xml))
                    for path in paths:
                        files = f"{self.record}-{os.path.basename(path)}"
                        with open(f"{files}.args", "rb") as file:
                            self.assertEqual(file.read(), b"\0".join(given) + b"\0")
                        with open(f"{files}.xml", "rb") as file:
                            self.assertEqual(file.read(), xml)
                        os.unlink(f"{files}.args")
                        os.unlink(f"{files}.xml")


if __name__ == "__main__":
    unittest.main()
