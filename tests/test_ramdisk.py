"""20-ramdisk mounts the ramdisks of a guest, and unmounts nothing but them."""

import errno
import os
import re
import stat
import subprocess
import threading
import unittest
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from harness import SCRIPTS, TestCase, domain, run, script, snapshot

NAME = "20-ramdisk"
RELEASE = ("web", "release", "end", "-")
BAD_SIZES = (
    "", " ", "0", "00", "0K", "0M", "000T", "-1", "-1M", "+1", "+1M", "1.5G", "1,5G", ".5M", "1.",
    "64MB", "64MiB", "64Mi", "64KK", "64 M", "64  M", " 64M", "64M ", "64M\n", "\t64M", "64,M",
    "64,", "64;M", "10%", "50%", "1e3", "1E3", "0x10", "0o10", "0b1", "1_000", "1 000", "1'000",
    "٣", "٣M", "６４M", "²", "½", "M", "K", "MM", "M64", "64m", "64k", "64g", "64t", "64B", "64b",
    "64P", "64E", "64KiB", "unlimited", "max", "half", "64M,mode=0777", "64M,size=1G", "1M\\",
    "64M uid=5", "$(id)", "`id`", "%s", "é", "'", '"', "<1M>", "nan", "inf", "None", "1j",
    "9223372036854775808", "18446744073709551616", "9007199254740992K", "8796093022208M",
    "8589934592G", "8388608T", "9" * 19, "9" * 20, "9" * 5000, "1" + "0" * 5000 + "T", "0" * 5000,
)  # fmt: skip
BAD_MODES = ("", "8", "0888", "77777", "-1", "0o755", "u+rwx", "٧٥٥", "7" * 5000, "755,uid=5", " 7")
BAD_OWNERS = ("", "nobody-of-this-name", "4294967295", "4294967296", "9" * 5000, "-1", "0x0", "٣",
              "root:root", "a" * 5000, "0,size=1G", "é", " 0")  # fmt: skip
ODD_NAMES = (
    "with space", " leading", "trailing\u00a0", "two  spaces", "new\nline", "tab\there",
    "return\rhere", "\rx", "a\r- tmpfs tests\rb", "é", "日本", "\u2028", "\u0085", "back\\slash",
    "\\040", "\\", "\\\\134", "100%", "-rf", "--help", "-", "...", "#", "'", '"', "a,b", "a=b", "*",
    "$(touch x)", "`id`", ";", "~", "a - tmpfs tests", "(deleted)", "n" * 255,
)  # fmt: skip
QUOTED = {"\n": "&#10;", "\r": "&#13;", "\t": "&#9;"}  # else XML makes spaces of some


def entry(path, size="1M", **attributes):
    """A <dir> with a path, which may have any character, a size (None for none) and attributes."""
    if size is not None:
        attributes = {"size": size, **attributes}
    given = "".join(
        f" {name.replace('__', ':')}={quoteattr(value, QUOTED)}"
        for name, value in attributes.items()
    )
    return f"<dir{given}>{escape(str(path), QUOTED)}</dir>"


def mode_owner_group(path):
    status = os.lstat(path)
    return stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid


def mount_table():
    return Path("/proc/self/mountinfo").read_bytes()


def mounted_on(path):
    """(type, source, options, options of the file system) of each mount on a path, in order."""
    found = []
    for line in mount_table().split(b"\n")[:-1]:
        fields, _dash, rest = line.partition(b" - ")
        fields = fields.split(b" ")
        point = re.sub(rb"\\(\d{3})", lambda match: bytes([int(match[1], 8)]), fields[4])
        if point == os.fsencode(path):
            kind, source, options = rest.decode().split(" ")
            found.append((kind, source, set(fields[5].decode().split(",")), options.split(",")))
    return found


def size_of(path):
    status = os.statvfs(path)
    return status.f_blocks * status.f_frsize


