# The records of one operation in POSIX sh (dash, busybox ash, bash); the current directory is its folder: see
# files.py. Precedes supervisor.sh and journal.sh.

mj_length() {
    if [ -f out ]; then echo $(($(wc -c <out))); else echo 0; fi
}

# Whether the exit record is complete, and the output at least as long as it says.
mj_whole() {
    [ -f exit ] && [ "$(wc -c <exit)" -eq 38 ] && IFS= read -r mj_line <exit && [ ${#mj_line} -eq 37 ] || return 1
    case $mj_line in
    '1 exited '[0-9][0-9][0-9]' '*' end' | '1 lost   '[0-9][0-9][0-9]' '*' end' | '1 buried '[0-9][0-9][0-9]' '*' end') ;;
    *) return 1 ;;
    esac
    mj_line=${mj_line% end}
    [ "$(mj_length)" -ge "${mj_line##* }" ] 2>/dev/null
}

# Overwritten in place, so that a disk that filled up meanwhile can't lose the record; renamed even if sync fails.
mj_end() {
    printf '1 %-6s %03d %020d end\n' "$1" "$2" "$(mj_length)" 1<>exit.new || return 1
    sync exit.new
    mj_synced=$?
    mv -f exit.new exit && sync . && return $mj_synced
}

mj_bury() {
    printf '%s\n%s\n' "$1" "$2" >reason.new && sync reason.new && mv -f reason.new reason && mj_end buried 0
}

# Sets mj_start to field 22 of a /proc/PID/stat line: the start time. The name before it may contain blanks and brackets.
mj_start_time() {
    set -- ${1##*) }
    shift 19
    mj_start=$1
}
