"""What is delivered with a key is written once, however often it comes, and never half."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exporter.core.attribution import Claim, Slot
from exporter.ledger import Batch, Change, Key, Ledger, Verdict, schema, writer
from tests.fakes import FakeClock
from tests.ledgers import QUARTER, commit, saved, spend, spent, until, writing

SLOT = Slot("chat", QUARTER, 300)
HOUR, DAY = 3600, 86_400


def delivery(*events: tuple[str, int]) -> Batch:
    """Events by name; what an event says is its amount."""
    keys = [Key(name.encode(), str(amount).encode()) for name, amount in events]
    return Batch(keys=keys, effect=partial(effect, [amount for _, amount in events]))


def effect(amounts: Sequence[int], new: Sequence[int]) -> Change:
    amount = sum(amounts[position] for position in new)
    if not new:
        return Change()
    return spent(amount).merged(Change(claims={(SLOT, ("summary", "docs")): Claim(amount, 0, len(new))}))


def deliver(ledger: Ledger, batch: Batch) -> Verdict:
    told: list[Verdict] = []
    ledger.deliver(batch, told.append)
    until(lambda: bool(told))
    return told[0]


def booked(folder: Path) -> tuple[int, Claim | None]:
    found = saved(folder)
    claim = found.claims.get((SLOT, ("summary", "docs")))
    assert sum(found.buckets.values()) == sum(found.totals.values())
    return found.totals.get(spend(), 0), claim


def test_a_delivery_counts_once_however_often_it_comes(tmp_path: Path):
    with writing(tmp_path) as ledger:
        first = deliver(ledger, delivery(("a", 5), ("b", 7)))
        again = deliver(ledger, delivery(("a", 5), ("b", 7)))
        partly = deliver(ledger, delivery(("b", 7), ("c", 1), ("c", 1)))
    assert (list(first.new), first.duplicates, first.conflicts, first.problem) == ([0, 1], 0, (), None)
    assert (list(again.new), again.duplicates, again.change) == ([], 2, Change())
    assert (list(partly.new), partly.duplicates) == ([1], 2)
    with writing(tmp_path) as ledger:
        assert deliver(ledger, delivery(("a", 5))).duplicates == 1
    assert booked(tmp_path) == (13, Claim(13, 0, 3))


def test_a_conflict_leaves_the_rest_of_a_partial_batch(tmp_path: Path):
    with writing(tmp_path) as ledger:
        deliver(ledger, delivery(("a", 5)))
        mixed = deliver(ledger, replace(delivery(("b", 1), ("a", 6), ("a", 5), ("b", 2)), is_partial=True))
    assert (list(mixed.new), mixed.duplicates, list(mixed.conflicts)) == ([0], 1, [1, 3])
    assert booked(tmp_path) == (6, Claim(6, 0, 2))


def test_a_conflict_refuses_the_whole_batch(tmp_path: Path):
    with writing(tmp_path) as ledger:
        deliver(ledger, delivery(("a", 5)))
        known = deliver(ledger, delivery(("b", 1), ("a", 6), ("c", 1)))
        within = deliver(ledger, delivery(("d", 1), ("d", 2)))
        later = deliver(ledger, delivery(("b", 1), ("d", 2)))
    assert (list(known.conflicts), list(known.new), known.change) == ([1], [], Change())
    assert list(within.conflicts) == [1]
    assert list(later.new) == [0, 1], "a refused batch has left keys"
    assert booked(tmp_path) == (8, Claim(8, 0, 3))


def test_batches_of_one_commit_know_each_other(tmp_path: Path):
    ledger = Ledger.open(tmp_path, FakeClock())
    told: list[Verdict] = []
    ledger.submit(spent(100))
    for batch in (delivery(("a", 5)), delivery(("a", 5), ("b", 1)), delivery(("a", 6))):
        ledger.deliver(batch, told.append)
    ledger.start(lambda *_: None)
    assert ledger.close(10)
    assert [(list(verdict.new), verdict.duplicates, list(verdict.conflicts)) for verdict in told] == [
        ([0], 0, []),
        ([1], 1, []),
        ([], 0, [0]),
    ]
    assert ledger.committed == 1
    assert booked(tmp_path)[0] == 106


@pytest.mark.parametrize(("hours", "is_known"), [(0, True), (24, True), (47, False), (72, False)])
def test_keys_are_kept_for_a_day_or_two(tmp_path: Path, hours: int, is_known: bool):
    clock = FakeClock()
    clock.advance(DAY - clock.now().unix_seconds % DAY + HOUR)  # an hour past midnight
    with writing(tmp_path, clock) as ledger:
        deliver(ledger, delivery(("a", 5)))
        for _ in range(hours):
            clock.advance(HOUR)
            deliver(ledger, delivery((f"other {clock.now().wall}", 0)))
        assert deliver(ledger, delivery(("a", 5))).duplicates == is_known


@pytest.mark.parametrize("days", [1, 2, 3, 365])
def test_one_look_at_a_clock_that_is_ahead_forgets_no_more_than_the_older_keys(tmp_path: Path, days: int):
    """However far: the next rotation comes when that clock has gone on for a day, or was put right before."""
    clock = FakeClock()
    with writing(tmp_path, clock) as ledger:
        deliver(ledger, delivery(("a", 5)))
        clock.advance(DAY)
        deliver(ledger, delivery(("b", 5)))
        clock.step_wall(days * DAY)
        deliver(ledger, delivery(("c", 5)))
        clock.step_wall(-days * DAY)
        assert deliver(ledger, delivery(("b", 5), ("c", 5))).duplicates == 2
        clock.step_wall(days * DAY)
        for number in range(3):
            clock.advance(DAY)
            deliver(ledger, delivery((f"day {number}", 5)))
        assert list(deliver(ledger, delivery(("a", 5), ("b", 5))).new) == [0, 1]


def test_keys_leave_most_of_a_small_ledger_to_money(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Too many deliveries are refused before their keys take the place of what money needs; the next days have room."""
    monkeypatch.setattr(schema, "MAX_PAGES", 100)
    clock = FakeClock()
    clock.advance(DAY - clock.now().unix_seconds % DAY)
    room = 100 * schema.PAGE_BYTES * 6 // 10 // writer._KEY_BYTES
    with writing(tmp_path, clock) as ledger:
        taken = 0
        while (verdict := deliver(ledger, delivery(*((f"{taken + n:016}", 1) for n in range(100))))).problem is None:
            taken += len(verdict.new)
        assert "full of the keys" in (verdict.problem or "")
        assert room < taken <= room + 100
        commit(ledger, spent(1))
        assert ledger.errors == 0
    with writing(tmp_path, clock) as ledger:
        assert "full of the keys" in (deliver(ledger, delivery(("a", 1))).problem or "")
        clock.advance(DAY)
        deliver(ledger, delivery(("a", 1)))
        clock.advance(DAY)
        assert list(deliver(ledger, delivery(("a", 1))).new) == [0]
    assert (tmp_path / "ledger.sqlite").stat().st_size < 100 * schema.PAGE_BYTES * 8 // 10


