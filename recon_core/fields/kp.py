"""Fields of P-INR and KP-INR: k-space as a function of its coordinates, and of what surrounds them (Lyu et al., KP-INR, 2025)."""

from __future__ import annotations

import dataclasses
import itertools
import math

import torch
from torch import Tensor, nn

from recon_core.encodings.fourier import FourierFeatures, octaves
from recon_core.fields.complex_unet import ComplexUnet
from recon_core.fields.seeded import seeded
from recon_core.fields.wire import wire_layers

_SLOPE = 0.01


@dataclasses.dataclass(frozen=True)
class KpSizes:
    """Widths of the branches.

    Attributes:
        spatial: features of (kx, ky).
        temporal: features of t.
        support: standard deviation of the random spatial frequencies, share of the field of view.
        bandwidth: standard deviation of the temporal frequencies, cycles per half scan.
        width: hidden width.
        depth: layers of a branch, the last one included.
        omega: ω of the wavelets.
        sigma: σ of the wavelets.
    """

    spatial: int
    temporal: int
    support: float
    bandwidth: float
    width: int
    depth: int
    omega: float
    sigma: float

    @property
    def before(self) -> int:
        """Layers before the exchange in the middle."""
        return max(1, (self.depth - 1) // 2)

    @property
    def after(self) -> int:
        """Layers after it, without the linear one at the end."""
        return max(1, self.depth - 1 - self.before)


class PositionEncoding(nn.Module):
    """Octaves of (kx, ky) up to what the grid can hold, random frequencies beyond them, and random frequencies of t.

    120 octaves an axis, as in the paper, would be noise past the grid's log2 N: the rest of the width is random Fourier features whose
    frequencies lie within the field of view, i.e. point sources of the image.
    """

    def __init__(self, shape: tuple[int, int], sizes: KpSizes, seed: int) -> None:
        super().__init__()
        self.count = min(max(1, math.ceil(math.log2(max(shape)))), sizes.spatial // 4)
        rest = sizes.spatial - 4 * self.count
        self.scale = torch.tensor([2 / shape[1], 2 / shape[0]])
        self.space = FourierFeatures((sizes.support, sizes.support), rest, seed) if rest >= 2 else None
        self.time = FourierFeatures((sizes.bandwidth,), sizes.temporal, seed + 1)
        self.out_dim = 4 * self.count + (0 if self.space is None else self.space.out_dim) + self.time.out_dim

    def forward(self, points: Tensor) -> Tensor:
        """Features of ``[point, (kx, ky, t)]``, k in cycles per field of view, t from −1 to 1."""
        k, t = points[:, :2], points[:, 2:]
        parts = [octaves(k * self.scale.to(k.device), self.count), self.time(t)]
        if self.space is not None:
            parts.append(self.space(k))
        return torch.cat(parts, dim=1)


class PositionalField(nn.Module):
    """P-INR: encoded coordinates through a WIRE network to the signal of all coils."""

    def __init__(self, shape: tuple[int, int], coils: int, sizes: KpSizes, seed: int) -> None:
        super().__init__()
        with seeded(seed):
            self.encoding = PositionEncoding(shape, sizes, seed)
            self.layers = wire_layers(self.encoding.out_dim, sizes.width, sizes.depth - 1, sizes.omega, sizes.sigma)
            self.last = nn.Linear(sizes.width, coils, dtype=torch.complex64)

    def forward(self, points: Tensor) -> Tensor:
        """Signal complex64 ``[point, coil]`` at ``[point, (kx, ky, t)]``."""
        out: Tensor = self.last(self.layers(self.encoding(points)))
        return out


class DualField(nn.Module):
    """KP-INR: a positional and a k-space branch that exchange at the input and in the middle; features from a complex U-Net."""

    def __init__(self, shape: tuple[int, int], coils: int, sizes: KpSizes, channels: int, seed: int) -> None:
        super().__init__()
        with seeded(seed):
            self.encoding = PositionEncoding(shape, sizes, seed)
            self.unet = ComplexUnet(coils, channels)
            position, width = self.encoding.out_dim, sizes.width
            neighbourhood = self.unet.out_dim
            self.adjust = nn.Linear(self.unet.out_dim, neighbourhood)
            self.to_position = nn.Linear(neighbourhood, position)
            self.to_features = nn.Linear(position, neighbourhood)
            self.position_before = wire_layers(position, width, sizes.before, sizes.omega, sizes.sigma)
            self.features_before = _leaky(neighbourhood, width, neighbourhood, sizes.before)
            self.middle = _leaky(2 * width + neighbourhood, width, width, 2)
            self.position_after = wire_layers(width + position, width, sizes.after, sizes.omega, sizes.sigma)
            self.position_last = nn.Linear(width, coils, dtype=torch.complex64)
            self.features_after = _leaky(width + neighbourhood, width, width, sizes.after)
            self.features_last = nn.Linear(width, 2 * coils)

    def forward(self, points: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Signals complex64 ``[point, coil]`` of the positional and the k-space branch.

        Args:
            points: ``[point, (kx, ky, t)]``.
            features: ``[point, 2 · channels]``, the U-Net's at these points.
        """
        encoded, adjusted = self.encoding(points), self.adjust(features)
        position, neighbourhood = encoded + self.to_position(adjusted), adjusted + self.to_features(encoded)
        halfway = torch.view_as_real(self.position_before(position)).flatten(1)
        shared = self.middle(torch.cat([halfway, self.features_before(neighbourhood)], dim=1))
        by_position = self.position_last(self.position_after(torch.cat([shared, position], dim=1)))
        by_features = self.features_last(self.features_after(torch.cat([shared, neighbourhood], dim=1)))
        return by_position, torch.view_as_complex(by_features.reshape(len(points), -1, 2))


def _leaky(inputs: int, width: int, outputs: int, depth: int) -> nn.Sequential:
    """``depth`` linear layers, each followed by a leaky ReLU."""
    sizes = [inputs, *[width] * (depth - 1), outputs]
    layers = [nn.Sequential(nn.Linear(a, b), nn.LeakyReLU(_SLOPE)) for a, b in itertools.pairwise(sizes)]
    return nn.Sequential(*layers)
