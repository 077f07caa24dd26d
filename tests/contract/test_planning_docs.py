"""docs/planning.md: every command on the page runs, and prints what the page shows."""

import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from exporter.cli.plan import plan
from exporter.core.money import NANO, Kind
from tests.e2e.test_plan import booked, write_days
from tests.ledgers import commit, writing
from tests.processes import REPOSITORY

PAGE = REPOSITORY / "docs/planning.md"
TEXT = PAGE.read_text(encoding="utf-8")
CHAT = ("chat", "llama", "fast")
CENT = NANO // 100


def shown() -> list[tuple[str, str]]:
    """Each command of a console block, on one line, and what the page says it prints."""
    blocks = re.findall(r"^```console\n\$ ((?:[^\n]*\\\n)*[^\n]*)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    return [(" ".join(command.replace("\\\n", " ").split()), output) for command, output in blocks]


def linted() -> list[tuple[str, str]]:
    """Each manifest that is linted, and the rule that the page says it breaks."""
    return re.findall(r"```sh\nllm-cost-exporter lint (\S+)\n```\n\nIt exits with 1 and finds `(LLM\d+)`", TEXT)


def october(folder: Path) -> Path:
    """The books of a month in which most of the work was claimed."""
    at, began = (int(datetime(2026, 10, day, tzinfo=UTC).timestamp()) for day in (20, 1))
    rows = [
        (Kind.SPEND, ("compute_busy", *CHAT), 36_000 * CENT, at),
        (Kind.SPEND, ("compute_idle", *CHAT), 23_520 * CENT, at),
        (Kind.SPEND, ("storage", *CHAT), 32 * CENT, at),
        (Kind.ATTRIBUTED, ("document_summary", "docs", *CHAT), 19_080 * CENT, at),
        (Kind.ATTRIBUTED, ("chat", "web", *CHAT), 12_240 * CENT, at),
        (Kind.ATTRIBUTED, ("unattributed", "", *CHAT), 4_680 * CENT, at),
        (Kind.FEATURE_REQUESTS, ("document_summary", "docs", *CHAT[1:]), 41_000, at),
        (Kind.FEATURE_OUTPUT_TOKENS, ("document_summary", "docs", *CHAT[1:]), 61_500_000, at),
        (Kind.FEATURE_REQUESTS, ("chat", "web", *CHAT[1:]), 210_000, at),
        (Kind.FEATURE_OUTPUT_TOKENS, ("chat", "web", *CHAT[1:]), 52_500_000, at),
    ]
    with writing(folder) as ledger:
        commit(ledger, booked(rows, meta={"accounting_start": str(began * NANO)}))
    return folder


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where commands run: those that plan beside a ledger of the last days, reports beside one of October."""
    recent, past = tmp_path_factory.mktemp("recent"), tmp_path_factory.mktemp("october")
    write_days(recent / "data", 7)
    october(past / "data")
    return {"plan": recent, "report": past}


def run(command: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    program, *arguments = shlex.split(command)
    assert program == "llm-cost-exporter"
    return subprocess.run(
        [sys.executable, "-m", "exporter", *arguments],
        capture_output=True, text=True, cwd=folder, timeout=30, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(("command", "output"), shown(), ids=[command[18:58] for command, _ in shown()])
def test_a_command_prints_what_the_page_shows(places: dict[str, Path], command: str, output: str):
    done = run(command, places[command.split()[1]])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip("\n") == output.strip("\n")


@pytest.mark.parametrize(("manifest", "rule"), linted())
def test_a_manifest_breaks_the_rule_that_the_page_names(manifest: str, rule: str):
    done = run(f"llm-cost-exporter lint {manifest}", REPOSITORY)
    assert (done.returncode, done.stderr) == (1, "")
    assert rule in done.stdout


def test_there_are_five_situations_and_all_of_them_are_run():
    titles = re.findall(r"^### (\d)\. ", TEXT, re.MULTILINE)
    assert titles == ["1", "2", "3", "4", "5"]
    parts = re.split(r"^### \d\. ", TEXT, flags=re.MULTILINE)[1:]
    assert all("```console\n$ " in part or "```sh\nllm-cost-exporter lint " in part for part in parts)
    assert len(linted()) == 2
    assert TEXT.count("```console") == len(shown())


def test_the_page_names_every_flag_and_no_other():
    """The flags of all four commands; those of `report` and `serve` are on pages of their own."""
    commands = (plan, *plan.commands.values())
    known = {option for command in commands for param in command.params for option in param.opts}
    named = set(re.findall(r"(?<![\w-])(--[a-z][\w.-]*\w)", TEXT))
    assert named - known == {"--by", "--month"}
    assert known - named <= {"--format", "--api.usd-per-million-cached-input", "--other.usd-per-hour"}


def test_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#]+)", TEXT):
        assert (PAGE.parent / link).exists(), link
