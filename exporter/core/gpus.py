"""Every GPU that was ever seen: what it counted, through losses and restarts of its driver, and who pays for it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain
from math import ceil
from typing import Final

import msgspec

from exporter.config.model import Engine, GpuShare
from exporter.core.gpu_readings import GpuReading, GpusReading, Measure, Total
from exporter.core.money import NANO
from exporter.core.windows import MINUTE, History

Shares = Mapping[str, Fraction]  # by UUID: how much of that GPU

_MIG: Final = "MIG-"
_MEMORY: Final = 6 * MINUTE
_BUSY: Final = (Total.BUSY, "")
_ENERGY: Final = (Total.ENERGY, "")
_MOST_A_NANOSECOND: Final = {Total.BUSY: 1, Total.THROTTLE: 1, Total.ENERGY: 3000}  # 3 kW: no GPU draws as much
_SLACK: Final = 90 * NANO  # a dcgm-exporter's figures may be that old
_AS_THE_DEVICE_COUNTS: Final = frozenset({Total.ECC})
_COUNTED_BY_US: Final = frozenset({Total.XID, Total.PCIE})  # from 0 on


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


class KnownGpu(msgspec.Struct):
    """What money must not forget of one GPU, also through a restart of ours: its name, and its counter of energy."""

    name: str = ""
    nanojoules: int | None = None  # as its counter last stood
    read: int = 0  # when it stood so: monotonic nanoseconds, in a state Unix nanoseconds
    is_left_out: bool = False  # what it draws until its counter is read again

    def advance(self, reading: GpuReading) -> int | None:
        """Take the next reading; returns the nanojoules drawn since the one before, None before any was read."""
        self.name = reading.name or self.name
        before, now = self.nanojoules, reading.totals.get(_ENERGY)
        if now is None:
            return None if before is None else 0
        gap = max((reading.sampled or 0) - self.read, 0)
        moved = 0 if self.is_left_out else _plausible(Total.ENERGY, _moved(Total.ENERGY, before, now), gap)
        self.nanojoules, self.read, self.is_left_out = now, reading.sampled or 0, False
        return None if before is None else moved


class GpusState(msgspec.Struct):
    """What a restart of ours must not forget of all GPUs; `present` and `shown` are as the last reading had them."""

    gpus: dict[str, KnownGpu]
    parents: dict[str, str]
    present: list[str]
    shown: int


class _Gpu:
    """What the page remembers of one GPU."""

    def __init__(self, reading: GpuReading) -> None:
        self.last = reading
        self.totals: dict[tuple[Total, str], int] = {}
        self.busy = _new_history()
        self._counted: dict[tuple[Total, str], tuple[int, int]] = {}  # value, and monotonic nanosecond

    def advance(self, reading: GpuReading) -> None:
        """Take the next reading."""
        now = reading.sampled or 0
        began_anew = reading.totals.get(_BUSY, 0) < self._counted.get(_BUSY, (0, 0))[0]
        for key, value in reading.totals.items():
            before, counted = self._counted.get(key, (None, now))
            moved = _plausible(key[0], _moved(key[0], before, value), max(now - counted, 0))
            self.totals[key] = value if key[0] in _AS_THE_DEVICE_COUNTS else self.totals.get(key, 0) + moved
            self._counted[key] = value, now
        is_known = (Measure.UTILIZATION, "") in reading.gauges
        if began_anew or not is_known:
            self.busy = _new_history()  # time of which nothing is known must not count as idle
        if is_known and reading.sampled is not None:
            self.busy.append(reading.sampled, self.totals.get(_BUSY, 0))
        self.last = reading

    def lose(self) -> None:
        """No source says anything of it any more."""
        self.busy = _new_history()
        self.last = replace(self.last, up=False, gauges={}, instances=(), stuck_seconds=None)

    def busy_ratio(self, window: int) -> float | None:
        """Return the mean share of busy time in the last nanoseconds; None where it is not known."""
        if not len(self.busy):
            return None
        until, busy_now = self.busy.before(self.last.sampled or 0)
        since, busy_then = self.busy.before(until - window)
        return min((busy_now - busy_then) / (until - since), 1.0) if until > since else None


def _new_history() -> History[int]:
    return History(fine=_MEMORY, keep=_MEMORY)


def _moved(total: Total, before: int | None, now: int) -> int:
    """Return what was counted since; a counter that fell has begun anew."""
    if before is None:
        return now if total in _COUNTED_BY_US else 0
    return now - before if now >= before else now


def _plausible(total: Total, moved: int, gap: int) -> int:
    """Return what was counted, 0 where a GPU cannot have done so much: another source tells, or one page was wrong."""
    most = _MOST_A_NANOSECOND.get(total)
    return moved if most is None or moved <= most * (gap + _SLACK) else 0


class GpuMeter:
    """Follows all GPUs from beat to beat."""

    def __init__(self) -> None:
        self._gpus: dict[str, _Gpu] = {}
        self._known: dict[str, KnownGpu] = {}
        self._drawn: dict[str, int | None] = {}  # in the last beat, by those that were read in it
        self._earlier: list[str] = []  # seen by an earlier process, of which as many may still be silent
        self._parents: dict[str, str] = {}  # by the UUID of a MIG instance: the GPU that it is part of
        self._present: list[str] = []  # what the last reading told apart
        self._shown = 0  # how many GPUs it showed

    def advance(self, reading: GpusReading | None) -> None:
        """Take a beat's reading; None where there was none."""
        found = {gpu.uuid: gpu for gpu in reading.gpus} if reading else {}
        self._drawn = {}
        for uuid, gpu in found.items():
            self._gpus.setdefault(uuid, _Gpu(gpu)).advance(gpu)
            self._drawn[uuid] = self._known.setdefault(uuid, KnownGpu()).advance(gpu)
            self._parents |= {instance.uuid: uuid for instance in gpu.instances}
        for uuid in self._gpus.keys() - found.keys():
            self._gpus[uuid].lose()
        if reading is not None:
            self._present = list(found)
            self._shown = len(found) if reading.shown is None else reading.shown
        if len(found) >= len(self._earlier):
            self._earlier = []  # those that are not among them were replaced

    def rebaseline(self) -> None:
        """Leave out what is drawn until the next reading."""
        for known in self._known.values():
            known.is_left_out = True

    def state(self, charged: Iterable[str], wall_ahead: int) -> GpusState | None:
        """Return what must outlive us of the GPUs that are present or charged (UUIDs); None where there are none.

        `wall_ahead` is by how many nanoseconds the wall clock is ahead of the monotonic one.
        """
        kept = {*self._present, *charged} & self._known.keys()
        if not kept:
            return None
        return GpusState(
            gpus={uuid: _moved_in_time(self._known[uuid], wall_ahead) for uuid in self._known if uuid in kept},
            parents={instance: uuid for instance, uuid in self._parents.items() if uuid in kept},
            present=self._present,
            shown=self._shown,
        )

    def restore(self, state: GpusState, wall_ahead: int, *, is_same: bool) -> None:
        """Go on where an earlier process stopped; nothing of it is on the page before a source tells of it.

        `is_same` says that the same GPUs are looked for, for the same engines: only then do those that were seen last
        stand for the ones that are there, until a source answers.
        """
        self._known = {uuid: _moved_in_time(known, -wall_ahead) for uuid, known in state.gpus.items()}
        self._parents = state.parents
        if is_same:
            self._earlier, self._present, self._shown = list(state.gpus), state.present, state.shown

    def forget(self, is_wanted: Callable[[str], bool]) -> None:
        """Forget the GPUs that nobody wants to see any more."""
        self._gpus = {uuid: gpu for uuid, gpu in self._gpus.items() if is_wanted(uuid)}
        self._known = {uuid: known for uuid, known in self._known.items() if is_wanted(uuid)}
        self._earlier = [uuid for uuid in self._earlier if is_wanted(uuid)]
        self._present = [uuid for uuid in self._present if is_wanted(uuid)]
        self._shown = len(self._present)

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
        unlisted = self._shown - len(taken.intersection(self._present))
        numbers = {engine.name: engine.gpus for engine in engines if isinstance(engine.gpus, Fraction) and engine.gpus}
        want = ceil(sum(numbers.values()))
        free = [uuid for uuid in self._present if uuid not in taken]
        seen = dict.fromkeys((*self._earlier, *self._gpus))
        lost = [uuid for uuid in seen if uuid not in taken and uuid not in free]
        if len(free) + len(lost) == want >= unlisted:
            free += lost  # those that are silent can only be these
        if free and len(free) == want >= unlisted and (want == 1 or len(numbers) == 1):
            for name, number in numbers.items():
                listed[name] = dict.fromkeys(free, number / want)
        return listed

    def _listed(self, engine: Engine) -> Shares:
        shares: dict[str, Fraction] = {}
        for gpu in engine.gpus if not isinstance(engine.gpus, Fraction) else ():
            share = gpu if isinstance(gpu, GpuShare) else GpuShare(uuid=gpu)
            only = self._only_one() if share.uuid.startswith(_MIG) else None
            uuid = self._parents.get(share.uuid) or only or share.uuid
            shares[uuid] = shares.get(uuid, Fraction(0)) + share.fraction
        return shares

    def _only_one(self) -> str | None:
        """Return the GPU that any MIG instance must be on, where it is the only one there."""
        return self._present[0] if len(self._present) == self._shown == 1 else None

    def names(self, shares: Shares) -> dict[str, Fraction]:
        """Return the product names of an engine's GPUs, and how much of each it has; nothing where one is not known."""
        found: dict[str, Fraction] = {}
        for uuid, share in shares.items():
            name = self._known[uuid].name if uuid in self._known else ""
            if not name:
                return {}
            found[name] = found.get(name, Fraction(0)) + share
        return found

    def drawn(self, shares: Shares) -> Fraction | None:
        """Return the energy that one average GPU of an engine drew since the reading before, in nanojoules.

        None where there are no GPUs, or one of them has never said how much it draws. What was drawn while nothing
        could be read comes with the next reading.
        """
        drawn = [(self._drawn_by(uuid), share) for uuid, share in shares.items()]
        known = [(energy, share) for energy, share in drawn if energy is not None]
        if not known or len(known) < len(drawn):
            return None
        return sum((energy * share for energy, share in known), Fraction(0)) / sum(share for _, share in known)

    def _drawn_by(self, uuid: str) -> int | None:
        known = self._known.get(uuid)
        return None if known is None or known.nanojoules is None else self._drawn.get(uuid, 0)

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
    whole = {uuid for uuid in uuids if not uuid.startswith(_MIG)}
    return ceil(numbers) + len(whole) + (len(uuids) > len(whole))


def _moved_in_time(known: KnownGpu, nanoseconds: int) -> KnownGpu:
    return msgspec.structs.replace(known, read=known.read + nanoseconds)


def _by_family(gpu: _Gpu) -> dict[str, list[tuple[str, float]]]:
    families: dict[str, list[tuple[str, float]]] = {}
    for (family, label), value in chain(gpu.last.gauges.items(), gpu.totals.items()):
        families.setdefault(family, []).append((label, value))
    return families


def _age(reading: GpuReading, now: int) -> float | None:
    return None if reading.sampled is None else max(now - reading.sampled, 0) / NANO
