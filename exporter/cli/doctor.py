"""`doctor`: what the exporter can see from here, and why not."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import click

from exporter.cli.options import config_of_flags, engine_flags, load_or_exit
from exporter.clock import NANOSECONDS, Instant, SystemClock
from exporter.config.load import warnings
from exporter.config.model import Config, Engine
from exporter.core.prices import gpu_timeline, in_force
from exporter.core.scaling import min_replicas, signals
from exporter.sources.dialects import UnknownPageError, recognise, resolved
from exporter.sources.http import Request, SourceError, get, metrics_url, new_session


class Finding(NamedTuple):
    """One line of the report."""

    mark: str
    text: str


_OK, _PROBLEM, _NOTE = "ok     ", "PROBLEM", "       "


@click.command()
@engine_flags
def doctor(*, config_file: Path | None, **flags: Any) -> None:
    """Look at everything that the config names: exit 0, or 1 when something is missing."""
    config = config_of_flags(config_file=config_file, **flags) or load_or_exit(config_file or Path())
    now = SystemClock().now()
    sections = {
        "Config": list(_config(config)),
        "Clock": list(_clock(now)),
        "Engines": asyncio.run(_engines(config)),
        "Prices": list(_prices(config, now)),
        "Thresholds": list(_thresholds(config)),
        "GPU": [Finding(_NOTE, "GPU metrics are not read by this version; what is charged comes from the config")],
        "Ledger": [Finding(_NOTE, "counters are kept in memory by this version; a restart begins anew")],
    }
    for title, findings in sections.items():
        click.echo(title)
        for finding in findings:
            click.echo(f"  {finding.mark} {finding.text}")
    if any(finding.mark == _PROBLEM for findings in sections.values() for finding in findings):
        raise SystemExit(1)


def _config(config: Config) -> Iterator[Finding]:
    yield Finding(_OK, f"role {config.role}, {len(config.engines)} engine(s), a beat every {config.interval:g} s")
    for line in warnings(config):
        yield Finding(_NOTE, f"no effect: {line}")


def _clock(now: Instant) -> Iterator[Finding]:
    moment = datetime.fromtimestamp(now.wall // NANOSECONDS, UTC)
    yield Finding(_OK if moment.year >= 2024 else _PROBLEM, f"it is {moment.isoformat()}")  # noqa: PLR2004 - a machine without a set clock


async def _engines(config: Config) -> list[Finding]:
    async with new_session() as session:
        findings = []
        for engine in config.engines:
            request = Request(
                url=metrics_url(engine.url),
                timeout_seconds=engine.timeout or config.interval,
                token_file=engine.token_file,
                ca_file=engine.ca_file,
            )
            try:
                response = await get(session, request)
                findings += list(_page(engine, response.body.decode("utf-8", "replace")))
            except SourceError as error:
                findings.append(Finding(_PROBLEM, f"{engine.name}: {request.url}: {error.reason}: {error.detail}"))
    return findings


def _page(engine: Engine, text: str) -> Iterator[Finding]:
    try:
        dialect = recognise(text, engine.kind)
    except UnknownPageError as error:
        yield Finding(_PROBLEM, f"{engine.name}: {error}")
        return
    yield Finding(_OK, f"{engine.name}: a page of {dialect.kind}, {len(text)} characters")
    for fact, name in resolved(dialect, text).items():
        yield Finding(_NOTE if name is None else _OK, f"{engine.name}: {fact}: {name or 'not on this page'}")


def _prices(config: Config, now: Instant) -> Iterator[Finding]:
    price = in_force(gpu_timeline(config.prices.gpu, config.gpu.name), now.wall)
    if price.nano_usd_per_hour is None:
        needed = any(engine.gpus_charged for engine in config.engines)
        yield Finding(
            _PROBLEM if needed else _OK,
            "no GPU price is in force" + ("; GPU time is counted as unpriced" if needed else ""),
        )
    else:
        yield Finding(
            _OK, f"one GPU costs {float(price.nano_usd_per_hour / NANOSECONDS):g} USD an hour ({price.source})"
        )
    for engine in config.engines:
        yield Finding(_NOTE, f"{engine.name}: pays for {float(engine.gpus_charged):g} GPU(s)")


def _thresholds(config: Config) -> Iterator[Finding]:
    for engine in config.engines:
        for signal in signals(config.scaling, engine, waiting=None, ttft_p95=None):
            yield Finding(_NOTE, f"{engine.name}: {signal.name}: up above {signal.up:g}, down below {signal.down:g}")
        if engine.ttft_target_seconds is None:
            yield Finding(_NOTE, f"{engine.name}: ttft: off, since a {engine.workload} engine has no ttft_target")
        yield Finding(
            _NOTE, f"{engine.name}: at least {min_replicas(engine)} replica(s), since it is {engine.workload}"
        )
