"""Normal operators as convolutions: point-spread spectra on a doubled grid.

FᴴWF is a block-Toeplitz matrix (Fessler et al., IEEE Trans Signal Process 2005;53:3393).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from recon_core.operators.blocks import IN_CACHE, blocks_of, through_cache
from recon_core.operators.fourier import prepared_transform
from recon_core.operators.nufft import DEFAULT_TOLERANCE, Nufft
from recon_core.threads import share_out

_SEPARABLE_POINTS = 4096
"""Up to so many points the exact matrix product costs less than a NUFFT onto the doubled grid."""
_ON_GRID = 1e-7
_PAGE, _LINE = 512, 8
"""Complex values in a page of memory, and in a line of the cache."""


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


def point_spread_spectra(
    points: Sequence[Tensor], weights: Sequence[Tensor], shape: Sequence[int], engine: str = "auto", tolerance: float = DEFAULT_TOLERANCE
) -> Tensor:
    """:func:`point_spread_spectrum` of every frame, on a CPU a frame a core: float32 ``[frame, (2 nz,) 2 ny, 2 nx]``."""
    device = weights[0].device
    spectra = torch.empty((len(points), *(2 * n for n in shape)), device=device)

    def work(part: slice) -> None:
        for frame in range(part.start, part.stop):
            spectra[frame] = point_spread_spectrum(points[frame], weights[frame], shape, engine, tolerance)

    share_out(work, len(points), device)
    return spectra


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

    One transform of the whole padded grid: with torch's transforms on a CPU, leaving out the empty lines costs more in strided access than
    it saves.
    """
    return torch.fft.fftn(images, s=[2 * n for n in images.shape[-dim:]], dim=tuple(range(-dim, 0)))


def ifft_crop(spectra: Tensor, dim: int) -> Tensor:
    """Inverse of :func:`pad_fft` followed by its crop."""
    images = torch.fft.ifftn(spectra, dim=tuple(range(-dim, 0)))
    for axis in range(-dim, 0):
        images = images.narrow(axis, 0, images.shape[axis] // 2)
    return images


class WithMaps:
    """An operator with coil sensitivities."""

    def __init__(self, sensitivities: Tensor) -> None:
        self.sensitivities = sensitivities
        self.dim = sensitivities.ndim - 1

    @property
    def sensitivities(self) -> Tensor:
        """Complex64 ``[coil, (z,) y, x]``; others may take their place."""
        return self._sensitivities

    @sensitivities.setter
    def sensitivities(self, sensitivities: Tensor) -> None:
        self._sensitivities = sensitivities
        # Transforms of neither direction are scaled.
        self._back = (sensitivities / math.prod(2 * n for n in sensitivities.shape[1:])).conj_physical()


class ToeplitzNormal(WithMaps):
    """Frame-wise EᴴE with coils: ``Σ_c S̄_c T_t (S_c d_t)``.

    Args:
        spectra: float32 ``[frame, (2z,) 2y, 2x]`` of :func:`point_spread_spectrum`.
        sensitivities: complex64 ``[coil, (z,) y, x]``.
    """

    def __init__(self, spectra: Tensor, sensitivities: Tensor) -> None:
        super().__init__(sensitivities)
        self.spectra = spectra

    def __call__(self, images: Tensor, frames: slice | Tensor = slice(None)) -> Tensor:
        """Apply to images ``[frame, (z,) y, x]`` of the frames in ``frames`` (slice or indices)."""
        total = torch.zeros_like(images)
        spectra = self.spectra[frames]
        grid = spectra.shape[1:]
        at_once, blocks = blocks_of(images.shape[0], math.prod(grid), images)
        each = list(zip(images.split(at_once), spectra.split(at_once), total.split(at_once), strict=True))
        coils = list(zip(self.sensitivities, self._back, strict=True))

        def work(part: slice) -> None:
            rooms: dict[int, _GridRoom] = {}
            for own, spectrum, sums in each[part]:
                count = own.shape[0]
                room = rooms[count] = rooms.get(count) or _GridRoom(images, count, grid)
                for coil, back in coils:
                    torch.mul(own, coil, out=room.before)
                    room.transform()
                    room.spectra.mul_(spectrum)
                    room.transform_back()
                    sums.addcmul_(room.after, back)

        share_out(work, len(blocks), images.device)
        return total


class _GridRoom:
    """Room for so many images of a doubled grid and their transforms.

    Attributes:
        before: complex64 ``[image, (z,) y, x]``, to be filled; zero lies around them.
        spectra: complex64 ``[image, (2z,) 2y, 2x]``, what :meth:`transform` makes of them.
        after: the images that :meth:`transform_back` makes of the spectra, not scaled.
    """

    def __init__(self, like: Tensor, count: int, grid: Sequence[int]) -> None:
        padded, self.spectra = _room(like, count, grid).zero_(), _room(like, count, grid)
        inside = (slice(None), *(slice(n // 2) for n in grid))
        self.before, self.after = padded[inside], self.spectra[inside]
        axes = range(1, 1 + len(grid))
        if _whole(like, grid):
            self._forth = [prepared_transform(padded, self.spectra, axes)]
            self._back = [prepared_transform(self.spectra, self.spectra, axes, inverse=True)]
            return
        lines = {axis: _not_empty(self.spectra, axis) for axis in axes}
        self._forth, source = [], padded
        for axis in reversed(axes):
            self._forth.append(prepared_transform(_not_empty(source, axis), lines[axis], (axis,)))
            source = self.spectra
            if axis > 1:
                n = grid[axis - 2] // 2
                self._forth.append(lines[axis - 1].narrow(axis - 1, n, n).zero_)
        self._back = [prepared_transform(lines[axis], lines[axis], (axis,), inverse=True) for axis in axes]

    def transform(self) -> None:
        """From ``before`` to ``spectra``."""
        for step in self._forth:
            step()

    def transform_back(self) -> None:
        """From ``spectra`` to ``after``, in place."""
        for step in self._back:
            step()


def _room(like: Tensor, count: int, grid: Sequence[int]) -> Tensor:
    """Room for so many images of a doubled grid; beyond the cache its first axis has no stride that is a multiple of a page.

    Values a page apart share few places of the cache: transforms along that axis would take up to twice as long.
    """
    if _whole(like, grid) or math.prod(grid[1:]) % _PAGE:
        return like.new_empty((count, *grid))
    if len(grid) == 3:
        return like.new_empty((count, grid[0], grid[1] + 1, grid[2]))[:, :, : grid[1]]
    return like.new_empty((count, grid[0], grid[1] + _LINE))[..., : grid[1]]


def _whole(like: Tensor, grid: Sequence[int]) -> bool:
    """Whether to transform the whole grid at once. To leave out empty lines is worth more calls once the grid exceeds the cache."""
    return not through_cache(like) or math.prod(grid) <= IN_CACHE


def _not_empty(room: Tensor, axis: int) -> Tensor:
    """The lines along ``axis`` in the first halves of the axes before it."""
    first_halves = (slice(None), *(slice(n // 2) for n in room.shape[1:axis]))
    return room[first_halves]
