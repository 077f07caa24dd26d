"""The exporter as its users run it: a process beside an engine."""

import gzip
import http.client
import json
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from base64 import b64encode
from pathlib import Path

import bcrypt
import pytest

from tests.certificates import make_certificate
from tests.processes import REPOSITORY, Exporter, free_port, replayed, running, samples, wait_until_ready

CONFIG = """\
interval: 200ms
engines:
  - {{name: chat, url: "{url}", tier: fast}}
prices:
  gpu: {{usd_per_hour: {price}}}
"""
SPENT = "llmcost_spend_usd_total{category=compute_busy,engine=chat,model=tiny-llama,tier=fast}"


def flags(url: str) -> tuple[str, ...]:
    return f"--engine.url={url}", "--gpu.usd-per-hour=0.80", "--gpu.count=1", "--interval=200ms"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_flags_alone_give_cost_tokens_queue_and_ttft_of_a_moving_engine(tmp_path: Path):
    with replayed(tmp_path, "--skip=165s", "--speed=10") as url, running(tmp_path, "serve", *flags(url)) as exporter:
        name = "llmcost_usd_per_million_tokens{engine=default,tokens=output,window=5m}"
        page = exporter.until("a cost per million tokens", lambda page: name in page)
        assert page[name] > 0
        assert page["llmcost_output_tokens_total{engine=default,model=tiny-llama,tier=}"] >= 1000
        page = exporter.until(
            "a queue", lambda page: page.get("llmcost_requests_waiting{engine=default,model=tiny-llama}", 0) > 10
        )
        assert page["llmcost_ttft_p95_seconds{engine=default,window=5m}"] > 0.5
        assert page["process_resident_memory_bytes{}"] > 0
        assert exporter.end() == 0


def test_a_killed_engine_that_comes_back_is_counted_once_and_no_counter_falls(tmp_path: Path):
    """From idle, past the kill, to the end of the recording, twenty times as fast as it was."""
    with (
        replayed(tmp_path, "--skip=300s", "--speed=20", "--loop=off") as url,
        running(tmp_path, "serve", *flags(url)[:3], "--interval=100ms") as exporter,
    ):
        last: dict[str, float] = {}
        output = "llmcost_output_tokens_total{engine=default,model=tiny-llama,tier=}"

        def over(page: dict[str, float]) -> bool:
            fell = {name: (last[name], page.get(name)) for name in last if page.get(name, -1) < last[name]}
            assert not fell
            last.update({name: value for name, value in page.items() if is_counter(name)})
            return page.get("llmcost_source_up{source=engine,target=default}") == 0 and page.get(output, 0) > 30_000

        page = exporter.until("the end of the recording", over, seconds=40)
    assert page[output] == (83470 - 74710) + 30877
    assert page["llmcost_cold_starts_total{engine=default}"] == 1
    spent = {name: value for name, value in page.items() if name.startswith("llmcost_spend_usd_total")}
    assert spent["llmcost_spend_usd_total{category=compute_down,engine=default,model=tiny-llama,tier=}"] > 0
    assert spent["llmcost_spend_usd_total{category=compute_loading,engine=default,model=tiny-llama,tier=}"] > 0


def is_counter(name: str) -> bool:
    return name.split("{", maxsplit=1)[0].endswith(("_total", "_bucket", "_count", "_sum"))


def test_a_changed_file_is_reloaded_and_a_bad_one_leaves_the_old_config_in_force(tmp_path: Path):
    with replayed(tmp_path, "--skip=165s") as url:
        config = write(tmp_path / "config.yml", CONFIG.format(url=url, price="0.80"))
        with running(tmp_path, "serve", f"--config.file={config}") as exporter:
            exporter.until("the first price", price_is(0.8))
            write(config, CONFIG.format(url=url, price="1.60"))
            page = exporter.until("the changed file", price_is(1.6))
            before = page["llmcost_config_last_reload_success_timestamp_seconds{}"]
            write(config, "engines: [oops")
            page = exporter.until("the bad file", lambda page: page["llmcost_config_last_reload_successful{}"] == 0)
            assert price_is(1.6)(page)
            assert page["llmcost_config_last_reload_success_timestamp_seconds{}"] == before
            assert "expected YAML" in exporter.ask("/").text
            assert exporter.ask("/-/reload", "POST").status == 500
            write(config, CONFIG.format(url=url, price="2.40"))
            assert exporter.ask("/-/reload", "POST").status == 200
            page = exporter.until("the reload by POST", price_is(2.4))
            assert page["llmcost_config_last_reload_successful{}"] == 1
            assert exporter.ask("/-/reload").status == 405
            assert exporter.end(signal.SIGINT) == 0


