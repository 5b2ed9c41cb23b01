"""30-post-rm-rf removes what it is asked for, and nothing else."""

import os
import shutil
import unittest
from pathlib import Path

from harness import run, script
from scripts import RELEASE, ScriptCase, details, directory, fill, guest_xml

PHASE = "lxc_release_end_-.d"


def post_rm_rf(*paths):
    return f"<post-rm-rf>{''.join(map(directory, paths))}</post-rm-rf>"


class PostRmRf(ScriptCase):
    SCRIPT = "30-post-rm-rf"
    EXAMPLE = "<post-rm-rf><dir>D/log</dir></post-rm-rf>"
    PROGRAM = "rm"

    def remove(self, *paths, **options):
        return self.call(post_rm_rf(*paths), **options)

    def test_it_removes_each_directory_and_leaves_its_neighbours(self):
        one = self.write("guest/log/a/b/c", "text").parents[2]
        two = self.write("guest/spool/x", "text").parent
        self.write("guest/stays", "text")
        self.assert_says(self.remove(one, two), one, two)
        self.assertEqual(os.listdir(self.directory / "guest"), ["stays"])

    def test_a_missing_directory_is_fine_and_so_is_one_named_twice_or_in_another(self):
        log = self.write("guest/log/x", "text").parent
        self.assert_says(self.remove(log.parent / "missing", "/srv/missing/parents/too"))
        result = self.remove(log, log, log.parent, log)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertFalse(log.parent.exists())
        self.assert_says(self.remove(log, log.parent))

    def test_links_in_a_tree_are_removed_and_their_targets_stay(self):
        outside = self.write("outside/keep", "kept").parent
        before = details(outside)
        tree = self.directory / "tree"
        tree.mkdir()
        for name, target in {
            "directory": outside,
            "slash": f"{outside}/",
            "file": outside / "keep",
            "root": "/",
            "relative": "../outside",
            "loop": "loop",
        }.items():
            (tree / name).symlink_to(target)
        os.link(outside / "keep", tree / "hard")
        self.assert_says(self.remove(tree), tree)
        self.assertFalse(tree.exists())
        self.assertEqual(details(outside), before)

    def test_it_removes_files_of_every_kind_name_and_mode(self):
        tree = self.directory / "tree"
        tree.mkdir()
        fill(tree)
        os.mkdir(os.fsencode(tree) + b"/\xff\xfe")
        os.mknod(tree / "null", 0o020666, os.makedev(1, 3))
        tree.chmod(0)
        self.assert_says(self.remove(tree), tree)
        self.assertFalse(tree.exists())

    def test_a_bad_entry_leaves_the_good_ones(self):
        tree = self.write("tree/x", "text").parent
        for bad in ("/", "/srv", f"{tree}/x"):
            for paths in ((tree, bad), (bad, tree)):
                with self.subTest(paths):
                    self.assert_refused(post_rm_rf(*paths), bad)

    def root_with_hooks(self):
        """A root of our own, in which neither / nor /data nor /etc is a mount point."""
        root = self.directory / "root"
        self.write("root/data/inner/x", "text")
        hooks = root / "etc/libvirt/hooks" / PHASE
        for path in (root / "usr", root / "proc", hooks):
            path.mkdir(parents=True)
        shutil.copy(script(self.SCRIPT), hooks)
        for name in ("bin", "lib", "lib64", "sbin"):
            if Path("/", name).is_symlink():
                (root / name).symlink_to(os.readlink(f"/{name}"))
        self.mount("--bind", "-o", "ro", "/usr", root / "usr")
        self.mount("-t", "proc", "proc", root / "proc")
        return root

    def test_the_root_its_children_and_what_is_above_the_hooks_directory_are_refused(self):
        root = self.root_with_hooks()
        before = details(root / "data"), details(root / "etc")
        for path in ("/", "/data", "/etc", "/usr", "/etc/libvirt", "/etc/libvirt/hooks"):
            with self.subTest(path):
                called = f"/etc/libvirt/hooks/{PHASE}/{self.SCRIPT}"
                xml = guest_xml(post_rm_rf("/data/inner", path))
                result = run(["chroot", root, called, "web", *RELEASE], input=xml)
                self.assert_error(result, path)
                self.assertEqual(result.stdout, "")
                self.assertEqual((details(root / "data"), details(root / "etc")), before)

    def test_mount_points_and_what_contains_one_are_refused(self):
        outside, good = self.write("outside/keep", "kept").parent, self.directory / "good"
        self.write("good/x", "text")
        for kind, arguments in {
            "tmpfs": ("-t", "tmpfs", "tests"),
            "bind": ("--bind", outside),  # of the same file system
            "file": ("--bind", outside / "keep"),
        }.items():
            tree = self.directory / kind
            point = tree / "in/a b\r\n\\040"
            if kind == "file":
                self.write(point, "text")
            else:
                point.mkdir(parents=True)
            self.write(tree / "in/neighbour/x", "text")
            self.mount("--no-canonicalize", *arguments, point)
            for path in (point, tree / "in", tree):
                if path.is_dir():
                    with self.subTest(kind=kind, path=path):
                        value = tree / "in" if path == point else path
                        self.assert_refused(post_rm_rf(good, path), value)
            self.assert_says(self.remove(tree / "in/neighbour"), tree / "in/neighbour")

    def test_what_lies_in_a_mounted_file_system_is_removed(self):
        point = self.directory / "point"
        point.mkdir()
        self.mount("-t", "tmpfs", "tests", point)
        tree = self.write("point/tree/x", "text").parent
        self.write("point/stays", "text")
        self.write("point-2/x", "text")  # which only begins like a mount point
        self.assert_says(
            self.remove(tree, self.directory / "point-2"), tree, self.directory / "point-2"
        )
        self.assertEqual(os.listdir(point), ["stays"])

    def test_what_rm_says_comes_before_the_error_which_ends_the_run(self):
        self.mount_image("point", 8 << 20, "mkfs.ext4", "-q")
        tree = self.write("point/tree/immutable", "text").parent
        later = self.write("point/later/x", "text").parent
        run(["chattr", "+i", tree / "immutable"], check=True)
        self.addCleanup(run, ["chattr", "-i", tree / "immutable"])
        result = self.remove(tree, later)
        self.assert_error(result, tree, programs_said=True)
        self.assertIn(f"{tree}/immutable", result.stderr)
        self.assertNotIn("/proc/", result.stderr)
        self.assertEqual((tree / "immutable").read_text(), "text")
        self.assertTrue((later / "x").exists())
        self.assertEqual(result.stdout, "")

    def test_a_dry_run_says_what_it_would_do_and_does_nothing(self):
        tree = self.write("tree/x", "text").parent
        (tree / "disk").mkdir()
        self.mount("-t", "tmpfs", "virt-hooks", tree / "disk")  # which 20-ramdisk unmounts before
        before = self.everything()
        paths = tree, tree / "x/y", tree.parent / "missing/too"
        self.assert_refused(post_rm_rf(*paths), tree / "x/y", dry_run=True)
        paths = tree, tree.parent / "missing/too"  # a dry run of the whole life has made none
        self.assert_says(self.remove(*paths, dry_run=True), *paths)
        self.assertEqual(self.everything(), before)
        self.assert_refused(post_rm_rf("/missing"), "/missing", dry_run=True)


if __name__ == "__main__":
    unittest.main()
