"""10-mkdirs creates what it is asked for, and nothing else."""

import ctypes
import os
import re
import socket
import stat
import subprocess
import threading
import unittest
from xml.sax.saxutils import escape, quoteattr

from harness import TestCase, domain, run, script, snapshot

NAME = "10-mkdirs"
BAD_MODES = (
    "", " ", "8", "9", "0800", "088", "77777", "10000", "00010000", "-1", "-0755", "+755",
    "0o755", "0O755", "0x1ed", "0b11", "755.0", "7 5 5", " 755", "755 ", "7_5_5", "1e3",
    "u+rwx", "rwxr-xr-x", "u=rwx,g=rx", "٧٥٥", "７５５", "0755,0700", "0755\n", "7" * 5000,
    "0755;id", "$(id)", "é", "'\"",
)  # fmt: skip
BAD_OWNERS = (
    "", " ", "nobody-of-this-name", "4294967295", "4294967296", "99999999999", "9" * 5000, "-1",
    "-0", "+1", "1.0", "1e3", "0x0", "0o0", "٣", "１", " 0", "0 ", "0\n", "root\n", "root ",
    "Root", "0:0", "root:root", "a" * 5000, "é", "%s", "*", "../root", "root,nobody",
    "$(id -u)", "rootx", "1_0", "18446744073709551616", "4294967295" * 2, "x'\"y",
)  # fmt: skip
ODD_NAMES = (
    "with space", " leading", "new\nline", "tab\there", "return\rhere", "'single'", '"double"',
    "é", "e\u0301", "日本", "\U0001f4be", "100%", "%s%d%n", "%DATE%", "-rf", "--help", "--", "-",
    "...", "..a", ".hidden", "a..", "back\\slash", "\\040", "\\", "*", "?", "[a]", "{a,b}", "~",
    "~root", "$HOME", "${HOME}", "$(touch x)", "`id`", "a;b", "a|b", "a&b", "<a>", "!", "#",
    "a=b", "a:b", "a,b", "\u00a0nbsp\u00a0", "\u202eabc", "n" * 255, "é" * 127,
)  # fmt: skip


def entry(path, **attributes):
    """A <dir> with a path, which may have any character, and attributes."""
    given = "".join(
        f" {name.replace('__', ':')}={quoteattr(value, QUOTED)}"
        for name, value in attributes.items()
    )
    return f"<dir{given}>{escape(str(path), QUOTED)}</dir>"


QUOTED = {"\n": "&#10;", "\r": "&#13;", "\t": "&#9;"}  # else XML makes spaces of some


def mode_owner_group(path):
    status = os.lstat(path)
    return stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid


def times(directory):
    """{path: (mtime, ctime)} of what is in a directory: what snapshot() leaves out."""
    found = {}
    for place, _directories, files in os.walk(directory):
        for path in (place, *(os.path.join(place, name) for name in files)):
            status = os.lstat(path)
            found[path] = status.st_mtime_ns, status.st_ctime_ns
    return found


class Mkdirs(TestCase):
    def mkdirs(self, *entries, **options):
        return self.run_script(NAME, f"<mkdirs>{''.join(entries)}</mkdirs>", **options)

    def assert_refused(self, entries, *parts, **options):
        """After a good entry these get a one-line error, and nothing has been changed."""
        before, when = snapshot(self.directory), times(self.directory)
        good = entry(self.directory / "good" / "one", mode="0711")
        result = self.mkdirs(good, *entries, **options)
        self.assert_one_line_error(result, f"{NAME}: web: mkdirs", *parts)
        self.assertEqual(result.stdout, "")
        self.assertEqual(snapshot(self.directory), before)
        self.assertEqual(times(self.directory), when)


