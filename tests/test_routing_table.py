"""10-routing-table gives guests routing tables, and takes away exactly what it gave."""

import ctypes
import os
import re
import shutil
import socket
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from harness import CHECKOUT, network_state, run
from scripts import STOPPED, ScriptCase, guest_xml, put_copy_over_etc

NETWORK_NAMESPACE = 0x40000000  # CLONE_NEWNET
NAMES = Path("/etc/iproute2/rt_tables.d")
STATE = Path("/run/virt-hooks")
SYSTEM = "255\tlocal\n254\tmain\n253\tdefault\n0\tunspec\n#1\tinr.ruhep\n"
ROUTE = "default via 10.77.0.254 dev br0"
RULE = "from 10.77.0.5"


def setUpModule():
    put_copy_over_etc()


def table(*entries, **attributes):
    """A <routing-table> with these routes and rules."""
    given = {"id": "101", "name": "uplink2", **attributes}
    given = "".join(f" {key}={quoteattr(value)}" for key, value in given.items() if value != "-")
    return f"<routing-table{given}>{''.join(entries)}</routing-table>"


def route(text=ROUTE):
    return f"<route>{escape(text)}</route>"


def rule(text=RULE):
    return f"<rule>{escape(text)}</rule>"


WHOLE = table(route(), rule())


def ip(*words):
    return run(["ip", *words], check=True).stdout


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


class RoutingTable(ScriptCase):
    """A host of its own: its network has br0 with 10.77.0.1, 10.77.0.5 and fd77::1."""

    SCRIPT = "10-routing-table"

    def setUp(self):
        super().setUp()
        self.boot()
        shutil.rmtree(STATE, ignore_errors=True)
        shutil.rmtree("/etc/iproute2", ignore_errors=True)
        NAMES.mkdir(parents=True)
        (NAMES.parent / "rt_tables").write_text(SYSTEM)
        self.before = self.everything()

    def boot(self):
        outside = new_namespace()
        self.addCleanup(os.close, outside)
        self.addCleanup(enter, outside)
        for command in (
            "link set lo up",
            "link add br0 type veth peer name peer0",
            "link set peer0 addrgenmode none up",
            "link set br0 addrgenmode none up",
            "addr add 10.77.0.1/24 dev br0",
            "addr add 10.77.0.5/24 dev br0",
            "addr add fd77::1/64 dev br0 nodad",
        ):
            ip(*command.split())

    def everything(self):
        kernels = r".*proto kernel.*\n"  # whose flags may still change after a link went up
        state = network_state()
        return {
            key: re.sub(kernels, "", text) if isinstance(text, str) else text
            for key, text in state.items()
        }

    def start(self, elements=WHOLE, guest="web", **options):
        return self.call(elements, guest=guest, **options)

    def stop(self, elements=WHOLE, guest="web", **options):
        return self.call(elements, *STOPPED, guest=guest, **options)

    def assert_works(self, result):
        self.assertEqual((result.returncode, result.stderr), (0, ""))

    def assert_all_gone(self):
        self.assertEqual(self.everything(), self.before)

    def assert_refused(self, elements, *values, guest="web", **options):
        """An error, after which nothing has changed, also not in stopped, which libvirt calls."""
        before, kept = self.everything(), self.kept()
        super().assert_refused(elements, *values, guest=guest, **options)
        self.assert_works(self.stop(elements, guest=guest))
        self.assertEqual((self.everything(), self.kept()), (before, kept))

    def kept(self):
        """{file: what it says} of the state between start and stopped."""
        files = [path for path in STATE.rglob("*") if path.is_file()]
        return {str(path): text for path in files if (text := path.read_text())}


