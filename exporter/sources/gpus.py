"""Whoever can tell about GPUs: the driver where one is visible, else the node's dcgm-exporter, else nobody; and why."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Final, NamedTuple

import aiohttp

from exporter.clock import Clock
from exporter.config.model import Config, GpuSelect, GpuSource
from exporter.core.gpu_readings import GpusReading
from exporter.sources.dcgm import DcgmSource, Owner
from exporter.sources.http import DEADLINE_SHARE, SourceError
from exporter.sources.nvml import in_words
from exporter.sources.nvml_driver import NvmlDriver

log = logging.getLogger(__name__)

NVML, DCGM, NONE = str(GpuSource.NVML), str(GpuSource.DCGM), str(GpuSource.NONE)
_FIRST_ANSWER_SECONDS: Final = 1.0
_LOOK_SECONDS: Final = 0.02
_LONGEST_PAGE_SECONDS: Final = 2.0  # no slow page holds up what the engines said
_SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
# What is most likely; anything else that NVML says stands on the page from its first time on.
_NVML_REASONS: Final = ("library_not_found", "driver_not_loaded", "driver_mismatch", "no_permission", "no_devices",
                        "no_gpu_answers", "not_ours", "starting", "released")  # fmt: skip


class Choice(NamedTuple):
    """Who is asked, and why (a label, and in words)."""

    source: str
    reason: str
    detail: str = ""


class GpuSources:
    """The GPUs of this machine or pod, by whoever tells of them.

    Once the driver has shown a GPU it stays the one that is asked: a driver that is lost is to be seen as lost.
    """

    source = "gpu"

    def __init__(
        self, config: Config, session: aiohttp.ClientSession, clock: Clock, environ: Mapping[str, str]
    ) -> None:
        gpu = config.gpu
        self.target = str(gpu.source)  # as the config has it, so that its counters stay one series
        self.choice = Choice(gpu.source, "config")
        self._session, self._clock, self._environ = session, clock, environ
        self._wanted = gpu.source
        self._is_driver_known = False
        self._plan: object = None
        self._first = min(_FIRST_ANSWER_SECONDS, config.interval * DEADLINE_SHARE)
        self._driver: NvmlDriver | None = None
        self._dcgm: DcgmSource | None = None
        if gpu.source in (GpuSource.AUTO, GpuSource.NVML):
            self.choice = Choice("", "starting")
            self._driver = NvmlDriver(gpu.nvml_library, lambda _: True, clock)
        self.adopt(config)
        if self._driver is not None:
            self._driver.start()

    def adopt(self, config: Config) -> None:
        """Look at other GPUs, or for another time, from now on; who is asked stays."""
        gpu, plan = config.gpu, (config.gpu, named_uuids(config), config.interval)
        self._uuids = wanted(config)
        if self._driver is not None:
            self._driver.want(self.is_wanted)
        if gpu.source in (GpuSource.AUTO, GpuSource.DCGM) and gpu.dcgm_url is not None and plan != self._plan:
            owner = Owner(pod=pod_name(self._environ), namespace=namespace(self._environ), uuids=named_uuids(config))
            timeout = min(config.interval * DEADLINE_SHARE, _LONGEST_PAGE_SECONDS)
            self._dcgm = DcgmSource(gpu, owner, self._session, self._clock, timeout, self._environ)
        self._plan = plan

    def is_wanted(self, uuid: str) -> bool:
        """Tell whether a GPU that the driver shows is looked at."""
        return not self._uuids or uuid in self._uuids

    @property
    def driver(self) -> NvmlDriver | None:
        """The driver, where it may be asked, for whoever looks closer than a beat does."""
        return self._driver

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why reading may fail: what each of those who may be asked can say."""
        return (*(_NVML_REASONS if self._driver else ()), *(self._dcgm.reasons if self._dcgm else ()))

    @property
    def visible(self) -> int | None:
        """How many GPUs the driver shows; None where it is not asked."""
        return self._driver.status.visible if self._driver and self.choice.source == NVML else None

    @property
    def is_lost_for_good(self) -> bool:
        """Tell whether only a new process could find the driver again."""
        return self._driver is not None and self._driver.is_lost_for_good

    def release(self, seconds: float) -> bool | None:
        """Let go of the driver for a while, or take it back; returns whether it is let go, None without one."""
        return self._driver.release(seconds) if self._driver else None

    def close(self) -> None:
        """End what was started."""
        if self._driver is not None:
            self._driver.close()

    async def read(self) -> GpusReading:
        """Return what is known of all GPUs; nothing, and no failure, where nobody can tell and nobody has to.

        Raises:
            SourceError: whoever is asked does not answer, and why.
        """
        await self._settle()
        self._choose()
        if self.choice.source == NVML and self._driver is not None:
            return self._of_driver(self._driver)
        if self._dcgm is not None:
            return await self._dcgm.read()
        return GpusReading(gpus=())

    async def _settle(self) -> None:
        """Wait a moment for the driver's first answer, so that the first beat already knows its GPUs."""
        while self._driver is not None and self._first > 0 and not self._driver.is_settled:
            await asyncio.sleep(_LOOK_SECONDS)
            self._first -= _LOOK_SECONDS
        self._first = 0

    def _choose(self) -> None:
        if self._driver is None:
            return
        status, mute = self._driver.status, self._mute(self._driver)
        self._is_driver_known |= self._driver.has_answered
        by_driver = (
            self._is_driver_known or self._wanted is GpuSource.NVML or (status.is_up and not (mute and self._dcgm))
        )
        source = NVML if by_driver else (DCGM if self._dcgm else NONE)
        chosen = Choice(source, mute or status.reason, in_words(mute) if mute else status.detail)
        if chosen.source != self.choice.source:
            why = f": {chosen.detail}" if chosen.detail else ""
            log.info("GPUs are read by %s%s", chosen.source, why)
        self.choice = chosen

    def _mute(self, driver: NvmlDriver) -> str:
        """Say why no GPU that the driver shows has ever answered; "" where one has, or may do so yet."""
        if driver.has_answered or not driver.status.is_up or not driver.is_settled:
            return ""
        errors = driver.reading().errors
        return max(errors, key=lambda error: errors[error])[1] if errors else "not_ours"

    def _of_driver(self, driver: NvmlDriver) -> GpusReading:
        if not driver.status.is_up or self.choice.reason != driver.status.reason:
            raise SourceError(self.choice.reason, self.choice.detail)
        reading = driver.reading()
        return replace(reading, shown=len(self._uuids)) if self._uuids else reading


