"""API tokens: shown once, stored as a digest, limited to their user's rights, and cheap to verify."""

import asyncio
import re
import uuid
from typing import Any

import pytest
from factories import ADMIN, PASSWORD, PATH, USER, Api, World
from moorage_common.clock import to_millis
from moorage_controller.store.tables import api_tokens, users


async def make(world: World, caller: Api, *scopes: str, **fields: object) -> tuple[dict[str, Any], Api]:
    made: dict[str, Any] = (await caller.post("/api/tokens", {"name": "ci", "scopes": scopes, **fields})).expect(201)
    return made, Api(world.nobody.session, world.nobody.url, made["token"])


async def test_token_is_shown_once_listed_without_its_secret_and_revoked_once(world: World) -> None:
    expires = to_millis(world.clock.now()) + 3_600_000
    made, api = await make(world, world.user, "operate", "read", expiresAt=expires)
    assert made.keys() == {"id", "name", "scopes", "expiresAt", "lastUsedAt", "createdAt", "token"}
    assert (made["scopes"], made["expiresAt"]) == (["read", "operate"], expires)
    (listed,) = (await world.user.get("/api/tokens")).expect(200)
    assert listed == {k: v for k, v in made.items() if k != "token"}
    assert (await world.admin.get("/api/tokens")).expect(200) == [], "another user's"
    (await api.get("/api/auth/verify")).expect(200)
    (await world.user.delete(f"/api/tokens/{made['id']}")).expect(200)
    (await world.user.delete(f"/api/tokens/{made['id']}")).expect(404, "token_not_found")
    (await api.get("/api/auth/verify")).expect(401, "bad_token")
    log = await world.audit("TOKEN_CREATE", "TOKEN_REVOKE")
    assert {(e["action"], e["resourceType"], e["resourceName"]) for e in log} == {
        ("TOKEN_CREATE", "token", "ci"),
        ("TOKEN_REVOKE", "token", "ci"),
    }
    assert made["token"] not in repr(log)


async def test_database_does_not_hold_the_token_secret(world: World) -> None:
    made, _ = await make(world, world.admin, "admin")
    await world.stop()
    stored = await world.stored()
    assert {made["id"].encode(), uuid.UUID(made["id"]).hex.encode()} & set(re.findall(rb"[0-9a-f-]{32,36}", stored))
    assert made["token"].removeprefix("moorage_").encode() not in stored


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"scopes": []}, "scopes"),
        ({"scopes": ["root"]}, "scopes.0"),
        ({"scopes": "read"}, "scopes"),
        ({}, "scopes"),
        ({"scopes": ["read"], "name": " "}, "name"),
        ({"scopes": ["read"], "expiresAt": 1}, "expiresAt"),
        ({"scopes": ["read"], "expiresAt": True}, "expiresAt"),
        ({"scopes": ["read"], "expiresAt": 10**30}, "expiresAt"),
        ({"scopes": ["read", "admin"]}, "scopes"),
    ],
)
async def test_invalid_value_is_reported_by_its_field(world: World, body: dict[str, object], field: str) -> None:
    reply = (await world.user.post("/api/tokens", {"name": "ci", **body})).expect(422, "invalid_field")
    assert [error["field"] for error in reply["errors"]] == [field]


async def test_token_expires_to_the_millisecond_across_restart(world: World) -> None:
    _, api = await make(world, world.user, "read", expiresAt=to_millis(world.clock.now()) + 100_000)
    await world.restart()
    api = Api(world.nobody.session, world.nobody.url, api.token)
    world.clock.advance(99.999)
    (await api.get("/api/apps")).expect(200)
    world.clock.advance(0.001)
    (await api.get("/api/apps")).expect(401, "bad_token")


async def test_operate_token_of_admin_starts_apps_and_changes_only_timeouts(world: World) -> None:
    server_id, _ = await world.new_host()
    app_id = await world.new_app(server_id)
    _, api = await make(world, world.admin, "operate")
    (await api.post(f"/api/apps/{app_id}/start")).expect(200)
    (await api.post(f"/api/apps/{app_id}/stop")).expect(200)
    (await api.put(f"/api/apps/{app_id}", {"autoStopTimeout": 5})).expect(200)
    (await api.put(f"/api/apps/{app_id}", {"cdPath": PATH + "2"})).expect(403)
    (await api.post("/api/projects", {"name": "x"})).expect(403, "scope_missing")


