"""A complex U-Net without downsampling, recurrent along time, as an auto-encoder of k-space series (Lyu et al., KP-INR, 2025, Fig. 1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, leaky_relu

_SLOPE = 0.1


class ComplexConv(nn.Module):
    """Complex 2D convolution of half-split real channels (Trabelsi et al., ICLR 2018): the first half real, the second imaginary parts.

    Args:
        inputs: complex channels in.
        outputs: complex channels out.
        kernel: odd width.
        bias: whether a constant is added.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, bias: bool = True) -> None:
        super().__init__()
        reach = 1 / math.sqrt(2 * inputs * kernel**2)
        self.real = nn.Parameter(reach * torch.randn(outputs, inputs, kernel, kernel))
        self.imag = nn.Parameter(reach * torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(2 * outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """``[frame, 2 · inputs, y, x]`` to ``[frame, 2 · outputs, y, x]``."""
        weight = torch.cat([torch.cat([self.real, -self.imag], dim=1), torch.cat([self.imag, self.real], dim=1)], dim=0)
        return conv2d(x, weight, self.bias, padding=self.real.shape[-1] // 2)


class Recurrent(nn.Module):
    """``h_t = φ(W x_t + U h_{t∓1})`` along time, forwards or backwards; φ acts on real and imaginary parts."""

    def __init__(self, channels: int, backwards: bool) -> None:
        super().__init__()
        self.backwards = backwards
        self.input = ComplexConv(channels, channels)
        self.hidden = ComplexConv(channels, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[frame, 2 · channels, y, x]`` to the same."""
        driven = self.input(x)
        order = range(x.shape[0] - 1, -1, -1) if self.backwards else range(x.shape[0])
        state: Tensor | None = None
        states: dict[int, Tensor] = {}
        for t in order:
            step = driven[t : t + 1]
            state = leaky_relu(step if state is None else step + self.hidden(state), _SLOPE)
            states[t] = state
        return torch.cat([states[t] for t in range(x.shape[0])])


class ComplexUnet(nn.Module):
    """Two encoder levels recurrent in opposite directions of time, a bidirectional bottleneck, two decoder levels with skips.

    Args:
        coils: complex channels of the series.
        channels: complex channels inside.
    """

    def __init__(self, coils: int, channels: int) -> None:
        super().__init__()
        self.enter = ComplexConv(coils, channels)
        self.down = nn.ModuleList([Recurrent(channels, backwards=False), Recurrent(channels, backwards=True)])
        self.fuse = ComplexConv(2 * channels, channels, kernel=1)
        self.bottom = nn.ModuleList([Recurrent(channels, backwards=False), Recurrent(channels, backwards=True)])
        self.up = nn.ModuleList([Recurrent(channels, backwards=True), Recurrent(channels, backwards=False)])
        self.join = nn.ModuleList([ComplexConv(2 * channels, channels, kernel=1) for _ in range(3)])
        self.leave = ComplexConv(channels, coils)
        self.out_dim = 2 * channels

    def forward(self, series: Tensor) -> tuple[Tensor, Tensor]:
        """Complex64 ``[frame, coil, y, x]`` to features ``[frame, 2 · channels, y, x]`` and the series as decoded (complex64)."""
        entered = self.enter(torch.cat([series.real, series.imag], dim=1))
        first = self.down[0](entered)
        second = self.down[1](first)
        fused = self.fuse(_complex_cat(first, second))
        bottom = self.join[0](_complex_cat(self.bottom[0](fused), self.bottom[1](fused)))
        upper = self.up[0](self.join[1](_complex_cat(bottom, second)))
        top = self.up[1](self.join[2](_complex_cat(upper, first)))
        features = upper + top
        real, imag = self.leave(features).chunk(2, dim=1)
        return features, torch.complex(real, imag)


def _complex_cat(a: Tensor, b: Tensor) -> Tensor:
    """Channels of both side by side, all real parts before all imaginary ones."""
    (a_real, a_imag), (b_real, b_imag) = a.chunk(2, dim=1), b.chunk(2, dim=1)
    return torch.cat([a_real, b_real, a_imag, b_imag], dim=1)
