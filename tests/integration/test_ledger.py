"""The ledger at work: what is handed over is found again, once, whatever the order and whenever it was killed."""

import sqlite3
import time
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exporter.core.attribution import Claim, Slot
from exporter.core.money import Account, Kind
from exporter.ledger import (
    BUCKET_SECONDS,
    Change,
    Ledger,
    LedgerError,
    Saved,
    Wanted,
    change,
    connect_read_only,
    file,
    rows,
    schema,
)
from exporter.ledger.rows import BUCKETS_KEPT_SECONDS
from tests.fakes import FakeClock
from tests.ledgers import QUARTER, commit, kill_writers, saved, spend, spent, until, writing

ACCOUNTS = (
    spend(),
    spend("other"),
    Account(Kind.OUTPUT_TOKENS, ("chat", "m", "é\ud800'\"")),
    Account(Kind.SENT_BYTES, ()),
)
NAMES = st.sampled_from(("engine:chat", "engine:other", "budget:all"))
AMOUNTS = st.integers(0, 10**15)
SLOTS = (Slot("chat", QUARTER, 300), Slot("chat", QUARTER + 300, 300), Slot("other", QUARTER, 60))
ITEMS = (("usd", "m", "fast"), ("output_tokens",))
CLAIMANTS = (("summary", "docs"), ("é'\"", ""))

changes = st.builds(
    Change,
    totals=st.dictionaries(st.sampled_from(ACCOUNTS), AMOUNTS),
    rests=st.dictionaries(st.sampled_from(ACCOUNTS), st.fractions(0, 1)),
    buckets=st.dictionaries(st.tuples(st.sampled_from(ACCOUNTS), st.sampled_from((QUARTER, QUARTER + 900))), AMOUNTS),
    states=st.dictionaries(NAMES, st.none() | st.binary(max_size=5)),
    samples=st.lists(st.tuples(NAMES, st.integers(QUARTER, QUARTER + 9), st.tuples(AMOUNTS)), max_size=3),
    meta=st.dictionaries(NAMES, st.text(alphabet="aé\"'", max_size=3)),
    pending=st.dictionaries(st.tuples(st.sampled_from(SLOTS), st.sampled_from(ITEMS)), AMOUNTS),
    claims=st.dictionaries(
        st.tuples(st.sampled_from(SLOTS), st.sampled_from(CLAIMANTS)), st.builds(Claim, AMOUNTS, AMOUNTS, AMOUNTS)
    ),
    closed=st.frozensets(st.sampled_from(SLOTS), max_size=2),
)


def whole(parts: list[Change]) -> Change:
    result = Change()
    for part in parts:
        result = result.merged(part)
    return result


def expected(parts: list[Change]) -> Saved:
    """What a ledger must hold after changes, worked out one by one."""
    totals: dict[Account, int] = {}
    rests: dict[Account, Fraction] = {}
    buckets: dict[tuple[Account, int], int] = {}
    states: dict[str, bytes | None] = {}
    samples: dict[tuple[int, str], tuple[int, ...]] = {}
    meta: dict[str, str] = {}
    pending: dict[tuple[Slot, tuple[str, ...]], int] = {}
    claims: dict[tuple[Slot, tuple[str, str]], Claim] = {}
    for part in parts:
        pending = {key: amount for key, amount in pending.items() if key[0] not in part.closed}
        claims = {key: claim for key, claim in claims.items() if key[0] not in part.closed}
        for key, amount in part.pending.items():
            pending[key] = pending.get(key, 0) + amount
        for claimed, claim in part.claims.items():
            claims[claimed] = claims.get(claimed, Claim(0, 0, 0)).plus(claim)
        for account in (*part.totals, *part.rests, *(account for account, _ in part.buckets)):
            totals[account] = totals.get(account, 0) + 0
        for account, amount in part.totals.items():
            totals[account] += amount
        for bucket, amount in part.buckets.items():
            buckets[bucket] = buckets.get(bucket, 0) + amount
        rests |= part.rests
        states |= part.states
        samples |= {(at, series): values for series, at, values in part.samples}
        meta |= part.meta
    return Saved(
        totals=totals,
        rests={account: rest for account, rest in rests.items() if rest},
        buckets={bucket: amount for bucket, amount in buckets.items() if amount},
        states={name: state for name, state in states.items() if state is not None},
        samples=tuple((series, at, values) for (at, series), values in sorted(samples.items())),
        meta=meta,
        pending=pending,
        claims=claims,
    )


