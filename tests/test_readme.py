"""The README's commands work as they stand there, in their order, on a host with libvirtd."""

import os
import re
import unittest

from harness import CHECKOUT, TestCase, domain, run
from libvirt import HOOKS, start_libvirtd, virsh

README = (CHECKOUT / "README.md").read_text()
SUDO = 'set -eu\nsudo() { env "$@"; }\n'  # we are root; "sudo NAME=VALUE COMMAND" as sudo does it


def blocks(heading):
    """The blocks of shell commands in the section of a heading."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


class Readme(TestCase):
    def shell(self, commands):
        environment = {**os.environ, "OLDPWD": str(CHECKOUT)}
        result = run(["sh", "-c", SUDO + commands], cwd=CHECKOUT, env=environment)
        self.assertEqual(result.returncode, 0, f"{commands}\n{result.stdout}{result.stderr}")
        return result

    def test_the_commands_of_each_section_work_one_after_the_other(self):
        self.addCleanup(run, ["rm", "-rf", "/srv/web", "/srv/golden", "/srv/archive", HOOKS])
        demo = blocks("Two commands")[0].splitlines()[0]
        self.shell(demo)
        start_libvirtd(self.addCleanup)
        for command in blocks("Installing"):
            self.shell(command)
        prepare, live = blocks("A guest that uses it")
        self.shell(prepare)
        result = self.shell(live)
        self.assertIn("virt-hooks", result.stdout)  # findmnt
        self.assertIn("It works.", result.stdout)
        self.assertIn("greetings", result.stdout)

        for command in blocks("Every driver"):
            self.shell(command)
        for script in ("10-routing-table", "20-network-policy"):
            self.assertTrue((HOOKS / "network_stopped_end_-.d" / script).is_file())

        for command in blocks("A script of your own"):
            self.shell(command)
        self.own_scripts_work()

        command, alone = blocks("By hand")
        played = self.shell(command).stdout
        self.assertRegex(played, "10-mkdirs: .*/srv/web/log")
        self.assertIn("05-need-mount", played)  # which is not run: it knows no dry run
        self.assertTrue(self.shell(alone).stdout)

        (metadata,) = blocks("The metadata")
        self.shell(metadata)
        self.assertNotIn("post-rm-rf", virsh("dumpxml", "web").stdout)
        (check,) = blocks("When nothing happens")
        self.assertEqual(self.shell(check).stdout, "")
        virsh("undefine", "web")

    def own_scripts_work(self):
        ready = self.directory / "ready"
        both = f"<need-mount><dir>%s</dir></need-mount><wait-for seconds='1'>{ready}</wait-for>"

        def prepare(mount_point):
            command = [HOOKS / "lxc", "web", "prepare", "begin", "-"]
            return run(command, input=domain(both % mount_point))

        result = prepare(self.directory)
        self.assert_one_line_error(result, "need-mount", str(self.directory))
        result = prepare("/srv")
        self.assert_one_line_error(result, "wait-for", str(ready))
        ready.touch()
        self.assert_succeeds(prepare("/srv"))

    def test_what_it_says_of_the_metadata_the_scripts_accept(self):
        section = README.split("\n## The metadata\n")[1]
        metadata = re.search(r"^```xml\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)[1]
        xml = f"<domain><name>web</name>{metadata}</domain>".replace('group="adm"', 'group="4"')
        for name in ("10-mkdirs", "20-ramdisk", "10-archive", "30-post-rm-rf"):
            with self.subTest(name):
                result = self.run_script(name, xml, dry_run=True)
                self.assert_succeeds(result)


if __name__ == "__main__":
    unittest.main()
