"""The Ansible role on hosts of its own, over ssh: Debian 12 and 13, some with libvirtd.

Each host has its own address on a bridge in a network namespace, from which ansible-playbook runs.
"""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

from hosts import ANSIBLE, CHECKOUT, HOOKS, TestCase, run, wait_until
from test_deb import FOREIGN, build, newer_checkout

PLAYBOOKS = CHECKOUT / "packaging/ansible"
COMMAND = "usr/local/sbin/virt-hooks"
OWN = "lxc_start_begin_-.d/50-own"
MKDIRS = "lxc_prepare_begin_-.d/10-mkdirs"
OTHER = "lxc_release_end_-.d/50-other"
QEMU = "qemu_start_begin_-.d/50-qemu"
TOKEN = "lxc_start_begin_-.d/web/token"
SCRIPT = "#!/bin/sh\necho own\n"
FAULTS = {
    "lines in CR LF": {OWN: "#!/bin/sh\r\necho own\r\n"},
    "a missing interpreter": {OWN: "#!/nowhere/interpreter\n"},
    "a phase that libvirt has not": {"lxc_prepare_start_-.d/50-own": SCRIPT},
    "a driver that libvirt has not": {"lcx_prepare_begin_-.d/50-own": SCRIPT},
    "a directory without its ending": {"lxc_prepare_begin_-/50-own": SCRIPT},
}


class RoleTestCase(TestCase):
    enter = ()
    environment = ()
    checked = ()  # hosts with a libvirtd, without which "virt-hooks check" cannot be done

    def command(self, *arguments, each=None, **variables):
        """The command for the playbook, for all hosts at a time.

        variables are those of all hosts, and each is {host: its own}, all without virt_hooks_.
        """
        hosts = {}
        for name, where in self.inventory.items():
            own = {"drivers": ["lxc"], "check": name in self.checked}
            own |= {**variables, **(each or {}).get(name, {})}
            hosts[name] = {**where, **{f"virt_hooks_{key}": own[key] for key in own}}
        place = tempfile.mkdtemp(dir=self.directory)
        inventory = Path(place, "inventory.json")
        inventory.write_text(json.dumps({"all": {"hosts": hosts}}))
        return [
            *self.enter, "env", "-C", PLAYBOOKS, f"ANSIBLE_HOME={place}/a", "ANSIBLE_NOCOLOR=1",
            f"ANSIBLE_SSH_CONTROL_PATH_DIR={self.directory}/cp", *self.environment,
            ANSIBLE / "ansible-playbook", "-i", inventory, "--timeout", "5",
            "-e", "virt_hooks_serial=100%", *arguments, "playbook.yml",
        ]  # fmt: skip

    def roll_out(self, *arguments, **variables):
        """Run the playbook; return {host: its changes, or "failed" or "unreachable"}."""
        result = run(self.command(*arguments, **variables), timeout=600)
        self.said = result.stdout + result.stderr
        recap = r"(?m)^(\S+) +: ok=\d+ +changed=(\d+) +unreachable=(\d+) +failed=(\d+)"
        found = {}
        for name, changed, unreachable, failed in re.findall(recap, self.said):
            bad = "unreachable" if unreachable != "0" else "failed" if failed != "0" else None
            found[name] = bad or int(changed)
        return found

    def ends_with(self, expected, *arguments, **variables):
        """Run the playbook, which must end in the same way on every host."""
        found = self.roll_out(*arguments, **variables)
        self.assertEqual(found, dict.fromkeys(self.inventory, expected), self.said)

    def changes(self, *arguments, **variables):
        self.ends_with(1, *arguments, **variables)

    def changes_nothing(self, *arguments, **variables):
        self.ends_with(0, *arguments, **variables)

    def fails_and_changes_nothing(self, text, **variables):
        """Run it dry and for real, which must fail on every host, say a text and change nothing."""
        before = self.hooks()
        for arguments in (["--check"], []):
            with self.subTest(text, arguments=arguments):
                self.ends_with("failed", *arguments, **variables)
                self.assertIn(text, self.said)
                self.assertEqual(self.hooks(), before)

    def own(self, files, name="scripts"):
        """Make an administrator's tree of {path: (text, mode)}, or of {path: text of a script}."""
        tree = self.directory / name
        shutil.rmtree(tree, ignore_errors=True)
        tree.mkdir()
        for path, what in files.items():
            text, mode = (what, 0o755) if isinstance(what, str) else what
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_bytes(text.encode())
            (tree / path).chmod(mode)
        return str(tree)


