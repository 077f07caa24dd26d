"""The driver under watch: one daemon thread that opens it and opens it again, and one for each GPU.

A thread, since a call may hang; one for each GPU, since a sick GPU hangs alone; daemons, since a call that hangs cannot
be ended, and must not hold the process. Nobody waits for them: what they publish is read from the event loop.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from exporter.clock import NANOSECONDS, Clock
from exporter.core.gpu_readings import Driver, GpusReading
from exporter.sources import nvml
from exporter.sources.nvml import DRIVER_GONE, Handle, NvmlError, call, in_words
from exporter.sources.nvml_gpu import POLL_SECONDS, GpuPoller, identify

log = logging.getLogger(__name__)

_FIRST_WAIT_SECONDS: Final = 1.0
_LONGEST_WAIT_SECONDS: Final = 60.0
_LONGEST_GPU_WAIT_SECONDS: Final = 10.0
_COUNT_AGAIN_SECONDS: Final = 60.0
_ALL_GONE_SECONDS: Final = 30.0
_FATAL_ATTEMPTS: Final = 5
_SLOTS: Final = 16  # of a second, in which GPUs take turns

STARTING: Final = "starting"
VISIBLE: Final = "visible"
RELEASED: Final = "released"


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Whether the driver is open and shows GPUs, why or why not (`reason` is a label), and how many."""

    is_up: bool = False
    reason: str = STARTING
    detail: str = "the driver has not answered yet"
    driver: Driver | None = None
    visible: int = 0


class _Session:
    """The time from one opening of the driver to its closing."""

    def __init__(self, now: int) -> None:
        self.ending = threading.Event()
        self.threads: dict[int, threading.Thread] = {}
        self.claimed: dict[str, int] = {}  # index by UUID
        self.tried: set[int] = set()  # indices whose first poll is over, one way or the other
        self.told: dict[int, str] = {}  # by index: the error that was logged last
        self.driver_gone: NvmlError | None = None
        self.last_up = now
        self.counted = now

    def is_held(self) -> bool:
        """Tell whether a thread is still in a call, so that the driver must not be closed."""
        return any(thread.is_alive() for thread in self.threads.values())


