"""10-archive: whole or not there, and it never overwrites."""

import contextlib
import errno
import os
import re
import shutil
import socket
import stat
import subprocess
import time
import unittest
from pathlib import Path
from xml.sax.saxutils import escape

from harness import CHECKOUT, run
from scripts import RELEASE, ScriptCase, details, dircopy, fill, guest_xml, mode_owner_group
from test_post_rm_rf import post_rm_rf

# cp, which waits at its end until the test lets it go
HELD = """
import os, socket, subprocess, sys
status = subprocess.call(["{cp}", *sys.argv[1:]], close_fds=False)
held = socket.socket(socket.AF_UNIX)
held.connect("{socket}")
held.recv(1)
os._exit(status)
"""
# a program on another host, whose locks hold here no more than ours do there, as on NFS
ON_HOST = """
import os, socket, sys
socket.sethostname(sys.argv[1])
os.execvp(sys.argv[2], sys.argv[2:])
"""
NO_LOCKS = "strace -qq -o /dev/null -e trace=flock -e inject=flock:retval=0".split()
PRIVILEGES = stat.S_ISUID | stat.S_ISGID


def archive(*pairs, date=(), options=""):
    copies = "".join(dircopy(src, dst, options) for src, dst in pairs)
    dates = "".join(
        f"<datestr><format>{escape(form)}</format><replace>{escape(replace)}</replace></datestr>"
        for form, replace in date
    )
    return f"<archive>{copies}{dates}</archive>"


def archived(directory):
    """What an archive of a directory is to hold: details(), but no privileges."""
    return {
        name: (mode if stat.S_ISLNK(mode) else mode & ~PRIVILEGES, *others, inode)
        for name, (mode, *others, _attributes, inode) in details(directory).items()
    }


class ArchiveCase(ScriptCase):
    SCRIPT = "10-archive"
    EXAMPLE = "<archive><dircopy><src>D/log</src><dst>D/kept</dst></dircopy></archive>"
    PROGRAM = "cp"

    def setUp(self):
        super().setUp()
        self.src, self.store = self.directory / "guest/log", self.directory / "store"
        self.dst = self.store / "day"
        self.write("guest/log/x", "text")

    def archive(self, date=(), **options):
        return self.call(archive((self.src, self.dst), date=date), **options)

    def assert_archived(self, src, dst):
        self.assertEqual(archived(dst), archived(src))
        for path in (dst, *dst.rglob("*")):
            if not path.is_symlink():
                self.assertFalse(path.stat().st_mode & PRIVILEGES, path)
        self.assertEqual(run(["getcap", "-r", dst]).stdout, "")

    def assert_stores(self, *names):
        """The store has these names in it, and nothing that is left of an archive."""
        self.assertEqual(sorted(os.listdir(self.store)), sorted(names))

    def held_cp(self):
        """A socket at which each cp reports when it has copied, and the environment for it."""
        server = socket.socket(socket.AF_UNIX)
        self.addCleanup(server.close)
        server.bind(f"{self.directory}/socket")
        server.listen()
        server.settimeout(60)
        text = HELD.format(cp=shutil.which("cp"), socket=f"{self.directory}/socket")
        return server, self.path_with("cp", text)

    def start(self, elements, environment=None, before=()):
        """The script, running; before: what is to come before its command."""
        process = subprocess.Popen(
            [*before, *self.command()], stdin=-1, stdout=-1, stderr=-1, text=True,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C", **(environment or {})},
        )  # fmt: skip
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        process.stdin.write(guest_xml(elements))
        process.stdin.close()
        process.stdin = None
        return process

    def finish(self, process, *values):
        output, error = process.communicate(timeout=60)
        result = subprocess.CompletedProcess([], process.returncode, output, error)
        self.assert_says(result, *values)


