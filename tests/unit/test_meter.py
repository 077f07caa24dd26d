"""The meter: what an interval bought, through restarts, failures and any split of time."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.config.units import decimal
from exporter.core.money import NANO, Category, Kind, nano_usd
from exporter.core.prices import HourlyPrice, Interval
from exporter.core.readings import Buckets, EngineReading, Failure, ModelGauges
from tests.bench import BEGAN, BOUNDS, LOADING, REFUSED, Bench, page, terms


def test_time_is_idle_while_nothing_runs_and_busy_while_tokens_move():
    bench = Bench()
    for tokens in (0, 0, 100, 100):
        bench.beat(page(tokens))
    assert bench.seconds() == {"idle": 10.0, "busy": 5.0}


def test_time_is_busy_while_requests_run_though_no_token_has_come_yet():
    bench = Bench()
    bench.beat(page(7))
    bench.beat(page(7, running=2))
    bench.beat(page(7, running=0))
    assert bench.seconds() == {"busy": 10.0}


def test_gauges_of_zero_do_not_make_a_working_engine_idle():
    bench = Bench()
    bench.beat(page(0, running=0))
    bench.beat(page(5, running=0))
    assert bench.seconds() == {"busy": 5.0}


def test_time_until_the_first_answer_is_loading():
    bench = Bench()
    for _ in range(4):
        bench.beat(REFUSED)
    bench.beat(page(0, start=BEGAN + 2))
    assert bench.seconds() == {"loading": 20.0}


def test_a_failed_read_stays_pending_and_is_settled_by_the_next_reading():
    bench = Bench()
    bench.beat(page(0))
    bench.beat(REFUSED)
    bench.beat(REFUSED)
    assert bench.seconds() == {}
    bench.beat(page(9))
    assert bench.seconds() == {"busy": 15.0}


def test_a_failed_read_is_down_after_three_beats():
    bench = Bench()
    bench.beat(page(0))
    for _ in range(4):
        bench.beat(REFUSED)
    assert bench.seconds() == {"down": 5.0}
    for _ in range(6):
        bench.beat(REFUSED)
    assert bench.seconds() == {"down": 35.0}


def test_a_restart_in_place_is_loading_from_the_start_of_the_process_until_it_answers():
    bench = Bench()
    bench.beat(page(50))
    bench.beat(REFUSED)
    bench.beat(REFUSED)
    bench.beat(page(0, start=BEGAN + 3))
    assert bench.seconds() == {"down": 3.0, "loading": 12.0}
    assert bench.total(Kind.COLD_STARTS, "chat") == 1
    assert bench.meter.last_cold_start is not None
    assert bench.meter.last_cold_start.seconds == 12.0


def test_a_server_that_says_it_is_loading_is_loading_though_it_answered_before():
    bench = Bench()
    bench.beat(page(50))
    bench.beat(REFUSED)
    bench.beat(LOADING)
    bench.beat(LOADING)
    assert bench.seconds() == {"down": 5.0, "loading": 10.0}


def test_what_is_pending_when_an_engine_is_taken_away_is_down():
    bench = Bench()
    bench.beat(page(0))
    bench.beat(REFUSED)
    for account, amount, at in bench.meter.settle(bench.terms):
        bench.books._apply(account, amount, at)
    assert bench.seconds() == {"down": 5.0}


def test_time_when_we_were_away_is_unobserved():
    bench = Bench()
    bench.beat(page(0))
    bench.beat(page(900), 60.0)
    bench.beat(page(900))
    assert bench.seconds() == {"unobserved": 60.0, "idle": 5.0}
    assert bench.total(Kind.OUTPUT_TOKENS, "chat", "m", "fast") == 900


def test_three_beats_are_no_absence_and_a_moment_more_is_one():
    bench = Bench()
    bench.beat(page(0))
    bench.beat(page(0), 15.0)
    assert bench.seconds() == {"idle": 15.0}
    bench.beat(page(0), 15.001)
    assert bench.seconds() == {"idle": 15.0, "unobserved": 15.001}


def test_a_restart_while_we_were_away_is_unobserved_until_the_new_process_began():
    bench = Bench()
    bench.beat(page(0))
    bench.beat(page(0, start=BEGAN + 40), 60.0)
    assert bench.seconds() == {"unobserved": 40.0, "loading": 20.0}


def test_a_model_that_changes_with_a_restart_pays_from_its_first_answer():
    bench = Bench()
    bench.beat(page(0))
    other = page(0, start=BEGAN + 3)
    renamed = EngineReading(
        kind="vllm", start_time=other.start_time, counters={}, ttft={}, models={"n": ModelGauges(running=0)}
    )
    bench.beat(renamed)
    bench.beat(renamed)
    spend = bench.books.totals()[Kind.SPEND]
    assert spend["compute_down", "chat", "m", "fast"] + spend["compute_loading", "chat", "m", "fast"] > 0
    assert spend["compute_idle", "chat", "n", "fast"] > 0
    assert spend["compute_busy", "chat", "n", "fast"] == 0


def test_several_models_on_one_page_share_one_name():
    bench = Bench()
    models = {"m": ModelGauges(running=1), "n": ModelGauges(running=0)}
    for _ in range(2):
        bench.beat(EngineReading(kind="vllm", start_time=None, counters={}, ttft={}, models=models))
    assert bench.total(Kind.SPEND, "compute_busy", "chat", "several", "fast") > 0


def test_a_price_that_changes_inside_an_interval_splits_it():
    cheap, dear = nano_usd(decimal("1")), nano_usd(decimal("3"))
    prices = (HourlyPrice(0, cheap, "timeline"), HourlyPrice((BEGAN + 4) * NANO, dear, "timeline"))
    bench = Bench(of=terms(prices=prices))
    bench.beat(page(0))
    bench.beat(page(0), 10.0)
    spent = bench.total(Kind.SPEND, "compute_idle", "chat", "m", "fast")
    assert spent == (4 * NANO * 1 + 6 * NANO * 3) // 3600


def test_an_interval_during_which_the_wall_clock_moved_is_booked_at_its_end():
    prices = (
        HourlyPrice(0, nano_usd(decimal("1")), "timeline"),
        HourlyPrice((BEGAN + 4) * NANO, nano_usd(decimal("3")), "timeline"),
    )
    bench = Bench(of=terms(prices=prices))
    bench.beat(page(0))
    bench.beat(page(0), 10.0, stepped=True)
    assert bench.total(Kind.SPEND, "compute_idle", "chat", "m", "fast") == 10 * NANO * 3 // 3600


def test_unknown_price_is_not_zero():
    bench = Bench(of=terms(gpus="0.5", prices=(HourlyPrice(0, None, "by_name"),)))
    bench.beat(page(0))
    bench.beat(page(0))
    assert bench.total(Kind.UNPRICED_GPU, "chat", "m", "fast", "any") == 2.5 * NANO
    assert not any(bench.books.totals()[Kind.SPEND].values())


def test_a_fraction_of_a_gpu_costs_its_fraction():
    bench = Bench(of=terms(gpus="3/7"))
    bench.beat(page(0))
    for _ in range(7):
        bench.beat(page(0), 5.0)
    assert bench.total(Kind.SPEND, "compute_idle", "chat", "m", "fast") == 35 * 3 * 800_000_000 // 7 // 3600


def test_every_account_that_is_known_begins_at_zero():
    bench = Bench()
    bench.beat(page(40, http=0))
    totals = bench.books.totals()
    compute = {category.value for category in Category if category.startswith("compute_")}
    assert {labels[0]: total for labels, total in totals[Kind.SPEND].items()} == dict.fromkeys(compute, 0)
    for kind in (Kind.PROMPT_TOKENS, Kind.CACHED_PROMPT_TOKENS, Kind.OUTPUT_TOKENS):
        assert totals[kind] == {("chat", "m", "fast"): 0}
    assert totals[Kind.REQUESTS] == {("chat", "m", "stop"): 0, ("chat", "m", "abandoned"): 0}
    assert totals[Kind.COLD_STARTS] == {("chat",): 0}


def test_hang_ups_are_replies_that_no_finished_request_explains():
    bench = Bench()
    bench.beat(page(requests=10, http=9))  # one has finished, and its reply is not counted yet
    bench.beat(page(requests=10, http=10))
    assert bench.total(Kind.REQUESTS, "chat", "m", "abandoned") == 0
    bench.beat(page(requests=12, http=15))
    assert bench.total(Kind.REQUESTS, "chat", "m", "abandoned") == 3
    bench.beat(page(requests=13, http=15))
    bench.beat(page(requests=13, http=16))
    assert bench.total(Kind.REQUESTS, "chat", "m", "abandoned") == 3
    bench.beat(page(requests=1, http=2, start=BEGAN + 18))
    assert bench.total(Kind.REQUESTS, "chat", "m", "abandoned") == 4


def test_ttft_goes_on_through_a_restart():
    bench = Bench()
    bench.beat(page(requests=5))
    bench.beat(page(requests=9))
    bench.beat(page(requests=2, start=BEGAN + 8))
    assert bench.meter.ttft["m"] == Buckets(BOUNDS, (0, 6, 6), 3.0)


# One step of a history: what the engine does for that many seconds, and how many tokens it makes.
STEP = st.tuples(st.sampled_from(["idle", "work", "gone", "restart"]), st.integers(5, 40), st.integers(0, 500))


@given(st.lists(STEP, min_size=1, max_size=30))
@settings(max_examples=200, deadline=None)
def test_every_second_is_charged_once_whatever_happens(history: list[tuple[str, int, int]]):
    bench = Bench()
    bench.beat(page(0))
    tokens, start, made = 0, BEGAN - 1000.0, 0
    previous: dict[tuple[Kind, tuple[str, ...]], int] = {}
    for what, seconds, more in history:
        if what == "gone":
            bench.beat(REFUSED, seconds)
        else:
            if what == "restart":
                tokens, start = 0, bench.at + seconds / 2
            tokens += more if what != "idle" else 0
            made += more if what != "idle" else 0
            bench.beat(page(tokens, start=start), seconds)
            assert bench.total(Kind.OUTPUT_TOKENS, "chat", "m", "fast") == made
        totals = {
            (kind, labels): total for kind, found in bench.books.totals().items() for labels, total in found.items()
        }
        assert all(totals[key] >= total for key, total in previous.items())
        previous = totals
    bench.beat(page(tokens, start=start), 1.0)
    charged = sum(bench.books.totals()[Kind.SPEND].values())
    exact = Fraction(round((bench.at - BEGAN) * NANO)) * Fraction("0.80") / 3600
    assert 0 <= exact - charged < len(Category)  # less than one nano-dollar waits in each account


@given(st.lists(st.integers(1, 4_000_000_000), min_size=1, max_size=60))
@settings(deadline=None)
def test_any_split_of_the_same_time_comes_to_the_same_sum(lengths: list[int]):
    def spend(parts: list[int]) -> int:
        bench = Bench(of=terms(gpus="3/7", interval=1000.0))
        bench.beat(page(0))
        end = BEGAN * NANO
        for part in parts:
            end += part
            for account, amount, at in bench.meter.beat(bench.terms, Interval(end, part), page(0), end / NANO):
                bench.books._apply(account, amount, at)
        return bench.total(Kind.SPEND, "compute_idle", "chat", "m", "fast")

    assert spend(lengths) == spend([sum(lengths)])


@pytest.mark.parametrize("tokens", [0, 10, 10**12])
def test_the_first_reading_is_a_baseline(tokens: int):
    bench = Bench()
    bench.beat(page(tokens))
    assert bench.total(Kind.OUTPUT_TOKENS, "chat", "m", "fast") == 0
    bench.beat(page(tokens + 3))
    assert bench.total(Kind.OUTPUT_TOKENS, "chat", "m", "fast") == 3


def test_the_first_reading_of_an_engine_that_started_while_we_watched_counts_in_full():
    bench = Bench()
    bench.beat(REFUSED)
    bench.beat(page(70, start=BEGAN + 1))
    assert bench.total(Kind.OUTPUT_TOKENS, "chat", "m", "fast") == 70
    assert bench.total(Kind.COLD_STARTS, "chat") == 1


def test_an_engine_that_was_up_all_along_has_not_started_though_our_first_read_failed():
    bench = Bench()
    bench.beat(REFUSED)
    bench.beat(page(7000))
    assert bench.total(Kind.COLD_STARTS, "chat") == 0


@pytest.mark.parametrize(
    ("reason", "age_seconds", "starts"),
    [
        ("refused", 600, 1),
        ("loading", 600, 1),
        ("refused", 3 * 86_400, 0),
        ("unreachable", 600, 0),
        ("unauthorized", 600, 0),
        ("timeout", 600, 0),
    ],
)
def test_only_an_engine_that_was_not_there_a_moment_ago_has_started(reason: str, age_seconds: int, starts: int):
    """Without a request yet: what kept us from reading it, and its age, say whether it was there."""
    bench = Bench()
    bench.beat(Failure(reason=reason, detail="…"))
    bench.beat(page(0, start=BEGAN - age_seconds))
    assert bench.total(Kind.COLD_STARTS, "chat") == starts


def test_replicas_that_answer_in_turn_are_no_restarts():
    bench = Bench()
    for tokens, start in ((100, -900), (500, -800), (130, -900), (520, -800)):
        bench.beat(page(tokens, start=BEGAN + start))
    assert bench.seconds() == {"busy": 15.0}
    assert bench.total(Kind.COLD_STARTS, "chat") == 0


def test_an_engine_whose_clock_is_ahead_of_ours_begins_with_a_baseline():
    bench = Bench()
    bench.beat(page(500, start=BEGAN + 60))
    bench.beat(page(510, start=BEGAN + 60))
    assert bench.total(Kind.OUTPUT_TOKENS, "chat", "m", "fast") == 10
    assert bench.total(Kind.COLD_STARTS, "chat") == 0


def test_an_engine_that_was_already_loading_when_we_came_is_a_cold_start():
    bench = Bench()
    bench.beat(REFUSED)
    bench.beat(page(0, start=BEGAN - 30))
    assert bench.total(Kind.COLD_STARTS, "chat") == 1
    assert bench.meter.last_cold_start is not None
    assert bench.meter.last_cold_start.seconds == 35.0
