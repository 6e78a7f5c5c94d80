"""User management by admins: fields, revocation of tokens, and the last admin."""

import asyncio
import re
import uuid
from typing import Any

import pytest
from factories import ADMIN, PASSWORD, USER, Api, World
from moorage_controller.store.tables import users as store
from moorage_lab.waiting import eventually_async

NEW = {"username": "anna", "password": "long enough"}


async def login(world: World, username: str, password: str = PASSWORD) -> Api:
    body = {"username": username, "password": password}
    reply = (await world.nobody.post("/api/auth/login", body)).expect(200)
    return Api(world.nobody.session, world.nobody.url, reply["token"])


async def user_id(world: World, username: str) -> str:
    found: list[str] = [u["id"] for u in (await world.admin.get("/api/users")).expect(200) if u["username"] == username]
    return found[0]


async def token_of(world: World, caller: Api) -> Api:
    made = (await caller.post("/api/tokens", {"name": "ci", "scopes": ["read"]})).expect(201)
    return Api(world.nobody.session, world.nobody.url, made["token"])


async def test_user_is_created_shown_updated_and_removed(world: World) -> None:
    body = {**NEW, "email": "anna@example.com", "fullName": "Anna B", "role": "admin"}
    made = (await world.admin.post("/api/users", body)).expect(201)
    fields = "id username email fullName role isActive lastLoginAt createdAt updatedAt"
    assert made.keys() == set(fields.split())
    assert (made["username"], made["role"], made["isActive"], made["lastLoginAt"]) == ("anna", "admin", True, None)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", made["createdAt"])
    await login(world, "anna", NEW["password"])
    path = f"/api/users/{made['id']}"
    changed = (await world.admin.put(path, {"email": "", "username": "anna2", "isActive": None})).expect(200)
    assert (changed["email"], changed["username"], changed["fullName"]) == (None, "anna2", "Anna B")
    assert changed["lastLoginAt"] == made["createdAt"]
    assert [u["username"] for u in (await world.admin.get("/api/users")).expect(200)] == [ADMIN, "anna2", USER]
    assert (await world.admin.get(path)).expect(200) == changed
    assert (await world.admin.delete(path)).expect(200)["success"] is True
    (await world.admin.get(path)).expect(404, "user_not_found")
    (await world.admin.delete(path)).expect(404, "user_not_found")
    (await world.admin.put(path, {})).expect(404, "user_not_found")
    log = await world.audit("CREATE", "UPDATE", "DELETE")
    assert {(e["action"], e["resourceName"]) for e in log} == {
        ("CREATE", "anna"),
        ("UPDATE", "anna2"),
        ("DELETE", "anna2"),
    }
    update = next(e for e in log if e["action"] == "UPDATE")
    assert update["data"] == {"changed": ["email", "username"], "sessionsEnded": 0, "tokensRevoked": 0}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"password": "7 chars"}, "password"),
        ({"password": "é" * 37}, "password"),
        ({"password": "x" * 73}, "password"),
        ({"password": None}, "password"),
        ({"username": "  "}, "username"),
        ({"username": "x" * 256}, "username"),
        ({"email": "nobody"}, "email"),
        ({"role": "root"}, "role"),
        ({"isActive": "perhaps"}, "isActive"),
    ],
)
async def test_invalid_user_value_is_reported_by_its_field(world: World, changes: dict[str, Any], field: str) -> None:
    body = (await world.admin.post("/api/users", NEW | changes)).expect(422, "invalid_field")
    assert [error["field"] for error in body["errors"]] == [field]


async def test_password_of_8_characters_to_72_bytes_is_accepted(world: World) -> None:
    for name, password in (("a", "        "), ("b", "é" * 36), ("c", "x" * 72), ("d", "12345678")):
        (await world.admin.post("/api/users", {"username": name, "password": password})).expect(201)
        await login(world, name, password)


