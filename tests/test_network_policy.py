"""20-network-policy: a guest's own nftables table, there before its first packet, gone after it."""

import re
import subprocess
import time
import unittest
from pathlib import Path
from xml.sax.saxutils import escape

from harness import NAMESPACE, TestCase, run
from libvirt import Guest, root_directory, start_libvirtd_with_hooks

UUID = "9f0cd2a8-6a4b-4a5c-8f2f-0123456789ab"
OTHER = "00000000-0000-4000-8000-000000000000"
START, STOPPED = ("web", "start", "begin", "-"), ("web", "stopped", "end", "-")
GUEST = "10.77.0.5"
CHAIN = "chain from-guest {{\n  type filter hook forward priority filter; policy accept;\n  {}\n}}"
REJECT = CHAIN.format(f"ip saddr {GUEST} tcp dport 25 reject with tcp reset")

BRIDGED = "<interface type='bridge'><source bridge='br0'/></interface>"
SERVER = """
import socket, sys
with socket.create_server(("", int(sys.argv[1]))) as server:
    print("listens", flush=True)
    while True:
        server.accept()[0].close()
"""


def policy(*texts, family=None):
    attribute = f' family="{family}"' if family else ""
    rules = "".join(f"<nft{attribute}>{escape(text)}</nft>" for text in texts)
    return f"<network-policy>{rules}</network-policy>"


def guest(elements, uuid=UUID):
    """A guest's XML, with a UUID."""
    hooks = f'<hooks xmlns="{NAMESPACE}">{elements}</hooks>'
    return f"<domain><name>web</name><uuid>{uuid}</uuid><metadata>{hooks}</metadata></domain>"


def ruleset():
    return run(["nft", "list", "ruleset"]).stdout


class PolicyCase(TestCase):
    def setUp(self):
        super().setUp()
        self.assert_succeeds(run(["nft", "add", "table", "inet", "host"]))
        self.assert_succeeds(run(["nft", "add", "chain", "inet", "host", "mine"]))
        self.addCleanup(run, ["nft", "flush", "ruleset"])
        self.host = ruleset()

    def policy(self, elements, *arguments, uuid=UUID, **options):
        return self.run_script("20-network-policy", guest(elements, uuid), *arguments, **options)

    def assert_refused(self, result, *parts):
        self.assert_one_line_error(result, "20-network-policy: web: network-policy", *parts)
        self.assertEqual(result.stdout, "")
        self.assertEqual(ruleset(), self.host)


