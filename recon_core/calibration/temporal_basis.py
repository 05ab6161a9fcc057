"""Temporal basis of a scan from its own central k-space (GRASP-Pro: Feng et al., Magn Reson Med 2020;83:94).

A series at low resolution is far better determined than the full one: its frames are reconstructed with temporal total variation, and the
leading right singular vectors of its Casorati matrix span the full-resolution series.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recon_core.calibration.calibrate import calibrate
from recon_core.operators.frames import FrameEncoding
from recon_core.operators.proximal import Fista, TemporalTv, largest_eigenvalue
from recon_core.problem import KSpaceProblem

_DUAL_STEPS = 6
DENSITY_POWER = 0.5


def power_weighted(problem: KSpaceProblem, power: float = DENSITY_POWER) -> KSpaceProblem:
    """The problem with its density weights raised to ``power`` and scaled to at most 1.

    0 is maximum likelihood and converges slowly (k-space's centre weighs most), 1 converges fast and lets the noise of high k in; the
    square root is close to the best of both.
    """
    if problem.weights is None:
        return problem
    return problem.replace(weights=(problem.weights / problem.weights.max().clamp_min(1e-30)).pow(power))


def low_resolution_series(problem: KSpaceProblem, width: int, strength: float, steps: int, coils: int, engine: str = "auto") -> Tensor:
    """Frames at low resolution, with temporal total variation.

    Args:
        problem: whitened; its samples beyond the low resolution are not used.
        width: pixels an axis, at most the problem's.
        strength: λ relative to the largest magnitude of the adjoint image.
        steps: FISTA steps.
        coils: virtual coils.
        engine: NUFFT engine by name.

    Returns:
        complex64 ``[frame, (z,) y, x]``.
    """
    small = problem.at_shape(tuple(min(n, width) for n in problem.shape))
    calibrated = power_weighted(calibrate(small, coils, engine)[0])
    encoding = FrameEncoding(calibrated, engine)
    normal = encoding.normal()
    target = encoding.backprojection(density=True)

    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(target.shape, dtype=torch.complex64, generator=generator).to(target.device)
    step = 1 / (1.1 * largest_eigenvalue(normal, noise))
    threshold = strength * float(target.abs().max()) * step
    prox = TemporalTv(target.shape, _DUAL_STEPS, target.device)
    # The time average is the limit of strong regularisation, and everything dynamic grows from it.
    fista = Fista((step * target.mean(0)).expand_as(target).contiguous())
    for _ in range(steps):
        fista.accept(prox(fista.ahead - step * (normal(fista.ahead) - target), threshold))
    return fista.x


def joined_frames(problem: KSpaceProblem, each: int) -> KSpaceProblem:
    """The problem with every so many neighbouring frames joined to one, at the mean time of its readouts."""
    if each == 1:
        return problem
    parts = [problem.frames[n : n + each] for n in range(0, problem.n_frames, each)]
    frames = tuple(torch.unique(torch.cat(part)) for part in parts)
    times = torch.stack([problem.frame_times[n : n + each].mean() for n in range(0, problem.n_frames, each)])
    means = [problem.readout_times[f.cpu()].mean() if f.numel() else t for f, t in zip(frames, times, strict=True)]
    return problem.replace(frames=frames, frame_times=torch.stack(means))


def orthonormal_rows(rows: Tensor) -> Tensor:
    """Rows ``[K, frame]`` made orthonormal, each against those before it."""
    return torch.linalg.solve_triangular(torch.linalg.cholesky(rows @ rows.T), rows, upper=False)


def temporal_basis(series: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Leading real temporal components of a complex series.

    Real and imaginary parts count as separate pixels: the basis is real, its coefficients are complex.

    Args:
        series: complex64 ``[frame, …]``.
        rank: components wanted; at most as many as frames.

    Returns:
        float32 ``[K, frame]`` with orthonormal rows by falling singular value, and the singular values float32 ``[K]``.
    """
    flat = series.flatten(1)
    real = torch.view_as_real(flat).flatten(1).double()
    values, vectors = torch.linalg.eigh(real @ real.T)
    kept = min(rank, series.shape[0])
    basis = vectors.flip(1)[:, :kept].T
    signs = torch.sign(basis.sum(1, keepdim=True))
    basis = basis * torch.where(signs == 0, torch.ones_like(signs), signs)
    return basis.to(torch.float32).contiguous(), values.flip(0)[:kept].clamp_min(0).sqrt().to(torch.float32)
