"""Measures what virt-hooks costs; see README.md. bench/run starts it in namespaces of its own."""

import argparse
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import libvirt
from harness import CHECKOUT, SCRIPTS, Syslog, install_dispatcher, script

PYTHON = "/usr/bin/python3"
HOOKS, CLASSIC = libvirt.HOOKS / "lxc", CHECKOUT / "bench/classic/lxc"
PREPARE, START = ("prepare", "begin", "-"), ("start", "begin", "-")
STARTED, STOPPED = ("started", "begin", "-"), ("stopped", "end", "-")
RELEASE, MIGRATE = ("release", "end", "-"), ("migrate", "begin", "-")
PHASES = (PREPARE, START, STARTED, STOPPED, RELEASE)
POINTS = ("nothing", "trivial", "lock", "idle", "life", "files", "memory", "virsh")
GOLDEN, ARCHIVE = Path("/srv/golden"), Path("/srv/archive")  # as the example's elements have it
TRIVIAL = "#!/bin/sh\nexit 0\n"
WAIT = "trap exit TERM; sleep 1000 & wait"  # else virsh destroy waits 1.8 s before it kills
# Prints a program's peak memory in KB. It is small: a program's peak begins as its parent's.
PEAK = """
import posix, sys
pid = posix.posix_spawn(sys.argv[1], sys.argv[1:], posix.environ)
_pid, status, usage = posix.wait4(pid, 0)
print(usage.ru_maxrss, file=sys.stderr)
sys.exit(status != 0)
"""