def test_a_swapped_symlink_and_a_hangup_signal_reload(tmp_path: Path):
    first = write(tmp_path / "one.yml", CONFIG.format(url="http://127.0.0.1:9", price="0.80"))
    second = write(tmp_path / "two.yml", CONFIG.format(url="http://127.0.0.1:9", price="1.60"))
    link = tmp_path / "config.yml"
    link.symlink_to(first)
    with running(tmp_path, "serve", f"--config.file={link}") as exporter:
        exporter.until("the first price", price_is(0.8))
        (tmp_path / "next").symlink_to(second)
        (tmp_path / "next").replace(link)
        exporter.until("the swapped symlink", price_is(1.6))
        write(second, CONFIG.format(url="http://127.0.0.1:9", price="2.40"))
        exporter.process.send_signal(signal.SIGHUP)
        exporter.until("the signal", price_is(2.4))


def price_is(usd: float):
    return lambda page: page.get("llmcost_spend_usd_per_hour{engine=chat}") == pytest.approx(usd)


def test_an_engine_that_is_taken_out_keeps_its_counters_and_loses_its_gauges(tmp_path: Path):
    with replayed(tmp_path, "--skip=165s", "--speed=5") as url:
        text = CONFIG.format(url=url, price="0.80")
        config = write(tmp_path / "config.yml", text)
        with running(tmp_path, "serve", f"--config.file={config}") as exporter:
            exporter.until("spend", lambda page: page.get(SPENT, 0) > 0)
            write(config, text.replace("chat", "other"))
            assert exporter.ask("/-/reload", "POST").status == 200
            other = SPENT.replace("chat", "other")
            page = exporter.until("the other engine", lambda page: page.get(other, 0) > 0)
            assert page[SPENT] > 0
            assert "llmcost_spend_usd_per_hour{engine=chat}" not in page


@pytest.mark.parametrize("path", ["/", "/metrics", "/-/healthy", "/-/ready", "/v1/snapshot"])
def test_every_route_answers_before_any_engine_does(tmp_path: Path, path: str):
    with running(tmp_path, "serve", *flags("http://127.0.0.1:9")) as exporter:
        reply = exporter.ask(path)
        assert reply.status == 200
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert exporter.ask(path, "DELETE").status == 405
        assert exporter.ask("/nothing").status == 404


def test_the_page_is_compressed_for_who_asks(tmp_path: Path):
    with running(tmp_path, "serve", *flags("http://127.0.0.1:9")) as exporter:
        plain = exporter.ask("/metrics")
        packed = exporter.ask("/metrics", Accept_Encoding="gzip")
        assert plain.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert "content-encoding" not in plain.headers
        assert packed.headers["content-encoding"] == "gzip"
        assert samples(gzip.decompress(packed.body).decode()).keys() == samples(plain.text).keys()


def test_the_snapshot_tells_exact_integers(tmp_path: Path):
    with replayed(tmp_path, "--skip=165s", "--speed=5") as url, running(tmp_path, "serve", *flags(url)) as exporter:
        exporter.until("spend", lambda page: page.get(SPENT.replace("chat", "default").replace("fast", ""), 0) > 0)
        found = exporter.snapshot()
        engine = found["engines"][0]
        assert (engine["name"], engine["kind"], engine["state"], engine["model"]) == (
            "default",
            "vllm",
            "up",
            "tiny-llama",
        )
        spent = [total for total in found["totals"] if total["kind"] == "spend" and total["amount"]]
        assert spent
        assert all(isinstance(total["amount"], int) for total in found["totals"])
        assert engine["signals"]["queue_depth"]["up"] == 10


def test_a_sidecar_takes_no_usage_and_names_the_hub(tmp_path: Path):
    text = CONFIG.format(url="http://127.0.0.1:9", price="0.80")
    storage = "  storage: {weights_gb: 14, usd_per_gb_month: 0.023}\n"
    config = write(tmp_path / "config.yml", f"role: sidecar\nhub_url: http://hub:9409\n{text}{storage}")
    with running(tmp_path, "serve", f"--config.file={config}") as exporter:
        exporter.until(
            "a charge", lambda page: any("compute_loading" in name and value for name, value in page.items())
        )
        reply = exporter.ask("/v1/usage", "POST")
        assert reply.status == 421
        assert "http://hub:9409/v1/usage" in json.loads(reply.body)["error"]
        assert not any("category=storage" in name for name in exporter.metrics())
        assert exporter.metrics()["llmcost_build_info{role=sidecar,version=0.1.0}"] == 1


