"""Minutes of the same: memory stays where it is, counters only rise. `SOAK_SECONDS` says how long."""

import os
import time
from pathlib import Path

import pytest

from tests.processes import replayed, running

SECONDS = float(os.environ.get("SOAK_SECONDS", "300"))


@pytest.mark.soak
def test_memory_stays_and_counters_only_rise(tmp_path: Path):
    """An engine that lives a day in a minute, dying and coming back, read ten times a second."""
    with replayed(tmp_path, "--speed=60", "--loop=restart") as url:
        flags = (f"--engine.url={url}", "--gpu.usd-per-hour=0.80", "--interval=100ms", "--log.level=error")
        with running(tmp_path, "serve", *flags) as exporter:
            began = time.monotonic()
            last: dict[str, float] = {}
            resident: list[float] = []
            slowest = 0.0
            while time.monotonic() - began < SECONDS:
                asked = time.monotonic()
                page = exporter.metrics()
                slowest = max(slowest, time.monotonic() - asked)
                counters = {name: value for name, value in page.items() if name.split("{")[0].endswith("_total")}
                assert [name for name in last if counters.get(name, -1) < last[name]] == []
                last = counters
                resident.append(page["process_resident_memory_bytes{}"])
                time.sleep(0.25)
            assert exporter.end() == 0
    settled, ended = max(resident[: len(resident) // 3]), max(resident[-20:])
    print(f"\nresident: {settled / 2**20:.1f} MiB in the first third, {ended / 2**20:.1f} MiB at the end")
    print(f"slowest scrape: {slowest:.3f} s")
    assert ended < settled + 4 * 2**20
    assert last["llmcost_cold_starts_total{engine=default}"] > SECONDS / 20
