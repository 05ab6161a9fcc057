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
_ON_GRID = 1e-7


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
    along_y = dirichlet(2 * points[:, 1], ny) * weights[:, None]
    return along_y.T @ dirichlet(2 * points[:, 0], nx) / (ny * nx)


def dirichlet(position: Tensor, n: int) -> Tensor:
    """``Σ_{|d| < n} exp(−i2π d (q − position) / 2n)`` for q = 0 … 2n−1, float32 ``[point, q]``.

    With a = π/2n and p the position it is ``±(sin πp · cot a(q−p) + cos πp)``. Single precision is enough once p is taken apart into the
    nearest integer and a rest: q − p is then as exact as the rest, next to the pole too.

    Args:
        position: ``[point]``, within ±n.
        n: pixels.
    """
    whole = position.round()
    rest = (position - whole).to(torch.float32)[:, None]
    # On the grid itself the pole is lifted; so close to it the value is the limit to single precision.
    rest = torch.where(rest.abs() < _ON_GRID, _ON_GRID, rest)
    grid = torch.arange(2 * n, dtype=torch.float32, device=position.device)
    value = grid - whole.to(torch.float32)[:, None]
    value.sub_((value >= n).to(torch.float32), alpha=2 * n)
    value.sub_(rest).mul_(math.pi / (2 * n)).tan_().reciprocal_()
    value.mul_((math.pi * rest).sin()).add_((math.pi * rest).cos())
    alternate = 2 * torch.remainder(grid, 2) - 1
    turns = 1 - 2 * torch.remainder(whole.to(torch.float32), 2)
    return value.mul_(alternate).mul_(turns[:, None])


def pad_fft(images: Tensor, dim: int) -> Tensor:
    """FFT of images ``[..., (z,) y, x]`` zero-padded to twice their size.

    One transform of the whole padded grid: on a CPU, leaving out the empty lines costs more in strided access than it saves.
    """
    return torch.fft.fftn(images, s=[2 * n for n in images.shape[-dim:]], dim=tuple(range(-dim, 0)))


def ifft_crop(spectra: Tensor, dim: int) -> Tensor:
    """Inverse of :func:`pad_fft` followed by its crop."""
    images = torch.fft.ifftn(spectra, dim=tuple(range(-dim, 0)))
    for axis in range(-dim, 0):
        images = images.narrow(axis, 0, images.shape[axis] // 2)
    return images


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

    def __call__(self, images: Tensor, frames: slice | Tensor = slice(None)) -> Tensor:
        """Apply to images ``[frame, (z,) y, x]`` of the frames in ``frames`` (slice or indices)."""
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
        inside = (slice(None), *(slice(n) for n in bases.shape[1:]))
        padded = bases.new_zeros((self.rank, *(2 * n for n in bases.shape[1:])))
        dims = tuple(range(1, padded.ndim))
        at_once = self._coils_at_once()
        # Page faults of fresh memory cost as much as the transforms: one buffer holds spectra, then mixed spectra.
        spectra = padded.new_empty((self.rank, min(at_once, len(self.sensitivities)), *padded.shape[1:]))
        for coils in self.sensitivities.split(at_once):
            for number, coil in enumerate(coils):
                torch.mul(coil, bases, out=padded[inside])
                spectra[:, number] = torch.fft.fftn(padded, dim=dims)
            mix_(self.kernel, spectra[:, : len(coils)])
            for number, coil in enumerate(coils):
                total.addcmul_(coil.conj(), torch.fft.ifftn(spectra[:, number], dim=dims)[inside])
        return total

    def _coils_at_once(self) -> int:
        """Coils whose spectra of all bases stay within the memory set aside for them."""
        return max(1, _MIXED_VALUES // (self.rank * self.kernel.shape[0]))


_MIXED_VALUES = 1 << 24
_MIXED_AT_ONCE = 1024


def subspace_kernel(spectra: Tensor, temporal: Tensor) -> Tensor:
    """``Σ_t V_kt V_lt spectra_t`` as float32 ``[point, K, K]`` over the flattened doubled grid."""
    rank = temporal.shape[0]
    products = (temporal[:, None] * temporal[None]).flatten(0, 1)
    return (spectra.flatten(1).T @ products.T).reshape(-1, rank, rank)


def mix_(kernel: Tensor, spectra: Tensor) -> None:
    """Replace spectra ``[l, coil, …]`` by ``Σ_l kernel[q, k, l] · spectra[l, coil, q]``: real kernel, complex spectra.

    A K×K product a point; point blocks are turned over while they are in a CPU's cache.
    """
    rank, coils = spectra.shape[:2]
    flat = spectra.flatten(2)
    points = flat.shape[2]
    block = _MIXED_AT_ONCE if spectra.device.type == "cpu" else points
    for first in range(0, points, block):
        part = flat[:, :, first : first + block]
        columns = torch.view_as_real(part.permute(2, 0, 1).contiguous()).reshape(-1, rank, 2 * coils)
        mixed = torch.bmm(kernel[first : first + block], columns)
        part.copy_(torch.view_as_complex(mixed.reshape(-1, rank, coils, 2)).permute(1, 2, 0))
