"""virt-hooks on a whole machine: systemd, AppArmor, the journal, passthrough, reboot, power cut."""

import json
import subprocess
import tempfile
import unittest
from pathlib import Path

from libvirt import APPLETS, LXC, QEMU
from machine import CHECKOUT, PATIENCE, Machine, definition, wait_until

HOOKS = "/etc/libvirt/hooks"
PREPARE = f"{HOOKS}/lxc_prepare_begin_-.d"
ROOT = "/srv/root"  # of all containers
PACKAGE = "dpkg --install /root/virt-hooks.deb"
INSTALLER = "/root/checkout/install.sh"
STATES = "/run/virt-hooks"
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

QEMU_GUEST = """
    <domain type='qemu'>
      <name>{name}</name>
      <metadata><hooks xmlns="urn:virt-hooks:1">{elements}</hooks></metadata>
      <memory unit='MiB'>32</memory>
      {cpus}
      <os><type arch='x86_64' machine='pc'>hvm</type></os>
      <devices>
        <emulator>/usr/bin/qemu-system-x86_64</emulator>
        <controller type='usb' model='none'/><memballoon model='none'/>
        {devices}
      </devices>
    </domain>"""
# the firmware shows the console on the first adapter, Linux with the driver bochs on the second
FIRST, SECOND = "0000:00:10.0", "0000:00:11.0"
FIRMWARE = "/sys/bus/platform/devices/efi-framebuffer.0"
DISPLAY = """cd /sys
    for path in class/graphics/fb[0-9]* bus/platform/devices/*framebuffer*/driver \\
        bus/pci/devices/*/driver; do
        if [ -e "$path" ]; then echo "$path $(readlink -f "$path")"; fi
    done
    grep . class/vtconsole/*/name class/vtconsole/*/bind"""
CONSOLE = """for place in /sys/class/vtconsole/*; do
        if grep -q 'frame buffer' "$place/name"; then cat "$place/bind"; fi
    done"""
UNIT = "site-display.service"
HOST = f"""systemctl show --property=ActiveState {UNIT}
    systemctl show --property=AllowedCPUs user.slice system.slice init.scope
    grep Cpus_allowed_list /proc/1/status /proc/$(pidof systemd-journald)/status"""

SITE = """#!/usr/bin/python3
import ctypes, pathlib, subprocess
libc = ctypes.CDLL(None, use_errno=True)
if libc.mount(b"site", b"/srv/web/own", b"tmpfs", 0, None):
    raise OSError(ctypes.get_errno(), "mount(2)")
profile = pathlib.Path("/proc/self/attr/apparmor/current").read_text()
pathlib.Path("/srv/web/profile").write_text(profile)
subprocess.run(["/usr/local/bin/site-program"], check=True)
"""


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


def virsh(words, uri=LXC):
    return machine.run(f"virsh -c {uri} {words}")


def tree(directory):
    """What says whether two directories hold the same files: their names, modes and contents."""
    listing = "find . -type f -printf '%P %m %U %s\\n' | sort | sha256sum"
    contents = "find . -type f -exec sha256sum {} + | sort | sha256sum"
    return machine.done(f"cd {directory} && {listing} && {contents}")


def denials():
    """What the kernel has denied anybody, by AppArmor."""
    return machine.done("journalctl --boot --dmesg | grep 'apparmor=.DENIED' || true").splitlines()


def put_examples(add_cleanup, *names):
    """Put examples into prepare of QEMU, and links to them into release."""
    for name in names:
        script = f"{HOOKS}/qemu_prepare_begin_-.d/{name}"
        link = f"{HOOKS}/qemu_release_end_-.d/{name}"
        machine.write(script, (CHECKOUT / "examples" / name).read_bytes(), "755")
        machine.done(f"ln -s {script} {link}")
        add_cleanup(machine.done, f"rm {script} {link}")


