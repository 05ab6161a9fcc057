"""CG-SENSE, frame by frame (Pruessmann et al., Magn Reson Med 2001;46:638)."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from recon_core.operators.frames import FrameEncoding
from recon_core.options import option
from recon_core.problem import ImageSeries, KSpaceProblem
from recon_core.solvers.base import Solver, interpolate_frames


@dataclasses.dataclass(frozen=True)
class CgSenseSettings:
    """Settings of :class:`CgSense`."""

    steps: int = option(12, "conjugate-gradient iterations", low=1, high=500)
    damping: float | None = option(None, "Tikhonov weight relative to the normal operator's mean diagonal; auto: held-out", low=0.0)


class CgSense(Solver[CgSenseSettings]):
    """Density-weighted least squares per frame by conjugate gradients on the Toeplitz form, damped.

    The density weights precondition the normal operator (Pruessmann's form): a dozen iterations converge for any trajectory.
    """

    name = "cg_sense"
    course = False
    Settings = CgSenseSettings
    selection_matrix = 0.5
    x: Tensor
    r: Tensor

    @property
    def total_steps(self) -> int:
        """Iterations."""
        return self.settings.steps

    @classmethod
    def candidates(cls, settings: CgSenseSettings, problem: KSpaceProblem) -> list[Any]:
        """Three decades of damping unless one is set."""
        if settings.damping is not None:
            return [settings]
        return [dataclasses.replace(settings, damping=value) for value in (1.0, 0.1, 0.01)]

    def start(self, problem: KSpaceProblem, previous: Solver[CgSenseSettings] | None = None) -> None:
        """See :class:`Solver`; a previous fit of the same shape is the starting point."""
        self.problem = problem
        self.step = 0
        encoding = FrameEncoding(problem, self.engine)
        self.occupied = encoding.occupied
        self.normal = encoding.normal()
        share = torch.stack([f.weights.sum() for f in encoding.frames]) / encoding.sensitivities[0].numel()
        damping = 0.1 if self.settings.damping is None else self.settings.damping
        self.damping = (damping * share).reshape(-1, *[1] * problem.dim).to(torch.float32)
        target = encoding.backprojection(density=True)
        if isinstance(previous, CgSense) and previous.x.shape == target.shape:
            self.x = previous.x.clone()
            self.r = target - self._apply(self.x)
        else:
            self.x, self.r = torch.zeros_like(target), target
        self.p = self.r.clone()
        self.energy = self._energy(self.r)

    def _apply(self, images: Tensor) -> Tensor:
        return self.normal(images) + self.damping * images

    @staticmethod
    def _energy(images: Tensor) -> Tensor:
        return images.abs().square().flatten(1).sum(1)

    def _update(self) -> None:
        q = self._apply(self.p)
        curvature = (self.p.conj() * q).real.flatten(1).sum(1)
        # A frame that has converged, or has no data, stays: 0/0 is no step.
        ones = [1] * self.problem.dim
        step = torch.where(curvature > 0, self.energy / curvature.clamp_min(1e-30), torch.zeros_like(curvature)).reshape(-1, *ones)
        self.x = self.x + step * self.p
        self.r = self.r - step * q
        new = self._energy(self.r)
        ratio = torch.where(self.energy > 0, new / self.energy.clamp_min(1e-30), torch.zeros_like(new)).reshape(-1, *ones)
        self.p = self.r + ratio * self.p
        self.energy = new

    def images(self, times: Tensor | None = None) -> ImageSeries:
        """See :class:`Solver`."""
        frame_times = self.problem.frame_times
        times = frame_times if times is None else times
        return ImageSeries(interpolate_frames(self.x, frame_times, times, self.occupied), times)


SOLVER = CgSense
