"""Against a real vLLM, with real clients and a real Prometheus: what we export is what was billed and what it took."""

import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .conftest import INTERVAL, USD_PER_HOUR, Exporter, Page, Poll, Prometheus, Vllm, wait_for

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

Measured = Callable[..., None]
OUTPUT, PROMPT = "llmcost_output_tokens_total", "llmcost_prompt_tokens_total"
REQUESTS, SPEND = "llmcost_requests_total", "llmcost_spend_usd_total"
TTFT = "vllm:time_to_first_token_seconds_bucket"
OUR_TTFT = "llmcost_ttft_seconds_bucket"


def done(page: Page) -> float:
    return page.total(REQUESTS, outcome="length") + page.total(REQUESTS, outcome="stop")


def test_what_clients_are_billed_is_what_we_count(vllm: Vllm, exporter: Exporter, measured: Measured) -> None:
    before = exporter.fresh_page()
    billed = vllm.load("--requests=60", "--concurrency=8", "--stream=0.7", "--keep-eos", "--seed=1")
    vllm.idle_page()
    after = exporter.fresh_page()
    prompt, output = (after.total(name) - before.total(name) for name in (PROMPT, OUTPUT))
    measured(
        billed=billed,
        prompt_tokens=prompt,
        output_tokens=output,
        length=after.total(REQUESTS, outcome="length") - before.total(REQUESTS, outcome="length"),
        stop=after.total(REQUESTS, outcome="stop") - before.total(REQUESTS, outcome="stop"),
    )
    assert billed["outcome"] == {"ok": 60}
    assert (prompt, output) == (billed["prompt_tokens"], billed["completion_tokens"])
    assert done(after) - done(before) == 60
    assert after.total(REQUESTS) - before.total(REQUESTS) == 60, "no other outcome has moved"


def test_hang_ups_are_paid_for_and_seen(vllm: Vllm, exporter: Exporter, measured: Measured) -> None:
    """With four slots: of four clients everybody's request runs, of twelve most wait when they hang up."""
    engine_before, before = vllm.idle_page(), exporter.fresh_page()
    with Poll(exporter) as poll:
        hang_ups = ("--abort=0.2", "--abort-after=0.5", "--output-tokens=40-120")
        running = vllm.load("--requests=40", "--concurrency=4", "--seed=2", *hang_ups)
        waiting = vllm.load("--requests=60", "--concurrency=12", "--seed=3", *hang_ups)
        engine_after = vllm.idle_page()
        after = exporter.fresh_page()
    prompt, output = (after.total(name) - before.total(name) for name in (PROMPT, OUTPUT))
    engine_prompt, engine_output = (
        engine_after.total(name) - engine_before.total(name)
        for name in ("vllm:prompt_tokens_total", "vllm:generation_tokens_total")
    )
    abandoned = [
        page.total(REQUESTS, outcome="abandoned") - before.total(REQUESTS, outcome="abandoned")
        for page in [before, *poll.pages, after]
    ]
    unexplained = engine_after.abandoned() - engine_before.abandoned()
    billed = {key: running[key] + waiting[key] for key in ("prompt_tokens", "completion_tokens")}
    outcomes = {key: running["outcome"][key] + waiting["outcome"][key] for key in ("ok", "aborted")}
    measured(
        running=running,
        waiting=waiting,
        billed=billed,
        prompt_tokens=prompt,
        output_tokens=output,
        engine_prompt_tokens=engine_prompt,
        engine_output_tokens=engine_output,
        abandoned=sorted(set(abandoned)),
        engine_unexplained=unexplained,
        clients=outcomes,
        slowest_scrape_seconds=poll.slowest,
    )
    assert prompt > billed["prompt_tokens"]
    assert output > billed["completion_tokens"]
    assert (prompt, output) == (engine_prompt, engine_output)
    assert abandoned == sorted(abandoned), "it rises while the load runs, and never falls"
    assert abandoned[-1] == unexplained
    assert 0 < abandoned[-1] <= outcomes["aborted"]
    assert abandoned[-1] + done(after) - done(before) == sum(outcomes.values())


def test_a_queue_asks_for_a_replica(vllm: Vllm, exporter: Exporter, measured: Measured) -> None:
    with Poll(exporter, pause=0.25) as poll:
        billed = vllm.load("--requests=60", "--concurrency=24", "--output-tokens=60-120", "--seed=4")
    waiting = [page.total("llmcost_requests_waiting") for page in poll.pages]
    ratios = [page.total("llmcost_scaling_signal_ratio", signal="queue_depth") for page in poll.pages]
    vllm.idle_page()
    measured(billed=billed, most_waiting=max(waiting), highest_ratio=max(ratios), slowest_scrape_seconds=poll.slowest)
    assert max(waiting) > 10
    assert max(ratios) > 1
    assert ratios == pytest.approx([depth / 10 for depth in waiting])
    assert exporter.fresh_page().value("llmcost_scaling_signal_ratio", signal="queue_depth") == 0


