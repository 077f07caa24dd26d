"""A body of usage events: bytes into checked events, or what is wrong with the first bad one.

It is one JSON object, an array of them, or one object a line (NDJSON; empty lines do not count).
"""

import unicodedata
from collections.abc import Iterator
from datetime import datetime
from difflib import get_close_matches
from itertools import chain
from typing import Annotated, Any, Final, NamedTuple

import msgspec

from exporter.core.attribution import UNATTRIBUTED
from exporter.core.calls import Call
from exporter.core.pieces import Pieces
from exporter.core.refused import RefusedError, begun, cut, printable, reason, shown

OTHER: Final = "other"  # the feature, the team, the tier and the model of what has no room or no price
MOST_TOKENS: Final = 10_000_000  # of one kind in one event
OLDEST_SECONDS: Final = 86_400
NEWEST_SECONDS: Final = 60
_LONGEST_ID: Final = 256
SLICE: Final = 500  # pieces that are read at once, in some milliseconds
_LONGEST_KEY: Final = 64  # characters of an unknown key for which a similar one is looked for
_SHRINKS: Final = 4  # NFC makes a text shorter by this at most; to compose what is longer could take minutes
_RESERVED: Final = (UNATTRIBUTED, OTHER)

Tokens = Annotated[int, msgspec.Meta(ge=0, le=MOST_TOKENS)]


