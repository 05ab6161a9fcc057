"""Simulated free-breathing cardiac scan, without inverse crime.

The object is drawn on a grid at least twice as fine as the reconstruction's, at *every readout's own time*; its k-space
is an exact non-uniform Fourier sum of that grid times Biot–Savart coil fields; noise is correlated between coils. No map
and no noise-free sample leaves with the scan. The truth to score against is the object, low-passed to the acquired
disc of k-space and sampled on the reconstruction's pixels (what a fully sampled noise-free scan would give), times the
root-sum-of-squares of the whitened true maps. Cartesian scans lay their lines by a mask in k and t, every frame its own.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample

from recon_core.errors import SettingError
from recon_core.metrics import moving_region
from recon_core.phantoms.coils import LoopArray, grid_axes
from recon_core.phantoms.heart import CENTRE, REACH, Heart
from recon_core.phantoms.measurement import (
    Progress,
    SimulatedScan,
    add_noise,
    low_pass,
    noise_level,
    sample_slice,
    shading,
)
from recon_core.phantoms.physiology import Physiology
from recon_core.phantoms.settings import CardiacSettings as CardiacSettings
from recon_core.phantoms.torso import BLOOD, HALF_AXES, Torso, breathing_motion
from recon_core.threads import at_most_threads
from recon_core.trajectories import (
    cartesian_interleaved_mask,
    cartesian_lines,
    cartesian_mask,
    golden_angle_radial,
    resolution_limit,
    spiral_arms,
)

PHANTOM_VERSION = "cardiac 1"
"""Changes with every change of the phantom: figures of different versions cannot be compared."""

_CHEST = (235.0, 340.0)  # mm (y, x) that hold the chest of scale 1 with its coils' near field


@dataclasses.dataclass(frozen=True, eq=False)
class CardiacScan(SimulatedScan):
    """A simulated cardiac scan.

    Attributes:
        settings: as asked for.
        physiology: beats and breaths.
        frames: int64 ``[readout]``, the frame of every readout.
        lines: int64 ``[readout]``, phase-encoding line, k = 0 at ``ny // 2``; None unless Cartesian.
    """

    settings: CardiacSettings
    physiology: Physiology
    frames: NDArray[np.int64]
    lines: NDArray[np.int64] | None

    @property
    def net_acceleration(self) -> float:
        """Lines of full frames over lines acquired, calibration lines included (spokes and arms: matrix over readouts a frame)."""
        return self.settings.matrix[0] * self.settings.frames / len(self.frames)


class CardiacObject:
    """The chest at any moment of a scan, complex ``[y, x]`` on a grid of one's choice."""

    def __init__(
        self, shape: tuple[int, int], field_of_view: tuple[float, float], physiology: Physiology, rng: np.random.Generator
    ) -> None:
        """Draw what does not change.

        Args:
            shape: pixels ``(ny, nx)``.
            field_of_view: mm, ``(y, x)``.
            physiology: beats and breaths.
            rng: source of anatomical detail.
        """
        self.shape, self.field_of_view = shape, field_of_view
        self.scale = min(fov / chest for fov, chest in zip(field_of_view, _CHEST, strict=True))
        self.physiology = physiology
        self._heart = Heart(rng)
        self._raster = (2 * shape[0], 2 * shape[1])
        self._torso = Torso(self._raster, field_of_view, self.scale, rng)
        y, x = (torch.from_numpy(a / self.scale).float() for a in grid_axes(shape, field_of_view))
        self._y, self._x = torch.meshgrid(y, x, indexing="ij")
        self._pixel = max(fov / n for n, fov in zip(shape, field_of_view, strict=True)) / self.scale
        self._motion = breathing_motion(self._x, self._y)
        reach = REACH + 16
        rows, columns = ((a - c).abs() <= reach for a, c in ((y, CENTRE[1]), (x, CENTRE[0])))
        self._box = tuple(slice(int(m.nonzero()[0]), int(m.nonzero()[-1]) + 1) for m in (rows, columns))
        phases = rng.uniform(-1, 1, 5)
        u, v = self._x / 150, self._y / 105
        self._phase = 0.8 * (phases[0] * u + phases[1] * v + 0.6 * phases[2] * u * v + 0.5 * phases[3] * (u * u - v * v)) + phases[4]
        self._phase_breath = 0.12 * torch.sigmoid((self._y + 10) / 25)

    def at(self, time: float) -> Tensor:
        """The object at one moment, complex64 ``[y, x]``."""
        contraction, ejection, breath = (
            float(f(time)) for f in (self.physiology.contraction, self.physiology.ejection, self.physiology.breath)
        )
        x, y = (p - breath * motion for p, motion in zip((self._x, self._y), self._motion, strict=True))
        # Positions at rest to grid_sample's -1 … 1, in which pixel centres lie half a pixel inside.
        place = [
            (2 * (p * self.scale / fov * n + n // 2) + 1) / n - 1
            for p, fov, n in ((x, self.field_of_view[1], self._raster[1]), (y, self.field_of_view[0], self._raster[0]))
        ]
        layers = grid_sample(self._torso.layers[None], torch.stack(place, dim=-1)[None], align_corners=False)[0]
        share = min(breath, 1.0)
        signal = (1 - share) * layers[0] + share * layers[1]
        signal -= 0.3 * BLOOD * min(ejection, 1.2) * layers[2]
        box = self._box
        self._heart.draw(signal[box], x[box], y[box], self._pixel, contraction, ejection, breath)
        return torch.polar(signal.clamp_min(0.0), self._phase + breath * self._phase_breath)


@at_most_threads(1)
def simulate(settings: CardiacSettings | None = None, progress: Progress | None = None) -> CardiacScan:
    """Simulate a scan.

    Args:
        settings: what to simulate.
        progress: called with (readouts done, readouts in all).

    Raises:
        SettingError: the settings cannot be met together.
    """
    settings = settings or CardiacSettings()
    # One source a part: the same person beats in every matrix, with every coil array.
    person, body, coil, noise = np.random.default_rng(settings.seed).spawn(4)
    matrix, fov = settings.matrix, settings.field_of_view
    frames, lines = _frames(settings)
    n_readouts = len(frames)
    trajectory, dwell = _trajectory(settings, n_readouts, lines)
    times = np.arange(n_readouts, dtype=np.float64) * (settings.repetition_time * 1e-3)
    frame_times = np.bincount(frames, times) / np.bincount(frames)
    physiology = Physiology.make(settings.timing, float(times[-1]) + settings.repetition_time * 1e-3, person)
    fine = (settings.detail * matrix[0], settings.detail * matrix[1])
    anatomy = CardiacObject(fine, fov, physiology, body)
    half_axes = (HALF_AXES[0] * anatomy.scale, HALF_AXES[1] * anatomy.scale)
    array = LoopArray(settings.coils, half_axes, fov, coil)
    covariance = array.noise_covariance(coil)
    samples = sample_slice(anatomy, array.maps(*grid_axes(fine, fov)), trajectory, times, matrix, progress)
    truth = shading(array.maps(*grid_axes(matrix, fov)), covariance) * np.stack(
        [low_pass(anatomy.at(float(t)), matrix, fov, disc=lines is None) for t in frame_times]
    )
    level = noise_level(truth, settings.snr)
    noise_readouts = add_noise(samples, level, covariance, noise)
    truth = (truth / level).astype(np.complex64)
    return CardiacScan(
        settings=settings,
        samples=samples,
        noise=noise_readouts,
        trajectory=trajectory,
        times=times,
        dwell=dwell,
        frames=frames,
        lines=lines,
        frame_times=frame_times,
        truth=truth,
        moving=moving_region(truth),
        physiology=physiology,
    )


def _frames(settings: CardiacSettings) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """Frame of every readout and, for Cartesian ones, its line; lines of a frame in rising order."""
    if settings.trajectory != "cartesian":
        return np.repeat(np.arange(settings.frames), settings.readouts_per_frame), None
    ny = settings.matrix[0]
    if settings.mask == "random":
        mask = cartesian_mask(settings.frames, ny, settings.acceleration, settings.calibration_lines, settings.seed)
    else:
        mask = cartesian_interleaved_mask(settings.frames, ny, settings.acceleration, settings.calibration_lines)
    frames, lines = np.nonzero(mask)
    return frames.astype(np.int64), lines.astype(np.int64)


def _trajectory(settings: CardiacSettings, count: int, lines: NDArray[np.int64] | None) -> tuple[NDArray[np.float32], float]:
    """Trajectory and dwell time, s."""
    matrix, fov = settings.matrix, settings.field_of_view
    longest = 0.6e-3 * settings.repetition_time
    if lines is not None:
        n_samples = settings.oversampling * matrix[1]
        return cartesian_lines(lines, n_samples, matrix[0], settings.oversampling), longest / n_samples
    if settings.trajectory == "radial":
        # Isotropic in cycles/mm: samples for the larger field of view at the finer pixel.
        edge = resolution_limit(matrix, fov)
        n_samples = settings.oversampling * math.ceil(2 * edge * max(fov) - 1e-6)
        return golden_angle_radial(count, n_samples, matrix=matrix, field_of_view=fov), longest / n_samples
    dwell = 2e-6
    tried = (settings.interleaves,) if settings.interleaves else (4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64, 96, 128, 192, 256)
    for interleaves in tried:
        arms = spiral_arms(count, matrix, fov, interleaves, dwell=dwell)
        if arms.shape[1] * dwell <= longest or settings.interleaves:
            break
    if arms.shape[1] * dwell > 1e-3 * settings.repetition_time:
        raise SettingError(
            "repetition_time",
            f"{settings.repetition_time} ms, an arm of {interleaves} lasts {1e3 * arms.shape[1] * dwell:.2f} ms",
            "Give more interleaves or a longer repetition time.",
        )
    return arms, dwell
