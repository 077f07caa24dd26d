"""The meter of one engine: each beat's interval and reading become entries for the books.

Time is charged whether or not the engine answers. What an interval bought is known only at the next reading, so an
interval with a failed read stays pending until then, at most three beats.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import msgspec

from exporter.config.model import Engine
from exporter.core.counters import Baselines, Known, Movement, added
from exporter.core.money import NANO, Account, Category, Entry, Kind, cost
from exporter.core.prices import HourlyPrice, Interval, in_force, pieces
from exporter.core.readings import Buckets, Counted, EngineReading, Failure
from exporter.core.windows import MINUTE, History, quantile

PENDING_BEATS: Final = 3
UNKNOWN_MODEL: Final = "unknown"
SEVERAL_MODELS: Final = "several"
ABANDONED: Final = "abandoned"
_COMPUTE: Final = tuple(category for category in Category if category.startswith("compute_"))
_NOBODY_THERE: Final = ("refused", "loading")
_LONGEST_START_SECONDS: Final = 3600.0
_TOKENS: Final = {
    Counted.PROMPT_TOKENS: Kind.PROMPT_TOKENS,
    Counted.CACHED_PROMPT_TOKENS: Kind.CACHED_PROMPT_TOKENS,
    Counted.OUTPUT_TOKENS: Kind.OUTPUT_TOKENS,
}
_TIMES: Final = {Counted.PREFILL_TIME: Kind.PREFILL_TIME, Counted.DECODE_TIME: Kind.DECODE_TIME}


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What the config says about one engine during one beat; `gpu` names the kind of GPU in labels.

    `gpu_prices` is what is booked; `gpu_price_now` what is shown: the two differ by energy, which comes in steps.
    """

    engine: Engine
    gpu: str
    gpu_prices: tuple[HourlyPrice, ...]
    gpu_price_now: HourlyPrice | None = None  # None: as in force
    away_ns: int  # an interval longer than this means that we, not the engine, were away

    def nano_usd_per_hour(self, now: int) -> Fraction | None:
        """What the engine's GPUs cost an hour at Unix nanosecond `now`; None without a price."""
        gpus, price = self.engine.gpus_charged, self.gpu_price_now or in_force(self.gpu_prices, now)
        if not gpus:
            return Fraction(0)
        return None if price.nano_usd_per_hour is None else gpus * price.nano_usd_per_hour

    @property
    def model(self) -> str:
        """The model's name as far as the config knows it."""
        return self.engine.models[0] if self.engine.models else UNKNOWN_MODEL


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdStart:
    """A process start to its first answer, both in Unix seconds; `began` is None where the engine does not say."""

    began: float | None
    answered: float

    @property
    def seconds(self) -> float | None:
        """How long users would have waited."""
        return None if self.began is None else max(self.answered - self.began, 0.0)


class MeterState(msgspec.Struct):
    """What a restart of ours must not forget of one engine."""

    url: str
    pending: list[Interval]
    known: Known
    model: str
    answered: bool
    ran: bool
    was_absent: bool
    counts: list[Counted]
    given_up: int
    cold_start: ColdStart | None


