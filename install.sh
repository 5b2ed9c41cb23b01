#!/bin/sh
# Installs virt-hooks, upgrades, uninstalls and demonstrates it; "install.sh --help" says how.
#
# What it installs it records in the hooks directory, in .virt-hooks.sha256: for a file the line of
# sha256sum(1), for a link "#link:TARGET  NAME", a comment to "sha256sum -c". A file that is as
# recorded is ours, to be replaced or removed; any other is an administrator's, and stays. Since the
# record is written first, a run that was killed leaves nothing that the next one does not know. The
# command, its manual and its completion are there by their absolute paths, without DESTDIR.
#
# Beside it, .virt-hooks.told has a line for each hook and each daemon process that was told of it:
# the driver, the daemon, its process number and its start time in clock ticks since boot (proc(5)).
set -eu
umask 022
export LC_ALL=C # one order of sorting, one language of messages

RECORD=.virt-hooks.sha256
TOLD=.virt-hooks.told
TEMPORARY=.virt-hooks.tmp # a file that is being written; its name keeps it from being run
ALL_DRIVERS='daemon qemu lxc libxl bhyve network ch'
COMMAND=/ # owns, as each driver owns its hooks, what is recorded by an absolute path
NEWLINE='
'

main() {
    drivers='' hooks=/etc/libvirt/hooks prefix=/usr/local action=install reload=yes
    read_options "$@"
    stage=$(absolute "${DESTDIR:-}")
    hooks=$stage$hooks
    here=$(dirname -- "$(readlink -f -- "$0")")
    cd -- "$here"
    case $action in
        install) drivers=${drivers:-lxc} && install_all "$COMMAND $drivers" ;;
        uninstall) uninstall ;;
        demo) demo ;;
    esac
}

usage() {
    cat <<'END'
usage: install.sh [--driver NAME]... [--hooks-dir DIR] [--prefix DIR]
                  [--no-reload] [--uninstall]
       install.sh --demo
       install.sh --help

Installs the dispatcher and the scripts of virt-hooks, and the command
virt-hooks with its manual pages and its completion for bash; or upgrades them.

  --driver NAME    for this driver: daemon, qemu, lxc, libxl, bhyve, network or
                   ch; repeatable. Without it: lxc; with --uninstall: all that
                   are installed. With the last one the command goes
  --hooks-dir DIR  the hooks in this directory, instead of /etc/libvirt/hooks
  --prefix DIR     the command in DIR/sbin, the rest of it in DIR/share, instead
                   of /usr/local
  --no-reload      do not tell the libvirt daemons that run
  --uninstall      remove what was installed and has not been changed since
  --demo           show what it does for an example guest, in a mount namespace
                   that leaves nothing behind; needs root, but no libvirt

With DESTDIR in the environment it installs below that directory, and tells no
daemon.

A file that was changed since it was installed stays, and so does anything that
was not installed from here; the new version is put beside it as NAME.new, which
never runs. To keep a script from running: chmod -x; upgrades respect that.
END
}

read_options() {
    options=$#
    while [ $# -gt 0 ]; do
        case $1 in
            --driver | --hooks-dir | --prefix) [ $# -gt 1 ] || refuse_usage "$1 needs a value" ;;
        esac
        case $1 in
            --driver) add_driver "$2" && shift ;;
            --hooks-dir) require_path "$1" "$2" && hooks=${2%/} && shift ;;
            --prefix) require_path "$1" "$2" && prefix=${2%/} && shift ;;
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

# What an owner has: each file of ours, or link, and where it goes, which is in the hooks directory
# or an absolute path. A dispatcher comes last: before all is there that it runs, it must not run any.
contents() {
    if [ "$1" = "$COMMAND" ]; then
        cat <<END
command/virt-hooks $prefix/sbin/virt-hooks
command/virt-hooks.8 $prefix/share/man/man8/virt-hooks.8
command/virt-hooks.5 $prefix/share/man/man5/virt-hooks.5
command/virt-hooks.bash $prefix/share/bash-completion/completions/virt-hooks
END
        return
    fi
    prepare=$1_prepare_begin_-.d start=$1_start_begin_-.d
    stopped=$1_stopped_end_-.d release=$1_release_end_-.d
    if has_prepare_and_release "$1"; then
        cat <<END
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
    fi
    if [ "$1" = qemu ]; then
        cat <<END
qemu_restore_begin_-.d/00-saved-image qemu_restore_begin_-.d/00-saved-image
#link:../qemu_restore_begin_-.d/00-saved-image qemu_started_begin_-.d/00-saved-image
END
    fi
    say "hooks/lxc_run.py $1_run.py"
    say "hooks/lxc $1"
}

has_prepare_and_release() {
    case $1 in
        daemon | network) return 1 ;;
    esac
}

