"""10-routing-table gives guests routing tables, and takes away exactly what it gave."""

import ctypes
import os
import shutil
import socket
import subprocess
import threading
import unittest
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from harness import LINKS, SCRIPTS, TestCase, domain, run, script, snapshot

NAME = "10-routing-table"
LINK = "lxc_stopped_end_-.d/10-routing-table"
NETWORK_NAMESPACE = 0x40000000  # CLONE_NEWNET
NAMES = Path("/etc/iproute2/rt_tables.d")
STATE = Path("/run/virt-hooks/routing-table")
SYSTEM = "255\tlocal\n254\tmain\n253\tdefault\n0\tunspec\n#1\tinr.ruhep\n"
ROUTE = "default via 10.77.0.254 dev br0"
RULE = "from 10.77.0.5"
BAD_IDS = ("", "0", "00", "0101", "-1", "+1", "1.0", "1e2", "0x65", " 101", "101 ", "1_0", "٣", "²",
           "main", "a", "4294967296", "9" * 5000, "../101", "101/..")  # fmt: skip
BAD_NAMES = (
    "", " ", "-a", ".a", "_a", "..", ".", "a b", " a", "a/b", "../a", "a\nb", "a#b", "é", "aé", "٣",
    "1", "101", "0x65", "0XfF", "0x", "a" * 64, "a;b", "$(id)", "'", '"', "a\tb", "a\\b",
)  # fmt: skip
BAD_ROUTES = (
    "default via 10.77.0.254 table 5", "table 5 default", "default dev br0 tab 5", "default t 5",
    "default dev br0 ta 5", "default vrf red", "default v red", "default dev table", "-6 default",
    "default dev br0 -force", "default dev -x", "default dev", "default dev br0 via", "via", "tab",
    "10.0.0.0/33", "10.0.0", "10/8", "1.2.3.256", "localhost", "fe80::g", "fd00::/129", "blackhole",
    "default via gateway", "10.0.0.0/8 via fd00::1", "fd00::/8 via 10.77.0.254", "to 10.0.0.0/8",
    "default lookup 5", "default; reboot", "$(reboot)", "default dev br0 help", "help", "default x",
    "default nhid 5", "default encap mpls 5", "default via inet6", "default via inet6 x dev br0",
    "default via inet 1.2.3", "exact default", "default dev br0 mtu lock", "add default", "flush",
)  # fmt: skip
BAD_RULES = (
    "from 10.0.0.1 table 5", "from 10.0.0.1 lookup 5", "from 10.0.0.1 t 5", "from 10.0.0.1 ta 5",
    "from 10.0.0.1 tabl 5", "lookup main", "table main", "goto 100", "from all goto 32766", "g 100",
    "nop", "n", "from all nop", "blackhole", "from all prohibit", "unreachable", "l3mdev", "from",
    "iif table", "iif goto", "oif lookup", "iif nop", "-6 from fd00::1", "from -1", "help", "h",
    "from 10.0.0.300", "from 10.0.0.0/40", "from x", "to nowhere", "from 10.0.0.1 to fd00::1",
    "from 10.0.0.1 nat 10.0.0.2", "from 10.0.0.1 map-to 10.0.0.2", "type blackhole", "priority",
    "from 10.0.0.1 priority 0", "from 10.0.0.1 priority -1", "from 10.0.0.1 priority x", "fwm 1",
    "from 10.0.0.1 pref 5 priority 6", "from 10.0.0.1 prio 5", "10.0.0.1", "from 10.0.0.1; reboot",
)  # fmt: skip


def setUpModule():
    """Put a copy over /etc: on Debian 13 there need not be an /etc/iproute2 to mount on."""
    copy = "/srv/test-etc"
    subprocess.run(["cp", "-a", "/etc", copy], check=True)
    subprocess.run(["mount", "--bind", copy, "/etc"], check=True)
    unittest.addModuleCleanup(shutil.rmtree, copy)
    unittest.addModuleCleanup(subprocess.run, ["umount", "--lazy", "/etc"], check=True)


def table(*entries, number="101", name="uplink2"):
    """A <routing-table> with these routes and rules."""
    return element("".join(entries), id=number, name=name)


def element(inside, **attributes):
    given = "".join(f" {key}={quoteattr(value)}" for key, value in attributes.items())
    return f"<routing-table{given}>{inside}</routing-table>"


