"""What bench/run measures: its seven points, each a method of Bench."""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

from measure import (
    PYTHON,
    Failed,
    as_size,
    as_time,
    goal,
    heading,
    in_turn,
    line,
    ratios,
    said_by,
    seconds,
)

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent
OURS, CLASSIC = CHECKOUT / "hooks/lxc", HERE / "classic/lxc"
PREPARE, RELEASE = ("prepare", "begin", "-"), ("release", "end", "-")
START, STARTED, STOPPED = (
    ("start", "begin", "-"),
    ("started", "begin", "-"),
    ("stopped", "end", "-"),
)
PHASES = (PREPARE, START, STARTED, STOPPED, RELEASE)
PREPARE_D, RELEASE_D = "lxc_prepare_begin_-.d", "lxc_release_end_-.d"
SCRIPTS = {
    "mkdirs": CHECKOUT / PREPARE_D / "10-mkdirs",
    "ramdisk": CHECKOUT / PREPARE_D / "20-ramdisk",
    "preload": CHECKOUT / PREPARE_D / "30-preload",
    "archive": CHECKOUT / RELEASE_D / "10-archive",
    "post-rm-rf": CHECKOUT / RELEASE_D / "30-post-rm-rf",
}
TRIVIAL = "#!/bin/sh\nexit 0\n"
# the peak of what called the script; what wait4(2) tells would be bench/run's own, if that is more
PEAK = '#!/bin/sh\ngrep VmHWM "/proc/$PPID/status" >&2\n'
ALL_FIVE = """
      <mkdirs>
        <dir mode="0750">{0}/spool</dir>
        <dir>{0}/www</dir>
      </mkdirs>
      <ramdisk>
        <dir size="16M" mode="0755">{0}/www</dir>
      </ramdisk>
      <preload>
        <dircopy><src>{0}/golden</src><dst>{0}/www</dst></dircopy>
      </preload>
      <archive>
        <dircopy><src>{0}/log</src><dst>{0}/archive/%DATE%</dst></dircopy>
        <datestr><format>%Y-%m-%d</format><replace>%DATE%</replace></datestr>
      </archive>
      <post-rm-rf>
        <dir>{0}/log</dir>
        <dir>{0}/spool</dir>
        <dir>{0}/www</dir>
      </post-rm-rf>"""


class LeftOut(Exception):
    """Why a point is not measured here."""


