"""LiteLLM's records of calls, as its callback `generic_api` posts them: which call was whose, and what it used.

A record is one `StandardLoggingPayload`. Answers from LiteLLM's own cache and calls that failed used nothing.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from exporter.config.model import LitellmUsage
from exporter.core.money import NANO
from exporter.core.usage_body import Pieces, shown
from exporter.core.usage_records import Call, address_of, provider_of, tokens

_LONGEST_ANSWER_ID: Final = 200
_SUCCESS: Final = "success"
_ITS_OWN_TAGS: Final = ("User-Agent: ", "Credential: ")
_OF_THE_CALL: Final = ("end_user", "model_group")
_NAMES: Final = {
    "key_alias": "user_api_key_alias",
    "team_alias": "user_api_key_team_alias",
    "team_id": "user_api_key_team_id",
    "user_id": "user_api_key_user_id",
}
_MOST_USD: Final = 10**6  # of one call


class _Cached(msgspec.Struct):
    cached_tokens: int | None = None


class _UsageObject(msgspec.Struct):
    prompt_tokens_details: _Cached | None = None


class _Metadata(msgspec.Struct):
    user_api_key_alias: str | None = None
    user_api_key_team_alias: str | None = None
    user_api_key_team_id: str | None = None
    user_api_key_user_id: str | None = None
    requester_metadata: dict[str, Any] | None = None
    spend_logs_metadata: dict[str, Any] | None = None
    usage_object: _UsageObject | None = None


class Record(msgspec.Struct):
    """What is read of a record; all else is passed over."""

    status: str
    model: str
    id: str | None = None
    litellm_call_id: str | None = None
    custom_llm_provider: str | None = None
    model_group: str | None = None
    api_base: str | None = None
    cache_hit: bool | None = None
    prompt_tokens: int | float | None = None
    completion_tokens: int | float | None = None
    response_cost: float | None = None
    response_cost_failure_debug_info: Any = None
    endTime: float | None = None  # noqa: N815 - its name
    end_user: str | None = None
    request_tags: list[Any] | None = None
    metadata: _Metadata | None = None


_DECODER: Final = msgspec.json.Decoder(Record)


def records(content: bytes) -> Iterable[tuple[int, bytes | msgspec.Raw]]:
    """Divide a body: one record, an array of them, or one a line.

    Raises:
        RefusedError: it is none of these.
    """
    return ((number, piece) for number, piece in Pieces(content) if piece is not None)


def call_of(piece: bytes | msgspec.Raw, places: LitellmUsage) -> Call | None:
    """Return what a record says; None where nothing was used.

    Raises:
        ValueError: it says nothing that can be booked.
    """
    record = _decoded(piece)
    if record.status != _SUCCESS or record.cache_hit:
        return None
    prompt, output = _tokens(record, "prompt_tokens"), _tokens(record, "completion_tokens")
    if not (prompt or output or record.response_cost):
        return None
    feature = _first(record, places.feature)
    team = _first(record, places.team)
    return Call(
        id=_id(record),
        feature=places.default_feature if feature is None else places.features.get(feature, feature),
        team=None if team is None else places.teams.get(team, team),
        models=_models(record),
        provider=provider_of(record.custom_llm_provider),
        address=address_of(record.api_base),
        input_tokens=prompt,
        cached_input_tokens=_cached(record),
        output_tokens=output,
        second=record.endTime,
        said_nano_usd=_said(record),
    )


def _decoded(piece: bytes | msgspec.Raw) -> Record:
    try:
        return _DECODER.decode(piece)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected a record of LiteLLM, found {error}") from None


def _id(record: Record) -> str:
    """Return what names a call: LiteLLM's own id and that of the answer, which some servers always give alike."""
    if not (record.litellm_call_id or record.id):
        raise ValueError("litellm_call_id: expected an id, found none")
    return f"{record.litellm_call_id or ''}/{(record.id or '')[-_LONGEST_ANSWER_ID:]}"


def _models(record: Record) -> tuple[str, ...]:
    bare = record.model.removeprefix(f"{record.custom_llm_provider}/")
    return tuple(dict.fromkeys(name for name in (bare, record.model, record.model_group) if name))


def _tokens(record: Record, name: str) -> int:
    return tokens(name, getattr(record, name) or 0)


def _cached(record: Record) -> int:
    usage = record.metadata.usage_object if record.metadata else None
    details = usage.prompt_tokens_details if usage else None
    return tokens("cached_tokens", (details.cached_tokens if details else None) or 0)


def _said(record: Record) -> int | None:
    """Return LiteLLM's own figure; None where it says that it has none."""
    if record.response_cost is None or record.response_cost_failure_debug_info:
        return None
    if not 0 <= record.response_cost <= _MOST_USD:
        raise ValueError(
            f"response_cost: expected US dollars from 0 to {_MOST_USD}, found {shown(record.response_cost)}"
        )
    return round(record.response_cost * NANO)


def _first(record: Record, places: Iterable[str]) -> str | None:
    """Return what stands at the first place where anything does."""
    return next((said for place in places if (said := _at(record, place))), None)


def _at(record: Record, place: str) -> str | None:
    kind, _, rest = place.partition(":")
    if kind == "tag":
        tags = (tag for tag in record.request_tags or () if isinstance(tag, str) and not tag.startswith(_ITS_OWN_TAGS))
        return next((tag.removeprefix(rest) for tag in tags if tag.startswith(rest)), None)
    if kind == "metadata":
        return next(_of_metadata(record, rest), None)
    said: str | None = getattr(record if place in _OF_THE_CALL else record.metadata, _NAMES.get(place, place), None)
    return said


def _of_metadata(record: Record, key: str) -> Iterator[str]:
    """Yield what the caller's metadata have under a key."""
    metadata = record.metadata
    for said in (metadata.requester_metadata, metadata.spend_logs_metadata) if metadata else ():
        value = (said or {}).get(key)
        if isinstance(value, str) and value:
            yield value