def route(text=ROUTE):
    return f"<route>{escape(text)}</route>"


def rule(text=RULE):
    return f"<rule>{escape(text)}</rule>"


def ip(*words):
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def rules(family="-4"):
    """What ip rule shows, apart from the system's own rules, as (priority, text)."""
    lines = [line.split(":\t") for line in ip("-N", family, "rule").splitlines()]
    return [(int(number), text.strip()) for number, text in lines if 0 < int(number) < 32766]


def enter(namespace):
    if ctypes.CDLL(None, use_errno=True).setns(namespace, NETWORK_NAMESPACE):
        raise OSError(ctypes.get_errno(), "setns")


def new_namespace():
    """Enter a new network namespace; return a descriptor of the one that was left."""
    left = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    if ctypes.CDLL(None, use_errno=True).unshare(NETWORK_NAMESPACE):
        raise OSError(ctypes.get_errno(), "unshare")
    return left


class RoutingTable(TestCase):
    """A host of its own: its network has br0 with 10.77.0.1, 10.77.0.5 and fd77::1."""

    def setUp(self):
        super().setUp()
        outside = new_namespace()
        self.addCleanup(os.close, outside)
        self.addCleanup(enter, outside)
        for command in (
            "link set lo up",
            "link add br0 type veth peer name peer0",
            "link set peer0 up",
            "link set br0 up",
            "addr add 10.77.0.1/24 dev br0",
            "addr add 10.77.0.5/24 dev br0",
            "addr add fd77::1/64 dev br0 nodad",
        ):
            ip(*command.split())
        shutil.rmtree(STATE, ignore_errors=True)
        shutil.rmtree("/etc/iproute2", ignore_errors=True)
        NAMES.mkdir(parents=True)
        (NAMES.parent / "rt_tables").write_text(SYSTEM)

    def start(self, *tables, guest="web", **options):
        return self.call(tables, guest, "start", "begin", "-", **options)

    def stop(self, *tables, guest="web", reason="-", **options):
        return self.call(tables, guest, "stopped", "end", reason, **options)

    def call(self, tables, guest, *phase, **options):
        return self.run_script(NAME, domain("".join(tables), "x"), guest, *phase, **options)

    def state(self):
        """All that the script can change."""
        routes = [
            line
            for family in ("-4", "-6")
            for line in ip(family, "route", "show", "table", "all").splitlines()
            if "proto kernel" not in line  # whose flags may still change after a link went up
        ]
        return [ip("-4", "rule"), ip("-6", "rule"), routes, snapshot(NAMES.parent)]

    def assert_all_gone(self, before):
        self.assertEqual(self.state(), before)
        self.assertEqual(os.listdir(STATE), ["lock"])

    def assert_refused(self, tables, *parts, dry_run=False):
        """These get a one-line error at the start; the stop after it is fine; nothing changes."""
        before = self.state()
        result = self.start(*tables, dry_run=dry_run)
        self.assert_one_line_error(result, f"{NAME}: web: routing-table", *parts)
        self.assertEqual(result.stdout, "")
        self.assertFalse(STATE.exists())
        result = self.stop(*tables, dry_run=dry_run)
        self.assert_succeeds(result)
        self.assertEqual(result.stdout, "")
        self.assertEqual(self.state(), before)
        shutil.rmtree(STATE, ignore_errors=True)


