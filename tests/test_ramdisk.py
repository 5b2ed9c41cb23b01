"""20-ramdisk mounts the ramdisks of a guest, and unmounts nothing but them."""

import os
import shutil
import subprocess
import unittest
from pathlib import Path

from harness import CHECKOUT, run
from scripts import (
    RELEASE,
    ScriptCase,
    details,
    directory,
    guest_xml,
    mode_owner_group,
    mounted_on,
)

IDLE_GUEST = 'umount "$1"; echo; read line || :'


def ramdisk(*entries):
    return f"<ramdisk>{''.join(entries)}</ramdisk>"


class Ramdisk(ScriptCase):
    SCRIPT = "20-ramdisk"
    EXAMPLE = '<ramdisk><dir size="1M">D/tmp</dir></ramdisk>'
    PROGRAM = "mount"

    def make(self, name="disk"):
        """Create a directory that is to get a ramdisk."""
        path = self.directory / name
        path.mkdir(parents=True)
        return path

    def prepare(self, *paths, size="1M", **options):
        return self.call(ramdisk(*(directory(path, size=size) for path in paths)), **options)

    def release(self, *paths, **options):
        entries = (directory(path, size="1M") for path in paths)
        return self.call(ramdisk(*entries), *RELEASE, **options)

    def test_it_mounts_a_tmpfs_of_the_size_nosuid_and_nodev_from_virt_hooks(self):
        for number, (size, expected) in enumerate({
            "65536": 65536, "64K": 64 << 10, "3M": 3 << 20, "2G": 2 << 30, "1T": 1 << 40,
        }.items()):  # fmt: skip
            with self.subTest(size=size):
                path = self.make(str(number))
                self.assert_says(self.prepare(path, size=size), path)
                ((kind, source, options, _more),) = mounted_on(path)
                self.assertEqual((kind, source), ("tmpfs", "virt-hooks"))
                self.assertLessEqual({"rw", "nosuid", "nodev"}, options)
                status = os.statvfs(path)
                self.assertEqual(status.f_blocks * status.f_frsize, expected)

    def test_mode_owner_and_group_are_those_given_or_those_of_the_directory_below(self):
        for number, (attributes, expected) in enumerate((
            ({}, (0o2751, 5, 6)),
            ({"mode": "1777"}, (0o1777, 5, 6)),
            ({"owner": "0"}, (0o2751, 0, 6)),
            ({"mode": "0700", "owner": "daemon", "group": "7"}, (0o700, 1, 7)),
        )):  # fmt: skip
            with self.subTest(attributes):
                path = self.make(str(number))
                os.chown(path, 5, 6)
                path.chmod(0o2751)
                elements = ramdisk(directory(path, size="1M", **attributes))
                self.assert_says(self.call(elements, umask=0o077), path)
                self.assertEqual(len(mounted_on(path)), 1)
                self.assertEqual(mode_owner_group(path), expected)
                self.assert_says(self.call(elements, *RELEASE), path)
                self.assertEqual(mode_owner_group(path), (0o2751, 5, 6))

    def test_mount_8_does_it(self):
        path, called = self.make(), self.directory / "called"
        mount = shutil.which("mount")
        text = f"import os, sys\nopen('{called}', 'w')\nos.execv('{mount}', sys.argv)"
        environment = self.path_with("mount", text)
        self.assert_says(self.prepare(path, environment=environment), path)
        self.assertTrue(called.exists())
        self.assertEqual(len(mounted_on(path)), 1)

    def test_one_that_is_there_already_is_kept_with_its_contents_and_a_warning(self):
        kept, new = self.make("kept"), self.make("new")
        self.mount("-t", "tmpfs", "-o", "size=2M,mode=0711", "virt-hooks", kept)
        self.write("kept/file", "text")
        before, mounted = details(kept), mounted_on(kept)
        result = self.prepare(kept, new)
        self.assertEqual(result.returncode, 0)
        for part in (self.SCRIPT, "web", "ramdisk", str(kept)):
            self.assertIn(part, result.stderr)
        self.assertEqual(result.stderr.count("\n"), 1)
        self.assertEqual((details(kept), mounted_on(kept)), (before, mounted))
        self.assertEqual(len(mounted_on(new)), 1)

    def test_one_that_another_file_system_hides_is_not_taken_for_the_ramdisk(self):
        path = self.make("disk")
        self.assert_says(self.prepare(path), path)
        self.mount("-t", "tmpfs", "tests", self.directory)
        self.make("disk")
        self.assert_says(self.prepare(path), path)
        self.assertNotEqual(os.stat(path).st_dev, os.stat(self.directory).st_dev)
        self.assert_says(self.release(path), path)
        self.assertEqual(os.stat(path).st_dev, os.stat(self.directory).st_dev)

    def test_release_unmounts_it_and_what_lay_below_is_there_again(self):
        path = self.write("disk/below", "text").parent
        before = self.everything()
        self.assert_says(self.prepare(path), path)
        (path / "file").write_text("text")
        self.assert_says(self.release(path), path)
        self.assertEqual(self.everything(), before)

    def test_nothing_mounted_is_fine(self):
        paths = self.make(), self.directory / "missing", self.directory / "gone/deep"
        before = self.everything()
        self.assert_says(self.release(*paths))
        self.assertEqual(self.everything(), before)

    def test_it_unmounts_nothing_that_virt_hooks_has_not_mounted_there(self):
        source, outer = self.make("source"), self.make("outer")
        paths = []
        for number, arguments in enumerate((
            ("-t", "tmpfs", "tests"),
            ("-t", "tmpfs", "virt-hooks2"),
            ("-t", "ramfs", "virt-hooks"),
            ("--bind", source),
        )):  # fmt: skip
            paths.append(self.make(str(number)))
            self.mount(*arguments, paths[-1])
        self.mount("-t", "tmpfs", "virt-hooks", outer)
        paths.append(self.make("outer/inner"))  # a directory in a ramdisk is none
        paths.append(self.make("covered"))
        self.mount("-t", "tmpfs", "virt-hooks", paths[-1])
        self.mount("-t", "tmpfs", "tests", paths[-1])
        before = self.everything()
        self.assert_says(self.release(*paths))
        self.assertEqual(self.everything(), before)

    def test_a_process_of_the_host_in_it_is_no_error_and_keeps_its_own_files(self):
        path = self.write("disk/below", "text").parent
        before = self.everything()
        self.prepare(path)
        self.write("disk/file", "of the process")
        with subprocess.Popen(["cat"], cwd=path, stdin=subprocess.PIPE, stdout=-1) as process:
            self.assert_says(self.release(path), path)
            self.assertEqual(self.everything(), before)
            cwd = Path(f"/proc/{process.pid}/cwd")
            self.assertEqual((cwd / "file").read_text(), "of the process")

    def test_a_mount_in_it_is_an_error_and_both_stay_mounted(self):
        path, source = self.make(), self.make("source")
        self.prepare(path)
        self.make("disk/inner")
        self.mount("--bind", source, path / "inner")
        before = self.everything()
        self.assert_error(self.release(path), path, path / "inner")
        self.assertEqual(self.everything(), before)
        run(["umount", path / "inner"], check=True)
        self.assert_says(self.release(path), path)
        self.assertEqual(mounted_on(path), [])

    def test_a_ramdisk_in_another_and_one_that_covers_another_are_unmounted(self):
        outer, inner = self.make("outer"), self.make("outer/inner")
        before = self.everything()
        self.assert_says(self.prepare(inner, outer), inner, outer)  # outer covers inner
        self.assert_says(self.release(inner, outer), inner, outer)
        self.assertEqual(self.everything(), before)
        self.prepare(outer)
        self.make("outer/inner")
        self.assert_says(self.prepare(inner), inner)
        self.assert_says(self.release(outer, inner), outer, inner)
        self.assertEqual(self.everything(), before)

    def test_a_guest_that_puts_a_link_in_its_place_chooses_no_mount_that_is_unmounted(self):
        path, idle = self.make("guest/disk"), self.make("idle")
        self.mount("-t", "tmpfs", "tests", idle)
        self.prepare(path)
        # the guest can rename it: in its own mount namespace it is no mount point
        guest = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", IDLE_GUEST, "sh", path],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.addCleanup(guest.communicate)
        guest.stdout.readline()
        swap = f"mv {path} {path}.away && ln -s {idle} {path}"
        command = ["nsenter", f"--target={guest.pid}", "--mount", "--root", "sh", "-c", swap]
        umount = shutil.which("umount")  # the last moment: when umount(8) starts
        text = f"import os, subprocess, sys\nsubprocess.run({command!r}, check=True)\n"
        text += f"os.execv('{umount}', sys.argv)"
        result = self.release(path, environment=self.path_with("umount", text))
        self.assert_says(result, path)
        self.assertEqual(len(mounted_on(idle)), 1)
        self.assertEqual(mounted_on(f"{path}.away"), [])

    def test_several_in_several_elements_are_all_mounted_and_unmounted(self):
        paths = [self.make(name) for name in ("a", "ab", "a b", "b")]
        elements = "".join(ramdisk(directory(path, size="1M")) for path in paths)
        self.assert_says(self.call(elements), *paths)
        self.assertEqual([len(mounted_on(path)) for path in paths], [1] * 4)
        self.assert_says(self.call(elements, *RELEASE), *paths)
        self.assertEqual([len(mounted_on(path)) for path in paths], [0] * 4)

    def test_it_works_through_the_link_in_the_release_directory(self):
        path = self.make()
        self.prepare(path)
        link = CHECKOUT / "lxc_release_end_-.d" / self.SCRIPT
        xml = guest_xml(ramdisk(directory(path, size="1M")))
        self.assert_says(run([link, "web", *RELEASE], input=xml), path)
        self.assertEqual(mounted_on(path), [])

    def test_what_is_no_size_mode_or_owner_is_refused_at_release_too(self):
        good, path = self.make("good"), self.make()
        for phase in ((), RELEASE):
            for attributes in (
                *({"size": size} for size in (
                    "", "0", "-1M", "1.5G", "64MB", "64 M", "64,M", "10%", "M", "64m", "1e3",
                    "1M,uid=5", "1" * 5000, "9223372036854775808", "8388608T",
                )),
                {"size": "1M", "mode": "8"},
                {"size": "1M", "owner": "no-such-user"},
                {"size": "1M", "group": "-1"},
            ):  # fmt: skip
                with self.subTest(attributes, phase=phase):
                    entries = directory(good, size="1M"), directory(path, **attributes)
                    value = [*attributes.values()][-1]
                    self.assert_refused(ramdisk(*entries), path, value, phase=phase)
            entries = directory(good, size="1M"), directory(path)
            self.assert_refused(ramdisk(*entries), path, "size", phase=phase)
            if not phase:
                self.prepare(good, path)  # which release is to leave alone

    def test_a_directory_that_is_missing_is_refused(self):
        good, missing = self.make("good"), self.directory / "missing"
        entries = directory(good, size="1M"), directory(missing, size="1M")
        self.assert_refused(ramdisk(*entries), missing)

    def test_a_mount_that_fails_is_an_error_after_what_mount_said(self):
        path = self.make()
        text = "import sys\nprint(f'mount: {sys.argv[-1]}: no', file=sys.stderr)\nsys.exit(32)"
        result = self.prepare(path, environment=self.path_with("mount", text))
        self.assert_error(result, path, programs_said=True)
        self.assertEqual(mounted_on(path), [])

    def test_a_dry_run_says_what_it_would_do_and_does_nothing(self):
        path, mounted, foreign = self.make(), self.make("mounted"), self.make("foreign")
        self.prepare(mounted)
        self.mount("-t", "tmpfs", "tests", foreign)
        before = self.everything()
        self.assert_says(self.prepare(path, dry_run=True), path)
        # a dry run of the whole life has neither made a directory nor mounted anything
        paths = path, mounted, self.directory / "missing"
        self.assert_says(self.release(*paths, foreign, dry_run=True), *paths)
        self.assertEqual(self.everything(), before)


if __name__ == "__main__":
    unittest.main()
