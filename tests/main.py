"""Runs the tests whose names have one of the patterns in them, and sums up; see tests/run.

Three lanes run at once, in mount and network namespaces of their own: one of the tests that start a
libvirtd, two of those that do not, of every second module each. Two libvirtds would get into each
other's way, since guests of one name share cgroups.
"""

import json
import subprocess
import sys
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
LANES = ("--with-libvirtd", "--without-libvirtd", "--without-libvirtd-either")
NAMESPACE = ["unshare", "--net", "--mount", "--propagation", "private", HERE / "namespace"]


def tests_in(suite):
    for part in suite:
        if isinstance(part, unittest.TestSuite):
            yield from tests_in(part)
        else:
            yield part


def lanes_of(tests):
    """{name of a test's module: its lane}; that a module has a way to start a libvirtd tells."""
    modules = sorted({type(test).__module__ for test in tests})
    starts = {m: any(n.startswith("start_libvirtd") for n in vars(sys.modules[m])) for m in modules}
    without = [module for module in modules if not starts[module]]
    return {m: LANES[0] if starts[m] else LANES[1 + without.index(m) % 2] for m in modules}


def test_of(test):
    """The test that a subtest belongs to, or the test itself."""
    return getattr(test, "test_case", test)


def run_lane(lane, files, patterns):
    """Run a lane's tests; print what became of them as JSON: [passed, failed, skipped, reasons]."""
    found = list(tests_in(unittest.defaultTestLoader.discover(str(HERE), files, str(HERE))))
    lanes = lanes_of(found)
    # a test module that cannot be imported is a failed test of unittest's own, in one of the lanes
    chosen = [test for test in found if lanes[type(test).__module__] == lane]
    chosen = [test for test in chosen if not patterns or any(p in test.id() for p in patterns)]
    result = unittest.TextTestRunner(verbosity=1).run(unittest.TestSuite(chosen))
    for _again in range(6):  # see libvirt.LostGuest
        lost = {test_of(test) for test, trace in result.errors if trace.endswith("LostGuest\n")}
        if not lost:
            break
        result.errors = [e for e in result.errors if test_of(e[0]) not in lost]
        result.failures = [f for f in result.failures if test_of(f[0]) not in lost]
        print("libvirtd had lost a guest; again:", file=sys.stderr)
        again = unittest.TextTestRunner(verbosity=2).run(unittest.TestSuite(lost))
        result.errors += again.errors
        result.failures += again.failures
    skipped = [f"{test.id()}: {reason}" for test, reason in result.skipped]
    # of a test with subtests, each that fails is counted; a class's set-up that fails is one more
    bad = len(result.failures) + len(result.errors) + len(result.unexpectedSuccesses)
    json.dump([max(0, result.testsRun - bad - len(skipped)), bad, skipped], sys.stdout)


def main():
    if sys.argv[1:2] and sys.argv[1] in LANES:
        run_lane(sys.argv[1], sys.argv[2], sys.argv[3:])
        return
    files, patterns = "test_*.py", sys.argv[1:]
    if patterns[:1] == ["--long"]:
        files, patterns = "long_*.py", patterns[1:]
    passed, failed, skipped = 0, 0, []
    nice = {lane: ["nice"] for lane in LANES[1:]}  # a libvirtd that has to wait loses guests
    command = [*NAMESPACE, sys.executable, "-B", __file__]
    lanes = [
        subprocess.Popen([*nice.get(lane, []), *command, lane, files, *patterns], stdout=-1)
        for lane in LANES
    ]
    for lane in lanes:
        output, _error = lane.communicate()
        results = json.loads(output) if lane.returncode == 0 else [0, 1, []]
        passed, failed, skipped = passed + results[0], failed + results[1], skipped + results[2]
    if not passed and not failed and not skipped:
        sys.exit(f"tests/run: no test has {' or '.join(patterns)} in its name")
    for test in skipped:
        print(f"skipped: {test}")
    print(f"{passed} passed, {failed} failed, {len(skipped)} skipped")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
