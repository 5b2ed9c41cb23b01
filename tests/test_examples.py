"""examples/: the scripts do what they say, and virt-hooks has nothing to say against them."""

import os
import re
import shutil
import signal
import time
from pathlib import Path

from harness import CHECKOUT, TestCase, domain, install_dispatcher, run

EXAMPLES = sorted((CHECKOUT / "examples").glob("[0-9]*"))
UUID = "11111111-2222-3333-4444-555555555555"
POOL = Path("/proc/sys/vm/nr_hugepages")


class ExamplesTestCase(TestCase):
    def setUp(self):
        super().setUp()
        self.programs = self.directory / "bin"
        self.programs.mkdir()
        self.environment = {"PATH": f"{self.programs}:{os.environ['PATH']}", "LC_ALL": "C"}

    def run_example(self, name, phase, elements, dry_run=False, guest="web"):
        memory = f"<uuid>{UUID}</uuid><memory unit='KiB'>5000</memory><metadata>"
        xml = domain(elements, guest).replace("<metadata>", memory)
        environment = {**self.environment, **({"VIRT_HOOKS_DRY_RUN": "1"} if dry_run else {})}
        command = [CHECKOUT / "examples" / name, guest, *phase.split(" ", 2)]
        return run(command, input=xml, env=environment)

    def program(self, name, text):
        """A program in place of one that this host lacks, or cannot run."""
        return self.write(f"bin/{name}", f"#!/bin/sh\n{text}\n", 0o755)

    def without(self, missing, *needed):
        """Let the scripts find these programs only."""
        for name in needed:
            (self.programs / name).symlink_to(shutil.which(name))
        self.assertFalse((self.programs / missing).exists())
        self.environment["PATH"] = str(self.programs)


class Every(ExamplesTestCase):
    def test_it_is_short_and_says_what_it_reads_and_is_for(self):
        self.assertEqual(len(EXAMPLES), 5)
        command = [CHECKOUT / "command/virt-hooks", "list", "--hooks-dir", self.directory]
        phase = self.directory / "lxc_prepare_begin_-.d"
        phase.mkdir()
        for path in EXAMPLES:
            shutil.copy(path, phase)
            self.assertIn(len(path.read_text().splitlines()), range(15, 41), path)
            line = next(s for s in run(command).stdout.splitlines() if path.name in s)
            self.assertRegex(line, rf"{path.name}  +<[a-z-]+>  +[a-z]+s .*[a-z]")

    def test_check_finds_nothing_where_it_is_installed_and_asked_for(self):
        install_dispatcher(self.directory / "lxc")
        file = self.write("web.xml", domain(
            "<need-mount><dir>/srv</dir></need-mount><allocate-hugepages/><no-sleep/>"
            '<forward-port port="8080" to="10.77.0.5:80"/><mail-crash>a@example.org</mail-crash>'
        ))  # fmt: skip
        for path in EXAMPLES:
            phase = re.search(r"\((?:phases? )?(\w+)", path.read_text()).group(1)
            phase = "release_end" if phase == "release" else f"{phase}_begin"
            directory = self.directory / f"lxc_{phase}_-.d"
            directory.mkdir(exist_ok=True)
            shutil.copy(path, directory)
        command = [CHECKOUT / "command/virt-hooks", "check", "--hooks-dir", self.directory, file]
        result = run(command)
        self.assertEqual((result.returncode, result.stdout, result.stderr), (0, "", ""))

    def test_it_leaves_guests_alone_that_have_the_word_in_another_place(self):
        for path in EXAMPLES:
            name = path.read_text().split("# element: ")[1].split()[0]
            foreign = f'<x:{name} xmlns:x="urn:other">{name}</x:{name}>'
            phase = "started begin -" if name == "no-sleep" else "prepare begin -"
            if name != "no-sleep":  # which reads no XML: its element has no contents
                self.assert_succeeds(self.run_example(path.name, phase, foreign))


