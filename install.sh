#!/bin/sh
# Installs virt-hooks, upgrades it and uninstalls it; "install.sh --help" says how.
#
# The hooks directory has a record of what is installed, .virt-hooks.sha256: for a file the line of
# sha256sum(1), for a link "#link:TARGET  NAME"; absolute paths are without DESTDIR. A file that
# matches its entry is ours, to be replaced or removed. Any other file is the administrator's, and
# stays. An entry is written to disk before its file and removed after it, so this holds wherever
# install.sh is killed.
set -eu
umask 022
export LC_ALL=C # one order of sorting, one language of messages

MODULES='argparse ast collections concurrent.futures ctypes difflib errno fcntl functools glob grp
json os pathlib pwd re select shlex shutil stat subprocess syslog tempfile textwrap time warnings
xml.etree xml.parsers.expat zlib'
HOOKS=/etc/libvirt/hooks # the only place where libvirt looks
RECORD=.virt-hooks.sha256
TEMPORARY=.virt-hooks.tmp # a file that is being written; it never runs, by its name
TOLD=/run/virt-hooks.told # its time: when all daemons were told; "virt-hooks check" reads it
ALL_DRIVERS='daemon qemu lxc libxl bhyve network'
DAEMONS='libvirtd virtbhyved virtinterfaced virtlxcd virtnetworkd virtnodedevd virtnwfilterd
virtproxyd virtqemud virtsecretd virtstoraged virtvboxd virtvzd virtxend'
NEWLINE='
'

main() {
    action=install drivers='' hooks=$HOOKS prefix='' reload=yes changing=''
    read_options "$@"
    here=$(dirname -- "$(readlink -f -- "$0")")
    stage=${DESTDIR:-}
    stage=${stage%/}
    if [ -z "$stage" ]; then
        [ "$(id -u)" = 0 ] || fail 'this needs root: use sudo'
        [ "$action" = uninstall ] || require_python
        [ "$action" != demo ] || exec sh "$here/examples/demo"
        refuse_package
    fi
    hooks=$stage$hooks
    if [ "$action" = install ]; then
        contents_for command qemu >/dev/null # all are there
        refuse_writable
        mkdir -p -- "$hooks"
    fi
    if [ -d "$hooks" ]; then
        exec 9<"$hooks"
        flock --nonblock 9 || { say "waiting for another install.sh in $hooks" && flock 9; }
    fi
    trap '[ $? = 0 ] || [ -z "$changing" ] || say "install.sh: it has stopped in the middle; to\
 finish, run it again with the same options" >&2' EXIT
    trap 'exit 1' HUP INT TERM
    read_record
    if [ "$action" = install ]; then install_all; else uninstall; fi
}

usage() {
    cat <<'END'
usage: install.sh [OPTION]...

Installs or upgrades virt-hooks: the dispatcher, its scripts, and the command
virt-hooks with its manual pages and its completion for bash.

  --driver NAME    for this driver: daemon, qemu, lxc, libxl, bhyve or network;
                   repeatable. The default is all that are installed, or lxc.
                   daemon and network get the dispatcher alone
  --prefix DIR     the command goes below DIR; the default is where it is
                   installed, or /usr/local
  --hooks-dir DIR  the hooks go into DIR, not /etc/libvirt/hooks. Repeat this
                   option to upgrade or uninstall them
  --no-reload      do not tell the running libvirt daemons to look for hooks
  --uninstall      remove what was installed and has not been changed since
  --demo           play the life of an example guest; this needs no libvirt and
                   leaves nothing behind
  -h, --help       show this text

With DESTDIR in the environment, everything goes below that directory; this
needs neither root nor Python, and tells no daemon. A script that you have
changed stays; the new version is put beside it as NAME.new, which never runs.
To switch a script off, run chmod -x on it: an upgrade leaves it switched off.
END
}

read_options() {
    while [ $# -gt 0 ]; do
        option=$1
        case $1 in
            --driver | --prefix | --hooks-dir)
                [ $# -gt 1 ] || fail "$1 needs a value; try --help" 2
                option=$1=$2
                shift
                ;;
        esac
        case $option in
            *"$NEWLINE"*) fail "${option%%=*} takes no line break" 2 ;;
            --driver=*) add_driver "${option#*=}" ;;
            --prefix=/?*) prefix=${option#*=} prefix=${prefix%/} ;;
            --hooks-dir=/?*) hooks=${option#*=} hooks=${hooks%/} ;;
            --prefix=* | --hooks-dir=*) fail "$option is not an absolute path; try --help" 2 ;;
            --no-reload) reload='' ;;
            --uninstall) action=uninstall ;;
            --demo) action=demo DESTDIR='' ;;
            -h | --help) usage && exit ;;
            *) fail "unknown option '$option'; try --help" 2 ;;
        esac
        shift
    done
}

