"""Bodies and replies about users, passwords and API tokens. Users' times are ISO 8601, tokens' epoch milliseconds."""

import re
from typing import Annotated, Literal
from uuid import UUID

from pydantic import AfterValidator, Field, StringConstraints

from moorage_controller.api.schemas import Name, Number, OneLine, Schema
from moorage_controller.auth.passwords import MAX_BYTES, MIN_CHARACTERS

_EMAIL = re.compile(r"[^@\s]+@[^@\s]+")
_MOST_MILLISECONDS = 253_402_300_799_000
"""The end of the year 9999, the limit of datetime."""


def check_password(password: str) -> str:
    """Validate a new password: long enough, and within bcrypt's limit; no other rule (ASVS 2.1.9)."""
    if len(password) < MIN_CHARACTERS:
        raise ValueError(f"It must have {MIN_CHARACTERS} characters or more.")
    try:
        encoded = password.encode()
    except UnicodeEncodeError:
        raise ValueError("It must be text: it has half a character in it.") from None
    if len(encoded) > MAX_BYTES:
        raise ValueError(f"It must have {MAX_BYTES} bytes of UTF-8 at most.")
    return password


def _email(email: str) -> str | None:
    if email and not _EMAIL.fullmatch(email):
        raise ValueError("It must be an e-mail address.")
    return email or None


Password = Annotated[str, AfterValidator(check_password)]
Email = Annotated[str, StringConstraints(strip_whitespace=True, max_length=255), OneLine, AfterValidator(_email)]
FullName = Annotated[str, StringConstraints(strip_whitespace=True, max_length=255), OneLine]
RoleName = Literal["admin", "user"]
ScopeName = Literal["read", "operate", "admin"]


class AccountIn(Schema):
    """POST /api/users."""

    username: Name
    password: Password
    role: RoleName = "user"
    email: Email | None = None
    full_name: FullName | None = None
    is_active: bool = True


class AccountChanges(Schema):
    """PUT /api/users/{id}: absent fields stay unchanged."""

    username: Name | None = None
    password: Password | None = None
    role: RoleName | None = None
    email: Email | None = None
    full_name: FullName | None = None
    is_active: bool | None = None


class AccountOut(Schema):
    """A user, as shown to admins; times are ISO 8601."""

    id: UUID
    username: str
    email: str | None
    full_name: str | None
    role: str
    is_active: bool
    last_login_at: str | None
    created_at: str
    updated_at: str


class PasswordIn(Schema):
    """POST /api/auth/password: `keepTokens` false revokes the user's API tokens, too."""

    current_password: str
    new_password: Password
    keep_tokens: bool = True


class TokenIn(Schema):
    """POST /api/tokens: `expiresAt` absent or null means never."""

    name: Name
    scopes: Annotated[list[ScopeName], Field(min_length=1, max_length=3)]
    expires_at: Annotated[int, Number, Field(ge=0, le=_MOST_MILLISECONDS)] | None = None


class TokenOut(Schema):
    """An API token, without its secret."""

    id: UUID
    name: str
    scopes: list[str]
    expires_at: int | None
    last_used_at: int | None
    created_at: int


class TokenMadeOut(TokenOut):
    """A new API token; `token` is its secret, and shown only once."""

    token: str
