"""The self-navigator recovers a slow signal, and says so where there is none."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from recon_core.calibration.navigator import centre_signal, navigator
from recon_core.problem import KSpaceProblem

GOLDEN = math.pi * (math.sqrt(5) - 1) / 2


def scan(signals: Tensor, noise: float = 0.05, per_frame: int = 2, offset: float = 0.0) -> KSpaceProblem:
    """Radial spokes whose centre carries ``signals`` (``[signal, frame]``) mixed into four coils."""
    n_frames = signals.shape[1]
    n, samples = n_frames * per_frame, 24
    radius = torch.arange(samples) - samples // 2
    angle = (torch.arange(n) * GOLDEN)[:, None]
    trajectory = torch.stack([radius * angle.cos() + offset, radius * angle.sin()], dim=-1).to(torch.float32)
    mix = torch.randn(4, signals.shape[0], dtype=torch.complex64)
    centre = 20 + mix @ signals.to(torch.complex64).repeat_interleave(per_frame, dim=1)
    data = torch.randn(4, n, samples, dtype=torch.complex64) * noise
    data[:, :, samples // 2] += centre
    times = torch.arange(n, dtype=torch.float64) * 0.01
    frames = tuple(torch.arange(i * per_frame, (i + 1) * per_frame) for i in range(n_frames))
    return KSpaceProblem(data, trajectory, frames, times, torch.stack([times[f].mean() for f in frames]), (24, 24))


def correlation(a: Tensor, b: Tensor) -> float:
    return abs(float(torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1]))


def test_recovers_a_slow_signal() -> None:
    breath = torch.sin(2 * math.pi * torch.arange(120) / 60)
    found = navigator(scan(breath[None]), 1)
    assert found is not None
    assert found.shape == (120, 1)
    assert found.dtype == torch.float32
    assert correlation(found[:, 0], breath) > 0.99


def test_two_signals_by_falling_strength() -> None:
    t = torch.arange(160) / 160
    strong, weak = torch.sin(2 * math.pi * 2 * t), 0.3 * torch.cos(2 * math.pi * 4 * t)
    found = navigator(scan(torch.stack([strong, weak])), 3)
    assert found.shape == (160, 3)
    assert correlation(found[:, 0], strong) > 0.95
    both = torch.stack([strong, weak, torch.ones(160)], dim=1).double()
    second = found[:, 1].double()
    explained = both @ torch.linalg.lstsq(both, second[:, None]).solution
    assert correlation(explained[:, 0], second) > 0.95


def test_centred_with_unit_variance() -> None:
    found = navigator(scan(torch.randn(2, 80)), 4)
    torch.testing.assert_close(found.mean(0), torch.zeros(found.shape[1]), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.std(0), torch.ones(found.shape[1]), rtol=1e-4, atol=0)


def test_smoothing_removes_noise_and_can_be_switched_off() -> None:
    breath = torch.sin(2 * math.pi * torch.arange(200) / 100)
    noisy = scan(breath[None], noise=1.5)
    smooth, rough = navigator(noisy, 1), navigator(noisy, 1, smooth_frames=0)
    assert correlation(smooth[:, 0], breath) > correlation(rough[:, 0], breath)
    assert float(smooth.diff(dim=0).square().mean()) < 0.2 * float(rough.diff(dim=0).square().mean())


def test_frames_without_a_readout_are_filled_in_time() -> None:
    breath = torch.sin(2 * math.pi * torch.arange(90) / 45)
    problem = scan(breath[None], per_frame=1)
    keep = torch.ones(90, dtype=torch.bool)
    keep[[0, 30, 31, 89]] = False
    found = navigator(problem.keep_readouts(keep), 1, smooth_frames=1)
    assert found.shape == (90, 1)
    assert correlation(found[:, 0], breath) > 0.99


def test_none_where_readouts_miss_the_centre() -> None:
    assert navigator(scan(torch.randn(1, 40), offset=40.0), 2) is None
    few = scan(torch.randn(1, 40))
    mask = torch.ones(few.trajectory.shape[:2], dtype=torch.bool)
    mask[20:] = False
    assert navigator(few.replace(mask=mask), 2) is None


@pytest.mark.parametrize("jitter", [0.0, 1e-7])
def test_none_where_nothing_varies(jitter: float) -> None:
    """A constant centre, exactly or within float32's rounding, is no motion."""
    problem = scan(torch.ones(1, 40), noise=0.0)
    shaken = problem.samples * (1 + jitter * torch.randn(problem.samples.shape))
    assert navigator(problem.replace(samples=shaken), 2) is None


def test_centre_signal_is_the_mean_about_k_zero() -> None:
    problem = scan(torch.randn(1, 10))
    signal, passing = centre_signal(problem)
    assert passing.tolist() == list(range(20))
    torch.testing.assert_close(signal, problem.samples[:, :, 12])
    mask = torch.ones(problem.trajectory.shape[:2], dtype=torch.bool)
    mask[3] = False
    assert 3 not in centre_signal(problem.replace(mask=mask))[1].tolist()