add_driver() {
    contains " $ALL_DRIVERS " " $1 " || fail "unknown driver '$1', none of: $ALL_DRIVERS" 2
    contains " $drivers " " $1 " || drivers="${drivers:+$drivers }$1"
}

contains() {
    case $1 in
        *"$2"*) ;;
        *) return 1 ;;
    esac
}

fail() {
    say "install.sh: $1" >&2
    exit "${2:-1}"
}

say() {
    printf '%s\n' "$1" # echo would take a backslash in a path for more than that
}

# Without Python libvirt could not run the dispatcher, and so would start no guest at all.
require_python() {
    problem=$(/usr/bin/python3 -IS -c "
import sys
if sys.version_info < (3, 9):
    sys.exit('it is Python %d.%d' % sys.version_info[:2])
for name in '''$MODULES'''.split():
    __import__(name)" 2>&1) || fail "virt-hooks needs /usr/bin/python3, version 3.9 or newer, with\
 the standard library: ${problem##*"$NEWLINE"}. Nothing was changed. Install the package python3"
}

# Two must not upgrade and remove the same files. What dpkg has removed it still has to purge.
refuse_package() {
    state=$(dpkg-query -W -f '${db:Status-Status}' virt-hooks 2>/dev/null) || state=not-installed
    ! rpm -q --quiet virt-hooks 2>/dev/null || state=installed
    [ "$state" = not-installed ] || fail "the package virt-hooks is on this host ($state); nothing\
 was changed. To use install.sh, run first: apt-get purge virt-hooks, or dnf remove virt-hooks"
}

# Where others than root can write, the dispatcher runs nothing, and so no guest starts.
refuse_writable() {
    [ -z "$stage" ] || return 0
    set -- /
    for path in "$hooks" "$(readlink -m -- "$hooks")"; do
        while [ -n "$path" ]; do
            set -- "$@" "$path"
            path=${path%/*}
        done
    done
    for driver in $drivers; do
        set -- "$@" "$hooks/$driver"_*.d "$hooks/$driver"_*.d/[0-9]* \
            "$hooks/$driver"_*.d/*/ "$hooks/$driver"_*.d/*/[0-9]*
    done
    unsafe=$(find -L "$@" -maxdepth 0 \( -type d -o -perm /111 \) \
        ! \( -uid 0 \( -type d -perm -1000 -o ! -perm /022 \) \) -printf "'%p'\n" 2>/dev/null |
        sort -u | paste -s -d ' ' -)
    [ -z "$unsafe" ] || fail "users other than root can write to $unsafe: no guest would start;\
 nothing was changed. Run first: chown root $unsafe && chmod go-w $unsafe"
}

# Set $recorded, and what it knows and the options do not say.
read_record() {
    recorded=''
    [ ! -e "$hooks/$RECORD" ] || recorded=$(cat -- "$hooks/$RECORD")
    if [ -z "$drivers" ]; then
        for driver in $ALL_DRIVERS; do
            ! contains "$recorded" "  $driver" || add_driver "$driver"
        done
    fi
    [ -n "$prefix" ] ||
        prefix=$(say "$recorded" | sed -n 's,^[^ ]*  \(/.*\)/sbin/virt-hooks$,\1,p' | tail -n 1)
    prefix=${prefix:-/usr/local}
}

# What each part, "command" or a driver, has: the fingerprint, source and path of each file or link.
# A dispatcher comes last, so that libvirt never runs an incomplete set.
contents_for() {
    for part; do
        case $part in
            command) cat <<END ;;
command/libvirt_calls.py $prefix/share/virt-hooks/libvirt_calls.py
command/new.py $prefix/share/virt-hooks/new.py
command/new.sh $prefix/share/virt-hooks/new.sh
command/hook_scripts.py $prefix/share/virt-hooks/hook_scripts.py
command/virt-hooks $prefix/sbin/virt-hooks
command/virt-hooks.8 $prefix/share/man/man8/virt-hooks.8
command/virt-hooks.5 $prefix/share/man/man5/virt-hooks.5
command/virt-hooks.bash $prefix/share/bash-completion/completions/virt-hooks
END
            daemon | network) ;; # libvirt calls no prepare and no release for these
            qemu) scripts_for lxc qemu && scripts_for qemu qemu ;;
            *) scripts_for lxc "$part" ;;
        esac
        [ "$part" = command ] || say "hooks/lxc $part"
    done | while read -r source path; do
        case $source in
            '#link:'*) sum=$source ;;
            *) sum=$(fingerprint "$here/$source") ;;
        esac
        [ -n "$sum" ] || fail "$here/$source is missing; nothing was changed"
        say "$sum $source $path"
    done
}

# The scripts of a driver's directories in the checkout, and their places for a driver. What lies
# there in two phases is a file and a link to it.
scripts_for() {
    for script in "$here/$1"_*.d/[0-9]*; do
        script=${script#"$here/"}
        case ${script##*/} in *[!a-z0-9-]*) continue ;; esac # left behind by an editor
        if link=$(readlink -- "$here/$script"); then
            say "#link:../$2${link#"../$1"} $2${script#"$1"}"
        else
            say "$script $2${script#"$1"}"
        fi
    done
}

# What is at a path, as the record has it: a file's sum or a link's target; empty for nothing.
fingerprint() {
    if [ -h "$1" ]; then
        say "#link:$(readlink -- "$1")"
    elif [ -f "$1" ]; then
        sum_and_name=$(sha256sum <"$1") || sum_and_name=unreadable
        say "${sum_and_name%% *}"
    elif [ -e "$1" ]; then
        say 'neither file nor link'
    fi
}

install_all() {
    drivers=${drivers:-lxc}
    # shellcheck disable=SC2086 # words, one a driver
    wanted=$(contents_for command $drivers)
    refuse_foreign
    refuse_writable
    changing=yes
    new=$(of_other_drivers)
    while read -r sum source path; do
        new="$new$NEWLINE$sum  $path"
        if ! is_ours "$path" "$sum"; then
            say "kept $file, which is not as installed; see ${file##*/}.new"
            path=$path.new
            new="$new$NEWLINE$sum  $path"
        fi
        put "$sum" "$source" "$path"
    done <<END
$wanted
END
    remove_all_but "$new"
    [ -n "$stage" ] || ! selinuxenabled 2>/dev/null || restorecon -R -- "$hooks"
    tell_libvirt
    say "virt-hooks is installed in $hooks for: $drivers"
    [ "$hooks" = "$stage$HOOKS" ] || say 'To upgrade or uninstall it, repeat --hooks-dir.'
    [ -n "$stage" ] || say "Next: write into a guest's metadata what it needs, as 'man 5 virt-hooks'
says; then run 'virt-hooks check'."
}

uninstall() {
    [ -n "$recorded" ] || say "nothing is installed in $hooks; if it is elsewhere, use --hooks-dir"
    for driver in $drivers; do # which would go on running what is left
        ! contains "$recorded$NEWLINE" "  $driver$NEWLINE" || is_ours "$driver" '' ||
            fail "$hooks/$driver is not as installed; nothing was changed. Move it away, uninstall,\
 and put it back if you need it"
    done
    changing=yes
    for driver in $drivers; do
        [ "$hooks" != $HOOKS ] || grep -ls urn:virt-hooks:1 "/run/libvirt/$driver"/*.xml |
            sed "s,.*/\(.*\)\.xml$,\1 ($driver) is running: nothing archives or cleans up after it,"
        remove "$driver"
    done
    tell_libvirt # at once: until then it starts no guest
    others=$(of_other_drivers)
    [ -n "$others$stage" ] || rm -f -- "$TOLD"
    [ -z "$others" ] || others="$others$NEWLINE$(say "$recorded" | grep '  /')"
    remove_all_but "$others"
    for driver in $drivers; do
        find "$hooks/$driver"_*.d ! -type d -printf 'left %p, which nothing runs now\n' || true
    done 2>/dev/null
}

# Before anything is changed: what libvirt runs now is not ours to replace.
refuse_foreign() {
    say "$wanted" | while read -r sum _source path; do
        directory=$hooks/${path%/*}
        case $path in
            [!/]*/*)
                kind=$(stat -c %F -- "$directory" 2>/dev/null) || kind=directory
                [ "$kind" = directory ] || fail "$directory is a $kind; nothing was changed"
                ;;
            [!/]*) is_ours "$path" "$sum" || refuse_hook "$path" ;;
        esac
    done
}

