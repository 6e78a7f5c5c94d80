"""Check of an app's compose files against the host's policy, over SSH."""

from collections.abc import Mapping, Sequence

from moorage_common.compose.command import clean_environment
from moorage_common.compose.files import Ask, Found, Kind, Walk, Walked, walk_app
from moorage_common.compose.rules import EVERYWHERE, Rules, parse_rules
from moorage_common.compose.variables import Variables
from moorage_common.compose.yaml_nodes import FILE_BYTES
from moorage_common.untrusted import LIMITS

from moorage_controller.hosts.ssh.session.host_session import HostSession
from moorage_controller.hosts.ssh.session.shell import quote
from moorage_controller.hosts.transport import ContactLostError, HostRefusedError

_ROOM_BYTES = 4 << 20
_WALK_SECONDS = 8
_SET_BY_SUDO = (
    *("COLORS", "DISPLAY", "HOSTNAME", "KRB5CCNAME", "LOGNAME", "LS_COLORS", "MAIL", "PS1", "PS2", "SHELL"),
    *("SUDO_COMMAND", "SUDO_GID", "SUDO_HOME", "SUDO_TTY", "SUDO_UID", "SUDO_USER", "TERM", "TZ", "USER", "XAUTHORITY"),
)


async def rules_of(link: HostSession) -> Rules:
    """Return the rules of the host's policy, symbolic links resolved. Raises ContactLostError, HostRefusedError.

    Without a policy or without roots in it, the file permissions of the SSH user decide where apps may be.
    """
    try:
        listed = parse_rules(link.survey.policy)
        real = await link.directories.real_paths(listed.listed)
    except ValueError:
        raise HostRefusedError(
            "policy_unreadable", "The agent's policy on the host is not what such a file can be: mend it there."
        ) from None
    resolved = listed.resolved(real)
    return (
        resolved
        if resolved.roots
        else Rules(EVERYWHERE, resolved.paths, resolved.providers, remote=resolved.remote, binds=resolved.binds)
    )


async def check_files(link: HostSession, real: str, rules: Rules, compose_files: Sequence[str] = ()) -> Walked:
    """Check the compose files of an app. Raises ContactLostError, HostRefusedError."""
    clean = clean_environment(real, link.survey.environment)
    variables = Variables(clean)
    if link.survey.by_sudo:
        # sudo sets its own environment.
        variables = Variables({}, [*clean, *_SET_BY_SUDO])
    return await run_walk(link, real, walk_app(real, variables, clean["HOME"], rules, compose_files))


async def run_walk(link: HostSession, real: str, walk: Walk) -> Walked:
    """Run a check of the files of the app in a real directory. Raises ContactLostError, HostRefusedError."""
    try:
        asks = next(walk)
        while True:
            asks = walk.send(await _read_paths(link, real, asks))
    except StopIteration as ended:
        walked: Walked = ended.value
        return walked


async def _read_paths(link: HostSession, real: str, asks: Sequence[Ask]) -> Mapping[str, Found]:
    words = [word for ask in asks for word in ("r" if ask.content else "s", ask.path)]
    call = f"mo_read_paths {FILE_BYTES + 1} {_ROOM_BYTES} {quote(*words)}"
    told = await link.directories.ask(real, call, seconds=_WALK_SECONDS, limit=LIMITS.script_config)
    if len(told) != 3 * len(asks):
        raise ContactLostError("The host's shell broke off while it looked at an app's files.")
    found = zip(asks, told[::3], told[1::3], told[2::3], strict=True)
    return {ask.path: _found(link, ask, kind, real, content) for ask, kind, real, content in found}


def _found(link: HostSession, ask: Ask, kind: str, real: str, content: str) -> Found:
    match kind:
        case "file":
            return Found(Kind.FILE, real, content.encode(errors="surrogateescape") if ask.content else None)
        case "barred":
            # With sudo, Compose may read a file that this user can't, so the file remains unchecked.
            return Found(Kind.OTHER if link.survey.by_sudo else Kind.FILE, real)
        case "directory" | "nothing":
            return Found(Kind(kind), real)
        case _:
            return Found(Kind.OTHER, real)
