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

# Prints for each file what changes when it is changed, ended by a NUL; nothing for one that isn't there.
mo_stamp() {
    for mo_file; do
        printf '%s\0' "$(stat -L -c '%z %i %s' -- "$mo_file" 2>/dev/null)"
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
    if ! cd -- "$mo_directory"; then
        printf '1\0\0001\0\0%s\0\0' "its directory can't be entered by this SSH user"
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
