"""Portable column types for SQLite and PostgreSQL."""

import json
from datetime import UTC, datetime
from typing import NewType

from sqlalchemy import JSON, DateTime, Dialect, Text, TypeDecorator
from sqlalchemy.dialects.postgresql import JSONB

Ciphertext = NewType("Ciphertext", str)
"""Result of `encryption.Keyring.seal`, the only valid value of an encrypted column."""

JsonObject = JSON().with_variant(JSONB(), "postgresql")


class UtcDateTime(TypeDecorator[datetime]):
    """An aware time in UTC: timestamptz on PostgreSQL, text with microseconds on SQLite."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert to UTC. Raises ValueError for a naive time, as its zone is unknown."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone can't be stored")
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return the time as aware, in UTC."""
        del dialect
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class TextTuple(TypeDecorator[tuple[str, ...]]):
    """An ordered tuple of texts, stored as a JSON array in a text column; compared as a whole."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: tuple[str, ...] | None, dialect: Dialect) -> str | None:
        """Encode as a JSON array."""
        del dialect
        return None if value is None else json.dumps(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> tuple[str, ...]:
        """Decode the JSON array."""
        del dialect
        return tuple(json.loads(value or "[]"))


class EncryptedText(TypeDecorator[Ciphertext]):
    """A column that accepts only sealed text, so that plaintext causes an error instead of a leak."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Ciphertext | None, dialect: Dialect) -> str | None:
        """Return the sealed text. Raises ValueError for anything else."""
        del dialect
        if value is not None and not value.startswith("v1:"):
            raise ValueError("an encrypted column takes sealed text only")
        return value

    def process_result_value(self, value: str | None, dialect: Dialect) -> Ciphertext | None:
        """Return the sealed text; `Keyring.open` decrypts it."""
        del dialect
        return None if value is None else Ciphertext(value)
