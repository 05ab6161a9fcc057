"""Provisional images of a running scan: receiver, solver and refinement in threads of their own, the caller as sender.

readouts → receiver (checks, keeps, cuts into frames) → bounded queue, kept by the rule of :mod:`gadgets.online.schedule` → solver → bounded
queue → caller. The refinement runs beside and publishes models, which the solver takes up between two frames. With ``late_frames=wait``
there is no refinement thread: the solver does its work after every so many frames, so that a stored scan gives the same images each time.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator

import ismrmrd
import torch

from gadgets.header import ScanHeader
from gadgets.images import Numbering, Scale, emit, magnitude_scale
from gadgets.metrics import NO_METRICS, Metrics
from gadgets.noise import NoiseReadouts
from gadgets.online.engine import Provisional, SliceEngine
from gadgets.online.schedule import Clock, Frame, FrameQueue, Key, Rule
from gadgets.online.status import Status
from gadgets.readouts import Readout, check_uniform
from gadgets.settings import ChainSettings
from recon_core.errors import DataError
from recon_core.online.model import OnlineSettings
from recon_core.options import build
from recon_core.threads import at_most_threads

ROLE = "provisional"
STATUS_SECONDS = 2.0
_IMAGES_WAITING = 64
_LOOK_SECONDS = 0.25
_UNCLOCKED = 64

Made = tuple[ismrmrd.Image, Provisional]


class LiveClock:
    """Seconds of a readout from the scan's first, told while the scan runs.

    Stamps are taken as they are. Where they are no clock (backwards, or standing still for long), readouts are spaced by ``spacing`` from
    then on.
    """

    def __init__(self, tick: float, spacing: float) -> None:
        self.tick, self.spacing = tick, spacing
        self._first = self._last = 0
        self._count = self._still = 0
        self._from: tuple[int, float] | None = None
        self._time = 0.0

    def time(self, stamp: int) -> float:
        """Time of the next readout, never before the last one's."""
        if not self._count:
            self._first = self._last = stamp
        self._still = self._still + 1 if stamp == self._last else 0
        if self._from is None and (stamp < self._last or self._still >= _UNCLOCKED):
            self._from = (self._count, self._time)
        if self._from is None:
            self._time = (stamp - self._first) * self.tick
        else:
            self._time = self._from[1] + (self._count - self._from[0] + 1) * self.spacing
        self._last = stamp
        self._count += 1
        return self._time


class FrameCutter:
    """Cuts one slice's readouts into frames as :func:`gadgets.binning.by_count.by_count` does, while they arrive."""

    def __init__(self, per_frame: int, stride: int) -> None:
        self.per_frame, self.stride = per_frame, stride
        self._held: list[tuple[Readout, float]] = []
        self._skip = 0
        self._fresh = 0
        self._number = 0
        self._first: Readout | None = None

    def push(self, readout: Readout, at: float, received: float) -> tuple[Frame | None, int]:
        """The frame that this readout completes, if any, and how many readouts so far lie between frames."""
        self._first = self._first or readout
        check_uniform([self._first, readout])
        if self._skip:
            self._skip -= 1
            return None, 1
        self._held.append((readout, at))
        self._fresh += 1
        if len(self._held) < self.per_frame:
            return None, 0
        readouts, times = zip(*self._held, strict=True)
        frame = Frame(readout.key, self._number, readouts, times, received, self._fresh)
        self._number += 1
        self._fresh = 0
        self._skip = max(0, self.stride - self.per_frame)
        del self._held[: self.stride]
        return frame, 0

    @property
    def left(self) -> int:
        """Readouts that wait for the rest of their frame and are in no other."""
        return self._fresh


