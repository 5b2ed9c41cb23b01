"""10-routing-table gives guests routing tables, and takes away exactly what it gave."""

import ctypes
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from harness import CHECKOUT, network_state, run, script
from scripts import STOPPED, ScriptCase, guest_xml, put_copy_over_etc, uuid_of

NETWORK_NAMESPACE = 0x40000000  # CLONE_NEWNET
NAMES = Path("/etc/iproute2/rt_tables.d")
STATE = Path("/run/virt-hooks")
SYSTEM = "255\tlocal\n254\tmain\n253\tdefault\n0\tunspec\n#1\tinr.ruhep\n"
ROUTE = "default via 10.77.0.254 dev br0"
RULE = "from 10.77.0.5"
NOBODY = {"user": 65534, "group": 65534, "extra_groups": []}

# an ip(8) that appends to a file, after each call, what rules and routes there are then
WATCHING = """
import os, sys
status = os.spawnv(os.P_WAIT, {real!r}, sys.argv)
os.system("{{ {real} rule; {real} route show table all; echo; }} >>{log}")
sys.exit(status)
"""


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
    EXAMPLE = '<routing-table id="101" name="uplink"><rule>from 10.0.0.1</rule></routing-table>'
    PROGRAM = "ip"

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
        for word in ("priority", "pref", "preference", "prio", "order", "p", "pr", "o", "or"):
            bad = table(route(), rule(f"from 10.77.0.6 {word} 77"))
            self.assert_refused(table(rule(), id="5", name="good") + bad, word)

    def test_those_of_somebody_elses_rules_are_left_out_and_these_rules_stay(self):
        for family, number in (("-4", 20000), ("-6", 20001), ("-4", 20003), ("-4", 32765)):
            ip(family, "rule", "add", "priority", str(number), "fwmark", "1", "table", "5")
        self.before = self.everything()
        for guest in ("one", "two"):
            self.assert_works(self.start(table(rule()), guest=guest))
        self.assertEqual([n for n, text in rules() if RULE in text], [20002, 20004])
        for guest in ("one", "two"):
            self.assert_works(self.start(table(rule()), guest=guest))
            self.assert_works(self.stop(table(rule()), guest=guest))
        self.assert_all_gone()

    def test_where_none_is_free_that_is_an_error_and_nothing_is_done(self):
        batch = self.directory / "batch"
        lines = [f"rule add priority {n} to 10.1.0.0/16 table 5\n" for n in range(20000, 32766)]
        batch.write_text("".join(lines))
        ip("-batch", str(batch))
        for dry_run in (False, True):
            self.assert_refused(WHOLE, "priority", dry_run=dry_run)


