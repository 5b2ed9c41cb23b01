"""install.sh: what it installs, what it never touches, whom it tells, and its demonstration.

Also that all parts of a release have the same version.
"""

import datetime
import fcntl
import os
import re
import shutil
import signal
import subprocess
import time
import unittest
from pathlib import Path

from harness import CHECKOUT, Syslog, TestCase, mount_points, run, snapshot
from libvirt import HOOKS, wait_until
from scripts import guest_xml

DRIVERS = ("daemon", "qemu", "lxc", "libxl", "bhyve", "network")
PREPARE, RELEASE = "lxc_prepare_begin_-.d", "lxc_release_end_-.d"
MKDIRS, ARCHIVE, DELETION = (
    f"{PREPARE}/10-mkdirs",
    f"{RELEASE}/10-archive",
    f"{RELEASE}/30-post-rm-rf",
)
RECORD = ".virt-hooks.sha256"
MINE = "#!/bin/sh\n# mine\n"
COMMAND = {  # where it is below the prefix, and where it comes from
    "share/virt-hooks/hook_scripts.py": "command/hook_scripts.py",
    "share/virt-hooks/libvirt_calls.py": "command/libvirt_calls.py",
    "share/virt-hooks/new.py": "command/new.py",
    "share/virt-hooks/new.sh": "command/new.sh",
    "sbin/virt-hooks": "command/virt-hooks",
    "share/man/man8/virt-hooks.8": "command/virt-hooks.8",
    "share/man/man5/virt-hooks.5": "command/virt-hooks.5",
    "share/bash-completion/completions/virt-hooks": "command/virt-hooks.bash",
}
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


def contents(source, driver="lxc"):
    """What a driver is to have of a checkout: {path: a file, or a link's target}."""
    drivers = {driver, "lxc"} if driver not in ("daemon", "network") else set()
    wanted = {driver: source / "hooks/lxc"}
    for path in source.glob("*_*.d/*"):
        if path.parent.name.split("_")[0] in drivers:
            name = str(path.relative_to(source)).replace("lxc", driver)
            target = os.readlink(path).replace("lxc", driver) if path.is_symlink() else path
            wanted[name] = target
    return wanted


class InstallTestCase(TestCase):
    def setUp(self):
        super().setUp()
        self.hooks = self.directory / "hooks"
        self.prefix = self.directory / "usr"

    def install(self, *options, source=CHECKOUT, **more):
        """Run install.sh, into self.hooks and self.prefix, without telling anybody."""
        more.setdefault("env", {"PATH": os.environ["PATH"]})
        places = ["--hooks-dir", self.hooks, "--prefix", self.prefix]
        return run([source / "install.sh", *places, "--no-reload", *options], **more)

    def installed(self, *options, **more):
        result = self.install(*options, **more)
        self.assert_succeeds(result)
        return result.stdout

    def copy_of_checkout(self, name="checkout"):
        copy = self.directory / name
        for part in ("hooks", "examples", "command", *(p.name for p in CHECKOUT.glob("*_*.d"))):
            shutil.copytree(CHECKOUT / part, copy / part, symlinks=True)
        shutil.copy(CHECKOUT / "install.sh", copy)
        return copy

    def newer_copy(self, name="newer"):
        """A copy of the checkout in which every file is another one."""
        return self.newer(self.copy_of_checkout(name))

    def newer(self, copy):
        for path in [*copy.glob("hooks/*"), *copy.glob("*_*.d/*"), *copy.glob("command/*")]:
            if not path.is_symlink():
                path.write_text(path.read_text() + "# newer\n")
        return copy

    def older_copy(self, *lines):
        """A copy of the checkout whose install.sh has more to install: "SOURCE PATH" lines."""
        copy = self.copy_of_checkout("older")
        text = (copy / "install.sh").read_text()
        condition = '        [ "$part" = command ] || say '
        last = f'{condition}"hooks/lxc $part"\n'
        self.assertIn(last, text)
        more = "".join(f'{condition}"{line}"\n' for line in lines)
        (copy / "install.sh").write_text(text.replace(last, more + last))
        return copy

    def names(self, directory=None):
        """The names of all files below the hooks directory."""
        directory = directory or self.hooks
        files = (path for path in directory.rglob("*") if not path.is_dir())
        return {str(path.relative_to(directory)) for path in files}

    def assert_installed_from(self, source, *drivers, hooks=None):
        """All that the drivers are to have is there, whole and executable, and nothing else."""
        hooks = hooks or self.hooks
        wanted = {}
        for driver in drivers or ("lxc",):
            wanted |= contents(source, driver)
        self.assertEqual(self.names(hooks), {*wanted, RECORD})
        for name, what in wanted.items():
            if isinstance(what, str):
                self.assertEqual(os.readlink(hooks / name), what)
                continue
            self.assertEqual((hooks / name).read_bytes(), what.read_bytes(), name)
            status = (hooks / name).lstat()
            self.assertEqual((status.st_mode, status.st_uid, status.st_gid), (0o100755, 0, 0))

    def replace(self, path, text=MINE, mode=0o755):
        path = self.hooks / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path

    def assert_refuses(self, *parts, options=(), **more):
        """It fails, naming these, before anything is changed."""
        before = snapshot(self.directory)
        result = self.install(*options, **more)
        self.assertEqual((result.returncode, result.stdout), (1, ""))
        for part in parts:
            self.assertIn(part, result.stderr)
        self.assertEqual(snapshot(self.directory), before)
        return result


def times(directory):
    """Which file each name is, and when it was written; another time, and something was done."""
    found = {path: path.lstat() for path in directory.rglob("*") if path.name != RECORD}
    return {str(path): (s.st_ino, s.st_mode, s.st_ctime_ns) for path, s in found.items()}


