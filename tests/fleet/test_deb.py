"""The Debian package: what is in it, and what dpkg does with it on Debian 12 and 13."""

import hashlib
import os
import re
import shutil
import tempfile
import unittest
from pathlib import Path

from hosts import CHECKOUT, HOOKS, TestCase, run, snapshot

DISPATCHER = "/usr/sbin/virt-hooks-dispatch"
SCRIPT = "lxc_prepare_begin_-.d/10-mkdirs"
ARCHIVE = "lxc_release_end_-.d/10-archive"
DELETION = "lxc_release_end_-.d/30-post-rm-rf"
FOREIGN = "#!/bin/sh\n# an administrator's own\nexit 0\n"
REMOVE = ("dpkg", "--remove", "virt-hooks")


def setUpModule():
    global packages, old, new
    packages = Path(tempfile.mkdtemp(prefix="virt-hooks-packages-"))
    unittest.addModuleCleanup(shutil.rmtree, packages)
    old = build(CHECKOUT, packages / "old")
    new = build(newer_checkout(packages / "newer"), packages / "new")


def copy_checkout(place):
    """A copy of the checkout, without its history."""
    return shutil.copytree(CHECKOUT, place, symlinks=True, ignore=shutil.ignore_patterns(".git"))


def replace(path, pattern, text):
    path.write_text(re.sub(pattern, text, path.read_text(), count=1, flags=re.MULTILINE))


def newer_checkout(place):
    """A copy of the checkout with another version, in which every file is another one."""
    copy_checkout(place)
    replace(place / "command/virt-hooks", r'^VERSION = ".*"$', 'VERSION = "99.0.1"')
    replace(place / "packaging/debian/changelog", r"\(.*?\)", "(99.0.1)")
    replace(place / "packaging/virt-hooks.spec", r"^(Version: +).*", r"\g<1>99.0.1")
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
    copy = copy_checkout(directory / "a checkout")
    for path in copy.rglob("*"):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & 0o700)  # as git clone makes it under this umask
    (directory / "tmp").mkdir()
    mask = os.umask(0o077)
    try:
        output = directory / "output"
        environment = {"TZ": "Pacific/Auckland", "TMPDIR": str(directory / "tmp")}
        return build(copy, output, format, SOURCE_DATE_EPOCH="1000000000", **environment)
    finally:
        os.umask(mask)


def is_ours(hook):
    return hook.is_symlink() and os.readlink(hook) == DISPATCHER


