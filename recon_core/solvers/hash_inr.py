"""HashINR: stINR without its penalties, as Baik and Yoo (DA-INR) run it; what stINR builds on."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from recon_core.encodings.hash_grid import HashGridLayout, growth_for, pixel_coordinates
from recon_core.fields.spacetime import SpacetimeField
from recon_core.options import option
from recon_core.problem import KSpaceProblem
from recon_core.solvers.fitting import FieldSettings, FieldSolver, levels_on

SELECTED_STEPS = (1.0, 0.3, 0.1)
_POINTS_AT_ONCE = 1 << 18


@dataclasses.dataclass(frozen=True)
class HashInrSettings(FieldSettings):
    """Settings of :class:`HashInr`."""

    steps: int = option(500, "optimiser steps (paper: 500)", low=1, high=1_000_000)
    learning_rate: float = option(1e-2, "Adam's learning rate, halved at half and three quarters of the run", low=1e-7, high=1.0)
    batch_frames: int = option(16, "neighbouring frames a step (paper: all)", low=1, high=4096)
    levels: int = option(16, "levels of the hash encoding", low=1, high=24)
    features: int = option(2, "features a level", low=1, high=8)
    base_resolution: int = option(8, "grid points an axis of the coarsest level", low=2, high=512)
    finest: float = option(1.0, "finest level's grid points over the largest axis, time included", low=0.05, high=16384.0)
    log2_table: int = option(19, "log2 of the largest hash table", low=8, high=24)
    frame_step: float | None = option(
        None, "pixels of the encoding's grid from one frame to the next; below 1 it is smooth in time; auto: held-out", low=1e-3, high=100.0
    )
    width: int = option(64, "hidden width of the MLP (paper: 64)", low=4, high=1024)
    depth: int = option(5, "hidden layers of the MLP (paper: 5)", low=1, high=12)
    coarse_to_fine: bool = option(True, "switch the encoding's levels on in turn")
    relative_epsilon: float | None = option(
        None, "ε of the relative L2 loss, in units of the samples' largest magnitude; auto: plain L2, weighted by density", low=1e-9
    )


class HashInr(FieldSolver[Any]):
    """Hash features of (x, y, t) and an MLP, with the data term alone.

    Coordinates are scaled alike on every axis: a frame counts as ``frame_step`` pixels. That is the method's only hold on the dynamics.
    """

    name = "hash_inr"
    Settings = HashInrSettings
    betas = (0.9, 0.999)
    field: SpacetimeField

    @classmethod
    def candidates(cls, settings: Any, problem: KSpaceProblem) -> list[Any]:
        """A few steps along time unless one is set."""
        if settings.frame_step is not None:
            return [settings]
        return [dataclasses.replace(settings, frame_step=value) for value in SELECTED_STEPS]

    @property
    def frame_step(self) -> float:
        """Pixels of the grid from one frame to the next."""
        return SELECTED_STEPS[1] if self.settings.frame_step is None else float(self.settings.frame_step)

    def _make(self) -> nn.Module:
        settings, shape = self.settings, self.problem.shape
        self.extent = max(*shape, self.frame_step * self.problem.n_frames)
        growth = growth_for(settings.base_resolution, settings.finest * self.extent, settings.levels)
        dim = self.problem.dim + 1
        layout = HashGridLayout(dim, settings.levels, settings.features, settings.log2_table, settings.base_resolution, growth)
        return SpacetimeField(layout, settings.width, settings.depth, self.seed)

    def _prepare(self) -> None:
        shape, device = self.problem.shape, self.problem.device
        scaling = torch.tensor([n / self.extent for n in shape], device=device)
        self.plan = self.field.encoding.space(pixel_coordinates(shape, device) * scaling)

    @property
    def active_levels(self) -> int:
        """Levels switched on."""
        levels = int(self.settings.levels)
        if self.warm or not self.settings.coarse_to_fine:
            return levels
        return levels_on(self.step, self.total_steps, levels)

    def _next_frames(self) -> list[int]:
        """The next window of neighbouring frames; windows tile the series, from another place every time."""
        n, wanted = self.problem.n_frames, self.settings.batch_frames
        while not self.queue or not set(self.queue[0]) & set(self.frames.occupied):
            if self.queue:
                del self.queue[0]
                continue
            shift = int(torch.randint(wanted, (), generator=self.generator)) if wanted < n else 0
            edges = sorted({0, n, *range(shift, n, wanted)})
            windows = [list(range(a, b)) for a, b in itertools.pairwise(edges)]
            self.queue = [windows[int(i)] for i in torch.randperm(len(windows), generator=self.generator)]
        batch: list[int] = self.queue.pop(0)
        return batch

    def _render(self, positions: Tensor) -> Tensor:
        times = (positions + 0.5) * (self.frame_step / self.extent)
        shape = self.problem.shape
        at_once = max(1, _POINTS_AT_ONCE // self.plan.keys.shape[1])
        if len(times) <= at_once or not torch.is_grad_enabled():
            return self.field(self.plan, times, self.active_levels).reshape(-1, *shape)
        # Hidden layers of a large batch are computed twice rather than kept.
        parts = [checkpoint(self.field, self.plan, part, self.active_levels, use_reentrant=False) for part in times.split(at_once)]
        return torch.cat(parts).reshape(-1, *shape)

    def _misfit(self, image: Tensor, frame: int) -> Tensor:
        if self.settings.relative_epsilon is None:
            return self.frames.l2(image, frame)
        return self.frames.relative(image, frame, self.settings.relative_epsilon)


SOLVER = HashInr
