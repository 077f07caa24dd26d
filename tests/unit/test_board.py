"""The board: what a scrape gets while the beat goes on, when it has stopped, and when it never had to."""

import gzip

from exporter.core.money import Kind
from exporter.core.snapshot import ConfigView, Snapshot, SourceView
from exporter.web.board import Board
from tests.fakes import FakeClock
from tests.golden.test_golden import CONFIG, Stage, vllm


def empty(at: float, role: str = "lone") -> Snapshot:
    view = ConfigView(successful=False, last_success=None)
    return Snapshot(at=at, version="0", role=role, interval_seconds=0.0, accounting_start=None, config=view)


async def board_after_a_beat(clock: FakeClock) -> Board:
    stage = Stage()
    stage.clock = clock
    board = Board(clock, empty(clock.now().unix_seconds), lambda: b"own 1\n")
    snapshot = await stage.play(CONFIG, [vllm(1), vllm(2)], seconds=0.0)
    board.publish(snapshot)
    board.expects_beats = True
    return board


async def test_a_fresh_page_has_everything_and_an_old_one_only_what_cannot_grow_old():
    clock = FakeClock()
    board = await board_after_a_beat(clock)
    fresh = board.page().body
    assert b"llmcost_requests_running{" in fresh
    assert b"own 1\n" in fresh
    clock.advance(3 * CONFIG.interval)
    assert board.page().body == fresh
    clock.advance(1)
    old = board.page().body
    assert b"llmcost_requests_running{" not in old
    assert b"llmcost_spend_usd_per_hour{" not in old
    for stays in (b"llmcost_spend_usd_total{", b"llmcost_output_tokens_total{", b"llmcost_source_up{", b"own 1\n"):
        assert stays in old
    assert board.page() is board.page()


async def test_age_is_told_whatever_the_wall_clock_does():
    clock = FakeClock()
    board = await board_after_a_beat(clock)
    clock.advance(2)
    for step in (3600, -7200):
        clock.step_wall(step)
        assert board.age_seconds() == 2
    board.publish(board.snapshot)
    assert board.age_seconds() == 0


async def test_health_ends_when_the_beat_has_been_dead_for_a_minute():
    clock = FakeClock()
    board = await board_after_a_beat(clock)
    clock.advance(60)
    assert board.is_alive()
    clock.advance(60)
    assert not board.is_alive()


def test_an_exporter_that_never_had_to_beat_is_alive():
    clock = FakeClock()
    board = Board(clock, empty(clock.now().unix_seconds), lambda: b"")
    clock.advance(10_000)
    assert board.is_alive()
    assert b"llmcost_build_info" in board.page().body


def test_a_beat_that_never_came_is_missed():
    clock = FakeClock()
    board = Board(clock, empty(clock.now().unix_seconds), lambda: b"")
    board.expects_beats = True
    clock.advance(60)
    assert board.is_alive()
    clock.advance(1)
    assert not board.is_alive()
    assert b"llmcost_build_info" in board.page().body


def test_a_page_is_compressed_once():
    clock = FakeClock()
    board = Board(clock, empty(0.0), lambda: b"")
    packed = board.page().compressed
    assert gzip.decompress(packed) == board.page().body
    assert board.page().compressed is packed


def test_a_publication_replaces_everything_at_once():
    clock = FakeClock()
    board = Board(clock, empty(0.0), lambda: b"")
    view = SourceView(
        source="engine",
        target="a",
        up=True,
        last_success=1.0,
        read_seconds=0.1,
        interval_seconds=5.0,
        errors={},
        problem=None,
    )
    first = board.page()
    totals: dict[Kind, dict[tuple[str, ...], int]] = {Kind.COLD_STARTS: {("a",): 2}}
    board.publish(
        Snapshot(
            at=clock.now().unix_seconds,
            version="1",
            role="lone",
            interval_seconds=5.0,
            accounting_start=1.0,
            config=ConfigView(successful=True, last_success=1.0),
            sources=(view,),
            totals=totals,
        )
    )
    assert b"llmcost_cold_starts_total" not in first.body
    assert b'llmcost_cold_starts_total{engine="a"} 2\n' in board.page().body