class Installing(InstallTestCase):
    def test_it_installs_the_dispatcher_and_the_scripts_for_lxc_and_they_run(self):
        said = self.installed()
        self.assert_installed_from(CHECKOUT)
        for phase in (("prepare", "begin", "-"), ("release", "end", "shutdown")):
            made = f"<dir>{self.directory}/made</dir>"
            elements = f"<mkdirs>{made}</mkdirs><post-rm-rf>{made}</post-rm-rf>"
            result = run([self.hooks / "lxc", "web", *phase], input=guest_xml(elements))
            self.assert_succeeds(result)
            self.assertEqual((self.directory / "made").exists(), phase[0] == "prepare")
        for next_step in ("virt-hooks check", "man 5 virt-hooks", "metadata"):
            self.assertIn(next_step, said)

    def test_the_defaults_are_the_directory_of_libvirt_and_usr_local(self):
        self.assert_succeeds(run([CHECKOUT / "install.sh", "--no-reload"]))
        self.addCleanup(shutil.rmtree, HOOKS)
        self.assert_installed_from(CHECKOUT, hooks=HOOKS)
        self.assertIn("virt-hooks", run(["/usr/local/sbin/virt-hooks", "--version"]).stdout)
        self.assert_succeeds(run([CHECKOUT / "install.sh", "--no-reload", "--uninstall"]))
        self.assertEqual(self.names(Path("/usr/local/sbin")), set())
        self.assertEqual(self.names(HOOKS), set())

    def test_it_says_so_where_nobody_reads_on(self):
        places = f"--hooks-dir '{self.hooks}' --prefix '{self.prefix}' --no-reload"
        result = run(["sh", "-c", f"{CHECKOUT}/install.sh {places} | true"])
        self.assertIn("half done", result.stderr)
        self.installed()
        self.assert_installed_from(CHECKOUT)

    def test_it_installs_below_destdir_and_uninstalls_there(self):
        stage, before = self.directory / "stage", snapshot(Path("/usr/local/sbin"))
        for destdir in (str(stage), f"{stage}/", "stage"):
            environment = {**os.environ, "DESTDIR": destdir}
            command = [CHECKOUT / "install.sh", "--prefix", "/usr"]
            self.assert_succeeds(run(command, env=environment, cwd=self.directory))
            self.assert_installed_from(CHECKOUT, hooks=stage / "etc/libvirt/hooks")
            self.assertEqual(self.names(stage / "usr"), set(COMMAND))
            record = (stage / "etc/libvirt/hooks" / RECORD).read_text()
            self.assertIn("  /usr/sbin/virt-hooks\n", record)
            uninstall = [CHECKOUT / "install.sh", "--uninstall"]
            self.assert_succeeds(run(uninstall, env=environment, cwd=self.directory))
            self.assertEqual(self.names(stage), set())
        self.assertFalse(HOOKS.exists())
        self.assertEqual(snapshot(Path("/usr/local/sbin")), before)

    def test_modes_are_right_whatever_the_umask_and_those_in_the_checkout(self):
        copy = self.copy_of_checkout()
        for umask, mode in ((0o077, 0o644), (0, 0o777), (0o027, 0o600)):
            with self.subTest(umask=oct(umask)):
                self.hooks = self.directory / f"umask-{umask:o}/deep/hooks"
                for path in [*copy.glob("hooks/*"), *copy.glob("*_*.d/*")]:
                    path.chmod(mode)
                os.umask(umask)
                self.addCleanup(os.umask, 0o022)
                self.installed(source=copy)
                self.assert_installed_from(copy)
                for path in (self.hooks.parent.parent, self.hooks, self.hooks / PREPARE):
                    self.assertEqual(path.stat().st_mode, 0o40755, path)

    def test_paths_may_have_spaces_and_worse_in_them(self):
        for name in ("a b", "$(touch pwned)", "back\\nslash", "*", "-n", "quo'te\"", "é"):
            with self.subTest(name=name):
                self.hooks = self.directory / name / "hooks"
                copy = self.newer_copy(f"from {name}")
                self.installed(source=copy)
                self.assert_installed_from(copy)
                self.installed("--uninstall", source=copy)
                self.assertEqual(self.names(), set())
        self.assertEqual(list(self.directory.rglob("pwned")), [])

    def test_it_finds_its_files_from_anywhere_and_however_it_is_called(self):
        copy = self.newer_copy()
        os.symlink(copy / "install.sh", self.directory / "link to it")
        for number, (command, cwd) in enumerate(
            (
                (["./install.sh"], copy),
                (["sh", "install.sh"], copy),
                ([self.directory / "link to it"], "/"),
                (["sh", f"{copy}/hooks/../install.sh"], "/"),
            )
        ):
            with self.subTest(command=command):
                self.hooks = self.directory / f"hooks-{number}"
                options = ["--hooks-dir", self.hooks, "--prefix", self.prefix, "--no-reload"]
                environment = {**os.environ, "CDPATH": "/"}
                self.assert_succeeds(run([*command, *options], cwd=cwd, env=environment))
                self.assert_installed_from(copy)

    def test_each_driver_gets_its_own_and_a_further_run_upgrades_all(self):
        names = [option for driver in DRIVERS for option in ("--driver", driver)]
        self.installed(*names)
        self.assert_installed_from(CHECKOUT, *DRIVERS)
        newer = self.newer_copy()
        self.installed(source=newer)
        self.assert_installed_from(newer, *DRIVERS)
        self.hooks = self.directory / "only-qemu"
        self.installed("--driver=qemu", "--driver", "qemu")
        self.assert_installed_from(CHECKOUT, "qemu")

    def test_a_second_run_changes_nothing_at_all(self):
        self.installed("--driver=lxc", "--driver=qemu")
        before = times(self.hooks), times(self.prefix), (self.hooks / RECORD).read_bytes()
        for options in ([], ["--driver=qemu", "--driver=lxc"]):
            self.installed(*options)
            after = times(self.hooks), times(self.prefix), (self.hooks / RECORD).read_bytes()
            self.assertEqual(after, before)

    def test_sha256sum_checks_the_record(self):
        self.installed()
        check = ["sha256sum", "--check", "--strict", "--quiet", RECORD]
        self.assertEqual(run(check, cwd=self.hooks).returncode, 0)
        self.replace(ARCHIVE)
        self.assertIn("10-archive: FAILED", run(check, cwd=self.hooks).stdout)

    def test_a_source_that_is_missing_stops_it_before_anything_is_changed(self):
        for path in (ARCHIVE, "hooks/lxc", "command/virt-hooks.8"):
            copy = self.copy_of_checkout(path.replace("/", " "))
            (copy / path).unlink()
            result = self.assert_refuses(path.rpartition("/")[2], source=copy)
            self.assertEqual(result.stderr.count("\n"), 1)


