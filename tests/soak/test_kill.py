"""The exporter, killed two hundred times at random moments of ten replayed days on one ledger."""

import os
import time
from pathlib import Path

import pytest

from tests.e2e.test_ledger_serve import Killed

DAYS = int(os.environ.get("SOAK_DAYS", "10"))
KILLS_A_DAY = 20


@pytest.mark.soak
def test_killed_two_hundred_times_it_loses_nothing_and_counts_nothing_twice(tmp_path: Path):
    seed = time.time_ns() % 10**6
    print(f"\nseed {seed}")
    killed = Killed(tmp_path, seed)
    for _ in range(DAYS):
        killed.day(KILLS_A_DAY)
        print(f"{killed.kills} kills, {killed.pages} pages, each counter on each of them at or above the one before")
