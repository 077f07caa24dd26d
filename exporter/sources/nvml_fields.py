"""What is asked of a GPU, how often, and what the answers mean: one row a question.

Cheap questions come each second, since a gauge that is read every 15 s misses what happened between; what changes
slowly, or takes the driver long, comes less often: energy takes it 3 ms. Never asked: fans, PCIe throughput, which
sleeps 40 ms, and PCIe bytes, whose counters have 32 bits and wrap several times a second under load.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from exporter.core.gpu_readings import Measure, Total, recovery_actions, throttle_reasons
from exporter.sources.nvml import Handle, NvmlError, call, field_values, text

Number = tuple[Measure | Total, str, float]

_MILLI_TO_NANO: Final = 1_000_000
_MHZ: Final = 1e6
_MIB: Final = 2.0**20
MEMORY_V2: Final = 0x02000028
_NOT_AVAILABLE: Final = frozenset({2**32 - 1, 2**64 - 1})
# nvml.h, NVML_CLOCK_*
_SM: Final = 1
_MEM: Final = 2

# nvml.h, NVML_FI_DEV_*: times are nanoseconds
_THROTTLE_TIMES: Final = {74: "sw_power_cap", 76: "sync_boost"}
_THERMAL: Final = ("sw_thermal", "hw_thermal", "hw_power_brake")
_THERMAL_IDS: Final = (
    ((580, 82), (269, 270, 271)),
    ((575, 0), (251, 252, 253)),
)  # from which driver on; renumbered once
_MEMORY_TEMPERATURE: Final = 82
_RECOVERY_ACTION: Final = 230
FIELD_IDS: Final = (
    *_THROTTLE_TIMES,
    *(each for _, ids in _THERMAL_IDS for each in ids),
    _MEMORY_TEMPERATURE,
    _RECOVERY_ACTION,
)
# nvml.h, NVML_GPM_METRIC_*: percent, and MiB/s
GPM_SHARES: Final = {1: Measure.GRAPHICS_ACTIVE, 2: Measure.SM_ACTIVE, 3: Measure.SM_OCCUPANCY,
                     5: Measure.TENSOR_ACTIVE, 10: Measure.DRAM_ACTIVE}  # fmt: skip
GPM_RATES: Final = {20: (Measure.PCIE_RATE, "transmit"), 21: (Measure.PCIE_RATE, "receive"),
                    60: (Measure.NVLINK_RATE, "receive"), 61: (Measure.NVLINK_RATE, "transmit")}  # fmt: skip


class Field(NamedTuple):
    """One question: its name, how often it is asked, what its answer can hold, and how it is read."""

    name: str
    period_seconds: float
    gives: tuple[Measure | Total, ...]
    read: Callable[[Handle], Iterable[Number]]


Target = tuple[Measure | Total, str]


def _one(
    name: str, period_seconds: float, function: str, target: Target, scale: float = 1, arguments: tuple[int, ...] = ()
) -> Field:
    """A question whose answer is one number, which `scale` brings into the unit of its target."""

    def read(handle: Handle) -> Iterator[Number]:
        value = call(function, handle, *arguments)
        if value not in _NOT_AVAILABLE:
            yield *target, value * scale

    return Field(name, period_seconds, (target[0],), read)


def _utilization(handle: Handle) -> Iterator[Number]:
    rates = call("nvmlDeviceGetUtilizationRates", handle)
    for measure, percent in ((Measure.UTILIZATION, rates.gpu), (Measure.MEMORY_ACTIVITY, rates.memory)):
        if percent <= 100:  # noqa: PLR2004
            yield measure, "", percent / 100


def memory(handle: Handle) -> Iterator[Number]:
    """Read a device's or an instance's memory: by version 2, where there is one, reserved is not used."""
    try:
        found = call("nvmlDeviceGetMemoryInfo", handle, MEMORY_V2)
        yield Measure.MEMORY_RESERVED, "", float(found.reserved)
    except NvmlError as error:
        if error.name not in ("function_not_found", "argument_version_mismatch", "not_supported"):
            raise
        found = call("nvmlDeviceGetMemoryInfo", handle)
    yield Measure.MEMORY_TOTAL, "", float(found.total)
    yield Measure.MEMORY_USED, "", float(found.used)
    yield Measure.MEMORY_FREE, "", float(found.free)


def _temperature(handle: Handle) -> Iterator[Number]:
    try:
        degrees = call("nvmlDeviceGetTemperatureV", handle, 0)
    except NvmlError as error:
        if error.name not in ("function_not_found", "argument_version_mismatch"):
            raise
        degrees = call("nvmlDeviceGetTemperature", handle, 0)
    yield Measure.TEMPERATURE, "gpu", float(degrees)


def _reasons(handle: Handle) -> Iterator[Number]:
    try:
        mask = call("nvmlDeviceGetCurrentClocksEventReasons", handle)
    except NvmlError as error:
        if error.name != "function_not_found":
            raise
        mask = call("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
    yield from throttle_reasons(mask)


def _fields(handle: Handle) -> Iterator[Number]:
    answered = field_values(handle, FIELD_IDS)
    found = {identifier: value for identifier, value in answered.items() if value not in _NOT_AVAILABLE}
    for identifier, reason in (_THROTTLE_TIMES | thermal_fields(text("nvmlSystemGetDriverVersion"))).items():
        if identifier in found:
            yield Total.THROTTLE, reason, found[identifier]
    if found.get(_MEMORY_TEMPERATURE):  # 0 where the memory has no sensor
        yield Measure.TEMPERATURE, "memory", float(found[_MEMORY_TEMPERATURE])
    if _RECOVERY_ACTION in found:
        yield from recovery_actions(found[_RECOVERY_ACTION])


def thermal_fields(driver_version: str) -> dict[int, str]:
    """Return the fields of a driver that hold thermal throttling; other drivers have other things in these places."""
    parts = driver_version.split(".")
    if not all(part.isdecimal() for part in parts):
        return {}
    version = tuple(map(int, parts))
    return next((dict(zip(ids, _THERMAL, strict=True)) for since, ids in _THERMAL_IDS if version >= since), {})


def _remapped_rows(handle: Handle) -> Iterator[Number]:
    corrected, uncorrected, pending, failed = call("nvmlDeviceGetRemappedRows", handle)
    yield Measure.REMAPPED_ROWS, "corrected", float(corrected)
    yield Measure.REMAPPED_ROWS, "uncorrected", float(uncorrected)
    yield Measure.ROW_REMAP_PENDING, "", float(bool(pending))
    yield Measure.ROW_REMAP_FAILED, "", float(bool(failed))


def _ecc(severity: str, lifetime: str, arguments: tuple[int, int]) -> Field:
    target = (Total.ECC, f"{severity},{lifetime}")
    return _one(f"ecc_{severity}_{lifetime}", 10, "nvmlDeviceGetTotalEccErrors", target, 1, arguments)


_MEMORY: Final = (Measure.MEMORY_TOTAL, Measure.MEMORY_USED, Measure.MEMORY_FREE, Measure.MEMORY_RESERVED)
_ROWS: Final = (Measure.REMAPPED_ROWS, Measure.ROW_REMAP_PENDING, Measure.ROW_REMAP_FAILED)
FIELDS: Final[tuple[Field, ...]] = (
    Field("utilization", 1, (Measure.UTILIZATION, Measure.MEMORY_ACTIVITY), _utilization),
    _one("power", 1, "nvmlDeviceGetPowerUsage", (Measure.POWER, ""), 1e-3),
    _one("energy", 5, "nvmlDeviceGetTotalEnergyConsumption", (Total.ENERGY, ""), _MILLI_TO_NANO),
    Field("clocks_event_reasons", 1, (Measure.THROTTLE_ACTIVE,), _reasons),
    Field(
        "memory", 5, (Measure.MEMORY_TOTAL, Measure.MEMORY_USED, Measure.MEMORY_FREE, Measure.MEMORY_RESERVED), memory
    ),
    Field("temperature", 10, (Measure.TEMPERATURE,), _temperature),
    _one("margin_temperature", 10, "nvmlDeviceGetMarginTemperature", (Measure.TEMPERATURE_MARGIN, "")),
    _one("clock_sm", 10, "nvmlDeviceGetClockInfo", (Measure.CLOCK, "sm"), _MHZ, (_SM,)),
    _one("clock_memory", 10, "nvmlDeviceGetClockInfo", (Measure.CLOCK, "memory"), _MHZ, (_MEM,)),
    Field("fields", 10, (Total.THROTTLE, Measure.RECOVERY_ACTION), _fields),
    _ecc("corrected", "volatile", (0, 0)),
    _ecc("corrected", "aggregate", (0, 1)),
    _ecc("uncorrected", "volatile", (1, 0)),
    _ecc("uncorrected", "aggregate", (1, 1)),
    Field(
        "remapped_rows",
        10,
        (Measure.REMAPPED_ROWS, Measure.ROW_REMAP_PENDING, Measure.ROW_REMAP_FAILED),
        _remapped_rows,
    ),
    _one("power_limit", 60, "nvmlDeviceGetEnforcedPowerLimit", (Measure.POWER_LIMIT, ""), 1e-3),
    _one("max_clock_sm", 60, "nvmlDeviceGetMaxClockInfo", (Measure.CLOCK_MAX, "sm"), _MHZ, (_SM,)),
    _one("max_clock_memory", 60, "nvmlDeviceGetMaxClockInfo", (Measure.CLOCK_MAX, "memory"), _MHZ, (_MEM,)),
)
