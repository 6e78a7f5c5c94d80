"""Secrets appear in no reply and no log, and in no readable form in the database."""

import io
import uuid

import pytest
from factories import ENCRYPTION_KEY, ENDPOINT, JWT_SECRET, PASSWORD, Api, Reply, World
from moorage_common.tls.join_token import JoinToken
from moorage_common.tls.x509 import key_to_pem, new_key, signing_request
from moorage_controller.store.database.encryption import Keyring
from moorage_controller.store.schema import enrollment_tokens
from sqlalchemy import update

SQLITE_ONLY = "What is shown is made of the same rows on both."


async def test_typical_requests_expose_no_secret(
    world: World, logs: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    plain_send = Api.send

    async def remembering(api: Api, *args: object, **kwargs: object) -> Reply:
        reply = await plain_send(api, *args, **kwargs)  # type: ignore[arg-type]  # passed on as they came
        shown.append(reply.text + repr(dict(reply.headers)))
        return reply

    monkeypatch.setattr(Api, "send", remembering)
    login = await world.nobody.post("/api/auth/login", {"username": "admin", "password": PASSWORD})
    token = login.expect(200)["token"]
    server_id, key = await world.new_server(), new_key()
    made = await world.admin.post(f"/api/servers/{server_id}/enrollment-token")
    join = JoinToken.parse(made.expect(201)["token"])
    for secret_reply in (login, made):
        shown.remove(secret_reply.text + repr(dict(secret_reply.headers)))
    world.hosts.add(ENDPOINT)
    csr = signing_request(key, "h").decode()
    proof = join.proof(csr, ENDPOINT, "0.1.0")
    request = {"token": proof, "csr": csr, "endpoint": ENDPOINT, "version": "0.1.0"}
    (await world.nobody.post("/api/enroll", {**request, "version": "0.2.0"})).expect(401, "bad_join_token")
    (await world.nobody.post("/api/enroll", request)).expect(200)
    app_id = await world.new_app(server_id)
    (await world.admin.post(f"/api/apps/{app_id}/start")).expect(200)
    (await world.nobody.post("/api/auth/login", {"username": "admin", "password": PASSWORD + "x"})).expect(401)
    (await world.nobody.post("/api/auth/login", {"username": 1, "password": PASSWORD})).expect(422)
    (await world.nobody.send("POST", "/api/auth/login", data=PASSWORD.encode())).expect(400)
    (await world.nobody.get(f"/api/apps?token={token}x", Authorization=f"Bearer {token}x")).expect(401)
    for path in ("servers", "apps", "projects", "operations", "audit-logs", "auth/verify"):
        (await world.admin.get(f"/api/{path}")).expect(200)
    await world.restart()
    secrets = {
        "the password": PASSWORD,
        "the signing secret": JWT_SECRET,
        "the encryption key": ENCRYPTION_KEY,
        "a login token": token,
        "a join token": str(join),
        "a join token's secret": join.secret.hex(),
        "a proof": proof,
        "an agent's key": key_to_pem(key).decode(),
        "any private key": "PRIVATE KEY",
        "a password hash": "$2b$",
    }
    assert len(shown) > 15
    assert "operation_ended" in logs.getvalue()
    told = {name for name, secret in secrets.items() if any(secret in text for text in (*shown, logs.getvalue()))}
    assert not told


async def test_database_holds_no_readable_secret(world: World) -> None:
    server_id = await world.new_server()
    made = (await world.admin.post(f"/api/servers/{server_id}/enrollment-token")).expect(201)
    token = JoinToken.parse(made["token"])
    await world.stop()
    stored = await world.stored()
    assert b"v1:" in stored
    for secret in (token.secret, token.secret.hex().encode(), b"PRIVATE KEY", PASSWORD.encode(), JWT_SECRET.encode()):
        assert secret not in stored


async def test_join_token_is_spent_once_by_its_own_host(world: World) -> None:
    server_id = await world.new_server()
    made = (await world.admin.post(f"/api/servers/{server_id}/enrollment-token")).expect(201)
    token, endpoint = JoinToken.parse(made["token"]), "10.0.0.7:7443"

    async def enroll(csr: str, join: JoinToken = token) -> Reply:
        body = {"token": join.proof(csr, endpoint, "1"), "csr": csr, "endpoint": endpoint, "version": "1"}
        return await world.nobody.post("/api/enroll", body)

    mine, other = (signing_request(new_key(), "h").decode() for _ in range(2))
    guessed = JoinToken.make(token.id, token.ca_fingerprint)
    (await enroll(mine, guessed)).expect(401, "bad_join_token")
    (await enroll(mine, JoinToken.make(str(uuid.uuid4()), ""))).expect(401, "bad_join_token")
    first = (await enroll(mine)).expect(200)
    assert (await enroll(mine)).expect(200) == first, "a lost answer must cost nothing"
    (await enroll(other)).expect(401, "join_token_used")
    server = (await world.admin.get(f"/api/servers/{server_id}")).expect(200)
    assert (server["connection"], server["apiEndpoint"]) == ("agent", endpoint)


async def test_join_token_lasts_an_hour_and_a_newer_one_voids_it(world: World) -> None:
    server_id = await world.new_server()
    path = f"/api/servers/{server_id}/enrollment-token"
    tokens = [JoinToken.parse((await world.admin.post(path)).expect(201)["token"]) for _ in range(2)]
    csr = signing_request(new_key(), "h").decode()

    async def enroll(token: JoinToken) -> Reply:
        body = {"token": token.proof(csr, ENDPOINT, "1"), "csr": csr, "endpoint": ENDPOINT, "version": "1"}
        return await world.nobody.post("/api/enroll", body)

    (await enroll(tokens[0])).expect(401, "bad_join_token")
    world.clock.advance(3600)
    (await enroll(tokens[1])).expect(401, "join_token_expired")


async def test_join_token_sealed_with_other_key_is_refused_with_advice(world: World) -> None:
    server_id = await world.new_server()
    token = JoinToken.parse((await world.admin.post(f"/api/servers/{server_id}/enrollment-token")).expect(201)["token"])
    sealed = Keyring(["x" * 32]).seal("00", column="enrollment_tokens.encrypted_secret", row=token.id)
    database = world.database()
    async with database.write() as connection:
        await connection.execute(update(enrollment_tokens).values(encrypted_secret=sealed))
    await database.close()
    csr = signing_request(new_key(), "h").decode()
    body = {"token": token.proof(csr, ENDPOINT, "1"), "csr": csr, "endpoint": ENDPOINT, "version": "1"}
    refused = (await world.nobody.post("/api/enroll", body)).expect(401, "join_token_unreadable")
    assert "make a new one" in refused["detail"]
