"""Passwords: bcrypt as the guide has it, the whole password counts, and the event loop goes on meanwhile."""

import asyncio

import bcrypt
import pytest
from moorage_controller.auth.passwords import hash_password, verify_password

CHEAP = bcrypt.hashpw(b"right", bcrypt.gensalt(4)).decode()


async def test_a_hash_is_bcrypt_with_cost_12_and_verifies() -> None:
    made = await hash_password("pässword")
    assert made.startswith("$2b$12$")
    assert await verify_password("pässword", made)


@pytest.mark.parametrize(("password", "right"), [("right", True), ("wrong", False), ("", False), ("right\0", False)])
async def test_only_the_right_one_is_right(password: str, *, right: bool) -> None:
    assert await verify_password(password, CHEAP) is right


async def test_what_bcrypt_would_cut_off_counts() -> None:
    full = "x" * 72
    kept = bcrypt.hashpw(full.encode(), bcrypt.gensalt(4)).decode()
    assert await verify_password(full, kept)
    assert not await verify_password(full + "y", kept)
    assert not await verify_password("é" * 10_000, kept)


async def test_an_unknown_user_costs_a_comparison_too_and_the_loop_goes_on() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0.001)

    counting = asyncio.create_task(count())
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert not await verify_password("anything", None)
    elapsed = loop.time() - began
    counting.cancel()
    assert elapsed > 0.05, "a comparison with cost 12 can't be that quick"
    assert turns > 10
