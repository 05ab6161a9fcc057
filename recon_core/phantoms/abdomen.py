"""An upper abdomen in three dimensions: each tissue's share of every voxel, drawn once, then moved by breathing."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from recon_core.phantoms.enhancement import TISSUES
from recon_core.phantoms.raster import noise_texture, share

# Millimetres in an abdomen of 320 × 220 mm; origin at its centre, x to the patient's left, y to the back, z to the head.
HALF_AXES = (110.0, 160.0)
"""Half axes ``(y, x)`` of the body, mm."""

SHIFT = (-10.0, -3.0)
"""Motion at full inspiration, mm: organs towards the feet (z), front wall outwards (y)."""

Point = tuple[float, float, float]

_AORTA = (12.0, 38.0)
_SPINE = (0.0, 62.0)
_GRAINS = 3


def _ellipsoid(p: tuple[Tensor, Tensor, Tensor], centre: Point, half: Point, power: float = 2.0) -> Tensor:
    """Signed distance (to first order) to an ellipsoid, negative inside; axes (x, y, z)."""
    parts = [((q - c) / h).abs() for q, c, h in zip(p, centre, half, strict=True)]
    level = sum(part**power for part in parts) ** (1 / power) + 1e-9
    slope = torch.sqrt(sum((part ** (power - 1) / h) ** 2 for part, h in zip(parts, half, strict=True))) / level ** (power - 1)  # type: ignore[arg-type]
    return (level - 1) / slope.clamp_min(0.5 / max(half))


def _tube(p: tuple[Tensor, Tensor, Tensor], start: Point, end: Point, radius: float, end_radius: float | None = None) -> Tensor:
    """Signed distance to a segment with rounded ends whose radius changes linearly."""
    along = [b - a for a, b in zip(start, end, strict=True)]
    offsets = [q - a for q, a in zip(p, start, strict=True)]
    t = (sum(o * e for o, e in zip(offsets, along, strict=True)) / sum(e * e for e in along)).clamp(0, 1)  # type: ignore[union-attr]
    squared = sum((o - t * e) ** 2 for o, e in zip(offsets, along, strict=True))
    return torch.sqrt(squared) - (radius if end_radius is None else radius + t * (end_radius - radius))  # type: ignore[arg-type]


def _branches(
    start: Point, heading: Point, length: float, radius: float, generations: int, rng: np.random.Generator
) -> list[tuple[Point, Point, float]]:
    """A vessel that branches in space: segments ``(start, end, radius)``."""
    if generations == 0:
        return []
    direction = np.array(heading) / np.linalg.norm(heading)
    end = tuple((np.array(start) + length * direction).tolist())
    found = [(start, end, radius)]
    for _ in range(2):
        turned = direction + 0.65 * rng.standard_normal(3)
        found += _branches(end, tuple(turned.tolist()), length * rng.uniform(0.6, 0.85), 0.7 * radius, generations - 1, rng)
    return found


class Abdomen:
    """Tissue weights of a volume at rest.

    Attributes:
        shares: float32 ``[tissue, z, y, x]``, each tissue's share of a voxel, in the order of ``TISSUES``.
        weights: the same, textured.
    """

    def __init__(self, axes: tuple[Tensor, Tensor, Tensor], scale: float, rng: np.random.Generator) -> None:
        """Draw it.

        Args:
            axes: positions ``(z, y, x)`` of the voxels along each axis, mm.
            scale: size of this abdomen, 1 is 320 mm wide.
            rng: source of texture and vessels.
        """
        z, y, x = (a.float() / scale for a in axes)
        self._pixel = max(float(x[1] - x[0]), float(y[1] - y[0]))
        self._axes = (x, y, z)
        self.shares = torch.zeros((len(TISSUES), len(z), len(y), len(x)))
        self._draw(rng)
        self.weights = self.shares * self._texture(rng)

    def _texture(self, rng: np.random.Generator) -> Tensor:
        """Factor near 1 that changes within and between slices, ``[z, y, x]``."""
        x, y, z = self._axes
        total = torch.zeros(self.shares.shape[1:])
        for _ in range(_GRAINS):
            wave, phase = rng.uniform(0.05, 0.2), rng.uniform(0, 2 * math.pi)
            total += torch.cos(wave * z + phase)[:, None, None] * noise_texture(x, y, (2.5, 5.0, 10.0), rng)
        return 1 + 0.10 * math.sqrt(2 / _GRAINS) * total

    def _paint(self, tissue: str | None, distance: object, low: Point, high: Point) -> None:
        """Give part of a box to a tissue (None: to nothing), taking it from all others.

        ``distance`` is a function of the positions in the box that spans ``low`` to ``high`` (x, y, z), mm.
        """
        parts = []
        for axis, a, b in zip(self._axes, low, high, strict=True):
            inside = torch.nonzero((axis >= a - 2 * self._pixel) & (axis <= b + 2 * self._pixel)).flatten()
            if not len(inside):
                return
            parts.append(slice(int(inside[0]), int(inside[-1]) + 1))
        px, py, pz = (axis[part] for axis, part in zip(self._axes, parts, strict=True))
        position = (px[None, None, :], py[None, :, None], pz[:, None, None])
        part = share(distance(position), self._pixel)  # type: ignore[operator]
        box = self.shares[:, parts[2], parts[1], parts[0]]
        box *= 1 - part
        if tissue is not None:
            box[TISSUES.index(tissue)] += part

    def _organ(self, tissue: str | None, centre: Point, half: Point, power: float = 2.0) -> None:
        low, high = (tuple(c + s * h for c, h in zip(centre, half, strict=True)) for s in (-1, 1))
        self._paint(tissue, lambda p: _ellipsoid(p, centre, half, power), low, high)  # type: ignore[arg-type]

    def _vessel(self, tissue: str, start: Point, end: Point, radius: float, end_radius: float | None = None) -> None:
        wide = max(radius, end_radius or 0.0)
        low = tuple(min(a, b) - wide for a, b in zip(start, end, strict=True))
        high = tuple(max(a, b) + wide for a, b in zip(start, end, strict=True))
        self._paint(tissue, lambda p: _tube(p, start, end, radius, end_radius), low, high)  # type: ignore[arg-type]

    def _draw(self, rng: np.random.Generator) -> None:
        tall = 400.0
        half_y, half_x = HALF_AXES
        for tissue, inset in (("fat", 0.0), ("muscle", 14.0), ("fat", 22.0)):
            self._organ(tissue, (0, 0, 0), (half_x - inset, half_y - inset, 100 * tall), 2.5)
        self._spine(tall)
        for index in range(9):
            at = (rng.uniform(5, 95), rng.uniform(-62, -20), rng.uniform(-70, 40))
            self._organ("bowel", at, (rng.uniform(12, 22), rng.uniform(10, 16), rng.uniform(12, 22)))
            if index % 3 == 0:
                self._organ(None, (at[0], at[1] - 4, at[2]), (6, 5, 7))
        self._organ("bowel", (62, -34, 38), (34, 26, 34))
        self._organ("liver", (-66, -8, 22), (72, 64, 78), 2.4)
        self._organ("liver", (2, -40, 34), (44, 28, 34), 2.2)
        self._organ("spleen", (104, 34, 30), (27, 36, 48), 2.2)
        for side, x, z in ((-1, -68.0, -40.0), (1, 66.0, -26.0)):
            self._kidney(side, x, z)
        self._liver_vessels(rng)
        self._large_vessels(tall)

    def _spine(self, tall: float) -> None:
        sx, sy = _SPINE
        for side in (-1, 1):
            self._organ("muscle", (side * 30, sy + 24, 0), (24, 18, tall), 2.2)
            self._organ("muscle", (side * 30, sy + 2, -60), (15, 16, 90), 2.2)
        self._organ("muscle", (sx, sy, 0), (23, 18, 100 * tall), 2.6)
        for number in range(-7, 8):
            self._organ("fat", (sx, sy, 30.0 * number), (20, 15, 12.5), 3.0)
        self._organ(None, (sx, sy + 22, 0), (8, 7, 100 * tall))

    def _kidney(self, side: int, x: float, z: float) -> None:
        self._organ("cortex", (x, 40, z), (27, 25, 52), 2.1)
        self._organ("fat", (x - side * 16, 36, z), (15, 11, 24))
        for number in range(6):
            angle = 2 * math.pi * number / 6
            at = (x + 8 * side + 9 * math.cos(angle), 40 + 9 * math.sin(angle), z + 24 * math.sin(2.1 * number))
            self._organ("medulla", at, (7.0, 6.5, 10.0))

    def _liver_vessels(self, rng: np.random.Generator) -> None:
        # The trunk rises from the pancreas to the hilum and forks into the lobes.
        self._vessel("portal_vein", (-8, 12, -34), (-30, 4, 26), 7.5, 7.0)
        trees = []
        for heading in ((-0.9, 0.35, 0.1), (-0.7, -0.4, 0.5), (0.5, -0.8, 0.2)):
            trees += _branches((-30, 4, 26), heading, 40, 4.6, 4, rng)
        for start, end, radius in trees:
            self._vessel("portal_vein", start, end, radius, 0.75 * radius)
        for heading in ((-0.9, -0.2, -0.4), (-0.4, -0.7, -0.5), (0.4, -0.7, -0.3)):
            for start, end, radius in _branches((-20, 26, 78), heading, 48, 4.2, 3, rng):
                self._vessel("vena_cava", start, end, radius, 0.7 * radius)

    def _large_vessels(self, tall: float) -> None:
        ax, ay = _AORTA
        self._vessel("vena_cava", (-20, 34, -tall), (-20, 32, tall), 10.5)
        for side, x, z in ((-1, -52.0, -40.0), (1, 50.0, -26.0)):
            self._vessel("aorta", (ax, ay, z + 6), (x, 38, z), 2.8, 2.2)
            self._vessel("vena_cava", (-18, 32, z + 2), (x - side * 2, 34, z - 4), 4.6, 4.0)
        self._vessel("aorta", (ax, ay - 4, 16), (ax - 2, 10, 18), 3.6, 3.2)
        self._vessel("aorta", (ax - 2, 10, 18), (-26, 2, 22), 2.5, 1.8)
        self._vessel("aorta", (ax - 2, 10, 18), (84, 24, 26), 2.6, 2.0)
        self._vessel("aorta", (ax, ay, -tall), (ax, ay, tall), 10.5)

    def motion(self) -> tuple[Tensor, Tensor]:
        """How far what is at a voxel has moved at full inspiration, mm along z and along y, ``[1, y, x]``: spine and back stay."""
        x, y, _ = self._axes
        px, py = x[None, None, :], y[None, :, None]
        inside = torch.exp(-((px / 132) ** 6)) * torch.exp(-(((py + 12) / 88) ** 6))
        spine = 1 - torch.exp(-(((px - _SPINE[0]) / 38) ** 4) - ((py - _SPINE[1]) / 38) ** 4)
        # Kidneys and great vessels move less than what hangs on the diaphragm.
        behind = 1 - 0.45 * torch.sigmoid((py - 20) / 8)
        front = torch.sigmoid((-py - 55) / 10) * torch.exp(-((px / 120) ** 4))
        return SHIFT[0] * inside * spine * behind, SHIFT[1] * front
