"""10-mkdirs creates the directories that a guest asks for, and changes no others."""

import errno
import os
import subprocess
import unittest

from harness import run
from scripts import ScriptCase, details, directory, guest_xml, mode_owner_group

NEW = (0o755, 0, 0)


def mkdirs(*entries):
    return f"<mkdirs>{''.join(entries)}</mkdirs>"


class Mkdirs(ScriptCase):
    SCRIPT = "10-mkdirs"
    EXAMPLE = "<mkdirs><dir>D/new</dir></mkdirs>"

    def test_it_creates_a_directory_and_its_missing_parents(self):
        result = self.call(mkdirs(directory(self.directory / "a/b")))
        self.assert_says(result, self.directory / "a")
        self.assertEqual(list(details(self.directory)), [".", "a", "a/b"])
        for path in ("a", "a/b"):
            self.assertEqual(mode_owner_group(self.directory / path), NEW)

    def test_mode_owner_and_group_go_to_the_directory_named_and_not_to_its_new_parents(self):
        for number, (attributes, expected) in enumerate((
            ({"mode": "0750"}, (0o750, 0, 0)),
            ({"mode": "7"}, (0o7, 0, 0)),
            ({"mode": "2775", "owner": "1000", "group": "2000"}, (0o2775, 1000, 2000)),
            ({"owner": "daemon", "group": "daemon"}, (0o755, 1, 1)),
            ({"owner": "4294967294"}, (0o755, 4294967294, 0)),
            ({"mode": "7777", "group": "13"}, (0o7777, 0, 13)),
        )):  # fmt: skip
            with self.subTest(attributes):
                path = self.directory / f"{number}/b/c"
                self.assert_says(self.call(mkdirs(directory(path, **attributes))), path.parents[1])
                self.assertEqual(mode_owner_group(path), expected)
                for parent in list(path.parents)[:2]:
                    self.assertEqual(mode_owner_group(parent), NEW)

    def test_what_is_not_given_is_left_as_it_is_on_a_directory_that_exists(self):
        for number, (attributes, expected) in enumerate((
            ({}, (0o2701, 5, 6)),
            ({"mode": "0750"}, (0o750, 5, 6)),
            ({"owner": "12"}, (0o2701, 12, 6)),
            ({"group": "13"}, (0o2701, 5, 13)),
            ({"mode": "1777", "owner": "0", "group": "root"}, (0o1777, 0, 0)),
            ({"mode": "4755", "owner": "7"}, (0o4755, 7, 6)),
        )):  # fmt: skip
            with self.subTest(attributes):
                path = self.write(f"{number}/file", "text", mode=0o640).parent
                os.chown(path, 5, 6)
                path.chmod(0o2701)
                before = details(self.directory)
                result = self.call(mkdirs(directory(path, **attributes)))
                self.assert_says(result, *([path] if attributes else []))
                self.assertEqual(mode_owner_group(path), expected)
                after = details(self.directory)
                del before[str(number)], after[str(number)]
                self.assertEqual(after, before)

    def test_a_new_directory_is_0755_root_root_whatever_the_umask_and_its_parent(self):
        for name, acl in {"plain": "", "default ACL": "d:u::r--,d:g::---,d:o::rwx"}.items():
            parent = self.directory / name
            parent.mkdir()
            os.chown(parent, 5, 6)
            parent.chmod(0o2777)
            if acl:
                subprocess.run(["setfacl", "-m", acl, parent], check=True)
            before = mode_owner_group(parent)
            for umask in (0, 0o077, 0o777):
                with self.subTest(parent=name, umask=f"{umask:03o}"):
                    path = parent / f"{umask:o}"
                    self.assert_says(self.call(mkdirs(directory(path / "b")), umask=umask), path)
                    self.assertEqual(mode_owner_group(path), NEW)
                    self.assertEqual(mode_owner_group(path / "b"), NEW)
            self.assertEqual(mode_owner_group(parent), before)

    def test_doing_it_twice_changes_nothing(self):
        elements = mkdirs(
            directory(self.directory / "plain/deep"),
            directory(self.directory / "all", mode="1777", owner="5", group="6"),
        )
        self.assertEqual(self.call(elements).returncode, 0)
        paths = [self.directory, *self.directory.rglob("*")]
        before = details(self.directory), [path.stat().st_ctime_ns for path in paths]
        self.assert_says(self.call(elements))
        after = details(self.directory), [path.stat().st_ctime_ns for path in paths]
        self.assertEqual(after, before)

    def test_guests_may_ask_for_the_same_directories_at_once(self):
        paths = [self.directory / f"{number}/shared/deep" for number in range(40)]
        elements = mkdirs(*(directory(path, mode="0750") for path in paths))
        running = [
            subprocess.Popen(self.command(), stdin=-1, stdout=-1, stderr=-1, text=True)
            for _ in range(6)
        ]
        for process in running:
            process.stdin.write(guest_xml(elements))
            process.stdin.flush()
        for process in running:
            _stdout, stderr = process.communicate(timeout=60)
            self.assertEqual((process.returncode, stderr), (0, ""))
        for path in paths:
            self.assertEqual(mode_owner_group(path), (0o750, 0, 0))
            self.assertEqual(mode_owner_group(path.parent), NEW)

    def test_a_mode_that_is_not_octal_and_an_owner_that_does_not_exist_are_refused(self):
        good = directory(self.directory / "good/one", mode="0711")
        for attributes in (
            *({"mode": mode} for mode in ("", "8", "0888", "77777", "-1", "u+rwx", "0o755", "a")),
            *({"owner": owner} for owner in ("", "no-such-user", "-1", "root:root", "1.0")),
            *({"group": group} for group in ("", "no-such-group", "-1", "99999999999")),
        ):
            for path in (self.directory, self.directory / "new"):
                with self.subTest(attributes, path=path):
                    entries = good + directory(path, **attributes)
                    self.assert_refused(mkdirs(entries), path, *attributes.values())

    def test_what_the_file_system_refuses_is_an_error(self):
        point = self.directory / "point"
        point.mkdir()
        self.mount("-t", "tmpfs", "-o", "nr_inodes=2", "tests", point)
        result = self.call(mkdirs(directory(point / "a/b/c")))
        self.assert_error(result, point / "a/b")
        self.mount("-o", "remount,ro", point)
        for entry in (directory(point / "new"), directory(point, mode="0700")):
            self.assert_error(self.call(mkdirs(entry)), point)
        self.assert_says(self.call(mkdirs(directory(point))))

    def test_an_error_of_a_directory_that_is_open_names_its_path(self):
        path = self.mount_image("point", 8 << 20, "mkfs.ext4", "-q") / "fixed"
        path.mkdir()
        run(["chattr", "+i", path], check=True)
        self.addCleanup(run, ["chattr", "-i", path])
        why = os.strerror(errno.EPERM)
        for attributes in ({"mode": "0700"}, {"owner": "5"}):
            result = self.call(mkdirs(directory(path, **attributes)))
            self.assert_error(result, f"{why}: '{path}'")
        self.assert_error(self.call(mkdirs(directory(path / "new"))), path / "new", why)

    def test_more_missing_parents_than_it_can_make_are_an_error_and_none_is_made(self):
        path = f"{self.directory}{'/a' * 600}"
        self.assert_refused(mkdirs(directory(path)), path)

    def test_a_number_of_any_length_is_an_error_of_its_element(self):
        for attributes in (
            {"owner": "1" * 5000},
            {"group": "4294967295"},
            {"mode": "0" * 5000 + "8"},
        ):
            elements = mkdirs(directory(self.directory / "new", **attributes))
            self.assert_refused(elements, self.directory / "new", *attributes.values())

    def test_a_dry_run_says_what_it_would_do_and_does_nothing(self):
        there = self.directory / "there"
        there.mkdir()
        before = self.everything()
        new = self.directory / "new"
        entries = (
            directory(new / "deep", mode="0750", owner="daemon"),
            directory(there, mode="0700", owner="5"),
        )
        self.assert_says(self.call(mkdirs(*entries), dry_run=True), new, there)
        self.assert_says(self.call(mkdirs(directory(there)), dry_run=True))
        self.assertEqual(self.everything(), before)


if __name__ == "__main__":
    unittest.main()
