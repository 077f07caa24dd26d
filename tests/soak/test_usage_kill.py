"""The ingest, killed two hundred times. `SOAK_KILLS` says how often."""

import os
import time
from pathlib import Path

import pytest

from tests.posting import kill_under_ingest
from tests.processes import replayed

KILLS = int(os.environ.get("SOAK_KILLS", "200"))


@pytest.mark.soak
def test_killed_under_ingest_again_and_again_each_acknowledged_event_counts_once(tmp_path: Path):
    seed = time.time_ns() % 10**6
    with replayed(tmp_path, "--skip=165s", "--speed=20", "--loop=continue") as url:
        events = kill_under_ingest(tmp_path, url, kills=KILLS, seed=seed)
    print(f"\nseed {seed}: {events} events acknowledged through {KILLS} kills")
