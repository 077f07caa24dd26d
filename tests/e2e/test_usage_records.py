"""What LiteLLM and an OpenTelemetry SDK post, on the real process: booked once, also over a crash, and on the page."""

import gzip
import json
import signal
import time
from pathlib import Path

import pytest

from tests.captured import as_json, litellm_records, spans
from tests.posting import labels
from tests.processes import Exporter, running

CONFIG = """\
interval: 200ms
engines: [{name: chat, url: "http://127.0.0.1:9", models: [tiny], addresses: ["127.0.0.1:8811"], tier: fast}]
prices:
  gpu: {usd_per_hour: 3600}
  api: {models: [{model: gpt-4o-mini, provider: openai, input_usd_per_million: 0.15, output_usd_per_million: 0.50}]}
usage: {litellm: {features: {other: rest}}}
"""
PROTOBUF = "application/x-protobuf"


def litellm(exporter: Exporter, at: float) -> dict[str, int]:
    lines = "\n".join(map(json.dumps, litellm_records(at)))
    reply = exporter.ask("/v1/usage/litellm", "POST", body=lines.encode(), Content_Type="application/json")
    assert reply.status == 202
    found: dict[str, int] = json.loads(reply.body)
    return found


def traces(exporter: Exporter, body: bytes, media: str, **headers: str) -> bytes:
    reply = exporter.ask("/v1/traces", "POST", body=body, Content_Type=media, **headers)
    assert reply.status == 200
    return reply.body


@pytest.mark.timeout(90)
def test_each_call_is_booked_once_also_over_a_crash(tmp_path: Path):
    config, at = tmp_path / "config.yml", time.time()
    config.write_text(CONFIG)
    serve = ("serve", f"--config.file={config}", f"--storage.path={tmp_path}/data", "--log.level=warn")
    body = spans(at).SerializeToString()
    with running(tmp_path, *serve) as exporter:
        exporter.until("a beat", lambda page: "llmcost_source_up{source=engine,target=chat}" in page)
        assert litellm(exporter, at) == {"accepted": 8, "duplicates": 0, "skipped": 4}
        assert traces(exporter, gzip.compress(body), PROTOBUF, Content_Encoding="gzip") == b""
        exporter.end(signal.SIGKILL)
    with running(tmp_path, *serve) as exporter:
        exporter.until("a beat", lambda page: "llmcost_source_up{source=engine,target=chat}" in page)
        assert litellm(exporter, at) == {"accepted": 0, "duplicates": 8, "skipped": 4}
        assert traces(exporter, json.dumps(as_json(spans(at))).encode(), "application/json") == b"{}"
        page = exporter.until("both", lambda page: page.get("llmcost_usage_events_total{result=duplicate}") == 12)
        assert page["llmcost_usage_events_total{result=accepted}"] == 12
        requests = {name: count for name, count in labels(page, "feature_requests_total").items() if count}
        assert requests == {
            f"llmcost_feature_requests_total{{{of}}}": count
            for of, count in {
                "feature=docs-app,model=tiny,team=,tier=fast": 4,
                "feature=summary,model=tiny,team=docs,tier=fast": 6,
                "feature=digest,model=tiny,team=docs,tier=fast": 1,
                "feature=rest,model=gpt-4o-mini,team=docs,tier=": 1,
            }.items()
        }
        assert page["llmcost_gateway_spend_usd_total{model=gpt-4o-mini}"] == pytest.approx(13.5e-6)
        assert page["llmcost_gateway_booked_spend_usd_total{model=gpt-4o-mini}"] == pytest.approx(11.5e-6)
        assert "LiteLLM says" in exporter.ask("/").body.decode()


def test_an_exporter_without_engines_takes_the_spend_of_apis(tmp_path: Path):
    config, token = tmp_path / "config.yml", tmp_path / "token"
    token.write_text("of-the-gateway")
    alone = CONFIG.replace(CONFIG.splitlines()[1], "engines: []\nbudgets: [{name: all, monthly_usd: 1}]")
    config.write_text(alone.replace("usage: {", f"usage: {{tokens: [{{file: {token}}}], "))
    serve = ("serve", f"--config.file={config}", f"--storage.path={tmp_path}/data")
    with running(tmp_path, *serve) as exporter:
        exporter.until("ready", lambda _: exporter.ask("/-/ready").status == 200)
        (record,) = (one for one in litellm_records(time.time()) if one["custom_llm_provider"] == "openai")
        headers = {"Content_Type": "application/json", "Authorization": "Bearer of-the-gateway"}
        assert exporter.ask("/v1/usage/litellm", "POST", json.dumps(record).encode(), **headers).status == 202
        spent = "llmcost_budget_spent_usd{budget=all,period=month}"
        page = exporter.until("it is in the budget", lambda page: page.get(spent, 0) > 0)
        assert page[spent] == pytest.approx(10 * 0.15e-6 + 20 * 0.50e-6)
        assert exporter.ask("/").status == 200
        assert exporter.end() == 0
        assert "Traceback" not in exporter.log.read_text()
