"""Readout trajectories in cycles per field of view, float32 ``[readout, sample, axis]``, axes (kx, ky(, kz)).

Every design works in cycles/mm, isotropically, and is scaled to each axis' field of view at the end, so that a
field of view that is not square changes neither angles nor resolution.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from recon_core.errors import SettingError

GOLDEN_ANGLE = math.pi * (math.sqrt(5) - 1) / 2
"""Angle between consecutive spokes in radians, 111.246° (Winkelmann et al., IEEE TMI 26:68, 2007)."""

PROTON_HZ_PER_MT = 42577.47892
"""Gyromagnetic ratio of the proton over 2π, Hz/mT."""

Matrix = tuple[int, int]
FieldOfView = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class GradientLimits:
    """What the gradient system can do.

    Attributes:
        amplitude: largest amplitude, mT/m.
        slew_rate: largest slew rate, T/m/s.
    """

    amplitude: float = 30.0
    slew_rate: float = 140.0


def resolution_limit(matrix: Matrix, field_of_view: FieldOfView) -> float:
    """Radius in k-space of the finer axis' resolution, cycles/mm.

    Args:
        matrix: pixels ``(ny, nx)``.
        field_of_view: mm, ``(y, x)``.
    """
    return max(n / (2 * fov) for n, fov in zip(matrix, field_of_view, strict=True))


def golden_angle_radial(
    n_spokes: int,
    n_samples: int,
    oversampling: int = 2,
    start: int = 0,
    *,
    matrix: Matrix | None = None,
    field_of_view: FieldOfView | None = None,
) -> NDArray[np.float32]:
    """Full spokes through the centre, each turned by the golden angle.

    Sample ``n_samples // 2`` lies at k = 0. Spokes reach the finer axis' resolution in every direction.

    Args:
        n_spokes: number of spokes.
        n_samples: samples a spoke.
        oversampling: samples per pixel of the square matrix assumed when none is given.
        start: number of the first spoke, to continue an earlier set.
        matrix: pixels ``(ny, nx)``; None: square, ``n_samples / oversampling``.
        field_of_view: mm, ``(y, x)``; None: as the matrix (1 mm pixels).

    Returns:
        float32 ``[spoke, sample, 2]``, cycles per field of view.
    """
    _positive(n_spokes=n_spokes, n_samples=n_samples, oversampling=oversampling)
    grid = matrix or (max(round(n_samples / oversampling), 1),) * 2
    fov = field_of_view or (float(grid[0]), float(grid[1]))
    radius = (np.arange(n_samples) - n_samples // 2) / n_samples * 2 * resolution_limit(grid, fov)
    angle = GOLDEN_ANGLE * np.arange(start, start + n_spokes)
    k = radius[None, :, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)[:, None, :]
    return _per_field_of_view(k, fov)


def archimedean_arm(
    matrix: Matrix,
    field_of_view: FieldOfView,
    interleaves: int,
    dwell: float = 2e-6,
    limits: GradientLimits | None = None,
) -> NDArray[np.float64]:
    """One arm of a uniform-density spiral, as fast as slew rate, amplitude and sampling rate allow.

    Args:
        matrix: pixels ``(ny, nx)``.
        field_of_view: mm, ``(y, x)``.
        interleaves: arms of a fully sampled set.
        dwell: time between samples, s.
        limits: of the gradient system.

    Returns:
        float64 ``[sample, 2]``, cycles/mm, from the centre to the finer axis' resolution.
    """
    edge, fov = resolution_limit(matrix, field_of_view), max(field_of_view)
    turned = archimedean_angles(fov, edge, interleaves, dwell, limits)
    return interleaves / (2 * math.pi * fov) * turned[:, None] * np.stack([np.cos(turned), np.sin(turned)], axis=-1)


def archimedean_angles(
    field_of_view: float,
    edge: float,
    interleaves: int,
    dwell: float,
    limits: GradientLimits | None = None,
    max_samples: int | None = None,
) -> NDArray[np.float64]:
    """Angle at every sample of an arm of a uniform-density spiral.

    k = λ θ exp(iθ) with λ = interleaves / (2π FOV): ``interleaves`` arms sample the field of view at the Nyquist
    distance. θ(t) follows from the largest θ'' that keeps |k''| within the slew rate until |k'| meets the amplitude limit or
    one Nyquist distance per dwell (Glover, MRM 42:412, 1999; Hargreaves' variable-density design, Lee et al., MRM 50:1276, 2003).

    Args:
        field_of_view: mm.
        edge: |k| where the arm ends, cycles/mm.
        interleaves: arms of a fully sampled set.
        dwell: time between samples, s.
        limits: of the gradient system.
        max_samples: end the arm after so many; None: at ``edge``.

    Returns:
        float64 ``[sample]``, rad, from 0; λ times it is |k|.
    """
    limits = limits or GradientLimits()
    _positive(field_of_view=field_of_view, interleaves=interleaves, dwell=dwell)
    _positive(amplitude=limits.amplitude, slew_rate=limits.slew_rate)
    pitch = interleaves / (2 * math.pi * field_of_view)
    # mT/m to cycles/mm/s, T/m/s to cycles/mm/s²: both 1e-3 · γ (Hz/mT), the slew rate times 1000 mT/T.
    speed = min(1e-3 * PROTON_HZ_PER_MT * limits.amplitude, 1 / (field_of_view * dwell))
    acceleration = PROTON_HZ_PER_MT * limits.slew_rate
    steps = 8
    dt = dwell / steps
    theta, rate = 0.0, 0.0
    angles = [theta]
    while max_samples is None or len(angles) < max_samples:
        for _ in range(steps):
            growth = _angular_acceleration(theta, rate, acceleration / pitch)
            # A step that would pass the amplitude limit ends on it.
            rate = min(rate + growth * dt, speed / (pitch * math.sqrt(1 + theta * theta)))
            theta += rate * dt
        if pitch * theta > edge:
            break
        angles.append(theta)
    return np.asarray(angles)


def _angular_acceleration(theta: float, rate: float, limit: float) -> float:
    """Largest θ'' with |d²(θ e^{iθ})/dt²| ≤ limit.

    |·|² = (1+θ²) θ''² + 2 θ θ'² θ'' + (4+θ²) θ'⁴, a quadratic in θ''.
    """
    a = 1 + theta * theta
    b = theta * rate * rate
    c = (4 + theta * theta) * rate**4 - limit * limit
    return (math.sqrt(max(b * b - a * c, 0.0)) - b) / a


def spiral_arms(
    n_arms: int,
    matrix: Matrix,
    field_of_view: FieldOfView,
    interleaves: int,
    *,
    dwell: float = 2e-6,
    limits: GradientLimits | None = None,
    golden: bool = True,
    start: int = 0,
) -> NDArray[np.float32]:
    """Archimedean arms from the centre out, each turned against the one before.

    Args:
        n_arms: number of arms.
        matrix: pixels ``(ny, nx)``.
        field_of_view: mm, ``(y, x)``.
        interleaves: arms of a fully sampled set (density of one arm).
        dwell: time between samples, s.
        limits: of the gradient system.
        golden: turn by twice the golden angle of spokes (an arm covers a half-line, a spoke a whole one: 222.492°);
            else by 2π / interleaves.
        start: number of the first arm.

    Returns:
        float32 ``[arm, sample, 2]``, cycles per field of view.
    """
    _positive(n_arms=n_arms)
    arm = archimedean_arm(matrix, field_of_view, interleaves, dwell, limits)
    angle = (2 * GOLDEN_ANGLE if golden else 2 * math.pi / interleaves) * np.arange(start, start + n_arms)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    k = np.stack([cos * arm[:, 0] - sin * arm[:, 1], sin * arm[:, 0] + cos * arm[:, 1]], axis=-1)
    return _per_field_of_view(k, field_of_view)


def stack_of_stars(n_angles: int, n_partitions: int, n_samples: int, oversampling: int = 2, start: int = 0) -> NDArray[np.float32]:
    """Golden-angle spokes in (kx, ky), all partitions of an angle one after another.

    Args:
        n_angles: number of in-plane angles.
        n_partitions: partitions along kz, the centre at ``n_partitions // 2``.
        n_samples: samples a spoke.
        oversampling: samples per pixel.
        start: number of the first angle.

    Returns:
        float32 ``[angle · partition, sample, 3]``, cycles per field of view.
    """
    _positive(n_partitions=n_partitions)
    spokes = golden_angle_radial(n_angles, n_samples, oversampling, start)
    k = np.empty((n_angles, n_partitions, n_samples, 3), dtype=np.float32)
    k[..., :2] = spokes[:, None]
    k[..., 2] = (np.arange(n_partitions, dtype=np.float32) - n_partitions // 2)[:, None]
    return k.reshape(n_angles * n_partitions, n_samples, 3)


def cartesian_mask(n_frames: int, n_lines: int, acceleration: float, calibration_lines: int = 0, seed: int = 0) -> NDArray[np.bool_]:
    """Phase-encoding lines of every frame: random, denser towards the centre, with a fully sampled middle.

    Args:
        n_frames: number of frames, each with lines of its own.
        n_lines: lines of a full frame; k = 0 at ``n_lines // 2``.
        acceleration: full lines over acquired lines *outside* the calibration lines.
        calibration_lines: lines about the centre in every frame.
        seed: of the random choice.

    Returns:
        bool ``[frame, line]``.

    Raises:
        SettingError: acceleration below 1 or more calibration lines than lines.
    """
    mask, outside = _calibrated(n_frames, n_lines, acceleration, calibration_lines)
    if outside.size == 0:
        return mask
    distance = np.abs(outside - n_lines // 2) / (n_lines / 2)
    density = (1 - 0.9 * np.minimum(distance, 1)) ** 1.5
    rng = np.random.default_rng(seed)
    for lines in mask:
        lines[rng.choice(outside, size=max(round(outside.size / acceleration), 1), replace=False, p=density / density.sum())] = True
    return mask


def cartesian_interleaved_mask(n_frames: int, n_lines: int, acceleration: float, calibration_lines: int = 0) -> NDArray[np.bool_]:
    """Phase-encoding lines of every frame: every so many-th, moved on from frame to frame, with a fully sampled middle.

    The order of the offsets is the one whose neighbours in time lie far apart (steps of about the golden ratio), so that any few
    consecutive frames cover k-space evenly; ``acceleration`` consecutive frames cover all of it.

    Args:
        n_frames: number of frames.
        n_lines: lines of a full frame; k = 0 at ``n_lines // 2``.
        acceleration: distance of the lines outside the calibration lines.
        calibration_lines: lines about the centre in every frame.

    Returns:
        bool ``[frame, line]``.

    Raises:
        SettingError: acceleration below 1, no whole number or beyond what the lines allow, or more calibration lines than lines.
    """
    if acceleration != round(acceleration):
        raise SettingError("acceleration", f"{acceleration} is no whole number", "Give one for evenly spaced lines.")
    mask, outside = _calibrated(n_frames, n_lines, acceleration, calibration_lines)
    distance = int(acceleration)
    steps = [step for step in range(1, distance + 1) if math.gcd(step, distance) == 1]
    step = min(steps, key=lambda s: abs(s - distance * (math.sqrt(5) - 1) / 2))
    for frame, lines in enumerate(mask):
        lines[outside[outside % distance == frame * step % distance]] = True
    if not mask.any(axis=1).all():
        raise SettingError("acceleration", f"{distance} leaves frames of {n_lines} lines without any", "Give less, or calibration lines.")
    return mask


def net_acceleration(mask: NDArray[np.bool_]) -> float:
    """Lines of full frames over lines acquired, calibration lines included."""
    return float(mask.size / mask.sum())


def _calibrated(n_frames: int, n_lines: int, acceleration: float, calibration_lines: int) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
    """A mask ``[frame, line]`` with the calibration lines only, and the numbers of the other lines."""
    _positive(n_frames=n_frames, n_lines=n_lines)
    if acceleration < 1:
        raise SettingError("acceleration", f"{acceleration} is below 1", "Give 1 or more.")
    if not 0 <= calibration_lines <= n_lines:
        raise SettingError("calibration_lines", f"{calibration_lines} of {n_lines} lines", f"Give 0 to {n_lines}.")
    first = n_lines // 2 - calibration_lines // 2
    middle = np.zeros(n_lines, dtype=bool)
    middle[first : first + calibration_lines] = True
    return np.tile(middle, (n_frames, 1)), np.flatnonzero(~middle)


def cartesian_lines(lines: NDArray[np.integer], n_samples: int, n_lines: int, oversampling: int = 1) -> NDArray[np.float32]:
    """Trajectory of phase-encoding lines.

    Args:
        lines: line numbers in order of acquisition; k = 0 at ``n_lines // 2``.
        n_samples: samples a line.
        n_lines: lines of a full frame.
        oversampling: samples per pixel along the line.

    Returns:
        float32 ``[line, sample, 2]``, cycles per field of view.
    """
    k = np.empty((len(lines), n_samples, 2), dtype=np.float32)
    k[..., 0] = (np.arange(n_samples) - n_samples // 2) / oversampling
    k[..., 1] = (np.asarray(lines) - n_lines // 2)[:, None]
    return k


def _per_field_of_view(k: NDArray[np.float64], field_of_view: FieldOfView) -> NDArray[np.float32]:
    return (k * np.array(field_of_view[::-1])).astype(np.float32)


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise SettingError(name, f"{value} is not above 0", "Give a positive number.")
