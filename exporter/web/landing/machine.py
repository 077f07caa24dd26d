"""What is beside the engines: GPUs, sources, and whatever is wrong with the exporter itself."""

from collections.abc import Iterator

from exporter.core.gpu_readings import Measure
from exporter.core.gpus import GpuView
from exporter.core.snapshot import GpusView, LedgerView, Snapshot, SourceView
from exporter.web.landing.blocks import Tone, badge, note, section, table
from exporter.web.landing.markup import Markup, element, joined
from exporter.web.landing.words import known, percent, several, size, span


def problems(snapshot: Snapshot, stands_seconds: float | None) -> Markup:
    """Return what is wrong with the exporter; nothing where all is well.

    Args:
        snapshot: what was published last.
        stands_seconds: how long ago that was, None while the beat goes on.
    """
    bad = [*_about_beat(stands_seconds), *_about_config(snapshot)]
    bad += [] if snapshot.ledger is None else list(_about_ledger(snapshot.ledger))
    found = [(line, Tone.BAD) for line in bad] + [(line, Tone.WARN) for line in snapshot.config.warnings]
    if not found:
        return Markup()
    lines = (element("li", line, class_=tone) for line, tone in found)
    return section("problems", "Needs attention", element("ul", *lines, class_="problems"))


def _about_beat(stands_seconds: float | None) -> Iterator[str]:
    if stands_seconds is not None:
        yield f"The beat stands: everything below is as it was {span(stands_seconds)} ago."


def _about_config(snapshot: Snapshot) -> Iterator[str]:
    config = snapshot.config
    if not config.successful:
        rest = "What is wrong stays as it was." if config.last_success else "Nothing is metered until it is mended."
        yield f"The last load of the config failed. {rest}"
        yield from config.problems


def _about_ledger(ledger: LedgerView) -> Iterator[str]:
    if ledger.problem is not None and ledger.is_open:
        yield f"The ledger cannot be written, metering goes on: {ledger.problem}"
    elif ledger.problem is not None:
        yield f"Nothing is metered until the ledger can be opened: {ledger.problem}"
    if ledger.set_aside is not None:
        yield f"The ledger was damaged, and began anew: {ledger.set_aside} is the old one."


def gpus(snapshot: Snapshot) -> Markup:
    """Return all GPUs, and who tells of them; nothing before anybody was asked."""
    view = snapshot.gpus
    head = ("GPU", "Name", "State", "Utilisation", "Memory used", "Power", "Temperature")
    shown = [table("gpus", head, map(_gpu, view.gpus), words=3)] if view.gpus else []
    told = list(_about_gpus(view))
    return section("gpus", "GPUs", *shown, *told) if shown or told else Markup()


def _about_gpus(view: GpusView) -> Iterator[Markup]:
    if view.gpus or view.detail:
        why = f": {view.detail}" if view.detail else ""
        yield note(f"GPUs are read by: {view.source}{why}")
    if view.visible and view.visible != view.expected:
        yield note(f"{several(view.visible, 'GPU')} visible, the config charges for {view.expected}.")


def _gpu(gpu: GpuView) -> tuple[str, ...]:
    return (
        gpu.reading.index,
        gpu.reading.name,
        _state(up=gpu.reading.up),
        known(gpu.gauge(Measure.UTILIZATION), percent),
        joined(known(gpu.gauge(Measure.MEMORY_USED), size), *_of_memory(gpu)),
        known(gpu.gauge(Measure.POWER), lambda watts: f"{watts:,.0f} W"),
        known(gpu.gauge(Measure.TEMPERATURE, "gpu"), lambda degrees: f"{degrees:.0f} °C"),
    )


def _of_memory(gpu: GpuView) -> Iterator[str]:
    total = gpu.gauge(Measure.MEMORY_TOTAL)
    if total is not None:
        yield f" of {size(total)}"


def sources(snapshot: Snapshot) -> Markup:
    """Return all sources with their state."""
    if not snapshot.sources:
        return Markup()
    rows = (_source(source, snapshot.at) for source in snapshot.sources)
    head = ("Source", "Target", "State", "Last read", "Problem")
    return section("sources", "Sources", table("sources", head, rows, words=len(head)))


def _source(source: SourceView, now: float) -> tuple[str, ...]:
    age = None if source.last_success is None else max(now - source.last_success, 0.0)
    read = "never" if age is None else "now" if age < 1 else f"{span(age)} ago"
    return source.source, source.target, _state(up=source.up), read, source.problem or ""


def _state(*, up: bool) -> Markup:
    return badge("up", Tone.GOOD) if up else badge("down", Tone.BAD)
