"""INMR on a toy scan: it fits, it learns the dynamics, and its two schedules and its prior do what they say."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from recon_core import metrics
from recon_core.calibration import calibrate
from recon_core.problem import KSpaceProblem
from recon_core.solvers.inmr import SELECTED_SMOOTHNESS, Inmr, InmrSettings

SMALL: dict[str, Any] = {"levels": 6, "width": 32, "mapped": 16, "latent": 4, "log2_table": 10, "base_resolution": 4, "smoothness": 0.2}


def inmr(**changes: Any) -> Inmr:
    return Inmr(InmrSettings(**{**SMALL, **changes}), engine="finufft", seed=0)


def fit(problem: KSpaceProblem, **changes: Any) -> Inmr:
    solver = inmr(**changes)
    solver.start(problem)
    while not solver.done:
        solver.update()
    return solver


@pytest.fixture(scope="module")
def scan(toy: ModuleType) -> tuple[KSpaceProblem, np.ndarray]:
    """24 frames of 3 spokes, calibrated from themselves, and the true series."""
    problem, truth = toy.toy_problem(noise=0.01)
    return calibrate(problem, 3)[0], truth.numpy()


@pytest.fixture(scope="module")
def fitted(scan: tuple[KSpaceProblem, np.ndarray]) -> Inmr:
    return fit(scan[0], steps=720, batch_frames=2)


def test_dynamics_are_learned(fitted: Inmr, scan: tuple[KSpaceProblem, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    """Well below 1, where the time average stays, and better than the time average of the truth."""
    truth = scan[1]
    # The toy is drawn on its pixels: unlike a scanned object it has content in the corners of k-space, which no spoke reaches.
    monkeypatch.setattr(fitted, "disc", None)
    scores = metrics.score(fitted.images().images.numpy(), truth, metrics.moving_region(truth))
    assert scores["dynamic_error"] < 0.5
    assert scores["psnr_db"] > scores["time_average_psnr_db"] + 3


def test_latents_come_with_the_images_and_follow_the_motion(fitted: Inmr, scan: tuple[KSpaceProblem, np.ndarray]) -> None:
    problem, _ = scan
    latents = fitted.images().latents
    assert latents.shape == (24, 4)
    assert latents.dtype == torch.float32
    assert not latents.requires_grad
    # The toy moves by one sine, which a linear function of the latents follows.
    motion = torch.sin(2 * torch.pi * torch.arange(24) / 12)
    design = torch.cat([latents, torch.ones(24, 1)], dim=1)
    explained = design @ torch.linalg.lstsq(design, motion[:, None]).solution
    assert float((explained[:, 0] - motion).norm() / motion.norm()) < 0.7
    between = fitted.images(problem.frame_times[[3, 4]].mean()[None]).latents
    torch.testing.assert_close(between[0], latents[3:5].mean(0))


def test_cost_falls(fitted: Inmr, scan: tuple[KSpaceProblem, np.ndarray]) -> None:
    start = inmr(steps=720, batch_frames=2)
    start.start(scan[0])
    assert start.objective() is None
    start.update()
    assert fitted.objective() < 0.2 * start.objective()


def test_a_fully_sampled_static_frame_is_overfitted(toy: ModuleType) -> None:
    problem, truth = toy.toy_problem(n_frames=1, shape=(22, 18), coils=2, per_frame=40)
    problem = calibrate(problem, 2)[0]
    images = fit(problem, steps=150, finest=1.5).images().images.numpy()
    aligned, reference = metrics.align(images, truth.numpy())
    assert float(np.linalg.norm(aligned - reference) / np.linalg.norm(reference)) < 0.08


def roughness(solver: Inmr) -> float:
    z = solver.latents.detach()
    return float((z[2:] - 2 * z[1:-1] + z[:-2]).square().mean())


def test_smoothness_weight_smooths_the_latents(scan: tuple[KSpaceProblem, np.ndarray]) -> None:
    free, smooth = (fit(scan[0], steps=72, batch_frames=4, smoothness=s, latent_learning_rate=0.05) for s in (0.0, 50.0))
    assert roughness(smooth) < 0.3 * roughness(free)


def silent(problem: KSpaceProblem, **changes: Any) -> Inmr:
    """A started fit whose field is zero everywhere, with one batch a step."""
    solver = inmr(batch_frames=24, temporal_coarse_to_fine=False, **changes)
    solver.start(problem)
    for weights in solver.field.parameters():
        weights.data.zero_()
    return solver


@pytest.mark.parametrize("factor", [1.0, 1e5])
def test_cost_is_relative_to_the_samples_energy(scan: tuple[KSpaceProblem, np.ndarray], factor: float) -> None:
    """A field that is zero everywhere costs one, whatever the data's scale."""
    solver = silent(scan[0].replace(samples=factor * scan[0].samples), smoothness=0.0)
    solver.update()
    assert solver.objective() == pytest.approx(1.0, rel=1e-4)


