"""Articulators during speech as functions of time: aperiodic, seeded, continuous."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import PchipInterpolator

ARTICULATORS = ("jaw", "body_x", "body_y", "tip_x", "tip_y", "lips", "protrusion", "velum", "larynx")
"""Opening of the jaw, shifts of tongue body and tip (back and down positive), gap between the lips, their protrusion (mm); velum from 0
(lowered, nose open) to 1 (raised); shift of the larynx (mm, down positive)."""

# Rounded from descriptions of English articulation; the order is that of ARTICULATORS.
_POSTURES = {
    "rest": (2.0, 0.0, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0),
    "i": (3.0, -7.0, -7.5, -3.0, 0.0, 7.0, -1.0, 1.0, -2.0),
    "e": (6.0, -4.0, -3.5, -2.0, 1.0, 9.0, -1.0, 0.95, -1.0),
    "a": (12.0, 4.0, 6.0, 3.0, 4.0, 14.0, 0.0, 0.85, 1.0),
    "o": (8.0, 6.0, -1.0, 7.0, 3.0, 7.0, 5.0, 0.95, 2.0),
    "u": (4.0, 7.0, -7.0, 9.0, 2.0, 3.5, 7.0, 1.0, 3.0),
    "m": (4.0, -1.0, 1.0, 0.0, 1.0, 0.0, 0.5, 0.1, 0.0),
    "p": (3.0, -1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0),
    "t": (3.0, -2.0, -1.0, -2.0, -9.0, 6.0, 0.0, 1.0, 0.0),
    "n": (3.0, -2.0, -1.0, -2.0, -9.0, 6.0, 0.0, 0.1, 0.0),
    "s": (1.5, -3.0, -3.0, -4.0, -6.0, 5.0, 0.0, 1.0, -1.0),
    "l": (5.0, 2.0, 1.0, -1.0, -10.0, 8.0, 0.0, 0.9, 0.0),
    "k": (4.0, 3.0, -10.0, 4.0, 2.0, 7.0, 0.0, 1.0, 0.0),
    "r": (4.0, 3.0, -3.0, 6.0, -6.0, 5.0, 3.0, 0.95, 0.0),
}
_SPREAD = np.array([0.8, 0.9, 0.9, 0.9, 0.9, 0.8, 0.6, 0.06, 0.7])
_SOUND, _PAUSE = 0.085, 0.35  # s
_MOVING = 0.6  # share of a sound during which the articulators are under way
_FASTEST = 250.0  # mm/s, mean over one movement
_MILLIMETRES = [name != "velum" for name in ARTICULATORS]


@dataclasses.dataclass(frozen=True, eq=False)
class Articulation:
    """One speaker's articulators over a scan.

    Attributes:
        knots: float64 ``[knot]``, s, rising; the scan lies inside.
        targets: float64 ``[knot, articulator]``, in the order of :data:`ARTICULATORS`.
    """

    knots: NDArray[np.float64]
    targets: NDArray[np.float64]

    def __post_init__(self) -> None:
        """Prepare the interpolation (monotone between knots: no articulator overshoots its target)."""
        object.__setattr__(self, "_curve", PchipInterpolator(self.knots, self.targets))

    @classmethod
    def make(cls, duration: float, rng: np.random.Generator) -> Articulation:
        """Draw a string of sounds without any period.

        Sounds last 85 ms or more, with a log-normal spread and as long as the way to them takes; no two realisations of one sound are
        equal, one in ten is a pause. What lies between two targets is coarticulation.

        Args:
            duration: of the scan, s.
            rng: source of the variation.
        """
        names = [name for name in _POSTURES if name != "rest"]
        starts, rows = [-0.5], [np.array(_POSTURES["rest"])]
        last = "rest"
        at = -0.3
        while at < duration + 0.5:
            pause = last != "rest" and rng.uniform() < 0.1
            name = "rest" if pause else str(rng.choice([n for n in names if n != last]))
            length = (_PAUSE if pause else _SOUND) * float(np.exp(0.35 * np.clip(rng.standard_normal(), -2, 2)))
            target = np.array(_POSTURES[name]) + _SPREAD * np.clip(rng.standard_normal(len(ARTICULATORS)), -2, 2)
            way = float(np.abs(target - rows[-1])[_MILLIMETRES].max())
            length = max(length, way / (_FASTEST * _MOVING))
            # Under way, then held: two knots of one target.
            starts += [at + _MOVING * length, at + length]
            rows += [target, target + 0.15 * _SPREAD * rng.standard_normal(len(ARTICULATORS))]
            at += length
            last = name
        targets = np.array(rows)
        for column, low, high in ((0, 0.0, 16.0), (5, 0.0, 18.0), (7, 0.0, 1.0)):
            targets[:, column] = targets[:, column].clip(low, high)
        return cls(np.array(starts), targets)

    def at(self, times: ArrayLike) -> NDArray[np.float64]:
        """Positions ``[..., articulator]`` at times in s."""
        return np.asarray(self._curve(np.asarray(times, dtype=np.float64)))  # type: ignore[attr-defined]
