"""The landing page as text: nothing breaks it, unknown is never 0, and what is left out is said."""

import json
import re
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from hashlib import sha256
from typing import Any
from xml.etree import ElementTree

import pytest
from aiohttp.test_utils import TestClient, TestServer

from exporter.config.model import Budget, Cap, CapMode, CascadeSource, Match
from exporter.config.web import HttpServerConfig, WebConfig
from exporter.core.break_even import BreakEvenView
from exporter.core.budgets import BudgetView, PeriodView, State
from exporter.core.cap import Override
from exporter.core.cascades import Edge, EdgeView
from exporter.core.gpu_readings import GpuReading, Measure
from exporter.core.gpus import GpuView
from exporter.core.money import NANO, Kind
from exporter.core.periods import Period
from exporter.core.readings import ModelGauges
from exporter.core.scaling import Signal
from exporter.core.snapshot import (
    ConfigView,
    EconomicsView,
    EngineView,
    GpusView,
    LedgerView,
    ShowbackView,
    Snapshot,
    SourceView,
    WindowView,
)
from exporter.web import landing, snapshot_json
from exporter.web.board import Board
from exporter.web.landing import words
from exporter.web.landing.engines import verdict
from exporter.web.server import Guard, make_app
from tests.fakes import FakeClock

AT = 1_795_464_804.0
DAY = Period(int(AT - 43_200) * NANO, int(AT + 43_200) * NANO)
HOSTILE = '<script>alert("&\'1")</script>'
NOTHING = WindowView(usd_per_million_output_tokens=None, usd_per_million_total_tokens=None, load_ratio=None)
Totals = Mapping[Kind, Mapping[tuple[str, ...], int]]


def snapshot(**settings: Any) -> Snapshot:
    usual: dict[str, Any] = {
        "at": AT, "version": "1", "role": "lone", "interval_seconds": 5.0, "accounting_start": AT - 3600,
        "config": ConfigView(successful=True, last_success=AT),
    }  # fmt: skip
    return Snapshot(**(usual | settings))


def engine(**settings: Any) -> EngineView:
    usual: dict[str, Any] = {
        "name": "chat", "model": "llama", "tier": "fast", "workload": "interactive", "kind": "vllm", "state": "up",
        "gpus": 1.0, "gpu": "A10G", "gpu_price_usd_per_hour": 0.8, "gpu_price_source": "usd_per_hour",
        "spend_usd_per_hour": 0.8, "underused_spend_usd_per_hour": None,
        "windows": dict.fromkeys(("5m", "1h", "24h"), NOTHING), "models": {}, "ttft": {},
        "ttft_p95_seconds": {"1m": None, "5m": None}, "ttft_target_seconds": 0.5, "signals": (), "min_replicas": 1,
        "cold_start_seconds": None,
    }  # fmt: skip
    return EngineView(**(usual | settings))


def period(spent: float | None, limit: float = 25.0, **settings: Any) -> PeriodView:
    usual: dict[str, Any] = {
        "period": DAY, "limit": round(limit * NANO), "elapsed_ratio": 0.5, "history_complete_ratio": 1.0,
        "unpriced": False, "state": State.UNKNOWN if spent is None else State.OK,
        "spent": None if spent is None else round(spent * NANO),
        "consumed_ratio": None if spent is None else spent / limit,
    }  # fmt: skip
    return PeriodView(**(usual | settings))


def budget(day: PeriodView, name: str = "inference", **settings: Any) -> BudgetView:
    config = Budget(name=name, daily_usd=Decimal(25), **settings)
    return BudgetView(budget=config, mode=CapMode.SHADOW, warn_ratios=(0.8,), periods={"day": day})


def override(name: str, reason: str) -> Override:
    until = int(AT + 60) * NANO
    return Override(budget=name, amount_nano_usd=50 * NANO, until_ns=until, at_ns=int(AT) * NANO, reason=reason)


