# shellcheck shell=bash
# Completes what virt-hooks(8) takes.

_virt_hooks() {
    local drivers='lxc qemu libxl bhyve ch network daemon'
    local common='--help --hooks-dir'
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]}
    local command=${COMP_WORDS[1]} hooks=/etc/libvirt/hooks driver='' uri='' arguments=() i
    COMPREPLY=()

    for ((i = 2; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
            --driver) driver=${COMP_WORDS[++i]} ;;
            --connect)
                uri=${COMP_WORDS[++i]}
                while [ "${COMP_WORDS[i + 1]-}" = : ]; do # at which bash parts words
                    uri=$uri:${COMP_WORDS[i + 2]-}
                    ((i += 2))
                done
                ;;
            --hooks-dir) hooks=${COMP_WORDS[++i]} ;;
            --language | --reason | --set) ((i++)) ;;
            -*) ;;
            *) arguments+=("${COMP_WORDS[i]}") ;;
        esac
    done

    case $COMP_CWORD:$before in
        1:*) _virt_hooks_words 'list check replay new metadata --help --version' ;;
        *:--driver) _virt_hooks_words "$drivers" ;;
        *:--language) _virt_hooks_words 'sh python' ;;
        *:--connect) _virt_hooks_words 'lxc:///system qemu:///system xen:///system' ;;
        *:--hooks-dir) mapfile -t COMPREPLY < <(compgen -d -- "$word") ;;
        *:--set) mapfile -t COMPREPLY < <(compgen -f -- "$word") ;;
        *:--reason)
            _virt_hooks_words 'unknown shutdown destroyed crashed migrated saved failed daemon'
            ;;
        *)
            case $command:$word in
                list:-*) _virt_hooks_words "$common --driver" ;;
                check:-*) _virt_hooks_words "$common --driver --connect --json" ;;
                replay:-*)
                    _virt_hooks_words "$common --driver --connect --dry-run --lifecycle --reason"
                    ;;
                new:-*) _virt_hooks_words "$common --language" ;;
                metadata:-*)
                    _virt_hooks_words "$common --driver --connect --get --edit --set --config --live"
                    ;;
                new:*)
                    case ${#arguments[@]} in
                        0) _virt_hooks_words "$drivers" ;;
                        1) _virt_hooks_words "$(_virt_hooks_operations "${arguments[0]}")" ;;
                    esac
                    ;;
                replay:*)
                    if [ "${#arguments[@]}" = 0 ]; then
                        _virt_hooks_guests
                    else
                        _virt_hooks_words "$(_virt_hooks_operations "${driver:-lxc}")"
                    fi
                    ;;
                check:* | list:* | metadata:*) _virt_hooks_guests ;;
            esac
            ;;
    esac
}

_virt_hooks_words() {
    mapfile -t COMPREPLY < <(compgen -W "$1" -- "$word")
}

# What libvirt calls for a driver.
_virt_hooks_operations() {
    local guest='prepare start started stopped release'
    case $1 in
        lxc) echo "$guest reconnect" ;;
        qemu) echo "$guest reconnect attach migrate restore" ;;
        libxl) echo "$guest reconnect migrate" ;;
        bhyve | ch) echo "$guest" ;;
        network) echo 'start started port-created updated port-deleted stopped' ;;
        daemon) echo 'start reload shutdown' ;;
    esac
}

# The guests that virsh lists, for the drivers that have a hook; and, with a slash, files.
_virt_hooks_guests() {
    local name command guest
    if [[ $word == */* ]]; then
        mapfile -t COMPREPLY < <(compgen -f -- "$word")
        return
    fi
    for name in ${driver:-$drivers}; do
        command=list
        case $name in
            daemon) continue ;;
            network) command=net-list ;;
        esac
        [ -e "$hooks/$name" ] || [ -n "$uri$driver" ] || continue
        while IFS= read -r guest; do
            if [[ -n $guest && $guest == "${word//\\/}"* ]]; then
                COMPREPLY+=("$(printf %q "$guest")")
            fi
        done < <(virsh -q -c "${uri:-$(_virt_hooks_uri "$name")}" "$command" --all --name 2>/dev/null)
        [ -z "$uri" ] || break
    done
}

_virt_hooks_uri() {
    case $1 in
        libxl) echo xen:///system ;;
        *) echo "$1:///system" ;;
    esac
}

complete -F _virt_hooks virt-hooks
