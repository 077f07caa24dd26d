"""What follows from the books: self-hosting beside an API, and cascades. Each beat posts, remembers and shows it."""

import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final

from exporter.books import Books
from exporter.clock import Instant
from exporter.config.model import Cascade, Config, Engine
from exporter.core import break_even, cascades
from exporter.core.api_prices import ApiPrice, Wanted
from exporter.core.break_even import BreakEvenView
from exporter.core.cascades import Edge, EdgeView
from exporter.core.meter import ABANDONED
from exporter.core.money import Account, Entry, Kind
from exporter.core.snapshot import EconomicsView, EngineView
from exporter.core.track import Track, Values
from exporter.core.windows import HOUR, WINDOWS
from exporter.resume import Resume

_DAY: Final = 24 * HOUR
_MOST_UNPRICED: Final = 10_000


class Economics:
    """Follows what is bought, beat by beat."""

    def __init__(self, books: Books, resume: Resume) -> None:
        self._books, self._resume = books, resume
        self._tracks: dict[str, Track] = {}
        self._config: Config | None = None
        self._api: ApiPrice | None = None
        self._is_looked_up = True
        self._unpriced: list[Entry] = []  # tokens that wait for the price of the API

    def adopt(self, config: Config, prices: Mapping[Wanted, ApiPrice] | None) -> None:
        """Go by another config, and the API prices that were found for it; None while they are looked up."""
        before, self._config = self._config, config
        reference = config.prices.api.compare_with
        if reference is None:
            self._api = None
        elif prices is not None:
            self._api = prices.get((reference.provider, reference.model))
        elif before is None or before.prices.api.compare_with != reference:
            self._api = None
        self._is_looked_up = prices is not None or reference is None or self._api is not None
        wanted = dict(self._totals())
        self._tracks = {
            series: self._tracks.get(series) or self._resume.track(series, values) for series, values in wanted.items()
        }

    def follow(self, engine: Engine, entries: Sequence[Entry]) -> Iterator[Entry]:
        """Yield what follows from the entries of one engine's beat."""
        if not self._is_looked_up and engine.gpus_charged:
            tokens = [entry for entry in entries if entry.account.kind in break_even.TOKENS]
            self._unpriced = [*self._unpriced, *tokens][-_MOST_UNPRICED:]
        elif self._api is not None and engine.gpus_charged:
            yield from break_even.equivalents(entries, self._api)
        for cascade in self._cascades():
            yield from cascades.from_engines(cascade, entries, engine.tier or "")

    def due(self, now: Instant) -> Iterator[Entry]:
        """Yield what waited for a price: tokens for the API's, and first tries that were thrown away for their cost."""
        if self._is_looked_up:
            waited, self._unpriced = self._unpriced, []
            yield from break_even.equivalents(waited, self._api) if self._api else ()
        for edge in self._edges():
            escalated, costed = (self._total(kind, edge) for kind in (Kind.ESCALATIONS, Kind.COSTED_ESCALATIONS))
            cost = cascades.cost_of_a_request(self._moved(self._tier(edge.from_tier), now))
            yield from cascades.spent_on_first_tries(edge, escalated, costed, cost, now.wall)

    def remember(self, now: Instant) -> None:
        """Remember how everything stands at the end of a beat."""
        for series, values in self._totals():
            track = self._tracks.get(series)
            if track is None:
                track = self._tracks[series] = self._resume.track(series, values)
            track.record(now.monotonic, values)

    def forget(self) -> None:
        """Begin the windows anew, after a gap that nothing was booked for."""
        for track in self._tracks.values():
            track.forget()

    def samples(self) -> Iterator[tuple[str, Values]]:
        """Yield what must outlive us, for the windows of the next process."""
        return self._totals()

    def view(self, engines: Iterable[EngineView], now: Instant) -> EconomicsView:
        """Derive all gauges."""
        api, edges = self._api, tuple(self._edge(edge, now) for edge in self._edges())
        if api is None:
            return EconomicsView(edges=edges)
        return EconomicsView(break_even=tuple(self._break_even(engine, api, now) for engine in engines), edges=edges)

    def _cascades(self) -> tuple[Cascade, ...]:
        return self._config.cascades if self._config else ()

    def _edges(self) -> list[Edge]:
        """Return the steps of all cascades: to the next tier, and whatever else events have told."""
        known = {cascade.name: cascade.tiers for cascade in self._cascades()}
        told = [Edge(*labels) for labels in self._books.shown(Kind.ESCALATIONS)]
        steps = [edge for cascade in self._cascades() for edge in cascades.edges(cascade)]
        steps += [edge for edge in told if {edge.from_tier, edge.to_tier} <= set(known.get(edge.cascade, ()))]
        return list(dict.fromkeys(steps))

    def _total(self, kind: Kind, labels: tuple[str, ...]) -> int:
        return self._books.total(Account(kind, tuple(labels)))

    def _totals(self) -> Iterator[tuple[str, Values]]:
        """Yield every series that is tracked, with its totals now."""
        if self._config is None:
            return
        if self._api is not None:
            for engine in self._config.engines:
                yield _compared(engine.name, self._api), self._of_engine(engine.name, self._api)
        for tier in dict.fromkeys(tier for cascade in self._cascades() for tier in cascade.tiers):
            yield self._tier(tier), self._of_tier(tier)
        for edge in self._edges():
            received = self._total(Kind.CASCADE_REQUESTS, (edge.cascade, edge.from_tier))
            yield _step(edge), (received, self._total(Kind.ESCALATIONS, edge))

    def _of_engine(self, name: str, price: ApiPrice) -> Values:
        """Return what an engine has cost, what the API would have taken, and its requests and output tokens."""
        api_model = break_even.label(price)
        equivalents = self._posted(Kind.API_EQUIVALENT)
        equivalent = sum(total for (engine, _, api), total in equivalents if (engine, api) == (name, api_model))
        totals = self._books.engine_totals(name)
        return totals.spend, equivalent, self._finished({name}), totals.output_tokens

    def _finished(self, engines: Collection[str]) -> int:
        counted = self._posted(Kind.REQUESTS)
        return sum(total for (engine, _, how), total in counted if engine in engines and how != ABANDONED)

    def _of_tier(self, tier: str) -> Values:
        """Return what a tier has cost and the requests that it got, as its engines count them or else events tell."""
        spent = sum(total for (*_, of), total in self._posted(Kind.SPEND) if of == tier)
        engines = self._engines_of(tier)
        finished = self._finished(engines)
        models = {model.model for model in self._config.prices.api.models} if self._config else set()
        told = [(model, total) for (*_, model, of), total in self._posted(Kind.FEATURE_REQUESTS) if of == tier]
        of_engines = finished or sum(total for model, total in told if model not in models)
        return spent, of_engines + sum(total for model, total in told if model in models)

    def _engines_of(self, tier: str) -> list[str]:
        return [engine.name for engine in self._config.engines if engine.tier == tier] if self._config else []

    def _tier(self, tier: str) -> str:
        """Name the series of a tier by its engines, too: what another one did before does not belong to it."""
        return f"tier:{tier}:{zlib.crc32(repr(sorted(self._engines_of(tier))).encode()):08x}"

    def _posted(self, kind: Kind) -> Iterator[tuple[tuple[str, ...], int]]:
        """Yield the labels of all accounts of a kind, and what was posted to each."""
        return ((labels, self._books.total(Account(kind, labels))) for labels in self._books.shown(kind))

    def _moved(self, series: str, now: Instant, window: int = _DAY) -> Values | None:
        track = self._tracks.get(series)
        found = track.moved(now.monotonic, window) if track else None
        return found[1] if found else None

    def _break_even(self, engine: EngineView, api: ApiPrice, now: Instant) -> BreakEvenView:
        series, ratios = _compared(engine.name, api), {}
        for window, length in WINDOWS.items():
            moved = self._moved(series, now, length)
            ratio = break_even.ratio(moved[0], moved[1]) if moved else None
            if ratio is not None and engine.windows[window].usd_per_million_total_tokens is not None:
                ratios[window] = ratio
        day = self._moved(series, now) or (0, 0, 0, 0)
        best = self._best(engine.name)
        return BreakEvenView(
            engine=engine.name,
            api_model=break_even.label(api),
            ratios=ratios,
            requests_per_day=break_even.requests_per_day(engine.spend_usd_per_hour, day[1:]),
            most_requests_per_day=break_even.most_requests_per_day(best, day[1:]),
        )

    def _best(self, name: str) -> float | None:
        """Return the most output tokens a second that an engine can do, as configured or seen."""
        engines = self._config.engines if self._config else ()
        configured = next(engine.max_output_tokens_per_second for engine in engines if engine.name == name)
        return float(configured) if configured else self._books.windows(name).peak_output_tokens_per_second()

    def _edge(self, edge: Edge, now: Instant) -> EdgeView:
        ratios = {}
        for window, length in WINDOWS.items():
            moved = self._moved(_step(edge), now, length)
            if moved and moved[0]:
                ratios[window] = moved[1] / moved[0]
        tiers = (edge.from_tier, edge.to_tier)
        costs = [cascades.cost_of_a_request(self._moved(self._tier(tier), now)) for tier in tiers]
        source = next(cascade.source for cascade in self._cascades() if cascade.name == edge.cascade)
        return EdgeView(edge=edge, source=source, ratios=ratios, break_even_ratio=cascades.break_even_ratio(*costs))


def _compared(engine: str, price: ApiPrice) -> str:
    return f"api:{engine}:{break_even.label(price)}"


def _step(edge: Edge) -> str:
    return "step:" + ":".join(edge)
