"""`rotate-key`: all secrets move from the old key to the new one, despite interruptions."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from uuid import UUID, uuid4

import pytest
from click.testing import CliRunner, Result
from factories import ENCRYPTION_KEY as OLD
from factories import World, server_row
from moorage_common.tls.join_token import JoinToken
from moorage_common.tls.x509 import new_key, signing_request
from moorage_controller import cli, commands
from moorage_controller.errors import StartupError
from moorage_controller.services.admin.key_rotation import rotate
from moorage_controller.services.agents.enrollment import load_authority
from moorage_controller.services.fleet.credentials import Credentials
from moorage_controller.settings import Settings
from moorage_controller.store.database import encrypted_columns as sealed_store
from moorage_controller.store.database.database import Database
from moorage_controller.store.database.encryption import Keyring
from moorage_controller.store.database.types import Ciphertext, EncryptedText
from moorage_controller.store.schema import metadata
from moorage_controller.store.tables import servers as server_store
from sqlalchemy import Column, select

NEW = "a test's new key, of 32 characters or more"
BOTH = Keyring([NEW, OLD])
COLUMN = "servers.encrypted_credentials"


def run(settings: Settings, current: str = NEW, previous: str = OLD) -> Result:
    environment = {"MOORAGE_DATA_DIR": str(settings.moorage_data_dir), "DATABASE_URL": settings.database_url}
    environment |= {"ENCRYPTION_KEY": current, "ENCRYPTION_KEY_PREVIOUS": previous}
    return CliRunner().invoke(cli.main, ["rotate-key"], env=environment)


async def everything(database: Database) -> list[tuple[Column[Any], Any, Ciphertext]]:
    """Return all sealed values: column, row and text."""
    found: list[tuple[Column[Any], Any, Ciphertext]] = []
    async with database.read() as connection:
        for table in metadata.sorted_tables:
            for column in table.columns:
                if isinstance(column.type, EncryptedText):
                    rows = await connection.execute(select(table.c.id, column).where(column.is_not(None)))
                    found += [(column, *row) for row in rows]
    return found


def opened(rows: Sequence[tuple[Column[Any], Any, Ciphertext]], keyring: Keyring) -> dict[tuple[str, str], str]:
    return {
        (str(column), str(row_id)): keyring.open(text, column=str(column), row=str(row_id))
        for column, row_id, text in rows
    }


async def fill(database: Database, count: int, key: str = OLD) -> list[UUID]:
    """Create servers whose credentials are sealed with a key."""
    keyring, ids = Keyring([key]), [uuid4() for _ in range(count)]
    async with database.write() as connection:
        for number, server_id in enumerate(ids):
            text = keyring.seal(f'{{"password": "{number}"}}', column=COLUMN, row=str(server_id))
            await server_store.add(connection, server_row(id=server_id, encrypted_credentials=text))
    return ids


async def test_all_secrets_are_rotated_while_controller_serves(world: World) -> None:
    server_id = await world.new_server(sshPassword="kept")
    token = JoinToken.parse((await world.admin.post(f"/api/servers/{server_id}/enrollment-token")).expect(201)["token"])
    await world.stop()
    both = world.settings.model_copy(update={"encryption_key": NEW, "encryption_key_previous": OLD})
    world.settings = both
    await world.start()
    result = await asyncio.to_thread(run, world.settings)
    assert result.exit_code == 0, result.output
    assert "anew: 3 of 3 secrets" in result.output
    assert "take ENCRYPTION_KEY_PREVIOUS away" in result.output
    database = world.database()
    rows = await everything(database)
    await database.close()
    assert len({str(column) for column, _, _ in rows}) == 3, "the test has something in every column there is"
    opened(rows, Keyring([NEW]))
    (await world.admin.put(f"/api/servers/{server_id}", {"sshPassword": "changed"})).expect(200)
    again = await asyncio.to_thread(run, world.settings)
    assert (again.exit_code, "anew: 0 of 3 secrets" in again.output) == (0, True)
    world.settings = both.model_copy(update={"encryption_key_previous": ""})
    await world.restart()
    csr = signing_request(new_key(), "h").decode()
    body = {"token": token.proof(csr, "h:1", "1"), "csr": csr, "endpoint": "h:1", "version": "1"}
    (await world.nobody.post("/api/enroll", body)).expect(200)
    database = world.database()
    credentials = (await Credentials(database, Keyring([NEW])).access_of(UUID(server_id))).credentials
    await database.close()
    assert credentials is not None
    assert credentials.password == "changed"  # noqa: S105 - a test's


async def test_interrupted_rotation_loses_nothing_and_completes_on_rerun(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await load_authority(database, Keyring([OLD]))
    await fill(database, 250)
    before = opened(await everything(database), BOTH)
    plain_replace = sealed_store.replace
    left = 0

    async def cut_after_some(*args: Any) -> bool:  # noqa: ANN401 - passed on as they came
        nonlocal left
        left -= 1
        if left < 0:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        return await plain_replace(*args)

    monkeypatch.setattr(sealed_store, "replace", cut_after_some)
    done: list[int] = []
    for cut in (0, 50, 120):
        left = cut
        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(rotate(database, BOTH))
        rows = await everything(database)
        assert opened(rows, BOTH) == before
        done.append(sum(BOTH.is_current(text) for _, _, text in rows))
    assert done == [0, 1, 101], "a hundred rows of a table are one transaction"
    left = 1000
    rotation = await rotate(database, BOTH)
    assert (rotation.resealed, rotation.found, rotation.ended) == (150, 251, True)
    assert opened(await everything(database), Keyring([NEW])) == before


def after_each_page(monkeypatch: pytest.MonkeyPatch, change: Callable[[], Awaitable[None]], times: int) -> None:
    """Write concurrently between the read of some rows and their update, a few times."""
    plain_page = sealed_store.page
    left = times

    async def page(*args: Any) -> Any:  # noqa: ANN401 - passed on as they came
        nonlocal left
        rows = await plain_page(*args)
        if rows and left:
            left -= 1
            await change()
        return rows

    monkeypatch.setattr(sealed_store, "page", page)


@pytest.mark.parametrize("key", [NEW, OLD])
async def test_concurrent_change_wins_over_rotation(
    database: Database, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    changed, gone, untouched = await fill(database, 3)

    async def change() -> None:
        text = Keyring([key]).seal("later", column=COLUMN, row=str(changed))
        async with database.write() as connection:
            await server_store.change(connection, changed, {"encrypted_credentials": text})
            await server_store.remove(connection, gone)

    after_each_page(monkeypatch, change, 1)
    rotation = await rotate(database, BOTH)
    assert (rotation.ended, rotation.resealed) == (True, 1 if key is NEW else 2)
    found = opened(await everything(database), Keyring([NEW]))
    assert found == {(COLUMN, str(changed)): "later", (COLUMN, str(untouched)): '{"password": "2"}'}


async def test_controller_with_old_key_is_detected(
    database: Database, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    (server_id,) = await fill(database, 1)

    async def change() -> None:
        text = Keyring([OLD]).seal("again", column=COLUMN, row=str(server_id))
        async with database.write() as connection:
            await server_store.change(connection, server_id, {"encrypted_credentials": text})

    after_each_page(monkeypatch, change, 1000)
    both = settings.model_copy(update={"encryption_key": NEW, "encryption_key_previous": OLD})
    with pytest.raises(StartupError) as caught:
        await commands.rotate_key(both, lambda _: None)
    assert caught.value.code == "old_key_in_use"


async def test_undecryptable_secret_is_named_and_others_are_rotated(database: Database, settings: Settings) -> None:
    lost, altered, good = (
        await fill(database, 1, "a key that nobody has any more, alas")
        + await fill(database, 1)
        + await fill(database, 1)
    )
    async with database.write() as connection:
        await server_store.change(connection, altered, {"encrypted_credentials": Ciphertext("v1:damaged")})
    before = {row_id: text for _, row_id, text in await everything(database)}
    result = await asyncio.to_thread(run, settings)
    assert result.exit_code == 1
    assert "anew: 1 of 3 secrets" in result.output
    named = {
        line.split(".")[1].removeprefix("encrypted_credentials of row ") for line in result.output.splitlines()[1:3]
    }
    assert named == {str(lost), str(altered)}
    assert "keep the old keys" in result.output
    assert "take ENCRYPTION_KEY_PREVIOUS away" not in result.output
    after = {row_id: text for _, row_id, text in await everything(database)}
    assert [row_id for row_id, text in before.items() if after[row_id] != text] == [good]
    found = await asyncio.to_thread(run, settings, NEW, f"{OLD},a key that nobody has any more, alas")
    assert (found.exit_code, "anew: 0 of 3" in found.output) == (1, True), "a comma in a list parts two keys"
    whole = await asyncio.to_thread(run, settings, NEW, "a key that nobody has any more, alas")
    assert "anew: 1 of 3" in whole.output, "and alone it is part of a key"


async def test_wrong_old_key_changes_nothing(database: Database, settings: Settings) -> None:
    await fill(database, 3)
    before = await everything(database)
    result = await asyncio.to_thread(run, settings, NEW, "not the old key, but of 32 characters")
    assert result.exit_code == 1
    assert "anew: 0 of 3 secrets" in result.output
    assert result.output.count("Left as it is: servers.encrypted_credentials of row ") == 3
    assert await everything(database) == before


async def test_rotation_generates_no_key(database: Database, settings: Settings) -> None:
    del database
    result = await asyncio.to_thread(run, settings, "", OLD)
    assert (result.exit_code, "(missing_secret)" in result.output) == (1, True)
    assert not (settings.moorage_data_dir / "encryption_key").exists()
