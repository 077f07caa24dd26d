"""Reports: what a period cost, by whatever the books tell apart, and what of it is not known.

The bill says what the money bought, showback who it was spent for. Showback holds a part of the bill only, so the rest
stands beside it in rows of its own: the rows of any report sum to the bill of its period, to the nano-dollar.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from fractions import Fraction
from functools import cache
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

from exporter.core import periods
from exporter.core.attribution import UNATTRIBUTED, Item, Slot
from exporter.core.money import LABELS, NANO, Account, Category, Kind, divided
from exporter.core.periods import QUARTER, Period

DAY: Final = "day"
PENDING: Final = "pending"
KEYS: Final = ("feature", "team", "model", "tier", "engine", "category", DAY)
_OF_SHOWBACK: Final = frozenset({"feature", "team"})
_SHOWBACK_FACTS: Final = (Kind.FEATURE_REQUESTS, Kind.FEATURE_PROMPT_TOKENS, Kind.FEATURE_OUTPUT_TOKENS)
_BILL_FACTS: Final = (Kind.REQUESTS, Kind.PROMPT_TOKENS, Kind.OUTPUT_TOKENS)
_MISSING: Final = (Kind.UNPRICED_GPU, Kind.UNPRICED_TOKENS, Kind.UNOBSERVED)
_MILLION: Final = 10**6
_HOUR: Final = 3600 * NANO
_CANDIDATE_COST_SHARE: Final = Fraction(1, 10)
_CANDIDATE_FACTOR: Final = 2

Buckets = Mapping[tuple[Account, int], int]  # by the Unix second at which the quarter of an hour begins
Pending = Mapping[tuple[Slot, Item], int]
Key = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked: keys to group by, a period, and the zone by which days are told apart.

    With `share_idle` each engine's idle spend is shared over features as its attributed busy spend is. Under
    `min_tokens` output tokens there is no price per token.
    """

    by: tuple[str, ...]
    period: Period
    zone: ZoneInfo
    share_idle: bool = False
    min_tokens: int = 1000

    @property
    def of_showback(self) -> bool:
        """Whether it asks who the money was spent for."""
        return not _OF_SHOWBACK.isdisjoint(self.by)

    @property
    def facts(self) -> tuple[Kind, ...]:
        """The kinds that count requests, prompt tokens and output tokens."""
        return _SHOWBACK_FACTS if self.of_showback else _BILL_FACTS

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of accounts that an answer needs."""
        books = (Kind.SPEND, Kind.ATTRIBUTED) if self.of_showback else (Kind.SPEND,)
        return (*books, *_MISSING, *(kind for kind in self.facts if _knows(kind, self.by)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one group cost, in nano-dollars, and what it did; None is not known.

    `rest` is empty, or says which part of the bill that showback does not hold this is: a category, or `pending`.
    Grouped by team alone it may be `unattributed`, too: what nobody claimed is no team's.
    """

    key: Key
    rest: str = ""
    nano_usd: int
    requests: int | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    nano_usd_per_million_output: Fraction | None = None
    is_known: bool = True  # False where nothing is booked, and something had no price


class _Cell(NamedTuple):
    """The finest that both books tell apart, side by side; `rest` as in a row."""

    feature: str = ""
    team: str = ""
    rest: str = ""
    category: str = ""
    engine: str = ""
    model: str = ""
    tier: str = ""
    day: str = ""


Sums = Mapping[tuple[Account, str], int]  # by account and local day
_Group = tuple[Key, str]  # a row's key and rest


def objection(by: Sequence[str]) -> str | None:
    """Say why no book can group by these keys; None where one can."""
    named = [key for key in by if key in _OF_SHOWBACK]
    if named and "category" in by:
        return f"no book knows both: category is told apart by the bill alone, {named[0]} by showback alone"
    return None


