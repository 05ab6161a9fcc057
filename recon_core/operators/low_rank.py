"""Locally low rank: in a small block of pixels few time courses occur (Trzasko and Manduca, ISMRM 2011;4371).

With orthonormal temporal components the singular values of a block's bases are those of its series, so that the proximal map works on K
instead of T images.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recon_core.operators.blocks import pieces, through_cache
from recon_core.threads import share_out


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
        """Shrink; bases complex64 ``[K, (z,) y, x]``, thresholds in the units of a block's singular values.

        The result is a view into the grid of blocks, hence not contiguous.
        """
        shifts = [int(torch.randint(block, (1,), generator=self.generator)) for block in self.blocks]
        counts = self._counts()
        padded = bases.new_zeros((len(bases), *(count * block for count, block in zip(counts, self.blocks, strict=True))))
        inside = (slice(None), *(slice(shift, shift + n) for shift, n in zip(shifts, self.sizes, strict=True)))
        padded[inside] = bases
        spread = self._cut(padded, counts)
        thresholds = torch.tensor([threshold, imaginary_threshold], device=bases.device)

        def work(part: slice) -> None:
            for rows in pieces(part, 1 if through_cache(bases) else counts[0]):
                there = spread[:, rows]
                blocks = there.reshape(2, -1, len(bases), math.prod(self.blocks))
                there.copy_(_shrunk(blocks, thresholds).view(there.shape))

        share_out(work, counts[0], bases.device)
        return padded[inside]

    def _counts(self) -> list[int]:
        """Blocks along every axis: the shifted grid overhangs the image on both sides."""
        return [-(-(n + block - 1) // block) for n, block in zip(self.sizes, self.blocks, strict=True)]

    def _cut(self, padded: Tensor, counts: list[int]) -> Tensor:
        """A view of padded bases, ``[part, block along every axis …, K, pixel along every axis …]``: real and imaginary parts."""
        dim = len(counts)
        split = [size for pair in zip(counts, self.blocks, strict=True) for size in pair]
        order = [2 * dim + 1, *range(1, 2 * dim, 2), 0, *range(2, 2 * dim + 1, 2)]
        return torch.view_as_real(padded).view(-1, *split, 2).permute(order)


def _shrunk(blocks: Tensor, thresholds: Tensor) -> Tensor:
    """Singular values of real ``[part, block, K, pixel]`` shrunk through K×K Gram matrices; a threshold a part."""
    values, vectors = torch.linalg.eigh(blocks @ blocks.mT)
    kept = (1 - thresholds[:, None, None] ** 2 / values.clamp_min(1e-30)).clamp_min(0)
    return (vectors * kept[..., None, :]) @ vectors.mT @ blocks
