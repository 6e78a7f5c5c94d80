# Surveys the host. Prints NAME=VALUE, each terminated by a NUL.
say() {
    printf '%s=%s\0' "$1" "$2"
}
read -r boot </proc/sys/kernel/random/boot_id
read -r uptime rest </proc/uptime
say uptime "$uptime"
say machine "$(uname -m)"
say home "$HOME"
missing=
for tool in flock setsid sync readlink stat tail head find timeout dd sha256sum; do
    command -v "$tool" >/dev/null || missing="$missing $tool"
done
say missing "${missing# }"

# If an agent is or was installed, its journal is used.
shared=${journal:-/var/lib/moorage}
if [ -w "$shared/operations" ] && [ -w "$shared/locks" ]; then
    root=$shared
elif [ -n "$journal" ]; then
    root=$journal
    say journal_problem yes
else
    root=${XDG_STATE_HOME:-$HOME/.local/state}/moorage
    problem=$( (umask 077 && mkdir -p "$root/operations" "$root/locks" "$root/bin") 2>&1) ||
        say state_problem "$problem"
fi
problem=$( (dd if=/dev/zero of="$root/locks/.room-$$" bs=65536 count=1) 2>&1) || say state_problem "$problem"
rm -f "$root/locks/.room-$$"
say root "$root"
bin=${XDG_STATE_HOME:-$HOME/.local/state}/moorage/bin
mkdir -p "$bin" 2>/dev/null
say bin "$bin"
# Only a test run shows whether programs can be executed there (noexec).
try=$bin/.try-$$
if (umask 077 && printf '#!/bin/sh\n' >"$try" && chmod 700 "$try") 2>/dev/null; then
    "$try" 2>/dev/null || say noexec yes
fi
rm -f "$try"

# An agent's policy also applies over SSH.
policy=${policy:-/etc/moorage-agent/policy.toml}
[ ! -f "$policy" ] || [ ! -r "$policy" ] || say policy "$(timeout 5 head -c 65536 "$policy")"

say docker "$(command -v docker)"
endpoint=$DOCKER_HOST
[ -n "$endpoint" ] || endpoint=$(timeout 10 docker context inspect --format '{{.Endpoints.docker.Host}}' 2>/dev/null)
if [ -z "$endpoint" ] || [ "$endpoint" = unix:///var/run/docker.sock ]; then
    endpoint=unix:///var/run/docker.sock
    mine=${XDG_RUNTIME_DIR:-/run/user/$(id -u)}/docker.sock
    [ -S /var/run/docker.sock ] || [ ! -S "$mine" ] || endpoint=unix://$mine
fi
say endpoint "$endpoint"
say docker_config "$DOCKER_CONFIG"
socket=${endpoint#unix://}
if [ -S "$socket" ]; then
    say socket yes
fi
if [ -w "$socket" ]; then
    say access direct
elif command -v docker >/dev/null && command -v sudo >/dev/null; then
    said=$(timeout 10 sudo -n docker version --format '{{.Server.Version}}' 2>&1) && say access sudo || say sudo_said "$said"
fi
