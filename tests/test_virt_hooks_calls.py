"""virt-hooks check: which scripts call libvirt and wait for it, and which only seem to."""

import sys

from harness import CHECKOUT, TestCase, install_dispatcher
from test_virt_hooks import PREPARE, SHELL, CheckTestCase

sys.path.append(str(CHECKOUT / "command"))
from libvirt_calls import calls_of  # noqa: E402

# Scripts, one a line, in which \n begins another line.
SHELL_CALLS = r"""
virsh list
/usr/bin/virsh list
sudo virsh list
sudo -u root virsh list
sudo -n -E virsh list
sudo -nu root virsh list
sudo --user root virsh list
sudo --user=root -- virsh list
timeout 5 virsh list
timeout -k 5 -s KILL 10 virsh list
timeout --signal=KILL 10s virsh list
env LC_ALL=C virsh list
env -i PATH=/bin virsh list
env -u LANG virsh list
LC_ALL=C virsh list
LC_ALL=C LANG="a b" virsh list
XDG_CACHE_HOME=/run/x virsh list
nice -n 5 virsh list
ionice -c3 virsh list
nohup virsh list
setsid virsh list
setsid -w virsh list
stdbuf -oL virsh list | cat
exec virsh list
command virsh list
time virsh list
! virsh list
flock /run/lock/x virsh list
flock -n /run/lock/x virsh list
flock /run/lock/x -c "virsh list"
chronic virsh list
xargs -n1 virsh start <names
echo web | xargs -I{} virsh start {}
cat x | virsh define /dev/stdin
cat | /usr/bin/virsh define /dev/stdin
true && virsh list
false || virsh list
true; virsh list
if virsh list; then :; fi
if ! virsh list >/dev/null 2>&1; then :; fi
if true; then virsh list; fi
if true; then :; elif virsh list; then :; fi
if true; then :; else virsh list; fi
while virsh list; do sleep 1; done
until virsh list | grep -q x; do sleep 1; done
for i in 1 2; do virsh list; done
{ virsh list; }
( virsh list )
(virsh list)
x=$(virsh list)
x="$(virsh domstate "$1")"
x=`virsh list`
x="`virsh list`"
echo "$(virsh list)"
echo $(virsh list | head)
[ "$(virsh domstate "$1")" = running ] && exit
if [ "$(virsh -c lxc:/// domstate "$1")" = x ]; then exit; fi
[[ $(virsh domstate $1) == running ]]
for x in $(virsh list --name); do :; done
while read -r x; do :; done < <(virsh list)
diff <(virsh list) <(cat x)
sh -c 'virsh list'
sh -c "virsh list"
bash -c "virsh dumpxml \"$1\""
bash -lc 'virsh list'
sh -ec 'true; virsh list'
su - root -c 'virsh list'
su -c "virsh list" root
sudo sh -c 'virsh list'
timeout 5 sh -c 'virsh list'
runuser -u root -- virsh list
eval "virsh list"
eval virsh list
trap 'virsh list' EXIT
VIRSH=virsh; $VIRSH list
VIRSH=virsh\n$VIRSH list
VIRSH="virsh -c qemu:///system"\n$VIRSH list
VIRSH=/usr/bin/virsh\n"$VIRSH" list
VIRSH=/usr/bin/virsh\n"${VIRSH}" list
VIRSH=$(command -v virsh)\n$VIRSH list
VIRSH=`which virsh`\n$VIRSH list
VIRSH=$(type -P virsh)\n$VIRSH list
VIRSH=$(which virsh) || exit\n"$VIRSH" list
VIRSH="$(command -v virsh)"\n$VIRSH list
${VIRSH:-virsh} list
: "${VIRSH:=virsh}"\n$VIRSH list
cmd="virsh list"\n$cmd
cmd="virsh list"\neval "$cmd"
cmd="virsh list"\nsh -c "$cmd"
cmd=(virsh -c qemu:///system)\n"${cmd[@]}" list
readonly VIRSH=virsh\n$VIRSH list
export VIRSH=virsh; $VIRSH list
f() { virsh list; }\nf
f () {\n  virsh list\n}\nf
function f {\n  virsh list\n}\nf
f() { virsh list; }\nif f; then :; fi
case "$2" in\nprepare) virsh list ;;\nesac
case "$2" in\n  prepare|start)\n    virsh list\n    ;;\nesac
case $2 in a) virsh list; esac
virsh list &&\n  true
virsh -c qemu:///system \\n list
timeout 5 \\n  virsh list
>/dev/null virsh list
2>&1 virsh list
virsh list >/dev/null 2>&1
virsh list &>/dev/null
virsh list >&2
virsh <<EOF\nlist\nEOF
echo list | virsh
bash <<'EOF'\nvirsh list\nEOF
sleep 1 & virsh list
# comment don't\nvirsh list
echo "don't" # it's\nvirsh list
[ $# -lt 2 ] && exit\nvirsh list
x=${0##*/}; virsh list
virt-xml web --edit
virt-install --name x
systemctl restart libvirtd
systemctl restart libvirtd.service
sudo systemctl stop virtqemud
service libvirtd restart
/etc/init.d/libvirtd restart
systemctl reload libvirtd
systemctl -q restart libvirt-guests
python3 -c 'import libvirt'
python3 <<EOF\nimport libvirt\nEOF
systemd-run --wait virsh list
systemd-run --scope virsh list
systemd-run --pty -q virsh list
cat <<EOF\nhello don't\nEOF\nvirsh list
a=$((1 + 2))\nvirsh list
a=$((1 << 2))\nvirsh list
echo ')' ; virsh list
test -x /usr/bin/virsh && virsh list
command -v virsh >/dev/null && virsh list
if command -v virsh; then virsh list; fi
local x; x=$(virsh list)
local x=$(virsh list)
return $(virsh list)
f() { virsh list; }\n[ "$2" = x ] && f
f() ( virsh list )\nf
'virsh' list
"virsh" list
virsh net-list
VIRSH='virsh --quiet'; if $VIRSH list; then :; fi
set -e; virsh list
ls | while read x; do virsh start "$x"; done
coproc virsh list; virsh list
nice virsh list
(sleep 1) & virsh list
true & wait; virsh list
grep x <<< "$(virsh list)"
virsh dumpxml web | xmllint --xpath '//a[@b="c"]' -
timeout -k 1 5s virsh list
if ! virsh domstate x; then :; fi
bash -c 'sleep 1; virsh list'
V=virsh\n$V list
V=$(command -v virsh)\n"$V" list
true || virsh start x
cat | virsh define /dev/stdin
virsh list | grep x
case "$1/$2" in\n web/start) virsh list ;;\nesac
while ! virsh domstate x; do sleep 1; done
f() {\n  virsh list\n}\nf
flock /run/l virsh list
echo x | xargs virsh start
virt-xml x --edit
[ "$(virsh domstate x)" = running ] && exit
until virsh list; do :; done
echo hi; virsh list
trap "virsh list" EXIT
virsh list > /dev/null 2>&1
if true; then\n  virsh list\nfi
CMD=(virsh -c x)\n"${CMD[@]}" list
echo "it's" # comment\nvirsh list
DIR=/x\nsu -c "virsh list"
printf "%s" "a" && virsh list
local s=$(virsh list)
export X=$(virsh list)
echo "don't"; virsh list
virsh list 2>&1 | tee log
then_x() { :; }; if true; then if true; then virsh list; fi; fi
main() { start; }\nstart() { virsh list; }\nmain "$@"
if true; then { :; }; fi; virsh list
x="$(virsh domstate "a b")"
cleanup() { virsh list; }\ntrap cleanup EXIT
SUDO=""\n$SUDO virsh list
case "$(virsh domstate "$1")" in running) : ;; esac
echo "state: $(virsh domstate "$1")"
printf '%s' "$(virsh list)" | mail -s x root
bash -o pipefail -c 'virsh list'
bash -s <<EOF\nvirsh list\nEOF
PATH=/usr/bin; virsh list
(cd /tmp && virsh list)
[ -x /usr/bin/virsh ] && /usr/bin/virsh list || true
sleep 1 & sleep 2; virsh list
set -- a; while [ $# -gt 0 ]; do virsh start $1; shift; done
if [ "$1" = a ] && [ "$2" = b ]; then\n  virsh list\nfi
xml=$(virsh dumpxml "$1" | grep x)
DOM="$1"; OP="$2"\nif [[ $OP == start ]]\nthen\n virsh net-list\nfi
a="${1:-web}"; virsh start "$a"
select x in a; do virsh list; done
awk '/(/' x; virsh list
echo "(" ; virsh list
echo "can't"; virsh list
: ${X:=1}; virsh list
((i++)); virsh list
x=$(echo $(virsh list))
timeout --kill-after=5 10 virsh list
env -i virsh list
stdbuf -o L virsh list
"""
SHELL_CALLS_NONE = r"""
true
# virsh list
echo virsh list
echo "virsh list"
echo "use virsh list"
echo 'use $(virsh list)'
logger -t hook "virsh start $1 would hang"
printf 'virsh list\n'
echo "a; virsh list"
echo "a | virsh list"
command -v virsh
command -v virsh >/dev/null || exit 0
if command -v virsh >/dev/null 2>&1; then echo yes; fi
type virsh
type -p virsh
which virsh
hash virsh
[ -x /usr/bin/virsh ]
[ -x "$(command -v virsh)" ]
test -x /usr/bin/virsh || exit 0
[[ -x /usr/bin/virsh ]]
virsh list &
virsh list >/dev/null 2>&1 &
(virsh list) &
( sleep 5; virsh list ) &
(sleep 5; virsh list) >/dev/null 2>&1 &
{ sleep 5; virsh list; } &
{ sleep 5\n virsh list\n} >/dev/null &
nohup virsh list &
setsid virsh list &
setsid sh -c 'sleep 1; virsh attach-interface x' &
setsid -f virsh list
setsid --fork sh -c 'virsh list'
nohup sh -c 'sleep 2; virsh list' >/dev/null 2>&1 &
sh -c 'virsh list &'
sh -c '(sleep 1; virsh list) &'
sleep 1 && virsh list &
sleep 1 &&\n virsh list &
true | virsh define x &
virsh list | grep x &
if true; then virsh list; fi &
for i in 1; do virsh list; done &
while true; do virsh list; sleep 1; done &
while ! virsh list; do sleep 1; done &
case $1 in a) virsh list ;; esac &
x() { sleep 1; virsh list; }\nx &
later() {\n  sleep 1\n  virsh list\n}\nlater "$1" >/dev/null 2>&1 &
systemd-run --no-block virsh list
systemd-run --no-block --collect --unit=x virsh list
systemd-run --no-block sh -c 'virsh list'
systemd-run virsh list
sudo systemd-run --no-block virsh list
echo "virsh list" | at now
echo "virsh list" | at now + 1 minute
at now <<EOF\nvirsh list\nEOF
cat <<EOF\nvirsh list\nEOF
cat <<'EOF' >x\nvirsh list\nEOF
cat <<-EOF\n\tvirsh list\n\tEOF
cat >&2 <<END\nuse:\nvirsh list\nEND
ssh other virsh list
virsh -c qemu+ssh://other/system list
virsh --version
systemctl status libvirtd
systemctl is-active libvirtd
systemctl --no-block restart libvirtd
systemctl restart --no-block libvirtd
systemctl restart nginx
systemctl start libvirtd
systemctl restart virtlogd
VIRSH=virsh
VIRSH=virsh; echo "$VIRSH"
progs="virsh nft"; for p in $progs; do command -v "$p"; done
for p in virsh nft; do command -v "$p" >/dev/null || exit 1; done
need=(virsh nft); echo "${need[@]}"
case $x in virsh) true ;; esac
case $x in a|virsh) true ;; esac
case $x in\nvirsh)\n true ;;\nesac
rpm -q virsh
dpkg -s libvirt-clients
grep virsh file
pgrep virsh
pkill virsh
echo $(date) virsh list failed
echo "$(date): virsh list" >>/var/log/x
logger -t "$0" $(date) virsh failed
x="virsh list"
msg="do not call virsh list here"\necho "$msg"
cp /usr/bin/virsh /srv
ln -s /usr/bin/virsh x
man virsh
echo a # virsh list
: virsh list
: "virsh"
echo "virsh" >&2; exit 1
echo it\'s virsh list
virsh_uri=x
virsh_list=x; echo $virsh_list
(exec setsid virsh list) &
nohup bash -c "sleep 3 && virsh attach-device $1 /x.xml" &> /dev/null &
nohup bash -c "sleep 3 && virsh attach-device $1 /x.xml" </dev/null &>/dev/null & disown
( ( virsh list ) & )
(virsh list &)
f() { echo virsh list; }\nf
trap 'echo virsh' EXIT
if [ "$1" = virsh ]; then :; fi
test "$1" = virsh
cat <<EOF | at now\nvirsh list\nEOF
batch <<EOF\nvirsh start x\nEOF
logger "virsh list failed"
if command -v virsh >/dev/null; then :; fi
(sleep 1; virsh list) &
{ sleep 1; virsh list; } &
setsid sh -c "sleep 1; virsh list" &
nohup virsh list >/dev/null 2>&1 &
cat <<"EOF" >/x\nvirsh list\nEOF\n:
printf "run: virsh start %s\n" "$1" >&2
(\n  sleep 1\n  virsh list\n) &
while sleep 1; do virsh list; done &
V=virsh
grep virsh /etc/x
x="virsh"
echo `date` virsh
msg="see: virsh list"; echo "$msg"
rm -f /var/log/virsh.log
test -n "$(command -v virsh)"
echo "a # b" virsh
nohup setsid virsh list &
( virsh list & )
sudo echo virsh
: "${VIRSH:=virsh}"
awk '/virsh/ {print}' x
echo "virsh list $(date)"
logger "virsh start failed: $(cat /x)"
echo "$(date) virsh; virsh list"
echo "use \$(virsh list) here"
printf "%s\n" "$(date): a && virsh list"
import -window root x.png
if [ -n "$X" ]; then { sleep 1; virsh list; } & fi
virsh list &&\n sleep 1 &
main() { later & }\nlater() { virsh list; }\nmain
f() { virsh list; }
case $x in a|virsh|b) true ;; esac
awk '{ virsh list }' x
sed -i "s/virsh list/x/" f
cat >/x <<EOF\nfoo | virsh list\n$(date)\nEOF
echo a \\n virsh list
for c in virsh; do :; done
sleep 3 && virsh list >/dev/null &
exec >/var/log/virsh 2>&1
exec 2> >(logger -t virsh)
[ "$2" = x ] && (sleep 2; virsh list) &
alias v='virsh list'
ps aux | grep virsh
grep -q 'virsh;virsh list' x
text='\nvirsh list\n'\necho "$text"
text="\nvirsh list\n"
echo 'it'"'"'s virsh; ' virsh
# don't\n# virsh list
echo "a" # "virsh; virsh list
systemd-run --on-active=5 virsh list
logger <<< "virsh list"
arr=(\n virsh\n nft\n)
echo $((1<<2)); echo virsh
LOG=/var/log/virsh.log
disown; wait; :
curl -d "virsh list" http://x
ssh host "virsh list"
mail -s "virsh list" root </dev/null
"""
PYTHON_CALLS = r"""
import subprocess\nsubprocess.run(["virsh", "list"])
import subprocess\nsubprocess.run(["virsh", "list"], check=True)
import subprocess\nsubprocess.run("virsh list", shell=True)
import subprocess\nsubprocess.check_output(["virsh", "-c", "qemu:///system", "dumpxml", name])
import subprocess\nsubprocess.check_call(("virsh", "list"))
import subprocess\nsubprocess.call(args=["virsh", "list"])
from subprocess import run\nrun(["sudo", "virsh", "list"])
import os\nos.system("virsh list")
import os\nos.system(f"virsh dumpxml {name}")
import os\nos.system("virsh dumpxml %s" % name)
import os\nos.system("virsh dumpxml {}".format(name))
import os\nos.system("virsh dumpxml " + name)
import os\nos.popen("virsh list").read()
import os\nos.execvp("virsh", ["virsh", "list"])
import os\nos.execlp("virsh", "virsh", "list")
import os\nos.spawnvp(os.P_WAIT, "virsh", ["virsh", "list"])
import subprocess\nsubprocess.getoutput("virsh list")
import subprocess\np = subprocess.Popen(["virsh", "list"])\np.wait()
from subprocess import *\np = Popen(["virsh", "list"], stdout=PIPE)\nout = p.communicate()
import subprocess\nwith subprocess.Popen(["virsh", "list"]) as p: pass
import subprocess\ncmd = ["virsh", "list"]\nsubprocess.run(cmd)
import subprocess\nVIRSH = "virsh"\nsubprocess.run([VIRSH, "list"])
import subprocess\nVIRSH = ["virsh", "-c", "x"]\nsubprocess.run([*VIRSH, "list"])
import subprocess\nVIRSH = ["virsh", "-c", "x"]\nsubprocess.run(VIRSH + ["list"])
import subprocess\nVIRSH = "virsh"\nsubprocess.run(f"{VIRSH} list", shell=True)
import subprocess\ncommand: list = ["virsh", "list"]\nsubprocess.run(command)
import subprocess\nsubprocess.run(["virsh"] + sys.argv[1:])
import subprocess, shlex\nsubprocess.run(shlex.split("virsh list"))
import subprocess\nsubprocess.run("virsh list".split())
import subprocess\nsubprocess.run(["sh", "-c", "virsh list"])
import subprocess\nsubprocess.run(["/usr/bin/virsh", "list"])
import subprocess\nsubprocess.run(["timeout", "5", "virsh", "list"])
import subprocess\nif subprocess.run(["virsh", "domstate", x]).returncode: pass
import subprocess\ndef run(*cmd):\n    return subprocess.run(cmd)\nrun("virsh", "list")
import subprocess\ndef run_command(cmd):\n    return subprocess.run(cmd)\nrun_command("virsh list")
import libvirt
import os, libvirt
import libvirt as lv
import libvirt_qemu
from libvirt import open
from libvirt import *
try:\n    import libvirt\nexcept ImportError:\n    pass
def main():\n    import libvirt
x = __import__("libvirt")
import importlib\nx = importlib.import_module("libvirt")
import libvirt; libvirt.open()
import asyncio\nasyncio.create_subprocess_exec("virsh", "list")
import subprocess\nsubprocess.run(["systemctl", "restart", "libvirtd"])
import shutil, subprocess\nvirsh = shutil.which("virsh")\nsubprocess.run([virsh, "list"])
import libvirt as l
__import__("libvirt")
import importlib\nimportlib.import_module("libvirt")
import subprocess\nsubprocess.run(["virsh","list"])
import subprocess as s\ns.check_output(["sudo","virsh","list"])
import os\nos.system(f"virsh domstate {x}")
import subprocess\ncmd=["virsh","list"]\nsubprocess.call(cmd)
import subprocess\nV="virsh"\nsubprocess.run([V,"list"])
import os\nos.execvp("virsh",["virsh","list"])
def f():\n    import libvirt
import subprocess\nsubprocess.run(["sh","-c","virsh list"])
import subprocess\nsubprocess.Popen(["virsh","list"]).communicate()
from subprocess import run\nrun(["/usr/bin/virsh", "list"], check=True)
import os\nos.spawnlp(os.P_WAIT,"virsh","virsh","list")
"""
PYTHON_CALLS_NONE = r"""
print("virsh list")
'''Docs.\n\nvirsh dumpxml web | this\n'''\nprint("no virsh")
# virsh list\n# import libvirt
import sys\nsys.exit("use virsh list")
import logging\nlogging.info("virsh list hangs")
raise SystemExit("virsh list")
import shutil\nif shutil.which("virsh"): pass
import shutil\nfor name in ("virsh", "nft"):\n    shutil.which(name)
import os\nos.path.exists("/usr/bin/virsh")
import subprocess\nsubprocess.run(["logger", "virsh list hangs"])
import subprocess\nsubprocess.run(["echo", "virsh"])
import subprocess\nsubprocess.Popen(["virsh", "list"])
import subprocess\nsubprocess.Popen(["setsid", "virsh", "list"], start_new_session=True)
import subprocess\nsubprocess.run(["systemd-run", "--no-block", "virsh", "list"])
import os\nos.system("virsh list &")
import os\nos.system("(sleep 1; virsh list) >/dev/null 2>&1 &")
import os\nos.spawnvp(os.P_NOWAIT, "virsh", ["virsh", "list"])
import libvirt_helpers_not
x = "virsh list"
from xml import libvirt
import subprocess\nsubprocess.run(["at", "now"], input=b"virsh list")
import subprocess\nsubprocess.run("echo 'virsh list' | at now", shell=True)
import importlib.util\nimportlib.util.find_spec("libvirt")
def log(m): print(m)\nlog("virsh list")
import syslog\nsyslog.syslog("virsh list")
import subprocess\nx=[x]\nsubprocess.run(x)
import subprocess\nsubprocess.run(["logger","a; virsh list"])
# import libvirt
'''virsh list'''
import shutil\nshutil.which("virsh")
x = "import libvirt"
import subprocess\nsubprocess.run(["echo","virsh"])
import subprocess\nsubprocess.run(["systemd-run","--no-block","virsh","list"])
import subprocess\nsubprocess.Popen(["virsh","list"], start_new_session=True)
import libvirtx
import logging\nlogging.info("virsh list")
"""