def answer(question: Question, sums: Sums, pending: Pending) -> list[Row]:
    """Return the rows of a report: by day, the dearest first, and last what showback does not hold.

    A group that cost nothing is left out, unless requests or tokens of it are known. `sums` are those of `by_day`.
    """
    cells = _showback(question, sums, pending) if question.of_showback else _bill(sums)
    money: Counter[_Group] = Counter()
    api: Counter[_Group] = Counter()  # of the bill: what engines' tokens did not cost
    for cell, amount in cells.items():
        money[_group(question, cell)] += amount
        api[_group(question, cell)] += amount if cell.category == Category.API else 0
    facts = {kind: _counted(question, kind, sums) for kind in question.facts}
    is_priced = _priced(question, sums)
    groups = {group for group, amount in money.items() if amount}.union(*facts.values())
    rows = [
        _row(question, group, money[group], api[group], [facts[kind].get(group) for kind in question.facts], is_priced)
        for group in groups
    ]
    return sorted(rows, key=lambda row: _order(question, row))


def by_day(question: Question, buckets: Buckets) -> Sums:
    """Sum what lies in the period by account and local day."""

    @cache
    def day_of(start: int) -> str:
        return local_date(question.zone, start * NANO).isoformat() if start * NANO in question.period else ""

    sums: Counter[tuple[Account, str]] = Counter()
    for (account, start), amount in buckets.items():
        if day := day_of(start):
            sums[account, day] += amount
    return sums


