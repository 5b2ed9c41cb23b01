"""install.sh: what it installs, what it never touches, whom it tells, and its demonstration."""

import fcntl
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import time
import unittest
from pathlib import Path

from harness import (
    CHECKOUT,
    LINKS,
    SCRIPTS,
    Syslog,
    TestCase,
    domain,
    mount_points,
    run,
    snapshot,
)
from libvirt import HOOKS, wait_until

ALL_DRIVERS = ("daemon", "qemu", "lxc", "libxl", "bhyve", "network", "ch")
PREPARE, RELEASE = "lxc_prepare_begin_-.d", "lxc_release_end_-.d"
RECORD, TOLD = ".virt-hooks.sha256", ".virt-hooks.told"
# where they are installed, and where they come from
FILES = {"lxc": "hooks/lxc", "lxc_run.py": "hooks/lxc_run.py"}
FILES |= {f"{place}/{name}": f"{place}/{name}" for name, place in SCRIPTS.items()}
QEMU_FILE = "qemu_restore_begin_-.d/00-saved-image"
QEMU_LINK = "qemu_started_begin_-.d/00-saved-image"
COMMAND = {  # where it is below the prefix, and where it comes from
    "sbin/virt-hooks": "command/virt-hooks",
    "share/man/man8/virt-hooks.8": "command/virt-hooks.8",
    "share/man/man5/virt-hooks.5": "command/virt-hooks.5",
    "share/bash-completion/completions/virt-hooks": "command/virt-hooks.bash",
}
LINK = f"{RELEASE}/20-ramdisk"
SOME_FILES = ("lxc", f"{PREPARE}/20-ramdisk", f"{RELEASE}/10-archive")
NEVER_RUN = "#!/bin/sh\necho this must never run >&2\nexit 99\n"


class InstallTestCase(TestCase):
    def setUp(self):
        super().setUp()
        self.hooks = self.directory / "hooks"
        self.prefix = self.directory / "usr"

    def install(self, *options, source=CHECKOUT, **more):
        """Run install.sh, by default into self.hooks and self.prefix, without telling anybody."""
        more.setdefault("env", {"PATH": os.environ["PATH"]})
        places = ["--hooks-dir", self.hooks, "--prefix", self.prefix]
        return run([source / "install.sh", *places, "--no-reload", *options], **more)

    def installed(self, *options, **more):
        result = self.install(*options, **more)
        self.assert_succeeds(result)
        return result.stdout

    def copy_of_checkout(self, name="checkout"):
        copy = self.directory / name
        parts = [CHECKOUT / name for name in ("hooks", "examples", "command")]
        for part in (*parts, *CHECKOUT.glob("*_*.d")):
            shutil.copytree(part, copy / part.name, symlinks=True)
        for file in ("install.sh",):
            shutil.copy(CHECKOUT / file, copy)
        return copy

    def newer_copy(self, name="newer"):
        """A copy of the checkout in which every script is another one."""
        copy = self.copy_of_checkout(name)
        for path in FILES.values():
            with open(copy / path, "a") as file:
                file.write("# newer\n")
        return copy

    def assert_installed_from(self, source, hooks=None, driver="lxc"):
        """Each file is there, whole, executable, and so is the link; nothing else is."""
        hooks = hooks or self.hooks
        wanted = {path.replace("lxc", driver, 1): source / file for path, file in FILES.items()}
        if driver in ("daemon", "network"):
            wanted = {driver: source / "hooks/lxc", f"{driver}_run.py": source / "hooks/lxc_run.py"}
        for path, file in wanted.items():
            self.assertEqual((hooks / path).read_bytes(), file.read_bytes(), path)
            status = (hooks / path).lstat()
            mode = 0o100644 if path.endswith(".py") else 0o100755
            self.assertEqual((status.st_mode, status.st_uid, status.st_gid), (mode, 0, 0), path)
        if driver not in ("daemon", "network"):
            for link, target in LINKS.items():
                link, target = link.replace("lxc", driver), target.replace("lxc", driver)
                self.assertEqual(os.readlink(hooks / link), target)

    def names(self, directory=None):
        """The names of all files below the hooks directory."""
        directory = directory or self.hooks
        files = (path for path in directory.rglob("*") if not path.is_dir())
        return {str(path.relative_to(directory)) for path in files}

    def replace(self, path, text, mode=0o755):
        path = self.hooks / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path

    def dispatch(self, *phase, xml="<domain/>", driver="lxc"):
        return run([self.hooks / driver, "web", *phase], input=xml)


def everything_of(directory):
    """What stat(2) says of each file: another change time, and something was done to it."""
    found = {}
    for path in [directory, *sorted(directory.rglob("*"))]:
        status = path.lstat()
        found[str(path)] = (status.st_ino, status.st_mode, status.st_mtime_ns, status.st_ctime_ns)
    return found


