"""What follows from the money: engines beside an API, and the steps of cascades."""

from exporter.core.break_even import BreakEvenView
from exporter.core.cascades import EdgeView
from exporter.core.snapshot import Snapshot
from exporter.web.landing.blocks import Tone, badge, note, section, table
from exporter.web.landing.markup import Markup
from exporter.web.landing.words import UNKNOWN, count, known, percent, times

_REACHABLE = {True: "reachable", False: "more than today's replicas can serve", None: ""}


def break_even(snapshot: Snapshot) -> Markup:
    """Return engines beside the API that they are compared with; nothing where there is none."""
    views = snapshot.economics.break_even
    if not views:
        return Markup()
    head = ("Engine", "API model", "Self-hosting", "Cost ÷ API, 1 h", "24 h", "Pays from requests a day")
    shown = table("break-even", head, [_beside(view) for view in views], words=3)
    return section("break-even", "Beside an API", shown, note("Below 1× self-hosting is cheaper."))  # noqa: RUF001


def _beside(view: BreakEvenView) -> tuple[str, ...]:
    ratio = view.ratios.get("24h", view.ratios.get("1h"))
    from_requests = known(view.requests_per_day, count)
    reach = _REACHABLE[view.is_reachable]
    return (
        view.engine,
        view.api_model,
        _cheaper(ratio),
        known(view.ratios.get("1h"), times),
        known(view.ratios.get("24h"), times),
        f"{from_requests} ({reach})" if reach else from_requests,
    )


def _cheaper(ratio: float | None) -> str:
    if ratio is None:
        return UNKNOWN
    return badge("cheaper", Tone.GOOD) if ratio < 1 else badge("dearer", Tone.WARN)


def cascades(snapshot: Snapshot) -> Markup:
    """Return the steps of all cascades; nothing where there are none."""
    views = snapshot.economics.edges
    if not views:
        return Markup()
    head = ("Cascade", "Step", "Pays", "Escalated, 1 h", "24 h", "Break-even")
    shown = table("cascades", head, [_step(view) for view in views], words=3)
    return section("cascades", "Cascades", shown, note("Above its break-even the bigger tier alone is cheaper."))


def _step(view: EdgeView) -> tuple[str, ...]:
    edge = view.edge
    return (
        edge.cascade,
        f"{edge.from_tier} → {edge.to_tier}",
        _pays(view),
        known(view.ratios.get("1h"), percent),
        known(view.ratios.get("24h"), percent),
        known(view.break_even_ratio, _limit),
    )


def _limit(ratio: float) -> str:
    """Return a break-even; below 0 no first try is cheap enough."""
    return "never" if ratio < 0 else percent(ratio)


def _pays(view: EdgeView) -> str:
    ratio, limit = view.ratios.get("24h", view.ratios.get("1h")), view.break_even_ratio
    if ratio is None or limit is None:
        return UNKNOWN
    return badge("no", Tone.WARN) if ratio > limit else badge("yes", Tone.GOOD)
