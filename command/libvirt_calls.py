"""Finds where a hook script calls libvirt and waits for it: libvirt waits for the script meanwhile.

It reads shell and Python scripts. It finds commands after sudo and similar programs, in conditions,
groups, substitutions and functions, in the text of sh -c, in variables that the script sets, and in
scripts below the hooks directory that a script runs. It reports neither uncertain calls nor calls
in the background. It never runs a script.
"""

import ast
import os
import re
import shlex
from pathlib import Path

CLIENTS = ("virsh", "virt-xml", "virt-install", "virt-clone")
ONLY_SHOWS = {"-v", "-V", "-h", "--version", "--help", "help"}  # what needs no libvirt
DAEMONS = "libvirtd libvirt-guests virtlxcd virtqemud virtxend virtbhyved virtnetworkd".split()
STOPS = "stop restart try-restart condrestart reload reload-or-restart".split()  # waits, too
READERS = "sh bash dash ksh zsh su runuser . source python python3".split()  # they run a script
KEYWORDS = set("! { if then elif else while until do".split())
OPENS = ("{", "if", "while", "until", "for", "case", "select")
CLOSES = ("}", "fi", "done", "esac")
PREFIXES = {  # programs that run another and wait for it: their options that take a value
    "builtin": "",
    "chronic": "",
    "chrt": "",
    "command": "",
    "doas": "-u",
    "env": "-u -C",
    "exec": "-a",
    "flock": "-w -E",
    "ionice": "-c -n",
    "nice": "-n",
    "nohup": "",
    "runuser": "-u -g --user",
    "setpriv": "",
    "setsid": "",
    "stdbuf": "-i -o -e",
    "sudo": "-u -g -p --user --group",
    "systemd-run": "-u -p",
    "time": "-f -o",
    "timeout": "-k -s --kill-after --signal",
    "xargs": "-I -n -L -P -d -a -s",
}
LEAVES = {"command": ("-v", "-V"), "setsid": ("-f", "--fork")}  # with these they do not wait
UNIT_WAITS = {"--wait", "--pipe", "--scope", "--pty", "-P", "-t"}  # of systemd-run

# Up to two levels of parentheses in parentheses are understood.
NESTED = r"\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"
TOKEN = re.compile(rf"""
    (?<![^\s;&|()])\#.*                         # a comment
    | \\\n | [ \t\r]+                           # what is between words
    | \d*(?:&>+|[<>]+[&|]?)[ \t]*[\w/.$~{{}}-]*   # a redirection
    | (?P<function> \bfunction[ ]+[\w.-]+(?:[ ]*\([ ]*\))? | [\w.-]+[ ]*\([ ]*\) )
    | (?P<operator> (?:&&|\|\|?)\s* | [;&()`\n] )
    | (?P<word>
        \w+=\([^()]*\)                          # an array
        | (?: \\. | '[^']*' | "(?:\\.|\${NESTED}|\$(?!\()|[^"\\$])*" | [^\s;&|()`<>"'\\] | ["'\\] )+
    )
""", re.VERBOSE)  # fmt: skip
SUBSTITUTION = re.compile(rf"(?<!\\)(?:\$({NESTED})|`([^`]*)`)")  # in a string
HERE_DOCUMENT = re.compile(  # with the line before it
    r"^(.*?)(?<!<)<<-?[ \t]*(['\"\\]?)(\w+)\2(.*)\n((?:.*\n)*?)[ \t]*\3$", re.MULTILINE
)
CASE_PATTERN = re.compile(r"(\sin\s|;;)\s*\(?[^()\n;]*\)")
SCRIPTS_DIRECTORY = re.compile(r"""\$\(dirname (["']?)\$\{?0\}?\1\)|\$\{0%/\*\}""")
VALUE = re.compile(  # name=value, ${name:-value} and ${name:=value}
    r"""(?<![\w$])(\w+)(?:=|:[-=])("[^"]*"|'[^']*'|`[^`]*`|\$?\([^()]*\)|[^\s;&|(){}]+)"""
)
VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)[^{}]*\})")
WHICH = re.compile(r"[$`]\(?(?:command -v|which|type -[pP]) +([^\s)`]+)[)`]?(?=[\s\"]|$)")

