"""Normal operators as convolutions: point-spread spectra on a doubled grid.

FᴴWF is a block-Toeplitz matrix (Fessler et al., IEEE Trans Signal Process 2005;53:3393); for a series of low rank its K×K form does not
depend on the number of frames (Tamir et al., Magn Reson Med 2017;77:180).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from recon_core.operators.nufft import DEFAULT_TOLERANCE, Nufft

_SEPARABLE_POINTS = 4096
"""Up to so many points the exact matrix product costs less than a NUFFT onto the doubled grid."""


def point_spread_spectrum(
    points: Tensor,
    weights: Tensor,
    shape: Sequence[int],
    engine: str = "auto",
    tolerance: float = DEFAULT_TOLERANCE,
) -> Tensor:
    """Real spectrum of the convolution FᴴWF on the doubled grid.

    Args:
        points: float32 ``[point, axis]``, cycles per field of view.
        weights: float32 ``[point]``.
        shape: image shape ``((nz,) ny, nx)``.
        engine: NUFFT engine by name.
        tolerance: relative accuracy.

    Returns:
        float32 ``[(2 nz,) 2 ny, 2 nx]``, k = 0 at index 0.
    """
    if len(shape) == 2 and points.shape[0] <= _SEPARABLE_POINTS:
        return _separable_spectrum(points, weights, shape)
    doubled = tuple(2 * n for n in shape)
    nufft = Nufft(2 * points, doubled, engine, tolerance)
    spread = nufft.adjoint(weights.to(torch.complex64)[None])[0] * (math.sqrt(math.prod(doubled)) / math.prod(shape))
    # Displacement −N never occurs between two pixels; without it the kernel is Hermitian and its spectrum real.
    for axis in range(len(shape)):
        spread.select(axis, 0).zero_()
    dims = tuple(range(-len(shape), 0))
    return torch.fft.fftn(torch.fft.ifftshift(spread, dim=dims), dim=dims).real.contiguous()


def _separable_spectrum(points: Tensor, weights: Tensor, shape: Sequence[int]) -> Tensor:
    """The same spectrum, exactly, as one real matrix product: a sample's spectrum is a product of Dirichlet kernels."""
    ny, nx = shape
    along_y = dirichlet(2 * points[:, 1].double(), ny) * weights[:, None]
    return along_y.T @ dirichlet(2 * points[:, 0].double(), nx) / (ny * nx)


def dirichlet(position: Tensor, n: int) -> Tensor:
    """``Σ_{|d| < n} exp(−i2π d (q − position) / 2n)`` for q = 0 … 2n−1, float32 ``[point, q]``."""
    grid = torch.arange(2 * n, dtype=position.dtype, device=position.device)
    distance = torch.remainder(grid - position[:, None] + n, 2 * n) - n
    below = torch.sin(math.pi / (2 * n) * distance)
    above = torch.sin(math.pi / (2 * n) * (2 * n - 1) * distance)
    at_peak = below.abs() < 1e-9
    return torch.where(at_peak, 2.0 * n - 1, above / below.masked_fill(at_peak, 1.0)).to(torch.float32)


def pad_fft(images: Tensor, dim: int) -> Tensor:
    """FFT of images ``[..., (z,) y, x]`` zero-padded to twice their size; no transform of empty lines."""
    for axis in range(-1, -dim - 1, -1):
        images = torch.fft.fft(images, n=2 * images.shape[axis], dim=axis)
    return images


def ifft_crop(spectra: Tensor, dim: int) -> Tensor:
    """Inverse of :func:`pad_fft` followed by its crop."""
    for axis in range(-dim, 0):
        spectra = torch.fft.ifft(spectra, dim=axis).narrow(axis, 0, spectra.shape[axis] // 2)
    return spectra


class ToeplitzNormal:
    """Frame-wise EᴴE with coils: ``Σ_c S̄_c T_t (S_c d_t)``.

    Args:
        spectra: float32 ``[frame, (2z,) 2y, 2x]`` of :func:`point_spread_spectrum`.
        sensitivities: complex64 ``[coil, (z,) y, x]``.
    """

    def __init__(self, spectra: Tensor, sensitivities: Tensor) -> None:
        self.spectra = spectra
        self.sensitivities = sensitivities
        self.dim = sensitivities.ndim - 1

    def __call__(self, images: Tensor, frames: slice = slice(None)) -> Tensor:
        """Apply to images ``[frame, (z,) y, x]`` of the frames in ``frames``."""
        total = torch.zeros_like(images)
        for coil in self.sensitivities:
            total += coil.conj() * ifft_crop(pad_fft(coil * images, self.dim) * self.spectra[frames], self.dim)
        return total


class SubspaceNormal:
    """The quadratic data term of a series ``d_t = Σ_k V_kt U_k`` as an operator on the bases U.

    G(V) is a K×K block of Toeplitz kernels ``Σ_t V_kt V_lt T_t``: an application costs 2·K·C FFTs whatever the number of frames.

    Args:
        spectra: float32 ``[frame, (2z,) 2y, 2x]``, the frames' point-spread spectra.
        sensitivities: complex64 ``[coil, (z,) y, x]``.
        temporal: float32 ``[K, frame]``, the temporal basis V (real).
    """

    def __init__(self, spectra: Tensor, sensitivities: Tensor, temporal: Tensor) -> None:
        self.sensitivities = sensitivities
        self.dim = sensitivities.ndim - 1
        self.rank = temporal.shape[0]
        self.kernel = subspace_kernel(spectra, temporal)

    def __repr__(self) -> str:
        return f"SubspaceNormal(K={self.rank}, {self.sensitivities.shape[0]} coils, shape={tuple(self.sensitivities.shape[1:])})"

    def __call__(self, bases: Tensor) -> Tensor:
        """Apply to bases ``[K, (z,) y, x]``."""
        total = torch.zeros_like(bases)
        for coil in self.sensitivities:
            total += coil.conj() * self._convolve(coil * bases)
        return total

    def _convolve(self, bases: Tensor) -> Tensor:
        spectra = pad_fft(bases, self.dim)
        grid = spectra.shape[1:]
        return ifft_crop(mix(self.kernel, spectra.reshape(self.rank, -1)).reshape(self.rank, *grid), self.dim)


def subspace_kernel(spectra: Tensor, temporal: Tensor) -> Tensor:
    """``Σ_t V_kt V_lt spectra_t`` as float32 ``[K, K, point]`` over the flattened doubled grid."""
    rank = temporal.shape[0]
    upper = torch.triu_indices(rank, rank, device=temporal.device)
    products = temporal[upper[0]] * temporal[upper[1]]
    packed = products @ spectra.flatten(1)
    full = torch.empty((rank, rank, packed.shape[1]), dtype=packed.dtype, device=packed.device)
    full[upper[0], upper[1]] = packed
    full[upper[1], upper[0]] = packed
    return full


def mix(kernel: Tensor, spectra: Tensor) -> Tensor:
    """``Σ_l kernel[k, l, q] · spectra[l, q]``: real kernel, complex spectra."""
    out = torch.zeros_like(spectra)
    for column, spectrum in zip(kernel.unbind(1), spectra, strict=True):
        out.addcmul_(column.to(spectra.dtype), spectrum)
    return out