class NetworkPolicy(PolicyCase):
    def test_it_loads_a_table_of_the_guests_own_and_removes_it(self):
        for phase in (STOPPED, ("web", "release", "end", "crashed")):
            result = self.policy(policy(REJECT), *START)
            self.assert_succeeds(result)
            self.assertEqual(result.stdout, f"loaded table inet virt-hooks-{UUID}\n")
            listed = run(["nft", "list", "table", "inet", f"virt-hooks-{UUID}"]).stdout
            self.assertIn(f"ip saddr {GUEST} tcp dport 25 reject", listed)
            result = self.policy(policy(REJECT), *phase)
            self.assert_succeeds(result)
            self.assertEqual(result.stdout, f"removed table inet virt-hooks-{UUID}\n")
            self.assertEqual(ruleset(), self.host)
            result = self.policy(policy(REJECT), *phase)
            self.assert_succeeds(result)
            self.assertEqual(result.stdout, "")

    def test_a_second_run_replaces_it(self):
        self.policy(policy(REJECT, "chain old { }"), *START)
        first = ruleset()
        self.assert_succeeds(self.policy(policy(REJECT, "chain old { }"), *START))
        self.assertEqual(ruleset(), first)
        self.assert_succeeds(self.policy(policy("chain new { }", family="bridge"), *START))
        self.assertNotIn("old", ruleset())
        self.assertIn(f"table bridge virt-hooks-{UUID} {{\n\tchain new", ruleset())
        self.assertNotIn(f"table inet virt-hooks-{UUID}", ruleset())
        self.assert_succeeds(self.policy(policy("chain new { }", family="bridge"), *STOPPED))
        self.assertEqual(ruleset(), self.host)

    def test_two_guests_tables_live_side_by_side(self):
        self.policy(policy(REJECT), *START)
        alone = ruleset()
        self.policy(policy("chain theirs { }"), *START, uuid=OTHER)
        self.assertIn("theirs", ruleset())
        self.assertIn("from-guest", ruleset())
        self.policy(policy("chain theirs { }"), *STOPPED, uuid=OTHER)
        self.assertEqual(ruleset(), alone)

    def test_a_bad_rule_changes_nothing_and_nft_says_in_which_line(self):
        self.policy(policy(REJECT), *START)
        before = ruleset()
        for bad, said in (
            ("ip saddr nonsense accept", "nft: line 3:12-19: Error: "),
            ("jump nowhere", "nft: line 3:8-14: Error: Could not process rule: No such file"),
            ("tcp dport 99999 accept", "nft: line 3:13-17: Error: "),
        ):
            for elements in (
                policy(CHAIN.format(bad)),
                policy("chain good { }") + policy(CHAIN.format(bad)),
            ):
                for dry_run in (False, True):
                    with self.subTest(bad, elements=elements, dry_run=dry_run):
                        result = self.policy(elements, *START, dry_run=dry_run)
                        self.assertEqual((result.returncode, result.stdout), (1, ""))
                        self.assertIn(said, result.stderr)
                        line = "20-network-policy: web: network-policy: nft failed, exit status 1\n"
                        self.assertTrue(result.stderr.endswith(line), result.stderr)
                        self.assertEqual(ruleset(), before)
        self.assert_succeeds(self.policy(policy(CHAIN.format("jump nowhere")), *STOPPED))
        self.assertEqual(ruleset(), self.host)

    def test_no_text_leaves_the_guests_table(self):
        for text, reason in (
            ("} table inet other {", "'}' too many"),
            ("} flush ruleset; table inet host {", "'}' too many"),
            ('chain a { } # {\n} delete table inet host; table inet x { # "', "'}' too many"),
            ('chain a { comment "{"; } } flush ruleset', "'}' too many"),
            ('chain a { comment "\'}"; } }\nflush ruleset\ntable x y {', "'}' too many"),
            ("chain a {", "without its '}'"),
            ('chain a { comment "', "'\"' without its end"),
            ('comment "', "'\"' without its end"),
            ('chain a { } # "\ncomment "#', "'\"' without its end"),
            ("chain a { } }", "'}' too many"),
            ("}", "'}' too many"),
            ('include "/etc/passwd"', "'include'"),
            ('chain a {\ninclude "/etc/passwd"\n}', "'include'"),
        ):
            for dry_run in (False, True):
                with self.subTest(text, dry_run=dry_run):
                    result = self.policy(policy(text), *START, dry_run=dry_run)
                    self.assert_refused(result, "network-policy/nft", reason)

    def test_braces_in_comments_and_strings_are_none(self):
        text = 'chain a { # }}} "\n  counter comment "}} { # x" # {\n}\n# }'
        self.assert_succeeds(self.policy(policy(text), *START))
        self.assertIn('comment "}} { # x"', ruleset())

    def test_bad_elements_are_refused(self):
        for elements, parts in (
            ("<network-policy>text</network-policy>", ("text",)),
            ("<network-policy><nft/></network-policy>", ("/nft", "empty")),
            ("<network-policy><rule>x</rule></network-policy>", ("unknown element <rule>",)),
            ("<network-policy mode='x'><nft>x</nft></network-policy>", ("mode='x'",)),
            (policy("chain a { }", family="inett"), ("family='inett'", "bridge")),
        ):
            with self.subTest(elements):
                self.assert_refused(self.policy(elements, *START), *parts)
        for uuid in ("", "x", f"{UUID} flush", "z" * 36):
            result = self.policy(policy(REJECT), *START, uuid=uuid)
            self.assert_one_line_error(result, "20-network-policy: web: ", "<uuid>")

    def test_a_dry_run_says_what_would_be_done_and_does_nothing(self):
        result = self.policy(policy(REJECT), *START, dry_run=True)
        self.assert_succeeds(result)
        self.assertEqual(result.stdout, f"would load table inet virt-hooks-{UUID}\n")
        self.assertEqual(ruleset(), self.host)
        self.policy(policy(REJECT), *START)
        before = ruleset()
        result = self.policy(policy(REJECT), *STOPPED, dry_run=True)
        self.assertEqual(result.stdout, f"would remove table inet virt-hooks-{UUID}\n")
        self.assertEqual(ruleset(), before)

    def test_without_the_element_it_does_nothing(self):
        for elements in ("", "<network-policy/>", "<other><network-policy/></other>"):
            result = self.policy(elements, *START)
            self.assert_succeeds(result)
            self.assertEqual((result.stdout, ruleset()), ("", self.host))

    def test_without_nft_it_fails(self):
        result = self.run_script("20-network-policy", guest(policy(REJECT)), *START)
        self.assert_succeeds(result)
        command = ["env", "PATH=/nowhere", *(str(part) for part in result.args)]
        command[2] = f"{command[2]}"
        result = run(["/usr/bin/env", *command[1:]], input=guest(policy(REJECT)))
        self.assert_one_line_error(result, "network-policy: nft: No such file or directory")

    def test_fifty_guests_leave_nothing(self):
        uuids = [f"{OTHER[:-2]}{number:02}" for number in range(50)]
        for uuid in uuids:
            self.assert_succeeds(self.policy(policy(REJECT), *START, uuid=uuid))
        self.assertEqual(ruleset().count("table inet virt-hooks-"), 50)
        for uuid in uuids:
            self.assert_succeeds(self.policy(policy(REJECT), *STOPPED, uuid=uuid))
        self.assertEqual(ruleset(), self.host)


