"""A path in the metadata is what it says, and nobody can lead a script elsewhere while it works."""

import contextlib
import os
import subprocess
import time
import unittest
from pathlib import Path

from harness import run
from scripts import (
    RELEASE,
    ScriptCase,
    details,
    dircopy,
    directory,
    for_seconds,
    guest_xml,
    mode_owner_group,
    mounted_on,
    swapping,
)

SECONDS = 1  # for each race; tests/run --long has a minute for each script

# Exchanges, as fast as it can, a directory in what is hidden in a store for a link to a victim's.
# It has open what it works in, so that it is not led astray itself.
INTRUDER = """
import ctypes, os, random, sys
store, victim = sys.argv[1:]
libc = ctypes.CDLL(None)
FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
print("waiting", flush=True)
while True:
    for hidden in [name for name in os.listdir(store) if name.startswith(".")]:
        opened = []
        try:
            opened.append(os.open(f"{store}/{hidden}", FLAGS))
            name = random.choice(os.listdir(opened[0]))
            if random.random() < 0.5:
                opened.append(os.open(name, FLAGS, dir_fd=opened[0]))
                name = "inner"
            link = f"{victim}-{random.random()}"
            os.symlink(f"{victim}/inner" if name == "inner" else victim, link)
            for _ in range(random.choice((1, 2, 30, 200))):
                libc.renameat2(opened[-1], os.fsencode(name), -100, os.fsencode(link), 2)
        except (OSError, IndexError):
            pass
        for directory in opened:
            os.close(directory)
"""


class Exact(ScriptCase):
    def setUp(self):
        super().setUp()
        for path in ("real/inner/x", "src/x", "gone/x", "file"):
            self.write(path, "text")
        for name in ("disk", "real/back", "real/inner/deep"):
            (self.directory / name).mkdir()
        (self.directory / "link").symlink_to("real")
        (self.directory / "real/up").symlink_to(self.directory)
        (self.directory / "loop").symlink_to("loop")
        (self.directory / "dangling").symlink_to("/srv/nowhere")

    def places(self):
        """(script, phase, a good entry, one with the path, what is to follow the path) of each."""
        at = self.directory
        copy = dircopy(at / "src", at / "good")
        disk = directory(at / "disk", size="1M")

        def ramdisk(path):
            return directory(path, size="1M")

        return (
            ("10-mkdirs", (), directory(at / "good"), directory, ""),
            ("10-mkdirs", (), directory(at / "good"), directory, "/new/new"),
            ("20-ramdisk", (), disk, ramdisk, ""),
            ("20-ramdisk", RELEASE, disk, ramdisk, ""),
            ("30-preload", (), copy, lambda path: dircopy(path, at / "dst"), ""),
            ("30-preload", (), copy, lambda path: dircopy(at / "src", path), ""),
            ("30-preload", (), copy, lambda path: dircopy(at / "src", path), "/new"),
            ("10-archive", (), copy, lambda path: dircopy(path, at / "dst"), ""),
            ("10-archive", (), copy, lambda path: dircopy(at / "src", path), "/new"),
            ("10-archive", (), copy, lambda path: dircopy(at / "src", path), "/new/new"),
            ("30-post-rm-rf", (), directory(at / "gone"), directory, ""),
        )

    def test_a_path_that_is_not_what_it_says_is_refused_and_nothing_is_done(self):
        at = self.directory
        for number, (name, phase, good, entry, rest) in enumerate(self.places()):
            if phase:
                self.mount("-t", "tmpfs", "virt-hooks", at / "disk")
            element = name.partition("-")[2]
            for path, *leads_to in (
                ("real",),
                ("../" + at.name + "/real",),
                (f"{at}//real",),
                (f"/{at}/real",),
                (f"{at}/./real",),
                (f"{at}/real/../real",),
                (f"{at}/real/up/real", at / "real"),
                (f"{at}/link", at / "real"),
                (f"{at}/link/inner", at / "real/inner"),
                (f"/proc/self/root{at}/real", at / "real"),
                (f"{at}/file",),
                (f"{at}/loop",),
                *([] if phase else [(f"{at}/file/x",)]),  # at release nothing there is fine
            ):
                with self.subTest(place=number, script=name, path=path):
                    elements = f"<{element}>{good}{entry(path + rest)}</{element}>"
                    values = (path, *leads_to)
                    self.assert_refused(elements, *values, name=name, phase=phase, cwd=at)
            for path in (f"{at}/real{rest}/", f"{at}/real{rest}/.", f"{at}/real{rest}/.."):
                with self.subTest(place=number, script=name, path=path):
                    elements = f"<{element}>{good}{entry(path)}</{element}>"
                    self.assert_refused(elements, f"{at}/real", name=name, phase=phase)

    def test_a_link_to_nowhere_is_refused_where_something_is_to_be_created(self):
        for number, (name, phase, good, entry, rest) in enumerate(self.places()):
            if number in (0, 1, 5, 6, 8, 9):
                with self.subTest(place=number, script=name):
                    element, path = name.partition("-")[2], f"{self.directory}/dangling"
                    elements = f"<{element}>{good}{entry(path + rest)}</{element}>"
                    self.assert_refused(elements, path, name=name, phase=phase)

    def test_any_other_name_is_a_name_like_any_other(self):
        odd = "-rf a\nb\t'\"\\040*?;#$(id)`id`%DATE%<é>{0}~ - tmpfs (deleted)"
        at = self.directory / odd
        self.write(f"{odd}/src/{odd}", "text")
        (at / "disk").mkdir()
        before = details(at / "src")
        disk = f"<ramdisk>{directory(at / 'disk', size='1M')}</ramdisk>"
        for name, phase, elements in (
            ("10-mkdirs", (), f"<mkdirs>{directory(at / 'new' / odd, mode='0700')}</mkdirs>"),
            ("20-ramdisk", (), disk),
            ("30-preload", (), f"<preload>{dircopy(at / 'src', at / 'dst')}</preload>"),
            ("10-archive", (), f"<archive>{dircopy(at / 'src', at / 'kept')}</archive>"),
        ):
            with self.subTest(name):
                self.assertEqual(self.call(elements, *phase, name=name).stderr, "")
        self.assertEqual(mode_owner_group(at / "new" / odd), (0o700, 0, 0))
        self.assertEqual(len(mounted_on(at / "disk")), 1)
        self.assertEqual(details(at / "dst"), before)
        self.assertEqual(details(at / "kept"), before)
        self.assertEqual(self.call(disk, *RELEASE, name="20-ramdisk").stderr, "")
        self.assertEqual(mounted_on(at / "disk"), [])
        elements = f"<post-rm-rf>{directory(at)}</post-rm-rf>"
        self.assertEqual(self.call(elements, name="30-post-rm-rf").stderr, "")
        self.assertEqual(os.path.lexists(at), False)