class Package(TestCase):
    def test_it_is_the_same_bytes_from_anywhere_at_any_time_under_any_umask(self):
        again = build_otherwise(self.directory, "deb")
        self.assertEqual(again.name, old.name)
        self.assertEqual(*(hashlib.sha256(p.read_bytes()).hexdigest() for p in (again, old)))
        self.assertEqual(list((self.directory / "tmp").iterdir()), [])

    def test_its_files_are_those_of_install_sh_with_the_dispatcher_as_code(self):
        stage, copy, tree = (self.directory / name for name in ("stage", "copy", "tree"))
        environment = {**os.environ, "DESTDIR": str(stage)}
        drivers = ["--driver", "lxc", "--driver", "qemu"]
        self.done([packages / "newer/install.sh", *drivers, "--prefix", "/usr"], env=environment)
        (stage / HOOKS / ".virt-hooks.sha256").unlink()
        self.done(["cp", "-RL", stage, copy])
        os.rename(copy / HOOKS / "lxc", f"{copy}{DISPATCHER}")
        (copy / HOOKS / "qemu").unlink()
        for driver in ("lxc", "qemu"):
            (copy / HOOKS / driver).symlink_to(DISPATCHER)
        self.done(["dpkg-deb", "--extract", new, tree])
        for name in ("doc", "lintian"):
            shutil.rmtree(tree / "usr/share" / name)
        self.done(["gunzip", *tree.glob("usr/share/man/*/virt-hooks.?.gz")])
        os.unlink(tree / "usr/share/man/man8/virt-hooks-dispatch.8.gz")
        wanted, found = (
            {os.path.relpath(path, top): what for path, what in snapshot(top).items()}
            for top in (copy, tree)
        )
        del wanted["."], found["."]  # mkdir's and dpkg-deb's
        self.assertEqual(found, wanted)

    def test_dpkg_comes_to_the_hooks_last_and_to_an_archive_before_its_deletion(self):
        """dpkg unpacks in the order of the contents, removes in the reverse one."""
        listing = self.done(["dpkg-deb", "--contents", old]).splitlines()
        places = [line.split()[5].lstrip(".") for line in listing]
        for driver in ("lxc", "qemu"):
            hook = places.index(f"/{HOOKS}/{driver}")
            scripts = [n for n, path in enumerate(places) if path.startswith(f"/{HOOKS}/{driver}_")]
            self.assertGreater(hook, max([*scripts, places.index(DISPATCHER)]))
        self.done(["dpkg-deb", "--control", old, self.directory / "control"])
        conffiles = (self.directory / "control/conffiles").read_text().split()
        in_etc = {line.split()[5][1:] for line in listing if re.match(r"-.* \./etc/", line)}
        self.assertEqual(sorted(conffiles), sorted(in_etc))
        for driver in ("lxc", "qemu"):
            places = [ARCHIVE.replace("lxc", driver), DELETION.replace("lxc", driver)]
            archive, deletion = (conffiles.index(f"/{HOOKS}/{path}") for path in places)
            self.assertLess(archive, deletion)

    def test_its_examples_are_documentation(self):
        listing = self.done(["dpkg-deb", "--contents", old]).splitlines()
        examples = [line for line in listing if "/doc/virt-hooks/examples/" in line]
        self.assertGreater(len(examples), 5)
        for line in examples:
            self.assertRegex(line, "^(-rw-r--r--|drwxr-xr-x) root/root")

    def test_lintian_finds_nothing(self):
        said = self.done(["lintian", "--pedantic", "--allow-root", "--fail-on=pedantic", old])
        self.assertEqual(said, "")


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

    def assert_refuses(self, host, *parts, package=None):
        """The package is refused for a reason, and nothing has changed."""
        before, program = host.hooks(), host.root / "usr/sbin/virt-hooks"
        version = program.read_text() if program.exists() else None
        result = self.dpkg(host, package or old)
        self.assertNotEqual(result.returncode, 0)
        for part in parts:
            self.assertIn(part, result.stderr)
        self.assertEqual(host.hooks(), before)
        self.assertEqual(program.read_text() if program.exists() else None, version)
        return result.stderr

    def active(self, host):
        """The drivers for which libvirt would run a hook."""
        found = []
        for driver in ("lxc", "qemu"):
            hook = host.root / HOOKS / driver
            program = f"{host.root}{DISPATCHER}" if is_ours(hook) else hook
            found += [driver] if os.access(program, os.X_OK) else []
        return found

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

        self.assert_refuses(host, "python3")
        self.assertFalse((host.root / "etc/libvirt").exists())
        host.done("apt-get", "-q", "update")
        install = ["apt-get", "-q", "-y", "install", "--no-install-recommends"]
        host.done(*install, "/root/virt-hooks.deb", timeout=300)
        self.prepare(host, "<mkdirs><dir>/srv/web/log</dir></mkdirs>")
        self.assertTrue((host.root / "srv/web/log").is_dir())
        self.assertIn("virt-hooks ", host.done("virt-hooks", "--version"))
        host.done("apt-get", "-q", "-y", "purge", "virt-hooks")
        self.assertFalse((host.root / "etc/libvirt").exists())
        self.assertIn("release end", host.done("/root/checkout/install.sh", "--demo"))

    def test_its_own_test_passes(self):
        host = self.host(self.suite)
        self.install(host, old)
        control = (CHECKOUT / "packaging/debian/tests/control").read_text()
        (command,) = re.findall("^Test-Command: (.*)$", control, re.MULTILINE)
        self.assertIn("release end", host.done("sh", "-euc", command))

    def test_an_upgrade_replaces_what_is_unchanged_and_keeps_what_is_not(self):
        host = self.host(self.suite)
        self.install(host, old)
        changed = host.write(f"{HOOKS}/{SCRIPT}", FOREIGN, 0o755)
        switched_off = host.root / HOOKS / DELETION
        switched_off.chmod(0o644)
        (host.root / HOOKS / ARCHIVE).unlink()
        self.install(host, new)
        self.assertEqual(changed.read_text(), FOREIGN)
        self.assertIn("# newer", changed.with_name("10-mkdirs.dpkg-dist").read_text())
        self.assertIn("# newer", switched_off.read_text())
        self.assertEqual(switched_off.stat().st_mode & 0o777, 0o644)
        self.assertFalse((host.root / HOOKS / ARCHIVE).exists())
        self.assertEqual(self.active(host), ["lxc", "qemu"])
        self.assertIn("# newer", (host.root / DISPATCHER[1:]).read_text())
        self.prepare(host, "<mkdirs><dir>/srv/web</dir></mkdirs>")
        self.assertFalse((host.root / "srv/web").exists(), "what dpkg has put beside it ran")

    def test_an_installation_that_stops_at_a_question_has_no_deletion_without_its_archive(self):
        host = self.host(self.suite)
        host.write(f"{HOOKS}/{ARCHIVE}", FOREIGN, 0o755)
        self.assertNotEqual(self.dpkg(host, old).returncode, 0)
        self.assertFalse((host.root / HOOKS / DELETION).exists())
        host.done(*REMOVE)
        self.assertEqual(self.active(host), [])
        self.install(host, old)
        self.assertTrue((host.root / HOOKS / DELETION).exists())

    def test_it_refuses_to_replace_another_hook_of_whatever_mode_in_an_upgrade_too(self):
        host = self.host(self.suite)
        for package in (old, new):  # the second one finds the first one installed
            for driver in ("lxc", "qemu"):
                hook = host.root / HOOKS / driver
                for make in (
                    lambda hook: hook.write_text(FOREIGN),
                    lambda hook: (hook.write_text(FOREIGN), hook.chmod(0o755)),
                    lambda hook: (hook.write_text(FOREIGN), hook.chmod(0o600)),
                    lambda hook: hook.symlink_to("/usr/local/sbin/hook"),
                    lambda hook: hook.mkdir(),
                ):
                    hook.parent.mkdir(parents=True, exist_ok=True)
                    hook.unlink(missing_ok=True)
                    make(hook)
                    self.assert_refuses(host, f"/{HOOKS}/{driver} ", package=package)
                    hook.rmdir() if hook.is_dir() else hook.unlink()
                if package == new:
                    hook.symlink_to(DISPATCHER)
            self.install(host, package)

    def test_its_advice_keeps_a_hook_in_use_with_what_lies_beside_it(self):
        host = self.host(self.suite)
        tree = '#!/bin/sh\n"${0%/*}/qemu.d/$1/$2/$3/start.sh" "$(cat "${0%/*}/name")"\n'
        host.write(f"{HOOKS}/qemu", tree, 0o755)
        host.write(f"{HOOKS}/name", "mine\n")
        others = ("network", "lxc.d/own")
        for path in others:
            host.write(f"{HOOKS}/{path}", FOREIGN)
        start = '#!/bin/sh\necho "$1" >/srv/ran\n'
        host.write(f"{HOOKS}/qemu.d/win10/prepare/begin/start.sh", start, 0o755)
        said = self.assert_refuses(host, f"/{HOOKS}/qemu ")
        commands = [line for line in said.splitlines() if line.startswith("    ")]
        host.done("sh", "-euc", "\n".join(commands))
        self.install(host, old)
        call = [f"/{HOOKS}/qemu", "win10", "prepare", "begin", "-"]
        host.done(*call, input="<domain/>")
        self.assertEqual((host.root / "srv/ran").read_text(), "mine\n")
        for path in others:
            self.assertEqual((host.root / HOOKS / path).read_text(), FOREIGN)

    def test_it_refuses_directories_that_others_can_write_and_says_what_to_run(self):
        host = self.host(self.suite)
        for name in ("", "lxc_prepare_begin_-.d"):
            directory = host.root / HOOKS / name
            directory.mkdir(parents=True, exist_ok=True)
            directory.chmod(0o775)
            said = self.assert_refuses(host, f"/{HOOKS}/{name}".rstrip("/"))
            host.done("sh", "-euc", said.partition("Run first: ")[2].partition("\n")[0])
        self.install(host, old)
        self.prepare(host)

    def test_a_diversion_keeps_another_hook(self):
        host = self.host(self.suite)
        foreign = host.write(f"{HOOKS}/qemu", FOREIGN, 0o600)
        host.done("dpkg-divert", "--no-rename", "--divert", f"/{HOOKS}/qemu.ours", f"/{HOOKS}/qemu")
        for package in (old, new):
            self.install(host, package)
            self.assertEqual((foreign.read_text(), foreign.stat().st_mode), (FOREIGN, 0o100600))
            self.assertTrue(is_ours(host.root / HOOKS / "qemu.ours"))
        host.done(*REMOVE)
        self.assertEqual((foreign.read_text(), foreign.stat().st_mode), (FOREIGN, 0o100600))
        self.assertFalse((host.root / HOOKS / "qemu.ours").is_symlink())

    def test_a_diversion_switches_a_driver_off(self):
        host = self.host(self.suite)
        self.install(host, old)
        host.done("dpkg-divert", "--rename", "--divert", f"/{HOOKS}/qemu.off", f"/{HOOKS}/qemu")
        self.assertEqual(self.active(host), ["lxc"])
        self.install(host, new)
        self.assertEqual(self.active(host), ["lxc"])
        host.done("dpkg", "--purge", "virt-hooks")
        self.assertEqual(self.active(host), [])
        self.assertFalse((host.root / HOOKS / "qemu.off").is_symlink())

    def test_it_refuses_what_install_sh_has_installed(self):
        host = self.host(self.suite)
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

    def test_removed_it_has_no_hook_and_installed_again_it_is_as_it_was(self):
        host = self.host(self.suite)
        self.install(host, new)
        host.write(f"{HOOKS}/{SCRIPT}", FOREIGN, 0o755)
        (host.root / HOOKS / ARCHIVE).chmod(0o644)
        before = host.hooks()
        host.done(*REMOVE)
        self.assertEqual(host.hooks().keys(), before.keys() - {"lxc", "qemu"})
        foreign = host.write(f"{HOOKS}/lxc", FOREIGN, 0o755)  # takes its place meanwhile
        self.assert_refuses(host, f"/{HOOKS}/lxc ")
        foreign.unlink()
        self.install(host, new)
        self.assertEqual(host.hooks(), before)

    def test_a_hook_that_came_into_its_place_stays_when_it_is_removed_or_purged(self):
        host = self.host(self.suite)
        for action in ("--remove", "--purge"):
            self.install(host, old)
            hook = host.root / HOOKS / "lxc"
            hook.unlink()
            host.write(f"{HOOKS}/lxc", FOREIGN, 0o750)
            host.done("dpkg", action, "virt-hooks")
            self.assertEqual((hook.read_text(), hook.stat().st_mode), (FOREIGN, 0o100750))
            self.assertFalse((host.root / HOOKS / "qemu").is_symlink())
            hook.unlink()

    def test_it_is_removed_without_python_and_after_an_upgrade_that_failed(self):
        host = self.host(self.suite)
        self.install(host, old)
        host.write(f"{HOOKS}/{SCRIPT}", FOREIGN, 0o755)
        self.assertNotEqual(self.dpkg(host, new).returncode, 0)  # a question
        host.done(*REMOVE)
        self.assertEqual(self.active(host), [])
        self.install(host, old)
        host.done("dpkg", "--remove", "--force-depends", "python3", "python3-minimal")
        self.assertFalse((host.root / "usr/bin/python3").exists())
        host.done(*REMOVE)
        self.assertEqual(self.active(host), [])

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

    def test_libvirt_runs_it_while_it_is_installed_and_starts_guests_at_any_time(self):
        host = self.host(self.suite)
        host.start_libvirtd()
        self.addCleanup(host.stop_libvirtd)
        runs, does_not = (True, "greeting"), (False,)
        self.assertEqual(host.live()[0], does_not)
        self.install(host, old)  # tells libvirtd, or it would not look
        self.assertEqual(host.live(), (runs, (False, "log")))
        self.install(host, new)
        self.assertEqual(host.live()[0][:2], runs)
        self.assertEqual(host.run("virt-hooks", "check", "--driver", "lxc").stdout, "")
        host.done(*REMOVE)  # tells it, or no guest would start
        self.assertFalse(host.live()[0][0])

        self.install(host, new)
        changed = (host.root / HOOKS / SCRIPT).read_text() + "# mine\n"
        host.write(f"{HOOKS}/{SCRIPT}", changed, 0o755)
        self.assertNotEqual(self.dpkg(host, old, "--force-downgrade").returncode, 0)  # a question
        self.assertTrue(host.live()[0][0])
        host.done("apt-get", "-q", "-y", "remove", "python3-minimal")  # and with it the package
        self.assertFalse((host.root / "usr/bin/python3").exists())
        self.assertEqual(self.active(host), [])
        self.assertFalse(host.live()[0][0])
        host.done("dpkg", "--purge", "virt-hooks")
        self.assertFalse(host.live()[0][0])


class OnDebian13(OnDebian12):
    suite = "trixie"
