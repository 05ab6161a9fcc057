"""Frames by cardiac phase and respiratory state."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gadgets.binning.beats import Beats
from gadgets.binning.by_count import Binning


def respiratory_states(signal: NDArray[np.float64], states: int) -> NDArray[np.int64]:
    """State 0 … of every readout: equally many readouts a state, by rising amplitude.

    Args:
        signal: respiratory amplitude at every readout.
        states: number of states.
    """
    rank = np.empty(len(signal), dtype=np.int64)
    rank[np.argsort(signal, kind="stable")] = np.arange(len(signal))
    return rank * states // max(len(signal), 1)


def by_phase(
    times: NDArray[np.float64],
    beats: Beats,
    phases: int,
    states: NDArray[np.int64] | None = None,
    n_states: int = 1,
) -> Binning:
    """A frame holds the readouts of one cardiac phase (equal shares of every beat) in one respiratory state.

    Frames go through the phases of state 0, then of state 1, …, as one cardiac cycle of median length each; readouts get their time in
    it. Phases without a readout stay, empty, for solvers interpolate in time.

    Args:
        times: seconds of every readout.
        beats: from the same origin.
        phases: cardiac phases.
        states: respiratory state of every readout; None: one for all.
        n_states: number of respiratory states.
    """
    covering = beats.covering(float(times.min()), float(times.max()))
    share = covering.phase(times)
    phase = np.floor(share * phases).astype(np.int64)
    state = np.zeros(len(times), dtype=np.int64) if states is None else states
    owner = state * phases + phase
    frames = tuple(np.flatnonzero(owner == number).astype(np.int64) for number in range(n_states * phases))
    number = np.arange(n_states * phases)
    empty = sum(len(frame) == 0 for frame in frames)
    breath = f" × {n_states} respiratory states" if n_states > 1 else ""
    note = f"gated: {phases} cardiac phases{breath} from {len(beats.starts)} heartbeats of {1e3 * beats.length:.0f} ms"
    mended = [f"{n} {what}" for n, what in ((beats.missed, "missed"), (beats.spurious, "spurious")) if n]
    note += f", {' and '.join(mended)} triggers mended" if mended else ""
    note += f"; {empty} without a readout are interpolated" if empty else ""
    return Binning(
        frames,
        note,
        phases=number % phases,
        repetitions=number // phases,
        times=beats.length * (state + share),
        frame_times=beats.length * (number + 0.5) / phases,
    )
