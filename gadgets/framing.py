"""Which readouts make a frame: by count, by phase-encoding order, by the scanner's counters, or gated."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray

from gadgets import cartesian
from gadgets.binning import self_gating
from gadgets.binning.beats import Beats, beats
from gadgets.binning.by_count import Binning, by_count, frame_times
from gadgets.binning.by_order import by_counters, by_encoding_order
from gadgets.binning.gated import by_phase, respiratory_states
from gadgets.header import Encoding
from gadgets.readouts import Readout
from gadgets.settings import ChainSettings
from gadgets.waveforms import ECG, PULSE, RESPIRATION, Waveforms, since_trigger
from recon_core.calibration.navigator import centre_signal
from recon_core.errors import DataError, SettingError
from recon_core.problem import KSpaceProblem

_CONTINUED = 5.0
"""Beats by which a heart's signal may end short of the readouts: median ones take their place."""
_HELD = 2.0
"""Seconds by which that of the breath may."""


@dataclasses.dataclass(frozen=True, eq=False)
class Physiology:
    """What the stream said of heart and breath.

    Attributes:
        waveforms: records gathered so far; complete at the end of the scan.
        origin: time stamp of the scan's first imaging readout.
        is_clock: the time stamps are a clock, so that waveforms can be placed beside readouts.
    """

    waveforms: Waveforms = dataclasses.field(default_factory=Waveforms)
    origin: int = 0
    is_clock: bool = True


def framed(
    problem: KSpaceProblem, readouts: list[Readout], encoding: Encoding, settings: ChainSettings, physiology: Physiology
) -> tuple[KSpaceProblem, Binning]:
    """Sort readouts into frames as the chain's ``framing`` says.

    Args:
        problem: whitened readouts; its frames are replaced.
        readouts: the same readouts.
        encoding: their encoding space.
        settings: chain properties.
        physiology: heart and breath, for gating.

    Returns:
        The problem in frames, and how they came about.

    Raises:
        DataError: what the framing rests on is not in the scan.
        SettingError: the framing does not suit the scan.
    """
    times = problem.readout_times.numpy()
    binning = _binning(problem, readouts, encoding, settings, physiology)
    if binning.frame_times is None:
        binning = _in_order(binning, times)
    made = problem.replace(
        frames=tuple(torch.from_numpy(frame.copy()) for frame in binning.frames),
        frame_times=torch.from_numpy(np.array(binning.frame_times)),
        readout_times=torch.from_numpy(np.array(times if binning.times is None else binning.times)),
    )
    return made, binning


def _in_order(binning: Binning, times: NDArray[np.float64]) -> Binning:
    """The binning with the times of its frames."""
    means = frame_times(binning.frames, times)
    if (np.diff(means) > 0).all():
        return dataclasses.replace(binning, frame_times=means)
    # Frames whose readouts were taken in turns have no order in real time: they follow one another as counted.
    spacing = float(times.max() - times.min()) / len(means)
    order = spacing * np.arange(len(means), dtype=np.float64)
    own = np.empty(len(times))
    for frame, at in zip(binning.frames, order, strict=True):
        own[frame] = at
    note = f"{binning.note}; acquired in turns, spaced evenly by {1e3 * spacing:.3g} ms"
    return dataclasses.replace(binning, note=note, times=own, frame_times=order)


def _binning(
    problem: KSpaceProblem, readouts: list[Readout], encoding: Encoding, settings: ChainSettings, physiology: Physiology
) -> Binning:
    if settings.framing == "count":
        return by_count(len(readouts), settings.readouts_per_frame, settings.frame_stride)
    if settings.framing == "order":
        if not encoding.is_cartesian:
            raise SettingError("framing", f"order on a {encoding.trajectory} scan", "Set framing=count or gated: it has no lines.")
        partitions = cartesian.steps(readouts, encoding, 2) if encoding.encoded.matrix[2] > 1 else None
        ordered = by_encoding_order(cartesian.steps(readouts, encoding, 1), partitions)
        counted = len(_counters(readouts).frames)
        if counted not in (1, len(ordered.frames)):
            ordered = dataclasses.replace(ordered, note=f"{ordered.note}, where the scanner counts {counted} (framing=counters)")
        return ordered
    if settings.framing == "counters":
        return _counters(readouts)
    times = problem.readout_times.numpy()
    found = _beats(problem, readouts, settings, physiology)
    if settings.respiratory_phases == 1:
        return by_phase(times, found, settings.cardiac_phases)
    states = respiratory_states(_breath(problem, settings, physiology), settings.respiratory_phases)
    return by_phase(times, found, settings.cardiac_phases, states, settings.respiratory_phases)


def _counters(readouts: list[Readout]) -> Binning:
    counters = np.array([(r.head.idx.repetition, r.head.idx.phase) for r in readouts], dtype=np.int64)
    return by_counters(counters[:, 0], counters[:, 1])


def _beats(problem: KSpaceProblem, readouts: list[Readout], settings: ChainSettings, physiology: Physiology) -> Beats:
    tick = settings.time_tick_ms / 1000
    if settings.gating == "self":
        return beats(self_gating.heartbeats(*_navigator(problem)))
    if settings.gating == "stamps":
        stamps = np.array([r.head.physiology_time_stamp[0] for r in readouts], dtype=np.int64)
        return beats(since_trigger(stamps, problem.readout_times.numpy(), tick))
    identity = ECG if settings.gating == "ecg" else PULSE
    _require_clock(physiology, settings.gating)
    found = beats(physiology.waveforms.triggers(identity, physiology.origin, tick))
    _require_cover(problem, settings.gating, found.starts, _CONTINUED * found.length)
    return found


def _breath(problem: KSpaceProblem, settings: ChainSettings, physiology: Physiology) -> NDArray[np.float64]:
    """Respiratory amplitude at every readout."""
    if settings.respiration == "self":
        return self_gating.breathing(*_navigator(problem), problem.readout_times.numpy())
    _require_clock(physiology, "belt")
    signal = physiology.waveforms.signal(RESPIRATION, physiology.origin, settings.time_tick_ms / 1000)
    _require_cover(problem, "belt", signal.times, _HELD)
    amplitude: NDArray[np.float64] = np.interp(problem.readout_times.numpy(), signal.times, signal.data[0])
    return amplitude


def _require_cover(problem: KSpaceProblem, source: str, moments: NDArray[np.float64], slack: float) -> None:
    """Refuse a waveform of another time than the readouts', seconds from the scan's first; it may end ``slack`` seconds short of them."""
    times = problem.readout_times
    first, last = float(times.min()), float(times.max())
    if moments[0] > first + slack or moments[-1] < last - slack:
        raise DataError(
            f"waveform of {source}",
            f"from {moments[0]:.1f} to {moments[-1]:.1f} s, the readouts from {first:.1f} to {last:.1f} s",
            "Correct the time stamps or time_tick_ms, or set gating=self and respiration=self.",
        )


def _require_clock(physiology: Physiology, source: str) -> None:
    if not physiology.is_clock:
        raise DataError(
            "acquisition_time_stamp",
            f"no clock (all equal, or running backwards), so that readouts cannot be placed beside the waveform of {source}",
            "Send readouts with time stamps, or set gating=self and respiration=self.",
        )


def _navigator(problem: KSpaceProblem) -> tuple[NDArray[np.complex64], NDArray[np.float64]]:
    """k-space centre ``[coil, passing readout]`` and its times."""
    signal, passing = centre_signal(problem)
    return signal.numpy(), problem.readout_times[passing].numpy()
