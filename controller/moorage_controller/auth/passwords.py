"""Passwords: bcrypt with cost 12 (the guide's saltRounds), in threads of their own, so many at once."""

from functools import partial

import bcrypt

from moorage_controller.auth.line import Line, Place

_COST = 12
MIN_CHARACTERS = 8
MAX_BYTES = 72
"""bcrypt ignores what comes after; a longer password is refused rather than cut."""

_DUMMY = b"$2b$12$C6UzMDM.H6dfI/f/IKcEeO8NBBzGYvW3YQ3u9oYpT1VuBXl7bQO2W"


class Passwords:
    """Hashes and compares passwords. Both raise TooManyRequestsError where too many wait; close it at the end."""

    def __init__(self) -> None:
        self._line = Line()

    def check(self, place: Place) -> None:
        """Raise TooManyRequestsError where there is no place in line: cheap, for before anything else is done."""
        self._line.check(place)

    async def hash(self, password: str, place: Place) -> str:
        """Return the bcrypt hash. The caller has checked the length: 1 to 72 bytes of UTF-8."""
        return (await self._line.run(place, partial(_hash, password.encode()))).decode()

    async def verify(self, password: str, password_hash: str | None, place: Place) -> bool:
        """Compare in the same time for an unknown user (`password_hash` None) as for a wrong password."""
        known = _DUMMY if password_hash is None else password_hash.encode()
        # JSON can carry half a character: no password has one, and the comparison must take its time all the same.
        tried = password.encode(errors="surrogatepass")
        right = await self._line.run(place, partial(_compare, tried[:MAX_BYTES], known))
        return right and password_hash is not None and len(tried) <= MAX_BYTES

    async def aclose(self) -> None:
        """Wait for what is being hashed."""
        await self._line.aclose()


def _hash(password: bytes) -> bytes:
    return bcrypt.hashpw(password, bcrypt.gensalt(_COST))


def _compare(password: bytes, known: bytes) -> bool:
    return bcrypt.checkpw(password, known)
