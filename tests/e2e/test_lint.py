"""The `lint` command, as a process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import REPOSITORY

BAD = REPOSITORY / "tests" / "lint" / "bad"
GOOD = REPOSITORY / "tests" / "lint" / "good"
CONFIG = """\
engines: [{name: chat, url: "http://127.0.0.1:8000", workload: batch}]
prices: {gpu: {usd_per_hour: 1}}
"""


def lint(*arguments: str, given: bytes = b"") -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "exporter", "lint", *arguments]
    done = subprocess.run(command, input=given, capture_output=True, cwd=REPOSITORY, timeout=40, check=False)
    assert b"Traceback" not in done.stderr
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())


def test_findings_are_printed_like_a_compilers_and_fail():
    path = BAD / "llm001-hpa-on-cpu.yaml"
    done = lint(str(path))
    assert done.returncode == 1
    assert done.stderr == ""
    head, why, instead, summary = done.stdout.splitlines()
    message = "LLM001 error: HorizontalPodAutoscaler/chat: CPU is the signal of a GPU workload"
    assert head == f"{path}:16: {message}"
    assert why.startswith("    why: ")
    assert instead.startswith("    instead: ")
    assert summary == "1 error in 2 objects of 1 file"


def test_good_manifests_pass():
    done = lint(str(GOOD / "keda-load.yaml"))
    assert (done.returncode, done.stdout) == (0, "nothing found in 2 objects of 1 file\n")


def test_notes_alone_do_not_fail():
    done = lint(str(BAD / "llm004-only-waiting.yaml"))
    assert done.returncode == 0
    assert "LLM004 note: " in done.stdout
    assert done.stdout.endswith("1 note in 2 objects of 1 file\n")


def test_json_is_a_list_of_findings():
    path = str(BAD / "llm090-allowed-by-mistake.yaml")
    done = lint("--format=json", path)
    assert done.returncode == 1
    (found,) = json.loads(done.stdout)
    assert list(found) == ["rule", "severity", "file", "line", "object", "message", "reason", "instead"]
    assert (found["rule"], found["severity"], found["file"], found["line"]) == ("LLM090", "warning", path, 11)
    assert lint("--format=json", str(GOOD / "keda-load.yaml")).stdout == "[]\n"


def test_standard_input_is_checked():
    done = lint("-", given=(BAD / "llm012-no-maximum.yaml").read_bytes().replace(b"\n", b"\r\n"))
    assert done.returncode == 1
    assert done.stdout.startswith("(standard input):7: LLM012 warning: ScaledObject/chat: ")


def test_the_config_says_who_waits(tmp_path: Path):
    config = tmp_path / "config.yml"
    config.write_text(CONFIG)
    path = str(BAD / "llm010-zero-and-nothing-said.yaml")
    assert lint(path).returncode == 1
    assert lint(path, f"--config.file={config}").returncode == 0
    config.write_text("engines: 3")
    assert lint(path, f"--config.file={config}").returncode == 2


def test_the_cold_start_can_be_given():
    path = str(GOOD / "keda-load.yaml")
    assert lint(path, "--cold-start=5m").returncode == 0
    done = lint(path, "--cold-start=301s")
    assert done.returncode == 1
    assert "LLM050 warning" in done.stdout
    assert "--cold-start: 301 s" in done.stdout


def test_objects_of_several_files_are_joined(tmp_path: Path):
    first, second = (GOOD / "keda-load.yaml").read_text(), (BAD / "llm060-hpa-beside-keda.yaml").read_text()
    (tmp_path / "a.yaml").write_text(first)
    (tmp_path / "b.yaml").write_text(second.split("---\n")[1])
    done = lint(str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml"), str(tmp_path / "a.yaml"))
    assert done.returncode == 1
    assert f"{tmp_path}/b.yaml:10: LLM060 error: HorizontalPodAutoscaler/chat" in done.stdout


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: 1\n\tb: 2\n", ":2: not YAML: "),
        (b"kind: ScaledObject\nspec: {{ toYaml .Values.spec | nindent 2 }}\n", ":2: not YAML: a Helm template"),
        (b"\x7fELF\x02\x01\x01\x00\xff\xfe", ":1: not YAML: bytes that are not UTF-8"),
        (b"a: b\x00c\n", ":1: not YAML: characters that it does not allow"),
        (b"x" * (4 * 2**20 + 1), ": expected at most 4194304 bytes, found more"),
        (b"a: &a [*a, *a]\n", ":1: expected at most 64 levels, found more"),
        (b"[" * 100_000, ":1: not YAML: nested too deep"),
    ],
)
def test_what_cannot_be_checked_is_one_line(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    done = lint(str(path), str(GOOD / "keda-load.yaml"))
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{path}{message}")


def test_no_file_a_folder_and_nothing_in_it(tmp_path: Path):
    for arguments in ([], [str(tmp_path)], [str(tmp_path / "missing.yaml")]):
        done = lint(*arguments)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert "expected a" in done.stderr
    done = lint("-", given=b"---\n---\n")
    assert done.returncode == 0
    assert done.stdout == "nothing to check: no HPA, no ScaledObject and no workload in the input\n"


def test_names_from_a_file_do_not_steer_the_terminal():
    text = (BAD / "llm012-no-maximum.yaml").read_text().replace("name: chat\n", 'name: "chat\\e[2J\\n"\n')
    done = lint("-", given=text.encode())
    assert done.returncode == 1
    assert "\x1b" not in done.stdout
