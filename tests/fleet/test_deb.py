"""The Debian package: what is in it, and what dpkg does with it on Debian 12 and 13."""

import hashlib
import os
import re
import shutil
import tempfile
import unittest
from pathlib import Path

from hosts import CHECKOUT, HOOKS, TestCase, run, snapshot

SCRIPT = "lxc_prepare_begin_-.d/10-mkdirs"
ARCHIVE = "lxc_release_end_-.d/10-archive"
FOREIGN = "#!/bin/sh\n# an administrator's own\nexit 0\n"
REMOVE = ("dpkg", "--remove", "virt-hooks")
CHANGELOG, SPEC = "packaging/debian/changelog", "packaging/virt-hooks.spec"


def setUpModule():
    global packages, old, new
    packages = Path(tempfile.mkdtemp(prefix="virt-hooks-packages-"))
    unittest.addModuleCleanup(shutil.rmtree, packages)
    old = build(older_checkout(packages / "older"), packages / "old")
    new = build(newer_checkout(packages / "newer"), packages / "new")


def copy_checkout(place):
    """A copy of the checkout, without its history."""
    return shutil.copytree(CHECKOUT, place, symlinks=True, ignore=shutil.ignore_patterns(".git"))


def replace(path, pattern, text):
    path.write_text(re.sub(pattern, text, path.read_text(), count=1, flags=re.MULTILINE))


def older_checkout(place):
    """A copy of the checkout whose dispatchers come with another half, as those of 1.0 did."""
    copy_checkout(place)
    line = r'^    say "hooks/lxc \$1"$'
    replace(place / "install.sh", line, '    say "hooks/lxc_run.py $1_run.py"\n\\g<0>')
    (place / "hooks/lxc_run.py").write_text("# the other half\n")
    with open(place / "hooks/lxc", "a") as file:
        file.write("# it needs DRIVER_run.py\n")
    return place


def newer_checkout(place):
    """A copy of the checkout with another version, in which every file is another one."""
    copy_checkout(place)
    replace(place / "command/virt-hooks", r'^VERSION = ".*"$', 'VERSION = "99.0.1"')
    replace(place / CHANGELOG, r"\(.*?\)", "(99.0.1)")
    replace(place / SPEC, r"^(Version: +).*", r"\g<1>99.0.1")
    for path in [place / "hooks/lxc", *place.glob("lxc_*.d/[0-9]*")]:
        if not path.is_symlink():
            path.write_text(path.read_text() + "# newer\n")
    return place


def build(checkout, output, format="deb", **environment):
    """Build a package; return its path."""
    command = [checkout / "packaging/build", format, output]
    result = run(command, env={**os.environ, **environment}, timeout=120)
    if result.returncode:
        raise AssertionError(result.stdout + result.stderr)
    (package,) = output.glob(f"virt-hooks[-_]*.{format}")
    return package


def build_otherwise(directory, format):
    """Build a package from another place, at another time, under another umask and zone."""
    copy = shutil.copytree(CHECKOUT, directory / "a checkout", symlinks=True)
    (directory / "tmp").mkdir()
    mask = os.umask(0o077)
    try:
        output = directory / "output"
        environment = {"TZ": "Pacific/Auckland", "TMPDIR": str(directory / "tmp")}
        return build(copy, output, format, SOURCE_DATE_EPOCH="1000000000", **environment)
    finally:
        os.umask(mask)


