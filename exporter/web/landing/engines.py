"""Engines: what each costs, what it is doing, and what its signals ask for."""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from exporter.core.readings import ModelGauges
from exporter.core.scaling import Signal
from exporter.core.snapshot import EngineView, Snapshot
from exporter.web.landing.blocks import Tone, badge, bar, card, cards, facts, note, section, table
from exporter.web.landing.markup import Markup, element, joined
from exporter.web.landing.words import count, hourly, known, percent, seconds, several, usd

_STATES: Final = {"up": Tone.GOOD, "loading": Tone.WARN, "down": Tone.BAD}
_SIGNALS: Final[dict[str, tuple[str, Callable[[float], str]]]] = {
    "queue_depth": ("Requests waiting", count),
    "gpu_utilization": ("GPU utilisation", percent),
    "ttft": ("TTFT p95, 1 min", seconds),
}
_SCALE: Final = 1.5  # a bar ends at so many scale-up thresholds
_MARKS: Final = "A signal beyond the second mark of its bar asks for another replica, one below the first for fewer."
_WINDOWS: Final = {"5m": "5 min", "1h": "1 h", "24h": "24 h"}


def engines(snapshot: Snapshot) -> Markup:
    """Return all engines."""
    if not snapshot.engines:
        return section("engines", "Engines", note("No engine has been read yet."))
    shown = (_engine(index, view) for index, view in enumerate(snapshot.engines))
    return section("engines", "Engines", note(_MARKS), cards(shown))


def _engine(index: int, view: EngineView) -> Markup:
    title = joined(view.name, " ", badge(view.state, _STATES.get(view.state, Tone.PLAIN)))
    return card(
        title,
        note("; ".join(_about(view))),
        facts(_facts(view)),
        _tokens(index, view),
        element("h4", "Scaling signals"),
        element("ul", *map(_signal, view.signals), class_="signals"),
    )


def _about(view: EngineView) -> Iterator[str]:
    if view.model:
        yield f"model {view.model}"
    if view.tier:
        yield f"tier {view.tier}"
    yield view.workload
    if view.kind:
        yield view.kind
    price = view.gpu_price_usd_per_hour
    yield several(view.gpus, "GPU") + (" without a price" if price is None else f" at {hourly(price)}")


def _facts(view: EngineView) -> Iterator[tuple[str, str]]:
    yield "Cost", known(view.spend_usd_per_hour, hourly)
    yield "Cost of missing load", known(view.underused_spend_usd_per_hour, hourly)
    yield "Running", known(_sum(view, "running"), count)
    yield "Waiting", known(_sum(view, "waiting"), count)
    yield "TTFT p95, 5 min", known(view.ttft_p95_seconds["5m"], seconds)
    if view.ttft_target_seconds is not None:
        yield "TTFT target", seconds(view.ttft_target_seconds)
    yield "KV cache", known(_fullest(view.models.values()), percent)
    yield "Load, 5 min", known(view.windows["5m"].load_ratio, percent)


def _sum(view: EngineView, name: str) -> float | None:
    told = [value for gauges in view.models.values() if (value := getattr(gauges, name)) is not None]
    return sum(told) if told else None


def _fullest(models: Iterable[ModelGauges]) -> float | None:
    return max((one.kv_cache_usage_ratio for one in models if one.kv_cache_usage_ratio is not None), default=None)


def _tokens(index: int, view: EngineView) -> Markup:
    windows = [view.windows[window] for window in _WINDOWS]
    rows = [
        ("output", *(known(window.usd_per_million_output_tokens, usd) for window in windows)),
        ("total", *(known(window.usd_per_million_total_tokens, usd) for window in windows)),
    ]
    caption = f"USD per million tokens of {view.name}"
    head = ("USD per 1M tokens", *_WINDOWS.values())
    return table(f"engine-{index}", head, rows, words=1, caption=caption)


def _signal(signal: Signal) -> Markup:
    name, say = _SIGNALS.get(signal.name, (signal.name, count))
    word, tone = verdict(signal)
    value = joined(known(signal.value, say), f" / {say(signal.up)}")
    return element(
        "li",
        element("span", name, class_="name"),
        element("span", value, class_="n"),
        *_bar(signal, name, tone),
        badge(word, tone),
    )


def verdict(signal: Signal) -> tuple[str, Tone]:
    """Say in a word what a signal asks for."""
    if signal.value is None:
        return "not known", Tone.PLAIN
    if signal.value > signal.up:
        return "scale up", Tone.WARN
    return ("low", Tone.PLAIN) if signal.value < signal.down else ("ok", Tone.GOOD)


def _bar(signal: Signal, name: str, tone: Tone) -> Iterator[Markup]:
    """Yield the value beside both thresholds; nothing where it is not known."""
    if signal.ratio is None:
        yield element("span", class_="bar")
        return
    marks = (signal.down / signal.up / _SCALE, 1 / _SCALE)
    yield bar(name, signal.ratio / _SCALE, f"{percent(signal.ratio)} of the scale-up threshold", tone, marks)
