"""30-preload makes dst hold what src holds, and changes nothing else."""

import contextlib
import hashlib
import os
import shutil
import subprocess
import unittest
from pathlib import Path
from xml.sax.saxutils import escape

from harness import TestCase, domain, run, script, snapshot
from test_post_rm_rf import for_seconds, swapping

A_TIME = 1_234_567_890_123_456_789  # in nanoseconds


def dircopies(*pairs, options=""):
    return "".join(
        f"<dircopy{options}><src>{escape(str(src))}</src><dst>{escape(str(dst))}</dst></dircopy>"
        for src, dst in pairs
    )


def preloads(*pairs, options=""):
    return f"<preload>{dircopies(*pairs, options=options)}</preload>"


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
    """Put a file of every kind into a directory."""
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
    os.mknod(directory / "null", 0o020666, os.makedev(1, 3))
    for number in range(3):
        (directory / f"-empty {number}\n").touch()
    with open(directory / "sparse", "wb") as file:
        file.write(b"x")
        file.truncate(64 << 20)
        file.seek(32 << 20)
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
        subprocess.run(command, check=True)
    for name, mode in {
        "attributes": 0o640,
        "hard link": 0o4751,
        "inner": 0o2770,
        "sparse": 0o600,
        "inner/closed": 0,
    }.items():
        os.chown(directory / name, 1001, 1002)
        (directory / name).chmod(mode)
    for path in (*directory.rglob("*"), directory):
        if not path.is_symlink():
            os.utime(path, ns=(A_TIME, A_TIME + len(path.name)))