@given(st.lists(changes, max_size=6), st.data())
def test_any_split_of_changes_merges_to_the_whole(parts: list[Change], data: st.DataObject):
    cut = data.draw(st.integers(0, len(parts)))
    assert whole(parts[:cut]).merged(whole(parts[cut:])) == whole(parts)


def test_of_samples_that_wait_too_long_the_newest_are_kept(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(change, "_SAMPLES_WAITING", 3)
    one, other = Change(samples=[("a", 1, ()), ("a", 2, ())]), Change(samples=[("a", 3, ()), ("a", 4, ())])
    assert [at for _, at, _ in one.merged(other).samples] == [2, 3, 4]
    assert "1 samples of windows are dropped" in caplog.text


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(lives=st.lists(st.lists(changes, max_size=4), min_size=1, max_size=3), commits=st.booleans())
def test_what_was_submitted_is_found_again(
    tmp_path_factory: pytest.TempPathFactory, lives: list[list[Change]], commits: bool
):
    """However changes fall into commits, and commits into lives of the process."""
    folder = tmp_path_factory.mktemp("ledger")
    for life in lives:
        with writing(folder) as ledger:
            for change in life:
                if commits:
                    commit(ledger, change)
                else:
                    ledger.submit(change)
    assert saved(folder) == expected([change for life in lives for change in life])


def test_only_the_buckets_of_the_kinds_asked_for_are_read(tmp_path: Path):
    tokens = Account(Kind.OUTPUT_TOKENS, ("chat", "m", "fast"))
    with writing(tmp_path) as ledger:
        ledger.submit(spent(7))
        ledger.submit(spent(9, tokens))
    ledger = Ledger.open(tmp_path, FakeClock(), Wanted(kinds=(Kind.SPEND, Kind.UNOBSERVED)))
    assert ledger.close(1)
    assert ledger.saved.buckets == {(spend(), QUARTER): 7}
    assert ledger.saved.totals == {spend(): 7, tokens: 9}


def test_a_new_ledger_is_empty_private_and_made_with_its_folder(tmp_path: Path):
    folder = tmp_path / "data"
    with writing(folder) as ledger:
        assert (ledger.saved, ledger.set_aside, ledger.committed, ledger.last_commit) == (Saved(), None, 0, None)
        modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert folder.stat().st_mode & 0o777 == 0o700
    names = ("ledger.lock", "ledger.sqlite", "ledger.sqlite-shm", "ledger.sqlite-wal")
    assert modes == dict.fromkeys(names, 0o600)
    assert {path.name for path in folder.iterdir()} == {"ledger.lock", "ledger.sqlite"}


def test_commits_are_durable_and_bounded(tmp_path: Path):
    with writing(tmp_path) as ledger:
        settings = {
            name: schema.pragma(ledger._connection, name) for name in ("synchronous", "max_page_count", "page_size")
        }
        assert ledger._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert settings == {"synchronous": 2, "max_page_count": schema.MAX_PAGES, "page_size": schema.PAGE_BYTES}


def test_what_waits_is_written_in_one_commit_and_told_once(tmp_path: Path):
    told: list[tuple[int, Change]] = []
    clock = FakeClock()
    ledger = Ledger.open(tmp_path, clock)
    numbers = [ledger.submit(spent(amount)) for amount in (1, 2, 3)]
    ledger.start(lambda change, _: told.append((ledger.committed, change)))
    until(lambda: len(told) == 1)
    numbers.append(ledger.submit(spent(4)))
    assert ledger.close(5)
    assert numbers == [1, 1, 1, 2]
    assert told == [(1, spent(6)), (2, spent(4))]
    assert ledger.last_commit == clock.now().unix_seconds


def test_only_the_buckets_asked_for_are_read(tmp_path: Path):
    with writing(tmp_path) as ledger:
        for start in (QUARTER - 900, QUARTER, QUARTER + 900):
            ledger.submit(spent(7, start=start))
    ledger = Ledger.open(tmp_path, FakeClock(), Wanted(since=QUARTER))
    assert ledger.close(1)
    assert ledger.saved.buckets == {(spend(), QUARTER): 7, (spend(), QUARTER + 900): 7}
    assert ledger.saved.totals == {spend(): 21}


@pytest.mark.parametrize(("back", "found"), [(0, 0), (900, 2), (10**6, 3)])
def test_a_clock_that_is_ahead_hides_no_bucket(tmp_path: Path, back: int, found: int):
    """What is newest counts as new, whatever the clock says: it may be put right later."""
    with writing(tmp_path) as ledger:
        for start in (QUARTER - 900, QUARTER, QUARTER + 900):
            ledger.submit(spent(7, start=start))
    ledger = Ledger.open(tmp_path, FakeClock(), Wanted(since=QUARTER + 10**9, back=back))
    assert ledger.close(1)
    assert len(ledger.saved.buckets) == found


def test_a_reader_sees_one_moment_while_commits_go_on(tmp_path: Path):
    with writing(tmp_path) as ledger, closing(connect_read_only(tmp_path)) as reader:
        commit(ledger, spent(1))
        reader.execute("BEGIN")
        before = reader.execute("SELECT sum(amount) FROM buckets").fetchone()
        commit(ledger, spent(2))
        assert reader.execute("SELECT sum(amount) FROM buckets").fetchone() == before == (1,)
        reader.execute("COMMIT")
        assert reader.execute("SELECT sum(amount) FROM buckets").fetchone() == (3,)
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            reader.execute("DELETE FROM buckets")


def test_a_reader_finds_no_ledger(tmp_path: Path):
    with pytest.raises(LedgerError, match=r"ledger\.sqlite: expected a ledger, found none"):
        connect_read_only(tmp_path)


def test_old_rows_are_forgotten_and_totals_are_not(tmp_path: Path):
    clock = FakeClock()
    old, now = QUARTER - BUCKETS_KEPT_SECONDS - 9000, QUARTER
    samples = [(series, QUARTER - age, (1,)) for series in ("engine:chat", "budget:all", "peak:chat")
               for age in (3600, 26 * 3600, 8 * 86_400)]  # fmt: skip
    with writing(tmp_path, clock) as ledger:
        for start in (*range(old, old + 5 * 900, 900), now):
            ledger.submit(spent(1, start=start))
        ledger.submit(Change(samples=samples))
    kept = saved(tmp_path)
    assert kept.totals == {spend(): 6}
    assert [start for _, start in kept.buckets] == [old + 1800, old + 2700, old + 3600, now]
    ages = {
        series: [(QUARTER - at) // 3600 for name, at, _ in kept.samples if name == series] for series, *_ in samples
    }
    assert ages == {"engine:chat": [1], "budget:all": [1], "peak:chat": [26, 1]}
    with writing(tmp_path, clock) as ledger:
        for _ in range(3):
            commit(ledger, spent(1))
            clock.advance(BUCKET_SECONDS)
    assert [start for _, start in saved(tmp_path).buckets] == [now]


def test_a_clock_years_ahead_costs_half_an_hour_of_history(tmp_path: Path):
    clock = FakeClock()
    with writing(tmp_path, clock) as ledger:
        for day in range(10):
            commit(ledger, spent(1, start=QUARTER - 86_400 * day))
        clock.step_wall(10 * 365 * 86_400)
        commit(ledger, spent(1))
        commit(ledger, spent(1))
        clock.step_wall(-10 * 365 * 86_400)
        commit(ledger, spent(1))
    assert len(saved(tmp_path).buckets) == 8
    assert saved(tmp_path).totals == {spend(): 13}


def test_a_clock_set_back_changes_no_sum(tmp_path: Path):
    clock = FakeClock()
    with writing(tmp_path, clock) as ledger:
        commit(ledger, spent(5))
        clock.step_wall(-86_400)
        commit(ledger, spent(6, start=QUARTER - 86_400))
        assert ledger.last_commit == clock.now().unix_seconds
    assert saved(tmp_path).buckets == {(spend(), QUARTER): 5, (spend(), QUARTER - 86_400): 6}


def test_near_its_bound_it_forgets_the_oldest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(schema, "MAX_PAGES", 100)
    clock = FakeClock()
    accounts = [spend(f"engine {number}") for number in range(200)]
    last = 0
    with writing(tmp_path, clock) as ledger:
        for _ in range(150):
            clock.advance(BUCKET_SECONDS)
            last = int(clock.now().unix_seconds) // 900 * 900
            commit(ledger, Change(totals=dict.fromkeys(accounts, 1), buckets={(a, last): 1 for a in accounts}))
        assert ledger.errors == 0
        assert schema.pragma(ledger._connection, "page_count") <= 100
    kept = saved(tmp_path)
    starts = sorted({start for _, start in kept.buckets})
    assert starts == list(range(starts[0], last + 900, 900))
    assert len(starts) < 150
    assert set(kept.totals.values()) == {150}


def test_a_ledger_of_an_older_version_is_brought_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The first version knew no slots and no keys."""
    newest, first = len(schema.MIGRATIONS), schema.MIGRATIONS[:1]
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "ledger.sqlite"
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", first)
        with closing(file.open_for_writing(path)) as connection:
            rows.open_accounts(connection, {spend(): 1})
            connection.execute("UPDATE accounts SET amount = 7")
    with pytest.raises(LedgerError, match=f"expected schema {newest}, found 1: `serve` brings it up to date"):
        connect_read_only(path.parent)
    with writing(path.parent) as ledger:
        assert ledger.saved.totals == {spend(): 7}
        commit(ledger, Change(pending={(SLOTS[0], ITEMS[0]): 5}))
    assert saved(path.parent).pending == {(SLOTS[0], ITEMS[0]): 5}


def test_a_migration_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with writing(tmp_path) as ledger:
        ledger.submit(spent(7))
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, ("DELETE FROM accounts", "no SQL")))
        with pytest.raises(LedgerError, match=r"ledger that can be used, found: near \"no\": syntax error"):
            Ledger.open(tmp_path, FakeClock())
    assert saved(tmp_path).totals == {spend(): 7}


def test_a_ledger_of_a_newer_version_is_refused_and_kept(tmp_path: Path, request: pytest.FixtureRequest):
    version = len(schema.MIGRATIONS)
    with request.getfixturevalue("monkeypatch").context() as patch:
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, ("CREATE TABLE more (id)",)))
        with writing(tmp_path) as ledger:
            ledger.submit(spent(7))
    message = f"expected schema {version} or older, found {version + 1}: a newer version of this program wrote it"
    for open_it in (connect_read_only, lambda folder: Ledger.open(folder, FakeClock())):
        with pytest.raises(LedgerError, match=message):
            open_it(tmp_path)
    assert [path.name for path in tmp_path.glob("*corrupt*")] == []


def test_killed_at_any_moment_it_has_all_that_was_told_and_nothing_twice(tmp_path: Path):
    seed = time.time_ns() % 10**6
    print(f"seed {seed}")
    assert kill_writers(tmp_path / "data", rounds=20, seed=seed) >= 8