class Installing(InstallTestCase):
    def test_it_installs_the_dispatcher_and_the_scripts_for_lxc(self):
        said = self.installed()
        self.assert_installed_from(CHECKOUT)
        self.assertEqual(self.names(), {*FILES, *LINKS, RECORD})
        for path in (*FILES, *LINKS):
            self.assertIn(f"installed {self.hooks}/{path}\n", said)

    def test_what_is_installed_runs(self):
        self.installed()
        for phase in (("prepare", "begin", "-"), ("release", "end", "shutdown")):
            made = f"<dir>{self.directory}/made</dir>"
            elements = f"<mkdirs>{made}</mkdirs><post-rm-rf>{made}</post-rm-rf>"
            result = self.dispatch(*phase, xml=domain(elements))
            self.assertEqual((result.returncode, result.stderr), (0, ""))
            self.assertEqual((self.directory / "made").exists(), phase[0] == "prepare")

    def test_the_default_is_the_directory_of_libvirt(self):
        result = run([CHECKOUT / "install.sh", "--no-reload"])
        self.assert_succeeds(result)
        self.addCleanup(shutil.rmtree, HOOKS)
        self.assert_installed_from(CHECKOUT, HOOKS)

    def test_it_installs_below_destdir(self):
        stage, before = self.directory / "stage", everything_of(Path("/usr/local/sbin"))
        for options, place in (
            ([], "etc/libvirt/hooks"),
            (["--hooks-dir", "/opt/hooks"], "opt/hooks"),
            (["--hooks-dir", "/opt/slash/"], "opt/slash"),
        ):
            with self.subTest(options=options):
                environment = {**os.environ, "DESTDIR": str(stage)}
                result = run([CHECKOUT / "install.sh", *options], env=environment)
                self.assert_succeeds(result)
                self.assert_installed_from(CHECKOUT, stage / place)
                self.assertNotIn("daemon", result.stdout)
        self.assertFalse(HOOKS.exists())
        self.assertEqual({path.name for path in stage.iterdir()}, {"etc", "opt", "usr"})
        self.assertEqual(everything_of(Path("/usr/local/sbin")), before)

    def test_a_relative_destdir_is_relative_to_where_it_was_called(self):
        result = run(
            [CHECKOUT / "install.sh"], env={**os.environ, "DESTDIR": "stage"}, cwd=self.directory
        )
        self.assert_succeeds(result)
        self.assert_installed_from(CHECKOUT, self.directory / "stage/etc/libvirt/hooks")

    def test_modes_are_right_whatever_the_umask(self):
        for umask in ("077", "000", "027"):
            with self.subTest(umask=umask):
                hooks = self.directory / f"umask-{umask}/deep/hooks"
                command = 'umask "$1"; shift; exec "$@"'
                result = run(
                    ["sh", "-c", command, "sh", umask, CHECKOUT / "install.sh", "--no-reload"]
                    + ["--hooks-dir", hooks]
                )
                self.assert_succeeds(result)
                self.assert_installed_from(CHECKOUT, hooks)
                parents = (hooks.parent.parent, hooks.parent)
                for path in (*parents, hooks, hooks / PREPARE, hooks / RELEASE):
                    self.assertEqual(path.stat().st_mode, 0o40755, path)
                self.assertEqual((hooks / RECORD).stat().st_mode, 0o100644)

    def test_modes_are_right_whatever_those_in_the_checkout(self):
        copy = self.copy_of_checkout()
        for mode in (0o644, 0o600, 0o777):
            with self.subTest(mode=oct(mode)):
                self.hooks = self.directory / f"mode-{mode:o}"
                for path in FILES.values():
                    (copy / path).chmod(mode)
                self.installed(source=copy)
                self.assert_installed_from(copy)

    def test_paths_may_have_spaces_and_worse_in_them(self):
        for name in ("a b", "$(touch pwned)", "back\\nslash", "*", "-n", "quo'te\"", "é"):
            with self.subTest(name=name):
                self.hooks = self.directory / name / "hooks"
                copy = self.newer_copy(f"from {name}")
                said = self.installed(source=copy)
                self.assert_installed_from(copy)
                self.assertIn(f"installed {self.hooks}/lxc\n", said)
                self.installed("--uninstall", source=copy)
                self.assertEqual(self.names(), set())
                environment = {**os.environ, "DESTDIR": str(self.hooks)}
                self.assert_succeeds(run([copy / "install.sh"], env=environment))
                self.assert_installed_from(copy, self.hooks / "etc/libvirt/hooks")
        self.assertEqual(list(self.directory.rglob("pwned")), [])

    def test_it_finds_its_files_from_anywhere_and_however_it_is_called(self):
        copy = self.newer_copy()
        os.symlink(copy / "install.sh", self.directory / "link to it")
        for number, (command, cwd) in enumerate(
            (
                (["./install.sh"], copy),
                (["sh", "install.sh"], copy),
                (["../install.sh"], copy / "hooks"),
                ([self.directory / "link to it"], "/"),
                (["sh", f"{copy}/hooks/../install.sh"], "/"),
            )
        ):
            with self.subTest(command=command):
                self.hooks = self.directory / f"hooks-{number}"
                options = ["--hooks-dir", self.hooks, "--no-reload"]
                environment = {**os.environ, "CDPATH": "/"}
                self.assert_succeeds(run([*command, *options], cwd=cwd, env=environment))
                self.assert_installed_from(copy)

    def test_drivers_get_a_copy_each_and_naming_them_replaces_the_default(self):
        names = [option for driver in ALL_DRIVERS for option in ("--driver", driver)]
        said = self.installed(*names)
        for driver in ALL_DRIVERS:
            self.assert_installed_from(CHECKOUT, driver=driver)
        self.assertEqual(len({(self.hooks / driver).stat().st_ino for driver in ALL_DRIVERS}), 7)
        for driver in ("network", "daemon"):
            self.assertEqual([p.name for p in self.hooks.glob(f"{driver}_*")], [f"{driver}_run.py"])
            self.assertRegex(said, f"(?m)^{driver} has the dispatcher alone")
        self.hooks = self.directory / "only-qemu"
        self.installed("--driver", "qemu", "--driver", "qemu")
        self.assertFalse((self.hooks / "lxc").exists())
        self.assert_installed_from(CHECKOUT, driver="qemu")
        file, link = self.hooks / QEMU_FILE, self.hooks / QEMU_LINK
        self.assertEqual(file.read_bytes(), (CHECKOUT / QEMU_FILE).read_bytes())
        self.assertTrue(link.is_symlink() and link.samefile(file))

    def test_a_second_run_changes_nothing_at_all(self):
        for options in ([], ["--driver", "lxc", "--driver", "network", "--driver", "qemu"]):
            self.installed(*options)
            before = everything_of(self.hooks)
            self.installed(*options)
            self.assertEqual(everything_of(self.hooks), before)
        self.installed("--driver", "qemu", "--driver", "lxc")  # some of them, in another order
        self.assertEqual(everything_of(self.hooks), before)

    def test_sha256sum_checks_the_record(self):
        self.installed("--driver", "lxc", "--driver", "qemu")
        check = ["sha256sum", "--check", "--strict", "--quiet", RECORD]
        result = run(check, cwd=self.hooks)
        self.assertEqual((result.returncode, result.stdout, result.stderr), (0, "", ""))
        self.replace(f"qemu{RELEASE[3:]}/10-archive", "changed")
        self.assertIn("10-archive: FAILED", run(check, cwd=self.hooks).stdout)

    def test_a_directory_that_others_can_write_keeps_its_mode_and_is_warned_of(self):
        for path in ("", PREPARE, "lxc_started_begin_-.d"):
            for mode in (0o775, 0o757):
                with self.subTest(path=path, mode=oct(mode)):
                    shutil.rmtree(self.hooks, ignore_errors=True)
                    (self.hooks / path).mkdir(parents=True)
                    (self.hooks / path).chmod(mode)
                    result = self.install()
                    self.assertEqual(result.returncode, 0)
                    warning = f"warning: group or others can write to {self.hooks / path}\n"
                    self.assertIn(warning, result.stderr)
                    self.assertEqual(stat.S_IMODE((self.hooks / path).stat().st_mode), mode)
        self.hooks = self.directory / "fine"
        self.hooks.mkdir(0o700)
        self.installed()
        self.assertEqual(stat.S_IMODE(self.hooks.stat().st_mode), 0o700)

    def test_a_full_disk_is_an_error_and_leaves_no_half_of_a_file(self):
        self.hooks.mkdir()
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=40k,mode=0755", "small", self.hooks], check=True
        )
        result = self.install()
        self.assertEqual(result.returncode, 1)
        self.assertIn("No space left on device", result.stderr)
        for name in self.names() - {RECORD, *LINKS}:
            whole = (CHECKOUT / FILES[name]).read_bytes()
            self.assertEqual((self.hooks / name).read_bytes(), whole)
        self.assertFalse((self.hooks / "lxc").exists(), "without its scripts")
        subprocess.run(["mount", "-o", "remount,size=4M", self.hooks], check=True)
        self.installed()
        self.assert_installed_from(CHECKOUT)
        self.assertEqual(self.names(), {*FILES, *LINKS, RECORD})

    def test_a_source_that_is_missing_stops_it_before_anything_is_changed(self):
        copy = self.copy_of_checkout()
        (copy / RELEASE / "10-archive").unlink()
        result = self.install(source=copy)
        self.assert_one_line_error(result, "10-archive is missing")
        self.assertFalse(self.hooks.exists())


