"""Every GPU that was ever seen: what it counted, through losses and restarts of its driver, and who pays for it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain
from math import ceil
from typing import Final

from exporter.config.model import Engine, GpuShare
from exporter.core.gpu_readings import GpuReading, GpusReading, Measure, Total
from exporter.core.money import NANO
from exporter.core.windows import MINUTE, History

Shares = Mapping[str, Fraction]  # by UUID: how much of that GPU

_MEMORY: Final = 6 * MINUTE
_AS_THE_DEVICE_COUNTS: Final = frozenset({Total.ECC, Total.XID})


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuView:
    """One GPU as its last reading left it.

    `families` has its gauges and totals by family, each with the value of its further label. Totals begin at 0 with us,
    but for errors, which the device counts.
    """

    reading: GpuReading
    age_seconds: float | None
    families: Mapping[str, Sequence[tuple[str, float]]]

    def gauge(self, measure: Measure, label: str = "") -> float | None:
        """Return one gauge, None where it is not known."""
        return self.reading.gauges.get((measure, label))


class _Gpu:
    """What is remembered of one GPU."""

    def __init__(self, reading: GpuReading) -> None:
        self.last = reading
        self.totals: dict[tuple[Total, str], int] = {}
        self.drawn: int | None = None  # nanojoules since the reading before; None before there are two
        self.busy = _new_history()
        self._counted: dict[tuple[Total, str], int] = {}

    def advance(self, reading: GpuReading) -> None:
        """Take the next reading."""
        self._rest()
        for key, value in reading.totals.items():
            before = self._counted.get(key)
            moved = _moved(key[0], before, value)
            self.totals[key] = value if key[0] in _AS_THE_DEVICE_COUNTS else self.totals.get(key, 0) + moved
            if key == (Total.ENERGY, "") and before is not None:
                self.drawn = moved
        self._counted |= reading.totals
        if (Measure.UTILIZATION, "") not in reading.gauges:
            self.busy = _new_history()  # time of which nothing is known must not count as idle
        elif reading.sampled is not None and (reading.sampled != self.last.sampled or not len(self.busy)):
            self.busy.append(reading.sampled, self.totals.get((Total.BUSY, ""), 0))
        self.last = reading

    def _rest(self) -> None:
        """Until something is read, nothing was drawn: what a counter says later holds for all the time before."""
        if self.drawn is not None:
            self.drawn = 0

    def lose(self) -> None:
        """No source says anything of it any more."""
        self._rest()
        self.busy = _new_history()
        self.last = replace(self.last, up=False, gauges={}, instances=(), stuck_seconds=0.0)

    def busy_ratio(self, window: int) -> float | None:
        """Return the mean share of busy time in the last nanoseconds; None where it is not known."""
        if (Measure.UTILIZATION, "") not in self.last.gauges or len(self.busy) < 2:  # noqa: PLR2004 - two ends
            return None
        until, busy_now = self.busy.before(self.last.sampled or 0)
        since, busy_then = self.busy.before(until - window)
        return min((busy_now - busy_then) / (until - since), 1.0) if until > since else None


def _new_history() -> History[int]:
    return History(fine=_MEMORY, keep=_MEMORY)


def _moved(total: Total, before: int | None, now: int) -> int:
    """Return what was counted since; a counter that fell has begun anew, or wrapped where that is known to happen."""
    if before is None:
        return 0
    if now >= before:
        return now - before
    return 0 if total is Total.PCIE else now


class GpuMeter:
    """Follows all GPUs from beat to beat."""

    def __init__(self) -> None:
        self._gpus: dict[str, _Gpu] = {}

    def advance(self, reading: GpusReading | None) -> None:
        """Take a beat's reading; None where there was none."""
        found = {gpu.uuid: gpu for gpu in reading.gpus} if reading else {}
        for uuid, gpu in found.items():
            self._gpus.setdefault(uuid, _Gpu(gpu)).advance(gpu)
        for uuid in self._gpus.keys() - found.keys():
            self._gpus[uuid].lose()

    def views(self, now: int) -> tuple[GpuView, ...]:
        """Return all GPUs in order of their index, with each reading's age at a monotonic nanosecond."""
        gpus = sorted(self._gpus.values(), key=lambda gpu: (len(gpu.last.index), gpu.last.index, gpu.last.uuid))
        return tuple(
            GpuView(reading=gpu.last, age_seconds=_age(gpu.last, now), families=_by_family(gpu)) for gpu in gpus
        )

    def shares(self, engines: Iterable[Engine]) -> dict[str, Shares]:
        """Say for each engine which GPUs it has, and how much of each; nothing where nobody can tell.

        A list of devices tells. A number tells where as many GPUs are there as all numbers together want, and either
        one engine wants them all or there is but one.
        """
        engines = tuple(engines)
        listed = {engine.name: self._listed(engine) for engine in engines if not isinstance(engine.gpus, Fraction)}
        taken = {uuid for shares in listed.values() for uuid in shares}
        free = [uuid for uuid in self._gpus if uuid not in taken]
        numbers = {engine.name: engine.gpus for engine in engines if isinstance(engine.gpus, Fraction) and engine.gpus}
        if free and len(free) == ceil(sum(numbers.values())) and (len(free) == 1 or len(numbers) == 1):
            for name, number in numbers.items():
                listed[name] = dict.fromkeys(free, number / len(free))
        return listed

    def _listed(self, engine: Engine) -> Shares:
        shares: dict[str, Fraction] = {}
        for gpu in engine.gpus if not isinstance(engine.gpus, Fraction) else ():
            share = gpu if isinstance(gpu, GpuShare) else GpuShare(uuid=gpu)
            parent = self._parent(share.uuid)
            shares[parent] = shares.get(parent, Fraction(0)) + share.fraction
        return shares

    def _parent(self, uuid: str) -> str:
        """Return the GPU that a MIG instance is part of, where it is known; any other UUID as it is."""
        for parent, gpu in self._gpus.items():
            if any(instance.uuid == uuid for instance in gpu.last.instances):
                return parent
        return uuid

    def names(self, shares: Shares) -> dict[str, Fraction]:
        """Return the product names of an engine's GPUs, and how much of each it has; nothing where one is not known."""
        found: dict[str, Fraction] = {}
        for uuid, share in shares.items():
            if uuid not in self._gpus or not self._gpus[uuid].last.name:
                return {}
            name = self._gpus[uuid].last.name
            found[name] = found.get(name, Fraction(0)) + share
        return found

    def drawn(self, shares: Shares) -> Fraction | None:
        """Return the energy that one average GPU of an engine drew since the reading before, in nanojoules.

        None where there are no GPUs, or one of them has never said how much it draws.
        """
        drawn = [(self._gpus[uuid].drawn if uuid in self._gpus else None, share) for uuid, share in shares.items()]
        known = [(energy, share) for energy, share in drawn if energy is not None]
        if not known or len(known) < len(drawn):
            return None
        return sum((energy * share for energy, share in known), Fraction(0)) / sum(share for _, share in known)

    def all_up(self, shares: Shares) -> bool:
        """Tell whether all of an engine's GPUs answered at the last reading."""
        return all(uuid in self._gpus and self._gpus[uuid].last.up for uuid in shares)

    def busy_ratio(self, shares: Shares, window: int = MINUTE) -> float | None:
        """Return the mean busy time of an engine's GPUs over a window (nanoseconds); None where one is not known."""
        ratios = [self._gpus[uuid].busy_ratio(window) if uuid in self._gpus else None for uuid in shares]
        known = [ratio for ratio in ratios if ratio is not None]
        return sum(known) / len(known) if known and len(known) == len(ratios) else None

    def identities(self, shares: Shares) -> list[tuple[str, str]]:
        """Return (index, UUID) of an engine's GPUs that have been seen."""
        return [(self._gpus[uuid].last.index, uuid) for uuid in shares if uuid in self._gpus]


def expected(engines: Iterable[Engine]) -> int:
    """Return how many GPUs the config speaks of; all MIG instances count as one GPU, which is the least."""
    numbers, uuids = Fraction(0), set()
    for engine in engines:
        if isinstance(engine.gpus, Fraction):
            numbers += engine.gpus
        else:
            uuids |= {gpu if isinstance(gpu, str) else gpu.uuid for gpu in engine.gpus}
    whole = {uuid for uuid in uuids if not uuid.startswith("MIG-")}
    return ceil(numbers) + len(whole) + (len(uuids) > len(whole))


def _by_family(gpu: _Gpu) -> dict[str, list[tuple[str, float]]]:
    families: dict[str, list[tuple[str, float]]] = {}
    for (family, label), value in chain(gpu.last.gauges.items(), gpu.totals.items()):
        families.setdefault(family, []).append((label, value))
    return families


def _age(reading: GpuReading, now: int) -> float | None:
    return None if reading.sampled is None else max(now - reading.sampled, 0) / NANO
