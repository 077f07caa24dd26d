"""The demo's own parts: GPUs that follow load, events that claim what engines did, ports, programs and words."""

import json
import random
import re
from collections.abc import Iterable
from typing import Final

import aiohttp
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from demo.engines import Engine, Look, Work
from demo.gpus import ENGINES, FIRST_LINE, Node
from demo.monitoring import REPOSITORY
from demo.notifications import lines, told_to
from demo.ports import HOST, Ports, free_ports
from demo.said import Line, table
from demo.traffic import FEATURES, NOBODY, TIERS, Event, Traffic, split
from exporter.config.load import load
from exporter.config.model import GpuSelect
from exporter.core.api_prices import configured
from exporter.core.attribution import Settling
from exporter.core.directory import Directory
from exporter.core.gpu_readings import GpuReading, Measure, Total
from exporter.core.money import Account, Kind
from exporter.core.usage import Effect, Room, Rules, Sheet
from exporter.core.usage_body import Body
from exporter.sources.dcgm import NodePage, Owner
from tests.demos import places

CONFIG: Final = load(REPOSITORY / "demo/config.yml")
NOW: Final = 1_795_464_804
NO_WORK: Final = Work(0, 0, 0)
STEP: Final = Work(30, 3000, 1800)
BUSY: Final = Look(1.0, 0.4, NO_WORK)
IDLE: Final = Look(0.0, 0.0, NO_WORK)


def charged() -> frozenset[str]:
    """The UUIDs that the config's engines name."""
    return frozenset(str(uuid) for engine in CONFIG.engines if isinstance(engine.gpus, tuple) for uuid in engine.gpus)


def read(node: Node) -> dict[str, GpuReading]:
    page = NodePage(GpuSelect.OWN, Owner(pod=None, namespace=None, uuids=charged()), 60.0)
    return {gpu.uuid: gpu for gpu in page.read(node.page(), 0).gpus}


def after(seconds: float, small: Look | None, large: Look | None) -> list[GpuReading]:
    node = Node()
    for _ in range(int(seconds)):
        node.follow({"chat-small": small, "chat-large": large}, 1.0)
    found = read(node)
    return [found[uuid] for uuid in sorted(found)]


def effect_of(events: list[Event]) -> Effect:
    """What the exporter makes of events under the demo's config; raises where it refuses one."""
    settling = Settling(CONFIG.usage.settle, NOW)
    directory = Directory(CONFIG.engines, {name: {"tiny-llama"} for name in TIERS}, configured(CONFIG.prices.api))
    room = Room(known=set())
    rules = Rules(directory=directory, place=settling.place, room=room, limits=CONFIG.limits, cascades=CONFIG.cascades)
    sheet = Sheet(rules, None)
    for usages in Body(json.dumps(events).encode(), CONFIG.limits.name_length, NOW).slices():
        for usage in usages:
            sheet.add(usage)
    sheet.place()
    return sheet.effect(range(len(events)))


def looks(small: Work, large: Work) -> dict[str, Look | None]:
    return {"chat-small": Look(1.0, 0.1, small), "chat-large": Look(1.0, 0.1, large)}


def posted(steps: int) -> tuple[list[Event], Work]:
    """All events of some steps in which both engines do the same, and what each of them did."""
    traffic, done = Traffic(random.Random(7)), NO_WORK
    events = traffic.events(looks(done, done))
    for _ in range(steps):
        done = Work(*(before + more for before, more in zip(done, STEP, strict=True)))
        events += traffic.events(looks(done, done))
    return events, done


def claimed(events: Iterable[Event], engine: str, key: str) -> int:
    return sum(int(event[key]) for event in events if event.get("engine") == engine)


def test_the_config_the_gpus_and_the_traffic_name_the_same_things():
    assert [engine.name for engine in CONFIG.engines] == list(TIERS)
    assert {engine.name: engine.tier for engine in CONFIG.engines} == TIERS
    assert {feature.name for feature in FEATURES} == set(CONFIG.features.known)
    assert read(Node()).keys() == charged()
    assert [len(engine.gpus) for engine in CONFIG.engines if isinstance(engine.gpus, tuple)] == [1, 2]
    assert ENGINES == ("chat-small", "chat-large", "chat-large")


