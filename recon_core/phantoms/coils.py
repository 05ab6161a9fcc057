"""Receive coils around a body: sensitivities by Biot–Savart and a full noise covariance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RectBivariateSpline

_SEGMENTS = 40
_KNOTS = 96
_WIRE_MM = 8.0


def grid_axes(shape: tuple[int, int], field_of_view: tuple[float, float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pixel positions ``(y, x)`` in mm, 0 at index ``N // 2``."""
    y, x = ((np.arange(n) - n // 2) / n * fov for n, fov in zip(shape, field_of_view, strict=True))
    return y, x


class LoopArray:
    """Circular receive loops in a plane about the slice.

    The receive field is B1⁻ = Bx − iBy (main field along z), by Biot–Savart's law over straight wire segments, evaluated on
    knots and interpolated by cubic splines, so that all grids see one and the same field.

    Attributes:
        centres: mm ``[coil, 3]`` as (x, y, z).
    """

    def __init__(self, n_coils: int, half_axes: tuple[float, float], field_of_view: tuple[float, float], rng: np.random.Generator) -> None:
        """Place the loops on an ellipse about the body, facing inwards, alternately above and below the slice.

        Args:
            n_coils: number of loops.
            half_axes: of the body, mm, ``(y, x)``.
            field_of_view: region in which maps are wanted, mm, ``(y, x)``.
            rng: source of each coil's phase, gain and place.
        """
        b, a = (half + 55.0 for half in half_axes)
        angle = 2 * np.pi * (np.arange(n_coils) + 0.3 * rng.uniform(-0.5, 0.5, n_coils)) / n_coils + 0.3
        height = np.where(np.arange(n_coils) % 2 == 0, 1.0, -1.0) * (20.0 if n_coils > 1 else 0.0)
        self.centres = np.stack([a * np.cos(angle), b * np.sin(angle), height], axis=-1)
        radius = np.clip(1.3 * np.pi * (a + b) / 2 / max(n_coils, 4), 45.0, 95.0)
        self._gain = rng.uniform(0.85, 1.15, n_coils) * np.exp(2j * np.pi * rng.uniform(size=n_coils))
        self._knots = [np.linspace(-0.55 * fov, 0.55 * fov, _KNOTS) for fov in field_of_view]
        self._angle, self._radius = angle, radius
        self._planes: dict[float, list[tuple[RectBivariateSpline, RectBivariateSpline]]] = {}
        self._plane(0.0)

    def _plane(self, height: float) -> list[tuple[RectBivariateSpline, RectBivariateSpline]]:
        """Splines of every coil's field in the plane z = height (mm)."""
        if height not in self._planes:
            y, x = self._knots
            fields = [
                _loop_field(centre - (0, 0, height), turn, self._radius, y, x)
                for centre, turn in zip(self.centres, self._angle, strict=True)
            ]
            self._planes[height] = [(RectBivariateSpline(y, x, f.real), RectBivariateSpline(y, x, f.imag)) for f in fields]
        return self._planes[height]

    def maps(self, y: NDArray[np.float64], x: NDArray[np.float64], height: float = 0.0) -> NDArray[np.complex64]:
        """Sensitivities on a grid, complex64 ``[coil, y, x]``, of positions in mm in the plane z = ``height``."""
        fields = np.stack([re(y, x) + 1j * im(y, x) for re, im in self._plane(float(height))])
        return (self._gain[:, None, None] * fields).astype(np.complex64)

    def noise_covariance(self, rng: np.random.Generator) -> NDArray[np.complex128]:
        """Noise covariance ``[coil, coil]``: near coils see the same tissue, gains differ, mean variance 1."""
        distance = np.linalg.norm(self.centres[:, None] - self.centres[None], axis=-1)
        phase = np.exp(2j * np.pi * rng.uniform(size=len(distance)))
        gain = rng.uniform(0.7, 1.4, len(distance)) * phase
        # exp(-distance) is positive definite, and stays so under gains.
        covariance = gain[:, None] * np.exp(-distance / 110.0) * gain[None].conj()
        return covariance / np.trace(covariance).real * len(distance)


def _loop_field(
    centre: NDArray[np.float64], angle: float, radius: float, y: NDArray[np.float64], x: NDArray[np.float64]
) -> NDArray[np.complex128]:
    around = 2 * np.pi * np.arange(_SEGMENTS + 1) / _SEGMENTS
    tangent = np.array([-np.sin(angle), np.cos(angle), 0.0])
    axial = np.array([0.0, 0.0, 1.0])
    wire = centre + radius * (np.cos(around)[:, None] * tangent + np.sin(around)[:, None] * axial)
    step, middle = np.diff(wire, axis=0), (wire[1:] + wire[:-1]) / 2
    field = np.zeros((len(y), len(x)), dtype=np.complex128)
    for (lx, ly, lz), (px, py, pz) in zip(step, middle, strict=True):
        dx, dy = (x - px)[None, :], (y - py)[:, None]
        # The plane of the slice is z = 0; the wire's thickness keeps its neighbourhood finite.
        weight = (dx * dx + dy * dy + pz * pz + _WIRE_MM**2) ** -1.5
        bx = -ly * pz - lz * dy
        by = lz * dx + lx * pz
        field += weight * (bx - 1j * by)
    return field
