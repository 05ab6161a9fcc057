"""Coil-weighted encoding of the frames of a problem, and what the acquired data say of each frame."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

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


@dataclasses.dataclass(frozen=True)
class NufftOptions:
    """How a problem's transforms are made: arguments of :class:`Nufft`."""

    engine: str = "auto"
    tolerance: float = DEFAULT_TOLERANCE
    cartesian: bool = False


def gather(problem: KSpaceProblem, readouts: Tensor) -> FrameSamples:
    """Points, samples and weights of some readouts (int64 indices), samples outside the mask left out."""
    samples = problem.samples[:, readouts].flatten(1)
    points = problem.trajectory[readouts].flatten(0, 1)
    weights = torch.ones_like(points[:, 0]) if problem.weights is None else problem.weights[readouts].flatten()
    if problem.mask is not None:
        used = problem.mask[readouts].flatten()
        points, samples, weights = points[used], samples[:, used], weights[used]
    return FrameSamples(points, samples, weights)


def occupied_frames(problem: KSpaceProblem) -> list[FrameSamples]:
    """The samples of every frame.

    Raises:
        DataError: no frame has one.
    """
    frames = [gather(problem, readouts) for readouts in problem.frames]
    if not any(f.points.shape[0] for f in frames):
        raise DataError("frames", f"none of {len(frames)} has a sample left", "Discard fewer readouts or samples.")
    return frames


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
        self.frames = occupied_frames(problem)
        self.occupied = torch.tensor([t for t, f in enumerate(self.frames) if f.points.shape[0]], dtype=torch.int64)
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


def subspace_backprojection(frames: Sequence[FrameSamples], sensitivities: Tensor, temporal: Tensor, nufft: NufftOptions) -> Tensor:
    """``Σ_t V_kt E_tᴴ W_t y_t``: the right-hand side of a series ``Σ_k V_kt U_k``, from one plan for the samples of all frames.

    Args:
        frames: samples, points and weights of every frame.
        sensitivities: complex64 ``[coil, (z,) y, x]``.
        temporal: float32 ``[K, frame]``.
        nufft: how the transform is made.

    Returns:
        complex64 ``[K, (z,) y, x]``.
    """
    counts = torch.tensor([f.points.shape[0] for f in frames], device=temporal.device)
    samples = torch.cat([f.samples * f.weights for f in frames], dim=1)
    shape = tuple(sensitivities.shape[1:])
    transform = Nufft(torch.cat([f.points for f in frames]), shape, nufft.engine, nufft.tolerance, nufft.cartesian)
    courses = temporal.repeat_interleave(counts, dim=1)
    return torch.stack([(sensitivities.conj() * transform.adjoint(course * samples)).sum(0) for course in courses])
