"""Noise readouts to a whitening matrix."""

from __future__ import annotations

import math

import ismrmrd
import numpy as np
import torch
from torch import Tensor

from recon_core.calibration.whitening import whitening_matrix
from recon_core.errors import DataError

# |n| of unit-variance complex noise is Rayleigh distributed with this median.
_MEDIAN_MAGNITUDE = math.sqrt(math.log(2))
# Below this share of the largest sample the estimate is no longer noise but rounding.
_SMALLEST_NOISE = 1e-4
_OUTER = 0.85

NOISE_ADJUST_LEVEL = math.sqrt(2)
"""√E|n|² behind Gadgetron's NoiseAdjust, which scales the noise of real and imaginary part to 1 each."""
_IMPOSSIBLE = 0.5  # quietest channel of whitened samples: nothing can lower their noise that far
_SAME_LEVEL = 0.15
_UNCORRELATED = 0.15
_SAMPLES_PER_COIL = 100


class NoiseReadouts:
    """Collects a scan's noise readouts."""

    def __init__(self) -> None:
        self._readouts: list[np.ndarray] = []
        self._dwell = 0.0

    def add(self, acquisition: ismrmrd.Acquisition, number: int) -> None:
        """Keep one noise readout.

        Args:
            acquisition: the readout.
            number: its place in the stream, for messages.

        Raises:
            DataError: NaN or Inf, or another channel count than the noise readouts before.
        """
        data = np.array(acquisition.data, dtype=np.complex64)
        if not np.isfinite(data.view(np.float32)).all():
            raise DataError(f"readout {number}", "NaN or Inf in a noise readout", "Leave out or repair that readout.")
        if self._readouts and self._readouts[0].shape[0] != data.shape[0]:
            raise DataError(
                f"readout {number}.active_channels",
                f"{data.shape[0]} channels after noise readouts of {self._readouts[0].shape[0]}",
                "Send all noise readouts with the same channels.",
            )
        self._readouts.append(data)
        self._dwell = float(acquisition.sample_time_us)

    def __len__(self) -> int:
        return len(self._readouts)

    def matrix(self, channels: int, dwell_us: float = 0.0, bandwidth: float = 1.0) -> Tensor | None:
        """Whitening matrix of imaging readouts, None without usable noise.

        Args:
            channels: channels of the imaging readouts.
            dwell_us: their dwell time; noise power is scaled by the ratio of dwell times where both are known.
            bandwidth: relative receiver noise bandwidth of the header.

        Returns:
            complex64 ``[coil, coil]``.

        Raises:
            DataError: other channels than the imaging readouts, too few samples, or a channel without noise.
        """
        if not self._readouts:
            return None
        noise = np.concatenate(self._readouts, axis=1)
        if noise.shape[0] != channels:
            raise DataError(
                "noise readouts",
                f"{noise.shape[0]} channels, imaging readouts have {channels}",
                "Send noise of the same coils, or leave the noise readouts out.",
            )
        matrix = whitening_matrix(torch.from_numpy(noise))
        # Noise power goes with the bandwidth 1/dwell; the receiver's filter lowers the mean power of the noise readout.
        ratio = dwell_us / self._dwell if dwell_us > 0 and self._dwell > 0 else 1.0
        return matrix * math.sqrt(ratio * bandwidth)


def _outermost(samples: np.ndarray, trajectory: np.ndarray, used: np.ndarray) -> np.ndarray:
    """The outermost used samples of k-space, ``[coil, sample]``."""
    radius = np.linalg.norm(trajectory / np.maximum(np.abs(trajectory).max(axis=(0, 1)), 1e-6), axis=-1)
    return samples[:, used & (radius >= _OUTER * radius[used].max())]


def arrives_whitened(samples: np.ndarray, trajectory: np.ndarray, used: np.ndarray, declared: bool | None) -> tuple[bool, str]:
    """Whether a stage before this one has whitened the samples, to √E|n|² = :data:`NOISE_ADJUST_LEVEL`.

    Nothing on the wire says so. Undeclared, it is only believed where the covariance of outer k-space is that of whitened noise, which
    chance does not make; signal there hides it, and the scan is then treated as one without noise readouts. Declared, it is believed
    unless a channel is quieter than whitened noise can be: NoiseAdjust hands on a scan without noise readouts as it is.

    Args:
        samples: complex64 ``[coil, readout, sample]``, at least one used.
        trajectory: float32 ``[readout, sample, axis]``.
        used: bool ``[readout, sample]``.
        declared: what the chain says; None if nothing.

    Returns:
        The answer, and what a reader of the images must know.
    """
    if declared is False:
        return False, ""
    outer = _outermost(samples, trajectory, used)
    if declared:
        quietest = float(np.median(np.abs(outer), axis=1).min()) / _MEDIAN_MAGNITUDE
        if quietest < _IMPOSSIBLE:
            return False, f"declared whitened, but a channel's outer k-space is at {quietest:.3g}: taken as not whitened"
        return True, "whitened by a stage before this one"
    coils, count = outer.shape
    if count < _SAMPLES_PER_COIL * coils:
        return False, ""
    covariance = outer.astype(np.complex128) @ outer.conj().T.astype(np.complex128) / count
    levels = np.sqrt(covariance.diagonal().real)
    if not (np.abs(levels / NOISE_ADJUST_LEVEL - 1) < _SAME_LEVEL).all():
        return False, ""
    correlation = np.abs(covariance / np.outer(levels, levels) - np.eye(coils)).max()
    return (True, "found whitened by a stage before this one") if correlation < _UNCORRELATED else (False, "")


def noise_level(samples: np.ndarray, trajectory: np.ndarray, used: np.ndarray) -> float:
    """Noise standard deviation guessed from the outermost k-space samples of a scan without noise readouts.

    A robust median, as signal there is sparse; an upper bound where the object has strong fine structure.

    Args:
        samples: complex64 ``[coil, readout, sample]``.
        trajectory: float32 ``[readout, sample, axis]``.
        used: bool ``[readout, sample]``.

    Returns:
        √E|n|² of a complex sample, above zero.
    """
    magnitudes = np.abs(_outermost(samples, trajectory, used))
    level = float(np.median(magnitudes)) / _MEDIAN_MAGNITUDE
    largest = float(np.abs(samples[:, used]).max())
    return max(level, _SMALLEST_NOISE * largest) or 1.0
