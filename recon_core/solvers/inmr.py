"""INMR: zero-shot implicit neural manifold representation (Feng et al., AAAI 2026).

An image is ``f_θ(x, z_t)``: spatial hash features and a learnable low-dimensional latent a frame, both fitted to the scan's own samples;
coarse to fine in space (levels switched on in turn) and along time (noise on the latents annealed to zero); the latents smooth in time.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from recon_core.calibration.navigator import navigator
from recon_core.encodings.hash_grid import HashGridLayout, growth_for, pixel_coordinates
from recon_core.fields.manifold import ENCODINGS, ManifoldField
from recon_core.operators.frames import FrameEncoding
from recon_core.options import option
from recon_core.problem import ImageSeries, KSpaceProblem
from recon_core.solvers.base import Solver, interpolate_frames

SELECTED_SMOOTHNESS = (2.0, 0.2)
_EVALUATED_FRAMES = 16


@dataclasses.dataclass(frozen=True)
class InmrSettings:
    """Settings of :class:`Inmr`."""

    steps: int = option(600, "optimiser steps", low=1, high=1_000_000)
    batch_frames: int = option(8, "frames a step", low=1, high=4096)
    latent: int = option(8, "dimension of the manifold (paper: 8)", low=1, high=64)
    smoothness: float | None = option(None, "weight λ of the latents' second difference; auto: held-out", low=0.0)
    learning_rate: float = option(5e-3, "Adam's learning rate, halved at half and three quarters of the run", low=1e-7, high=1.0)
    latent_learning_rate: float = option(5e-3, "Adam's learning rate of the latents", low=0.0, high=1.0)
    encoding: str = option("torch", "who computes the hash encoding; tinycudann needs CUDA", choices=tuple(ENCODINGS))
    levels: int = option(16, "levels of the hash encoding", low=1, high=24)
    features: int = option(2, "features a level", low=1, high=8)
    base_resolution: int = option(8, "grid points an axis of the coarsest level", low=2, high=512)
    finest: float = option(1.0, "finest level's grid points over the largest matrix size", low=0.05, high=4.0)
    log2_table: int = option(19, "log2 of the largest hash table", low=8, high=24)
    mapped: int = option(32, "width of the mapped latent", low=1, high=512)
    width: int = option(64, "hidden width of the joint MLP", low=4, high=1024)
    depth: int = option(2, "hidden layers of the joint MLP", low=1, high=8)
    spatial_coarse_to_fine: bool = option(True, "switch the encoding's levels on in turn")
    temporal_coarse_to_fine: bool = option(True, "anneal noise on the latents")
    latent_noise: float = option(0.3, "standard deviation of the latents' noise at the start", low=0.0, high=10.0)
    latent_start: str = option("navigator", "start of the latents", choices=("navigator", "random"))
    relative_epsilon: float | None = option(
        None, "ε of the relative L2 loss, in units of the samples' largest magnitude; auto: plain L2, weighted by density", low=1e-9
    )


class Inmr(Solver[InmrSettings]):
    """INMR as in the paper; what the paper leaves open is listed in ``docs/methods/inmr.md``."""

    name = "inmr"
    Settings = InmrSettings
    check_every = 25
    selection_matrix = 0.5

    @property
    def total_steps(self) -> int:
        """Optimiser steps."""
        return self.settings.steps

    @classmethod
    def candidates(cls, settings: InmrSettings, problem: KSpaceProblem) -> list[Any]:
        """A few λ unless one is set."""
        if settings.smoothness is not None:
            return [settings]
        return [dataclasses.replace(settings, smoothness=value) for value in SELECTED_SMOOTHNESS]

    def start(self, problem: KSpaceProblem, previous: Solver[InmrSettings] | None = None) -> None:
        """See :class:`Solver`; a previous fit of the same field hands it on, and its latents where the frames are as many.

        What was fitted with all levels goes on with all levels: a warm start skips both coarse-to-fine schedules.
        """
        settings = self.settings
        self.problem = problem
        self.step = 0
        self.cost: float | None = None
        device = problem.device
        finest = settings.finest * max(problem.shape)
        growth = growth_for(settings.base_resolution, finest, settings.levels)
        layout = HashGridLayout(problem.dim, settings.levels, settings.features, settings.log2_table, settings.base_resolution, growth)
        sizes = (settings.latent, settings.mapped, settings.width, settings.depth)
        self.field = ManifoldField(layout, *sizes, self.seed, settings.encoding).to(device)
        self.generator = torch.Generator().manual_seed(self.seed + 1)
        self.latents = self._first_latents().to(device)
        self.warm = isinstance(previous, Inmr) and _shapes(previous.field) == _shapes(self.field)
        if isinstance(previous, Inmr) and self.warm:
            self.field.load_state_dict(previous.field.state_dict())
            if previous.latents.shape == self.latents.shape:
                self.latents = previous.latents.detach().clone()
        self.latents.requires_grad_(True)
        self.plan = self.field.encoding.plan(pixel_coordinates(problem.shape, device))
        self.encoding = FrameEncoding(problem, self.engine)
        self.occupied = self.encoding.occupied.tolist()
        self.queue: list[int] = []
        self._scale()
        self.optimiser = torch.optim.Adam(
            [
                {"params": list(self.field.parameters()), "lr": settings.learning_rate, "betas": (0.9, 0.99)},
                {"params": [self.latents], "lr": settings.latent_learning_rate},
            ],
            eps=1e-15,
        )
        milestones = [max(1, self.total_steps // 2), max(2, self.total_steps * 3 // 4)]
        self.schedule = torch.optim.lr_scheduler.MultiStepLR(self.optimiser, milestones, gamma=0.5)

    def _first_latents(self) -> Tensor:
        """Smooth, centred, unit variance: small or rough latents leave the dynamics at a saddle (nothing moves)."""
        n, wanted = self.problem.n_frames, self.settings.latent
        found = navigator(self.problem, wanted) if self.settings.latent_start == "navigator" else None
        rough = torch.randn(n, wanted, generator=self.generator)
        cycles = torch.arange(n // 2 + 1)
        low = torch.fft.irfft(torch.fft.rfft(rough, dim=0) * torch.exp(-0.5 * (cycles / max(1.0, n / 20)) ** 2)[:, None], n=n, dim=0)
        smooth = (low - low.mean(0)) / low.std(0).clamp_min(1e-6) if n > 2 else rough
        return smooth if found is None else torch.cat([found, smooth[:, found.shape[1] :]], dim=1)

    def _scale(self) -> None:
        """Scale the samples so that the field's output is of order one; weights of the data term."""
        encoding = self.encoding
        average = torch.stack([encoding.adjoint(encoding.frames[t].samples * encoding.frames[t].weights, t) for t in self.occupied]).sum(0)
        bright = average.abs().flatten().kthvalue(max(1, round(0.99 * average.numel()))).values
        self.scale = float(bright.clamp_min(1e-12))
        self.targets = [f.samples / self.scale for f in encoding.frames]
        self.peak = max(float(t.abs().max()) for t in self.targets if t.numel())
        total = sum(float((self._weight(t) * self.targets[t].abs().square()).sum(dtype=torch.float64)) for t in self.occupied)
        self.energy = total / len(self.occupied)

    def _weight(self, frame: int) -> Tensor:
        return self.encoding.frames[frame].weights

    @property
    def active_levels(self) -> int:
        """Levels switched on: one more every 1/levels of the first half of the run."""
        levels = self.settings.levels
        if self.warm or not self.settings.spatial_coarse_to_fine:
            return levels
        ramp = max(1.0, self.total_steps / 2)
        return min(levels, 2 + math.floor(self.step / ramp * (levels - 1)))

    @property
    def sigma(self) -> float:
        """Noise on the latents, falling to zero at three quarters of the run."""
        if self.warm or not self.settings.temporal_coarse_to_fine:
            return 0.0
        return self.settings.latent_noise * max(0.0, 1 - self.step / (0.75 * max(1, self.total_steps)))

    def _next_frames(self) -> list[int]:
        """The next batch: every frame comes once before any comes again."""
        wanted = min(self.settings.batch_frames, len(self.occupied))
        if len(self.queue) < wanted:
            order = torch.randperm(len(self.occupied), generator=self.generator)
            self.queue += [self.occupied[int(i)] for i in order]
        batch, self.queue = self.queue[:wanted], self.queue[wanted:]
        return batch

    def _update(self) -> None:
        frames = self._next_frames()
        self.optimiser.zero_grad(set_to_none=True)
        features = self.field.features(self.plan, self.active_levels)
        # The spatial half is evaluated once a step: its gradient is gathered over the frames, then taken further back once.
        shared = features.detach().requires_grad_(True)
        total = self._smoothness()
        if total.requires_grad:
            total.backward()
        cost = total.detach()
        noise = self.sigma * torch.randn(len(frames), self.latents.shape[1], generator=self.generator).to(shared.device)
        at_once = 1 if shared.device.type == "cpu" else len(frames)
        for first in range(0, len(frames), at_once):
            part = slice(first, first + at_once)
            loss = self._data_term(shared, frames[part], noise[part]) / len(frames)
            loss.backward()
            cost = cost + loss.detach()
        features.backward(shared.grad)
        self.optimiser.step()
        self.schedule.step()
        self.cost = float(cost)

    def _data_term(self, features: Tensor, frames: list[int], noise: Tensor) -> Tensor:
        """Sum of the frames' losses."""
        images = self.field.join(features, self.latents[frames] + noise).reshape(len(frames), *self.problem.shape)
        loss = torch.zeros((), device=features.device)
        for image, frame in zip(images, frames, strict=True):
            residual = self.encoding.forward(image, frame) - self.targets[frame]
            if self.settings.relative_epsilon is None:
                loss = loss + (self._weight(frame) * residual.abs().square()).sum() / self.energy
                continue
            predicted = (residual + self.targets[frame]).detach()
            floor = (self.settings.relative_epsilon * self.peak) ** 2
            parts = ((residual.real, predicted.real), (residual.imag, predicted.imag))
            loss = loss + torch.stack([(r.square() / (p.square() + floor)).mean() for r, p in parts]).sum()
        return loss

    def _smoothness(self) -> Tensor:
        weight = self.settings.smoothness or 0.0
        if weight == 0 or self.latents.shape[0] < 3:
            return torch.zeros((), device=self.latents.device)
        second = self.latents[2:] - 2 * self.latents[1:-1] + self.latents[:-2]
        return weight * second.square().mean()

    def objective(self) -> float | None:
        """Loss of the last step."""
        return self.cost

    @torch.no_grad()
    def images(self, times: Tensor | None = None) -> ImageSeries:
        """See :class:`Solver`; between frames the latents are interpolated linearly."""
        frame_times = self.problem.frame_times
        times = frame_times if times is None else times
        latents = interpolate_frames(self.latents.detach(), frame_times, times)
        parts = [self.field(self.plan, part, self.active_levels) for part in latents.split(_EVALUATED_FRAMES)]
        images = torch.cat(parts).reshape(-1, *self.problem.shape) * self.scale
        return ImageSeries(images, times, latents.clone())


def _shapes(field: ManifoldField) -> dict[str, torch.Size]:
    return {name: weights.shape for name, weights in field.state_dict().items()}


SOLVER = Inmr
