"""The Ansible role on hosts of its own, over ssh: Debian 12 and 13, one of them with libvirtd.

Each host has its own address on a bridge in a network namespace, from which ansible-playbook runs.
"""

import json
import os
import re
import shutil
import stat
import subprocess
import time
import unittest
from pathlib import Path

from hosts import ANSIBLE, CHECKOUT, HOOKS, TestCase, run
from test_deb import FOREIGN, build, newer_checkout

PLAYBOOKS = CHECKOUT / "packaging/ansible"
SUITES = ("bookworm", "trixie", "bookworm")
COMMAND = "usr/local/sbin/virt-hooks"
OWN = "lxc_start_begin_-.d/50-own"
MKDIRS = "lxc_prepare_begin_-.d/10-mkdirs"
OTHER = "lxc_release_end_-.d/50-other"
SCRIPT = "#!/bin/sh\necho own\n"


class RoleTestCase(TestCase):
    enter = ()

    def roll_out(self, *arguments, each=None, **variables):
        """Run the playbook; return {host: its changes, or "failed" or "unreachable"}.

        variables are those of all hosts, and each is {host: its own}, all without virt_hooks_.
        """
        hosts = {}
        for name, where in self.inventory.items():
            own = {"drivers": ["lxc"], **variables, **(each or {}).get(name, {})}
            hosts[name] = {**where, **{f"virt_hooks_{key}": own[key] for key in own}}
        inventory = self.directory / "inventory.json"
        inventory.write_text(json.dumps({"all": {"hosts": hosts}}))
        command = [*self.enter, "env", "-C", PLAYBOOKS, f"ANSIBLE_HOME={self.directory}/a"]
        command += ["ANSIBLE_NOCOLOR=1", f"ANSIBLE_SSH_CONTROL_PATH_DIR={self.directory}/cp"]
        command += [ANSIBLE / "ansible-playbook", "-i", inventory, "--timeout", "5", *arguments]
        result = run([*command, "playbook.yml"], timeout=600)
        self.said = result.stdout + result.stderr
        recap = r"(?m)^(\S+) +: ok=\d+ +changed=(\d+) +unreachable=(\d+) +failed=(\d+)"
        found = {}
        for name, changed, unreachable, failed in re.findall(recap, self.said):
            bad = "unreachable" if unreachable != "0" else "failed" if failed != "0" else None
            found[name] = bad or int(changed)
        self.assertEqual(found.keys(), hosts.keys(), self.said)
        return found

    def changes(self, *arguments, **variables):
        """Run the playbook, which must change every host."""
        found = self.roll_out(*arguments, **variables)
        self.assertTrue(all(isinstance(n, int) and n > 0 for n in found.values()), self.said)

    def changes_nothing(self, *arguments, **variables):
        found = self.roll_out(*arguments, **variables)
        self.assertEqual(set(found.values()), {0}, self.said)

    def own(self, files, name="scripts"):
        """Make an administrator's tree of {path: (text, mode)}, or of {path: text of a script}."""
        tree = self.directory / name
        shutil.rmtree(tree, ignore_errors=True)
        tree.mkdir()
        for path, what in files.items():
            text, mode = (what, 0o755) if isinstance(what, str) else what
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_text(text)
            (tree / path).chmod(mode)
        return str(tree)


