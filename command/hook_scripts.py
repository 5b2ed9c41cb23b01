"""A script in a phase directory: its properties, and the faults that keep it from running.

The functions about faults return pairs (problem, remedy). They look at the owners and modes of a
script or a hook and of its directories, its file system, its first line and interpreter, its
syntax, and at comments that only look like its "# element:". They never run a script; they check a
shell script's syntax with "sh -n".
"""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"  # a hook's, under systemd
SCRIPTS_NAME = re.compile(r"[0-9]+[A-Za-z_-][A-Za-z0-9_-]*(\.(sh|bash|py|pl|rb))?")
ENDINGS = (".sh", ".bash", ".py", ".pl", ".rb")  # those that a script's name may have
ELEMENT = rb"(?i)\s*#+\s*elements?\b\s*([:;=]?)\s*(<?[\w-]+>?(?:\s*,\s*<?[\w-]+>?)*)\s*"  # nearly


class Script:
    """A file in a phase directory: it runs if it has a script's name and is executable."""

    def __init__(self, path, directory, guest=""):
        self.path, self.directory, self.guest = path, directory, guest  # or a deeper directory
        self.file = os.path.basename(path)
        self.name = f"{guest}/{self.file}" if guest else self.file
        self.has_name = SCRIPTS_NAME.fullmatch(self.file) is not None
        self.is_on = os.stat(path).st_mode & 0o111 != 0
        self.text = read(path)
        self.is_program = self.text[:5].lstrip(b"\xef\xbb\xbf").startswith((b"#!", b"\x7fELF"))
        second = (self.text.split(b"\n", 2) + [b""])[1]
        is_element = second.startswith(b"# element:")
        self.element = os.fsdecode(second[10:].strip()) if is_element else ""

    def why_not(self, guest=None):
        """Why it does not run, or not for a guest; empty if it does."""
        if self.guest and "_" not in self.directory:
            return f"nothing runs what is in a directory of {self.directory}"
        if not self.has_name:
            return "its name is not a script's name"
        if "/" in self.guest:
            return "its directory is too deep"
        if not self.is_on:
            return "it is switched off (not executable)"
        if guest and self.guest not in ("", guest.name):
            return f"it is for {self.guest}"
        wanted = not guest or os.fsencode(self.element) in guest.xml
        return "" if wanted else f"no <{self.element}> in its XML"

    def reads(self, element):
        """Whether it reads an element; one that does not say so has its quoted name in its text."""
        if self.element:
            return self.element == element
        quoted = (f"{left}{element}{right}" for left in "<'\"/:}" for right in "<>'\" /]\n")
        return any(name.encode() in self.text for name in quoted)

    def summary(self):
        """What it is for: the first line of its docstring or of its first comment."""
        for line in self.text[:2000].decode(errors="replace").splitlines()[1:]:
            words = line.strip("#\"' .").removeprefix(f"{self.file}:").strip()
            if words and not re.match(r"(?i)#+\s*(elements?\b|shellcheck|-\*-)", line):
                return words if line[0] in "#\"'" or not line[0].isascii() else ""
        return ""

    def element_faults(self):
        """(problem, remedy) of a second line without a name, and lines that only look like it."""
        path, lines = os.path.realpath(self.path), self.text.splitlines()[:10]
        second = [line for line in lines[1:2] if line.startswith(b"# element:")]
        if second and (not self.element or set(self.element) & set(" <>,;\"'/")):
            effect = "never runs" if self.element else "runs for every guest"
            problem = f"{path} {effect}: its second line names no element"
            yield problem, "write # element: and one name, without < and >"
        for number, line in enumerate(lines, 1):
            found = re.fullmatch(ELEMENT, line)
            in_docstring = b"\n".join(lines[:number]).count(b'"""') % 2
            if not found or in_docstring or (second if number == 2 else not found[1]):
                continue
            name = re.sub("[<>]", "", os.fsdecode(found[2]))
            remedy = f"sed -i -e '{number}d' -e '1a # element: {name}' {shlex.quote(path)}"
            if "," in name:
                remedy = "write # element: and one name into its second line"
            elif second or number == 1:
                remedy = f"let its second line be # element: {name}"
            effect = "" if second or number == 1 else ", so it runs for every guest"
            yield f"{path}: line {number}, {os.fsdecode(line)!r}, is not read{effect}", remedy


