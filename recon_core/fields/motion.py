"""A field of motion: canonical images, and where each pixel of a frame is to be found in them.

The displacement is a neural field of space whose outputs are weighted by low-dimensional courses of time, in the spirit of the
deformation field of DA-INR and of motion models driven by a navigator (Odille et al., Magn Reson Med 2008;60:146).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample

from recon_core.encodings.hash_grid import HashGrid, HashGridLayout, growth_for, pixel_coordinates

_LEVELS, _FEATURES, _BASE, _LOG2_TABLE = 3, 4, 6, 12
_PIXELS_PER_CELL = 5


class MotionField(nn.Module):
    """``d_t(x) = Σ_l c_lt I_l(x + Σ_j m_jt φ_j(x))``.

    φ is a hash-encoded field whose finest level has one cell every few pixels; the canonical images I are kept on the pixels.

    Args:
        canonical: complex64 ``[L, (z,) y, x]``, the canonical images at the start.
        motion: float32 ``[J, frame]``, the courses m.
        contrast: float32 ``[L, frame]``, the courses c.
        seed: of the field's weights.
        inside: bool ``[(z,) y, x]``, the pixels that are asked for; None: all.
    """

    contrast: Tensor
    motion: Tensor
    base: Tensor

    def __init__(self, canonical: Tensor, motion: Tensor, contrast: Tensor, seed: int = 0, inside: Tensor | None = None) -> None:
        super().__init__()
        self.sizes = tuple(canonical.shape[1:])
        dim, device = len(self.sizes), canonical.device
        finest = max(_BASE + 1, max(self.sizes) / _PIXELS_PER_CELL)
        layout = HashGridLayout(dim, _LEVELS, _FEATURES, _LOG2_TABLE, _BASE, growth_for(_BASE, finest, _LEVELS))
        self.encoding = HashGrid(layout, seed=seed).to(device)
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(self.encoding.out_dim, len(motion) * dim, generator=generator)
        self.mixing = nn.Parameter(start.to(device) / self.encoding.out_dim**0.5)
        parts = torch.view_as_real(canonical).movedim(-1, 1).flatten(0, 1)
        self.canonical = nn.Parameter(parts.clone())
        self.register_buffer("motion", motion)
        self.register_buffer("contrast", contrast)
        self.inside = inside
        places = pixel_coordinates(self.sizes, device)
        self.plan = self.encoding.plan(places if inside is None else places[inside.flatten()])
        # grid_sample wants positions in −1 … 1 between the centres of the outer pixels, x first.
        axes = [torch.linspace(-1, 1, n, device=device) for n in self.sizes]
        base = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], dim=-1)
        # A list of pixels is an image one pixel wide.
        self.register_buffer("base", base if inside is None else base[inside].reshape(-1, *[1] * (dim - 1), dim))

    def displacements(self) -> Tensor:
        """φ in pixels, axes (x, y(, z)): float32 ``[J, (z,) y, x, axis]``, or ``[J, pixel, 1(, 1), axis]`` of those inside."""
        out = self.encoding(self.plan) @ self.mixing
        return out.reshape(*self.base.shape[:-1], len(self.motion), len(self.sizes)).movedim(-2, 0)

    def forward(self, frames: Tensor) -> Tensor:
        """Images of some frames (int64 indices), complex64 ``[frame, (z,) y, x]``, or ``[frame, pixel]`` of those inside."""
        return self.at(self.motion[:, frames], self.contrast[:, frames])

    def at(self, motion: Tensor, contrast: Tensor) -> Tensor:
        """The same for courses ``[J, time]`` and ``[L, time]``."""
        pixel = torch.tensor([2 / (n - 1) for n in reversed(self.sizes)], device=motion.device)
        moved = self.base + torch.tensordot(motion.T, self.displacements(), dims=1) * pixel
        count = motion.shape[1]
        found = grid_sample(self.canonical.expand(count, *self.canonical.shape), moved, padding_mode="border", align_corners=True)
        parts = found.unflatten(1, (-1, 2))
        weighted = (parts * contrast.T.reshape(count, -1, *[1] * (parts.ndim - 2))).sum(1)
        images = torch.view_as_complex(weighted.movedim(1, -1).contiguous())
        return images if self.inside is None else images.flatten(1)

    def total_variation(self) -> Tensor:
        """Mean over pixels of the anisotropic total variation of the canonical images, complex magnitudes smoothed at 1e-4."""
        images = self.canonical.reshape(-1, 2, *self.sizes)
        total = torch.zeros((), device=images.device)
        for axis in range(2, images.ndim):
            total = total + (images.diff(dim=axis).square().sum(1) + 1e-8).sqrt().mean()
        return total
