"""The Ansible role on several hosts, over ssh: Debian 12 and 13, one of them with libvirtd.

Each host has its own address on a bridge in a network namespace, from which ansible-playbook runs.
"""

import json
import os
import re
import subprocess
import time
import unittest

from hosts import ANSIBLE, HOOKS, run
from test_deb import FOREIGN, newer_checkout
from test_role import DEPLOY, OK_SCRIPT, OWN, RoleTestCase

SUITES = ("bookworm", "trixie", "bookworm")


class FleetTestCase(RoleTestCase):
    def start_fleet(self, count=3):
        self.controller = subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE)
        self.addCleanup(self.controller.wait)
        self.addCleanup(self.controller.stdin.close)
        self.enter = ["nsenter", f"--target={self.controller.pid}", "--net"]
        while os.readlink(f"/proc/{self.controller.pid}/ns/net") == os.readlink(
            "/proc/self/ns/net"
        ):
            time.sleep(0.01)
        self.ip("link", "set", "lo", "up")
        self.ip("link", "add", "br0", "type", "bridge")
        self.ip("address", "add", "10.76.0.254/24", "dev", "br0")
        self.ip("link", "set", "br0", "up")
        key = self.directory / "key"
        self.done(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key])
        self.hosts = {f"host{n}": self.start_host(n, key) for n in range(1, count + 1)}
        lines = [
            f"{name} ansible_host=10.76.0.{number}" for number, name in enumerate(self.hosts, 1)
        ]
        (self.directory / "inventory").write_text("\n".join(lines) + "\n")

    def ip(self, *arguments):
        self.done([*self.enter, "ip", *arguments])

    def start_host(self, number, key):
        host = self.host(SUITES[number % len(SUITES) - 1])
        veth = f"veth{number}"
        self.ip("link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", str(host.pid))
        self.ip("link", "set", veth, "master", "br0", "up")
        host.done("hostname", f"host{number}")
        host.done("ip", "address", "add", f"10.76.0.{number}/24", "dev", "eth0")
        host.done("ip", "link", "set", "eth0", "up")
        (host.root / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
        host.write("root/.ssh/authorized_keys", key.with_suffix(".pub").read_text(), 0o600)
        host.done("/usr/sbin/sshd")
        return host

    def roll_out(self, *arguments, **variables):
        """Run the playbook; return {host: its changes, or "failed" or "unreachable"}."""
        options = (
            f"-o UserKnownHostsFile={self.directory}/known -o StrictHostKeyChecking=accept-new"
        )
        command = [ANSIBLE / "ansible-playbook", "-i", self.directory / "inventory", "-u", "root"]
        command += ["--private-key", self.directory / "key", "--ssh-extra-args", options]
        command += ["--timeout", "5", *arguments]
        for name, value in {"drivers": ["lxc"], **variables}.items():
            command += ["-e", f'{{"virt_hooks_{name}": {json.dumps(value)}}}']
        environment = {**os.environ, "ANSIBLE_HOME": f"{self.directory}/a", "ANSIBLE_NOCOLOR": "1"}
        # another test's connection to this address is of no use here
        environment["ANSIBLE_SSH_CONTROL_PATH_DIR"] = f"{self.directory}/cp"
        command = [*self.enter, *command, "playbook.yml"]
        result = run(command, cwd=DEPLOY, env=environment, timeout=600)
        self.said = result.stdout + result.stderr
        recap = r"(?m)^(\S+) +: ok=\d+ +changed=(\d+) +unreachable=(\d+) +failed=(\d+)"
        found = {}
        for name, changed, unreachable, failed in re.findall(recap, self.said):
            bad = "unreachable" if unreachable != "0" else "failed" if failed != "0" else None
            found[name] = bad or int(changed)
        self.assertEqual(found.keys(), self.hosts.keys(), self.said)
        return found

    def assert_all_changed(self, found):
        self.assertTrue(all(isinstance(n, int) and n > 0 for n in found.values()), self.said)

    def assert_none_changed(self, found):
        self.assertEqual(set(found.values()), {0}, self.said)

    def scripts_of(self, host):
        return {path for path, what in host.hooks().items() if re.search(r"/\d", path)}


class Fleet(FleetTestCase):
    def test_from_the_first_roll_out_to_the_removal_with_guests_on_one_host(self):
        self.start_fleet()
        host1 = self.hosts["host1"]
        before = {name: host.hooks() for name, host in self.hosts.items()}
        host1.start_libvirtd()
        self.addCleanup(host1.stop_libvirtd)
        nothing = (False,)
        self.assertEqual(host1.live(), (nothing, nothing))
        # without libvirt's socket the others' check cannot look at guests, and says so
        self.assert_all_changed(self.roll_out("--check", "--diff"))
        self.assertEqual({n: h.hooks() for n, h in self.hosts.items()}, before)
        self.assert_all_changed(self.roll_out())
        self.assertEqual(host1.live(), ((True, "greeting"), (False, "log")))
        self.assertEqual(host1.run("virt-hooks", "check").returncode, 0)
        self.assert_none_changed(self.roll_out())
        self.assert_none_changed(self.roll_out("--check", "--diff"))

        started = "#!/bin/sh\necho $1 >>/srv/started\n"
        own = self.own({OWN: (started, 0o755)})
        self.assert_all_changed(self.roll_out(scripts=own))
        for host in self.hosts.values():
            self.assertIn(OWN, self.scripts_of(host))
        host1.live()
        self.assertEqual((host1.root / "srv/started").read_text(), "fleet-web\n")
        self.assert_all_changed(self.roll_out(scripts=self.own({})))
        for host in self.hosts.values():
            self.assertNotIn(OWN, self.scripts_of(host))

        newer = newer_checkout(self.directory / "newer")
        self.assert_all_changed(self.roll_out(source=str(newer)))
        for host in self.hosts.values():
            self.assertIn("# newer", (host.root / HOOKS / "lxc").read_text())
        during, after = host1.live()
        self.assertTrue(during[0] and not after[0])

        self.assert_all_changed(self.roll_out(state="absent"))
        for name, host in self.hosts.items():
            self.assertEqual(host.hooks(), before[name] or {".": host.hooks()["."]})
        during, after = host1.live()  # which fails if libvirt still looks for the hook
        self.assertFalse(during[0])
        self.assert_none_changed(self.roll_out(state="absent"))

    def test_one_host_that_is_down_is_left_out_and_gets_it_all_when_it_is_up(self):
        self.start_fleet()
        own = self.own({OWN: (OK_SCRIPT, 0o755)})
        for down in ("host1", "host3"):  # the first one and another
            with self.subTest(down):
                self.ip("link", "set", down.replace("host", "veth"), "down")
                found = self.roll_out(drivers=[], scripts=own)
                self.assertEqual(found.pop(down), "unreachable", self.said)
                self.assert_all_changed(found)
                self.assertEqual(self.scripts_of(self.hosts[down]), set())
                self.ip("link", "set", down.replace("host", "veth"), "up")
                found = self.roll_out(drivers=[], scripts=own)
                self.assertGreater(found.pop(down), 0)
                self.assert_none_changed(found)
                self.assert_all_changed(self.roll_out(drivers=[], state="absent"))

    def test_one_host_with_a_foreign_hook_stays_as_it_is_and_the_others_go_on(self):
        self.start_fleet()
        host = self.hosts["host2"]
        host.write(f"{HOOKS}/lxc", FOREIGN, 0o755)
        before = host.hooks()
        found = self.roll_out()
        self.assertEqual(found.pop("host2"), "failed")
        self.assertIn(f"/{HOOKS}/lxc is there already, and not from this role", self.said)
        self.assert_all_changed(found)
        self.assertEqual(host.hooks(), before)
        self.assertFalse((host.root / "usr/local/sbin/virt-hooks").exists())

    def test_one_host_with_a_changed_script_stays_as_it_is_and_the_others_go_on(self):
        self.start_fleet()
        self.roll_out(drivers=[], scripts=self.own({OWN: (OK_SCRIPT, 0o755)}))
        host = self.hosts["host3"]
        host.write(f"{HOOKS}/{OWN}", "#!/bin/sh\necho mine\n", 0o755)
        before = host.hooks()
        other = self.own({OWN: ("#!/bin/sh\necho other\n", 0o755)})
        found = self.roll_out(drivers=[], scripts=other)
        self.assertEqual(found.pop("host3"), "failed")
        self.assertIn(f"{OWN} was changed on this host", self.said)
        self.assert_all_changed(found)
        self.assertEqual(host.hooks(), before)
        found = self.roll_out(drivers=[], scripts=other, overwrite=True)
        self.assertGreater(found.pop("host3"), 0)
        self.assert_none_changed(found)


class Growth(FleetTestCase):
    def test_growth_from_one_host_to_ten_whose_times_are_printed(self):
        self.start_fleet(10)
        inventory = (self.directory / "inventory").read_text().splitlines()
        everyone = dict(self.hosts)
        print("\nhosts  first roll-out  nothing to do  one new script  removal")
        for count in (1, 3, 10):
            self.hosts = dict(list(everyone.items())[:count])
            (self.directory / "inventory").write_text("\n".join(inventory[:count]) + "\n")
            own = self.own({OWN: (OK_SCRIPT, 0o755)})
            seconds = []
            for variables in ({}, {}, {"scripts": own}, {"state": "absent"}):
                began = time.monotonic()
                found = self.roll_out(**variables)
                seconds.append(time.monotonic() - began)
                self.assertTrue(all(isinstance(n, int) for n in found.values()), self.said)
            print(f"{count:5}" + "".join(f"{value:12.1f} s" for value in seconds))


if __name__ == "__main__":
    unittest.main()