class Creating(Mkdirs):
    def test_it_creates_a_directory_and_its_parents(self):
        result = self.mkdirs(entry(self.directory / "a/b"))
        self.assert_succeeds(result)
        for path in ("a", "a/b"):
            status = (self.directory / path).stat()
            self.assertEqual((status.st_mode, status.st_uid, status.st_gid), (0o40755, 0, 0))
        self.assertEqual(sorted(snapshot(self.directory)), [
            str(self.directory / path) for path in ("", "a", "a/b")
        ])  # fmt: skip

    def test_it_says_what_it_created_a_line_each(self):
        result = self.mkdirs(
            entry(self.directory / "a/b"), entry(self.directory / "c", mode="0750", owner="7")
        )
        self.assert_succeeds(result)
        lines = result.stdout.splitlines()
        self.assertEqual(lines[0], f"created {self.directory}/a/b")
        self.assertEqual(lines[1], f"created {self.directory}/c owner=7 mode=0750")
        self.assertEqual(len(lines), 2)

    def test_mode_owner_and_group_go_to_the_directory_named_and_not_to_its_parents(self):
        path = self.directory / "a/b/c"
        self.assert_succeeds(self.mkdirs(entry(path, mode="2750", owner="1000", group="2000")))
        self.assertEqual(mode_owner_group(path), (0o2750, 1000, 2000))
        for parent in ("a", "a/b"):
            self.assertEqual(mode_owner_group(self.directory / parent), (0o755, 0, 0))

    def test_each_of_mode_owner_and_group_goes_alone(self):
        for name, attributes, expected in (
            ("m", {"mode": "0700"}, (0o700, 0, 0)),
            ("o", {"owner": "12"}, (0o755, 12, 0)),
            ("g", {"group": "13"}, (0o755, 0, 13)),
        ):
            with self.subTest(attributes):
                self.assert_succeeds(self.mkdirs(entry(self.directory / name, **attributes)))
                self.assertEqual(mode_owner_group(self.directory / name), expected)

    def test_modes_are_octal_with_the_special_bits(self):
        for number, mode in enumerate(
            ("0", "7", "750", "0750", "00000750", "1777", "2775", "4755", "6711", "7777", "0000")
        ):
            with self.subTest(mode=mode):
                path = self.directory / str(number)
                self.assert_succeeds(self.mkdirs(entry(path, mode=mode)))
                self.assertEqual(mode_owner_group(path), (int(mode, 8), 0, 0))

    def test_owners_are_names_or_numbers_up_to_the_largest(self):
        for number, (owner, expected) in enumerate({
            "root": 0, "daemon": 1, "0": 0, "000": 0, "65534": 65534, "123456": 123456,
            "2147483648": 2147483648, "4294967294": 4294967294,
        }.items()):  # fmt: skip
            with self.subTest(owner=owner):
                path = self.directory / str(number)
                self.assert_succeeds(self.mkdirs(entry(path, owner=owner, group=owner)))
                self.assertEqual(mode_owner_group(path), (0o755, expected, expected))

    def test_a_new_directory_is_0755_root_root_whatever_the_umask_and_the_parent(self):
        setgid = self.directory / "setgid"
        setgid.mkdir()
        os.chown(setgid, 5, 6)
        setgid.chmod(0o2777)
        acl = self.directory / "acl"
        acl.mkdir()
        subprocess.run(
            ["setfacl", "-m", "d:u::rwx,d:g::---,d:o::rwx,d:u:1000:rwx", acl], check=True
        )
        strict = self.directory / "strict"
        strict.mkdir()
        subprocess.run(["setfacl", "-m", "d:u::r--,d:g::---,d:o::---", strict], check=True)
        for parent in (self.directory, setgid, acl, strict):
            before = mode_owner_group(parent)
            for umask in (0, 0o022, 0o077, 0o777):
                with self.subTest(parent=parent, umask=f"{umask:03o}"):
                    path = parent / f"{umask:o}"
                    result = self.mkdirs(entry(path / "b" / "c"), umask=umask)
                    self.assert_succeeds(result)
                    for new in (path, path / "b", path / "b/c"):
                        self.assertEqual(mode_owner_group(new), (0o755, 0, 0))
            self.assertEqual(mode_owner_group(parent), before)

    def test_nobody_else_can_write_to_a_new_directory_before_it_has_its_mode(self):
        trace = self.directory / "trace"
        result = run(
            ["strace", "-o", trace, "-e", "trace=mkdir,mkdirat", script(NAME), "web"],
            input=domain(f"<mkdirs>{entry(self.directory / 'a/b', mode='0700')}</mkdirs>"),
            umask=0,
        )
        self.assert_succeeds(result)
        modes = [int(mode, 8) for mode in re.findall(r'mkdir.*", 0(\d+)\)', trace.read_text())]
        self.assertEqual(len(modes), 2)
        for mode in modes:
            self.assertEqual(mode & 0o022, 0, f"{mode:04o}")

    def test_odd_names_are_names_like_any_other(self):
        for number, name in enumerate(ODD_NAMES):
            with self.subTest(name=name):
                path = self.directory / str(number) / name
                result = self.mkdirs(entry(path / "below", mode="0700"))
                self.assert_succeeds(result)
                self.assertEqual(os.listdir(self.directory / str(number)), [name])
                self.assertEqual(os.listdir(path), ["below"])
                self.assertEqual(mode_owner_group(path / "below"), (0o700, 0, 0))

    def test_many_entries_in_several_elements_are_all_created(self):
        paths = [self.directory / str(number) for number in range(500)]
        first, second = paths[:300], paths[300:]
        elements = "".join(
            f"<mkdirs>{''.join(map(entry, part))}</mkdirs>" for part in (first, second)
        )
        result = self.run_script(NAME, elements)
        self.assert_succeeds(result)
        self.assertEqual(len(result.stdout.splitlines()), 500)
        for path in paths:
            self.assertTrue(path.is_dir())

    def test_a_path_of_4095_bytes_is_created(self):
        names = []
        while len(str(self.directory)) + sum(len(name) + 1 for name in names) + 201 <= 4095:
            names.append("n" * 200)
        rest = 4095 - len(str(self.directory)) - 201 * len(names)
        path = "/".join([str(self.directory), *names, "r" * (rest - 1)])
        self.assertEqual(len(path), 4095)
        self.assert_succeeds(self.mkdirs(entry(path)))
        self.assertTrue(os.path.isdir(path))

    def test_scripts_of_several_guests_may_create_the_same_directories_at_once(self):
        paths = [self.directory / f"{number}/shared/deep" for number in range(60)]
        xml = domain(f"<mkdirs>{''.join(entry(path, mode='0750') for path in paths)}</mkdirs>")
        running = [
            subprocess.Popen(
                [script(NAME), f"guest{number}", "prepare", "begin", "-"],
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            )
            for number in range(6)
        ]  # fmt: skip
        for process in running:
            process.stdin.write(xml)
            process.stdin.flush()
        for process in running:
            _stdout, stderr = process.communicate(timeout=60)
            self.assertEqual((process.returncode, stderr), (0, ""))
        for path in paths:
            self.assertEqual(mode_owner_group(path), (0o750, 0, 0))
            self.assertEqual(mode_owner_group(path.parent), (0o755, 0, 0))


