"""Simulated free-breathing cardiac scan, without inverse crime.

The object is drawn on a grid at least twice as fine as the reconstruction's, at *every readout's own time*; its k-space
is an exact non-uniform Fourier sum of that grid times Biot–Savart coil fields; noise is correlated between coils. No map
and no noise-free sample leaves with the scan. The truth to score against is the object, low-passed to the acquired
disc of k-space and sampled on the reconstruction's pixels (what a fully sampled noise-free scan would give), times the
root-sum-of-squares of the whitened true maps. Cartesian scans lay their lines by a mask in k and t, every frame its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import finufft
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample

from recon_core.errors import SettingError
from recon_core.metrics import moving_region
from recon_core.options import option
from recon_core.phantoms.coils import LoopArray, grid_axes
from recon_core.phantoms.heart import CENTRE, REACH, Heart
from recon_core.phantoms.physiology import Physiology
from recon_core.phantoms.torso import BLOOD, HALF_AXES, Torso, breathing_motion
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
_NOISE_SHAPE = (24, 256)
_WORKERS = 2


@dataclasses.dataclass(frozen=True)
class CardiacSettings:
    """What to simulate."""

    matrix: tuple[int, int] = option((128, 128), "Pixels (ny, nx) of the reconstruction.", low=16, high=512)
    field_of_view: tuple[float, float] = option((320.0, 320.0), "Field of view (y, x).", low=50, high=1000, unit="mm")
    coils: int = option(8, "Receive coils.", low=1, high=128)
    frames: int = option(160, "Frames.", low=2, high=100000)
    readouts_per_frame: int = option(2, "Readouts (spokes or arms) in a frame; of Cartesian lines the mask decides.", low=1, high=4096)
    trajectory: str = option("radial", "Readouts.", choices=("radial", "spiral", "cartesian"))
    mask: str = option("random", "Cartesian lines: random and denser at the centre, or evenly spaced.", choices=("random", "uniform"))
    acceleration: float = option(4.0, "Lines of a full frame over acquired ones, outside the calibration lines.", low=1, high=64)
    calibration_lines: int = option(8, "Lines about the centre that every frame has.", low=0, high=512)
    timing: str = option("standard", "Beat and breath.", choices=("standard", "physiological"))
    repetition_time: float = option(3.0, "Time between readouts.", low=0.1, high=1000, unit="ms")
    interleaves: int | None = option(
        None, "Arms of a fully sampled spiral; auto: as many as end within 60 % of the repetition time.", low=1, high=1024
    )
    snr: float = option(35.0, "Mean signal of the chest over noise in one fully sampled image.", low=0.1, high=1e6)
    oversampling: int = option(2, "Samples per pixel along a spoke or line.", low=1, high=4)
    detail: int = option(3, "Pixels of the simulated object per reconstructed pixel, per axis.", low=2, high=8)
    seed: int = option(0, "Anatomy details, beats, breaths and noise.", low=0, high=2**31 - 1)


@dataclasses.dataclass(frozen=True, eq=False)
class CardiacScan:
    """A simulated scan and its truth; units and axes: ``docs/conventions.md``.

    Attributes:
        settings: as asked for.
        samples: complex64 ``[coil, readout, sample]``, noisy, not whitened.
        noise: complex64 ``[coil, sample]`` of noise readouts, flattened.
        trajectory: float32 ``[readout, sample, 2]``, cycles per field of view.
        times: float64 ``[readout]``, s.
        dwell: time between samples, s.
        frames: int64 ``[readout]``, the frame of every readout.
        lines: int64 ``[readout]``, phase-encoding line, k = 0 at ``ny // 2``; None unless Cartesian.
        frame_times: float64 ``[frame]``, mean of its readouts' times, s.
        truth: complex64 ``[frame, y, x]`` in units of the whitened noise.
        moving: bool ``[y, x]``.
        physiology: beats and breaths.
    """

    settings: CardiacSettings
    samples: NDArray[np.complex64]
    noise: NDArray[np.complex64]
    trajectory: NDArray[np.float32]
    times: NDArray[np.float64]
    dwell: float
    frames: NDArray[np.int64]
    lines: NDArray[np.int64] | None
    frame_times: NDArray[np.float64]
    truth: NDArray[np.complex64]
    moving: NDArray[np.bool_]
    physiology: Physiology

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


@contextlib.contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Readouts go to threads of our own: torch's, on arrays this small, mostly wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@_one_torch_thread()
def simulate(settings: CardiacSettings | None = None, progress: Callable[[int, int], None] | None = None) -> CardiacScan:
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
    samples = _sample(anatomy, array.maps(*grid_axes(fine, fov)), trajectory, times, matrix, progress)

    whiten = np.linalg.inv(np.linalg.cholesky(covariance))
    maps = array.maps(*grid_axes(matrix, fov))
    shading = np.linalg.norm(np.tensordot(whiten, maps, axes=1), axis=0)
    truth = shading * np.stack([_low_pass(anatomy.at(float(t)), settings) for t in frame_times])
    magnitude = np.abs(truth).mean(axis=0)
    level = magnitude[magnitude > 0.15 * magnitude.max()].mean() / settings.snr
    mix = level * np.linalg.cholesky(covariance)
    samples += np.tensordot(mix, _white(noise, samples.shape), axes=1).astype(np.complex64)
    noise_readouts = np.tensordot(mix, _white(noise, (settings.coils, *_NOISE_SHAPE)), axes=1)
    truth = (truth / level).astype(np.complex64)
    return CardiacScan(
        settings=settings,
        samples=samples,
        noise=noise_readouts.reshape(settings.coils, -1).astype(np.complex64),
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


def _sample(
    anatomy: CardiacObject,
    maps: NDArray[np.complex64],
    trajectory: NDArray[np.float32],
    times: NDArray[np.float64],
    matrix: tuple[int, int],
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.complex64]:
    """Noise-free samples ``[coil, readout, sample]``: one Fourier sum a readout, of the object at that readout's time."""
    n_coils, n_readouts = len(maps), len(trajectory)
    ny, nx = maps.shape[1:]
    # A sum over the fine grid stands for one over the reconstruction's pixels.
    coils = torch.from_numpy(maps * np.float32(math.sqrt(math.prod(matrix)) / (ny * nx)))
    points = 2 * np.pi * trajectory / np.array([nx, ny], dtype=np.float32)
    samples = np.empty((n_coils, n_readouts, trajectory.shape[1]), dtype=np.complex64)

    done = itertools.count(1)

    def work(first: int) -> None:
        plan = finufft.Plan(2, (ny, nx), n_trans=n_coils, eps=1e-4, isign=-1, dtype="complex64", upsampfac=1.25, nthreads=1)
        for number in range(first, n_readouts, _WORKERS):
            weighted = coils * anatomy.at(float(times[number]))
            plan.setpts(np.ascontiguousarray(points[number, :, 1]), np.ascontiguousarray(points[number, :, 0]))
            samples[:, number] = plan.execute(weighted.numpy()).reshape(n_coils, -1)
            if progress is not None:
                progress(next(done), n_readouts)

    with ThreadPoolExecutor(_WORKERS) as pool:
        for finished in [pool.submit(work, first) for first in range(_WORKERS)]:
            finished.result()
    return samples


def _low_pass(image: Tensor, settings: CardiacSettings) -> NDArray[np.complex64]:
    """Keep the acquired part of k-space (a disc; the whole rectangle of Cartesian lines) and sample on the pixels of the matrix."""
    matrix, field_of_view = settings.matrix, settings.field_of_view
    spectrum = torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(image)))
    corner = [n // 2 - m // 2 for n, m in zip(image.shape, matrix, strict=True)]
    spectrum = spectrum[corner[0] : corner[0] + matrix[0], corner[1] : corner[1] + matrix[1]]
    if settings.trajectory != "cartesian":
        ky, kx = ((torch.arange(m, dtype=torch.float32) - m // 2) / fov for m, fov in zip(matrix, field_of_view, strict=True))
        spectrum = spectrum * (ky[:, None] ** 2 + kx[None] ** 2 <= (resolution_limit(matrix, field_of_view) * 1.0001) ** 2)
    kept = torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(spectrum)))
    return (kept * (math.prod(matrix) / math.prod(image.shape))).numpy()


def _white(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.complex128]:
    """Complex noise of unit variance."""
    noise: NDArray[np.complex128] = rng.standard_normal((*shape, 2)).view(np.complex128)[..., 0]
    return noise / math.sqrt(2)
