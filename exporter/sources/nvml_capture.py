"""What NVML answers here, call by call, as a scenario file for a library that plays it (tests/nvml/stub.c).

Every call that the exporter makes is made once, and its answer is kept as it came, refusals too. Nothing that names a
machine is kept: UUIDs and bus addresses become numbered ones, and processes are not asked for.
"""

import ctypes
import re
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Final

from exporter import __version__
from exporter.clock import NANOSECONDS, Clock
from exporter.sources import nvml
from exporter.sources.nvml import CODES, UNSUPPORTED, Handle, NvmlError, call, raw
from exporter.sources.nvml_fields import FIELD_IDS, MEMORY_V2
from exporter.sources.nvml_parts import GPM_IDS, XidEvents

PATIENCE_SECONDS: Final = 10.0
_BETWEEN_SAMPLES_SECONDS: Final = 1.1
_LOOK_SECONDS: Final = 0.02
_NUMBERS: Final = {name: number for number, name in CODES.items()}
_UNSAFE: Final = re.compile(rb"[^ -~]|\\|^[ !]| $")  # what the file would take for something else
_FICTITIOUS: Final = {"uuid": "00000000-0000-0000-0000-{:012d}", "pci_bus_id": "00000000:{:02X}:00.0"}

Calls = Mapping[str, tuple[str, *tuple[int, ...]]]  # by the scenario's key: the function, and what it takes

_SYSTEM: Final[Calls] = {
    "driver_version": ("nvmlSystemGetDriverVersion",),
    "nvml_version": ("nvmlSystemGetNVMLVersion",),
    "cuda_version": ("nvmlSystemGetCudaDriverVersion",),
    "count": ("nvmlDeviceGetCount",),
}
_DEVICE: Final[Calls] = {
    "uuid": ("nvmlDeviceGetUUID",),
    "name": ("nvmlDeviceGetName",),
    "memory": ("nvmlDeviceGetMemoryInfo", MEMORY_V2),
    "memory_v1": ("nvmlDeviceGetMemoryInfo",),
}
_GPU: Final[Calls] = {
    **_DEVICE,
    "pci_bus_id": ("nvmlDeviceGetPciInfo",),
    "architecture": ("nvmlDeviceGetArchitecture",),
    "utilization": ("nvmlDeviceGetUtilizationRates",),
    "power": ("nvmlDeviceGetPowerUsage",),
    "power_limit": ("nvmlDeviceGetEnforcedPowerLimit",),
    "energy": ("nvmlDeviceGetTotalEnergyConsumption",),
    "temperature": ("nvmlDeviceGetTemperatureV", 0),
    "margin_temperature": ("nvmlDeviceGetMarginTemperature",),
    "clock.sm": ("nvmlDeviceGetClockInfo", 1),
    "clock.memory": ("nvmlDeviceGetClockInfo", 2),
    "max_clock.sm": ("nvmlDeviceGetMaxClockInfo", 1),
    "max_clock.memory": ("nvmlDeviceGetMaxClockInfo", 2),
    "clocks_event_reasons": ("nvmlDeviceGetCurrentClocksEventReasons",),
    "ecc.corrected.volatile": ("nvmlDeviceGetTotalEccErrors", 0, 0),
    "ecc.corrected.aggregate": ("nvmlDeviceGetTotalEccErrors", 0, 1),
    "ecc.uncorrected.volatile": ("nvmlDeviceGetTotalEccErrors", 1, 0),
    "ecc.uncorrected.aggregate": ("nvmlDeviceGetTotalEccErrors", 1, 1),
    "remapped_rows": ("nvmlDeviceGetRemappedRows",),
    "xids": ("nvmlDeviceRegisterEvents",),
    "gpm": ("nvmlGpmQueryDeviceSupport",),
    "mig_mode": ("nvmlDeviceGetMigMode",),
    "mig_slots": ("nvmlDeviceGetMaxMigDeviceCount",),
}
_INSTANCE: Final[Calls] = {**_DEVICE, "gi": ("nvmlDeviceGetGpuInstanceId",), "ci": ("nvmlDeviceGetComputeInstanceId",)}
_IN_OLDER_DRIVERS: Final = {
    "nvmlDeviceGetTemperatureV": "nvmlDeviceGetTemperature",
    "nvmlDeviceGetCurrentClocksEventReasons": "nvmlDeviceGetCurrentClocksThrottleReasons",
}