class Ramdisk(TestCase):
    def make(self, name="disk"):
        """Create a directory that is to get a ramdisk."""
        path = self.directory / name
        path.mkdir(parents=True)
        return path

    def mount_other(self, path, *arguments):
        subprocess.run(["mount", *arguments, path], check=True)

    def prepare(self, *entries, **options):
        return self.run_script(NAME, f"<ramdisk>{''.join(entries)}</ramdisk>", **options)

    def release(self, *entries, phase=RELEASE, **options):
        return self.run_script(NAME, f"<ramdisk>{''.join(entries)}</ramdisk>", *phase, **options)

    def assert_refused(self, entries, *parts, release=False, **options):
        """After a good entry these get a one-line error, and nothing has been (un)mounted."""
        good = self.directory / "good"
        good.mkdir(exist_ok=True)
        before, table = snapshot(self.directory), mount_table()
        call = self.release if release else self.prepare
        result = call(entry(good), *entries, **options)
        self.assert_one_line_error(result, f"{NAME}: web: ramdisk", *parts)
        self.assertEqual(result.stdout, "")
        self.assertEqual(mount_table(), table)
        self.assertEqual(snapshot(self.directory), before)


class Mounting(Ramdisk):
    def test_it_mounts_a_tmpfs_of_the_size_without_suid_programs_and_devices(self):
        path = self.make()
        result = self.prepare(entry(path, "8M"))
        self.assert_succeeds(result)
        self.assertEqual(result.stdout, f"mounted a ramdisk of 8M on {path}\n")
        ((kind, source, options, more),) = mounted_on(path)
        self.assertEqual((kind, source), ("tmpfs", "virt-hooks"))
        self.assertLessEqual({"rw", "nosuid", "nodev"}, options)
        self.assertIn("size=8192k", more)
        self.assertEqual(size_of(path), 8 << 20)

    def test_it_holds_no_more_than_its_size(self):
        path = self.make()
        self.assert_succeeds(self.prepare(entry(path, "1M")))
        (path / "fits").write_bytes(bytes(900_000))
        with self.assertRaises(OSError) as caught:
            (path / "does not fit").write_bytes(bytes(900_000))
        self.assertEqual(caught.exception.errno, errno.ENOSPC)

    def test_sizes_are_bytes_or_k_m_g_t(self):
        page = os.sysconf("SC_PAGE_SIZE")
        for number, (size, expected) in enumerate({
            "1": page, "4096": page, "65536": 65536, "64K": 64 << 10, "3M": 3 << 20, "2G": 2 << 30,
            "1T": 1 << 40, "010M": 10 << 20, "0001048576": 1 << 20, "8388607T": 8388607 << 40,
        }.items()):  # fmt: skip
            with self.subTest(size=size):
                path = self.make(f"disk{number}")
                self.assert_succeeds(self.prepare(entry(path, size)))
                self.assertEqual(size_of(path), expected)

    def test_mode_owner_and_group_are_those_given_or_those_of_the_directory_below(self):
        for number, (attributes, expected) in enumerate((
            ({}, (0o2751, 5, 6)),
            ({"mode": "1777"}, (0o1777, 5, 6)),
            ({"mode": "0"}, (0, 5, 6)),
            ({"mode": "07777"}, (0o7777, 5, 6)),
            ({"owner": "0"}, (0o2751, 0, 6)),
            ({"owner": "daemon", "group": "daemon"}, (0o2751, 1, 1)),
            ({"group": "root"}, (0o2751, 5, 0)),
            ({"mode": "0700", "owner": "4294967294", "group": "7"}, (0o700, 4294967294, 7)),
        )):  # fmt: skip
            with self.subTest(attributes):
                path = self.make(f"disk{number}")
                os.chown(path, 5, 6)
                path.chmod(0o2751)
                self.assert_succeeds(self.prepare(entry(path, **attributes), umask=0o077))
                self.assertEqual(len(mounted_on(path)), 1)
                self.assertEqual(mode_owner_group(path), expected)
                self.assert_succeeds(self.release(entry(path, **attributes)))
                self.assertEqual(mounted_on(path), [])
                self.assertEqual(mode_owner_group(path), (0o2751, 5, 6))

    def test_one_that_is_there_is_kept_with_its_contents_and_a_warning(self):
        for number, source in enumerate(("virt-hooks", "another")):
            with self.subTest(source=source):
                path = self.make(f"disk{number}")
                self.mount_other(path, "-t", "tmpfs", "-o", "size=2M,mode=0711", source)
                (path / "file").write_text("text")
                table, before = mount_table(), snapshot(path)
                result = self.prepare(entry(path, "1M", mode="0700", owner="5"))
                self.assertEqual(result.returncode, 0)
                self.assertEqual(result.stdout, "")
                warning = f"{NAME}: web: ramdisk/dir '{path}': warning: kept the tmpfs"
                self.assertTrue(result.stderr.startswith(warning), result.stderr)
                self.assertEqual(result.stderr.count("\n"), 1)
                self.assertEqual(mount_table(), table)
                self.assertEqual(snapshot(path), before)

    def test_one_that_is_there_does_not_keep_the_next_from_being_mounted(self):
        first, second = self.make("first"), self.make("second")
        self.assert_succeeds(self.prepare(entry(first)))
        result = self.prepare(entry(first), entry(second))
        self.assertEqual(result.returncode, 0)
        self.assertEqual(len(mounted_on(first)), 1)
        self.assertEqual(len(mounted_on(second)), 1)

    def test_a_directory_in_a_tmpfs_is_no_ramdisk_yet(self):
        outer = self.make()
        self.mount_other(outer, "-t", "tmpfs", "virt-hooks")
        inner = outer / "inner"
        inner.mkdir()
        result = self.release(entry(inner))
        self.assert_succeeds(result)
        self.assertEqual(len(mounted_on(outer)), 1)
        self.assert_succeeds(self.prepare(entry(inner)))
        self.assertEqual(len(mounted_on(inner)), 1)
        self.assert_succeeds(self.release(entry(inner)))
        self.assertEqual((len(mounted_on(outer)), len(mounted_on(inner))), (1, 0))

    def test_several_in_several_elements_are_all_mounted_and_unmounted(self):
        paths = [self.make(f"disk{number}") for number in range(6)]
        elements = "".join(f"<ramdisk>{entry(a)}{entry(b)}</ramdisk>"
                           for a, b in zip(paths[::2], paths[1::2]))  # fmt: skip
        result = self.run_script(NAME, elements)
        self.assert_succeeds(result)
        self.assertEqual(len(result.stdout.splitlines()), 6)
        self.assertEqual([len(mounted_on(path)) for path in paths], [1] * 6)
        result = self.run_script(NAME, elements, *RELEASE)
        self.assert_succeeds(result)
        self.assertEqual(len(result.stdout.splitlines()), 6)
        self.assertEqual([len(mounted_on(path)) for path in paths], [0] * 6)

    def test_odd_names_are_names_like_any_other(self):
        for number, name in enumerate(ODD_NAMES):
            with self.subTest(name=name):
                path = self.make(f"{number}/{name}")
                self.assert_succeeds(self.prepare(entry(path)))
                self.assertEqual(len(mounted_on(path)), 1)
                self.assert_succeeds(self.release(entry(path)))
                self.assertEqual(len(mounted_on(path)), 0)

    def test_odd_names_of_other_mounts_are_no_hindrance(self):
        for name in (*ODD_NAMES[:18], "x - ", "\r - \r", "\r\r\r"):
            other = self.make(f"other/{name}")
            self.mount_other(other, "-t", "tmpfs", "tests")
        path = self.make()
        self.assert_succeeds(self.prepare(entry(path)))
        self.assert_succeeds(self.release(entry(path)))
        self.assertEqual(mounted_on(path), [])
        self.assertEqual(len(mounted_on(other)), 1)

    def test_a_mount_that_fails_is_an_error_and_names_the_path(self):
        path = self.make()
        drop = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
        command = [*drop, script(NAME), "web", "prepare", "begin", "-"]
        result = run(command, input=domain(f"<ramdisk>{entry(path)}</ramdisk>"))
        self.assertEqual(result.returncode, 1)
        *said, last = result.stderr.splitlines()
        self.assertTrue(last.startswith(f"{NAME}: web: ramdisk/dir '{path}': mount failed"), last)
        self.assertTrue(said[0].startswith(f"mount: {path}: "), said)
        self.assertNotIn("/proc/", result.stderr)
        self.assertEqual(mounted_on(path), [])

    def test_without_mount_it_is_a_one_line_error(self):
        path = self.make()
        xml = domain(f"<ramdisk>{entry(path)}</ramdisk>")
        result = run([script(NAME), "web"], input=xml, env={"PATH": str(self.directory)})
        self.assert_one_line_error(result, f"ramdisk/dir '{path}': mount: No such file")


