"""Random and mutated metadata: each script answers in one line, always the same, and stays inside.

VIRT_HOOKS_SEED=N repeats a run, whose seed a failure shows; VIRT_HOOKS_BLOCKS is how many to try.

To try many, a script's code is compiled once and run in forked copies of the test. Every 50th block
is given to the real script too, which has to answer the same.
"""

import concurrent.futures
import contextlib
import ctypes
import gc
import importlib
import multiprocessing
import os
import random
import re
import shutil
import subprocess
import sys
import traceback
import unittest
from collections import Counter
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from harness import LINKS, SCRIPTS, TestCase, mount_points, run, script, snapshot

# what the scripts import is here already when a copy is forked
for module in ("errno", "fcntl", "grp", "ipaddress", "pwd", "signal", "xml.parsers.expat"):
    importlib.import_module(module)

BLOCKS = int(os.environ.get("VIRT_HOOKS_BLOCKS", "10000"))
SEED = int(os.environ.get("VIRT_HOOKS_SEED", "0")) or random.SystemRandom().randrange(1, 10**9)
BATCH = 50  # blocks; the first of each goes to the real scripts, too
REAL = 25  # of so many blocks one is done, and not only said
WORKERS = 2
NEW_NETWORK, NEW_MOUNTS = 0x40000000, 0x20000  # CLONE_NEWNET, CLONE_NEWNS
NAMESPACE = "urn:virt-hooks:1"
# the phase in which a script undoes what it has done, where there is a link to it
ENDINGS = dict.fromkeys(SCRIPTS)
ENDINGS |= {Path(link).name: tuple(link.split("_")[1:3]) for link in LINKS}
REASONS = ("-", "shutdown", "destroyed", "crashed", "saved", "migrated", "failed", "from snapshot",
           "", "x" * 300, "é")  # fmt: skip
GUESTS = ("web", "-dash", "--help", ".", "..", "a b", "x;y", "é", "$(reboot)", "'", "%s{0}")
JUNK = (
    "", " ", "\n", "\t x", "0", "-1", "é", "\u202e", "\ufeff", "\ufffe", "&#0;", "&amp;",
    "&#x10ffff;", "&unknown;", "]]>", "<", ">", "'", '"', "\\", "%", "{}", "{0}", "%s", "$(reboot)",
    "`id`", "\x7f", "../", "/..", "//", "/.", "~", "*", "\r", "\r\n", "x" * 300, "/x" * 3000,
    "9" * 400, "1e5", "٣", "\U0001f4a9", "-rf", "--", "-o", "a=b", ",", ":", ";", "\x85", "\u2028",
)  # fmt: skip
SIZES = (
    "1M", "64K", "4096", "1", "0", "-1M", "1,5M", "1.5M", "99999999999T", "1m", "M", "1 M", "010",
    "0x10", "1MB", "٣M", "", "18446744073709551616", "8191P", "50%",
)  # fmt: skip
MODES = (
    "0755", "755", "1777", "7777", "07777", "10000", "0758", "-1", "u+x", "", "0o755", "٧", "0",
    "000000000000755", "7" * 5000,
)  # fmt: skip
OWNERS = (
    "0", "1000", "root", "nobody", "daemon", "adm", "-1", "4294967295", "4294967294", "x y",
    "nosuchuser", "root:root", "", "é", "1e3", "9" * 50, "\\0", "a" * 5000,
)  # fmt: skip
FORMATS = (
    "%Y-%m-%d", "%Y/%m", "%H", "x%%", "%", "%%", "%Q", "%E", "..", "/", "", "%j%", "x", "%Y%Q",
    "%-d", "é", "%9999999Y", "a" * 300, "%O", "%:z",
)  # fmt: skip
ROUTES = (
    "default via 10.77.0.254 dev br0", "blackhole 10.9.0.0/16", "10.8.0.0/24 dev br0 metric 5",
    "10.7.0.0/16 via 10.77.0.3 dev br0", "fd00::/8 dev br0", "unreachable default",
    "10.0.0.0/8 via 10.77.0.3 onlink dev br0", "0/0", "default dev nowhere", "help",
    "default nexthop via 10.77.0.2 dev br0 weight 1 nexthop via 10.77.0.3",
)  # fmt: skip
RULES = (
    "from 10.77.0.5", "not from 10.1.0.0/16", "iif br0", "fwmark 1", "fwmark 1/0xff", "to fd00::/8",
    "from 10.77.0.5 priority 100", "from all", "tos 0x10", "from 10.0.0.0/8 to fd00::/8",
    "priority 0", "uidrange 1-5", "ipproto tcp dport 25",
    "suppress_prefixlength 0",
)  # fmt: skip
POLICIES = (
    "chain c { type filter hook forward priority filter; policy accept; ip saddr 10.0.0.1 drop; }",
    "chain d { }", "set s { type ipv4_addr; elements = { 10.0.0.1, 10.0.0.2 }; }", "counter n { }",
    "{", '"', "# comment", "#", ";", "\\", "chain c { comment \"}\" ; }", "define x = 1", "$x",
    "chain c { jump c }", "chain c { type filter hook input priority 0; drop; }", "chain é { }",
    "flowtable f { hook ingress priority 0; devices = { lo }; }",
)  # fmt: skip
PATHS = ("a", "a/b", "b", "a b", "é", "deep", "deep/er", "mnt", "new", "new/er")
ELSEWHERE = ("/", "/srv", "/etc/x", "/proc/self/root", "/proc/self/cwd", "relative", "/dev/null",
             "/etc/libvirt/hooks", "/sys", ".", "/srv/../etc", "/proc/1/root/etc")  # fmt: skip

