"""The RPM packages: what is in them, and what rpm does with them; and the SELinux policy module.

rpm runs on Debian hosts here, whose packages it does not know: so it installs with --nodeps.
"""

import hashlib
import os
import shutil
import tempfile
import unittest
from pathlib import Path

from hosts import CHECKOUT, HOOKS, TestCase, run
from test_deb import FOREIGN, SCRIPT, build, newer_checkout

MODULE = CHECKOUT / "packaging/selinux/virt_hooks.cil"
POLICY = Path(__file__).with_name("policy.cil")


def setUpModule():
    global packages, deb, old, new
    packages = Path(tempfile.mkdtemp(prefix="virt-hooks-packages-"))
    unittest.addModuleCleanup(shutil.rmtree, packages)
    newer = newer_checkout(packages / "newer")
    deb = build(CHECKOUT, packages / "deb")
    old = build(CHECKOUT, packages / "old", "rpm")
    new = build(newer, packages / "new", "rpm")


class Package(TestCase):
    def test_they_are_the_same_bytes_from_anywhere_at_any_time_under_any_umask(self):
        copy = self.directory / "a checkout"
        shutil.copytree(CHECKOUT, copy, symlinks=True)
        (self.directory / "tmp").mkdir()
        environment = {"TZ": "Pacific/Auckland", "TMPDIR": str(self.directory / "tmp")}
        mask = os.umask(0o077)
        try:
            again = build(copy, self.directory / "out", "rpm", **environment)
        finally:
            os.umask(mask)
        sums = [
            {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in place.iterdir()}
            for place in (again.parent, old.parent)
        ]
        self.assertEqual(len(sums[0]), 2)
        self.assertEqual(*sums)
        self.assertEqual(list((self.directory / "tmp").iterdir()), [])

    def test_it_has_the_same_files_as_the_debian_package(self):
        listing = self.done(["dpkg-deb", "--contents", deb]).splitlines()
        debian = {line.split()[-1][1:]: line.split()[0] for line in listing}
        lines = self.done(["rpm", "-qp", "--qf", "[%{FILENAMES} %{FILEMODES:perms}\n]", old])
        found = dict(line.split() for line in lines.splitlines() if "/.virt-hooks" not in line)
        for name, files in (("rpm", found), ("deb", debian)):
            for path in [p for p in files if "/usr/share/doc" in p or "/usr/share/lic" in p]:
                del files[path]
            self.assertTrue(files, name)
        debian = {path: mode for path, mode in debian.items() if not path.endswith("/")}
        found = {path: mode for path, mode in found.items() if not mode.startswith("d")}
        self.assertEqual(found, debian)

    def test_every_file_below_etc_is_a_configuration_file_that_is_not_replaced(self):
        flags = "[%{FILENAMES} %{FILEFLAGS:fflags} %{FILEMODES:perms}\n]"
        for line in self.done(["rpm", "-qp", "--qf", flags, old]).splitlines():
            path, *flags, mode = line.split()
            if path.startswith("/etc") and mode.startswith("-"):
                self.assertIn(flags, (["cn"], ["g"]), path)

    def test_rpmlint_finds_nothing_that_is_not_explained(self):
        config = CHECKOUT / "packaging/rpm/virt-hooks.rpmlintrc"
        result = run(["rpmlint", "--rpmlintrc", config, *old.parent.iterdir()])
        self.assertIn(" 0 errors, 0 warnings", result.stdout)


