"""Off-resonance of readouts from the centre out, estimated from images reconstructed as if there were none, and taken out of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recon_core.deblurring import CentreOut, deblurred, phase_field, smooth_field, smooth_phase, turned
from recon_core.errors import DataError
from recon_core.fine_deblurring import sharpened

_SMOOTHING = (0.8, 0.9)
"""Standard deviation, pixels, of the map's smoothing before and after a first deblurring: sharper images have noisier phases."""
_FOCUS_FRAMES = 8


def correct(images: Tensor, timing: CentreOut, echo_time: float, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Estimate a map a frame from the phase of the images, deblur, estimate again from the sharper ones, deblur on a finer grid.

    The phase is that of coils and transmitter, the same in all frames and smooth (a polynomial of second order), and 2πΔf TE. The smooth
    part of the field comes from :func:`~recon_core.deblurring.smooth_field`, what a map lacks next to air from
    :func:`~recon_core.fine_deblurring.sharpened`.

    Args:
        images: complex64 ``[frame, y, x]``, reconstructed as if on resonance.
        timing: when each |k| was passed.
        echo_time: s from the excitation to k = 0; |Δf| up to half its inverse can be told.
        start: float32 ``[y, x]`` or ``[frame, y, x]``, Hz, a map that is roughly right: it is mended in place of one from the phase.

    Returns:
        Images complex64 ``[frame, y, x]`` and the maps float32 ``[frame, y, x]``, Hz.

    Raises:
        DataError: no echo time.
    """
    if not 0 < echo_time < math.inf:
        raise DataError("TE", f"{1e3 * echo_time:g} ms", "The field is told by the phase between excitation and k = 0: give that time.")
    if start is not None:
        known = start.expand(images.shape)
        return sharpened(images, timing, echo_time, known, smooth_phase((images * turned(2 * math.pi * echo_time * known)).mean(0)))
    static = smooth_phase(images.mean(0))
    chosen = torch.linspace(0, len(images) - 1, min(_FOCUS_FRAMES, len(images))).round().long()
    first = phase_field(images[chosen] * turned(static), echo_time, _SMOOTHING[0])
    static = static - 2 * math.pi * echo_time * smooth_field(images[chosen], timing, first)
    rough = deblurred(images, timing, phase_field(images * turned(static), echo_time, _SMOOTHING[0]))
    return sharpened(images, timing, echo_time, phase_field(rough * turned(static), echo_time, _SMOOTHING[1]), static)
