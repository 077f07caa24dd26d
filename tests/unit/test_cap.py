"""The cap: who is denied, for how long and why; and what of a config can never come to pass."""

from datetime import UTC, datetime
from decimal import Decimal
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.clock import Instant
from exporter.config.load import parse
from exporter.config.model import Budget, Cap, CapMode, Config, Engine, Match, OnUnknown
from exporter.core.budgets import BudgetFacts, BudgetMeter, BudgetView, EngineCost, State
from exporter.core.cap import Asked, Decision, Override, applies, booked_names, decide, unasked_caps, unreachable_alerts
from exporter.core.money import NANO, Account, Kind, nano_usd

SPEND = Account(Kind.SPEND, ("compute_busy", "chat", "m", "fast"))


def utc(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * NANO


def usd(text: str) -> int:
    return int(nano_usd(Decimal(text)))


NOON = utc("2026-11-23T12:00")
CHAT = EngineCost(name="chat", model="m", tier="fast", compute=nano_usd(Decimal("0.5")))
ENFORCE = Cap(mode=CapMode.ENFORCE)
ALL = Match()
ANYBODY = Asked()
UNPRICED = Account(Kind.UNPRICED_GPU, ("chat", "m", "fast", "any"))


def view(
    spent: str = "0",
    daily: str | None = "25",
    monthly: str | None = None,
    *,
    name: str = "inference",
    cap: Cap = ENFORCE,
    match: Match = ALL,
    unpriced: bool = False,
) -> BudgetView:
    """A budget at noon, with dollars spent an hour before."""
    of = Budget(
        name=name,
        daily_usd=Decimal(daily) if daily else None,
        monthly_usd=Decimal(monthly) if monthly else None,
        cap=cap,
        match=match,
    )
    meter = BudgetMeter(of)
    meter.book(SPEND, usd(spent), NOON - 3600 * NANO)
    meter.book(UNPRICED, NANO if unpriced else 0, NOON)
    return meter.view(Instant(NOON, 0), BudgetFacts(accounting_start=0, engines=[CHAT]))


def ask(
    *budgets: BudgetView, asked: Asked = ANYBODY, now: int = NOON, age: float = 2.0, **overrides: Override
) -> Decision:
    return decide(budgets, asked, now, age, overrides)


def enforce(**more: object) -> Cap:
    return Cap(mode=CapMode.ENFORCE, **more)  # type: ignore[arg-type]


def test_below_the_limit_a_request_may_spend():
    answer = ask(view("24.999999999"))
    assert (answer.allowed, answer.status, answer.retry_after_seconds) == (True, 200, None)
    assert (answer.budget, answer.period, answer.state) == ("inference", "day", State.WARN)
    assert (answer.spent, answer.limit, answer.remaining) == (usd("24.999999999"), usd("25"), 1)
    assert answer.reason == "the day of budget inference has money left"


def test_boundary_at_the_limit_a_request_is_denied():
    answer = ask(view("25"))
    assert (answer.allowed, answer.status, answer.retry_after_seconds) == (False, 402, 12 * 3600)
    assert (answer.spent, answer.limit, answer.remaining) == (usd("25"), usd("25"), 0)
    assert answer.reason == "the limit of the day of budget inference is spent"
    assert answer.denied == (("inference", CapMode.ENFORCE),)
    assert answer.overshoot_bound == usd("6")  # twelve hours at half a dollar
    assert answer.max_affordable_replicas == {"chat": 1}
    assert answer.age_seconds == 2.0


def test_above_the_limit_nothing_remains():
    assert ask(view("26")).remaining == 0


def test_over_reservation_never_denies_a_first_request():
    assert ask(view("0", "0.000000001")).allowed


def test_the_status_of_a_denial_is_the_budgets():
    assert ask(view("25", cap=enforce(deny_status=429))).status == 429


@pytest.mark.parametrize(
    ("at", "seconds"),
    [
        ("2026-11-23T12:00:00.5", 43200),
        ("2026-11-23T23:59:59", 1),
        ("2026-11-23T23:59:59.999999", 1),
        ("2026-11-22T12:00", 43200 + 86400),  # the clock was set back since
    ],
)
def test_retry_after_is_whole_seconds_until_the_period_ends(at: str, seconds: int):
    now = int(datetime.fromisoformat(at).replace(tzinfo=UTC).timestamp() * 10**6) * 1000
    assert ask(view("25"), now=now).retry_after_seconds == seconds


def test_a_new_period_is_open_before_the_next_beat():
    answer = ask(view("25"), now=utc("2026-11-24"))
    assert (answer.allowed, answer.reason, answer.budget) == (True, "a new period has begun", None)


def test_a_new_day_of_a_month_that_is_spent_stays_closed():
    answer = ask(view("25", "25", "25"), now=utc("2026-11-24"))
    assert (answer.allowed, answer.period, answer.retry_after_seconds) == (False, "month", 7 * 86400)


def test_of_a_day_and_a_month_that_are_both_spent_the_month_is_told():
    answer = ask(view("25", "25", "25"))
    assert (answer.period, answer.retry_after_seconds) == ("month", (7 * 24 + 12) * 3600)
    assert answer.denied == (("inference", CapMode.ENFORCE),)


def test_of_several_that_deny_the_longest_is_told_in_any_order():
    """By the budget, not by where it stands; of equals the first in the config."""
    budgets = [view("25", name="day"), view("25", None, "25", name="month"), view("1", name="open")]
    for order in permutations(budgets):
        answer = ask(*order)
        assert (answer.allowed, answer.budget) == (False, "month")
        assert set(answer.denied) == {("day", CapMode.ENFORCE), ("month", CapMode.ENFORCE)}
    assert ask(view("25", name="a"), view("30", name="b")).budget == "a"


def test_what_is_nearest_to_its_limit_is_told_where_nothing_denies():
    budgets = [view("10", name="a"), view("21", name="b"), view("22", None, "600", name="c")]
    for order in permutations(budgets):
        assert ask(*order).budget == "b"
    assert ask(view("10", name="a"), view("11", name="b")).budget == "b"
    assert ask(view("19", None, "600", name="a"), view("11", name="b")).budget == "b"
    assert ask(view("10", "25", "11")).period == "month"


# Modes.


def test_shadow_mode_only_counts():
    answer = ask(view("25", cap=Cap(mode=CapMode.SHADOW)))
    assert (answer.allowed, answer.status, answer.state) == (True, 200, State.OVER)
    assert answer.denied == (("inference", CapMode.SHADOW),)
    assert answer.reason == "shadow mode: the limit of the day of budget inference is spent"
    assert answer.retry_after_seconds is None


def test_shadow_mode_counts_beside_a_denial_and_is_not_told():
    shadow = view("25", None, "25", name="try", cap=Cap(mode=CapMode.SHADOW))
    answer = ask(shadow, view("25"))
    assert (answer.allowed, answer.budget) == (False, "inference")
    assert answer.denied == (("try", CapMode.SHADOW), ("inference", CapMode.ENFORCE))


def test_mode_off_neither_denies_nor_counts():
    answer = ask(view("25", cap=Cap(mode=CapMode.OFF, on_unknown=OnUnknown.DENY)), age=1e6)
    assert (answer.allowed, answer.denied) == (True, ())


def test_hard_cap_enforces():
    of = Budget(name="b", daily_usd=Decimal(25), hard_cap=True)
    meter = BudgetMeter(of)
    meter.book(SPEND, usd("25"), NOON)
    assert not ask(meter.view(Instant(NOON, 0), BudgetFacts(accounting_start=0))).allowed


def test_an_exempt_feature_is_neither_denied_nor_counted():
    budgets = view("25", cap=enforce(exempt_features=("safety",)))
    exempt = ask(budgets, asked=Asked(feature="safety"))
    assert (exempt.allowed, exempt.denied, exempt.state) == (True, (), State.OVER)
    assert not ask(budgets, asked=Asked(feature="chat")).allowed
    assert not ask(budgets).allowed


def test_an_exempt_feature_is_exempt_from_one_budget():
    other = view("25", name="other")
    assert ask(view("25", cap=enforce(exempt_features=("safety",))), other, asked=Asked("safety")).budget == "other"


# What applies.


@pytest.mark.parametrize(
    ("match", "asked", "expected"),
    [
        (Match(), Asked(), True),
        (Match(), Asked("f", "t", "m"), True),
        (Match(feature="f"), Asked(feature="f"), True),
        (Match(feature="f"), Asked(feature="g"), False),
        (Match(feature="f"), Asked(), False),
        (Match(team="t", model="m"), Asked("f", "t", "m"), True),
        (Match(team="t", model="m"), Asked("f", "t", None), False),
        (Match(team="t", model="m"), Asked("f", "u", "m"), False),
        (Match(feature="f"), Asked(team="f"), False),
        (Match(model="m"), Asked(model="lora", booked=frozenset("m")), True),
        (Match(model="lora"), Asked(model="lora", booked=frozenset("m")), True),
        (Match(model="n"), Asked(model="lora", booked=frozenset("m")), False),
        (Match(model="m", team="t"), Asked(model="lora", booked=frozenset("m")), False),
        (Match(category="compute"), Asked("f", "t", "m"), False),
        (Match(engine="chat"), Asked("f", "t", "m"), False),
        (Match(tier="fast", model="m"), Asked("f", "t", "m"), False),
    ],
)
def test_a_budget_applies_if_each_of_its_keys_equals_the_requests(match: Match, asked: Asked, expected: bool):
    assert applies(match, asked) is expected
    answer = ask(view("25", match=match), asked=asked)
    assert (answer.budget is not None) is expected


def test_where_no_budget_applies_nobody_is_denied():
    answer = ask(view("25", match=Match(model="m")), asked=Asked(model="n"))
    assert (answer.allowed, answer.reason, answer.state, answer.denied) == (True, "no budget applies", None, ())
    assert ask().allowed
    assert not ask(view("25", match=Match(model="m")), asked=Asked(model="m")).allowed


ENGINES = (
    Engine(name="chat", url="http://a", models=("m", "lora")),
    Engine(name="big", url="http://b", models=("n", "lora", "large")),
    Engine(name="nameless", url="http://c"),
)


@pytest.mark.parametrize(
    ("told", "booked"),
    [
        ({}, {"m": "m", "n": "n", "large": "n", "lora": "m n"}),
        ({"chat": "m", "big": "n", "nameless": "unknown"}, {"m": "m", "n": "n", "large": "n", "lora": "m n"}),
        (
            {"chat": "p", "big": "several"},
            {"m": "m p", "n": "n several", "large": "n several", "lora": "m n p several"},
        ),
    ],
)
def test_each_name_of_an_engines_model_is_booked_where_the_engines_spend_is(told: dict[str, str], booked: Any):
    found = booked_names(ENGINES, told)
    assert {name: " ".join(sorted(names)) for name, names in found.items()} == booked


def test_an_alias_of_two_engines_is_denied_by_the_budget_of_either():
    asked = Asked(model="lora", booked=booked_names(ENGINES, {})["lora"])
    assert [applies(Match(model=name), asked) for name in ("m", "n", "lora", "large")] == [True, True, True, False]
    assert not ask(view("0", match=Match(model="n")), view("25", match=Match(model="m")), asked=asked).allowed


# What is not known.

DENY = enforce(on_unknown=OnUnknown.DENY, max_age=60.0)


@pytest.mark.parametrize(("cap", "allowed"), [(enforce(max_age=60.0), True), (DENY, False)])
def test_stale_figures_are_unknown(cap: Cap, allowed: bool):
    for spent in ("1", "25"):
        answer = ask(view(spent, cap=cap), age=60.001)
        assert (answer.allowed, answer.state) == (allowed, State.UNKNOWN)
        assert answer.retry_after_seconds == (None if allowed else 60)
        assert answer.reason == "the spend of the day of budget inference was last seen 60 s ago"
    assert ask(view("1", cap=cap), age=60.0).state is State.OK


def test_stale_figures_of_a_period_that_is_over_are_unknown_as_well():
    assert not ask(view("1", cap=DENY), now=utc("2026-11-25"), age=1e5).allowed


@pytest.mark.parametrize(("cap", "allowed"), [(enforce(), True), (DENY, False)])
def test_unknown_price_is_an_unknown_spend(cap: Cap, allowed: bool):
    for spent in ("0", "1"):
        answer = ask(view(spent, cap=cap, unpriced=True))
        assert (answer.allowed, answer.state) == (allowed, State.UNKNOWN)
        assert answer.retry_after_seconds == (None if allowed else 12 * 3600)
        assert answer.spent == (usd("1") if spent == "1" else None)
        assert answer.remaining == (usd("24") if spent == "1" else None)
        assert answer.reason == "the spend of the day of budget inference is not known"
    assert not ask(view("25", cap=cap, unpriced=True)).allowed


def test_a_budget_of_a_feature_denies_by_what_is_attributed_to_it():
    of = Budget(name="summary", daily_usd=Decimal(25), match=Match(feature="f"), cap=ENFORCE)
    meter = BudgetMeter(of)
    meter.book(SPEND, usd("100"), NOON)
    facts = BudgetFacts(accounting_start=0, engines=[CHAT])
    assert ask(meter.view(Instant(NOON, 0), facts), asked=Asked("f")).allowed
    meter.book(Account(Kind.ATTRIBUTED, ("f", "docs", "chat", "m", "fast")), usd("25"), NOON)
    view = meter.view(Instant(NOON, 0), facts)
    assert not ask(view, asked=Asked("f")).allowed
    assert ask(view, asked=Asked("g")).allowed


def test_shadow_mode_counts_what_is_unknown_where_that_denies():
    shadow = Cap(mode=CapMode.SHADOW, on_unknown=OnUnknown.DENY)
    answer = ask(view("1", cap=shadow), age=121.0)
    assert (answer.allowed, answer.denied) == (True, (("inference", CapMode.SHADOW),))
    assert answer.reason == "shadow mode: the spend of the day of budget inference was last seen 121 s ago"


# Break-glass.


def broken_glass(amount: str, until: str = "2026-11-23T13:00") -> Override:
    return Override(
        budget="inference", amount_nano_usd=usd(amount), until_ns=utc(until), at_ns=NOON, reason="launch day"
    )


def test_an_override_raises_the_limit_until_it_expires():
    override = broken_glass("5")
    answer = ask(view("25"), inference=override)
    assert (answer.allowed, answer.limit, answer.remaining, answer.state) == (True, usd("30"), usd("5"), State.WARN)
    assert not ask(view("25"), inference=override, now=utc("2026-11-23T13:00")).allowed
    assert ask(view("25"), inference=override, now=utc("2026-11-23T13:00") - 1).allowed


def test_an_override_has_a_limit_of_its_own():
    assert ask(view("29.999999999"), inference=broken_glass("5")).allowed
    denied = ask(view("30"), inference=broken_glass("5"))
    assert (denied.allowed, denied.limit, denied.retry_after_seconds) == (False, usd("30"), 12 * 3600)


def test_an_override_raises_day_and_month_of_its_budget_only():
    both = view("25", "25", "25")
    assert ask(both, inference=broken_glass("5")).allowed
    assert ask(both, view("25", name="other"), inference=broken_glass("5")).budget == "other"
    assert not ask(both, other=broken_glass("5")).allowed
    assert not ask(both, inference=broken_glass("0")).allowed


def test_an_override_opens_what_is_unknown_and_makes_nothing_known():
    override = broken_glass("5")
    for spent, unpriced, age in (("1", False, 61.0), ("25", True, 2.0), ("0", True, 2.0)):
        stands = view(spent, cap=DENY, unpriced=unpriced)
        opened = ask(stands, age=age, inference=override)
        assert (opened.allowed, opened.state, opened.denied) == (True, State.UNKNOWN, ())
        assert not ask(stands, age=age, inference=broken_glass("0")).allowed
        assert not ask(stands, age=age, inference=override, now=utc("2026-11-23T13:00")).allowed
    assert not ask(view("30", cap=DENY, unpriced=True), inference=override).allowed  # so much is known to be spent


# Any set of budgets.

Views = st.lists(
    st.builds(
        view,
        spent=st.sampled_from(["0", "20", "24.999999999", "25", "26"]),
        monthly=st.sampled_from([None, "20", "25", "1000"]),
        name=st.sampled_from("abc"),
        cap=st.builds(
            Cap,
            mode=st.sampled_from(CapMode),
            on_unknown=st.sampled_from(OnUnknown),
            exempt_features=st.sampled_from([(), ("f",)]),
        ),
        match=st.sampled_from([Match(), Match(model="m"), Match(feature="f")]),
        unpriced=st.booleans(),
    ),
    max_size=4,
)
Questions = st.builds(Asked, st.sampled_from([None, "f"]), st.none(), st.sampled_from([None, "m", "n"]))


@given(Views, Questions, st.sampled_from([0.0, 500.0]), st.randoms(use_true_random=False))
def test_a_request_is_denied_exactly_where_one_budget_alone_would_deny_it(budgets, asked, age, random):
    alone = [ask(one, asked=asked, age=age) for one in budgets]
    together = ask(*budgets, asked=asked, age=age)
    assert together.allowed == all(one.allowed for one in alone)
    assert (together.status == 200) == together.allowed == (together.retry_after_seconds is None)
    assert set(together.denied) == {count for one in alone for count in one.denied}
    if not together.allowed:
        assert together.retry_after_seconds == max(one.retry_after_seconds or 0 for one in alone)
    random.shuffle(budgets)
    again = ask(*budgets, asked=asked, age=age)
    assert (again.allowed, again.retry_after_seconds) == (together.allowed, together.retry_after_seconds)


# What can never come to pass.


def config(
    budgets: str, *, engine: str = "{url: 'http://a', tier: fast}", prices: str = "gpu: {usd_per_hour: 2}"
) -> Config:
    return parse(f"engines: [{engine}]\nprices: {{{prices}}}\nbudgets: [{budgets}]\n".encode(), "config.yml")


def test_thresholds_are_those_of_the_burn_alerts():
    """In an hour 15 % of a day and 2 % of thirty days."""
    rates = config("{name: a, daily_usd: 1}").alerts.burn_rate
    assert (rates.fast_day or 0) / 24 * 100 == 15
    assert (rates.fast_month or 0) / (30 * 24) * 100 == 2


def test_an_alert_that_is_switched_off_is_not_unreachable():
    text = "engines: [{url: 'http://a'}]\nprices: {gpu: {usd_per_hour: 1}}\nbudgets: [{name: a, daily_usd: 1000}]\n"
    on, off = (parse((text + more).encode(), "config.yml") for more in ("", "alerts: {burn_rate: {fast_day: null}}\n"))
    assert len(unreachable_alerts(on, NOON)) == 1
    assert unreachable_alerts(off, NOON) == []


@pytest.mark.parametrize(
    ("budgets", "found"),
    [
        ("{name: a, monthly_usd: 103.47}", []),  # 745 hours × $2 are 14.4 times the limit, and a little more
        ("{name: a, monthly_usd: 103.48}", ["budgets[0].monthly_usd: BudgetBurnFast (above 14.4) can never fire"]),
        (
            "{name: a, monthly_usd: 600}",
            ["budgets[0].monthly_usd: BudgetBurnFast (above 14.4) and BudgetBurnSlow (above 3) can never fire"],
        ),
        ("{name: a, daily_usd: 13.8}", []),  # 25 hours × $2
        ("{name: a, daily_usd: 13.9}", ["budgets[0].daily_usd: BudgetBurnFast (above 3.6) can never fire"]),
        (
            "{name: a, daily_usd: 1, monthly_usd: 1}, {name: b, daily_usd: 25}",
            ["budgets[1].daily_usd: BudgetBurnFast (above 3.6) can never fire"],
        ),
    ],
)
def test_a_burn_alert_that_can_never_fire_is_told(budgets: str, found: list[str]):
    lines = unreachable_alerts(config(budgets), NOON)
    assert [line.split(",")[0] for line in lines] == found


def test_a_burn_alert_that_can_never_fire_is_told_with_the_top_speed():
    (line,) = unreachable_alerts(config("{name: a, daily_usd: 25}"), NOON)
    assert line.endswith("since at full speed the engines spend 2 times the pace that uses the limit")


@pytest.mark.parametrize(
    ("change", "fires"),
    [
        ({"prices": "gpu: {usd_per_hour: 2}"}, False),
        ({"prices": "gpu: {usd_per_hour: 2, timeline: [{from: 2027-01-01, usd_per_hour: 3}]}"}, True),
        ({"prices": "gpu: {by_name: {cheap: 1, dear: 3}}"}, True),
        ({"prices": "gpu: {by_name: {cheap: 1, dear: 2}}"}, False),
        ({"prices": "gpu: {instance: {usd_per_hour: 24, gpus: 8}}"}, True),
        ({"prices": "gpu: {usd_per_hour: 2}, other: [{name: rack, usd_per_hour: 0.6}]"}, True),
        ({"prices": "gpu: {usd_per_hour: 2}, network: {usd_per_gb: 0.09}"}, True),
        (
            {
                "prices": "gpu: {usd_per_hour: 2}, api: {models: [{model: x, input_usd_per_million: 1, "
                "output_usd_per_million: 1}]}"
            },
            True,
        ),
        ({"prices": "gpu: {owned: {purchase_usd: 1, lifetime: 3y, usd_per_kwh: 0.2}}"}, True),
        ({"prices": "gpu: {owned: {purchase_usd: 1, lifetime: 3y}}"}, False),
        (
            {
                "prices": "gpu: {usd_per_hour: 2, timeline: [{from: 2027-01-01, owned: {purchase_usd: 1, lifetime: 3y, "
                "usd_per_kwh: 0.2}}]}"
            },
            True,
        ),
        ({"engine": "{url: 'http://a', gpus: 1.3}"}, True),
        ({"engine": "{url: 'http://a', min_replicas: 2}"}, True),
        ({"engine": "{url: 'http://a', gpus: 0}", "prices": "other: [{name: rack, usd_per_hour: 2}]"}, False),
        ({"engine": "{name: a, url: 'http://a'}, {name: b, url: 'http://b'}"}, True),
    ],
)
def test_top_speed_is_the_dearest_hour_of_all_engines(change: dict[str, str], fires: bool):
    """Against $18 a day, at which $2 an hour are 2.8 times the pace and $2.60 are 3.6 times."""
    assert (unreachable_alerts(config("{name: a, daily_usd: 18}", **change), NOON) == []) is fires


def test_a_burn_alert_at_exactly_its_threshold_can_never_fire():
    slow = config("{name: a, daily_usd: 12.5}", prices="gpu: {usd_per_hour: 1.8}")
    assert len(unreachable_alerts(slow, NOON)) == 1


def test_top_speed_counts_the_engines_of_the_tier():
    fast = config("{name: a, daily_usd: 18, match: {tier: fast}}", engine="{url: 'http://a', tier: fast, gpus: 1.3}")
    assert unreachable_alerts(fast, NOON) == []


@pytest.mark.parametrize(
    ("match", "fires"),
    [
        ("{}", True),
        ("{engine: a}", False),
        ("{model: m}", True),  # `a` serves it, and nobody knows what `b` does
        ("{model: n}", False),
        ("{tier: fast}", False),
        ("{category: compute}", True),
        ("{category: storage}", False),
        ("{category: compute, tier: slow}", False),
    ],
)
def test_top_speed_has_only_what_the_budget_pays_for(match: str, fires: bool):
    """Against $18 a day: one engine at $2 is too slow, two are not."""
    engines = "{name: a, url: 'http://a', models: [m], tier: fast}, {name: b, url: 'http://b', tier: slow}"
    budgets = f"{{name: x, daily_usd: 18, match: {match}}}"
    assert (unreachable_alerts(config(budgets, engine=engines), NOON) == []) is fires


def test_network_and_api_have_no_top_speed_only_where_the_budget_pays_for_them():
    prices = "gpu: {usd_per_hour: 2}, network: {usd_per_gb: 1}, api: {models: [{model: x, input_usd_per_million: 1, "
    prices += "output_usd_per_million: 1}]}"
    for match, told in (("compute", 1), ("network", 0), ("api", 0), ("storage", 1)):
        budgets = f"{{name: x, daily_usd: 18, match: {{category: {match}}}}}"
        assert len(unreachable_alerts(config(budgets, prices=prices), NOON)) == told


@pytest.mark.parametrize(
    ("budget", "found"),
    [
        ("{name: a, daily_usd: 1}", []),
        ("{name: a, daily_usd: 1, match: {model: m, feature: f, team: t}}", []),
        ("{name: a, daily_usd: 1, match: {engine: default}}", ["engine"]),
        (
            "{name: a, daily_usd: 1, match: {engine: default, category: compute}, hard_cap: true}",
            ["category or engine"],
        ),
        ("{name: a, daily_usd: 1, match: {tier: fast}, cap: {mode: off}}", []),
    ],
)
def test_a_cap_that_no_request_can_meet_is_told(budget: str, found: list[str]):
    expected = [f"budgets[0].cap: never denies, since no request says its {keys}" for keys in found]
    assert unasked_caps(config(budget)) == expected
