"""examples/: the scripts do what they say, and virt-hooks has nothing to say against them.

The pools of hugepages, the network, mounts and bridges are the kernel's own. There is no systemd
here: a program of the tests keeps its units, and tests/vm has the real one. Those of cpufreq are
the tests' own, too, since a machine may have none.
"""

import fcntl
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from harness import CHECKOUT, TestCase, install_dispatcher, run, snapshot
from scripts import guest_xml, uuid_of

EXAMPLES = sorted((CHECKOUT / "examples").glob("[0-9]*"))
INDEX = (CHECKOUT / "examples/README.md").read_text()
# {script: (what the guest must have, its phases, the name of its link, what it needs)}
ROWS = {
    name: tuple(cell.strip() for cell in rest.strip(" |").split("|"))
    for name, rest in re.findall(r"^\|[^|]*\| \[(.*?)\]\(.*?\) \|(.*)$", INDEX, re.MULTILINE)
}
STATE = Path("/run/virt-hooks")
CPUFREQ = Path("/sys/devices/system/cpu/cpufreq")
ONLINE = Path("/sys/devices/system/cpu/online")
HOOKS = Path("/etc/libvirt/hooks")

# What each example acts on, in a guest that has it all.
ELEMENTS = """
    <need-mount><dir>/srv</dir></need-mount><stop-unit>one.service</stop-unit><no-sleep/>
    <cpu-governor/><forward-port port="8080" to="10.77.0.5:80"/>
    <mail-crash>a@example.org</mail-crash><tune-interface>isolated on</tune-interface>"""
HUGEPAGES = "<memory unit='KiB'>5000</memory><memoryBacking><hugepages/></memoryBacking>"
PINNED = "<cputune><vcpupin vcpu='0' cpuset='0'/></cputune>"

# systemctl(1): a unit is a file that holds its state, a property of a slice is a file, too.
SYSTEMCTL = """#!/usr/bin/python3 -IS
import sys
from pathlib import Path
units = Path("{units}")
verb, *words = sys.argv[1:]
options = [word for word in words if word.startswith("-")]
names = [word for word in words if not word.startswith("-")]
with open(units / "log", "a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
if "--property=SystemState" in options:
    print("SystemState=" + (units / "system").read_text())
elif "-pAllowedCPUs" in options:
    print("\\n\\n".join((units / name).read_text() for name in names))
elif verb == "show":
    states = {{path.name: path.read_text() for path in units.iterdir()}}
    shown = [f"Id={{name}}\\nActiveState={{states.get(name, 'inactive')}}\\nJob=" for name in names]
    print("\\n\\n".join(shown))
    sys.exit(0 if all(names) else "Failed to mangle name: Invalid argument")
elif verb == "set-property":
    (units / names[0]).write_text(names[1].partition("=")[2])
else:
    for name in names:
        if not (units / name).exists():
            sys.exit(f"Unit {{name}} not loaded.")
        (units / name).write_text({{"stop": "inactive", "start": "active"}}[verb])
"""


def hostdev(kind, managed="yes"):
    """The <devices> of a guest that gets the host's device 0000:01:00.0."""
    address = "<address domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>"
    opening = f"<hostdev mode='subsystem' type='{kind}' managed='{managed}'>"
    return f"<devices>{opening}<source>{address}</source></hostdev></devices>"


def hold_the_pools(test):
    """Wait until no other module's test uses the pools of hugepages, which are the machine's."""
    script = open(CHECKOUT / "examples/20-hugepages")
    test.addCleanup(script.close)
    fcntl.flock(script, fcntl.LOCK_EX)


def phases_of(name):
    """The arguments after the guest for each of a script's phases."""
    for phase in ROWS[name][1].replace("release crashed", "crashed").split(", "):
        end = {"stopped": "end -", "release": "end shutdown", "crashed": "end crashed"}
        yield f"{phase.replace('crashed', 'release')} {end.get(phase, 'begin -')}"


class ExamplesTestCase(TestCase):
    SCRIPT = ""

    def setUp(self):
        super().setUp()
        self.programs = self.directory / "bin"
        self.programs.mkdir()
        self.environment = {"PATH": f"{self.programs}:{os.environ['PATH']}", "LC_ALL": "C"}
        self.addCleanup(shutil.rmtree, STATE, ignore_errors=True)

    def call(self, operation, xml, guest="web", dry_run=False, before=(), name=""):
        """Run an example, by default SCRIPT, in the phase of an operation."""
        ending = {"stopped": "end -", "release": "end shutdown"}.get(operation, "begin -")
        phase = operation if " " in operation else f"{operation} {ending}"
        environment = {**self.environment, **({"VIRT_HOOKS_DRY_RUN": "1"} if dry_run else {})}
        command = [*before, CHECKOUT / "examples" / (name or self.SCRIPT), guest, *phase.split()]
        return run(command, input=xml, env=environment)

    def program(self, name, text):
        """A program in place of one that this host lacks, or cannot run."""
        return self.write(
            f"bin/{name}", text if text[:2] == "#!" else f"#!/bin/sh\n{text}\n", 0o755
        )

    def without(self, missing, *needed):
        """Let the scripts find these programs only."""
        for name in needed:
            (self.programs / name).symlink_to(shutil.which(name))
        self.assertFalse((self.programs / missing).exists())
        self.environment["PATH"] = str(self.programs)

    def use_units(self, **units):
        """Have a systemctl that knows these units and slices, in a system that runs."""
        self.units = self.directory / "units"
        self.units.mkdir()
        self.set_units(system="running", **units)
        self.program("systemctl", SYSTEMCTL.format(units=self.units))

    def set_units(self, **units):
        for name, state in units.items():
            (self.units / name.replace("_", ".")).write_text(state)

    def unit(self, name):
        return (self.units / name).read_text()

    def use_cpufreq(self, *governors):
        """Have these governors, one for each CPU."""
        run(["mount", "-t", "tmpfs", "tests", CPUFREQ], check=True)
        self.addCleanup(run, ["umount", CPUFREQ], check=True)
        for number, governor in enumerate(governors):
            policy = CPUFREQ / f"policy{number}"
            policy.mkdir()
            (policy / "scaling_governor").write_text(f"{governor}\n")
            offer = "performance powersave schedutil \n"
            (policy / "scaling_available_governors").write_text(offer)

    def states(self):
        """The files in which guests' states are kept."""
        return sorted(path.name for path in STATE.glob("*-*") if path.suffix != ".lock")

    def assert_works(self, *arguments, **options):
        self.assert_succeeds(self.call(*arguments, **options))

    def assert_dry_run(self, operation, xml, *texts):
        """A dry run says this, and keeps nothing."""
        before = self.states()
        result = self.call(operation, xml, dry_run=True)
        self.assert_succeeds(result)
        for text in texts:
            self.assertIn(text, result.stdout)
        self.assertEqual(self.states(), before)

    def killed_at_each_call(self, operation, xml):
        """Run the script again and again, and kill it each time before another system call."""
        for call in ("write", "rename", "unlink"):
            number = 0
            killed = True
            while killed:
                number += 1
                kill = f"inject={call}:signal=KILL:when={number}"
                trace = ["strace", "-qq", "-o", self.directory / "trace", "-e", f"trace={call}"]
                result = self.call(operation, xml, before=[*trace, "-e", kill])
                killed = result.returncode == -signal.SIGKILL
                if killed:
                    yield f"{call} {number}"
                else:
                    self.assertEqual(result.returncode, 0, result.stderr)


