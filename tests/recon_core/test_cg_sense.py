"""CG-SENSE against the dense least-squares solution."""

from __future__ import annotations

import itertools
import math
from types import ModuleType

import pytest
import torch
from torch import Tensor

from recon_core.operators.frames import gather
from recon_core.problem import KSpaceProblem
from recon_core.solvers.cg_sense import CgSense, CgSenseSettings


def calibrated(toy: ModuleType, **arguments: object) -> tuple[KSpaceProblem, Tensor]:
    problem, truth = toy.toy_problem(**arguments)
    return problem.replace(sensitivities=toy.toy_maps(problem.n_coils, problem.shape)), truth


def fit(problem: KSpaceProblem, steps: int, damping: float | None, previous: CgSense | None = None) -> CgSense:
    solver = CgSense(CgSenseSettings(steps=steps, damping=damping))
    solver.start(problem, previous)
    while not solver.done:
        solver.update()
    return solver


def dense_solution(problem: KSpaceProblem, frame: int, damping: float) -> Tensor:
    """(EᴴE + λI)⁻¹ Eᴴy with λ = damping × EᴴE's mean diagonal, in complex128."""
    part = gather(problem, problem.frames[frame])
    axes = [(torch.arange(n, dtype=torch.float64) - n // 2) / n for n in problem.shape]
    position = torch.stack([r.flatten() for r in torch.meshgrid(*axes, indexing="ij")])
    kernel = torch.exp(-2j * torch.pi * (part.points.double() @ position.flip(0))) / math.sqrt(math.prod(problem.shape))
    matrix = torch.cat([kernel * coil.flatten().to(torch.complex128) for coil in problem.sensitivities])
    normal = matrix.conj().T @ matrix
    normal += damping * normal.diagonal().real.mean() * torch.eye(normal.shape[0])
    return torch.linalg.solve(normal, matrix.conj().T @ part.samples.flatten().to(torch.complex128)).reshape(problem.shape)


@pytest.mark.parametrize("damping", [0.3, 0.02])
def test_converges_to_the_damped_least_squares_solution(toy: ModuleType, damping: float) -> None:
    problem, _ = calibrated(toy, n_frames=3, shape=(13, 16), coils=3, per_frame=5, noise=0.02)
    images = fit(problem, 60, damping).images().images
    for frame in range(3):
        expected = dense_solution(problem, frame, damping)
        assert float((images[frame] - expected).norm() / expected.norm()) < 1e-3


def test_masked_samples_are_not_used(toy: ModuleType) -> None:
    problem, _ = calibrated(toy, n_frames=2, shape=(12, 14), coils=2, per_frame=8)
    mask = torch.rand(problem.trajectory.shape[:2]) > 0.3
    broken = problem.replace(mask=mask, samples=torch.where(mask, problem.samples, 1e4 * torch.randn_like(problem.samples)))
    images = fit(broken, 60, 0.1).images().images
    expected = dense_solution(broken, 1, 0.1)
    assert float((images[1] - expected).norm() / expected.norm()) < 1e-3


def test_full_sampling_gives_the_object(toy: ModuleType) -> None:
    problem, truth = calibrated(toy, n_frames=2, shape=(20, 22), coils=3, per_frame=50)
    images = fit(problem, 30, 1e-4).images().images
    assert float((images - truth).norm() / truth.norm()) < 0.06


def test_the_quadratic_falls_with_every_step(toy: ModuleType) -> None:
    problem, _ = calibrated(toy, n_frames=4, shape=(16, 14), coils=2, per_frame=2, noise=0.02)
    solver = CgSense(CgSenseSettings(steps=10, damping=0.05))
    solver.start(problem)
    target = solver.r.clone()
    costs = [0.0]
    while not solver.done:
        solver.update()
        half = 0.5 * torch.vdot(solver.x.flatten(), solver._apply(solver.x).flatten()).real
        costs.append(float(half - torch.vdot(solver.x.flatten(), target.flatten()).real))
    assert all(after < before for before, after in itertools.pairwise(costs))


def test_more_damping_gives_a_smaller_image(toy: ModuleType) -> None:
    problem, _ = calibrated(toy, n_frames=2, shape=(16, 14), coils=2, per_frame=3, noise=0.05)
    norms = [float(fit(problem, 25, d).images().images.norm()) for d in (1.0, 0.1, 0.01)]
    assert norms == sorted(norms)


def test_warm_start_goes_on_where_the_last_fit_stopped(toy: ModuleType) -> None:
    problem, _ = calibrated(toy, n_frames=3, shape=(13, 16), coils=3, per_frame=5, noise=0.02)
    previous = fit(problem, 25, 0.1)
    warm = CgSense(CgSenseSettings(steps=3, damping=0.1))
    warm.start(problem, previous)
    assert torch.equal(warm.images().images, previous.images().images)
    assert float(warm.energy.max()) < 1e-4 * float(fit(problem, 1, 0.1).energy.max())
    assert previous.x is not warm.x


def test_convergence_leaves_no_nan(toy: ModuleType) -> None:
    """Far more steps than unknowns, and a frame without any signal."""
    problem, _ = calibrated(toy, n_frames=2, shape=(6, 5), coils=2, per_frame=6)
    silent = problem.samples.clone()
    silent[:, problem.frames[1]] = 0
    images = fit(problem.replace(samples=silent), 200, 0.1).images().images
    assert bool(torch.isfinite(torch.view_as_real(images)).all())
    assert float(images[1].abs().max()) == 0
    expected = dense_solution(problem, 0, 0.1)
    assert float((images[0] - expected).norm() / expected.norm()) < 1e-3


def test_candidates_span_decades(toy: ModuleType) -> None:
    problem, _ = calibrated(toy, n_frames=2, shape=(6, 5), coils=2, per_frame=2)
    assert [c.damping for c in CgSense.candidates(CgSenseSettings(steps=7), problem)] == [1.0, 0.1, 0.01]
    assert {c.steps for c in CgSense.candidates(CgSenseSettings(steps=7), problem)} == {7}
