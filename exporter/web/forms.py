"""The forms in which usage comes: how large a body may be, who reads it, and how it is answered."""

import logging
from typing import Any, Final, NamedTuple, Protocol

from aiohttp import web

from exporter.config.model import Limits
from exporter.core import litellm, otlp, spans
from exporter.core.usage import Rules, Sheet
from exporter.core.usage_body import Body, Checker, Refusal
from exporter.core.usage_records import Reading, Records
from exporter.ledger import Verdict
from exporter.web import bodies, budgets_json
from exporter.web.bodies import Limit

log = logging.getLogger(__name__)

_MOST_NAMED: Final = 20  # of what is refused, in an answer
_MEDIA: Final = (otlp.PROTOBUF, otlp.JSON)


class Outcome(NamedTuple):
    """What became of a body."""

    verdict: Verdict
    reading: Reading
    sheet: Sheet


class Form(Protocol):
    """One form of usage."""

    path: str

    def limit(self, request: web.Request, limits: Limits) -> Limit:
        """Return how large a body may be; raises bodies.Refusal where its kind is wrong."""

    def read(self, request: web.Request, content: bytes, rules: Rules, now: float) -> Reading:
        """Begin to read a body at a Unix second; raises RefusedError or bodies.Refusal."""

    def taken(self, request: web.Request, outcome: Outcome) -> web.Response:
        """Answer a body that was read."""

    def refused(self, request: web.Request, refusal: bodies.Refusal) -> web.Response:
        """Answer one that is refused as a whole."""


class _Events:
    """Our own: a body is taken whole or not at all, since whoever writes it can mend it."""

    path = "/v1/usage"

    def limit(self, request: web.Request, limits: Limits) -> Limit:  # noqa: ARG002 - as the protocol has it
        return Limit(limits.body_bytes, "limits.body_bytes")

    def read(self, request: web.Request, content: bytes, rules: Rules, now: float) -> Reading:  # noqa: ARG002
        return Body(content, rules.limits.name_length, now)

    def taken(self, request: web.Request, outcome: Outcome) -> web.Response:  # noqa: ARG002
        verdict, reading, sheet = outcome
        if verdict.conflicts:
            return _conflict(reading, [sheet.numbers[position] for position in verdict.conflicts])
        return _json({"accepted": len(verdict.new), "duplicates": verdict.duplicates}, 202)

    def refused(self, request: web.Request, refusal: bodies.Refusal) -> web.Response:  # noqa: ARG002
        return _json({"error": refusal.text}, refusal.status, refusal.headers)


class _Litellm:
    """LiteLLM's records. It reads no answer but its status, so what is refused is in our log as well."""

    path = "/v1/usage/litellm"

    def limit(self, request: web.Request, limits: Limits) -> Limit:  # noqa: ARG002
        return Limit(limits.batch_bytes, "limits.batch_bytes")

    def read(self, request: web.Request, content: bytes, rules: Rules, now: float) -> Reading:  # noqa: ARG002
        places = rules.usage.litellm
        checker = Checker(rules.limits.name_length, now)
        return Records(
            litellm.records(content),
            lambda piece: litellm.call_of(piece, places),
            rules.directory.find,
            checker,
            places.default_feature,
        )

    def taken(self, request: web.Request, outcome: Outcome) -> web.Response:  # noqa: ARG002
        verdict, reading, _ = outcome
        said = {"accepted": len(verdict.new), "duplicates": verdict.duplicates, "skipped": reading.skipped}
        if not reading.refused:
            return _json(said, 202)
        _warn("LiteLLM", reading)
        named = [{"record": one.number, "error": one.why} for one in reading.refused[:_MOST_NAMED]]
        said |= {"rejected": len(reading.refused)}
        if verdict.new or verdict.duplicates:
            return _json({**said, "errors": named}, 202)
        return _json({"error": _first(reading), **said, "errors": named}, 400)

    def refused(self, request: web.Request, refusal: bodies.Refusal) -> web.Response:  # noqa: ARG002
        _warn_of_all("LiteLLM", refusal)
        return _json({"error": refusal.text}, refusal.status, refusal.headers)


class _Traces:
    """OpenTelemetry's spans, and the answers that OTLP has for them."""

    path = "/v1/traces"

    def limit(self, request: web.Request, limits: Limits) -> Limit:
        if request.content_type not in _MEDIA:
            text = f"expected a Content-Type of {' or '.join(_MEDIA)}, found {request.content_type[:40]!r}"
            raise bodies.Refusal(415, text, events=1)
        return Limit(limits.trace_bytes, "limits.trace_bytes")

    def read(self, request: web.Request, content: bytes, rules: Rules, now: float) -> Reading:
        named = rules.usage.traces
        found = _spans(request.content_type, content, spans.READ.union(named.feature, named.team))
        checker = Checker(rules.limits.name_length, now)
        return Records(
            spans.wanted(found),
            lambda span: spans.call_of(span, named),
            rules.directory.find,
            checker,
            named.default_feature,
        )

    def taken(self, request: web.Request, outcome: Outcome) -> web.Response:
        reading = outcome.reading
        if reading.refused:
            _warn("OpenTelemetry", reading)
        message = _first(reading) if reading.refused else ""
        media = request.content_type
        return web.Response(body=otlp.answer(media, len(reading.refused), message), content_type=media)

    def refused(self, request: web.Request, refusal: bodies.Refusal) -> web.Response:
        _warn_of_all("OpenTelemetry", refusal)
        media = request.content_type if request.content_type in _MEDIA else otlp.JSON
        body = otlp.status(media, refusal.text)
        return web.Response(status=refusal.status, body=body, headers=refusal.headers, content_type=media)


FORMS: Final[tuple[Form, ...]] = (_Events(), _Litellm(), _Traces())


def _spans(media: str, content: bytes, read: frozenset[str]) -> list[spans.Span]:
    if media == otlp.JSON:
        return otlp.spans_of_json(content, read)
    try:
        return otlp.spans_of_protobuf(content, read)
    except otlp.MissingExtraError:
        text = "protobuf cannot be read here: install llm-cost-exporter[otlp], or send JSON"
        raise bodies.Refusal(415, text, events=1) from None


def _warn(whose: str, reading: Reading) -> None:
    log.warning("%s: %d of %d records are not booked: %s", whose, len(reading.refused), reading.count, _first(reading))


def _warn_of_all(whose: str, refusal: bodies.Refusal) -> None:
    if refusal.events:
        log.warning("%s: a body is not booked: %s", whose, refusal.text)


def _first(reading: Reading) -> str:
    """Name the first that is refused, and how many more there are."""
    first: Refusal = min(reading.refused)
    more = f" (and {len(reading.refused) - 1} more)" if len(reading.refused) > 1 else ""
    return f"{reading.where(first.number)}: {first.why}{more}"


def _conflict(reading: Reading, numbers: list[int]) -> web.Response:
    more = f" (and {len(numbers) - 1} more)" if len(numbers) > 1 else ""
    text = (
        f"{reading.where(numbers[0])}{more}: id: expected what this id, model and tier stood for before, found another"
    )
    return _json({"error": f"{text} event: nothing is taken", "conflicts": numbers[:_MOST_NAMED]}, 409)


def _json(content: Any, status: int, headers: dict[str, str] | None = None) -> web.Response:
    body = budgets_json.encode(content)
    return web.Response(status=status, body=body, headers=headers, content_type="application/json")
