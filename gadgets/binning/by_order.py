"""Frames of Cartesian lines: where the phase-encoding order starts again, or as the scanner's counters say."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from gadgets.binning.by_count import Binning
from recon_core.errors import DataError

_LEAST_RUN = 3.0
"""Lines of a frame, on average: in lines shuffled at random every known order starts again after about two."""
_Restarts: TypeAlias = NDArray[np.bool_]


def by_encoding_order(steps: NDArray[np.float64], partitions: NDArray[np.float64] | None = None) -> Binning:
    """A frame begins where the order of phase encoding starts again.

    Orders known: rising, falling, outwards from the centre, inwards to it; of volumes one of them along each axis, either axis being the
    inner loop, or outwards or inwards in the plane of both. Taken is the order that gives the fewest frames. A line that is acquired
    twice in a row stays in its frame.

    Args:
        steps: position of every readout along the phase-encoding axis, k = 0 at 0, in order of acquisition.
        partitions: the same along the second phase-encoding axis of a volume.

    Raises:
        DataError: no readouts, or lines in none of these orders.
    """
    if len(steps) == 0:
        raise DataError("readouts", "no imaging readout", "Send at least one readout that is neither noise nor dummy.")
    lines = {name: np.diff(key) for name, key in _orders(steps).items()}
    restarts: dict[str, _Restarts] = {name: step < 0 for name, step in lines.items()}
    if partitions is not None and np.ptp(partitions) > 0:
        planes = {name: np.diff(key) for name, key in _orders(partitions).items()}
        restarts = {f"{one} within partitions {two}": _nested(lines[one], planes[two]) for one in lines for two in planes}
        restarts |= {f"{one}, partitions {two} within lines": _nested(planes[two], lines[one]) for one in lines for two in planes}
        radius = np.diff(np.hypot(steps, partitions))
        restarts |= {"outwards in the plane": radius < 0, "inwards in the plane": radius > 0}
    name = min(restarts, key=lambda n: int(restarts[n].sum()))
    frames = np.split(np.arange(len(steps), dtype=np.int64), np.flatnonzero(restarts[name]) + 1)
    sizes = [len(frame) for frame in frames]
    if len(steps) < _LEAST_RUN * len(frames) and min(sizes) < max(sizes):
        raise DataError(
            "kspace_encode_step_1",
            f"in no order that framing=order knows; the nearest, {name}, would make {len(frames)} frames, some of {min(sizes)} lines",
            "Set framing=counters where the scanner counts repetitions or phases, or framing=count with readouts_per_frame.",
        )
    held = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
    return Binning(tuple(frames), f"phase encoding {name}: {len(frames)} frames of {held} lines")


def _orders(steps: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Keys that never fall in a frame of that order."""
    return {"rising": steps, "falling": -steps, "outwards": np.abs(steps), "inwards": -np.abs(steps)}


def _nested(inner: NDArray[np.float64], outer: NDArray[np.float64]) -> _Restarts:
    """Where a loop in a loop starts again, from the changes of both keys."""
    restarts: _Restarts = (outer < 0) | ((outer == 0) & (inner < 0))
    return restarts


def by_counters(repetitions: NDArray[np.int64], phases: NDArray[np.int64]) -> Binning:
    """A frame holds the readouts of one repetition and one cardiac phase as the scanner counted them (prospective gating).

    Args:
        repetitions: ``idx.repetition`` of every readout.
        phases: ``idx.phase`` of every readout.

    Raises:
        DataError: no readouts.
    """
    if len(repetitions) == 0:
        raise DataError("readouts", "no imaging readout", "Send at least one readout that is neither noise nor dummy.")
    pairs, owner = np.unique(np.stack([repetitions, phases], axis=1), axis=0, return_inverse=True)
    frames = tuple(np.flatnonzero(owner.reshape(-1) == number).astype(np.int64) for number in range(len(pairs)))
    return Binning(frames, f"{len(pairs)} frames by the counters repetition and phase", phases=pairs[:, 1], repetitions=pairs[:, 0])