def test_a_broken_config_ends_with_one_line_a_problem(tmp_path: Path):
    config = write(tmp_path / "config.yml", "engines: []\nintervall: 5s\n")
    done = serve_once(f"--config.file={config}")
    assert done.returncode == 2
    errors = [line for line in done.stderr.decode().splitlines() if line.startswith(str(config))]
    assert len(errors) == 2
    assert "Traceback" not in done.stderr.decode()


def test_a_missing_config_is_named(tmp_path: Path):
    done = serve_once(f"--config.file={tmp_path}/nothing.yml")
    assert done.returncode == 2
    assert "nothing.yml: expected a readable file" in done.stderr.decode()


def test_a_taken_port_is_named(tmp_path: Path):
    with running(tmp_path, "serve", *flags("http://127.0.0.1:9")) as exporter:
        done = serve_once(*flags("http://127.0.0.1:9"), f"--web.listen-address=127.0.0.1:{exporter.port}")
        assert done.returncode == 1
        last = done.stderr.decode().splitlines()[-1]
        assert last.startswith(f"cannot listen on 127.0.0.1:{exporter.port}: ")
        assert "Traceback" not in done.stderr.decode()


def serve_once(*arguments: str) -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, "-m", "exporter", "serve", *arguments]
    return subprocess.run(command, capture_output=True, cwd=REPOSITORY, timeout=30, check=False)


# Beside an engine the exporter must not harm it: with --on-fatal=degrade the process stays, and the probe stays green.


def stays_up(exporter: Exporter) -> None:
    assert exporter.ask("/-/ready").status == 200
    assert exporter.ask("/-/healthy").status == 200
    assert exporter.process.poll() is None


def test_no_harm_with_a_broken_config_and_it_recovers_when_the_file_is_mended(tmp_path: Path):
    config = write(tmp_path / "config.yml", "engines: []\n")
    serve = ("serve", f"--config.file={config}", "--on-fatal=degrade")
    with replayed(tmp_path, "--skip=165s") as url, running(tmp_path, *serve) as exporter:
        stays_up(exporter)
        page = exporter.metrics()
        assert page["llmcost_config_last_reload_successful{}"] == 0
        assert "llmcost_config_last_reload_success_timestamp_seconds{}" not in page
        assert "expected at least one engine" in exporter.ask("/").text
        write(config, CONFIG.format(url=url, price="0.80"))
        exporter.until("the mended file", lambda page: page.get("llmcost_source_up{source=engine,target=chat}") == 1)
        stays_up(exporter)


def test_no_harm_with_a_missing_config(tmp_path: Path):
    with running(tmp_path, "serve", f"--config.file={tmp_path}/none.yml", "--on-fatal=degrade") as exporter:
        stays_up(exporter)


def test_no_harm_when_the_engine_is_gone(tmp_path: Path):
    with running(tmp_path, "serve", *flags("http://127.0.0.1:9"), "--on-fatal=degrade") as exporter:
        refused = "llmcost_source_errors_total{reason=refused,source=engine,target=default}"
        exporter.until("failed reads", lambda page: page.get(refused, 0) >= 3)
        stays_up(exporter)


def test_no_harm_when_the_port_is_taken_and_it_answers_once_it_is_free(tmp_path: Path):
    with running(tmp_path, "serve", *flags("http://127.0.0.1:9")) as first:
        degrade = (*flags("http://127.0.0.1:9"), "--on-fatal=degrade")
        with running(tmp_path, "serve", *degrade, f"--web.listen-address=127.0.0.1:{first.port}") as second:
            # It answers on its other address already, and keeps trying this one.
            assert second.process.poll() is None
            assert first.end() == 0
            freed = Exporter(second.process, first.port, second.log)
            wait_until_ready(freed)
            stays_up(freed)


def test_no_harm_with_a_broken_web_config_which_opens_nothing_but_the_probes(tmp_path: Path):
    web = write(tmp_path / "web.yml", "basic_auth_users: {alice: not-a-hash}\n")
    arguments = (*flags("http://127.0.0.1:9"), f"--web.config.file={web}")
    assert serve_once(*arguments).returncode == 2
    with running(tmp_path, "serve", *arguments, "--on-fatal=degrade") as exporter:
        stays_up(exporter)
        assert exporter.ask("/metrics").status == 503
        assert exporter.ask("/v1/snapshot").status == 503
        assert exporter.ask("/").status == 503