class OneGuest(RoutingTable):
    def test_it_names_the_table_and_sets_its_routes_and_rules(self):
        result = self.start(table(route(), rule()))
        self.assert_succeeds(result)
        self.assertEqual(result.stdout.splitlines(), [
            "named table 101 uplink2",
            f"set the route {ROUTE} in table 101",
            f"added the rule {RULE} for table 101",
        ])  # fmt: skip
        self.assertEqual(ip("route", "show", "table", "uplink2").strip(), ROUTE)
        self.assertIn(f"{RULE} lookup uplink2", ip("rule"))
        self.assertEqual(rules(), [(30000, f"{RULE} lookup 101")])

    def test_at_stop_all_of_it_goes(self):
        before = self.state()
        self.assert_succeeds(self.start(table(route(), rule())))
        result = self.stop(table(route(), rule()))
        self.assert_succeeds(result)
        self.assertEqual(result.stdout.splitlines(), [
            f"removed the rule {RULE} for table 101",
            "removed the routes of table 101",
            "removed the name of table 101",
        ])  # fmt: skip
        self.assert_all_gone(before)

    def test_at_stop_it_goes_whatever_the_shutoff_reason(self):
        before = self.state()
        for reason in ("destroyed", "saved", "migrated", "failed", "from snapshot"):
            with self.subTest(reason=reason):
                self.assert_succeeds(self.start(table(route(), rule())))
                self.assert_succeeds(self.stop(table(route(), rule()), reason=reason))
                self.assert_all_gone(before)

    def test_it_works_through_the_link_in_the_stopped_directory(self):
        before = self.state()
        self.assert_succeeds(self.start(table(route(), rule())))
        link = script(NAME).parent.parent / LINK
        self.assertEqual(os.readlink(link), LINKS[LINK])
        self.assertNotEqual(SCRIPTS[NAME], link.parent.name)
        xml = domain(table(route(), rule()))
        self.assert_succeeds(run([link, "web", "stopped", "end", "-"], input=xml))
        self.assert_all_gone(before)

    def test_twice_changes_nothing(self):
        before = self.state()
        whole = table(route(), rule(), rule("from 10.77.0.6 priority 100"), rule("from fd77::5"))
        self.assert_succeeds(self.start(whole))
        once = self.state(), snapshot(STATE)
        result = self.start(whole)
        self.assert_succeeds(result)
        self.assertNotIn("added", result.stdout)
        self.assertNotIn("named", result.stdout)
        self.assertEqual((self.state(), snapshot(STATE)), once)
        self.assert_succeeds(self.stop(whole))
        self.assert_all_gone(before)
        result = self.stop(whole)
        self.assert_succeeds(result)
        self.assertEqual(result.stdout, "")
        self.assert_all_gone(before)

    def test_a_route_and_a_rule_that_stand_twice_are_there_once(self):
        before = self.state()
        whole = table(route(), route(), rule(), rule("from  10.77.0.5\n"))
        self.assert_succeeds(self.start(whole, whole))
        self.assertEqual(len(rules()), 1)
        self.assert_succeeds(self.stop(whole, whole))
        self.assert_all_gone(before)

    def test_several_tables(self):
        before = self.state()
        both = (
            table(route(), rule()),
            table(route("10.9.0.0/16 via 10.77.0.9"), rule("to 10.9.0.0/16"), number="4294967295",
                  name="3rd.up_link-"),
            table(number="1", name="empty"),
        )  # fmt: skip
        self.assert_succeeds(self.start(*both))
        found = {text for _priority, text in rules()}
        self.assertEqual(found, {"from 10.77.0.5 lookup 101",
                                 "from all to 10.9.0.0/16 lookup 4294967295"})  # fmt: skip
        self.assertEqual(len(os.listdir(NAMES)), 3)
        self.assert_succeeds(self.stop(*both))
        self.assert_all_gone(before)

    def test_ipv6_goes_by_the_addresses(self):
        before = self.state()
        whole = table(
            route(), route("default via fd77::fe dev br0"), route("fd99::/64 dev br0"),
            route("blackhole fd98::/64"), route("10.8.0.0/16 via inet6 fe80::1 dev br0"),
            rule("from fd77::5"), rule("to fd99::/64 priority 7"), rule("from ::/0 iif br0"),
        )  # fmt: skip
        self.assert_succeeds(self.start(whole))
        found = ip("-6", "route", "show", "table", "uplink2")
        for text in ("default via fd77::fe dev br0", "fd99::/64 dev br0", "blackhole fd98::/64"):
            self.assertIn(text, found)
        found = ip("-4", "route", "show", "table", "uplink2")
        self.assertEqual(found.split(), f"{ROUTE} 10.8.0.0/16 via inet6 fe80::1 dev br0".split())
        self.assertEqual({text for _priority, text in rules("-6")}, {
            "from fd77::5 lookup 101", "from all to fd99::/64 lookup 101",
            "from all iif br0 lookup 101",
        })  # fmt: skip
        self.assertEqual(rules("-4"), [])
        self.assert_succeeds(self.stop(whole))
        self.assert_all_gone(before)

    def test_routes_and_rules_of_many_kinds(self):
        before = self.state()
        whole = table(
            route("10.1.0.0/16 nexthop via 10.77.0.2 weight 2 nexthop via 10.77.0.3 dev br0"),
            route("unreachable default metric 500"), route("throw 10.2.0.0/16"),
            route("10.3.0.0/16 dev br0 scope link src 10.77.0.5 mtu lock 1400"),
            rule("not from 10.77.0.0/24 iif br0"), rule("fwmark 0x5/0xff"),
            rule("from all oif br0"), rule("ipproto tcp dport 80-90"),
            rule("uidrange 1000-1001"), rule("iif gone0"),
            rule("from 10.77.0.5 suppress_prefixlength 0 pref 200"),
        )  # fmt: skip
        self.assert_succeeds(self.start(whole))
        self.assertEqual(len(rules()), 7)
        self.assertEqual(rules()[0][0], 200)
        once = self.state()
        self.assert_succeeds(self.start(whole))
        self.assertEqual(self.state(), once)
        self.assert_succeeds(self.stop(whole))
        self.assert_all_gone(before)

    def test_what_went_by_itself_is_fine(self):
        before = self.state()
        whole = table(route(), rule(), rule("from fd77::5"))
        self.assert_succeeds(self.start(whole))
        ip("rule", "del", "priority", "30000")
        ip("link", "del", "br0")
        (NAMES / "virt-hooks-101.conf").unlink()
        self.assert_succeeds(self.stop(whole))
        self.assert_all_gone(before)

    def test_what_the_guest_got_goes_also_where_its_xml_has_changed(self):
        before = self.state()
        self.assert_succeeds(self.start(table(route(), rule())))
        self.assert_succeeds(self.start(table(route("10.9.0.0/16 dev br0"), rule("to 10.9.0.1"))))
        self.assert_succeeds(self.stop(table(number="5", name="other")))
        self.assert_all_gone(before)

    def test_a_guest_without_a_table_costs_nothing(self):
        before = self.state()
        for xml in (domain("<mkdirs/>"), domain("<!-- routing-table -->"), domain("")):
            result = self.run_script(NAME, xml, "web", "start", "begin", "-")
            self.assert_succeeds(result)
            self.assertEqual(result.stdout, "")
        self.assertEqual(self.state(), before)
        self.assertFalse(STATE.exists())