class Every(ExamplesTestCase):
    def test_it_is_short_and_says_what_it_reads_and_is_for(self):
        command = [CHECKOUT / "command/virt-hooks", "list", "--hooks-dir", self.directory]
        phase = self.directory / "lxc_prepare_begin_-.d"
        phase.mkdir()
        for path in EXAMPLES:
            with self.subTest(path.name):
                shutil.copy(path, phase)
                text = path.read_text()
                self.assertLessEqual(len(text.splitlines()), 80)
                self.assertIn("VIRT_HOOKS_DRY_RUN", text)
                self.assertRegex(text[:1200], r"Phases?: ")
                line = next(s for s in run(command).stdout.splitlines() if path.name in s)
                self.assertRegex(line, rf"{path.name}  +<[a-z-]+>  +[a-z]+s .*[a-z]")

    def test_the_index_has_a_line_for_it_that_says_what_its_head_says(self):
        for path in EXAMPLES:
            with self.subTest(path.name):
                element, phases, link, needs = ROWS[path.name]
                text = path.read_text()
                self.assertEqual(text.splitlines()[1], f"# element: {element.split('<')[1][:-2]}")
                head = text.split("Phase", 1)[1][:900]
                for phase in phases.replace(",", "").split():
                    self.assertIn(phase, head)
                self.assertEqual(bool(link), len(list(phases_of(path.name))) > 1)
                self.assertEqual("xmllint" in needs, "xmllint" in text)

    def test_check_finds_nothing_where_it_is_installed_and_asked_for(self):
        self.use_cpufreq("powersave")
        self.use_units(one_service="active")
        install_dispatcher(self.directory / "lxc")
        file = self.write("web.xml", guest_xml(ELEMENTS, more=HUGEPAGES + PINNED))
        for path in EXAMPLES:
            for phase in phases_of(path.name):
                phase = "_".join([*phase.split()[:2], "-"])  # libvirt may give no reason
                directory = self.directory / f"lxc_{phase}.d"
                directory.mkdir(exist_ok=True)
                shutil.copy(path, directory)
        command = [CHECKOUT / "command/virt-hooks", "check", "--hooks-dir", self.directory, file]
        result = run(command)
        self.assertEqual((result.returncode, result.stdout, result.stderr), (0, "", ""))

    def test_it_leaves_guests_alone_that_have_the_word_in_another_place(self):
        for path in EXAMPLES:
            name = path.read_text().split("# element: ")[1].split()[0]
            foreign = f'<x:{name} xmlns:x="urn:other">{name}</x:{name}>'
            for phase in phases_of(path.name):
                with self.subTest(path.name, phase=phase):
                    self.assert_works(phase, guest_xml(foreign), name=path.name)
                    self.assertEqual(self.states(), [])

    def test_it_may_meet_the_end_without_the_beginning_and_twice(self):
        self.use_cpufreq("powersave")
        slices = {"user_slice": "", "system_slice": "", "init_scope": ""}
        self.use_units(one_service="inactive", **slices)
        rules = run(["nft", "list", "ruleset"]).stdout
        for path in EXAMPLES:
            for phase in list(phases_of(path.name))[1:] * 2:
                if path.name != "40-no-sleep":  # see NoSleep
                    xml = guest_xml(ELEMENTS, more=HUGEPAGES + PINNED)
                    self.assert_works(phase, xml, name=path.name)
        self.assertEqual(self.states(), [])
        self.assertEqual(run(["nft", "list", "ruleset"]).stdout, rules)
        self.assertEqual([self.unit(name.replace("_", ".")) for name in slices], ["", "", ""])
        self.assertEqual(self.unit("one.service"), "inactive")

    def test_in_phases_that_are_not_its_own_it_does_nothing(self):
        self.use_cpufreq("powersave")
        self.use_units(one_service="active", user_slice="", system_slice="", init_scope="")
        hold_the_pools(self)
        self.addCleanup(run, ["nft", "flush", "ruleset"])
        xml = guest_xml(ELEMENTS, more=HUGEPAGES + PINNED)

        def host():
            return (snapshot(STATE), snapshot(self.units), snapshot(CPUFREQ),
                    run(["nft", "list", "ruleset"]).stdout)  # fmt: skip

        for path in EXAMPLES:
            phases = [phase.split()[0] for phase in phases_of(path.name)]
            if len(phases) == 1 or path.name == "30-free-gpu":  # see FreeGpu
                continue
            with self.subTest(path.name):
                if path.name != "40-no-sleep":
                    self.assert_works(phases[0], xml, name=path.name)
                before = host()
                others = {"prepare", "start", "started", "reconnect", "stopped", "release"}
                for operation in sorted(others.difference(phases)):
                    self.assert_works(operation, xml, name=path.name)
                    self.assert_works(operation, xml, name=path.name, dry_run=True)
                self.assertEqual(host(), before)
                if path.name != "40-no-sleep":
                    self.assert_works(phases[1], xml, name=path.name)

    def test_a_users_own_guest_starts_as_before_where_only_libvirts_elements_ask(self):
        xml = guest_xml("", more=HUGEPAGES + PINNED + hostdev("usb"))
        framebuffer = Path("/dev/fb0")  # of the tests' own /dev
        framebuffer.touch(0o600)
        self.addCleanup(framebuffer.unlink)
        for name in ("20-hugepages", "20-isolate-cpus", "30-free-gpu"):
            as_user = ["setpriv", "--reuid=1234", "--regid=1234", "--clear-groups"]
            for operation in ("prepare", "release"):
                self.assert_works(operation, xml, name=name, before=as_user)

    def test_what_is_no_xml_is_an_error_in_one_line(self):
        for path in EXAMPLES:
            if path.read_text().startswith("#!/usr/bin/python3"):
                result = self.call("prepare", "<domain", name=path.name)
                self.assertEqual(result.returncode, 1)
                self.assertEqual(len(result.stderr.splitlines()), 1, result.stderr)
                self.assert_error(result, name=path.name)


