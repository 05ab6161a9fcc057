"""Simulated contrast-enhanced liver scan: a golden-angle stack of stars under free breathing, without inverse crime.

Every readout (one angle, one partition) sees the volume at its own time, on a grid finer than the reconstruction's along every axis and as
thick as the *encoded* slab; k-space is an exact sum along z and a non-uniform Fourier sum in the plane. Within the few dozen
milliseconds of one angle the volume is drawn at moments at most 60 ms apart and interpolated between: breathing moves it by a tenth of
a voxel meanwhile.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample

from recon_core.errors import SettingError
from recon_core.metrics import moving_region
from recon_core.phantoms.abdomen import HALF_AXES, SHIFT, Abdomen
from recon_core.phantoms.coils import LoopArray, grid_axes
from recon_core.phantoms.enhancement import TISSUES, Enhancement
from recon_core.phantoms.measurement import (
    Progress,
    SimulatedScan,
    add_noise,
    each_readout,
    low_pass,
    noise_level,
    set_points,
    shading,
    slice_plan,
)
from recon_core.phantoms.physiology import Physiology
from recon_core.phantoms.settings import DceSettings as DceSettings
from recon_core.threads import at_most_threads
from recon_core.trajectories import golden_angle_radial, resolution_limit

PHANTOM_VERSION = "dce 1"
"""Changes with every change of the phantom: figures of different versions cannot be compared."""

REGIONS = ("aorta", "portal_vein", "liver", "cortex", "spleen")
"""Tissues whose regions and true curves go with the truth."""

_BODY = (235.0, 340.0)  # mm (y, x) that hold the body of scale 1
_READ = 0.55  # share of the repetition time during which samples are taken
_REGION_SHARE = 0.9
_ARRIVAL = 8.0
_DRAWN_EVERY = 0.06  # s
_ROOM = 1.03


@dataclasses.dataclass(frozen=True, eq=False)
class DceScan(SimulatedScan):
    """A simulated stack of stars; truth ``[frame, z, y, x]``, trajectory in cycles per *reconstructed* field of view.

    Attributes:
        settings: as asked for.
        physiology: breaths.
        angles: int64 ``[readout]``, number of each readout's angle.
        partitions: int64 ``[readout]``, its encoded partition.
        regions: bool ``[z, y, x]`` by tissue of :data:`REGIONS`: voxels at least nine tenths as full of it as the fullest, half inspired.
        curves: float32 ``[frame]`` by tissue: mean magnitude of the truth in its region.
    """

    settings: DceSettings
    physiology: Physiology
    angles: NDArray[np.int64]
    partitions: NDArray[np.int64]
    regions: dict[str, NDArray[np.bool_]]
    curves: dict[str, NDArray[np.float32]]


class DceObject:
    """The slab at any moment of a scan, complex ``[z, y, x]``, without the empty rows in front and behind.

    Attributes:
        shape: voxels of the whole field of view, ``(nz, ny, nx)``.
        rows: those of ``ny`` that are drawn; symmetric about the centre.
        z: of the planes, mm.
    """

    def __init__(self, settings: DceSettings, physiology: Physiology, enhancement: Enhancement, rng: np.random.Generator) -> None:
        """Draw what does not change."""
        fov = settings.field_of_view
        self.physiology, self.enhancement = physiology, enhancement
        self.scale = min(f / body for f, body in zip(fov, _BODY, strict=True))
        self.shape = (settings.detail * settings.encoded, settings.detail * settings.matrix[0], settings.detail * settings.matrix[1])
        thickness = settings.thickness * settings.encoded
        y, x = (torch.from_numpy(a).float() for a in grid_axes((self.shape[1], self.shape[2]), fov))
        centre = self.shape[1] // 2
        half = min(centre, math.ceil(_ROOM * HALF_AXES[0] * self.scale / fov[0] * self.shape[1]))
        self.rows = slice(centre - half, min(centre + half, self.shape[1]))
        y = y[self.rows]
        self.z = ((torch.arange(self.shape[0]) - self.shape[0] // 2) / self.shape[0] * thickness).float()
        # Breathing brings in what lies beyond the slab, and moves by less than a voxel: twice as many planes, and some more.
        step = float(self.z[1] - self.z[0]) / 2
        beyond = math.ceil(1.4 * abs(SHIFT[0]) * self.scale / step)
        planes = 2 * self.shape[0] + 2 * beyond
        self._raster_z = (torch.arange(planes) - beyond) * step + float(self.z[0])
        self.body = Abdomen((self._raster_z, y, x), self.scale, rng)
        shift_z, shift_y = self.body.motion()
        self._shift = (shift_z[0] * self.scale, shift_y[0] * self.scale)
        self._place = torch.meshgrid(self.z, y, x, indexing="ij")
        self._ends = [(float(a[0]), float(a[-1])) for a in (self._raster_z, y, x)]
        inner = 0.42 * settings.thickness * settings.partitions
        ramp = ((self.z.abs() - inner) / (thickness / 2 - inner)).clamp(0, 1)
        self._profile = (0.5 + 0.5 * torch.cos(math.pi * ramp))[:, None, None]
        phases = rng.uniform(-1, 1, 5)
        u, v, w = x[None, None, :] / 160, y[None, :, None] / 110, self.z[:, None, None] / 80
        phase = 0.7 * (phases[0] * u + phases[1] * v + phases[2] * w + 0.6 * phases[3] * u * v) + phases[4]
        self._phase = torch.polar(torch.ones_like(phase), phase)

    def breathed(self, volume: Tensor, breath: float) -> Tensor:
        """A raster volume ``[z, y, x]`` at rest, moved by breathing, on the object's grid."""
        places = [self._place[0] - breath * self._shift[0], self._place[1] - breath * self._shift[1], self._place[2]]
        grid = torch.stack([2 * (p - low) / (high - low) - 1 for p, (low, high) in zip(places, self._ends, strict=True)][::-1], dim=-1)
        return grid_sample(volume[None, None], grid[None], align_corners=True, padding_mode="border")[0, 0]

    def at(self, time: float) -> Tensor:
        """The object at one moment."""
        signals = torch.from_numpy(self.enhancement.signals(time)).float()
        moved = self.breathed(torch.tensordot(signals, self.body.weights, dims=1), float(self.physiology.breath(time)))
        return self._phase * (self._profile * moved)

    def region(self, tissue: str, breath: float) -> Tensor:
        """A tissue's share of every voxel of the slab."""
        return self._profile * self.breathed(self.body.shares[TISSUES.index(tissue)], breath)


