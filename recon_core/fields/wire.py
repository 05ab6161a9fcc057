"""WIRE: an MLP of complex Gabor wavelets (Saragadam et al., CVPR 2023)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ComplexGabor(nn.Module):
    """``exp(iω u − |σ u|²)`` of a linear map u of the input; real weights where the input is real, else complex ones.

    Args:
        inputs: features in.
        outputs: features out.
        omega: ω, frequency of the wavelet.
        sigma: σ, its width's inverse.
        first: the input is real.
    """

    def __init__(self, inputs: int, outputs: int, omega: float, sigma: float, first: bool) -> None:
        super().__init__()
        self.omega, self.sigma = omega, sigma
        self.linear = nn.Linear(inputs, outputs, dtype=torch.float32 if first else torch.complex64)

    def forward(self, x: Tensor) -> Tensor:
        """``[…, inputs]`` to complex64 ``[…, outputs]``."""
        u = self.linear(x)
        if not u.is_complex():
            return torch.polar(torch.exp(-((self.sigma * u) ** 2)), self.omega * u)
        decay = torch.exp(-self.omega * u.imag - self.sigma**2 * (u.real.square() + u.imag.square()))
        return torch.polar(decay, self.omega * u.real)


def wire_layers(inputs: int, width: int, depth: int, omega: float, sigma: float) -> nn.Sequential:
    """``depth`` wavelet layers on a real input; complex64 ``[…, width]`` out."""
    return nn.Sequential(*[ComplexGabor(width if n else inputs, width, omega, sigma, n == 0) for n in range(depth)])