class NeedMount(ExamplesTestCase):
    SCRIPT = "05-need-mount"
    ELEMENTS = "<need-mount><dir>/srv</dir><dir>{}</dir></need-mount>"

    def test_a_guest_starts_only_while_its_storage_is_mounted(self):
        place = self.directory / "nfs share"
        place.mkdir()
        xml = guest_xml(self.ELEMENTS.format(place))
        for dry_run in (False, True):
            result = self.call("prepare", xml, dry_run=dry_run)
            self.assert_error(result, "need-mount", str(place))
        run(["mount", "-t", "tmpfs", "tests", place], check=True)
        self.assert_works("prepare", xml)

    def test_what_is_no_directory_is_an_error(self):
        for element in ("/srv/nfs", "", "<directory>/srv</directory>", "<dir/>"):
            result = self.call("prepare", guest_xml(f"<need-mount>{element}</need-mount>"))
            self.assert_error(result, "need-mount")

    def test_what_is_mounted_on_demand_must_really_be_mounted(self):
        """As with systemd's x-systemd.automount: the mount point is one before anything is there.

        The program stands for systemd, whose server does not answer: it refuses each mount (see
        autofs in the kernel's documentation).
        """
        place = self.directory / "nfs"
        place.mkdir()
        requests, kernels_end = os.pipe()
        options = f"fd={kernels_end},pgrp={os.getpgrp()},minproto=5,maxproto=5,direct"
        mounted = run(["mount", "-i", "-t", "autofs", "-o", options, "tests", place],
                      pass_fds=[kernels_end])  # fmt: skip
        os.close(kernels_end)
        self.addCleanup(os.close, requests)
        self.assert_succeeds(mounted)
        self.addCleanup(run, ["umount", place], check=True)
        control = os.open(place, os.O_RDONLY)
        self.addCleanup(os.close, control)

        def refuse():
            while request := os.read(requests, 4096):
                fcntl.ioctl(control, 0x9361, int.from_bytes(request[8:12], sys.byteorder))

        threading.Thread(target=refuse, daemon=True).start()
        xml = guest_xml(f"<need-mount><dir>{place}</dir></need-mount>")
        result = self.call("prepare", xml, before=["setsid", "--wait"])
        self.assert_error(result, "need-mount", str(place))

    def test_it_does_not_start_where_xmllint_is_missing(self):
        self.without("xmllint", "cat", "stat", "mountpoint", "seq", "sh")
        result = self.call("prepare", guest_xml(self.ELEMENTS.format("/srv")))
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("xmllint", result.stderr)


class StopUnit(ExamplesTestCase):
    SCRIPT = "10-stop-unit"

    def setUp(self):
        super().setUp()
        self.use_units(one="active", two="active", off="inactive")

    def xml(self, *units, guest="web"):
        return guest_xml("".join(f"<stop-unit> {unit} </stop-unit>" for unit in units), guest)

    def assert_states(self, *states):
        self.assertEqual([self.unit(name) for name in ("one", "two", "off")], list(states))

    def test_units_stop_before_the_guest_and_those_that_were_active_start_after_it(self):
        for _life in range(2):
            self.assert_works("prepare", self.xml("one", "off"))
            self.assert_states("inactive", "active", "inactive")
            for _twice in range(2):
                self.assert_works("release", self.xml("one", "off"))
                self.assert_states("active", "active", "inactive")
                self.assertEqual(self.states(), [])

    def test_a_unit_that_several_guests_have_stopped_starts_after_the_last(self):
        self.assert_works("prepare", self.xml("one", "two"))
        self.assert_works("prepare", self.xml("one", "off", guest="db"))
        self.assert_works("release", self.xml("one", "two"))
        self.assert_states("inactive", "active", "inactive")
        self.assert_works("release", self.xml("one", "off", guest="db"))
        self.assert_states("active", "active", "inactive")

    def test_two_guests_that_start_and_end_at_the_same_time_leave_all_as_it_was(self):
        guests = [f"guest{number}" for number in range(8)]
        for operation in ("prepare", "release"):
            xmls = [self.xml("one", "two", guest=guest) for guest in guests]
            threads = [threading.Thread(target=self.call, args=(operation, xml)) for xml in xmls]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assert_states(*(["inactive"] * 2 if operation == "prepare" else ["active"] * 2),
                               "inactive")  # fmt: skip
        self.assertEqual(self.states(), [])

    def test_a_unit_that_does_not_exist_keeps_the_guest_from_starting(self):
        for unit in ("nosuch", ""):
            result = self.call("prepare", self.xml("one", unit))
            self.assert_error(result, unit, programs_said=True)
            self.assert_works("release", self.xml("one", unit))
            self.assert_states("active", "active", "inactive")

    def test_no_unit_is_started_while_the_host_shuts_down(self):
        self.assert_works("prepare", self.xml("one"))
        self.set_units(system="stopping")
        self.assert_works("release", self.xml("one"))
        self.assert_states("inactive", "active", "inactive")

    def test_a_dry_run_says_what_it_would_do(self):
        self.assert_dry_run("prepare", self.xml("one", "two"), "stop one", "stop two")
        self.assert_dry_run("release", self.xml("one", "two"), "start one", "start two")
        self.assert_states("active", "active", "inactive")

    def test_wherever_it_is_killed_the_release_starts_what_was_active(self):
        for kill in self.killed_at_each_call("prepare", self.xml("one", "off")):
            with self.subTest(kill):
                self.assert_works("release", self.xml("one", "off"))
                self.assert_states("active", "active", "inactive")
        self.assert_works("release", self.xml("one", "off"))


class CpuGovernor(ExamplesTestCase):
    SCRIPT = "20-cpu-governor"

    def setUp(self):
        super().setUp()
        self.use_cpufreq("powersave", "schedutil")

    def xml(self, governor="", guest="web"):
        return guest_xml(f"<cpu-governor>{governor}</cpu-governor>", guest)

    def assert_governors(self, *governors):
        files = sorted(CPUFREQ.glob("*/scaling_governor"))
        self.assertEqual([file.read_text().strip() for file in files], list(governors))

    def test_each_cpu_gets_back_what_it_had(self):
        for text, governor in (("", "performance"), (" schedutil ", "schedutil")):
            for _again in range(2):
                self.assert_works("prepare", self.xml(text))
                self.assert_governors(governor, governor)
            for _twice in range(2):
                self.assert_works("release", self.xml(text))
                self.assert_governors("powersave", "schedutil")
        self.assertEqual(self.states(), [])

    def test_of_several_guests_each_has_what_it_asks_for_when_the_later_ones_have_ended(self):
        for first in ("web", "db"):
            self.assert_works("prepare", self.xml("performance"))
            self.assert_works("prepare", self.xml("schedutil", guest="db"))
            self.assert_governors("schedutil", "schedutil")
            self.assert_works("release", self.xml(guest=first))
            self.assert_governors(*["schedutil" if first == "web" else "performance"] * 2)
            self.assert_works("release", self.xml(guest="db" if first == "web" else "web"))
            self.assert_governors("powersave", "schedutil")

    def test_a_governor_that_the_host_does_not_have_is_refused(self):
        result = self.call("prepare", self.xml("perfomance"))
        self.assert_error(result, "cpu-governor", "perfomance")
        self.assert_governors("powersave", "schedutil")
        self.assert_works("release", self.xml("perfomance"))

    def test_a_host_without_cpufreq_refuses_the_guest(self):
        for policy in CPUFREQ.iterdir():
            shutil.rmtree(policy)
        result = self.call("prepare", self.xml())
        self.assert_error(result, "cpu-governor", "performance")

    def test_a_dry_run_says_what_it_would_do(self):
        self.assert_dry_run("prepare", self.xml(), "performance")
        self.assert_dry_run("release", self.xml(), "before")
        self.assert_governors("powersave", "schedutil")

    def test_wherever_it_is_killed_the_release_gives_all_back(self):
        for operation in ("prepare", "release"):
            for kill in self.killed_at_each_call(operation, self.xml()):
                with self.subTest(kill):
                    self.assert_works("release", self.xml())
                    self.assert_governors("powersave", "schedutil")
                    if operation == "release":
                        self.assert_works("prepare", self.xml())
            self.assert_works("prepare", self.xml())


