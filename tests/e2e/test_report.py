"""`report`, as a process, over ledgers that the real writer has written."""

import csv
import io
import json
import os
import pty
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from exporter.core.attribution import Slot
from exporter.core.money import NANO, Account, Kind
from exporter.ledger import Change
from exporter.ledger.file import NAME
from tests.ledgers import commit, start_writer, until, writing
from tests.processes import REPOSITORY

NOON = int(datetime(2026, 10, 20, 12, tzinfo=UTC).timestamp())
BEGAN = int(datetime(2026, 10, 1, tzinfo=UTC).timestamp())
OCTOBER = ("--month=2026-10", "--timezone=UTC")
CONFIG = """\
engines: [{name: chat, url: "http://127.0.0.1:9"}]
prices: {gpu: {usd_per_hour: 1}}
features: {value_ratio: {summary: 0.05, chat: 0.9}}
"""
CHAT, API = ("chat", "llama", "fast"), ("", "gpt", "")


def run(folder: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        [sys.executable, "-m", "exporter", "report", f"--storage.path={folder}", *arguments],
        capture_output=True, text=True, cwd=REPOSITORY, timeout=30, check=False,
        env={**os.environ, "PYTHONWARNINGS": "error", **environment},
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    return done


def said(folder: Path, *arguments: str) -> Any:
    done = run(folder, *arguments, "--format=json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def rows(folder: Path, *arguments: str) -> list[dict[str, str]]:
    done = run(folder, *arguments, "--format=csv")
    assert done.returncode == 0, done.stderr
    return list(csv.DictReader(io.StringIO(done.stdout)))


def change(*booked: tuple[Kind, tuple[str, ...], int], at: int = NOON, **more: Any) -> Change:
    buckets = {(Account(kind, labels), at): amount for kind, labels, amount in booked}
    return Change(totals={account: amount for (account, _), amount in buckets.items()}, buckets=buckets, **more)


def write(folder: Path, *changes: Change) -> Path:
    with writing(folder) as ledger:
        commit(ledger, Change(meta={"accounting_start": str(BEGAN * NANO)}).merged(*changes))
    return folder


BOOKS = change(
    (Kind.SPEND, ("compute_busy", *CHAT), 100 * NANO),
    (Kind.SPEND, ("compute_idle", *CHAT), 70 * NANO + 1),
    (Kind.SPEND, ("storage", *CHAT), NANO // 3),
    (Kind.SPEND, ("api", *API), 20 * NANO),
    (Kind.ATTRIBUTED, ("summary", "docs", *CHAT), 48 * NANO),
    (Kind.ATTRIBUTED, ("chat", "web", *CHAT), 30 * NANO),
    (Kind.ATTRIBUTED, ("unattributed", "", *CHAT), 10 * NANO),
    (Kind.ATTRIBUTED, ("chat", "web", *API), 20 * NANO),
    (Kind.FEATURE_REQUESTS, ("summary", "docs", *CHAT[1:]), 1200),
    (Kind.FEATURE_OUTPUT_TOKENS, ("summary", "docs", *CHAT[1:]), 36_000_000),
    (Kind.PROMPT_TOKENS, CHAT, 90_000_000),
    (Kind.OUTPUT_TOKENS, CHAT, 50_000_000),
    (Kind.REQUESTS, ("chat", "llama", "finished"), 7000),
    pending={(Slot("chat", NOON, 300), ("nano_usd", "llama", "fast")): 12 * NANO},
)
TOTAL = "190.333333334"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("report") / "data", BOOKS)


FEATURES = """\
Spend from 2026-10-01 to before 2026-11-01, UTC

 feature                        usd    share   requests   output tokens   usd / 1M output
 ────────────────────────────────────────────────────────────────────────────────────────
 chat                         50.00   26.3 %
 summary                      48.00   25.2 %      1,200      36,000,000            1.3333
 unattributed                 10.00    5.3 %
 (not attributed: idle)       70.00   36.8 %
 (pending)                    12.00    6.3 %
 (not attributed: storage)     0.33    0.2 %

 total                       190.33
"""


def test_who_spent_it_as_a_table(folder: Path):
    for environment in ({}, {"FORCE_COLOR": "1", "TERM": "xterm-256color"}, {"COLUMNS": "20"}):
        done = run(folder, *OCTOBER, "--by=feature", **environment)
        assert (done.returncode, done.stdout, done.stderr) == (0, FEATURES, "")


def test_a_terminal_cuts_no_amount_short(folder: Path):
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "exporter", "report", f"--storage.path={folder}", *OCTOBER, "--by=feature"]
    environment = {**os.environ, "COLUMNS": "20", "TERM": "xterm", "NO_COLOR": "1"}
    subprocess.run(command, stdout=follower, cwd=REPOSITORY, timeout=30, check=True, env=environment)
    os.close(follower)
    shown = os.read(leader, 65_536).decode()
    os.close(leader)
    assert all(amount in shown for amount in ("190.33", "36,000,000", "1.3333", "(not attributed: storage)"))


def test_who_spent_it_as_csv(folder: Path):
    found = rows(folder, *OCTOBER, "--by=feature", "--by=day")
    assert sum(Decimal(row["usd"]) for row in found) == Decimal(TOTAL)
    assert found[1] == {
        "feature": "summary",
        "day": "2026-10-20",
        "not_attributed": "",
        "usd": "48.000000000",
        "share_ratio": "0.252189",
        "requests": "1200",
        "prompt_tokens": "",
        "output_tokens": "36000000",
        "usd_per_million_output_tokens": "1.333333333",
    }
    assert [(row["feature"], row["not_attributed"]) for row in found[3:]] == [
        ("", "compute_idle"),
        ("", "pending"),
        ("", "storage"),
    ]


def test_what_it_bought_as_json(folder: Path):
    assert said(folder, *OCTOBER, "--by=engine") == {
        "from": "2026-10-01T00:00:00+00:00",
        "to": "2026-11-01T00:00:00+00:00",
        "timezone": "UTC",
        "currency": "USD",
        "by": ["engine"],
        "rows": [
            {
                "engine": "chat",
                "usd": "170.333333334",
                "share_ratio": 0.894921,
                "requests": 7000,
                "prompt_tokens": 90_000_000,
                "output_tokens": 50_000_000,
                "usd_per_million_output_tokens": "3.406666667",
            },
            {
                "engine": "",
                "usd": "20.000000000",
                "share_ratio": 0.105079,
                "requests": None,
                "prompt_tokens": None,
                "output_tokens": None,
                "usd_per_million_output_tokens": None,
            },
        ],
        "total_usd": TOTAL,
    }


@pytest.mark.parametrize("by", ["feature", "team", "model", "tier", "engine", "category", "day"])
def test_every_grouping_has_the_same_total(folder: Path, by: str):
    assert said(folder, *OCTOBER, f"--by={by}", f"--by={by}")["total_usd"] == TOTAL
    assert sum(Decimal(row["usd"]) for row in rows(folder, *OCTOBER, f"--by={by}")) == Decimal(TOTAL)


def test_idle_spend_is_shared_on_demand(folder: Path):
    found = {
        row["team"] or row["not_attributed"]: row["usd"] for row in rows(folder, *OCTOBER, "--by=team", "--share-idle")
    }
    assert found == {
        "docs": "86.181818182",
        "web": "73.863636364",
        "unattributed": "17.954545455",
        "pending": "12.000000000",
        "storage": "0.333333333",
    }


def test_cost_is_held_against_value(folder: Path, tmp_path: Path):
    config = tmp_path / "config.yml"
    config.write_text(CONFIG)
    arguments = (*OCTOBER, "--value", f"--config.file={config}")
    found = {row["feature"]: row for row in said(folder, *arguments)["rows"] if row["feature"]}
    told = [(row["cost_ratio"], row["value_ratio"], row["right_sizing_candidate"]) for row in found.values()]
    assert list(found) == ["chat", "summary", "unattributed"]
    assert told == [(0.462963, 0.9, False), (0.444444, 0.05, True), (0.092593, None, None)]
    lines = run(folder, *arguments).stdout.splitlines()
    assert [line.split()[0] for line in lines if line.endswith("candidate")] == ["summary"]
    assert lines[-1].startswith("A candidate has ")


INVOICE = """\
Invoice: 200.00 USD
The ledger has: 190.33 USD
Unexplained: 9.67 USD, 4.83 % of the invoice
Known to be missing: 1.50 GPU hours without a price
Known to be missing: 48.00 hours before the ledger knows anything
Known to be missing: 9 tokens without a price
"""


def test_an_invoice_is_compared_with_the_ledger(tmp_path: Path):
    lacking = change(
        (Kind.UNPRICED_GPU, (*CHAT, "A10G"), 5400 * NANO),
        (Kind.UNPRICED_TOKENS, ("other",), 9),
        meta={"accounting_start": str((BEGAN + 48 * 3600) * NANO)},
    )
    folder = write(tmp_path / "data", BOOKS, lacking)
    done = run(folder, *OCTOBER, "--invoice-usd=200")
    assert done.stdout.endswith("\n" + INVOICE)
    assert done.stderr.splitlines() == [
        "warning: the period begins before the ledger does (2026-10-03T00:00:00Z): what was spent before is not in it",
        "warning: not in the figures: 1.50 GPU hours without a price, 9 tokens without a price",
    ]
    assert said(folder, *OCTOBER, "--invoice-usd=200")["invoice"] == {
        "invoice_usd": "200.000000000",
        "ledger_usd": TOTAL,
        "unexplained_usd": "9.666666666",
        "unexplained_ratio": 0.048333,
        "unpriced_gpu_seconds": 5400.0,
        "unpriced_tokens": 9,
        "unobserved_seconds": 0.0,
        "before_history_seconds": 172_800.0,
    }
    as_csv = run(folder, *OCTOBER, "--invoice-usd=200", "--format=csv")
    assert INVOICE in as_csv.stderr
    assert as_csv.stdout.count("\n") == 1 + 4


def test_names_are_only_names(tmp_path: Path):
    """Neither a spreadsheet's formula nor a terminal's command, and no encoding is too small for them."""
    names = ["=1+1", "+1", "-1", "@x", "[red]日", "plain", 'a,"b']
    folder = write(
        tmp_path / "data", change(*((Kind.SPEND, ("other", name, "\x1b[31mred", ""), NANO) for name in names))
    )
    found = {row["engine"] for row in rows(folder, *OCTOBER, "--by=engine")}
    assert found == {"'=1+1", "'+1", "'-1", "'@x", "[red]日", "plain", 'a,"b'}
    assert {row["engine"] for row in said(folder, *OCTOBER, "--by=engine")["rows"]} == set(names)
    shown = run(folder, *OCTOBER, "--by=engine", "--by=model").stdout
    assert all(name in shown for name in names)
    assert "\ufffd[31mred" in shown
    small = run(folder, *OCTOBER, "--by=engine", PYTHONIOENCODING="latin-1")
    assert (small.returncode, small.stderr) == (0, "")
    assert "[red]\\u65e5" in small.stdout


# --- periods


def hourly(first: datetime, hours: int) -> Change:
    starts = [int((first + timedelta(hours=hour)).timestamp()) for hour in range(hours)]
    return Change().merged(*(change((Kind.SPEND, ("other", *CHAT), NANO), at=start) for start in starts))


def test_days_of_a_zone_have_23_and_25_hours(tmp_path: Path):
    spring, autumn = datetime(2026, 3, 28, tzinfo=UTC), datetime(2026, 10, 24, tzinfo=UTC)
    early = Change(meta={"accounting_start": "0"})
    folder = write(tmp_path / "data", hourly(spring, 72), hourly(autumn, 72), early)
    zone = "--timezone=Europe/Berlin"
    for day, hours in {"2026-03-29": 23, "2026-03-30": 24, "2026-10-25": 25}.items():
        assert said(folder, zone, f"--day={day}")["total_usd"] == f"{hours}.000000000"
    found = said(folder, zone, "--by=day", "--from=2026-10-25", "--to=2026-10-27")
    assert [(row["day"], row["usd"]) for row in found["rows"]] == [
        ("2026-10-25", "25.000000000"),
        ("2026-10-26", "24.000000000"),
    ]
    assert (found["from"], found["to"]) == ("2026-10-25T00:00:00+02:00", "2026-10-27T00:00:00+01:00")
    assert said(folder, "--day=2026-10-25")["total_usd"] == "24.000000000"


def test_this_month_is_what_is_asked_for_by_default(tmp_path: Path):
    now = int(time.time())
    folder = write(tmp_path / "data", change((Kind.SPEND, ("other", *CHAT), NANO), at=now // 900 * 900))
    done = run(folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].endswith(", UTC, so far")
    assert said(folder)["total_usd"] == "1.000000000"
    today = datetime.fromtimestamp(now, UTC).date()
    assert (
        run(folder, f"--from={today}", f"--to={today + timedelta(days=2)}").stderr
        == "warning: the period is not over\n"
    )


@pytest.mark.parametrize("form", ["table", "csv", "json"])
def test_a_period_without_spend_is_empty(folder: Path, form: str):
    done = run(folder, "--day=2026-10-19", "--by=feature", f"--format={form}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].split() == {
        "table": ["total", "0.00"],
        "json": ["}"],
        "csv": [
            "feature,not_attributed,usd,share_ratio,requests,prompt_tokens,output_tokens,usd_per_million_output_tokens"
        ],
    }[form]  # fmt: skip


def test_the_future_and_what_is_forgotten_are_told(tmp_path: Path):
    folder = write(tmp_path / "data", BOOKS, Change(totals={Account(Kind.SPEND, ("storage", *CHAT)): NANO}))
    assert run(folder, "--month=2999-01").stderr == "warning: the period lies in the future\n"
    line = "warning: the period begins before the oldest amounts that the ledger keeps (2026-10-20T12:00:00Z)\n"
    assert run(folder, *OCTOBER).stderr == line
    assert run(folder, "--day=2026-10-20").stderr == line
    assert run(folder, "--from=2026-10-21", "--to=2026-10-22").stderr == ""


# --- what cannot be answered


ZONE = "Invalid value for '--timezone': expected an IANA time zone like Europe/Berlin, found "
DAY = "Invalid value for '--day': expected a date like 2026-11-24, found "


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--by=category --by=team", "--by: no book knows both: category is told apart by the bill alone, team by "),
        ("--by=user", "Invalid value for '--by': 'user' is not one of 'feature', 'team', 'model', "),
        ("--day=2026-02-30", f"{DAY}'2026-02-30'"),
        ("--day=9999-12-31", f"{DAY}'9999-12-31'"),
        ("--day=today", f"{DAY}'today'"),
        ("--month=2026-13", "Invalid value for '--month': expected a month like 2026-11, found '2026-13'"),
        ("--timezone=Mars", f"{ZONE}'Mars'"),
        ("--timezone=../x", f"{ZONE}'../x'"),
        ("--timezone=Europe", f"{ZONE}'Europe'"),
        ("--timezone=right/UTC", f"{ZONE}'right/UTC'"),
        ("--timezone=", f"{ZONE}''"),
        ("--from=2026-10-01", "expected --from and --to together, found one of them"),
        ("--from=2026-10-02 --to=2026-10-02", "expected --to after --from, found 2026-10-02 and 2026-10-02"),
        ("--day=2026-10-01 --month=2026-10", "expected one of --from with --to, --month and --day, found several"),
        ("--share-idle --by=engine", "--share-idle: expected --by feature or --by team"),
        ("--value --by=team", "--value: expected --by feature alone"),
        ("--value", "--value: expected --config.file with features.value_ratio, found none"),
        ("--invoice-usd=0", "Invalid value for '--invoice-usd': expected an amount in US dollars above 0, found '0'"),
        ("--nonsense", "No such option"),
        ("extra", "Got unexpected extra argument"),
    ],
)
def test_arguments_that_make_no_report_are_told_in_one_line(folder: Path, arguments: str, line: str):
    done = run(folder, *arguments.split())
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"Error: {line}")


