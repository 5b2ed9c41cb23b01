"""The RPM package: what is in it, and what rpm does with it.

rpm runs on Debian hosts here, whose packages it does not know: so it installs with --nodeps.
"""

import hashlib
import re
import shutil
import tempfile
import unittest
from pathlib import Path

from hosts import CHECKOUT, HOOKS, TestCase
from test_deb import (
    ARCHIVE,
    DELETION,
    FOREIGN,
    SCRIPT,
    build,
    build_otherwise,
    copy_checkout,
    newer_checkout,
)


def setUpModule():
    global packages, deb, old, new
    packages = Path(tempfile.mkdtemp(prefix="virt-hooks-packages-"))
    unittest.addModuleCleanup(shutil.rmtree, packages)
    deb = build(CHECKOUT, packages / "deb")
    old = build(CHECKOUT, packages / "old", "rpm")
    new = build(newer_checkout(packages / "newer"), packages / "new", "rpm")


class Package(TestCase):
    def query(self, package, form):
        """A line for each file, in the order in which rpm puts them into place."""
        return self.done(["rpm", "-qp", "--qf", f"[{form}\n]", package]).splitlines()

    def test_it_is_the_same_bytes_from_anywhere_at_any_time_under_any_umask(self):
        again = build_otherwise(self.directory, "rpm")
        self.assertEqual(again.name, old.name)
        self.assertEqual(*(hashlib.sha256(p.read_bytes()).hexdigest() for p in (again, old)))
        self.assertEqual(list((self.directory / "tmp").iterdir()), [])

    def test_it_has_the_files_of_the_debian_package(self):
        listing = self.done(["dpkg-deb", "--contents", deb]).splitlines()
        debian = {line.split()[5][1:]: line.split()[0] for line in listing}
        dispatcher = debian.pop("/usr/sbin/virt-hooks-dispatch")
        debian |= {f"/{HOOKS}/{driver}": dispatcher for driver in ("lxc", "qemu")}
        both = [dict(line.split() for line in self.query(old, "%{FILENAMES} %{FILEMODES:perms}"))]
        for files in (*both, debian):
            both.append(
                {
                    path.removesuffix(".gz"): mode  # rpm compresses manual pages on Fedora alone
                    for path, mode in files.items()
                    if mode.startswith("-")
                    and not path.startswith(("/usr/share/doc/virt-hooks/c", "/usr/share/li"))
                }
            )
        rpms = {
            re.sub(r"virt-hooks-[0-9.]+", "virt-hooks", path): both[1][path] for path in both[1]
        }
        self.assertEqual(rpms, both[2])

    def test_the_scripts_are_configuration_that_is_not_replaced_and_the_dispatchers_are_not(self):
        for line in self.query(old, "%{FILENAMES} %{FILEMODES:perms} %{FILEFLAGS:fflags}"):
            path, mode, *flags = line.split()
            if path.startswith(f"/{HOOKS}/") and mode.startswith("-"):
                is_script = ".d/" in path
                self.assertEqual("c" in "".join(flags), is_script, path)
                self.assertEqual("n" in "".join(flags), is_script, path)

    def test_an_archive_comes_before_its_deletion(self):
        places = self.query(old, "%{FILENAMES}")
        for driver in ("lxc", "qemu"):
            paths = [f"/{HOOKS}/{path.replace('lxc', driver)}" for path in (ARCHIVE, DELETION)]
            archive, deletion = map(places.index, paths)
            self.assertLess(archive, deletion)

    def test_rpmlint_finds_nothing_that_is_not_meant(self):
        lint = ["rpmlint", "-r", CHECKOUT / "packaging/virt-hooks.rpmlintrc"]
        said = self.done([*lint, old, CHECKOUT / "packaging/virt-hooks.spec"])
        self.assertIn("0 errors, 0 warnings", said)


