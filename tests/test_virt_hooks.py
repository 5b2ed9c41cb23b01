"""virt-hooks, without libvirt: what it lists, what it finds, what it replays and makes."""

import json
import os
import pty
import re
import shutil
import subprocess
import time
from pathlib import Path
from types import ModuleType

from harness import CHECKOUT, NAMESPACE, TestCase, domain, install_dispatcher, run

COMMAND = CHECKOUT / "command/virt-hooks"
PREPARE, RELEASE = "lxc_prepare_begin_-.d", "lxc_release_end_-.d"
NO_LIBVIRT = ("--connect", "test:///default")  # a libvirt inside of virsh, with one guest, "test"
UUID = "<uuid>11111111-2222-3333-4444-555555555555</uuid>"
HONOURS = "#!/bin/sh\n# VIRT_HOOKS_DRY_RUN\n"
LIFE = """
    <mkdirs><dir>{0}/data</dir></mkdirs>
    <post-rm-rf><dir>{0}/data</dir></post-rm-rf>
"""


def module():
    """virt-hooks as a module."""
    made = ModuleType("virt_hooks")
    exec(compile(COMMAND.read_text(), COMMAND, "exec"), made.__dict__)
    return made


class VirtHooksTestCase(TestCase):
    def setUp(self):
        super().setUp()
        self.hooks = self.directory / "hooks"
        self.hooks.mkdir()
        install_dispatcher(self.hooks / "lxc")
        for directory in CHECKOUT.glob("lxc_*.d"):
            shutil.copytree(directory, self.hooks / directory.name, symlinks=True)

    def virt_hooks(self, command, *arguments, **options):
        """Run virt-hooks on self.hooks, by default without any guest of libvirt's."""
        places = ["--hooks-dir", self.hooks]
        if command in ("check", "replay"):
            places += NO_LIBVIRT
        return run([COMMAND, command, *places, *arguments], **options)

    def script(self, path, text, mode=0o755):
        return self.write(f"hooks/{path}", text, mode)

    def guest(self, elements=None, xml=None):
        """Write a guest's XML; return the file's path."""
        elements = LIFE.format(self.directory) if elements is None else elements
        return self.write("web.xml", domain(elements) if xml is None else xml)


