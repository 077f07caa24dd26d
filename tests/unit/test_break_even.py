"""Self-hosting beside an API, and cascades: the formulas, with the numbers that they came from."""

from decimal import Decimal
from fractions import Fraction

import pytest

from exporter.clock import Instant
from exporter.config.model import Cascade, CascadeSource
from exporter.config.prices import ApiModel, ApiPrices
from exporter.core import break_even, cascades
from exporter.core.api_prices import ApiPrice, configured
from exporter.core.break_even import BreakEvenView
from exporter.core.cascades import Edge
from exporter.core.money import NANO, Account, Entry, Kind
from exporter.core.track import Track
from exporter.core.windows import HOUR

NOW = 1_795_435_200
EDGE = Edge("support", "fast", "balanced")


def price(**usd: str) -> ApiPrice:
    model = ApiModel(
        model="mini", provider="openai", **{f"{key}_usd_per_million": Decimal(v) for key, v in usd.items()}
    )
    return configured(ApiPrices(models=(model,)))["openai", "mini"]


# --- beside an API


def counted(kind: Kind, amount: int, model: str = "m") -> Entry:
    return Entry(Account(kind, ("chat", model, "fast")), amount, NOW * NANO)


def test_a_million_tokens_in_and_out_are_worth_their_list_price():
    entries = [counted(Kind.PROMPT_TOKENS, 10**6), counted(Kind.OUTPUT_TOKENS, 10**6), counted(Kind.REQUESTS, 3)]
    (found,) = break_even.equivalents(entries, price(input="0.15", output="0.60"))
    assert found == Entry(Account(Kind.API_EQUIVALENT, ("chat", "m", "openai/mini")), 75 * NANO // 100, NOW * NANO)


def test_several_series_of_an_engine_are_added_up():
    """Data-parallel ranks, and servers whose prompt tokens are the sum of two counters."""
    entries = [counted(Kind.OUTPUT_TOKENS, 10), counted(Kind.OUTPUT_TOKENS, 30), counted(Kind.PROMPT_TOKENS, 5)]
    (found,) = break_even.equivalents(entries, price(input="1", output="1"))
    assert found.amount == 45_000


def test_cached_tokens_are_worth_the_price_of_cached_ones():
    entries = [counted(Kind.PROMPT_TOKENS, 10**6), counted(Kind.CACHED_PROMPT_TOKENS, 10**6)]
    (found,) = break_even.equivalents(entries, price(input="0.15", output="0.60", cached_input="0.075"))
    assert found.amount == 75 * NANO // 1000


def test_models_of_an_engine_are_told_apart():
    entries = [counted(Kind.OUTPUT_TOKENS, 10, "m"), counted(Kind.OUTPUT_TOKENS, 20, "n")]
    found = {
        entry.account.labels[1]: entry.amount for entry in break_even.equivalents(entries, price(input="1", output="1"))
    }
    assert found == {"m": 10_000, "n": 20_000}


def test_below_one_self_hosting_wins_and_nothing_beside_nothing_is_no_ratio():
    assert break_even.ratio(50, 100) == 0.5
    assert break_even.ratio(50, 0) is None


def test_break_even_is_the_cost_of_a_day_by_the_api_cost_of_a_request():
    """$0.80 an hour beside $0.0003 a request (500 output tokens at $0.60): 64 000 a day."""
    day = (300_000 * 1000, 1000, 500_000)
    assert break_even.requests_per_day(0.80, day) == pytest.approx(64_000)
    assert break_even.requests_per_day(None, day) is None
    assert break_even.requests_per_day(0.80, (300_000 * 49, 49, 24_500)) is None
    assert break_even.requests_per_day(0.80, (0, 1000, 0)) is None


@pytest.mark.parametrize(("rate", "reachable"), [(1000.0, True), (300.0, False), (None, None)])
def test_break_even_is_not_reachable_where_the_engine_cannot_serve_so_many(rate: float | None, reachable: bool | None):
    """64 000 requests of 500 tokens a day are 370 tokens a second."""
    day = (300_000 * 1000, 1000, 500_000)
    view = BreakEvenView(
        engine="chat",
        api_model="openai/mini",
        requests_per_day=break_even.requests_per_day(0.80, day),
        most_requests_per_day=break_even.most_requests_per_day(rate, day),
    )
    assert view.is_reachable is reachable


# --- cascades


def requests(amount: int, outcome: str = "stop") -> Entry:
    return Entry(Account(Kind.REQUESTS, ("chat", "m", outcome)), amount, 0)


def test_a_cascade_of_engines_counts_each_request_of_a_bigger_tier_as_handed_over():
    cascade = Cascade(name="support", tiers=("fast", "balanced", "large"), source=CascadeSource.ENGINES)
    entries = [requests(7), requests(2, "abandoned"), counted(Kind.OUTPUT_TOKENS, 5)]
    found = {
        tier: [
            (entry.account.kind, entry.account.labels, entry.amount)
            for entry in cascades.from_engines(cascade, entries, tier)
        ]
        for tier in ("fast", "balanced", "other")
    }
    assert found == {
        "fast": [(Kind.CASCADE_REQUESTS, ("support", "fast"), 7)],
        "balanced": [
            (Kind.CASCADE_REQUESTS, ("support", "balanced"), 7),
            (Kind.ESCALATIONS, ("support", "fast", "balanced"), 7),
        ],
        "other": [],
    }
    of_events = Cascade(name="support", tiers=("fast", "balanced"))
    assert list(cascades.from_engines(of_events, entries, "fast")) == []


def test_a_request_costs_nothing_known_under_fifty():
    assert cascades.cost_of_a_request(None) is None
    assert cascades.cost_of_a_request((100, 49)) is None
    assert cascades.cost_of_a_request((100, 50)) == 2


RATES = [("1", "10", 0.9), ("6", "10", 0.4), ("7", "10", 0.3), ("12", "10", -0.2), ("1", "0", None)]


@pytest.mark.parametrize(("smaller", "bigger", "rate"), RATES)
def test_a_cascade_pays_while_it_hands_over_less_than_break_even(smaller: str, bigger: str, rate: float | None):
    """At exactly that rate both ways cost the same."""
    found = cascades.break_even_ratio(Fraction(smaller), Fraction(bigger))
    assert found == (None if rate is None else pytest.approx(rate))
    if found is not None:
        assert float(smaller) + found * float(bigger) == pytest.approx(float(bigger))
    assert cascades.break_even_ratio(None, Fraction(bigger)) is None
    assert cascades.break_even_ratio(Fraction(smaller), None) is None


def test_first_tries_wait_for_a_cost_and_are_booked_once():
    assert list(cascades.spent_on_first_tries(EDGE, 10, 0, None, 7)) == []
    assert list(cascades.spent_on_first_tries(EDGE, 10, 4, Fraction(3, 2), 7)) == [
        Entry(Account(Kind.ESCALATION_SPEND, EDGE), Fraction(9), 7),
        Entry(Account(Kind.COSTED_ESCALATIONS, EDGE), 6, 7),
    ]
    assert list(cascades.spent_on_first_tries(EDGE, 10, 10, Fraction(3, 2), 7)) == []


# --- windows over totals


def test_a_track_says_what_moved_in_a_window_and_forgets_what_cannot_be():
    track = Track()
    assert track.moved(0, HOUR) is None
    now = Instant(wall=NOW * NANO, monotonic=100 * HOUR)
    track.restore(
        [(NOW - 3600, (1, 1)), (NOW - 60, (4, 2)), (NOW - 30, (99, 2)), (NOW + 60, (4, 2)), (NOW - 20, (4,))],
        now,
        (5, 3),
    )
    track.record(now.monotonic, (5, 3))
    assert track.moved(now.monotonic, HOUR) == (HOUR, (4, 2))
    assert track.moved(now.monotonic, HOUR // 60) == (HOUR // 60, (1, 1))
    track.forget()
    assert track.moved(now.monotonic, HOUR) is None
