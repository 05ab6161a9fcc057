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
    """Fourier features of k and of t, side by side, and a SIREN to the signal of every coil.

    Features of their own for t let the network hold what does not move once for all moments; with features of (k, t) together every
    frequency of k comes with one frequency of t.

    Args:
        bandwidths: standard deviations of the frequencies on the axes (kx, ky), share of the field of view.
        bandwidth: of those along t, cycles per frame.
        features: Fourier features of k and of t.
        width: hidden width.
        depth: hidden layers.
        omega: ω of the sine layers.
        coils: signals wanted.
        seed: of frequencies and weights.
    """

    def __init__(
        self,
        bandwidths: tuple[float, float],
        bandwidth: float,
        features: tuple[int, int],
        width: int,
        depth: int,
        omega: float,
        coils: int,
        seed: int,
    ) -> None:
        super().__init__()
        with seeded(seed):
            self.space = FourierFeatures(bandwidths, features[0], 2 * seed)
            self.time = FourierFeatures((bandwidth,), features[1], 2 * seed + 1)
            inputs = self.space.out_dim + self.time.out_dim
            layers = [Sine(width if number else inputs, width, omega, number == 0) for number in range(depth)]
            self.layers = nn.Sequential(*layers, nn.Linear(width, 2 * coils))

    def forward(self, coordinates: Tensor) -> Tensor:
        """Signal complex64 ``[coil, point]`` at coordinates ``[point, (kx, ky, t)]``."""
        out = self.layers(torch.cat([self.space(coordinates[:, :2]), self.time(coordinates[:, 2:])], dim=1))
        return torch.view_as_complex(out.reshape(out.shape[0], -1, 2)).T
