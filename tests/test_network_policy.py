"""20-network-policy: a guest's own nftables table, there before its first packet, gone after it."""

import os
import re
import shutil
import subprocess
import unittest
from concurrent.futures import ThreadPoolExecutor
from xml.sax.saxutils import escape

from harness import CHECKOUT, run
from scripts import STOPPED, ScriptCase, guest_xml, put_copy_over_etc, uuid_of

TABLE = f"virt-hooks-{uuid_of('web')}"
GUEST = "10.77.0.5"
CHAIN = "chain from-guest {{\n  type filter hook forward priority filter; policy accept;\n  {}\n}}"
REJECT = CHAIN.format(f"ip saddr {GUEST} tcp dport 25 reject with tcp reset")

SERVER = """
import socket, sys
with socket.create_server(("", int(sys.argv[1]))) as server:
    print("listens", flush=True)
    while True:
        server.accept()[0].close()
"""


def setUpModule():
    put_copy_over_etc()


def policy(*texts, family=None):
    attribute = "" if family is None else f' family="{family}"'
    rules = "".join(f"<nft{attribute}>{escape(text)}</nft>" for text in texts)
    return f"<network-policy>{rules}</network-policy>"


class PolicyCase(ScriptCase):
    SCRIPT = "20-network-policy"
    EXAMPLE = "<network-policy><nft>chain c { }</nft></network-policy>"
    PROGRAM = "nft"

    def setUp(self):
        super().setUp()
        run(["nft", "add", "table", "inet", "host"], check=True)
        run(["nft", "add", "chain", "inet", "host", "mine"], check=True)
        self.addCleanup(run, ["nft", "flush", "ruleset"])
        self.host = self.everything()

    def everything(self):
        return run(["nft", "list", "ruleset"], check=True).stdout

    def start(self, elements, **options):
        return self.call(elements, **options)

    def stop(self, elements, **options):
        return self.call(elements, *STOPPED, **options)


