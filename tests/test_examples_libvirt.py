"""Examples under the real libvirtd: QEMU's hugepages, a container's ports, libvirt's networks."""

import re
import shutil
from pathlib import Path

import test_examples
from harness import CHECKOUT, TestCase, run, script
from libvirt import (
    HOOKS,
    NETWORK,
    QEMU,
    Guest,
    put_hook,
    root_directory,
    start_libvirtd,
    start_libvirtd_with_hooks,
    virsh,
    wait_until,
)
from scripts import guest_xml

POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
DEFINITION = """
    <domain type='qemu'>
      <name>{name}</name>
      <memory unit='MiB'>16</memory>
      <memoryBacking><hugepages><page size='2' unit='MiB'/></hugepages></memoryBacking>
      <os><type arch='x86_64' machine='pc'>hvm</type></os>
      <devices>
        <emulator>/usr/bin/qemu-system-x86_64</emulator>
        <controller type='usb' model='none'/><memballoon model='none'/>
      </devices>
    </domain>
"""
INTERFACES = "<interface type='bridge'><source bridge='br0'/></interface>" * 2
LAN = """
    <network>
      <name>lan</name><forward mode='{mode}'/><bridge name='virbr7' stp='off'/>
      <ip address='10.77.0.1' netmask='255.255.255.0'/>
    </network>
"""


class Qemu(TestCase):
    def setUp(self):
        super().setUp()
        test_examples.hold_the_pools(self)
        self.before = int(POOL.read_text())
        POOL.write_text(f"{self.before + 16}")
        room = int(POOL.read_text()) == self.before + 16
        POOL.write_text(f"{self.before}")
        if not room:
            self.skipTest("the kernel has no room for 16 hugepages")
        self.addCleanup(POOL.write_text, f"{self.before}")
        pages = Path("/run/hugetlbfs")  # QEMU, as its own user, does not get into self.directory
        pages.mkdir()
        self.addCleanup(pages.rmdir)
        run(["mount", "-t", "hugetlbfs", "-o", "pagesize=2M", "tests", pages], check=True)
        self.addCleanup(run, ["umount", pages], check=True)
        start_libvirtd_with_hooks(self.addCleanup, "--driver", "qemu")
        shutil.copy(CHECKOUT / "examples/20-hugepages", HOOKS / "qemu_prepare_begin_-.d")
        link = HOOKS / "qemu_release_end_-.d/03-hugepages"
        link.symlink_to("../qemu_prepare_begin_-.d/20-hugepages")
        for name in ("web", "db"):
            self.virsh("define", self.write(f"{name}.xml", DEFINITION.format(name=name)))
            self.addCleanup(virsh, "undefine", "--managed-save", name, uri=QEMU)
            self.addCleanup(virsh, "destroy", name, uri=QEMU)

    def virsh(self, *arguments):
        result = virsh(*arguments, uri=QEMU)
        self.assertEqual(result.returncode, 0, result.stderr)
        return result.stdout

    def assert_pages_of(self, guests):
        """The pool has the pages of so many guests, which use them all."""
        self.assertEqual(int(POOL.read_text()), self.before + 8 * guests)
        self.assertEqual(POOL.with_name("free_hugepages").read_text(), self.free)

    def test_guests_have_hugepages_as_long_as_they_run(self):
        self.free = POOL.with_name("free_hugepages").read_text()
        self.virsh("start", "web")
        self.assert_pages_of(1)
        again = [HOOKS / "qemu_prepare_begin_-.d/20-hugepages", "web", "prepare", "begin", "-"]
        self.assert_succeeds(run(again, input=self.virsh("dumpxml", "web")))
        self.assert_pages_of(1)
        self.virsh("start", "db")
        self.assert_pages_of(2)
        self.virsh("managedsave", "web")
        self.assert_pages_of(1)
        self.virsh("start", "web")
        self.assert_pages_of(2)
        self.virsh("destroy", "db")
        self.assert_pages_of(1)
        fail = put_hook(self, "qemu_start_begin_-.d/90-fail", "#!/bin/sh\nexit 3\n")
        self.assertEqual(virsh("start", "db", uri=QEMU).returncode, 1)
        self.assert_pages_of(1)
        fail.unlink()
        self.virsh("destroy", "web")
        self.assert_pages_of(0)
        self.assertEqual(list(Path("/run/virt-hooks").glob("hugepages-*")), [])


class Container(TestCase):
    def test_its_interfaces_are_tuned_before_its_start_is_over(self):
        run(["ip", "link", "add", "br0", "type", "bridge"], check=True)
        self.addCleanup(run, ["ip", "link", "delete", "br0"])
        start_libvirtd_with_hooks(self.addCleanup)
        script = (CHECKOUT / "examples/60-tune-interface").read_text()
        put_hook(self, "lxc_started_begin_-.d/60-tune-interface", script)
        root = root_directory(self.directory / "root")
        element = "<tune-interface>isolated on</tune-interface>"
        guest = Guest("web", root, elements=element, devices=INTERFACES)
        self.addCleanup(guest.remove)
        guest.start()
        shown = run(["bridge", "-details", "link", "show"]).stdout
        self.assertEqual((shown.count("master br0"), shown.count("isolated on")), (2, 2))
        guest.end()


class Lan(test_examples.RoutedTestCase):
    """The guest is on a network of libvirt's, and the client is outside."""

    def setUp(self):
        super().setUp()
        start_libvirtd(self.addCleanup)
        self.add_host("client", "10.88.0")
        self.listen("client", 8080)

    def start_network(self, mode):
        definition = self.write("lan.xml", LAN.format(mode=mode))
        self.assert_succeeds(virsh("net-create", definition, uri=NETWORK))
        self.addCleanup(virsh, "net-destroy", "lan", uri=NETWORK)
        self.add_host("guest", "10.77.0", "virbr7")
        self.listen("guest", 80)
        wait_until(lambda: self.asks("", "10.77.0.5", 80) == "guest sees 10.77.0.1")
        self.assert_works("start", self.xml('port="8080" to="10.77.0.5:80"'))

    def test_a_network_with_nat_lets_only_the_host_itself_through(self):
        self.start_network("nat")
        self.assertEqual(self.asks("client", "10.88.0.1"), "refused")
        self.assertEqual(self.asks("", "10.88.0.1"), "guest sees 10.88.0.1")
        self.assertEqual(self.asks("guest", "10.88.0.5"), "client sees 10.88.0.1")

    def test_an_open_network_and_the_policy_that_the_index_shows_do_all_that_nat_does(self):
        self.start_network("open")
        self.assertEqual(self.asks("client", "10.88.0.1"), "guest sees 10.88.0.5")
        self.assertEqual(self.asks("guest", "10.88.0.5"), "client sees 10.77.0.5")
        (policy,) = re.findall(r"^```xml\n(.*?)^```$", test_examples.INDEX, re.M | re.S)
        self.assert_works("start", guest_xml(policy), name=script("20-network-policy"))
        self.assertEqual(self.asks("guest", "10.88.0.5"), "client sees 10.88.0.1")
        self.assertEqual(self.asks("client", "10.88.0.1"), "guest sees 10.88.0.5")
        self.assertEqual(self.asks("", "10.88.0.1"), "guest sees 10.88.0.1")

    def test_a_routed_network_lets_connections_through(self):
        self.start_network("route")
        self.assertEqual(self.asks("client", "10.88.0.1"), "guest sees 10.88.0.5")
