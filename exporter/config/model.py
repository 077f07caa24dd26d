"""The config as frozen values: what each key means, its unit and its default. config.example.yml shows all of it.

Every structure is one mapping of the file. A union is told apart by the shape of what is written: a scalar, a list, a
mapping.
"""

from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from typing import Annotated

import msgspec

from exporter.config import units
from exporter.config.prices import Prices
from exporter.config.section import (
    Amount,
    Device,
    Duration,
    Flag,
    GpuCount,
    Limit,
    Money,
    Name,
    Path,
    Place,
    Positive,
    Ratio,
    Section,
    Size,
    Url,
    Whole,
    WholePositive,
)


class Role(StrEnum):
    """What this process is in a fleet."""

    LONE = "lone"
    SIDECAR = "sidecar"


class Kind(StrEnum):
    """Whose metrics page an engine writes; `auto` decides from the page."""

    AUTO = "auto"
    VLLM = "vllm"
    LLAMACPP = "llamacpp"
    SGLANG = "sglang"
    NIM = "nim"
    TGI = "tgi"


class Workload(StrEnum):
    """What an engine is for; decides the fewest replicas that make sense."""

    INTERACTIVE = "interactive"
    BATCH = "batch"
    NIGHTLY = "nightly"
    WEBHOOK = "webhook"
    SCHEDULED = "scheduled"


class Disaggregation(StrEnum):
    """The engine's part where prompts are computed and answered by different engines."""

    NONE = "none"
    PREFILL = "prefill"
    DECODE = "decode"


class GpuShare(Section, frozen=True, kw_only=True):
    """A part of one device: `share` of a GPU, or `slices` of the seven compute slices for a MIG instance."""

    uuid: Device
    share: Annotated[Decimal, units.GPU_SHARE] | None = None
    slices: Annotated[int, units.SLICES] | None = None

    @property
    def fraction(self) -> Fraction:
        """How much of a whole GPU this is."""
        if self.slices is not None:
            return Fraction(self.slices, 7)
        return Fraction(1) if self.share is None else Fraction(self.share)


class Engine(Section, frozen=True, kw_only=True):
    """One deployment of an inference engine: the unit of cost and scaling."""

    name: Name = "default"
    url: Url
    kind: Kind = Kind.AUTO
    models: tuple[Name, ...] = ()
    addresses: tuple[Name, ...] = ()  # HOST:PORT by which others know it
    tier: Name | None = None
    workload: Workload = Workload.INTERACTIVE
    min_replicas: Whole | None = None
    ttft_target: Duration | None = None
    max_output_tokens_per_second: Positive | None = None
    gpus: GpuCount | tuple[Device | GpuShare, ...] = Fraction(1)
    disaggregation: Disaggregation = Disaggregation.NONE
    token_file: Path | None = None
    ca_file: Path | None = None
    timeout: Duration | None = None

    @property
    def gpus_charged(self) -> Fraction:
        """GPUs this engine pays for, as the config says; never what a driver happens to see."""
        if isinstance(self.gpus, Fraction):
            return self.gpus
        return sum((Fraction(1) if isinstance(gpu, str) else gpu.fraction for gpu in self.gpus), Fraction(0))

    @property
    def ttft_target_seconds(self) -> float | None:
        """The TTFT promised to users: 0.5 s where nothing is said and someone waits, else none."""
        if self.ttft_target is None and self.workload is Workload.INTERACTIVE:
            return 0.5
        return self.ttft_target


class GpuSource(StrEnum):
    """Who is asked about GPUs; `auto` asks the driver where one is visible, else a dcgm-exporter where one is named."""

    AUTO = "auto"
    NVML = "nvml"
    DCGM = "dcgm"
    NONE = "none"


class GpuSelect(StrEnum):
    """Which GPUs are shown: the engines' own, or whatever the source shows."""

    OWN = "own"
    ALL = "all"


