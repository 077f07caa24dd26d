"""Every query of every panel asked of a real Prometheus: short windows of the demo, long ones of a history."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backfill import DAY, HOUR, series_of, write_history
from tests.contract.test_dashboards import TARGETS, Target
from tests.demos import Demo
from tests.monitoring import daemon, query, wait
from tests.processes import free_port
from tests.programs import program

LONG = {"6h": 6 * HOUR, "1d": DAY, "30d": 30 * DAY}
SLOW = "llmcost_budget_forecast_usd"  # takes an hour of history
LONG_TARGETS = [target for target in TARGETS if re.search(rf"\[({'|'.join(LONG)})\]|{SLOW}", target.expr)]
DAYS = 31
AGE = "time() - timestamp(llmcost_build_info offset 1m) < 90"  # there was a page a minute ago


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """A Prometheus that knows a month of all counters that long windows look at: its port, and when the month ends."""
    folder: Path = tmp_path_factory.mktemp("history")
    end, port, config = int(time.time()) // 300 * 300, free_port(), folder / "prometheus.yml"
    names = {name for target in LONG_TARGETS for name in re.findall(r"llmcost_\w+", target.expr)}
    write_history(names, folder, end, DAYS)
    config.write_text("global: {scrape_interval: 1m}\n")
    command = [
        program("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={folder}/tsdb",
        "--storage.tsdb.retention.time=60d", f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
    ]  # fmt: skip
    with daemon(folder, command, port):
        yield port, end


@pytest.mark.timeout(120)
@pytest.mark.parametrize("target", LONG_TARGETS, ids=[target.name for target in LONG_TARGETS])
def test_a_long_window_has_data(history: tuple[int, int], target: Target):
    assert query(history[0], target.expr, at=history[1])


@pytest.mark.timeout(120)
@pytest.mark.parametrize("window", LONG)
def test_a_long_window_holds_what_was_spent_in_it(history: tuple[int, int], window: str):
    port, end = history
    (said,) = query(port, f"sum(increase(llmcost_spend_usd_total[{window}]))", at=end)
    assert float(said["value"][1]) == pytest.approx(len(series_of("llmcost_spend_usd_total")) * LONG[window], rel=0.01)


SHORT_TARGETS = [target for target in TARGETS if target not in LONG_TARGETS]


@pytest.fixture(scope="module")
def demo_of_a_minute(demo: Demo) -> Demo:
    """The demo once Prometheus has been scraping it for a minute."""
    wait(lambda: bool(query(demo.prometheus, AGE)), "a minute of scrapes", seconds=90)
    return demo


@pytest.mark.timeout(180)
@pytest.mark.parametrize("target", SHORT_TARGETS, ids=[target.name for target in SHORT_TARGETS])
def test_a_short_window_has_data(demo_of_a_minute: Demo, target: Target):
    wait(lambda: bool(query(demo_of_a_minute.prometheus, target.expr)), target.expr, seconds=60)  # alerts come later
