"""virt-hooks, without libvirt: what it lists, what it finds, what it replays and makes."""

import json
import os
import pty
import re
import shutil
import subprocess
import time
from pathlib import Path

from harness import CHECKOUT, NAMESPACE, TestCase, install_dispatcher, run
from scripts import guest_xml, uuid_of

COMMAND = CHECKOUT / "command/virt-hooks"
PREPARE, START, RELEASE = "lxc_prepare_begin_-.d", "lxc_start_begin_-.d", "lxc_release_end_-.d"
NO_LIBVIRT = ("--connect", "test:///default")  # a libvirt inside of virsh, with one guest, "test"
COMMANDS = ("list", "check", "replay", "new", "metadata")
MKDIRS = "<mkdirs><dir>/srv/a</dir></mkdirs>"
SHELL = "#!/bin/sh\n"
DRY = "#!/bin/sh\n# VIRT_HOOKS_DRY_RUN\n"
LIFE = """
    <mkdirs><dir>{0}/data</dir></mkdirs>
    <post-rm-rf><dir>{0}/data</dir></post-rm-rf>
"""


def on_terminal(command, **environment):
    """What a command writes to a terminal."""
    master, slave = pty.openpty()
    environment = {"PATH": os.environ["PATH"], "TERM": "xterm", **environment}
    devices = {"stdin": subprocess.DEVNULL, "stdout": slave, "stderr": slave}
    process = subprocess.Popen(command, env=environment, **devices)
    os.close(slave)
    output = b""
    try:
        while data := os.read(master, 65536):
            output += data
    except OSError:
        pass  # the other end is closed
    os.close(master)
    process.wait()
    return output.decode()


class VirtHooksTestCase(TestCase):
    def setUp(self):
        super().setUp()
        self.hooks = self.directory / "hooks"
        self.hooks.mkdir()
        install_dispatcher(self.hooks / "lxc")
        for directory in CHECKOUT.glob("lxc_*.d"):
            shutil.copytree(directory, self.hooks / directory.name, symlinks=True)

    def virt_hooks(self, command, *arguments, **options):
        """Run virt-hooks on self.hooks, without any guest of libvirt's but "test"."""
        places = ["--hooks-dir", self.hooks]
        if command != "new":
            places += NO_LIBVIRT
        if "input" not in options:
            options["stdin"] = subprocess.DEVNULL
        return run([COMMAND, command, *places, *arguments], **options)

    def script(self, path, text=SHELL, mode=0o755):
        return self.write(f"hooks/{path}", text, mode)

    def guest(self, elements=None, xml=None, name="web"):
        """Write a guest's XML; return the file's path."""
        elements = LIFE.format(self.directory) if elements is None else elements
        xml = guest_xml(elements, name, has_uuid=False) if xml is None else xml
        return self.write(f"{name}.xml", xml)


class CheckTestCase(VirtHooksTestCase):
    def check(self, *arguments, **options):
        return self.virt_hooks("check", *(arguments or [self.guest()]), **options)

    def assert_sound(self, *arguments):
        result = self.check(*arguments)
        self.assertEqual((result.returncode, result.stdout, result.stderr), (0, "", ""))

    def findings(self, *arguments):
        """The findings, [(problem, remedy)]; there must be some, and nothing else to say."""
        result = self.check("--json", *(arguments or [self.guest()]))
        self.assertEqual((result.returncode, result.stderr), (1, ""), result.stdout)
        found = json.loads(result.stdout)["findings"]
        return [(finding["problem"], finding["remedy"]) for finding in found]

    def assert_finds(self, problem, remedy, *arguments):
        """One finding with these words in what is wrong, and in what to do; return that."""
        findings = self.findings(*arguments)
        self.assertEqual(len(findings), 1, findings)
        self.assertIn(str(problem), findings[0][0])
        self.assertIn(str(remedy), findings[0][1])
        return findings[0][1]

    def assert_mended(self, remedy, *arguments):
        """A remedy that is a command mends what is wrong."""
        self.assertEqual(run(["sh", "-c", remedy]).returncode, 0, remedy)
        self.assert_sound(*arguments)

    def assert_cannot_look(self, problem, *arguments):
        result = self.check(*arguments)
        self.assertEqual((result.returncode, result.stdout), (2, ""))
        self.assertRegex(result.stderr, r"\Avirt-hooks: [^\n]+\n\Z")
        self.assertIn(str(problem), result.stderr)


class Sound(CheckTestCase):
    """Where nothing is wrong check says nothing."""

    def test_a_new_installation(self):
        self.assert_sound()
        self.assert_sound("--driver", "lxc")
        self.assert_sound(*NO_LIBVIRT)

    def test_what_lies_about_in_the_hooks_directory(self):
        self.script("lxc.d/theirs")
        self.script(".git/config", "")
        self.script("helpers.d/helper")
        self.script("network", "#!/bin/sh\n# somebody's own\n")
        self.script("lxc_prepare_begin_-.d.bak/10-mkdirs")
        (self.hooks / "old").symlink_to("/srv/nowhere")
        self.assert_sound()
        self.assert_sound(*NO_LIBVIRT)

    def test_what_lies_beside_scripts(self):
        self.script(
            f"{PREPARE}/50-x", '#!/bin/sh\ncat "$0.json"; . "${0%/*}/lib/common"; "${0%/*}/tool"\n'
        )
        self.script(f"{PREPARE}/README", "no script\n", 0o644)
        self.script(f"{PREPARE}/50-x.json", "{}\n", 0o644)
        self.script(f"{PREPARE}/50-y.json", "{}\n", 0o755)
        self.script(f"{PREPARE}/lib/common", "x=1\n")
        self.script(f"{PREPARE}/lib/10-common", "x=1\n", 0o644)
        self.script(f"{PREPARE}/tool")
        self.script(f"{PREPARE}/timeout", "20\n", 0o644)
        for name in ("15-mine.bak", "50-x~", ".50-x.swp", "4913", "50-x.dpkg-old", "50-x (copy)"):
            self.script(f"{PREPARE}/{name}")
        (self.hooks / PREPARE / "letter").symlink_to("/srv/nowhere")
        self.assert_sound()

    def test_a_directory_of_a_transient_guest(self):
        self.script(f"{PREPARE}/build-4711/15-mine")
        self.assert_sound()
        self.assert_sound(*NO_LIBVIRT)

    def test_a_script_that_was_switched_off(self):
        (self.hooks / PREPARE / "30-preload").chmod(0o644)
        self.assert_sound()

    def test_a_script_that_is_switched_off_beside_one_that_reads_the_same(self):
        self.script(f"{PREPARE}/11-mkdirs-old", "#!/bin/sh\n# element: mkdirs\n", 0o644)
        self.script(f"{RELEASE}/50-say", "#!/bin/sh\n: '<mkdirs>'\n", 0o644)
        self.assert_sound()

    def test_scripts_of_every_kind(self):
        for number, text in enumerate((
            "#!/bin/sh\nlocal=1; [ -n \"$local\" ]\n",
            "#! /bin/sh -eu\n",
            "#!/bin/sh -\n",
            "#!/bin/bash --norc\n",
            "#!/usr/bin/python3 -IS\nprint(1)\n",
            "#!/bin/bash\na=(1 2)\n[[ ${a[0]} == 1 ]]\n",
            "#!/bin/bash -e\nshopt -s extglob\ncase x in @(a|b)) : ;; esac\n",
            "#!/usr/bin/env bash\n",
            "#!/usr/bin/env -S python3 -u\nprint('\\d')\n",
            "#!/usr/bin/env python3\nprint(1)\n",
            "#!/usr/bin/python3\nimport os\nos.getpid()\n",
            "#!/usr/bin/perl\nuse strict;\n",
            "#!/bin/cat\n",
            "#!/bin/sh\n# element: another\n",
            "#!/bin/sh\n# never call virsh here\necho virsh is not called\nvirsh_uri=x\n",
            '#!/bin/sh\nlogger -t hook "virsh start $1 would hang"\n',
            '#!/usr/bin/python3\n"""As in\n\nvirsh dumpxml web | this\n"""\nprint("no virsh")\n',
        )):  # fmt: skip
            self.script(f"{PREPARE}/{50 + number}-kind", text)
        shutil.copy("/bin/true", self.hooks / PREPARE / "49-binary")
        self.assert_sound()

    def test_links_to_scripts(self):
        target = self.write("elsewhere/site", SHELL, 0o755)
        (self.hooks / PREPARE / "50-site").symlink_to(target)
        (self.hooks / "qemu").symlink_to("lxc")
        (self.hooks / "qemu_prepare_begin_-.d").symlink_to(PREPARE)
        self.assert_sound()

    def test_a_hook_that_is_a_link_to_a_program_as_in_the_deb(self):
        program = self.directory / "sbin/virt-hooks-dispatch"
        program.parent.mkdir()
        (self.hooks / "lxc").rename(program)
        (self.hooks / "lxc").symlink_to(program)
        self.assert_sound()
        self.assert_sound(*NO_LIBVIRT)

    def test_metadata_of_others(self):
        xml = guest_xml(MKDIRS).replace(
            "<metadata>",
            '<metadata><x:mkdirs xmlns:x="http://example.org/a b"/><hooks xmlns="urn:other"/>',
        )
        self.assert_sound(self.guest(xml=xml))
        xml = guest_xml("<mkdirs/>").replace(NAMESPACE, "https://example.org/something-else")
        self.assert_sound(self.guest(xml=xml))

    def test_an_element_of_a_script_that_does_not_say_so(self):
        for text in ("grep '<vpn>'", "xmllint --xpath \"//*[local-name() = 'vpn']\" -"):
            self.script(f"{PREPARE}/50-vpn", f"{SHELL}{text}\n")
            self.assert_sound(self.guest("<vpn/>"))

    def test_a_ramdisk_on_a_directory_that_mkdirs_creates(self):
        made = f"<mkdirs><dir>{self.directory}/a/b</dir></mkdirs>"
        for path in ("a", "a/b"):
            ramdisk = f'<ramdisk><dir size="1M">{self.directory}/{path}</dir></ramdisk>'
            self.assert_sound(self.guest(made + ramdisk))

    def test_a_guest_that_has_no_uuid_yet(self):
        elements = "<network-policy><nft>chain a { }</nft></network-policy>"
        self.assert_sound(self.guest(elements))
        rest = guest_xml(elements, has_uuid=False).partition("</name>")[2]
        xml = f"<?xml version='1.0'?><!-- a --><domain><name>web</name>{rest}"
        self.assert_sound("--driver", "lxc", self.guest(xml=xml))

    def test_nothing_is_done_whatever_it_finds(self):
        self.assert_sound()
        self.assertFalse((self.directory / "data").exists())


