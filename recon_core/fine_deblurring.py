"""Deblurring on a grid twice as fine as the image's, of an object that is nearly real but for a known phase.

Near air the field changes so much within a pixel that no map on the image's grid describes the blur, and that it turns part of the
object's k-space out of what an arm measures. The finer grid follows the one. For the other, a magnetisation that is real right after the
excitation, but for the smooth phase of coils and transmitter, tells at −k what is missing at k (Noll et al., IEEE Trans Med Imaging
1991;10:154): its imaginary part is damped more than its real one. What imaginary part the data ask for all the same is a fault of the
map, and mends it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recon_core.deblurring import CentreOut, gaussian
from recon_core.operators.off_resonance import TOLERANCE
from recon_core.problem import resampled
from recon_core.time_segments import segment_basis

_FINER = 2
_FRAMES_AT_ONCE = 8
_DAMPING = 0.01
"""Of the real part, against the largest eigenvalue, which is 1."""
_IMAGINARY = (0.03, 0.15)
"""The same of the imaginary part, before and after the map was mended."""
_STEPS = (6, 6)
_SMOOTHING = 1.4
"""Standard deviation, fine pixels, of what is added to the map."""
_FAINT = 0.03
_SHARE = 0.7
"""Of the field that the phase at the echo time would make: most of the signal, but not all, is measured early in an arm."""


class FineBlur:
    """k-space of frames from an object on the fine grid, in the disc that the arms fill; A Aᴴ = 1 on resonance.

    Args:
        timing: when each |k| was passed.
        echo_time: s from the excitation to k = 0.
        field: float32 ``[frame, 2y, 2x]``, Hz.
        static: float32 ``[2y, 2x]``, phase of coils and transmitter.
    """

    def __init__(self, timing: CentreOut, echo_time: float, field: Tensor, static: Tensor) -> None:
        self.shape = timing.place.shape
        basis = segment_basis(timing.sample_times + echo_time, max(1.0, float(field.abs().max())), TOLERANCE)
        last = len(timing.sample_times) - 1
        below = timing.place.floor().long().clamp_max(last - 1)
        part = (timing.place - below).to(torch.complex64)
        self.measured = timing.place < last
        self.in_frequency = torch.lerp(basis.in_time[:, below], basis.in_time[:, below + 1], part) * self.measured
        self.in_space = basis.in_space(field) * torch.polar(torch.ones_like(static), static)
        self._rows, self._columns = (torch.fft.fftfreq(n, 1 / n).round().long() % (_FINER * n) for n in self.shape)

    def transform(self, fine: Tensor) -> Tensor:
        """k-space of fine images ``[..., 2y, 2x]``, complex64 ``[..., y, x]``; k = 0 at index 0."""
        spectrum = torch.fft.fft2(torch.fft.ifftshift(fine, dim=(-2, -1)), norm="ortho")
        return spectrum[..., self._rows[:, None], self._columns]

    def _adjoint_transform(self, spectrum: Tensor) -> Tensor:
        wide = spectrum.new_zeros((*spectrum.shape[:-2], *(_FINER * n for n in self.shape)))
        wide[..., self._rows[:, None], self._columns] = spectrum
        return torch.fft.fftshift(torch.fft.ifft2(wide, norm="ortho"), dim=(-2, -1))

    def forward(self, fine: Tensor) -> Tensor:
        """Objects ``[frame, 2y, 2x]`` to k-space of blurred images ``[frame, y, x]``."""
        parts = zip(self.in_frequency, self.in_space, strict=True)
        return torch.stack([h * self.transform(c * fine) for h, c in parts]).sum(0)

    def adjoint(self, spectrum: Tensor) -> Tensor:
        """Adjoint of :meth:`forward`."""
        parts = zip(self.in_frequency, self.in_space, strict=True)
        return torch.stack([c.conj() * self._adjoint_transform(h.conj() * spectrum) for h, c in parts]).sum(0)

    def solve(self, images: Tensor, imaginary: float, steps: int) -> Tensor:
        """The object of blurred images ``[frame, y, x]``, complex64 ``[frame, 2y, 2x]``, by conjugate gradients, frame by frame."""
        residual = self.adjoint(torch.fft.fft2(torch.fft.ifftshift(images, dim=(-2, -1)), norm="ortho"))

        def damped(x: Tensor) -> Tensor:
            return torch.complex(_DAMPING * x.real, imaginary * x.imag)

        def dot(a: Tensor, b: Tensor) -> Tensor:
            return (a.conj() * b).real.sum((1, 2), keepdim=True)

        # Apart from the data's share, which is at most 1, the parts have eigenvalues of their own.
        scale = torch.tensor([1 / (1 + _DAMPING), 1 / (1 + imaginary)])
        x, direction = torch.zeros_like(residual), torch.zeros_like(residual)
        energy = residual.new_ones((len(images), 1, 1)).real
        for _ in range(steps):
            conditioned = torch.complex(scale[0] * residual.real, scale[1] * residual.imag)
            new = dot(residual, conditioned)
            direction = conditioned + (new / energy if bool(direction.any()) else 0.0) * direction
            curved = self.adjoint(self.forward(direction)) + damped(direction)
            length = new / dot(direction, curved).clamp_min(1e-30)
            x, residual, energy = x + length * direction, residual - length * curved, new.clamp_min(1e-30)
        return x


def sharpened(images: Tensor, timing: CentreOut, echo_time: float, field: Tensor, static: Tensor) -> tuple[Tensor, Tensor]:
    """Deblur with a map, mend the map by the phase that the object then has, deblur with the mended one.

    Args:
        images: complex64 ``[frame, y, x]``, reconstructed as if on resonance.
        timing: when each |k| was passed.
        echo_time: s from the excitation to k = 0.
        field: float32 ``[frame, y, x]``, Hz.
        static: float32 ``[y, x]``, phase of coils and transmitter, rad.

    Returns:
        Images at the echo time, complex64 ``[frame, y, x]``, and the mended maps float32 ``[frame, y, x]``, Hz.
    """
    limit = 0.5 / echo_time
    wide = tuple(_FINER * n for n in timing.place.shape)
    fixed = resampled(static, wide)
    sharp, maps = [], []
    for part, own in zip(images.split(_FRAMES_AT_ONCE), field.split(_FRAMES_AT_ONCE), strict=True):
        fine = resampled(own, wide)
        first = FineBlur(timing, echo_time, fine, fixed).solve(part, _IMAGINARY[0], _STEPS[0])
        fine = (fine + _correction(first, echo_time)).clamp(-limit, limit)
        blur = FineBlur(timing, echo_time, fine, fixed)
        phase = fixed + 2 * math.pi * echo_time * fine
        found = blur.solve(part, _IMAGINARY[1], _STEPS[1]) * torch.polar(torch.ones_like(phase), phase)
        # Damping makes everything a little fainter; beyond the disc stays what the solver made of it.
        old = torch.fft.fft2(torch.fft.ifftshift(part, dim=(-2, -1)), norm="ortho")
        spectrum = torch.where(blur.measured, (1 + _DAMPING) * blur.transform(found), old)
        sharp.append(torch.fft.fftshift(torch.fft.ifft2(spectrum, norm="ortho"), dim=(-2, -1)))
        first_row, first_column = (_FINER * n // 2 - _FINER * (n // 2) for n in timing.place.shape)
        maps.append(fine[:, first_row::_FINER, first_column::_FINER])
    return torch.cat(sharp), torch.cat(maps)


def _correction(found: Tensor, echo_time: float) -> Tensor:
    """Hz that a map lacks, from objects that should be real, both ``[frame, 2y, 2x]``."""
    smoothed = torch.fft.ifft2(torch.fft.fft2(found * found.abs()) * gaussian(found.shape[-2:], _SMOOTHING))
    magnitude = smoothed.abs()
    trust = magnitude / (magnitude + _FAINT**2 * magnitude.amax((1, 2), keepdim=True)).clamp_min(1e-30)
    return _SHARE * torch.angle(smoothed) * trust / (2 * math.pi * echo_time)
