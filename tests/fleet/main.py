"""Runs the tests here whose names have one of the patterns in them; see tests/run."""

import sys
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main():
    loader = unittest.TestLoader()
    loader.testNamePatterns = [f"*{pattern}*" for pattern in sys.argv[1:]] or None
    suite = loader.discover(str(HERE), top_level_dir=str(HERE))
    result = unittest.TextTestRunner(verbosity=2).run(suite)
    bad = len(result.failures) + len(result.errors) + len(result.unexpectedSuccesses)
    if not result.testsRun:
        sys.exit(f"tests/run: no test has {' or '.join(sys.argv[1:])} in its name")
    skipped = len(result.skipped)
    print(f"{max(0, result.testsRun - bad - skipped)} passed, {bad} failed, {skipped} skipped")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
