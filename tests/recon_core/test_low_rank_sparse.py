"""L+S: proximal maps, optimum and use against plain least squares."""

from __future__ import annotations

import itertools
from types import ModuleType

import pytest
import torch
from torch import Tensor

from recon_core.calibration.calibrate import with_density
from recon_core.operators.frames import FrameEncoding
from recon_core.problem import KSpaceProblem
from recon_core.reconstruct import ReconstructionSettings, reconstruct
from recon_core.solvers.cg_sense import CgSense, CgSenseSettings
from recon_core.solvers.low_rank_sparse import (
    SELECTED_LOW_RANK,
    SELECTED_SPARSE,
    LowRankSparse,
    LowRankSparseSettings,
    singular_values,
    threshold_singular_values,
    threshold_temporal_spectrum,
)


@pytest.fixture(scope="module")
def scan(toy: ModuleType) -> tuple[KSpaceProblem, Tensor]:
    """A noisy scan with the toy's own maps, and its true series."""
    problem, truth = toy.toy_problem(n_frames=16, shape=(20, 18), coils=3, per_frame=2, noise=0.02)
    return with_density(problem.replace(sensitivities=toy.toy_maps(3, (20, 18)))), truth


def fit(problem: KSpaceProblem, previous: LowRankSparse | None = None, **settings: float) -> LowRankSparse:
    solver = LowRankSparse(LowRankSparseSettings(**settings))
    solver.start(problem, previous)
    while not solver.done:
        solver.update()
    return solver


def full_cost(solver: LowRankSparse, problem: KSpaceProblem, pair: Tensor) -> float:
    """The cost from the encoding itself and a plain SVD."""
    weights = (problem.weights / problem.weights.max()) ** solver.settings.density_power
    encoding = FrameEncoding(problem.replace(weights=weights))
    misfit = sum(
        0.5 * float((f.weights * (encoding.forward(image, t) - f.samples).abs().square()).sum())
        for t, (f, image) in enumerate(zip(encoding.frames, pair.sum(0), strict=True))
    )
    nuclear = float(torch.linalg.svdvals(pair[0].flatten(1)).sum())
    return misfit + solver.weights[0] * nuclear + solver.weights[1] * float(torch.fft.fft(pair[1], dim=0, norm="ortho").abs().sum())


def error(images: Tensor, truth: Tensor) -> float:
    return float((images - truth).norm() / truth.norm())


@pytest.mark.parametrize("shape", [(6, 5, 4), (9, 2, 3), (5, 2, 3, 4)])
def test_singular_value_threshold_is_that_of_a_plain_svd(shape: tuple[int, ...]) -> None:
    series = torch.randn(shape, dtype=torch.complex64)
    u, s, v = torch.linalg.svd(series.flatten(1), full_matrices=False)
    torch.testing.assert_close(singular_values(series)[0][: s.numel()].float(), s, rtol=1e-4, atol=1e-3)
    threshold = 0.6 * float(s[0])
    expected = ((u * (s - threshold).clamp_min(0)) @ v).reshape(shape)
    torch.testing.assert_close(threshold_singular_values(series, threshold), expected, rtol=1e-3, atol=1e-4)


def test_singular_value_threshold_ends(toy: ModuleType) -> None:
    series = torch.randn(6, 4, 5, dtype=torch.complex64)
    torch.testing.assert_close(threshold_singular_values(series, 0.0), series, rtol=1e-4, atol=1e-4)
    assert float(threshold_singular_values(series, 1e3).abs().max()) == 0
    nothing = torch.zeros(6, 4, 5, dtype=torch.complex64)
    assert torch.equal(threshold_singular_values(nothing, 1.0), nothing)


def test_temporal_threshold_by_hand() -> None:
    """One temporal frequency a pixel: its amplitude shrinks by the threshold, its phase stays; below the threshold it vanishes."""
    t = torch.arange(8)
    wave = torch.exp(2j * torch.pi * 3 * t / 8)
    series = torch.stack([2 * torch.exp(torch.tensor(0.7j)) * wave, 0.1 * wave], dim=1).to(torch.complex64)
    # A unitary transform gathers a wave of amplitude a over 8 frames into √8·a.
    found = threshold_temporal_spectrum(series, 0.5 * 8**0.5)
    torch.testing.assert_close(found[:, 0], series[:, 0] * (1.5 / 2), rtol=1e-5, atol=1e-5)
    assert float(found[:, 1].abs().max()) < 1e-6


def test_proximal_maps_are_minima() -> None:
    """No small step from the proximal point lowers ½‖z − x‖² + λ·penalty."""
    given = torch.randn(6, 4, 3, dtype=torch.complex64)
    for prox, penalty in (
        (threshold_singular_values, lambda z: torch.linalg.svdvals(z.flatten(1)).sum()),
        (threshold_temporal_spectrum, lambda z: torch.fft.fft(z, dim=0, norm="ortho").abs().sum()),
    ):
        point = prox(given, 0.8)

        def cost(z: Tensor, penalty=penalty) -> float:
            return float(0.5 * (z - given).abs().square().sum() + 0.8 * penalty(z))

        best = cost(point)
        assert best < cost(given)
        for size in (1e-1, 1e-2):
            for _ in range(20):
                assert cost(point + size * torch.randn_like(point)) > best


