"""One meter and its books, beat by beat."""

from collections.abc import Mapping
from fractions import Fraction

from exporter.books import Books
from exporter.config.model import Engine
from exporter.config.units import decimal
from exporter.core.meter import EngineMeter, Terms
from exporter.core.money import NANO, Kind, nano_usd
from exporter.core.prices import HourlyPrice, Interval
from exporter.core.readings import Buckets, Counted, EngineReading, Failure, HistogramSeries, ModelGauges, Series

BEGAN = 1_795_464_800
REFUSED = Failure(reason="refused", detail="Connection refused")
LOADING = Failure(reason="loading", detail="the model is being loaded", loading=True)
BOUNDS = (0.1, 1.0, float("inf"))


def terms(*, gpus: str = "1", prices: tuple[HourlyPrice, ...] | None = None, interval: float = 5.0) -> Terms:
    price = HourlyPrice(0, nano_usd(decimal("0.80")), "usd_per_hour")
    return Terms(
        engine=Engine(name="chat", url="http://127.0.0.1:1", tier="fast", gpus=Fraction(gpus)),
        gpu="any",
        gpu_prices=prices or (price,),
        away_ns=round(3 * interval * NANO),
    )


def page(
    tokens: int = 0, *, running: int = 0, start: float | None = BEGAN - 1000, requests: int = 0, http: int | None = None
) -> EngineReading:
    counters = {
        Series(Counted.PROMPT_TOKENS, "m", "", "p"): 2 * tokens,
        Series(Counted.CACHED_PROMPT_TOKENS, "m", "", "c"): tokens,
        Series(Counted.OUTPUT_TOKENS, "m", "", "o"): tokens,
        Series(Counted.REQUESTS, "m", "stop", "r"): requests,
    }
    if http is not None:
        counters[Series(Counted.HTTP_REQUESTS, "", "", "h")] = http
    ttft = {HistogramSeries("m", "t"): Buckets(BOUNDS, (0, requests, requests), 0.5 * requests)}
    return EngineReading(
        kind="vllm",
        start_time=start,
        counters=counters,
        ttft=ttft,
        models={"m": ModelGauges(running=running, waiting=0)},
    )


class Bench:
    """One meter and its books, beat by beat."""

    def __init__(self, at: float = BEGAN, of: Terms | None = None) -> None:
        self.terms = of or terms()
        self.at = at
        self.meter = EngineMeter(self.terms, at)
        self.books = Books()
        self.first = True

    def beat(self, outcome: EngineReading | Failure, seconds: float = 5.0, *, stepped: bool = False) -> None:
        interval = None
        if not self.first:
            self.at += seconds
            interval = Interval(round(self.at * NANO), round(seconds * NANO), stepped)
        self.first = False
        for account, amount, at in self.meter.beat(self.terms, interval, outcome, self.at):
            self.books._apply(account, amount, at)
        for account, amount, at in self.meter.opened(self.terms):
            self.books._apply(account, amount, at)

    def seconds(self, price: str = "0.80") -> Mapping[str, float]:
        per_second = Fraction(price) * NANO / 3600
        found = {labels[0]: total for labels, total in self.books.totals()[Kind.SPEND].items() if total}
        return {
            category.removeprefix("compute_"): round(float(total / per_second), 3) for category, total in found.items()
        }

    def total(self, kind: Kind, *labels: str) -> int:
        return self.books.totals()[kind].get(labels, 0)
