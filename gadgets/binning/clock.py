"""Times of readouts from their time stamps."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar

_SPREAD = 1.3


@dataclasses.dataclass(frozen=True, eq=False)
class Clock:
    """Times of all imaging readouts of a scan.

    Attributes:
        times: float64 ``[readout]``, seconds from the first.
        note: how the times came about if not plainly from the stamps, else empty.
    """

    times: NDArray[np.float64]
    note: str = ""


def readout_times(stamps: ArrayLike, tick: float, repetition_time: float | None = None) -> Clock:
    """Seconds from the first imaging readout.

    Stamps count ticks (2.5 ms on Siemens scanners), which is often no finer than the repetition time. Where one even spacing
    explains every stamp to within a tick, that spacing is taken, so that readouts between two ticks keep their order. Where the stamps
    are no clock (all equal, or running backwards), readouts are spaced by the header's TR, else by one tick.

    Args:
        stamps: ``acquisition_time_stamp`` of every imaging readout, in order of acquisition.
        tick: seconds a tick.
        repetition_time: TR of the header in seconds.
    """
    ticks = np.asarray(stamps, dtype=np.float64)
    order = np.arange(len(ticks), dtype=np.float64)
    if len(ticks) < 2:
        return Clock(np.zeros(len(ticks)))
    steps = np.diff(ticks)
    if (steps < 0).any() or not steps.any():
        fault = "run backwards" if (steps < 0).any() else "are all equal"
        spacing, source = (repetition_time, "the header's TR") if repetition_time else (tick, "one tick")
        return Clock(order * spacing, f"time stamps {fault}: readouts spaced by {source}, {1e3 * spacing:g} ms")
    even = _even_spacing(ticks, order)
    if even is not None:
        return Clock(order * even * tick)
    return Clock((ticks - ticks[0]) * tick)


def _even_spacing(ticks: NDArray[np.float64], order: NDArray[np.float64]) -> float | None:
    """Ticks a readout if evenly spaced readouts, their times rounded to ticks, could have given these stamps; else None."""
    slope = float(np.polyfit(order, ticks, 1)[0])

    def spread(value: float) -> float:
        return float(np.ptp(ticks - value * order))

    if spread(slope) > _SPREAD:
        # A single late tick at an end turns the least-squares line more than the one about which stamps spread least.
        reach = 3 / order[-1]
        slope = float(minimize_scalar(spread, bounds=(slope - reach, slope + reach), method="bounded", options={"xatol": 1e-3 * reach}).x)
    # Truncation to whole ticks leaves one tick around the true line; the rest is for the fitted one.
    return slope if slope > 0 and spread(slope) <= _SPREAD else None
