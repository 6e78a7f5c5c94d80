"""SSH credentials of a server: set, validated, sealed, removed, and never shown."""

import asyncio
import base64
import struct
import warnings
from contextlib import suppress
from dataclasses import replace
from uuid import UUID

import asyncssh
import pytest
from factories import ENCRYPTION_KEY, Api, World
from hypothesis import given, settings
from hypothesis import strategies as st
from moorage_controller.errors import NotFoundError
from moorage_controller.hosts.credentials import SshCredentials
from moorage_controller.hosts.private_keys import BadKeyError, checked
from moorage_controller.services.fleet.credentials import Credentials
from moorage_controller.store.database.encryption import Keyring, UndecryptableError
from moorage_controller.store.tables import servers as server_store

PASSPHRASE = "open sesame"  # noqa: S105 - a test's
PASSWORD = "a login's password"  # noqa: S105 - a test's
KEY = asyncssh.generate_private_key("ssh-ed25519")
PLAIN = KEY.export_private_key("openssh").decode()
with warnings.catch_warnings(action="ignore"):
    LOCKED = KEY.export_private_key("openssh", PASSPHRASE, rounds=1).decode()
PUBLIC = KEY.export_public_key().decode()
ECDSA = asyncssh.generate_private_key("ecdsa-sha2-nistp256")
FORMS = {
    "PKCS#8": (ECDSA.export_private_key("pkcs8-pem").decode(), ""),
    "PKCS#8, encrypted": (ECDSA.export_private_key("pkcs8-pem", PASSPHRASE).decode(), PASSPHRASE),
    "PKCS#1": (ECDSA.export_private_key("pkcs1-pem").decode(), ""),
    "PKCS#1, encrypted": (ECDSA.export_private_key("pkcs1-pem", PASSPHRASE).decode(), PASSPHRASE),
    "OpenSSH, encrypted": (LOCKED, PASSPHRASE),
}


async def stored(world: World, server_id: str, key: str = ENCRYPTION_KEY) -> SshCredentials | None:
    """Return the credentials that the SSH transport would get."""
    database = world.database()
    try:
        return (await Credentials(database, Keyring([key])).access_of(UUID(server_id))).credentials
    finally:
        await database.close()


async def change(api: Api, server_id: str, **secrets: str | None) -> bool:
    """Change secrets and return `hasCredentials`."""
    reply = await api.put(f"/api/servers/{server_id}", secrets)
    return bool(reply.expect(200)["hasCredentials"])


async def refused(world: World, server_id: str, field: str, **secrets: object) -> str:
    """Return the sentence of a refusal that changed nothing."""
    before = await stored(world, server_id)
    reply = await world.admin.put(f"/api/servers/{server_id}", secrets)
    (error,) = reply.expect(422, "invalid_field")["errors"]
    assert error["field"] == field
    assert await stored(world, server_id) == before
    sent = [line for text in secrets.values() for line in str(text).splitlines() if "PRIVATE" not in line and line]
    assert not any(line in reply.text for line in sent if len(line) > 3)
    return str(error["message"])


async def test_credentials_are_kept_until_changed_or_removed(world: World) -> None:
    server_id = await world.new_server(sshPassword="")
    assert await stored(world, server_id) is None
    assert await change(world.admin, server_id, sshPrivateKey=LOCKED, sshPassphrase=PASSPHRASE)
    assert await stored(world, server_id) == SshCredentials(LOCKED, PASSPHRASE)
    assert await change(world.admin, server_id, sshPassword=PASSWORD)
    kept = SshCredentials(LOCKED, PASSPHRASE, PASSWORD)
    assert await stored(world, server_id) == kept
    for nothing in ({}, {"sshPrivateKey": "", "sshPassphrase": "", "sshPassword": ""}, {"sshUser": "root"}):
        assert await change(world.admin, server_id, **nothing)
        assert await stored(world, server_id) == kept
    other = FORMS["PKCS#8"][0]
    assert await change(world.admin, server_id, sshPrivateKey=other)
    assert await stored(world, server_id) == SshCredentials(other, "", PASSWORD), "no passphrase without a use"
    assert await change(world.admin, server_id, sshPrivateKey=None)
    assert await stored(world, server_id) == SshCredentials(password=PASSWORD)
    assert not await change(world.admin, server_id, sshPassword=None)
    assert await stored(world, server_id) is None


