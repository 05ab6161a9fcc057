"""What the subspace solvers share: basis from the scan itself, Gram operator, right-hand side, interpolation in time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from recon_core.calibration.temporal_basis import (
    joined_frames,
    low_resolution_series,
    orthonormal_rows,
    power_weighted,
    temporal_basis,
)
from recon_core.operators.frames import (
    FrameSamples,
    NufftOptions,
    occupied_frames,
    required_sensitivities,
    spectra_of,
    subspace_backprojection,
    subspace_normal,
)
from recon_core.operators.off_resonance import SegmentedSubspaceNormal, segments_of
from recon_core.operators.proximal import largest_eigenvalue
from recon_core.operators.subspace_normal import FrameSubspaceNormal, SubspaceNormal, subspace_form
from recon_core.options import option
from recon_core.problem import ImageSeries, KSpaceProblem
from recon_core.solvers.base import Solver, interpolate_frames

BASIS_STRENGTHS = (0.06, 0.01)
"""λ of the low-resolution series' temporal total variation: the first unless another is set or chosen."""
RANKS = (24, 40, 64)
"""Temporal components K, in the same way."""
_POWER_ITERATIONS = 6
# Settings of which neither basis nor Gram operator depend.
_OF_THE_FIT = ("steps", "strength", "static_strength")


