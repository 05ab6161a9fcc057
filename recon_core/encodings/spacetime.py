"""Hash encoding of space and time for whole frames: the numbers of :class:`~recon_core.encodings.hash_grid.HashGrid`, a frame at a time.

Pixels are the same in every frame, so that a corner's spatial part is computed once; a frame lies between two slices of the grid, which its
neighbours share on coarse levels. That takes a fraction of the look-ups of an encoding point by point.
"""

from __future__ import annotations

import dataclasses
import itertools

import torch
from torch import Tensor, nn

from recon_core.encodings.hash_grid import PRIMES, UINT32, HashGrid, HashGridLayout


@dataclasses.dataclass(frozen=True, eq=False)
class SpacePlan:
    """The spatial part of every corner of fixed points.

    Attributes:
        keys: int64 ``[level, point, corner]``, before time enters and the table's size is taken.
        weights: float32 ``[level, point, corner]``.
    """

    keys: Tensor
    weights: Tensor


class SpacetimeGrid(HashGrid):
    """Learnable features of (space, time), coordinates in [0, 1]; time is the last axis.

    Args:
        layout: of dimension space + 1.
        scale: parameters start uniform in ±scale.
        seed: of the start.
    """

    def __init__(self, layout: HashGridLayout, scale: float = 1e-4, seed: int = 0) -> None:
        super().__init__(layout, scale, seed)
        offsets = layout.offsets()
        self.sizes = [end - start for start, end in itertools.pairwise(offsets)]

    def space(self, coordinates: Tensor) -> SpacePlan:
        """What can be computed once for fixed points ``[point, axis]`` (space only) in [0, 1]."""
        pairs = [self._corners(coordinates, level) for level in range(self.layout.levels)]
        return SpacePlan(torch.stack([keys for keys, _ in pairs]), torch.stack([weights for _, weights in pairs]))

    def _corners(self, coordinates: Tensor, level: int) -> tuple[Tensor, Tensor]:
        layout = self.layout
        position = coordinates.double() * layout.scale(level) + 0.5
        cell = position.floor()
        fraction = position - cell
        cell = cell.to(torch.int64)
        dim, resolution, hashed = layout.dim - 1, layout.resolution(level), layout.hashed(level)
        keys, weights = [], []
        for corner in itertools.product((0, 1), repeat=dim):
            shift = torch.tensor(corner[::-1], device=coordinates.device)
            point = cell + shift
            key = torch.zeros_like(point[:, 0])
            for axis in range(dim):
                part = point[:, axis] * PRIMES[axis] & UINT32 if hashed else point[:, axis] * resolution**axis
                key = key ^ part if hashed else key + part
            keys.append(key)
            weights.append(torch.where(shift.bool(), fraction, 1 - fraction).prod(dim=1))
        return torch.stack(keys, dim=1), torch.stack(weights, dim=1).to(torch.float32)

    def frames(self, plan: SpacePlan, times: Tensor, active: int | None = None) -> Tensor:
        """Features ``[frame, point, level · feature]`` of planned points at some moments.

        Args:
            plan: of :meth:`space`.
            times: float64 ``[frame]`` in [0, 1].
            active: levels that are switched on; the others give zero and get no gradient.
        """
        layout = self.layout
        on = layout.levels if active is None else min(active, layout.levels)
        # Split once: its gradient is put together once, whereas a slice's fills the whole table with zeros.
        tables = self.params.split(self.sizes)
        features = [self._level(tables[level], plan, times, level) for level in range(on)]
        return nn.functional.pad(torch.cat(features, dim=2), (0, self.out_dim - on * layout.features))

    def _level(self, table: Tensor, plan: SpacePlan, times: Tensor, level: int) -> Tensor:
        layout = self.layout
        position = times.double() * layout.scale(level) + 0.5
        cell = position.floor().to(torch.int64)
        slices, place = torch.unique(torch.stack([cell, cell + 1]), return_inverse=True)
        slices = slices.to(table.device)[:, None, None]
        keys = plan.keys[level][None]
        if layout.hashed(level):
            entries = keys ^ (slices * PRIMES[layout.dim - 1] & UINT32)
        else:
            entries = keys + slices * layout.resolution(level) ** (layout.dim - 1)
        entries = torch.remainder(entries, table.shape[0])
        n_slices, n_points, corners = entries.shape
        weights = plan.weights[level].expand(n_slices, -1, -1).reshape(-1, corners)
        values = nn.functional.embedding_bag(entries.reshape(-1, corners), table, per_sample_weights=weights, mode="sum")
        values = values.reshape(n_slices, n_points, layout.features)
        fraction = (position - cell).to(table)[:, None, None]
        place = place.to(table.device)
        return values[place[0]] * (1 - fraction) + values[place[1]] * fraction
