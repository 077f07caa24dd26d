"""What really happened, as a ledger's books tell it: work, spend, idle gaps, tiers and cascades of some days.

Books keep quarter-hours. So an idle gap is a run of whole quarters in which an engine cost money and did nothing;
shorter ones are not seen, and the first and last minutes of a gap are not counted. And an engine is measured over the
whole quarters that were paid for: when in a quarter one came, went or was away nobody knows.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, NamedTuple

from exporter.core.break_even import LEAST_REQUESTS
from exporter.core.cascades import Edge, cost_of_a_request
from exporter.core.meter import ABANDONED
from exporter.core.money import LABELS, NANO, Account, Category, Kind
from exporter.core.periods import QUARTER
from exporter.core.planning import ratio

KINDS: Final = (
    Kind.SPEND,
    Kind.REQUESTS,
    Kind.PROMPT_TOKENS,
    Kind.CACHED_PROMPT_TOKENS,
    Kind.OUTPUT_TOKENS,
    Kind.COLD_STARTS,
    Kind.UNOBSERVED,
    Kind.FEATURE_REQUESTS,
    Kind.CASCADE_REQUESTS,
    Kind.ESCALATIONS,
)
COMPUTE: Final = tuple(category for category in Category if category.startswith("compute_"))
_TOKENS: Final = (Kind.PROMPT_TOKENS, Kind.CACHED_PROMPT_TOKENS, Kind.OUTPUT_TOKENS)
_HOUR: Final = 3600
_DAY: Final = 86_400
_MILLI: Final = 1000

Buckets = Mapping[tuple[Account, int], int]  # by the Unix second at which the quarter of an hour begins
Labelled = tuple[dict[str, str], int, int]  # labels of an account, when a quarter-hour begins, the amount


class Stretch(NamedTuple):
    """Time from one Unix second until another, which is not part of it."""

    start: int
    end: int

    def holds(self, second: int) -> bool:
        """Tell whether a second, or a quarter-hour that begins with it, belongs to this time."""
        return self.start - QUARTER < second < self.end

    def part(self, quarter: int) -> "Stretch":
        """Return what of a quarter-hour is within this time."""
        return Stretch(max(self.start, quarter), min(self.end, quarter + QUARTER))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One engine over some time: seconds that were observed, nano-dollars by category, counts, gaps in seconds."""

    engine: str
    seconds: Fraction
    spend: Mapping[Category, int]
    requests: int = 0
    tokens: Mapping[Kind, int]
    cold_starts: int = 0
    gaps: tuple[Fraction, ...] = ()
    most_output_tokens_per_second: Fraction | None = None

    @property
    def days(self) -> Fraction:
        """How long that is."""
        return self.seconds / _DAY

    @property
    def compute(self) -> int:
        """Nano-dollars for compute of every kind."""
        return sum(self.spend.get(category, 0) for category in COMPUTE)

    @property
    def compute_usd_per_hour(self) -> Fraction | None:
        """What its GPUs cost in an hour, on average; None where nothing is booked."""
        return self.usd_per_hour(*COMPUTE)

    def usd_per_hour(self, *categories: Category) -> Fraction | None:
        """Return what categories cost in an hour, on average; None where nothing is booked."""
        spent = sum(self.spend.get(category, 0) for category in categories)
        return ratio(Fraction(spent, NANO) * _HOUR, self.seconds) if spent else None

    @property
    def requests_per_day(self) -> Fraction | None:
        """Finished requests in a day, on average."""
        return ratio(self.requests, self.days)

    def per_request(self, kind: Kind) -> Fraction | None:
        """Return tokens of a request, on average; None where there were too few requests."""
        return ratio(self.tokens.get(kind, 0), self.requests) if self.requests >= LEAST_REQUESTS else None

    @property
    def network_usd_per_request(self) -> Fraction | None:
        """What bytes sent cost a request; None where they are not booked, or there were too few requests."""
        spent = self.spend.get(Category.NETWORK)
        if spent is None or self.requests < LEAST_REQUESTS:
            return None
        return Fraction(spent, NANO * self.requests)

    @property
    def idle_ratio(self) -> Fraction | None:
        """Idle spend ÷ all spend on compute; None where nothing is booked."""
        return ratio(self.spend.get(Category.COMPUTE_IDLE, 0), self.compute)

    @property
    def idle_seconds(self) -> Fraction | None:
        """Seconds that it idled: its observed time × idle_ratio; None where nothing is booked."""
        return None if self.idle_ratio is None else self.idle_ratio * self.seconds

    @property
    def cold_start_seconds(self) -> Fraction | None:
        """Seconds of a cold start: its observed time × loading ÷ all compute spend ÷ starts; None without starts."""
        part = ratio(self.spend.get(Category.COMPUTE_LOADING), self.compute)
        return ratio(None if part is None else part * self.seconds, self.cold_starts)


def engines(buckets: Buckets) -> list[str]:
    """Name the engines that money was spent on."""
    return sorted({labels["engine"] for labels, _, _ in _of(buckets, Kind.SPEND) if labels["engine"]})


def observed(buckets: Buckets, stretch: Stretch) -> Fraction:
    """Return how many seconds of a stretch were observed, 0 or more."""
    return _seconds([stretch], (amount for _, at, amount in _of(buckets, Kind.UNOBSERVED) if stretch.holds(at)))


