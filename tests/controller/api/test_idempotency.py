"""Idempotency-Key: a repeated request creates nothing twice, whatever happens in between."""

import asyncio
import json
import uuid
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from factories import ADMIN, ENCRYPTION_KEY, PATH, Api, Reply, World
from moorage_controller.api.docs.details import DETAILS
from moorage_controller.api.http import middleware
from moorage_controller.api.routes import ROUTES
from moorage_controller.store.database.database import Database
from moorage_controller.store.database.encryption import Keyring
from moorage_controller.store.tables import idempotency as store
from moorage_controller.store.tables.users import by_name
from sqlalchemy.exc import OperationalError

CREATING = [route.path for route in ROUTES if route.creates]
SHOWN_ONCE = {"/api/tokens", "/api/servers/{id}/enrollment-token"}
SHOP = {"name": "Shop"}
HOURS = 3600.0


async def bodies(world: World) -> dict[str, dict[str, Any]]:
    project = (await world.admin.post("/api/projects", {"name": "Base"})).expect(201)
    return {
        "/api/servers": {"name": "web 1", "address": "192.0.2.1"},
        "/api/projects": SHOP,
        "/api/apps": {
            "name": "QMS",
            "projectId": project["id"],
            "serverId": await world.new_server(),
            "cdPath": PATH,
        },
        "/api/users": {"username": "anna", "password": "a very secret word"},
    }


async def count(world: World, path: str) -> int:
    return len((await world.admin.get(path)).expect(200))


async def create(caller: Api, key: str, body: object = None, path: str = "/api/projects") -> Reply:
    return await caller.post(path, SHOP if body is None else body, Idempotency_Key=key)


def test_creating_routes_honour_keys_except_those_returning_secrets() -> None:
    told = {path for (method, path), details in DETAILS.items() if (method, details.status) == ("POST", 201)}
    assert set(CREATING) == told - SHOWN_ONCE


@pytest.mark.parametrize("path", CREATING)
async def test_concurrent_and_later_repeats_create_once_and_share_reply(world: World, path: str) -> None:
    body = (await bodies(world))[path]
    before = await count(world, path)
    replies = list(await asyncio.gather(*(create(world.admin, "k", body, path) for _ in range(12))))
    replies.append(await create(world.admin, "k", body, path))
    await world.restart()
    replies.append(await create(world.admin, "k", body, path))
    assert {reply.status for reply in replies} == {201}
    assert len({reply.text for reply in replies}) == 1
    assert [reply.headers.get("Idempotency-Replayed") for reply in replies].count("true") == 13
    assert len({reply.headers["Content-Type"] for reply in replies}) == 1
    assert await count(world, path) == before + 1
    kind = path.rpartition("/")[2].removesuffix("s")
    made = [e for e in await world.audit("CREATE") if (e["resourceType"], e["resourceName"]) == (kind, _name(body))]
    assert len(made) == 1


def _name(body: dict[str, Any]) -> str:
    name: str = body.get("name") or body["username"]
    return name


async def test_first_reply_is_kept_after_change_and_removal_of_resource(world: World) -> None:
    first = await create(world.admin, "k")
    path = f"/api/projects/{first.expect(201)['id']}"
    (await world.admin.put(path, {"name": "Other"})).expect(200)
    assert (await create(world.admin, "k")).text == first.text
    (await world.admin.delete(path)).expect(200)
    assert (await create(world.admin, "k")).text == first.text
    assert await count(world, "/api/projects") == 0


async def test_different_request_with_same_key_is_refused(world: World) -> None:
    first = await create(world.admin, "k")
    for path, body in (
        ("/api/projects", {"name": "Another"}),
        ("/api/projects", {**SHOP, "description": None}),
        ("/api/servers", {"name": "Shop", "address": "192.0.2.1"}),
    ):
        refused = (await create(world.admin, "k", body, path)).expect(422, "idempotency_key_reused")
        assert [error["field"] for error in refused["errors"]] == ["Idempotency-Key"]
    assert (await count(world, "/api/projects"), await count(world, "/api/servers")) == (1, 0)
    assert (await create(world.admin, "k")).text == first.text


async def test_key_belongs_to_user_regardless_of_token(world: World) -> None:
    first = await create(world.admin, "k")
    token = (await world.admin.post("/api/tokens", {"name": "ci", "scopes": ["admin"]})).expect(201)["token"]
    assert (await create(Api(world.nobody.session, world.nobody.url, token), "k")).text == first.text
    anna = {"username": "anna", "password": "a very secret word", "role": "admin"}
    anna_id = (await world.admin.post("/api/users", anna)).expect(201)["id"]
    login = (await world.nobody.post("/api/auth/login", anna)).expect(200)
    second = await create(Api(world.nobody.session, world.nobody.url, login["token"]), "k")
    assert second.expect(201)["id"] != first.json["id"]
    (await create(world.user, "k")).expect(403, "forbidden")
    # Removal of a user deletes their keys, and keeps their resources.
    (await world.admin.delete(f"/api/users/{anna_id}")).expect(200)
    assert await count(world, "/api/projects") == 2


async def test_key_expires_after_24_hours(world: World) -> None:
    token = (await world.admin.post("/api/tokens", {"name": "ci", "scopes": ["admin"]})).expect(201)["token"]
    caller = Api(world.nobody.session, world.nobody.url, token)
    first = await create(caller, "k")
    world.clock.advance(24 * HOURS - 0.001)
    assert (await create(caller, "k")).text == first.text
    world.clock.advance(0.001)
    assert (await create(caller, "k", {"name": "Another"})).expect(201)["id"] != first.json["id"]


