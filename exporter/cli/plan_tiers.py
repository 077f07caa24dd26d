"""`plan right-size` and `plan cascade`: which tier does the work, and what that saves."""

from dataclasses import asdict
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final, NamedTuple

import click

from exporter.cli.options import OneLine, ScalarType, UnusableError
from exporter.cli.plan_inputs import AMOUNT, FLAG, LEDGER, RATIO, USD, Sources, ledger_flags, missing, sources
from exporter.cli.plan_show import drawn, listed, show
from exporter.config import units
from exporter.core import planning_measured, right_sizing
from exporter.core.cascades import Edge
from exporter.core.money import Kind
from exporter.core.planning import DAYS, Figure, product
from exporter.core.planning_measured import MeasuredTier
from exporter.core.right_sizing import Mix, Tier

_SOURCES: Final = ("from_ledger", "storage_path", "days")


def _tier(text: str) -> Tier:
    name, equals, numbers = text.partition("=")
    cost, colon, share = numbers.partition(":")
    if not (equals and colon):
        raise ValueError(text)
    parsed = units.AMOUNT.parse(cost), units.RATIO.parse(share)
    return Tier(units.NAME.parse(name), *map(Fraction, parsed))


TIER: Final = ScalarType(units.Scalar("a tier as NAME=RELATIVE_COST:SHARE, like fast=1:0.6", _tier), "tier")


@click.command("right-size", cls=OneLine)
@click.option("--tier", "given", type=TIER, multiple=True, help="NAME=RELATIVE_COST:SHARE of all tasks; repeated.")
@click.option("--monthly-usd", "dearest_usd", type=USD, help="A month with everything at the dearest tier.")
@click.option("--error-budget", type=RATIO, help="The share of answers that may be wrong, 0 to 1.")
@ledger_flags
def right_size(
    *, given: tuple[Tier, ...], dearest_usd: Decimal | None, error_budget: Decimal | None, form: str, **asked: Any
) -> None:
    """Say what routing tasks to tiers saves, by which rule, and what the error budget allows."""
    found = sources(**{name: asked[name] for name in _SOURCES})
    tiers, monthly = list(given), None
    if not tiers:
        tiers, monthly = _of_ledger(found)
    source = FLAG if given else LEDGER
    _expect_tiers(tiers)
    for tier in tiers:
        found.inputs.say(f"tier {tier.name}", f"{_number(tier.relative_cost)} : {_number(tier.share)}", source)
    usd = found.inputs.first("monthly-usd", (FLAG, dearest_usd), (LEDGER, monthly))
    budget = found.inputs.first("error-budget", (FLAG, error_budget))
    mix = right_sizing.mix(tiers, usd, budget)
    for text in right_sizing.contradictions(tiers, error_budget):
        found.inputs.note(text)
    _say(form, tiers, mix, error_budget, found)


def _number(value: Fraction) -> str:
    return f"{float(value):.6g}"


def _expect_tiers(tiers: list[Tier]) -> None:
    """Raise UnusableError where tiers are no partition of all tasks."""
    names = [tier.name for tier in tiers]
    if len(set(names)) < len(names):
        raise UnusableError(f"--tier: expected each tier once, found {', '.join(names)}")
    total = sum(tier.share for tier in tiers)
    if total != 1:
        raise UnusableError(f"--tier: expected shares that sum to 1, found {_number(Fraction(total))}")


def _of_ledger(found: Sources) -> tuple[list[Tier], Fraction]:
    """Return tiers as they were used, relative to the cheapest, and a month with everything at the dearest."""
    if found.saved is None:
        missing("--tier")
    measured = planning_measured.tiers(found.saved.buckets)
    costs = {tier.name: tier.usd_per_request for tier in measured if tier.usd_per_request}
    for tier in measured:
        if tier.name not in costs:
            found.inputs.note(f"tier {tier.name} is left out: it had too few requests to tell what one costs")
    if not costs:
        raise UnusableError("--from-ledger: expected tiers with requests and spend, found none in these days")
    known = [tier for tier in measured if tier.name in costs]
    requests, cheapest = sum(tier.requests for tier in known), min(costs.values())
    tiers = [Tier(tier.name, costs[tier.name] / cheapest, Fraction(tier.requests, requests)) for tier in known]
    for tier in known:
        _note_if_late(found, tier.name)
    return tiers, max(costs.values()) * requests / found.days * DAYS


def _say(form: str, tiers: list[Tier], mix: Mix, error_budget: Decimal | None, found: Sources) -> None:
    figures: dict[str, Figure] = asdict(mix)
    rows: list[dict[str, Figure]] = [
        {"tier": tier.name, "relative_cost": tier.relative_cost, "task_share": tier.share} for tier in tiers
    ]
    rule = right_sizing.rule(error_budget)
    tables = [drawn("routing", {"": figures}), listed(("tier", "relative_cost", "task_share"), rows)]
    document = {**figures, "tiers": rows, "rule": rule, "meaning": _meaning(mix)}
    show(form, document, tables, [*rule, *_meaning(mix)], found.inputs)


