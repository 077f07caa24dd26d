"""What usage events change: whose compute they claim or what their API costs, and who asked for it.

An event that resolves to an engine claims a part of its compute, which is on the bill already; one that has an API's
price is spend of its own. What is neither is unpriced.
"""

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final, NamedTuple
from unicodedata import normalize

import msgspec

from exporter.config.model import Cascade, CascadeSource, Engine, Limits
from exporter.core.api_prices import ApiPrice, cost_nano_usd
from exporter.core.attribution import Claim, Claimant, Slot
from exporter.core.meter import SEVERAL_MODELS, UNKNOWN_MODEL
from exporter.core.money import Account, Category, Kind
from exporter.core.periods import QUARTER
from exporter.core.usage_body import OTHER, Names, RefusedError, Usage, shown

Labels = tuple[str, str, str, str]  # feature, team, model, tier
Place = Callable[[str, int], tuple[Slot, bool]]  # an engine and a Unix second to a slot, and whether it is late

_KEY_BYTES: Final = 16
_BODY_BYTES: Final = 8
_NO_NAMES: Final = frozenset({SEVERAL_MODELS, UNKNOWN_MODEL})  # that stand where a page names no one model
_encode: Final = msgspec.json.Encoder().encode


class Target(NamedTuple):
    """What did the work of an event: an engine ("" for none), or an API with a price, and the labels of it."""

    engine: str
    model: str
    tier: str
    price: ApiPrice | None = None


class ForbiddenError(RefusedError):
    """Whoever sent an event may not send it."""


class Directory:
    """Who has which model."""

    def __init__(
        self,
        engines: Sequence[Engine],
        seen: Mapping[str, Collection[str]],
        prices: Mapping[tuple[str | None, str], ApiPrice],
        billed: Mapping[str, str] | None = None,
    ) -> None:
        """Look up in these.

        Args:
            engines: the config's.
            seen: by engine, the names of models that its page has ever told.
            prices: of APIs, by provider (None: none is named) and model.
            billed: by engine, the name that its spend has now.
        """
        self._billed = billed or {}
        self.engines = {engine.name: engine for engine in engines}
        self._seen = {engine.name: frozenset(seen.get(engine.name, ())) - _NO_NAMES for engine in engines}
        self._by_model: dict[str, list[Engine]] = {}
        for engine in engines:
            for model in dict.fromkeys((*engine.models, *self._seen[engine.name])):
                self._by_model.setdefault(model, []).append(engine)
        self._prices = prices
        self._prices_of: dict[str, list[ApiPrice]] = {}
        for (_, model), price in prices.items():
            self._prices_of.setdefault(model, []).append(price)

    def resolve(self, names: Names) -> Target:
        """Return what did the work of an event with these names.

        Raises:
            RefusedError: its engine is none of the config's.
        """
        engine = self._engine(names)
        if engine is not None:
            return Target(engine.name, self._canonical(engine, names.model), engine.tier or names.tier or "")
        price = self._price(names)
        return Target("", names.model if price else OTHER, names.tier or "", price)

    def _engine(self, names: Names) -> Engine | None:
        if names.engine is not None:
            if names.engine not in self.engines:
                raise RefusedError(f"engine: {one_of(self.engines)}, found {shown(names.engine)}")
            return self.engines[names.engine]
        if names.provider is not None:
            return None
        found = self._by_model.get(names.model, [])
        wanted = (engine for engine in found if names.tier is not None and engine.tier == names.tier)
        return next(wanted, found[0] if found else None)

    def _canonical(self, engine: Engine, model: str) -> str:
        """Return the one name that stands for what an engine serves: as it is billed, where that tells one."""
        seen, billed = self._seen[engine.name], self._billed.get(engine.name, UNKNOWN_MODEL)
        if billed not in _NO_NAMES:
            return billed
        if engine.models:
            return engine.models[0]
        if model in seen:
            return model
        return next(iter(seen)) if len(seen) == 1 else UNKNOWN_MODEL

    def _price(self, names: Names) -> ApiPrice | None:
        price = self._prices.get((names.provider, names.model)) or self._prices.get((None, names.model))
        found = self._prices_of.get(names.model, []) if names.provider is None else []
        return found[0] if price is None and len(found) == 1 else price


def one_of(names: Iterable[str]) -> str:
    """Say in words which names are expected."""
    return f"expected one of {', '.join(names) or '(none)'}"