class Refusing(Ramdisk):
    def test_bad_sizes(self):
        path = self.make()
        for size in BAD_SIZES:
            with self.subTest(size=size):
                shown = f"ramdisk/dir '{path}': size={size!r:.99}"
                self.assert_refused([entry(path, size)], shown)
        self.assert_refused([entry(path, None)], f"ramdisk/dir '{path}': size is missing")
        self.assert_refused([entry(path, None, mode="0700")], "size is missing")

    def test_bad_modes(self):
        path = self.make()
        for mode in BAD_MODES:
            with self.subTest(mode=mode):
                shown = f"ramdisk/dir '{path}': mode={mode!r:.99}"
                self.assert_refused([entry(path, mode=mode)], shown)

    def test_bad_owners_and_groups(self):
        path = self.make()
        for owner in BAD_OWNERS:
            for attribute in ("owner", "group"):
                with self.subTest(**{attribute: owner}):
                    shown = f"ramdisk/dir '{path}': {attribute}={owner!r:.99}"
                    self.assert_refused([entry(path, **{attribute: owner})], shown)

    def test_bad_values_are_errors_at_release_too_and_unmount_nothing(self):
        good, path = self.make("good"), self.make()
        self.assert_succeeds(self.prepare(entry(good), entry(path)))
        for bad in (
            entry(path, "64MB"), entry(path, None), entry(path, mode="8"), entry(path, siez="1M"),
            entry(path, owner="no-such"), entry("relative"), "<dri/>", entry(f"{path}/"),
        ):  # fmt: skip
            with self.subTest(bad):
                self.assert_refused([bad], release=True)

    def test_unknown_attributes(self):
        path = self.make()
        for attributes in (
            {"Size": "1M"}, {"sizes": "1M"}, {"user": "0"}, {"uid": "0"}, {"nr_inodes": "5"},
            {"options": "exec"}, {"xml__lang": "en"}, {"xmlns__h": "urn:other", "h__size": "1M"},
            {"xmlns__h": "urn:virt-hooks:1", "h__mode": "7"},
        ):  # fmt: skip
            with self.subTest(attributes):
                name, value = list(attributes.items())[-1]
                shown = f"ramdisk/dir '{path}': unknown attribute"
                name = name.rpartition("__")[2]
                self.assert_refused([entry(path, **attributes)], shown, f"{name}={value!r}")
        result = self.run_script(NAME, f"<ramdisk size='1M'>{entry(path)}</ramdisk>")
        self.assert_one_line_error(result, f"{NAME}: web: ramdisk: unknown attribute size='1M'")
        self.assertEqual(mounted_on(path), [])

    def test_unknown_elements_and_text(self):
        path = self.make()
        for content, part in {
            f"<Dir size='1M'>{path}</Dir>": "ramdisk: unknown element <Dir>",
            f"<disk size='1M'>{path}</disk>": "ramdisk: unknown element <disk>",
            "<size>1M</size>": "ramdisk: unknown element <size>",
            f"<dir size='1M' xmlns='urn:other'>{path}</dir>": "ramdisk: unknown element <",
            f"<dir size='1M'>{path}<size/></dir>": f"ramdisk/dir '{path}': unknown element <size>",
            f"<dir>{path}<size>1M</size></dir>": f"ramdisk/dir '{path}': unknown element <size>",
            str(path): f"ramdisk '{path}': text",
            "<dir size='1M'/>": "ramdisk/dir: empty",
            "<dir size='1M'> \n </dir>": "ramdisk/dir: empty",
        }.items():
            with self.subTest(content):
                self.assert_refused([content], part)

    def test_paths_that_are_not_absolute_or_not_what_they_say(self):
        base = self.make()
        (base / "a").mkdir()
        for path in (
            "relative", "a", "./a", "../a", ".", "..", "~", f"{base}"[1:], f"{base}/", f"{base}/a/",
            f"{base}//a", f"/{base}", f"//{base}", f"{base}/.", f"{base}/./a", f"{base}/a/..",
            f"{base}/a/../a", f"/..{base}", f"/.{base}", "//", "/.", f"\u00a0{base}",
        ):  # fmt: skip
            with self.subTest(path=path):
                for release in (False, True):
                    shown = f"ramdisk/dir {path!r}"
                    self.assert_refused([entry(path)], shown, cwd=base, release=release)

    def test_the_root_directory_is_no_place_for_a_ramdisk(self):
        self.assert_refused([entry("/")], "ramdisk/dir '/'", dry_run=True)
        self.assert_refused([entry("/")], "ramdisk/dir '/'", dry_run=True, release=True)

    def test_a_directory_that_is_missing(self):
        path = self.directory / "missing"
        for missing in (path, path / "deep"):
            self.assert_refused([entry(missing)], f"ramdisk/dir '{missing}'", "no such directory")

    def test_something_else_in_the_way(self):
        self.write("file", "text")
        os.mkfifo(self.directory / "fifo")
        os.mknod(self.directory / "device", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        for name in ("file", "file/below", "fifo", "fifo/below", "device"):
            path = self.directory / name
            for release in (False, True):
                with self.subTest(name, release=release):
                    shown = f"ramdisk/dir '{path}' is not a directory"
                    self.assert_refused([entry(path)], shown, release=release)

    def test_a_name_that_is_too_long(self):
        path = f"{self.directory}/{'n' * 256}"
        for release in (False, True):
            self.assert_refused([entry(path)], f"ramdisk/dir '{path}", "too long", release=release)

    def test_one_ramdisk_in_another_or_twice(self):
        outer = self.make("outer")
        inner = self.make("outer/a/inner")
        for entries in (
            (outer, outer), (outer, inner), (inner, outer), (outer, outer / "a"),
            (outer, self.make("outer!"), inner), (inner, self.make("outer.d"), outer),
        ):  # fmt: skip
            with self.subTest(entries):
                for release in (False, True):
                    self.assert_refused(
                        [entry(path) for path in entries], "one ramdisk in another",
                        f"'{outer}'", release=release,
                    )  # fmt: skip
        elements = f"<ramdisk>{entry(outer)}</ramdisk><ramdisk>{entry(inner)}</ramdisk>"
        result = self.run_script(NAME, elements)
        self.assert_one_line_error(result, "one ramdisk in another")
        self.assertEqual((mounted_on(outer), mounted_on(inner)), ([], []))

    def test_names_that_begin_alike_are_no_ramdisks_in_another(self):
        paths = [self.make(name) for name in ("a", "ab", "a b", "a!", "a.b", "b")]
        self.assert_succeeds(self.prepare(*map(entry, paths)))
        self.assertEqual([len(mounted_on(path)) for path in paths], [1] * 6)

    def test_errors_are_errors_in_a_dry_run_too(self):
        path = self.make()
        for bad in (entry(path, "64MB"), entry(path, None), entry("relative"), "<dri/>"):
            for release in (False, True):
                with self.subTest(bad, release=release):
                    self.assert_refused([bad], dry_run=True, release=release)


class Links(Ramdisk):
    """Links that a guest has planted lead nowhere."""

    def test_a_link_anywhere_in_a_path_is_refused_with_where_it_leads(self):
        self.make("outside/below/deep")
        self.make("guest")
        link, outside = self.directory / "guest/link", self.directory / "outside"
        for target, real in (
            (outside, outside),
            ("../outside", outside),
            (".", self.directory / "guest"),
            ("/", "/"),
            ("missing", self.directory / "guest/missing"),
        ):
            link.symlink_to(target)
            for rest in ("", "/below", "/below/deep", "/missing"):
                for release in (False, True):
                    with self.subTest(target=target, rest=rest, release=release):
                        leads = f"leads to '{real}{rest}'".replace("//", "/")
                        shown = f"ramdisk/dir '{link}{rest}' {leads}"
                        self.assert_refused([entry(f"{link}{rest}")], shown, release=release)
            link.unlink()

    def test_links_that_go_round_are_refused(self):
        self.make("guest")
        link = self.directory / "guest/link"
        link.symlink_to("link")
        for path in (link, link / "below"):
            for release in (False, True):
                with self.subTest(path=path, release=release):
                    self.assert_refused([entry(path)], f"ramdisk/dir '{path}'", release=release)

    def test_a_link_planted_while_the_guest_ran_unmounts_nobody_elses_ramdisk(self):
        path, other, good = self.make("guest/a/disk"), self.make("other/disk"), self.make("good")
        self.assert_succeeds(self.prepare(entry(path), entry(good)))
        self.assert_succeeds(self.prepare(entry(other)))
        os.rename(self.directory / "guest/a", self.directory / "guest/moved")
        (self.directory / "guest/a").symlink_to("../other")
        shown = f"ramdisk/dir '{path}' leads to '{other}'"
        self.assert_refused([entry(path)], shown, release=True)
        self.assertEqual(len(mounted_on(other)), 1)
        (self.directory / "guest/a").unlink()
        (self.directory / "guest/a").mkdir()
        path.symlink_to("../../other/disk")
        self.assert_refused([entry(path)], shown, release=True)
        self.assertEqual(len(mounted_on(other)), 1)

    def test_a_directory_that_is_swapped_for_a_link_meanwhile_leads_nowhere(self):
        self.make("outside/disk")
        guest, outside = self.make("guest"), self.directory / "outside/disk"
        self.make("guest/a/disk")
        (guest / "link").symlink_to("../outside")
        stop = threading.Event()

        def swap():
            while not stop.is_set():
                os.rename(guest / "a", guest / "away")
                os.rename(guest / "link", guest / "a")
                os.rename(guest / "a", guest / "link")
                os.rename(guest / "away", guest / "a")

        thread = threading.Thread(target=swap)
        thread.start()
        try:
            for _ in range(30):
                for call in (self.prepare, self.release):
                    result = call(entry(guest / "a/disk"))
                    self.assertIn(result.returncode, (0, 1))
                    self.assertNotIn("Traceback", result.stderr)
                    self.assertEqual(mounted_on(outside), [])
        finally:
            stop.set()
            thread.join()


class Unmounting(Ramdisk):
    def test_it_unmounts_its_ramdisk_and_what_lay_below_is_there_again(self):
        path = self.make()
        (path / "below").write_text("text")
        before = snapshot(self.directory)
        self.assert_succeeds(self.prepare(entry(path)))
        (path / "file").write_text("text")
        result = self.release(entry(path))
        self.assert_succeeds(result)
        self.assertEqual(result.stdout, f"unmounted the ramdisk on {path}\n")
        self.assertEqual(mounted_on(path), [])
        self.assertEqual(snapshot(self.directory), before)

    def test_stopped_unmounts_too_and_release_after_it_finds_nothing(self):
        path = self.make()
        self.assert_succeeds(self.prepare(entry(path)))
        self.assert_succeeds(self.release(entry(path), phase=("web", "stopped", "end", "-")))
        self.assertEqual(mounted_on(path), [])
        result = self.release(entry(path))
        self.assert_succeeds(result)
        self.assertEqual(result.stdout, "")

    def test_nothing_mounted_is_fine(self):
        for path in (self.make(), self.directory / "missing", self.directory / "missing/deep"):
            with self.subTest(path=path):
                result = self.release(entry(path))
                self.assert_succeeds(result)
                self.assertEqual(result.stdout, "")

    def test_it_unmounts_nothing_that_it_has_not_mounted(self):
        source = self.make("source")
        for number, arguments in enumerate((
            ("-t", "tmpfs", "tests"),
            ("-t", "tmpfs", "virt-hooks2"),
            ("-t", "tmpfs", "tmpfs"),
            ("-t", "tmpfs", "/virt-hooks"),
            ("-t", "ramfs", "virt-hooks"),
            ("-t", "proc", "virt-hooks"),
            ("--bind", source),
            ("--bind", "/usr"),
        )):  # fmt: skip
            with self.subTest(arguments):
                path = self.make(f"disk{number}")
                self.mount_other(path, *arguments)
                table = mount_table()
                for phase in (RELEASE, ("web", "stopped", "end", "-")):
                    result = self.release(entry(path), phase=phase)
                    self.assert_succeeds(result)
                    self.assertEqual(result.stdout, "")
                    self.assertEqual(mount_table(), table)

    def test_what_is_mounted_over_a_ramdisk_stays_with_it(self):
        path = self.make()
        self.assert_succeeds(self.prepare(entry(path)))
        self.mount_other(path, "-t", "tmpfs", "tests")
        self.assert_succeeds(self.release(entry(path)))
        self.assertEqual([source for _, source, *_ in mounted_on(path)], ["virt-hooks", "tests"])

    def test_a_ramdisk_over_another_file_system_goes_and_that_stays(self):
        path = self.make()
        self.mount_other(path, "-t", "ramfs", "tests")
        self.assert_succeeds(self.prepare(entry(path)))
        self.assert_succeeds(self.release(entry(path)))
        self.assertEqual([kind for kind, *_ in mounted_on(path)], ["ramfs"])

    def test_busy_is_an_error_and_it_stays_mounted(self):
        path = self.make()
        self.assert_succeeds(self.prepare(entry(path)))
        (path / "file").write_text("text")
        with subprocess.Popen(["sleep", "600"], cwd=path) as process:
            try:
                result = self.release(entry(path))
            finally:
                process.kill()
        self.assertEqual(result.returncode, 1)
        *said, last = result.stderr.splitlines()
        self.assertTrue(last.startswith(f"{NAME}: web: ramdisk/dir '{path}': umount failed"), last)
        self.assertEqual(said, [f"umount: {path}: target is busy."])
        self.assertEqual(result.stdout, "")
        self.assertEqual((path / "file").read_text(), "text")
        self.assert_succeeds(self.release(entry(path)))
        self.assertEqual(mounted_on(path), [])

    def test_something_mounted_in_it_makes_it_busy(self):
        path = self.make()
        self.assert_succeeds(self.prepare(entry(path)))
        (path / "inner").mkdir()
        self.mount_other(path / "inner", "-t", "tmpfs", "tests")
        result = self.release(entry(path))
        self.assertEqual(result.returncode, 1)
        self.assertIn(f"{path}", result.stderr)
        self.assertNotIn("/proc/", result.stderr)
        self.assertEqual((len(mounted_on(path)), len(mounted_on(path / "inner"))), (1, 1))

    def test_the_ramdisk_of_a_guest_that_is_alive_stays(self):
        path = self.make()
        self.assert_succeeds(self.prepare(entry(path)))
        for reason in ("saved", "migrated"):
            for dry_run in (False, True):
                with self.subTest(reason=reason, dry_run=dry_run):
                    phase = ("web", "release", "end", reason)
                    result = self.release(entry(path), phase=phase, dry_run=dry_run)
                    self.assert_succeeds(result)
                    self.assertEqual(result.stdout.count("\n"), 1)
                    self.assertIn(reason, result.stdout)
                    self.assertEqual(len(mounted_on(path)), 1)

    def test_it_unmounts_for_every_other_shutoff_reason(self):
        path = self.make()
        for reason in (
            "-", "unknown", "shutdown", "destroyed", "crashed", "failed", "from snapshot", "daemon",
            "unsaved", "", "saved ", "new-reason",
        ):  # fmt: skip
            with self.subTest(reason=reason):
                self.assert_succeeds(self.prepare(entry(path)))
                self.assertEqual(len(mounted_on(path)), 1)
                result = self.release(entry(path), phase=("web", "release", "end", reason))
                self.assert_succeeds(result)
                self.assertEqual(mounted_on(path), [])

    def test_it_works_through_the_link_in_the_release_directory(self):
        path = self.make()
        self.assert_succeeds(self.prepare(entry(path)))
        link = script(NAME).parent.parent / "lxc_release_end_-.d" / NAME
        self.assertNotEqual(SCRIPTS[NAME], link.parent.name)
        result = run([link, *RELEASE], input=domain(f"<ramdisk>{entry(path)}</ramdisk>"))
        self.assert_succeeds(result)
        self.assertEqual(mounted_on(path), [])


class DryRun(Ramdisk):
    def test_it_says_what_it_would_mount_and_does_nothing(self):
        path, missing = self.make(), self.directory / "missing"
        table, before = mount_table(), snapshot(self.directory)
        result = self.prepare(entry(path, "64M"), entry(missing, "1G"), dry_run=True)
        self.assert_succeeds(result)
        self.assertEqual(result.stdout.splitlines(), [
            f"would mount a ramdisk of 64M on {path}",
            f"would mount a ramdisk of 1G on {missing}",
        ])  # fmt: skip
        self.assertEqual(mount_table(), table)
        self.assertEqual(snapshot(self.directory), before)

    def test_it_says_what_it_would_unmount_and_does_nothing(self):
        path, empty = self.make(), self.make("empty")
        self.assert_succeeds(self.prepare(entry(path)))
        table, before = mount_table(), snapshot(self.directory)
        result = self.release(entry(path), entry(empty), dry_run=True)
        self.assert_succeeds(result)
        self.assertEqual(result.stdout, f"would unmount the ramdisk on {path}\n")
        self.assertEqual(mount_table(), table)
        self.assertEqual(snapshot(self.directory), before)


if __name__ == "__main__":
    unittest.main()