def features(count: int, **more: int) -> Totals:
    """So many features, each dearer than the one before it."""
    spent = {f"f{number:04}": number * NANO for number in range(1, count + 1)}
    nobodys = {"unattributed": 10_000 * NANO}
    attributed: dict[tuple[str, ...], int] = {
        (feature, "t" if feature in spent else "", "chat", "m", "fast"): amount
        for feature, amount in {**spent, **more, **nobodys}.items()
    }
    asked: dict[tuple[str, ...], int] = {(feature, "t", "m", "fast"): 2 for feature in spent}
    return {Kind.ATTRIBUTED: attributed, Kind.FEATURE_REQUESTS: asked}


def main(of: Snapshot, *overrides: Override, stands_seconds: float | None = None) -> ElementTree.Element:
    """What is within <main>, which is well-formed whatever is in it."""
    text = landing.render(of, {one.budget: one for one in overrides}, stands_seconds)
    return ElementTree.fromstring("<main" + text.partition("<main")[2].partition("<script>")[0])


def text(element: ElementTree.Element) -> str:
    return re.sub(r"\s+", " ", " ".join(element.itertext()))


def part(page: ElementTree.Element, key: str) -> ElementTree.Element:
    found = page.find(f".//*[@id='{key}']")
    assert found is not None, f"no {key}"
    return found


def fact(page: ElementTree.Element, name: str) -> str:
    """The value beside the first such name."""
    for row in page.iter("div"):
        if row.find("dt") is not None and row.findtext("dt") == name:
            value = row.find("dd")
            assert value is not None
            return text(value)
    raise AssertionError(f"no {name}")


def rows(page: ElementTree.Element, key: str) -> list[list[str]]:
    return [[text(cell) for cell in row] for row in part(page, key).findall(".//tbody/tr")]


@pytest.mark.parametrize(
    ("say", "value", "said"),
    [
        (words.usd, 0, "$0.00"),
        (words.usd, 0.8, "$0.80"),
        (words.usd, 0.125, "$0.125"),
        (words.usd, 0.0041, "$0.0041"),
        (words.usd, 0.000_012_34, "$0.0000123"),
        (words.usd, 1234.5678, "$1,234.57"),
        (words.usd, 0.9996, "$1.00"),
        (words.usd_of, 1, "$0.000000001"),
        (words.hourly, 0.8, "$0.80/h"),
        (words.percent, 0, "0 %"),
        (words.percent, 0.0004, "< 0.1 %"),
        (words.percent, 0.0432, "4.3 %"),
        (words.percent, 0.83, "83 %"),
        (words.percent, 12.345, "1,234 %"),
        (words.times, 0, "0.00×"),  # noqa: RUF001 - the sign
        (words.times, 0.004, "< 0.01×"),  # noqa: RUF001
        (words.times, 1.068, "1.07×"),  # noqa: RUF001
        (words.times, 36_022.6, "36,023×"),  # noqa: RUF001
        (words.count, 12, "12"),
        (words.count, 0.5, "0.5"),
        (words.count, 1_148_061.4, "1,148,061"),
        (words.seconds, 0.42, "420 ms"),
        (words.seconds, 4.987, "4.99 s"),
        (words.span, 0, "0 s"),
        (words.span, 45.4, "45 s"),
        (words.span, 3605, "1 h"),
        (words.span, 125, "2 min 5 s"),
        (words.span, 273_600, "3 d 4 h"),
        (words.span, 86_400, "1 d"),
        (words.span, 1e9, "over a year"),
        (words.size, 21.5e9, "21.5 GB"),
        (words.seconds, 0.9997, "1 s"),
        (words.seconds, 1234.5, "1,234 s"),
        (words.size, 999.7e6, "1,000 MB"),
        (words.size, 12, "12 B"),
    ],
)
def test_figures_are_said_as_people_say_them(say: Callable[[float], str], value: float, said: str):
    assert say(value) == said


