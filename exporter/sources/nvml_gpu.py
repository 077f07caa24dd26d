"""One GPU as NVML tells it: asked by one thread, looked at by another.

What a GPU does not have is remembered, so that it is not asked for each second; a question that fails takes away its
own answer and nothing else; and what has been counted stays counted when the GPU or the driver was away.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from exporter.clock import NANOSECONDS, Clock
from exporter.core.gpu_readings import Gauges, GpuReading, Measure, MigReading, Total, Totals
from exporter.sources.nvml import DRIVER_GONE, GPU_GONE, UNSUPPORTED, Handle, NvmlError, call, text
from exporter.sources.nvml_fields import FIELDS, GPM_SHARES, Field, Number
from exporter.sources.nvml_parts import Gpm, Instances, gpm, xid_events

POLL_SECONDS: Final = 1.0
FRESH_NS: Final = 15 * NANOSECONDS  # what was said longer ago is not said any more
_ASK_AGAIN_SECONDS: Final = {"no_permission": 60.0} | dict.fromkeys(UNSUPPORTED, 600.0)
_EARLY_SECONDS: Final = 0.1
_STALE_PERIODS: Final = 3
# https://docs.nvidia.com/deploy/xid-errors: those that ask somebody to act, on the page before they happen
_GRAVE_XIDS: Final = (48, 62, 64, 74, 79, 94, 95, 119, 120)
# nvml.h, NVML_DEVICE_ARCH_*
_ARCHITECTURES: Final = {2: "Kepler", 3: "Maxwell", 4: "Pascal", 5: "Volta", 6: "Turing", 7: "Ampere", 8: "Ada",
                         9: "Hopper", 10: "Blackwell", 13: "Rubin"}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What does not change while the driver runs."""

    uuid: str
    index: str
    name: str
    pci_bus_id: str
    architecture: str


def identify(handle: Handle, index: str) -> Identity:
    """Ask a GPU who it is.

    Raises:
        NvmlError: it does not even tell its UUID.
    """
    architecture = _said(lambda: _ARCHITECTURES.get(call("nvmlDeviceGetArchitecture", handle), ""))
    return Identity(
        uuid=text("nvmlDeviceGetUUID", handle),
        index=index,
        name=_said(lambda: text("nvmlDeviceGetName", handle)),
        pci_bus_id=_said(lambda: str(call("nvmlDeviceGetPciInfo", handle).busId)),
        architecture=architecture,
    )


def _said(ask: Callable[[], str]) -> str:
    try:
        return ask()
    except (NvmlError, ValueError):
        return ""


class Answer(NamedTuple):
    """What a question brought, and until when (monotonic nanoseconds) it may be said."""

    until: int
    gauges: Gauges


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """What the thread has published last."""

    answering: bool = False
    sampled: int | None = None
    answers: tuple[Answer, ...] = ()
    totals: Totals = field(default_factory=dict)
    errors: Mapping[tuple[str, str], int] = field(default_factory=dict)
    supported: Mapping[str, bool] = field(default_factory=dict)
    instances: tuple[MigReading, ...] = ()
    mig_mode: str = ""