class Options(InstallTestCase):
    def test_a_bad_option_is_one_line_and_status_2(self):
        for options, part in (
            (["--frobnicate"], "--frobnicate"),
            (["lxc"], "lxc"),
            (["--driver"], "--driver"),
            (["--driver", "vmware"], "vmware"),
            (["--driver=ch"], "ch"),
            (["--driver="], "''"),
            (["--driver", "lxc qemu"], "lxc qemu"),
            (["--driver", "*"], "*"),
            (["--hooks-dir", "etc/hooks"], "etc/hooks"),
            (["--prefix"], "--prefix"),
            (["--prefix=usr"], "usr"),
            (["--prefix", "/usr\nlocal"], "--prefix"),
        ):
            with self.subTest(options=options):
                result = run([CHECKOUT / "install.sh", *options], cwd=self.directory)
                self.assertEqual((result.returncode, result.stdout), (2, ""))
                self.assertEqual(result.stderr.count("\n"), 1)
                self.assertIn(part, result.stderr)
        self.assertFalse(HOOKS.exists())

    def test_help_names_every_option(self):
        for option in ("-h", "--help"):
            result = run([*NOBODY, "sh", self.copy_of_checkout(option) / "install.sh", option])
            self.assert_succeeds(result)
            for word in ("--driver", "--hooks-dir", "--prefix", "--no-reload", "--uninstall"):
                self.assertIn(word, result.stdout)
            for word in ("--demo", "--help", "DESTDIR", "chmod -x", *DRIVERS):
                self.assertIn(word, result.stdout)
            self.assertLessEqual(max(map(len, result.stdout.splitlines())), 80)

    def setUp(self):
        super().setUp()
        self.directory.chmod(0o755)  # for those who are not root

    def test_who_is_not_root_gets_one_line_and_can_install_below_destdir(self):
        copy = self.copy_of_checkout()
        command = [*NOBODY, copy / "install.sh"]
        for option in ("--no-reload", "--uninstall", "--demo"):
            self.assert_error(run([*command, option]), "root", name="install.sh", guest="")
        stage = self.directory / "stage"
        stage.mkdir()
        os.chown(stage, 65534, 65534)
        self.assert_succeeds(run(command, env={**os.environ, "DESTDIR": str(stage)}))
        self.assertIn("lxc", self.names(stage / "etc/libvirt/hooks"))


class Python(InstallTestCase):
    """Stand-ins for /usr/bin/python3, in a mount namespace of each run's own."""

    def setUp(self):
        super().setUp()
        self.real = shutil.copy("/usr/bin/python3", self.directory / "python")

    def stand_in(self, text, mode=0o755):
        return self.write("stand-in", f"#!/bin/sh\n{text}\n", mode)

    def run_with(self, stand_in, *options):
        shell = 'mount --bind "$1" /usr/bin/python3; shift; exec "$@"'
        places = ["--hooks-dir", self.hooks, "--prefix", self.prefix, "--no-reload"]
        command = [CHECKOUT / "install.sh", *([] if "--demo" in options else places), *options]
        return run(["unshare", "--mount", "sh", "-euc", shell, "sh", stand_in, *command])

    def pretend(self, statement):
        """A Python in which a statement has been executed."""
        return self.stand_in(
            f'exec {self.real} -IS -c "import sys; {statement}; exec(sys.argv[1])" "$3"'
        )

    def test_where_python_lacks_what_it_needs_it_changes_nothing_and_names_the_package(self):
        for case, stand_in in (
            ("missing", lambda: self.stand_in("", 0o644)),
            ("broken", lambda: self.stand_in("exit 127")),
            ("3.8", lambda: self.pretend("sys.version_info = (3, 8, 2)")),
            ("xml.parsers.expat", lambda: self.pretend("sys.modules['xml.parsers.expat'] = None")),
            ("argparse", lambda: self.pretend("sys.modules['argparse'] = None")),
        ):
            with self.subTest(case):
                file = stand_in()
                before = snapshot(self.directory)
                for options in ([], ["--demo"]):
                    result = self.run_with(file, *options)
                    self.assertEqual(result.stdout, "")
                    values = ("/usr/bin/python3", "package python3")
                    self.assert_error(result, *values, name="install.sh", guest="")
                    if case not in ("missing", "broken"):
                        self.assertIn(case, result.stderr)
                self.assertEqual(snapshot(self.directory), before)

    def test_with_all_that_it_needs_it_installs(self):
        self.assert_succeeds(self.run_with(self.pretend("sys.version_info = (3, 9, 0)")))
        self.assert_installed_from(CHECKOUT)

    def test_it_tries_every_module_that_the_dispatcher_the_scripts_and_the_command_import(self):
        sources = [CHECKOUT / "hooks/lxc", CHECKOUT / "command/virt-hooks"]
        sources += CHECKOUT.glob("command/*.py")
        sources += CHECKOUT.glob("lxc_*.d/*")
        text = "".join(path.read_text() for path in sources)
        found = re.findall(r"(?m)^ *import ([a-z_., ]+)$|^ *from ([a-z_.]+) import ", text)
        modules = {name for names in found for name in "".join(names).split(", ")}
        self.assertGreater(len(modules), 5)
        modules -= {path.stem for path in CHECKOUT.glob("command/*.py")}  # the command's own
        for module in sorted(modules - {"sys", "posix", "_signal"}):  # which no Python lacks
            with self.subTest(module):
                result = self.run_with(self.pretend(f"sys.modules['{module}'] = None"))
                self.assertEqual(result.returncode, 1)
                self.assertIn(module, result.stderr)

    def test_it_uninstalls_without_python(self):
        self.installed()
        self.assert_succeeds(self.run_with(self.stand_in("", 0o644), "--uninstall"))
        self.assertEqual(self.names(), set())


