"""The Ansible role on one host, without ssh: what it puts there, takes away, refuses and undoes."""

import json
import os
import re
import shutil
import unittest

from hosts import ANSIBLE, CHECKOUT, HOOKS, TestCase, ThisMachine, run
from test_deb import FOREIGN, newer_checkout

DEPLOY = CHECKOUT / "deploy/ansible"
RECORD = ".virt-hooks-ansible.sha1"
COMMAND, MANUAL = "usr/local/sbin/virt-hooks", "usr/local/share/man/man8/virt-hooks.8"
OWN = "lxc_start_begin_-.d/50-own"
OK_SCRIPT = "#!/bin/sh\necho own\n"


class RoleTestCase(TestCase):
    def play(self, *arguments, host=None, **variables):
        """Run the playbook; return (its result, how many tasks changed the host, or None)."""
        command = [ANSIBLE / "ansible-playbook", "-i", "host,", "-c", "local", *arguments]
        command += ["-e", "ansible_python_interpreter=/usr/bin/python3"]
        for name, value in {"drivers": ["lxc"], "check": False, **variables}.items():
            command += ["-e", f'{{"virt_hooks_{name}": {json.dumps(value)}}}']
        environment = [
            "env",
            "-C",
            DEPLOY,
            f"ANSIBLE_HOME={self.directory}/ansible",
            "ANSIBLE_NOCOLOR=1",
        ]
        result = run(
            (host or self.machine).command(*environment, *command, "playbook.yml"), timeout=300
        )
        self.said = result.stdout + result.stderr
        recap = re.search(r"changed=(\d+) +unreachable=(\d+) +failed=(\d+)", self.said)
        self.assertTrue(recap, self.said)
        changed, unreachable, failed = map(int, recap.groups())
        self.assertEqual(result.returncode == 0, not (unreachable or failed), self.said)
        return None if failed else changed

    def changes(self, *arguments, **variables):
        changed = self.play(*arguments, **variables)
        self.assertIsNotNone(changed, self.said)
        return changed

    def fails(self, *words, **variables):
        """Run the playbook, which must fail with these words and leave the host as it was."""
        before = self.state()
        self.assertIsNone(self.play(**variables), self.said)
        for word in words:
            self.assertIn(word, self.said)
        self.assertEqual(self.state(), before)

    def own(self, files):
        """Make the administrator's tree."""
        tree = self.directory / "scripts"
        shutil.rmtree(tree, ignore_errors=True)
        tree.mkdir()
        for path, (text, mode) in files.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_text(text)
            (tree / path).chmod(mode)
        return str(tree)

    def state(self):
        local = [self.machine.root / path for path in (COMMAND, MANUAL)]
        return self.machine.hooks(), [path.exists() for path in local]