class Archive(ArchiveCase):
    def test_owners_permission_bits_times_and_links_stay_and_privileges_do_not(self):
        fill(self.src)
        for mode in (0o4755, 0o2755, 0o6000, 0o7777, 0o1777):
            for kind in ("directory", "file", "fifo"):
                path = self.src / f"{kind}-{mode:04o}"
                make = {"directory": os.mkdir, "file": Path.touch, "fifo": os.mkfifo}[kind]
                make(path)
                os.chown(path, 1001, 1002)
                path.chmod(mode)
        self.src.chmod(0o6775)
        before = details(self.src)
        for number, umask in enumerate((0, 0o077)):
            self.dst = self.store / f"new/{number}/day"
            self.assert_says(self.archive(umask=umask), self.dst)
            self.assert_archived(self.src, self.dst)
            for parent in list(self.dst.parents)[:3]:
                self.assertEqual(mode_owner_group(parent), (0o755, 0, 0))
            self.assertEqual(os.listdir(self.dst.parent), ["day"])
        self.assertEqual(details(self.src), before)

    def test_links_fifos_and_sockets_are_copied_and_not_followed_or_opened(self):
        outside = self.write("outside/keep", "kept").parent
        for name, target in {"file": outside / "keep", "directory": outside, "up": ".."}.items():
            (self.src / name).symlink_to(target)
        os.mkfifo(self.src / "fifo")
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(self.src / "socket"))
        before = details(outside)
        self.assert_says(self.archive(), self.dst)
        self.assert_archived(self.src, self.dst)
        self.assertEqual(details(outside), before)

    def test_what_is_mounted_in_src_is_archived_too(self):
        (self.src / "tmp").mkdir()
        self.mount("-t", "tmpfs", "tests", self.src / "tmp")
        self.write("guest/log/tmp/y", "in the ramdisk")
        self.assert_says(self.archive(), self.dst)
        self.assertEqual((self.dst / "tmp/y").read_text(), "in the ramdisk")

    def test_a_device_node_is_an_error_and_leaves_no_archive(self):
        self.store.mkdir()
        (self.src / "inner").mkdir()
        for kind, number in ((stat.S_IFCHR, os.makedev(1, 3)), (stat.S_IFBLK, os.makedev(7, 0))):
            for name in ("node", "inner/node"):
                with self.subTest(kind=kind, name=name):
                    os.mknod(self.src / name, kind | 0o666, number)
                    before = details(self.src)
                    result = self.archive()
                    self.assertEqual(result.returncode, 1)
                    self.assert_error(result, self.src, programs_said=None)
                    self.assertIn(name, result.stderr)
                    self.assertIn(" cp ", result.stderr.splitlines()[-1])
                    self.assertNotIn("setpriv", result.stderr)
                    self.assertEqual(result.stdout, "")
                    self.assert_stores()
                    self.assertEqual(details(self.src), before)
                    os.unlink(self.src / name)

    def test_where_dst_is_taken_it_gets_a_number_and_what_is_there_is_not_touched(self):
        outside = self.write("outside/keep", "kept").parent
        self.store.mkdir()
        for name, plant in {
            "day": lambda path: self.write(path / "x", "older"),
            "day.1": lambda path: path.write_text("a file"),
            "day.2": lambda path: path.symlink_to(outside),
            "day.3": lambda path: path.symlink_to("/srv/nowhere"),
            "day.5": os.mkfifo,
        }.items():
            plant(self.store / name)
        before = details(self.store), details(outside)
        for name in ("day.4", "day.6"):
            self.assert_says(self.archive(), self.store / name)
            self.assert_archived(self.src, self.store / name)
        for name in ("day.4", "day.6"):
            shutil.rmtree(self.store / name)
        after = details(self.store), details(outside)
        del before[0]["."], after[0]["."]
        self.assertEqual(after, before)

    def test_a_mount_point_is_taken(self):
        self.dst.mkdir(parents=True)
        self.mount("-t", "tmpfs", "tests", self.dst)
        self.assert_says(self.archive(), f"{self.dst}.1")
        self.assertEqual(os.listdir(self.dst), [])

    def test_several_copies_are_done_in_their_order_and_the_first_that_fails_ends_it(self):
        two = self.write("two/name", "two").parent
        elements = archive((self.src, self.store / "log"), (two, self.dst))
        elements += archive((self.src, self.dst))
        result = self.call(elements)
        self.assert_says(result, self.store / "log", self.dst)
        self.assert_stores("log", "day", "day.1")
        self.assert_archived(two, self.dst)
        os.mknod(two / "null", 0o020666, os.makedev(1, 3))
        result = self.call(elements)
        self.assertEqual(result.returncode, 1)
        self.assertIn(str(two), result.stderr)
        self.assert_stores("log", "log.1", "day", "day.1")

    def test_a_missing_src_is_an_error_unless_it_is_optional(self):
        missing = self.directory / "missing"
        for options in ("", " optional='no'"):
            elements = archive((self.src, self.dst))
            self.assert_refused(elements + archive((missing, self.dst), options=options), missing)
        before = self.everything()
        result = self.call(archive((missing, self.dst), options=" optional='yes'"))
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertEqual(self.everything(), before)
        self.assert_says(self.call(archive((self.src, self.dst), options=" optional='yes'")), "day")
        self.assert_archived(self.src, self.dst)

    def test_a_dst_in_its_own_src_is_an_error_and_src_stays_as_it_is(self):
        alias = self.directory / "alias"
        alias.mkdir()
        self.mount("--bind", self.src, alias)
        for dst in (self.src / "day", alias / "day"):
            with self.subTest(dst):
                before = archived(self.src)
                result = self.call(archive((self.src, dst)))
                self.assertEqual(result.returncode, 1)
                self.assertIn(str(dst), result.stderr)
                del before["."]
                after = archived(self.src)
                del after["."]
                self.assertEqual(after, before)

    def test_a_dst_that_is_no_absolute_path_or_has_no_name_is_refused(self):
        good = archive((self.src, self.directory / "other"))
        for dst in ("day", "./day", "/", f"{self.store}/", f"{self.store}/.."):
            with self.subTest(dst):
                self.assert_refused(good + archive((self.src, dst)), dst, cwd=self.directory)

    def test_a_dst_in_what_is_removed_afterwards_is_refused(self):
        for removed in (self.store, self.dst):
            elements = archive((self.src, self.directory / "other"), (self.src, self.dst))
            self.assert_refused(elements + post_rm_rf(self.src, removed), self.dst)

    def test_where_no_copy_of_the_mount_can_be_had_nothing_is_copied(self):
        point = self.directory / "point"
        point.mkdir()
        self.mount("-t", "tmpfs", "tests", point)
        run(["mount", "--make-unbindable", point], check=True)
        self.src = self.write("point/log/x", "text").parent
        why = f"{os.strerror(errno.EINVAL)}: '{self.src}'"
        self.assert_error(self.archive(), self.src, why)
        self.assert_stores()

    def test_a_dry_run_says_what_it_would_do_and_does_nothing(self):
        self.dst = self.store / "of-D"
        for src in (self.src, self.directory / "not-made"):
            before = self.everything()
            elements = archive((src, self.dst), date=[("%Y", "D")])
            self.assert_says(self.call(elements, dry_run=True), f"{src} to {self.store}/of-20")
            self.assertEqual(self.everything(), before)


