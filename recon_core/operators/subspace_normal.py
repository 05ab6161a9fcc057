"""The normal operator of a series of low rank on its bases: K×K Toeplitz kernels.

They do not depend on the number of frames (Tamir et al., Magn Reson Med 2017;77:180).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from recon_core.operators.blocks import IN_CACHE, blocks_of, divisor, through_cache
from recon_core.operators.fourier import prepared_transform
from recon_core.operators.toeplitz import ToeplitzNormal, WithMaps
from recon_core.threads import share_out

_MIXED_VALUES = 1 << 24
"""Images of all bases for so many coils at a time that they stay within this number of complex values."""
_FEW_FRAMES = 1.25
"""Of up to so many frames a basis, transforms of the frames cost no more than of bases and their mixing."""


def subspace_form(spectra: Tensor, sensitivities: Tensor, temporal: Tensor) -> SubspaceNormal | FrameSubspaceNormal:
    """The operator on the bases U of a series ``d_t = Σ_k V_kt U_k`` that costs less; arguments as :class:`SubspaceNormal` has them."""
    rank, frames = temporal.shape
    return (FrameSubspaceNormal if frames <= _FEW_FRAMES * rank else SubspaceNormal)(spectra, sensitivities, temporal)


class SubspaceNormal(WithMaps):
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
        super().__init__(sensitivities)
        self.kernel, self.rank = kernel, rank
        self._kept: list[Tensor] = []

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
        shape = _images_at_once(spectra)
        maps = coils.split(shape[1])
        images = [
            (base, there.split(shape[1], 1)) for base, there in zip(bases[:, None].split(shape[0]), spectra.split(shape[0]), strict=True)
        ]

        def work(part: slice) -> None:
            room = _ImageRoom(spectra, shape)
            for base, places in images[part]:
                for own, there in zip(maps, places, strict=True):
                    torch.mul(own, base, out=room.images)
                    room.transform_to(there)

        share_out(work, len(images), bases.device)

    def _combine(self, coils: Tensor, spectra: Tensor, total: Tensor) -> None:
        """Add to ``total[k]`` the sum over coils of the inverse transforms, not scaled, times ``coils``."""
        shape = _images_at_once(spectra)
        maps = [own.unbind() for own in coils.split(shape[1])]
        images = [(sums, there.split(shape[1], 1)) for sums, there in zip(total.split(shape[0]), spectra.split(shape[0]), strict=True)]

        def work(part: slice) -> None:
            room = _ImageRoom(spectra, shape)
            each = room.images.unbind(1)
            for sums, places in images[part]:
                for own, there in zip(maps, places, strict=True):
                    room.transform_from(there)
                    for image, sensitivity in zip(each, own, strict=True):
                        sums.addcmul_(image, sensitivity)

        share_out(work, len(images), total.device)


class FrameSubspaceNormal:
    """:class:`SubspaceNormal` by way of the frames: ``V T Vᵀ``, for hardly more frames than bases.

    The K×K kernels of 20 bases of 64³ pixels would hold 3.4 GB, the spectra of 20 frames hold 0.17 GB.

    Args:
        spectra: float32 ``[frame, (2z,) 2y, 2x]``, the frames' point-spread spectra.
        sensitivities: complex64 ``[coil, (z,) y, x]``.
        temporal: float32 ``[K, frame]``, the temporal basis V (real).
    """

    def __init__(self, spectra: Tensor, sensitivities: Tensor, temporal: Tensor) -> None:
        self.by_frame = ToeplitzNormal(spectra, sensitivities)
        self.temporal = temporal

    @property
    def sensitivities(self) -> Tensor:
        """Complex64 ``[coil, (z,) y, x]``; others may take their place."""
        return self.by_frame.sensitivities

    @sensitivities.setter
    def sensitivities(self, sensitivities: Tensor) -> None:
        self.by_frame.sensitivities = sensitivities

    def __repr__(self) -> str:
        frames, rank = self.temporal.T.shape
        coils, *shape = self.sensitivities.shape
        return f"FrameSubspaceNormal(K={rank}, {frames} frames, {coils} coils, shape={tuple(shape)})"

    def __call__(self, bases: Tensor) -> Tensor:
        """Apply to bases ``[K, (z,) y, x]``."""
        return _mixed(self.temporal, self.by_frame(_mixed(self.temporal.T, bases)))


def _mixed(matrix: Tensor, images: Tensor) -> Tensor:
    """A real matrix times complex images ``[column, …]``: half the work of a complex one."""
    return torch.view_as_complex(torch.tensordot(matrix, torch.view_as_real(images), dims=1))


def _images_at_once(spectra: Tensor) -> tuple[int, int]:
    """Of ``spectra`` [K, coil, n, …] how many bases and coils go through a core's cache at once, or all."""
    bases, coils, *grid = spectra.shape
    return (1, divisor(coils, IN_CACHE // math.prod(grid))) if through_cache(spectra) else (bases, coils)


class _ImageRoom:
    """Room for so many images of bases and coils on the way to ``spectra`` [K, coil, n, …] and back.

    Where it is to stay in cache it is there in the order of ``spectra`` too, which are written to memory, and read, by whole rows.

    Attributes:
        images: complex64 [base, coil, n, …], the first halves of all axes but the first; around them is zero until one is transformed back.
    """

    def __init__(self, spectra: Tensor, shape: tuple[int, int]) -> None:
        first, *others = spectra.shape[2:]
        self._padded = spectra.new_zeros((*shape, first, *others))
        self.images = self._padded[(slice(None),) * 3 + tuple(slice(n // 2) for n in others)]
        self._axes = range(3, 3 + len(others))
        self._turned = None
        if through_cache(spectra):
            self._turned = spectra.new_empty((*others, *shape, first)).movedim((-3, -2, -1), (0, 1, 2))
            self._forth = prepared_transform(self._padded, self._turned, self._axes)
            self._back = prepared_transform(self._turned, self._padded, self._axes, inverse=True)

    def transform_to(self, there: Tensor) -> None:
        """Transform the padded images."""
        if self._turned is None:
            prepared_transform(self._padded, there, self._axes)()
        else:
            self._forth()
            there.copy_(self._turned)

    def transform_from(self, there: Tensor) -> None:
        """Transform back, not scaled."""
        if self._turned is None:
            prepared_transform(there, self._padded, self._axes, inverse=True)()
        else:
            self._turned.copy_(there)
            self._back()


def _convolve_lines(kernel: Tensor, lines: Tensor) -> None:
    """Convolve ``lines`` [line, K, coil, n] along the last axis and across bases with ``kernel`` [line, 2n, K, K], in place, not scaled."""
    count, rank, coils, n = lines.shape
    # Beside the padded lines there are their kernels in the cache.
    at_once = divisor(count, blocks_of(count, 2 * rank * coils * 2 * n, lines)[0])
    blocks = list(zip(lines.split(at_once), kernel.flatten(0, 1).split(at_once * 2 * n), strict=True))

    def work(part: slice) -> None:
        padded = lines.new_zeros((at_once, rank, coils, 2 * n))
        turned, mixed = (lines.new_empty((at_once, 2 * n, rank, coils)) for _ in range(2))
        back = turned.view(padded.shape)
        before, after, spectrum, product = padded[..., :n], back[..., :n], _as_real(turned), _as_real(mixed)
        forth = prepared_transform(padded, turned.permute(0, 2, 3, 1), (3,))
        inverse = prepared_transform(mixed.permute(0, 2, 3, 1), back, (3,), inverse=True)
        for own, matrices in blocks[part]:
            before.copy_(own)
            forth()
            torch.bmm(matrices, spectrum, out=product)
            inverse()
            own.copy_(after)

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
