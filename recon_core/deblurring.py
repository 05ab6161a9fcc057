"""Off-resonance of single-echo readouts from the centre out, estimated from the images' own phase and taken out of them.

Where every readout passes each |k| at one and the same time, the field's phase is a function of |k|: it blurs the image of a frame,
whichever readouts measured it, and images can be deblurred after the reconstruction (multi-frequency reconstruction: Man et al., Magn
Reson Med 1997;37:785), frame by frame with a map each. The blurred images fit the data as well as the sharp ones do, so no residual tells
the map; the phase between excitation and k = 0 does (Lim et al., Magn Reson Med 2019;81:234). What of the field is as smooth as the phase
of coils and transmitter it cannot tell from them; that part is chosen where the images are sharpest (autofocus: Noll et al., Magn Reson
Med 1992;25:319).
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from recon_core.errors import DataError
from recon_core.operators.off_resonance import TOLERANCE
from recon_core.problem import KSpaceProblem
from recon_core.time_segments import segment_basis

_FRAMES_AT_ONCE = 32
_DAMPING = 0.005
"""Against the largest eigenvalue, which is near 1: what the blur has spread beyond the field of view or cancelled is not amplified."""
_STEPS = 3
_FAINT = 0.02
"""Share of a frame's largest squared magnitude below which the phase is noise: the map fades to 0 there."""
_ROBUST = 0.5
"""Radians beyond which a pixel's phase hardly counts as that of coils and transmitter."""
_ROBUST_STEPS = 20
_FOCUS_STEPS = (60.0, 60.0, 30.0)
"""Hz by which the smooth part of the field is varied, sweep by sweep."""


@dataclasses.dataclass(frozen=True, eq=False)
class CentreOut:
    """When the samples of readouts from the centre out pass each |k|.

    Attributes:
        sample_times: float64 ``[sample]``, s, of the samples in use.
        place: float64 ``[y, x]``, number (between whole ones) of the sample at each point of the image's k-space; k = 0 at index 0.
    """

    sample_times: Tensor
    place: Tensor

    @classmethod
    def of(cls, problem: KSpaceProblem) -> CentreOut:
        """The timing of a problem's readouts.

        Raises:
            DataError: not a slice, no sample times, or readouts whose |k| are not the same function of time, rising from 0.
        """
        if problem.dim != 2:
            raise DataError("field_map", f"estimate, of {problem.dim} dimensions", "A map is estimated for slices; give one in a file.")
        if problem.sample_times is None:
            raise DataError("sample_times", "missing", "Give the time of every sample of a readout.")
        view = problem.field_of_view or tuple(1.0 for _ in problem.shape)
        # Cycles along the longest side: arms turn in space, not in units of unequal fields of view.
        scale = torch.tensor([max(view) / length for length in reversed(view)], dtype=torch.float64)
        radius = (problem.trajectory.cpu().double() * scale).norm(dim=-1)
        usual = radius.median(dim=0).values
        spread = float((radius - usual).abs().max())
        if spread > 0.5 or float(usual[0]) > 0.5 or not bool((usual.diff() > -1e-3).all()):
            found = f"estimate, for readouts that start at |k| = {float(usual[0]):.3g} and differ by up to {spread:.3g}"
            raise DataError(
                "field_map", found, "Estimate from arms that turn about their common start at k = 0; else give a map in a file."
            )
        usual = usual.cummax(0).values + 1e-9 * torch.arange(len(usual))
        axes = [
            torch.fft.fftfreq(n, 1 / n, dtype=torch.float64) * (max(view) / length) for n, length in zip(problem.shape, view, strict=True)
        ]
        wanted = torch.hypot(axes[0][:, None], axes[1][None]).clamp(float(usual[0]), float(usual[-1]))
        above = torch.searchsorted(usual, wanted).clamp(1, len(usual) - 1)
        low, high = usual[above - 1], usual[above]
        return cls(problem.sample_times, above - 1 + (wanted - low) / (high - low))


class Blur:
    """What off-resonance does to images of :class:`CentreOut` readouts: ``Σ_l h_l ∗ (c_l(f) x)``.

    Args:
        timing: when each |k| is passed.
        field: float32 ``[frame, y, x]``, Hz.
    """

    def __init__(self, timing: CentreOut, field: Tensor) -> None:
        basis = segment_basis(timing.sample_times, max(1.0, float(field.abs().max())), TOLERANCE)
        below = timing.place.floor().long().clamp_max(len(timing.sample_times) - 2)
        part = (timing.place - below).to(torch.complex64)
        self.in_frequency = torch.lerp(basis.in_time[:, below], basis.in_time[:, below + 1], part)
        self.in_space = basis.in_space(field)

    def forward(self, images: Tensor) -> Tensor:
        """Sharp images ``[frame, y, x]`` to blurred ones."""
        parts = zip(self.in_frequency, self.in_space, strict=True)
        return torch.fft.ifft2(torch.stack([h * torch.fft.fft2(c * images) for h, c in parts]).sum(0))

    def adjoint(self, images: Tensor) -> Tensor:
        """Adjoint of :meth:`forward`."""
        spectra = torch.fft.fft2(images)
        parts = zip(self.in_frequency, self.in_space, strict=True)
        return torch.stack([c.conj() * torch.fft.ifft2(h.conj() * spectra) for h, c in parts]).sum(0)