class OneGuest(RoutingTable):
    def test_it_names_the_table_and_sets_its_routes_and_rules(self):
        result = self.start()
        self.assert_says(result, "uplink2", ROUTE, RULE)
        self.assertEqual(ip("route", "show", "table", "uplink2").strip(), ROUTE)
        self.assertEqual(rules(), [(20000, f"{RULE} lookup 101")])
        self.assertEqual([path.parent for path in Path("/etc/iproute2").rglob("*virt*")], [NAMES])

    def test_stopped_takes_all_of_it_away(self):
        self.start()
        result = self.call(WHOLE, "stopped", "end", "destroyed")
        self.assert_works(result)
        self.assertIn("101", result.stdout)
        self.assert_all_gone()
        self.assert_says(self.stop())
        self.assert_all_gone()

    def test_it_works_through_the_link_in_the_stopped_directory(self):
        self.start()
        link = CHECKOUT / "lxc_stopped_end_-.d" / self.SCRIPT
        self.assert_works(run([link, "web", *STOPPED], input=guest_xml(WHOLE)))
        self.assert_all_gone()

    def test_a_second_start_changes_nothing(self):
        whole = table(route(), route(), rule(), rule("from fd77::5"))
        self.assert_works(self.start(whole))
        once = self.everything()
        self.assert_works(self.start(whole))
        self.assertEqual(self.everything(), once)
        self.assert_works(self.stop(whole))
        self.assert_all_gone()

    def test_several_tables_of_ipv4_and_ipv6_have_rules_of_one_priority(self):
        two = table(
            route("default via fd77::fe dev br0"),
            route("blackhole fd98::/64"),
            route("10.9.0.0/16 via 10.77.0.9"),
            route("10.1.0.0/16 nexthop via 10.77.0.2 weight 2 nexthop via 10.77.0.3 dev br0"),
            route("unreachable default metric 500"),
            rule("from fd77::5"),
            rule("to fd99::/64"),
            rule("to 10.9.0.0/16"),
            rule("not from 10.77.0.0/24 iif br0"),
            rule("fwmark 0x5/0xff"),
            rule("ipproto tcp dport 80-90"),
            id="70000",
            name="up_link-6.x",
        )
        self.assert_works(self.start(WHOLE + two))
        self.assertIn("default via fd77::fe dev br0", ip("-6", "route", "show", "table", "all"))
        self.assertIn("10.9.0.0/16 via 10.77.0.9", ip("route", "show", "table", "up_link-6.x"))
        self.assertEqual({number for number, _text in rules() + rules("-6")}, {20000})
        self.assertEqual((len(rules()), len(rules("-6"))), (5, 2))
        self.assert_works(self.stop(WHOLE + two))
        self.assert_all_gone()

    def test_a_rule_for_what_the_host_itself_sends(self):
        whole = table(route(), rule("iif lo"), rule("from fd77::5 iif lo"))
        self.assert_works(self.start(whole))
        self.assertEqual(rules(), [(20000, "from all iif lo lookup 101")])
        self.assert_works(self.stop(whole))
        self.assert_all_gone()

    def test_stopped_takes_it_away_whatever_the_element_says_by_then(self):
        whole = table(route(), rule(), rule("from fd77::5")) + table(
            route("blackhole fd98::/64"), rule("to fd98::/64"), id="102", name="six"
        )
        for elements in (
            "<routing-table/>",
            table(id="5", name="other"),
            table(rule("from nonsense"), id="x", name="a b"),
            "<routing-table><unknown/>text</routing-table>",
            table(rule("from 10.0.0.1 priority 5")),
        ):
            with self.subTest(elements):
                self.assert_works(self.start(whole))
                self.assertNotEqual(self.everything(), self.before)
                self.assert_works(self.stop(elements))
                self.assert_all_gone()

    def test_a_table_without_rules_goes_too(self):
        elements = table(route()) + table(id="102", name="empty")
        self.assert_works(self.start(elements))
        self.assertIn(ROUTE, ip("route", "show", "table", "uplink2"))
        self.assert_works(self.stop(elements))
        self.assert_all_gone()

    def test_what_an_earlier_definition_gave_goes_too(self):
        # libvirt may lose a guest's end; then it calls start again without stopped
        self.assert_works(self.start())
        self.assert_works(self.start(table(rule("to 10.9.0.1"), id="102", name="other")))
        self.assert_works(self.stop(table(rule("to 10.9.0.1"), id="102", name="other")))
        self.assert_all_gone()

    def test_what_went_by_itself_is_fine(self):
        whole = table(route(), rule(), rule("from fd77::5"))
        self.assert_works(self.start(whole))
        ip("rule", "del", "priority", "20000")
        ip("link", "del", "br0")
        self.before = self.everything()
        for path in NAMES.iterdir():
            path.unlink()
            del self.before[str(path)]
        self.assert_works(self.stop(whole))
        self.assertEqual((rules(), rules("-6")), ([], []))
        self.assertEqual(list(NAMES.iterdir()), [])

    def test_after_a_reboot_without_a_stop_it_starts_and_stops_as_ever(self):
        self.assert_works(self.start())
        self.boot()
        shutil.rmtree(STATE)
        self.assert_works(self.start())
        self.assertEqual(ip("route", "show", "table", "uplink2").strip(), ROUTE)
        self.assertEqual(rules(), [(20000, f"{RULE} lookup 101")])
        self.assert_works(self.stop())
        self.assert_all_gone()

    def test_where_etc_has_no_iproute2_it_is_made_for_everybody_to_read(self):
        for missing in (NAMES, NAMES.parent):
            with self.subTest(missing):
                shutil.rmtree(missing)
                before = self.everything()
                self.assert_works(self.start(umask=0o077))
                self.assertEqual(ip("route", "show", "table", "uplink2").strip(), ROUTE)
                for path in (NAMES.parent, NAMES, *NAMES.iterdir()):
                    self.assertEqual(path.stat().st_mode & 0o444, 0o444, path)
                self.assert_works(self.stop())
                self.assertEqual(self.everything(), before)


