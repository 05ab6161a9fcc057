"""Simulated speech: moving tongue, lips, velum, jaw and larynx on single spiral arms, without inverse crime.

The design is that of public real-time speech data (Lim et al., Sci Data 2021;8:187; Lingala et al., Magn Reson Med 2017;77:112): arms of
2.5 ms, 6 ms apart, 13 of which fill k-space of 84² pixels over 200 mm, one arm a frame. Off-resonance is the field that the air's
susceptibility makes in tissue (:mod:`recon_core.phantoms.susceptibility`), so that it moves with the articulators, and its phase accrues
along an arm at each sample's own time.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from recon_core.errors import SettingError
from recon_core.metrics import moving_region
from recon_core.phantoms.articulation import ARTICULATORS, Articulation
from recon_core.phantoms.coils import LoopArray, grid_axes
from recon_core.phantoms.measurement import (
    Progress,
    SimulatedScan,
    add_noise,
    low_pass,
    noise_level,
    sample_slice,
    shading,
)
from recon_core.phantoms.settings import SpeechSettings as SpeechSettings
from recon_core.phantoms.susceptibility import bars, convolved, in_tissue
from recon_core.phantoms.vocal_tract import HALF_AXES, VocalTract
from recon_core.threads import at_most_threads
from recon_core.trajectories import GradientLimits, spiral_arms

PHANTOM_VERSION = "speech 2"
"""Changes with every change of the phantom: figures of different versions cannot be compared."""

ECHO_TIME = 0.8e-3
"""From excitation to the start of an arm, s."""

_HEAD = 200.0  # mm that a head of scale 1 fills
_LIMITS = GradientLimits(amplitude=40.0, slew_rate=150.0)
_DWELL = 4e-6
_DESIGNS = (4, 6, 8, 10, 13, 16, 20, 26, 32, 40, 52, 64, 80, 104, 128, 256)
_BORDER_SHARE = 0.995
_TISSUE = 0.1


@dataclasses.dataclass(frozen=True, eq=False)
class SpeechScan(SimulatedScan):
    """A simulated speech scan.

    Attributes:
        settings: as asked for.
        articulation: the articulators' courses.
        interleaves: arms of a fully sampled spiral.
        field_maps: off-resonance in Hz, float32 ``[frame, y, x]``, at the pixels' centres; None on resonance.
    """

    settings: SpeechSettings
    articulation: Articulation
    interleaves: int
    field_maps: NDArray[np.float32] | None


class SpeechObject:
    """The head at any moment of a scan, complex ``[y, x]`` on a grid of one's choice."""

    def __init__(
        self,
        shape: tuple[int, int],
        field_of_view: tuple[float, float],
        articulation: Articulation,
        rng: np.random.Generator,
        off_resonance: float = 0.0,
    ) -> None:
        """Draw what does not change.

        Args:
            shape: pixels ``(ny, nx)``.
            field_of_view: mm, ``(y, x)``.
            articulation: the articulators' courses.
            rng: source of anatomical detail.
            off_resonance: largest, Hz; 0: none.
        """
        self.scale = min(field_of_view) / _HEAD
        self.articulation = articulation
        self._tract = VocalTract(shape, field_of_view, self.scale, rng)
        y, x = (torch.from_numpy(a / self.scale).float() for a in grid_axes(shape, field_of_view))
        # The transmit coil ends above the brain and below the larynx; nothing is cut off at the field of view's edge.
        self._reach = torch.sigmoid((88 - y.abs()) / 2.2)[:, None] * torch.sigmoid((97 - x.abs()) / 0.8)[None]
        self._reach *= ((y.abs() < 99)[:, None] & (x.abs() < 99.5)[None]).float()
        phases = rng.uniform(-1, 1, 4)
        u, v = x[None] / 100, y[:, None] / 100
        self._phase = 0.7 * (phases[0] * u + phases[1] * v + 0.7 * phases[2] * u * v) + phases[3]
        self.off_resonance = off_resonance
        if off_resonance:
            self._prepare_field(shape, field_of_view)

    def _prepare_field(self, shape: tuple[int, int], field_of_view: tuple[float, float]) -> None:
        # What moves is so small that its field has faded within the field of view; what stays has not, and goes on beyond the edges.
        self._kernel = bars(shape, field_of_view)
        reach = [n // 2 for n in shape]
        wide = pad(self._tract.air[None, None], (reach[1], reach[1], reach[0], reach[0]), mode="replicate")[0, 0]
        field = convolved(wide, bars((wide.shape[0], wide.shape[1]), (2 * field_of_view[0], 2 * field_of_view[1])))
        self._static = field[reach[0] : reach[0] + shape[0], reach[1] : reach[1] + shape[1]].contiguous()
        signal, air = self._posture(np.zeros(len(ARTICULATORS)))
        field = self._field(air)
        tissue = (signal > _TISSUE) & (air < 0.5)
        self._shim = _smooth_fit(field, tissue)
        self._hertz = self.off_resonance / float((field - self._shim)[tissue].abs().quantile(_BORDER_SHARE))

    def _field(self, air: Tensor) -> Tensor:
        """Field in tissue before the shim, of Δχ f0 = 1 Hz."""
        return in_tissue(self._static + convolved(air - self._tract.air, self._kernel), air)

    def _posture(self, posture: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
        """Signal and share of air ``[y, x]``."""
        signal, air = self._tract.signal.clone(), self._tract.air.clone()
        signal[self._tract.box], air[self._tract.box] = self._tract.draw(posture)
        return signal * self._reach, air

    def at_with_frequency(self, time: float) -> tuple[Tensor, Tensor]:
        """The object at the start of an arm that begins at ``time``, complex64, and its off-resonance in Hz, float32, ``[y, x]``.

        Phase has accrued from the excitation on: :data:`ECHO_TIME` of it is in the object.
        """
        signal, air = self._posture(self.articulation.at(time))
        if not self.off_resonance:
            return torch.polar(signal.clamp_min(0.0), self._phase.expand_as(signal)), torch.zeros_like(signal)
        limit = self.off_resonance
        frequency = (self._hertz * (self._field(air) - self._shim)).clamp(-limit, limit)
        return torch.polar(signal.clamp_min(0.0), self._phase + 2 * math.pi * ECHO_TIME * frequency), frequency

    def at(self, time: float) -> Tensor:
        """The object at one moment, complex64 ``[y, x]``."""
        return self.at_with_frequency(time)[0]


def _smooth_fit(field: Tensor, where: Tensor) -> Tensor:
    """The polynomial of second order nearest to a field where there is tissue: what a shim takes away."""
    y, x = (torch.linspace(-1, 1, n, dtype=torch.float64) for n in field.shape)
    v, u = torch.meshgrid(y, x, indexing="ij")
    terms = torch.stack([torch.ones_like(u), u, v, u * u, u * v, v * v], dim=-1)
    chosen = terms[where]
    fit = torch.linalg.solve(chosen.T @ chosen, chosen.T @ field[where].double())
    return (terms @ fit).float()


def _at_pixels(image: Tensor, matrix: tuple[int, int]) -> Tensor:
    """A fine image ``[y, x]`` at the centres of the reconstruction's pixels."""
    for axis, (n, m) in enumerate(zip(image.shape, matrix, strict=True)):
        detail = n // m
        image = image.index_select(axis, n // 2 + detail * (torch.arange(m) - m // 2))
    return image


@at_most_threads(1)
def simulate(settings: SpeechSettings | None = None, progress: Progress | None = None) -> SpeechScan:
    """Simulate a scan.

    Args:
        settings: what to simulate.
        progress: called with (readouts done, readouts in all).

    Raises:
        SettingError: the settings cannot be met together.
    """
    settings = settings or SpeechSettings()
    # One source a part: the same person speaks in every matrix, with every coil array.
    person, body, coil, noise = np.random.default_rng(settings.seed).spawn(4)
    matrix, fov = settings.matrix, settings.field_of_view
    trajectory, interleaves = _trajectory(settings)
    times = np.arange(len(trajectory), dtype=np.float64) * (settings.repetition_time * 1e-3)
    frame_times = times.reshape(settings.frames, -1).mean(axis=1)
    articulation = Articulation.make(float(times[-1]), person)
    fine = (settings.detail * matrix[0], settings.detail * matrix[1])
    head = SpeechObject(fine, fov, articulation, body, settings.off_resonance)
    array = LoopArray(settings.coils, (HALF_AXES[0] * head.scale, HALF_AXES[1] * head.scale), fov, coil)
    covariance = array.noise_covariance(coil)
    samples = sample_slice(
        head,
        array.maps(*grid_axes(fine, fov)),
        trajectory,
        times,
        matrix,
        progress,
        sample_times=np.arange(trajectory.shape[1], dtype=np.float64) * _DWELL if settings.off_resonance else None,
        largest_frequency=settings.off_resonance,
    )
    objects, fields = [], []
    for time in frame_times:
        image, frequency = head.at_with_frequency(float(time))
        objects.append(low_pass(image, matrix, fov))
        if settings.off_resonance:
            fields.append(_at_pixels(frequency, matrix).numpy())
    truth = shading(array.maps(*grid_axes(matrix, fov)), covariance) * np.stack(objects)
    level = noise_level(truth, settings.snr)
    noise_readouts = add_noise(samples, level, covariance, noise)
    truth = (truth / level).astype(np.complex64)
    return SpeechScan(
        settings=settings,
        samples=samples,
        noise=noise_readouts,
        trajectory=trajectory,
        times=times,
        dwell=_DWELL,
        frame_times=frame_times,
        truth=truth,
        moving=moving_region(truth),
        articulation=articulation,
        interleaves=interleaves,
        field_maps=np.stack(fields) if fields else None,
    )


def _trajectory(settings: SpeechSettings) -> tuple[NDArray[np.float32], int]:
    """Golden-angle arms, and how many of them fill k-space."""
    count = settings.frames * settings.readouts_per_frame
    for interleaves in (settings.interleaves,) if settings.interleaves else _DESIGNS:
        arms = spiral_arms(count, settings.matrix, settings.field_of_view, interleaves, dwell=_DWELL, limits=_LIMITS)
        length = 1e3 * arms.shape[1] * _DWELL
        if length <= settings.readout:
            break
    # Excitation, rewinding and spoiling need the rest of the repetition time.
    if length + 1e3 * ECHO_TIME > 0.95 * settings.repetition_time:
        raise SettingError(
            "repetition_time",
            f"{settings.repetition_time} ms, an arm of {interleaves} lasts {length:.2f} ms after an echo time of {1e3 * ECHO_TIME:g} ms",
            "Give more interleaves or a longer repetition time.",
        )
    return arms, interleaves