class Dates(ArchiveCase):
    def test_each_replace_text_in_a_dst_becomes_the_time_in_the_format(self):
        two = self.write("two/name", "two").parent
        elements = archive(
            (self.src, self.store / "%DATE%/%DATE%-%TIME%"),
            (two, self.store / "two/TIME/%DATE%"),
            date=[("%Y-%m-%d", "%DATE%"), ("%H", "%TIME%"), (" %Y/%j\n", "TIME")],
        )
        for _attempt in range(2):  # the hour may end meanwhile
            now = time.localtime()
            result = self.call(elements)
            date, hour = time.strftime("%Y-%m-%d", now), time.strftime("%H", now)
            expected = (self.store / date / f"{date}-{hour}",
                        self.store / "two" / time.strftime("%Y/%j", now) / date)  # fmt: skip
            if time.localtime()[:4] == now[:4]:
                break
        self.assert_says(result, *expected)
        self.assert_archived(two, expected[1])

    def test_the_time_is_the_local_time(self):
        self.dst = self.store / "D"
        for zone in ("AAA-14", "BBB+12"):
            result = self.archive(date=[("%Z%z", "D")], environment={"TZ": zone})
            self.assert_says(result, self.store / zone[:3])
        self.assert_stores("AAA+1400", "BBB-1200")

    def test_it_is_one_moment_for_the_whole_run(self):
        server, environment = self.held_cp()
        elements = archive(
            (self.src, self.store / "one-D"), (self.src, self.store / "two-D"), date=[("%s", "D")]
        )
        process = self.start(elements, environment)
        first, _address = server.accept()
        time.sleep(1.1)
        first.close()
        server.accept()[0].close()
        self.finish(process, self.store)
        one, two = sorted(os.listdir(self.store))
        self.assertEqual(one.removeprefix("one-"), two.removeprefix("two-"))

    def test_a_replace_that_no_dst_contains_is_no_error(self):
        self.assert_says(self.archive(date=[("%Y", "%DATE%"), ("%H", "day2")]), self.dst)
        self.assert_stores("day")

    def test_a_date_that_makes_no_path_of_a_dst_is_refused(self):
        self.dst = self.store / "D/x"
        good = archive((self.src, self.directory / "other"))
        for form in ("..", ".", "a/..", "/", "a//b", "%Y/"):
            with self.subTest(form):
                elements = good + archive((self.src, self.dst), date=[(form, "D")])
                self.assert_refused(elements, self.store)


