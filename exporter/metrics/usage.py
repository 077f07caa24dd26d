"""The rows of usage events: who spends it, and what the events say."""

from collections.abc import Iterator
from typing import Final

from exporter.core.money import LABELS, NANO, Kind
from exporter.core.snapshot import Snapshot
from exporter.metrics.row import Fleet, Row, Sample, Type, counter


def _pending(snapshot: Snapshot) -> Iterator[Sample]:
    return (((engine,), nano / NANO) for engine, nano in snapshot.showback.pending.items())


def _coverage(snapshot: Snapshot) -> Iterator[Sample]:
    return iter(snapshot.showback.coverage.items())


def _value_ratios(snapshot: Snapshot) -> Iterator[Sample]:
    return (((feature,), ratio) for feature, ratio in snapshot.showback.value_ratios.items())


# fmt: off
USAGE: Final[tuple[Row, ...]] = (
    counter("attributed_spend_usd_total", Kind.ATTRIBUTED,
        "Showback in US dollars: busy compute shared over features, and API spend. The rest is feature=unattributed.",
        nano=True),
    Row("attribution_pending_usd", Type.GAUGE,
        "Busy compute that is in the bill and not in showback yet: its settling window is open.",
        ("engine",), Fleet.SUM, _pending),
    Row("attribution_coverage_ratio", Type.GAUGE,
        "Tokens that events claimed per token that the engine counted. Above 1: events claim more than was done.",
        ("engine", "window"), Fleet.NONE, _coverage),
    counter("feature_requests_total", Kind.FEATURE_REQUESTS, "Requests that usage events report."),
    counter("feature_prompt_tokens_total", Kind.FEATURE_PROMPT_TOKENS,
        "Prompt tokens that usage events report, cached ones included."),
    counter("feature_output_tokens_total", Kind.FEATURE_OUTPUT_TOKENS, "Output tokens that usage events report."),
    Row("feature_value_ratio", Type.GAUGE,
        "Your estimate of a feature's share of user value, from the config.", ("feature",), Fleet.NONE, _value_ratios),
    counter("unpriced_tokens_total", Kind.UNPRICED_TOKENS,
        "Tokens of usage events whose model has no price. Any increase means that the bill is incomplete."),
    counter("usage_events_total", Kind.USAGE_EVENTS,
        "Usage events by what became of them; late ones came after their settling window and count in the open one."),
    Row("usage_events_overflow_total", Type.COUNTER,
        "Usage events booked as feature=other, since limits.attribution_series label sets were there before.",
        LABELS[Kind.OVERFLOW_EVENTS], Fleet.SUM, lambda snapshot: snapshot.totals.get(Kind.OVERFLOW_EVENTS, {}).items(),
        stays=True),
    counter("gateway_spend_usd_total", Kind.GATEWAY_SPEND,
        "What LiteLLM says that calls to APIs cost. It is never booked: gateway_booked_spend_usd_total is what was.",
        nano=True),
    counter("gateway_booked_spend_usd_total", Kind.GATEWAY_BOOKED,
        "What is booked for the calls of gateway_spend_usd_total, by the exporter's own prices. 0 where it has none.",
        nano=True),
    counter("cascade_requests_total", Kind.CASCADE_REQUESTS, "Requests that a tier of a cascade received."),
    counter("escalations_total", Kind.ESCALATIONS, "Requests that a tier of a cascade handed over to a bigger one."),
    counter("escalation_spend_usd_total", Kind.ESCALATION_SPEND,
        "What first tries cost that were thrown away: escalations x spend per request of the tier they came from.",
        nano=True),
)
# fmt: on
