"""DA-INR: dynamic-aware implicit representation (Baik and Yoo, *Dynamic-Aware Spatio-temporal Representation Learning*)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from recon_core.encodings.hash_grid import HashGridLayout, growth_for, pixel_coordinates
from recon_core.encodings.image_features import Extractor, Mdsr, MultiScaleGradients
from recon_core.errors import SettingError
from recon_core.fields.deformation import DeformationField, DeformationSizes
from recon_core.options import option
from recon_core.problem import ImageSeries, KSpaceProblem
from recon_core.solvers.base import frame_positions, interpolate_at
from recon_core.solvers.fitting import FRAMES_EVALUATED, FieldSettings, FieldSolver

SELECTED_OCTAVES = (4, 2)
PAPER_OCTAVES = 6


@dataclasses.dataclass(frozen=True)
class DaInrSettings(FieldSettings):
    """Settings of :class:`DaInr`."""

    steps: int = option(2000, "optimiser steps", low=1, high=1_000_000)
    batch_frames: int = option(1, "frames a step", low=1, high=4096)
    learning_rate: float = option(3e-3, "AdamW's learning rate, halved at half and three quarters of the run", low=1e-7, high=1.0)
    levels: int = option(16, "levels of the hash encoding (paper: 16)", low=1, high=24)
    features: int = option(2, "features a level (paper: 2)", low=1, high=8)
    base_resolution: int = option(16, "grid points an axis of the coarsest level (paper: 16)", low=2, high=512)
    finest: float = option(1.0, "finest level's grid points over the largest matrix size", low=0.05, high=16384.0)
    log2_table: int = option(19, "log2 of the largest hash table (paper: 19)", low=8, high=24)
    width: int = option(64, "hidden width of both networks (paper: 64)", low=4, high=1024)
    depth: int = option(5, "hidden layers of both networks (paper: 5)", low=1, high=12)
    space_octaves: int = option(10, "octaves of the frequency encoding of x (paper: 10) that the matrix resolves", low=0, high=16)
    time_octaves: int | None = option(None, "octaves of the frequency encoding of t (paper: 6); auto: held-out", low=0, high=16)
    sees_coordinates: bool = option(True, "the canonical network also sees both frequency encodings")
    extractor: str = option(
        "auto",
        "features of the gridded frames; auto: gradients or none by held-out readouts",
        choices=("auto", "gradients", "mdsr", "none"),
    )
    weights_file: str = option("", "MDSR weights, for extractor=mdsr")


class DaInr(FieldSolver[DaInrSettings]):
    """DA-INR; what the paper leaves open is listed in ``docs/methods/da_inr.md``."""

    name = "da_inr"
    Settings = DaInrSettings
    dims = (2,)
    check_every = 50
    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)
    field: DeformationField

    @classmethod
    def candidates(cls, settings: DaInrSettings, problem: KSpaceProblem) -> list[Any]:
        """A few octaves along time unless they are set; gradients first."""
        extractor = "gradients" if settings.extractor == "auto" else settings.extractor
        octaves = SELECTED_OCTAVES if settings.time_octaves is None else (settings.time_octaves,)
        return [dataclasses.replace(settings, time_octaves=value, extractor=extractor) for value in octaves]

    @classmethod
    def refinements(cls, settings: DaInrSettings, asked: DaInrSettings, tried: Sequence[Any], problem: KSpaceProblem) -> list[Any]:
        """Without image features, unless an extractor is set; then the paper's octaves along time where more of them helped."""
        if asked.extractor == "auto" and not any(other.extractor == "none" for other in tried):
            return [dataclasses.replace(settings, extractor="none")]
        if asked.time_octaves is None and settings.time_octaves == SELECTED_OCTAVES[0]:
            return [dataclasses.replace(settings, time_octaves=PAPER_OCTAVES)]
        return []

    def _make(self) -> nn.Module:
        settings, shape = self.settings, self.problem.shape
        self.image_features = self._image_features()
        growth = growth_for(settings.base_resolution, settings.finest * max(shape), settings.levels)
        layout = HashGridLayout(2, settings.levels, settings.features, settings.log2_table, settings.base_resolution, growth)
        channels = self.image_features.shape[1]
        # Octaves beyond the pixels' Nyquist frequency are aliases: another number for every pixel.
        in_space = min(settings.space_octaves, int(math.log2(max(shape))) + 1)
        in_time = SELECTED_OCTAVES[-1] if settings.time_octaves is None else settings.time_octaves
        sizes = DeformationSizes(settings.width, settings.depth, in_space, in_time, channels, settings.sees_coordinates)
        return DeformationField(layout, sizes, self.seed)

    def _optimiser(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.field.parameters(), lr=self.settings.learning_rate, betas=self.betas)

    def _extractor(self) -> Extractor | None:
        settings = self.settings
        if settings.extractor == "mdsr":
            if not settings.weights_file:
                raise SettingError(
                    "solver.weights_file", "empty, but extractor=mdsr needs it", "Name a file of MDSR weights, or use gradients."
                )
            return Mdsr.load(settings.weights_file).to(self.problem.device)
        self.notes.append("no image features" if settings.extractor == "none" else "image features: fixed multi-scale gradients, not MDSR")
        return None if settings.extractor == "none" else MultiScaleGradients()

    @torch.no_grad()
    def _image_features(self) -> Tensor:
        """Features ``[frame, channel, y, x]`` of the gridded frames; those of frames without data are interpolated in time."""
        extractor = self._extractor()
        encoding, n = self.frames.encoding, self.problem.n_frames
        if extractor is None:
            return torch.zeros((n, 0, *self.problem.shape), device=self.problem.device)
        total = sum(len(readouts) for readouts in self.problem.frames)
        found = []
        for frame in self.frames.occupied:
            part = encoding.frames[frame]
            gridded = encoding.adjoint(part.samples * part.weights, frame) * (total / max(1, len(self.problem.frames[frame])))
            found.append(extractor((gridded.abs() / self.frames.scale)[None]))
        place = frame_positions(torch.tensor(self.frames.occupied, dtype=torch.float64), torch.arange(n, dtype=torch.float64))
        return interpolate_at(torch.cat(found), place)

    def _render(self, positions: Tensor) -> Tensor:
        return self._at(positions, self.problem.shape)

    def _at(self, positions: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Images of any matrix over the same field of view; the features are interpolated bilinearly."""
        features = interpolate_at(self.image_features, positions)
        points = pixel_coordinates(shape, features.device)
        if shape != self.problem.shape:
            # The centre lies on pixel N//2 of either matrix.
            points = points + torch.tensor(
                [(m // 2 + 0.5) / m - (n // 2 + 0.5) / n for n, m in zip(shape, self.problem.shape, strict=True)], device=features.device
            )
            place = (2 * points - 1).flip(1).reshape(1, *shape, 2).expand(len(features), -1, -1, -1)
            features = nn.functional.grid_sample(features, place, padding_mode="border", align_corners=False)
        times = ((positions + 0.5) / self.problem.n_frames).to(features)
        return self.field(points, times, features.flatten(2).transpose(1, 2)).reshape(-1, *shape)

    def _misfit(self, image: Tensor, frame: int) -> Tensor:
        return self.frames.l1(image, frame)

    @torch.no_grad()
    def enlarged(self, shape: tuple[int, int], times: Tensor | None = None) -> ImageSeries:
        """The series on another matrix ``(ny, nx)`` over the same field of view (spatial interpolation), at any times."""
        times = self.problem.frame_times if times is None else times
        positions = frame_positions(self.problem.frame_times, times)
        images = torch.cat([self._at(part, shape) for part in positions.split(FRAMES_EVALUATED)])
        return ImageSeries(images * self.frames.scale, times, None, tuple(self.notes))


SOLVER = DaInr
