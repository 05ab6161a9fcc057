"""NIK: neural implicit k-space for non-Cartesian readouts, without binning (Huang et al., IPMI 2023)."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from recon_core.errors import DataError
from recon_core.fields.kspace import KSpaceField
from recon_core.losses import high_dynamic_range
from recon_core.operators.nufft import Nufft
from recon_core.options import option
from recon_core.problem import KSpaceProblem
from recon_core.solvers.base import interpolate_at
from recon_core.solvers.fitting import FieldSettings, FieldSolver

SELECTED_BANDWIDTHS = (0.05, 0.02)
_POINTS_AT_ONCE = 1 << 16
_FLOOR = 1e-3


@dataclasses.dataclass(frozen=True)
class NikSettings(FieldSettings):
    """Settings of :class:`Nik`."""

    steps: int = option(2000, "optimiser steps", low=1, high=1_000_000)
    batch_frames: int = option(2, "frames whose readouts make a step", low=1, high=4096)
    learning_rate: float = option(3e-3, "Adam's learning rate, halved at half and three quarters of the run", low=1e-7, high=1.0)
    features: int = option(512, "Fourier features of (kx, ky)", low=2, high=8192)
    temporal_features: int = option(64, "Fourier features of t", low=2, high=8192)
    support: float = option(0.25, "standard deviation of the features' frequencies along k: share of the field of view", low=1e-3, high=2.0)
    temporal_bandwidth: float | None = option(
        None, "standard deviation of the features' frequencies along time, cycles per frame; auto: held-out", low=0.0, high=1.0
    )
    width: int = option(256, "hidden width", low=4, high=4096)
    depth: int = option(3, "hidden layers", low=1, high=24)
    omega: float = option(3.0, "ω of the sine layers", low=0.1, high=1000.0)
    hdr_epsilon: float = option(0.02, "ε of the HDR loss, in units of the samples' largest magnitude", low=1e-6, high=1e3)
    band_limit: bool = option(
        False, "images hold nothing from beyond the part of k-space that was sampled; the network is asked for no more"
    )


class Nik(FieldSolver[NikSettings]):
    """NIK: (kx, ky, t) to the signal of all coils, every readout at its own time; images by an inverse FFT and the coil maps."""

    name = "nik"
    off_resonance = False
    Settings = NikSettings
    dims = (2,)
    check_every = 50
    betas = (0.9, 0.999)
    field: KSpaceField

    @classmethod
    def suits(cls, problem: KSpaceProblem) -> None:
        """See :class:`Solver`; k-space must be sampled off the Cartesian grid.

        Raises:
            DataError: Cartesian or 3D readouts.
        """
        super().suits(problem)
        if problem.cartesian:
            raise DataError(
                "solver",
                "nik models non-Cartesian k-space, the scan is Cartesian",
                "Send radial or spiral readouts, or choose another solver.",
            )

    @classmethod
    def candidates(cls, settings: NikSettings, problem: KSpaceProblem) -> list[Any]:
        """Two temporal bandwidths unless one is set."""
        if settings.temporal_bandwidth is not None:
            return [settings]
        return [dataclasses.replace(settings, temporal_bandwidth=value) for value in SELECTED_BANDWIDTHS]

    def _make(self) -> nn.Module:
        settings = self.settings
        temporal = SELECTED_BANDWIDTHS[1] if settings.temporal_bandwidth is None else settings.temporal_bandwidth
        sizes = (settings.features, settings.temporal_features)
        support = (settings.support, settings.support)
        return KSpaceField(support, temporal, sizes, settings.width, settings.depth, settings.omega, self.problem.n_coils, self.seed)

    def _prepare(self) -> None:
        problem = self.problem
        spacing = problem.frame_times.diff().median() if problem.n_frames > 1 else torch.tensor(1.0, dtype=torch.float64)
        self.spacing = float(spacing.clamp_min(1e-12))
        self.coordinates = [self._coordinates(readouts) for readouts in problem.frames]
        size = torch.tensor(problem.shape[::-1], device=problem.device)
        reach = max(float((part[:, :2] / size).norm(dim=1).max()) for part in self.coordinates if len(part))
        axes = [torch.arange(n, dtype=torch.float32, device=problem.device) - n // 2 for n in problem.shape]
        grid = torch.stack([axis.flatten() for axis in reversed(torch.meshgrid(*axes, indexing="ij"))], dim=1)
        # What lies beyond the sampled disc was never seen.
        self.grid = grid[(grid / size).norm(dim=1) <= reach]
        self.transform = Nufft(self.grid, problem.shape, cartesian=True)
        self.profile = self._profile()
        self.envelopes = [self._envelope(part) for part in self.coordinates]
        self.grid_envelope = self._envelope(self.grid)

    def _profile(self) -> Tensor:
        """Root mean square of the samples, of order one, about every whole distance from k = 0: k-space falls by orders of magnitude."""
        rings = [part[:, :2].norm(dim=1).round().to(torch.int64) for part in self.coordinates]
        count = max(int(part.max()) for part in rings if len(part)) + 1
        power, visits = (torch.zeros(count, device=self.problem.device) for _ in range(2))
        for ring, target in zip(rings, self.frames.targets, strict=True):
            power.index_add_(0, ring, (target / self.frames.peak).abs().square().mean(0))
            visits.index_add_(0, ring, torch.ones_like(ring, dtype=torch.float32))
        blurred = [
            part + torch.nn.functional.pad(part, (1, 0))[:-1] + torch.nn.functional.pad(part, (0, 1))[1:] for part in (power, visits)
        ]
        mean = (blurred[0] / blurred[1].clamp_min(1)).sqrt()
        return mean.clamp_min(_FLOOR * float(mean.max()))

    def _envelope(self, points: Tensor) -> Tensor:
        """The profile at points ``[point, (kx, ky, …)]``, between rings interpolated."""
        radius = points[:, :2].norm(dim=1).clamp_max(len(self.profile) - 1)
        lower = radius.floor().to(torch.int64)
        upper = (lower + 1).clamp_max(len(self.profile) - 1)
        return torch.lerp(self.profile[lower], self.profile[upper], radius - lower)

    def _coordinates(self, readouts: Tensor) -> Tensor:
        """(kx, ky, t) of the samples of some readouts, float32 ``[point, 3]``; t in frames, at the readouts' own times."""
        problem = self.problem
        moments = self._moments(problem.readout_times[readouts.cpu()]).to(problem.device)
        points = torch.cat([problem.trajectory[readouts], moments[:, None, None].expand(-1, problem.samples.shape[2], 1)], dim=2).flatten(
            0, 1
        )
        return points if problem.mask is None else points[problem.mask[readouts].flatten()]

    def _moments(self, times: Tensor) -> Tensor:
        return ((times - self.problem.frame_times[0]) / self.spacing).to(torch.float32)

    def _backward(self, batch: list[int]) -> float:
        envelope = torch.cat([self.envelopes[frame] for frame in batch])
        predicted = self.field(torch.cat([self.coordinates[frame] for frame in batch])) * envelope
        measured = torch.cat([self.frames.targets[frame] for frame in batch], dim=1) / self.frames.peak
        cost = high_dynamic_range(predicted - measured, predicted, self.settings.hdr_epsilon)
        cost.backward()
        return float(cost.detach())

    def _render(self, positions: Tensor) -> Tensor:
        moments = self._moments(interpolate_at(self.problem.frame_times, positions)).to(self.problem.device)
        return torch.stack([self._image(moment) for moment in moments])

    def _image(self, moment: Tensor) -> Tensor:
        points = torch.cat([self.grid, moment.expand(len(self.grid), 1)], dim=1)
        signal = torch.cat([self.field(part) for part in points.split(_POINTS_AT_ONCE)], dim=1)
        coils = self.transform.adjoint(signal * self.grid_envelope * self.frames.peak)
        return (self.frames.encoding.sensitivities.conj() * coils).sum(0)


SOLVER = Nik
