"""Cost of SSH: a fresh connection, a pooled one, and a start beside bare Compose, in turns, in one run."""

import asyncio
import statistics
import time

from benchmark_figures import make_ssh_app, tell
from moorage_lab.programs.sshd import PrivateSshd
from running_stack import SLEEPER, Stack
from transport_rigs import SshDesk

_ROUNDS = 7


def _print_figures(name: str, seconds: list[float], beside: str = "", other: list[float] | None = None) -> None:
    median = statistics.median(seconds)
    told = f"{name}: {median * 1000:.1f} ms"
    if other is not None:
        told += f", {beside}: {statistics.median(other) * 1000:.1f} ms, ratio {median / statistics.median(other):.2f}"
    tell(told)


async def test_fresh_connection_beside_pooled_one(sshd: PrivateSshd) -> None:
    pooled_desk = SshDesk(sshd)
    pooled = pooled_desk.transport()
    await pooled.info()
    took: dict[str, list[float]] = {"fresh": [], "pooled": []}
    for _ in range(_ROUNDS):
        desk = SshDesk(sshd)
        for name, transport in (("fresh", desk.transport()), ("pooled", pooled)):
            began = time.perf_counter()
            await transport.connect()
            took[name].append(time.perf_counter() - began)
        await desk.pool.close()
    await pooled_desk.pool.close()
    _print_figures("a command over a fresh connection", took["fresh"], "over a pooled one", took["pooled"])
    assert len(took["fresh"]) == _ROUNDS


async def test_start_over_ssh_beside_bare_compose(stack: Stack, sshd: PrivateSshd) -> None:
    app_id = await asyncio.to_thread(make_ssh_app, stack, sshd)
    bare = stack.apps / "bare-beside-ssh"
    bare.mkdir()
    (bare / "compose.yaml").write_text(SLEEPER)
    took: dict[str, list[float]] = {"start": [], "bare": []}
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        await asyncio.to_thread(stack.compose, bare, "up", "-d")
        took["bare"].append(time.perf_counter() - began)
        began = time.perf_counter()
        (await asyncio.to_thread(stack.api.post, f"/api/apps/{app_id}/start")).expect(200)
        took["start"].append(time.perf_counter() - began)
        await asyncio.to_thread(stack.compose, bare, "down")
        (await asyncio.to_thread(stack.api.post, f"/api/apps/{app_id}/stop")).expect(200)
    _print_figures("a start over SSH", took["start"], "bare up", took["bare"])
    assert len(took["start"]) == _ROUNDS
