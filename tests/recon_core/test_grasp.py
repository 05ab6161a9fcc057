"""GRASP: proximal map, optimum and use against plain least squares."""

from __future__ import annotations

import itertools
from types import ModuleType

import pytest
import torch
from torch import Tensor

from recon_core.calibration.calibrate import with_density
from recon_core.operators.frames import FrameEncoding
from recon_core.operators.proximal import TemporalTv
from recon_core.problem import KSpaceProblem
from recon_core.reconstruct import ReconstructionSettings, reconstruct
from recon_core.solvers import grasp
from recon_core.solvers.cg_sense import CgSense, CgSenseSettings
from recon_core.solvers.frame_series import SeriesDataTerm
from recon_core.solvers.grasp import Grasp, GraspSettings


@pytest.fixture(scope="module")
def scan(toy: ModuleType) -> tuple[KSpaceProblem, Tensor]:
    """A noisy scan with the toy's own maps, and its true series."""
    problem, truth = toy.toy_problem(n_frames=16, shape=(20, 18), coils=3, per_frame=2, noise=0.02)
    return with_density(problem.replace(sensitivities=toy.toy_maps(3, (20, 18)))), truth


def fit(problem: KSpaceProblem, previous: Grasp | None = None, **settings: float) -> Grasp:
    solver = Grasp(GraspSettings(**settings))
    solver.start(problem, previous)
    while not solver.done:
        solver.update()
    return solver


def full_cost(solver: Grasp, problem: KSpaceProblem, series: Tensor) -> float:
    """The cost from the encoding itself, not from the Toeplitz form."""
    weights = (problem.weights / problem.weights.max()) ** solver.settings.density_power
    encoding = FrameEncoding(problem.replace(weights=weights))
    misfit = sum(
        0.5 * float((f.weights * (encoding.forward(series[t], t) - f.samples).abs().square()).sum()) for t, f in enumerate(encoding.frames)
    )
    return misfit + solver.weight * float((series[1:] - series[:-1]).abs().sum())


def error(images: Tensor, truth: Tensor) -> float:
    return float((images - truth).norm() / truth.norm())


def test_prox_of_two_frames_in_closed_form() -> None:
    """Two frames move towards each other by the threshold each, and meet in their mean."""
    a, b = torch.tensor([1 + 2j, 0.1 + 0j, -3j]), torch.tensor([4 - 2j, 0.2 + 0j, -3j])
    found = TemporalTv((2, 3), 200)(torch.stack([a, b]), 0.7)
    gap = b - a
    move = gap * (0.7 / gap.abs().clamp_min(1e-9)).clamp_max(0.5)
    torch.testing.assert_close(found, torch.stack([a + move, b - move]), rtol=1e-4, atol=1e-4)