class Package(TestCase):
    def test_it_is_the_same_bytes_from_anywhere_at_any_time_under_any_umask(self):
        first = build(CHECKOUT, self.directory / "first")
        again = build_otherwise(self.directory, "deb")
        self.assertEqual(again.name, first.name)
        self.assertEqual(*(hashlib.sha256(p.read_bytes()).hexdigest() for p in (again, first)))
        self.assertEqual(list((self.directory / "tmp").iterdir()), [])

    def test_its_files_are_those_that_install_sh_installs_without_links(self):
        stage, tree = self.directory / "stage", self.directory / "tree"
        environment = {**os.environ, "DESTDIR": str(stage)}
        drivers = ["--driver", "lxc", "--driver", "qemu"]
        installer = packages / "newer/install.sh"
        self.done([installer, *drivers, "--prefix", "/usr"], env=environment)
        (stage / HOOKS / ".virt-hooks.sha256").unlink()
        self.done(["cp", "-RL", stage, self.directory / "copy"])
        self.done(["dpkg-deb", "--extract", new, tree])
        shutil.rmtree(tree / "usr/share/doc")
        self.done(["gunzip", *tree.glob("usr/share/man/*/*")])
        wanted, found = (
            {os.path.relpath(path, top): what for path, what in snapshot(top).items()}
            for top in (self.directory / "copy", tree)
        )
        del wanted["."], found["."]  # mkdir's and dpkg-deb's
        self.assertEqual(found, wanted)

    def test_lintian_finds_nothing(self):
        said = self.done(["lintian", "--pedantic", "--allow-root", "--fail-on=pedantic", new])
        self.assertEqual(said, "")

    def test_the_packages_and_the_command_have_one_version(self):
        name = build(CHECKOUT, self.directory).name
        for file, pattern in (
            ("command/virt-hooks", r'^VERSION = "(.*)"'),
            (CHANGELOG, r"\((.*?)\)"),
            (SPEC, r"^Version: +(.*)"),
            (SPEC, r"^\* .* - (.*)-1$"),
        ):
            versions = re.findall(pattern, (CHECKOUT / file).read_text(), re.MULTILINE)
            self.assertEqual(name, f"virt-hooks_{versions[0]}_all.deb", file)


