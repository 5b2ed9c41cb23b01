"""What the scripts and the dispatcher have in common stays the same in each."""

import ast
import os
import unittest

from harness import CHECKOUT, LINKS, SCRIPTS, script

FIRST_LINE = "#!/usr/bin/python3 -IS"
# each script's own, under one name, so that who has read one script knows where to look in another
OWN = {"main", "validate", "remove"}
PROGRAMS = {name: script(name) for name in SCRIPTS} | {"lxc": CHECKOUT / "hooks/lxc"}
OTHER_HALF = CHECKOUT / "hooks/lxc_run.py"
FILES = PROGRAMS | {"lxc_run.py": OTHER_HALF}


def definitions(path):
    """{name: text} of the functions, the classes and the constants at the top of a program."""
    text = path.read_text()
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found[node.name] = ast.get_source_segment(text, node)
        elif isinstance(node, ast.Assign):
            found[ast.unparse(node.targets[0])] = ast.get_source_segment(text, node)
    return found


class Common(unittest.TestCase):
    def test_what_has_the_same_name_in_two_scripts_has_the_same_text(self):
        first, shared = {}, set()
        for name in SCRIPTS:
            for definition, text in definitions(script(name)).items():
                if definition in OWN:
                    continue
                if definition in first:
                    shared.add(definition)
                owner, expected = first.setdefault(definition, (name, text))
                with self.subTest(definition=definition, scripts=(owner, name)):
                    self.assertEqual(text, expected)
        for definition in ("Failure", "Element", "read_elements", "check", "open_directory"):
            self.assertIn(definition, shared)

    def test_every_script_begins_and_ends_in_the_same_way(self):
        statements = {}
        for name in SCRIPTS:
            text = script(name).read_text()
            found = [node for node in ast.parse(text).body if isinstance(node, ast.If)]
            element = name.partition("-")[2]
            texts = [ast.get_source_segment(text, node).replace(element, "…") for node in found]
            self.assertIn("__main__", texts[-1])
            statements[name] = "\n".join(texts)
        self.assertEqual(len(set(statements.values())), 1, statements)

    def test_every_script_goes_from_docstring_to_main(self):
        for name, path in PROGRAMS.items():
            with self.subTest(program=name):
                tree = ast.parse(path.read_text())
                self.assertTrue(ast.get_docstring(tree))
                self.assertIsInstance(tree.body[-1], ast.If)
        for name in SCRIPTS:
            self.assertTrue(ast.get_docstring(ast.parse(script(name).read_text())).startswith(name))

    def test_nothing_is_defined_that_is_not_used(self):
        for name, path in FILES.items():
            tree = ast.parse(path.read_text())
            used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)
                    and isinstance(node.ctx, ast.Load)}  # fmt: skip
            if name == "lxc_run.py":
                used.add("main")  # which its other half calls
            for definition in definitions(path):
                for part in definition.strip("()").split(", "):
                    with self.subTest(program=name, definition=part):
                        self.assertIn(part, used)

    def test_every_program_begins_with_the_isolated_interpreter_and_is_executable(self):
        for name, path in PROGRAMS.items():
            with self.subTest(program=name):
                self.assertEqual(path.read_text().split("\n")[0], FIRST_LINE)
                self.assertTrue(os.access(path, os.X_OK))
                self.assertEqual(path.stat().st_mode & 0o111, 0o111)

    def test_the_dispatchers_other_half_cannot_be_taken_for_a_program(self):
        self.assertTrue(ast.get_docstring(ast.parse(OTHER_HALF.read_text())))
        self.assertEqual(OTHER_HALF.stat().st_mode & 0o111, 0)

    def test_the_phase_directories_hold_the_scripts_and_nothing_else(self):
        expected = {f"{directory}/{name}" for name, directory in SCRIPTS.items()} | LINKS.keys()
        found = {str(path.relative_to(CHECKOUT)) for path in CHECKOUT.glob("lxc_*.d/*")}
        self.assertEqual(found, expected)

    def test_what_undoes_is_a_relative_link_to_what_does(self):
        for link, target in LINKS.items():
            self.assertEqual(os.readlink(CHECKOUT / link), target)
            self.assertTrue((CHECKOUT / link).samefile(script(os.path.basename(link))))

    def test_no_program_uses_a_shell(self):
        for name, path in FILES.items():
            tree = ast.parse(path.read_text())
            for node in ast.walk(tree):
                with self.subTest(program=name, line=getattr(node, "lineno", 0)):
                    if isinstance(node, ast.Import):
                        modules = [alias.name for alias in node.names]
                    elif isinstance(node, ast.ImportFrom):
                        modules = [node.module]
                    else:
                        modules = []
                    for module in modules:
                        self.assertNotIn(module, ("subprocess", "pty", "commands", "asyncio"))
                    if isinstance(node, ast.Attribute):
                        self.assertNotIn(node.attr, ("system", "popen"))
                    if isinstance(node, ast.keyword):
                        self.assertNotEqual(node.arg, "shell")
                    if isinstance(node, ast.Constant) and isinstance(node.value, str):
                        command = node.value.rpartition("/")[2]
                        self.assertNotIn(command, ("sh", "bash", "dash", "-c", "eval", "env"))

    def test_every_program_is_valid_for_python_3_9(self):
        for name, path in FILES.items():
            with self.subTest(program=name):
                ast.parse(path.read_text(), feature_version=(3, 9))

    def test_every_program_imports_the_standard_library_alone(self):
        for name, path in FILES.items():
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    modules = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    self.assertEqual(node.level, 0)
                    modules = [node.module]
                else:
                    continue
                for module in modules:
                    with self.subTest(program=name, module=module):
                        if (name, module) != ("lxc_run.py", "dispatcher"):  # its other half
                            self.assertIn(module.split(".")[0], STANDARD_LIBRARY)


# sys.stdlib_module_names is of Python 3.10
STANDARD_LIBRARY = {"ctypes", "errno", "fcntl", "grp", "ipaddress", "marshal", "os", "posix", "pwd",
                    "_signal", "select", "stat", "sys", "syslog", "time", "xml"}  # fmt: skip


if __name__ == "__main__":
    unittest.main()
