"""Heartbeats and breathing from the k-space centre of the readouts themselves."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gadgets.binning.beats import LONGEST, SHORTEST, peaks
from recon_core.errors import DataError

BREATHS = (0.08, 0.6)
"""Hz of breathing."""

_LEAST_PER_BEAT = 6
_ORDER = 2


def heartbeats(centre: NDArray[np.complex64], times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Moments of the heartbeats (one fixed point of every beat, not the R wave), seconds.

    The leading principal component over coils of what varies at 0.67 Hz to 3.3 Hz; its waves are the beats.

    Args:
        centre: ``[coil, readout]``, samples at k = 0.
        times: float64 ``[readout]``, seconds, rising.

    Raises:
        DataError: too few readouts pass the centre, or the scan is shorter than three beats.
    """
    grid, signals = _evenly(centre, times)
    spacing = grid[1] - grid[0]
    if spacing > SHORTEST / _LEAST_PER_BEAT * 2:
        raise DataError(
            "gating",
            f"the k-space centre is read every {1e3 * spacing:.0f} ms, too rarely for heartbeats",
            "Set gating=ecg, pulse or stamps.",
        )
    signal = _component(signals, spacing, (1 / LONGEST, 1 / SHORTEST))
    return grid[0] + peaks(signal, spacing)


def breathing(centre: NDArray[np.complex64], times: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Respiratory amplitude (sign unknown) at the moments wanted: the leading component of what varies as slowly as breathing.

    Args:
        centre: ``[coil, readout]``, samples at k = 0.
        times: float64 ``[readout]``, seconds, rising.
        wanted: float64, seconds.

    Raises:
        DataError: too few readouts pass the centre.
    """
    grid, signals = _evenly(centre, times)
    signal = _component(signals, grid[1] - grid[0], BREATHS)
    amplitude: NDArray[np.float64] = np.interp(wanted, grid, signal)
    return amplitude


def _evenly(centre: NDArray[np.complex64], times: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Even times, and real signals ``[coil · 2, sample]`` there."""
    if len(times) < 16 or times[-1] - times[0] < 3 * SHORTEST:
        raise DataError(
            "gating", f"{len(times)} readouts pass the k-space centre", "Self-gating needs a longer scan whose readouts pass the centre."
        )
    grid = np.linspace(times[0], times[-1], len(times))
    parts = np.concatenate([centre.real, centre.imag]).astype(np.float64)
    return grid, np.stack([np.interp(grid, times, part) for part in parts])


def _component(signals: NDArray[np.float64], spacing: float, band: tuple[float, float]) -> NDArray[np.float64]:
    """Leading principal component of the signals within a band of frequencies, Hz."""
    from scipy.signal import butter, sosfiltfilt  # here as in :func:`gadgets.binning.beats.peaks`

    nyquist = 0.5 / spacing
    low, high = band[0], min(band[1], 0.95 * nyquist)
    if low >= high:
        raise DataError("gating", f"the k-space centre is read every {1e3 * spacing:.0f} ms", "Use a waveform instead of self-gating.")
    filtered = sosfiltfilt(butter(_ORDER, (low, high), "bandpass", fs=1 / spacing, output="sos"), signals, axis=1)
    _, _, components = np.linalg.svd(filtered - filtered.mean(axis=1, keepdims=True), full_matrices=False)
    leading: NDArray[np.float64] = components[0]
    return leading
