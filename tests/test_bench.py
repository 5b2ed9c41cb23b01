"""bench/run: that it measures all its points, not what the figures are."""

import re

import harness

BENCH = harness.CHECKOUT / "bench/run"
POINTS = {"nothing": 1, "trivial": 1, "idle": 1, "life": 1, "files": 3, "memory": 2, "virsh": 8}


# tests/main.py runs a module with such a name beside no other that starts a libvirtd
def start_libvirtd_and_measure():
    return harness.run([BENCH, "--short"])


class Bench(harness.TestCase):
    def test_it_prints_each_point_with_its_figure_and_its_goal(self):
        result = start_libvirtd_and_measure()
        self.assert_succeeds(result)
        for point, number in POINTS.items():
            with self.subTest(point):
                figure = (
                    rf"^{point} .* -?[0-9.]+ .*(no goal|at (most|least) [0-9.]+ +(reached|missed))"
                )
                lines = re.findall(figure, result.stdout, re.MULTILINE)
                self.assertEqual(len(lines), number, result.stdout)

    def test_it_refuses_a_point_that_does_not_exist(self):
        result = harness.run([BENCH, "speed"])
        self.assertEqual(result.returncode, 2)
        self.assertIn("'speed'", result.stderr)
