"""The policy and the routing table of a real container, from its first packet to its end."""

import re
import time
import unittest
from pathlib import Path

from harness import run
from libvirt import Guest, root_directory, start_libvirtd_with_hooks
from scripts import put_copy_over_etc
from test_network_policy import GUEST, REJECT, Bridged, policy

BRIDGED = "<interface type='bridge'><source bridge='br0'/></interface>"


def setUpModule():
    put_copy_over_etc()


class Container(Bridged):
    def test_a_container_from_its_first_packet_to_its_end(self):
        start_libvirtd_with_hooks(self.addCleanup)
        root = root_directory(self.directory / "root")
        for applet in ("ip", "nc"):
            (root / "bin" / applet).symlink_to("busybox")
        # from the guest to 10.99.0.1 only its own rule and table lead
        self.ip("-n world addr add 10.99.0.1/32 dev lo")
        table = (
            '<routing-table id="101" name="uplink2">'
            f"<route>10.99.0.0/24 via 10.88.0.2</route><rule>from {GUEST}</rule></routing-table>"
        )
        commands = f"""
            ip addr add {GUEST}/24 dev eth0; ip link set eth0 up
            ip route add default via 10.77.0.254
            nc -w 2 10.88.0.2 25 </dev/null; echo $? >/policy
            nc -w 2 10.88.0.2 80 </dev/null; echo $? >/open
            nc -w 2 10.99.0.1 80 </dev/null; echo $? >/routed; touch /done"""
        before = self.network()
        for elements, expected in ((policy(REJECT) + table, "1 0 0"), ("", "0 0 1")):
            web = Guest("web", root, commands, elements, devices=BRIDGED)
            self.addCleanup(web.remove)
            web.start()
            if elements:
                self.assertIn("from-guest", self.everything())
                routes = run(["ip", "route", "show", "table", "uplink2"])
                self.assertEqual(routes.stdout, "10.99.0.0/24 via 10.88.0.2 dev world \n")
            until = time.monotonic() + 50
            while not (root / "done").exists():
                self.assertLess(time.monotonic(), until)
                time.sleep(0.05)
            web.end()
            results = [(root / name).read_text().strip() for name in ("policy", "open", "routed")]
            self.assertEqual(" ".join(results), expected)
            self.assertEqual(self.network(), before)
            (root / "done").unlink()
            web.remove()
        # a start that fails half-way: the first table is there, the rule in the second element bad
        bad = policy(REJECT) + policy("chain x { ip saddr nonsense accept; }")
        web = Guest("web", root, "true", table + bad, devices=BRIDGED)
        self.addCleanup(web.remove)
        with self.assertRaisesRegex(RuntimeError, "20-network-policy"):
            web.start()
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