class Options(InstallTestCase):
    def test_a_bad_option_is_one_line_and_status_2(self):
        for options, part in (
            (["--frobnicate"], "unknown option '--frobnicate'"),
            (["lxc"], "unknown option 'lxc'"),
            (["-h"], "unknown option '-h'"),
            ([""], "unknown option ''"),
            (["--driver"], "--driver needs a value"),
            (["--hooks-dir"], "--hooks-dir needs a value"),
            (["--driver", "vmware"], "unknown driver 'vmware'"),
            (["--driver", ""], "unknown driver ''"),
            (["--driver", "lxc qemu"], "unknown driver 'lxc qemu'"),
            (["--driver", "*"], "unknown driver '*'"),
            (["--hooks-dir", "etc/hooks"], "'etc/hooks' is not an absolute path"),
            (["--hooks-dir", ""], "'' is not an absolute path"),
            (["--prefix"], "--prefix needs a value"),
            (["--prefix", "usr"], "--prefix 'usr' is not an absolute path"),
            (["--prefix", "/usr\nlocal"], "--prefix takes no path with a line break"),
            (["--demo", "--uninstall"], "--demo takes no other option"),
            (["--driver", "lxc", "--demo"], "--demo takes no other option"),
        ):
            with self.subTest(options=options):
                result = run([CHECKOUT / "install.sh", *options], cwd=self.directory)
                self.assertEqual((result.returncode, result.stdout), (2, ""))
                self.assertEqual(result.stderr.count("\n"), 1)
                self.assertIn(part, result.stderr)
        self.assertFalse(HOOKS.exists())
        self.assertEqual(list(self.directory.iterdir()), [])

    def test_help_names_every_option(self):
        result = run([CHECKOUT / "install.sh", "--help"])
        self.assert_succeeds(result)
        for option in ("driver", "hooks-dir", "prefix", "no-reload", "uninstall", "demo", "help"):
            self.assertIn(f"--{option}", result.stdout)
        for word in ("DESTDIR", *ALL_DRIVERS):
            self.assertIn(word, result.stdout)
        self.assertLessEqual(max(map(len, result.stdout.splitlines())), 80)


class Upgrading(InstallTestCase):
    def test_files_that_are_as_installed_are_replaced(self):
        self.installed()
        newer = self.newer_copy()
        said = self.installed(source=newer)
        self.assert_installed_from(newer)
        self.assertEqual(self.names(), {*FILES, *LINKS, RECORD})
        self.assertIn(f"updated {self.hooks}/lxc\n", said)
        self.installed()  # and back
        self.assert_installed_from(CHECKOUT)

    def test_only_the_drivers_named_are_upgraded(self):
        self.installed("--driver", "lxc", "--driver", "qemu")
        newer = self.newer_copy()
        self.installed("--driver", "qemu", source=newer)
        self.assert_installed_from(CHECKOUT)
        self.assert_installed_from(newer, driver="qemu")
        self.installed("--uninstall")
        self.assertEqual(self.names(), set())

    def test_a_file_that_was_changed_stays_and_the_new_version_comes_beside_it(self):
        newer = self.newer_copy()
        for path in SOME_FILES:
            with self.subTest(path=path):
                shutil.rmtree(self.hooks, ignore_errors=True)
                self.installed()
                mine = self.replace(path, f"#!/bin/sh\n# mine: {path}\n", 0o700)
                said = self.installed(source=newer)
                self.assertEqual(mine.read_text(), f"#!/bin/sh\n# mine: {path}\n")
                self.assertEqual(mine.stat().st_mode, 0o100700)
                beside = self.hooks / f"{path}.new"
                self.assertEqual(beside.read_bytes(), (newer / FILES[path]).read_bytes())
                self.assertIn(f"kept {mine}, which is not as installed", said)
                before = everything_of(self.hooks)
                self.installed(source=newer)
                self.assertEqual(everything_of(self.hooks), before)
                self.installed()  # another version: what lies beside is ours, and follows
                self.assertEqual(beside.read_bytes(), (CHECKOUT / FILES[path]).read_bytes())
                os.rename(beside, mine)  # the administrator takes the new version
                self.installed(source=newer)
                self.assertEqual(self.names(), {*FILES, *LINKS, RECORD})
                self.assert_installed_from(newer)

    def test_a_link_that_was_changed_stays_too(self):
        self.installed()
        for kind in ("link", "file"):
            with self.subTest(kind=kind):
                (self.hooks / LINK).unlink()
                if kind == "link":
                    os.symlink("/bin/true", self.hooks / LINK)
                else:
                    self.replace(LINK, "#!/bin/sh\n")
                before = snapshot(self.hooks)
                self.installed()
                beside = f"{self.hooks / LINK}.new"
                self.assertEqual(os.readlink(beside), f"../{PREPARE}/20-ramdisk")
                after = snapshot(self.hooks)
                self.assertEqual(after[str(self.hooks / LINK)], before[str(self.hooks / LINK)])
                os.rename(beside, self.hooks / LINK)
                self.installed()
                self.assertEqual(self.names(), {*FILES, *LINKS, RECORD})

    def test_a_new_version_that_lies_beside_goes_when_it_is_no_longer_needed(self):
        self.installed()
        mine = self.replace(f"{RELEASE}/10-archive", "#!/bin/sh\n")
        self.installed()
        self.assertTrue((self.hooks / RELEASE / "10-archive.new").exists())
        mine.unlink()
        self.installed()
        self.assertEqual(self.names(), {*FILES, *LINKS, RECORD})
        self.assert_installed_from(CHECKOUT)

    def test_an_administrators_file_with_the_name_of_ours_stays(self):
        mine = self.replace(f"{PREPARE}/10-mkdirs", NEVER_RUN)
        self.installed()
        self.assertEqual(mine.read_text(), NEVER_RUN)
        beside = self.hooks / PREPARE / "10-mkdirs.new"
        self.assertEqual(beside.read_bytes(), (CHECKOUT / PREPARE / "10-mkdirs").read_bytes())
        self.installed("--uninstall")
        self.assertEqual(self.names(), {f"{PREPARE}/10-mkdirs"})

    def test_an_administrators_file_with_the_name_of_a_new_version_stays_too(self):
        self.installed()
        mine = self.replace(f"{PREPARE}/10-mkdirs", "#!/bin/sh\n# mine\n")
        also_mine = self.replace(f"{PREPARE}/10-mkdirs.new", "#!/bin/sh\n# mine, too\n")
        said = self.installed()
        self.assertIn(f"kept {mine} and 10-mkdirs.new, which are not as installed", said)
        self.assertEqual(mine.read_text(), "#!/bin/sh\n# mine\n")
        self.assertEqual(also_mine.read_text(), "#!/bin/sh\n# mine, too\n")

    def test_the_dispatcher_never_runs_what_lies_beside(self):
        copy = self.newer_copy()
        for path in FILES.values():
            (copy / path).write_text(NEVER_RUN)
        for path in FILES:
            if "/" in path:
                self.replace(path, "#!/bin/sh\necho mine\n")
        self.installed()
        for path in ("lxc", "lxc_run.py"):
            self.replace(path, (CHECKOUT / FILES[path]).read_text() + "# mine\n")
        self.installed(source=copy)
        self.assertEqual(len([name for name in self.names() if name.endswith(".new")]), len(FILES))
        for phase in (("prepare", "begin", "-"), ("release", "end", "-")):
            result = self.dispatch(*phase)
            self.assertEqual((result.returncode, result.stderr), (0, ""))
            self.assertIn("mine", result.stdout)

    def test_a_script_that_may_not_run_stays_so(self):
        self.installed()
        for path in (f"{RELEASE}/30-post-rm-rf", f"{PREPARE}/20-ramdisk"):
            (self.hooks / path).chmod(0o644)
        before = everything_of(self.hooks)
        self.installed()
        self.assertEqual(everything_of(self.hooks), before)
        newer = self.newer_copy()
        self.installed(source=newer)
        for path in FILES:
            off = path.endswith(("30-post-rm-rf", f"{PREPARE}/20-ramdisk", ".py"))
            self.assertEqual((self.hooks / path).stat().st_mode, 0o100644 if off else 0o100755)
            self.assertEqual((self.hooks / path).read_bytes(), (newer / FILES[path]).read_bytes())

    def test_what_the_new_version_lacks_is_removed_unless_changed(self):
        older = self.copy_of_checkout()
        text = (older / "install.sh").read_text()
        line = f"{RELEASE}/10-archive $release/10-archive\n"
        self.assertIn(line, text)
        more = "".join(
            f"{RELEASE}/{name} $release/{name}\n{RELEASE}/{name} $prepare/{name}\n"
            for name in ("15-old", "16-old")
        )
        more += f"{RELEASE}/15-old $1_started_begin_-.d/15-old\n"
        (older / "install.sh").write_text(text.replace(line, line + more))
        for name in ("15-old", "16-old"):
            shutil.copy(older / RELEASE / "10-archive", older / RELEASE / name)
        self.installed("--driver", "lxc", "--driver", "qemu", source=older)
        mine = self.replace(f"{RELEASE}/16-old", "#!/bin/sh\n")
        said = self.installed()
        self.assertEqual(
            {name for name in self.names() if not name.startswith("qemu")},
            {*FILES, *LINKS, RECORD, f"{RELEASE}/16-old"},
        )
        self.assertFalse((self.hooks / "lxc_started_begin_-.d").exists())
        self.assertTrue((self.hooks / "qemu_started_begin_-.d/15-old").exists(), "not named")
        self.assertIn(f"left {mine}, which is not as installed", said)
        self.assertIn(f"removed {self.hooks / RELEASE}/15-old", said)


