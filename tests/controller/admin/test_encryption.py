"""Encryption at rest: a secret opens only in its own row and column, with a known key, unaltered."""

import base64
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from moorage_controller.store.database.database import Database
from moorage_controller.store.database.encryption import Keyring, UndecryptableError
from moorage_controller.store.database.types import Ciphertext
from moorage_controller.store.tables.enrollment import StoredToken, add_token
from sqlalchemy.exc import StatementError

OLD, NEW = "an old key of more than 32 characters", "a new key of more than 32 characters."
COLUMN, ROW = "servers.encrypted_credentials", "0b5c"


@given(st.text())
def test_sealed_text_opens_again(text: str) -> None:
    keyring = Keyring([OLD])
    assert keyring.open(keyring.seal(text, column=COLUMN, row=ROW), column=COLUMN, row=ROW) == text


def test_sealed_text_reveals_nothing_and_is_unique() -> None:
    keyring = Keyring([OLD])
    first, second = (keyring.seal("hunter2-hunter2", column=COLUMN, row=ROW) for _ in range(2))
    assert first != second
    version, key_id, body = first.split(":")
    assert version == "v1"
    assert key_id == second.split(":")[1]
    assert b"hunter2" not in base64.b64decode(body)


def test_secret_opens_only_in_its_own_row_and_column() -> None:
    keyring = Keyring([OLD])
    sealed = keyring.seal("x", column=COLUMN, row=ROW)
    for column, row in ((COLUMN, "another"), ("users.other", ROW), (COLUMN + "\0", ROW)):
        with pytest.raises(UndecryptableError, match="altered or moved"):
            keyring.open(sealed, column=column, row=row)


def test_any_flipped_bit_is_detected() -> None:
    keyring = Keyring([OLD])
    version, key_id, body = keyring.seal("x" * 5, column=COLUMN, row=ROW).split(":")
    raw = base64.b64decode(body)
    for position in range(len(raw)):
        altered = bytes(byte ^ (1 if n == position else 0) for n, byte in enumerate(raw))
        text = f"{version}:{key_id}:{base64.b64encode(altered).decode()}"
        with pytest.raises(UndecryptableError):
            keyring.open(Ciphertext(text), column=COLUMN, row=ROW)


def test_old_key_still_decrypts_and_first_key_encrypts() -> None:
    sealed = Keyring([OLD]).seal("kept", column=COLUMN, row=ROW)
    both = Keyring([NEW, OLD])
    assert both.open(sealed, column=COLUMN, row=ROW) == "kept"
    fresh = both.seal("kept", column=COLUMN, row=ROW)
    assert Keyring([NEW]).open(fresh, column=COLUMN, row=ROW) == "kept"
    with pytest.raises(UndecryptableError, match="ENCRYPTION_KEY_PREVIOUS"):
        Keyring([NEW]).open(sealed, column=COLUMN, row=ROW)


@pytest.mark.parametrize("text", ["", "v1", "v1:x", "plain text", "v1:00000000:AAAA", "v2:a:b:c"])
def test_unsealed_text_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(UndecryptableError, match=COLUMN):
        Keyring([OLD]).open(Ciphertext(text), column=COLUMN, row=ROW)


@pytest.mark.parametrize("body", ["", "AAAA", "not base64!", "é"])
def test_damaged_ciphertext_with_known_key_is_refused(body: str) -> None:
    keyring = Keyring([OLD])
    key_id = keyring.seal("x", column=COLUMN, row=ROW).split(":")[1]
    with pytest.raises(UndecryptableError):
        keyring.open(Ciphertext(f"v1:{key_id}:{body}"), column=COLUMN, row=ROW)


async def test_encrypted_column_takes_no_plaintext(database: Database) -> None:
    async with database.read() as connection:
        now = await database.now(connection)
    stray = StoredToken(uuid.uuid4(), uuid.uuid4(), Ciphertext("plain"), now, None, now)
    with pytest.raises(StatementError, match="sealed text only"):
        async with database.write() as connection:
            await add_token(connection, stray)
