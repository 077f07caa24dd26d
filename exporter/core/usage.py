"""What usage events change: whose compute they claim or what their API costs, and who asked for it.

An event that resolves to an engine claims a part of its compute, which is on the bill already; one that has an API's
price is spend of its own. What is neither is unpriced.
"""

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final, NamedTuple
from unicodedata import normalize

import msgspec

from exporter.config.model import Cascade, CascadeSource, Limits
from exporter.config.model import Usage as UsageConfig
from exporter.core.api_prices import cost_nano_usd
from exporter.core.attribution import Claim, Claimant, Slot
from exporter.core.directory import Directory, Target, one_of
from exporter.core.money import Account, Category, Kind
from exporter.core.periods import QUARTER
from exporter.core.refused import RefusedError, shown
from exporter.core.usage_body import OTHER, Names, Usage

Labels = tuple[str, str, str, str]  # feature, team, model, tier
Place = Callable[[str, int], tuple[Slot, bool]]  # an engine and a Unix second to a slot, and whether it is late

_KEY_BYTES: Final = 16
_BODY_BYTES: Final = 8
_encode: Final = msgspec.json.Encoder().encode


class ForbiddenError(RefusedError):
    """Whoever sent an event may not send it."""


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
    usage: UsageConfig = field(default_factory=UsageConfig)
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
    input_nano_usd: int  # of those, for the prompt


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
        # That number, tokens of three kinds, nano-dollars, and those of the prompt.
        self._lines: list[tuple[int, int, int, int, int, int]] = []
        self._said: dict[int, int] = {}  # nano-dollars by position, where somebody else says what an event cost
        self._asked: list[Labels] = []
        self._places: list[int] = []  # by that number, which group they belong to
        self._groups: list[Group] = []

    def add(self, usage: Usage) -> None:
        """Add an event.

        Raises:
            ForbiddenError: it is another team's than the token.
            RefusedError: it names something that is not there.
        """
        number, names, second, _, call = usage
        route = self._routes.get(names) or self._route(names)
        seconds = self._seconds
        index = seconds.setdefault((names, second), len(seconds))
        prompt, cached, output = usage.tokens
        price = route.target.price
        cost = cost_nano_usd(price, second, prompt, cached, output) if price else 0
        input_cost = cost_nano_usd(price, second, prompt, cached, 0) if price and output else cost
        if call is not None and call.said_nano_usd is not None and not route.target.engine:
            self._said[len(self._lines)] = call.said_nano_usd
        self._lines.append((index, prompt, cached, output, cost, input_cost))
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

    def effect(self, new: Collection[int]) -> Effect:
        """Return what events change, by their positions; nothing here moves any more."""
        sums: dict[int, list[int]] = {}
        for position in new:
            index, prompt, cached, output, cost, input_cost = self._lines[position]
            group = self._places[index]
            found = sums.get(group)
            if found is None:
                sums[group] = [1, prompt, cached, output, cost, input_cost]
            else:
                found[0] += 1
                found[1] += prompt
                found[2] += cached
                found[3] += output
                found[4] += cost
                found[5] += input_cost
        effect = Effect({}, {}, {})
        for group, found in sums.items():
            _book(effect, self._groups[group], Sums(*found))
        for position in new if self._said else ():
            self._compare(effect, position)
        return effect

    def _compare(self, effect: Effect, position: int) -> None:
        """Note what somebody else says that an event cost, and what is booked for it."""
        if position in self._said:
            index, *_, cost, _ = self._lines[position]
            group = self._groups[self._places[index]]
            model = (group.route.target.model,)
            _add(effect, Account(Kind.GATEWAY_SPEND, model), group.quarter, self._said[position])
            _add(effect, Account(Kind.GATEWAY_BOOKED, model), group.quarter, cost)


def _key(usage: Usage, team: str | None) -> tuple[bytes, bytes]:
    """Return what names an event, and what stands for all that it says; without an id nothing ever names it again."""
    names, event, call = usage.names, usage.event, usage.call
    if call is not None:  # what is booked for it may change with the config, and it is still the same call
        body = blake2b(_encode((usage.tokens, call.second)), digest_size=_BODY_BYTES).digest()
        return blake2b(f"\0{call.form}\0{call.id}".encode(), digest_size=_KEY_BYTES).digest(), body
    said = (names if team is None else names._replace(team=team), event.id, usage.tokens, event.at)
    body = blake2b(_encode(said), digest_size=_BODY_BYTES).digest()
    if event.id is None:
        return os.urandom(_KEY_BYTES), body
    named = f"{names.model}\0{names.tier or ''}\0{normalize('NFC', event.id)}"  # no name has a NUL in it
    return blake2b(named.encode(), digest_size=_KEY_BYTES).digest(), body


def _book(effect: Effect, group: Group, sums: Sums) -> None:
    route = group.route
    for account, amount in _accounts(group, sums):
        _add(effect, account, group.quarter, amount)
    if group.slot is not None:
        claimed = group.slot, (route.feature, route.team)
        claim = Claim(sums.prompt_tokens, sums.cached_tokens, sums.output_tokens)
        effect.claims[claimed] = effect.claims[claimed].plus(claim) if claimed in effect.claims else claim


def _add(effect: Effect, account: Account, quarter: int, amount: int) -> None:
    effect.totals[account] = effect.totals.get(account, 0) + amount
    if amount:
        bucket = account, quarter
        effect.buckets[bucket] = effect.buckets.get(bucket, 0) + amount


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
        shared = (route.feature, route.team, "", target.model, target.tier)
        found += [(spend, sums.nano_usd), (Account(Kind.ATTRIBUTED, shared), sums.nano_usd)]
        directions = (
            (Kind.ATTRIBUTED_INPUT, sums.input_nano_usd),
            (Kind.ATTRIBUTED_OUTPUT, sums.nano_usd - sums.input_nano_usd),
        )
        found += [(Account(kind, shared), amount) for kind, amount in directions if amount]
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
