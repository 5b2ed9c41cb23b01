"""10-archive: whole or not there, and it never overwrites."""

import contextlib
import os
import re
import shutil
import signal
import stat
import subprocess
import time
import unittest
from pathlib import Path
from xml.sax.saxutils import escape

from harness import TestCase, domain, run, script, snapshot
from test_post_rm_rf import for_seconds, swapping
from test_preload import details, dircopies, fill

UNFINISHED = f".virt-hooks-{os.uname().nodename}-"
ACLS = ("system.posix_acl_access", "system.posix_acl_default")

# Exchanges "inner" of whatever copy is under way in a directory for a link, as fast as it can
INTRUDER = """
import ctypes, os, sys
work, link = sys.argv[1:]
libc = ctypes.CDLL(None)
print("waiting", flush=True)
while True:
    for name in os.listdir(work):
        if name.startswith(".virt-hooks-"):
            inner = os.fsencode(f"{work}/{name}/data/inner")
            for _ in range(200):
                libc.renameat2(-100, inner, -100, os.fsencode(link), 2)
"""


def dates(*pairs):
    return "".join(
        f"<datestr><format>{escape(form)}</format><replace>{escape(replace)}</replace></datestr>"
        for form, replace in pairs
    )


def archives(*pairs, date=(), options=""):
    return f"<archive>{dircopies(*pairs, options=options)}{dates(*date)}</archive>"


def archived(directory):
    """What an archive of a directory is to hold, as test_preload.details() has it."""
    expected = {}
    for name, (mode, *others, attributes, inode) in details(directory).items():
        if not stat.S_ISLNK(mode):
            mode &= ~0o6000
        kept = {key: value for key, value in attributes.items() if key in ACLS}
        expected[name] = (mode, *others, kept, inode)
    return expected


def children(pid, name):
    """The processes of a name whose parent a process is."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            head, _, rest = path.read_text().rpartition(")")
            if int(rest.split()[1]) == pid and head.partition("(")[2] == name:
                found.append(int(path.parent.name))
    return found


def state(pid):
    """The state of a process, by proc(5); X where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][1]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def kill(handle):
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(handle, signal.SIGKILL)


def ended(pid):
    return state(pid) in "ZX"


class ArchiveCase(TestCase):
    def setUp(self):
        super().setUp()
        self.src = self.directory / "guest/log"
        self.src.mkdir(parents=True)
        self.store = self.directory / "store"
        self.dst = self.store / "web"
        self.write("outside/keep", "kept", mode=0o4600)
        self.write("outside/inner/keep", "kept")
        self.outside = details(self.directory / "outside")

    def archive(self, src=None, dst=None, options="", date=(), **more):
        elements = archives((src or self.src, dst or self.dst), options=options, date=date)
        return self.run_script("10-archive", elements, **more)

    def assert_outside_unchanged(self):
        self.assertEqual(details(self.directory / "outside"), self.outside)

    def assert_no_unfinished(self):
        left = [str(path) for path in self.directory.rglob(".virt-hooks-*")]
        self.assertEqual(left, [])

    def assert_refused(self, result, *parts):
        """One line names the script, the guest and the element; nothing has changed outside."""
        self.assert_one_line_error(result, "10-archive: web: archive", *parts)
        self.assertEqual(result.stdout, "")
        self.assertNotIn("/proc/self/fd", result.stderr)
        self.assert_outside_unchanged()

    def assert_failed(self, result, *parts):
        """What a program said, if one did, and then one line; nothing is left at dst."""
        self.assertEqual(result.returncode, 1, result.stderr)
        *said, error, rest = result.stderr.split("\n")
        self.assertEqual(rest, "")
        for line in said:
            self.assertRegex(line, "^(cp|chmod|sync): ")
        self.assertTrue(error.startswith("10-archive: web: archive/dircopy "), error)
        for part in parts:
            self.assertIn(part, result.stderr)
        self.assertNotIn("/proc/self/fd", result.stderr)
        self.assertNotIn("Traceback", result.stderr)
        self.assertEqual(result.stdout, "")
        self.assert_no_unfinished()
        self.assert_outside_unchanged()

    def mount(self, *arguments):
        self.assert_succeeds(run(["mount", *arguments]))

    def mount_ext4(self, name, size=8 << 20):
        """A small ext4 of its own, mounted."""
        image, point = self.directory / f"{name}.image", self.directory / name
        with open(image, "wb") as file:
            file.truncate(size)
        self.assert_succeeds(run(["mkfs.ext4", "-q", image]))
        point.mkdir()
        self.mount("-o", "loop", image, point)
        (point / "lost+found").rmdir()
        return point

    def fill_src(self):
        fill(self.src)
        (self.src / "null").unlink()

    def many_files(self, number=4000):
        inner = self.src / "many"
        inner.mkdir()
        for name in range(number):
            (inner / str(name)).write_text(str(name))

    def start(self, elements, **options):
        """The script, running."""
        command = [script("10-archive"), "web", "release", "end", "-"]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        process.stdin.write(domain(elements))
        process.stdin.close()
        process.stdin = None
        return process

    def start_and_stop_cp(self, elements):
        """The script, running, and its cp, which has copied a part and is stopped."""
        for _ in range(20):
            process = self.start(elements)
            while process.poll() is None:
                for pid in children(process.pid, "cp"):
                    if self.stop(pid):
                        parts = list(self.directory.rglob(".virt-hooks-*/data/many/*"))
                        if 0 < len(parts) < len(list((self.src / "many").iterdir())):
                            return process, pid
                        os.kill(pid, signal.SIGCONT)
                time.sleep(0.001)
            self.many_files_again()
        self.fail("cp was always faster")

    def stop(self, pid):
        """Whether a process has been stopped before it ended; it is killed after the test."""
        try:
            handle = os.pidfd_open(pid)
            self.addCleanup(os.close, handle)
            self.addCleanup(kill, handle)  # or its parent's stderr would be open for ever
            os.kill(pid, signal.SIGSTOP)
        except ProcessLookupError:
            return False
        while state(pid) not in "TZX":
            time.sleep(0.001)
        return state(pid) == "T"

    def many_files_again(self):
        for number in range(2000):
            (self.src / f"many/{number}-{time.monotonic_ns()}").touch()


