"""Gathering of a frame's samples and the coil-weighted encoding: masks, adjointness, gradient."""

from __future__ import annotations

import math
from types import ModuleType

import pytest
import torch
from torch import Tensor

from recon_core.errors import DataError
from recon_core.operators.frames import FrameEncoding, gather, required_sensitivities
from recon_core.problem import KSpaceProblem


@pytest.fixture
def problem(toy: ModuleType) -> KSpaceProblem:
    """Five frames of 17 × 12, some samples masked, with maps and weights."""
    made, _ = toy.toy_problem(n_frames=5, shape=(17, 12), coils=3, per_frame=2)
    mask = torch.rand(made.trajectory.shape[:2]) > 0.3
    weights = torch.rand(made.trajectory.shape[:2])
    return made.replace(mask=mask, weights=weights, sensitivities=toy.toy_maps(3, (17, 12)))


def test_gather_leaves_masked_samples_out_and_keeps_the_rest_aligned(problem: KSpaceProblem) -> None:
    part = gather(problem, torch.tensor([7, 2]))
    expected = [(r, s) for r in (7, 2) for s in range(problem.samples.shape[2]) if bool(problem.mask[r, s])]
    assert part.points.shape == (len(expected), 2)
    for position, (r, s) in enumerate(expected):
        assert torch.equal(part.points[position], problem.trajectory[r, s])
        assert torch.equal(part.samples[:, position], problem.samples[:, r, s])
        assert float(part.weights[position]) == float(problem.weights[r, s])


def test_gather_without_mask_and_weights(problem: KSpaceProblem) -> None:
    part = gather(problem.replace(mask=None, weights=None), torch.tensor([3]))
    assert torch.equal(part.samples, problem.samples[:, 3])
    assert torch.equal(part.weights, torch.ones(problem.samples.shape[2]))


def test_maps_are_required(problem: KSpaceProblem) -> None:
    bare = problem.replace(sensitivities=None)
    with pytest.raises(DataError, match="Calibrate"):
        required_sensitivities(bare)
    with pytest.raises(DataError, match="sensitivities"):
        FrameEncoding(bare)


def exact_frame(problem: KSpaceProblem, image: Tensor, frame: int) -> Tensor:
    """Samples ``[coil, point]`` of a frame by the sum of docs/conventions.md in float64."""
    points = gather(problem, problem.frames[frame]).points.double()
    ny, nx = problem.shape
    y = (torch.arange(ny, dtype=torch.float64) - ny // 2) / ny
    x = (torch.arange(nx, dtype=torch.float64) - nx // 2) / nx
    phase = points[:, 0, None, None] * x + points[:, 1, None, None] * y[:, None]
    kernel = torch.exp(-2j * torch.pi * phase) / math.sqrt(ny * nx)
    return torch.einsum("pyx,cyx->cp", kernel, (problem.sensitivities * image).to(torch.complex128))


def test_forward_is_the_signal_equation(problem: KSpaceProblem) -> None:
    encoding = FrameEncoding(problem)
    image = torch.randn(problem.shape, dtype=torch.complex64)
    for frame in range(problem.n_frames):
        expected = exact_frame(problem, image, frame)
        assert float((encoding.forward(image, frame) - expected).norm() / expected.norm()) < 1e-4


@pytest.mark.parametrize("engine", ["finufft", "torchkbnufft", "nudft"])
def test_adjoint(problem: KSpaceProblem, engine: str) -> None:
    encoding = FrameEncoding(problem, engine)
    for frame in range(problem.n_frames):
        x = torch.randn(problem.shape, dtype=torch.complex64)
        forward = encoding.forward(x, frame)
        y = torch.randn_like(forward)
        left = torch.vdot(forward.flatten(), y.flatten())
        right = torch.vdot(x.flatten(), encoding.adjoint(y, frame).flatten())
        assert abs(left - right) < 1e-5 * float(forward.norm() * y.norm())


def test_gradient_of_the_data_term_is_the_adjoint_of_the_residual(problem: KSpaceProblem) -> None:
    encoding = FrameEncoding(problem)
    x = torch.randn(problem.shape, dtype=torch.complex64, requires_grad=True)
    target = encoding.frames[3].samples
    (0.5 * (encoding.forward(x, 3) - target).abs().square().sum()).backward()
    with torch.no_grad():
        expected = encoding.adjoint(encoding.forward(x, 3) - target, 3)
    assert float((x.grad - expected).norm() / expected.norm()) < 1e-5


def test_backprojection_weights_by_density_on_request(problem: KSpaceProblem) -> None:
    encoding = FrameEncoding(problem)
    plain, weighted = encoding.backprojection(), encoding.backprojection(density=True)
    assert plain.shape == (5, 17, 12)
    for t, frame in enumerate(encoding.frames):
        torch.testing.assert_close(plain[t], encoding.adjoint(frame.samples, t))
        torch.testing.assert_close(weighted[t], encoding.adjoint(frame.samples * frame.weights, t))
    assert float((plain - weighted).abs().max()) > 0.01 * float(plain.abs().max())


def test_energy_counts_every_frame_once(problem: KSpaceProblem) -> None:
    used = problem.samples * problem.mask
    assert FrameEncoding(problem).energy() == pytest.approx(float(used.abs().square().sum()), rel=1e-5)


def test_cartesian_frames_use_the_exact_fft(toy: ModuleType) -> None:
    ny, nx = 10, 7
    lines = torch.tensor([-5, -1, 0, 4])
    trajectory = torch.zeros(4, nx, 2)
    trajectory[..., 0] = torch.arange(nx) - nx // 2
    trajectory[..., 1] = lines[:, None]
    problem = KSpaceProblem(
        torch.zeros(2, 4, nx, dtype=torch.complex64),
        trajectory,
        (torch.arange(4),),
        torch.arange(4, dtype=torch.float64),
        torch.tensor([1.5], dtype=torch.float64),
        (ny, nx),
        sensitivities=toy.toy_maps(2, (ny, nx)),
        cartesian=True,
    )
    image = torch.randn(ny, nx, dtype=torch.complex64)
    result = FrameEncoding(problem).forward(image, 0)
    assert "fft" in repr(FrameEncoding(problem).nuffts[0])
    expected = exact_frame(problem, image, 0)
    assert float((result - expected).norm() / expected.norm()) < 1e-6