class Bench:
    """The points, to be measured with so many runs in a directory that is empty at first.

    free: a function that returns how many bytes the directory has room for.
    """

    def __init__(self, directory, runs, free):
        self.directory, self.runs, self.free = Path(directory), runs, free

    def nothing(self):
        xml = self.guest("nothing.xml")
        ours, classic = self.hooks("nothing", OURS), self.hooks("nothing-sh", CLASSIC)
        times = self.compare(
            "1. Nothing to do",
            {
                "ours": lambda: seconds(ours, "web", *PREPARE, xml=xml),
                "python3": lambda: seconds(PYTHON, "-IS", "-c", "pass", xml=xml),
                "sh": lambda: seconds(classic, "web", *PREPARE, xml=xml),
            },
        )
        ratio = times["ours"] / times["python3"]
        goal("at most 1.35 times python3 -IS -c pass", ratio, ratio <= 1.35)

    def scripts(self):
        xml = self.guest("scripts.xml")
        numbers, names = (1, 3, 10, 30), ["ours", "sh"]
        if shutil.which("run-parts"):
            names.append("run-parts")
        contenders = {}
        for number in numbers:
            trivial = {f"{n:02}-trivial": TRIVIAL for n in range(number)}
            ours = self.hooks(f"scripts-{number}", OURS, trivial)
            classic = self.hooks(f"scripts-{number}-sh", CLASSIC, trivial)
            arguments = [f"--arg={argument}" for argument in ("web", *PREPARE)]
            run_parts = ["run-parts", "--stdin", "--exit-on-error", *arguments]
            commands = (
                [ours, "web", *PREPARE],
                [classic, "web", *PREPARE],
                [*run_parts, "--", ours.parent / PREPARE_D],
            )
            for name, command in zip(names, commands):
                contenders[number, name] = lambda command=command: seconds(*command, xml=xml)
        contenders["bare"] = lambda: seconds(ours.parent / PREPARE_D / "00-trivial", xml=xml)
        times = in_turn(contenders, self.runs)
        heading("2. Trivial scripts", names)
        for number in numbers:
            line(f"   {number}", [as_time(times[number, name]) for name in names])
            ratios([times[number, name] for name in names])
        each = [(times[30, name] - times[1, name]) / 29 for name in names]
        line("   each script", [as_time(value) for value in each])
        beyond = [value - times["bare"] for value in each]
        line(f"   beyond its own {as_time(times['bare'])}", [as_time(value) for value in beyond])
        goal("at most 1.2 ms beyond a script's own run", beyond[0] * 1000, beyond[0] <= 0.0012)

    def life(self):
        need_root()
        place = self.directory / "life"
        xml = self.guest("life.xml", ALL_FIVE.format(place))
        ours = self.hooks("life-ours", OURS)
        for directory in (PREPARE_D, RELEASE_D):
            shutil.copytree(
                CHECKOUT / directory, ours.parent / directory, symlinks=True, dirs_exist_ok=True
            )
        times = self.compare(
            "3. All five elements",
            {
                "ours": lambda: live(place, xml, ours),
                "plain": lambda: live(place, xml, CLASSIC),
                "floor": lambda: live(place, xml),
            },
        )
        ratio = times["ours"] / times["plain"]
        goal("at most 0.6 times the plain style, better 0.5", ratio, ratio <= 0.6)

    def idle(self):
        xml = self.guest("idle.xml")
        hooks = self.directory / "idle"
        install = [CHECKOUT / "install.sh", "--hooks-dir", hooks, "--no-reload"]
        install += ["--prefix", self.directory / "usr"]
        subprocess.run(install, check=True, stdout=subprocess.DEVNULL)
        scripts = [path for path in hooks.glob("lxc_*.d/[0-9]*") if not path.is_symlink()]

        def by_libvirt():
            return sum(
                seconds(path, "web", *phase, xml=xml) for phase in PHASES for path in scripts
            )

        times = self.compare(
            "4. No element",
            {
                "ours": lambda: sum(seconds(hooks / "lxc", "web", *p, xml=xml) for p in PHASES),
                "lxc.d/": by_libvirt,
            },
        )
        ratio = times["ours"] / times["lxc.d/"]
        goal("at most 0.35 times libvirt's own lxc.d/", ratio, ratio <= 0.35)

    def copies(self):
        need_root()
        for title, make, room in (
            ("5. 20,000 files of 1 KB", make_small_files, 4e8),
            ("   One file of 2 GB", make_big_file, 4.5e9),
            ("   Sparse file of 10 GB", make_sparse_file, 1.1e10),
        ):
            if self.free() < room:
                raise LeftOut(f"{title.lstrip(' 5.')} needs room for {as_size(room)}")
            place = self.directory / "copies"
            (place / "src").mkdir(parents=True)
            make(place / "src")
            # these two read or write the 10 GB of zeros, which takes a hundred times as long
            seldom = ("rsync", "copytree") if make == make_sparse_file else ()
            self.copy(title, place, seldom)
            if make == make_small_files:
                self.remove(place)
            shutil.rmtree(place)

    def copy(self, title, place, seldom):
        src, dst = f"{place}/src", f"{place}/dst"
        pair = f"<dircopy><src>{src}</src><dst>{dst}</dst></dircopy>"
        xml = self.guest("copies.xml", f"<preload>{pair}</preload><archive>{pair}</archive>")
        copytree = f"import shutil; shutil.copytree({src!r}, {dst!r}, symlinks=True)"
        commands = {
            "preload": (SCRIPTS["preload"], "web", *PREPARE),
            "archive": (SCRIPTS["archive"], "web", *RELEASE),
            "cp -a": ("cp", "-a", "--", src, dst),
            "rsync": ("rsync", "-aHAXS", "--", f"{src}/", dst),
            "copytree": (PYTHON, "-c", copytree),
        }
        if not shutil.which("rsync"):
            del commands["rsync"]
        used = {}

        def copy(name):
            took = seconds(*commands[name], xml=xml)
            if name not in used:
                used[name] = disk_used(dst)
            shutil.rmtree(dst)
            return took

        contenders = {name: lambda name=name: copy(name) for name in commands}
        times = in_turn(contenders, self.runs, seldom)
        files, size = amount(src)
        heading(title, times)
        line("   median", [as_time(took) for took in times.values()])
        if files > 1:
            line("   files a second", [f"{files / took:,.0f}" for took in times.values()])
        line("   bytes a second", [as_size(size / took) for took in times.values()])
        line("   disk used", [as_size(used[name]) for name in times])
        line("   speed to cp -a's", [f"{times['cp -a'] / took:.2f}" for took in times.values()])
        for name in ("preload", "archive"):
            speed = times["cp -a"] / times[name]
            goal(f"{name} at least 0.95 times cp -a", speed, speed >= 0.95)

    def remove(self, place):
        src, dst = f"{place}/src", f"{place}/dst"
        xml = self.guest("remove.xml", f"<post-rm-rf><dir>{dst}</dir></post-rm-rf>")
        commands = {
            "post-rm-rf": (SCRIPTS["post-rm-rf"], "web", *RELEASE),
            "rm -rf": ("rm", "-rf", "--", dst),
        }

        def remove(name):
            subprocess.run(["cp", "-a", src, dst], check=True)
            took = seconds(*commands[name], xml=xml)
            if os.path.exists(dst):
                raise Failed(f"{name} has not removed {dst}")
            return took

        files, _size = amount(src)
        times = in_turn({name: lambda name=name: remove(name) for name in commands}, self.runs)
        heading("   Removing the 20,000", times)
        line("   median", [as_time(took) for took in times.values()])
        line("   files a second", [f"{files / took:,.0f}" for took in times.values()])
        speed = times["rm -rf"] / times["post-rm-rf"]
        goal("post-rm-rf at least 0.95 times rm -rf", speed, speed >= 0.95)

    def memory(self):
        small, big = self.guest("small.xml"), self.guest("big.xml", size=40_000_000)
        ours = self.hooks("memory", OURS, {"10-peak": PEAK})
        classic = self.hooks("memory-sh", CLASSIC, {"10-peak": PEAK})
        filters = {"10-filter": "#!/bin/sh\nexec cat\n", "20-peak": PEAK}
        self.hooks("memory", OURS, filters, "lxc_migrate_begin_-.d")
        python = "print(*open('/proc/self/status'), file=__import__('sys').stderr)"
        cases = {"4 KB of XML": (small, PREPARE), "40 MB of XML": (big, PREPARE)}
        cases["40 MB, migrate"] = big, ("migrate", "begin", "-")
        peaks = {}
        for case, (xml, phase) in cases.items():
            contenders = {
                "ours": lambda xml=xml, phase=phase: peak(ours, "web", *phase, xml=xml),
                "python3": lambda: peak(PYTHON, "-IS", "-c", python),
                "sh": lambda xml=xml: peak(classic, "web", *PREPARE, xml=xml),
            }
            peaks[case] = in_turn(contenders, self.runs)
        heading("6. Peak memory", peaks["4 KB of XML"])
        for case in cases:
            line(f"   {case}", [as_size(value) for value in peaks[case].values()])
            ratios(list(peaks[case].values()))
        for case in cases:
            value = peaks[case]["ours"] / 1e6  # the XML itself is in a file in memory, not in ours
            goal(f"{case}: at most 16 MB beyond it", value, value <= 16)

    def growth(self):
        numbers = (1, 10, 100, 1000)
        contenders = {}
        os.environ["VIRT_HOOKS_DRY_RUN"] = "1"  # the time of cp and rm is theirs
        known = f"{TRIVIAL}# knows VIRT_HOOKS_DRY_RUN\n"  # or it would not be run
        xml = self.guest("growth.xml")
        for number in numbers:
            others = {f"file-{n}": "" for n in range(number)}
            scripts = {f"{n:04}-trivial": known for n in range(number)}
            for kind, files in (("other files", others), ("trivial scripts", scripts)):
                hooks = self.hooks(f"growth-{number}-{kind}", OURS, files)
                contenders[kind, number] = lambda h=hooks: seconds(h, "web", *PREPARE, xml=xml)
            for name, script in SCRIPTS.items():
                elements = self.guest(f"growth-{number}-{name}", self.elements(name, number))
                phase = RELEASE if RELEASE_D in str(script) else PREPARE
                contenders[name, number] = lambda script=script, phase=phase, elements=elements: (
                    seconds(script, "web", *phase, xml=elements)
                )
        times = in_turn(contenders, self.runs)
        heading("7. How many", [f"{number:,}" for number in numbers] + ["each"])
        worst = 0
        for kind in ("other files", "trivial scripts", *SCRIPTS):
            row = [times[kind, number] for number in numbers]
            each = (row[3] - row[2]) / (numbers[3] - numbers[2])
            title = f"<{kind}>" if kind in SCRIPTS else kind
            line(f"   {title}", [as_time(value) for value in [*row, each]])
            worst = max(worst, *(more / fewer for fewer, more in zip(row, row[1:])))
        goal("ten times as many take at most 10 times as long", worst, worst <= 10)
        del os.environ["VIRT_HOOKS_DRY_RUN"]

    def elements(self, name, number):
        """A guest's element of a name, with so many parts, for which everything is there."""
        place = self.directory / "elements"
        parts = ""
        for n in range(number):
            (place / f"{n}/src").mkdir(parents=True, exist_ok=True)
            if name in ("preload", "archive"):
                parts += f"<dircopy><src>{place}/{n}/src</src><dst>{place}/{n}/dst</dst></dircopy>"
            else:
                size = ' size="1M"' if name == "ramdisk" else ""
                parts += f"<dir{size}>{place}/{n}/src</dir>"
        return f"<{name}>{parts}</{name}>"

    def compare(self, title, contenders):
        """Measure contenders, ours first; print their medians, and ours to each; return them."""
        times = in_turn(contenders, self.runs)
        heading(title, times)
        line("   median", [as_time(took) for took in times.values()])
        ratios(list(times.values()))
        return times

    def guest(self, name, elements="", size=4096):
        """The path of a guest's XML, of at least so many bytes, with these elements of ours."""
        xml = (CHECKOUT / "tests/captures/libvirt-11.3.0/0-prepare.xml").read_text()
        hooks = f'<hooks xmlns="urn:virt-hooks:1">{elements}</hooks>' if elements else ""
        start, end = re.split("<metadata>.*</metadata>", xml, flags=re.DOTALL)
        padding = "what it is for\n" * ((size - len(xml)) // 15)
        metadata = f"<description>{padding}</description>\n  <metadata>{hooks}</metadata>"
        path = self.directory / name
        path.write_text(start + metadata + end)
        return path

    def hooks(self, name, dispatcher, scripts=(), phase_directory=PREPARE_D):
        """The path of a dispatcher, copied into a hooks directory with {name: text} of scripts."""
        hooks = self.directory / name
        (hooks / phase_directory).mkdir(parents=True)
        for script in scripts:
            path = hooks / phase_directory / script
            path.write_text(scripts[script])
            path.chmod(0o755)
        if dispatcher == OURS:
            shutil.copy(f"{OURS}_run.py", hooks)
        return shutil.copy(dispatcher, hooks / "lxc")


def need_root():
    if os.geteuid() != 0:
        raise LeftOut("it needs root")


def live(place, xml, dispatcher=None):
    """The time of a guest's life below a place: by a dispatcher, or as bare commands."""
    for name, number in (("golden", 5), ("log", 20)):
        (place / name).mkdir(parents=True)
        for n in range(number):
            (place / name / f"{name}-{n}").write_text("What a guest has to say in one line.\n" * 50)
    written = sorted(os.listdir(place / "log"))
    if dispatcher:
        took = seconds(dispatcher, "web", *PREPARE, xml=xml)
        if not os.path.ismount(place / "www") or len(os.listdir(place / "www")) != 5:
            raise Failed(f"{dispatcher} has not filled the ramdisk")
        took += sum(seconds(dispatcher, "web", *phase, xml=xml) for phase in PHASES[1:])
    else:
        took = seconds(HERE / "floor", place)
    archived = sorted(os.listdir(place / "archive" / time.strftime("%Y-%m-%d")))
    if archived != written or sorted(os.listdir(place)) != ["archive", "golden"]:
        raise Failed(f"{dispatcher or 'the floor'} has not done its work in {place}")
    shutil.rmtree(place)
    return took


def peak(*command, xml="/dev/null"):
    """The most memory that a process ever had, in bytes, of those that report it on stderr."""
    return int(re.search(r"VmHWM:\s*(\d+) kB", said_by(*command, xml=xml))[1]) * 1024


def make_small_files(src):
    for directory in range(200):
        (src / f"{directory}").mkdir()
        for file in range(100):
            (src / f"{directory}/{file}").write_bytes(b"0123456789abcdef" * 64)


def make_big_file(src):
    block = os.urandom(1 << 20)
    with open(src / "big", "wb") as file:
        for _ in range(2000):
            file.write(block)


def make_sparse_file(src):
    with open(src / "sparse", "wb") as file:
        file.truncate(10_000_000_000)
        for place in range(0, 10_000_000_000, 1_000_000_000):
            file.seek(place)
            file.write(os.urandom(1 << 20))


def amount(directory):
    """How many files a directory tree has, and of how many bytes."""
    sizes = [path.stat().st_size for path in Path(directory).rglob("*") if path.is_file()]
    return len(sizes), sum(sizes)


def disk_used(directory):
    return sum(path.lstat().st_blocks * 512 for path in Path(directory).rglob("*"))