def test_prox_against_a_general_minimiser() -> None:
    """Subgradients of a smoothed norm, followed by an optimiser that knows nothing of proximal maps."""
    given = torch.randn(7, 4, dtype=torch.complex64)
    found = TemporalTv(given.shape, 400)(given, 0.6)
    x = torch.view_as_real(given).double().clone().requires_grad_(True)
    optimiser = torch.optim.LBFGS([x], max_iter=2000, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        z = torch.view_as_complex(x)
        cost = 0.5 * (z - given).abs().square().sum() + 0.6 * ((z[1:] - z[:-1]).abs().square() + 1e-10).sqrt().sum()
        cost.backward()
        return cost

    optimiser.step(closure)
    torch.testing.assert_close(found, torch.view_as_complex(x.detach()).to(torch.complex64), rtol=0, atol=2e-3)


def test_data_term_and_gradient_are_those_of_the_encoding(scan: tuple[KSpaceProblem, Tensor]) -> None:
    problem, truth = scan
    data = SeriesDataTerm.of(problem, 0.0)
    encoding = FrameEncoding(problem.replace(weights=None))
    series = (truth + 0.1 * torch.randn_like(truth)).requires_grad_(True)
    cost = sum(0.5 * (encoding.forward(series[t], t) - f.samples).abs().square().sum() for t, f in enumerate(encoding.frames))
    assert isinstance(cost, Tensor)
    cost.backward()
    gradient, value = data.gradient(series.detach())
    assert value == pytest.approx(float(cost.detach()), rel=1e-3)
    assert series.grad is not None
    assert float((gradient - series.grad).norm() / series.grad.norm()) < 1e-3


def test_lipschitz_constant_bounds_the_operator(scan: tuple[KSpaceProblem, Tensor]) -> None:
    data = SeriesDataTerm.of(scan[0], 0.25)
    x = torch.randn_like(data.target)
    for _ in range(60):
        x = data.normal(x / x.norm())
    assert 0.8 * data.lipschitz < float(x.norm()) <= data.lipschitz


def test_time_average_fits_all_frames_best(scan: tuple[KSpaceProblem, Tensor]) -> None:
    data = SeriesDataTerm.of(scan[0], 0.5)
    average = data.time_average()
    still = average.expand_as(data.target)
    best = data.gradient(still)[1]
    assert error(average, scan[1].mean(0)) < 0.15
    for factor in (0.9, 1.1):
        assert data.gradient(factor * still)[1] > best


def test_the_cost_told_is_the_cost_and_falls(scan: tuple[KSpaceProblem, Tensor]) -> None:
    problem, _ = scan
    solver = Grasp(GraspSettings(strength=0.01, steps=30))
    solver.start(problem)
    costs, seen = [], []
    while not solver.done:
        seen.append(full_cost(solver, problem, solver.fista.ahead))
        solver.update()
        costs.append(solver.objective())
    assert costs == pytest.approx(seen, rel=1e-3)
    assert all(after < before * 1.01 for before, after in itertools.pairwise(costs))
    assert costs[-1] < 0.5 * costs[0]


def test_optimum_of_a_long_run_with_an_exact_proximal_map(scan: tuple[KSpaceProblem, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    problem, _ = scan
    short = fit(problem, strength=0.02, steps=80)
    reached = full_cost(short, problem, short.fista.x)
    monkeypatch.setattr(grasp, "_DUAL_STEPS", 60)
    long = fit(problem, strength=0.02, steps=400)
    best = full_cost(long, problem, long.fista.x)
    start = Grasp(GraspSettings(strength=0.02))
    start.start(problem)
    assert best <= reached
    assert reached - best < 0.06 * (full_cost(start, problem, start.fista.x) - best)
    # Stationary: no direction from the long run's series lowers the cost.
    for seed in range(4):
        noise = torch.randn(long.fista.x.shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))
        away = long.fista.x + 0.01 * float(long.fista.x.abs().max()) * noise
        assert full_cost(long, problem, away) > best


def test_strong_regularisation_gives_the_time_average(scan: tuple[KSpaceProblem, Tensor]) -> None:
    images = fit(scan[0], strength=5.0, steps=60).images().images
    assert float((images - images.mean(0)).norm() / images.norm()) < 3e-3


def test_beats_least_squares_and_the_time_average(toy: ModuleType) -> None:
    problem, truth = toy.toy_problem(noise=0.02)
    problem = with_density(problem.replace(sensitivities=toy.toy_maps(3, problem.shape)))
    images = fit(problem, strength=0.01, steps=40).images().images
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
    previous = fit(scan[0], strength=0.01, steps=20)
    warm = Grasp(GraspSettings(strength=0.01, steps=5))
    warm.start(scan[0], previous)
    assert torch.equal(warm.fista.x, previous.fista.x)
    before = previous.fista.x.clone()
    warm.update()
    assert torch.equal(previous.fista.x, before)


def test_volumes(scan: tuple[KSpaceProblem, Tensor]) -> None:
    """A volume whose slices do not differ gives the slice in all of them."""
    flat, _ = scan
    # Lines along kz through the slice's points would be a volume; one plane kz = 0 alone sees the mean over z.
    trajectory = torch.cat([flat.trajectory, torch.zeros(*flat.trajectory.shape[:2], 1)], dim=-1)
    maps = flat.sensitivities[:, None].expand(-1, 4, -1, -1).contiguous()
    volume = flat.replace(trajectory=trajectory, shape=(4, 20, 18), sensitivities=maps, field_of_view=None)
    images = fit(volume, strength=0.01, steps=20).images().images
    plane = fit(flat, strength=0.01, steps=20).images().images
    assert images.shape == (16, 4, 20, 18)
    assert float((images - images.mean(1, keepdim=True)).norm() / images.norm()) < 1e-2
    assert error(2 * images[:, 1], plane) < 0.05


def test_strength_is_chosen_on_held_out_readouts(toy: ModuleType) -> None:
    problem, truth = toy.toy_problem(n_frames=16, shape=(24, 22), coils=3, per_frame=3, noise=0.05)
    result = reconstruct(problem, ReconstructionSettings(solver="grasp", coils=3, holdout=0.1), {"steps": 30})
    tried = result.report["tried"]
    strengths = [t["settings"]["strength"] for t in tried]
    assert strengths[:3] == list(grasp.SELECTED_STRENGTHS)
    best = min(tried, key=lambda t: t["held_out_error"])
    place = grasp.STRENGTHS.index(best["settings"]["strength"])
    assert {*grasp.STRENGTHS[max(place - 1, 0) : place + 2]} <= {*strengths}, "a neighbour of the choice was not tried"
    assert result.report["settings"]["strength"] == best["settings"]["strength"]
    assert result.report["steps"] == best["step"]
    assert error(result.series.images.abs(), truth.abs()) < 0.15
