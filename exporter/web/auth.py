"""Basic auth with bcrypt hashes. A good password is checked slowly once, then remembered by its digest."""

import asyncio
import base64
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

_MOST_REMEMBERED: Final = 100
_MOST_AT_ONCE: Final = 2
_LONGEST_PASSWORD_BYTES: Final = 72  # bcrypt reads no further


class BasicAuth:
    """Checks `Authorization` headers against users, at least one, and their bcrypt hashes."""

    def __init__(self, users: Mapping[str, str]) -> None:
        self._users = users
        self._somebody = next(iter(users.values()))  # an unknown user costs as much time as a wrong password
        self._key = secrets.token_bytes(32)
        self._remembered: dict[bytes, None] = {}
        self._workers = ThreadPoolExecutor(_MOST_AT_ONCE, thread_name_prefix="bcrypt")

    async def allows(self, header: str | None) -> bool:
        """Tell whether a header names a user with the right password."""
        given = _credentials(header)
        if given is None:
            return False
        user, password = given
        digest = hmac.digest(self._key, user.encode() + b"\0" + password, hashlib.sha256)
        if digest in self._remembered:
            return True
        hashed = self._users.get(user, self._somebody)
        good = await asyncio.get_running_loop().run_in_executor(self._workers, _matches, password, hashed)
        if not good or user not in self._users:
            return False
        if len(self._remembered) >= _MOST_REMEMBERED:
            self._remembered.clear()
        self._remembered[digest] = None
        return True


def _matches(password: bytes, hashed: str) -> bool:
    import bcrypt  # noqa: PLC0415 - only who guards the port pays for it

    try:
        return bcrypt.checkpw(password[:_LONGEST_PASSWORD_BYTES], hashed.encode())
    except ValueError:
        return False


def _credentials(header: str | None) -> tuple[str, bytes] | None:
    scheme, _, encoded = (header or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(encoded, validate=True).partition(b":")
        return (user.decode(), password) if colon else None
    except ValueError:  # not base64, or not text
        return None
