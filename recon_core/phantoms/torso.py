"""The chest around the heart: drawn once, finely, then deformed by breathing."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from recon_core.phantoms.raster import noise_texture, paint, paint_vessels, share, superellipse, vessel_tree

# Millimetres in a chest of 300 × 210 mm, origin at its centre, x to the patient's left, y to the back.
HALF_AXES = (105.0, 150.0)
"""Half axes ``(y, x)`` of the chest at rest, mm."""

# A fat-suppressed bright-blood sequence.
FAT, MUSCLE, LUNG, LIVER, SPLEEN, BLOOD, FLUID, BONE, MARROW = 0.36, 0.27, 0.05, 0.42, 0.40, 0.95, 0.9, 0.08, 0.33

_AORTA = (27.0, 42.0)
_SPINE = (0.0, 58.0)


class Torso:
    """Background tissue as three layers of a raster: two slices between which breathing blends, and the aorta.

    Breathing carries tissue through the slice as well as along it: vessels of liver and lungs differ in the two slices.

    Attributes:
        layers: float32 ``[3, y, x]``: expiration, inspiration, the aorta's share.
    """

    def __init__(self, shape: tuple[int, int], field_of_view: tuple[float, float], scale: float, rng: np.random.Generator) -> None:
        """Draw the layers.

        Args:
            shape: raster pixels ``(ny, nx)``.
            field_of_view: mm, ``(y, x)``.
            scale: size of this chest, 1 is 300 mm wide.
            rng: source of texture and vessels.
        """
        self.scale = scale
        y, x = (torch.arange(n, dtype=torch.float32).sub(n // 2) / n * fov / scale for n, fov in zip(shape, field_of_view, strict=True))
        pixel_y, pixel_x = (fov / n / scale for n, fov in zip(shape, field_of_view, strict=True))
        self._pixel = max(pixel_y, pixel_x)
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        coarse = noise_texture(x, y, (5.0, 11.0), rng)
        fine = noise_texture(x, y, (1.6, 3.0), rng)
        wall = self._wall(grid_x, grid_y, coarse, fine)
        slices = [self._organs(wall.clone(), grid_x, grid_y, coarse, fine, rng) for _ in range(2)]
        aorta = share(superellipse(grid_x, grid_y, _AORTA, (11.0, 11.0)), self._pixel)
        self.layers = torch.stack([*slices, aorta])

    def _wall(self, x: Tensor, y: Tensor, coarse: Tensor, fine: Tensor) -> Tensor:
        """Skin, fat, muscle, ribs, spine."""
        half_y, half_x = HALF_AXES
        canvas = torch.zeros_like(x)
        body = superellipse(x, y, (0, 0), (half_x, half_y), power=2.4)
        paint(canvas, share(body, self._pixel), FAT * (1 + 0.06 * coarse + 0.05 * fine))
        layer = superellipse(x, y, (0, -1), (half_x - 13, half_y - 12), power=2.4)
        paint(canvas, share(layer, self._pixel), MUSCLE * (1 + 0.10 * coarse + 0.08 * fine))
        for number in range(16):
            angle = 2 * math.pi * (number + 0.5) / 16
            if abs(math.sin(angle)) > 0.97:
                continue
            c, s = math.cos(angle), math.sin(angle)
            norm = (abs(c) ** 2.4 + abs(s) ** 2.4) ** (-1 / 2.4)
            at = (norm * c * (half_x - 20), norm * s * (half_y - 19))
            along = math.atan2(c * half_y, -s * half_x)
            paint(canvas, share(superellipse(x, y, at, (10, 4.4), along), self._pixel), BONE)
            paint(canvas, share(superellipse(x, y, at, (8.2, 2.7), along), self._pixel), MARROW * (1 + 0.1 * fine))
        paint(canvas, share(superellipse(x, y, (0, -88), (17, 5.5), power=3), self._pixel), BONE)
        paint(canvas, share(superellipse(x, y, (0, -88), (15, 3.7), power=3), self._pixel), MARROW)
        return canvas

    def _organs(self, canvas: Tensor, x: Tensor, y: Tensor, coarse: Tensor, fine: Tensor, rng: np.random.Generator) -> Tensor:
        pixel = self._pixel
        for centre, half, angle in (((-66, -14), (55, 62), 0.12), ((74, -10), (46, 62), -0.15)):
            part = share(superellipse(x, y, centre, half, angle, power=2.3), pixel)
            lung = LUNG * (1 + 0.25 * coarse + 0.2 * fine)
            side = math.copysign(1, centre[0])
            for turn in (-1.0, -0.35, 0.3, 0.95):
                start, heading = (side * 24, -8 + 16 * turn), (0.0 if side > 0 else math.pi) + side * turn * 0.8 + rng.normal(0, 0.15)
                paint_vessels(lung, x, y, vessel_tree(start, heading, 34, 2.3, 4, rng), pixel, 0.48)
            paint(canvas, part, lung)
        paint(canvas, share(superellipse(x, y, (14, -12), (58, 54), -0.2), pixel), FAT * (1.0 + 0.08 * coarse + 0.06 * fine))
        liver = LIVER * (1 + 0.07 * coarse + 0.07 * fine)
        for heading in (-2.6, -2.0, 2.7):
            tree = vessel_tree((-14 + rng.normal(0, 4), 44 + rng.normal(0, 4)), heading + rng.normal(0, 0.2), 44, 3.6, 4, rng)
            paint_vessels(liver, x, y, tree, pixel, 0.74)
        paint(canvas, share(superellipse(x, y, (-62, 47), (66, 37), 0.1, power=2.5), pixel), liver)
        paint(canvas, share(superellipse(x, y, (52, 52), (24, 17), 0.2), pixel), 0.55 + 0.12 * coarse)
        paint(canvas, share(superellipse(x, y, (96, 50), (27, 22), -0.5), pixel), SPLEEN * (1 + 0.05 * coarse + 0.07 * fine))
        self._spine(canvas, x, y, fine)
        paint(canvas, share(superellipse(x, y, _AORTA, (12.6, 12.6)), pixel), MUSCLE)
        paint(canvas, share(superellipse(x, y, _AORTA, (11, 11)), pixel), BLOOD)
        paint(canvas, share(superellipse(x, y, (-24, 30), (9.5, 7.5), 0.3), pixel), 0.85 * BLOOD)
        # Pulmonary and mammary vessels of one to two pixels.
        for at, radius in (((9, 36), 1.8), ((-16, -80), 1.4), ((16, -80), 1.4), ((12, 42), 1.2)):
            paint(canvas, share(superellipse(x, y, at, (radius, radius)), pixel), BLOOD)
        return canvas

    def _spine(self, canvas: Tensor, x: Tensor, y: Tensor, fine: Tensor) -> None:
        pixel = self._pixel
        sx, sy = _SPINE
        for side in (-1, 1):
            paint(canvas, share(superellipse(x, y, (side * 24, sy + 22), (19, 13), side * 0.3), pixel), MUSCLE * (1.1 + 0.12 * fine))
        paint(canvas, share(superellipse(x, y, (sx, sy), (20, 15), power=2.6), pixel), BONE)
        paint(canvas, share(superellipse(x, y, (sx, sy), (18, 13), power=2.6), pixel), MARROW * (1 + 0.14 * fine))
        paint(canvas, share(superellipse(x, y, (sx, sy + 32), (4, 11)), pixel), MARROW)
        paint(canvas, share(superellipse(x, y, (sx, sy + 21), (10.5, 8.5)), pixel), BONE)
        paint(canvas, share(superellipse(x, y, (sx, sy + 21), (8.5, 6.5)), pixel), FLUID)
        paint(canvas, share(superellipse(x, y, (sx, sy + 21), (4.6, 3.4)), pixel), 0.5)


def breathing_motion(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """How far tissue moves at full inspiration, mm in the chest of scale 1.

    The diaphragm and what rests on it move down by 13 mm, the front wall moves out by 4 mm, spine and back stay.

    Args:
        x: positions in the chest of scale 1, mm.
        y: as ``x``.

    Returns:
        Displacement along x and along y: what is at ``(x, y)`` now lay at ``(x, y)`` minus breath times it at rest.
    """
    inside = torch.exp(-((x / 112) ** 4)) * torch.exp(-(((y - 5) / 62) ** 4))
    spine = 1 - torch.exp(-(((x - _SPINE[0]) / 30) ** 2) - ((y - _SPINE[1]) / 34) ** 2)
    front = torch.sigmoid((-y - 48) / 9) * torch.exp(-((x / 120) ** 4))
    return 2.0 * torch.tanh(x / 60) * inside, 13.0 * inside * spine - 4.0 * front