def wanted(config: Config) -> frozenset[str]:
    """Return the UUIDs of the GPUs that are looked at where the driver shows others, too; none: all that it shows.

    A container is shown its own GPUs, so all are its own where the config names none, or not all; a MIG instance is
    named by a UUID that does not tell which GPU it is on.
    """
    select, named = config.gpu.select, named_uuids(config)
    counts_some = any(isinstance(engine.gpus, Fraction) and engine.gpus for engine in config.engines)
    if select is GpuSelect.OWN:
        return frozenset() if counts_some or any(uuid.startswith("MIG-") for uuid in named) else named
    return frozenset() if isinstance(select, GpuSelect) else frozenset(select)


def named_uuids(config: Config) -> frozenset[str]:
    """Return the UUIDs of all devices that the engines are charged for by name."""
    lists = [engine.gpus for engine in config.engines if isinstance(engine.gpus, tuple)]
    return frozenset(gpu if isinstance(gpu, str) else gpu.uuid for gpus in lists for gpu in gpus)


def pod_name(environ: Mapping[str, str]) -> str | None:
    """Return the pod we run in: from the downward API, else what Kubernetes calls our host."""
    return environ.get("POD_NAME") or environ.get("HOSTNAME")


def namespace(environ: Mapping[str, str], file: Path = _SERVICE_ACCOUNT) -> str | None:
    """Return the pod's namespace: from the downward API, else from the service account."""
    if "POD_NAMESPACE" in environ:
        return environ["POD_NAMESPACE"]
    try:
        return file.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None