# Install what these owners have: drivers, or the command.
install_all() {
    wanted=$(for owner in $1; do contents "$owner"; done | with_fingerprints)
    mkdir -p -- "$hooks"
    lock
    say "$wanted" | refuse_foreign
    plan=$(say "$wanted" | with_actions)
    new=$(say "$plan" | while read -r _action sum _source path; do say "$sum  $path"; done)
    others=$(say "$recorded" | of_others "$1")
    write_record "$recorded$NEWLINE$new"
    say "$plan" | carry_out
    for owner in $1; do
        recorded_paths "$owner" | while read -r path; do
            has_path "$new" "$path" || remove "$path" # not in this version, or not there any more
        done
    done
    write_record "$others$NEWLINE$new"
    explain
    restore_labels
    tell_libvirt
}

# Before each source and its path, put the fingerprint that it is to have.
with_fingerprints() {
    while read -r source path; do
        case $source in
            '#link:'*) sum=$source ;;
            *) sum=$(fingerprint "$source") ;;
        esac
        [ -n "$sum" ] || fail "$here/$source is missing"
        say "$sum $source $path"
    done
}

# Set $file to where a path of the record really is.
locate() {
    case $1 in
        /*) file=$stage$1 ;;
        *) file=$hooks/$1 ;;
    esac
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
    read_record
    remove_temporary # of a run that was killed
    trap remove_temporary EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

remove_temporary() {
    rm -f -- "$hooks/$TEMPORARY" "$hooks"/*/"$TEMPORARY"
    recorded_paths "$COMMAND" | while read -r path; do
        rm -f -- "$stage${path%/*}/$TEMPORARY"
    done
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
        publish 0644 "$hooks/$RECORD"
    fi
    recorded=$lines
}

# Give the temporary file beside a file its mode, and the file's name once its contents are on disk.
publish() {
    temporary=${2%/*}/$TEMPORARY
    if [ ! -h "$temporary" ]; then
        chmod "$1" -- "$temporary"
        sync -- "$temporary"
    fi
    mv -f -T -- "$temporary" "$2"
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
    locate "$1"
    there=$(fingerprint "$file")
    [ -z "$there" ] || [ "$there" = "$2" ] || is_recorded "$there" "$1"
}

# Before anything is changed: what libvirt runs now is not ours to replace.
refuse_foreign() {
    while read -r sum _source path; do
        locate "$path"
        directory=${file%/*}
        case $path in
            */*) ;;
            *) is_ours "$path" "$sum" || has_path "$recorded" "$path" || refuse_dispatcher "$path" ;;
        esac
        case $path in
            [!/]*/*) [ ! -h "$directory" ] || refuse_directory "$directory" ;;
        esac
        [ ! -e "$directory" ] || [ -d "$directory" ] || refuse_directory "$directory"
    done
}

refuse_directory() {
    fail "$1 is not a directory; nothing was changed"
}

refuse_dispatcher() {
    case $1 in
        *_run.py) fail "$hooks/$1 was not installed from here; nothing was changed.
Move it away, then run install.sh again." ;;
    esac
    fail "$hooks/$1 was not installed from here; nothing was changed.
If you need it, move it into the directory of the phase that it is for, with a number for a name:
    $hooks/$1_OPERATION_SUB-OPERATION_-.d/50-local
or, with libvirt 6.5 or newer, to where libvirt itself runs it in every phase:
    $hooks/$1.d/local
Then run install.sh again."
}

# Before each line, put what is to be done: put it there; or keep what is there, and put it beside.
with_actions() {
    while read -r sum source path; do
        if is_ours "$path" "$sum"; then
            say "put $sum $source $path"
        elif is_ours "$path.new" "$sum"; then
            say "keep $sum $source $path"
            say "put $sum $source $path.new"
        else
            say "keep-both $sum $source $path"
        fi
    done
}

carry_out() {
    while read -r action sum source path; do
        locate "$path"
        case $action in
            put) put "$sum" "$source" ;;
            keep) say "kept $file, which is not as installed; see ${file##*/}.new" ;;
            keep-both) say "kept $file and ${file##*/}.new, which are not as installed" ;;
        esac
    done
}

# Put a source with this fingerprint at $file.
put() {
    [ "$(fingerprint "$file")" != "$1" ] || return 0
    mkdir -p -- "${file%/*}"
    case $2:$(stat -c %A -- "$file" 2>/dev/null) in # "test -x" fails where mounted noexec
        *.[58]: | *.bash: | *.py:) mode=0644 did=installed ;;
        *.[58]:* | *.bash:* | *.py:*) mode=0644 did=updated ;;
        *:) mode=0755 did=installed ;;
        *:*[xst]*) mode=0755 did=updated ;;
        *) mode=0644 did='updated, but did not make executable,' ;;
    esac
    case $2 in
        '#link:'*) ln -s -- "${2#"#link:"}" "${file%/*}/$TEMPORARY" ;;
        *) cp -- "$2" "${file%/*}/$TEMPORARY" ;;
    esac
    publish "$mode" "$file"
    say "$did $file"
}

is_of() {
    case $1 in
        "$COMMAND"*) [ "$2" = "$COMMAND" ] ;;
        "$2" | "$2".new | "$2"_*) ;;
        *) return 1 ;;
    esac
}