class Swapped(ScriptCase):
    """A guest's root exchanges directories for links while the host's root works there."""

    def setUp(self):
        super().setUp()
        self.victim, self.guest = self.directory / "victim", self.directory / "guest"
        self.golden, self.store = self.directory / "golden", self.directory / "store"
        for number in range(20):
            # the same names, so that a copy does not fail on the way
            for path in ("guest/middle/log", "guest/middle/log/inner"):
                self.write(f"{path}/{number}", "the guest's", mode=0o777)
            for path in ("", "/log", "/inner", "/log/inner"):
                self.write(f"victim{path}/{number}", "victim", mode=0o4640)
            self.write(f"golden/inner/{number}", "golden", mode=0o777)
        self.before = details(self.victim)
        self.middle, self.log = self.guest / "middle", self.guest / "middle/log"

    def assert_victim_unchanged(self):
        self.assertEqual(details(self.victim), self.before)

    def assert_victim_not_copied(self):
        for path in self.store.rglob("*"):
            if path.is_file() and not path.is_symlink():
                self.assertEqual(path.read_text(), "the guest's", path)

    def attack(self, name, element, entry, inside=False, remake=lambda: None):
        """Run a script while the directory of the guest's log, or what is in it, is swapped."""
        swapped = self.log / "inner" if inside else self.middle
        target = self.victim / "inner" if inside else self.victim
        (swapped.parent / "link").symlink_to(target)
        with swapping(swapped, swapped.parent / "link"):
            for _ in for_seconds(SECONDS):
                remake()
                result = self.call(f"<{element}>{entry}</{element}>", name=name)
                self.assertIn(result.returncode, (0, 1))
                self.assertNotIn("Traceback", result.stderr)
                if details(self.victim) != self.before:
                    break
        self.assert_victim_unchanged()

    def test_mkdirs(self):
        given = {"mode": "0777", "owner": "1000", "group": "1000"}
        entries = directory(self.log, **given) + directory(self.log / "new/new", **given)
        middle = os.open(self.middle, os.O_RDONLY)
        self.addCleanup(os.close, middle)

        def remake():
            for new in ("log/new/new", "log/new"):
                with contextlib.suppress(OSError):
                    os.rmdir(new, dir_fd=middle)

        self.attack("10-mkdirs", "mkdirs", entries, remake=remake)

    def test_mkdirs_whose_new_directory_a_link_replaces(self):
        new, victim = self.log / "new", self.victim / "log"
        victim.chmod(0o700)
        os.chown(victim, 1001, 1001)
        self.before = details(self.victim)
        slowly = ["strace", "-o", "/dev/null", "-e", "inject=mkdir,mkdirat:delay_exit=300000"]
        command = [*slowly, *self.command("10-mkdirs")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            process.stdin.write(guest_xml(f"<mkdirs>{directory(new)}</mkdirs>").encode())
            process.stdin.close()
            while not new.exists() and process.poll() is None:
                time.sleep(0.001)
            new.rmdir()
            new.symlink_to(victim)
        self.assert_victim_unchanged()

    def test_ramdisk(self):
        outside = self.victim / "log"
        (self.guest / "link").symlink_to(self.victim)
        elements = f"<ramdisk>{directory(self.log, size='1M')}</ramdisk>"
        with swapping(self.middle, self.guest / "link"):
            for _ in for_seconds(SECONDS):
                self.call(elements, name="20-ramdisk")
                self.assertEqual(mounted_on(outside), [])
        self.call(elements, name="20-ramdisk")
        self.mount("-t", "tmpfs", "virt-hooks", outside)  # another guest's
        with swapping(self.middle, self.guest / "link"):
            for _ in for_seconds(SECONDS):
                self.call(elements, *RELEASE, name="20-ramdisk")
                self.assertEqual(len(mounted_on(outside)), 1)

    def test_ramdisk_that_is_exchanged_for_another_mount(self):
        disk, idle = self.guest / "disk", self.guest / "idle"
        for path in (disk, idle):
            path.mkdir()
        disk_itself = os.open(disk, os.O_PATH)  # wherever it is
        self.addCleanup(os.close, disk_itself)
        self.mount("-t", "tmpfs", "tests-idle", idle)
        elements = f"<ramdisk>{directory(disk, size='1M')}</ramdisk>"
        command = ["mount", "--no-canonicalize", "-t", "tmpfs", "virt-hooks"]
        command += [f"/proc/self/fd/{disk_itself}/."]
        run(command, check=True, pass_fds=[disk_itself])
        with swapping(disk, idle, disk, idle):
            for _ in for_seconds(SECONDS):
                self.call(elements, *RELEASE, name="20-ramdisk")
                mounts = Path("/proc/self/mountinfo").read_text()
                self.assertIn("tests-idle", mounts)
                if " tmpfs virt-hooks " not in mounts:
                    run(command, check=True, pass_fds=[disk_itself])

    def test_preload_below_a_directory_that_is_swapped(self):
        entry = dircopy(self.golden, self.log / "new")
        self.attack("30-preload", "preload", entry)

    def test_preload_while_a_directory_in_dst_is_swapped(self):
        self.attack("30-preload", "preload", dircopy(self.golden, self.log), inside=True)

    def test_preload_while_a_directory_in_src_is_swapped(self):
        self.attack("30-preload", "preload", dircopy(self.log, self.store), inside=True)
        self.assert_victim_not_copied()

    def test_archive_below_a_directory_that_is_swapped(self):
        self.attack("10-archive", "archive", dircopy(self.log, self.store / "day"))
        self.assert_victim_not_copied()

    def test_archive_while_a_directory_in_src_is_swapped(self):
        entry = dircopy(self.log, self.store / "day")
        self.attack("10-archive", "archive", entry, inside=True)
        self.assert_victim_not_copied()

    def test_archive_into_a_directory_that_is_swapped(self):
        entry = dircopy(self.golden, self.log / "new/day")
        self.attack("10-archive", "archive", entry)

    def test_archive_while_the_unfinished_archive_is_spoilt(self):
        # in the guest's own directory the guest's root can reach it
        self.store.mkdir()
        (self.log / "inner").chmod(0o2777)
        for number in range(20, 300):
            (self.log / f"inner/{number}").touch()
        command = ["/usr/bin/python3", "-IS", "-c", INTRUDER, self.store, self.victim]
        # every second time the guest has a moment between mkdir(2) and open(2)
        slowly = ["strace", "-o", "/dev/null", "-e", "inject=mkdir,mkdirat:delay_exit=20000"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as intruder:
            intruder.stdout.readline()
            try:
                for number in for_seconds(3 * SECONDS):
                    started = [*slowly * (number % 2), *self.command("10-archive")]
                    entry = dircopy(self.log, self.store / f"day-{number}")
                    run(started, input=guest_xml(f"<archive>{entry}</archive>"))
                    if details(self.victim) != self.before:
                        break
            finally:
                intruder.kill()
        self.assert_victim_unchanged()

    def test_post_rm_rf_below_a_directory_that_is_swapped(self):
        middle = os.open(self.middle, os.O_RDONLY)
        self.addCleanup(os.close, middle)

        def remake():
            with contextlib.suppress(FileExistsError):
                os.mkdir("log", dir_fd=middle)

        entry = directory(self.log)
        self.attack("30-post-rm-rf", "post-rm-rf", entry, remake=remake)

    def test_post_rm_rf_while_a_directory_in_the_tree_is_swapped(self):
        new = self.guest / "new"

        def remake():
            if not self.log.exists():
                (new / "inner").mkdir(parents=True)
                for number in range(20):
                    (new / f"inner/{number}").write_text("text")
                (new / "link").symlink_to(self.victim / "inner")
                new.rename(self.log)

        self.attack("30-post-rm-rf", "post-rm-rf", directory(self.log), inside=True, remake=remake)


if __name__ == "__main__":
    unittest.main()