class Packets(PolicyCase):
    """Real packets, from behind a bridge of this namespace's to another network."""

    def setUp(self):
        super().setUp()
        self.ip("link add br0 type bridge", "addr add 10.77.0.254/24 dev br0", "link set br0 up")
        self.addCleanup(run, ["ip", "link", "delete", "br0"])
        with open("/proc/sys/net/ipv4/ip_forward", "w") as file:
            file.write("1")
        self.add_host("world", "10.88.0.2/24", "10.88.0.254")
        self.ip("addr add 10.88.0.254/24 dev world")
        self.listen("world", 25)
        self.listen("world", 80)

    def ip(self, *commands):
        for command in commands:
            self.assert_succeeds(run(["ip", *command.split()]))

    def add_host(self, name, address, router, bridge=None):
        """A network namespace whose eth0 is the other end of a veth of that name."""
        self.ip(f"netns add {name}")
        self.addCleanup(run, ["ip", "netns", "delete", name])
        # now; with its namespace it would go some time later, and be in the next test's way
        self.addCleanup(run, ["ip", "link", "delete", name])
        self.ip(
            f"link add {name} type veth peer name eth0 netns {name}",
            f"-n {name} addr add {address} dev eth0",
            f"-n {name} link set eth0 up",
            f"link set {name} up",
            f"-n {name} route add default via {router}",
        )
        if bridge:
            self.ip(f"link set {name} master {bridge}")

    def listen(self, host, port):
        command = ["/usr/bin/python3", "-IS", "-c", SERVER, str(port)]
        command = ["ip", "netns", "exec", host, *command]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        self.assertEqual(process.stdout.readline(), b"listens\n")

    def connects(self, host, port, address="10.88.0.2"):
        command = ["busybox", "nc", "-w", "2", address, str(port)]
        result = run(["ip", "netns", "exec", host, *command], stdin=subprocess.DEVNULL)
        return result.returncode == 0

    def test_a_connection_that_is_rejected_and_one_that_is_let_through(self):
        self.add_host("one", f"{GUEST}/24", "10.77.0.254", "br0")
        self.add_host("two", "10.77.0.6/24", "10.77.0.254", "br0")
        self.assertTrue(self.connects("one", 25))
        self.policy(policy(REJECT), *START)
        self.assertFalse(self.connects("one", 25))
        self.assertTrue(self.connects("one", 80))
        self.assertTrue(self.connects("two", 25))  # another guest's
        self.policy(policy(REJECT), *STOPPED)
        self.assertTrue(self.connects("one", 25))

    def test_between_two_guests_of_a_bridge(self):
        self.add_host("one", f"{GUEST}/24", "10.77.0.254", "br0")
        self.add_host("two", "10.77.0.6/24", "10.77.0.254", "br0")
        self.listen("two", 25)
        self.listen("two", 80)
        drop = CHAIN.format(f"ip saddr {GUEST} tcp dport 25 drop")
        self.assertTrue(self.connects("one", 25, "10.77.0.6"))
        self.assert_succeeds(self.policy(policy(drop, family="bridge"), *START))
        self.assertFalse(self.connects("one", 25, "10.77.0.6"))
        self.assertTrue(self.connects("one", 80, "10.77.0.6"))

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
                self.assertIn("from-guest", ruleset())
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
        with self.assertRaisesRegex(RuntimeError, "nft: line 1:"):
            web.start()
        self.assertEqual(self.network(), before)

    def network(self):
        """All that a guest's policy and tables may change."""
        commands = ("ip rule", "ip -6 rule", "ip route show table all")
        shown = [run(command.split()).stdout for command in commands]
        names = [(path, path.read_bytes()) for path in Path("/etc/iproute2").rglob("*.conf")]
        # the kernel has routes of its own for the container's veth, and for a bridge that has none
        kernels = r".*\bfe80:.*\n|.*\bff00:.*\n| linkdown"
        return ruleset(), [re.sub(kernels, "", text) for text in shown], names


if __name__ == "__main__":
    unittest.main()