def _seconds(parts: Iterable[Stretch], unobserved: Iterable[int]) -> Fraction:
    """Return the length of parts less nanoseconds that nobody observed, 0 or more."""
    return max(sum(part.end - part.start for part in parts) - Fraction(sum(unobserved), NANO), Fraction(0))


def measured(buckets: Buckets, engine: str, stretch: Stretch, peaks: Iterable[int] = ()) -> Measured:
    """Return what books say of an engine over its part of a stretch; a peak is in thousandths of a token a second."""
    quarters = _own(buckets, engine, stretch)
    own = {key: amount for key, amount in buckets.items() if key[1] in quarters}
    spend: Counter[Category] = Counter()
    for labels, _, amount in _of(own, Kind.SPEND, engine):
        spend[Category(labels["category"])] += amount
    best = max(peaks, default=None)
    finished = (how for how in _of(own, Kind.REQUESTS, engine) if how[0]["outcome"] != ABANDONED)
    return Measured(
        engine=engine,
        seconds=_seconds(map(stretch.part, quarters), (amount for _, _, amount in _of(own, Kind.UNOBSERVED))),
        spend=spend,
        requests=sum(amount for _, _, amount in finished),
        tokens={kind: sum(amount for _, _, amount in _of(own, kind, engine)) for kind in _TOKENS},
        cold_starts=sum(amount for _, _, amount in _of(own, Kind.COLD_STARTS, engine)),
        gaps=tuple(_gaps(buckets, engine)),
        most_output_tokens_per_second=None if best is None else Fraction(best, _MILLI),
    )


def _own(buckets: Buckets, engine: str, stretch: Stretch) -> Collection[int]:
    """Return the quarters of a stretch that an engine was paid for to their ends; all, where it costs nothing."""
    first, last = (second // QUARTER * QUARTER for second in (stretch.start, stretch.end - 1))
    spent = _of(buckets, Kind.SPEND, engine)
    paid = {at for labels, at, amount in spent if amount and labels["category"] in COMPUTE and first <= at <= last}
    if not paid:
        return range(first, last + 1, QUARTER)
    goes_on = {at for at in paid if at == last or at + QUARTER in paid}
    return {at for at in goes_on if at == first or at - QUARTER in paid}


def _of(buckets: Buckets, kind: Kind, engine: str | None = None) -> Iterator[Labelled]:
    for (account, start), amount in buckets.items():
        if account.kind is kind:
            labels = dict(zip(LABELS[kind], account.labels, strict=False))
            if engine is None or labels.get("engine") == engine:
                yield labels, start, amount


def _gaps(buckets: Buckets, engine: str) -> Iterator[Fraction]:
    """Yield the length of each run of quarter-hours in which all compute was idle."""
    idle: set[int] = set()
    other: set[int] = set()
    for labels, start, amount in _of(buckets, Kind.SPEND, engine):
        if amount and labels["category"] in COMPUTE:
            (idle if labels["category"] == Category.COMPUTE_IDLE else other).add(start)
    length = 0
    for start in sorted(quarters := idle - other):
        length += QUARTER
        if start + QUARTER not in quarters:
            yield Fraction(length)
            length = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredTier:
    """A tier's requests, and what one of them cost on average in US dollars; None where there were too few."""

    name: str
    requests: int
    usd_per_request: Fraction | None


def tiers(buckets: Buckets) -> list[MeasuredTier]:
    """Return the tiers that work was done at, by name.

    Requests are those that a tier's engines finished, and those that usage events tell of models behind an API.
    """
    spend: Counter[str] = Counter()
    of_engine: dict[str, str] = {}
    apis: set[str] = set()
    for labels, _, amount in _of(buckets, Kind.SPEND):
        spend[labels["tier"]] += amount
        if labels["category"] == Category.API:
            apis.add(labels["model"])
        elif labels["tier"]:
            of_engine[labels["engine"]] = labels["tier"]
    requests: Counter[str] = Counter()
    for labels, _, amount in _of(buckets, Kind.REQUESTS):
        if labels["outcome"] != ABANDONED:
            requests[of_engine.get(labels["engine"], "")] += amount
    for labels, _, amount in _of(buckets, Kind.FEATURE_REQUESTS):
        if labels["model"] in apis:
            requests[labels["tier"]] += amount
    return [_tier(name, requests[name], spend[name]) for name in sorted(requests) if name and requests[name]]


def _tier(name: str, requests: int, nano_usd: int) -> MeasuredTier:
    cost = cost_of_a_request((nano_usd, requests))
    return MeasuredTier(name=name, requests=requests, usd_per_request=cost / NANO if cost else None)


def edges(buckets: Buckets) -> dict[Edge, tuple[int, int]]:
    """Return of each step of a cascade the requests that its smaller tier got, and those that it handed over."""
    received: Counter[tuple[str, str]] = Counter()
    for labels, _, amount in _of(buckets, Kind.CASCADE_REQUESTS):
        received[labels["cascade"], labels["tier"]] += amount
    escalated: Counter[Edge] = Counter()
    for labels, _, amount in _of(buckets, Kind.ESCALATIONS):
        escalated[Edge(**labels)] += amount
    return {edge: (received[edge.cascade, edge.from_tier], count) for edge, count in sorted(escalated.items())}


def since(buckets: Buckets, kind: Kind, **labels: str) -> int | None:
    """Return the Unix second of the first quarter in which there was any of a kind with these labels."""
    found = (at for said, at, amount in _of(buckets, kind) if amount and said.items() >= labels.items())
    return min(found, default=None)
