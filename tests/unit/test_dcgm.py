"""A dcgm-exporter's page: what each field comes to, which samples are one device, which devices are ours."""

import math
from collections import Counter
from dataclasses import replace
from itertools import chain, starmap
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.clock import NANOSECONDS
from exporter.config.model import GpuSelect
from exporter.core.gpu_readings import Driver, GpuReading, GpusReading, Measure, MigReading, Total
from exporter.sources import dcgm_fields
from exporter.sources.dcgm import NodePage, Owner
from exporter.sources.dcgm_fields import GAUGES, NAMES, TOTALS
from exporter.sources.http import SourceError
from tests.fakes import FakeClock

PAGES: Final = Path(__file__).parents[1] / "fixtures" / "dcgm"
NOBODY: Final = Owner(pod=None, namespace=None, uuids=frozenset())
CHAT: Final = Owner(pod="chat-0", namespace="llm", uuids=frozenset())
NOW: Final = 77 * NANOSECONDS
MIB: Final = 2**20
GPU: Final = "GPU-1"

REASONS = ("idle", "app_clocks", "sw_power_cap", "hw_slowdown", "sync_boost", "sw_thermal", "hw_thermal",
           "hw_power_brake", "display_clock", "other")  # fmt: skip
ACTIONS = ("none", "gpu_reset", "node_reboot", "drain_p2p", "drain_and_reset", "recover_imex_domain", "bus_reset",
           "system_reboot", "other")  # fmt: skip


def named(*uuids: str) -> Owner:
    return replace(NOBODY, uuids=frozenset(uuids))


def fixture(name: str) -> str:
    return (PAGES / name).read_text(encoding="utf-8")


def read(text: str, select: GpuSelect | tuple[str, ...] = GpuSelect.ALL, owner: Owner = NOBODY) -> GpusReading:
    return NodePage(select, owner, 60.0).read(text, NOW)


def uuids(text: str, select: GpuSelect | tuple[str, ...] = GpuSelect.OWN, owner: Owner = CHAT) -> list[str]:
    return sorted(gpu.uuid for gpu in read(text, select, owner).gpus)


def refusal(text: str, select: GpuSelect | tuple[str, ...] = GpuSelect.ALL, owner: Owner = NOBODY) -> tuple[str, str]:
    with pytest.raises(SourceError) as raised:
        read(text, select, owner)
    return raised.value.reason, raised.value.detail


def sample(name: str, value: object, uuid: str = GPU, **labels: str) -> str:
    return line(name, {"UUID": uuid, **labels}, value)


def line(name: str, labels: dict[str, str], value: object) -> str:
    escaped = {label: text.replace("\\", "\\\\").replace('"', '\\"') for label, text in labels.items()}
    pairs = ",".join(f'{label}="{text}"' for label, text in escaped.items())
    return f"{name}{{{pairs}}} {value}\n"


def throttled(*reasons: str) -> dict[tuple[Measure, str], float]:
    return {(Measure.THROTTLE_ACTIVE, reason): float(reason in reasons) for reason in REASONS}


def action(wanted: str) -> dict[tuple[Measure, str], float]:
    return {(Measure.RECOVERY_ACTION, name): float(name == wanted) for name in ACTIONS}


# Whole pages -----------------------------------------------------------------------------------------------------


