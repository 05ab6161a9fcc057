"""What every fitted network must do: fit a fully sampled frame, depend on its seed alone, and follow a moving object in a few spokes."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from recon_core import metrics
from recon_core.calibration.whitening import whiten, whitening_matrix
from recon_core.options import build
from recon_core.phantoms.cardiac import CardiacScan, CardiacSettings, simulate
from recon_core.problem import KSpaceProblem
from recon_core.reconstruct import ReconstructionSettings, reconstruct
from recon_core.solvers import registry
from recon_core.solvers.base import Solver
from recon_core.solvers.fitting import FieldSolver, sampled_disc

GRID: dict[str, Any] = {"levels": 6, "log2_table": 12, "base_resolution": 4, "finest": 1.5, "width": 24}
# Enough of each network to hold one frame of 18 × 14 pixels.
FULL: dict[str, dict[str, Any]] = {
    "inmr": {**GRID, "steps": 250, "mapped": 4, "latent": 2, "smoothness": 0.0, "learning_rate": 1e-2},
    "hash_inr": {**GRID, "steps": 250, "depth": 2, "frame_step": 1.0, "learning_rate": 1e-2},
    "stinr": {**GRID, "steps": 250, "depth": 2, "variation": 0.1, "learning_rate": 1e-2},
    "da_inr": {**GRID, "steps": 300, "depth": 2, "learning_rate": 1e-2},
    "fmlp": {"steps": 400, "spatial_features": 64, "temporal_features": 4, "width": 48, "depth": 3, "temporal_bandwidth": 0.0},
    "td_dip": {"steps": 400, "mapped": 64, "channels": 24, "learning_rate": 1e-2},
    "nik": {"steps": 250, "features": 96, "width": 64, "depth": 3, "temporal_bandwidth": 0.0},
}
NETWORKS = [name for name in registry.names() if issubclass(registry.solver_class(name), FieldSolver)]


def fit(name: str, problem: KSpaceProblem, own: dict[str, Any], seed: int = 0) -> Solver[Any]:
    cls = registry.solver_class(name)
    solver = cls(build(cls.Settings, own), engine="finufft", seed=seed)
    solver.start(problem)
    while not solver.done:
        solver.update()
    return solver


@pytest.mark.parametrize("name", NETWORKS)
def test_a_fully_sampled_frame_is_fitted_to_40_db(name: str, toy: ModuleType) -> None:
    problem, truth = toy.full_frame()
    images = fit(name, problem, FULL[name]).images().images.numpy()
    # No alignment: phase and scale are the object's own.
    reached = float(metrics.psnr_db(images, truth.numpy())[0])
    assert reached > 40


@pytest.mark.parametrize("name", NETWORKS)
def test_seed_is_the_only_chance(name: str, toy: ModuleType) -> None:
    problem, _ = toy.full_frame()
    first, same, other = (fit(name, problem, {**FULL[name], "steps": 2}, seed).images().images for seed in (4, 4, 5))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "nik"])
def test_images_hold_nothing_from_where_no_sample_was_taken(name: str, toy: ModuleType) -> None:
    """Corners of k-space beyond the spokes, where nothing binds the network; within the disc nothing changes. Lines have no corners."""
    problem, _ = toy.full_frame()
    limited, free = (
        torch.fft.fft2(fit(name, problem, {**FULL[name], "steps": 20, "band_limit": limit}).images().images) for limit in (True, False)
    )
    y, x = torch.fft.fftfreq(18)[:, None], torch.fft.fftfreq(14)[None]
    # Spokes end at half a cycle per pixel; the object has the size of the field of view, whose cycle the limit leaves.
    outside = torch.hypot(y, x) > 0.5 + 1 / 14
    assert 0 < int(outside.sum()) < 60
    assert float(limited[:, outside].abs().max()) < 1e-5 * float(free.abs().max())
    assert float(free[:, outside].abs().max()) > 0
    torch.testing.assert_close(limited[:, ~outside], free[:, ~outside], rtol=1e-4, atol=1e-5 * float(free.abs().max()))
    corners = torch.tensor([[-7.0, -9.0], [6.0, 8.0]])
    assert sampled_disc([problem.trajectory.flatten(0, 1), corners], (18, 14)) is None


# Reduced in width, depth and steps; λ and stopping by held-out readouts, nothing by the truth.
REDUCED: dict[str, dict[str, Any]] = {
    "inmr": {"levels": 8, "steps": 600},
    "hash_inr": {"levels": 8, "width": 32, "depth": 3, "steps": 300, "batch_frames": 8},
    "stinr": {"levels": 8, "width": 32, "depth": 3, "steps": 300, "batch_frames": 8},
    "da_inr": {"levels": 8, "width": 32, "depth": 3},
    "fmlp": {"width": 128, "depth": 5, "spatial_features": 256, "temporal_features": 64, "steps": 1500},
    "td_dip": {"channels": 32, "steps": 1200},
    "nik": {"width": 96, "features": 384, "steps": 1000},
}
# Matrix, spokes a frame and coils. NIK has no model of the coils: it needs more readouts than the methods of images.
SCANS: dict[str, tuple[int, int, int]] = {"nik": (32, 16, 4)}


@functools.cache
def heart(matrix: int, spokes: int, coils: int) -> tuple[CardiacScan, KSpaceProblem]:
    """40 frames as a scanner would send them: noisy, without maps."""
    scan = simulate(CardiacSettings(matrix=(matrix, matrix), frames=40, readouts_per_frame=spokes, coils=coils))
    samples = whiten(torch.from_numpy(scan.samples), whitening_matrix(torch.from_numpy(scan.noise)))
    problem = KSpaceProblem(
        samples=samples,
        trajectory=torch.from_numpy(scan.trajectory),
        frames=tuple(torch.arange(spokes * t, spokes * t + spokes) for t in range(40)),
        readout_times=torch.from_numpy(scan.times),
        frame_times=torch.from_numpy(scan.frame_times),
        shape=(matrix, matrix),
    )
    return scan, problem


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_beating_heart_moves(name: str) -> None:
    """Better than the time average of the truth, most of the motion recovered."""
    matrix, spokes, coils = SCANS.get(name, (48, 4, 6))
    scan, problem = heart(matrix, spokes, coils)
    result = reconstruct(problem, ReconstructionSettings(solver=name, coils=coils, device="cpu"), REDUCED[name], print)
    images = result.series.images.numpy()
    assert np.isfinite(images).all()
    scores = metrics.score(images, scan.truth, scan.moving)
    print(name, {key: round(value, 3) for key, value in scores.items() if isinstance(value, float)}, result.report["seconds"])
    assert scores["dynamic_error"] < 0.8
    assert scores["psnr_db"] > scores["time_average_psnr_db"]
