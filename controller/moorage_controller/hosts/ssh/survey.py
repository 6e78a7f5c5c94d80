"""Survey of a host, once per connection; each problem is one sentence."""

import functools
import importlib.resources
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moorage_common.journal.disk_room import Room, full_problem, room_problem
from moorage_common.untrusted import LIMITS, UntrustedError, clean_line, key_path, number_text

from moorage_controller.errors import HostUnreachableError
from moorage_controller.hosts.ssh.session.shell import NO_SHELL, TOO_FEW_SESSIONS, ScriptError, ScriptResult

_TOLD_BYTES = 200
_TOLD = frozenset({"endpoint", "missing", "machine", "root", "bin", "home", "docker", "docker_config", "uptime"})


@dataclass(frozen=True, slots=True)
class HostFacts:
    """A host's facts, as seen by its SSH user.

    `root` is the folder of the journal, `bin` that of uploads. `docker` is the start of Docker's command line (`docker`
    or `sudo -n docker`). `socket` is the Engine's socket if this user may open it, else empty. `engine_problem` is the
    reason why neither works. `state_problem` is the reason why nothing can be started.
    """

    machine: str
    root: str
    bin: str
    docker: tuple[str, ...]
    socket: str
    environment: Mapping[str, str]
    booted: float
    engine_problem: str = ""
    state_problem: str = ""
    noexec: bool = False
    """Whether programs in `bin` can't be executed."""
    policy: str = ""
    """The content of an agent's policy file, empty if there is none."""

    @property
    def uptime(self) -> int:
        """Seconds since the host's boot, now."""
        return int(time.monotonic() - self.booted)

    @property
    def problem(self) -> str:
        """The host's problem, empty for none."""
        return self.engine_problem or self.state_problem

    @property
    def by_sudo(self) -> bool:
        """Whether this user can use Docker only through sudo."""
        return len(self.docker) > 1


@functools.cache
def script(name: str) -> str:
    """Return the text of a script in this package."""
    return importlib.resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def read(ran: ScriptResult, username: str) -> HostFacts:
    """Parse the output of survey.sh. Raises HostUnreachableError for an unusable host."""
    told = dict(field.partition("=")[::2] for field in ran.fields)
    if not told.keys() >= _TOLD:
        raise HostUnreachableError("The host's shell broke off when it was asked what there is.", "host_strange")
    try:
        uptime = number_text(told["uptime"], 0, LIMITS.int32)
        root, folder = key_path(told["root"]), key_path(told["bin"])
    except UntrustedError:
        raise HostUnreachableError("The host says of itself what can't be.", "host_strange") from None
    if told["missing"]:
        raise HostUnreachableError(
            f"The host lacks what an operation needs ({', '.join(told['missing'].split())}): install it there "
            "(Debian's packages coreutils, util-linux and findutils).",
            "host_tools_missing",
        )
    endpoint, access = told["endpoint"], told.get("access", "")
    socket = endpoint.removeprefix("unix://") if access == "direct" else ""
    environment = {"HOME": told["home"], "DOCKER_CONFIG": told["docker_config"], "DOCKER_HOST": endpoint}
    return HostFacts(
        machine=clean_line(told["machine"], LIMITS.word),
        root=root,
        bin=folder,
        docker=("sudo", "-n", "docker") if access == "sudo" else ("docker",),
        socket=socket,
        environment={name: value for name, value in environment.items() if value},
        booted=time.monotonic() - uptime,
        engine_problem="" if access and told["docker"] else _why_no_engine(told, username),
        state_problem=_why_no_state(told),
        noexec="noexec" in told,
        policy=told.get("policy", ""),
    )


def no_shell(error: ScriptError, username: str) -> HostUnreachableError:
    """Return the error for a host whose login shell doesn't run `/bin/sh`."""
    said = " ".join(error.output.split())[:_TOLD_BYTES]
    if "assword change required" in said or "assword has expired" in said:
        return HostUnreachableError(
            f"The password of the SSH user {username} has expired: set a new one on the host, and store it here.",
            "password_expired",
        )
    reason = f"it says: {said}" if said else "it says nothing"
    return HostUnreachableError(
        f"The SSH user {username} can't run commands on the host ({reason}): give it a login shell such as /bin/sh, "
        "and neither a ForceCommand in sshd_config nor a command= in authorized_keys.",
        NO_SHELL,
    )


def too_few_sessions() -> HostUnreachableError:
    """Return the error for a host that allows no session besides that of the Engine's events."""
    return HostUnreachableError(
        "The SSH server allows one session at a time, and no way to Docker's socket beside it: in its sshd_config "
        "allow AllowStreamLocalForwarding (and no DisableForwarding), or set MaxSessions to 2 or more.",
        TOO_FEW_SESSIONS,
    )


def read_room(fields: Sequence[str], survey: HostFacts) -> str:
    """Parse the output of `mo_room`; return one sentence if the disk is not writable or nearly full, else empty."""
    said, left = [*fields, "", ""][:2]
    if said:
        reason = clean_line(said.splitlines()[0].rpartition(": ")[2], LIMITS.word)
        return survey.state_problem or full_problem(survey.root, reason)
    try:
        free, block, blocks, free_files, files = (number_text(word, 0, LIMITS.int64) for word in left.split())
    except ValueError:
        return ""  # a `stat` without this information
    return room_problem(survey.root, Room(free * block, blocks * block, free_files, files))


def _why_no_engine(told: Mapping[str, str], username: str) -> str:
    endpoint = told["endpoint"]
    if not told["docker"] and not told.get("socket"):
        return "There is no Docker on the host: install Docker Engine there."
    if not told["docker"]:
        return "There is no docker command on the host: install Docker's client there."
    if told.get("socket"):
        said = told.get("sudo_said", "")
        if "password" in said or "not allowed" in said or "may not run" in said or not said:
            return (
                f"The SSH user {username} may not use Docker: add it to the group that owns "
                f"{endpoint.removeprefix('unix://')}, or allow it `sudo -n docker`."
            )
        said = " ".join(said.split())[:_TOLD_BYTES]
        return f"The SSH user {username} may use Docker by sudo alone, which says: {said} See on the host that it runs."
    if not endpoint.startswith("unix://"):
        return f"Docker on the host talks to {endpoint}: only an Engine on the host itself can be used."
    return f"The Docker Engine at {endpoint} doesn't answer: see on the host that it runs."


def _why_no_state(told: Mapping[str, str]) -> str:
    if told.get("journal_problem"):
        return (
            f"The SSH user can't write in the journal of the host's agent, {told['root']}: add it to the group that "
            "owns Docker's socket, so that both know what the other does."
        )
    problem = told.get("state_problem", "")
    if not problem:
        return ""
    if "No space left" in problem or "uota exceeded" in problem:
        return f"The disk of the host is full: free space under {told['root']}."
    return f"The SSH user can't write in {told['root']} on the host: make it a home directory that it can write."