@dataclasses.dataclass(frozen=True)
class SubspaceSettings:
    """Settings that all subspace solvers have."""

    rank: int | None = option(RANKS[0], "temporal components K", low=1, high=128)
    steps: int = option(45, "proximal gradient steps", low=1, high=10_000)
    strength: float | None = option(None, "regularisation of the bases, relative to the largest adjoint magnitude; auto: held-out", low=0.0)
    static_strength: float = option(5e-5, "λ of spatial total variation of the first, nearly static basis", low=0.0)
    basis_width: int = option(32, "matrix of the low-resolution series that gives the temporal basis", low=8, high=256)
    basis_strength: float | None = option(0.06, "λ of that series' temporal total variation", low=0.0)
    basis_steps: int = option(40, "FISTA steps of that series", low=1, high=10_000)
    basis_frames: int = option(
        640, "frames of that series at most; of longer scans neighbouring ones are joined for it", low=8, high=100_000
    )
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
        low_resolution: the problem whose low-resolution series gave V, and this series.
    """

    check_every = 5
    selection_matrix = 0.5
    temporal: Tensor
    singular: Tensor
    bases: Tensor
    normal: SubspaceNormal | FrameSubspaceNormal | SegmentedSubspaceNormal
    target: Tensor
    lipschitz: float
    low_resolution: tuple[KSpaceProblem, Tensor] | None = None

    @property
    def total_steps(self) -> int:
        """Proximal gradient steps."""
        return self.settings.steps

    @property
    def density_power(self) -> float:
        """Power of the density compensation by which samples weigh."""
        return self.settings.density_power

    def start(self, problem: KSpaceProblem, previous: Solver[T] | None = None) -> None:
        """See :class:`Solver`; a previous fit of the same frames hands on its temporal basis and its bases."""
        self.problem = problem
        self.step = 0
        known = previous if isinstance(previous, SubspaceSolver) and previous.temporal.shape[1] == problem.n_frames else None
        frames = occupied_frames(power_weighted(problem, self.density_power))
        if known is None:
            self._find_basis()
        else:
            self.temporal, self.singular = known.temporal, known.singular
        sensitivities = required_sensitivities(problem)
        self.segments = segments_of(problem)
        spectra = None
        if self.segments is None:
            spectra = spectra_of(frames, problem.shape, self.engine)
        self._set_up(frames, spectra, sensitivities)
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(self.target.shape, dtype=torch.complex64, generator=generator).to(problem.device)
        self.lipschitz = 1.1 * largest_eigenvalue(self.normal, noise, _POWER_ITERATIONS)
        taken = known is not None and known.bases.shape == self.target.shape
        self.bases = known.bases.clone() if known is not None and taken else torch.zeros_like(self.target)

    def start_beside(self, other: Solver[T]) -> None:
        """See :class:`Solver`; shares basis, Gram operator and right-hand side where they are made in the same way."""
        self.problem = other.problem
        shared = [field.name for field in dataclasses.fields(SubspaceSettings) if field.name not in _OF_THE_FIT]
        different = {name for name in shared if getattr(self.settings, name) != getattr(other.settings, name)}
        if isinstance(other, SubspaceSolver) and different <= {"rank"}:
            self.low_resolution = other.low_resolution
        if not isinstance(other, SubspaceSolver) or different:
            super().start_beside(other)
            return
        if other.density_power != self.density_power:
            self.start(other.problem, other)
            self.bases = torch.zeros_like(self.target)
            return
        self.step, self.segments = 0, other.segments
        self.temporal, self.singular = other.temporal, other.singular
        self.normal, self.target, self.lipschitz = other.normal, other.target, other.lipschitz
        self.bases = torch.zeros_like(self.target)

    def _set_up(self, frames: Sequence[FrameSamples], spectra: Tensor | None, sensitivities: Tensor) -> None:
        """Gram operator and right-hand side of V as it stands; ``spectra`` of the frames on resonance, None off it."""
        if spectra is None:
            self.normal = subspace_normal(frames, sensitivities, self.temporal, self.segments, self.engine)
        else:
            self.normal = subspace_form(spectra, sensitivities, self.temporal)
        options = NufftOptions(self.engine, cartesian=self.problem.cartesian)
        self.target = subspace_backprojection(frames, sensitivities, self.temporal, options, self.segments)

    def _find_basis(self) -> None:
        """V from the low-resolution series."""
        if self.low_resolution is None or self.low_resolution[0] is not self.problem:
            self.low_resolution = self.problem, basis_series(self.problem, self.settings, self.engine)
        self.use_basis(*basis_from(self.low_resolution[1], self.problem, self.settings))

    def use_basis(self, temporal: Tensor, singular: Tensor) -> None:
        """Take a temporal basis with orthonormal rows, float32 ``[K, frame]``, and its singular values."""
        self.temporal, self.singular = temporal, singular

    def images(self, times: Tensor | None = None) -> ImageSeries:
        """See :class:`Solver`; between frames V is interpolated linearly."""
        frame_times = self.problem.frame_times
        times = frame_times if times is None else times
        coefficients = interpolate_frames(self.temporal.T, frame_times, times)
        images = torch.tensordot(coefficients.to(self.bases.dtype), self.bases, dims=1)
        latents = coefficients * (self.problem.n_frames**0.5)
        return ImageSeries(images, times, latents)


def basis_series(problem: KSpaceProblem, settings: SubspaceSettings, engine: str = "auto") -> Tensor:
    """The low-resolution series that gives V; of a long scan neighbouring frames are joined for it.

    Args:
        problem: whitened.
        settings: of which those that begin with ``basis_`` count.
        engine: NUFFT engine by name.

    Returns:
        complex64 ``[joined frame, (z,) y, x]``.

    Raises:
        DataError: no frame has a sample.
    """
    coarse = _joined(problem, settings)
    strength = BASIS_STRENGTHS[0] if settings.basis_strength is None else settings.basis_strength
    series = low_resolution_series(coarse, settings.basis_width, strength, settings.basis_steps, settings.basis_coils, engine)
    filled = torch.tensor([n for n, frame in enumerate(occupied_frames(coarse)) if frame.points.shape[0]])
    # A frame without readouts has only its neighbours to go by.
    return interpolate_frames(series[filled.to(series.device)], coarse.frame_times[filled], coarse.frame_times)


def basis_from(series: Tensor, problem: KSpaceProblem, settings: SubspaceSettings) -> tuple[Tensor, Tensor]:
    """V of all frames from the low-resolution series.

    Args:
        series: of :func:`basis_series`; pixels of several slices may stand side by side.
        problem: whose frames are meant.
        settings: as they were for the series.

    Returns:
        float32 ``[K, frame]`` with orthonormal rows, and the singular values, float32 ``[K]``.
    """
    found, singular = temporal_basis(series, settings.rank or RANKS[0])
    if series.shape[0] < problem.n_frames:
        times = _joined(problem, settings).frame_times
        found = orthonormal_rows(interpolate_frames(found.T, times, problem.frame_times).T)
    return found, singular


def _joined(problem: KSpaceProblem, settings: SubspaceSettings) -> KSpaceProblem:
    return joined_frames(problem, math.ceil(problem.n_frames / settings.basis_frames))
