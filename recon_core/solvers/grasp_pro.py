"""GRASP-Pro: self-calibrated temporal subspace with total variation (Feng et al., Magn Reson Med 2020;83:94)."""

from __future__ import annotations

from recon_core.operators.proximal import Fista, SpatialTv
from recon_core.problem import KSpaceProblem
from recon_core.solvers.base import Solver
from recon_core.solvers.subspace import SubspaceSettings, SubspaceSolver

_DUAL_STEPS = 3


class GraspPro(SubspaceSolver[SubspaceSettings]):
    """Explicit bases U with spatial total variation on each, by FISTA on the Gram operator; no network."""

    name = "grasp_pro"
    Settings = SubspaceSettings

    def start(self, problem: KSpaceProblem, previous: Solver[SubspaceSettings] | None = None) -> None:
        """See :class:`SubspaceSolver`."""
        super().start(problem, previous)
        self.prox = SpatialTv(self.target.shape, _DUAL_STEPS, problem.device)
        self.fista = Fista(self.bases)

    def _update(self) -> None:
        ahead = self.fista.ahead
        point = ahead - (self.normal(ahead) - self.target) / self.lipschitz
        self.fista.accept(self.prox(point, self.thresholds() / self.lipschitz))
        self.bases = self.fista.x


SOLVER = GraspPro
