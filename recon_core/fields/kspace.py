"""The field of NIK: k-space itself as a continuous function (Huang et al., Neural Implicit k-Space, IPMI 2023)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from recon_core.encodings.fourier import FourierFeatures
from recon_core.fields.seeded import seeded


class Sine(nn.Module):
    """A layer of SIREN (Sitzmann et al., NeurIPS 2020): sin(ω (W x + b)), started so that activations keep their distribution."""

    def __init__(self, inputs: int, outputs: int, omega: float, first: bool) -> None:
        super().__init__()
        self.omega = omega
        self.linear = nn.Linear(inputs, outputs)
        reach = 1 / inputs if first else math.sqrt(6 / inputs) / omega
        nn.init.uniform_(self.linear.weight, -reach, reach)

    def forward(self, x: Tensor) -> Tensor:
        """``[…, inputs]`` to ``[…, outputs]``."""
        return torch.sin(self.omega * self.linear(x))


class KSpaceField(nn.Module):
    """Fourier features of (k, t) and a SIREN to the signal of every coil.

    Args:
        bandwidths: standard deviations of the features' frequencies on the axes (kx, ky, t).
        features: Fourier features.
        width: hidden width.
        depth: hidden layers.
        omega: ω of the sine layers.
        coils: signals wanted.
        seed: of frequencies and weights.
    """

    def __init__(self, bandwidths: tuple[float, ...], features: int, width: int, depth: int, omega: float, coils: int, seed: int) -> None:
        super().__init__()
        with seeded(seed):
            self.encoding = FourierFeatures(bandwidths, features, seed)
            layers = [Sine(width if number else self.encoding.out_dim, width, omega, number == 0) for number in range(depth)]
            self.layers = nn.Sequential(*layers, nn.Linear(width, 2 * coils))

    def forward(self, coordinates: Tensor) -> Tensor:
        """Signal complex64 ``[coil, point]`` at coordinates ``[point, (kx, ky, t)]``."""
        out = self.layers(self.encoding(coordinates))
        return torch.view_as_complex(out.reshape(out.shape[0], -1, 2)).T
