"""The whole life of real containers, under the real libvirtd and with the hooks installed."""

import os
import shutil
import signal
import subprocess
import time
import unittest

from harness import Syslog, TestCase, mount_points, run, snapshot
from libvirt import (
    HOOKS,
    LXC,
    Guest,
    install,
    put_hook,
    root_directory,
    shutoff_reason,
    start_libvirtd,
    start_libvirtd_with_hooks,
    wait_until,
)

LIFE = """
    <mkdirs>
      <dir mode="0750" owner="1000" group="1001">{root}/log</dir>
      <dir>{root}/cache/pages</dir>
    </mkdirs>
    <ramdisk><dir size="16M" mode="1777">{root}/tmp</dir></ramdisk>
    <preload>
      <dircopy><src>{directory}/golden</src><dst>{root}/tmp</dst></dircopy>
    </preload>
    <archive>
      <dircopy><src>{root}/log</src><dst>{directory}/archive/%DATE%</dst></dircopy>
      <datestr><format>%Y-%m-%d</format><replace>%DATE%</replace></datestr>
    </archive>
    <post-rm-rf><dir>{root}/log</dir><dir>{root}/cache</dir></post-rm-rf>
"""
# what such a guest does: it logs what it sees of the elements
LOOK = "ls -ldn /log /cache/pages > /log/ls; mount > /log/mounts; cat /tmp/hello > /log/hello"
# a script: "<web><prepare><begin><->1", where the last is how often the XML ends
RECORDER = """#!/bin/sh
for argument; do printf '<%s>' "$argument"; done >> {records}
grep -c '</domain>' >> {records}
"""


class LibvirtTestCase(TestCase):
    """Tests with the hooks installed and libvirtd, with guests that are removed after each test."""

    @classmethod
    def setUpClass(cls):
        cls.libvirtd = start_libvirtd_with_hooks(cls.addClassCleanup)

    def setUp(self):
        super().setUp()
        mounted = mount_points()
        self.addCleanup(lambda: self.assertEqual(mount_points(), mounted))
        self.guests = {}
        self.addCleanup(self.remove_guests)
        self.root = root_directory(self.directory / "root")
        self.write("golden/hello", "hello from the host\n")

    def guest(self, command="true", elements="", name="web", root=None, **options):
        """Define a guest, in place of an earlier one of that name.

        {root} and {directory} in the elements become its root and the test's directory.
        """
        if name in self.guests:
            self.guests[name].remove()
        root = root or self.root
        elements = elements.format(root=root, directory=self.directory)
        self.guests[name] = Guest(name, root, command, elements, **options)
        return self.guests[name]

    def remove_guests(self):
        for guest in self.guests.values():
            guest.remove()

    def record(self, *directories, file="records"):
        """Have a script in each phase directory record its calls in a file, see RECORDER."""
        records = self.directory / file
        for directory in directories:
            put_hook(self, f"lxc_{directory}/50-record", RECORDER.format(records=records))
        return records

    def state(self, directory=None):
        """What a failure leaves as it was: the files below a directory, and what is mounted."""
        return {**snapshot(directory or self.directory), "mounts": mount_points()}

    def assert_state(self, before, directory=None):
        # only what differs: a root file system is large
        after = self.state(directory)
        changed = [path for path in before.keys() | after if before.get(path) != after.get(path)]
        self.assertEqual(changed, [])

    def assert_start_fails(self, guest, script, *parts):
        """The start of a guest fails, and who starts it reads these parts of a script's error."""
        result = guest.virsh("start")
        self.assertEqual(result.returncode, 1)
        for part in (script, guest.name, *parts):
            self.assertIn(part, result.stderr)
        self.assertNotIn("Traceback", result.stderr)
        self.assertTrue(guest.is_off())

    def assert_release_fails(self, guest, stop, script, *parts):
        """A guest's release fails, and syslog says so in one line: libvirt has nobody to tell."""
        with Syslog() as syslog:
            stop()
        parts = (guest.name, "release end", script, *parts)
        found = [line for line in syslog.lines if all(part in line for part in parts)]
        self.assertTrue(found, f"{parts} not in {syslog.lines}")