async def kept_reply(world: World) -> store.KeptReply | None:
    beside = world.database()
    try:
        async with beside.read() as connection:
            admin = await by_name(connection, ADMIN)
            assert admin is not None
            return await store.take(connection, admin.id, "k", world.clock.now())
    finally:
        await beside.close()


async def test_controller_crash_before_reply_creates_nothing_twice(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(_: object) -> None:
        raise RuntimeError("the process ends here")

    with monkeypatch.context() as patch:
        patch.setattr(middleware, "_respond", dies)
        (await create(world.admin, "k")).expect(500)
    await world.restart()
    again = await create(world.admin, "k")
    assert again.headers["Idempotency-Replayed"] == "true"
    (there,) = (await world.admin.get("/api/projects")).expect(200)
    assert again.expect(201) == there


async def test_failure_to_keep_reply_rolls_back_creation(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*_: object) -> None:
        raise OperationalError("INSERT", {}, OSError("disk full"))

    with monkeypatch.context() as patch:
        patch.setattr(store, "keep", fails)
        (await create(world.admin, "k")).expect(500)
    assert await count(world, "/api/projects") == 0
    assert "Idempotency-Replayed" not in (await create(world.admin, "k")).headers
    assert await count(world, "/api/projects") == 1


async def test_refusal_reply_is_not_kept(world: World) -> None:
    wanted = (await bodies(world))["/api/users"]
    other = (await world.admin.post("/api/users", wanted)).expect(201)
    (await create(world.admin, "k", wanted, "/api/users")).expect(409, "username_taken")
    (await create(world.admin, "k", {"username": ""}, "/api/users")).expect(422, "invalid_field")
    (await world.admin.delete(f"/api/users/{other['id']}")).expect(200)
    made = await create(world.admin, "k", wanted, "/api/users")
    assert made.expect(201)["id"] != other["id"]
    assert "Idempotency-Replayed" not in made.headers


@pytest.mark.parametrize("key", ["", " ", "a b", "x" * 256, "é", "a\tb", "a, b", "💥"], ids=lambda key: ascii(key)[:12])
async def test_malformed_key_is_refused(world: World, key: str) -> None:
    refused = (await create(world.admin, key)).expect(422, "invalid_field")
    assert [error["field"] for error in refused["errors"]] == ["Idempotency-Key"]
    assert await count(world, "/api/projects") == 0


@pytest.mark.parametrize("key", ["x" * 255, '"8e03978e-40d5-43dd-bc93-6894a57f9324"', "';DROP/**/TABLE--", "%00"])
async def test_any_other_key_is_accepted_verbatim(world: World, key: str) -> None:
    first = await create(world.admin, key)
    assert (await create(world.admin, key)).text == first.text
    other = "y" + key[1:]
    assert (await create(world.admin, other)).expect(201)["id"] != first.json["id"]
    assert await count(world, "/api/projects") == 2


async def test_repeated_key_header_is_refused(world: World) -> None:
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "b"), ("Authorization", f"Bearer {world.admin.token}")]
    async with world.nobody.session.post(f"{world.nobody.url}/api/projects", json=SHOP, headers=headers) as response:
        assert response.status == 422


async def test_secret_is_generated_again_and_never_kept(world: World) -> None:
    path = f"/api/servers/{await world.new_server()}/enrollment-token"
    for place, body in (("/api/tokens", {"name": "ci", "scopes": ["read"]}), (path, {})):
        first, second = [(await create(world.admin, "k", body, place)).expect(201)["token"] for _ in range(2)]
        assert first != second


async def test_database_holds_no_secret_of_a_request(world: World) -> None:
    body = (await bodies(world))["/api/users"]
    (await create(world.admin, "k", body, "/api/users")).expect(201)
    kept = await kept_reply(world)
    assert kept is not None
    assert body["password"] not in repr(kept)
    whole = b"POST\0/api/users\0" + json.dumps(body).encode()
    assert kept.fingerprint in Keyring([ENCRYPTION_KEY]).fingerprints(whole)
    # Another encryption key gives another fingerprint: it can't be computed from the request alone.
    assert kept.fingerprint not in Keyring(["another key of 32 characters or more"]).fingerprints(whole)


async def test_kept_replies_survive_encryption_key_change(world: World) -> None:
    first = await create(world.admin, "k")
    changes = {"encryption_key": "another key of 32 characters or more", "encryption_key_previous": ENCRYPTION_KEY}
    world.settings = world.settings.model_copy(update=changes)
    await world.restart()
    assert (await create(world.admin, "k")).text == first.text


async def test_expired_rows_are_deleted_with_next_kept_reply(database: Database) -> None:
    async with database.write() as connection:
        now = await database.now(connection)
        admin = await by_name(connection, ADMIN)
        assert admin is not None
        fresh = store.KeptReply(admin.id, "fresh", "f", "{}", now - store.KEPT_FOR + timedelta(microseconds=1))
        for kept in (fresh, replace(fresh, key="over", created_at=now - store.KEPT_FOR)):
            await store.keep(connection, kept)
        await store.keep(connection, replace(fresh, key=str(uuid.uuid4()), created_at=now))
        found = [await store.take(connection, admin.id, key, now - store.KEPT_FOR) for key in ("fresh", "over")]
    assert found == [fresh, None]


async def test_user_removed_during_request_has_no_kept_keys(database: Database) -> None:
    async with database.write() as connection:
        now, nobody = await database.now(connection), uuid.uuid4()
        await store.keep(connection, store.KeptReply(nobody, "k", "f", "{}", now))
        assert await store.take(connection, nobody, "k", now) is None
