"""record, replay and doctor, as processes."""

import http.client
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from exporter.sources.recording import read
from tests.monitoring import wait
from tests.processes import RECORDING, REPOSITORY, free_port, replayed, running

WITH_FILE = """\
interval: 2s
engines:
  - {{name: chat, url: "{url}", workload: batch, gpus: 0.5}}
  - {{name: gone, url: "http://127.0.0.1:9"}}
prices:
  gpu: {{usd_per_hour: 0.80}}
budgets: [{{name: all, daily_usd: 5}}]
"""


def run(*arguments: str, seconds: float = 30) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "exporter", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=seconds, check=False)


def test_what_record_keeps_replay_serves(tmp_path: Path):
    first = tmp_path / "first.jsonl.xz"
    with replayed(tmp_path, "--skip=165s") as url:
        done = run("record", url, "--out", str(first), "--interval=200ms", "--duration=1500ms")
    assert done.returncode == 0, done.stderr
    assert "recorded" in done.stderr
    pages = [record for record in read(first) if record.error is None]
    assert pages
    assert pages[0].content_type == "text/plain; version=1.0.0; charset=utf-8"
    assert 'vllm:num_requests_running{engine="0",model_name="tiny-llama"}' in pages[0].body
    port = free_port()
    second = tmp_path / "second.jsonl.xz"
    with running(tmp_path, "replay", str(first), f"--listen-address=127.0.0.1:{port}"):
        run("record", f"http://127.0.0.1:{port}", "--out", str(second), "--interval=100ms", "--duration=3s")
    again = [record for record in read(second) if record.error is None]
    assert again
    assert again[0].body.count("\n") == pages[0].body.count("\n")


def test_record_ends_well_on_ctrl_c_and_keeps_failed_reads(tmp_path: Path):
    out = tmp_path / "x.jsonl.xz"
    command = [sys.executable, "-m", "exporter", "record", "http://127.0.0.1:9", "--out", str(out), "--interval=100ms"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, cwd=REPOSITORY)
    assert process.stderr is not None
    os.read(process.stderr.fileno(), 10)  # the first read is reported
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=5) == 0
    process.stderr.close()
    with pytest.raises(ValueError, match="expected at least one page"):
        read(out)


def test_record_does_not_write_over_a_file(tmp_path: Path):
    out = tmp_path / "x.jsonl.xz"
    out.write_text("precious")
    done = run("record", "http://127.0.0.1:9", "--out", str(out))
    assert (done.returncode, done.stderr) == (2, f"{out}: expected a new file, found one that exists\n")
    done = run("record", "http://127.0.0.1:9", "--out", str(tmp_path / "no/such/folder.xz"))
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)


def test_replay_refuses_connections_while_nothing_was_there(tmp_path: Path):
    """The recording begins with half a minute of nothing; ten times as fast, that is three seconds."""
    with replayed(tmp_path, "--speed=10") as url:
        out = tmp_path / "x.jsonl.xz"
        done = run("record", url, "--out", str(out), "--interval=250ms", "--duration=7s")
        assert done.returncode == 0
    found = [record.error for record in read(out)]
    assert found[0] == "refused: Connection refused"
    assert None in found


def test_replay_ends_while_somebody_keeps_a_connection(tmp_path: Path):
    port = free_port()
    with running(tmp_path, "replay", str(RECORDING), f"--listen-address=127.0.0.1:{port}", "--skip=165s") as replay:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        wait(lambda: answers(connection), "it answers")
        assert replay.end() == 0
        connection.close()


def answers(connection: http.client.HTTPConnection) -> bool:
    try:
        connection.request("GET", "/metrics")
        return len(connection.getresponse().read()) > 0
    except OSError:
        connection.close()
        return False


@pytest.mark.parametrize("file", ["missing.jsonl.xz", "bad.jsonl.xz"])
def test_replay_names_what_is_no_recording(tmp_path: Path, file: str):
    (tmp_path / "bad.jsonl.xz").write_text("hello")
    done = run("replay", str(tmp_path / file))
    assert done.returncode == 2
    assert done.stderr.startswith(f"{tmp_path / file}: expected a recording")
    assert len(done.stderr.splitlines()) == 1


def test_replay_names_a_taken_port(tmp_path: Path):
    with running(tmp_path, "serve", "--engine.url=http://127.0.0.1:9", "--gpu.usd-per-hour=1") as exporter:
        done = run("replay", str(RECORDING), f"--listen-address=127.0.0.1:{exporter.port}", "--skip=60s")
    assert done.returncode == 1
    assert done.stderr.startswith(f"cannot listen on 127.0.0.1:{exporter.port}")


def test_doctor_says_what_it_sees_and_why_not(tmp_path: Path):
    with replayed(tmp_path, "--skip=165s") as url:
        config = tmp_path / "config.yml"
        config.write_text(WITH_FILE.format(url=url))
        wait = run("record", url, "--out", str(tmp_path / "x.xz"), "--interval=200ms", "--duration=3s")
        assert wait.returncode == 0
        done = run("doctor", f"--config.file={config}")
    assert done.returncode == 1
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert any(line.startswith("ok") and "chat: a page of vllm" in line for line in lines)
    assert any(
        line.startswith("ok") and "chat: ttft: vllm:time_to_first_token_seconds_bucket" in line for line in lines
    )
    assert any(line.startswith("PROBLEM gone: http://127.0.0.1:9/metrics: refused") for line in lines)
    assert "ok      chat: pays for 0.5 GPU(s), each 0.8 USD an hour (usd_per_hour)" in lines
    assert "chat: ttft: off, since a batch engine has no ttft_target" in lines
    assert any("USD a day in UTC, cap shadow" in line for line in lines)
    assert any("not looked at, since --storage.path is not given" in line for line in lines)


def test_doctor_is_content_with_a_good_engine(tmp_path: Path):
    with replayed(tmp_path, "--skip=165s") as url:
        run("record", url, "--out", str(tmp_path / "x.xz"), "--interval=200ms", "--duration=3s")
        done = run("doctor", f"--engine.url={url}", "--gpu.usd-per-hour=0.80")
    assert done.returncode == 0, done.stdout


def test_doctor_knows_the_page_of_something_else(tmp_path: Path):
    with running(tmp_path, "serve", "--engine.url=http://127.0.0.1:9", "--gpu.usd-per-hour=1") as exporter:
        done = run("doctor", f"--engine.url=http://127.0.0.1:{exporter.port}", "--gpu.usd-per-hour=1")
    assert done.returncode == 1
    assert "this exporter itself" in done.stdout


def test_help_lists_every_command():
    done = run("--help")
    assert done.returncode == 0
    for command in ("serve", "check-config", "record", "replay", "doctor", "report", "plan", "lint", "manifests"):
        assert command in done.stdout
        assert run(command, "--help").returncode == 0
    assert run("--version").stdout.startswith("llm-cost-exporter")
    assert run("nothing").returncode == 2
