"""Heartbeat and breathing as functions of time: irregular, seeded, continuous."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import PchipInterpolator

from recon_core.options import unknown_name

# Contraction against cardiac phase: ejection, isovolumic relaxation, early filling, diastasis, atrial kick.
_PHASE = (0.0, 0.06, 0.33, 0.40, 0.58, 0.80, 0.93, 1.0)
_CONTRACTION = (0.0, 0.05, 1.0, 0.97, 0.24, 0.15, 0.02, 0.0)


@dataclasses.dataclass(frozen=True)
class Timing:
    """Mean durations of a beat and a breath, seconds."""

    beat: float
    breath: float


TIMINGS = {
    # About 40 frames of 6 ms a beat and one breath in 160 frames: time-compressed, to be said wherever it is shown.
    "standard": Timing(beat=0.25, breath=0.9),
    "physiological": Timing(beat=0.8, breath=4.0),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Physiology:
    """One person's beats and breaths over a scan.

    Attributes:
        beats: start of every beat (R wave), s, ascending; the scan lies inside.
        strengths: strength of every beat's contraction.
        breaths: start of every breath (end of expiration), s, ascending.
        depths: depth of every breath.
    """

    beats: NDArray[np.float64]
    strengths: NDArray[np.float64]
    breaths: NDArray[np.float64]
    depths: NDArray[np.float64]

    @classmethod
    def make(cls, timing: str, duration: float, rng: np.random.Generator) -> Physiology:
        """Draw beats and breaths for a scan.

        Beats vary by 8 %, one in five comes early and weak and is followed by a pause and a strong beat; breaths vary in
        length and depth.

        Args:
            timing: ``standard`` or ``physiological``.
            duration: of the scan, s.
            rng: source of the variation.

        Raises:
            SettingError: unknown timing.
        """
        if timing not in TIMINGS:
            raise unknown_name("timing", timing, TIMINGS)
        mean = TIMINGS[timing]
        count = int(duration / (0.5 * mean.beat)) + 4
        lengths = mean.beat * (1 + 0.08 * np.clip(rng.standard_normal(count), -2, 2))
        early = np.arange(2 + rng.integers(2), count - 1, 5)
        lengths[early] *= 0.72
        lengths[early + 1] *= 1.2
        filling = np.concatenate([[mean.beat], lengths[:-1]]) / mean.beat
        beats = np.cumsum(lengths) - lengths - rng.uniform(0.1, 0.9) * lengths[0]
        n_breaths = int(duration / (0.6 * mean.breath)) + 4
        periods = mean.breath * (1 + 0.1 * np.clip(rng.standard_normal(n_breaths), -2, 2))
        breaths = np.cumsum(periods) - periods - rng.uniform(0.0, 0.3) * periods[0]
        return cls(
            beats=beats,
            strengths=np.clip(0.45 + 0.55 * filling, 0.6, 1.1),
            breaths=breaths,
            depths=1 + 0.1 * np.clip(rng.standard_normal(n_breaths), -2, 2),
        )

    def contraction(self, times: ArrayLike) -> NDArray[np.float64]:
        """Contraction of the ventricles: 0 end of diastole, about 1 end of systole."""
        beat, phase = _cycle(self.beats, times)
        return self.strengths[beat] * PchipInterpolator(_PHASE, _CONTRACTION)(phase)

    def ejection(self, times: ArrayLike) -> NDArray[np.float64]:
        """Speed of ejection, 0 to about 1: blood flows fast and changes its signal."""
        beat, phase = _cycle(self.beats, times)
        slope = PchipInterpolator(_PHASE, _CONTRACTION).derivative()(phase)
        return self.strengths[beat] * np.clip(slope / 5.0, 0, None)

    def breath(self, times: ArrayLike) -> NDArray[np.float64]:
        """Inspiration: 0 end of expiration, about 1 full; expiration rests longer than inspiration."""
        number, phase = _cycle(self.breaths, times)
        return self.depths[number] * (0.5 - 0.5 * np.cos(2 * np.pi * phase)) ** 1.4

    def since_beat(self, times: ArrayLike) -> NDArray[np.float64]:
        """Time since the last R wave, s."""
        at = np.asarray(times, dtype=np.float64)
        return at - self.beats[np.searchsorted(self.beats, at, side="right") - 1]


def _cycle(starts: NDArray[np.float64], times: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    at = np.asarray(times, dtype=np.float64)
    number = np.searchsorted(starts, at, side="right") - 1
    return number, (at - starts[number]) / (starts[number + 1] - starts[number])
