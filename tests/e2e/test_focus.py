"""`report --format focus`, as a process, over a month of mixed spend; and what the public validator says of it."""

import csv
import io
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from exporter.core.attribution import Item, Slot
from exporter.core.money import NANO, Account, Kind
from exporter.ledger import Change
from tests.ledgers import commit, writing
from tests.processes import REPOSITORY

BEGAN = int(datetime(2026, 10, 1, tzinfo=UTC).timestamp())
END = int(datetime(2026, 11, 1, tzinfo=UTC).timestamp())
OCTOBER = ("--month=2026-10", "--format=focus")
CHAT, BATCH = ("chat", "llama", "fast"), ('=cmd|"a",\r\nb', "日本", "")
HOUR = 3600
VALIDATOR = REPOSITORY / ".venv/focus"
CLAIMS = (  # what the file says that it can tell
    "ACCOUNT_NAMING_SUPPORTED",
    "BILLING_BASED_ON_PROVISIONED_RESOURCES_SUPPORTED",
    "RESOURCE_TYPE_ASSIGNMENT_SUPPORTED",
    "TAGGING_SUPPORTED",
)
# Null without an invoice, not null with one: each is a rule, one of both must hold, and the other is told as failed.
EITHER = {"InvoiceId-C-005-C"}
DIRECTED = 1_792_152_000  # 2026-10-16T12:00:00Z: from then on the books keep the direction of tokens


