"""The smooth phase of an object."""

from __future__ import annotations

import torch
from torch import Tensor


def smooth_phase(image: Tensor, width: int = 24) -> Tensor:
    """Phase factor ``exp(iφ)`` of an image ``[(z,) y, x]`` at low resolution.

    Args:
        image: complex64.
        width: samples of k-space kept along every axis, under a Hann window.
    """
    dims = tuple(range(image.ndim))
    spectrum = torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(image, dim=dims), dim=dims), dim=dims)
    for axis, n in enumerate(image.shape):
        distance = (torch.arange(n, device=image.device, dtype=torch.float32) - n // 2) / width
        window = torch.where(distance.abs() < 1, torch.cos(torch.pi / 2 * distance).square(), torch.zeros_like(distance))
        spectrum = spectrum * window.reshape([-1 if a == axis else 1 for a in range(image.ndim)])
    smooth = torch.fft.fftshift(torch.fft.ifftn(torch.fft.ifftshift(spectrum, dim=dims), dim=dims), dim=dims)
    return torch.polar(torch.ones_like(smooth.abs()), smooth.angle())