class Bench:
    """The points, each a method."""

    def __init__(self, short):
        self.short = short  # once and with little, to see that it works

    def nothing(self):
        ours, python = self.medians(
            30,
            lambda: seconds(HOOKS, "web", *STARTED),
            lambda: seconds(PYTHON, "-IS", "-c", "pass"),
        )
        text = f"a phase without scripts {ms(ours)}, python3 -IS -c pass {ms(python)}"
        report("nothing", text, ours / python, "times", most=1.35)

    def trivial(self):
        one = make_hooks(PREPARE, {"00-trivial": TRIVIAL})
        many = make_hooks(PREPARE, {f"{n:02}-trivial": TRIVIAL for n in range(31)})
        with_one, with_many, alone = self.medians(
            30,
            lambda: seconds(one, "web", *PREPARE),
            lambda: seconds(many, "web", *PREPARE),
            lambda: seconds(one.parent / "lxc_prepare_begin_-.d/00-trivial"),
        )
        each = (with_many - with_one) / 30
        text = f"each of 30 trivial scripts {ms(each)}, alone {ms(alone)} *"
        report("trivial", text, (each - alone) * 1000, "ms more", most=0.4)

    def lock(self):
        with_lock = make_hooks(PREPARE, {"10-trivial": TRIVIAL})
        without = make_hooks(PREPARE, {"10-trivial": TRIVIAL})
        text = without.read_text()
        without.write_text(text.replace("    wait_for_earlier_run(driver, guest)\n", "    pass\n"))
        if without.read_text() == text:
            sys.exit("bench/run: the dispatcher takes no lock where it is looked for")
        locked, unlocked = self.medians(
            200,
            lambda: seconds(with_lock, "web", *PREPARE),
            lambda: seconds(without, "web", *PREPARE),
        )
        text = f"a trivial script {ms(locked)}, without the lock {ms(unlocked)} *"
        report("lock", text, (locked - unlocked) * 1000, "ms more", most=0.1)

    def idle(self):
        xml = write_guest("idle")
        ours, by_libvirt = self.medians(
            30,
            lambda: sum(seconds(HOOKS, "web", *phase, xml=xml) for phase in PHASES),
            lambda: sum(
                seconds(script(name), "web", *phase, xml=xml)
                for phase in PHASES
                for name in SCRIPTS
            ),
        )
        text = f"a guest without elements {ms(ours)}, scripts in lxc.d/ {ms(by_libvirt)}"
        report("idle", text, ours / by_libvirt, "times", most=0.2)

    def life(self):
        xml = write_guest("life", example("web"))
        fill(GOLDEN / "web", 1, 5)
        ours, plain = self.medians(30, lambda: live(HOOKS, xml), lambda: live(CLASSIC, xml))
        text = f"a guest with five elements {ms(ours)}, the plain style {ms(plain)}"
        report("life", text, ours / plain, "times", most=0.85)

    def files(self):
        directories = 2 if self.short else 1000
        src, dst = "/srv/files/src", "/srv/files/dst"
        fill(src, directories, 100)
        pair = f"<dircopy><src>{src}</src><dst>{dst}</dst></dircopy>"
        elements = "".join(f"<{name}>{pair}</{name}>" for name in ("preload", "archive"))
        copied = write_guest("copied", f'<hooks xmlns="urn:virt-hooks:1">{elements}</hooks>')
        elements = f"<post-rm-rf><dir>{dst}</dir></post-rm-rf>"
        removed = write_guest("removed", f'<hooks xmlns="urn:virt-hooks:1">{elements}</hooks>')

        def call(name, phase, xml=copied):
            return seconds(script(name), "web", *phase, xml=xml)

        def remove():
            return seconds("rm", "-rf", "--", dst)

        # each pair copies, then removes what it has copied
        preload, archive, copy = self.in_turn(
            7,
            lambda: (call("30-preload", PREPARE), call("30-post-rm-rf", RELEASE, removed)),
            lambda: (call("10-archive", RELEASE), remove()),
            lambda: (seconds("cp", "-a", "--", src, dst), remove()),
        )
        for name, pairs, column, program, least in (
            ("preload", preload, 0, "cp -a", 0.95),
            ("archive", archive, 0, "cp -a", 0.8),
            ("post-rm-rf", preload, 1, "rm -rf", 0.95),
        ):
            ours, theirs = median_of(column, pairs), median_of(column, copy)
            text = f"{directories * 100:,} files: {name} {ms(ours)}, {program} {ms(theirs)}"
            report("files", text, theirs / ours, "its speed", least=least)
        shutil.rmtree(src)

    def memory(self):
        # libvirt takes no longer text: REMOTE_STRING_MAX is 4 MiB
        xml = write_guest("memory", size=4_000_000)
        for phase, text in ((PREPARE, TRIVIAL), (MIGRATE, "#!/bin/sh\nexec cat\n")):
            hooks = make_hooks(phase, {"10-script": text})
            command = [PYTHON, "-IS", "-c", PEAK, hooks, "web", *phase]
            with open(xml) as stdin, open(os.devnull, "w") as stdout:
                peak = subprocess.run(command, stdin=stdin, stdout=stdout, stderr=-1, check=True)
            text = f"4 MB of XML, a script in {phase[0]}: the dispatcher's peak"
            report("memory", text, int(peak.stderr) * 1024 / 1e6, "MB", most=16)

    def virsh(self):
        number = 2 if self.short else 20
        fill(GOLDEN / "web", 1, 5)
        root = libvirt.root_directory(Path("/srv/rootfs"))
        plain, using = [], []
        with ExitStack() as stack:
            daemon = libvirt.start_libvirtd(stack.callback)
            for n in range(number):
                plain.append(libvirt.Guest(f"plain{n}", root, WAIT))
                metadata = example(f"using{n}")
                using.append(libvirt.Guest(f"using{n}", root, WAIT, metadata=metadata))
            for some, runs in ((1, 10), (number, 3)):
                contenders = self.in_turn(
                    runs,
                    lambda some=some: start_and_destroy(daemon, plain[:some], hooks=False),
                    lambda some=some: start_and_destroy(daemon, plain[:some]),
                    lambda some=some: start_and_destroy(daemon, using[:some]),
                )
                for column, what in enumerate(("virsh start", "start and destroy")):
                    without, *others = (median_of(column, rows) for rows in contenders)
                    who = f"{what} of {some} at once" if some > 1 else what
                    for hooks, took in zip(("hooks", "five elements"), others):
                        text = f"{who} {ms(without)}, with {hooks} {ms(took)} *"
                        report("virsh", text, (took - without) * 1000, "ms more")

    def in_turn(self, runs, *contenders):
        """What contenders return, in lists, one each. They take turns, so that what else the
        machine does meets all of them; a first round warms the caches and does not count."""
        number = 1 if self.short else runs + 1
        rounds = [[contender() for contender in contenders] for _ in range(number)]
        return list(zip(*(rounds[1:] or rounds)))

    def medians(self, runs, *contenders):
        return [statistics.median(values) for values in self.in_turn(runs, *contenders)]


def seconds(*command, xml=os.devnull):
    """The time from the start of a command, with a file on stdin, until it was waited for."""
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, xml, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
    ]
    began = time.perf_counter()
    pid = os.posix_spawnp(command[0], command, os.environ, file_actions=actions)
    _pid, status = os.waitpid(pid, 0)
    took = time.perf_counter() - began
    if status:
        sys.exit(f"bench/run: this has failed: {' '.join(map(str, command))}")
    return took


