"""Rate limits: guessing slows down, nobody can lock out another user, and ordinary requests write nothing."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import bcrypt
import pytest
from factories import ADMIN, PASSWORD, USER, Reply, World, user_row
from fakes import FakeClock
from moorage_controller.auth import passwords
from moorage_controller.auth.passwords import Passwords
from moorage_controller.auth.rate_limit import Budget, network
from moorage_controller.auth.roles import Origin
from moorage_controller.errors import NotAuthenticatedError, TooManyRequestsError
from moorage_controller.services.accounts.api_tokens import ApiTokens
from moorage_controller.services.accounts.login_limits import delay
from moorage_controller.services.accounts.users import Users
from moorage_controller.settings import Settings
from moorage_controller.store.database.database import Database


@pytest.fixture
def cheap_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the expensive comparison for unknown names: these tests only count the comparisons."""
    monkeypatch.setattr(passwords, "_DUMMY", user_row("nobody").password_hash.encode())


async def guess(world: World, username: str = ADMIN, password: str = "wrong") -> Reply:  # noqa: S107 - a guess
    return await world.nobody.post("/api/auth/login", {"username": username, "password": password})


@pytest.fixture
async def users(database: Database) -> AsyncIterator[Users]:
    """Return the login service, without a controller."""
    passwords = Passwords()
    yield Users(database, "s" * 32, ApiTokens(database), passwords)
    await passwords.aclose()


async def outcome(users: Users, username: str, address: str, password: str = "wrong") -> str:  # noqa: S107 - a guess
    try:
        await users.login(username, password, Origin(address))
    except NotAuthenticatedError:
        return "wrong"
    except TooManyRequestsError as error:
        return f"wait {error.retry_after}"
    return "in"


@pytest.mark.usefixtures("cheap_names")
@pytest.mark.parametrize("username", [ADMIN, "nobody at all"])
async def test_login_delay_is_equal_for_known_and_unknown_names(world: World, username: str) -> None:
    waits = []
    for _ in range(5):
        (await guess(world, username)).expect(401, "bad_credentials")
    for _ in range(8):
        reply = await guess(world, username, PASSWORD)
        reply.expect(429, "too_many_requests")
        waits.append(int(reply.headers["Retry-After"]))
        world.clock.advance(waits[-1])
        (await guess(world, username)).expect(401, "bad_credentials")
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]


async def test_login_count_resets_after_success_or_15_minutes(world: World) -> None:
    for _ in range(5):
        (await guess(world)).expect(401)
    world.clock.advance(1)
    (await guess(world, password=PASSWORD)).expect(200)
    for _ in range(5):
        (await guess(world)).expect(401)
    (await guess(world)).expect(429)
    world.clock.advance(15 * 60)
    for _ in range(5):
        (await guess(world)).expect(401)


async def test_login_count_survives_restart(world: World) -> None:
    for _ in range(8):
        await guess(world)
        world.clock.advance(4)
    await guess(world)
    await world.restart()
    (await guess(world)).expect(429)


async def test_concurrent_guesses_are_limited_like_sequential_ones(world: World) -> None:
    replies = await asyncio.gather(*(guess(world) for _ in range(20)), guess(world, password=PASSWORD))
    told = [reply.status for reply in replies]
    # The right password resets the count, if its turn comes in time.
    assert told.count(401) <= 5 * (1 + told.count(200))
    assert set(told) <= {401, 429, 200}


async def test_guesses_from_other_addresses_do_not_lock_out_owner(users: Users, clock: FakeClock) -> None:
    assert await outcome(users, ADMIN, "192.0.2.1", PASSWORD) == "in"
    found = [await outcome(users, ADMIN, f"198.51.100.{i}") for i in range(60)]
    assert found == ["wrong"] * 50 + ["wait 1"] * 10
    assert await outcome(users, ADMIN, "192.0.2.1", PASSWORD) == "in", "an address he is known from"
    assert await outcome(users, ADMIN, "192.0.2.2", PASSWORD) == "wait 1", "a new one"
    assert await outcome(users, USER, "192.0.2.2", PASSWORD) == "in", "another account"
    clock.advance(1)
    assert await outcome(users, ADMIN, "192.0.2.2", PASSWORD) == "in"


@pytest.mark.usefixtures("cheap_names")
async def test_address_limit_covers_all_names_and_is_not_reset_by_success(users: Users) -> None:
    for i in range(50):
        if i == 25:
            assert await outcome(users, USER, "192.0.2.9", PASSWORD) == "in"
        assert await outcome(users, f"name{i}", f"2001:db8::{i:x}") == "wrong"
        assert await outcome(users, f"other{i}", "192.0.2.9") == "wrong"
    assert await outcome(users, "another", "192.0.2.9") == "wait 1"
    assert await outcome(users, "another", "2001:db8::ffff:1") == "wait 1", "the same /64"
    assert await outcome(users, "another", "2001:db8:0:1::1") == "wrong"


