"""Normal operators as convolutions: point-spread spectra on a doubled grid.

FᴴWF is a block-Toeplitz matrix (Fessler et al., IEEE Trans Signal Process 2005;53:3393); for a series of low rank its K×K form does not
depend on the number of frames (Tamir et al., Magn Reson Med 2017;77:180).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from recon_core.operators.nufft import DEFAULT_TOLERANCE, Nufft
from recon_core.threads import share_out

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

    G(V) is a K×K block of Toeplitz kernels ``Σ_t V_kt V_lt T_t``: an application costs 2·K·C transforms of the doubled grid whatever the
    number of frames. Those are taken without a padded grid: along an axis of N pixels the even places of the doubled grid are the N-point
    transform of the image, the odd ones that of the image times the ramp ``exp(−iπn/N)``.

    Args:
        spectra: float32 ``[frame, (2z,) 2y, 2x]``, the frames' point-spread spectra.
        sensitivities: complex64 ``[coil, (z,) y, x]``.
        temporal: float32 ``[K, frame]``, the temporal basis V (real).
    """

    def __init__(self, spectra: Tensor, sensitivities: Tensor, temporal: Tensor) -> None:
        self.hold(subspace_kernel(spectra, temporal), sensitivities, temporal.shape[0])

    def hold(self, kernel: Tensor, sensitivities: Tensor, rank: int) -> None:
        """Take a kernel of :func:`subspace_kernel` and the maps."""
        self.kernel, self.sensitivities, self.rank = kernel, sensitivities, rank
        self.dim = sensitivities.ndim - 1

    @property
    def sensitivities(self) -> Tensor:
        """Complex64 ``[coil, (z,) y, x]``; others may take their place."""
        return self._sensitivities

    @sensitivities.setter
    def sensitivities(self, sensitivities: Tensor) -> None:
        self._sensitivities = sensitivities
        self.maps = list(_modulated(sensitivities))

    def __repr__(self) -> str:
        return f"SubspaceNormal(K={self.rank}, {self.sensitivities.shape[0]} coils, shape={tuple(self.sensitivities.shape[1:])})"

    def __call__(self, bases: Tensor) -> Tensor:
        """Apply to bases ``[K, (z,) y, x]``."""
        total = torch.zeros_like(bases)
        first, others = bases.shape[1], bases[0, 0].numel()
        ramp = _ramp(first, bases)
        at_once = max(1, _MIXED_VALUES // bases.numel())
        for start in range(0, self.sensitivities.shape[0], at_once):
            coils = slice(start, start + at_once)
            # Lines along the first axis, which is the innermost here.
            lines = bases.new_empty((self.rank, others, self.sensitivities[coils].shape[0], first))
            for number, (there, back) in enumerate(self.maps):
                self._transform(there[coils], bases, lines)
                _convolve_lines(self.kernel[number :: len(self.maps)], ramp, lines)
                self._combine(back[coils], lines, total)
        return total

    def _transform(self, coils: Tensor, bases: Tensor, lines: Tensor) -> None:
        """``lines[k]`` = transform of all ``coil · U_k`` along all axes but the first."""

        def work(part: slice) -> None:
            images = bases.new_empty((_bases_at_once(part, bases), *coils.shape))
            for some in _pieces(part, images.shape[0]):
                torch.mul(coils, bases[some, None], out=images)
                spectra = torch.fft.fftn(images, dim=tuple(range(3, 2 + self.dim)))
                _turn(spectra.flatten(3).flatten(1, 2), lines[some].flatten(2))

        share_out(work, self.rank, bases.device)

    def _combine(self, coils: Tensor, lines: Tensor, total: Tensor) -> None:
        """Add to ``total[k]`` the sum over coils of the inverse transforms, not scaled, times ``coils``."""

        def work(part: slice) -> None:
            spectra = total.new_empty((_bases_at_once(part, total), *coils.shape))
            for some in _pieces(part, spectra.shape[0]):
                _turn(lines[some].flatten(2), spectra.flatten(3).flatten(1, 2))
                images = torch.fft.ifftn(spectra, dim=tuple(range(3, 2 + self.dim)), norm="forward")
                total[some] += images.mul_(coils).sum(1)

        share_out(work, self.rank, total.device)


_MIXED_VALUES = 1 << 24
"""Spectra of all bases for so many coils at a time that they stay within this number of complex values."""
_IN_CACHE = 100_000
"""Complex values that, with what they are turned into, stay in a core's cache."""


def _modulated(sensitivities: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """For even and odd places of all axes but the first: maps times ramps, and their conjugates over the doubled grid's size."""
    others = sensitivities.shape[2:]
    scale = 1 / math.prod(2 * n for n in sensitivities.shape[1:])
    for odd in itertools.product((False, True), repeat=len(others)):
        maps = sensitivities
        for axis, n in enumerate(others):
            if odd[axis]:
                maps = maps * _ramp(n, maps).reshape(-1, *[1] * (len(others) - 1 - axis))
        yield maps, (maps * scale).conj_physical()


def _ramp(n: int, like: Tensor) -> Tensor:
    return torch.exp(-1j * math.pi / n * torch.arange(n, device=like.device)).to(like.dtype)


def _bases_at_once(part: slice, bases: Tensor) -> int:
    return 1 if bases.device.type == "cpu" else part.stop - part.start


def _pieces(part: slice, at_once: int) -> Iterator[slice]:
    for first in range(part.start, part.stop, at_once):
        yield slice(first, min(first + at_once, part.stop))


def _turn(source: Tensor, target: Tensor) -> None:
    """Copy complex64 ``source`` [number, row, column] to ``target`` [number, column, row]."""
    if source.device.type != "cpu":
        target.copy_(source.mT)
        return
    # As float64, one matrix at a time, the copy is done in tiles.
    for columns, rows in zip(target.view(torch.float64), source.view(torch.float64).mT, strict=True):
        columns.copy_(rows)


def _convolve_lines(kernel: Tensor, ramp: Tensor, lines: Tensor) -> None:
    """Transform ``lines`` [K, line, coil, n] along the last axis, mix with ``kernel`` [parity, point, K, K], transform back, in place."""
    rank, count, coils, n = lines.shape
    at_once = max(1, _IN_CACHE // (rank * coils * n)) if lines.device.type == "cpu" else count

    def work(part: slice) -> None:
        for block in _pieces(part, at_once):
            _mix_lines(kernel[:, block.start * n : block.stop * n], ramp, lines[:, block].transpose(1, 2))

    share_out(work, count, lines.device)


def _mix_lines(kernel: Tensor, ramp: Tensor, lines: Tensor) -> None:
    """Even and odd places of ``lines`` [K, coil, line, n] through their kernels [parity, point, K, K]; the sum replaces them."""
    rank, coils, count, n = lines.shape
    turned = lines.new_empty((count * n, rank, coils))
    mixed = torch.empty_like(turned)
    ordered = lines.new_empty(lines.shape)
    real, out = (torch.view_as_real(t).flatten(2) for t in (turned, mixed))
    even = ordered
    for parity in (0, 1):
        if parity:
            torch.mul(lines, ramp, out=ordered)
        else:
            ordered.copy_(lines)
        _turn(torch.fft.fft(ordered).view(1, rank * coils, -1), turned.flatten(1)[None])
        torch.bmm(kernel[parity], real, out=out)
        _turn(mixed.flatten(1)[None], ordered.view(1, rank * coils, -1))
        back = torch.fft.ifft(ordered, norm="forward")
        if parity:
            torch.addcmul(even, back, ramp.conj_physical(), out=lines)
        else:
            even = back


def subspace_kernel(spectra: Tensor, temporal: Tensor) -> Tensor:
    """``Σ_t V_kt V_lt spectra_t``, even and odd places of the doubled grid apart.

    Args:
        spectra: float32 ``[frame, (2z,) 2y, 2x]``.
        temporal: float32 ``[K, frame]``.

    Returns:
        float32 ``[parity, point, K, K]``: parities in the order (even, even), (even, odd), … of (z,) y, x; points of the undoubled grid,
        its first axis innermost.
    """
    rank, dim = temporal.shape[0], spectra.ndim - 1
    products = (temporal[:, None] * temporal[None]).flatten(0, 1)
    apart = spectra.reshape(-1, *itertools.chain.from_iterable((n // 2, 2) for n in spectra.shape[1:]))
    apart = apart.permute(*range(2, 2 * dim + 1, 2), *range(3, 2 * dim, 2), 1, 0).reshape(-1, spectra.shape[0])
    return (apart @ products.T).reshape(2**dim, -1, rank, rank)
