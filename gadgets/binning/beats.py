"""Heartbeats: R waves (or pulse waves) in a signal, and beats that a missed or a spurious trigger does not derail."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter

from recon_core.errors import DataError

SHORTEST, LONGEST = 0.3, 1.5
"""Seconds of a beat, 200 to 40 a minute."""

# Shares of the beats around: what is shorter may be split by a spurious trigger, what is longer holds missed ones. Between them lie early
# beats and the pauses after them.
_SPLIT, _MERGED, _GAP = 0.6, 1.4, 1.6
_AROUND = 11
_LONGEST_GAP = 10.0
"""Beats that may be missing in a row."""


@dataclasses.dataclass(frozen=True, eq=False)
class Beats:
    """Starts of consecutive beats.

    Attributes:
        starts: float64 ``[beat + 1]``, seconds, rising; the last one ends the last beat.
        spurious: triggers taken out.
        missed: triggers put in.
    """

    starts: NDArray[np.float64]
    spurious: int = 0
    missed: int = 0

    @property
    def length(self) -> float:
        """Median length of a beat, seconds."""
        return float(np.median(np.diff(self.starts)))

    def covering(self, first: float, last: float) -> Beats:
        """The same beats, continued by median ones to before ``first`` and past ``last``."""
        before = max(0, int(np.ceil((self.starts[0] - first) / self.length)))
        after = max(0, int(np.floor((last - self.starts[-1]) / self.length)) + 1)
        head = self.starts[0] - self.length * np.arange(before, 0, -1)
        tail = self.starts[-1] + self.length * np.arange(1, after + 1)
        return dataclasses.replace(self, starts=np.concatenate([head, self.starts, tail]))

    def phase(self, times: NDArray[np.float64]) -> NDArray[np.float64]:
        """Share of its beat that has passed at every time, 0 to below 1; times outside the beats: :meth:`covering` first."""
        beat = np.searchsorted(self.starts, times, side="right") - 1
        share = (times - self.starts[beat]) / (self.starts[beat + 1] - self.starts[beat])
        return np.minimum(share, np.nextafter(1.0, 0.0))


def peaks(signal: NDArray[np.float64], spacing: float, shortest: float = SHORTEST) -> NDArray[np.float64]:
    """Positions of the waves of a periodic signal, of either sign, seconds from its first sample.

    A wave stands out from its surroundings by at least half of what the waves of the recording usually do; T waves are lower. The larger
    side of the signal (about its median) counts as upwards.

    Args:
        signal: ``[sample]``, evenly spaced.
        spacing: seconds between samples.
        shortest: seconds that two waves are apart at least.
    """
    # Few scans are gated, and scipy.signal is a quarter of what a node imports before its first readout.
    from scipy.signal import find_peaks

    centred = signal - np.median(signal)
    low, high = np.percentile(centred, [0.5, 99.5])
    upright = centred if high >= -low else -centred
    apart = max(1, round(shortest / spacing))
    candidates, found = find_peaks(upright, prominence=1e-9 + 0.1 * float(high - low), distance=apart)
    if len(candidates) == 0:
        return np.empty(0)
    usual = float(np.percentile(found["prominences"], 75))
    chosen: NDArray[np.float64] = candidates[found["prominences"] >= 0.5 * usual] * spacing
    return chosen


def marks(channel: NDArray[np.float64], spacing: float) -> NDArray[np.float64]:
    """Rising edges of a trigger channel (zero but for its marks), seconds from its first sample."""
    on = channel != 0
    edges: NDArray[np.float64] = np.flatnonzero(on & ~np.concatenate([[False], on[:-1]])) * np.float64(spacing)
    return edges


def beats(triggers: NDArray[np.float64]) -> Beats:
    """Beats from triggers of which some may be missing or spurious.

    A trigger is spurious where it cuts an ordinary beat in two: one part is shorter than 60 % of the beats around, both together
    are no longer than 140 %. Triggers are missing where a beat is longer than 160 %: equal beats fill the gap. An early beat with the pause
    that follows is neither, for both together are two beats long.

    Args:
        triggers: seconds, in any order.

    Raises:
        DataError: fewer than three triggers, or a gap that is no missed trigger.
    """
    starts = np.unique(np.asarray(triggers, dtype=np.float64))
    if len(starts) < 3:
        raise DataError("gating", f"{len(starts)} heartbeats found", "Give a longer scan, or another gating signal.")
    given = len(starts)
    while (number := _spurious(starts)) is not None:
        starts = np.delete(starts, number)
    kept = len(starts)
    lengths = np.diff(starts)
    if (longest := float(lengths.max())) > _LONGEST_GAP * (usual := float(np.median(lengths))):
        raise DataError(
            "gating",
            f"{longest:.1f} s without a heartbeat, the others are {usual:.2f} s long",
            "Mend the signal or its stamps, or set gating=self.",
        )
    whole = np.where(lengths > _GAP * (around := _around(lengths)), np.maximum(2, np.round(lengths / around)), 1).astype(int)
    filled = [start + length / parts * np.arange(parts) for start, length, parts in zip(starts[:-1], lengths, whole, strict=True)]
    complete = np.concatenate([*filled, starts[-1:]])
    return Beats(complete, spurious=given - kept, missed=len(complete) - kept)


def _around(lengths: NDArray[np.float64]) -> NDArray[np.float64]:
    """Usual length about every beat: a running median, so that a drifting heart rate is followed; of few beats that of all."""
    if len(lengths) < _AROUND:
        # A narrower window would see little more than an early beat and its pause.
        return np.full(len(lengths), np.median(lengths))
    smoothed: NDArray[np.float64] = median_filter(lengths, size=_AROUND, mode="mirror")
    return smoothed


def _spurious(starts: NDArray[np.float64]) -> int | None:
    """Number of the trigger that most clearly splits an ordinary beat; the scan's ends are kept."""
    lengths = np.diff(starts)
    if len(lengths) < 2:
        return None
    around = _around(lengths)
    usual = np.maximum(around[:-1], around[1:])
    merged = lengths[:-1] + lengths[1:]
    splits = (np.minimum(lengths[:-1], lengths[1:]) < _SPLIT * usual) & (merged < _MERGED * usual)
    if not splits.any():
        return None
    miss = np.where(splits, np.abs(merged - usual), np.inf)
    return int(miss.argmin()) + 1
