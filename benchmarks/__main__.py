"""`make bench`: print one table; exit 1 when a limit is broken."""

import statistics
import sys
from collections.abc import Callable
from time import perf_counter
from typing import NamedTuple

from benchmarks import pages, process


class Result(NamedTuple):
    """One line of the table; `good` is None where there is no limit."""

    what: str
    figure: str
    limit: str
    good: bool | None


def median_seconds(run: Callable[[], object], times: int = 30) -> float:
    """Time a call after one warm-up and return the median."""
    run()
    found = []
    for _ in range(times):
        began = perf_counter()
        run()
        found.append(perf_counter() - began)
    return statistics.median(found)


def reading() -> list[Result]:
    reference = median_seconds(pages.reference_parse, 10)
    steady, first = median_seconds(pages.steady_reading()), median_seconds(pages.first_reading)
    size = f"one vLLM page of {len(pages.VLLM_PAGE) // 1000} kB"
    return [
        Result(f"{size}, prometheus_client.parser", f"{reference * 1e3:.2f} ms", "", None),
        Result(
            f"{size}, steady state",
            f"{steady * 1e3:.3f} ms, {reference / steady:.0f} x",
            ">= 30 x",
            reference >= 30 * steady,
        ),
        Result(
            f"{size}, first page",
            f"{first * 1e3:.3f} ms, {reference / first:.0f} x",
            ">= 15 x",
            reference >= 15 * first,
        ),
    ]


def writing() -> list[Result]:
    results = []
    for series, limit in ((400, None), (4_000, 0.010), (80_000, 0.060)):
        seconds = median_seconds(pages.writing(series), 15)
        text = f"< {limit * 1e3:.0f} ms" if limit else ""
        results.append(
            Result(f"writing {series} series", f"{seconds * 1e3:.2f} ms", text, seconds < limit if limit else None)
        )
    return results


def beat() -> list[Result]:
    seconds = pages.beat_seconds()
    return [Result("a whole beat: read over HTTP, charge, publish", f"{seconds * 1e3:.2f} ms", "", None)]


def running() -> list[Result]:
    found = process.measure()
    return [
        Result("resident memory, 1 engine", f"{found.rss_mib:.1f} MiB", "< 60 MiB", found.rss_mib < 60),
        Result("CPU at a 5 s beat", f"{found.cpu_ratio:.2%} of a core", "< 0.5 %", found.cpu_ratio < 0.005),
        Result("start to ready, warm", f"{found.ready_seconds:.2f} s", "< 0.5 s", found.ready_seconds < 0.5),
        Result("/metrics at 200 scrapes a second, p99", f"{found.scrape_p99_seconds * 1e3:.2f} ms", "< 3 ms",
               found.scrape_p99_seconds < 0.003),
    ]  # fmt: skip


def main() -> int:
    results = [*reading(), *writing(), *beat(), *running()]
    width = max(len(result.what) for result in results)
    for result in results:
        mark = {True: "kept", False: "BROKEN", None: ""}[result.good]
        print(f"{result.what:{width}}  {result.figure:>22}  {result.limit:>9}  {mark}")
    return int(any(result.good is False for result in results))


sys.exit(main())