def _meaning(mix: Mix) -> list[str]:
    """Say what the error budget allows."""
    if mix.allowed_error_ratio is None:
        return []
    share, allowed = right_sizing.percent(mix.routed_share), right_sizing.percent(mix.allowed_error_ratio)
    return [
        f"{share} of all tasks do without {mix.dearest}: up to {allowed} of their answers may be wrong beyond what "
        f"{mix.dearest} would get wrong."
    ]


class _Step(NamedTuple):
    """What is known of a step of a cascade."""

    small: Fraction | None = None
    big: Fraction | None = None
    escalation: Fraction | None = None
    requests_per_day: Fraction | None = None


@click.command(cls=OneLine)
@click.option("--small-usd-per-request", "small", type=USD, help="What a request costs at the smaller tier.")
@click.option("--big-usd-per-request", "big", type=USD, help="What a request costs at the bigger tier.")
@click.option("--escalation-ratio", "escalation", type=RATIO, help="The share of requests that is handed over.")
@click.option("--requests-per-day", "requests_per_day", type=AMOUNT, help="Requests that the smaller tier gets.")
@click.option("--cascade", "name", type=ScalarType(units.NAME, "name"), help="Of the ledger: which cascade.")
@click.option("--from-tier", "from_tier", type=ScalarType(units.NAME, "name"), help="Of the ledger: which step of it.")
@ledger_flags
def cascade(*, name: str | None, from_tier: str | None, form: str, **flags: Any) -> None:
    """Say what a cascade of two tiers costs, and up to which escalation it pays."""
    found = sources(**{key: flags[key] for key in _SOURCES})
    known, inputs = _measured_step(found, name, from_tier), found.inputs
    small = inputs.needed("small-usd-per-request", (FLAG, flags["small"]), (LEDGER, known.small))
    big = inputs.needed("big-usd-per-request", (FLAG, flags["big"]), (LEDGER, known.big))
    escalation = inputs.needed("escalation-ratio", (FLAG, flags["escalation"]), (LEDGER, known.escalation))
    asked = inputs.first("requests-per-day", (FLAG, flags["requests_per_day"]), (LEDGER, known.requests_per_day))
    figures = asdict(right_sizing.cascade(small, big, escalation, product(asked, DAYS)))
    verdict = str(figures["verdict"])
    table = {key: value for key, value in figures.items() if key != "verdict"}
    show(form, figures, [drawn("cascade", {"": table})], [f"{verdict[0].upper()}{verdict[1:]}."], inputs)


def _measured_step(found: Sources, name: str | None, from_tier: str | None) -> _Step:
    """Return what the ledger tells of the one step that is meant."""
    if found.saved is None:
        return _Step()
    steps = planning_measured.edges(found.saved.buckets)
    chosen = [edge for edge in steps if name in (None, edge.cascade) and from_tier in (None, edge.from_tier)]
    if len(chosen) > 1:
        several = ", ".join(f"{edge.cascade}: {edge.from_tier} to {edge.to_tier}" for edge in chosen)
        raise UnusableError(f"expected --cascade and --from-tier that name one step, found several ({several})")
    costs = {tier.name: tier for tier in planning_measured.tiers(found.saved.buckets)}
    return _step(found, chosen[0], steps[chosen[0]], costs) if chosen else _Step()


def _step(found: Sources, edge: Edge, counts: tuple[int, int], costs: dict[str, MeasuredTier]) -> _Step:
    received, escalated = counts
    found.inputs.say("step", f"{edge.cascade}: {edge.from_tier} to {edge.to_tier}", LEDGER)
    small, big = costs.get(edge.from_tier), costs.get(edge.to_tier)
    return _Step(
        small=small.usd_per_request if small else None,
        big=big.usd_per_request if big else None,
        escalation=min(Fraction(escalated, received), Fraction(1)) if received else None,
        requests_per_day=received / _days_of_step(found, edge) if received else None,
    )


def _days_of_step(found: Sources, edge: Edge) -> Fraction:
    """Return how long a step has been used: the ledger's time, or since a day of it that is not its first."""
    late = found.late(Kind.CASCADE_REQUESTS, cascade=edge.cascade, tier=edge.from_tier)
    return found.days if late is None else found.days_since(late)


def _note_if_late(found: Sources, tier: str) -> None:
    """Tell of a tier that was not there for all of the ledger's days."""
    late = found.late(Kind.SPEND, tier=tier)
    if late is not None:
        days = f"{float(found.days_since(late)):.1f} of {float(found.days):.1f} days"
        found.inputs.note(f"tier {tier} is there for {days}, and its share is one of all of them")