class Tables(TestCase):
    def assert_calls(self, table, are_calls, first="#!/bin/bash"):
        """That each script of a table, below a first line, calls libvirt, or that none does."""
        script = self.directory / "script"
        for line in table.strip("\n").split("\n"):
            script.write_text(f"{first}\n{line}\n".replace("\\n", "\n"))
            with self.subTest(script=line):
                self.assertEqual(bool(list(calls_of(script, "/nowhere"))), are_calls)

    def test_calls_in_shell(self):
        self.assert_calls(SHELL_CALLS, True)

    def test_what_is_no_call_in_shell(self):
        self.assert_calls(SHELL_CALLS_NONE, False)

    def test_calls_in_python(self):
        self.assert_calls(PYTHON_CALLS, True, "#!/usr/bin/python3")

    def test_what_is_no_call_in_python(self):
        self.assert_calls(PYTHON_CALLS_NONE, False, "#!/usr/bin/python3")

    def test_it_ends_neither_in_an_error_nor_in_a_long_wait(self):
        for text in (
            "((((((((((" * 500,
            "$(" * 2000,
            '"' * 3001,
            '"$(((' * 800,
            "`" * 999,
            "a && " * 600 + "b",
            "a | b || c && \n" * 60 + "d",
            "{ " * 1000 + "; }" * 1000,
            "if x; then " * 600 + "fi;" * 600,
            "case a in " * 40,
            "A=1 " * 80 + "b",
            "sudo -x y " * 60,
            "cat <<EOF\n" * 500,
            "bash <<E\n" * 300 + "E\n" * 300,
            "a=$a; b=$b$a; $a $b",
            "f() { f; g; }\ng() { f; g; }\nf",
            "eval " * 500,
            "f( " * 5000,
            "'" + "a\n" * 5000,
            "a" * 50000,
            "virsh\0 list",
        ):
            for first in ("#!/bin/sh", "#!/usr/bin/python3"):
                with self.subTest(text=text[:20], first=first):
                    script = self.write("script", f"{first}\n{text}\n")
                    self.assertEqual(list(calls_of(script, "/nowhere")), [])


