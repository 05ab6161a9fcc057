"""The field of DA-INR: a deformation to a canonical space, whose signal a hash encoding holds (Baik and Yoo, DA-INR, section 2.1)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from recon_core.encodings.fourier import octaves
from recon_core.encodings.hash_grid import HashGrid, HashGridLayout
from recon_core.fields.seeded import seeded
from recon_core.fields.spacetime import perceptron


@dataclasses.dataclass(frozen=True)
class DeformationSizes:
    """Sizes of the two networks.

    Attributes:
        width: hidden width of both.
        depth: hidden layers of both.
        space_octaves: of the frequency encoding of x.
        time_octaves: of t.
        features: channels of the image features the canonical network sees.
        sees_coordinates: whether the canonical network also sees the encodings of x and t.
    """

    width: int
    depth: int
    space_octaves: int
    time_octaves: int
    features: int
    sees_coordinates: bool


class DeformationField(nn.Module):
    """Ψ_t(γ(x), γ(t)) → Δx; Ψ_x(h(x + Δx), image features) → real and imaginary part.

    The deformation starts as none: its last layer starts at zero.

    Args:
        layout: of the canonical space's hash encoding.
        sizes: of the networks.
        seed: of all weights.
    """

    def __init__(self, layout: HashGridLayout, sizes: DeformationSizes, seed: int) -> None:
        super().__init__()
        self.sizes = sizes
        encoded = 2 * layout.dim * sizes.space_octaves + 2 * sizes.time_octaves
        with seeded(seed):
            self.encoding = HashGrid(layout, seed=seed)
            self.deformation = perceptron(encoded, sizes.width, sizes.depth, layout.dim)
            seen = self.encoding.out_dim + sizes.features + (encoded if sizes.sees_coordinates else 0)
            self.canonical = perceptron(seen, sizes.width, sizes.depth, 2)
        for parameter in self.deformation[-1].parameters():
            nn.init.zeros_(parameter)

    def encoded(self, points: Tensor, times: Tensor) -> Tensor:
        """Frequency encodings ``[frame, point, feature]`` of points ``[point, axis]`` and times ``[frame]``, both in [0, 1]."""
        space = octaves(points, self.sizes.space_octaves)
        time = octaves(times[:, None], self.sizes.time_octaves)
        return torch.cat([space.expand(len(times), -1, -1), time[:, None].expand(-1, len(points), -1)], dim=2)

    def displaced(self, points: Tensor, encoded: Tensor) -> Tensor:
        """Where points lie in the canonical space, ``[frame, point, axis]``; never outside it."""
        return (points + self.deformation(encoded)).clamp(0, 1)

    def forward(self, points: Tensor, times: Tensor, features: Tensor) -> Tensor:
        """Signal complex64 ``[frame, point]``.

        Args:
            points: float32 ``[point, axis]`` in [0, 1].
            times: float32 ``[frame]`` in [0, 1].
            features: of the images at these points, float32 ``[frame, point, channel]``.
        """
        encoded = self.encoded(points, times)
        place = self.displaced(points, encoded)
        canonical = self.encoding(place.flatten(0, 1)).reshape(len(times), len(points), -1)
        seen = [canonical, features, encoded] if self.sizes.sees_coordinates else [canonical, features]
        return torch.view_as_complex(self.canonical(torch.cat(seen, dim=2)).contiguous())