def test_whatever_is_in_a_name_is_shown_as_it_is_and_breaks_nothing():
    gpu = GpuReading(uuid="u", index="0", name=HOSTILE, up=True, sampled=1, gauges={(Measure.POWER, ""): 70.0})
    spent = {(HOSTILE, HOSTILE, "", "m", ""): 5 * NANO}
    page = main(
        snapshot(
            engines=(engine(name=HOSTILE, model=HOSTILE, tier=HOSTILE, spend_usd_per_hour=None),),
            budgets=(budget(period(1), HOSTILE, match=Match(team=HOSTILE)),),
            config=ConfigView(successful=False, last_success=None, problems=(HOSTILE,), warnings=(HOSTILE,)),
            ledger=LedgerView(errors=1, problem=HOSTILE, set_aside=HOSTILE),
            sources=(source(target=HOSTILE, up=False, problem=HOSTILE),),
            gpus=GpusView(source="nvml", detail=HOSTILE, gpus=(GpuView(reading=gpu, age_seconds=0.0, families={}),)),
            economics=EconomicsView(
                break_even=(BreakEvenView(engine=HOSTILE, api_model=HOSTILE),),
                edges=(EdgeView(edge=Edge(HOSTILE, HOSTILE, HOSTILE), source=CascadeSource.EVENTS),),
            ),
            totals={Kind.ATTRIBUTED: spent, Kind.FEATURE_REQUESTS: {(HOSTILE, HOSTILE, "m", ""): 1}},
        ),
        override(HOSTILE, HOSTILE),
    )
    assert page.find(".//script") is None
    for key in ("problems", "budgets", "engines", "features", "break-even", "cascades", "gpus", "sources"):
        assert HOSTILE in text(part(page, key))
    assert rows(page, "features")[0][:3] == [HOSTILE, HOSTILE, "$5.00"]


def source(**settings: Any) -> SourceView:
    usual: dict[str, Any] = {
        "source": "engine", "target": "chat", "up": True, "last_success": AT, "read_seconds": 0.01,
        "interval_seconds": 5.0, "errors": {}, "problem": None,
    }  # fmt: skip
    return SourceView(**(usual | settings))


def test_what_is_not_known_is_never_nought():
    silent = engine(state="down", spend_usd_per_hour=None, gpu_price_usd_per_hour=None, kind=None,
                    signals=(Signal("queue_depth", None, 10.0, 2.0),))  # fmt: skip
    page = main(snapshot(engines=(silent,), budgets=(budget(period(None, unpriced=True)),), accounting_start=None))
    for key in ("cost", "tokens", "spent"):
        assert "not known" in text(part(page, key))
    assert "no price for chat" in text(part(page, "cost"))
    for name in ("Cost", "Running", "Waiting", "TTFT p95, 5 min", "KV cache", "Load, 5 min", "Pace", "Forecast"):
        assert fact(page, name) == "– not known"  # noqa: RUF001 - a dash
    assert fact(page, "Not in it") == "GPU time or tokens without a price"
    assert "– not known / 10" in text(part(page, "engines"))  # noqa: RUF001
    assert {row[1] for row in rows(page, "engine-0-table")} == {"– not known"}  # noqa: RUF001
    assert page.findall(".//*[@role='meter']") == []


def test_before_the_first_beat_it_says_that_nothing_is_known_yet():
    first = snapshot(interval_seconds=0.0, accounting_start=None)
    page = main(first)
    assert "No engine has been read yet." in text(part(page, "engines"))
    assert "/v1/usage" in text(part(page, "features"))
    assert [section.get("id") for section in page.findall("section")] == [None, "engines", "features"]
    assert page.get("data-every") == "1000"
    assert "<title>llm-cost-exporter</title>" in landing.render(first, {})


def test_a_sidecar_names_the_hub_and_asks_for_no_events():
    page = main(snapshot(role="sidecar", hub_url="http://hub:9409", engines=(engine(),)))
    assert "kept by the hub: http://hub:9409." in text(part(page, "features"))
    assert "/v1/usage" not in text(page)
    assert page.find(".//*[@id='budgets']") is None