# Functions of Python that run a program, and what a script calls its own such functions.
PYTHON_RUNS = re.compile(
    r"_?(run|execute|cmd)\w*|sh|shell|system|[pP]open|call|check_call|check_output"
    r"|get(status)?output|(exec|spawn)[lv]p?e?|create_subprocess_\w+"
)
PYTHON_WAITS = re.compile(r"\.(wait|communicate|stdout)\b|with \S*Popen|\bpopen")


def calls_of(path, hooks, depth=3):
    """(file, command) of each call of libvirt in a script, and in scripts of the hooks it runs."""
    text = Path(path).read_text(errors="replace") if os.path.isfile(path) else ""
    if "\0" in text:
        return  # a binary program
    is_python = "python" in text.partition("\n")[0]
    try:
        commands = list(python_commands(text) if is_python else shell_commands(text, path))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return  # not even a shell or Python could read this
    for words in commands:
        if is_call(words):
            yield path, " ".join(words)
        other = os.path.realpath(script_that_runs(words))
        if depth and other.startswith(f"{os.path.realpath(hooks)}/"):
            yield from calls_of(other, hooks, depth - 1)


def is_call(words):
    """Whether a command asks libvirt something, or stops a daemon of its, and waits for that."""
    program = os.path.basename(words[0])
    if program == "import":  # in Python
        return re.match(r"libvirt(_qemu|_lxc|aio)?\b", words[1]) is not None
    if program in CLIENTS:
        is_elsewhere = any(re.search(r"\w\+\w+://|\btest:", word) for word in words)
        return not is_elsewhere and ONLY_SHOWS.isdisjoint(words[1:2])
    if program not in ("systemctl", "service") and "/init.d/" not in words[0]:
        return False
    units = {os.path.basename(word).partition(".")[0] for word in words}
    stops = not units.isdisjoint(DAEMONS) and not units.isdisjoint(STOPS)
    return stops and "--no-block" not in words


def script_that_runs(words):
    """The script that a command runs: itself, or the one that it gives to a shell."""
    if os.path.basename(words[0]) in READERS:
        return next((word for word in words[1:] if word[:1] != "-"), "")
    return words[0]


# ---- shell ----------------------------------------------------------------------------------


def shell_commands(text, path="", values=None):
    """The commands, each a list of words, that a shell script waits for."""
    text = SCRIPTS_DIRECTORY.sub(lambda _match: os.path.dirname(path), text)
    text = CASE_PATTERN.sub(r"\1\n", HERE_DOCUMENT.sub(without_document, text))
    tokens = ((match.lastgroup, match[0].strip(" \t")) for match in TOKEN.finditer(f"{text}\n"))
    values, functions = {**dict(VALUE.findall(text)), **(values or {})}, {}
    commands = commands_until("", tokens, values, functions)
    for words in commands:  # it grows by what a function runs that is called
        commands += functions.pop(words[0], [])
    return commands


def without_document(found):
    """A line without its here-document, which is a text, unless a shell or Python runs it."""
    line, _quote, _end, rest, document = found.groups()
    programs = {os.path.basename(word) for word in line.split()}
    if programs.isdisjoint(READERS):
        return f"{line} {rest}"
    return f"{line} -c {shlex.quote(document)} {rest}"


def commands_until(opener, tokens, values, functions):
    """The commands that are waited for, up to the end of the group that opener has begun."""
    found, words = [], [opener] if opener in ("for", "case", "select") else []
    list_start = 0  # where in found the list begins that a & would put into the background
    function = ""  # the name of the one whose body comes next
    for kind, token in tokens:
        is_first = kind == "word" and all(word in KEYWORDS for word in words)
        if is_first and token in CLOSES:
            break
        if is_first and token in OPENS or token == "(" or token == "`" != opener:
            group = commands_until(token, tokens, values, functions)
            if function:
                functions[function] = group
                function = ""
            else:
                found += group
        elif kind == "word":
            words.append(token)
        elif kind == "function":
            function = token.removeprefix("function ").strip(" ()")
        elif kind == "operator":
            found += programs_of(words, values)
            words = []
            if token == ")" and opener == "(" or token == "`":
                break
            if token == "&":
                del found[list_start:]
            if token in ("&", ";", "\n"):
                list_start = len(found)
    return found


