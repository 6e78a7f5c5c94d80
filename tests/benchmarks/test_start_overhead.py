"""Overhead over Compose: the same app by REST and by hand, in turns, in one run. Prints ratios, asserts none."""

import statistics
import time
from collections.abc import Callable

from benchmark_figures import tell
from running_stack import SLEEPER, Stack

_ROUNDS = 7


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def test_start_and_stop_beside_bare_compose(stack: Stack) -> None:
    app_id = stack.make_app("measured", SLEEPER)
    bare = stack.apps / "bare"
    bare.mkdir()
    (bare / "compose.yaml").write_text(SLEEPER)
    took: dict[str, list[float]] = {name: [] for name in ("bare up", "start", "bare down", "stop")}
    for _ in range(_ROUNDS):
        took["bare up"].append(_seconds(lambda: stack.compose(bare, "up", "-d")))
        took["start"].append(_seconds(lambda: stack.api.post(f"/api/apps/{app_id}/start").expect(200)))
        took["bare down"].append(_seconds(lambda: stack.compose(bare, "down")))
        took["stop"].append(_seconds(lambda: stack.api.post(f"/api/apps/{app_id}/stop").expect(200)))
    median = {name: statistics.median(values) for name, values in took.items()}
    for ours, theirs in (("start", "bare up"), ("stop", "bare down")):
        ratio = median[ours] / median[theirs]
        tell(f"{ours}: {median[ours]:.3f} s, {theirs}: {median[theirs]:.3f} s, ratio {ratio:.2f}")
    assert all(len(values) == _ROUNDS for values in took.values())