class GpuPoller:
    """Follows one GPU through losses and restarts of the driver."""

    def __init__(self, identity: Identity, clock: Clock) -> None:
        self.identity = identity
        self._clock = clock
        self._handle: Handle = None
        self._questions = (
            *FIELDS,
            Field("gpm", 10, (*GPM_SHARES.values(), Measure.PCIE_RATE, Measure.NVLINK_RATE, Total.PCIE), self._active),
            Field("xids", 1, (Total.XID,), self._xids),
            Field("mig", 10, (), self._mig),
        )
        self._parts: dict[str, Any] = {}
        self._due: dict[str, int] = {}
        self._answers: dict[str, Answer] = {}
        self._supported: dict[str, frozenset[str]] = {}  # by question: the families that were in an answer
        self._families: dict[str, bool] = {}
        self._totals: dict[tuple[Total, str], int] = {(Total.POLLS, ""): 0, (Total.POLL_SECONDS, ""): 0}
        self._errors: Counter[tuple[str, str]] = Counter()
        self._last_xids: dict[int, float] = {}
        self._busy_until: int | None = None
        self._instances: tuple[MigReading, ...] = ()
        self._mig_mode = ""
        self._asking_since: int | None = None
        self._published = _State()

    def attach(self, handle: Handle, identity: Identity) -> None:
        """Begin with a new handle of the GPU, of a driver that may be another one than before."""
        self.identity, self._handle = identity, handle
        self._due, self._answers, self._busy_until = {}, {}, None
        self._supported, self._families = {}, {}

    def poll(self) -> None:
        """Ask all that is due, and publish it.

        Raises:
            NvmlError: the GPU or the driver is gone, or no question got an answer; nothing but totals is said then.
        """
        began = self._clock.now().monotonic
        try:
            self._ask_all(began)
        except NvmlError:
            self.lose()
            raise
        finally:
            self._asking_since = None
        ended = self._clock.now().monotonic
        self._totals[Total.POLLS, ""] += 1
        self._totals[Total.POLL_SECONDS, ""] += ended - began
        self._publish(answering=True, sampled=ended)

    def lose(self) -> None:
        """Say that the GPU does not answer."""
        self._answers, self._instances, self._busy_until = {}, (), None
        self._publish(answering=False, sampled=self._published.sampled)

    def drain(self) -> None:
        """Take the events that have come: the last one may say why the GPU is lost."""
        if "xids" in self._parts:
            with suppress(NvmlError):
                self._count_xids()

    def detach(self) -> None:
        """Free all that was taken from the driver; it must be done before the driver is let go."""
        for part in self._parts.values():
            part.free()
        self._parts = {}

    def is_up(self, now: int) -> bool:
        """Tell whether the GPU answers at a monotonic nanosecond; may be called from any thread."""
        state = self._published
        return state.answering and state.sampled is not None and now - state.sampled <= FRESH_NS

    @property
    def is_asking(self) -> bool:
        """Tell whether a call is under way; may be asked from any thread."""
        return self._asking_since is not None

    def reading(self, now: int) -> GpuReading:
        """Return what is known at a monotonic nanosecond; may be called from any thread."""
        state, identity, asking_since, up = self._published, self.identity, self._asking_since, self.is_up(now)
        return GpuReading(
            uuid=identity.uuid,
            index=identity.index,
            name=identity.name,
            pci_bus_id=identity.pci_bus_id,
            architecture=identity.architecture,
            mig_mode=state.mig_mode,
            up=up,
            sampled=state.sampled,
            stuck_seconds=0.0 if asking_since is None else max(now - asking_since, 0) / NANOSECONDS,
            gauges=_fresh(state.answers, now) if up else {},
            totals=state.totals,
            supported=state.supported,
            instances=state.instances if up else (),
        )

    @property
    def errors(self) -> Mapping[tuple[str, str], int]:
        """Failed calls so far, by call and error; may be asked for from any thread."""
        return self._published.errors

    def _publish(self, *, answering: bool, sampled: int | None) -> None:
        self._published = _State(
            answering=answering,
            sampled=sampled,
            answers=tuple(self._answers.values()),
            totals=dict(self._totals),
            errors=dict(self._errors),
            supported=self._families,
            instances=self._instances,
            mig_mode=self._mig_mode,
        )

    def _note(self, question: Field, found: frozenset[str]) -> None:
        """Remember which families a question brings, none where the GPU has no such thing (any more)."""
        before = self._supported.get(question.name)
        now = found | (before or frozenset()) if found else found
        if now == before:
            return
        self._supported[question.name] = now
        families: dict[str, bool] = {}
        for known in self._questions:
            for family in known.gives if known.name in self._supported else ():
                families[family] = families.get(family, False) or family in self._supported[known.name]
        self._families = families

    def _ask_all(self, now: int) -> None:
        due = [question for question in self._questions if self._due.get(question.name, now) <= now]
        failures = [error for question in due if (error := self._ask(question)) is not None]
        if not due:
            text("nvmlDeviceGetUUID", self._handle)  # a sign of life
        elif len(failures) == len(due):
            raise failures[-1]

    def _ask(self, question: Field) -> NvmlError | None:
        """Ask one question; returns its error, unless that is the answer that this GPU has no such thing."""
        self._asking_since = began = self._clock.now().monotonic
        try:
            numbers = list(question.read(self._handle))
        except NvmlError as error:
            self._answers.pop(question.name, None)
            self._ask_again(question, began, _ASK_AGAIN_SECONDS.get(error.name, question.period_seconds))
            if error.name in UNSUPPORTED:
                self._note(question, frozenset())
                return None
            self._errors[error.call, error.name] += 1
            if error.name in GPU_GONE | DRIVER_GONE:
                raise
            return error
        self._ask_again(question, began, question.period_seconds)
        self._take(question, numbers)
        return None

    def _ask_again(self, question: Field, began: int, seconds: float) -> None:
        # A little early: the thread's sleep is never shorter than it says.
        self._due[question.name] = began + round((seconds - _EARLY_SECONDS) * NANOSECONDS)

    def _take(self, question: Field, numbers: list[Number]) -> None:
        at = self._clock.now().monotonic
        if numbers:
            self._note(question, frozenset(family for family, _, _ in numbers))
        gauges = {(measure, label): value for measure, label, value in numbers if isinstance(measure, Measure)}
        self._totals |= {(total, label): int(value) for total, label, value in numbers if isinstance(total, Total)}
        stale = max(_STALE_PERIODS * round(question.period_seconds * NANOSECONDS), FRESH_NS)
        self._answers[question.name] = Answer(at + stale, gauges)
        if (Measure.UTILIZATION, "") in gauges:
            self._work(at, gauges[Measure.UTILIZATION, ""])

    def _work(self, at: int, ratio: float) -> None:
        """Integrate the utilisation, which tells of the time just before; a gap in the polls is not known, and no 0."""
        before, self._busy_until = self._busy_until, at
        gap = at - before if before is not None else 0
        worked = round(ratio * gap) if gap <= FRESH_NS else 0
        self._totals[Total.BUSY, ""] = self._totals.get((Total.BUSY, ""), 0) + worked

    def _part(self, name: str, make: Callable[[], Any]) -> Any:
        """Return a part of the driver that is held from one poll to the next; raises NvmlError where there is none."""
        part = self._parts.get(name) or make()
        if part is None:
            raise NvmlError(name, "not_supported")
        self._parts[name] = part
        return part

    def _active(self, handle: Handle) -> Iterator[Number]:
        """Read the performance monitor, and add up what its means say of bytes."""

        def take(sample: Handle) -> None:
            call("nvmlGpmSampleGet", handle, sample)

        monitor: Gpm = self._part("gpm", lambda: gpm(handle, take, self._clock))
        for measure, label, value in monitor.read():
            yield measure, label, value
            if measure is Measure.PCIE_RATE:
                yield Total.PCIE, label, self._totals.get((Total.PCIE, label), 0) + value * monitor.seconds

    def _count_xids(self) -> None:
        for xid in self._parts["xids"].drain():
            self._totals[Total.XID, str(xid)] = self._totals.get((Total.XID, str(xid)), 0) + 1
            self._last_xids[xid] = self._clock.now().unix_seconds

    def _xids(self, handle: Handle) -> Iterator[Number]:
        self._part("xids", lambda: xid_events(handle))
        self._count_xids()
        for xid in _GRAVE_XIDS:
            yield Total.XID, str(xid), self._totals.get((Total.XID, str(xid)), 0)
        for xid, seen in self._last_xids.items():
            yield Measure.XID_LAST, str(xid), seen

    def _mig(self, handle: Handle) -> Iterator[Number]:
        self._instances = ()
        current, _ = call("nvmlDeviceGetMigMode", handle)
        self._mig_mode = "enabled" if current else "disabled"
        if current:
            self._instances = tuple(self._part("mig", lambda: Instances(handle, self._clock)).read())
        elif "mig" in self._parts:
            self._parts.pop("mig").free()
        return iter(())


def _fresh(answers: Iterable[Answer], now: int) -> dict[tuple[Measure, str], float]:
    return {key: value for answer in answers if now <= answer.until for key, value in answer.gauges.items()}
