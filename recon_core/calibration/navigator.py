"""Self-navigator: the samples nearest k = 0 of every readout and coil, as slow signals of motion and contrast."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recon_core.problem import KSpaceProblem

CENTRE_RADIUS = 0.75
ROUNDING = 1e-6


def centre_signal(problem: KSpaceProblem) -> tuple[Tensor, Tensor]:
    """Mean of the samples within :data:`CENTRE_RADIUS` cycles of k = 0, readout by readout.

    Returns:
        complex64 ``[coil, readout]`` of those readouts that pass the centre, and their indices (int64).
    """
    near = problem.trajectory.norm(dim=-1) <= CENTRE_RADIUS
    if problem.mask is not None:
        near = near & problem.mask
    passing = torch.nonzero(near.any(dim=1), as_tuple=True)[0]
    weights = near[passing].to(problem.samples.dtype)
    signal = (problem.samples[:, passing] * weights).sum(-1) / weights.sum(-1)
    return signal, passing


def navigator(problem: KSpaceProblem, components: int, smooth_frames: float = 4.0) -> Tensor | None:
    """Leading temporal components of the k-space centre, smoothed along time.

    Args:
        problem: readouts sorted into frames.
        components: signals wanted.
        smooth_frames: standard deviation of the Gaussian along time, frames.

    Returns:
        float32 ``[frame, components]`` on the CPU, centred, unit variance, by falling singular value; None where fewer than half of the
        frames have a readout through the centre, or nothing varies.
    """
    signal, passing = centre_signal(problem)
    signal = signal.cpu()
    position = {int(readout): number for number, readout in enumerate(passing.tolist())}
    rows, times = [], []
    for readouts, time in zip(problem.frames, problem.frame_times.tolist(), strict=True):
        members = [position[r] for r in readouts.tolist() if r in position]
        if members:
            rows.append(signal[:, members].mean(1))
            times.append(time)
    if len(rows) < max(3, problem.n_frames // 2):
        return None
    series = torch.stack(rows)
    real = torch.cat([series.real, series.imag], dim=1).double()
    filled = _interpolate(real, torch.tensor(times, dtype=torch.float64), problem.frame_times)
    smoothed = _smooth(filled - filled.mean(0), smooth_frames)
    smoothed = smoothed - smoothed.mean(0)
    vectors, values, _ = torch.linalg.svd(smoothed, full_matrices=False)
    # What varies by no more than float32's rounding of the signal is no motion.
    kept = int((values > ROUNDING * filled.norm()).sum())
    if kept == 0:
        return None
    found = vectors[:, : min(components, kept)]
    return (found / found.std(0, keepdim=True).clamp_min(1e-12)).to(torch.float32)


def _interpolate(values: Tensor, times: Tensor, wanted: Tensor) -> Tensor:
    right = torch.searchsorted(times, wanted).clamp(1, times.shape[0] - 1)
    left = right - 1
    share = ((wanted - times[left]) / (times[right] - times[left]).clamp_min(1e-12)).clamp(0, 1)[:, None]
    return values[left] * (1 - share) + values[right] * share


def _smooth(series: Tensor, sigma: float) -> Tensor:
    if sigma <= 0:
        return series
    reach = min(math.ceil(3 * sigma), series.shape[0] - 1)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=series.dtype) / sigma) ** 2)
    padded = torch.nn.functional.pad(series.T[:, None], (reach, reach), mode="reflect")
    return torch.nn.functional.conv1d(padded, (kernel / kernel.sum())[None, None])[:, 0].T
