"""FOCUS: rows sum to the bill whatever the books hold, nothing counts twice, and what is not known is null."""

import csv
import io
import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.cli.report_focus import as_csv
from exporter.core.attribution import Item, Slot
from exporter.core.focus import INPUT, Cell, Row, dollars, record, rows
from exporter.core.money import NANO, Account, Category, Kind
from exporter.core.periods import QUARTER, Period, month


def utc(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


OCTOBER = month(ZoneInfo("UTC"), utc("2026-10-10") * NANO)
NOON = utc("2026-10-20T12:00")
Amounts = dict[tuple[Account, int], int]
Waiting = dict[tuple[Slot, Item], int]


def booked(kind: Kind, amount: int, *labels: str, at: int = NOON) -> Amounts:
    return {(Account(kind, labels), at): amount}


def busy(amount: int, at: int = NOON) -> Amounts:
    return booked(Kind.SPEND, amount, "compute_busy", "chat", "m", "fast", at=at)


def paid(feature: str, amount: int, at: int = NOON) -> Amounts:
    return booked(Kind.ATTRIBUTED, amount, feature, "docs", "chat", "m", "fast", at=at)


def api(amount: int, model: str = "gpt", at: int = NOON) -> Amounts:
    spend = booked(Kind.SPEND, amount, "api", "", model, "", at=at)
    return spend | booked(Kind.ATTRIBUTED, amount, "sum", "docs", "", model, "", at=at)


def directed(buckets: Amounts, prompts: int) -> Amounts:
    """The same with the direction of what is attributed: so much of it for prompts, the rest for output."""
    (((_, labels), at), amount), *_ = (one for one in buckets.items() if one[0][0].kind is Kind.ATTRIBUTED)
    parts = {Kind.ATTRIBUTED_INPUT: prompts, Kind.ATTRIBUTED_OUTPUT: amount - prompts}
    return buckets | {(Account(kind, labels), at): part for kind, part in parts.items() if part}


def claimed(prompt: int, output: int, model: str = "gpt", at: int = NOON) -> Amounts:
    labels = ("sum", "docs", model, "")
    counts = {Kind.FEATURE_PROMPT_TOKENS: prompt, Kind.FEATURE_OUTPUT_TOKENS: output}
    return {(Account(kind, labels), at): count for kind, count in counts.items() if count}


def told(buckets: Amounts, pending: Waiting | None = None, period: Period = OCTOBER) -> list[Row]:
    return rows(period, buckets, pending or {})


def only(buckets: Amounts) -> dict[str, str]:
    (row,) = told(buckets)
    return record(row)


def read(found: list[Row]) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(as_csv(found, lambda name: name), newline="")))


# --- whatever the books hold

QUARTERS = st.integers(utc("2026-09-29") // QUARTER, utc("2026-11-02") // QUARTER).map(
    lambda quarter: quarter * QUARTER
)
HOSTILE = ['a,"b', "a\nb", "a\r\nb", "\r", "=1+1", "'", "\x00", "{}", "日本", "\ud800", " "]
NAMES = st.sampled_from(["a", "b", "", *HOSTILE])
USD = st.integers(0, 10**14)
BILLED = st.builds(
    lambda *labels: Account(Kind.SPEND, labels), st.sampled_from(list(Category)).map(str), NAMES, NAMES, NAMES
)
FOR_FEATURES = st.builds(
    Account,
    st.sampled_from([Kind.ATTRIBUTED, Kind.ATTRIBUTED_INPUT, Kind.ATTRIBUTED_OUTPUT]),
    st.tuples(st.sampled_from(["x", "unattributed", "", *HOSTILE]), NAMES, NAMES, NAMES, NAMES),
)  # fmt: skip
CLAIMED = st.builds(
    lambda kind, *labels: Account(kind, labels),
    st.sampled_from([Kind.FEATURE_PROMPT_TOKENS, Kind.FEATURE_OUTPUT_TOKENS]), NAMES, NAMES, NAMES, NAMES,
)  # fmt: skip
BOOKS = st.dictionaries(st.tuples(st.one_of(BILLED, FOR_FEATURES, CLAIMED), QUARTERS), USD, max_size=30)
SLOT = st.builds(lambda engine, start, part: Slot(engine, start + 300 * part, 300), NAMES, QUARTERS, st.integers(0, 2))
SLOTS = st.dictionaries(st.tuples(SLOT, st.tuples(st.just("nano_usd"), NAMES, NAMES)), USD, max_size=5)


