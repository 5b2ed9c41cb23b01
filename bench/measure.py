"""Runs programs in turn, takes the medians of their times, prints them as a table.

A time is in seconds, from the start of a process until it has ended and was waited for.
"""

import os
import statistics
import subprocess
import time

SIGKILL, SIGPIPE, SIGXFSZ = 9, 13, 25
PYTHON = "/usr/bin/python3"
# as libvirt's daemon has it, less /usr/local, which may have another Python
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/", "LC_ALL": "C"}
LABEL, CELL = 25, 11  # the widths of the table: five columns fit into 80


class Failed(Exception):
    """A program that is measured has failed, or has not done its work."""


def seconds(*command, xml="/dev/null"):
    """The time that a command takes, its stdin the file xml; raise Failed where it fails."""
    messages = os.memfd_create("stderr")
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, xml, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
        (os.POSIX_SPAWN_DUP2, messages, 2),
    ]
    began = time.perf_counter()
    pid = os.posix_spawnp(
        command[0], command, os.environ,
        setpgroup=0, file_actions=actions, setsigdef=[SIGPIPE, SIGXFSZ],
    )  # fmt: skip
    try:
        _pid, status = os.waitpid(pid, 0)
    except BaseException:  # ended by a signal: what it runs must not go on writing
        try:
            os.killpg(pid, SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass  # it has just ended by itself
        raise
    took = time.perf_counter() - began
    if status:
        said = os.fsdecode(os.pread(messages, 9999, 0)).strip()
        code = os.waitstatus_to_exitcode(status)
        raise Failed(f"exit status {code} of {' '.join(map(str, command))}: {said}")
    os.close(messages)
    return took


def said_by(*command, xml="/dev/null"):
    """What a command prints on stderr."""
    with open(xml, "rb") as file:
        result = subprocess.run(command, stdin=file, capture_output=True)
    if result.returncode:
        raise Failed(f"exit status {result.returncode} of {' '.join(map(str, command))}")
    return result.stderr.decode()


def in_turn(contenders, runs, seldom=()):
    """{name: median} of contenders, {name: function that returns what is measured}.

    They run in turn, each round beginning with another one, so that what else the machine does
    meets all of them; a first round warms the caches and does not count. seldom: the names of those
    that run in every tenth round only.
    """
    names = list(contenders)
    values = {name: [] for name in names}
    for number in range(-1, runs):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            if name in seldom and number % 10:
                continue
            value = contenders[name]()
            if number >= 0:
                values[name].append(value)
    return {name: statistics.median(values[name]) for name in names}


def heading(title, columns):
    print()
    line(title, columns)


def line(label, cells):
    print(f"{label:<{LABEL}}" + "".join(f"{cell:>{CELL}}" for cell in cells), flush=True)


def ratios(values):
    """A line with the first of some values to each of the others."""
    first, *others = values
    line("   ours to it", ["", *(f"{first / other:.2f}" for other in others)])


def goal(text, value, reached):
    text = f"   goal: {text}"
    print(f"{text:<58}{value:>11.2f}{'reached' if reached else 'missed':>11}", flush=True)


def as_time(value):
    value *= 1000
    return f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f} ms"


def as_size(value):
    for unit in ("B", "KB", "MB"):
        if value < 999.5:
            return f"{value:.{0 if value >= 100 or unit == 'B' else 1}f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"