async def test_taken_user_name_is_refused_under_concurrency(world: World) -> None:
    (await world.admin.post("/api/users", {**NEW, "username": USER})).expect(409, "username_taken")
    replies = await asyncio.gather(*(world.admin.post("/api/users", NEW) for _ in range(4)))
    assert sorted(reply.status for reply in replies) == [201, 409, 409, 409]
    (await world.admin.put(f"/api/users/{await user_id(world, USER)}", {"username": ADMIN})).expect(
        409, "username_taken"
    )


@pytest.mark.parametrize(
    ("changes", "api_token_dies"),
    [
        (None, True),
        ({"isActive": False}, True),
        ({"role": "user"}, True),
        ({"password": "another one"}, True),
        ({"fullName": "Anna B"}, None),
    ],
    ids=["deleted", "deactivated", "demoted", "new password", "renamed"],
)
async def test_revoking_user_change_ends_tokens_immediately_and_finally(
    world: World, changes: dict[str, Any] | None, api_token_dies: object
) -> None:
    made = (await world.admin.post("/api/users", {**NEW, "role": "admin"})).expect(201)
    session = await login(world, "anna", NEW["password"])
    token = await token_of(world, session)
    path = f"/api/users/{made['id']}"
    reply = await (world.admin.delete(path) if changes is None else world.admin.put(path, changes))
    reply.expect(200)
    for api in (session, token):
        (await api.get("/api/auth/verify")).expect(401 if api_token_dies else 200)
    if changes is not None and api_token_dies:
        (await world.admin.put(path, {"isActive": True, "role": "admin"})).expect(200)
        for api in (session, token):
            (await api.get("/api/auth/verify")).expect(401, "bad_token")


async def test_promotion_requires_new_login_and_keeps_api_tokens(world: World) -> None:
    token = await token_of(world, world.user)
    (await world.admin.put(f"/api/users/{await user_id(world, USER)}", {"role": "admin"})).expect(200)
    (await world.user.get("/api/auth/verify")).expect(401, "bad_token")
    assert (await token.get("/api/auth/verify")).expect(200)["user"]["role"] == "admin"


async def test_last_active_admin_cannot_be_removed(world: World) -> None:
    path = f"/api/users/{await user_id(world, ADMIN)}"
    (await world.admin.post("/api/users", {**NEW, "role": "admin", "isActive": False})).expect(201)
    for changes in ({"role": "user"}, {"isActive": False}):
        (await world.admin.put(path, changes)).expect(409, "last_admin")
    (await world.admin.delete(path)).expect(409, "last_admin")
    (await world.admin.put(path, {"role": "admin", "isActive": True, "fullName": "x"})).expect(200)


async def test_admins_removing_each_other_concurrently_leave_one(world: World) -> None:
    for turn, changes in enumerate(({"role": "user"}, {"isActive": False}, None)):
        name = f"admin{turn}"
        other = (await world.admin.post("/api/users", {**NEW, "username": name, "role": "admin"})).expect(201)
        second = await login(world, name, NEW["password"])
        first_path, second_path = f"/api/users/{await user_id(world, ADMIN)}", f"/api/users/{other['id']}"
        calls = [(world.admin, second_path), (second, first_path)]
        replies = await asyncio.gather(
            *(api.delete(path) if changes is None else api.put(path, changes) for api, path in calls)
        )
        assert sorted(reply.status for reply in replies) in ([200, 401], [200, 409]), [r.text for r in replies]
        database = world.database()
        async with database.write() as connection:
            assert len(await store.active_admins(connection)) == 1
            found = await store.by_name(connection, ADMIN)
            await store.remove(connection, uuid.UUID(other["id"]))
            if found is not None:
                await store.change(connection, found.id, {"role": "admin", "is_active": True})
        await database.close()
        if found is None:
            return
        world.admin = await login(world, ADMIN)


async def test_entries_and_operations_outlive_their_user(world: World) -> None:
    server_id, _ = await world.new_host()
    app_id = await world.new_app(server_id)
    (await world.user.post(f"/api/apps/{app_id}/start")).expect(200)
    (await world.admin.delete(f"/api/users/{await user_id(world, USER)}")).expect(200)
    (started,) = await world.audit("START")
    assert (started["userId"], started["username"]) == (None, USER)
    (operation,) = (await world.admin.get("/api/operations")).expect(200)
    assert operation["actor"] == USER