class TestCase(unittest.TestCase):
    def done(self, words, uri=LXC):
        result = virsh(words, uri)
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

        wait_until(is_off, PATIENCE)

    def remove_guest(self, name):
        self.stop(name)
        self.done(f"undefine {name}")
        machine.done(f"rm -rf /srv/{name} /srv/archive")

    def qemu_guest(self, name, elements="", cpus="", devices=""):
        """Define a QEMU guest, until the test is over."""
        text = QEMU_GUEST.format(name=name, elements=elements, cpus=cpus, devices=devices)
        machine.write(f"/root/{name}.xml", text)
        self.done(f"define /root/{name}.xml", QEMU)
        self.addCleanup(self.done, f"undefine {name} --managed-save", QEMU)
        self.addCleanup(virsh, f"destroy {name}", QEMU)  # it may be off

    def fail_prepare(self, command):
        """Let prepare fail at last, until the test is over; a command tells /root/told before."""
        text = f"#!/bin/sh\n({command}) >/root/told 2>&1\nexit 7\n"
        self.put(f"{HOOKS}/qemu_prepare_begin_-.d/90-fails", text)

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
        machine.done("systemctl start libvirtd")  # it ends where nobody calls it
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
        busy = machine.done("cd /srv/web/tmp; setsid sleep 900 >/dev/null 2>&1 & echo $!")
        self.stop("web")
        machine.done(f"kill {busy}")
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

    def test_a_script_is_not_confined_wherever_it_is_and_whatever_it_does(self):
        self.guest("web", "<mkdirs><dir>/srv/web/own</dir></mkdirs>")
        self.put("/opt/site/50-site", SITE)
        self.put("/usr/local/bin/site-program", "#!/bin/sh\necho site >/srv/web/site\n")
        machine.done(f"ln -s /opt/site/50-site {PREPARE}")
        self.addCleanup(machine.done, f"rm {PREPARE}/50-site")
        self.assert_nothing_is_found()
        before = denials()
        self.done("start web")
        self.addCleanup(machine.done, "umount /srv/web/own")
        self.assertEqual(machine.done("cat /srv/web/site"), "site")
        self.assertEqual(machine.done("findmnt -no SOURCE /srv/web/own"), "site")
        self.assertEqual(machine.done("cat /srv/web/profile"), "unconfined")
        self.stop("web")
        self.assertEqual(denials(), before)
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