class Life(LibvirtTestCase):
    def assert_lived(self, archive):
        """A guest with the elements LIFE saw them all, and left nothing but this archive."""
        self.assertEqual((archive / "hello").read_text(), "hello from the host\n")
        mount = "virt-hooks on /tmp type tmpfs (rw,nosuid,nodev,relatime,size=16384k"
        self.assertIn(mount, (archive / "mounts").read_text())
        directories = [line.split() for line in (archive / "ls").read_text().splitlines()]
        self.assertEqual(
            [(fields[0], fields[2], fields[3], fields[-1]) for fields in directories],
            [("drwxr-xr-x", "0", "0", "/cache/pages"), ("drwxr-x---", "1000", "1001", "/log")],
        )
        status = archive.stat()
        self.assertEqual((status.st_mode, status.st_uid, status.st_gid), (0o40750, 1000, 1001))
        for path in ("log", "cache"):
            self.assertFalse((self.root / path).exists())
        self.assertNotIn(str(self.root / "tmp"), mount_points())
        self.assertEqual(os.listdir(self.root / "tmp"), [])

    def today(self):
        """The date, for a hook, which gets no TZ of ours."""
        return run(["date", "+%Y-%m-%d"], env={"PATH": os.environ["PATH"]}).stdout.strip()

    def archives(self):
        return sorted(os.listdir(self.directory / "archive"))

    def test_a_guest_that_ends_by_itself_leaves_an_archive_and_nothing_else(self):
        guest = self.guest(f"{LOOK}; touch /log/ready", LIFE)
        guest.start()
        wait_until((self.root / "log/ready").exists)
        self.assertIn(str(self.root / "tmp"), mount_points())
        self.assertEqual((self.root / "tmp/hello").read_text(), "hello from the host\n")
        days = [self.today()]
        guest.end()
        days.append(self.today())
        [archive] = self.archives()
        self.assertIn(archive, days)
        self.assert_lived(self.directory / "archive" / archive)

    def test_a_guest_that_is_destroyed_leaves_the_same(self):
        guest = self.guest(f"{LOOK}; touch /log/ready", LIFE)
        guest.start()
        wait_until((self.root / "log/ready").exists)
        self.assertEqual(guest.virsh("destroy").returncode, 0)
        [archive] = self.archives()
        self.assert_lived(self.directory / "archive" / archive)

    def test_two_lives_on_one_day_leave_two_archives(self):
        guest = self.guest(f"{LOOK}; cat /number > /log/number", LIFE)
        days = []
        for life in range(2):
            (self.root / "number").write_text(str(life))
            days.append(self.today())
            guest.live()
        first, second = self.archives()
        self.assertEqual(first, days[0])
        if self.today() == days[0]:  # else midnight may have come between them
            self.assertEqual(second, f"{first}.1")
        for life, archive in enumerate((first, second)):
            path = self.directory / "archive" / archive
            self.assert_lived(path)
            self.assertEqual((path / "number").read_text(), str(life))

    def test_a_second_stop_and_release_of_one_life_is_no_error_and_changes_nothing(self):
        # as libvirt 9.0 and 11.3 sometimes call them for one "virsh destroy"
        xml = self.directory / "xml"
        put_hook(self, "lxc_release_end_-.d/99-keep", f"#!/bin/sh\ncat >{xml}\n")
        guest = self.guest(f"{LOOK}; touch /log/ready", LIFE)
        guest.start()
        wait_until((self.root / "log/ready").exists)
        self.assertEqual(guest.virsh("destroy").returncode, 0)
        [archive] = self.archives()
        before = self.state()
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
        for arguments in (["stopped", "end", "-"], ["release", "end", shutoff_reason("destroyed")]):
            command = [HOOKS / "lxc", "web", *arguments]
            self.assert_succeeds(run(command, input=xml.read_text(), env=environment))
            self.assert_state(before)
        self.assert_lived(self.directory / "archive" / archive)

    def test_the_metadata_may_be_set_by_virsh_metadata(self):
        guest = self.guest(LOOK)
        hooks = f"<hooks>{LIFE.format(root=self.root, directory=self.directory)}</hooks>"
        result = guest.virsh("metadata", "urn:virt-hooks:1", "--key", "hooks", "--set", hooks)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("<hooks:mkdirs>", guest.virsh("dumpxml").stdout)
        guest.live()
        [archive] = self.archives()
        self.assert_lived(self.directory / "archive" / archive)

    def test_metadata_without_a_namespace_does_nothing_since_libvirt_drops_it(self):
        metadata = LIFE.format(root=self.root, directory=self.directory)
        guest = self.guest("ls / > /seen; ls /tmp >> /seen", metadata=metadata)
        self.assertNotIn("mkdirs", guest.virsh("dumpxml").stdout)
        guest.live()
        seen = set((self.root / "seen").read_text().split()) - {"end"}  # which may be there by then
        self.assertEqual(seen, {"bin", "dev", "etc", "proc", "seen", "sys", "tmp"})
        self.assertFalse((self.directory / "archive").exists())

    def test_a_bad_value_keeps_the_guest_from_starting_and_its_user_reads_why(self):
        copy = "<dircopy><src>{directory}/golden</src><dst>%s</dst></dircopy>"
        mkdirs = "<mkdirs><dir>{root}/new</dir>%s</mkdirs>"
        for script, elements, *parts in (
            ("10-mkdirs", mkdirs % '<dir mode="0758">{root}/newer</dir>', "/newer", "0758"),
            ("10-mkdirs", mkdirs % "<dirr>{root}/newer</dirr>", "dirr"),
            (
                "20-ramdisk",
                '<ramdisk><dir size="1M">{root}/tmp</dir>'
                '<dir size="1,5M">{root}/etc</dir></ramdisk>',
                "/etc",
                "1,5M",
            ),
            (
                "30-preload",
                f"<preload>{copy % '{root}/tmp'}{copy % 'relative/tmp'}</preload>",
                "relative/tmp",
            ),
        ):
            with self.subTest(script, parts=parts):
                guest = self.guest(elements=elements)
                before = self.state()
                self.assert_start_fails(guest, script, *parts)
                self.assert_state(before)

    def test_the_release_after_a_failed_start_keeps_what_an_earlier_life_has_left(self):
        for number, (good, bad) in enumerate(
            (
                ('mode="0750"', 'mode="0758"'),
                ('size="16M"', 'size="none"'),
                ("{directory}/golden<", "{directory}/missing<"),
            )
        ):
            with self.subTest(bad):
                self.assertIn(good, LIFE)
                root = root_directory(self.directory / f"root-{number}")
                (root / "log").mkdir()
                (root / "log/data").write_text(bad)
                guest = self.guest(elements=LIFE.replace(good, bad), root=root)
                self.assertEqual(guest.virsh("start").returncode, 1)
                self.assertNotIn(str(root / "tmp"), mount_points())
                [archive] = self.archives()
                self.assertEqual((self.directory / "archive" / archive / "data").read_text(), bad)
                shutil.rmtree(self.directory / "archive")

    def test_a_failed_archive_keeps_the_data_until_the_next_stop_archives_it(self):
        elements = """
            <mkdirs><dir>{root}/scratch</dir></mkdirs>
            <ramdisk><dir size="16M">{root}/tmp</dir></ramdisk>
            <archive>
              <dircopy><src>{root}/tmp</src><dst>{directory}/archive/web</dst></dircopy>
            </archive>
            <post-rm-rf><dir>{root}/scratch</dir></post-rm-rf>
        """
        life = "echo life >> /tmp/log; echo life >> /scratch/log; touch /tmp/ready"
        guest = self.guest(life, elements)
        in_the_way = self.write("archive", "a file")
        guest.start()
        wait_until((self.root / "tmp/ready").exists)
        self.assert_release_fails(guest, guest.end, "10-archive", str(in_the_way))
        self.assertEqual(in_the_way.read_text(), "a file")
        self.assertIn(str(self.root / "tmp"), mount_points())
        self.assertEqual((self.root / "tmp/log").read_text(), "life\n")
        self.assertEqual((self.root / "scratch/log").read_text(), "life\n")

        in_the_way.unlink()
        (self.root / "tmp/ready").unlink()
        guest.start()
        wait_until((self.root / "tmp/ready").exists)
        guest.end()
        archived = self.directory / "archive/web"
        self.assertEqual((archived / "log").read_text(), "life\nlife\n")
        self.assertNotIn(str(self.root / "tmp"), mount_points())
        self.assertFalse((self.root / "scratch").exists())

    def test_a_failed_release_is_in_syslog(self):
        for script, elements, part in (
            ("10-archive", "<archive><dircopy><src>{root}/tmp</src></dircopy></archive>", "dst"),
            (
                "30-post-rm-rf",
                "<post-rm-rf><dir>{root}/tmp</dir><dir>/srv</dir></post-rm-rf>",  # the tests' own
                "/srv",
            ),
        ):
            with self.subTest(script):
                guest = self.guest(elements=elements)
                before = self.state(self.root / "tmp")
                self.assert_release_fails(guest, guest.live, script, part)
                self.assert_state(before, self.root / "tmp")


