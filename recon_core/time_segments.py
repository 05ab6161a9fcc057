"""Off-resonance phase as few products of a function of time and one of frequency.

exp(i2πΔf t) ≈ Σ_l b_l(t) c_l(Δf): with a segment's b in k-space and its c in the image, a Fourier transform that knows the phase at
every sample's own time becomes a few that do not (Noll et al., IEEE Trans Med Imaging 1991;10:629). The functions are the singular
vectors of the phase's matrix over times and frequencies, the best of their number (Fessler et al., IEEE Trans Signal Process
2005;53:3393).
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from recon_core.errors import DataError

_NODES_PER_TURN = 8
_PER_TURN = 64
"""Table entries for one turn of phase: linear interpolation between them errs by (2π/64)²/8 ≈ 1e-3 of a segment's share."""


@dataclasses.dataclass(frozen=True, eq=False)
class SegmentBasis:
    """exp(i2πΔf t) over given sample times and |Δf| up to ``largest``.

    Attributes:
        in_time: complex64 ``[segment, sample]``, b.
        table: complex64 ``[segment, entry]``, c at equally spaced frequencies from −``largest`` to ``largest``.
        largest: Hz.
    """

    in_time: Tensor
    table: Tensor
    largest: float

    @property
    def n_segments(self) -> int:
        """Number of products."""
        return self.in_time.shape[0]

    def in_space(self, frequency: Tensor) -> Tensor:
        """Function c of every pixel, complex64 ``[segment, ...]``, of off-resonances in Hz.

        Raises:
            DataError: a frequency beyond the basis.
        """
        found = float(frequency.abs().max())
        if not found <= self.largest * (1 + 1e-6):
            raise DataError(
                "field map", f"{found:.4g} Hz, prepared for {self.largest:.4g} Hz", "Make the segments for the map's own range."
            )
        entries = self.table.shape[1]
        place = ((frequency.double() + self.largest) * ((entries - 1) / (2 * self.largest))).clamp(0, entries - 1)
        below = place.floor().long().clamp_max(entries - 2)
        part = (place - below).to(torch.float32)
        table = self.table.to(frequency.device)
        return torch.lerp(table[:, below], table[:, below + 1], part.to(table.dtype))


def segment_basis(sample_times: Tensor, largest: float, tolerance: float) -> SegmentBasis:
    """The fewest products that reach an accuracy.

    Args:
        sample_times: float64 ``[sample]``, s.
        largest: bound on |Δf|, Hz; above 0.
        tolerance: root-mean-square error of the phase factor over all times and frequencies.

    Raises:
        DataError: ``largest`` is not above 0, or a time is not finite.
    """
    if not (largest > 0 and math.isfinite(largest)):
        raise DataError("field map", f"largest off-resonance {largest} Hz", "Leave the field map out where nothing is off resonance.")
    if not bool(torch.isfinite(sample_times).all()):
        raise DataError("sample times", "NaN or Inf", "Give the time of every sample of a readout.")
    times = sample_times.double()
    turns = 2 * largest * max(float(times.abs().max()), 1e-9)
    # A band of so many turns has hardly more dimensions than turns; a few nodes a turn span it.
    nodes = torch.linspace(-largest, largest, 16 + math.ceil(_NODES_PER_TURN * turns), dtype=torch.float64)
    left, values, _ = torch.linalg.svd(torch.exp(2j * math.pi * times[:, None] * nodes), full_matrices=False)
    rest = values.square().flip(0).cumsum(0).flip(0) / (len(times) * len(nodes))
    kept = max(1, int((rest > tolerance**2).sum()))
    # The error of linear interpolation falls with the square of the spacing.
    entries = 2 + math.ceil(turns * _PER_TURN * max(1.0, math.sqrt(1e-3 / tolerance)))
    frequencies = torch.linspace(-largest, largest, entries, dtype=torch.float64)
    table = left[:, :kept].conj().T @ torch.exp(2j * math.pi * times[:, None] * frequencies)
    in_time = left[:, :kept].T
    return SegmentBasis(in_time.to(torch.complex64).contiguous(), table.to(torch.complex64).contiguous(), largest)
