"""virt-hooks on a whole machine: systemd, AppArmor, the journal, reboot and power cut."""

import json
import subprocess
import tempfile
import unittest
from pathlib import Path

from libvirt import APPLETS, LXC
from machine import CHECKOUT, Machine, definition, wait_until

HOOKS = "/etc/libvirt/hooks"
PREPARE = f"{HOOKS}/lxc_prepare_begin_-.d"
ROOT = "/srv/root"  # of all containers
PACKAGE = "dpkg --install /root/virt-hooks.deb"
INSTALLER = "/root/checkout/install.sh"
FILES = 10000  # so many that a copy, and a removal, can be interrupted
SLEEP = "trap exit TERM; while true; do sleep 1; done"
IGNORE = "trap '' TERM; while true; do sleep 1; done"
ALL_ELEMENTS = """
    <mkdirs><dir>/srv/web/log</dir><dir>/srv/web/tmp</dir></mkdirs>
    <ramdisk><dir size="1M">/srv/web/tmp</dir></ramdisk>
    <preload><dircopy><src>/srv/golden</src><dst>/srv/web/tmp</dst></dircopy></preload>
    <routing-table id="101" name="uplink2">
      <route>blackhole 10.99.0.0/16</route><rule>from 10.99.0.5</rule>
    </routing-table>
    <network-policy><nft>
      chain from-guest { type filter hook forward priority 0; ip saddr 10.99.0.5 drop; }
    </nft></network-policy>
    <archive><dircopy><src>/srv/web/log</src><dst>/srv/archive/web</dst></dircopy></archive>
    <post-rm-rf><dir>/srv/web/log</dir></post-rm-rf>"""


def setUpModule():
    global machine
    machine = Machine()
    unittest.addModuleCleanup(machine.remove)
    machine.start()
    with tempfile.TemporaryDirectory() as directory:
        command = [CHECKOUT / "packaging/build", "deb", directory]
        subprocess.run(command, check=True, capture_output=True)
        [package] = Path(directory).glob("*.deb")
        machine.write("/root/virt-hooks.deb", package.read_bytes())
    tar = subprocess.run(["tar", "-cC", CHECKOUT, "--exclude=.git", "."], capture_output=True)
    machine.done("mkdir /root/checkout && tar -xC /root/checkout", given=tar.stdout)
    places = " ".join(f"{ROOT}/{name}" for name in ("bin", "proc", "sys", "dev", "tmp", "etc"))
    machine.done(f"mkdir -p {places} /srv/golden && cp /bin/busybox {ROOT}/bin")
    machine.done(f"cd {ROOT}/bin && for name in {APPLETS}; do ln -s busybox $name; done")
    machine.write("/srv/golden/file", "golden")


def install():
    machine.done(PACKAGE)


def purge():
    machine.done("dpkg --purge virt-hooks")


def exists(path):
    return machine.run(f"test -e {path}").returncode == 0


def virsh(words):
    return machine.run(f"virsh -c {LXC} {words}")


def tree(directory):
    """What says whether two directories hold the same files: their names, modes and contents."""
    listing = "find . -type f -printf '%P %m %U %s\\n' | sort | sha256sum"
    contents = "find . -type f -exec sha256sum {} + | sort | sha256sum"
    return machine.done(f"cd {directory} && {listing} && {contents}", 300)


def denials():
    """What the kernel has denied libvirtd, and the hooks in its profile."""
    grep = """grep 'apparmor="DENIED".*profile="libvirtd"'"""
    return machine.done(f"journalctl --boot --dmesg | {grep} || true").splitlines()