class Crashed(LibvirtTestCase):
    def test_a_start_after_a_crash_of_libvirtd_waits_for_the_release_before_it(self):
        """The old release must not remove the directories of the new life."""
        elements = LIFE.partition("<ramdisk>")[0] + "<archive>" + LIFE.partition("<archive>")[2]
        go = self.directory / "go"
        hold = f"#!/bin/sh\nuntil [ -e {go} ]; do sleep 0.05; done\n"
        put_hook(self, "lxc_release_end_-.d/20-hold", hold)
        guest = self.guest("true", elements)
        guest.start()
        for number in range(5000):
            (self.root / "log" / str(number)).write_text("small")
        with subprocess.Popen(["virsh", "-c", LXC, "destroy", "web"], stderr=subprocess.DEVNULL):
            wait_until(lambda: list(self.directory.glob("archive/.virt-hooks-*")))
            with Syslog() as syslog:
                self.libvirtd.crash()
                start = subprocess.Popen(["virsh", "-c", LXC, "start", "web"])
                waits = "web prepare begin -: waits"
                wait_until(lambda: any(waits in line for line in syslog.lines))
                go.touch()
                self.assertEqual(start.wait(60), 0)
        self.assertEqual(guest.virsh("domstate").stdout.strip(), "running")
        (archive,) = self.directory.glob("archive/*")
        self.assertEqual(len(os.listdir(archive)), 5000)
        self.assertEqual(os.listdir(self.root / "log"), [])
        self.assertTrue((self.root / "cache/pages").is_dir())
        guest.end()


