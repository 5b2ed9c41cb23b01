#!/bin/sh
# Installs virt-hooks, upgrades, uninstalls and demonstrates it; "install.sh --help" says how.
#
# What it installs it records in the hooks directory, in .virt-hooks.sha256: for a file the line of
# sha256sum(1), for a link "#link:TARGET  NAME", a comment to "sha256sum -c". A file that is as
# recorded is ours, to be replaced or removed; any other is an administrator's, and stays. Since the
# record is written first, a run that was killed leaves nothing that the next one does not know.
set -eu
umask 022
export LC_ALL=C # one order of sorting, one language of messages

RECORD=.virt-hooks.sha256
TEMPORARY=.virt-hooks.tmp # a file that is being written; its name keeps it from being run
ALL_DRIVERS='daemon qemu lxc libxl bhyve network ch'
NEWLINE='
'

main() {
    drivers='' hooks=/etc/libvirt/hooks action=install reload=yes
    read_options "$@"
    hooks=$(absolute "${DESTDIR:-}")$hooks
    here=$(dirname -- "$(readlink -f -- "$0")")
    cd -- "$here"
    case $action in
        install) drivers=${drivers:-lxc} && install_hooks ;;
        uninstall) uninstall_hooks ;;
        demo) demo ;;
    esac
}

usage() {
    cat <<'END'
usage: install.sh [--driver NAME]... [--hooks-dir DIR] [--no-reload] [--uninstall]
       install.sh --demo
       install.sh --help

Installs the dispatcher and the scripts of virt-hooks, or upgrades them.

  --driver NAME    for this driver: daemon, qemu, lxc, libxl, bhyve, network or ch; repeatable.
                   Without it: lxc; with --uninstall: all that are installed
  --hooks-dir DIR  in this directory, instead of /etc/libvirt/hooks
  --no-reload      do not tell the libvirt daemons that run
  --uninstall      remove what was installed and has not been changed since
  --demo           show what it does for an example guest, in a mount namespace that leaves
                   nothing behind; needs root, but no libvirt

With DESTDIR in the environment it installs below that directory, and tells no daemon.

A file that was changed since it was installed stays, and so does anything that was not installed
from here; the new version is put beside it as NAME.new, which never runs. To keep a script from
running: chmod -x; upgrades respect that.
END
}

read_options() {
    options=$#
    while [ $# -gt 0 ]; do
        case $1 in
            --driver | --hooks-dir) [ $# -gt 1 ] || refuse_usage "$1 needs a value" ;;
        esac
        case $1 in
            --driver) add_driver "$2" && shift ;;
            --hooks-dir) set_hooks "$2" && shift ;;
            --no-reload) reload='' ;;
            --uninstall) action=uninstall ;;
            --demo) [ "$options" = 1 ] || refuse_usage '--demo takes no other option'
                action=demo ;;
            --help) usage && exit ;;
            *) refuse_usage "unknown option '$1'" ;;
        esac
        shift
    done
}

add_driver() {
    case " $ALL_DRIVERS " in
        *" $1 "*) ;;
        *) refuse_usage "unknown driver '$1', none of $ALL_DRIVERS" ;;
    esac
    case " $drivers " in
        *" $1 "*) ;;
        *) drivers="${drivers:+$drivers }$1" ;;
    esac
}

