"""What the solvers of multi-contrast protocols share: subspace, data term, coefficients to images and maps."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import torch
from torch import Tensor

from recon_core.calibration.signal_subspace import OFF_RESONANCE_RANGE, RANK, signal_subspace
from recon_core.errors import DataError
from recon_core.operators.contrasts import ContrastTerm, HybridSamples
from recon_core.options import option
from recon_core.parameter_fit import MASK_SHARE, STEPS, ParameterFit, fit_maps, fit_parameters, object_mask
from recon_core.problem import ImageSeries, KSpaceProblem
from recon_core.signal_models import ParameterMap, signal_model
from recon_core.solvers.base import Solver


@dataclasses.dataclass(frozen=True)
class QuantitativeSettings:
    """Settings that all solvers of a protocol have."""

    rank: int | None = option(RANK, "temporal components K (paper: 15); auto: as many as hold 99.99 % of simulated signals' energy", low=1)
    off_resonance: float = option(OFF_RESONANCE_RANGE, "largest off-resonance of the simulated signals", low=0.0, high=1000.0, unit="Hz")
    mask_share: float = option(MASK_SHARE, "voxels below this share of the 99th percentile are not fitted and read 0", low=0.0, high=1.0)
    fit_steps: int = option(STEPS, "steps of the voxel-wise fit", low=1, high=1000)
    negative_rates: bool = option(False, "whether noise may drive a decay's rate below zero (means over voxels are then not biased)")


T = TypeVar("T", bound=QuantitativeSettings)


class QuantitativeSolver(Solver[T]):
    """``m_t = Σ_k Φ_tk U_k``: Φ from the protocol's simulated signals, U by the method.

    Attributes:
        basis: complex64 ``[contrast, K]``, Φ.
        singular: float32 ``[K]``, singular values of the simulated signals, the first 1.
        term: the data term on U.
        sensitivities: complex64 ``[coil, (z,) y, x]``.
        bases: complex64 ``[K, (z,) y, x]``, U as it stands.
    """

    quantitative = True
    off_resonance = False
    bases: Tensor

    def start(self, problem: KSpaceProblem, previous: Solver[T] | None = None) -> None:
        """See :class:`Solver`.

        Raises:
            DataError: the problem has no protocol, no maps, or not whole Cartesian lines.
        """
        if problem.protocol is None or problem.sensitivities is None:
            missing = "protocol" if problem.protocol is None else "sensitivities"
            raise DataError(
                missing, f"{self.name} needs one" if missing == "protocol" else "missing", "Calibrate a multi-contrast problem."
            )
        self.problem = problem
        self.step = 0
        self.model = signal_model(problem.protocol, self.settings.negative_rates)
        subspace = signal_subspace(problem.protocol, self.settings.rank, self.settings.off_resonance)
        self.basis, self.singular = subspace.basis.to(problem.device), subspace.singular.to(problem.device)
        self.kept = subspace.energy
        self.data = HybridSamples.of(problem)
        self.term = ContrastTerm(self.data, self.basis)
        self.sensitivities = problem.sensitivities

    def _set_up_as(self, other: QuantitativeSolver[Any]) -> None:
        """Set up on the problem of another fit, sharing subspace and data term where the settings agree."""
        if (self.settings.rank, self.settings.off_resonance) != (other.settings.rank, other.settings.off_resonance):
            QuantitativeSolver.start(self, other.problem)
            return
        assert other.problem.protocol is not None
        self.problem, self.step, self.kept = other.problem, 0, other.kept
        self.model = signal_model(other.problem.protocol, self.settings.negative_rates)
        self.basis, self.singular, self.data, self.term = other.basis, other.singular, other.data, other.term
        assert other.problem.sensitivities is not None
        self.sensitivities = other.problem.sensitivities

    def images(self, times: Tensor | None = None) -> ImageSeries:
        """Weighted images of contrasts (``times`` are their numbers; there is nothing between two contrasts)."""
        everything = self.problem.frame_times
        times = everything if times is None else times
        rows = times.round().to(torch.int64)
        if bool((rows.to(times.dtype) != times).any()) or int(rows.min()) < 0 or int(rows.max()) >= self.problem.n_frames:
            raise DataError("times", f"{times.tolist()[:3]} …", f"Give contrast numbers, 0 to {self.problem.n_frames - 1}.")
        return ImageSeries(torch.tensordot(self.basis[rows.to(self.basis.device)], self.bases, dims=1), times, notes=self._notes())

    def _notes(self) -> list[str]:
        return [f"{self.basis.shape[1]} temporal components hold {100 * self.kept:.3f} % of simulated signals"]

    def maps(self) -> tuple[ParameterMap, ...]:
        """Voxel-wise fit to the coefficients."""
        mask = object_mask(self.bases, self.settings.mask_share)
        return fit_maps(self.model, self.bases, self.basis, mask, self.settings.fit_steps)

    def fit_object(self) -> ParameterFit:
        """Fit of the object's voxels; the others hold 1 and no amplitude, and are not used."""
        mask = object_mask(self.bases, self.settings.mask_share).flatten()
        mask = mask if bool(mask.any()) else torch.ones_like(mask)
        found = fit_parameters(self.model, self.bases.flatten(1)[:, mask], self.basis, self.settings.fit_steps)

        def placed(flat: Tensor, elsewhere: float) -> Tensor:
            whole = torch.full(mask.shape, elsewhere, dtype=flat.dtype, device=flat.device)
            whole[mask] = flat
            return whole

        values = {name: placed(value, 1.0) for name, value in found.values.items()}
        return ParameterFit(values, placed(found.amplitude, 0.0), placed(found.residual, 0.0))