class Upgrading(InstallTestCase):
    def test_files_that_are_as_installed_are_replaced(self):
        self.installed()
        newer = self.newer_copy()
        self.installed(source=newer)
        self.assert_installed_from(newer)
        self.installed()  # and back
        self.assert_installed_from(CHECKOUT)

    def test_only_the_drivers_named_are_upgraded(self):
        self.installed("--driver", "lxc", "--driver", "qemu")
        newer = self.newer_copy()
        self.installed("--driver", "qemu", source=newer)
        self.assertEqual((self.hooks / "lxc").read_text(), (CHECKOUT / "hooks/lxc").read_text())
        self.assertEqual((self.hooks / "qemu").read_text(), (newer / "hooks/lxc").read_text())
        self.installed("--uninstall")
        self.assertEqual(self.names(), set())

    def test_what_was_changed_stays_and_the_new_version_comes_beside_it(self):
        newer = self.newer_copy()
        for path in (f"{PREPARE}/20-ramdisk", ARCHIVE):
            with self.subTest(path=path):
                shutil.rmtree(self.hooks, ignore_errors=True)
                self.installed()
                mine = self.replace(path, mode=0o700)
                said = self.installed(source=newer)
                self.assertEqual((mine.read_text(), mine.stat().st_mode), (MINE, 0o100700))
                beside = self.hooks / f"{path}.new"
                self.assertTrue(beside.read_text().endswith("# newer\n"))
                self.assertIn(str(mine), said)
                self.assertIn("20-ramdisk.new" if "ramdisk" in path else "10-archive.new", said)
                self.installed()  # another version: what lies beside follows
                self.assertFalse(beside.read_text().endswith("# newer\n"))
                os.rename(beside, mine)  # the administrator takes the new version
                self.installed(source=newer)
                self.assert_installed_from(newer)

    def test_what_lies_beside_a_changed_script_and_is_not_ours_stays_too(self):
        self.replace(MKDIRS)
        beside = self.replace(f"{MKDIRS}.new", "# my next version\n")
        for source in (CHECKOUT, self.newer_copy()):
            self.assertIn(f"{beside}, which", self.installed(source=source))
            self.assertEqual(beside.read_text(), "# my next version\n")
        self.installed("--uninstall")
        self.assertEqual(self.names(), {MKDIRS, f"{MKDIRS}.new"})

    def test_a_link_that_was_changed_stays_too(self):
        link = f"{RELEASE}/20-ramdisk"
        self.installed()
        for make in (
            lambda: os.symlink("/bin/true", self.hooks / link),
            lambda: self.replace(link),
        ):
            (self.hooks / link).unlink()
            make()
            before = (self.hooks / link).lstat()
            self.installed()
            self.assertEqual((self.hooks / link).lstat().st_ctime, before.st_ctime)
            self.assertEqual(os.readlink(self.hooks / f"{link}.new"), f"../{PREPARE}/20-ramdisk")

    def test_an_administrators_file_with_the_name_of_ours_stays(self):
        mine = self.replace(MKDIRS)
        for options in ([], ["--uninstall"]):
            self.installed(*options)
            self.assertEqual(mine.read_text(), MINE)
        self.assertEqual(self.names(), {MKDIRS})

    def test_what_lies_beside_never_runs(self):
        copy = self.copy_of_checkout()
        (copy / MKDIRS).write_text("#!/bin/sh\nexit 99\n")
        self.replace(MKDIRS, "#!/bin/sh\necho mine\n")
        self.installed(source=copy)
        result = run([self.hooks / "lxc", "web", "prepare", "begin", "-"], input="<domain/>")
        self.assertEqual((result.returncode, result.stdout), (0, "mine\n"))

    def test_a_script_that_was_switched_off_is_updated_and_stays_off(self):
        self.installed()
        off = (DELETION, f"{PREPARE}/20-ramdisk", "lxc")
        for path in off:
            (self.hooks / path).chmod(0o644)
        newer = self.newer_copy()
        self.installed(source=newer)
        for path, file in contents(newer).items():
            if not isinstance(file, str):
                mode = 0o100644 if path in off else 0o100755
                self.assertEqual((self.hooks / path).stat().st_mode, mode, path)
                self.assertEqual((self.hooks / path).read_bytes(), file.read_bytes())

    def test_what_the_new_version_lacks_is_removed_unless_changed(self):
        places = ("release_end_-.d/15-old", "release_end_-.d/16-old", "started_begin_-.d/15-old")
        older = self.older_copy(*(f"{ARCHIVE} ${{part}}_{place}" for place in places))
        self.installed("--driver", "lxc", "--driver", "qemu", source=older)
        mine = self.replace(f"{RELEASE}/16-old")
        self.installed("--driver", "lxc")
        self.assertEqual(mine.read_text(), MINE)
        self.assertFalse((self.hooks / RELEASE / "15-old").exists())
        self.assertFalse((self.hooks / "lxc_started_begin_-.d").exists())
        self.assertTrue((self.hooks / "qemu_started_begin_-.d/15-old").exists(), "not named")


class Command(InstallTestCase):
    """The command virt-hooks, its manual pages and its completion, below the prefix."""

    def assert_command_from(self, source, prefix=None):
        prefix = prefix or self.prefix
        self.assertEqual(self.names(prefix), set(COMMAND))
        for path, file in COMMAND.items():
            self.assertEqual((prefix / path).read_bytes(), (source / file).read_bytes(), path)
            mode = 0o100755 if path.startswith("sbin") else 0o100644
            self.assertEqual((prefix / path).stat().st_mode, mode, path)

    def test_it_is_installed_upgraded_and_removed_with_the_last_driver(self):
        self.installed("--driver", "lxc", "--driver", "qemu")
        self.assert_command_from(CHECKOUT)
        newer = self.newer_copy()
        self.installed(source=newer)
        self.assert_command_from(newer)
        self.installed("--uninstall", "--driver", "lxc")
        self.assert_command_from(newer)
        self.installed("--uninstall", "--driver", "qemu")
        self.assertEqual(self.names(self.prefix), set())
        self.assertTrue((self.prefix / "sbin").is_dir(), "a directory that others may use")

    def test_anothers_command_of_that_name_stays(self):
        theirs = self.write("usr/sbin/virt-hooks", "theirs", 0o755)
        self.installed()
        self.installed("--uninstall")
        self.assertEqual(theirs.read_text(), "theirs")
        self.assertEqual(self.names(self.prefix), {"sbin/virt-hooks"})

    def test_with_another_prefix_it_moves(self):
        self.installed()
        other = self.directory / "an other\\prefix"
        self.installed("--prefix", f"{other}/")
        self.assert_command_from(CHECKOUT, other)
        self.assertEqual(self.names(self.prefix), set())
        newer = self.newer_copy()
        command = [newer / "install.sh", "--hooks-dir", self.hooks, "--no-reload"]
        self.assert_succeeds(run(command))  # it is recorded where it is
        self.assert_command_from(newer, other)
        self.assertEqual(self.names(Path("/usr/local/sbin")), set())
        self.assert_succeeds(run([*command, "--uninstall"]))
        self.assertEqual(self.names(other), set())


TREE_HOOK = """#!/bin/sh
# as the most copied hook does it
here=$(dirname "$0")
settings=$(cat "$here/hooks.json")
for script in "$here/qemu.d/$1/$2/$3"/*; do
    [ ! -x "$script" ] || "$script" "$1" "$2" "$3" "$settings"
done
"""
START = '#!/bin/sh\necho "$(dirname "$0")" "$@" >>"$RAN"\n'