class OnFatal(StrEnum):
    """What to do where something fatal happens: end, or stay and say so beside an engine that must not be harmed."""

    EXIT = "exit"
    DEGRADE = "degrade"


class Gpu(Section, frozen=True, kw_only=True):
    """Where GPU facts come from; `name` prices by product name where no driver is visible.

    `on_fatal` says what to do when a driver that was there is gone for good, and only a new process could find it
    again; `release` is how long SIGUSR1 lets go of the driver.
    """

    source: GpuSource = GpuSource.AUTO
    dcgm_url: Annotated[str, units.URL_TEMPLATE] | None = None
    select: GpuSelect | tuple[Device, ...] = GpuSelect.OWN
    name: Name | None = None
    nvml_library: Path | None = None
    on_fatal: OnFatal = OnFatal.DEGRADE
    release: Duration = 600.0


class CapMode(StrEnum):
    """What happens at the limit."""

    OFF = "off"
    SHADOW = "shadow"
    ENFORCE = "enforce"


class OnUnknown(StrEnum):
    """The answer where the spend is not known."""

    ALLOW = "allow"
    DENY = "deny"


class Cap(Section, frozen=True, kw_only=True):
    """What a gateway that asks is told."""

    mode: CapMode = CapMode.SHADOW
    deny_status: Annotated[int, units.DENY_STATUS] = 402
    max_age: Duration = 120.0
    on_unknown: OnUnknown = OnUnknown.ALLOW
    exempt_features: tuple[Name, ...] = ()


class Match(Section, frozen=True, kw_only=True):
    """Which spend a budget holds: each key given must be equal."""

    category: Name | None = None
    engine: Name | None = None
    model: Name | None = None
    tier: Name | None = None
    feature: Name | None = None
    team: Name | None = None


class Budget(Section, frozen=True, kw_only=True):
    """A limit on spend by calendar day and month of a time zone."""

    name: Name
    daily_usd: Limit | None = None
    monthly_usd: Limit | None = None
    timezone: Name = "UTC"
    warn_ratio: Ratio | tuple[Ratio, ...] = Decimal("0.8")
    hard_cap: Flag = False
    cap: Cap = Cap()
    match: Match = Match()


class BudgetApi(Section, frozen=True, kw_only=True):
    """Who may ask about budgets, and who may override one: whoever bears the token in a file.

    Without `token_file` everybody may ask; without `override_token_file` only this machine may override.
    """

    token_file: Path | None = None
    override_token_file: Path | None = None

    def files(self) -> tuple[str, ...]:
        """Name the files that it rests on."""
        return tuple(file for file in (self.token_file, self.override_token_file) if file is not None)


class Features(Section, frozen=True, kw_only=True):
    """Features that applications name in their usage events."""

    known: tuple[Name, ...] = ()
    value_ratio: dict[Name, Ratio] = msgspec.field(default_factory=dict)


class CascadeSource(StrEnum):
    """Where a cascade is counted."""

    EVENTS = "events"
    ENGINES = "engines"


class Cascade(Section, frozen=True, kw_only=True):
    """Tiers that are tried in order."""

    name: Name
    tiers: tuple[Name, ...]
    source: CascadeSource = CascadeSource.EVENTS


class Edges(Section, frozen=True, kw_only=True):
    """Scale up above `up`, down below `down`."""

    up: Positive
    down: Amount


class Scaling(Section, frozen=True, kw_only=True):
    """Thresholds of the scaling signals: waiting requests, a ratio of time, multiples of the TTFT target."""

    queue_depth: Edges = Edges(up=Decimal(10), down=Decimal(2))
    gpu_utilization: Edges = Edges(up=Decimal("0.8"), down=Decimal("0.2"))
    ttft: Edges = Edges(up=Decimal(2), down=Decimal("0.5"))


class EscalationThresholds(Section, frozen=True, kw_only=True):
    """Escalation rates that warn and page."""

    warning: Ratio | None = Decimal("0.3")
    critical: Ratio | None = Decimal("0.4")


