"""`doctor`: what the exporter can see from here, and why not."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import click
from aiohttp import ClientSession

from exporter.cli import doctor_gpu, doctor_money
from exporter.cli.findings import NOTE, OK, PROBLEM, Finding
from exporter.cli.options import config_of_flags, engine_flags, load_or_exit
from exporter.clock import NANOSECONDS, Instant, SystemClock
from exporter.config.load import warnings
from exporter.config.model import Config, Engine
from exporter.core import cap
from exporter.core.alerting import thresholds
from exporter.core.budgets import cap_mode, limits
from exporter.core.gpu_readings import Total
from exporter.core.gpus import GpuMeter
from exporter.core.money import Kind
from exporter.core.prices import HourlyPrice, gpu_timeline, in_force
from exporter.core.scaling import min_replicas, signals
from exporter.ledger import LedgerError, Saved, Wanted, connect_read_only, in_words, read
from exporter.sources.dialects import KnownFrom, UnknownPageError, recognise, resolved
from exporter.sources.http import Request, SourceError, get, metrics_url, new_session
from exporter.sources.network import NetworkSource

_EARLIEST_YEAR: Final = 2024  # a machine without a set clock is in 1970


@click.command()
@engine_flags
@click.option(
    "--capture",
    "capture_file",
    type=click.Path(path_type=Path),
    help="Instead of all that: write what the GPU driver answers, call by call and masked, into a new file.",
)
@click.option(
    "--storage.path",
    "storage_path",
    type=click.Path(path_type=Path),
    help="The folder of the ledger, as `serve` is given it; it is only read.",
)
def doctor(*, capture_file: Path | None, storage_path: Path | None, config_file: Path | None, **flags: Any) -> None:
    """Look at everything that the config names: exit 0, or 1 when something is missing."""
    logging.getLogger("exporter").addHandler(logging.NullHandler())  # the report says it
    if capture_file is not None:
        nvml_library = load_or_exit(config_file).gpu.nvml_library if config_file else None
        code = doctor_gpu.capture(capture_file, nvml_library)
    else:
        config = config_of_flags(config_file=config_file, **flags) or load_or_exit(config_file or Path())
        code = _reported(config, storage_path)
    os._exit(code)  # a thread may hang in the GPU driver, whose library must not be taken down around a call


def _reported(config: Config, storage: Path | None) -> int:
    """Print every section; returns the exit code."""
    code = 0
    for title, findings in _sections(config, storage):
        click.echo(title)
        for mark, text in findings:
            click.echo(f"  {mark} {text}")
            code |= mark == PROBLEM
    return code


def _sections(config: Config, storage: Path | None) -> Iterator[tuple[str, Iterable[Finding]]]:
    """Yield each section when it is known: GPUs may take a while."""
    now = SystemClock().now()
    what = f"role {config.role}, {len(config.engines)} engine(s), a beat every {config.interval:g} s"
    yield "Config", [(OK, what), *((NOTE, f"no effect: {line}") for line in warnings(config))]
    moment = datetime.fromtimestamp(now.wall // NANOSECONDS, UTC)
    yield "Clock", [(OK if moment.year >= _EARLIEST_YEAR else PROBLEM, f"it is {moment.isoformat()}")]
    yield "Engines", asyncio.run(_engines(config))
    meter, gpus = asyncio.run(doctor_gpu.look(config))
    yield "GPU", gpus
    yield "Prices", _prices(config, meter, now)
    yield "Network", _network(config)
    yield "Thresholds", _thresholds(config)
    yield "Budgets", _budgets(config, now)
    saved, about_ledger = _ledger(storage)
    yield "APIs", doctor_money.findings(config, saved, now)
    yield "Ledger", about_ledger


async def _engines(config: Config) -> list[Finding]:
    async with new_session() as session:
        found = [finding for engine in config.engines async for finding in _engine(session, engine, config.interval)]
    return found or [(NOTE, "none: the spend of APIs alone")]


async def _engine(session: ClientSession, engine: Engine, interval: float) -> AsyncIterator[Finding]:
    request = Request(
        url=metrics_url(engine.url),
        timeout_seconds=engine.timeout or interval,
        token_file=engine.token_file,
        ca_file=engine.ca_file,
    )
    try:
        text = (await get(session, request)).body.decode("utf-8", "replace")
        dialect = recognise(text, engine.kind)
    except SourceError as error:
        yield PROBLEM, f"{engine.name}: {request.url}: {error.reason}: {error.detail}"
    except UnknownPageError as error:
        yield PROBLEM, f"{engine.name}: {error}"
    else:
        yield OK, f"{engine.name}: a page of {dialect.kind}, {len(text)} characters"
        if dialect.known_from is not KnownFrom.SERVERS:
            yield NOTE, f"{engine.name}: pages of {dialect.kind} are known from {dialect.known_from} alone"
        for fact, name in resolved(dialect, text).items():
            yield NOTE if name is None else OK, f"{engine.name}: {fact}: {name or 'not on this page'}"


def _prices(config: Config, meter: GpuMeter, now: Instant) -> Iterator[Finding]:
    shares = meter.shares(config.engines)
    counting = {view.reading.uuid for view in meter.views(0) if (Total.ENERGY, "") in view.reading.totals}
    for engine in config.engines:
        if not engine.gpus_charged:
            yield NOTE, f"{engine.name}: pays for no GPU"
            continue
        own = shares.get(engine.name, {})
        names = {config.gpu.name: Fraction(1)} if config.gpu.name else meter.names(own)
        price = in_force(gpu_timeline(config.prices.gpu, names), now.wall)
        yield _price(engine, price, names)
        if price.nano_usd_per_joule:
            yield _energy(engine, price, is_measured=bool(own) and own.keys() <= counting)


def _price(engine: Engine, price: HourlyPrice, names: Iterable[str]) -> Finding:
    count = f"{engine.name}: pays for {float(engine.gpus_charged):g} GPU(s)"
    called = ", ".join(map(repr, names))
    if price.nano_usd_per_hour is None:
        unknown = f"by_name does not have {called}" if called else "nobody tells a name to look up in by_name"
        why = f", since {unknown}" if price.source == "by_name" else ""
        return PROBLEM, f"{count}, and no price is in force{why}; GPU time is counted as unpriced"
    form = f"by_name, {called}" if price.source == "by_name" else price.source
    return OK, f"{count}, each {float(price.nano_usd_per_hour / NANOSECONDS):g} USD an hour ({form})"


def _energy(engine: Engine, price: HourlyPrice, *, is_measured: bool) -> Finding:
    per_kwh = float(price.nano_usd_per_joule * 3_600_000 / NANOSECONDS)
    what = f"{engine.name}: and their energy, {per_kwh:g} USD a kWh with PUE"
    if is_measured:
        return OK, f"{what}, as the GPUs count it"
    if price.assumed_watts is None:
        return PROBLEM, f"{what}, which is not measured here; GPU time is counted as unpriced"
    return NOTE, f"{what}, at {float(price.assumed_watts):g} W each, as it is not measured here"


def _network(config: Config) -> Iterator[Finding]:
    price = config.prices.network
    if price is None:
        yield NOTE, "bytes sent are not charged, since prices.network is not set"
        return
    try:
        sent_bytes = asyncio.run(NetworkSource(price).read()).sent_bytes
    except SourceError as error:
        yield PROBLEM, f"{error.reason}: {error.detail}"
        return
    yield from ((OK, f"{name!r}: {sent} bytes sent so far") for name, sent in sent_bytes.items())
    if len(sent_bytes) > 1 and not price.interfaces:
        yield NOTE, "a bridge, bond or VLAN counts bytes again: name the way out in prices.network.interfaces"


def _budgets(config: Config, now: Instant) -> Iterator[Finding]:
    for budget in config.budgets:
        amounts = ", ".join(
            f"{float(limit / NANOSECONDS):g} USD a {period}" for period, limit in limits(budget).items()
        )
        yield OK, f"{budget.name}: {amounts} in {budget.timezone}, cap {cap_mode(budget)}"
    for line in cap.warnings(config, now.wall):
        yield NOTE, line
    if not config.budgets:
        yield NOTE, "none in the config"


def _ledger(folder: Path | None) -> tuple[Saved | None, list[Finding]]:
    if folder is None:
        text = "not looked at, since --storage.path is not given; without it `serve` keeps counters in memory"
        return None, [(NOTE, text)]
    try:
        with in_words(folder), closing(connect_read_only(folder)) as connection:
            saved = read(connection, Wanted(kinds=()))
    except LedgerError as error:
        return None, [(PROBLEM, str(error))]
    spent = sum(amount for account, amount in saved.totals.items() if account.kind is Kind.SPEND)
    return saved, [(OK, f"{folder}: {len(saved.totals)} accounts, {spent / NANOSECONDS:.2f} USD spent in all")]


def _thresholds(config: Config) -> Iterator[Finding]:
    for engine in config.engines:
        for signal in signals(config.scaling, engine, waiting=None, ttft_p95=None):
            yield NOTE, f"{engine.name}: {signal.name}: up above {signal.up:g}, down below {signal.down:g}"
        if engine.ttft_target_seconds is None:
            yield NOTE, f"{engine.name}: ttft: off, since a {engine.workload} engine has no ttft_target"
        yield NOTE, f"{engine.name}: at least {min_replicas(engine)} replica(s), since it is {engine.workload}"
    for alert, severity, value in thresholds(config.alerts):
        text = "off, as alerts in the config says" if value is None else f"{severity} beyond {value:g}"
        yield NOTE, f"{alert}: {text}"
