"""Compares what a host is to have with what it has: the filter virt_hooks_plan."""

import os
import re

HOOKS = "/etc/libvirt/hooks"
RECORD = f"{HOOKS}/.virt-hooks-ansible.sha1"


def plan(wanted, found, missing, record, overwrite=False):
    """What is to be done on a host, and what is in the way.

    wanted: {path: {source, checksum, mode}}, as stage-tree describes it; found: the files that
    ansible.builtin.find saw; missing: the directories that it did not find; record: the text of
    RECORD, what this role has put there, as sha1sum(1) has it. A file that is not as recorded is
    somebody else's: it is in the way, or, with overwrite, replaced. The result is {
        "put": [{path, source, mode}], a dispatcher after all that it runs;
        "remove": [path], a dispatcher before all that it runs, deletion before the archive;
        "directories": those that "put" lacks, "left": those that "remove" leaves empty;
        "saved": the files that "put" and "remove" change, as they are there;
        "recording": what RECORD is to say while this is done, "record": and when it is done;
        "problems": what keeps all this from being done, a line each;
        "needed": whether there is anything to do }.
    """
    there = {file["path"]: file for file in found}
    recorded = {}  # two lines of a path: a run that was killed has not said which it is
    for line in record.splitlines():
        checksum, path = line.split("  ", 1)
        recorded.setdefault(path, set()).add(checksum)
    drivers = [path for path in wanted if is_dispatcher(path)]
    problems = other_installation(there) if drivers else []
    put, ours = [], {}
    for path, want in sorted(wanted.items(), key=lambda item: (is_dispatcher(item[0]), item[0])):
        has = there.get(path)
        if has and is_as(has, {want["checksum"]}, want["mode"]):
            if path in recorded:
                ours[path] = want["checksum"]
            continue
        replaceable = not has or is_as(has, recorded.get(path, ()), want["mode"])
        if not replaceable and not (overwrite and has["isreg"]):
            problems.append(why_not_replaced(path, has, path in recorded))
        put.append({"path": path, "source": want["source"], "mode": want["mode"]})
        ours[path] = want["checksum"]
    remove = []
    for path in sorted(recorded.keys() - wanted.keys(), reverse=True):
        if path not in there:
            continue
        if not is_as(there[path], recorded[path]) and not (overwrite and there[path]["isreg"]):
            problems.append(why_not_removed(path))
        remove.append(path)
    remove.sort(key=lambda path: not is_dispatcher(path))
    lines = {(checksum, path) for path, checksum in ours.items()}
    before = {(checksum, path) for path, sums in recorded.items() for checksum in sums}
    changed = [file["path"] for file in put] + remove
    return {
        "put": put,
        "remove": remove,
        "directories": lacking({os.path.dirname(file["path"]) for file in put}, there, missing),
        "left": emptied(remove, put, there),
        "saved": [path for path in changed if path in there],
        "recording": as_text(lines | before),
        "record": as_text(lines),
        "problems": problems,
        "needed": bool(changed) or lines != before,
    }


def is_dispatcher(path):
    return os.path.dirname(path) == HOOKS and not path.endswith(".py")  # their other halves


def is_as(file, checksums, mode=None):
    """Whether a file has such a checksum and, where given, is executable or not as this mode is."""
    if not file["isreg"] or file.get("checksum") not in checksums:
        return False
    return mode is None or bool(int(file["mode"], 8) & 0o111) == bool(int(mode, 8) & 0o111)


def other_installation(there):
    if f"{HOOKS}/.virt-hooks.sha256" in there:
        return ["install.sh has installed virt-hooks here: run install.sh --uninstall first"]
    if "/usr/sbin/virt-hooks" in there:
        return [
            "the package virt-hooks is installed here: remove it, or set virt_hooks_drivers: []"
        ]
    return []


def why_not_replaced(path, file, is_ours):
    if not file["isreg"]:
        return f"{path} is no file"
    if is_ours:
        return (
            f"{path} was changed on this host: take the change into virt_hooks_scripts, or undo it,"
            " or set virt_hooks_overwrite"
        )
    if is_dispatcher(path):
        return (
            f"{path} is there already, and not from this role: move it to {path}.d/ (libvirt 6.5 or"
            f" newer runs it there) or into the phase directory that it is for, or away"
        )
    return (
        f"{path} is there already, and not from this role: rename it, or set virt_hooks_overwrite"
    )


def why_not_removed(path):
    return (
        f"{path} was changed on this host, and is to be removed: save what you need of it and"
        " delete it, or set virt_hooks_overwrite"
    )


def lacking(directories, there, missing):
    """The directories that are to be made, the outer ones first."""
    outside = {path for path in directories if not f"{path}/".startswith(f"{HOOKS}/")}
    return sorted(
        (directories - outside - there.keys() - ({HOOKS} - set(missing))) | (outside & set(missing))
    )


def emptied(remove, put, there):
    """Phase directories, and guests' in them, in which nothing is left; the inner ones first."""
    stay = {file["path"] for file in put} | (there.keys() - set(remove))
    left = []
    for path in remove:
        directory = os.path.dirname(path)
        while re.match(f"{HOOKS}/[^/]+[.]d(/|$)", directory):
            if not any(other.startswith(f"{directory}/") for other in stay - set(left)):
                left.append(directory)
            directory = os.path.dirname(directory)
    return sorted(set(left), reverse=True)


def as_text(lines):
    ordered = sorted(lines, key=lambda line: line[::-1])
    return "".join(f"{checksum}  {path}\n" for checksum, path in ordered)


class FilterModule:
    def filters(self):
        return {"virt_hooks_plan": plan}
