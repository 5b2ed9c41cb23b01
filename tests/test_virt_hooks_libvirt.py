"""virt-hooks with the real virsh and libvirtd: what it says is what libvirt then does."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import unittest
from pathlib import Path

from harness import CHECKOUT, NAMESPACE, TestCase, run
from libvirt import (
    HOOKS,
    LXC,
    Guest,
    install,
    put_hook,
    root_directory,
    shutoff_reason,
    start_libvirtd_with_hooks,
    virsh,
    wait_until,
)

COMMAND = "/usr/local/sbin/virt-hooks"
ODD_NAMES = ("vm one", "-dash", "it's", 'a "b"; c', "back\\slash", "é", "$(reboot)", "%s", "#")
RECORDER = """#!/bin/sh
# VIRT_HOOKS_DRY_RUN
[ -z "$VIRT_HOOKS_DRY_RUN" ] || exit 0
echo "$2 ${{0#{hooks}/*/}}" >>{records}
printf '%s ' "$@" >>{records}.arguments
cat >{records}.xml
"""


def setUpModule():
    """Install the command as by default, and start a libvirtd, which notices the hook."""
    start_libvirtd_with_hooks(unittest.addModuleCleanup)
    unittest.addModuleCleanup(install, "--uninstall", "--no-reload")


class VirtHooksTestCase(TestCase):
    def setUp(self):
        super().setUp()
        self.guests = {}
        self.addCleanup(lambda: [guest.remove() for guest in self.guests.values()])
        self.root = root_directory(self.directory / "root")

    def guest(self, elements="", name="web", **options):
        """Define a guest, in place of an earlier one of that name."""
        if name in self.guests:
            self.guests[name].remove()
        self.guests[name] = Guest(name, self.root, "true", elements, **options)
        return self.guests[name]

    def virt_hooks(self, *arguments, **options):
        return run([COMMAND, *arguments], **options)

    def assert_sound(self, *arguments):
        result = self.virt_hooks("check", *arguments)
        self.assertEqual((result.returncode, result.stdout, result.stderr), (0, "", ""))

    def assert_finds(self, problem, *arguments):
        """One finding, in two lines; return what to do."""
        result = self.virt_hooks("check", *arguments)
        self.assertEqual((result.returncode, result.stderr), (1, ""), result.stdout)
        first, remedy = result.stdout.splitlines()
        self.assertIn(problem, first)
        return remedy.strip()


class Checking(VirtHooksTestCase):
    def test_a_sound_host_gives_silence(self):
        data, tmp = self.directory / "data", self.directory / "tmp"
        guest = self.guest(
            f"<mkdirs><dir>{data}</dir><dir>{tmp}</dir></mkdirs>"
            f"<ramdisk><dir size='1M'>{tmp}</dir></ramdisk>"
            f"<archive><dircopy><src>{data}</src><dst>{self.directory}/archive</dst></dircopy>"
            f"</archive><post-rm-rf><dir>{data}</dir><dir>{tmp}</dir></post-rm-rf>"
            "<network-policy><nft>chain a { }</nft></network-policy>"
        )
        self.assert_sound()
        guest.start()
        self.assert_sound()
        self.assert_sound("web")
        guest.end()
        self.assert_sound()
        self.assertTrue((self.directory / "archive").exists())

    def test_what_it_refuses_libvirt_refuses_in_the_same_words(self):
        for elements in (
            "<mkdirs><dir>/srv/../srv</dir></mkdirs>",
            f"<ramdisk><dir size='64,M'>{self.directory}</dir></ramdisk>",
            "<network-policy><nft>chain a { frobnicate }</nft></network-policy>",
        ):
            with self.subTest(elements=elements):
                guest = self.guest(elements)
                result = self.virt_hooks("check", "web")
                self.assertEqual(result.returncode, 1)
                words = re.search(r"[123]0-[a-z-]+: web: .+", result.stdout).group()
                started = guest.virsh("start")
                self.assertNotEqual(started.returncode, 0)
                self.assertIn(words, started.stderr)
        self.guest()
        self.assert_sound()

    def test_what_libvirt_would_drop_and_then_drops(self):
        block = f"<mkdirs><dir>{self.directory}/data</dir></mkdirs>"
        guest = self.guest(metadata=block)  # what libvirt has is without it
        file = self.root.with_name("root.xml")
        self.assertIn("libvirt discards it", self.virt_hooks("check", file).stdout)
        self.assertNotIn("mkdirs", guest.virsh("dumpxml").stdout)
        self.guest(metadata=f'<hooks xmlns="{NAMESPACE}">{block}</hooks>')
        self.assert_sound(file)
        self.assertIn("mkdirs", guest.virsh("dumpxml").stdout)
        twice = f'<a:a xmlns:a="urn:a"/><hooks xmlns="{NAMESPACE}"/>'
        guest = self.guest(metadata=f'{twice}<hooks xmlns="{NAMESPACE}">{block}</hooks>')
        self.assertIn("the second element", self.virt_hooks("check", file).stdout)
        self.assertNotIn("mkdirs", guest.virsh("dumpxml").stdout)

    def test_a_hook_that_the_daemon_has_not_noticed(self):
        hook = HOOKS / "lxc"
        guest = self.guest(f"<mkdirs><dir>{self.directory}/data</dir></mkdirs>")
        guest.live()
        (self.directory / "data").rmdir()
        self.addCleanup(install)
        install("--uninstall")
        wait_until(lambda: guest.virsh("start").returncode == 0)  # when it has looked
        guest.end()
        install("--no-reload")
        guest.live()
        self.assertFalse((self.directory / "data").exists())
        remedy = self.assert_finds(f"was started before {hook} was installed", "web")
        self.assertRegex(remedy, r"kill -HUP \d+")
        install()
        self.assert_sound()

        def called():
            guest.live()
            return (self.directory / "data").exists()

        wait_until(called)
        install()  # another run tells it again, and forgets nothing
        self.assert_sound()

    def test_the_remedy_for_a_guest_mends_it(self):
        self.guest("<mkdir><dir>/srv</dir></mkdir>", name="it's")
        remedy = self.assert_finds("<mkdir>: no installed script reads it")
        command = shlex.split(remedy)
        self.assertEqual(command[0], "virt-hooks")
        environment = {**os.environ, "EDITOR": "sed -i s/mkdir/mkdirs/"}
        self.assert_succeeds(run([COMMAND, *command[1:]], env=environment))
        self.assert_sound()

    def test_guests_of_any_name(self):
        for name in ODD_NAMES:
            self.guest("<mkdirs><dir>srv</dir></mkdirs>", name=name)
        result = self.virt_hooks("check")
        self.assertEqual((result.returncode, result.stderr), (1, ""))
        for name in ODD_NAMES:
            self.assertIn(f"\nlxc {name}: 10-mkdirs: {name}: ", f"\n{result.stdout}")
        self.assertEqual(result.stdout.count("10-mkdirs"), len(ODD_NAMES))
        for name in ODD_NAMES[:3]:
            one = self.virt_hooks("check", "--", name)
            self.assertEqual(one.stdout.count("10-mkdirs"), 1)

    def test_a_hundred_guests(self):
        text = self.guest(f"<mkdirs><dir>{self.directory}/data</dir></mkdirs>").virsh("dumpxml")
        for number in range(100):
            one = re.sub("<uuid>.*</uuid>", "", text.stdout).replace(">web<", f">web{number}<")
            if number == 57:
                one = one.replace(f">{self.directory}/data<", ">data<")
            self.write(f"{number}.xml", one)
        defining = [f"define {self.directory}/{number}.xml" for number in range(100)]
        self.addCleanup(virsh, "; ".join(f"undefine web{number}" for number in range(100)))
        self.assertEqual(virsh("; ".join(defining)).returncode, 0)
        self.assert_finds("lxc web57: 10-mkdirs: web57: ")

    def test_networks_are_looked_at_where_they_have_a_hook(self):
        install("--no-reload", "--driver", "network")
        self.addCleanup(install, "--no-reload", "--uninstall", "--driver", "network")
        (HOOKS / "network_start_begin_-.d").mkdir()
        self.addCleanup(shutil.rmtree, HOOKS / "network_start_begin_-.d")
        mkdirs = CHECKOUT / "lxc_prepare_begin_-.d/10-mkdirs"
        shutil.copy(mkdirs, HOOKS / "network_start_begin_-.d")
        hooks = f'<hooks xmlns="{NAMESPACE}"><mkdirs><dir>{{}}</dir></mkdirs></hooks>'
        xml = f"<network><name>net one</name><metadata>{hooks}</metadata></network>"
        connect = ("virsh", "-c", "network:///system")
        for path, sound in (("srv", False), (f"{self.directory}/data", True)):
            file = self.write("net.xml", xml.format(path))
            result = run([*connect, "net-define", file])
            self.assertEqual(result.returncode, 0, result.stderr)
            result = self.virt_hooks("check", "--json", "net one")
            self.assertEqual("10-mkdirs: net one: " not in result.stdout, sound, result.stdout)
            run([*connect, "net-undefine", "net one"], check=True)

    def test_without_libvirtd_it_could_not_look(self):
        result = self.virt_hooks("check", "--connect", "lxc+unix:///system?socket=/run/none")
        self.assertEqual((result.returncode, result.stdout), (2, ""))
        self.assertRegex(result.stderr, r"\Avirt-hooks: lxc: virsh: [^\n]+\n\Z")

    def test_a_policy_that_somebody_has_flushed(self):
        guest = self.guest("<network-policy><nft>chain a { }</nft></network-policy>")
        self.assert_sound()
        guest.start()
        self.assert_sound()
        run(["nft", "flush", "ruleset"], check=True)
        for arguments in ([], ["web"]):
            remedy = self.assert_finds("virt-hooks-", *arguments)
            self.assertIn("replay", remedy)
        command = shlex.split(remedy)
        self.assert_succeeds_silently(run([COMMAND, *command[1:]]))
        self.assert_sound()
        guest.end()
        self.assert_sound()

    def assert_succeeds_silently(self, result):
        self.assertEqual((result.returncode, result.stderr), (0, ""))


class Stuck(VirtHooksTestCase):
    """libvirt waits for a hook, and whoever asks libvirt waits, too."""

    def hanging(self, path, text="sleep 1000"):
        """Start the guest web, whose hook hangs; return the process of virsh and the script's."""
        pid = self.directory / "pid"
        begin = f"#!/bin/sh\n[ ! -e {pid} ] || exit 0\necho $$ >{pid}.new; mv {pid}.new {pid}\n"
        script = put_hook(self, path, f"{begin}{text}\n")
        self.guest()
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        starting = subprocess.Popen(["virsh", "-c", LXC, "start", "web"], **pipes)
        self.addCleanup(starting.stderr.close)
        self.addCleanup(starting.wait)
        wait_until(pid.exists)
        script_pid = int(pid.read_text())
        self.addCleanup(self.end, script_pid)
        return starting, script, script_pid

    def end(self, pid):
        """End a script that hangs, and what it runs, unless it has ended."""
        run(["pkill", "-KILL", "-P", str(pid)])
        if os.path.exists(f"/proc/{pid}"):
            os.kill(pid, signal.SIGKILL)

    def asked(self, *commands):
        """What several calls of virt-hooks say, which run at the same time."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        running = [subprocess.Popen([COMMAND, *words], **pipes) for words in commands]
        results = [(*process.communicate(timeout=60), process.returncode) for process in running]
        return results

    def test_every_command_says_what_libvirt_waits_for(self):
        install("--driver", "lxc", "--driver", "qemu")
        self.addCleanup(install, "--no-reload", "--uninstall", "--driver", "qemu")
        for number in range(3):
            self.guest(name=f"other{number}")
        put_hook(self, "lxc_prepare_begin_-.d/other/10-x", "#!/bin/sh\n")
        broken = put_hook(self, "lxc_prepare_begin_-.d/60-x", "#!/opt/nope\n")
        starting, script, pid = self.hanging("lxc_prepare_begin_-.d/50-hang")
        commands = ("check", "check web", "list web", "list", "replay web prepare", "metadata web")
        for words, result in zip(commands, self.asked(*map(str.split, commands))):
            out, err, status = result
            with self.subTest(words=words):
                self.assertEqual(status, 2, (out, err))
                self.assertEqual(err.count("\n"), 1, err)
                self.assertIn("libvirt", err)
                first, remedy = out.splitlines()[:2]
                for part in ("lxc web: ", str(script), f"process {pid})", "prepare begin -"):
                    self.assertIn(part, first)
                self.assertIn(f"kill -- -{pid} ", remedy)
                self.assertIn(f"{script.parent}/timeout", remedy)
                self.assertEqual(f"{broken}: it cannot start" in out, "check" in words)
                self.assertEqual("    10-mkdirs" in out, "list" in words)
        found = json.loads(self.virt_hooks("check", "--json").stdout)
        self.assertEqual(found["findings"][0]["guest"], "web")
        self.assertEqual(len(found["failures"]), 1)
        run(["sh", "-c", f"kill -- -{pid}"], check=True)
        self.assertIn("50-hang: killed by signal 15", starting.stderr.read())
        broken.unlink()
        self.assert_sound("web")

    def test_what_a_script_has_become_and_what_is_no_hook(self):
        hook = f"{HOOKS}/lxc"
        others = [subprocess.Popen(["tail", "-f", hook], stdout=subprocess.DEVNULL)]
        others += [subprocess.Popen(["sh", "-c", "sleep 1000", hook, "db", "start", "begin", "-"])]
        for process in others:
            self.addCleanup(process.wait)
            self.addCleanup(process.kill)
        _starting, script, pid = self.hanging("lxc_start_begin_-.d/50-hang", "exec sleep 1000")
        out = self.virt_hooks("check").stdout
        self.assertIn(f"lxc web: libvirt waits for sleep 1000 (process {pid}) in start", out)
        self.assertIn(f"{script.parent}/timeout", out)
        self.assertEqual(out.count("libvirt waits for"), 1, out)

    def test_a_run_that_waits_for_an_earlier_one_of_the_guest(self):
        pid = self.directory / "pid"
        text = f"#!/bin/sh\necho $$ >{pid}.new; mv {pid}.new {pid}\nsleep 1000\n"
        script = put_hook(self, "lxc_release_end_-.d/50-hang", text)
        put_hook(self, "lxc_prepare_begin_-.d/10-x", "#!/bin/sh\n")  # without one it waits for none
        self.guest()
        hook = [f"{HOOKS}/lxc", "web", "release", "end", shutoff_reason("destroyed")]
        xml = virsh("dumpxml", "web").stdout
        earlier = subprocess.Popen(hook, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.addCleanup(earlier.wait)
        earlier.stdin.write(xml.encode())
        earlier.stdin.close()
        wait_until(pid.exists)
        starting = subprocess.Popen(["virsh", "-c", LXC, "start", "web"], stdout=subprocess.DEVNULL)
        self.addCleanup(starting.wait)
        self.addCleanup(self.end, int(pid.read_text()))  # before anybody waits for what it holds up
        wait_until(lambda: run(["pgrep", "-f", f"{HOOKS}/lxc web prepare begin -$"]).stdout)
        shown = self.virt_hooks("check").stdout
        self.assertEqual(shown.count("libvirt waits for"), 1, shown)
        self.assertIn(
            f"lxc web: libvirt waits for {script} (process {pid.read_text().strip()})", shown
        )
        run(["sh", "-c", re.search(r"kill -- -[0-9]+", shown).group()], check=True)
        self.assertEqual(starting.wait(60), 0)
        script.unlink()

    def test_what_libvirt_runs_itself(self):
        _starting, script, pid = self.hanging("lxc.d/theirs")
        first, remedy, *_more = self.virt_hooks("check").stdout.splitlines()
        self.assertIn(f"lxc web: libvirt waits for {script} (process {pid}) in prepare", first)
        self.assertIn(f"kill {pid} ", remedy)
        self.assertNotIn("timeout", remedy)


class Agreeing(VirtHooksTestCase):
    """list and replay say what libvirtd's own call then does."""

    def test_list_has_what_libvirtd_then_runs_in_that_order(self):
        records = self.directory / "records"
        text = RECORDER.format(hooks=HOOKS, records=records)
        for path in (
            *("lxc_prepare_begin_-.d/9-z", "lxc_prepare_begin_-.d/10-b"),
            *("lxc_prepare_begin_-.d/web/15-c", "lxc_prepare_begin_-.d/web/9-a"),
            *("lxc_prepare_begin_-.d/db/16-d", "lxc_started_begin_-.d/00-e"),
            *("lxc_stopped_end_-.d/50-f", "lxc_release_end_-.d/50-g"),
            *("lxc_release_end_shutdown.d/40-h", "lxc_release_end_crashed.d/45-i"),
        ):
            put_hook(self, path, text)
        put_hook(self, "lxc_prepare_begin_-.d/50-off", text, 0o644)
        put_hook(self, "lxc_prepare_begin_-.d/50-old.bak", text)
        guest = self.guest()
        guest.live()
        ran = records.read_text().splitlines()
        listed, operation = [], ""
        for line in self.virt_hooks("list", "web").stdout.splitlines():
            if re.match(r"  \S", line):
                operation = line.split()[0]
                last = "-" if line.endswith("any reason") else line.split()[-1]
                if operation == "release" and last != shutoff_reason("shutdown"):
                    operation = "another"
            elif re.match(r"    (web/)?\d+-[a-z]( |$)", line):
                listed.append(f"{operation} {line.split()[0]}")
        self.assertEqual([line for line in listed if not line.startswith("another")], ran)
        replayed = self.directory / "records"
        replayed.unlink()
        self.assert_succeeds(self.virt_hooks("replay", "--lifecycle", "web"))
        self.assertEqual(replayed.read_text().splitlines(), ran)

    def test_replay_gives_scripts_what_libvirtd_gives_them(self):
        records = self.directory / "records"
        put_hook(
            self, "lxc_prepare_begin_-.d/50-record", RECORDER.format(hooks=HOOKS, records=records)
        )
        arguments, xml = (self.directory / f"records.{name}" for name in ("arguments", "xml"))
        guest = self.guest("<mkdirs/>", name="vm one")
        guest.live()
        given = arguments.read_text(), xml.read_text()
        arguments.unlink()
        self.assert_succeeds(self.virt_hooks("replay", "vm one", "prepare"))
        self.assertEqual(arguments.read_text(), given[0])
        self.assertEqual(arguments.read_text(), "vm one prepare begin - ")
        uuid, metadata = r"<uuid>.*</uuid>", r"(?s)<metadata>.*</metadata>"
        for part in (uuid, metadata):
            replayed = re.search(part, xml.read_text()).group()
            self.assertEqual(replayed, re.search(part, given[1]).group())

    def test_a_dry_run_of_a_guests_life_leaves_no_trace(self):
        self.guest(f"<mkdirs><dir>{self.directory}/data</dir></mkdirs>")
        result = self.virt_hooks("replay", "--dry-run", "--lifecycle", "web")
        self.assert_succeeds(result)
        self.assertIn(f"{self.directory}/data", result.stdout)
        self.assertFalse((self.directory / "data").exists())


