"""30-post-rm-rf removes what it is asked for, and nothing else."""

import contextlib
import os
import shutil
import subprocess
import time
import unittest
from pathlib import Path
from xml.sax.saxutils import escape

from harness import TestCase, domain, run, script, snapshot

# Exchanges two names, a directory and a link, as fast as one process can (renameat2, 2: EXCHANGE)
SWAPPER = """
import ctypes, os, sys
names = [os.fsencode(name) for name in sys.argv[1:]]
libc = ctypes.CDLL(None)
print("swapping", flush=True)
while True:
    libc.renameat2(-100, names[0], -100, names[1], 2)
"""


@contextlib.contextmanager
def swapping(one, other):
    """A process exchanges two names as long as the block runs."""
    command = ["/usr/bin/python3", "-IS", "-c", SWAPPER, one, other]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


def for_seconds(seconds):
    """Yield as often as the time allows, at least once."""
    until = time.monotonic() + seconds
    number = 0
    while not number or time.monotonic() < until:
        yield number
        number += 1


def directories(*paths):
    return "<post-rm-rf>" + "".join(f"<dir>{escape(str(p))}</dir>" for p in paths) + "</post-rm-rf>"


class PostRmRf(TestCase):
    def setUp(self):
        super().setUp()
        self.write("outside/keep", "kept")
        self.write("outside/inner/keep", "kept")
        self.outside = snapshot(self.directory / "outside")

    def remove(self, *paths, **options):
        return self.run_script("30-post-rm-rf", directories(*paths), **options)

    def assert_outside_unchanged(self):
        self.assertEqual(snapshot(self.directory / "outside"), self.outside)

    def assert_refused(self, result, *parts):
        """One line names the script, the guest and the element; nothing has changed outside."""
        self.assert_one_line_error(result, "30-post-rm-rf: web: post-rm-rf", *parts)
        self.assertEqual(result.stdout, "")
        self.assertNotIn("/proc/self/fd", result.stderr)
        self.assert_outside_unchanged()

    def test_it_removes_trees_and_says_so(self):
        one = self.write("web/log/a/b/c", "text").parents[2]
        two = self.write("web/spool/x", "text").parent
        self.write("web/stays", "text")
        result = self.remove(one, two)
        self.assert_succeeds(result)
        self.assertEqual(result.stdout, f"removed {one}\nremoved {two}\n")
        self.assertEqual(os.listdir(self.directory / "web"), ["stays"])

    def test_a_missing_directory_is_fine_and_so_is_one_listed_twice_or_in_another(self):
        log = self.write("web/log/x", "text").parent
        self.assert_succeeds(self.remove(log.parent / "missing", "/srv/missing/parents/too"))
        self.assert_succeeds(self.remove(log, log, log.parent, log))
        self.assertFalse(log.parent.exists())
        self.assert_succeeds(self.remove(log, log.parent))

    def test_links_in_a_tree_are_removed_and_their_targets_stay(self):
        tree = self.directory / "tree"
        tree.mkdir()
        outside = self.directory / "outside"
        for name, target in {
            "directory": outside,
            "slash": f"{outside}/",
            "file": outside / "keep",
            "dangling": "/srv/nowhere",
            "root": "/",
            "up": "..",
            "relative": "../outside",
            "loop": "loop",
        }.items():
            (tree / name).symlink_to(target)
        os.link(outside / "keep", tree / "hard")
        self.assert_succeeds(self.remove(tree))
        self.assertFalse(tree.exists())
        self.assert_outside_unchanged()

    def test_it_removes_files_of_every_kind_and_mode(self):
        tree = self.write("tree/file", "text", mode=0).parent
        os.mkfifo(tree / "fifo")
        os.mknod(tree / "null", 0o020666, os.makedev(1, 3))
        run(["/usr/bin/python3", "-c", f"import socket; socket.socket(1).bind('{tree}/socket')"])
        self.write("tree/closed/file", "text").parent.chmod(0)
        tree.chmod(0)
        self.assert_succeeds(self.remove(tree))
        self.assertFalse(tree.exists())

    def test_odd_names(self):
        names = (
            "-rf",
            "--",
            "a b",
            "a\nb",
            "*",
            "é",
            "$(reboot)",
            "'",
            '"',
            "<&>",
            "a\\b",
            "#",
            "~",
        )
        for name in names:
            with self.subTest(name):
                inner = self.write(f"top/{name}/{name}/-- -rf\n*", "text").parent
                self.write("top/neighbour", "text")
                result = self.remove(inner)
                self.assert_succeeds(result)
                shown = str(inner).replace("\n", "\\n")
                self.assertEqual(result.stdout, f"removed {shown}\n")
                self.assertFalse(inner.exists())
                self.assert_succeeds(self.remove(inner.parent))
                self.assertEqual(os.listdir(self.directory / "top"), ["neighbour"])

    def test_names_that_are_no_utf_8_lie_in_a_tree(self):
        tree = self.write("tree/x", "text").parent
        os.mkdir(os.fsencode(tree) + b"/\xff\xfe")
        self.assert_succeeds(self.remove(tree))
        self.assertFalse(tree.exists())

    def test_white_space_around_a_path_is_no_part_of_it(self):
        tree = self.write("tree/x", "text").parent
        self.assert_succeeds(self.remove(f"\n\t  {tree} \r\n"))
        self.assertFalse(tree.exists())

    def test_a_tree_deeper_than_a_path_may_be_long(self):
        tree = self.directory / "tree"
        tree.mkdir()
        made = run(
            ["/usr/bin/python3", "-c", "import os\nfor _ in range(60):\n"
             "    os.mkdir('d' * 200); os.chdir('d' * 200)\nopen('file', 'w')"], cwd=tree
        )  # fmt: skip
        self.addCleanup(run, ["rm", "-rf", tree])  # shutil.rmtree may not manage
        self.assertEqual(made.stderr, "")
        self.assert_succeeds(self.remove(tree))
        self.assertFalse(tree.exists())

    def test_bad_paths_are_refused_with_the_path_that_they_led_to(self):
        top = self.directory
        victim = self.write("victim/keep", "text").parent
        (top / "link").symlink_to(victim)
        (top / "up").symlink_to("..")
        (top / "dangling").symlink_to("/srv/nowhere")
        (top / "loop").symlink_to("loop")
        (victim / "sub").mkdir()
        (victim / "back").symlink_to(victim)
        os.mkfifo(top / "fifo")
        self.write("file", "text")
        before = snapshot(top)
        for path, *parts in [
            ("", "empty"),
            (" \n ", "empty"),
            ("victim", "not an absolute path"),
            ("./victim", "not an absolute path"),
            ("~/victim", "not an absolute path"),
            ("$HOME/victim", "not an absolute path"),
            (f"file://{victim}", "not an absolute path"),
            (f"{victim}/", "'/' at its end"),
            (f"{victim}//", "'//'"),
            (f"/{victim}", "'//'"),
            (f"{top}//victim", "'//'"),
            (f"{top}/./victim", "'.'"),
            (f"{victim}/.", "'.'"),
            (f"{victim}/..", "'..'"),
            (f"{victim}/../victim", "'..'"),
            (f"{victim}/sub/../../victim", "'..'"),
            (f"{victim}/missing/../sub", "'..'"),
            ("//", "'//'"),
            ("/.", "'.'"),
            ("/..", "'..'"),
            ("/srv/", "'/' at its end"),
            (f"{top}/link", f"leads to '{victim}'"),
            (f"{top}/link/sub", f"leads to '{victim}/sub'"),
            (f"{top}/link/missing", f"leads to '{victim}/missing'"),
            (f"{victim}/back", f"leads to '{victim}'"),
            (f"{victim}/back/back/sub", f"leads to '{victim}/sub'"),
            (f"{top}/up/{top.name}", "leads to"),
            (f"{top}/dangling", "leads to '/srv/nowhere'"),
            (f"{top}/dangling/x", "leads to '/srv/nowhere/x'"),
            (f"{top}/loop", "is not a directory"),
            (f"{top}/loop/x", "is not a directory"),
            (f"{top}/file", "is not a directory"),
            (f"{top}/file/x", "is not a directory"),
            (f"{top}/fifo", "is not a directory"),
            ("/proc/self/cwd", "leads to"),
            ("/proc/self/root", "leads to '/'"),
            (f"/proc/self/root{victim}", f"leads to '{victim}'"),
            (f"{top}/{'n' * 256}", "is too long"),
            (f"{top}{'/name' * 1000}/{'n' * 256}",),  # missing, or refused
            ("/-virt-hooks-missing", "directly in it"),
            ("/virt hooks missing", "directly in it"),
        ]:
            with self.subTest(path[:200]):
                result = self.remove(path)
                if parts:
                    self.assert_refused(result, *parts)
                    if path.strip():
                        self.assertIn(f"{path[:200]!r}"[:-1], result.stderr)
                self.assertEqual(snapshot(top), before)

    def test_elements_that_it_does_not_know_are_refused(self):
        tree = self.write("tree/x", "text").parent
        good = f"<dir>{tree}</dir>"
        for elements, *parts in [
            (f"<post-rm-rf>{good}<dri>/srv/x</dri></post-rm-rf>", "unknown element <dri>"),
            (f"<post-rm-rf>{good}<Dir>/srv/x</Dir></post-rm-rf>", "unknown element <Dir>"),
            (f"<post-rm-rf>{good}<o:dir xmlns:o='urn:o'>/x</o:dir></post-rm-rf>", "unknown", "dir"),
            (f"<post-rm-rf>{good}<dir force='yes'>/srv/x</dir></post-rm-rf>", "force='yes'"),
            (f"<post-rm-rf mode='1'>{good}</post-rm-rf>", "mode='1'"),
            (f"<post-rm-rf>{good}<dir>/srv/x<dir>/y</dir></dir></post-rm-rf>", "<dir>"),
            (f"<post-rm-rf>{good}{tree}</post-rm-rf>", "text"),
            (f"<post-rm-rf>{good}<dir/></post-rm-rf>", "empty"),
            (f"<post-rm-rf>{good}<dir> </dir></post-rm-rf>", "empty"),
            (f"<post-rm-rf>{good}</post-rm-rf><post-rm-rf><dir>x</dir></post-rm-rf>", "absolute"),
        ]:
            with self.subTest(elements):
                result = self.run_script("30-post-rm-rf", elements)
                self.assert_refused(result, *parts)
                self.assertTrue((tree / "x").exists())

    def test_other_peoples_elements_are_left_alone(self):
        tree = self.write("tree/x", "text").parent
        bare = f"<domain><name>web</name><metadata>{directories(tree)}</metadata></domain>"
        for xml in (
            domain(""),
            domain("<post-rm-rf/>"),
            domain(f"<!-- {directories(tree)} -->"),
            domain(directories(tree)).replace("urn:virt-hooks:1", "urn:virt-hooks:2"),
            bare.replace("<post-rm-rf>", "<post-rm-rf xmlns='urn:o'>"),
            f"<domain>{directories(tree)}</domain>",
            domain(f"<mkdirs>{directories(tree)}</mkdirs>"),
        ):
            with self.subTest(xml):
                result = self.run_script("30-post-rm-rf", xml)
                self.assert_succeeds(result)
                self.assertEqual(result.stdout, "")
                self.assertTrue((tree / "x").exists())
        self.assert_succeeds(self.run_script("30-post-rm-rf", bare))
        self.assertFalse(tree.exists())

    def test_a_bad_entry_leaves_the_good_ones(self):
        tree = self.write("tree/x", "text").parent
        (self.directory / "link").symlink_to("tree")
        for bad in (self.directory / "link", "/", "/srv", "relative", f"{tree}/", f"{tree}/x"):
            with self.subTest(bad):
                self.assert_refused(self.remove(tree, bad))
                self.assert_refused(self.remove(bad, tree))
                self.assertTrue((tree / "x").exists())

    def test_the_root_and_what_lies_directly_in_it_are_refused(self):
        # in a root of our own, in which / is no mount point and programs are there to read only
        root = self.directory / "root"
        for name in ("usr", "proc", "data", "dev"):
            (root / name).mkdir(parents=True)
        self.write("root/data/inner/x", "text")
        shutil.copy(script("30-post-rm-rf"), root / "data/inner")
        for name in ("bin", "lib", "lib64", "sbin"):
            if Path("/", name).is_symlink():
                (root / name).symlink_to(os.readlink(f"/{name}"))
            elif Path("/", name).is_dir():
                (root / name).mkdir()
                self.mount("--rbind", "-o", "ro", f"/{name}", root / name)
        self.mount("--bind", "-o", "ro", "/usr", root / "usr")
        self.mount("-t", "proc", "proc", root / "proc")
        for path in ("/", "/data", "/missing", "/proc", "/usr", "/bin"):
            with self.subTest(path):
                xml = domain(directories("/data/other", path))
                self.write("root/data/other/x", "text")
                command = ["chroot", root, "/data/inner/30-post-rm-rf", "web", "release", "end"]
                result = run([*command, "-"], input=xml)
                self.assert_refused(result, "post-rm-rf/dir", repr(path))
                if path != "/bin":
                    self.assertIn("neither / nor what lies directly in it", result.stderr)
                self.assertTrue((root / "data/other/x").exists())
                self.assertTrue((root / "data/inner/x").exists())

    def mount(self, *arguments):
        self.assert_succeeds(run(["mount", *arguments]))

    def test_mount_points_and_what_contains_one_are_refused(self):
        outside = self.directory / "outside"
        for number, name in enumerate(
            ["plain", "a b", "tab\tnew\nline", "back\\slash", r"\040", "é", "hash#", "-o"]
        ):
            for kind in ("tmpfs", "bind", "read-only bind", "file"):
                with self.subTest(name=name, kind=kind):
                    self.write("good/x", "text")
                    tree = self.directory / f"{number}-{kind}"
                    point = tree / "in" / name
                    if kind == "file":
                        self.write(f"{tree.name}/in/{name}", "text")
                        self.mount("--no-canonicalize", "--bind", outside / "keep", point)
                    else:
                        point.mkdir(parents=True)
                        self.write(f"{tree.name}/in/neighbour", "text")
                    if kind == "tmpfs":
                        self.mount("--no-canonicalize", "-t", "tmpfs", "tests", point)
                        (point / "data").write_text("text")
                    elif kind != "file":
                        self.mount("--no-canonicalize", "--bind", outside, point)
                    if kind == "read-only bind":
                        self.mount("--no-canonicalize", "-o", "remount,bind,ro", point)
                    before = snapshot(tree)
                    for path in (point, tree / "in", tree):
                        if path == point and kind == "file":
                            continue  # which is no directory
                        result = self.remove(self.directory / "good", path)
                        self.assert_refused(result, "something is mounted on", repr(str(point)))
                        self.assertEqual(snapshot(tree), before)
                        self.assertTrue((self.directory / "good/x").exists())
                    # its neighbours can go
                    self.assert_succeeds(self.remove(tree / "in" / f"{name}-2"))

    def test_what_lies_in_a_mounted_file_system_is_removed(self):
        point = self.directory / "point"
        point.mkdir()
        self.mount("-t", "tmpfs", "tests", point)
        tree = self.write("point/tree/x", "text").parent
        self.write("point/stays", "text")
        self.write("point-2/x", "text")
        self.assert_succeeds(self.remove(tree, self.directory / "point-2"))
        self.assertEqual(os.listdir(point), ["stays"])

    def hooks_directory(self):
        """Where the hooks are, in an empty /etc/libvirt."""
        self.mount("-t", "tmpfs", "tests", "/etc/libvirt")
        self.addCleanup(run, ["umount", "/etc/libvirt"])
        return Path("/etc/libvirt/hooks")

    def test_a_directory_that_contains_the_hooks_directory_is_refused(self):
        hooks = self.hooks_directory()
        hooks.mkdir()
        self.assert_refused(self.remove(hooks), "it contains '/etc/libvirt/hooks'")
        self.assert_refused(self.remove(hooks.parent))
        self.assertTrue(hooks.is_dir())

    def test_a_directory_that_the_hooks_directory_leads_to_is_refused(self):
        hooks = self.hooks_directory()
        real = self.directory / "real/hooks"
        link = self.directory / "link"
        link.symlink_to(real.parent)
        for target in (real, link / "hooks"):
            hooks.symlink_to(target)
            for path in (real, real.parent):
                with self.subTest(target=target, path=path):
                    real.mkdir(parents=True, exist_ok=True)
                    self.assert_refused(self.remove(path), repr(str(path)))
                    self.assertTrue(real.is_dir())
            hooks.unlink()

    def test_a_directory_that_contains_the_script_is_refused(self):
        top = self.directory / "top"
        phase = top / "opt/hooks/lxc_release_end_-.d"
        phase.mkdir(parents=True)
        shutil.copy(script("30-post-rm-rf"), phase)
        (top / "etc").mkdir()
        (top / "etc/hooks").symlink_to(top / "opt/hooks")  # the directory is a link
        (top / "links").mkdir()
        (top / "links/30-post-rm-rf").symlink_to(phase / "30-post-rm-rf")  # the script is one
        before = snapshot(top)
        for called, cwd, paths in [
            (phase / "30-post-rm-rf", None, [phase, *phase.parents]),
            ("./30-post-rm-rf", phase, [phase, *phase.parents]),
            (
                top / "etc/hooks/lxc_release_end_-.d/30-post-rm-rf",
                None,
                [phase, *phase.parents, top / "etc"],
            ),
            (top / "links/30-post-rm-rf", None, [phase, *phase.parents, top / "links"]),
        ]:
            for path in paths:
                if not path.is_relative_to(self.directory):
                    continue
                with self.subTest(called=called, path=path):
                    result = run(
                        [called, "web", "release", "end", "-"],
                        input=domain(directories(path)),
                        cwd=cwd,
                    )
                    self.assert_refused(result, "hooks", repr(str(path)))
                    self.assertEqual(snapshot(top), before)

    def test_a_directory_that_is_above_the_hooks_by_another_name_is_refused(self):
        # a bind mount shows the same directories elsewhere
        real = self.directory / "real"
        alias = self.directory / "alias"
        phase = real / "libvirt/hooks/lxc_release_end_-.d"
        phase.mkdir(parents=True)
        alias.mkdir()
        self.mount("--bind", real, alias)
        shutil.copy(script("30-post-rm-rf"), phase)
        for path in (alias / "libvirt", alias / "libvirt/hooks"):
            with self.subTest(path=path):
                phase.mkdir(parents=True, exist_ok=True)
                copy = Path(shutil.copy(script("30-post-rm-rf"), phase))
                command = [copy, "web", "release", "end", "-"]
                result = run(command, input=domain(directories(path)))
                self.assert_refused(result, repr(str(path)))
                self.assertTrue(copy.exists())

    def test_what_rm_says_comes_before_the_error(self):
        image = self.directory / "image"
        point = self.directory / "point"
        point.mkdir()
        with open(image, "wb") as file:
            file.truncate(8 << 20)
        self.assert_succeeds(run(["mkfs.ext4", "-q", image]))
        self.mount("-o", "loop", image, point)
        tree = self.write("point/tree/immutable", "text").parent
        self.write("point/later/x", "text")
        self.assert_succeeds(run(["chattr", "+i", tree / "immutable"]))
        result = self.remove(tree, point / "later")
        self.assert_succeeds(run(["chattr", "-i", tree / "immutable"]))
        self.assertEqual(result.returncode, 1)
        said, error, *rest = result.stderr.split("\n")
        self.assertEqual(rest, [""])
        self.assertEqual(said, f"rm: cannot remove '{tree}/immutable': Operation not permitted")
        self.assertTrue(error.startswith("30-post-rm-rf: web: post-rm-rf/dir "), error)
        self.assertIn(repr(str(tree)), error)
        self.assertIn("rm failed, exit status 1", error)
        self.assertEqual((tree / "immutable").read_text(), "text")
        self.assertTrue((point / "later/x").exists())
        self.assertEqual(result.stdout, "")
        # and on a file system that nobody can write to
        self.mount("-o", "remount,ro", point)
        result = self.remove(tree)
        self.assertEqual(result.returncode, 1)
        self.assertIn("Read-only file system", result.stderr)
        self.assertNotIn("/proc/self/fd", result.stderr)

    def test_a_guest_that_is_alive_keeps_everything(self):
        tree = self.write("tree/x", "text").parent
        for reason in ("saved", "migrated"):
            with self.subTest(reason):
                result = self.run_script(
                    "30-post-rm-rf", directories(tree), "web", "release", "end", reason
                )
                self.assert_succeeds(result)
                self.assertIn(reason, result.stdout)
                self.assertTrue((tree / "x").exists())

    def test_for_any_other_reason_it_removes(self):
        for reason in (
            "-", "unknown", "shutdown", "destroyed", "crashed", "failed", "from snapshot", "daemon",
            "Saved", "",
        ):  # fmt: skip
            with self.subTest(reason):
                tree = self.write("tree/x", "text").parent
                self.assert_succeeds(
                    self.run_script(
                        "30-post-rm-rf", directories(tree), "web", "release", "end", reason
                    )
                )
                self.assertFalse(tree.exists())

    def test_a_dry_run_removes_nothing_and_refuses_the_same(self):
        tree = self.write("tree/x", "text").parent
        before = snapshot(self.directory)
        result = self.remove(tree, tree.parent / "missing", dry_run=True)
        self.assert_succeeds(result)
        self.assertEqual(result.stdout, f"would remove {tree}\n")
        self.assert_refused(self.remove(tree, "/srv", dry_run=True), "'/srv'")
        self.assertEqual(snapshot(self.directory), before)

    def test_it_works_alone_wherever_it_is_copied_in_the_c_locale(self):
        copy = self.directory / "copy"
        shutil.copy(script("30-post-rm-rf"), copy)
        tree = self.write("träd/x", "text").parent
        result = run(
            ["env", "-i", "PATH=/usr/bin:/bin", "LC_ALL=C", copy, "web", "release", "end", "-"],
            input=domain(directories(tree)), encoding="utf-8",
        )  # fmt: skip
        self.assert_succeeds(result)
        self.assertFalse(tree.exists())


