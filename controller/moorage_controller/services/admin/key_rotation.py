"""Key rotation: re-encrypt with the current key, while controllers that have both keys continue to serve."""

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
    """Result of a rotation: counts of re-encrypted and of all texts, and the texts that no key can decrypt.

    `ended` is False if a controller still encrypts with an old key.
    """

    resealed: int = 0
    found: int = 0
    unopened: list[tuple[Sealed, UndecryptableError]] = field(default_factory=list)
    ended: bool = False


async def rotate(database: Database, keyring: Keyring) -> Rotation:
    """Re-encrypt every text that isn't encrypted with the current key.

    It may be interrupted at any time and repeated: each row is encrypted with one key or the other. A row changed
    concurrently keeps the change. A text that can't be decrypted stays unchanged.
    """
    rotation = Rotation()
    for _ in range(_MOST_PASSES):
        rotation.found, rotation.unopened, rotation.ended = 0, [], True
        for column in store.columns():
            await _rotate_column(database, keyring, column, rotation)
        # A row changed during a pass may be under an old key again: make another pass.
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