def programs_of(words, values):
    """The commands that a simple command runs in the end: after sudo, in the text of sh -c."""
    strings = [word for word in words if '"' in word]
    for parentheses, backquotes in SUBSTITUTION.findall("\n".join(strings)):
        yield from shell_commands(parentheses or backquotes, values=values)
    words = [unquoted(word, values) for word in words]
    while words:
        if re.match(r"\w+=", words[0]) or words[0] in KEYWORDS:
            words = words[1:]
            continue
        words[:1] = words[0].split()  # a variable may hold several words, or none
        name = os.path.basename(words[0]) if words else ""
        yield from programs_in_text(name, words, values)
        if name not in PREFIXES or name == "systemd-run" and UNIT_WAITS.isdisjoint(words):
            break
        elif words[1:] and words[1] in LEAVES.get(name, ()):
            return
        else:
            words = words_after(name, words)
    if words:
        yield words


def programs_in_text(name, words, values):
    """The commands in a text that a program gets to run, as sh -c and eval do."""
    if name in ("eval", "trap"):
        yield from shell_commands(" ".join(words[1:]), values=values)
    for option, text in zip(words[1:], words[2:]):
        if re.fullmatch(r"-\w*c", option) and name in (*READERS, "flock"):
            python = name.startswith("python")
            yield from python_commands(text) if python else shell_commands(text, values=values)


def words_after(name, words):
    """The command that a program such as sudo or timeout runs."""
    words, with_value = words[1:], PREFIXES[name].split()
    while words and re.match(r"-|\w+=|[\d.]+[smhd]?$", words[0]):
        option = words[0]
        last = f"-{option[-1]}" if re.match("-[^-]", option) else option
        words = words[2 if last in with_value else 1 :]
    return words[1:] if name == "flock" else words  # after the file that it locks


def unquoted(word, values):
    """A word as the shell makes it, as far as the script says what its variables hold."""
    for _level in (1, 2):  # a variable may hold another
        word = VARIABLE.sub(lambda m: values.get(m[1] or m[2], m[0]).strip("()"), word)
    word = WHICH.sub(r"\1", word)
    return re.sub(r"\\(.)|'([^']*)'|\"", lambda match: match[1] or match[2] or "", word)


# ---- Python ---------------------------------------------------------------------------------


def python_commands(text):
    """The commands, each a list of words, that a Python script waits for; imports are some, too."""
    nodes = list(ast.walk(ast.parse(text)))
    values = {}
    for node in nodes:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value:
            target = getattr(node, "target", None) or node.targets[0]
            values[getattr(target, "id", "")] = node.value
    waits = PYTHON_WAITS.search(text)
    for node in nodes:
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            arguments = node.args + [word.value for word in node.keywords if word.arg == "args"]
            texts = [text for argument in arguments for text in texts_of(argument, values)]
            if name in ("__import__", "import_module"):
                modules = texts[:1]
            elif PYTHON_RUNS.fullmatch(name) and not is_left(node, name, waits):
                yield from shell_commands(" ".join(texts))
        yield from (["import", module] for module in modules)


def is_left(call, name, waits):
    """Whether a call of Python's only starts a program, and does not wait for it."""
    keywords = [keyword.arg for keyword in call.keywords]
    modes = [getattr(argument, "attr", "") for argument in call.args]
    starts = name == "Popen" and not waits
    return starts or "start_new_session" in keywords or "P_NOWAIT" in modes


def texts_of(node, values):
    """The texts that an argument of a call holds, as far as they are written down."""
    name = getattr(node, "id", "")
    if name in values:
        node, values = values[name], {**values, name: ast.Constant("")}
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    if isinstance(node, ast.Call):  # such as shlex.split("..."), or "...".split()
        parts = [*node.args, getattr(node.func, "value", None)]
    elif isinstance(node, ast.BinOp):
        parts = [node.left, node.right]
    elif isinstance(node, (ast.Starred, ast.FormattedValue)):
        parts = [node.value]
    else:  # a list, a tuple or an f-string
        parts = getattr(node, "elts", getattr(node, "values", []))
    texts = [text for part in parts for text in texts_of(part, values)]
    return [shlex.quote(text) for text in texts] if hasattr(node, "elts") else texts
