"""What GPUs said at one moment, frozen, whoever was asked. Absent means not known, never 0."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final


class Measure(StrEnum):
    """A number that a GPU or a MIG instance has, by the name of its family on the page, in that family's base unit."""

    UTILIZATION = "gpu_utilization_ratio"
    MEMORY_ACTIVITY = "gpu_memory_activity_ratio"
    MEMORY_TOTAL = "gpu_memory_total_bytes"
    MEMORY_USED = "gpu_memory_used_bytes"
    MEMORY_FREE = "gpu_memory_free_bytes"
    MEMORY_RESERVED = "gpu_memory_reserved_bytes"
    POWER = "gpu_power_watts"
    POWER_LIMIT = "gpu_power_limit_watts"
    TEMPERATURE = "gpu_temperature_celsius"
    TEMPERATURE_MARGIN = "gpu_temperature_margin_celsius"
    CLOCK = "gpu_clock_hertz"
    CLOCK_MAX = "gpu_clock_max_hertz"
    THROTTLE_ACTIVE = "gpu_throttle_active"
    GRAPHICS_ACTIVE = "gpu_graphics_active_ratio"
    SM_ACTIVE = "gpu_sm_active_ratio"
    SM_OCCUPANCY = "gpu_sm_occupancy_ratio"
    TENSOR_ACTIVE = "gpu_tensor_active_ratio"
    DRAM_ACTIVE = "gpu_dram_active_ratio"
    NVLINK_RATE = "gpu_nvlink_bytes_per_second"
    PCIE_RATE = "gpu_pcie_bytes_per_second"
    REMAPPED_ROWS = "gpu_remapped_rows"
    ROW_REMAP_PENDING = "gpu_row_remap_pending"
    ROW_REMAP_FAILED = "gpu_row_remap_failed"
    RECOVERY_ACTION = "gpu_recovery_action"
    XID_LAST = "gpu_xid_last_timestamp_seconds"


class Total(StrEnum):
    """What a GPU counts, by the name of its family on the page: an integer, in the unit named here."""

    BUSY = "gpu_busy_seconds_total"  # nanoseconds
    ENERGY = "gpu_energy_joules_total"  # nanojoules
    THROTTLE = "gpu_throttle_seconds_total"  # nanoseconds
    PCIE = "gpu_pcie_bytes_total"  # bytes
    ECC = "gpu_ecc_errors_total"  # errors, as the device counts them: not from 0 on
    XID = "gpu_xid_errors_total"  # events
    POLLS = "nvml_polls_total"  # times asked
    POLL_SECONDS = "nvml_poll_seconds_total"  # nanoseconds spent asking


# nvml.h, nvmlClocksEventReason*
_REASONS: Final = {
    0x1: "idle",
    0x2: "app_clocks",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal",
    0x40: "hw_thermal",
    0x80: "hw_power_brake",
    0x100: "display_clock",
}
# nvml.h, nvmlDeviceGpuRecoveryAction_t
_ACTIONS: Final = ("none", "gpu_reset", "node_reboot", "drain_p2p", "drain_and_reset", "recover_imex_domain",
                   "bus_reset", "system_reboot", "other")  # fmt: skip

Gauges = Mapping[tuple[Measure, str], float]  # by measure and the value of its one further label, "" where it has none
Totals = Mapping[tuple[Total, str], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class MigReading:
    """One MIG instance of a GPU."""

    uuid: str
    gpu_instance: str
    compute_instance: str
    profile: str
    gauges: Gauges = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReading:
    """One GPU.

    `uuid` is the driver's own spelling (`GPU-…`); `index` is its number as text and may change with a reboot.
    `sampled` is the monotonic nanosecond of its last good answer, None before the first. `supported` says of each
    field that was asked for whether this GPU has it.
    """

    uuid: str
    index: str
    name: str
    pci_bus_id: str = ""
    architecture: str = ""
    mig_mode: str = ""
    up: bool
    sampled: int | None
    stuck_seconds: float | None = None  # None where nobody holds calls
    gauges: Gauges = field(default_factory=dict)
    totals: Totals = field(default_factory=dict)
    supported: Mapping[str, bool] = field(default_factory=dict)
    instances: tuple[MigReading, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """The driver's versions, "" where it does not say."""

    driver_version: str
    nvml_version: str
    cuda_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GpusReading:
    """All GPUs that one source shows, in no order; `errors` counts failed NVML calls by call and error.

    `shown` is how many there are, also those that cannot be told apart since they have never answered; None: as many
    as in `gpus`.
    """

    gpus: tuple[GpuReading, ...]
    shown: int | None = None
    driver: Driver | None = None
    errors: Mapping[tuple[str, str], int] = field(default_factory=dict)


def throttle_reasons(mask: int) -> Iterator[tuple[Measure, str, float]]:
    """Yield for each reason for which clocks may be held down whether the driver's bits say that it does."""
    for bit, reason in _REASONS.items():
        yield Measure.THROTTLE_ACTIVE, reason, float(bool(mask & bit))
    yield Measure.THROTTLE_ACTIVE, "other", float(bool(mask & ~sum(_REASONS)))


def recovery_actions(number: int) -> Iterator[tuple[Measure, str, float]]:
    """Yield for each action that a GPU may ask for whether the driver's number says that it does."""
    asked = _ACTIONS[min(number, len(_ACTIONS) - 1)]
    return ((Measure.RECOVERY_ACTION, action, float(action == asked)) for action in _ACTIONS)