class Calls(CheckTestCase):
    def test_calls_in_what_a_script_runs_below_the_hooks_directory(self):
        called = self.script("lib/calls", f"{SHELL}virsh list\n")
        for call in (
            f"{called}",
            f'exec {called} "$@"',
            f'sudo -n {called} "$1"',
            f". {called}",
            f"sh {called}",
            '"${0%/*}/../lib/calls"',
            '"$(dirname "$0")/../lib/calls" "$@"',
            "$(dirname $0)/../lib/calls",
            'here=$(dirname "$0")\n. "$here/../lib/calls"',
            f'lib={called.parent}\nif "$lib/calls"; then exit; fi',
            f'calls={called}\n"$calls"',
        ):
            with self.subTest(call=call):
                self.script(f"{PREPARE}/50-x", f"{SHELL}{call}\n")
                self.assert_finds(f"{called} calls libvirt", "--no-block")
        for call in (f"{called} &", f"echo {called}", f"[ -x {called} ]", "/srv/other/calls"):
            with self.subTest(call=call):
                self.script(f"{PREPARE}/50-x", f"{SHELL}{call}\n")
                self.assert_sound()
        text = f'#!/usr/bin/python3\nimport subprocess\nsubprocess.run(["{called}", "a"])\n'
        self.script(f"{PREPARE}/50-x", text)
        self.assert_finds(f"{called} calls libvirt", "--no-block")

    def test_calls_of_what_libvirt_runs_itself(self):
        path = self.script("lxc.d/theirs", f"{SHELL}virsh list\n")
        self.assert_finds(path, "--no-block")

    def test_node_devices_where_they_answer_and_where_they_do_not(self):
        install_dispatcher(self.hooks / "qemu")
        call = f"{SHELL}virsh -c qemu:///system nodedev-detach pci_0000_01_00_0\n"
        for phase, sound in (
            ("qemu_prepare_begin_-.d", True),
            ("qemu_release_end_-.d", True),
            ("qemu_start_begin_-.d", False),
            ("qemu_started_begin_-.d", False),
            ("qemu_stopped_end_-.d", False),
            ("lxc_prepare_begin_-.d", False),
        ):
            with self.subTest(phase=phase):
                path = self.script(f"{phase}/50-x", call)
                if sound:
                    self.assert_sound()
                    path.write_text(f"{call}virsh start other\n")
                    self.assert_finds(path, "--no-block")
                else:
                    remedy = self.assert_finds(path, '<hostdev managed="yes">')
                    self.assertIn("driver_override", remedy)
                path.unlink()
