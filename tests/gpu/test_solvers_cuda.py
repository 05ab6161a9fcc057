"""The same code on CUDA and on the CPU gives the same images."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from recon_core import metrics
from recon_core.encodings import tcnn
from recon_core.encodings.hash_grid import HashGrid, HashGridLayout
from recon_core.encodings.tcnn import TinyCudaGrid
from recon_core.reconstruct import ReconstructionSettings, reconstruct
from recon_core.solvers import registry

QUICK: dict[str, dict[str, Any]] = {
    "cg_sense": {"steps": 6, "damping": 0.05},
    # Few steps: rounding grows with every step of Adam.
    "inmr": {"steps": 8, "batch_frames": 4, "levels": 5, "log2_table": 10, "width": 16, "mapped": 8, "latent": 3, "smoothness": 0.5},
}


@pytest.mark.parametrize("name", registry.names())
def test_same_images_as_on_the_cpu(toy: ModuleType, name: str) -> None:
    problem, _ = toy.toy_problem(n_frames=10, shape=(22, 20), coils=3, per_frame=4, noise=0.01)
    results = [
        reconstruct(problem, ReconstructionSettings(solver=name, coils=3, device=device, holdout=0.0), QUICK.get(name, {}))
        for device in ("cpu", "cuda")
    ]
    assert results[1].report["device"] == "cuda"
    assert "on cuda" in results[1].series.notes[0]
    cpu, gpu = (r.series.images for r in results)
    assert not gpu.is_cuda
    assert float((gpu - cpu).norm() / cpu.norm()) < (2e-2 if name == "inmr" else 2e-3)


def test_inmr_learns_the_dynamics_with_its_settings_chosen_on_cuda(toy: ModuleType) -> None:
    problem, truth = toy.toy_problem(noise=0.01)
    own = {"steps": 700, "batch_frames": 2, "levels": 6, "width": 32, "mapped": 16, "latent": 4, "log2_table": 10, "base_resolution": 4}
    series = reconstruct(problem, ReconstructionSettings(solver="inmr", coils=3, device="cuda", holdout=0.1), own).series
    scores = metrics.score(series.images.numpy(), truth.numpy(), metrics.moving_region(truth))
    assert scores["dynamic_error"] < 0.7
    assert series.latents.shape == (24, 4)


@pytest.mark.parametrize("dim", [2, 3])
def test_tinycudann_itself_gives_the_torch_numbers(dim: int) -> None:
    """Not the stand-in of tests/recon_core: the real library, where it is installed."""
    if tcnn.missing():
        pytest.skip(f"tinycudann: {tcnn.missing()}")
    layout = HashGridLayout(dim, levels=6, features=2, log2_table=9, base=4, growth=1.6)
    native, grid = TinyCudaGrid(layout, scale=1.0, seed=2), HashGrid(layout, scale=1.0, seed=2).cuda()
    x = torch.rand(500, dim, device="cuda")
    torch.testing.assert_close(native(native.plan(x), 4), grid(x, 4), rtol=0, atol=1e-4)
    target = torch.randn(500, grid.out_dim, device="cuda")
    (native(native.plan(x)) * target).sum().backward()
    (grid(x) * target).sum().backward()
    torch.testing.assert_close(native.native.params.grad.reshape(grid.params.shape), grid.params.grad, rtol=1e-3, atol=1e-3)
