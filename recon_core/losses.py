"""Misfits and penalties that several methods share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def relative_l2(residual: Tensor, predicted: Tensor, floor: float) -> Tensor:
    """Relative L2 loss of complex samples (Lehtinen et al., ICML 2018; Feng et al., stINR, eq. 8), real and imaginary part apart.

    Args:
        residual: predicted − measured, complex.
        predicted: same shape; counts as a constant.
        floor: ε, added to the squares of the denominator.

    Returns:
        The mean over samples, summed over the two parts.
    """
    known = torch.view_as_real(predicted.detach())
    return (torch.view_as_real(residual).square() / (known.square() + floor)).mean() * 2


def high_dynamic_range(residual: Tensor, predicted: Tensor, epsilon: float) -> Tensor:
    """HDR loss (Huang et al., NIK, IPMI 2023): the mean of |residual|² / (|predicted| + ε)², its denominator a constant."""
    return (residual.abs().square() / (predicted.detach().abs() + epsilon).square()).mean()


def temporal_variation(images: Tensor) -> Tensor:
    """Mean magnitude of the differences between neighbouring frames of ``[frame, …]``; 0 for one frame."""
    if images.shape[0] < 2:
        return torch.zeros((), device=images.device)
    return (images[1:] - images[:-1]).abs().mean()


class _SmoothNuclear(torch.autograd.Function):
    """``tr (X Xᴴ + ε² I)^½`` and its gradient ``(X Xᴴ + ε² I)^−½ X``, without a derivative through eigenvectors."""

    @staticmethod
    def forward(ctx: Any, series: Tensor, epsilon: float) -> Tensor:
        wide = series.to(torch.complex128)
        values, vectors = torch.linalg.eigh(wide @ wide.conj().T)
        roots = (values.clamp_min(0) + epsilon**2).sqrt()
        ctx.save_for_backward(((vectors / roots) @ vectors.conj().T).to(series.dtype), series)
        return (roots - epsilon).sum().to(series.real.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        inverse, series = ctx.saved_tensors
        return gradients[0] * (inverse @ series), None


def smooth_nuclear_norm(series: Tensor, epsilon: float) -> Tensor:
    """Nuclear norm of the frame × pixel matrix with rounded corners: Σ (√(σ² + ε²) − ε).

    The plain norm has no gradient at rank-deficient matrices and an unbounded one nearby (Lingala et al., k-t SLR, IEEE TMI 2011;30:1042);
    here singular values below ε shrink gently.

    Args:
        series: complex ``[frame, …]``; fewer frames than pixels.
        epsilon: ε, above 0, in the series' units.
    """
    out: Tensor = _SmoothNuclear.apply(series.flatten(1), epsilon)
    return out