class Hosts(RoleTestCase):
    """Hosts of some suites, host1 and so on, that are reached over ssh."""

    suites = ("trixie",)

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
        for number, suite in enumerate(self.suites, 1):
            name, address = f"host{number}", f"10.76.0.{number}"
            self.hosts[name] = self.start_host(number, suite, address, key)
            self.inventory[name] = {**ssh, "ansible_host": address}
        self.host1 = self.hosts["host1"]

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

    def start_libvirtd(self):
        """Start one on host1."""
        self.host1.start_libvirtd()
        self.addCleanup(self.host1.stop_libvirtd)
        self.checked = ("host1",)

    def hooks(self):
        """{host: {path below its hooks directory: (type and mode, owner, group, contents)}}."""
        return {name: host.hooks() for name, host in self.hosts.items()}

    def files(self, name="host1"):
        """The same of one host, without the directories."""
        found = self.hosts[name].hooks()
        return {path: what for path, what in found.items() if not stat.S_ISDIR(what[0])}

    def scripts(self, name="host1"):
        """A host's dispatchers, and what there is an administrator's."""
        ours = r"\..*|.*/(10|20|30)-[^/]+|qemu_.*/00-saved-image"
        return {path for path in self.files(name) if not re.fullmatch(ours, path)}

    def changes_as_said(self, **variables):
        """Run it dry, which must change nothing and name each file that it then changes."""
        before = {name: self.files(name) for name in self.hosts}
        self.changes("--check", "--diff", **variables)
        self.said_dry = self.said
        self.assertEqual({name: self.files(name) for name in self.hosts}, before)
        texts = re.split(r"(?m)^changed: \[(\w+)\]\n", self.said)
        line = (
            rf"(?m)^[-+](?:[-l]\S+ \S+ /|[0-9a-f]{{64}}  ){HOOKS}/([^.].*?)(?: (?:[.][.])?/.*)? ?$"
        )
        named = {name: set(re.findall(line, text)) for text, name in zip(texts[::2], texts[1::2])}
        self.changes(**variables)
        for name in self.hosts:
            after = self.files(name)
            changed = {path for path in before[name].keys() | after.keys() if path[0] != "."}
            changed = {path for path in changed if before[name].get(path) != after.get(path)}
            self.assertEqual(named[name], changed)