set_hooks() {
    case $1 in
        /*) hooks=${1%/} ;;
        *) refuse_usage "--hooks-dir '$1' is not an absolute path" ;;
    esac
}

refuse_usage() {
    say "install.sh: $1; try --help" >&2
    exit 2
}

fail() {
    say "install.sh: $1" >&2
    exit 1
}

say() {
    printf '%s\n' "$1" # echo would take a backslash in a path for more than that
}

absolute() {
    case $1 in
        '' | /*) say "${1%/}" ;;
        *) say "$PWD/${1%/}" ;;
    esac
}

# Where each file goes in the hooks directory, and which file of ours it is, or which link. The
# dispatcher comes last: before all scripts are there, it must not run any of them.
contents() {
    prepare=$1_prepare_begin_-.d start=$1_start_begin_-.d
    stopped=$1_stopped_end_-.d release=$1_release_end_-.d
    if has_prepare_and_release "$1"; then
        cat <<END
$prepare/10-mkdirs lxc_prepare_begin_-.d/10-mkdirs
$prepare/20-ramdisk lxc_prepare_begin_-.d/20-ramdisk
$prepare/30-preload lxc_prepare_begin_-.d/30-preload
$start/10-routing-table lxc_start_begin_-.d/10-routing-table
$start/20-network-policy lxc_start_begin_-.d/20-network-policy
$stopped/10-routing-table #link:../$start/10-routing-table
$stopped/20-network-policy #link:../$start/20-network-policy
$release/10-archive lxc_release_end_-.d/10-archive
$release/20-ramdisk #link:../$prepare/20-ramdisk
$release/30-post-rm-rf lxc_release_end_-.d/30-post-rm-rf
END
    fi
    if [ "$1" = qemu ]; then
        cat <<END
qemu_restore_begin_-.d/00-saved-image qemu_restore_begin_-.d/00-saved-image
qemu_started_begin_-.d/00-saved-image #link:../qemu_restore_begin_-.d/00-saved-image
END
    fi
    say "$1 hooks/lxc"
}

has_prepare_and_release() {
    case $1 in
        daemon | network) return 1 ;;
    esac
}

install_hooks() {
    wanted=$(for driver in $drivers; do contents "$driver"; done | with_fingerprints)
    mkdir -p -- "$hooks"
    lock
    read_record
    say "$wanted" | refuse_foreign
    plan=$(say "$wanted" | with_actions)
    new=$(say "$plan" | while read -r _action sum path _source; do say "$sum  $path"; done)
    others=$(say "$recorded" | of_other_drivers)
    write_record "$recorded$NEWLINE$new"
    say "$plan" | carry_out
    for driver in $drivers; do
        for path in $(recorded_paths "$driver"); do
            has_path "$new" "$path" || remove "$path" # not in this version
        done
    done
    write_record "$others$NEWLINE$new"
    explain
    restore_labels
    tell_libvirt
}

# Before each path and its source, put the fingerprint that it is to have.
with_fingerprints() {
    while read -r path source; do
        case $source in
            '#link:'*) sum=$source ;;
            *) sum=$(fingerprint "$source") ;;
        esac
        [ -n "$sum" ] || fail "$here/$source is missing"
        say "$sum $path $source"
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

# Keep other installers waiting until we, and all commands of ours, have ended.
lock() {
    exec 9<"$hooks"
    flock 9
    remove_temporary # of a run that was killed
    trap remove_temporary EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

remove_temporary() {
    rm -f -- "$hooks/$TEMPORARY" "$hooks"/*/"$TEMPORARY"
}

read_record() {
    recorded=
    if [ -e "$hooks/$RECORD" ]; then
        recorded=$(cat -- "$hooks/$RECORD")
    fi
}

# Write the record, sorted by path; where it says that already, leave it untouched.
write_record() {
    lines=$(say "$1" | sort -u -k 2 -k 1)
    lines=${lines#"$NEWLINE"} # an empty line comes first
    if [ -z "$lines" ]; then
        rm -f -- "$hooks/$RECORD"
    elif [ "$lines" != "$recorded" ]; then
        say "$lines" >"$hooks/$TEMPORARY"
        publish 0644 "$RECORD"
    fi
    recorded=$lines
}

# Give the temporary file beside a path its mode, and the path's name once its contents are on disk.
publish() {
    temporary=$hooks/$(dirname -- "$2")/$TEMPORARY
    if [ ! -h "$temporary" ]; then
        chmod "$1" -- "$temporary"
        sync -- "$temporary"
    fi
    mv -f -T -- "$temporary" "$hooks/$2"
}

has_path() {
    case $1$NEWLINE in
        *"  $2$NEWLINE"*) ;;
        *) return 1 ;;
    esac
}

