"""Exact integers: rests that wait, and books that conserve."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.books import Books
from exporter.config.units import decimal
from exporter.core.money import LABELS, NANO, Account, Entry, Kind, cost, nano_usd

ACCOUNT = Account(Kind.SPEND, ("compute_busy", "chat", "m", ""))


def test_a_price_is_exact_as_it_is_written():
    assert nano_usd(decimal("0.1")) * 3 == nano_usd(decimal("0.3"))


def test_an_hour_costs_the_hourly_price():
    assert cost(3600 * NANO, nano_usd(decimal("0.80"))) == 800_000_000


@given(st.lists(st.fractions(0, 1000), min_size=1, max_size=50))
async def test_the_books_lose_less_than_one_unit_of_any_sum(amounts: list[Fraction]):
    books = Books()
    for amount in amounts:
        await books.post([Entry(ACCOUNT, amount, 0)])
    booked = books.totals()[Kind.SPEND][ACCOUNT.labels]
    assert 0 <= sum(amounts) - booked < 1


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 10**12)), max_size=30))
async def test_what_an_engine_costs_is_the_sum_of_its_accounts(charges: list[tuple[int, int]]):
    books = Books()
    for number, amount in charges:
        account = Account(Kind.SPEND, (f"category-{number}", f"engine-{number % 2}", "m", ""))
        await books.post([Entry(account, amount, 0)])
    spend = books.totals()[Kind.SPEND]
    for engine in ("engine-0", "engine-1"):
        assert books.engine_totals(engine).spend == sum(total for labels, total in spend.items() if labels[1] == engine)


async def test_a_post_with_a_negative_amount_books_nothing_of_it():
    books = Books()
    with pytest.raises(ValueError, match="0 or more"):
        await books.post(Entry(ACCOUNT, amount, 0) for amount in (5, -1))
    assert not books.totals()[Kind.SPEND]


async def test_a_published_total_never_changes_afterwards():
    books = Books()
    await books.post([Entry(ACCOUNT, 1, 0)])
    published = books.totals()
    await books.post([Entry(ACCOUNT, 1, 0)])
    assert published[Kind.SPEND][ACCOUNT.labels] == 1


def test_every_kind_of_account_names_its_labels():
    assert set(LABELS) == set(Kind)
