"""Fixed trigonometric features of coordinates."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def octaves(coordinates: Tensor, count: int) -> Tensor:
    """Frequency encoding (Mildenhall et al., NeRF, ECCV 2020): sin and cos of 2^i π p for i < ``count``.

    Args:
        coordinates: float32 ``[…, axis]``.
        count: octaves an axis.

    Returns:
        float32 ``[…, axis · 2 · count]``.
    """
    scales = math.pi * 2.0 ** torch.arange(count, dtype=torch.float32, device=coordinates.device)
    angles = (coordinates[..., None] * scales).flatten(-2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class FourierFeatures(nn.Module):
    """Random Fourier features (Tancik et al., NeurIPS 2020): sin and cos of 2π f·x, frequencies f drawn once.

    Args:
        bandwidths: standard deviation of the frequencies on every axis, cycles per unit of its coordinate.
        features: an even number; half as many frequencies.
        seed: of the frequencies.

    Attributes:
        out_dim: ``features``.
    """

    frequencies: Tensor

    def __init__(self, bandwidths: tuple[float, ...], features: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(len(bandwidths), features // 2, generator=generator)
        self.register_buffer("frequencies", drawn * torch.tensor(bandwidths)[:, None])
        self.out_dim = 2 * (features // 2)

    def forward(self, coordinates: Tensor) -> Tensor:
        """Features ``[…, out_dim]`` of coordinates ``[…, axis]``."""
        angles = 2 * math.pi * (coordinates @ self.frequencies)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)