class Whole(ArchiveCase):
    """An archive is whole or not there."""

    def test_while_it_copies_nothing_is_at_dst_and_no_other_user_gets_privileges(self):
        (self.src / "x").chmod(0o4755)
        self.src.chmod(0o755)
        server, environment = self.held_cp()
        process = self.start(archive((self.src, self.dst)), environment)
        held, _address = server.accept()
        self.assertFalse(self.dst.exists())
        (copy,) = self.store.rglob("x")
        other = ["setpriv", "--reuid=1010", "--regid=1010", "--clear-groups", "test", "-x", copy]
        if copy.stat().st_mode & PRIVILEGES:
            self.assertNotEqual(run(other).returncode, 0)
        held.close()
        self.finish(process, self.dst)
        self.assert_archived(self.src, self.dst)
        self.assert_stores("day")

    def test_what_a_killed_run_has_left_the_next_one_removes(self):
        server, environment = self.held_cp()
        elements = archive((self.src, self.store / "of-D"), date=[("monday", "D")])
        process = self.start(elements, environment)
        held, _address = server.accept()
        process.kill()
        process.wait()
        with contextlib.suppress(OSError):
            held.shutdown(socket.SHUT_WR)
            held.recv(1)  # until cp is gone too
        left = os.listdir(self.store)
        self.assertTrue(left and all(name.startswith(".") for name in left), left)
        self.assertEqual((self.src / "x").read_text(), "text")
        result = self.call(elements.replace("monday", "tuesday"))
        self.assert_says(result, self.store / "of-tuesday")
        self.assert_stores("of-tuesday")
        self.assert_archived(self.src, self.store / "of-tuesday")

    def test_what_a_running_one_has_begun_stays(self):
        server, environment = self.held_cp()
        elements = archive((self.src, self.dst))
        process = self.start(elements, environment)
        held, _address = server.accept()
        before = details(self.store)
        self.assert_says(self.call(elements), self.dst)
        after = details(self.store)
        self.assertEqual({name: after[name] for name in before if name != "."},
                         {name: before[name] for name in before if name != "."})  # fmt: skip
        held.close()
        self.finish(process, f"{self.dst}.1")
        self.assert_stores("day", "day.1")
        for dst in (self.dst, self.store / "day.1"):
            self.assert_archived(self.src, dst)

    def test_many_at_once_are_all_whole(self):
        fill(self.src)
        elements = archive((self.src, self.store / "D/log"), date=[("of-%Y", "D")])
        running = [self.start(elements) for _ in range(20)]
        for process in running:
            self.finish(process, self.store)
        (year,) = self.store.iterdir()
        names = {"log", *(f"log.{number}" for number in range(1, 20))}
        self.assertEqual({path.name for path in year.iterdir()}, names)
        for path in year.iterdir():
            self.assertEqual(archived(path), archived(self.src))

    def test_other_hidden_names_beside_dst_are_left_alone(self):
        # a guest's root may have planted them, where the archives are in the guest's directory
        outside = self.write("outside/keep", "kept").parent
        self.store.mkdir()
        (self.store / ".snapshots").mkdir()
        (self.store / ".virt-hooks-web").symlink_to(outside)
        (self.store / ".link").symlink_to(outside)
        self.write("store/.day.swp", "text")
        before = details(self.store), details(outside)
        self.assert_says(self.archive(), self.dst)
        self.assert_archived(self.src, self.dst)
        after = details(self.store)
        for name in (".snapshots", ".link", ".day.swp"):
            self.assertEqual(after[name], before[0][name])
        self.assertEqual(details(outside), before[1])

    def test_a_full_disk_leaves_nothing_behind(self):
        self.write("guest/log/big", "x" * (3 << 20))
        for number in range(50):
            self.write(f"guest/log/many/{number}", "x")
        before = details(self.src)
        self.store.mkdir()
        for options in ("size=1M", "nr_inodes=20"):
            with self.subTest(options):
                self.mount("-t", "tmpfs", "-o", options, "tests", self.store)
                result = self.archive()
                self.assert_error(result, self.src, programs_said=True)
                self.assertIn("No space left on device", result.stderr)
                self.assertNotIn("/proc/", result.stderr)
                self.assert_stores()
                self.assertEqual(details(self.src), before)
                run(["umount", self.store], check=True)

    def test_it_is_flushed_before_it_is_at_dst_and_there_before_the_script_ends(self):
        trace = self.directory / "trace"
        calls = "execve,syncfs,fsync,rename,renameat,renameat2,chmod,fchmod,fchmodat,?fchmodat2"
        strace = ["strace", "-f", "-y", "-s", "300", "-e", f"trace={calls}", "-o", trace]
        result = run([*strace, *self.command()], input=guest_xml(archive((self.src, self.dst))))
        self.assert_says(result, self.dst)
        lines = trace.read_text().splitlines()

        def numbers(pattern, first=0):
            return [n for n, line in enumerate(lines[first:], first) if re.search(pattern, line)]

        copier = lines[numbers(r'execve\("[^"]*/cp",.* = 0$')[-1]].split()[0]
        copied = numbers(rf"^{copier} +\+\+\+ exited with 0")[0]
        flushed = numbers(r"(syncfs|fsync)\(.* = 0$", copied)[0]
        (renamed,) = numbers(r'rename.*"(\S*/)?day".* = 0$')
        kept = numbers(rf"(syncfs|fsync)\(\d+<{self.store}>\) += 0$", renamed)[0]
        self.assertEqual(sorted((copied, flushed, renamed, kept)), [copied, flushed, renamed, kept])
        self.assertEqual(numbers("chmod.* = 0$", renamed), [])

    def test_where_flushing_fails_the_script_fails(self):
        xml = guest_xml(archive((self.src, self.dst)))
        for calls, at_dst in (("syncfs,fsync,fdatasync", False), ("fsync", None)):
            trace = self.directory / "trace"
            strace = ["strace", "-f", "-o", trace, "-e", f"trace={calls}"]
            strace += ["-e", f"inject={calls}:error=EIO"]
            result = run([*strace, *self.command()], input=xml)
            self.assertIn("(INJECTED)", trace.read_text())
            self.assert_error(result, self.src, programs_said=None)
            self.assertIn(at_dst, (None, self.dst.exists()))
            self.assertEqual((self.src / "x").read_text(), "text")