def test_smoothness_adds_the_mean_squared_second_difference(scan: tuple[KSpaceProblem, np.ndarray]) -> None:
    solver = silent(scan[0], smoothness=3.0)
    expected = 1 + 3 * roughness(solver)
    solver.update()
    assert solver.objective() == pytest.approx(expected, rel=1e-4)
    straight = silent(scan[0], smoothness=3.0)
    straight.latents.data.copy_(torch.arange(24.0)[:, None].expand(-1, 4))
    straight.update()
    assert straight.objective() == pytest.approx(1.0, rel=1e-4)


def test_levels_are_switched_on_in_turn(scan: tuple[KSpaceProblem, np.ndarray]) -> None:
    solver = inmr(steps=20)
    solver.start(scan[0])
    seen = []
    for step in range(21):
        solver.step = step
        seen.append(solver.active_levels)
    assert seen[0] == 2
    assert seen == sorted(seen)
    assert set(seen) == {2, 3, 4, 5, 6}
    assert seen[10] == 6
    assert max(seen[:8]) < 6
    solver = inmr(steps=20, spatial_coarse_to_fine=False)
    solver.start(scan[0])
    assert solver.active_levels == 6


def test_levels_still_off_are_not_touched(scan: tuple[KSpaceProblem, np.ndarray]) -> None:
    solver = inmr(steps=20)
    solver.start(scan[0])
    before = solver.field.encoding.params.detach().clone()
    solver.update()
    change = (solver.field.encoding.params.detach() - before).abs()
    boundary = solver.field.encoding.layout.offsets()[2]
    assert float(change[:boundary].max()) > 0
    assert float(change[boundary:].max()) == 0


def test_noise_on_the_latents_anneals_to_zero(scan: tuple[KSpaceProblem, np.ndarray]) -> None:
    solver = inmr(steps=40, latent_noise=0.5)
    solver.start(scan[0])
    sigmas = []
    for step in range(41):
        solver.step = step
        sigmas.append(solver.sigma)
    assert sigmas[0] == 0.5
    assert sigmas == sorted(sigmas, reverse=True)
    assert sigmas[29] > 0
    assert sigmas[30] == sigmas[40] == 0
    solver = inmr(steps=40, temporal_coarse_to_fine=False)
    solver.start(scan[0])
    assert solver.sigma == 0


def test_noise_reaches_the_fit_unless_switched_off(scan: tuple[KSpaceProblem, np.ndarray]) -> None:
    def first_cost(**changes: Any) -> float:
        solver = inmr(batch_frames=24, **changes)
        solver.start(scan[0])
        solver.field.encoding.params.data.uniform_(-1, 1, generator=torch.Generator().manual_seed(4))
        solver.update()
        return float(solver.objective())

    quiet = first_cost(latent_noise=0.0)
    assert first_cost(latent_noise=5.0) != pytest.approx(quiet, rel=1e-3)
    assert first_cost(latent_noise=5.0, temporal_coarse_to_fine=False) == pytest.approx(quiet, rel=1e-6)


