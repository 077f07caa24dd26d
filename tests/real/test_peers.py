"""A real LiteLLM and a real OpenTelemetry SDK in front of a real vLLM: every call is booked once, whatever is lost.

Between them and the exporter is a line that takes what is sent and loses some answers, so that they send it again.
"""

import http.client
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import HERE, Exporter, Page, Vllm, free_port, started, wait_for

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

CACHE = Path(os.environ.get("REAL_PEERS_CACHE", Path.home() / ".cache/real-peers"))
PEERS = {
    "litellm": ("litellm[proxy]==1.86.0",),  # 1.107.0 is known to be compromised
    "opentelemetry": (
        "opentelemetry-sdk==1.45.2",
        "opentelemetry-exporter-otlp-proto-http==1.45.2",
        "opentelemetry-instrumentation-openai-v2==2.4b0",
        "opentelemetry-util-genai==1.0b0",
        "opentelemetry-processor-baggage==0.66b1",
        "openai==3.57.0",
        "httpx<1",
        "wrapt<2",
    ),
}
TOKEN = "the-token-of-both"
ROOT = HERE.parent.parent
OURS, ITS_OWN = "# {} of the proxy", "# {} of the proxy with its own callback"  # as our documentation has them
CONFIG = """\
interval: 1s
engines: [{{name: chat, url: "{url}", models: [tiny], gpus: 1}}]
prices:
  gpu: {{usd_per_hour: 0.80}}
  api: {{models: [{{model: gpt-4o-mini, provider: openai, input_usd_per_million: 0.15, output_usd_per_million: 0.60}}]}}
usage: {{settle: 30s, tokens: [{{file: {token}}}]}}
"""
FEATURE_REQUESTS = "llmcost_feature_requests_total"


def binary(peer: str, name: str) -> str:
    """A program of a peer, which is installed where it is missing."""
    folder = CACHE / peer
    done = folder / ".done"
    wanted = "\n".join(PEERS[peer])
    if not done.exists() or done.read_text(encoding="utf-8") != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *PEERS[peer]], check=True)
        done.write_text(wanted, encoding="utf-8")
    return str(folder / "bin" / name)