class Failing(RoutingTable):
    def test_after_a_failure_half_way_stopped_leaves_nothing(self):
        before = self.state()
        for bad, said in (
            (route("default dev nowhere0"), "nowhere0"),
            (route("10.9.0.1/16 dev br0"), "Invalid prefix"),
            (route("10.9.0.0/16 via 192.0.2.1"), "invalid gateway"),
            (rule("fwmark x"), "fwmark"),
            (rule("from 10.0.0.1 sport 5-1"), ""),
            (rule("fwmark x priority 30000"), "fwmark"),
        ):
            with self.subTest(bad):
                whole = table(route(), rule(), rule("from fd77::5"), bad)
                result = self.start(whole)
                self.assertEqual(result.returncode, 1)
                *messages, last = result.stderr.splitlines()
                self.assertIn(said, "".join(messages))
                self.assertTrue(messages)
                self.assertIn(f"{NAME}: web: routing-table/r", last)
                self.assertIn("ip failed, exit status", last)
                self.assertNotEqual(self.state(), before)
                self.assert_succeeds(self.stop(whole))
                self.assert_all_gone(before)

    def test_a_start_that_is_killed_is_undone_by_stopped(self):
        before = self.state()
        whole = table(route(), rule())
        text = f'#!/bin/sh\n[ "$2" != rule ] || kill $PPID\nexec {shutil.which("ip")} "$@"\n'
        fake = self.write("bin/ip", text, 0o755)
        environment = {"PATH": f"{fake.parent}:{os.environ['PATH']}", "LC_ALL": "C"}
        command = [script(NAME), "web", "start", "begin", "-"]
        result = run(command, input=domain(whole), env=environment)
        self.assertEqual(result.returncode, -15, result.stderr)
        self.assertIn("uplink2", ip("route", "show", "table", "all"))
        self.assert_succeeds(self.stop(whole))
        self.assert_all_gone(before)

    def test_without_ip_it_fails_in_one_line(self):
        command = [script(NAME), "web", "start", "begin", "-"]
        result = run(command, input=domain(table(rule())), env={"PATH": "/nowhere", "LC_ALL": "C"})
        self.assert_one_line_error(result, "web: routing-table", "ip: No such file")


