"""A residual CNN on spatial bases, slice by slice, as scan-specific reconstructions use it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recon_core.fields.seeded import seeded

_SCALE = 0.1


class ResidualCnn(nn.Module):
    """Convolution, residual blocks, convolution; the last starts at zero, so that nothing is added before it has learned.

    Residual blocks of two convolutions whose output is scaled by 0.1 (Yaman et al., ICLR 2022).

    Args:
        inputs: channels in.
        outputs: channels out.
        channels: width.
        blocks: residual blocks.
        seed: of the weights.
    """

    def __init__(self, inputs: int, outputs: int, channels: int, blocks: int, seed: int) -> None:
        super().__init__()
        with seeded(seed):
            self.enter = nn.Conv2d(inputs, channels, 3, padding=1)
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1))
                for _ in range(blocks)
            )
            self.leave = nn.Conv2d(channels, outputs, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        assert self.leave.bias is not None
        nn.init.zeros_(self.leave.bias)

    def forward(self, volumes: Tensor) -> Tensor:
        """Float32 ``[channel, (z,) y, x]`` to the same with the output's channels; slices are a batch."""
        planar = volumes.ndim == 3
        features = self.enter((volumes[:, None] if planar else volumes).transpose(0, 1))
        x = features
        for block in self.blocks:
            x = x + _SCALE * block(x)
        out: Tensor = self.leave(x + features).transpose(0, 1)
        return out[:, 0] if planar else out


def as_channels(bases: Tensor) -> Tensor:
    """Complex ``[K, …]`` to real and imaginary parts, float ``[2 K, …]``."""
    return torch.cat([bases.real, bases.imag])


def as_bases(channels: Tensor) -> Tensor:
    """Inverse of :func:`as_channels`."""
    real, imaginary = channels.chunk(2)
    return torch.complex(real.contiguous(), imaginary.contiguous())
