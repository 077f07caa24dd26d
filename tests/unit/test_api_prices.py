"""What tokens cost at an API, against examples by hand and against the price list's own arithmetic."""

from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction

import msgspec
import pytest
from genai_prices import Usage
from genai_prices.data_snapshot import DataSnapshot, get_snapshot
from genai_prices.types import (
    ClauseEquals,
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    Provider,
    StartDateConstraint,
    TieredPrices,
    TimeOfDateConstraint,
)
from genai_prices.types import Tier as ListTier
from hypothesis import given
from hypothesis import strategies as st

from exporter.config.prices import ApiModel, ApiPrices
from exporter.core.api_prices import (
    ApiPrice,
    Rate,
    Rule,
    Tier,
    configured,
    cost_nano_usd,
    equivalent_nano_usd,
    nano_usd_per_million,
)
from exporter.core.money import NANO
from exporter.sources.list_prices import _listed

MILLION = 1_000_000
DAY = 86_400


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def usd(text: str) -> int:
    """Return dollars, or dollars for a million tokens, in nano-dollars."""
    return nano_usd_per_million(Decimal(text))


def price(*rules: Rule) -> ApiPrice:
    return ApiPrice(provider="p", model="m", source="test", rules=rules)


PLAIN = Rule(input=Rate(usd("0.15")), output=Rate(usd("0.60")), cached_input=Rate(usd("0.075")))


# By hand


def test_a_million_tokens_in_and_a_million_out_cost_75_cents():
    assert cost_nano_usd(price(PLAIN), 0, MILLION, 0, MILLION) == usd("0.75")


@pytest.mark.parametrize(
    ("prompt", "cached", "output", "cost"),
    [
        (1000, 0, 0, "0.00015"),
        (1000, 400, 0, "0.00012"),  # 600 × 0.15 + 400 × 0.075
        (1000, 1000, 0, "0.000075"),
        (1000, 1001, 0, "0.000075"),  # cached tokens beyond the prompt's count for nothing
        (0, 0, 1000, "0.0006"),
        (0, 0, 0, "0"),
    ],
)
def test_cached_tokens_are_a_part_of_the_prompt(prompt: int, cached: int, output: int, cost: str):
    assert cost_nano_usd(price(PLAIN), 0, prompt, cached, output) == usd(cost)
    assert equivalent_nano_usd(price(PLAIN), 0, prompt, cached, output) == usd(cost)


def test_without_a_price_for_them_cached_tokens_cost_like_any_prompt_token():
    unread = price(replace(PLAIN, cached_input=None))
    assert cost_nano_usd(unread, 0, 1000, 400, 0) == usd("0.00015")
    assert equivalent_nano_usd(unread, 0, 1000, 400, 0) == usd("0.00015")


def test_cached_tokens_may_be_free():
    assert cost_nano_usd(price(replace(PLAIN, cached_input=Rate(0))), 0, 1000, 1000, 0) == 0


TIERED = Rule(
    input=Rate(usd("1"), (Tier(1000, usd("2")), Tier(5000, usd("4")))),
    output=Rate(usd("10"), (Tier(1000, usd("20")),)),
    cached_input=Rate(usd("0.1")),
)


@pytest.mark.parametrize(
    ("prompt", "input_rate", "output_rate"), [(0, 1, 10), (1000, 1, 10), (1001, 2, 20), (5000, 2, 20), (5001, 4, 20)]
)
def test_a_tier_begins_above_its_threshold_and_holds_for_all_tokens(prompt: int, input_rate: int, output_rate: int):
    expected = (prompt * input_rate + 100 * output_rate) * 1000
    assert cost_nano_usd(price(TIERED), 0, prompt, 0, 100) == expected


def test_cached_tokens_count_for_the_tier_and_may_have_none_themselves():
    assert cost_nano_usd(price(TIERED), 0, 5001, 5000, 0) == 4000 + 5000 * 100


def test_tokens_summed_over_many_requests_reach_no_tier():
    assert equivalent_nano_usd(price(TIERED), 0, 9000, 1000, 100) == (8000 + 1000) * 1000 + 1000 * 100


DATED = price(PLAIN, replace(PLAIN, output=Rate(usd("2")), start=at("2026-11-01")))