of_others() {
    while read -r sum path; do
        [ -n "$path" ] || continue # no record yet
        for owner in $1; do
            ! is_of "$path" "$owner" || continue 2
        done
        say "$sum  $path"
    done
}

# What an owner has by the record, in the order in which it can go: the dispatcher first, since
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

# Remove what is as we have recorded it, and its phase directory if that was the last.
remove() {
    locate "$1"
    there=$(fingerprint "$file")
    if is_recorded "$there" "$1"; then
        rm -f -- "$file"
        say "removed $file"
    elif [ -n "$there" ]; then
        say "left $file, which is not as installed"
    fi
    case $1 in
        [!/]*/*) [ ! -d "${file%/*}" ] || rmdir --ignore-fail-on-non-empty -- "${file%/*}" ;;
    esac
}

uninstall() {
    if [ ! -e "$hooks/$RECORD" ]; then
        say "nothing is installed in $hooks"
        return
    fi
    lock
    owners=${drivers:=$(recorded_drivers)}
    if [ -z "$(say "$recorded" | of_others "$drivers $COMMAND")" ]; then
        owners="$owners $COMMAND" # with the last driver
    fi
    for owner in $owners; do
        [ -n "$(recorded_paths "$owner")" ] || [ "$owner" = "$COMMAND" ] ||
            say "nothing is installed for $owner"
        recorded_paths "$owner" | while read -r path; do
            need=$(why_needed "$path" "$owner")
            if [ -n "$need" ]; then
                say "left $hooks/$path: $need"
            else
                remove "$path"
            fi
        done
    done
    write_record "$(say "$recorded" | of_others "$owners")$NEWLINE$(say "$recorded" | still_there)"
    tell_libvirt
}

recorded_drivers() {
    for driver in $ALL_DRIVERS; do
        [ -z "$(recorded_paths "$driver")" ] || say "$driver"
    done
}

# Why a file must stay where a changed dispatcher stays; empty where it need not. Without its other
# half no guest would start; without the archive, where a changed deletion stays, the next guest to
# stop would lose its data.
why_needed() {
    [ -e "$hooks/$2" ] || return 0
    case $1 in
        "$2_run.py") ! grep -q -F _run.py -- "$hooks/$2" ||
            say "$2 stays, and runs no script without it; remove $2, then uninstall again" ;;
        */10-archive) [ ! -e "$hooks/${1%/*}/30-post-rm-rf" ] ||
            say '30-post-rm-rf stays, and deletes what it has archived' ;;
    esac
}

still_there() {
    while read -r sum path; do
        locate "$path"
        [ "$(fingerprint "$file")" != "$sum" ] || say "$sum  $path"
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
    told=
    if [ -z "${DESTDIR:-}" ] && [ -n "$reload" ]; then
        for daemon in $(for driver in $drivers; do daemons_of "$driver"; done | sort -u); do
            pid=$(cat "/run/$daemon.pid" 2>/dev/null) || continue
            [ "$(name_of "$pid")" != "$daemon" ] || tell "$daemon" "$pid" # not a later process
        done
        [ -n "$told" ] || say 'no libvirt daemon runs; when one starts, it looks for hooks'
    fi
    write_told
}

name_of() {
    cat "/proc/$1/comm" 2>/dev/null || true # it has ended
}

tell() {
    told=$told$NEWLINE
    if kill -HUP "$2"; then
        say "told $1 (process $2) to look for hooks"
        for driver in $(recorded_drivers); do
            told="$told$driver $1 $2 $(start_time "$2")$NEWLINE"
        done
    else
        say "install.sh: warning: could not tell $1 (process $2)" >&2
    fi
}

start_time() {
    sed 's/.*) //' "/proc/$1/stat" | cut -d ' ' -f 20
}

# Note which daemons know of which hooks. Of earlier notes stays what is still so.
write_told() {
    lines=$({
        say "$told"
        [ ! -e "$hooks/$TOLD" ] || cat -- "$hooks/$TOLD"
    } | while read -r driver daemon pid started; do
        if has_path "$recorded" "$driver" && [ "$(name_of "$pid")" = "$daemon" ]; then
            say "$driver $daemon $pid $started"
        fi
    done | sort -u)
    if [ -n "$lines" ]; then
        say "$lines" >"$hooks/$TEMPORARY"
        publish 0644 "$hooks/$TOLD"
    else
        rm -f -- "$hooks/$TOLD"
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
    mount -t tmpfs -o mode=0755 virt-hooks-demo /run # where the dispatcher keeps what it compiles
    if [ -e /dev/log ]; then
        mount --bind /dev/null /dev/log # the host's syslog is no place for a demonstration
    fi
    xml=/srv/web.xml
    cp -- examples/web.xml "$xml"
    heading 'Installing into a directory that only this demonstration has'
    DESTDIR=/srv stage=/srv hooks=/srv/hooks drivers=lxc
    install_all "$drivers"

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
