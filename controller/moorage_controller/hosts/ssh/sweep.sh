# The last step of a stop: removes all containers with the app's labels, then checks the result. Run as
#   /bin/sh -c THIS_TEXT moorage-sweep REAL_DIRECTORY NAME DIRECTORY LAST_NAME LAST_DIRECTORY DOCKER [WORD...]
# Exits with 0 only if nothing of the app is left. Prints its progress like Compose, one JSON object per line.
real=$1 name=$2 directory=$3 last_name=$4 last_directory=$5
shift 5
LC_ALL=C
label=com.docker.compose.project
one='{{index .Config.Labels "com.docker.compose.project.working_dir"}}'
each='{{.Id}} {{.Name}} {{printf "%q" (index .Config.Labels "com.docker.compose.project")}}'
each="$each {{printf \"%q\" (index .Config.Labels \"com.docker.compose.project.working_dir\")}}"

say() {
    printf '{"id":"%s","status":"%s","text":"%s"}\n' "$1" "$2" "$3"
}

fail() {
    printf '{"error":true,"message":"%s"}\n' "$(printf '%s' "$1" | tr -d '\\"' | tr '\n\t' '  ')"
    exit 1
}

# Prints the path with its symbolic links resolved, existing or not, and a dot.
resolved() {
    there=$1 rest=
    while ! found=$(readlink -f -- "$there" 2>/dev/null && echo .); do
        there=${there%/}
        rest=/${there##*/}$rest
        there=${there%/*}
        [ -n "$there" ] || there=/
        [ "$rest" != / ] || break
    done
    found=${found%.}
    found=${found%?}
    printf '%s.' "${found%/}$rest"
}

# Sets found to the path with its symbolic links resolved, or to the path itself if the file system hangs. Only a
# background process without this operation's locks may wait for a hanging file system.
resolve() {
    found=$1
    case $hung$real$end in
    "$1$end"* | *"$end$1$end"*) return 0 ;;
    esac
    found=$( (resolved "$1" </dev/null 2>/dev/null 7>&- 8>&- 9>&- &) | timeout 2 cat)
    case $found in
    *.) found=${found%.} ;;
    *) found=$1 hung="$hung$1$end" ;;
    esac
}

# Sets mine to the ids and left to the names of the app's containers, and others to the names of all other projects.
look() {
    mine='' left='' others=' '
    ids=$("$@" ps -aq --no-trunc --filter "label=$label" 2>&1) || fail "The Docker Engine doesn't answer: $ids"
    [ -n "$ids" ] || return 0
    seen=$("$@" inspect --type container -f "$each" $ids 2>&1)
    # No here-document: some shells create a temporary file for it, which fails on a full disk.
    lines=$IFS
    IFS='
'
    set -f
    for line in $seen; do
        IFS=$lines
        id=${line%% *} line=${line#* }
        container=${line%% *} line=${line#* }
        project=${line%% *} place=${line#* }
        case $id in
        *[!0-9a-f]*)
            case "$id $container $project $place" in
            *'o such container'*) continue ;;
            esac
            fail "The Docker Engine doesn't answer: $id $container $project $place"
            ;;
        esac
        project=${project#\"} place=${place#\"}
        project=${project%\"} place=${place%\"}
        case $place in
        *\\*) place=$("$@" inspect --type container -f "$one" "$id" 2>/dev/null) ;;
        esac
        resolve "${place:-/}"
        if [ "$found" = "$real" ] || { [ -n "$name" ] && [ "$project" = "$name" ] && [ "$found" = "$directory" ]; } ||
            { [ -n "$last_name" ] && [ "$project" = "$last_name" ] && [ "$found" = "$last_directory" ]; }; then
            mine="$mine $id"
            left="$left, ${container#/}"
            names="$names $id=${container#/}"
        else
            others="$others$project "
        fi
    done
    IFS=$lines
    set +f
}

names='' hung='' end='
'
for round in 1 2 3 4 5; do
    look "$@"
    [ -n "$mine" ] || break
    [ "$round" -eq 1 ] || sleep 1
    for each_name in $(printf '%s' "$left" | tr ',' ' '); do say "Container $each_name" Working Removing; done
    # Stop all concurrently, each with its own grace period.
    "$@" stop $mine >/dev/null 2>&1
    "$@" rm -f $mine >/dev/null 2>&1
    removed=$left
    look "$@"
    [ -n "$mine" ] || for each_name in $(printf '%s' "$removed" | tr ',' ' '); do say "Container $each_name" Done Removed; done
done
for each_name in $name $last_name; do
    case $others in
    *" $each_name "*) continue ;;
    esac
    for network in $("$@" network ls --filter "label=$label=$each_name" --format '{{.Name}}' 2>/dev/null); do
        if "$@" network rm "$network" >/dev/null 2>&1; then
            say "Network $network" Done Removed
            continue
        fi
        users=$("$@" network inspect -f '{{range .Containers}}, {{.Name}}{{end}}' "$network" 2>/dev/null) || continue
        users=$(printf '%s' "${users#, }" | tr -d '\\"' | head -c 500)
        printf '{"id":"Network %s","status":"Warning","text":"Still in use","details":"%s"}\n' "$network" "${users:+by }$users"
    done
done
[ -z "$mine" ] || fail "The app was told to stop, but this is still there: ${left#, }."