class Preload(TestCase):
    def setUp(self):
        super().setUp()
        self.src = self.directory / "golden"
        self.src.mkdir()
        self.dst = self.directory / "guest/tmp"
        self.write("outside/keep", "kept", mode=0o600)
        self.write("outside/inner/keep", "kept")
        os.chown(self.directory / "outside/keep", 1007, 1007)
        self.outside = details(self.directory / "outside")

    def preload(self, src=None, dst=None, options="", **more):
        elements = preloads((src or self.src, dst or self.dst), options=options)
        return self.run_script("30-preload", elements, **more)

    def assert_outside_unchanged(self):
        self.assertEqual(details(self.directory / "outside"), self.outside)

    def assert_refused(self, result, *parts):
        """One line names the script, the guest and the element; nothing has changed outside."""
        self.assert_one_line_error(result, "30-preload: web: preload", *parts)
        self.assertEqual(result.stdout, "")
        self.assertNotIn("/proc/self/fd", result.stderr)
        self.assert_outside_unchanged()

    def assert_cp_refused(self, result, *parts):
        """What cp said, and then one line: the script, the guest, the element and the value."""
        self.assertEqual(result.returncode, 1, result.stderr)
        *said, error, rest = result.stderr.split("\n")
        self.assertEqual(rest, "")
        self.assertTrue(said)
        for line in said:
            self.assertTrue(line.startswith("cp: "), line)
        for part in parts:
            self.assertIn(part, "\n".join(said))
        self.assertTrue(error.startswith("30-preload: web: preload/dircopy "), error)
        self.assertIn(repr(str(self.src)), error)
        self.assertIn("cp failed, exit status 1", error)
        self.assertNotIn("/proc/self/fd", result.stderr)
        self.assertEqual(result.stdout, "")
        self.assert_outside_unchanged()

    def mount(self, *arguments):
        self.assert_succeeds(run(["mount", *arguments]))

    def test_a_new_dst_is_the_same_as_src_in_everything(self):
        fill(self.src)
        os.chown(self.src, 1008, 1009)
        self.src.chmod(0o3750)
        self.assert_succeeds(run(["setfacl", "-m", "u:1005:rx,d:u:1005:rwx", self.src]))
        os.utime(self.src, ns=(A_TIME, A_TIME))
        before = details(self.src)
        result = self.preload()
        self.assert_succeeds(result)
        self.assertEqual(result.stdout, f"copied {self.src} into {self.dst}\n")
        self.assertEqual(details(self.dst), before)
        self.assertEqual(details(self.src), before)
        self.assertIn("security.capability", extended(self.dst / "capable"))
        self.assertIn("system.posix_acl_default", extended(self.dst / "inner"))
        self.assertIn("system.posix_acl_default", extended(self.dst))
        self.assertEqual((self.dst / "hard link").stat().st_nlink, 2)

    def test_a_sparse_file_stays_sparse(self):
        fill(self.src)
        self.assert_succeeds(self.preload())
        status = (self.dst / "sparse").stat()
        self.assertEqual(status.st_size, 64 << 20)
        self.assertLess(status.st_blocks * 512, 1 << 20)

    def test_twice_is_the_same_as_once(self):
        fill(self.src)
        before = details(self.src)
        for number in range(3):
            with self.subTest(number):
                self.assert_succeeds(self.preload())
                self.assertEqual(details(self.dst), before)
        # also after a guest has changed everything
        for path in self.dst.rglob("*"):
            if not path.is_symlink():
                os.utime(path)
                os.chown(path, 1, 1)
                path.chmod(0o700)
                if path.is_file() and path.name != "null":
                    path.write_text("changed by the guest")
        self.assert_succeeds(self.preload())
        root = details(self.dst)
        del before["."], root["."]  # which keeps what it has when it exists
        self.assertEqual(root, before)

    def test_parents_of_a_new_dst_are_roots_whatever_the_umask(self):
        self.write("golden/x", "text")
        for number, umask in enumerate((0, 0o077, 0o777)):
            with self.subTest(umask):
                top = self.directory / f"new-{number}"
                xml = domain(preloads((self.src, top / "a/b")))
                command = [script("30-preload"), "web", "prepare", "begin", "-"]
                result = run(["sh", "-c", f'umask {umask:o}; "$@"', "sh", *command], input=xml)
                self.assert_succeeds(result)
                for path in (top, top / "a"):
                    status = path.stat()
                    self.assertEqual(
                        (status.st_mode, status.st_uid, status.st_gid), (0o40755, 0, 0)
                    )
                self.assertEqual((top / "a/b").stat().st_mode, self.src.stat().st_mode)
                self.assertEqual((top / "a/b/x").stat().st_mode, 0o100644)

    def test_an_existing_dst_keeps_its_mode_owner_acl_and_other_contents(self):
        fill(self.src)
        os.chown(self.src, 1008, 1009)
        self.src.chmod(0o3750)
        source = details(self.src)
        acls = {
            "none": [],
            "access": ["u:1010:rwx"],
            "default": ["d:u:1010:rwx,d:m::rwx"],
            "both": ["u:1010:r,d:g:1010:rx"],
        }
        for mode in (0o1777, 0o700, 0o2775, 0o4511, 0):
            for name, acl in acls.items():
                for of_src in ("u:1005:rx,d:u:1005:rwx", ""):
                    with self.subTest(mode=oct(mode), acl=name, of_src=of_src):
                        if of_src:
                            run(["setfacl", "-m", of_src, self.src], check=True)
                        else:
                            run(["setfacl", "-b", self.src], check=True)
                        source = details(self.src)
                        own = self.write("guest/tmp/own", "the guest's", mode=0o600)
                        self.write("guest/tmp/inner/own", "the guest's")
                        os.chown(self.dst, 1011, 1012)
                        self.dst.chmod(mode)
                        if acl:
                            run(["setfacl", "-m", *acl, self.dst], check=True)
                        os.setxattr(self.dst, "trusted.own", b"own")
                        status, attributes = self.dst.stat(), extended(self.dst)
                        self.assert_succeeds(self.preload())
                        after = self.dst.stat()
                        self.assertEqual(
                            (after.st_mode, after.st_uid, after.st_gid),
                            (status.st_mode, status.st_uid, status.st_gid),
                        )
                        self.assertEqual(extended(self.dst), attributes)
                        self.assertEqual(own.read_text(), "the guest's")
                        copied = details(self.dst)
                        for extra in ("own", "inner/own"):
                            self.assertEqual(copied.pop(extra)[5], b"the guest's")
                        # nothing in it has got its set-group-id bit or its default ACL
                        del copied["."]
                        self.assertEqual(copied, {k: source[k] for k in source if k != "."})
                        shutil.rmtree(self.dst)

    def test_an_existing_dst_keeps_its_attributes_when_cp_fails(self):
        self.write("golden/name/x", "text")
        self.src.chmod(0o2700)
        os.chown(self.src, 1008, 1009)
        self.write("guest/tmp/name", "in the way of a directory")
        self.dst.chmod(0o1777)
        os.chown(self.dst, 1011, 1012)
        self.assert_cp_refused(self.preload(), f"'{self.dst}/name'")
        status = self.dst.stat()
        self.assertEqual((status.st_mode, status.st_uid, status.st_gid), (0o41777, 1011, 1012))

    def test_what_a_guest_planted_in_the_way_of_a_file_is_replaced(self):
        outside = self.directory / "outside"
        golden = self.write("golden/name", "golden", mode=0o4755)
        os.chown(golden, 1001, 1001)
        golden.chmod(0o4755)
        self.write("golden/inner/name", "golden")
        socket = "import socket, sys; socket.socket(1).bind(sys.argv[1])"
        for kind, plant in {
            "link to a file": lambda path: path.symlink_to(outside / "keep"),
            "relative link": lambda path: path.symlink_to(os.path.relpath(outside / "keep", path)),
            "link to a directory": lambda path: path.symlink_to(outside),
            "dangling link": lambda path: path.symlink_to(outside / "new"),
            "dangling link in a missing directory": lambda path: path.symlink_to(outside / "n/n"),
            "link to a device": lambda path: path.symlink_to("/dev/full"),
            "link to /proc": lambda path: path.symlink_to("/proc/self/fd/1"),
            "link to itself": lambda path: path.symlink_to("name"),
            "hard link": lambda path: os.link(outside / "keep", path),
            "FIFO": os.mkfifo,
            "device": lambda path: os.mknod(path, 0o020666, os.makedev(1, 7)),
            "block device": lambda path: os.mknod(path, 0o060666, os.makedev(7, 200)),
            "socket": lambda path: run(["/usr/bin/python3", "-c", socket, path], check=True),
            "closed file": lambda path: os.close(os.open(path, os.O_CREAT, 0)),
        }.items():
            with self.subTest(kind):
                (self.dst / "inner").mkdir(parents=True)
                plant(self.dst / "name")
                plant(self.dst / "inner/name")
                self.assert_succeeds(self.preload())
                self.assert_outside_unchanged()
                for name in ("name", "inner/name"):
                    self.assertFalse((self.dst / name).is_symlink())
                    self.assertEqual((self.dst / name).read_text(), "golden")
                    self.assertEqual((self.dst / name).stat().st_nlink, 1)
                self.assertEqual((self.dst / "name").stat().st_mode, 0o104755)
                shutil.rmtree(self.dst)

    def test_what_a_guest_planted_in_the_way_of_a_link_fifo_or_device_is_replaced(self):
        outside = self.directory / "outside"
        fill(self.src)
        before = details(self.src)
        for kind, plant in {
            "link": lambda path: path.symlink_to(outside / "keep"),
            "link to a directory": lambda path: path.symlink_to(outside),
            "dangling link": lambda path: path.symlink_to(outside / "new"),
            "hard link": lambda path: os.link(outside / "keep", path),
            "file": lambda path: path.write_text("x"),
        }.items():
            with self.subTest(kind):
                self.dst.mkdir(parents=True)
                for path in self.src.iterdir():
                    if path.is_symlink() or not path.is_dir():
                        plant(self.dst / path.name)
                self.assert_succeeds(self.preload())
                self.assert_outside_unchanged()
                copied = details(self.dst)
                del copied["."]
                self.assertEqual(copied, {k: v for k, v in before.items() if k != "."})
                shutil.rmtree(self.dst)

    def test_what_a_guest_planted_in_the_way_of_a_directory_is_an_error(self):
        outside = self.directory / "outside"
        self.write("golden/inner/name", "golden")
        self.write("golden/inner/keep", "golden")
        for kind, plant in {
            "link to a directory": lambda path: path.symlink_to(outside),
            "link to a directory, with a slash": lambda path: path.symlink_to(f"{outside}/"),
            "relative link": lambda path: path.symlink_to("../../outside"),
            "link to the root": lambda path: path.symlink_to("/"),
            "link to src": lambda path: path.symlink_to(self.src / "inner"),
            "link to a file": lambda path: path.symlink_to(outside / "keep"),
            "dangling link": lambda path: path.symlink_to(outside / "new"),
            "hard link": lambda path: os.link(outside / "keep", path),
            "FIFO": os.mkfifo,
        }.items():
            with self.subTest(kind):
                self.dst.mkdir(parents=True)
                plant(self.dst / "inner")
                before = details(self.src)
                result = self.preload()
                self.assert_cp_refused(result, f"'{self.dst}/inner'")
                self.assertEqual(details(self.src), before)
                shutil.rmtree(self.dst)

    def test_a_directory_in_the_way_of_a_file_is_an_error(self):
        for kind in ("file", "link", "FIFO"):
            with self.subTest(kind):
                self.src.mkdir(exist_ok=True)
                if kind == "file":
                    self.write("golden/name", "golden")
                elif kind == "link":
                    (self.src / "name").symlink_to(self.directory / "outside")
                else:
                    os.mkfifo(self.src / "name")
                self.write("guest/tmp/name/own", "the guest's")
                self.assert_cp_refused(self.preload(), f"'{self.dst}/name'")
                self.assertEqual((self.dst / "name/own").read_text(), "the guest's")
                shutil.rmtree(self.src)

    def test_links_in_src_are_copied_and_not_followed(self):
        outside = self.directory / "outside"
        (self.src / "inner").symlink_to(outside)
        (self.src / "name").symlink_to(outside / "keep")
        self.assert_succeeds(self.preload())
        self.assert_succeeds(self.preload())
        self.assertEqual(os.readlink(self.dst / "inner"), str(outside))
        self.assertEqual(os.readlink(self.dst / "name"), str(outside / "keep"))
        self.assert_outside_unchanged()

    def test_a_missing_src_is_an_error_unless_it_is_optional(self):
        missing = self.directory / "missing"
        good = self.write("good/x", "text").parent
        other = self.directory / "other"
        for options in ("", " optional='no'"):
            with self.subTest(options):
                elements = preloads((good, other))
                result = self.run_script(
                    "30-preload", elements + preloads((missing, self.dst), options=options)
                )
                self.assert_refused(result, f"'{missing}' is missing")
                self.assertFalse(self.dst.parent.exists())
                self.assertFalse(other.exists())
        result = self.preload(missing, options=" optional='yes'")
        self.assert_succeeds(result)
        self.assertIn(str(missing), result.stdout)
        self.assertFalse(self.dst.parent.exists())
        self.write("golden/x", "text")
        self.assert_succeeds(self.preload(options=" optional='yes'"))
        self.assertTrue((self.dst / "x").exists())
        # optional is for a src that is missing, not for one that is bad
        (self.directory / "dangling").symlink_to(missing)
        self.assert_refused(
            self.preload(self.directory / "dangling", options=" optional='yes'"),
            f"leads to '{missing}'",
        )

    def test_bad_paths_are_refused_with_the_path_that_they_led_to(self):
        top = self.directory
        self.write("golden/inner/x", "golden")
        real = self.write("guest/real/x", "the guest's").parent
        (top / "link").symlink_to(self.src)
        (top / "guest/link").symlink_to(real)
        (top / "guest/dangling").symlink_to("/srv/nowhere")
        (top / "guest/loop").symlink_to("loop")
        os.mkfifo(top / "guest/fifo")
        before = snapshot(top)
        bad = [
            ("relative", "not an absolute path"),
            ("./relative", "not an absolute path"),
            ("../relative", "not an absolute path"),
            ("~/x", "not an absolute path"),
            (f"{real}/", "'/' at its end"),
            (f"{real}//", "'//'"),
            (f"//{real}", "'//'"),
            (f"{top}//guest/real", "'//'"),
            (f"{real}/.", "'.'"),
            (f"{real}/./x", "'.'"),
            (f"{real}/..", "'..'"),
            (f"{top}/guest/../guest/real", "'..'"),
            (f"{top}/guest/missing/../real", "'..'"),
            (f"{top}/guest/link", f"leads to '{real}'"),
            (f"{top}/guest/link/new", f"leads to '{real}/new'"),
            (f"{top}/guest/link/new/new", f"leads to '{real}/new/new'"),
            (f"{top}/guest/dangling", "leads to '/srv/nowhere'"),
            (f"{top}/guest/dangling/x", "leads to '/srv/nowhere/x'"),
            (f"{top}/guest/loop", "is not a directory"),
            (f"{real}/x", "is not a directory"),
            (f"{real}/x/y", "is not a directory"),
            (f"{top}/guest/fifo", "is not a directory"),
            (f"/proc/self/root{real}", f"leads to '{real}'"),
            ("/proc/self/cwd/x", "leads to"),
            (f"{top}/{'n' * 256}", "is too long"),
        ]
        for path, reason in bad:
            for src, dst in ((path, self.dst), (self.src, path)):
                with self.subTest(src=str(src)[:200], dst=str(dst)[:200]):
                    result = self.preload(src, dst)
                    self.assert_refused(result, "preload/dircopy", reason)
                    self.assertIn(repr(path)[:-1], result.stderr)  # the value at fault
                    self.assertEqual(snapshot(top), before)
        for src, dst in (
            (self.src, self.src),
            (self.src, self.src / "inner"),
            (self.src, self.src / "inner/new"),
            ("/", self.dst),
            ("/srv", self.dst),
            (top, self.dst),
        ):
            with self.subTest(src=src, dst=dst):
                result = self.preload(src, dst)
                self.assert_refused(result, "is in its own source", repr(str(dst)), repr(str(src)))
                self.assertEqual(snapshot(top), before)

    def test_a_name_that_only_begins_like_src_is_not_in_it(self):
        self.write("golden/x", "text")
        self.assert_succeeds(self.preload(dst=self.directory / "golden-2"))
        self.assert_succeeds(self.preload(src=self.directory / "golden-2"))
        self.assertTrue((self.dst / "x").exists())

    def test_a_dst_that_is_in_src_by_another_name_fills_nothing(self):
        self.write("golden/x", "text")
        (self.src / "inner").mkdir()
        alias = self.directory / "alias"
        alias.mkdir()
        self.mount("--bind", self.src, alias)
        for dst in (alias / "new", alias / "inner", alias):
            with self.subTest(dst=dst):
                result = self.preload(dst=dst)
                self.assertEqual(result.returncode, 1, result.stdout)
                self.assertNotIn("/proc/self/fd", result.stderr)
                self.assertEqual((self.src / "x").read_text(), "text")
                self.assertLess(len(list(self.src.rglob("*"))), 20)  # no copies of copies

    def test_elements_that_it_does_not_know_are_refused(self):
        src, dst = f"<src>{self.src}</src>", f"<dst>{self.dst}</dst>"
        self.write("golden/x", "text")
        good = f"<dircopy>{src}{dst}</dircopy>"
        for elements, *parts in [
            (f"{good}<dircpy>{src}{dst}</dircpy>", "unknown element <dircpy>"),
            (f"{good}<dir>/srv/x</dir>", "unknown element <dir>"),
            (f"{good}<datestr/>", "unknown element <datestr>"),
            (f"{good}<dircopy>{src}{dst}<dst>/srv/x</dst></dircopy>", "second <dst>"),
            (f"{good}<dircopy>{src}{src}{dst}</dircopy>", "second <src>"),
            (f"{good}<dircopy>{src}</dircopy>", "<dst> is missing"),
            (f"{good}<dircopy>{dst}</dircopy>", "<src> is missing"),
            (f"{good}<dircopy/>", "missing"),
            (f"{good}<dircopy>{src}<dst/></dircopy>", "dst: empty"),
            (f"{good}<dircopy><src> </src>{dst}</dircopy>", "src: empty"),
            (f"{good}<dircopy>{src}{dst}<mode>1</mode></dircopy>", "unknown element <mode>"),
            (f"{good}<dircopy>text{src}{dst}</dircopy>", "text"),
            (f"{good}text", "text"),
            (f"{good}<dircopy>{src}<dst>{self.dst}<x/></dst></dircopy>", "unknown element <x>"),
            (f"{good}<dircopy>{src}<dst mode='1'>/x</dst></dircopy>", "mode='1'"),
            (f"{good}<dircopy><src optional='yes'>/x</src>{dst}</dircopy>", "optional='yes'"),
            (f"{good}<dircopy mode='0755'>{src}{dst}</dircopy>", "mode='0755'"),
            (f"{good}<dircopy optional='true'>{src}{dst}</dircopy>", "optional='true'"),
            (f"{good}<dircopy optional='Yes'>{src}{dst}</dircopy>", "optional='Yes'"),
            (f"{good}<dircopy optional=''>{src}{dst}</dircopy>", "optional=''"),
            (f"{good}<dircopy Optional='yes'>{src}{dst}</dircopy>", "Optional='yes'"),
        ]:
            with self.subTest(elements):
                result = self.run_script("30-preload", f"<preload>{elements}</preload>")
                self.assert_refused(result, *parts)
                self.assertFalse(self.dst.parent.exists())
        result = self.run_script("30-preload", f"<preload optional='yes'>{good}</preload>")
        self.assert_refused(result, "optional='yes'")

    def test_several_copies_in_several_elements_are_done_in_their_order(self):
        one = self.write("one/name", "one").parent
        two = self.write("two/name", "two").parent
        self.write("two/other", "two")
        result = self.run_script(
            "30-preload", preloads((one, self.dst), (two, self.dst)) + preloads((one, two / "new"))
        )
        self.assert_succeeds(result)
        self.assertEqual((self.dst / "name").read_text(), "two")
        self.assertEqual((self.dst / "other").read_text(), "two")
        self.assertEqual((two / "new/name").read_text(), "one")
        self.assertEqual(result.stdout.count("copied "), 3)

    def test_white_space_and_odd_names(self):
        for name in ("a b", "-rf", "a\nb", "é", "<&>", "'\"", "*", "\\", "$(reboot)", "{src}"):
            with self.subTest(name):
                src = self.write(f"odd/{name}/{name}", "text").parent
                dst = self.directory / "odd-guest" / name
                result = self.preload(f"\n {src}\t", f" {dst}\r\n")
                self.assert_succeeds(result)
                self.assertEqual((dst / name).read_text(), "text")

    def test_a_full_file_system_is_an_error_that_names_the_paths_of_the_metadata(self):
        self.dst.mkdir(parents=True)
        self.mount("-t", "tmpfs", "-o", "size=1M", "tests", self.dst)
        self.write("golden/big", "x" * (2 << 20))
        self.assert_cp_refused(self.preload(), f"'{self.dst}/big'", "No space left on device")
        self.assert_succeeds(run(["umount", self.dst]))
        self.mount("-t", "tmpfs", "-o", "nr_inodes=5", "tests", self.dst)
        for number in range(10):
            self.write(f"golden/many/{number}", "x")
        self.assert_cp_refused(self.preload(), f"'{self.dst}/", "No space left on device")
        self.assert_succeeds(run(["mount", "-o", "remount,ro", self.dst]))
        result = self.preload()
        self.assertEqual(result.returncode, 1)
        self.assertIn("Read-only file system", result.stderr)
        self.assertNotIn("/proc/self/fd", result.stderr)

    def test_a_guest_cannot_make_it_wait(self):
        self.write("golden/name", "golden")
        self.dst.mkdir(parents=True)
        os.mkfifo(self.dst / "name")
        os.mkfifo(self.src / "fifo")
        self.assert_succeeds(self.preload(timeout=20))
        self.assertEqual((self.dst / "name").read_text(), "golden")

    def test_a_dry_run_changes_nothing(self):
        fill(self.src)
        before = details(self.directory)
        result = self.preload(dry_run=True)
        self.assert_succeeds(result)
        self.assertEqual(result.stdout, f"would copy {self.src} into {self.dst}\n")
        self.assertEqual(details(self.directory), before)
        self.dst.mkdir(parents=True)
        before = details(self.directory)
        self.assert_succeeds(self.preload(dry_run=True))
        result = self.preload("/srv/missing", options=" optional='yes'", dry_run=True)
        self.assert_succeeds(result)
        self.assertIn("/srv/missing", result.stdout)
        self.assertEqual(details(self.directory), before)
        self.assert_refused(self.preload(dst=self.src / "x", dry_run=True), "its own source")

    def test_other_peoples_elements_are_left_alone(self):
        self.write("golden/x", "text")
        elements = preloads((self.src, self.dst))
        bare = f"<domain><name>web</name><metadata>{elements}</metadata></domain>"
        for xml in (
            domain(""),
            domain("<preload/>"),
            domain(f"<!-- {elements} -->"),
            domain(elements).replace("urn:virt-hooks:1", "urn:virt-hooks:2"),
            bare.replace("<preload>", "<preload xmlns='urn:o'>"),
        ):
            with self.subTest(xml):
                result = self.run_script("30-preload", xml)
                self.assert_succeeds(result)
                self.assertEqual(result.stdout, "")
                self.assertFalse(self.dst.parent.exists())
        self.assert_succeeds(self.run_script("30-preload", bare))
        self.assertTrue((self.dst / "x").exists())

    def test_it_works_alone_wherever_it_is_copied_in_the_c_locale(self):
        copy = self.directory / "copy"
        shutil.copy(script("30-preload"), copy)
        self.write("golden/träd", "text")
        result = run(
            ["env", "-i", "PATH=/usr/bin:/bin", "LC_ALL=C", copy, "web", "prepare", "begin", "-"],
            input=domain(preloads((self.src, self.directory / "träd"))), encoding="utf-8",
        )  # fmt: skip
        self.assert_succeeds(result)
        self.assertTrue((self.directory / "träd/träd").exists())