class Metadata(VirtHooksTestCase):
    def metadata(self, *arguments, **options):
        return self.virt_hooks("metadata", *arguments, **options)

    def test_it_is_set_shown_and_edited(self):
        guest = self.guest()
        result = self.metadata("web")
        self.assertEqual((result.returncode, result.stdout), (1, ""))
        self.assertIn("has no <hooks>", result.stderr)
        for form in (
            "<hooks><!-- why --><mkdirs><dir>{}/a</dir></mkdirs></hooks>",
            f'<hooks xmlns="{NAMESPACE}"><mkdirs><dir>{{}}/a</dir></mkdirs></hooks>',
            f'<h:hooks xmlns:h="{NAMESPACE}"><h:mkdirs><h:dir>{{}}/a</h:dir></h:mkdirs></h:hooks>',
        ):
            text = form.format(self.directory)
            self.assert_succeeds(self.metadata("--set", "-", "web", input=text))
            shown = self.metadata("--get", "web").stdout
            shown = re.sub(r"(?<=>)\s+", "", shown).replace("<!-- why -->", "")
            block = f"<mkdirs><dir>{self.directory}/a</dir></mkdirs></hooks>"
            self.assertEqual(shown, f'<hooks xmlns="{NAMESPACE}">{block}')
        environment = {**os.environ, "EDITOR": "sed -i s,/a<,/b<,"}
        self.assert_succeeds(self.metadata("--edit", "web", env=environment))
        self.assertIn(f"<dir>{self.directory}/b</dir>", self.metadata("web").stdout)
        guest.live()
        self.assertTrue((self.directory / "b").is_dir())

    def test_what_it_prints_can_be_pasted_into_virsh_edit(self):
        self.guest(f"<mkdirs><dir>{self.directory}/a</dir></mkdirs>")
        block = self.metadata("web").stdout
        guest = self.guest()
        paste = f"/<metadata/d\n/<memory/i<metadata>{block.strip().replace(chr(10), '')}</metadata>"
        editor = self.write("editor", '#!/bin/sh\nsed -i "$(cat "$0.sed")" "$1"\n', 0o755)
        self.write("editor.sed", paste)
        environment = {**os.environ, "VISUAL": str(editor)}
        result = run(["virsh", "-c", "lxc:///", "edit", "web"], env=environment)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(self.metadata("web").stdout, block)
        guest.live()
        self.assertTrue((self.directory / "a").is_dir())

    def test_guests_of_any_name(self):
        for name in ODD_NAMES[:3]:
            self.guest(name=name)
            text = "<hooks><mkdirs><dir>/srv/é</dir></mkdirs></hooks>"
            self.assert_succeeds(self.metadata("--set", "-", "--", name, input=text))
            self.assertIn("<dir>/srv/é</dir>", self.metadata("--", name).stdout)

    def test_what_is_wrong_never_reaches_libvirt(self):
        block = f"<hooks><mkdirs><dir>{self.directory}/a</dir></mkdirs></hooks>"
        self.guest()
        self.assert_succeeds(self.metadata("--set", "-", "web", input=block))
        before = self.metadata("web").stdout
        for text, status, part in (
            ("<hooks><mkdirs><dir>srv</dir></mkdirs></hooks>", 1, "mkdirs/dir 'srv'"),
            ("<hooks><mkdir/></hooks>", 1, "<mkdirs>?"),
            ("<hooks><mkdirs></hooks>", 2, "mismatched tag"),
            ("<hook/>", 2, "<hooks>"),
            ("<hooks xmlns='urn:virt-hooks:2'/>", 2, "urn:virt-hooks:1"),
            ("", 2, "<hooks>"),
        ):
            with self.subTest(text=text):
                file = self.write("block.xml", text)
                result = self.metadata("--set", file, "web")
                self.assertEqual(result.returncode, status)
                self.assertIn(part, result.stdout + result.stderr)
                self.assertNotIn("Traceback", result.stderr)
                environment = {**os.environ, "EDITOR": f"cp {file}"}
                result = self.metadata("--edit", "web", env=environment)
                self.assertEqual(result.returncode, status)
                kept = re.search(r"your text is in (\S+):", result.stderr).group(1)
                self.assertEqual(open(kept).read(), text)
                self.assertIn(f"virt-hooks metadata --set {kept} web", result.stderr)
                os.unlink(kept)
                self.assertEqual(self.metadata("web").stdout, before)

    def test_an_editor_that_changes_nothing_or_fails(self):
        guest = self.guest("<mkdirs/>")
        before = guest.virsh("dumpxml").stdout
        self.assert_succeeds(self.metadata("--edit", "web", env={**os.environ, "EDITOR": "true"}))
        for editor in ("false", "/opt/none"):
            result = self.metadata("--edit", "web", env={**os.environ, "EDITOR": editor})
            self.assertEqual((result.returncode, result.stderr.count("\n")), (2, 1))
            self.assertIn(editor, result.stderr)
            self.assertEqual(list(Path("/tmp").glob("virt-hooks-*.xml")), [])
        self.assertEqual(guest.virsh("dumpxml").stdout, before)

    def test_a_guest_that_runs_keeps_what_it_has_until_the_next_start(self):
        def block(name):
            return f"<hooks><post-rm-rf><dir>{self.directory}/{name}</dir></post-rm-rf></hooks>"

        guest = self.guest(block("now")[7:-8])
        for name in ("now", "later"):
            (self.directory / name).mkdir()
        guest.start()
        result = self.metadata("--set", "-", "web", input=block("later"))
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("is running", result.stdout)
        self.assertIn("/now<", guest.virsh("dumpxml").stdout)
        self.assertIn("/later<", self.metadata("web").stdout)
        guest.end()
        self.assertFalse((self.directory / "now").exists())
        self.assertTrue((self.directory / "later").exists())
        result = self.metadata("--set", "-", "web", input=block("later"))
        self.assertNotIn("is running", result.stdout)
        guest.live()
        self.assertFalse((self.directory / "later").exists())


