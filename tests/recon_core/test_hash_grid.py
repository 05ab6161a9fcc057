"""The hash encoding: table layout, interpolation, level masking, gradient."""

from __future__ import annotations

import pytest
import torch

from recon_core.encodings.hash_grid import HashGrid, HashGridLayout, corner_entries, growth_for, pixel_coordinates

LAYOUTS = [
    HashGridLayout(2, levels=6, features=2, log2_table=8, base=4, growth=1.6),
    HashGridLayout(3, levels=4, features=4, log2_table=9, base=3, growth=1.7),
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_pads_dense_levels_and_caps_hashed_ones(layout: HashGridLayout) -> None:
    offsets = layout.offsets()
    assert offsets[0] == 0
    kinds = set()
    for level in range(layout.levels):
        size = offsets[level + 1] - offsets[level]
        dense = layout.resolution(level) ** layout.dim
        assert size % 8 == 0
        if layout.hashed(level):
            assert size == 2**layout.log2_table < dense
        else:
            assert dense <= size < dense + 8
        kinds.add(layout.hashed(level))
    assert kinds == {True, False}, "the case must have levels of both kinds"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_entries_stay_in_the_table_and_weights_sum_to_one(layout: HashGridLayout) -> None:
    coordinates = torch.cat([torch.rand(200, layout.dim), torch.zeros(1, layout.dim), torch.ones(1, layout.dim)])
    for level in range(layout.levels):
        entries, weights = corner_entries(layout, coordinates, level)
        assert entries.shape == weights.shape == (202, 2**layout.dim)
        assert int(entries.min()) >= 0
        assert int(entries.max()) < layout.table_size(level)
        torch.testing.assert_close(weights.sum(1), torch.ones(202))
        assert float(weights.min()) >= 0


def test_a_dense_level_interpolates_its_grid_points() -> None:
    """At a grid point the feature is that point's entry (first axis fastest); between two it is their mean."""
    layout = HashGridLayout(2, levels=1, features=1, log2_table=12, base=9, growth=1.0)
    grid = HashGrid(layout)
    values = torch.arange(layout.offsets()[-1], dtype=torch.float32)[:, None]
    grid.params.data.copy_(values)
    i, j = 3, 5
    at = torch.tensor([[(i - 0.5) / 8, (j - 0.5) / 8], [i / 8, (j - 0.5) / 8], [(i - 0.5) / 8, j / 8]])
    expected = torch.tensor([[i + 9.0 * j], [i + 0.5 + 9 * j], [i + 9 * (j + 0.5)]])
    torch.testing.assert_close(grid(at).detach(), expected)


def test_growth_reaches_the_finest_level_and_stays_off_whole_numbers() -> None:
    for base, finest, levels in [(8, 128, 16), (16, 256, 5), (4, 30, 7), (8, 8, 3), (16, 4, 6), (8, 100, 1)]:
        growth = growth_for(base, finest, levels)
        layout = HashGridLayout(2, levels=levels, base=base, growth=growth)
        assert layout.resolution(0) == base
        assert layout.resolution(levels - 1) == (base if levels == 1 else max(base, finest))
        for level in range(levels if growth > 1 else 0):
            scale = layout.scale(level)
            distance = abs(scale - round(scale))
            assert level == 0 or distance > 3e-7 * scale, "the last bit of a float must not decide a level's resolution"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_plan_and_coordinates_give_the_same_features(layout: HashGridLayout) -> None:
    grid = HashGrid(layout, scale=1.0)
    coordinates = torch.rand(50, layout.dim)
    assert torch.equal(grid(coordinates), grid(grid.plan(coordinates)))
    assert grid(coordinates).shape == (50, grid.out_dim)


def test_levels_switched_off_give_zero_and_get_no_gradient() -> None:
    layout = LAYOUTS[0]
    grid = HashGrid(layout, scale=1.0)
    coordinates = torch.rand(80, 2)
    half = grid(coordinates, active=3)
    first = 3 * layout.features
    torch.testing.assert_close(half[:, :first], grid(coordinates)[:, :first], rtol=0, atol=0)
    assert float(half[:, first:].detach().abs().max()) == 0
    half.square().sum().backward()
    boundary = layout.offsets()[3]
    assert float(grid.params.grad[:boundary].abs().max()) > 0
    assert float(grid.params.grad[boundary:].abs().max()) == 0


@pytest.mark.parametrize("active", [None, 1, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_plan_and_coordinates_give_the_same_gradient(layout: HashGridLayout, active: int | None) -> None:
    coordinates = torch.rand(70, layout.dim)
    target = torch.randn(70, layout.levels * layout.features)
    gradients = []
    for planned in (False, True):
        grid = HashGrid(layout, scale=1.0)
        (grid(grid.plan(coordinates) if planned else coordinates, active) * target).sum().backward()
        gradients.append(grid.params.grad)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


def test_gradient_against_differences() -> None:
    layout = HashGridLayout(2, levels=3, features=2, log2_table=8, base=3, growth=2.0)
    grid = HashGrid(layout, scale=1.0)
    coordinates = torch.rand(7, 2)
    target = torch.randn(7, grid.out_dim)
    loss = (grid(coordinates) * target).sum()
    loss.backward()
    touched = torch.nonzero(grid.params.grad.abs() > 1e-3)[:12]
    for entry, feature in touched.tolist():
        before = grid.params.data[entry, feature].clone()
        grid.params.data[entry, feature] = before + 0.5
        changed = (grid(coordinates) * target).sum().detach()
        grid.params.data[entry, feature] = before
        assert float((changed - loss.detach()) / 0.5) == pytest.approx(float(grid.params.grad[entry, feature]), abs=1e-4)


def test_the_start_is_seeded_small_and_centred() -> None:
    layout = LAYOUTS[0]
    one, same, other = HashGrid(layout, seed=1), HashGrid(layout, seed=1), HashGrid(layout, seed=2)
    assert torch.equal(one.params, same.params)
    assert not torch.equal(one.params, other.params)
    assert float(one.params.detach().abs().max()) <= 1e-4
    assert abs(float(one.params.detach().mean())) < 1e-5


def test_pixel_coordinates_are_pixel_centres_in_image_order() -> None:
    coordinates = pixel_coordinates((3, 5)).reshape(3, 5, 2)
    assert coordinates[1, 4].tolist() == pytest.approx([0.5, 0.9])
    assert coordinates[0, 0].tolist() == pytest.approx([1 / 6, 0.1])
    assert pixel_coordinates((2, 3, 4)).reshape(2, 3, 4, 3)[1, 2, 0].tolist() == pytest.approx([0.75, 5 / 6, 0.125])