class Role(RoleTestCase):
    def setUp(self):
        super().setUp()
        self.machine = ThisMachine()
        self.addCleanup(self.machine.stop)

    def test_its_life_from_a_fresh_host_to_an_empty_one(self):
        host = self.machine
        before = self.state()
        self.assertGreater(self.changes("--check", "--diff"), 0)
        self.assertEqual(self.state(), before)
        self.changes()
        stage = self.directory / "stage"
        self.done([CHECKOUT / "install.sh"], env={**os.environ, "DESTDIR": str(stage)})
        for path in (stage / HOOKS).rglob("[0-9]*"):
            installed = host.root / HOOKS / path.relative_to(stage / HOOKS)
            self.assertEqual(installed.read_bytes(), path.read_bytes())
            self.assertEqual(installed.lstat().st_mode & 0o7777, 0o755)
        self.assertTrue((host.root / HOOKS / "lxc").exists())
        self.assertIn("virt-hooks", host.done("virt-hooks", "--version"))
        self.assertEqual(self.changes(), 0)
        self.assertEqual(self.changes("--check", "--diff"), 0)
        host.done("sha1sum", "--quiet", "-c", f"/{HOOKS}/{RECORD}")

        files = {OWN: (OK_SCRIPT, 0o755), "lxc_release_end_-.d/web/10-a": (OK_SCRIPT, 0o755)}
        own = self.own(files)
        foreign = host.write(f"{HOOKS}/lxc_release_end_-.d/60-not-ours", FOREIGN, 0o755)
        limits = {"lxc_prepare_begin_-": 60}
        self.changes("--check", "--diff", scripts=own)
        self.assertIn("+echo own", self.said)
        self.assertFalse((host.root / HOOKS / OWN).exists())
        self.changes(scripts=own, time_limits=limits)
        self.assertEqual((host.root / HOOKS / OWN).read_text(), OK_SCRIPT)
        limit = host.root / HOOKS / "lxc_prepare_begin_-.d/timeout"
        self.assertEqual(limit.read_text(), "60\n")
        self.assertEqual(self.changes(scripts=own, time_limits=limits), 0)

        own = self.own({OWN: (OK_SCRIPT, 0o755)})
        self.assertEqual(self.changes("--check", scripts=own), self.changes(scripts=own))
        self.assertFalse((host.root / HOOKS / "lxc_release_end_-.d/web").exists())
        self.assertFalse(limit.exists())
        self.assertTrue(foreign.exists())
        self.assertEqual(self.changes(scripts=own), 0)

        newer = newer_checkout(self.directory / "newer")
        self.changes(scripts=own, source=str(newer))
        self.assertIn("# newer", (host.root / HOOKS / "lxc").read_text())
        self.assertIn("99.0.1", host.done("virt-hooks", "--version"))

        self.changes(state="absent")
        hooks, local = self.state()
        self.assertEqual(
            sorted(path for path in hooks if path != "."),
            ["lxc_release_end_-.d", "lxc_release_end_-.d/60-not-ours"],
        )
        self.assertEqual(local, before[1])
        self.assertEqual(self.changes(state="absent"), 0)

    def test_a_foreign_hook_keeps_it_from_changing_anything(self):
        foreign = self.machine.write(f"{HOOKS}/lxc", FOREIGN, 0o755)
        self.fails(f"/{HOOKS}/lxc is there already", "Nothing was changed")
        foreign.unlink()
        foreign.symlink_to("/nowhere")
        self.fails(f"/{HOOKS}/lxc is no file")

    def test_what_install_sh_or_a_package_has_installed_keeps_it_from_changing_anything(self):
        self.machine.done(CHECKOUT / "install.sh", "--prefix", "/run")
        self.fails("install.sh has installed virt-hooks here")

    def test_a_file_that_was_there_already_is_never_taken_away(self):
        for text in (OK_SCRIPT, "#!/bin/sh\n# another one\n"):
            with self.subTest(text):
                mine = self.machine.write(f"{HOOKS}/{OWN}", OK_SCRIPT, 0o755)
                own = self.own({OWN: (text, 0o755)})
                if text != OK_SCRIPT:
                    self.fails("is there already, and not from this role", drivers=[], scripts=own)
                else:
                    self.changes(drivers=[], scripts=own)
                self.changes(drivers=[], state="absent")
                self.assertEqual(mine.read_text(), OK_SCRIPT)

    def test_a_local_change_is_neither_overwritten_nor_removed_unless_that_is_asked_for(self):
        own = self.own({OWN: (OK_SCRIPT, 0o755)})
        self.changes(drivers=[], scripts=own)
        script = self.machine.root / HOOKS / OWN
        for change in (
            lambda: script.write_text("#!/bin/sh\necho mine\n"),
            lambda: script.chmod(0o644),
        ):
            with self.subTest():
                change()
                other = self.own({OWN: ("#!/bin/sh\necho other\n", 0o755)})
                self.fails(f"{OWN} was changed on this host", drivers=[], scripts=other)
                self.changes(
                    drivers=[], scripts=self.own({OWN: (OK_SCRIPT, 0o755)}), overwrite=True
                )
                self.assertEqual(script.read_text(), OK_SCRIPT)
                self.assertEqual(script.stat().st_mode & 0o777, 0o755)
        script.write_text("mine")
        self.fails(f"{OWN} was changed on this host", drivers=[], state="absent")
        self.changes(drivers=[], state="absent", overwrite=True)
        self.assertFalse(script.exists())

    def test_a_script_that_cannot_run_reaches_no_host(self):
        good = {"lxc_start_begin_-.d/10-good": (OK_SCRIPT, 0o755)}
        own = self.own({**good, OWN: ("#!/bin/sh\nif true; then\n", 0o755)})
        self.fails("50-own: ", drivers=[], scripts=own)

    def test_what_editors_leave_behind_stays_where_it_is(self):
        files = {f"{OWN}{end}": ("broken", 0o755) for end in ("~", ".bak", ".swp")}
        own = self.own({OWN: (OK_SCRIPT, 0o755), ".git/config": ("", 0o644), **files})
        self.changes(drivers=[], scripts=own)
        found = {path for path in self.machine.hooks() if "own" in path}
        self.assertEqual(found, {OWN})

    def test_a_check_that_finds_fault_with_what_is_new_undoes_it_all(self):
        own = self.own({OWN: (OK_SCRIPT, 0o755)})
        self.changes(scripts=own)
        hooks = self.machine.root / HOOKS
        (hooks / OWN).chmod(0o755)
        broken = {
            OWN: ("#!/nowhere/interpreter\n", 0o755),
            "lxc_stopped_end_-.d/a/10-x": (OK_SCRIPT, 0o755),
        }
        self.fails("left as it was", "/nowhere/interpreter", check=True, scripts=self.own(broken))
        self.assertEqual(self.changes(scripts=self.own({OWN: (OK_SCRIPT, 0o755)})), 0)

    def test_a_run_that_was_killed_leaves_nothing_that_the_next_does_not_know(self):
        own = self.own({OWN: (OK_SCRIPT, 0o755)})
        self.changes(drivers=[], scripts=own)
        other = "#!/bin/sh\necho other\n"
        record = self.machine.root / HOOKS / RECORD
        # as it is when the script is there and the record not yet: see "Record what is about to be"
        old = record.read_text()
        self.changes(drivers=[], scripts=self.own({OWN: (other, 0o755)}))
        record.write_text(old + record.read_text())
        self.changes(drivers=[], scripts=self.own({OWN: ("#!/bin/sh\necho third\n", 0o755)}))
        self.assertEqual(len(record.read_text().splitlines()), 1)
        self.changes(drivers=[], state="absent")
        self.assertFalse((self.machine.root / HOOKS / OWN).exists())

    def test_libvirt_is_told_when_something_has_changed_and_only_then(self):
        own = self.own({OWN: (OK_SCRIPT, 0o755)})
        told = "Tell the libvirt daemons"
        self.changes(drivers=[], scripts=own)
        self.assertIn(told, self.said)
        self.changes(drivers=[], scripts=own)
        self.assertNotIn(told, self.said)