async def test_new_server_stores_credentials_and_shows_none(world: World) -> None:
    body = {"name": "s", "address": "10.0.0.1", "sshPrivateKey": PLAIN, "sshPassword": PASSWORD}
    made = (await world.admin.post("/api/servers", body)).expect(201)
    shown = (await world.user.get(f"/api/servers/{made['id']}")).expect(200)
    # They are tried immediately.
    checked = {name: shown[name] for name in ("statusDetail", "lastChecked")}
    assert made | checked == shown
    assert (shown["hasCredentials"], shown["hostKeyFingerprint"]) == (True, None)
    assert not {name for name in shown if name.startswith("ssh")} - {"sshUser", "sshPort"}
    assert await stored(world, made["id"]) == SshCredentials(PLAIN, "", PASSWORD)


async def test_dropping_a_key_drops_its_passphrase(world: World) -> None:
    server_id = await world.new_server(sshPrivateKey=LOCKED, sshPassphrase=PASSPHRASE)
    assert not await change(world.admin, server_id, sshPrivateKey=None)
    assert await stored(world, server_id) is None


@pytest.mark.parametrize("form", FORMS)
def test_every_private_key_format_is_accepted(form: str) -> None:
    key, passphrase = FORMS[form]
    for text in (key, key.strip(), f"\n{key}\n\n", key.replace("\n", "\r\n"), f"# a comment\n{key}"):
        assert checked(SshCredentials(text, passphrase)) == SshCredentials(key, passphrase)


async def test_unusable_key_is_refused_with_field_and_sentence(world: World) -> None:
    server_id = await world.new_server(sshPassword=PASSWORD)
    assert "public key" in await refused(world, server_id, "sshPrivateKey", sshPrivateKey=PUBLIC)
    damaged = PLAIN.replace(PLAIN[100:110], "AAAAAAAAAA")
    for text in (
        "x",
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        PLAIN[:200],
        damaged,
        "\ud800",
        "PuTTY-User-Key-File-3: x",
    ):
        sentence = await refused(world, server_id, "sshPrivateKey", sshPrivateKey=text)
        assert "whole file" in sentence or "string" in sentence
    await refused(world, server_id, "sshPrivateKey", sshPrivateKey="x" * 16_385)
    await refused(world, server_id, "sshPrivateKey", sshPrivateKey=7)
    for text in ("a\nb", "\ud800"):
        await refused(world, server_id, "sshPassword", sshPassword=text)
    await refused(world, server_id, "sshPassword", sshPassword="x" * 1025)
    assert "no private key" in await refused(world, server_id, "sshPassphrase", sshPassphrase=PASSPHRASE)
    assert "is encrypted" in await refused(world, server_id, "sshPassphrase", sshPrivateKey=LOCKED)
    wrong = {"sshPrivateKey": LOCKED, "sshPassphrase": "a wrong guess"}
    assert "doesn't open" in await refused(world, server_id, "sshPassphrase", **wrong)
    made = await world.admin.post("/api/servers", {"name": "s", "address": "h", **wrong})
    assert made.expect(422)["errors"][0]["field"] == "sshPassphrase"
    assert len((await world.admin.get("/api/servers")).expect(200)) == 1


async def test_passphrase_without_key_is_tried_on_stored_key(world: World) -> None:
    server_id = await world.new_server(sshPrivateKey=LOCKED, sshPassphrase=PASSPHRASE)
    await refused(world, server_id, "sshPassphrase", sshPassphrase="a wrong guess")
    await refused(world, server_id, "sshPassphrase", sshPassphrase=None)
    assert await change(world.admin, server_id, sshPassphrase=PASSPHRASE)


def test_key_with_excessive_kdf_rounds_is_refused_immediately() -> None:
    lines = LOCKED.splitlines()
    raw = base64.b64decode("".join(lines[1:-1]))
    rounds = struct.pack(">I", 1)
    assert raw.count(rounds, 0, 100) == 2, "the rounds, and the number of keys"
    endless = base64.b64encode(raw.replace(rounds, b"\xff\xff\xff\xff", 1)).decode()
    with pytest.raises(BadKeyError, match="too long"):
        checked(SshCredentials("\n".join([lines[0], endless, lines[-1]]), PASSPHRASE))


