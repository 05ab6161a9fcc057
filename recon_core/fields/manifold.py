"""The field of INMR: spatial features and a frame's latent vector to signal (Feng et al., INMR, eq. 5, Fig. 1)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from recon_core.encodings.hash_grid import HashGrid, HashGridLayout, HashGridPlan, SpatialEncoding
from recon_core.encodings.tcnn import TinyCudaGrid
from recon_core.fields.seeded import seeded

ENCODINGS: dict[str, Callable[..., SpatialEncoding]] = {"torch": HashGrid, "tinycudann": TinyCudaGrid}


class ManifoldField(nn.Module):
    """Hash features of x and mapped latent z_t, joined by an MLP to real and imaginary part.

    The joint MLP's first layer is split: ``W [h(x); g(z)] = W_h h(x) + W_g g(z)``, so that the spatial half is evaluated once
    for all frames (the same numbers as the concatenation of the paper).

    Args:
        layout: of the spatial hash encoding.
        latent: dimension of z.
        mapped: width of the mapped latent.
        width: hidden width of the joint MLP.
        depth: hidden layers of the joint MLP.
        seed: of all weights.
        encoding: ``torch`` or ``tinycudann`` (CUDA); the same numbers.
    """

    encoding: SpatialEncoding

    def __init__(
        self, layout: HashGridLayout, latent: int, mapped: int, width: int, depth: int, seed: int, encoding: str = "torch"
    ) -> None:
        super().__init__()
        with seeded(seed):
            self.encoding = ENCODINGS[encoding](layout, seed=seed)
            self.mapping = nn.Sequential(nn.Linear(latent, mapped), nn.ReLU(), nn.Linear(mapped, mapped))
            self.spatial = nn.Linear(self.encoding.out_dim, width)
            self.temporal = nn.Linear(mapped, width, bias=False)
            hidden: list[nn.Module] = []
            for _ in range(depth - 1):
                hidden += [nn.ReLU(), nn.Linear(width, width)]
            self.joint = nn.Sequential(*hidden, nn.ReLU(), nn.Linear(width, 2))

    def features(self, points: HashGridPlan | Tensor, active: int | None = None) -> Tensor:
        """The spatial half of the first layer, ``[point, width]``: the same for all frames."""
        return self.spatial(self.encoding(points, active))

    def join(self, features: Tensor, latents: Tensor) -> Tensor:
        """Signal complex64 ``[frame, point]`` from :meth:`features` and latents ``[frame, latent]``."""
        temporal = self.temporal(self.mapping(latents))
        return torch.view_as_complex(self.joint(features[None] + temporal[:, None]).contiguous())

    def forward(self, points: HashGridPlan | Tensor, latents: Tensor, active: int | None = None) -> Tensor:
        """Signal complex64 ``[frame, point]`` at planned points for latents ``[frame, latent]``."""
        return self.join(self.features(points, active), latents)