class Hugepages(ExamplesTestCase):
    """With the real kernel's pools, which are the host's; they get a few pages for a moment."""

    SCRIPT = "20-hugepages"

    def setUp(self):
        super().setUp()
        hold_the_pools(self)
        self.pools = {}  # {size in KiB: (its pool, what it has)}
        for pool in Path("/sys/kernel/mm/hugepages").glob("*/nr_hugepages"):
            size = int(pool.parent.name[10:-2])
            self.pools[size] = pool, int(pool.read_text())
            self.addCleanup(pool.write_text, pool.read_text())

    def need_room(self, count, size=2048):
        """Skip the test where the kernel has no room for so many pages of a size."""
        pool, before = self.pools.get(size, (None, 0))
        if pool:
            pool.write_text(f"{before + count}")
            room = int(pool.read_text()) == before + count
            pool.write_text(f"{before}")
        if not pool or not room:
            self.skipTest(f"the kernel has no room for {count} hugepages of {size} KiB")

    def xml(self, guest="web", page="", more="", memory="<memory unit='KiB'>5000</memory>"):
        backing = f"<memoryBacking><hugepages>{page}</hugepages></memoryBacking>"
        return guest_xml("", guest, more=memory + backing + more)

    def assert_more(self, more, size=2048):
        """A pool has so many pages more than at first, and the others have as many."""
        for each, (pool, before) in self.pools.items():
            self.assertEqual(int(pool.read_text()), before + (more if each == size else 0), pool)

    def test_the_guests_memory_is_added_and_taken_back_once(self):
        self.need_room(8)
        for operation, more in (
            *(("prepare", 3), ("prepare", 3), ("release", 0), ("release", 0)),
            *(("prepare", 3), ("release", 0)),
        ):
            self.assert_works(operation, self.xml())
            self.assert_more(more)  # 5,000 KiB, 2 MiB a page
        self.assertEqual(self.states(), [])

    def test_the_pool_is_that_of_the_page_size_whatever_the_units(self):
        self.need_room(3)
        self.need_room(2, 1 << 20)
        for size, page, memory, count in (
            (1 << 20, "<page size='1' unit='GiB'/>", "<memory unit='GiB'>2</memory>", 2),
            (1 << 20, "<page size='1048576' unit='KiB' nodeset='0'/>", "<memory>1</memory>", 1),
            (1 << 20, "<page size='1024' unit='MiB'/>", "<memory unit='MiB'>1025</memory>", 2),
            (2048, "<page size='2' unit='MiB'/>", "<memory unit='MiB'>5</memory>", 3),
            (2048, "<page size='2048'/>", "<memory unit='MiB'>6</memory>", 3),
        ):
            with self.subTest(page):
                self.assert_works("prepare", self.xml(page=page, memory=memory))
                self.assert_more(count, size)
                self.assert_works("release", self.xml(page=page, memory=memory))
                self.assert_more(0)

    def test_a_node_of_the_host_has_its_own_pool(self):
        self.need_room(8)
        pool = Path("/sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages")
        before = int(pool.read_text())
        for tuned in ("<memory mode='strict' nodeset='0'/>", "<memnode cellid='0' nodeset='0'/>"):
            xml = self.xml(more=f"<numatune>{tuned}</numatune>")
            self.assert_works("prepare", xml)
            self.assertEqual(int(pool.read_text()), before + 3)
            self.assert_works("release", xml)
            self.assertEqual(int(pool.read_text()), before)

    def test_what_it_cannot_serve_is_refused_and_leaves_no_trouble_behind(self):
        tune = "<numatune><memory nodeset='{}'/></numatune>"
        several = "<page size='2' unit='MiB'/><page size='1' unit='GiB' nodeset='1'/>"
        cells = "<cpu><numa><cell id='0' memory='1'/><cell id='1' memory='1'/></numa></cpu>"
        for xml, value in (
            (self.xml(more=tune.format("0-99")), "0-99"),
            (self.xml(more=tune.format("99")), "99"),
            (self.xml(page="<page size='3' unit='MiB'/>"), "3072"),
            (self.xml(page="<page size='2' unit='MB'/>"), "MB"),
            (self.xml(page=several), "nodeset"),
            (self.xml(page="<page size='2048' nodeset='1'/>", more=cells), "nodeset"),
        ):
            with self.subTest(value):
                result = self.call("prepare", xml)
                self.assert_error(result, value)
                self.assert_more(0)
                self.assert_works("release", xml)

    def test_pages_that_others_have_added_stay(self):
        self.need_room(8)
        self.assert_works("prepare", self.xml())
        self.assert_works("prepare", self.xml("db"))
        self.assert_more(6)
        pool, before = self.pools[2048]
        pool.write_text(f"{before + 7}")
        self.assert_works("release", self.xml())
        self.assert_more(4)
        self.assert_works("release", self.xml("db"))
        self.assert_more(1)

    def test_a_guest_for_which_there_is_no_room_does_not_start(self):
        self.need_room(0, 1 << 20)
        memory, page = "<memory unit='TiB'>64</memory>", "<page size='1' unit='GiB'/>"
        result = self.call("prepare", self.xml(page=page, memory=memory))
        self.assert_error(result, "hugepages", "65536")
        self.assert_more(0)
        self.assert_works("release", self.xml(page=page, memory=memory))
        self.assertEqual(self.states(), [])
        self.assert_more(0)

    def test_the_others_keep_their_pages_where_one_gets_none_or_is_killed(self):
        """Another guest may wait for the lock, and start before the first one's release."""
        self.need_room(8)
        memory, page = "<memory unit='TiB'>64</memory>", "<page size='2' unit='MiB'/>"
        self.assert_error(self.call("prepare", self.xml(page=page, memory=memory)), "hugepages")
        self.assert_works("prepare", self.xml("db"))
        self.assert_works("release", self.xml())
        self.assert_more(3)
        for kill in self.killed_at_each_call("prepare", self.xml()):
            with self.subTest(kill):
                self.assert_works("prepare", self.xml("other"))
                self.assert_works("release", self.xml())
                self.assert_more(6)
                self.assert_works("release", self.xml("other"))
                self.assert_more(3)

    def test_after_a_lost_release_the_guest_gets_what_it_now_asks_for(self):
        self.need_room(8)
        for memory, more in (("5000", 3), ("10000", 5), ("1000", 1)):
            self.assert_works("prepare", self.xml(memory=f"<memory>{memory}</memory>"))
            self.assert_more(more)
        refused = self.xml(page="<page size='3' unit='MiB'/>")
        self.assert_error(self.call("prepare", refused), "3072")
        self.assert_works("release", refused)
        self.assert_more(0)

    def test_a_dry_run_says_what_it_would_do(self):
        self.assert_dry_run("prepare", self.xml(), "3 pages", "2048kB")
        self.assert_dry_run("release", self.xml(), "3 pages", "2048kB")
        self.assert_more(0)

    def test_wherever_it_is_killed_the_release_gives_back_exactly_what_it_got(self):
        self.need_room(8)
        self.assert_works("prepare", self.xml("db"))  # which runs meanwhile
        for kill in self.killed_at_each_call("prepare", self.xml()):
            with self.subTest(kill):
                self.assert_works("release", self.xml())
                self.assert_more(3)
        for kill in self.killed_at_each_call("release", self.xml()):
            with self.subTest(kill):
                self.assert_works("release", self.xml())
                self.assert_more(3)
                self.assert_works("prepare", self.xml())
        self.assert_works("release", self.xml())
        self.assert_more(3)


