"""Held-out readouts: what λ, rank and stopping rest on."""

from __future__ import annotations

import torch
from torch import Tensor

from recon_core.problem import KSpaceProblem

ANGLE_BINS = 8
CENTRE_RADIUS = 2.0


def readout_class(problem: KSpaceProblem) -> Tensor:
    """A class in ``0..ANGLE_BINS-1`` a readout: its direction in the kx-ky plane, or its phase-encoding step on a Cartesian grid."""
    trajectory = problem.trajectory.to("cpu")
    if problem.cartesian:
        step = trajectory[:, :, 1].mean(1)
        span = (step.max() - step.min()).clamp_min(1e-6)
        return ((step - step.min()) / span * ANGLE_BINS).to(torch.int64).clamp_max(ANGLE_BINS - 1)
    radius = trajectory[..., :2].norm(dim=-1)
    outermost = trajectory[torch.arange(trajectory.shape[0]), radius.argmax(dim=1)]
    angle = torch.remainder(torch.atan2(outermost[:, 1], outermost[:, 0]), 2 * torch.pi)
    return (angle / (2 * torch.pi) * ANGLE_BINS).to(torch.int64).clamp(0, ANGLE_BINS - 1)


def held_out_readouts(problem: KSpaceProblem, fraction: float, seed: int) -> Tensor:
    """A seeded choice of readouts, stratified in time and angle.

    Time is cut into blocks of 1/fraction readouts; each block gives one readout, of the class chosen least often so far.

    Returns:
        bool ``[readout]``, True where held out.
    """
    generator = torch.Generator().manual_seed(seed)
    held = torch.zeros(problem.n_readouts, dtype=torch.bool)
    if fraction <= 0:
        return held
    classes = readout_class(problem)
    used = torch.zeros(ANGLE_BINS, dtype=torch.int64)
    order = torch.argsort(problem.readout_times, stable=True)
    n_blocks = max(1, round(problem.n_readouts * fraction))
    for block in torch.tensor_split(order, n_blocks):
        if block.numel() < 2:
            continue
        shuffled = block[torch.randperm(block.numel(), generator=generator)]
        chosen = shuffled[used[classes[shuffled]].argmin()]
        used[classes[chosen]] += 1
        held[chosen] = True
    return held


def owner_frames(problem: KSpaceProblem) -> Tensor:
    """For every readout the frame nearest in time among those it belongs to (int64 ``[readout]``, −1 for none)."""
    owner = torch.full((problem.n_readouts,), -1, dtype=torch.int64)
    best = torch.full((problem.n_readouts,), torch.inf, dtype=torch.float64)
    for number, readouts in enumerate(problem.frames):
        index = readouts.cpu()
        distance = (problem.readout_times[index] - problem.frame_times[number]).abs()
        nearer = distance < best[index]
        owner[index[nearer]] = number
        best[index[nearer]] = distance[nearer]
    return owner
