"""Multi-resolution hash encoding (Müller et al., ACM Trans Graph 2022;41:102) in torch.

Same numbers as tinycudann's ``HashGrid``: level scales, half-pixel shift, hash primes, table sizes and parameter order, so that weights map
both ways. Coordinates of an image are a fixed grid: corner indices and weights are computed once (:meth:`HashGrid.plan`).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

PRIMES = (1, 2654435761, 805459861, 3674653429)
_PARAMETER_MULTIPLE = 8
UINT32 = 0xFFFFFFFF
# Just below the growth asked for, so that no level's scale is a whole number: there the last bit of exp2 would decide its resolution.
_GROWTH_MARGIN = 2e-6


@dataclasses.dataclass(frozen=True)
class HashGridLayout:
    """Where every level's features lie in the flat parameter vector.

    Attributes:
        dim: dimensions of the coordinates.
        levels: number of levels.
        features: features a level.
        log2_table: log2 of the largest table.
        base: resolution of the coarsest level.
        growth: ratio of neighbouring levels' resolutions.
    """

    dim: int
    levels: int = 16
    features: int = 2
    log2_table: int = 19
    base: int = 16
    growth: float = 1.5

    def scale(self, level: int) -> float:
        """Coordinates in [0, 1] are multiplied by this, then shifted by half a cell; float32 at each step, as in tinycudann."""
        exponent = np.float32(level) * np.log2(np.float32(self.growth))
        return float(np.exp2(exponent) * np.float32(self.base) - np.float32(1))

    def resolution(self, level: int) -> int:
        """Grid points an axis."""
        return math.ceil(self.scale(level)) + 1

    def table_size(self, level: int) -> int:
        """Entries of a level's table."""
        dense = self.resolution(level) ** self.dim
        padded = -(-dense // _PARAMETER_MULTIPLE) * _PARAMETER_MULTIPLE
        return min(padded, 1 << self.log2_table)

    def hashed(self, level: int) -> bool:
        """Whether the level's grid is larger than its table."""
        return self.resolution(level) ** self.dim > self.table_size(level)

    def offsets(self) -> list[int]:
        """First entry of every level, and the total."""
        return [0, *itertools.accumulate(self.table_size(level) for level in range(self.levels))]


def growth_for(base: int, finest: float, levels: int) -> float:
    """Growth that puts the finest level at ``finest`` grid points an axis."""
    return 1.0 if levels < 2 else max(1.0, (finest / base) ** (1 / (levels - 1)) * (1 - _GROWTH_MARGIN))


@dataclasses.dataclass(frozen=True, eq=False)
class HashGridPlan:
    """Corner entries and interpolation weights of fixed coordinates.

    Attributes:
        indices: int64 ``[level, point, corner]``, entries of the whole parameter table.
        weights: float32 ``[level, point, corner]``.
    """

    indices: Tensor
    weights: Tensor

    @functools.cached_property
    def transposed(self) -> tuple[Tensor, Tensor, Tensor]:
        """The same by entry: rows of the features (int32) and weights, both ``[level · point · corner]``, and where each entry's begin."""
        entries = self.indices.flatten()
        # A level's entries come after those of coarser ones: what belongs to the first levels stays in front.
        order = torch.argsort(entries, stable=True)
        begin = torch.cumsum(torch.bincount(entries), dim=0)
        rows, begin = order // self.indices.shape[2], torch.cat([begin.new_zeros(1), begin])
        return rows.to(torch.int32), self.weights.flatten()[order], begin.to(torch.int32)


class _PlannedFeatures(torch.autograd.Function):
    """Features at planned points. The derivative of torch's embedding_bag sorts all indices in every call; a plan is sorted once."""

    @staticmethod
    def forward(ctx: Any, params: Tensor, plan: HashGridPlan, levels: int) -> Tensor:
        ctx.plan, ctx.levels, ctx.entries = plan, levels, params.shape[0]
        return _features(params, plan, levels)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        rows, weights, begin = ctx.plan.transposed
        used = ctx.plan.indices[: ctx.levels].numel()
        begin = begin[: int(torch.searchsorted(begin, used)) + 1]
        summed = nn.functional.embedding_bag(
            rows[:used], gradient.contiguous(), begin, per_sample_weights=weights[:used], mode="sum", include_last_offset=True
        )
        return nn.functional.pad(summed, (0, 0, 0, ctx.entries - summed.shape[0])), None, None


def _features(params: Tensor, plan: HashGridPlan, levels: int) -> Tensor:
    """``[level · point, feature]`` of the first levels."""
    corners = plan.indices.shape[2]
    indices, weights = (each[:levels].reshape(-1, corners) for each in (plan.indices, plan.weights))
    return nn.functional.embedding_bag(indices, params, per_sample_weights=weights, mode="sum")


def corner_entries(layout: HashGridLayout, coordinates: Tensor, level: int) -> tuple[Tensor, Tensor]:
    """Table entries (int64 ``[point, corner]``, within the level) and weights of the cell around each point.

    Args:
        layout: of the encoding.
        coordinates: float32 ``[point, axis]`` in [0, 1].
        level: 0 is the coarsest.
    """
    position = coordinates.double() * layout.scale(level) + 0.5
    cell = position.floor()
    fraction = position - cell
    cell = cell.to(torch.int64)
    size, resolution = layout.table_size(level), layout.resolution(level)
    entries, weights = [], []
    for corner in itertools.product((0, 1), repeat=layout.dim):
        shift = torch.tensor(corner[::-1], device=coordinates.device)
        point = cell + shift
        if layout.hashed(level):
            index = torch.zeros_like(point[:, 0])
            for axis in range(layout.dim):
                index = index ^ (point[:, axis] * PRIMES[axis] & UINT32)
        else:
            index = torch.zeros_like(point[:, 0])
            for axis in reversed(range(layout.dim)):
                index = index * resolution + point[:, axis]
        entries.append(torch.remainder(index, size))
        weights.append(torch.where(shift.bool(), fraction, 1 - fraction).prod(dim=1))
    return torch.stack(entries, dim=1), torch.stack(weights, dim=1).to(torch.float32)


class SpatialEncoding(Protocol):
    """What a field asks of an encoding of space: :class:`HashGrid`, or tinycudann behind :mod:`recon_core.encodings.tcnn`."""

    out_dim: int

    def plan(self, coordinates: Tensor) -> HashGridPlan | Tensor:
        """What can be computed once for fixed coordinates ``[point, axis]`` in [0, 1]."""
        ...

    def __call__(self, points: HashGridPlan | Tensor, active: int | None = None) -> Tensor:
        """Features ``[point, level · feature]`` at planned points; levels from ``active`` on give zero."""
        ...


class HashGrid(nn.Module):
    """Learnable features of coordinates in [0, 1].

    Args:
        layout: levels, features and tables.
        scale: parameters start uniform in ±scale.
        seed: of the start.

    Attributes:
        params: float32 ``[entry, feature]``; flattened, tinycudann's order.
        out_dim: levels × features.
    """

    def __init__(self, layout: HashGridLayout, scale: float = 1e-4, seed: int = 0) -> None:
        super().__init__()
        self.layout = layout
        self.out_dim = layout.levels * layout.features
        generator = torch.Generator().manual_seed(seed)
        start = torch.rand(layout.offsets()[-1], layout.features, generator=generator) * 2 - 1
        self.params = nn.Parameter(start * scale)

    def plan(self, coordinates: Tensor) -> HashGridPlan:
        """Corner entries and weights of coordinates ``[point, axis]`` in [0, 1]."""
        offsets = self.layout.offsets()
        pairs = [corner_entries(self.layout, coordinates, level) for level in range(self.layout.levels)]
        return HashGridPlan(
            torch.stack([entries + offset for (entries, _), offset in zip(pairs, offsets, strict=False)]),
            torch.stack([weights for _, weights in pairs]),
        )

    def forward(self, points: HashGridPlan | Tensor, active: int | None = None) -> Tensor:
        """Features ``[point, level · feature]`` at planned points or coordinates.

        Args:
            points: a plan, or float32 coordinates ``[point, axis]`` in [0, 1].
            active: levels that are switched on (coarse to fine); the others give zero and get no gradient.
        """
        plan = points if isinstance(points, HashGridPlan) else self.plan(points)
        levels, n_points, _ = plan.indices.shape
        on = levels if active is None else min(active, levels)
        if plan is points and self.params.device.type == "cpu":
            summed: Tensor = _PlannedFeatures.apply(self.params, plan, on)
        else:
            summed = _features(self.params, plan, on)
        features = summed.reshape(on, n_points, self.layout.features).permute(1, 0, 2).reshape(n_points, -1)
        return nn.functional.pad(features, (0, self.out_dim - features.shape[1]))


def pixel_coordinates(shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
    """Pixel centres ``[(z·) y · x, axis]`` in [0, 1], axes in the image's order ((z,) y, x)."""
    axes = [(torch.arange(n, device=device, dtype=torch.float32) + 0.5) / n for n in shape]
    return torch.stack([g.flatten() for g in torch.meshgrid(*axes, indexing="ij")], dim=1)