class Command(InstallTestCase):
    """The command virt-hooks, its manual pages and its completion, below the prefix."""

    def assert_command_from(self, source, prefix=None):
        prefix = prefix or self.prefix
        self.assertEqual(self.names(prefix), set(COMMAND))
        for path, file in COMMAND.items():
            self.assertEqual((prefix / path).read_bytes(), (source / file).read_bytes(), path)
            status = (prefix / path).stat()
            mode = 0o100755 if path.startswith("sbin") else 0o100644
            self.assertEqual((status.st_mode, status.st_uid, status.st_gid), (mode, 0, 0), path)

    def newer_copy(self, name="newer"):
        copy = super().newer_copy(name)
        for file in COMMAND.values():
            with open(copy / file, "a") as text:
                text.write("# newer\n")
        return copy

    def test_it_is_installed_upgraded_and_removed_with_the_hooks(self):
        said = self.installed()
        self.assert_command_from(CHECKOUT)
        self.assertIn(f"installed {self.prefix}/sbin/virt-hooks\n", said)
        before = everything_of(self.prefix)
        self.installed("--driver", "qemu")
        self.assertEqual(everything_of(self.prefix), before)
        newer = self.newer_copy()
        self.assertIn(f"updated {self.prefix}/sbin/virt-hooks\n", self.installed(source=newer))
        self.assert_command_from(newer)
        said = self.installed("--uninstall")
        for path in COMMAND:
            self.assertIn(f"removed {self.prefix}/{path}\n", said)
        self.assertEqual(self.names(self.prefix), set())
        self.assertTrue((self.prefix / "sbin").is_dir(), "a directory that others may use")

    def test_the_default_prefix_is_usr_local(self):
        options = ["--hooks-dir", self.hooks, "--no-reload"]
        self.assert_succeeds(run([CHECKOUT / "install.sh", *options]))
        self.assertEqual(self.names(Path("/usr/local/sbin")), {"virt-hooks"})
        self.assert_succeeds(run([CHECKOUT / "install.sh", *options, "--uninstall"]))
        self.assertEqual(self.names(Path("/usr/local/sbin")), set())
        self.assertEqual(self.names(Path("/usr/local/share")), set())

    def test_it_goes_with_the_last_driver(self):
        self.installed("--driver", "lxc", "--driver", "qemu")
        self.installed("--uninstall", "--driver", "lxc")
        self.assert_command_from(CHECKOUT)
        self.installed("--uninstall", "--driver", "qemu")
        self.assertEqual(self.names(self.prefix), set())

    def test_what_was_changed_stays_and_the_new_version_comes_beside_it(self):
        self.installed()
        newer = self.newer_copy()
        for path, file in COMMAND.items():
            (self.prefix / path).write_text("mine")
            said = self.installed(source=newer)
            self.assertIn(f"kept {self.prefix}/{path}, which is not as installed", said)
            self.assertEqual((self.prefix / path).read_text(), "mine")
            new = (self.prefix / f"{path}.new").read_bytes()
            self.assertEqual(new, (newer / file).read_bytes())
        said = self.installed("--uninstall")
        self.assertIn(f"left {self.prefix}/sbin/virt-hooks, which is not as installed", said)
        self.assertEqual(self.names(self.prefix), set(COMMAND))

    def test_anothers_command_of_that_name_stays(self):
        theirs = self.write("usr/sbin/virt-hooks", "theirs", 0o755)
        self.installed()
        self.installed("--uninstall")
        self.assertEqual(theirs.read_text(), "theirs")
        self.assertEqual(self.names(self.prefix), {"sbin/virt-hooks"})

    def test_with_another_prefix_it_moves(self):
        self.installed()
        other = self.directory / "an other\\prefix"
        said = self.installed("--prefix", f"{other}/")
        self.assertIn(f"removed {self.prefix}/sbin/virt-hooks\n", said)
        self.assert_command_from(CHECKOUT, other)
        self.assertEqual(self.names(self.prefix), set())
        self.installed("--uninstall")  # it is recorded where it is
        self.assertEqual(self.names(other), set())

    def test_a_package_has_it_below_destdir_and_in_the_record_without(self):
        stage = self.directory / "stage"
        environment = {**os.environ, "DESTDIR": str(stage)}
        self.assert_succeeds(run([CHECKOUT / "install.sh", "--prefix", "/usr"], env=environment))
        self.assert_command_from(CHECKOUT, stage / "usr")
        record = (stage / "etc/libvirt/hooks" / RECORD).read_text()
        for path in COMMAND:
            self.assertIn(f"  /usr/{path}\n", record)
        self.assertNotIn(str(stage), record)

    def test_directories_of_the_prefix_may_be_links_but_no_files(self):
        (self.prefix / "bin").mkdir(parents=True)
        (self.prefix / "sbin").symlink_to("bin")
        self.installed()
        self.assertTrue((self.prefix / "bin/virt-hooks").exists())
        self.prefix = self.directory / "other"
        self.write("other/sbin", "")
        before = snapshot(self.directory)
        result = self.install()
        self.assert_one_line_error(result, f"{self.prefix}/sbin is not a directory; nothing was")
        self.assertEqual(snapshot(self.directory), before)

    def test_what_a_killed_run_was_writing_is_removed(self):
        self.installed()
        half = self.write("usr/share/man/man5/.virt-hooks.tmp", "half")
        self.installed()
        self.assertFalse(half.exists())

    def test_it_says_its_version(self):
        self.installed()
        result = run([self.prefix / "sbin/virt-hooks", "--version"])
        self.assert_succeeds(result)
        self.assertRegex(result.stdout, r"^virt-hooks \d+\.\d+\.\d+\n$")