class NetworkPolicy(PolicyCase):
    def test_the_texts_are_the_inside_of_a_table_of_the_guests_own(self):
        self.assert_says(self.start(policy(REJECT, "chain more { }")), TABLE)
        listed = run(["nft", "list", "table", "inet", TABLE]).stdout
        self.assertIn(f"ip saddr {GUEST} tcp dport 25 reject", listed)
        self.assertIn("chain more", listed)
        self.assert_says(self.stop(policy(REJECT)), TABLE)
        self.assertEqual(self.everything(), self.host)
        self.assert_says(self.stop(policy(REJECT)))
        self.assertEqual(self.everything(), self.host)

    def test_a_table_is_of_the_family_that_is_given_or_inet(self):
        elements = policy("chain a { }") + policy("chain b { }", family="bridge")
        self.assert_says(self.start(elements), TABLE)
        for family, chain in (("inet", "chain a"), ("bridge", "chain b")):
            self.assertIn(chain, run(["nft", "list", "table", family, TABLE]).stdout)
        self.assert_says(self.stop(elements), TABLE)
        self.assertEqual(self.everything(), self.host)

    def test_a_second_start_replaces_all_that_the_first_has_set(self):
        self.start(policy(REJECT, "chain old { }"))
        first = self.everything()
        self.assert_says(self.start(policy(REJECT, "chain old { }")), TABLE)
        self.assertEqual(self.everything(), first)
        self.assert_says(self.start(policy("chain new { }", family="bridge")), TABLE)
        self.assertNotIn("old", self.everything())
        self.assertIn(f"table bridge {TABLE}", self.everything())
        self.assertNotIn(f"table inet {TABLE}", self.everything())

    def test_all_rules_come_at_once_or_none(self):
        self.start(policy(REJECT))
        before = self.everything()
        for bad in ("ip saddr nonsense accept", "jump nowhere", "tcp dport 99999 accept"):
            for elements in (
                policy("chain good { }", CHAIN.format(bad)),
                policy("chain good { }") + policy(CHAIN.format(bad)),
            ):
                with self.subTest(elements):
                    result = self.start(elements)
                    self.assert_error(result, programs_said=True)
                    self.assertEqual((result.stdout, self.everything()), ("", before))

    def test_stopped_removes_the_guests_tables_whatever_the_element_says_by_then(self):
        started = policy(REJECT) + policy("chain x { }", family="bridge")
        for elements in (
            "<network-policy/>",
            "<network-policy> \n </network-policy>",
            policy(CHAIN.format("jump nowhere")),
            policy("} nonsense {"),
            policy("chain a { }", family="ip6"),
            policy("chain a { }", family="inett"),
            "<network-policy mode='x'><nft>chain a { }</nft></network-policy>",
            "<network-policy><unknown/>text<nft/></network-policy>",
        ):
            with self.subTest(elements):
                self.start(started)
                self.assertNotEqual(self.everything(), self.host)
                self.assert_says(self.stop(elements), TABLE)
                self.assertEqual(self.everything(), self.host)

    def test_another_guests_tables_stay(self):
        self.start(policy(REJECT))
        alone = self.everything()
        self.start(policy("chain theirs { }"), guest="other")
        self.assertIn("theirs", self.everything())
        self.assertIn("from-guest", self.everything())
        self.assert_says(self.stop("<network-policy/>", guest="other"), uuid_of("other"))
        self.assertEqual(self.everything(), alone)

    def test_a_family_that_nft_does_not_know_is_refused(self):
        for family in ("inett", "IP", ""):
            good = policy(REJECT)
            self.assert_refused(good + policy("chain a { }", family=family), "family", family)

    def test_it_works_through_the_link_in_the_stopped_directory(self):
        self.start(policy(REJECT))
        link = CHECKOUT / "lxc_stopped_end_-.d" / self.SCRIPT
        self.assert_says(run([link, "web", *STOPPED], input=guest_xml(policy(REJECT))), TABLE)
        self.assertEqual(self.everything(), self.host)

    def test_a_dry_run_says_what_it_would_do_and_does_nothing(self):
        self.assert_says(self.start(policy(REJECT), dry_run=True), TABLE)
        self.assertEqual(self.everything(), self.host)
        self.start(policy(REJECT))
        before = self.everything()
        self.assert_says(self.stop(policy(REJECT), dry_run=True), TABLE)
        self.assertEqual(self.everything(), before)

    def test_of_a_guest_that_is_off_a_dry_run_says_what_stopped_would_remove(self):
        for elements in (policy(REJECT), policy(REJECT, family="bridge"), "<network-policy/>"):
            self.assert_says(self.stop(elements, dry_run=True), TABLE)
            self.assertEqual(self.everything(), self.host)

    def test_in_a_running_guest_start_brings_back_what_a_firewall_loaded_anew_has_removed(self):
        elements = policy(REJECT) + policy("chain x { }", family="bridge")
        self.start(elements)
        running = re.findall(rf"table \w+ {TABLE} {{.*?\n}}", self.everything(), re.DOTALL)
        self.assertEqual(len(running), 2)
        for what in ("ruleset", f"table bridge {TABLE}", f"table inet {TABLE}"):
            with self.subTest(what):
                run(["nft", "flush", *what.split()], check=True)
                self.assert_says(self.start(elements), TABLE)
                found = re.findall(rf"table \w+ {TABLE} {{.*?\n}}", self.everything(), re.DOTALL)
                self.assertEqual(sorted(found), sorted(running))
        self.assert_says(self.stop(elements), TABLE)
        self.assertNotIn(TABLE, self.everything())

    def test_a_firewall_that_is_loaded_anew_meanwhile_makes_neither_phase_fail(self):
        text = (
            "import os, sys\n"
            f"nft = {shutil.which('nft')!r}\n"
            "status = os.spawnv(os.P_WAIT, nft, sys.argv)\n"
            "if 'list' in sys.argv:\n"
            "    os.spawnv(os.P_WAIT, nft, [nft, 'flush', 'ruleset'])\n"
            "sys.exit(status)\n"
        )
        environment = self.path_with("nft", text)
        elements = policy(REJECT) + policy("chain x { }", family="bridge")
        for _ in range(2):
            self.assert_says(self.start(elements, environment=environment), TABLE)
            self.assertEqual(self.everything().count(TABLE), 2)
        self.assert_says(self.stop(elements, environment=environment), TABLE)
        self.assertNotIn(TABLE, self.everything())

    def test_at_no_moment_is_a_running_guest_without_its_rules(self):
        self.start(policy(REJECT))
        look = [shutil.which("nft"), "list", "table", "inet", TABLE]
        for elements in (policy(REJECT), policy(REJECT, "chain more { }")) * 5:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL}
            with subprocess.Popen(self.command(), **pipes) as start:
                start.stdin.write(guest_xml(elements).encode())
                start.stdin.close()
                while start.poll() is None:
                    self.assertIn("reject with tcp reset", run(look).stdout)
            self.assertEqual(start.returncode, 0)

    def test_what_it_runs_is_named_where_that_fails(self):
        self.assert_error(self.start(policy("frobnicate")), "nft ", programs_said=True)
        self.write("bin/nft", "#!/bin/sh\nexit 7\n", 0o755)
        for path in (f"{self.directory}/bin:{os.environ['PATH']}", f"{self.directory}/none"):
            for call in (self.start, self.stop):
                result = call(policy(REJECT), environment={"PATH": path})
                self.assertEqual(result.returncode, 1)
                self.assertRegex(result.stderr.splitlines()[-1], "20-network-policy: web: .*nft")

    def test_an_ordinary_user_reads_that_it_needs_root(self):
        nobody = {"user": 65534, "group": 65534, "extra_groups": []}
        for dry_run in (False, True):
            result = self.start(policy(REJECT), dry_run=dry_run, **nobody)
            self.assert_error(result, programs_said=None)
            self.assertIn("root", result.stderr)

    def test_fifty_at_once_leave_nothing(self):
        guests = [f"guest{number}" for number in range(50)]
        for call in (self.start, self.stop):
            with ThreadPoolExecutor(8) as pool:
                results = [pool.submit(call, policy(REJECT), guest=guest) for guest in guests]
                for result in (result.result() for result in results):
                    self.assertEqual((result.returncode, result.stderr), (0, ""))
            tables = self.everything().count("table inet virt-hooks-")
            self.assertEqual(tables, 50 if call == self.start else 0)
        self.assertEqual(self.everything(), self.host)


