"""A beating heart in short axis: analytic, drawn anew at every moment."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from recon_core.phantoms.raster import capsule, paint, share, superellipse
from recon_core.phantoms.torso import BLOOD

CENTRE = (34.0, -14.0)
"""Centre of the left ventricle at rest, mm ``(x, y)`` in the chest of scale 1."""

REACH = 74.0
"""Half side of the square about the centre that holds the heart, mm, breathing not counted."""

MYOCARDIUM = 0.27
PERICARDIAL_FAT = 0.47
_ENDOCARDIUM, _WALL_AREA = 24.5, 610.0  # mm, mm² / π at rest


class Heart:
    """Both ventricles with papillary muscles, trabeculae, coronary vessels and texture that moves with the muscle."""

    def __init__(self, rng: np.random.Generator) -> None:
        """Draw the seeded details: textures of two neighbouring slices, where muscles attach."""
        self._textures = [self._texture(rng) for _ in range(2)]
        self._blood = self._texture(rng)
        self._roughness = rng.uniform(0, 2 * math.pi, 4).tolist()
        self._papillary = (0.75 + rng.normal(0, 0.1), 2.75 + rng.normal(0, 0.1))
        self._trabeculae = rng.uniform(-0.25, 0.25, 3).tolist()

    @staticmethod
    def _texture(rng: np.random.Generator) -> Callable[[Tensor, Tensor], Tensor]:
        terms = [
            (float(rng.normal(0, 1)), int(rng.integers(2, 15)), float(rng.uniform(1.0, 7.0)), float(rng.uniform(0, 2 * math.pi)))
            for _ in range(9)
        ]
        norm = math.sqrt(sum(a * a for a, *_ in terms) / 2)

        def sample(depth: Tensor, angle: Tensor) -> Tensor:
            total = torch.zeros_like(depth)
            for amplitude, turns, waves, phase in terms:
                total += amplitude / norm * torch.cos(turns * angle + waves * depth + phase)
            return total

        return sample

    def draw(self, canvas: Tensor, x: Tensor, y: Tensor, pixel: float, contraction: float, ejection: float, breath: float) -> None:
        """Paint the heart over the canvas, in place.

        Args:
            canvas: signal ``[y, x]`` of the square about the heart.
            x: positions of tissue at rest, mm in the chest of scale 1.
            y: as ``x``.
            pixel: mm.
            contraction: 0 end of diastole to about 1 end of systole.
            ejection: speed of ejection, 0 to about 1.
            breath: 0 to about 1: the slice meets other tissue.
        """
        s = contraction
        # The base descends towards the slice: the whole heart shifts a little, turns and tilts.
        dx, dy = x - (CENTRE[0] - 2.0 * s), y - (CENTRE[1] + 1.5 * s)
        squeeze = 1.05 - 0.02 * s
        u, v = dx * squeeze, dy / squeeze
        radius = torch.sqrt(u * u + v * v) + 1e-6
        angle = torch.atan2(v, u)
        twist = angle - 0.16 * s
        inner = _ENDOCARDIUM * (1 - 0.40 * s)
        outer = math.sqrt(inner * inner + _WALL_AREA * (1 - 0.10 * s))
        a, b, c, d = self._roughness
        folds = 1 + 0.025 * torch.cos(3 * twist + a) + (0.02 + 0.03 * s) * torch.cos(7 * twist + b)
        endocardium = radius - inner * folds
        epicardium = radius - outer * (1 + 0.015 * torch.cos(2 * twist + c) + 0.01 * torch.cos(3 * twist + d))
        depth = (radius - inner) / (outer - inner)
        blend = min(0.75 * s + 0.25 * breath, 1.0)
        texture = (1 - blend) * self._textures[0](depth, twist) + blend * self._textures[1](depth, twist)
        muscle = MYOCARDIUM * (1 + 0.09 * s - 0.04 * breath) * (1 + 0.11 * texture)

        cavity = superellipse(dx, dy, (-26 + 5 * s, -6 + 1.5 * s), (33 * (1 - 0.20 * s), 30 * (1 - 0.13 * s)), 0.55)
        wall = superellipse(dx, dy, (-26 + 5 * s, -6 + 1.5 * s), (36.5 * (1 - 0.18 * s), 33.5 * (1 - 0.11 * s)), 0.55)
        fat = torch.minimum(superellipse(dx, dy, (-26, -6), (41, 37.5), 0.55), radius - 37.5)
        paint(canvas, share(fat, pixel), PERICARDIAL_FAT * (1.0 + 0.06 * texture))
        paint(canvas, share(torch.minimum(wall, epicardium), pixel), muscle)
        fast = 1 - 0.22 * min(ejection, 1.2)
        swirl = self._blood(radius / 14, angle)
        blood = BLOOD * (1 + 0.04 * s) * (1 + (0.02 + 0.06 * min(ejection, 1.2)) * swirl)
        # The right cavity ends at the septum, which belongs to the left ventricle.
        right = torch.maximum(cavity, 1.0 - epicardium)
        paint(canvas, share(right, pixel), blood * (1 - 0.12 * min(ejection, 1.2)) * 0.93)
        for number, offset in enumerate(self._trabeculae):
            turn = 2.6 + 0.55 * number + offset
            start = (-26 + 31 * math.cos(turn), -6 + 28 * math.sin(turn))
            end = (-26 + 13 * math.cos(turn + 0.25), -6 + 12 * math.sin(turn + 0.25))
            bundle = torch.maximum(capsule(dx, dy, start, end, 2.0 + 0.8 * s, 1.1), right)
            paint(canvas, share(bundle, pixel), 1.05 * MYOCARDIUM)
        paint(canvas, share(endocardium, pixel), blood * fast)
        for number, turn in enumerate(self._papillary):
            place = inner * (0.66 - 0.08 * s)
            at = (place * math.cos(turn + 0.16 * s) / squeeze, place * math.sin(turn + 0.16 * s) * squeeze)
            half = (5.2 - 0.6 * s, 3.9 - 0.2 * s) if number == 0 else (4.4, 3.6)
            paint(canvas, share(superellipse(dx, dy, at, half, turn), pixel), muscle)
        self._coronaries(canvas, dx, dy, pixel, s, outer, fast)

    @staticmethod
    def _coronaries(canvas: Tensor, dx: Tensor, dy: Tensor, pixel: float, s: float, outer: float, fast: float) -> None:
        """Vessels of 2.4 to 3 mm in the grooves and on the free wall, carried along by the muscle."""
        for turn, beyond, radius in ((-1.95, 2.6, 1.5), (2.35, 2.8, 1.4), (0.15, 2.2, 1.2), (-0.75, 2.0, 1.2)):
            reach = outer + beyond
            at = (reach * math.cos(turn + 0.1 * s), reach * math.sin(turn + 0.1 * s))
            paint(canvas, share(superellipse(dx, dy, at, (radius, radius)), pixel), BLOOD * fast)
        groove = (-26 + 5 * s + 37.5 * (1 - 0.18 * s) * math.cos(-2.3), -6 + 35 * (1 - 0.11 * s) * math.sin(-2.3))
        paint(canvas, share(superellipse(dx, dy, groove, (1.7, 1.7)), pixel), BLOOD)