class BrokenHook(CheckTestCase):
    def test_one_that_is_missing(self):
        (self.hooks / "lxc").unlink()
        self.assert_finds(f"there is no {self.hooks}/lxc", "install.sh --driver lxc")
        install_dispatcher(self.hooks / "lxc")
        self.assert_sound()

    def test_one_of_another_driver_that_is_missing(self):
        shutil.copytree(self.hooks / PREPARE, self.hooks / "qemu_prepare_begin_-.d")
        missing = f"there is no {self.hooks}/qemu"
        self.assert_finds(missing, "install.sh --driver qemu", *NO_LIBVIRT)

    def test_a_driver_for_which_nothing_is_installed(self):
        xml = guest_xml(MKDIRS).replace("type='lxc'", "type='kvm'")
        self.assert_finds(f"{self.hooks}/qemu", "install.sh --driver qemu", self.guest(xml=xml))
        self.assert_sound(self.guest(xml=xml.replace(MKDIRS, "")))

    def test_nothing_installed_at_all(self):
        shutil.rmtree(self.hooks)
        self.assert_cannot_look(self.hooks, *NO_LIBVIRT)
        self.hooks.mkdir()
        self.assert_finds(f"there is no {self.hooks}/lxc", "install.sh", *NO_LIBVIRT)

    def test_one_that_is_not_executable(self):
        (self.hooks / "lxc").chmod(0o644)
        remedy = self.assert_finds("Non-executable hook script", f"chmod 755 {self.hooks}/lxc")
        self.assert_mended(remedy)

    def test_one_that_is_not_ours_is_never_run(self):
        for foreign in (f"{SHELL}mkdir /srv/pwned\n", "\0\xff", ""):
            with self.subTest(foreign=foreign):
                (self.hooks / "lxc").write_text(foreign)
                self.assert_finds(f"{self.hooks}/lxc is not the dispatcher", "install.sh")
                self.assertFalse(os.path.exists("/srv/pwned"))

    def test_one_that_is_no_file(self):
        hook = self.hooks / "lxc"
        for make in (os.mkfifo, os.mkdir, lambda path: path.symlink_to("/srv/nowhere")):
            hook.unlink() if not hook.is_dir() else hook.rmdir()
            make(hook)
            self.assert_finds(f"{hook} is not the dispatcher", "install.sh")

    def test_one_that_others_could_have_written_is_never_run(self):
        hook = self.hooks / "lxc"
        text = hook.read_text().replace("import posix", "open('/srv/pwned', 'w'); import posix", 1)
        hook.write_text(text)
        for break_it, place in (
            (lambda: hook.chmod(0o775), hook),
            (lambda: hook.chmod(0o757), hook),
            (lambda: os.chown(hook, 1000, 0), hook),
            (lambda: self.hooks.chmod(0o777), self.hooks),
            (lambda: os.chown(self.directory, 1000, 0), self.directory),
        ):
            with self.subTest(place=place):
                break_it()
                remedy = self.assert_finds(f"{place}: ", f"chmod go-w {place}")
                self.assertFalse(os.path.exists("/srv/pwned"))
                self.assert_mended(remedy)
                os.unlink("/srv/pwned")  # where that is safe it is run

    def test_one_that_is_broken(self):
        text = (self.hooks / "lxc").read_text()
        for broken, part in (
            (text.replace("import sys\n", "import sy s\n"), "syntax"),
            (text.replace("import sys\n", "import syss\n"), f"{self.hooks}/lxc"),
            (text[: text.index("def show(")], "half-written"),
            (text[: text.index("def main(")] + "x = 1\n", "half-written"),
            (text[:3000], f"{self.hooks}/lxc"),
            (text.replace("/usr/bin/python3", "/opt/python3", 1), "/opt/python3"),
            (text.replace("\n", "\r\n", 1), "CR LF"),
        ):
            (self.hooks / "lxc").write_text(broken)
            self.assert_finds(part, "")

    def test_one_on_a_file_system_mounted_noexec(self):
        run(["mount", "--bind", self.hooks, self.hooks], check=True)
        run(["mount", "-o", "remount,bind,noexec", self.hooks], check=True)
        findings = self.findings()
        self.assertTrue(any(f"{self.hooks} " in problem for problem, _remedy in findings))
        for problem, _remedy in findings:
            self.assertIn("noexec", problem)

    def test_a_daemon_that_has_not_noticed_it(self):
        self.hooks = Path("/etc/libvirt/hooks")
        shutil.copytree(self.directory / "hooks", self.hooks, symlinks=True)
        self.addCleanup(shutil.rmtree, self.hooks)
        program = self.directory / "libvirtd"  # its comm; of a script, that is the interpreter's
        shutil.copy("/bin/sleep", program)
        (self.hooks / "lxc").unlink()
        process = subprocess.Popen([program, "600"])
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        pid_file = Path("/run/libvirtd.pid")
        pid_file.write_text(f"{process.pid}\n")
        self.addCleanup(pid_file.unlink)
        time.sleep(0.1)
        install_dispatcher(self.hooks / "lxc")
        self.assert_finds(f"libvirtd (process {process.pid})", f"kill -HUP {process.pid}")
        told = Path("/run/virt-hooks.told")
        told.touch()
        self.addCleanup(told.unlink)
        self.assert_sound()
        os.utime(told, (0, 0))  # that was before
        self.assert_finds(f"libvirtd (process {process.pid})", "kill -HUP")
        shutil.copytree(self.hooks, self.directory / "others", symlinks=True)
        self.hooks = self.directory / "others"
        self.assert_sound()  # of a directory that libvirtd never reads
        self.hooks = Path("/etc/libvirt/hooks")
        pid_file.write_text("1\n")  # another process, of another name
        self.assert_sound()

    def test_a_daemon_that_was_reloaded_just_before_the_hook_came(self):
        """Within one second the order counts; systemctl is not there, so a copy answers for it."""
        self.hooks = Path("/etc/libvirt/hooks")
        shutil.copytree(self.directory / "hooks", self.hooks, symlinks=True)
        self.addCleanup(shutil.rmtree, self.hooks)
        program = self.directory / "libvirtd"
        shutil.copy("/bin/sleep", program)
        os.makedirs("/run/systemd/system")
        self.addCleanup(shutil.rmtree, "/run/systemd")
        process = subprocess.Popen([program, "600"])
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        Path("/run/libvirtd.pid").write_text(f"{process.pid}\n")
        self.addCleanup(os.unlink, "/run/libvirtd.pid")
        time.sleep(0.1)
        install_dispatcher(self.hooks / "lxc")
        installed = (self.hooks / "lxc").stat().st_ctime
        for seconds, known in ((-0.05, False), (0.05, True)):
            offset = time.time() - time.clock_gettime(time.CLOCK_MONOTONIC)
            when = int((installed + seconds - offset) * 1e6)
            self.write("bin/systemctl", f"{SHELL}echo {when}\n", 0o755)
            environment = {"PATH": f"{self.directory}/bin:{os.environ['PATH']}"}
            result = self.check(env=environment)
            self.assertEqual(result.returncode, 0 if known else 1, result.stdout)
            self.assertEqual("systemctl reload libvirtd" in result.stdout, not known)

    def test_selinux_with_a_label_that_libvirt_may_not_execute(self):
        self.hooks = Path("/etc/libvirt/hooks")
        shutil.copytree(self.directory / "hooks", self.hooks, symlinks=True)
        self.addCleanup(shutil.rmtree, self.hooks)
        run(["mount", "-t", "tmpfs", "tests", "/sys/fs"], check=True)
        self.addCleanup(run, ["umount", "/sys/fs"], check=True)
        os.makedirs("/sys/fs/selinux")
        for enforce, label, right in (
            ("1", "system_u:object_r:virt_etc_rw_t:s0", False),
            ("1", "system_u:object_r:virt_hook_t:s0", True),
            ("1", "system_u:object_r:bin_t:s0", False),
            ("0", "system_u:object_r:virt_etc_rw_t:s0", True),
        ):
            Path("/sys/fs/selinux/enforce").write_text(enforce)
            os.setxattr(self.hooks / "lxc", "security.selinux", label.encode())
            with self.subTest(enforce=enforce, label=label):
                if right:
                    self.assert_sound()
                else:
                    self.assert_finds(label, "restorecon -R")


class BrokenDirectories(CheckTestCase):
    def test_a_phase_that_libvirt_never_calls(self):
        for stray, guess in (
            ("lxc_prepared_begin_-.d", PREPARE),
            ("lcx_prepare_begin_-.d", PREPARE),
            ("lxc_prepare_begin_-", PREPARE),
            ("lxc_prepare_begin.d", PREPARE),
            ("lxc-prepare-begin--.d", PREPARE),
            ("lxc_release_end_.d", RELEASE),
            ("lxc_migrate_begin_-.d", "lxc_"),
            ("qemu_startet_begin_-.d", "qemu_started_begin_-.d"),
            ("ch_prepare_begin_-.d", "_prepare_begin_-.d"),
        ):
            with self.subTest(stray=stray):
                (self.hooks / stray).mkdir()
                self.assert_finds(f"{self.hooks}/{stray}", "rename", *NO_LIBVIRT)
                self.assertIn(guess, self.findings(*NO_LIBVIRT)[0][0])
                (self.hooks / stray).rmdir()
        self.assert_sound(*NO_LIBVIRT)

    def test_a_reason_that_this_libvirt_does_not_give(self):
        (self.hooks / "lxc_release_end_crashed.d").mkdir()
        for version, given in (("10.4.0", False), ("10.5.0", True), ("11.3.0", True)):
            self.write("bin/virsh", f"{SHELL}[ $1 != --version ] || echo {version}\n", 0o755)
            environment = {"PATH": f"{self.directory}/bin:{os.environ['PATH']}"}
            result = self.virt_hooks("check", env=environment)
            self.assertEqual(result.returncode, 0 if given else 1, result.stdout)
            self.assertEqual("lxc_release_end_crashed.d" in result.stdout, not given)

    def test_one_that_others_could_have_written_to(self):
        script, phase = self.hooks / PREPARE / "10-mkdirs", self.hooks / PREPARE
        own = self.script(f"{PREPARE}/web/15-mine").parent
        for break_it, place in (
            (lambda: script.chmod(0o775), script),
            (lambda: script.chmod(0o777), script),
            (lambda: os.chown(script, 1000, 0), script),
            (lambda: phase.chmod(0o777), phase),
            (lambda: os.chown(phase, 1000, 0), phase),
            (lambda: own.chmod(0o775), own),
        ):
            with self.subTest(place=place):
                break_it()
                self.assert_mended(self.assert_finds(f"{place}: ", f"chmod go-w {place}"))
                place.chmod(0o755)

    def test_one_that_a_scripts_link_leads_into(self):
        target = self.write("elsewhere/site", SHELL, 0o755)
        (self.hooks / PREPARE / "50-site").symlink_to(target)
        target.parent.chmod(0o777)
        self.assert_mended(self.assert_finds(target.parent, f"chmod go-w {target.parent}"))

    def test_one_that_two_drivers_have_in_common_is_found_once(self):
        install_dispatcher(self.hooks / "qemu")
        target = self.write("elsewhere/site", SHELL, 0o777)
        for directory in (PREPARE, PREPARE.replace("lxc", "qemu")):
            (self.hooks / directory).mkdir(exist_ok=True)
            (self.hooks / directory / "50-site").symlink_to(target)
        self.assert_mended(self.assert_finds(f"{target}: ", f"chmod go-w {target}"))

    def test_one_on_the_way_of_links(self):
        target = self.write("srv/site/scripts/site", SHELL, 0o755)
        home = self.directory / "home"
        home.mkdir()
        (home / "bin").symlink_to(target.parent)
        (self.hooks / PREPARE / "50-site").symlink_to(home / "bin/site")
        self.assert_sound()
        for place, break_it in (
            (target.parents[1], lambda place: os.chown(place, 1000, 0)),
            (target.parents[1], lambda place: place.chmod(0o775)),
            (home, lambda place: os.chown(place, 1000, 0)),
            (home / "bin", lambda place: os.chown(place, 1000, 0, follow_symlinks=False)),
        ):
            with self.subTest(place=place):
                break_it(place)
                self.assert_mended(self.assert_finds(f"{place}: ", f" {place}"))

    def test_a_program_that_the_hook_is_a_link_to(self):
        program = self.directory / "sbin/virt-hooks-dispatch"
        program.parent.mkdir()
        (self.hooks / "lxc").rename(program)
        (self.hooks / "lxc").symlink_to(program)
        for place in (program, program.parent):
            place.chmod(0o775)
            self.assert_mended(self.assert_finds(f"{place}: ", f"chmod go-w {place}"))

    def test_one_that_is_a_link_to_nowhere_or_a_file(self):
        shutil.rmtree(self.hooks / RELEASE)
        (self.hooks / RELEASE).symlink_to("/srv/nowhere")
        self.assert_finds(self.hooks / RELEASE, "rm ", self.guest(MKDIRS))
        (self.hooks / RELEASE).unlink()
        (self.hooks / RELEASE).write_text("")
        self.assert_finds(self.hooks / RELEASE, "", self.guest(MKDIRS))

    def test_a_guests_own_that_is_a_link_to_nowhere(self):
        own = self.hooks / RELEASE / "web"
        own.symlink_to("/srv/nowhere")
        self.assert_mended(self.assert_finds(own, "rm "))
        self.assert_sound()

    def test_a_time_limit_that_is_no_number(self):
        for text in ("soon\n", "0\n", "-1\n", ""):
            self.script(f"{RELEASE}/timeout", text, 0o644)
            self.assert_finds(f"{self.hooks / RELEASE}/timeout", "", self.guest(MKDIRS))

    def test_all_is_found_at_once(self):
        (self.hooks / PREPARE / "letter").symlink_to("/srv/nowhere")
        (self.hooks / START / "10-routing-table").chmod(0o777)
        self.script(f"{RELEASE}/50-x", "#!/opt/nope\n")
        (self.hooks / "lxc_prepared_begin_-.d").mkdir()
        found = " ".join(problem for problem, _remedy in self.findings(*NO_LIBVIRT))
        for part in ("10-routing-table", "/opt/nope", "lxc_prepared_begin_-.d"):
            self.assertIn(part, found)