def billed(buckets: Amounts, *categories: str) -> int:
    return sum(
        amount
        for (account, start), amount in buckets.items()
        if account.kind is Kind.SPEND
        and start * NANO in OCTOBER
        and (not categories or account.labels[0] in categories)
    )


@given(buckets=BOOKS, pending=SLOTS)
def test_the_file_sums_to_the_bill_to_the_nano_dollar(buckets: Amounts, pending: Waiting):
    found = told(buckets, pending)
    for column in ("BilledCost", "EffectiveCost", "ListCost", "ContractedCost"):
        assert sum(Decimal(row[column]) for row in read(found)) * NANO == billed(buckets)
    of_category: Counter[str] = Counter()
    for row in found:
        of_category[row.cell.category] += row.nano_usd
    assert all(of_category[one] == billed(buckets, one) for one in Category)


@given(buckets=BOOKS, pending=SLOTS)
def test_showback_is_there_as_it_is_and_once(buckets: Amounts, pending: Waiting):
    found = told(buckets, pending)
    attributed = sum(
        amount for (account, at), amount in buckets.items() if account.kind is Kind.ATTRIBUTED and at * NANO in OCTOBER
    )
    waiting = sum(amount for (slot, _), amount in pending.items() if slot.start * NANO in OCTOBER)
    assert sum(row.nano_usd for row in found if row.cell.attribution == "attributed") == attributed
    assert sum(row.nano_usd for row in found if row.cell.attribution == "pending") == waiting
    assert len({row.cell for row in found}) == len(found)


@given(buckets=BOOKS, pending=SLOTS)
def test_periods_are_half_open_hours_of_a_half_open_month(buckets: Amounts, pending: Waiting):
    for row in read(told(buckets, pending)):
        start, end = (datetime.fromisoformat(row[f"ChargePeriod{edge}"]) for edge in ("Start", "End"))
        assert end - start == timedelta(hours=1)
        assert (start.minute, start.second, start.utcoffset()) == (0, 0, timedelta())
        assert (row["BillingPeriodStart"], row["BillingPeriodEnd"]) == ("2026-10-01T00:00:00Z", "2026-11-01T00:00:00Z")
        assert row["BillingPeriodStart"] <= row["ChargePeriodStart"]
        assert row["ChargePeriodEnd"] <= row["BillingPeriodEnd"]


@given(amount=st.integers(-(2**63), 2**63))
def test_money_is_a_plain_decimal(amount: int):
    assert Decimal(dollars(amount)) * NANO == amount
    assert len(dollars(amount).partition(".")[2]) == 9


# --- hours


def test_quarters_are_summed_by_hour_and_the_next_hour_is_another():
    found = told(busy(1, NOON) | busy(2, NOON + 2700) | busy(4, NOON + 3600) | busy(8, NOON - 1 - NOON % QUARTER))
    periods = [(record(row)["ChargePeriodStart"][11:16], row.nano_usd) for row in found]
    assert periods == [("11:00", 8), ("12:00", 3), ("13:00", 4)]


@pytest.mark.parametrize(
    ("last", "after"),
    [
        ("2026-12-31T23:45", "2027-01-01T00:00:00Z"),
        ("2028-02-29T23:45", "2028-03-01T00:00:00Z"),
        ("2026-10-25T01:45", "2026-11-01T00:00:00Z"),  # an hour that Berlin has twice
    ],
)
def test_a_billing_period_is_a_month_of_utc(last: str, after: str):
    whole = Period(0, utc("2100-01-01") * NANO)
    (row,) = told(busy(1, utc(last)), period=whole)
    found = record(row)
    assert found["BillingPeriodEnd"] == after
    assert found["ChargePeriodEnd"] == f"{datetime.fromtimestamp(utc(last) + QUARTER, UTC):%Y-%m-%dT%H}" + ":00:00Z"