@pytest.mark.usefixtures("cheap_names")
async def test_address_limit_covers_networks_of_one_ipv6_customer(users: Users) -> None:
    assert await outcome(users, USER, "2001:db8:0:2::1", PASSWORD) == "in"
    assert {await outcome(users, f"a{i}", f"2001:db8:0:{i:x}::1") for i in range(100)} == {"wrong"}
    assert await outcome(users, "another", "2001:db8:0:ff::1") == "wait 1", "the same /56"
    assert {await outcome(users, f"b{i}", f"2001:db8:0:{i:x}00::1") for i in range(1, 101)} == {"wrong"}
    assert await outcome(users, "another", "2001:db8:0:fe00::1") == "wait 1", "the same /48"
    assert await outcome(users, USER, "2001:db8:0:2::1", PASSWORD) == "in", "an address he is known from"
    assert await outcome(users, "another", "2001:db8:1::1") == "wrong", "another customer"


async def test_unknown_and_inactive_user_cost_the_same_comparison(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {"username": "gone", "password": PASSWORD, "isActive": False}
    (await world.admin.post("/api/users", made)).expect(201)
    compared: list[bytes] = []
    plain = bcrypt.checkpw

    def counting(password: bytes, hashed: bytes) -> bool:
        compared.append(hashed)
        return plain(password, hashed)

    monkeypatch.setattr(bcrypt, "checkpw", counting)
    for username in (ADMIN, "nobody at all", "gone"):
        (await guess(world, username)).expect(401, "bad_credentials")
    assert len(compared) == 3
    assert all(hashed.startswith(b"$2b$12$") for hashed in compared[1:])


@pytest.fixture
async def limited_world(settings: Settings) -> AsyncIterator[World]:
    """Return a controller with the default limit."""
    world = World(settings.model_copy(update={"rate_limit_per_minute": Settings().rate_limit_per_minute}))
    try:
        yield await world.start()
    finally:
        await world.close()


async def test_general_limit_is_600_requests_per_minute_and_user(limited_world: World) -> None:
    world = limited_world
    for _ in range(60):
        replies = await asyncio.gather(*(world.user.get("/api/auth/verify") for _ in range(10)))
        assert {reply.status for reply in replies} == {200}
    limited = await world.user.get("/api/auth/verify")
    limited.expect(429, "too_many_requests")
    assert limited.headers["Retry-After"] == "1"
    (await world.admin.get("/api/auth/verify")).expect(200)
    (await world.nobody.get("/healthz")).expect(200)
    world.clock.advance(0.1)
    (await world.user.get("/api/auth/verify")).expect(200)


@pytest.mark.usefixtures("cheap_names")
async def test_sign_in_counts_against_its_address(limited_world: World) -> None:
    world = limited_world
    replies = [await guess(world, f"name{i}") for i in range(40)]
    assert {reply.status for reply in replies} == {401}
    for _ in range(18):
        await world.nobody.post("/api/auth/login", {})
    (await world.nobody.post("/api/auth/login", {})).expect(429, "too_many_requests")


def test_budget_refills_evenly_and_drops_idle_keys() -> None:
    clock = FakeClock()
    budget = Budget(60, clock)
    assert [budget.take("a") for _ in range(62)] == [0] * 60 + [1, 1]
    clock.advance(2)
    assert [budget.take("a") for _ in range(3)] == [0, 0, 1]
    clock.advance(120)
    for i in range(10_001):
        budget.take(str(i))
    assert len(budget._due) <= 10_001
    assert all(Budget(0, clock).take("a") == 0 for _ in range(1000))


def test_delays_double_up_to_a_minute() -> None:
    assert [delay(n, 5) for n in (0, 4, 5, 6, 10, 11, 10**9)] == [0, 0, 1, 2, 32, 60, 60]


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("fe80::1%\x1b]0;x", "fe80::/64"),
        (None, "unknown"),
        ("unix", "unix"),
    ],
)
def test_address_is_reduced_to_its_network(address: str | None, counted: str) -> None:
    assert network(address) == counted


async def test_ordinary_request_writes_nothing_to_database(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[object] = []
    plain = Database.write

    def counting(self: Database) -> Any:  # noqa: ANN401 - a context manager
        begun.append(self)
        return plain(self)

    monkeypatch.setattr(Database, "write", counting)
    for path in ("apps", "servers", "projects", "operations", "users", "tokens", "auth/verify"):
        (await world.admin.get(f"/api/{path}")).expect(200)
    assert begun == []
