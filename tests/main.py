"""Runs the tests whose names have one of the patterns in them, and sums up; see tests/run."""

import sys
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent


def tests_in(suite):
    for part in suite:
        if isinstance(part, unittest.TestSuite):
            yield from tests_in(part)
        else:
            yield part


def main():
    patterns = sys.argv[1:]
    found = tests_in(unittest.defaultTestLoader.discover(str(HERE), top_level_dir=str(HERE)))
    chosen = [test for test in found if not patterns or any(p in test.id() for p in patterns)]
    if not chosen:
        sys.exit(f"tests/run: no test has {' or '.join(patterns)} in its name")
    result = unittest.TextTestRunner(verbosity=2).run(unittest.TestSuite(chosen))
    for test, reason in result.skipped:
        print(f"skipped: {test.id()}: {reason}")
    # a class whose set-up failed stands among the errors, though none of its tests has run
    bad = len(result.failures) + len(result.errors) + len(result.unexpectedSuccesses)
    passed = max(0, result.testsRun - bad - len(result.skipped))
    print(f"{passed} passed, {bad} failed, {len(result.skipped)} skipped")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