@at_most_threads(1)
def simulate(settings: DceSettings | None = None, progress: Progress | None = None) -> DceScan:
    """Simulate a scan.

    Args:
        settings: what to simulate.
        progress: called with (readouts done, readouts in all).

    Raises:
        SettingError: the settings cannot be met together.
    """
    settings = settings or DceSettings()
    # One source a part: the same person breathes in every matrix, with every coil array.
    person, body, coil, noise = np.random.default_rng(settings.seed).spawn(4)
    matrix, fov = settings.matrix, settings.field_of_view
    times, angles, partitions = _order(settings)
    physiology = Physiology.make("physiological", settings.duration, person)
    enhancement = Enhancement.make(settings.duration, _ARRIVAL, person)
    slab = DceObject(settings, physiology, enhancement, body)
    tall = settings.thickness * settings.partitions
    array = LoopArray(settings.coils, (HALF_AXES[0] * slab.scale, HALF_AXES[1] * slab.scale), fov, coil, height=max(20.0, 0.3 * tall))
    covariance = array.noise_covariance(coil)
    n_samples = settings.oversampling * math.ceil(2 * resolution_limit(matrix, fov) * max(fov) - 1e-6)
    spokes = golden_angle_radial(settings.frames * settings.spokes_per_frame, n_samples, matrix=matrix, field_of_view=fov)
    k_z = (partitions - settings.encoded // 2) * (settings.partitions / settings.encoded)
    trajectory = np.concatenate(
        [spokes[angles], np.broadcast_to(k_z[:, None, None], (len(angles), n_samples, 1))], axis=-1, dtype=np.float32
    )
    axis_y, axis_x = grid_axes((slab.shape[1], slab.shape[2]), fov)
    maps = np.stack([array.maps(axis_y[slab.rows], axis_x, plane=float(z)) for z in slab.z], axis=1)
    samples = _sample(slab, maps, trajectory, k_z / tall, times, settings, progress)

    planes = [settings.thickness * (n - settings.partitions // 2) for n in range(settings.partitions)]
    bright = shading(np.stack([array.maps(*grid_axes(matrix, fov), plane=z) for z in planes], axis=1), covariance)
    per_frame = len(times) // settings.frames
    frame_times = times.reshape(settings.frames, per_frame).mean(axis=1)
    truth = np.stack([bright * _reconstructed(slab, slab.at(float(t)), settings) for t in frame_times])
    level = noise_level(truth, settings.snr)
    noise_readouts = add_noise(samples, level, covariance, noise)
    truth = (truth / level).astype(np.complex64)
    regions = {name: _region(_reconstructed(slab, slab.region(name, 0.5).to(torch.complex64), settings).real) for name in REGIONS}
    return DceScan(
        settings=settings,
        samples=samples,
        noise=noise_readouts,
        trajectory=trajectory,
        times=times,
        dwell=_READ * 1e-3 * settings.repetition_time / n_samples,
        frame_times=frame_times,
        truth=truth,
        moving=moving_region(truth),
        physiology=physiology,
        angles=angles,
        partitions=partitions,
        regions=regions,
        curves={name: np.abs(truth[:, region]).mean(axis=1).astype(np.float32) for name, region in regions.items()},
    )


def _order(settings: DceSettings) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Time, angle and encoded partition of every readout in order of acquisition."""
    count = settings.frames * settings.spokes_per_frame
    measured = np.array(settings.measured, dtype=np.int64)
    period, busy = settings.duration / count, 1e-3 * settings.repetition_time * len(measured)
    if busy > period:
        raise SettingError(
            "duration",
            f"{settings.duration} s for {count} angles, each of which takes {1e3 * busy:.0f} ms ({len(measured)} partitions)",
            "Give a longer duration, fewer frames or partitions, or a shorter repetition time.",
        )
    if settings.order == "centre_out":
        measured = measured[np.argsort(np.abs(measured - settings.encoded // 2), kind="stable")]
    angles = np.repeat(np.arange(count, dtype=np.int64), len(measured))
    times = period * angles + 1e-3 * settings.repetition_time * np.tile(np.arange(len(measured)), count)
    return times, angles, np.tile(measured, count)


def _sample(
    slab: DceObject,
    maps: NDArray[np.complex64],
    trajectory: NDArray[np.float32],
    k_z: NDArray[np.floating],
    times: NDArray[np.float64],
    settings: DceSettings,
    progress: Progress | None,
) -> NDArray[np.complex64]:
    """Noise-free samples ``[coil, readout, sample]``, an angle at a time; ``k_z`` in cycles/mm."""
    n_coils, n_parts = len(maps), len(settings.measured)
    drawn = (maps.shape[2], maps.shape[3])
    # A sum over the fine grid stands for one over the encoded voxels; scale as in a volume of the reconstruction's matrix.
    voxels = settings.partitions * math.prod(settings.matrix)
    per_voxel = voxels / (math.prod(slab.shape) * settings.partitions / settings.encoded)
    coils = torch.from_numpy(maps * np.float32(per_voxel / math.sqrt(voxels)))
    turns = torch.exp(-2j * math.pi * torch.from_numpy(k_z[:, None]) * slab.z.double()).to(torch.complex64)
    samples = np.empty((n_coils, len(trajectory), trajectory.shape[1]), dtype=np.complex64)
    lasting = 1e-3 * settings.repetition_time * (n_parts - 1)
    drawings = 1 + max(1, math.ceil(lasting / _DRAWN_EVERY))

    def worker() -> Callable[[int], None]:
        plan = slice_plan(drawn, n_parts * n_coils)

        def measure(number: int) -> None:
            part = slice(number * n_parts, (number + 1) * n_parts)
            moments = times[part][0] + np.linspace(0, lasting, drawings)
            planar = torch.zeros((n_parts, n_coils * math.prod(drawn)), dtype=torch.complex64)
            for index, moment in enumerate(moments):
                # Linear interpolation between drawings commutes with the sum along z.
                near = np.interp(times[part], moments, np.eye(drawings)[index])
                mix = turns[part] * torch.from_numpy(near)[:, None].to(torch.float32)
                volume = coils * slab.at(float(moment))
                planar += mix @ volume.transpose(0, 1).reshape(volume.shape[1], -1)
            set_points(plan, trajectory[part][0, :, :2], (slab.shape[1], slab.shape[2]))
            measured = plan.execute(planar.reshape(n_parts * n_coils, *drawn).numpy())
            samples[:, part] = measured.reshape(n_parts, n_coils, -1).swapaxes(0, 1)

        return measure

    each_readout(len(trajectory) // n_parts, worker, progress)
    return samples


def _reconstructed(slab: DceObject, drawn: Tensor, settings: DceSettings) -> NDArray[np.complex64]:
    """What a full, noise-free scan shows of a fine volume: the acquired k-space, the slices that are kept."""
    volume = torch.zeros(slab.shape, dtype=drawn.dtype)
    volume[:, slab.rows] = drawn
    spectrum = torch.fft.fftshift(torch.fft.fft(torch.fft.ifftshift(volume, dim=0), dim=0), dim=0)
    spectrum = spectrum.narrow(0, volume.shape[0] // 2 - settings.encoded // 2, settings.encoded)
    planes = torch.fft.fftshift(torch.fft.ifft(torch.fft.ifftshift(spectrum, dim=0), dim=0), dim=0) * (settings.encoded / volume.shape[0])
    kept = planes.narrow(0, settings.encoded // 2 - settings.partitions // 2, settings.partitions)
    return low_pass(kept, settings.matrix, settings.field_of_view)


def _region(shares: NDArray[np.floating]) -> NDArray[np.bool_]:
    return shares >= _REGION_SHARE * min(float(shares.max()), 1.0)