class NeverLosing(InstallTestCase):
    def test_it_refuses_where_a_foreign_dispatcher_is_and_changes_nothing(self):
        def write(path):
            self.replace(path, "#!/bin/sh\n# foreign\n", 0o744)

        def link(path):
            os.symlink("/usr/local/bin/hook", self.hooks / path)

        def directory(path):
            (self.hooks / path).mkdir()

        for driver in ("lxc", "qemu", "network"):
            for make in (write, link, directory):
                with self.subTest(driver=driver, make=make.__name__):
                    shutil.rmtree(self.hooks, ignore_errors=True)
                    self.hooks.mkdir()
                    make(driver)
                    self.replace(f"{driver}.d/local", "#!/bin/sh\n")
                    before = everything_of(self.hooks)
                    # a driver without anything foreign comes first: all checks come before
                    result = self.install("--driver", "ch", "--driver", driver)
                    self.assertEqual((result.returncode, result.stdout), (1, ""))
                    self.assertEqual(everything_of(self.hooks), before)
                    for part in (
                        f"install.sh: {self.hooks}/{driver} was not installed from here",
                        "nothing was changed",
                        f"{self.hooks}/{driver}_OPERATION_SUB-OPERATION_-.d/50-local",
                        "libvirt 6.5",
                        f"{self.hooks}/{driver}.d/local",
                    ):
                        self.assertIn(part, result.stderr)

    def test_it_refuses_where_something_foreign_has_the_name_of_the_other_half(self):
        foreign = self.replace("lxc_run.py", "# foreign\n")
        result = self.install()
        self.assertEqual((result.returncode, result.stdout), (1, ""))
        self.assertIn(f"{foreign} was not installed from here; nothing was changed", result.stderr)
        self.assertEqual(self.names(), {"lxc_run.py"})

    def test_what_it_says_to_do_with_a_foreign_dispatcher_works(self):
        foreign = self.replace("lxc", '#!/bin/sh\necho "foreign: $*"\n')
        self.assertEqual(self.install().returncode, 1)
        (self.hooks / "lxc_started_begin_-.d").mkdir()
        foreign.rename(self.hooks / "lxc_started_begin_-.d/50-local")
        self.installed()
        said = self.dispatch("started", "begin", "-").stdout
        self.assertEqual(said, "foreign: web started begin -\n")

    def test_a_phase_directory_that_is_a_link_or_a_file_is_refused(self):
        for make in (
            lambda path: path.symlink_to("/tmp"),
            lambda path: path.symlink_to("/nowhere"),
            lambda path: path.write_text(""),
        ):
            shutil.rmtree(self.hooks, ignore_errors=True)
            self.hooks.mkdir()
            make(self.hooks / RELEASE)
            before = everything_of(self.hooks)
            self.assert_one_line_error(self.install(), RELEASE, "is not a directory")
            self.assertEqual(everything_of(self.hooks), before)

    def test_the_administrators_own_files_are_never_touched(self):
        paths = (
            f"{PREPARE}/15-mine",
            f"{RELEASE}/25-mine",
            f"{RELEASE}/timeout",
            f"{RELEASE}/web/10-archive",
            "lxc_started_begin_-.d/10-mine",
            "lxc_release_end_crashed.d/10-archive",
            "lxc.d/local",
            "qemu",
            "lxc.conf",
            "lxc2",
        )
        for path in paths:
            self.replace(path, f"#!/bin/sh\n# mine: {path}\n", 0o750)
        before = everything_of(self.hooks)
        mine = [str(self.hooks / path) for path in paths]
        for step in (
            lambda: self.installed(),
            lambda: self.installed(source=self.newer_copy()),
            lambda: self.installed("--uninstall"),
        ):
            step()
            after = everything_of(self.hooks)
            for path in mine:
                self.assertEqual(after[path], before[path])
        self.assertEqual(self.names(), set(paths))