class Rpm(TestCase):
    def rpm(self, host, *arguments):
        return host.run("rpm", "--nodeps", *arguments)

    def put(self, host, package):
        shutil.copy(package, host.root / "root/virt-hooks.rpm")

    def install(self, host, package):
        self.put(host, package)
        result = self.rpm(host, "--upgrade", "/root/virt-hooks.rpm")
        self.assertEqual(result.returncode, 0, result.stderr)

    def erase(self, host):
        result = self.rpm(host, "--erase", "virt-hooks")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertNotIn("warning", result.stderr)

    def assert_refuses(self, host, package, *parts):
        """The package is refused for a reason, and nothing has changed."""
        self.put(host, package)
        before, version = host.hooks(), host.run("rpm", "-q", "virt-hooks").stdout
        result = self.rpm(host, "--upgrade", "/root/virt-hooks.rpm")
        self.assertNotEqual(result.returncode, 0)
        for part in parts:
            self.assertIn(part, result.stderr)
        self.assertEqual(host.hooks(), before)
        self.assertEqual(host.run("rpm", "-q", "virt-hooks").stdout, version)
        return result.stderr

    def test_an_upgrade_replaces_what_is_unchanged_and_keeps_what_is_not(self):
        host = self.host("trixie")
        self.install(host, old)
        changed = host.write(f"{HOOKS}/{SCRIPT}", "#!/bin/sh\necho mine\n", 0o755)
        self.install(host, new)
        self.assertEqual(changed.read_text(), "#!/bin/sh\necho mine\n")
        self.assertIn("# newer", changed.with_name("10-mkdirs.rpmnew").read_text())
        self.assertIn("# newer", changed.with_name("30-preload").read_text())
        self.assertIn("# newer", (host.root / HOOKS / "lxc").read_text())
        command = [f"/{HOOKS}/lxc", "web", "prepare", "begin", "-"]
        self.assertEqual(host.done(*command, input="<domain/>"), "mine\n")

    def test_it_refuses_to_replace_another_hook_of_whatever_mode_in_an_upgrade_too(self):
        host = self.host("bookworm")
        for package in (old, new):
            for driver, mode in (("lxc", 0o755), ("qemu", 0o755), ("qemu", 0o600)):
                hook = host.root / HOOKS / driver
                before = hook.read_text() if hook.exists() else None
                host.write(f"{HOOKS}/{driver}", FOREIGN, mode)
                self.assert_refuses(host, package, f"/{HOOKS}/{driver} ")
                hook.unlink()
                if before:
                    host.write(f"{HOOKS}/{driver}", before, 0o755)
            self.install(host, package)

    def test_its_advice_keeps_a_hook_in_use_with_what_lies_beside_it(self):
        host = self.host("bookworm")
        host.write(f"{HOOKS}/qemu", '#!/bin/sh\ncat "${0%/*}/qemu.d/name"\n', 0o755)
        host.write(f"{HOOKS}/qemu.d/name", "mine\n")
        said = self.assert_refuses(host, old, f"/{HOOKS}/qemu ")
        commands = [line for line in said.splitlines() if line.startswith("    ")]
        host.done("sh", "-euc", "\n".join(commands))
        self.install(host, old)
        call = [f"/{HOOKS}/qemu", "win10", "prepare", "begin", "-"]
        self.assertEqual(host.done(*call, input="<domain/>"), "mine\n")

    def test_it_refuses_what_install_sh_has_installed_and_install_sh_the_package(self):
        host = self.host("bookworm")
        copy_checkout(host.root / "root/checkout")
        host.done("/root/checkout/install.sh", "--no-reload")
        self.assert_refuses(host, old, "install.sh")
        host.done("/root/checkout/install.sh", "--uninstall")
        self.install(host, old)
        before = host.hooks()
        for options in (["--no-reload"], ["--uninstall"]):
            result = host.run("/root/checkout/install.sh", *options)
            self.assertEqual((result.returncode, result.stdout), (1, ""))
            self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
            self.assertIn("remove virt-hooks", result.stderr)
            self.assertEqual(host.hooks(), before)

    def test_erased_it_leaves_a_hook_that_came_into_its_place(self):
        host = self.host("bookworm")
        self.install(host, old)
        host.write(f"{HOOKS}/lxc", FOREIGN, 0o750)
        self.erase(host)
        self.assertEqual(list(host.hooks()), [".", "lxc"])
        hook = host.root / HOOKS / "lxc"
        self.assertEqual((hook.read_text(), hook.stat().st_mode), (FOREIGN, 0o100750))

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
        self.erase(host)  # tells it, or no guest would start
        self.assertEqual(host.live(), ((False, "log", "log.1"),) * 2)
        self.assertEqual(host.hooks(), before)


if __name__ == "__main__":
    unittest.main()
