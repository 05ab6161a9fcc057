"""How contrast agent passes through the abdomen: published shapes as functions of time, and the signal they give.

Aorta: the population input function of Parker et al., Magn Reson Med 2006;56:993. Portal vein: the aorta's curve after the transit
through gut and spleen, a gamma variate about 14 s wide (Materne et al., Magn Reson Med 2002;47:135 measure both inputs). Liver: their
dual-input one-compartment model, with the arterial share, distribution volume and transit time of normal livers (Hagiwara et al.,
Radiology 2008;246:926). Kidney: plasma and tubules in series (Sourbron et al., Invest Radiol 2008;43:40). Relaxation times at 3 T: de
Bazelaire et al., Radiology 2004;230:652. Rates are rounded; what matters here is each curve's shape.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

_STEP = 0.1  # s
_RELAXIVITY = 4.5  # 1/s/mM
_TR, _FLIP = 4e-3, math.radians(12)
_HAEMATOCRIT = 0.42

# Relaxation time before contrast, s, and amount of magnetisation, with fat suppressed.
_TISSUES = {
    "fat": (0.38, 0.12),
    "muscle": (1.41, 0.75),
    "liver": (0.81, 0.72),
    "portal_vein": (1.70, 1.0),
    "aorta": (1.70, 1.0),
    "cortex": (1.14, 0.85),
    "medulla": (1.54, 0.9),
    "spleen": (1.33, 0.85),
    "vena_cava": (1.70, 1.0),
    "bowel": (1.0, 0.7),
}
TISSUES = tuple(_TISSUES)
"""Tissues that have a curve."""


def aorta_concentration(seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Parker's population curve, mM in blood, of times since the bolus arrived (s)."""
    t = np.maximum(seconds, 0) / 60
    peaks = sum(
        a / (s * math.sqrt(2 * math.pi)) * np.exp(-((t - c) ** 2) / (2 * s * s))
        for a, c, s in ((0.809, 0.17046, 0.0563), (0.330, 0.365, 0.132))
    )
    washout = 1.050 * np.exp(-0.1685 * t) / (1 + np.exp(-38.078 * (t - 0.483)))
    # The first peak's tail begins before the bolus does.
    return np.where(seconds > 0, (peaks + washout) * np.minimum(1, np.maximum(seconds, 0) / 2), 0.0)


def _transit(mean: float, spread: float, delay: float = 0.0) -> NDArray[np.float64]:
    """Density of transit times, a gamma variate of the given mean and standard deviation after a delay, 1/s on the model's grid."""
    t = np.arange(0, delay + mean + 12 * spread, _STEP) - delay
    shape, scale = (mean / spread) ** 2, spread**2 / mean
    density = np.where(t > 0, np.maximum(t, 1e-9) ** (shape - 1) * np.exp(-np.maximum(t, 0) / scale), 0.0)
    return density / (density.sum() * _STEP)


def _washed(rate: float, duration: float) -> NDArray[np.float64]:
    """Residue exp(−rate t) of a well-mixed compartment."""
    return np.exp(-rate * np.arange(0, duration, _STEP))


@dataclasses.dataclass(frozen=True, eq=False)
class Enhancement:
    """Concentrations of every tissue over a scan.

    Attributes:
        grid: float64, s from the scan's start.
        concentrations: mM of every tissue of :data:`TISSUES`, ``[tissue, time]``.
    """

    grid: NDArray[np.float64]
    concentrations: NDArray[np.float64]

    @classmethod
    def make(cls, duration: float, arrival: float, rng: np.random.Generator) -> Enhancement:
        """One person's curves.

        Args:
            duration: of the scan, s.
            arrival: of the bolus in the aorta, s.
            rng: varies transit times and shares by a few per cent.
        """
        grid = np.arange(0, duration + 2, _STEP)
        vary = 1 + 0.08 * np.clip(rng.standard_normal(8), -2, 2)
        aorta = aorta_concentration(grid - arrival)
        plasma = aorta / (1 - _HAEMATOCRIT)

        def after(curve: NDArray[np.float64], kernel: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.convolve(curve, kernel)[: len(grid)] * _STEP

        portal = after(aorta, _transit(11 * vary[0], 6.0, 4.0))
        mean, share, volume = 15.0 * vary[1], 0.2 * vary[2], 0.24
        inflow = (share * after(aorta, _transit(1.5, 0.8)) + (1 - share) * portal) / (1 - _HAEMATOCRIT)
        liver = volume / mean * after(inflow, _washed(1 / mean, duration + 2))
        cortical = after(plasma, _transit(4.0 * vary[3], 2.5))
        tubules = 0.0042 * vary[4] * after(cortical, _washed(1 / 120.0, duration + 2))
        curves = {
            "aorta": aorta,
            "portal_vein": portal,
            "liver": liver,
            "cortex": 0.22 * vary[5] * cortical + tubules,
            "medulla": 0.08 * cortical + after(tubules, _transit(18.0, 7.0, 6.0)),
            "spleen": 0.30 * vary[6] * after(plasma, _transit(5.0, 3.0)),
            "vena_cava": after(aorta, _transit(9.0 * vary[7], 5.0, 2.0)),
            "muscle": 0.05 / 60 * after(plasma, _washed(0.05 / 60 / 0.15, duration + 2)),
            "bowel": 0.06 * after(plasma, _transit(7.0, 4.0)),
        }
        return cls(grid, np.stack([curves.get(name, np.zeros_like(grid)) for name in TISSUES]))

    def signals(self, times: ArrayLike) -> NDArray[np.float64]:
        """Signal of every tissue at times in s, ``[tissue, ...]``: a spoiled gradient echo at TR 4 ms and 12°."""
        at = np.asarray(times, dtype=np.float64)
        made = []
        for (t1, amount), course in zip(_TISSUES.values(), self.concentrations, strict=True):
            rate = 1 / t1 + _RELAXIVITY * np.interp(at, self.grid, course)
            decay = np.exp(-_TR * rate)
            made.append(amount * math.sin(_FLIP) * (1 - decay) / (1 - math.cos(_FLIP) * decay))
        return np.stack(made)
