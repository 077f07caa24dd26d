"""Standing costs: what is paid by the hour whatever the engines do.

What belongs to no single engine is shared equally by all.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

from exporter.config.model import Config, Role
from exporter.config.prices import StoragePrice
from exporter.core.money import Account, Category, Entry, cost, nano_usd
from exporter.core.prices import HourlyPrice, Interval, in_force, pieces, storage_timeline


@dataclass(frozen=True, slots=True)
class StandingCost:
    """One item, its price an hour, and the engines that share it."""

    category: Category
    price: HourlyPrice | StoragePrice
    payers: tuple[str, ...]

    def timeline(self, interval: Interval) -> tuple[HourlyPrice, ...]:
        """Return the hourly prices that an interval touches."""
        return storage_timeline(self.price, interval) if isinstance(self.price, StoragePrice) else (self.price,)


def standing_costs(config: Config) -> tuple[StandingCost, ...]:
    """List the standing costs of a config; a sidecar stores nothing of its own."""
    everyone = tuple(engine.name for engine in config.engines)
    found = []
    if config.prices.storage is not None and config.role is not Role.SIDECAR:
        found.append(StandingCost(Category.STORAGE, config.prices.storage, everyone))
    for item in config.prices.other:
        price = HourlyPrice(0, nano_usd(item.usd_per_hour), "other")
        found.append(StandingCost(Category.OTHER, price, (item.engine,) if item.engine else everyone))
    return tuple(found)


def charges(
    costs: tuple[StandingCost, ...], interval: Interval, accounts: Mapping[tuple[Category, str], Account]
) -> Iterator[Entry]:
    """Yield what an interval costs; `accounts` says where each (category, engine) is booked."""
    for item in costs:
        for piece in pieces(item.timeline(interval), interval):
            amount = cost(piece.duration_ns, piece.price.nano_usd_per_hour or Fraction(0)) / len(item.payers)
            for engine in item.payers:
                yield Entry(accounts[item.category, engine], amount, piece.start)


def by_category(costs: tuple[StandingCost, ...], engine: str, at: int) -> dict[Category, Fraction]:
    """Return what an engine's part of each category costs an hour at an instant (Unix nanoseconds)."""
    categories = {item.category for item in costs}
    return {
        category: nano_usd_per_hour(tuple(item for item in costs if item.category is category), engine, at)
        for category in categories
    }


def nano_usd_per_hour(costs: tuple[StandingCost, ...], engine: str, at: int) -> Fraction:
    """Return what an engine's part costs an hour at an instant (Unix nanoseconds)."""
    moment = Interval(at, 0)
    parts = (
        (in_force(item.timeline(moment), at).nano_usd_per_hour or Fraction(0)) / len(item.payers)
        for item in costs
        if engine in item.payers
    )
    return sum(parts, Fraction(0))
