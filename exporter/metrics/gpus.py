"""The rows of GPUs. Absent means not known or not to be had on this GPU, which `gpu_field_supported` tells apart."""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from exporter.core.gpu_readings import Measure, Total
from exporter.core.gpus import GpuView
from exporter.core.snapshot import Snapshot
from exporter.metrics.row import Fleet, Row, Sample, Type

_GPU: Final = ("gpu", "uuid")
_NANO_TOTALS: Final = frozenset({Total.BUSY, Total.ENERGY, Total.THROTTLE, Total.POLL_SECONDS})


def _each_gpu(read: Callable[[GpuView], Iterable[Sample]]) -> Callable[[Snapshot], Iterator[Sample]]:
    """Read all GPUs one by one: `read` yields what stands behind the labels that all their families have."""

    def samples(snapshot: Snapshot) -> Iterator[Sample]:
        for view in snapshot.gpus.gpus:
            for labels, value in read(view):
                yield (view.reading.index, view.reading.uuid, *labels), value

    return samples


def _gauge(measure: Measure, fleet: Fleet, text: str, *labels: str) -> Row:
    return Row(measure, Type.GAUGE, text, (*_GPU, *labels), fleet, _family(measure, labels))


def _total(total: Total, text: str, *labels: str) -> Row:
    samples = _family(total, labels)
    return Row(total, Type.COUNTER, text, (*_GPU, *labels), Fleet.SUM, samples, stays=True, nano=total in _NANO_TOTALS)


def _family(family: str, labels: tuple[str, ...]) -> Callable[[Snapshot], Iterator[Sample]]:
    """Read one family; several further labels stand in it joined by commas."""

    @_each_gpu
    def samples(view: GpuView) -> Iterator[Sample]:
        for label, value in view.families.get(family, ()):
            yield tuple(label.split(",")) if labels else (), value

    return samples


def _each(name: str, text: str, value: Callable[[GpuView], float | None], fleet: Fleet = Fleet.NONE) -> Row:
    return Row(name, Type.GAUGE, text, _GPU, fleet, _each_gpu(lambda view: _number(value(view))))


def _instance(measure: Measure, fleet: Fleet, text: str) -> Row:
    @_each_gpu
    def samples(view: GpuView) -> Iterator[Sample]:
        for instance in view.reading.instances:
            if (measure, "") in instance.gauges:
                yield (instance.uuid,), instance.gauges[measure, ""]

    return Row(measure.replace("gpu_", "gpu_mig_", 1), Type.GAUGE, text, (*_GPU, "mig_uuid"), fleet, samples)


@_each_gpu
def _info(view: GpuView) -> Iterator[Sample]:
    gpu = view.reading
    yield (gpu.name, gpu.pci_bus_id, gpu.architecture, gpu.mig_mode), 1


@_each_gpu
def _instance_info(view: GpuView) -> Iterator[Sample]:
    for instance in view.reading.instances:
        yield (instance.uuid, instance.gpu_instance, instance.compute_instance, instance.profile), 1


@_each_gpu
def _supported(view: GpuView) -> Iterator[Sample]:
    return (((family,), float(has)) for family, has in view.reading.supported.items())


def _driver_info(snapshot: Snapshot) -> Iterator[Sample]:
    driver = snapshot.gpus.driver
    if driver is not None:
        yield (driver.driver_version, driver.nvml_version, driver.cuda_version), 1


def _source_info(snapshot: Snapshot) -> Iterator[Sample]:
    if snapshot.gpus.source:
        yield (snapshot.gpus.source, snapshot.gpus.reason), 1


def _number(number: float | None) -> Iterable[Sample]:
    return [] if number is None else [((), number)]