class IsolateCpus(ExamplesTestCase):
    SCRIPT = "20-isolate-cpus"
    SLICES = ("user.slice", "system.slice", "init.scope")

    def setUp(self):
        super().setUp()
        self.use_units(user_slice="", system_slice="0-5", init_scope="")
        online = self.write("online", "0-7\n")
        run(["mount", "--bind", online, ONLINE], check=True)
        self.addCleanup(run, ["umount", ONLINE], check=True)

    def xml(self, guest="web", **pins):
        """pins: such as vcpupin="2-3"; several with ";" between them."""
        lists = [(tag, part) for tag, text in pins.items() for part in text.split(";")]
        pinned = "".join(f"<{tag} cpuset='{part}'/>" for tag, part in lists)
        return guest_xml("", guest, more=f"<cputune><shares>9</shares>{pinned}</cputune>")

    def assert_cpus(self, *cpus):
        cpus = cpus if len(cpus) == 3 else cpus * 3
        self.assertEqual([self.unit(name) for name in self.SLICES], list(cpus))

    def test_the_slices_leave_the_cpus_of_all_guests_that_are_pinned(self):
        web = self.xml(vcpupin="2;3-4", emulatorpin="7")
        db = self.xml("db", vcpupin="4-6,^5")
        self.assert_works("prepare", web)
        self.assert_cpus("0,1,5,6")
        self.assert_works("prepare", db)
        self.assert_cpus("0,1,5")
        for _twice in range(2):
            self.assert_works("release", web)
            self.assert_cpus("0,1,2,3,5,7")
        for _twice in range(2):
            self.assert_works("release", db)
            self.assert_cpus("", "0-5", "")
        self.assertEqual(self.states(), [])

    def test_all_cpus_come_before_no_limit_since_systemd_may_leave_the_old_one_in_place(self):
        self.assert_works("prepare", self.xml(vcpupin="1"))
        self.assert_works("release", self.xml(vcpupin="1"))
        said = [line for line in self.unit("log").splitlines() if "user.slice AllowedCPUs" in line]
        self.assertEqual([line.partition("=")[2] for line in said],
                         ["0,2,3,4,5,6,7", "0,1,2,3,4,5,6,7", ""])  # fmt: skip

    def test_a_second_start_keeps_what_was_there_at_first(self):
        for cpus in ("2", "3"):
            self.assert_works("prepare", self.xml(vcpupin=cpus))
        self.assert_cpus("0,1,2,4,5,6,7")
        self.assert_works("release", self.xml(vcpupin="3"))
        self.assert_cpus("", "0-5", "")

    def test_the_last_cpu_is_refused_and_the_emulator_then_shares_it(self):
        self.assert_works("prepare", self.xml("db", vcpupin="4-7"))
        for pins in ({"vcpupin": "0-3"}, {"vcpupin": "0;1;2;3", "emulatorpin": "4"}):
            result = self.call("prepare", self.xml(**pins))
            self.assert_error(result, "vcpupin")
            self.assert_cpus("0,1,2,3")
            self.assert_works("release", self.xml(**pins))
        self.assert_works("prepare", self.xml(vcpupin="2-3", emulatorpin="0-1", iothreadpin="1"))
        self.assert_cpus("0,1")
        self.assert_works("release", self.xml(vcpupin="2-3", emulatorpin="0-1"))
        self.assert_cpus("0,1,2,3")

    def test_a_guest_without_pinned_vcpus_changes_nothing(self):
        self.assert_works("prepare", self.xml())
        self.assert_works("prepare", self.xml(emulatorpin="3"))
        self.assert_cpus("", "0-5", "")
        self.assertEqual(self.states(), [])

    def test_a_dry_run_says_what_it_would_do(self):
        self.assert_dry_run("prepare", self.xml(vcpupin="2-3"), "{2, 3}")
        self.assert_dry_run("release", self.xml(vcpupin="2-3"), "{2, 3}")
        self.assert_cpus("", "0-5", "")

    def test_wherever_it_is_killed_the_release_gives_all_back(self):
        xml = self.xml(vcpupin="2-3")
        for operation in ("prepare", "release"):
            for kill in self.killed_at_each_call(operation, xml):
                with self.subTest(kill):
                    self.assert_works("release", xml)
                    self.assert_cpus("", "0-5", "")
                    if operation == "release":
                        self.assert_works("prepare", xml)
            self.assert_works("prepare", xml)


class ForwardPortTestCase(ExamplesTestCase):
    SCRIPT = "30-forward-port"

    def setUp(self):
        super().setUp()
        self.addCleanup(run, ["nft", "flush", "ruleset"])

    def xml(self, *ports, guest="web"):
        """ports: attributes, such as port="8080" to="10.77.0.5:80"."""
        return guest_xml("".join(f"<forward-port {port}/>" for port in ports), guest)

    def ruleset(self):
        return run(["nft", "list", "ruleset"]).stdout


class ForwardPort(ForwardPortTestCase):
    def test_ports_are_forwarded_from_the_start_to_the_stop(self):
        before = self.ruleset()
        ports = [f'port="{port}" to="10.77.0.5:80"' for port in (8080, 8443)]
        for _again in range(2):  # as after a start that failed
            self.assert_works("start", self.xml(*ports))
            self.assert_works("start", self.xml('port="81" to="10.77.0.6:80"', guest="db"))
            for port in (8080, 8443):
                rule = f"tcp dport {port} dnat to 10.77.0.5:80"
                self.assertEqual(self.ruleset().count(rule), 2)  # from outside, from the host
        self.assert_works("stopped", self.xml(guest="db"))
        for _twice in range(2):
            self.assert_works("stopped", self.xml(*ports))
            self.assertEqual(self.ruleset(), before)

    def test_what_is_no_port_or_address_keeps_the_guest_from_starting(self):
        before = self.ruleset()
        for port, value in (
            ('port="http!" to="10.77.0.5:80"', "http!"),
            ('port="99999" to="10.77.0.5:80"', "99999"),
            ('port="80" to="10.77.0.555:80"', "10.77.0.555"),
            ('port="80; flush ruleset" to="10.77.0.5:80"', "80; flush"),
            ('port="80"', "80"),
            ('port="8080" to="80"', "'80'"),
            ('port="8080" to=":80"', "':80'"),
            ('port="8080" to="10.77.0.5"', "10.77.0.5"),
            ('to="10.77.0.5:80"', "10.77.0.5"),
            ('port="80" to="10.77.0.5:80" protocol="icmp"', "icmp"),
            ('port="80" to="10.77.0.5:80" protocl="udp"', "protocl"),
        ):
            for dry_run in (False, True):
                with self.subTest(port):
                    result = self.call("start", self.xml(port), dry_run=dry_run)
                    self.assert_error(result, "forward-port", value, programs_said=None)
                    self.assertEqual(self.ruleset(), before)
            self.assert_works("stopped", self.xml(port))

    def test_a_dry_run_changes_nothing(self):
        before = self.ruleset()
        xml = self.xml('port="8080" to="10.77.0.5:80"')
        self.assert_dry_run("start", xml, "8080", "10.77.0.5:80")
        self.assertEqual(self.ruleset(), before)
        self.assert_works("start", xml)
        before = self.ruleset()
        self.assert_dry_run("stopped", xml, f"forward-port-{uuid_of('web')}")
        self.assertEqual(self.ruleset(), before)