async def test_token_cannot_create_tokens_or_change_passwords(world: World) -> None:
    _, api = await make(world, world.admin, "admin")
    (await api.post("/api/tokens", {"name": "x", "scopes": ["read"]})).expect(403, "login_needed")
    body = {"currentPassword": PASSWORD, "newPassword": "another one"}
    (await api.post("/api/auth/password", body)).expect(403, "login_needed")


async def test_token_of_admin_cannot_create_or_change_users(world: World) -> None:
    _, api = await make(world, world.admin, "admin")
    (row,) = [row for row in (await api.get("/api/users")).expect(200) if row["username"] == USER]
    made = {"username": "backdoor", "password": PASSWORD, "role": "admin"}
    (await api.post("/api/users", made)).expect(403, "login_needed")
    for change in ({"role": "admin"}, {"password": "another one"}, {"isActive": False}):
        (await api.put(f"/api/users/{row['id']}", change)).expect(403, "login_needed")
    (await api.delete(f"/api/users/{row['id']}")).expect(403, "login_needed")
    (token,) = (await world.admin.get("/api/tokens")).expect(200)
    (await api.delete(f"/api/tokens/{token['id']}")).expect(403, "login_needed")


async def test_admin_lists_and_revokes_tokens_of_other_user(world: World) -> None:
    made, api = await make(world, world.user, "read")
    me = (await world.user.get("/api/auth/verify")).json["user"]["id"]
    (await world.user.get(f"/api/users/{me}/tokens")).expect(403, "forbidden")
    (listed,) = (await world.admin.get(f"/api/users/{me}/tokens")).expect(200)
    assert listed == {k: v for k, v in made.items() if k != "token"}
    (await world.admin.get(f"/api/users/{uuid.uuid4()}/tokens")).expect(404, "user_not_found")
    other, _ = await make(world, world.admin, "read")
    (await world.user.delete(f"/api/tokens/{other['id']}")).expect(404, "token_not_found")
    (await world.admin.delete(f"/api/tokens/{made['id']}")).expect(200)
    (await api.get("/api/apps")).expect(401, "bad_token")
    (entry,) = await world.audit("TOKEN_REVOKE")
    assert (entry["username"], entry["resourceName"]) == (ADMIN, "ci")
    assert entry["data"] == {"owner": USER}


async def test_token_of_demoted_user_loses_rights_immediately(world: World) -> None:
    _, api = await make(world, world.admin, "admin")
    (await api.get("/api/users")).expect(200)
    database = world.database()
    async with database.write() as connection:
        found = await users.by_name(connection, ADMIN)
        assert found is not None
        await users.change(connection, found.id, {"role": "user"})
    await database.close()
    (await api.get("/api/users")).expect(403, "forbidden")
    (await api.post("/api/projects", {"name": "x"})).expect(403, "forbidden")
    (await api.get("/api/apps")).expect(200)


@pytest.mark.parametrize("keep", [None, True, False])
async def test_password_change_revokes_tokens_on_request(world: World, *, keep: bool | None) -> None:
    _, api = await make(world, world.user, "read")
    _, another_s = await make(world, world.admin, "read")
    body = {"currentPassword": PASSWORD, "newPassword": "another one", "keepTokens": keep}
    if keep is None:
        del body["keepTokens"]
    (await world.user.post("/api/auth/password", body)).expect(200)
    (await api.get("/api/apps")).expect(401 if keep is False else 200)
    (await another_s.get("/api/apps")).expect(200)
    (entry,) = await world.audit("PASSWORD_CHANGE")
    assert entry["data"] == {"sessionsEnded": 0} | ({"tokensRevoked": 1} if keep is False else {})


async def test_last_use_of_token_is_written_at_most_once_a_minute(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[object] = []
    plain = api_tokens.note_use

    async def counting(*args: Any) -> None:  # noqa: ANN401 - passed on
        writes.append(args)
        await plain(*args)

    monkeypatch.setattr(api_tokens, "note_use", counting)
    _, api = await make(world, world.user, "read")
    first = to_millis(world.clock.now())
    for _ in range(3):
        await asyncio.gather(*(api.get("/api/apps") for _ in range(10)))
        world.clock.advance(19)
    assert len(writes) == 1
    (listed,) = (await world.user.get("/api/tokens")).expect(200)
    assert listed["lastUsedAt"] == first
    world.clock.advance(3)
    (await api.get("/api/apps")).expect(200)
    assert len(writes) == 2
