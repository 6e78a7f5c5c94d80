# The supervisor of one operation, in POSIX sh (dash, busybox ash, bash). Run as
#   /bin/sh -c THIS_TEXT moorage-supervisor ROOT ID SPEC DIRECTORY_LOCK PROJECT_LOCK DIRECTORY COMMAND [ARGUMENT...]
# with the environment of the command. PROJECT_LOCK may be empty; both are paths of lock files.
#
# Prints one line on standard output, and exits unless it is the first:
#   locked                    all locks are held; waits for "go" or "refuse CODE SENTENCE" on standard input
#   held                      this operation is alive, or another process holds its lock briefly
#   ended                     it ended, or was buried: see `exit`
#   busy directory|project    another operation has that lock; this one is buried
#   full                      the disk is full; nothing was started
#   failed SENTENCE           nothing was started
# and after "locked": started, buried, full or failed. At EOF of its input nothing is started.
#
# Preceded by records.sh. Its names begin with mj_, because it shares its variables with the environment of the command.

# Caught, not ignored: children would inherit ignored signals. PIPE: the death of the caller must not end an operation.
trap : HUP INT TERM PIPE

mj_root=$1 mj_id=$2 mj_spec=$3 mj_directory_lock=$4 mj_project_lock=$5 mj_directory=$6
shift 6
mj_umask=$(umask)
umask 007

# The caller may retry as soon as it has read the answer, so the locks are released first.
mj_leave() {
    exec 9>&- 8>&- 7>&-
    [ $# -eq 0 ] || printf '%s\n' "$*"
    exit 0
}

# After a failed write: another write shows whether the disk is full.
mj_give_up() {
    mj_probe=$( (set -C && LC_ALL=C dd if=/dev/zero bs=65536 count=1 >.probe) 2>&1)
    rm -f .probe
    case $mj_probe in
    *'No space left on device'* | *'uota exceeded'*) mj_leave full ;;
    esac
    mj_leave "failed $1"
}

mj_refuse() {
    mj_bury "$@" ||
        mj_give_up 'The refusal of the operation could not be written.'
}

mj_command='
read -r mj_stat <"/proc/$$/stat"
mj_write_pid() {
    shift 19
    printf "1 %010d %020d end\n" "$$" "$1" 1<>pid
}
mj_write_pid ${mj_stat##*) }
# A canceller writes its record first and then reads the pid: one of the two sees the other.
if [ -e cancelled ]; then exit 143; fi
umask "$1"
cd -- "$2" 2>/dev/null || {
    printf "The directory %s can not be entered: see that it is there and may be read.\n" "$2"
    exit 125
}
# It was checked with its symlinks resolved: a symlink made since then would redirect the command.
[ "$(pwd -P)" = "$2" ] || {
    printf "The directory %s is another one by now: it leads through a symbolic link.\n" "$2"
    exit 125
}
shift 2
unset OLDPWD
exec "$@"
'

for mj_tool in flock setsid sync mv mkdir wc dd rm; do
    command -v "$mj_tool" >/dev/null || mj_leave "failed The host has no command $mj_tool: install it and start again."
done

# Exits if a name is not a regular file. Checks again: a file may come or go between the two tests.
mj_plain() {
    for mj_again in 1 2 3; do
        [ ! -L "$1" ] || break
        [ -e "$1" ] && [ ! -f "$1" ] || return 0
    done
    mj_leave "failed The file $1 of the operation is not a regular file."
}

# An ended operation's folder is removed under its lock: a lock in a removed folder doesn't count, and at each step
# below the folder may turn out to be removed.
mj_try=0
while :; do
    cd -P "$mj_root/operations" || mj_leave "failed The folder $mj_root/operations can't be entered."
    mj_folder=$(pwd -P)/$mj_id
    mj_try=$((mj_try + 1))
    [ "$mj_try" -le 20 ] || mj_give_up "The folder of the operation can't be made or opened in $mj_root/operations."
    mkdir -m 2770 "$mj_id" 2>/dev/null || [ -d "$mj_id" ] || continue
    cd -P "./$mj_id" 2>/dev/null && [ "$(pwd -P 2>/dev/null)" = "$mj_folder" ] || {
        [ ! -L "$mj_folder" ] || mj_leave 'failed The folder of the operation is a symbolic link.'
        continue
    }
    mj_plain lock
    # Through `command`: a failed plain exec would end this shell.
    command exec 9>>lock || continue
    flock -n 9 || mj_leave held
    [ "$mj_folder/lock" -ef "/proc/$$/fd/9" ] && break
done
for mj_file in spec.new reason.new start.new exit exit.new pid cancelled cancelled.new .room out; do
    mj_plain "$mj_file"
done

if mj_whole; then
    mj_leave ended
elif [ -e start ] || [ -e exit ]; then
    mj_end lost 0 || mj_give_up 'The loss of the operation could not be written.'
    mj_leave ended
fi
printf '%s' "$mj_spec" >spec.new && mv -f spec.new spec || mj_give_up 'The order could not be written.'

# Opened for reading: in a sticky folder the kernel may refuse to open another user's file with O_CREAT.
mj_open() {
    [ -e "$1" ] || (true >>"$1") 2>/dev/null
    [ -f "$1" ] && [ ! -L "$1" ]
}
mj_open "$mj_directory_lock" && command exec 8<"$mj_directory_lock" ||
    mj_give_up "The lock file $mj_directory_lock can't be opened."
flock -n 8 || {
    mj_refuse directory_busy 'Another operation works in this directory: wait for its end and start again.'
    mj_leave busy directory
}
if [ -n "$mj_project_lock" ]; then
    mj_open "$mj_project_lock" && command exec 7<"$mj_project_lock" ||
        mj_give_up "The lock file $mj_project_lock can't be opened."
    flock -n 7 || {
        mj_refuse project_busy 'Another operation works on this Compose project: wait for its end and start again.'
        mj_leave busy project
    }
fi

# Preallocates the later records, since the disk may be full then; that of cancel, which takes no lock, by rename.
printf '%037d\n' 0 >exit.new && printf '%037d\n' 0 >pid && printf '%255s\n' '' >.room && true >>out &&
    sync spec exit.new pid .room out && mv -f .room cancelled.new || mj_give_up 'The journal could not be written.'

printf 'locked\n'
read -r mj_word mj_code mj_sentence || mj_leave
case $mj_word in
go) ;;
refuse)
    mj_refuse "$mj_code" "$mj_sentence"
    mj_leave buried
    ;;
*) mj_leave ;;
esac
if [ -e cancelled ]; then
    read -r mj_who <cancelled
    mj_refuse cancelled "Cancelled by $mj_who before it started."
    mj_leave buried
fi

read -r mj_stat <"/proc/$$/stat"
mj_start_time "$mj_stat"
read -r mj_boot </proc/sys/kernel/random/boot_id
{
    printf '1 %s %d %d end\n' "$mj_boot" "$$" "$mj_start" >start.new && sync start.new && mv -f start.new start &&
        sync . ..
} || {
    rm -f start
    mj_give_up 'The journal could not be written.'
}
printf 'started\n'
exec </dev/null >/dev/null 2>&1
# In the foreground: an asynchronous list would ignore INT. Not a group leader yet, so setsid doesn't fork.
setsid /bin/sh -c "$mj_command" moorage-command "$mj_umask" "$mj_directory" "$@" >>out 2>&1
mj_code=$?
# Before the exit record is visible: a reader of it may start the next operation here immediately.
exec 8>&- 7>&-
mj_end exited "$mj_code"