class AnotherHook(InstallTestCase):
    """A hook that was there before us, or that somebody has put into our place."""

    def commands_of(self, text):
        """The commands in a message, which are indented."""
        return "".join(f"{line}\n" for line in text.splitlines() if line.startswith("    "))

    def test_it_is_refused_before_anything_is_changed(self):
        for driver in ("qemu", "network"):
            path = self.hooks / driver
            for make in (
                lambda driver=driver: self.replace(driver),
                lambda driver=driver: self.replace(driver, mode=0o600),
                lambda path=path: path.symlink_to("/usr/local/bin/hook"),
                lambda path=path: path.mkdir(),
            ):
                with self.subTest(driver=driver):
                    shutil.rmtree(self.hooks, ignore_errors=True)
                    self.hooks.mkdir()
                    make()
                    # a driver without another hook comes first: all checks come before
                    options = ["--driver", "libxl", "--driver", driver]
                    self.assert_refuses(f"{path} ", "old/", options=options)

    def test_one_that_was_put_back_or_a_changed_dispatcher_is_never_called_installed(self):
        self.installed("--driver", "lxc", "--driver", "qemu")
        for text in (MINE, (CHECKOUT / "hooks/lxc").read_text() + "# mine\n"):
            hook = self.replace("lxc", text)
            for options in ([], ["--driver", "lxc"]):
                for source in (CHECKOUT, self.newer_copy(f"newer {len(text)} {options}")):
                    self.assert_refuses(f"{hook} ", options=options, source=source)
        self.installed("--driver", "qemu")
        hook.unlink()
        self.installed()
        self.assert_installed_from(CHECKOUT, "lxc", "qemu")

    def old_hook(self):
        self.replace("qemu", TREE_HOOK)
        self.replace("hooks.json", "setting\n", 0o644)
        self.replace("my settings.conf", "", 0o644)
        for name in ("lxc", "network", "lxc.d/own"):  # of another driver, which stay
            self.replace(name, "#!/bin/sh\n")
        self.replace("qemu.d/win 10/prepare/begin/start.sh", START)
        return self.assert_refuses(f"{self.hooks / 'qemu'} ", options=["--driver=qemu"]).stderr

    def call(self, ran):
        environment = {**os.environ, "RAN": str(ran)}
        call = [self.hooks / "qemu", "win 10", "prepare", "begin", "-"]
        self.assert_succeeds(run(call, input="<domain/>", env=environment))
        return ran.read_text()

    def test_the_advice_keeps_it_in_use_with_all_that_lies_beside_it(self):
        commands = self.commands_of(self.old_hook())
        keep = commands[: commands.index("    done\n") + len("    done\n")]
        self.assert_succeeds(run(["sh", "-euc", keep]))
        self.installed("--driver=qemu")
        said = self.call(self.directory / "ran")
        self.assertIn("old/qemu.d/win 10/prepare/begin win 10 prepare begin setting", said)
        for name in ("lxc", "network", "lxc.d/own"):
            self.assertEqual((self.hooks / name).read_text(), "#!/bin/sh\n")

    def test_the_advice_never_replaces_a_hook_that_is_kept_already(self):
        self.old_hook()
        commands = self.commands_of(self.old_hook())
        self.assert_succeeds(run(["sh", "-euc", commands]))
        self.replace("qemu", MINE)
        run(["sh", "-euc", commands])
        self.assertEqual((self.hooks / "old/qemu").read_text(), TREE_HOOK)
        self.assertEqual((self.hooks / "qemu").read_text(), MINE)

    def test_a_directory_with_a_space_and_the_roles_record(self):
        self.hooks = self.directory / "my hooks"
        self.replace("qemu", "#!/bin/sh\nexit 7\n")
        self.replace(".virt-hooks-ansible", "a record\n", 0o644)
        options = ["--driver=qemu", "--hooks-dir", self.hooks]
        commands = self.commands_of(self.assert_refuses("another hook", options=options).stderr)
        self.assert_succeeds(run(["sh", "-euc", commands]))
        self.installed(*options)
        call = [self.hooks / "qemu", "win 10", "prepare", "begin", "-"]
        self.assertEqual(run(call, input="<domain/>").returncode, 7)
        self.assertTrue((self.hooks / ".virt-hooks-ansible").exists())


class NeverLosing(InstallTestCase):
    def test_a_phase_directory_that_is_a_link_or_a_file_is_refused(self):
        self.hooks.mkdir()
        path = self.hooks / RELEASE
        for make in (
            lambda: path.symlink_to("/tmp"),
            lambda: path.symlink_to("/nowhere"),
            lambda: path.write_text(""),
        ):
            make()
            self.assert_refuses(str(path))
            path.unlink()

    def test_where_others_can_write_it_refuses_and_says_what_to_run(self):
        """The dispatcher would run no script there, and so start no guest."""
        self.directory.chmod(0o755)
        self.installed("--driver", "lxc", "--driver", "qemu")
        phase = self.hooks / "lxc_started_begin_-.d"
        own = self.replace("lxc_started_begin_-.d/web/10-own")
        for path, mode, owner in (
            (self.directory, 0o775, 0),
            (self.hooks, 0o757, 0),
            (phase, 0o755, 65534),
            (phase / "web", 0o775, 65534),
            (own, 0o775, 0),
        ):
            with self.subTest(path=path):
                path.chmod(mode)
                os.chown(path, owner, 0)
                said = self.assert_refuses(f"'{path}", options=["--driver", "lxc"]).stderr
                self.assertEqual(said.count("\n"), 1)
                self.assert_succeeds(run(["sh", "-c", said.partition("Run first: ")[2]]))
        self.installed("--driver", "lxc")
        (self.hooks / "qemu_started_begin_-.d").chmod(0o775)
        self.installed("--driver", "lxc")  # it has nothing of it
        shutil.rmtree(self.hooks)
        self.directory.chmod(0o777)
        self.assert_refuses(f"'{self.directory}'")  # where it would make the hooks directory
        self.directory.chmod(0o1777)  # as /tmp
        self.installed()

    def test_the_administrators_own_files_are_never_touched(self):
        names = (f"{PREPARE}/15-mine", f"{RELEASE}/timeout", f"{RELEASE}/web/10-archive")
        names += ("lxc_started_begin_-.d/10-mine", "lxc_release_end_crashed.d/10-archive")
        names += ("lxc.d/local", "qemu", "lxc.conf", "lxc2", f"{MKDIRS}.bak")
        mine = [str(self.replace(name, mode=0o750)) for name in names]
        before = times(self.hooks)
        newer = self.newer_copy()
        for options, source in (([], CHECKOUT), ([], newer), (["--uninstall"], newer)):
            self.installed(*options, source=source)
            after = times(self.hooks)
            for path in mine:
                self.assertEqual(after[path], before[path])
        self.assertEqual(self.names(), set(names))


