"""Gridding: a fully sampled frame comes back at the object's own scale."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from recon_core.calibration.calibrate import with_density
from recon_core.operators.frames import FrameEncoding
from recon_core.problem import KSpaceProblem
from recon_core.solvers.base import NoSettings
from recon_core.solvers.gridding import Gridding


def gridded(problem: KSpaceProblem) -> torch.Tensor:
    solver = Gridding(NoSettings())
    solver.start(problem)
    solver.update()
    return solver.images().images


@pytest.mark.parametrize("shape", [(24, 24), (21, 27)])
def test_every_fully_sampled_frame_has_the_objects_scale(toy: ModuleType, shape: tuple[int, int]) -> None:
    """Weights are those of the whole scan: a frame's share of readouts is made up for."""
    problem, truth = toy.toy_problem(n_frames=3, shape=shape, coils=3, per_frame=48)
    # The disk of sampled k-space lacks the square's corners: the image differs a little, its scale does not.
    images = gridded(with_density(problem.replace(sensitivities=toy.toy_maps(3, shape))))
    for image, true in zip(images, truth, strict=True):
        scale = torch.vdot(true.flatten(), image.flatten()) / true.norm() ** 2
        assert abs(complex(scale) - 1) < 0.02
        assert float((image - true).norm() / true.norm()) < 0.12


def test_frames_of_unequal_size_have_equal_scale(toy: ModuleType) -> None:
    problem, _ = toy.toy_problem(n_frames=1, shape=(20, 20), coils=2, per_frame=90)
    split = problem.replace(
        frames=(torch.arange(60), torch.arange(60, 90)),
        frame_times=torch.tensor([0.0, 1.0], dtype=torch.float64),
        sensitivities=toy.toy_maps(2, (20, 20)),
    )
    large, small = gridded(with_density(split))
    assert float(small.norm() / large.norm()) == pytest.approx(1.0, abs=0.05)


def test_it_is_the_density_weighted_adjoint(toy: ModuleType) -> None:
    problem, _ = toy.toy_problem(n_frames=4, shape=(16, 18), coils=2, per_frame=2)
    weights = torch.rand(problem.trajectory.shape[:2])
    calibrated = problem.replace(weights=weights, sensitivities=toy.toy_maps(2, (16, 18)))
    encoding = FrameEncoding(calibrated)
    expected = torch.stack([encoding.adjoint(f.samples * f.weights, t) for t, f in enumerate(encoding.frames)]) * 4
    torch.testing.assert_close(gridded(calibrated), expected)
