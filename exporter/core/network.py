"""Bytes sent, and what they cost: how far the counters of the interfaces moved, charged by the gigabyte."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from exporter.config.prices import NetworkPrice
from exporter.core.money import Account, Entry, Kind, nano_usd

_GB: Final = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkReading:
    """The bytes that each interface of our network namespace has sent since it was made, without the loopback."""

    sent_bytes: Mapping[str, int]


class NetworkMeter:
    """Follows the interfaces from reading to reading."""

    def __init__(self) -> None:
        self._last: Mapping[str, int] | None = None

    def advance(self, reading: NetworkReading) -> int:
        """Return the bytes sent since the last reading; the first one is a baseline, so that it gives 0.

        Each interface is compared with itself before anything is summed, also with how it stood before it was gone for
        a while. One that is new is a baseline, since it may be an old one by a new name; one whose counter fell is
        another of the same name, and counts in full. What a vanished one sent last is not known.
        """
        last = self._last
        self._last = {**(last or {}), **reading.sent_bytes}
        if last is None:
            return 0
        return sum(_moved(last.get(name, value), value) for name, value in reading.sent_bytes.items())

    def rebaseline(self) -> None:
        """Take the next reading as a baseline: what is sent until then is not charged."""
        self._last = None


def _moved(last: int, value: int) -> int:
    return value - last if value >= last else value


def charges(price: NetworkPrice, sent_bytes: int, at: int, accounts: Mapping[str, Account]) -> Iterator[Entry]:
    """Yield what bytes sent at an instant (Unix nanoseconds) cost, in equal parts for all engines, and the bytes.

    Args:
        price: in force; only its `billable_ratio` of the bytes is charged.
        sent_bytes: since the last charge.
        at: when the time in which they were sent began.
        accounts: of the bill, by the name of each engine; at least one.
    """
    amount = sent_bytes * Fraction(price.billable_ratio) * nano_usd(price.usd_per_gb) / _GB / len(accounts)
    for account in accounts.values():
        yield Entry(account, amount, at)
    yield Entry(Account(Kind.SENT_BYTES, ()), sent_bytes, at)
