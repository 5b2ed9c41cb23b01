"""How the scripts are laid out: each one file, which ends in the text that all have in common."""

import ast
import importlib
import os
import shutil
import subprocess
import unittest

from harness import CHECKOUT, LINKS, SCRIPTS, run, script
from scripts import ScriptCase, guest_xml

FIRST_LINE = "#!/usr/bin/python3 -IS"
DISPATCHERS_FIRST_LINE = "#!/usr/bin/env -S /usr/bin/python3 -IS"
HEADING = "# --- The same in every script, from here to the end ---"
COMMON_LINES = 160
MOST_LINES = 375
OF_ITS_OWN = ("main", "validate")  # functions that are another thing in each script
DISPATCHER_LINES = 306
COMPLAINER = """
import sys
for _ in range(1 << 10):
    sys.stderr.write("x" * (1 << 17))
sys.exit(3)
"""


def lines(name):
    return script(name).read_text().splitlines()


def parts(name):
    """A script's own text, and the text that is the same in every script."""
    own, heading, common = script(name).read_text().partition(f"\n{HEADING}\n")
    if not heading:
        raise ValueError(f"{name} has no heading")
    return own, common


def functions(name):
    """The functions of a script's own text: {name: text}."""
    own, _common = parts(name)
    nodes = [node for node in ast.parse(own).body if isinstance(node, ast.FunctionDef)]
    return {node.name: own.splitlines()[node.lineno - 1 : node.end_lineno] for node in nodes}


def element(name):
    return name.partition("-")[2]


def case_of(name):
    """The class of a script's tests that says how it is called."""
    module = importlib.import_module(f"test_{element(name).replace('-', '_')}")
    cases = [value for value in vars(module).values() if getattr(value, "SCRIPT", "") == name]
    return next(case for case in cases if case.EXAMPLE)


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

    def test_every_script_is_installed_has_tests_and_is_in_the_documents(self):
        installed = (CHECKOUT / "install.sh").read_text()
        command = (CHECKOUT / "command/virt-hooks").read_text()
        for path in (*(f"{directory}/{name}" for name, directory in SCRIPTS.items()), *LINKS):
            self.assertIn(f"{path.removeprefix('lxc')}\n", installed, "install.sh")
        for name in SCRIPTS:
            with self.subTest(name):
                self.assertRegex(command, rf"PACKAGED \+?= .*\b{name}\b")
                self.assertIn(f"<{element(name)}", case_of(name).EXAMPLE)
                for document in ("README.md", "command/virt-hooks.5"):
                    text = (CHECKOUT / document).read_text()
                    self.assertIn(f"<{element(name)}>", text, document)

    def test_every_script_ends_in_the_same_text_after_the_same_heading(self):
        texts = {}
        for name in SCRIPTS:
            _own, common = parts(name)
            texts.setdefault(common, []).append(name)
            self.assertLessEqual(common.count("\n") + 1, COMMON_LINES, name)
        how = "tests/common-text SCRIPT copies the text of one script into all others"
        self.assertEqual(len(texts), 1, f"{list(texts.values())}: {how}")

    def test_a_function_that_several_scripts_have_is_the_same_in_each(self):
        first = {}
        for name in SCRIPTS:
            for function, text in functions(name).items():
                if function not in OF_ITS_OWN:
                    where, expected = first.setdefault(function, (name, text))
                    self.assertEqual(text, expected, f"{function} in {name} and in {where}")
        for function in ("lives_on", "mounts", "without_links", "texts_of", "wanted"):
            having = [name for name in SCRIPTS if function in functions(name)]
            self.assertGreater(len(having), 1, function)

    def test_common_text_copies_it_from_one_script_into_all_others(self):
        copy = self.directory / "copy"
        run(["cp", "-a", CHECKOUT, copy], check=True)
        changed = copy / script("30-preload").relative_to(CHECKOUT)
        changed.write_text(f"{changed.read_text()}# a change\n")
        run([copy / "tests/common-text", changed], check=True)
        for name, directory in SCRIPTS.items():
            path = copy / directory / name
            self.assertEqual(path.read_text(), f"{script(name).read_text()}# a change\n")
            self.assertEqual(path.stat().st_mode, script(name).stat().st_mode)
        self.assertEqual(run([copy / "tests/common-text", copy / "README.md"]).returncode, 2)
        self.assertTrue(all((copy / link).is_symlink() for link in LINKS))

    def test_no_program_is_longer_than_it_may_be(self):
        for name in SCRIPTS:
            with self.subTest(name):
                self.assertLessEqual(len(lines(name)), MOST_LINES)
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

    def wish(self, name):
        """An element for which a script has something to do."""
        return case_of(name).EXAMPLE.replace("D/", f"{self.directory}/")

    def test_every_script_works_alone_wherever_it_is_copied(self):
        alone, modules = self.directory / "alone", self.directory / "modules"
        modules.mkdir()
        for module in ("os", "grp", "errno", "time", "sitecustomize"):
            (modules / f"{module}.py").write_text("raise SystemExit('not this one')\n")
        self.write("log/file", "text")
        (self.directory / "tmp").mkdir()
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(modules)}
        for name in SCRIPTS:
            with self.subTest(name):
                alone.mkdir()
                shutil.copy(script(name), alone)
                dry_run = {"VIRT_HOOKS_DRY_RUN": "1"} if "start" in SCRIPTS[name] else {}
                command = [alone / name, *self.command(name)[1:]]
                xml = guest_xml(self.wish(name))
                result = run(command, input=xml, env=environment | dry_run, cwd=modules)
                self.assertEqual((result.returncode, result.stderr), (0, ""))
                self.assertTrue(result.stdout)
                self.assertEqual(os.listdir(alone), [name])
                shutil.rmtree(alone)
        self.assertEqual(
            sorted(os.listdir(self.directory)), ["copy", "kept", "modules", "new", "tmp"]
        )

    def test_what_a_program_says_that_fails_is_bounded_and_the_scripts_own_line_is_the_last(self):
        self.write("log/file", "text")
        (self.directory / "tmp").mkdir()
        programs = {name: case_of(name).PROGRAM for name in SCRIPTS}
        for name, program in programs.items():
            if not program:
                continue
            with self.subTest(name):
                environment = self.path_with(program, COMPLAINER)
                xml = self.write("xml", guest_xml(self.wish(name)))
                said = self.write("said", "")
                with open(xml) as stdin, open(said, "w") as stderr:
                    process = subprocess.Popen(
                        self.command(name),
                        stdin=stdin,
                        stdout=stderr,
                        stderr=stderr,
                        env=environment,
                    )
                    _pid, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
                error = said.read_text()
                result = subprocess.CompletedProcess([], process.returncode, "", error)
                self.assert_error(result, program, name=name, programs_said=True)
                self.assertLess(len(error), 70_000)
                self.assertEqual(
                    len(error.rstrip("\n").split("\n")), 3
                )  # with a note that it is cut
                self.assertLess(usage.ru_maxrss, 40_000)  # kB


if __name__ == "__main__":
    unittest.main()
