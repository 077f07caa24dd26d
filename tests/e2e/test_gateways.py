"""The cap behind real gateways, configured as docs/budgets.md says: shut when the money is spent, open by override."""

import contextlib
import http.client
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from exporter.config.load import parse
from tests.processes import REPOSITORY, Exporter, Reply, free_port, replayed, running
from tests.programs import program

NOWHERE = "http://127.0.0.1:9"
DOCS = REPOSITORY / "docs/budgets.md"
CONFIG = """\
interval: 200ms
engines: [{{name: chat, url: "{url}"}}]
prices: {{gpu: {{usd_per_hour: 3600}}}}
budgets: [{{name: inference, monthly_usd: {usd}, hard_cap: true, cap: {{exempt_features: [vip]}}}}]
"""
UNASKED = "        error_page 502 504 = @unasked;  # the exporter is gone: let everybody in\n"
NGINX = """\
{user}
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
{server}
}}
"""


def documented(language: str, having: str) -> str:
    """The block of the docs in a language that has a word."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (found,) = [block for block in blocks if having in block]
    return str(found)


def placed(config: str, *, exporter: int, engine: int, front: int) -> str:
    """A documented config with the ports of a test."""
    for documented_port, port in ((9409, exporter), (8000, engine), (8080, front)):
        assert re.search(rf"\b{documented_port}\b", config)
        config = re.sub(rf"\b{documented_port}\b", str(port), config)
    return config


class Engine(http.server.BaseHTTPRequestHandler):
    """Whatever is asked, it completes."""

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = json.dumps({"object": "chat.completion", "authorization": self.headers.get("Authorization")}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = answer  # noqa: N815 - what the library looks for

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def engine() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


@contextlib.contextmanager
def gateway(command: list[str], port: int, log: Path) -> Iterator[None]:
    """Run a gateway until its port is open, and end it."""
    with log.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        try:
            wait(lambda: status_of(port) != 0 or process.poll() is not None, "the gateway's port")
            assert process.poll() is None, log.read_text()
            yield
        finally:
            process.send_signal(signal.SIGTERM)


@contextlib.contextmanager
def nginx(folder: Path, server: str, port: int) -> Iterator[None]:
    folder.mkdir()
    config = folder / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""  # whom the test's folder belongs to
    config.write_text(NGINX.format(user=user, folder=folder, server=server))
    with gateway([program("nginx"), "-c", str(config), "-e", str(folder / "error.log")], port, folder / "log"):
        yield


def ask(port: int, path: str = "/v1/chat/completions", method: str = "POST", body: bytes = b"{}", **more: str) -> Reply:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, body=body, headers={name.replace("_", "-"): text for name, text in more.items()})
    response = connection.getresponse()
    reply = Reply(response.status, {key.lower(): value for key, value in response.getheaders()}, response.read())
    connection.close()
    return reply


def status_of(port: int) -> int:
    try:
        return ask(port).status
    except OSError:
        return 0


def wait(condition: Callable[[], bool], what: str, seconds: float = 20) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, f"{what}: not within {seconds} s"
        time.sleep(0.05)


def override(exporter: Exporter, **wanted: object) -> Reply:
    return ask(exporter.port, "/v1/budgets/inference/override", body=json.dumps(wanted).encode())


@contextlib.contextmanager
def serving(folder: Path, port: int, usd: int = 6, url: str = NOWHERE) -> Iterator[Exporter]:
    """An exporter that spends a dollar a second of a few."""
    config = folder / "config.yml"
    config.write_text(CONFIG.format(usd=usd, url=url))
    arguments = ("serve", f"--config.file={config}", f"--storage.path={folder}/ledger")
    with running(folder, *arguments, port=port) as exporter:
        yield exporter


def test_the_docs_show_configs_that_can_be_read():
    for having in ("cap: {mode", "budget_api:"):
        shown = documented("yaml", having)
        parse(f'engines: [{{url: "{NOWHERE}"}}]\nprices: {{gpu: {{usd_per_hour: 1}}}}\n{shown}'.encode(), "docs")
    traefik = yaml.safe_load(documented("yaml", "forwardAuth"))["http"]
    address = traefik["middlewares"]["budget"]["forwardAuth"]["address"]
    assert urlsplit(address)[2:4] == ("/v1/budgets/check", "team=docs")
    assert set(traefik["routers"]["chat"]["middlewares"]) == set(traefik["middlewares"])


def test_nginx_lets_in_until_the_money_is_spent_and_again_by_override(tmp_path: Path, engine: int):
    front, back = free_port(), free_port()
    server = placed(documented("nginx", "auth_request"), exporter=back, engine=engine, front=front)
    with (
        replayed(tmp_path, "--skip=165s") as url,
        nginx(tmp_path / "nginx", server, front),
        serving(tmp_path, back, url=url) as exporter,
    ):
        reply = ask(front, body=b"x" * 100_000, Authorization="Bearer the-clients-own")
        assert (reply.status, json.loads(reply.body)["authorization"]) == (200, "Bearer the-clients-own")
        wait(lambda: status_of(front) == 403, "the cap closes")
        reply = ask(front, body=b"x" * 100_000)
        assert (reply.status, json.loads(reply.body)["error"]["type"]) == (403, "budget_exceeded")
        assert int(reply.headers["retry-after"]) > 0
        assert ask(front, "/v1/models", "GET", x_llm_feature="chat").status == 403
        assert ask(front, "/v1/models", "GET", x_llm_feature="vip").status == 200
        assert ask(front, "/_budget").status == 404  # nobody but nginx asks through nginx
        done = override(exporter, amount_usd="5", **{"for": "1h"}, reason="the demo")
        assert done.status == 200, done.text
        assert status_of(front) == 200
        wait(lambda: status_of(front) == 403, "the override is spent")
        assert override(exporter, amount_usd=1000, **{"for": "2s"}).status == 200
        assert status_of(front) == 200
        wait(lambda: status_of(front) == 403, "the override is over")
        assert override(exporter, amount_usd=1000, **{"for": "1h"}).status == 200
        assert status_of(front) == 200
        assert override(exporter, amount_usd=0).status == 200
        assert status_of(front) == 403
        denied = "llmcost_budget_denied_total{budget=inference,mode=enforce}"
        exporter.until("denials are counted", lambda page: page.get(denied, 0) >= 5)


@pytest.mark.parametrize(("open_then", "status"), [(True, 200), (False, 500)])
def test_nginx_decides_itself_when_the_exporter_is_gone(tmp_path: Path, engine: int, open_then: bool, status: int):
    front, back = free_port(), free_port()
    server = placed(documented("nginx", "auth_request"), exporter=back, engine=engine, front=front)
    assert UNASKED in server
    with nginx(tmp_path / "nginx", server if open_then else server.replace(UNASKED, ""), front):
        assert status_of(front) == status
        with serving(tmp_path, back, usd=10**6) as exporter:
            assert status_of(front) == 200
            exporter.end(signal.SIGKILL)
            assert status_of(front) == status


def test_an_override_outlives_a_crash_and_holds_from_the_first_request_on(tmp_path: Path):
    port = free_port()
    with serving(tmp_path, port, usd=1) as exporter:
        wait(lambda: exporter.ask("/v1/budgets/check").status == 402, "the cap closes")
        assert override(exporter, amount_usd="1000", **{"for": "1h"}, reason="break glass").status == 200
        exporter.end(signal.SIGKILL)
    with serving(tmp_path, port, usd=1) as exporter:
        assert exporter.ask("/v1/budgets/check").status == 200
        (budget,) = json.loads(exporter.ask("/v1/budgets").body)["budgets"]
        assert (budget["override"]["amount_usd"], budget["override"]["reason"]) == (1000, "break glass")
        assert "1000 USD more until" in exporter.ask("/").text
        assert override(exporter, amount_usd=0).status == 200
        assert exporter.ask("/v1/budgets/check").status == 402
        exporter.end(signal.SIGKILL)
    with serving(tmp_path, port, usd=1) as exporter:
        assert exporter.ask("/v1/budgets/check").status == 402  # before a beat, by what the ledger holds


def test_a_token_is_taken_from_its_file_and_a_changed_one_soon(tmp_path: Path):
    token = tmp_path / "token"
    token.write_text("first\n")
    config = tmp_path / "config.yml"
    config.write_text(CONFIG.format(usd=10**6, url=NOWHERE) + f"budget_api: {{token_file: {token}}}\n")
    with running(tmp_path, "serve", f"--config.file={config}") as exporter:

        def status(given: str) -> int:
            return exporter.ask("/v1/budgets/check", Authorization=f"Bearer {given}").status

        assert (status("first"), status("second"), exporter.ask("/v1/budgets/check").status) == (200, 401, 401)
        token.write_text("second\n")
        wait(lambda: status("second") == 200, "the changed token")
        assert status("first") == 401
        token.unlink()
        bad = "llmcost_config_last_reload_successful{}"
        exporter.until("the lost token is told", lambda page: page[bad] == 0)
        assert status("second") == 200
        assert "second" not in exporter.log.read_text()
        assert str(token) not in exporter.log.read_text()


@pytest.mark.envoy
def test_envoy_asks_for_each_request_and_passes_denials_on(tmp_path: Path, engine: int):
    """Its requests, as they were recorded, are in test_cap_http.py for every run."""
    envoy = shutil.which("envoy", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert envoy, "envoy is not installed; `make test-envoy` installs it"
    front, back = free_port(), free_port()
    config = tmp_path / "envoy.yaml"
    config.write_text(placed(documented("yaml", "ext_authz"), exporter=back, engine=engine, front=front))
    command = [envoy, "-c", str(config), "--base-id", str(front), "--log-level", "warn"]
    with serving(tmp_path, back, usd=8) as exporter, gateway(command, front, tmp_path / "envoy.log"):
        reply = ask(front, Authorization="Bearer the-clients-own")
        assert (reply.status, json.loads(reply.body)["authorization"]) == (200, "Bearer the-clients-own")
        wait(lambda: status_of(front) == 402, "the cap closes")
        reply = ask(front, "/v1/chat/completions?feature=vip&deny_status=400")
        assert (reply.status, json.loads(reply.body)["budget"]) == (402, "inference")
        assert int(reply.headers["retry-after"]) > 0
        assert ask(front, x_llm_feature="vip").status == 200
        assert ask(front, "/../inference/override", body=b'{"amount_usd": 1000, "for": "1h"}').status in (400, 402)
        assert override(exporter, amount_usd=1000, **{"for": "1h"}).status == 200
        assert status_of(front) == 200
        exporter.end(signal.SIGKILL)
        assert status_of(front) == 200
