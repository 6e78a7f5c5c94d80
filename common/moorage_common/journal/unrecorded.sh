# A stop without a journal, in POSIX sh (dash, busybox ash, bash): it writes nothing, and needs neither flock nor setsid. Run as
#   /bin/sh -c THIS_TEXT moorage-stop DIRECTORY_LOCK PROJECT_LOCK COMMAND [ARGUMENT...]
# PROJECT_LOCK may be empty. Prints "busy directory" or "busy project" and exits; else "stopping" and the output of the
# command, and exits with its exit code.

# A lock file that doesn't exist, and can't be made, isn't held.
mj_open() {
    [ -n "$1" ] || return 1
    [ -e "$1" ] || (umask 007 && true >>"$1") 2>/dev/null
    [ -f "$1" ] && [ ! -L "$1" ] && [ -r "$1" ]
}
# Only code 1 means that it is held: any other is a host that can't lock.
mj_taken() {
    flock -n "$1" 2>/dev/null
    [ $? -eq 1 ]
}
if mj_open "$1" && command exec 8<"$1" && mj_taken 8; then
    echo 'busy directory'
    exit
fi
if mj_open "$2" && command exec 7<"$2" && mj_taken 7; then
    echo 'busy project'
    exit
fi
shift 2
echo stopping
exec "$@" </dev/null 2>&1
