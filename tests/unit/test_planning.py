"""A month on paper: the figures that it was asked to come to, and what holds for any figures."""

from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from exporter.core.api_prices import Rate, Rule, Tier
from exporter.core.money import NANO
from exporter.core.planning import (
    Api,
    Cheaper,
    Demand,
    Hosting,
    api_of,
    differences,
    plan,
    ratio,
    usd,
    verdict,
    with_gpu,
)

HOSTING = Hosting(gpu_usd_per_hour=Fraction(4, 5), storage_usd_per_month=14 * Fraction("0.023"))
DEMAND = Demand(requests_per_day=Fraction(10_000), output_tokens=Fraction(500))
API = Api(output=Fraction(3, 5))


def test_the_figures_of_one_small_gpu_beside_an_api():
    found = plan(HOSTING, DEMAND, API)
    assert found.monthly_compute_usd == 576
    assert found.monthly_storage_usd == Fraction("0.322")
    assert found.monthly_network_usd == 0
    assert (usd(found.monthly_storage_usd), usd(found.monthly_total_usd)) == ("0.32", "576.32")
    assert found.usd_per_million_output_tokens is not None
    assert usd(found.usd_per_million_output_tokens) == "3.84"
    assert found.break_even_requests_per_day == 64_035
    assert found.api_monthly_usd == 90
    assert found.cheaper is Cheaper.API


def test_eight_thousand_requests_a_day_belong_at_the_api():
    found = plan(HOSTING, Demand(requests_per_day=Fraction(8000), output_tokens=Fraction(600)), API)
    assert found.api_monthly_usd == Fraction("86.40")
    assert found.cheaper is Cheaper.API
    assert "576.32 USD a month self-hosted, 86.40 USD at the API: switch to the API" in verdict(found)


def test_input_tokens_count_in_the_total_and_at_the_api():
    demand = replace(DEMAND, input_tokens=Fraction(1500), cached_input_tokens=Fraction(500))
    found = plan(HOSTING, demand, Api(output=Fraction(3, 5), input=Fraction(3, 20), cached_input=Fraction(3, 40)))
    assert found.usd_per_million_tokens == Fraction("576.322") / 600
    assert found.api_usd_per_request == Fraction("0.0003") + Fraction("0.00015") + Fraction("0.0000375")
    same_price = plan(HOSTING, demand, Api(output=Fraction(3, 5), input=Fraction(3, 20)))
    assert same_price.api_usd_per_request == Fraction("0.0003") + Fraction("0.000225")


def test_cached_tokens_beyond_the_input_count_for_nothing():
    demand = replace(DEMAND, input_tokens=Fraction(100), cached_input_tokens=Fraction(900))
    api = Api(output=Fraction(0), input=Fraction(1), cached_input=Fraction(1, 2))
    assert api.usd_per_request(demand) == Fraction(50, 10**6)


def test_what_hardware_can_serve_is_a_matter_of_replicas_and_output_tokens():
    found = plan(replace(HOSTING, replicas=2, most_output_tokens_per_second=Fraction(100)), DEMAND, API)
    assert found.most_requests_per_day == 100 * 2 * 86_400 // 500
    assert found.can_serve_requests_per_day is True
    assert found.break_even_is_reachable is False
    assert plan(HOSTING, DEMAND, API).break_even_is_reachable is None


def test_what_is_not_known_is_none_and_never_zero():
    found = plan(HOSTING, Demand())
    assert {name for name, value in found.figures().items() if value is None} == {
        "usd_per_request", "usd_per_million_output_tokens", "usd_per_million_tokens", "most_requests_per_day",
        "can_serve_requests_per_day", "api_usd_per_request", "api_monthly_usd", "cheaper",
        "break_even_requests_per_day", "break_even_is_reachable",
    }  # fmt: skip
    assert verdict(found).startswith("Nothing is compared: ")
    assert plan(HOSTING, replace(DEMAND, requests_per_day=Fraction(0)), API).usd_per_request is None
    assert plan(HOSTING, replace(DEMAND, network_usd_per_request=None)).monthly_network_usd is None
    assert ratio(1, 0) is None


def test_break_even_needs_no_requests():
    found = plan(HOSTING, Demand(output_tokens=Fraction(500)), API)
    assert found.break_even_requests_per_day == 64_035
    assert verdict(found).startswith("Self-hosting is cheaper above 64,035 requests a day")


def test_network_is_paid_by_the_request():
    demand = replace(DEMAND, network_usd_per_request=Fraction("0.0001"))
    found = plan(HOSTING, demand, API)
    assert found.monthly_network_usd == 30
    assert found.break_even_requests_per_day == int(Fraction("576.322") / 30 / Fraction("0.0002"))
    dear = plan(HOSTING, replace(demand, network_usd_per_request=Fraction("0.0003")), API)
    assert dear.break_even_requests_per_day is None
    assert "self-hosting never pays" in verdict(dear)


