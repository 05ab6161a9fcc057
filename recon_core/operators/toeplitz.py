"""Normal operators as convolutions: point-spread spectra on a doubled grid.

FᴴWF is a block-Toeplitz matrix (Fessler et al., IEEE Trans Signal Process 2005;53:3393); for a series of low rank its K×K form does not
depend on the number of frames (Tamir et al., Magn Reson Med 2017;77:180).
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from recon_core.operators.fourier import transform
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


_MIXED_VALUES = 1 << 24
"""Images of all bases for so many coils at a time that they stay within this number of complex values."""
_IN_CACHE = 100_000
"""Complex values of the doubled grid that, with what they are turned into, stay in a core's cache."""
_BLOCKS = 16
"""What goes through a core's cache comes in at least so many blocks, to be shared out to as many threads …"""
_WORTH_A_BLOCK = 20_000
"""… unless they held fewer complex values than this, when calls take longer than what they do."""
_AT_ONCE = 1 << 25
"""Complex values of the doubled grid at once on a GPU."""


def _through_cache(tensor: Tensor) -> bool:
    """Whether work goes piece by piece through a core's cache, as on a CPU, or as much at once as memory allows, as on a GPU."""
    return tensor.device.type == "cpu"


def _blocks(count: int, values: int, like: Tensor) -> tuple[int, list[slice]]:
    """How many of ``count`` things of so many complex values each go at once, and all of them as slices.

    Rounding depends on what is transformed together, hence not on the number of threads.
    """
    several = min(_IN_CACHE, max(_WORTH_A_BLOCK, count * values // _BLOCKS)) if _through_cache(like) else _AT_ONCE
    at_once = max(1, min(several // values, count))
    return at_once, list(_pieces(slice(0, count), at_once))


def _pieces(part: slice, at_once: int) -> Iterator[slice]:
    for first in range(part.start, part.stop, at_once):
        yield slice(first, min(first + at_once, part.stop))


def _back(sensitivities: Tensor) -> Tensor:
    """Conjugate maps over the doubled grid's size: transforms of both directions are not scaled."""
    return (sensitivities / math.prod(2 * n for n in sensitivities.shape[1:])).conj_physical()


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
        self._back = _back(sensitivities)

    def __call__(self, images: Tensor, frames: slice | Tensor = slice(None)) -> Tensor:
        """Apply to images ``[frame, (z,) y, x]`` of the frames in ``frames`` (slice or indices)."""
        total = torch.zeros_like(images)
        spectra = self.spectra[frames]
        grid = spectra.shape[1:]
        at_once, blocks = _blocks(images.shape[0], math.prod(grid), images)
        axes = range(1, 1 + self.dim)

        def work(part: slice) -> None:
            padded = images.new_zeros((at_once, *grid))
            convolved = torch.empty_like(padded)
            inside = (slice(None), *(slice(n // 2) for n in grid))
            for block in blocks[part]:
                some = slice(block.stop - block.start)
                for coil, back in zip(self.sensitivities, self._back, strict=True):
                    torch.mul(images[block], coil, out=padded[some][inside])
                    transform(padded[some], convolved[some], axes)
                    convolved[some].mul_(spectra[block])
                    transform(convolved[some], convolved[some], axes, inverse=True)
                    total[block].addcmul_(convolved[some][inside], back)

        share_out(work, len(blocks), images.device)
        return total


class SubspaceNormal:
    """The quadratic data term of a series ``d_t = Σ_k V_kt U_k`` as an operator on the bases U.

    G(V) is a K×K block of Toeplitz kernels ``Σ_t V_kt V_lt T_t``: an application costs 2·K·C transforms of the doubled grid whatever the
    number of frames. The grid is doubled along the first axis only line by line, and there transformed, mixed and transformed back while
    the lines of all bases and coils are in a core's cache.

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
        self._kept: list[Tensor] = []

    @property
    def sensitivities(self) -> Tensor:
        """Complex64 ``[coil, (z,) y, x]``; others may take their place."""
        return self._sensitivities

    @sensitivities.setter
    def sensitivities(self, sensitivities: Tensor) -> None:
        self._sensitivities = sensitivities
        self._back = _back(sensitivities)

    def __repr__(self) -> str:
        return f"SubspaceNormal(K={self.rank}, {self.sensitivities.shape[0]} coils, shape={tuple(self.sensitivities.shape[1:])})"

    def __call__(self, bases: Tensor) -> Tensor:
        """Apply to bases ``[K, (z,) y, x]``."""
        total = torch.zeros_like(bases)
        first, *others = bases.shape[1:]
        doubled = [2 * n for n in others]
        at_once = max(1, _MIXED_VALUES // bases.numel())
        for start in range(0, self.sensitivities.shape[0], at_once):
            coils = slice(start, start + at_once)
            with self._lines((math.prod(doubled), self.rank, self.sensitivities[coils].shape[0], first)) as lines:
                spectra = lines.unflatten(0, doubled).movedim((-3, -2, -1), (0, 1, 2))
                self._transform(self.sensitivities[coils], bases, spectra)
                _convolve_lines(self.kernel, lines)
                self._combine(self._back[coils], spectra, total)
        return total

    @contextlib.contextmanager
    def _lines(self, shape: tuple[int, ...]) -> Iterator[Tensor]:
        """Room for lines [line, K, coil, n], kept from one application to the next: to get fresh pages takes a tenth of one."""
        try:
            room = self._kept.pop()
        except IndexError:
            room = self.sensitivities.new_empty(0)
        if room.numel() < math.prod(shape):
            with torch.inference_mode(False):
                room = self.sensitivities.new_empty(math.prod(shape))
        yield room[: math.prod(shape)].view(shape)
        self._kept.append(room)

    def _transform(self, coils: Tensor, bases: Tensor, spectra: Tensor) -> None:
        """``spectra[k]`` = transform of all ``coil · U_k``, zero-padded, along all axes but the first."""

        def work(part: slice) -> None:
            for some, own, padded, images, turned in _image_rooms(part, spectra):
                torch.mul(coils[own], bases[some, None], out=images)
                there = spectra[some, own]
                if turned is None:
                    transform(padded, there, range(3, 2 + self.dim))
                else:
                    transform(padded, turned, range(3, 2 + self.dim))
                    there.copy_(turned)

        share_out(work, self.rank, bases.device)

    def _combine(self, coils: Tensor, spectra: Tensor, total: Tensor) -> None:
        """Add to ``total[k]`` the sum over coils of the inverse transforms, not scaled, times ``coils``."""

        def work(part: slice) -> None:
            for some, own, padded, images, turned in _image_rooms(part, spectra):
                there = spectra[some, own]
                near = there if turned is None else turned.copy_(there)
                transform(near, padded, range(3, 2 + self.dim), inverse=True)
                for number, sensitivity in enumerate(coils[own]):
                    total[some].addcmul_(images[:, number], sensitivity)

        share_out(work, self.rank, total.device)


def _image_rooms(part: slice, spectra: Tensor) -> Iterator[tuple[slice, slice, Tensor, Tensor, Tensor | None]]:
    """Bases of ``part`` and coils, as many as go through a core's cache or all, with room for their images on the way to ``spectra``.

    Room is zero to begin with [base, coil, n, …], padded along all axes but the first; the images in it; and, where it is to stay in
    cache, as much in the order of ``spectra`` [K, coil, n, …], which are written to memory, and read, by whole rows.
    """
    through_cache = _through_cache(spectra)
    first, *others = spectra.shape[2:]
    bases, coils = part.stop - part.start, spectra.shape[1]
    if through_cache:
        bases, coils = 1, max(1, min(coils, _IN_CACHE // (3 * first * math.prod(others))))
    padded = spectra.new_zeros((bases, coils, first, *others))
    images = padded[(slice(None),) * 3 + tuple(slice(n // 2) for n in others)]
    turned = spectra.new_empty((*others, bases, coils, first)).movedim((-3, -2, -1), (0, 1, 2)) if through_cache else None
    for some, own in itertools.product(_pieces(part, bases), _pieces(slice(0, spectra.shape[1]), coils)):
        here = own.stop - own.start
        if here == coils:
            yield some, own, padded, images, turned
        else:
            yield some, own, padded[:, :here], images[:, :here], None if turned is None else turned[:, :here]


def _convolve_lines(kernel: Tensor, lines: Tensor) -> None:
    """Convolve ``lines`` [line, K, coil, n] along the last axis and across bases with ``kernel`` [line, 2n, K, K], in place, not scaled."""
    count, rank, coils, n = lines.shape
    at_once, blocks = _blocks(count, rank * coils * 2 * n, lines)

    def work(part: slice) -> None:
        padded = lines.new_zeros((at_once, rank, coils, 2 * n))
        turned, mixed = (lines.new_empty((at_once, 2 * n, rank, coils)) for _ in range(2))
        back = turned.view(padded.shape)
        for block in blocks[part]:
            some = slice(block.stop - block.start)
            padded[some, ..., :n] = lines[block]
            transform(padded[some], turned[some].permute(0, 2, 3, 1), (3,))
            torch.bmm(kernel[block].flatten(0, 1), _as_real(turned[some]), out=_as_real(mixed[some]))
            transform(mixed[some].permute(0, 2, 3, 1), back[some], (3,), inverse=True)
            lines[block] = back[some, ..., :n]

    share_out(work, len(blocks), lines.device)


def _as_real(mixed: Tensor) -> Tensor:
    """Complex64 [line, point, K, coil] as float32 [line · point, K, 2 · coil]."""
    return torch.view_as_real(mixed.flatten(0, 1)).flatten(2)


def subspace_kernel(spectra: Tensor, temporal: Tensor) -> Tensor:
    """``Σ_t V_kt V_lt spectra_t``.

    Args:
        spectra: float32 ``[frame, (2z,) 2y, 2x]``.
        temporal: float32 ``[K, frame]``.

    Returns:
        float32 ``[line, point, K, K]``: points along the first axis, lines of all others ((2y ·) 2x).
    """
    rank = temporal.shape[0]
    products = (temporal[:, None] * temporal[None]).flatten(0, 1)
    lines = spectra.flatten(2).permute(2, 1, 0)
    return (lines @ products.T).unflatten(2, (rank, rank))