def local_date(zone: ZoneInfo, at: int) -> date:
    """Return the date of the local day that holds an instant (Unix nanoseconds)."""
    return datetime.fromtimestamp(periods.day(zone, at).start // NANO, zone).date()


def first_instant(zone: ZoneInfo, day: date) -> int:
    """Return when a local date begins, in Unix nanoseconds; one that a zone left out begins with the next."""
    noon = datetime.combine(day, time(12), zone)
    return periods.day(zone, int(noon.timestamp()) * NANO).start


def _of_kind(sums: Sums, kind: Kind) -> Iterator[tuple[dict[str, str], int]]:
    """Yield the labels of each account of a kind, the day among them, and its sum."""
    for (account, day), amount in sums.items():
        if account.kind is kind:
            yield {**dict(zip(LABELS[kind], account.labels, strict=False)), DAY: day}, amount


def _bill(sums: Sums) -> Mapping[_Cell, int]:
    return {_Cell(**labels): amount for labels, amount in _of_kind(sums, Kind.SPEND)}


def _showback(question: Question, sums: Sums, pending: Pending) -> Mapping[_Cell, int]:
    """Return showback and, beside it, what of the bill it does not hold.

    Whatever showback has or waits for is taken off the category of the bill that it is a part of. Less than nothing is
    left there where the time of the money lies in another period: it was booked late.
    """
    cells: Counter[_Cell] = Counter()
    for labels, amount in _of_kind(sums, Kind.SPEND):
        cells[_Cell(rest=labels.pop("category"), **labels)] += amount
    for labels, amount in _of_kind(sums, Kind.ATTRIBUTED):
        cells[_Cell(**labels)] += amount
        whole = Category.COMPUTE_BUSY if labels["engine"] else Category.API
        cells[_Cell(**{**labels, "feature": "", "team": "", "rest": whole})] -= amount
    for cell, amount in _waiting(question, pending):
        cells[cell] += amount
        cells[cell._replace(rest=Category.COMPUTE_BUSY)] -= amount
    return _with_idle_shared(cells) if question.share_idle else cells


def _waiting(question: Question, pending: Pending) -> Iterator[tuple[_Cell, int]]:
    for (slot, item), amount in pending.items():
        at = slot.start // QUARTER * QUARTER * NANO
        if item[0] == "nano_usd" and at in question.period:
            day = local_date(question.zone, at).isoformat()
            yield _Cell(rest=PENDING, engine=slot.engine, model=item[1], tier=item[2], day=day), amount


def _with_idle_shared(cells: Mapping[_Cell, int]) -> Mapping[_Cell, int]:
    """Share idle spend; weights are those of the whole period, so that a day without work is paid for as well.

    It stays with its engine, model, tier and day: only who it is for changes. An engine that did nothing for anybody
    keeps it.
    """
    busy: dict[str, Counter[tuple[str, str]]] = {}
    for cell, amount in sorted(cells.items()):
        if not cell.rest and cell.engine and amount:
            busy.setdefault(cell.engine, Counter())[cell.feature, cell.team] += amount
    shared = Counter(cells)
    for cell, amount in cells.items():
        weights = busy.get(cell.engine)
        if cell.rest == Category.COMPUTE_IDLE and weights:
            parts = divided(amount, list(weights.values()))
            for (feature, team), part in zip(weights, parts, strict=True):
                shared[cell._replace(feature=feature, team=team, rest="")] += part
            shared[cell] -= amount
    return shared


def _group(question: Question, cell: _Cell) -> _Group:
    is_nobodys = question.of_showback and "feature" not in question.by and cell.feature == UNATTRIBUTED
    return tuple(getattr(cell, key) for key in question.by), UNATTRIBUTED if is_nobodys else cell.rest


def _knows(kind: Kind, by: Iterable[str]) -> bool:
    return set(by) <= {*LABELS[kind], DAY}


def _counted(question: Question, kind: Kind, sums: Sums) -> Mapping[_Group, int]:
    """Return what a kind counted by group; nothing where it does not know the keys.

    What is claimed for the feature `unattributed` tells nothing of what that paid for.
    """
    if not _knows(kind, question.by):
        return {}
    counts: Counter[_Group] = Counter()
    for labels, amount in _of_kind(sums, kind):
        if labels.get("feature") != UNATTRIBUTED:
            counts[_key(question, labels), ""] += amount
    return counts


def _priced(question: Question, sums: Sums) -> Callable[[Key], bool]:
    """Return what tells whether all that may belong to a key has a price.

    GPU time without one may be any feature's; tokens without one are those of who claimed tokens of their model.
    """
    places = [place for place, key in enumerate(question.by) if key in (*LABELS[Kind.UNPRICED_GPU], DAY)]
    untold = {tuple(labels[question.by[at]] for at in places) for labels, _ in _of_kind(sums, Kind.UNPRICED_GPU)}
    models = {(labels["model"], labels[DAY]) for labels, _ in _of_kind(sums, Kind.UNPRICED_TOKENS)}
    kind = question.facts[-1]
    claims = _of_kind(sums, kind) if question.of_showback and _knows(kind, question.by) else ()
    tokens = {_key(question, labels) for labels, _ in claims if (labels["model"], labels[DAY]) in models}
    return lambda key: tuple(key[at] for at in places) not in untold and key not in tokens


def _key(question: Question, labels: Mapping[str, str]) -> Key:
    return tuple(labels[key] for key in question.by)


def _row(
    question: Question,
    group: _Group,
    nano_usd: int,
    api: int,
    facts: Sequence[int | None],
    is_priced: Callable[[Key], bool],
) -> Row:
    key, rest = group
    requests, prompt_tokens, output_tokens = facts
    priced = None
    if output_tokens and output_tokens >= question.min_tokens and nano_usd > api and is_priced(key):
        priced = Fraction((nano_usd - api) * _MILLION, output_tokens)
    return Row(
        key=key,
        rest=rest,
        nano_usd=nano_usd,
        requests=requests,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        nano_usd_per_million_output=priced,
        is_known=bool(nano_usd or rest) or is_priced(key),
    )


def _order(question: Question, row: Row) -> tuple[str, bool, int, Key, str]:
    day = row.key[question.by.index(DAY)] if DAY in question.by else ""
    return day, bool(row.rest), -row.nano_usd, row.key, row.rest


class Value(NamedTuple):
    """A feature's share of what all features cost, its share of what they are worth, and whether the two disagree."""

    cost_ratio: Fraction
    value_ratio: Decimal | None
    is_candidate: bool


def values(rows: Sequence[Row], value_ratios: Mapping[str, Decimal]) -> dict[str, Value]:
    """Hold the cost of each feature against its value; `rows` are those of a report by feature alone.

    What nobody claimed is a feature here; what showback does not hold is none.
    """
    costs = {row.key[0]: row.nano_usd for row in rows if not row.rest}
    whole = sum(costs.values())
    found = {}
    for feature, nano_usd in costs.items():
        ratio, value = Fraction(nano_usd, whole or 1), value_ratios.get(feature)
        found[feature] = Value(ratio, value, value is not None and is_candidate(ratio, value))
    return found


def is_candidate(cost_ratio: Fraction, value_ratio: Decimal) -> bool:
    """Say whether a smaller model is worth a try: a tenth of the cost or more, and twice its share of the value."""
    return cost_ratio >= max(_CANDIDATE_COST_SHARE, _CANDIDATE_FACTOR * Fraction(value_ratio))


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """How far back a ledger knows: since it began, and since the oldest quarter-hour that it keeps (Unix nanoseconds).

    `forgot` says that amounts from before that are gone. None is not known.
    """

    now: int
    accounting_start: int | None = None
    oldest: int | None = None
    forgot: bool = False

    @property
    def known_since(self) -> int | None:
        """From when on all that was booked is there."""
        known = [at for at in (self.accounting_start, self.oldest if self.forgot else None) if at is not None]
        return max(known, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """What a period's bill is known to lack: time in nanoseconds, and tokens; None is not known."""

    unpriced_gpu_ns: int = 0
    unpriced_tokens: int = 0
    unobserved_ns: int = 0
    before_history_ns: int | None = None


def missing(period: Period, sums: Sums, history: History) -> Missing:
    """Return what is known to be missing in a period; `sums` are those of `by_day`."""
    totals: Counter[Kind] = Counter()
    for (account, _), amount in sums.items():
        totals[account.kind] += amount
    since = history.known_since
    return Missing(
        unpriced_gpu_ns=totals[Kind.UNPRICED_GPU],
        unpriced_tokens=totals[Kind.UNPRICED_TOKENS],
        unobserved_ns=totals[Kind.UNOBSERVED],
        before_history_ns=None if since is None else max(min(since, period.end) - period.start, 0),
    )


BEFORE: Final = "hours before the ledger knows anything"


def lacks(lacking: Missing) -> Iterator[tuple[str, str]]:
    """Yield how much is missing, and of what; what is not, is left out."""
    hours = {
        "GPU hours without a price": lacking.unpriced_gpu_ns,
        "hours that nobody saw and nothing was booked for": lacking.unobserved_ns,
        BEFORE: lacking.before_history_ns,
    }
    yield from ((f"{amount / _HOUR:,.2f}", what) for what, amount in hours.items() if amount)
    if lacking.unpriced_tokens:
        yield f"{lacking.unpriced_tokens:,}", "tokens without a price"


def cautions(period: Period, history: History, lacking: Missing, *, may_be_open: bool) -> Iterator[str]:
    """Yield what a reader must know before the figures; that it is not over only if it is not `may_be_open`."""
    begin = history.accounting_start
    if begin is not None and period.start < begin:
        yield f"the period begins before the ledger does ({_utc(begin)}): what was spent before is not in it"
    if history.forgot and history.oldest is not None:
        yield f"the period begins before the oldest amounts that the ledger keeps ({_utc(history.oldest)})"
    if period.start > history.now:
        yield "the period lies in the future"
    elif period.end > history.now and not may_be_open:
        yield "the period is not over"
    found = [f"{amount} {what}" for amount, what in lacks(lacking) if what != BEFORE]
    if found:
        yield f"not in the figures: {', '.join(found)}"


def _utc(at: int) -> str:
    return datetime.fromtimestamp(at // NANO, UTC).isoformat().replace("+00:00", "Z")
