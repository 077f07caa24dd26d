"""Usage events as applications post them, on the real process: acknowledged, shared, priced, never lost or doubled."""

import gzip
import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.ledgers import saved
from tests.posting import CONFIG, check, event, kill_under_ingest, labels, post
from tests.processes import REPOSITORY, Exporter, replayed, running

UP = "llmcost_source_up{source=engine,target=chat}"


def serve(config: Path, *more: str) -> tuple[str, ...]:
    return "serve", f"--config.file={config}", "--log.level=warn", *more


def until_up(exporter: Exporter) -> None:
    exporter.until("the engine", lambda page: page.get(UP) == 1)


@pytest.mark.timeout(180)
def test_killed_under_ingest_no_acknowledged_event_is_lost_or_counted_twice(tmp_path: Path):
    seed = time.time_ns() % 10**6
    print(f"seed {seed}")
    with replayed(tmp_path, "--skip=165s", "--speed=20", "--loop=continue") as url:
        assert kill_under_ingest(tmp_path, url, kills=20, seed=seed) > 200


def test_what_features_claim_is_shared_and_both_books_agree(tmp_path: Path):
    config, chance = tmp_path / "config.yml", random.Random(1)
    events = [event(number, chance) for number in range(90)]
    with replayed(tmp_path, "--skip=165s", "--speed=20", "--loop=continue") as url:
        config.write_text(CONFIG.format(url=url))
        with running(tmp_path, *serve(config, f"--storage.path={tmp_path}/data")) as exporter:
            until_up(exporter)
            for first in range(0, len(events), 30):
                reply = post(exporter, events[first : first + 30])
                assert (reply.status, json.loads(reply.body)) == (202, {"accepted": 30, "duplicates": 0})
            again = post(exporter, events)
            assert (again.status, json.loads(again.body)) == (202, {"accepted": 0, "duplicates": 90})
            conflict = post(exporter, [events[0] | {"output_tokens": 10_001}, event(1000, chance)])
            assert (conflict.status, json.loads(conflict.body)["conflicts"]) == (409, [1])
            exporter.until("shares", lambda page: len(labels(page, "attributed_spend_usd_total")) >= 7)
            exporter.until("coverage", lambda page: labels(page, "attribution_coverage_ratio"))
            page = exporter.metrics()
            busy, api = (
                sum(value for name, value in labels(page, "spend_usd_total").items() if f"category={category}," in name)
                for category in ("compute_busy", "api")
            )
            shown = sum(labels(page, "attributed_spend_usd_total").values())
            pending = sum(labels(page, "attribution_pending_usd").values())
            assert busy + api == pytest.approx(shown + pending, abs=1e-6)
            results = {name.partition("=")[2]: value for name, value in labels(page, "usage_events_total").items()}
            assert results["accepted}"] + results["late}"] == 90
            assert (results["duplicate}"], results["conflict}"], results["rejected}"]) == (90, 1, 1)
            assert exporter.end() == 0
    check(saved(tmp_path / "data"), events)


def test_an_event_may_name_the_model_that_the_engines_page_names(tmp_path: Path):
    """The first events after a start, and after a page named another model, went by what was known before."""
    config = tmp_path / "config.yml"
    with replayed(tmp_path, "--skip=165s", "--speed=20", "--loop=continue") as url:
        config.write_text(CONFIG.format(url=url).replace("models: [served], ", ""))
        with running(tmp_path, *serve(config)) as exporter:
            until_up(exporter)
            model = json.loads(exporter.ask("/v1/snapshot").body)["engines"][0]["model"]
            assert post(exporter, {"feature": "summary", "model": model, "output_tokens": 3}).status == 202
            page = exporter.until("it on the page", lambda page: labels(page, "feature_requests_total"))
            booked = f"llmcost_feature_requests_total{{feature=summary,model={model},team=,tier=fast}}"
            assert page.get(booked) == 1, labels(page, "feature_requests_total")


def test_without_storage_events_count_until_the_process_ends(tmp_path: Path):
    config = tmp_path / "config.yml"
    config.write_text(CONFIG.format(url="http://127.0.0.1:9"))
    with running(tmp_path, *serve(config)) as exporter:
        exporter.until("a beat", lambda page: UP in page)
        body = {"id": "a", "feature": "summary", "model": "api", "input_tokens": 10**6, "output_tokens": 10**6}
        assert post(exporter, body).status == 202
        assert json.loads(post(exporter, body).body) == {"accepted": 0, "duplicates": 1}
        page = exporter.until("it on the page", lambda page: labels(page, "feature_requests_total"))
        assert page["llmcost_spend_usd_total{category=api,engine=,model=api,tier=}"] == 0.75
        assert "llmcost_ledger_uncommitted_usd{}" not in page


