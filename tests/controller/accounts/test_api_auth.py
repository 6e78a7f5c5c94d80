"""Login and logout: issue and revocation of login tokens."""

import asyncio

import pytest
from factories import ADMIN, JWT_SECRET, PASSWORD, USER, Api, World, user_row
from moorage_controller.auth import tokens
from moorage_controller.store.schema import users as users_table
from moorage_controller.store.tables import users
from sqlalchemy import delete, update


async def login(world: World, username: str = ADMIN, password: str = PASSWORD) -> Api:
    body = {"username": username, "password": password}
    reply = (await world.nobody.post("/api/auth/login", body)).expect(200)
    return Api(world.nobody.session, world.nobody.url, reply["token"])


async def test_login_reply_matches_the_guide(world: World) -> None:
    reply = await world.nobody.post("/api/auth/login", {"username": ADMIN, "password": PASSWORD})
    body = reply.expect(200)
    assert body.keys() == {"user", "token"}
    assert body["user"].keys() == {"id", "username", "role"}
    assert (body["user"]["username"], body["user"]["role"]) == ("admin", "admin")
    verified = (await Api(world.nobody.session, world.nobody.url, body["token"]).get("/api/auth/verify")).expect(200)
    assert verified == {"user": body["user"]}


async def test_verify_reply_has_role_of_plain_user(world: World) -> None:
    verified = (await world.user.get("/api/auth/verify")).expect(200)
    assert (verified["user"]["username"], verified["user"]["role"]) == (USER, "user")


async def test_wrong_password_and_unknown_user_get_the_same_reply(world: World) -> None:
    wrong = await world.nobody.post("/api/auth/login", {"username": ADMIN, "password": "wrong"})
    unknown = await world.nobody.post("/api/auth/login", {"username": "nobody at all", "password": PASSWORD})
    bodies = [reply.expect(401, "bad_credentials") for reply in (wrong, unknown)]
    for body in bodies:
        del body["requestId"]
    assert bodies[0] == bodies[1]
    headers = [{k.lower(): v for k, v in reply.headers.items()} for reply in (wrong, unknown)]
    for found in headers:
        del found["x-request-id"], found["date"]
    assert headers[0] == headers[1]


async def test_similar_password_is_refused(world: World) -> None:
    for password in ["", "wrong", "x" * 100_000, PASSWORD + "\0", "\0", "é" * 72, PASSWORD.upper()]:
        reply = await world.nobody.post("/api/auth/login", {"username": ADMIN, "password": password})
        reply.expect(401, "bad_credentials")
        world.clock.advance(60)


@pytest.mark.parametrize("username", ["", "x" * 100_000, "admin\0", "a' OR 1=1 --", "\u202eadmin", "\U0001f6a2"])
async def test_similar_user_name_is_refused(world: World, username: str) -> None:
    reply = await world.nobody.post("/api/auth/login", {"username": username, "password": PASSWORD})
    reply.expect(401, "bad_credentials")


async def test_deactivated_user_is_rejected_like_unknown_user(world: World) -> None:
    database = world.database()
    async with database.write() as connection:
        await connection.execute(update(users_table).where(users_table.c.username == USER).values(is_active=False))
    (await world.user.get("/api/auth/verify")).expect(401, "bad_token")
    reply = await world.nobody.post("/api/auth/login", {"username": USER, "password": PASSWORD})
    reply.expect(401, "bad_credentials")
    await database.close()


async def test_tokens_of_deleted_or_demoted_user_are_revoked_immediately(world: World) -> None:
    database = world.database()
    async with database.write() as connection:
        await users.add(connection, user_row("second", "admin"))
    second = await login(world, "second")
    async with database.write() as connection:
        await connection.execute(update(users_table).where(users_table.c.username == "second").values(role="user"))
        await connection.execute(delete(users_table).where(users_table.c.username == USER))
    (await second.get("/api/auth/verify")).expect(401, "bad_token")
    (await world.user.get("/api/auth/verify")).expect(401, "bad_token")
    await database.close()


async def test_logout_revokes_only_that_token(world: World) -> None:
    first, second = await login(world), await login(world)
    assert (await first.post("/api/auth/logout")).expect(200) == {"success": True}
    (await first.get("/api/auth/verify")).expect(401, "bad_token")
    (await first.post("/api/auth/logout")).expect(401, "bad_token")
    (await second.get("/api/auth/verify")).expect(200)


async def test_logged_out_token_stays_revoked_after_restart(world: World) -> None:
    gone = await login(world)
    (await gone.post("/api/auth/logout")).expect(200)
    await world.restart()
    dead = Api(world.nobody.session, world.nobody.url, gone.token)
    (await dead.get("/api/auth/verify")).expect(401, "bad_token")
    (await world.admin.get("/api/auth/verify")).expect(200)


async def test_token_lasts_a_day_to_the_second(world: World) -> None:
    world.clock.advance(24 * 3600 - 1)
    (await world.admin.get("/api/auth/verify")).expect(200)
    world.clock.advance(1)
    reply = await world.admin.get("/api/auth/verify")
    reply.expect(401, "bad_token")
    assert reply.headers["WWW-Authenticate"] == "Bearer"


async def test_missing_token_differs_from_bad_token(world: World) -> None:
    for header in ("", "Bearer", "Bearer ", "Basic YWRtaW46YWRtaW4="):
        (await world.nobody.get("/api/auth/verify", Authorization=header)).expect(401, "no_token")
    for header in ("Bearer null", "Bearer undefined", "Bearer a.b.c", "Bearer x y"):
        (await world.nobody.get("/api/auth/verify", Authorization=header)).expect(401, "bad_token")


async def test_role_is_never_taken_from_the_token_alone(world: World) -> None:
    me = (await world.user.get("/api/auth/verify")).expect(200)["user"]["id"]
    database = world.database()
    async with database.read() as connection:
        user = await users.by_name(connection, USER)
    await database.close()
    assert user is not None
    assert str(user.id) == me
    forged = tokens.issue(JWT_SECRET, user_id=user.id, username=USER, role="admin", now=world.clock.now())
    api = Api(world.nobody.session, world.nobody.url, forged)
    (await api.get("/api/auth/verify")).expect(401, "bad_token")


async def test_logins_and_failures_are_audited_with_address(world: World) -> None:
    await world.nobody.post("/api/auth/login", {"username": ADMIN, "password": "wrong"}, User_Agent="curl/8")
    await world.nobody.post("/api/auth/login", {"username": "x" * 5000, "password": "wrong"}, User_Agent="y" * 5000)
    out = await login(world)
    world.clock.advance(1)
    await out.post("/api/auth/logout")
    failed, long = sorted(await world.audit("LOGIN_FAILED"), key=lambda entry: len(entry["username"]))
    assert (failed["username"], failed["ipAddress"], failed["userAgent"]) == (ADMIN, "127.0.0.1", "curl/8")
    assert failed["resourceType"] == "user"
    assert (len(long["username"]), len(long["userAgent"]), long["userId"]) == (255, 500, None)
    logins = await world.audit("LOGIN", "LOGOUT")
    assert [entry["action"] for entry in logins] == ["LOGIN", "LOGIN", "LOGIN", "LOGOUT"]
    assert all(entry["userId"] == entry["resourceId"] for entry in logins)


async def test_concurrent_logins_all_succeed(world: World) -> None:
    apis = await asyncio.gather(*(login(world, USER) for _ in range(20)))
    assert len({api.token for api in apis}) == 20