class Checked(Hosts):
    """On a host with libvirtd, where "virt-hooks check" can ask for the guests."""

    def setUp(self):
        super().setUp()
        self.start_libvirtd()

    def test_from_the_first_roll_out_to_the_removal_the_guests_get_what_was_rolled_out(self):
        nothing = (False,)
        self.assertEqual(self.host1.live(), (nothing, nothing))
        self.changes_as_said()
        self.assertEqual(self.host1.live(), ((True, "greeting"), (False, "log")))  # it was told
        self.changes_nothing()
        self.changes_nothing("--check", "--diff")

        started = "#!/bin/sh\necho $1 >>/srv/started\n"
        self.changes_as_said(scripts=self.own({OWN: started, OTHER: SCRIPT}))
        self.assertEqual(self.scripts(), {"lxc", OWN, OTHER})
        self.host1.live()
        self.assertEqual((self.host1.root / "srv/started").read_text(), "fleet-web\n")
        self.changes_as_said(scripts=self.own({OWN: (started, 0o644)}))
        self.assertEqual(self.scripts(), {"lxc", OWN})
        self.host1.live()
        self.assertEqual((self.host1.root / "srv/started").read_text(), "fleet-web\n")

        newer = newer_checkout(self.directory / "newer")
        self.changes_as_said(source=str(newer), scripts=self.own({}))
        self.assertIn("+# newer", self.said_dry)
        self.assertEqual(self.scripts(), {"lxc"})
        during, after = self.host1.live()
        self.assertTrue(during[0] and not after[0])

        self.changes_as_said(state="absent")
        self.assertEqual(self.files(), {})
        self.assertFalse((self.host1.root / COMMAND).exists())
        during, after = self.host1.live()  # which fails if libvirt still looks for the hook
        self.assertFalse(during[0])
        self.changes_nothing(state="absent")

    def test_a_faulty_tree_is_found_before_anything_is_changed(self):
        self.changes(scripts=self.own({OWN: SCRIPT}))
        for fault, files in FAULTS.items():
            directory = next(iter(files)).split("/")[0]
            tree = self.own({OTHER: SCRIPT, **files}, fault)
            self.fails_and_changes_nothing(f"/{HOOKS}/{directory}", scripts=tree)
        newer = self.own({OWN: SCRIPT, OTHER: SCRIPT})
        self.host1.write(f"{HOOKS}/{MKDIRS}", "#!/nowhere/interpreter\n", 0o755)
        self.fails_and_changes_nothing("/nowhere/interpreter", scripts=newer)
        self.changes(scripts=newer, check=False)

    def test_a_check_that_cannot_be_done_fails_the_host(self):
        tree = self.own({OWN: SCRIPT})
        self.host1.done("mv", "/usr/bin/virsh", "/usr/bin/virsh.away")
        self.fails_and_changes_nothing("virsh", scripts=tree)
        self.host1.done("mv", "/usr/bin/virsh.away", "/usr/bin/virsh")
        self.changes(scripts=tree)
        self.host1.done("mv", "/usr/bin/virsh", "/usr/bin/virsh.away")
        self.fails_and_changes_nothing("virsh", scripts=tree)
        self.changes_nothing(scripts=tree, check=False)
        self.host1.done("mv", "/usr/bin/virsh.away", "/usr/bin/virsh")


