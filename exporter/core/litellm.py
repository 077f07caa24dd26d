"""LiteLLM's records of calls, as its callback `generic_api` posts them: which call was whose, and what it used.

A record is one `StandardLoggingPayload`. Answers from LiteLLM's own cache used nothing, nor did calls that failed
before there was an answer. Whoever reads what is stored (a response, a list) is told its usage once more: it is none.
"""

import json
import re
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from contextlib import suppress
from hashlib import blake2b
from typing import Any, Final, TypeVar

import msgspec

from exporter.config.model import LitellmUsage
from exporter.core.calls import Call, addresses_of, providers_of
from exporter.core.money import NANO
from exporter.core.pieces import Pieces
from exporter.core.refused import RefusedError, shown
from exporter.core.usage_records import MOST_RECORDS, MOST_VALUES, expect_few, tokens

_FAILURE: Final = "failure"
_WORK: Final = re.compile(
    r"a?(completion|text_completion|embedding|responses|transcription|speech|rerank|image_generation|image_edit)"
    r"|a?generate_content(_stream)?|anthropic_messages|_arealtime|_aresponses_websocket|pass_through_endpoint"
    r"|a?llm_passthrough_route"
)
_READING: Final = re.compile(r"a?(get|list)_\w+")
_ITS_OWN_TAGS: Final = ("User-Agent: ", "Credential: ")
_OF_THE_CALL: Final = ("end_user", "model_group")
_NAMES: Final = {
    "key_alias": "user_api_key_alias",
    "team_alias": "user_api_key_team_alias",
    "team_id": "user_api_key_team_id",
    "user_id": "user_api_key_user_id",
}
_MOST_USD: Final = 10**6  # of one call
_LONGEST_PART: Final = 2**16  # bytes of a record's tags, and of its metadata
_LONGEST_MENDED: Final = 2**20  # bytes of a record
_NOTHING: Final = msgspec.Raw(b"null")
_NO_REASON: Final = (b"null", b"{}", b'""')

Part = TypeVar("Part")


class _Cached(msgspec.Struct):
    cached_tokens: int | None = None


class _UsageObject(msgspec.Struct):
    prompt_tokens_details: _Cached | None = None


class _Metadata(msgspec.Struct):
    user_api_key_alias: str | None = None
    user_api_key_team_alias: str | None = None
    user_api_key_team_id: str | None = None
    user_api_key_user_id: str | None = None
    requester_metadata: msgspec.Raw = _NOTHING
    spend_logs_metadata: msgspec.Raw = _NOTHING
    usage_object: _UsageObject | None = None


class Record(msgspec.Struct):
    """What is read of a record; all else is passed over. What may be of any size is read where it is asked for."""

    status: str
    model: str
    call_type: str = "completion"
    id: str | None = None
    litellm_call_id: str | None = None
    custom_llm_provider: str | None = None
    model_group: str | None = None
    api_base: str | None = None
    cache_hit: bool | None = None
    prompt_tokens: int | float | None = None
    completion_tokens: int | float | None = None
    response_cost: float | None = None
    response_cost_failure_debug_info: msgspec.Raw = _NOTHING
    endTime: float | None = None  # noqa: N815 - its name
    end_user: str | None = None
    request_tags: msgspec.Raw = _NOTHING
    metadata: _Metadata | None = None


_DECODER: Final = msgspec.json.Decoder(Record)
_TAGS: Final = msgspec.json.Decoder(list[Any] | None)
_METADATA: Final = msgspec.json.Decoder(dict[str, Any] | None)


def records(content: bytes) -> Iterable[tuple[int, bytes | msgspec.Raw]]:
    """Divide a body: one record, an array of them, or one a line.

    Raises:
        RefusedError: it is none of these.
    """
    content = content.strip().removeprefix(BOM_UTF8)
    if content[:1] == b"[":
        expect_few("values", sum(map(content.count, (b",", b"[", b"{"))), MOST_VALUES)
    pieces = _divided(content)
    expect_few("records", pieces.count, MOST_RECORDS)
    return ((number, piece) for number, piece in pieces if piece is not None)


def _divided(content: bytes) -> Pieces:
    try:
        return Pieces(content)
    except RefusedError as error:
        with suppress(ValueError, RecursionError):
            return Pieces(_mended(content))
        raise error from None


def _mended(content: bytes) -> bytes:
    """Return as JSON what Python takes for it, with NaN as null and half a character as a question mark.

    LiteLLM writes such things where a caller did: that must take no call off the books, its own or others'.
    """
    return json.dumps(json.loads(content, parse_constant=lambda _: None), ensure_ascii=False).encode(errors="replace")


