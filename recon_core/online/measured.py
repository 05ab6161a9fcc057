"""Frames reduced, one by one, to arrays whose size does not depend on their readouts, under a calibration that stays as it is."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from recon_core.calibration.calibrate import calibrate
from recon_core.calibration.compression import compress
from recon_core.calibration.temporal_basis import DENSITY_POWER
from recon_core.operators.frames import gather, required_sensitivities
from recon_core.operators.nufft import Nufft
from recon_core.operators.toeplitz import point_spread_spectrum
from recon_core.problem import KSpaceProblem


@dataclasses.dataclass(frozen=True, eq=False)
class MeasuredFrame:
    """What the readouts of one frame say: the data term ``⟨d, T d⟩ − 2 Re⟨d, adjoint⟩ + energy`` of its image d.

    Attributes:
        spectrum: float32 ``[point]``, point-spread spectrum of T on the doubled grid, flattened.
        adjoint: complex64 ``[(z,) y, x]``, weighted samples back-projected through all coils.
        gridded: the same with full density compensation of the start block; None where it was not asked for.
        energy: ``Σ w |y|²``.
        weight: ``Σ w`` over samples and coils.
        time: mean time of its readouts, seconds.
        readouts: their number.
        steps: regular frames it stands for; more than one where frames were joined.
    """

    spectrum: Tensor
    adjoint: Tensor
    gridded: Tensor | None
    energy: float
    weight: float
    time: float
    readouts: int
    steps: int = 1


class FrameEncoder:
    """Coil compression, maps and density weights from the first readouts of a scan; none of them changes afterwards.

    A readout's density weights are the start block's, averaged over readouts sample by sample: readouts of one kind differ by
    a rotation only.

    Args:
        start: whitened, uncalibrated problem of the first readouts.
        coils: virtual coils.
        engine: NUFFT engine by name.
        density_power: samples weigh as their density compensation to this power in the data term.

    Attributes:
        sensitivities: complex64 ``[coil, (z,) y, x]``.
        compression: complex64 ``[coil, channel]``.
        coverage: share of k-space that one readout covers: its length in it, one cycle per field of view broad.
    """

    def __init__(self, start: KSpaceProblem, coils: int, engine: str = "auto", density_power: float = DENSITY_POWER) -> None:
        calibrated, calibration = calibrate(start, coils, engine)
        assert calibrated.weights is not None
        self.compression = calibration.compression
        self.sensitivities = required_sensitivities(calibrated)
        self.shape, self.cartesian, self.engine = start.shape, start.cartesian, engine
        counted = calibrated.weights > 0
        self.density = calibrated.weights.sum(0) / counted.sum(0).clamp_min(1)
        self.weights = (self.density / self.density.max().clamp_min(1e-30)).pow(density_power)
        self.start_readouts = start.n_readouts
        self.coverage = _coverage(start)

    def __repr__(self) -> str:
        return f"FrameEncoder({self.sensitivities.shape[0]} coils, shape={self.shape}, from {self.start_readouts} readouts)"

    def measure(self, problem: KSpaceProblem, *, gridded: bool = False, steps: int = 1) -> MeasuredFrame:
        """Reduce all readouts of a problem, as one frame.

        Args:
            problem: whitened, of the start's channels, matrix and readout length.
            gridded: compute the density-compensated image too.
            steps: regular frames it stands for.
        """
        part = gather(problem, torch.arange(problem.n_readouts, device=problem.device))
        samples = compress(part.samples, self.compression)
        weights = self._spread(self.weights, problem)
        weighted = samples * weights
        nufft = Nufft(part.points, self.shape, self.engine, cartesian=self.cartesian)
        image = self._combine(nufft, samples * self._spread(self.density, problem)) if gridded else None
        return MeasuredFrame(
            spectrum=point_spread_spectrum(part.points, weights, self.shape, self.engine).flatten(),
            adjoint=self._combine(nufft, weighted),
            gridded=image,
            energy=float((weighted * samples.conj()).real.sum(dtype=torch.float64)),
            weight=float(weights.sum(dtype=torch.float64)) * samples.shape[0],
            time=float(problem.readout_times.mean()),
            readouts=problem.n_readouts,
            steps=steps,
        )

    def _spread(self, weights: Tensor, problem: KSpaceProblem) -> Tensor:
        """Weights of one readout's samples, for the used samples of all."""
        spread = weights.expand(problem.trajectory.shape[:2])
        return spread.flatten() if problem.mask is None else spread[problem.mask]

    def _combine(self, nufft: Nufft, samples: Tensor) -> Tensor:
        return (self.sensitivities.conj() * nufft.adjoint(samples)).sum(0)


def _coverage(problem: KSpaceProblem) -> float:
    """Mean share of the disc (ball) of k-space, as wide as the image's matrix, that one readout covers."""
    steps = problem.trajectory.diff(dim=1).norm(dim=-1)
    half = torch.tensor([n / 2 for n in reversed(problem.shape)], device=steps.device)
    inside = (problem.trajectory.abs() <= half).all(-1)
    if problem.mask is not None:
        inside &= problem.mask
    length = float((steps * (inside[:, 1:] & inside[:, :-1])).sum()) / problem.n_readouts
    ball = math.pi / 4 if problem.dim == 2 else math.pi / 6
    return length / (ball * math.prod(problem.shape))


class SlidingGridding:
    """Sliding-window gridding, for the time before there is a model: the last frames' density-compensated adjoints, summed.

    Args:
        encoder: the frozen calibration.
        readouts: readouts in the window.
    """

    def __init__(self, encoder: FrameEncoder, readouts: int) -> None:
        self.start_readouts = encoder.start_readouts
        self.window = readouts
        self._frames: list[tuple[Tensor, int]] = []

    def image(self, frame: MeasuredFrame) -> Tensor:
        """Take a frame measured with ``gridded`` and give the window's image, scaled as a fully sampled one."""
        assert frame.gridded is not None
        self._frames.append((frame.gridded, frame.readouts))
        while sum(n for _, n in self._frames[1:]) >= self.window:
            del self._frames[0]
        # Weights are shares of the start block's area: fewer readouts share the same area.
        scale = self.start_readouts / sum(n for _, n in self._frames)
        return torch.stack([image for image, _ in self._frames]).sum(0) * scale
