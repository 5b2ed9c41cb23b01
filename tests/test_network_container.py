"""The policy and the routing table of a real container, from its first packet to its end."""

import re
import unittest
from pathlib import Path

from harness import run
from libvirt import Guest, root_directory, start_libvirtd_with_hooks, wait_until
from scripts import put_copy_over_etc
from test_network_policy import GUEST, REJECT, Bridged, policy

BRIDGED = "<interface type='bridge'><source bridge='br0'/></interface>"


def setUpModule():
    put_copy_over_etc()


# from the guest to 10.99.0.1 only this rule and this table lead
TABLE = (
    '<routing-table id="101" name="uplink2">'
    f"<route>10.99.0.0/24 via 10.88.0.2</route><rule>from {GUEST}</rule></routing-table>"
)
UP = f"ip addr add {GUEST}/24 dev eth0; ip link set eth0 up; ip route add default via 10.77.0.254"
TRY = """
    nc -w 2 10.88.0.2 25 </dev/null; echo $? >/policy
    nc -w 2 10.88.0.2 80 </dev/null; echo $? >/open
    nc -w 2 10.99.0.1 80 </dev/null; echo $? >/routed; touch /done"""


class Container(Bridged):
    def setUp(self):
        super().setUp()
        self.ip("-n world addr add 10.99.0.1/32 dev lo")
        start_libvirtd_with_hooks(self.addCleanup)
        self.root = root_directory(self.directory / "root")
        for applet in ("ip", "nc"):
            (self.root / "bin" / applet).symlink_to("busybox")

    def results(self):
        """The exit status of each of the guest's three tries, when it has made them."""
        wait_until((self.root / "done").exists)
        (self.root / "done").unlink()
        names = ("policy", "open", "routed")
        return " ".join((self.root / name).read_text().strip() for name in names)

    def test_a_container_from_its_first_packet_to_its_end(self):
        before = self.network()
        for elements, expected in ((policy(REJECT) + TABLE, "1 0 0"), ("", "0 0 1")):
            web = Guest("web", self.root, f"{UP}; {TRY}", elements, devices=BRIDGED)
            self.addCleanup(web.remove)
            web.start()
            if elements:
                self.assertIn("from-guest", self.everything())
                routes = run(["ip", "route", "show", "table", "uplink2"])
                self.assertEqual(routes.stdout, "10.99.0.0/24 via 10.88.0.2 dev world \n")
            results = self.results()
            web.end()
            self.assertEqual(results, expected)
            self.assertEqual(self.network(), before)
            web.remove()
        # a start that fails half-way: the first table is there, the rule in the second element bad
        bad = policy(REJECT) + policy("chain x { ip saddr nonsense accept; }")
        web = Guest("web", self.root, "true", TABLE + bad, devices=BRIDGED)
        self.addCleanup(web.remove)
        with self.assertRaisesRegex(RuntimeError, "20-network-policy"):
            web.start()
        self.assertEqual(self.network(), before)

    def test_replay_brings_back_what_others_take_from_a_running_container(self):
        """nft flush ruleset, and systemd-networkd, which removes rules that are not its own."""
        before = self.network()
        again = f"until [ -e /again ]; do sleep 0.05; done; rm /again; {TRY}"
        commands = f"{UP}; {TRY}; {again}; {again}"
        web = Guest("web", self.root, commands, policy(REJECT) + TABLE, devices=BRIDGED)
        self.addCleanup(web.remove)
        web.start()
        self.assertEqual(self.results(), "1 0 0")
        running = self.network()
        run(["nft", "flush", "ruleset"], check=True)
        run(["ip", "rule", "flush", "priority", "20000"], check=True)
        (self.root / "again").touch()
        self.assertEqual(self.results(), "0 0 1")
        for _ in range(2):
            result = run(["/usr/local/sbin/virt-hooks", "replay", "web", "start"])
            self.assertEqual(result.returncode, 0, result.stderr)
        # the host's own table has gone with the guest's
        for command in ("add table inet host", "add chain inet host mine"):
            run(["nft", *command.split()], check=True)
        self.assertEqual(self.network()[1:], running[1:])
        (self.root / "again").touch()
        self.assertEqual(self.results(), "1 0 0")
        web.end()
        self.assertEqual(self.network(), before)

    def network(self):
        """All that a guest's policy and tables may change."""
        commands = ("ip rule", "ip -6 rule", "ip route show table all")
        shown = [run(command.split()).stdout for command in commands]
        names = [(path, path.read_bytes()) for path in Path("/etc/iproute2").rglob("*.conf")]
        # the kernel has routes of its own for the container's veth, and for a bridge that has none
        kernels = r".*\bfe80:.*\n|.*\bff00:.*\n| linkdown"
        return self.everything(), [re.sub(kernels, "", text) for text in shown], names


if __name__ == "__main__":
    unittest.main()