class TestCase(unittest.TestCase):
    def done(self, words):
        result = virsh(words)
        self.assertEqual(result.returncode, 0, result.stderr)

    def guest(self, name, elements, command=SLEEP):
        """Define a container, until the test is over."""
        metadata = f'<hooks xmlns="urn:virt-hooks:1">{elements}</hooks>'
        machine.write(f"/root/{name}.xml", definition(name, ROOT, command, metadata))
        self.done(f"define /root/{name}.xml")
        self.addCleanup(self.remove_guest, name)

    def stop(self, name):
        """Destroy a container; libvirt can fail at that, while the container is already ending."""

        def is_off():
            virsh(f"destroy {name}")
            return virsh(f"domstate {name}").stdout.strip() == "shut off"

        wait_until(is_off, 300)

    def remove_guest(self, name):
        self.stop(name)
        self.done(f"undefine {name}")
        machine.done(f"rm -rf /srv/{name} /srv/archive")

    def put(self, path, text):
        """Put a script into place, until the test is over."""
        machine.write(path, text, "755")
        self.addCleanup(machine.done, f"rm {path}")

    def journal(self, guest):
        """The lines of virt-hooks about a guest, since the machine's start."""
        machine.done("journalctl --sync")
        lines = machine.done("journalctl --boot --identifier virt-hooks --output json").splitlines()
        entries = [json.loads(line) for line in lines]
        return [entry for entry in entries if f" {guest} " in entry["MESSAGE"]]


class Noticed(TestCase):
    def setUp(self):
        purge()
        self.addCleanup(install)
        self.guest("web", "<mkdirs><dir>/srv/web/log</dir></mkdirs>")

    def assert_notices(self, installation):
        """A libvirtd that runs calls the hooks after an installation, and did not before it."""
        self.done("start web")
        self.assertFalse(exists("/srv/web/log"))
        self.stop("web")
        pid = machine.done("pidof libvirtd")
        machine.done(installation)
        self.done("start web")
        self.assertTrue(exists("/srv/web/log"))
        self.assertEqual(machine.done("pidof libvirtd"), pid)

    def test_a_libvirtd_that_runs_notices_the_package(self):
        machine.done("systemctl start libvirtd")
        self.assert_notices(PACKAGE)

    def test_a_libvirtd_that_runs_notices_install_sh(self):
        machine.done("systemctl start libvirtd")
        self.addCleanup(machine.done, f"{INSTALLER} --uninstall")
        self.assert_notices(INSTALLER)

    def test_a_libvirtd_that_its_socket_has_started_notices_the_package(self):
        machine.done("systemctl stop libvirtd")
        self.assertNotEqual(machine.run("pidof libvirtd").returncode, 0)
        self.assert_notices(PACKAGE)

    def test_a_libvirtd_that_its_socket_starts_after_the_package_calls_its_hooks(self):
        machine.done("systemctl stop libvirtd")
        machine.done(PACKAGE)
        self.assertNotEqual(machine.run("pidof libvirtd").returncode, 0)
        self.done("start web")
        self.assertTrue(exists("/srv/web/log"))


