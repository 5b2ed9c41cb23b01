"""The README's commands work as they stand there, in their order, on a host with libvirtd."""

import os
import re
import shutil
import unittest
from pathlib import Path

from harness import CHECKOUT, run
from libvirt import HOOKS, start_libvirtd, virsh
from scripts import ScriptCase, guest_xml

README = (CHECKOUT / "README.md").read_text()
# We are root: "sudo NAME=VALUE COMMAND" as sudo does it. tests/run has installed the packages.
SHELL = 'set -eu\nsudo() { [ "$1" = apt-get ] || env "$@"; }\n'
TRIED = [
    "Install",
    "A hook that you have already",
    "An example",
    "The elements",
    "A script of your own",
    "Jobs",
    "When something fails",
]


def sections():
    """{heading: the text below it, up to the next heading}."""
    parts = re.split(r"^##+ (.*)\n", README, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


def blocks(heading, language="sh"):
    """The blocks of a language in a section."""
    fenced = rf"^```{language}\n(.*?)^```$"
    return re.findall(fenced, sections()[heading], re.MULTILINE | re.DOTALL)


class Readme(ScriptCase):
    def run_section(self, heading, number=None):
        """Run the commands of a section, or of one block of it; return what they have printed."""
        environment = {**os.environ, "OLDPWD": str(CHECKOUT), "EDITOR": "true"}
        found = blocks(heading) if number is None else [blocks(heading)[number]]
        commands = SHELL + "".join(found)
        result = run(["sh", "-c", commands], cwd=CHECKOUT, env=environment)
        self.assertEqual(result.returncode, 0, f"{commands}{result.stdout}{result.stderr}")
        return result.stdout

    def test_all_sections_that_have_commands_are_tried(self):
        self.assertEqual([heading for heading in sections() if blocks(heading)], TRIED)

    def test_the_commands_work_one_after_the_other(self):
        for directory in ("/srv/web", "/srv/golden", "/srv/archive", HOOKS):
            self.addCleanup(shutil.rmtree, directory, ignore_errors=True)
        start_libvirtd(self.addCleanup)
        self.run_section("Install")
        printed = self.run_section("An example")
        self.addCleanup(virsh, "undefine", "web")
        for text in ("virt-hooks", "It works.", "greetings"):  # of findmnt, cat and ls
            self.assertIn(text, printed)
        self.assertEqual(os.listdir("/srv/web"), ["rootfs"])

        self.assertEqual(self.run_section("The elements"), "")
        self.run_section("A script of your own")
        made = HOOKS / "lxc_prepare_begin_-.d/50-open-vpn"
        self.assertFalse(os.access(made, os.X_OK))
        self.assertTrue((HOOKS / "lxc_release_end_-.d/50-open-vpn").samefile(made))
        self.run_section("Jobs")
        self.need_mount_works()

        printed = self.run_section("When something fails")
        self.assertRegex(printed, "10-mkdirs(.*\n)+.*would make /srv/web/log")

    def need_mount_works(self):
        """The example is installed, and keeps a guest from starting."""

        def prepare(directory):
            xml = guest_xml(f"<need-mount><dir>{directory}</dir></need-mount>")
            return run([HOOKS / "lxc", "web", "prepare", "begin", "-"], input=xml)

        refused = prepare(self.directory)
        self.assert_error(refused, "05-need-mount", name="virt-hooks", programs_said=True)
        self.assertIn(f"need-mount/dir '{self.directory}'", refused.stderr)
        self.assert_succeeds(prepare("/srv"))

    def test_it_names_every_example(self):
        for path in (CHECKOUT / "examples").glob("[0-9]*"):
            self.assertIn(f"`{path.name}`", sections()["Jobs"])

    def make_hooks(self, hook):
        """A hooks directory with a hook of the administrator's for QEMU."""
        self.addCleanup(shutil.rmtree, HOOKS, ignore_errors=True)
        HOOKS.mkdir()
        (HOOKS / "qemu").write_text(hook)
        (HOOKS / "qemu").chmod(0o755)

    def live(self, guest="vm"):
        """Call the hook for each phase of a guest's life."""
        for phase in ("prepare begin -", "start begin -", "started begin -", "stopped end -",
                      "release end shutdown"):  # fmt: skip
            command = [HOOKS / "qemu", guest, *phase.split()]
            self.assert_succeeds(run(command, input=guest_xml("", guest)))

    def test_a_hook_of_before_goes_on_with_its_name_and_with_the_files_that_it_reads(self):
        for beside in ((), ("hooks.json",), ("hooks.json", "qemu.d")):
            with self.subTest(beside=beside):
                records = self.directory / "records"
                self.make_hooks(f"""#!/bin/sh
[ "${{0##*/}}" = qemu ] || exit 1
cd "${{0%/*}}" || exit 1
for file in hooks.json qemu.d/vm/data; do [ ! -e "$file" ] || cat "$file" >>{records}; done
echo "$*" >>{records}
""")
                expected = []
                if "hooks.json" in beside:
                    (HOOKS / "hooks.json").write_text("settings\n")
                    expected.append("settings")
                if "qemu.d" in beside:
                    (HOOKS / "qemu.d/vm").mkdir(parents=True)
                    (HOOKS / "qemu.d/vm/data").write_text("tree\n")
                    expected.append("tree")
                self.run_section("A hook that you have already", 0)
                self.live()
                lines = records.read_text().splitlines()
                phases = ("prepare begin -", "start begin -", "started begin -", "stopped end -",
                          "release end shutdown")  # fmt: skip
                calls = [line for phase in phases for line in (*expected, f"vm {phase}")]
                self.assertEqual(lines, calls)
                records.unlink()
                shutil.rmtree(HOOKS)

    def test_what_it_shows_of_the_metadata_the_scripts_accept(self):
        (metadata,) = blocks("The elements", "xml")
        uuid = "<uuid>00000000-0000-4000-8000-000000000000</uuid>"
        xml = f"<domain type='lxc'><name>web</name>{uuid}{metadata}</domain>"
        Path("/srv/golden/web").mkdir(parents=True)
        self.addCleanup(shutil.rmtree, "/srv/golden")
        for name in ("10-mkdirs", "20-ramdisk", "30-preload", "20-network-policy", "10-archive",
                     "30-post-rm-rf"):  # fmt: skip
            with self.subTest(script=name):
                self.assert_succeeds(self.call(xml, name=name, dry_run=True))


if __name__ == "__main__":
    unittest.main()