def hour(start: int, index: int) -> Iterator[tuple[Kind, tuple[str, ...], int, int]]:
    """Yield what is booked in one hour: kind, labels, amount, and the quarter."""
    half = start + 1800
    yield Kind.SPEND, ("compute_busy", *CHAT), 400_000_000, start
    yield Kind.SPEND, ("compute_busy", *CHAT), 100_000_001, half
    yield Kind.SPEND, ("compute_idle", *CHAT), 300_000_000 + index, half
    yield Kind.ATTRIBUTED, ("summary", "docs", *CHAT), 333_333_333, start
    yield Kind.ATTRIBUTED, ("unattributed", "", *CHAT), 66_666_667, start
    if start >= DIRECTED:
        yield Kind.ATTRIBUTED_INPUT, ("summary", "docs", *CHAT), 133_333_333, start
        yield Kind.ATTRIBUTED_OUTPUT, ("summary", "docs", *CHAT), 200_000_000, start
    if start < END - HOUR:
        yield Kind.ATTRIBUTED, ("+chat", "", *CHAT), 100_000_001, half
    yield Kind.FEATURE_OUTPUT_TOKENS, ("summary", "docs", *CHAT[1:]), 5000, start
    yield Kind.SPEND, ("storage", *CHAT), 447, start
    if index % 3 == 0:
        yield Kind.SPEND, ("api", "", "gpt", ""), 1_000_003, half
        yield Kind.ATTRIBUTED, ("summary", "docs", "", "gpt", ""), 1_000_003, half
        yield Kind.FEATURE_PROMPT_TOKENS, ("summary", "docs", "gpt", ""), 1200, half
        if start >= DIRECTED:
            output = 600_000 if index % 4 == 3 else 0  # else the 300 tokens below are free
            yield Kind.ATTRIBUTED_INPUT, ("summary", "docs", "", "gpt", ""), 1_000_003 - output, half
            yield Kind.ATTRIBUTED_OUTPUT, ("summary", "docs", "", "gpt", ""), output, half
        if index % 2:
            yield Kind.FEATURE_OUTPUT_TOKENS, ("summary", "docs", "gpt", ""), 300, half
    if index % 50 == 0:
        yield Kind.SPEND, ("compute_loading", *BATCH), 7, start
        yield Kind.SPEND, ("compute_down", *BATCH), 11, half
        yield Kind.SPEND, ("compute_unobserved", *BATCH), 13, half
        yield Kind.SPEND, ("network", "", "", ""), 17, half


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A month of two engines and an API, an hour before it and one after."""
    buckets: Counter[tuple[Account, int]] = Counter()
    for index, start in enumerate(range(BEGAN - HOUR, END + HOUR, HOUR)):
        for kind, labels, amount, at in hour(start, index):
            buckets[Account(kind, labels), at] += amount
    totals: Counter[Account] = Counter()
    for (account, _), amount in buckets.items():
        totals[account] += amount
    pending: dict[tuple[Slot, Item], int] = {
        (Slot("chat", END - 1500, 300), ("nano_usd", "llama", "fast")): 100_000_000
    }
    meta = {"accounting_start": str((BEGAN - HOUR) * NANO)}
    folder = tmp_path_factory.mktemp("focus") / "data"
    with writing(folder) as ledger:
        commit(ledger, Change(totals=totals, buckets=buckets, pending=pending, meta=meta))
    return folder


def run(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, "-m", "exporter", "report", f"--storage.path={folder}", *arguments]
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    done = subprocess.run(command, capture_output=True, cwd=REPOSITORY, timeout=50, check=False, env=environment)
    assert b"Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def file(folder: Path) -> bytes:
    done = run(folder, *OCTOBER)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


@pytest.fixture(scope="module")
def rows(file: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(file.decode(), newline="")))


def usd(rows: list[dict[str, str]], **wanted: str) -> Decimal:
    found = (row for row in rows if all(row[f"x_{key}"] == value for key, value in wanted.items()))
    return sum((Decimal(row["BilledCost"]) for row in found), Decimal())


def test_the_file_sums_to_the_ledger_to_the_nano_dollar(folder: Path, rows: list[dict[str, str]]):
    done = run(folder, "--month=2026-10", "--by=category", "--format=json")
    found = json.loads(done.stdout)
    assert usd(rows) == Decimal(found["total_usd"])
    assert len(found["rows"]) == 8
    for row in found["rows"]:
        assert usd(rows, Category=row["category"]) == Decimal(row["usd"])


def test_showback_is_in_it_once(folder: Path, rows: list[dict[str, str]]):
    found = json.loads(run(folder, "--month=2026-10", "--by=feature", "--format=json").stdout)["rows"]
    features = {row["feature"]: Decimal(row["usd"]) for row in found if not row["not_attributed"]}
    assert {name: usd(rows, Feature=name if name != "+chat" else "'+chat") for name in features} == features
    assert set(features) == {"summary", "unattributed", "+chat"}
    assert usd(rows, Attribution="pending") == Decimal("0.1")
    assert usd(rows, Attribution="not_attributed") == Decimal("0.000000001")


def test_rows_are_hours_of_the_month(rows: list[dict[str, str]]):
    starts = sorted({row["ChargePeriodStart"] for row in rows})
    assert (len(starts), starts[0], starts[-1]) == (744, "2026-10-01T00:00:00Z", "2026-10-31T23:00:00Z")
    assert {row["ChargePeriodEnd"] for row in rows if row["ChargePeriodStart"] == starts[-1]} == {
        "2026-11-01T00:00:00Z"
    }


def test_tokens_are_there_where_they_are_known(rows: list[dict[str, str]]):
    assert {
        (row["SkuId"], row["ConsumedQuantity"], row["ConsumedUnit"]) for row in rows if row["x_Model"] == "gpt"
    } == {
        ("api/gpt", "1500.0", "Tokens"),
        ("api_input_tokens/gpt", "1200.0", "Tokens"),
        ("api_output_tokens/gpt", "300.0", "Tokens"),
    }
    assert {row["ConsumedQuantity"] for row in rows if row["x_Model"] != "gpt"} == {""}
    free = [row for row in rows if not Decimal(row["BilledCost"])]
    assert {(row["SkuId"], row["ConsumedQuantity"]) for row in free} == {("api_output_tokens/gpt", "300.0")}


def test_rows_have_a_direction_since_the_books_keep_it(rows: list[dict[str, str]]):
    meters: dict[tuple[str, bool], set[str]] = {}
    for row in rows:
        if row["x_Feature"] == "summary":
            after = row["ChargePeriodStart"] >= "2026-10-16T12"
            meters.setdefault((row["x_Category"], after), set()).add(row["SkuMeter"])
    both = {"Input Tokens", "Output Tokens"}
    assert meters == {
        ("compute_busy", False): {"Busy Compute"},
        ("compute_busy", True): both,
        ("api", False): {"Tokens", "Input Tokens"},
        ("api", True): both,
    }


def test_names_are_those_of_the_ledger_and_no_formulas(file: bytes, rows: list[dict[str, str]]):
    assert {row["x_Engine"] for row in rows} == {"chat", "'" + BATCH[0], ""}
    assert {row["ResourceId"] for row in rows} == {"chat", "'" + BATCH[0], ""}
    assert {json.loads(row["Tags"]).get("feature") for row in rows if row["Tags"]} == {"summary", "+chat", None}
    assert not [row for row in rows for value in row.values() if value.startswith(("=", "+", "@"))]
    named = [row for row in rows if row["x_Engine"] == "'" + BATCH[0]]
    assert file.count(b"\r\n") == len(rows) + 1 + 2 * len(named)  # also in ResourceId


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("--by=feature", "--by: expected none with --format focus"),
        ("--value", "--value: expected none with --format focus"),
        ("--share-idle", "--share-idle: expected none with --format focus"),
        ("--invoice-usd=5", "--invoice-usd: expected none with --format focus"),
        ("--config.file=none.yml", "--config.file: expected none with --format focus"),
        ("--timezone=Europe/Berlin", "--timezone: expected UTC with --format focus, whose hours are of UTC, found Eur"),
    ],
)
def test_flags_that_no_focus_file_answers_are_refused_in_one_line(folder: Path, flags: str, line: str):
    done = run(folder, *OCTOBER, flags)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)
    assert done.stderr.decode().startswith(f"Error: {line}")


def test_a_period_without_spend_is_a_head_alone(folder: Path):
    done = run(folder, "--day=2026-09-01", "--format=focus")
    assert (done.returncode, done.stdout.count(b"\n")) == (0, 1)
    assert done.stdout.startswith(b"BilledCost,EffectiveCost,ListCost,ContractedCost,BillingCurrency,")


@pytest.mark.focus
def test_the_public_validator_accepts_it(file: bytes, tmp_path: Path):
    """It ends with 0 whatever it finds, and looks for a list of currencies in the folder where it runs."""
    path = tmp_path / "focus.csv"
    path.write_bytes(file)
    (package,) = VALIDATOR.glob("lib/python3*/site-packages/focus_validator")
    (tmp_path / package.name).symlink_to(package)
    done = subprocess.run(
        [VALIDATOR / "bin/focus-validator", f"--data-file={path}", "--validate-version=1.2.0.1", "--block-download",
         "--show-violations", f"--applicability-criteria={','.join(CLAIMS)}"],
        capture_output=True, text=True, cwd=tmp_path, timeout=50, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = (line.partition(":")[0].split() for line in done.stdout.splitlines() if line.startswith(("✅", "❌")))
    results = {rule: sign for sign, rule in told}
    failed = {rule for rule, sign in results.items() if sign == "❌"}
    assert failed == EITHER, done.stdout
    assert results["InvoiceId-C-003-C"] == "✅"
    assert results["BilledCost-C-000-M"] == results["PricingQuantity-C-000-M"] == results["Tags-C-000-C"] == "✅"
    print(next(line for line in done.stdout.splitlines() if line.startswith("Total:")))