# Whether what has this fingerprint at a path is as we have recorded it.
is_recorded() {
    case $NEWLINE$recorded$NEWLINE in
        *"$NEWLINE$1  $2$NEWLINE"*) ;;
        *) return 1 ;;
    esac
}

# Whether a path is ours to write: nothing is there, or what we have put there or are about to.
is_ours() {
    there=$(fingerprint "$hooks/$1")
    [ -z "$there" ] || [ "$there" = "$2" ] || is_recorded "$there" "$1"
}

# Before anything is changed: what libvirt runs now is not ours to replace.
refuse_foreign() {
    while read -r sum path _source; do
        directory=$hooks/${path%/*}
        if [ "$path" = "${path%/*}" ]; then
            is_ours "$path" "$sum" || has_path "$recorded" "$path" || refuse_dispatcher "$path"
        elif [ -h "$directory" ] || { [ -e "$directory" ] && [ ! -d "$directory" ]; }; then
            fail "$directory is not a directory; nothing was changed"
        fi
    done
}

refuse_dispatcher() {
    fail "$hooks/$1 was not installed from here; nothing was changed.
If you need it, move it into the directory of the phase that it is for, with a number for a name:
    $hooks/$1_OPERATION_SUB-OPERATION_-.d/50-local
or, with libvirt 6.5 or newer, to where libvirt itself runs it in every phase:
    $hooks/$1.d/local
Then run install.sh again."
}

# Before each line, put what is to be done: put it there; or keep what is there, and put it beside.
with_actions() {
    while read -r sum path source; do
        if is_ours "$path" "$sum"; then
            say "put $sum $path $source"
        elif is_ours "$path.new" "$sum"; then
            say "keep $sum $path"
            say "put $sum $path.new $source"
        else
            say "keep-both $sum $path"
        fi
    done
}

carry_out() {
    while read -r action sum path source; do
        case $action in
            put) put "$sum" "$path" "$source" ;;
            keep) say "kept $hooks/$path, which is not as installed; see ${path##*/}.new" ;;
            keep-both) say "kept $hooks/$path and ${path##*/}.new, which are not as installed" ;;
        esac
    done
}

put() {
    [ "$(fingerprint "$hooks/$2")" != "$1" ] || return 0
    directory=$hooks/$(dirname -- "$2")
    mkdir -p -- "$directory"
    case $(stat -c %A -- "$hooks/$2" 2>/dev/null) in # "test -x" fails where mounted noexec
        '') mode=0755 did=installed ;;
        *[xst]*) mode=0755 did=updated ;;
        *) mode=0644 did='updated, but did not make executable,' ;;
    esac
    case $3 in
        '#link:'*) ln -s -- "${3#"#link:"}" "$directory/$TEMPORARY" ;;
        *) cp -- "$3" "$directory/$TEMPORARY" ;;
    esac
    publish "$mode" "$2"
    say "$did $hooks/$2"
}

is_of() {
    case $1 in
        "$2" | "$2".new | "$2"_*) ;;
        *) return 1 ;;
    esac
}

of_other_drivers() {
    while read -r sum path; do
        [ -n "$path" ] || continue # no record yet
        for driver in $drivers; do
            ! is_of "$path" "$driver" || continue 2
        done
        say "$sum  $path"
    done
}

# What a driver has by the record, in the order in which it can go: the dispatcher first, since
# without it nothing runs, and deletion before the archive that it depends on.
recorded_paths() {
    say "$recorded" | while read -r _sum path; do
        if [ "$path" = "$1" ]; then
            say "2 $path"
        elif is_of "$path" "$1"; then
            say "1 $path"
        fi
    done | sort -r -u | cut -c 3-
}

