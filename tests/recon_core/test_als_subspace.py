"""Alternating least squares on bases and temporal coefficients."""

from __future__ import annotations

import dataclasses
import itertools
from types import ModuleType

import pytest
import torch

from recon_core.calibration import calibrate
from recon_core.calibration.temporal_basis import power_weighted
from recon_core.operators.frames import FrameEncoding
from recon_core.problem import KSpaceProblem
from recon_core.reconstruct import ReconstructionSettings, reconstruct
from recon_core.solvers.als_subspace import SELECTED_STRENGTHS, SMOOTHNESSES, STRENGTHS, AlsSubspace, AlsSubspaceSettings

SMALL = AlsSubspaceSettings(rank=5, steps=4, inner=8, strength=0.003, smoothness=0.1, basis_width=20, basis_coils=3)


@pytest.fixture(scope="module")
def scan(toy: ModuleType) -> tuple[KSpaceProblem, torch.Tensor]:
    problem, truth = toy.toy_problem(n_frames=36, per_frame=3, noise=0.005)
    return calibrate(problem, 3)[0], truth


def fit(problem: KSpaceProblem, settings: AlsSubspaceSettings, seed: int = 0) -> tuple[AlsSubspace, list[float]]:
    """The finished solver, and its cost after every round."""
    solver = AlsSubspace(settings, seed=seed)
    solver.start(problem)
    costs = []
    while not solver.done:
        solver.update()
        cost = solver.objective()
        assert cost is not None
        costs.append(cost)
    return solver, costs


def full_cost(solver: AlsSubspace, smooth: float) -> float:
    """The cost by frame-wise transforms of the images, without any of the solver's operators."""
    encoding = FrameEncoding(power_weighted(solver.problem, solver.settings.density_power), tolerance=1e-6)
    images = solver.images().images
    total = 0.0
    for t, f in enumerate(encoding.frames):
        difference = encoding.forward(images[t], t) - f.samples
        total += float((f.weights * difference.abs().square()).sum(dtype=torch.float64))
        total -= float((f.weights * f.samples.abs().square()).sum(dtype=torch.float64))
    total += float((solver.damping * solver.bases.abs().square()).sum(dtype=torch.float64))
    return total + smooth * float(solver.temporal.double().diff(n=2, dim=1).square().sum())


def test_recovers_the_motion(scan: tuple[KSpaceProblem, torch.Tensor]) -> None:
    problem, truth = scan
    images = fit(problem, SMALL)[0].images().images
    assert bool(images.isfinite().all())
    aligned = images * torch.exp(-1j * (images * truth.conj()).sum(0).angle())
    aligned = aligned * ((truth.conj() * aligned).real.sum() / aligned.abs().square().sum())
    dynamic = (aligned - truth) - (aligned - truth).mean(0)
    assert float((aligned - truth).norm() / truth.norm()) < 0.12
    assert float(dynamic.norm() / (truth - truth.mean(0)).norm()) < 0.6


@pytest.mark.parametrize("smoothness", [0.01, 1.0])
def test_every_half_step_lowers_the_cost(scan: tuple[KSpaceProblem, torch.Tensor], smoothness: float) -> None:
    solver = AlsSubspace(dataclasses.replace(SMALL, smoothness=smoothness))
    solver.start(scan[0])
    solver.update()
    system = solver._system()
    solver.weight = smoothness * float(system.normal.diagonal(dim1=1, dim2=2).mean())
    told = []
    for _ in range(3):
        told.append(full_cost(solver, solver.weight))
        solver._update_temporal(solver._system())
        told.append(full_cost(solver, solver.weight))
        solver._set_up(solver.frames, solver.spectra, solver.normal.sensitivities)
        solver._update_bases()
    slack = 1e-4 * abs(told[0] - told[-1])
    assert all(after < before + slack for before, after in itertools.pairwise(told))
    assert told[-1] < told[0]


def test_cost_told_is_the_cost_by_frames_and_falls(scan: tuple[KSpaceProblem, torch.Tensor]) -> None:
    solver, costs = fit(scan[0], SMALL)
    assert solver.weight is not None
    assert costs[-1] == pytest.approx(full_cost(solver, solver.weight), rel=1e-3)
    # The first round has no roughness yet: only those that share one cost are compared.
    assert all(after < before for before, after in itertools.pairwise(costs[1:]))


def test_smoothness_and_damping_do_what_they_say(scan: tuple[KSpaceProblem, torch.Tensor]) -> None:
    problem = scan[0]
    free, stiff = (fit(problem, dataclasses.replace(SMALL, steps=2, smoothness=value))[0] for value in (0.01, 1e4))
    bends = [s.temporal.diff(n=2, dim=1).norm() / s.temporal.norm() for s in (free, stiff)]
    assert bends[1] < 0.1 * bends[0]
    damped = fit(problem, dataclasses.replace(SMALL, steps=1, strength=1.0))[0]
    light = fit(problem, dataclasses.replace(SMALL, steps=1))[0]
    assert damped.bases[1:].norm() < 0.5 * light.bases[1:].norm()


def test_seed_changes_nothing_but_the_eigenvalue_estimate(scan: tuple[KSpaceProblem, torch.Tensor]) -> None:
    one, two = (fit(scan[0], dataclasses.replace(SMALL, steps=2), seed)[0].images().images for seed in (1, 1))
    assert torch.equal(one, two)
    other = fit(scan[0], dataclasses.replace(SMALL, steps=2), 2)[0].images().images
    assert float((other - one).norm() / one.norm()) < 1e-2


def test_beside_another_fit_is_as_alone(scan: tuple[KSpaceProblem, torch.Tensor]) -> None:
    """The other's V has moved on; this one begins with what it began with."""
    other, _ = fit(scan[0], SMALL)
    settings = dataclasses.replace(SMALL, strength=0.03, steps=2)
    beside = AlsSubspace(settings)
    beside.start_beside(other)
    while not beside.done:
        beside.update()
    assert torch.equal(beside.images().images, fit(scan[0], settings)[0].images().images)
    elsewhere = AlsSubspace(dataclasses.replace(settings, rank=3))
    elsewhere.start_beside(other)
    assert elsewhere.temporal.shape[0] == 3


def test_damping_smoothness_and_rounds_are_chosen_on_held_out_readouts(toy: ModuleType) -> None:
    problem, _ = toy.toy_problem(n_frames=20, per_frame=3, noise=0.02)
    asked = {"rank": 4, "steps": 3, "inner": 4, "basis_width": 16, "basis_steps": 10}
    result = reconstruct(problem, ReconstructionSettings(solver="als_subspace", coils=3, device="cpu", holdout=0.1), asked)
    tried = result.report["tried"]
    assert [t["settings"]["strength"] for t in tried[:3]] == list(SELECTED_STRENGTHS)
    best = min(tried, key=lambda t: t["held_out_error"])["settings"]
    for name, ladder in (("strength", STRENGTHS), ("smoothness", SMOOTHNESSES)):
        place = ladder.index(best[name])
        others = {t["settings"][name] for t in tried}
        assert {*ladder[max(place - 1, 0) : place + 2]} <= others, f"a neighbour of the {name} chosen was not tried"
    best = min(tried, key=lambda t: t["held_out_error"])
    assert result.report["settings"] == best["settings"]
    assert result.report["steps"] == best["step"]