def _listened(_: str, handle: Handle) -> str:
    """Listen for a moment; what has happened before is not told."""
    events = XidEvents(handle)
    with suppress(NvmlError):
        list(events.drain())
    events.free()
    return ""


def _or_older(function: str, *arguments: Any) -> Any:
    """Make a call, by an older function where the driver has no newer one."""
    try:
        return call(function, *arguments)
    except NvmlError as error:
        if error.name not in UNSUPPORTED:
            raise
    return call(_IN_OLDER_DRIVERS[function], *arguments)


_ASKED_BY: Final[Mapping[str, Callable[..., Any]]] = {
    **dict.fromkeys(("driver_version", "nvml_version", "uuid", "name"), raw),
    **dict.fromkeys(("temperature", "clocks_event_reasons"), _or_older),
    "pci_bus_id": lambda function, handle: str(call(function, handle).busId),
    "xids": _listened,
}


def captured(nvml_library: str | None, clock: Clock) -> str:
    """Return the scenario of this machine. It is asked in a thread of its own, since a call may hang.

    Raises:
        NvmlError: there is no driver, or a call hangs.
    """
    capture = _Capture(clock)
    thread = threading.Thread(target=capture.run, args=(nvml_library,), daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_LOOK_SECONDS)
        if clock.now().monotonic - capture.began > PATIENCE_SECONDS * NANOSECONDS:
            hangs = nvml.calls_under_way().get(thread.name, "nvml")
            raise NvmlError(hangs, "hangs", f"{capture.key} has had no answer for {PATIENCE_SECONDS:g} s")
    if capture.failure is not None:
        raise capture.failure
    return capture.scenario()