def test_gpus_follow_the_load_of_their_engine():
    small, *large = after(60, BUSY, IDLE)
    assert small.gauges[Measure.UTILIZATION, ""] > 0.9
    assert small.gauges[Measure.POWER, ""] > 300
    assert small.gauges[Measure.TEMPERATURE, "gpu"] > 70
    assert small.totals[Total.ENERGY, ""] > 60 * 300e9
    assert small.gauges[Measure.MEMORY_USED, ""] > 0.8 * small.gauges[Measure.MEMORY_TOTAL, ""]
    for gpu in large:
        assert gpu.gauges[Measure.UTILIZATION, ""] == 0
        assert gpu.gauges[Measure.POWER, ""] < 100
        assert gpu.totals[Total.ENERGY, ""] == 60 * 55 * 10**9
        assert gpu.gauges[Measure.MEMORY_USED, ""] == small.gauges[Measure.MEMORY_USED, ""]


def test_the_gpus_of_an_engine_that_is_gone_are_empty():
    small, *_ = after(60, None, BUSY)
    assert small.gauges[Measure.UTILIZATION, ""] == 0
    assert small.gauges[Measure.MEMORY_USED, ""] < 0.02 * small.gauges[Measure.MEMORY_TOTAL, ""]


@pytest.mark.parametrize("look", [None, IDLE, Look(0.25, 0.9, NO_WORK), BUSY])
def test_every_field_of_the_page_is_one_that_the_exporter_takes(look: Look | None):
    for gpu in after(5, look, look):
        assert len(gpu.gauges) >= 20
        ratios = [value for (measure, _), value in gpu.gauges.items() if measure.value.endswith("_ratio")]
        assert ratios
        assert all(0 <= value <= 1 for value in ratios)


def test_the_page_says_that_it_is_synthetic():
    first, *_ = Node().page().splitlines()
    assert first == FIRST_LINE
    assert all("synthetic" in gpu.name for gpu in read(Node()).values())


@given(st.integers(0, 10**7), st.lists(st.integers(0, 100), min_size=1).filter(any))
def test_a_split_sums_to_what_was_split(total: int, weights: list[int]):
    parts = split(total, weights)
    assert sum(parts) == total
    assert all(abs(part - total * weight / sum(weights)) <= 1 for part, weight in zip(parts, weights, strict=True))


@given(
    st.builds(Work, st.integers(1, 200), st.integers(0, 10**6), st.integers(0, 10**6)),
    st.sampled_from([*TIERS.values()]),
)
def test_all_work_is_dealt_out(moved: Work, tier: str):
    dealt = Traffic(random.Random(1)).dealt(tier, moved)
    assert len(dealt) == moved.requests
    assert sum(request.prompt_tokens for request in dealt) == moved.prompt_tokens
    assert sum(request.output_tokens for request in dealt) == moved.output_tokens


def test_events_claim_nearly_all_that_the_engines_did_and_never_more():
    events, done = posted(100)
    for engine in TIERS:
        for key, total in (("input_tokens", done.prompt_tokens), ("output_tokens", done.output_tokens)):
            assert 0.9 < claimed(events, engine, key) / total < 1
    assert NOBODY.name not in {event["feature"] for event in events}
    first_tries = [event["id"] for event in events if event["tier"] != "balanced"]
    assert len(set(first_tries)) == len(first_tries)


def test_the_first_look_is_a_baseline_and_tokens_wait_for_requests_that_end():
    traffic = Traffic(random.Random(1))
    of_engines = [
        [event for event in traffic.events(looks(work, NO_WORK)) if "engine" in event]
        for work in (Work(100, 9000, 9000), Work(100, 9500, 9100), Work(120, 10_000, 9400))
    ]
    assert of_engines[0] == of_engines[1] == []
    assert 500 < claimed(of_engines[2], "chat-small", "input_tokens") <= 1000


