"""A hostile guest: as fast as it can it swaps directories for links while the scripts work there.

Two processes exchange, in bursts, at each level of the guest's tree, a directory or a file for a
link that leads to one of the same name outside, and make again what a script removes. Whatever the
script does meanwhile, nothing outside may change, and nothing that lies outside may be copied.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import unittest
from collections import Counter

from harness import mount_points
from scripts import RELEASE, ScriptCase, details, dircopy, directory, for_seconds

SECONDS = 60  # for each script
INTRUDERS = 2

# What a guest's root does. It has its directories open, so that it is not led astray itself.
INTRUDER = """
import contextlib, ctypes, os, random, stat, sys, time
guest, victim = sys.argv[1:]
renameat2 = ctypes.CDLL(None).renameat2
LEVELS = ("a", "log", "inner")
FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW

def fill(directory, above):
    # what is at one level, and all below it; the links lead to what has the same name outside
    for number in range(8):
        file = os.open(str(number), os.O_WRONLY | os.O_CREAT, 0o666, dir_fd=directory)
        with open(file, "w") as f:
            f.write("the guest's")
    os.symlink(f"{above}/0", "file link", dir_fd=directory)
    if len(below := LEVELS[above.removeprefix(victim).count("/") :]):
        os.symlink(f"{above}/{below[0]}", "link", dir_fd=directory)
        make(directory, below[0], above)

def make(directory, name, above):
    os.mkdir("fresh", 0o777, dir_fd=directory)
    inner = os.open("fresh", FLAGS, dir_fd=directory)
    fill(inner, f"{above}/{name}")
    os.close(inner)
    os.rename("fresh", name, src_dir_fd=directory, dst_dir_fd=directory)

def kind(directory, name):
    try:
        return stat.S_IFMT(os.lstat(name, dir_fd=directory).st_mode)
    except FileNotFoundError:
        return None

def repair(directory, level, above):
    # make again what a script has removed; another intruder may be at it, too
    names = (LEVELS[level], "link")
    kinds = {name: kind(directory, name) for name in names}
    missing = [name for name in names if kinds[name] is None]
    if missing and stat.S_IFLNK not in kinds.values():
        os.symlink(f"{above}/{LEVELS[level]}", missing.pop(), dir_fd=directory)
    if missing and stat.S_IFDIR not in kinds.values():
        make(directory, LEVELS[level], above)

def spoil(directory):
    # exchange a copy that is under way here, or a directory in it, for a link
    for name in os.listdir(directory):
        if name.startswith("."):
            if kind(directory, "trap") != stat.S_IFLNK:
                with contextlib.suppress(OSError):
                    os.rename("trap", "trap before", src_dir_fd=directory, dst_dir_fd=directory)
                os.symlink(victim, "trap", dir_fd=directory)
            place, inside = os.open(name, FLAGS, dir_fd=directory), "data"
            if random.randrange(2):
                hidden, place = place, os.open(inside, FLAGS, dir_fd=place)
                os.close(hidden)
                inside = "a"
            for _ in range(100):
                renameat2(place, os.fsencode(inside), directory, b"trap", 2)
            os.close(place)

def open_level(directory, level):
    for name in (LEVELS[level], "link"):
        with contextlib.suppress(OSError):
            return os.open(name, FLAGS, dir_fd=directory)

top = os.open(guest, FLAGS)
print("swapping", flush=True)
while True:
    opened, above = [top], victim
    for level, name in enumerate(LEVELS):
        with contextlib.suppress(OSError):
            repair(opened[-1], level, above)
        inner = open_level(opened[-1], level)
        if inner is None:
            break
        opened.append(inner)
        above += f"/{name}"
    for directory in opened[2:]:
        with contextlib.suppress(OSError):
            spoil(directory)
    for _ in range(random.choice((1, 2, 3, 10, 300))):
        level = random.randrange(len(opened))
        if level < len(LEVELS) and random.randrange(4):
            pair = os.fsencode(LEVELS[level]), b"link"
        else:
            pair = b"0", b"file link"
        renameat2(opened[level], pair[0], opened[level], pair[1], 2)  # RENAME_EXCHANGE
    for directory in opened[1:]:
        os.close(directory)
    if random.randrange(3):  # a script that is led astray must get somewhere, too
        time.sleep(random.random() ** 3 / 10)