class Race(TestCase):
    """A guest's root exchanges directories for links while the host's root copies into them."""

    def setUp(self):
        super().setUp()
        self.victim = self.directory / "victim"
        self.src = self.directory / "golden"
        self.dst = self.directory / "guest/tmp"
        for number in range(40):
            self.write(f"golden/inner/{number}", "golden")
        (self.src / "inner/deeper").mkdir()
        self.write("golden/inner/deeper/x", "golden")
        for path in (self.src, self.src / "inner", self.src / "inner/deeper"):
            path.chmod(0o777)
            os.chown(path, 1001, 1001)
        self.write("victim/0", "victim", mode=0o600)
        self.write("victim/39", "victim", mode=0o600)
        self.write("victim/deeper/x", "victim", mode=0o600)
        self.write("victim/tmp/inner/0", "victim", mode=0o600)
        self.before = details(self.victim)

    def test_nothing_is_written_through_a_swapped_parent_of_dst(self):
        self.dst.mkdir(parents=True)
        link = self.directory / "link"
        link.symlink_to(self.victim)
        with swapping(self.dst.parent, link):
            for _ in for_seconds(2):
                self.run_script("30-preload", preloads((self.src, self.dst)))
        self.assertEqual(details(self.victim), self.before)

    def test_nothing_is_written_through_what_is_swapped_in_dst(self):
        (self.dst / "inner").mkdir(parents=True)
        (self.dst / "link").symlink_to(self.victim)
        with swapping(self.dst / "inner", self.dst / "link"):
            for _ in for_seconds(3):
                self.run_script("30-preload", preloads((self.src, self.dst)))
                if details(self.victim) != self.before:
                    break
        self.assertEqual(details(self.victim), self.before)


if __name__ == "__main__":
    unittest.main()
