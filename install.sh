#!/bin/sh
# Installs virt-hooks, upgrades it and uninstalls it; "install.sh --help" says how.
#
# It records what it installs in the hooks directory, in .virt-hooks.sha256: for a file the line of
# sha256sum(1), for a link "#link:TARGET  NAME", which is a comment to "sha256sum -c". A file that is
# as recorded is ours, to be replaced or removed. Any other is the administrator's, and stays. The
# command, its manual and its completion are recorded by their absolute paths, without DESTDIR.
set -eu
umask 022
export LC_ALL=C # one order of sorting, one language of messages

PYTHON=/usr/bin/python3 # as the dispatcher's first line has it
MODULES='argparse ast collections concurrent.futures ctypes difflib fcntl functools grp json os pathlib
pwd re select shlex shutil subprocess syslog tempfile time warnings xml.etree xml.parsers.expat'
RECORD=.virt-hooks.sha256
TEMPORARY=.virt-hooks.tmp # a file that is being written; it never runs, by its name
TOLD=/run/virt-hooks.told # its time: when all daemons were told; "virt-hooks check" reads it
ALL_DRIVERS='daemon qemu lxc libxl bhyve network'
DAEMONS='libvirtd virtbhyved virtinterfaced virtlxcd virtnetworkd virtnodedevd virtnwfilterd
virtproxyd virtqemud virtsecretd virtstoraged virtvboxd virtvzd virtxend'
NEWLINE='
'

main() {
    action=install drivers='' hooks=/etc/libvirt/hooks prefix=/usr/local reload=yes
    read_options "$@"
    here=$(dirname -- "$(readlink -f -- "$0")")
    stage=${DESTDIR:-}
    stage=${stage%/}
    [ "$action" != demo ] || stage=''
    if [ -z "$stage" ]; then
        [ "$(id -u)" = 0 ] || fail 'this needs root: use sudo'
        [ "$action" = uninstall ] || require_python
        [ "$action" = demo ] || refuse_package
    fi
    hooks=$stage$hooks
    recorded=''
    [ ! -e "$hooks/$RECORD" ] || recorded=$(cat -- "$hooks/$RECORD")
    if [ -z "$drivers" ]; then
        for driver in $ALL_DRIVERS; do
            ! has_path "$recorded" "$driver" || add_driver "$driver"
        done
    fi
    case $action in
        install) install_all ;;
        uninstall) uninstall ;;
        demo) exec sh "$here/examples/demo" ;;
    esac
}

usage() {
    cat <<'END'
usage: install.sh [--driver NAME]... [--prefix DIR] [--hooks-dir DIR]
                  [--no-reload] [--uninstall]
       install.sh --demo

Installs or upgrades virt-hooks: the dispatcher, its scripts, and the command
virt-hooks with its manual pages and its completion for bash.

  --driver NAME    for this driver: daemon, qemu, lxc, libxl, bhyve or network;
                   repeatable. The default is all that are installed, or lxc.
                   daemon and network get the dispatcher alone
  --prefix DIR     the command goes into DIR/sbin and DIR/share, not /usr/local
  --hooks-dir DIR  the hooks go into DIR, not /etc/libvirt/hooks
  --no-reload      do not tell the running libvirt daemons to look for hooks
  --uninstall      remove what was installed and has not been changed since
  --demo           show what virt-hooks does for an example guest; this needs no
                   libvirt and leaves nothing behind
  -h, --help       show this text

If DESTDIR is set in the environment, everything goes below that directory. Then
install.sh needs neither root nor Python, and tells no daemon.

A file that you have changed stays as it is; the new version is put beside it as
NAME.new, which never runs. To switch a script off, run chmod -x on it: an
upgrade leaves it switched off.
END
}

read_options() {
    while [ $# -gt 0 ]; do
        case $1 in
            --driver=* | --prefix=* | --hooks-dir=*)
                option=${1%%=*} value=${1#*=}
                shift
                set -- "$option" "$value" "$@"
                ;;
            --driver | --prefix | --hooks-dir)
                [ $# -gt 1 ] || refuse_usage "$1 needs a value"
                ;;
        esac
        case $1 in
            --driver) add_driver "$2" && shift ;;
            --prefix) require_path "$1" "$2" && prefix=${2%/} && shift ;;
            --hooks-dir) require_path "$1" "$2" && hooks=${2%/} && shift ;;
            --no-reload) reload='' ;;
            --uninstall) action=uninstall ;;
            --demo) action=demo ;;
            -h | --help) usage && exit ;;
            *) refuse_usage "unknown option '$1'" ;;
        esac
        shift
    done
}

add_driver() {
    contains " $ALL_DRIVERS " " $1 " || refuse_usage "unknown driver '$1', none of: $ALL_DRIVERS"
    contains " $drivers " " $1 " || drivers="${drivers:+$drivers }$1"
}

