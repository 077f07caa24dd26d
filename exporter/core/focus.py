"""FOCUS 1.2: the ledger as rows of cost and usage, one an hour for whatever the books tell apart.

Busy compute and API spend stand there as showback has them, beside a row for what is pending and one for what showback
will never have; the rest of the bill as it was booked. So nothing counts twice, and all rows sum to the bill.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NamedTuple

from exporter.core.attribution import OTHER, UNATTRIBUTED
from exporter.core.money import LABELS, NANO, Account, Category, Kind
from exporter.core.periods import Period
from exporter.core.reporting import PENDING, Buckets, Pending

_TOKENS_OF_EVENTS: Final = (Kind.FEATURE_PROMPT_TOKENS, Kind.FEATURE_OUTPUT_TOKENS)
INPUT: Final = "input"
OUTPUT: Final = "output"
_DIRECTIONS: Final = {Kind.ATTRIBUTED_INPUT: INPUT, Kind.ATTRIBUTED_OUTPUT: OUTPUT}
KINDS: Final = (Kind.SPEND, Kind.ATTRIBUTED, *_DIRECTIONS, *_TOKENS_OF_EVENTS)
ATTRIBUTED: Final = "attributed"
NOT_ATTRIBUTED: Final = "not_attributed"
ISSUER: Final = "llm-cost-exporter"  # who says so: the ledger knows neither who leases GPUs nor who runs an API
HOUR: Final = 3600
_SHARED: Final = (Category.COMPUTE_BUSY, Category.API)  # what showback holds
_METERS: Final = {
    Category.COMPUTE_BUSY: "Busy Compute",
    Category.COMPUTE_IDLE: "Idle Compute",
    Category.COMPUTE_LOADING: "Loading Compute",
    Category.COMPUTE_DOWN: "Down Compute",
    Category.COMPUTE_UNOBSERVED: "Unobserved Compute",
    Category.STORAGE: "Storage",
    Category.NETWORK: "Network",
    Category.OTHER: "Other",
}
_TOKENS: Final = "Tokens"


class Cell(NamedTuple):
    """What tells rows apart: an hour by the Unix second at which it begins, and labels.

    `attribution` is empty for what no feature can claim, `direction` where it is not known which tokens took the money.
    """

    start: int
    category: str
    engine: str = ""
    model: str = ""
    tier: str = ""
    attribution: str = ""
    feature: str = ""
    team: str = ""
    direction: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one cell cost, in nano-dollars, and the tokens that the money bought; None is not known."""

    cell: Cell
    nano_usd: int
    input_tokens: int | None = None
    output_tokens: int | None = None

    @property
    def tokens(self) -> int | None:
        """All tokens that the row is for; None where they are not known."""
        known = [count for count in (self.input_tokens, self.output_tokens) if count is not None]
        return sum(known) if known else None

    @property
    def meter(self) -> str:
        """What is measured; of tokens the direction, where the row has one only."""
        if self.cell.direction:
            return f"{self.cell.direction.title()} {_TOKENS}"
        if self.cell.category != Category.API:
            return _METERS[Category(self.cell.category)]
        if not self.tokens or (self.input_tokens and self.output_tokens):
            return _TOKENS
        return f"Input {_TOKENS}" if self.input_tokens else f"Output {_TOKENS}"

    @property
    def sku(self) -> str:
        """A name for what was bought that is the same in every file."""
        what = self.cell.category
        if self.meter.endswith(f" {_TOKENS}"):
            what += "_" + self.meter.lower().replace(" ", "_")
        return f"{what}/{self.cell.model}" if self.cell.model else what


def rows(period: Period, buckets: Buckets, pending: Pending) -> list[Row]:
    """Return the rows of a period of whole hours, by hour.

    What cost nothing is left out, but for the free direction of tokens whose other direction cost something.
    """
    cells: Counter[Cell] = Counter()
    for cell, amount in _cells(period, buckets, pending):
        cells[cell] += amount
    found = {cell: amount for cell, amount in cells.items() if amount}
    tokens = _ApiTokens(buckets, found)
    found |= dict.fromkeys(_free(found, tokens), 0)
    return [_row(cell, amount, tokens) for cell, amount in sorted(found.items())]


