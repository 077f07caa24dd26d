"""The page of a node's dcgm-exporter, as a reading of the GPUs that are ours."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import aiohttp

from exporter.clock import NANOSECONDS, Clock
from exporter.config import units
from exporter.config.model import Gpu, GpuSelect
from exporter.core.gpu_readings import Driver, GpuReading, GpusReading, Measure, MigReading, Total
from exporter.sources import dcgm_fields
from exporter.sources.exposition import ExpositionError, Page, Sample
from exporter.sources.http import REASONS, Request, SourceError, get, metrics_url

_LONGEST_GAP_SECONDS: Final = 60.0
_LONGEST_GAP_READS: Final = 3
_SIGNS: Final = ("DCGM_FI_", "dcgm_")
_MIG: Final = "MIG-"
_LINK: Final = "nvlink"  # a label of one link of a GPU, which is not the GPU

# By which labels a page tells what is what, newest first. Where Prometheus has relabelled a page on its way, `pod` is
# the dcgm-exporter's own, and what the page itself said is `exported_pod`.
_LABELS: Final[Mapping[str, tuple[str, ...]]] = {
    "uuid": ("UUID", "uuid", "gpu_uuid"),
    "instance": ("GPU_I_ID",),
    "profile": ("GPU_I_PROFILE",),
    "index": ("gpu",),
    "name": ("modelName", "model_name", "gpu_model"),
    "pci_bus_id": ("pci_bus_id",),
    "driver_version": ("DCGM_FI_DRIVER_VERSION", "DCGM_FI_SYSTEM_DRIVER_VERSION"),
    "pod": ("exported_pod", "pod", "pod_name"),
    "namespace": ("exported_namespace", "namespace", "pod_namespace"),
}

# Pages that are often pointed at by mistake.
_OTHERS: Final = {
    "llmcost_": "the page of this exporter itself",
    "vllm:": "the page of an inference engine; name that under engines",
    "llamacpp:": "the page of an inference engine; name that under engines",
    "nvidia_smi_": "the page of an nvidia_gpu_exporter, which says nothing about pods",
    "node_cpu_seconds_total": "the page of a node_exporter; a dcgm-exporter listens on port 9400",
    "DCGM_FI_": "the page of a dcgm-exporter without a value that is known here; see its file of counters",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Whose GPUs are ours: those of a pod, where one is known, and those that the config names by UUID."""

    pod: str | None
    namespace: str | None
    uuids: frozenset[str]


@dataclass(frozen=True, slots=True)
class Device:
    """What a page says of one GPU, or of one MIG instance of it: the first value by name, and all owners."""

    labels: Mapping[str, str]  # by the keys of _LABELS, "" where the page does not tell
    values: dict[str, float] = field(default_factory=dict)
    owners: set[tuple[str, str]] = field(default_factory=set)


Devices = Mapping[tuple[str, str], Device]  # by the GPU's UUID and the instance, "" for the GPU itself


class DcgmSource:
    """Reads one dcgm-exporter."""

    source = "gpu"
    target = "dcgm"
    reasons = (*REASONS, "environment", "not_dcgm", "not_ours")

    def __init__(
        self,
        gpu: Gpu,
        owner: Owner,
        session: aiohttp.ClientSession,
        clock: Clock,
        timeout_seconds: float,
        environ: Mapping[str, str],
    ) -> None:
        self._address, self._environ = gpu.dcgm_url or "", environ
        self._session, self._timeout_seconds, self._clock = session, timeout_seconds, clock
        self._page = NodePage(gpu.select, owner, max(_LONGEST_GAP_SECONDS, _LONGEST_GAP_READS * timeout_seconds))

    async def read(self) -> GpusReading:
        """Read the page once.

        Raises:
            SourceError: there is no reading this time, and why.
        """
        url = _filled(self._address, self._environ)
        response = await get(self._session, Request(url=url, timeout_seconds=self._timeout_seconds))
        return self._page.read(response.text(), self._clock.now().monotonic)


