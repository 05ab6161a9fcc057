"""The field of FMLP: Fourier features of space and of time, and a deep MLP (Kunz, Ruschke and Heckel, IEEE TCI 2024;10:1280)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recon_core.encodings.fourier import FourierFeatures
from recon_core.fields.seeded import seeded


class FourierField(nn.Module):
    """Random Fourier features of x and of t, joined by an MLP whose layers are normalised without parameters.

    The first layer is split into its spatial and its temporal half: the same numbers as the concatenation, the spatial half once a step.

    Args:
        bandwidths: standard deviation of the spatial frequencies on every axis, cycles per field of view.
        bandwidth: of the temporal ones, cycles per frame.
        features: spatial and temporal features.
        width: hidden width.
        depth: hidden layers.
        seed: of frequencies and weights.
    """

    def __init__(
        self, bandwidths: tuple[float, ...], bandwidth: float, features: tuple[int, int], width: int, depth: int, seed: int
    ) -> None:
        super().__init__()
        with seeded(seed):
            self.space = FourierFeatures(bandwidths, features[0], 2 * seed)
            self.time = FourierFeatures((bandwidth,), features[1], 2 * seed + 1)
            self.spatial = nn.Linear(self.space.out_dim, width)
            self.temporal = nn.Linear(self.time.out_dim, width, bias=False)
            layers: list[nn.Module] = []
            for _ in range(depth - 1):
                layers += [nn.LayerNorm(width, elementwise_affine=False), nn.ReLU(), nn.Linear(width, width)]
            self.joint = nn.Sequential(*layers, nn.LayerNorm(width, elementwise_affine=False), nn.ReLU(), nn.Linear(width, 2))

    def forward(self, spatial: Tensor, times: Tensor) -> Tensor:
        """Signal complex64 ``[frame, point]``.

        Args:
            spatial: features ``[point, feature]`` of :attr:`space`.
            times: float32 ``[frame]``, frame numbers.
        """
        hidden = self.spatial(spatial) + self.temporal(self.time(times[:, None]))[:, None]
        return torch.view_as_complex(self.joint(hidden).contiguous())
