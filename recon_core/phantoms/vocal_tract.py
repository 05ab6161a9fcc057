"""A head in the midsagittal plane: what stays is drawn once, the vocal tract at every moment anew."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from recon_core.phantoms.articulation import ARTICULATORS
from recon_core.phantoms.raster import capsule, noise_texture, paint, paint_vessels, share, superellipse, vessel_tree

# Millimetres in a head of scale 1 that fills a field of view of 200 mm; origin at the scan's centre, x to the back, y to the feet.
HALF_AXES = (92.0, 88.0)
"""Half axes ``(y, x)`` of what the coils surround, mm."""

# A T1-weighted gradient echo at short TR: fat bright, muscle middling, bone and teeth dark.
FAT, MUSCLE, MUCOSA, BRAIN_GREY, BRAIN_WHITE, FLUID, BONE, MARROW, CARTILAGE = 0.95, 0.48, 0.62, 0.5, 0.62, 0.18, 0.06, 0.8, 0.3

_BOX = (-97.0, 46.0, -45.0, 97.0)  # mm: x from, x to, y from, y to; holds all that moves
_TEXTURE_TERMS = 7


class VocalTract:
    """Signal and air of a speaker's head for any posture of the articulators."""

    def __init__(self, shape: tuple[int, int], field_of_view: tuple[float, float], scale: float, rng: np.random.Generator) -> None:
        """Draw what does not move.

        Args:
            shape: pixels ``(ny, nx)``.
            field_of_view: mm, ``(y, x)``.
            scale: size of this head, 1 fills 200 mm.
            rng: source of texture and vessels.
        """
        y, x = (torch.arange(n, dtype=torch.float32).sub(n // 2) / n * fov / scale for n, fov in zip(shape, field_of_view, strict=True))
        self._pixel = max(fov / n for n, fov in zip(shape, field_of_view, strict=True)) / scale
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        coarse, fine = noise_texture(x, y, (5.0, 11.0), rng), noise_texture(x, y, (1.5, 3.0), rng)
        self._waves = [
            (
                float(rng.normal()),
                *(rng.uniform(0.15, 1.1) * np.array([math.cos(a), math.sin(a)])).tolist(),
                float(rng.uniform(0, 2 * math.pi)),
            )
            for a in rng.uniform(0, math.pi, _TEXTURE_TERMS)
        ]
        self._wave_norm = math.sqrt(sum(a * a for a, *_ in self._waves) / 2)
        self._vessels = vessel_tree((-6.0, 34.0), -1.9 + rng.normal(0, 0.1), 26, 1.5, 3, rng)
        self.signal = torch.zeros(shape)
        self.air = torch.ones(shape)
        self._head(grid_x, grid_y, coarse, fine, rng)
        columns, rows = ((p >= low) & (p <= high) for p, low, high in ((x, *_BOX[:2]), (y, *_BOX[2:])))
        c, r = torch.nonzero(columns).flatten(), torch.nonzero(rows).flatten()
        self.box = (slice(int(r[0]), int(r[-1]) + 1), slice(int(c[0]), int(c[-1]) + 1))
        self._x, self._y = grid_x[self.box].contiguous(), grid_y[self.box].contiguous()
        self._fine = fine[self.box].contiguous()

    def _tissue(self, part: Tensor, value: Tensor | float, signal: Tensor, air: Tensor) -> None:
        paint(signal, part, value)
        paint(air, part, 0.0)

    def _void(self, part: Tensor, signal: Tensor, air: Tensor) -> None:
        paint(signal, part, 0.0)
        paint(air, part, 1.0)

    def _head(self, x: Tensor, y: Tensor, coarse: Tensor, fine: Tensor, rng: np.random.Generator) -> None:
        pixel, signal, air = self._pixel, self.signal, self.air
        skin = torch.minimum(superellipse(x, y, (12, -64), (82, 66)), superellipse(x, y, (-18, 6), (57, 52), power=2.6))
        skin = torch.minimum(skin, capsule(x, y, (-62, -44), (-80, -17), 11.0, 9.0))
        skin = torch.minimum(skin, capsule(x, y, (34, 20), (42, 120), 50.0))
        self._tissue(share(skin, pixel), FAT * (1 + 0.05 * coarse + 0.05 * fine), signal, air)
        self._tissue(share(skin + 6.0, pixel), MUSCLE * (1 + 0.1 * coarse + 0.1 * fine), signal, air)
        skull = superellipse(x, y, (12, -66), (75, 58))
        self._tissue(share(skull, pixel), BONE, signal, air)
        self._tissue(share(torch.maximum(skull + 1.8, -(skull + 4.2)), pixel), MARROW * (1 + 0.1 * fine), signal, air)
        brain = skull + 7.0
        self._tissue(share(brain, pixel), FLUID, signal, air)
        folds = torch.sin(0.33 * x + 2.5 * coarse) * torch.sin(0.31 * y + 2.0 * fine)
        self._tissue(share(brain + 2.0, pixel), BRAIN_GREY * (1 + 0.09 * folds + 0.05 * fine), signal, air)
        self._tissue(share(superellipse(x, y, (8, -70), (46, 30), 0.05), pixel), BRAIN_WHITE * (1 + 0.05 * fine), signal, air)
        self._tissue(share(superellipse(x, y, (4, -62), (22, 5), -0.2), pixel), FLUID, signal, air)
        self._tissue(
            share(superellipse(x, y, (58, -36), (22, 17), 0.4), pixel), BRAIN_GREY * (1 + 0.18 * torch.sin(1.1 * y + fine)), signal, air
        )
        self._tissue(share(capsule(x, y, (34, -46), (40, 4), 9.5, 6.5), pixel), BRAIN_WHITE, signal, air)
        self._spine(x, y, fine)
        # Skull base and face: bone with marrow, sinus, nose.
        self._tissue(share(capsule(x, y, (-54, -30), (24, -24), 4.5), pixel), BONE, signal, air)
        self._tissue(share(capsule(x, y, (6, -33), (26, -22), 5.5, 3.0), pixel), MARROW * (1 + 0.1 * fine), signal, air)
        self._void(share(superellipse(x, y, (-2, -38), (9, 6.0), 0.2), pixel), signal, air)
        self._void(share(superellipse(x, y, (-66, -44), (4.5, 7), -0.2), pixel), signal, air)
        nose = torch.minimum(superellipse(x, y, (-39, -18), (25, 9.0), -0.06, power=3), capsule(x, y, (-62, -17), (-76, -9), 3.4, 2.4))
        self._void(share(nose, pixel), signal, air)
        for row in (-22.0, -15.5):
            shelf = capsule(x, y, (-58, row), (-24, row + 1.5), 2.1)
            self._tissue(share(shelf, pixel), MUCOSA * (1 + 0.12 * fine), signal, air)
        # Nasopharynx and pharynx down to the larynx, the back wall of which stays.
        self._void(
            share(torch.minimum(capsule(x, y, (-18, -17), (8, -10), 7.0), capsule(x, y, (8, -10), (19, 8), 6.5)), pixel), signal, air
        )
        self._void(share(capsule(x, y, (19, 8), (21, 62), 6.5, 5.5), pixel), signal, air)
        # Hard palate with the alveolar ridge, upper incisor.
        for start, end in (((-60, 1), (-48, -7)), ((-48, -7), (-26, -8.5)), ((-26, -8.5), (-10, -6.5))):
            self._tissue(share(capsule(x, y, start, end, 3.4), pixel), MUCOSA * (1 + 0.1 * fine), signal, air)
            self._tissue(share(capsule(x, y, start, end, 1.7), pixel), BONE, signal, air)
        self._tissue(share(superellipse(x, y, (-61, -1), (7, 6.0), 0.5), pixel), MARROW * (0.8 + 0.1 * fine), signal, air)
        self._tissue(share(capsule(x, y, (-64, 2), (-66, 9), 2.6, 1.2), pixel), 0.03, signal, air)
        for number in range(5):
            tree = vessel_tree((30 + rng.normal(0, 3), 14 + 16 * number), 2.3 + rng.normal(0, 0.5), 12, 1.1, 2, rng)
            paint_vessels(signal, x, y, tree, pixel, 0.9)

    def _spine(self, x: Tensor, y: Tensor, fine: Tensor) -> None:
        pixel, signal, air = self._pixel, self.signal, self.air
        self._tissue(share(capsule(x, y, (48, -10), (60, 120), 8.5), pixel), FLUID, signal, air)
        self._tissue(share(capsule(x, y, (46, -10), (58, 120), 4.6), pixel), BRAIN_WHITE * (1 + 0.05 * fine), signal, air)
        for number in range(8):
            cy = -6 + 16.5 * number
            cx = 33.5 + 0.09 * cy
            self._tissue(share(superellipse(x, y, (cx, cy), (8.2, 7.4), 0.1, power=3.5), pixel), BONE, signal, air)
            self._tissue(share(superellipse(x, y, (cx, cy), (7.0, 6.3), 0.1, power=3.5), pixel), MARROW * (0.75 + 0.14 * fine), signal, air)
            self._tissue(share(superellipse(x, y, (cx + 0.7, cy + 8.2), (7.0, 1.7), 0.1, power=3), pixel), CARTILAGE, signal, air)
            self._tissue(share(superellipse(x, y, (cx + 31, cy + 6), (9.5, 4.2), 0.5), pixel), MARROW * (0.7 + 0.1 * fine), signal, air)

    def draw(self, posture: np.ndarray) -> tuple[Tensor, Tensor]:
        """The head in one posture.

        Args:
            posture: positions in the order of ``ARTICULATORS``.

        Returns:
            Signal and share of air in the moving box (:attr:`box`), float32 ``[y, x]``.
        """
        p = dict(zip(ARTICULATORS, (float(v) for v in posture), strict=True))
        x, y, pixel = self._x, self._y, self._pixel
        signal, air = self.signal[self.box].clone(), self.air[self.box].clone()
        jaw = p["jaw"]
        # The jaw turns about its joint: what lies in front sinks and moves back a little.
        back = 0.25 * jaw
        self._chin(signal, air, jaw, back)
        self._void(share(superellipse(x, y, (-34, 14 + 0.5 * jaw), (29, 16 + 0.55 * jaw), power=2.6), pixel), signal, air)
        self._void(share(capsule(x, y, (-58, 10 + 0.4 * jaw), (-88, 10 + 0.5 * jaw), 0.55 * max(p["lips"], 0.01)), pixel), signal, air)
        self._larynx(signal, air, p)
        self._tongue(signal, air, p, jaw, back)
        self._velum(signal, air, p["velum"])
        self._lips(signal, air, p, jaw, back)
        return signal, air

    def _chin(self, signal: Tensor, air: Tensor, jaw: float, back: float) -> None:
        x, y, pixel = self._x, self._y, self._pixel
        soft = torch.minimum(
            superellipse(x, y, (-56 + back, 38 + jaw), (20, 22), power=2.4),
            capsule(x, y, (-48 + back, 48 + jaw), (6, 54 + 0.3 * jaw), 14.0, 16.0),
        )
        self._tissue(share(soft, pixel), FAT * (1 + 0.07 * self._fine), signal, air)
        muscle = capsule(x, y, (-46 + back, 44 + jaw), (4, 50 + 0.3 * jaw), 8.5, 13.0)
        self._tissue(share(muscle, pixel), MUSCLE * (1.05 + 0.12 * self._fine), signal, air)
        self._tissue(share(superellipse(x, y, (-59 + back, 36 + jaw), (7.4, 13.5), -0.15), pixel), BONE, signal, air)
        self._tissue(
            share(superellipse(x, y, (-59 + back, 37 + jaw), (5.2, 10.5), -0.15), pixel), MARROW * (0.9 + 0.1 * self._fine), signal, air
        )

    def _tongue(self, signal: Tensor, air: Tensor, p: dict[str, float], jaw: float, back: float) -> None:
        x, y, pixel = self._x, self._y, self._pixel
        bx, by = p["body_x"] + 0.6 * back, p["body_y"] + 0.55 * jaw
        centre = (-18 + bx, 19 + by)
        # Incompressible: a tongue that is pushed up is narrower.
        squeeze = 1 + 0.012 * p["body_y"]
        body = superellipse(x, y, centre, (28 * squeeze, 21 / squeeze), 0.12 + 0.01 * p["body_x"], power=2.2)
        root = capsule(x, y, (-4 + 0.6 * bx, 30 + 0.5 * by), (2 + 0.35 * bx, 50 + 0.2 * by), 17.0, 13.0)
        blade = capsule(
            x, y, (-31 + bx, 19 + by), (-51 + p["tip_x"] + 0.5 * bx, 13 + p["tip_y"] + 0.75 * jaw + 0.25 * p["body_y"]), 11.5, 4.2
        )
        floor = capsule(x, y, (-40 + back, 36 + 0.9 * jaw), (-4, 42 + 0.3 * jaw), 10.0, 13.0)
        # Rounded joints: exponentials of the distances add (a smooth minimum over about a millimetre).
        parts = torch.stack([body, root, blade, floor])
        tongue = -torch.logsumexp(-parts / 1.2, dim=0) * 1.2
        u, v = x - centre[0], y - centre[1]
        grain = torch.zeros_like(u)
        for amplitude, kx, ky, phase in self._waves:
            grain += amplitude / self._wave_norm * torch.cos(kx * u + ky * v + phase)
        fan = torch.cos(14 * torch.atan2(v - 24, u + 26))
        # The middle of the tongue grooves and domes: other tissue enters the slice.
        groove = 0.05 * math.tanh((p["tip_y"] + 4) / 4)
        value = MUSCLE * (1.12 + groove) * (1 + 0.10 * grain + 0.07 * fan)
        septum = capsule(x, y, (-30 + bx, 27 + by), (-4 + 0.8 * bx, 26 + 0.8 * by), 1.3, 2.2)
        paint(value, share(septum, pixel), 0.85 * FAT)
        moved = [((a[0] + 0.7 * bx, a[1] + 0.7 * by), (b[0] + 0.7 * bx, b[1] + 0.7 * by), r, s) for a, b, r, s in self._vessels]
        paint_vessels(value, x, y, moved, pixel, 0.95)
        self._tissue(share(tongue, pixel), MUCOSA * 1.1, signal, air)
        self._tissue(share(tongue + 1.6, pixel), value, signal, air)
        tooth = capsule(x, y, (-62 + back, 20 + jaw), (-64 + back, 12.5 + jaw), 2.6, 1.1)
        self._tissue(share(tooth, pixel), 0.03, signal, air)

    def _velum(self, signal: Tensor, air: Tensor, raised: float) -> None:
        x, y, pixel = self._x, self._y, self._pixel
        hinge, knee = (-11.0, -6.5), (2.0 + 2.0 * raised, 0.5 - 9.5 * raised)
        tip = (9.0 + 4.5 * raised, 14.0 - 17.0 * raised)
        uvula = (tip[0] + 2.0 - 1.0 * raised, tip[1] + 9.0 - 1.0 * raised)
        soft = torch.minimum(capsule(x, y, hinge, knee, 3.2, 4.6), capsule(x, y, knee, tip, 4.6, 3.8))
        soft = torch.minimum(soft, capsule(x, y, tip, uvula, 3.6, 2.2))
        self._tissue(share(soft, pixel), MUCOSA * (1.05 + 0.1 * self._fine), signal, air)
        self._tissue(share(soft + 1.5, pixel), MUSCLE * (1.0 + 0.08 * raised), signal, air)

    def _larynx(self, signal: Tensor, air: Tensor, p: dict[str, float]) -> None:
        x, y, pixel = self._x, self._y, self._pixel
        down, shift = p["larynx"], 0.35 * p["body_x"]
        hyoid = superellipse(x, y, (-8 + shift, 62 + down), (4.2, 3.4))
        self._tissue(share(hyoid, pixel), MARROW, signal, air)
        lid = capsule(x, y, (4 + shift, 66 + down), (13 + shift, 46 + down + 0.3 * p["body_y"]), 2.4, 1.7)
        self._void(share(capsule(x, y, (14, 52 + down), (13, 72 + down), 5.0, 5.5), pixel), signal, air)
        self._void(share(capsule(x, y, (12, 78 + down), (16, 125), 5.5, 6.5), pixel), signal, air)
        self._tissue(share(lid, pixel), CARTILAGE * 1.5, signal, air)
        self._tissue(share(capsule(x, y, (3, 75 + down), (22, 74 + down), 2.2), pixel), MUCOSA, signal, air)
        self._tissue(share(superellipse(x, y, (0 + shift, 76 + down), (3.0, 9.0), 0.15), pixel), CARTILAGE, signal, air)

    def _lips(self, signal: Tensor, air: Tensor, p: dict[str, float], jaw: float, back: float) -> None:
        x, y, pixel = self._x, self._y, self._pixel
        out, gap = p["protrusion"], p["lips"]
        middle = 9.0 + 0.5 * jaw
        upper, lower = middle - 0.5 * gap, middle + 0.5 * gap
        for edge, side, base in ((upper, -1, (-69.0, -2.0)), (lower, 1, (-66.0 + back, 30.0 + jaw))):
            end = (-76.0 - out + (back if side > 0 else 0.0), edge + side * 4.8)
            lip = capsule(x, y, base, end, 8.0, 5.3)
            self._tissue(share(lip, pixel), FAT * 0.9 * (1 + 0.06 * self._fine), signal, air)
            self._tissue(share(lip + 1.8, pixel), MUSCLE * 1.1 * (1 + 0.1 * self._fine), signal, air)
            self._tissue(share(superellipse(x, y, (end[0] + 4, end[1] + side * 1.5), (1.2, 1.2)), pixel), 1.0, signal, air)