def test_a_page_of_kubernetes_gives_the_pods_gpu_in_base_units():
    assert read(fixture("4.x-kubernetes.prom"), GpuSelect.OWN, CHAT) == GpusReading(
        gpus=(
            GpuReading(
                uuid="GPU-0a1b2c3d-0000-4000-8000-000000000001",
                index="0",
                name="NVIDIA H100 80GB HBM3",
                pci_bus_id="00000000:18:00.0",
                up=True,
                sampled=NOW,
                gauges={
                    (Measure.UTILIZATION, ""): 0.97,
                    (Measure.MEMORY_ACTIVITY, ""): 0.41,
                    (Measure.MEMORY_TOTAL, ""): 81559.0 * MIB,
                    (Measure.MEMORY_USED, ""): 74472.0 * MIB,
                    (Measure.MEMORY_FREE, ""): 6604.0 * MIB,
                    (Measure.MEMORY_RESERVED, ""): 483.0 * MIB,
                    (Measure.POWER, ""): 512.346,
                    (Measure.POWER_LIMIT, ""): 650.0,
                    (Measure.TEMPERATURE, "gpu"): 54.0,
                    (Measure.TEMPERATURE, "memory"): 61.0,
                    (Measure.TEMPERATURE_MARGIN, ""): 33.0,
                    (Measure.CLOCK, "sm"): 1.98e9,
                    (Measure.CLOCK, "memory"): 2.619e9,
                    (Measure.CLOCK_MAX, "sm"): 1.98e9,
                    (Measure.CLOCK_MAX, "memory"): 2.619e9,
                    (Measure.GRAPHICS_ACTIVE, ""): 0.953125,
                    (Measure.SM_ACTIVE, ""): 0.8125,
                    (Measure.SM_OCCUPANCY, ""): 0.25,
                    (Measure.TENSOR_ACTIVE, ""): 0.4375,
                    (Measure.DRAM_ACTIVE, ""): 0.625,
                    (Measure.NVLINK_RATE, "transmit"): 40e9,
                    (Measure.NVLINK_RATE, "receive"): 39e9,
                    (Measure.PCIE_RATE, "transmit"): 1.25e9,
                    (Measure.PCIE_RATE, "receive"): 2.5e9,
                    (Measure.REMAPPED_ROWS, "corrected"): 3.0,
                    (Measure.REMAPPED_ROWS, "uncorrected"): 1.0,
                    (Measure.ROW_REMAP_PENDING, ""): 1.0,
                    (Measure.ROW_REMAP_FAILED, ""): 0.0,
                    **throttled("sw_power_cap"),
                    **action("drain_and_reset"),
                },
                totals={
                    (Total.BUSY, ""): 0,
                    (Total.ENERGY, ""): 123_456_789_012_000_000,
                    (Total.THROTTLE, "sw_power_cap"): 5_500_000_000,
                    (Total.THROTTLE, "sync_boost"): 0,
                    (Total.THROTTLE, "thermal"): 0,
                    (Total.THROTTLE, "sw_thermal"): 1_000_000,
                    (Total.THROTTLE, "hw_thermal"): 0,
                    (Total.THROTTLE, "hw_power_brake"): 0,
                    (Total.ECC, "corrected,volatile"): 2,
                    (Total.ECC, "uncorrected,volatile"): 0,
                    (Total.ECC, "corrected,aggregate"): 9,
                    (Total.ECC, "uncorrected,aggregate"): 1,
                },
            ),
        ),
        driver=Driver(driver_version="580.95.05", nvml_version="", cuda_version=""),
    )


def test_old_names_of_labels_are_understood_and_old_texts_about_units_are_not_believed():
    """Pages up to 2025 say "in us" of what has always been nanoseconds, and "counter" of rates."""
    assert "constraints (in us)" in fixture("2.x-old-labels.prom")
    assert read(fixture("2.x-old-labels.prom"), GpuSelect.OWN, CHAT) == GpusReading(
        gpus=(
            GpuReading(
                uuid="GPU-11111111-2222-4333-8444-000000000001",
                index="0",
                name="NVIDIA A100-SXM4-80GB",
                up=True,
                sampled=NOW,
                gauges={
                    (Measure.UTILIZATION, ""): 0.55,
                    (Measure.MEMORY_ACTIVITY, ""): 0.2,
                    (Measure.MEMORY_TOTAL, ""): 81251.0 * MIB,
                    (Measure.MEMORY_USED, ""): 80000.0 * MIB,
                    (Measure.MEMORY_FREE, ""): 1251.0 * MIB,
                    (Measure.POWER, ""): 301.5,
                    (Measure.POWER_LIMIT, ""): 400.0,
                    (Measure.TEMPERATURE, "gpu"): 49.0,
                    (Measure.TEMPERATURE, "memory"): 58.0,
                    (Measure.CLOCK, "sm"): 1.41e9,
                    (Measure.CLOCK, "memory"): 1.593e9,
                    (Measure.GRAPHICS_ACTIVE, ""): 0.5,
                    (Measure.PCIE_RATE, "transmit"): 1e6,
                    (Measure.PCIE_RATE, "receive"): 2e6,
                    **throttled("sw_power_cap", "other"),
                },
                totals={
                    (Total.BUSY, ""): 0,
                    (Total.ENERGY, ""): 8_000_000_000_000,
                    (Total.THROTTLE, "sw_power_cap"): 7_000_000_000,
                    (Total.THROTTLE, "sync_boost"): 0,
                    (Total.THROTTLE, "thermal"): 3000,
                },
            ),
        )
    )