def deblurred(images: Tensor, timing: CentreOut, field: Tensor, steps: int = _STEPS) -> Tensor:
    """Damped least squares by a few conjugate-gradient steps from the adjoint, frame by frame.

    Args:
        images: complex64 ``[frame, y, x]``, blurred.
        timing: when each |k| was passed.
        field: float32 ``[frame, y, x]`` (or one map ``[y, x]``), Hz.
        steps: conjugate-gradient steps; few, which regularises as well.

    Returns:
        complex64 ``[frame, y, x]``.
    """
    maps = field.expand(images.shape)
    parts = range(0, len(images), _FRAMES_AT_ONCE)
    return torch.cat([_solve(images[n : n + _FRAMES_AT_ONCE], Blur(timing, maps[n : n + _FRAMES_AT_ONCE]), steps) for n in parts])


def _solve(images: Tensor, blur: Blur, steps: int) -> Tensor:
    target = blur.adjoint(images)
    x = target.clone()
    residual = target - blur.adjoint(blur.forward(x)) - _DAMPING * x
    direction, energy = residual, residual.abs().square().sum((1, 2))
    for _ in range(steps):
        curved = blur.adjoint(blur.forward(direction)) + _DAMPING * direction
        length = energy / (direction.conj() * curved).real.sum((1, 2)).clamp_min(1e-30)
        x = x + length[:, None, None] * direction
        residual = residual - length[:, None, None] * curved
        new = residual.abs().square().sum((1, 2))
        direction = residual + (new / energy.clamp_min(1e-30))[:, None, None] * direction
        energy = new
    return x


def turned(phase: Tensor) -> Tensor:
    """The factor that takes a phase away."""
    return torch.polar(torch.ones_like(phase), -phase)


def smooth_field(images: Tensor, timing: CentreOut, field: Tensor) -> Tensor:
    """What has to be added to maps so that the deblurred images are sharpest, Hz, ``[y, x]``: a polynomial of second order.

    Sharp are those of least Σ|x| for their energy: blur spreads signal into what is dark. The coefficients are varied one after another,
    each to the vertex of the parabola through three values.

    Args:
        images: complex64 ``[frame, y, x]``, blurred; a few of a series.
        timing: when each |k| was passed.
        field: float32 ``[frame, y, x]``, Hz.
    """
    terms = _terms(images.shape[-2:]).float().unflatten(0, images.shape[-2:]).movedim(-1, 0)
    found = torch.zeros(images.shape[-2:])

    def spread(smooth: Tensor) -> float:
        sharp = deblurred(images, timing, field + smooth)
        return float(sharp.abs().sum(dtype=torch.float64) / sharp.norm().clamp_min(1e-30))

    here = spread(found)
    for step in _FOCUS_STEPS:
        for term in terms:
            below, above = spread(found - step * term), spread(found + step * term)
            curvature = below - 2 * here + above
            best = 0.5 * (below - above) / curvature if curvature > 0 else math.copysign(1.0, below - above)
            tried = found + max(-1.5, min(1.5, best)) * step * term
            there = spread(tried)
            if there < here:
                found, here = tried, there
    return found


def phase_field(images: Tensor, echo_time: float, width: float) -> Tensor:
    """Off-resonance that the phase of images ``[frame, y, x]`` tells, Hz, smoothed over ``width`` pixels by squared magnitude."""
    energy = images * images.abs()
    smoothed = torch.fft.ifft2(torch.fft.fft2(energy) * gaussian(images.shape[-2:], width))
    magnitude = smoothed.abs()
    trust = magnitude / (magnitude + _FAINT**2 * magnitude.amax((1, 2), keepdim=True)).clamp_min(1e-30)
    return torch.angle(smoothed) / (2 * math.pi * echo_time) * trust


def gaussian(shape: torch.Size, width: float) -> Tensor:
    """Transfer function of a Gaussian of ``width`` pixels' standard deviation, ``[y, x]``; k = 0 at index 0."""
    ky, kx = (torch.fft.fftfreq(n) for n in shape)
    return torch.exp(-2 * (math.pi * width) ** 2 * (ky[:, None] ** 2 + kx[None] ** 2))


def smooth_phase(image: Tensor) -> Tensor:
    """The polynomial of second order nearest to the phase of an image ``[y, x]``, float32, radians.

    Pixels weigh by their energy, less where their phase lies far off: the field is strong in few of them, near air.
    """
    ny, nx = image.shape
    terms = _terms(image.shape)
    flat = image.flatten().to(torch.complex128)
    energy = flat.abs().square()
    if not bool(energy.sum() > 0):
        return torch.zeros(ny, nx)
    # Neighbours tell the slopes without unwrapping.
    across, down = image[:, 1:] * image[:, :-1].conj(), image[1:] * image[:-1].conj()
    slopes = [float(torch.angle(part.sum())) * (n - 1) / 2 for part, n in ((across, nx), (down, ny))]
    fit = torch.tensor([0.0, *slopes, 0.0, 0.0, 0.0], dtype=torch.float64)
    fit[0] = torch.angle((flat * torch.exp(-1j * (terms @ fit)) * flat.abs()).sum())
    ridge = 1e-9 * float(energy.sum()) * torch.eye(6, dtype=torch.float64)
    for _ in range(_ROBUST_STEPS):
        rest = torch.angle(flat * torch.exp(-1j * (terms @ fit)))
        weights = energy / (1 + (rest / _ROBUST) ** 2)
        fit = fit + torch.linalg.solve(terms.T @ (weights[:, None] * terms) + ridge, terms.T @ (weights * rest))
    return (terms @ fit).reshape(ny, nx).float()


def _terms(shape: torch.Size) -> Tensor:
    """Polynomials of second order, float64 ``[pixel, 6]``, as good as orthogonal."""
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, n, dtype=torch.float64) for n in shape), indexing="ij")
    return torch.stack([torch.ones_like(x), x, y, x * x - 1 / 3, x * y, y * y - 1 / 3], dim=-1).reshape(-1, 6)
