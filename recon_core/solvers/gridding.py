"""Density-compensated adjoint, frame by frame: what the data show with no model at all."""

from __future__ import annotations

import torch
from torch import Tensor

from recon_core.operators.frames import FrameEncoding
from recon_core.problem import ImageSeries, KSpaceProblem
from recon_core.solvers.base import NoSettings, Solver, interpolate_frames


class Gridding(Solver[NoSettings]):
    """Gridding reconstruction; one step does all frames.

    A frame's weights are those of the whole scan times all readouts over the frame's.
    """

    name = "gridding"
    course = False
    Settings = NoSettings

    @property
    def total_steps(self) -> int:
        """One."""
        return 1

    def start(self, problem: KSpaceProblem, previous: Solver[NoSettings] | None = None) -> None:
        """See :class:`Solver`; there is nothing to warm-start."""
        self.problem = problem
        self.step = 0
        self.encoding = FrameEncoding(problem, self.engine)
        self._images = torch.zeros((problem.n_frames, *problem.shape), dtype=torch.complex64, device=problem.device)

    def _update(self) -> None:
        images = self.encoding.backprojection(density=True)
        for image, readouts in zip(images, self.problem.frames, strict=True):
            image *= self.problem.n_readouts / max(1, readouts.numel())
        self._images = images

    def images(self, times: Tensor | None = None) -> ImageSeries:
        """See :class:`Solver`."""
        frame_times = self.problem.frame_times
        times = frame_times if times is None else times
        return ImageSeries(interpolate_frames(self._images, frame_times, times, self.encoding.occupied), times)


SOLVER = Gridding