require_path() {
    case $2 in
        *"$NEWLINE"*) refuse_usage "$1 takes no path with a line break" ;;
        /*) ;;
        *) refuse_usage "$1 '$2' is not an absolute path" ;;
    esac
}

refuse_usage() {
    say "install.sh: $1; try --help" >&2
    exit 2
}

contains() {
    case $1 in
        *"$2"*) ;;
        *) return 1 ;;
    esac
}

fail() {
    say "install.sh: $1" >&2
    exit 1
}

say() {
    printf '%s\n' "$1" # echo would take a backslash in a path for more than that
}

# Without Python libvirt could not run the dispatcher, and so would start no guest at all.
require_python() {
    if [ ! -x "$PYTHON" ]; then
        problem='it is missing'
    elif problem=$("$PYTHON" -IS -c "
import sys
if sys.version_info < (3, 9):
    sys.exit('it is Python %d.%d' % sys.version_info[:2])
for name in '''$MODULES'''.split():
    __import__(name)" 2>&1); then
        return
    fi
    fail "virt-hooks needs $PYTHON, version 3.9 or newer, with the standard library:\
 ${problem##*"$NEWLINE"}. Nothing was changed. Install the package python3 and try again"
}

# Two must not upgrade and remove the same files. What dpkg has removed it still has to purge.
refuse_package() {
    state=$(dpkg-query -W -f '${db:Status-Status}' virt-hooks 2>/dev/null) || state=not-installed
    [ "$state" = not-installed ] || fail "the package virt-hooks is on this host (dpkg says:\
 $state); nothing was changed. To use install.sh instead, run first: apt-get purge virt-hooks"
    ! rpm -q --quiet virt-hooks 2>/dev/null || fail "the package virt-hooks is on this host;\
 nothing was changed. To use install.sh instead, run first: dnf remove virt-hooks"
}

# What is installed for a driver: each file of ours, or link, and its place in the hooks directory.
# The dispatcher comes last, so that libvirt never runs an incomplete set.
contents_for() {
    prepare=$1_prepare_begin_-.d start=$1_start_begin_-.d
    stopped=$1_stopped_end_-.d release=$1_release_end_-.d
    case $1 in
        daemon | network) ;; # libvirt calls no prepare and no release for these
        *) cat <<END ;;
lxc_prepare_begin_-.d/10-mkdirs $prepare/10-mkdirs
lxc_prepare_begin_-.d/20-ramdisk $prepare/20-ramdisk
lxc_prepare_begin_-.d/30-preload $prepare/30-preload
lxc_start_begin_-.d/10-routing-table $start/10-routing-table
lxc_start_begin_-.d/20-network-policy $start/20-network-policy
#link:../$start/10-routing-table $stopped/10-routing-table
#link:../$start/20-network-policy $stopped/20-network-policy
lxc_release_end_-.d/10-archive $release/10-archive
#link:../$prepare/20-ramdisk $release/20-ramdisk
lxc_release_end_-.d/30-post-rm-rf $release/30-post-rm-rf
END
    esac
    [ "$1" != qemu ] || cat <<END
qemu_restore_begin_-.d/00-saved-image qemu_restore_begin_-.d/00-saved-image
#link:../qemu_restore_begin_-.d/00-saved-image qemu_started_begin_-.d/00-saved-image
END
    say "hooks/lxc $1"
}

command_contents() {
    cat <<END
command/virt-hooks $prefix/sbin/virt-hooks
command/virt-hooks.8 $prefix/share/man/man8/virt-hooks.8
command/virt-hooks.5 $prefix/share/man/man5/virt-hooks.5
command/virt-hooks.bash $prefix/share/bash-completion/completions/virt-hooks
END
}

install_all() {
    drivers=${drivers:-lxc}
    wanted=$({
        command_contents
        for driver in $drivers; do contents_for "$driver"; done
    } | with_fingerprints)
    refuse_foreign
    others=$(of_other_drivers)
    new=''
    while read -r sum source path; do
        locate "$path"
        new="$new$sum  $path$NEWLINE"
        if ! is_ours "$path" "$sum"; then
            say "kept $file, which is not as installed; see ${file##*/}.new"
            locate "$path.new"
            new="$new$sum  $path.new$NEWLINE"
            # of version 1.0, and a changed dispatcher of then runs nothing without it
            new="$new$(say "$recorded" | grep -F "  ${path}_run.py" || true)$NEWLINE"
        fi
        place "$sum" "$source"
    done <<END
$wanted
END
    remove_all_but "$others$NEWLINE$new"
    if [ -z "$stage" ] && selinuxenabled 2>/dev/null; then
        restorecon -R -- "$hooks"
    fi
    tell_libvirt
    say "virt-hooks is installed in $hooks for: $drivers"
    [ -n "$stage" ] || say "Next: write into a guest's metadata what it needs, as 'man 5 virt-hooks' says;
then run 'virt-hooks check'."
}

uninstall() {
    [ -n "$recorded" ] || say "nothing is installed in $hooks"
    for driver in $drivers; do # which would go on running what is left
        ! has_path "$recorded" "$driver" || is_ours "$driver" '' || fail "$hooks/$driver is not\
 as installed; nothing was changed. Move it away, then uninstall again"
    done
    for driver in $drivers; do
        remove "$driver"
    done
    others=$(of_other_drivers)
    [ -z "$others" ] || others="$others$NEWLINE$(say "$recorded" | grep '  /' || true)"
    remove_all_but "$others"
    tell_libvirt
    [ -n "$others$stage" ] || rm -f "$TOLD"
}