def live(dispatcher, xml):
    """The time of the five phases of the example's guest, which writes twenty files."""
    prepare, *rest = PHASES
    took = seconds(dispatcher, "web", *prepare, xml=xml)
    fill("/srv/web/log", 1, 20)
    seen = os.listdir("/srv/web/www")
    took += sum(seconds(dispatcher, "web", *phase, xml=xml) for phase in rest)
    archived = [path.name for path in ARCHIVE.rglob("*") if path.is_file()]
    if len(archived) != 20 or len(seen) != 1 or os.listdir("/srv/web"):
        sys.exit(f"bench/run: {dispatcher} has not done its work")
    shutil.rmtree(ARCHIVE)
    return took


def start_and_destroy(daemon, guests, hooks=True):
    """The times in which virsh starts guests at once, and in which it starts and destroys them."""
    hidden = HOOKS.with_name("no-hook")
    if hooks != HOOKS.exists():
        os.rename(*((hidden, HOOKS) if hooks else (HOOKS, hidden)))
        daemon.reload()
        time.sleep(1)
    began = time.perf_counter()
    with ThreadPoolExecutor(len(guests)) as pool:
        list(pool.map(libvirt.Guest.start, guests))
        started = time.perf_counter()
        list(pool.map(lambda guest: guest.virsh("destroy"), guests))
    ended = time.perf_counter()
    if not all(guest.is_off() for guest in guests):
        sys.exit("bench/run: libvirt has not destroyed its guests")
    shutil.rmtree(ARCHIVE, ignore_errors=True)
    return started - began, ended - began


def example(guest):
    """The five elements of the first example, for a guest of this name."""
    text = (CHECKOUT / "examples/web.xml").read_text()
    elements = re.search("<hooks .*</hooks>", text, re.DOTALL)[0]
    return elements.replace("/srv/web/", f"/srv/{guest}/").replace(
        "archive/web", f"archive/{guest}"
    )


def write_guest(name, metadata="", size=4096):
    """The path of a guest's XML, which has about so many bytes."""
    padding = f'<notes xmlns="urn:example:notes">{"note " * (size // 5)}</notes>'
    path = Path(f"/srv/{name}.xml")
    path.write_text(libvirt.definition("web", "/srv/rootfs", "true", metadata + padding))
    return path


def make_hooks(phase, scripts):
    """The path of a dispatcher, in a hooks directory with {name: text} of scripts for a phase."""
    hooks = Path(tempfile.mkdtemp(dir="/srv"))
    directory = hooks / f"lxc_{'_'.join(phase)}.d"
    directory.mkdir()
    for name, text in scripts.items():
        (directory / name).write_text(text)
        (directory / name).chmod(0o755)
    install_dispatcher(hooks / "lxc")
    return hooks / "lxc"


def fill(directory, directories, files):
    """Make directories, with so many files of 1 KB in each."""
    for number in range(directories):
        path = Path(directory, str(number))
        path.mkdir(parents=True, exist_ok=True)
        for file in range(files):
            (path / f"{file}").write_bytes(b"0123456789abcdef" * 64)


def median_of(column, rows):
    return statistics.median(row[column] for row in rows)


def ms(seconds):
    milliseconds = seconds * 1000
    return f"{milliseconds:,.{2 if milliseconds < 10 else 1 if milliseconds < 100 else 0}f} ms"


def report(point, text, figure, unit, most=None, least=None):
    """Print a line: what was measured, the figure, its goal if it has one, and how that stands."""
    goal, reached = "no goal", None
    if most is not None:
        goal, reached = f"at most {most}", figure <= most
    if least is not None:
        goal, reached = f"at least {least}", figure >= least
    result = {True: "reached", False: "missed", None: ""}[reached]
    print(f"{point:<8}{text:<78}{figure:>8.2f} {unit:<10}{goal:<15}{result}", flush=True)


def main():
    parser = argparse.ArgumentParser(
        prog="bench/run", description="Measures what virt-hooks costs; see bench/README.md."
    )
    parser.add_argument("--short", action="store_true", help="only show that it works")
    parser.add_argument("points", nargs="*", metavar="POINT", help=f"of {', '.join(POINTS)}")
    options = parser.parse_args()
    for point in options.points:
        if point not in POINTS:
            parser.error(f"{point!r} is no point")

    with open("/proc/cpuinfo") as file:
        models = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    print(
        f"virt-hooks, {time.strftime('%Y-%m-%d')}: {os.cpu_count()} times {models[0]}, "
        f"Linux {platform.release()}, Python {platform.python_version()}, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    libvirt.install("--no-reload")
    bench = Bench(options.short)
    try:
        with Syslog():
            for point in options.points or POINTS:
                getattr(bench, point)()
    except RuntimeError as error:  # a guest has not started
        sys.exit(f"bench/run: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    print("* This figure is a time, not a ratio: believe it on a quiet machine only.")


main()