LIBC = ctypes.CDLL(None, use_errno=True)


def set_read_only(point, read_only):
    """Make a mount, with all below it, one that nobody can write to: mount_setattr(2)."""
    attribute = (1, 0) if read_only else (0, 1)  # MOUNT_ATTR_RDONLY, to set and to clear
    attributes = (ctypes.c_uint64 * 4)(*attribute)
    size = ctypes.c_size_t(32)
    if LIBC.syscall(442, -100, os.fsencode(point), 0x8000, attributes, size):  # AT_RECURSIVE
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), point)


class Block:
    """One guest's XML, as bytes, and the arguments that the scripts get; random, by its seed."""

    def __init__(self, number, tree, real):
        self.random = random.Random(f"{SEED}-{number}")
        self.wildness = self.random.choice((0, 0, 0, 0.3, 1))
        self.tree, self.real = tree, real
        self.guest = self.pick(GUESTS) if self.chance(0.2) else "web"
        self.reason = self.pick(REASONS)
        self.used = set()  # the paths; a tame block has none twice
        self.ending = self.random.random() < 0.4
        kinds = self.random.sample([name.partition("-")[2] for name in SCRIPTS], 4)
        if self.wildness:
            kinds += kinds[: self.random.randrange(5)]
        elements = "".join(map(self.element, kinds))
        if self.chance(0.02):
            elements *= 200
        self.xml = self.wrapped(elements)
        for _ in range(self.random.choice((0, 1, 1, 2, 5)) if self.wildness else 0):
            self.xml = self.mutated(self.xml)
        if isinstance(self.xml, str):
            self.xml = self.xml.encode(errors="surrogatepass")

    def chance(self, probability):
        """Whether something odd is to be; never in a block that is to be understood."""
        return self.random.random() < probability * self.wildness

    def pick(self, values):
        return self.random.choice(values)

    def value(self, values):
        """One of the values, whose first four are good; now and then one with junk in it."""
        value = self.pick(values if self.wildness else values[:4])
        if self.chance(0.1):
            at = self.random.randrange(len(value) + 1)
            value = value[:at] + self.pick(JUNK) + value[at:]
        return value

    def path(self, *pool):
        """A path in the tree; now and then, where nothing is done for real, one elsewhere."""
        if not self.wildness:
            free = [name for name in pool or PATHS if name not in self.used]
            self.used.add(name := self.pick(free or ["new/new"]))
            return f"{self.tree}/{name}"
        names = (*PATHS, "file", "link", "up", "loop", "fifo", "link/inner", "a/link", "b/up", "..")
        path = "/".join((self.tree, *(self.pick(names) for _ in range(self.pick((1, 1, 2, 3))))))
        if self.chance(0.15):
            path = path.replace("/", self.pick(("//", "/./", "/../", "/b/../")), 5)
        if self.real:
            return path
        if self.chance(0.1):
            path = self.pick(ELSEWHERE)
        return self.value((path,))

    def attributes(self, **values):
        """Some of the attributes, now and then one that is not known."""
        given = {name: self.value(pool) for name, pool in values.items()}
        for name in [name for name in given if self.random.random() < 0.3]:
            if self.wildness or name not in ("size", "id", "name"):
                del given[name]
        if self.chance(0.05):
            given[self.pick(("x", "mode", "xml:space", "SIZE", "optional"))] = self.pick(JUNK)
        return "".join(f" {name}={self.quoted(value)}" for name, value in given.items())

    def quoted(self, value):
        return f'"{value}"' if self.chance(0.05) else quoteattr(value)

    def child(self, name, text, attributes=""):
        if self.chance(0.03):
            name = self.pick(("dir", "src", "x", "Dir", "o:dir", "hooks", "nft", "rule", "datestr"))
        text = text if self.chance(0.02) else escape(text)
        form = self.random.random() / (self.wildness or 0.01)
        if form < 0.02:
            return f"<{name}{attributes}/>"
        if form < 0.04:
            text = f"<![CDATA[{text}]]>"
        elif form < 0.06:
            text = f"<!-- {text.replace('--', '')} -->{text}<?x {text.replace('?>', '')}?>"
        elif form < 0.1:
            text = f"\n  {text}\t"
        return f"<{name}{attributes}>{text}</{name}>"

    def element(self, kind):
        given = self.attributes() if self.chance(0.05) else self.identity(kind)
        return f"<{kind}{given}>{''.join(self.children(kind))}</{kind}>"

    def identity(self, kind):
        if kind != "routing-table":
            return ""
        numbers = (
            "101",
            "102",
            "103",
            "104",
            "0",
            "1",
            "254",
            "4294967295",
            "4294967296",
            "-1",
            "x",
            "0101",
        )
        names = (
            "one",
            "two",
            "three",
            "four",
            "main",
            "a b",
            "1",
            "../x",
            "-a",
            "é",
            "x" * 64,
            "local",
        )
        if not self.wildness:
            self.used.add(number := self.pick([n for n in numbers[:4] if n not in self.used]))
            return f' id="{number}" name="{names[int(number) - 101]}"'
        return self.attributes(id=numbers, name=names)

    def children(self, kind):
        for _ in range(self.random.choice((0, 1, 1, 2, 4) if self.wildness else (1, 1, 2))):
            owner = {"mode": MODES, "owner": OWNERS, "group": OWNERS}
            if kind == "mkdirs":
                yield self.child("dir", self.path(), self.attributes(**owner))
            elif kind == "ramdisk":
                path = self.path("a/b", "a b", "é", "deep/er", "mnt")  # are there, none in another
                yield self.child("dir", path, self.attributes(size=SIZES, **owner))
            elif kind == "post-rm-rf":
                yield self.child("dir", self.path())
            elif kind == "routing-table":
                yield self.child("route", self.value(ROUTES))
                yield self.child("rule", self.value(RULES))
            elif kind == "network-policy":
                families = ("inet", "ip", "bridge", "netdev", "x", "")
                given = self.attributes(family=families) if self.chance(0.3) else ""
                yield self.child("nft", self.value(POLICIES), given)
            else:
                dated = kind == "archive" and self.random.random() < 0.4
                inner = self.child("src", self.path("a", "b", "a b", "é"))
                dst = self.path("new", "new/er", "mnt", "deep/new", "x", "y", "z")
                inner += self.child("dst", dst + ("/D/x" if dated else ""))
                given = self.attributes(optional=("yes", "no", "x")) if self.chance(0.3) else ""
                yield f"<dircopy{given}>{inner}</dircopy>"
                if dated:
                    inner = self.child("format", self.value(FORMATS))
                    yield f"<datestr>{inner}{self.child('replace', 'D')}</datestr>"

    def wrapped(self, elements):
        prefix = "h:" if self.chance(0.1) else ""
        hooks = f'<{prefix}hooks xmlns{":h" if prefix else ""}="{NAMESPACE}">'
        if prefix:
            elements = re.sub(r"<(/?)(?=[a-z])", r"<\1h:", elements)
        where = self.random.random()
        metadata = f"<metadata>{hooks}{elements}</{prefix}hooks></metadata>"
        if where < 0.05 and not prefix:
            metadata = f"<metadata>{elements}</metadata>"
        xml = (
            f"<domain type='{self.pick(('lxc', 'kvm', ''))}'><name>{escape(self.guest)}</name>"
            f"<uuid>0188fbd3-2ba5-4c14-9f0c-{self.random.randrange(16**12):012x}</uuid>"
            f"{metadata}<devices/></domain>"
        )
        if where > 0.95:
            xml = xml.replace("domain", "network")
            xml = f"<hookData>{xml}</hookData>"
        return xml

    def mutated(self, xml):
        """The XML with one thing changed, as text or, from then on, as bytes."""
        if isinstance(xml, str) and self.chance(0.3):
            return self.changed_as_text(xml)
        data = xml if isinstance(xml, bytes) else xml.encode(errors="surrogatepass")
        at, to = sorted(self.random.randrange(len(data) + 1) for _ in range(2))
        kind = self.random.randrange(6)
        if kind == 0:
            return data[:at] + self.random.randbytes(self.random.randrange(1, 9)) + data[at:]
        if kind == 1:
            return data[:at] + data[min(to, at + 20) :]
        if kind == 2:
            return data[:to] + data[at : at + 2000] + data[to:]
        if kind == 3:
            return data[:at]
        if kind == 4:
            return data[:at] + self.pick(JUNK).encode(errors="surrogatepass") + data[at:]
        return data[:at] + bytes(byte ^ 0x20 for byte in data[at : at + 3]) + data[at + 3 :]

    def changed_as_text(self, xml):
        kind = self.random.randrange(5)
        if kind == 0:
            depth = self.pick((10, 1000, 20000))
            return xml.replace("<dir", "<dir>" * depth + "<dir", 1)
        if kind == 1:
            return xml.replace(
                NAMESPACE, self.pick((NAMESPACE + " ", "", "urn:x", "URN:virt-hooks:1"))
            )
        if kind == 2:
            return xml.replace(">", f" y={quoteattr(self.pick(JUNK) * 2000)}>", 9)
        if kind == 3:
            tags = list(re.finditer(r"<[^>]*>", xml))
            tag = self.pick(tags)
            return xml[: tag.start()] + xml[tag.end() :]
        return xml.replace("<metadata>", "<metadata><!---->", 1).replace("</dir>", "</dir >", 3)