def test_ttft_is_what_prometheus_says(vllm: Vllm, exporter: Exporter, tmp_path: Path, measured: Measured) -> None:
    """All three begin before the load and are asked after it, so that they hold the same observations.

    What the buckets moved between two instants is exact, so the quantile must be the same to rounding. `increase()`
    extrapolates to half a scrape interval beyond its first and last sample, but not below 0: a bucket that began at 0
    grows by up to half a second's share less than one that did not. With a load of half a minute the quantile can
    differ by that much: 2 %.
    """
    with Prometheus(tmp_path, engine=vllm.url, exporter=exporter.url) as prometheus:
        both_scraped = "count(up == 1) == 2 and on () count(llmcost_ttft_seconds_bucket{le='+Inf'}) == 1"
        wait_for("Prometheus has scraped both", lambda: prometheus.query(both_scraped, time.time()))
        began = time.time()
        billed = vllm.load("--requests=120", "--concurrency=12", "--stream=0.7", "--seed=5")
        vllm.idle_page()
        page = exporter.fresh_page()
        time.sleep(2.5)  # both have been scraped since
        ended = time.time()

        def p95(vector: str) -> float:
            (value,) = prometheus.query(f"histogram_quantile(0.95, sum by (le) ({vector}))", ended)
            return value

        exact, ours_exact = (p95(f"{name} - {name} @ {began:.3f}") for name in (TTFT, OUR_TTFT))
        increase, ours_increase = (p95(f"increase({name}[5m])") for name in (TTFT, OUR_TTFT))
        observed = prometheus.query(f"{TTFT}{{le='+Inf'}} - {TTFT}{{le='+Inf'}} @ {began:.3f}", ended)
        lowest_up = prometheus.query("min(min_over_time(up[5m]))", ended)
    shown = page.value("llmcost_ttft_p95_seconds", window="5m")
    measured(
        billed=billed,
        observed=observed,
        shown=shown,
        exact=exact,
        ours_exact=ours_exact,
        increase=increase,
        ours_increase=ours_increase,
        lowest_up=lowest_up,
    )
    assert ended - began < 240, "the load must fit into the window"
    assert observed == [120]
    assert shown == pytest.approx(exact, rel=1e-9)
    assert ours_exact == exact
    assert shown == pytest.approx(increase, rel=0.02)
    assert shown == pytest.approx(ours_increase, rel=0.02)


def test_the_model_is_the_served_name(vllm: Vllm, exporter: Exporter, measured: Measured) -> None:
    page, (engine,) = exporter.fresh_page(), exporter.snapshot()["engines"]
    unpriced = "llmcost_unpriced_tokens_total"  # of a model that has no name there
    found = (dict(labels) for name, labels in page.samples if name != unpriced)
    models = {labels["model"] for labels in found if "model" in labels}
    measured(models=models, kind=engine["kind"], state=engine["state"], engine_series=len(vllm.page().samples))
    assert models == {"tiny"}
    assert engine["model"] == "tiny"
    assert (engine["kind"], engine["state"]) == ("vllm", "up")


