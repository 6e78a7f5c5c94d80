# Functions that install, upgrade and remove the agent on a host. They run as root, and each is safe to run again.
#   mi_check PORT                 prints the facts of the host, one "NAME VALUE" per line
#   mi_unpack BUNDLE BUILD        unpacks a bundle, unless empty, beside the running build, and checks that it runs here
#   mi_switch BUILD               switches the service to a build; the previous build is kept
#   mi_back                       restores the previous build; without one, removes everything that the installation created
#   mi_done BUILD                 finishes the installation: removes builds that are not needed for a rollback
#   mi_remove                     removes the agent; the journal stays if it contains operations
# On failure they print a sentence on standard output and exit with a non-zero code.

mi_home=/opt/moorage-agent
mi_unit=/etc/systemd/system/moorage-agent.service
mi_link=/usr/local/bin/moorage-agent
mi_policy=/etc/moorage-agent/policy.toml
mi_data=/var/lib/moorage

mi_fail() {
    printf '%s\n' "$*"
    exit 1
}

mi_check() {
    echo "machine $(uname -m)"
    if [ -d /run/systemd/system ]; then echo 'systemd yes'; fi
    if [ -e "$mi_home/.deb" ]; then echo 'package yes'; fi
    echo "now $(date +%s)"
    { df -Pk /opt 2>/dev/null || df -Pk /; } | {
        read -r mi_line
        read -r mi_device mi_blocks mi_used mi_free mi_line
        echo "room $mi_free"
    }
    if [ -e "$mi_home/current/VERSION" ]; then echo "current $(cat "$mi_home/current/VERSION")"; fi
    if [ -e "$mi_policy" ]; then echo 'policy yes'; fi
    # The listener may be the agent itself.
    if [ "$(systemctl is-active moorage-agent 2>/dev/null)" != active ] &&
        cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | grep -qi "^ *[0-9]*: [0-9A-F]*:$(printf '%04X' "$1") [0-9A-F]*:[0-9A-F]* 0A "; then
        echo 'taken yes'
    fi
}

mi_unpack() {
    mi_new=$mi_home/$2
    [ -e "$mi_home/current/VERSION" ] || [ -e "$mi_home/.fresh" ] || {
        # Records what existed before, which a removal must keep. Written atomically, to survive a power cut.
        mkdir -p "$mi_home" && {
            [ ! -e "$mi_policy" ] || echo policy
            [ ! -d "$mi_data" ] || echo data
        } >"$mi_home/.fresh.new" && sync "$mi_home/.fresh.new" && mv -f "$mi_home/.fresh.new" "$mi_home/.fresh"
    } || mi_fail "$mi_home can't be written."
    if [ -n "$1" ]; then
        rm -rf "$mi_home"/.part-*
        mi_part=$mi_home/.part-$$
        mkdir "$mi_part" && tar -xzf "$1" -C "$mi_part" --no-same-owner || {
            rm -rf "$mi_part"
            mi_fail "The bundle can't be unpacked in $mi_home: its disk may be full."
        }
        rm -rf "$mi_new"
        mv "$mi_part/$2" "$mi_new" && rm -rf "$mi_part" && sync
    fi
    mi_said=$("$mi_new/moorage-agent" --version 2>&1) || mi_fail "The new agent doesn't run on this host: $mi_said"
    [ "$mi_said" = "moorage-agent $2" ] || mi_fail "The new agent says that it is \"$mi_said\", and not $2."
}

# Replaces a symbolic link atomically: created beside it, then renamed.
mi_point() {
    ln -sfn "$2" "$1.new" && mv -fT "$1.new" "$1"
}

mi_serve() {
    cp "$mi_home/current/moorage-agent.service" "$mi_unit.new" && mv -f "$mi_unit.new" "$mi_unit" &&
        mkdir -p "${mi_link%/*}" && mi_point "$mi_link" "$mi_home/current/moorage-agent" &&
        systemctl daemon-reload && systemctl --quiet enable moorage-agent && systemctl reset-failed moorage-agent &&
        systemctl restart moorage-agent
}

mi_switch() {
    mi_before=$(readlink "$mi_home/current" 2>/dev/null)
    if [ -n "$mi_before" ] && [ "$mi_before" != "$1" ]; then
        printf '%s\n' "$mi_before" >"$mi_home/.before" && mi_point "$mi_home/previous" "$mi_before" || exit 1
    fi
    mi_point "$mi_home/current" "$1" || mi_fail "$mi_home can't be written."
    mi_said=$(mi_serve 2>&1) || mi_fail "The service doesn't start: $mi_said $(mi_why)"
}

# Prints the last log lines of the service.
mi_why() {
    journalctl --quiet --no-pager --output cat --lines 3 --unit moorage-agent 2>/dev/null | tr '\n' ' '
}

mi_back() {
    mi_before=$(cat "$mi_home/.before" 2>/dev/null)
    if [ -e "$mi_home/.fresh" ]; then
        mi_remove
        echo removed
    elif [ -n "$mi_before" ] && [ -e "$mi_home/$mi_before/VERSION" ]; then
        mi_point "$mi_home/current" "$mi_before" && mi_serve && rm -f "$mi_home/.before" || exit 1
        echo "back $mi_before"
    else
        echo kept
    fi
}

mi_done() {
    rm -f "$mi_home/.fresh" "$mi_home/.before" || mi_fail "$mi_home can't be written."
    for mi_each in "$mi_home"/*/VERSION; do
        mi_each=${mi_each%/VERSION}
        mi_each=${mi_each##*/}
        case $mi_each in current | previous | "$1" | "$(readlink "$mi_home/previous" 2>/dev/null)") ;;
        *) rm -rf "${mi_home:?}/$mi_each" ;;
        esac
    done
}

mi_remove() {
    mi_keep=$(cat "$mi_home/.fresh" 2>/dev/null)
    if [ -e "$mi_unit" ]; then
        systemctl --quiet disable --now moorage-agent 2>/dev/null
        rm -f "$mi_unit"
        systemctl daemon-reload
        systemctl reset-failed moorage-agent 2>/dev/null
    fi
    rm -f "$mi_link"
    case $mi_keep in *policy*) ;; *) rm -f "$mi_policy" ;; esac
    [ ! -d "${mi_policy%/*}" ] || rmdir "${mi_policy%/*}" 2>/dev/null
    rm -rf "$mi_data/pki" "$mi_data/agent.json" "$mi_data"/deadlines.*
    # Recorded operations stay, so that their end can still be read.
    rmdir "$mi_data/operations" 2>/dev/null && rm -rf "$mi_data/locks"
    case $mi_keep in *data*) ;; *) [ ! -d "$mi_data" ] || rmdir "$mi_data" 2>/dev/null ;; esac
    rm -rf "$mi_home" || mi_fail "$mi_home can't be removed."
}
