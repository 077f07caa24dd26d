"""A body of JSON in pieces: one object, an array of them, or one object a line (NDJSON)."""

import io
from collections.abc import Iterator

import msgspec

from exporter.core.refused import RefusedError, begun, reason


class Pieces:
    """The pieces of JSON that a body consists of, with their numbers; an empty line is None."""

    def __init__(self, content: bytes) -> None:
        """Divide a body.

        Raises:
            RefusedError: an array is damaged.
        """
        self.unit, self._items = "line", 0
        self._content = content
        self._pieces = self._divided(content)

    def __iter__(self) -> Iterator[tuple[int, bytes | msgspec.Raw | None]]:
        """Yield each piece with its number."""
        return self._pieces

    @property
    def count(self) -> int:
        """How many there are, at least one; lines that are empty are counted as well."""
        return self._items or self._content.strip().count(b"\n") + 1

    def _divided(self, content: bytes) -> Iterator[tuple[int, bytes | msgspec.Raw | None]]:
        start = content.lstrip()[:1]
        if start == b"[":
            items = _array(content)
            self.unit, self._items = "event", len(items)
            return enumerate(items, 1)
        if start == b"{" and _is_one_object(content):
            self.unit, self._items = "event", 1
            return iter([(1, content)])
        return ((number, None if line.isspace() else line) for number, line in enumerate(io.BytesIO(content), 1))


def _array(content: bytes) -> list[msgspec.Raw]:
    try:
        return msgspec.json.decode(content, type=list[msgspec.Raw])
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"expected an array of events, found {begun(content)} ({reason(error)})") from None


def _is_one_object(content: bytes) -> bool:
    """Tell whether a body of several lines is one object, and not one a line."""
    if b"\n" not in content.strip():
        return False
    first = next(line for line in io.BytesIO(content) if not line.isspace())
    return not _is_json(first) and _is_json(content)


def _is_json(content: bytes) -> bool:
    try:
        msgspec.json.decode(content, type=msgspec.Raw)
    except (ValueError, RecursionError):
        return False
    return True