class Archive(ArchiveCase):
    def test_it_keeps_everything_but_privileges(self):
        for kind in ("tmpfs", "ext4", "default ACL"):
            with self.subTest(kind):
                shutil.rmtree(self.directory / "guest")
                self.src.mkdir(parents=True)
                self.fill_src()
                os.chown(self.src, 1008, 1009)
                self.src.chmod(0o3750)
                run(["setfacl", "-m", "u:1005:rx,d:u:1005:rwx", self.src], check=True)
                os.utime(self.src, ns=(1, 987_654_321_000_000_007))
                store = self.directory / f"store of {kind}"
                if kind == "ext4":
                    self.mount_ext4(store.name)
                else:
                    store.mkdir()
                    if kind != "tmpfs":
                        run(["setfacl", "-m", "d:u:1010:rwx", store], check=True)
                        store.chmod(0o2777)
                before = details(self.src)
                expected = archived(self.src)
                result = self.archive(dst=store / "web")
                self.assert_succeeds(result)
                self.assertEqual(result.stdout, f"archived {self.src} as {store}/web\n")
                self.assertEqual(details(store / "web"), expected)
                self.assertEqual(details(self.src), before)
                self.assertEqual((store / "web/hard link").stat().st_nlink, 2)
                self.assertLess((store / "web/sparse").stat().st_blocks * 512, 1 << 20)
                self.assertEqual(run(["getcap", "-r", store]).stdout, "")
                self.assertNotEqual(run(["getcap", "-r", self.src]).stdout, "")
                self.assertEqual(os.listdir(store), ["web"])

    def test_set_user_id_and_set_group_id_go_and_sticky_stays(self):
        modes = (0o4755, 0o2755, 0o6755, 0o2644, 0o4644, 0o6000, 0o7777, 0o1777, 0o1000, 0o2070)
        for mode in modes:
            (self.src / f"directory-{mode:04o}").mkdir()
            (self.src / f"directory-{mode:04o}/file").touch()
            (self.src / f"file-{mode:04o}").touch()
            os.mkfifo(self.src / f"fifo-{mode:04o}")
            os.link(self.src / f"file-{mode:04o}", self.src / f"link-{mode:04o}")
            for kind in ("directory", "file", "fifo"):
                path = self.src / f"{kind}-{mode:04o}"
                os.chown(path, 1001, 1002)
                path.chmod(mode)
        self.src.chmod(0o6775)
        for umask in (0o000, 0o022, 0o777):
            result = self.run_with_umask(umask, archives((self.src, self.dst)))
            self.assert_succeeds(result)
            found = Path(result.stdout.rpartition(" as ")[2].strip())
            self.assertEqual(found.stat().st_mode, 0o40775)
            self.assertEqual(details(found), archived(self.src))
            for path in found.rglob("*"):
                self.assertFalse(path.lstat().st_mode & 0o6000, path)
            for mode in modes:
                for kind in ("directory", "file", "fifo", "link"):
                    copied = (found / f"{kind}-{mode:04o}").stat().st_mode & 0o7777
                    self.assertEqual(copied, mode & 0o1777)

    def run_with_umask(self, umask, elements):
        command = [script("10-archive"), "web", "release", "end", "-"]
        shell = ["sh", "-c", f'umask {umask:o}; exec "$@"', "sh"]
        return run([*shell, *command], input=domain(elements))

    def test_parents_of_dst_are_roots_whatever_the_umask(self):
        (self.src / "x").write_text("text")
        for umask in (0, 0o077, 0o777):
            with self.subTest(umask):
                top = self.directory / f"new-{umask}"
                elements = archives((self.src, top / "a/D/c"), date=[("d", "D")])
                self.assert_succeeds(self.run_with_umask(umask, elements))
                for path in (top, top / "a", top / "a/d"):
                    status = path.stat()
                    self.assertEqual(
                        (status.st_mode, status.st_uid, status.st_gid), (0o40755, 0, 0)
                    )
                self.assertEqual(details(top / "a/d/c"), details(self.src))

    def test_a_device_node_is_an_error(self):
        (self.src / "x").write_text("text")
        (self.src / "inner").mkdir()
        for kind, number in (
            (stat.S_IFCHR, os.makedev(1, 3)),
            (stat.S_IFCHR, os.makedev(5, 1)),
            (stat.S_IFBLK, os.makedev(7, 0)),
            (stat.S_IFBLK, os.makedev(0, 0)),
        ):
            for name in ("node", "inner/node"):
                with self.subTest(kind=oct(kind), number=number, name=name):
                    os.mknod(self.src / name, kind | 0o666, number)
                    before = details(self.src)
                    result = self.archive()
                    os.unlink(self.src / name)
                    self.assert_failed(result, f"'{self.dst}/{name}'", repr(str(self.src)))
                    self.assertFalse(self.dst.exists())
                    del before[name]
                    self.assertEqual(details(self.src).keys(), before.keys())
        self.assert_succeeds(self.archive())

    def test_fifos_sockets_and_links_are_copied_and_not_opened(self):
        outside = self.directory / "outside"
        os.mkfifo(self.src / "fifo")
        socket = "import socket, sys; socket.socket(1).bind(sys.argv[1])"
        run(["/usr/bin/python3", "-c", socket, self.src / "socket"], check=True)
        for name, target in {
            "file": outside / "keep",
            "directory": outside,
            "slash": f"{outside}/",
            "device": "/dev/zero",
            "root": "/",
            "dangling": "/srv/nowhere",
            "loop": "loop",
            "up": "../../..",
        }.items():
            (self.src / name).symlink_to(target)
        self.assert_succeeds(self.archive(timeout=30))
        self.assertEqual(details(self.dst), details(self.src))
        self.assertEqual(os.readlink(self.dst / "directory"), str(outside))
        self.assert_outside_unchanged()

    def test_names_of_every_kind(self):
        for name in (
            "a b",
            "-rf",
            "--",
            "a\nb",
            "é",
            "<&>",
            "'\"",
            "*",
            "\\",
            "$(reboot)",
            "%%",
            "{0}",
        ):
            with self.subTest(name):
                src = self.write(f"odd/{name}/{name}", "text").parent
                dst = self.directory / "odd-store" / name / name
                result = self.archive(f"\n {src}\t", f" {dst}\r\n")
                self.assert_succeeds(result)
                self.assertEqual((dst / name).read_text(), "text")
        os.mkdir(os.fsencode(self.src) + b"/\xff\xfe")
        self.assert_succeeds(self.archive())
        self.assertEqual(os.listdir(os.fsencode(self.dst)), [b"\xff\xfe"])

    def test_a_dst_that_is_taken_gets_a_number_and_is_not_touched(self):
        outside = self.directory / "outside"
        (self.src / "x").write_text("new")
        for kind, plant in {
            "directory": Path.mkdir,
            "full directory": lambda path: (path / "x").mkdir(parents=True),
            "file": Path.touch,
            "link to a directory": lambda path: path.symlink_to(outside),
            "link to a file": lambda path: path.symlink_to(outside / "keep"),
            "dangling link": lambda path: path.symlink_to(outside / "new"),
            "link to itself": lambda path: path.symlink_to(path),
            "FIFO": os.mkfifo,
            "closed directory": lambda path: path.mkdir(0),
        }.items():
            with self.subTest(kind):
                self.store.mkdir()
                for name in ("web", "web.1", "web.3"):
                    plant(self.store / name)
                before = snapshot(self.store)
                result = self.archive()
                self.assert_succeeds(result)
                self.assertEqual(result.stdout, f"archived {self.src} as {self.dst}.2\n")
                result = self.archive()
                self.assertEqual(result.stdout, f"archived {self.src} as {self.dst}.4\n")
                for name in ("web.2", "web.4"):
                    self.assertEqual(details(self.store / name), details(self.src))
                    shutil.rmtree(self.store / name)
                self.assertEqual(snapshot(self.store), before)
                self.assert_outside_unchanged()
                shutil.rmtree(self.store)

    def test_fifty_at_once_are_all_whole(self):
        self.fill_src()
        (self.src / "sparse").unlink()
        expected = archived(self.src)
        elements = archives((self.src, self.store / "D/web"), date=[("%Y", "D")])
        running = [self.start(elements) for _ in range(50)]
        for process in running:
            out, error = process.communicate(timeout=60)
            self.assertEqual((process.returncode, error), (0, ""), out)
        self.assert_no_unfinished()
        (year,) = self.store.iterdir()
        names = {"web", *(f"web.{number}" for number in range(1, 50))}
        self.assertEqual({path.name for path in year.iterdir()}, names)
        for path in year.iterdir():
            self.assertEqual(details(path), expected)

    def test_several_copies_are_done_in_their_order_and_the_first_that_fails_ends_it(self):
        one = self.write("one/name", "one").parent
        two = self.write("two/name", "two").parent
        elements = archives((one, self.store / "one"), (two, self.dst)) + archives((one, self.dst))
        result = self.run_script("10-archive", elements)
        self.assert_succeeds(result)
        self.assertEqual(
            result.stdout,
            f"archived {one} as {self.store}/one\narchived {two} as {self.dst}\n"
            f"archived {one} as {self.dst}.1\n",
        )
        os.mknod(two / "null", 0o020666, os.makedev(1, 3))
        result = self.run_script("10-archive", elements)
        self.assertEqual(result.returncode, 1)
        self.assertIn(repr(str(two)), result.stderr)
        self.assertEqual(result.stdout, f"archived {one} as {self.store}/one.1\n")
        self.assertEqual(sorted(os.listdir(self.store)), ["one", "one.1", "web", "web.1"])

    def test_a_missing_src_is_an_error_unless_it_is_optional(self):
        missing = self.directory / "missing"
        (self.src / "x").write_text("text")
        for options in ("", " optional='no'"):
            with self.subTest(options):
                elements = archives((self.src, self.dst))
                elements += archives((missing, self.store / "other"), options=options)
                result = self.run_script("10-archive", elements)
                self.assert_refused(result, f"'{missing}' is missing")
                self.assertFalse(self.store.exists())
        result = self.archive(missing, options=" optional='yes'")
        self.assert_succeeds(result)
        self.assertIn(str(missing), result.stdout)
        self.assertFalse(self.store.exists())
        self.assert_succeeds(self.archive(options=" optional='yes'"))
        self.assertEqual(details(self.dst), details(self.src))
        (self.directory / "dangling").symlink_to(missing)
        self.assert_refused(
            self.archive(self.directory / "dangling", options=" optional='yes'"),
            f"leads to '{missing}'",
        )

    def test_a_guest_that_is_alive_is_not_archived(self):
        (self.src / "x").write_text("text")
        for reason in ("saved", "migrated"):
            for src in (self.src, self.directory / "missing"):
                with self.subTest(reason=reason, src=src):
                    elements = archives((src, self.dst))
                    result = self.run_script(
                        "10-archive", elements, "web", "release", "end", reason
                    )
                    self.assert_succeeds(result)
                    self.assertIn(reason, result.stdout)
                    self.assertFalse(self.store.exists())

    def test_for_any_other_reason_it_is_archived(self):
        (self.src / "x").write_text("text")
        for reason in (
            "-", "unknown", "shutdown", "destroyed", "crashed", "failed", "from snapshot", "daemon",
            "Saved", "",
        ):  # fmt: skip
            with self.subTest(reason):
                dst = self.store / f"{reason} guest"
                elements = archives((self.src, dst))
                self.assert_succeeds(
                    self.run_script("10-archive", elements, "web", "release", "end", reason)
                )
                self.assertEqual(details(dst), details(self.src))

    def test_bad_paths_are_refused_with_the_path_that_they_led_to(self):
        top = self.directory
        (self.src / "inner").mkdir()
        real = self.write("guest/real/x", "the guest's").parent
        (top / "guest/link").symlink_to(real)
        (top / "guest/dangling").symlink_to("/srv/nowhere")
        (top / "guest/loop").symlink_to("loop")
        os.mkfifo(top / "guest/fifo")
        before = snapshot(top)
        for_both = [
            ("relative", "not an absolute path"),
            ("../relative", "not an absolute path"),
            ("~/x", "not an absolute path"),
            (f"{real}/", "'/' at its end"),
            (f"//{real}", "'//'"),
            (f"{top}//guest/real", "'//'"),
            (f"{real}/.", "'.'"),
            (f"{real}/..", "'..'"),
            (f"{top}/guest/../guest/real", "'..'"),
            (f"{top}/guest/missing/../real", "'..'"),
            (f"{top}/guest/link/new", f"leads to '{real}"),
            (f"{top}/guest/link/new/new", f"leads to '{real}/new"),
            (f"{top}/guest/dangling/x", "leads to '/srv/nowhere"),
            (f"{top}/guest/loop/x", "is not a directory"),
            (f"{real}/x/y", "is not a directory"),
            (f"{top}/guest/fifo/x", "is not a directory"),
            (f"/proc/self/root{real}", "leads to '/"),
            ("/proc/self/cwd/x", "leads to"),
            (f"{top}/{'n' * 256}/x", "is too long"),
        ]
        of_src = [
            (f"{top}/guest/link", f"leads to '{real}'"),
            (f"{top}/guest/dangling", "leads to '/srv/nowhere'"),
            (f"{top}/guest/loop", "is not a directory"),
            (f"{real}/x", "is not a directory"),
            (f"{top}/guest/fifo", "is not a directory"),
        ]
        for number, (path, reason) in enumerate(for_both + of_src):
            both = number < len(for_both)
            for src, dst in ((path, self.dst), (self.src, path))[: 2 if both else 1]:
                with self.subTest(src=str(src)[:200], dst=str(dst)[:200]):
                    result = self.archive(src, dst)
                    self.assert_refused(result, "archive/dircopy", reason)
                    at_fault = path if src == path else os.path.dirname(path)
                    self.assertIn(repr(at_fault)[:-1], result.stderr)
                    self.assertEqual(snapshot(top), before)
        for src, dst in (
            (self.src, self.src),
            (self.src, self.src / "inner"),
            (self.src, self.src / "inner/new"),
            (self.src, self.src / "new/new"),
            ("/", self.dst),
            ("/srv", self.dst),
            (top, self.dst),
        ):
            with self.subTest(src=src, dst=dst):
                result = self.archive(src, dst)
                self.assert_refused(result, "is in its own source", repr(str(dst)), repr(str(src)))
                self.assertEqual(snapshot(top), before)
        self.assert_refused(self.archive(dst="/"), "archive/dircopy", "'/'")
        # a bad second one leaves the first undone
        for bad in ((self.src, "relative"), (self.src, "/"), (real / "x", self.dst)):
            result = self.run_script("10-archive", archives((self.src, self.dst), bad))
            self.assert_refused(result)
            self.assertEqual(snapshot(top), before)

    def test_a_name_that_only_begins_like_src_is_not_in_it(self):
        (self.src / "x").write_text("text")
        self.assert_succeeds(self.archive(dst=f"{self.src}-2"))
        self.assert_succeeds(self.archive(dst=f"{self.src}.old/x"))
        self.assertTrue((self.directory / "guest/log-2/x").exists())

    def test_a_dst_that_is_in_src_by_another_name_is_an_error(self):
        (self.src / "x").write_text("text")
        alias = self.directory / "alias"
        alias.mkdir()
        self.mount("--bind", self.src, alias)
        result = self.archive(dst=alias / "web")
        self.assert_failed(result)
        self.assertEqual(os.listdir(self.src), ["x"])

    def test_elements_that_it_does_not_know_are_refused(self):
        src, dst = f"<src>{self.src}</src>", f"<dst>{self.dst}</dst>"
        (self.src / "x").write_text("text")
        good = f"<dircopy>{src}{dst}</dircopy>"
        dated = f"<dircopy>{src}<dst>{self.store}/D</dst></dircopy>"
        form, replace = "<format>%Y</format>", "<replace>D</replace>"
        for elements, *parts in [
            (f"{good}<dircpy>{src}{dst}</dircpy>", "unknown element <dircpy>"),
            (f"{good}<dir>/srv/x</dir>", "unknown element <dir>"),
            (f"{good}<dircopy>{src}{dst}<dst>/srv/x</dst></dircopy>", "second <dst>"),
            (f"{good}<dircopy>{src}</dircopy>", "<dst> is missing"),
            (f"{good}<dircopy>{dst}</dircopy>", "<src> is missing"),
            (f"{good}<dircopy>{src}<dst/></dircopy>", "dst: empty"),
            (f"{good}<dircopy><src> </src>{dst}</dircopy>", "src: empty"),
            (f"{good}<dircopy>{src}{dst}{form}</dircopy>", "unknown element <format>"),
            (f"{good}<dircopy>text{src}{dst}</dircopy>", "text"),
            (f"{good}text", "text"),
            (f"{good}<dircopy mode='0755'>{src}{dst}</dircopy>", "mode='0755'"),
            (f"{good}<dircopy optional='true'>{src}{dst}</dircopy>", "optional='true'"),
            (f"{good}<dircopy optional=''>{src}{dst}</dircopy>", "optional=''"),
            (f"{dated}<datestr>{form}</datestr>", "<replace> is missing"),
            (f"{dated}<datestr>{replace}</datestr>", "<format> is missing"),
            (f"{dated}<datestr/>", "missing"),
            (f"{dated}<datestr>{form}{form}{replace}</datestr>", "second <format>"),
            (f"{dated}<datestr><format/>{replace}</datestr>", "format: empty"),
            (f"{dated}<datestr>{form}<replace/></datestr>", "replace: empty"),
            (f"{dated}<datestr>{form}<replace> </replace></datestr>", "replace: empty"),
            (f"{dated}<datestr utc='yes'>{form}{replace}</datestr>", "utc='yes'"),
            (f"{dated}<datestr>{form}{replace}<zone>UTC</zone></datestr>", "<zone>"),
            (f"{dated}<datestr>{form}{replace}text</datestr>", "text"),
            (f"{dated}<datestring>{form}{replace}</datestring>", "<datestring>"),
            (f"{dated}<datestr>{form}<replace>é</replace></datestr>", "replace 'é' is in no <dst>"),
            (f"{good}<datestr>{form}{replace}</datestr>", "replace 'D' is in no <dst>"),
            (f"<datestr>{form}{replace}</datestr>", "replace 'D' is in no <dst>"),
        ]:
            with self.subTest(elements):
                result = self.run_script("10-archive", f"<archive>{elements}</archive>")
                self.assert_refused(result, *parts)
                self.assertFalse(self.store.exists())
        result = self.run_script("10-archive", f"<archive>{dated}</archive>" + archives(
            (self.src, self.dst), date=[("%Y", "D")]))  # fmt: skip
        self.assert_refused(result, "replace 'D' is in no <dst>")  # of its own <archive>

    def test_bad_formats_are_refused(self):
        for form in (
            "%", "%Y-%", "%%%", "%Q", "%f", "%i", "%J", "%K", "%L", "%N", "%o", "%q", "%v", "%E",
            "%O", "%-", "%^", "%_", "%!Y", "%é", "% Y", "%Y %", "%(Y)", "%{Y}", "%1", "%:z",
            "%$", "%Y%Q",
        ):  # fmt: skip
            with self.subTest(form):
                result = self.archive(dst=self.store / "D", date=[(form, "D")])
                self.assert_refused(result, "archive/datestr/format", repr(form))
                self.assertFalse(self.store.exists())
        for form in ("/", "..", ".", "a/", "/a", "a//b", "../a", "a/../../b", "%D/", "./%Y"):
            with self.subTest(form):
                result = self.archive(dst=self.store / "D", date=[(form, "D")])
                self.assert_refused(result, "archive/dircopy", str(self.store))
                self.assertFalse(self.store.exists())

    def test_every_directive_of_strftime_is_good(self):
        (self.src / "x").write_text("text")
        for letter in "aAbBcCdDeFgGhHIjklmMnpPrRsStTuUVwWxXyYzZ%":
            with self.subTest(letter):
                dst = self.store / f"{ord(letter)}/before-D-after"
                self.assert_succeeds(self.archive(dst=dst, date=[(f"%{letter}", "D")]))
                (name,) = [path for path in dst.parent.rglob("*-after")]
                self.assertTrue((name / "x").exists())
                date = str(name.relative_to(dst.parent))[len("before-") : -len("-after")]
                self.assertEqual("%" in date, letter == "%")
                self.assertTrue(date)
        for form in ("%-d", "%_H", "%0e", "%^a", "%#Z", "%Ey", "%Od", "%%Y", "no date", "%Y%m%d%H"):
            with self.subTest(form):
                dst = self.store / f"{form}/D"
                now = time.localtime()
                self.assert_succeeds(self.archive(dst=dst, date=[(form, "D")]))
                self.assertIn(os.listdir(dst.parent)[0], (time.strftime(form, now),
                              time.strftime(form)))  # fmt: skip

    def test_dates(self):
        (self.src / "x").write_text("text")
        two = self.write("two/name", "two").parent
        elements = archives(
            (self.src, self.store / "%DATE%/%DATE%-%TIME%"),
            (two, self.store / "two/TIME/%DATE%"),
            date=[("%Y-%m-%d", "%DATE%"), ("%H", "%TIME%"), (" %Y/%j\n", "TIME")],
        )
        before = time.localtime()
        result = self.run_script("10-archive", elements)
        self.assert_succeeds(result)
        for now in (before, time.localtime()):
            date, hour = time.strftime("%Y-%m-%d", now), time.strftime("%H", now)
            if (self.store / date / f"{date}-{hour}").exists():
                break
        self.assertEqual(
            result.stdout,
            f"archived {self.src} as {self.store}/{date}/{date}-{hour}\n"
            f"archived {two} as {self.store}/two/{time.strftime('%Y/%j', now)}/{date}\n",
        )

    def test_dates_are_of_the_local_time(self):
        (self.src / "x").write_text("text")
        elements = archives((self.src, self.store / "D"), date=[("%Z%z", "D")])
        for zone in ("AAA-14", "BBB+12"):
            environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "TZ": zone}
            command = [script("10-archive"), "web", "release", "end", "-"]
            self.assert_succeeds(run(command, input=domain(elements), env=environment))
        self.assertEqual(sorted(os.listdir(self.store)), ["AAA+1400", "BBB-1200"])

    def test_one_moment_for_the_whole_run(self):
        self.many_files()
        two = self.write("two/name", "two").parent
        elements = archives((self.src, self.store / "one-D"), date=[("%s", "D")])
        elements += archives((two, self.store / "two-D"), date=[("%s", "D")])
        process, cp = self.start_and_stop_cp(elements)
        time.sleep(1.1)
        os.kill(cp, signal.SIGCONT)
        out, error = process.communicate(timeout=60)
        self.assertEqual((process.returncode, error), (0, ""))
        one, two = re.findall(r"-(\d+)\n", out)
        self.assertEqual(one, two)

    def test_while_it_copies_only_root_can_look_and_nothing_is_at_dst(self):
        self.many_files()
        self.store.mkdir(mode=0o755)
        run(["setfacl", "-m", "d:u:1010:rwx,d:o::rwx", self.store], check=True)
        elements = archives((self.src, self.store / "a/b/of-D/x/D"), date=[("%Y", "D")])
        process, cp = self.start_and_stop_cp(elements)
        self.assertFalse(list(self.store.glob("a/b/of-*/x/*")))
        # above the date, so that tomorrow's run finds it
        self.assertEqual(
            sorted(name[: len(UNFINISHED)] for name in os.listdir(self.store / "a/b"))[0],
            UNFINISHED,
        )
        (unfinished,) = self.store.rglob(".virt-hooks-*")
        self.assertEqual(unfinished.stat().st_mode, 0o40700)
        self.assertEqual((unfinished.stat().st_uid, unfinished.stat().st_gid), (0, 0))
        for path in (unfinished, unfinished / "data", unfinished / "data/many"):
            as_other = ["setpriv", "--reuid=1010", "--regid=1010", "--clear-groups", "ls", path]
            self.assertNotEqual(run(as_other).returncode, 0, path)
        os.kill(cp, signal.SIGCONT)
        out, error = process.communicate(timeout=60)
        self.assertEqual((process.returncode, error), (0, ""))
        self.assertEqual(details(Path(out.rpartition(" as ")[2].strip())), archived(self.src))
        self.assert_no_unfinished()

    def test_a_killed_run_ends_with_its_cp_and_the_next_removes_what_it_left(self):
        self.many_files()

        def elements(day):
            return archives((self.src, self.store / "web/D/log"), date=[(day, "D")])

        process, cp = self.start_and_stop_cp(elements("monday"))
        process.kill()
        process.wait()
        until = time.monotonic() + 20
        while not ended(cp) and time.monotonic() < until:
            time.sleep(0.001)
        self.assertTrue(ended(cp))  # the kernel has killed it with its parent
        (left,) = self.directory.rglob(".virt-hooks-*")
        self.assertFalse(list(self.store.glob("web/*/log")))
        self.assert_succeeds(self.run_script("10-archive", elements("tuesday")))
        self.assertFalse(left.exists())
        self.assert_no_unfinished()
        self.assertEqual(details(self.store / "web/tuesday/log"), archived(self.src))

    def test_what_a_running_one_has_begun_stays(self):
        self.many_files()
        elements = archives((self.src, self.dst))
        process, cp = self.start_and_stop_cp(elements)
        (unfinished,) = self.directory.rglob(".virt-hooks-*")
        before = len(list(unfinished.rglob("*")))
        self.assert_succeeds(self.run_script("10-archive", elements))
        self.assertEqual(len(list(unfinished.rglob("*"))), before)
        os.kill(cp, signal.SIGCONT)
        out, error = process.communicate(timeout=60)
        self.assertEqual((process.returncode, error), (0, ""))
        self.assertEqual(out, f"archived {self.src} as {self.dst}.1\n")
        for path in (self.dst, self.store / "web.1"):
            self.assertEqual(details(path), archived(self.src))
        self.assert_no_unfinished()

    def test_sigterm_and_sigint_clean_up(self):
        self.many_files(15000)
        for number, expected in ((signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, 130)):
            with self.subTest(number):
                for _ in range(20):
                    process = self.start(archives((self.src, self.dst)))
                    while not list(self.store.glob(".virt-hooks-*/data/many/1*")):
                        if process.poll() is not None:
                            break
                        time.sleep(0.001)
                    process.send_signal(number)
                    _out, error = process.communicate(timeout=60)
                    if process.returncode:  # or it was faster
                        break
                    shutil.rmtree(self.store)
                self.assertEqual((process.returncode, error), (expected, ""))
                self.assertEqual(os.listdir(self.store), [])

    def test_names_that_only_look_like_a_killed_runs_do_no_harm(self):
        # a guest's root may have planted them where the archives are
        outside = self.directory / "outside"
        host = os.uname().nodename
        (self.src / "x").write_text("text")
        dead = "99999999-1"
        for name in (
            f"{UNFINISHED}net-1", f"{UNFINISHED}sys-1", f"{UNFINISHED}self-1", f"{UNFINISHED}-",
            f"{UNFINISHED}", f"{UNFINISHED}.-1", f"{UNFINISHED}..-1", f"{UNFINISHED}uptime-1",
            f"{UNFINISHED}1", f"{UNFINISHED}1-", f"{UNFINISHED}-1-1", f"{UNFINISHED}\n-1",
            f"{UNFINISHED}{'9' * 200}-1", f"{UNFINISHED}1-0-x", f"{UNFINISHED}²-1",
            f"{UNFINISHED}{dead}", ".virt-hooks-", ".virt-hooks", f".virt-hooks-{host}",
        ):  # fmt: skip
            for kind, plant in {
                "directory": lambda path: (path / "inner").mkdir(parents=True),
                "link": lambda path: path.symlink_to(outside),
                "FIFO": os.mkfifo,
            }.items():
                with self.subTest(name=name, kind=kind):
                    shutil.rmtree(self.store, ignore_errors=True)
                    self.store.mkdir()
                    plant(self.store / name)
                    self.assert_succeeds(self.archive())
                    self.assertEqual(details(self.dst), details(self.src))
                    self.assert_outside_unchanged()

    def test_another_hosts_unfinished_archives_stay(self):
        # hosts may share a directory for archives; this one cannot tell what runs on another
        (self.src / "x").write_text("text")
        host = os.uname().nodename
        others = (f"other{host}", f"{host}x", f"{host}-2", f"{host}-99999999")
        names = [f".virt-hooks-{other}-1234-5678" for other in others]
        for name in names:
            (self.store / name).mkdir(parents=True)
        self.assert_succeeds(self.archive())
        self.assertEqual(sorted(os.listdir(self.store)), sorted([*names, "web"]))

    def test_a_full_disk_leaves_nothing_behind(self):
        self.write("guest/log/big", "x" * (3 << 20))
        for number in range(50):
            self.write(f"guest/log/many/{number}", "x")
        before = snapshot(self.src)
        for kind, options in (
            ("tmpfs", "size=1M"),
            ("inodes", "nr_inodes=20"),
            ("none", "nr_inodes=2"),
        ):
            with self.subTest(kind):
                point = self.directory / kind
                point.mkdir()
                self.mount("-t", "tmpfs", "-o", options, "tests", point)
                result = self.archive(dst=point / "a/D/web", date=[("%Y", "D")])
                self.assert_failed(result, "No space left on device")
                if kind != "none":
                    self.assertIn(f"'{point}/a/", result.stderr)
                self.assertFalse(list(point.rglob("web*")))
                self.assertEqual(snapshot(self.src), before)
        with self.subTest("ext4"):
            point = self.mount_ext4("ext4", 2 << 20)
            self.assert_failed(self.archive(dst=point / "web"), "No space left on device")
            self.assertEqual(os.listdir(point), [])
            self.assertEqual(snapshot(self.src), before)
            (self.src / "big").unlink()
            self.assert_succeeds(self.archive(dst=point / "web"))
            self.assertEqual(details(point / "web"), archived(self.src))

    def test_a_disk_that_nobody_can_write_to_is_an_error(self):
        (self.src / "x").write_text("text")
        point = self.mount_ext4("ext4")
        (point / "there").mkdir()
        self.mount("-o", "remount,ro", point)
        for dst in (point / "web", point / "there/web", point / "new/web"):
            result = self.archive(dst=dst)
            self.assert_failed(result, "Read-only file system")
            with self.subTest(dst):
                self.assertIn(str(point), result.stderr)  # the value at fault
        self.assertEqual(os.listdir(point), ["there"])

    def test_a_tree_deeper_than_a_path_may_be_long_is_an_error(self):
        (self.src / "x").write_text("text")
        made = "import os\nfor _ in range(30):\n    os.mkdir('d' * 200); os.chdir('d' * 200)"
        self.addCleanup(run, ["rm", "-rf", self.src])  # shutil.rmtree may not manage
        self.assert_succeeds(run(["/usr/bin/python3", "-c", made], cwd=self.src))
        result = self.archive()
        self.assertEqual(result.returncode, 1)
        self.assertIn("File name too long", result.stderr)
        self.assertNotIn("/proc/self/fd", result.stderr)
        self.assertEqual(os.listdir(self.store), [])
        self.assertTrue((self.src / "x").exists())

    def test_it_is_on_the_disk_before_it_is_at_dst_and_there_before_success_is_reported(self):
        (self.src / "x").write_text("text")
        trace = self.directory / "trace"
        calls = "trace=execve,syncfs,/rename,fsync,write,exit_group,mkdir,mkdirat"
        command = [
            "strace",
            "-f",
            "-y",
            "-s",
            "300",
            "-e",
            calls,
            "-o",
            trace,
            script("10-archive"),
        ]
        elements = archives((self.src, self.store / "D/web"), date=[("d", "D")])
        result = run([*command, "web", "release", "end", "-"], input=domain(elements))
        self.assert_succeeds(result)
        lines = trace.read_text().split("\n")

        def at(pattern):
            found = [number for number, line in enumerate(lines) if re.search(pattern, line)]
            self.assertEqual(len(found), 1, (pattern, found))
            return found[0]

        store = re.escape(str(self.store))
        unfinished = rf"{store}/\.virt-hooks-[^/>]+"
        steps = [
            at(rf'mkdir(at)?\(.*{store}>, "\.virt-hooks-.*= 0$'),
            at(r'execve\("[^"]*/cp", .*= 0$'),
            at(r'execve\("[^"]*/chmod", .*= 0$'),
            at(r"syncfs\(.*\) += 0$"),
            at(
                rf'renameat2\(\d+<{unfinished}>, "data", \d+<{store}/d>, "web", .*_NOREPLACE\) = 0$'
            ),
            at(rf"fsync\(\d+<{store}/d>\) += 0$"),
            at(r'write\(1<.*"archived '),
        ]
        self.assertEqual(steps, sorted(steps))
        # cp and chmod were at their end when syncfs began
        for step in steps[1:3]:
            process = lines[step].split()[0]
            ended = at(rf"^{process} +exit_group\(0\)")
            self.assertLess(ended, steps[3])
        self.assertFalse([line for line in lines if re.search(r"rename(at)?\(", line)])

    def test_success_is_not_reported_when_flushing_fails(self):
        (self.src / "x").write_text("text")
        elements = archives((self.src, self.dst))
        for call, at_dst in (("syncfs", False), ("fsync", True)):
            with self.subTest(call):
                inject = ["strace", "-f", "-o", self.directory / "trace"]
                inject += ["-e", f"trace={call}", "-e", f"inject={call}:error=EIO"]
                command = [*inject, script("10-archive"), "web", "release", "end", "-"]
                result = run(command, input=domain(elements))
                self.assert_failed(result, "Input/output error")
                self.assertEqual(self.dst.exists(), at_dst)

    def test_where_the_file_system_has_no_rename_that_replaces_nothing(self):
        (self.src / "x").write_text("text")
        inject = ["strace", "-f", "-o", self.directory / "trace"]
        inject += ["-e", "trace=renameat2", "-e", "inject=renameat2:error=EINVAL"]  # as NFS does
        command = [*inject, script("10-archive"), "web", "release", "end", "-"]
        for name in ("web", "web.1", "web.2"):
            result = run(command, input=domain(archives((self.src, self.dst))))
            self.assert_succeeds(result)
            self.assertEqual(result.stdout, f"archived {self.src} as {self.store}/{name}\n")
        (self.store / "web.3").symlink_to("/srv/nowhere")
        result = run(command, input=domain(archives((self.src, self.dst))))
        self.assertEqual(result.stdout, f"archived {self.src} as {self.dst}.4\n")

    def test_what_is_mounted_in_src_is_archived_too(self):
        (self.src / "x").write_text("text")
        (self.src / "tmp").mkdir()
        self.mount("-t", "tmpfs", "tests", self.src / "tmp")
        self.write("guest/log/tmp/y", "in the ramdisk")
        self.assert_succeeds(self.archive())
        self.assertEqual((self.dst / "tmp/y").read_text(), "in the ramdisk")

    def test_a_dry_run_changes_nothing(self):
        self.fill_src()
        (self.store / f"{UNFINISHED}99999999-1").mkdir(parents=True)
        before = details(self.directory)
        result = self.archive(dst=self.store / "D", date=[("%Y", "D")], dry_run=True)
        self.assert_succeeds(result)
        self.assertRegex(result.stdout, rf"^would archive {self.src} as {self.store}/\d{{4}}\n$")
        for options in ("", " optional='yes'"):  # mkdirs may not have created it
            result = self.archive("/srv/missing", options=options, dry_run=True)
            self.assert_succeeds(result)
            self.assertEqual(result.stdout.count("\n"), 1)
        self.assert_refused(self.archive(dst="/", dry_run=True), "'/'")
        self.assertEqual(details(self.directory), before)

    def test_other_peoples_elements_are_left_alone(self):
        (self.src / "x").write_text("text")
        elements = archives((self.src, self.dst))
        bare = f"<domain><name>web</name><metadata>{elements}</metadata></domain>"
        for xml in (
            domain(""),
            domain("<archive/>"),
            domain(f"<!-- {elements} -->"),
            domain(elements).replace("urn:virt-hooks:1", "urn:virt-hooks:2"),
            bare.replace("<archive>", "<archive xmlns='urn:o'>"),
        ):
            with self.subTest(xml):
                result = self.run_script("10-archive", xml)
                self.assert_succeeds(result)
                self.assertEqual(result.stdout, "")
                self.assertFalse(self.store.exists())
        self.assert_succeeds(self.run_script("10-archive", bare))
        self.assertTrue((self.dst / "x").exists())

    def test_it_works_alone_wherever_it_is_copied_in_the_c_locale(self):
        copy = self.directory / "copy"
        shutil.copy(script("10-archive"), copy)
        self.write("guest/log/träd", "text")
        result = run(
            ["env", "-i", "PATH=/usr/bin:/bin", "LC_ALL=C", copy, "web", "release", "end", "-"],
            input=domain(archives((self.src, self.store / "träd"))), encoding="utf-8",
        )  # fmt: skip
        self.assert_succeeds(result)
        self.assertTrue((self.store / "träd/träd").exists())