class Existing(Mkdirs):
    def test_what_is_not_given_is_left_as_it_is(self):
        for number, (attributes, expected) in enumerate((
            ({}, (0o2701, 5, 6)),
            ({"mode": "0750"}, (0o750, 5, 6)),
            ({"owner": "12"}, (0o2701, 12, 6)),
            ({"group": "13"}, (0o2701, 5, 13)),
            ({"owner": "root", "group": "root"}, (0o2701, 0, 0)),
            ({"mode": "1777", "owner": "1", "group": "2"}, (0o1777, 1, 2)),
        )):  # fmt: skip
            with self.subTest(attributes):
                path = self.directory / str(number)
                path.mkdir()
                os.chown(path, 5, 6)
                path.chmod(0o2701)
                self.assert_succeeds(self.mkdirs(entry(path, **attributes)))
                self.assertEqual(mode_owner_group(path), expected)

    def test_its_contents_and_its_parents_stay(self):
        self.write("a/b/file", "text", mode=0o640)
        self.write("a/b/c/file", "text", mode=0o600)
        os.chown(self.directory / "a", 7, 8)
        before = snapshot(self.directory)
        self.assert_succeeds(self.mkdirs(entry(self.directory / "a/b", mode="0500", owner="9")))
        after = snapshot(self.directory)
        path = str(self.directory / "a/b")
        self.assertEqual(after.pop(path), (0o40500, 9, 0, None))
        before.pop(path)
        self.assertEqual(after, before)

    def test_doing_it_twice_changes_nothing(self):
        entries = [
            entry(self.directory / "plain/deep"),
            entry(self.directory / "mode", mode="2750"),
            entry(self.directory / "owner", owner="5"),
            entry(self.directory / "all", mode="1777", owner="5", group="6"),
        ]
        self.assert_succeeds(self.mkdirs(*entries))
        before, when = snapshot(self.directory), times(self.directory)
        result = self.mkdirs(*entries)
        self.assert_succeeds(result)
        self.assertEqual(result.stdout, "")
        self.assertEqual(snapshot(self.directory), before)
        self.assertEqual(times(self.directory), when)

    def test_it_says_what_it_changed(self):
        path = self.directory / "a"
        path.mkdir(mode=0o755)
        result = self.mkdirs(entry(path, mode="0700", owner="5", group="0"))
        self.assert_succeeds(result)
        self.assertEqual(result.stdout, f"changed {path} owner=5 mode=0700\n")

    def test_the_root_directory_is_a_directory_that_exists(self):
        before = os.stat("/")
        result = self.mkdirs(entry("/"))
        self.assert_succeeds(result)
        self.assertEqual(result.stdout, "")
        self.assertEqual(os.stat("/").st_ctime_ns, before.st_ctime_ns)

    def test_a_mount_point_is_a_directory_like_any_other(self):
        point = self.directory / "point"
        point.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "tests", point], check=True)
        self.assert_succeeds(self.mkdirs(entry(point / "a", mode="0711")))
        self.assertEqual(mode_owner_group(point / "a"), (0o711, 0, 0))


