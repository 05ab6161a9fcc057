"""What the newest readouts hold and the bases cannot show: their residual, gridded over a sliding window and added to the image.

Gridding a few readouts makes streaks in proportion to what is gridded. Of a residual that is little, so that positions which the model
has not seen come with far fewer of them than in gridding of the data.
"""

from __future__ import annotations

import math
from collections import deque

import torch
from torch import Tensor

from recon_core.online.measured import MeasuredFrame
from recon_core.online.tracker import Model
from recon_core.operators.toeplitz import ifft_crop

_DENSITY_BOX = 5
"""Points of k-space, an axis, over which the density of the window's samples is averaged: about the gap between neighbouring readouts."""
_FLOOR = 0.2
"""Share of fully sampled k-space's density that is added to it: where hardly anything was measured, nothing is made of it."""
_ENERGY_BOX = 5
_FRESH = 0.25
"""Share of the window that must be new before the residual is made again."""


class SlidingResidual:
    """The last readouts' misfit as an image.

    ``δ = g · F⁻¹ (F Σ_t (adjoint_t − T_t d_t)) / s``, d_t the model's image of frame t, s the density of the window's weighted samples in
    k-space. Where nothing but noise and streaks is left, g takes it away again: ``g = max(0, 1 − σ²/e)``, e the mean of |δ|² over
    neighbouring pixels and σ² = median |δ|² / ln 2, the variance of complex noise (a local Wiener filter: Lee, IEEE Trans Pattern Anal
    Mach Intell 1980;2:165).

    Args:
        sensitivities: complex64 ``[coil, (z,) y, x]``.
        readouts: readouts in the window, at least 1.
        coverage: share of k-space that so many cover, above 0.
    """

    def __init__(self, sensitivities: Tensor, readouts: int, coverage: float) -> None:
        self.sensitivities = sensitivities
        self.readouts = readouts
        self.coverage = coverage
        self._frames: deque[tuple[MeasuredFrame, Tensor]] = deque()
        self._fresh = 0
        self._made: Tensor | None = None

    def add(self, frames: list[MeasuredFrame], coefficients: Tensor) -> None:
        """Take frames, in order of time, with their V ``[frame, K]``."""
        self._frames.extend(zip(frames, coefficients.cpu().double(), strict=True))
        self._fresh += sum(frame.readouts for frame in frames)
        inside = sum(frame.readouts for frame, _ in self._frames)
        while len(self._frames) > 1 and inside - self._frames[0][0].readouts >= self.readouts:
            inside -= self._frames.popleft()[0].readouts

    def follow(self, move: Tensor) -> None:
        """The model changed: V of its bases goes to ``move V``, float64 ``[K new, K old]``."""
        self._frames = deque((frame, move @ row) for frame, row in self._frames)
        self._made = None

    def image(self, model: Model) -> Tensor:
        """δ, complex64 ``[(z,) y, x]``; the last one as long as little has come since.

        Args:
            model: to whose bases the V belong.
        """
        if self._made is None or self._fresh >= _FRESH * self.readouts:
            self._made = _shrunk(self._gridded(model))
            self._fresh = 0
        return self._made

    def _gridded(self, model: Model) -> Tensor:
        frames = [frame for frame, _ in self._frames]
        spectra = torch.stack([frame.spectrum for frame in frames])
        rows = torch.stack([row for _, row in self._frames], dim=1).to(spectra)
        shape = self.sensitivities.shape[1:]
        residual = torch.stack([frame.adjoint for frame in frames]).sum(0)
        seen = model.spectra.new_zeros((len(self.sensitivities), spectra.shape[1]))
        for k, kernel in enumerate((rows @ spectra).to(seen)):
            seen.addcmul_(model.spectra[:, k], kernel)
        images = ifft_crop(seen.unflatten(1, [2 * n for n in shape]), len(shape))
        residual = residual - (self.sensitivities.conj() * images).sum(0)
        density = spectra.sum(0).reshape([2 * n for n in shape])[tuple(slice(None, None, 2) for _ in shape)]
        density = _box_mean(density, _DENSITY_BOX).clamp_min(0)
        # The window fills only after the model's start: what is inside tells what full sampling would give.
        share = min(1.0, self.coverage * sum(frame.readouts for frame in frames) / self.readouts)
        density = density + (_FLOOR / share * density.mean()).clamp_min(1e-30)
        # On the undoubled grid, coils combined: maps are smooth, and so is the density.
        return torch.fft.ifftn(torch.fft.fftn(residual) / density)


def _shrunk(image: Tensor) -> Tensor:
    energy = image.real.square() + image.imag.square()
    noise = energy.median() / math.log(2)
    return image * (1 - noise / _box_mean(energy, _ENERGY_BOX).clamp_min(1e-30)).clamp_min(0)


def _box_mean(values: Tensor, width: int) -> Tensor:
    """Mean over ``width`` places along every axis, which goes round."""
    for axis in range(values.ndim):
        values = torch.stack([torch.roll(values, n - width // 2, axis) for n in range(width)]).mean(0)
    return values