def test_after_a_restart_all_that_is_counted_is_new():
    assert Work(5, 50, 20).since(Work(4, 60, 10)) == Work(5, 50, 20)
    assert Work(5, 50, 20).since(Work(4, 40, 10)) == Work(1, 10, 10)


def test_the_exporter_takes_all_events_and_counts_the_escalations():
    events, _ = posted(100)
    totals = effect_of(events + Traffic(random.Random(2)).opening()).totals
    asked = totals[Account(Kind.CASCADE_REQUESTS, ("support", "fast"))]
    escalated = totals[Account(Kind.ESCALATIONS, ("support", "fast", "balanced"))]
    assert 0.23 < escalated / asked < 0.33
    assert escalated == totals[Account(Kind.CASCADE_REQUESTS, ("support", "balanced"))]
    assert not [account for account in totals if account.kind is Kind.UNPRICED_TOKENS]
    assert {account.labels[0] for account in totals if account.kind is Kind.FEATURE_REQUESTS} == {
        feature.name for feature in FEATURES
    }


def test_the_opening_costs_three_quarters_of_a_day():
    totals = effect_of(Traffic(random.Random(2)).opening()).totals
    (spent,) = [amount for account, amount in totals.items() if account.kind is Kind.SPEND]
    assert spent == 18 * 10**9
    assert CONFIG.budgets[0].daily_usd == 24


async def test_a_page_is_understood_and_an_engine_that_does_not_answer_has_no_look():
    async with aiohttp.ClientSession() as session:
        engine = Engine("chat-small", f"http://{HOST}:{free_ports().exporter}/metrics", session)
        assert await engine.look() is None
        page = REPOSITORY / "tests/fixtures/captures/vllm-0.32.0/saturated.prom"
        assert engine.read(page.read_text(encoding="utf-8")) == Look(1.0, 0.026470588235294135, Work(74, 8764, 5054))


def test_configs_are_used_as_they_stand_but_for_their_ports():
    for name in ("config.yml", "prometheus.yml"):
        text = (REPOSITORY / "demo" / name).read_text(encoding="utf-8")
        assert Ports().written(text) == text
        moved = Ports(*range(10_000, 10_000 + len(Ports()))).written(text)
        assert [line for line in moved.splitlines() if HOST in line] != []
        assert not re.search(rf"{HOST}:(?!100)", moved)
        assert re.sub(rf"{HOST}:\d+", "", moved) == re.sub(rf"{HOST}:\d+", "", text)


def test_free_ports_are_free_and_differ():
    ports = free_ports()
    assert len(set(ports)) == len(ports)
    assert ports.taken() == []


def test_everybody_who_is_told_is_told_by_the_webhook():
    route = (REPOSITORY / "rules/alertmanager/example.yml").read_text(encoding="utf-8")
    before, after_ = yaml.safe_load(route), yaml.safe_load(told_to("http://here", route))
    for receiver, other in zip(before.pop("receivers"), after_.pop("receivers"), strict=True):
        assert other["webhook_configs"] == [{"url": f"http://here/{receiver['name']}", "send_resolved": True}]
    assert after_ == before


def test_a_notification_is_a_line_for_each_alert():
    alerts = [
        {"status": "firing", "labels": {"alertname": "LLMCostBudgetHardCap", "budget": "trial"}},
        {"status": "resolved", "labels": {"alertname": "LLMCostWatchdog"}},
    ]
    assert list(lines("pager", {"alerts": alerts})) == [
        "pager      firing   BudgetHardCap trial",
        "pager      resolved Watchdog",
    ]


def test_the_table_is_aligned_and_can_be_read():
    rows = [
        Line("engine chat-small", f"http://{HOST}:9410/metrics", "replayed", "note"),
        Line("a", f"http://{HOST}:1/", "real"),
    ]
    head, *said = table(rows)
    assert {line.index("re") for line in said} == {head.index("is")}
    found = places("\n".join(said))
    assert found["engine chat-small"] == (f"http://{HOST}:9410/metrics", 9410, "replayed")
    assert found["a"] == (f"http://{HOST}:1/", 1, "real")
