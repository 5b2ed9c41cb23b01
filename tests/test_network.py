"""The hooks of libvirt's network driver and of its daemon; many guests with networks of theirs."""

import contextlib
import os
import shutil
import signal
import unittest

from harness import CHECKOUT, TestCase, network_state, run
from libvirt import (
    HOOKS,
    NETWORK,
    PID_FILE,
    Guest,
    LostGuest,
    install,
    put_hook,
    root_directory,
    start_libvirtd,
    start_libvirtd_with_hooks,
    virsh,
    wait_until,
)
from scripts import put_copy_over_etc

# a script: its arguments, and what it gets on stdin, on one line
RECORDER = """#!/bin/sh
echo "$* $(tr -d '\\n')" >>{records}
"""
DEFINITION = """
    <network>
      <name>lan</name>
      <metadata><hooks xmlns="urn:virt-hooks:1">{elements}</hooks></metadata>
      <forward mode='route'/>
      <bridge name='virbr7' stp='off'/>
      <ip address='10.77.0.1' netmask='255.255.255.0'/>
    </network>
"""
ELEMENTS = """
    <routing-table id="101" name="uplink2">
      <route>10.99.0.0/24 via 10.77.0.254 dev virbr7</route><rule>from 10.77.0.5</rule>
    </routing-table>
    <network-policy>
      <nft>
        chain from-network {
          type filter hook forward priority filter; policy accept;
          iifname "virbr7" tcp dport 25 reject
        }
      </nft>
    </network-policy>
"""
GUESTS = 10  # long_guests.py has fifty
SCRIPTS = ("10-routing-table", "20-network-policy")


def setUpModule():
    put_copy_over_etc()


class HooksCase(TestCase):
    def setUp(self):
        super().setUp()
        self.records = self.directory / "records"
        self.addCleanup(run, ["nft", "flush", "ruleset"])  # libvirt leaves chains of its own

    def record(self, *directories):
        for directory in directories:
            put_hook(self, f"{directory}/90-record", RECORDER.format(records=self.records))

    def recorded(self):
        return self.records.read_text().splitlines() if self.records.exists() else []


class Network(HooksCase):
    def setUp(self):
        super().setUp()
        start_libvirtd_with_hooks(self.addCleanup, "--driver", "network")
        # a network gets the dispatcher alone: the directories are the administrator's
        for phase in ("started_begin", "stopped_end"):
            directory = HOOKS / f"network_{phase}_-.d"
            directory.mkdir()
            for script in SCRIPTS:
                shutil.copy(CHECKOUT / "lxc_start_begin_-.d" / script, directory)

    def define(self, elements=ELEMENTS):
        definition = self.write("lan.xml", DEFINITION.format(elements=elements))
        self.assert_succeeds(virsh("net-define", definition, uri=NETWORK))
        self.addCleanup(virsh, "net-undefine", "lan", uri=NETWORK)
        self.addCleanup(virsh, "net-destroy", "lan", uri=NETWORK)

    def test_a_network_has_its_policy_and_its_routing_table_while_it_runs(self):
        self.define()
        # libvirt's own chains stay
        bare = DEFINITION.format(elements="").replace("lan", "bare").replace("virbr7", "virbr8")
        bare = self.write("bare.xml", bare)
        self.assert_succeeds(virsh("net-create", bare, uri=NETWORK))
        self.assert_succeeds(virsh("net-destroy", "bare", uri=NETWORK))
        before = network_state()
        phases = ["start begin -", "started begin -", "updated begin -", "stopped end -"]
        self.record(*(f"network_{phase}.d".replace(" ", "_") for phase in phases))
        self.assert_succeeds(virsh("net-start", "lan", uri=NETWORK))
        routes = run(["ip", "route", "show", "table", "uplink2"]).stdout
        self.assertEqual(routes, "10.99.0.0/24 via 10.77.0.254 dev virbr7 linkdown \n")
        self.assertIn("from 10.77.0.5 lookup uplink2", run(["ip", "rule"]).stdout)
        self.assertIn("from-network", run(["nft", "list", "ruleset"]).stdout)
        text = "<txt name='example' value='x'/>"
        update = virsh("net-update", "lan", "add", "dns-txt", text, "--live", uri=NETWORK)
        self.assert_succeeds(update)
        self.assert_succeeds(virsh("net-destroy", "lan", uri=NETWORK))
        self.assertEqual(network_state(), before)
        calls = self.recorded()
        self.assertEqual([call.partition(" <")[0] for call in calls],
                         [f"lan {phase}" for phase in phases])  # fmt: skip
        for call in calls:
            self.assertRegex(call, "<hookData> *<network> *<name>lan</name>.*</hookData>$")
            self.assertIn('<routing-table id="101" name="uplink2">', call)

    def test_a_network_whose_script_fails_does_not_start_and_its_user_reads_why(self):
        before = network_state()
        self.define(ELEMENTS.replace("10.77.0.254", "nowhere"))
        self.addCleanup(run, ["ip", "link", "delete", "virbr7"])  # libvirt leaves it
        result = virsh("net-start", "lan", uri=NETWORK)
        self.assertEqual(result.returncode, 1)
        for part in ("10-routing-table", "lan", "route", "nowhere"):
            self.assertIn(part, result.stderr)
        self.assertEqual(network_state()["ip rule"], before["ip rule"])