def call_of(piece: bytes | msgspec.Raw, places: LitellmUsage) -> Call | None:
    """Return what a record says; None where nothing was used.

    Raises:
        ValueError: it says nothing that can be booked.
    """
    record = _decoded(piece)
    if not _used_something(record):
        return None
    _expect_call(record)
    feature = _first(record, places.feature)
    team = _first(record, places.team)
    return Call(
        form="litellm",
        id=_id(record),
        feature=places.default_feature if feature is None else places.features.get(feature, feature),
        team=None if team is None else places.teams.get(team, team),
        models=_models(record),
        providers=providers_of(record.custom_llm_provider),
        addresses=addresses_of(record.api_base),
        input_tokens=tokens("prompt_tokens", record.prompt_tokens),
        cached_input_tokens=_cached(record),
        output_tokens=tokens("completion_tokens", record.completion_tokens),
        second=record.endTime,
        said_nano_usd=_said(record),
    )


def _used_something(record: Record) -> bool:
    """Tell whether it is a call that may have cost anything, and that no other record tells of."""
    says_so = bool(record.prompt_tokens or record.completion_tokens or record.response_cost)
    if record.cache_hit or _READING.fullmatch(record.call_type):
        return False
    return says_so or (record.status != _FAILURE and _WORK.fullmatch(record.call_type) is not None)


def _expect_call(record: Record) -> None:
    """Raise ValueError where it is no call to a model whose usage is known, and known once."""
    if not _WORK.fullmatch(record.call_type):
        found = f"{shown(record.call_type)}, which may tell the same usage again"
        raise ValueError(f"call_type: expected a call to a model, found {found}")
    if not record.model:
        raise ValueError("model: expected a name, found none")
    if not (record.prompt_tokens or record.completion_tokens or record.response_cost):
        raise ValueError("prompt_tokens: expected what was used, found neither tokens nor a cost")


def _decoded(piece: bytes | msgspec.Raw) -> Record:
    try:
        return _DECODER.decode(piece)
    except (ValueError, RecursionError) as error:
        if len(piece) <= _LONGEST_MENDED and not isinstance(error, msgspec.ValidationError):
            with suppress(ValueError, RecursionError):
                return _DECODER.decode(_mended(bytes(piece)))
        raise ValueError(f"expected a record of LiteLLM, found {error}") from None


def _id(record: Record) -> str:
    """Return what names a call: LiteLLM's own id and that of the answer, which some servers always give alike."""
    call, answer = record.litellm_call_id or "", record.id or ""
    if not (call or answer):
        raise ValueError("litellm_call_id: expected an id, found none")
    named = f"{call}/{record.endTime if answer in ('', call) else answer}"  # a caller may give several calls one id
    return blake2b(named.encode(errors="replace"), digest_size=16).hexdigest()


def _models(record: Record) -> tuple[str, ...]:
    bare = record.model.removeprefix(f"{record.custom_llm_provider}/")
    return tuple(dict.fromkeys((bare or record.model, record.model)))


def _cached(record: Record) -> int:
    usage = record.metadata.usage_object if record.metadata else None
    details = usage.prompt_tokens_details if usage else None
    return tokens("cached_tokens", (details.cached_tokens if details else None) or 0)


def _said(record: Record) -> int | None:
    """Return LiteLLM's own figure; None where it says that it has none, or no sensible one."""
    cost, is_known = record.response_cost, bytes(record.response_cost_failure_debug_info) in _NO_REASON
    if cost is None or not is_known or not 0 <= cost <= _MOST_USD:
        return None
    return round(cost * NANO)


def _first(record: Record, places: Iterable[str]) -> str | None:
    """Return what stands at the first place where anything does."""
    return next((said for place in places if (said := _at(record, place))), None)


def _at(record: Record, place: str) -> str | None:
    kind, _, rest = place.partition(":")
    if kind == "tag":
        said = (tag for tag in _part(record.request_tags, _TAGS) or () if isinstance(tag, str))
        tags = (tag for tag in said if tag.startswith(rest) and not tag.startswith(_ITS_OWN_TAGS))
        return next((tag.removeprefix(rest) for tag in tags), None)
    if kind == "metadata":
        return next(_of_metadata(record, rest), None)
    holder = record if place in _OF_THE_CALL else record.metadata
    name: str | None = getattr(holder, _NAMES.get(place, place), None)
    return name


def _of_metadata(record: Record, key: str) -> Iterator[str]:
    """Yield what the caller's metadata have under a key."""
    metadata = record.metadata
    for said in (metadata.requester_metadata, metadata.spend_logs_metadata) if metadata else ():
        value = (_part(said, _METADATA) or {}).get(key)
        if isinstance(value, str) and value:
            yield value


def _part(raw: msgspec.Raw, decoder: msgspec.json.Decoder[Part]) -> Part | None:
    """Return what a caller wrote; None where it is too much or another thing, since who pays does not depend on it."""
    if len(raw) > _LONGEST_PART:
        return None
    try:
        return decoder.decode(raw)
    except (ValueError, RecursionError):
        return None