class Priority(RoutingTable):
    def test_each_guest_has_the_first_free_one_from_20000_on(self):
        for number, guest in enumerate(("one", "two", "three")):
            self.assert_works(self.start(table(rule(f"from 10.77.0.{number}")), guest=guest))
        self.assertEqual([number for number, _text in rules()], [20000, 20001, 20002])
        self.assert_works(self.stop(guest="two"))
        self.assert_works(self.start(table(rule("from 10.77.0.9")), guest="four"))
        self.assertIn((20001, "from 10.77.0.9 lookup 101"), rules())
        for guest in ("one", "three", "four"):
            self.assert_works(self.stop(guest=guest))
        self.assert_all_gone()

    def test_one_that_somebody_elses_rule_has_is_not_free(self):
        ip("rule", "add", "priority", "20000", "to", "10.1.0.0/16", "table", "main")
        ip("-6", "rule", "add", "priority", "20001", "to", "fd01::/64", "table", "main")
        self.before = self.everything()
        self.assert_works(self.start())
        self.assertIn((20002, f"{RULE} lookup 101"), rules())
        self.assert_works(self.stop())
        self.assert_all_gone()

    def test_a_file_in_run_keeps_it_for_the_guest(self):
        before = self.kept()
        self.assert_works(self.start())
        kept = set(self.kept().items()) - set(before.items())
        self.assertEqual(len(kept), 1, kept)
        self.assertIn("20000", " ".join(*kept))
        # by then it is the guest's own, whatever the rules are
        ip("rule", "del", "priority", "20000")
        self.assert_works(self.start(table(rule("from 10.77.0.9")), guest="two"))
        self.assertEqual([number for number, _text in rules()], [20001])
        self.assert_works(self.stop())
        self.assert_works(self.stop(guest="two"))
        self.assertEqual(self.kept(), before)

    def test_one_in_a_rule_is_refused(self):
        for word in ("priority", "pref", "preference", "prio", "order"):
            bad = table(route(), rule(f"from 10.77.0.6 {word} 77"))
            self.assert_refused(table(rule(), id="5", name="good") + bad, word)


