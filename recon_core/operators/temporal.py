"""Temporal coefficients in closed form: per frame a K×K least-squares problem, coupled along time.

The step in V of variable projection and of alternating least squares (Golub and Pereyra, SIAM J Numer Anal 1973;10:413) for a series
``d_t = Σ_k V_kt U_k`` with real V.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from scipy.linalg import LinAlgError, solveh_banded
from torch import Tensor

from recon_core.errors import DataError
from recon_core.operators.frames import FrameSamples, NufftOptions
from recon_core.operators.nufft import Nufft


@dataclasses.dataclass(frozen=True, eq=False)
class TemporalSystem:
    """The data term in V, ``Σ_t V_tᵀ A_t V_t − 2 V_tᵀ b_t + e_t``.

    Attributes:
        normal: float64 ``[frame, K, K]``, A (on the CPU, as the others).
        target: float64 ``[frame, K]``, b.
        energy: float64 ``[frame]``, ``Σ w |y|²``.
    """

    normal: Tensor
    target: Tensor
    energy: Tensor


def temporal_system(frames: Sequence[FrameSamples], sensitivities: Tensor, bases: Tensor, nufft: NufftOptions) -> TemporalSystem:
    """Every frame's normal matrix and right-hand side, from one transform of the bases to the samples of all frames.

    Args:
        frames: samples, points and weights of every frame; a frame may have none.
        sensitivities: complex64 ``[coil, (z,) y, x]``.
        bases: complex64 ``[K, (z,) y, x]``, U.
        nufft: how the transform is made.
    """
    counts = [f.points.shape[0] for f in frames]
    shape = tuple(sensitivities.shape[1:])
    transform = Nufft(torch.cat([f.points for f in frames]), shape, nufft.engine, nufft.tolerance, nufft.cartesian)
    root = torch.cat([f.weights for f in frames]).sqrt()
    samples = torch.cat([f.samples for f in frames], dim=1)
    columns = bases.shape[0] + 1
    gram = torch.zeros((len(frames), columns, columns), dtype=torch.float64, device=bases.device)
    # Coil by coil: the bases at all samples of all coils would be the largest array of a fit.
    for coil, acquired in zip(sensitivities, samples, strict=True):
        joined = torch.cat([transform.forward(coil * bases), acquired[None]]) * root
        # V is real: real and imaginary parts are samples of their own. The acquired ones ride along as one more column.
        parts = torch.view_as_real(joined).permute(1, 2, 0).contiguous()
        padded = torch.nn.utils.rnn.pad_sequence(list(parts.split(counts)), batch_first=True).flatten(1, 2)
        gram += torch.bmm(padded.mT, padded)
    gram = gram.cpu()
    return TemporalSystem(gram[:, :-1, :-1], gram[:, :-1, -1], gram[:, -1, -1])


def second_difference_bands(n_frames: int) -> Tensor:
    """``DᵀD`` of second differences D along frames, float64 ``[offset, frame]``: diagonal, first and second one below it.

    Entry ``[s, t]`` is that of row ``t + s`` and column ``t``; fewer than three frames have no second difference.
    """
    bands = torch.zeros((3, n_frames), dtype=torch.float64)
    stencil = (1.0, -2.0, 1.0)
    rows = max(0, n_frames - 2)
    for column, left in enumerate(stencil):
        for row in range(column, 3):
            bands[row - column, column : column + rows] += left * stencil[row]
    return bands


def coupled_coefficients(normal: Tensor, target: Tensor, bands: Tensor, tie: Tensor) -> Tensor:
    """Minimise ``Σ_t V_tᵀ A_t V_t − 2 V_tᵀ b_t + Σ_{s,t} P_st V_sᵀ Q V_t``, exactly, in one banded Cholesky solve.

    On the CPU in float64 wherever the data lie: a few Mflop, and the condition of A is the square of the bases'.

    Args:
        normal: ``[frame, K, K]``, A.
        target: ``[frame, K]``, b.
        bands: ``[offset, frame]``, P: diagonal and those below it, as :func:`second_difference_bands` has them.
        tie: ``[K, K]``, Q, symmetric.

    Returns:
        float64 ``[frame, K]``, V, on the CPU.

    Raises:
        DataError: the system is not positive definite: data and coupling leave a coefficient open.
    """
    n_frames, rank = target.shape
    coupling, between = bands.double().cpu().numpy(), tie.double().cpu().numpy()
    blocks = coupling[:, :, None, None] * between
    blocks[0] += normal.double().cpu().numpy()
    banded = np.zeros((len(blocks) * rank, n_frames, rank))
    for offset, block in enumerate(blocks):
        for row in range(rank):
            for column in range(rank):
                below = offset * rank + row - column
                if below >= 0:
                    banded[below, :, column] += block[:, row, column]
    try:
        found = solveh_banded(banded.reshape(-1, n_frames * rank), target.double().cpu().numpy().reshape(-1), lower=True)
    except LinAlgError as error:
        cure = "Couple the frames more strongly, lower the rank, or give frames more readouts."
        raise DataError("temporal coefficients", f"not determined by the data ({error})", cure) from error
    return torch.from_numpy(found).reshape(n_frames, rank)
