"""Locally low rank: in a small block of pixels few time courses occur (Trzasko and Manduca, ISMRM 2011;4371).

With orthonormal temporal components the singular values of a block's bases are those of its series, so that the proximal map works on K
instead of T images.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class LocallyLowRank:
    """Shrinks singular values of blocks of bases ``[K, (z,) y, x]``; the grid of blocks is shifted at random at every call.

    A value σ is multiplied by ``max(0, 1 − (threshold / σ)²)``: an empirical Wiener filter, which spares what stands out from the noise
    more than soft thresholding does. Real and imaginary parts are separate images of a block, each with a threshold of its own.

    Args:
        shape: ``[K, (z,) y, x]``.
        block: pixels of a block along every axis.
        seed: of the shifts.
    """

    def __init__(self, shape: torch.Size | tuple[int, ...], block: int, seed: int = 0) -> None:
        self.sizes = tuple(shape[1:])
        self.blocks = tuple(min(block, n) for n in self.sizes)
        self.generator = torch.Generator().manual_seed(seed)

    def __repr__(self) -> str:
        return f"LocallyLowRank(blocks of {self.blocks} in {self.sizes})"

    def __call__(self, bases: Tensor, threshold: float, imaginary_threshold: float) -> Tensor:
        """Shrink; bases complex64 ``[K, (z,) y, x]``, thresholds in the units of a block's singular values."""
        shifts = [int(torch.randint(block, (1,), generator=self.generator)) for block in self.blocks]
        cut = self._cut(bases, shifts)
        parts = [_shrink(part.contiguous(), limit) for part, limit in ((cut.real, threshold), (cut.imag, imaginary_threshold))]
        return self._join(torch.complex(*parts), shifts)

    def _counts(self) -> list[int]:
        """Blocks along every axis: the shifted grid overhangs the image on both sides."""
        return [-(-(n + block - 1) // block) for n, block in zip(self.sizes, self.blocks, strict=True)]

    def _cut(self, bases: Tensor, shifts: list[int]) -> Tensor:
        """Bases to ``[block, pixel, K]``, zeros beyond the image."""
        counts = self._counts()
        padded = bases.new_zeros((bases.shape[0], *(count * block for count, block in zip(counts, self.blocks, strict=True))))
        padded[self._inside(shifts)] = bases
        split = [size for pair in zip(counts, self.blocks, strict=True) for size in pair]
        dim = len(self.sizes)
        order = [*range(1, 2 * dim, 2), *range(2, 2 * dim + 1, 2), 0]
        return padded.reshape(-1, *split).permute(order).reshape(math.prod(counts), math.prod(self.blocks), -1)

    def _join(self, cut: Tensor, shifts: list[int]) -> Tensor:
        counts, dim = self._counts(), len(self.sizes)
        spread = cut.reshape(*counts, *self.blocks, -1)
        order = [2 * dim, *(axis for pair in zip(range(dim), range(dim, 2 * dim), strict=True) for axis in pair)]
        whole = spread.permute(order).reshape(-1, *(count * block for count, block in zip(counts, self.blocks, strict=True)))
        return whole[self._inside(shifts)].contiguous()

    def _inside(self, shifts: list[int]) -> tuple[slice, ...]:
        """Where the image lies in the grid of blocks."""
        return (slice(None), *(slice(shift, shift + n) for shift, n in zip(shifts, self.sizes, strict=True)))


def _shrink(blocks: Tensor, threshold: float) -> Tensor:
    """Shrink the singular values of real ``[block, pixel, K]`` through its K×K Gram matrices."""
    values, vectors = torch.linalg.eigh(blocks.transpose(1, 2) @ blocks)
    kept = (1 - threshold**2 / values.clamp_min(1e-30)).clamp_min(0)
    return blocks @ ((vectors * kept[:, None]) @ vectors.transpose(1, 2))