class Refusals(RoutingTable):
    def test_bad_ids(self):
        self.assert_refused([element("", name="a")], "id is missing")
        for number in BAD_IDS:
            with self.subTest(number=number[:20]):
                self.assert_each([table(number=number)], "id=")

    def test_bad_names(self):
        self.assert_refused([element("", id="5")], "name is missing")
        for name in BAD_NAMES:
            with self.subTest(name=name[:20]):
                self.assert_each([table(name=name)], "name=")

    def test_tables_of_the_system(self):
        for number in ("0", "253", "254", "255"):
            self.assert_each([table(number=number)], f"id='{number}'")
        for name in ("main", "local", "default", "unspec", "all", "cache"):
            self.assert_each([table(name=name)], f"name='{name}'")

    def test_words_that_lead_elsewhere_and_what_is_no_address(self):
        for text in BAD_ROUTES:
            with self.subTest(route=text):
                self.assert_each([table(route(), route(text))], f"routing-table/route {text!r}: ")
        for text in BAD_RULES:
            with self.subTest(rule=text):
                self.assert_each([table(route(), rule(text))], f"routing-table/rule {text!r}: ")

    def test_what_it_does_not_know(self):
        for bad, part in (
            (element("", id="5", name="a", family="ipv6"), "unknown attribute family='ipv6'"),
            (table("<via>10.0.0.1</via>"), "unknown element <via>"),
            (table("text"), "text, where only elements are allowed"),
            (table("<route/>"), "routing-table/route: empty"),
            (table("<rule> </rule>"), "routing-table/rule: empty"),
            (table("<rule table='5'>from 10.0.0.1</rule>"), "unknown attribute table='5'"),
        ):
            with self.subTest(bad):
                self.assert_refused([table(route(), number="7", name="good"), bad], part)
                self.assert_refused([bad], part, dry_run=True)

    def assert_each(self, tables, *parts):
        """As assert_refused, in the phase start alone, for tables of which there are many."""
        result = self.start(*tables)
        self.assert_one_line_error(result, f"{NAME}: web: routing-table", *parts)
        self.assertEqual((result.stdout, rules(), os.listdir(NAMES)), ("", [], []))
        self.assertFalse((STATE / "101").exists())

    def usr_share(self):
        """An empty /usr/share/iproute2, until the test ends."""
        usr = Path("/usr/share/iproute2")
        if not usr.exists():
            usr.mkdir()
            self.addCleanup(usr.rmdir)
        subprocess.run(["mount", "-t", "tmpfs", "tests", usr], check=True)
        self.addCleanup(subprocess.run, ["umount", usr], check=True)
        return usr

    def test_an_id_or_a_name_that_means_another_table(self):
        usr = self.usr_share()
        for directory in (NAMES.parent, usr):
            (directory / "rt_tables.d").mkdir(exist_ok=True)
            for path in (directory / "rt_tables", directory / "rt_tables.d/admin.conf"):
                for line in (
                    "101\tisp",
                    " 101 isp # ours",
                    "0x65 isp",
                    "102 uplink2",
                    "0x66 uplink2",
                ):
                    with self.subTest(path=path, line=line):
                        path.write_text(f"# names\n{SYSTEM}\nbad\n{line}\n")
                        result = self.start(table(route(), rule()))
                        taken = "id='101'" if "isp" in line else "name='uplink2'"
                        other = "101 is 'isp'" if "isp" in line else "102 is 'uplink2'"
                        self.assert_one_line_error(result, taken, other, str(path))
                        self.assert_succeeds(self.stop(table(route(), rule())))
                        self.assertEqual((rules(), os.listdir(STATE)), ([], ["lock"]))
                path.unlink()  # else it would hide, from ip as well, the one in /usr
                (directory / "rt_tables.d/README").write_text("101 isp\n")

    def test_a_name_that_already_means_this_table_is_used(self):
        (NAMES / "admin.conf").write_text("101 uplink2\n")
        before = self.state()
        self.assert_succeeds(self.start(table(route(), rule())))
        self.assertEqual(snapshot(NAMES.parent), before[-1])
        self.assertEqual(ip("route", "show", "table", "uplink2").strip(), ROUTE)
        self.assert_succeeds(self.stop(table(route(), rule())))
        self.assert_all_gone(before)

    def test_a_name_that_a_file_in_etc_hides_is_not_taken(self):
        usr = self.usr_share()
        (usr / "rt_tables").write_text("101 isp\n102 uplink2\n101 uplink2\n")
        self.assert_succeeds(self.start(table(route(), rule())))
        self.assertEqual(ip("route", "show", "table", "uplink2").strip(), ROUTE)

    def test_two_tables_of_one_guest_that_disagree(self):
        for other in (table(name="b"), table(number="5")):
            result = self.start(table(), other)
            self.assert_one_line_error(result, "is taken", "this guest")
            self.assertEqual(os.listdir(STATE), ["lock"])

    def test_another_guests_table_under_another_name(self):
        self.assert_succeeds(self.start(table(route(), rule()), guest="one"))
        before = self.state()
        for other in (table(name="b"), table(number="5")):
            self.assert_one_line_error(self.start(other, guest="two"), "two: ", "is taken", "101")
            self.assert_succeeds(self.stop(other, guest="two"))
            self.assertEqual(self.state(), before)

    def test_a_table_that_has_routes_of_somebody_else(self):
        for text in (ROUTE, "fd99::/64 dev br0"):
            with self.subTest(text):
                ip("route", "add", "table", "101", *text.split())
                before = self.state()
                self.assert_one_line_error(
                    self.start(table(route(), rule())), "id='101' has routes"
                )
                self.assert_succeeds(self.stop(table(route(), rule())))
                self.assertEqual(self.state(), before)
                ip("route", "del", "table", "101", *text.split())