def test_basic_auth_opens_to_the_right_password_only(tmp_path: Path):
    hashed = bcrypt.hashpw(b"correct horse", bcrypt.gensalt(rounds=4)).decode().replace("$2b$", "$2y$")
    web = write(tmp_path / "web.yml", f"basic_auth_users:\n  alice: {hashed}\n")
    with running(tmp_path, "serve", *flags("http://127.0.0.1:9"), f"--web.config.file={web}") as exporter:

        def status(credentials: str) -> int:
            return exporter.ask("/metrics", Authorization="Basic " + b64encode(credentials.encode()).decode()).status

        assert exporter.ask("/metrics").status == 401
        assert exporter.ask("/metrics").headers["www-authenticate"] == "Basic"
        assert [status(text) for text in ("alice:wrong", "bob:correct horse", "alice", "")] == [401] * 4
        assert [status("alice:correct horse") for _ in range(3)] == [200] * 3
        assert exporter.ask("/metrics", Authorization="Basic ???").status == 401
        assert exporter.ask("/metrics", Authorization="Basic \xe9").status == 401
        assert exporter.ask("/-/reload", "POST").status == 401
        stays_up(exporter)
        again = bcrypt.hashpw(b"changed", bcrypt.gensalt(rounds=4)).decode()
        write(web, f"basic_auth_users:\n  alice: {again}\n")
        exporter.process.send_signal(signal.SIGHUP)
        for _ in range(100):
            if status("alice:changed") == 200:
                break
            time.sleep(0.05)
        assert status("alice:changed") == 200
        assert status("alice:correct horse") == 401
        assert hashed not in exporter.log.read_text()


def test_tls_as_the_web_config_says(tmp_path: Path):
    make_certificate(tmp_path)
    web = write(tmp_path / "web.yml", "tls_server_config: {cert_file: server.pem, key_file: server.key}\n")
    port = free_port()
    with running(
        tmp_path, "serve", *flags("http://127.0.0.1:9"), f"--web.config.file={web}", port=port, wait=False
    ) as exporter:
        context = ssl.create_default_context(cafile=tmp_path / "server.pem")
        for _ in range(200):
            try:
                with urllib.request.urlopen(f"https://localhost:{port}/metrics", context=context) as reply:
                    assert b"llmcost_build_info" in reply.read()
                break
            except OSError:
                assert exporter.process.poll() is None
                time.sleep(0.05)
        else:
            raise AssertionError(exporter.log.read_text())


def test_log_lines_are_logfmt_or_json(tmp_path: Path):
    with running(tmp_path, "serve", *flags("http://127.0.0.1:9"), "--log.format=json") as exporter:
        exporter.until("a beat", lambda page: "llmcost_source_up{source=engine,target=default}" in page)
        assert exporter.end() == 0
    lines = [json.loads(line) for line in exporter.log.read_text().splitlines()]
    assert {"ts", "level", "logger", "msg"} <= lines[0].keys()
    assert any("listening" in line["msg"] for line in lines)
    with running(tmp_path, "serve", *flags("http://127.0.0.1:9")) as exporter:
        exporter.end()
    assert all(line.startswith("ts=") for line in exporter.log.read_text().splitlines())


def test_a_failing_source_is_logged_at_its_edges_only(tmp_path: Path):
    with running(tmp_path, "serve", *flags("http://127.0.0.1:9")) as exporter:
        refused = "llmcost_source_errors_total{reason=refused,source=engine,target=default}"
        exporter.until("several failed reads", lambda page: page.get(refused, 0) >= 5)
        assert exporter.log.read_text().count("engine default: down") == 1


def test_a_renewed_certificate_is_shown_without_a_restart(tmp_path: Path):
    make_certificate(tmp_path)
    web = write(tmp_path / "web.yml", "tls_server_config: {cert_file: server.pem, key_file: server.key}\n")
    port = free_port()
    arguments = ("serve", *flags("http://127.0.0.1:9"), f"--web.config.file={web}")
    with running(tmp_path, *arguments, port=port, wait=False) as exporter:
        first = certificate_shown(exporter)
        make_certificate(tmp_path)
        renewed = (tmp_path / "server.pem").read_text()
        assert renewed != first
        for _ in range(100):
            if certificate_shown(exporter) != first:
                break
            time.sleep(0.1)
        assert certificate_shown(exporter) == renewed