@pytest.mark.parametrize("start", ["navigator", "random"])
def test_latents_start_smooth_centred_and_of_unit_variance(scan: tuple[KSpaceProblem, np.ndarray], start: str) -> None:
    """Small or rough ones would leave the dynamics at a saddle."""
    solver = inmr(latent_start=start)
    solver.start(scan[0])
    z = solver.latents.detach()
    torch.testing.assert_close(z.mean(0), torch.zeros(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(z.std(0), torch.ones(4), rtol=1e-3, atol=0)
    assert roughness(solver) < 2.0


def test_relative_loss_also_fits(scan: tuple[KSpaceProblem, np.ndarray]) -> None:
    solver = inmr(steps=60, batch_frames=4, relative_epsilon=1e-2)
    solver.start(scan[0])
    solver.update()
    first = solver.objective()
    while not solver.done:
        solver.update()
    assert solver.objective() < 0.7 * first
    assert fit(scan[0], steps=60, batch_frames=4).objective() != solver.objective()


def test_learning_rate_is_halved_twice(scan: tuple[KSpaceProblem, np.ndarray]) -> None:
    solver = inmr(steps=8, batch_frames=24, learning_rate=4e-3)
    solver.start(scan[0])
    rates = []
    while not solver.done:
        rates.append(solver.optimiser.param_groups[0]["lr"])
        solver.update()
    assert rates == pytest.approx([4e-3] * 4 + [2e-3] * 2 + [1e-3] * 2)


def test_warm_start_goes_on_with_all_levels_and_the_old_latents(fitted: Inmr, scan: tuple[KSpaceProblem, np.ndarray]) -> None:
    warm = inmr(steps=5)
    warm.start(scan[0], fitted)
    torch.testing.assert_close(warm.images().images, fitted.images().images, rtol=1e-5, atol=1e-5)
    assert warm.active_levels == 6
    assert warm.sigma == 0
    before = fitted.latents.detach().clone()
    warm.update()
    assert torch.equal(fitted.latents.detach(), before), "the previous fit must stay as it was"


def test_warm_start_across_other_sizes(fitted: Inmr, scan: tuple[KSpaceProblem, np.ndarray]) -> None:
    """Another number of frames hands on the field alone; another field hands on nothing."""
    fewer = scan[0].replace(frames=scan[0].frames[:20], frame_times=scan[0].frame_times[:20])
    warm = inmr(steps=2)
    warm.start(fewer, fitted)
    assert warm.latents.shape == (20, 4)
    assert torch.equal(warm.field.spatial.weight, fitted.field.spatial.weight)
    other = inmr(steps=2, width=16)
    other.start(scan[0], fitted)
    assert other.active_levels == 2


def test_candidates() -> None:
    automatic = InmrSettings()
    assert [c.smoothness for c in Inmr.candidates(automatic, None)] == list(SELECTED_SMOOTHNESS)
    assert Inmr.candidates(InmrSettings(smoothness=0.0), None) == [InmrSettings(smoothness=0.0)]


@pytest.mark.usefixtures("tinycudann")
def test_tinycudann_by_name_gives_the_same_fit(toy: ModuleType) -> None:
    problem, _ = toy.toy_problem(n_frames=3, shape=(8, 6), coils=2, per_frame=4)
    problem = calibrate(problem, 2)[0]
    tiny = {"steps": 2, "batch_frames": 3, "levels": 3, "base_resolution": 3, "log2_table": 8, "width": 8, "mapped": 4, "latent": 2}
    series = [fit(problem, **tiny, encoding=name).images().images for name in ("torch", "tinycudann")]
    torch.testing.assert_close(series[0], series[1], rtol=1e-3, atol=1e-4)


def test_volumes(toy: ModuleType) -> None:
    """3D: one static volume through a kooshball, fitted better than by half."""
    shape = (7, 9, 8)
    z, y, x = torch.meshgrid(*[torch.arange(n) / n - 0.5 for n in shape], indexing="ij")
    truth = torch.exp(-(z**2 + (y - 0.1) ** 2 + x**2) / 0.05).to(torch.complex64)
    direction = torch.nn.functional.normalize(torch.randn(120, 1, 3), dim=-1)
    trajectory = direction * (torch.arange(12)[:, None] / 24) * torch.tensor([8.0, 9.0, 7.0])
    from recon_core.operators.nufft import Nufft

    samples = Nufft(trajectory.flatten(0, 1), shape, "nudft").forward(truth[None]).reshape(1, 120, 12)
    times = torch.arange(120, dtype=torch.float64)
    frames = (torch.arange(60), torch.arange(60, 120))
    problem = KSpaceProblem(samples, trajectory, frames, times, torch.tensor([29.5, 89.5], dtype=torch.float64), shape)
    images = fit(calibrate(problem, 1)[0], steps=120, batch_frames=1, levels=4).images().images
    assert images.shape == (2, *shape)
    assert float((images - truth).norm() / (2**0.5 * truth.norm())) < 0.3
