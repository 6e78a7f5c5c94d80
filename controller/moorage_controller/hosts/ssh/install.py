"""Installation and removal of the agent on a host over SSH, as root or by `sudo -n`."""

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from moorage_common.untrusted import LIMITS, UntrustedError, clean_line, number_text, parse_json

from moorage_controller.hosts.bundle import Bundle
from moorage_controller.hosts.ssh import survey as surveys
from moorage_controller.hosts.ssh.session.host_session import HostSession
from moorage_controller.hosts.ssh.session.shell import ScriptResult, quote
from moorage_controller.hosts.ssh.session.upload import Progress, UploadFailedError
from moorage_controller.hosts.transport import HostRefusedError

POLICY = "/etc/moorage-agent/policy.toml"
_UPLOADS = "/var/tmp/moorage-"  # noqa: S108 - mktemp makes the folder, for its owner alone
_LEFT_MINUTES = 30
_QUICK_SECONDS = 30.0
_SLOW_SECONDS = 240.0
"""Unpacking takes seconds, or a minute on a slow disk; its sync waits for all pending writes of the disk."""
_ROOM_KIB = 400 * 1024
_CLOCK_SECONDS = 12 * 3600


@dataclass(frozen=True, slots=True)
class Found:
    """The state of a host before an installation. `current` is the installed build, empty for none."""

    current: str
    has_policy: bool


class Installer:
    """Installs the agent on one host over one connection. Every method raises ContactLostError, HostRefusedError."""

    def __init__(self, link: HostSession) -> None:
        self._link = link
        self._sudo = False

    async def check(self, port: int) -> Found:
        """Check that an agent can be installed and listen on that port; HostRefusedError says why not."""
        await self._become_root()
        told = _pairs((await self._root(f"mi_check {port}")).text)
        for wrong, code, sentence in _preflight_failures(told, port):
            if wrong:
                raise HostRefusedError(code, sentence)
        return Found(told.get("current", ""), "policy" in told)

    async def upload(self, bundle: Bundle, progress: Progress) -> str:
        """Upload the bundle to a private folder of the SSH user, and return its path on the host."""
        # First remove leftovers of interrupted uploads; nothing else removes them.
        left = f"find /var/tmp -maxdepth 1 -name 'moorage-????????' -user \"$(id -un)\" -mmin +{_LEFT_MINUTES}"
        make = f"umask 077; {left} -exec rm -rf {{}} + 2>/dev/null; mktemp -d {_UPLOADS}XXXXXXXX"
        made = await self._link.run_in_session(make, seconds=_QUICK_SECONDS)
        folder = made.text.strip()
        if made.code or not folder.startswith(_UPLOADS):
            raise HostRefusedError("upload_failed", "No folder can be made in /var/tmp on the host: see its disk.")
        path = f"{folder}/bundle.tar.gz"
        try:
            await self._link.upload(bundle.content, bundle.digest, path, progress=progress)
        except UploadFailedError as error:
            await self.clear(path)
            raise HostRefusedError(
                "upload_failed", f"The bundle can't be stored in {folder} on the host ({error}): see its disk."
            ) from None
        return path

    async def clear(self, path: str) -> None:
        """Remove the folder of `upload`."""
        await self._link.run_in_session(f"rm -rf {quote(str(PurePosixPath(path).parent))}", seconds=_QUICK_SECONDS)

    async def unpack(self, path: str, build: str) -> None:
        """Unpack the bundle and check that it runs on this host; an empty path means that it is already unpacked."""
        await self._run_or_raise("mi_unpack", path, build)

    async def has(self, build: str) -> bool:
        """Return whether a build is completely installed."""
        folder = quote(f"/opt/moorage-agent/{build}")
        ran = await self._root(f"[ -e {folder}/VERSION ] && cd {folder} && sha256sum --status -c SHA256SUMS")
        return ran.code == 0

    async def status(self, build: str) -> Mapping[str, Any]:
        """Return the output of `moorage-agent status --json`."""
        ran = await self._agent(build, "status", "--json")
        try:
            told = parse_json(ran.output, LIMITS.script)
        except UntrustedError:
            told = None
        if not isinstance(told, dict):
            raise HostRefusedError("agent_broken", f"The agent doesn't say how it is: {_last(ran)}")
        return told

    async def request_certificate(self, build: str) -> bytes:
        """Create a key on the host, which never leaves it, and return a signing request for it (PEM)."""
        ran = await self._agent(build, "request-certificate")
        if ran.code:
            raise HostRefusedError("agent_broken", f"The agent can't make a key: {_last(ran)}")
        return ran.output

    async def accept_certificate(self, build: str, answer: Mapping[str, str], options: Sequence[str]) -> None:
        """Send the host its certificate; `options` are those of `moorage-agent accept-certificate`."""
        ran = await self._agent(build, "accept-certificate", *options, sent=json.dumps(answer))
        if ran.code:
            raise HostRefusedError("agent_broken", f"The agent doesn't take its certificate: {_last(ran)}")

    async def switch(self, build: str) -> None:
        """Switch the service to a build."""
        await self._run_or_raise("mi_switch", build)

    async def roll_back(self) -> str:
        """Restore the state before the installation.

        Returns `removed`, `kept`, or `back` and the build that runs again.
        """
        ran = await self._root("mi_back")
        if ran.code:
            raise HostRefusedError("rollback_failed", f"The host could not be put back as it was: {_last(ran)}")
        return ran.text.strip()

    async def done(self, build: str) -> None:
        """Clean up after a successful installation."""
        await self._run_or_raise("mi_done", build)

    async def failure_reason(self) -> str:
        """Return the last log lines of the service, empty for none."""
        return clean_line((await self._root("mi_why")).text, LIMITS.sentence)

    async def remove(self) -> None:
        """Remove the agent and everything that its installation created."""
        await self._become_root()
        if "package" in _pairs((await self._root("mi_check 0")).text):
            raise HostRefusedError("installed_by_package", _BY_PACKAGE)
        await self._run_or_raise("mi_remove")

    async def _become_root(self) -> None:
        ask = '[ "$(id -u)" = 0 ] && echo root || sudo -n /bin/sh -c "id -u" 2>/dev/null'
        told = (await self._link.run_in_session(ask, seconds=_QUICK_SECONDS)).text.strip()
        if told not in {"root", "0"}:
            raise HostRefusedError(
                "root_needed",
                "Installing the agent needs root: log in as root, or allow the SSH user `sudo -n` without a password.",
            )
        self._sudo = told == "0"

    async def _root(self, script: str) -> ScriptResult:
        """Run a script with install.sh's functions as root."""
        whole = f"{surveys.script('install.sh')}\n{script}"
        if self._sudo:
            # On standard input, so that the script doesn't appear in the process list.
            end = secrets.token_hex(8)
            whole = f"sudo -n /bin/sh -s <<'{end}'\n{whole}\n{end}"
        return await self._link.run_in_session(whole, seconds=_SLOW_SECONDS)

    async def _run_or_raise(self, *call: str) -> None:
        """Call a function of install.sh; its output on failure is the error sentence."""
        ran = await self._root(quote(*call))
        if ran.code:
            raise HostRefusedError("install_failed", _last(ran))

    async def _agent(self, build: str, *words: str, sent: str = "") -> ScriptResult:
        program = f"/opt/moorage-agent/{build}/moorage-agent"
        call = f"MOORAGE_AGENT_POLICY={POLICY} {quote(program, *words)} 2>&1"
        if sent:
            # printf is a shell builtin, so its arguments don't appear in the process list.
            call = f"printf '%s' {quote(sent)} | {call}"
        return await self._root(call)


