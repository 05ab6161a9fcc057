"""LoREIN: low-rank and implicit neural representation for quantitative MRI (Zhang et al.).

``form=fields`` is the paper's: bases, parameter maps and coil sensitivities as neural fields (:mod:`recon_core.solvers.field_blocks`).
``form=voxels``, ours, keeps its two blocks, its data terms and its learned coils, and holds them voxel by voxel: a low-rank
reconstruction, a fit to it, and from there parameters and coils together on k-space (:mod:`recon_core.solvers.joint_maps`).
What the paper leaves open is listed in ``docs/methods/lorein.md``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from recon_core.errors import SettingError
from recon_core.options import option
from recon_core.parameter_fit import ParameterFit, object_mask, parameter_maps
from recon_core.problem import KSpaceProblem
from recon_core.signal_models import ParameterMap, signal_model
from recon_core.solvers.base import Solver, rungs_beside
from recon_core.solvers.field_blocks import FieldBlocks, FieldSettings
from recon_core.solvers.joint_maps import RATES, JointMaps, JointWeights
from recon_core.solvers.low_rank_block import LowRankBlock
from recon_core.solvers.quantitative import QuantitativeSolver

STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
START, START_RATE = 3.0, 1.0
"""λ of the maps and of a rate, over its noise, with which the choice begins; from there it goes up or down while that helps."""


@dataclasses.dataclass(frozen=True)
class LoreinSettings(FieldSettings):
    """Settings of :class:`Lorein`."""

    form: str = option(
        "voxels", "voxels: blocks held voxel by voxel (ours); fields: the paper's neural fields", choices=("voxels", "fields")
    )
    low_rank_steps: int = option(40, "voxels: proximal gradient steps of the low-rank block", low=1, high=10_000)
    low_rank_strength: float = option(0.3, "voxels: λ of total variation on its bases, in noise standard deviations", low=0.0)
    newton_steps: int = option(12, "voxels: Gauss-Newton steps of maps and coils, fewer where the objective has settled", low=1, high=1000)
    inner_steps: int = option(8, "voxels: conjugate-gradient iterations of each", low=1, high=1000)
    strength: float | None = option(
        None, "voxels: λ of joint total variation of the maps, for noise of unit variance; auto: held-out", low=0.0
    )
    rate_strength: float | None = option(
        None,
        "voxels: λ of a decay rate's own total variation, over the rate's propagated noise; auto: held-out, after the other λ",
        low=0.0,
    )
    smoothness: float = option(10.0, "voxels: weight of the squared gradients of off-resonance and B", low=0.0)
    coil_prior: float = option(0.001, "voxels: weight of the coils' prior over the data's mean curvature", low=1e-9, high=1e9)


class Lorein(FieldBlocks[LoreinSettings]):
    """Both blocks, as voxels or as fields.

    Attributes:
        fit: voxel-wise, to the low-rank block's images.
        joint: maps and coils of ``form=voxels`` once the low-rank block is done.
    """

    name = "lorein"
    Settings = LoreinSettings
    # Less is within what some ten thousand held-out samples scatter by; the default λ then stands.
    evidence = 0.02
    joint: JointMaps | None = None
    fit: ParameterFit

    @property
    def explicit(self) -> bool:
        """Whether the blocks are held voxel by voxel."""
        return self.settings.form == "voxels"

    @property
    def total_steps(self) -> int:
        """Steps of both blocks."""
        return self.settings.low_rank_steps + self.settings.newton_steps if self.explicit else super().total_steps

    @classmethod
    def candidates(cls, settings: LoreinSettings, problem: KSpaceProblem) -> list[Any]:
        """The first λ of the maps and, where the model has a rate, of the rate, unless they are set."""
        if settings.form != "voxels":
            return [settings]
        rates = problem.protocol is not None and any(p.name in RATES for p in signal_model(problem.protocol).parameters)
        strength = START if settings.strength is None else settings.strength
        rate = START_RATE if rates and settings.rate_strength is None else settings.rate_strength
        return [dataclasses.replace(settings, strength=strength, rate_strength=rate)]

    @classmethod
    def refinements(cls, settings: LoreinSettings, asked: LoreinSettings, tried: Sequence[Any], problem: KSpaceProblem) -> list[Any]:
        """The next λ above the best so far, then the next below, until both are known to be no better; then the same for a rate's λ."""
        if asked.form != "voxels":
            return []
        return rungs_beside(settings, asked, tried, {"strength": STRENGTHS, "rate_strength": STRENGTHS})

    def start(self, problem: KSpaceProblem, previous: Solver[LoreinSettings] | None = None) -> None:
        """See :class:`Solver`; every scan starts anew.

        Raises:
            SettingError: a setting that only the fields follow.
        """
        if not self.explicit:
            super().start(problem, previous)
            return
        for name, only in (("phase", "linear"), ("dc2", "subspace")):
            if getattr(self.settings, name) != only:
                raise SettingError(f"solver.{name}", f"{getattr(self.settings, name)!r} with form=voxels", "Add form=fields.")
        QuantitativeSolver.start(self, problem)
        self.block = LowRankBlock(self.term, self.sensitivities, self.settings.low_rank_strength, self.seed)
        self.bases, self.joint, self.settled = self.block.bases, None, False

    def start_beside(self, other: Solver[LoreinSettings]) -> None:
        """See :class:`Solver`; a fit that differs in the weights of the maps goes on from where the other stands."""
        assert isinstance(other, Lorein)
        names = ("strength", "rate_strength", "smoothness", "coil_prior", "newton_steps", "inner_steps")
        alike = dataclasses.replace(self.settings, **{name: getattr(other.settings, name) for name in names}) == other.settings
        if not (self.explicit and alike and other.step >= other.settings.low_rank_steps):
            self.start(other.problem)
            return
        self._set_up_as(other)
        self.block, self.fit = other.block, other.fit
        self.joint, self.settled = None if other.joint is None else other.joint.with_weights(self._weights()), False
        self.bases = self.block.bases if self.joint is None else self.joint.bases()
        self.sensitivities = self.sensitivities if self.joint is None else self.joint.sensitivities
        self.step = self.settings.low_rank_steps

    def _update(self) -> None:
        if not self.explicit:
            super()._update()
        elif self.step < self.settings.low_rank_steps:
            self.block.step()
            self.bases = self.block.bases
            if self.step == self.settings.low_rank_steps - 1:
                self.fit = self.fit_object()
        elif not self.settled:
            self._newton()

    def _weights(self) -> JointWeights:
        settings = self.settings
        variation = START if settings.strength is None else settings.strength
        rate = START_RATE if settings.rate_strength is None else settings.rate_strength
        return JointWeights(variation, settings.smoothness, settings.coil_prior, rate)

    def _newton(self) -> None:
        if self.joint is None:
            settings, shape = self.settings, self.problem.shape
            extent = self.problem.field_of_view or tuple(float(n) for n in shape)
            self.joint = JointMaps(self.model, self.basis, self.term, self.sensitivities, extent, self._weights())
            self.joint.start(self.fit, self.block.bases, settings.mask_share)
        # Where a step hardly lowers the objective, the rest of them would not either.
        # One coil: its map is all phase, which the amplitude has already.
        self.settled = not self.joint.step(self.settings.inner_steps, coils=self.sensitivities.shape[0] > 1)
        self.sensitivities, self.bases = self.joint.sensitivities, self.joint.bases()

    def _store(self) -> None:
        if not self.explicit:
            super()._store()

    def maps(self) -> tuple[ParameterMap, ...]:
        """Maps of the parameter block."""
        if not self.explicit:
            return super().maps()
        if self.joint is None:
            return QuantitativeSolver.maps(self)
        values, amplitude = self.joint.values()
        mask = object_mask(self.bases, self.settings.mask_share)
        flat = mask.flatten()
        return parameter_maps(self.model, {name: v[flat] for name, v in values.items()}, amplitude[flat], mask)

    def objective(self) -> float | None:
        """Cost of the last step; None before there is one."""
        if self.explicit:
            return None if self.joint is None else self.joint.cost
        return super().objective()


SOLVER = Lorein