class _Capture:
    """One capture, line by line; `key` is what is being asked for since `began` (monotonic nanoseconds)."""

    def __init__(self, clock: Clock) -> None:
        self.key, self.began = "init", clock.now().monotonic
        self.failure: NvmlError | None = NvmlError("capture", "unknown")
        self._clock = clock
        self._lines: defaultdict[str, list[str]] = defaultdict(list)  # by GPU, "" where they are of the driver
        self._models: Counter[str] = Counter()
        self._seen: defaultdict[str, dict[str, int]] = defaultdict(dict)
        self._sampling: list[Iterator[None]] = []

    def run(self, nvml_library: str | None) -> None:
        """Ask everything."""
        try:
            self._timed("init", nvml.open_library, nvml_library)
            for index in range(self._ask_each(_SYSTEM, "").get("count", 0)):
                self._gpu(f"gpu{index}.", index)
            threading.Event().wait(_BETWEEN_SAMPLES_SECONDS if self._sampling else 0)
            for sampling in self._sampling:
                next(sampling, None)
            nvml.close_library()
            self.failure = None
        except NvmlError as error:
            self.failure = error

    def scenario(self) -> str:
        """Return the file: who was asked, then all lines, those of a GPU together."""
        models = ", ".join(f"{count} x {model}" for model, count in self._models.items())
        date = datetime.fromtimestamp(self._clock.now().wall // NANOSECONDS, UTC).date()
        binding = f"nvidia-ml-py {version('nvidia-ml-py')}"
        head = [
            f"# {models or 'no GPU'}",
            f"# captured by doctor --capture of llm-cost-exporter {__version__} on {date}, {binding}",
            "# UUIDs and bus addresses are made up; `# KEY N us` is how long a call took, K=!N an error of nvml.h.",
        ]
        return "\n\n".join("\n".join(lines) for lines in (head, *self._lines.values())) + "\n"

    def _gpu(self, gpu: str, index: int) -> None:
        with self._refusals(f"{gpu}handle"):
            handle = self._timed(f"{gpu}handle", call, "nvmlDeviceGetHandleByIndex", index)
            found = self._ask_each(_GPU, gpu, handle)
            self._models[_written(found.get("name", "?"))] += 1
            with self._refusals(f"{gpu}fields"):
                self._results(f"{gpu}field", self._timed(f"{gpu}fields", lambda: list(nvml.fields(handle, FIELD_IDS))))
            is_monitored = "gpm" in found and bool(found["gpm"].isSupportedDevice)
            if is_monitored:
                self._sample(gpu, "nvmlGpmSampleGet", handle)
            for slot in range(found.get("mig_slots", 0) if found.get("mig_mode", [0])[0] else 0):
                self._instance(f"{gpu}mig{slot}.", slot, handle, is_monitored=is_monitored)

    def _instance(self, instance: str, slot: int, parent: Handle, *, is_monitored: bool) -> None:
        with self._refusals(f"{instance}uuid", but="not_found"):  # an empty slot
            handle = self._timed(f"{instance}handle", call, "nvmlDeviceGetMigDeviceHandleByIndex", parent, slot)
            found = self._ask_each(_INSTANCE, instance, handle)
            if is_monitored and "gi" in found:
                self._sample(instance, "nvmlGpmMigSampleGet", parent, found["gi"])

    def _sample(self, device: str, function: str, *arguments: Any) -> None:
        sampling = self._gpm(device, function, *arguments)
        next(sampling, None)
        self._sampling.append(sampling)

    def _gpm(self, device: str, function: str, *arguments: Any) -> Iterator[None]:
        """Take a sample; when asked again take another, and write what was between them."""
        samples: list[Handle] = []
        with self._refusals(*(f"{device}gpm.{identifier}" for identifier in GPM_IDS)):
            samples += [call("nvmlGpmSampleAlloc"), call("nvmlGpmSampleAlloc")]
            self._timed(f"{device}gpm.sample", call, function, *arguments, samples[0])
            yield
            self._timed(f"{device}gpm.sample", call, function, *arguments, samples[1])
            self._results(f"{device}gpm", self._timed(f"{device}gpm.metrics", nvml.gpm_metrics, *samples, GPM_IDS))
        for sample in samples:
            with suppress(NvmlError):
                call("nvmlGpmSampleFree", sample)

    def _ask_each(self, calls: Calls, device: str, *handle: Handle) -> dict[str, Any]:
        """Write down what each call answers; returns the answers by key, without those that were refused."""
        found: dict[str, Any] = {}
        for name, (function, *arguments) in calls.items():
            key = f"{device}{name}"
            with self._refusals(key):
                found[name] = self._timed(key, _ASKED_BY.get(name, call), function, *handle, *arguments)
                self._write(key, f"{key}={self._masked(name, _written(found[name]))}")
        return found

    def _timed(self, key: str, ask: Callable[..., Any], *arguments: Any) -> Any:
        self.key, self.began = key, self._clock.now().monotonic
        try:
            return ask(*arguments)
        finally:
            took = self._clock.now().monotonic - self.began
            self._write(key, f"# {key} {took / 1000:.0f} us")

    @contextmanager
    def _refusals(self, *keys: str, but: str = "") -> Iterator[None]:
        """Write down by which number of nvml.h a call was refused, and go on."""
        try:
            yield
        except NvmlError as error:
            number = getattr(error.__cause__, "value", _NUMBERS.get(error.name, _NUMBERS["unknown"]))
            for key in keys if error.name != but else ():
                self._write(key, f"{key}=!{number}")

    def _results(self, key: str, results: Iterable[tuple[int, int, float]]) -> None:
        for number, result, value in results:
            self._write(key, f"{key}.{number}={f'!{result}' if result else value}")

    def _write(self, key: str, line: str) -> None:
        self._lines[key.partition(".")[0] if "." in key else ""].append(line)

    def _masked(self, name: str, text: str) -> str:
        """Put a number of its own in the place of an identity, the same wherever that comes again."""
        if name not in _FICTITIOUS:
            return text
        number = self._seen[name].setdefault(text, len(self._seen[name]))
        return re.sub(r"^((?:GPU-|MIG-)*).*", rf"\g<1>{_FICTITIOUS[name].format(number)}", text)


def _written(answer: Any) -> str:
    """Write an answer as a scenario has it: text, or numbers in the order in which NVML gives them."""
    if isinstance(answer, bytes):
        return _UNSAFE.sub(lambda match: f"\\x{match[0][0]:02x}".encode(), answer).decode("ascii")
    if isinstance(answer, ctypes.Structure):
        answer = [getattr(answer, name) for name, *_ in answer._fields_ if name != "version"]
    return " ".join(map(str, answer)) if isinstance(answer, (list, tuple)) else str(answer)
