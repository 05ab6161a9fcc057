"""Frames of Cartesian lines: where the phase-encoding order starts again, or as the scanner's counters say."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gadgets.binning.by_count import Binning
from recon_core.errors import DataError


def by_encoding_order(steps: NDArray[np.float64]) -> Binning:
    """A frame begins where the order of phase encoding starts again.

    Orders known: rising, falling, outwards from the centre, inwards to it; taken is the one that gives the fewest frames. A line that is
    acquired twice in a row stays in its frame.

    Args:
        steps: position of every readout along the phase-encoding axis, k = 0 at 0, in order of acquisition.

    Raises:
        DataError: no readouts.
    """
    if len(steps) == 0:
        raise DataError("readouts", "no imaging readout", "Send at least one readout that is neither noise nor dummy.")
    orders = {"rising": steps, "falling": -steps, "outwards": np.abs(steps), "inwards": -np.abs(steps)}
    restarts = {name: np.flatnonzero(np.diff(key) < 0) + 1 for name, key in orders.items()}
    name = min(restarts, key=lambda n: len(restarts[n]))
    frames = np.split(np.arange(len(steps), dtype=np.int64), restarts[name])
    sizes = [len(frame) for frame in frames]
    lines = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
    return Binning(tuple(frames), f"phase encoding {name}: {len(frames)} frames of {lines} lines")


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
