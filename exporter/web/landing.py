"""The landing page: what this exporter is, how it is doing, where to go."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Final

from exporter.core.budgets import BudgetView
from exporter.core.cap import Override
from exporter.core.gpu_readings import Measure
from exporter.core.money import NANO
from exporter.core.snapshot import EngineView, GpusView, LedgerView, Snapshot, SourceView
from exporter.web.budgets_json import usd, utc

_STYLE: Final = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;width:100%;margin:.5rem 0 1.5rem}
th,td{text-align:left;padding:.3rem .8rem .3rem 0;border-bottom:1px solid #8884}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
.problem{border-left:4px solid #c33;padding-left:.8rem;white-space:pre-wrap}
.scroll{overflow-x:auto}
"""
_LINKS: Final = (
    ("/metrics", "metrics"),
    ("/v1/budgets", "budgets (JSON)"),
    ("/v1/snapshot", "snapshot (JSON)"),
    ("/-/healthy", "healthy"),
    ("/-/ready", "ready"),
)


def render(snapshot: Snapshot, overrides: Mapping[str, Override]) -> str:
    """Return the page as HTML, with the overrides in force by budget; it loads nothing and runs nothing."""
    links = " · ".join(f'<a href="{path}">{name}</a>' for path, name in _LINKS)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>llm-cost-exporter</title><style>{_STYLE}</style></head><body><h1>llm-cost-exporter</h1>"
        f"<p>Version {escape(snapshot.version)}, role {escape(snapshot.role)}. {links}</p>"
        f"{_problems(snapshot)}{_budgets(snapshot.budgets, overrides)}{_engines(snapshot.engines)}"
        f"{_gpus(snapshot.gpus)}{_sources(snapshot.sources)}</body></html>"
    )


def _problems(snapshot: Snapshot) -> str:
    config = snapshot.config
    parts = []
    if not config.successful:
        rest = "What is wrong stays as it was." if config.last_success else "Nothing is metered until it is mended."
        parts.append(f"<h2>Config</h2><p>The last load of the config failed. {rest}</p>{_lines(config.problems)}")
    if config.warnings:
        parts.append(_lines(config.warnings))
    if snapshot.ledger is not None:
        parts += [_lines([text]) for text in _about_ledger(snapshot.ledger)]
    return "".join(parts)


def _about_ledger(ledger: LedgerView) -> Iterator[str]:
    if ledger.problem is not None and ledger.is_open:
        yield f"The ledger cannot be written, metering goes on: {ledger.problem}"
    elif ledger.problem is not None:
        yield f"Nothing is metered until the ledger can be opened: {ledger.problem}"
    if ledger.set_aside is not None:
        yield f"The ledger was damaged, and began anew: {ledger.set_aside} is the old one."


def _lines(lines: Iterable[str]) -> str:
    text = "\n".join(lines)
    return f'<p class="problem">{escape(text)}</p>'


def _budgets(budgets: Iterable[BudgetView], overrides: Mapping[str, Override]) -> str:
    rows = [
        (
            view.budget.name,
            name,
            period.state.value,
            view.mode.value,
            _override(overrides.get(view.budget.name)),
            _money(period.spent),
            _money(period.limit),
        )
        for view in budgets
        for name, period in view.periods.items()
    ]
    head = ("budget", "period", "state", "cap", "override", "spent, USD", "limit, USD")
    return _table("Budgets", head, rows, numbers_from=5)


def _override(override: Override | None) -> str:
    if override is None:
        return "-"
    return f"{usd(override.amount_nano_usd):f} USD more until {utc(override.until_ns)} {override.reason}"


def _money(nano: int | None) -> str:
    return "-" if nano is None else f"{nano / NANO:,.2f}"


def _engines(engines: Iterable[EngineView]) -> str:
    head = ("engine", "state", "model", "USD/h", "USD per 1M output tokens (5m)", "waiting", "TTFT p95 (5m)")
    rows = [
        (
            engine.name,
            engine.state,
            engine.model,
            _number(engine.spend_usd_per_hour),
            _number(engine.windows["5m"].usd_per_million_output_tokens),
            _number(_waiting(engine)),
            _number(engine.ttft_p95_seconds["5m"], " s"),
        )
        for engine in engines
    ]
    return _table("Engines", head, rows, numbers_from=3)


def _waiting(engine: EngineView) -> float | None:
    return next((signal.value for signal in engine.signals if signal.name == "queue_depth"), None)


def _gpus(gpus: GpusView) -> str:
    head = ("gpu", "name", "state", "utilisation", "memory used", "power", "temperature")
    rows = [
        (
            gpu.reading.index,
            gpu.reading.name,
            "up" if gpu.reading.up else "not up",
            _number(gpu.gauge(Measure.UTILIZATION)),
            _number(gpu.gauge(Measure.MEMORY_USED), " B"),
            _number(gpu.gauge(Measure.POWER), " W"),
            _number(gpu.gauge(Measure.TEMPERATURE, "gpu"), " °C"),
        )
        for gpu in gpus.gpus
    ]
    why = f": {gpus.detail}" if gpus.detail else ""
    told = f"<p>GPUs are read by: {escape(gpus.source + why)}</p>" if gpus.source else ""
    differ = gpus.visible and gpus.visible != gpus.expected
    warning = f"{gpus.visible} GPU(s) are visible, the config charges for {gpus.expected}."
    return _table("GPUs", head, rows, numbers_from=3) + told + (f"<p>{warning}</p>" if differ else "")


def _sources(sources: Iterable[SourceView]) -> str:
    rows = [(source.source, source.target, "up" if source.up else "down", source.problem or "") for source in sources]
    return _table("Sources", ("source", "target", "state", "problem"), rows, numbers_from=9)


def _table(title: str, head: tuple[str, ...], rows: Sequence[tuple[str, ...]], numbers_from: int) -> str:
    def cells(tag: str, row: tuple[str, ...]) -> str:
        styles = (' class="n"' if index >= numbers_from else "" for index in range(len(row)))
        return "".join(f"<{tag}{style}>{escape(cell)}</{tag}>" for style, cell in zip(styles, row, strict=True))

    if not rows:
        return ""
    header = f"<tr>{cells('th', head)}</tr>"
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<h2>{title}</h2><div class="scroll"><table><thead>{header}</thead><tbody>{body}</tbody></table></div>'


def _number(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:.4g}{unit}"
