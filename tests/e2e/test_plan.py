"""`plan`, as a process: by numbers, from a config, and from ledgers that the real writer has written."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from exporter.core.money import NANO, Account, Kind
from exporter.ledger import Change
from tests.ledgers import commit, writing
from tests.processes import REPOSITORY

NUMBERS = (
    "--gpu.usd-per-hour 0.80 --gpu.count 1 --weights-gb 14 --storage.usd-per-gb-month 0.023 --requests-per-day 10000 "
    "--output-tokens 500 --api.usd-per-million-output 0.60"
)
CONFIG = """\
engines:
  - {name: chat, url: "http://127.0.0.1:9", gpus: 2, max_output_tokens_per_second: 2500, workload: batch}
  - {name: other, url: "http://127.0.0.1:8"}
prices:
  gpu: {usd_per_hour: 9, timeline: [{from: 2020-01-01, usd_per_hour: 0.50}, {from: 2990-01-01, usd_per_hour: 8}]}
  storage: {weights_gb: 20, usd_per_gb_month: 0.10}
  network: {usd_per_gb: 0.10, billable_ratio: 0.5}
  other: [{name: balancer, usd_per_hour: 0.02}, {name: disk, usd_per_hour: 0.01, engine: chat}]
  api:
    compare_with: {provider: me, model: mini}
    models: [{provider: me, model: mini, input_usd_per_million: 0.15, output_usd_per_million: 0.60}]