# Remove what is as we have recorded it, and its directory if that was the last.
remove() {
    there=$(fingerprint "$hooks/$1")
    if is_recorded "$there" "$1"; then
        rm -f -- "$hooks/$1"
        say "removed $hooks/$1"
    elif [ -n "$there" ]; then
        say "left $hooks/$1, which is not as installed"
    fi
    directory=$hooks/${1%/*}
    if [ "$1" != "${1%/*}" ] && [ -d "$directory" ]; then
        rmdir --ignore-fail-on-non-empty -- "$directory"
    fi
}

uninstall_hooks() {
    if [ ! -e "$hooks/$RECORD" ]; then
        say "nothing is installed in $hooks"
        return
    fi
    lock
    read_record
    for driver in ${drivers:=$(recorded_drivers)}; do
        [ -n "$(recorded_paths "$driver")" ] || say "nothing is installed for $driver"
        for path in $(recorded_paths "$driver"); do
            if is_needed "$path" "$driver"; then
                say "left $hooks/$path: 30-post-rm-rf stays, and deletes what it has archived"
            else
                remove "$path"
            fi
        done
    done
    write_record "$(say "$recorded" | of_other_drivers)$NEWLINE$(say "$recorded" | still_there)"
    tell_libvirt
}

recorded_drivers() {
    for driver in $ALL_DRIVERS; do
        [ -z "$(recorded_paths "$driver")" ] || say "$driver"
    done
}

# Whether a script must stay: where a changed dispatcher stays and a changed deletion, so must the
# archive, or the next guest to stop would lose its data.
is_needed() {
    [ "${1##*/}" = 10-archive ] && [ -e "$hooks/$2" ] && [ -e "$hooks/${1%/*}/30-post-rm-rf" ]
}

still_there() {
    while read -r sum path; do
        [ "$(fingerprint "$hooks/$path")" != "$sum" ] || say "$sum  $path"
    done
}

explain() {
    say "virt-hooks is installed in $hooks for: $drivers"
    for driver in $drivers; do
        has_prepare_and_release "$driver" ||
            say "$driver has the dispatcher alone: libvirt calls no prepare and no release for it"
    done
    for directory in "$hooks" "$hooks"/*_*.d; do
        [ -d "$directory" ] || continue
        case $(stat -L -c %A -- "$directory") in
            ?????w* | ????????w*)
                say "install.sh: warning: group or others can write to $directory" >&2
                say 'install.sh: so the dispatcher will refuse to run what is in it' >&2
                ;;
        esac
    done
}

# With SELinux, what is copied must have the label of the directory that it is in.
restore_labels() {
    if [ -n "${DESTDIR:-}" ] || ! command -v selinuxenabled >/dev/null || ! selinuxenabled; then
        return 0
    fi
    restorecon -R -- "$hooks"
    say "SELinux: restored the labels in $hooks"
    case " $drivers " in
        *' network '*) say 'SELinux: virtnetworkd needs: setsebool -P virt_hooks_unconfined on' ;;
    esac
    case " $drivers " in
        *' qemu '*) say 'SELinux: virtqemud runs no hook without a policy module that allows it' ;;
    esac
}

# libvirt looks for hooks when it starts and when it gets SIGHUP.
tell_libvirt() {
    if [ -n "${DESTDIR:-}" ] || [ -z "$reload" ]; then
        return
    fi
    told=
    for daemon in $(for driver in $drivers; do daemons_of "$driver"; done | sort -u); do
        pid=$(cat "/run/$daemon.pid" 2>/dev/null) || continue
        if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$daemon" ]; then # not a later process
            told=yes
            if kill -HUP "$pid"; then
                say "told $daemon (process $pid) to look for hooks"
            else
                say "install.sh: warning: could not tell $daemon (process $pid)" >&2
            fi
        fi
    done
    if [ -z "$told" ]; then
        say 'no libvirt daemon runs; when one starts, it looks for hooks'
    fi
}

daemons_of() {
    echo libvirtd
    case $1 in
        qemu) echo virtqemud ;;
        lxc) echo virtlxcd ;;
        libxl) echo virtxend ;;
        bhyve) echo virtbhyved ;;
        network) echo virtnetworkd ;;
        ch) echo virtchd ;;
        daemon) # each of them calls this hook
            for name in bhyve ch interface lxc network nodedev nwfilter proxy qemu secret storage \
                vbox vz xen; do
                echo "virt${name}d"
            done
            ;;
    esac
}

# Show the life of the guest in examples/web.xml as libvirt would have it.
demo() {
    enter_mount_namespace
    mount -t tmpfs -o mode=0755 virt-hooks-demo /srv # hides what is there, us perhaps
    if [ -e /dev/log ]; then
        mount --bind /dev/null /dev/log # the host's syslog is no place for a demonstration
    fi
    xml=/srv/web.xml
    cp -- examples/web.xml "$xml"
    heading 'Installing into a directory that only this demonstration has'
    DESTDIR=/srv hooks=/srv/hooks drivers=lxc
    install_hooks

    mkdir -p /srv/golden/web /srv/web/rootfs
    say 'Hello from the golden copy' >/srv/golden/web/greeting
    heading 'Before: the files of the guest "web", see examples/web.xml'
    list /srv ''
    replay prepare begin -
    replay start begin -
    replay started begin -
    cat /srv/web/www/greeting >>/srv/web/log/greetings
    heading 'During: the guest runs (played here); it writes a log of what it has read'
    list /srv ''
    replay stopped end -
    replay release end shutdown
    heading 'After: its log is archived, the ramdisk and the scratch directories are gone'
    list /srv ''

    if [ -e /srv/web/log ] || [ -e /srv/web/www ] ||
        [ "$(cat /srv/archive/web/*/greetings)" != 'Hello from the golden copy' ]; then
        fail 'the demonstration did not end as it should'
    fi
    say ''
    say 'All this was in a mount namespace of its own. Nothing of it is left.'
}

