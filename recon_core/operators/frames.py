"""Coil-weighted encoding of the frames of a problem, and what the acquired data say of each frame."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from recon_core.errors import DataError
from recon_core.operators.nufft import DEFAULT_TOLERANCE, Nufft
from recon_core.problem import KSpaceProblem


@dataclasses.dataclass(frozen=True, eq=False)
class FrameSamples:
    """The samples of one frame, unused ones left out.

    Attributes:
        points: float32 ``[point, axis]``, cycles per field of view.
        samples: complex64 ``[coil, point]``.
        weights: float32 ``[point]``, density compensation, or ones where the problem has none.
    """

    points: Tensor
    samples: Tensor
    weights: Tensor


def gather(problem: KSpaceProblem, readouts: Tensor) -> FrameSamples:
    """Points, samples and weights of some readouts (int64 indices), samples outside the mask left out."""
    samples = problem.samples[:, readouts].flatten(1)
    points = problem.trajectory[readouts].flatten(0, 1)
    weights = torch.ones_like(points[:, 0]) if problem.weights is None else problem.weights[readouts].flatten()
    if problem.mask is not None:
        used = problem.mask[readouts].flatten()
        points, samples, weights = points[used], samples[:, used], weights[used]
    return FrameSamples(points, samples, weights)


def required_sensitivities(problem: KSpaceProblem) -> Tensor:
    """The coil sensitivities of a calibrated problem.

    Raises:
        DataError: the problem has none yet.
    """
    if problem.sensitivities is None:
        raise DataError("sensitivities", "missing", "Calibrate the problem first (recon_core.calibration.calibrate).")
    return problem.sensitivities


class FrameEncoding:
    """Signal of frame images in every coil at the frame's own points; adjoint = backward.

    Args:
        problem: a calibrated problem.
        engine: NUFFT engine by name.
        tolerance: relative accuracy of the NUFFT.

    Attributes:
        occupied: int64, the frames that have samples (on the CPU).

    Raises:
        DataError: no maps, or no frame has a sample.
    """

    def __init__(self, problem: KSpaceProblem, engine: str = "auto", tolerance: float = DEFAULT_TOLERANCE) -> None:
        self.sensitivities = required_sensitivities(problem)
        self.frames = [gather(problem, readouts) for readouts in problem.frames]
        self.occupied = torch.tensor([t for t, f in enumerate(self.frames) if f.points.shape[0]], dtype=torch.int64)
        if not self.occupied.numel():
            raise DataError("frames", f"none of {len(self.frames)} has a sample left", "Discard fewer readouts or samples.")
        self.nuffts = [Nufft(f.points, problem.shape, engine, tolerance, problem.cartesian) for f in self.frames]
        self.shape = problem.shape

    def __repr__(self) -> str:
        return f"FrameEncoding({len(self.frames)} frames of {self.shape}, {self.sensitivities.shape[0]} coils)"

    def forward(self, image: Tensor, frame: int) -> Tensor:
        """Image ``[(z,) y, x]`` of one frame to samples ``[coil, point]``."""
        return self.nuffts[frame].forward(self.sensitivities * image)

    def adjoint(self, samples: Tensor, frame: int) -> Tensor:
        """Samples ``[coil, point]`` of one frame to its image ``[(z,) y, x]``."""
        return (self.sensitivities.conj() * self.nuffts[frame].adjoint(samples)).sum(0)

    def backprojection(self, density: bool = False) -> Tensor:
        """Adjoint of the acquired samples, frame by frame, ``[frame, (z,) y, x]``; density-weighted on request."""
        images = [self.adjoint(f.samples * f.weights if density else f.samples, number) for number, f in enumerate(self.frames)]
        return torch.stack(images)

    def energy(self) -> float:
        """Squared norm of all samples."""
        return float(sum(float(f.samples.abs().square().sum(dtype=torch.float64)) for f in self.frames))
