"""The other half of the dispatcher, hooks/lxc, which says what it does: how scripts are run.

Installed as DRIVER_run.py beside DRIVER. The dispatcher executes it, once there are scripts to run
or something is to be said, and calls main().
"""

import os
import select
import sys
import syslog
import time

from dispatcher import Failure, arguments, code_of, find_scripts
from dispatcher import __doc__ as usage

FILTERS = ("migrate", "restore")  # libvirt takes these phases' stdout for the guest's new XML
GRACE = 5  # seconds from SIGTERM to SIGKILL
LOGGED_LINES = 1000  # of one script's output; more would only bury the others'
OWN_LINE = f"#!{sys.executable} -IS\n".encode()  # the first line of hooks/lxc
SIGINT, SIGKILL, SIGPIPE, SIGTERM, SIGXFSZ = 2, 9, 13, 15, 25  # the module takes 5 ms
VERBOSE = os.environ.get("VIRT_HOOKS_VERBOSE", "0") not in ("", "0")
DRY_RUN = os.environ.get("VIRT_HOOKS_DRY_RUN", "0") not in ("", "0")


class Copy(Exception):
    """Raised in a forked copy of the dispatcher: the path of the script that it is to become."""


class Output:
    """What a script prints on one stream: passed on at once, and logged by the line."""

    def __init__(self, target, name):
        self.target, self.name, self.lines = target, name, 0
        self.rest = self.end = b""

    def take(self, data):
        """Take some bytes; none at the end."""
        *lines, self.rest = (self.rest + data).split(b"\n")
        if not VERBOSE:
            pass_on(data, self.target)
            self.end = data[-1:] or self.end
        if not data or len(self.rest) > 8000:
            lines, self.rest = [*lines, self.rest], b""
        for line in lines[: max(0, LOGGED_LINES - self.lines)]:
            if line:
                log(f"{self.name}: {os.fsdecode(line)}")
        self.lines += len(lines)


def refuse_unsafe(scripts):
    """Raise Failure where anybody but root and the caller could have put in what is to run."""
    paths = set()
    for path, _name, directory in scripts:
        paths |= {directory, os.path.dirname(directory) or ".", path, os.path.dirname(path)}
        while os.path.islink(path):
            path = os.path.join(os.path.realpath(os.path.dirname(path)), os.readlink(path))
            paths.add(os.path.realpath(os.path.dirname(path)))
    for path in sorted(paths):
        status = os.stat(path)
        if status.st_uid not in (0, os.geteuid()):
            raise Failure(f"refused: {path} belongs to user {status.st_uid}, not to root")
        if status.st_mode & 0o022:
            mode = f"{status.st_mode & 0o7777:04o}"
            raise Failure(f"refused: group or others can write to {path} (mode {mode})")


def time_limit(directory):
    """The seconds that each script of a phase directory may take; None for no limit."""
    path = f"{directory}/timeout"
    if not os.path.lexists(path) or os.path.isdir(path):  # a guest may be called timeout
        return None
    with open(path, errors="replace") as file:
        text = file.read(100).strip()
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds < 1e9:
        raise Failure(f"{path}: {text!r} is not a number of seconds above 0")
    return seconds


def knows_dry_run(path):
    """Whether a script can be asked what it would do, without doing it."""
    with open(path, "rb") as file:
        return b"VIRT_HOOKS_DRY_RUN" in file.read()


def follow(pid, takers, limit):
    """Pass on what a script prints until it exits; return when it overran its limit, or None."""
    exited, poll = os.pidfd_open(pid), select.poll()
    for descriptor in (exited, *takers):  # in this order: where it exited, all it printed is there
        poll.register(descriptor, select.POLLIN)
    overrun, deadline = None, limit and time.monotonic() + limit
    ready = []
    while exited not in ready:
        rest = deadline and max(0, deadline - time.monotonic())
        ready = [descriptor for descriptor, _event in poll.poll(rest and min(rest, 1e6) * 1000)]
        for descriptor in takers.keys() & ready:
            data = os.read(descriptor, 1 << 20)  # the most that a pipe can hold
            takers[descriptor](data)
            if not data:
                poll.unregister(descriptor)
        if deadline and time.monotonic() >= deadline:
            os.killpg(pid, SIGKILL if overrun else SIGTERM)
            overrun, deadline = deadline, None if overrun else deadline + GRACE
    os.close(exited)
    return overrun