class Uninstalling(InstallTestCase):
    def test_it_removes_all_that_was_installed(self):
        self.installed("--driver", "lxc", "--driver", "network", "--driver", "qemu")
        said = self.installed("--uninstall")
        self.assertEqual(list(self.hooks.iterdir()), [])
        for path in (*FILES, *LINKS):
            self.assertIn(f"removed {self.hooks}/{path}\n", said)
        self.assertIn("nothing is installed", self.installed("--uninstall"))

    def test_it_removes_one_driver_alone(self):
        self.installed("--driver", "lxc", "--driver", "qemu")
        said = self.installed("--uninstall", "--driver", "lxc", "--driver", "ch")
        self.assertIn("nothing is installed for ch", said)
        self.assertEqual([name for name in self.names() if name.startswith("lxc")], [])
        self.assert_installed_from(CHECKOUT, driver="qemu")
        before = everything_of(self.hooks)
        self.installed("--driver", "qemu")
        self.assertEqual(everything_of(self.hooks), before)
        self.installed("--uninstall", "--driver", "qemu")
        self.assertEqual(list(self.hooks.iterdir()), [])

    def test_a_file_that_was_changed_is_left_and_named(self):
        for path in SOME_FILES:
            with self.subTest(path=path):
                shutil.rmtree(self.hooks, ignore_errors=True)
                self.installed()
                mine = self.replace(path, "#!/bin/sh\n")
                self.installed()  # puts NAME.new beside, which is ours
                said = self.installed("--uninstall")
                self.assertIn(f"left {mine}, which is not as installed\n", said)
                self.assertEqual(self.names(), {path})
                self.assertEqual(mine.read_text(), "#!/bin/sh\n")

    def test_a_new_version_beside_that_was_changed_is_left(self):
        self.installed()
        self.replace(f"{RELEASE}/10-archive", "#!/bin/sh\n")
        self.installed()
        self.replace(f"{RELEASE}/10-archive.new", "#!/bin/sh\n# merging\n")
        self.installed("--uninstall")
        self.assertEqual(self.names(), {f"{RELEASE}/10-archive", f"{RELEASE}/10-archive.new"})

    def test_where_a_deletion_goes_on_running_the_archive_before_it_stays(self):
        self.installed()
        self.replace("lxc", (CHECKOUT / "hooks/lxc").read_text() + "# mine\n")
        text = (CHECKOUT / RELEASE / "30-post-rm-rf").read_text()
        self.replace(f"{RELEASE}/30-post-rm-rf", text + "# mine\n")
        said = self.installed("--uninstall")
        self.assertIn(f"left {self.hooks / RELEASE}/10-archive: 30-post-rm-rf stays", said)
        kept = {"lxc", "lxc_run.py", f"{RELEASE}/10-archive", f"{RELEASE}/30-post-rm-rf"}
        self.assertEqual(self.names(), {*kept, RECORD})
        (self.hooks / "lxc").unlink()
        self.installed("--uninstall")
        self.assertEqual(self.names(), {f"{RELEASE}/30-post-rm-rf"})

    def test_where_a_dispatcher_stays_its_other_half_stays(self):
        self.installed()
        changed = self.replace("lxc", (CHECKOUT / "hooks/lxc").read_text() + "# mine\n")
        said = self.installed("--uninstall")
        self.assertIn(f"left {self.hooks}/lxc_run.py: lxc stays, and runs no script", said)
        self.assertEqual(self.names(), {"lxc", "lxc_run.py", RECORD})
        changed.unlink()
        self.installed("--uninstall")
        self.assertEqual(self.names(), set())

    def test_the_dispatcher_goes_first_and_comes_last(self):
        self.installed()
        said = self.installed("--uninstall").splitlines()
        self.assertEqual(said[0], f"removed {self.hooks}/lxc")
        self.assertLess(
            said.index(f"removed {self.hooks / RELEASE}/30-post-rm-rf"),
            said.index(f"removed {self.hooks / RELEASE}/10-archive"),
        )
        said = [line for line in self.installed().splitlines() if line.startswith("installed")]
        self.assertEqual(said[-1], f"installed {self.hooks}/lxc")

    def test_it_uninstalls_below_destdir(self):
        environment = {**os.environ, "DESTDIR": str(self.directory / "stage")}
        self.assert_succeeds(run([CHECKOUT / "install.sh"], env=environment))
        self.assert_succeeds(run([CHECKOUT / "install.sh", "--uninstall"], env=environment))
        self.assertEqual(self.names(self.directory / "stage"), set())

    def test_nothing_installed_is_said(self):
        self.replace("lxc", "#!/bin/sh\n")
        before = everything_of(self.hooks)
        self.assertIn("nothing is installed in", self.installed("--uninstall"))
        self.assertEqual(everything_of(self.hooks), before)


