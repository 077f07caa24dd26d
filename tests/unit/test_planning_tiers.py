"""Right-sizing and cascades: the routing rule at each of its edges, and what routing saves."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.core.right_sizing import Tier, cascade, contradictions, mix, percent, route, rule

SPLIT = (Tier("fast", Fraction(1), Fraction(3, 5)), Tier("frontier", Fraction(10), Fraction(2, 5)))


@pytest.mark.parametrize(
    ("task", "complexity", "error_budget", "tier"),
    [
        ("classification", "1", "0", "fast"),
        ("summary", "0", "0", "fast"),
        ("summary", "0.2999", "0", "fast"),
        ("summary", "0.3", "0.0201", "balanced"),
        ("summary", "0.3", "0.02", "frontier"),
        ("summary", "0.6999", "1", "balanced"),
        ("summary", "0.6999", "0.02", "frontier"),
        ("summary", "0.7", "1", "frontier"),
        ("summary", "1", "1", "frontier"),
        ("Classification", "0.9", "1", "frontier"),
    ],
)
def test_a_task_goes_to_the_smallest_tier_that_the_rule_allows(
    task: str, complexity: str, error_budget: str, tier: str
):
    assert route(task, Decimal(complexity), Decimal(error_budget)) == tier


RATIOS = st.decimals(0, 1, places=4)


@given(st.sampled_from(["classification", "chat"]), RATIOS, RATIOS, RATIOS)
def test_harder_tasks_and_smaller_budgets_never_get_a_smaller_tier(
    task: str, one: Decimal, other: Decimal, budget: Decimal
):
    order = ["fast", "balanced", "frontier"]
    low, high = sorted((one, other))
    assert order.index(route(task, low, budget)) <= order.index(route(task, high, budget))
    assert order.index(route(task, budget, high)) <= order.index(route(task, budget, low))


def test_the_rule_is_said_with_what_the_budget_makes_of_it():
    assert rule(None)[0] == "1. Classification, or complexity below 0.3: fast."
    assert "complexity below 0.7 and an error budget above 2 %: balanced." in rule(None)[1]
    assert rule(Decimal("0.05"))[1].endswith("Yours, 5 %, is.")
    assert rule(Decimal("0.02"))[1].endswith("Yours, 2 %, is not, so nothing goes there.")
    assert rule(None)[-1] == "The complexity of a task, 0 to 1, comes from a classifier of your own."


def test_sixty_of_a_hundred_tasks_at_a_tenth_of_the_cost_save_more_than_half():
    found = mix(SPLIT, Fraction(10_000), Fraction(1, 20))
    assert (found.dearest, found.saving_ratio) == ("frontier", Fraction("0.54"))
    assert (found.monthly_usd, found.saving_usd) == (Fraction(4600), Fraction(5400))
    assert (found.routed_share, found.allowed_error_ratio) == (Fraction(3, 5), Fraction(1, 12))


def test_what_is_not_known_of_a_mix_is_none():
    found = mix(SPLIT)
    assert (found.monthly_usd, found.saving_usd, found.allowed_error_ratio) == (None, None, None)
    free = mix([Tier("fast", Fraction(0), Fraction(1))], Fraction(10), Fraction(1, 2))
    assert (free.saving_ratio, free.monthly_usd, free.allowed_error_ratio) == (None, None, None)


def test_shares_that_the_rule_does_not_make_are_told():
    tiers = (*SPLIT[:1], Tier("balanced", Fraction(3), Fraction(2, 5)))
    assert [text[:32] for text in contradictions(tiers, Decimal("0.02"))] == ["the shares send 40 % to balanced"]
    assert not list(contradictions(tiers, Decimal("0.03")))
    assert not list(contradictions(tiers, None))
    assert not list(contradictions(SPLIT, Decimal(0)))


COSTS = st.fractions(min_value=Fraction(1, 1000), max_value=1000, max_denominator=1000)


@given(
    st.lists(st.tuples(COSTS, st.integers(0, 100)), min_size=1, max_size=5).filter(lambda some: any(w for _, w in some))
)
def test_routing_never_costs_more_than_the_dearest_tier_and_never_less_than_the_cheapest(
    some: list[tuple[Fraction, int]],
):
    whole = sum(weight for _, weight in some)
    tiers = [Tier(str(place), cost, Fraction(weight, whole)) for place, (cost, weight) in enumerate(some)]
    found = mix(tiers, Fraction(1000), Fraction(1, 100))
    assert sum(tier.share for tier in tiers) == 1
    assert min(cost for cost, _ in some) <= found.relative_cost <= max(cost for cost, _ in some)
    assert found.saving_ratio is not None
    assert 0 <= found.saving_ratio < 1
    assert found.monthly_usd is not None
    assert found.saving_usd == 1000 - found.monthly_usd
    assert found.allowed_error_ratio is None or 0 < found.allowed_error_ratio <= 1


def test_a_cascade_pays_while_few_escalate():
    small, big = Fraction("0.0004"), Fraction("0.002")
    found = cascade(small, big, Fraction(1, 4), Fraction(300_000))
    assert (found.expected_usd_per_request, found.break_even_escalation_ratio) == (Fraction("0.0009"), Fraction(4, 5))
    assert (found.saving_usd_per_request, found.saving_ratio) == (Fraction("0.0011"), Fraction("0.55"))
    assert found.monthly_saving_usd == 330
    assert found.verdict == "the cascade pays: 25 % escalate, and it breaks even at 80 %"
    assert cascade(small, big, Fraction(4, 5), None).verdict.startswith("the cascade neither saves nor costs")
    assert cascade(small, big, Fraction(9, 10), None).verdict.startswith("the cascade loses money: 90 % escalate")
    assert cascade(big, small, Fraction(0), None).verdict.startswith("the cascade never pays")
    assert cascade(small, Fraction(0), Fraction(0), None).break_even_escalation_ratio is None


@given(COSTS, COSTS, st.fractions(0, 1, max_denominator=1000))
def test_a_cascade_saves_exactly_below_its_break_even(small: Fraction, big: Fraction, escalation: Fraction):
    found = cascade(small, big, escalation, None)
    assert found.break_even_escalation_ratio is not None
    assert (found.saving_usd_per_request > 0) == (escalation < found.break_even_escalation_ratio)
    assert ("pays:" in found.verdict and "never" not in found.verdict) == (found.saving_usd_per_request > 0)


@pytest.mark.parametrize(
    ("part", "text"), [("0", "0 %"), ("0.6", "60 %"), ("1", "100 %"), ("0.0833333", "8.33 %"), ("0.025", "2.5 %")]
)
def test_percentages_keep_their_zeros(part: str, text: str):
    assert percent(Decimal(part)) == text