class One(Hosts):
    """On one host without libvirtd."""

    def test_modes_are_kept_and_a_secret_is_not_shown(self):
        tree = {OWN: (SCRIPT, 0o700), TOKEN: ("secret-1\n", 0o600), OTHER: (SCRIPT, 0o775)}
        self.changes("--diff", scripts=self.own(tree))
        self.assertNotIn("secret", self.said)
        modes = {path: stat.S_IMODE(what[0]) for path, what in self.files().items()}
        self.assertEqual([modes[path] for path in (OWN, TOKEN, OTHER)], [0o700, 0o600, 0o755])
        tree[TOKEN] = ("secret-2\n", 0o600)
        self.changes_as_said(scripts=self.own(tree))
        self.assertNotIn("secret", self.said)
        self.assertEqual(self.files()[TOKEN][3], b"secret-2\n")
        tree[TOKEN] = ("secret-2\n", 0o640)
        self.changes_as_said(scripts=self.own(tree))
        self.assertEqual(stat.S_IMODE(self.files()[TOKEN][0]), 0o640)

    def test_a_tree_that_is_not_given_removes_nothing_and_an_empty_one_removes_the_scripts(self):
        self.changes(scripts=self.own({OWN: SCRIPT, TOKEN: SCRIPT}))
        self.host1.write(f"{HOOKS}/{OTHER}", SCRIPT, 0o755)  # the administrator's, by hand
        before = self.files()
        self.changes_nothing()
        self.changes(drivers=["lxc", "qemu"])
        self.changes(drivers=["lxc"])
        self.assertEqual(self.files(), before)
        self.changes_as_said(scripts=self.own({}))
        self.assertEqual(self.scripts(), {"lxc", OTHER})
        self.assertFalse((self.host1.root / HOOKS / TOKEN).parent.exists())
        for path in ("/nowhere/scripts", str(self.directory / "key")):  # which is a file
            self.ends_with("failed", scripts=path)
            self.assertIn(path, self.said)
        self.assertEqual(self.scripts(), {"lxc", OTHER})

    def test_a_script_that_somebody_has_changed_on_the_host_stays_and_is_named(self):
        self.changes()
        changed = self.host1.write(f"{HOOKS}/{MKDIRS}", SCRIPT, 0o755)
        newer = str(newer_checkout(self.directory / "newer"))
        self.changes_as_said(source=newer)
        self.assertEqual(changed.read_text(), SCRIPT)
        self.changes_nothing(source=newer)
        self.assertIn(f"/{HOOKS}/{MKDIRS}", self.said)
        self.changes(state="absent")
        self.assertEqual(self.files().keys(), {MKDIRS})

    def test_a_source_that_is_no_checkout_is_not_sent_to_any_host(self):
        self.fails_and_changes_nothing("virt_hooks_source", source=str(self.directory))

    def test_a_link_in_the_way_of_a_script_is_refused(self):
        self.changes()
        elsewhere = self.host1.write("srv/elsewhere/a", "").parent
        (self.host1.root / HOOKS / "lxc_start_begin_-.d/web").symlink_to("/srv/elsewhere")
        self.fails_and_changes_nothing("web", scripts=self.own({TOKEN: SCRIPT}))
        self.assertEqual(os.listdir(elsewhere), ["a"])

    def test_an_interrupted_run_is_mended_by_the_next(self):
        many = {f"lxc_start_begin_-.d/50-{number}": SCRIPT for number in range(150)}
        first, last = min(many), max(many)
        newer = str(newer_checkout(self.directory / "newer"))
        there = self.host1.root / HOOKS
        other = self.own({OTHER: SCRIPT}, "other")
        for moment, wanted in (
            (lambda: (there / first).exists(), {"scripts": self.own(many, "many")}),
            (lambda: not (there / last).exists(), {"scripts": self.own({}, "none")}),
            (lambda: b"newer" in (there / MKDIRS).read_bytes(), {"source": newer}),
            (lambda: not (there / "lxc").exists(), {"state": "absent"}),
        ):
            with self.subTest(wanted):
                if "scripts" not in wanted or not os.listdir(wanted["scripts"]):
                    self.changes(scripts=self.own(many, "many"))
                self.interrupt(moment, **wanted)
                self.changes(scripts=other)
                self.assertEqual(self.scripts(), {"lxc", OTHER})
                self.assertEqual((there / MKDIRS).read_bytes(), (CHECKOUT / MKDIRS).read_bytes())
                self.assertFalse((self.host1.root / "var/lib/virt-hooks-ansible").exists())
                self.changes_nothing(scripts=other)
        self.changes(state="absent")
        self.assertEqual(self.files(), {})

    def interrupt(self, moment, **variables):
        """Run the playbook, and at a moment kill all that it runs on host1."""
        playbook = subprocess.Popen(self.command(**variables), stdout=subprocess.DEVNULL)
        wait_until(lambda: moment() or playbook.poll() is not None)
        namespace = os.readlink(f"/proc/{self.host1.pid}/ns/pid")
        killed = True
        while killed:
            killed = False
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    place = os.readlink(process / "cwd"), os.readlink(process / "ns/pid")
                    if place[0].endswith("/virt-hooks-ansible") and place[1] == namespace:
                        os.kill(int(process.name), signal.SIGKILL)
                        killed = True
                except (FileNotFoundError, ProcessLookupError):
                    pass
        self.assertNotEqual(playbook.wait(60), 0)  # it was in the middle of it

    def test_two_playbooks_at_once_leave_what_one_of_them_wants(self):
        trees = [
            {f"lxc_start_begin_-.d/50-{name}{number}": SCRIPT for number in range(50)}
            for name in ("a", "b")
        ]
        self.changes()
        commands = [
            self.command(scripts=self.own(tree, name)) for tree, name in zip(trees, ("a", "b"))
        ]
        playbooks = [
            subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for c in commands
        ]
        for playbook in playbooks:
            said, _ = playbook.communicate(timeout=300)
            self.assertEqual(playbook.returncode, 0, said)
        self.assertIn(self.scripts() - {"lxc"}, [tree.keys() for tree in trees])

    def test_become_in_the_inventory_is_for_the_host_and_not_for_the_controller(self):
        for command in (["update"], ["install", "--no-install-recommends", "sudo"]):
            words = self.host1.command("apt-get", "-qq", *command)  # by the machine's own network
            self.done([word for word in words if word != "--net"], timeout=300)
        self.host1.done("useradd", "--create-home", "keeper")
        self.host1.write("etc/sudoers.d/keeper", "keeper ALL=(ALL) NOPASSWD: ALL\n", 0o440)
        self.host1.done("cp", "-r", "/root/.ssh", "/home/keeper/")
        self.host1.done("chown", "-R", "keeper:", "/home/keeper/.ssh")
        (self.directory / "bin").mkdir()
        sudo = self.directory / "bin/sudo"
        sudo.write_text("#!/bin/sh\nexit 1\n")
        sudo.chmod(0o755)
        self.environment = [f"PATH={sudo.parent}:{os.environ['PATH']}"]
        self.inventory["host1"] |= {"ansible_user": "keeper", "ansible_become": True}
        self.changes_as_said(scripts=self.own({OWN: SCRIPT}))
        self.assertEqual(self.scripts(), {"lxc", OWN})
        self.assertEqual(self.files()[OWN][1:3], (0, 0))


