"""Malicious operation output from a host: wrong offsets, no end."""

from collections.abc import AsyncGenerator
from uuid import UUID

import pytest
from factories import World
from fakes import FakeHost, Plan, settle
from moorage_common.docker.states import OperationKind
from moorage_common.untrusted import LIMITS
from moorage_controller.errors import HostUnreachableError
from moorage_controller.hosts.transport import ContactLostError, End, HostRefusedError, Output

SQLITE_ONLY = "How far output is believed hangs on no database."


@pytest.mark.parametrize("shift", [-1, 1, 10**12, -(2**63)])
async def test_output_at_wrong_offset_is_rejected(
    world: World, host: FakeHost, timed_app_id: str, shift: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, asked = host.read, 0

    async def moved(operation_id: UUID, after: int) -> AsyncGenerator[Output | End, None]:
        nonlocal asked
        asked += 1
        async for item in honest(operation_id, after):
            odd = asked == 1 and isinstance(item, Output)
            yield Output(item.offset + shift, b"from elsewhere") if odd and isinstance(item, Output) else item

    monkeypatch.setattr(host, "read", moved)
    host.plans[OperationKind.UP] = Plan(output=b"honest\n")
    operation_id = await world.begin(timed_app_id)
    await world.clock.run(60)
    shown = (await world.user.get(f"/api/operations/{operation_id}")).expect(200)
    assert shown["state"] == "succeeded"
    assert shown["output"].endswith("\nhonest")
    assert "elsewhere" not in shown["output"]
    assert asked == 2


async def test_output_beyond_limit_is_omitted_with_notice(world: World, host: FakeHost, timed_app_id: str) -> None:
    host.plans[OperationKind.UP] = Plan(output=b"x" * (LIMITS.output - 5) + b"\nseen\nnot seen\n")
    (await world.user.post(f"/api/apps/{timed_app_id}/start")).expect(200)
    await settle()
    (operation, *_) = (await world.user.get(f"/api/operations?appId={timed_app_id}")).expect(200)
    shown = (await world.user.get(f"/api/operations/{operation['id']}")).expect(200)
    assert shown["state"] == "succeeded"
    assert shown["output"].endswith("[More than 64 MiB of output: the rest is left out.]")
    assert "not seen" not in shown["output"]


def test_host_sentences_are_cleaned_and_truncated_in_every_error() -> None:
    said = "it says: \x1b]52;c;aGFoYQ==\x07\x1b[31mred\u202e\n\x00" + "A" * 100_000
    errors = (ContactLostError(said), HostUnreachableError(said, "no \x1b code"), HostRefusedError("a\nb", said))
    for error in errors:
        assert str(error).startswith("it says: red A")
        assert len(str(error)) <= LIMITS.sentence
        assert error.code in {"host_unreachable", "host_refused"}