# Say how a hook goes on working, with all that it may read beside itself.
refuse_hook() {
    phases='prepare_begin start_begin started_begin stopped_end release_end'
    [ "$1" != network ] || phases='start_begin started_begin updated_begin stopped_end'
    [ "$1" != daemon ] || phases='start_- reload_begin shutdown_-'
    any=$(say "$ALL_DRIVERS" | tr ' ' '|')
    beside=$(find "$hooks" -mindepth 1 -maxdepth 1 -regextype posix-extended \( -name "$1.d" -o \
        ! -regex ".*/(old|\.virt-hooks\..*|($any)(_.*|\.d)?)" \) -printf "'%f' ")
    tree=$(find -L "$hooks/$1.d" -mindepth 4 -maxdepth 4 ! -type d -printf '%P\n' 2>/dev/null |
        sed "s,^\([^/]*\)/\([^/]*\)/\([^/]*\)/\(.*\),    mkdir -p '$1_\2_\3_-.d/\1'\n\
    cp -p '$1.d/&' '$1_\2_\3_-.d/\1/50-\4',")
    fail "$hooks/$1 is not the dispatcher as we install it; nothing was changed. If you do not need
it, move it away. To keep it in use, with what lies beside it, run this and install.sh again:
    cd $hooks
    mkdir -p old
    mv $1 ${beside}old/
    for phase in $phases; do
        mkdir -p $1_\${phase}_-.d
        printf '#!/bin/sh\\nexec $hooks/old/$1 \"\$@\"\\n' >$1_\${phase}_-.d/50-old
        chmod 755 $1_\${phase}_-.d/50-old
    done
Add the other phases that it serves, such as migrate_begin. libvirt itself runs the programs that
lie directly in $1.d: move these back.${tree:+ Or remove the hook, and make scripts of its tree:
$tree}"
}

