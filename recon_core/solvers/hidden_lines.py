"""Lines of Cartesian k-space hidden in turn, and what L+S makes of k-space without them."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from recon_core.operators.cartesian import CartesianFrames
from recon_core.problem import KSpaceProblem
from recon_core.solvers.low_rank_sparse import SELECTED_LOW_RANK, SELECTED_SPARSE, LowRankSparse, LowRankSparseSettings


def folds(problem: KSpaceProblem, frames: CartesianFrames, count: int, generator: torch.Generator) -> Tensor:
    """Which of ``count`` folds hides a readout: int64 ``[readout]``, −1 for none.

    Every frame gives each fold as many of its lines, to one. Lines that all frames have stay: nobody has to guess these.

    Args:
        problem: Cartesian, a readout along x.
        frames: its samples on the grid.
        count: at least 1.
        generator: of the draw.
    """
    in_all = frames.measured[frames.occupied.to(frames.measured.device)].any(-1).all(0)
    always = dict(enumerate(in_all.tolist()))
    lines = problem.trajectory[:, 0, 1].cpu().round().to(torch.int64) + problem.shape[0] // 2
    fold = torch.full((problem.n_readouts,), -1, dtype=torch.int64)
    given = 0
    for readouts in problem.frames:
        # At a smaller matrix some lines lie outside.
        free = torch.tensor([r for r in readouts.tolist() if fold[r] < 0 and not always.get(int(lines[r]), True)], dtype=torch.int64)
        found, which = lines[free].unique(return_inverse=True)
        fold[free] = ((torch.randperm(len(found), generator=generator) + given) % count)[which]
        given += len(found)
    return fold


def hidden_samples(problem: KSpaceProblem, frames: CartesianFrames, fold: Tensor) -> Tensor:
    """What every fold hides, bool ``[fold, frame, y, x]``."""
    masks = [frames.measured & ~CartesianFrames.of(without(problem, fold, number)).measured for number in range(int(fold.max()) + 1)]
    return torch.stack(masks) if masks else frames.measured.new_zeros((0, *frames.measured.shape))


def without(problem: KSpaceProblem, fold: Tensor, number: int) -> KSpaceProblem:
    """The problem without a fold's readouts."""
    return problem.keep_readouts((fold != number).to(problem.device))


def low_rank_sparse_guesses(problem: KSpaceProblem, frames: CartesianFrames, fold: Tensor, hidden: Tensor, seed: int) -> Tensor:
    """k-space as L+S completes it without each fold, and last from all samples; its λ are those that predict the first fold best.

    Args:
        problem: calibrated, Cartesian.
        frames: its samples on the grid.
        fold: of :func:`folds`.
        hidden: of :func:`hidden_samples`, one mask a fold.
        seed: of the power iteration's start.

    Returns:
        complex64 ``[fold + 1, frame, coil, y, x]`` in the samples' units.
    """

    def completed(part: KSpaceProblem, low_rank: float, sparse: float) -> Tensor:
        solver = LowRankSparse(LowRankSparseSettings(low_rank=low_rank, sparse=sparse), seed=seed)
        solver.start(part)
        while not solver.done:
            solver.update()
        return frames.kspace(solver.images().images)

    tried: list[tuple[float, float, float]] = []
    first: Tensor | None = None
    for low_rank, sparse in itertools.product(SELECTED_LOW_RANK, SELECTED_SPARSE) if len(hidden) else ():
        made = completed(without(problem, fold, 0), low_rank, sparse)
        error = float((made - frames.samples).abs().square().mean(1)[hidden[0]].sum())
        if not tried or error < min(tried)[0]:
            first = made
        tried.append((error, low_rank, sparse))
    if first is None:
        return completed(problem, SELECTED_LOW_RANK[-1], SELECTED_SPARSE[0])[None]
    _, low_rank, sparse = min(tried)
    others = [completed(without(problem, fold, number), low_rank, sparse) for number in range(1, len(hidden))]
    return torch.stack([first, *others, completed(problem, low_rank, sparse)])