SERVER = """
import select, socket, sys
name = sys.argv[1].encode()
tcp = [socket.create_server(("", int(port))) for port in sys.argv[2:]]
udp = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for port in sys.argv[2:]]
for port, server in zip(sys.argv[2:], udp):
    server.bind(("", int(port)))
print("listens", flush=True)
while True:
    for server in select.select(tcp + udp, [], [])[0]:
        if server in tcp:
            connection, address = server.accept()
            connection.sendall(name + b" sees " + address[0].encode())
            connection.close()
        else:
            address = server.recvfrom(9)[1]
            server.sendto(name + b" sees " + address[0].encode(), address)
"""
CLIENT = """
import socket, sys
kind, address, port = sys.argv[1:]
kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[kind]
with socket.socket(socket.AF_INET, kind) as client:
    client.settimeout(20)
    try:
        client.connect((address, int(port)))
        if kind == socket.SOCK_DGRAM:
            client.send(b"x")
        print(client.recv(99).decode())
    except ConnectionRefusedError:
        print("refused")
"""


class RoutedTestCase(ForwardPortTestCase):
    """Hosts of networks of their own, each in a network namespace, with this host between them."""

    def setUp(self):
        super().setUp()
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        Path("/proc/sys/net/ipv4/icmp_ratelimit").write_text("0")  # or a refusal may get lost

    def add_host(self, name, network, bridge=None):
        """A host with the address 5 of a network, and this one with 1, or a bridge that has it."""
        self.ip(f"netns add {name}")
        self.addCleanup(run, ["ip", "netns", "delete", name])
        # now; with its namespace it would go some time later, and be in the next test's way
        self.addCleanup(run, ["ip", "link", "delete", name])
        self.ip(
            f"link add {name} type veth peer name eth0 netns {name}",
            f"link set {name} master {bridge}" if bridge else f"addr add {network}.1/24 dev {name}",
            f"link set {name} up",
            f"-n {name} addr add {network}.5/24 dev eth0",
            f"-n {name} link set eth0 up",
            f"-n {name} link set lo up",
            f"-n {name} route add default via {network}.1",
        )

    def ip(self, *commands):
        for command in commands:
            run(["ip", *command.split()], check=True)

    def listen(self, host, port):
        command = ["ip", "netns", "exec", host, "/usr/bin/python3", "-IS", "-c", SERVER]
        process = subprocess.Popen([*command, host, str(port)], stdout=subprocess.PIPE)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        self.assertEqual(process.stdout.readline(), b"listens\n")

    def asks(self, host, address, port=8080, kind="tcp"):
        """What answers to a host, or to this one, at an address."""
        inside = ["ip", "netns", "exec", host] if host else []
        command = ["/usr/bin/python3", "-IS", "-c", CLIENT, kind, address, str(port)]
        return run([*inside, *command]).stdout.strip()


class Routed(RoutedTestCase):
    def setUp(self):
        super().setUp()
        for name, network in (("client", "10.88.0"), ("guest", "10.77.0"), ("server", "10.99.0")):
            self.add_host(name, network)
        self.listen("guest", 80)
        self.listen("server", 8080)

    def answers(self):
        """{(host, address, protocol): what answers at 8080}."""
        addresses = ("10.88.0.1", "10.77.0.1", "10.99.0.5", "127.0.0.1")
        return {
            (host, address, kind): self.asks(host, address, kind=kind)
            for host in ("client", "")
            for address in addresses
            for kind in ("tcp", "udp")
        }

    def test_only_what_is_addressed_to_the_host_is_forwarded(self):
        before = self.answers()
        self.assertEqual(before["client", "10.99.0.5", "tcp"], "server sees 10.88.0.5")
        self.assertEqual(before["client", "10.88.0.1", "tcp"], "refused")
        for kind, attribute in (("tcp", ""), ("udp", ' protocol="udp"')):
            xml = self.xml(f'port="8080" to="10.77.0.5:80"{attribute}')
            self.assert_works("start", xml)
            forwarded = {
                ("client", "10.88.0.1", kind): "guest sees 10.88.0.5",
                ("client", "10.77.0.1", kind): "guest sees 10.88.0.5",
                ("", "10.88.0.1", kind): "guest sees 10.88.0.1",
                ("", "10.77.0.1", kind): "guest sees 10.77.0.1",
            }
            self.assertEqual(self.answers(), {**before, **forwarded})
            self.assert_works("stopped", xml)
            self.assertEqual(self.answers(), before)


class NoSleep(ExamplesTestCase):
    """There is no systemd here: what stands for it keeps a process for each unit."""

    SCRIPT = "40-no-sleep"
    UNIT = f"no-sleep-{uuid_of('vm one')}.service"
    XML = guest_xml("<no-sleep/>", "vm one")

    def setUp(self):
        super().setUp()
        self.units = self.directory / "units"
        self.units.mkdir()
        self.program("systemd-inhibit", f'echo "$@" >{self.directory}/said; exec sleep 600')
        self.program(
            "systemd-run",
            f'[ "$1 $2" = "--quiet --collect" ]\nunit={self.units}/${{3#--unit=}}\nshift 3\n'
            'setsid "$@" </dev/null >/dev/null 2>&1 &\necho $! >"$unit"',
        )
        self.program(
            "systemctl",
            f"for unit; do :; done\nunit={self.units}/$unit\ncase $1 in\n"
            '--quiet) test -e "$unit" ;;\nstop) kill "$(cat "$unit")"; rm "$unit" ;;\nesac',
        )
        self.addCleanup(self.stop)

    def stop(self):
        for unit in self.units.iterdir():
            os.kill(int(unit.read_text()), signal.SIGKILL)

    def test_sleep_is_inhibited_from_started_to_stopped(self):
        for _life in range(2):
            for _again in range(2):
                self.assert_works("started", self.XML, "vm one")
                (unit,) = self.units.iterdir()
                self.assertEqual(unit.name, self.UNIT)
                process = Path(f"/proc/{unit.read_text().strip()}")
                said = self.directory / "said"
                while not said.exists():
                    time.sleep(0.01)
                self.assertIn("--what=sleep", said.read_text())
                self.assertIn("guest vm one is running", said.read_text())
                self.assertTrue(process.exists())
            for _twice in range(2):
                self.assert_works("stopped", self.XML, "vm one")
                self.assertEqual(list(self.units.iterdir()), [])

    def test_a_dry_run_does_nothing(self):
        self.assert_dry_run("started", self.XML, f"start {self.UNIT}")
        self.assert_dry_run("stopped", self.XML, f"stop {self.UNIT}")
        self.assertEqual(list(self.units.iterdir()), [])


