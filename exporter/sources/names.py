"""Host names into addresses: a name server that does not answer holds up nobody but who asked for that name."""

import asyncio
import socket
import threading
from contextlib import suppress
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

_Key = tuple[str, int, int]


class Resolver(AbstractResolver):
    """Looks names up by the system's resolver, in a thread of its own for each name, one lookup at a time.

    The threads are daemons: one that hangs keeps neither other lookups waiting nor the process from ending.
    """

    def __init__(self) -> None:
        self._lookups: dict[_Key, asyncio.Future[list[Any]]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of a host; raises OSError when there are none."""
        key = (host, port, int(family))
        lookup = self._lookups.get(key)
        if lookup is None:
            lookup = self._lookups[key] = self._begin(key)
            lookup.add_done_callback(lambda _: self._lookups.pop(key, None))
        found = await asyncio.shield(lookup)
        return [_result(host, entry) for entry in found]

    async def close(self) -> None:
        """Nothing to close: what is still being looked up is left alone."""

    def _begin(self, key: _Key) -> "asyncio.Future[list[Any]]":
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Any]] = loop.create_future()

        def finish(found: list[Any] | OSError) -> None:
            if future.done():
                return
            if isinstance(found, OSError):
                future.set_exception(found)
                future.exception()  # whoever asked may have given up: that is no news
            else:
                future.set_result(found)

        def look_up() -> None:
            host, port, family = key
            try:
                found: list[Any] | OSError = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
            except OSError as error:
                found = error
            except UnicodeError:
                found = OSError("not a host name")
            with suppress(RuntimeError):  # the loop is over, and nobody waits any more
                loop.call_soon_threadsafe(finish, found)

        threading.Thread(target=look_up, name=f"resolve {key[0]}", daemon=True).start()
        return future


def _result(host: str, entry: tuple[Any, ...]) -> ResolveResult:
    family, _, proto, _, address = entry
    return ResolveResult(
        hostname=host,
        host=address[0],
        port=address[1],
        family=family,
        proto=proto,
        flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
    )
