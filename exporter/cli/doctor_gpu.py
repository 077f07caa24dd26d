"""What `doctor` says of GPUs: who is asked and why, each GPU and whose it is; and the driver's answers as a file.

Nothing here waits for a call that hangs: the driver is asked by threads of its own.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence, Set
from dataclasses import astuple
from pathlib import Path
from typing import Final

import click
from aiohttp import ClientSession
from msgspec.structs import replace

from exporter.cli.findings import NOTE, OK, PROBLEM, WARNING, Finding
from exporter.cli.options import fail
from exporter.clock import NANOSECONDS, SystemClock
from exporter.config.model import Config, Engine, GpuSelect, GpuSource
from exporter.core.gpu_readings import Gauges, GpuReading, GpusReading, Measure
from exporter.core.gpus import GpuMeter, Shares, expected
from exporter.sources.gpus import DCGM, NVML, GpuSources, namespace, pod_name
from exporter.sources.http import SourceError, new_session
from exporter.sources.nvml import FOR_GOOD, NvmlError, calls_under_way, in_words, places
from exporter.sources.nvml_capture import PATIENCE_SECONDS, captured
from exporter.sources.nvml_driver import NvmlDriver, Status

_LOOK_SECONDS: Final = 0.02
_DRIVER: Final = "nvml"  # the name of its thread; those of GPUs are gpu0, gpu1, ...
_NO_DRIVER: Final = frozenset({"library_not_found", "driver_not_loaded", "no_devices"})
_WAYS: Final = (
    "to see the engine's GPUs from a container of its own:",
    "- Kubernetes: one ResourceClaim (DRA) that both containers name under resources.claims",
    "- a dcgm-exporter on the node: gpu.dcgm_url, such as http://${NODE_IP}:9400",
    "- Compose: the engine's device_ids for both services, with the capabilities gpu and utility",
)


async def look(config: Config) -> tuple[GpuMeter, list[Finding]]:
    """Ask whoever tells of GPUs, by the same choice as `serve` makes; returns what they said, and the report of it."""
    meter, page = GpuMeter(), []
    async with new_session() as session:
        sources = GpuSources(config, session, SystemClock(), os.environ)
        silent = await _silent(sources.driver) if sources.driver else {}
        reading, failure = await _read(sources)
        meter.advance(reading)
        gpus = [view.reading for view in meter.views(0)]
        if sources.choice.source == DCGM:
            page = [line async for line in _page(config, session, {gpu.uuid for gpu in gpus})]
    select = config.gpu.select if isinstance(config.gpu.select, GpuSelect) else f"{len(config.gpu.select)} UUID(s)"
    report = [(NOTE, f"asked for: source {config.gpu.source}, select {select}"), _choice(config, sources, failure)]
    if sources.driver:
        report.append(_library(config.gpu.nvml_library, sources.driver.status))
    if hangs := silent.pop(_DRIVER, None):
        report.append((PROBLEM, f"the driver: {hangs}, without an answer for {PATIENCE_SECONDS:g} s"))
    visible, charged = len(gpus) if sources.visible is None else sources.visible, expected(config.engines)
    report += [*page, *_gpus(gpus, visible, silent), *_missing(gpus)]
    report += [(NOTE, f"failed: {call}: {in_words(name)} ({n} times)") for (call, name), n in reading.errors.items()]
    report.append(_numbers(visible, charged))
    shares = meter.shares(config.engines)
    for engine in config.engines:
        report += _engine(engine, shares.get(engine.name, {}), gpus, visible)
    if sources.choice.source != DCGM and sources.choice.reason in _NO_DRIVER and charged:
        report += [(NOTE, way) for way in _WAYS]
    return meter, report


async def _silent(driver: NvmlDriver) -> dict[str, str]:
    """Wait until the driver has answered; returns what keeps it and its GPUs from that, by _DRIVER and by index."""
    clock = SystemClock()
    ends = clock.now().monotonic + PATIENCE_SECONDS * NANOSECONDS
    while not driver.is_settled and clock.now().monotonic < ends:  # noqa: ASYNC110 - a thread's
        await asyncio.sleep(_LOOK_SECONDS)
    lost = {str(index): in_words(name) for index, name in driver.losses.items()}
    under_way = {} if driver.is_settled else calls_under_way()
    return lost | {thread.removeprefix("gpu"): f"{call} hangs" for thread, call in under_way.items()}


async def _read(sources: GpuSources) -> tuple[GpusReading, SourceError | None]:
    try:
        return await sources.read(), None
    except SourceError as error:
        return GpusReading(gpus=()), error


def _choice(config: Config, sources: GpuSources, failure: SourceError | None) -> Finding:
    """Say who is asked and why; nobody is fine where the config leaves it open and no driver is broken."""
    source, reason, detail = sources.choice
    if source not in (NVML, DCGM):
        return PROBLEM if reason in FOR_GOOD else NOTE, f"nobody is asked{detail and f', since {detail}'}"
    who = "the driver (NVML) is asked" if source == NVML else f"{config.gpu.dcgm_url} is asked"
    why = f", since {detail}" if source == DCGM and detail else ""
    return (PROBLEM, f"{who}{why}, and gives nothing: {failure.detail}") if failure else (OK, f"{who}{why}")


def _library(path: str | None, status: Status) -> Finding:
    """Say which file the dynamic linker took, or where it looked for one; and the versions that the driver tells."""
    if status.reason == "library_not_found":
        return NOTE, f"library: looked for as {', '.join(places(path))}; gpu.nvml_library can name another place"
    lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    file = next((line[line.index("/") :] for line in lines if "/libnvidia-ml" in line), places(path)[0])
    versions = zip(("driver", "NVML", "CUDA"), astuple(status.driver), strict=True) if status.driver else ()
    return OK, f"library: {file}" + "".join(f", {name} {version or 'unknown'}" for name, version in versions)


async def _page(config: Config, session: ClientSession, ours: Set[str]) -> AsyncIterator[Finding]:
    """Say whose GPUs are ours, and which of all on the page of a dcgm-exporter are not."""
    if config.gpu.select is GpuSelect.OWN:
        pod, space = pod_name(os.environ) or "unknown (set POD_NAME)", namespace(os.environ) or "unknown"
        yield NOTE, f"we are pod {pod} of namespace {space}"
    everything = replace(config, gpu=replace(config.gpu, source=GpuSource.DCGM, select=GpuSelect.ALL))
    page, failure = await _read(GpuSources(everything, session, SystemClock(), os.environ))
    if failure is None:
        others = [f"GPU {gpu.index} ({gpu.uuid})" for gpu in page.gpus if gpu.uuid not in ours]
        left_out = f"; left out: {', '.join(others)}" if others else ""
        yield NOTE, f"its page shows {len(page.gpus)} GPU(s); ours: {len(ours)}{left_out}"


def _gpus(gpus: Sequence[GpuReading], visible: int, silent: Mapping[str, str]) -> Iterator[Finding]:
    for gpu in gpus:
        who = f"GPU {gpu.index}: {gpu.name}, {gpu.uuid}"
        why = silent.get(gpu.index, "it does not answer")
        yield (OK, f"{who}{_facts(gpu.gauges)}") if gpu.up else (PROBLEM, f"{who}: {why}")
        for mig in gpu.instances:
            place = "/".join(filter(None, (mig.gpu_instance, mig.compute_instance)))
            yield OK, f"GPU {gpu.index}: MIG {place}: {mig.profile}, {mig.uuid}{_facts(mig.gauges)}"
    nameless = sorted(silent.keys() - {gpu.index for gpu in gpus})
    yield from ((PROBLEM, f"GPU {index}: {silent[index]}") for index in nameless)
    if visible > len(gpus) + len(nameless):
        yield NOTE, f"left out, as nobody asks for them: {visible - len(gpus) - len(nameless)} GPU(s)"


def _facts(gauges: Gauges) -> str:
    """Say how much memory is used, how busy a device is, and what it draws, each where it is known."""
    found = {measure: value for (measure, _), value in gauges.items()}
    total, used = found.get(Measure.MEMORY_TOTAL), found.get(Measure.MEMORY_USED)
    memory = f", {used / 1e9:.1f} of {total / 1e9:.1f} GB used" if total is not None and used is not None else ""
    shown = {Measure.UTILIZATION: ", {:.0%} busy", Measure.POWER: ", {:.0f} W"}
    return memory + "".join(form.format(found[measure]) for measure, form in shown.items() if measure in found)


def _missing(gpus: Sequence[GpuReading]) -> Iterator[Finding]:
    """Say what GPUs do not have: one line for all that lack the same."""
    lacking: dict[str, list[str]] = {}
    for gpu in gpus:
        if names := ", ".join(sorted(family for family, has in gpu.supported.items() if not has)):
            lacking.setdefault(names, []).append(gpu.index)
    for names, indices in lacking.items():
        yield NOTE, f"GPU {', '.join(indices)} cannot tell: {names}"


def _numbers(visible: int, charged: int) -> Finding:
    if visible == charged:
        return OK, f"{visible} GPU(s) visible, and as many charged for by the config"
    if visible:
        return WARNING, f"{visible} GPU(s) visible, and {charged} charged for by the config"
    return NOTE, f"no GPU visible; {charged} charged for by the config all the same"


def _engine(engine: Engine, shares: Shares, gpus: Sequence[GpuReading], visible: int) -> Iterator[Finding]:
    """Say which GPUs an engine has, and whether how busy they are can be a signal."""
    own = {gpu.uuid: gpu for gpu in gpus if gpu.uuid in shares}
    if engine.gpus_charged and not shares:
        how = "; a list of UUIDs under its gpus tells" if visible else ""
        yield NOTE, f"{engine.name}: nobody can tell which GPUs it has{how}; its signal gpu_utilization is off"
    if own:
        yield OK, f"{engine.name}: has {', '.join(f'GPU {gpu.index}' for gpu in own.values())}"
    yield from ((WARNING, f"{engine.name}: {uuid} is not seen here") for uuid in shares if uuid not in own)
    if len(own) < len(shares) or not all((Measure.UTILIZATION, "") in gpu.gauges for gpu in own.values()):
        yield NOTE, f"{engine.name}: not all of them tell how busy they are; its signal gpu_utilization is off"


def capture(path: Path, nvml_library: str | None) -> int:
    """Write what the driver answers into a new file; returns the exit code."""
    try:
        if path.exists():
            return fail([f"{path}: expected a new file, found one that exists"], 2)
        text = captured(nvml_library, SystemClock())
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except NvmlError as error:
        return fail([f"{path}: not written: {error}"], 1)
    except OSError as error:
        return fail([f"{path}: cannot be written: {error.strerror}"], 2)
    click.echo(f"{path}: what the driver answers, {len(text.splitlines())} lines; UUIDs and bus addresses are made up")
    return 0