class NeedMount(ExamplesTestCase):
    ELEMENTS = "<need-mount><dir>/srv</dir><dir>{}</dir></need-mount>"

    def test_a_guest_starts_only_while_its_storage_is_mounted(self):
        place = self.directory / "nfs share"
        place.mkdir()
        elements = self.ELEMENTS.format(place)
        for dry_run in (False, True):
            result = self.run_example("05-need-mount", "prepare begin -", elements, dry_run)
            self.assert_one_line_error(result, "05-need-mount", "web", "need-mount", str(place))
        run(["mount", "-t", "tmpfs", "tests", place], check=True)
        self.assert_succeeds(self.run_example("05-need-mount", "prepare begin -", elements))

    def test_it_does_not_start_where_xmllint_is_missing(self):
        self.without("xmllint", "cat", "mountpoint", "seq", "sh")
        elements = self.ELEMENTS.format("/srv")
        result = self.run_example("05-need-mount", "prepare begin -", elements)
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("xmllint", result.stderr)


class Hugepages(ExamplesTestCase):
    """With the real kernel's pool, which is the host's; it gets a few pages for a moment."""

    def setUp(self):
        super().setUp()
        self.before = int(POOL.read_text())
        POOL.write_text(f"{self.before + 8}")
        room = int(POOL.read_text()) == self.before + 8
        POOL.write_text(f"{self.before}")
        if not room:
            self.skipTest("the kernel has no room for 8 hugepages")
        self.addCleanup(POOL.write_text, f"{self.before}")
        self.addCleanup(lambda: [path.unlink() for path in Path("/run").glob("hugepages*")])

    def hugepages(self, operation, elements="<allocate-hugepages/>"):
        phase = f"{operation} {'begin -' if operation == 'prepare' else 'end shutdown'}"
        return self.run_example("20-hugepages", phase, elements)

    def test_the_guests_memory_is_allocated_and_given_back_once(self):
        for operation, more in (
            *(("prepare", 3), ("prepare", 3), ("release", 0), ("release", 0)),
            *(("prepare", 3), ("release", 0)),
        ):
            self.assert_succeeds(self.hugepages(operation))
            self.assertEqual(int(POOL.read_text()), self.before + more)  # 5,000 KiB, 2 MiB a page

    def test_pages_that_others_have_added_stay(self):
        self.assert_succeeds(self.hugepages("prepare"))
        POOL.write_text(f"{self.before + 4}")
        self.assert_succeeds(self.hugepages("release"))
        self.assertEqual(int(POOL.read_text()), self.before + 1)

    def test_a_guest_for_which_there_is_no_room_does_not_start(self):
        xml = domain("<allocate-hugepages/>").replace(
            "<metadata>", f"<uuid>{UUID}</uuid><memory>{1 << 50}</memory><metadata>"
        )
        command = [CHECKOUT / "examples/20-hugepages", "web", "prepare", "begin", "-"]
        result = run(command, input=xml)
        self.assertEqual(result.returncode, 1, result.stderr)
        self.assertEqual(int(POOL.read_text()), self.before)

    def test_a_guest_without_the_element_gets_none(self):
        self.assert_succeeds(self.hugepages("prepare", "<x>allocate-hugepages</x>"))
        self.assertEqual(int(POOL.read_text()), self.before)


class ForwardPort(ExamplesTestCase):
    ELEMENT = '<forward-port port="{}" to="10.77.0.5:80"/>'

    def forward_port(self, phase, elements, dry_run=False):
        return self.run_example("30-forward-port", phase, elements, dry_run)

    def ruleset(self):
        return run(["nft", "list", "ruleset"]).stdout

    def test_ports_are_forwarded_from_the_start_to_the_stop(self):
        before = self.ruleset()
        elements = self.ELEMENT.format(8080) + self.ELEMENT.format(8443)
        for _again in range(2):  # as after a start that failed
            self.assert_succeeds(self.forward_port("start begin -", elements))
            for port in (8080, 8443):
                self.assertEqual(self.ruleset().count(f"tcp dport {port} dnat to 10.77.0.5:80"), 1)
        for _twice in range(2):
            self.assert_succeeds(self.forward_port("stopped end -", elements))
            self.assertEqual(self.ruleset(), before)

    def test_what_nft_refuses_keeps_the_guest_from_starting(self):
        before = self.ruleset()
        for dry_run in (False, True):
            elements = self.ELEMENT.format("http!")
            result = self.forward_port("start begin -", elements, dry_run)
            self.assertEqual(result.returncode, 1)
            last = result.stderr.splitlines()[-1]
            for part in ("30-forward-port", "web", "forward-port", "http!"):
                self.assertIn(part, last)
            self.assertEqual(self.ruleset(), before)

    def test_a_dry_run_changes_nothing(self):
        before = self.ruleset()
        self.assert_succeeds(self.forward_port("start begin -", self.ELEMENT.format(80), True))
        self.assertEqual(self.ruleset(), before)