class Confined(TestCase):
    """In the AppArmor profile of libvirtd, which is enforced."""

    @classmethod
    def setUpClass(cls):
        install()

    def setUp(self):
        current = machine.done("cat /proc/$(pidof libvirtd)/attr/apparmor/current")
        self.assertEqual(current, "libvirtd (enforce)")

    def assert_nothing_is_found(self):
        result = machine.run("virt-hooks check")
        self.assertEqual((result.returncode, result.stdout, result.stderr), (0, "", ""))

    def assert_found(self, *parts):
        result = machine.run("virt-hooks check --driver lxc")
        self.assertEqual(result.returncode, 1, result.stdout + result.stderr)
        for part in parts:
            self.assertIn(part, result.stdout)

    def test_all_elements_work_and_nothing_is_denied(self):
        before = denials()
        names = "ls /etc/iproute2/rt_tables.d || true"  # it may be missing
        rules = f"nft list ruleset; ip rule; ip route show table all; {names}"
        network = machine.done(rules)
        self.guest("web", ALL_ELEMENTS)
        self.done("start web")
        self.assertEqual(machine.done("cat /srv/web/tmp/file"), "golden")
        self.assertEqual(machine.done("findmnt -no FSTYPE,SOURCE /srv/web/tmp").split(),
                         ["tmpfs", "virt-hooks"])  # fmt: skip
        self.assertIn("10.99.0.5 drop", machine.done("nft list ruleset"))
        self.assertIn("from 10.99.0.5 lookup uplink2", machine.done("ip rule"))
        self.assertIn("10.99.0.0/16", machine.done("ip route show table uplink2"))
        machine.write("/srv/web/log/line", "text")
        self.stop("web")
        self.assertEqual(machine.done("cat /srv/archive/web/line"), "text")
        self.assertFalse(exists("/srv/web/log"))
        self.assertEqual(machine.run("findmnt /srv/web/tmp").stdout, "")
        self.assertEqual(machine.done(rules), network)
        self.assertEqual(denials(), before)

    def test_the_journal_has_what_was_done_and_what_failed_by_priority(self):
        self.guest("journal", "<mkdirs><dir>/srv/journal/log</dir></mkdirs>")
        self.done("start journal")
        self.stop("journal")
        entries = self.journal("journal")
        self.assertEqual({entry["PRIORITY"] for entry in entries}, {"6"})
        self.assertEqual({entry["_SYSTEMD_UNIT"] for entry in entries}, {"libvirtd.service"})
        said = [entry["MESSAGE"] for entry in entries if "10-mkdirs" in entry["MESSAGE"]]
        self.assertTrue(any("/srv/journal/log" in line for line in said), said)

        self.put(f"{PREPARE}/50-fails", "#!/bin/sh\necho out of order >&2\nexit 7\n")
        self.assertIn("out of order", virsh("start journal").stderr)
        failed = [e["MESSAGE"] for e in self.journal("journal") if e["PRIORITY"] == "3"]
        self.assertTrue(any("50-fails" in line and "7" in line for line in failed), failed)

    def test_a_script_outside_the_hooks_directory_is_refused_until_a_rule_allows_it(self):
        site, local = "/usr/local/lib/site", "/etc/apparmor.d/local/usr.sbin.libvirtd"
        self.guest("web", "<mkdirs><dir>/srv/web/log</dir></mkdirs>")
        self.put(f"{site}/50-site", "#!/bin/sh\nsite-program\n")
        self.put("/usr/local/bin/site-program", "#!/bin/sh\ntouch /srv/web/site\n")
        machine.done(f"ln -s {site}/50-site {PREPARE}")
        self.addCleanup(machine.done, f"rm {PREPARE}/50-site")
        before = denials()
        said = virsh("start web").stderr
        self.assertIn("50-site", said)
        self.assertIn("AppArmor", said)
        self.assertTrue(any(f"{site}/50-site" in line for line in denials()[len(before) :]))
        self.assert_found("50-site", "AppArmor")

        load = "apparmor_parser --replace /etc/apparmor.d/usr.sbin.libvirtd"
        machine.done(f"cp {local} /root/local")
        self.addCleanup(machine.done, f"mv /root/local {local} && {load}")
        machine.done(f"cat >>{local} && {load}",
                     given=b"/usr/local/lib/site/** rmix,\n/usr/local/bin/* PUx,\n")  # fmt: skip
        self.done("start web")
        self.assertTrue(exists("/srv/web/site"))
        self.assert_nothing_is_found()

    def test_check_is_silent_until_a_hook_comes_just_after_a_restart_of_libvirtd(self):
        self.guest("web", ALL_ELEMENTS)
        self.assert_nothing_is_found()
        away, back = f"mv {HOOKS}/lxc /root", f"mv /root/lxc {HOOKS}"
        machine.done(f"{away} && systemctl restart libvirtd; {back}")
        self.assert_found("libvirtd", f"{HOOKS}/lxc")
        machine.done("systemctl reload libvirtd")
        self.assert_nothing_is_found()
        self.done("start web")
        self.assertTrue(exists("/srv/web/log"))

    def test_check_finds_a_guests_path_below_a_mount_point_that_is_not_mounted(self):
        self.guest("web", "<mkdirs><dir>/srv/late/web</dir></mkdirs>")
        machine.done("cp /etc/fstab /root && echo /dev/vdc /srv/late ext4 nofail >>/etc/fstab")
        self.addCleanup(machine.done, "mv /root/fstab /etc/fstab")
        self.assert_found("web", "/srv/late")