def test_bodies_as_clients_send_them(tmp_path: Path):
    config = tmp_path / "config.yml"
    config.write_text(CONFIG.format(url="http://127.0.0.1:9"))
    one = {"feature": "summary", "model": "api", "output_tokens": 1}
    lines = b"\n".join(json.dumps(one).encode() for _ in range(3)) + b"\n"
    with running(tmp_path, *serve(config)) as exporter:
        exporter.until("a beat", lambda page: UP in page)
        assert exporter.ask("/v1/usage", "POST", body=lines).status == 202
        assert exporter.ask("/v1/usage", "POST", body=gzip.compress(lines), Content_Encoding="gzip").status == 202
        bad = exporter.ask("/v1/usage", "POST", body=lines + b'{"feature": "a", "model": "api", "output_tokens": -1}')
        assert bad.status == 400
        assert json.loads(bad.body)["error"] == (
            "line 4: output_tokens: expected an integer from 0 to 10000000, found -1"
        )
        assert exporter.ask("/v1/usage", "POST", body=b" " * (2**20 + 1)).status == 413
        assert exporter.ask("/v1/usage", "POST", body=lines, Content_Encoding="br").status == 415
        assert exporter.ask("/v1/usage", "GET").status == 405
        page = exporter.until("six", lambda page: sum(labels(page, "feature_requests_total").values()) == 6)
        assert page["llmcost_usage_events_total{result=accepted}"] == 6


def test_a_token_bound_to_a_team_posts_for_that_team_alone(tmp_path: Path):
    config, token = tmp_path / "config.yml", tmp_path / "token"
    token.write_text("secret-of-docs\n")
    text = CONFIG.format(url="http://127.0.0.1:9").replace(
        "{settle: 3s}", f"{{tokens: [{{file: {token}, team: docs}}]}}"
    )
    config.write_text(text)
    one = json.dumps({"feature": "summary", "model": "api"}).encode()
    other = json.dumps({"feature": "summary", "model": "api", "team": "web"}).encode()
    with running(tmp_path, *serve(config)) as exporter:
        exporter.until("a beat", lambda page: UP in page)
        bearer = {"Authorization": "Bearer secret-of-docs"}
        assert exporter.ask("/v1/usage", "POST", body=one).status == 401
        assert exporter.ask("/v1/usage", "POST", body=one, Authorization="Bearer wrong").status == 401
        assert exporter.ask("/v1/usage", "POST", body=one, **bearer).status == 202
        assert exporter.ask("/v1/usage", "POST", body=other, **bearer).status == 403
        name = "llmcost_feature_requests_total{feature=summary,model=api,team=docs,tier=}"
        exporter.until("it on the page", lambda page: page.get(name) == 1)
        assert "secret" not in exporter.log.read_text()


def test_a_cascade_of_events_is_on_the_page(tmp_path: Path):
    config = tmp_path / "config.yml"
    config.write_text(
        CONFIG.format(url="http://127.0.0.1:9") + "cascades: [{name: support, tiers: [fast, balanced]}]\n"
    )
    small = {"feature": "support", "model": "served", "cascade": "support", "tier": "fast"}
    big = small | {"model": "api", "tier": "balanced", "escalated_from": "fast", "output_tokens": 10}
    with running(tmp_path, *serve(config)) as exporter:
        exporter.until("a beat", lambda page: UP in page)
        assert post(exporter, [small, small, small, big]).status == 202
        ratio = "llmcost_escalation_ratio{cascade=support,from_tier=fast,to_tier=balanced,window=5m}"
        page = exporter.until("the ratio", lambda page: ratio in page)
        assert page[ratio] == pytest.approx(1 / 3)
        assert page["llmcost_cascade_requests_total{cascade=support,tier=balanced}"] == 1
        (step,) = exporter.snapshot()["cascades"]
        assert (step["source"], step["escalation_ratio"]["5m"]) == ("events", pytest.approx(1 / 3))


def test_api_prices_by_name_are_looked_up_and_their_source_is_said(tmp_path: Path):
    config = tmp_path / "config.yml"
    text = CONFIG.format(url="http://127.0.0.1:9")
    models = "models: [{provider: openai, model: gpt-4o-mini}, {model: no-such-model}]"
    config.write_text(re.sub(r"models: \[\{model: api.*\]", models, text))
    with running(tmp_path, *serve(config)) as exporter:
        exporter.until("a beat", lambda page: UP in page)
        body = {"feature": "summary", "model": "gpt-4o-mini", "input_tokens": 10**6, "output_tokens": 10**6}
        ends = time.monotonic() + 20
        while (reply := post(exporter, body)).status == 503 and time.monotonic() < ends:
            time.sleep(0.1)
        assert reply.status == 202
        assert post(exporter, body | {"model": "no-such-model"}).status == 202
        page = exporter.until("both", lambda page: page.get("llmcost_unpriced_tokens_total{model=other}") == 2 * 10**6)
        assert page["llmcost_spend_usd_total{category=api,engine=,model=gpt-4o-mini,tier=}"] == 0.75
        assert "no-such-model is not in the price list" in exporter.ask("/").text
        assert exporter.process.poll() is None
        exporter.end(signal.SIGTERM)


CURL = """curl -sS http://localhost:9409/v1/usage --json"""


def test_the_readmes_client_in_python_works_word_for_word(tmp_path: Path):
    readme = (REPOSITORY / "README.md").read_text()
    snippet = readme.split("```python\n")[1].split("```")[0]
    config = tmp_path / "config.yml"
    config.write_text(CONFIG.format(url="http://127.0.0.1:9"))
    with running(tmp_path, *serve(config)) as exporter:
        exporter.until("a beat", lambda page: UP in page)
        code = snippet.replace("http://localhost:9409", f"http://127.0.0.1:{exporter.port}")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr
        exporter.until("it on the page", lambda page: labels(page, "feature_requests_total"))
    assert CURL in readme