class Rpm(TestCase):
    def rpm(self, host, *arguments):
        return host.run("rpm", "--nodeps", *arguments)

    def install(self, host, package):
        shutil.copy(package, host.root / "root/virt-hooks.rpm")
        result = self.rpm(host, "--upgrade", "--oldpackage", "/root/virt-hooks.rpm")
        self.assertEqual(result.returncode, 0, result.stderr)

    def dispatch(self, host):
        command = ["env", "VIRT_HOOKS_VERBOSE=1", f"/{HOOKS}/lxc", "web", "prepare", "begin", "-"]
        return host.run(*command, input="<domain/>")

    def test_an_upgrade_replaces_what_is_unchanged_and_keeps_what_is_not(self):
        host = self.host("trixie")
        self.install(host, old)
        changed = host.write(f"{HOOKS}/{SCRIPT}", "#!/bin/sh\necho mine\n", 0o755)
        self.install(host, new)
        self.assertEqual(changed.read_text(), "#!/bin/sh\necho mine\n")
        self.assertIn("# newer", changed.with_name("10-mkdirs.rpmnew").read_text())
        self.assertIn("# newer", changed.with_name("30-preload").read_text())
        result = self.dispatch(host)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn(": mine\n", result.stderr)
        self.assertNotIn("rpmnew", result.stderr)

    def test_what_rpm_leaves_behind_never_runs(self):
        host = self.host("bookworm")
        self.install(host, old)
        never = "#!/bin/sh\necho this must never run\nexit 9\n"
        script = host.write(f"{HOOKS}/{SCRIPT}", never, 0o755)
        self.assertEqual(self.rpm(host, "--erase", "virt-hooks").returncode, 0)
        saved = script.with_name("10-mkdirs.rpmsave")
        self.assertEqual(saved.read_text(), never)
        self.install(host, old)
        script.write_text("#!/bin/sh\n")
        self.install(host, new)
        script.with_name("10-mkdirs.rpmnew").write_text(never)
        host.write(f"{HOOKS}/{SCRIPT}.rpmorig", never, 0o755)
        result = self.dispatch(host)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("30-preload: done", result.stderr)
        self.assertNotIn("never run", result.stderr)

    def test_a_foreign_hook_stops_it_before_anything_is_changed(self):
        host = self.host("bookworm")
        for driver in ("lxc", "qemu"):
            with self.subTest(driver):
                foreign = host.write(f"{HOOKS}/{driver}", FOREIGN, 0o755)
                before = host.hooks()
                shutil.copy(old, host.root / "root/virt-hooks.rpm")
                result = self.rpm(host, "--install", "/root/virt-hooks.rpm")
                self.assertNotEqual(result.returncode, 0)
                self.assertIn(f"/{HOOKS}/{driver} is there already", result.stderr)
                self.assertEqual(host.hooks(), before)
                self.assertFalse((host.root / "usr/sbin/virt-hooks").exists())
                self.assertNotEqual(host.run("rpm", "-q", "virt-hooks").returncode, 0)
                foreign.unlink()

    def test_libvirt_runs_it_from_its_installation_until_it_is_erased(self):
        host = self.host("trixie")
        own = f"{HOOKS}/lxc_prepare_begin_-.d/50-own"
        host.write(own, FOREIGN, 0o755)
        before = host.hooks()
        host.start_libvirtd()
        self.addCleanup(host.stop_libvirtd)
        self.install(host, old)  # tells libvirtd, or it would not look
        told = (host.root / HOOKS / ".virt-hooks.told").read_text()
        pid = (host.root / "run/libvirtd.pid").read_text().strip()
        self.assertIn(f"lxc libvirtd {pid} ", told)
        self.assertEqual(host.live(), ((True, "greeting"), (False, "log")))
        self.install(host, new)
        self.assertEqual(host.live(), ((True, "greeting", "log"), (False, "log", "log.1")))
        # an erased package tells it, or no guest would start
        self.assertEqual(self.rpm(host, "--erase", "virt-hooks").returncode, 0)
        self.assertEqual(host.hooks(), before)
        self.assertEqual(host.live(), ((False, "log", "log.1"),) * 2)


class SELinux(TestCase):
    """No kernel here has SELinux: the module is compiled into a policy, and that is asked."""

    def rules(self, *sources):
        binary = self.directory / "policy"
        self.done(["secilc", "-o", binary, "-f", "/dev/null", *sources])
        return set(self.done(["sesearch", "-A", "-T", binary]).splitlines())

    def test_it_adds_rules_under_the_boolean_alone_and_the_transition_is_there(self):
        added = self.rules(POLICY, MODULE) - self.rules(POLICY)
        self.assertTrue(added)
        for rule in added:
            self.assertTrue(rule.endswith("; [ virt_hooks_unconfined ]:True"), rule)
            self.assertIn("virtqemud_t", rule)
        transition = "type_transition virtqemud_t virt_hook_t:process virt_hook_unconfined_t;"
        self.assertIn(f"{transition} [ virt_hooks_unconfined ]:True", added)

    def test_a_policy_that_has_the_rules_already_takes_it_too(self):
        copy = self.directory / "again.cil"
        copy.write_text(MODULE.read_text().replace("optional virt_hooks", "optional other"))
        self.assertEqual(self.rules(POLICY, MODULE, copy), self.rules(POLICY, MODULE))

    def test_to_a_policy_without_its_names_it_adds_nothing(self):
        for name in ("type virt_hook_unconfined_t", "type virtqemud_t", "boolean virt_hooks_unc"):
            with self.subTest(name):
                policy = self.directory / "older.cil"
                lines = POLICY.read_text().splitlines()
                word = name.split()[1]
                policy.write_text("\n".join(line for line in lines if word not in line))
                self.assertEqual(self.rules(policy, MODULE), self.rules(policy))