class Interrupted(TestCase):
    @classmethod
    def setUpClass(cls):
        install()

    def is_running(self, name):
        return virsh(f"domstate {name}").stdout.strip() == "running"

    def elements(self, name):
        """For a guest whose log is archived and then removed."""
        return f"""
            <mkdirs><dir>/srv/{name}/log</dir></mkdirs>
            <archive><dircopy><src>/srv/{name}/log</src><dst>/srv/archive/{name}</dst></dircopy>
            </archive><post-rm-rf><dir>/srv/{name}/log</dir></post-rm-rf>"""

    def stop_slowly(self):
        """Start a container that leaves many files, and begin to stop it; return what it leaves."""
        self.guest("web", self.elements("web"))
        self.done("start web")
        text = f"for i in range({FILES}): print(i, file=open(f'/srv/web/log/{{i}}', 'w'))"
        machine.done(f'python3 -c "{text}" && sync', 300)
        left = tree("/srv/web/log")
        machine.done(f"setsid virsh -c {LXC} destroy web >/dev/null 2>&1 &")
        return left

    def cut_power(self, program, half_way):
        """Cut the power when a program is half way; what it has done by then is on the disk."""
        machine.done(f"until {half_way}; do :; done; pkill -STOP -x {program} && sync", 600)
        machine.cut_power()
        machine.start()

    def archives(self):
        return machine.done("ls -A /srv/archive").split()

    def count(self, directory):
        return int(machine.done(f"find {directory} -type f | wc -l"))

    def test_all_containers_are_archived_before_a_reboot_and_come_back_after_it(self):
        for name, command in (("web", SLEEP), ("stubborn", IGNORE)):
            self.guest(name, self.elements(name), command)
            self.done(f"autostart {name}")
            self.done(f"start {name}")
            machine.write(f"/srv/{name}/log/line", name)
        machine.reboot()
        for name in ("web", "stubborn"):
            wait_until(lambda name=name: self.is_running(name), 300)
            self.assertEqual(machine.done(f"cat /srv/archive/{name}/line"), name)
            self.assertEqual(self.count(f"/srv/{name}"), 0)

    def test_a_power_cut_in_an_archive_loses_nothing_and_the_next_stop_archives_it(self):
        left = self.stop_slowly()
        self.cut_power("cp", "[ $(find /srv/archive -type f | wc -l) -gt 1000 ]")
        self.assertNotIn("web", self.archives())
        self.assertIn(self.count("/srv/archive"), range(1, FILES), "it was not half way")
        self.assertEqual(tree("/srv/web/log"), left)
        self.done("start web")
        self.stop("web")
        self.assertEqual(self.archives(), ["web"])
        self.assertEqual(tree("/srv/archive/web"), left)
        self.assertFalse(exists("/srv/web/log"))

    def test_a_power_cut_in_a_removal_loses_nothing_and_the_next_stop_removes_the_rest(self):
        left = self.stop_slowly()
        fewer = f"[ -e /srv/archive/web ] && [ $(ls -U /srv/web/log | wc -l) -lt {FILES} ]"
        self.cut_power("rm", fewer)
        self.assertEqual(self.archives(), ["web"])
        self.assertEqual(tree("/srv/archive/web"), left)
        self.assertIn(self.count("/srv/web/log"), range(1, FILES), "it was not half way")
        self.done("start web")
        self.stop("web")
        self.assertEqual(tree("/srv/archive/web"), left)
        self.assertFalse(exists("/srv/web/log"))
        self.assertEqual(sorted(self.archives()), ["web", "web.1"])
