"""Frames of a fixed number of consecutive readouts (spokes, arms, lines), or a sliding window of them."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from recon_core.errors import DataError, SettingError


@dataclasses.dataclass(frozen=True, eq=False)
class Binning:
    """Readouts sorted into frames.

    Attributes:
        frames: for every frame the int64 indices of its readouts, ascending.
        note: what a reader should know (readouts left over), empty if nothing.
        phases: int64 ``[frame]``, cardiac phase of every frame; None where frames follow real time.
        repetitions: int64 ``[frame]``, repetition or respiratory state of every frame; None: the frame's number.
        times: float64 ``[readout]``, seconds within the mean cardiac cycle, in place of the time of acquisition; None: that.
        frame_times: float64 ``[frame]``, seconds, rising; None: means of the readouts' times.
    """

    frames: tuple[NDArray[np.int64], ...]
    note: str = ""
    phases: NDArray[np.int64] | None = None
    repetitions: NDArray[np.int64] | None = None
    times: NDArray[np.float64] | None = None
    frame_times: NDArray[np.float64] | None = None


def by_count(n_readouts: int, per_frame: int, stride: int | None = None) -> Binning:
    """Cut ``n_readouts`` consecutive readouts into frames.

    A frame starts every ``stride`` readouts and holds ``per_frame``; a stride below ``per_frame`` is a sliding window. Readouts after
    the last whole frame join that frame, so that nothing measured is lost; where the stride leaves gaps, an incomplete last window is
    left out like the gaps are. Fewer readouts than ``per_frame`` make one frame.

    Args:
        n_readouts: number of readouts, at least 1.
        per_frame: readouts in a frame, at least 1.
        stride: readouts from one frame's start to the next; None: ``per_frame``.

    Raises:
        DataError: no readouts.
        SettingError: ``per_frame`` or ``stride`` below 1.
    """
    step = per_frame if stride is None else stride
    for name, value in (("readouts_per_frame", per_frame), ("frame_stride", step)):
        if value < 1:
            raise SettingError(name, f"{value}", "Give at least 1.")
    if n_readouts < 1:
        raise DataError("readouts", "no imaging readout", "Send at least one readout that is neither noise nor dummy.")
    everything = np.arange(n_readouts, dtype=np.int64)
    if n_readouts < per_frame:
        return Binning((everything,), f"{n_readouts} readouts are fewer than readouts_per_frame={per_frame}: they make one frame")
    starts = range(0, n_readouts - per_frame + 1, step)
    frames = [everything[start : start + per_frame] for start in starts]
    end = starts[-1] + per_frame
    if step <= per_frame and end < n_readouts:
        frames[-1] = everything[starts[-1] :]
        return Binning(tuple(frames), f"{_counted(n_readouts - end)} left over after the last whole frame joined it")
    used = len(np.unique(np.concatenate(frames)))
    note = f"{_counted(n_readouts - used)} between frames left out (frame_stride={step})" if used < n_readouts else ""
    return Binning(tuple(frames), note)


def _counted(number: int) -> str:
    return f"{number} readout" if number == 1 else f"{number} readouts"


def frame_times(frames: tuple[NDArray[np.int64], ...], readout_times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean time of every frame's readouts, seconds, float64 ``[frame]``."""
    return np.array([readout_times[frame].mean() for frame in frames], dtype=np.float64)