class Fleet(RoleTestCase):
    """Three hosts, host1 to host3, that are reached over ssh."""

    def setUp(self):
        super().setUp()
        self.controller = subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE)
        self.addCleanup(self.controller.wait)
        self.addCleanup(self.controller.stdin.close)
        self.enter = ["nsenter", f"--target={self.controller.pid}", "--net"]
        ours = os.readlink("/proc/self/ns/net")
        while os.readlink(f"/proc/{self.controller.pid}/ns/net") == ours:
            time.sleep(0.01)
        self.ip("link", "set", "lo", "up")
        self.ip("link", "add", "br0", "type", "bridge")
        self.ip("address", "add", "10.76.0.254/24", "dev", "br0")
        self.ip("link", "set", "br0", "up")
        key = self.directory / "key"
        self.done(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key])
        options = f"-o UserKnownHostsFile={self.directory}/known -o StrictHostKeyChecking=no"
        ssh = {"ansible_user": "root", "ansible_ssh_private_key_file": str(key)}
        ssh["ansible_ssh_extra_args"] = options
        self.hosts, self.inventory = {}, {}
        for number, suite in enumerate(SUITES, 1):
            name, address = f"host{number}", f"10.76.0.{number}"
            self.hosts[name] = self.start_host(number, suite, address, key)
            self.inventory[name] = {**ssh, "ansible_host": address}

    def ip(self, *arguments):
        self.done([*self.enter, "ip", *arguments])

    def start_host(self, number, suite, address, key):
        host = self.host(suite)
        veth = f"veth{number}"
        self.ip("link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", str(host.pid))
        self.ip("link", "set", veth, "master", "br0", "up")
        host.done("hostname", f"host{number}")
        host.done("ip", "address", "add", f"{address}/24", "dev", "eth0")
        host.done("ip", "link", "set", "eth0", "up")
        (host.root / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
        host.write("root/.ssh/authorized_keys", key.with_suffix(".pub").read_text(), 0o600)
        host.done("/usr/sbin/sshd")
        return host

    def files(self):
        """{host: {path below its hooks directory: (type and mode, owner, group, contents)}}."""
        return {
            name: {path: what for path, what in host.hooks().items() if not stat.S_ISDIR(what[0])}
            for name, host in self.hosts.items()
        }

    def scripts(self, name):
        """A host's dispatchers, and the scripts there that are an administrator's."""
        found = self.files()[name]
        return {path for path in found if re.fullmatch(r"lxc|qemu|.*/50-[^/]+", path)}

    def changes_as_said(self, **variables):
        """Run it dry, which must change nothing and name each file that it then changes."""
        before = self.files()
        self.changes("--check", "--diff", **variables)
        self.said_dry = self.said
        self.assertEqual(self.files(), before)
        said = re.findall(r'(?s)ok: \[(\w+)\] => \{\n    "msg": \[(.*?)\n    \]', self.said)
        line = rf'(?m)^ *"(?:[-+]|[+]{{3}} /){HOOKS}/(\w[^|"]*)'
        named = {name: set(re.findall(line, text)) for name, text in said}
        self.changes(**variables)
        for name, after in self.files().items():
            paths = before[name].keys() | after.keys()
            changed = {p for p in paths if before[name].get(p) != after.get(p) and p[0] != "."}
            self.assertEqual(named[name], changed)

    def test_from_the_first_roll_out_to_the_removal_with_guests_on_one_host(self):
        host1 = self.hosts["host1"]
        host1.start_libvirtd()
        self.addCleanup(host1.stop_libvirtd)
        nothing = (False,)
        self.assertEqual(host1.live(), (nothing, nothing))
        self.changes_as_said()
        self.assertEqual(host1.live(), ((True, "greeting"), (False, "log")))  # it was told
        self.assertEqual(host1.run("virt-hooks", "check").returncode, 0)
        self.changes_nothing()
        self.changes_nothing("--check", "--diff")

        started = "#!/bin/sh\necho $1 >>/srv/started\n"
        self.changes_as_said(scripts=self.own({OWN: started, OTHER: SCRIPT}))
        for name in self.hosts:
            self.assertEqual(self.scripts(name), {"lxc", OWN, OTHER})
        host1.live()
        self.assertEqual((host1.root / "srv/started").read_text(), "fleet-web\n")
        self.changes_as_said(check=False, scripts=self.own({OWN: (started, 0o644)}))
        for name in self.hosts:
            self.assertEqual(self.scripts(name), {"lxc", OWN})
        host1.live()
        self.assertEqual((host1.root / "srv/started").read_text(), "fleet-web\n")

        newer = newer_checkout(self.directory / "newer")
        self.changes_as_said(source=str(newer))
        self.assertIn("+# newer", self.said_dry)
        for name, host in self.hosts.items():
            self.assertEqual(self.scripts(name), {"lxc"})
            self.assertIn("# newer", (host.root / HOOKS / "lxc").read_text())
        during, after = host1.live()
        self.assertTrue(during[0] and not after[0])

        self.changes_as_said(state="absent")
        self.assertEqual(self.files(), {name: {} for name in self.hosts})
        self.assertFalse((host1.root / COMMAND).exists())
        during, after = host1.live()  # which fails if libvirt still looks for the hook
        self.assertFalse(during[0])
        self.changes_nothing(state="absent")

    def test_each_host_gets_what_its_own_variables_say(self):
        guests, linked = "qemu_start_begin_-.d/my guest/50-a", "qemu_release_end_-.d/50-linked"
        left_out = {"lxc": FOREIGN, f"{OWN}~": SCRIPT, ".git/x.d/50-a": SCRIPT, "README": SCRIPT}
        tree = self.own({guests: SCRIPT, **left_out})
        elsewhere = Path(self.own({"50-a": SCRIPT}, name="elsewhere"), "50-a")
        (self.directory / "scripts" / linked).parent.mkdir()
        (self.directory / "scripts" / linked).symlink_to(elsewhere)
        other = self.own({OWN: SCRIPT, MKDIRS: SCRIPT}, name="other")
        each = {
            "host1": {},
            "host2": {"drivers": ["qemu"], "scripts": tree},
            "host3": {"drivers": ["lxc", "qemu"], "scripts": other},
        }
        self.changes(each=each)
        self.assertEqual(self.scripts("host1"), {"lxc"})
        self.assertEqual(self.scripts("host2"), {"qemu", guests, linked})
        self.assertEqual(self.scripts("host3"), {"lxc", "qemu", OWN})
        replaced = self.hosts["host3"].root / HOOKS / MKDIRS
        self.assertEqual(replaced.read_text(), SCRIPT)
        script = self.hosts["host2"].root / HOOKS / linked
        self.assertEqual((script.is_symlink(), script.read_text()), (False, SCRIPT))
        self.assertFalse((self.hosts["host2"].root / HOOKS / "README").exists())
        self.changes_nothing(each=each)

        (self.directory / "scripts" / guests).unlink()
        each["host1"] = {"state": "absent"}
        each["host3"] = {"scripts": self.own({OTHER: SCRIPT}, name="other")}
        self.changes_as_said(each=each)
        self.assertEqual(self.scripts("host1"), set())
        self.assertEqual(self.scripts("host2"), {"qemu", linked})
        self.assertEqual(self.scripts("host3"), {"lxc", OTHER})
        self.assertFalse((self.hosts["host2"].root / HOOKS / guests).parent.exists())
        self.assertEqual(replaced.read_text(), (CHECKOUT / MKDIRS).read_text())

    def test_a_host_that_is_down_is_left_out_and_gets_it_all_when_it_is_up(self):
        own = self.own({OWN: SCRIPT})
        self.ip("link", "set", "veth1", "down")
        found = self.roll_out(scripts=own)
        self.assertEqual(found, {"host1": "unreachable", "host2": 1, "host3": 1}, self.said)
        self.assertEqual(self.scripts("host1"), set())
        self.ip("link", "set", "veth1", "up")
        self.assertEqual(self.roll_out(scripts=own), {"host1": 1, "host2": 0, "host3": 0})

    def test_a_host_on_which_it_must_not_or_cannot_work_fails_and_the_others_go_on(self):
        foreign = self.hosts["host2"].write(f"{HOOKS}/lxc", FOREIGN, 0o755)
        broken = self.own({OWN: "#!/nowhere/interpreter\n"}, name="broken")
        each = {"host2": {"scripts": self.own({OWN: SCRIPT})}, "host3": {"scripts": broken}}
        for arguments in (("--check", "--diff"), ()):
            with self.subTest(arguments):
                before = self.hosts["host2"].hooks()
                found = self.roll_out(*arguments, each=each)
                self.assertEqual(found["host2"], "failed", self.said)
                self.assertIn(f" /{HOOKS}/lxc is ", self.said)
                self.assertEqual(self.hosts["host2"].hooks(), before)
                self.assertFalse((self.hosts["host2"].root / COMMAND).exists())
        self.assertEqual(found["host1"], 1)
        self.assertEqual(found["host3"], "failed")
        self.assertIn("/nowhere/interpreter", self.said)
        foreign.unlink()
        elsewhere = self.hosts["host2"].write("srv/elsewhere/a", "").parent
        (foreign.parent / "lxc_start_begin_-.d").mkdir()
        (foreign.parent / "lxc_start_begin_-.d/web").symlink_to("/srv/elsewhere")
        each = {"host2": {"scripts": self.own({"lxc_start_begin_-.d/web/50-a": SCRIPT})}}
        found = self.roll_out(each=each | {"host1": {"drivers": ["qemu"]}})
        self.assertEqual(found, {"host1": 1, "host2": "failed", "host3": 1}, self.said)
        self.assertEqual(os.listdir(elsewhere), ["a"])
        self.assertEqual(self.scripts("host1"), {"qemu"})
        self.assertEqual(self.scripts("host2"), set())

    def test_what_the_first_version_of_the_role_has_installed_is_replaced(self):
        files = {"lxc": FOREIGN, "lxc_run.py": "pass\n", MKDIRS: SCRIPT, OWN: SCRIPT, OTHER: SCRIPT}
        for host in self.hosts.values():
            for path, text in files.items():
                host.write(f"{HOOKS}/{path}", text, 0o755)
            record = host.done("sha1sum", *[f"/{HOOKS}/{path}" for path in files])
            host.write(f"{HOOKS}/.virt-hooks-ansible.sha1", record)
            host.write(f"{HOOKS}/{OTHER}", "#!/bin/sh\necho changed\n", 0o755)
        self.changes_as_said(scripts=self.own({"lxc_start_begin_-.d/50-new": SCRIPT}))
        for name, host in self.hosts.items():
            self.assertEqual(self.scripts(name), {"lxc", OTHER, "lxc_start_begin_-.d/50-new"})
            self.assertFalse((host.root / HOOKS / ".virt-hooks-ansible.sha1").exists())
            script = host.root / HOOKS / "lxc"
            self.assertEqual(script.read_text(), (CHECKOUT / "hooks/lxc").read_text())

    def test_a_package_is_installed_upgraded_and_removed_beside_the_administrators_scripts(self):
        for name in ("host2", "host3"):
            self.install_python3_apt(self.hosts[name])
        del self.inventory["host1"], self.hosts["host1"]
        own = self.own({OWN: SCRIPT})
        deb = str(build(CHECKOUT, self.directory / "old"))
        self.changes("--check", "--diff", package=deb, scripts=own)
        self.changes(package=deb, scripts=own)
        for name, host in self.hosts.items():
            self.assertEqual(self.scripts(name), {"lxc", "qemu", OWN})
            host.done("dpkg", "--verify", "virt-hooks")
            self.assertFalse((host.root / COMMAND).exists())
        self.changes_nothing(package=deb, scripts=own)

        before = self.files()
        for arguments, variables in (
            (["--check"], {}),  # without the package, the hooks would be install.sh's
            ([], {}),
            ([], {"package": deb, "scripts": self.own({MKDIRS: SCRIPT}, name="other")}),
        ):
            with self.subTest(variables, arguments=arguments):
                found = self.roll_out(*arguments, **{"scripts": own, **variables})
                self.assertEqual(set(found.values()), {"failed"}, self.said)
                self.assertEqual(self.files(), before)

        newer = newer_checkout(self.directory / "newer")
        newer = str(build(newer, self.directory / "new"))
        self.changes(package=newer, scripts=self.own({OWN: SCRIPT}))
        for host in self.hosts.values():
            self.assertIn("# newer", (host.root / HOOKS / "lxc").read_text())
        self.changes(package=newer, state="absent")
        for name, host in self.hosts.items():
            self.assertNotIn(OWN, self.scripts(name))
            self.assertFalse((host.root / HOOKS / "lxc").stat().st_mode & 0o111)
            self.assertFalse((host.root / "usr/sbin/virt-hooks").exists())

    def install_python3_apt(self, host):
        """Give a host what Ansible's module apt needs, by way of the machine's own network."""
        for command in (["update"], ["install", "--no-install-recommends", "python3-apt"]):
            words = host.command("apt-get", "-qq", *command)
            self.done([word for word in words if word != "--net"], timeout=300)


class Dry(RoleTestCase):
    def test_a_dry_run_on_thirty_hosts_writes_nothing(self):
        read_only = """
            mount -t tmpfs tests /run
            mount -t tmpfs -o ro tests /etc/libvirt
            mount --rbind /usr/local /usr/local
            mount -o remount,bind,ro /usr/local
            exec "$@"
        """
        self.enter = ["unshare", "--mount", "sh", "-euc", read_only, "sh"]
        local = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
        self.inventory = {f"host{number}": local for number in range(1, 31)}
        began = time.monotonic()
        self.changes("--check", "--diff", scripts=self.own({OWN: SCRIPT}))
        print(f"{time.monotonic() - began:.0f} s ...", end=" ", flush=True)


class Lint(TestCase):
    def test_ansible_lint_finds_nothing_by_its_strictest_profile(self):
        environment = {**os.environ, "PATH": f"{ANSIBLE}:{os.environ['PATH']}"}
        command = ["ansible-lint", "--offline", "--profile", "production", "--nocolor"]
        self.done(command, cwd=PLAYBOOKS, env=environment, timeout=300)


if __name__ == "__main__":
    unittest.main()