class Passthrough(TestCase):
    """30-free-gpu, with QEMU guests that really get a display adapter, through vfio-pci."""

    @classmethod
    def setUpClass(cls):
        install()
        put_examples(cls.addClassCleanup, "30-free-gpu")

    def passthrough(self, name, adapter):
        domain, bus, slot = adapter.partition(".")[0].split(":")
        self.qemu_guest(name, devices=f"""
            <hostdev mode='subsystem' type='pci' managed='yes'>
              <source><address domain='0x{domain}' bus='0x{bus}' slot='0x{slot}' function='0x0'/>
            </source></hostdev>""")  # fmt: skip

    def show_on_firmware(self):
        """Let the console be on the framebuffer of the firmware; return what shows it."""
        if not exists(f"{FIRMWARE}/driver"):
            machine.reboot()
        return self.display(f"{FIRMWARE}/driver", FIRST)

    def display(self, *parts):
        """What sysfs says of consoles, framebuffers and drivers; the console is on one."""
        self.assertEqual(machine.done(CONSOLE), "1")
        shown = machine.done(DISPLAY)
        for part in parts:
            self.assertIn(part.removeprefix("/sys/"), shown)
        return shown

    def driver(self, adapter):
        return machine.done(f"basename $(readlink /sys/bus/pci/devices/{adapter}/driver)")

    def states(self):
        return machine.run(f"ls {STATES}").stdout.count("hostdev-")

    def assert_taken(self, adapter, console):
        """A guest has an adapter, with its memory; the console is bound, or is not."""
        self.assertEqual(machine.done(CONSOLE) == "1", console)
        self.assertEqual(self.driver(adapter), "vfio-pci")
        self.assertFalse(exists(f"{FIRMWARE}/driver"))
        own = f"grep --after-context=1 {adapter} /proc/iomem | grep --count vfio-pci"
        self.assertEqual(machine.done(own), "2")  # its framebuffer and its registers
        self.assertNotIn("can't reserve", machine.done("dmesg"))

    def test_a_guest_gets_the_firmwares_display_and_afterwards_the_console_is_back(self):
        before = self.show_on_firmware()
        for name in ("one", "other"):
            self.passthrough(name, FIRST)
        self.done("start one", QEMU)
        self.assert_taken(FIRST, console=False)
        for refused in ("managedsave one", "start other"):  # by libvirt
            self.assertNotEqual(virsh(refused, QEMU).returncode, 0)
            self.assert_taken(FIRST, console=False)
        self.done("destroy one", QEMU)
        self.assertEqual(self.display(), before)
        self.assertEqual(self.states(), 0)

        self.done("start other", QEMU)
        self.assert_taken(FIRST, console=False)
        self.assertEqual(self.states(), 1)
        self.assertEqual(machine.done(f"stat -c %a:%u {STATES}"), "700:0")
        self.done("destroy other", QEMU)
        self.assertEqual(self.display(), before)
        self.assertEqual(self.states(), 0)

    def test_after_a_start_that_fails_the_console_is_back(self):
        before = self.show_on_firmware()
        self.passthrough("one", FIRST)
        self.fail_prepare(f"{CONSOLE}\nls {FIRMWARE}")
        self.assertNotEqual(virsh("start one", QEMU).returncode, 0)
        told = machine.done("cat /root/told").split()
        self.assertNotIn("1", told)
        self.assertNotIn("driver", told)
        self.assertEqual(self.display(), before)
        self.assertEqual(self.states(), 0)

    def test_it_may_be_called_out_of_turn_and_twice_and_a_dry_run_changes_nothing(self):
        before = self.show_on_firmware()
        self.passthrough("one", FIRST)
        machine.done(f"virsh -c {QEMU} dumpxml one >/root/one.xml; rm -rf {STATES}")

        def call(operation, *settings):
            """Call the script by hand; return what it says, and whether all is as before."""
            script = f"{HOOKS}/qemu_prepare_begin_-.d/30-free-gpu"
            command = f"env {' '.join(settings)} {script} one {operation} - - </root/one.xml"
            return machine.done(command), machine.done(DISPLAY) == before

        dry_run = "VIRT_HOOKS_DRY_RUN=1"
        would, same = call("prepare", dry_run)
        self.assertIn("/sys/class/vtconsole/", would)
        self.assertIn("efi-framebuffer.0", would)
        self.assertTrue(same)
        would, same = call("release", dry_run)
        self.assertEqual(len(would.splitlines()), 2)
        self.assertTrue(same)
        for operation in ("release", "start", "started", "stopped"):
            self.assertEqual(call(operation), ("", True))
        self.assertFalse(exists(STATES))
        for _twice in range(2):
            self.assertFalse(call("prepare")[1])
            self.assertEqual(machine.done(CONSOLE), "")
        self.assertEqual(call("release", dry_run), (would, False))
        for _twice in range(2):
            self.assertTrue(call("release")[1])
            self.assertEqual(self.states(), 0)

    def test_with_a_driver_the_console_moves_only_from_the_adapter_that_it_is_on(self):
        machine.done("modprobe bochs")  # Linux moves the console to SECOND, the one of class VGA
        before = self.display(FIRST, SECOND)
        for name, adapter in (("one", FIRST), ("other", SECOND)):
            self.passthrough(name, adapter)
            self.assertEqual(self.driver(adapter), "bochs-drm")
        self.done("start one", QEMU)
        self.assert_taken(FIRST, console=True)
        self.assertEqual(self.states(), 0)
        self.done("start other", QEMU)
        self.assert_taken(SECOND, console=False)
        self.assert_taken(FIRST, console=False)
        self.assertEqual(self.states(), 1)
        for name in ("one", "other"):
            self.done(f"destroy {name}", QEMU)
        self.assertEqual(self.display(), before)
        self.assertEqual(self.states(), 0)

    def test_what_linux_has_removed_meanwhile_is_named_and_the_rest_comes_back(self):
        self.show_on_firmware()
        self.passthrough("one", FIRST)
        machine.done(f"virsh -c {QEMU} dumpxml one >/root/one.xml")
        script = f"{HOOKS}/qemu_prepare_begin_-.d/30-free-gpu"
        machine.done(f"{script} one prepare begin - </root/one.xml")
        # bound again, so that Linux removes it when the driver comes
        machine.done("echo efi-framebuffer.0 >/sys/bus/platform/drivers_probe; modprobe bochs")
        self.assertFalse(exists(FIRMWARE))
        said = machine.done(f"{script} one release end - </root/one.xml")
        self.assertIn("efi-framebuffer.0", said)
        self.display()
        self.assertEqual(self.states(), 0)


