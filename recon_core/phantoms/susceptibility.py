"""Off-resonance that air makes in the tissue around it, in a slice through a body that goes on unchanged to both sides.

With u from ∇²u = (share of air), the Lorentz-corrected shift is Δχ f0 (share/3 − ∂²u/∂y²) for a main field along y (Salomir et al.,
Concepts Magn Reson B 2003;19:26). In tissue, where the share is 0, it is harmonic. At a border it jumps by Δχ f0 (1/3 − n_y²), n the
border's normal: but no spin is on the air's side, so the tissue's own limit counts there, and nothing of the air's inside may be mixed
into it. Pixels of air are therefore summed as bars with the exact field of each (the plane counterpart of Jenkinson et al., Magn Reson
Med 2004;52:471), not low-passed in k-space.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

_PURE = 0.02
"""Share of air up to which the sum over bars holds in a pixel: in a fuller one its own bar, cut by the border, is not a whole one."""
_RINGS = 6


def bars(shape: tuple[int, int], field_of_view: tuple[float, float]) -> Tensor:
    """Half spectrum of the field outside one pixel-wide bar of Δχ f0 = 1 Hz; convolved with the share of air it gives the field in tissue.

    A bar's field at its own centre is left out: tissue never lies there.

    Args:
        shape: pixels ``(ny, nx)``; the bar lies at index 0, offsets wrap.
        field_of_view: mm, ``(y, x)``; the main field points along y.

    Returns:
        complex64 ``[y, x // 2 + 1]``.
    """
    height, width = (fov / n for fov, n in zip(field_of_view, shape, strict=True))
    y = torch.fft.fftfreq(shape[0], 1 / shape[0], dtype=torch.float64)[:, None] * height
    x = torch.fft.fftfreq(shape[1], 1 / shape[1], dtype=torch.float64)[None] * width
    # ∂²u/∂y² of a rectangle: the angles that its corners span.
    corners = [(sy, sx, torch.atan((x + sx * width) / (y + sy * height))) for sy in (-0.5, 0.5) for sx in (-0.5, 0.5)]
    field = -sum((4 * sy * sx * angle for sy, sx, angle in corners), torch.zeros_like(y * x)) / (2 * math.pi)
    field[0, 0] = 0.0
    return torch.fft.rfft2(field).to(torch.complex64)


def convolved(air: Tensor, kernel: Tensor) -> Tensor:
    """Field of a share of air ``[y, x]``, wrapped around, with a kernel of :func:`bars`; float32 ``[y, x]``."""
    return torch.fft.irfft2(torch.fft.rfft2(air) * kernel, s=air.shape)


def in_tissue(field: Tensor, air: Tensor) -> Tensor:
    """The field of pure tissue, carried on into pixels that hold air: ring by ring the mean of the neighbours that have one.

    Args:
        field: float32 ``[y, x]``, right where there is no air.
        air: share of air, ``[y, x]``.

    Returns:
        float32 ``[y, x]``; 0 deep in air.
    """
    known = (air < _PURE).to(field.dtype)[None, None]
    field = field[None, None] * known
    for _ in range(_RINGS):
        around, total = (avg_pool2d(part, 3, 1, 1, divisor_override=1) for part in (known, field))
        new = (known == 0) & (around > 0)
        field = torch.where(new, total / around.clamp_min(1.0), field)
        known = known + new.to(known.dtype)
    return field[0, 0]