class NoSleep(ExamplesTestCase):
    """There is no systemd here: what stands for it keeps a process for each unit."""

    def setUp(self):
        super().setUp()
        self.units = self.directory / "units"
        self.units.mkdir()
        self.program("systemd-escape", 'printf "%s\\n" "$2" | tr " " _')
        self.program("systemd-inhibit", f'echo "$@" >{self.directory}/said; exec sleep 600')
        self.program(
            "systemd-run",
            f'[ "$1 $2" = "--quiet --collect" ]\nunit={self.units}/${{3#--unit=}}\nshift 3\n'
            'setsid "$@" </dev/null >/dev/null 2>&1 &\necho $! >"$unit"',
        )
        self.program(
            "systemctl",
            f"for unit; do :; done\nunit={self.units}/$unit\ncase $1 in\n"
            '--quiet) test -e "$unit" ;;\nstop) kill "$(cat "$unit")"; rm "$unit" ;;\nesac',
        )  # fmt: skip
        self.addCleanup(self.stop)

    def stop(self):
        for unit in self.units.iterdir():
            os.kill(int(unit.read_text()), signal.SIGKILL)

    def test_sleep_is_inhibited_from_started_to_stopped(self):
        for _life in range(2):
            for _again in range(2):
                self.assert_succeeds(self.no_sleep("started begin -"))
                (unit,) = self.units.iterdir()
                self.assertEqual(unit.name, "no-sleep-vm_one.service")
                process = Path(f"/proc/{unit.read_text().strip()}")
                said = self.directory / "said"
                while not said.exists():
                    time.sleep(0.01)
                self.assertIn("--what=sleep", said.read_text())
                self.assertIn("guest vm one is running", said.read_text())
                self.assertTrue(process.exists())
            for _twice in range(2):
                self.assert_succeeds(self.no_sleep("stopped end -"))
                self.assertEqual(list(self.units.iterdir()), [])

    def test_a_dry_run_does_nothing(self):
        self.assert_succeeds(self.no_sleep("started begin -", True))
        self.assertEqual(list(self.units.iterdir()), [])

    def no_sleep(self, phase, dry_run=False):
        return self.run_example("40-no-sleep", phase, "<no-sleep/>", dry_run, "vm one")


class MailCrash(ExamplesTestCase):
    ELEMENTS = "<mail-crash>a@example.org</mail-crash><mail-crash> b@example.org </mail-crash>"

    def test_a_mail_goes_to_each_address(self):
        mails = self.directory / "mails"
        self.program("sendmail", f'echo "sendmail $*" >>{mails}; cat >>{mails}')
        result = self.run_example("50-mail-crash", "release end crashed", self.ELEMENTS, True)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertFalse(mails.exists())
        self.assert_succeeds(
            self.run_example("50-mail-crash", "release end crashed", self.ELEMENTS)
        )
        text = mails.read_text()
        self.assertEqual(text.count("sendmail -t\n"), 2)
        for line in ("To: a@example.org\n", "To: b@example.org\n", "Subject: guest web has "):
            self.assertIn(line, text)

    def test_a_mail_that_cannot_be_sent_is_an_error(self):
        self.program("sendmail", "cat >/dev/null; exit 75")
        result = self.run_example("50-mail-crash", "release end crashed", self.ELEMENTS)
        self.assert_one_line_error(result, "50-mail-crash", "web", "mail-crash", "a@example.org")

    def test_it_says_so_where_xmllint_is_missing(self):
        self.without("xmllint", "cat", "seq", "sh", "uname")
        result = self.run_example("50-mail-crash", "release end crashed", self.ELEMENTS)
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("xmllint", result.stderr)
