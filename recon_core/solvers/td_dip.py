"""TD-DIP: time-dependent deep image prior (Yoo et al., IEEE TMI 2021;40:3337)."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

from recon_core.calibration.navigator import navigator
from recon_core.fields.generator import ImageGenerator
from recon_core.options import option
from recon_core.solvers.fitting import FieldSettings, FieldSolver


@dataclasses.dataclass(frozen=True)
class TdDipSettings(FieldSettings):
    """Settings of :class:`TdDip`."""

    steps: int = option(2000, "optimiser steps (paper: 10,000)", low=1, high=1_000_000)
    batch_frames: int = option(1, "frames a step", low=1, high=4096)
    learning_rate: float = option(3e-3, "Adam's learning rate, halved at half and three quarters of the run", low=1e-7, high=1.0)
    turns: float | None = option(None, "turns of the latent helix in the scan; auto: the navigator's strongest period", low=0.0, high=1e5)
    mapped: int = option(512, "hidden width of the latent's MLP", low=4, high=4096)
    channels: int = option(128, "channels of the convolutions", low=2, high=1024)
    upsamplings: int = option(4, "at most so many up-samplings by two", low=0, high=8)


class TdDip(FieldSolver[TdDipSettings]):
    """TD-DIP: frames are the generator's images of points along a helix, one turn a beat."""

    name = "td_dip"
    Settings = TdDipSettings
    dims = (2,)
    check_every = 50
    betas = (0.9, 0.999)
    field: ImageGenerator

    def _make(self) -> nn.Module:
        settings = self.settings
        return ImageGenerator(self.problem.shape, 3, settings.mapped, settings.channels, settings.upsamplings, self.seed)

    def _prepare(self) -> None:
        self.turns = self._strongest_period() if self.settings.turns is None else self.settings.turns
        if self.settings.turns is None:
            self.notes.append(f"helix of {self.turns:g} turns, from the navigator" if self.turns else "straight latents: no period found")

    def _strongest_period(self) -> float:
        """Turns of the strongest line in the spectrum of the navigator's two leading components; 0 where nothing comes back."""
        n = self.problem.n_frames
        signal = navigator(self.problem, 2, smooth_frames=1.0)
        if signal is None or n < 8:
            return 0.0
        trend = torch.linspace(-1, 1, n)[:, None]
        detrended = signal - trend * (trend * signal).sum(0) / trend.square().sum()
        padded = 8 * n
        power = torch.fft.rfft(detrended * torch.hann_window(n, periodic=False)[:, None], n=padded, dim=0).abs().square().sum(1)
        turns = torch.arange(power.shape[0]) * (n / padded)
        power[turns < 1] = 0
        return float(turns[int(power.argmax())]) if float(power.max()) > 0 else 0.0

    def latents(self, positions: Tensor) -> Tensor:
        """Points of the helix, float32 ``[frame, 3]``, at fractional frame numbers."""
        share = (positions + 0.5) / self.problem.n_frames
        angle = 2 * math.pi * self.turns * share
        return torch.stack([angle.cos(), angle.sin(), 2 * share - 1], dim=1).to(torch.float32)

    def _render(self, positions: Tensor) -> Tensor:
        return self.field(self.latents(positions).to(self.problem.device))


SOLVER = TdDip
