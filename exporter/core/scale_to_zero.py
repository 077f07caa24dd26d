"""Scaling to zero: what idling costs by type of workload, who would wait, and how long to wait before the last goes.

A cooldown is a ski rental: each idle gap is either waited out (rent) or ended by going to zero, which costs one cold
start when work comes back (buy). Waiting about as long as one cold start never costs more than twice the best that
could be done by somebody who knows the gap beforehand; measured gaps say what would have been best.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from typing import Final

from exporter.config.model import Engine, Workload
from exporter.core.planning import DAYS
from exporter.core.scaling import min_replicas, min_replicas_of

_HOUR: Final = 3600

_NEVER: Final = "never"
_WORDS: Final = {
    Workload.INTERACTIVE: "never to zero: somebody waits for an answer while a replica starts",
    Workload.BATCH: "to zero: a queue waits; wake it by the queue's length, which a replica that is gone cannot tell",
    Workload.NIGHTLY: "to zero: its hour is known; start it one cold start ahead, by the clock",
    Workload.WEBHOOK: "never to zero: the caller gives up before a cold start ends",
    Workload.SCHEDULED: "to zero: its times are known; start it one cold start ahead, by the clock",
}

ADDS_UP: Final = (
    "A cooldown is the whole time from the last request to zero: KEDA's cooldownPeriod comes after the HPA's "
    "scale-down stabilisation, so the two add up. Set the rest of it as cooldownPeriod."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Idleness:
    """How one replica idles: seconds in `days` days, and the gaps of it that are known, each in seconds.

    `gaps` is None where only the sum is known. Idle time outside of all gaps lies in moments too short to be seen.
    """

    usd_per_hour: Fraction
    idle_seconds: Fraction
    days: Fraction
    cold_start_seconds: Fraction | None = None
    gaps: Sequence[Fraction] | None = None

    def usd_per_month(self, seconds: Fraction) -> Fraction:
        """Return what seconds of one replica in `days` days cost in a planned month."""
        return seconds / _HOUR * self.usd_per_hour / self.days * DAYS


@dataclass(frozen=True, slots=True, kw_only=True)
class AtZero:
    """What going to zero does after a cooldown: seconds, times a day, and US dollars a month."""

    cooldown_seconds: Fraction
    cold_starts_per_day: Fraction
    waiting_seconds_per_day: Fraction
    idle_usd_per_month: Fraction
    cold_start_usd_per_month: Fraction
    saving_usd_per_month: Fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What a type of workload should do; None is not known.

    `idle_usd_per_month` is what idling costs where replicas are kept: idle hours × USD an hour × replicas, at least
    one. `advised_usd_per_month` is what is left of it by this advice, cold starts included. Nobody waits for a replica
    that is kept; `cooldown_seconds` is None for it.
    """

    workload: Workload
    min_replicas: int
    idle_usd_per_month: Fraction
    advised_usd_per_month: Fraction | None
    cold_starts_per_day: Fraction | None
    waiting_seconds_per_day: Fraction | None
    cooldown_seconds: Fraction | None
    advice: str


def best_cooldown(gaps: Sequence[Fraction], cold_start: Fraction) -> Fraction:
    """Return the cooldown for which the fewest seconds are paid; the shortest of several.

    None shorter than a cold start is tried: with such a one replicas go and come all the time. Beyond that the cost
    only falls where a gap is waited out whole, so only the gaps themselves need a look.
    """
    ordered = sorted(gaps)
    sums = [Fraction(0), *accumulate(ordered)]

    def paid(cooldown: Fraction) -> tuple[Fraction, Fraction]:
        waited_out = bisect_right(ordered, cooldown)
        return sums[waited_out] + (len(ordered) - waited_out) * (cooldown + cold_start), cooldown

    return min({cold_start, *(gap for gap in ordered if gap > cold_start)}, key=paid)


def at_zero(idleness: Idleness) -> AtZero | None:
    """Return what going to zero would do with the best cooldown; None without gaps or the time of a cold start."""
    gaps, cold_start = idleness.gaps, idleness.cold_start_seconds
    if gaps is None or cold_start is None:
        return None
    cooldown = best_cooldown(gaps, cold_start)
    starts = sum(gap > cooldown for gap in gaps)
    short = max(idleness.idle_seconds - sum(gaps), Fraction(0))
    idle = short + sum((min(gap, cooldown) for gap in gaps), Fraction(0))
    kept = idleness.usd_per_month(max(idleness.idle_seconds, sum(gaps, Fraction(0))))
    idle_usd, start_usd = idleness.usd_per_month(idle), idleness.usd_per_month(starts * cold_start)
    return AtZero(
        cooldown_seconds=cooldown,
        cold_starts_per_day=starts / idleness.days,
        waiting_seconds_per_day=starts * cold_start / idleness.days,
        idle_usd_per_month=idle_usd,
        cold_start_usd_per_month=start_usd,
        saving_usd_per_month=kept - idle_usd - start_usd,
    )


def advice(idleness: Idleness, own: Engine | None = None) -> Iterator[Advice]:
    """Yield what each type of workload should do with the same idle time.

    `own` is the engine that it was measured at: where its config sets min_replicas, that holds for its own type.
    """
    zero = at_zero(idleness)
    for workload in Workload:
        least = min_replicas(own) if own is not None and own.workload is workload else min_replicas_of(workload)
        yield _kept(workload, least, idleness) if least else _to_zero(workload, idleness, zero)


def _kept(workload: Workload, least: int, idleness: Idleness) -> Advice:
    idle, words = idleness.usd_per_month(idleness.idle_seconds) * least, _WORDS[workload]
    return Advice(
        workload=workload,
        min_replicas=least,
        idle_usd_per_month=idle,
        advised_usd_per_month=idle,
        cold_starts_per_day=Fraction(0),
        waiting_seconds_per_day=Fraction(0),
        cooldown_seconds=None,
        advice=words if words.startswith(_NEVER) else "not to zero: the config keeps replicas",
    )


def _to_zero(workload: Workload, idleness: Idleness, zero: AtZero | None) -> Advice:
    words = _WORDS[workload]
    if words.startswith(_NEVER):
        words = f"the config lets it go to zero, but: {words}"
    elif zero is not None and not zero.cold_starts_per_day:
        words = "may go to zero, but no gap is long enough for that to save anything"
    return Advice(
        workload=workload,
        min_replicas=0,
        idle_usd_per_month=idleness.usd_per_month(idleness.idle_seconds),
        advised_usd_per_month=zero.idle_usd_per_month + zero.cold_start_usd_per_month if zero else None,
        cold_starts_per_day=zero.cold_starts_per_day if zero else None,
        waiting_seconds_per_day=zero.waiting_seconds_per_day if zero else None,
        cooldown_seconds=zero.cooldown_seconds if zero else idleness.cold_start_seconds,
        advice=words,
    )
