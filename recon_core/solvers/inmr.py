"""INMR: zero-shot implicit neural manifold representation (Feng et al., AAAI 2026).

An image is ``f_θ(x, z_t)``: spatial hash features and a learnable low-dimensional latent a frame, both fitted to the scan's own samples;
coarse to fine in space (levels switched on in turn) and along time (noise on the latents annealed to zero); the latents smooth in time.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor

from recon_core.calibration.navigator import navigator
from recon_core.encodings.hash_grid import HashGridLayout, growth_for, pixel_coordinates
from recon_core.fields.manifold import ENCODINGS, ManifoldField
from recon_core.options import option
from recon_core.problem import KSpaceProblem
from recon_core.solvers.base import interpolate_at
from recon_core.solvers.fitting import FieldSettings, FieldSolver, levels_on

SELECTED_SMOOTHNESS = (2.0, 0.2)


@dataclasses.dataclass(frozen=True)
class InmrSettings(FieldSettings):
    """Settings of :class:`Inmr`."""

    latent: int = option(8, "dimension of the manifold (paper: 8)", low=1, high=64)
    smoothness: float | None = option(None, "weight λ of the latents' second difference; auto: held-out", low=0.0)
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


class Inmr(FieldSolver[InmrSettings]):
    """INMR as in the paper; what the paper leaves open is listed in ``docs/methods/inmr.md``."""

    name = "inmr"
    Settings = InmrSettings
    fitted: ClassVar[tuple[str, ...]] = (*FieldSolver.fitted, "latents")
    field: ManifoldField

    @classmethod
    def candidates(cls, settings: InmrSettings, problem: KSpaceProblem) -> list[Any]:
        """A few λ unless one is set."""
        if settings.smoothness is not None:
            return [settings]
        return [dataclasses.replace(settings, smoothness=value) for value in SELECTED_SMOOTHNESS]

    def _make(self) -> ManifoldField:
        settings, problem = self.settings, self.problem
        growth = growth_for(settings.base_resolution, settings.finest * max(problem.shape), settings.levels)
        layout = HashGridLayout(problem.dim, settings.levels, settings.features, settings.log2_table, settings.base_resolution, growth)
        return ManifoldField(layout, settings.latent, settings.mapped, settings.width, settings.depth, self.seed, settings.encoding)

    def _prepare(self) -> None:
        self.latents = self._first_latents().to(self.problem.device).requires_grad_(True)
        self.plan = self.field.encoding.plan(pixel_coordinates(self.problem.shape, self.problem.device))

    def _take_over(self, previous: Inmr) -> None:
        super()._take_over(previous)
        if previous.latents.shape == self.latents.shape:
            self.latents.data.copy_(previous.latents)

    def _optimiser(self) -> torch.optim.Optimizer:
        groups = [
            {"params": list(self.field.parameters()), "lr": self.settings.learning_rate, "betas": self.betas},
            {"params": [self.latents], "lr": self.settings.latent_learning_rate},
        ]
        return torch.optim.Adam(groups, eps=1e-15)

    def _first_latents(self) -> Tensor:
        """Smooth, centred, unit variance: small or rough latents leave the dynamics at a saddle (nothing moves)."""
        n, wanted = self.problem.n_frames, self.settings.latent
        found = navigator(self.problem, wanted) if self.settings.latent_start == "navigator" else None
        rough = torch.randn(n, wanted, generator=self.generator)
        cycles = torch.arange(n // 2 + 1)
        low = torch.fft.irfft(torch.fft.rfft(rough, dim=0) * torch.exp(-0.5 * (cycles / max(1.0, n / 20)) ** 2)[:, None], n=n, dim=0)
        smooth = (low - low.mean(0)) / low.std(0).clamp_min(1e-6) if n > 2 else rough
        return smooth if found is None else torch.cat([found, smooth[:, found.shape[1] :]], dim=1)

    @property
    def active_levels(self) -> int:
        """Levels switched on (spatial coarse to fine)."""
        levels = self.settings.levels
        if self.warm or not self.settings.spatial_coarse_to_fine:
            return levels
        return levels_on(self.step, self.total_steps, levels)

    @property
    def sigma(self) -> float:
        """Noise on the latents, falling to zero at three quarters of the run."""
        if self.warm or not self.settings.temporal_coarse_to_fine:
            return 0.0
        return self.settings.latent_noise * max(0.0, 1 - self.step / (0.75 * max(1, self.total_steps)))

    def _backward(self, batch: list[int]) -> float:
        features = self.field.features(self.plan, self.active_levels)
        # The spatial half is evaluated once a step: its gradient is gathered over the frames, then taken further back once.
        shared = features.detach().requires_grad_(True)
        total = self._smoothness()
        if total.requires_grad:
            total.backward()
        cost = total.detach()
        noise = self.sigma * torch.randn(len(batch), self.latents.shape[1], generator=self.generator).to(shared.device)
        at_once = 1 if shared.device.type == "cpu" else len(batch)
        for first in range(0, len(batch), at_once):
            part = slice(first, first + at_once)
            images = self.field.join(shared, self.latents[batch[part]] + noise[part]).reshape(-1, *self.problem.shape)
            misfits = [self._misfit(image, frame) for image, frame in zip(images, batch[part], strict=True)]
            loss = torch.stack(misfits).sum() / len(batch)
            loss.backward()
            cost = cost + loss.detach()
        features.backward(shared.grad)
        return float(cost)

    def _misfit(self, image: Tensor, frame: int) -> Tensor:
        if self.settings.relative_epsilon is None:
            return self.frames.l2(image, frame)
        return self.frames.relative(image, frame, self.settings.relative_epsilon)

    def _smoothness(self) -> Tensor:
        weight = self.settings.smoothness or 0.0
        if weight == 0 or self.latents.shape[0] < 3:
            return torch.zeros((), device=self.latents.device)
        second = self.latents[2:] - 2 * self.latents[1:-1] + self.latents[:-2]
        return weight * second.square().mean()

    def _latents(self, positions: Tensor) -> Tensor:
        return interpolate_at(self.latents.detach(), positions)

    def _render(self, positions: Tensor) -> Tensor:
        """Between frames the latents are interpolated linearly."""
        return self.field(self.plan, self._latents(positions), self.active_levels).reshape(-1, *self.problem.shape)


SOLVER = Inmr