def test_killed_and_started_again(vllm: Vllm, exporter: Exporter, measured: Measured) -> None:
    first, began, snapshot = exporter.fresh_page(), time.monotonic(), exporter.snapshot()
    with Poll(exporter) as poll:
        life_1 = vllm.load("--requests=40", "--concurrency=8", "--seed=6")
        vllm.idle_page()
        between = exporter.fresh_page()
        vllm.kill()
        wait_for("the exporter sees it", lambda: exporter.page().value("llmcost_source_up", source="engine") == 0)
        time.sleep(5)
        start_seconds = vllm.start()
        up_again = exporter.fresh_page()
        life_2 = vllm.load("--requests=40", "--concurrency=8", "--seed=7")
        vllm.idle_page()
        last, elapsed, snapshot_2 = exporter.fresh_page(), time.monotonic() - began, exporter.snapshot()
    spend = {
        str(dict(labels)["category"]): value - first.samples.get((name, labels), 0.0)
        for (name, labels), value in last.samples.items()
        if name == SPEND
    }
    booked = (nano_usd(snapshot_2) - nano_usd(snapshot)) / 1e9
    between_beats = snapshot_2["at"] - snapshot["at"]
    ups = [page.value("llmcost_source_up", source="engine") for page in poll.pages]
    changes = [up for index, up in enumerate(ups) if index == 0 or up != ups[index - 1]]
    errors = {
        dict(labels)["reason"]: count
        for (name, labels), count in last.samples.items()
        if name == "llmcost_source_errors_total" and count
    }
    cold_start = last.value("llmcost_cold_start_seconds")
    measured(
        life_1=life_1,
        life_2=life_2,
        prompt_tokens=[page.total(PROMPT) - first.total(PROMPT) for page in (between, last)],
        output_tokens=[page.total(OUTPUT) - first.total(OUTPUT) for page in (between, last)],
        requests=done(last) - done(first),
        cold_starts=last.total("llmcost_cold_starts_total") - first.total("llmcost_cold_starts_total"),
        cold_start_seconds=cold_start,
        start_seconds=start_seconds,
        spend_usd=spend,
        spend_seconds={category: usd / USD_PER_HOUR * 3600 for category, usd in spend.items()},
        spend_usd_total=sum(spend.values()),
        elapsed_usd=elapsed * USD_PER_HOUR / 3600,
        booked_seconds=booked / USD_PER_HOUR * 3600,
        between_beats=between_beats,
        source_up=changes,
        source_errors=errors,
        polls=len(poll.pages),
        slowest_scrape_seconds=poll.slowest,
        falls=falls([first, *poll.pages, last]),
    )
    assert falls([first, *poll.pages, last]) == []
    assert between.total(PROMPT) - first.total(PROMPT) == life_1["prompt_tokens"]
    assert between.total(OUTPUT) - first.total(OUTPUT) == life_1["completion_tokens"]
    assert last.total(PROMPT) - first.total(PROMPT) == life_1["prompt_tokens"] + life_2["prompt_tokens"]
    assert last.total(OUTPUT) - first.total(OUTPUT) == life_1["completion_tokens"] + life_2["completion_tokens"]
    assert done(last) - done(first) == life_1["outcome"]["ok"] + life_2["outcome"]["ok"] == 80
    assert last.total("llmcost_cold_starts_total") - first.total("llmcost_cold_starts_total") == 1
    assert up_again.value("llmcost_cold_start_seconds") == cold_start == pytest.approx(start_seconds, abs=3)
    assert changes == [1, 0, 1]
    assert "bug" not in errors
    assert spend["compute_down"] > 0
    assert spend["compute_loading"] > 0
    assert sum(spend.values()) == pytest.approx(
        elapsed * USD_PER_HOUR / 3600, abs=(INTERVAL + 1) * USD_PER_HOUR / 3600
    ), "all categories, within one beat and a second"
    assert booked == pytest.approx(between_beats * USD_PER_HOUR / 3600, rel=1e-4), "exact from beat to beat"


def test_started_before_the_engine(vllm: Vllm, tmp_path: Path, measured: Measured) -> None:
    """As in a pod: the engine loads for long, and all that it does counts from its first token on."""
    vllm.kill()
    with Exporter(vllm.url, tmp_path) as exporter, Poll(exporter) as poll:
        began = time.monotonic()
        wait_for("the first failed read", lambda: exporter.page().values("llmcost_source_up", source="engine") == [0])
        start_seconds = vllm.start()
        exporter.fresh_page()
        loading_seconds = time.monotonic() - began
        billed = vllm.load("--requests=40", "--concurrency=8", "--seed=8")
        vllm.idle_page()
        last = exporter.fresh_page()
    loading = last.total(SPEND, category="compute_loading")
    cold_starts = sorted({page.total("llmcost_cold_starts_total") for page in poll.pages})
    measured(
        billed=billed,
        prompt_tokens=last.total(PROMPT),
        output_tokens=last.total(OUTPUT),
        requests=last.total(REQUESTS),
        cold_starts=cold_starts,
        cold_start_seconds=last.value("llmcost_cold_start_seconds"),
        start_seconds=start_seconds,
        spend_in_loading_seconds=loading / USD_PER_HOUR * 3600,
        loading_seconds=loading_seconds,
        spend_models=sorted({dict(labels)["model"] for name, labels in last.samples if name == SPEND}),
        falls=falls(poll.pages),
    )
    assert falls(poll.pages) == []
    assert (last.total(PROMPT), last.total(OUTPUT)) == (billed["prompt_tokens"], billed["completion_tokens"])
    assert last.total(REQUESTS) == done(last) == 40
    assert cold_starts == [0, 1]
    assert last.value("llmcost_cold_start_seconds") == pytest.approx(start_seconds, abs=3)
    assert loading / USD_PER_HOUR * 3600 == pytest.approx(loading_seconds, abs=INTERVAL + 2)
    assert last.total(SPEND, category="compute_down") == 0


def nano_usd(snapshot: dict[str, object]) -> int:
    totals = snapshot["totals"]
    assert isinstance(totals, list)
    return sum(int(total["amount"]) for total in totals if total["kind"] == "spend")