class Planted(LibvirtTestCase):
    """What a guest's root puts in the place of a directory that the host's root is to work on."""

    def setUp(self):
        super().setUp()
        self.outside = self.directory / "outside"
        self.write("outside/d/precious", "the host's\n")

    def plant(self, where):
        """The shell command by which a guest puts a link at /a/d or at /a, above it."""
        if where == "/a":
            return f"mv /a /b; ln -s {self.outside} /a"
        return f"mv /a/d /a/e; ln -s {self.outside}/d /a/d"

    def new_root(self):
        """Make the root file system anew; return what the error of a planted link is to name."""
        shutil.rmtree(self.root)
        root_directory(self.root)
        (self.root / "a/d").mkdir(parents=True)
        return f"{self.root}/a/d", f"{self.outside}/d"

    def test_no_script_of_release_follows_a_planted_link(self):
        for script, elements in (
            (
                "10-archive",
                "<archive><dircopy><src>{root}/a/d</src><dst>{directory}/archive</dst></dircopy>"
                "</archive><post-rm-rf><dir>{root}/a/d</dir></post-rm-rf>",
            ),
            ("30-post-rm-rf", "<post-rm-rf><dir>{root}/a/d</dir></post-rm-rf>"),
        ):
            for where in ("/a", "/a/d"):
                with self.subTest(script, where=where):
                    leads = self.new_root()
                    (self.root / "a/d/data").write_text("the guest's\n")
                    guest = self.guest(self.plant(where), elements)
                    before = self.state(self.outside)
                    self.assert_release_fails(guest, guest.live, script, *leads)
                    self.assertTrue((self.root / where[1:]).is_symlink())
                    self.assert_state(before, self.outside)
                    [data] = [*self.root.rglob("data")]
                    self.assertEqual(data.read_text(), "the guest's\n")
                    self.assertFalse((self.directory / "archive").exists())

    def test_no_script_of_prepare_follows_a_planted_link(self):
        for where in ("/a", "/a/d"):
            leads = self.new_root()
            self.guest(self.plant(where)).live()
            self.assertTrue((self.root / where[1:]).is_symlink())
            for script, elements in (
                ("10-mkdirs", '<mkdirs><dir mode="0700">{root}/a/d</dir></mkdirs>'),
                ("20-ramdisk", '<ramdisk><dir size="1M">{root}/a/d</dir></ramdisk>'),
                (
                    "30-preload",
                    "<preload>"
                    "<dircopy><src>{directory}/golden</src><dst>{root}/a/d</dst></dircopy>"
                    "</preload>",
                ),
            ):
                with self.subTest(script, where=where):
                    guest = self.guest(elements=elements)
                    before = self.state()
                    self.assert_start_fails(guest, script, *leads)
                    self.assert_state(before)

    def test_a_link_planted_over_a_mounted_ramdisk_is_not_followed(self):
        # where a directory goes that is a mount point elsewhere, the kernel takes the mount off
        over = f"umount /a/d; rmdir /a/d; ln -s {self.outside}/d /a/d"
        for where, command in (("/a", self.plant("/a")), ("/a/d", over)):
            with self.subTest(where):
                leads = self.new_root()
                outside = f"{self.outside}/d"
                run(["mount", "-t", "tmpfs", "virt-hooks", outside])  # as ours would be
                self.addCleanup(run, ["umount", outside])
                before = snapshot(self.outside)
                guest = self.guest(command, '<ramdisk><dir size="1M">{root}/a/d</dir></ramdisk>')
                self.assert_release_fails(guest, guest.live, "20-ramdisk", *leads)
                self.assertTrue((self.root / where[1:]).is_symlink())
                self.assertIn(outside, mount_points())
                self.assertEqual(snapshot(self.outside), before)
                run(["umount", f"{self.root}/b/d"])
                run(["umount", outside])


