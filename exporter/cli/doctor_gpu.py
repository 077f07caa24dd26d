"""What `doctor` says of GPUs: who is asked and why, each GPU and whose it is; and the driver's answers as a file.

Nothing here waits for a call that hangs: the driver is asked by threads of its own.
"""

import asyncio
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp
import click
from msgspec.structs import replace

from exporter.cli.findings import NOTE, OK, PROBLEM, WARNING, Finding
from exporter.cli.options import fail
from exporter.clock import NANOSECONDS, Clock, SystemClock
from exporter.config.model import Config, Engine, GpuSelect, GpuSource
from exporter.core.gpu_readings import Driver, Gauges, GpuReading, GpusReading, Measure, MigReading
from exporter.core.gpus import GpuMeter, Shares, expected
from exporter.sources.gpus import DCGM, NVML, Choice, GpuSources, namespace, pod_name
from exporter.sources.http import SourceError, new_session
from exporter.sources.nvml import FOR_GOOD, NvmlError, calls_under_way, in_words, places
from exporter.sources.nvml_capture import PATIENCE_SECONDS, captured
from exporter.sources.nvml_driver import STARTING, NvmlDriver, Status

_LOOK_SECONDS: Final = 0.02
_DRIVER: Final = "nvml"  # the name of its thread; those of GPUs are gpu0, gpu1, ...
_NO_DRIVER: Final = frozenset({"library_not_found", "driver_not_loaded", "no_devices"})
_WAYS: Final = (
    "to see the engine's GPUs from a container of its own:",
    "- Kubernetes: one ResourceClaim (DRA) that both containers name under resources.claims",
    "- a dcgm-exporter on the node: gpu.dcgm_url, such as http://${NODE_IP}:9400",
    "- Compose: the engine's device_ids for both services, with the capabilities gpu and utility",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What there is to see of GPUs; the same choice as `serve` makes, looked at once.

    `failure` says why nothing was read; `status` is the driver's where it may be asked; `silent` has what keeps GPUs
    from answering, by index; `hangs` is a call of the driver itself; `page` has all GPUs of a dcgm-exporter's page.
    """

    choice: Choice
    reading: GpusReading
    visible: int
    failure: SourceError | None = None
    status: Status | None = None
    silent: Mapping[str, str]
    hangs: str | None = None
    page: GpusReading | None = None
    meter: GpuMeter


async def look(config: Config, environ: Mapping[str, str]) -> Seen:
    """Ask whoever tells of GPUs, and wait for a first answer of each of them, but not for one that hangs."""
    clock = SystemClock()
    async with new_session() as session:
        sources = GpuSources(config, session, clock, environ)
        driver = sources.driver
        under_way = await _hanging(driver, clock) if driver else {}
        reading, failure = await _read(sources)
        page = await _whole_page(config, session, environ) if sources.choice.source == DCGM else None
    meter = GpuMeter()
    meter.advance(reading)
    silent = {str(index): in_words(name) for index, name in driver.losses.items()} if driver else {}
    hanging = {thread.removeprefix("gpu"): f"{call} hangs" for thread, call in under_way.items() if thread != _DRIVER}
    return Seen(
        choice=sources.choice,
        reading=reading,
        visible=len(reading.gpus) if sources.visible is None else sources.visible,
        failure=failure,
        status=driver.status if driver else None,
        silent=silent | hanging,
        hangs=under_way.get(_DRIVER),
        page=page,
        meter=meter,
    )


async def _hanging(driver: NvmlDriver, clock: Clock) -> dict[str, str]:
    """Wait until the driver has answered; returns the calls that it is still busy with after that, by thread."""
    ends = clock.now().monotonic + PATIENCE_SECONDS * NANOSECONDS
    while not driver.is_settled and clock.now().monotonic < ends:  # noqa: ASYNC110 - a thread's
        await asyncio.sleep(_LOOK_SECONDS)
    loading = {_DRIVER: "dlopen"} if driver.status.reason == STARTING else {}
    return {} if driver.is_settled else loading | calls_under_way()


async def _read(sources: GpuSources) -> tuple[GpusReading, SourceError | None]:
    try:
        return await sources.read(), None
    except SourceError as error:
        return GpusReading(gpus=()), error


async def _whole_page(config: Config, session: aiohttp.ClientSession, environ: Mapping[str, str]) -> GpusReading | None:
    gpu = replace(config.gpu, source=GpuSource.DCGM, select=GpuSelect.ALL)
    reading, failure = await _read(GpuSources(replace(config, gpu=gpu), session, SystemClock(), environ))
    return reading if failure is None else None


def findings(config: Config, seen: Seen, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Report what was seen."""
    select = config.gpu.select if isinstance(config.gpu.select, GpuSelect) else f"{len(config.gpu.select)} UUID(s)"
    yield Finding(NOTE, f"asked for: source {config.gpu.source}, select {select}")
    yield _choice(config, seen)
    if seen.status:
        yield from _library(config, seen.status)
    if seen.hangs:
        yield Finding(PROBLEM, f"the driver: {seen.hangs} hangs, without an answer for {PATIENCE_SECONDS:g} s")
    if seen.choice.source == DCGM:
        yield from _page(config, seen, environ)
    yield from _gpus(seen)
    yield from _missing(_in_order(seen))
    for (call, name), count in seen.reading.errors.items():
        yield Finding(NOTE, f"failed: {call}: {in_words(name)} ({count} times)")
    yield from _numbers(config, seen)
    shares = seen.meter.shares(config.engines)
    for engine in (engine for engine in config.engines if engine.gpus_charged):
        yield from _engine(engine, shares.get(engine.name, {}), seen)
    if seen.choice.source != DCGM and seen.choice.reason in _NO_DRIVER and expected(config.engines):
        yield from (Finding(NOTE, way) for way in _WAYS)


def _choice(config: Config, seen: Seen) -> Finding:
    """Say who is asked and why; nobody is fine where the config leaves it open and no driver is broken."""
    source, reason, detail = seen.choice
    if source not in (NVML, DCGM):
        return Finding(PROBLEM if reason in FOR_GOOD else NOTE, f"nobody is asked{detail and f', since {detail}'}")
    who = "the driver (NVML)" if source == NVML else config.gpu.dcgm_url
    why = f", since {detail}" if source == DCGM and detail else ""
    if seen.failure is None:
        return Finding(OK, f"{who} is asked{why}")
    return Finding(PROBLEM, f"{who} is asked{why}, and gives nothing: {seen.failure.detail}")


def _library(config: Config, status: Status) -> Iterator[Finding]:
    path = config.gpu.library_path
    if status.reason != "library_not_found":
        yield Finding(OK, f"library: {_loaded() or path or places(path)[0]}{_versions(status.driver)}")
        return
    yield Finding(NOTE, f"library: looked for as {', '.join(places(path))}; gpu.library_path can name another place")
    if platform.libc_ver()[0] != "glibc":
        yield Finding(NOTE, "library: it needs glibc, which this system (Alpine, musl) does not have")


def _loaded() -> str | None:
    """Return the file that the dynamic linker took."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line[line.index("/") :] for line in lines if "/libnvidia-ml" in line), None)


def _versions(driver: Driver | None) -> str:
    if driver is None:
        return ""
    said = {"driver": driver.driver_version, "NVML": driver.nvml_version, "CUDA": driver.cuda_version}
    return "".join(f", {name} {version or 'unknown'}" for name, version in said.items())


def _page(config: Config, seen: Seen, environ: Mapping[str, str]) -> Iterator[Finding]:
    pod, space = pod_name(environ), namespace(environ)
    if config.gpu.select is GpuSelect.OWN:
        yield Finding(NOTE, f"we are pod {pod or 'unknown (set POD_NAME)'} of namespace {space or 'unknown'}")
    if seen.page is None:
        return
    ours = {gpu.uuid for gpu in seen.reading.gpus}
    others = [f"GPU {gpu.index} ({gpu.uuid})" for gpu in seen.page.gpus if gpu.uuid not in ours]
    left_out = f"; left out: {', '.join(others)}" if others else ""
    yield Finding(NOTE, f"its page shows {len(seen.page.gpus)} GPU(s); ours: {len(ours)}{left_out}")


def _gpus(seen: Seen) -> Iterator[Finding]:
    gpus = _in_order(seen)
    for gpu in gpus:
        if gpu.up:
            yield Finding(OK, f"GPU {gpu.index}: {gpu.name}, {gpu.uuid}{_facts(gpu.gauges)}")
        else:
            why = seen.silent.get(gpu.index, "it does not answer")
            yield Finding(PROBLEM, f"GPU {gpu.index}: {gpu.name}, {gpu.uuid}: {why}")
        yield from (_instance(gpu, instance) for instance in gpu.instances)
    nameless = sorted(seen.silent.keys() - {gpu.index for gpu in gpus})
    yield from (Finding(PROBLEM, f"GPU {index}: {seen.silent[index]}") for index in nameless)
    if seen.visible > len(gpus) + len(nameless):
        yield Finding(NOTE, f"left out, as nobody asks for them: {seen.visible - len(gpus) - len(nameless)} GPU(s)")


def _in_order(seen: Seen) -> list[GpuReading]:
    return sorted(seen.reading.gpus, key=lambda gpu: (len(gpu.index), gpu.index))


def _instance(gpu: GpuReading, instance: MigReading) -> Finding:
    place = "/".join(filter(None, (instance.gpu_instance, instance.compute_instance)))
    return Finding(OK, f"GPU {gpu.index}: MIG {place}: {instance.profile}, {instance.uuid}{_facts(instance.gauges)}")


def _facts(gauges: Gauges) -> str:
    """Say how much memory is used, how busy a device is, and what it draws, each where it is known."""
    found = {measure: value for (measure, _), value in gauges.items()}
    total, used = found.get(Measure.MEMORY_TOTAL), found.get(Measure.MEMORY_USED)
    memory = f", {used / 1e9:.1f} of {total / 1e9:.1f} GB used" if total is not None and used is not None else ""
    shown = {Measure.UTILIZATION: ", {:.0%} busy", Measure.POWER: ", {:.0f} W"}
    return memory + "".join(form.format(found[measure]) for measure, form in shown.items() if measure in found)


def _missing(gpus: Iterable[GpuReading]) -> Iterator[Finding]:
    """Say what GPUs do not have: one line for all that lack the same."""
    lacking: dict[str, list[str]] = {}
    for gpu in gpus:
        names = ", ".join(sorted(family for family, has in gpu.supported.items() if not has))
        lacking.setdefault(names, []).append(gpu.index)
    for names, indices in lacking.items():
        if names:
            yield Finding(NOTE, f"GPU {', '.join(indices)} cannot tell: {names}")


def _numbers(config: Config, seen: Seen) -> Iterator[Finding]:
    charged = expected(config.engines)
    if seen.visible == charged:
        yield Finding(OK, f"{seen.visible} GPU(s) visible, and as many charged for by the config")
    elif seen.visible:
        yield Finding(WARNING, f"{seen.visible} GPU(s) visible, and {charged} charged for by the config")
    else:
        yield Finding(NOTE, f"no GPU visible; {charged} charged for by the config all the same")


def _engine(engine: Engine, shares: Shares, seen: Seen) -> Iterator[Finding]:
    """Say which GPUs an engine has, and whether how busy they are can be a signal."""
    if not shares:
        how = "; a list of UUIDs under its gpus tells" if seen.visible else ""
        yield Finding(NOTE, f"{engine.name}: nobody can tell which GPUs it has{how}; its signal gpu_utilization is off")
        return
    gpus = {gpu.uuid: gpu for gpu in seen.reading.gpus}
    if here := [f"GPU {gpu.index}" for gpu in _in_order(seen) if gpu.uuid in shares]:
        yield Finding(OK, f"{engine.name}: has {', '.join(here)}")
    yield from (Finding(WARNING, f"{engine.name}: {uuid} is not seen here") for uuid in shares if uuid not in gpus)
    if not all(uuid in gpus and (Measure.UTILIZATION, "") in gpus[uuid].gauges for uuid in shares):
        yield Finding(NOTE, f"{engine.name}: not all of them tell how busy they are; its signal gpu_utilization is off")


def capture(path: Path, library_path: str | None) -> int:
    """Write what the driver answers into a new file; returns the exit code."""
    try:
        if path.exists():
            raise FileExistsError  # noqa: TRY301 - before the driver is asked; the end looks once more
        text = captured(library_path, SystemClock())
        _write(path, text)
    except NvmlError as error:
        return fail([f"{path}: not written: {error}"], 1)
    except FileExistsError:
        return fail([f"{path}: expected a new file, found one that exists"], 2)
    except OSError as error:
        return fail([f"{path}: cannot be written: {error.strerror}"], 2)
    click.echo(f"{path}: what the driver answers, {len(text.splitlines())} lines; UUIDs and bus addresses are made up")
    return 0


def _write(path: Path, text: str) -> None:
    """Write a new file: the whole of it or nothing, and never over another one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        path.hardlink_to(beside)
    finally:
        beside.unlink(missing_ok=True)
