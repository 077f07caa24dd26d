"""Windows: what moved since, the best five minutes, and quantiles as PromQL has them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.core.money import NANO
from exporter.core.windows import MINUTE, WINDOWS, EngineTotals, EngineWindows, History, quantile

INF = math.inf


def totals(spend: int = 0, output: int = 0) -> EngineTotals:
    return EngineTotals(spend=spend, unpriced_gpu_ns=0, prompt_tokens=0, output_tokens=output)


def test_a_young_history_is_as_long_as_it_is():
    windows = EngineWindows()
    windows.record(0, totals())
    windows.record(30 * NANO, totals(spend=6))
    moved = windows.moved(30 * NANO, WINDOWS["1h"], totals(spend=6))
    assert (moved.duration_ns, moved.spend) == (30 * NANO, 6)


def test_a_window_reaches_back_to_the_last_value_before_it():
    history: History[int] = History(fine=10 * MINUTE, keep=60 * MINUTE)
    for second in range(0, 100, 10):
        history.append(second * NANO, second)
    assert history.before(55 * NANO) == (50 * NANO, 50)
    assert history.before(60 * NANO) == (60 * NANO, 60)
    assert history.before(-1) == (0, 0)


def test_an_empty_history_has_no_value():
    with pytest.raises(LookupError):
        History[int](fine=MINUTE, keep=MINUTE).before(0)


@given(st.lists(st.integers(1, 90), min_size=1, max_size=400), st.integers(0, 3600))
def test_a_thinned_history_is_never_off_by_more_than_a_minute(steps: list[int], back: int):
    """Against a plain list of everything."""
    history: History[int] = History(fine=6 * MINUTE, keep=60 * MINUTE)
    everything: list[int] = []
    now = 0
    for step in steps:
        now += step
        everything.append(now)
        history.append(now * NANO, now)
    _, found = history.before((now - back) * NANO)
    exact = max((second for second in everything if second <= now - back), default=everything[0])
    assert found <= exact
    assert exact - found < (60 + 90 if back > 360 - 90 else 1)
    assert len(history) <= 6 * 60 + 60 + 3


def test_an_old_history_keeps_the_first_value_of_each_minute():
    history: History[int] = History(fine=2 * MINUTE, keep=10 * MINUTE)
    for second in range(0, 1201, 7):
        history.append(second * NANO, second)
    first_of_minute = {(second // 60): second for second in reversed(range(0, 1201, 7))}
    for minute in range(11, 17):
        end_of_minute = (60 * minute + 59) * NANO
        assert history.before(end_of_minute)[1] == first_of_minute[minute]
    oldest = history.before(0)[1]
    assert 1200 - 10 * 60 - 60 <= oldest <= 1200 - 10 * 60


def test_the_best_five_minutes_are_known_after_five_minutes_and_forgotten_after_a_week():
    windows = EngineWindows()
    output = 0
    for second in range(0, 300, 10):
        windows.record(second * NANO, totals(output=output))
        assert windows.peak_output_tokens_per_second() is None
        output += 100
    windows.record(300 * NANO, totals(output=output))
    assert windows.peak_output_tokens_per_second() == 10.0
    at = 300
    peaks = []
    for _ in range(7 * 24 * 12 + 2):
        at += 300
        output += 300
        windows.record(at * NANO, totals(output=output))
        peaks.append(windows.peak_output_tokens_per_second())
    assert peaks[6 * 24 * 12] == 10.0
    assert peaks[-1] == 1.0


@pytest.mark.parametrize(
    ("q", "counts", "expected"),
    [
        (0.95, (0, 100, 100), 0.1 + 0.9 * 0.95),
        (0.5, (100, 100, 100), 0.05),
        (0.95, (50, 50, 100), 1.0),
        (1.0, (1, 2, 2), 1.0),
        (0.95, (0, 1, 1), 0.1 + 0.9 * 0.95),
        (0.0, (1, 2, 2), 0.0),
        (0.95, (0, 0, 0), None),
    ],
)
def test_quantiles_are_those_of_histogram_quantile(q: float, counts: tuple[int, ...], expected: float | None):
    found = quantile(q, (0.1, 1.0, INF), counts)
    assert found == (None if expected is None else pytest.approx(expected))


def test_the_highest_finite_bound_stands_for_all_above_it():
    assert quantile(0.5, (1.0, INF), (0, 5)) == 1.0


def test_a_histogram_of_one_bucket_has_no_quantile():
    assert quantile(0.95, (INF,), (7,)) is None
    assert quantile(0.95, (), ()) is None


@given(st.lists(st.integers(0, 50), min_size=3, max_size=12), st.floats(0.01, 0.99))
def test_a_quantile_lies_in_the_bucket_that_holds_it(observed: list[int], q: float):
    counts = tuple(sum(observed[: index + 1]) for index in range(len(observed)))
    bounds = (*(float(index + 1) for index in range(len(observed) - 1)), INF)
    found = quantile(q, bounds, counts)
    if counts[-1] == 0:
        assert found is None
    else:
        index = next(index for index, count in enumerate(counts) if count >= q * counts[-1])
        assert found is not None
        assert (bounds[index - 1] if index else 0.0) <= found <= min(bounds[index], bounds[-2])