class NodePage:
    """Understands one node's pages, one after another."""

    def __init__(self, select: GpuSelect | tuple[str, ...], owner: Owner, longest_gap_seconds: float) -> None:
        self._select, self._owner = select, owner
        self._page = Page(dcgm_fields.NAMES.__contains__)
        self._busy = Busy(longest_gap_seconds)

    def read(self, text: str, now: int) -> GpusReading:
        """Return what a page that came at the monotonic nanosecond `now` says of our GPUs.

        Raises:
            SourceError: it is no page of a dcgm-exporter, or none of its GPUs is ours.
        """
        devices = _devices(self._samples(text))
        ours = choose(devices, self._select, self._owner)
        gpus = tuple(self._gpu(uuid, ours, devices, now) for uuid in dict.fromkeys(uuid for uuid, _ in ours))
        version = next(filter(None, (device.labels["driver_version"] for device in ours.values())), "")
        driver = Driver(driver_version=version, nvml_version="", cuda_version="") if version else None
        return GpusReading(gpus=gpus, driver=driver)

    def _samples(self, text: str) -> Sequence[Sample]:
        if not text.strip():
            return ()  # what a dcgm-exporter writes that sees no GPU, or has not collected yet
        try:
            samples = self._page.read(text) if any(sign in text for sign in _SIGNS) else ()
        except ExpositionError as error:
            raise SourceError("malformed", str(error)) from error
        if not samples:
            found = next((what for sign, what in _OTHERS.items() if sign in text), "something else")
            found = "an HTML page" if text.lstrip()[:1] == "<" else found
            raise SourceError("not_dcgm", f"expected the metrics page of a dcgm-exporter, found {found}")
        return samples

    def _gpu(self, uuid: str, ours: Devices, devices: Devices, now: int) -> GpuReading:
        instances = {instance: device for (gpu, instance), device in ours.items() if gpu == uuid and instance}
        whole = devices.get((uuid, "")) or Device(next(iter(instances.values())).labels)
        gauges, totals = dcgm_fields.gauges(whole.values), dcgm_fields.totals(whole.values)
        busy = self._busy.add(uuid, gauges.get((Measure.UTILIZATION, "")), now)
        if busy is not None:
            totals[Total.BUSY, ""] = busy
        return GpuReading(
            uuid=uuid,
            index=whole.labels["index"],
            name=whole.labels["name"],
            pci_bus_id=whole.labels["pci_bus_id"],
            mig_mode="enabled" if any(gpu == uuid and instance for gpu, instance in devices) else "",
            up=True,
            sampled=now,
            gauges=gauges,
            totals=totals,
            instances=tuple(_instance(uuid, *instance) for instance in instances.items()),
        )


class Busy:
    """How long GPUs have been busy: their utilisation integrated over the reads, by UUID, in nanoseconds.

    A dcgm-exporter collects every 30 s, so the same value comes several times; each stands for its own stretch.
    """

    def __init__(self, longest_gap_seconds: float) -> None:
        self._longest_gap = longest_gap_seconds * NANOSECONDS
        self._last: dict[str, int] = {}
        self._totals: dict[str, int] = {}

    def add(self, uuid: str, utilization: float | None, now: int) -> int | None:
        """Count the time since the last read of a GPU; None while its utilisation has never been known.

        Nothing is counted for a read without a value. A gap too long for one value to speak for begins anew.
        """
        gap = now - self._last.get(uuid, now)
        self._last[uuid] = now
        if gap > self._longest_gap:
            self._totals.pop(uuid, None)
        elif utilization is not None:
            self._totals[uuid] = self._totals.get(uuid, 0) + round(utilization * gap)
        return self._totals.get(uuid, 0 if utilization is not None else None)


def choose(devices: Devices, select: GpuSelect | tuple[str, ...], owner: Owner) -> Devices:
    """Choose the devices to show: what cannot be told to be ours is not.

    Raises:
        SourceError: none of them is ours.
    """
    if select is GpuSelect.ALL:
        return devices
    named = owner.uuids if select is GpuSelect.OWN else frozenset(select)
    found = {key: device for key, device in devices.items() if key[0] in named}
    if not found and select is GpuSelect.OWN:
        found = {key: device for key, device in devices.items() if _is_of(device, owner)}
    if not found and select is GpuSelect.OWN and _is_alone(devices, owner):
        return devices
    if not found:
        raise SourceError("not_ours", _none_of(devices, select, owner))
    return found