# Whether the record has this fingerprint for a path.
is_recorded() {
    contains "$NEWLINE$recorded$NEWLINE" "$NEWLINE$1  $2$NEWLINE"
}

# Whether a path is ours to write: nothing is there, or what we want there or have put there. Set
# $file to where it really is, and $there to its fingerprint.
is_ours() {
    case $1 in
        /*) file=$stage$1 ;;
        *) file=$hooks/$1 ;;
    esac
    temporary=${file%/*}/$TEMPORARY
    there=$(fingerprint "$file")
    [ -z "$there" ] || [ "$there" = "$2" ] || is_recorded "$there" "$1"
}

# What is recorded for the drivers that we are not called for; the command is no driver's.
of_other_drivers() {
    say "$recorded" | while read -r sum path; do
        contains " $drivers  " " ${path%%[_./]*} " || say "$sum  $path"
    done
}

# Make these lines the record.
write_record() {
    say "$1" | sort -u -k 2 -k 1,1 | grep . >"$hooks/$TEMPORARY" || exit 1 # also without a line
    sync -- "$hooks/$TEMPORARY"
    mv -f -T -- "$hooks/$TEMPORARY" "$hooks/$RECORD"
    sync -- "$hooks"
    recorded=$(cat -- "$hooks/$RECORD")
}

# Put a source, which had this fingerprint, at a path: put SUM SOURCE PATH.
put() {
    is_ours "$3" "$1" || { say "kept $file, which is not as installed, either" && return; }
    is_recorded "$1" "$3" || write_record "$recorded$NEWLINE$1  $3"
    rm -f -- "$temporary" # of a run that was killed
    [ "$there" != "$1" ] || return 0
    mode=0755
    case $2:$(stat -c %A -- "$file" 2>/dev/null) in # "test -x" fails where mounted noexec
        command/*.*:* | *:-??-??-??-) mode=0644 ;; # no program, or switched off
    esac
    mkdir -p -- "${file%/*}"
    case $2 in
        '#link:'*) ln -s -T -- "${2#"#link:"}" "$temporary" ;;
        *)
            cp -- "$here/$2" "$temporary"
            chmod "$mode" -- "$temporary"
            sync -- "$temporary"
            ;;
    esac
    [ "$(fingerprint "$temporary")" = "$1" ] || fail "$here/$2 has just changed"
    mv -f -T -- "$temporary" "$file"
    sync -- "${file%/*}"
    say "installed $file"
}

# Make these lines the record; first remove what else it has, a deletion before its archive.
remove_all_but() {
    backwards=$(say "$recorded" | sort -r -k 2)
    say "$backwards" | while read -r _sum path; do
        [ -z "$path" ] || contains "$1$NEWLINE" "  $path$NEWLINE" || remove "$path"
    done
    [ -z "$1" ] || write_record "$1"
    [ -n "$1" ] || rm -f -- "$hooks/$TEMPORARY" "$hooks/$RECORD"
}

# Remove what is as we have recorded it, and its directory, if that is ours and empty then.
remove() {
    if ! is_ours "$1" ''; then
        say "left $file, which is not as installed"
    elif [ -n "$there" ]; then
        rm -f -- "$file"
        sync -- "${file%/*}"
        say "removed $file"
    fi
    rm -f -- "$temporary"
    case $1 in
        [!/]*/* | */share/virt-hooks/*)
            [ ! -d "${file%/*}" ] || rmdir --ignore-fail-on-non-empty -- "${file%/*}"
            ;;
    esac
}

# libvirt looks for hooks when it starts and when it gets SIGHUP.
tell_libvirt() {
    [ -z "$stage" ] && [ -n "$reload" ] || return 0
    for daemon in $DAEMONS; do
        pid=$(cat "/run/$daemon.pid" 2>/dev/null) || continue
        [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$daemon" ] || continue # a later process
        kill -HUP "$pid"
        say "told $daemon to look for hooks"
    done
    touch "$TOLD"
}

main "$@"
