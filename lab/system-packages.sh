#!/bin/sh
# Installs the missing system packages; does nothing if none is missing.
#
#   sh lab/system-packages.sh WORD...
#
#   venv      a Python that can make virtual environments
#   engine    a Docker Engine: a running one, or a dockerd that can be started
#   dockerd   a dockerd that can be started, even if an Engine is running (tests always start their own)
#   sshd      an OpenSSH server, the login shells that hosts have, and sudo
#   postgresql  the programs of a PostgreSQL server (tests start their own)
#   binutils  the tools to inspect binaries, for the agent's bundle
#   debootstrap  the tool that makes the system of a whole host, for the tests
#   busybox   a busybox without shared libraries, for the sample image
#   chromium  a headless browser, in which tests call the API as a dashboard does
set -eu

PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
here=$(dirname "$0")
python=$(sh "$here/find-python.sh")

engine_answers() {
    "$python" - <<'PROGRAM' 2>/dev/null
import os, socket
host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
with socket.socket(socket.AF_UNIX) as connection:
    connection.settimeout(5)
    connection.connect(host.removeprefix("unix://"))
    connection.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
    raise SystemExit(b" 200 " not in connection.recv(64))
PROGRAM
}

packages=
need() {
    packages="$packages${packages:+ }$1"
}

for word in "$@"; do
    case $word in
    venv)
        if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
            need "$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
        fi
        ;;
    engine)
        command -v dockerd >/dev/null || engine_answers || need docker.io
        ;;
    dockerd)
        command -v dockerd >/dev/null || need docker.io
        ;;
    busybox)
        # ldd succeeds on programs that need shared libraries
        if [ ! -x /bin/busybox ] || ldd /bin/busybox >/dev/null 2>&1; then
            need busybox-static
        fi
        ;;
    sshd)
        command -v sshd >/dev/null || need openssh-server
        command -v dropbear >/dev/null || need dropbear-bin
        for program in fish tcsh sudo openssl; do
            command -v "$program" >/dev/null || need "$program"
        done
        ;;
    postgresql)
        command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || need postgresql
        ;;
    binutils)
        command -v objdump >/dev/null || need binutils
        ;;
    debootstrap)
        command -v debootstrap >/dev/null || need debootstrap
        ;;
    chromium)
        command -v chromium >/dev/null || command -v google-chrome >/dev/null || need chromium
        ;;
    *)
        echo "lab/system-packages.sh knows venv, engine, dockerd, busybox, binutils, debootstrap, sshd, postgresql and chromium, but not '$word'." >&2
        exit 2
        ;;
    esac
done

[ -n "$packages" ] || exit 0

if ! command -v apt-get >/dev/null; then
    echo "This machine lacks: $packages (Debian's names). There is no apt-get here: install them in your system's way, then try again." >&2
    exit 1
fi
if [ "$(id -u)" != 0 ]; then
    echo "This machine lacks: $packages. Only root may install them: run 'sudo apt-get install $packages', then try again." >&2
    exit 1
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
quietly() {
    if ! "$@" >"$log" 2>&1 </dev/null; then
        cat "$log" >&2
        echo "This failed: $*" >&2
        exit 1
    fi
}
echo "Installing from this system's packages: $packages"
export DEBIAN_FRONTEND=noninteractive
quietly apt-get -qq -o DPkg::Lock::Timeout=120 update
# shellcheck disable=SC2086  # a list of words
quietly apt-get -qq -y -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0 install --no-install-recommends $packages
