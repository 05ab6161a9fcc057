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
    radius = np.linalg.norm(trajectory / np.maximum(np.abs(trajectory).max(axis=(0, 1)), 1e-6), axis=-1)
    outer = used & (radius >= _OUTER * radius[used].max())
    magnitudes = np.abs(samples[:, outer])
    level = float(np.median(magnitudes)) / _MEDIAN_MAGNITUDE
    largest = float(np.abs(samples[:, used]).max())
    return max(level, _SMALLEST_NOISE * largest) or 1.0
