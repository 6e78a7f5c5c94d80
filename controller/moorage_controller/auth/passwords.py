"""Password hashing: bcrypt with cost 12, in a limited number of threads."""

from functools import partial

import bcrypt

from moorage_controller.auth.line import Line, Place

_COST = 12
MIN_CHARACTERS = 8
MAX_BYTES = 72
"""bcrypt ignores further bytes; a longer password is refused rather than truncated."""

_DUMMY = b"$2b$12$C6UzMDM.H6dfI/f/IKcEeO8NBBzGYvW3YQ3u9oYpT1VuBXl7bQO2W"


class Passwords:
    """Hashes and verifies passwords. Both raise TooManyRequestsError if too many calls wait. Close it at the end."""

    def __init__(self) -> None:
        self._line = Line()

    def check(self, place: Place) -> None:
        """Raise TooManyRequestsError if the queue has no place: a cheap check to do first."""
        self._line.check(place)

    async def hash(self, password: str, place: Place) -> str:
        """Return the bcrypt hash. The caller has checked the length: 1 to 72 bytes of UTF-8."""
        return (await self._line.run(place, partial(_hash, password.encode()))).decode()

    async def verify(self, password: str, password_hash: str | None, place: Place) -> bool:
        """Verify a password; an unknown user (`password_hash` None) takes as long as a wrong password."""
        known = _DUMMY if password_hash is None else password_hash.encode()
        # JSON can contain a lone surrogate. No stored password has one, but the comparison must take equally long.
        tried = password.encode(errors="surrogatepass")
        right = await self._line.run(place, partial(_compare, tried[:MAX_BYTES], known))
        return right and password_hash is not None and len(tried) <= MAX_BYTES

    async def aclose(self) -> None:
        """Wait for running hashes."""
        await self._line.aclose()


def _hash(password: bytes) -> bytes:
    return bcrypt.hashpw(password, bcrypt.gensalt(_COST))


def _compare(password: bytes, known: bytes) -> bool:
    return bcrypt.checkpw(password, known)