class Event(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """What an application says of one request; null is as good as absent. A key that is not known is a typo: refused.

    Without an `id` nothing tells a retry from another request: it counts again.
    """

    feature: str
    model: str
    id: str | None = None
    team: str | None = None
    engine: str | None = None
    provider: str | None = None
    tier: str | None = None
    input_tokens: Tokens | None = None
    cached_input_tokens: Tokens | None = None
    output_tokens: Tokens | None = None
    cascade: str | None = None
    escalated_from: str | None = None
    at: str | None = None


class Names(NamedTuple):
    """All names of an event, in NFC."""

    feature: str
    model: str
    team: str | None = None
    engine: str | None = None
    provider: str | None = None
    tier: str | None = None
    cascade: str | None = None
    escalated_from: str | None = None


class Usage(NamedTuple):
    """A checked event: its line or number in the body, its names, and the Unix second at which it happened.

    `call` is what somebody else recorded, where the event comes of that.
    """

    number: int
    names: Names
    second: int
    event: Event
    call: Call | None = None

    @property
    def tokens(self) -> tuple[int, int, int]:
        """Prompt tokens, those of them that were cached, and output tokens."""
        event = self.event
        return event.input_tokens or 0, event.cached_input_tokens or 0, event.output_tokens or 0


class Refusal(NamedTuple):
    """What is wrong with one record of a body whose others are booked."""

    number: int
    why: str


class Checker:
    """Checks what single events say."""

    def __init__(self, name_length: int, now: float) -> None:
        """Take names of at most so many characters; `now` (Unix seconds) is when what does not say so happened."""
        self.longest, self.now = name_length, now
        self._checked: dict[tuple[str | None, ...], Names] = {}

    def usage(self, number: int, event: Event, call: Call | None = None) -> Usage:
        """Return a checked event; raises ValueError."""
        said = (
            event.feature,
            event.model,
            event.team,
            event.engine,
            event.provider,
            event.tier,
            event.cascade,
            event.escalated_from,
        )
        names = self._checked.get(said) or self._names(said)
        _check_values(event)
        second = int(self.now) if event.at is None else _second(event.at, self.now)
        return Usage(number, names, second, event, call)

    def can_be(self, key: str, text: str) -> bool:
        """Tell whether a text can be a name under a key of an event."""
        try:
            _name(key, text, self.longest)
        except ValueError:
            return False
        return True

    def _names(self, said: tuple[str | None, ...]) -> Names:
        found = [
            None if text is None else _name(key, text, self.longest)
            for key, text in zip(_NAMES, said, strict=True)
        ]  # fmt: skip
        names = self._checked[said] = Names._make(found)
        return names


_DECODER: Final = msgspec.json.Decoder(Event)
_NAMES: Final = Names._fields
_COUNTS: Final = ("input_tokens", "cached_input_tokens", "output_tokens")
_FIELDS: Final = Event.__struct_fields__
_A_TIME: Final = "a time with a zone like 2026-11-23T10:00:00Z"


class Body:
    """The events of one body, read in slices so that other work gets its turn in between; it is taken whole."""

    is_whole = True

    def __init__(self, content: bytes, name_length: int, now: float) -> None:
        """Begin to read.

        Args:
            content: the body, inflated.
            name_length: the most characters of a name.
            now: Unix seconds: when an event happened that does not say so.

        Raises:
            RefusedError: an array is damaged.
        """
        self.refused: list[Refusal] = []
        self.skipped = 0
        self._checker, self._pieces = Checker(name_length, now), Pieces(content)

    @property
    def count(self) -> int:
        """How many events it has, at least one; lines that are empty within it are counted as well."""
        return self._pieces.count

    def where(self, number: int) -> str:
        """Say in words where an event stands."""
        return f"{self._pieces.unit} {number}"

    def slices(self) -> Iterator[list[Usage]]:
        """Yield the events, some at a time.

        Raises:
            RefusedError: an event is none.
        """
        found: list[Usage] = []
        is_empty = True
        for number, piece in self._pieces:
            if piece is not None:
                found.append(self._read(number, piece))
            if number % SLICE == 0:
                is_empty = is_empty and not found
                yield found
                found = []
        if is_empty and not found:
            raise RefusedError("expected at least one event, found none")
        yield found

    def refuse(self, number: int, error: Exception) -> None:
        """Raise the error, with the place where the event stands."""
        kind = type(error) if isinstance(error, RefusedError) else RefusedError
        raise kind(f"{self.where(number)}: {error}") from None

    def _read(self, number: int, piece: bytes | msgspec.Raw) -> Usage:
        try:
            event = _DECODER.decode(piece)
        except (ValueError, RecursionError) as error:
            mistake = _mistake(bytes(piece), error, self._checker.longest)
            raise RefusedError(f"{self.where(number)}: {mistake}") from None
        try:
            return self._checker.usage(number, event)
        except ValueError as error:
            raise RefusedError(f"{self.where(number)}: {error}") from None


def _name(key: str, text: str, longest: int) -> str:
    """Return a name in NFC; raises ValueError."""
    name = unicodedata.normalize("NFC", text) if len(text) <= _SHRINKS * longest else ""
    if not name or len(name) > longest or not name.isprintable() or name.strip() != name:
        raise ValueError(f"{key}: expected {_a_name(longest)}, found {shown(text)}")
    if key == "feature" and name in _RESERVED:
        raise ValueError(f"feature: expected another name, since the exporter books by this one, found {shown(name)}")
    return name


def _a_name(longest: int) -> str:
    return f"a name of 1 to {longest} printable characters without a space at its ends"


def _check_values(event: Event) -> None:
    """Raise ValueError for what the types do not tell."""
    if event.id is not None and not 0 < len(event.id) <= _LONGEST_ID:
        raise ValueError(f"id: expected a text of 1 to {_LONGEST_ID} characters, found {shown(event.id)}")
    cached, prompt = event.cached_input_tokens or 0, event.input_tokens or 0
    if cached > prompt:
        raise ValueError(f"cached_input_tokens: expected at most the input_tokens, {prompt}, found {cached}")


def _second(text: str, now: float) -> int:
    """Return the Unix second of an ISO 8601 time that is near enough to now; raises ValueError."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"at: expected {_A_TIME}, found {shown(text)}") from None
    if moment.tzinfo is None:
        raise ValueError(f"at: expected {_A_TIME}, found {shown(text)}, which has no zone")
    at = moment.timestamp()
    if at > now + NEWEST_SECONDS:
        raise ValueError(f"at: expected a time at most {NEWEST_SECONDS} s ahead of the exporter's, found {shown(text)}")
    if at < now - OLDEST_SECONDS:
        raise ValueError(f"at: expected a time within the last 24 hours, found {shown(text)}")
    return int(at)


def _mistake(piece: bytes, error: Exception, longest: int) -> str:
    """Say what is wrong with a piece that is no event."""
    try:
        said = msgspec.json.decode(piece)
    except (ValueError, RecursionError) as damage:
        return f"expected JSON, found {begun(piece)} ({reason(damage)})"
    if not isinstance(said, dict):
        return f"expected an object with feature and model, found {shown(said)}"
    return next(_mistakes(said, longest), f"expected an event, found {begun(piece)} ({reason(error)})")


def _mistakes(said: dict[str, Any], longest: int) -> Iterator[str]:
    for key in said:
        if key not in _FIELDS:
            yield _unknown(key)
    for key in chain(_NAMES, ("id", "at")):
        value = said.get(key)
        if value is None and key in ("feature", "model"):
            yield f"{key}: expected {_a_name(longest)}, found nothing"
        if value is not None and not isinstance(value, str):
            wanted = {"id": "a text", "at": _A_TIME}.get(key) or _a_name(longest)
            yield f"{key}: expected {wanted}, found {shown(value)}"
    for key in _COUNTS:
        value = said.get(key)
        if value is not None and (type(value) is not int or not 0 <= value <= MOST_TOKENS):
            yield f"{key}: expected an integer from 0 to {MOST_TOKENS}, found {shown(value)}"


def _unknown(key: str) -> str:
    close = get_close_matches(key, _FIELDS, n=1) if len(key) <= _LONGEST_KEY else ()
    hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(_FIELDS)}"
    return f"{cut(printable(key))}: expected a known field ({hint}), found an unknown one"
