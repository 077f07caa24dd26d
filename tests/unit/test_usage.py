"""What usage events change: whose they are, what they claim or cost, what has no place, and that both books agree."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.config.model import Cascade, CascadeSource, Engine, Limits
from exporter.config.prices import ApiModel, ApiPrices
from exporter.core.api_prices import ApiPrice, Rate, Rule, configured, cost_nano_usd
from exporter.core.attribution import Claim, Settling, Slot
from exporter.core.directory import Directory, Target
from exporter.core.money import LABELS, Account, Kind
from exporter.core.refused import RefusedError
from exporter.core.usage import ForbiddenError, Room, Rules, Sheet
from exporter.core.usage_body import Body, Names

NOW = 1_795_464_804  # 2026-11-23T20:13:24Z
QUARTER = 1_795_464_000
SLOT = Slot("chat", 1_795_464_600, 300)


def engine(name: str, *models: str, tier: str | None = None) -> Engine:
    return Engine(name=name, url=f"http://{name}:8000", models=models, tier=tier)


def api(model: str, provider: str | None = None, usd: str = "0.15") -> ApiModel:
    return ApiModel(
        model=model, provider=provider, input_usd_per_million=Decimal(usd), output_usd_per_million=Decimal("0.60")
    )


PRICES = configured(ApiPrices(models=(api("api-model"), api("gpt", "openai"), api("gpt", "azure"), api("opus", "a"))))
CHAT, BIG = engine("chat", "llama", "llama-lora", tier="fast"), engine("big", "llama", tier="best")
OPEN, ODD = engine("open"), engine("odd", tier="odd")
SEEN = {"open": {"qwen", "qwen-lora"}, "odd": {"mixtral"}, "gone": {"old"}, "chat": {"llama-page"}}
DIRECTORY = Directory([CHAT, BIG, OPEN, ODD], SEEN, PRICES)
SUPPORT = Cascade(name="support", tiers=("fast", "balanced", "best"))
COUNTED = Cascade(name="counted", tiers=("fast", "best"), source=CascadeSource.ENGINES)


def rules(
    most: int = 2000, known: set[tuple[str, str, str, str]] | None = None, settling: Settling | None = None
) -> Rules:
    return Rules(
        directory=DIRECTORY,
        place=(settling or Settling(300, NOW)).place,
        room=Room(known=set() if known is None else known),
        limits=Limits(attribution_series=most),
        features=frozenset({"vip"}),
        cascades=(SUPPORT, COUNTED),
    )


def event(**said: Any) -> dict[str, Any]:
    return {"feature": "summary", "model": "llama", **said}


def sheet(*events: dict[str, Any], of: Rules | None = None, team: str | None = None) -> Sheet:
    """All events of one body, placed."""
    made = Sheet(of or rules(), team)
    body = Body("\n".join(map(json.dumps, events)).encode(), 128, NOW)
    for part in body.slices():
        for usage in part:
            made.add(usage)
    made.place()
    return made


def booked(*events: dict[str, Any], of: Rules | None = None, team: str | None = None) -> dict[tuple[str, ...], int]:
    """What a body changes of all accounts, by kind and labels."""
    totals, buckets, _ = sheet(*events, of=of, team=team).effect(range(len(events)))
    sums: Counter[Account] = Counter()
    for (account, _), amount in buckets.items():
        sums[account] += amount
    assert sums == Counter({account: amount for account, amount in totals.items() if amount})
    assert all(len(account.labels) == len(LABELS[account.kind]) for account in totals)
    return {(account.kind.value, *account.labels): amount for account, amount in totals.items()}


def refusal(*events: dict[str, Any], team: str | None = None) -> str:
    with pytest.raises(RefusedError) as refused:
        sheet(*events, team=team)
    return str(refused.value)


# Whose an event is.


@pytest.mark.parametrize(
    ("said", "target"),
    [
        ({"model": "llama"}, Target("chat", "llama", "fast")),
        ({"model": "llama-lora"}, Target("chat", "llama", "fast")),
        ({"model": "llama-page"}, Target("chat", "llama", "fast")),
        ({"model": "llama", "tier": "best"}, Target("big", "llama", "best")),
        ({"model": "llama", "tier": "none of them"}, Target("chat", "llama", "fast")),
        ({"model": "llama-lora", "tier": "best"}, Target("chat", "llama", "fast")),
        ({"model": "qwen"}, Target("open", "qwen", "")),
        ({"model": "qwen-lora", "tier": "x"}, Target("open", "qwen-lora", "x")),
        ({"model": "whatever", "engine": "big"}, Target("big", "llama", "best")),
        ({"model": "qwen", "engine": "open", "tier": "x"}, Target("open", "qwen", "x")),
        ({"model": "whatever", "engine": "open"}, Target("open", "unknown", "")),
        ({"model": "whatever", "engine": "odd"}, Target("odd", "mixtral", "odd")),
        ({"model": "llama", "engine": "odd", "provider": "openai"}, Target("odd", "mixtral", "odd")),
        ({"model": "old"}, Target("", "other", "")),
        ({"model": "nobody's", "tier": "x"}, Target("", "other", "x")),
        ({"model": "llama", "provider": "openai"}, Target("", "other", "")),
    ],
)
def test_an_event_is_an_engines_by_its_name_or_by_the_model(said: dict[str, str], target: Target):
    assert DIRECTORY.resolve(Names("f", **said)) == target


@pytest.mark.parametrize(
    ("said", "price"),
    [
        ({"model": "api-model"}, (None, "api-model")),
        ({"model": "api-model", "provider": "openai"}, (None, "api-model")),  # whoever sells it
        ({"model": "gpt", "provider": "openai"}, ("openai", "gpt")),
        ({"model": "gpt", "provider": "azure"}, ("azure", "gpt")),
        ({"model": "gpt"}, None),
        ({"model": "opus"}, ("a", "opus")),
        ({"model": "opus", "provider": "b"}, None),
    ],
)
def test_an_event_without_an_engine_costs_what_the_price_list_says(
    said: dict[str, str], price: tuple[str | None, str] | None
):
    target = DIRECTORY.resolve(Names("f", tier="t", **said))
    expected = Target("", "other", "t") if price is None else Target("", said["model"], "t", PRICES[price])
    assert target == expected


def test_a_page_that_names_no_model_makes_none_of_its_words_a_model():
    directory = Directory([engine("one")], {"one": {"unknown", "several"}}, {})
    assert directory.resolve(Names("f", "several")) == Target("", "other", "")
    assert directory.resolve(Names("f", "x", engine="one")) == Target("one", "unknown", "")


# What an event changes.


def test_an_event_of_an_engine_claims_of_its_compute_and_costs_nothing_more():
    of = sheet(
        event(input_tokens=100, cached_input_tokens=40, output_tokens=7, team="docs"),
        event(input_tokens=1, output_tokens=1, team="docs", model="llama-lora"),
        event(output_tokens=3),
    )
    totals, buckets, claims = of.effect([0, 1, 2])
    labels = ("summary", "docs", "llama", "fast")
    assert totals == {
        Account(Kind.FEATURE_REQUESTS, labels): 2,
        Account(Kind.FEATURE_PROMPT_TOKENS, labels): 101,
        Account(Kind.FEATURE_OUTPUT_TOKENS, labels): 8,
        Account(Kind.USAGE_EVENTS, ("accepted",)): 3,
        Account(Kind.FEATURE_REQUESTS, ("summary", "", "llama", "fast")): 1,
        Account(Kind.FEATURE_PROMPT_TOKENS, ("summary", "", "llama", "fast")): 0,
        Account(Kind.FEATURE_OUTPUT_TOKENS, ("summary", "", "llama", "fast")): 3,
    }
    assert buckets == {(account, QUARTER): amount for account, amount in totals.items() if amount}
    assert claims == {(SLOT, ("summary", "docs")): Claim(101, 40, 8), (SLOT, ("summary", "")): Claim(0, 0, 3)}
    assert of.effect([1]).claims == {(SLOT, ("summary", "docs")): Claim(1, 0, 1)}
    assert of.effect([]) == ({}, {}, {})


def test_an_event_of_an_api_is_spend_and_attributed_the_same():
    said = event(model="api-model", tier="best", team="docs", input_tokens=3, output_tokens=1)
    cost = cost_nano_usd(PRICES[None, "api-model"], NOW, 3, 0, 1)
    assert cost == 3 * 150 + 600
    assert booked(said, said) == {
        ("feature_requests", "summary", "docs", "api-model", "best"): 2,
        ("feature_prompt_tokens", "summary", "docs", "api-model", "best"): 6,
        ("feature_output_tokens", "summary", "docs", "api-model", "best"): 2,
        ("usage_events", "accepted"): 2,
        ("spend", "api", "", "api-model", "best"): 2 * cost,
        ("attributed", "summary", "docs", "", "api-model", "best"): 2 * cost,
        ("attributed_input", "summary", "docs", "", "api-model", "best"): 2 * 3 * 150,
        ("attributed_output", "summary", "docs", "", "api-model", "best"): 2 * 600,
    }
    assert sheet(said).effect([0]).claims == {}


def test_each_event_is_rounded_by_itself_and_priced_at_its_own_time():
    dated = Rule(input=Rate(700_000), output=Rate(0), start=NOW - 100)
    price = ApiPrice(provider=None, model="m", source="test", rules=(Rule(input=Rate(500_000), output=Rate(0)), dated))
    of = replace(rules(), directory=Directory([], {}, {(None, "m"): price}))
    before, after = "2026-11-23T20:10:00Z", "2026-11-23T20:13:00Z"
    said = [event(model="m", input_tokens=1, at=at) for at in (before, before, before, after, after)]
    assert booked(*said, of=of)["spend", "api", "", "m", ""] == 5  # half a nano-dollar and more is one
    assert booked(event(model="m", input_tokens=1000, at=before), of=of)["spend", "api", "", "m", ""] == 500
    assert booked(event(model="m", input_tokens=1000, at=after), of=of)["spend", "api", "", "m", ""] == 700


def test_what_has_no_price_is_counted_by_its_tokens_and_never_costs_nothing():
    found = booked(event(model="a mystery", input_tokens=10, cached_input_tokens=5, output_tokens=3, tier="x"))
    assert found == {
        ("feature_requests", "summary", "", "other", "x"): 1,
        ("feature_prompt_tokens", "summary", "", "other", "x"): 10,
        ("feature_output_tokens", "summary", "", "other", "x"): 3,
        ("usage_events", "accepted"): 1,
        ("unpriced_tokens", "other"): 13,
    }


def test_an_event_counts_in_its_own_quarter_and_late_where_its_slot_is_closed():
    settling = Settling(300)
    settling.close(NOW)
    of = rules(settling=settling)
    said = [event(output_tokens=1, at=at) for at in ("2026-11-23T19:59:59Z", "2026-11-23T20:00:00Z")]
    totals, buckets, claims = sheet(*said, event(output_tokens=1, at="2026-11-23T20:12:00Z"), of=of).effect(range(3))
    requests = Account(Kind.FEATURE_REQUESTS, ("summary", "", "llama", "fast"))
    late, accepted = Account(Kind.USAGE_EVENTS, ("late",)), Account(Kind.USAGE_EVENTS, ("accepted",))
    assert (totals[requests], totals[late], totals[accepted]) == (3, 2, 1)
    assert buckets[requests, QUARTER - 900] == 1
    assert buckets[requests, QUARTER] == 2
    assert claims == {(SLOT, ("summary", "")): Claim(0, 0, 3)}  # the late ones of the slot that is open now


def test_slots_are_told_that_are_claimed_of():
    of = Sheet(rules(), None)
    said = [event(), event(model="api-model"), event(model="a mystery"), event(engine="open")]
    for part in Body(json.dumps(said).encode(), 128, NOW).slices():
        for usage in part:
            of.add(usage)
    assert of.place() == {SLOT, SLOT._replace(engine="open")}


# Cascades.


def test_a_cascade_counts_requests_by_tier_and_escalations():
    found = booked(
        event(cascade="support"),
        event(cascade="support", tier="best", escalated_from="fast"),
        event(cascade="support", tier="best", escalated_from="balanced"),
        event(cascade="support", model="api-model", tier="balanced", escalated_from="fast"),
    )
    assert {key: amount for key, amount in found.items() if key[0] in ("cascade_requests", "escalations")} == {
        ("cascade_requests", "support", "fast"): 1,
        ("cascade_requests", "support", "best"): 2,
        ("cascade_requests", "support", "balanced"): 1,
        ("escalations", "support", "fast", "best"): 1,
        ("escalations", "support", "balanced", "best"): 1,
        ("escalations", "support", "fast", "balanced"): 1,
    }


def test_a_cascade_that_the_engines_count_is_not_counted_twice():
    found = booked(event(cascade="counted", tier="best", escalated_from="fast"))
    assert not {key for key in found if key[0] in ("cascade_requests", "escalations")}


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"engine": "nobody"}, 'engine: expected one of chat, big, open, odd, found "nobody"'),
        ({"cascade": "nobody"}, 'cascade: expected one of support, counted, found "nobody"'),
        ({"escalated_from": "fast"}, 'escalated_from: expected none without a cascade, found "fast"'),
        ({"cascade": "support", "model": "api-model", "tier": "x"},
         'tier: expected one of fast, balanced, best, the tiers of "support", found "x"'),
        ({"cascade": "support", "model": "api-model"},
         'tier: expected one of fast, balanced, best, the tiers of "support", found none'),
        ({"cascade": "support", "engine": "odd", "tier": "fast"},
         'tier: expected one of fast, balanced, best, the tiers of "support", found "odd"'),
        ({"cascade": "support", "tier": "best", "escalated_from": "best"},
         'escalated_from: expected one of fast, balanced, the tiers before "best", found "best"'),
        ({"cascade": "support", "tier": "fast", "escalated_from": "best"},
         'escalated_from: expected one of (none), the tiers before "fast", found "best"'),
        ({"cascade": "support", "tier": "best", "escalated_from": "x" * 100},
         f'escalated_from: expected one of fast, balanced, the tiers before "best", found "{"x" * 39}…'),
    ],
)  # fmt: skip
def test_what_is_not_there_is_refused_in_words(said: dict[str, str], problem: str):
    assert refusal(event(**said)) == problem
    assert refusal(event(), event(**said)) == problem


# Teams.


def test_the_token_says_the_team_of_events_that_name_none():
    found = booked(event(), event(team="docs"), team="docs")
    assert found["feature_requests", "summary", "docs", "llama", "fast"] == 2


def test_another_team_than_the_tokens_is_forbidden():
    with pytest.raises(ForbiddenError, match='team: expected "docs", the token\'s, found "web"'):
        sheet(event(), event(team="web"), team="docs")


# Keys.


def keys(*events: dict[str, Any], team: str | None = None) -> list[tuple[bytes, bytes]]:
    return sheet(*events, team=team).keys


def test_a_retry_has_the_same_key_and_body_however_it_is_written():
    first = event(id="a", team="docs", input_tokens=5, at="2026-11-23T20:00:00Z", tier="e\u0301", provider=None)
    again = dict(reversed([*first.items()])) | {"tier": "é", "engine": None}
    (one,), (other,) = keys(first), keys(again)
    assert one == other
    assert (len(one[0]), len(one[1])) == (16, 8)
    assert keys(event(id="a"), team="docs") == keys(event(id="a", team="docs"), team="docs")


@pytest.mark.parametrize("said", [{"id": "b"}, {"model": "llama-lora"}, {"tier": "best"}])
def test_the_id_the_model_and_the_tier_make_the_key(said: dict[str, str]):
    assert keys(event(id="a"))[0][0] != keys(event(**{"id": "a", **said}))[0][0]


@pytest.mark.parametrize(
    "said",
    [{"feature": "b"}, {"team": "b"}, {"engine": "chat"}, {"provider": "b"}, {"input_tokens": 1}, {"output_tokens": 1},
     {"input_tokens": 1, "cached_input_tokens": 1}, {"cascade": "support"}, {"at": "2026-11-23T20:00:00Z"}],
)  # fmt: skip
def test_all_else_makes_the_body(said: dict[str, Any]):
    (key, body), (other, changed) = keys(event(id="a"))[0], keys(event(id="a", **said))[0]
    assert key == other
    assert body != changed


def test_no_two_keys_run_into_each_other():
    said = [event(id="b\0c", model="a"), event(id="c", model="a", tier="b"), event(id="\0b\0c", model="a")]
    assert len({key for key, _ in keys(*said)}) == 3


def test_without_an_id_an_event_is_never_the_same_again():
    assert len({key for key, _ in keys(*[event()] * 50)}) == 50
    assert len({body for _, body in keys(*[event()] * 50)}) == 1


# Label sets.


def test_what_is_over_the_limit_is_booked_as_other_and_counted():
    of = rules(most=1, known={("summary", "", "llama", "fast")})
    found = booked(
        event(),
        event(feature="new", team="docs"),
        event(feature="new", model="api-model", tier="best", output_tokens=1),
        event(feature="newer", model="api-model", tier="whatever", output_tokens=1),
        event(feature="vip", team="docs", model="api-model", tier="best"),
        event(feature="vip", model="api-model", tier="whatever"),
        of=of,
    )
    assert {
        key: amount for key, amount in found.items() if key[0] not in ("feature_prompt_tokens", "usage_events")
    } == {
        ("feature_requests", "summary", "", "llama", "fast"): 1,
        ("feature_output_tokens", "summary", "", "llama", "fast"): 0,
        ("feature_requests", "other", "other", "llama", "fast"): 1,
        ("feature_output_tokens", "other", "other", "llama", "fast"): 0,
        ("feature_requests", "other", "other", "api-model", "best"): 1,
        ("feature_output_tokens", "other", "other", "api-model", "best"): 1,
        ("feature_requests", "other", "other", "api-model", "other"): 1,
        ("feature_output_tokens", "other", "other", "api-model", "other"): 1,
        ("feature_requests", "vip", "other", "api-model", "best"): 1,
        ("feature_output_tokens", "vip", "other", "api-model", "best"): 0,
        ("feature_requests", "vip", "", "api-model", "other"): 1,
        ("feature_output_tokens", "vip", "", "api-model", "other"): 0,
        ("spend", "api", "", "api-model", "best"): 600,
        ("spend", "api", "", "api-model", "other"): 600,
        ("attributed", "other", "other", "", "api-model", "best"): 600,
        ("attributed", "other", "other", "", "api-model", "other"): 600,
        ("attributed_output", "other", "other", "", "api-model", "best"): 600,
        ("attributed_output", "other", "other", "", "api-model", "other"): 600,
        ("attributed", "vip", "other", "", "api-model", "best"): 0,
        ("attributed", "vip", "", "", "api-model", "other"): 0,
        ("overflow_events",): 5,
    }


def test_a_known_feature_keeps_its_name_and_without_a_team_it_always_fits():
    of = rules(most=1, known={("summary", "", "llama", "fast")})
    found = booked(event(feature="vip"), of=of)
    assert found["feature_requests", "vip", "", "llama", "fast"] == 1
    assert ("overflow_events",) not in found


def test_claims_beyond_the_limit_are_others():
    of = rules(most=1, known={("a", "", "llama", "fast")})
    assert sheet(event(output_tokens=2), of=of).effect([0]).claims == {(SLOT, ("other", "other")): Claim(0, 0, 2)}


def test_a_place_is_kept_once_an_event_is_accepted_and_else_given_back():
    of = rules(most=2)
    first = sheet(event(feature="a"), event(feature="b"), of=of)
    second = sheet(event(feature="a"), event(feature="c"), of=of)  # in work at the same time: no place is given twice
    assert Account(Kind.OVERFLOW_EVENTS, ()) not in first.effect([0, 1]).totals
    assert second.effect([0, 1]).totals[Account(Kind.OVERFLOW_EVENTS, ())] == 1
    first.keep([0])
    first.end()
    assert of.room.known == {("a", "", "llama", "fast")}
    second.end()
    assert not of.room.asked
    third = sheet(event(feature="c"), event(feature="d"), of=of)
    third.keep([0, 1])
    third.end()
    assert of.room.known == {(name, "", "llama", "fast") for name in "ac"} | {("other", "other", "llama", "fast")}


def test_however_many_bodies_are_in_work_no_more_places_are_given_away_than_there_are():
    of = rules(most=10)
    sheets = [sheet(*(event(feature=f"{body}-{number}") for number in range(3)), of=of) for body in range(10)]
    for each in sheets:
        each.keep(range(3))
        each.end()
    assert len([labels for labels in of.room.known if labels[0] != "other"]) == 10
    assert not of.room.asked


# Any events, split and repeated and shuffled in any way.

TEXT = st.sampled_from(["a", "b", "é"])
TOKEN_COUNT = st.integers(0, 10_000_000)
EVENTS = st.fixed_dictionaries(
    {"id": st.integers(0, 12).map(str), "feature": TEXT, "model": st.sampled_from(["llama", "api-model", "gpt", "x"])},
    optional={
        "team": TEXT,
        "tier": st.sampled_from(["fast", "balanced", "best", "x"]),
        "provider": st.just("openai"),
        "engine": st.sampled_from(["chat", "open"]),
        "input_tokens": TOKEN_COUNT,
        "output_tokens": TOKEN_COUNT,
        "at": st.sampled_from(["2026-11-23T20:13:00Z", "2026-11-23T19:59:59Z", "2026-11-23T02:00:00Z"]),
    },
)


def in_ledger(bodies: Sequence[Sequence[dict[str, Any]]], of: Rules) -> tuple[Counter[Any], Counter[Any]]:
    """What bodies come to where each key counts once, as the ledger sees to it, and a conflict refuses a body."""
    known: dict[bytes, bytes] = {}
    amounts: Counter[Any] = Counter()
    claims: Counter[Any] = Counter()
    for body in bodies:
        made = sheet(*body, of=of)
        seen, new = dict(known), []
        for position, (key, says) in enumerate(made.keys):
            if key not in seen:
                new.append(position)
            assert seen.setdefault(key, says) == says
        known = seen
        totals, buckets, claimed = made.effect(new)
        amounts.update({("total", account): amount for account, amount in totals.items()})
        amounts.update({("bucket", *key): amount for key, amount in buckets.items()})
        for of_whom, claim in claimed.items():
            claims.update({(*of_whom, number): tokens for number, tokens in enumerate(claim)})
        made.keep(new)
        made.end()
    return amounts, claims


@settings(max_examples=150, deadline=None)
@given(events=st.lists(EVENTS, min_size=1, max_size=25, unique_by=lambda said: said["id"]), data=st.data())
def test_any_split_with_any_retries_in_any_order_comes_to_the_same_sums(
    events: list[dict[str, Any]], data: st.DataObject
):
    settling = Settling(300)
    settling.close(NOW)
    expected = in_ledger([[said] for said in events], rules(settling=settling))
    again = events + data.draw(st.lists(st.sampled_from(events), max_size=15))
    shuffled = data.draw(st.permutations(again))
    cuts = sorted(data.draw(st.sets(st.integers(1, max(len(shuffled) - 1, 1)), max_size=6)))
    bodies = [shuffled[start:end] for start, end in zip([0, *cuts], [*cuts, len(shuffled)], strict=True)]
    assert in_ledger([body for body in bodies if body], rules(settling=settling)) == expected


@settings(max_examples=150, deadline=None)
@given(events=st.lists(EVENTS, min_size=1, max_size=25), most=st.integers(1, 30))
def test_both_books_agree_to_the_nano_dollar_and_nothing_is_lost_beyond_the_limit(
    events: list[dict[str, Any]], most: int
):
    found = booked(*events, of=rules(most=most))
    sums: Counter[str] = Counter()
    for (kind, *_), amount in found.items():
        sums[kind] += amount
    assert sums["spend"] == sums["attributed"]
    prompt, output = (sum(said.get(f"{kind}_tokens", 0) for said in events) for kind in ("input", "output"))
    assert (sums["feature_prompt_tokens"], sums["feature_output_tokens"]) == (prompt, output)
    assert sums["feature_requests"] == sums["usage_events"] == len(events)
    spent = {(key[3], key[4]): amount for key, amount in found.items() if key[0] == "spend"}
    shared: Counter[tuple[str, str]] = Counter()
    for key, amount in found.items():
        if key[0] == "attributed":
            shared[key[4], key[5]] += amount
    assert {key: amount for key, amount in shared.items() if amount} == {k: a for k, a in spent.items() if a}
