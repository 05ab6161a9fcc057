"""The adapter to tinycudann, against a stand-in with its signature, parameter layout and numbers."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import pytest
import torch

from recon_core.encodings import tcnn
from recon_core.encodings.hash_grid import HashGrid, HashGridLayout, growth_for, pixel_coordinates
from recon_core.encodings.tcnn import TinyCudaGrid, from_tinycudann, to_tinycudann
from recon_core.errors import DataError, MissingPartError, SettingError
from recon_core.fields.manifold import ManifoldField

LAYOUTS = [
    HashGridLayout(2, levels=7, features=2, log2_table=8, base=4, growth=growth_for(4, 33, 7)),
    HashGridLayout(2, levels=3, features=4, log2_table=10, base=8, growth=2.0),
    HashGridLayout(2, levels=3, features=1, log2_table=8, base=5, growth=1.0),
    HashGridLayout(3, levels=4, features=2, log2_table=9, base=3, growth=1.7),
    HashGridLayout(3, levels=3, features=8, log2_table=9, base=4, growth=growth_for(4, 12, 3)),
]


def points(dim: int) -> torch.Tensor:
    """Random points, corners of the domain and pixel centres."""
    ends = torch.tensor([[0.0] * dim, [1.0] * dim, [1.0, *[0.0] * (dim - 1)]])
    return torch.cat([torch.rand(40, dim), ends, pixel_coordinates((3, 4, 2)[:dim])[:8]])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_weights_give_the_same_features(layout: HashGridLayout, tinycudann: ModuleType) -> None:
    grid = HashGrid(layout, scale=1.0, seed=3)
    native = tinycudann.Encoding(layout.dim, tcnn.encoding_config(layout), dtype=torch.float32)
    assert native.offset_table == layout.offsets()
    assert native.n_output_dims == grid.out_dim
    assert native.params.shape == to_tinycudann(grid).shape
    native.params.data.copy_(to_tinycudann(grid))
    x = points(layout.dim)
    torch.testing.assert_close(grid(x), native(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_map_both_ways(layout: HashGridLayout, tinycudann: ModuleType) -> None:
    native = tinycudann.Encoding(layout.dim, tcnn.encoding_config(layout), dtype=torch.float32)
    native.params.data.uniform_(-1, 1)
    grid = from_tinycudann(native.params, layout)
    assert torch.equal(to_tinycudann(grid), native.params.detach())
    x = points(layout.dim)
    torch.testing.assert_close(grid(x), native(x), rtol=0, atol=1e-5)


def test_axes_are_not_interchangeable(tinycudann: ModuleType) -> None:
    """The comparison above would miss swapped axes only if swapping them changed nothing."""
    layout = LAYOUTS[0]
    grid = HashGrid(layout, scale=1.0)
    x = torch.rand(30, 2)
    assert float((grid(x) - grid(x.flip(1))).detach().abs().max()) > 0.1


def test_wrong_number_of_parameters() -> None:
    with pytest.raises(DataError, match="same layout") as error:
        from_tinycudann(torch.zeros(17), LAYOUTS[0])
    assert "17" in str(error.value)


@pytest.mark.usefixtures("tinycudann")
def test_adapter_starts_as_the_torch_grid_and_masks_levels() -> None:
    layout = LAYOUTS[0]
    adapter, grid = TinyCudaGrid(layout, scale=1.0, seed=5), HashGrid(layout, scale=1.0, seed=5)
    x = torch.rand(60, 2)
    torch.testing.assert_close(adapter(adapter.plan(x)), grid(x), rtol=0, atol=1e-5)
    torch.testing.assert_close(adapter(adapter.plan(x), 2), grid(x, 2), rtol=0, atol=1e-5)
    target = torch.randn(60, layout.levels * layout.features)
    (adapter(x, 3) * target).sum().backward()
    (grid(x, 3) * target).sum().backward()
    torch.testing.assert_close(adapter.native.params.grad.reshape(grid.params.shape), grid.params.grad, rtol=0, atol=1e-4)
    assert float(adapter.native.params.grad[layout.offsets()[3] * layout.features :].abs().max()) == 0


@pytest.mark.usefixtures("tinycudann")
def test_field_is_the_same_with_either() -> None:
    layout = LAYOUTS[1]
    fields = [ManifoldField(layout, 3, 8, 16, 2, seed=4, encoding=name) for name in ("torch", "tinycudann")]
    assert isinstance(fields[1].encoding, TinyCudaGrid)
    x, z = torch.rand(20, 2), torch.randn(2, 3)
    signals = [field(field.encoding.plan(x), z, 2) for field in fields]
    torch.testing.assert_close(signals[0], signals[1], rtol=0, atol=1e-6)


def test_absent_is_an_error_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tinycudann", None)
    with pytest.raises(MissingPartError, match="encoding=torch") as error:
        TinyCudaGrid(LAYOUTS[0])
    assert "pip install" in error.value.cure
    monkeypatch.setattr(tcnn, "MODULE", "tinycudann_that_nobody_has")
    assert "pip install" in tcnn.missing()


def test_an_import_without_cuda_is_an_error_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_cuda(name: str) -> ModuleType:
        raise OSError("Unknown compute capability. Ensure PyTorch with CUDA support is installed.")

    monkeypatch.setattr(importlib, "import_module", without_cuda)
    with pytest.raises(MissingPartError, match="compute capability"):
        TinyCudaGrid(LAYOUTS[0])


def test_features_tinycudann_does_not_have() -> None:
    with pytest.raises(SettingError, match="1, 2, 4 or 8"):
        tcnn.encoding_config(HashGridLayout(2, features=3))


@pytest.mark.usefixtures("tinycudann")
def test_coordinates_on_another_device_are_refused() -> None:
    adapter = TinyCudaGrid(LAYOUTS[0])
    with pytest.raises(MissingPartError, match="device=cpu"):
        adapter.plan(torch.rand(4, 2, device="meta"))