def _is_of(device: Device, owner: Owner) -> bool:
    """Tell whether a device is the pod's; a namespace that one side does not know is no difference."""
    return any(
        pod == owner.pod and (owner.namespace is None or namespace in ("", owner.namespace))
        for pod, namespace in device.owners
    )


def _is_alone(devices: Devices, owner: Owner) -> bool:
    """Tell whether there is but one GPU, without pods, and the config names no other; a MIG UUID is on no page."""
    is_owned = any(device.owners for device in devices.values())
    is_another = any(not uuid.startswith(_MIG) for uuid in owner.uuids)
    is_one = len({uuid for uuid, _ in devices}) == 1 and sum(bool(instance) for _, instance in devices) <= 1
    return is_one and not is_owned and not is_another


def _none_of(devices: Devices, select: GpuSelect | tuple[str, ...], owner: Owner) -> str:
    count = len({uuid for uuid, _ in devices})
    if not count:
        return "the page shows no GPU; a dcgm-exporter shows none either until it has collected once"
    shown = f"the page shows {count} GPU{'s' * (count > 1)}, and none"
    if select is not GpuSelect.OWN:
        return f"{shown} is one that gpu.select names"
    if owner.pod is None:
        return f"{shown} is known to be ours: this pod's name is not known; set gpu.select to UUIDs or all"
    return f"{shown} belongs to pod {owner.pod}; set gpu.select to UUIDs or all"


def _devices(samples: Sequence[Sample]) -> Devices:
    """Sort samples by device.

    A shared device comes once for each pod, with its own value or with what the pod's processes have of it; beside the
    latter stands, without a pod, its own. So these go first.
    """
    devices: dict[tuple[str, str], Device] = {}
    labelled = [(_told(labels), name, value) for name, labels, value in samples]
    for told, name, value in sorted(labelled, key=lambda sample: bool(sample[0]["pod"])):
        if not told["uuid"] or (told["instance"] and name in dcgm_fields.NAMES_UNKNOWN_TO_AN_INSTANCE):
            continue
        instance = told["instance"] if name in dcgm_fields.NAMES_OF_AN_INSTANCE else ""
        device = devices.setdefault((told["uuid"], instance), Device(told))
        device.values.setdefault(name, value)
        if told["pod"]:
            device.owners.add((told["pod"], told["namespace"]))
    if samples and not devices:
        raise SourceError("not_dcgm", "expected samples with a label UUID, found none")
    return devices


@lru_cache(maxsize=4096)
def _told(labels: tuple[tuple[str, str], ...]) -> Mapping[str, str]:
    """Return what the labels of a sample say about its device, and whose that is."""
    given = dict(labels)
    told = {what: next(filter(None, map(given.get, names)), "") for what, names in _LABELS.items()}
    return told | {"uuid": ""} if _LINK in given else told


def _instance(uuid: str, instance: str, device: Device) -> MigReading:
    """DCGM does not know the UUID of an instance: it gets a name that is none of the driver's."""
    return MigReading(
        uuid=f"{uuid}/{instance}",
        gpu_instance=instance,
        compute_instance="",
        profile=device.labels["profile"],
        gauges=dcgm_fields.gauges(device.values),
    )


def _filled(template: str, environ: Mapping[str, str]) -> str:
    """Return the address to ask, with what the environment says today; it is shown nowhere, as it may be secret.

    Raises:
        SourceError: the environment lacks a name, or what it says makes no address.
    """
    missing = [name for name in units.VARIABLE.findall(template) if not environ.get(name)]
    if missing:
        raise SourceError("environment", f"gpu.dcgm_url needs {missing[0]}, which the environment does not have")
    address = units.VARIABLE.sub(lambda match: _host(environ[match[1]]), template)
    try:
        return metrics_url(units.URL.parse(address))
    except ValueError as error:
        raise SourceError("environment", "gpu.dcgm_url is no address once it is filled in") from error


def _host(value: str) -> str:
    """Return what may stand in an address: there, an IPv6 address has brackets."""
    return f"[{value}]" if value.count(":") > 1 and re.fullmatch("[0-9a-fA-F:.]+", value) else value
