"""What `doctor` says of API prices and of break-even, from a ledger that an exporter wrote."""

from decimal import Decimal
from pathlib import Path

import pytest

from exporter.cli import doctor_money
from exporter.clock import SystemClock
from exporter.config.model import Config, Engine
from exporter.config.prices import ApiModel, ApiPrices, ApiReference, GpuPrice, Prices
from exporter.ledger import Change
from tests.ledgers import saved, writing

MINI = ApiModel(
    provider="openai", model="mini", input_usd_per_million=Decimal("0.15"), output_usd_per_million=Decimal("0.60")
)
CENT = 10**7  # nano-dollars


def config(capacity: str | None = None) -> Config:
    engine = Engine(url="http://127.0.0.1:9", max_output_tokens_per_second=Decimal(capacity) if capacity else None)
    api = ApiPrices(models=(MINI,), compare_with=ApiReference(provider="openai", model="mini"))
    return Config(engines=(engine,), prices=Prices(gpu=GpuPrice(usd_per_hour=Decimal("0.80")), api=api))


def lines(of: Config, folder: Path | None) -> list[str]:
    return [text for _, text in doctor_money.findings(of, saved(folder) if folder else None, SystemClock().now())]


@pytest.mark.parametrize(
    ("capacity", "expected"),
    [
        ("1000", "; the replicas of today can serve 172,800"),
        ("300", ": not reachable, since the replicas of today can serve 51,840"),
        (None, "; what the engine can serve is not known yet"),
    ],
)
def test_break_even_that_no_replica_reaches_is_said_plainly(tmp_path: Path, capacity: str | None, expected: str):
    """Two hours at $0.80, 1 000 requests of $0.0003 and 500 output tokens each."""
    series, now = "api:default:openai/mini", int(SystemClock().now().unix_seconds)
    rows = [(series, now - 7200, (0, 0, 0, 0)), (series, now, (160 * CENT, 30 * CENT, 1000, 500_000))]
    with writing(tmp_path) as ledger:
        ledger.submit(Change(samples=rows))
    said = "default beside openai/mini: self-hosting pays from 64,000 requests a day on"
    assert lines(config(capacity), tmp_path)[-1] == said + expected


def test_without_a_ledger_or_enough_requests_it_says_what_is_missing(tmp_path: Path):
    with writing(tmp_path) as ledger:
        ledger.submit(Change(samples=[("api:default:openai/mini", 1, (0, 0, 0, 0))]))
    assert lines(config(), None)[-1].endswith("is not looked at, since --storage.path is not given")
    assert lines(config(), tmp_path)[-1].endswith("is not known yet; it takes 50 requests")


def test_the_source_of_each_price_is_shown():
    assert lines(config(), None)[0] == "openai/mini: 0.15 / 0.15 / 0.6 USD a million tokens in / cached / out (config)"
