"""One slice while the scan runs: calibration from its first readouts, gridding until there is a model, then tracking.

Nothing here knows threads or clocks: the same calls give the same images.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from gadgets.assemble import Assembled, assemble
from gadgets.header import ScanHeader
from gadgets.noise import NoiseReadouts
from gadgets.online.schedule import Frame
from gadgets.readouts import Readout
from gadgets.settings import ChainSettings
from recon_core.errors import SettingError
from recon_core.online.measured import FrameEncoder, MeasuredFrame, SlidingGridding
from recon_core.online.model import OnlineModel, OnlineSettings
from recon_core.online.residual import SlidingResidual
from recon_core.online.tracker import Model, Tracker
from recon_core.operators.nufft import resolve_engine
from recon_core.problem import ImageSeries
from recon_core.reconstruct import resolve_device

_LEAST_READOUTS = 16
_STARTS_GROW = 1.3


@dataclasses.dataclass(frozen=True, eq=False)
class Provisional:
    """A provisional image.

    Attributes:
        frame: what it shows.
        series: the image, one frame.
        assembled: what its geometry comes from.
        description: how it was made, in a few words.
        version: of the model, 0 for gridding.
        age: seconds from the newest data in the model to the frame, None for gridding.
        error: held-out error, None for gridding.
    """

    frame: Frame
    series: ImageSeries
    assembled: Assembled
    description: str
    version: int = 0
    age: float | None = None
    error: float | None = None


class SliceEngine:
    """Frames of one slice to provisional images.

    The solver's side is :meth:`solve` and :meth:`finish`; :meth:`improve` is the refinement's and may run in another thread.

    Args:
        header: the scan's header.
        settings: chain properties.
        noise: noise readouts received so far.
        online: settings of the provisional model.
        report: gets user-facing lines.
    """

    def __init__(
        self, header: ScanHeader, settings: ChainSettings, noise: NoiseReadouts, online: OnlineSettings, report: Callable[[str], None]
    ) -> None:
        self.settings = settings
        self.online = online
        self._header, self._noise, self._report = header, noise, report
        self._device = resolve_device(settings.device)
        self._engine = resolve_engine(settings.engine, self._device)
        self._early: list[Frame] = []
        self._whitening: Tensor | None = None
        self._notes: tuple[str, ...] = ()
        self._encoder: FrameEncoder | None = None
        self._gridding: SlidingGridding | None = None
        self._tracker: Tracker | None = None
        self._residual: SlidingResidual | None = None
        self._model: OnlineModel | None = None
        self._lock = threading.Lock()
        self._published: Model | None = None
        # All frames until the model has settled, and what they must last for its next start, seconds.
        self._first: deque[tuple[Frame, MeasuredFrame]] = deque()
        self._next_start = online.start
        self._settled = False
        self._tracked: deque[tuple[MeasuredFrame, Tensor, int]] = deque()

    @property
    def model(self) -> Model | None:
        """The newest model."""
        return self._published

    @property
    def starting(self) -> bool:
        """The model is to be started, or started anew."""
        with self._lock:
            return self._due()

    @property
    def to_improve(self) -> int:
        """Frames that wait for the refinement; 0 when it has nothing to do."""
        with self._lock:
            if self._due():
                return len(self._first)
            return len(self._tracked) if self._published is not None else 0

    def _due(self) -> bool:
        first = self._first
        return not self._settled and len(first) > 0 and _span(first) >= self._next_start

    def solve(self, frames: Sequence[Frame]) -> list[Provisional]:
        """Provisional images of the newest frames, in order of time; none until the calibration has its readouts."""
        rest = deque(frames)
        while self._encoder is None and rest:
            self._early.append(rest.popleft())
            if self._enough():
                rest.extendleft(self._calibrate())
        return self._images(rest) if rest else []

    def finish(self) -> list[Provisional]:
        """The scan has ended: one image of a scan too short to be calibrated before."""
        if self._encoder is not None or not self._early:
            return []
        return self._images(self._calibrate())

    def improve(self) -> Model | None:
        """Start the model, or refine it with the frames tracked since; None when there is nothing to do."""
        with self._lock:
            begin = list(self._first) if self._due() else []
            tracked = list(self._tracked) if not begin and self._published is not None else []
            if tracked:
                self._tracked.clear()
        if begin:
            made = self._start(begin)
        elif tracked:
            assert self._model is not None
            for version in sorted({version for *_, version in tracked}):
                part = [(frame, row) for frame, row, of in tracked if of == version]
                self._model.take([frame for frame, _ in part], torch.stack([row for _, row in part]), version)
            made = self._model.refine()
        else:
            return None
        self._published = made
        return made

    def _start(self, begin: list[tuple[Frame, MeasuredFrame]]) -> Model:
        """Start the model from all frames so far; with more of a breath seen, it is done again."""
        assert self._encoder is not None
        if self._model is None:
            self._model = OnlineModel(self._encoder, self.online, self.settings.seed)
        settled = _span(begin) >= self.online.settle
        problem = self._assemble([frame for frame, _ in begin]).problem.to(self._device) if settled else None
        made = self._model.start([reduced for _, reduced in begin], problem)
        with self._lock:
            while self._tracked and self._tracked[0][0].time <= begin[-1][1].time:
                self._tracked.popleft()
            self._next_start = min(_STARTS_GROW * _span(begin), self.online.settle)
            if settled:
                self._settled = True
                self._first.clear()
        return made

    def _enough(self) -> bool:
        times = [time for frame in self._early for time in frame.times]
        return len(times) >= _LEAST_READOUTS and times[-1] - times[0] >= self.online.calibration

    def _calibrate(self) -> list[Frame]:
        """Freeze coils and weights; of the frames up to here only the newest is worth an image."""
        early, self._early = self._early, []
        made = self._assemble(early)
        if made.problem.dim != 2:
            raise SettingError("mode", f"{self.settings.mode!r} for a {made.problem.dim}D scan", "Use mode=retrospective for volumes.")
        self._whitening = made.whitening
        problem = made.problem.to(self._device)
        self._encoder = FrameEncoder(problem, self.settings.coils, self._engine)
        # As many readouts as pixels: more of them blur more than their fewer streaks gain.
        self._gridding = SlidingGridding(self._encoder, min(problem.n_readouts, max(problem.shape)))
        if self.online.residual > 0:
            readouts = max(1, round(self.online.residual / max(self._encoder.coverage, 1e-9)))
            self._residual = SlidingResidual(self._encoder.sensitivities, readouts, readouts * self._encoder.coverage)
        for frame in early[:-1]:
            measured = self._measure(frame)[1]
            self._gridding.image(measured)
            self._keep(frame, measured)
        names = f"{self._encoder.sensitivities.shape[0]} coils, {'fft' if problem.cartesian else self._engine} on {self._device.type}"
        self._notes = (*made.notes, f"provisional: {names}")
        for note in (*made.notes, f"provisional images: calibrated on {problem.n_readouts} readouts, {names}"):
            self._report(note)
        return early[-1:]

    def _images(self, frames: Sequence[Frame]) -> list[Provisional]:
        assert self._gridding is not None
        if self._tracker is None and self._published is not None:
            self._tracker = Tracker(self._published)
            self._catch_up(self._tracker)
        elif self._tracker is not None and self._published is not None and self._published is not self._tracker.model:
            move = self._tracker.follow(self._published)
            if self._residual is not None:
                self._residual.follow(move)
        measured = [self._measure(frame) for frame in frames]
        if self._tracker is not None:
            return self._tracked_images(self._tracker, frames, measured)
        images = []
        for frame, (made, reduced) in zip(frames, measured, strict=True):
            self._keep(frame, reduced)
            images.append(Provisional(frame, _series(self._gridding.image(reduced), frame), made, "provisional, sliding-window gridding"))
        return images

    def _tracked_images(
        self, tracker: Tracker, frames: Sequence[Frame], measured: list[tuple[Assembled, MeasuredFrame]]
    ) -> list[Provisional]:
        reduced = [frame for _, frame in measured]
        for frame, new in zip(frames, reduced, strict=True):
            self._keep(frame, new)
        solved = tracker.solve(reduced)
        images = solved.images
        if self._residual is not None:
            self._residual.add(reduced, solved.coefficients)
            images = images + self._residual.image(tracker.model)
        self._hand_over(reduced, solved.coefficients, tracker.model.version)
        return [
            Provisional(
                frame,
                _series(image, frame),
                made,
                f"provisional, rank {tracker.model.rank}",
                tracker.model.version,
                max(0.0, frame.times[-1] - tracker.model.time),
                error,
            )
            for frame, (made, _), image, error in zip(frames, measured, images, solved.errors.tolist(), strict=True)
        ]

    def _catch_up(self, tracker: Tracker) -> None:
        """Track, without images, the frames that came while the model was being made."""
        with self._lock:
            frames = [reduced for _, reduced in self._first if reduced.time > tracker.model.time]
        if frames:
            rows = tracker.solve(frames).coefficients
            if self._residual is not None:
                self._residual.add(frames, rows)
            self._hand_over(frames, rows, tracker.model.version)

    def _hand_over(self, frames: list[MeasuredFrame], coefficients: Tensor, version: int) -> None:
        with self._lock:
            self._tracked.extend((frame, row, version) for frame, row in zip(frames, coefficients, strict=True))
            # The refinement would drop them at once: a slow one must not let them pile up.
            while self._tracked[-1][0].time - self._tracked[0][0].time > self.online.window:
                self._tracked.popleft()

    def _keep(self, frame: Frame, reduced: MeasuredFrame) -> None:
        """Keep a frame for the model's next start, as long as there will be one."""
        with self._lock:
            if self._settled:
                return
            self._first.append((frame, reduced))
            # More than a start waits for: a slow one finds them all the same, and they do not pile up.
            while _span(self._first) > max(self.online.start, self.online.settle) + self.online.window:
                self._first.popleft()

    def _measure(self, frame: Frame) -> tuple[Assembled, MeasuredFrame]:
        assert self._encoder is not None
        made = self._assemble([frame], one_frame=True)
        return made, self._encoder.measure(made.problem.to(self._device), gridded=not self._settled, steps=frame.steps)

    def _assemble(self, frames: Sequence[Frame], one_frame: bool = False) -> Assembled:
        """The problem of some frames: as many frames, or one with all their readouts."""
        readouts: dict[int, tuple[Readout, float]] = {}
        for frame in frames:
            readouts.update({r.number: (r, time) for r, time in zip(frame.readouts, frame.times, strict=True)})
        numbers = sorted(readouts)
        listed = [readouts[number][0] for number in numbers]
        times = np.array([readouts[number][1] for number in numbers])
        whitening = self._whitening
        if whitening is None and not self.settings.whitened:
            head = listed[0].head
            whitening = self._noise.matrix(listed[0].samples.shape[0], float(head.sample_time_us), self._header.noise_bandwidth)
        whole = dataclasses.replace(self.settings, readouts_per_frame=len(listed), frame_stride=None)
        made = assemble(listed, times, self._header, whole, whitening)
        if one_frame:
            return dataclasses.replace(made, notes=self._notes)
        place = {number: n for n, number in enumerate(numbers)}
        members = tuple(torch.tensor([place[r.number] for r in frame.readouts], dtype=torch.int64) for frame in frames)
        means = torch.tensor([float(np.mean(frame.times)) for frame in frames], dtype=torch.float64)
        return dataclasses.replace(made, problem=made.problem.replace(frames=members, frame_times=means))


def _span(frames: Sequence[tuple[Frame, MeasuredFrame]]) -> float:
    """Seconds from the first frame to the last."""
    return frames[-1][1].time - frames[0][1].time


def _series(image: Tensor, frame: Frame) -> ImageSeries:
    return ImageSeries(image[None].to("cpu", torch.complex64), torch.tensor([float(np.mean(frame.times))], dtype=torch.float64))
