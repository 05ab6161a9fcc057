"""Waveforms of the stream (ECG, pulse, breathing belt) as signals over the scan's time."""

from __future__ import annotations

import dataclasses

import ismrmrd
import numpy as np
from numpy.typing import NDArray

from gadgets.binning.beats import marks, peaks
from recon_core.errors import DataError

ECG, PULSE, RESPIRATION = 0, 1, 2
"""Waveform ids as Siemens scanners use them."""

NAMES = {ECG: "ECG", PULSE: "pulse", RESPIRATION: "respiration"}
_LARGEST_SPAN = 20.0
"""Records with wider gaps between them than so many times what they hold are not of one recording."""


@dataclasses.dataclass(frozen=True, eq=False)
class Signal:
    """One waveform, its records joined.

    Attributes:
        times: float64 ``[sample]``, seconds from the scan's first imaging readout.
        data: float64 ``[channel, sample]``.
        spacing: seconds between samples.
    """

    times: NDArray[np.float64]
    data: NDArray[np.float64]
    spacing: float


class Waveforms:
    """Gathers the waveform records of one scan."""

    def __init__(self) -> None:
        self._records: dict[int, list[tuple[int, float, NDArray[np.uint32]]]] = {}

    def __len__(self) -> int:
        return sum(len(records) for records in self._records.values())

    def add(self, waveform: ismrmrd.Waveform) -> None:
        """Keep one record."""
        head = waveform.getHead()
        record = (int(head.time_stamp), float(head.sample_time_us) * 1e-6, np.array(waveform.data))
        self._records.setdefault(int(head.waveform_id), []).append(record)

    def signal(self, identity: int, origin: int, tick: float) -> Signal:
        """A waveform over the scan's time.

        Args:
            identity: waveform id.
            origin: time stamp of the scan's first imaging readout.
            tick: seconds a tick of the time stamps, the same for waveforms and readouts.

        Raises:
            DataError: no such waveform came, or its records differ in channels or in sample time.
        """
        name = NAMES.get(identity, str(identity))
        records = sorted((r for r in self._records.get(identity, []) if r[2].size), key=lambda r: r[0])
        if not records:
            had = ", ".join(NAMES.get(i, f"id {i}") for i in sorted(self._records)) or "none at all"
            raise DataError(
                f"waveform {name}",
                f"none in the stream (waveforms there: {had})",
                "Send it, or choose another gating or respiration signal.",
            )
        kinds = {(r[1], r[2].shape[0]) for r in records}
        spacing = records[0][1]
        if len(kinds) > 1 or spacing <= 0:
            told = "; ".join(f"{channels} channels every {1e3 * every:g} ms" for every, channels in sorted(kinds))
            raise DataError(f"waveform {name}", told, "Send records of the same channels and a sample time above 0.")
        times = np.concatenate([(stamp - origin) * tick + spacing * np.arange(data.shape[1]) for stamp, _, data in records])
        return Signal(times, np.concatenate([data for *_, data in records], axis=1).astype(np.float64), spacing)

    def triggers(self, identity: int, origin: int, tick: float) -> NDArray[np.float64]:
        """Moments of the heartbeats in an ECG or pulse waveform, seconds from the scan's first imaging readout.

        Where the last of several channels is zero but for single marks it holds the scanner's own triggers; else the waves of the first
        channel are found.

        Raises:
            DataError: as :meth:`signal`.
        """
        signal = self.signal(identity, origin, tick)
        last = signal.data[-1]
        own = len(signal.data) > 1 and last.any() and np.mean(last != 0) < 0.1
        # Records may leave gaps: positions count samples, and are looked up in the times.
        found = marks(last, 1.0) if own else peaks(_evenly(signal), 1.0, 0.3 / signal.spacing)
        moments: NDArray[np.float64] = signal.times[np.round(found).astype(int)] if own else signal.times[0] + signal.spacing * found
        return moments


def _evenly(signal: Signal) -> NDArray[np.float64]:
    """The first channel on an even grid of times: gaps between records are bridged by straight lines."""
    span, sampled = signal.times[-1] - signal.times[0], signal.spacing * len(signal.times)
    if span > _LARGEST_SPAN * sampled:
        raise DataError(
            "waveform time_stamp",
            f"records of {sampled:.1f} s lie within {span:.0f} s",
            "Leave out records of other times, or set gating=self.",
        )
    grid = np.arange(signal.times[0], signal.times[-1] + 0.5 * signal.spacing, signal.spacing)
    values: NDArray[np.float64] = np.interp(grid, signal.times, signal.data[0])
    return values


def since_trigger(stamps: NDArray[np.int64], times: NDArray[np.float64], tick: float) -> NDArray[np.float64]:
    """Moments of the triggers that readouts tell of by their time since the last one.

    Args:
        stamps: ``physiology_time_stamp`` of every readout, ticks since the trigger.
        times: float64 ``[readout]``, seconds, rising.
        tick: seconds a tick.

    Raises:
        DataError: the stamps do not tell of any trigger.
    """
    if not stamps.any():
        raise DataError("physiology_time_stamp", "0 in every readout", "Choose another gating: ecg, pulse or self.")
    moments = np.sort(times - stamps * tick)
    # One trigger is told of by many readouts, each to within a tick.
    groups = np.split(moments, np.flatnonzero(np.diff(moments) > 0.1) + 1)
    return np.array([np.median(group) for group in groups])
