"""Low-rank reconstruction with spatial total variation, then a voxel-wise fit (He et al., IEEE Trans Med Imaging 2016;35:2119, in sense).

``min_U ½ Σ_t ‖M_t F S Φ_t U − y_t‖² + Σ_k λ_k TV(U_k)`` by FISTA with restart on the K×K form, which reaches ADMM's minimum of the same
convex problem without an inner solve.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from recon_core.options import option
from recon_core.problem import KSpaceProblem
from recon_core.solvers.base import Solver
from recon_core.solvers.low_rank_block import LowRankBlock
from recon_core.solvers.quantitative import QuantitativeSettings, QuantitativeSolver

SELECTED_STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0)


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
        shape = (self.basis.shape[1], *problem.shape)
        warm = isinstance(previous, QuantitativeSolver) and tuple(previous.bases.shape) == shape
        self._begin(previous.bases if isinstance(previous, QuantitativeSolver) and warm else None)

    def start_beside(self, other: Solver[LrtSettings]) -> None:
        """See :class:`Solver`."""
        assert isinstance(other, Lrt)
        self._set_up_as(other)
        self._begin(None)

    def _begin(self, start: Tensor | None) -> None:
        strength = SELECTED_STRENGTHS[len(SELECTED_STRENGTHS) // 2] if self.settings.strength is None else self.settings.strength
        self.block = LowRankBlock(self.term, self.sensitivities, strength, self.seed, start)
        self.bases = self.block.bases

    def _update(self) -> None:
        self.block.step()
        self.bases = self.block.bases


SOLVER = Lrt
