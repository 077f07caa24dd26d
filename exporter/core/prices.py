"""What an hour costs, from when on: GPU prices of every form, and storage by calendar month."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction

from exporter.config.model import DatedPrice, GpuPrice, StoragePrice
from exporter.core.money import NANO, nano_usd


@dataclass(frozen=True, slots=True)
class HourlyPrice:
    """Nano-dollars an hour for one unit (None: not known), from `start` (Unix nanoseconds) on, and its source."""

    start: int
    nano_usd_per_hour: Fraction | None
    source: str


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an interval in which one price holds."""

    start: int
    duration_ns: int
    price: HourlyPrice


@dataclass(frozen=True, slots=True)
class Interval:
    """Time to be charged: it ends at `end` (Unix nanoseconds) and is `duration_ns` long by the monotonic clock.

    `stepped` says that the wall clock moved against the monotonic one meanwhile: prices are then taken at the end.
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


def gpu_timeline(price: GpuPrice | None, gpu_name: str | None) -> tuple[HourlyPrice, ...]:
    """Resolve the config's GPU price into prices of one GPU, in rising order of their start.

    A GPU whose name `by_name` does not list has no price; before the first dated price only the undated one holds.
    """
    if price is None:
        return (HourlyPrice(0, None, "none"),)
    dated = tuple(HourlyPrice(later.from_, *_form(later, gpu_name)) for later in price.timeline)
    return (HourlyPrice(0, *_form(price, gpu_name)), *dated)


def _form(price: GpuPrice | DatedPrice, gpu_name: str | None) -> tuple[Fraction | None, str]:
    if price.usd_per_hour is not None:
        return nano_usd(price.usd_per_hour), "usd_per_hour"
    if price.instance is not None:
        return nano_usd(price.instance.usd_per_hour) / price.instance.gpus, "instance"
    if price.by_name is None:
        return None, "none"
    known = price.by_name.get(gpu_name) if gpu_name else None
    return (None if known is None else nano_usd(known)), "by_name"


def in_force(timeline: tuple[HourlyPrice, ...], at: int) -> HourlyPrice:
    """Return the price that holds at an instant (Unix nanoseconds)."""
    return next((price for price in reversed(timeline) if price.start <= at), timeline[0])


def pieces(timeline: tuple[HourlyPrice, ...], interval: Interval) -> Iterator[Piece]:
    """Cut an interval where the price changes; the pieces' durations sum to the interval's."""
    if interval.duration_ns == 0:
        return
    if interval.stepped:
        yield Piece(interval.end, interval.duration_ns, in_force(timeline, interval.end))
        return
    start = interval.start
    cuts = [price.start for price in timeline if start < price.start < interval.end]
    for end in (*cuts, interval.end):
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