@pytest.mark.parametrize(
    ("moment", "cost"),
    [("2020-01-01", "0.60"), ("2026-10-31T23:59:59", "0.60"), ("2026-11-01", "2"), ("2030-01-01", "2")],
)
def test_a_price_changes_at_midnight_utc(moment: str, cost: str):
    assert cost_nano_usd(DATED, at(moment), 0, 0, MILLION) == usd(cost)
    assert equivalent_nano_usd(DATED, at(moment), 0, 0, MILLION) == usd(cost)


@pytest.mark.parametrize(
    ("daily", "inside", "outside"),
    [
        ((1800, 59_400), ("00:30:00", "16:29:59"), ("00:29:59", "16:30:00", "23:59:59")),
        ((79_200, 7200), ("22:00:00", "23:59:59", "00:00:00", "01:59:59"), ("02:00:00", "21:59:59")),
        ((0, DAY), ("00:00:00", "23:59:59"), ()),
        ((3600, 3600), (), ("00:59:59", "01:00:00")),
    ],
)
def test_a_daily_price_may_cross_midnight(daily: tuple[int, int], inside: tuple[str, ...], outside: tuple[str, ...]):
    by_night = price(PLAIN, replace(PLAIN, output=Rate(0), daily=daily))
    for moment in inside:
        assert cost_nano_usd(by_night, at(f"2026-11-01T{moment}"), 0, 0, 1) == 0
    for moment in outside:
        assert cost_nano_usd(by_night, at(f"2026-11-01T{moment}"), 0, 0, 1) == 600


def test_the_last_rule_that_holds_wins_and_else_the_first():
    first = replace(PLAIN, output=Rate(1), start=at("2030-01-01"))
    always = replace(PLAIN, output=Rate(2))
    later = replace(PLAIN, output=Rate(3), start=at("2026-11-01"))
    assert price(first, always, later).rule(at("2026-12-01")).output == Rate(3)
    assert price(first, always, later).rule(at("2026-10-01")).output == Rate(2)
    assert price(first, later, always).rule(at("2026-12-01")).output == Rate(2)
    assert price(first, later).rule(at("2026-10-01")).output == Rate(1)