class Phases(LibvirtTestCase):
    def test_each_phase_gets_the_arguments_that_libvirt_gives_and_the_whole_xml(self):
        records = self.record(
            "prepare_begin_-.d",
            "start_begin_-.d",
            "started_begin_-.d",
            "stopped_end_-.d",
            "release_end_-.d",
        )
        self.guest().live()  # one that is destroyed, libvirt may stop twice on a busy machine
        self.assertEqual(
            records.read_text().splitlines(),
            [
                "<web><prepare><begin><->1",
                "<web><start><begin><->1",
                "<web><started><begin><->1",
                "<web><stopped><end><->1",
                f"<web><release><end><{shutoff_reason('shutdown')}>1",
            ],
        )

    def test_a_phase_directory_can_be_for_one_shutoff_reason(self):
        records = self.record(
            "release_end_-.d", "release_end_shutdown.d", "release_end_destroyed.d"
        )
        self.guest().live()
        reason = shutoff_reason("shutdown")
        times = 1 if reason == "-" else 2
        self.assertEqual(
            records.read_text().splitlines(), [f"<web><release><end><{reason}>1"] * times
        )

    def test_a_subdirectory_with_the_guests_name_is_for_it_alone(self):
        records = self.record("prepare_begin_-.d")
        own = self.record("prepare_begin_-.d/web", file="own")
        other = root_directory(self.directory / "other")
        self.guest(name="other", root=other).live()
        self.assertEqual(records.read_text(), "<other><prepare><begin><->1\n")
        self.assertFalse(own.exists())
        records.unlink()
        self.guest().live()
        self.assertEqual(records.read_text(), "<web><prepare><begin><->1\n")
        self.assertEqual(own.read_text(), "<web><prepare><begin><->1\n")

    def test_a_background_process_of_a_script_does_not_keep_virsh_waiting(self):
        pid = self.directory / "pid"
        put_hook(
            self, "lxc_prepare_begin_-.d/50-background", f"#!/bin/sh\nsleep 60 & echo $! > {pid}\n"
        )
        guest = self.guest()
        began = time.monotonic()
        guest.start()
        self.assertLess(time.monotonic() - began, 30)
        os.kill(int(pid.read_text()), signal.SIGKILL)

    def test_a_guest_may_have_any_name_that_libvirt_takes(self):
        records = self.record("prepare_begin_-.d", "release_end_-.d")
        for number, name in enumerate(
            ("vm one", "-dash", "--help", ".", "..", "x;y", "é", "$(id)")
        ):
            with self.subTest(name):
                root = root_directory(self.directory / f"root-{number}")
                mkdirs = "<mkdirs><dir>{root}/log/é 'ü'</dir></mkdirs>"
                rm = "<post-rm-rf><dir>{root}/log</dir></post-rm-rf>"
                guest = self.guest("echo /log/* > /seen", mkdirs + rm, name=name, root=root)
                guest.live()
                self.assertEqual((root / "seen").read_text(), "/log/é 'ü'\n")
                self.assertFalse((root / "log").exists())
                self.assertEqual(
                    records.read_text().splitlines(),
                    [
                        f"<{name}><prepare><begin><->1",
                        f"<{name}><release><end><{shutoff_reason('shutdown')}>1",
                    ],
                )
                records.unlink()