class OnDebian12(TestCase):
    suite = "bookworm"

    def put(self, host, package):
        shutil.copy(package, host.root / "root/virt-hooks.deb")

    def dpkg(self, host, package, *options):
        """Install a package, and answer no question."""
        self.put(host, package)
        return host.run("dpkg", *options, "--install", "/root/virt-hooks.deb", input="")

    def install(self, host, package):
        """Install a package, and keep the administrator's version where dpkg would ask."""
        result = self.dpkg(host, package, "--force-confdef", "--force-confold")
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)

    def assert_refuses(self, host, *parts):
        """The package is refused for a reason, and nothing has changed."""
        before = host.hooks()
        result = self.dpkg(host, old)
        self.assertNotEqual(result.returncode, 0)
        for part in parts:
            self.assertIn(part, result.stderr)
        self.assertEqual(host.hooks(), before)
        self.assertFalse((host.root / "usr/sbin/virt-hooks").exists())

    def active(self, host):
        """The drivers for which libvirt would run a hook."""
        places = {driver: host.root / HOOKS / driver for driver in ("lxc", "qemu")}
        return [name for name, path in places.items() if os.access(path, os.X_OK)]

    def prepare(self, host, elements=""):
        xml = f'<domain><metadata><hooks xmlns="urn:virt-hooks:1">{elements}</hooks></metadata>'
        command = [f"/{HOOKS}/lxc", "web", "prepare", "begin", "-"]
        return host.done(*command, input=f"{xml}</domain>")

    def test_a_fresh_system_gets_it_from_apt_with_python_and_from_install_sh_only_with_it(self):
        host = self.host(self.suite, fresh=True)
        copy_checkout(host.root / "root/checkout")
        for option in ("--no-reload", "--demo"):
            result = host.run("/root/checkout/install.sh", option)
            self.assertEqual((result.returncode, result.stdout), (1, ""))
            self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
            self.assertIn("/usr/bin/python3", result.stderr)
        self.assertFalse((host.root / "etc/libvirt").exists())
        self.assertFalse((host.root / "usr/local/sbin/virt-hooks").exists())

        self.put(host, new)
        host.done("apt-get", "-q", "update")
        install = ["apt-get", "-q", "-y", "install", "--no-install-recommends"]
        host.done(*install, "/root/virt-hooks.deb", timeout=300)
        self.prepare(host, "<mkdirs><dir>/srv/web/log</dir></mkdirs>")
        self.assertTrue((host.root / "srv/web/log").is_dir())
        self.assertIn("99.0.1", host.done("virt-hooks", "--version"))
        host.done("apt-get", "-q", "-y", "purge", "virt-hooks")
        self.assertFalse((host.root / "etc/libvirt").exists())
        self.assertIn("After", host.done("/root/checkout/install.sh", "--demo"))

    def test_without_python_it_puts_no_dispatcher_into_place(self):
        host = self.host(self.suite, fresh=True)
        self.assertNotEqual(self.dpkg(host, new).returncode, 0)
        self.assertEqual(self.active(host), [])
        host.done("dpkg", "--remove", "virt-hooks")
        self.assertEqual(self.active(host), [])

    def test_an_upgrade_replaces_what_is_unchanged_and_keeps_what_is_not(self):
        host = self.host(self.suite)
        self.install(host, old)
        changed = host.write(f"{HOOKS}/{SCRIPT}", FOREIGN, 0o755)
        switched_off = host.root / HOOKS / "lxc_release_end_-.d/30-post-rm-rf"
        switched_off.chmod(0o644)
        (host.root / HOOKS / ARCHIVE).unlink()
        (host.root / HOOKS / "qemu").chmod(0o644)
        self.install(host, new)
        self.assertEqual(changed.read_text(), FOREIGN)
        self.assertIn("# newer", changed.with_name("10-mkdirs.dpkg-dist").read_text())
        self.assertIn("# newer", switched_off.read_text())
        self.assertEqual(switched_off.stat().st_mode & 0o777, 0o644)
        self.assertFalse((host.root / HOOKS / ARCHIVE).exists())
        self.assertEqual(self.active(host), ["lxc"])
        self.prepare(host, "<mkdirs><dir>/srv/web</dir></mkdirs>")
        self.assertFalse((host.root / "srv/web").exists(), "what dpkg has put beside it ran")

    def test_an_upgrade_removes_what_version_1_0_had_unless_its_changed_dispatcher_stays(self):
        host = self.host(self.suite)
        self.install(host, old)
        kept_code = host.root / "run/virt-hooks-code"
        kept_code.mkdir()
        host.write(f"{HOOKS}/qemu", "#!/bin/sh\n# changed; it runs qemu_run.py\n", 0o755)
        self.install(host, new)
        self.assertFalse((host.root / HOOKS / "lxc_run.py").exists())
        self.assertTrue((host.root / HOOKS / "qemu_run.py").exists())
        self.assertFalse(kept_code.exists())

    def test_an_installation_that_stops_at_a_question_has_no_dispatcher_in_place(self):
        host = self.host(self.suite)
        for script in (SCRIPT, "qemu_prepare_begin_-.d/10-mkdirs"):
            host.write(f"{HOOKS}/{script}", FOREIGN, 0o755)
        self.assertNotEqual(self.dpkg(host, old).returncode, 0)
        self.assertEqual(self.active(host), [])
        self.install(host, old)
        self.assertEqual(self.active(host), ["lxc", "qemu"])

    def test_it_refuses_to_replace_another_hook_or_what_install_sh_has_installed(self):
        host = self.host(self.suite)
        for driver in ("lxc", "qemu"):
            hook = host.write(f"{HOOKS}/{driver}", FOREIGN, 0o755)
            self.assert_refuses(host, f"/{HOOKS}/{driver} ")
            hook.unlink()
        copy_checkout(host.root / "root/checkout")
        host.done("/root/checkout/install.sh", "--no-reload")
        self.assert_refuses(host, "install.sh --uninstall")
        host.done("/root/checkout/install.sh", "--uninstall")
        self.install(host, old)

    def test_install_sh_refuses_where_the_package_is_until_it_is_purged(self):
        host = self.host(self.suite)
        copy_checkout(host.root / "root/checkout")
        for prepare in (lambda: self.install(host, old), lambda: host.done(*REMOVE)):
            prepare()
            before = host.hooks()
            for options in (["--no-reload"], ["--uninstall"], ["--prefix", "/usr"]):
                result = host.run("/root/checkout/install.sh", *options)
                self.assertEqual((result.returncode, result.stdout), (1, ""))
                self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
                self.assertIn("purge virt-hooks", result.stderr)
                self.assertEqual(host.hooks(), before)
        self.assertFalse((host.root / "usr/local/sbin/virt-hooks").exists())
        host.done("dpkg", "--purge", "virt-hooks")
        host.done("/root/checkout/install.sh", "--no-reload")
        self.assertEqual(self.active(host), ["lxc"])

    def test_removed_it_runs_no_more_and_installed_again_it_is_as_it_was(self):
        host = self.host(self.suite)
        self.install(host, new)
        host.write(f"{HOOKS}/{SCRIPT}", FOREIGN, 0o755)
        (host.root / HOOKS / ARCHIVE).chmod(0o644)
        (host.root / HOOKS / "qemu").chmod(0o644)
        before = host.hooks()
        host.done(*REMOVE)
        self.assertEqual(self.active(host), [])
        self.install(host, new)
        self.assertEqual(host.hooks(), before)

        host.done(*REMOVE)
        host.write(f"{HOOKS}/lxc", FOREIGN, 0o755)  # takes its place meanwhile
        self.assert_refuses(host, f"/{HOOKS}/lxc ")

    def test_purged_it_leaves_the_administrators_own_scripts_and_nothing_else(self):
        host = self.host(self.suite)
        own = ("lxc_prepare_begin_-.d/50-own", "qemu_release_end_-.d/web/10-own", "lxc.d/own")
        for path in own:
            host.write(f"{HOOKS}/{path}", FOREIGN, 0o755)
        before = host.hooks()
        for remove_first in (False, True):
            self.install(host, old)
            host.write(f"{HOOKS}/{SCRIPT}", FOREIGN, 0o755)
            if remove_first:
                host.done(*REMOVE)
            host.done("dpkg", "--purge", "virt-hooks")
            self.assertEqual(host.hooks(), before)

    def test_libvirt_runs_it_while_it_is_configured_and_starts_guests_at_any_time(self):
        host = self.host(self.suite)
        host.start_libvirtd()
        self.addCleanup(host.stop_libvirtd)
        runs, does_not = (True, "greeting"), (False,)
        self.assertEqual(host.live()[0], does_not)
        self.install(host, old)  # tells libvirtd, or it would not look
        self.assertEqual(host.live(), (runs, (False, "log")))
        self.install(host, new)
        self.assertEqual(host.live()[0][:2], runs)
        host.done(*REMOVE)  # tells it, or no guest would start
        self.assertFalse(host.live()[0][0])

        host.write(
            f"{HOOKS}/{SCRIPT}", (host.root / HOOKS / SCRIPT).read_text() + "# mine\n", 0o755
        )
        self.install(host, new)
        self.assertTrue(host.live()[0][0])
        self.assertNotEqual(self.dpkg(host, old, "--force-downgrade").returncode, 0)  # a question
        self.assertTrue(host.live()[0][0])
        host.done("apt-get", "-q", "-y", "remove", "virt-hooks")
        self.assertEqual(self.active(host), [])
        self.assertFalse(host.live()[0][0])

        self.install(host, new)
        self.assertTrue(host.live()[0][0])
        host.done("apt-get", "-q", "-y", "remove", "python3-minimal")  # and with it the package
        self.assertFalse((host.root / "usr/bin/python3").exists())
        self.assertFalse(host.live()[0][0])
        host.done("dpkg", "--purge", "virt-hooks")
        self.assertFalse(host.live()[0][0])


class OnDebian13(OnDebian12):
    suite = "trixie"
