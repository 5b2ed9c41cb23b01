"""Real QEMU guests under the real libvirtd: saved, restored, migrated and ended."""

import os
import pwd
import signal
import subprocess
import unittest
from pathlib import Path

from harness import CHECKOUT, TestCase, mount_points, run
from libvirt import (
    LOG,
    QEMU,
    put_hook,
    shutoff_reason,
    start_libvirtd_with_hooks,
    version,
    virsh,
    wait_until,
)

# {log} and {tmp} hold what the guest works on; virtiofs, for one, would give it to the guest
ELEMENTS = """
    <mkdirs><dir>{tmp}</dir><dir>{log}</dir></mkdirs>
    <ramdisk><dir size="1M">{tmp}</dir></ramdisk>
    <archive>
      <dircopy><src>{log}</src><dst>{archive}/log</dst></dircopy>
      <dircopy><src>{tmp}</src><dst>{archive}/tmp</dst></dircopy>
    </archive>
    <post-rm-rf><dir>{log}</dir></post-rm-rf>
"""
DEFINITION = """
    <domain type='qemu'>
      <name>web</name>
      <metadata><hooks xmlns="urn:virt-hooks:1">{elements}</hooks></metadata>
      <memory unit='MiB'>16</memory>
      <os><type arch='x86_64' machine='pc'>hvm</type></os>
      <devices>
        <emulator>/usr/bin/qemu-system-x86_64</emulator>
        <controller type='usb' model='none'/><memballoon model='none'/>
      </devices>
    </domain>
"""
PHASES = ("prepare_begin", "start_begin", "started_begin", "stopped_end", "release_end",
          "restore_begin", "migrate_begin")  # fmt: skip
IMAGE = Path("/var/lib/libvirt/qemu/save/web.save")  # of a managed save
RECORDER = """#!/bin/sh
echo "$*" >>{records}
exit 0
"""
FILTERS = {  # of a restore: each works on what the one before has printed
    "10-first": "sed '/<title>/d; s|<name>web</name>|&<title>first</title>|'",
    "20-second": "sed 's|</title>| second&|'",
    "30-third": "sed 's|</title>| third&|'",
    "40-silent": "cat >/dev/null",  # prints nothing, and so changes nothing
}
# an elsewhere: a libvirtd of another host, as far as it knows, that sees the same files
ELSEWHERE = """
hostname elsewhere
for directory in /run /etc/libvirt /var/lib/libvirt /var/log/libvirt; do
    mount -t tmpfs -o mode=0755 tests "$directory"
done
cat >/etc/libvirt/libvirtd.conf <<END
unix_sock_dir = "$1"
host_uuid = "7f1d3c2a-6b5e-4c8f-9a0b-1c2d3e4f5a6b"
END
printf 'namespaces = []\\ncgroup_controllers = []\\nmax_core = 0\\n' >/etc/libvirt/qemu.conf
"$2/install.sh" --driver qemu --no-reload >/dev/null
mkdir -p /etc/libvirt/hooks/qemu_started_begin_-.d
cp "$1/fail" /etc/libvirt/hooks/qemu_started_begin_-.d/50-fail
virtlogd &
libvirtd
exit # so that the shell stays, as process 1, which reaps what QEMU leaves
"""


