"""bench/run: that it measures and prints its table, not what the figures are."""

import os
import re
import subprocess
import time

import harness

BENCH = harness.CHECKOUT / "bench/run"


class Bench(harness.TestCase):
    def bench(self, *arguments, **options):
        environment = {"PATH": os.environ["PATH"], "TMPDIR": str(self.directory)}
        return harness.run([BENCH, *arguments], env=environment, **options)

    def test_it_prints_the_points_that_were_asked_for_and_leaves_nothing_behind(self):
        result = self.bench("--runs", "1", "nothing", "2", "idle")
        self.assert_succeeds(result)
        self.assertIn("medians of 1 run", result.stdout)
        headings = re.findall(r"^\d\. .*", result.stdout, re.MULTILINE)
        self.assertEqual([heading[:2] for heading in headings], ["1.", "2.", "4."])
        self.assertEqual(len(re.findall(r"goal: .* (?:reached|missed)\n", result.stdout)), 3)
        self.assertEqual(os.listdir("/usr/local/sbin"), [])  # the tests' own
        self.assertLessEqual(max(map(len, result.stdout.splitlines())), 80)
        self.assertEqual(os.listdir(self.directory), [])

    def test_without_root_it_says_what_it_leaves_out(self):
        os.chown(self.directory, 65534, 65534)
        self.directory.chmod(0o755)
        result = self.bench("--runs", "1", "life", "1", user=65534, group=65534, extra_groups=[])
        self.assert_succeeds(result)
        self.assertIn("3 life: left out: it needs root\n", result.stdout)
        self.assertIn("\n1. Nothing to do ", result.stdout)
        self.assertEqual(os.listdir(self.directory), [])

    def test_a_directory_that_it_cannot_write_is_one_line_of_error(self):
        result = self.bench("--runs", "1", "5", "--directory", "/proc")
        self.assert_one_line_error(result, "bench/run: ", "/proc")
        result = self.bench("--runs", "1", "5", "--directory", "/run")
        self.assert_one_line_error(result, "bench/run: /run/virt-hooks-bench-")

    def test_ended_by_a_signal_it_leaves_nothing_behind(self):
        command = [BENCH, "--directory", self.directory, "scripts"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        while not list(self.directory.glob("*/scripts-30/lxc")):
            self.assertIsNone(process.poll())
            time.sleep(0.01)
        process.terminate()
        self.assertEqual(process.wait(timeout=60), 128 + 15)
        self.assertEqual(os.listdir(self.directory), [])

    def test_it_refuses_a_point_that_does_not_exist(self):
        for argument in ("8", "0", "speed"):
            result = self.bench(argument)
            self.assertEqual(result.returncode, 2)
            self.assertIn(f"{argument!r} is no number or name of a point", result.stderr)