def falls(pages: list[Page]) -> list[str]:
    """Every counter, or part of a histogram, that fell or vanished from one page to the next."""
    return [
        f"{name} {dict(labels)}: {value}, then {after.samples.get((name, labels))}"
        for before, after in itertools.pairwise(pages)
        for (name, labels), value in before.counters("").items()
        if after.samples.get((name, labels), -1.0) < value
    ]


SETTLE_SECONDS = 45
FEATURES = ("summary", "search", "chat")
MEASURED = (
    "vllm:request_prefill_time_seconds_sum",
    "vllm:request_decode_time_seconds_sum",
    "vllm:prompt_tokens_total",
    "vllm:prompt_tokens_cached_total",
    "vllm:generation_tokens_total",
)
LOADS = {
    "summary": ("--prompt-words=100-200", "--output-tokens=5-20", "--requests=20"),
    "search": ("--prompt-words=5-20", "--output-tokens=5-30", "--requests=30"),
    "chat": ("--prompt-words=20-60", "--output-tokens=60-120", "--requests=10"),
}
CONFIG = """\
interval: {interval}s
engines: [{{name: chat, url: "{url}"}}]
gpu: {{source: none}}
prices: {{gpu: {{usd_per_hour: {usd}}}}}
usage: {{settle: {settle}s}}
"""


def test_an_app_of_three_features_pays_by_its_tokens(vllm: Vllm, tmp_path: Path, measured: Measured) -> None:
    """All in one settling window, by the weights that the engine itself measured in it; the bill is what it was."""
    config = CONFIG.format(interval=INTERVAL, url=vllm.url, usd=USD_PER_HOUR, settle=SETTLE_SECONDS)
    with Exporter(vllm.url, tmp_path, config) as exporter:
        exporter.fresh_page()
        began = vllm.idle_page()
        wait_for("a window begins", lambda: time.time() % SETTLE_SECONDS < 1, seconds=2 * SETTLE_SECONDS)
        before, started = exporter.fresh_page(), time.monotonic()
        with ThreadPoolExecutor() as apps:
            posts = {feature: apps.submit(_post, vllm, exporter, feature) for feature in FEATURES}
            billed = {feature: post.result() for feature, post in posts.items()}
        ended = vllm.idle_page()
        assert time.monotonic() - started < SETTLE_SECONDS - 5, "this machine is too slow for one window"
        after = wait_for("the window is settled", lambda: _settled(exporter), seconds=3 * SETTLE_SECONDS)
    moved = {name: ended.total(name) - began.total(name) for name in MEASURED}
    computed = moved[MEASURED[2]] - moved[MEASURED[3]]
    a_prompt_token, an_output_token = moved[MEASURED[0]] / computed, moved[MEASURED[1]] / moved[MEASURED[4]]
    work = {
        feature: (one["prompt_tokens"] - one["cached_tokens"]) * a_prompt_token
        + one["completion_tokens"] * an_output_token
        for feature, one in billed.items()
    }
    paid = {feature: after.total("llmcost_attributed_spend_usd_total", feature=feature) for feature in FEATURES}
    unattributed = after.total("llmcost_attributed_spend_usd_total", feature="unattributed")
    busy = after.total(SPEND, category="compute_busy") - before.total(SPEND, category="compute_busy")
    coverage = after.value("llmcost_attribution_coverage_ratio", engine="chat", window="1h")
    measured(billed=billed, paid=paid, unattributed=unattributed, busy=busy, coverage=coverage, moved=moved)
    assert coverage == 1.0
    assert sum(paid.values()) + unattributed == pytest.approx(busy, abs=1e-6)
    assert unattributed == pytest.approx(0, abs=0.02 * busy)
    for feature in FEATURES:
        assert paid[feature] / sum(paid.values()) == pytest.approx(work[feature] / sum(work.values()), rel=0.02)
    assert after.total(SPEND, category="api") == 0
    elapsed = sum(after.total(SPEND, category=f"compute_{name}") for name in ("busy", "idle", "loading"))
    assert after.total(SPEND) == pytest.approx(elapsed), "events cost nothing"


def _post(vllm: Vllm, exporter: Exporter, feature: str) -> dict[str, int]:
    told = (f"--usage-url={exporter.url}/v1/usage", f"--feature={feature}", f"--seed={FEATURES.index(feature)}")
    billed: dict[str, int] = vllm.load(*LOADS[feature], "--concurrency=2", *told)
    return billed


def _settled(exporter: Exporter) -> Page | None:
    """The page once every event's window is closed."""
    page = exporter.page()
    done = page.total("llmcost_attribution_pending_usd") == 0
    return page if done and page.total("llmcost_attributed_spend_usd_total", feature="chat") else None