def test_a_report_needs_a_ledger():
    command = [sys.executable, "-m", "exporter", "report"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (2, "Error: Missing option '--storage.path'.\n")


def test_a_ledger_that_is_none_is_told_in_one_line(tmp_path: Path):
    done = run(tmp_path / "nowhere")
    path = tmp_path / "nowhere" / NAME
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"{path}: expected a ledger, found none\n")
    (tmp_path / NAME).write_text("no database, and long enough to be taken for none" * 100)
    done = run(tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"{tmp_path / NAME}: expected a ledger that can be used, found: ")


def test_a_config_that_is_none_is_told_in_one_line(folder: Path, tmp_path: Path):
    missing = tmp_path / "none.yml"
    done = run(folder, f"--config.file={missing}")
    line = f"{missing}: expected a readable file, found: No such file or directory\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


def test_a_ledger_is_read_while_it_is_written(tmp_path: Path):
    """The writer books into four quarters of 2096, all of one day: whatever is committed sums up."""
    folder, output = tmp_path / "data", tmp_path / "writer.out"
    seen = []
    with output.open("wb") as file, start_writer(folder, "7", file) as process:
        until(lambda: b"committed" in output.read_bytes())
        for _ in range(5):
            found = said(folder, "--month=2096-10", "--by=engine")
            assert sum(Decimal(row["usd"]) for row in found["rows"]) == Decimal(found["total_usd"])
            seen.append(Decimal(found["total_usd"]))
        assert process.poll() is None
    assert 0 < seen[0] < seen[-1]
    assert seen == sorted(seen)