class Check(VirtHooksTestCase):
    """Each way of breaking: it is found, with what to do, and gone when mended."""

    def check(self, *arguments):
        return self.virt_hooks("check", *(arguments or [self.guest()]))

    def assert_sound(self, *arguments):
        result = self.check(*arguments)
        self.assertEqual((result.returncode, result.stdout, result.stderr), (0, "", ""))

    def assert_finds(self, problem, remedy, *arguments):
        """One finding, on a line with what is wrong and one with what to do."""
        result = self.check(*arguments)
        self.assertEqual((result.returncode, result.stderr), (1, ""), result.stdout)
        lines = result.stdout.splitlines()
        self.assertEqual(len(lines), 2, result.stdout)
        self.assertIn(str(problem), lines[0])
        self.assertTrue(lines[1].startswith("    "), lines[1])
        self.assertIn(str(remedy), lines[1])

    def assert_cannot_look(self, problem, *arguments):
        result = self.check(*arguments)
        self.assertEqual((result.returncode, result.stdout), (2, ""))
        self.assertRegex(result.stderr, r"\Avirt-hooks: [^\n]+\n\Z")
        self.assertIn(str(problem), result.stderr)

    def test_a_sound_host_gives_silence(self):
        self.assert_sound()
        self.assert_sound("--driver", "lxc")
        self.script(f"{PREPARE}/README", "no script\n", 0o644)
        self.script(f"{PREPARE}/15-mine.bak", "#!/bin/sh\n")
        self.script(f"{PREPARE}/timeout", "20\n", 0o644)
        self.script(f"{PREPARE}/web/15-mine", "#!/bin/sh\n")
        (self.hooks / "lxc.d").mkdir()
        (self.hooks / ".git").mkdir()
        self.assert_sound()

    # ---- the hook

    def test_a_hook_that_is_missing(self):
        (self.hooks / "lxc").rename(self.directory / "away")
        self.assert_finds(f"there is no {self.hooks}/lxc", "install.sh")
        (self.directory / "away").rename(self.hooks / "lxc")
        self.assert_sound()

    def test_nothing_installed_at_all(self):
        shutil.rmtree(self.hooks)
        self.assert_cannot_look(f"{self.hooks}: there is no such directory", *NO_LIBVIRT)
        self.hooks.mkdir()
        self.assert_finds(f"no hook is installed in {self.hooks}", "install.sh", *NO_LIBVIRT)

    def test_a_hook_that_is_not_executable(self):
        (self.hooks / "lxc").chmod(0o644)
        remedy = f"chmod 755 {self.hooks}/lxc"
        self.assert_finds("is not executable: libvirt does not call it", remedy)
        self.assertEqual(run(["sh", "-c", remedy]).returncode, 0)
        self.assert_sound()

    def test_a_hook_that_is_not_ours_is_never_run(self):
        text = (self.hooks / "lxc").read_text()
        for foreign in ("#!/bin/sh\n", "import os; os.mkdir('/srv/pwned')\n", "\0\xff", ""):
            with self.subTest(foreign=foreign):
                (self.hooks / "lxc").write_text(foreign)
                self.assert_finds("is not the dispatcher of virt-hooks", "install.sh")
                self.assertFalse(os.path.exists("/srv/pwned"))
        (self.hooks / "lxc").write_text(text)
        self.assert_sound()

    def test_a_hook_that_others_could_have_written_is_never_run(self):
        for hook in (self.hooks / "lxc", self.hooks / "lxc_run.py"):
            text = hook.read_text()
            hook.write_text(text + "\nos.mkdir('/srv/pwned')\n")
            for break_it, mend in (
                (lambda hook=hook: hook.chmod(0o775), f"chmod go-w {hook}"),
                (lambda hook=hook: hook.chmod(0o757), f"chmod go-w {hook}"),
                (lambda hook=hook: os.chown(hook, 1000, 0), f"chown root: {hook}"),
                (lambda: self.hooks.chmod(0o777), f"chmod go-w {self.hooks}"),
                (lambda: os.chown(self.directory, 1000, 0), f"chown root: {self.directory}"),
            ):
                with self.subTest(mend=mend):
                    break_it()
                    self.assert_finds(str(hook)[:9], mend)
                    self.assertFalse(os.path.exists("/srv/pwned"))
                    self.assertEqual(run(["sh", "-c", mend]).returncode, 0)
            hook.write_text(text)
        self.assert_sound()

    def test_a_hook_of_another_version_or_that_is_broken(self):
        text = (self.hooks / "lxc").read_text()
        for broken, part in (
            (text.replace("def find_places(", "def find_them("), "is of another version"),
            (text.replace("import sys\n", "import sy s\n"), "cannot be loaded: invalid syntax"),
            (text.replace("import sys\n", "import syss\n"), "cannot be loaded: No module"),
        ):
            (self.hooks / "lxc").write_text(broken)
            self.assert_finds(part, "install.sh")
        (self.hooks / "lxc").write_text(text)
        self.assert_sound()

    def test_a_hook_whose_other_half_is_missing_broken_or_of_another_version(self):
        other_half = self.hooks / "lxc_run.py"
        text = other_half.read_text()
        other_half.unlink()
        self.assert_finds(f"there is no {other_half}, so libvirt runs none", "install.sh")
        for broken, part in (
            (text.replace("import os\n", "import o s\n"), "cannot be loaded: invalid syntax"),
            (text.replace("find_scripts\n", "find_more\n"), "cannot be loaded: cannot import name"),
            (text.replace("def time_limit(", "def limit("), "is of another version"),
            ("", f"{other_half} is of another version"),
        ):
            other_half.write_text(broken)
            self.assert_finds(part, "move it away and run install.sh again")
        other_half.write_text(text)
        self.assert_sound()

    def test_a_hook_with_an_interpreter_that_is_missing(self):
        text = (self.hooks / "lxc").read_text()
        (self.hooks / "lxc").write_text(text.replace("/usr/bin/python3", "/opt/python3", 1))
        self.assert_finds("cannot start: '/opt/python3', its interpreter", "install.sh")

    # ---- what lies beside it

    def test_a_phase_that_libvirt_never_calls(self):
        for stray, guess in (
            ("lxc_prepared_begin_-.d", PREPARE),
            ("lcx_prepare_begin_-.d", PREPARE),
            ("lxc_prepare_begin_-", PREPARE),
            ("lxc_prepare_begin.d", PREPARE),
            ("lxc_migrate_begin_-.d", None),
        ):
            with self.subTest(stray=stray):
                (self.hooks / stray).mkdir()
                guess = guess or "lxc_"
                self.assert_finds(f"{stray}: libvirt has no such phase; {guess}", "", *NO_LIBVIRT)
                (self.hooks / stray).rmdir()
        self.assert_sound(*NO_LIBVIRT)

    def test_a_script_without_its_executable_bit(self):
        path = self.script(f"{PREPARE}/15-mine", "#!/bin/sh\n", 0o644)
        self.assert_finds(f"{path} is not executable", f"chmod 755 {path}")
        path.chmod(0o755)
        self.assert_sound()

    def test_one_of_ours_that_was_switched_off_is_found_where_a_guest_needs_it(self):
        path = self.hooks / PREPARE / "10-mkdirs"
        path.chmod(0o644)
        for record, name in (
            (".virt-hooks.sha256", f"{PREPARE}/10-mkdirs"),  # of install.sh
            (".virt-hooks-ansible.sha1", path),
        ):
            with self.subTest(record):
                file = self.script(record, f"0  {name}\n", 0o644)
                self.assert_sound(self.guest("<post-rm-rf><dir>/srv/a/b</dir></post-rm-rf>"))
                would = f"<mkdirs>: {path} would read it, but does not run"
                self.assert_finds(would, "edit", self.guest())
                file.unlink()

    def test_a_script_without_a_number(self):
        path = self.script(f"{PREPARE}/mine", "#!/bin/sh\n")
        self.assert_finds(f"{path} has no number in front", "call it 50-mine")
        path.rename(path.with_name("50-mine"))
        self.assert_sound()

    def test_a_script_with_an_interpreter_that_is_missing(self):
        for first in ("#!/opt/nope\n", "#!/bin/sh\r\n", "echo\n"):
            path = self.script(f"{PREPARE}/15-mine", first)
            self.assert_finds(f"{path} cannot start", "first line")
        self.script(f"{PREPARE}/15-mine", "#!/bin/sh\n")
        self.assert_sound()

    def test_what_others_could_have_written(self):
        script, phase = self.hooks / PREPARE / "10-mkdirs", self.hooks / PREPARE
        for break_it, mend in (
            (lambda: script.chmod(0o775), f"chmod go-w {script}"),
            (lambda: os.chown(script, 1000, 0), f"chown root: {script}"),
            (lambda: phase.chmod(0o757), f"chmod go-w {phase}"),
            (lambda: os.chown(phase, 1000, 0), f"chown root: {phase}"),
        ):
            with self.subTest(mend=mend):
                break_it()
                result = self.check()
                self.assertEqual(result.returncode, 1)
                self.assertIn(f"    {mend}\n", result.stdout)
                self.assertEqual(run(["sh", "-c", mend]).returncode, 0)
        self.assert_sound()

    def test_a_link_that_leads_nowhere(self):
        (self.hooks / RELEASE / "15-gone").symlink_to("/srv/gone")
        elements = "<mkdirs><dir>/srv/a</dir></mkdirs>"
        self.assert_finds("15-gone is a link that leads nowhere", "remove", self.guest(elements))
        (self.hooks / RELEASE / "15-gone").unlink()
        self.assert_sound()

    def test_a_time_limit_that_is_no_number(self):
        path = self.script(f"{RELEASE}/timeout", "soon\n", 0o644)
        elements = "<mkdirs><dir>/srv/a</dir></mkdirs>"
        self.assert_finds(f"{path}: 'soon' is not a number", "mend it", self.guest(elements))
        path.write_text("10\n")
        self.assert_sound()

    def test_a_directory_of_a_guest_that_there_is_not(self):
        path = self.script(f"{PREPARE}/tset/15-mine", "#!/bin/sh\n").parent
        self.assert_finds(f"{path}: no guest has this name; test?", "rename", *NO_LIBVIRT)
        path.rename(path.with_name("test"))
        self.assert_sound(*NO_LIBVIRT)

    def test_a_program_that_a_script_needs(self):
        programs = self.directory / "bin"
        programs.mkdir()
        for name in ("cp", "rm", "sh"):
            (programs / name).symlink_to(shutil.which(name))
        environment = {"PATH": str(programs)}
        size = "<ramdisk><dir size='1M'>/srv/a</dir></ramdisk>"
        for elements, missing in ((LIFE.format(self.directory), []), (size, ["mount", "umount"])):
            result = self.virt_hooks("check", self.guest(elements), env=environment)
            self.assertEqual(result.returncode, 1 if missing else 0, result.stdout)
            found = re.findall(r"20-ramdisk needs (\S+), which this host lacks", result.stdout)
            self.assertEqual(found, missing)

    def test_a_daemon_that_has_not_noticed_the_hook(self):
        program = self.directory / "libvirtd"  # its comm; of a script, that is the interpreter's
        shutil.copy("/bin/sleep", program)
        (self.hooks / "lxc").rename(self.directory / "lxc")
        os.chmod(self.directory / "lxc", 0o644)
        process = subprocess.Popen([program, "600"])
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        pid_file = Path("/run/libvirtd.pid")
        pid_file.write_text(f"{process.pid}\n")
        self.addCleanup(pid_file.unlink)
        time.sleep(0.1)
        shutil.copy(self.directory / "lxc", self.hooks / "lxc")
        (self.hooks / "lxc").chmod(0o755)
        problem = f"libvirtd (process {process.pid}) runs since before"
        self.assert_finds(problem, "install.sh")
        told = Path("/run/virt-hooks.told")
        told.touch()
        self.addCleanup(told.unlink)
        self.assert_sound()
        os.utime(told, (0, 0))  # that was before
        self.assert_finds(problem, "install.sh")
        pid_file.write_text("1\n")  # another process, of another name
        self.assert_sound()

    def test_selinux_that_keeps_a_network_hook_from_running(self):
        install_dispatcher(self.hooks / "network")
        run(["mount", "-t", "tmpfs", "tests", "/sys/fs"], check=True)
        self.addCleanup(run, ["umount", "/sys/fs"], check=True)
        os.makedirs("/sys/fs/selinux/booleans")
        for enforce, boolean, confined in (
            ("1", "0 0", True),
            ("0", "0 0", False),
            ("1", "1 1", False),
        ):
            Path("/sys/fs/selinux/enforce").write_text(enforce)
            Path("/sys/fs/selinux/booleans/virt_hooks_unconfined").write_text(boolean)
            with self.subTest(enforce=enforce, boolean=boolean):
                result = self.check("--driver", "network", *NO_LIBVIRT)
                self.assertEqual(result.returncode, 1 if confined else 0, result.stderr)
                said = "setsebool -P virt_hooks_unconfined on" in result.stdout
                self.assertEqual(said, confined)

    # ---- a guest's metadata

    def test_metadata_without_a_namespace(self):
        xml = "<domain type='lxc'><name>web</name><metadata>{}</metadata></domain>"
        block = f"<mkdirs><dir>{self.directory}</dir></mkdirs>"
        self.assert_finds(
            "<mkdirs> in <metadata> has no namespace: libvirt drops it",
            f'put it into <hooks xmlns="{NAMESPACE}">',
            self.guest(xml=xml.format(block)),
        )
        self.assert_sound(self.guest(xml=xml.format(f'<hooks xmlns="{NAMESPACE}">{block}</hooks>')))

    def test_a_second_block_of_one_namespace(self):
        block = f'<hooks xmlns="{NAMESPACE}"/>'
        xml = f"<domain type='lxc'><name>web</name><metadata>{block * 2}</metadata></domain>"
        self.assert_finds("the second element of the namespace", "edit", self.guest(xml=xml))

    def test_a_namespace_that_is_nearly_ours(self):
        for namespace in ("urn:virt-hooks:2", "urn:virt-hook:1", "urn:virthooks:1"):
            xml = domain("<mkdirs><dir>/srv</dir></mkdirs>").replace(NAMESPACE, namespace)
            self.assert_finds(f"{namespace}; {NAMESPACE}?", "edit", self.guest(xml=xml))
        xml = domain("<mkdirs/>").replace(NAMESPACE, "https://example.org/something-else")
        self.assert_sound(self.guest(xml=xml))

    def test_an_element_that_no_script_reads(self):
        for element, guess in (
            ("mkdir", "mkdirs"),
            ("ram-disk", "ramdisk"),
            ("archives", "archive"),
            ("dir", "mkdirs"),
            ("route", None),
            ("something", None),
        ):
            with self.subTest(element=element):
                problem = f"<{element}>: no installed script reads it"
                problem += f"; <{guess}>?" if guess else "\n"
                result = self.check(self.guest(f"<{element}/>"))
                self.assertEqual(result.returncode, 1)
                self.assertIn(problem, result.stdout)
        self.script(f"{PREPARE}/50-something", "#!/bin/sh\ngrep '<something>'\n")
        self.assert_sound(self.guest("<something/>"))

    def test_hooks_that_stand_in_the_wrong_place(self):
        xml = (
            "<domain type='lxc'><name>web</name><metadata>"
            f'<mkdirs xmlns="{NAMESPACE}"><dir>/srv/a</dir></mkdirs></metadata></domain>'
        )
        problem = "<mkdirs> stands in <metadata>, where only <hooks> is read"
        self.assert_finds(problem, "edit", self.guest(xml=xml))
        foreign = '<x:mkdirs xmlns:x="urn:x"/>'
        problem = "<mkdirs> in <hooks> is of the namespace urn:x: no script reads it"
        self.assert_finds(problem, "edit", self.guest(foreign))
        bare = "<mkdirs xmlns=''><dir>/srv/a</dir></mkdirs>"
        self.assert_finds("of no namespace: no script reads it", "edit", self.guest(bare))

    def test_what_the_scripts_refuse_in_their_own_words(self):
        for elements, words in (
            ("<mkdirs><dir>srv</dir></mkdirs>", "10-mkdirs: web: mkdirs/dir 'srv' is not an absol"),
            ("<mkdirs><dri>/srv</dri></mkdirs>", "10-mkdirs: web: mkdirs: unknown element <dri>"),
            ("<ramdisk><dir size='64,M'>/srv/a</dir></ramdisk>", "size='64,M' is not a number"),
            ("<post-rm-rf><dir>/srv</dir></post-rm-rf>", "neither / nor what lies directly in it"),
            (
                "<preload><dircopy><src>/srv/gone</src><dst>/srv/a</dst></dircopy></preload>",
                "missing",
            ),
            ("<archive><dircopy><src>/srv/a</src></dircopy></archive>", "<dst> is missing"),
            ("<routing-table id='254' name='a'/>", "id='254' is a table of the system's"),
            ("<network-policy><nft>}</nft></network-policy>", "a '}' too many"),
        ):
            with self.subTest(elements=elements):
                self.assert_finds(words, f"edit {self.directory}/web.xml", self.guest(elements))
        self.assert_sound()

    def test_a_guest_that_has_no_uuid_yet(self):
        elements = "<network-policy><nft>chain a { }</nft></network-policy>"
        self.assert_sound(self.guest(elements))
        xml = f"<?xml version='1.0'?><!-- a --><domain><name>web</name>{domain(elements)[31:]}"
        self.assert_sound("--driver", "lxc", self.guest(xml=xml))

    def test_what_another_program_says_comes_whole(self):
        xml = domain("<network-policy><nft>frob\nnicate</nft></network-policy>")
        xml = xml.replace("<metadata>", f"{UUID}<metadata>")
        result = self.check(self.guest(xml=xml))
        self.assertEqual(result.returncode, 1)
        self.assertRegex(result.stdout, r"\Alxc web: nft: line 1:.*syntax error")
        self.assertIn("\n    20-network-policy: web: network-policy: nft failed", result.stdout)

    def test_nothing_is_done_whatever_it_finds(self):
        self.assert_sound()
        self.assertFalse((self.directory / "data").exists())

    def test_only_scripts_that_know_a_dry_run_are_asked(self):
        ran = self.directory / "ran"
        text = f"#!/bin/sh\n: '<x>' {{}}\nenv | grep -o DRY_RUN=. >>{ran}\nexit 3\n"
        self.script(f"{PREPARE}/50-x", text.format(""))
        self.assert_sound(self.guest("<x/>"))
        self.assertFalse(ran.exists())
        self.script(f"{PREPARE}/50-x", text.format("VIRT_HOOKS_DRY_RUN"))
        self.assert_finds("50-x: exit status 3", "edit", self.guest("<x/>"))
        self.assertEqual(ran.read_text(), "DRY_RUN=1\n")

    def test_scripts_of_every_kind_answer_in_every_order(self):
        elements = ""
        for number in range(10, 40, 3):
            self.script(
                f"{PREPARE}/{number}-s{number}", f"{HONOURS}: '<s{number}>'\nexit {number}\n"
            )
            text = "#!/usr/bin/python3 -IS\n# VIRT_HOOKS_DRY_RUN\nimport os, sys\n"
            text += f"'<p{number}>'\nsys.stderr.write('hm')\nsys.exit({number})\n"
            self.script(f"{PREPARE}/{number}-p{number}", text)
            self.script(f"{PREPARE}/{number}-e{number}", text.replace("sys.exit", "os._exit"))
            self.script(f"{PREPARE}/{number}-k{number}", f"{HONOURS}: '<k{number}>'\nkill -9 $$\n")
            elements += f"<s{number}/><p{number}/><k{number}/>"
        result = self.check(self.guest(elements))
        self.assertEqual((result.returncode, result.stderr), (1, ""))
        for number in range(10, 40, 3):
            self.assertIn(f"lxc web: {number}-s{number}: exit status {number}\n", result.stdout)
            self.assertIn(f"lxc web: {number}-k{number}: signal 9\n", result.stdout)
        self.assertEqual(result.stdout.count("web: hm\n"), 1)  # the same words, said once

    def test_a_script_that_fails_by_a_bug_or_does_not_end(self):
        self.script(f"{PREPARE}/50-x", "#!/usr/bin/python3 -IS\n# '<x>' VIRT_HOOKS_DRY_RUN\n1/0\n")
        result = self.check(self.guest("<x/>"))
        self.assertEqual(result.returncode, 1)
        self.assertIn("ZeroDivisionError", result.stdout)
        self.script(f"{PREPARE}/timeout", "0.3\n", 0o644)
        self.script(f"{PREPARE}/50-x", f"{HONOURS}: '<x>'\nexec sleep 600\n")
        self.assert_finds("50-x: its dry run did not end within 0.3 s", "edit", self.guest("<x/>"))

    # ---- how it is asked

    def test_a_file_that_is_no_guest(self):
        self.assert_cannot_look("no element found", self.guest(xml=""))
        self.assert_cannot_look("a document type", self.guest(xml="<!DOCTYPE a><domain/>"))
        self.assert_cannot_look("<volume> is neither", self.guest(xml="<volume/>"))
        self.assert_cannot_look("No such file", "/srv/gone.xml")

    def test_a_guest_that_there_is_not(self):
        self.assert_cannot_look("no guest is called 'nope'", "nope", *NO_LIBVIRT)

    def test_a_libvirt_that_cannot_be_asked(self):
        result = run(
            [COMMAND, "check", "--hooks-dir", self.hooks, "--connect", "lxc+tcp://[::1]:1/"]
        )
        self.assertEqual((result.returncode, result.stdout), (2, ""))
        self.assertRegex(result.stderr, r"\Avirt-hooks: lxc: virsh: [^\n]+\n\Z")

    def test_without_virsh_what_does_not_need_it_is_still_looked_at(self):
        (self.hooks / "lxc").chmod(0o644)
        environment = {"PATH": str(self.directory)}
        result = run([COMMAND, "check", "--hooks-dir", self.hooks], env=environment)
        self.assertEqual(result.returncode, 2)
        self.assertIn("not executable", result.stdout)
        self.assertIn("virsh: No such file", result.stderr)

    def test_somebody_else_than_root_is_told_what_needs_root(self):
        nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        self.directory.chmod(0o755)
        copy = shutil.copy(COMMAND, self.directory)
        (self.hooks / "lxc").chmod(0o644)
        result = run([*nobody, copy, "check", "--hooks-dir", self.hooks, self.guest()])
        self.assertEqual(result.returncode, 2)
        self.assertIn("not executable", result.stdout)
        self.assertEqual(result.stderr.count("only root can ask the scripts"), 1)

    def test_a_driver_that_cannot_be_asked_matters_only_where_a_guest_could_be_its(self):
        install_dispatcher(self.hooks / "qemu")
        virsh = '#!/bin/sh\ncase "$*" in *qemu:*) echo down >&2; exit 1 ;; esac\n'
        virsh += f'exec {shutil.which("virsh")} -q -c test:///default "$4" $5 $6\n'
        self.write("bin/virsh", virsh, 0o755)
        environment = {"PATH": f"{self.directory}/bin:{os.environ['PATH']}"}
        for arguments, status in ((["test"], 0), (["nope"], 2), ([], 2)):
            command = [COMMAND, "check", "--hooks-dir", self.hooks, *arguments]
            result = run(command, env=environment)
            said = "virt-hooks: qemu: virsh: down\n" if status else ""
            self.assertEqual((result.returncode, result.stdout, result.stderr), (status, "", said))

    def test_stdin(self):
        xml = domain("<mkdirs><dir>srv</dir></mkdirs>")
        result = self.virt_hooks("check", "-", input=xml)
        self.assertEqual(result.returncode, 1)
        self.assertIn("mkdirs/dir 'srv'", result.stdout)

    def test_xml_that_does_not_say_its_driver(self):
        xml = domain("<mkdirs><dir>/srv/a</dir></mkdirs>").replace(" type='lxc'", "")
        self.assert_sound(self.guest(xml=xml))
        install_dispatcher(self.hooks / "network")
        self.assert_cannot_look("use --driver", self.guest(xml=xml))
        self.assert_sound("--driver", "lxc", self.guest(xml=xml))

    def test_a_network_is_wrapped_as_libvirt_does(self):
        install_dispatcher(self.hooks / "network")
        source = CHECKOUT / PREPARE / "10-mkdirs"
        (self.hooks / "network_start_begin_-.d").mkdir()
        shutil.copy(source, self.hooks / "network_start_begin_-.d")
        xml = domain("<mkdirs><dir>srv</dir></mkdirs>", "net")
        xml = xml.replace("<domain type='lxc'", "<network").replace("</domain", "</network")
        for declaration in ("", "<?xml version='1.0'?>\n"):
            self.assert_finds("network net: 10-mkdirs: net: mkdirs/dir 'srv'", "edit",
                              self.guest(xml=declaration + xml))  # fmt: skip

    def test_json(self):
        (self.hooks / "lxc").chmod(0o644)
        result = self.virt_hooks("check", "--json", self.guest("<mkdirs><dir>srv</dir></mkdirs>"))
        self.assertEqual(result.returncode, 1)
        host, guest = json.loads(result.stdout)["findings"]
        self.assertEqual((host["driver"], host["guest"]), ("lxc", None))
        self.assertEqual((guest["driver"], guest["guest"]), ("lxc", "web"))
        self.assertEqual(host["remedy"], f"chmod 755 {self.hooks}/lxc")
        self.assertIn("mkdirs/dir 'srv'", guest["problem"])
        (self.hooks / "lxc").chmod(0o755)
        result = self.virt_hooks("check", "--json", self.guest(), "/srv/gone.xml")
        self.assertEqual(result.returncode, 2)
        expected = {"findings": [], "failures": ["/srv/gone.xml: No such file or directory"]}
        self.assertEqual(json.loads(result.stdout), expected)

    def test_no_text_of_a_guest_reaches_the_terminal_raw(self):
        evil = "a\u009b31m\u202e&#9;&#10;b"
        result = self.check(self.guest(f"<mkdirs><dir>{evil}</dir></mkdirs>"))
        self.assertEqual(result.returncode, 1)
        self.assertTrue(all(c.isprintable() for c in result.stdout.replace("\n", "")))
        xml = domain("").replace(NAMESPACE, "urn:virt-hooks:2&#10;lxc:fine\u009b")
        result = self.check(self.guest(xml=xml))
        self.assertEqual((result.returncode, result.stdout.count("\n")), (1, 2), result.stdout)