MIG_GPU: Final = "GPU-22222222-3333-4444-8555-000000000001"
SLICE_OF_CHAT: Final = MigReading(
    uuid=f"{MIG_GPU}/1",
    gpu_instance="1",
    compute_instance="",
    profile="3g.40gb",
    gauges={
        (Measure.MEMORY_TOTAL, ""): 40448.0 * MIB,
        (Measure.MEMORY_USED, ""): 32768.0 * MIB,
        (Measure.MEMORY_FREE, ""): 7424.0 * MIB,
        (Measure.MEMORY_RESERVED, ""): 256.0 * MIB,
        (Measure.GRAPHICS_ACTIVE, ""): 0.875,
        (Measure.TENSOR_ACTIVE, ""): 0.375,
        (Measure.DRAM_ACTIVE, ""): 0.625,
    },
)
OF_THE_WHOLE_MIG_GPU: Final = {
    (Measure.POWER, ""): 402.5,
    (Measure.TEMPERATURE, "gpu"): 47.0,
    (Measure.CLOCK, "sm"): 1.755e9,
    (Measure.REMAPPED_ROWS, "corrected"): 0.0,
    (Measure.REMAPPED_ROWS, "uncorrected"): 0.0,
    (Measure.ROW_REMAP_FAILED, ""): 0.0,
}


def test_a_mig_gpu_keeps_its_own_values_and_shows_the_pods_instance_alone():
    (gpu,) = read(fixture("mig.prom"), GpuSelect.OWN, CHAT).gpus
    assert gpu == GpuReading(
        uuid=MIG_GPU,
        index="0",
        name="NVIDIA H100 80GB HBM3",
        pci_bus_id="00000000:18:00.0",
        mig_mode="enabled",
        up=True,
        sampled=NOW,
        gauges={
            **OF_THE_WHOLE_MIG_GPU,
            (Measure.MEMORY_TOTAL, ""): 81559.0 * MIB,
            (Measure.MEMORY_USED, ""): 43000.0 * MIB,
            (Measure.MEMORY_FREE, ""): 37000.0 * MIB,
            (Measure.MEMORY_RESERVED, ""): 1559.0 * MIB,
            (Measure.GRAPHICS_ACTIVE, ""): 0.75,
            (Measure.TENSOR_ACTIVE, ""): 0.3125,
            (Measure.DRAM_ACTIVE, ""): 0.5,
            (Measure.PCIE_RATE, "transmit"): 1e6,
        },
        totals={(Total.ENERGY, ""): 6_000_000_000_000},
        instances=(SLICE_OF_CHAT,),
    )


def test_where_a_page_shows_instances_alone_what_is_true_of_the_card_is_the_gpus_and_their_utilisation_of_0_is_none():
    text = "".join(f"{line}\n" for line in fixture("mig.prom").splitlines() if "GPU_I_ID" in line)
    (gpu,) = read(text).gpus
    assert gpu.gauges == OF_THE_WHOLE_MIG_GPU
    assert gpu.totals == {(Total.ENERGY, ""): 6_000_000_000_000}
    assert [instance.uuid for instance in gpu.instances] == [f"{MIG_GPU}/1", f"{MIG_GPU}/2"]
    assert gpu.instances[0] == SLICE_OF_CHAT


def test_a_gpu_that_pods_share_is_one_gpu_with_what_it_does_as_a_whole():
    (gpu,) = read(fixture("time-slicing.prom"), GpuSelect.OWN, CHAT).gpus
    assert gpu.gauges == {
        (Measure.UTILIZATION, ""): 0.96,
        (Measure.MEMORY_TOTAL, ""): 23033.0 * MIB,
        (Measure.MEMORY_USED, ""): 18000.0 * MIB,
        (Measure.MEMORY_FREE, ""): 4563.0 * MIB,
        (Measure.MEMORY_RESERVED, ""): 470.0 * MIB,
        (Measure.POWER, ""): 70.125,
        (Measure.TEMPERATURE, "gpu"): 63.0,
        (Measure.CLOCK, "sm"): 2.04e9,
    }
    assert gpu.totals == {(Total.BUSY, ""): 0, (Total.ENERGY, ""): 500_000_000_000}


def test_the_order_of_a_page_changes_nothing():
    text = fixture("time-slicing.prom")
    backwards = "".join(f"{line}\n" for line in reversed(text.splitlines()) if not line.startswith("#"))
    assert read(backwards) == read(text)


def test_the_only_gpu_of_a_machine_without_pods_is_ours():
    (gpu,) = read(fixture("bare-metal.prom"), GpuSelect.OWN, NOBODY).gpus
    assert (gpu.uuid, gpu.name) == ("GPU-44444444-5555-4666-8777-000000000001", "NVIDIA GeForce RTX 4090")
    assert gpu.gauges == {
        (Measure.UTILIZATION, ""): 0.88,
        (Measure.MEMORY_ACTIVITY, ""): 0.3,
        (Measure.MEMORY_TOTAL, ""): 24564.0 * MIB,
        (Measure.MEMORY_USED, ""): 22000.0 * MIB,
        (Measure.MEMORY_FREE, ""): 2000.0 * MIB,
        (Measure.MEMORY_RESERVED, ""): 564.0 * MIB,
        (Measure.POWER, ""): 310.5,
        (Measure.TEMPERATURE, "gpu"): 58.0,
        (Measure.CLOCK, "sm"): 2.52e9,
        (Measure.CLOCK, "memory"): 10.501e9,
    }


