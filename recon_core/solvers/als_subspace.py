"""Alternating least squares on both factors of a low-rank series; no network and no sparsity: what they must add to."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recon_core.operators.frames import FrameSamples, NufftOptions
from recon_core.operators.proximal import real_product
from recon_core.operators.temporal import TemporalSystem, coupled_coefficients, second_difference_bands, temporal_system
from recon_core.options import option
from recon_core.problem import KSpaceProblem
from recon_core.solvers.base import Solver, rungs_beside
from recon_core.solvers.subspace import SubspaceSettings, SubspaceSolver

STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
SELECTED_STRENGTHS = STRENGTHS[1:4]
SMOOTHNESSES = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
SMOOTHNESS = 0.1


@dataclasses.dataclass(frozen=True)
class AlsSubspaceSettings(SubspaceSettings):
    """Settings of :class:`AlsSubspace`."""

    rank: int = option(16, "temporal components K", low=1, high=128)
    steps: int = option(8, "rounds of U and V", low=1, high=10_000)
    strength: float | None = option(
        None, "damping of the bases, relative to the Gram operator's largest eigenvalue; auto: held-out", low=0.0
    )
    static_strength: float = option(1e-4, "the same of the first, nearly static basis", low=0.0)
    inner: int = option(10, "conjugate-gradient iterations on U in a round", low=1, high=1000)
    smoothness: float | None = option(
        None, "weight of V's squared second differences, relative to the mean diagonal of a frame's normal matrix; auto: held-out", low=0.0
    )


class AlsSubspace(SubspaceSolver[AlsSubspaceSettings]):
    """``Σ_t ‖W^½(E_t Σ_k V_kt U_k − y_t)‖² + Σ_k δ_k ‖U_k‖² + μ ‖D²V‖²``, by turns in U and V.

    U by conjugate gradients on the K×K Toeplitz form, V in closed form. Both lower the same cost. The first round keeps the scan's own V.
    """

    name = "als_subspace"
    off_resonance = False
    Settings = AlsSubspaceSettings
    check_every = 1
    frames: Sequence[FrameSamples]
    spectra: Tensor | None

    @classmethod
    def candidates(cls, settings: AlsSubspaceSettings, problem: KSpaceProblem) -> list[Any]:
        """A few dampings unless one is set, at the middle weight of V's smoothness unless that is set."""
        settings = dataclasses.replace(settings, smoothness=_smoothness(settings))
        if settings.strength is not None:
            return [settings]
        return [dataclasses.replace(settings, strength=value) for value in SELECTED_STRENGTHS]

    @classmethod
    def refinements(
        cls, settings: AlsSubspaceSettings, asked: AlsSubspaceSettings, tried: Sequence[Any], problem: KSpaceProblem
    ) -> list[Any]:
        """Other dampings, then other weights of V's smoothness, as long as one step up or down helps, unless they are set."""
        return rungs_beside(settings, asked, tried, {"strength": STRENGTHS, "smoothness": SMOOTHNESSES})

    def start(self, problem: KSpaceProblem, previous: Solver[AlsSubspaceSettings] | None = None) -> None:
        """See :class:`SubspaceSolver`."""
        super().start(problem, previous)
        self.first = (self.temporal, self.normal, self.target)
        self._restart()

    def start_beside(self, other: Solver[AlsSubspaceSettings]) -> None:
        """See :class:`SubspaceSolver`; from the V that the other began with."""
        super().start_beside(other)
        assert isinstance(other, AlsSubspace)
        if self.normal is other.normal:
            self.frames, self.spectra, self.first = other.frames, other.spectra, other.first
            self.temporal, self.normal, self.target = other.first
            self._restart()

    def _restart(self) -> None:
        settings = self.settings
        damping = torch.full((self.temporal.shape[0],), SELECTED_STRENGTHS[1] if settings.strength is None else settings.strength)
        damping[0] = settings.static_strength
        self.damping = (damping * self.lipschitz).to(self.target.device).reshape(-1, *[1] * self.problem.dim)
        self.bands = second_difference_bands(self.problem.n_frames)
        self.weight: float | None = None
        self.cost: float | None = None

    def _set_up(self, frames: Sequence[FrameSamples], spectra: Tensor | None, sensitivities: Tensor) -> None:
        super()._set_up(frames, spectra, sensitivities)
        # V changes: what its Gram operator and right-hand side are made of stays.
        self.frames, self.spectra = frames, spectra

    def _update(self) -> None:
        if bool(self.bases.any()):
            self._update_temporal(self._system())
            self._set_up(self.frames, self.spectra, self.normal.sensitivities)
        misfit = self._update_bases()
        self.cost = misfit + self._roughness()

    def _system(self) -> TemporalSystem:
        options = NufftOptions(self.engine, cartesian=self.problem.cartesian)
        return temporal_system(self.frames, self.normal.sensitivities, self.bases, options)

    def _update_temporal(self, system: TemporalSystem) -> None:
        """V of least cost at this U; the weight of its smoothness is set at the first time, so that all rounds share one cost."""
        rank = self.temporal.shape[0]
        if self.weight is None:
            self.weight = _smoothness(self.settings) * float(system.normal.diagonal(dim1=1, dim2=2).mean())
        tie = self.weight * torch.eye(rank, dtype=torch.float64)
        found = coupled_coefficients(system.normal, system.target, self.bands, tie)
        self.temporal = found.T.to(self.temporal)

    def _roughness(self) -> float:
        if self.weight is None or self.problem.n_frames < 3:
            return 0.0
        return self.weight * float(self.temporal.double().diff(n=2, dim=1).square().sum())

    def _damped(self, bases: Tensor) -> Tensor:
        return self.normal(bases) + self.damping * bases

    def _update_bases(self) -> float:
        """Conjugate gradients on U from where it is.

        Returns:
            The cost's terms in U, without the samples' own energy.
        """
        x = self.bases
        residual = self.target - self._damped(x) if bool(x.any()) else self.target.clone()
        direction, energy = residual.clone(), real_product(residual, residual)
        for _ in range(self.settings.inner):
            if not energy > 0:
                break
            image = self._damped(direction)
            step = energy / real_product(direction, image)
            x = x + step * direction
            residual = residual - step * image
            following = real_product(residual, residual)
            direction = residual + (following / energy) * direction
            energy = following
        self.bases = x
        return -real_product(x, self.target + residual)

    def objective(self) -> float | None:
        """Cost of the last round, less the energy of the samples (hence negative); V's roughness counts from the second round on."""
        return self.cost


def _smoothness(settings: AlsSubspaceSettings) -> float:
    return SMOOTHNESS if settings.smoothness is None else settings.smoothness


SOLVER = AlsSubspace
