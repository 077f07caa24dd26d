"""`make bench`: print one table; exit 1 when a limit is broken."""

import statistics
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from benchmarks import cap, features, gpus, ledger, pages, process, usage
from exporter.config.model import Gpu, GpuSource
from tests.nvml.stub import NoCompilerError

ALONE = "1 engine"
BESIDE = f"1 engine + {gpus.COUNT} GPUs"
NOTE = """
The GPUs are H100 played by a stub of the driver's library: the driver's own time and memory are missing everywhere.
Processes ran with bytecode, made by a start before, as an installed package has it. Without it a start is slower, and
what its compiler took stays in memory."""


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


def reading_gpus() -> list[Result]:
    page = gpus.node_page()
    reference = median_seconds(lambda: pages.reference_parse(page), 10)
    seconds = median_seconds(gpus.node_reading(page))
    size = f"one dcgm-exporter page of {gpus.NODE_COUNT} GPUs, {len(page) // 1000} kB"
    return [
        Result(f"{size}, prometheus_client.parser", f"{reference * 1e3:.2f} ms", "", None),
        Result(f"{size}, steady state", f"{seconds * 1e3:.2f} ms, {reference / seconds:.0f} x", "", None),
    ]


def beat(library: Path) -> list[Result]:
    alone = pages.beats(Gpu(source=GpuSource.NONE), 1)
    beside = pages.beats(Gpu(source=GpuSource.NVML, nvml_library=str(library)), gpus.COUNT, gpus.SETTLING_SECONDS)
    write = pages.whole_page(beside.last)
    seconds, count = median_seconds(write), pages.series(write())
    name = "a whole beat: read over HTTP, charge, publish"
    return [
        Result(f"{name}, {ALONE}", f"{alone.seconds * 1e3:.2f} ms", "", None),
        Result(f"{name}, {BESIDE}", f"{beside.seconds * 1e3:.2f} ms", "", None),
        Result(f"writing the page of {BESIDE}, {count} series", f"{seconds * 1e3:.2f} ms", "< 10 ms", seconds < 0.010),
    ]


def running() -> list[Result]:
    found = process.measure()
    ours, alone, p99 = found.ours, found.without_gpus, found.scrape_p99_seconds
    return [
        *_kept(ALONE, alone),
        *_kept(BESIDE, ours),
        Result(f"/metrics of {BESIDE} at 200 scrapes a second, p99", f"{p99 * 1e3:.2f} ms", "< 3 ms", p99 < 0.003),
        Result(f"threads, {BESIDE}", f"{ours.threads}", "", None),
        Result("one GPU: series", f"{ours.series_of_a_gpu} of {ours.series}", "", None),
        Result("one GPU: asking it once a second", f"{ours.poll_seconds * 1e3:.2f} ms", "", None),
        Result("one GPU: CPU", f"{(ours.cpu_ratio - alone.cpu_ratio) / gpus.COUNT:.3%} of a core", "", None),
        *(_beside(ours, found.other) if found.other else []),
    ]


def _kept(what: str, found: process.Measured) -> list[Result]:
    ready, cpu, rss = found.ready_seconds, found.cpu_ratio, found.rss_mib
    return [
        Result(f"start to ready, warm, {what}", f"{ready:.2f} s", "< 0.5 s", ready < 0.5),
        Result(f"resident memory once it is ready, {what}", f"{found.first_rss_mib:.1f} MiB", "", None),
        Result(f"resident memory a minute later, {what}", f"{rss:.1f} MiB", "< 60 MiB", rss < 60),
        Result(f"CPU at a 5 s beat, scraped every 5 s, {what}", f"{cpu:.2%} of a core", "< 0.5 %", cpu < 0.005),
    ]


def _beside(ours: process.Measured, other: process.Measured) -> list[Result]:
    """Lines about the other exporter: its figure, and how many times as much ours is."""
    name = f"nvitop-exporter {version('nvitop-exporter')}, {gpus.COUNT} GPUs each second"
    rss, cpu, count = other.rss_mib, other.cpu_ratio, other.series_of_a_gpu
    return [
        Result(f"{name}: resident memory", f"{rss:.1f} MiB, ours {ours.rss_mib / rss:.1f} x", "", None),
        Result(f"{name}: CPU, scraped every 5 s", f"{cpu:.2%}, ours {ours.cpu_ratio / cpu:.1f} x", "", None),
        Result(f"{name}: series of a GPU", f"{count}, ours {ours.series_of_a_gpu / count:.1f} x", "", None),
    ]