def end_group(group, at):
    """Kill what is left of a process group at a time, given by the monotonic clock."""
    try:
        while time.monotonic() < at:
            os.killpg(group, 0)
            time.sleep(0.02)
        os.killpg(group, SIGKILL)
    except ProcessLookupError:
        pass  # nothing is left


def missing_interpreter(path):
    """What a script that is no program lacks to be started; empty where it lacks nothing."""
    with open(path, "rb") as file:
        first = os.fsdecode(file.readline(256))
    interpreter = first[2:].replace("\t", " ").strip(" \n").split(" ")[0]
    if first.startswith("\x7fELF") or first.startswith("#!") and os.access(interpreter, os.X_OK):
        return ""
    if first.startswith("#!"):
        return f"{interpreter!r}, its interpreter"
    return "it is no program and its first line no #! line"


def spawn(path, xml, out_end, err_end):
    """Start a script as a process of its own; return its process ID."""
    with open("/proc/self/environ", "rb") as file:  # Python may have added LC_CTYPE to os.environ
        environment = dict(v.split(b"=", 1) for v in file.read().split(b"\0") if b"=" in v)
    return os.posix_spawn(
        path, [path, *sys.argv[1:]], environment, setpgroup=0,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, f"/proc/self/fd/{xml}", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, out_end, 1),
            (os.POSIX_SPAWN_DUP2, err_end, 2),
        ],
        setsigdef=[SIGPIPE, SIGXFSZ],  # Python ignores these
    )  # fmt: skip


def fork(path, xml, out_end, err_end):
    """What spawn() does, for a script of our own interpreter: a copy of it saves its start, 8 ms.

    In the copy it raises Copy, with nothing open that a new process would not have had.
    """
    pid = os.fork()
    try:
        os.setpgid(pid, 0)  # in both, since either may be the first to need it
    except OSError:
        pass  # it has called setsid(2) since
    if pid:
        return pid
    os.dup2(os.open(f"/proc/self/fd/{xml}", os.O_RDONLY), 0)
    os.dup2(out_end, 1)
    os.dup2(err_end, 2)
    syslog.closelog()
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        try:
            if not os.get_inheritable(descriptor):
                os.close(descriptor)
        except OSError:
            pass  # it was listdir's
    with open("/proc/self/comm", "wb") as file:  # what ps(1) shows
        file.write(os.fsencode(os.path.basename(path))[:15])
    raise Copy(path)


def is_of_our_interpreter(path):
    with open(path, "rb") as file:
        own_line = file.readline(len(OWN_LINE)) == OWN_LINE
    # what cannot be executed, as on a file system mounted noexec, is spawn()'s to report
    return own_line and os.access(path, os.X_OK) and sys.stdin and sys.stdout and sys.stderr


def run_script(path, xml, take_stdout, take_stderr, limit):
    """Run one script to its end; raise Failure if it does not start, fails or overruns its limit.

    Its stdin is the file xml, from the first byte; the functions get what it prints, as bytes, and
    none of them at the end. limit: in seconds, or None.
    """
    (out, out_end), (err, err_end) = os.pipe(), os.pipe()
    try:
        start = fork if is_of_our_interpreter(path) else spawn
        pid = start(path, xml, out_end, err_end)
    except OSError as error:
        lacking = missing_interpreter(path)  # an ENOENT, for one, is its interpreter's
        raise Failure(": ".join(filter(None, (error.strerror, lacking)))) from None
    os.close(out_end)
    os.close(err_end)
    try:
        overrun = follow(pid, {out: take_stdout, err: take_stderr}, limit)
    except KeyboardInterrupt:  # by hand; a terminal's ^C does not reach another process group
        os.killpg(pid, SIGINT)
        raise
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = code if code >= 0 else 128 - code
    if overrun:
        end_group(pid, overrun + GRACE)
    take_stdout(b"")
    take_stderr(b"")
    os.close(out)
    os.close(err)
    if overrun:
        raise Failure(f"time limit of {limit:g} s exceeded", status or 128 + SIGTERM)
    if status:
        raise Failure(f"exit status {code}" if code > 0 else f"killed by signal {-code}", status)


