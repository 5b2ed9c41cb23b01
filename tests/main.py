"""Runs the tests whose names have one of the patterns in them, and sums up; see tests/run.

Some modules run at a time, the largest first, each through tests/module.py, in mount and network
namespaces of its own and in a session of its own, where no program finds the terminal. Those that
start a libvirtd run one after the other: two libvirtds would get into each other's way, since
guests of one name share cgroups. So do those of the fleet, whose hosts have their own namespaces,
and those of the virtual machine.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import unittest
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, wait

from module import HERE, chosen

NAMESPACE = ["unshare", "--net", "--mount", "--propagation", "private", HERE / "namespace"]
MODULE = [sys.executable, "-B", HERE / "module.py"]
LANES = len(os.sched_getaffinity(0)) + 1
DONE = ("passed", "failed", "skipped")
ON_TERMINAL = sys.stdout.isatty()
ERASE = "\r\033[J" if ON_TERMINAL else ""  # what draw() has said


class Run:
    """What runs in each lane, and what has become of the tests so far."""

    def __init__(self, patterns, total):
        self.patterns, self.total = patterns, total
        self.processes, self.running = {}, {}  # by lane
        self.count, self.notes, self.interrupted = Counter(), [], False
        self.began, self.lock = time.monotonic(), threading.RLock()

    def run_modules(self, prefix, paths):
        """Run modules of tests, one after the other, with a command before the interpreter's."""
        lane = threading.get_ident()
        for path in paths:
            if self.interrupted:
                break
            self.running[lane] = path.stem, time.monotonic()
            process = self.processes[lane] = subprocess.Popen(
                [*prefix, *MODULE, path, *self.patterns],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True, errors="replace", start_new_session=True,
            )  # fmt: skip
            for line in process.stdout:
                said, told, event = line.rstrip("\n").partition("\0")
                if said:
                    self.say(said)
                if event:
                    self.note(lane, path.stem, *json.loads(event))
                elif told:
                    break  # it has ended, though what a test has left may hold the pipe
            if process.wait() and not self.interrupted:
                text = f"its process ended with {process.returncode}\n"
                self.note(lane, path.stem, "failed", self.running[lane][0], text)
            del self.running[lane]

    def note(self, lane, module, kind, test, text):
        now = time.monotonic()
        with self.lock:
            if kind == "begun":
                self.running[lane] = test, now
                return
            _, began = self.running[lane]
            self.running[lane] = module, now  # what follows may be a fixture of it
            self.count[kind] += 1
            line = f"{self.status()} {kind}: {test} ({now - began:.1f} s)"
            if kind == "failed":
                self.notes.append(f"failed: {test}")
                self.say(f"{line}\n{text}")
            elif not ON_TERMINAL:
                self.say(line)
            if kind == "skipped":
                self.notes.append(f"skipped: {test}: {text}")

    def status(self):
        minutes, seconds = divmod(int(time.monotonic() - self.began), 60)
        done = sum(self.count[kind] for kind in DONE)
        return f"{minutes}:{seconds:02} {done}/{self.total}"

    def say(self, text):
        with self.lock:
            print(f"{ERASE}{text}", flush=True)

    def draw(self):
        """Say below the cursor, on a terminal, what runs now."""
        with self.lock:
            now, width = time.monotonic(), shutil.get_terminal_size().columns - 1
            lines = [f"{self.status()} tests, {self.count['failed']} failed"]
            lines += [f"{now - began:4.0f} s {test}" for test, began in list(self.running.values())]
            text = "".join(f"{line[:width]}\n" for line in lines)
            print(f"{ERASE}{text}\033[{len(lines)}A", end="", flush=True)

    def interrupt(self):
        self.interrupted = True
        self.say("interrupted: tests that run now are finished first; ^C again ends them")
        for process in list(self.processes.values()):
            process.send_signal(signal.SIGINT)


def main():
    files, patterns = "test_*.py", sys.argv[1:]
    if patterns[:1] in (["--long"], ["--fleet"], ["--vm"]):
        option = patterns.pop(0)
        files = "long_*.py" if option == "--long" else f"{option[2:]}/test_*.py"
    own_hosts = "/" in files
    total, one_by_one, at_once = 0, [], []
    for path in sorted(HERE.glob(files), key=os.path.getsize, reverse=True):
        tests = chosen(path, patterns)
        names = vars(sys.modules.get(path.stem, unittest))  # it may have failed to be imported
        alone = own_hosts or any(name.startswith("start_libvirtd") for name in names)
        if tests:
            total += len(tests)
            (one_by_one if alone else at_once).append(path)
    if not total:
        sys.exit(f"tests/run: no test has {' or '.join(patterns)} in its name")

    run = Run(patterns, total)
    run.say(f"tests: {total}")
    with ThreadPoolExecutor(LANES) as pool:
        lanes = [pool.submit(run.run_modules, [] if own_hosts else NAMESPACE, one_by_one)]
        nice = ["nice", *NAMESPACE]  # a libvirtd that has to wait loses guests
        lanes += [pool.submit(run.run_modules, nice, [path]) for path in at_once]
        while not all(lane.done() for lane in lanes):
            try:
                wait(lanes, timeout=1)
                if ON_TERMINAL:
                    run.draw()
            except KeyboardInterrupt:
                signal.signal(signal.SIGINT, signal.SIG_DFL)  # ^C again ends it at once
                run.interrupt()
    for lane in lanes:
        lane.result()  # raises what it has raised

    run.say(f"{run.status()} tests")
    for note in run.notes:
        print(note)
    if run.count["lost"]:
        print(f"tried again, since libvirtd had lost a guest: {run.count['lost']}")
    print(", ".join(f"{run.count[kind]} {kind}" for kind in DONE))
    sys.exit(130 if run.interrupted else 1 if run.count["failed"] else 0)


if __name__ == "__main__":
    main()
