"""New frames against bases at hand: a K×K solve a frame, weakly tied to the frame before (a Kalman filter on V)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from recon_core.online.measured import MeasuredFrame
from recon_core.operators.toeplitz import pad_fft


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """Bases as published by the refinement, and what tracking needs of them.

    Attributes:
        bases: complex64 ``[K, (z,) y, x]``, U.
        spectra: complex64 ``[coil, K, point]``, :func:`coil_spectra` of the bases.
        products: float32 ``[pair, point]``, :func:`spectral_products` of them.
        last: float64 ``[K]``, V of the newest frame of the fit.
        innovation: float64 ``[K, K]``, covariance of V's change from one frame to the next.
        noise: residual variance a sample that the fit left, in units of the noise's (model error included).
        time: of the newest frame of the fit, seconds.
        version: counts from 1.
    """

    bases: Tensor
    spectra: Tensor
    products: Tensor
    last: Tensor
    innovation: Tensor
    noise: float
    time: float
    version: int

    @property
    def rank(self) -> int:
        """Number of bases."""
        return self.bases.shape[0]

    def grams(self, frames: list[MeasuredFrame]) -> tuple[Tensor, Tensor]:
        """Every frame's data term in V: normal matrices ``[frame, K, K]`` and right-hand sides ``[frame, K]``, float64 on the CPU."""
        spectra = torch.stack([frame.spectrum for frame in frames])
        packed = (spectra @ self.products.T).double().cpu()
        row, column = torch.triu_indices(self.rank, self.rank)
        normal = torch.empty((len(frames), self.rank, self.rank), dtype=torch.float64)
        normal[:, row, column] = packed
        normal[:, column, row] = packed
        adjoint = torch.stack([frame.adjoint for frame in frames]).flatten(1)
        # Re⟨U_k, adjoint⟩, real numbers only: V is real.
        target = torch.view_as_real(adjoint).flatten(1) @ torch.view_as_real(self.bases).reshape(self.rank, -1).T
        return normal, target.double().cpu()

    def series(self, coefficients: Tensor) -> Tensor:
        """Images ``[frame, (z,) y, x]`` of V ``[frame, K]``."""
        return torch.tensordot(coefficients.to(self.bases), self.bases, dims=1)


def coil_spectra(bases: Tensor, sensitivities: Tensor) -> Tensor:
    """Spectra of every coil times every basis on the doubled grid.

    Args:
        bases: complex64 ``[K, (z,) y, x]``.
        sensitivities: complex64 ``[coil, (z,) y, x]``.

    Returns:
        complex64 ``[coil, K, point]``.
    """
    return torch.stack([pad_fft(coil * bases, bases.ndim - 1).flatten(1) for coil in sensitivities])


def spectral_products(spectra: Tensor) -> Tensor:
    """``Re Σ_c conj(Û_kc) Û_lc`` on the doubled grid over its size, k ≤ l.

    A frame's K×K normal matrix is their product with its point-spread spectrum: exact, and no transform a frame.

    Args:
        spectra: complex64 ``[coil, K, point]``, Û.

    Returns:
        float32 ``[pair, point]``, pairs as :func:`torch.triu_indices` has them.
    """
    rank, points = spectra.shape[1:]
    out = torch.zeros((rank * (rank + 1) // 2, points), dtype=torch.float32, device=spectra.device)
    for coil in spectra:
        real, imaginary = coil.real.contiguous(), coil.imag.contiguous()
        first = 0
        for k in range(rank):
            rows = out[first : first + rank - k]
            rows.addcmul_(real[k:], real[k]).addcmul_(imaginary[k:], imaginary[k])
            first += rank - k
    return out / points


def nearest(old: Model, new: Model) -> Tensor:
    """float64 ``[K, K]``, which takes any V of the old bases to where its image is nearest in the new ones."""
    flat_old = torch.view_as_real(old.bases).reshape(old.rank, -1)
    flat_new = torch.view_as_real(new.bases).reshape(new.rank, -1)
    gram = (flat_new @ flat_new.T).double().cpu()
    cross = (flat_new @ flat_old.T).double().cpu()
    ridge = 1e-9 * gram.diagonal().mean() * torch.eye(new.rank, dtype=torch.float64)
    return torch.linalg.solve(gram + ridge, cross)


@dataclasses.dataclass(frozen=True, eq=False)
class Tracked:
    """Solved frames.

    Attributes:
        coefficients: float32 ``[frame, K]``, V.
        images: complex64 ``[frame, (z,) y, x]``.
        errors: float64 ``[frame]``, mean weighted |residual|² of the frame's samples against what was predicted before any of them was
            used, over the noise variance.
    """

    coefficients: Tensor
    images: Tensor
    errors: Tensor


class Tracker:
    """Follows V frame by frame (Kalman, J Basic Eng 1960;82:35; random walk, information form).

    Args:
        model: the first model.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._state = model.last.clone()
        self._covariance = model.innovation * 1.0

    def follow(self, model: Model) -> Tensor:
        """Go on with other bases: V moves to where its image is nearest in them.

        Args:
            model: newer bases of the same scan.

        Returns:
            :func:`nearest` of the old and the new.
        """
        new = model
        move = nearest(self.model, new)
        self._state = move @ self._state
        # What the new bases can show and the old ones could not is unknown: let the next frames tell.
        self._covariance = move @ self._covariance @ move.T + 4 * new.innovation
        self.model = new
        return move

    def solve(self, frames: list[MeasuredFrame]) -> Tracked:
        """Track frames in order of time."""
        model = self.model
        normal, target = model.grams(frames)
        coefficients = torch.empty((len(frames), model.rank), dtype=torch.float64)
        errors = torch.empty(len(frames), dtype=torch.float64)
        floor = 1e-9 * model.innovation.trace() / model.rank * torch.eye(model.rank, dtype=torch.float64)
        for n, (frame, matrix, right) in enumerate(zip(frames, normal, target, strict=True)):
            before = self._state
            misfit = frame.energy - 2 * float(before @ right) + float(before @ matrix @ before)
            errors[n] = misfit / max(frame.weight, 1e-30)
            predicted = self._covariance + frame.steps * model.innovation + floor
            prior = torch.linalg.inv(predicted)
            # Complex noise of variance σ² a sample: the log-likelihood's curvature in real V is 2/σ² times the normal matrix.
            gain = 2 / max(model.noise, 1e-12)
            self._covariance = torch.linalg.inv(prior + gain * matrix)
            self._state = before + self._covariance @ (gain * (right - matrix @ before))
            coefficients[n] = self._state
        kept = coefficients.float()
        return Tracked(kept, model.series(kept.to(model.bases.device)), errors)
