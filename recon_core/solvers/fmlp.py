"""FMLP: Fourier-feature MLP (Kunz, Ruschke and Heckel, IEEE TCI 2024;10:1280)."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor, nn

from recon_core.encodings.hash_grid import pixel_coordinates
from recon_core.fields.fourier import FourierField
from recon_core.options import option
from recon_core.problem import KSpaceProblem
from recon_core.solvers.fitting import FieldSettings, FieldSolver

SELECTED_BANDWIDTHS = (0.06, 0.02)


@dataclasses.dataclass(frozen=True)
class FmlpSettings(FieldSettings):
    """Settings of :class:`Fmlp`."""

    steps: int = option(1500, "optimiser steps", low=1, high=1_000_000)
    batch_frames: int = option(1, "frames a step", low=1, high=4096)
    learning_rate: float = option(3e-3, "Adam's learning rate, halved at half and three quarters of the run", low=1e-7, high=1.0)
    spatial_features: int = option(512, "Fourier features of space", low=2, high=8192)
    temporal_features: int = option(128, "Fourier features of time", low=2, high=8192)
    spatial_bandwidth: float = option(0.12, "standard deviation of spatial frequencies, cycles per pixel", low=1e-4, high=1.0)
    temporal_bandwidth: float | None = option(
        None, "standard deviation of temporal frequencies, cycles per frame; auto: held-out", low=0.0, high=1.0
    )
    width: int = option(512, "hidden width of the MLP", low=4, high=4096)
    depth: int = option(7, "hidden layers of the MLP", low=1, high=24)


class Fmlp(FieldSolver[FmlpSettings]):
    """FMLP; its only prior is the bandwidth of its features, and where it stops."""

    name = "fmlp"
    Settings = FmlpSettings
    check_every = 50
    betas = (0.9, 0.999)
    field: FourierField

    @classmethod
    def candidates(cls, settings: FmlpSettings, problem: KSpaceProblem) -> list[Any]:
        """Two temporal bandwidths unless one is set."""
        if settings.temporal_bandwidth is not None:
            return [settings]
        return [dataclasses.replace(settings, temporal_bandwidth=value) for value in SELECTED_BANDWIDTHS]

    def _make(self) -> nn.Module:
        settings, shape = self.settings, self.problem.shape
        temporal = SELECTED_BANDWIDTHS[1] if settings.temporal_bandwidth is None else settings.temporal_bandwidth
        spatial = tuple(settings.spatial_bandwidth * n for n in shape)
        features = (settings.spatial_features, settings.temporal_features)
        return FourierField(spatial, temporal, features, settings.width, settings.depth, self.seed)

    def _prepare(self) -> None:
        self.spatial = self.field.space(pixel_coordinates(self.problem.shape, self.problem.device))

    def _render(self, positions: Tensor) -> Tensor:
        times = positions.to(self.spatial)
        return self.field(self.spatial, times).reshape(-1, *self.problem.shape)


SOLVER = Fmlp