def _free(cells: Collection[Cell], tokens: "_ApiTokens") -> Iterator[Cell]:
    """Yield the other direction of cells, where its tokens cost nothing."""
    for cell in cells:
        other = cell._replace(direction=OUTPUT if cell.direction == INPUT else INPUT)
        if cell.direction and other not in cells and _row(other, 0, tokens).tokens:
            yield other


def _cells(period: Period, buckets: Buckets, pending: Pending) -> Iterator[tuple[Cell, int]]:
    """Yield the bill, and what showback has or waits for, each time with its other side: taken off the bill."""
    for (account, quarter), amount in buckets.items():
        if quarter * NANO not in period:
            continue
        if account.kind is Kind.SPEND:
            yield _billed(_hour(quarter), *account.labels), amount
        elif account.kind is Kind.ATTRIBUTED:
            part = _attributed(_hour(quarter), *account.labels)
            yield part, amount
            yield part._replace(attribution=NOT_ATTRIBUTED, feature="", team=""), -amount
        elif account.kind in _DIRECTIONS:
            whole = _attributed(_hour(quarter), *account.labels)
            yield whole._replace(direction=_DIRECTIONS[account.kind]), amount
            yield whole, -amount
    for (slot, item), amount in pending.items():
        if item[0] == "nano_usd" and slot.start * NANO in period:
            bill = _billed(_hour(slot.start), Category.COMPUTE_BUSY, slot.engine, *item[1:])
            yield bill._replace(attribution=PENDING), amount
            yield bill, -amount


def _attributed(start: int, feature: str, team: str, engine: str, *of: str) -> Cell:
    bill = _billed(start, Category.COMPUTE_BUSY if engine else Category.API, engine, *of)
    return bill._replace(attribution=ATTRIBUTED, feature=feature, team=team)


def _billed(start: int, category: str, *of: str) -> Cell:
    cell = Cell(start, str(category), *of)
    return cell._replace(attribution=NOT_ATTRIBUTED) if category in _SHARED else cell


def _hour(second: int) -> int:
    return second // HOUR * HOUR


class _ApiTokens:
    """Tokens that events claim of APIs, by hour and label set.

    The ledger counts them without saying who did the work: a model that an engine serves too is left out, and so is
    `other`, where tokens without a price are. Of an hour in which the direction of some money is known and of other is
    not, which happens once in the life of a ledger, they are left out as well.
    """

    def __init__(self, buckets: Buckets, cells: Collection[Cell]) -> None:
        self._mixed = {cell._replace(direction="") for cell in cells if cell.direction}.intersection(cells)
        self._ambiguous = {OTHER, *_served(account for account, _ in buckets)}
        self._prompt, self._output = (_hourly(kind, buckets) for kind in _TOKENS_OF_EVENTS)

    def of(self, cell: Cell) -> tuple[int, int] | None:
        """Return prompt and output tokens of a cell; None where they are not known."""
        if (cell.category, cell.attribution) != (Category.API, ATTRIBUTED) or cell.model in self._ambiguous:
            return None
        if cell._replace(direction="") in self._mixed:
            return None
        key = (cell.start, cell.feature, cell.team, cell.model, cell.tier)
        prompt, output = self._prompt[key], self._output[key]
        return (prompt, output) if prompt or output else None


def _served(accounts: Iterable[Account]) -> Iterator[str]:
    """Yield the models of which an engine is known."""
    for account in accounts:
        labels = dict(zip(LABELS[account.kind], account.labels, strict=False))
        if labels.get("engine") and "model" in labels:
            yield labels["model"]


def _hourly(kind: Kind, buckets: Buckets) -> Counter[tuple[int | str, ...]]:
    counts: Counter[tuple[int | str, ...]] = Counter()
    for (account, quarter), amount in buckets.items():
        if account.kind is kind:
            counts[_hour(quarter), *account.labels] += amount
    return counts