class Race(TestCase):
    """A guest's root exchanges a directory for a link while the host's root works there."""

    def setUp(self):
        super().setUp()
        self.victim = self.write("victim/log/keep", "kept").parents[1]
        self.write("victim/log/inner/keep", "kept")
        self.write("victim/keep", "kept")
        self.before = snapshot(self.victim)
        self.write("guest/x", "text")

    def assert_victim_unchanged(self):
        self.assertEqual(snapshot(self.victim), self.before)

    def test_nothing_is_removed_through_a_swapped_parent(self):
        real = self.directory / "guest/middle"
        link = self.directory / "guest/link"
        real.mkdir()
        link.symlink_to(self.victim)
        middle = os.open(real, os.O_RDONLY | os.O_DIRECTORY)
        self.addCleanup(os.close, middle)
        with swapping(real, link):
            for _ in for_seconds(2):
                with contextlib.suppress(FileExistsError):
                    os.mkdir("log", dir_fd=middle)
                self.run_script("30-post-rm-rf", directories(real / "log"))
        self.assert_victim_unchanged()

    def test_nothing_is_removed_through_what_is_swapped_in_the_tree(self):
        tree = self.directory / "guest/tree"
        new = self.directory / "guest/new"
        with swapping(tree / "log", tree / "link"):
            for _ in for_seconds(2):
                if not tree.exists():
                    (new / "log/inner").mkdir(parents=True)
                    for number in range(20):
                        (new / f"log/{number}").write_text("text")
                    (new / "link").symlink_to(self.victim)
                    new.rename(tree)
                self.run_script("30-post-rm-rf", directories(tree))
        self.assert_victim_unchanged()

    def test_nothing_is_created_or_changed_by_mkdirs_through_a_swapped_directory(self):
        real = self.directory / "guest/middle"
        link = self.directory / "guest/link"
        real.mkdir()
        link.symlink_to(self.victim)
        elements = f"""<mkdirs>
            <dir mode="0777" owner="1000" group="1000">{real}/log</dir>
            <dir mode="0777" owner="1000" group="1000">{real}/new/new</dir>
            <dir mode="0777" owner="1000" group="1000">{real}</dir></mkdirs>"""
        middle = os.open(real, os.O_RDONLY | os.O_DIRECTORY)
        self.addCleanup(os.close, middle)
        with swapping(real, link):
            for _ in for_seconds(2):
                for name in ("new/new", "new", "log"):
                    with contextlib.suppress(OSError):
                        os.rmdir(name, dir_fd=middle)
                self.run_script("10-mkdirs", elements)
        self.assert_victim_unchanged()


if __name__ == "__main__":
    unittest.main()
