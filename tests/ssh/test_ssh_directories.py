"""Queries of many paths on an SSH host, without a host."""

from moorage_common.untrusted import LIMITS
from moorage_controller.hosts.ssh.directories import Directories
from moorage_controller.hosts.ssh.session.shell import ScriptResult

_MANY = [f"/srv/app/{number}" for number in range(1000)]


async def test_query_of_many_paths_is_awaited_longer_than_it_may_take() -> None:
    """Otherwise a path that hangs would look like a lost host, and not like a directory that hangs."""
    limits = []

    async def run_in_shell(call: str, *, seconds: float = 20.0, limit: int = LIMITS.script) -> ScriptResult:
        del limit
        limits.append((float(call.split()[1]), seconds))
        return ScriptResult(0, b"\0".join([b"1 1", *(b"x" for _ in _MANY), b"whole", b""]))

    async def run_in_session(script: str, *, seconds: float, sent: bytes = b"", limit: int = 0) -> ScriptResult:
        raise AssertionError((script, seconds, sent, limit))

    directories = Directories(run_in_shell, run_in_session)
    assert len(await directories.real_paths(_MANY)) == len(_MANY)
    assert len((await directories.stamps({"/srv/app": _MANY}))["/srv/app"]) == len(_MANY)
    assert len(limits) == 2
    assert all(on_the_host > 20 and seconds > on_the_host for on_the_host, seconds in limits)
