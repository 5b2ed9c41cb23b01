#!/bin/sh
# Installs virt-hooks, upgrades it and uninstalls it; "install.sh --help" says how.
#
# .virt-hooks.sha256 in the hooks directory records the installed files: for a file the line of
# sha256sum(1), for a link "#link:TARGET  NAME"; absolute paths are without DESTDIR. We replace and
# remove only files that match their entries. Any other file is the administrator's, and stays. We
# write an entry to disk before its file and remove it after the file, so install.sh may be killed.
set -eu
umask 022
export LC_ALL=C # one order of sorting, one language of messages

MODULES='argparse ast collections concurrent.futures ctypes difflib errno fcntl functools grp
json os pathlib pwd re select shlex shutil stat subprocess syslog tempfile textwrap time warnings
xml.etree xml.parsers.expat zlib'
HOOKS=/etc/libvirt/hooks # libvirt looks nowhere else
RECORD=.virt-hooks.sha256
TEMPORARY=.virt-hooks.tmp # the file that we write at the moment; with this name it never runs
TOLD=/run/virt-hooks.told # "virt-hooks check" reads its time: when we last told all daemons
ALL_DRIVERS='daemon qemu lxc libxl bhyve network'
DAEMONS='libvirtd virtbhyved virtinterfaced virtlxcd virtnetworkd virtnodedevd virtnwfilterd
virtproxyd virtqemud virtsecretd virtstoraged virtvboxd virtvzd virtxend'
NEWLINE='
'

main() {
    action=install drivers='' hooks=$HOOKS prefix='' reload=yes changing=''
    read_options "$@"
    here=$(dirname -- "$(readlink -f -- "$0")")
    stage=${DESTDIR:-} && stage=${stage%/}
    if [ -z "$stage" ]; then
        [ "$(id -u)" = 0 ] || fail 'this needs root: use sudo'
        [ "$action" = uninstall ] || require_python
        [ "$action" != demo ] || exec sh "$here/examples/demo"
        refuse_package
    fi
    hooks=$stage$hooks
    if [ "$action" = install ]; then
        contents_for command qemu >/dev/null # fails if a file of the checkout is missing
        refuse_writable
        mkdir -p -- "$hooks"
    fi
    if [ -d "$hooks" ]; then
        exec 9<"$hooks"
        flock --nonblock 9 || { say "waiting for another install.sh in $hooks" && flock 9; }
    fi
    trap '[ $? = 0 ] || [ -z "$changing" ] || say "install.sh: the work is half done; to\
 finish it, remove the cause, and run it again with the same options" >&2' EXIT
    trap 'exit 1' HUP INT PIPE TERM
    read_record
    if [ "$action" = install ]; then install_all; else uninstall; fi
}

usage() {
    cat <<'END'
usage: install.sh [OPTION]...

Installs or upgrades virt-hooks: the dispatcher, its scripts, and the command
virt-hooks with its manual pages and its completion for bash.

  --driver NAME    use this driver: daemon, qemu, lxc, libxl, bhyve or network;
                   repeatable. The default is all installed drivers, or lxc.
                   For daemon and network, install only the dispatcher
  --prefix DIR     install the command below DIR; the default is its present
                   prefix, or /usr/local
  --hooks-dir DIR  use the hooks directory DIR, not /etc/libvirt/hooks. To
                   upgrade or uninstall these hooks, give the option again
  --no-reload      do not tell the running libvirt daemons to look for hooks
  --uninstall      remove all installed files that you have not changed
  --demo           play the life of an example guest; this needs no libvirt and
                   leaves nothing behind
  -h, --help       show this text

With DESTDIR in the environment, install.sh works below that directory, needs
neither root nor Python, and tells no daemon. It keeps each script that you have
changed, and puts the new version beside it as NAME.new, which never runs. To
switch a script off, run chmod -x on it: an upgrade leaves it switched off.
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
    printf '%s\n' "$1" # echo would interpret a backslash in a path
}