@given(st.data())
@settings(deadline=None)
def test_damaged_key_is_refused_without_fault(data: st.DataObject) -> None:
    key, passphrase = data.draw(st.sampled_from([(PLAIN, ""), *FORMS.values()]))
    lines = key.splitlines()
    middle = bytearray("\n".join(lines[1:-1]).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        middle[data.draw(st.integers(0, len(middle) - 1))] = data.draw(st.sampled_from(b"AZaz09+/=\n:, "))
    with suppress(BadKeyError):
        checked(SshCredentials(f"{lines[0]}\n{middle.decode()}\n{lines[-1]}\n", passphrase))


async def test_concurrent_credential_changes_lose_none(world: World) -> None:
    server_id = await world.new_server()
    await asyncio.gather(
        change(world.admin, server_id, sshPrivateKey=LOCKED, sshPassphrase=PASSPHRASE),
        change(world.admin, server_id, sshPassword=PASSWORD),
        change(world.admin, server_id, sshUser="root"),
    )
    assert await stored(world, server_id) == SshCredentials(LOCKED, PASSPHRASE, PASSWORD)


async def test_secrets_of_another_server_are_refused_with_advice(world: World) -> None:
    mine = await world.new_server(sshPrivateKey=PLAIN)
    other = await world.new_server(sshPassword=PASSWORD)
    database = world.database()
    async with database.write() as connection:
        moved = await server_store.get(connection, UUID(mine))
        assert moved is not None
        await server_store.change(
            connection, UUID(other), {"encrypted_credentials": moved.encrypted_credentials, "host_key": PUBLIC}
        )
    await database.close()
    with pytest.raises(UndecryptableError, match="moved to another row"):
        await stored(world, other)
    with pytest.raises(UndecryptableError, match="ENCRYPTION_KEY"):
        await stored(world, mine, "another key of 32 characters or more")
    with pytest.raises(NotFoundError):
        await stored(world, "45c48cce-2e2d-4fbd-9aa1-0c0d0e0f1011")
    shown = (await world.admin.get(f"/api/servers/{other}")).expect(200)
    assert shown["hostKeyFingerprint"] == KEY.get_fingerprint()
    conflict = await world.admin.put(f"/api/servers/{other}", {"sshPassword": "new"})
    assert "anew" in conflict.expect(409, "undecryptable_secret")["error"]
    assert await change(world.admin, other, sshPassword="new", sshPrivateKey=None)
    assert await stored(world, other) == SshCredentials("", "", "new")


async def test_credential_change_requires_admin_and_is_audited(world: World) -> None:
    server_id = await world.new_server()
    (await world.user.put(f"/api/servers/{server_id}", {"sshPassword": PASSWORD})).expect(403)
    await change(world.admin, server_id, sshPrivateKey=LOCKED, sshPassphrase=PASSPHRASE)
    (entry,) = await world.audit("UPDATE")
    assert entry["data"] == {"changed": ["ssh_passphrase", "ssh_private_key"]}


def test_credentials_are_absent_from_repr() -> None:
    whole = SshCredentials(PLAIN, PASSPHRASE, PASSWORD)
    assert repr(whole) == "SshCredentials()"
    assert SshCredentials.from_text(whole.to_text()) == whole
    assert replace(whole, password="") != whole


async def test_invalid_ssh_address_or_user_is_refused(world: World) -> None:
    good = {"name": "s", "address": "10.0.0.1", "sshUser": "root"}
    bad = {
        "address": [
            "-oProxyCommand=x",
            "--",
            "root@h",
            "h:22",
            "[::1]",
            "a b",
            "a\nb",
            "h/x",
            "\u200bh",
            "h;x",
            "::1%-;x",
        ],
        "sshUser": ["-l", "a b", "a\nb", "a\u202eb", "\x1b[2J", "\u00a0"],
    }
    for field, values in bad.items():
        for value in values:
            reply = await world.admin.post("/api/servers", {**good, field: value})
            assert [error["field"] for error in reply.expect(422)["errors"]] == [field], value
    for address in ("host-1.example.com.", "_dmarc.x", "bücher.example", "fe80::1%eth0", "::ffff:10.0.0.1"):
        assert (await world.admin.post("/api/servers", {**good, "address": address})).expect(201)["address"] == address
    for user in ("DOMAIN\\anna", "anna@example.com", "user-1", ""):
        assert (await world.admin.post("/api/servers", {**good, "sshUser": user})).expect(201)["sshUser"] == user
