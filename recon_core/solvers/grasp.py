"""GRASP: compressed sensing of golden-angle frames with temporal total variation (Feng et al., Magn Reson Med 2014;72:707)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recon_core.operators.proximal import Fista, TemporalTv
from recon_core.options import option
from recon_core.problem import ImageSeries, KSpaceProblem
from recon_core.solvers.base import Solver, interpolate_frames, rungs_beside
from recon_core.solvers.frame_series import SeriesDataTerm

STRENGTHS = (0.0006, 0.0016, 0.004, 0.01, 0.025, 0.06, 0.15, 0.4)
SELECTED_STRENGTHS = STRENGTHS[2:5]
_DUAL_STEPS = 10


@dataclasses.dataclass(frozen=True)
class GraspSettings:
    """Settings of :class:`Grasp`."""

    steps: int = option(60, "FISTA iterations", low=1, high=10_000)
    strength: float | None = option(
        None, "λ of temporal total variation, relative to the largest adjoint magnitude; auto: held-out", low=0.0, high=10.0
    )
    density_power: float = option(0.25, "samples weigh as their density compensation to this power", low=0.0, high=1.0)


class Grasp(Solver[GraspSettings]):
    """``min ½‖W^½(E x − y)‖² + λ Σ_t ‖x_{t+1} − x_t‖₁`` over all frames at once, every coil in E.

    FISTA with adaptive restart on the frame-wise Toeplitz form. The proximal map of complex total variation has no closed form; its dual
    is solved by a few accelerated steps and kept from one iteration to the next.
    """

    name = "grasp"
    Settings = GraspSettings
    check_every = 10
    selection_matrix = 0.5
    fista: Fista
    cost: float | None = None

    @property
    def total_steps(self) -> int:
        """Iterations."""
        return self.settings.steps

    @classmethod
    def candidates(cls, settings: GraspSettings, problem: KSpaceProblem) -> list[Any]:
        """A few λ unless one is set."""
        if settings.strength is not None:
            return [settings]
        return [dataclasses.replace(settings, strength=value) for value in SELECTED_STRENGTHS]

    @classmethod
    def refinements(cls, settings: GraspSettings, asked: GraspSettings, tried: Sequence[Any], problem: KSpaceProblem) -> list[Any]:
        """Stronger or weaker λ as long as that helps, unless it is set."""
        return rungs_beside(settings, asked, tried, {"strength": STRENGTHS})

    def start(self, problem: KSpaceProblem, previous: Solver[GraspSettings] | None = None) -> None:
        """See :class:`Solver`; starts from the time average, or from a previous fit of the same shape."""
        self.problem = problem
        self.step = 0
        self.cost = None
        self.data = SeriesDataTerm.of(problem, self.settings.density_power, self.engine, self.seed)
        strength = SELECTED_STRENGTHS[1] if self.settings.strength is None else self.settings.strength
        self.weight = strength * float(self.data.target.abs().max())
        self.prox = TemporalTv(self.data.target.shape, _DUAL_STEPS, problem.device)
        if isinstance(previous, Grasp) and previous.fista.x.shape == self.data.target.shape:
            self.fista = Fista(previous.fista.x.clone())
            self.prox.dual = previous.prox.dual.clone()
        else:
            self.fista = Fista(self.data.time_average().expand_as(self.data.target).contiguous())

    def _update(self) -> None:
        ahead = self.fista.ahead
        gradient, value = self.data.gradient(ahead)
        self.cost = value + self.weight * float((ahead[1:] - ahead[:-1]).abs().sum(dtype=torch.float64))
        step = 1 / self.data.lipschitz if self.data.lipschitz > 0 else 0.0
        self.fista.accept(self.prox(ahead - step * gradient, self.weight * step))

    def objective(self) -> float | None:
        """The cost where the last step set out."""
        return self.cost

    def images(self, times: Tensor | None = None) -> ImageSeries:
        """See :class:`Solver`; frames without data are interpolated in time."""
        frame_times = self.problem.frame_times
        times = frame_times if times is None else times
        return ImageSeries(interpolate_frames(self.fista.x, frame_times, times, self.data.occupied), times)


SOLVER = Grasp