class BrokenScripts(CheckTestCase):
    def test_one_that_is_switched_off_while_a_guest_needs_it(self):
        path = self.hooks / PREPARE / "10-mkdirs"
        path.chmod(0o644)
        remedy = self.assert_finds(f"<mkdirs>: {path}", f"chmod +x {path}")
        self.assert_mended(remedy.partition(";")[0])
        path = self.script(f"{PREPARE}/50-vpn", f"{SHELL}grep '<vpn>'\n", 0o644)
        self.assert_finds(f"<vpn>: {path}", f"chmod +x {path}", self.guest("<vpn/>"))

    def test_the_archive_is_switched_off_while_the_deletion_is_not(self):
        elements = (
            f"<archive><dircopy><src>{self.directory}/a</src><dst>{self.directory}/b</dst></dircopy>"
            f"</archive><post-rm-rf><dir>{self.directory}/a</dir></post-rm-rf>"
        )
        archive, deletion = (self.hooks / RELEASE / n for n in ("10-archive", "30-post-rm-rf"))
        self.assert_sound(self.guest(elements))
        archive.chmod(0o644)
        found = self.findings(self.guest(elements))
        self.assertTrue(any(str(archive) in p and "chmod +x" in r for p, r in found), found)
        deletes = [r for p, r in found if str(deletion) in p and "without archiving" in p]
        self.assertEqual(len(deletes), 1, found)
        self.assertIn(f"chmod -x {deletion}", deletes[0])
        deletion.chmod(0o644)
        found = self.findings(self.guest(elements))
        self.assertFalse(any("without archiving" in problem for problem, _remedy in found))

    def test_one_whose_name_is_no_scripts(self):
        for name in ("mine", "50-mine.zsh", "50 mine", "50-größe", "50-v1.2", "_50-mine"):
            path = self.script(f"{PREPARE}/{name}")
            self.assert_finds(path, "rename")
            path.chmod(0o644)
            self.assert_sound()
            path.unlink()

    def test_one_of_ours_without_its_number(self):
        path = self.hooks / PREPARE / "10-mkdirs"
        path.rename(path.with_name("mkdirs"))
        found = self.findings()
        self.assertTrue(all(str(path.with_name("mkdirs")) in problem for problem, _ in found))
        self.assertTrue(all("rename" in remedy for _problem, remedy in found), found)
        path.with_name("mkdirs").rename(path.with_name("10-mkdirs.bak"))
        self.assert_finds("10-mkdirs.bak", "rename")

    def test_one_that_cannot_start(self):
        for text, part in (
            ("#!/opt/nope\n", "/opt/nope"),
            ("#!/usr/bin/env python2\n", "python2"),
            ("#!/usr/bin/env python3 -IS\n", "python3 -IS"),
            ("#!/srv\n", "/srv"),
            ("#!sh\n", "#!sh"),
            ("#!\n", "#!"),
            ("\ufeff#!/bin/sh\n", "#!/bin/sh"),
            ("echo\n", "echo"),
            ("", "first line"),
        ):
            with self.subTest(text=text):
                path = self.script(f"{PREPARE}/15-mine", text)
                self.assert_finds(path, "")
                self.assertIn(part, self.findings()[0][0])
        self.script(f"{PREPARE}/15-mine")
        self.assert_sound()

    def test_one_with_lines_as_on_windows(self):
        for first in ("#!/bin/sh", "#!/bin/sh -e", "#!/usr/bin/python3 -IS", "#!/usr/bin/env bash"):
            text = "print(1)" if "python" in first else "exit"
            path = self.script(f"{PREPARE}/15-mine", f"{first}\r\n{text}\r\n")
            self.assert_mended(self.assert_finds(path, "sed "))
            self.assertNotIn("\r", path.read_text())

    def test_one_with_a_syntax_error(self):
        for text in (
            "#!/bin/sh\nif true; then\n",
            "#!/bin/sh\necho 'a\n",
            "#!/bin/sh\na=(1 2)\n",
            "#!/bin/bash\nfor a in b; do\n",
            "#!/usr/bin/env bash\ncase a in\n",
            "#!/usr/bin/python3\nif True\n    pass\n",
            "#!/usr/bin/env python3\n\tx = 1\n",
            "#!/usr/bin/python3 -IS\nprint 'a'\n",
            "#!/usr/bin/python3 -I -S\nprint(1)\n",
            "#!/bin/sh -Z\ntrue\n",
        ):
            with self.subTest(text=text):
                path = self.script(f"{PREPARE}/15-mine", text)
                self.assert_finds(path, "")

    def test_one_that_is_linked_to_is_found_once_and_stays_linked(self):
        path, link = self.hooks / PREPARE / "20-ramdisk", self.hooks / RELEASE / "20-ramdisk"
        text = path.read_text()
        path.write_text(text.replace("\n", "\r\n"))
        self.assert_mended(self.assert_finds(path, f"{path}"))
        self.assertTrue(link.is_symlink())
        path.chmod(0o777)
        self.assert_mended(self.assert_finds(path, f"{path}"))

    def test_one_of_ours_that_is_half_written(self):
        path = self.hooks / PREPARE / "10-mkdirs"
        text = path.read_text()
        for end in (
            *(
                0,
                200,
                text.index('"""\n\n') + 4,
                text.index("import grp"),
                text.index("import sys"),
            ),
            *(text.index("ATTRIBUTES"), 1500, len(text) // 2, text.index("\ndef ", len(text) // 2)),
        ):
            with self.subTest(end=end):
                path.write_text(text[:end])
                self.assertTrue(any(str(path) in problem for problem, _remedy in self.findings()))

    def test_one_that_fails_by_a_bug(self):
        text = "#!/usr/bin/python3 -IS\n# element: xyz\nprint('VIRT_HOOKS_DRY_RUN', undefined)\n"
        self.script(f"{PREPARE}/50-x", text)
        self.assert_finds("50-x: NameError", "correct", self.guest("<xyz/>"))
        self.assert_sound()

    def test_one_that_is_on_a_file_system_mounted_noexec(self):
        target = self.write("site/50-site", SHELL, 0o755)
        (self.hooks / PREPARE / "50-site").symlink_to(target)
        run(["mount", "--bind", target.parent, target.parent], check=True)
        run(["mount", "-o", "remount,bind,noexec", target.parent], check=True)
        self.assert_finds(target.parent, "remount,exec")

    def test_a_link_that_leads_nowhere_or_to_itself(self):
        path = self.hooks / RELEASE / "15-gone"
        path.symlink_to("/srv/gone")
        self.assert_mended(self.assert_finds(path, f"rm {path}", self.guest(MKDIRS)))
        path.symlink_to(path)
        self.assert_finds(path, f"rm {path}", self.guest(MKDIRS))

    def test_one_whose_second_line_names_no_element(self):
        for name in ("<vpn>", "vpn, other", "vpn other"):
            path = self.script(f"{PREPARE}/50-vpn", f"{SHELL}# element: {name}\n")
            self.assert_finds(path, "element")

    def test_a_guests_own_that_is_broken(self):
        path = self.script(f"{PREPARE}/web/15-mine", "#!/opt/nope\n")
        self.assert_finds(path, "")


class NeverRun(CheckTestCase):
    """What people bring, and what would silently never run."""

    def assert_each_is_found(self, cases, *arguments):
        """Each (file, where it belongs) is found once; the remedies mend all."""
        paths = [self.script(place) for place, _better in cases]
        findings = self.findings(*arguments)
        for path, (_place, better) in zip(paths, cases):
            remedies = [remedy for problem, remedy in findings if f"{path} never runs" in problem]
            self.assertEqual(len(remedies), 1, (path, findings))
            command = remedies[0].partition(": ")[2].partition(";")[0]
            self.assertEqual(run(["sh", "-c", command]).returncode, 0, command)
            self.assertTrue((self.hooks / better).exists(), command)
        self.assertEqual(len(findings), len(cases))
        self.assert_sound(*arguments)

    def test_a_guests_own_file_whose_name_is_no_scripts(self):
        names = (
            ("start.sh", "50-start.sh"),
            ("stop", "50-stop"),
            ("10-cpu.py3", "10-cpu-py3"),
            ("10 usb.sh", "10-usb.sh"),
            ("10.net.sh", "10-net.sh"),
            ("vfio-größe.sh", "50-vfio-gr-e.sh"),
        )
        for guest in ("win10", "web"):
            cases = [(f"{PREPARE}/{guest}/{n}", f"{PREPARE}/{guest}/{b}") for n, b in names]
            self.assert_each_is_found(cases)
        self.script(f"{PREPARE}/test/start.sh")
        self.assert_finds(f"{PREPARE}/test/start.sh", "50-start.sh", *NO_LIBVIRT)

    def test_a_place_that_is_taken_is_not_the_remedy(self):
        self.script(f"{PREPARE}/web/50-start.sh")
        self.assert_each_is_found([(f"{PREPARE}/web/start.sh", f"{PREPARE}/web/50-start-2.sh")])
        self.script(f"{PREPARE}/Web/10-x")
        self.assert_mended(self.assert_finds("did you mean web?", "mv ", self.guest()))
        self.assertTrue((self.hooks / PREPARE / "web/10-x").exists())

    def test_a_script_without_its_first_line_is_found_by_its_ending(self):
        path = self.script(f"{PREPARE}/web/start.sh", "systemctl stop x\n")
        self.script(f"{PREPARE}/web/notes.txt", "stop x first\n")
        self.assert_finds(f"{path} never runs", "50-start.sh")

    def test_a_script_in_place_of_a_guests_directory(self):
        path = self.script(f"{PREPARE}/web")
        remedy = self.assert_finds(path, "a directory web", self.guest(""))
        self.assertNotIn("mv ", remedy)

    def test_a_tree_whose_hook_is_gone(self):
        self.script("qemu.d/win10/prepare/begin/start.sh")
        self.assertTrue(any("qemu" in problem for problem, _remedy in self.findings()))
        self.assertIn("install.sh --driver qemu", str(self.findings()))

    def test_a_directory_too_deep(self):
        self.assert_each_is_found((
            (f"{PREPARE}/web/begin/10-x", f"{PREPARE}/web/10-x"),
            (f"{PREPARE}/web/begin/y.sh", f"{PREPARE}/web/50-y.sh"),
            (f"{PREPARE}/win10/prepare/begin/10-x", f"{PREPARE}/win10/10-x"),
            (f"{PREPARE}/win10/release/end/10-x", f"{RELEASE}/win10/10-x"),
            (f"{PREPARE}/prepare/begin/10-x", f"{PREPARE}/10-x"),
        ))  # fmt: skip

    def test_a_tree_of_another_tool(self):
        self.assert_each_is_found((
            ("lxc.d/win10/prepare/begin/start.sh", f"{PREPARE}/win10/50-start.sh"),
            ("lxc.d/win10/release/end/revert.sh", f"{RELEASE}/win10/50-revert.sh"),
            ("lxc.d/win10/started/begin/01_cpu.sh", "lxc_started_begin_-.d/win10/01_cpu.sh"),
            ("lxc.d/win10/stopped/end/a b", "lxc_stopped_end_-.d/win10/50-a-b"),
            ("lxc.d/win11/prepare/begin", f"{PREPARE}/win11/50-begin"),
            ("lxc.d/prepare/begin/start.sh", f"{PREPARE}/50-start.sh"),
            ("lxc.d/win12/start.sh", f"{PREPARE}/win12/50-start.sh"),
            ("lxc.d/win12/10-x", f"{PREPARE}/win12/10-x"),
        ))  # fmt: skip
        install_dispatcher(self.hooks / "qemu")
        path = self.script("qemu.d/win10/start.sh")
        self.assert_finds(path, "qemu_prepare_begin_-.d/win10/50-start.sh")

    def test_a_directory_of_nearly_a_guests_name(self):
        for guest, names in (
            ("web", ("Web", "WEB", "we-b", "wbe", "webb", "web.d", "web ")),
            ("win10", ("Win10", "win-10", "win_10", "WIN 10", "wni10", "win10.d")),
            ("Win 11", ("win11", "Win11", "win-11", "Win_11")),
            ("gentoo", ("gento", "gnetoo", "Gentoo")),
        ):
            file = self.guest("", name=guest)
            paths = [self.script(f"{PREPARE}/{name}/10-x").parent for name in names]
            found = self.findings(file)
            self.assertEqual(len(found), len(names), found)
            for path in paths:
                self.assertTrue(any(f"{path} " in problem for problem, _remedy in found), path)
            for path in paths[1:]:
                shutil.rmtree(path)
            self.assert_mended(self.assert_finds(f"did you mean {guest}?", "mv ", file), file)
            self.assertTrue((paths[0].with_name(guest) / "10-x").exists())
            shutil.rmtree(paths[0].with_name(guest))
        self.script(f"{PREPARE}/Test/10-x")
        self.assert_finds(f"{PREPARE}/Test ", "", *NO_LIBVIRT)

    def test_what_is_no_script_and_is_sound(self):
        tree = f"{self.hooks}/qemu.d/win10/prepare/begin/start.sh"
        for place, text, mode in (
            ("qemu", f"{SHELL}exec {tree}\n", 0o755),  # a hook that is not ours
            ("qemu.d/win10/prepare/begin/start.sh", SHELL, 0o755),
            (f"{PREPARE}/web/10-x.bak", SHELL, 0o755),
            (f"{PREPARE}/web/start.sh~", SHELL, 0o755),
            (f"{PREPARE}/web/.start.sh.swp", SHELL, 0o755),
            (f"{PREPARE}/web/#start.sh#", SHELL, 0o755),
            (f"{PREPARE}/web/start.sh.disabled", SHELL, 0o755),
            (f"{PREPARE}/web/start.sh.OFF", SHELL, 0o755),
            (f"{PREPARE}/web/10-x.dpkg-old", SHELL, 0o755),
            (f"{PREPARE}/web/10-x.rpmsave", SHELL, 0o755),
            (f"{PREPARE}/web/stop.sh", SHELL, 0o644),
            (f"{PREPARE}/web/README.md", "Scripts for web\n", 0o755),
            (f"{PREPARE}/web/settings.json", "{}\n", 0o755),
            (f"{PREPARE}/web/lib/functions.sh", SHELL, 0o644),
            (f"{PREPARE}/web.bak/start.sh", SHELL, 0o755),
            (f"{PREPARE}/web/old/50-gpu", SHELL, 0o755),
            (f"{PREPARE}/web/backup-2024/start.sh", SHELL, 0o755),
            (f"{PREPARE}/web/old.bak/50-gpu", SHELL, 0o755),
            (f"{PREPARE}/web/x/lib/50-gpu", SHELL, 0o755),
            (f"{PREPARE}/lib/start.sh", SHELL, 0o755),
            (f"{PREPARE}/.git/hooks/pre-commit", SHELL, 0o755),
            (f"{PREPARE}/web/.git/hooks/pre-commit", SHELL, 0o755),
            (f"{PREPARE}/web2/10-x", SHELL, 0o755),
            (f"{PREPARE}/web-b/10-x", SHELL, 0o755),
            (f"{PREPARE}/build-4711/10-x", SHELL, 0o755),
            (f"{PREPARE}/server-b/10-x", SHELL, 0o755),
            ("lxc.d/theirs", SHELL, 0o755),
            ("lxc.d/data/table", "1\n", 0o644),
            ("old/qemu.d/win10/prepare/begin/start.sh", SHELL, 0o755),
        ):
            self.script(place, text, mode)
        self.assert_sound(self.guest(), self.guest("", name="server-a"))

    def test_what_others_call_is_sound(self):
        for caller, call, place in (
            (f"{PREPARE}/web/50-a", '"${0%/*}/helper"', f"{PREPARE}/web/helper"),
            (f"{PREPARE}/web/50-b", 'cd "${0%/*}"; ./start.sh', f"{PREPARE}/web/start.sh"),
            (f"{PREPARE}/50-c", '"$(dirname "$0")/$1/on.sh"', f"{PREPARE}/web/on.sh"),
            (f"{PREPARE}/web/50-d", '"${0%/*}/tools/x.sh"', f"{PREPARE}/web/tools/x.sh"),
            (f"{PREPARE}/web/50-e", 'run-parts "${0%/*}/parts"', f"{PREPARE}/web/parts/y.sh"),
            (f"{PREPARE}/50-t", 'run-parts "/etc/libvirt/hooks/lxc.d/$1"', "lxc.d/b/start/z.sh"),
        ):
            self.script(caller, f"{SHELL}{call}\n")
            self.script(place)
        self.assert_sound()
        (self.hooks / PREPARE / "50-t").unlink()
        for call in ('"${0%/*}/$1/$2/$3/z.sh"', 'for f in "${0%/*}/$1/$2"/*; do "$f"; done'):
            self.script("lxc.d/tree", f"{SHELL}{call}\n")
            self.assert_sound()


class ElementLine(CheckTestCase):
    """The second line of a script: with one that is nearly right it would run for every guest."""

    def test_what_is_nearly_right(self):
        lines = (
            *("#element: vpn", "#element:vpn", "#  element: vpn", "#\telement: vpn"),
            *(" # element: vpn", "## element: vpn", "# element : vpn", "# Element: vpn"),
            *("# ELEMENT: vpn", "# elements: vpn", "# Elements: <vpn>", "# element = vpn"),
            *("# element; vpn", "# element vpn", "\n# element: vpn", "set -eu\n# element: vpn"),
            "# shellcheck shell=sh\n# element: vpn",
            "# -*- coding: utf-8 -*-\n# element: vpn",
            '"""What it does."""\n# element: vpn',
            "# 50-vpn: opens a tunnel (prepare).\n#\n# Element: vpn",
            "# a\n# b\n# c\n# d\n# e\n# f\n# g\n# h\n# element: vpn",
        )
        paths = []
        for number, line in enumerate(lines, 100):
            first = "#!/usr/bin/python3" if '"""' in line else "#!/bin/sh"
            text = f"{first}\n{line}\nexit(0)\n" if '"""' in line else f"{first}\n{line}\n:\n"
            paths.append(self.script(f"{PREPARE}/{number}-vpn", text))
        findings = self.findings()
        self.assertEqual(len(findings), len(lines), findings)
        for path, (problem, remedy) in zip(paths, findings):
            self.assertIn(f"{path}: ", problem)
            self.assertEqual(run(["sh", "-c", remedy]).returncode, 0, remedy)
            self.assertEqual(path.read_text().splitlines()[1], "# element: vpn")
        self.assert_sound()

    def test_what_cannot_be_mended_by_a_command(self):
        for text in (
            *("# elements: vpn, share\n", "# element:\n", "# element: \n", "# element: <vpn>\n"),
            *("# element: vpn, share\n", "# element: vpn share\n"),
            "# element: vpn\n# element: share\n",
        ):
            path = self.script(f"{PREPARE}/50-vpn", SHELL + text)
            self.assert_finds(path, "element")
        self.script(f"{PREPARE}/50-vpn", "# element: vpn\n#!/bin/sh\n")  # it cannot start, either
        self.assertTrue(any("line 1" in problem for problem, _remedy in self.findings()))

    def test_what_is_right_or_something_else(self):
        for number, text in enumerate((
            *("# element: vpn\n", "# element:vpn\n", "# element:   vpn  \n"),
            "# element: vpn\n# Elements: the parts of a guest that this script reads\n",
            *("# elementary, my dear\n", "# An element: a part of the XML\n"),
            *("# element by element\n", "# Reads the element: none\n", "echo '# element: vpn'\n"),
            "#\n" * 9 + "# Element: vpn\n",
        )):  # fmt: skip
            self.script(f"{PREPARE}/{50 + number}-x", SHELL + text)
        text = '#!/usr/bin/python3\n"""As in\n\n# Element: vpn\n"""\nprint(1)\n'
        self.script(f"{PREPARE}/70-x", text)
        self.script(f"{PREPARE}/49-off", "#!/bin/sh\n# Element: vpn\n", 0o644)
        self.assert_sound()


class BrokenMetadata(CheckTestCase):
    def test_elements_without_a_namespace(self):
        xml = "<domain type='lxc'><name>web</name><metadata>{}</metadata></domain>"
        self.assert_finds("<mkdirs>", NAMESPACE, self.guest(xml=xml.format(MKDIRS)))
        block = f"<hooks>{MKDIRS}</hooks>"
        self.assert_finds("<hooks>", NAMESPACE, self.guest(xml=xml.format(block)))
        block = f'<hooks xmlns="{NAMESPACE}">{MKDIRS}</hooks>'
        self.assert_sound(self.guest(xml=xml.format(block)))

    def test_a_second_block_of_one_namespace(self):
        block = f'<hooks xmlns="{NAMESPACE}"/>'
        xml = f"<domain type='lxc'><name>web</name><metadata>{block * 2}</metadata></domain>"
        self.assert_finds("second", "edit", self.guest(xml=xml))

    def test_a_namespace_that_is_nearly_ours(self):
        for namespace in ("urn:virt-hooks:2", "urn:virt-hook:1", "urn:virthooks:1", "virt-hooks:1"):
            xml = guest_xml(MKDIRS).replace(NAMESPACE, namespace)
            self.assert_finds(f"{namespace}; did you mean {NAMESPACE}", "edit", self.guest(xml=xml))

    def test_hooks_in_the_wrong_place(self):
        block = f'<hooks xmlns="{NAMESPACE}">{MKDIRS}</hooks>'
        for xml in (
            f"<domain type='lxc'><name>web</name>{block}</domain>",
            "<domain type='lxc'><name>web</name>"
            f"<metadata><x:x xmlns:x='x'>{block}</x:x></metadata></domain>",
        ):
            self.assert_finds("<hooks>", "edit", self.guest(xml=xml))
        bare = MKDIRS.replace("<mkdirs>", f'<mkdirs xmlns="{NAMESPACE}">')
        xml = f"<domain type='lxc'><name>web</name><metadata>{bare}</metadata></domain>"
        self.assert_finds("<mkdirs>", "edit", self.guest(xml=xml))
        for foreign in (
            '<x:mkdirs xmlns:x="urn:x"/>',
            "<mkdirs xmlns=''><dir>/srv/a</dir></mkdirs>",
        ):
            self.assert_finds("<mkdirs>", "edit", self.guest(foreign))

    def test_an_element_that_no_script_reads(self):
        for element, guess in (
            ("mkdir", "<mkdirs>"),
            ("ram-disk", "<ramdisk>"),
            ("archives", "<archive>"),
            ("something", ""),
        ):
            with self.subTest(element=element):
                self.script(f"{PREPARE}/50-other", f"{SHELL}mkdir -p /srv/a # something\n")
                guest = self.guest(f"<{element}/>")
                self.assert_finds(f"<{element}>", "edit", guest)
                self.assertIn(guess, self.findings(guest)[0][0])

    def test_what_the_scripts_refuse(self):
        for elements, script, part in (
            ("<mkdirs><dir>srv</dir></mkdirs>", "10-mkdirs", "srv"),
            ("<mkdirs><dri>/srv</dri></mkdirs>", "10-mkdirs", "dri"),
            ("<mkdirs><dir mode='999'>/srv/a</dir></mkdirs>", "10-mkdirs", "999"),
            ("<ramdisk><dir size='64,M'>/srv</dir></ramdisk>", "20-ramdisk", "64,M"),
            ("<post-rm-rf><dir>/srv</dir></post-rm-rf>", "30-post-rm-rf", "/srv"),
            ("<preload><dircopy><src>/srv/gone</src><dst>/srv/a</dst></dircopy></preload>",
             "30-preload", "/srv/gone"),
            ("<archive><dircopy><src>/srv/a</src></dircopy></archive>", "10-archive", "dst"),
            ("<routing-table id='254' name='a'/>", "10-routing-table", "254"),
            ("<network-policy><nft>frobnicate</nft></network-policy>", "20-network-policy",
             "frobnicate"),
        ):  # fmt: skip
            with self.subTest(elements=elements):
                guest = self.guest(elements)
                self.assert_finds(f"{script}: web", f"edit {self.directory}/web.xml", guest)
                self.assertIn(part, self.findings(guest)[0][0])

    def test_a_ramdisk_on_a_directory_that_nobody_makes(self):
        ramdisk = f'<ramdisk><dir size="1M">{self.directory}/a/b</dir></ramdisk>'
        other = f"<mkdirs><dir>{self.directory}/a</dir></mkdirs>"
        for elements in (ramdisk, ramdisk + other):
            findings = self.findings(self.guest(elements))
            self.assertTrue(all(f"{self.directory}/a/b" in p for p, _ in findings), findings)

    def test_a_path_below_a_mount_point_that_is_not_mounted(self):
        mount = self.directory / "nfs share"
        mount.mkdir()
        fstab = f"# comment\nUUID=1 / ext4 defaults 0 1\nx:/y {mount} nfs nofail 0 0\n"
        fstab = self.write("fstab", fstab.replace("nfs share", "nfs\\040share"))
        if not os.path.exists("/etc/fstab"):
            Path("/etc/fstab").touch()
            self.addCleanup(os.unlink, "/etc/fstab")
        run(["mount", "--bind", fstab, "/etc/fstab"], check=True)
        self.addCleanup(run, ["umount", "/etc/fstab"], check=True)
        guest = self.guest(f"<mkdirs><dir>{mount}/data</dir></mkdirs>")
        self.assert_finds(f"{mount}/data", f"mount '{mount}'", guest)
        run(["mount", "-t", "tmpfs", "tests", mount], check=True)
        self.assert_sound(guest)

    def test_one_guest_does_not_hide_another(self):
        wrong = self.guest("<mkdirs><dir>srv</dir></mkdirs>")
        odd = self.guest(xml="<domain", name="odd")
        result = self.check(odd, wrong, "/srv/gone.xml")
        self.assertEqual(result.returncode, 2)
        self.assertIn("10-mkdirs: web", result.stdout)
        self.assertEqual(result.stderr.count("\n"), 2)

    def test_what_another_program_says_comes_whole(self):
        guest = self.guest("<network-policy><nft>frob\nnicate</nft></network-policy>")
        result = self.check(guest)
        self.assertEqual(result.returncode, 1)
        self.assertRegex(result.stdout, r"\Alxc web: 20-network-policy: web")
        self.assertIn("syntax error", result.stdout)


class Asking(CheckTestCase):
    """How check is asked, and how it asks."""

    def test_a_dry_run_that_does_not_end_is_ended(self):
        soon = Path("/usr/local/sbin/timeout")  # the tests' own; half a minute becomes a second
        soon.write_text('#!/bin/sh\nshift 3\nexec /usr/bin/timeout --foreground -s INT 1 "$@"\n')
        soon.chmod(0o755)
        self.addCleanup(soon.unlink)
        pid = self.directory / "pid"
        self.script(
            f"{PREPARE}/50-x",
            f"#!/bin/sh\n# element: xyz\n# VIRT_HOOKS_DRY_RUN\necho $$ >{pid}\nexec sleep 1000\n",
        )
        self.assert_finds("50-x", "", self.guest("<xyz/>"))
        self.assertFalse(os.path.exists(f"/proc/{pid.read_text().strip()}"))

    def test_only_scripts_that_know_a_dry_run_are_run(self):
        ran = self.directory / "ran"
        text = f"#!/bin/sh\n# element: x\nenv | grep -o '{{}}=.' >>{ran}\nexit 3\n"
        self.script(f"{PREPARE}/50-x", text.format("RUN"))
        self.assert_sound(self.guest("<x/>"))
        self.assertFalse(ran.exists())
        self.script(f"{PREPARE}/50-x", text.format("VIRT_HOOKS_DRY_RUN"))
        self.assert_finds("50-x: exit status 3", "edit", self.guest("<x/>"))
        self.assertEqual(set(ran.read_text().split()), {"VIRT_HOOKS_DRY_RUN=1"})

    def test_a_script_that_fails_without_any_guest_asking_for_it_is_no_finding(self):
        self.script(f"{PREPARE}/50-x", f"{DRY}exit 3\n")
        self.write("bin/virsh", SHELL, 0o755)  # a libvirt without guests
        environment = {"PATH": f"{self.directory}/bin:{os.environ['PATH']}"}
        self.assertEqual(self.virt_hooks("check", env=environment).returncode, 0)
        self.assert_finds("50-x: exit status 3", "", *NO_LIBVIRT)  # for the guest "test"

    def test_a_file_that_is_no_guest(self):
        self.assert_cannot_look("web.xml", self.guest(xml=""))
        self.assert_cannot_look("<volume>", self.guest(xml="<volume/>"))
        self.assert_cannot_look("/srv/gone.xml", "/srv/gone.xml")

    def test_a_guest_that_there_is_not(self):
        self.assert_cannot_look("'nope'", "nope", *NO_LIBVIRT)

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
        self.assertIn("virsh", result.stderr)

    def test_somebody_else_than_root_is_told_what_needs_root(self):
        nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        self.directory.chmod(0o755)
        copy = shutil.copytree(COMMAND.parent, self.directory / "command")
        (self.hooks / "lxc").chmod(0o644)
        command = [*nobody, copy / "virt-hooks", "check", "--hooks-dir", self.hooks, self.guest()]
        result = run(command)
        self.assertEqual(result.returncode, 2)
        self.assertIn("not executable", result.stdout)
        self.assertEqual(result.stderr.count("only root"), 1)

    def test_a_driver_that_cannot_be_asked_is_told(self):
        install_dispatcher(self.hooks / "qemu")
        virsh = '#!/bin/sh\ncase "$*" in *qemu:*) echo down >&2; exit 1 ;; esac\n'
        virsh += f'shift 3\nexec {shutil.which("virsh")} -q -c test:///default "$@"\n'
        self.write("bin/virsh", virsh, 0o755)
        environment = {"PATH": f"{self.directory}/bin:{os.environ['PATH']}"}
        for arguments in (["test"], ["nope"], []):
            command = [COMMAND, "check", "--hooks-dir", self.hooks, *arguments]
            result = run(command, env=environment)
            self.assertEqual((result.returncode, result.stdout), (2, ""))
            self.assertIn("qemu: virsh: down", result.stderr)

    def test_a_driver_that_this_libvirt_does_not_have(self):
        """As virsh 9.0 and 11.3 says it, with libvirtd and with daemons of one driver each."""
        install_dispatcher(self.hooks / "qemu")
        shutil.copytree(self.hooks / PREPARE, self.hooks / "qemu_prepare_begin_-.d")
        environment = {"PATH": f"{self.directory}/bin:{os.environ['PATH']}"}
        command = [COMMAND, "check", "--hooks-dir", self.hooks]
        for words in (
            "error: no connection driver available for qemu:///system",
            "error: Failed to connect socket to '/run/x-sock': No such file or directory",
        ):
            virsh = f'#!/bin/sh\ncase "$*" in *qemu:*) echo "{words}" >&2; exit 1 ;; esac\n'
            virsh += f'shift 3\nexec {shutil.which("virsh")} -q -c test:///default "$@"\n'
            self.write("bin/virsh", virsh, 0o755)
            for arguments in ([], ["test"]):
                result = run([*command, *arguments], env=environment)
                self.assertEqual((result.returncode, result.stdout, result.stderr), (0, "", ""))
            result = run([*command, "--driver", "qemu"], env=environment)
            self.assertEqual((result.returncode, result.stderr.count("\n")), (2, 1))
            own = self.script("qemu_prepare_begin_-.d/50-own")  # somebody misses the driver
            result = run(command, env=environment)
            self.assertEqual((result.returncode, result.stderr.count("\n")), (2, 1))
            own.unlink()
            self.write("bin/virsh", f'#!/bin/sh\necho "{words}" >&2; exit 1\n', 0o755)
            result = run(command, env=environment)  # libvirt has none, or does not run
            self.assertEqual(result.returncode, 2)

    def test_a_libvirt_that_does_not_run_is_the_first_line_and_one(self):
        install_dispatcher(self.hooks / "qemu")
        self.script(f"{PREPARE}/50-x", "#!/opt/nope\n")
        self.script(f"{PREPARE}/web/10-x")
        words = "error: failed to connect to the hypervisor\nerror: No such file or directory"
        self.write("bin/virsh", f'#!/bin/sh\necho "{words}" >&2\nexit 1\n', 0o755)
        environment = {"PATH": f"{self.directory}/bin:{os.environ['PATH']}"}
        for command, status in ((["check"], 2), (["check", "web"], 2), (["list", "web"], 2)):
            words = [COMMAND, *command, "--hooks-dir", self.hooks]
            result = run(["sh", "-c", '"$@" 2>&1', "sh", *words], env=environment)
            self.assertEqual(result.returncode, status, result.stdout)
            first, rest = result.stdout.split("\n", 1)
            self.assertIn("virt-hooks: lxc, qemu: virsh: failed to connect", first)
            self.assertNotIn("virsh", rest)
            self.assertNotIn("no guest is called", rest)
            self.assertIn("50-x", rest)

    def test_a_libvirt_that_does_not_answer(self):
        self.script(f"{PREPARE}/50-x", "#!/opt/nope\n")
        install_dispatcher(self.hooks / "qemu")
        self.write("bin/virsh", f"{SHELL}echo >>{self.directory}/asked\nexec sleep 1000\n", 0o755)
        environment = {"PATH": f"{self.directory}/bin:{os.environ['PATH']}"}
        result = run([COMMAND, "check", "--hooks-dir", self.hooks], env=environment)
        self.assertEqual((result.returncode, result.stderr.count("\n")), (2, 1))
        self.assertIn("lxc, qemu: ", result.stderr)
        self.assertIn("libvirt does not answer", result.stdout)
        self.assertIn("/opt/nope", result.stdout)
        self.assertLessEqual((self.directory / "asked").read_text().count("\n"), 3)

    def test_stdin(self):
        xml = guest_xml("<mkdirs><dir>srv</dir></mkdirs>")
        result = self.virt_hooks("check", "-", input=xml)
        self.assertEqual(result.returncode, 1)
        self.assertIn("'srv'", result.stdout)

    def test_xml_that_does_not_say_its_driver(self):
        xml = guest_xml(MKDIRS).replace(" type='lxc'", "")
        self.assert_cannot_look("--driver", self.guest(xml=xml))
        self.assert_sound("--driver", "lxc", self.guest(xml=xml))

    def test_a_network_is_wrapped_as_libvirt_does(self):
        install_dispatcher(self.hooks / "network")
        source = CHECKOUT / PREPARE / "10-mkdirs"
        (self.hooks / "network_start_begin_-.d").mkdir()
        shutil.copy(source, self.hooks / "network_start_begin_-.d")
        xml = guest_xml("<mkdirs><dir>srv</dir></mkdirs>", "net")
        xml = xml.replace("<domain type='lxc'", "<network").replace("</domain", "</network")
        for declaration in ("", "<?xml version='1.0'?>\n"):
            result = self.check(self.guest(xml=declaration + xml))
            self.assertEqual(result.returncode, 1)
            self.assertTrue(result.stdout.startswith("network net: 10-mkdirs: net"), result.stdout)

    def test_json(self):
        self.script(f"{RELEASE}/50-x", "#!/opt/nope\n")
        result = self.check("--json", self.guest("<mkdirs><dir>srv</dir></mkdirs>"))
        self.assertEqual(result.returncode, 1)
        host, guest = json.loads(result.stdout)["findings"]
        self.assertEqual((host["driver"], host["guest"]), ("lxc", None))
        self.assertEqual((guest["driver"], guest["guest"]), ("lxc", "web"))
        self.assertIn("/opt/nope", host["problem"])
        self.assertIn("'srv'", guest["problem"])
        (self.hooks / RELEASE / "50-x").unlink()
        result = self.check("--json", self.guest(), "/srv/gone.xml")
        self.assertEqual(result.returncode, 2)
        found = json.loads(result.stdout)
        self.assertEqual((found["findings"], len(found["failures"])), ([], 1))

    def test_verbose_says_what_was_looked_at(self):
        (self.hooks / PREPARE / "30-preload").chmod(0o644)
        result = self.check("--verbose", self.guest())
        self.assertEqual(result.returncode, 0)
        self.assertEqual(result.stdout, "9 scripts, 1 guest: all well\n")
        result = self.check("--verbose", self.guest("<mkdirs><dir>srv</dir></mkdirs>"))
        self.assertEqual(result.returncode, 1)
        self.assertNotIn("all well", result.stdout)

    def test_a_hundred_guests_with_all_five_elements(self):
        elements = "".join(
            f"<mkdirs><dir>{self.directory}/{{0}}/{name}</dir></mkdirs>" for name in ("log", "tmp")
        )
        elements += """
            <ramdisk><dir size="1M">{1}/{0}/tmp</dir></ramdisk>
            <preload><dircopy><src>/usr/share/doc</src><dst>{1}/{0}/tmp</dst></dircopy></preload>
            <archive><dircopy><src>{1}/{0}/log</src><dst>{1}/archive/{0}</dst></dircopy></archive>
            <post-rm-rf><dir>{1}/{0}/log</dir></post-rm-rf>
        """
        names = [f"web{number}" for number in range(100)]
        files = [self.guest(elements.format(n, self.directory), name=n) for n in names]
        began = os.times()
        result = self.check(*files, timeout=600)
        self.assertEqual((result.returncode, result.stdout, result.stderr), (0, "", ""))
        used = sum(os.times()[2:4]) - sum(began[2:4])  # of the processors, however busy they are
        self.assertLess(used, 20)  # seconds of one processor; it was 7.6 to 8.7

    def test_a_terminal_sees_the_progress_and_findings_in_red(self):
        wrong = self.guest("<mkdirs><dir>srv</dir></mkdirs>")
        command = [COMMAND, "check", "--hooks-dir", self.hooks, wrong]
        shown = on_terminal(command)
        self.assertRegex(shown, r"\d+ of \d+")
        self.assertRegex(shown, r"\033\[31m[^\n]*'srv'")
        self.assertNotIn("\033[31m", on_terminal(command, NO_COLOR="1"))
        self.assertNotIn("\033", self.check(wrong).stdout + self.check(wrong).stderr)

    def test_no_text_of_a_guest_reaches_the_terminal_raw(self):
        evil = "a\u009b31m\u202e&#9;&#10;b"
        result = self.check(self.guest(f"<mkdirs><dir>{evil}</dir></mkdirs>"))
        self.assertEqual(result.returncode, 1)
        self.assertTrue(all(c.isprintable() for c in result.stdout.replace("\n", "")))
        xml = guest_xml("").replace(NAMESPACE, "urn:virt-hooks:2&#10;lxc:fine\u009b")
        result = self.check(self.guest(xml=xml))
        self.assertEqual((result.returncode, result.stdout.count("\n")), (1, 2), result.stdout)


class Remedies(CheckTestCase):
    """What mends a script's refusal, where that is known."""

    def remedy(self, script, elements="<say>a</say>"):
        """For the one finding, with a script that reads <say>."""
        head = "#!/bin/sh\n# element: say\n# VIRT_HOOKS_DRY_RUN\n"
        self.script(f"{PREPARE}/50-say", script if script.startswith("#!") else head + script)
        findings = self.findings(self.guest(elements))
        self.assertEqual(len(findings), 1, findings)
        return findings[0][1]

    def test_of_a_mistake_in_the_metadata_it_is_the_metadata(self):
        say = "echo \"50-say: $1: <say> 'a' is no number\" >&2\nexit 1\n"
        for elements in (
            "<say>a</say>",
            "<mkdirs><dir>srv</dir></mkdirs>",
            "<mkdirs><dri>/srv</dri></mkdirs>",
            "<network-policy><nft>chain a { frobnicate }</nft></network-policy>",
        ):
            self.assertEqual(self.remedy(say, elements), f"edit {self.directory}/web.xml")

    def test_of_a_broken_script_it_is_the_script(self):
        python = "#!/usr/bin/python3\n# element: say\n# VIRT_HOOKS_DRY_RUN\nprint({}['a'])\n"
        for text in ("nothing-of-this-name\n", "/etc/passwd\n", python):
            remedy = self.remedy(text)
            self.assertIn(f"{self.hooks}/{PREPARE}/50-say", remedy)
            self.assertNotIn("web.xml", remedy)

    def test_where_it_may_be_the_host_both_are_named(self):
        for reason in (
            "vpn0 is down",
            "50-say: $1: vpn0 is down",
            "50-say: $1: say 'a' is not mounted",
            "50-say: $1: say 'a': No such file or directory",
        ):
            remedy = self.remedy(f'echo "{reason}" >&2\nexit 1\n')
            self.assertIn(f"edit {self.directory}/web.xml", remedy)
            self.assertIn("correct that", remedy)


class List(VirtHooksTestCase):
    def list(self, *arguments, **options):
        return self.virt_hooks("list", *arguments, **options)

    def test_it_lists_the_scripts_in_the_order_in_which_they_run(self):
        result = self.list()
        self.assert_succeeds(result)
        names = [line.split()[0] for line in result.stdout.splitlines() if line.startswith("  ")]
        self.assertEqual(" ".join(names), (
            "prepare 10-mkdirs 20-ramdisk 30-preload start 10-routing-table 20-network-policy "
            "stopped 10-routing-table 20-network-policy release 10-archive 20-ramdisk 30-post-rm-rf"
        ))  # fmt: skip
        self.assertIn("20-ramdisk     <ramdisk>     (= that of prepare)", result.stdout)

    def test_it_says_what_each_is_for_and_what_it_reads(self):
        self.script(f"{PREPARE}/50-a", "#!/bin/sh\n# element: a\n# 50-a: makes a of b (prepare).\n")
        self.script(f"{PREPARE}/51-b", '#!/usr/bin/python3\n\n"""Makes b of c.\n\nMore.\n"""\n')
        self.script(f"{PREPARE}/52-c", "#!/bin/sh\necho\n# no summary\n")
        lines = [" ".join(line.split()) for line in self.list().stdout.splitlines()]
        self.assertIn("50-a <a> makes a of b (prepare)", lines)
        self.assertIn("51-b Makes b of c", lines)
        self.assertIn("52-c", lines)

    def test_with_a_guest_it_lists_what_would_run_for_that_one(self):
        self.script(f"{PREPARE}/50-a", "#!/bin/sh\n# element: vpn\n")
        self.script(f"{PREPARE}/51-b", "#!/bin/sh\n# element: share\n")
        self.script(f"{PREPARE}/web/52-c")
        self.script(f"{PREPARE}/db/53-d")
        shown, _heading, apart = self.list(self.guest("<vpn/>")).stdout.partition("\nNot run")
        for name, runs in (("50-a", True), ("51-b", False), ("web/52-c", True), ("db/53-d", False)):
            self.assertEqual(name in shown, runs, name)
        self.assertIn(f"{PREPARE}/51-b: no <share> in its XML", apart)
        self.assertNotIn("db/53-d", apart)
        self.assertIn("db/53-d", self.list().stdout)

    def test_an_unknown_guest_is_an_error(self):
        result = self.list("nope")
        self.assertEqual((result.returncode, result.stdout), (2, ""))
        self.assertIn("'nope'", result.stderr)

    def test_what_it_lists_is_what_runs(self):
        ran = self.directory / "ran"
        shutil.rmtree(self.hooks / PREPARE)
        text = f'#!/bin/sh\necho "${{0#{self.hooks}/{PREPARE}/}}" >>{ran}\n'
        names = "9-z 10-b web/10-c 10-b.new 11-d~ web/5-a 2-off db/1-a e-5 100-a 10-b.sh 7 web/10-b"
        for name in names.split():
            self.script(f"{PREPARE}/{name}", text, 0o644 if name == "2-off" else 0o755)
        shown = self.list(self.guest()).stdout
        listed = shown.partition("prepare begin -\n")[2].partition("\n  release")[0].split()
        result = run([self.hooks / "lxc", "web", "prepare", "begin", "-"], input="<domain/>")
        self.assert_succeeds(result)
        self.assertEqual(listed, ran.read_text().split())
        self.assertEqual(len(listed), 7)

    def test_what_never_runs_is_set_apart_with_the_reason(self):
        for name, mode in (("mine", 0o755), ("15-off", 0o644), ("16-old.bak", 0o755)):
            self.script(f"{PREPARE}/{name}", SHELL, mode)
        (self.hooks / "lxc_prepared_begin_-.d").mkdir()
        result = self.list()
        self.assertEqual((result.returncode, result.stderr), (1, ""))
        apart = result.stdout.partition("Never run\n")[2]
        for part in (f"{PREPARE}/mine", f"{PREPARE}/16-old.bak", "lxc_prepared_begin_-.d"):
            self.assertIn(part, apart)
        self.assertIn(f"{PREPARE}/15-off: it is switched off", apart)
        self.assertNotIn("15-off", result.stdout.partition("Never run\n")[0])

    def test_directories_of_no_guest_and_what_libvirt_itself_runs(self):
        self.script(f"{PREPARE}/Test/10-x")
        self.script(f"{PREPARE}/build-4711/10-x")
        self.script(f"{PREPARE}/test/10-x")
        self.script("lxc.d/theirs", "#!/bin/sh\n# theirs: does something.\n")
        self.script("lxc.d/off", SHELL, 0o644)
        self.script("lxc.d/test/prepare/begin/start.sh")
        shown = self.list().stdout
        apart, _heading, last = shown.partition("Never run\n")[2].partition("libvirt itself")
        self.assertRegex(apart, f"{PREPARE}/Test: .*did you mean test\\?")
        self.assertRegex(apart, f"{PREPARE}/build-4711: [^;]*\n")
        self.assertNotIn(f"{PREPARE}/test", apart)
        self.assertIn("lxc.d/test/prepare/begin/start.sh: ", apart)
        self.assertIn("lxc.d/theirs", last)
        self.assertIn("does something", last)
        self.assertNotIn("lxc.d/off", last)
        apart = self.list("test").stdout.partition("Not run for test\n")[2]
        self.assertRegex(apart, f"{PREPARE}/Test: .*did you mean test\\?")
        self.assertNotIn("build-4711", apart)

    def test_why_scripts_do_not_run_for_a_guest(self):
        (self.hooks / PREPARE / "30-preload").chmod(0o644)
        self.script(f"{PREPARE}/web/start.sh")
        self.script(f"{PREPARE}/db/start.sh")
        shown, _heading, apart = self.list(self.guest(MKDIRS)).stdout.partition("Not run for web\n")
        self.assertEqual(shown.count("10-mkdirs"), 1)
        for line in (
            f"{PREPARE}/20-ramdisk: no <ramdisk> in its XML",
            f"{PREPARE}/30-preload: it is switched off",
            f"{PREPARE}/web/start.sh: its name",
            f"{RELEASE}/10-archive: no <archive> in its XML",
        ):
            self.assertIn(line, apart)
        self.assertNotIn("db/", apart)

    def test_a_terminal_of_80_columns(self):
        self.script(f"{PREPARE}/50-a-script-with-quite-a-long-name", f"{SHELL}# {'word ' * 30}\n")
        target = self.write("some/where/else/in/quite/a/deep/tree/site", SHELL, 0o755)
        (self.hooks / RELEASE / "50-site").symlink_to(target)
        self.script(f"{PREPARE}/a-guest-with-a-long-name/a-file-of-a-long-name.sh")
        self.script("lxc.d/a-program-with-a-long-name", f"{SHELL}# {'word ' * 30}\n")
        for arguments in ([], [self.guest()]):
            shown = on_terminal([COMMAND, "list", "--hooks-dir", self.hooks, *arguments])
            lines = re.sub("\033\\[[0-9]*m", "", shown).replace("\r", "").split("\n")
            self.assertLessEqual(max(map(len, lines)), 80, shown)

    def test_reasons_are_phases_of_their_own_where_libvirt_gives_them(self):
        self.script("lxc_release_end_from_snapshot.d/15-mine")
        for version, given in (("10.4.0", False), ("10.5.0", True), ("11.3.0", True)):
            self.write("bin/virsh", f"{SHELL}echo {version}\n", 0o755)
            environment = {"PATH": f"{self.directory}/bin:{os.environ['PATH']}"}
            shown = self.list(env=environment).stdout.partition("release end from snapshot\n")[2]
            names = [line.split()[0] for line in shown.splitlines()[:4]]
            expected = ["10-archive", "15-mine", "20-ramdisk", "30-post-rm-rf"] if given else []
            self.assertEqual(names, expected)

    def test_colours_only_on_a_terminal(self):
        command = [COMMAND, "list", "--hooks-dir", self.hooks]
        self.assertNotIn("\033", self.list().stdout)
        self.assertIn("\033[1m", on_terminal(command))
        self.assertNotIn("\033", on_terminal(command, NO_COLOR="1"))
        self.assertNotIn("\033", on_terminal(command, TERM="dumb"))


class Replay(VirtHooksTestCase):
    def replay(self, *arguments, **options):
        return self.virt_hooks("replay", *arguments, **options)

    def test_it_plays_a_guests_life(self):
        result = self.replay("--lifecycle", self.guest())
        self.assert_succeeds(result)
        operations = re.findall(r"(?m)^lxc web (\S+)", result.stdout)
        self.assertEqual(operations, ["prepare", "start", "started", "stopped", "release"])
        self.assertRegex(result.stdout, f"(?m)^    [a-z].*{self.directory}/data")
        self.assertFalse((self.directory / "data").exists())

    def test_it_passes_what_libvirt_passes(self):
        said = self.directory / "said"
        self.script(
            f"{PREPARE}/05-args",
            f'#!/bin/sh\nprintf "%s|" "$@" >{said}\npwd >>{said}\numask >>{said}\n'
            f"tr '\\0' ' ' </proc/$$/environ >>{said}\necho >>{said}\ncat >>{said}\n",
        )
        file = self.guest(xml=guest_xml(""))
        self.assert_succeeds(self.replay(file, "prepare", umask=0o077))
        words, umask, environment, xml = said.read_text().split("\n", 3)
        self.assertEqual(words, "web|prepare|begin|-|/")
        self.assertEqual(int(umask, 8), 0o022)
        names = sorted(variable.partition("=")[0] for variable in environment.split())
        self.assertEqual(names, ["LC_ALL", "PATH", "USER", "VIRT_HOOKS_VERBOSE"])
        self.assertIn("LC_ALL=C ", environment)
        self.assertIn("USER=root ", environment)
        self.assertEqual(xml, file.read_text())

    def test_its_exit_status_is_the_hooks(self):
        self.script(f"{PREPARE}/15-bad", "#!/bin/sh\necho no >&2\nexit 7\n")
        result = self.replay(self.guest(""), "prepare", "release")
        self.assertEqual(result.returncode, 7)
        self.assertRegex(result.stderr, r"\A    no\n    .*15-bad: exit status 7\n\Z")
        self.assertNotIn("release", result.stdout)

    def test_a_failure_is_red_on_a_terminal(self):
        self.script(f"{PREPARE}/15-bad", "#!/bin/sh\nexit 7\n")
        command = [COMMAND, "replay", "--hooks-dir", self.hooks, self.guest(""), "prepare"]
        self.assertRegex(on_terminal(command), r"\033\[31m[^\n]*exit status 7")
        self.assertNotIn("\033[31m", on_terminal(command, NO_COLOR="1"))

    def test_a_guest_that_cannot_start_is_stopped_and_released(self):
        self.script("lxc_start_begin_-.d/05-bad", "#!/bin/sh\nexit 7\n")
        self.script(f"{RELEASE}/05-reason", '#!/bin/sh\necho "reason $4"\n')
        result = self.replay("--lifecycle", self.guest(""))
        self.assertEqual(result.returncode, 7)
        operations = re.findall(r"(?m)^lxc web (\S+)", result.stdout)
        self.assertEqual(operations, ["prepare", "start", "stopped", "release"])
        self.assertRegex(result.stdout, "reason (failed|-)\n")

    def test_the_lines_come_as_it_happens(self):
        self.script(f"{PREPARE}/05-first", "#!/bin/sh\necho first\n")
        go = self.directory / "go"
        self.script(f"{PREPARE}/06-second", f"#!/bin/sh\nuntil [ -e {go} ]; do sleep 0.05; done\n")
        command = [COMMAND, "replay", "--hooks-dir", self.hooks, self.guest(""), "prepare"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            said = [process.stdout.readline() for _ in range(4)]
            go.touch()
            process.stdout.read()
        self.assertEqual(said[1:], ["  05-first\n", "    first\n", "  06-second\n"])
        self.assertEqual(process.returncode, 0)

    def test_a_dry_run_does_nothing_and_names_what_it_cannot_ask(self):
        ran = self.directory / "ran"
        self.script(f"{PREPARE}/15-blind", f"#!/bin/sh\ntouch {ran}\n")
        result = self.replay("--dry-run", "--lifecycle", self.guest())
        self.assertEqual(result.returncode, 0)
        self.assertRegex(result.stdout, f"(?m)^    would .*{self.directory}/data")
        self.assertIn("15-blind: not run", result.stderr)
        self.assertFalse(ran.exists())
        self.assertFalse((self.directory / "data").exists())

    def test_filters_print_the_xml_that_libvirt_would_get(self):
        install_dispatcher(self.hooks / "qemu")
        self.script("qemu_restore_begin_-.d/10-filter", "#!/bin/sh\nsed s/lxc/kvm/\n")
        xml = guest_xml("\n")
        result = self.replay("--driver", "qemu", self.guest(xml=xml), "restore")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn(xml.replace("lxc", "kvm"), result.stdout.replace("\n    ", "\n"))

    def test_a_filter_that_prints_no_xml_fails_as_under_libvirt(self):
        install_dispatcher(self.hooks / "qemu")
        self.script("qemu_restore_begin_-.d/10-filter", "#!/bin/sh\necho restoring\n")
        result = self.replay("--driver", "qemu", self.guest(), "restore")
        self.assertEqual(result.returncode, 1)
        self.assertIn("10-filter", result.stderr)
        self.assertIn("restoring", result.stderr)

    def test_what_a_script_says_is_below_its_name_each_stream_by_itself(self):
        self.script(f"{PREPARE}/05-say", "#!/bin/sh\necho out\necho err >&2\nprintf 'a\\tb\\n'\n")
        result = self.replay(self.guest(""), "prepare", "start")
        _heading, *said, last = result.stdout.splitlines()
        self.assertEqual(said, ["  05-say", "    out", "    a\tb"])
        self.assertIn("start", last)
        self.assertEqual(result.stderr, "    err\n")

    def test_a_reader_that_goes_away_does_not_keep_a_script_from_its_work(self):
        done = self.directory / "done"
        self.script(f"{PREPARE}/05-say", f"#!/bin/sh\nseq 100000\ntouch {done}\n")
        program = '"$@" | head -n 1'
        command = [COMMAND, "replay", "--hooks-dir", self.hooks, self.guest(""), "prepare"]
        result = run(["sh", "-c", program, "sh", *command])
        self.assertNotIn("Traceback", result.stderr)
        self.assertTrue(done.exists())

    def test_the_reason_of_a_release(self):
        self.script(f"{RELEASE}/05-reason", '#!/bin/sh\necho "reason $4"\n')
        result = self.replay("--reason", "from snapshot", self.guest(""), "release")
        self.assertIn("reason from snapshot\n", result.stdout)

    def test_a_guest_that_runs_keeps_what_it_uses(self):
        ran = self.directory / "ran"
        for directory in (PREPARE, "lxc_stopped_end_-.d", RELEASE):
            self.script(
                f"{directory}/05-ran", f"#!/bin/sh\n# VIRT_HOOKS_DRY_RUN\necho $2 >>{ran}\n"
            )
        file = self.guest("", name="test")  # as the guest that runs in virsh's own libvirt
        for arguments in (
            ["test", "release"],
            ["test", "stopped"],
            ["test", "prepare", "release"],
            ["--lifecycle", "test"],
            [file, "release"],
        ):
            result = self.replay(*arguments)
            self.assertEqual((result.returncode, result.stdout), (2, ""))
            self.assertIn("--force", result.stderr)
            self.assertFalse(ran.exists())
        for arguments in (["--force", "test", "release"], ["test", "prepare"]):
            self.assert_succeeds(self.replay(*arguments))
        self.assert_succeeds(self.replay("--dry-run", "test", "stopped"))
        self.assertEqual(ran.read_text(), "release\nprepare\nstopped\n")

    def test_a_guest_that_runs_can_be_started_again(self):
        policy = self.guest("<network-policy><nft>chain a { }</nft></network-policy>", name="test")
        tables = ("nft", "list", "tables")
        before = run(tables).stdout
        for _again in range(2):
            self.assert_succeeds(self.replay(policy, "start"))
            table = run(tables).stdout.removeprefix(before).strip()
            self.assertRegex(table, r"\Atable inet virt-hooks-\S+\Z")
        self.addCleanup(run, ["nft", "delete", *table.split()])
        run(["nft", "delete", *table.split()], check=True)  # as "nft flush ruleset" does
        self.assert_succeeds(self.replay(policy, "start"))
        self.assertIn(table, run(tables).stdout)

    def test_a_guest_that_runs_keeps_its_files(self):
        src, dst = self.directory / "src", self.directory / "dst"
        for directory in (src, dst):
            directory.mkdir()
            (directory / "file").write_text(directory.name)
        elements = f"<preload><dircopy><src>{src}</src><dst>{dst}</dst></dircopy></preload>"
        result = self.replay(self.guest(elements, name="test"), "prepare")
        self.assertEqual((result.returncode, result.stdout), (2, ""))
        self.assertIn("--force", result.stderr)
        self.assertEqual((dst / "file").read_text(), "dst")
        self.assert_succeeds(self.replay(self.guest(elements, name="another"), "prepare"))
        self.assertEqual((dst / "file").read_text(), "src")

    def test_a_guest_that_runs_keeps_what_it_uses_also_where_libvirt_does_not_answer(self):
        ran, status = self.directory / "ran", Path("/run/libvirt/lxc/web.xml")
        self.script(f"{RELEASE}/05-ran", f"#!/bin/sh\ntouch {ran}\n")
        nobody = ("--connect", "lxc+unix:///system?socket=/run/none")
        status.parent.mkdir(parents=True)
        self.addCleanup(shutil.rmtree, "/run/libvirt")
        status.touch()  # libvirt's own, as long as the guest runs
        result = self.replay(*nobody, self.guest(""), "release")
        self.assertEqual((result.returncode, ran.exists()), (2, False))
        status.unlink()
        self.assert_succeeds(self.replay(*nobody, self.guest(""), "release"))
        self.assertTrue(ran.exists())

    def test_what_cannot_be_replayed_is_one_line_and_status_2(self):
        for arguments, part in (
            ([self.guest("")], "OPERATION"),
            ([self.guest(""), "migrate"], "'migrate'"),
            (["--lifecycle", self.guest(""), "prepare"], "--lifecycle"),
            (["nope", "prepare"], "'nope'"),
            (["--driver", "qemu", self.guest(""), "prepare"], f"{self.hooks}/qemu"),
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
    def setUp(self):
        super().setUp()
        for driver in ("qemu", "network"):
            install_dispatcher(self.hooks / driver)

    def new(self, *arguments):
        return self.virt_hooks("new", *arguments)

    def made(self, *arguments):
        """The path of a new script, which is then switched on."""
        result = self.new(*arguments)
        self.assert_succeeds(result)
        path = Path(re.search(rf"{self.hooks}/[^ ,]+", result.stdout).group())
        path.chmod(0o755)
        return path

    def call(self, phase, elements, driver="qemu", dry_run=False):
        """Call the installed hook, as libvirt does, for a guest or a network with a UUID."""
        xml = guest_xml(elements)
        if driver == "network":
            xml = f"<hookData>{xml.replace('domain', 'network')}</hookData>"
        environment = {"PATH": os.environ["PATH"], "VIRT_HOOKS_DRY_RUN": "1" if dry_run else "0"}
        return run([self.hooks / driver, "web", *phase.split()], input=xml, env=environment)

    def assert_says(self, result, text):
        self.assert_succeeds(result)
        self.assertEqual(result.stdout, text)

    def test_what_it_prints_works_in_that_order(self):
        """The last command is for a guest of libvirt's: test_virt_hooks_libvirt does that one."""
        for language in ("sh", "python"):
            for operations, tried in (
                ("release", ["would do it: some text\n"]),
                ("prepare,release", ["would do it: some text\n", "would undo it\n"]),
            ):
                name = f"{operations.replace(',', '-')}-{language}"
                result = self.new("--language", language, "lxc", operations, name)
                self.assert_succeeds(result)
                lines = result.stdout.splitlines()
                *tries, switch_on, edit = [line for line in lines if line.startswith("    ")]
                path = Path(switch_on.split()[-1])
                self.assertEqual(path.stat().st_mode, 0o100644)
                self.assertIn(f"\n# element: {name}\n", path.read_text())
                self.assertEqual([run(["sh", "-c", line]).stdout for line in tries], tried)
                file = self.guest(f"<{name}>some text</{name}>")
                self.assertEqual(self.virt_hooks("check", file).returncode, 1)  # it is still off
                self.assertEqual(run(["sh", "-c", switch_on]).returncode, 0)
                self.assertEqual(self.virt_hooks("check", file).stdout, "")
                self.assertIn(f"<{name}>some text</{name}>", lines[-2])
                self.assertEqual(edit.split()[-1], "GUEST")
                played = self.virt_hooks("replay", file, operations.partition(",")[0])
                self.assertIn("    do it here: some text\n", played.stdout)
                for place in list(self.hooks.glob(f"*/{path.name}")):
                    place.unlink()

    def test_it_acts_for_all_elements_of_its_name_and_harms_no_other_guest(self):
        for language in ("sh", "python"):
            path = self.made("--language", language, "lxc", "started", "say")
            for elements, status, said in (
                ("<say>a</say><say> b </say>", 0, ["a", "b"]),
                ("<x>say</x>", 0, []),
                ('<o:say xmlns:o="urn:other">a</o:say>', 0, []),
                ("<say/>", 1, []),
                ("<say>a</say><say> </say>", 1, []),  # checked before anything is done
                ('<say to="b">a</say>', 1, []),
                ("<say>a<b/></say>", 1, []),
                ("<say>a'b\"c $(reboot) &amp; \\n</say>", 0, ["a'b\"c $(reboot) & \\n"]),
                ("<say>*</say><say>-n</say>", 0, ["*", "-n"]),
            ):
                with self.subTest(language=language, elements=elements):
                    arguments = [path, "web", "started", "begin", "-"]
                    result = run(arguments, input=guest_xml(elements))
                    self.assertEqual(result.returncode, status, result.stderr)
                    self.assertEqual(result.stdout, "".join(f"do it here: {t}\n" for t in said))
                    if status:
                        self.assertRegex(result.stderr, r"\A50-say: web: <say> [^\n]+\n\Z")
            path.unlink()

    def test_two_phases_are_one_file_and_a_link(self):
        result = self.new("qemu", "prepare,release", "isolate-cpus")
        self.assert_succeeds(result)
        link = self.hooks / "qemu_release_end_-.d/50-isolate-cpus"
        self.assertEqual(os.readlink(link), "../qemu_prepare_begin_-.d/50-isolate-cpus")
        self.assertTrue(link.is_file())
        self.assertIn(str(link), result.stdout)
        self.assertIn('case "$2" in', link.read_text())

    def test_two_phases_through_the_installed_dispatcher(self):
        for language in ("sh", "python"):
            for driver, first, last in (
                ("qemu", "prepare begin -", "release end shutdown"),
                ("lxc", "start begin -", "stopped end -"),
                ("network", "started begin -", "stopped end -"),
            ):
                operations = f"{first.split()[0]},{last.split()[0]}"
                self.made("--language", language, driver, operations, f"do-{language}")
                element = f"do-{language}"
                state = Path(f"/run/virt-hooks/{element}-{uuid_of('web')}")
                two, broken = f"<{element}>a</{element}><{element}>b</{element}>", f"<{element}/>"
                with self.subTest(language=language, driver=driver):
                    shutil.rmtree("/run/virt-hooks", ignore_errors=True)
                    self.assert_says(self.call(last, two, driver), "")  # without the first
                    said = self.call(first, two, driver, dry_run=True)
                    self.assert_says(said, "would do it: a\nwould do it: b\n")
                    said = self.call(last, two, driver, dry_run=True)
                    self.assert_says(said, "would undo it\n")
                    self.assertFalse(state.exists())
                    failed = self.call(first, broken, driver)
                    self.assertEqual((failed.returncode, failed.stdout), (1, ""))
                    self.assertIn(f"50-{element}: web: <{element}> ", failed.stderr)
                    said = self.call(first, two, driver)
                    self.assert_says(said, "do it here: a\ndo it here: b\n")
                    self.assertEqual(state.read_text(), "a\nb\n")
                    self.assertEqual(state.parent.stat().st_mode, 0o40700)
                    self.call(last, two, driver, dry_run=True)
                    self.assertTrue(state.exists())
                    said = self.call(last, broken, driver)  # whatever the element says by then
                    self.assert_says(said, "undo it here: a\nb\n")
                    self.assertFalse(state.exists())
                    self.assert_says(self.call(last, two, driver), "")  # for a second time

    def test_a_filter_prints_nothing_into_the_guests_xml(self):
        for language in ("sh", "python"):
            for operation in ("migrate", "restore"):
                name = f"{operation}-{language}"
                self.made("--language", language, "qemu", operation, name)
                result = self.call(f"{operation} begin -", f"<{name}>a</{name}>")
                self.assertEqual((result.returncode, result.stdout), (0, ""))
                self.assertIn("do it here: a\n", result.stderr)

    def test_it_speaks_of_networks_where_it_is_for_one(self):
        for language in ("sh", "python"):
            name = f"a-{language}"
            result = self.new("--language", language, "network", "started", name)
            self.assertNotRegex(result.stdout, "(?i)guest")
            text = (self.hooks / f"network_started_begin_-.d/50-{name}").read_text()
            self.assertNotIn("guest", text)

    def test_in_sh_it_fails_where_xmllint_is_missing(self):
        path = self.made("lxc", "started", "say")
        programs = self.directory / "bin"
        programs.mkdir()
        for name in ("cat", "seq", "sh"):
            (programs / name).symlink_to(shutil.which(name))
        xml = guest_xml("<say>a</say>")
        result = run(["sh", path, "web"], input=xml, env={"PATH": str(programs)})
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("xmllint", result.stderr)

    def test_it_says_where_a_failure_kills_a_guest(self):
        for language in ("sh", "python"):
            for operation, kills in (("reconnect", True), ("prepare", False)):
                path = self.made("--language", language, "lxc", operation, f"a-{language}")
                self.assertEqual("KILLS" in path.read_text(), kills)

    def test_in_sh_it_is_clean(self):
        if not shutil.which("shellcheck"):
            self.skipTest("shellcheck is not installed")
        for driver, operations in (
            ("lxc", "started"),
            ("qemu", "prepare,release"),
            ("network", "start,stopped"),
            ("qemu", "restore"),
        ):
            self.assert_succeeds(run(["shellcheck", self.made(driver, operations, "say")]))

    def test_numbers(self):
        for name, made in (("a", "50-a"), ("15-b", "15-b"), ("15b", "15-b")):
            path = self.made("lxc", "prepare", name)
            self.assertEqual(path, self.hooks / PREPARE / made)
            path.unlink()
        path = self.hooks / "lxc_reconnect_begin_-.d/50-a"
        self.assertEqual(self.made("lxc", "reconnect", "a"), path)

    def test_the_name_of_a_file_makes_the_name_of_an_element(self):
        for name, made in (
            ("cpu_governor.sh", "50-cpu-governor"),
            ("15-cpu_governor.py", "15-cpu-governor"),
            ("cpu_governor", "50-cpu-governor"),
        ):
            path = self.made("lxc", "prepare", name)
            self.assertEqual(path.name, made)
            self.assertEqual(path.read_text().splitlines()[1], "# element: cpu-governor")
            path.unlink()

    def test_a_name_that_the_text_has_for_others(self):
        path = self.made("lxc", "prepare,release", "FIRST-guest-NAME")
        self.assertIn("\n# element: FIRST-guest-NAME\n", path.read_text())
        self.assertIn("\n    release)\n", path.read_text())

    def test_modes_are_right_whatever_the_umask(self):
        result = self.virt_hooks("new", "lxc", "started", "a", umask=0o077)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual((self.hooks / "lxc_started_begin_-.d").stat().st_mode, 0o40755)
        self.assertEqual((self.hooks / "lxc_started_begin_-.d/50-a").stat().st_mode, 0o100644)

    def test_what_is_there_stays(self):
        result = self.new("lxc", "prepare", "10-mkdirs")
        self.assertEqual(result.returncode, 2)
        self.assertIn(f"{PREPARE}/10-mkdirs", result.stderr)
        text = (self.hooks / PREPARE / "10-mkdirs").read_text()
        self.assertEqual(text, (CHECKOUT / PREPARE / "10-mkdirs").read_text())

    def test_where_something_is_in_the_place_of_the_link_nothing_is_made(self):
        link = self.hooks / RELEASE / "50-a"
        link.symlink_to("nowhere")
        result = self.new("lxc", "prepare,release", "a")
        self.assertEqual((result.returncode, result.stdout), (2, ""))
        self.assertIn(str(link), result.stderr)
        self.assertFalse((self.hooks / PREPARE / "50-a").exists())
        self.assertEqual(os.readlink(link), "nowhere")

    def test_names_that_no_element_can_have(self):
        for name in ("", "1", "10-", "a b", "../a", "a'b", "$(a)", "-a", "a/b", "é", "a.pl", ".sh"):
            result = self.new("lxc", "prepare", "--", name)
            self.assertEqual(result.returncode, 2, name)
            self.assertRegex(result.stderr, r"\Avirt-hooks: [^\n]+\n\Z")

    def test_operations_of_which_none_undoes_another(self):
        for operations in (
            *("migrate", "prepare,", "prepare,nope", "prepare,prepare", "prepare,start"),
            *("stopped,release", "release,prepare", "prepare,start,release", ""),
        ):
            result = self.new("lxc", operations, "a")
            self.assertEqual((result.returncode, result.stdout), (2, ""), operations)
            self.assertRegex(result.stderr, r"\Avirt-hooks: [^\n]+\n\Z")
            self.assertEqual(list(self.hooks.glob("*/50-a")), [])


class Editing(VirtHooksTestCase):
    """metadata --edit, on a terminal and without one, of the guest that is in virsh itself."""

    GOOD = "<hooks><mkdirs><dir>/srv/a</dir></mkdirs></hooks>"
    BAD = "<hooks><mkdirs><dir>srv/a</dir></mkdirs></hooks>"
    BROKEN = "<hooks><mkdirs></hooks>"
    IS_SET = "<hooks> is set"
    ARGUMENTS = ("--driver", "lxc", "test")

    def editor(self, *texts):
        """An editor that saves one text after the other."""
        for number, text in enumerate(texts):
            self.write(f"texts/{number}", text)
        program = '#!/bin/sh\nset -e\nset -- "$1" "$(dirname "$0")"/texts/*\n'
        return self.write("editor", f'{program}cat "$2" >"$1"\nrm "$2"\n', 0o755)

    def environment(self, editor):
        environment = {"PATH": os.environ["PATH"], "NO_COLOR": "1", "EDITOR": str(editor)}
        return {**environment, "TMPDIR": str(self.directory)}

    def edit(self, editor, *options):
        """Edit without a terminal."""
        arguments = ("--edit", *options, *self.ARGUMENTS)
        return self.virt_hooks("metadata", *arguments, env=self.environment(editor))

    def edit_on_terminal(self, answers, *texts):
        """Edit on a terminal, with answers to what is asked there: (exit status, output)."""
        self.editor_left = self.editor(*texts).parent / "texts"
        pid, terminal = pty.fork()
        if pid == 0:
            places = ["--hooks-dir", self.hooks, *NO_LIBVIRT]
            command = [COMMAND, "metadata", *places, "--edit", *self.ARGUMENTS]
            os.execve(COMMAND, command, self.environment(self.directory / "editor"))
        os.write(terminal, answers.encode())
        output = b""
        try:
            while data := os.read(terminal, 65536):
                output += data
        except OSError:
            pass  # the other end is closed
        os.close(terminal)
        _pid, status = os.waitpid(pid, 0)
        return os.waitstatus_to_exitcode(status), output.decode()

    def kept(self):
        """The texts that are kept, for another try."""
        return [path.read_text() for path in self.directory.glob("virt-hooks-*.xml")]

    def test_e_edits_again(self):
        status, output = self.edit_on_terminal("e\ne\n", self.BAD, self.BROKEN, self.GOOD)
        self.assertEqual(status, 0, output)
        self.assertIn(self.IS_SET, output)
        self.assertEqual((self.kept(), list(self.editor_left.iterdir())), ([], []))

    def test_x_leaves_it_and_says_how_the_text_can_be_used(self):
        for text, status_of in ((self.BAD, 1), (self.BROKEN, 2)):
            status, output = self.edit_on_terminal("x\n", text)
            self.assertEqual(status, status_of, output)
            self.assertNotIn(self.IS_SET, output)
            self.assertEqual(self.kept(), [text])
            path = next(self.directory.glob("virt-hooks-*.xml"))
            command = re.findall(r"virt-hooks (metadata .*)", output)[-1].split()
            for words in (["--driver", "lxc"], [*NO_LIBVIRT], ["--set", str(path)]):
                index = command.index(words[0])
                self.assertEqual(command[index : index + 2], words)
            path.write_text(self.GOOD)
            self.assert_succeeds(run([COMMAND, *command]))
            path.unlink()

    def test_q_sets_it_all_the_same(self):
        status, output = self.edit_on_terminal("Q\n", self.BAD)
        self.assertEqual(status, 0, output)
        self.assertIn(self.IS_SET, output)
        self.assertEqual(self.kept(), [])

    def test_what_is_no_hooks_at_all_cannot_be_set(self):
        for text in (self.BROKEN, "", "<hook/>"):
            status, output = self.edit_on_terminal("Q\nx\n", text)
            self.assertEqual(status, 2, output)
            self.assertNotIn(self.IS_SET, output)
            self.assertEqual(self.kept(), [text])
            next(self.directory.glob("virt-hooks-*.xml")).unlink()

    def test_another_answer_is_asked_for_again_and_the_end_of_input_leaves_it(self):
        status, output = self.edit_on_terminal("q\n\nyes\n\4", self.BAD)
        self.assertEqual(status, 1, output)
        self.assertEqual(output.count("Q: "), 4)
        self.assertEqual(self.kept(), [self.BAD])

    def test_a_host_that_is_not_ready_is_said_and_does_not_ask(self):
        (self.hooks / PREPARE / "10-mkdirs").chmod(0o644)
        mount = CHECKOUT / "examples/05-need-mount"
        shutil.copy(mount, self.hooks / PREPARE)
        need_mount = f"<need-mount><dir>{self.directory}</dir></need-mount>"
        for elements, problem in (
            ("<mkdirs><dir>/srv/a</dir></mkdirs>", "10-mkdirs is switched off"),
            (need_mount, f"'{self.directory}' is not mounted"),
        ):
            status, output = self.edit_on_terminal("", f"<hooks>{elements}</hooks>")
            self.assertEqual(status, 0, output)
            self.assertIn(problem, " ".join(output.split()))  # lines are parted to fit
            self.assertIn(self.IS_SET, output)
        (self.hooks / "lxc").unlink()
        status, output = self.edit_on_terminal("", self.GOOD)
        self.assertEqual(status, 0, output)
        self.assertIn(f"{self.hooks}/lxc", output)
        self.assertIn(self.IS_SET, output)

    def test_without_a_terminal_nothing_is_asked_and_force_sets_it(self):
        result = self.edit(self.editor(self.BAD))
        self.assertEqual(result.returncode, 1)
        self.assertNotIn(self.IS_SET, result.stdout)
        self.assertEqual(self.kept(), [self.BAD])
        result = self.edit(self.editor(self.BAD), "--force")
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertIn("srv/a", result.stdout)  # it is said all the same
        self.assertIn(self.IS_SET, result.stdout)
        for force, status in (((), 1), (("--force",), 0)):
            arguments = ("--set", "-", *force, *self.ARGUMENTS)
            result = self.virt_hooks("metadata", *arguments, input=self.BAD)
            self.assertEqual(
                (result.returncode, self.IS_SET in result.stdout), (status, not status)
            )

    def test_it_begins_with_a_hooks_that_virsh_edit_takes(self):
        seen = self.directory / "seen"
        editor = self.write("editor", f'#!/bin/sh\ncp "$1" {seen}\n', 0o755)
        self.assert_succeeds(self.edit(editor))
        self.assertEqual(
            re.sub(r"\s+", " ", seen.read_text()), f'<hooks xmlns="{NAMESPACE}"> </hooks> '
        )
        self.assertEqual(self.kept(), [])

    def test_without_the_editor_it_is_one_line(self):
        for variable in ("EDITOR", "VISUAL"):
            environment = {**self.environment("true"), variable: "/opt/none -x"}
            arguments = ("--edit", *self.ARGUMENTS)
            result = self.virt_hooks("metadata", *arguments, env=environment)
            self.assertEqual((result.returncode, result.stdout, self.kept()), (2, "", []))
            self.assertRegex(result.stderr, r"\Avirt-hooks: [^\n]*/opt/none[^\n]*\n\Z")
            self.assertIn(variable, result.stderr)
        (self.directory / "bin").mkdir()
        for name in ("virsh", "python3"):
            (self.directory / "bin" / name).symlink_to(shutil.which(name))
        environment = {"PATH": f"{self.directory}/bin", "TMPDIR": str(self.directory)}
        result = self.virt_hooks("metadata", "--edit", *self.ARGUMENTS, env=environment)
        self.assertEqual((result.returncode, result.stdout, self.kept()), (2, "", []))
        self.assertRegex(result.stderr, r"\Avirt-hooks: [^\n]*vi\b[^\n]*EDITOR[^\n]*\n\Z")

    def test_somebody_else_than_root_is_refused_before_the_editor_starts(self):
        arguments = ("--edit", *self.ARGUMENTS)
        environment = self.environment(self.editor(self.GOOD))
        os.chmod(self.directory, 0o777)
        result = self.virt_hooks("metadata", *arguments, env=environment, user="nobody")
        self.assertEqual((result.returncode, result.stdout, self.kept()), (2, "", []))
        self.assertRegex(result.stderr, r"\Avirt-hooks: [^\n]*root[^\n]*\n\Z")
        self.assertTrue(list((self.directory / "texts").iterdir()))

    def test_an_editor_that_fails_keeps_what_it_has_saved(self):
        editor = self.write("editor", '#!/bin/sh\necho half >"$1"\nexit 3\n', 0o755)
        result = self.edit(editor)
        self.assertEqual((result.returncode, result.stdout), (2, ""))
        self.assertEqual(self.kept(), ["half\n"])
        self.assertIn("--set", result.stderr)


class Page(TestCase):
    """What is read on a terminal of 80 columns and 24 lines."""

    def test_every_help_fits(self):
        environment = {"PATH": os.environ["PATH"], "COLUMNS": "80"}
        for command in ([], *([command] for command in COMMANDS)):
            result = run([COMMAND, *command, "--help"], env=environment)
            self.assert_succeeds(result)
            lines = result.stdout.splitlines()
            self.assertLessEqual(max(map(len, lines)), 80, command)
            self.assertLessEqual(len(lines), 32 if command else 24, command)

    def test_the_manual_is_clean_and_fits(self):
        for page in ("virt-hooks.8", "virt-hooks.5"):
            path = CHECKOUT / "command" / page
            command = ["groff", "-man", "-rLL=80n", "-Tutf8", "-P-cbou", path]
            result = run([*command, "-ww", "-z"])
            self.assertEqual((result.returncode, result.stderr), (0, ""))
            self.assertLessEqual(max(map(len, run(command).stdout.splitlines())), 80)

    def test_the_manual_names_every_command_and_option(self):
        text = (CHECKOUT / "command/virt-hooks.8").read_text().replace("\\-", "-")
        for command in COMMANDS:
            text_of_help = run([COMMAND, command, "--help"]).stdout
            for option in re.findall(r"(?m)^  (?:-h, )?(--[a-z-]+)", text_of_help):
                self.assertIn(option, text, command)

    def test_the_version_is_in_the_manual(self):
        version = run([COMMAND, "--version"]).stdout.split()[1]
        for page in ("virt-hooks.8", "virt-hooks.5"):
            self.assertIn(version, (CHECKOUT / "command" / page).read_text().splitlines()[0])

    def test_without_its_modules_it_is_one_line(self):
        copy = shutil.copy(COMMAND, self.directory)
        result = run([copy, "list"])
        self.assertEqual((result.returncode, result.stdout), (2, ""))
        self.assertRegex(result.stderr, r"\Avirt-hooks: [^\n]+\n\Z")

    def test_where_it_is_installed_it_finds_its_modules_and_leaves_no_compiled_ones(self):
        (self.directory / "sbin").mkdir()
        copy = shutil.copy(COMMAND, self.directory / "sbin")
        share = self.directory / "share/virt-hooks"
        shutil.copytree(COMMAND.parent, share, ignore=shutil.ignore_patterns("virt-hooks*"))
        before = set(share.iterdir())
        hooks = self.directory / "hooks"
        result = run([copy, "new", "--hooks-dir", hooks, "lxc", "started", "a"])
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("# element: a", (hooks / "lxc_started_begin_-.d/50-a").read_text())
        self.assertEqual(set(share.iterdir()), before)

    def test_bad_usage_is_status_2(self):
        for arguments in (
            [],
            ["frobnicate"],
            ["list", "--frob"],
            ["new", "lxc"],
            ["new", "daemon", "start", "a"],
            ["list", "--drive", "lxc"],
            ["replay", "--reason", "bored", "web", "release"],
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
        command = ["bash", "-c", program, "bash", CHECKOUT / "command/virt-hooks.bash", COMMAND]
        result = run([*command, *words])
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        return result.stdout.split("\n")[:-1]

    def test_commands_and_options(self):
        self.assertEqual(self.complete("re"), ["replay"])
        self.assertEqual(self.complete("check", "--js"), ["--json"])
        self.assertEqual(self.complete("new", "--language", "p"), ["python"])
        for command in COMMANDS:
            text = run([COMMAND, command, "--help"]).stdout
            options = set(re.findall(r"(?m)^  (?:-h, )?(--[a-z-]+)", text))
            self.assertEqual(set(self.complete(command, "--")), options, command)

    def test_drivers_and_operations(self):
        drivers = {"lxc", "qemu", "libxl", "bhyve", "network"}
        self.assertEqual(set(self.complete("new", "")), drivers)
        self.assertEqual(set(self.complete("list", "--driver", "")), drivers | {"daemon"})
        for offered in (self.complete("new", "lxc", ""), self.complete("replay", "web", "")):
            self.assertGreaterEqual(set(offered), {"prepare", "release", "stopped"})
        self.assertIn("prepare,release", self.complete("new", "qemu", "prep"))

    def test_guests_are_virshs_whatever_their_names(self):
        uri = ("test", ":", "///default")  # as bash parts it
        self.assertEqual(self.complete("check", "--connect", *uri, "te"), ["test"])