class SeveralGuests(RoutingTable):
    def test_a_table_goes_with_the_last_guest_that_uses_it(self):
        two = table(route(), route("10.9.0.0/16 dev br0"), rule("from 10.77.0.6"))
        self.assert_works(self.start(guest="one"))
        self.assert_works(self.start(two, guest="two"))
        self.assert_works(self.stop(guest="one"))
        self.assertEqual(rules(), [(20001, "from 10.77.0.6 lookup 101")])
        self.assertIn(ROUTE, ip("route", "show", "table", "uplink2"))
        self.assert_works(self.stop(two, guest="two"))
        self.assert_all_gone()

    def test_the_same_rule_of_two_guests_goes_with_each(self):
        for guest in ("one", "two"):
            self.assert_works(self.start(guest=guest))
        self.assertEqual([number for number, _text in rules()], [20000, 20001])
        self.assert_works(self.stop(guest="two"))
        self.assertEqual(rules(), [(20000, f"{RULE} lookup 101")])
        self.assert_works(self.stop(guest="one"))
        self.assert_all_gone()

    def test_a_rule_that_says_less_takes_none_with_it_that_says_more(self):
        wide, narrow = table(rule("iif br0")), table(rule("from 10.77.0.6 iif br0"))
        for first, second in (("one", "two"), ("two", "one")):
            self.assert_works(self.start(wide, guest=first))
            self.assert_works(self.start(narrow, guest=second))
            self.assert_works(self.stop(wide, guest=first))
            self.assertEqual([text for _n, text in rules()], ["from 10.77.0.6 iif br0 lookup 101"])
            self.assert_works(self.stop(narrow, guest=second))
            self.assert_all_gone()

    def test_a_rule_that_somebody_else_has_added_keeps_the_table(self):
        self.assert_works(self.start())
        ip("rule", "add", "to", "10.9.0.1", "priority", "77", "lookup", "101")
        self.assert_works(self.stop())
        self.assertEqual(rules(), [(77, "from all to 10.9.0.1 lookup 101")])
        self.assertEqual(ip("route", "show", "table", "101").strip(), ROUTE)

    def test_guests_with_odd_names_are_told_apart(self):
        names = ("..", ".", "a b", "é", "-rf", "lock", "20000", "$(id)", "n" * 200)
        for name in names:
            self.assert_works(self.start(guest=name))
        self.assertEqual(len({number for number, _text in rules()}), len(names))
        for name in names:
            self.assert_works(self.stop(guest=name))
        self.assert_all_gone()

    def test_fifty_at_once_leave_everything_byte_for_byte_as_it_was(self):
        def each(call, *numbers):
            def one(number):
                shared = table(route(), rule(f"from 10.77.1.{number}"), rule(f"to fd99::{number}"))
                own = table(rule(f"to 10.9.0.{number}"), id=f"{200 + number}", name=f"own{number}")
                return call(shared + own * (number % 2), guest=f"guest{number}", timeout=300)

            here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
            self.addCleanup(os.close, here)
            with ThreadPoolExecutor(8, initializer=enter, initargs=(here,)) as pool:
                for result in pool.map(one, numbers):
                    self.assert_works(result)

        shutil.rmtree(NAMES)
        self.before = self.everything()
        each(self.start, *range(50))
        self.assertEqual(len({number for number, _text in rules()}), 50)
        self.assertEqual({number for number, _text in rules()}, {n for n, _text in rules("-6")})
        self.assertEqual(len(rules()) + len(rules("-6")), 50 + 25 + 50)
        each(self.stop, *range(0, 50, 3))
        each(self.start, *range(0, 50, 3))
        self.assertEqual(len(rules()) + len(rules("-6")), 50 + 25 + 50)
        self.assertEqual(ip("route", "show", "table", "uplink2").strip(), ROUTE)
        each(self.stop, *range(50))
        self.assert_all_gone()