class BurnRates(Section, frozen=True, kw_only=True):
    """Multiples of the pace that uses exactly the limit: in an hour 14.4 is 2 % of 30 days, 3.6 is 15 % of a day."""

    fast_month: Positive | None = Decimal("14.4")
    fast_day: Positive | None = Decimal("3.6")
    slow_month: Positive | None = Decimal(3)  # above what a day's high tide comes to


class Alerts(Section, frozen=True, kw_only=True):
    """Thresholds that the alert rules read from the page; null switches an alert off."""

    escalation_ratio: EscalationThresholds = EscalationThresholds()
    idle_usd_per_hour: Money | None = Decimal(5)
    kv_cache_ratio: Ratio | None = Decimal("0.95")
    burn_rate: BurnRates = BurnRates()
    forecast_ratio: Positive | None = Decimal(1)
    exhaustion: Duration | None = 14400.0
    break_even_ratio: Positive | None = Decimal(1)
    cold_starts_per_hour: Positive | None = Decimal(3)
    cold_start: Duration | None = 300.0
    right_sizing_load_ratio: Ratio | None = Decimal("0.2")
    overclaimed_ratio: Positive | None = Decimal("1.1")
    stale_intervals: Positive | None = Decimal(3)
    throttled_ratio: Ratio | None = Decimal("0.1")


class TokenFile(Section, frozen=True, kw_only=True):
    """A bearer token in a file, optionally bound to one team."""

    file: Path
    team: Name | None = None


class LitellmUsage(Section, frozen=True, kw_only=True):
    """Where LiteLLM's records name a feature and a team: the first place that names one counts.

    What stands there goes by the name that `features` or `teams` give it, if they do.
    """

    feature: tuple[Place, ...] = ("tag:feature:", "key_alias")
    team: tuple[Place, ...] = ("team_alias",)
    features: dict[Name, Name] = msgspec.field(default_factory=dict)
    teams: dict[Name, Name] = msgspec.field(default_factory=dict)
    default_feature: Name = "litellm"


class TracesUsage(Section, frozen=True, kw_only=True):
    """Which attributes of a span, or else of its resource, name a feature and a team: the first that is there."""

    feature: tuple[Name, ...] = ("llm.feature", "service.name")
    team: tuple[Name, ...] = ("llm.team",)
    default_feature: Name = "traces"


class Usage(Section, frozen=True, kw_only=True):
    """How usage events are settled, who may post them, and what others' records say in place of events."""

    settle: Duration = 300.0
    tokens: tuple[TokenFile, ...] = ()
    litellm: LitellmUsage = LitellmUsage()
    traces: TracesUsage = TracesUsage()


class Limits(Section, frozen=True, kw_only=True):
    """Sizes beyond which input is refused or grouped."""

    attribution_series: WholePositive = 2000
    name_length: WholePositive = 128
    body_bytes: Size = 2**20
    batch_bytes: Size = 2**23  # of LiteLLM's records, which may come with prompts in them, or after a while all at once
    trace_bytes: Size = 2**22  # of spans: a hostile body takes twenty times that
    events_per_day: WholePositive = 8_000_000  # two such days leave the ledger room for money


class Config(Section, frozen=True, kw_only=True):
    """One file, or the flags of `serve` without one."""

    role: Role = Role.LONE
    hub_url: Url | None = None
    interval: Duration = 5.0
    max_gap: Duration = 21600.0
    min_tokens: WholePositive = 1000
    engines: tuple[Engine, ...]
    gpu: Gpu = Gpu()
    prices: Prices = Prices()
    budgets: tuple[Budget, ...] = ()
    budget_api: BudgetApi = BudgetApi()
    features: Features = Features()
    cascades: tuple[Cascade, ...] = ()
    scaling: Scaling = Scaling()
    alerts: Alerts = Alerts()
    usage: Usage = Usage()
    limits: Limits = Limits()