class Shared(ArchiveCase):
    """Several hosts, guests and users have the same directory for their archives, or reach it."""

    def on_host(self, name):
        """What is to come before a command that another host runs."""
        host = ["unshare", "--uts", "/usr/bin/python3", "-IS", "-c", ON_HOST, name]
        return [*host, *NO_LOCKS]

    def hidden(self):
        return {name for name in os.listdir(self.store) if name.startswith(".")}

    def test_what_runs_on_another_host_is_left_alone_whatever_the_hosts_names(self):
        elements = archive((self.src, self.dst))
        for name, others in {
            "web": ("db", "web1", "web-1", "web-", "we", "web-0123456789abcdef"),
            "web-1": ("web", "web-11"),
            "a/b": ("a", "b", "a/c"),
            "web.example.com": ("web", "web.example", "web_example_com"),
            "": ("-", "a"),
        }.items():
            server, environment = self.held_cp()
            process = self.start(elements, environment, self.on_host(name))
            held, _address = server.accept()
            begun = details(self.store)
            for number, other in enumerate(others):
                with self.subTest(name, other=other):
                    self.assert_archives_beside(other, number, begun)
            held.close()
            expected = f"{self.dst}.{len(others)}"
            self.finish(process, expected)
            self.assertEqual(archived(Path(expected)), archived(self.src))
            self.assertEqual(self.hidden(), set())
            shutil.rmtree(self.store)
            server.close()
            os.unlink(f"{self.directory}/socket")

    def assert_archives_beside(self, host, number, begun):
        """A host archives; what another has begun, by details() of the store, stays as it is."""
        command = [*self.on_host(host), *self.command()]
        result = run(command, input=guest_xml(archive((self.src, self.dst))))
        self.assert_says(result, f"{self.dst}.{number}" if number else self.dst)
        now = details(self.store)
        for name in begun.keys() - {"."}:
            self.assertEqual(now.get(name), begun[name])

    def test_what_is_left_of_a_killed_run_only_the_same_host_removes(self):
        killer = "import os\nos.kill(os.getppid(), 9)"
        environment = {**os.environ, **self.path_with("cp", killer)}
        xml = guest_xml(archive((self.src, self.dst)))
        left = set()
        for host in ("web", "web-1"):
            run([*self.on_host(host), *self.command()], input=xml, env=environment)
            self.assertEqual(len(self.hidden() - left), 1)
            left = self.hidden()
        self.assert_archives_beside("we", 0, details(self.store))
        self.assertEqual(self.hidden(), left)
        for number, host in enumerate(("web", "web-1"), 1):
            result = run([*self.on_host(host), *self.command()], input=xml)
            self.assert_says(result, f"{self.dst}.{number}")
            self.assertEqual(len(self.hidden()), 2 - number)

    def test_a_run_that_has_not_locked_its_directory_yet_is_not_disturbed_by_another(self):
        self.store.mkdir()
        trace = self.directory / "trace"
        slowly = ["strace", "-qq", "-o", trace, "-e", "trace=mkdir,mkdirat"]
        slowly += ["-e", "inject=mkdir,mkdirat:delay_exit=1000000:when=1"]
        elements = archive((self.src, self.dst))
        process = self.start(elements, before=slowly)
        while not self.hidden() and process.poll() is None:
            time.sleep(0.001)
        self.assertEqual(len(self.hidden()), 1)
        self.assert_says(self.call(elements), self.dst)
        self.finish(process, f"{self.dst}.1")
        self.assertEqual(trace.read_text().count(".virt-hooks-"), 2)  # it began anew
        self.assert_stores("day", "day.1")
        for dst in (self.dst, self.store / "day.1"):
            self.assert_archived(self.src, dst)

    def test_a_run_that_was_killed_before_it_locked_its_directory_leaves_nothing_to_the_next(self):
        self.store.mkdir()
        xml = guest_xml(archive((self.src, self.dst)))
        killed = ["strace", "-qq", "-o", "/dev/null", "-e", "trace=flock"]
        killed += ["-e", "inject=flock:signal=KILL"]
        run([*killed, *self.command()], input=xml)
        self.assertEqual(len(self.hidden()), 1)
        self.assert_says(self.archive(), self.dst)
        self.assert_stores("day")

    def test_no_lock_of_an_ordinary_user_holds_an_archive_up(self):
        self.store.mkdir(mode=0o755)
        self.directory.chmod(0o755)
        Path("/run/virt-hooks").mkdir(exist_ok=True)
        places = [self.command()[0], self.command()[0].parent, self.store, self.src]
        places += ["/run", "/run/virt-hooks", *Path("/run/virt-hooks").iterdir()]
        held = 0
        for place in places:
            user = ["setpriv", "--reuid=1010", "--regid=1010", "--clear-groups", "flock", place]
            holder = subprocess.Popen(
                [*user, "sh", "-c", "echo; exec cat"], stdin=-1, stdout=-1, stderr=-1
            )
            self.addCleanup(holder.communicate)
            held += bool(holder.stdout.readline())
        self.assertGreaterEqual(held, 4)
        self.assert_says(self.archive(), self.dst)


