"""What happened to every readout and frame of a scan, and how late its images left."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence

import numpy as np

from gadgets.online.schedule import Frame
from recon_core.online.tracker import Model

QUANTILES = (("median", 50.0), ("95th", 95.0), ("99th", 99.0), ("worst", 100.0))


def quantiles(lags: Sequence[float]) -> dict[str, float]:
    """Median, 95th and 99th percentile and worst of lags, in their unit."""
    return {name: float(np.percentile(lags, share)) for name, share in QUANTILES}


@dataclasses.dataclass
class Status:
    """Counts of one scan; every method may be called from any thread.

    Attributes:
        readouts: imaging readouts received.
        shown: readouts in frames whose image was sent (each counted once).
        given_up: readouts in frames given up.
        start: readouts in frames before the calibration, without an image of their own.
        loose: readouts in no whole frame.
        frames: frames completed.
        sent: images sent.
        joined: frames that went into an image with others.
        skipped: frames given up.
        early: frames before the calibration.
    """

    readouts: int = 0
    shown: int = 0
    given_up: int = 0
    start: int = 0
    loose: int = 0
    frames: int = 0
    sent: int = 0
    joined: int = 0
    skipped: int = 0
    early: int = 0
    lags: list[float] = dataclasses.field(default_factory=list)
    busy: list[float] = dataclasses.field(default_factory=list)
    refinements: list[float] = dataclasses.field(default_factory=list)
    version: int = 0
    age: float | None = None
    error: float | None = None
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock, repr=False)

    def received(self, frame: Frame | None) -> None:
        """A readout came in, and completed a frame or not."""
        with self._lock:
            self.readouts += 1
            self.frames += frame is not None

    def gave_up(self, frames: Sequence[Frame]) -> None:
        """Frames get no provisional image because the machine is too slow."""
        with self._lock:
            self.skipped += sum(frame.members for frame in frames)
            self.given_up += sum(frame.fresh for frame in frames)

    def began(self, frames: Sequence[Frame]) -> None:
        """Frames came before there was a calibration to make an image with."""
        with self._lock:
            self.early += sum(frame.members for frame in frames)
            self.start += sum(frame.fresh for frame in frames)

    def not_early(self, frame: Frame) -> None:
        """A frame counted by :meth:`began` gets its image after all."""
        with self._lock:
            self.early -= frame.members
            self.start -= frame.fresh

    def worked(self, seconds: float, frames: int) -> None:
        """The solver's thread computed for so long for so many frames."""
        with self._lock:
            self.busy += [seconds / frames] * frames

    def refined(self, model: Model, seconds: float) -> None:
        """The refinement published a model."""
        with self._lock:
            self.refinements.append(seconds)
            self.version = model.version

    def left(self, frame: Frame, lag: float, age: float | None, error: float | None) -> None:
        """An image was sent, so many seconds after the last readout of its frame."""
        with self._lock:
            self.sent += 1
            self.shown += frame.fresh
            self.joined += frame.members if frame.members > 1 else 0
            self.lags.append(lag)
            self.age, self.error = age, error

    def line(self) -> str:
        """How things stand, for a client's screen."""
        with self._lock:
            lag = f"lag {1e3 * self.lags[-1]:.0f} ms" if self.lags else "no image yet"
            model = "gridding" if self.age is None else f"model {self.version}, {self.age:.2f} s old"
            error = "" if self.error is None else f", held-out error {self.error:.3g}"
            return (
                f"online: {self.readouts} readouts and {self.frames} frames received, {self.sent} images sent, "
                f"{self.skipped} frames skipped, {self.joined} joined, {lag}, {model}{error}"
            )

    def summary(self) -> list[str]:
        """Every readout accounted for, and the lags, at the end of the scan."""
        with self._lock:
            counts = (
                f"online: {self.readouts} readouts received: {self.shown} in {self.sent} provisional images ({self.joined} frames joined), "
                f"{self.given_up} in {self.skipped} frames skipped, {self.start} in {self.early} frames before the calibration, "
                f"{self.loose} in no whole frame"
            )
            lines = [counts]
            for name, values in (
                ("lag from the last readout of a frame received to its image sent", self.lags),
                ("solver's CPU time a frame", self.busy),
                ("refinement's time", self.refinements),
            ):
                if values:
                    lines.append(f"{name}: " + ", ".join(f"{key} {1e3 * value:.0f} ms" for key, value in quantiles(values).items()))
            return lines
