# Functions for scripts on a host.

# Prints the path with its links resolved, whether or not it is there, ended by a NUL.
mo_real() {
    mo_there=$1 mo_rest=
    while ! mo_found=$(readlink -f -- "$mo_there" 2>/dev/null && echo .); do
        # Not even that: it is readlink that fails, and what would it find above?
        if [ "$mo_there" = / ]; then
            mo_found="/
."
            break
        fi
        mo_there=${mo_there%/}
        mo_rest=/${mo_there##*/}$mo_rest
        mo_there=${mo_there%/*}
        [ -n "$mo_there" ] || mo_there=/
    done
    mo_found=${mo_found%.}
    mo_found=${mo_found%?}
    printf '%s%s\0' "${mo_found%/}" "$mo_rest"
}

# Prints why nothing can be written in the journal at a folder, then what is left on its disk, each ended by a NUL.
mo_room() {
    mo_probe=$1/operations/.room-$$
    mo_said=$( (set -C && dd if=/dev/zero bs=65536 count=1 >"$mo_probe") 2>&1) && mo_said=
    rm -f "$mo_probe"
    printf '%s\0%s\0' "$mo_said" "$(stat -f -c '%a %S %b %d %c' -- "$1" 2>/dev/null)"
}

# Prints for each file what changes when it is changed, ended by a NUL; nothing for one that isn't there.
mo_stamp() {
    for mo_file; do
        printf '%s\0' "$(stat -L -c '%z %i %s' -- "$mo_file" 2>/dev/null)"
    done
}

# mo_read_paths LIMIT ROOM [r|s PATH]...: prints three NUL-ended texts for each path: what it is (file, directory, nothing,
# other, barred: a file that can't be read), its real path, and of an `r` LIMIT bytes at most, its NULs as \001. What
# doesn't fit into ROOM bytes for all is `other`. Only an ordinary file is ever opened, and none is waited for.
mo_read_paths() {
    mo_limit=$1 mo_room=$2
    shift 2
    while [ $# -gt 1 ]; do
        mo_file=$2 mo_kind=other mo_size=0
        if [ -f "$mo_file" ]; then
            mo_kind=barred
            [ ! -r "$mo_file" ] || mo_kind=file
        elif [ -d "$mo_file" ]; then
            mo_kind=directory
        elif [ ! -e "$mo_file" ]; then
            mo_kind=nothing
        fi
        if [ "$1" = r ] && [ "$mo_kind" = file ]; then
            mo_size=$(stat -L -c %s -- "$mo_file" 2>/dev/null) && [ "$mo_size" -le "$mo_room" ] || mo_kind=other
            mo_room=$((mo_room - ${mo_size:-0}))
        fi
        printf '%s\0' "$mo_kind"
        mo_real "$mo_file"
        if [ "$1" = r ] && [ "$mo_kind" = file ]; then
            timeout 5 head -c "$mo_limit" -- "$mo_file" 2>/dev/null | tr '\000' '\001'
        fi
        printf '\0'
        shift 2
    done
}

# mo_read_app DIRECTORY NAMES COMPOSE...: prints what Compose says of the project in a directory, as NUL-ended texts: what
# it is (directory, file, nothing), code and output of `config` and of `config --environment`, what is complained of, and
# the nearest directory upwards that holds a file of one of the names.
mo_read_app() {
    mo_directory=$1 mo_names=$2
    shift 2
    if ! [ -d "$mo_directory" ]; then
        if [ -e "$mo_directory" ] || [ -L "$mo_directory" ]; then printf 'file\0'; else printf 'nothing\0'; fi
        return
    fi
    printf 'directory\0'
    mo_complaint=
    # It has its links resolved: whoever made one of it since then would lead us elsewhere.
    if ! cd -- "$mo_directory" || [ "$(pwd -P)" != "$mo_directory" ]; then
        printf '1\0\0001\0\0%s\0\0' "its directory can't be entered by this SSH user, or is a symbolic link by now"
        return
    fi
    mo_config "$@" config --format json
    mo_config "$@" config --environment
    printf '%s\0' "$mo_complaint"
    mo_up=$mo_directory
    while :; do
        for mo_name in $mo_names; do
            if [ -e "$mo_up/$mo_name" ]; then
                printf '%s\0' "${mo_up:-/}"
                return
            fi
        done
        [ -n "$mo_up" ] || break
        mo_up=${mo_up%/*}
    done
    printf '\0'
}

mo_config() {
    mo_said=$(timeout 20 "$@" 2>/dev/null)
    mo_code=$?
    printf '%d\0%s\0' "$mo_code" "$mo_said"
    [ "$mo_code" -eq 0 ] || [ -n "$mo_complaint" ] || mo_complaint=$(timeout 20 "$@" 2>&1 >/dev/null)
}