class Killed(InstallTestCase):
    """SIGKILL at random moments, to the installer and every command that it runs."""

    def kill_at_random(self, *options, source, longest):
        process = subprocess.Popen(
            [source / "install.sh", "--hooks-dir", self.hooks, "--prefix", self.prefix]
            + ["--no-reload", *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(self.random.uniform(0, longest))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def setUp(self):
        super().setUp()
        self.seed = random.randrange(1 << 32)
        self.random = random.Random(self.seed)
        self.newer = self.newer_copy()
        began = time.monotonic()
        self.installed("--driver", "lxc", "--driver", "qemu")
        self.duration = time.monotonic() - began
        shutil.rmtree(self.hooks)

    def assert_whole(self):
        """Each file, except what is being written, is of the one version or of the other."""
        for name in self.names():
            path = self.hooks / name
            self.assertFalse(name.endswith(".new"), "nobody has changed anything")
            if path.is_symlink() or name == RECORD or path.name == ".virt-hooks.tmp":
                continue
            file = QEMU_FILE if name == QEMU_FILE else FILES[name.replace("qemu", "lxc")]
            versions = [(source / file).read_bytes() for source in (CHECKOUT, self.newer)]
            self.assertIn(path.read_bytes(), versions, name)
            self.assertEqual(path.stat().st_mode, 0o100644 if name.endswith(".py") else 0o100755)

    def test_a_further_run_repairs_an_installation_an_upgrade_and_an_uninstallation(self):
        drivers = ("--driver", "lxc", "--driver", "qemu")
        wanted = {RECORD, QEMU_FILE, QEMU_LINK}
        for driver in ("lxc", "qemu"):
            wanted |= {name.replace("lxc", driver) for name in (*FILES, *LINKS)}
        for turn in range(6):
            with self.subTest(turn=turn, seed=self.seed):
                for source in (CHECKOUT, self.newer):
                    for _ in range(self.random.choice((1, 1, 2))):
                        self.kill_at_random(*drivers, source=source, longest=self.duration)
                        self.assert_whole()
                    if turn % 3:
                        continue  # the upgrade comes on what the installation has left
                    self.installed(*drivers, source=source)
                    self.assertEqual(self.names(), wanted)
                    for driver in ("lxc", "qemu"):
                        self.assert_installed_from(source, driver=driver)
                self.kill_at_random("--uninstall", source=self.newer, longest=self.duration / 2)
                self.assert_whole()
                if turn % 2:
                    self.installed(*drivers, source=self.newer)
                    self.assertEqual(self.names(), wanted)
                self.installed("--uninstall", source=self.newer)
                if self.hooks.exists():
                    self.assertEqual(list(self.hooks.iterdir()), [])

    def test_a_signal_leaves_no_temporary_file(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            for _ in range(3):
                shutil.rmtree(self.hooks, ignore_errors=True)
                process = subprocess.Popen(
                    [CHECKOUT / "install.sh", "--hooks-dir", self.hooks]
                    + ["--prefix", self.prefix, "--no-reload"],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
                time.sleep(self.random.uniform(0, self.duration / 2))
                os.killpg(process.pid, number)
                status = process.wait()
                self.assertIn(status, (0, 128 + number, -number))
                if self.hooks.exists():
                    self.assertEqual([n for n in self.names() if n.endswith(".tmp")], [])

    def test_what_a_killed_run_was_writing_is_removed(self):
        self.installed()
        for options in ([], ["--uninstall"]):
            for directory in ("", PREPARE, RELEASE):
                self.write(f"hooks/{directory}/.virt-hooks.tmp", "half")
            self.installed(*options)
            self.assertEqual([name for name in self.names() if name.endswith(".tmp")], [])
        self.assertEqual(list(self.hooks.iterdir()), [])

    def test_two_at_once_wait_for_each_other(self):
        self.hooks.mkdir()
        lock = os.open(self.hooks, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        options = ["--hooks-dir", self.hooks, "--prefix", self.prefix, "--no-reload"]
        processes = [
            subprocess.Popen([source / "install.sh", *options], stdout=subprocess.DEVNULL)
            for source in (CHECKOUT, self.newer)
        ]
        time.sleep(self.duration)
        self.assertEqual(list(self.hooks.iterdir()), [])
        os.close(lock)
        self.assertEqual([process.wait(30) for process in processes], [0, 0])
        self.assertEqual(self.names(), {*FILES, *LINKS, RECORD})
        newer = (self.hooks / "lxc").read_bytes() == (self.newer / "hooks/lxc").read_bytes()
        self.assert_installed_from(self.newer if newer else CHECKOUT)


STAND_IN = r"""
trap 'echo HUP >>"$1"' HUP
echo $$ >"$2.part"
mv "$2.part" "$2"
while :; do sleep 0.05; done
"""


class Telling(InstallTestCase):
    """Daemons are told: stand-ins of their names, which write down that they got SIGHUP."""

    def daemon(self, name, pid_file=None):
        """Start a process of a name, with its pid file in /run; return where it writes."""
        program = self.directory / name  # its comm; a script would be called like its interpreter
        if not program.exists():
            shutil.copy("/bin/dash", program)
        received = self.directory / f"{name}.received"
        received.write_text("")
        pid_file = pid_file or Path(f"/run/{name}.pid")
        process = subprocess.Popen([program, "-c", STAND_IN, "sh", received, pid_file])
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        self.addCleanup(pid_file.unlink)
        wait_until(pid_file.exists)
        return received

    def tell(self, *options, **environment):
        environment = {"PATH": os.environ["PATH"], **environment}
        places = ["--hooks-dir", self.hooks, "--prefix", self.prefix]
        command = [CHECKOUT / "install.sh", *places, *options]
        result = run(command, env=environment)
        self.assert_succeeds(result)
        return result.stdout

    def test_libvirtd_gets_sighup_when_installed_and_when_uninstalled(self):
        received = self.daemon("libvirtd")
        pid = Path("/run/libvirtd.pid").read_text().strip()
        for number, options in enumerate(([], ["--uninstall"]), 1):
            said = self.tell(*options)
            self.assertIn(f"told libvirtd (process {pid}) to look for hooks\n", said)
            wait_until(lambda number=number: received.read_text() == "HUP\n" * number)
            self.assertNotIn("no libvirt daemon runs", said)

    def test_the_daemons_of_the_drivers_are_told_and_no_others(self):
        received = {name: self.daemon(name) for name in ("virtlxcd", "virtqemud", "virtstoraged")}
        for options, told in (
            ([], {"virtlxcd"}),
            (["--driver", "qemu", "--driver", "lxc"], {"virtlxcd", "virtqemud"}),
            (["--driver", "network"], set()),
            (["--driver", "daemon", "--driver", "qemu"], set(received)),
        ):
            with self.subTest(options=options):
                for path in received.values():
                    path.write_text("")
                said = self.tell(*options)
                self.assertEqual(sorted(re.findall(r"told (\S+) \(", said)), sorted(told))
                for name in told:
                    wait_until(lambda name=name: received[name].read_text())
                time.sleep(0.2)
                for name, path in received.items():
                    self.assertEqual(path.read_text(), "HUP\n" if name in told else "", name)

    def test_which_daemon_was_told_of_which_hook_is_noted(self):
        def notes():
            path = self.hooks / TOLD
            return set(path.read_text().splitlines()) if path.exists() else set()

        def note(driver, daemon):
            pid = int(Path(f"/run/{daemon}.pid").read_text())
            started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
            return f"{driver} {daemon} {pid} {started}"

        for name in ("virtlxcd", "virtqemud"):
            self.daemon(name)
        self.tell("--no-reload")
        self.assertEqual(notes(), set())
        self.tell()
        self.assertEqual(notes(), {note("lxc", "virtlxcd")})
        self.tell("--driver", "qemu")
        both = {note("lxc", "virtlxcd"), note("lxc", "virtqemud"), note("qemu", "virtqemud")}
        self.assertEqual(notes(), both)
        self.tell("--driver", "network", "--no-reload")
        self.assertEqual(notes(), both)
        with open(self.hooks / TOLD, "a") as file:
            file.write("lxc libvirtd 999999999 1\n")  # which has ended
        self.tell("--uninstall", "--driver", "network")
        self.assertEqual(notes(), both)
        self.tell("--uninstall", "--driver", "qemu", "--no-reload")
        self.assertEqual(notes(), {note("lxc", "virtlxcd"), note("lxc", "virtqemud")})
        self.tell("--uninstall")
        self.assertEqual(list(self.hooks.iterdir()), [])

    def test_no_daemon_is_told_with_no_reload_nor_with_destdir(self):
        received = self.daemon("libvirtd")
        self.tell("--no-reload")
        self.tell(DESTDIR=str(self.directory / "stage"))
        self.tell("--uninstall", "--no-reload")
        time.sleep(0.3)
        self.assertEqual(received.read_text(), "")

    def test_a_pid_file_that_another_process_has_inherited_is_not_trusted(self):
        pid_file = Path("/run/libvirtd.pid")
        received = self.daemon("bystander", pid_file)
        pid = pid_file.read_text().strip()
        texts = (f"{pid}\n", "", "999999999", "-1", "0", f"{pid} {pid}", f"-{pid}", "pid", "1/../1")
        for text in texts:
            with self.subTest(text=text):
                pid_file.write_text(text)
                self.assertIn("no libvirt daemon runs", self.tell())
        time.sleep(0.2)
        self.assertEqual(received.read_text(), "")

    def test_a_daemon_that_we_may_not_signal_is_named_and_no_failure(self):
        received = self.daemon("libvirtd")
        self.directory.chmod(0o755)
        self.hooks.mkdir()
        os.chown(self.hooks, 65534, 65534)
        nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        copy = self.copy_of_checkout()
        self.prefix.mkdir()
        os.chown(self.prefix, 65534, 65534)
        places = ["--hooks-dir", self.hooks, "--prefix", self.prefix]
        result = run([*nobody, copy / "install.sh", *places])
        self.assertEqual(result.returncode, 0)
        self.assertIn("warning: could not tell libvirtd", result.stderr)
        self.assertNotIn("told libvirtd", result.stdout)
        self.assertNotIn("no libvirt daemon runs", result.stdout)
        self.assertEqual(received.read_text(), "")

    def test_no_daemon_is_said(self):
        self.assertIn("no libvirt daemon runs", self.tell())
        self.assertIn("no libvirt daemon runs", self.tell("--uninstall"))

    def test_where_selinux_is_on_labels_are_restored(self):
        # no kernel here has SELinux, so its two commands are stand-ins
        bin_directory = self.directory / "bin"
        calls = self.directory / "calls"
        self.write("bin/restorecon", f'#!/bin/sh\necho "$*" >>{calls}\n', 0o755)
        environment = {"PATH": f"{bin_directory}:{os.environ['PATH']}"}
        drivers = ("--driver", "lxc", "--driver", "network", "--driver", "qemu")
        for status, options, wanted, words in (
            (0, (), f"-R -- {self.hooks}\n", ["restored the labels"]),
            (0, drivers, f"-R -- {self.hooks}\n", ["virt_hooks_unconfined", "virtqemud"]),
            (1, drivers, "", []),
        ):
            with self.subTest(status=status, options=options):
                self.write("bin/selinuxenabled", f"#!/bin/sh\nexit {status}\n", 0o755)
                calls.write_text("")
                said = self.tell(*options, **environment)
                self.assertEqual(calls.read_text(), wanted)
                for word in words:
                    self.assertIn(word, said)
                self.assertEqual("SELinux" in said, bool(words))
        self.write("bin/selinuxenabled", "#!/bin/sh\nexit 0\n", 0o755)
        self.tell(DESTDIR=str(self.directory / "stage"), **environment)
        self.assertEqual(calls.read_text(), "")


class Demo(InstallTestCase):
    def demo(self, source=CHECKOUT, **more):
        return run([source / "install.sh", "--demo"], **more)

    def test_it_shows_each_phase_with_its_scripts_and_the_files(self):
        result = self.demo()
        self.assert_succeeds(result)
        heads = re.findall(r"(?m)^== (lxc web .*|Before|During|After)", result.stdout)
        self.assertEqual(
            heads,
            ["Before", "lxc web prepare begin -", "lxc web start begin -"]
            + ["lxc web started begin -", "During", "lxc web stopped end -"]
            + ["lxc web release end shutdown", "After"],
        )
        texts = re.split(r"(?m)^== (?:lxc|Before|During|After).*\n", result.stdout)[1:]
        sections = dict(zip(heads, texts))
        for phase, script, did in (
            ("prepare begin -", "10-mkdirs", "created /srv/web/log mode=0750"),
            ("prepare begin -", "20-ramdisk", "mounted a ramdisk of 16M on /srv/web/www"),
            ("prepare begin -", "30-preload", "copied /srv/golden/web into /srv/web/www"),
            ("release end shutdown", "10-archive", "archived /srv/web/log as /srv/archive/web/2"),
            ("release end shutdown", "20-ramdisk", "unmounted the ramdisk on /srv/web/www"),
            ("release end shutdown", "30-post-rm-rf", "removed /srv/web/log"),
        ):
            section = sections[f"lxc web {phase}"]
            self.assertRegex(section, rf"(?m)^ +{script} +{re.escape(did)}")
            self.assertRegex(section, rf"(?m)^ +{script} +done in \d+\.\d\d\d s$")
        self.assertIn("no scripts", sections["lxc web started begin -"])
        for section, has, lacks in (
            ("Before", ["golden", "rootfs"], ["greetings", "archive", "ramdisk", "hooks"]),
            ("During", ["www (a ramdisk)", "greetings", "drwxr-x--- root root"], ["archive"]),
            ("After", ["archive", "greetings"], ["ramdisk)", "www"]),
        ):
            for word in has:
                self.assertIn(word, sections[section])
            for word in lacks:
                self.assertNotIn(word, sections[section].partition("\n\n")[0])
        self.assertLessEqual(max(map(len, result.stdout.splitlines())), 80)

    def test_it_leaves_nothing_behind(self):
        places = [Path(place) for place in ("/srv", "/etc/libvirt", "/run", "/dev")]
        for place in ("/tmp", "/var/tmp"):  # which others use, too, so that we cannot compare
            subprocess.run(["mount", "--bind", place, place], check=True)
            self.addCleanup(subprocess.run, ["umount", place], check=True)
            subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
        with Syslog() as log:
            mounts = mount_points()
            before = [everything_of(place) for place in places]
            self.assert_succeeds(self.demo())
            self.assertEqual([everything_of(place) for place in places], before)
            self.assertEqual(mount_points(), mounts)
        self.assertEqual(log.lines, [])

    def test_it_runs_from_below_srv_and_from_anywhere(self):
        copy = self.copy_of_checkout("a checkout")  # below /srv, which it mounts over
        self.assert_succeeds(run(["sh", "./install.sh", "--demo"], cwd=copy))
        self.assert_succeeds(self.demo(cwd="/srv"))
        gone = self.directory / "gone"
        gone.mkdir()
        command = 'rmdir "$1"; exec "$2" --demo'
        result = run(["sh", "-c", command, "sh", gone, CHECKOUT / "install.sh"], cwd=gone)
        self.assertEqual(result.returncode, 0, result.stderr)

    def test_what_is_in_the_environment_does_not_matter(self):
        environment = {
            "PATH": os.environ["PATH"],
            "DESTDIR": str(self.directory / "stage"),
            "VIRT_HOOKS_DRY_RUN": "1",
            "VIRT_HOOKS_VERBOSE": "0",
            "VIRT_HOOKS_DEMO": "1",
        }
        self.assert_succeeds(self.demo(env=environment))
        self.assertFalse((self.directory / "stage").exists())

    def test_it_fails_where_a_script_fails_and_leaves_nothing_behind(self):
        broken = "#!/bin/sh\necho broken >&2\nexit 7\n"
        for path, text, words in (
            (f"{RELEASE}/10-archive", broken, ["broken", "status 7"]),
            (f"{PREPARE}/30-preload", "#!/bin/sh\nexit 0\n", ["greeting"]),
            (f"{RELEASE}/30-post-rm-rf", "#!/bin/sh\nexit 0\n", ["did not end as it should"]),
            ("hooks/lxc", "#!/bin/sh\nexit 5\n", ["exit status 5"]),
        ):
            with self.subTest(path=path):
                copy = self.copy_of_checkout(f"broken {path.replace('/', ' ')}")
                (copy / path).write_text(text)
                before, mounts = snapshot(Path("/srv")), mount_points()
                result = self.demo(copy)
                self.assertNotEqual(result.returncode, 0)
                for word in words:
                    self.assertIn(word, result.stdout + result.stderr)
                self.assertEqual(snapshot(Path("/srv")), before)
                self.assertEqual(mount_points(), mounts)

    def test_interrupted_it_leaves_nothing_behind(self):
        generator = random.Random()
        before, mounts = snapshot(Path("/srv")), mount_points()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL) * 2:
            process = subprocess.Popen(
                [CHECKOUT / "install.sh", "--demo"],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            time.sleep(generator.uniform(0, 0.5))
            os.killpg(process.pid, number)
            process.communicate(timeout=30)
            self.assertIn(process.returncode, (0, 128 + number, -number))
            self.assertEqual(snapshot(Path("/srv")), before)
            self.assertEqual(mount_points(), mounts)

    def test_without_root_it_says_that_it_needs_root(self):
        nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        copy = self.copy_of_checkout()
        self.directory.chmod(0o755)
        result = run([*nobody, copy / "install.sh", "--demo"])
        self.assert_one_line_error(result, "--demo needs root")


if __name__ == "__main__":
    unittest.main()