class MailCrash(ExamplesTestCase):
    SCRIPT = "50-mail-crash"
    XML = guest_xml(
        "<mail-crash>a@example.org</mail-crash><mail-crash> b@example.org </mail-crash>"
    )

    def test_a_mail_goes_to_each_address(self):
        mails = self.directory / "mails"
        self.program("sendmail", f'echo "sendmail $*" >>{mails}; cat >>{mails}')
        self.assert_dry_run("release end crashed", self.XML, "a@example.org", "b@example.org")
        self.assertFalse(mails.exists())
        self.assert_works("release end crashed", self.XML)
        text = mails.read_text()
        self.assertEqual(text.count("sendmail -t\n"), 2)
        for line in ("To: a@example.org\n", "To: b@example.org\n", "Subject: guest web has "):
            self.assertIn(line, text)

    def test_a_mail_that_cannot_be_sent_is_an_error(self):
        self.program("sendmail", "cat >/dev/null; exit 75")
        result = self.call("release end crashed", self.XML)
        self.assert_error(result, "mail-crash", "a@example.org")

    def test_it_says_so_where_xmllint_is_missing(self):
        self.without("xmllint", "cat", "seq", "sh", "uname")
        result = self.call("release end crashed", self.XML)
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("xmllint", result.stderr)


class TuneInterface(ExamplesTestCase):
    SCRIPT = "60-tune-interface"

    def setUp(self):
        super().setUp()
        for command in (
            "link add br0 type bridge",
            "link add vnet0 type veth peer name peer0",
            "link add vnet1 type veth peer name peer1",
            "link set vnet0 master br0",
            "link set vnet1 master br0",
            "link add lone type veth peer name peer2",
        ):
            run(["ip", *command.split()], check=True)
            if " add " in command:
                self.addCleanup(run, ["ip", "link", "delete", command.split()[2]])

    def xml(self, options, *devices):
        interfaces = "".join(f"<interface><target dev='{name}'/></interface>" for name in devices)
        xml = guest_xml(f"<tune-interface>{options}</tune-interface>")
        return xml.replace("<devices/>", f"<devices>{interfaces}</devices>")

    def isolated(self, device):
        """Whether a port is isolated, and whether it learns."""
        shown = run(["bridge", "-details", "link", "show", "dev", device], check=True).stdout
        return "isolated on" in shown, "learning on" in shown

    def test_each_interface_of_the_guest_gets_the_options(self):
        self.assertEqual(self.isolated("vnet0"), (False, True))
        xml = self.xml("\n isolated on  learning off\n", "vnet0", "vnet1")
        self.assert_dry_run("started", xml, "isolated on learning off")
        self.assertEqual(self.isolated("vnet0"), (False, True))
        self.assert_works("started", xml)
        self.assertEqual(self.isolated("vnet0"), (True, False))
        self.assertEqual(self.isolated("vnet1"), (True, False))

    def test_what_cannot_be_done_is_an_error(self):
        for options, device in (
            ("isolated on", "lone"),
            ("isolated on", "nosuch"),
            ("isolatd on", "vnet0"),
            ("*", "vnet0"),
            ("", "vnet0"),
        ):
            with self.subTest(options, device=device):
                result = self.call("started", self.xml(options, device))
                self.assert_error(result, "tune-interface", options, programs_said=bool(options))

    def test_where_the_xml_names_no_interface_that_is_an_error_but_for_a_dry_run(self):
        xml = self.xml("isolated on")
        self.assert_error(self.call("started", xml), "target dev")
        self.assert_dry_run("started", xml, "isolated on")


def commands(document, heading):
    """The last commands that a document shows in a section, for a shell of root's."""
    text = (CHECKOUT / document).read_text()
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return 'set -eu\nsudo() { "$@"; }\n' + blocks[-1]


class Index(ExamplesTestCase):
    def setUp(self):
        super().setUp()
        self.addCleanup(shutil.rmtree, HOOKS, ignore_errors=True)
        self.log = self.directory / "log"

    def run_commands(self, document, heading):
        environment = {**os.environ, "OLDPWD": str(CHECKOUT)}
        return run(["sh", "-c", commands(document, heading)], cwd=CHECKOUT, env=environment)

    def put(self, path, mode=0o755):
        """A script that logs its path in the tree, and its arguments."""
        text = f'#!/bin/sh\necho {shlex.quote(path)} "$@" \'<\'"$(cat)" >>{self.log}\n'
        path = HOOKS / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def phase(self, guest, phase):
        """What the scripts of a phase have logged, run by the dispatcher."""
        self.log.write_text("")
        command = [HOOKS / "qemu", guest, *phase.split()]
        self.assert_succeeds(run(command, input=guest_xml("", guest)))
        return [line.split(" <")[0] for line in self.log.read_text().splitlines()]

    def test_three_commands_put_a_script_in_place(self):
        run([CHECKOUT / "install.sh", "--driver", "qemu", "--no-reload"], check=True)
        result = self.run_commands("examples/README.md", "Putting a script in place")
        self.assert_succeeds(result)
        for line in ("    20-hugepages  ", "    03-hugepages  "):
            self.assertIn(line, result.stdout)
        self.assertTrue((HOOKS / "qemu_release_end_-.d/03-hugepages").exists())

    def test_links_have_names_that_bring_the_display_back_first(self):
        links = sorted(row[2].strip("`") for row in ROWS.values() if "release" in row[1] and row[2])
        self.assertEqual(links[:2], ["01-free-gpu", "02-stop-unit"])
        self.assertLess(links[-1], "10-archive")

    def test_a_tree_of_scripts_runs_as_before(self):
        self.put("qemu")
        self.put("qemu.d/win 10/prepare/begin/20-second.sh")
        self.put("qemu.d/win 10/prepare/begin/10-the first.v2.sh", 0o775)
        self.put("qemu.d/win 10/prepare/begin/20-second.py")
        self.put("qemu.d/win 10/prepare/begin/off.sh", 0o644)
        self.put("qemu.d/win 10/started/begin/up")
        self.put("qemu.d/win 10/release/end/revert.sh")
        self.put("qemu.d/db/prepare/begin/db.sh")
        self.put("qemu.d/db/stopped/end")  # a script in place of a directory
        self.put("qemu.d/libvirts-own")
        (HOOKS / "qemu.d/a link").symlink_to("db")
        os.chown(HOOKS / "qemu.d/db/prepare/begin/db.sh", 1000, 1000)
        tree = "qemu.d/win 10"

        result = self.run_commands("README.md", "A hook that you have already")
        self.assertEqual(result.returncode, 0, result.stderr)
        first, *second = self.phase("win 10", "prepare begin -")
        self.assertEqual(first, f"{tree}/prepare/begin/10-the first.v2.sh win 10 prepare begin -")
        self.assertEqual(sorted(second), [
            f"{tree}/prepare/begin/20-second.{ending} win 10 prepare begin -"
            for ending in ("py", "sh")
        ])  # fmt: skip
        self.assertEqual(self.phase("win 10", "start begin -"), [])
        self.assertEqual(self.phase("win 10", "started begin -"),
                         [f"{tree}/started/begin/up win 10 started begin -"])  # fmt: skip
        self.assertEqual(self.phase("win 10", "release end crashed"),
                         [f"{tree}/release/end/revert.sh win 10 release end crashed"])  # fmt: skip
        self.assertEqual(self.phase("db", "prepare begin -"),
                         ["qemu.d/db/prepare/begin/db.sh db prepare begin -"])  # fmt: skip
        self.assertEqual(self.phase("db", "stopped end -"),
                         ["qemu.d/db/stopped/end db stopped end -"])  # fmt: skip
        self.assertEqual(self.phase("a link", "prepare begin -"),
                         ["qemu.d/db/prepare/begin/db.sh a link prepare begin -"])  # fmt: skip
        self.assertEqual(self.phase("other", "prepare begin -"), [])
        self.assertEqual(os.listdir(HOOKS / "qemu.d"), ["libvirts-own"])
        self.assertTrue((HOOKS / "old/win 10/prepare/begin/off.sh").exists())
        self.assertTrue((HOOKS / "old/a link/prepare/begin/db.sh").exists())
        check = run([CHECKOUT / "command/virt-hooks", "check", "--driver", "qemu"])
        self.assertNotIn("50-", check.stdout + check.stderr)