def test_words_follow_the_figures():
    many = replace(DEMAND, requests_per_day=Fraction(100_000))
    assert ": stay self-hosted; " in verdict(plan(HOSTING, many, API))
    small = replace(HOSTING, most_output_tokens_per_second=Fraction(100))
    assert verdict(plan(small, many, API)).endswith("but this hardware cannot serve so many requests.")
    assert verdict(plan(small, DEMAND, API)).endswith("and this hardware could not serve them (at most 17,280).")
    big = replace(HOSTING, most_output_tokens_per_second=Fraction(1000))
    assert verdict(plan(big, DEMAND, API)).endswith("and this hardware could serve them (at most 172,800).")


def test_other_hardware_stands_beside_today():
    today = replace(HOSTING, most_output_tokens_per_second=Fraction(100))
    before, after = plan(today, DEMAND, API), plan(with_gpu(today, Decimal(2), None, Decimal(3)), DEMAND, API)
    changes = differences(before, after)
    assert (after.monthly_compute_usd, changes["monthly_compute_usd"]) == (Fraction(1440), Fraction(864))
    assert after.most_requests_per_day == 3 * 100 * 86_400 // 500
    assert {"cheaper", "can_serve_requests_per_day"}.isdisjoint(changes)
    assert with_gpu(HOSTING, None, Fraction(2), None) == replace(HOSTING, gpus=Fraction(2))
    assert differences(plan(HOSTING, Demand()), before)["api_monthly_usd"] is None


def test_a_rule_of_a_price_list_counts_the_length_of_the_prompt():
    rule = Rule(input=Rate(NANO, (Tier(1000, 2 * NANO),)), output=Rate(3 * NANO), cached_input=Rate(NANO // 2))
    assert api_of(rule, Fraction(1000)) == Api(input=Fraction(1), output=Fraction(3), cached_input=Fraction(1, 2))
    assert api_of(rule, Fraction(1001)).input == 2
    assert api_of(replace(rule, cached_input=None), Fraction(0)).cached_input is None


PRICES = st.fractions(min_value=0, max_value=1000, max_denominator=1000)
COUNTS = st.integers(1, 10**7).map(Fraction)
HOSTINGS = st.builds(
    Hosting,
    gpu_usd_per_hour=PRICES,
    gpus=st.fractions(min_value=Fraction(1, 7), max_value=16, max_denominator=7),
    replicas=st.integers(1, 50),
    storage_usd_per_month=PRICES,
    other_usd_per_hour=PRICES,
    most_output_tokens_per_second=st.one_of(st.none(), st.integers(1, 10**6).map(Fraction)),
)
DEMANDS = st.builds(
    Demand,
    requests_per_day=COUNTS,
    input_tokens=st.integers(0, 10**5).map(Fraction),
    cached_input_tokens=st.integers(0, 10**5).map(Fraction),
    output_tokens=st.integers(1, 10**5).map(Fraction),
    network_usd_per_request=st.fractions(min_value=0, max_value=Fraction(1, 1000), max_denominator=10**6),
)
APIS = st.builds(Api, output=PRICES, input=PRICES, cached_input=st.one_of(st.none(), PRICES))


@given(HOSTINGS, DEMANDS, COUNTS)
def test_more_requests_never_raise_the_cost_of_a_token(hosting: Hosting, demand: Demand, more: Fraction):
    assert demand.requests_per_day is not None
    few = plan(hosting, demand)
    many = plan(hosting, replace(demand, requests_per_day=demand.requests_per_day + more))
    assert few.usd_per_million_output_tokens is not None
    assert many.usd_per_million_output_tokens is not None
    assert many.usd_per_million_output_tokens <= few.usd_per_million_output_tokens
    assert few.usd_per_million_tokens is not None
    assert few.usd_per_million_tokens <= few.usd_per_million_output_tokens


@given(HOSTINGS, DEMANDS, APIS)
def test_above_break_even_self_hosting_is_cheaper_and_up_to_it_the_api(hosting: Hosting, demand: Demand, api: Api):
    even = plan(hosting, demand, api).break_even_requests_per_day

    def cheaper(requests: int) -> Cheaper | None:
        return plan(hosting, replace(demand, requests_per_day=Fraction(requests)), api).cheaper

    if even is None:
        assert cheaper(10**12) is Cheaper.API
    else:
        assert (cheaper(even), cheaper(even + 1)) == (Cheaper.API, Cheaper.SELF_HOSTED)


@given(HOSTINGS, DEMANDS, APIS)
def test_what_is_reachable_is_cheaper_at_full_load(hosting: Hosting, demand: Demand, api: Api):
    found = plan(hosting, demand, api)
    if found.break_even_is_reachable is None:
        assert None in (found.break_even_requests_per_day, found.most_requests_per_day)
        return
    full = plan(hosting, replace(demand, requests_per_day=Fraction(found.most_requests_per_day or 0)), api)
    assert found.break_even_is_reachable == (full.cheaper is Cheaper.SELF_HOSTED)


@given(HOSTINGS, DEMANDS)
def test_the_total_is_the_sum_of_its_parts(hosting: Hosting, demand: Demand):
    found = plan(hosting, demand)
    parts = found.monthly_compute_usd + found.monthly_storage_usd + found.monthly_other_usd
    assert found.monthly_total_usd == parts + (found.monthly_network_usd or 0)