class EngineMeter:
    """Follows one engine from beat to beat."""

    def __init__(self, terms: Terms, watched_since: float) -> None:
        """Begin to watch at Unix time `watched_since`: an engine that started before it is not new."""
        self.reading: EngineReading | None = None  # the last beat's; None when it failed
        self.model = terms.model
        self.last_cold_start: ColdStart | None = None
        self.ttft: dict[str, Buckets] = {}
        self.answered = False
        self.is_loading = True  # not up, and not known to be down
        self._was_absent = False  # before its first answer
        self._counts: frozenset[Counted] = frozenset()
        self._ran = False
        self._baselines = Baselines(watched_since)
        self._pending: list[Interval] = []
        self._ttft_history: History[dict[str, Buckets]] = History(fine=6 * MINUTE, keep=6 * MINUTE)
        self._given_up = 0  # the most replies that no finished request explained, in this life of the engine

    def state(self, terms: Terms) -> bytes:
        """Return what must outlive us."""
        return msgspec.msgpack.encode(
            MeterState(
                url=terms.engine.url,
                pending=self._pending,
                known=self._baselines.known,
                model=self.model,
                answered=self.answered,
                ran=self._ran,
                was_absent=self._was_absent,
                counts=sorted(self._counts),
                given_up=self._given_up,
                cold_start=self.last_cold_start,
            )
        )

    def restore(self, state: MeterState, terms: Terms) -> None:
        """Go on where an earlier process stopped; at another address it is another engine, which owes the same time."""
        self._pending = state.pending
        if state.url != terms.engine.url:
            return
        self._baselines.known = state.known
        self.model, self.answered, self.is_loading = state.model, state.answered, not state.answered
        self._ran, self._was_absent, self._counts = state.ran, state.was_absent, frozenset(state.counts)
        self._given_up, self.last_cold_start = state.given_up, state.cold_start

    def beat(self, terms: Terms, interval: Interval | None, outcome: EngineReading | Failure, at: float) -> list[Entry]:
        """Return what one beat books.

        Args:
            terms: the config in force.
            interval: the time since the last beat; None at the first.
            outcome: what the engine answered.
            at: Unix time of the answer in seconds.
        """
        if isinstance(outcome, Failure):
            self.reading = None
            self.is_loading = outcome.loading or not self.answered
            self._was_absent |= not self.answered and outcome.reason in _NOBODY_THERE
            return list(self._without_reading(terms, interval))
        return self._with_reading(terms, interval, outcome, at)

    def adopt(self, terms: Terms) -> None:
        """Take the model's name from another config, where no page names it."""
        if self.reading is not None:
            self.model = _model_of(self.reading, terms)
        elif not self.answered and terms.engine.models:
            self.model = terms.model

    def opened(self, terms: Terms) -> Iterator[Entry]:
        """Yield entries of 0 for all that is known to come, so that `increase()` sees the first step."""
        labels = (terms.engine.name, self.model, terms.engine.tier or "")
        for category in _COMPUTE if terms.engine.gpus_charged else ():
            if self.answered or category is Category.COMPUTE_LOADING:
                yield Entry(spend_account(category, terms.engine, self.model), 0, 0)
                yield Entry(self._unpriced(terms), 0, 0)
        yield Entry(Account(Kind.COLD_STARTS, (terms.engine.name,)), 0, 0)
        for counted in (Counted.PROMPT_TOKENS, Counted.CACHED_PROMPT_TOKENS, Counted.OUTPUT_TOKENS):
            if counted in self._counts and self.model != SEVERAL_MODELS:
                yield Entry(Account(_TOKENS[counted], labels), 0, 0)
        if Counted.HTTP_REQUESTS in self._counts:
            yield Entry(Account(Kind.REQUESTS, (terms.engine.name, self.model, ABANDONED)), 0, 0)

    def ttft_quantile(self, q: float, now: int, window: int) -> float | None:
        """Return the TTFT quantile (seconds) over a window, both in monotonic nanoseconds; None without requests."""
        if self.reading is None or not len(self._ttft_history):
            return None
        _, then = self._ttft_history.before(now - window)
        moved: Buckets | None = None
        for model, buckets in self.ttft.items():
            before = then.get(model)
            counts = buckets.counts
            if before is not None and before.bounds == buckets.bounds:
                counts = tuple(new - old for new, old in zip(counts, before.counts, strict=True))
            moved = added(moved, Buckets(buckets.bounds, counts, 0.0))
        return quantile(q, moved.bounds, moved.counts) if moved else None

    def remember(self, now: int) -> None:
        """Keep this beat's TTFT for the windows to come (monotonic nanoseconds)."""
        self._ttft_history.append(now, dict(self.ttft))

    def _without_reading(self, terms: Terms, interval: Interval | None) -> Iterator[Entry]:
        if interval is None:
            return
        if self.is_loading:
            yield from self.settle(terms)
            yield from self._compute(terms, Category.COMPUTE_LOADING, interval)
            return
        self._pending.append(interval)
        if len(self._pending) > PENDING_BEATS:
            yield from self._compute(terms, Category.COMPUTE_DOWN, self._pending.pop(0))

    def settle(self, terms: Terms) -> Iterator[Entry]:
        """Book what is pending as down: no reading will come that could say more."""
        while self._pending:
            yield from self._compute(terms, Category.COMPUTE_DOWN, self._pending.pop(0))

    def _with_reading(self, terms: Terms, interval: Interval | None, reading: EngineReading, at: float) -> list[Entry]:
        movement = self._baselines.advance(reading, at)
        entries: list[Entry] = []
        waited, self._pending = [*self._pending, *([interval] if interval else [])], []
        for stretch in waited:
            for category, part in self._bought(terms, stretch, reading, movement):
                entries += self._compute(terms, category, part)
        self.model = _model_of(reading, terms)
        self._counts = frozenset(series.counted for series in reading.counters)
        entries += self._counted(terms, movement, round(at * NANO))
        entries += self._hung_up(terms, reading, movement, round(at * NANO))
        entries += self._cold_start(terms, reading, movement, at)
        self.reading, self.answered, self.is_loading = reading, True, False
        self._ran = _running(reading)
        return entries

    def _bought(
        self, terms: Terms, stretch: Interval, reading: EngineReading, movement: Movement
    ) -> Iterator[tuple[Category, Interval]]:
        """Say what an interval before a reading bought."""
        if not self.answered:
            yield Category.COMPUTE_LOADING, stretch
        elif movement.restarted:
            before, after = stretch.split(round(movement.started * NANO) if movement.started else stretch.end)
            away = stretch.duration_ns > terms.away_ns
            yield (Category.COMPUTE_UNOBSERVED if away else Category.COMPUTE_DOWN), before
            yield Category.COMPUTE_LOADING, after
        elif stretch.duration_ns > terms.away_ns:
            yield Category.COMPUTE_UNOBSERVED, stretch
        else:
            busy = _worked(movement) or self._ran or _running(reading)
            yield (Category.COMPUTE_BUSY if busy else Category.COMPUTE_IDLE), stretch

    def _compute(self, terms: Terms, category: Category, interval: Interval) -> Iterator[Entry]:
        gpus = terms.engine.gpus_charged
        if not gpus:
            return
        for piece in pieces(terms.gpu_prices, interval):
            price = piece.price.nano_usd_per_hour
            if price is None:
                yield Entry(self._unpriced(terms), gpus * piece.duration_ns, piece.start)
            else:
                account = spend_account(category, terms.engine, self.model)
                yield Entry(account, cost(piece.duration_ns, price * gpus), piece.start)

    def _unpriced(self, terms: Terms) -> Account:
        return Account(Kind.UNPRICED_GPU, (terms.engine.name, self.model, terms.engine.tier or "", terms.gpu))

    def _counted(self, terms: Terms, movement: Movement, at: int) -> Iterator[Entry]:
        name, tier = terms.engine.name, terms.engine.tier or ""
        for series, moved in movement.counters.items():
            model = series.model or self.model
            if series.counted in _TOKENS:
                yield Entry(Account(_TOKENS[series.counted], (name, model, tier)), moved, at)
            elif series.counted in _TIMES:
                yield Entry(Account(_TIMES[series.counted], (name,)), moved, at)
            elif series.counted is Counted.REQUESTS:
                yield Entry(Account(Kind.REQUESTS, (name, model, series.outcome)), moved, at)
        for histogram, buckets in movement.ttft.items():
            model = histogram.model or self.model
            self.ttft[model] = added(self.ttft.get(model), buckets)

    def _hung_up(self, terms: Terms, reading: EngineReading, movement: Movement, at: int) -> Iterator[Entry]:
        """Count requests whose client hung up: replies that the HTTP layer counted and no finished request explains.

        A request is finished before its reply is counted, so only a new high of the difference is a hang-up. Asking
        for several answers at once (`n`) hides hang-ups, never invents them.
        """
        sides = {Counted.HTTP_REQUESTS: 1, Counted.REQUESTS: -1}
        if not any(series.counted is Counted.HTTP_REQUESTS for series in reading.counters):
            return
        unexplained = sum(value * sides.get(series.counted, 0) for series, value in reading.counters.items())
        if movement.restarted or movement.started is not None:
            self._given_up = 0
        elif not self.answered:
            self._given_up = max(unexplained, 0)
        if unexplained > self._given_up:
            account = Account(Kind.REQUESTS, (terms.engine.name, self.model, ABANDONED))
            yield Entry(account, unexplained - self._given_up, at)
            self._given_up = unexplained

    def _cold_start(self, terms: Terms, reading: EngineReading, movement: Movement, at: float) -> Iterator[Entry]:
        worked_before = any(value for series, value in reading.counters.items() if series.counted in _TOKENS)
        is_young = reading.start_time is None or at - reading.start_time < _LONGEST_START_SECONDS
        came_up = not self.answered and self._was_absent and not worked_before and is_young
        began = not self.answered and movement.started is not None
        if movement.restarted or began or came_up:
            self.last_cold_start = ColdStart(began=movement.started or reading.start_time, answered=at)
            yield Entry(Account(Kind.COLD_STARTS, (terms.engine.name,)), 1, round(at * NANO))


def spend_account(category: Category, engine: Engine, model: str) -> Account:
    """Return the account of the bill for one category of an engine."""
    return Account(Kind.SPEND, (category, engine.name, model, engine.tier or ""))


def _model_of(reading: EngineReading, terms: Terms) -> str:
    names = [name for name in reading.models if name]
    if len(names) > 1:
        return SEVERAL_MODELS
    if names:
        return names[0]
    return terms.model


def _worked(movement: Movement) -> bool:
    return any(moved for series, moved in movement.counters.items() if series.counted in _TOKENS)


def _running(reading: EngineReading) -> bool:
    return any(gauges.running for gauges in reading.models.values())