# Without Python libvirt cannot run the dispatcher, and so starts no guest.
require_python() {
    problem=$(/usr/bin/python3 -IS -c "
import sys
if sys.version_info < (3, 9):
    sys.exit('it is Python %d.%d' % sys.version_info[:2])
for name in '''$MODULES'''.split():
    __import__(name)" 2>&1) || fail "virt-hooks needs /usr/bin/python3, version 3.9 or newer, with\
 the standard library: ${problem##*"$NEWLINE"}. Nothing was changed. Install the package python3"
}

# Not two programs may upgrade and remove the same files. After a removal, dpkg still has to purge.
refuse_package() {
    state=$(dpkg-query -W -f '${db:Status-Status}' virt-hooks 2>/dev/null) || state=not-installed
    ! rpm -q --quiet virt-hooks 2>/dev/null || state=installed
    [ "$state" = not-installed ] || fail "the package virt-hooks is on this host ($state); nothing\
 was changed. To use install.sh, run first: apt-get purge virt-hooks, or dnf remove virt-hooks.\
 This deletes scripts that you have changed, and forgets which scripts are switched off"
}

# If users other than root can write there, the dispatcher runs nothing, and so no guest starts.
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

# Set $recorded, and from it $drivers and $prefix unless the options give them.
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

# Print the fingerprint, source and path of each file or link of the parts, "command" or drivers.
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
            *) cat <<END ;;
lxc_prepare_begin_-.d/10-mkdirs ${part}_prepare_begin_-.d/10-mkdirs
lxc_prepare_begin_-.d/20-ramdisk ${part}_prepare_begin_-.d/20-ramdisk
lxc_prepare_begin_-.d/30-preload ${part}_prepare_begin_-.d/30-preload
lxc_start_begin_-.d/10-routing-table ${part}_start_begin_-.d/10-routing-table
lxc_start_begin_-.d/20-network-policy ${part}_start_begin_-.d/20-network-policy
#link:../${part}_start_begin_-.d/10-routing-table ${part}_stopped_end_-.d/10-routing-table
#link:../${part}_start_begin_-.d/20-network-policy ${part}_stopped_end_-.d/20-network-policy
lxc_release_end_-.d/10-archive ${part}_release_end_-.d/10-archive
#link:../${part}_prepare_begin_-.d/20-ramdisk ${part}_release_end_-.d/20-ramdisk
lxc_release_end_-.d/30-post-rm-rf ${part}_release_end_-.d/30-post-rm-rf
END
        esac
        [ "$part" != qemu ] || cat <<END
qemu_restore_begin_-.d/00-saved-image qemu_restore_begin_-.d/00-saved-image
#link:../qemu_restore_begin_-.d/00-saved-image qemu_started_begin_-.d/00-saved-image
END
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

# Print a file's sum or a link's target, as in the record; print nothing if nothing is there.
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
            say "kept $file, which has changed; the new version is ${file##*/}.new"
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
    [ "$hooks" = "$stage$HOOKS" ] || say 'To upgrade or uninstall it, give --hooks-dir again.'
    [ -n "$stage" ] || say "Next: write metadata ('man 5 virt-hooks'); then run 'virt-hooks check'."
}

uninstall() {
    [ -n "$recorded" ] || say "nothing is installed in $hooks; if it is elsewhere, use --hooks-dir"
    for driver in $drivers; do # a changed dispatcher would go on running the scripts that stay
        ! contains "$recorded$NEWLINE" "  $driver$NEWLINE" || is_ours "$driver" '' ||
            fail "$hooks/$driver has changed; nothing was removed. Move it away, then uninstall"
    done
    changing=yes
    for driver in $drivers; do
        [ "$hooks" != $HOOKS ] || grep -ls urn:virt-hooks:1 "/run/libvirt/$driver"/*.xml |
            sed "s,.*/\(.*\)\.xml$,\1 ($driver) is running: nothing archives or cleans up after it,"
        remove "$driver"
    done
    tell_libvirt # at once: until then libvirt starts no guest
    others=$(of_other_drivers)
    [ -n "$others$stage" ] || rm -f -- "$TOLD"
    [ -z "$others" ] || others="$others$NEWLINE$(say "$recorded" | grep '  /')"
    remove_all_but "$others"
    for driver in $drivers; do
        find "$hooks/$driver"_*.d ! -type d -printf 'left %p; nothing runs it now\n' || true
    done 2>/dev/null
}

# Fail, before anything has changed, if we would replace another hook.
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

