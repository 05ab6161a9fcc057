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
from recon_core.solvers.hidden_lines import folds, hidden_samples, low_rank_sparse_guesses
from recon_core.solvers.p_inr import KSpaceFit, PInrSettings

_FRAMES_AROUND = 2


@dataclasses.dataclass(frozen=True)
class KpInrSettings(PInrSettings):
    """Settings of :class:`KpInr`."""

    steps: int = option(1200, "optimiser steps", low=1, high=1_000_000)
    channels: int = option(16, "complex channels of the U-Net", low=1, high=512)
    hidden: float = option(
        0.25, "share of the measured lines that the U-Net does not see in a step, and that the step is fitted to", low=0.0, high=0.5
    )
    first_guess: str = option(
        "low_rank_sparse",
        "what the U-Net first sees where nothing was measured: L+S, or zeros (paper)",
        choices=("low_rank_sparse", "zero"),
    )
    batch_frames: int = option(6, "consecutive frames a step", low=1, high=4096)
    refreshes: int = option(12, "times a run that the U-Net's input is replaced by the k-space completed so far", low=0, high=1000)
    weight_positional: float = option(1.0, "λ2 of the positional branch", low=0.0, high=100.0)
    weight_neighbourhood: float = option(1.0, "λ1 of the k-space branch", low=0.0, high=100.0)
    weight_measured: float = option(0.05, "λ3 of auto-encoding what was measured", low=0.0, high=100.0)
    weight_empty: float = option(0.025, "λ4 of auto-encoding what was not", low=0.0, high=100.0)


class KpInr(KSpaceFit[KpInrSettings]):
    """Two branches fitted to the same samples, exchanging on the way; their mean completes k-space, which the U-Net then sees again.

    A sample that the U-Net sees can be copied, which says nothing of one that was not measured. The lines are therefore dealt into folds;
    a step hides one from the U-Net and is fitted to it. What stands in its place, and where nothing was measured, was made without it.

    Attributes:
        hidden: bool ``[fold, frame, y, x]``.
        guess: k-space over the envelope without each fold, and last from all samples: complex64 ``[fold + 1, frame, coil, y, x]``.
        first: the guess at the start, where L+S made it; it takes part in the mean that completes k-space.
    """

    name = "kp_inr"
    off_resonance = False
    Settings = KpInrSettings
    fitted: ClassVar[tuple[str, ...]] = (*KSpaceFit.fitted, "guess")
    field: DualField
    hidden: Tensor
    guess: Tensor
    first: Tensor | None

    def _make(self) -> nn.Module:
        ny, nx = self.problem.shape
        return DualField((ny, nx), self.problem.n_coils, self.sizes, self.settings.channels, self.seed)

    def start(self, problem: KSpaceProblem, previous: Solver[KpInrSettings] | None = None) -> None:
        """See :class:`Solver`; a previous fit also hands on the k-space that it completed."""
        super().start(problem, previous)
        share = self.settings.hidden
        fold = torch.full((problem.n_readouts,), -1, dtype=torch.int64)
        if share > 0:
            fold = folds(problem, self.frames, round(1 / share), self.generator)
        self.hidden = hidden_samples(problem, self.frames, fold)
        self.first = None
        if self.settings.first_guess == "low_rank_sparse":
            self.first = low_rank_sparse_guesses(problem, self.frames, fold, self.hidden, self.seed) / (self.scale * self.envelope)
        self.guess = self.targets.new_zeros((len(self.hidden) + 1, *self.targets.shape)) if self.first is None else self.first.clone()
        if isinstance(previous, KpInr) and previous.guess.shape == self.guess.shape:
            self.guess = previous.guess.detach().clone()

    def _update(self) -> None:
        each = self.total_steps // (self.settings.refreshes + 1)
        if each and self.step and self.step % each == 0:
            self._refresh()
        first, last = self._window()
        part = slice(first, last)
        measured = self.frames.measured[part]
        there = torch.nonzero(self.hidden[:, part].flatten(1).any(1), as_tuple=True)[0].tolist()
        fold = there[int(torch.randint(len(there), (1,), generator=self.generator))] if there else -1
        hidden = self.hidden[fold, part] if there else torch.zeros_like(measured)
        series = self._seen(fold, part)
        features, decoded = self.field.unet(series)
        frames, places = self._drawn(hidden if there else measured)
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

    def _seen(self, fold: int = -1, part: slice = slice(None)) -> Tensor:
        """What the U-Net is given of some frames: samples over the envelope, and the guess where none is or where a fold hides it."""
        seen = self.frames.measured[part] if fold < 0 else self.frames.measured[part] & ~self.hidden[fold, part]
        return torch.where(seen[:, None], self.targets[part] / self.envelope, self.guess[fold, part])

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
        """Guess anew, without each fold and from all samples."""
        self.guess = torch.stack([self._predict(fold) for fold in (*range(len(self.hidden)), -1)])

    def _predict(self, fold: int = -1) -> Tensor:
        """The mean of both branches, and of the first guess, where L+S made it: three predictions whose errors differ.

        A few frames are made at a time with those around them, for the U-Net looks along time.
        """
        series = self._seen(fold)
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
        mean = torch.stack(made).permute(0, 2, 1).reshape(n, -1, ny, nx)
        return mean if self.first is None else (2 * mean + self.first[fold]) / 3


SOLVER = KpInr