_BY_PACKAGE = "The agent on this host came as a Debian package: upgrade or remove it there, with apt."


def _preflight_failures(told: Mapping[str, str], port: int) -> Sequence[tuple[bool, str, str]]:
    """Return the possible obstacles: whether each one applies, its code, its sentence."""
    machine = told.get("machine", "")
    try:
        off = abs(number_text(told.get("now") or "0", 0, LIMITS.int64) - time.time())
        room = number_text(told.get("room") or "0", 0, LIMITS.int64)
    except UntrustedError:
        raise HostRefusedError("host_strange", "The host says of itself what can't be.") from None
    return (
        ("package" in told, "installed_by_package", _BY_PACKAGE),
        ("systemd" not in told, "no_systemd", "The host isn't run by systemd, which the agent needs as its keeper."),
        (machine != "x86_64", "wrong_machine", f"The agent's bundle is made for x86_64, and the host is {machine}."),
        (
            room < _ROOM_KIB,
            "no_room",
            f"The host has {room >> 10} MiB free in /opt, and the agent needs {_ROOM_KIB >> 10}: free some space.",
        ),
        ("taken" in told, "port_taken", f"Another program listens on port {port} of the host: give another `port`."),
        (
            off > _CLOCK_SECONDS,
            "clock_off",
            "The clocks of host and controller are more than twelve hours apart: set the wrong one right.",
        ),
    )


def _pairs(text: str) -> Mapping[str, str]:
    return dict(line.partition(" ")[::2] for line in text.splitlines())


def _last(ran: ScriptResult) -> str:
    said = " ".join(ran.text.split())[-300:]
    return said or f"it ended with code {ran.code} and said nothing"
