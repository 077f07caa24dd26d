"""What is said of input that is refused: the errors, and how what was found is shown."""

from typing import Final

import msgspec

_LONGEST_SHOWN: Final = 40


class RefusedError(Exception):
    """A body is refused: where, what was expected and what was found."""


class TooManyError(RefusedError):
    """A body has more in it than is read."""


def reason(error: Exception) -> str:
    """Say why bytes are no JSON of ours."""
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8"
    if isinstance(error, RecursionError):
        return "nested too deep"
    return str(error).removeprefix("JSON is malformed: ")


def shown(value: object) -> str:
    """Show a value as JSON, on one line, and not much of it."""
    try:
        text = msgspec.json.encode(value).decode()
    except RecursionError:
        text = "nested too deep"
    return cut(printable(text[: 2 * _LONGEST_SHOWN]))


def begun(content: bytes) -> str:
    """Show how a text begins."""
    return cut(printable(content.strip()[: 8 * _LONGEST_SHOWN].decode(errors="replace"))) or "nothing"


def printable(text: str) -> str:
    """Show what does not print by its number."""
    return "".join(one if one.isprintable() else f"\\u{ord(one):04x}" for one in text[: 2 * _LONGEST_SHOWN])


def cut(text: str) -> str:
    """Show not too much of a text."""
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "…"