class QemuTestCase(TestCase):
    @classmethod
    def setUpClass(cls):
        start_libvirtd_with_hooks(cls.addClassCleanup, "--driver", "qemu")

    def setUp(self):
        super().setUp()
        self.log, self.tmp = self.directory / "log", self.directory / "tmp"
        self.archive = self.directory / "archive"
        elements = ELEMENTS.format(log=self.log, tmp=self.tmp, archive=self.archive)
        definition = self.write("web.xml", DEFINITION.format(elements=elements))
        self.virsh("define", definition)
        self.addCleanup(virsh, "undefine", "--managed-save", "web", uri=QEMU)
        self.addCleanup(virsh, "destroy", "web", uri=QEMU)

    def virsh(self, *arguments):
        """Run virsh; return what it prints."""
        result = virsh(*arguments, uri=QEMU)
        self.assertEqual(result.returncode, 0, result.stderr)
        return result.stdout

    def start_with_data(self):
        """Start the guest, and write what it is to keep."""
        self.virsh("start", "web")
        self.assertIn(str(self.tmp), mount_points())
        (self.log / "data").write_text("in a directory\n")
        (self.tmp / "data").write_text("in a ramdisk\n")

    def assert_kept(self):
        self.assertIn(str(self.tmp), mount_points())
        self.assertEqual((self.log / "data").read_text(), "in a directory\n")
        self.assertEqual((self.tmp / "data").read_text(), "in a ramdisk\n")
        self.assertFalse(self.archive.exists())

    def assert_archived(self):
        self.assertNotIn(str(self.tmp), mount_points())
        self.assertFalse(self.log.exists())
        self.assertEqual((self.archive / "log/data").read_text(), "in a directory\n")
        self.assertEqual((self.archive / "tmp/data").read_text(), "in a ramdisk\n")


class Saved(QemuTestCase):
    def test_both_kinds_of_save_keep_the_data_and_filters_change_the_xml_of_what_is_restored(self):
        for name, text in FILTERS.items():
            put_hook(self, f"qemu_restore_begin_-.d/{name}", f"#!/bin/sh\n{text}\n")
        records = self.directory / "records"
        for phase in PHASES:
            put_hook(self, f"qemu_{phase}_-.d/90-record", RECORDER.format(records=records))
        image = self.directory / "image"

        def assert_phases(*phases):
            self.assertEqual(records.read_text().splitlines(), [f"web {phase}" for phase in phases])
            records.unlink()

        begin = ["prepare begin -", "start begin -", "started begin -"]
        self.start_with_data()
        self.assertNotIn("<title>", self.virsh("dumpxml", "web"))
        assert_phases(*begin)
        for save, restore in (
            (("managedsave", "web"), ("start", "web")),
            (("save", "web", image), ("restore", image)),
        ):
            with self.subTest(save=save[0]):
                self.virsh(*save)
                assert_phases("stopped end -", f"release end {shutoff_reason('saved')}")
                self.assert_kept()
                self.virsh(*restore)
                assert_phases("restore begin -", *begin)
                self.assert_kept()
                self.assertIn("<title>first second third</title>", self.virsh("dumpxml", "web"))
        self.virsh("destroy", "web")
        assert_phases("stopped end -", f"release end {shutoff_reason('destroyed')}")
        self.assert_archived()

    def test_a_restore_that_fails_keeps_the_data_of_the_guest_that_is_still_saved(self):
        self.start_with_data()
        self.virsh("managedsave", "web")
        for phase in ("restore", "prepare", "start"):
            with self.subTest(phase):
                fail = "#!/bin/sh\necho not now >&2\nexit 3\n"
                failing = put_hook(self, f"qemu_{phase}_begin_-.d/50-fail", fail)
                result = virsh("start", "web", uri=QEMU)
                failing.unlink()
                self.assert_kept()
                self.assertEqual(self.virsh("domstate", "web").strip(), "shut off")
                if phase == "restore" and version() >= (11, 3):  # see 00-saved-image
                    self.virsh("restore", f"{IMAGE}.kept")
                    self.virsh("managedsave", "web")
                    continue
                self.assertEqual(result.returncode, 1)
                for part in ("not now", "web", "50-fail"):
                    self.assertIn(part, result.stderr)
                self.assertTrue(IMAGE.exists())
        self.virsh("start", "web")
        self.assert_kept()
        self.assertEqual(os.listdir(IMAGE.parent), [])
        self.virsh("destroy", "web")
        self.assert_archived()