def test_a_code_for_no_value_is_no_value():
    (gpu,) = read(fixture("blanks.prom")).gpus
    assert gpu.gauges == {(Measure.CLOCK, "sm"): 139e6, (Measure.CLOCK, "memory"): 405e6}
    assert gpu.totals == {}


# Fields ----------------------------------------------------------------------------------------------------------


def test_no_name_stands_in_the_table_twice():
    names = Counter(name for field in chain(GAUGES.values(), TOTALS.values()) for name in field.names)
    assert [name for name, count in names.items() if count > 1] == []
    assert set(names) < NAMES


@pytest.mark.parametrize("gauge", GAUGES, ids=lambda gauge: f"{gauge[0].name} {gauge[1]}")
def test_every_name_of_a_gauge_gives_it(gauge: tuple[Measure, str]) -> None:
    for name in GAUGES[gauge].names:
        assert list(dcgm_fields.gauges({name: 1.0})) == [gauge]


@pytest.mark.parametrize("counted", TOTALS, ids=lambda counted: f"{counted[0].name} {counted[1]}")
def test_every_name_of_a_total_gives_it(counted: tuple[Total, str]) -> None:
    for name in TOTALS[counted].names:
        assert list(dcgm_fields.totals({name: 1.0})) == [counted]


def test_the_newest_name_with_a_value_counts():
    values = {"DCGM_FI_DEV_POWER_MGMT_LIMIT": 700.0, "DCGM_FI_DEV_ENFORCED_POWER_LIMIT": 600.0}
    assert dcgm_fields.gauges(values) == {(Measure.POWER_LIMIT, ""): 600.0}
    assert dcgm_fields.gauges(values | {"DCGM_FI_DEV_ENFORCED_POWER_LIMIT": 2.0**47}) == {
        (Measure.POWER_LIMIT, ""): 700.0
    }


@pytest.mark.parametrize(
    ("values", "mib"),
    [
        ({"TOTAL": 100.0, "USED": 1.0, "FREE": 2.0}, 100),
        ({"USED": 1.0, "FREE": 2.0}, 3),
        ({"USED": 1.0, "FREE": 2.0, "RESERVED": 4.0}, 7),
        ({"USED": 1.0, "RESERVED": 4.0}, None),
        ({"FREE": 1.0, "RESERVED": 4.0}, None),
        ({"TOTAL": 2.0**63, "USED": 1.0, "FREE": 2.0, "RESERVED": 4.0}, 7),
    ],
)
def test_memory_in_all_is_what_the_page_says_or_its_parts(values: dict[str, float], mib: int | None) -> None:
    found = dcgm_fields.gauges({f"DCGM_FI_DEV_FB_{part}": value for part, value in values.items()})
    assert found.get((Measure.MEMORY_TOTAL, "")) == (None if mib is None else mib * MIB)


@pytest.mark.parametrize(
    ("mask", "reasons"),
    [
        (0, ()),
        (0x1, ("idle",)),
        (0x2 | 0x100, ("app_clocks", "display_clock")),
        (0x8 | 0x40, ("hw_slowdown", "hw_thermal")),
        (0x10 | 0x20 | 0x80, ("sync_boost", "sw_thermal", "hw_power_brake")),
        (0x200, ("other",)),
        (0x400 | 0x4, ("sw_power_cap", "other")),
    ],
)
@pytest.mark.parametrize("name", ["DCGM_FI_DEV_CLOCK_THROTTLE_REASONS", "DCGM_FI_DEV_CLOCKS_EVENT_REASONS"])
def test_reasons_for_slow_clocks_are_told_one_by_one(name: str, mask: int, reasons: tuple[str, ...]) -> None:
    assert dcgm_fields.gauges({name: float(mask)}) == throttled(*reasons)


@pytest.mark.parametrize(("number", "name"), [*enumerate(ACTIONS[:-1]), (len(ACTIONS) - 1, "other"), (1000, "other")])
def test_a_recovery_action_is_told_by_name(number: int, name: str) -> None:
    assert dcgm_fields.gauges({"DCGM_FI_DEV_GET_GPU_RECOVERY_ACTION": float(number)}) == action(name)


CODES: Final = [
    *range(0x7FFFFFF0, 0x7FFFFFF4),
    *range(0x7FFFFFFFFFFFFFF0, 0x7FFFFFFFFFFFFFF4),
    2.0**64,
    -1,
    -(2**63),
    math.nan,
    math.inf,
    -math.inf,
]