class Worker:
    """Tries blocks in a mount and a network namespace of its own, in which only /srv, /run and
    what is no file can be changed."""

    def __init__(self, directory):
        self.directory = Path(directory) / f"worker-{os.getpid()}"
        self.tree, self.outside = self.directory / "tree", self.directory / "outside"
        (self.directory / "etc").mkdir(parents=True)
        if LIBC.unshare(NEW_MOUNTS | NEW_NETWORK):
            raise OSError(ctypes.get_errno(), "unshare")
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        set_read_only("/", True)
        for point in ("/srv", "/run", "/proc", "/sys", "/dev"):
            set_read_only(point, False)
        # where 10-routing-table keeps its names and its records
        if not Path("/run/virt-hooks").exists():
            with contextlib.suppress(FileExistsError):
                Path("/run/virt-hooks").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "tests", "/run/virt-hooks"], check=True)
        iproute2 = self.directory / "etc/iproute2"
        shutil.copytree("/etc/iproute2", iproute2)
        subprocess.run(["mount", "--bind", iproute2, "/etc/iproute2"], check=True)
        for command in (
            "link set lo up",
            "link add br0 type veth peer name peer0",
            "link set peer0 addrgenmode none up",
            "link set br0 addrgenmode none up",
            "addr add 10.77.0.1/24 dev br0",
        ):
            subprocess.run(["ip", *command.split()], check=True)
        self.outside.mkdir()
        (self.outside / "keep").write_text("kept")
        (self.outside / "inner").mkdir()
        (self.outside / "inner/keep").write_text("kept")
        self.codes = {
            name: compile(script(name).read_text(), script(name), "exec") for name in SCRIPTS
        }
        self.make_tree()

    def make_tree(self):
        for point in reversed(mount_points()):
            if f"{point}/".startswith(f"{self.tree}/"):
                subprocess.run(["umount", "--lazy", point], check=True)
        subprocess.run(["rm", "-rf", "--", self.tree], check=True)
        for name in ("a/b", "b", "a b", "é", "deep/er", "mnt"):
            (self.tree / name).mkdir(parents=True)
            (self.tree / name / "file").write_text("text")
        (self.tree / "file").write_text("text")
        (self.tree / "link").symlink_to(self.outside)
        (self.tree / "a/link").symlink_to("../../outside/inner")
        (self.tree / "up").symlink_to("..")
        (self.tree / "b/up").symlink_to("../..")
        (self.tree / "loop").symlink_to("loop")
        os.mkfifo(self.tree / "fifo")

    def all_but_the_tree(self):
        """What must never change."""
        shown = {str(path): snapshot(path) for path in (self.outside, self.directory / "etc")}
        shown["mounts"] = [p for p in mount_points() if not f"{p}/".startswith(f"{self.tree}/")]
        shown["top"] = sorted(os.listdir(self.directory))
        for command in ("nft list ruleset", "ip rule", "ip -6 rule", "ip route show table all"):
            shown[command] = run(command.split()).stdout
        return shown

    def everything(self):
        return self.all_but_the_tree() | {"tree": snapshot(self.tree), "all mounts": mount_points()}

    def arguments(self, name, block, ending):
        if ending and ENDINGS[name]:
            return [block.guest, *ENDINGS[name], block.reason]
        operation = SCRIPTS[name].removesuffix(".d").split("_")[1:3]
        return [block.guest, *operation, block.reason if name[:2] in ("10", "30") else "-"]

    def answer(self, name, xml, arguments, dry_run):
        """What the script's code answers in a forked copy: (status, stdout, stderr)."""
        files = [os.memfd_create(stream) for stream in ("stdin", "stdout", "stderr")]
        os.write(files[0], xml)
        os.lseek(files[0], 0, os.SEEK_SET)
        pid = os.fork()
        if not pid:
            become(self.codes[name], files, [str(script(name)), *arguments], environment(dry_run))
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        printed = [os.pread(file, os.fstat(file).st_size, 0) for file in files[1:]]
        for file in files:
            os.close(file)
        return same_form(status, *printed)

    def real_answer(self, name, xml, arguments, dry_run):
        command = [script(name), *arguments]
        given = environment(dry_run)
        result = subprocess.run(command, input=xml, capture_output=True, env=given, timeout=300)
        return same_form(result.returncode, result.stdout, result.stderr)

    def what_is_wrong(self, name, answer, dry_run):
        """What a script's answer has in it that none may have; empty for a good one."""
        status, _stdout, stderr = answer
        if status not in (0, 1):
            return f"status {status}"
        if "Traceback" in stderr or "Read-only file system" in stderr:
            return "what it said"
        *said, last = stderr.split("\n")
        if last:
            return "no newline at the end of stderr"
        if status == 0:
            return "stderr, without an error" if said and name != "20-ramdisk" else ""
        if not said or name not in said[-1]:
            return "its last line is not its own"
        # what a program said comes before; a guest's value may stand in it, whatever it is
        tried = name in ("10-routing-table", "20-network-policy")  # by ip or nft, in a dry run, too
        own = said[:-1] if tried or not dry_run else []
        return "several lines" if len(said) - len(own) != 1 else ""

    def try_batch(self, numbers):
        """What went wrong with these blocks, and how many runs it took."""
        wrong, runs, kinds = [], 0, Counter()
        before = self.everything()
        for number in numbers:
            block = Block(number, str(self.tree), real=False)
            for name in SCRIPTS:
                arguments = self.arguments(name, block, block.ending)
                given = name, block.xml, arguments, True
                answers = [self.answer(*given), self.answer(*given)]
                if answers[0] != answers[1]:  # the date may have changed; it does not twice
                    answers = [answers[1], self.answer(*given)]
                if number == numbers[0]:
                    answers.append(self.real_answer(*given))
                runs += len(answers)
                kinds[
                    "refused" if answers[0][0] else "would do" if answers[0][1] else "nothing"
                ] += 1
                reason = self.what_is_wrong(name, answers[0], dry_run=True)
                if len(set(answers)) > 1:
                    reason = "another answer, the second time"
                if reason:
                    wrong.append((number, name, reason, arguments, answers, block.xml[:2000]))
        if (after := self.everything()) != before:
            changed = [key for key in after if after[key] != before.get(key)]
            wrong.append((numbers, "a dry run has changed", changed, after))
        for number in numbers[::REAL]:
            runs += self.try_for_real(number, wrong)
        return wrong, runs, kinds

    def try_for_real(self, number, wrong):
        """Do what a block asks for, and undo it; return how many runs it took."""
        self.make_tree()
        before, block, runs = self.all_but_the_tree(), Block(number, str(self.tree), real=True), 0
        for ending in (False, True):
            for name in SCRIPTS:
                if ending and not ENDINGS[name]:
                    continue
                arguments = self.arguments(name, block, ending)
                answer = self.answer(name, block.xml, arguments, dry_run=False)
                runs += 1
                if reason := self.what_is_wrong(name, answer, dry_run=False):
                    wrong.append((number, "for real", name, reason, arguments, answer, block.xml))
        if (after := self.all_but_the_tree()) != before:
            changed = {key: after[key] for key in after if after[key] != before.get(key)}
            wrong.append((number, "for real", "outside has changed", changed, block.xml))
        self.make_tree()
        return runs