class Refusals(RoutingTable):
    def refuse(self, bad, *values):
        self.assert_refused(table(route(), rule(), id="7", name="good") + bad, *values)

    def test_what_is_no_id_or_no_name(self):
        for number in ("", "-1", "x", "1.0", "4294967296", "1e2"):
            with self.subTest(id=number):
                self.refuse(table(route(), rule(), id=number), "id", number)
        for name in ("", "a b", "../a", "a#b", "102"):
            with self.subTest(name=name):
                self.refuse(table(route(), rule(), name=name), "name", name)
        self.refuse(table(id="-"), "id")
        self.refuse(table(name="-"), "name")

    def test_tables_of_the_system(self):
        for number in ("0", "253", "254", "255"):
            self.refuse(table(route(), rule(), id=number), number)
        for name in ("main", "local", "default", "unspec", "all", "cache"):
            self.refuse(table(route(), rule(), name=name), name)
        shutil.rmtree(NAMES.parent)  # as on Debian 13
        for name in ("main", "local", "default"):
            self.refuse(table(route(), rule(), name=name), name)
        for number in ("0", "253", "254", "255"):
            self.refuse(table(route(), rule(), id=number), number)

    def test_an_id_or_a_name_that_means_another_table(self):
        usr = Path("/usr/share/iproute2")
        upper, work = self.directory / "upper", self.directory / "work"
        upper.mkdir()
        work.mkdir()
        layers = f"lowerdir=/usr/share,upperdir={upper},workdir={work}"
        self.mount("-t", "overlay", "-o", layers, "tests", "/usr/share")
        self.addCleanup(run, ["umount", "/usr/share"], check=True)
        usr.mkdir(exist_ok=True)
        for place in (NAMES.parent, usr):
            (place / "rt_tables.d").mkdir(exist_ok=True)
            for path in (place / "rt_tables.d/admin.conf", place / "rt_tables"):
                for line, value in {
                    "101\tisp": "101",
                    " 101 isp # ours": "101",
                    "0x65 isp": "101",
                    "102 uplink2": "uplink2",
                }.items():
                    with self.subTest(path=path, line=line):
                        path.write_text(f"# names\n{SYSTEM}\n{line}\n")
                        self.refuse(table(route(), rule()), value)
                path.unlink()  # else it would hide, from ip as well, the one in /usr

    def test_two_tables_that_disagree(self):
        self.assert_refused(table(route(), rule()) + table(name="b"), "101")
        self.assert_refused(table(route(), rule()) + table(id="5"), "uplink2")
        self.assert_works(self.start(guest="one"))
        self.assert_refused(table(rule(), name="b"), "101", guest="two")
        self.assert_refused(table(rule(), id="5"), "uplink2", guest="two")
        self.assert_works(self.stop(guest="one"))
        self.assert_all_gone()

    def test_a_name_that_the_administrator_has_given_already_is_used_and_stays(self):
        (NAMES / "admin.conf").write_text("101 uplink2\n")
        self.before = self.everything()
        self.assert_works(self.start())
        self.assertEqual(ip("route", "show", "table", "uplink2").strip(), ROUTE)
        self.assert_works(self.stop())
        self.assert_all_gone()


class Failing(RoutingTable):
    def test_after_a_failure_half_way_stopped_leaves_nothing(self):
        for bad in (
            route("default dev nowhere0"),
            route("10.9.0.0/16 via 192.0.2.1"),
            route("nonsense"),
            rule("fwmark x"),
            rule("from 10.0.0.300"),
        ):
            with self.subTest(bad):
                whole = table(route(), rule(), rule("from fd77::5"), bad)
                value = re.sub("<[^>]*>", "", bad)
                self.assert_error(self.start(whole), value, programs_said=None)
                self.assert_works(self.stop(whole))
                self.assert_all_gone()

    def test_a_start_that_is_killed_is_undone_by_stopped(self):
        for word in ("route", "rule"):
            real = shutil.which("ip")
            text = (
                "import os, sys\n"
                f"os.spawnv(os.P_WAIT, {real!r}, sys.argv)\n"
                f"if {word!r} in sys.argv and {{'add', 'replace'}} & set(sys.argv):\n"
                "    os.kill(os.getppid(), 9)\n"
            )
            result = self.start(environment=self.path_with("ip", text))
            self.assertEqual(result.returncode, -9, result.stderr)
            self.assertNotEqual(self.everything(), self.before)
            self.assert_works(self.stop())
            self.assert_all_gone()


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
        self.assert_works(self.start())
        self.assertTrue(reached("10.77.0.5"))
        self.assertFalse(reached("10.77.0.1"))
        self.assert_works(self.stop())
        self.assertFalse(reached("10.77.0.5"))


class DryRun(RoutingTable):
    def test_it_says_what_it_would_do_and_does_nothing(self):
        self.assert_says(self.start(dry_run=True), "uplink2", ROUTE, RULE)
        self.assert_all_gone()
        self.assert_works(self.start())
        before = self.everything(), self.kept()
        result = self.stop(dry_run=True)
        self.assert_works(result)
        self.assertIn("101", result.stdout)
        self.assertEqual((self.everything(), self.kept()), before)

    def test_it_refuses_what_is_taken(self):
        (NAMES / "admin.conf").write_text("101 isp\n")
        self.assert_error(self.start(dry_run=True), "101")


if __name__ == "__main__":
    unittest.main()