@dataclass(slots=True, kw_only=True)
class Room:
    """The label sets that have a place on the page, and those that bodies in work have asked for.

    `known` grows as events are accepted; a set that is asked for has its place until that is given back.
    """

    known: set[Labels]
    asked: Counter[Labels] = field(default_factory=Counter)

    def ask(self, labels: Labels, most: int) -> bool:
        """Ask for a place for a set that is not known, where no more than `most` are given away."""
        if labels not in self.asked and len(self.known) + len(self.asked) >= most:
            return False
        self.asked[labels] += 1
        return True

    def give_back(self, asked: Iterable[Labels]) -> None:
        """End the asking: what of it is used is known by now."""
        for labels in asked:
            self.asked[labels] -= 1
            if not self.asked[labels]:
                del self.asked[labels]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What events are held against: the config in force, and what moves beside it.

    `features` are those that keep their name on the page, however full it is.
    """

    directory: Directory
    place: Place
    room: Room
    limits: Limits
    features: frozenset[str] = frozenset()
    cascades: Sequence[Cascade] = ()

    def cascade(self, name: str) -> Cascade:
        """Return a cascade; raises RefusedError."""
        found = next((cascade for cascade in self.cascades if cascade.name == name), None)
        if found is None:
            raise RefusedError(f"cascade: {one_of(one.name for one in self.cascades)}, found {shown(name)}")
        return found

    def has_tier(self, tier: str) -> bool:
        """Say whether a tier is one of the config's, or none at all."""
        of_engines = {engine.tier for engine in self.directory.engines.values()}
        return not tier or tier in of_engines.union(*(cascade.tiers for cascade in self.cascades))


class Route(NamedTuple):
    """Where the events go that say the same names: all labels, as they are booked."""

    feature: str
    team: str
    target: Target
    cascade: str = ""  # "" where the events count for none
    escalated_from: str = ""
    overflows: bool = False

    @property
    def labels(self) -> Labels:
        """The label set on the page."""
        return self.feature, self.team, self.target.model, self.target.tier


class Effect(NamedTuple):
    """What events change: increments of accounts, of their quarter-hours by Unix second, and of claims."""

    totals: dict[Account, int]
    buckets: dict[tuple[Account, int], int]
    claims: dict[tuple[Slot, Claimant], Claim]


class Sums(NamedTuple):
    """Events of one route and quarter-hour, added up."""

    events: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    nano_usd: int


class Group(NamedTuple):
    """Events that change the same accounts; `slot` is what they claim of, None where no engine did the work."""

    route: Route
    quarter: int
    slot: Slot | None
    late: bool