def checks() -> list[Result]:
    found = []
    for what, denied in (("allowed", False), ("denied", True)):
        measured = cap.measure(denied=denied)
        rate, p99 = measured.per_cpu_second, measured.p99_seconds
        name = f"budget checks of ten budgets, {what}"
        found += [
            Result(f"{name}, in a second of one core", f"{rate:,.0f}", ">= 10,000", rate >= 10_000),
            Result(f"{name}, as fast as they are answered", f"{measured.per_second:,.0f} a second", "", None),
            Result(f"{name}, p99", f"{p99 * 1e3:.2f} ms", "< 3 ms", p99 < 0.003),
        ]
    return found


def showback() -> list[Result]:
    events, many = usage.measure(), features.measure()
    name = f"usage events, durable, batches of {usage.BATCH} over {usage.CONNECTIONS} connections"
    page = f"{features.FEATURES} features x {features.MODELS} models, {many.series} series"
    rate, size = events.per_cpu_second, f"{many.page_bytes / 2**20:.1f} MiB"
    return [
        Result(f"{name}, in a second of one core", f"{rate:,.0f}", ">= 20,000", rate >= 20_000),
        Result(f"{name}, as fast as they are acknowledged", f"{events.per_second:,.0f} a second", "", None),
        Result(f"{name}, p99 of a body", f"{events.p99_seconds * 1e3:.0f} ms", "", None),
        Result(f"{page}: CPU of a beat", f"{many.beat_cpu_seconds * 1e3:.0f} ms", "", None),
        Result(f"{page}: slowest scrape ({size})", f"{many.slowest_scrape_seconds * 1e3:.0f} ms", "", None),
        Result(f"{page}: RSS", f"{many.rss_mib:.0f} MiB", "", None),
    ]


def keeping(library: Path) -> list[Result]:
    commit, years = ledger.measure(library)
    name = f"commit of a beat, {BESIDE}: {commit.totals:.0f} totals, {commit.state_bytes / 1000:.1f} kB of state"
    fsyncs = commit.median_seconds / commit.fsync_seconds
    return [
        Result(f"a bare fsync of {ledger.BARE_BYTES} bytes", f"{commit.fsync_seconds * 1e3:.2f} ms", "", None),
        Result(name, f"{commit.median_seconds * 1e3:.2f} ms, {fsyncs:.1f} x", "", None),
        Result(f"{name}, p99", f"{commit.p99_seconds * 1e3:.2f} ms", "", None),
        *(result for year in years for result in _kept_a_year(year)),
    ]


def _kept_a_year(year: ledger.Year) -> list[Result]:
    """Lines about a ledger: its figure, and how much more that is than on an empty one; limits are of one engine."""
    limited = year.engines == 1
    name = f"a year of {ALONE if limited else f'{year.engines} engines'} in the ledger"
    ready, rss, empty = year.full.ready_seconds, year.full.rss_mib, year.empty
    start = f"{ready:.2f} s, {ready / empty.ready_seconds:.1f} x"
    memory = f"{rss:.1f} MiB, +{rss - empty.rss_mib:.1f}, {rss / empty.rss_mib:.1f} x"
    return [
        Result(f"{name}, {year.engines * ledger.ACCOUNTS} accounts: size", f"{year.file_mb:.1f} MB", "", None),
        Result(f"{name}: opened, and taken by the books", f"{year.open_seconds:.2f} s", "", None),
        Result(
            f"{name}, {gpus.COUNT} GPUs: start to ready, warm",
            start,
            "< 0.5 s" if limited else "",
            ready < 0.5 if limited else None,
        ),
        Result(
            f"{name}, {gpus.COUNT} GPUs: resident memory",
            memory,
            "< 60 MiB" if limited else "",
            rss < 60 if limited else None,
        ),
    ]


def main() -> int:
    try:
        with gpus.played() as library:
            results = [
                *reading(),
                *reading_gpus(),
                *writing(),
                *beat(library),
                *checks(),
                *showback(),
                *keeping(library),
                *running(),
            ]
    except NoCompilerError as error:
        print(error, file=sys.stderr)
        return 1
    width = max(len(result.what) for result in results)
    for result in results:
        mark = {True: "kept", False: "BROKEN", None: ""}[result.good]
        print(f"{result.what:{width}}  {result.figure:>22}  {result.limit:>9}  {mark}")
    print(NOTE)
    if not process.other_is_installed():
        print("\nNOT MEASURED: nvitop-exporter could not be installed, so no other exporter stands beside ours")
    return int(any(result.good is False for result in results))


sys.exit(main())
