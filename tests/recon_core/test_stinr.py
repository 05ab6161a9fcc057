"""stINR and HashINR on a toy scan: windows, penalties, and time between the frames."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from recon_core.calibration import calibrate
from recon_core.losses import smooth_nuclear_norm, temporal_variation
from recon_core.problem import KSpaceProblem
from recon_core.solvers import hash_inr as module
from recon_core.solvers.hash_inr import SELECTED_STEPS, HashInr, HashInrSettings
from recon_core.solvers.stinr import SELECTED_VARIATIONS, Stinr, StinrSettings

SMALL: dict[str, Any] = {"levels": 5, "width": 16, "depth": 2, "log2_table": 10, "base_resolution": 4, "frame_step": 0.3, "batch_frames": 6}


def stinr(problem: KSpaceProblem, **changes: Any) -> Stinr:
    solver = Stinr(StinrSettings(**{**SMALL, "variation": 0.1, **changes}), engine="finufft")
    solver.start(problem)
    return solver


def fitted(solver: Any) -> Any:
    while not solver.done:
        solver.update()
    return solver


@pytest.fixture(scope="module")
def scan(toy: ModuleType) -> KSpaceProblem:
    return calibrate(toy.toy_problem(n_frames=20, shape=(22, 18), coils=2, noise=0.01)[0], 2)[0]


def test_windows_are_neighbours_and_tile_the_series(scan: KSpaceProblem) -> None:
    solver = stinr(scan)
    seen: list[int] = []
    while len(seen) < 20:
        window = solver._next_frames()
        assert window == list(range(window[0], window[0] + len(window)))
        assert 1 <= len(window) <= 6
        seen += window
    assert sorted(seen) == list(range(20))
    whole = stinr(scan, batch_frames=64)
    assert whole._next_frames() == list(range(20))


def test_windows_without_data_are_left_out(scan: KSpaceProblem) -> None:
    keep = torch.ones(scan.n_readouts, dtype=torch.bool)
    for frame in range(4, 18):
        keep[scan.frames[frame]] = False
    solver = stinr(scan.keep_readouts(keep), batch_frames=3)
    for _ in range(30):
        assert set(solver._next_frames()) & {0, 1, 2, 3, 18, 19}


def test_penalty_is_the_weighted_sum_of_both_terms(scan: KSpaceProblem) -> None:
    images = torch.randn(4, 22, 18, dtype=torch.complex64)
    solver = stinr(scan, variation=0.3, low_rank=0.2, rounding=0.05)
    norm = smooth_nuclear_norm(images / (4 * 22 * 18) ** 0.5, 0.05)
    assert float(solver._penalty(images)) == pytest.approx(0.3 * (float(temporal_variation(images)) + 0.2 * float(norm)), rel=1e-5)
    assert solver._penalty(images[:1]) is None
    assert stinr(scan, variation=0.0)._penalty(images) is None


def test_total_variation_calms_the_series(scan: KSpaceProblem) -> None:
    calm, free = (fitted(stinr(scan, variation=v, low_rank=0.0, steps=60)).images().images for v in (3.0, 0.0))
    change = [float(temporal_variation(images) / images.abs().mean()) for images in (calm, free)]
    assert change[0] < 0.5 * change[1]


def test_low_rank_term_lowers_the_rank(scan: KSpaceProblem) -> None:
    def tail(images: torch.Tensor) -> float:
        values = torch.linalg.svdvals(images.flatten(1))
        return float(values[2:].sum() / values.sum())

    low, free = (tail(fitted(stinr(scan, variation=1e-3, low_rank=w, steps=80, batch_frames=20)).images().images) for w in (300.0, 0.0))
    assert low < 0.75 * free


def test_without_penalties_it_is_hash_inr(scan: KSpaceProblem) -> None:
    plain = HashInr(HashInrSettings(**{**SMALL, "steps": 10}), engine="finufft")
    plain.start(scan)
    assert torch.equal(fitted(plain).images().images, fitted(stinr(scan, variation=0.0, steps=10)).images().images)


def test_relative_loss_also_fits(scan: KSpaceProblem) -> None:
    solver = stinr(scan, relative_epsilon=1e-2, steps=40)
    solver.update()
    first = solver.objective()
    assert fitted(solver).objective() < 0.7 * first


def test_large_batches_are_computed_in_parts_with_the_same_gradient(scan: KSpaceProblem, monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = []
    for at_once in (1 << 18, 800):
        monkeypatch.setattr(module, "_POINTS_AT_ONCE", at_once)
        solver = stinr(scan, coarse_to_fine=False)
        solver.field.encoding.params.data.uniform_(-1, 1, generator=torch.Generator().manual_seed(1))
        solver._backward([3, 4, 5, 6, 7])
        gradients.append([p.grad.clone() for p in solver.field.parameters()])
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-6)


def test_levels_are_switched_on_in_turn(scan: KSpaceProblem) -> None:
    solver = stinr(scan, steps=20)
    seen = []
    for solver.step in range(21):
        seen.append(solver.active_levels)
    assert seen[0] == 2
    assert seen == sorted(seen)
    assert seen[10] == 5
    assert stinr(scan, steps=20, coarse_to_fine=False).active_levels == 5


def test_denser_times_are_asked_of_the_network(scan: KSpaceProblem) -> None:
    """Temporal super-resolution: between two frames lies an image of the network's own, not their mean."""
    solver = fitted(stinr(scan, steps=60))
    dense = torch.linspace(float(scan.frame_times[0]), float(scan.frame_times[-1]), 4 * 19 + 1, dtype=torch.float64)
    series = solver.images(dense).images
    torch.testing.assert_close(series[::4], solver.images().images, rtol=1e-3, atol=1e-3 * float(series.abs().max()))
    middle, mean = series[2::4], (series[:-4:4] + series[4::4]) / 2
    step = float((series[4::4] - series[:-4:4]).norm())
    assert 1e-3 * step < float((middle - mean).norm()) < step


def test_candidates() -> None:
    assert [c.frame_step for c in HashInr.candidates(HashInrSettings(), None)] == list(SELECTED_STEPS)
    assert [c.variation for c in Stinr.candidates(StinrSettings(), None)] == list(SELECTED_VARIATIONS)
    assert {c.frame_step for c in Stinr.candidates(StinrSettings(), None)} == {0.3}


def test_volumes(toy: ModuleType) -> None:
    """Space of three dimensions: the fourth is time."""
    from recon_core.operators.nufft import Nufft

    shape = (7, 9, 8)
    z, y, x = torch.meshgrid(*[torch.arange(n) / n - 0.5 for n in shape], indexing="ij")
    truth = torch.exp(-(z**2 + (y - 0.1) ** 2 + x**2) / 0.05).to(torch.complex64)
    direction = torch.nn.functional.normalize(torch.randn(120, 1, 3), dim=-1)
    trajectory = direction * (torch.arange(12)[:, None] / 24) * torch.tensor([8.0, 9.0, 7.0])
    samples = Nufft(trajectory.flatten(0, 1), shape, "nudft").forward(truth[None]).reshape(1, 120, 12)
    times = torch.arange(120, dtype=torch.float64)
    frames = (torch.arange(60), torch.arange(60, 120))
    problem = KSpaceProblem(samples, trajectory, frames, times, torch.tensor([29.5, 89.5], dtype=torch.float64), shape)
    images = fitted(stinr(calibrate(problem, 1)[0], steps=120, learning_rate=1e-2)).images().images
    assert images.shape == (2, *shape)
    assert float((images - truth).norm() / (2**0.5 * truth.norm())) < 0.3