class Several(Hosts):
    suites = ("bookworm", "trixie", "bookworm")

    def test_each_host_gets_what_its_own_variables_say(self):
        guests, linked = "qemu_start_begin_-.d/my guest/50-a", "qemu_release_end_-.d/50-linked"
        left_out = {"lxc": FOREIGN, f"{OWN}~": SCRIPT, ".git/x.d/50-a": SCRIPT, "README": SCRIPT}
        tree = self.own({guests: SCRIPT, OWN: SCRIPT, MKDIRS: SCRIPT, **left_out})
        elsewhere = Path(self.own({"50-a": SCRIPT}, name="elsewhere"), "50-a")
        (self.directory / "scripts" / linked).parent.mkdir()
        (self.directory / "scripts" / linked).symlink_to(elsewhere)
        each = {
            "host1": {"scripts": ""},
            "host2": {"drivers": ["qemu"]},
            "host3": {"drivers": ["lxc", "qemu"]},
        }
        self.changes_as_said(scripts=tree, each=each)
        self.assertEqual(self.scripts("host1"), {"lxc"})
        self.assertEqual(self.scripts("host2"), {"qemu", guests, linked})
        self.assertEqual(self.scripts("host3"), {"lxc", "qemu", OWN, guests, linked})
        replaced = self.hosts["host3"].root / HOOKS / MKDIRS
        self.assertEqual(replaced.read_text(), SCRIPT)
        script = self.hosts["host2"].root / HOOKS / linked
        self.assertEqual((script.is_symlink(), script.read_text()), (False, SCRIPT))
        self.assertFalse((self.hosts["host2"].root / HOOKS / "README").exists())
        self.changes_nothing(scripts=tree, each=each)

        (self.directory / "scripts" / guests).unlink()
        (self.directory / "scripts" / MKDIRS).unlink()
        each["host1"] = {"state": "absent"}
        self.changes_as_said(scripts=tree, each=each)
        self.assertEqual(self.scripts("host1"), set())
        self.assertEqual(self.scripts("host2"), {"qemu", linked})
        self.assertEqual(self.scripts("host3"), {"lxc", "qemu", OWN, linked})
        self.assertFalse((self.hosts["host2"].root / HOOKS / guests).parent.exists())
        self.assertEqual(replaced.read_text(), (CHECKOUT / MKDIRS).read_text())
        each |= {"host1": {}, "host3": {"drivers": ["lxc"]}}
        self.changes(scripts=self.own({OTHER: SCRIPT, QEMU: SCRIPT}), each=each)
        self.assertEqual(self.scripts("host1"), {"lxc", OTHER})
        self.assertEqual(self.scripts("host2"), {"qemu", QEMU})
        self.assertEqual(self.scripts("host3"), {"lxc", OTHER})

    def test_a_host_that_is_down_or_refuses_is_left_out_and_gets_it_all_later(self):
        own = self.own({OWN: SCRIPT})
        foreign = self.hosts["host2"].write(f"{HOOKS}/lxc", FOREIGN, 0o755)
        before = self.files("host2")
        self.ip("link", "set", "veth1", "down")
        for arguments in (["--check"], ["-e", "virt_hooks_max_fail=50"]):
            found = self.roll_out(*arguments, scripts=own)
            wanted = {"host1": "unreachable", "host2": "failed", "host3": 1}
            self.assertEqual(found, wanted, self.said)
            self.assertIn(f" /{HOOKS}/lxc is ", self.said)
            self.assertEqual(self.files("host2"), before)
            self.assertFalse((self.hosts["host2"].root / COMMAND).exists())
        self.assertEqual(self.scripts("host1"), set())
        self.ip("link", "set", "veth1", "up")
        foreign.unlink()
        self.assertEqual(self.roll_out(scripts=own), {"host1": 1, "host2": 1, "host3": 0})

    def test_the_example_playbook_stops_where_the_first_host_fails(self):
        self.hosts["host1"].write(f"{HOOKS}/lxc", FOREIGN, 0o755)
        before = self.hooks()
        command = [word for word in self.command() if "virt_hooks_serial" not in str(word)]
        command.remove("-e")
        self.assertNotEqual(run(command, timeout=600).returncode, 0)
        self.assertEqual(self.hooks(), before)