class Names(RoutingTable):
    def test_a_stale_name_of_before_a_reboot_is_replaced(self):
        before = self.state()
        for number, name in (("101", "uplink2"), ("101", "uplink3"), ("102", "uplink2")):
            with self.subTest(number=number, name=name):
                (NAMES / "virt-hooks-101.conf").write_text("101\tuplink2\n")
                (NAMES / "virt-hooks-101.conf~").write_text("101\tuplink2\n")
                whole = table(route(), rule(), number=number, name=name)
                self.assert_succeeds(self.start(whole))
                (NAMES / "virt-hooks-101.conf~").unlink()  # nobody's but an editor's
                self.assertEqual(os.listdir(NAMES), [f"virt-hooks-{number}.conf"])
                self.assertEqual(ip("route", "show", "table", name).strip(), ROUTE)
                self.assert_succeeds(self.stop(whole))
                self.assert_all_gone(before)

    def test_directories_that_it_made_go_also_after_a_reboot(self):
        for made in (NAMES, NAMES.parent):
            with self.subTest(made=made):
                shutil.rmtree(made)
                before = snapshot(Path("/etc"))
                self.assert_succeeds(self.start(table(route(), rule()), umask=0o077))
                self.assertEqual(NAMES.stat().st_mode & 0o777, 0o755)
                path = NAMES / "virt-hooks-101.conf"
                self.assertEqual(path.stat().st_mode & 0o777, 0o644)
                shutil.rmtree(STATE)  # a reboot
                ip("rule", "del", "priority", "30000")
                ip("route", "flush", "table", "101")
                self.assert_succeeds(self.start(table(route(), rule())))
                self.assertEqual(ip("route", "show", "table", "uplink2").strip(), ROUTE)
                self.assert_succeeds(self.stop(table(route(), rule())))
                self.assertEqual(snapshot(Path("/etc")), before)

    def test_directories_that_it_made_stay_where_somebody_uses_them(self):
        shutil.rmtree(NAMES)
        self.assert_succeeds(self.start(table(route(), rule())))
        (NAMES / "admin.conf").write_text("7 seven\n")
        self.assert_succeeds(self.stop(table(route(), rule())))
        self.assertEqual((NAMES / "admin.conf").read_text(), "7 seven\n")
        self.assertFalse((NAMES / "virt-hooks-101.conf").exists())