def read(path):
    """A file's contents; empty where it cannot be read."""
    try:
        return Path(path).read_bytes() if os.path.isfile(path) else b""  # a FIFO would block
    except OSError:
        return b""


def faults_of(path, text):
    """(problem, remedy) of all that keeps a hook, or a script, from being started."""
    real, mend = os.path.realpath(path), "correct it, or restore the old file"
    places = [Path(real), *Path(real).parents, Path(path), *Path(path).parents]
    places = [place for place in dict.fromkeys(places) if not os.lstat(place).st_mode & 0o1000]
    faults = [fault for place in places for fault in place_faults(str(place))]
    if os.statvfs(real).f_flag & os.ST_NOEXEC:
        directory = shlex.quote(os.path.dirname(real))
        problem = f"{directory} is on a file system mounted noexec, from which nothing runs"
        faults.append((problem, f"mount -o remount,exec $(findmnt -no TARGET -T {directory})"))
    problem = start_fault(real, text)
    if problem:
        mend = f"sed -i 's/\\r$//' {shlex.quote(real)}" if "CR LF" in problem else mend
        faults.append((f"{real}: {problem}", mend))
    return faults


def place_faults(path):
    """[(problem, remedy)] where others than root, or the caller, can write to a path, or []."""
    status, is_link, name = os.lstat(path), os.path.islink(path), shlex.quote(path)
    if status.st_uid in (0, os.geteuid()) and (is_link or not status.st_mode & 0o022):
        return []
    who = f"owner {status.st_uid}, mode {status.st_mode & 0o7777:04o}"
    mend = f"chown -h root: {name}" if is_link else f"chown root: {name} && chmod go-w {name}"
    problem = f"{path}: users other than root can change it ({who}), so nothing runs"
    return [(problem, mend)]


def start_fault(path, text):
    """Why a script cannot start, or why its interpreter cannot read it; empty if both can be."""
    first = os.fsdecode(text.partition(b"\n")[0])
    if text.startswith(b"\x7fELF"):
        return ""
    if first.endswith("\r"):
        return "it cannot start, since its lines end in CR LF, as on Windows"
    words = first[2:].strip().split(None, 1)
    if not first.startswith("#!") or not words or words[0][0] != "/":
        return f"it cannot start: its first line is {first[:60]!r}, not #! and an interpreter"
    program = words[0]
    if os.path.basename(program) == "env" and len(words) > 1:
        names = words[1][2:].split() if words[1].startswith("-S") else words[1:]
        name = next((n for n in names if n[0] != "-" and "=" not in n), "")
        program = shutil.which(name, path=SYSTEM_PATH) or name
    if not os.path.isfile(program) or not os.access(program, os.X_OK):
        return f"it cannot start: its interpreter {program!r} is missing or not executable"
    if os.path.realpath(program) == os.path.realpath(sys.executable):
        try:
            *_others, last = [ast.Import([]), *ast.parse(text, path).body]
        except (SyntaxError, ValueError) as error:
            return f"Python cannot read it: {error}"
        inert = isinstance(last, (ast.Import, ast.ImportFrom, ast.Assign, ast.Expr))
        inert = inert and not any(isinstance(node, ast.Call) for node in ast.walk(last))
        if inert or isinstance(last, (ast.FunctionDef, ast.ClassDef)):
            return "it ends before it does anything; it may be half-written"
    is_shell = os.path.basename(program) in ("sh", "dash", "bash")
    if is_shell or os.path.basename(program).startswith("python"):
        options = [word for word in words[1:] if words[0] == program and word not in ("-", "--")]
        extglob = ["-O", "extglob"] if os.path.basename(program) == "bash" else []
        question = [program, *options, *extglob, *(["-n", path] if is_shell else ["-c", ""])]
        result = subprocess.run(question, stdin=subprocess.DEVNULL, capture_output=True)
        return os.fsdecode(result.stderr).partition("\n")[0] if result.returncode else ""
    return ""