class NvmlDriver:
    """All GPUs that the driver shows and `wants` picks by UUID, each followed by a thread of its own."""

    def __init__(self, nvml_library: str | None, wants: Callable[[str], bool], clock: Clock) -> None:
        self.status = Status()
        self._nvml_library, self.wants, self._clock = nvml_library, wants, clock
        self._lock = threading.Lock()  # held for moments, never during a call
        self._pollers: dict[str, GpuPoller] = {}
        self._errors: Counter[tuple[str, str]] = Counter()
        self._session = _Session(0)
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._release_until: int | None = None
        self._wait_seconds = _FIRST_WAIT_SECONDS
        self._ever_up = False
        self._failed_attempts = 0

    def start(self) -> None:
        """Begin to watch; returns at once."""
        threading.Thread(target=self._run, name="nvml", daemon=True).start()

    def want(self, wants: Callable[[str], bool]) -> None:
        """Follow other GPUs from now on."""
        self.wants = wants
        self._session.counted = 0

    def close(self) -> None:
        """Let go of the driver as soon as its calls return; returns at once."""
        self._closing.set()
        self._session.ending.set()
        self._wake.set()

    def release(self, seconds: float) -> bool:
        """Let go of the driver for a while, so that a GPU can be reset or partitioned; a second time takes it back.

        Returns whether it is now being let go.
        """
        now = self._clock.now().monotonic
        self._release_until = None if self._is_released() else now + round(seconds * NANOSECONDS)
        self._wake.set()
        return self._release_until is not None

    @property
    def is_settled(self) -> bool:
        """Tell whether each GPU has been asked once, or the driver cannot be opened."""
        return self.status.reason != STARTING and len(self._session.tried) >= self.status.visible

    @property
    def losses(self) -> Mapping[int, str]:
        """Return the GPUs that do not answer, by their index: the error of each (a label)."""
        return dict(self._session.told)

    @property
    def has_answered(self) -> bool:
        """Tell whether any GPU has ever answered."""
        return self._ever_up

    @property
    def is_lost_for_good(self) -> bool:
        """Tell whether a driver that was there is gone, and came back at none of several attempts."""
        return self._ever_up and self._failed_attempts >= _FATAL_ATTEMPTS

    def reading(self) -> GpusReading:
        """Return what is known of every GPU that the driver shows; one that is lost is not up."""
        now = self._clock.now().monotonic
        with self._lock:
            pollers, errors, claimed = list(self._pollers.values()), Counter(self._errors), set(self._session.claimed)
        for poller in pollers:
            errors.update(poller.errors)
        present = [poller for poller in pollers if poller.identity.uuid in claimed and self.wants(poller.identity.uuid)]
        return GpusReading(
            gpus=tuple(poller.reading(now) for poller in present),
            shown=self.status.visible,
            driver=self.status.driver,
            errors=errors,
        )

    def _is_released(self) -> bool:
        return self._release_until is not None and self._clock.now().monotonic < self._release_until

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                nvml.open_library(self._nvml_library)
                self._serve()
            except NvmlError as error:
                self._fail(error)
            while self._is_released() and not self._closing.is_set():
                self._pause(POLL_SECONDS)

    def _fail(self, error: NvmlError) -> None:
        self._say(error)
        if error.name != RELEASED:
            self._failed_attempts += 1
            self._pause(self._wait_seconds)
            self._wait_seconds = min(2 * self._wait_seconds, _LONGEST_WAIT_SECONDS)

    def _say(self, error: NvmlError) -> None:
        if self.status.reason != error.name:
            log.warning("nvml: %s", error)
        self.status = replace(self.status, is_up=False, reason=error.name, detail=str(error), visible=0)

    def _pause(self, seconds: float) -> None:
        self._wake.wait(seconds)
        self._wake.clear()

    def _serve(self) -> None:
        """Follow the GPUs until the driver must be let go.

        Raises:
            NvmlError: why.
        """
        self._session = session = _Session(self._clock.now().monotonic)
        try:
            self.status = replace(self.status, driver=nvml.driver())
            self._count(session)
            while not self._closing.is_set():
                self._check(session)
                self._pause(POLL_SECONDS)
        except NvmlError as error:
            self._say(error)
            raise
        finally:
            self._end(session)

    def _check(self, session: _Session) -> None:
        """Look whether the session can go on; raises NvmlError where it cannot."""
        now = self._clock.now().monotonic
        if self._is_released():
            raise NvmlError("release", RELEASED)
        if session.driver_gone is not None:
            raise session.driver_gone
        if now - session.counted > _COUNT_AGAIN_SECONDS * NANOSECONDS:
            session.counted = now
            self._count(session)
        pollers = list(self._pollers.values())
        if any(poller.is_up(now) for poller in pollers):
            session.last_up, self._ever_up, self._failed_attempts = now, True, 0
            self._wait_seconds = _FIRST_WAIT_SECONDS
        elif any(poller.is_asking for poller in pollers):
            return  # the driver cannot be closed under a call, and that one hangs is said on the page
        elif session.is_held() and now - session.last_up > _ALL_GONE_SECONDS * NANOSECONDS:
            raise NvmlError("poll", "no_gpu_answers")

    def _count(self, session: _Session) -> None:
        """Start a thread for each GPU that has none."""
        visible = int(call("nvmlDeviceGetCount"))
        for index in range(visible):
            if index not in session.threads or not session.threads[index].is_alive():
                thread = threading.Thread(target=self._follow, args=(session, index), name=f"gpu{index}", daemon=True)
                session.threads[index] = thread
                thread.start()
        reason = VISIBLE if visible else "no_devices"
        if self.status.reason != reason:
            log.info("nvml: %d GPU(s) visible", visible)
        self.status = replace(
            self.status, is_up=visible > 0, reason=reason, detail="" if visible else in_words(reason), visible=visible
        )

    def _end(self, session: _Session) -> None:
        """Close the driver when no thread is in a call any more: closing it under one could take the process down."""
        session.ending.set()
        while session.is_held():
            self._pause(POLL_SECONDS / 10)
        with suppress(NvmlError):
            nvml.close_library()

    def _follow(self, session: _Session, index: int) -> None:
        """Follow one GPU through its losses, until the session ends."""
        poller, wait = None, _FIRST_WAIT_SECONDS
        while not session.ending.is_set():
            began = self._clock.now().monotonic
            try:
                poller = self._acquired(session, index, poller)
                if poller is None:
                    return
                self._poll(session, index, poller)
            except NvmlError as error:
                self._lost(session, index, poller, error)
            except Exception:
                log.exception("a bug while reading gpu %d", index)
            finally:
                session.tried.add(index)
            lasted = self._clock.now().monotonic - began > _LONGEST_GPU_WAIT_SECONDS * NANOSECONDS
            wait = _FIRST_WAIT_SECONDS if lasted else min(2 * wait, _LONGEST_GPU_WAIT_SECONDS)
            session.ending.wait(wait)

    def _acquired(self, session: _Session, index: int, before: GpuPoller | None) -> GpuPoller | None:
        """Return the poller of the GPU at an index, ready; None where nobody wants it or another thread has it."""
        handle = _handle(index, before.identity.uuid if before else None)
        identity = identify(handle, str(index))
        if not self.wants(identity.uuid):
            return None
        with self._lock:
            if session.claimed.setdefault(identity.uuid, index) != index:
                return None
            poller = self._pollers.setdefault(identity.uuid, GpuPoller(identity, self._clock))
        poller.attach(handle, identity)
        return poller

    def _poll(self, session: _Session, index: int, poller: GpuPoller) -> None:
        """Poll until the session ends.

        Raises:
            NvmlError: the GPU or the driver is gone.
        """
        try:
            poller.poll()
            log.info("gpu %d: %s answers, %s", index, poller.identity.name, poller.identity.uuid)
            session.told.pop(index, None)
            self._ever_up = True
            session.tried.add(index)
            session.ending.wait(
                POLL_SECONDS * (index % _SLOTS) / _SLOTS
            )  # not all at once: calls share the driver's lock
            while not session.ending.wait(POLL_SECONDS) and self.wants(poller.identity.uuid):
                poller.poll()
        finally:
            poller.drain()
            poller.lose()
            poller.detach()

    def _lost(self, session: _Session, index: int, poller: GpuPoller | None, error: NvmlError) -> None:
        if session.told.get(index) != error.name:
            session.told[index] = error.name
            log.warning("gpu %d: %s", index, error)
        if error.name in DRIVER_GONE:
            session.driver_gone = error
            self._wake.set()
        if poller is None:
            with self._lock:
                self._errors[error.call, error.name] += 1


def _handle(index: int, uuid: str | None) -> Handle:
    """Return the GPU that was followed before, wherever it is now, else the one at an index."""
    if uuid is None:
        return call("nvmlDeviceGetHandleByIndex", index)
    try:
        return call("nvmlDeviceGetHandleByUUID", uuid)
    except NvmlError as error:
        if error.name in DRIVER_GONE | {"gpu_is_lost", "reset_required"}:
            raise
        return call("nvmlDeviceGetHandleByIndex", index)