# Fail, and say how to keep another hook in use, with all files that it may read beside itself.
refuse_hook() {
    phases='prepare_begin start_begin started_begin stopped_end release_end'
    [ "$1" != network ] || phases='start_begin started_begin updated_begin stopped_end'
    [ "$1" != daemon ] || phases='start_- reload_begin shutdown_-'
    any=$(say "$ALL_DRIVERS" | tr ' ' '|')
    beside=$(find "$hooks/" -mindepth 1 -maxdepth 1 -regextype posix-extended \( -name "$1.d" -o \
        ! -regex ".*/(old|\.virt-hooks.*|($any)(_.*|\.d)?)" \) -printf "'%f' ")
    fail "$hooks/$1 is another hook or a changed dispatcher; nothing was changed. If you do not need
it, move it away. To keep using it and the files beside it, run this, and then install.sh again:
    cd '$hooks'
    mkdir -p old
    mv -n $1 ${beside}old/
    for phase in $phases; do
        mkdir -p $1_\${phase}_-.d
        printf '#!/bin/sh\\nexec \"$hooks/old/$1\" \"\$@\"\\n' >$1_\${phase}_-.d/50-old
        chmod 755 $1_\${phase}_-.d/50-old
    done
If it serves other phases, such as migrate_begin, add them. libvirt itself runs the programs
directly in $1.d: move these back. If $1.d has a tree of scripts, README.md shows in \"A hook that you
have already\" how to use these scripts without the hook."
}

# Whether the record has this fingerprint for a path.
is_recorded() {
    contains "$NEWLINE$recorded$NEWLINE" "$NEWLINE$1  $2$NEWLINE"
}

# Whether we may write to a path: nothing is there, or our old or new file is. Set $file to the path
# with its directory, and $there to its fingerprint.
is_ours() {
    case $1 in
        /*) file=$stage$1 ;;
        *) file=$hooks/$1 ;;
    esac
    temporary=${file%/*}/$TEMPORARY
    there=$(fingerprint "$file")
    [ -z "$there" ] || [ "$there" = "$2" ] || is_recorded "$there" "$1"
}

# Print the entries of all drivers that the options do not name; the command belongs to no driver.
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
    is_ours "$3" "$1" || { say "kept $file, which has changed, too" && return; }
    is_recorded "$1" "$3" || write_record "$recorded$NEWLINE$1  $3"
    rm -f -- "$temporary" # a run that was killed may have left it
    [ "$there" != "$1" ] || return 0
    mode=0755
    case $2:$(stat -c %A -- "$file" 2>/dev/null) in # "test -x" fails on a noexec mount
        command/*.*:* | *:-??-??-??-) mode=0644 ;; # not a program, or switched off
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

# Remove the other files of the record, a deletion before its archive, and record only these lines.
remove_all_but() {
    backwards=$(say "$recorded" | sort -r -k 2)
    say "$backwards" | while read -r _sum path; do
        [ -z "$path" ] || contains "$1$NEWLINE" "  $path$NEWLINE" || remove "$path"
    done
    [ -z "$1" ] || write_record "$1"
    [ -n "$1" ] || rm -f -- "$hooks/$TEMPORARY" "$hooks/$RECORD"
}

# Remove a file if it matches its entry, and its directory if that is ours and then empty.
remove() {
    if [ "$hooks" != "$stage$HOOKS" ] && grep -qsF "  /${1#/}" "$stage$HOOKS/$RECORD"; then
        return # the command also belongs to the installation in the usual directory
    elif ! is_ours "$1" ''; then
        say "left $file, which has changed"
    elif [ -n "$there" ]; then
        rm -f -- "$file"
        sync -- "${file%/*}"
        say "removed $file"
    fi
    rm -f -- "$temporary"
    case $1 in
        [!/]*/* | */share/virt-hooks/*) rmdir -- "${file%/*}" 2>/dev/null || true ;; # not empty
    esac
}

# libvirt looks for hooks when it starts and when it gets SIGHUP.
tell_libvirt() {
    [ -z "$stage" ] && [ -n "$reload" ] || return 0
    for daemon in $DAEMONS; do
        pid=$(cat "/run/$daemon.pid" 2>/dev/null) || continue
        [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$daemon" ] || continue # another process by now
        kill -HUP "$pid"
        say "told $daemon to look for hooks"
    done
    touch "$TOLD"
}

main "$@"