"""
QUARTER = 900
CHAT = ("chat", "llama", "fast")


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        [sys.executable, "-m", "exporter", "plan", *arguments],
        capture_output=True, text=True, cwd=REPOSITORY, timeout=30, check=False,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    return done


def said(*arguments: str) -> Any:
    done = run(*arguments, "--format=json")
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def drawn(*arguments: str) -> dict[str, list[str]]:
    """The tables by the first word of each line."""
    done = run(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.strip()}


def used(found: Any) -> dict[str, tuple[Any, str]]:
    return {name: (one["value"], one["source"]) for name, one in found["inputs"].items()}


# --- by numbers


def test_the_figures_come_out_exactly():
    found = said(*NUMBERS.split())
    assert {name: found[name] for name in list(found)[:17]} == {
        "hours_per_month": 720,
        "replicas": 1,
        "monthly_compute_usd": 576,
        "monthly_storage_usd": 0.322,
        "monthly_network_usd": 0,
        "monthly_other_usd": 0,
        "monthly_total_usd": 576.322,
        "usd_per_request": 0.001921073,
        "usd_per_million_output_tokens": 3.842146667,
        "usd_per_million_tokens": 3.842146667,
        "most_requests_per_day": None,
        "can_serve_requests_per_day": None,
        "api_usd_per_request": 0.0003,
        "api_monthly_usd": 90,
        "cheaper": "api",
        "break_even_requests_per_day": 64_035,
        "break_even_is_reachable": None,
    }
    assert used(found)["gpu.usd-per-hour"] == (0.8, "flag")
    assert used(found)["input-tokens"] == (0, "default")


def test_the_table_has_the_same_names_and_figures():
    table = drawn(*NUMBERS.split())
    assert table["monthly_compute_usd"] == ["576.00"]
    assert table["monthly_storage_usd"] == ["0.32"]
    assert table["monthly_total_usd"] == ["576.32"]
    assert table["usd_per_million_output_tokens"] == ["3.84"]
    assert table["break_even_requests_per_day"] == ["64,035"]
    assert table["cheaper"] == ["api"]
    found = said(*NUMBERS.split())
    figures = [name for name, value in found.items() if value is not None and name in table]
    assert len(figures) >= 12
    for name in figures:
        value = found[name]
        if isinstance(value, int | float):
            assert float(table[name][0].replace(",", "")) == pytest.approx(value, abs=0.005), name
    assert not {name for name, value in found.items() if value is None} & set(table)
    lines = run(*NUMBERS.split()).stdout.splitlines()
    assert lines[-2:] == ["A planned month has 30 days of 24 hours.", "Not known: max-output-tokens-per-second."]


def test_eight_thousand_requests_a_day_belong_at_the_api():
    numbers = NUMBERS.replace("10000", "8000").replace("500", "600")
    found = said(*numbers.split())
    assert (found["api_monthly_usd"], found["cheaper"]) == (86.4, "api")
    assert found["verdict"].startswith("576.32 USD a month self-hosted, 86.40 USD at the API: switch to the API; ")
    assert found["verdict"] in run(*numbers.split()).stdout


def test_figures_beyond_all_reason_are_figures():
    most = "--gpu.usd-per-hour 1e18 --gpu.count 1024 --replicas 999999999999 --what-if.gpu.usd-per-hour 1e-18"
    least = "--requests-per-day 1e-18 --output-tokens 1e-18 --api.usd-per-million-output=1e-18"
    for form in ("table", "json"):
        done = run(*most.split(), *least.split(), f"--format={form}")
        assert (done.returncode, done.stderr) == (0, "")


def test_what_other_hardware_would_change_stands_beside_today():
    flags = "--replicas 2 --max-output-tokens-per-second 400 --what-if.replicas +3 --what-if.gpu.usd-per-hour 2"
    found = said(*NUMBERS.split(), *flags.split(), "--what-if.gpu.speedup=3", "--what-if.gpu.count=2")
    more, other = found["what_if"]
    assert (more["change"], more["replicas"], more["difference"]["monthly_compute_usd"]) == ("5 replicas", 5, 1728)
    assert (other["monthly_compute_usd"], other["most_requests_per_day"]) == (5760, 3 * found["most_requests_per_day"])
    table = drawn(*NUMBERS.split(), *flags.split())
    assert table["monthly_compute_usd"] == ["1,152.00", "2,880.00", "1,728.00", "2,880.00", "1,728.00"]
    assert said(*NUMBERS.split(), "--what-if.replicas=3")["what_if"][0]["replicas"] == 3


def test_a_model_of_the_price_list_is_an_api():
    found = said("--gpu.usd-per-hour=1", "--output-tokens=100", "--api.model=openai/gpt-4o-mini")
    assert used(found)["api.model"] == ("openai/gpt-4o-mini", "flag")
    assert used(found)["api.usd-per-million-output"][1].startswith("genai-prices ")
    assert found["break_even_requests_per_day"] > 0


# --- from a config


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("plan") / "config.yml"
    path.write_text(CONFIG)
    return f"--config.file={path}"


def test_a_config_gives_what_flags_do_not(config: str):
    asked = (config, "--engine=chat", "--requests-per-day=1000", "--output-tokens=500", "--input-tokens=1000")
    found = said(*asked, "--network.bytes-per-request=1000000", "--gpu.count=4")
    assert found["monthly_compute_usd"] == 0.5 * 4 * 720
    assert found["monthly_storage_usd"] == 1
    assert found["monthly_other_usd"] == pytest.approx((0.01 + 0.01) * 720)
    assert found["monthly_network_usd"] == 1000 * 30 * 10**6 * 0.05 / 10**9
    assert found["most_requests_per_day"] == 2500 * 86_400 // 500
    assert found["api_usd_per_request"] == 0.00045
    inputs = used(found)
    assert (inputs["gpu.usd-per-hour"], inputs["gpu.count"]) == ((0.5, "config"), (4, "flag"))
    assert inputs["api.model"] == ("me/mini", "config")
    assert inputs["network.usd-per-gb"] == (0.05, "config")
    unknown = said(*asked)
    assert unknown["monthly_network_usd"] is None
    assert unknown["notes"] == ["network is not in the total: give --network.bytes-per-request"]


def test_prices_of_a_config_that_need_more_are_told(tmp_path: Path):
    path = tmp_path / "config.yml"
    engine = 'engines: [{url: "http://127.0.0.1:9"}]\n'
    owned = "{purchase_usd: 87600, lifetime: 1y, usd_per_kwh: 0.20, pue: 1.5"
    path.write_text(f"{engine}prices: {{gpu: {{owned: {owned}, watts: 500}}}}}}\n")
    assert used(said(f"--config.file={path}"))["gpu.usd-per-hour"] == (10.15, "config")
    path.write_text(f"{engine}prices: {{gpu: {{owned: {owned}}}}}}}\n")
    found = said(f"--config.file={path}")
    assert used(found)["gpu.usd-per-hour"] == (10, "config")
    assert found["notes"] == ["the energy of the GPUs is not in it, since the config assumes no watts"]
    path.write_text(f"{engine}prices: {{gpu: {{by_name: {{A10G: 1}}}}}}\n")
    done = run(f"--config.file={path}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    api = "api: {compare_with: {provider: nobody, model: gpt}}"
    path.write_text(f"{engine}prices: {{gpu: {{usd_per_hour: 1}}, {api}}}\n")
    (note,) = said(f"--config.file={path}")["notes"]
    assert note.startswith("nothing is compared: nobody gpt is not in the price list of ")


# --- from a ledger


def quarter(number: int, start: int) -> Iterator[tuple[Kind, tuple[str, ...], int, int]]:
    """A quarter of an hour of a day that idles for its first nine hours, and is loaded after a cold start then."""
    at, cent = start + number * QUARTER, NANO // 100
    place = number % 96
    if place < 36:
        yield Kind.SPEND, ("compute_idle", *CHAT), 20 * cent, at
        return
    loading = 5 * cent if place == 36 else 0
    yield Kind.SPEND, ("compute_loading", *CHAT), loading, at
    yield Kind.SPEND, ("compute_busy", *CHAT), 20 * cent - loading, at
    yield Kind.COLD_STARTS, ("chat",), 1 if loading else 0, at
    yield Kind.REQUESTS, ("chat", "llama", "finished"), 150, at
    yield Kind.PROMPT_TOKENS, CHAT, 150_000, at
    yield Kind.CACHED_PROMPT_TOKENS, CHAT, 60_000, at
    yield Kind.OUTPUT_TOKENS, CHAT, 75_000, at
    yield Kind.SPEND, ("network", *CHAT), cent, at
    yield Kind.CASCADE_REQUESTS, ("support", "fast"), 100, at
    yield Kind.ESCALATIONS, ("support", "fast", "frontier"), 25, at
    yield Kind.SPEND, ("api", "", "gpt", "frontier"), 30 * cent, at
    yield Kind.FEATURE_REQUESTS, ("summary", "docs", "gpt", "frontier"), 50, at


def booked(rows: Sequence[tuple[Kind, tuple[str, ...], int, int]], **more: Any) -> Change:
    totals: dict[Account, int] = {}
    buckets: dict[tuple[Account, int], int] = {}
    for kind, labels, amount, at in rows:
        account = Account(kind, labels)
        totals[account] = totals.get(account, 0) + amount
        buckets[account, at] = buckets.get((account, at), 0) + amount
    return Change(totals=totals, buckets=buckets, **more)


def write_days(folder: Path, days: int, ended: int = 0) -> Path:
    """A ledger of so many days that ended so many seconds ago."""
    end = (int(time.time()) - ended) // QUARTER * QUARTER
    start = end - days * 86_400
    rows = [row for number in range(days * 96) for row in quarter(number, start)]
    with writing(folder) as ledger:
        commit(
            ledger,
            booked(
                rows, samples=[("peak:chat", end - 900, (1_200_000,))], meta={"accounting_start": str(start * NANO)}
            ),
        )
    return folder


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    return "--from-ledger", f"--storage.path={write_days(tmp_path_factory.mktemp('plan') / 'data', 10)}"


def test_what_really_happened_is_planned_on(ledger: tuple[str, ...]):
    found = said(*ledger, "--api.usd-per-million-output=0.60", "--api.usd-per-million-input=0.15")
    assert {name: value for name, (value, source) in used(found).items() if source == "ledger"} == {
        "gpu.usd-per-hour": 0.8,
        "max-output-tokens-per-second": 1200,
        "requests-per-day": 9000,
        "input-tokens": 1000,
        "cached-input-tokens": 400,
        "output-tokens": 500,
        "network.usd-per-request": 0.000066667,
    }
    assert (found["monthly_compute_usd"], found["monthly_network_usd"]) == (576, 18)
    assert found["most_requests_per_day"] == 207_360
    assert found["measured"]["measured_days"] == 7
    assert found["measured"]["compute_idle_usd"] == 216
    assert found["measured"]["idle_ratio"] == 0.375
    assert "note: " not in run(*ledger).stdout
    table = drawn(*ledger)
    assert (table["compute_idle_usd"], table["idle_ratio"]) == (["216.00"], ["37.5", "%"])


def test_flags_win_over_the_config_and_that_over_the_ledger(ledger: tuple[str, ...], config: str):
    inputs = used(said(*ledger, config, "--engine=chat", "--output-tokens=100", "--days=2"))
    assert inputs["output-tokens"] == (100, "flag")
    assert inputs["gpu.usd-per-hour"] == (0.5, "config")
    assert inputs["max-output-tokens-per-second"] == (2500, "config")
    assert inputs["requests-per-day"] == (9000, "ledger")
    assert inputs["network.usd-per-request"][1] == "ledger"


def test_idle_gaps_and_cold_starts_are_measured(ledger: tuple[str, ...]):
    found = said("scale-to-zero", *ledger)
    inputs = used(found)
    assert inputs["idle-hours-per-day"] == (9, "ledger")
    assert inputs["idle-gap"] == ("7 gaps, 540 minutes", "ledger")
    assert inputs["cold-start-seconds"] == (225, "ledger")
    rows = {row["workload"]: row for row in found["workloads"]}
    assert rows["interactive"]["min_replicas"] == 1
    assert rows["batch"]["idle_usd_per_month"] == 216
    assert rows["batch"]["cooldown_seconds"] == 225
    assert rows["batch"]["advised_usd_per_month"] == pytest.approx(2 * 225 / 3600 * 0.8 * 30)
    assert found["at_zero"]["waiting_seconds_per_day"] == 225
    assert "the two add up" in found["cooldown"]


def test_tiers_and_cascades_are_measured(ledger: tuple[str, ...]):
    found = said("right-size", *ledger, "--error-budget=0.05")
    tiers = {tier["tier"]: tier for tier in found["tiers"]}
    assert tiers["fast"]["task_share"] == 0.75
    assert tiers["frontier"]["relative_cost"] == pytest.approx(0.006 / (20 + 0.6) * 9000, rel=0.1)
    assert found["dearest"] == "frontier"
    found = said("cascade", *ledger)
    inputs = used(found)
    assert inputs["step"] == ("support: fast to frontier", "ledger")
    assert inputs["escalation-ratio"] == (0.25, "ledger")
    assert inputs["requests-per-day"] == (6000, "ledger")
    assert found["verdict"].startswith("the cascade pays: 25 % escalate")


def test_a_ledger_that_is_short_or_old_is_told(tmp_path: Path):
    now = int(time.time()) // QUARTER * QUARTER
    rows = [row for number in range(36, 48) for row in quarter(number, now - 48 * QUARTER)]
    with writing(tmp_path / "short") as ledger:
        commit(ledger, booked(rows, meta={"accounting_start": str((now - 12 * QUARTER) * NANO)}))
    found = said("--from-ledger", f"--storage.path={tmp_path / 'short'}")
    assert used(found)["requests-per-day"] == (14_400, "ledger")
    assert found["notes"] == ["the ledger tells of 3.0 hours only: a day is taken to be like them"]
    assert found["unknown_inputs"] == ["max-output-tokens-per-second"]
    old = write_days(tmp_path / "old", 1, ended=3 * 86_400)
    assert "the ledger ends 3 days ago" in said("--from-ledger", f"--storage.path={old}")["notes"][0]


def test_time_after_the_last_beat_is_not_known(tmp_path: Path):
    """It was taken for time in which nothing was spent: a process that had stopped made its engine look cheap."""
    now = int(time.time()) // QUARTER * QUARTER
    rows = [(Kind.SPEND, ("compute_busy", *CHAT), NANO // 5, now - number * QUARTER) for number in range(2, 100)]
    rows.append((Kind.SPEND, ("compute_busy", *CHAT), NANO // 15, now - QUARTER))
    begun, last = now - 99 * QUARTER, now - QUARTER + 300
    with writing(tmp_path / "data") as ledger:
        commit(ledger, booked(rows, meta={"accounting_start": str(begun * NANO), "last_beat": str(last * NANO)}))
    found = said("--from-ledger", f"--storage.path={tmp_path / 'data'}")
    assert used(found)["gpu.usd-per-hour"] == (0.8, "ledger")
    assert found["measured"]["measured_days"] == pytest.approx((last - begun) / 86_400)


def test_input_tokens_without_a_price_at_the_api_are_told(ledger: tuple[str, ...]):
    free = "the API's input tokens are taken to be free: give --api.usd-per-million-input"
    assert said(*ledger, "--api.usd-per-million-output=0.60")["notes"] == [free]
    assert said(*ledger, "--api.usd-per-million-output=0.60", "--api.usd-per-million-input=0")["notes"] == []


def test_what_came_late_is_measured_since_then_or_told(tmp_path: Path):
    now = int(time.time()) // QUARTER * QUARTER
    begun = now - 7 * 96 * QUARTER
    rows: list[tuple[Kind, tuple[str, ...], int, int]] = [
        (Kind.SPEND, ("compute_busy", *CHAT), NANO // 5, now - number * QUARTER) for number in range(1, 673)
    ]
    rows += [(Kind.REQUESTS, ("chat", "llama", "finished"), 100, now - number * QUARTER) for number in range(1, 673)]
    young = ("young", "llama", "best")
    rows += [(Kind.SPEND, ("compute_busy", *young), NANO // 5, now - number * QUARTER) for number in range(1, 9)]
    rows += [(Kind.REQUESTS, ("young", "llama", "finished"), 100, now - number * QUARTER) for number in range(1, 9)]
    for number in range(1, 97):
        rows.append((Kind.CASCADE_REQUESTS, ("support", "fast"), 100, now - number * QUARTER))
        rows.append((Kind.ESCALATIONS, ("support", "fast", "best"), 25, now - number * QUARTER))
    brief = ("compute_busy", "brief", "m", "")
    rows.append((Kind.SPEND, brief, NANO // 50, now - 3 * QUARTER))
    meta = {"accounting_start": str(begun * NANO), "last_beat": str(now * NANO)}
    with writing(tmp_path / "data") as ledger:
        commit(ledger, booked(rows, meta=meta))
    data = ("--from-ledger", f"--storage.path={tmp_path / 'data'}")
    found = said(*data, "--engine=young")
    assert used(found)["gpu.usd-per-hour"] == (0.8, "ledger")
    assert found["notes"] == ["young was there for 1.8 hours only: a day is taken to be like them"]
    assert used(said("cascade", *data))["requests-per-day"] == (9600, "ledger")
    assert said("right-size", *data)["notes"] == [
        "tier best is there for 0.1 of 7.0 days, and its share is one of all of them"
    ]
    line = "Error: --from-ledger: expected a whole quarter of an hour of brief, found parts of some\n"
    assert run(*data, "--engine=brief").stderr == line


def test_steps_and_tiers_that_tell_too_little_are_told(tmp_path: Path):
    at = int(time.time()) // QUARTER * QUARTER
    steps = [("support", "fast", "balanced"), ("support", "balanced", "frontier")]
    rows: list[tuple[Kind, tuple[str, ...], int, int]] = [(Kind.ESCALATIONS, step, 5, at) for step in steps]
    rows += [(Kind.CASCADE_REQUESTS, ("support", tier), 100, at) for tier in ("fast", "balanced")]
    rows += [(Kind.SPEND, ("other", *CHAT), NANO, at), (Kind.REQUESTS, ("chat", "llama", "finished"), 49, at)]
    with writing(tmp_path / "data") as ledger:
        commit(ledger, booked(rows))
    data = ("--from-ledger", f"--storage.path={tmp_path / 'data'}")
    done = run("cascade", *data)
    several = "found several (support: balanced to frontier, support: fast to balanced)"
    assert (done.returncode, done.stderr.strip().split("one step, ")[1]) == (2, several)
    prices = ("--small-usd-per-request=1", "--big-usd-per-request=2")
    assert said("cascade", *data, *prices, "--from-tier=fast")["break_even_escalation_ratio"] == 0.5
    for chosen in ("--from-tier=fast", "--cascade=other"):
        assert run("cascade", *data, chosen).stderr.startswith(
            "Error: expected --small-usd-per-request, found it in no"
        )
    done = run("right-size", *data)
    line = "Error: --from-ledger: expected tiers with requests and spend, found none in these days\n"
    assert (done.returncode, done.stderr) == (2, line)


def test_a_ledger_whose_time_nobody_saw_is_told(tmp_path: Path):
    at = int(time.time()) // QUARTER * QUARTER
    with writing(tmp_path / "data") as ledger:
        commit(ledger, booked([(Kind.UNOBSERVED, (), 8 * 86_400 * NANO, at), (Kind.SPEND, ("other", *CHAT), NANO, at)]))
    done = run("--from-ledger", f"--storage.path={tmp_path / 'data'}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.endswith("expected time that was observed, found none in these days\n")


# --- tiers and cascades by numbers


def test_a_split_of_sixty_and_forty_saves_more_than_half():
    flags = "--tier fast=1:0.6 --tier frontier=10:0.4 --monthly-usd 10000 --error-budget 0.05"
    found = said("right-size", *flags.split())
    assert (found["saving_ratio"], found["saving_usd"], found["monthly_usd"]) == (0.54, 5400, 4600)
    assert found["allowed_error_ratio"] == 0.083333333
    assert found["rule"][0] == "1. Classification, or complexity below 0.3: fast."
    table = drawn("right-size", *flags.split())
    assert (table["saving_ratio"], table["saving_usd"]) == (["54", "%"], ["5,400.00"])
    assert table["fast"] == ["1", "60", "%"]
    text = run("right-size", *flags.split()).stdout
    assert all(line in text for line in (*found["rule"], *found["meaning"]))


def test_a_cascade_by_numbers():
    flags = "--small-usd-per-request 0.0004 --big-usd-per-request 0.002 --escalation-ratio 0.25"
    found = said("cascade", *flags.split(), "--requests-per-day=10000")
    assert (found["expected_usd_per_request"], found["break_even_escalation_ratio"]) == (0.0009, 0.8)
    assert found["monthly_saving_usd"] == 330
    assert "The cascade pays: 25 % escalate, and it breaks even at 80 %." in run("cascade", *flags.split()).stdout


def test_idling_by_numbers():
    found = said("scale-to-zero", "--gpu.usd-per-hour=0.80", "--idle-hours-per-day=14")
    assert [row["idle_usd_per_month"] for row in found["workloads"]] == [336] * 5
    assert found["at_zero"] is None
    assert found["notes"][0].startswith("without --cold-start nothing says how long somebody would wait")
    gaps = said("scale-to-zero", "--gpu.usd-per-hour=0.80", "--idle-gap=9h", "--idle-gap=30m", "--cold-start=4m")
    assert gaps["at_zero"]["cold_starts_per_day"] == 2


# --- what cannot be planned


USD = "expected an amount in US dollars, 0 or more, found "
GPU = "--gpu.usd-per-hour=1"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("", "expected --gpu.usd-per-hour, found it in no flag, config or ledger"),
        ("--gpu.usd-per-hour=x", f"Invalid value for '--gpu.usd-per-hour': {USD}'x'"),
        ("--gpu.count=-1", "Invalid value for '--gpu.count': expected a number of GPUs like 1, 0.5 or 3/7, found '-1'"),
        (f"{GPU} --gpu.count=0", "--gpu.count: expected more than 0, since GPUs are what a month costs, found 0"),
        (f"{GPU} --what-if.gpu.count=0", "--what-if.gpu.count: expected more than 0, since GPUs"),
        (f"{GPU} --cached-input-tokens=9", "--cached-input-tokens: expected at most the 0 input tokens that they are"),
        ("--nonsense", "No such option"),
        ("nonsense", "No such command 'nonsense'."),
        ("--gpu.usd-per-hour=1 cascade", "expected flags after cascade, found before it --gpu.usd-per-hour"),
        (f"{GPU} --weights-gb=3", "expected --weights-gb and --storage.usd-per-gb-month together, found one of them"),
        (f"{GPU} --network.usd-per-gb=3", "expected --network.usd-per-gb and --network.bytes-per-request together, "),
        (f"{GPU} --api.usd-per-million-input=3", "expected --api.usd-per-million-output beside the other prices"),
        (f"{GPU} --api.model=a/b --api.usd-per-million-output=3", "expected --api.model or prices of an API by number"),
        (f"{GPU} --api.model=gpt", "--api.model: expected PROVIDER/MODEL like openai/gpt-4o-mini, found 'gpt'"),
        (f"{GPU} --api.model=nobody/gpt", "--api.model: nobody gpt is not in the price list of genai-prices "),
        (f"{GPU} --what-if.gpu.speedup=2", "expected --what-if.gpu.usd-per-hour beside the rest of other GPUs"),
        (f"{GPU} --what-if.replicas=0", "Invalid value for '--what-if.replicas': expected a number of replicas like 3"),
        (f"{GPU} --from-ledger", "expected --from-ledger and --storage.path together, found one of them"),
        (f"{GPU} --days=3", "--days: expected it beside --from-ledger, found it alone"),
        (f"{GPU} --days=401", "--days: expected 400 or less, which is what a ledger keeps, found 401"),
        (f"{GPU} --engine=chat", "--engine: expected --config.file or --from-ledger beside it, found neither"),
        ("right-size", "expected --tier, found it in no flag, config or ledger"),
        ("right-size --tier=a=1", "Invalid value for '--tier': expected a tier as NAME=RELATIVE_COST:SHARE, like "),
        ("right-size --tier=a=1:0.5", "--tier: expected shares that sum to 1, found 0.5"),
        ("right-size --tier=a=1:0.5 --tier=a=2:0.5", "--tier: expected each tier once, found a, a"),
        ("cascade --small-usd-per-request=1", "expected --big-usd-per-request, found it in no flag, config or ledger"),
        ("cascade --escalation-ratio=1.1", "Invalid value for '--escalation-ratio': expected a ratio from 0 to 1"),
        (f"scale-to-zero {GPU}", "expected --idle-hours-per-day or --idle-gap, found it in no flag, config or ledger"),
        (f"scale-to-zero {GPU} --idle-hours-per-day=25", "Invalid value for '--idle-hours-per-day': expected hours of"),
        (f"scale-to-zero {GPU} --idle-gap=25h", "--idle-gap: expected gaps of one day, found more than 24 hours of th"),
        (f"scale-to-zero {GPU} --idle-gap=1h --idle-hours-per-day=1", "expected --idle-gap or --idle-hours-per-day, "),
    ],
)
def test_arguments_that_make_no_plan_are_told_in_one_line(arguments: str, line: str):
    done = run(*arguments.split())
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"Error: {line}")


def test_an_engine_must_be_named_where_there_are_several(config: str, tmp_path: Path, ledger: tuple[str, ...]):
    several = "expected --engine, one of chat, other, found several engines and none named"
    rows = [(Kind.SPEND, ("other", name, "m", ""), NANO, int(time.time()) // 900 * 900) for name in ("chat", "other")]
    with writing(tmp_path / "two") as file:
        commit(file, booked(rows))
    two = ("--from-ledger", f"--storage.path={tmp_path / 'two'}")
    unknown = "--engine: expected an engine that the ledger knows (chat), found 'nobody'"
    for arguments, line in {
        (config,): several,
        (config, "--engine=nobody"): "--engine: expected one of chat, other, found 'nobody'",
        two: several,
        (*ledger, "--engine=nobody"): unknown,
    }.items():
        done = run(*arguments)
        assert (done.returncode, done.stderr) == (2, f"Error: {line}\n")


def test_a_ledger_without_anything_is_told(tmp_path: Path):
    with writing(tmp_path / "empty"):
        pass
    done = run("--from-ledger", f"--storage.path={tmp_path / 'empty'}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "expected something booked, found nothing" in done.stderr
    assert run("--from-ledger", f"--storage.path={tmp_path}").stderr.endswith("expected a ledger, found none\n")