class Session(QemuTestCase):
    """A user's own libvirtd, qemu:///session, which calls the same hooks as that user."""

    USER = pwd.getpwnam("games").pw_uid  # of some user: libvirt wants one that is known

    def setUp(self):
        super().setUp()
        self.home = self.directory / "home"
        self.environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "HOME": str(self.home)}
        for variable in ("XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
            self.environment[variable] = str(self.home / variable)
        for directory in (self.home, *map(Path, list(self.environment.values())[3:])):
            directory.mkdir(0o700)
            os.chown(directory, self.USER, self.USER)
        self.directory.chmod(0o755)
        self.addCleanup(self.end_daemons)

    def end_daemons(self):
        for file in self.home.glob("XDG_RUNTIME_DIR/libvirt/*.pid"):
            os.kill(int(file.read_text()), signal.SIGTERM)

    def session(self, *arguments):
        return run(
            ["virsh", "-c", "qemu:///session", *arguments],
            env=self.environment, user=self.USER, group=self.USER, extra_groups=[], cwd="/",
        )  # fmt: skip

    def assert_done(self, *arguments):
        result = self.session(*arguments)
        self.assertEqual(result.returncode, 0, result.stderr)

    def test_a_guest_without_elements_lives_whatever_roots_directories_allow(self):
        definition = DEFINITION.replace("<name>web<", "<name>own<").format(elements="")
        self.assert_done("define", self.write("own.xml", definition))
        states = Path("/run/virt-hooks"), Path("/var/lib/libvirt")
        for mode in (0o700, 0o711, 0o755):
            for directory in states:
                directory.mkdir(exist_ok=True)
                directory.chmod(mode)
            for step in ("start", "managedsave", "start", "destroy"):
                with self.subTest(mode=oct(mode), step=step):
                    self.assert_done(step, "own")

    def test_elements_that_need_root_are_refused_in_one_line_that_says_so(self):
        own = self.home / "own"
        for script, element in (
            ("10-mkdirs", f"<mkdirs><dir>{own}</dir></mkdirs>"),
            ("20-ramdisk", f'<ramdisk><dir size="1M">{self.home}</dir></ramdisk>'),
            ("20-network-policy", "<network-policy><nft>chain c { }</nft></network-policy>"),
        ):
            with self.subTest(script):
                text = DEFINITION.replace("<name>web<", "<name>own<").format(elements=element)
                self.assert_done("define", self.write("own.xml", text))
                result = self.session("start", "own")
                self.assertNotEqual(result.returncode, 0)
                (line,) = [
                    line for line in result.stderr.splitlines() if f"{script}: own: " in line
                ]
                self.assertIn("root", line)
                self.assertFalse(own.exists())
                self.assert_done("undefine", "own")


class Migrated(QemuTestCase):
    def setUp(self):
        super().setUp()
        fail = f"#!/bin/sh\n[ ! -e {self.directory}/elsewhere-fails ]\n"
        self.write("fail", fail, 0o755)
        command = ["unshare", "--mount", "--uts", "--propagation", "private"]
        command += ["--pid", "--fork", "--kill-child", "--mount-proc"]
        with open(LOG.with_name("elsewhere.log"), "ab") as log:
            elsewhere = subprocess.Popen(
                [*command, "sh", "-euc", ELSEWHERE, "sh", self.directory, CHECKOUT],
                stdout=log, stderr=log,
            )  # fmt: skip
        self.addCleanup(elsewhere.wait)
        self.addCleanup(elsewhere.kill)
        socket = self.directory / "libvirt-sock"
        self.elsewhere = f"qemu+unix:///system?socket={socket}"
        wait_until(lambda: socket.exists() and self.virsh_elsewhere("uri").returncode == 0)

    def virsh_elsewhere(self, *arguments):
        return virsh(*arguments, uri=self.elsewhere)

    def migrate(self):
        return virsh("migrate", "web", self.elsewhere, "tcp://127.0.0.1", uri=QEMU)

    def test_a_guest_that_migrates_keeps_its_data_here_and_where_a_migration_to_has_failed(self):
        self.start_with_data()
        fails = self.write("elsewhere-fails", "")
        self.assertEqual(self.migrate().returncode, 1)
        self.assertEqual(self.virsh("domstate", "web").strip(), "running")
        self.assert_kept()
        fails.unlink()
        result = self.migrate()
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assert_kept()
        self.assertEqual(self.virsh_elsewhere("domstate", "web").stdout.strip(), "running")
        self.assertEqual(self.virsh_elsewhere("destroy", "web").returncode, 0)
        self.assertEqual((self.archive / "log/data").read_text(), "in a directory\n")


if __name__ == "__main__":
    unittest.main()
