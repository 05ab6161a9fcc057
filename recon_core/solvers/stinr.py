"""stINR: spatiotemporal implicit neural representation (Feng et al., IEEE TMI 2025;44:2143)."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from recon_core.losses import smooth_nuclear_norm, temporal_variation
from recon_core.options import option
from recon_core.problem import KSpaceProblem
from recon_core.solvers.hash_inr import HashInr, HashInrSettings

SELECTED_VARIATIONS = (0.5, 0.1, 0.02)


@dataclasses.dataclass(frozen=True)
class StinrSettings(HashInrSettings):
    """Settings of :class:`Stinr`."""

    frame_step: float | None = option(0.3, "pixels of the encoding's grid from one frame to the next (paper: 1)", low=1e-3, high=100.0)
    variation: float | None = option(None, "λ_S of temporal total variation; auto: held-out", low=0.0)
    low_rank: float = option(0.1, "λ_L of the nuclear norm, relative to λ_S", low=0.0)
    rounding: float = option(
        0.01, "ε of the rounded nuclear norm: singular values below it shrink gently; a static image of order one has 1", low=1e-6, high=1.0
    )


class Stinr(HashInr):
    """stINR; what the paper leaves open is listed in ``docs/methods/stinr.md``."""

    name = "stinr"
    Settings = StinrSettings

    @classmethod
    def candidates(cls, settings: StinrSettings, problem: KSpaceProblem) -> list[Any]:
        """A few λ unless one is set."""
        if settings.variation is not None:
            return [settings]
        return [dataclasses.replace(settings, variation=value) for value in SELECTED_VARIATIONS]

    def _penalty(self, images: Tensor) -> Tensor | None:
        settings = self.settings
        weight = SELECTED_VARIATIONS[1] if settings.variation is None else settings.variation
        if weight == 0 or len(images) < 2:
            return None
        cost = temporal_variation(images)
        if settings.low_rank:
            # In units of a pixel's magnitude: the norm of a static series does not depend on pixels and frames.
            size = images.numel() ** 0.5
            cost = cost + settings.low_rank * smooth_nuclear_norm(images / size, settings.rounding)
        return weight * cost


SOLVER = Stinr
