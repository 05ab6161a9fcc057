"""The frame-wise hash encoding has the numbers, and the gradients, of the point-wise one."""

from __future__ import annotations

import pytest
import torch

from recon_core.encodings.hash_grid import HashGrid, HashGridLayout, growth_for, pixel_coordinates
from recon_core.encodings.spacetime import SpacetimeGrid
from recon_core.fields.spacetime import SpacetimeField


@pytest.mark.parametrize("shape", [(5, 7), (3, 4, 5)])
@pytest.mark.parametrize("active", [None, 2])
def test_same_numbers_as_point_by_point(shape: tuple[int, ...], active: int | None) -> None:
    """Dense and hashed levels; moments on, between and beyond grid points."""
    dim = len(shape) + 1
    layout = HashGridLayout(dim, levels=4, features=2, log2_table=9, base=4, growth=growth_for(4, 30, 4))
    assert [layout.hashed(level) for level in range(4)] in ([False, False, True, True], [False, True, True, True])
    grid, plain = SpacetimeGrid(layout, seed=1), HashGrid(layout, seed=1)
    start = torch.rand(grid.params.shape, generator=torch.Generator().manual_seed(2)) - 0.5
    for encoding in (grid, plain):
        encoding.params.data.copy_(start)
    points = pixel_coordinates(shape) * 0.8
    times = torch.tensor([0.0, 0.13, 0.131, 0.5, 1.0], dtype=torch.float64)
    found = grid.frames(grid.space(points), times, active)
    everywhere = torch.cat([points.repeat(5, 1), times.float().repeat_interleave(len(points))[:, None]], dim=1)
    expected = plain(everywhere, active).reshape(5, len(points), -1)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(3))
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(grid.params.grad, plain.params.grad, rtol=1e-3, atol=1e-5)


def test_field_has_shape_and_seed() -> None:
    layout = HashGridLayout(3, levels=3, features=2, log2_table=8, base=4, growth=1.5)
    made = [SpacetimeField(layout, 6, 2, seed) for seed in (1, 1, 2)]
    plan = made[0].encoding.space(pixel_coordinates((4, 3)))
    times = torch.tensor([0.1, 0.9], dtype=torch.float64)
    one, same, other = (field(plan, times) for field in made)
    assert (one.dtype, one.shape) == (torch.complex64, (2, 12))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