class Refusing(Mkdirs):
    def test_bad_modes(self):
        for mode in BAD_MODES:
            with self.subTest(mode=mode):
                path = self.directory / "a/b"
                shown = f"mode={mode!r:.99}"
                self.assert_refused([entry(path, mode=mode)], f"mkdirs/dir '{path}': {shown}")

    def test_bad_owners_and_groups(self):
        for owner in BAD_OWNERS:
            for attribute in ("owner", "group"):
                with self.subTest(**{attribute: owner}):
                    path = self.directory / "a/b"
                    shown = f"{attribute}={owner!r:.99}"
                    self.assert_refused(
                        [entry(path, **{attribute: owner})], f"mkdirs/dir '{path}': {shown}"
                    )

    def test_bad_values_on_a_directory_that_exists(self):
        for attributes in ({"mode": "0888"}, {"owner": "no-such"}, {"group": "4294967295"}):
            with self.subTest(attributes):
                self.assert_refused([entry(self.directory, **attributes)], *attributes.values())

    def test_unknown_attributes(self):
        path = self.directory / "a"
        for attributes in (
            {"Mode": "0755"}, {"mod": "0755"}, {"modes": "0755"}, {"size": "1M"},
            {"user": "root"}, {"uid": "0"}, {"optional": "yes"}, {"xml__lang": "en"},
            {"xml__space": "preserve"}, {"xmlns__h": "urn:virt-hooks:1", "h__mode": "0755"},
            {"xmlns__h": "urn:other", "h__mode": "0755"}, {"mode": "0755", "é": "1"},
        ):  # fmt: skip
            with self.subTest(attributes):
                name, value = list(attributes.items())[-1]
                self.assert_refused(
                    [entry(path, **attributes)], f"mkdirs/dir '{path}'", "unknown attribute",
                    name.rpartition("__")[2], repr(value),
                )  # fmt: skip
        result = self.run_script(NAME, f"<mkdirs mode='0755'>{entry(path)}</mkdirs>")
        self.assert_one_line_error(result, f"{NAME}: web: mkdirs: unknown attribute mode='0755'")
        self.assertFalse(path.exists())

    def test_an_attribute_of_a_namespace_with_a_newline_in_its_name(self):
        attributes = {"xmlns__h": "urn:a\nb", "h__mode": "0755"}
        self.assert_refused([entry(self.directory / "a", **attributes)], "unknown attribute")

    def test_unknown_elements(self):
        path = self.directory / "a"
        for element, name in {
            "<Dir>/srv/x</Dir>": "Dir",
            "<dirs>/srv/x</dirs>": "dirs",
            "<directory/>": "directory",
            "<mkdirs/>": "mkdirs",
            "<src>/srv/x</src>": "src",
            "<dir xmlns='urn:other'>/srv/x</dir>": "dir",
            "<o:dir xmlns:o='urn:other'>/srv/x</o:dir>": "dir",
            "<dir>/srv/x<dir>/srv/y</dir></dir>": "dir",
            "<dir>/srv/x<b/></dir>": "b",
            "<é/>": "é",
        }.items():
            with self.subTest(element):
                self.assert_refused([entry(path), element], "unknown element", name)

    def test_text_beside_the_entries_and_entries_without_text(self):
        path = self.directory / "a"
        self.assert_refused([entry(path), str(path)], f"mkdirs '{path}': text")
        for empty in ("<dir/>", "<dir></dir>", "<dir> \n\t </dir>", "<dir><!-- /srv/x --></dir>"):
            with self.subTest(empty):
                self.assert_refused([entry(path), empty], "mkdirs/dir: empty")

    def test_an_empty_element_asks_for_nothing(self):
        for element in ("<mkdirs/>", "<mkdirs></mkdirs>", "<mkdirs>\n  <!-- none -->\n</mkdirs>"):
            with self.subTest(element):
                result = self.run_script(NAME, element)
                self.assert_succeeds(result)
                self.assertEqual(result.stdout, "")

    def test_paths_that_are_not_absolute_or_not_what_they_say(self):
        (self.directory / "a").mkdir()
        base = str(self.directory)
        for path in (
            "relative", "a", "./a", "../a", ".", "..", "~", "~/a", "-", f"{base[1:]}/a",
            f"./{base}/a", f"{base}/", f"{base}/a/", f"{base}/new/", f"{base}//a", f"/{base}/a",
            f"//{base}/a", f"{base}/a//new", f"{base}/a/./new", f"{base}/./a", f"{base}/a/.",
            f"{base}/new/.", f"{base}/a/..", f"{base}/a/../new", f"{base}/new/../a",
            f"{base}/new/..", f"/..{base}/a", f"/.{base}/a", "//", "/.", "/..", "/../..",
            f"file://{base}/a", f"\\{base}", f"\u00a0{base}/a", f"'{base}/a'", f'"{base}/a"',
        ):  # fmt: skip
            with self.subTest(path=path):
                attributes = {"mode": "0700"} if path.startswith("/srv") else {}
                shown = f"mkdirs/dir {path!r}"
                self.assert_refused([entry(path, **attributes)], shown, cwd=self.directory)

    def test_something_else_in_the_way(self):
        self.write("file", "text")
        os.mkfifo(self.directory / "fifo")
        os.mknod(self.directory / "device", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(self.directory / "socket"))
        for name in ("file", "fifo", "device", "socket"):
            for path in (self.directory / name, self.directory / name / "a",
                         self.directory / name / "a/b"):  # fmt: skip
                with self.subTest(path=path):
                    self.assert_refused(
                        [entry(path, mode="0700")], f"mkdirs/dir '{path}' is not a directory"
                    )

    def test_names_and_paths_that_are_too_long(self):
        (self.directory / "there").mkdir()
        for path in (
            f"{self.directory}/{'n' * 256}",
            f"{self.directory}/there/{'n' * 256}/below",
            f"{self.directory}/there/{'é' * 128}",
            f"{self.directory}/there/{'n' * 5000}",
        ):
            with self.subTest(length=len(path)):
                self.assert_refused([entry(path)], f"mkdirs/dir {path!r:.99}", "too long")

    def test_a_name_that_is_too_long_below_a_missing_directory(self):
        path = f"{self.directory}/missing/{'n' * 256}"
        self.assert_refused([entry(path)], f"mkdirs/dir {path!r}", "too long")

    def test_a_path_of_4096_bytes(self):
        path = f"{self.directory}/" + "/".join(["n" * 200] * 19)
        path += "/" + "r" * (4096 - len(path) - 1)
        self.assertEqual(len(path), 4096)
        self.assert_refused([entry(path)], f"mkdirs/dir {path!r:.99}", "too long")

    def test_errors_are_errors_in_a_dry_run_too(self):
        (self.directory / "link").symlink_to("/srv")
        for bad in (
            entry("relative"),
            entry(self.directory / "a", mode="8"),
            entry(self.directory / "a", owner="no-such"),
            entry(self.directory / "link"),
        ):
            with self.subTest(bad):
                self.assert_refused([bad], dry_run=True)