def test_the_cost_told_is_the_cost_and_falls(scan: tuple[KSpaceProblem, Tensor]) -> None:
    problem, _ = scan
    solver = LowRankSparse(LowRankSparseSettings(low_rank=0.02, sparse=0.01, steps=30))
    solver.start(problem)
    costs, seen = [], []
    while not solver.done:
        seen.append(full_cost(solver, problem, solver.fista.ahead))
        solver.update()
        costs.append(solver.objective())
    assert costs == pytest.approx(seen, rel=2e-3)
    assert all(after < before * 1.01 for before, after in itertools.pairwise(costs))
    assert costs[-1] < 0.8 * costs[0]


def test_optimum_of_a_long_run(scan: tuple[KSpaceProblem, Tensor]) -> None:
    problem, _ = scan
    settings = {"low_rank": 0.03, "sparse": 0.02}
    long = fit(problem, steps=1200, **settings)
    best = full_cost(long, problem, long.fista.x)
    short = fit(problem, steps=120, **settings)
    start = LowRankSparse(LowRankSparseSettings(**settings))
    start.start(problem)
    first = full_cost(start, problem, start.fista.x)
    assert best <= full_cost(short, problem, short.fista.x) < best + 0.02 * (first - best)
    for seed in range(4):
        noise = torch.randn(long.fista.x.shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))
        away = long.fista.x + 0.003 * float(long.fista.x.abs().max()) * noise
        assert full_cost(long, problem, away) > best


def test_background_goes_to_the_low_rank_part(scan: tuple[KSpaceProblem, Tensor]) -> None:
    problem, truth = scan
    solver = fit(problem, low_rank=0.02, sparse=0.1)
    low_rank, sparse = solver.fista.x
    values = singular_values(low_rank)[0]
    assert float(values[8:].max()) < 1e-3 * float(values[0])
    assert error(low_rank.mean(0), truth.mean(0)) < 0.2
    assert float(sparse.norm()) < 0.5 * float(low_rank.norm())


def test_beats_least_squares_and_the_time_average(toy: ModuleType) -> None:
    problem, truth = toy.toy_problem(noise=0.02)
    problem = with_density(problem.replace(sensitivities=toy.toy_maps(3, problem.shape)))
    images = fit(problem, low_rank=0.003, sparse=0.02, steps=40).images().images
    plain = []
    for damping in (1.0, 0.1, 0.01):
        solver = CgSense(CgSenseSettings(damping=damping))
        solver.start(problem)
        while not solver.done:
            solver.update()
        plain.append(error(solver.images().images, truth))
    assert error(images, truth) < 0.6 * min(plain)
    assert error(images, truth) < 0.75 * error(truth.mean(0).expand_as(truth), truth)


def test_warm_start_goes_on_where_the_last_fit_stopped(scan: tuple[KSpaceProblem, Tensor]) -> None:
    previous = fit(scan[0], low_rank=0.02, sparse=0.01, steps=20)
    warm = LowRankSparse(LowRankSparseSettings(low_rank=0.02, sparse=0.01, steps=5))
    warm.start(scan[0], previous)
    assert torch.equal(warm.images().images, previous.images().images)
    before = previous.fista.x.clone()
    warm.update()
    assert torch.equal(previous.fista.x, before)


def test_candidates_are_a_grid_over_what_is_not_set(scan: tuple[KSpaceProblem, Tensor]) -> None:
    def pairs(settings: LowRankSparseSettings) -> set[tuple[float, float]]:
        return {(c.low_rank, c.sparse) for c in LowRankSparse.candidates(settings, scan[0])}

    assert pairs(LowRankSparseSettings()) == set(itertools.product(SELECTED_LOW_RANK, SELECTED_SPARSE))
    assert pairs(LowRankSparseSettings(low_rank=0.5)) == {(0.5, s) for s in SELECTED_SPARSE}
    assert pairs(LowRankSparseSettings(sparse=0.5, low_rank=0.1)) == {(0.1, 0.5)}


def test_weights_are_chosen_on_held_out_readouts(toy: ModuleType) -> None:
    problem, truth = toy.toy_problem(n_frames=16, shape=(24, 22), coils=3, per_frame=3, noise=0.05)
    result = reconstruct(problem, ReconstructionSettings(solver="low_rank_sparse", coils=3, holdout=0.1), {"steps": 30})
    best = min(result.report["tried"], key=lambda t: t["held_out_error"])
    assert result.report["settings"] == best["settings"]
    assert result.report["steps"] == best["step"]
    assert error(result.series.images.abs(), truth.abs()) < 0.15