def test_the_cost_is_that_of_all_engines_or_names_who_has_none():
    two = snapshot(engines=(engine(), engine(name="big", spend_usd_per_hour=1234.0, gpus=2.5)))
    assert fact(main(two), "Cost now") == "$1,234.80/h"
    assert "2 engines, 3.5 GPUs" in text(part(main(two), "cost"))
    assert "<title>$1,234.80/h – llm-cost-exporter</title>" in landing.render(two, {})  # noqa: RUF001 - a dash
    page = main(snapshot(engines=(engine(), engine(name="big", spend_usd_per_hour=None))))
    assert fact(page, "Cost now") == "– not known"  # noqa: RUF001
    assert "no price for big, the others cost $0.80/h" in text(part(page, "cost"))
    idle = engine(underused_spend_usd_per_hour=0.6)
    assert "$0.60/h of it for load that is missing" in text(part(main(snapshot(engines=(idle,))), "cost"))


def test_a_million_tokens_costs_from_the_cheapest_to_the_dearest_engine():
    def told(name: str, usd: float | None) -> EngineView:
        return engine(name=name, windows={"5m": replace(NOTHING, usd_per_million_output_tokens=usd), "1h": NOTHING,
                                          "24h": NOTHING})  # fmt: skip

    name = "USD per million output tokens"
    three = snapshot(engines=(told("a", 2.5), told("b", None), told("c", 0.41), told("d", 1.0)))
    assert fact(main(three), name) == "$0.41 – $2.50"  # noqa: RUF001 - a dash
    assert fact(main(snapshot(engines=(told("a", 2.5),))), name) == "$2.50"