@pytest.mark.parametrize("value", [*CODES, *(2.0**47 + code for code in range(4))])
def test_no_gauge_takes_a_code_for_a_value(value: float) -> None:
    margins = {"DCGM_FI_DEV_GPU_TEMP_LIMIT", "DCGM_FI_DEV_GPU_TEMP_MARGIN_CELSIUS"}
    masks = {"DCGM_FI_DEV_CLOCKS_EVENT_REASONS", "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS"}
    assert dcgm_fields.gauges(dict.fromkeys(NAMES - margins - masks, float(value))) == {}


@pytest.mark.parametrize("value", CODES)
def test_no_total_nor_mask_takes_a_code_for_a_value(value: float) -> None:
    assert dcgm_fields.totals(dict.fromkeys(NAMES, float(value))) == {}
    assert dcgm_fields.gauges({"DCGM_FI_DEV_CLOCKS_EVENT_REASONS": float(value)}) == {}


def test_a_total_beyond_the_codes_of_doubles_is_a_value():
    """2^47 ns of throttling are 39 hours."""
    found = dcgm_fields.totals({"DCGM_FI_DEV_POWER_VIOLATION": 2.0**47 + 1})
    assert found == {(Total.THROTTLE, "sw_power_cap"): 2**47 + 1}


@pytest.mark.parametrize("percent", [100.5, 101.0, 255.0])
def test_a_utilisation_above_100_is_none(percent: float) -> None:
    assert dcgm_fields.gauges({"DCGM_FI_DEV_GPU_UTIL": percent, "DCGM_FI_DEV_MEM_COPY_UTIL": percent}) == {}


def test_every_whole_percentage_is_its_ratio():
    for percent in range(101):
        assert dcgm_fields.gauges({"DCGM_FI_DEV_GPU_UTIL": float(percent)}) == {
            (Measure.UTILIZATION, ""): percent / 100
        }


def test_a_gpu_that_is_too_hot_has_a_margin_below_0():
    assert dcgm_fields.gauges({"DCGM_FI_DEV_GPU_TEMP_LIMIT": -3.0}) == {(Measure.TEMPERATURE_MARGIN, ""): -3.0}


# Labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["UUID", "uuid", "gpu_uuid"])
@pytest.mark.parametrize("name", ["modelName", "model_name", "gpu_model"])
def test_every_spelling_of_a_label_is_understood(label: str, name: str) -> None:
    text = f'DCGM_FI_DEV_GPU_TEMP{{DCGM_FI_SYSTEM_DRIVER_VERSION="7",{name}="X",gpu="3",{label}="GPU-1"}} 5\n'
    reading = read(text)
    (gpu,) = reading.gpus
    assert (gpu.uuid, gpu.index, gpu.name, gpu.pci_bus_id) == ("GPU-1", "3", "X", "")
    assert reading.driver == Driver(driver_version="7", nvml_version="", cuda_version="")


def test_escaped_labels_are_read():
    text = r'DCGM_FI_DEV_GPU_TEMP{UUID="GPU-1",modelName="the \"big\" \\ one",gpu="0"} 5' + "\n"
    (gpu,) = read(text).gpus
    assert gpu.name == r'the "big" \ one'


def test_a_sample_that_names_no_gpu_or_one_of_its_links_is_passed_over():
    text = (
        'DCGM_FI_DEV_GPU_TEMP{gpu="0"} 99\n'
        'DCGM_FI_PROF_NVLINK_TX_BYTES{nvlink="0",gpu="0",gpu_uuid="GPU-1"} 5\n'
        'DCGM_FI_DEV_GPU_TEMP{gpu="0",UUID="GPU-1"} 50\n'
    )
    (gpu,) = read(text).gpus
    assert gpu.gauges == {(Measure.TEMPERATURE, "gpu"): 50.0}


def test_the_first_of_samples_with_the_same_labels_counts():
    text = sample("DCGM_FI_DEV_GPU_TEMP", 50) + sample("DCGM_FI_DEV_GPU_TEMP", 60)
    (gpu,) = read(text).gpus
    assert gpu.gauges == {(Measure.TEMPERATURE, "gpu"): 50.0}


def test_the_last_error_code_is_no_count_and_goes_nowhere():
    (gpu,) = read(sample("DCGM_FI_DEV_GPU_TEMP", 50) + sample("DCGM_FI_DEV_XID_ERRORS", 79, err_code="79")).gpus
    assert (list(gpu.gauges), gpu.totals) == ([(Measure.TEMPERATURE, "gpu")], {})


# Which GPUs are ours ---------------------------------------------------------------------------------------------


def util(uuid: str, **labels: str) -> str:
    return sample("DCGM_FI_DEV_GPU_UTIL", 50, uuid, **labels)


OURS: Final = util("GPU-1", pod="chat-0", namespace="llm")
THEIRS: Final = util("GPU-2", pod="batch-7", namespace="jobs")
IDLE: Final = util("GPU-3")
MIG_UUID: Final = "MIG-00000000-0000-4000-8000-000000000009"


