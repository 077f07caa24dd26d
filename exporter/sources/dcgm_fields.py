"""Which field of DCGM is which of our measures: one readable table, and what the values of a device come to.

A row gives the names that dcgm-exporter has had for a field, newest first; the first one with a value counts. Names in
small letters are of its 1.x, which its compatibility file still writes. What a page says about types and units is not
believed: its owner may edit both.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from exporter.core.gpu_readings import Measure, Total, recovery_actions, throttle_reasons

Gauge = tuple[Measure, str]
Counted = tuple[Total, str]

_INT32_CODES: Final = frozenset(float(0x7FFFFFF0 + code) for code in range(16))  # DCGM's codes for "no value"
_BELOW_INT32_CODES: Final = 2.0**31 - 17
_BELOW_FP64_CODES: Final = 2.0**47 - 1
_BELOW_INT64_CODES: Final = 2.0**62


@dataclass(frozen=True, slots=True)
class Unit:
    """What a field counts in, as `times` / `per` of our unit, and from `least` to `most` what it can say at all."""

    most: float
    times: int = 1
    per: int = 1
    least: float = 0.0

    def holds(self, value: float) -> bool:
        """Tell a value from NaN, from one that cannot be, and from a code that says why there is none."""
        return self.least <= value <= self.most and value not in _INT32_CODES


PERCENT: Final = Unit(100.0, per=100)
RATIO: Final = Unit(1.0)
PLAIN: Final = Unit(_BELOW_INT32_CODES)
MIB: Final = Unit(_BELOW_INT32_CODES, times=2**20)
MHZ: Final = Unit(_BELOW_INT32_CODES, times=10**6)
DEGREES_LEFT: Final = Unit(_BELOW_INT32_CODES, least=-1000.0)  # below 0 where a GPU is too hot
BYTES_PER_SECOND: Final = Unit(_BELOW_FP64_CODES)
COUNT: Final = Unit(_BELOW_INT64_CODES)
MILLIJOULES: Final = Unit(_BELOW_INT64_CODES, times=10**6)  # of a nanojoule
NANOSECONDS: Final = Unit(_BELOW_INT64_CODES)


class Field:
    """One field of DCGM."""

    def __init__(self, unit: Unit, *names: str) -> None:
        self.unit, self.names = unit, names

    def raw(self, values: Mapping[str, float]) -> float | None:
        """Return the field as DCGM gives it, None where it does not."""
        return next((values[name] for name in self.names if name in values and self.unit.holds(values[name])), None)


# fmt: off
# https://docs.nvidia.com/datacenter/dcgm/latest/dcgm-api/dcgm-api-field-ids.html; names as found in the files of
# counters that dcgm-exporter brings. DCGM_FI_DEV_GPU_UTIL_RATIO is left out: percent or a ratio, by release.
GAUGES: Final[Mapping[Gauge, Field]] = {
    (Measure.UTILIZATION, ""): Field(PERCENT, "DCGM_FI_DEV_GPU_UTIL", "dcgm_gpu_utilization"),
    (Measure.MEMORY_ACTIVITY, ""): Field(PERCENT, "DCGM_FI_DEV_MEM_COPY_UTIL", "dcgm_mem_copy_utilization"),
    (Measure.MEMORY_TOTAL, ""): Field(MIB, "DCGM_FI_DEV_FB_TOTAL"),
    (Measure.MEMORY_USED, ""): Field(MIB, "DCGM_FI_DEV_FB_USED", "dcgm_fb_used"),
    (Measure.MEMORY_FREE, ""): Field(MIB, "DCGM_FI_DEV_FB_FREE", "dcgm_fb_free"),
    (Measure.MEMORY_RESERVED, ""): Field(MIB, "DCGM_FI_DEV_FB_RESERVED"),
    (Measure.POWER, ""): Field(PLAIN, "DCGM_FI_DEV_BOARD_POWER_WATTS", "DCGM_FI_DEV_POWER_USAGE", "dcgm_power_usage"),
    (Measure.POWER_LIMIT, ""): Field(PLAIN,
        "DCGM_FI_DEV_BOARD_POWER_LIMIT_ENFORCED_WATTS", "DCGM_FI_DEV_ENFORCED_POWER_LIMIT",
        "DCGM_FI_DEV_BOARD_POWER_LIMIT_REQUESTED_WATTS",  # what was asked for, which may not be what holds
        "DCGM_FI_DEV_POWER_MGMT_LIMIT"),
    (Measure.TEMPERATURE, "gpu"): Field(PLAIN,
        "DCGM_FI_DEV_GPU_TEMP_CELSIUS", "DCGM_FI_DEV_GPU_TEMP", "dcgm_gpu_temp"),
    (Measure.TEMPERATURE, "memory"): Field(PLAIN,
        "DCGM_FI_DEV_MEMORY_TEMP_CELSIUS", "DCGM_FI_DEV_MEMORY_TEMP", "dcgm_memory_temp"),
    (Measure.TEMPERATURE_MARGIN, ""): Field(DEGREES_LEFT,
        "DCGM_FI_DEV_GPU_TEMP_MARGIN_CELSIUS", "DCGM_FI_DEV_GPU_TEMP_LIMIT"),
    (Measure.CLOCK, "sm"): Field(MHZ, "DCGM_FI_DEV_SM_CLOCK", "dcgm_sm_clock"),
    (Measure.CLOCK, "memory"): Field(MHZ, "DCGM_FI_DEV_MEM_CLOCK", "dcgm_memory_clock"),
    (Measure.CLOCK_MAX, "sm"): Field(MHZ, "DCGM_FI_DEV_MAX_SM_CLOCK"),
    (Measure.CLOCK_MAX, "memory"): Field(MHZ, "DCGM_FI_DEV_MAX_MEM_CLOCK"),
    (Measure.GRAPHICS_ACTIVE, ""): Field(RATIO,
        "DCGM_FI_PROF_GR_ENGINE_UTIL_RATIO", "DCGM_FI_PROF_GR_ENGINE_ACTIVE", "dcgm_fi_prof_gr_engine_active"),
    (Measure.SM_ACTIVE, ""): Field(RATIO,
        "DCGM_FI_PROF_SM_UTIL_RATIO", "DCGM_FI_PROF_SM_ACTIVE", "dcgm_fi_prof_sm_active"),
    (Measure.SM_OCCUPANCY, ""): Field(RATIO,
        "DCGM_FI_PROF_SM_OCCUPANCY_RATIO", "DCGM_FI_PROF_SM_OCCUPANCY", "dcgm_fi_prof_sm_occupancy"),
    (Measure.TENSOR_ACTIVE, ""): Field(RATIO,
        "DCGM_FI_PROF_TENSOR_UTIL_RATIO", "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", "dcgm_fi_prof_pipe_tensor_active"),
    (Measure.DRAM_ACTIVE, ""): Field(RATIO,
        "DCGM_FI_PROF_DRAM_UTIL_RATIO", "DCGM_FI_PROF_DRAM_ACTIVE", "dcgm_fi_prof_dram_active"),
    # rates from the first release on, whatever the counter that old pages call them
    (Measure.NVLINK_RATE, "transmit"): Field(BYTES_PER_SECOND, "DCGM_FI_PROF_NVLINK_TX_BYTES"),
    (Measure.NVLINK_RATE, "receive"): Field(BYTES_PER_SECOND, "DCGM_FI_PROF_NVLINK_RX_BYTES"),
    (Measure.PCIE_RATE, "transmit"): Field(BYTES_PER_SECOND,
        "DCGM_FI_PROF_PCIE_TX_BYTES", "dcgm_fi_prof_pcie_tx_bytes"),
    (Measure.PCIE_RATE, "receive"): Field(BYTES_PER_SECOND, "DCGM_FI_PROF_PCIE_RX_BYTES", "dcgm_fi_prof_pcie_rx_bytes"),
    (Measure.REMAPPED_ROWS, "corrected"): Field(PLAIN,
        "DCGM_FI_DEV_ROW_REMAP_CORRECTABLE_TOTAL", "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS"),
    (Measure.REMAPPED_ROWS, "uncorrected"): Field(PLAIN,
        "DCGM_FI_DEV_ROW_REMAP_UNCORRECTABLE_TOTAL", "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS"),
    (Measure.ROW_REMAP_PENDING, ""): Field(RATIO, "DCGM_FI_DEV_ROW_REMAP_PENDING"),
    (Measure.ROW_REMAP_FAILED, ""): Field(RATIO, "DCGM_FI_DEV_ROW_REMAP_FAILED", "DCGM_FI_DEV_ROW_REMAP_FAILURE"),
}

# Throttling is counted in nanoseconds by the driver and by every DCGM; a page that says "in us" repeats an old comment
# (NVIDIA/dcgm-exporter#589, NVIDIA/DCGM#266).
TOTALS: Final[Mapping[Counted, Field]] = {
    (Total.ENERGY, ""): Field(MILLIJOULES, "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "dcgm_total_energy_consumption"),
    (Total.THROTTLE, "sw_power_cap"): Field(NANOSECONDS,
        "DCGM_FI_DEV_CLOCKS_EVENT_REASON_SW_POWER_CAP_NS", "DCGM_FI_DEV_POWER_VIOLATION", "dcgm_power_violation"),
    (Total.THROTTLE, "sync_boost"): Field(NANOSECONDS, "DCGM_FI_DEV_CLOCKS_EVENT_REASON_SYNC_BOOST_NS",
        "DCGM_FI_DEV_SYNC_BOOST_VIOLATION", "dcgm_sync_boost_violation"),
    (Total.THROTTLE, "thermal"): Field(NANOSECONDS, "DCGM_FI_DEV_THERMAL_VIOLATION", "dcgm_thermal_violation"),
    (Total.THROTTLE, "sw_thermal"): Field(NANOSECONDS, "DCGM_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN_NS"),
    (Total.THROTTLE, "hw_thermal"): Field(NANOSECONDS, "DCGM_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN_NS"),
    (Total.THROTTLE, "hw_power_brake"): Field(NANOSECONDS,
        "DCGM_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN_NS"),
    (Total.ECC, "corrected,volatile"): Field(COUNT, "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL", "dcgm_ecc_sbe_volatile_total"),
    (Total.ECC, "uncorrected,volatile"): Field(COUNT, "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL", "dcgm_ecc_dbe_volatile_total"),
    (Total.ECC, "corrected,aggregate"): Field(COUNT, "DCGM_FI_DEV_ECC_SBE_AGG_TOTAL", "dcgm_ecc_sbe_aggregate_total"),
    (Total.ECC, "uncorrected,aggregate"): Field(COUNT, "DCGM_FI_DEV_ECC_DBE_AGG_TOTAL", "dcgm_ecc_dbe_aggregate_total"),
}
# fmt: on

# dcgm_structs.h, DCGM_CLOCKS_EVENT_REASON_*: the same bits as NVML's
_REASONS: Final = Field(COUNT, "DCGM_FI_DEV_CLOCKS_EVENT_REASONS", "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS")
_ACTION: Final = Field(PLAIN, "DCGM_FI_DEV_GPU_RECOVERY_ACTION", "DCGM_FI_DEV_GET_GPU_RECOVERY_ACTION")

# What a MIG instance has of its own. Of all else DCGM gives an instance what it knows of the whole GPU,
_OF_AN_INSTANCE: Final = frozenset({
    Measure.MEMORY_TOTAL, Measure.MEMORY_USED, Measure.MEMORY_FREE, Measure.MEMORY_RESERVED, Measure.GRAPHICS_ACTIVE,
    Measure.SM_ACTIVE, Measure.SM_OCCUPANCY, Measure.TENSOR_ACTIVE, Measure.DRAM_ACTIVE,
})  # fmt: skip
# but for these, which it does not know where MIG is on: old releases then say 0.
_UNKNOWN_TO_AN_INSTANCE: Final = frozenset({
    Measure.UTILIZATION, Measure.MEMORY_ACTIVITY, Measure.NVLINK_RATE, Measure.PCIE_RATE,
})  # fmt: skip


def _names(measures: frozenset[Measure]) -> frozenset[str]:
    return frozenset(name for (measure, _), field in GAUGES.items() if measure in measures for name in field.names)


NAMES: Final = frozenset(
    name for field in (*GAUGES.values(), *TOTALS.values(), _REASONS, _ACTION) for name in field.names
)
NAMES_OF_AN_INSTANCE: Final = _names(_OF_AN_INSTANCE)
NAMES_UNKNOWN_TO_AN_INSTANCE: Final = _names(_UNKNOWN_TO_AN_INSTANCE)


def gauges(values: Mapping[str, float]) -> dict[Gauge, float]:
    """Return what the fields of one device come to, by name, in our units."""
    found = {
        gauge: raw * field.unit.times / field.unit.per
        for gauge, field in GAUGES.items()
        if (raw := field.raw(values)) is not None
    }
    for field, read in ((_REASONS, throttle_reasons), (_ACTION, recovery_actions)):
        if (raw := field.raw(values)) is not None:
            found |= {(measure, label): value for measure, label, value in read(int(raw))}
    # The files of counters leave the total out. Without what is reserved, half a GB of it is missing.
    used, free = found.get((Measure.MEMORY_USED, "")), found.get((Measure.MEMORY_FREE, ""))
    if used is not None and free is not None:
        found.setdefault((Measure.MEMORY_TOTAL, ""), used + free + found.get((Measure.MEMORY_RESERVED, ""), 0.0))
    return found


def totals(values: Mapping[str, float]) -> dict[Counted, int]:
    """Return what one device has counted; energy in nanojoules, time in nanoseconds."""
    return {
        counted: round(raw) * field.unit.times
        for counted, field in TOTALS.items()
        if (raw := field.raw(values)) is not None
    }
