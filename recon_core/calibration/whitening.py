"""Noise whitening (prewhitening) from noise readouts."""

from __future__ import annotations

import torch
from torch import Tensor

from recon_core.errors import DataError


def noise_covariance(noise: Tensor) -> Tensor:
    """Sample covariance ``E[n nᴴ]`` of noise samples ``[coil, sample]`` as complex64 ``[coil, coil]``.

    Raises:
        DataError: too few samples, or not finite.
    """
    if noise.shape[1] < 2 * noise.shape[0]:
        raise DataError("noise readouts", f"{noise.shape[1]} samples for {noise.shape[0]} coils", "Record at least two samples a coil.")
    if not bool(torch.isfinite(torch.view_as_real(noise)).all()):
        raise DataError("noise readouts", "NaN or Inf", "Repair or leave out the noise readouts.")
    wide = noise.to(torch.complex128)
    wide = wide - wide.mean(dim=1, keepdim=True)
    return (wide @ wide.conj().T / (noise.shape[1] - 1)).to(torch.complex64)


def whitening_matrix(noise: Tensor) -> Tensor:
    """The inverse Cholesky factor of the noise covariance.

    Args:
        noise: complex64 ``[coil, sample]``, at the imaging readouts' bandwidth.

    Returns:
        complex64 ``[coil, coil]``; samples multiplied by it have unit noise covariance.

    Raises:
        DataError: the covariance is singular (a dead coil), not finite, or from too few samples.
    """
    covariance = noise_covariance(noise).to(torch.complex128)
    factor, info = torch.linalg.cholesky_ex(covariance)
    scale = covariance.diagonal().real
    if int(info) != 0 or float(scale.min()) <= 1e-12 * float(scale.max()):
        dead = int(scale.argmin())
        raise DataError("noise covariance", f"singular, smallest at channel {dead}", "Leave out dead or duplicated channels.")
    eye = torch.eye(covariance.shape[0], dtype=covariance.dtype)
    return torch.linalg.solve_triangular(factor, eye, upper=False).to(torch.complex64)


def whiten(samples: Tensor, matrix: Tensor) -> Tensor:
    """Multiply samples ``[coil, ...]`` by a whitening matrix ``[coil, coil]``."""
    return (matrix.to(samples.device) @ samples.flatten(1)).reshape(samples.shape)
