"""The temporal basis from the scan itself, and GRASP-Pro on it."""

from __future__ import annotations

import dataclasses
from types import ModuleType

import pytest
import torch

from recon_core.calibration import calibrate
from recon_core.calibration.temporal_basis import low_resolution_series, power_weighted, temporal_basis
from recon_core.problem import KSpaceProblem
from recon_core.solvers.grasp_pro import GraspPro, GraspProSettings

SMALL = GraspProSettings(rank=5, steps=40, strength=1e-4, basis_width=20, basis_coils=3)


@pytest.fixture(scope="module")
def scan(toy: ModuleType) -> tuple[KSpaceProblem, torch.Tensor]:
    problem, truth = toy.toy_problem(n_frames=36, per_frame=3, noise=0.005)
    return calibrate(problem, 3)[0], truth


def errors(images: torch.Tensor, truth: torch.Tensor) -> tuple[float, float]:
    """Relative error, and that of the deviation from the time mean, after one phase a pixel and one scale."""
    aligned = images * torch.exp(-1j * (images * truth.conj()).sum(0).angle())
    aligned = aligned * ((truth.conj() * aligned).real.sum() / aligned.abs().square().sum())
    dynamic = (aligned - truth) - (aligned - truth).mean(0)
    return float((aligned - truth).norm() / truth.norm()), float(dynamic.norm() / (truth - truth.mean(0)).norm())


def fit(problem: KSpaceProblem, settings: GraspProSettings, previous: GraspPro | None = None) -> GraspPro:
    solver = GraspPro(settings)
    solver.start(problem, previous)
    while not solver.done:
        solver.update()
    return solver


def test_basis_is_orthonormal_and_spans_a_series_of_its_rank() -> None:
    series = torch.randn(3, 20).T.to(torch.complex64) @ torch.randn(3, 50, dtype=torch.complex64)
    basis, values = temporal_basis(series, 3)
    torch.testing.assert_close(basis @ basis.T, torch.eye(3), rtol=1e-4, atol=1e-5)
    projected = basis.T.to(series.dtype) @ (basis.to(series.dtype) @ series)
    torch.testing.assert_close(projected, series, rtol=1e-3, atol=1e-4)
    assert values[0] >= values[1] >= values[2] > 0
    assert temporal_basis(series, 99)[0].shape == (20, 20)


def test_basis_from_the_scan_holds_the_true_series(scan: tuple[KSpaceProblem, torch.Tensor]) -> None:
    problem, truth = scan
    series = low_resolution_series(problem.replace(sensitivities=None), 20, 0.06, 40, 3)
    basis, _ = temporal_basis(series, 5)
    flat = (truth * torch.exp(-1j * truth.mean(0).angle())).flatten(1)
    missing = flat - basis.T.to(flat.dtype) @ (basis.to(flat.dtype) @ flat)
    assert missing.norm() < 0.3 * (flat - flat.mean(0)).norm()


def test_power_of_the_weights(toy: ModuleType) -> None:
    problem = calibrate(toy.toy_problem(n_frames=4)[0], 2)[0]
    weighted = power_weighted(problem, 0.5).weights
    assert weighted is not None
    assert problem.weights is not None
    torch.testing.assert_close(weighted.square() * problem.weights.max(), problem.weights)
    flat = power_weighted(problem, 0.0).weights
    assert flat is not None
    assert flat.min() == flat.max() == 1


def test_recovers_the_motion(scan: tuple[KSpaceProblem, torch.Tensor]) -> None:
    problem, truth = scan
    static, dynamic = errors(fit(problem, SMALL).images().images, truth)
    assert static < 0.1
    assert dynamic < 0.5


def test_thresholds_grow_for_weak_bases(scan: tuple[KSpaceProblem, torch.Tensor]) -> None:
    solver = GraspPro(SMALL)
    solver.start(scan[0])
    thresholds = solver.thresholds()
    assert thresholds[0] < thresholds[1]
    assert bool((thresholds[2:] >= thresholds[1:-1]).all())
    even = GraspPro(dataclasses.replace(SMALL, strength_power=0.0))
    even.start(scan[0], solver)
    assert even.thresholds()[1] == even.thresholds()[-1]


def test_strong_variation_flattens_the_bases(scan: tuple[KSpaceProblem, torch.Tensor]) -> None:
    weak = fit(scan[0], SMALL)
    strong = fit(scan[0], dataclasses.replace(SMALL, strength=0.05), weak)
    assert strong.bases[1:].norm() < 0.8 * weak.bases[1:].norm()


def test_basis_of_a_long_scan_comes_from_joined_frames(scan: tuple[KSpaceProblem, torch.Tensor]) -> None:
    """Fewer frames, nearly the same span, rows still orthonormal, times of the frames kept."""
    problem, truth = scan
    every = fit(problem, dataclasses.replace(SMALL, steps=1))
    joined = fit(problem, dataclasses.replace(SMALL, steps=1, basis_frames=problem.n_frames // 2))
    assert joined.temporal.shape == every.temporal.shape
    torch.testing.assert_close(joined.temporal @ joined.temporal.T, torch.eye(5), rtol=1e-4, atol=1e-4)
    assert not torch.equal(joined.temporal, every.temporal)
    flat = truth.flatten(1)

    def missing(basis: torch.Tensor) -> float:
        return float((flat - basis.T.to(flat.dtype) @ (basis.to(flat.dtype) @ flat)).norm() / (flat - flat.mean(0)).norm())

    assert missing(joined.temporal) < 1.3 * missing(every.temporal) + 0.05


def test_warm_start_keeps_basis_and_goes_on(scan: tuple[KSpaceProblem, torch.Tensor]) -> None:
    first = fit(scan[0], SMALL)
    again = GraspPro(SMALL)
    again.start(scan[0], first)
    torch.testing.assert_close(again.images().images, first.images().images)


def test_times_between_frames(scan: tuple[KSpaceProblem, torch.Tensor]) -> None:
    solver = fit(scan[0], dataclasses.replace(SMALL, steps=5))
    frames = solver.images()
    middle = solver.images((frames.times[3:4] + frames.times[4:5]) / 2)
    torch.testing.assert_close(middle.images[0], (frames.images[3] + frames.images[4]) / 2, rtol=1e-4, atol=1e-5)
    assert frames.latents is not None
    assert frames.latents.shape == (36, 5)
