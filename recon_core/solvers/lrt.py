"""Low-rank reconstruction with spatial total variation, then a voxel-wise fit (He et al., IEEE Trans Med Imaging 2016;35:2119, in sense).

``min_U ½ Σ_t ‖M_t F S Φ_t U − y_t‖² + Σ_k λ_k TV(U_k)`` by FISTA with restart on the K×K form, which reaches ADMM's minimum of the same
convex problem without an inner solve.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from recon_core.operators.proximal import Fista, SpatialTv, largest_eigenvalue
from recon_core.options import option
from recon_core.problem import KSpaceProblem
from recon_core.solvers.base import Solver
from recon_core.solvers.quantitative import QuantitativeSettings, QuantitativeSolver

SELECTED_STRENGTHS = (0.03, 0.1, 0.3)
_DUAL_STEPS = 3


@dataclasses.dataclass(frozen=True)
class LrtSettings(QuantitativeSettings):
    """Settings of :class:`Lrt`."""

    steps: int = option(60, "proximal gradient steps", low=1, high=10_000)
    strength: float | None = option(None, "λ of spatial total variation, in noise standard deviations; auto: held-out", low=0.0)


class Lrt(QuantitativeSolver[LrtSettings]):
    """Explicit bases U with spatial total variation on each."""

    name = "lrt"
    Settings = LrtSettings

    @property
    def total_steps(self) -> int:
        """Proximal gradient steps."""
        return self.settings.steps

    @classmethod
    def candidates(cls, settings: LrtSettings, problem: KSpaceProblem) -> list[Any]:
        """A few λ unless one is set."""
        if settings.strength is not None:
            return [settings]
        return [dataclasses.replace(settings, strength=value) for value in SELECTED_STRENGTHS]

    def start(self, problem: KSpaceProblem, previous: Solver[LrtSettings] | None = None) -> None:
        """See :class:`Solver`; a previous fit of the same protocol is the starting point."""
        super().start(problem, previous)
        self.target = self.term.adjoint(self.sensitivities)
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(self.target.shape, dtype=torch.complex64, generator=generator).to(problem.device)
        self.lipschitz = 1.1 * largest_eigenvalue(lambda u: self.term.normal(u, self.sensitivities), noise)
        start = torch.zeros_like(self.target)
        if isinstance(previous, QuantitativeSolver) and previous.bases.shape == start.shape:
            start = previous.bases.clone()
        self.bases = start
        self.fista = Fista(start)
        self.prox = SpatialTv(self.target.shape, _DUAL_STEPS, problem.device)
        strength = SELECTED_STRENGTHS[1] if self.settings.strength is None else self.settings.strength
        # The samples are whitened: a basis that few samples determine holds noise of about one unit.
        self.thresholds = torch.full((self.target.shape[0],), strength / self.lipschitz, device=problem.device)

    def _update(self) -> None:
        ahead = self.fista.ahead
        gradient = self.term.normal(ahead, self.sensitivities) - self.target
        self.fista.accept(self.prox(ahead - gradient / self.lipschitz, self.thresholds))
        self.bases = self.fista.x


SOLVER = Lrt