class Making(VirtHooksTestCase):
    """What new prints works in the order in which it is printed."""

    def follow(self, *arguments, name):
        """Do what new prints, as root would, line by line; return the path of the script."""
        result = self.virt_hooks("new", *arguments)
        self.assert_succeeds(result)
        for path in re.findall(r"(?m)^made (\S+/50-[a-z-]+)", result.stdout):
            self.addCleanup(os.unlink, path)
        lines = result.stdout.splitlines()
        script = next(line.split()[-1] for line in lines if "chmod" in line)
        element = re.search(r"put (<.+>) into", lines[-2]).group(1).partition(" into")[0]
        editor = self.write("editor", '#!/bin/sh\nsed -i "$(cat "$0.sed")" "$1"\n', 0o755)
        metadata = f'<metadata><hooks xmlns="{NAMESPACE}">{element}</hooks></metadata>'
        self.write("editor.sed", f"s|</hooks>|{element}&|\ns|</network>|{metadata}&|")
        environment = {**os.environ, "VISUAL": str(editor)}
        for line in (line for line in lines if line.startswith("    ")):
            command = re.sub("GUEST|NETWORK", name, line)
            result = run(["sh", "-euc", command], env=environment)
            self.assertEqual((result.returncode, result.stderr), (0, ""), command)
        return Path(script)

    def state(self, script, xml):
        """Where a new script keeps what it has done for a guest."""
        uuid = re.search("<uuid>(.*)</uuid>", xml).group(1)
        return Path(f"/run/virt-hooks/{script.name.removeprefix('50-')}-{uuid}")

    def test_a_script_for_two_phases_of_a_guest(self):
        for language, elements in (("sh", ""), ("python", "<mkdirs><dir>/srv/a</dir></mkdirs>")):
            with self.subTest(language=language):
                guest = self.guest(elements)
                words = ("--language", language, "lxc", "prepare,release", f"isolate-{language}")
                state = self.state(
                    self.follow(*words, name="web"), guest.virsh("dumpxml", "--inactive").stdout
                )
                self.assertEqual(
                    "<mkdirs>" in self.virt_hooks("metadata", "web").stdout, elements != ""
                )
                self.assert_sound("web")
                self.assertFalse(state.exists())
                guest.start()
                self.assertEqual(state.read_text(), "some text\n")
                guest.end()
                self.assertFalse(state.exists())

    def test_a_script_for_two_phases_of_a_network(self):
        install("--driver", "network")
        self.addCleanup(install, "--no-reload", "--uninstall", "--driver", "network")
        file = self.write("net.xml", "<network><name>lan</name><bridge name='virbr7'/></network>")
        connect = ("virsh", "-c", "network:///system")
        run([*connect, "net-define", file], check=True)
        self.addCleanup(run, [*connect, "net-undefine", "lan"])
        words = ("network", "started,stopped", "say-network")
        for directory in ("network_started_begin_-.d", "network_stopped_end_-.d"):
            self.addCleanup(os.rmdir, HOOKS / directory)
        script = self.follow(*words, name="lan")
        state = self.state(script, run([*connect, "net-dumpxml", "lan"]).stdout)
        self.addCleanup(run, [*connect, "net-destroy", "lan"])

        def called():
            run([*connect, "net-start", "lan"], check=True)
            done = state.exists()
            run([*connect, "net-destroy", "lan"], check=True)
            return done

        wait_until(called)  # when libvirtd has noticed the hook
        self.assertFalse(state.exists())


class Completing(VirtHooksTestCase):
    def test_guests_are_completed_whatever_their_names(self):
        for name in ("web", "vm one", "it's"):
            self.guest(name=name)
        program = '. "$1"; COMP_WORDS=("$2" check "") COMP_CWORD=2; _virt_hooks; '
        program += "printf '%s\\n' \"${COMPREPLY[@]}\""
        place = "/usr/local/share/bash-completion/completions/virt-hooks"
        result = run(["bash", "-c", program, "bash", place, COMMAND])
        self.assertEqual(result.stderr, "")
        self.assertEqual(set(shlex.split(result.stdout)), {"web", "vm one", "it's"})
