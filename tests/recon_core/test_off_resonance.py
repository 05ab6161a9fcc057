"""Encoding off resonance against the exact sum with exp(i2πΔf t), at ±400 Hz and readouts of 2.5 ms."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from recon_core.calibration.calibrate import calibrate
from recon_core.calibration.holdout import held_out_readouts
from recon_core.errors import DataError
from recon_core.operators.frames import FrameEncoding, NufftOptions, occupied_frames, subspace_backprojection, subspace_normal
from recon_core.operators.off_resonance import segments_of
from recon_core.options import build
from recon_core.problem import KSpaceProblem
from recon_core.reconstruct import HeldOut, ReconstructionSettings, reconstruct
from recon_core.solvers.registry import solver_class
from recon_core.trajectories import spiral_arms

SHAPE, COILS, FRAMES, PER_FRAME = (22, 18), 3, 6, 2
LARGEST = 400.0
SECONDS = 2.5e-3


def positions() -> Tensor:
    axes = [(torch.arange(n, dtype=torch.float64) - n // 2) / n for n in SHAPE]
    return torch.stack([r.flatten() for r in torch.meshgrid(*axes, indexing="ij")])


def field(frames: int | None = None) -> Tensor:
    """A field that is not symmetric, reaching ±400 Hz; one a frame where asked for."""
    y, x = positions()
    made = [torch.tanh(6 * (y - 0.1 * t + 0.4 * x)) + 0.4 * torch.cos(9 * x) for t in range(frames or 1)]
    stacked = torch.stack([LARGEST * m / m.abs().max() for m in made]).reshape(-1, *SHAPE).float()
    return stacked if frames else stacked[0]


def problem_of(field_map: Tensor | None, series: Tensor | None = None) -> tuple[KSpaceProblem, list[Tensor]]:
    """Spiral arms of 2.5 ms and, for every frame, the exact matrix ``[point, pixel]`` in complex128."""
    generator = torch.Generator().manual_seed(3)
    trajectory = torch.from_numpy(spiral_arms(FRAMES * PER_FRAME, SHAPE, (200.0, 180.0), 6, dwell=1e-5)).float()
    n = trajectory.shape[1]
    times = torch.linspace(0, SECONDS, n, dtype=torch.float64)
    frames = tuple(torch.arange(t * PER_FRAME, (t + 1) * PER_FRAME) for t in range(FRAMES))
    maps = torch.randn((COILS, *SHAPE), dtype=torch.complex64, generator=generator)
    maps = maps / maps.abs().square().sum(0).sqrt()
    mask = torch.ones((FRAMES * PER_FRAME, n), dtype=torch.bool)
    mask[:, -3:] = False
    mask[1, :2] = False
    matrices = []
    for t, readouts in enumerate(frames):
        k = trajectory[readouts].double()[mask[readouts]]
        at = times.expand(PER_FRAME, n)[mask[readouts]]
        phase = -2 * math.pi * (k @ positions().flip(0))
        if field_map is not None:
            own = field_map[t] if field_map.ndim == 3 else field_map
            phase = phase + 2 * math.pi * at[:, None] * own.double().flatten()
        matrices.append(torch.polar(torch.ones_like(phase), phase) / math.sqrt(math.prod(SHAPE)))
    samples = torch.randn((COILS, FRAMES * PER_FRAME, n), dtype=torch.complex64, generator=generator)
    if series is not None:
        for t, readouts in enumerate(frames):
            exact = (maps * series[t]).flatten(1).to(torch.complex128) @ matrices[t].T
            block = samples[:, readouts]
            block[:, mask[readouts]] = exact.to(torch.complex64)
            samples[:, readouts] = block
    readout_times = torch.arange(FRAMES * PER_FRAME, dtype=torch.float64) * 6e-3
    problem = KSpaceProblem(
        samples=samples,
        trajectory=trajectory,
        frames=frames,
        readout_times=readout_times,
        frame_times=torch.stack([readout_times[f].mean() for f in frames]),
        shape=SHAPE,
        weights=torch.rand((FRAMES * PER_FRAME, n), generator=generator) + 0.1,
        mask=mask,
        sensitivities=maps,
        sample_times=times,
        field_map=field_map,
    )
    return problem, matrices


def maps_of(problem: KSpaceProblem) -> Tensor:
    assert problem.sensitivities is not None
    return problem.sensitivities


def relative(result: Tensor, expected: Tensor) -> float:
    assert bool(torch.isfinite(torch.view_as_real(result)).all())
    return float((result - expected).norm() / expected.norm())


@pytest.fixture(params=["one map", "a map a frame"])
def case(request: pytest.FixtureRequest) -> tuple[KSpaceProblem, list[Tensor]]:
    return problem_of(field() if request.param == "one map" else field(FRAMES))


def test_samples_and_right_hand_side_are_the_exact_sums(case: tuple[KSpaceProblem, list[Tensor]]) -> None:
    problem, matrices = case
    encoding = FrameEncoding(problem)
    images = torch.randn((FRAMES, *SHAPE), dtype=torch.complex64)
    maps = encoding.sensitivities
    for t in range(FRAMES):
        exact = (maps * images[t]).flatten(1).to(torch.complex128) @ matrices[t].T
        assert relative(encoding.forward(images[t], t), exact) < 1e-2
        own = encoding.frames[t]
        back = ((own.samples * own.weights).to(torch.complex128) @ matrices[t].conj()).reshape(COILS, *SHAPE)
        assert relative(encoding.backprojection(density=True)[t], (maps.conj() * back).sum(0)) < 1e-2
    # On resonance it would be another operator altogether.
    still = FrameEncoding(problem.replace(field_map=None))
    assert relative(still.forward(images[0], 0), encoding.forward(images[0], 0)) > 0.3


def test_forward_and_adjoint_belong_together_and_gradients_are_adjoints(case: tuple[KSpaceProblem, list[Tensor]]) -> None:
    encoding = FrameEncoding(case[0], tolerance=1e-6)
    image = torch.randn(SHAPE, dtype=torch.complex64, requires_grad=True)
    samples = torch.randn_like(encoding.frames[2].samples)
    forward = encoding.forward(image, 2)
    left = torch.vdot(samples.flatten(), forward.detach().flatten())
    right = torch.vdot(encoding.adjoint(samples, 2).flatten(), image.detach().flatten())
    assert abs(complex(left - right)) < 1e-4 * abs(complex(left))
    (0.5 * (forward - samples).abs().square().sum()).backward()
    assert image.grad is not None
    assert relative(image.grad, encoding.adjoint(forward.detach() - samples, 2)) < 1e-4


def test_normal_operators_are_the_exact_ones(case: tuple[KSpaceProblem, list[Tensor]]) -> None:
    problem, matrices = case
    encoding = FrameEncoding(problem)
    images = torch.randn((FRAMES, *SHAPE), dtype=torch.complex64)
    made = encoding.normal()(images)
    part = encoding.normal()(images[2:4], slice(2, 4))
    maps = encoding.sensitivities.to(torch.complex128)
    for t in range(FRAMES):
        weighted = encoding.frames[t].weights * ((maps * images[t]).flatten(1) @ matrices[t].T)
        exact = (maps.conj() * (weighted @ matrices[t].conj()).reshape(COILS, *SHAPE)).sum(0)
        assert relative(made[t], exact) < 1e-2
        if t in (2, 3):
            torch.testing.assert_close(part[t - 2], made[t])


def test_gram_of_a_subspace_is_the_exact_one() -> None:
    problem, matrices = problem_of(field())
    encoding = FrameEncoding(problem)
    rank = 4
    temporal = torch.randn((rank, FRAMES))
    bases = torch.randn((rank, *SHAPE), dtype=torch.complex64)
    segments = segments_of(problem)
    normal = subspace_normal(encoding.frames, encoding.sensitivities, temporal, segments)
    made = normal(bases)
    maps = encoding.sensitivities.to(torch.complex128)
    exact = torch.zeros((rank, *SHAPE), dtype=torch.complex128)
    for t in range(FRAMES):
        image = torch.tensordot(temporal[:, t].to(bases.dtype), bases, dims=1)
        weighted = encoding.frames[t].weights * ((maps * image).flatten(1) @ matrices[t].T)
        back = (maps.conj() * (weighted @ matrices[t].conj()).reshape(COILS, *SHAPE)).sum(0)
        exact += temporal[:, t, None, None] * back
    assert relative(made, exact) < 1e-2
    assert "K=4" in repr(normal)
    target = subspace_backprojection(encoding.frames, encoding.sensitivities, temporal, NufftOptions(), segments)
    adjoint = encoding.backprojection(density=True)
    assert relative(target, torch.tensordot(temporal.to(adjoint.dtype), adjoint, dims=1)) < 1e-3
    # Hermitian, as a Gram operator must be.
    other = torch.randn_like(bases)
    left, right = torch.vdot(other.flatten(), made.flatten()), torch.vdot(normal(other).flatten(), bases.flatten())
    assert abs(complex(left - right)) < 1e-4 * float(other.norm() * made.norm())
    still = subspace_normal(encoding.frames, encoding.sensitivities, temporal, None)(bases)
    assert relative(still, exact) > 0.3


def test_a_moving_field_needs_a_method_that_works_frame_by_frame() -> None:
    problem, _ = problem_of(field(FRAMES))
    with pytest.raises(DataError, match="frame by frame"):
        subspace_normal(occupied_frames(problem), maps_of(problem), torch.ones((1, FRAMES)), segments_of(problem))


def test_three_dimensions() -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (5, 8, 6)
    points = (torch.rand((2, 60, 3), generator=generator) - 0.5) * torch.tensor([6.0, 8.0, 5.0])
    problem = KSpaceProblem(
        samples=torch.randn((2, 2, 60), dtype=torch.complex64, generator=generator),
        trajectory=points,
        frames=(torch.tensor([0]), torch.tensor([1])),
        readout_times=torch.tensor([0.0, 1.0], dtype=torch.float64),
        frame_times=torch.tensor([0.0, 1.0], dtype=torch.float64),
        shape=shape,
        sensitivities=torch.full((2, *shape), 0.5**0.5, dtype=torch.complex64),
        sample_times=torch.linspace(0, SECONDS, 60, dtype=torch.float64),
        field_map=LARGEST * (torch.rand(shape, generator=generator) - 0.5),
    )
    encoding = FrameEncoding(problem)
    image = torch.randn((2, *shape), dtype=torch.complex64, generator=generator)
    expected = torch.stack([encoding.adjoint(encoding.forward(image[t], t), t) for t in range(2)])
    assert relative(encoding.normal()(image), expected) < 2e-3


@pytest.mark.parametrize("solver", ["cg_sense", "grasp", "low_rank_sparse", "grasp_pro", "gridding", "inmr"])
def test_every_solver_sees_the_field(solver: str) -> None:
    """Images from off-resonant samples resemble the object with the field map more than without."""
    y, x = (p.reshape(SHAPE).float() for p in positions())
    body = torch.exp(-((y / 0.25) ** 2) - (x / 0.3) ** 2)
    series = torch.stack([body * (1 + 0.3 * math.sin(t)) + 0.4 * (x > 0.1 * math.cos(t)) for t in range(FRAMES)]).to(torch.complex64)
    problem, _ = problem_of(field(), series)
    settings = {"inmr": {"steps": 40, "smoothness": 1.0}}.get(solver, {})
    errors = []
    for given in (problem, problem.replace(field_map=None)):
        cls = solver_class(solver)
        fit = cls(cls.candidates(build(cls.Settings, settings), given)[0])
        fit.start(given)
        while not fit.done and fit.step < 40:
            fit.update()
        images = fit.images().images.detach()
        scale = torch.vdot(images.flatten(), series.flatten()) / images.abs().square().sum()
        errors.append(relative(scale * images, series))
    assert errors[0] < 0.8 * errors[1]


def test_held_out_readouts_are_judged_off_resonance() -> None:
    y, x = (p.reshape(SHAPE).float() for p in positions())
    series = torch.exp(-((y / 0.25) ** 2) - (x / 0.3) ** 2).expand(FRAMES, *SHAPE).to(torch.complex64)
    problem, _ = problem_of(field(), series)
    held = held_out_readouts(problem, 0.2, 0)
    _, calibration = calibrate(problem, COILS)
    calibration = dataclasses.replace(calibration, compression=torch.eye(COILS, dtype=torch.complex64), sensitivities=problem.sensitivities)

    class Known:
        def images(self, times: Tensor) -> object:
            return type("Series", (), {"images": series[: len(times)]})()

        def coil_maps(self) -> None:
            return None

    own, other = (HeldOut(given, held, calibration, "auto").error(Known()) for given in (problem, problem.replace(field_map=None)))
    assert own < 1e-4 * other


def test_a_whole_reconstruction_takes_a_field_map() -> None:
    y, x = (p.reshape(SHAPE).float() for p in positions())
    series = torch.exp(-((y / 0.25) ** 2) - (x / 0.3) ** 2).expand(FRAMES, *SHAPE).to(torch.complex64)
    problem, _ = problem_of(field(), series)
    bare = problem.replace(sensitivities=None, weights=None)
    result = reconstruct(bare, ReconstructionSettings(solver="cg_sense", coils=COILS, holdout=0.2))
    assert result.series.images.shape == series.shape


def test_a_field_map_follows_the_matrix() -> None:
    problem, _ = problem_of(field())
    small = problem.at_shape((11, 9))
    assert small.field_map is not None
    assert problem.field_map is not None
    assert small.field_map.shape == (11, 9)
    # The centres N // 2 coincide; pixel 5 of 11 and 11 of 22.
    assert float(small.field_map[5, 4]) == pytest.approx(float(problem.field_map[11, 9]), abs=1e-3)
    assert float(small.field_map[6, 4]) == pytest.approx(float(problem.field_map[13, 9]), abs=1e-3)
    frames = problem_of(field(FRAMES))[0].at_shape((44, 27))
    assert frames.field_map is not None
    assert frames.field_map.shape == (FRAMES, 44, 27)


def test_faults_name_the_field() -> None:
    problem, _ = problem_of(field())
    with pytest.raises(DataError, match="sample_times"):
        problem.replace(sample_times=None)
    with pytest.raises(DataError, match="field_map"):
        problem.replace(field_map=torch.zeros((2, *SHAPE)))
    with pytest.raises(DataError, match="NaN"):
        problem.replace(field_map=torch.full(SHAPE, float("nan")))
