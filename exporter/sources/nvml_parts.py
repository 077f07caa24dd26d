"""What a GPU has beside plain numbers: GPM samples, MIG instances, and XID events. Each frees what it took."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from typing import Final

from exporter.clock import NANOSECONDS, Clock
from exporter.core.gpu_readings import Measure, MigReading
from exporter.sources.nvml import UNSUPPORTED, Handle, NvmlError, call, gpm_metrics, text
from exporter.sources.nvml_fields import GPM_RATES, GPM_SHARES, Number, memory

GPM_IDS: Final = (*GPM_SHARES, *GPM_RATES)
_MIB: Final = 2.0**20
_MOST_MIB_PER_SECOND: Final = 1e7  # no link is as fast: another answer is none
_SHORTEST_NS: Final = NANOSECONDS
_LONGEST_NS: Final = 600 * NANOSECONDS
_XID_EVENTS: Final = 8  # nvml.h, nvmlEventTypeXidCriticalError
_MOST_EVENTS: Final = 100  # at once; more would be a flood
_WAIT_MS: Final = 0  # only what has come


class Gpm:
    """The GPU performance monitor of Hopper and newer: means between two samples, of a device or a MIG instance."""

    def __init__(self, take: Callable[[Handle], object], clock: Clock) -> None:
        """Use `take` to fill a sample; raises NvmlError where there are none to be had."""
        self._take, self._clock = take, clock
        self._new, self._old = call("nvmlGpmSampleAlloc"), call("nvmlGpmSampleAlloc")
        self._taken: int | None = None
        self.seconds = 0.0  # between the samples of which the means are

    def read(self) -> list[Number]:
        """Take a sample; returns the means since the one before, nothing where that is too young or too old."""
        self._new, self._old = self._old, self._new
        before, self._taken = self._taken, None
        self._take(self._new)
        self._taken = self._clock.now().monotonic
        if before is None or not _SHORTEST_NS <= self._taken - before <= _LONGEST_NS:
            return []
        self.seconds = (self._taken - before) / NANOSECONDS
        results = gpm_metrics(self._old, self._new, GPM_IDS)
        return list(_gpm_numbers({identifier: value for identifier, result, value in results if result == 0}))

    def free(self) -> None:
        """Give the samples back."""
        for sample in (self._new, self._old):
            with suppress(NvmlError):
                call("nvmlGpmSampleFree", sample)


def gpm(handle: Handle, take: Callable[[Handle], object], clock: Clock) -> Gpm | None:
    """Return a performance monitor on a device, None where it has none or we may not use it."""
    with _Refusals():
        if call("nvmlGpmQueryDeviceSupport", handle).isSupportedDevice:
            return Gpm(take, clock)
    return None


def _gpm_numbers(found: dict[int, float]) -> Iterator[Number]:
    for identifier, measure in GPM_SHARES.items():
        if 0 <= found.get(identifier, -1.0) <= 100:  # noqa: PLR2004 - percent
            yield measure, "", found[identifier] / 100
    for identifier, (measure, direction) in GPM_RATES.items():
        if 0 <= found.get(identifier, -1.0) <= _MOST_MIB_PER_SECOND:
            yield measure, direction, found[identifier] * _MIB


class _Refusals(AbstractContextManager[None]):
    """Goes on without what this GPU does not have, or what we may not use."""

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        return isinstance(error, NvmlError) and error.name in UNSUPPORTED | {"no_permission"}


class Instances:
    """The MIG instances of one GPU, each with its performance monitor."""

    def __init__(self, handle: Handle, clock: Clock) -> None:
        self._handle, self._clock = handle, clock
        self._monitors: dict[str, Gpm | None] = {}

    def read(self) -> list[MigReading]:
        """Read all instances; slots may be empty between them.

        Raises:
            NvmlError: the GPU is gone, or cannot be asked.
        """
        found = [self._instance(instance) for instance in self._handles()]
        for uuid in self._monitors.keys() - {instance.uuid for instance in found}:
            _free(self._monitors.pop(uuid))
        return found

    def _handles(self) -> Iterator[Handle]:
        for slot in range(call("nvmlDeviceGetMaxMigDeviceCount", self._handle)):
            try:
                yield call("nvmlDeviceGetMigDeviceHandleByIndex", self._handle, slot)
            except NvmlError as error:
                if error.name not in ("not_found", "invalid_argument"):
                    raise

    def _instance(self, instance: Handle) -> MigReading:
        uuid = text("nvmlDeviceGetUUID", instance)
        gpu_instance = call("nvmlDeviceGetGpuInstanceId", instance)
        numbers: list[Number] = []
        with _Refusals():
            numbers += memory(instance)
        with _Refusals():
            numbers += self._active(uuid, gpu_instance)
        return MigReading(
            uuid=uuid,
            gpu_instance=str(gpu_instance),
            compute_instance=str(call("nvmlDeviceGetComputeInstanceId", instance)),
            profile=text("nvmlDeviceGetName", instance).rpartition("MIG ")[2],
            gauges={(measure, label): value for measure, label, value in numbers if isinstance(measure, Measure)},
        )

    def _active(self, uuid: str, gpu_instance: int) -> list[Number]:
        if uuid not in self._monitors:

            def take(sample: Handle) -> None:
                call("nvmlGpmMigSampleGet", self._handle, gpu_instance, sample)

            self._monitors[uuid] = gpm(self._handle, take, self._clock)
        monitor = self._monitors[uuid]
        return monitor.read() if monitor else []

    def free(self) -> None:
        """Give all samples back."""
        for monitor in self._monitors.values():
            _free(monitor)
        self._monitors = {}


def _free(monitor: Gpm | None) -> None:
    if monitor is not None:
        monitor.free()


class XidEvents:
    """The driver's error events (XID) of one GPU, from now on."""

    def __init__(self, handle: Handle) -> None:
        """Begin to listen; raises NvmlError where there are no events."""
        self._events = call("nvmlEventSetCreate")
        try:
            call("nvmlDeviceRegisterEvents", handle, _XID_EVENTS, self._events)
        except NvmlError:
            self.free()
            raise

    def drain(self) -> Iterator[int]:
        """Yield the XIDs that have come since the last time."""
        for _ in range(_MOST_EVENTS):
            try:
                yield int(call("nvmlEventSetWait_v2", self._events, _WAIT_MS).eventData)
            except NvmlError as error:
                if error.name != "timeout":
                    raise
                return

    def free(self) -> None:
        """Stop listening."""
        with suppress(NvmlError):
            call("nvmlEventSetFree", self._events)


def xid_events(handle: Handle) -> XidEvents | None:
    """Return the events of a GPU, None where it has none or we may not listen."""
    with _Refusals():
        return XidEvents(handle)
    return None