class Uninstalling(InstallTestCase):
    def test_it_removes_all_that_was_installed(self):
        self.installed("--driver=lxc", "--driver=network", "--driver=qemu")
        self.installed("--uninstall")
        self.assertEqual(list(self.hooks.iterdir()), [])
        self.assertIn("nothing is installed", self.installed("--uninstall"))

    def test_the_command_of_another_installation_stays(self):
        stage = {**os.environ, "DESTDIR": str(self.directory / "stage")}
        trial = ["--hooks-dir", "/srv/trial"]
        for options in ([], trial, [*trial, "--uninstall"]):
            self.assert_succeeds(run([CHECKOUT / "install.sh", *options], env=stage))
        self.assertEqual(self.names(self.directory / "stage/usr/local"), set(COMMAND))
        self.assertEqual(self.names(self.directory / "stage/srv"), set())
        self.assert_succeeds(run([CHECKOUT / "install.sh", "--uninstall"], env=stage))
        self.assertEqual(self.names(self.directory / "stage"), set())

    def test_it_removes_one_driver_alone(self):
        self.installed("--driver", "lxc", "--driver", "qemu")
        self.installed("--uninstall", "--driver", "lxc", "--driver", "libxl")
        self.assert_installed_from(CHECKOUT, "qemu")
        self.installed("--driver", "qemu")
        self.assert_installed_from(CHECKOUT, "qemu")

    def test_what_was_changed_is_left_and_named_and_no_dispatcher_runs_it(self):
        self.installed()
        for path in (MKDIRS, DELETION):
            self.replace(path)
        self.installed()  # puts NAME.new beside, which is ours
        own = self.replace("lxc_started_begin_-.d/web/10-own")
        said = self.installed("--uninstall")
        self.assertEqual(self.names(), {MKDIRS, DELETION, "lxc_started_begin_-.d/web/10-own"})
        for path in (self.hooks / DELETION, own):
            self.assertIn(str(path), said)

    def test_a_changed_dispatcher_which_would_run_what_is_left_stops_it(self):
        self.installed("--driver", "qemu", "--driver", "lxc")
        changed = self.replace("lxc")
        self.assert_refuses(str(changed), options=["--uninstall"])
        self.installed("--uninstall", "--driver", "qemu")
        changed.unlink()
        self.installed("--uninstall")
        self.assertEqual(self.names(), set())

    def test_guests_that_run_with_the_hooks_are_named(self):
        status = Path("/run/libvirt/lxc")
        status.mkdir(parents=True)
        self.addCleanup(shutil.rmtree, status.parent)
        self.addCleanup(shutil.rmtree, HOOKS)
        (status / "web one.xml").write_text(f"<domstatus>{guest_xml('')}</domstatus>")
        (status / "plain.xml").write_text("<domstatus><domain/></domstatus>")
        command = [CHECKOUT / "install.sh", "--no-reload", "--prefix", self.prefix]
        self.assert_succeeds(run([*command, "--driver", "lxc", "--driver", "qemu"]))
        result = run([*command, "--uninstall", "--driver", "qemu"])
        self.assertNotIn("web one", result.stdout)
        result = run([*command, "--uninstall"])
        self.assert_succeeds(result)
        self.assertIn("web one", result.stdout)
        self.assertNotIn("plain", result.stdout)

    def test_what_must_be_repeated_it_says(self):
        self.assertIn("--hooks-dir", self.installed())
        result = run([CHECKOUT / "install.sh", "--uninstall", "--no-reload"])
        self.assert_succeeds(result)
        self.assertIn("--hooks-dir", result.stdout)
        self.assertFalse(HOOKS.exists())

    def test_where_nothing_is_installed_it_changes_nothing(self):
        self.replace("lxc")
        before = snapshot(self.directory)
        for options in ([], ["--driver", "lxc"]):
            self.assertIn("nothing is installed", self.installed("--uninstall", *options))
            self.assertEqual(snapshot(self.directory), before)


# In place of a command that changes something. Before the call that is to be the last one it ends
# its process group.
COUNTED = """#!/bin/sh
read -r count <"$COUNT"
echo $((count + 1)) >"$COUNT"
[ "$count" != "$LAST" ] || kill -9 0
exec "/usr/bin/${0##*/}" "$@"
"""


class InterruptedTestCase(InstallTestCase):
    """install.sh, of which little is to be installed, is killed somewhere; then it is run again.

    The administrator has changed one script, and has one of his own.
    """

    KILLED_AT = ("mv",)

    def setUp(self):
        super().setUp()
        self.versions = [self.small_copy("old"), self.newer(self.small_copy("new"))]
        self.count = self.directory / "count"
        for name in self.KILLED_AT:
            self.write(f"bin/{name}", COUNTED, 0o755)
        self.stage = self.directory / "stage"
        self.hooks = self.stage / "etc/libvirt/hooks"
        self.mine = {path: self.replace(path) for path in (MKDIRS, f"{RELEASE}/50-own")}
        self.run_one(self.versions[0])
        for path in self.mine:
            self.replace(path)
        shutil.move(self.stage, self.directory / "installed")

    def small_copy(self, name):
        copy = self.copy_of_checkout(name)
        text = (copy / "install.sh").read_text()
        for script in ("20-ramdisk", "30-preload", "10-routing-table", "20-network-policy"):
            text = re.sub(f"(?m)^(lxc_|#link:).*{script}\n", "", text)
        text = re.sub(r"(?m)^command/(?!virt-hooks ).*\n", "", text)
        (copy / "install.sh").write_text(text)
        return copy

    def run_one(self, source, *options, last=-1):
        """Run a version, until it comes to a command that would change something, or to its end."""
        self.count.write_text("0\n")
        path = f"{self.directory}/bin:{os.environ['PATH']}"
        environment = {"PATH": path, "DESTDIR": str(self.stage), "COUNT": str(self.count)}
        command = [source / "install.sh", *options]
        environment["LAST"] = str(last)
        return run(command, env=environment, start_new_session=True)

    def lay_out(self, installed):
        """Put the stage as it was before: with a version installed, or without."""
        shutil.rmtree(self.stage, ignore_errors=True)
        if installed:
            shutil.copytree(self.directory / "installed", self.stage, symlinks=True)
        for path in self.mine:
            self.replace(path)

    def recorded(self):
        record = self.hooks / RECORD
        lines = record.read_text().splitlines() if record.exists() else []
        return {tuple(line.split("  ")) for line in lines}

    def assert_record_is_true(self):
        """Each file of ours that is in place is recorded; no file of the administrator's is."""
        entries = self.recorded()
        for path in [*self.hooks.rglob("*"), *self.stage.glob("usr/local/sbin/virt-hooks")]:
            if path.name in (RECORD, ".virt-hooks.tmp") or path.is_dir():
                continue
            inside = path.is_relative_to(self.hooks)
            name = (
                str(path.relative_to(self.hooks)) if inside else f"/{path.relative_to(self.stage)}"
            )
            sum = run(["sha256sum", path]).stdout.split()[0]
            entry = f"#link:{os.readlink(path)}" if path.is_symlink() else sum
            self.assertEqual((entry, name) in entries, name not in self.mine, name)

    def assert_result(self, source):
        """What is there is as one version has it, or nothing is; mine is as it was."""
        wanted = {ARCHIVE, DELETION, "lxc", f"{MKDIRS}.new", RECORD} if source else set()
        self.assertEqual(self.names(), wanted | self.mine.keys())
        for path in wanted - {RECORD}:
            file = source / ("hooks/lxc" if path == "lxc" else path.removesuffix(".new"))
            self.assertEqual((self.hooks / path).read_bytes(), file.read_bytes(), path)
        for path in self.mine.values():
            self.assertEqual(path.read_text(), MINE)
        programs = {"local/sbin/virt-hooks"} if source else set()
        self.assertEqual(self.names(self.stage / "usr"), programs)

    def interrupt(self, first, installed, choose):
        """Kill a run at each of its commands; after each run what choose(number) returns.

        first and what is chosen: (version, options); installed: whether the old version is there.
        """
        self.lay_out(installed)
        self.assert_succeeds(self.run_one(*first))
        total = int(self.count.read_text())
        self.assertGreater(total, 0)
        for number in range(total):
            for version, *options in choose(number):
                with self.subTest(killed=number, then=(version, *options)):
                    self.lay_out(installed)
                    result = self.run_one(*first, last=number)
                    self.assertEqual(result.returncode, -signal.SIGKILL)
                    self.assert_record_is_true()
                    self.assert_succeeds(self.run_one(version, *options))
                    self.assert_result(None if options else version)


