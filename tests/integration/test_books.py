"""The books with a ledger behind them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exporter.books import Books, Fate
from exporter.clock import Instant
from exporter.config.model import Budget, Match
from exporter.core.attribution import Claim, Slot
from exporter.core.budgets import BudgetFacts
from exporter.core.cap import Override
from exporter.core.money import NANO, Account, Entry, Kind
from exporter.ledger import Batch, Change, Key, Ledger, Saved, Verdict
from tests.fakes import FakeClock
from tests.ledgers import saved

NOW = int(FakeClock().now().unix_seconds) // 900 * 900
BUSY = Account(Kind.SPEND, ("compute_busy", "chat", "m", "fast"))
OUTPUT = Account(Kind.OUTPUT_TOKENS, ("chat", "m", "fast"))
API = Account(Kind.SPEND, ("api", "", "gpt", ""))


@contextlib.asynccontextmanager
async def kept(folder: Path | None, *budgets: Budget) -> AsyncIterator[Books]:
    """Books that go on from what is there; closed at the end as the exporter does."""
    ledger = Ledger.open(folder, FakeClock()) if folder else Ledger.in_memory(FakeClock())
    books = Books()
    books.await_ledger()
    books.settle_by(300)
    books.hold(budgets)
    books.go_on(ledger)
    try:
        yield books
    finally:
        assert await asyncio.to_thread(ledger.close, 10)


async def work(books: Books, nano_usd: Fraction | int, tokens: int, at: int = NOW) -> None:
    await books.post([Entry(BUSY, nano_usd, at * NANO), Entry(OUTPUT, tokens, at * NANO)])
    books.flush({}, (), {"last_beat": str(at * NANO)})
    await books.settled(5)


async def claim(books: Books, name: str, tokens: int, at: int = NOW, feature: str = "summary") -> Verdict:
    """Deliver one event that claims output tokens, and one dollar-cent of an API."""
    slot, _ = books.showback.settling.place("chat", at)
    attributed = Account(Kind.ATTRIBUTED, (feature, "docs", "", "gpt", ""))
    change = Change(
        totals={API: 10**7, attributed: 10**7},
        buckets={(API, at // 900 * 900): 10**7, (attributed, at // 900 * 900): 10**7},
        claims={(slot, (feature, "docs")): Claim(0, 0, tokens)},
    )

    def effect(new: Sequence[int]) -> Change:
        return change if new else Change()

    return await books.deliver(Batch(keys=[Key(name.encode(), b"same")], effect=effect), [slot])


def attributed(books: Books) -> dict[tuple[str, str], int]:
    found = books.totals()[Kind.ATTRIBUTED]
    return {(labels[0], labels[2]): amount for labels, amount in found.items()}


def agree(books: Books) -> None:
    """Both books on the page: bill of busy and API = attributed + pending."""
    totals, pending = books.totals(), books.showback.pending_nano_usd()
    bill = sum(amount for labels, amount in totals[Kind.SPEND].items() if labels[0] in ("compute_busy", "api"))
    assert bill == sum(totals[Kind.ATTRIBUTED].values()) + sum(pending.values())


@pytest.mark.parametrize("is_durable", [True, False])
async def test_a_claim_shares_its_slot_once_however_often_it_comes(tmp_path: Path, is_durable: bool):
    async with kept(tmp_path if is_durable else None) as books:
        await work(books, Fraction(1000, 3), 40)
        assert list((await claim(books, "a", 10)).new) == [0]
        assert (await claim(books, "a", 10)).duplicates == 1
        await books.settle(NOW + 599)
        agree(books)
        assert attributed(books) == {("summary", ""): 10**7}
        assert books.showback.pending_nano_usd() == {"chat": 333}
        await books.settle(NOW + 600)
        books.flush({}, (), {})
        await books.settled(5)
        agree(books)
        assert attributed(books) == {("summary", ""): 10**7, ("summary", "chat"): 83, ("unattributed", "chat"): 250}
        assert books.showback.pending_nano_usd() == {"chat": 0}
        assert books.showback.coverage(NOW + 600) == dict.fromkeys(
            (("chat", name) for name in ("5m", "1h", "24h")), 0.25
        )


async def test_a_slot_that_is_open_at_the_end_is_settled_by_the_next_process(tmp_path: Path):
    async with kept(tmp_path) as books:
        await work(books, 1000, 40)
        await claim(books, "a", 10)
    assert saved(tmp_path).claims == {(Slot("chat", NOW, 300), ("summary", "docs")): Claim(0, 0, 10)}
    async with kept(tmp_path) as books:
        agree(books)
        assert books.showback.pending_nano_usd() == {"chat": 1000}
        assert (await claim(books, "a", 10)).duplicates == 1
        await work(books, 1000, 40, NOW + 300)
        await books.settle(NOW + 600)
        books.flush({}, (), {})
    found = saved(tmp_path)
    assert found.claims == {}
    assert found.pending == {
        (Slot("chat", NOW + 300, 300), item): n
        for item, n in ((("nano_usd", "m", "fast"), 1000), (("output_tokens",), 40))
    }
    async with kept(tmp_path) as books:
        agree(books)
        assert attributed(books) == {("summary", ""): 10**7, ("summary", "chat"): 250, ("unattributed", "chat"): 750}
        assert books.showback.coverage(NOW + 600)["chat", "1h"] == 0.25


async def test_a_late_event_is_booked_when_it_comes_and_a_closed_window_never_changes(tmp_path: Path):
    async with kept(tmp_path) as books:
        await work(books, 1000, 40)
        await books.settle(NOW + 600)
        before = dict(books._posted)
        await claim(books, "late", 40, NOW)
        assert {account: books._posted[account] for account in before} == before
        await work(books, 500, 80, NOW + 601)
        await books.settle(NOW + 1200)
        books.flush({}, (), {})
        await books.settled(5)
        assert attributed(books)["summary", "chat"] == 250
        agree(books)


async def test_a_delivery_that_cannot_be_written_claims_nothing_and_holds_no_slot_open(tmp_path: Path):
    async with kept(tmp_path) as books:
        await work(books, 1000, 40)
        (tmp_path / "ledger.sqlite").rename(tmp_path / "away")
        assert (await claim(books, "a", 10)).problem is not None
        (tmp_path / "away").rename(tmp_path / "ledger.sqlite")
        await books.settle(NOW + 600)
        assert books._posted[Account(Kind.ATTRIBUTED, ("unattributed", "", "chat", "m", "fast"))] == 1000


def spent(books: Books) -> int | None:
    (meter,) = books.budgets.values()
    return meter.view(Instant(NOW * NANO, 0), BudgetFacts(accounting_start=0)).periods["month"].spent


@pytest.mark.parametrize("is_durable", [True, False])
@pytest.mark.parametrize("match", [Match(feature="summary"), Match(team="docs", engine="chat"), Match(team="docs")])
async def test_a_budget_of_a_feature_or_a_team_holds_its_part_of_showback(
    tmp_path: Path, match: Match, is_durable: bool
):
    """Whether it is held from the start, by a reload, or after a restart."""
    budget = Budget(name="summary", monthly_usd=Decimal(100), match=match)
    expected = 250 + (0 if match.engine else 2 * 10**7)
    async with kept(tmp_path if is_durable else None, budget) as books:
        await work(books, 1000, 40)
        await claim(books, "a", 10)
        await claim(books, "b", 40, feature="other") if match.feature else await claim(books, "b", 0)
        await books.settle(NOW + 600)
        found = spent(books)
        books.hold([])
        books.hold([budget])
        assert spent(books) == found
        books.flush({}, (), {})
        await books.settled(5)
        books.hold([])
        books.hold([budget])
        assert spent(books) == found
    if is_durable:
        async with kept(tmp_path, budget) as books:
            assert spent(books) == found
    if not match.feature:
        assert found == expected
    else:
        assert found == 10**7 + 200


async def test_a_budget_whose_past_cannot_be_read_is_unknown_until_it_can(tmp_path: Path):
    budget = Budget(name="summary", monthly_usd=Decimal(100), match=Match(feature="summary"))
    async with kept(tmp_path) as books:
        await work(books, 1000, 40)
        await claim(books, "a", 10)
        await books.settle(NOW + 600)
        books.flush({}, (), {})
        await books.settled(5)
        (tmp_path / "ledger.sqlite").rename(tmp_path / "away")
        books.hold([budget])
        assert spent(books) is None
        (tmp_path / "away").rename(tmp_path / "ledger.sqlite")
        books.hold([budget])
        assert spent(books) == 10**7 + 250


def test_the_bills_own_budgets_see_no_showback():
    books = Books()
    books.hold([Budget(name="all", monthly_usd=Decimal(100))])
    asyncio.run(books.post([Entry(Account(Kind.ATTRIBUTED, ("summary", "docs", "chat", "m", "")), 5, NOW * NANO)]))
    assert spent(books) == 0


def override(amount: int) -> Override:
    return Override(budget="all", amount_nano_usd=amount, until_ns=2**62, at_ns=0, reason="")


async def test_of_overrides_at_once_the_last_counts_and_each_is_told_at_once(tmp_path: Path):
    ledger = Ledger.open(tmp_path, FakeClock())
    books = Books(ledger)
    books.start()
    fates = await asyncio.wait_for(asyncio.gather(*(books.override(override(amount), 60) for amount in range(1, 9))), 5)
    assert set(fates) <= {Fate.IN_FORCE, Fate.REPLACED}
    assert fates[-1] is Fate.IN_FORCE
    assert books.overrides == {"all": override(8)}
    assert await asyncio.to_thread(ledger.close, 10)


async def test_before_the_awaited_ledger_is_there_nothing_is_shown_and_no_override_counts():
    books = Books()
    books.await_ledger()
    assert await books.override(override(1), 60) is Fate.NOT_WRITTEN
    assert (books.overrides, books.totals()) == ({}, {})


# --- random streams

STEP = st.one_of(
    st.tuples(st.just("work"), st.integers(0, 10**12), st.integers(0, 5000)),
    st.tuples(st.just("event"), st.integers(0, 12), st.integers(0, 3000)),  # its number, and how long ago it ended
    st.tuples(st.just("time"), st.sampled_from((5, 60, 299, 301, 900, -400, 90_000)), st.just(0)),
    st.tuples(st.just("conflict"), st.integers(0, 12), st.just(0)),
    st.tuples(st.just("settle"), st.just(0), st.just(0)),
    st.tuples(st.just("restart"), st.just(0), st.just(0)),
)


class Stream:
    """Books that live through random steps, and what must be in them by plain arithmetic."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._now, self._delivered = folder, NOW, dict[str, int]()
        self.busy = 0

    async def live(self, steps: Sequence[tuple[str, int, int]]) -> None:
        rest = list(steps)
        while rest:
            async with kept(self._folder) as books:
                agree(books)
                while rest and (step := rest.pop(0))[0] != "restart":
                    await self._step(books, *step)
                    agree(books)
                books.flush({}, (), {"last_beat": str(self._now * NANO)})
        self._check(saved(self._folder))

    async def _step(self, books: Books, what: str, number: int, more: int) -> None:
        if what == "work":
            await work(books, number, more, self._now)
            self.busy += number
        elif what == "event":
            verdict = await claim(books, f"event-{number}", 10 * number, self._now - more, feature=f"f{number % 3}")
            assert verdict.duplicates == (f"event-{number}" in self._delivered)
            self._delivered[f"event-{number}"] = number
        elif what == "time":
            self._now += number
        elif what == "conflict" and f"event-{number}" in self._delivered:
            other = Batch(keys=[Key(f"event-{number}".encode(), b"other")], effect=lambda _: Change(totals={API: 1}))
            assert (await books.deliver(other, [])).conflicts == [0]
        elif what == "settle":
            await books.settle(self._now)

    def _check(self, found: Saved) -> None:
        of_kind = dict.fromkeys((Kind.SPEND, Kind.ATTRIBUTED), 0)
        for account, amount in found.totals.items():
            of_kind[account.kind] = of_kind.get(account.kind, 0) + amount
        pending = sum(amount for (_, item), amount in found.pending.items() if item[0] == "nano_usd")
        assert of_kind[Kind.SPEND] == self.busy + 10**7 * len(self._delivered)
        assert of_kind[Kind.SPEND] == of_kind[Kind.ATTRIBUTED] + pending
        open_slots = {slot for slot, _ in found.pending} | {slot for slot, _ in found.claims}
        assert all(slot.start % slot.seconds == 0 for slot in open_slots)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEP, min_size=1, max_size=25))
def test_both_books_agree_under_any_stream_of_events(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]]
):
    """Duplicates, conflicts, late arrivals, clocks that jump, restarts: to the nano-dollar after each step."""
    asyncio.run(Stream(tmp_path_factory.mktemp("books")).live(steps))
