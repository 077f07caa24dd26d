"""The ledger, killed two hundred times. `SOAK_KILLS` says how often."""

import os
import time
from pathlib import Path

import pytest

from tests.ledgers import kill_writers

KILLS = int(os.environ.get("SOAK_KILLS", "200"))


@pytest.mark.soak
def test_killed_again_and_again_it_has_all_that_was_told_and_nothing_twice(tmp_path: Path):
    seed = time.time_ns() % 10**6
    told = kill_writers(tmp_path / "data", rounds=KILLS, seed=seed)
    print(f"\nseed {seed}: {told} of {KILLS} had committed something when they were killed")
    assert told >= KILLS // 3