class List(VirtHooksTestCase):
    def list(self, *arguments):
        return self.virt_hooks("list", *arguments)

    def test_it_lists_the_scripts_in_the_order_in_which_they_run(self):
        result = self.list()
        self.assert_succeeds(result)
        links = (
            "../lxc_start_begin_-.d/10-routing-table ../lxc_prepare_begin_-.d/20-ramdisk".split()
        )
        text = result.stdout.replace(" (whatever the reason)", "")
        expected = f"""\
{self.hooks}/lxc
  prepare begin -
    10-mkdirs
    20-ramdisk
    30-preload
  start begin -
    10-routing-table
    20-network-policy
  stopped end -
    10-routing-table -> {links[0]}
    20-network-policy -> ../lxc_start_begin_-.d/20-network-policy
  release end -
    10-archive
    20-ramdisk -> {links[1]}
    30-post-rm-rf
"""
        self.assertEqual(text, expected)

    def test_what_it_lists_is_what_runs(self):
        ran = self.directory / "ran"
        shutil.rmtree(self.hooks / PREPARE)
        text = f'#!/bin/sh\necho "${{0#{self.hooks}/{PREPARE}/}}" >>{ran}\n'
        for name in "9-z 10-b web/10-c 10-B.new 11-d~ web/5-a 2-off db/1-a e-5 100-a".split():
            self.script(f"{PREPARE}/{name}", text, 0o644 if name == "2-off" else 0o755)
        listed = self.list("web").stdout.partition("prepare begin -\n")[2].partition("start")[0]
        result = run([self.hooks / "lxc", "web", "prepare", "begin", "-"], input="<domain/>")
        self.assert_succeeds(result)
        self.assertEqual(listed.split()[: len(ran.read_text().split())], ran.read_text().split())
        self.assertEqual(ran.read_text().split(), ["10-b", "web/10-c", "100-a", "web/5-a", "9-z"])

    def test_guests_scripts_limits_and_what_cannot_start(self):
        self.script(f"{PREPARE}/web/15-mine", "#!/opt/nope\n")
        self.script(f"{PREPARE}/timeout", "60\n", 0o644)
        result = self.list()
        self.assertIn(
            "  prepare begin -, guest web\n"
            "    10-mkdirs (at most 60 s)\n"
            "    web/15-mine (at most 60 s) cannot start: '/opt/nope', its interpreter\n",
            result.stdout,
        )
        self.assertNotIn("web/15-mine", self.list("db").stdout)
        self.assertIn("web/15-mine", self.list("web").stdout)

    def test_what_never_runs_is_set_apart_with_the_reason(self):
        for name, mode in (("mine", 0o755), ("15-off", 0o644), ("16-old.bak", 0o755)):
            self.script(f"{PREPARE}/{name}", "#!/bin/sh\n", mode)
        (self.hooks / "lxc_prepared_begin_-.d").mkdir()
        result = self.list()
        self.assertEqual((result.returncode, result.stderr), (1, ""))
        apart = result.stdout.partition("Never run\n")[2].splitlines()
        self.assertEqual(
            apart,
            [
                f"  {PREPARE}/15-off: it is not executable",
                f"  {PREPARE}/16-old.bak: an editor or a package manager has left it behind, "
                "by its name",
                f"  {PREPARE}/mine: its name begins with no digit",
                f"  lxc_prepared_begin_-.d: libvirt has no such phase; {PREPARE}?",
            ],
        )

    def test_a_phase_that_is_refused_says_so(self):
        (self.hooks / PREPARE).chmod(0o777)
        result = self.list()
        self.assertEqual(result.returncode, 1)
        self.assertIn(
            f"  prepare begin -\n    refused: group or others can write to {self.hooks}/{PREPARE}",
            result.stdout,
        )

    def test_reasons_are_phases_of_their_own_where_libvirt_gives_them(self):
        self.script("lxc_release_end_from_snapshot.d/15-mine", "#!/bin/sh\n")
        programs = self.directory / "bin"
        for version, given in (("10.4.0", False), ("10.5.0", True), ("11.3.0", True)):
            self.write("bin/virsh", f"#!/bin/sh\necho {version}\n", 0o755)
            result = run(
                [COMMAND, "list", "--hooks-dir", self.hooks],
                env={"PATH": f"{programs}:{os.environ['PATH']}"},
            )
            merged = "  release end from snapshot\n    10-archive\n    15-mine\n    20-ramdisk ->"
            self.assertEqual(merged in result.stdout, given, version)
            self.assertEqual(result.returncode, 0 if given else 1)
            self.assertEqual("libvirt before 10.5 gives no reason" in result.stdout, not given)

    def test_what_libvirt_itself_runs_after_it(self):
        self.script("lxc.d/theirs", "#!/bin/sh\n")
        self.script("lxc.d/off", "#!/bin/sh\n", 0o644)
        result = self.list()
        self.assert_succeeds(result)
        self.assertIn("libvirt itself runs from lxc.d\n    theirs\n", result.stdout)

    def test_a_foreign_hook_is_named(self):
        (self.hooks / "lxc").write_text("#!/bin/sh\n")
        result = self.list()
        self.assertEqual(result.returncode, 1)
        self.assertIn("is not the dispatcher of virt-hooks", result.stdout)

    def test_colours_only_on_a_terminal(self):
        def on_terminal(**environment):
            master, slave = pty.openpty()
            environment = {"PATH": os.environ["PATH"], "TERM": "xterm", **environment}
            command = [COMMAND, "list", "--hooks-dir", self.hooks]
            subprocess.run(command, stdout=slave, env=environment, check=True)
            os.close(slave)
            output = b""
            try:
                while data := os.read(master, 65536):
                    output += data
            except OSError:
                pass  # the other end is closed
            os.close(master)
            return output

        self.assertNotIn("\033", self.list().stdout)
        self.assertIn(b"\033[1m", on_terminal())
        self.assertNotIn(b"\033", on_terminal(NO_COLOR="1"))
        self.assertNotIn(b"\033", on_terminal(TERM="dumb"))