def test_all_are_shown_where_the_config_says_so():
    assert uuids(OURS + THEIRS + IDLE, GpuSelect.ALL) == ["GPU-1", "GPU-2", "GPU-3"]


def test_those_that_the_config_names_are_shown():
    assert uuids(OURS + THEIRS + IDLE, ("GPU-3", "GPU-2", "GPU-9")) == ["GPU-2", "GPU-3"]


def test_of_own_gpus_those_that_the_engines_name_come_before_the_pods():
    assert uuids(OURS + THEIRS + IDLE, owner=replace(CHAT, uuids=frozenset({"GPU-2"}))) == ["GPU-2"]
    assert uuids(OURS + THEIRS + IDLE, owner=replace(CHAT, uuids=frozenset({MIG_UUID, "GPU-8"}))) == ["GPU-1"]


@pytest.mark.parametrize(
    ("labels", "namespace", "is_ours"),
    [
        ({"pod": "chat-0", "namespace": "llm"}, "llm", True),
        ({"pod": "chat-0", "namespace": "other"}, "llm", False),
        ({"pod": "chat-0", "namespace": "other"}, None, True),
        ({"pod": "chat-0"}, "llm", True),
        ({"pod": "chat-01", "namespace": "llm"}, "llm", False),
        ({"pod_name": "chat-0", "pod_namespace": "llm"}, "llm", True),
        ({"exported_pod": "chat-0", "exported_namespace": "llm", "pod": "dcgm-x", "namespace": "gpu"}, "llm", True),
        ({"exported_pod": "batch-7", "exported_namespace": "jobs", "pod": "chat-0", "namespace": "llm"}, "llm", False),
    ],
)
def test_a_pod_is_known_by_name_and_namespace_where_both_are_known(
    labels: dict[str, str], namespace: str | None, is_ours: bool
) -> None:
    text = util("GPU-1", **labels) + THEIRS
    owner = replace(CHAT, namespace=namespace)
    if is_ours:
        assert uuids(text, owner=owner) == ["GPU-1"]
    else:
        assert refusal(text, GpuSelect.OWN, owner)[0] == "not_ours"


def test_two_pods_of_one_gpu_both_have_it():
    shared = util("GPU-1", pod="embed-0", namespace="llm") + OURS
    assert uuids(shared) == uuids(shared, owner=replace(CHAT, pod="embed-0")) == ["GPU-1"]


@pytest.mark.parametrize(
    ("text", "owner", "words"),
    [
        (THEIRS + IDLE, CHAT, "the page shows 2 GPUs, and none belongs to pod chat-0; set gpu.select to UUIDs or all"),
        (THEIRS, CHAT, "the page shows 1 GPU, and none belongs to pod chat-0; set gpu.select to UUIDs or all"),
        (
            IDLE + util("GPU-4"),
            NOBODY,
            "the page shows 2 GPUs, and none is known to be ours: this pod's name is not known; "
            "set gpu.select to UUIDs or all",
        ),
        (IDLE, named("GPU-9"), "the page shows 1 GPU, and none is known to be ours: this pod's name is not known; "
                               "set gpu.select to UUIDs or all"),
        ("", CHAT, "the page shows no GPU; a dcgm-exporter shows none either until it has collected once"),
    ],
    ids=["others' and idle", "another's", "two and no pod", "another than the config names", "none"],
)  # fmt: skip
def test_where_nothing_says_that_a_gpu_is_ours_none_is(text: str, owner: Owner, words: str) -> None:
    assert refusal(text, GpuSelect.OWN, owner) == ("not_ours", words)


def test_where_none_is_one_that_the_config_names_that_is_said():
    words = "the page shows 1 GPU, and none is one that gpu.select names"
    assert refusal(OURS, ("GPU-9",), CHAT) == ("not_ours", words)


@pytest.mark.parametrize("owner", [NOBODY, CHAT, named(MIG_UUID)], ids=["nobody", "a pod", "a MIG UUID"])
def test_the_only_gpu_is_ours_whoever_we_are_where_no_pod_is_named(owner: Owner) -> None:
    assert uuids(IDLE, owner=owner) == ["GPU-3"]
    one_slice = sample("DCGM_FI_DEV_FB_USED", 1, "GPU-3", GPU_I_ID="1", GPU_I_PROFILE="7g.80gb")
    assert uuids(IDLE + one_slice, owner=owner) == ["GPU-3"]


def test_of_two_instances_without_a_pod_neither_is_known_to_be_ours():
    slices = [sample("DCGM_FI_DEV_FB_USED", 1, GPU_I_ID=number, GPU_I_PROFILE="3g.40gb") for number in "12"]
    assert refusal("".join(slices), GpuSelect.OWN, CHAT)[0] == "not_ours"


