"""What an hour costs, from when on: GPU prices of every form, and storage by calendar month."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Final

from exporter.config.prices import DatedPrice, GpuPrice, OwnedPrice, StoragePrice
from exporter.core.money import NANO, nano_usd
from exporter.core.periods import cuts

_HOURS_A_YEAR: Final = 8760  # 365 days, as durations have it
_JOULES_A_KWH: Final = 3_600_000


@dataclass(frozen=True, slots=True)
class HourlyPrice:
    """Nano-dollars an hour for one unit (None: not known), from `start` (Unix nanoseconds) on, and its source.

    `nano_usd_per_joule` is the price of the energy that the unit draws, which is not in the hour and comes on top of
    it (core/energy.py); `assumed_watts` is the power that is assumed where none is measured.
    """

    start: int
    nano_usd_per_hour: Fraction | None
    source: str
    nano_usd_per_joule: Fraction = Fraction(0)
    assumed_watts: Fraction | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an interval in which one price holds."""

    start: int
    duration_ns: int
    price: HourlyPrice


@dataclass(frozen=True, slots=True)
class Interval:
    """Time to be charged: it ends at `end` (Unix nanoseconds) and is `duration_ns` long by the monotonic clock.

    `stepped` says that the wall clock moved against the monotonic one meanwhile: the price is then the last one.
    """

    end: int
    duration_ns: int
    stepped: bool = False

    @property
    def start(self) -> int:
        """The wall time at which it began, by its own length."""
        return self.end - self.duration_ns

    def split(self, at: int) -> tuple["Interval", "Interval"]:
        """Cut in two at a wall time; a part outside is empty."""
        late = min(max(self.end - at, 0), self.duration_ns)
        early = Interval(self.end - late, self.duration_ns - late, self.stepped)
        return early, Interval(self.end, late, self.stepped)


def gpu_timeline(price: GpuPrice | None, names: Mapping[str, Fraction]) -> tuple[HourlyPrice, ...]:
    """Resolve the config's GPU price into prices of one GPU, in rising order of their start.

    Before the first dated price only the undated one holds. `names` has the product names of an engine's GPUs, each
    with how much of such GPUs the engine is charged for: `by_name` gives their mean, and no price where there is no
    name or one that it does not list.
    """
    if price is None:
        return (HourlyPrice(0, None, "none"),)
    return (_form(0, price, names), *(_form(later.from_, later, names) for later in price.timeline))


def _form(start: int, price: GpuPrice | DatedPrice, names: Mapping[str, Fraction]) -> HourlyPrice:
    if price.usd_per_hour is not None:
        return HourlyPrice(start, nano_usd(price.usd_per_hour), "usd_per_hour")
    if price.instance is not None:
        return HourlyPrice(start, nano_usd(price.instance.usd_per_hour) / price.instance.gpus, "instance")
    if price.owned is not None:
        return _owned(start, price.owned)
    if price.by_name is not None:
        return HourlyPrice(start, _mean(price.by_name, names), "by_name")
    return HourlyPrice(start, None, "none")


def _owned(start: int, owned: OwnedPrice) -> HourlyPrice:
    """Spread the purchase evenly over the lifetime (straight-line depreciation); energy: USD/kWh × PUE."""
    purchase = nano_usd(owned.purchase_usd) / (Fraction(owned.lifetime) / 3600)
    upkeep = nano_usd(owned.maintenance_usd_per_year) / _HOURS_A_YEAR
    energy = nano_usd(owned.usd_per_kwh or Decimal(0)) * Fraction(owned.pue) / _JOULES_A_KWH
    watts = None if owned.watts is None else Fraction(owned.watts)
    return HourlyPrice(start, (purchase + upkeep) / owned.gpus, "owned", energy, watts)


def _mean(prices: Mapping[str, Decimal], names: Mapping[str, Fraction]) -> Fraction | None:
    charged = sum(names.values())
    if not charged or not names.keys() <= prices.keys():
        return None
    return sum((nano_usd(prices[name]) * part for name, part in names.items()), Fraction(0)) / charged


def in_force(timeline: tuple[HourlyPrice, ...], at: int) -> HourlyPrice:
    """Return the price that holds at an instant (Unix nanoseconds)."""
    return next((price for price in reversed(timeline) if price.start <= at), timeline[0])


def pieces(timeline: tuple[HourlyPrice, ...], interval: Interval) -> Iterator[Piece]:
    """Cut an interval where the price changes and where a quarter-hour begins; the durations sum to the interval's."""
    if interval.duration_ns == 0:
        return
    if interval.stepped:  # its last nanosecond, since a price that begins at its end holds for the next one
        yield Piece(interval.end, interval.duration_ns, in_force(timeline, interval.end - 1))
        return
    start = interval.start
    changes = (price.start for price in timeline if start < price.start < interval.end)
    for end in (*sorted({*changes, *cuts(start, interval.end)}), interval.end):
        yield Piece(start, end - start, in_force(timeline, start))
        start = end


def storage_timeline(price: StoragePrice, interval: Interval) -> tuple[HourlyPrice, ...]:
    """Return the hourly price of the stored weights for each calendar month (UTC) that an interval touches."""
    monthly = Fraction(price.weights_gb) * nano_usd(price.usd_per_gb_month)
    prices: list[HourlyPrice] = []
    start = _month_start(interval.start)
    while start < interval.end or not prices:
        end = _month_start(start + 32 * 86400 * NANO)
        prices.append(HourlyPrice(start, monthly * 3600 * NANO / (end - start), "storage"))
        start = end
    return tuple(prices)


def _month_start(at: int) -> int:
    moment = datetime.fromtimestamp(at // NANO, UTC)
    first = moment.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return int(first.timestamp()) * NANO