def _row(cell: Cell, amount: int, tokens: _ApiTokens) -> Row:
    prompt, output = tokens.of(cell) or (None, None)
    return Row(
        cell=cell,
        nano_usd=amount,
        input_tokens=None if cell.direction == OUTPUT else prompt,
        output_tokens=None if cell.direction == INPUT else output,
    )


def dollars(nano: int) -> str:
    """Return nano-dollars as dollars, to the last of them."""
    return f"{'-' * (nano < 0)}{abs(nano) // NANO}.{abs(nano) % NANO:09d}"


def record(row: Row) -> dict[str, str]:
    """Return a row by the names of FOCUS's columns; what is empty is null."""
    cell, cost, tokens = row.cell, dollars(row.nano_usd), _count(row.tokens)
    return {
        "BilledCost": cost,
        "EffectiveCost": cost,
        "ListCost": cost,
        "ContractedCost": cost,
        "BillingCurrency": "USD",
        "BillingAccountId": ISSUER,
        "BillingAccountName": ISSUER,
        **_when(cell.start),
        "InvoiceId": "",
        "InvoiceIssuerName": ISSUER,
        "ProviderName": ISSUER,
        "PublisherName": ISSUER,
        "ChargeCategory": "Usage",
        "ChargeClass": "",
        "ChargeDescription": _described(row),
        "ChargeFrequency": "Usage-Based",
        "ServiceCategory": "AI and Machine Learning",
        "ServiceSubcategory": "Generative AI",
        "ServiceName": "LLM API" if cell.category == Category.API else "Self-hosted LLM serving",
        "ResourceId": cell.engine,
        "ResourceName": "",
        "ResourceType": "LLM engine" if cell.engine else "",
        "SkuId": row.sku,
        "SkuMeter": row.meter,
        "ConsumedQuantity": tokens,
        "ConsumedUnit": _TOKENS if tokens else "",
        "PricingQuantity": tokens or cost,
        "PricingUnit": _TOKENS if tokens else "USD",
        "Tags": _tags(feature="" if cell.feature == UNATTRIBUTED else cell.feature, team=cell.team, tier=cell.tier),
        "x_Category": cell.category,
        "x_Attribution": cell.attribution,
        "x_Engine": cell.engine,
        "x_Model": cell.model,
        "x_Tier": cell.tier,
        "x_Feature": cell.feature,
        "x_Team": cell.team,
        "x_InputTokens": _count(row.input_tokens),
        "x_OutputTokens": _count(row.output_tokens),
    }


def _when(start: int) -> Mapping[str, str]:
    """Return the hour, and the calendar month that holds it; each ends where the next begins."""
    first = datetime.fromtimestamp(start, UTC).replace(day=1, hour=0)
    after = first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)
    return {
        "BillingPeriodStart": _utc(first),
        "BillingPeriodEnd": _utc(after),
        "ChargePeriodStart": _utc(datetime.fromtimestamp(start, UTC)),
        "ChargePeriodEnd": _utc(datetime.fromtimestamp(start + HOUR, UTC)),
    }


def _utc(at: datetime) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"


def _count(number: int | None) -> str:
    return "" if number is None else f"{number}.0"  # a loader that guesses types sees a decimal


def _described(row: Row) -> str:
    cell = row.cell
    parts = {"engine": cell.engine, "model": cell.model, "feature": cell.feature, "team": cell.team}
    share = "booked late" if row.nano_usd < 0 else cell.attribution.replace("_", " ")
    what = row.meter if share in ("", ATTRIBUTED) else f"{row.meter} ({share})"
    return ", ".join((what, *(f"{name} {_plain(value)}" for name, value in parts.items() if value)))


def _plain(name: str) -> str:
    """Return a name for one line of prose, in ASCII; as it is it has a column."""
    return name.encode("unicode_escape").decode()


def _tags(**tags: str) -> str:
    named = {key: value for key, value in tags.items() if value}
    return json.dumps(named) if named else ""