async def test_start_succeeds_despite_removal_of_its_user(world: World) -> None:
    server_id, host = await world.new_host()
    app_id = await world.new_app(server_id)
    host.hold()
    began = (await world.user.post(f"/api/apps/{app_id}/start", None, Prefer="respond-async")).expect(202)
    (await world.admin.delete(f"/api/users/{await user_id(world, USER)}")).expect(200)
    host.let_go()

    async def ended() -> bool:
        return bool((await world.operation(began["id"]))["state"] == "succeeded")

    await eventually_async(ended, timeout=10, what="the operation's end")
    (started,) = await world.audit("START")
    assert (started["userId"], started["username"]) == (None, USER)


async def test_self_removal_of_admin_keeps_name_in_audit_log(world: World) -> None:
    (await world.admin.post("/api/users", {**NEW, "role": "admin"})).expect(201)
    own = await user_id(world, ADMIN)
    (await world.admin.delete(f"/api/users/{own}")).expect(200)
    world.admin = await login(world, "anna", NEW["password"])
    (entry,) = await world.audit("DELETE")
    assert (entry["userId"], entry["username"], entry["resourceId"]) == (None, ADMIN, own)


async def test_own_password_change_requires_current_password(world: World) -> None:
    path = f"/api/users/{await user_id(world, ADMIN)}"
    (await world.admin.put(path, {"password": "another one"})).expect(403, "own_password")
    token = (await world.admin.post("/api/tokens", {"name": "x", "scopes": ["admin"]})).expect(201)["token"]
    api = Api(world.nobody.session, world.nobody.url, token)
    (await api.put(path, {"password": "another one"})).expect(403, "login_needed")


async def test_password_change_ends_only_other_sessions(world: World) -> None:
    mine, other, token = await login(world, USER), world.user, await token_of(world, world.user)
    body = {"currentPassword": PASSWORD, "newPassword": "another one"}
    assert (await mine.post("/api/auth/password", body)).expect(200)["success"] is True
    (await other.get("/api/auth/verify")).expect(401, "bad_token")
    for api in (mine, token, world.admin, await login(world, USER, "another one")):
        (await api.get("/api/auth/verify")).expect(200)
    old = await world.nobody.post("/api/auth/login", {"username": USER, "password": PASSWORD})
    old.expect(401, "bad_credentials")
    (entry,) = await world.audit("PASSWORD_CHANGE")
    assert (entry["username"], entry["data"]) == (USER, {"sessionsEnded": 1})


async def test_current_password_is_required_and_rate_limited(world: World) -> None:
    body = {"currentPassword": "wrong one", "newPassword": "another one"}
    for _ in range(5):
        reply = (await world.user.post("/api/auth/password", body)).expect(422, "wrong_password")
        assert reply["errors"] == [{"field": "currentPassword", "message": "It is not your current password."}]
    limited = await world.user.post("/api/auth/password", body | {"currentPassword": PASSWORD})
    limited.expect(429, "too_many_requests")
    (await world.admin.post("/api/auth/password", {"currentPassword": PASSWORD, "newPassword": "short"})).expect(422)


async def test_lone_surrogate_in_password_returns_422(world: World) -> None:
    """JSON can contain a lone surrogate; hashed text can't."""
    half = '"\\ud800aaaaaaaa"'
    made = b'{"username":"x","password":%s}' % half.encode()
    (await world.admin.send("POST", "/api/users", data=made)).expect(422)
    for current, new, code in ((half, '"another one"', "wrong_password"), ('"x"', half, "invalid_field")):
        body = f'{{"currentPassword":{current},"newPassword":{new}}}'.encode()
        (await world.user.send("POST", "/api/auth/password", data=body)).expect(422, code)
    login = b'{"username":"x","password":%s}' % half.encode()
    (await world.nobody.send("POST", "/api/auth/login", data=login)).expect(401, "bad_credentials")


async def test_unknown_user_id_returns_404(world: World) -> None:
    for path in (f"/api/users/{uuid.uuid4()}", "/api/users/x"):
        (await world.admin.get(path)).expect(404)
