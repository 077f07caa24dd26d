"""The state of the exporter after one beat: everything that the page, the landing page and scripts show."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from exporter.core.break_even import BreakEvenView
from exporter.core.budgets import BudgetView
from exporter.core.cascades import EdgeView
from exporter.core.gpu_readings import Driver
from exporter.core.gpus import GpuView
from exporter.core.money import Kind
from exporter.core.readings import Buckets, ModelGauges
from exporter.core.scaling import Signal

MISSED_BEATS: Final = 3  # after so many nobody has looked for too long


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowView:
    """An engine's economy in one window; None where it is not known."""

    usd_per_million_output_tokens: float | None
    usd_per_million_total_tokens: float | None
    load_ratio: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineView:
    """One engine as its last beat left it; None where it is not known."""

    name: str
    model: str
    tier: str
    workload: str
    kind: str | None
    state: str  # loading, up or down
    gpus: float
    gpu: str
    gpu_price_usd_per_hour: float | None
    gpu_price_source: str
    spend_usd_per_hour: float | None
    underused_spend_usd_per_hour: float | None
    windows: Mapping[str, WindowView]
    models: Mapping[str, ModelGauges]
    ttft: Mapping[str, Buckets]
    ttft_p95_seconds: Mapping[str, float | None]
    ttft_target_seconds: float | None
    signals: tuple[Signal, ...]
    min_replicas: int
    cold_start_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceView:
    """One source: its last read, and how often it failed for which reason; times are Unix seconds."""

    source: str
    target: str
    up: bool
    last_success: float | None
    read_seconds: float
    interval_seconds: float
    errors: Mapping[str, int]
    problem: str | None  # the last failure in words, None while it is up


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigView:
    """How the last load of the config went."""

    successful: bool
    last_success: float | None
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GpusView:
    """All GPUs, and who told of them: `source` is nvml, dcgm or none, `reason` why not the one before it.

    `visible` is what the source shows, `expected` what the config speaks of; `engines` has (engine, index, UUID).
    """

    source: str = ""
    reason: str = ""
    detail: str = ""
    driver: Driver | None = None
    visible: int | None = None
    expected: int | None = None
    gpus: tuple[GpuView, ...] = ()
    engines: tuple[tuple[str, str, str], ...] = ()
    errors: Mapping[tuple[str, str], int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerView:
    """How writing to the ledger goes: nano-dollars that wait, failed attempts, the last commit in Unix seconds.

    `problem` says in words why writing or, as long as it is not open, opening fails now; `set_aside` is where a
    damaged ledger was moved.
    """

    errors: int
    problem: str | None
    is_open: bool = True
    uncommitted: int = 0
    last_commit: float | None = None
    set_aside: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowbackView:
    """What is open of showback: nano-dollars that wait by engine, and how well events cover each engine and window.

    `value_ratios` are the operator's estimates of each feature's share of user value.
    """

    pending: Mapping[str, int] = field(default_factory=dict)
    coverage: Mapping[tuple[str, str], float] = field(default_factory=dict)
    value_ratios: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class EconomicsView:
    """What follows from the money: engines beside an API, and the steps of cascades."""

    break_even: tuple[BreakEvenView, ...] = ()
    edges: tuple[EdgeView, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything after one beat.

    `totals` holds the integer counters by kind and labels (nano-dollars, nanoseconds, counts).
    """

    at: float
    version: str
    role: str
    interval_seconds: float
    accounting_start: float | None
    hub_url: str | None = None
    config: ConfigView
    engines: tuple[EngineView, ...] = ()
    gpus: GpusView = GpusView()
    sources: tuple[SourceView, ...] = ()
    budgets: tuple[BudgetView, ...] = ()
    alert_thresholds: Mapping[tuple[str, str], float] = field(default_factory=dict)  # by alert and severity
    showback: ShowbackView = ShowbackView()
    economics: EconomicsView = EconomicsView()
    ledger: LedgerView | None = None
    totals: Mapping[Kind, Mapping[tuple[str, ...], int]] = field(default_factory=dict)
