"""Zero-filled images, then a voxel-wise fit: the plain way, exact for fully sampled protocols."""

from __future__ import annotations

from recon_core.problem import KSpaceProblem
from recon_core.solvers.base import Solver
from recon_core.solvers.quantitative import QuantitativeSettings, QuantitativeSolver


class ZeroFilledFit(QuantitativeSolver[QuantitativeSettings]):
    """Coil-combined zero-filled images, scaled by the acceleration, on the subspace; maps by :mod:`recon_core.parameter_fit`."""

    name = "parameter_fit"
    Settings = QuantitativeSettings

    @property
    def total_steps(self) -> int:
        """One."""
        return 1

    def start(self, problem: KSpaceProblem, previous: Solver[QuantitativeSettings] | None = None) -> None:
        """See :class:`Solver`."""
        super().start(problem, previous)
        lines = self.data.samples.shape[1]
        self.acceleration = self.data.places * problem.n_frames / max(1, lines)
        self.bases = self.term.adjoint(self.sensitivities) * self.acceleration

    def _update(self) -> None:
        """Nothing is left to do after the start."""


SOLVER = ZeroFilledFit
