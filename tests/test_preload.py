"""30-preload makes dst hold what src holds."""

import os
import shutil
import socket
import unittest

from harness import run
from scripts import A_TIME, ScriptCase, details, dircopy, fill, mode_owner_group


def preload(*pairs, options=""):
    return f"<preload>{''.join(dircopy(src, dst, options) for src, dst in pairs)}</preload>"


class Preload(ScriptCase):
    SCRIPT = "30-preload"
    EXAMPLE = "<preload><dircopy><src>D/log</src><dst>D/copy</dst></dircopy></preload>"
    PROGRAM = "cp"

    def setUp(self):
        super().setUp()
        self.src, self.dst = self.directory / "golden", self.directory / "guest/tmp"
        self.src.mkdir()
        self.write("outside/keep", "kept", mode=0o600)
        self.outside = details(self.directory / "outside")

    def preload(self, **options):
        return self.call(preload((self.src, self.dst)), **options)

    def assert_outside_unchanged(self):
        self.assertEqual(details(self.directory / "outside"), self.outside)

    def assert_cp_failed(self, result, *values):
        self.assert_error(result, self.dst, programs_said=True)
        self.assertNotIn("/proc/", result.stderr)
        for value in values:
            self.assertIn(str(value), result.stderr.replace("/./", "/"))
        self.assertEqual(result.stdout, "")
        self.assert_outside_unchanged()

    def test_a_new_dst_is_the_same_as_src_in_everything(self):
        fill(self.src)
        os.mknod(self.src / "null", 0o020666, os.makedev(1, 3))
        os.chown(self.src, 1008, 1009)
        self.src.chmod(0o3750)
        run(["setfacl", "-m", "u:1005:rx,d:u:1005:rwx", self.src], check=True)
        os.utime(self.src, ns=(A_TIME, A_TIME))
        before = details(self.src)
        self.assert_says(self.preload(), self.dst)
        self.assertEqual(details(self.dst), before)
        self.assertEqual(details(self.src), before)
        self.assertLess((self.dst / "sparse").stat().st_blocks * 512, 1 << 20)
        # a second time, also after a guest has changed everything
        for path in self.dst.rglob("*"):
            if not path.is_symlink():
                os.chown(path, 1, 1)
                path.chmod(0o700)
                if path.is_file():
                    path.write_text("changed by the guest")
        # the cp of coreutils 9.7 leaves a file what it inherits from a default ACL
        run(["setfacl", "-R", "-k", self.dst], check=True)
        self.assert_says(self.preload(), self.dst)
        after = details(self.dst)
        del before["."], after["."]
        self.assertEqual(after, before)

    def test_a_dst_that_exists_keeps_its_own_access_control_lists(self):
        rules = {"none": "", "guest": "u:1005:rwx,d:u:1005:rwx", "other": "u:1006:rwx,g::-"}
        for of_src in rules:
            for of_dst in rules:
                with self.subTest(src=of_src, dst=of_dst):
                    for path, kind in ((self.src, of_src), (self.dst, of_dst)):
                        path.mkdir(exist_ok=True, parents=True)
                        run(["setfacl", "-b", path], check=True)
                        path.chmod(0o755)
                        if rules[kind]:
                            run(["setfacl", "-m", rules[kind], path], check=True)
                    before = run(["getfacl", "-p", self.dst]).stdout
                    self.assert_says(self.preload(), self.dst)
                    self.assertEqual(run(["getfacl", "-p", self.dst]).stdout, before)

    def test_blocks_are_shared_where_the_file_system_can(self):
        point = self.mount_image("btrfs", 120 << 20, "mkfs.btrfs", "-q")
        self.src, self.dst = point / "golden", point / "guest"
        self.write("btrfs/golden/big", "x" * (1 << 20))
        os.sync()
        self.assert_says(self.preload(), self.dst)
        self.assertIn("shared", run(["filefrag", "-v", self.dst / "big"], check=True).stdout)

    def test_a_dst_that_exists_keeps_what_src_does_not_have_and_passes_nothing_on(self):
        fill(self.src)
        source = details(self.src)
        own = self.write("guest/tmp/own", "the guest's", mode=0o600)
        self.write("guest/tmp/inner/own", "the guest's")
        os.chown(self.dst, 1011, 1012)
        self.dst.chmod(0o2777)
        self.assert_says(self.preload(), self.dst)
        self.assertEqual(own.read_text(), "the guest's")
        copied = details(self.dst)
        for extra in ("own", "inner/own"):
            self.assertEqual(copied.pop(extra)[5], b"the guest's")
        del copied["."], source["."]
        self.assertEqual(copied, source)

    def test_parents_of_a_new_dst_are_0755_root_root_whatever_the_umask(self):
        self.write("golden/x", "text")
        self.assert_says(self.preload(umask=0o077), self.dst)
        self.assertEqual(mode_owner_group(self.dst.parent), (0o755, 0, 0))
        self.assertEqual(details(self.dst), details(self.src))

    def test_what_lies_in_the_way_of_a_file_is_replaced_and_never_written_through(self):
        outside = self.directory / "outside"
        self.write("golden/name", "golden")
        self.write("golden/inner/name", "golden")
        (self.src / "link").symlink_to("name")
        expected = details(self.src)
        for kind, plant in {
            "link to a file": lambda path: path.symlink_to(outside / "keep"),
            "relative link": lambda path: path.symlink_to(os.path.relpath(outside / "keep", path)),
            "link to a directory": lambda path: path.symlink_to(outside),
            "dangling link": lambda path: path.symlink_to(outside / "new"),
            "link to a device": lambda path: path.symlink_to("/dev/full"),
            "hard link": lambda path: os.link(outside / "keep", path),
            "FIFO": os.mkfifo,
            "device": lambda path: os.mknod(path, 0o020666, os.makedev(1, 7)),
            "closed file": lambda path: os.close(os.open(path, os.O_CREAT, 0)),
        }.items():
            with self.subTest(kind):
                (self.dst / "inner").mkdir(parents=True)
                for name in ("name", "link", "inner/name"):
                    plant(self.dst / name)
                self.assert_says(self.preload(), self.dst)
                self.assert_outside_unchanged()
                self.assertEqual({**details(self.dst), ".": expected["."]}, expected)
                shutil.rmtree(self.dst)

    def test_a_link_in_the_way_of_a_directory_is_an_error(self):
        outside = self.directory / "outside"
        self.write("golden/inner/keep", "golden")
        self.dst.mkdir(parents=True)
        for target in (outside, "../../outside", outside / "new", self.src / "inner"):
            with self.subTest(target):
                (self.dst / "inner").symlink_to(target)
                before = details(self.src)
                self.assert_cp_failed(self.preload(), self.dst / "inner")
                self.assertEqual(details(self.src), before)
                (self.dst / "inner").unlink()

    def test_links_in_src_are_copied_and_not_followed(self):
        outside = self.directory / "outside"
        (self.src / "inner").symlink_to(outside)
        (self.src / "name").symlink_to(outside / "keep")
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(self.src / "socket"))
        os.mkfifo(self.src / "fifo")  # at which nobody waits
        for _ in range(2):
            self.assert_says(self.preload(), self.dst)
            self.assertEqual({**details(self.dst), ".": None}, {**details(self.src), ".": None})
        self.assert_outside_unchanged()

    def test_a_missing_src_is_an_error_unless_it_is_optional(self):
        missing, new = self.directory / "missing", self.directory / "new"
        self.write("golden/x", "text")
        for options in ("", " optional='no'"):
            elements = preload((self.src, new)) + preload((missing, self.dst), options=options)
            self.assert_refused(elements, missing)
        before = self.everything()
        result = self.call(preload((missing, self.dst), options=" optional='yes'"))
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertEqual(self.everything(), before)
        result = self.call(preload((self.src, self.dst), options=" optional='yes'"))
        self.assert_says(result, self.dst)
        self.assertTrue((self.dst / "x").exists())

    def test_optional_is_yes_or_no(self):
        for value in ("true", "Yes", ""):
            elements = preload((self.src, self.dst), options=f" optional='{value}'")
            self.assert_refused(elements, "optional", value)

    def test_several_copies_in_several_elements_are_done_in_their_order(self):
        one, two = self.write("one/name", "one").parent, self.write("two/name", "two").parent
        elements = preload((one, self.dst), (two, self.dst)) + preload((one, two / "new"))
        self.assert_says(self.call(elements), self.dst, two / "new")
        self.assertEqual((self.dst / "name").read_text(), "two")
        self.assertEqual((two / "new/name").read_text(), "one")

    def test_a_dst_in_its_own_src_is_an_error_and_makes_no_copies_of_copies(self):
        self.write("golden/x", "text")
        alias = self.directory / "alias"
        alias.mkdir()
        self.mount("--bind", self.src, alias)
        for dst in (self.src / "new", self.src / "inner/new", alias / "new"):
            with self.subTest(dst):
                result = self.call(preload((self.src, dst)))
                self.assertEqual(result.returncode, 1)
                self.assertIn(str(dst), result.stderr)
                self.assertEqual((self.src / "x").read_text(), "text")
                self.assertLess(len(list(self.src.rglob("*"))), 20)

    def test_what_cp_says_comes_before_the_error(self):
        self.dst.mkdir(parents=True)
        self.mount("-t", "tmpfs", "-o", "size=1M", "tests", self.dst)
        self.write("golden/big", "x" * (2 << 20))
        self.assert_cp_failed(self.preload(), self.dst / "big", "No space left on device")

    def test_what_failed_half_way_the_next_run_finishes(self):
        self.write("golden/x", "text")
        os.chown(self.src, 1008, 1009)
        self.src.chmod(0o751)
        result = self.preload(environment=self.path_with("cp", "raise SystemExit(1)"))
        self.assert_error(result, self.dst, programs_said=None)
        self.assert_says(self.preload(), self.dst)
        self.assertEqual(mode_owner_group(self.dst), (0o751, 1008, 1009))
        self.assertEqual((self.dst / "x").read_text(), "text")

    def test_a_dst_that_exists_keeps_its_owner_and_mode_where_cp_fails(self):
        self.write("golden/x/y", "text")
        self.write("guest/tmp/x", "a file in place of a directory")
        os.chown(self.dst, 1011, 1012)
        self.dst.chmod(0o700)
        self.assert_cp_failed(self.preload(), self.dst / "x")
        self.assertEqual(mode_owner_group(self.dst), (0o700, 1011, 1012))

    def test_a_dry_run_says_what_it_would_do_and_does_nothing(self):
        fill(self.src)
        before = self.everything()
        self.assert_says(self.preload(dry_run=True), self.dst)
        self.assertEqual(self.everything(), before)


if __name__ == "__main__":
    unittest.main()
