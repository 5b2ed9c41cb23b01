# shellcheck shell=sh
# Scripts that "virt-hooks new" makes. The lines below "#: two" are for scripts of two phases, those
# below "#: filter" for filters, those below "#: all" for all. Words in capitals are replaced.
#: all
# element: NAME
# FILE: does something for a guest (WHEN).
#
#     <NAME>some text</NAME>
#
# $1 is the guest's name, $2 the operation; the guest's XML is on stdin. To fail, print the reason
# on stderr and exit with a status other than 0KILLS.
# VIRT_HOOKS_DRY_RUN=1: only say what would be done. Needs xmllint (libxml2-utils).
set -eu
#: filter
exec >&2 # what is printed on stdout replaces the guest's XML
#: all

ask() {
    printf '%s\n' "$xml" | xmllint --xpath "$1" -
}

xml=$(cat)
#: two
state=/run/virt-hooks/NAME-$(ask 'string(//uuid)') # what is to be undone

case "$2" in
    LAST)
        if [ "${VIRT_HOOKS_DRY_RUN:-0}" != 0 ]; then
            echo 'would undo it'
        elif [ -e "$state" ]; then # not without FIRST, and not twice
            printf 'undo it here: %s\n' "$(cat "$state")"
            rm "$state"
        fi
        exit
        ;;
esac

#: all
elements='//*[local-name() = "NAME" and namespace-uri() = "urn:virt-hooks:1"]'
count=$(ask "count($elements)")
wrong=$(ask "count(($elements)[* or @* or normalize-space() = ''])")
if [ "$wrong" != 0 ]; then
    echo "${0##*/}: $1: <NAME> needs a text, and takes no attributes or elements" >&2
    exit 1
fi
for number in $(seq "$count"); do
    text=$(ask "normalize-space(($elements)[$number])")
    if [ "${VIRT_HOOKS_DRY_RUN:-0}" != 0 ]; then
        printf 'would do it: %s\n' "$text"
    else
        #: two
        install -d -m 0700 /run/virt-hooks
        printf '%s\n' "$text" >>"$state" # first: what is half done is undone, too
        #: all
        printf 'do it here: %s\n' "$text"
    fi
done
