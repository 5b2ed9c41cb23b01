# shellcheck shell=bash
# Completes the arguments of virt-hooks(8), from its own help and virsh's list of guests.

_virt_hooks() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]}
    local command=${COMP_WORDS[1]} driver='' uri='' arguments=0 help i
    local operations='prepare start started stopped release'
    COMPREPLY=()
    if [ "$COMP_CWORD" = 1 ]; then
        _virt_hooks_words 'list check replay new metadata --help --version'
        return
    fi
    help=$("${COMP_WORDS[0]}" "$command" --help 2>/dev/null)

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
            --hooks-dir | --language | --reason | --set) ((i++)) ;;
            -*) ;;
            *) ((++arguments)) ;;
        esac
    done

    case $before:$command:$arguments:$word in
        --driver:*) _virt_hooks_words "$(_virt_hooks_choices --driver)" ;;
        --language:*) _virt_hooks_words "$(_virt_hooks_choices --language)" ;;
        --connect:*) _virt_hooks_words 'lxc:///system qemu:///system xen:///system' ;;
        --hooks-dir:*) mapfile -t COMPREPLY < <(compgen -d -- "$word") ;;
        --set:*) mapfile -t COMPREPLY < <(compgen -f -- "$word") ;;
        --reason:*) ;;
        *:-*) _virt_hooks_words "$(grep -oE -- '--[a-z-]+' <<<"$help")" ;;
        *:new:0:*) _virt_hooks_words "$(_virt_hooks_choices)" ;;
        *:new:1:*) _virt_hooks_words "$operations prepare,release start,stopped started,stopped" ;;
        *:replay:[1-9]*) _virt_hooks_words "$operations" ;;
        *:new:*) ;;
        *) _virt_hooks_guests ;;
    esac
}

_virt_hooks_words() {
    mapfile -t COMPREPLY < <(compgen -W "$1" -- "$word" | sort -u)
}

# The {a,b,c} of an option in the help; without one, of an argument.
_virt_hooks_choices() {
    sed -nE "s/^ *${1-} \{(.*)\}.*/\1/p" <<<"$help" | head -n 1 | tr , ' '
}

# The guests that virsh lists; and, with a slash, files.
_virt_hooks_guests() {
    local name guest command
    if [[ $word == */* ]]; then
        mapfile -t COMPREPLY < <(compgen -f -- "$word")
        return
    fi
    for name in ${driver:-lxc qemu}; do
        command=list
        [ "$name" != network ] || command=net-list
        while IFS= read -r guest; do
            if [[ -n $guest && $guest == "${word//\\/}"* ]]; then
                COMPREPLY+=("$(printf %q "$guest")")
            fi
        done < <(timeout 2 virsh -q -c "${uri:-${name/libxl/xen}:///system}" \
            "$command" --all --name 2>/dev/null)
        [ -z "$uri" ] || break
    done
}

complete -F _virt_hooks virt-hooks