class Tuned(TestCase):
    """The examples that stop units, isolate CPUs and set the governor, for real QEMU guests."""

    @classmethod
    def setUpClass(cls):
        install()
        put_examples(cls.addClassCleanup, "10-stop-unit", "20-isolate-cpus", "20-cpu-governor")
        path = f"/etc/systemd/system/{UNIT}"
        machine.write(path, "[Service]\nExecStart=/bin/sleep infinity\n")
        machine.done(f"systemctl daemon-reload && systemctl start {UNIT}")
        stop = f"systemctl stop {UNIT} && rm {path} && systemctl daemon-reload"
        cls.addClassCleanup(machine.done, stop)
        for number in (1, 2):
            file = f"/sys/devices/system/cpu/cpu{number}/online"
            machine.done(f"echo 1 >{file}")
            cls.addClassCleanup(machine.done, f"echo 0 >{file}")

    def pinned(self, name, cpu, elements=""):
        """A guest that stops the unit, and has a CPU of its own."""
        # libvirt pins vCPUs that QEMU emulates only where the whole guest is
        cpus = f"""<vcpu cpuset='{cpu}'>1</vcpu>
            <cputune><vcpupin vcpu='0' cpuset='{cpu}'/></cputune>"""
        elements = f"<stop-unit>{UNIT}</stop-unit>{elements}"
        self.qemu_guest(name, elements, cpus)

    def assert_host_has(self, cpus, unit="inactive"):
        said = machine.done(HOST)
        self.assertIn(f"ActiveState={unit}", said)
        self.assertEqual(said.count(f"Cpus_allowed_list:\t{cpus}"), 2, said)

    def test_the_host_leaves_the_guests_their_cpus_and_has_all_back_after_the_last(self):
        before = machine.done(HOST)
        self.assert_host_has("0-2", "active")
        for name, cpu in (("one", 1), ("other", 2), ("last", 0)):
            self.pinned(name, cpu)
        self.done("start one", QEMU)
        self.assert_host_has("0,2")
        allowed = "grep -h Cpus_allowed_list /proc/$(cat /run/libvirt/qemu/one.pid)/task/*/status"
        self.assertEqual(set(machine.done(allowed).split()[1::2]), {"1"})
        self.done("start other", QEMU)
        self.assert_host_has("0")
        self.assertIn("vcpupin", virsh("start last", QEMU).stderr)
        self.assert_host_has("0")
        self.done("destroy one", QEMU)
        self.assert_host_has("0-1")
        self.done("managedsave other", QEMU)
        self.assertEqual(machine.done(HOST), before)
        self.done("start other", QEMU)  # restores it
        self.assert_host_has("0-1")
        self.done("destroy other", QEMU)
        self.assertEqual(machine.done(HOST), before)

    def test_after_a_start_that_fails_the_host_is_as_before(self):
        before = machine.done(HOST)
        self.pinned("one", 1)
        self.fail_prepare(HOST)
        self.assertNotEqual(virsh("start one", QEMU).returncode, 0)
        told = machine.done("cat /root/told")
        self.assertIn("ActiveState=inactive", told)
        self.assertIn("Cpus_allowed_list:\t0,2", told)
        self.assertEqual(machine.done(HOST), before)

    def test_where_there_is_no_cpufreq_a_guest_that_asks_for_a_governor_does_not_start(self):
        self.assertFalse(exists("/sys/devices/system/cpu/cpufreq/policy0"))  # QEMU has none
        before = machine.done(HOST)
        self.pinned("one", 1, "<cpu-governor/>")
        self.assertIn("cpu-governor", virsh("start one", QEMU).stderr)
        self.assertEqual(machine.done(HOST), before)


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
        machine.done(f'python3 -c "{text}" && sync')
        left = tree("/srv/web/log")
        machine.done(f"setsid virsh -c {LXC} destroy web >/dev/null 2>&1 &")
        return left

    def cut_power(self, program, half_way):
        """Cut the power when a program is half way; what it has done by then is on the disk."""
        machine.done(f"until {half_way}; do :; done; pkill -STOP -x {program} && sync")
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
            wait_until(lambda name=name: self.is_running(name), PATIENCE)
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