class Race(ArchiveCase):
    """A guest's root exchanges directories for links while the host's root archives."""

    def setUp(self):
        super().setUp()
        self.victim = self.directory / "victim"
        for number in range(40):
            self.write(f"guest/log/inner/{number}", "the guest's", mode=0o777)
            if number % 2:
                self.write(f"victim/{number}", "victim", mode=0o4600)
        self.write("victim/inner/0", "victim", mode=0o4600)
        self.write("victim/log/0", "victim", mode=0o4600)
        (self.src / "inner").chmod(0o2777)
        os.chown(self.src / "inner", 1001, 1001)
        self.before = details(self.victim)

    def assert_victim_unchanged(self):
        self.assertEqual(details(self.victim), self.before)

    def assert_victim_not_archived(self):
        for path in self.store.rglob("*"):
            if path.is_file() and not path.is_symlink():
                self.assertEqual(path.read_text(), "the guest's", path)

    def test_nothing_outside_is_archived_through_what_is_swapped_in_src(self):
        (self.src / "link").symlink_to(self.victim)
        with swapping(self.src / "inner", self.src / "link"):
            for _ in for_seconds(2):
                self.archive()
        self.assert_victim_unchanged()
        self.assert_victim_not_archived()
        self.assert_no_unfinished()

    def test_nothing_outside_is_archived_through_a_swapped_parent_of_src(self):
        link = self.directory / "link"
        link.symlink_to(self.victim)
        with swapping(self.src.parent, link):
            for _ in for_seconds(2):
                self.archive()
        self.assert_victim_unchanged()
        self.assert_victim_not_archived()

    def test_nothing_is_written_through_a_swapped_parent_of_dst(self):
        self.store.mkdir()
        (self.directory / "link").symlink_to(self.victim)
        with swapping(self.store, self.directory / "link"):
            for number in for_seconds(2):
                self.archive(dst=self.store / f"{number}/x")
        self.assert_victim_unchanged()

    def test_nothing_is_written_through_what_is_swapped_in_an_unfinished_archive(self):
        # in a guest's own directory the guest's root reaches what it is 0700 for others
        self.store.mkdir()
        link = self.directory / "link"
        for path in self.victim.iterdir():
            path.chmod(0o6755)
        self.before = details(self.victim)
        link.symlink_to(self.victim)
        command = ["/usr/bin/python3", "-IS", "-c", INTRUDER, self.store, link]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as intruder:
            intruder.stdout.readline()
            try:
                for _ in for_seconds(3):
                    self.archive()
                    if details(self.victim) != self.before:
                        break
            finally:
                intruder.kill()
        self.assert_victim_unchanged()


if __name__ == "__main__":
    unittest.main()
