"""k-t GRAPPA: kernels against an independent regression, completion against the truth."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from recon_core.errors import DataError
from recon_core.metrics import moving_region, score
from recon_core.operators.cartesian import CartesianFrames
from recon_core.operators.frames import FrameEncoding
from recon_core.problem import KSpaceProblem
from recon_core.reconstruct import ReconstructionSettings, reconstruct
from recon_core.solvers.kt_grappa import SELECTED_RIDGES, KtGrappa, KtGrappaSettings

SHAPE = (44, 36)


@pytest.fixture(scope="module")
def scan(toy: ModuleType) -> tuple[KSpaceProblem, torch.Tensor]:
    problem, truth = toy.toy_cartesian(n_frames=36, shape=SHAPE, coils=4, acceleration=3, calibration_lines=10, noise=0.01)
    return problem.replace(sensitivities=toy.toy_maps(4, SHAPE)), truth


def fitted(problem: KSpaceProblem, **settings: float) -> KtGrappa:
    solver = KtGrappa(KtGrappaSettings(**{"ridge": 0.1, **settings}))
    solver.start(problem)
    solver.update()
    return solver


def test_cartesian_frames_hold_every_sample_in_its_place(toy: ModuleType, scan: tuple[KSpaceProblem, torch.Tensor]) -> None:
    """Fully sampled, the frames' images are the truth; the operator's adjoint agrees elsewhere."""
    full, truth = toy.toy_cartesian(n_frames=2, shape=SHAPE, coils=3, acceleration=1)
    frames = CartesianFrames.of(full.replace(sensitivities=toy.toy_maps(3, SHAPE)))
    assert frames.measured.all()
    torch.testing.assert_close(frames.combine(frames.samples), truth, rtol=1e-4, atol=1e-4)
    problem, _ = scan
    part = CartesianFrames.of(problem)
    torch.testing.assert_close(part.combine(part.samples), FrameEncoding(problem).backprojection(), rtol=1e-4, atol=1e-4)


def test_repeated_samples_are_averaged(scan: tuple[KSpaceProblem, torch.Tensor]) -> None:
    problem, _ = scan
    twice = problem.replace(
        samples=torch.cat([problem.samples, 3 * problem.samples], dim=1),
        trajectory=torch.cat([problem.trajectory] * 2),
        readout_times=torch.cat([problem.readout_times] * 2),
        frames=tuple(torch.cat([f, f + problem.n_readouts]) for f in problem.frames),
    )
    torch.testing.assert_close(CartesianFrames.of(twice).samples, 2 * CartesianFrames.of(problem).samples)


def test_a_kernel_is_the_ridge_regression_on_the_calibration_lines(toy: ModuleType) -> None:
    """One pattern's weights from the shared Gram matrix against a regression written out sample by sample."""
    problem, _ = toy.toy_cartesian(n_frames=6, shape=(26, 18), coils=3, acceleration=3, calibration_lines=8)
    solver = fitted(problem.replace(sensitivities=toy.toy_maps(3, (26, 18))), lines=1, frames=1, columns=1, ridge=1e-3)
    sources = ((-1, 0), (0, 1), (1, -1))
    weights = solver._weights(solver._gram(), sources)
    block = solver.calibration.to(torch.complex128)
    rows, targets = [], []
    for t in range(1, block.shape[0] - 1):
        for y in range(1, block.shape[2] - 1):
            for x in range(1, block.shape[3] - 1):
                row = [block[t + dt, :, y + dy, x + dx] for dy, dt in sources for dx in (-1, 0, 1)]
                rows.append(torch.cat(row))
                targets.append(block[t, :, y, x])
    a, b = torch.stack(rows), torch.stack(targets)
    normal = a.conj().T @ a
    level = 1e-3 * normal.diagonal().real.mean()
    expected = torch.linalg.solve(normal + level * torch.eye(len(normal)), a.conj().T @ b).T
    assert float((weights - expected).norm() / expected.norm()) < 1e-2
    # And it predicts, on the lines on which it was learned.
    assert float((a @ weights.T.to(a.dtype) - b).norm() / b.norm()) < 0.5


def test_missing_lines_are_completed_and_measured_ones_kept(scan: tuple[KSpaceProblem, torch.Tensor]) -> None:
    problem, truth = scan
    solver = fitted(problem)
    frames = CartesianFrames.of(problem)
    where = frames.measured[:, None].expand_as(solver.kspace)
    assert torch.equal(solver.kspace[where], frames.samples[where])
    zero_filled = float((frames.combine(frames.samples) - truth).norm() / truth.norm())
    completed = float((solver.images().images - truth).norm() / truth.norm())
    still = float((truth.mean(0) - truth).norm() / truth.norm())
    assert completed < 0.7 * zero_filled
    assert completed < 0.6 * still


def test_neighbours_in_time_are_used(scan: tuple[KSpaceProblem, torch.Tensor]) -> None:
    problem, truth = scan
    alone, with_time = (float((fitted(problem, frames=n).images().images - truth).norm()) for n in (0, 4))
    assert with_time < 0.5 * alone


def test_calibration_survives_a_line_withheld_from_a_frame(scan: tuple[KSpaceProblem, torch.Tensor]) -> None:
    problem, _ = scan
    centre = torch.nonzero(problem.trajectory[:, 0, 1] == 0)[:, 0]
    keep = torch.ones(problem.n_readouts, dtype=torch.bool)
    keep[centre[5]] = False
    fewer = fitted(problem.keep_readouts(keep))
    assert fewer.calibration.shape == fitted(problem).calibration.shape
    keep[centre] = False
    with pytest.raises(DataError, match="no calibration lines"):
        fitted(problem.keep_readouts(keep))


def test_the_ridge_is_chosen_on_held_out_lines(toy: ModuleType) -> None:
    problem, truth = toy.toy_cartesian(n_frames=36, shape=SHAPE, coils=4, acceleration=3, calibration_lines=10, noise=0.01)
    settings = ReconstructionSettings(solver="kt_grappa", coils=4, device="cpu")
    result = reconstruct(problem, settings)
    assert len(result.report["tried"]) == len(SELECTED_RIDGES)
    assert result.report["settings"]["ridge"] in SELECTED_RIDGES
    found = score(result.series.images.numpy(), truth.numpy(), moving_region(truth.numpy()))
    assert found["psnr_db"] > found["time_average_psnr_db"]
    assert found["dynamic_error"] < 0.8


def test_a_line_without_neighbours_is_told(toy: ModuleType) -> None:
    problem, _ = toy.toy_cartesian(n_frames=3, shape=(40, 18), coils=2, acceleration=20, calibration_lines=6)
    solver = fitted(problem.replace(sensitivities=toy.toy_maps(2, (40, 18))), lines=1, frames=1)
    assert any("lines without a measured neighbour" in note for note in solver.images().notes)
