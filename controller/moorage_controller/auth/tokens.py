"""Login tokens: JWT, HS256, valid for 24 hours, with the claims of docs/guide.md and `jti`, `iat`, `exp`."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import jwt

LIFETIME = timedelta(hours=24)
_ALGORITHM = "HS256"


@dataclass(frozen=True, slots=True)
class Claims:
    """The claims of a valid token; the users service decides whether it is revoked."""

    user_id: UUID
    role: str
    jti: UUID
    issued_at: datetime
    expires_at: datetime


class BadTokenError(Exception):
    """The token is not from this installation, or expired."""


def issue(secret: str, *, user_id: UUID, username: str, role: str, now: datetime, jti: UUID | None = None) -> str:
    """Return a signed token; it is valid while a session with its `jti` exists."""
    claims = {
        "userId": str(user_id),
        "username": username,
        "role": role,
        "jti": str(jti or uuid4()),
        "iat": int(now.timestamp()),
        "exp": int((now + LIFETIME).timestamp()),
    }
    return jwt.encode(claims, secret, algorithm=_ALGORITHM)


def read(secret: str, token: str, now: datetime) -> Claims:
    """Check signature, algorithm and expiry (by the controller's clock). Raises BadTokenError."""
    try:
        # Expiry is checked below against the injected clock; the library would use the machine's clock.
        options: jwt.types.Options = {
            "require": ["userId", "username", "role", "jti", "iat", "exp"],
            "verify_exp": False,
            "verify_iat": False,
        }
        claims = jwt.decode(token, secret, algorithms=[_ALGORITHM], options=options)
        found = Claims(
            user_id=UUID(claims["userId"]),
            role=str(claims["role"]),
            jti=UUID(claims["jti"]),
            issued_at=datetime.fromtimestamp(int(claims["iat"]), UTC),
            expires_at=datetime.fromtimestamp(int(claims["exp"]), UTC),
        )
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise BadTokenError from error
    if found.expires_at <= now:
        raise BadTokenError
    return found
