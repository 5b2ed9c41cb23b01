"""How the scripts are laid out: each one file, which ends in the text that all have in common."""

import ast
import os
import shutil
import unittest

from harness import CHECKOUT, LINKS, SCRIPTS, run, script
from scripts import ScriptCase, guest_xml

FIRST_LINE = "#!/usr/bin/python3 -IS"
DISPATCHERS_FIRST_LINE = "#!/usr/bin/env -S /usr/bin/python3 -IS"
HEADING = "# --- The same in every script, from here to the end ---"
COMMON_LINES = 170
LINES = {
    "10-mkdirs": 230,
    "20-ramdisk": 300,
    "30-preload": 260,
    "10-routing-table": 325,
    "20-network-policy": 235,
    "10-archive": 340,
    "30-post-rm-rf": 250,
}
DISPATCHER_LINES = 290


def lines(name):
    return script(name).read_text().splitlines()


def element(name):
    return name.partition("-")[2]


class Common(ScriptCase):
    def test_every_program_begins_with_the_isolated_interpreter_and_is_executable(self):
        first_lines = {CHECKOUT / "hooks/lxc": DISPATCHERS_FIRST_LINE}
        first_lines |= {script(name): FIRST_LINE for name in SCRIPTS}
        for path, first_line in first_lines.items():
            with self.subTest(path.name):
                self.assertEqual(path.read_text().split("\n")[0], first_line)
                self.assertEqual(path.stat().st_mode & 0o111, 0o111)

    def test_every_scripts_second_line_names_its_element_and_a_docstring_follows(self):
        for name in SCRIPTS:
            with self.subTest(name):
                self.assertEqual(lines(name)[1], f"# element: {element(name)}")
                text = ast.get_docstring(ast.parse(script(name).read_text())) or ""
                self.assertIn(f"<{element(name)}", text)
                self.assertIn(SCRIPTS[name].split("_")[1], text)  # its phase

    def test_every_script_ends_in_the_same_text_after_the_same_heading(self):
        texts = {}
        for name in SCRIPTS:
            own, heading, common = script(name).read_bytes().partition(f"\n{HEADING}\n".encode())
            self.assertTrue(own and heading, f"{name} has no heading")
            texts.setdefault(common, []).append(name)
            self.assertLessEqual(common.count(b"\n"), COMMON_LINES, name)
        self.assertEqual(len(texts), 1, list(texts.values()))

    def test_no_program_is_longer_than_it_may_be(self):
        for name, most in LINES.items():
            with self.subTest(name):
                self.assertLessEqual(len(lines(name)), most)
        self.assertLessEqual(
            len((CHECKOUT / "hooks/lxc").read_text().splitlines()), DISPATCHER_LINES
        )

    def test_the_phase_directories_hold_the_scripts_and_nothing_else(self):
        expected = {f"{directory}/{name}" for name, directory in SCRIPTS.items()} | LINKS.keys()
        found = {str(path.relative_to(CHECKOUT)) for path in CHECKOUT.glob("lxc_*.d/*")}
        self.assertEqual(found, expected)

    def test_what_undoes_is_a_relative_link_to_what_does(self):
        for link, target in LINKS.items():
            self.assertEqual(os.readlink(CHECKOUT / link), target)
            self.assertTrue((CHECKOUT / link).samefile(script(os.path.basename(link))))

    def test_every_program_is_valid_for_python_3_9(self):
        for path in (CHECKOUT / "hooks/lxc", *map(script, SCRIPTS)):
            with self.subTest(path.name):
                ast.parse(path.read_text(), feature_version=(3, 9))

    def test_every_script_works_alone_wherever_it_is_copied(self):
        alone, modules = self.directory / "alone", self.directory / "modules"
        modules.mkdir()
        for module in ("os", "grp", "errno", "time", "sitecustomize"):
            (modules / f"{module}.py").write_text("raise SystemExit('not this one')\n")
        self.write("log/file", "text")
        (self.directory / "tmp").mkdir()
        elements = {
            "10-mkdirs": "<dir>D/new</dir>",
            "20-ramdisk": '<dir size="1M">D/tmp</dir>',
            "30-preload": "<dircopy><src>D/log</src><dst>D/copy</dst></dircopy>",
            "10-routing-table": "<rule>from 10.0.0.1</rule>",
            "20-network-policy": "<nft>chain c { }</nft>",
            "10-archive": "<dircopy><src>D/log</src><dst>D/kept</dst></dircopy>",
            "30-post-rm-rf": "<dir>D/log</dir>",
        }
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(modules)}
        for name, inside in elements.items():
            with self.subTest(name):
                alone.mkdir()
                shutil.copy(script(name), alone)
                tag = element(name)
                given = ' id="101" name="uplink"' if tag == "routing-table" else ""
                text = f"<{tag}{given}>{inside}</{tag}>".replace("D/", f"{self.directory}/")
                dry_run = {"VIRT_HOOKS_DRY_RUN": "1"} if "start" in SCRIPTS[name] else {}
                command = [alone / name, *self.command(name)[1:]]
                xml = guest_xml(text)
                result = run(command, input=xml, env=environment | dry_run, cwd=modules)
                self.assertEqual((result.returncode, result.stderr), (0, ""))
                self.assertTrue(result.stdout)
                self.assertEqual(os.listdir(alone), [name])
                shutil.rmtree(alone)
        self.assertEqual(
            sorted(os.listdir(self.directory)), ["copy", "kept", "modules", "new", "tmp"]
        )


if __name__ == "__main__":
    unittest.main()