def test_what_lies_at_the_end_is_in_the_next_period():
    edges = busy(1, OCTOBER.start // NANO) | busy(2, OCTOBER.end // NANO - QUARTER) | busy(4, OCTOBER.end // NANO)
    assert sum(row.nano_usd for row in told(edges)) == 3


# --- rows


def test_what_no_feature_claims_has_a_row_of_its_own():
    idle = {category: index for index, category in enumerate(Category, 1)}
    buckets: Amounts = {}
    for category, amount in idle.items():
        buckets |= booked(Kind.SPEND, amount, category, "chat", "m", "fast")
    found = {row.cell.category: row for row in told(buckets)}
    assert {category: row.nano_usd for category, row in found.items()} == idle
    assert {row.cell.attribution for name, row in found.items() if name not in ("compute_busy", "api")} == {""}
    assert record(found["compute_idle"])["SkuId"] == "compute_idle/m"
    assert record(found["compute_loading"])["SkuMeter"] == "Loading Compute"


def test_busy_spend_is_shown_as_showback_and_what_that_lacks():
    pending: Waiting = {(Slot("chat", NOON + 300, 300), ("nano_usd", "m", "fast")): 12}
    found = told(busy(100) | paid("sum", 50) | paid("unattributed", 30), pending)
    assert [(row.cell.attribution, row.cell.feature, row.nano_usd) for row in found] == [
        ("attributed", "sum", 50),
        ("attributed", "unattributed", 30),
        ("not_attributed", "", 8),
        ("pending", "", 12),
    ]
    assert [json.loads(record(row)["Tags"]).get("feature") for row in found] == ["sum", None, None, None]
    assert [record(row)["ChargeDescription"].split(",")[0] for row in found] == [
        "Busy Compute", "Busy Compute", "Busy Compute (not attributed)", "Busy Compute (pending)",
    ]  # fmt: skip


def test_what_is_booked_late_stands_below_zero():
    found = told(busy(10, NOON - 3600) | paid("sum", 10))
    assert [row.nano_usd for row in found] == [10, 10, -10]
    assert record(found[-1])["BilledCost"] == "-0.000000010"
    assert record(found[-1])["ChargeDescription"].startswith("Busy Compute (booked late)")


# --- tokens


@pytest.mark.parametrize(
    ("prompt", "output", "sku", "meter", "quantity"),
    [
        (1000, 200, "api/gpt", "Tokens", "1200.0"),
        (1000, 0, "api_input_tokens/gpt", "Input Tokens", "1000.0"),
        (0, 200, "api_output_tokens/gpt", "Output Tokens", "200.0"),
    ],
)
def test_tokens_of_an_api_have_a_direction_where_there_is_one(
    prompt: int, output: int, sku: str, meter: str, quantity: str
):
    row = only(api(5) | claimed(prompt, output))
    assert (row["SkuId"], row["SkuMeter"]) == (sku, meter)
    assert (row["ConsumedQuantity"], row["ConsumedUnit"]) == (quantity, "Tokens")
    assert (row["PricingQuantity"], row["PricingUnit"]) == (quantity, "Tokens")
    assert (row["x_InputTokens"], row["x_OutputTokens"]) == (f"{prompt}.0", f"{output}.0")


def test_a_row_has_one_direction_where_the_books_tell_it():
    found = [record(row) for row in told(directed(api(50), 20) | claimed(1000, 200))]
    assert [(row["SkuId"], row["SkuMeter"], row["BilledCost"][-2:]) for row in found] == [
        ("api_input_tokens/gpt", "Input Tokens", "20"),
        ("api_output_tokens/gpt", "Output Tokens", "30"),
    ]
    assert [row["ConsumedQuantity"] for row in found] == ["1000.0", "200.0"]
    assert [(row["x_InputTokens"], row["x_OutputTokens"]) for row in found] == [("1000.0", ""), ("", "200.0")]


@pytest.mark.parametrize(
    ("prompts", "costs"),
    [(50, [("Input Tokens", "50"), ("Output Tokens", "00")]), (0, [("Input Tokens", "00"), ("Output Tokens", "50")])],
)
def test_tokens_of_a_direction_that_is_free_keep_their_row(prompts: int, costs: list[tuple[str, str]]):
    found = [record(row) for row in told(directed(api(50), prompts) | claimed(1000, 200))]
    assert [(row["SkuMeter"], row["BilledCost"][-2:]) for row in found] == costs
    assert [row["ConsumedQuantity"] for row in found] == ["1000.0", "200.0"]
    (alone,) = told(directed(api(50), 50) | claimed(1000, 0))
    assert alone.cell.direction == INPUT


def test_busy_time_has_a_direction_by_the_work_and_idle_time_none():
    idle = booked(Kind.SPEND, 7, "compute_idle", "chat", "m", "fast")
    found = [record(row) for row in told(directed(busy(50) | paid("sum", 50), 20) | idle)]
    assert [(row["SkuId"], row["SkuMeter"], row["BilledCost"][-2:], row["ConsumedQuantity"]) for row in found] == [
        ("compute_busy_input_tokens/m", "Input Tokens", "20", ""),
        ("compute_busy_output_tokens/m", "Output Tokens", "30", ""),
        ("compute_idle/m", "Idle Compute", "07", ""),
    ]


def test_money_of_which_the_direction_is_not_known_stays_a_row_of_its_own_and_tokens_are_null():
    old, new = api(50, at=NOON), directed(api(30, at=NOON + QUARTER), 10)
    found = [record(row) for row in told(old | new | claimed(1000, 200))]
    assert [(row["SkuMeter"], row["BilledCost"][-2:], row["ConsumedQuantity"]) for row in found] == [
        ("Tokens", "50", ""),
        ("Input Tokens", "10", ""),
        ("Output Tokens", "20", ""),
    ]


@pytest.mark.parametrize(
    "buckets",
    [
        api(5),
        api(5) | claimed(1, 1, at=NOON + 3600),
        api(5, "other") | claimed(1, 1, "other"),
        api(5) | claimed(1, 1) | booked(Kind.SPEND, 0, "compute_idle", "chat", "gpt", ""),
        api(5) | claimed(1, 1) | booked(Kind.PROMPT_TOKENS, 3, "chat", "gpt", ""),
        busy(5) | paid("sum", 5) | claimed(1, 1, "m"),
    ],
    ids=["never told", "of another hour", "of no name", "an engine's", "counted by an engine", "of an engine"],
)
def test_tokens_that_may_be_anothers_are_null_and_the_quantity_is_the_money(buckets: Amounts):
    row = only(buckets)
    assert (row["ConsumedQuantity"], row["ConsumedUnit"], row["x_InputTokens"], row["x_OutputTokens"]) == ("",) * 4
    assert (row["PricingQuantity"], row["PricingUnit"]) == (row["BilledCost"], "USD")


# --- names


@given(name=st.one_of(st.sampled_from(HOSTILE), st.text(min_size=1)))
def test_any_name_comes_through(name: str):
    cell = Cell(NOON, "compute_busy", name, name, name, "attributed", name, name)
    (found,) = read([Row(cell=cell, nano_usd=1)])
    columns = ("ResourceId", "x_Engine", "x_Model", "x_Tier", "x_Feature", "x_Team")
    assert {found[column] for column in columns} == {name}
    tags: dict[str, Any] = json.loads(found["Tags"])
    assert set(tags.values()) <= {name}
    assert found["Tags"].isascii()
    assert found["ChargeDescription"].isascii()
    assert len(found["ChargeDescription"].splitlines()) == 1


def test_no_record_has_a_cell_that_begins_a_formula_but_money_below_zero():
    cell = Cell(NOON, "compute_busy", "=x", "=x", "=x", "attributed", "=x", "=x")
    text = as_csv([Row(cell=cell, nano_usd=1)], lambda name: f"'{name}")
    (found,) = csv.DictReader(io.StringIO(text))
    assert not [column for column, value in found.items() if value.startswith("=")]