class Replay(VirtHooksTestCase):
    def replay(self, *arguments, **options):
        return self.virt_hooks("replay", *arguments, **options)

    def test_it_plays_a_guests_life(self):
        result = self.replay("--lifecycle", self.guest())
        self.assert_succeeds(result)
        text = re.sub(r"\d\.\d{3} s", "TIME", result.stdout)
        self.assertIn(
            "lxc web prepare begin -\n"
            f"  10-mkdirs: created {self.directory}/data\n"
            "  10-mkdirs: done in TIME\n"
            "  20-ramdisk: done in TIME\n",
            text,
        )
        self.assertIn("lxc web started begin -\n  no scripts\n", text)
        self.assertIn(f"  30-post-rm-rf: removed {self.directory}/data\n", text)

    def test_it_passes_what_libvirt_passes(self):
        said = self.directory / "said"
        self.script(
            f"{PREPARE}/05-args",
            f'#!/bin/sh\nprintf "%s|" "$@" >{said}\nenv >>{said}\ncat >>{said}\n',
        )
        file = self.guest(xml=domain("").replace("<metadata>", f"{UUID}<metadata>"))
        self.assert_succeeds(self.replay(file, "prepare"))
        text = said.read_text()
        self.assertTrue(text.startswith("web|prepare|begin|-|"), text)
        self.assertTrue(text.endswith(file.read_text()))
        names = set(re.findall(r"(?m)^(?:.*\|)?([A-Z_]+)=", text))
        self.assertLessEqual(names, {"PATH", "HOME", "LC_ALL", "VIRT_HOOKS_VERBOSE", "PWD"})

    def test_its_exit_status_is_the_hooks(self):
        self.script(f"{PREPARE}/15-bad", "#!/bin/sh\necho no >&2\nexit 7\n")
        result = self.replay(self.guest(""), "prepare", "release")
        self.assertEqual((result.returncode, result.stderr), (7, ""))
        self.assertIn("  15-bad: no\n  15-bad: failed after", result.stdout)
        self.assertIn("  15-bad: exit status 7\n", result.stdout)
        self.assertNotIn("release", result.stdout)

    def test_a_guest_that_cannot_start_is_stopped_and_released(self):
        self.script("lxc_start_begin_-.d/05-bad", "#!/bin/sh\nexit 7\n")
        reason = self.script(f"{RELEASE}/05-reason", '#!/bin/sh\necho "reason $4"\n')
        self.assertTrue(reason.exists())
        result = self.replay("--lifecycle", self.guest(""))
        self.assertEqual(result.returncode, 7)
        operations = re.findall(r"(?m)^lxc web (\S+)", result.stdout)
        self.assertEqual(operations, ["prepare", "start", "stopped", "release"])

    def test_the_lines_come_as_it_happens(self):
        self.script(f"{PREPARE}/05-first", "#!/bin/sh\necho first\n")
        self.script(
            f"{PREPARE}/06-second",
            f"#!/bin/sh\nuntil [ -e {self.directory}/go ]; do sleep 0.05; done\n",
        )
        command = [COMMAND, "replay", "--hooks-dir", self.hooks, self.guest(""), "prepare"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            lines = [process.stdout.readline() for _ in range(3)]
            self.assertIn("05-first: first", lines[1])
            self.assertIn("05-first: done in", lines[2])
            (self.directory / "go").touch()
            self.assertIn("06-second: done in", process.stdout.readline())
            process.stdout.read()
        self.assertEqual(process.returncode, 0)

    def test_a_dry_run_does_nothing_and_names_what_it_cannot_ask(self):
        ran = self.directory / "ran"
        self.script(f"{PREPARE}/15-blind", f"#!/bin/sh\ntouch {ran}\n")
        result = self.replay("--dry-run", "--lifecycle", self.guest())
        self.assert_succeeds(result)
        self.assertIn(f"  10-mkdirs: would create {self.directory}/data\n", result.stdout)
        self.assertIn("  15-blind: not run, since it knows no dry run\n", result.stdout)
        self.assertFalse(ran.exists())
        self.assertFalse((self.directory / "data").exists())

    def test_filters_print_the_xml_that_libvirt_would_get(self):
        install_dispatcher(self.hooks / "qemu")
        self.script("qemu_restore_begin_-.d/10-filter", "#!/bin/sh\nsed s/lxc/kvm/\n")
        xml = domain("").replace("<metadata>", f"{UUID}<metadata>")
        result = self.replay("--driver", "qemu", self.guest(xml=xml), "restore")
        self.assert_succeeds(result)
        self.assertIn(xml.replace("lxc", "kvm"), result.stdout)

    def test_the_reason_of_a_release(self):
        self.script(f"{RELEASE}/05-reason", '#!/bin/sh\necho "reason $4"\n')
        result = self.replay("--reason", "from snapshot", self.guest(""), "release")
        self.assertIn(
            "lxc web release end from snapshot\n  05-reason: reason from snapshot\n", result.stdout
        )

    def test_what_cannot_be_replayed_is_one_line_and_status_2(self):
        for arguments, part in (
            ([self.guest("")], "no OPERATION"),
            ([self.guest(""), "migrate"], "lxc has no operation 'migrate', but prepare, start"),
            (["--lifecycle", self.guest(""), "prepare"], "--lifecycle takes no OPERATION"),
            (["--reason", "bored", self.guest(""), "release"], "--reason 'bored' is none of"),
            (["nope", "prepare"], "no guest is called 'nope'"),
            (["--driver", "qemu", self.guest(""), "prepare"], f"there is no {self.hooks}/qemu"),
        ):
            with self.subTest(arguments=arguments):
                result = self.replay(*arguments)
                self.assertEqual((result.returncode, result.stdout), (2, ""))
                self.assertRegex(result.stderr, r"\Avirt-hooks: [^\n]+\n\Z")
                self.assertIn(part, result.stderr)

    def test_a_hook_that_is_not_ours_is_never_called(self):
        (self.hooks / "lxc").write_text("#!/bin/sh\ntouch /srv/pwned\n")
        result = self.replay(self.guest(""), "prepare")
        self.assertEqual(result.returncode, 2)
        self.assertFalse(os.path.exists("/srv/pwned"))


class New(VirtHooksTestCase):
    def new(self, *arguments):
        return self.virt_hooks("new", *arguments)

    def test_what_it_makes_works(self):
        for language in ("sh", "python"):
            with self.subTest(language=language):
                name = f"say-{language}"
                result = self.new("--language", language, "lxc", "started", name)
                self.assertEqual(result.returncode, 0, result.stderr)
                path = Path(result.stderr.removeprefix("made ").strip())
                self.assertEqual(path.stat().st_mode, 0o100755)
                elements = result.stdout.partition(">")[2].rpartition("</hooks>")[0]
                file = self.guest(elements)
                played = self.virt_hooks("replay", file, "started")
                self.assertEqual(played.returncode, 0, played.stdout)
                self.assertIn(f"{path.name}: do it here: some text\n", played.stdout)
                played = self.virt_hooks("replay", "--dry-run", file, "started")
                self.assertIn(f"{path.name}: would do it: some text\n", played.stdout)
                played = self.virt_hooks("replay", self.guest(""), "started")
                self.assertEqual(played.returncode, 0)
                self.assertNotIn("it here", played.stdout)
                check = self.virt_hooks("check", self.guest(elements))
                self.assertEqual((check.returncode, check.stdout), (0, ""))
                check = self.virt_hooks("check", self.guest(f"<{name}/>"))
                self.assertEqual(check.returncode, 1)
                self.assertIn(f"<{name}> is empty", check.stdout)
                prefixed = elements.replace(f"<{name}", f"<h:{name}").replace(
                    f"</{name}", f"</h:{name}"
                )
                prefixed = domain("").replace(
                    f'<hooks xmlns="{NAMESPACE}"></hooks>',
                    f'<h:hooks xmlns:h="{NAMESPACE}">{prefixed}</h:hooks>',
                )
                played = self.virt_hooks("replay", self.guest(xml=prefixed), "started")
                self.assertIn(f"{path.name}: do it here: some text\n", played.stdout)

    def test_numbers(self):
        for name, made in (
            ("a", "40-a"),
            ("15-b", "15-b"),
            ("c", "50-c"),
            ("89-d", "89-d"),
            ("e", "90-e"),
        ):
            result = self.new("lxc", "prepare", name)
            self.assertEqual(result.stderr, f"made {self.hooks}/{PREPARE}/{made}\n")
        result = self.new("lxc", "prepare", "f")
        self.assertEqual(result.returncode, 2)
        self.assertIn("no free tens", result.stderr)
        self.assertEqual(
            self.new("lxc", "reconnect", "a").stderr.count("reconnect_begin_-.d/10-a"), 1
        )

    def test_modes_are_right_whatever_the_umask(self):
        command = 'umask 077; exec "$@"'
        result = run(
            [
                "sh",
                "-c",
                command,
                "sh",
                COMMAND,
                "new",
                "--hooks-dir",
                self.hooks,
                "lxc",
                "started",
                "a",
            ]
        )
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual((self.hooks / "lxc_started_begin_-.d").stat().st_mode, 0o40755)
        self.assertEqual((self.hooks / "lxc_started_begin_-.d/10-a").stat().st_mode, 0o100755)

    def test_what_is_there_stays(self):
        for name in ("mkdirs", "15-mkdirs", "10-mkdirs"):
            result = self.new("lxc", "prepare", name)
            self.assertEqual(result.returncode, 2)
            self.assertIn(f"{PREPARE}/10-mkdirs is there already", result.stderr)
        text = (self.hooks / PREPARE / "10-mkdirs").read_text()
        self.assertEqual(text, (CHECKOUT / PREPARE / "10-mkdirs").read_text())

    def test_names_that_no_element_can_have(self):
        for name in ("", "1", "10-", "a b", "../a", "a'b", "$(a)", "-a", "a/b", "é"):
            result = self.new("lxc", "prepare", "--", name)
            self.assertEqual(result.returncode, 2, name)
            self.assertNotIn("Traceback", result.stderr)


class Page(TestCase):
    """What is read on a terminal of 80 columns and 24 lines."""

    def test_every_help_fits(self):
        environment = {"PATH": os.environ["PATH"], "COLUMNS": "80"}
        for command in ([], ["list"], ["check"], ["replay"], ["new"], ["metadata"]):
            result = run([COMMAND, *command, "--help"], env=environment)
            self.assert_succeeds(result)
            lines = result.stdout.splitlines()
            self.assertLessEqual(max(map(len, lines)), 80, command)
            self.assertLessEqual(len(lines), 32 if command else 24, command)

    def test_the_manual_is_clean_and_fits(self):
        for page in ("virt-hooks.8", "virt-hooks.5"):
            command = ["groff", "-man", "-ww", "-rLL=80n", "-Tutf8", "-P-cbou", "-z"]
            result = run([*command, CHECKOUT / "man" / page])
            self.assertEqual((result.returncode, result.stderr), (0, ""))
            result = run(
                ["groff", "-man", "-rLL=80n", "-Tutf8", "-P-cbou", CHECKOUT / "man" / page]
            )
            self.assertLessEqual(max(map(len, result.stdout.splitlines())), 80)

    def test_the_manual_names_every_command_and_option(self):
        text = (CHECKOUT / "command/virt-hooks.8").read_text().replace("\\-", "-")
        for command in ("list", "check", "replay", "new", "metadata"):
            text_of_help = run([COMMAND, command, "--help"]).stdout
            for option in re.findall(r"(?m)^  (?:-h, )?(--[a-z-]+)", text_of_help):
                self.assertIn(option, text, command)

    def test_the_version_is_in_the_manual(self):
        version = run([COMMAND, "--version"]).stdout.split()[1]
        for page in ("virt-hooks.8", "virt-hooks.5"):
            self.assertIn(version, (CHECKOUT / "man" / page).read_text().splitlines()[0])

    def test_bad_usage_is_status_2(self):
        for arguments in (
            [],
            ["frobnicate"],
            ["list", "--frob"],
            ["new", "lxc"],
            ["list", "--drive", "lxc"],
        ):
            result = run([COMMAND, *arguments])
            self.assertEqual((result.returncode, result.stdout), (2, ""))
            self.assertTrue(result.stderr.startswith("usage: "))

    def test_a_reader_that_goes_away_is_no_error_of_ours(self):
        result = run(["sh", "-c", '"$1" --help | true; "$1" list | true', "sh", COMMAND])
        self.assertNotIn("Traceback", result.stderr)


class Completion(VirtHooksTestCase):
    """The completion, in a bash of its own."""

    def complete(self, *words):
        """What bash completes the last word to."""
        program = """
            . "$1"
            shift
            COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
            _virt_hooks
            printf '%s\\n' "${COMPREPLY[@]}"
        """
        result = run(["bash", "-c", program, "bash", CHECKOUT / "command/virt-hooks.bash", *words])
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        return result.stdout.split("\n")[:-1]

    def test_commands_and_options(self):
        self.assertEqual(self.complete("virt-hooks", "re"), ["replay"])
        self.assertEqual(self.complete("virt-hooks", "check", "--js"), ["--json"])
        self.assertEqual(self.complete("virt-hooks", "new", "--language", "p"), ["python"])
        for command in ("list", "check", "replay", "new", "metadata"):
            options = set(
                re.findall(r"(?m)^  (?:-h, )?(--[a-z-]+)", run([COMMAND, command, "--help"]).stdout)
            )
            self.assertEqual(set(self.complete("virt-hooks", command, "--")), options, command)

    def test_drivers_and_operations_are_those_of_the_command(self):
        phases = module().PHASES
        self.assertEqual(set(self.complete("virt-hooks", "new", "")), set(phases))
        for driver, calls in phases.items():
            operations = {call.split(" ")[0] for call in calls}
            self.assertEqual(set(self.complete("virt-hooks", "new", driver, "")), operations)
        every = {call.split(" ")[0] for calls in phases.values() for call in calls}
        offered = set(self.complete("virt-hooks", "replay", "web", ""))
        self.assertLessEqual(offered, every)
        self.assertGreaterEqual(offered, {"prepare", "release", "stopped"})
        self.assertIn("crashed", self.complete("virt-hooks", "replay", "--reason", "cr"))

    def test_guests_are_virshs_whatever_their_names(self):
        uri = ("test", ":", "///default")  # as bash parts it
        guests = self.complete("virt-hooks", "check", "--connect", *uri, "te")
        self.assertEqual(guests, ["test"])
