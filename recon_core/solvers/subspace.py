"""What the subspace solvers share: basis from the scan itself, Gram operator, right-hand side, interpolation in time."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import torch
from torch import Tensor

from recon_core.calibration.temporal_basis import low_resolution_series, power_weighted, temporal_basis
from recon_core.operators.frames import FrameEncoding
from recon_core.operators.proximal import largest_eigenvalue
from recon_core.operators.toeplitz import SubspaceNormal, point_spread_spectrum
from recon_core.options import option
from recon_core.problem import ImageSeries, KSpaceProblem
from recon_core.solvers.base import Solver, interpolate_frames

_LARGEST_RATIO = 50.0
SELECTED_STRENGTHS = (1e-4, 2e-4, 4e-4)


@dataclasses.dataclass(frozen=True)
class SubspaceSettings:
    """Settings that all subspace solvers have."""

    rank: int = option(16, "temporal components K", low=1, high=128)
    steps: int = option(45, "proximal gradient steps", low=1, high=10_000)
    strength: float | None = option(
        None, "λ of spatial total variation of the second basis, relative to the largest adjoint magnitude; auto: held-out", low=0.0
    )
    strength_power: float = option(0.4, "λ of a weaker basis grows with (second singular value / its own) to this power", low=0.0, high=2.0)
    static_strength: float = option(5e-5, "λ of the first, nearly static basis", low=0.0)
    basis_width: int = option(32, "matrix of the low-resolution series that gives the temporal basis", low=8, high=256)
    basis_strength: float = option(0.06, "λ of that series' temporal total variation", low=0.0)
    basis_steps: int = option(40, "FISTA steps of that series", low=1, high=10_000)
    basis_coils: int = option(4, "virtual coils of that series", low=1, high=64)
    density_power: float = option(0.5, "samples weigh as their density compensation to this power", low=0.0, high=1.0)


T = TypeVar("T", bound=SubspaceSettings)


class SubspaceSolver(Solver[T]):
    """``d_t = Σ_k V_kt U_k``: V from the low-resolution series, U by the method.

    Attributes:
        temporal: float32 ``[K, frame]``, orthonormal rows V.
        singular: float32 ``[K]``, singular values of the series that gave V.
        normal: the data term's Gram operator on U.
        target: complex64 ``[K, (z,) y, x]``, its right-hand side.
        lipschitz: bound on the Gram operator's largest eigenvalue.
        bases: complex64 ``[K, (z,) y, x]``, U as it stands.
    """

    check_every = 5
    selection_matrix = 0.5
    temporal: Tensor
    singular: Tensor
    bases: Tensor

    @property
    def total_steps(self) -> int:
        """Proximal gradient steps."""
        return self.settings.steps

    @classmethod
    def candidates(cls, settings: T, problem: KSpaceProblem) -> list[Any]:
        """A few λ unless one is set."""
        if settings.strength is not None:
            return [settings]
        return [dataclasses.replace(settings, strength=value) for value in SELECTED_STRENGTHS]

    def start(self, problem: KSpaceProblem, previous: Solver[T] | None = None) -> None:
        """See :class:`Solver`; a previous fit of the same frames hands on its temporal basis and its bases."""
        settings = self.settings
        self.problem = problem
        self.step = 0
        weighted = power_weighted(problem, settings.density_power)
        encoding = FrameEncoding(weighted, self.engine)
        spectra = torch.stack([point_spread_spectrum(f.points, f.weights, problem.shape, self.engine) for f in encoding.frames])
        adjoint = encoding.backprojection(density=True)
        warm = isinstance(previous, SubspaceSolver) and previous.temporal.shape[1] == problem.n_frames
        if isinstance(previous, SubspaceSolver) and warm:
            self.temporal, self.singular = previous.temporal, previous.singular
        else:
            series = low_resolution_series(
                problem, settings.basis_width, settings.basis_strength, settings.basis_steps, settings.basis_coils, self.engine
            )
            filled = encoding.occupied
            times = problem.frame_times
            # A frame without readouts has only its neighbours to go by.
            series = interpolate_frames(series[filled], times[filled.cpu()], times)
            self.temporal, self.singular = temporal_basis(series, settings.rank)
        self.normal = SubspaceNormal(spectra, encoding.sensitivities, self.temporal)
        self.target = torch.tensordot(self.temporal.to(adjoint.dtype), adjoint, dims=1)
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(self.target.shape, dtype=torch.complex64, generator=generator).to(problem.device)
        self.lipschitz = 1.1 * largest_eigenvalue(self.normal, noise)
        self.bases = torch.zeros_like(self.target)
        if isinstance(previous, SubspaceSolver) and warm and previous.bases.shape == self.target.shape:
            self.bases = previous.bases.clone()

    def thresholds(self) -> Tensor:
        """λ of every basis in the units of the right-hand side, float32 ``[K]``: weak bases hold more aliasing than signal."""
        strength = SELECTED_STRENGTHS[1] if self.settings.strength is None else self.settings.strength
        largest = self.singular[: self.temporal.shape[0]].clamp_min(1e-12 * float(self.singular[0].clamp_min(1e-30)))
        second = largest[min(1, largest.shape[0] - 1)]
        growth = (second / largest).clamp(max=_LARGEST_RATIO).pow(self.settings.strength_power)
        out = strength * growth
        out[0] = self.settings.static_strength
        return out.to(self.target.device) * float(self.target.abs().max())

    def images(self, times: Tensor | None = None) -> ImageSeries:
        """See :class:`Solver`; between frames V is interpolated linearly."""
        frame_times = self.problem.frame_times
        times = frame_times if times is None else times
        coefficients = interpolate_frames(self.temporal.T, frame_times, times)
        images = torch.tensordot(coefficients.to(self.bases.dtype), self.bases, dims=1)
        latents = coefficients * (self.problem.n_frames**0.5)
        return ImageSeries(images, times, latents)
