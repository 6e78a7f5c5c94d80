"""Passwords: bcrypt as in docs/guide.md, over the whole password, without blocking the event loop."""

import asyncio
from collections.abc import AsyncIterator

import bcrypt
import pytest
from moorage_controller.auth.line import Place
from moorage_controller.auth.passwords import Passwords

CHEAP = bcrypt.hashpw(b"right", bcrypt.gensalt(4)).decode()
PLACE = Place("test", known=False)


@pytest.fixture
async def passwords() -> AsyncIterator[Passwords]:
    """Return the password hasher."""
    made = Passwords()
    yield made
    await made.aclose()


async def test_hash_is_bcrypt_with_cost_12_and_verifies(passwords: Passwords) -> None:
    made = await passwords.hash("pässword", PLACE)
    assert made.startswith("$2b$12$")
    assert await passwords.verify("pässword", made, PLACE)


@pytest.mark.parametrize(("password", "right"), [("right", True), ("wrong", False), ("", False), ("right\0", False)])
async def test_only_the_exact_password_verifies(passwords: Passwords, password: str, *, right: bool) -> None:
    assert await passwords.verify(password, CHEAP, PLACE) is right


async def test_password_beyond_72_bytes_is_not_truncated(passwords: Passwords) -> None:
    full = "x" * 72
    kept = bcrypt.hashpw(full.encode(), bcrypt.gensalt(4)).decode()
    assert await passwords.verify(full, kept, PLACE)
    assert not await passwords.verify(full + "y", kept, PLACE)
    assert not await passwords.verify("é" * 10_000, kept, PLACE)


async def test_unknown_user_costs_a_comparison_without_blocking_loop(passwords: Passwords) -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0.001)

    counting = asyncio.create_task(count())
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert not await passwords.verify("anything", None, PLACE)
    elapsed = loop.time() - began
    counting.cancel()
    assert elapsed > 0.05, "a comparison with cost 12 can't be that quick"
    assert turns > 10
