"""Column types that mean the same on SQLite and PostgreSQL."""

import json
from datetime import UTC, datetime
from typing import NewType

from sqlalchemy import JSON, DateTime, Dialect, Text, TypeDecorator
from sqlalchemy.dialects.postgresql import JSONB

Ciphertext = NewType("Ciphertext", str)
"""What `encryption.Keyring.seal` returns; nothing else belongs in an encrypted column."""

JsonObject = JSON().with_variant(JSONB(), "postgresql")


class UtcDateTime(TypeDecorator[datetime]):
    """An aware time in UTC: timestamptz on PostgreSQL, text with microseconds on SQLite."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse naive times: their zone would be a guess."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone can't be stored")
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return the time aware, in UTC."""
        del dialect
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class TextTuple(TypeDecorator[tuple[str, ...]]):
    """Texts in their order, as a JSON array in a text column; they are compared as a whole."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: tuple[str, ...] | None, dialect: Dialect) -> str | None:
        """Write them down."""
        del dialect
        return None if value is None else json.dumps(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> tuple[str, ...]:
        """Read them."""
        del dialect
        return tuple(json.loads(value or "[]"))


class EncryptedText(TypeDecorator[Ciphertext]):
    """A column that takes only sealed text: plaintext that strays here is an error, not a leak."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Ciphertext | None, dialect: Dialect) -> str | None:
        """Refuse anything that isn't sealed."""
        del dialect
        if value is not None and not value.startswith("v1:"):
            raise ValueError("an encrypted column takes sealed text only")
        return value

    def process_result_value(self, value: str | None, dialect: Dialect) -> Ciphertext | None:
        """Return the sealed text; `Keyring.open` reads it."""
        del dialect
        return None if value is None else Ciphertext(value)
