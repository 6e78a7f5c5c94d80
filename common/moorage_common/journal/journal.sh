# The journal in POSIX sh (dash, busybox ash, bash), for a host reached by SSH. Preceded by records.sh. Functions; call
# each in a subshell, since they change the directory and open files.
#   mj_look ROOT ID AFTER LIMIT   prints "unknown|running|ended COUNT", a newline, and COUNT bytes of the output
#   mj_show ROOT ID               prints the same word, a newline, then "NAME LENGTH", a newline, and the bytes of each record
#   mj_cancel ROOT ID WHO         prints signalled, already_ended, buried or not_allowed, or "failed SENTENCE"
#   mj_clean ROOT DAYS            removes operations that ended longer ago; prints the ids

# Changes to the folder of an operation that was started or ended, and sets mj_state.
mj_visit() {
    mj_state=unknown
    cd -P "$1/operations" 2>/dev/null && [ ! -L "$2" ] && cd "./$2" 2>/dev/null || return 0
    [ -e start ] || [ -e exit ] || return 0
    mj_state=ended
    mj_whole && return 0
    mj_state=running
    if mj_lock; then
        mj_whole || mj_end lost 0 2>/dev/null
        mj_state=ended
    fi
    exec 9>&-
}

# Takes the lock of the operation in the current directory, without waiting; fails if the operation is alive.
mj_lock() {
    # A read-only file can be locked, too.
    [ ! -L lock ] && { command exec 9>>lock || command exec 9<lock; } 2>/dev/null && flock -n 9 && [ "$PWD/lock" -ef /proc/self/fd/9 ]
}

mj_look() {
    mj_visit "$1" "$2"
    mj_until=$(mj_length)
    if [ "$mj_state" = ended ] && mj_whole; then
        # Output of leftover processes after the end doesn't belong to the operation.
        mj_until=${mj_line##* }
        mj_until=${mj_until#"${mj_until%%[!0]*}"}
        mj_until=${mj_until:-0}
    fi
    mj_count=$((mj_until - $3))
    [ "$mj_count" -le "$4" ] || mj_count=$4
    [ "$mj_count" -gt 0 ] && [ "$mj_state" != unknown ] || mj_count=0
    printf '%s %d\n' "$mj_state" "$mj_count"
    [ "$mj_count" -eq 0 ] || tail -c "+$(($3 + 1))" out | head -c "$mj_count"
}

mj_show() {
    mj_visit "$1" "$2"
    printf '%s\n' "$mj_state"
    [ "$mj_state" != unknown ] || return 0
    for mj_name in exit spec cancelled reason; do
        if [ -f "$mj_name" ]; then
            printf '%s %d\n' "$mj_name" "$(wc -c <"$mj_name")"
            cat "$mj_name"
        fi
    done
    printf 'out %d\n' "$(mj_length)"
}

# The first one is kept: ln doesn't replace an existing file.
mj_note() {
    [ ! -e cancelled ] || return 0
    mj_new=.cancelled-$$-$mj_try
    mv cancelled.new "$mj_new" 2>/dev/null
    printf '%-255s\n' "$1" 1<>"$mj_new" && sync "$mj_new"
    # A hard link needs disk space on some file systems.
    ln "$mj_new" cancelled 2>/dev/null || [ -e cancelled ] || mv "$mj_new" cancelled 2>/dev/null
    rm -f "$mj_new"
    [ -e cancelled ]
}

# Sets mj_pid and mj_began from the record of the command's process; fails if it isn't written yet.
mj_process() {
    [ -f pid ] && IFS=' ' read -r mj_version mj_pid mj_began mj_mark <pid && [ "$mj_mark" = end ] || return 1
    mj_pid=${mj_pid#"${mj_pid%%[!0]*}"}
}

mj_killer='
pid=$1 began=$2 i=0
while [ $i -lt 10 ]; do
    sleep 1
    i=$((i + 1))
    read -r stat <"/proc/$pid/stat" || exit 0
    set -- ${stat##*) }
    shift 19
    [ "$1" = "$began" ] || exit 0
done
kill -KILL "-$pid"
'

# Sends TERM to the command, and KILL ten seconds later, even if this connection ends.
mj_signal() {
    mj_process && read -r mj_stat 2>/dev/null <"/proc/$mj_pid/stat" || return 1
    mj_start_time "$mj_stat"
    [ "$mj_start" -eq "$mj_began" ] 2>/dev/null || return 1
    kill -TERM "-$mj_pid" 2>/dev/null || {
        [ -e "/proc/$mj_pid" ] && return 2
        return 1
    }
    setsid setsid /bin/sh -c "$mj_killer" moorage-killer "$mj_pid" "$mj_start" >/dev/null 2>&1 </dev/null
}

mj_cancel() {
    umask 007
    mj_noted=
    mj_try=0
    while [ "$mj_try" -lt 10 ]; do
        mj_try=$((mj_try + 1))
        cd -P "$1/operations" || break
        mkdir -m 2770 "$2" 2>/dev/null
        [ ! -L "$2" ] && cd "./$2" 2>/dev/null || break
        if mj_lock; then
            mj_cancel_idle "$3"
            return
        fi
        exec 9>&-
        if mj_whole; then
            mj_cancelled
            return
        fi
        mj_process || mj_noted=yes
        mj_note "$3" 2>/dev/null
        mj_written=$?
        # The signal is sent even if the record can't be written.
        mj_signal
        case $? in
        0) echo signalled && return ;;
        2) echo not_allowed && return ;;
        esac
        [ "$mj_written" -eq 0 ] || break
        # Not begun: the starting command reads the record. Or just ended: then the exit record follows.
        sleep 0.1 2>/dev/null || sleep 1
    done
    if [ "$mj_try" -lt 10 ]; then
        echo 'failed The cancellation could not be written on the host: its disk may be full.'
    elif [ -n "$mj_noted" ]; then
        echo signalled
    else
        echo already_ended
    fi
}

# The operation isn't alive, and the lock is ours.
mj_cancel_idle() {
    if mj_whole; then
        mj_cancelled
    elif [ -e start ] || [ -e exit ]; then
        mj_end lost 0 2>/dev/null
        echo already_ended
    elif mj_note "$1" && read -r mj_who <cancelled && mj_bury cancelled "Cancelled by $mj_who before it started."; then
        echo buried
    else
        echo 'failed The cancellation could not be written on the host: its disk may be full.'
    fi
}

mj_cancelled() {
    case $mj_line in
    '1 buried '*) echo buried ;;
    '1 exited '*) [ -n "$mj_noted" ] && echo signalled || echo already_ended ;;
    *) echo already_ended ;;
    esac
}

mj_clean() {
    cd -P "$1/operations" || return
    for mj_id in ????????-????-????-????-????????????; do
        [ -d "$mj_id" ] && [ ! -L "$mj_id" ] && (mj_remove "$mj_id" "$2") && printf '%s\n' "$mj_id"
    done
    rm -rf .removed-*
}

mj_remove() {
    cd "./$1" && mj_lock || return
    mj_last=.
    if mj_whole || { { [ -e start ] || [ -e exit ]; } && mj_end lost 0; }; then
        mj_last=exit
    fi
    # The age of an attempt without a start counts from its last change.
    [ -n "$(find "$mj_last" -prune -mtime "+$(($2 - 1))")" ] || return
    # Under the lock, by one rename: a process that opened the folder meanwhile notices that it was removed.
    mv "../$1" "../.removed-$1-$$"
}
