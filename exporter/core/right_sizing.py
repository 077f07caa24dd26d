"""Right-sizing: which tier a task goes to, what a mix of tiers costs, and whether a cascade pays.

How complex a task is, the user's own classifier must say: nothing here can.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Final, NamedTuple

from exporter.core.planning import product, ratio

FAST: Final = "fast"
BALANCED: Final = "balanced"
FRONTIER: Final = "frontier"
CLASSIFICATION: Final = "classification"  # the task that a small model does as well as a big one
SIMPLE: Final = Decimal("0.3")  # complexity below which the smallest tier does
HARD: Final = Decimal("0.7")  # complexity from which only the biggest one does
LEAST_ERROR_BUDGET: Final = Decimal("0.02")  # above it some answers of the middle tier may be wrong


def route(task: str, complexity: Decimal, error_budget: Decimal) -> str:
    """Return the tier for a task.

    Args:
        task: what kind of task it is.
        complexity: 0 to 1, as the user's own classifier says.
        error_budget: the share of answers that may be wrong, 0 to 1.
    """
    if task == CLASSIFICATION or complexity < SIMPLE:
        return FAST
    if complexity < HARD and error_budget > LEAST_ERROR_BUDGET:
        return BALANCED
    return FRONTIER


def rule(error_budget: Decimal | None) -> list[str]:
    """Say the routing rule in words, and what this error budget makes of it."""
    middle = f"2. Else, complexity below {HARD} and an error budget above {percent(LEAST_ERROR_BUDGET)}: {BALANCED}."
    if error_budget is not None:
        holds = "is" if error_budget > LEAST_ERROR_BUDGET else "is not, so nothing goes there"
        middle += f" Yours, {percent(error_budget)}, {holds}."
    return [
        f"1. Classification, or complexity below {SIMPLE}: {FAST}.",
        middle,
        f"3. All else: {FRONTIER}.",
        "The complexity of a task, 0 to 1, comes from a classifier of your own.",
    ]


def percent(part: Decimal | Fraction) -> str:
    """Return a ratio as a percentage with at most two decimals."""
    text = f"{Decimal(round(Fraction(part) * 10_000)) / 100:.2f}"
    return f"{text.rstrip('0').rstrip('.')} %"


class Tier(NamedTuple):
    """A tier, what a task costs there relative to others, and the share of all tasks that goes there."""

    name: str
    relative_cost: Fraction
    share: Fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """What tiers cost together, beside sending everything to the dearest of them.

    `allowed_error_ratio` is how often an answer from a cheaper tier may be wrong, in addition to the dearest one's own
    errors, so that all answers together stay within the error budget: budget ÷ share of the cheaper tiers, at most 1.
    """

    dearest: str
    relative_cost: Fraction
    saving_ratio: Fraction | None
    monthly_usd: Fraction | None
    saving_usd: Fraction | None
    routed_share: Fraction
    allowed_error_ratio: Fraction | None


def mix(tiers: Sequence[Tier], dearest_usd: Fraction | None = None, error_budget: Fraction | None = None) -> Mix:
    """Return what routing saves: 1 − Σ share × cost ÷ cost of the dearest tier.

    Args:
        tiers: at least one; their shares sum to 1.
        dearest_usd: what a month costs with everything at the dearest tier.
        error_budget: the share of answers that may be wrong.
    """
    dearest = max(tiers, key=lambda tier: tier.relative_cost)
    cost = sum((tier.share * tier.relative_cost for tier in tiers), Fraction(0))
    relative = ratio(cost, dearest.relative_cost)
    monthly = product(dearest_usd, relative)
    routed = sum((tier.share for tier in tiers if tier.relative_cost < dearest.relative_cost), Fraction(0))
    allowed = ratio(error_budget, routed)
    return Mix(
        dearest=dearest.name,
        relative_cost=cost,
        saving_ratio=None if relative is None else 1 - relative,
        monthly_usd=monthly,
        saving_usd=None if monthly is None or dearest_usd is None else dearest_usd - monthly,
        routed_share=routed,
        allowed_error_ratio=None if allowed is None else min(allowed, Fraction(1)),
    )


def contradictions(tiers: Sequence[Tier], error_budget: Decimal | None) -> Iterator[str]:
    """Yield where shares say what the rule does not do."""
    middle = next((tier.share for tier in tiers if tier.name == BALANCED), Fraction(0))
    if middle and error_budget is not None and error_budget <= LEAST_ERROR_BUDGET:
        yield (
            f"the shares send {percent(middle)} to {BALANCED}, and at an error budget of {percent(error_budget)} the "
            "rule sends nothing there"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CascadePlan:
    """A cascade of two tiers beside going straight to the bigger one; US dollars a request, and a month."""

    expected_usd_per_request: Fraction
    break_even_escalation_ratio: Fraction | None
    saving_usd_per_request: Fraction
    saving_ratio: Fraction | None
    monthly_saving_usd: Fraction | None
    verdict: str


def cascade(small: Fraction, big: Fraction, escalation: Fraction, requests_a_month: Fraction | None) -> CascadePlan:
    """Return what a request is expected to cost: c_small + r × c_big, since every request pays for its first try.

    It is below c_big while the escalation rate r is below 1 − c_small ÷ c_big.
    """
    expected = small + escalation * big
    saving, share = big - expected, ratio(small, big)
    even = None if share is None else 1 - share
    return CascadePlan(
        expected_usd_per_request=expected,
        break_even_escalation_ratio=even,
        saving_usd_per_request=saving,
        saving_ratio=ratio(saving, big),
        monthly_saving_usd=None if requests_a_month is None else saving * requests_a_month,
        verdict=_verdict(saving, even, escalation),
    )


def _verdict(saving: Fraction, even: Fraction | None, escalation: Fraction) -> str:
    if even is None or even <= 0:
        return "the cascade never pays: a first try costs as much as the bigger tier; go straight to the cheaper one"
    beside = f"{percent(escalation)} escalate, and it breaks even at {percent(even)}"
    if saving > 0:
        return f"the cascade pays: {beside}"
    if saving == 0:
        return f"the cascade neither saves nor costs: {beside}"
    return f"the cascade loses money: {beside}; go straight to the bigger tier, or hand over less"
