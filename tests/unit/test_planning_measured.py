"""What a ledger's books tell of the past: work, spend, idle gaps, cold starts, tiers and cascades."""

from collections.abc import Iterable
from fractions import Fraction

from exporter.core.cascades import Edge
from exporter.core.money import NANO, Account, Category, Kind
from exporter.core.planning_measured import MeasuredTier, Stretch, edges, engines, measured, observed, since, tiers

QUARTER = 900
DAY = 86_400
ONE_DAY = Stretch(0, DAY)
Amounts = dict[tuple[Account, int], int]


def spent(category: str, starts: Iterable[int], usd: str = "0.20", engine: str = "chat", tier: str = "fast") -> Amounts:
    amount = int(Fraction(usd) * NANO)
    return {(Account(Kind.SPEND, (category, engine, "m", tier)), start * QUARTER): amount for start in starts}


def counted(kind: Kind, amount: int, *labels: str) -> Amounts:
    return {(Account(kind, labels), 0): amount}


WORK = (
    counted(Kind.REQUESTS, 1000, "chat", "m", "finished")
    | counted(Kind.REQUESTS, 9, "chat", "m", "abandoned")
    | counted(Kind.REQUESTS, 77, "other", "m", "finished")
    | counted(Kind.PROMPT_TOKENS, 800_000, "chat", "m", "fast")
    | counted(Kind.CACHED_PROMPT_TOKENS, 200_000, "chat", "m", "fast")
    | counted(Kind.OUTPUT_TOKENS, 500_000, "chat", "m", "fast")
    | counted(Kind.COLD_STARTS, 2, "chat")
)


def test_work_and_spend_of_one_engine():
    compute = spent("compute_busy", range(72)) | spent("compute_idle", range(72, 96))
    books = WORK | compute | spent("network", [0], "0.50")
    found = measured(books, "chat", ONE_DAY, [120_000, 80_500])
    assert found.requests_per_day == 1000
    kinds = (Kind.PROMPT_TOKENS, Kind.CACHED_PROMPT_TOKENS, Kind.OUTPUT_TOKENS)
    assert [str(found.per_request(kind)) for kind in kinds] == ["800", "200", "500"]
    assert found.compute_usd_per_hour == Fraction("0.80")
    assert found.usd_per_hour(Category.STORAGE) is None
    assert found.network_usd_per_request == Fraction("0.0005")
    assert found.idle_ratio == Fraction(1, 4)
    assert found.idle_seconds == DAY // 4
    assert found.most_output_tokens_per_second == 120
    assert engines(books) == ["chat"]