class Apt(Hosts):
    def test_from_install_sh_to_the_package_and_back_with_the_administrators_scripts(self):
        own, deb = self.own({OWN: SCRIPT, QEMU: SCRIPT}), build(CHECKOUT, self.directory / "old")
        package = {"package": str(deb), "scripts": own}
        for drivers in (["lxc"], ["lxc", "qemu"]):
            self.changes(scripts=own, drivers=drivers)
            before = self.hooks()
            self.changes("--check", "--diff", **package)
            self.assertEqual(self.hooks(), before)
            self.changes(**package)
            self.assertEqual(self.scripts(), {"lxc", "qemu", OWN, QEMU})
            self.host1.done("dpkg", "--verify", "virt-hooks")
            self.assertFalse((self.host1.root / COMMAND).exists())
            self.changes_nothing(**package)
            self.changes_as_said(scripts=own, drivers=drivers)
            self.assertFalse(self.is_there())
            self.assertTrue((self.host1.root / COMMAND).exists())
            self.changes_nothing(scripts=own, drivers=drivers)
        self.assertEqual(self.scripts(), {"lxc", "qemu", OWN, QEMU})

    def test_absent_removes_the_package_too_but_not_what_was_changed_in_it(self):
        deb = build(CHECKOUT, self.directory / "old")
        self.changes(package=str(deb), scripts=self.own({OWN: SCRIPT}))
        script = self.host1.root / HOOKS / MKDIRS
        text = script.read_text()
        for change in (lambda: script.write_text(SCRIPT), lambda: script.chmod(0o644)):
            change()
            self.fails_and_changes_nothing(MKDIRS, state="absent")
            self.fails_and_changes_nothing(MKDIRS)
            self.changes_nothing(package=str(deb))
            script.write_text(text)
            script.chmod(0o755)
        self.changes_as_said(state="absent")
        self.assertEqual(self.files(), {})
        self.assertFalse(self.is_there())
        self.changes_nothing(state="absent")

    def test_an_upgrade_of_the_package_keeps_what_was_changed_on_the_host(self):
        old = str(build(CHECKOUT, self.directory / "old"))
        newer = newer_checkout(self.directory / "newer")
        new = str(build(newer, self.directory / "new"))
        self.changes(package=old)
        changed = self.host1.write(f"{HOOKS}/{MKDIRS}", SCRIPT, 0o755)
        self.changes("--check", "--diff", package=new)
        self.assertIn("virt-hooks", self.said)
        self.changes(package=new)
        self.assertEqual(changed.read_text(), SCRIPT)
        self.assertIn("# newer", self.host1.done("cat", f"/{HOOKS}/lxc"))
        self.changes_nothing(package=new)

    def test_what_the_package_would_refuse_is_refused_before_anything_is_changed(self):
        deb = str(build(CHECKOUT, self.directory / "old"))
        taken = self.own({MKDIRS: SCRIPT, OWN: SCRIPT}, "taken")
        for package in ("", deb):
            if package:
                self.changes(package=deb)
            self.fails_and_changes_nothing(MKDIRS, package=deb, scripts=taken)
        self.changes(state="absent")
        self.host1.write(f"{HOOKS}/qemu", FOREIGN)  # switched off
        self.fails_and_changes_nothing(f"/{HOOKS}/qemu is ", package=deb)

    def test_the_package_stays_where_install_sh_would_refuse_the_host(self):
        self.changes(package=str(build(CHECKOUT, self.directory / "old")))
        directory, hook = self.host1.root / "etc/libvirt", self.host1.root / HOOKS / "qemu"
        directory.chmod(0o775)
        self.fails_and_changes_nothing("/etc/libvirt")
        directory.chmod(0o755)
        hook.unlink()
        self.host1.write(f"{HOOKS}/qemu", FOREIGN, 0o755)
        self.fails_and_changes_nothing(f"/{HOOKS}/qemu is ", drivers=["lxc", "qemu"])
        self.assertTrue(self.is_there())

    def is_there(self):
        """Whether dpkg knows the package on host1, though it were only to be purged."""
        return self.host1.run("dpkg-query", "-L", "virt-hooks").returncode == 0