@pytest.mark.parametrize(
    ("rate", "tokens", "cost"),
    [
        (1, 499_999, 0),
        (1, 500_000, 1),
        (1, 1_499_999, 1),
        (1, 1_500_000, 2),
        (MILLION // 2, 1, 1),
        (MILLION // 2 - 1, 1, 0),
    ],
)
def test_a_cost_is_rounded_half_up(rate: int, tokens: int, cost: int):
    only = price(Rule(input=Rate(0), output=Rate(rate)))
    assert cost_nano_usd(only, 0, 0, 0, tokens) == cost
    assert equivalent_nano_usd(only, 0, 0, 0, tokens) == Fraction(rate * tokens, MILLION)


def test_a_cost_is_rounded_once_and_not_part_by_part():
    halves = price(Rule(input=Rate(MILLION // 2), output=Rate(MILLION // 2), cached_input=Rate(MILLION // 2)))
    assert cost_nano_usd(halves, 0, 2, 1, 1) == 2


@pytest.mark.parametrize(
    ("dollars", "nano"),
    [
        ("0.15", 150_000_000),
        ("0.18000000000000002", 180_000_000),
        ("0.0000000005", 1),
        ("0.00000000049", 0),
        ("0", 0),
        ("123456789.123456789", 123_456_789_123_456_789),
    ],
)
def test_dollars_for_a_million_tokens_become_whole_nano_dollars(dollars: str, nano: int):
    assert nano_usd_per_million(Decimal(dollars)) == nano


TOKENS = st.integers(0, 10**9)


@given(TOKENS, TOKENS, TOKENS, st.integers(-DAY, 4 * 10**9), st.sampled_from([price(PLAIN), price(TIERED), DATED]))
def test_no_cost_is_below_zero_and_the_summed_one_is_the_sum(
    prompt: int, cached: int, output: int, moment: int, priced: ApiPrice
):
    assert cost_nano_usd(priced, moment, prompt, cached, output) >= 0
    parts = [(prompt, min(cached, prompt), output), (output, 0, prompt)]
    whole = tuple(map(sum, zip(*parts, strict=True)))
    summed = sum(equivalent_nano_usd(priced, moment, *part) for part in parts)
    assert equivalent_nano_usd(priced, moment, *whole) == summed


# From the config


def test_a_price_of_the_config_needs_input_and_output():
    own = ApiModel(model="mine", input_usd_per_million=Decimal("0.15"), output_usd_per_million=Decimal("0.60"))
    cached = msgspec.structs.replace(own, provider="gateway", cached_input_usd_per_million=Decimal("0.075"))
    listed = ApiModel(model="gpt-4o-mini", provider="openai")
    prices = configured(ApiPrices(models=(own, cached, listed)))
    assert prices == {
        (None, "mine"): ApiPrice(
            provider=None, model="mine", source="config", rules=(replace(PLAIN, cached_input=None),)
        ),
        ("gateway", "mine"): ApiPrice(provider="gateway", model="mine", source="config", rules=(PLAIN,)),
    }


# From the list


def listed(*prices: ConditionalPrice | ModelPrice, provider: str | None = "acme", model: str = "m-1") -> ApiPrice | str:
    """Return what a list of one provider and one model says of a model."""
    given_prices = prices[0] if isinstance(prices[0], ModelPrice) else [*prices]
    info = ModelInfo(id="m-1", match=ClauseEquals("m-1"), prices=given_prices)  # type: ignore[arg-type]
    acme = Provider(id="acme", name="Acme", api_pattern="", models=[info], model_match=ClauseEquals("m-1"))
    reseller = Provider(id="shop", name="Shop", api_pattern="", models=[], fallback_model_providers=["acme"])
    return _listed(DataSnapshot([acme, reseller], from_auto_update=False), "list 1", provider, model)


def tokens(of_input: str, of_output: str, cached: str | None = None) -> ModelPrice:
    read = {} if cached is None else {"cache_read_mtok": Decimal(cached)}
    return ModelPrice(input_mtok=Decimal(of_input), output_mtok=Decimal(of_output), **read)


def test_a_listed_price_arrives_with_all_its_rules():
    tiered = TieredPrices(base=Decimal(1), tiers=[ListTier(200_000, Decimal(4)), ListTier(100, Decimal(2))])
    evening = TimeOfDateConstraint(time(22, 30), time(1, 0, tzinfo=timezone(timedelta(hours=-1))))
    found = listed(
        ConditionalPrice(prices=tokens("0.15", "0.60", "0.075")),
        ConditionalPrice(StartDateConstraint(date(2026, 11, 1)), prices=tokens("0.1", "0.4")),
        ConditionalPrice(evening, prices=ModelPrice(input_mtok=tiered, output_mtok=Decimal("0.18000000000000002"))),
    )
    assert found == ApiPrice(
        provider="acme",
        model="m-1",
        source="list 1",
        rules=(
            PLAIN,
            Rule(input=Rate(usd("0.1")), output=Rate(usd("0.4")), start=at("2026-11-01")),
            Rule(
                input=Rate(usd("1"), (Tier(100, usd("2")), Tier(200_000, usd("4")))),
                output=Rate(usd("0.18")),
                daily=(81_000, 7200),
            ),
        ),
    )


@pytest.mark.parametrize(
    ("provider", "model", "source"),
    [
        ("acme", "m-1", "list 1"),
        ("ACME", "M-1", "list 1"),
        (None, "m-1", "list 1 (acme m-1)"),
        ("shop", "m-1", "list 1 (acme m-1)"),
    ],
)
def test_the_source_says_whose_price_it_is_where_that_is_not_what_was_asked(
    provider: str | None, model: str, source: str
):
    found = listed(tokens("1", "1"), provider=provider, model=model)
    assert isinstance(found, ApiPrice)
    assert (found.provider, found.model, found.source) == (provider, model, source)


@dataclass
class FullMoon:
    """A condition of some newer list."""


@pytest.mark.parametrize(
    ("prices", "why"),
    [
        ([ModelPrice()], "has no price for both input and output tokens in list 1"),
        ([ModelPrice(input_mtok=Decimal(1))], "has no price for both input and output tokens in list 1"),
        (
            [ConditionalPrice(prices=tokens("1", "1")), ConditionalPrice(prices=ModelPrice(output_mtok=Decimal(1)))],
            "has no price for both input and output tokens in list 1",
        ),
        (
            [ConditionalPrice(FullMoon(), prices=tokens("1", "1"))],  # type: ignore[arg-type]
            "has a price in list 1 that is not understood: it depends on a FullMoon",
        ),
        (
            [tokens("-1", "1")],
            "has a price in list 1 that is not understood: expected an amount in US dollars, 0 or more, found -1",
        ),
        (
            [tokens("NaN", "1")],
            "has a price in list 1 that is not understood: expected an amount in US dollars, 0 or more, found NaN",
        ),
    ],
)
def test_a_price_that_is_not_whole_is_none(prices: list[ConditionalPrice | ModelPrice], why: str):
    assert listed(*prices) == why


@pytest.mark.parametrize(
    ("provider", "model", "why"),
    [
        ("acme", "m-2", "is not in the price list of list 1 (similar: m-1)"),
        ("acme", "quite another", "is not in the price list of list 1"),
        (None, "m-2", "is not in the price list of list 1 (similar: m-1)"),
        ("acmo", "m-1", "is not in the price list of list 1, which has no provider acmo (similar: acme)"),
        ("shop", "m-2", "is not in the price list of list 1"),
    ],
)
def test_a_model_that_is_not_listed_is_said_with_its_near_misses(provider: str | None, model: str, why: str):
    assert listed(tokens("1", "1"), provider=provider, model=model) == why


# Against the list's own arithmetic


def _all_listed() -> list[tuple[Provider, ModelInfo, ApiPrice]]:
    snapshot = get_snapshot()
    found = []
    for provider in snapshot.providers:
        for info in provider.models:
            priced = _listed(DataSnapshot([replace(provider, models=[info])], False), "list", provider.id, info.id)
            if isinstance(priced, ApiPrice):
                found.append((provider, info, priced))
    return found


LISTED = _all_listed()


def agrees(listed_price: tuple[Provider, ModelInfo, ApiPrice], moment: int, usage: tuple[int, int, int]) -> None:
    provider, info, priced = listed_price
    prompt, cached, output = usage
    theirs = info.calc_price(
        Usage(input_tokens=prompt, cache_read_tokens=cached, output_tokens=output),
        provider,
        genai_request_timestamp=datetime.fromtimestamp(moment, UTC),
    )
    ours = cost_nano_usd(priced, moment, prompt, cached, output)
    assert abs(ours - (theirs.input_price + theirs.output_price) * NANO) <= 1, (priced, moment, usage)


def test_the_list_has_prices_for_most_of_its_models():
    models = sum(len(provider.models) for provider in get_snapshot().providers)
    assert len(LISTED) > 0.8 * models > 800
    assert any(rule.daily for _, _, priced in LISTED for rule in priced.rules)
    assert any(rule.start for _, _, priced in LISTED for rule in priced.rules)
    assert any(rule.input.tiers for _, _, priced in LISTED for rule in priced.rules)


def test_each_listed_model_agrees_at_the_edges_of_its_rules():
    for entry in LISTED:
        rules = entry[2].rules
        starts = {rule.start for rule in rules if rule.start}
        seconds = {at("2026-11-01") + second for rule in rules for second in rule.daily or ()}
        rates = [rate for rule in rules for rate in (rule.input, rule.output, rule.cached_input) if rate]
        edges = {tier.start for rate in rates for tier in rate.tiers} | {1000}
        for moment in {0, *(edge + side for edge in starts | seconds for side in (-1, 0))}:
            for prompt in {edge + side for edge in edges for side in (0, 1)}:
                agrees(entry, moment, (prompt, prompt // 3, 777))


@given(st.sampled_from(LISTED), st.integers(at("2023-01-01"), at("2029-01-01")), st.data())
def test_any_usage_of_any_listed_model_agrees(
    entry: tuple[Provider, ModelInfo, ApiPrice], moment: int, data: st.DataObject
):
    prompt = data.draw(st.integers(0, 2_000_000))
    agrees(entry, moment, (prompt, data.draw(st.integers(0, prompt)), data.draw(st.integers(0, 2_000_000))))