def test_spent_is_of_the_period_of_a_budget_for_everything_else_of_all_time():
    totals = {Kind.SPEND: {("api", "", "m", ""): 70 * NANO, ("storage", "chat", "m", ""): NANO // 2}}
    part_of_it = budget(period(3), match=Match(team="docs"))
    assert fact(main(snapshot(totals=totals, budgets=(part_of_it,))), "Spent") == "$70.50"
    page = main(snapshot(totals=totals, budgets=(part_of_it, budget(period(12.25), "all"))))
    assert fact(page, "Spent today") == "$12.25"
    assert "$70.50 since 2026-" in text(part(page, "spent"))


def test_what_had_no_price_is_named_beside_what_is_spent():
    unpriced: Totals = {Kind.UNPRICED_GPU: {("chat", "m", "", "A10G"): 7200 * NANO}, Kind.UNPRICED_TOKENS: {("x",): 5}}
    said = text(part(main(snapshot(totals=unpriced)), "spent"))
    assert "2 h of GPU time had no price" in said
    assert "5 tokens of usage events had no price" in said


def test_a_budget_over_its_limit_says_so_in_words_and_its_bar_is_full():
    over = period(26, state=State.OVER, capped=True, overshoot_bound=3 * NANO, runway_seconds=0.0, forecast=60 * NANO,
                  burn_rate={"1h": 2.5}, history_complete_ratio=0.25)  # fmt: skip
    page = main(snapshot(budgets=(budget(period(1), "calm"), budget(over, cap=Cap(mode=CapMode.ENFORCE)))))
    assert fact(page, "Budget nearest to its limit") == "104 %"
    assert "inference, today: $26.00 of $25.00 over the limit" in text(part(page, "worst"))
    card = page.findall(".//article")[1]
    assert "Today over the limit $26.00 of $25.00 104 %" in text(card)
    bar = card.find(".//svg")
    assert bar is not None
    assert (bar.get("aria-valuenow"), bar.get("class")) == ("1", "bar bad")
    assert bar.get("aria-valuetext") == "104 % of the limit, 50 % of the time"
    said = {name: fact(card, name) for name in ("Pace", "Burn rate, 1 h", "Forecast", "Money lasts", "Ends in")}
    assert list(said.values()) == ["2.08×", "2.50×", "$60.00", "0 s", "12 h"]  # noqa: RUF001 - the sign
    assert fact(card, "Still to come at most") == "$3.00"
    assert fact(card, "History known") == "25 %"


def test_an_override_is_told_with_its_end_and_reason():
    page = main(snapshot(budgets=(budget(period(1)),)), override("inference", "launch day"))
    assert "Override: 50 USD more until 2026-11-23T20:14:24Z: launch day" in text(part(page, "budgets"))


def test_an_engine_shows_what_all_its_models_do():
    models = {"a": ModelGauges(running=3, waiting=4, kv_cache_usage_ratio=0.2), "b": ModelGauges(running=1, waiting=0)}
    busy = engine(models=models, ttft_p95_seconds={"1m": None, "5m": 0.42})
    page = main(snapshot(engines=(busy,)))
    said = [fact(page, name) for name in ("Running", "Waiting", "KV cache", "TTFT p95, 5 min", "TTFT target")]
    assert said == ["4", "4", "20 %", "420 ms", "500 ms"]


@pytest.mark.parametrize(
    ("value", "word"), [(None, "not known"), (10, "ok"), (10.5, "scale up"), (2, "ok"), (1, "low"), (0, "low")]
)
def test_a_signal_says_what_it_asks_for(value: float | None, word: str):
    assert verdict(Signal("queue_depth", value, 10.0, 2.0))[0] == word


def test_the_twenty_dearest_features_are_shown_and_the_rest_as_a_sum():
    page = main(snapshot(totals=features(25, equal=25 * NANO)))
    shown = rows(page, "features")
    assert [row[0] for row in shown[:3]] == ["equal", "f0025", "f0024"]
    assert [row[0] for row in shown[19:]] == ["f0007", "and 6 more", "unattributed"]
    assert shown[20][2:] == ["$21.00", "0.2 %", "12"]  # 1 to 6
    assert shown[21][2:] == ["$10,000.00", "97 %", "– not known"]  # noqa: RUF001 - a dash
    assert text(part(page, "features")).count("Share") == 1  # no column for value where nobody estimates it


def test_value_and_what_is_open_stand_beside_what_features_spend():
    showback = ShowbackView(
        pending={"chat": 2 * NANO}, coverage={("chat", "1h"): 0.93, ("chat", "5m"): 1.0}, value_ratios={"f0001": 0.4}
    )
    page = main(snapshot(totals={**features(2), Kind.OVERFLOW_EVENTS: {(): 1}}, showback=showback))
    assert [row[5] for row in rows(page, "features")] == ["– not known", "40 %", "– not known"]  # noqa: RUF001 - a dash
    said = text(part(page, "features"))
    assert "$2.00 of busy time is not shared out yet" in said
    assert "Events claim 93 % of the tokens that chat counted in the last hour." in said
    assert "1 event came under too many names" in said


def test_what_litellm_says_stands_beside_what_is_booked():
    figures = {Kind.GATEWAY_SPEND: {("gpt",): 3 * NANO}, Kind.GATEWAY_BOOKED: {("gpt",): 2 * NANO}}
    said = text(part(main(snapshot(totals={**features(1), **figures})), "features"))
    assert "LiteLLM says $3.00 for calls to APIs that are booked with $2.00 here." in said
    assert "LiteLLM" not in text(part(main(snapshot(totals=features(1))), "features"))


def test_a_feature_that_stands_ready_is_no_second_row_and_its_value_counts_once():
    """Known features have totals of 0 without a team from the start: their values summed to 200 %."""
    showback = ShowbackView(value_ratios={"f0001": 0.6, "f0002": 0.4, "f0003": 0.0})
    totals = features(2)
    ready: dict[tuple[str, ...], int] = {
        (feature, "", "chat", "m", "fast"): 0 for feature in ("f0001", "f0002", "f0003")
    }
    split: dict[tuple[str, ...], int] = {
        ("f0001", "other", "chat", "m", "fast"): 1,
        ("f0001", "third", "chat", "m", "fast"): 0,
    }
    totals = {**totals, Kind.ATTRIBUTED: {**ready, **totals[Kind.ATTRIBUTED], **split}}
    shown = rows(main(snapshot(totals=totals, showback=showback)), "features")
    assert [(row[0], row[1], row[5]) for row in shown if row[0].startswith("f")] == [
        ("f0002", "t", "40 %"),
        ("f0001", "t", "60 %"),
        ("f0001", "other", ""),
        ("f0003", "", "0 %"),
    ]


def test_thousands_of_features_make_no_bigger_page():
    few, many = (len(landing.render(snapshot(totals=features(count)), {})) for count in (21, 2000))
    assert many - few < 300


def test_cascades_and_break_even_say_what_pays():
    edges = (
        EdgeView(edge=Edge("a", "s", "m"), source=CascadeSource.EVENTS, ratios={"24h": 0.5}, break_even_ratio=0.4),
        EdgeView(edge=Edge("b", "s", "m"), source=CascadeSource.EVENTS, ratios={"1h": 0.1}, break_even_ratio=0.4),
        EdgeView(edge=Edge("c", "s", "m"), source=CascadeSource.EVENTS, ratios={"1h": 0.0}, break_even_ratio=-0.5),
    )
    engines = (
        BreakEvenView(engine="x", api_model="api", ratios={"24h": 0.5}, requests_per_day=1000.4,
                      most_requests_per_day=500.0),
        BreakEvenView(engine="y", api_model="api", ratios={"1h": 3.0}),
    )  # fmt: skip
    page = main(snapshot(economics=EconomicsView(break_even=engines, edges=edges)))
    assert [row[2:] for row in rows(page, "cascades")] == [
        ["no", "– not known", "50 %", "40 %"],  # noqa: RUF001 - a dash
        ["yes", "10 %", "– not known", "40 %"],  # noqa: RUF001
        ["no", "0 %", "– not known", "never"],  # noqa: RUF001
    ]
    beside = rows(page, "break-even")
    assert (beside[0][2], beside[0][5]) == ("cheaper", "1,000 (more than today's replicas can serve)")
    assert (beside[1][2], beside[1][5]) == ("dearer", "– not known")  # noqa: RUF001


def test_gpus_and_sources_say_their_state():
    gauges = {(Measure.UTILIZATION, ""): 0.5, (Measure.MEMORY_USED, ""): 2e9, (Measure.MEMORY_TOTAL, ""): 24e9,
              (Measure.TEMPERATURE, "gpu"): 61.0}  # fmt: skip
    gpu = GpuReading(uuid="u", index="0", name="A10G", up=True, sampled=1, gauges=gauges)
    seen = GpusView(source="nvml", visible=1, expected=2, gpus=(GpuView(reading=gpu, age_seconds=0.0, families={}),))
    found = (source(), source(target="x", up=False, last_success=AT - 65, problem="refused"),
             source(target="y", up=False, last_success=None))  # fmt: skip
    page = main(snapshot(gpus=seen, sources=found))
    assert rows(page, "gpus") == [["0", "A10G", "up", "50 %", "2 GB of 24 GB", "– not known", "61 °C"]]  # noqa: RUF001
    assert "1 GPU visible, the config charges for 2." in text(part(page, "gpus"))
    assert [row[1:] for row in rows(page, "sources")] == [
        ["chat", "up", "now", ""],
        ["x", "down", "1 min 5 s ago", "refused"],
        ["y", "down", "never", ""],
    ]


def test_what_is_wrong_stands_first():
    ledger = LedgerView(errors=0, problem="locked", is_open=False, set_aside="old.db")
    config = ConfigView(successful=False, last_success=AT, problems=("a: b",), warnings=("beware",))
    page = main(snapshot(config=config, ledger=ledger))
    assert [(item.get("class"), text(item)) for item in part(page, "problems").iter("li")] == [
        ("bad", "The last load of the config failed. What is wrong stays as it was."),
        ("bad", "a: b"),
        ("bad", "Nothing is metered until the ledger can be opened: locked"),
        ("bad", "The ledger was damaged, and began anew: old.db is the old one."),
        ("warn", "beware"),
    ]


def test_a_beat_that_stands_is_told_and_its_figures_are_called_old():
    of = snapshot(engines=(engine(),))
    page = main(of, stands_seconds=125.0)
    assert "The beat stands: everything below is as it was 2 min 5 s ago." in text(part(page, "problems"))
    assert fact(page, "Cost at the last beat") == "$0.80/h"
    assert "<title>stopped – llm-cost-exporter</title>" in landing.render(of, {}, 125.0)  # noqa: RUF001 - a dash


def test_the_policy_allows_exactly_the_style_and_script_that_are_on_the_page():
    page = landing.render(snapshot(engines=(engine(),), budgets=(budget(period(1)),), totals=features(3)), {})
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        [inline] = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = b64encode(sha256(inline.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}';" in landing.POLICY
    assert "unsafe" not in landing.POLICY
    assert not re.search(r"<[^>]*\s(style|on\w+)=", page)
    assert re.findall(r'(?:href|src)="(?!#|data:)([^"]*)"', page) == [
        "metrics", "v1/budgets", "v1/snapshot", "-/healthy", "-/ready"
    ]  # fmt: skip


def test_the_snapshot_has_the_figures_of_budgets_and_values():
    of = snapshot(budgets=(budget(period(12.25)),), showback=ShowbackView(value_ratios={"search": 0.05}))
    found = json.loads(snapshot_json.encode(of, {"inference": override("inference", "launch")}), parse_float=Decimal)
    [shown] = found["budgets"]
    assert (shown["name"], shown["state"], shown["override"]["reason"]) == ("inference", "ok", "launch")
    assert shown["periods"]["day"]["spent_usd"] == Decimal("12.25")
    assert found["attribution"]["value_ratio"] == {"search": Decimal("0.05")}


@asynccontextmanager
async def served(board: Board, guard: Guard) -> AsyncIterator[TestClient[Any, Any]]:
    async def reload() -> list[str]:
        return []

    async with TestClient(TestServer(make_app(board, guard, (), dict, reload))) as client:
        yield client


async def test_only_the_page_may_run_a_script_and_the_web_config_has_the_last_word():
    guard = Guard()
    async with served(Board(FakeClock(), snapshot(), lambda: b""), guard) as client:

        async def header(path: str, name: str = "Content-Security-Policy") -> str:
            async with client.get(path) as reply:
                return reply.headers[name]

        assert await header("/") == landing.POLICY
        assert await header("/", "Cache-Control") == "no-store"
        for path in ("/metrics", "/v1/snapshot", "/-/healthy", "/nothing"):
            assert "script" not in await header(path)
            assert (await header(path)).startswith("default-src 'none';")
        guard.adopt(WebConfig(http_server_config=HttpServerConfig(headers={"Content-Security-Policy": "sandbox"})))
        assert [await header(path) for path in ("/", "/metrics", "/nothing")] == ["sandbox"] * 3


async def test_a_beat_that_has_yet_to_begin_does_not_stand():
    clock = FakeClock()
    board = Board(clock, snapshot(interval_seconds=0.0), lambda: b"")
    board.expects_beats = True
    async with served(board, Guard()) as client:

        async def page() -> str:
            clock.advance(16)
            async with client.get("/") as reply:
                return await reply.text()

        assert "The beat stands" not in await page()
        board.publish(snapshot())
        assert "The beat stands: everything below is as it was 16 s ago." in await page()