"""


@contextlib.contextmanager
def intruders(guest, victim):
    """Hostile processes of the guest run as long as the block does."""
    with contextlib.ExitStack() as stack:
        for _ in range(INTRUDERS):
            command = ["/usr/bin/python3", "-IS", "-c", INTRUDER, guest, victim]
            process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
            stack.callback(process.kill)
            process.stdout.readline()
        yield


class Hostile(ScriptCase):
    def setUp(self):
        super().setUp()
        self.guest, self.victim = self.directory / "guest", self.directory / "victim"
        self.store = self.directory / "store"
        self.guest.mkdir()
        for level in ("", "a/", "a/log/", "a/log/inner/"):
            for number in range(9):  # the same names, so that a copy does not fail on the way
                self.write(f"victim/{level}{number}", "the victim's", mode=0o4640)
            self.write(f"golden/{level}{'x' if level else 0}", "golden", mode=0o666)
        (self.directory / "golden/inner").mkdir()
        (self.directory / "golden/inner/0").write_text("golden")
        self.before = details(self.victim)
        self.results = Counter()

    def assert_nothing_outside_changed(self):
        self.assertEqual(details(self.victim), self.before)
        points = [point for point in mount_points() if point.startswith(f"{self.directory}/")]
        for point in points:
            self.assertTrue(point.startswith(f"{self.guest}/"), points)

    def assert_nothing_of_the_victims(self, directory):
        for path in directory.rglob("*") if directory.exists() else ():
            if path.is_file() and not path.is_symlink():
                self.assertIn(path.read_text(), ("the guest's", "golden", ""), path)

    def attack(self, name, *calls, after=lambda: None):
        """Run a script for SECONDS beside the intruders; calls: its elements and its phase."""
        with intruders(self.guest, self.victim):
            for number in for_seconds(SECONDS):
                elements, *phase = calls[number % len(calls)]
                result = self.call(elements, *phase, name=name, timeout=300)
                self.assertIn(result.returncode, (0, 1), result.stderr)
                self.assertNotIn("Traceback", result.stderr)
                if result.returncode:
                    self.assertIn(name, result.stderr.splitlines()[-1])
                self.results["refused" if result.returncode else "done"] += 1
                self.assert_nothing_outside_changed()
                after()
        print(f"\n{name} beside a hostile guest: {dict(self.results)}", file=sys.stderr)

    def test_mkdirs(self):
        top = f"{self.guest}/a"
        owner = 'mode="0777" owner="1000" group="1000"'
        elements = [
            f"<mkdirs><dir {owner}>{top}/log/inner/new/newer</dir></mkdirs>",
            f"<mkdirs><dir {owner}>{top}/log</dir><dir {owner}>{top}/log/inner</dir></mkdirs>",
            f"<mkdirs><dir {owner}>{top}/log/9</dir><dir>{top}/log/{os.getpid()}</dir></mkdirs>",
        ]
        self.attack("10-mkdirs", *([text] for text in elements))

    def test_ramdisk(self):
        disks = "".join(
            f'<dir size="1M" mode="0777" owner="1000">{self.guest}/{path}</dir>'
            for path in ("a/log/inner", "b")
        )
        (self.guest / "b").mkdir()
        elements = f"<ramdisk>{disks}</ramdisk>"
        self.attack("20-ramdisk", [elements], [elements, *RELEASE])

    def test_preload_into_the_guests_tree(self):
        golden = self.directory / "golden"
        into = [self.guest / "a", self.guest / "a/log", self.guest / "a/log/inner/new"]
        copies = [f"<preload>{dircopy(golden, path)}</preload>" for path in into]
        self.attack("30-preload", *([text] for text in copies))

    def test_preload_out_of_the_guests_tree(self):
        trees = [self.guest / path for path in ("a", "a/log", "a/log/inner")]
        copies = [f"<preload>{dircopy(tree, self.store)}</preload>" for tree in trees]
        self.attack("30-preload", *([text] for text in copies), after=self.look_into_the_store)

    def test_archive(self):
        trees = [self.guest / path for path in ("a", "a/log", "a/log/inner")]
        copies = [f"<archive>{dircopy(tree, self.store / 'day')}</archive>" for tree in trees]
        self.attack("10-archive", *([text] for text in copies), after=self.look_into_the_store)

    def look_into_the_store(self):
        self.assert_nothing_of_the_victims(self.store)
        shutil.rmtree(self.store, ignore_errors=True)

    def test_archive_into_the_guests_tree(self):
        src = self.directory / "golden"
        into = [self.guest / "a/log/D/x", self.guest / "a/log/inner/x"]
        dated = "<datestr><format>%Y</format><replace>D</replace></datestr>"
        elements = [f"<archive>{dircopy(src, dst)}</archive>" for dst in into]
        elements[0] = elements[0].replace("</archive>", f"{dated}</archive>")
        self.attack("10-archive", *([text] for text in elements))

    def test_post_rm_rf(self):
        trees = [self.guest / path for path in ("a/log/inner", "a/log", "a")]
        elements = [f"<post-rm-rf>{directory(tree)}</post-rm-rf>" for tree in trees]
        self.attack("30-post-rm-rf", *([text] for text in elements))


if __name__ == "__main__":
    unittest.main()