class Line(ThreadingHTTPServer):
    """Hands requests on to the exporter. Of answers it loses every third; while nobody is there it hangs up."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.port, self.bodies, self.lost = port, 0, 0
        self.lock = threading.Lock()

    def next_is_lost(self) -> bool:
        with self.lock:
            self.bodies += 1
            lost = self.bodies % 3 == 1
            self.lost += lost
            return lost


class _Handler(BaseHTTPRequestHandler):
    server: Line

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            with closing(http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=30)) as to:
                to.request("POST", self.path, body, dict(self.headers))
                reply = to.getresponse()
                content = reply.read()
        except OSError:
            self.close_connection = True
            return
        if reply.status < 300 and self.server.next_is_lost():
            self.close_connection = True
            return
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.headers["Content-Type"])
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def line_to(exporter: Exporter) -> Iterator[Line]:
    line = Line(int(exporter.url.rpartition(":")[2]))
    thread = threading.Thread(target=line.serve_forever)
    thread.start()
    try:
        yield line
    finally:
        line.shutdown()
        thread.join()
        line.server_close()


@pytest.fixture
def metering(vllm: Vllm, tmp_path: Path) -> Exporter:
    """An exporter that asks for a token, not started."""
    token = tmp_path / "token"
    token.write_text(TOKEN)
    return Exporter(vllm.url, tmp_path, CONFIG.format(url=vllm.url, token=token))


def written(page: str, title: str) -> str:
    """A block of our documentation, as it stands there but for where the exporter and the token are."""
    text = (ROOT / f"docs/{page}.md").read_text(encoding="utf-8")
    found = re.search(rf"```(?:yaml)?\n{re.escape(title)}\n(.+?)```", text, re.DOTALL)
    assert found, title
    return found[1]


def environment(page: str, title: str, line: Line, folder: Path) -> dict[str, str]:
    """An environment of our documentation, as `docker run --env-file` and systemd read it: all behind the = counts."""
    block = written(page, title).replace("http://llm-cost-exporter:9409", f"http://127.0.0.1:{line.server_port}")
    block = block.replace("/etc/llm-cost/token", str(folder / "token")).replace("TOKEN\n", f"{TOKEN}\n")
    return dict(one.split("=", 1) for one in block.splitlines())


def proxy_config(how: str, line: Line, vllm: Vllm) -> dict[str, Any]:
    """The config of our documentation, with models behind it."""
    config: dict[str, Any] = yaml.safe_load(written("litellm", how.format("config.yaml")))
    if how == ITS_OWN:
        settings = config["callback_settings"]["llm_cost"]
        assert settings["endpoint"].endswith("/v1/usage/litellm")
        settings["endpoint"] = f"http://127.0.0.1:{line.server_port}/v1/usage/litellm"
    config["general_settings"]["custom_auth"] = "litellm_auth.user_api_key_auth"
    hosted = {"model": "hosted_vllm/tiny", "api_base": f"{vllm.url}/v1", "api_key": "none"}
    behind_an_api = {"model": "openai/gpt-4o-mini", "mock_response": "Hello there.", "api_key": "none"}
    config["model_list"] = [
        {"model_name": "chat", "litellm_params": hosted},
        {"model_name": "api", "litellm_params": behind_an_api},
    ]
    return config


@contextmanager
def litellm_proxy(how: str, folder: Path, line: Line, vllm: Vllm) -> Iterator[str]:
    config = proxy_config(how, line, vllm)
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    for file in (HERE / "peers/litellm_auth.py", ROOT / "deploy/litellm/llm_cost_callback.py"):
        (folder / file.name).write_bytes(file.read_bytes())
    port = free_port()
    command = [binary("litellm", "litellm"), "--config", str(folder / "config.yaml"), "--host", "127.0.0.1"]
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (environment("litellm", how.format("environment"), line, folder) | quiet).items():
            patch.setenv(name, value)
        url = f"http://127.0.0.1:{port}"
        log = folder / "litellm.log"
        process = started([*command, "--port", str(port)], f"{url}/health/liveliness", log, seconds=120)
    try:
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)


def ask(proxy: str, path: str, key: str, body: dict[str, Any]) -> int:
    """Make one call, to the end of its answer; returns its status."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer sk-{key}"}
    request = urllib.request.Request(f"{proxy}{path}", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as reply:
            reply.read()
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


def call(proxy: str, number: int) -> int:
    """One of several kinds of calls; each says something else, so that nobody's cache answers."""
    messages = [{"role": "user", "content": f"call {number}"}]
    chat = {"model": "chat", "messages": messages, "max_tokens": 3 + number % 4}
    kinds: list[tuple[str, str, dict[str, Any]]] = [
        ("/v1/chat/completions", "summary", chat),
        ("/v1/chat/completions", "summary", {**chat, "stream": True}),
        ("/v1/chat/completions", "nobody", {**chat, "metadata": {"tags": ["x", "feature:search"]}, "no-log": True}),
        ("/v1/completions", "summary", {"model": "chat", "prompt": f"call {number}", "max_tokens": 4}),
        ("/v1/chat/completions", "api-user", {**chat, "model": "api"}),
        ("/v1/chat/completions", "summary", {**chat, "max_tokens": 10**6}),  # the server refuses it
    ]
    path, key, body = kinds[number % len(kinds)]
    return ask(proxy, path, key, body)


def engine_tokens(before: Page, after: Page) -> tuple[float, float]:
    prompt, output = (
        after.total(name) - before.total(name) for name in ("vllm:prompt_tokens_total", "vllm:generation_tokens_total")
    )
    return prompt, output


def events(page: Page, result: str) -> float:
    return page.total("llmcost_usage_events_total", result=result)


def accepted(exporter: Exporter, count: int) -> Page:
    """The first page on which so many calls are booked."""

    def found() -> Page | None:
        page = exporter.page()
        return page if events(page, "accepted") + events(page, "late") >= count else None

    return wait_for(f"{count} calls are booked", found, seconds=120)


@pytest.mark.parametrize("how", [OURS, ITS_OWN])
def test_every_call_of_a_real_litellm_is_booked_once(
    how: str, vllm: Vllm, metering: Exporter, tmp_path: Path, measured: Callable[..., None]
) -> None:
    """Retries included; with our callback also while nobody takes records, and no client waits for that."""
    before = vllm.idle_page()
    with metering, line_to(metering) as line, litellm_proxy(how, tmp_path, line, vllm) as proxy:
        with ThreadPoolExecutor(4) as clients:
            statuses = list(clients.map(lambda number: call(proxy, number), range(60)))
        page = accepted(metering, 50)
        if how == OURS:
            metering.__exit__()
        with ThreadPoolExecutor(4) as clients:
            statuses += clients.map(lambda number: call(proxy, number), range(60, 120))
        if how == OURS:
            metering.__enter__()
        page = accepted(metering, 100)
        wait_for("an answer was lost, and came again", lambda: events(metering.page(), "duplicate") or None)
        page = metering.page()
    assert {status: statuses.count(status) for status in set(statuses)} == {200: 100, 400: 20}
    measured(
        calls=len(statuses),
        bodies=line.bodies,
        answers_lost=line.lost,
        duplicates=events(page, "duplicate"),
        litellm_usd=page.total("llmcost_gateway_spend_usd_total"),
        booked_usd=page.total("llmcost_gateway_booked_spend_usd_total"),
    )
    assert events(page, "accepted") + events(page, "late") == 100
    assert (events(page, "rejected"), events(page, "conflict")) == (0, 0)
    by_feature = {
        name: page.total(FEATURE_REQUESTS, feature=name, team="docs") for name in ("summary", "search", "api-user")
    }
    assert by_feature == {"summary": 60, "search": 20, "api-user": 20}
    claimed = tuple(page.total(f"llmcost_feature_{kind}_tokens_total", model="tiny") for kind in ("prompt", "output"))
    assert claimed == engine_tokens(before, vllm.idle_page())
    assert page.total("llmcost_gateway_spend_usd_total") == page.total("llmcost_gateway_booked_spend_usd_total") > 0


def test_clients_with_a_limit_wait_for_no_exporter(vllm: Vllm, metering: Exporter, tmp_path: Path) -> None:
    """LiteLLM gives a slot of `max_parallel_requests` back behind its callbacks: tries of a post hold it."""
    vllm.idle_page()
    with line_to(metering) as line, litellm_proxy(OURS, tmp_path, line, vllm) as proxy:
        body = {"model": "chat", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
        statuses = []
        for _ in range(12):
            statuses.append(ask(proxy, "/v1/chat/completions", "two-at-once", body))
            time.sleep(0.2)  # in which LiteLLM itself gives it back
        assert statuses == [200] * 12
        with metering:
            accepted(metering, 12)


def test_every_call_of_a_real_sdk_is_booked_once(
    vllm: Vllm, metering: Exporter, tmp_path: Path, measured: Callable[..., None]
) -> None:
    before = vllm.idle_page()
    with metering, line_to(metering) as line:
        told = environment("opentelemetry", "# environment of the application", line, tmp_path)
        app = [binary("opentelemetry", "python"), str(HERE / "peers/traced_app.py"), vllm.url, "40"]
        done = subprocess.run(app, env={**os.environ, **told}, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        billed = json.loads(done.stdout)
        page = accepted(metering, billed["calls"])
    measured(billed=billed, bodies=line.bodies, answers_lost=line.lost, duplicates=events(page, "duplicate"))
    assert (billed["calls"], billed["failed"]) == (40, 1)
    assert events(page, "accepted") + events(page, "late") == 40
    assert events(page, "duplicate") > 0, "no answer was lost"
    assert (events(page, "rejected"), events(page, "conflict")) == (0, 0)
    assert {name: page.total(FEATURE_REQUESTS, feature=name) for name in ("search", "summary", "app")} == {
        "search": 20, "summary": 20, "app": 0,
    }  # fmt: skip
    claimed = tuple(page.total(f"llmcost_feature_{kind}_tokens_total", model="tiny") for kind in ("prompt", "output"))
    assert claimed == (billed["prompt_tokens"], billed["completion_tokens"])
    assert claimed == engine_tokens(before, vllm.idle_page())