def become(code, files, arguments, variables):
    """Run a script's code as it runs in a process of its own; never return."""
    status = 1
    try:
        for target, file in enumerate(files):
            os.dup2(file, target)
        sys.argv, sys.stdin = arguments, open(0, closefd=False)
        sys.stdout = open(1, "w", errors="surrogateescape", closefd=False)
        sys.stderr = open(2, "w", errors="backslashreplace", buffering=1, closefd=False)
        os.environ.clear()
        os.environ.update(variables)
        try:
            exec(code, {"__name__": "__main__", "__builtins__": __builtins__})
            status = 0
        except SystemExit as end:
            status = end.code or 0
            if isinstance(status, str):
                print(status, file=sys.stderr)
                status = 1
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def environment(dry_run):
    variables = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
    return variables | {"VIRT_HOOKS_DRY_RUN": "1"} if dry_run else variables


def same_form(status, *printed):
    """An answer as text, without the number of a process."""
    texts = [re.sub(r"/proc/\d+", "/proc/N", text.decode(errors="replace")) for text in printed]
    return status, *texts


def start_worker(directory):
    global worker
    worker = Worker(directory)
    gc.freeze()  # a forked copy then leaves more of the memory as it is


def try_batch(numbers):
    return worker.try_batch(numbers)


class Metadata(TestCase):
    def test_every_script_answers_random_metadata_in_one_line_and_changes_nothing_outside(self):
        fork = multiprocessing.get_context("fork")
        batches = [range(first, min(first + BATCH, BLOCKS)) for first in range(0, BLOCKS, BATCH)]
        runs, kinds = 0, Counter()
        with concurrent.futures.ProcessPoolExecutor(
            WORKERS, mp_context=fork, initializer=start_worker, initargs=(self.directory,)
        ) as pool:
            for wrong, some, some_kinds in pool.map(try_batch, batches):
                runs += some
                kinds += some_kinds
                if wrong:
                    pool.shutdown(cancel_futures=True)
                    shown = "\n\n".join(str(one) for one in wrong[:5])
                    self.fail(f"VIRT_HOOKS_SEED={SEED}: {len(wrong)} wrong, such as:\n{shown}")
        print(
            f"\nmetadata blocks: {BLOCKS}, {runs} runs; in a dry run {dict(kinds)}; "
            f"VIRT_HOOKS_SEED={SEED}",
            file=sys.stderr,
        )


if __name__ == "__main__":
    unittest.main()