def test_a_gpu_that_is_named_shows_all_its_instances():
    (gpu,) = read(fixture("mig.prom"), (MIG_GPU,)).gpus
    assert [instance.profile for instance in gpu.instances] == ["3g.40gb", "4g.40gb"]


def test_a_whole_gpu_of_the_pod_shows_no_instance_of_others():
    text = sample("DCGM_FI_DEV_GPU_TEMP", 50, pod="chat-0") + sample(
        "DCGM_FI_DEV_FB_USED", 1, GPU_I_ID="1", GPU_I_PROFILE="1g.10gb", pod="batch-7"
    )
    (gpu,) = read(text, GpuSelect.OWN, CHAT).gpus
    assert (gpu.mig_mode, gpu.instances) == ("enabled", ())


def test_an_instance_of_a_gpu_that_says_nothing_itself_still_has_its_gpu():
    text = sample("DCGM_FI_DEV_FB_USED", 1, GPU_I_ID="5", GPU_I_PROFILE="1g.10gb", gpu="2", modelName="X")
    (gpu,) = read(text).gpus
    assert (gpu.uuid, gpu.index, gpu.name, gpu.gauges, gpu.totals) == (GPU, "2", "X", {}, {})
    assert [instance.gpu_instance for instance in gpu.instances] == ["5"]


# Other pages -----------------------------------------------------------------------------------------------------

A_DCGM_PAGE: Final = "expected the metrics page of a dcgm-exporter, found "


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<!doctype html><html></html>", "an HTML page"),
        ('{"status": "ok"}', "something else"),
        ("up 1\n", "something else"),
        ("vllm:generation_tokens_total 5\n", "the page of an inference engine; name that under engines"),
        ("llamacpp:tokens_predicted_total 5\n", "the page of an inference engine; name that under engines"),
        ('llmcost_gpu_up{uuid="dcgm_"} 1\n', "the page of this exporter itself"),
        ("nvidia_smi_gpu_info 1\n", "the page of an nvidia_gpu_exporter, which says nothing about pods"),
        ('node_cpu_seconds_total{cpu="0"} 1\n', "the page of a node_exporter; a dcgm-exporter listens on port 9400"),
        (
            '# TYPE DCGM_FI_DEV_XID_ERRORS gauge\nDCGM_FI_DEV_XID_ERRORS{UUID="GPU-1"} 0\n',
            "the page of a dcgm-exporter without a value that is known here; see its file of counters",
        ),
    ],
)
def test_another_page_is_told_by_what_it_looks_like(text: str, words: str) -> None:
    assert refusal(text) == ("not_dcgm", A_DCGM_PAGE + words)


def test_a_page_that_names_no_gpu_at_all_is_told():
    text = 'DCGM_FI_DEV_GPU_TEMP{gpu="0"} 50\n'
    assert refusal(text) == ("not_dcgm", "expected samples with a label UUID, found none")


@pytest.mark.parametrize("text", ["", "\n", " \n\n"])
def test_an_empty_page_shows_no_gpu(text: str) -> None:
    assert read(text) == GpusReading(gpus=())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('DCGM_FI_DEV_GPU_TEMP{UUID="GPU-1"} 5', "the page ends in the middle of line 1: "),
        ('DCGM_FI_DEV_GPU_TEMP{UUID="GPU-1"} warm\n', "line 1: expected a number, found 'warm'"),
        ('DCGM_FI_DEV_GPU_TEMP{UUID="GPU-1} 5\n', "line 1: expected a sample, found "),
    ],
)
def test_a_page_that_is_cut_or_garbled_is_refused(text: str, words: str) -> None:
    reason, detail = refusal(text)
    assert (reason, detail[: len(words)]) == ("malformed", words)


# Busy time -------------------------------------------------------------------------------------------------------