class Interrupted(InterruptedTestCase):
    """tests/long_install.py kills it at more places."""

    def choose(self, number):
        old, new = self.versions
        return [[(old,), (new,), (new, "--uninstall")][number % 3]]

    def test_a_killed_installation(self):
        self.interrupt((self.versions[0],), False, self.choose)

    def test_a_killed_upgrade(self):
        self.interrupt((self.versions[1],), True, self.choose)

    def test_a_killed_driver_is_remembered(self):
        self.lay_out(False)
        self.run_one(self.versions[0], "--driver", "qemu", last=5)
        self.assertFalse((self.hooks / "qemu").exists())
        self.assert_succeeds(self.run_one(self.versions[0]))
        self.assertTrue((self.hooks / "qemu").exists())
        self.assertFalse((self.hooks / "lxc").exists())


class Failing(InstallTestCase):
    def test_a_disk_that_is_full_leaves_no_dispatcher_and_a_true_record(self):
        """Then another version installs all; or --uninstall, still without room, removes all."""
        self.hooks.mkdir()
        newer = self.newer_copy()
        for size in (8, 40, 72):
            for then in (newer, None):
                with self.subTest(size=size, then=then):
                    options = f"size={size}k,mode=0755"
                    mount = ["mount", "-t", "tmpfs", "-o", options, "small", self.hooks]
                    subprocess.run(mount, check=True)
                    self.addCleanup(run, ["umount", self.hooks])
                    result = self.install()
                    self.assertEqual(result.returncode, 1)
                    self.assertIn("run it again", result.stderr)
                    self.assertFalse((self.hooks / "lxc").exists())
                    if then:
                        remount = ["mount", "-o", "remount,size=4M", self.hooks]
                        subprocess.run(remount, check=True)
                        self.installed(source=then)
                        self.assert_installed_from(then)
                    else:
                        self.installed("--uninstall")
                        self.assertEqual(self.names(), set())
                        self.assertEqual(self.names(self.prefix), set())
                    subprocess.run(["umount", self.hooks], check=True)
                    shutil.rmtree(self.prefix)

    def test_a_source_that_changes_meanwhile_is_not_installed(self):
        copy = self.copy_of_checkout()
        cp = 'case $* in *10-archive*) echo "# changed" >>"$2" ;; esac\nexec /bin/cp "$@"'
        self.write("bin/cp", f"#!/bin/sh\n{cp}\n", 0o755)
        environment = {"PATH": f"{self.directory}/bin:{os.environ['PATH']}"}
        result = self.install(source=copy, env=environment)
        self.assertEqual(result.returncode, 1)
        self.assertIn(str(copy / ARCHIVE), result.stderr)
        self.assertFalse((self.hooks / ARCHIVE).exists())
        self.assertFalse((self.hooks / "lxc").exists())
        self.installed(source=copy)
        self.assert_installed_from(copy)

    def test_a_file_that_cannot_be_read_is_not_taken_for_a_missing_one(self):
        mine = self.replace(MKDIRS)
        read = 'text=$(cat; echo .)\ncase $text in *"# mine"*) exit 1 ;; esac\n'
        text = f'{read}printf %s "${{text%.}}" | /usr/bin/sha256sum'
        self.write("bin/sha256sum", f"#!/bin/sh\n{text}\n", 0o755)
        environment = {"PATH": f"{self.directory}/bin:{os.environ['PATH']}"}
        for options in ([], ["--uninstall"]):
            self.install(*options, env=environment)
            self.assertEqual(mine.read_text(), MINE)
        self.assertEqual(self.names(), {MKDIRS})

    def test_a_second_one_waits_for_the_first(self):
        for options in ([], ["--uninstall"]):
            command = [CHECKOUT / "install.sh", "--hooks-dir", self.hooks, "--prefix", self.prefix]
            self.installed()
            before = snapshot(self.hooks)
            first = os.open(self.hooks, os.O_RDONLY)
            fcntl.flock(first, fcntl.LOCK_EX)
            second = subprocess.Popen(
                [*command, "--no-reload", *options],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            self.assertIn(str(self.hooks), second.stdout.readline())
            (self.hooks / MKDIRS).unlink()  # the first one works still
            del before[str(self.hooks / MKDIRS)]
            self.assertEqual(snapshot(self.hooks), before)
            self.assertIsNone(second.poll())
            os.close(first)
            _said, errors = second.communicate(timeout=60)
            self.assertEqual((second.returncode, errors), (0, ""))
            self.assertEqual((self.hooks / MKDIRS).exists(), not options)

    def test_two_at_once_leave_what_one_of_them_installs(self):
        newer = self.newer_copy()
        places = ["--hooks-dir", self.hooks, "--prefix", self.prefix, "--no-reload"]
        for _round in range(4):
            commands = [[source / "install.sh", *places] for source in (CHECKOUT, newer)]
            both = [subprocess.Popen(c, stdout=subprocess.DEVNULL) for c in commands]
            self.assertEqual([process.wait(60) for process in both], [0, 0])
            last = newer if b"# newer" in (self.hooks / "lxc").read_bytes() else CHECKOUT
            self.assert_installed_from(last)


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
        shutil.copy("/bin/dash", program)
        received = self.write(f"{name}.received", "")
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
        self.assert_succeeds(run([CHECKOUT / "install.sh", *places, *options], env=environment))

    def test_daemons_get_sighup_when_installed_and_when_uninstalled(self):
        received = [self.daemon(name) for name in ("libvirtd", "virtlxcd", "virtnwfilterd")]
        for number, options in enumerate(([], ["--uninstall"]), 1):
            self.tell(*options)
            for path in received:
                wait_until(lambda path=path, n=number: path.read_text() == "HUP\n" * n)

    def test_no_daemon_is_told_with_no_reload_nor_with_destdir(self):
        received = self.daemon("libvirtd")
        self.tell("--no-reload")
        self.tell(DESTDIR=str(self.directory / "stage"))
        self.tell("--uninstall", "--no-reload")
        time.sleep(0.3)
        self.assertEqual(received.read_text(), "")

    def test_who_is_no_such_daemon_gets_no_signal(self):
        received = [self.daemon("virtlogd"), self.daemon("bystander", Path("/run/libvirtd.pid"))]
        pid = Path("/run/libvirtd.pid").read_text().strip()
        for text in (f"{pid}\n", "", "999999999", "-1", "0", f"{pid} {pid}", "pid", "1/../1"):
            Path("/run/libvirtd.pid").write_text(text)
            self.tell()
        time.sleep(0.3)
        self.assertEqual([path.read_text() for path in received], ["", ""])

    def test_where_selinux_is_on_labels_are_restored(self):
        # no kernel here has SELinux, so its two commands are stand-ins
        calls = self.write("calls", "")
        self.write("bin/restorecon", f'#!/bin/sh\necho "$*" >>{calls}\n', 0o755)
        for status, wanted in ((1, ""), (0, f"-R -- {self.hooks}\n")):
            self.write("bin/selinuxenabled", f"#!/bin/sh\nexit {status}\n", 0o755)
            environment = {"PATH": f"{self.directory}/bin:{os.environ['PATH']}"}
            self.tell(**environment)
            self.tell(DESTDIR=str(self.directory / "stage"), **environment)
            self.assertEqual(calls.read_text(), wanted)


class Demo(InstallTestCase):
    def demo(self, source=CHECKOUT, **more):
        return run([source / "install.sh", "--demo"], **more)

    def test_it_shows_each_phase_with_its_scripts_and_the_files(self):
        result = self.demo()
        self.assert_succeeds(result)
        sections = re.split(r"(?m)^(?=\S)", result.stdout)[1:]
        expected = (
            ("lxc web prepare begin -", "  10-mkdirs\n    made /srv/web/log\n", "/srv/golden/web"),
            ("lxc web start begin -", "nothing"),
            ("lxc web started begin -", "nothing"),
            ("The guest is running", "www (a ramdisk)", "greetings", "drwxr-x--- root root"),
            ("lxc web stopped end -", "nothing"),
            ("lxc web release end shutdown", "  10-archive\n    archived", "/srv/archive/web/2"),
            ("Its log is archived", "archive", "greetings"),
            ("All this",),
        )
        self.assertEqual(len(sections), len(expected))
        for section, (head, *words) in zip(sections, expected):
            self.assertTrue(section.startswith(head), section)
            for word in words:
                self.assertIn(word, section)
        self.assertLessEqual(len(result.stdout.splitlines()), 45)
        self.assertLessEqual(max(map(len, result.stdout.splitlines())), 80)

    def test_it_leaves_nothing_behind_whatever_is_in_the_environment(self):
        places = [Path(place) for place in ("/srv", "/etc/libvirt", "/run", "/usr/local/sbin")]
        environment = {"PATH": os.environ["PATH"], "VIRT_HOOKS_DRY_RUN": "1"}
        environment["DESTDIR"] = str(self.directory / "stage")
        with Syslog() as log:
            mounts = mount_points()
            before = [snapshot(place) for place in places]
            devices = os.listdir("/dev")  # but not /dev/pts, where other tests' terminals come
            self.assert_succeeds(self.demo(env=environment))
            self.assertEqual([snapshot(place) for place in places], before)
            self.assertEqual(os.listdir("/dev"), devices)
            self.assertEqual(mount_points(), mounts)
        self.assertEqual(log.lines, [])

    def test_it_runs_from_below_srv_and_from_anywhere(self):
        copy = self.copy_of_checkout("a checkout")  # below /srv, which it mounts over
        self.assert_succeeds(run(["sh", "./install.sh", "--demo"], cwd=copy))
        self.assert_succeeds(self.demo(cwd="/srv"))

    def test_it_fails_where_a_script_fails_and_leaves_nothing_behind(self):
        for path, text in (
            (ARCHIVE, "#!/bin/sh\necho broken >&2\nexit 7\n"),
            (f"{PREPARE}/30-preload", "#!/bin/sh\nexit 0\n"),
            (DELETION, "#!/bin/sh\nexit 0\n"),
            ("hooks/lxc", "#!/bin/sh\nexit 5\n"),
        ):
            with self.subTest(path=path):
                copy = self.copy_of_checkout(f"broken {path.replace('/', ' ')}")
                (copy / path).write_text(text)
                before, mounts = snapshot(Path("/srv")), mount_points()
                self.assertNotEqual(self.demo(copy).returncode, 0)
                self.assertEqual(snapshot(Path("/srv")), before)
                self.assertEqual(mount_points(), mounts)


class Version(unittest.TestCase):
    def test_all_parts_have_the_version_and_the_date_of_the_changelog(self):
        heading = r"^## (\S+) \((\S+)\)$"
        changelog = (CHECKOUT / "CHANGELOG.md").read_text()
        version, date = re.search(heading, changelog, re.MULTILINE).groups()
        day = datetime.date.fromisoformat(date)
        for file, pattern, wanted in (
            ("command/virt-hooks", r'^VERSION = "(.*)"', version),
            (
                "command/virt-hooks.5",
                r'^\.TH VIRT-HOOKS 5 (\S+) "virt-hooks (.*?)"',
                (date, version),
            ),
            (
                "command/virt-hooks.8",
                r'^\.TH VIRT-HOOKS 8 (\S+) "virt-hooks (.*?)"',
                (date, version),
            ),
            ("packaging/debian/changelog", r"\((.*?)\)", version),
            ("packaging/debian/changelog", r"^ -- .*>  (.*) \d\d:", f"{day:%a, %d %b %Y}"),
            ("packaging/virt-hooks.spec", r"^Version: +(.*)", version),
            ("packaging/virt-hooks.spec", r"^\* .* - (.*)-1$", version),
            ("packaging/virt-hooks.spec", r"^\* (.*?) The ", f"{day:%a %b %d %Y}"),
        ):
            with self.subTest(file=file, pattern=pattern):
                found = re.findall(pattern, (CHECKOUT / file).read_text(), re.MULTILINE)
                self.assertEqual(found[:1], [wanted])


if __name__ == "__main__":
    unittest.main()