class Installation(LibvirtTestCase):
    """libvirtd runs already, without hooks, when they are installed."""

    @classmethod
    def setUpClass(cls):
        pass

    def setUp(self):
        self.libvirtd = start_libvirtd(self.addCleanup)
        self.addCleanup(shutil.rmtree, HOOKS)
        super().setUp()

    def wait_for_call(self, guest, records):
        """Wait until libvirtd calls the hook; it looks for it in a thread of its own."""

        def called():
            guest.live()
            return records.exists()

        wait_until(called)
        self.assertEqual(records.read_text(), "<web><prepare><begin><->1\n")

    def test_a_hook_installed_while_the_daemon_runs_is_called_after_a_sighup(self):
        guest = self.guest()
        install("--no-reload")
        records = self.record("prepare_begin_-.d")
        guest.live()
        self.assertFalse(records.exists())
        self.libvirtd.reload()
        self.wait_for_call(guest, records)

    def test_the_installer_tells_the_daemon_of_a_hook_that_came_or_went(self):
        guest = self.guest()
        install()
        records = self.record("prepare_begin_-.d")
        self.wait_for_call(guest, records)
        records.unlink()
        install("--uninstall")
        # until libvirtd has looked, it takes the missing hook for a failed one
        wait_until(lambda: guest.virsh("start").returncode == 0)
        guest.end()
        self.assertFalse(records.exists())


if __name__ == "__main__":
    unittest.main()