class RunningGuest(RoutingTable):
    """start, called again while the guest runs: by "virt-hooks replay GUEST start", for example."""

    FIRST = table(
        route(), route("blackhole fd98::/64"), rule(), rule("iif br0"), rule("from fd77::5")
    )
    WHOLE = FIRST + table(rule("to 10.9.0.0/16"), id="102", name="b")
    RULES = (
        (20001, f"{RULE} lookup 101"),
        (20001, "from all iif br0 lookup 101"),
        (20001, "from all to 10.9.0.0/16 lookup 102"),
    )

    def setUp(self):
        super().setUp()
        # another guest has the first priority as this one starts, and none later
        self.assert_works(self.start(table(rule("from 10.77.0.9"), id="9", name="x"), guest="x"))
        self.assert_works(self.start(self.WHOLE))
        self.assert_works(self.stop(table(id="9", name="x"), guest="x"))
        self.running = self.everything(), self.kept()

    def watched(self, elements):
        """Start again; return what rules and routes there were after each call of ip(8)."""
        log = self.directory / "log"
        text = WATCHING.format(real=shutil.which("ip"), log=log)
        self.assert_works(self.start(elements, environment=self.path_with("ip", text)))
        return log.read_text().split("\n\n")[:-1]

    def test_nothing_changes_where_nothing_is_missing(self):
        self.assert_works(self.start(self.WHOLE))
        self.assertEqual((self.everything(), self.kept()), self.running)

    def test_what_has_gone_comes_back_with_the_priority_that_it_had(self):
        for commands in (
            # systemd-networkd removes rules that are not its own when it starts
            ["-4 rule flush priority 20001", "-6 rule flush priority 20001"],
            ["rule del from 10.77.0.5 priority 20001"],
            ["-6 rule del priority 20001"],
            ["route flush table 101"],
            ["-6 route flush table 101", "rule del iif br0 priority 20001"],
        ):
            with self.subTest(commands):
                for command in commands:
                    ip(*command.split())
                self.assertNotEqual(self.everything(), self.running[0])
                # who starts meanwhile gets another priority
                self.assert_works(self.start(table(rule("from 10.77.0.7")), guest="other"))
                self.assert_works(self.start(table(rule("from 10.77.0.7")), guest="another"))
                self.assert_works(self.start(self.WHOLE))
                for guest in ("other", "another"):
                    self.assert_works(self.stop(table(rule("from 10.77.0.7")), guest=guest))
                self.assertEqual((self.everything(), self.kept()), self.running)

    def test_names_come_back(self):
        for path in NAMES.iterdir():
            path.unlink()
        self.assert_works(self.start(self.WHOLE))
        self.assertEqual((self.everything(), self.kept()), self.running)

    def test_at_no_moment_is_it_without_its_rules_and_routes(self):
        for elements in (self.WHOLE, table(route(), rule("to 10.8.0.0/16"), rule())):
            states = self.watched(elements)
            self.assertGreater(len(states), 5)
            for state in states:
                self.assertRegex(state, rf"{RULE} lookup (101|uplink2)")
                self.assertRegex(state, rf"{ROUTE} table (101|uplink2)".replace(" dev", ".*dev"))
        self.assertEqual(rules(), [(20001, "from all to 10.8.0.0/16 lookup 101"),
                                   (20001, f"{RULE} lookup 101")])  # fmt: skip
        self.assertEqual(rules("-6"), [])
        self.assertFalse((NAMES / "virt-hooks-102.conf").exists())

    def test_killed_at_any_call_of_ip_it_leaves_rules_that_the_next_start_mends(self):
        real, count = shutil.which("ip"), self.directory / "count"
        text = (
            "import os, sys\n"
            f"os.spawnv(os.P_WAIT, {real!r}, sys.argv)\n"
            f"left = int(open({str(count)!r}).read())\n"
            f"open({str(count)!r}, 'w').write(str(left - 1))\n"
            "if not left:\n"
            "    os.kill(os.getppid(), 9)\n"
        )
        environment = self.path_with("ip", text)
        number, killed = 0, True
        while killed:
            count.write_text(str(number))
            killed = self.start(self.WHOLE, environment=environment).returncode == -9
            self.assertIn(f"{RULE} lookup 101", [rule for _number, rule in rules()])
            if number % 2:
                self.assert_works(self.start(self.WHOLE))
                self.assertEqual((self.everything(), self.kept()), self.running)
            number += 1
        self.assertGreater(number, 10)
        self.assertEqual((self.everything(), self.kept()), self.running)

    def test_killed_in_its_second_start_it_is_taken_away_by_stopped(self):
        real = shutil.which("ip")
        for word in ("add", "flush"):
            text = (
                "import os, sys\n"
                f"os.spawnv(os.P_WAIT, {real!r}, sys.argv)\n"
                f"if {word!r} in sys.argv:\n"
                "    os.kill(os.getppid(), 9)\n"
            )
            result = self.start(self.WHOLE, environment=self.path_with("ip", text))
            self.assertEqual(result.returncode, -9, result.stderr)
            self.assertNotEqual(self.everything(), self.running[0])
            self.assert_works(self.stop(self.WHOLE))
            self.assert_all_gone()
            self.assert_works(self.start(self.WHOLE))

    def test_a_mistake_in_its_new_definition_leaves_it_the_rules_that_it_has(self):
        for bad in (rule("from 10.0.0.300"), route("10.9.0.0/16 via 192.0.2.1")):
            result = self.start(self.WHOLE + table(rule("from 10.77.0.8"), bad, id="7", name="c"))
            self.assert_error(result, re.sub("<[^>]*>", "", bad), programs_said=True)
            self.assertEqual(set(self.RULES) - set(rules()), set())
            self.assert_works(self.start(self.WHOLE))
            self.assertEqual(rules(), list(self.RULES))
        self.assert_works(self.stop(self.WHOLE + table(id="7", name="c")))
        self.assert_all_gone()