class Links(Mkdirs):
    """Links that a guest has planted lead nowhere."""

    def setUp(self):
        super().setUp()
        self.write("outside/file", "text")
        (self.directory / "outside/below").mkdir()
        (self.directory / "guest").mkdir()

    def plant(self, target):
        link = self.directory / "guest/link"
        if link.is_symlink():
            link.unlink()
        link.symlink_to(target)
        return link

    def test_a_link_anywhere_in_a_path_is_refused_with_where_it_leads(self):
        outside = self.directory / "outside"
        for target, real in (
            (outside, outside),
            ("../outside", outside),
            ("..", self.directory),
            (".", self.directory / "guest"),
            ("/", "/"),
            (f"/proc/self/root{outside}", outside),
            (outside / "missing", outside / "missing"),
            ("missing", self.directory / "guest/missing"),
            ("missing/deep", self.directory / "guest/missing/deep"),
        ):
            link = self.plant(target)
            for rest in ("", "/new", "/new/deep", "/below", "/below/new"):
                with self.subTest(target=target, rest=rest):
                    expected = f"{real}{rest}".replace("//", "/")
                    self.assert_refused(
                        [entry(f"{link}{rest}", mode="0700", owner="7")],
                        f"mkdirs/dir '{link}{rest}' leads to '{expected}'",
                    )

    def test_a_chain_of_links_is_refused_with_its_end(self):
        (self.directory / "guest/second").symlink_to("../outside")
        link = self.plant("second")
        self.assert_refused([entry(link / "new")], f"leads to '{self.directory}/outside/new'")

    def test_a_link_to_a_file_is_refused(self):
        link = self.plant("../outside/file")
        for path in (link, link / "new"):
            with self.subTest(path=path):
                self.assert_refused([entry(path, mode="0777")], f"mkdirs/dir '{path}'")

    def test_links_that_go_round_are_refused(self):
        link = self.plant("link")
        for path in (link, link / "new"):
            with self.subTest(path=path):
                self.assert_refused([entry(path)], f"mkdirs/dir '{path}'")
        self.plant("other")
        (self.directory / "guest/other").symlink_to("link")
        self.assert_refused([entry(link / "new")], f"mkdirs/dir '{link}/new'")

    def test_a_link_in_another_entry_leaves_the_first_undone(self):
        link = self.plant("../outside")
        self.assert_refused([entry(self.directory / "guest/a", mode="0700"), entry(link / "b")])

    def test_a_directory_that_is_swapped_for_a_link_meanwhile_leads_nowhere(self):
        guest, outside = self.directory / "guest", self.directory / "outside"
        (guest / "a").mkdir()
        (guest / "link").symlink_to("../outside")
        before, stop = snapshot(outside), threading.Event()

        def swap():
            renameat2 = ctypes.CDLL(None).renameat2  # exchanges: "a" is always there
            names = os.fsencode(guest / "a"), os.fsencode(guest / "link")
            while not stop.is_set():
                renameat2(-100, names[0], -100, names[1], 2)

        thread = threading.Thread(target=swap)
        thread.start()
        try:
            for number in range(40):
                entries = [entry(guest / f"a/{number}/{n}", mode="0700") for n in range(5)]
                result = self.mkdirs(*entries)
                self.assertIn(result.returncode, (0, 1))
                self.assertLessEqual(result.stderr.count("\n"), 1, result.stderr)
                self.assertEqual(snapshot(outside), before)
        finally:
            stop.set()
            thread.join()


