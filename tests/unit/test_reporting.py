"""Reports: rows sum to the bill whatever the books hold, and what is not known is empty."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from itertools import combinations
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.core.attribution import Item, Slot
from exporter.core.money import NANO, Account, Category, Kind
from exporter.core.periods import QUARTER, Period, month
from exporter.core.reporting import (
    KEYS,
    History,
    Missing,
    Question,
    Row,
    answer,
    by_day,
    cautions,
    first_instant,
    is_candidate,
    lacks,
    local_date,
    missing,
    objection,
    values,
)

BERLIN = ZoneInfo("Europe/Berlin")
HOUR = 3600 * NANO


def utc(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


OCTOBER = month(BERLIN, utc("2026-10-10") * NANO)  # with a day of 25 hours
NOON = utc("2026-10-20T12:00")
Amounts = dict[tuple[Account, int], int]
Waiting = dict[tuple[Slot, Item], int]


def asked(*by: str, share_idle: bool = False) -> Question:
    return Question(by=by, period=OCTOBER, zone=BERLIN, share_idle=share_idle)


def told(question: Question, buckets: Amounts, pending: Waiting | None = None) -> list[Row]:
    return answer(question, by_day(question, buckets), pending or {})


def money(rows: Iterable[Row]) -> dict[tuple[str, ...], int]:
    """By key, and the rest where there is one."""
    return {(*row.key, row.rest) if row.rest else row.key: row.nano_usd for row in rows}


def bill(category: str, amount: int, engine: str = "chat", model: str = "m", at: int = NOON) -> Amounts:
    return {(Account(Kind.SPEND, (category, engine, model, "fast")), at): amount}


def paid(feature: str, amount: int, team: str = "", engine: str = "chat", at: int = NOON) -> Amounts:
    return {(Account(Kind.ATTRIBUTED, (feature, team, engine, "m", "fast")), at): amount}


def claimed(feature: str, output: int, team: str = "", model: str = "m") -> Amounts:
    return {(Account(Kind.FEATURE_OUTPUT_TOKENS, (feature, team, model, "fast")), NOON): output}


def counted(kind: Kind, amount: int, *labels: str) -> Amounts:
    return {(Account(kind, labels), NOON): amount}


def waits(amount: int, at: int = NOON, model: str = "m") -> Waiting:
    return {(Slot("chat", at + 300, 300), ("nano_usd", model, "fast")): amount}


# --- whatever the books hold

GROUPINGS = [by for size in (1, 2, 3) for by in combinations(KEYS, size) if objection(by) is None]
QUARTERS = st.integers(utc("2026-09-29") // QUARTER, utc("2026-11-02") // QUARTER).map(
    lambda quarter: quarter * QUARTER
)
NAMES = st.sampled_from(["a", "b", ""])
USD = st.integers(0, 10**12)
BILLED = st.builds(
    lambda *labels: Account(Kind.SPEND, labels), st.sampled_from(list(Category)).map(str), NAMES, NAMES, NAMES
)
FOR_FEATURES = st.builds(
    lambda *labels: Account(Kind.ATTRIBUTED, labels),
    st.sampled_from(["x", "y", "unattributed"]),
    NAMES,
    NAMES,
    NAMES,
    NAMES,
)
BOOKS = st.dictionaries(st.tuples(st.one_of(BILLED, FOR_FEATURES), QUARTERS), USD, max_size=30)
SLOTS = st.dictionaries(
    st.tuples(
        st.builds(
            lambda engine, start, part: Slot(engine, start + 300 * part, 300), NAMES, QUARTERS, st.integers(0, 2)
        ),
        st.tuples(st.just("nano_usd"), NAMES, NAMES),
    ),
    USD,
    max_size=5,
)


def billed(buckets: Amounts) -> int:
    return sum(
        amount for (account, start), amount in buckets.items() if account.kind is Kind.SPEND and start * NANO in OCTOBER
    )


@given(BOOKS, SLOTS, st.sampled_from(GROUPINGS), st.booleans())
def test_the_rows_of_any_grouping_sum_to_the_bill(buckets: Amounts, pending: Waiting, by: tuple[str, ...], idle: bool):
    rows = told(asked(*by, share_idle=idle), buckets, pending)
    assert sum(row.nano_usd for row in rows) == billed(buckets)
    assert len({(row.key, row.rest) for row in rows}) == len(rows)
    assert all(row.nano_usd for row in rows)


# finer and coarser groupings that read the same book and know the same of whom nobody named
COARSER = [
    (by, left)
    for by in GROUPINGS
    for left in combinations(by, len(by) - 1)
    if left and {"feature", "team"} & {*by} == {"feature", "team"} & {*left}
]


@given(BOOKS, SLOTS, st.sampled_from(COARSER), st.booleans())
def test_a_coarser_report_is_the_sum_of_a_finer_one(
    buckets: Amounts, pending: Waiting, pair: tuple[tuple[str, ...], tuple[str, ...]], idle: bool
):
    """Also with idle spend shared: what a feature pays does not depend on what else is told apart."""
    by, coarse = pair
    sums: Counter[tuple[tuple[str, ...], str]] = Counter()
    for row in told(asked(*by, share_idle=idle), buckets, pending):
        sums[tuple(name for key, name in zip(by, row.key, strict=True) if key in coarse), row.rest] += row.nano_usd
    rows = told(asked(*coarse, share_idle=idle), buckets, pending)
    assert {(row.key, row.rest): row.nano_usd for row in rows} == {group: usd for group, usd in sums.items() if usd}


@given(st.lists(st.tuples(st.sampled_from("xyz"), st.integers(1, 10**9)), min_size=1, max_size=6), USD, USD)
def test_books_that_agree_leave_nothing_busy_over(parts: list[tuple[str, int]], waiting: int, idle: int):
    of: Counter[str] = Counter()
    for feature, amount in parts:
        of[feature] += amount
    buckets = bill("compute_busy", of.total() + waiting) | bill("compute_idle", idle)
    for feature, amount in of.items():
        buckets |= paid(feature, amount)
    rests = {("", "pending"): waiting, ("", "compute_idle"): idle}
    expected = {(feature,): amount for feature, amount in of.items()} | {key: usd for key, usd in rests.items() if usd}
    assert money(told(asked("feature"), buckets, waits(waiting))) == expected


@given(st.dictionaries(st.sampled_from("xyz"), st.integers(1, 10**12), min_size=1), USD)
def test_idle_spend_is_shared_as_busy_spend_is(busy: dict[str, int], idle: int):
    buckets = bill("compute_busy", sum(busy.values())) | bill("compute_idle", idle)
    for feature, amount in busy.items():
        buckets |= paid(feature, amount)
    rows = told(asked("feature", share_idle=True), buckets)
    assert not any(row.rest for row in rows)
    for row in rows:
        own = busy[row.key[0]]
        assert abs(row.nano_usd - own - Fraction(idle * own, sum(busy.values()))) < 1


# --- which book, and what it does not hold


@pytest.mark.parametrize("by", [("category", "feature"), ("team", "day", "category")])
def test_what_no_book_tells_apart_is_refused(by: tuple[str, ...]):
    assert str(objection(by)).startswith("no book knows both: category is told apart by the bill alone, ")


def test_by_feature_whatever_nobody_can_claim_stands_beside_showback():
    buckets = (
        bill("compute_busy", 10) | bill("compute_idle", 7) | bill("storage", 3) | bill("api", 5, engine="")
        | paid("x", 6) | paid("unattributed", 4) | paid("x", 5, engine="")
    )  # fmt: skip
    assert money(told(asked("feature"), buckets)) == {
        ("x",): 11,
        ("unattributed",): 4,
        ("", "compute_idle"): 7,
        ("", "storage"): 3,
    }


def test_what_nobody_claimed_is_no_team_s_and_no_team_is_a_team():
    buckets = bill("compute_busy", 10) | paid("x", 6) | paid("unattributed", 4)
    assert money(told(asked("team"), buckets)) == {("",): 6, ("", "unattributed"): 4}
    assert money(told(asked("team", "feature"), buckets)) == {("", "x"): 6, ("", "unattributed"): 4}


def test_spend_that_showback_never_gets_stands_as_busy():
    assert money(told(asked("feature"), bill("compute_busy", 10))) == {("", "compute_busy"): 10}


def test_what_is_booked_late_is_taken_off_so_that_the_sum_holds():
    """The spend of September was attributed in October."""
    buckets = bill("compute_busy", 10, at=utc("2026-09-30T21:45")) | bill("compute_busy", 2) | paid("x", 12)
    assert money(told(asked("feature"), buckets)) == {("x",): 12, ("", "compute_busy"): -10}


def test_pending_outside_the_period_is_not_in_it():
    buckets = bill("compute_busy", 10) | paid("x", 10)
    assert money(told(asked("feature"), buckets, waits(5, at=utc("2026-10-31T23:00")))) == {("x",): 10}


def test_what_is_pending_beside_money_is_not_money():
    pending = waits(5) | {(Slot("chat", NOON, 300), ("output_tokens",)): 1000}
    assert money(told(asked("feature", "model"), bill("compute_busy", 5), pending)) == {("", "m", "pending"): 5}


def test_idle_spend_of_an_engine_without_work_stays():
    buckets = bill("compute_busy", 10) | paid("x", 10) | bill("compute_idle", 7) | bill("compute_idle", 5, engine="b")
    assert money(told(asked("feature", share_idle=True), buckets)) == {("x",): 17, ("", "compute_idle"): 5}


def test_a_day_without_work_is_paid_for_by_the_work_of_the_period():
    later = utc("2026-10-21T12:00")
    buckets = bill("compute_busy", 10) | paid("x", 10) | bill("compute_idle", 7, at=later)
    assert money(told(asked("day", "feature", share_idle=True), buckets)) == {
        ("2026-10-20", "x"): 10,
        ("2026-10-21", "x"): 7,
    }


# --- days


def test_a_day_of_25_hours_is_one_day():
    first, last = utc("2026-10-24T22:00"), utc("2026-10-25T22:45")
    buckets: Amounts = {}
    for start in range(first - QUARTER, last + 2 * QUARTER, QUARTER):
        buckets |= bill("other", 1, at=start)
    assert money(told(asked("day"), buckets)) == {("2026-10-24",): 1, ("2026-10-25",): 100, ("2026-10-26",): 1}


def test_a_period_begins_and_ends_at_local_midnight():
    inside = [utc("2026-09-30T22:00"), utc("2026-10-31T22:45")]
    outside = [inside[0] - QUARTER, inside[1] + QUARTER]
    buckets: Amounts = {}
    for start in (*inside, *outside):
        buckets |= bill("other", 1, at=start)
    assert money(told(asked("category"), buckets)) == {("other",): 2}


@pytest.mark.parametrize(
    ("zone", "day", "begins"),
    [
        ("UTC", "2026-11-24", "2026-11-24T00:00"),
        ("Europe/Berlin", "2026-03-29", "2026-03-28T23:00"),
        ("America/Sao_Paulo", "2018-11-04", "2018-11-04T03:00"),  # clocks skipped midnight
        ("Pacific/Apia", "2011-12-30", "2011-12-30T10:00"),  # a day that was left out
    ],
)
def test_a_date_begins_when_the_zone_says(zone: str, day: str, begins: str):
    at = first_instant(ZoneInfo(zone), date.fromisoformat(day))
    assert at == utc(begins) * NANO
    assert local_date(ZoneInfo(zone), at) >= date.fromisoformat(day)


def test_days_come_in_order_and_the_dearest_first():
    later = utc("2026-10-21T12:00")
    buckets = bill("other", 9, at=later) | bill("storage", 1) | bill("other", 2)
    assert [row.key for row in told(asked("day", "category"), buckets)] == [
        ("2026-10-20", "other"),
        ("2026-10-20", "storage"),
        ("2026-10-21", "other"),
    ]


# --- requests and tokens

MILLION = 10**6


def test_a_feature_has_what_its_events_say():
    buckets = bill("compute_busy", 4 * NANO) | paid("x", 4 * NANO) | claimed("x", 2 * MILLION)
    buckets |= counted(Kind.FEATURE_REQUESTS, 7, "x", "", "m", "fast")
    (row,) = told(asked("feature"), buckets)
    assert (row.requests, row.prompt_tokens, row.output_tokens) == (7, None, 2 * MILLION)
    assert row.nano_usd_per_million_output == 2 * NANO


def test_an_engine_has_what_it_counted_and_api_spend_is_none_of_its_tokens_price():
    buckets = bill("compute_busy", 4 * NANO) | bill("api", NANO, engine="")
    buckets |= counted(Kind.OUTPUT_TOKENS, 2 * MILLION, "chat", "m", "fast") | counted(
        Kind.REQUESTS, 3, "chat", "m", "ok"
    )
    (row,) = told(asked("model"), buckets)
    assert (row.nano_usd, row.requests, row.output_tokens) == (5 * NANO, 3, 2 * MILLION)
    assert row.nano_usd_per_million_output == 2 * NANO
    assert told(asked("tier"), buckets)[0].requests is None  # nobody counts them by tier


@pytest.mark.parametrize("by", [("feature", "engine"), ("category",), ("engine", "category")])
def test_what_the_counters_do_not_tell_apart_is_unknown(by: tuple[str, ...]):
    buckets = bill("compute_busy", NANO) | paid("x", NANO) | claimed("x", MILLION)
    buckets |= counted(Kind.OUTPUT_TOKENS, MILLION, "chat", "m", "fast")
    (row,) = told(asked(*by), buckets)
    assert (row.output_tokens, row.nano_usd_per_million_output) == (None, None)
    assert not {Kind.FEATURE_OUTPUT_TOKENS, Kind.OUTPUT_TOKENS} & set(asked(*by).kinds)


def test_too_few_tokens_make_no_price():
    buckets = bill("compute_busy", NANO) | paid("x", NANO) | claimed("x", 999)
    assert told(asked("feature"), buckets)[0].nano_usd_per_million_output is None
    question = replace(asked("feature"), min_tokens=999)
    assert told(question, buckets)[0].nano_usd_per_million_output is not None


def test_what_did_something_and_cost_nothing_yet_is_a_row():
    (row,) = told(asked("feature"), claimed("x", MILLION))
    assert (row.key, row.nano_usd, row.output_tokens, row.nano_usd_per_million_output) == (("x",), 0, MILLION, None)


def test_what_is_claimed_for_nobody_does_not_price_what_nobody_claimed():
    buckets = bill("compute_busy", NANO) | paid("unattributed", NANO) | claimed("unattributed", MILLION)
    (row,) = told(asked("feature"), buckets)
    assert (row.output_tokens, row.nano_usd_per_million_output) == (None, None)


def test_a_feature_whose_tokens_have_no_price_has_no_price_per_token():
    buckets = bill("compute_busy", 2 * NANO) | paid("x", NANO) | paid("y", NANO)
    buckets |= claimed("x", MILLION) | claimed("y", MILLION) | claimed("y", 5, model="other")
    buckets |= counted(Kind.UNPRICED_TOKENS, 5, "other")
    prices = {row.key[0]: row.nano_usd_per_million_output for row in told(asked("feature"), buckets)}
    assert prices == {"x": NANO, "y": None}
    assert money(told(asked("engine"), buckets)) == {("chat",): 2 * NANO}


def test_an_engine_whose_gpus_had_no_price_has_no_price_per_token():
    buckets: Amounts = counted(Kind.UNPRICED_GPU, HOUR, "new", "m", "fast", "A10G")
    for engine in ("chat", "new"):
        buckets |= bill("compute_busy", NANO, engine) | counted(Kind.OUTPUT_TOKENS, MILLION, engine, "m", "fast")
    prices = {row.key[0]: row.nano_usd_per_million_output for row in told(asked("engine"), buckets)}
    assert prices == {"chat": NANO, "new": None}
    assert [row.nano_usd_per_million_output for row in told(asked("day"), buckets)] == [None]


# --- value


def cost(feature: str, percent: int) -> Row:
    return Row(key=(feature,), nano_usd=percent)


def test_a_feature_with_40_percent_of_the_cost_and_5_of_the_value_is_a_candidate():
    rows = [cost("summary", 40), cost("chat", 60), Row(key=("",), rest="compute_idle", nano_usd=900)]
    found = values(rows, {"summary": Decimal("0.05"), "chat": Decimal("0.9")})
    assert found["summary"] == (Fraction(2, 5), Decimal("0.05"), True)
    assert found["chat"] == (Fraction(3, 5), Decimal("0.9"), False)


@pytest.mark.parametrize(
    ("cost_percent", "value", "candidate"),
    [
        (10, "0.05", True),
        (10, "0.0500001", False),
        (9, "0", False),
        (10, "0", True),
        (99, "0.5", False),
        (100, "0.5", True),
    ],
)
def test_where_a_candidate_begins(cost_percent: int, value: str, candidate: bool):
    assert is_candidate(Fraction(cost_percent, 100), Decimal(value)) is candidate


def test_a_feature_whose_value_nobody_told_is_not_judged():
    assert values([cost("x", 100)], {}) == {"x": (Fraction(1), None, False)}
    assert values([cost("x", 0)], {}) == {"x": (Fraction(0), None, False)}


# --- what is missing


def test_what_is_known_to_be_missing():
    buckets = (
        counted(Kind.UNPRICED_GPU, 3 * HOUR, "chat", "m", "fast", "A10G")
        | counted(Kind.UNPRICED_GPU, HOUR, "b", "m", "fast", "A10G")
        | counted(Kind.UNPRICED_TOKENS, 1200, "other")
        | counted(Kind.UNOBSERVED, HOUR // 2)
    )
    history = History(now=OCTOBER.end, accounting_start=OCTOBER.start + 5 * HOUR)
    found = missing(OCTOBER, by_day(asked("category"), buckets), history)
    assert found == Missing(
        unpriced_gpu_ns=4 * HOUR, unpriced_tokens=1200, unobserved_ns=HOUR // 2, before_history_ns=5 * HOUR
    )
    assert list(lacks(found)) == [
        ("4.00", "GPU hours without a price"),
        ("0.50", "hours that nobody saw and nothing was booked for"),
        ("5.00", "hours before the ledger knows anything"),
        ("1,200", "tokens without a price"),
    ]


@pytest.mark.parametrize(
    ("began", "oldest", "forgot", "hours"),
    [
        (None, None, False, None),
        (OCTOBER.start - HOUR, None, False, 0),
        (OCTOBER.end + HOUR, None, False, 31 * 24 + 1),  # no more than the period has
        (OCTOBER.start - HOUR, OCTOBER.start + 2 * HOUR, False, 0),  # nothing was spent until then
        (OCTOBER.start - HOUR, OCTOBER.start + 2 * HOUR, True, 2),
    ],
)
def test_how_much_of_a_period_lies_before_history(
    began: int | None, oldest: int | None, forgot: bool, hours: int | None
):
    history = History(now=OCTOBER.end, accounting_start=began, oldest=oldest, forgot=forgot)
    assert missing(OCTOBER, {}, history).before_history_ns == (None if hours is None else hours * HOUR)


def warned(history: History, period: Period = OCTOBER, *, may_be_open: bool = False) -> list[str]:
    return list(cautions(period, history, Missing(), may_be_open=may_be_open))


def test_a_reader_is_told_what_the_figures_are_not():
    over = History(now=OCTOBER.end, accounting_start=OCTOBER.start)
    assert warned(over) == []
    (line,) = warned(replace(over, accounting_start=OCTOBER.start + HOUR))
    assert line == "the period begins before the ledger does (2026-09-30T23:00:00Z): what was spent before is not in it"
    (line,) = warned(replace(over, oldest=OCTOBER.start + HOUR, forgot=True))
    assert line == "the period begins before the oldest amounts that the ledger keeps (2026-09-30T23:00:00Z)"
    assert warned(replace(over, now=OCTOBER.start - 1)) == ["the period lies in the future"]
    assert warned(replace(over, now=OCTOBER.end - 1)) == ["the period is not over"]
    assert warned(replace(over, now=OCTOBER.end - 1), may_be_open=True) == []
    lacking = Missing(unpriced_gpu_ns=HOUR, unpriced_tokens=5, before_history_ns=HOUR)
    assert list(cautions(OCTOBER, over, lacking, may_be_open=False)) == [
        "not in the figures: 1.00 GPU hours without a price, 5 tokens without a price"
    ]