class Bridged(PolicyCase):
    """Guests behind a bridge of this namespace's, and beyond it another network, "world"."""

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
            run(["ip", *command.split()], check=True)

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


class Packets(Bridged):
    def test_a_connection_that_is_rejected_and_one_that_is_let_through(self):
        self.add_host("one", f"{GUEST}/24", "10.77.0.254", "br0")
        self.add_host("two", "10.77.0.6/24", "10.77.0.254", "br0")
        self.assertTrue(self.connects("one", 25))
        self.start(policy(REJECT))
        self.assertFalse(self.connects("one", 25))
        self.assertTrue(self.connects("one", 80))
        self.assertTrue(self.connects("two", 25))  # another guest's
        self.stop(policy(REJECT))
        self.assertTrue(self.connects("one", 25))

    def test_between_two_guests_of_a_bridge(self):
        self.add_host("one", f"{GUEST}/24", "10.77.0.254", "br0")
        self.add_host("two", "10.77.0.6/24", "10.77.0.254", "br0")
        self.listen("two", 25)
        self.listen("two", 80)
        drop = CHAIN.format(f"ip saddr {GUEST} tcp dport 25 drop")
        self.assertTrue(self.connects("one", 25, "10.77.0.6"))
        self.assert_says(self.start(policy(drop, family="bridge")), TABLE)
        self.assertFalse(self.connects("one", 25, "10.77.0.6"))
        self.assertTrue(self.connects("one", 80, "10.77.0.6"))


if __name__ == "__main__":
    unittest.main()