class Twice(ArchiveCase):
    """libvirt may call release twice for one guest; the dispatcher runs archive and removal."""

    def setUp(self):
        super().setUp()
        self.hooks = self.directory / "hooks"
        phase = self.hooks / "lxc_release_end_-.d"
        phase.mkdir(parents=True)
        (self.hooks / "lxc").symlink_to(CHECKOUT / "hooks/lxc")
        for name in ("10-archive", "30-post-rm-rf"):
            (phase / name).symlink_to(self.command(name)[0])

    def release(self, elements):
        return run([self.hooks / "lxc", "web", *RELEASE], input=guest_xml(elements))

    def test_the_second_release_finds_nothing_to_do_and_says_nothing(self):
        for removed in (self.src, self.src.parent):
            with self.subTest(removed):
                self.write("guest/log/x", "text")
                expected = archived(self.src)
                elements = archive((self.src, self.dst)) + post_rm_rf(removed)
                first, second = self.release(elements), self.release(elements)
                self.assertEqual((first.returncode, first.stderr), (0, ""))
                self.assertEqual((second.returncode, second.stderr), (0, ""))
                self.assertFalse(removed.exists())
                self.assert_stores("day")
                self.assertEqual(archived(self.dst), expected)
                shutil.rmtree(self.store)

    def test_what_is_still_there_is_archived_though_another_src_is_gone(self):
        two = self.write("guest/two/name", "two").parent
        elements = archive((self.src, self.dst), (two, self.store / "two"))
        shutil.rmtree(self.src)
        result = self.release(elements + post_rm_rf(self.src, two))
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assert_stores("two")
        self.assertFalse(two.exists())

    def test_a_src_that_is_gone_and_that_nothing_removes_is_an_error(self):
        typo = self.directory / "guest/lgo"
        for removed in (self.src, self.src.parent, typo / "below", f"{typo}-2", str(typo)[:-1]):
            with self.subTest(removed):
                elements = archive((self.src, self.dst), (typo, self.store / "typo"))
                elements += post_rm_rf(removed)
                self.assert_refused(elements, typo)
                self.assertEqual(self.release(elements).returncode, 1)
                self.assertEqual((self.src / "x").read_text(), "text")

    def test_what_was_not_archived_is_never_removed_however_often_release_runs(self):
        self.write("guest/log/big", "x" * (3 << 20))
        elements = archive((self.src, self.dst)) + post_rm_rf(self.src)
        before, expected = details(self.src), archived(self.src)
        self.store.mkdir()

        def is_full():
            self.mount("-t", "tmpfs", "-o", "size=1M", "tests", self.store)
            return ["umount", self.store]

        def is_read_only():
            self.mount("-t", "tmpfs", "-o", "ro", "tests", self.store)
            return ["umount", self.store]

        def is_a_file():
            self.store.rmdir()
            self.store.write_text("")
            return ["rm", self.store]

        for store in (is_full, is_read_only, is_a_file):
            with self.subTest(store.__name__):
                repair = store()
                for _ in range(2):
                    result = self.release(elements)
                    self.assertEqual(result.returncode, 1, result.stderr)
                    self.assertEqual(details(self.src), before)
                run(repair, check=True)
        result = self.release(elements)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertFalse(self.src.exists())
        self.assertEqual(archived(self.dst), expected)


if __name__ == "__main__":
    unittest.main()