class ManyGuests(RoutingTable):
    def test_the_table_goes_with_the_last_guest_that_uses_it(self):
        before = self.state()
        one = table(route(), rule())
        two = table(route(), route("10.9.0.0/16 dev br0"), rule("from 10.77.0.6"))
        self.assert_succeeds(self.start(one, guest="one"))
        self.assert_succeeds(self.start(two, guest="two"))
        self.assertEqual(len(rules()), 2)
        self.assert_succeeds(self.stop(one, guest="one"))
        self.assertEqual([text for _, text in rules()], ["from 10.77.0.6 lookup 101"])
        self.assertIn(ROUTE, ip("route", "show", "table", "uplink2"))
        self.assert_succeeds(self.stop(two, guest="two"))
        self.assert_all_gone(before)

    def test_a_rule_that_two_guests_have_goes_with_the_second(self):
        before = self.state()
        for text in ("to 10.9.0.0/16", "to 10.9.0.0/16 priority 77"):
            whole = table(route(), rule(text))
            for guest in ("one", "two"):
                self.assert_succeeds(self.start(whole, guest=guest))
            self.assertEqual(len(rules()), 1)
            result = self.stop(whole, guest="two")
            self.assert_succeeds(result)
            self.assertEqual(result.stdout, "")  # not even for a moment
            self.assertEqual(len(rules()), 1)
            self.assert_succeeds(self.stop(whole, guest="one"))
            self.assert_all_gone(before)

    def test_a_wide_rule_of_one_guest_takes_no_narrow_one_of_another_with_it(self):
        before = self.state()
        for ending in ("", " priority 77"):
            wide = table(route(), rule(f"iif br0{ending}"))
            narrow = table(route(), rule(f"from 10.77.0.6 iif br0{ending}"))
            self.assert_succeeds(self.start(wide, guest="one"))
            self.assert_succeeds(self.start(narrow, guest="two"))
            self.assertEqual(len(rules()), 2)
            self.assert_succeeds(self.stop(wide, guest="one"))
            found = [text for _, text in rules()]
            self.assertEqual(found, ["from 10.77.0.6 iif br0 lookup 101"])
            self.assert_succeeds(self.stop(narrow, guest="two"))
            self.assert_all_gone(before)

    def test_a_rule_that_the_kernel_takes_for_another_is_an_error(self):
        narrow = table(route(), rule("from 10.77.0.6 iif br0 priority 77"))
        wide = table(route(), rule("iif br0 priority 77"))
        self.assert_succeeds(self.start(narrow, guest="one"))
        before = self.state()
        for _again in range(2):
            result = self.start(wide, guest="two")
            self.assert_one_line_error(result, "two: ", "'iif br0 priority 77'", "of priority 77")
        self.assert_succeeds(self.stop(wide, guest="two"))
        self.assertEqual(self.state(), before)

    def test_a_rule_that_somebody_else_has_added_stays(self):
        ip("rule", "add", *RULE.split(), "priority", "77", "lookup", "101")
        before = self.state()
        whole = table(route(), rule(f"{RULE} priority 77"))
        self.assert_one_line_error(self.start(whole), "of priority 77")
        self.assert_succeeds(self.stop(whole))
        self.assert_all_gone(before)

    def test_guests_with_odd_names_are_told_apart(self):
        before = self.state()
        names = ("..", ".", "a b", "a\tb", "a\nb", "é", "-rf", "lock", "new", "101", "n" * 255,
                 "é" * 127, "$(id)", "%s", "'", "../../../etc/passwd")  # fmt: skip
        whole = table(route())
        for name in names:
            self.assert_succeeds(self.start(whole, guest=name))
            self.assert_succeeds(self.stop(whole, guest=f"{name}x"))
        self.assertEqual(sorted(os.listdir(STATE)), ["101", "lock"])
        for name in names:
            self.assertIn("uplink2", ip("route", "show", "table", "all"))
            self.assert_succeeds(self.stop(whole, guest=name))
        self.assert_all_gone(before)

    def test_guests_are_told_apart_by_their_uuid(self):
        before = self.state()
        whole = table(route(), rule())
        xml = [domain(whole).replace("<metadata>", f"<uuid>{digit * 8}-1c1e-4b52-9d0e-3c0f5d9a7a11"
                                     "</uuid><metadata>") for digit in "ab"]  # fmt: skip
        for text in xml:
            self.assert_succeeds(self.run_script(NAME, text, "web", "start", "begin", "-"))
        once = self.state()
        self.assert_succeeds(self.run_script(NAME, xml[0], "web", "stopped", "end", "-"))
        self.assertEqual(self.state(), once)
        self.assert_succeeds(self.run_script(NAME, xml[1], "new-name", "stopped", "end", "-"))
        self.assert_all_gone(before)

    def test_fifty_starts_and_stops_leave_nothing(self):
        shutil.rmtree(NAMES)
        before = self.state()
        for number in range(50):
            whole = table(route(), rule(f"from 10.77.1.{number}"), rule(f"to fd99::{number}"))
            self.assert_succeeds(self.start(whole, guest=f"guest{number % 7}"))
            self.assert_succeeds(self.stop(whole, guest=f"guest{number % 7}"))
        self.assert_all_gone(before)

    def test_ten_guests_in_parallel_share_a_table(self):
        shutil.rmtree(NAMES)
        before = self.state()
        results = []

        def live(number, calls):
            whole = table(route(), rule(f"from 10.77.1.{number}"))
            for call in calls:
                results.append(call(whole, guest=f"guest{number}"))

        def in_parallel(*calls):
            threads = [threading.Thread(target=live, args=(n, calls)) for n in range(10)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            while results:
                self.assert_succeeds(results.pop())

        in_parallel(self.start, self.stop, self.start)
        self.assertEqual(len({priority for priority, _ in rules()}), 10)
        self.assertEqual({text for _, text in rules()},
                         {f"from 10.77.1.{number} lookup 101" for number in range(10)})  # fmt: skip
        self.assertEqual(ip("route", "show", "table", "uplink2").strip(), ROUTE)
        in_parallel(self.stop)
        self.assert_all_gone(before)


class Packets(RoutingTable):
    def test_a_packet_of_the_guests_takes_the_route_that_main_does_not_have(self):
        here = new_namespace()  # in which the other end is, with 198.51.100.1 behind it
        try:
            there = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
            server = socket.socket()
            self.addCleanup(server.close)
            self.addCleanup(os.close, there)
            ip("link", "set", "lo", "up")
            ip("addr", "add", "198.51.100.1/32", "dev", "lo")
            enter(here)
            ip("link", "set", "peer0", "netns", f"/proc/{os.getpid()}/fd/{there}")
            enter(there)
            ip("addr", "add", "10.77.0.254/24", "dev", "peer0")
            ip("link", "set", "peer0", "up")
            server.bind(("198.51.100.1", 5000))
            server.listen()
        finally:
            enter(here)
            os.close(here)

        def reached(source):
            with socket.socket() as client:
                client.settimeout(30)
                client.bind((source, 0))
                try:
                    client.connect(("198.51.100.1", 5000))
                except OSError as error:
                    self.assertEqual(error.strerror, "Network is unreachable")
                    return False
                connection, (peer, _port) = server.accept()
                connection.close()
                self.assertEqual(peer, source)
                return True

        self.assertFalse(reached("10.77.0.5"))
        self.assert_succeeds(self.start(table(route(), rule())))
        self.assertTrue(reached("10.77.0.5"))
        self.assertFalse(reached("10.77.0.1"))
        self.assert_succeeds(self.stop(table(route(), rule())))
        self.assertFalse(reached("10.77.0.5"))


class DryRun(RoutingTable):
    def test_it_says_what_it_would_do_and_does_nothing(self):
        before = self.state()
        result = self.start(table(route(), rule()), dry_run=True)
        self.assert_succeeds(result)
        self.assertEqual(result.stdout.splitlines(), [
            "would name table 101 uplink2",
            f"would set the route {ROUTE} in table 101",
            f"would add the rule {RULE} for table 101",
        ])  # fmt: skip
        self.assertEqual(self.state(), before)
        self.assertFalse(STATE.exists())

    def test_it_says_what_it_would_remove_and_does_nothing(self):
        self.assert_succeeds(self.start(table(route(), rule())))
        before = self.state(), snapshot(STATE)
        result = self.stop(table(route(), rule()), dry_run=True)
        self.assert_succeeds(result)
        self.assertEqual(result.stdout.splitlines(), [
            f"would remove the rule {RULE} for table 101",
            "would remove the routes of table 101",
            "would remove the name of table 101",
        ])  # fmt: skip
        self.assertEqual((self.state(), snapshot(STATE)), before)

    def test_it_refuses_what_is_taken(self):
        (NAMES / "admin.conf").write_text("101 isp\n")
        self.assert_one_line_error(self.start(table(), dry_run=True), "id='101' is taken", "isp")
        self.assertFalse(STATE.exists())


if __name__ == "__main__":
    unittest.main()