class Reads:
    """Reads of one GPU on a clock that is moved by hand."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.page = NodePage(GpuSelect.ALL, NOBODY, 60.0)

    def after(self, seconds: float, percent: float | None, uuid: str = GPU) -> int | None:
        """Let time pass, then read; returns the nanoseconds busy so far."""
        self.clock.advance(seconds)
        text = sample("DCGM_FI_DEV_GPU_TEMP", 50, uuid)
        text += sample("DCGM_FI_DEV_GPU_UTIL", percent, uuid) if percent is not None else ""
        (gpu,) = self.page.read(text, self.clock.now().monotonic).gpus
        return gpu.totals.get((Total.BUSY, ""))


def test_busy_time_is_utilisation_over_time_and_starts_at_0():
    reads = Reads()
    assert [reads.after(5, percent) for percent in (80, 80, 80, 40, 0, 100)] == [
        0, 4_000_000_000, 8_000_000_000, 10_000_000_000, 10_000_000_000, 15_000_000_000,
    ]  # fmt: skip


def test_a_value_that_comes_six_times_in_30_seconds_counts_for_30_seconds():
    reads = Reads()
    reads.after(0, 50)
    assert [reads.after(5, 50) for _ in range(6)][-1] == 15 * NANOSECONDS


def test_a_gap_too_long_for_one_value_to_speak_for_begins_anew():
    reads = Reads()
    reads.after(0, 100)
    assert reads.after(60, 100) == 60 * NANOSECONDS
    assert reads.after(60.001, 100) == 0
    assert reads.after(1, 100) == 1 * NANOSECONDS


def test_a_read_without_a_utilisation_counts_nothing_and_forgets_nothing():
    reads = Reads()
    reads.after(0, 100)
    assert reads.after(5, None) == 0
    assert reads.after(5, 100) == 5 * NANOSECONDS
    assert reads.after(5, 250) == 5 * NANOSECONDS


def test_a_gpu_whose_utilisation_was_never_known_has_no_busy_time():
    reads = Reads()
    assert [reads.after(5, None) for _ in range(3)] == [None, None, None]
    assert reads.after(5, 100) == 5 * NANOSECONDS


def test_each_gpu_has_a_time_of_its_own():
    reads = Reads()
    reads.after(0, 100)
    assert reads.after(5, 100, "GPU-2") == 0
    assert reads.after(5, 100) == 10 * NANOSECONDS
    assert reads.after(5, 50, "GPU-2") == 5 * NANOSECONDS


# Anything --------------------------------------------------------------------------------------------------------

RATIOS: Final = frozenset(measure for measure in Measure if measure.endswith("_ratio"))
STATES: Final = frozenset({
    Measure.THROTTLE_ACTIVE, Measure.RECOVERY_ACTION, Measure.ROW_REMAP_PENDING, Measure.ROW_REMAP_FAILED,
})  # fmt: skip

some_labels = st.dictionaries(
    st.sampled_from(["UUID", "uuid", "gpu_uuid", "gpu", "GPU_I_ID", "GPU_I_PROFILE", "modelName", "pod", "namespace",
                     "exported_pod", "pod_name", "nvlink", "DCGM_FI_DRIVER_VERSION", "hostname"]),
    st.sampled_from(["", "0", "1", "GPU-1", "GPU-2", "chat-0", "llm", 'a "quoted" \\ one']),
    max_size=6,
)  # fmt: skip
some_value = st.one_of(
    st.floats(width=64).map(repr),
    st.integers(-(2**65), 2**65).map(str),
    st.sampled_from(["0", "1", "100", "NaN", "+Inf", "-Inf", "2147483632", "9223372036854775794", "140737488355330.0"]),
)
some_sample = st.tuples(st.sampled_from([*sorted(NAMES), "DCGM_FI_DEV_XID_ERRORS", "up"]), some_labels, some_value)
some_select = st.sampled_from([GpuSelect.ALL, GpuSelect.OWN, ("GPU-1",)])


def in_range(gauges: Any) -> bool:
    for (measure, _), value in gauges.items():
        highest = 1.0 if measure in RATIOS | STATES else math.inf
        lowest = -1000.0 if measure is Measure.TEMPERATURE_MARGIN else 0.0
        if not (math.isfinite(value) and lowest <= value <= highest):
            return False
    return True


@settings(deadline=None)
@given(st.lists(some_sample, max_size=30), some_select, st.integers(0, 2**40))
def test_any_page_gives_readings_in_range_or_a_reason(
    samples: list[tuple[str, dict[str, str], str]], select: GpuSelect | tuple[str, ...], gap: int
) -> None:
    page = NodePage(select, CHAT, 60.0)
    for now in (NOW, NOW + gap):
        try:
            reading = page.read("".join(starmap(line, samples)), now)
        except SourceError as error:
            assert error.reason in ("not_dcgm", "not_ours")  # noqa: PT017
            return
        assert len({gpu.uuid for gpu in reading.gpus}) == len(reading.gpus)
        for gpu in reading.gpus:
            assert gpu.uuid
            assert in_range(gpu.gauges)
            assert all(in_range(instance.gauges) for instance in gpu.instances)
            assert all(str(total).isdigit() for total in gpu.totals.values())  # integers from 0 on


@settings(deadline=None)
@given(st.text(max_size=200))
def test_any_text_gives_readings_or_a_reason(text: str) -> None:
    for page in (text, f"DCGM_FI_DEV_GPU_TEMP{text}\n"):
        try:
            read(page)
        except SourceError as error:
            assert error.reason in ("not_dcgm", "malformed")  # noqa: PT017
