"""Spans of calls to models, as OpenTelemetry's conventions for generative AI describe them.

Spans alone are read: the metrics of the same calls would count them twice. Tokens that were cached or spent on
reasoning are parts of the input and the output, and never added. Of two spans around one call, the inner one counts.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final, NamedTuple

from exporter.config.model import TracesUsage
from exporter.core.money import NANO
from exporter.core.usage_records import Call, provider_of, tokens

_SERVER: Final = 2  # the kind of span
_INFERENCE: Final = ("chat", "text_completion", "generate_content", "embeddings")
_OPERATION: Final = "gen_ai.operation.name"
_ERROR: Final = "error.type"
# Each by its names, the newest first.
_INPUT: Final = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens")
_OUTPUT: Final = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens")
_CACHED: Final = ("gen_ai.usage.cache_read.input_tokens", "gen_ai.usage.cache_read_input_tokens")
_PROVIDER: Final = ("gen_ai.provider.name", "gen_ai.system")
_MODEL: Final = ("gen_ai.response.model", "gen_ai.request.model")
_ADDRESS, _PORT = "server.address", "server.port"
_HTTPS: Final = 443  # left out where it is the port
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


def wanted(spans: Collection[Span]) -> Iterator[tuple[int, Span]]:
    """Yield with their numbers the spans of calls to models that a client or a library made."""
    found = [(number, span) for number, span in enumerate(spans, 1) if _is_inference(span)]
    outer = {span.parent for _, span in found}
    return ((number, span) for number, span in found if span.id not in outer)


def _is_inference(span: Span) -> bool:
    operation = span.attributes.get(_OPERATION)
    has_usage = any(key in span.attributes for key in (*_INPUT, *_OUTPUT))
    return span.kind != _SERVER and (operation in _INFERENCE or (operation is None and has_usage))


def call_of(span: Span, named: TracesUsage) -> Call | None:
    """Return what a span says; None where it failed and used nothing.

    Raises:
        ValueError: it says nothing that can be booked.
    """
    used = [_first(span.attributes, names) for names in (_INPUT, _OUTPUT)]
    if used == [None, None]:
        if _ERROR in span.attributes:
            return None
        raise ValueError(f"{_INPUT[0]}: expected tokens, found none: a stream tells them if it is asked to")
    models = tuple(dict.fromkeys(str(span.attributes[name]) for name in _MODEL if span.attributes.get(name)))
    if not models:
        raise ValueError(f"{_MODEL[1]}: expected a model, found none")
    return Call(
        id=_id(span),
        feature=_named(span, named.feature) or named.default_feature,
        team=_named(span, named.team),
        models=models,
        provider=provider_of(_text(_first(span.attributes, _PROVIDER))),
        address=_address(span),
        input_tokens=tokens(_INPUT[0], used[0] or 0),
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


def _address(span: Span) -> str | None:
    host = _text(span.attributes.get(_ADDRESS))
    return f"{host}:{span.attributes.get(_PORT, _HTTPS)}" if host else None
