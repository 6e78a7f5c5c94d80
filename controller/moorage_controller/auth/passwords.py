"""Passwords: bcrypt with cost 12 (the guide's saltRounds), always in a thread."""

import asyncio

import bcrypt

_COST = 12
MIN_CHARACTERS = 8
MAX_BYTES = 72
"""bcrypt ignores what comes after; a longer password is refused rather than cut."""

_DUMMY = b"$2b$12$C6UzMDM.H6dfI/f/IKcEeO8NBBzGYvW3YQ3u9oYpT1VuBXl7bQO2W"


async def hash_password(password: str) -> str:
    """Return the bcrypt hash. The caller has checked the length: 1 to 72 bytes of UTF-8."""
    return (await asyncio.to_thread(bcrypt.hashpw, password.encode(), bcrypt.gensalt(_COST))).decode()


async def verify_password(password: str, password_hash: str | None) -> bool:
    """Compare in the same time for an unknown user (`password_hash` None) as for a wrong password."""
    known = _DUMMY if password_hash is None else password_hash.encode()
    # JSON can carry half a character: no password has one, and the comparison must take its time all the same.
    tried = password.encode(errors="surrogatepass")
    right = await asyncio.to_thread(bcrypt.checkpw, tried[:MAX_BYTES], known)
    return right and password_hash is not None and len(tried) <= MAX_BYTES