class Daemon(HooksCase):
    def test_the_daemon_starts_reloads_and_ends_without_xml(self):
        install("--driver", "daemon", "--no-reload")
        self.addCleanup(shutil.rmtree, HOOKS)
        self.record("daemon_start_-_start.d", "daemon_reload_begin_SIGHUP.d")
        self.record("daemon_shutdown_-_shutdown.d")
        libvirtd = start_libvirtd(self.addCleanup)
        wait_until(self.recorded)
        self.assertEqual(self.recorded(), ["- start - start "])
        os.kill(int(PID_FILE.read_text()), signal.SIGHUP)
        wait_until(lambda: len(self.recorded()) > 1)
        libvirtd.stop()
        calls = ["- start - start ", "- reload begin SIGHUP ", "- shutdown - shutdown "]
        self.assertEqual(self.recorded(), calls)

    def test_what_fails_in_its_hooks_does_not_keep_the_daemon_from_running(self):
        install("--driver", "daemon", "--no-reload")
        self.addCleanup(shutil.rmtree, HOOKS)
        put_hook(self, "daemon_start_-_start.d/50-fail", f"#!/bin/sh\n: >{self.records}\nexit 3\n")
        start_libvirtd(self.addCleanup)
        self.assertTrue(self.records.exists())
        self.assertEqual(virsh("uri").returncode, 0)


class ManyGuests(HooksCase):
    def test_guests_that_run_at_once_leave_the_network_as_it_was(self):
        start_libvirtd_with_hooks(self.addCleanup)
        self.assert_succeeds(run(["ip", "link", "add", "uplink", "type", "bridge"]))
        self.addCleanup(run, ["ip", "link", "delete", "uplink"])
        quiet = ["ip", "link", "set", "uplink", "addrgenmode", "none"]  # no routes of the kernel's
        self.assert_succeeds(run(quiet))
        self.assert_succeeds(run(["ip", "addr", "add", "10.88.0.1/24", "dev", "uplink"]))
        self.assert_succeeds(run(["ip", "link", "set", "uplink", "up"]))
        root = root_directory(self.directory / "root")  # of them all: they write nothing
        before = network_state()
        guests = [
            Guest(f"guest{number}", root, "true", ELEMENTS
                  .replace("10.77.0.254 dev virbr7", "10.88.0.2")
                  .replace("10.77.0.5", f"10.77.0.{number}")
                  .replace("uplink2", f"uplink{number % 3}").replace("101", f"{101 + number % 3}"))
            for number in range(GUESTS)
        ]  # fmt: skip
        for guest in guests:
            self.addCleanup(guest.remove)
        for guest in guests:
            guest.start()
        during = network_state()
        for number in range(GUESTS):
            self.assertIn(f"from 10.77.0.{number} lookup uplink{number % 3}", during["ip rule"])
        self.assertEqual(during["nft --stateless list ruleset"].count("chain from-network"), GUESTS)
        for guest in guests:
            with contextlib.suppress(LostGuest):  # then it is destroyed
                guest.end()
            guest.remove()
        self.assertEqual(network_state(), before)


if __name__ == "__main__":
    unittest.main()