class State(RoutingTable):
    """What is in /run/virt-hooks, of others and of this script's."""

    def test_it_is_a_file_with_the_guests_uuid_in_its_name(self):
        self.assert_works(self.start())
        self.assertIn("20000", (STATE / f"routing-table-{uuid_of('web')}").read_text())
        self.assert_works(self.stop())
        self.assertEqual(self.kept(), {})

    def test_what_others_have_there_changes_nothing_and_is_not_changed(self):
        STATE.mkdir(0o700)
        names = ("lock", "ramdisk-20000", "routing", "routing-table.bak", "routing-table-bin",
                 "20000", uuid_of("web"))  # fmt: skip
        for name in names:
            (STATE / name).write_bytes(b"20000 \xff\0 20001\n")
        for name in (
            "directory",
            "routing-table",
            "routing-table-directory",
            f"ramdisk-{uuid_of('web')}",
        ):
            (STATE / name).mkdir()
        os.mkfifo(STATE / "fifo")
        os.mkfifo(STATE / "routing-table-fifo")
        (STATE / "routing-table-dangling").symlink_to("/srv/nowhere")
        (STATE / "routing-table-bin").write_bytes(b"\xff\0\n")
        before = {path.name for path in STATE.iterdir()}
        self.assert_works(self.start(timeout=20))
        self.assertEqual(rules(), [(20000, f"{RULE} lookup 101")])
        self.assert_says(self.start(dry_run=True, timeout=20), "101", RULE, "20000", "20001")
        self.assert_works(self.stop(timeout=20))
        self.assert_all_gone()
        self.assertEqual(before - {path.name for path in STATE.iterdir()}, set())
        for name in set(names) - {"routing-table-bin"}:
            self.assertEqual((STATE / name).read_bytes(), b"20000 \xff\0 20001\n")

    def test_an_empty_one_of_a_start_that_was_killed_is_none(self):
        self.assert_works(self.start())
        self.assert_works(self.stop())
        path = STATE / f"routing-table-{uuid_of('web')}"
        path.write_text("")
        self.assert_works(self.start())
        self.assertEqual(rules(), [(20000, f"{RULE} lookup 101")])
        self.assert_works(self.stop())
        path.write_text("")
        self.assert_works(self.stop())
        self.assertFalse(path.exists())
        self.assert_all_gone()

    def test_the_directory_becomes_roots_alone_whoever_made_it(self):
        for mode, owner in ((0o755, 0), (0o777, 0), (0o1777, 0), (0o700, 65534), (0o770, 65534)):
            with self.subTest(mode=oct(mode), owner=owner):
                STATE.mkdir()
                STATE.chmod(mode)
                os.chown(STATE, owner, owner)
                self.assert_works(self.start())
                status = STATE.stat()
                self.assertEqual((status.st_mode, status.st_uid, status.st_gid), (0o40700, 0, 0))
                self.assert_works(self.stop())
                shutil.rmtree(STATE)
        self.assert_works(self.start(umask=0))
        self.assertEqual(STATE.stat().st_mode, 0o40700)
        for path in STATE.iterdir():
            self.assertEqual(path.stat().st_mode & 0o022, 0, path)
        self.assert_works(self.stop())

    def test_a_user_who_locks_what_he_can_open_holds_no_guest_up(self):
        STATE.mkdir()
        STATE.chmod(0o755)
        self.assert_works(self.start())
        STATE.chmod(0o755)
        text = (
            "import fcntl, os, sys\n"
            "for name in (sys.argv[1], *(f'{sys.argv[1]}/{n}' for n in os.listdir(sys.argv[1]))):\n"
            "    try:\n"
            "        fcntl.flock(os.open(name, os.O_RDONLY), fcntl.LOCK_EX)\n"
            "    except PermissionError:\n"
            "        continue\n"
            "print('holds', flush=True)\n"
            "sys.stdin.read()\n"
        )
        command = [sys.executable, "-IS", "-c", text, STATE]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(command, **pipes, **NOBODY) as process:
            self.addCleanup(process.kill)
            self.assertEqual(process.stdout.readline(), b"holds\n")
            self.assert_works(self.start(timeout=20))
            self.assert_works(self.stop(timeout=20))
            process.kill()
        self.assert_all_gone()


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

    def test_two_at_once_that_give_a_table_two_names_do_not_both_get_it(self):
        gate, entered = self.directory / "gate", self.directory / "entered"
        os.mkfifo(gate)
        os.mkfifo(entered)
        text = (
            "import os, sys\n"
            "if not os.path.exists(%r):\n"
            "    open(%r, 'w').close()\n"
            "    open(%r).read()\n"
            "    open(%r, 'w').close()\n"
            "os.execv(%r, sys.argv)\n"
        )
        done = str(self.directory / "done")
        text %= (done, str(entered), str(gate), done, shutil.which("ip"))
        environment = {"LC_ALL": "C", "PATH": self.path_with("ip", text)["PATH"]}
        quick = {"LC_ALL": "C", "PATH": os.environ["PATH"]}
        calls = []
        for guest, name, variables in (("one", "b", environment), ("two", "c", quick)):
            xml = self.write(f"{guest}.xml", guest_xml(table(rule(), name=name), guest))
            command = [self.command()[0], guest, *self.command()[2:]]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            with open(xml) as stdin:
                process = subprocess.Popen(command, env=variables, stdin=stdin, **pipes)
            self.addCleanup(process.communicate)
            self.addCleanup(process.kill)
            calls.append(process)
            if guest == "one":
                entered.read_text()  # it has begun, and waits
        waits = rf"-> FLOCK .* {calls[1].pid} "
        while not re.search(waits, Path("/proc/locks").read_text()):
            self.assertIsNone(calls[1].poll())
            time.sleep(0.02)
        gate.write_text("")
        for process in calls:
            process.wait(60)
        self.assertEqual(calls[0].returncode, 0)
        self.assertEqual(calls[1].returncode, 1)
        self.assertIn("101", calls[1].stderr.read())
        self.assert_works(self.stop(guest="one"))
        self.assert_works(self.stop(guest="two"))
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
        for number in ("", "-1", "x", "1.0", "4294967296", "1e2", "007", "\u0661", "9" * 5000):
            with self.subTest(id=number):
                self.refuse(table(route(), rule(), id=number), "id", number)
        for name in ("", "a b", "../a", "a#b", "102"):
            with self.subTest(name=name):
                self.refuse(table(route(), rule(), name=name), "name", name)
        self.refuse(table(id="-"), "id")
        self.refuse(table(name="-"), "name")

    def test_what_makes_ip_take_another_table_abbreviated_or_not(self):
        for words in ("t 7", "ta 7", "tab 7", "tabl 7", "table 7", "v red", "vr red", "vrf red"):
            word = f"'{words.split()[0]}'"
            self.refuse(table(route(f"10.9.0.0/16 dev br0 {words}")), word)
            self.refuse(table(route(f"{words} 10.9.0.0/16 dev br0")), word)
        for words in ("ta 7", "tab 7", "table 7", "lookup 7"):
            self.refuse(table(rule(f"from 10.77.0.6 {words}")), f"'{words.split()[0]}'")
            self.refuse(table(rule(f"{words} from 10.77.0.6")), f"'{words.split()[0]}'")

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

    def test_it_finds_the_mistakes_in_rules(self):
        for text in (
            "form 10.1.1.1",
            "from 10.1.1.300",
            "from 10.1.1.1/33",
            "from 10.1.1.1 from",
            "fwmark x",
            "from fd77::5 to 10.1.1.1",
            "from fd77:::5",
            "iif",
            "to localhost",
            "dport x",
            "uidrange 5",
            "l3mdev",
            "help",
        ):
            with self.subTest(text):
                result = self.start(WHOLE + table(rule(text), id="5", name="b"), dry_run=True)
                self.assert_error(result, text, "ip ", programs_said=True)
                self.assertEqual(result.stdout, "")
                self.assert_all_gone()
                self.assertEqual(self.kept(), {})

    def test_it_finds_no_mistakes_in_rules_that_have_none(self):
        texts = ("from 10.1.1.1", "iif nowhere0", "oif nowhere0", "not to fd99::/64", "fwmark 5/7",
                 "ipproto tcp dport 80-90", "uidrange 5-7", "tos 0x10", "from all", "iif lo",
                 "from 10.1.1.1 suppress_prefixlength 0")  # fmt: skip
        whole = table(route("10.9.0.0/16 dev nowhere0"), *map(rule, texts))
        self.assert_says(self.start(whole, dry_run=True), "uplink2", "nowhere0", *texts)
        self.assert_all_gone()

    def test_an_ordinary_user_reads_that_rules_were_not_tried(self):
        for mode in (None, 0o700, 0o755):
            if mode:
                STATE.mkdir(exist_ok=True)
                STATE.chmod(mode)
            result = self.start(table(route(), rule("form 10.1.1.1")), dry_run=True, **NOBODY)
            self.assert_works(result)
            [line] = [line for line in result.stdout.splitlines() if "root" in line]
            self.assertIn("form 10.1.1.1", line)

    def test_of_a_guest_that_is_off_it_says_what_stopped_would_take_away(self):
        two = WHOLE + table(rule("to fd98::/64"), id="102", name="b")
        result = self.stop(two, dry_run=True)
        self.assert_works(result)
        for number in ("101", "102"):
            self.assertIn(number, result.stdout)
        self.assert_all_gone()
        self.assert_works(self.stop("<routing-table/>", dry_run=True))


