"""Runs the tests of one module, and tells tests/main.py what becomes of each.

What it tells is a line of JSON after a NUL: [what has become of it, the test, more text].
"""

import json
import sys
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
TRIES = 6  # of a test, see libvirt.LostGuest


def tests_in(suite):
    for part in suite:
        if isinstance(part, unittest.TestSuite):
            yield from tests_in(part)
        else:
            yield part


def chosen(path, patterns):
    """The tests of a module that have one of the patterns in their names."""
    directory = str(path.parent)
    tests = tests_in(unittest.TestLoader().discover(directory, path.name, directory))
    return [test for test in tests if not patterns or any(p in test.id() for p in patterns)]


def tell(kind, test, text=""):
    print(f"\0{json.dumps([kind, test.id(), text])}", flush=True)


class Result(unittest.TestResult):
    def __init__(self, last_try):
        super().__init__()
        self.last_try, self.lost = last_try, []

    def startTest(self, test):
        super().startTest(test)
        tell("begun", test)

    def stopTest(self, test):
        super().stopTest(test)

        def of_test(found):  # of its subtests, too
            return [(p, text) for p, text in found if getattr(p, "test_case", p) is test]

        bad, skips = of_test(self.errors + self.failures), of_test(self.skipped)
        if any(trace.endswith("LostGuest\n") for _, trace in bad) and not self.last_try:
            self.lost.append(test)
            tell("lost", test)
        elif bad:
            tell("failed", test, "\n".join(f"{part.id()}\n{trace}" for part, trace in bad))
        elif skips:
            tell("skipped", test, skips[0][1])
        else:
            tell("passed", test)


def main():
    unittest.installHandler()  # ^C lets the test that runs end, with all that cleans up
    tests = chosen(Path(sys.argv[1]), sys.argv[2:])
    for number in range(TRIES):
        result = Result(last_try=number == TRIES - 1)
        unittest.registerResult(result)
        unittest.TestSuite(tests).run(result)
        for kind, found in (("failed", result.errors), ("skipped", result.skipped)):
            for part, text in found:
                if not isinstance(part, unittest.TestCase):  # what sets up a class, or a module
                    tell(kind, part, text)
        tests = result.lost
        if not tests or result.shouldStop:
            break
    print("\0", flush=True)


if __name__ == "__main__":
    main()
