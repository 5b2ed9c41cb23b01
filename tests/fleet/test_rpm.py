"""The RPM package: what is in it, and what rpm does with it.

rpm runs on Debian hosts here, whose packages it does not know: so it installs with --nodeps.
"""

import hashlib
import shutil
import tempfile
import unittest
from pathlib import Path

from hosts import CHECKOUT, HOOKS, TestCase
from test_deb import FOREIGN, SCRIPT, build, build_otherwise, copy_checkout, newer_checkout


def setUpModule():
    global packages, deb, old, new
    packages = Path(tempfile.mkdtemp(prefix="virt-hooks-packages-"))
    unittest.addModuleCleanup(shutil.rmtree, packages)
    deb = build(CHECKOUT, packages / "deb")
    old = build(CHECKOUT, packages / "old", "rpm")
    new = build(newer_checkout(packages / "newer"), packages / "new", "rpm")


class Package(TestCase):
    def test_it_is_the_same_bytes_from_anywhere_at_any_time_under_any_umask(self):
        again = build_otherwise(self.directory, "rpm")
        self.assertEqual(again.name, old.name)
        self.assertEqual(*(hashlib.sha256(p.read_bytes()).hexdigest() for p in (again, old)))
        self.assertEqual(list((self.directory / "tmp").iterdir()), [])

    def test_it_has_the_files_of_the_debian_package(self):
        listing = self.done(["dpkg-deb", "--contents", deb]).splitlines()
        debian = {line.split()[-1][1:]: line.split()[0] for line in listing}
        lines = self.done(["rpm", "-qp", "--qf", "[%{FILENAMES} %{FILEMODES:perms}\n]", old])
        both = [dict(line.split() for line in lines.splitlines()), debian]
        for number, files in enumerate(both):
            both[number] = {
                path.removesuffix(".gz"): mode  # rpm compresses manual pages on Fedora alone
                for path, mode in files.items()
                if mode.startswith("-")
                and not path.startswith(("/usr/share/doc", "/usr/share/lic"))
            }
        self.assertEqual(*both)

    def test_every_file_below_etc_is_a_configuration_file_that_is_not_replaced(self):
        flags = "[%{FILENAMES} %{FILEFLAGS:fflags} %{FILEMODES:perms}\n]"
        for line in self.done(["rpm", "-qp", "--qf", flags, old]).splitlines():
            path, *flags, mode = line.split()
            if path.startswith("/etc") and mode.startswith("-"):
                self.assertEqual(flags, ["cn"], path)


class Rpm(TestCase):
    def rpm(self, host, *arguments):
        return host.run("rpm", "--nodeps", *arguments)

    def put(self, host, package):
        shutil.copy(package, host.root / "root/virt-hooks.rpm")

    def install(self, host, package):
        self.put(host, package)
        result = self.rpm(host, "--upgrade", "/root/virt-hooks.rpm")
        self.assertEqual(result.returncode, 0, result.stderr)

    def test_an_upgrade_replaces_what_is_unchanged_and_keeps_what_is_not(self):
        host = self.host("trixie")
        self.install(host, old)
        changed = host.write(f"{HOOKS}/{SCRIPT}", "#!/bin/sh\necho mine\n", 0o755)
        self.install(host, new)
        self.assertEqual(changed.read_text(), "#!/bin/sh\necho mine\n")
        self.assertIn("# newer", changed.with_name("10-mkdirs.rpmnew").read_text())
        self.assertIn("# newer", changed.with_name("30-preload").read_text())
        command = [f"/{HOOKS}/lxc", "web", "prepare", "begin", "-"]
        self.assertEqual(host.done(*command, input="<domain/>"), "mine\n")

    def test_it_refuses_to_replace_another_hook_or_what_install_sh_has_installed(self):
        host = self.host("bookworm")
        self.put(host, old)
        copy_checkout(host.root / "root/checkout")
        for driver in ("lxc", "qemu", "install.sh"):
            if driver == "install.sh":
                host.done("/root/checkout/install.sh", "--no-reload")
            else:
                foreign = host.write(f"{HOOKS}/{driver}", FOREIGN, 0o755)
            before = host.hooks()
            result = self.rpm(host, "--install", "/root/virt-hooks.rpm")
            self.assertNotEqual(result.returncode, 0)
            self.assertIn(driver, result.stderr)
            self.assertEqual(host.hooks(), before)
            self.assertFalse((host.root / "usr/sbin/virt-hooks").exists())
            self.assertNotEqual(host.run("rpm", "-q", "virt-hooks").returncode, 0)
            foreign.unlink(missing_ok=True)

    def test_install_sh_refuses_where_the_package_is(self):
        host = self.host("bookworm")
        copy_checkout(host.root / "root/checkout")
        self.install(host, old)
        before = host.hooks()
        for options in (["--no-reload"], ["--uninstall"]):
            result = host.run("/root/checkout/install.sh", *options)
            self.assertEqual((result.returncode, result.stdout), (1, ""))
            self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
            self.assertIn("remove virt-hooks", result.stderr)
            self.assertEqual(host.hooks(), before)

    def test_libvirt_runs_it_from_its_installation_until_it_is_erased(self):
        host = self.host("trixie")
        host.write(f"{HOOKS}/lxc_prepare_begin_-.d/50-own", FOREIGN, 0o755)
        before = host.hooks()
        host.start_libvirtd()
        self.addCleanup(host.stop_libvirtd)
        self.install(host, old)  # tells libvirtd, or it would not look
        self.assertEqual(host.live(), ((True, "greeting"), (False, "log")))
        self.install(host, new)
        self.assertEqual(host.live(), ((True, "greeting", "log"), (False, "log", "log.1")))
        host.write(f"{HOOKS}/lxc", FOREIGN.replace("0", "1"), 0o755)  # a changed one
        # an erased package tells it, or no guest would start
        self.assertEqual(self.rpm(host, "--erase", "virt-hooks").returncode, 0)
        self.assertEqual(host.live(), ((False, "log", "log.1"),) * 2)
        (host.root / HOOKS / "lxc.rpmsave").unlink()
        self.assertEqual(host.hooks(), before)


if __name__ == "__main__":
    unittest.main()