class Dry(RoleTestCase):
    def test_a_dry_run_on_ten_hosts_writes_nothing(self):
        read_only = """
            mount -t tmpfs tests /run
            mount -t tmpfs tests /var/lib
            mount -t tmpfs -o ro tests /etc/libvirt
            mount --rbind /usr/local /usr/local
            mount -o remount,bind,ro /usr/local
            "$@"
            status=$?
            ls /var/lib
            exit $status
        """
        self.enter = ["unshare", "--mount", "sh", "-euc", read_only, "sh"]
        local = {"ansible_connection": "local"}
        self.inventory = {f"host{number}": local for number in range(1, 11)}
        self.changes("--check", "--diff", scripts=self.own({OWN: SCRIPT}))
        self.assertNotIn("\nvirt-hooks-ansible", self.said)


class Lint(TestCase):
    environment = {**os.environ, "PATH": f"{ANSIBLE}:{os.environ['PATH']}"}

    def test_ansible_lint_finds_nothing_by_its_strictest_profile(self):
        command = ["ansible-lint", "--offline", "--profile", "production", "--nocolor"]
        self.done(command, cwd=PLAYBOOKS, env=self.environment, timeout=300)

    def test_ansible_doc_describes_each_variable(self):
        command = ["ansible-doc", "--type", "role", "--roles-path", "roles", "--json", "virt_hooks"]
        said = run(command, cwd=PLAYBOOKS, env=self.environment, timeout=60).stdout
        options = json.loads(said)["virt_hooks"]["entry_points"]["main"]["options"]
        defaults = (PLAYBOOKS / "roles/virt_hooks/defaults/main.yml").read_text()
        variables = re.findall(r"(?m)^(\w+):", defaults)
        self.assertEqual(sorted(options), sorted(variables))
        self.assertTrue(all(option["description"] for option in options.values()), options)


if __name__ == "__main__":
    unittest.main()
