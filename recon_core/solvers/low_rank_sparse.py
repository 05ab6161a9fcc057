"""L+S: low rank plus sparse (Otazo et al., Magn Reson Med 2015;73:1125); FISTA: Lin and Fessler, IEEE Trans Comput Imag 2019;5:17."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recon_core.operators.proximal import Fista
from recon_core.options import option
from recon_core.problem import ImageSeries, KSpaceProblem
from recon_core.solvers.base import Solver, interpolate_frames, rungs_beside
from recon_core.solvers.frame_series import SeriesDataTerm

LOW_RANK = (0.0002, 0.0006, 0.002, 0.006, 0.02, 0.06, 0.2)
SPARSE = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
SELECTED_LOW_RANK = LOW_RANK[2:4]
SELECTED_SPARSE = SPARSE[2:4]


@dataclasses.dataclass(frozen=True)
class LowRankSparseSettings:
    """Settings of :class:`LowRankSparse`."""

    steps: int = option(60, "FISTA iterations", low=1, high=10_000)
    low_rank: float | None = option(
        None, "λ_L of the nuclear norm, relative to the adjoint series' largest singular value; auto: held-out", low=0.0, high=10.0
    )
    sparse: float | None = option(
        None, "λ_S of the temporal spectrum's 1-norm, relative to the largest adjoint magnitude; auto: held-out", low=0.0, high=10.0
    )
    density_power: float = option(0.25, "samples weigh as their density compensation to this power", low=0.0, high=1.0)


class LowRankSparse(Solver[LowRankSparseSettings]):
    """``min ½‖W^½(E(L + S) − y)‖² + λ_L ‖L‖_* + λ_S ‖F_t S‖₁``; the image series is L + S.

    L is the frame × pixel matrix of the slowly varying background, S what changes and is sparse in its (unitary) temporal Fourier
    transform. Both take the same gradient, whose Lipschitz constant in the pair (L, S) is twice that of EᴴWE.
    """

    name = "low_rank_sparse"
    Settings = LowRankSparseSettings
    check_every = 10
    selection_matrix = 0.5
    fista: Fista
    cost: float | None = None

    @property
    def total_steps(self) -> int:
        """Iterations."""
        return self.settings.steps

    @classmethod
    def candidates(cls, settings: LowRankSparseSettings, problem: KSpaceProblem) -> list[Any]:
        """A grid of (λ_L, λ_S) over what is not set."""
        low_rank = SELECTED_LOW_RANK if settings.low_rank is None else (settings.low_rank,)
        sparse = SELECTED_SPARSE if settings.sparse is None else (settings.sparse,)
        return [dataclasses.replace(settings, low_rank=a, sparse=b) for a, b in itertools.product(low_rank, sparse)]

    @classmethod
    def refinements(
        cls, settings: LowRankSparseSettings, asked: LowRankSparseSettings, tried: Sequence[Any], problem: KSpaceProblem
    ) -> list[Any]:
        """Other λ, as long as one step up or down helps, of what is not set."""
        return rungs_beside(settings, asked, tried, {"low_rank": LOW_RANK, "sparse": SPARSE})

    def start(self, problem: KSpaceProblem, previous: Solver[LowRankSparseSettings] | None = None) -> None:
        """See :class:`Solver`; L starts as the time average and S as nothing, or both from a previous fit of the same shape."""
        settings = self.settings
        self.problem = problem
        self.step = 0
        self.cost = None
        self.data = SeriesDataTerm.of(problem, settings.density_power, self.engine, self.seed)
        target = self.data.target
        low_rank = SELECTED_LOW_RANK[1] if settings.low_rank is None else settings.low_rank
        sparse = SELECTED_SPARSE[1] if settings.sparse is None else settings.sparse
        self.weights = (low_rank * float(singular_values(target)[0][0]), sparse * float(target.abs().max()))
        if isinstance(previous, LowRankSparse) and previous.fista.x.shape[1:] == target.shape:
            self.fista = Fista(previous.fista.x.clone())
        else:
            self.fista = Fista(torch.stack([self.data.time_average().expand_as(target), torch.zeros_like(target)]))

    def _update(self) -> None:
        low_rank, sparse = self.fista.ahead
        gradient, value = self.data.gradient(low_rank + sparse)
        on_rank, on_sparse = self.weights
        nuclear = float(singular_values(low_rank)[0].sum())
        self.cost = value + on_rank * nuclear + on_sparse * float(temporal_spectrum(sparse).abs().sum(dtype=torch.float64))
        step = 0.5 / self.data.lipschitz if self.data.lipschitz > 0 else 0.0
        new = [
            threshold_singular_values(low_rank - step * gradient, on_rank * step),
            threshold_temporal_spectrum(sparse - step * gradient, on_sparse * step),
        ]
        self.fista.accept(torch.stack(new))

    def objective(self) -> float | None:
        """The cost where the last step set out."""
        return self.cost

    def images(self, times: Tensor | None = None) -> ImageSeries:
        """See :class:`Solver`; frames without data are interpolated in time."""
        frame_times = self.problem.frame_times
        times = frame_times if times is None else times
        return ImageSeries(interpolate_frames(self.fista.x.sum(0), frame_times, times, self.data.occupied), times)


def singular_values(series: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values of the frame × pixel matrix, falling (float64 ``[frame]``), and its left singular vectors (columns).

    By the small frame × frame Gram matrix: exact to about 3e-4 of the largest value, below any useful threshold.
    """
    flat = series.flatten(1)
    values, vectors = torch.linalg.eigh((flat @ flat.conj().T).to(torch.complex128))
    return values.flip(0).clamp_min(0).sqrt(), vectors.flip(1)


def threshold_singular_values(series: Tensor, threshold: float) -> Tensor:
    """Proximal map of ``threshold · ‖·‖_*`` of the frame × pixel matrix of a series ``[frame, …]``."""
    values, vectors = singular_values(series)
    shrunk = (values - threshold).clamp_min(0) / values.clamp_min(torch.finfo(values.dtype).tiny)
    filtered = (vectors * shrunk) @ vectors.conj().T
    return (filtered.to(series.dtype) @ series.flatten(1)).reshape(series.shape)


def temporal_spectrum(series: Tensor) -> Tensor:
    """Unitary Fourier transform along time."""
    return torch.fft.fft(series, dim=0, norm="ortho")


def threshold_temporal_spectrum(series: Tensor, threshold: float) -> Tensor:
    """Proximal map of ``threshold · ‖F_t ·‖₁`` of a series ``[frame, …]``: complex soft thresholding."""
    spectrum = temporal_spectrum(series)
    shrunk = spectrum * (1 - threshold / spectrum.abs().clamp_min(1e-30)).clamp_min(0)
    return torch.fft.ifft(shrunk, dim=0, norm="ortho")


SOLVER = LowRankSparse