class Stage(RoleTestCase):
    def stage(self, **settings):
        default = {"source": str(CHECKOUT), "drivers": [], "scripts": "", "time_limits": {}}
        command = [DEPLOY / "roles/virt_hooks/files/stage-tree", self.directory / "stage"]
        return run([*command, json.dumps({**default, **settings})])

    def test_what_could_not_run_is_named_with_the_reason(self):
        for path, text, mode, words in (
            (OWN, OK_SCRIPT, 0o644, "is not executable"),
            (OWN, "echo no first line\n", 0o755, "is no #! line"),
            (OWN, "#!/bin/sh\r\necho\r\n", 0o755, "carriage return"),
            (OWN, "#!/bin/sh\nif true; then\n", 0o755, "50-own: "),
            (OWN, "#!/usr/bin/env bash\nif [[ a ]]; then\n", 0o755, "50-own: "),
            (OWN, "#!/usr/bin/python3 -I\nif True:\n", 0o755, "50-own: line "),
            (OWN, "#!python3\n", 0o755, "is no absolute path"),
            ("lxc_start_begin_-.d/own", OK_SCRIPT, 0o755, "would never run"),
            ("lxc", OK_SCRIPT, 0o755, "is no phase directory"),
            ("lxc_start.d/50-own", OK_SCRIPT, 0o755, "is no phase directory"),
            ("lxc_start_begin_-.d/web/deep/50-own", OK_SCRIPT, 0o755, "nothing runs in it"),
        ):
            with self.subTest(words):
                result = self.stage(scripts=self.own({path: (text, mode)}))
                self.assert_names(result, words)
        for words, settings in (
            ("is not a number of seconds", {"time_limits": {"lxc_prepare_begin_-": "soon"}}),
            ("is no phase, such as", {"time_limits": {"prepare": 5}}),
            ("there is no such directory", {"scripts": "/nowhere"}),
            ("is no checkout", {"source": "/nowhere"}),
        ):
            with self.subTest(words):
                self.assert_names(self.stage(**settings), words)

    def assert_names(self, result, words):
        self.assertEqual((result.returncode, result.stdout), (1, ""))
        self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
        self.assertIn(words, result.stderr)

    def test_what_can_run_goes_through(self):
        files = {
            OWN: (OK_SCRIPT, 0o755),
            "qemu_prepare_begin_-.d/my guest/10-a": ("#!/usr/bin/env python3\nprint()\n", 0o700),
            "lxc_start_begin_-.d/own.conf": ("a setting", 0o600),
        }
        result = self.stage(scripts=self.own(files))
        self.assertEqual(result.stderr, "")
        staged = json.loads(result.stdout)
        modes = {path.removeprefix(f"/{HOOKS}/"): file["mode"] for path, file in staged.items()}
        wanted = {path: "0755" if mode & 0o111 else "0644" for path, (_t, mode) in files.items()}
        self.assertEqual(modes, wanted)


class Lint(TestCase):
    def test_ansible_lint_finds_nothing_by_its_strictest_profile(self):
        environment = {**os.environ, "PATH": f"{ANSIBLE}:{os.environ['PATH']}"}
        command = ["ansible-lint", "--offline", "--profile", "production", "--nocolor"]
        self.done(command, cwd=DEPLOY, env=environment, timeout=300)


if __name__ == "__main__":
    unittest.main()
