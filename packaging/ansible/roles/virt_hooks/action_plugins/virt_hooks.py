"""Sends virt-hooks and the administrator's scripts to a host, and runs files/apply there.

This part runs on the controller, in Ansible's own process, to which no "become" applies.
"""

import io
import os
import re
import shlex
import tarfile

from ansible.module_utils.common.validation import check_type_list
from ansible.plugins.action import ActionBase

OF_DRIVER = re.compile(r"(bhyve|daemon|libxl|lxc|network|qemu)[._]")
NOT_SENT = re.compile(r"project/(bench|packaging|tests)|.*/\..*|.*~")
# One run at a time. "virt-hooks check" runs what lies there: /run and /tmp may be mounted noexec.
RUN = """umask 077 && flock --close /run/virt-hooks-ansible sh -c 'cd /var/lib &&
rm -rf virt-hooks-ansible && mkdir virt-hooks-ansible && cd virt-hooks-ansible &&
tar -xzpf - && exec sh ./apply "$@" </dev/null' sh """


class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        wanted, path = self._task.args, self._loader.path_dwim
        package, drivers = wanted["package"], {*check_type_list(wanted["drivers"])}
        if not os.path.isfile(f"{path(wanted['source'])}/install.sh"):  # the role lies elsewhere
            words = f"virt_hooks_source: {wanted['source']} is not a checkout of virt-hooks"
            return {**result, "failed": True, "msg": words}
        files = {path(wanted["source"]): "project"}
        files[f"{self._task._role._role_path}/files/apply"] = "apply"
        if wanted["state"] == "absent":
            package, drivers = "", set()
        elif wanted["scripts"]:
            files[path(wanted["scripts"]) + "/."] = "scripts"  # and no file
        if package:
            drivers |= {"lxc", "qemu"}
        if package.endswith((".deb", ".rpm")):
            files[path(package)] = package = f"./{os.path.basename(package)}"
        action = "check" if self._task.check_mode else "change"
        check = str(wanted["check"] and drivers != set())
        of_install_sh = "" if package else "\n".join(sorted(drivers))
        words = [action, check, wanted["state"], package, of_install_sh]
        command, archive = RUN + shlex.join(words), pack(files, drivers)
        done = self._low_level_execute_command(command, in_data=archive)
        if done["rc"]:
            return {**result, "failed": True, "msg": done["stdout"] + done["stderr"]}
        result["warnings"] = re.findall(r"(?m)^! (.*)", done["stdout"])
        difference = re.sub(r"(?m)^! .*\n", "", done["stdout"])
        return {**result, "changed": difference != "", "diff": {"prepared": difference}}


def pack(files, drivers):
    """An archive of {path: name in it}; of scripts/ it has the directories for these drivers."""

    def as_sent(entry):
        top, name = [*entry.name.split("/"), ""][:2]
        driver = OF_DRIVER.match(name)
        is_for_host = driver[1] in drivers if driver else name.endswith(".d")
        if NOT_SENT.fullmatch(entry.name) or (top == "scripts" and name and not is_for_host):
            return None
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = "root"
        entry.mode &= ~0o022  # the dispatcher runs nothing that others can write
        return entry

    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz", dereference=True) as tar:
        for path, name in files.items():
            tar.add(path, name, filter=as_sent)
    return archive.getvalue()
