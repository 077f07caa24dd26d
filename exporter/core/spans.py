"""Spans of calls to models, as OpenTelemetry's conventions for generative AI describe them.

Spans alone are read: the metrics of the same calls would count them twice. Tokens that were cached or spent on
reasoning are parts of the input and the output, and never added. Of two spans around one call, the inner one counts.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from exporter.config.model import TracesUsage
from exporter.core.calls import Call, address, providers_of
from exporter.core.money import NANO
from exporter.core.refused import shown
from exporter.core.usage_records import tokens

SERVER: Final = 2  # the kind of span
_EMBEDDINGS: Final = "embeddings"
_INFERENCE: Final = ("chat", "text_completion", "generate_content", _EMBEDDINGS)
_OPERATION: Final = "gen_ai.operation.name"
_ERROR: Final = "error.type"
# Each by its names, the newest first.
_INPUT: Final = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens")
_OUTPUT: Final = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens")
_CACHED: Final = ("gen_ai.usage.cache_read.input_tokens", "gen_ai.usage.cache_read_input_tokens")
_PROVIDER: Final = ("gen_ai.provider.name", "gen_ai.system")
_MODEL: Final = ("gen_ai.response.model", "gen_ai.request.model")
_ADDRESS, _PORT = "server.address", "server.port"
_LEFT_OUT: Final = (443, 80)  # ports of which a span need not tell
_DEEPEST: Final = 64  # spans around one that are looked at
_LATEST_UNIX_NS: Final = 2**63
READ: Final = frozenset(
    (_OPERATION, _ERROR, *_INPUT, *_OUTPUT, *_CACHED, *_PROVIDER, *_MODEL, _ADDRESS, _PORT)
)  # what is read beside what the config names


class Span(NamedTuple):
    """What is read of a span: ids in hex, its kind as OTLP numbers it, when it ended, attributes by name."""

    id: str
    parent: str
    kind: int
    end_unix_ns: int
    attributes: Mapping[str, Any]
    resource: Mapping[str, Any]


def wanted(spans: Sequence[Span]) -> Iterator[tuple[int, Span | None]]:
    """Yield with their numbers the spans of calls to models that a client or a library made.

    A span around another one of the same operation that says what was used is the same call, seen from further away:
    it is None. Where a tool or an agent is between the two, the inner one is a call of its own.
    """
    by_id = {span.id: span for span in spans if span.id.strip("0")}
    found = [(number, span) for number, span in enumerate(spans, 1) if _is_inference(span)]
    outer = {above for _, span in found if _has_usage(span) for above in _seen_from_further(span, by_id)}
    return ((number, None if span.id in outer else span) for number, span in found)


def _seen_from_further(span: Span, by_id: Mapping[str, Span]) -> Collection[str]:
    """Return the spans around one that are the same call, as far as they are known; none where they go round."""
    operation, above = span.attributes.get(_OPERATION), by_id.get(span.parent)
    passed: dict[str, bool] = {}
    while above is not None and len(passed) < _DEEPEST:
        if above.id == span.id:
            return ()
        of_above = above.attributes.get(_OPERATION)
        if above.id in passed or of_above not in (None, operation):
            break
        passed[above.id] = of_above == operation
        above = by_id.get(above.parent)
    return [id for id, is_alike in passed.items() if is_alike]


def _is_inference(span: Span) -> bool:
    operation = span.attributes.get(_OPERATION)
    return span.kind != SERVER and (operation in _INFERENCE or (operation is None and _has_usage(span)))


def _has_usage(span: Span) -> bool:
    return any(key in span.attributes for key in (*_INPUT, *_OUTPUT))


def call_of(span: Span | None, named: TracesUsage) -> Call | None:
    """Return what a span says; None where it failed and used nothing, or where another one is of the same call.

    Raises:
        ValueError: it says nothing that can be booked.
    """
    if span is None:
        return None
    used = [_first(span.attributes, names) for names in (_INPUT, _OUTPUT)]
    if used == [None, None] and _ERROR in span.attributes:
        return None
    if used[0] is None or (used[1] is None and span.attributes.get(_OPERATION) != _EMBEDDINGS):
        missing = (_INPUT if used[0] is None else _OUTPUT)[0]
        text = f"{missing}: expected tokens, found none: a stream tells them if it is asked to"
        raise ValueError(text if used[0] is None else f"{text}, and only {_EMBEDDINGS!r} of {_OPERATION} have none")
    if not 0 <= span.end_unix_ns < _LATEST_UNIX_NS:
        raise ValueError(f"endTimeUnixNano: expected Unix nanoseconds, found {shown(span.end_unix_ns)}")
    models = tuple(dict.fromkeys(str(span.attributes[name]) for name in _MODEL if span.attributes.get(name)))
    if not models:
        raise ValueError(f"{_MODEL[1]}: expected a model, found none")
    return Call(
        form="span",
        id=_id(span),
        feature=_named(span, named.feature) or named.default_feature,
        team=_named(span, named.team),
        models=models,
        providers=providers_of(_text(_first(span.attributes, _PROVIDER))),
        addresses=_addresses(span),
        input_tokens=tokens(_INPUT[0], used[0]),
        cached_input_tokens=tokens(_CACHED[0], _first(span.attributes, _CACHED) or 0),
        output_tokens=tokens(_OUTPUT[0], used[1] or 0),
        second=span.end_unix_ns / NANO if span.end_unix_ns else None,
    )


def _id(span: Span) -> str:
    if not span.id.strip("0"):
        raise ValueError("spanId: expected an id, found none")
    return span.id


def _first(attributes: Mapping[str, Any], names: Collection[str]) -> Any:
    return next((attributes[name] for name in names if name in attributes), None)


def _named(span: Span, names: Collection[str]) -> str | None:
    """Return what the first attribute says that the span has, or else its resource."""
    for name in names:
        said = _text(span.attributes.get(name)) or _text(span.resource.get(name))
        if said:
            return said
    return None


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _addresses(span: Span) -> tuple[str, ...]:
    host, port = _text(span.attributes.get(_ADDRESS)), span.attributes.get(_PORT)
    if isinstance(port, float) and port.is_integer():
        port = int(port)
    return tuple(address(host, one) for one in (_LEFT_OUT if port is None else (port,))) if host else ()