class Sheet:
    """All events of one body: their keys, and what they change.

    They are added up by what they have in common first, so that a body costs little beyond the reading of it.
    """

    def __init__(self, rules: Rules, team: str | None) -> None:
        """Begin a sheet; `team` is whose token the body came with, None where that is bound to none."""
        self.keys: list[tuple[bytes, bytes]] = []
        self.numbers: list[int] = []
        self._rules, self._team = rules, team
        self._routes: dict[Names, Route] = {}
        self._seconds: dict[tuple[Names, int], int] = {}  # events that say the same names and second, and their number
        self._lines: list[tuple[int, int, int, int, int]] = []  # that number, tokens of three kinds, nano-dollars
        self._asked: list[Labels] = []
        self._places: list[int] = []  # by that number, which group they belong to
        self._groups: list[Group] = []

    def add(self, usage: Usage) -> None:
        """Add an event.

        Raises:
            ForbiddenError: it is another team's than the token.
            RefusedError: it names something that is not there.
        """
        number, names, second, _ = usage
        route = self._routes.get(names) or self._route(names)
        seconds = self._seconds
        index = seconds.setdefault((names, second), len(seconds))
        prompt, cached, output = usage.tokens
        price = route.target.price
        cost = cost_nano_usd(price, second, prompt, cached, output) if price else 0
        self._lines.append((index, prompt, cached, output, cost))
        self.keys.append(_key(usage, self._team))
        self.numbers.append(number)

    def _route(self, names: Names) -> Route:
        if self._team is not None and names.team not in (None, self._team):
            raise ForbiddenError(f"team: expected {shown(self._team)}, the token's, found {shown(names.team)}")
        team = names.team or self._team or ""
        target = self._rules.directory.resolve(names)
        cascade, escalated_from = self._cascade(names, target.tier)
        route = self._fitted(Route(names.feature, team, target, cascade, escalated_from))
        self._routes[names] = route
        return route

    def _cascade(self, names: Names, tier: str) -> tuple[str, str]:
        """Return the cascade and the tier before that events count for."""
        if names.cascade is None:
            if names.escalated_from is not None:
                text = "expected none without a cascade"
                raise RefusedError(f"escalated_from: {text}, found {shown(names.escalated_from)}")
            return "", ""
        cascade = self._rules.cascade(names.cascade)
        if tier not in cascade.tiers:
            found = shown(tier) if tier else "none"
            raise RefusedError(f"tier: {one_of(cascade.tiers)}, the tiers of {shown(cascade.name)}, found {found}")
        earlier = cascade.tiers[: cascade.tiers.index(tier)]
        if names.escalated_from is not None and names.escalated_from not in earlier:
            text = f"{one_of(earlier)}, the tiers before {shown(tier)}"
            raise RefusedError(f"escalated_from: {text}, found {shown(names.escalated_from)}")
        counts = cascade.source is CascadeSource.EVENTS  # else the engines' own counters do
        return (cascade.name, names.escalated_from or "") if counts else ("", "")

    def _fitted(self, route: Route) -> Route:
        """Return a route whose label set has a place on the page; what is over the limit is booked as `other`."""
        room, labels = self._rules.room, route.labels
        if labels in room.known:
            return route
        if room.ask(labels, self._rules.limits.attribution_series):
            self._asked.append(labels)
            return route
        target = route.target if self._rules.has_tier(route.target.tier) else route.target._replace(tier=OTHER)
        feature = route.feature if route.feature in self._rules.features else OTHER
        team = OTHER if route.team else ""
        fitted = route._replace(feature=feature, team=OTHER if feature == OTHER else team, target=target)
        return fitted._replace(overflows=fitted.labels != labels)

    def place(self) -> Collection[Slot]:
        """Find the slots that the events claim of, and return them.

        To be called once, in the same step of the event loop in which they are held: no slot may close in between.
        """
        groups: dict[Group, int] = {}
        for names, second in self._seconds:
            route = self._routes[names]
            slot, late = self._rules.place(route.target.engine, second) if route.target.engine else (None, False)
            group = Group(route, second // QUARTER * QUARTER, slot, late)
            self._places.append(groups.setdefault(group, len(groups)))
        self._groups = list(groups)
        return {group.slot for group in groups if group.slot is not None}

    def keep(self, new: Iterable[int]) -> None:
        """Let label sets have their place for good: those of events that are accepted, by their positions."""
        used = {self._places[self._lines[position][0]] for position in new}
        self._rules.room.known.update(self._groups[group].route.labels for group in used)

    def end(self) -> None:
        """Give back the places that were asked for."""
        self._rules.room.give_back(self._asked)

    def effect(self, new: Iterable[int]) -> Effect:
        """Return what events change, by their positions; nothing here moves any more."""
        sums: dict[int, list[int]] = {}
        for position in new:
            index, prompt, cached, output, cost = self._lines[position]
            group = self._places[index]
            found = sums.get(group)
            if found is None:
                sums[group] = [1, prompt, cached, output, cost]
            else:
                found[0] += 1
                found[1] += prompt
                found[2] += cached
                found[3] += output
                found[4] += cost
        effect = Effect({}, {}, {})
        for group, found in sums.items():
            _book(effect, self._groups[group], Sums(*found))
        return effect


def _key(usage: Usage, team: str | None) -> tuple[bytes, bytes]:
    """Return what names an event, and what stands for all that it says; without an id nothing ever names it again."""
    names, event = usage.names, usage.event
    said = (names if team is None else names._replace(team=team), event.id, usage.tokens, event.at)
    body = blake2b(_encode(said), digest_size=_BODY_BYTES).digest()
    if event.id is None:
        return os.urandom(_KEY_BYTES), body
    named = f"{names.model}\0{names.tier or ''}\0{normalize('NFC', event.id)}"  # no name has a NUL in it
    return blake2b(named.encode(), digest_size=_KEY_BYTES).digest(), body


def _book(effect: Effect, group: Group, sums: Sums) -> None:
    route = group.route
    for account, amount in _accounts(group, sums):
        effect.totals[account] = effect.totals.get(account, 0) + amount
        if amount:
            bucket = account, group.quarter
            effect.buckets[bucket] = effect.buckets.get(bucket, 0) + amount
    if group.slot is not None:
        claimed = group.slot, (route.feature, route.team)
        claim = Claim(sums.prompt_tokens, sums.cached_tokens, sums.output_tokens)
        effect.claims[claimed] = effect.claims[claimed].plus(claim) if claimed in effect.claims else claim


def _accounts(group: Group, sums: Sums) -> list[tuple[Account, int]]:
    route, target = group.route, group.route.target
    found = [
        (Account(Kind.FEATURE_REQUESTS, route.labels), sums.events),
        (Account(Kind.FEATURE_PROMPT_TOKENS, route.labels), sums.prompt_tokens),
        (Account(Kind.FEATURE_OUTPUT_TOKENS, route.labels), sums.output_tokens),
        (Account(Kind.USAGE_EVENTS, ("late" if group.late else "accepted",)), sums.events),
    ]
    if target.price is not None:
        spend = Account(Kind.SPEND, (Category.API, "", target.model, target.tier))
        attributed = Account(Kind.ATTRIBUTED, (route.feature, route.team, "", target.model, target.tier))
        found += [(spend, sums.nano_usd), (attributed, sums.nano_usd)]
    elif group.slot is None:
        found.append((Account(Kind.UNPRICED_TOKENS, (target.model,)), sums.prompt_tokens + sums.output_tokens))
    if route.cascade:
        found.append((Account(Kind.CASCADE_REQUESTS, (route.cascade, target.tier)), sums.events))
        if route.escalated_from:
            labels = (route.cascade, route.escalated_from, target.tier)
            found.append((Account(Kind.ESCALATIONS, labels), sums.events))
    if route.overflows:
        found.append((Account(Kind.OVERFLOW_EVENTS, ()), sums.events))
    return found
