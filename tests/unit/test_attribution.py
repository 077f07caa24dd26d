"""Showback: who pays for a slot, to the last nano-dollar, and when a slot closes."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.core.attribution import (
    UNATTRIBUTED,
    Claim,
    Closed,
    Settling,
    Slot,
    Weights,
    by_direction,
    pending_item,
    shared,
    weights,
)
from exporter.core.coverage import Coverage
from exporter.core.money import Account, Kind, divided
from exporter.core.windows import HOUR

NOON = 1_795_435_200
REST = (UNATTRIBUTED, "")
SUMMARY, CHAT = ("summary", "docs"), ("chat", "web")
EVEN = Weights(1, 1)


def claim(prompt: int = 0, output: int = 0, cached: int = 0) -> Claim:
    return Claim(prompt, cached, output)


# --- who pays


def test_a_slot_is_shared_by_the_work_that_was_claimed():
    found = shared(100, claim(60, 40), EVEN, {SUMMARY: claim(30, 20), CHAT: claim(10, 15)})
    assert found == {SUMMARY: 50, CHAT: 25, REST: 25}


def test_claims_above_what_the_engine_counted_are_scaled_down_to_it():
    assert shared(90, claim(50), EVEN, {SUMMARY: claim(100), CHAT: claim(50)}) == {SUMMARY: 60, CHAT: 30, REST: 0}


def test_what_nobody_claimed_is_unattributed():
    assert shared(100, claim(5, 5), EVEN, {}) == {REST: 100}


def test_claims_of_a_slot_in_which_nothing_was_counted_pay_nothing():
    assert shared(100, claim(), EVEN, {SUMMARY: claim(10)}) == {REST: 100}


def test_cached_tokens_are_no_work():
    found = shared(100, claim(100, 0, 50), EVEN, {SUMMARY: claim(60, 0, 50), CHAT: claim(40)})
    assert found == {SUMMARY: 20, CHAT: 80, REST: 0}


def test_rounding_of_shares_goes_by_the_largest_remainder():
    found = shared(100, claim(3), EVEN, {SUMMARY: claim(1), CHAT: claim(1)})
    assert found == {SUMMARY: 34, CHAT: 33, REST: 33}
    assert divided(5, [1, 1, 1, 1]) == [2, 1, 1, 1]
    assert divided(7, [0, 2, 1]) == [0, 5, 2]


claims = st.dictionaries(
    st.sampled_from((SUMMARY, CHAT, ("a", ""), REST)),
    st.builds(Claim, st.integers(0, 10**7), st.integers(0, 10**7), st.integers(0, 10**7)),
)


@given(
    st.integers(0, 10**15),
    st.builds(Claim, st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**9)),
    claims,
    st.integers(0, 10**13),
    st.integers(0, 10**13),
)
def test_rounding_of_shares_loses_nothing(
    amount: int, counted: Claim, claimed: Mapping[tuple[str, str], Claim], prefill: int, decode: int
):
    found = shared(amount, counted, weights(counted, prefill, decode), claimed)
    assert sum(found.values()) == amount
    assert min(found.values()) >= 0


@given(st.integers(0, 10**18), st.lists(st.integers(0, 10**12), min_size=1, max_size=20))
def test_parts_are_within_one_of_the_exact_share(amount: int, given_weights: list[int]):
    if not any(given_weights):
        return
    parts = divided(amount, given_weights)
    assert sum(parts) == amount
    total = sum(given_weights)
    assert all(abs(part * total - amount * weight) < total for part, weight in zip(parts, given_weights, strict=True))


@given(st.integers(0, 10**15), st.integers(0, 10**12), st.integers(0, 10**12))
def test_a_share_is_divided_by_direction_without_loss(amount: int, prompts: int, output: int):
    parts = by_direction(amount, (prompts, output))
    assert sum(parts) == (amount if prompts or output else 0)
    assert min(parts) >= 0
    assert abs(parts[0] * (prompts + output) - amount * prompts) <= prompts + output


def directions(of: Settling) -> dict[tuple[str, str], int]:
    """What is booked of slots that are settled, by what it is and by feature."""
    entries = [entry for one in of.close(NOON + 10_000) for entry in one.entries]
    return {(entry.account.kind.value, entry.account.labels[0]): int(entry.amount) for entry in entries if entry.amount}


def test_a_slot_is_settled_by_direction_too():
    of, slot = settling(), Slot("chat", NOON, 300)
    pend(of, slot, usd=220, tokens=20)
    of.pend(slot, ("prompt_tokens",), 60)
    of.claim(slot, SUMMARY, claim(40, 0))
    of.claim(slot, CHAT, claim(0, 8))
    assert directions(of) == {
        ("attributed", "summary"): 80,
        ("attributed_input", "summary"): 80,
        ("attributed", "chat"): 40,
        ("attributed_output", "chat"): 40,
        ("attributed", "unattributed"): 100,
        ("attributed_input", "unattributed"): 40,
        ("attributed_output", "unattributed"): 60,
    }


def test_what_no_tokens_tell_of_has_no_direction():
    of = settling()
    of.pend(Slot("chat", NOON, 300), ("nano_usd", "m", "fast"), 100)
    assert directions(of) == {("attributed", "unattributed"): 100}


# --- what a token weighs


def test_tokens_weigh_what_the_engine_measured():
    """Two seconds for 100 computed prompt tokens, eight for 40 of output: 0.02 s and 0.2 s each."""
    prompt, output = weights(claim(150, 40, 50), 2 * 10**9, 8 * 10**9)
    assert output == 10 * prompt


@pytest.mark.parametrize(
    ("counted", "prefill", "decode"),
    [
        (claim(100, 40), 0, 0),
        (claim(100, 40), 10**9, 0),
        (claim(100, 40), 0, 10**9),
        (claim(0, 40), 10**9, 10**9),
        (claim(100, 0), 10**9, 10**9),
        (claim(100, 40, 100), 10**9, 10**9),
    ],
)
def test_unmeasured_an_output_token_weighs_two_and_a_half_prompt_tokens(counted: Claim, prefill: int, decode: int):
    prompt, output = weights(counted, prefill, decode)
    assert output * 2 == prompt * 5


# --- what is pending


@pytest.mark.parametrize(
    ("account", "item"),
    [
        (Account(Kind.SPEND, ("compute_busy", "chat", "m", "fast")), ("chat", ("nano_usd", "m", "fast"))),
        (Account(Kind.SPEND, ("compute_idle", "chat", "m", "fast")), None),
        (Account(Kind.SPEND, ("api", "", "gpt", "")), None),
        (Account(Kind.OUTPUT_TOKENS, ("chat", "m", "fast")), ("chat", ("output_tokens",))),
        (Account(Kind.PREFILL_TIME, ("chat",)), ("chat", ("prefill_nanoseconds",))),
        (Account(Kind.REQUESTS, ("chat", "m", "stop")), None),
        (Account(Kind.ATTRIBUTED, ("summary", "docs", "chat", "m", "fast")), None),
    ],
)
def test_only_busy_compute_and_its_tokens_are_settled(account: Account, item: object):
    assert pending_item(account) == item


# --- when a slot closes


def settling(seconds: float = 300, now: int | None = NOON) -> Settling:
    return Settling(seconds, now)


def pend(of: Settling, slot: Slot, usd: int = 100, tokens: int = 10) -> None:
    of.pend(slot, ("nano_usd", "m", "fast"), usd)
    of.pend(slot, ("output_tokens",), tokens)


def slots(closed: list[Closed]) -> list[int]:
    return [one.slot.start - NOON for one in closed]


def test_a_slot_is_five_minutes_long_and_waits_for_as_long_as_is_asked_for():
    of = settling(420)
    slot, late = of.place("chat", NOON + 299)
    assert (slot, late) == (Slot("chat", NOON, 300), False)
    pend(of, slot)
    of.claim(slot, SUMMARY, claim(0, 4))
    assert of.close(NOON + 719) == []
    (closed,) = of.close(NOON + 720)
    assert (closed.claimed_tokens, closed.counted_tokens) == (4, 10)
    assert {entry.account.labels[0]: entry.amount for entry in closed.entries} == {"summary": 40, UNATTRIBUTED: 60}
    assert {entry.account.labels[2:] for entry in closed.entries} == {("chat", "m", "fast")}
    assert {entry.at for entry in closed.entries} == {NOON * 10**9}
    assert of.close(NOON + 10_000) == []


@pytest.mark.parametrize(
    ("settle", "length"), [(0.5, 1), (1, 1), (7, 6), (30, 30), (299, 225), (300, 300), (86_400, 300)]
)
def test_a_slot_never_crosses_a_quarter_of_an_hour(settle: float, length: int):
    assert settling(settle).place("chat", NOON)[0].seconds == length
    assert 900 % length == 0


def test_an_event_older_than_its_window_is_late_and_claims_the_open_one():
    of = settling(now=NOON + 3000)
    assert of.place("chat", NOON + 2400) == (Slot("chat", NOON + 3000, 300), True)
    assert of.place("chat", NOON + 2700) == (Slot("chat", NOON + 2700, 300), False)
    assert of.place("chat", NOON + 3001) == (Slot("chat", NOON + 3000, 300), False)


def test_a_slot_stays_open_while_claims_of_it_are_being_written():
    of = settling()
    slot, _ = of.place("chat", NOON)
    pend(of, slot)
    of.hold([slot])
    of.hold([slot])
    assert of.close(NOON + 600) == []
    of.release([slot])
    assert of.close(NOON + 700) == []
    of.claim(slot, SUMMARY, claim(0, 10))
    of.release([slot])
    (closed,) = of.close(NOON + 705)
    assert {entry.account.labels[0]: entry.amount for entry in closed.entries} == {"summary": 100, UNATTRIBUTED: 0}


def test_the_oldest_slot_closes_first_and_engines_apart():
    of = settling()
    for engine, start in (("b", 300), ("a", 0), ("b", 0), ("a", 600)):
        pend(of, Slot(engine, NOON + start, 300))
    closed = of.close(NOON + 900)
    assert [(one.slot.engine, one.slot.start - NOON) for one in closed] == [("a", 0), ("b", 0), ("b", 300)]
    assert of.pending_nano_usd() == {"a": 100}


def test_after_a_clock_was_ahead_its_slots_close():
    of = settling()
    ahead = NOON + 86_400
    of.close(ahead)
    pend(of, of.place("chat", ahead)[0])
    assert slots(of.close(NOON)) == [86_400]
    assert of.place("chat", NOON) == (Slot("chat", NOON, 300), False)


def test_another_length_of_slots_leaves_the_open_ones():
    of = settling()
    pend(of, of.place("chat", NOON)[0])
    of.adopt(60)
    assert of.place("chat", NOON)[0] == Slot("chat", NOON, 60)
    pend(of, Slot("chat", NOON, 60))
    assert slots(of.close(NOON + 120)) == [0]
    assert slots(of.close(NOON + 360)) == [0]


def test_what_an_earlier_process_left_open_is_settled_by_this_one():
    before, after = settling(), settling()
    slot = Slot("chat", NOON, 300)
    pend(before, slot)
    before.claim(slot, SUMMARY, claim(0, 4))
    after.restore(
        {(slot, ("nano_usd", "m", "fast")): 100, (slot, ("output_tokens",)): 10}, {(slot, SUMMARY): claim(0, 4)}
    )
    assert after.close(NOON + 600) == before.close(NOON + 600)


# --- coverage


def test_coverage_is_tokens_claimed_by_tokens_counted_and_may_exceed_one():
    coverage = Coverage()
    assert coverage.ratio(HOUR, NOON) is None
    coverage.add(NOON - 3600, 900, 1000)
    coverage.add(NOON - 300, 0, 0)
    assert coverage.ratio(HOUR, NOON) is None
    coverage.add(NOON, 30, 20)
    assert coverage.ratio(HOUR, NOON) == 1.5
    assert coverage.ratio(24 * HOUR, NOON) == 930 / 1020
    coverage.add(NOON + 26 * 3600, 1, 2)
    assert coverage.ratio(1000 * HOUR, NOON + 26 * 3600) == 0.5