# Before each source and its path, put the fingerprint that it is to have.
with_fingerprints() {
    while read -r source path; do
        case $source in
            '#link:'*) sum=$source ;;
            *) sum=$(fingerprint "$here/$source") ;;
        esac
        [ -n "$sum" ] || fail "$here/$source is missing; nothing was changed"
        say "$sum $source $path"
    done
}

# What is at a path, as the record has it: a file's sum or a link's target; empty for nothing.
fingerprint() {
    if [ -h "$1" ]; then
        say "#link:$(readlink -- "$1")"
    elif [ -f "$1" ]; then
        sum_and_name=$(sha256sum <"$1")
        say "${sum_and_name%% *}"
    elif [ -e "$1" ]; then
        say 'neither file nor link'
    fi
}

# Set $file to where a path of the record really is.
locate() {
    case $1 in
        /*) file=$stage$1 ;;
        *) file=$hooks/$1 ;;
    esac
}

# Whether these lines of a record have a path.
has_path() {
    contains "$1$NEWLINE" "  $2$NEWLINE"
}

# Whether what has this fingerprint at a path is as we have recorded it.
is_recorded() {
    contains "$NEWLINE$recorded$NEWLINE" "$NEWLINE$1  $2$NEWLINE"
}

# Whether a path is ours to write: nothing is there, or what we want there or have put there.
is_ours() {
    locate "$1"
    there=$(fingerprint "$file")
    [ -z "$there" ] || [ "$there" = "$2" ] || is_recorded "$there" "$1"
}

# What is recorded for the drivers that we are not called for.
of_other_drivers() {
    say "$recorded" | while read -r sum path; do
        driver=" ${path%%[_./]*} "
        contains " $drivers " "$driver" || ! contains " $ALL_DRIVERS " "$driver" ||
            say "$sum  $path"
    done
}

# Before anything is changed: what libvirt runs now is not ours to replace.
refuse_foreign() {
    say "$wanted" | while read -r sum _source path; do
        locate "$path"
        directory=${file%/*}
        case $path in
            /*) ;;
            */*)
                if [ -h "$directory" ] || { [ -e "$directory" ] && [ ! -d "$directory" ]; }; then
                    fail "$directory is not a directory; nothing was changed"
                fi
                ;;
            *)
                is_ours "$path" "$sum" || has_path "$recorded" "$path" || fail "$file is another\
 hook; nothing was changed.
To keep it, move it into $file.d/, where libvirt runs it too; then run install.sh again."
                ;;
        esac
    done
}

# Put a source, which has this fingerprint, at $file.
place() {
    [ "$(fingerprint "$file")" != "$1" ] || return 0
    mode=0755 did=updated
    permissions=$(stat -c %A -- "$file" 2>/dev/null) || did=installed
    case $2:$permissions in # "test -x" fails where mounted noexec
        *.[58]:* | *.bash:*) mode=0644 ;;
        *: | *:*[xst]*) ;;
        *) mode=0644 did='updated, but did not make executable,' ;;
    esac
    mkdir -p -- "${file%/*}"
    temporary=${file%/*}/$TEMPORARY
    case $2 in
        '#link:'*) ln -s -f -T -- "${2#"#link:"}" "$temporary" ;;
        *)
            cp --remove-destination -- "$here/$2" "$temporary"
            chmod "$mode" -- "$temporary"
            sync -- "$temporary"
            ;;
    esac
    mv -f -T -- "$temporary" "$file"
    say "$did $file"
}

# Make these lines the record, and remove what else it had: a deletion before its archive.
remove_all_but() {
    say "$recorded" | sort -r -k 2 | while read -r _sum path; do
        if [ -n "$path" ] && ! has_path "$1" "$path"; then
            remove "$path"
        fi
    done
    rm -f -- "$hooks/.virt-hooks.told" # version 1.0 had this, and the directory
    [ -n "$stage" ] || rm -rf /run/virt-hooks-code
    lines=$(say "$1" | grep . | sort -k 2)
    if [ -n "$lines" ]; then
        say "$lines" >"$hooks/$TEMPORARY"
        mv -f -- "$hooks/$TEMPORARY" "$hooks/$RECORD"
    else
        rm -f -- "$hooks/$RECORD"
    fi
}

# Remove what is as we have recorded it, and its phase directory if that is empty then.
remove() {
    locate "$1"
    there=$(fingerprint "$file")
    if [ -z "$there" ]; then
        : # somebody has removed it
    elif is_recorded "$there" "$1"; then
        rm -f -- "$file"
        say "removed $file"
    else
        say "left $file, which is not as installed"
    fi
    case $1 in
        [!/]*/*) [ ! -d "${file%/*}" ] || rmdir --ignore-fail-on-non-empty -- "${file%/*}" ;;
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
