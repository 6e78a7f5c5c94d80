# Functions for scripts on a host.

# Prints the path with its symbolic links resolved, existing or not, terminated by a NUL.
mo_real() {
    mo_there=$1 mo_rest=
    while ! mo_found=$(readlink -f -- "$mo_there" 2>/dev/null && echo .); do
        # Even / fails, so readlink itself is broken: stop.
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

# Prints the error of a test write in the journal at a folder, then the free space of its disk, each NUL-terminated.
mo_room() {
    mo_probe=$1/operations/.room-$$
    mo_said=$( (set -C && dd if=/dev/zero bs=65536 count=1 >"$mo_probe") 2>&1) && mo_said=
    rm -f "$mo_probe"
    printf '%s\0%s\0' "$mo_said" "$(stat -f -c '%a %S %b %d %c' -- "$1" 2>/dev/null)"
}

# Prints the real path of each path.
mo_real_all() {
    for mo_each; do
        mo_real "$mo_each"
    done
}

mo_self='read -r stat <"/proc/$PPID/stat"; set -- ${stat##*) }; shift 19; printf "%s %s\0" "$PPID" "$1"'

# mo_within SECONDS CALL...: runs a call that may hang unkillably, in the background. Its output is forwarded for so many
# seconds, after "PID START" of its process, and followed by "whole" if the call ended.
mo_within() {
    mo_seconds=$1
    shift
    ({ /bin/sh -c "$mo_self" && "$@" && printf 'whole\0'; } </dev/null 2>/dev/null 3<&- &) | timeout "$mo_seconds" cat
}

# mo_unless_hanging "PID START" SECONDS CALL...: like mo_within, unless the process of the last call is still alive.
mo_unless_hanging() {
    mo_last=$1
    shift
    if mo_lives $mo_last; then
        printf '%s\0' "$mo_last"
    else
        mo_within "$@"
    fi
}

mo_lives() {
    [ $# -eq 2 ] && read -r mo_stat 2>/dev/null <"/proc/$1/stat" || return 1
    mj_start_time "$mo_stat"
    [ "$mj_start" = "$2" ]
}

# mo_real_each SECONDS ["PID START" PATH]...: resolves paths concurrently, so that none waits for another. Prints for each
# "NUMBER:" and the output of mo_unless_hanging with newlines in place of NULs, terminated by a NUL.
mo_real_each() {
    mo_limit=$1 mo_number=0
    shift
    while [ $# -gt 1 ]; do
        {
            mo_told=$(mo_unless_hanging "$1" "$mo_limit" mo_real "$2" | tr '\000' '\n')
            printf '%d:%s\0' "$mo_number" "$mo_told"
        } &
        mo_number=$((mo_number + 1))
        shift 2
    done
    wait
}

# Prints a stamp of each file, which changes with the file, NUL-terminated; an empty one for a missing file.
mo_stamp() {
    for mo_file; do
        printf '%s\0' "$(stat -L -c '%z %i %s' -- "$mo_file" 2>/dev/null)"
    done
}

# mo_read_paths LIMIT ROOM [r|s PATH]...: prints three NUL-terminated texts for each path: its kind (file, directory,
# nothing, other, barred: an unreadable file), its real path, and for `r` up to LIMIT bytes of content, NULs as \001. A
# file that exceeds the ROOM bytes for all files is `other`. Only regular files are opened, with a time limit.
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

# mo_read_app DIRECTORY NAMES COMPOSE...: prints Compose's view of the project in a directory, as NUL-terminated texts: its
# kind (directory, file, nothing), code and output of `config` and of `config --environment`, the error message, and the
# nearest directory upwards with a file of one of the names.
mo_read_app() {
    mo_directory=$1 mo_names=$2
    shift 2
    if ! [ -d "$mo_directory" ]; then
        if [ -e "$mo_directory" ] || [ -L "$mo_directory" ]; then printf 'file\0'; else printf 'nothing\0'; fi
        return
    fi
    printf 'directory\0'
    mo_complaint='' mo_late=
    # The path is already resolved: if it has become a symbolic link since then, it is refused.
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
    if [ -n "$mo_late" ]; then
        printf '1\0\0'
        return
    fi
    mo_said=$(timeout 20 "$@" 2>/dev/null)
    mo_code=$?
    printf '%d\0%s\0' "$mo_code" "$mo_said"
    case $mo_code in
    0) ;;
    124 | 143)
        mo_late=yes
        mo_complaint='it did not read the project within 20 seconds'
        ;;
    *) [ -n "$mo_complaint" ] || mo_complaint=$(timeout 20 "$@" 2>&1 >/dev/null) ;;
    esac
}

# mo_receive FILE SIZE DIGEST MODE: creates a file atomically from descriptor 3, and resumes an interrupted upload. Prints
# `have BYTES` at the beginning and after each block, and at the end `whole` or `failed WHY`.
mo_receive() {
    mo_part=$1.$3.part
    # The folder itself is locked, so no lock file is left. Code 1: another process holds it; others: no locking there.
    exec 8<"${1%/*}" && flock -w 30 8 || [ $? -ne 1 ] || {
        echo 'failed the same is being uploaded by somebody else'
        return
    }
    if mo_has "$1" "$3"; then
        echo whole
        return
    fi
    find "${1%/*}" -maxdepth 1 -name '*.part' ! -path "$mo_part" -mmin +1440 -exec rm -f {} + 2>/dev/null
    umask 077
    mo_said=$( (: >>"$mo_part") 2>&1) || {
        mo_give_up "$mo_said"
        return
    }
    mo_there=$(stat -c %s -- "$mo_part")
    if [ "$mo_there" -gt "$2" ]; then
        : >"$mo_part"
        mo_there=0
    fi
    echo "have $mo_there"
    while [ "$mo_there" -lt "$2" ]; do
        # A sender that is silent for so long is gone, and would block others.
        mo_said=$(timeout 60 dd bs=65536 count=4 iflag=fullblock <&3 2>&1 >>"$mo_part")
        case $? in
        0) ;;
        124 | 143) return ;;
        *)
            mo_give_up "$mo_said"
            return
            ;;
        esac
        mo_before=$mo_there
        mo_there=$(stat -c %s -- "$mo_part")
        [ "$mo_there" -gt "$mo_before" ] || return
        echo "have $mo_there"
    done
    if ! mo_has "$mo_part" "$3"; then
        mo_give_up 'it did not arrive whole'
    elif mo_said=$( (chmod "$4" "$mo_part" && sync "$mo_part" && mv -f "$mo_part" "$1") 2>&1); then
        echo whole
    else
        mo_give_up "$mo_said"
    fi
}

mo_has() {
    [ -f "$1" ] && [ "$(sha256sum <"$1" 2>/dev/null)" = "$2  -" ]
}

mo_give_up() {
    rm -f "$mo_part"
    printf 'failed %s\n' "$(printf '%s\n' "$1" | head -n 1)"
}