# Run us again in a mount namespace of our own, from which no mount reaches the host's.
enter_mount_namespace() {
    [ "$(id -u)" = 0 ] || fail '--demo needs root, since it mounts'
    if [ -h /srv ] || [ ! -d /srv ]; then
        fail '--demo needs a directory /srv, over which it can mount its own'
    fi
    if [ "${VIRT_HOOKS_DEMO-}" != $$ ]; then # exec keeps the process, and so its number
        export VIRT_HOOKS_DEMO=$$
        exec unshare --mount --propagation private /bin/sh "$here/install.sh" --demo
    fi
}

heading() {
    say ''
    say "== $1"
}

# Call the dispatcher as libvirt does, and tell by its own messages what ran.
replay() {
    heading "lxc web $*"
    status=0
    messages=$(env -i PATH="$PATH" HOME=/ LC_ALL=C VIRT_HOOKS_VERBOSE=1 \
        "$hooks/lxc" web "$@" <"$xml" 2>&1) || status=$?
    say "${messages:-no scripts}" | while read -r line; do
        line=${line#"virt-hooks: lxc web $*: "}
        case $line in
            *': '*) printf '   %-14s %s\n' "${line%%: *}" "${line#*: }" ;;
            *) say "   $line" ;;
        esac
    done
    [ "$status" = 0 ] || fail "the dispatcher failed, exit status $status"
}

# What is in a directory, as a tree, without the hooks.
list() (
    for path in "$1"/*; do
        note=''
        if [ -d "$path" ] && mountpoint -q "$path"; then
            note=' (a ramdisk)'
        fi
        case $path in
            "$hooks" | "$xml" | *'/*') ;;
            *) say "   $(stat -c '%A %U %G' -- "$path")  $2${path##*/}$note" ;;
        esac
        if [ -d "$path" ] && [ "$path" != "$hooks" ]; then
            list "$path" "$2  "
        fi
    done
)

main "$@"