class WithoutIpv6(RoutingTable):
    """A kernel started with ipv6.disable=1: a file of /proc is missing, and ip -6 fails."""

    def call(self, elements, *phase, guest="web", dry_run=False):
        text = (
            "import os, sys\n"
            "if '-6' in sys.argv:\n"
            "    sys.exit('RTNETLINK answers: Operation not supported')\n"
            f"os.execv({shutil.which('ip')!r}, sys.argv)\n"
        )
        environment = {"LC_ALL": "C", **self.path_with("ip", text)}
        if dry_run:
            environment["VIRT_HOOKS_DRY_RUN"] = "1"
        strace = ["strace", "-qq", "-o", "/dev/null", "-P", "/proc/net/if_inet6"]
        strace += ["-e", "trace=?newfstatat,?stat,?statx"]
        strace += ["-e", "inject=?newfstatat,?stat,?statx:error=ENOENT"]
        command = [*strace, script(self.SCRIPT), guest, *(phase or ("start", "begin", "-"))]
        result = run(command, input=guest_xml(elements, guest), env=environment)
        result.stderr = re.sub("^strace: .*\\n", "", result.stderr)  # that it has resolved the path
        return result

    def test_tables_of_ipv4_are_given_and_taken_away(self):
        for dry_run in (True, False):
            self.assert_says(self.start(dry_run=dry_run), "uplink2", ROUTE, RULE)
        self.assert_works(self.start())
        self.assertEqual(rules(), [(20000, f"{RULE} lookup 101")])
        self.assert_works(self.stop())
        self.assert_all_gone()

    def test_a_rule_or_a_route_of_ipv6_is_an_error(self):
        for bad in (rule("from fd77::5"), route("blackhole fd98::/64")):
            value = re.sub("<[^>]*>", "", bad)
            self.assert_error(self.start(table(bad)), value, programs_said=True)
            self.assert_works(self.stop(table(bad)))
            self.assert_all_gone()
        result = self.start(table(rule("from fd77::5")), dry_run=True)
        self.assert_error(result, "from fd77::5", programs_said=True)


if __name__ == "__main__":
    unittest.main()