# fmt: off
GPUS: Final[tuple[Row, ...]] = (
    Row("gpu_info", Type.GAUGE,
        "What the GPU is; always 1. `gpu` is the driver's index and may change with a reboot, `uuid` does not.",
        (*_GPU, "name", "pci_bus_id", "architecture", "mig_mode"), Fleet.NONE, _info),
    _each("gpu_up",
        "1 where the GPU answered at the last look, by the driver within 15 s of it; 0 where it or its source is lost.",
        lambda view: float(view.reading.up)),
    _gauge(Measure.UTILIZATION, Fleet.NONE,
        "Share of time in which any kernel ran: a duty cycle, high already with one request; not how full the GPU is."),
    _total(Total.BUSY,
        "Integral of gpu_utilization_ratio over its one-second samples: rate() gives a mean that misses nothing."),
    _gauge(Measure.MEMORY_ACTIVITY, Fleet.NONE,
        "Share of time in which the GPU's memory was read or written; not how much of it is used."),
    _gauge(Measure.MEMORY_USED, Fleet.SUM,
        "Memory in use; an engine that takes all its memory when it starts keeps this flat by design."),
    _gauge(Measure.MEMORY_TOTAL, Fleet.SUM, "Memory of the GPU: used, free and reserved."),
    _gauge(Measure.MEMORY_FREE, Fleet.SUM, "Memory that nobody has taken."),
    _gauge(Measure.MEMORY_RESERVED, Fleet.SUM, "Memory that the driver keeps for itself."),
    _gauge(Measure.POWER, Fleet.SUM, "Power drawn now."),
    _gauge(Measure.POWER_LIMIT, Fleet.SUM, "Power that the GPU may draw."),
    _total(Total.ENERGY, "Energy drawn since the exporter began, by the GPU's own counter."),
    _gauge(Measure.TEMPERATURE, Fleet.MAX, "Temperature by sensor: gpu, or memory.", "sensor"),
    _gauge(Measure.TEMPERATURE_MARGIN, Fleet.NONE, "Degrees left before the GPU slows down."),
    _gauge(Measure.CLOCK, Fleet.NONE, "Clock now, by domain: sm, or memory.", "domain"),
    _gauge(Measure.CLOCK_MAX, Fleet.MAX, "The highest clock of the domain.", "domain"),
    _gauge(Measure.THROTTLE_ACTIVE, Fleet.MAX,
        "1 while the reason holds the clocks down. Only thermal ones and the power brake are faults.", "reason"),
    _total(Total.THROTTLE, "Time in which the reason held the clocks down.", "reason"),
    _gauge(Measure.GRAPHICS_ACTIVE, Fleet.NONE, "Share of time in which any engine of the GPU worked (GPM or DCGM)."),
    _gauge(Measure.SM_ACTIVE, Fleet.NONE, "Share of the multiprocessors that worked (GPM, Hopper and newer, or DCGM)."),
    _gauge(Measure.SM_OCCUPANCY, Fleet.NONE, "Share of the warps that were active (GPM or DCGM)."),
    _gauge(Measure.TENSOR_ACTIVE, Fleet.NONE, "Share of time in which the tensor cores worked (GPM or DCGM)."),
    _gauge(Measure.DRAM_ACTIVE, Fleet.NONE, "Share of the memory bandwidth in use (GPM or DCGM)."),
    _gauge(Measure.NVLINK_RATE, Fleet.SUM, "Traffic over NVLink: receive, or transmit (GPM or DCGM).", "direction"),
    _gauge(Measure.PCIE_RATE, Fleet.SUM, "Traffic over PCIe: receive, or transmit (GPM or DCGM).", "direction"),
    _total(Total.PCIE, "Bytes over PCIe since the exporter began: receive, or transmit.", "direction"),
    _total(Total.ECC,
        "Memory errors as the GPU counts them: volatile since the driver was loaded, aggregate in its whole life.",
        "severity", "lifetime"),
    _gauge(Measure.REMAPPED_ROWS, Fleet.SUM, "Memory rows that were replaced after errors.", "cause"),
    _gauge(Measure.ROW_REMAP_PENDING, Fleet.MAX, "1 where a row waits for a reset of the GPU to be replaced."),
    _gauge(Measure.ROW_REMAP_FAILED, Fleet.MAX, "1 where a row could not be replaced: the GPU needs service."),
    _gauge(Measure.RECOVERY_ACTION, Fleet.MAX,
        "1 for what the GPU asks to be done: none, or a reset, a reboot, a drain.", "action"),
    _total(Total.XID, "Errors that the driver reported, by XID, since the exporter began.", "xid"),
    _gauge(Measure.XID_LAST, Fleet.MAX, "When the XID was last reported.", "xid"),
    Row("gpu_mig_info", Type.GAUGE,
        "MIG instances of the GPU: GPU instance, compute instance and profile; always 1.",
        (*_GPU, "mig_uuid", "gi", "ci", "profile"), Fleet.NONE, _instance_info),
    _instance(Measure.MEMORY_USED, Fleet.SUM, "Memory in use of the instance; never to be added to its GPU's."),
    _instance(Measure.MEMORY_TOTAL, Fleet.SUM, "Memory of the instance; never to be added to its GPU's."),
    _instance(Measure.GRAPHICS_ACTIVE, Fleet.NONE,
        "Share of time in which any engine of the instance worked (GPM or DCGM)."),
    _instance(Measure.SM_ACTIVE, Fleet.NONE, "Share of the instance's multiprocessors that worked (GPM or DCGM)."),
    _instance(Measure.TENSOR_ACTIVE, Fleet.NONE,
        "Share of time in which the instance's tensor cores worked (GPM or DCGM)."),
    _instance(Measure.DRAM_ACTIVE, Fleet.NONE, "Share of the instance's memory bandwidth in use (GPM or DCGM)."),
    Row("gpu_field_supported", Type.GAUGE,
        "Whether the GPU has what a family shows: 0 explains why the family is absent.",
        (*_GPU, "field"), Fleet.NONE, _supported),
    _each("gpu_sample_age_seconds",
        "Time since the GPU last answered; after 15 s its gauges are gone and gpu_up is 0.",
        lambda view: view.age_seconds, Fleet.MAX),
    _each("nvml_call_stuck_seconds",
        "How long the driver has been holding a call on the GPU; 0 where none is under way.",
        lambda view: view.reading.stuck_seconds, Fleet.MAX),
    _total(Total.POLLS, "Times that the GPU was asked and answered."),
    _total(Total.POLL_SECONDS, "Time that asking the GPU took."),
    Row("nvml_errors_total", Type.COUNTER,
        "Calls of NVML that failed, but for what a GPU does not have.",
        ("call", "error"), Fleet.SUM, lambda snapshot: snapshot.gpus.errors.items(), stays=True),
    Row("nvml_info", Type.GAUGE,
        "The driver's versions; always 1.",
        ("driver_version", "nvml_version", "cuda_version"), Fleet.NONE, _driver_info),
    Row("gpu_source_info", Type.GAUGE,
        "Who is asked about GPUs (nvml, dcgm or none), and why not the one before it; always 1.",
        ("source", "reason"), Fleet.NONE, _source_info),
    Row("gpus_visible", Type.GAUGE,
        "GPUs that the source shows.",
        (), Fleet.SUM, lambda snapshot: _number(snapshot.gpus.visible)),
    Row("gpus_expected", Type.GAUGE,
        "GPUs that the config's engines are charged for.",
        (), Fleet.SUM, lambda snapshot: _number(snapshot.gpus.expected)),
    Row("engine_gpu_info", Type.GAUGE,
        "Which GPUs an engine has, to join the two; absent where the config and the GPUs do not tell. Always 1.",
        ("engine", *_GPU), Fleet.NONE, lambda snapshot: ((identity, 1) for identity in snapshot.gpus.engines)),
)
# fmt: on
