"""Coil sensitivities from the time-averaged data: ESPIRiT (Uecker et al., Magn Reson Med 2014;71:990)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recon_core.errors import DataError
from recon_core.operators.nufft import Nufft

CALIBRATION_WIDTH = 24
KERNEL_WIDTH = 6
LEAST_LINES = 8
SINGULAR_THRESHOLD = 0.02
_CG_STEPS = 15
_EIG_CHUNK = 1 << 16
_LEAST = 1e-15
"""Samples no larger, or larger than one over it, have squares near the ends of single precision."""


def calibration_region(points: Tensor, samples: Tensor, weights: Tensor, shape: tuple[int, ...], engine: str, cartesian: bool) -> Tensor:
    """Central k-space on the Cartesian grid, by least squares on a small matrix.

    Args:
        points: float32 ``[point, axis]``, cycles per field of view.
        samples: complex64 ``[coil, point]``.
        weights: float32 ``[point]``, density compensation.
        shape: image shape of the calibration region, a few dozen pixels an axis.
        engine: NUFFT engine by name.
        cartesian: the points lie on the grid.

    Returns:
        complex64 ``[coil, *shape]``, k = 0 at index N//2.
    """
    half = torch.tensor([n / 2 for n in reversed(shape)], device=points.device)
    inside = (points.abs() < half - 0.49 * int(cartesian)).all(dim=1)
    points, samples, weights = points[inside], samples[:, inside], weights[inside]
    nufft = Nufft(points, shape, engine, cartesian=cartesian)
    image = _conjugate_gradients(nufft, samples, weights)
    dims = tuple(range(1, len(shape) + 1))
    return torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(image, dim=dims), dim=dims, norm="ortho"), dim=dims)


def measured_centre(points: Tensor, largest: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the centre of a Cartesian grid, at most ``largest``, in which no line was left out (the calibration lines and more).

    Args:
        points: float32 ``[point, axis]``, cycles per field of view, on the grid.
        largest: ``((nz,) ny, nx)``.

    Raises:
        DataError: too few for a kernel of :func:`espirit`.
    """
    found = []
    for axis, n in enumerate(largest):
        measured = set(torch.unique(torch.round(points[:, len(largest) - 1 - axis])).to(torch.int64).tolist())
        found.append(next(m for m in range(n, -1, -1) if all(k in measured for k in range(-(m // 2), m - m // 2))))
    for axis, (n, wanted) in enumerate(zip(found, largest, strict=True)):
        if n < min(wanted, LEAST_LINES):
            raise DataError(
                "trajectory",
                f"{n} neighbouring lines about the k-space centre along {'xyz'[len(largest) - 1 - axis]}, too few for coil sensitivities",
                f"Acquire {LEAST_LINES} or more there, in one frame or over all of them.",
            )
    return tuple(found)


def _conjugate_gradients(nufft: Nufft, samples: Tensor, weights: Tensor) -> Tensor:
    x = torch.zeros((samples.shape[0], *nufft.shape), dtype=samples.dtype, device=samples.device)
    r = nufft.adjoint(weights * samples)
    p = r.clone()
    energy = r.abs().square().sum()
    start = energy
    for _ in range(_CG_STEPS):
        q = nufft.adjoint(weights * nufft.forward(p)) + 1e-4 * p
        step = energy / torch.vdot(p.flatten(), q.flatten()).real
        x = x + step * p
        r = r - step * q
        new = r.abs().square().sum()
        if float(new) < 1e-8 * float(start):
            break
        p = r + (new / energy) * p
        energy = new
    return x


def espirit(
    region: Tensor, shape: tuple[int, ...], kernel: int = KERNEL_WIDTH, threshold: float = SINGULAR_THRESHOLD
) -> tuple[Tensor, Tensor]:
    """Unit-norm sensitivities and their eigenvalues from a fully sampled calibration region.

    Args:
        region: complex64 ``[coil, (z,) y, x]``, k = 0 at index N//2.
        shape: image shape wanted.
        kernel: width of the k-space neighbourhood, samples.
        threshold: smallest singular value kept, relative to the largest.

    Returns:
        Maps complex64 ``[coil, *shape]`` with unit root-sum-of-squares and the phase of the first coil removed, and the
        largest eigenvalue float32 ``[*shape]`` (near 1 inside the object).

    Raises:
        DataError: no signal, or squares of it are beyond single precision.
    """
    coils, *sizes = region.shape
    largest = float(region.abs().max())
    if not _LEAST < largest < 1 / _LEAST:
        raise DataError(
            "samples",
            f"magnitudes up to {largest:.3g} around the centre of k-space",
            "Leave out slices without signal, or scale the samples.",
        )
    dim = len(sizes)
    widths = [min(kernel, (n + 1) // 2) for n in sizes]
    patches = region
    for axis, width in enumerate(widths):
        patches = patches.unfold(1 + axis, width, 1)
    # [coil, position..., offset...] to [position, coil · offset]
    order = [*range(1, dim + 1), 0, *range(dim + 1, 2 * dim + 1)]
    matrix = patches.permute(order).reshape(math.prod(n - w + 1 for n, w in zip(sizes, widths, strict=True)), -1)
    values, vectors = torch.linalg.eigh((matrix.conj().T @ matrix).to(torch.complex128))
    singular = values.clamp_min(0).sqrt()
    kept = vectors[:, singular > threshold * singular[-1]].to(torch.complex64)
    kernels = kept.T.reshape(-1, coils, *widths)
    return _eigen_maps(kernels, shape, widths)


def _eigen_maps(kernels: Tensor, shape: tuple[int, ...], widths: list[int]) -> tuple[Tensor, Tensor]:
    """Largest eigenvector of ``Σ_k h_k h_kᴴ`` at every pixel, h_k the kernels' images.

    The pixel's matrix is itself a trigonometric polynomial whose coefficients are the kernels' correlations: one zero-padded FFT of C²
    small arrays replaces one of every kernel.
    """
    coils = kernels.shape[1]
    dim = len(shape)
    dims = tuple(range(-dim, 0))
    lags = [2 * w - 1 for w in widths]
    spectra = torch.fft.fftn(kernels, s=lags, dim=dims).flatten(2)
    products = torch.einsum("kap,kbp->abp", spectra.conj(), spectra).reshape(coils, coils, *lags)
    correlation = torch.fft.ifftn(products, dim=dims)
    # Lags stand in FFT order: non-negative first, negative ones at the end.
    padded = correlation
    for axis, (n, width) in enumerate(zip(shape, widths, strict=True), start=2):
        first, last = padded.narrow(axis, 0, width), padded.narrow(axis, width, width - 1)
        gap = list(padded.shape)
        gap[axis] = n - (2 * width - 1)
        padded = torch.cat([first, padded.new_zeros(gap), last], dim=axis)
    matrices = torch.fft.fftshift(torch.fft.fftn(padded, dim=dims), dim=dims).flatten(2).permute(2, 0, 1)
    matrices = matrices / math.prod(widths)
    maps = torch.empty((matrices.shape[0], coils), dtype=torch.complex64, device=kernels.device)
    largest = torch.empty(matrices.shape[0], dtype=torch.float32, device=kernels.device)
    for start in range(0, matrices.shape[0], _EIG_CHUNK):
        part = slice(start, start + _EIG_CHUNK)
        values, vectors = torch.linalg.eigh(matrices[part])
        maps[part], largest[part] = vectors[..., -1], values[..., -1]
    phase = maps[:, :1] / maps[:, :1].abs().clamp_min(1e-12)
    maps = (maps * phase.conj()).T.reshape(coils, *shape).contiguous()
    return maps, largest.reshape(shape)


def sensitivities(
    points: Tensor,
    samples: Tensor,
    weights: Tensor,
    shape: tuple[int, ...],
    engine: str = "auto",
    cartesian: bool = False,
) -> tuple[Tensor, Tensor]:
    """Coil sensitivities from all samples of a scan, motion averaged.

    Args:
        points: float32 ``[point, axis]``, cycles per field of view.
        samples: complex64 ``[coil, point]``, whitened and compressed.
        weights: float32 ``[point]``, density compensation.
        shape: image shape ``((nz,) ny, nx)``.
        engine: NUFFT engine by name.
        cartesian: the points lie on the grid of ``shape``.

    Returns:
        complex64 ``[coil, (z,) y, x]`` with unit root-sum-of-squares, and the eigenvalue map float32 ``[(z,) y, x]``.
    """
    if samples.shape[0] == 1:
        ones = torch.ones((1, *shape), dtype=torch.complex64, device=samples.device)
        return ones, torch.ones(shape, device=samples.device)
    width = CALIBRATION_WIDTH if len(shape) == 2 else CALIBRATION_WIDTH * 2 // 3
    small = tuple(min(n, width) for n in shape)
    if cartesian:
        small = measured_centre(points, small)
    region = calibration_region(points, samples, weights, small, engine, cartesian)
    kernel = KERNEL_WIDTH if len(shape) == 2 else KERNEL_WIDTH - 2
    return espirit(region, shape, kernel)