def test_time_that_nobody_saw_is_no_time():
    assert observed(WORK | counted(Kind.UNOBSERVED, DAY // 2 * NANO), ONE_DAY) == DAY // 2
    assert observed(WORK | counted(Kind.UNOBSERVED, 2 * DAY * NANO), ONE_DAY) == 0
    assert measured(WORK, "chat", Stretch(0, DAY // 2)).requests_per_day == 2000


def test_an_engine_that_came_late_is_measured_over_its_own_time():
    """What it cost an hour was divided by all hours of the ledger."""
    whole = spent("compute_busy", range(96), engine="old")
    late = spent("compute_busy", [80], "0.07") | spent("compute_busy", range(81, 96))
    requests = {(Account(Kind.REQUESTS, ("chat", "m", "finished")), at * QUARTER): 10 for at in range(80, 96)}
    found = measured(whole | late | requests, "chat", Stretch(300, DAY))
    assert found.compute_usd_per_hour == Fraction("0.80")
    assert found.seconds == 15 * QUARTER
    assert found.requests_per_day == 960
    away = {(Account(Kind.UNOBSERVED, ()), at * QUARTER): QUARTER * NANO for at in (3, 90)}
    assert measured(whole | late | away, "chat", Stretch(300, DAY)).seconds == 14 * QUARTER


def test_an_engine_that_went_is_measured_until_then():
    gone = spent("compute_busy", range(10)) | spent("compute_idle", [10], "0.01")
    assert measured(gone, "chat", Stretch(0, DAY)).compute_usd_per_hour == Fraction("0.80")
    brief = spent("compute_busy", [40], "0.05")
    assert measured(brief, "chat", Stretch(0, DAY)).seconds == 0, "nobody knows how much of a quarter that was"


def test_an_engine_that_was_away_is_measured_before_and_after():
    edges_of_it = spent("compute_busy", [10, 50], "0.03")
    away = spent("compute_busy", range(10)) | edges_of_it | spent("compute_idle", range(51, 96))
    found = measured(away, "chat", Stretch(0, DAY))
    assert found.compute_usd_per_hour == Fraction("0.80")
    assert found.seconds == (10 + 45) * QUARTER


def test_since_when_there_is_any():
    books = spent("compute_busy", [3, 5]) | spent("compute_busy", [2], "0")
    assert since(books, Kind.SPEND, tier="fast") == 3 * QUARTER
    assert since(books, Kind.SPEND, tier="best") is None


def test_the_first_and_the_last_quarter_of_a_ledger_are_parts():
    books = spent("compute_busy", [0, 3], "0.10") | spent("compute_busy", [1, 2])
    assert measured(books, "chat", Stretch(450, 3150)).compute_usd_per_hour == Fraction("0.80")


def test_an_idle_gap_is_a_run_of_quarters_without_anything_else():
    idle = [0, 1, 2, 10, 20, 21, 30]
    work = spent("compute_busy", [2]) | spent("compute_loading", [30])
    books = spent("compute_idle", idle) | work | spent("storage", [10])
    assert measured(books, "chat", ONE_DAY).gaps == tuple(map(Fraction, (1800, 900, 1800)))
    assert measured(books, "other", ONE_DAY).gaps == ()
    nothing = spent("compute_busy", [1], "0") | spent("compute_idle", [1])
    assert measured(nothing, "chat", ONE_DAY).gaps == (Fraction(900),)


def test_a_cold_start_lasts_as_long_as_its_loading_cost():
    loading = {(Account(Kind.SPEND, ("compute_loading", "chat", "m", "fast")), 0): NANO // 10}
    books = counted(Kind.COLD_STARTS, 2, "chat") | loading | spent("compute_busy", [1], "0.70")
    assert measured(books, "chat", Stretch(0, 1800)).cold_start_seconds == Fraction(1800, 8) / 2
    assert measured(loading, "chat", Stretch(0, 1800)).cold_start_seconds is None


def test_nothing_booked_and_few_requests_are_not_known():
    found = measured(counted(Kind.REQUESTS, 49, "chat", "m", "finished"), "chat", ONE_DAY)
    assert (found.per_request(Kind.OUTPUT_TOKENS), found.network_usd_per_request) == (None, None)
    assert (found.compute_usd_per_hour, found.idle_seconds, found.cold_start_seconds) == (None, None, None)
    assert (found.most_output_tokens_per_second, found.gaps) == (None, ())


def test_a_request_of_a_tier_costs_what_the_tier_did():
    books = (
        WORK
        | spent("compute_busy", range(5))
        | spent("api", [0], "9.00", engine="", tier="frontier")
        | counted(Kind.FEATURE_REQUESTS, 300, "summary", "docs", "m", "frontier")
        | counted(Kind.FEATURE_REQUESTS, 500, "summary", "docs", "other", "frontier")
    )
    assert tiers(books) == [
        MeasuredTier(name="fast", requests=1000, usd_per_request=Fraction("0.001")),
        MeasuredTier(name="frontier", requests=300, usd_per_request=Fraction("0.03")),
    ]
    assert tiers(spent("compute_busy", [0]) | counted(Kind.REQUESTS, 49, "chat", "m", "finished")) == [
        MeasuredTier(name="fast", requests=49, usd_per_request=None)
    ]


def test_steps_of_cascades_with_what_they_got_and_handed_over():
    books = (
        counted(Kind.CASCADE_REQUESTS, 100, "support", "fast")
        | counted(Kind.CASCADE_REQUESTS, 25, "support", "frontier")
        | counted(Kind.ESCALATIONS, 25, "support", "fast", "frontier")
    )
    assert edges(books) == {Edge("support", "fast", "frontier"): (100, 25)}
