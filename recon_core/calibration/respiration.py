"""Respiratory signal of a stack of stars: principal components of its projections onto z (Feng et al., Magn Reson Med 2016;75:775)."""

from __future__ import annotations

import torch
from torch import Tensor

from recon_core.errors import DataError

BAND = (0.1, 0.5)
"""Hz in which people breathe."""

_COMPONENTS = 6
_SHORTEST = 10.0  # s


def respiratory_signal(profiles: Tensor, times: Tensor) -> tuple[Tensor, float]:
    """The component that breathes most.

    Magnitudes of all coils and planes are stacked and every spoke's are divided by their sum, since contrast agent multiplies them; what
    still changes more slowly than breathing is taken away. Of the principal components the one with most power in :data:`BAND` is kept.

    Args:
        profiles: complex64 ``[coil, spoke, z]`` of :func:`recon_core.stack_of_stars.navigator_profiles`.
        times: float64 ``[spoke]``, s, rising.

    Returns:
        float32 ``[spoke]``, centred and of unit variance, and the share of its power in the band.

    Raises:
        DataError: fewer than 8 spokes, or a scan too short for two breaths.
    """
    count = profiles.shape[1]
    span = float(times[-1] - times[0])
    if count < 8 or span < _SHORTEST:
        raise DataError("spokes", f"{count} in {span:.3g} s", f"A respiratory signal needs at least 8 spokes and {_SHORTEST:g} s.")
    even = torch.linspace(float(times[0]), float(times[-1]), count, dtype=torch.float64)
    stacked = profiles.abs().double().permute(1, 0, 2).flatten(1)
    stacked = stacked / stacked.sum(1, keepdim=True).clamp_min(1e-300)
    series = _high_pass(_interpolate(stacked, times, even), span)
    vectors, values, _ = torch.linalg.svd(series, full_matrices=False)
    kept = int((values > 1e-6 * values[0].clamp_min(1e-300)).sum().clamp(1, _COMPONENTS))
    components = vectors[:, :kept]
    power = torch.fft.rfft(components, dim=0).abs().square()
    frequency = torch.arange(power.shape[0]) / (span * count / (count - 1))
    inside = (frequency >= BAND[0]) & (frequency <= BAND[1])
    share = power[inside].sum(0) / power.sum(0).clamp_min(1e-300)
    # Not the largest share: a weak component can breathe purely by chance.
    best = int((share * values[:kept] ** 2).argmax())
    signal = _interpolate(components[:, best : best + 1], even, times)[:, 0]
    signal = signal - signal.mean()
    return (signal / signal.std().clamp_min(1e-300)).float(), float(share[best])


def _high_pass(series: Tensor, span: float) -> Tensor:
    """Take away all that is slower than the slowest breath: a cosine series up to half its frequency."""
    count = series.shape[0]
    terms = 1 + int(2 * span * 0.5 * BAND[0])
    place = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    slow = torch.cos(torch.pi * place[:, None] * torch.arange(terms))
    basis, _ = torch.linalg.qr(slow)
    return series - basis @ (basis.T @ series)


def _interpolate(values: Tensor, times: Tensor, wanted: Tensor) -> Tensor:
    right = torch.searchsorted(times, wanted).clamp(1, times.shape[0] - 1)
    left = right - 1
    share = ((wanted - times[left]) / (times[right] - times[left]).clamp_min(1e-12)).clamp(0, 1)[:, None]
    return values[left] * (1 - share) + values[right] * share
