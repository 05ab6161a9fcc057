"""GRASP-Pro: self-calibrated temporal subspace with total variation (Feng et al., Magn Reson Med 2020;83:94)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from recon_core.operators.proximal import Fista, SpatialTv
from recon_core.options import option
from recon_core.problem import KSpaceProblem
from recon_core.solvers.base import Solver, rungs_beside
from recon_core.solvers.subspace import SubspaceSettings, SubspaceSolver

STRENGTHS = (2.5e-5, 5e-5, 1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3, 3.2e-3, 6.4e-3, 1.28e-2, 2.56e-2)
SELECTED_STRENGTHS = STRENGTHS[2:5]
_DUAL_STEPS = 3
_LARGEST_RATIO = 50.0


@dataclasses.dataclass(frozen=True)
class GraspProSettings(SubspaceSettings):
    """Settings of :class:`GraspPro`."""

    rank: int = option(16, "temporal components K", low=1, high=128)
    strength: float | None = option(
        None, "λ of spatial total variation of the second basis, relative to the largest adjoint magnitude; auto: held-out", low=0.0
    )
    strength_power: float = option(0.4, "λ of a weaker basis grows with (second singular value / its own) to this power", low=0.0, high=2.0)


class GraspPro(SubspaceSolver[GraspProSettings]):
    """Explicit bases U with spatial total variation on each, by FISTA on the Gram operator; no network."""

    name = "grasp_pro"
    Settings = GraspProSettings

    @classmethod
    def candidates(cls, settings: GraspProSettings, problem: KSpaceProblem) -> list[Any]:
        """A few λ unless one is set."""
        if settings.strength is not None:
            return [settings]
        return [dataclasses.replace(settings, strength=value) for value in SELECTED_STRENGTHS]

    @classmethod
    def refinements(cls, settings: GraspProSettings, asked: GraspProSettings, tried: Sequence[Any], problem: KSpaceProblem) -> list[Any]:
        """Stronger or weaker λ as long as that helps, unless it is set."""
        return rungs_beside(settings, asked, tried, {"strength": STRENGTHS})

    def start(self, problem: KSpaceProblem, previous: Solver[GraspProSettings] | None = None) -> None:
        """See :class:`SubspaceSolver`."""
        super().start(problem, previous)
        self._restart()

    def start_beside(self, other: Solver[GraspProSettings]) -> None:
        """See :class:`SubspaceSolver`."""
        super().start_beside(other)
        self._restart()

    def _restart(self) -> None:
        self.prox = SpatialTv(self.target.shape, _DUAL_STEPS, self.target.device)
        self.fista = Fista(self.bases)

    def thresholds(self) -> Tensor:
        """λ of every basis in the units of the right-hand side, float32 ``[K]``: weak bases hold more aliasing than signal."""
        strength = SELECTED_STRENGTHS[1] if self.settings.strength is None else self.settings.strength
        largest = self.singular[: self.temporal.shape[0]].clamp_min(1e-12 * float(self.singular[0].clamp_min(1e-30)))
        second = largest[min(1, largest.shape[0] - 1)]
        growth = (second / largest).clamp(max=_LARGEST_RATIO).pow(self.settings.strength_power)
        out = strength * growth
        out[0] = self.settings.static_strength
        return out.to(self.target.device) * float(self.target.abs().max())

    def _update(self) -> None:
        ahead = self.fista.ahead
        point = ahead - (self.normal(ahead) - self.target) / self.lipschitz
        self.fista.accept(self.prox(point, self.thresholds() / self.lipschitz))
        self.bases = self.fista.x


SOLVER = GraspPro
