"""Drawing with partial volume: shapes as signed distances in mm, blended over a canvas.

A pixel's share of a shape is taken from the signed distance across one pixel width, so that edges lie between pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Point = tuple[float, float]

_TEXTURE_PIXELS, _TEXTURE_MM = 512, 0.8


def superellipse(x: Tensor, y: Tensor, centre: Point, half: Point, angle: float = 0.0, power: float = 2.0) -> Tensor:
    """Signed distance (to first order) to |x/a|^p + |y/b|^p = 1, negative inside.

    Args:
        x: positions, mm.
        y: positions, mm.
        centre: ``(x, y)``, mm.
        half: half axes ``(a, b)``, mm.
        angle: of the first axis, radians.
        power: 2 is an ellipse, more is squarer.
    """
    dx, dy = x - centre[0], y - centre[1]
    if angle:
        c, s = math.cos(angle), math.sin(angle)
        dx, dy = c * dx + s * dy, c * dy - s * dx
    u, v = (dx / half[0]).abs(), (dy / half[1]).abs()
    if power == 2.0:
        level = torch.sqrt(u * u + v * v) + 1e-9
        slope = torch.sqrt((u / half[0]) ** 2 + (v / half[1]) ** 2) / level
    else:
        level = (u**power + v**power) ** (1 / power) + 1e-9
        slope = torch.sqrt((u ** (power - 1) / half[0]) ** 2 + (v ** (power - 1) / half[1]) ** 2) / level ** (power - 1)
    # The centre of an ellipse has no slope; any distance well inside will do there.
    return (level - 1) / slope.clamp_min(0.5 / max(half))


def capsule(x: Tensor, y: Tensor, start: Point, end: Point, start_radius: float, end_radius: float | None = None) -> Tensor:
    """Signed distance to a segment with rounded ends whose radius changes linearly (a piece of vessel)."""
    ex, ey = end[0] - start[0], end[1] - start[1]
    dx, dy = x - start[0], y - start[1]
    along = ((dx * ex + dy * ey) / (ex * ex + ey * ey)).clamp(0, 1)
    radius = start_radius if end_radius is None else start_radius + along * (end_radius - start_radius)
    return torch.sqrt((dx - along * ex) ** 2 + (dy - along * ey) ** 2) - radius


def share(distance: Tensor, pixel: float) -> Tensor:
    """Part of each pixel inside a shape, 0 to 1."""
    return (0.5 - distance / pixel).clamp(0, 1)


def paint(canvas: Tensor, part: Tensor, value: Tensor | float) -> None:
    """Blend a value over the canvas, in place."""
    canvas += part * (value - canvas)


def noise_texture(x: Tensor, y: Tensor, scales: Sequence[float], rng: np.random.Generator) -> Tensor:
    """Smooth random texture of zero mean and unit variance, the same in mm whatever the pixels it is drawn on.

    Args:
        x: positions of the columns, mm.
        y: positions of the rows, mm.
        scales: correlation lengths in mm, mixed in equal parts.
        rng: source of the noise.

    Returns:
        float32 ``[y, x]``; repeats beyond a region of 410 mm.
    """
    frequency = np.fft.fftfreq(_TEXTURE_PIXELS, _TEXTURE_MM)
    squared = frequency[:, None] ** 2 + frequency[None, : _TEXTURE_PIXELS // 2 + 1] ** 2
    total = np.zeros((_TEXTURE_PIXELS, _TEXTURE_PIXELS))
    for scale in scales:
        spectrum = np.fft.rfft2(rng.standard_normal(total.shape)) * np.exp(-((2 * np.pi * scale) ** 2) * squared / 4)
        part = np.fft.irfft2(spectrum, s=total.shape)
        total += part / part.std()
    texture = torch.from_numpy(((total - total.mean()) / total.std()).astype(np.float32))
    (row, row_part), (column, column_part) = (_neighbours(p) for p in (y, x))
    rows = torch.lerp(texture[row], texture[(row + 1) % _TEXTURE_PIXELS], row_part[:, None])
    return torch.lerp(rows[:, column], rows[:, (column + 1) % _TEXTURE_PIXELS], column_part)


def _neighbours(position: Tensor) -> tuple[Tensor, Tensor]:
    """Texture pixel below each position and the part of the way to the next."""
    place = position / _TEXTURE_MM + _TEXTURE_PIXELS // 2
    below = place.floor()
    return below.long() % _TEXTURE_PIXELS, place - below


def vessel_tree(
    start: Point, angle: float, length: float, radius: float, generations: int, rng: np.random.Generator
) -> list[tuple[Point, Point, float, float]]:
    """A branching vessel as segments ``(start, end, start radius, end radius)``, thinner at each generation."""
    if generations == 0:
        return []
    segments, here, heading = [], start, angle
    pieces = 3
    for piece in range(pieces):
        heading += rng.normal(0, 0.18)
        there = (here[0] + length / pieces * math.cos(heading), here[1] + length / pieces * math.sin(heading))
        wide = radius * (1 - 0.3 * piece / pieces)
        segments.append((here, there, wide, radius * (1 - 0.3 * (piece + 1) / pieces)))
        here = there
    for side in (-1, 1):
        turn = heading + side * rng.uniform(0.35, 0.75)
        segments += vessel_tree(here, turn, length * rng.uniform(0.6, 0.85), radius * 0.68, generations - 1, rng)
    return segments


def paint_vessels(
    canvas: Tensor, x: Tensor, y: Tensor, segments: list[tuple[Point, Point, float, float]], pixel: float, value: float
) -> None:
    """Draw vessel segments in place, each only in its bounding box."""
    xs, ys = x[0], y[:, 0]
    for start, end, first, last in segments:
        margin = max(first, last) + 2 * pixel
        columns = (xs >= min(start[0], end[0]) - margin) & (xs <= max(start[0], end[0]) + margin)
        rows = (ys >= min(start[1], end[1]) - margin) & (ys <= max(start[1], end[1]) + margin)
        if not (bool(columns.any()) and bool(rows.any())):
            continue
        c, r = torch.nonzero(columns).flatten(), torch.nonzero(rows).flatten()
        box = (slice(int(r[0]), int(r[-1]) + 1), slice(int(c[0]), int(c[-1]) + 1))
        paint(canvas[box], share(capsule(x[box], y[box], start, end, first, last), pixel), value)