class FreeGpu(ExamplesTestCase):
    """With files in place of /sys, as kernels have them that the virtual machine does not run.

    Linux before 6.9 has the firmware's framebuffer in /sys/devices/platform. Fedora's Linux has no
    devices for framebuffers. tests/vm tries real consoles, framebuffers and drivers of Linux 6.12.
    """

    SCRIPT = "30-free-gpu"
    FIRMWARE = "devices/platform/efi-framebuffer.0"

    def setUp(self):
        super().setUp()
        for path, text in (
            ("bus/pci/devices/0000:01:00.0/class", "0x030000\n"),
            ("class/vtconsole/vtcon0/name", "(S) dummy device\n"),
            ("class/vtconsole/vtcon0/bind", "1\n"),
            ("class/vtconsole/vtcon1/name", "(M) frame buffer device\n"),
            ("class/vtconsole/vtcon1/bind", "1\n"),
            (f"{self.FIRMWARE}/driver/unbind", ""),
            (f"{self.FIRMWARE}/subsystem/drivers_probe", ""),
        ):
            self.write(f"sys/{path}", text)

    def call(self, *arguments, **options):
        """Run the script where the tests' files are /sys, and where no /dev/fb0 is."""
        mount = 'mount --bind "$0" /sys && mount -t tmpfs tests /dev && exec "$@"'
        before = ["unshare", "--mount", "sh", "-c", mount, self.directory / "sys"]
        return super().call(*arguments, before=before, **options)

    def sysfs(self):
        return snapshot(self.directory / "sys")

    def read(self, path):
        return (self.directory / "sys" / path).read_text().strip()

    def test_the_console_and_the_firmware_leave_the_adapter_and_come_back(self):
        xml = guest_xml("", more=hostdev("pci"))
        before = self.sysfs()
        self.assert_dry_run("prepare", xml, "vtcon1/bind", "driver/unbind")
        self.assert_dry_run("release", xml, "vtcon1/bind", "drivers_probe")
        self.assertEqual(self.sysfs(), before)
        for _twice in range(2):
            self.assert_works("prepare", xml)
            self.assertEqual(self.read("class/vtconsole/vtcon1/bind"), "0")
            self.assertEqual(self.read(f"{self.FIRMWARE}/driver/unbind"), "efi-framebuffer.0")
        self.assertEqual(self.states(), [f"hostdev-{uuid_of('web')}"])
        for _twice in range(2):
            self.assert_works("release", xml)
            self.assertEqual(self.read("class/vtconsole/vtcon1/bind"), "1")
            probed = self.read(f"{self.FIRMWARE}/subsystem/drivers_probe")
            self.assertEqual(probed, "efi-framebuffer.0")
            self.assertEqual(self.states(), [])
        self.assertEqual(self.read("class/vtconsole/vtcon0/bind"), "1")

    def test_other_devices_and_those_that_libvirt_does_not_manage_are_no_reason(self):
        before = self.sysfs()
        for devices in (hostdev("usb"), hostdev("pci", managed="no")):
            self.assert_works("prepare", guest_xml("", more=devices))
        for text in ("0x020000\n", "0x040300\n"):  # a network card, a sound card
            self.write("sys/bus/pci/devices/0000:01:00.0/class", text)
            self.assert_works("prepare", guest_xml("", more=hostdev("pci")))
            self.write("sys/bus/pci/devices/0000:01:00.0/class", "0x030000\n")
        self.assertEqual(self.sysfs(), before)
        shutil.rmtree(self.directory / "sys/bus/pci/devices/0000:01:00.0")  # libvirt refuses that
        self.assert_works("prepare", guest_xml("", more=hostdev("pci")))
        self.assertEqual(self.states(), [])

    def test_the_firmware_keeps_its_framebuffer_where_it_uses_another_adapter(self):
        xml = guest_xml("", more=hostdev("pci"))
        for is_used in (True, False):
            self.write("sys/bus/pci/devices/0000:01:00.0/boot_vga", f"{is_used:d}\n")
            self.write(f"sys/{self.FIRMWARE}/driver/unbind", "")
            self.assert_works("prepare", xml)
            self.assertEqual(self.read(f"{self.FIRMWARE}/driver/unbind") != "", is_used)
            self.assert_works("release", xml)

    def test_only_what_was_bound_is_bound_again(self):
        xml = guest_xml("", more=hostdev("pci"))
        self.write("sys/class/vtconsole/vtcon1/bind", "0\n")
        self.assert_works("prepare", xml)
        self.assert_works("release", xml)
        self.assertEqual(self.read("class/vtconsole/vtcon1/bind"), "0")
        shutil.rmtree(self.directory / "sys" / self.FIRMWARE / "driver")
        before = self.sysfs()
        self.assert_works("prepare", xml)
        self.assert_works("release", xml)
        self.assertEqual(self.sysfs(), before)

    def test_what_linux_refuses_is_an_error_and_the_rest_comes_back(self):
        xml = guest_xml("", more=hostdev("pci"))
        file = self.directory / "sys" / self.FIRMWARE / "driver/unbind"
        file.unlink()
        file.mkdir()  # which cannot be written
        result = self.call("prepare", xml)
        self.assert_error(result, "hostdev", "efi-framebuffer.0", "driver/unbind")
        self.assertEqual(self.read("class/vtconsole/vtcon1/bind"), "0")
        probe = self.directory / "sys" / self.FIRMWARE / "subsystem/drivers_probe"
        probe.unlink()
        probe.mkdir()
        result = self.call("release", xml)
        self.assert_error(result, "hostdev", "efi-framebuffer.0", "drivers_probe")
        self.assertEqual(self.read("class/vtconsole/vtcon1/bind"), "1")
        probe.rmdir()
        self.assert_works("release", xml)
        self.assertEqual(self.states(), [])