def certificate_shown(exporter: Exporter) -> str:
    for _ in range(200):
        try:
            return ssl.get_server_certificate(("127.0.0.1", exporter.port), timeout=5)
        except OSError:
            assert exporter.process.poll() is None
            time.sleep(0.05)
    raise AssertionError(exporter.log.read_text())


def test_a_port_that_opened_without_tls_never_asks_for_passwords_in_clear_text(tmp_path: Path):
    make_certificate(tmp_path)
    web = write(tmp_path / "web.yml", "basic_auth_users: {alice: not-a-hash}\n")
    arguments = (*flags("http://127.0.0.1:9"), f"--web.config.file={web}", "--on-fatal=degrade")
    with running(tmp_path, "serve", *arguments) as exporter:
        hashed = bcrypt.hashpw(b"x", bcrypt.gensalt(rounds=4)).decode()
        tls = "tls_server_config: {cert_file: server.pem, key_file: server.key}"
        write(web, f"basic_auth_users: {{alice: {hashed}}}\n{tls}\n")
        exporter.process.send_signal(signal.SIGHUP)
        for _ in range(100):
            if "with TLS" in exporter.log.read_text():
                break
            time.sleep(0.05)
        assert "with TLS" in exporter.log.read_text()
        with pytest.raises((OSError, http.client.HTTPException)):  # plain HTTP is over
            exporter.ask("/-/ready")
        assert certificate_shown(exporter) == (tmp_path / "server.pem").read_text()
        assert exporter.end() == 0


def test_a_bad_web_config_is_told_on_the_page_and_the_good_one_stays_in_force(tmp_path: Path):
    hashed = bcrypt.hashpw(b"x", bcrypt.gensalt(rounds=4)).decode()
    web = write(tmp_path / "web.yml", f"basic_auth_users: {{alice: {hashed}}}\n")
    alice = "Basic " + b64encode(b"alice:x").decode()
    with running(tmp_path, "serve", *flags("http://127.0.0.1:9"), f"--web.config.file={web}") as exporter:
        write(web, "basic_auth_users: [oops]\n")
        exporter.process.send_signal(signal.SIGHUP)

        def reload_is_told_bad() -> bool:
            page = samples(exporter.ask("/metrics", Authorization=alice).text)
            return page["llmcost_config_last_reload_successful{}"] == 0

        for _ in range(100):
            if reload_is_told_bad():
                break
            time.sleep(0.05)
        assert reload_is_told_bad()
        assert "basic_auth_users" in exporter.ask("/", Authorization=alice).text
        assert exporter.ask("/metrics").status == 401


def test_a_certificate_that_comes_late_opens_the_port_with_tls(tmp_path: Path):
    web = write(tmp_path / "web.yml", "tls_server_config: {cert_file: server.pem, key_file: server.key}\n")
    arguments = (*flags("http://127.0.0.1:9"), f"--web.config.file={web}", "--on-fatal=degrade")
    with running(tmp_path, "serve", *arguments) as exporter:
        assert exporter.ask("/metrics").status == 503
        make_certificate(tmp_path)
        plain = http.client.HTTPConnection("127.0.0.1", exporter.port, timeout=10)

        def asked_on_the_old_connection() -> int:
            plain.request("GET", "/metrics")
            response = plain.getresponse()
            response.read()
            return response.status

        assert asked_on_the_old_connection() in (403, 503)
        for _ in range(150):
            if "with TLS" in exporter.log.read_text():
                break
            time.sleep(0.05)
        assert certificate_shown(exporter) == (tmp_path / "server.pem").read_text()
        assert asked_on_the_old_connection() == 403  # it began without TLS, and nobody knows who listens
        plain.close()


def test_another_ca_for_clients_is_not_taken_up_without_a_restart(tmp_path: Path):
    """OpenSSL can add a CA to a living context but take none away: to go on trusting the old one would be worse."""
    make_certificate(tmp_path)
    make_certificate(tmp_path, "client")
    files = "cert_file: server.pem, key_file: server.key, client_ca_file: client.pem"
    tls = f"{{{files}, client_auth_type: VerifyClientCertIfGiven}}"
    web = write(tmp_path / "web.yml", f"tls_server_config: {tls}\n")
    arguments = ("serve", *flags("http://127.0.0.1:9"), f"--web.config.file={web}")
    with running(tmp_path, *arguments, port=free_port(), wait=False) as exporter:
        certificate_shown(exporter)
        make_certificate(tmp_path, "client")
        for _ in range(100):
            if "without a restart" in exporter.log.read_text():
                break
            time.sleep(0.05)
        assert "expected no change of TLS or the clients' CA without a restart" in exporter.log.read_text()