class OnlineScan:
    """The provisional part of one scan. Use once.

    Args:
        header: the scan's header.
        settings: chain properties.
        noise: filled by the stream's noise readouts.
        numbering: the scan's running indices.
        report: gets user-facing lines, in the caller's thread.
        keep: hold the readouts for the final series.
        clock: seconds.
        metrics: where to count.
        throttle: called by the solver before every batch; tests make it slow.

    Attributes:
        readouts: all imaging readouts, in order, once :meth:`images` has ended; none unless kept.
        status: counts.
    """

    def __init__(
        self,
        header: ScanHeader,
        settings: ChainSettings,
        noise: NoiseReadouts,
        numbering: Numbering,
        report: Callable[[str], None],
        *,
        keep: bool,
        clock: Clock = time.monotonic,
        metrics: Metrics = NO_METRICS,
        throttle: Callable[[], None] | None = None,
    ) -> None:
        self.header, self.settings = header, settings
        self.online = build(OnlineSettings, settings.online_settings)
        self.readouts: list[Readout] = []
        self.status = Status()
        self._noise, self._numbering, self._report, self._keep, self._clock = noise, numbering, report, keep, clock
        self._metrics, self._throttle = metrics, throttle
        self._rule = Rule(settings.late_frames, settings.frame_deadline_ms / 1000)
        self._frames = FrameQueue(self._rule, clock)
        self._images: queue.Queue[Made | None] = queue.Queue(_IMAGES_WAITING)
        self._said: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._engines: dict[Key, SliceEngine] = {}
        self._scale: Scale | None = None
        self._stop = threading.Event()
        self._all_in = threading.Event()
        self._given_up = threading.Event()
        self._work = threading.Condition()
        self._faults: list[BaseException] = []
        self._since = 0

    def images(self, readouts: Iterable[Readout]) -> Iterator[ismrmrd.Image]:
        """Provisional images while ``readouts`` come; returns when all are in and shown.

        Where the readouts are kept, data that the model cannot use end the provisional images, in words, and not the scan. No thread
        outlives the iterator, however it ends. A source of readouts that blocks must end once it is closed.

        Raises:
            ReconError: what the source, a readout or the model raises; images made before are given out first.
        """
        threads = [threading.Thread(target=self._guarded, args=(self._receive, readouts), name="online receiver", daemon=True)]
        threads.append(threading.Thread(target=self._guarded, args=(self._beside, self._solve), name="online solver", daemon=True))
        if self._rule.late != "wait":
            threads.append(threading.Thread(target=self._guarded, args=(self._beside, self._refine), name="online refinement", daemon=True))
        for thread in threads:
            thread.start()
        try:
            yield from self._outgoing()
        finally:
            self._halt()
            for thread in threads:
                thread.join()
        self._tell()
        if self._faults:
            raise self._faults[0]
        for line in self.status.summary():
            self._report(line)

    def _outgoing(self) -> Iterator[ismrmrd.Image]:
        told = self._clock()
        while True:
            try:
                made = self._images.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                made = None
                if self._faults:
                    return
            else:
                if made is None:
                    return
            self._tell()
            if made is not None:
                image, provisional = made
                yield image
                frame = provisional.frame
                lag = self._clock() - frame.received
                self.status.left(frame, lag, provisional.age, provisional.error)
                self._metrics.sent(lag, provisional.age, provisional.error)
            self._metrics.queues(frames=len(self._frames), images=self._images.qsize())
            if self._clock() - told >= STATUS_SECONDS:
                told = self._clock()
                self._report(self.status.line())

    def _tell(self) -> None:
        while not self._said.empty():
            self._report(self._said.get())

    def _guarded(self, work: Callable[..., None], *args: object) -> None:
        """A thread's boundary: its fault ends the scan, in the caller's thread."""
        try:
            work(*args)
        except BaseException as fault:  # noqa: BLE001 - raised again by the caller of images()
            if not self._stop.is_set():
                self._faults.append(fault)
            self._halt()

    def _beside(self, work: Callable[[], None]) -> None:
        """Solver and refinement share the cores: two teams of all cores each would wait for one another."""
        limited = contextlib.nullcontext() if self._rule.late == "wait" else at_most_threads(max(1, torch.get_num_threads() // 2))
        with limited:
            try:
                work()
            except DataError as fault:
                if not self._keep or self._stop.is_set():
                    raise
                self._give_up(fault)

    def _give_up(self, fault: DataError) -> None:
        """The model failed; the readouts are still worth the final series."""
        if not self._given_up.is_set():
            self._said.put(f"no provisional images from here on, the final series follows: {fault}")
        self._given_up.set()
        self._frames.stop()
        self._all_in.wait()
        self._put(None)

    def _halt(self) -> None:
        self._stop.set()
        self._all_in.set()
        self._frames.stop()
        with self._work:
            self._work.notify_all()

    def _receive(self, readouts: Iterable[Readout]) -> None:
        clock = LiveClock(self.settings.time_tick_ms / 1000, self.header.repetition_time or self.settings.time_tick_ms / 1000)
        cutters: dict[Key, FrameCutter] = {}
        for readout in readouts:
            if self._stop.is_set():
                return
            received = self._clock()
            if self._keep:
                self.readouts.append(readout)
            if readout.key not in cutters:
                cutters[readout.key] = FrameCutter(self.settings.readouts_per_frame, self.settings.stride)
            frame, between = cutters[readout.key].push(readout, clock.time(readout.head.acquisition_time_stamp), received)
            self.status.received(frame)
            self.status.loose += between
            self._metrics.received(frame is not None)
            if frame is not None:
                self._frames.put(frame)
        self.status.loose += sum(cutter.left for cutter in cutters.values())
        self._all_in.set()
        self._frames.end()

    def _solve(self) -> None:
        while (todo := self._frames.take()) is not None:
            self.status.gave_up(todo.given_up)
            self._metrics.skipped(sum(frame.members for frame in todo.given_up))
            by_slice: dict[Key, list[Frame]] = {}
            for frame in todo.frames:
                if self._rule.late == "wait":
                    # One by one: how many lie in the queue depends on the clock, the images must not.
                    self._batch(self._engine(frame.key), [frame])
                else:
                    by_slice.setdefault(frame.key, []).append(frame)
            for key, frames in by_slice.items():
                self._batch(self._engine(key), frames)
        self._all_in.wait()
        if self._stop.is_set() or self._given_up.is_set():
            self._put(None)
            return
        for engine in self._engines.values():
            late = engine.finish()
            for image in late:
                self.status.not_early(image.frame)
            self._hand_on(late)
        self._put(None)

    def _batch(self, engine: SliceEngine, frames: list[Frame]) -> None:
        began, begun = time.thread_time(), self._clock()
        if self._throttle is not None:
            self._throttle()
        made = engine.solve(frames)
        shown = {id(image.frame) for image in made}
        self.status.worked(time.thread_time() - began, len(frames))
        if made:
            self._frames.took(self._clock() - begun, len(frames))
        self.status.began([frame for frame in frames if id(frame) not in shown])
        self._hand_on(made)
        if self._rule.late != "wait":
            with self._work:
                self._work.notify_all()
            return
        self._since += 1
        if self._since >= self.online.every or engine.starting:
            self._since = 0
            for each in self._engines.values():
                self._improve(each)

    def _engine(self, key: Key) -> SliceEngine:
        if key not in self._engines:
            self._engines[key] = SliceEngine(self.header, self.settings, self._noise, self.online, self._said.put)
        return self._engines[key]

    def _hand_on(self, made: list[Provisional]) -> None:
        for provisional in made:
            if self._scale is None and self.settings.image_type == "magnitude":
                self._scale = magnitude_scale(provisional.series.images.numpy(), more_to_come=True)
            frame = provisional.frame
            extra = {
                "Provisional": "1",
                "LastReadout": str(frame.readouts[-1].number),
                "FrameLag_s": f"{self._clock() - frame.received:.6f}",
                "FramesJoined": str(frame.members),
                "ModelVersion": str(provisional.version),
            }
            if provisional.age is not None and provisional.error is not None:
                extra |= {"ModelAge_s": f"{provisional.age:.6f}", "HeldOutError": f"{provisional.error:.6g}"}
            for image in emit(
                provisional.series,
                provisional.assembled,
                self.header,
                self._numbering,
                self._scale,
                provisional.description,
                real=self.settings.image_type != "complex",
                role=ROLE,
                first=frame.number,
                extra=extra,
            ):
                self._put((image, provisional))

    def _put(self, made: Made | None) -> None:
        """Wait for the sender, unless all is stopped."""
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._images.put(made, timeout=_LOOK_SECONDS)
                return

    def _refine(self) -> None:
        """Improve the models in turn, as long as the scan runs."""
        while not (self._stop.is_set() or self._given_up.is_set()):
            engines = [engine for engine in tuple(self._engines.values()) if engine.to_improve]
            for engine in engines:
                self._improve(engine)
            if not engines:
                with self._work:
                    self._work.wait(_LOOK_SECONDS)

    def _improve(self, engine: SliceEngine) -> None:
        began = self._clock()
        model = engine.improve()
        if model is not None:
            self.status.refined(model, self._clock() - began)
            self._metrics.refined(self._clock() - began)


def numbering(mode: str) -> Numbering:
    """Series of a scan in this mode: provisional images before final ones."""
    return Numbering(("images", "latents") if mode == "retrospective" else (ROLE, "images", "latents"))
