"""The Debian package: what is in it, and what dpkg does with it on Debian 12 and 13."""

import hashlib
import os
import re
import shutil
import tempfile
import unittest
from pathlib import Path

from hosts import CHECKOUT, HOOKS, TestCase, blocks, run, snapshot

SCRIPT = "lxc_prepare_begin_-.d/10-mkdirs"
FOREIGN = "#!/bin/sh\n# an administrator's own hook\nexit 0\n"
PREPARE = ("lxc", "web", "prepare", "begin", "-")


def setUpModule():
    global packages, old, new
    packages = Path(tempfile.mkdtemp(prefix="virt-hooks-packages-"))
    unittest.addModuleCleanup(shutil.rmtree, packages)
    newer = newer_checkout(packages / "newer")
    old, new = build(CHECKOUT, packages / "old"), build(newer, packages / "new")


def copy_checkout(place):
    """A copy of the checkout, without its history."""
    return shutil.copytree(CHECKOUT, place, symlinks=True, ignore=shutil.ignore_patterns(".git"))


def newer_checkout(place):
    """A copy of the checkout with another version, in which every file is another one."""
    copy_checkout(place)
    command = place / "virt-hooks"
    command.write_text(re.sub(r'(?m)^VERSION = ".*"$', 'VERSION = "99.0.1"', command.read_text()))
    for path in [place / "hooks/lxc", *place.glob("lxc_*.d/[0-9]*")]:
        if not path.is_symlink():
            path.write_text(path.read_text() + "# newer\n")
    return place


def build(checkout, output, format="deb", **environment):
    """Build the packages of a format; return the path of the one that has the hooks."""
    date = {} if (checkout / ".git").exists() else {"SOURCE_DATE_EPOCH": "1700000000"}
    environment = {**os.environ, **date, **environment}
    result = run([checkout / "packaging/build", format, output], env=environment)
    if result.returncode:
        raise AssertionError(result.stderr)
    (package,) = output.glob(f"virt-hooks[-_][0-9]*.{format}")
    return package


class Package(TestCase):
    def test_it_is_the_same_bytes_from_anywhere_at_any_time_under_any_umask(self):
        copy = self.directory / "a checkout"
        shutil.copytree(CHECKOUT, copy, symlinks=True)
        (self.directory / "tmp").mkdir()
        environment = {"TZ": "Pacific/Auckland", "LC_ALL": "C.UTF-8"}
        environment["TMPDIR"] = str(self.directory / "tmp")
        mask = os.umask(0o077)
        try:
            again = build(copy, self.directory / "out", **environment)
        finally:
            os.umask(mask)
        self.assertEqual(again.name, old.name)
        self.assertEqual(*(hashlib.sha256(p.read_bytes()).hexdigest() for p in (again, old)))
        self.assertEqual(list((self.directory / "tmp").iterdir()), [])

    def test_its_files_are_those_that_install_sh_installs(self):
        stage, tree = self.directory / "stage", self.directory / "tree"
        environment = {**os.environ, "DESTDIR": str(stage)}
        drivers = ["--driver", "lxc", "--driver", "qemu"]
        self.done([CHECKOUT / "install.sh", *drivers, "--prefix", "/usr"], env=environment)
        self.done(["dpkg-deb", "--extract", old, tree])
        for ours in ("doc", "virt-hooks"):
            shutil.rmtree(tree / "usr/share" / ours)
        for path in stage.rglob(".virt-hooks.*"):
            path.unlink()
        for path in (p for p in stage.rglob("*") if p.is_symlink()):
            target = path.resolve()
            path.unlink()
            shutil.copy(target, path)
        self.done(["gunzip", *tree.glob("usr/share/man/*/*")])
        wanted, found = (
            {os.path.relpath(p, top): w for p, w in snapshot(top).items()} for top in (stage, tree)
        )
        del wanted["."], found["."]  # mktemp's and dpkg-deb's
        self.assertEqual(wanted, found)

    def test_every_file_below_etc_is_a_conffile_a_dispatcher_after_what_it_runs(self):
        conffiles = self.done(["dpkg-deb", "--info", old, "conffiles"]).split()
        listing = self.done(["dpkg-deb", "--contents", old]).splitlines()
        files = [line.split()[-1][1:] for line in listing if "./etc/" in line]
        files = [f for f in files if not f.endswith("/")]
        self.assertEqual(conffiles, sorted(files, reverse=True))

    def test_lintian_finds_nothing(self):
        said = self.done(["lintian", "--pedantic", "--allow-root", "--fail-on=pedantic", old])
        self.assertEqual(said, "")