def test_a_clock_set_back_forgets_no_key(tmp_path: Path):
    clock = FakeClock()
    with writing(tmp_path, clock) as ledger:
        deliver(ledger, delivery(("a", 5)))
        for days in (-3, -1, 4):
            clock.step_wall(days * DAY)
            assert deliver(ledger, delivery(("a", 5))).duplicates == 1


def test_a_ledger_that_cannot_be_written_takes_no_delivery_and_says_why(tmp_path: Path):
    with writing(tmp_path) as ledger:
        path = tmp_path / "ledger.sqlite"
        path.rename(tmp_path / "elsewhere")
        refused = deliver(ledger, delivery(("a", 5)))
        assert "expected the file that was opened, found none" in (refused.problem or "")
        assert list(refused.new) == []
        began = time.monotonic()
        assert deliver(ledger, delivery(("a", 5))).problem == refused.problem
        assert time.monotonic() - began < 0.5, "it waited for the next attempt"
        (tmp_path / "elsewhere").rename(path)
        commit(ledger, spent(1))
        assert list(deliver(ledger, delivery(("a", 5))).new) == [0]
    assert booked(tmp_path) == (6, Claim(5, 0, 1))


def test_a_bug_in_what_a_batch_changes_costs_that_batch_alone(tmp_path: Path):
    def broken(_: Sequence[int]) -> Change:
        raise RuntimeError("a bug")

    with writing(tmp_path) as ledger:
        verdict = deliver(ledger, Batch(keys=[Key(b"a", b"1")], effect=broken))
        commit(ledger, spent(1))
        assert list(deliver(ledger, delivery(("a", 5))).new) == [0]
    assert "internal error (RuntimeError)" in (verdict.problem or "")
    assert booked(tmp_path)[0] == 6


EVENTS = st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 1)), max_size=6)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(lives=st.lists(st.lists(EVENTS, max_size=5), min_size=1, max_size=3))
def test_any_deliveries_come_to_the_sum_of_the_first_of_each(
    tmp_path_factory: pytest.TempPathFactory, lives: list[list[list[tuple[str, int]]]]
):
    """Whatever comes twice, in whatever bodies, in whichever life of the process."""
    folder = tmp_path_factory.mktemp("ledger")
    known: dict[str, int] = {}
    for life in lives:
        with writing(folder) as ledger:
            for events in life:
                verdict = deliver(ledger, delivery(*events))
                assert bool(verdict.conflicts) == _conflicts(known, events)
                if not verdict.conflicts:
                    known.update(events)
    assert booked(folder)[0] == sum(known.values())


def _conflicts(known: dict[str, int], events: Iterable[tuple[str, int]]) -> bool:
    seen = dict(known)
    return any(seen.setdefault(name, amount) != amount for name, amount in events)
