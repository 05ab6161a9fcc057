"""KP-INR: Cartesian k-space from its coordinates and from what surrounds them (Lyu et al., 2025)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor, nn

from recon_core.fields.kp import DualField
from recon_core.options import option
from recon_core.problem import KSpaceProblem
from recon_core.solvers.base import Solver
from recon_core.solvers.p_inr import KSpaceFit, PInrSettings

_FRAMES_AROUND = 2


@dataclasses.dataclass(frozen=True)
class KpInrSettings(PInrSettings):
    """Settings of :class:`KpInr`."""

    steps: int = option(1200, "optimiser steps", low=1, high=1_000_000)
    channels: int = option(16, "complex channels of the U-Net", low=1, high=512)
    hidden: float = option(
        0.5, "share of the measured lines of a step that the U-Net does not see, and that the step is fitted to", low=0.0, high=0.9
    )
    batch_frames: int = option(6, "consecutive frames a step", low=1, high=4096)
    refreshes: int = option(12, "times a run that the U-Net's input is replaced by the k-space completed so far", low=0, high=1000)
    weight_positional: float = option(1.0, "λ2 of the positional branch", low=0.0, high=100.0)
    weight_neighbourhood: float = option(1.0, "λ1 of the k-space branch", low=0.0, high=100.0)
    weight_measured: float = option(0.05, "λ3 of auto-encoding what was measured", low=0.0, high=100.0)
    weight_empty: float = option(0.025, "λ4 of auto-encoding what was not", low=0.0, high=100.0)


class KpInr(KSpaceFit[KpInrSettings]):
    """Two branches fitted to the same samples, exchanging on the way; their mean completes k-space, which the U-Net then sees again.

    A sample that the U-Net sees can be copied, which says nothing of one that was not measured. Every step therefore hides lines from the
    U-Net and is fitted to these; in their place, as in the place of what was not measured, stands what the branches made of them when they
    were hidden before.
    """

    name = "kp_inr"
    off_resonance = False
    Settings = KpInrSettings
    fitted: ClassVar[tuple[str, ...]] = (*KSpaceFit.fitted, "guess")
    field: DualField
    guess: Tensor

    def _make(self) -> nn.Module:
        ny, nx = self.problem.shape
        return DualField((ny, nx), self.problem.n_coils, self.sizes, self.settings.channels, self.seed)

    def start(self, problem: KSpaceProblem, previous: Solver[KpInrSettings] | None = None) -> None:
        """See :class:`Solver`; a previous fit also hands on the k-space that it completed."""
        super().start(problem, previous)
        self.guess = torch.zeros_like(self.targets)
        if isinstance(previous, KpInr) and previous.guess.shape == self.guess.shape:
            self.guess = previous.guess.detach().clone()

    def _update(self) -> None:
        each = self.total_steps // (self.settings.refreshes + 1)
        if each and self.step and self.step % each == 0:
            self._refresh()
        first, last = self._window()
        part = slice(first, last)
        measured = self.frames.measured[part]
        hidden = measured & self._lines(self.settings.hidden)[part]
        series = self._seen(hidden, part)
        features, decoded = self.field.unet(series)
        frames, places = self._drawn(hidden if bool(hidden.any()) else measured)
        chosen = features.flatten(2)[frames, :, places]
        frames = frames + first
        by_position, by_features = self.field(self.coordinates(frames, places), chosen)
        settings = self.settings
        loss = settings.weight_positional * self._loss(by_position, frames, places)
        loss = loss + settings.weight_neighbourhood * self._loss(by_features, frames, places)
        error, where = (decoded - series).abs().square(), (measured & ~hidden)[:, None].expand_as(series)
        for weight, mask in ((settings.weight_measured, where), (settings.weight_empty, ~where)):
            loss = loss + weight * (error * mask).sum() / mask.sum().clamp_min(1)
        self._descend(loss)

    def _lines(self, share: float) -> Tensor:
        """Phase-encoding lines of every frame, drawn with a probability: bool ``[frame, y, 1]``."""
        drawn = torch.rand((*self.frames.measured.shape[:2], 1), generator=self.generator)
        return (drawn < share).to(self.problem.device)

    def _seen(self, hidden: Tensor | None = None, part: slice = slice(None)) -> Tensor:
        """What the U-Net is given of some frames: the samples over the envelope, and the guess where none is or where it is hidden."""
        seen = self.frames.measured[part] if hidden is None else self.frames.measured[part] & ~hidden
        return torch.where(seen[:, None], self.targets[part] / self.envelope, self.guess[part])

    def _window(self) -> tuple[int, int]:
        """First frame of a step and the one after the last; some of them have samples."""
        n = self.problem.n_frames
        length = min(self.settings.batch_frames, n)
        with_data = int(self.frames.occupied[int(torch.randint(len(self.frames.occupied), (1,), generator=self.generator))])
        low, high = max(0, with_data - length + 1), min(n - length, with_data)
        first = low + int(torch.randint(high - low + 1, (1,), generator=self.generator))
        return first, first + length

    @torch.no_grad()
    def _refresh(self) -> None:
        """Guess what was not measured, and each half of the measured lines from the other half."""
        half = self._lines(0.5)
        made = [self._predict(self._seen(self.frames.measured & part)) for part in (half, ~half)]
        guess = torch.where(half[:, None], made[0], made[1])
        self.guess = torch.where(self.frames.measured[:, None], guess, 0.5 * (made[0] + made[1]))

    def _predict(self, series: Tensor | None = None) -> Tensor:
        """The mean of both branches, a few frames at a time with those around them, for the U-Net looks along time."""
        series = self._seen() if series is None else series
        ny, nx = self.problem.shape
        n = self.problem.n_frames
        places = torch.arange(ny * nx, device=self.problem.device)
        length = max(1, self.settings.batch_frames - 2 * _FRAMES_AROUND)
        made = []
        for first in range(0, n, length):
            start, end = max(0, first - _FRAMES_AROUND), min(n, first + length + _FRAMES_AROUND)
            features, _ = self.field.unet(series[start:end])
            for frame in range(first, min(n, first + length)):
                points = self.coordinates(torch.full_like(places, frame), places)
                branches = self.field(points, features[frame - start].flatten(1).T)
                made.append(0.5 * (branches[0] + branches[1]))
        return torch.stack(made).permute(0, 2, 1).reshape(n, -1, ny, nx)


SOLVER = KpInr