class OnDebian12(TestCase):
    suite = "bookworm"

    def test_the_commands_of_the_readme_build_and_install_it(self):
        host = self.host(self.suite)
        copy_checkout(host.root / "root/checkout")
        commands = blocks("On many hosts")[0]
        shell = ["env", "-C", "/root/checkout", "SOURCE_DATE_EPOCH=1700000000", "sh", "-euc"]
        options = "Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts=/dev/null"
        sudo = f'sudo() {{ "$@" -y --no-install-recommends -o {options}; }}\n'
        host.done(*shell, f"{sudo}{commands}", timeout=120)
        self.assertIn("10-mkdirs: done", self.dispatch(host).stderr)

    def dpkg(self, host, *arguments, **options):
        return host.run("dpkg", "--force-confdef", "--force-confold", *arguments, **options)

    def put(self, host, package):
        shutil.copy(package, host.root / "root/virt-hooks.deb")

    def install(self, host, package):
        self.put(host, package)
        result = self.dpkg(host, "--install", "/root/virt-hooks.deb")
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        return result.stdout + result.stderr

    def dispatch(self, host, elements="", *phase):
        xml = f'<domain><metadata><hooks xmlns="urn:virt-hooks:1">{elements}</hooks></metadata>'
        driver, *arguments = phase or PREPARE
        command = [f"/{HOOKS}/{driver}", *arguments]
        return host.run("env", "VIRT_HOOKS_VERBOSE=1", *command, input=f"{xml}</domain>")

    def test_apt_installs_it_with_what_it_needs_on_a_fresh_system(self):
        host = self.host(self.suite, fresh=True)
        self.put(host, old)
        host.done("apt-get", "-q", "update")
        install = ["apt-get", "-q", "-y", "install", "--no-install-recommends"]
        host.done(*install, "/root/virt-hooks.deb", timeout=300)
        result = self.dispatch(host, "<mkdirs><dir>/srv/web/log</dir></mkdirs>")
        self.assertIn("10-mkdirs: done", result.stderr)
        self.assertTrue((host.root / "srv/web/log").is_dir())
        self.assertIn("virt-hooks", host.done("virt-hooks", "--version"))
        host.done("apt-get", "-q", "-y", "purge", "virt-hooks")
        self.assertFalse((host.root / "etc/libvirt").exists())

    def test_an_upgrade_replaces_what_is_unchanged_and_keeps_what_is_not(self):
        host = self.host(self.suite)
        self.install(host, old)
        changed = host.write(f"{HOOKS}/{SCRIPT}", "#!/bin/sh\necho mine\n", 0o755)
        switched_off = host.root / HOOKS / "lxc_release_end_-.d/30-post-rm-rf"
        switched_off.chmod(0o644)
        (host.root / HOOKS / "qemu").unlink()
        self.install(host, new)
        self.assertEqual(changed.read_text(), "#!/bin/sh\necho mine\n")
        self.assertIn("# newer", changed.with_name("10-mkdirs.dpkg-dist").read_text())
        self.assertIn("# newer", switched_off.read_text())
        self.assertEqual(switched_off.stat().st_mode & 0o777, 0o644)
        self.assertFalse((host.root / HOOKS / "qemu").exists())
        ran = self.dispatch(host).stderr
        self.assertIn(": mine\n", ran)
        self.assertNotIn("dpkg", ran)

    def test_what_dpkg_leaves_behind_never_runs(self):
        host = self.host(self.suite)
        self.install(host, old)
        never = "#!/bin/sh\necho this must never run\nexit 9\n"
        script = host.write(f"{HOOKS}/{SCRIPT}", never, 0o755)
        self.put(host, new)
        take_new = ["dpkg", "--force-confnew", "--install", "/root/virt-hooks.deb"]
        host.done(*take_new)  # makes .dpkg-old
        self.assertEqual(script.with_name("10-mkdirs.dpkg-old").read_text(), never)
        script.write_text("#!/bin/sh\n")
        self.install(host, old)  # makes .dpkg-dist
        dist = script.with_name("10-mkdirs.dpkg-dist")
        self.assertTrue(dist.exists())
        for name in ("dpkg-dist", "dpkg-new", "dpkg-tmp"):
            host.write(f"{HOOKS}/{SCRIPT}.{name}", never, 0o755)
        result = self.dispatch(host)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertNotIn("never run", result.stderr)

    def test_a_foreign_hook_stops_it_before_anything_is_changed(self):
        for driver in ("lxc", "qemu"):
            with self.subTest(driver):
                host = self.host(self.suite)
                host.write(f"{HOOKS}/{driver}", FOREIGN, 0o755)
                before = host.hooks()
                self.put(host, old)
                result = self.dpkg(host, "--install", "/root/virt-hooks.deb")
                self.assertNotEqual(result.returncode, 0)
                self.assertIn(f"/{HOOKS}/{driver} is there already", result.stderr)
                self.assertEqual(host.hooks(), before)
                self.assertFalse((host.root / "usr/sbin/virt-hooks").exists())
                status = host.run("dpkg-query", "-W", "-f", "${Status}", "virt-hooks")
                self.assertNotIn("ok installed", status.stdout)

    def test_what_install_sh_has_installed_stops_it_until_that_is_uninstalled(self):
        host = self.host(self.suite)
        copy_checkout(host.root / "root/checkout")
        host.done("/root/checkout/install.sh", "--no-reload")
        before = host.hooks()
        self.put(host, old)
        result = self.dpkg(host, "--install", "/root/virt-hooks.deb")
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("install.sh --uninstall", result.stderr)
        self.assertEqual(host.hooks(), before)
        host.done("/root/checkout/install.sh", "--uninstall")
        self.install(host, old)

    def test_removed_it_runs_no_more_and_installed_again_it_is_as_it_was(self):
        host = self.host(self.suite)
        self.install(host, old)
        host.write(f"{HOOKS}/{SCRIPT}", "#!/bin/sh\necho mine\n", 0o755)
        (host.root / HOOKS / "lxc_release_end_-.d/10-archive").chmod(0o644)
        before = host.hooks()
        host.done("dpkg", "--remove", "virt-hooks")
        for driver in ("lxc", "qemu"):
            self.assertFalse((host.root / HOOKS / driver).exists())
        self.install(host, old)
        self.assertEqual(host.hooks(), before)

    def test_a_hook_that_took_its_place_meanwhile_stops_it_and_stays(self):
        host = self.host(self.suite)
        self.install(host, old)
        host.done("dpkg", "--remove", "virt-hooks")
        host.write(f"{HOOKS}/lxc", FOREIGN, 0o755)
        before = host.hooks()
        result = self.dpkg(host, "--install", "/root/virt-hooks.deb")
        self.assertNotEqual(result.returncode, 0)
        self.assertIn(f"/{HOOKS}/lxc is there already", result.stderr)
        self.assertEqual(host.hooks(), before)

    def test_purged_it_leaves_the_administrators_own_scripts_and_nothing_else(self):
        for remove_first in (False, True):
            with self.subTest(remove_first=remove_first):
                host = self.host(self.suite)
                own = (
                    f"{HOOKS}/lxc_prepare_begin_-.d/50-own",
                    f"{HOOKS}/qemu_release_end_-.d/web/10-own",
                    f"{HOOKS}/lxc.d/own",
                )
                for path in own:
                    host.write(path, FOREIGN, 0o755)
                before = host.hooks()
                self.install(host, old)
                host.write(f"{HOOKS}/{SCRIPT}", "#!/bin/sh\necho mine\n", 0o755)
                if remove_first:
                    host.done("dpkg", "--remove", "virt-hooks")
                host.done("dpkg", "--purge", "virt-hooks")
                self.assertEqual(host.hooks(), before)

    def test_libvirt_runs_it_from_its_installation_to_its_removal(self):
        host = self.host(self.suite)
        host.start_libvirtd()
        self.addCleanup(host.stop_libvirtd)
        before = host.hooks()
        nothing = (False,)
        self.assertEqual(host.live(), (nothing, nothing))
        self.install(host, old)  # tells libvirtd, or it would not look
        told = (host.root / HOOKS / ".virt-hooks.told").read_text()
        pid = (host.root / "run/libvirtd.pid").read_text().strip()
        for driver in ("lxc", "qemu"):
            self.assertIn(f"{driver} libvirtd {pid} ", told)
        self.assertEqual(host.live(), ((True, "greeting"), (False, "log")))
        self.install(host, new)
        self.assertEqual(host.live(), ((True, "greeting", "log"), (False, "log", "log.1")))
        host.done("dpkg", "--remove", "virt-hooks")  # tells it, or no guest would start
        self.assertFalse((host.root / HOOKS / ".virt-hooks.told").exists())
        self.assertEqual(host.live(), ((False, "log", "log.1"),) * 2)
        self.install(host, new)
        self.assertTrue(host.live()[0][0])
        host.done("dpkg", "--purge", "virt-hooks")
        self.assertEqual(host.hooks(), before)
        self.assertFalse(host.live()[0][0])


class OnDebian13(OnDebian12):
    suite = "trixie"
