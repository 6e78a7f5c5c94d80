"""From old encryption keys to the current one, while controllers that know both go on serving."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Column

from moorage_controller.store.database import encrypted_columns as store
from moorage_controller.store.database.database import Database
from moorage_controller.store.database.encrypted_columns import Sealed
from moorage_controller.store.database.encryption import Keyring, UndecryptableError
from moorage_controller.store.database.types import Ciphertext

_MOST_PASSES = 20


@dataclass(slots=True)
class Rotation:
    """What was done: how many texts were sealed anew, how many there are, and which can't be opened with any key.

    `ended` is False where somebody goes on sealing with an old key.
    """

    resealed: int = 0
    found: int = 0
    unopened: list[tuple[Sealed, UndecryptableError]] = field(default_factory=list)
    ended: bool = False


async def rotate(database: Database, keyring: Keyring) -> Rotation:
    """Seal everything anew that isn't sealed with the current key.

    It may be cut at any moment and done again: each row is under one key or the other. A row that is changed meanwhile
    keeps the change. What can't be opened stays as it is.
    """
    rotation = Rotation()
    for _ in range(_MOST_PASSES):
        rotation.found, rotation.unopened, rotation.ended = 0, [], True
        for column in store.columns():
            await _rotate_column(database, keyring, column, rotation)
        # What was changed in the middle of a pass may be under an old key again: look once more.
        if rotation.ended:
            break
    return rotation


async def _rotate_column(database: Database, keyring: Keyring, column: Column[Any], rotation: Rotation) -> None:
    last: object | None = None
    while True:
        async with database.read() as connection:
            rows = await store.page(connection, column, last)
        if not rows:
            return
        last = rows[-1][0]
        rotation.found += len(rows)
        anew = _sealed_anew(keyring, rows, rotation)
        if not anew:
            continue
        rotation.ended = False
        async with database.write() as connection:
            for row_id, old, new in anew:
                rotation.resealed += await store.replace(connection, column, row_id, old, new)


def _sealed_anew(
    keyring: Keyring, rows: Sequence[tuple[Any, Sealed]], rotation: Rotation
) -> list[tuple[Any, Ciphertext, Ciphertext]]:
    anew = []
    for row_id, sealed in rows:
        try:
            plaintext = keyring.open(sealed.text, column=sealed.column, row=sealed.row)
        except UndecryptableError as error:
            rotation.unopened.append((sealed, error))
            continue
        if not keyring.is_current(sealed.text):
            anew.append((row_id, sealed.text, keyring.seal(plaintext, column=sealed.column, row=sealed.row)))
    return anew