class System(Mkdirs):
    def test_a_full_file_system_is_an_error(self):
        point = self.directory / "full"
        point.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=2", "tests", point], check=True)
        path = point / "a/b/c"
        result = self.mkdirs(entry(path))
        self.assert_one_line_error(
            result, f"{NAME}: web: mkdirs/dir '{path}': No space left on device"
        )
        self.assertEqual(result.stdout, "")

    def test_a_read_only_file_system_is_an_error(self):
        point = self.directory / "read-only"
        point.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tests", point], check=True)
        for path, attributes in (
            (point / "a", {}),
            (point, {"mode": "0700"}),
            (point, {"owner": "1"}),
        ):
            with self.subTest(path=path, **attributes):
                result = self.mkdirs(entry(path, **attributes))
                self.assert_one_line_error(
                    result, f"{NAME}: web: mkdirs/dir '{path}': Read-only file system"
                )
        self.assertEqual(mode_owner_group(point), (0o1777, 0, 0))
        self.assert_succeeds(self.mkdirs(entry(point)))

    def test_a_directory_that_nobody_can_create_is_an_error(self):
        result = self.mkdirs(entry("/proc/no-such-directory"))
        self.assert_one_line_error(result, f"{NAME}: web: mkdirs/dir '/proc/no-such-directory': ")


class DryRun(Mkdirs):
    def test_it_says_what_it_would_do_and_does_nothing(self):
        there = self.directory / "there"
        there.mkdir()
        before, when = snapshot(self.directory), times(self.directory)
        result = self.mkdirs(
            entry(self.directory / "new/deep", mode="0750", owner="daemon"),
            entry(there, mode="0700", owner="5"),
            entry(there, mode="0755"),
            entry(self.directory / "other"),
            dry_run=True,
        )
        self.assert_succeeds(result)
        self.assertEqual(result.stdout.splitlines(), [
            f"would create {self.directory}/new/deep mode=0750 owner=daemon",
            f"would change {there} owner=5 mode=0700",
            f"would create {self.directory}/other",
        ])  # fmt: skip
        self.assertEqual(snapshot(self.directory), before)
        self.assertEqual(times(self.directory), when)


if __name__ == "__main__":
    unittest.main()
