"""The field of stINR: hash features of (space, time) and an MLP to signal (Feng et al., stINR, eq. 4, Fig. 1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recon_core.encodings.hash_grid import HashGridLayout
from recon_core.encodings.spacetime import SpacePlan, SpacetimeGrid
from recon_core.fields.seeded import seeded


def perceptron(inputs: int, width: int, depth: int, outputs: int) -> nn.Sequential:
    """``depth`` hidden layers with ReLU, and a linear one to the outputs."""
    layers: list[nn.Module] = []
    for number in range(depth):
        layers += [nn.Linear(width if number else inputs, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


class SpacetimeField(nn.Module):
    """Hash features of (x, t), then an MLP to real and imaginary part.

    Args:
        layout: of the encoding of space and time.
        width: hidden width of the MLP.
        depth: its hidden layers.
        seed: of all weights.
    """

    def __init__(self, layout: HashGridLayout, width: int, depth: int, seed: int) -> None:
        super().__init__()
        with seeded(seed):
            self.encoding = SpacetimeGrid(layout, seed=seed)
            self.joint = perceptron(self.encoding.out_dim, width, depth, 2)

    def forward(self, plan: SpacePlan, times: Tensor, active: int | None = None) -> Tensor:
        """Signal complex64 ``[frame, point]`` of planned points at times (float64 ``[frame]`` in [0, 1])."""
        return torch.view_as_complex(self.joint(self.encoding.frames(plan, times, active)).contiguous())