def run_all(scripts, filtering, run):
    """Run the scripts; where they filter, print what came out of the last that printed."""
    limits = {directory: time_limit(directory) for _path, _name, directory in scripts}
    xml = given = os.memfd_create("xml")
    copy(0, xml)
    for path, name, directory in scripts:
        if DRY_RUN and not knows_dry_run(path):
            say(f"{run}: {name}: not run, since it knows no dry run")
            continue
        printed = os.memfd_create("xml") if filtering else xml
        stdout = Output(1, f"{run}: {name}")
        take_stdout = (lambda data, to=printed: write(data, to)) if filtering else stdout.take
        stderr = Output(2, f"{run}: {name}")
        began = time.monotonic()
        try:
            run_script(path, xml, take_stdout, stderr.take, limits[directory])
        except Failure as failure:
            if stderr.end not in (b"", b"\n"):
                pass_on(b"\n", 2)
            log(f"{run}: {name}: failed after {time.monotonic() - began:.3f} s", failed=True)
            raise Failure(f"{name}: {failure}", failure.status) from None
        log(f"{run}: {name}: done in {time.monotonic() - began:.3f} s")
        if os.fstat(printed).st_size:
            xml = printed
    if xml != given:
        os.lseek(xml, 0, os.SEEK_SET)
        copy(xml, 1)


def copy(source, target):
    while data := os.read(source, 1 << 20):
        write(data, target)


def write(data, target):
    while data:
        data = data[os.write(target, data) :]


def pass_on(data, target):
    try:
        write(data, target)
    except OSError:
        pass  # whoever read it has gone; the work goes on, and syslog has it


def log(line, failed=False):
    line = os.fsencode(line).decode(errors="backslashreplace").replace("\0", "\\0")
    syslog.syslog(syslog.LOG_ERR if failed else syslog.LOG_INFO, line)


def say(line, failed=False):
    """Log a line that is for the eyes of whoever has called us, too."""
    log(line, failed)
    if not VERBOSE:
        pass_on(os.fsencode(f"virt-hooks: {line}\n"), 2)


def dispatch():
    """Run the scripts of what libvirt calls us for; return the exit status."""
    hooks, driver, guest, phase = arguments()
    if not phase or os.isatty(0):
        pass_on(usage.encode(), 2)
        return 2
    run = f"{driver} {guest} {' '.join(phase)}".replace("\n", "\\n")
    try:
        while os.open("/dev/null", os.O_RDWR) <= 2:
            pass  # the caller had closed one of the standard descriptors
        scripts = find_scripts(hooks, driver, guest, phase)
        if scripts:
            refuse_unsafe(scripts)
            run_all(scripts, phase[0] in FILTERS, run)
        return 0
    except OSError as error:
        failure = Failure(f"{error.filename or 'stdin or stdout'}: {error.strerror}")
    except MemoryError:
        failure = Failure("no memory is left")
    except Failure as error:
        failure = error
    except KeyboardInterrupt:
        return 128 + SIGINT
    say(f"{run}: {failure}", failed=True)
    return failure.status


def become(path):
    """Make a copy of the dispatcher a script's interpreter, and execute the script in it."""
    sys.argv[0] = path
    stdin = sys.stdin  # which knows another file
    sys.stdin = open(0, encoding=stdin.encoding, errors=stdin.errors, closefd=False)
    display = sys.__excepthook__

    def show(kind, error, trace):  # without the dispatcher's own lines
        while trace and trace.tb_frame.f_code.co_filename != path:
            trace = trace.tb_next
        display(kind, error.with_traceback(trace), trace)

    sys.excepthook = show
    code = code_of(path)
    namespace = vars(sys.modules.pop("dispatcher"))  # of the module __main__
    namespace.clear()
    namespace.update(__name__="__main__", __file__=path, __doc__=None)
    exec(code, namespace)


def main():
    syslog.openlog("virt-hooks", syslog.LOG_PERROR if VERBOSE else 0, syslog.LOG_DAEMON)
    try:
        os._exit(dispatch())  # at once: to tidy up, the interpreter would take 2 ms
    except Copy as copy:
        script = str(copy)
    become(script)