def test_what_is_no_http_leaves_no_trace_of_itself_in_the_log(tmp_path: Path):
    with running(tmp_path, "serve", *flags("http://127.0.0.1:9")) as exporter:
        with socket.create_connection(("127.0.0.1", exporter.port)) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nAuthorization: Bearer s3cret" + b"x" * 20_000 + b"\r\n\r\n")
            connection.recv(100)
        with socket.create_connection(("127.0.0.1", exporter.port)) as connection:
            connection.sendall(b"s3cret\r\n\r\n")
            connection.recv(100)
        assert exporter.end() == 0
        assert "s3cret" not in exporter.log.read_text()
        assert "Traceback" not in exporter.log.read_text()


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [
        ("gzip", True),
        ("deflate, gzip;q=0.5", True),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("xgzip", False),
        ("", False),
    ],
)
def test_gzip_is_sent_to_who_takes_it(tmp_path: Path, accepted: str, packed: bool):
    with running(tmp_path, "serve", *flags("http://127.0.0.1:9")) as exporter:
        reply = exporter.ask("/metrics", Accept_Encoding=accepted)
        assert (reply.headers.get("content-encoding") == "gzip") == packed


@pytest.mark.parametrize("address", ["..:9411", "a" * 70 + ":9411", "nowhere", ":99999", "[::1:9409"])
def test_an_address_that_is_none_is_refused_in_one_line(address: str):
    done = serve_once(*flags("http://127.0.0.1:9"), f"--web.listen-address={address}")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr.decode()


@pytest.mark.parametrize("url", ["http://a\\b:8000", "http://" + "é" * 64 + ".example:80"])
def test_an_address_that_nobody_can_ask_is_refused(tmp_path: Path, url: str):
    done = serve_once(f"--engine.url={url}", "--gpu.usd-per-hour=1")
    assert (done.returncode, b"Traceback" in done.stderr) == (2, False)
    config = write(tmp_path / "config.yml", CONFIG.format(url="http://127.0.0.1:9", price="0.80"))
    with running(tmp_path, "serve", f"--config.file={config}") as exporter:
        write(config, CONFIG.format(url=url.replace("\\", "\\\\"), price="0.80"))
        assert exporter.ask("/-/reload", "POST").status == 500
        assert exporter.ask("/-/ready").status == 200


CRASHING = """
import exporter.beat
async def once(self): raise ZeroDivisionError("a bug")
exporter.beat.Beat.once = once
from exporter.cli import main
main()
"""


@pytest.mark.parametrize(("on_fatal", "stays"), [("degrade", True), ("exit", False)])
def test_a_beat_that_crashes_takes_only_itself_down_beside_an_engine(tmp_path: Path, on_fatal: str, stays: bool):
    port = free_port()
    command = [
        sys.executable, "-c", CRASHING, "serve", *flags("http://127.0.0.1:9"), f"--on-fatal={on_fatal}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    log = tmp_path / "log"
    with log.open("wb") as file, subprocess.Popen(command, cwd=REPOSITORY, stderr=file) as process:
        exporter = Exporter(process, port, log)
        if stays:
            wait_until_ready(exporter)
            stays_up(exporter)
            assert exporter.end() == 0
        else:
            assert process.wait(timeout=20) == 1
    assert "ZeroDivisionError" in log.read_text()


def test_a_start_with_tls_loads_everything_once(tmp_path: Path):
    make_certificate(tmp_path)
    web = write(tmp_path / "web.yml", "tls_server_config: {cert_file: server.pem, key_file: server.key}\n")
    arguments = ("serve", *flags("http://127.0.0.1:9"), f"--web.config.file={web}")
    with running(tmp_path, *arguments, port=free_port(), wait=False) as exporter:
        certificate_shown(exporter)
        time.sleep(2.5)  # a look at the files comes every two seconds
        assert "reloaded" not in exporter.log.read_text()


def test_a_long_beat_by_flag_is_no_contradiction(tmp_path: Path):
    with running(
        tmp_path, "serve", "--engine.url=http://127.0.0.1:9", "--gpu.usd-per-hour=1", "--interval=2h"
    ) as exporter:
        assert exporter.ask("/-/ready").status == 200
