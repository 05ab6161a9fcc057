"""A field map from a file or from the images' phase, and when each sample of a readout was taken."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gadgets.header import ScanHeader
from gadgets.readouts import Readout
from recon_core.deblurring import CentreOut
from recon_core.errors import DataError, SettingError
from recon_core.field_estimate import correct
from recon_core.problem import ImageSeries, KSpaceProblem, resampled

ESTIMATE = "estimate"
"""Value of the chain property ``field_map`` that asks for a map from the images' phase; ``estimate:PATH`` mends that of a file."""

_MOST = 0.98


def with_field_map(problem: KSpaceProblem, path: str, readouts: list[Readout]) -> KSpaceProblem:
    """The problem with a field map of the chain property ``field_map``.

    Args:
        problem: of the readouts.
        path: a NumPy file, off-resonance in Hz, ``[(z,) y, x]`` or ``[frame, (z,) y, x]`` over the reconstructed field of view, any matrix.
        readouts: of the problem, in order.

    Raises:
        SettingError: the file cannot be read or does not fit the scan.
        DataError: the readouts do not say how far apart their samples lie.
    """
    measured, kept = readouts[0].samples.shape[1], problem.samples.shape[2]
    if kept != measured:
        raise SettingError(
            "field_map",
            f"with Cartesian readouts of {measured} samples, {kept} without oversampling",
            "Leave it out: off resonance such images shift along the readout, they do not blur.",
        )
    maps = _read(problem, path)
    return problem.replace(sample_times=sample_times(readouts), field_map=maps.contiguous())


def _read(problem: KSpaceProblem, path: str) -> Tensor:
    """Maps of a file on a problem's matrix, float32 ``[(z,) y, x]`` or ``[frame, (z,) y, x]``, Hz."""
    try:
        stored = np.load(Path(path), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise SettingError("field_map", f"cannot read {path!r} ({error})", "Give a NumPy file (.npy) of off-resonance in Hz.") from error
    if not isinstance(stored, np.ndarray):
        stored.close()
        raise SettingError("field_map", f"{path!r} holds several arrays", "Give a NumPy file (.npy) of off-resonance in Hz.")
    dim = problem.dim
    if stored.dtype.kind not in "fiu" or stored.ndim not in (dim, dim + 1) or not np.isfinite(stored).all() or min(stored.shape) < 1:
        raise SettingError(
            "field_map", f"{path!r} holds {stored.dtype} {stored.shape}", f"Give finite real values, {dim} axes, or one more for frames."
        )
    if stored.ndim == dim + 1 and len(stored) != problem.n_frames:
        raise SettingError("field_map", f"{path!r} holds {len(stored)} maps for {problem.n_frames} frames", "Give one map, or one a frame.")
    if min(stored.shape[-dim:]) < 2:
        raise SettingError("field_map", f"{path!r} holds maps of {stored.shape[-dim:]} pixels", "Give at least 2 pixels an axis.")
    return resampled(torch.from_numpy(np.ascontiguousarray(stored, dtype=np.float32)), problem.shape)


def estimated(value: str) -> bool:
    """Whether a value of the chain property ``field_map`` asks for :func:`corrected`."""
    return value.partition(":")[0] == ESTIMATE


def with_timing(problem: KSpaceProblem, value: str, readouts: list[Readout]) -> KSpaceProblem:
    """The problem with the times of its samples, checked for :func:`corrected` before anything is fitted.

    Args:
        problem: of the readouts.
        value: of the chain property ``field_map``.
        readouts: of the problem, in order.

    Raises:
        SettingError: the map to set out from cannot be read or does not fit the scan.
        DataError: the readouts do not say how far apart their samples lie, or do not run from the centre of k-space out alike.
    """
    timed = problem.replace(sample_times=sample_times(readouts))
    CentreOut.of(timed)
    _start(timed, value)
    return timed


def _start(problem: KSpaceProblem, value: str) -> Tensor | None:
    path = value.partition(":")[2]
    return _read(problem, path) if path else None


def echo_time(header: ScanHeader, contrast: int) -> float:
    """Time from the excitation to k = 0 of a contrast, s.

    Raises:
        DataError: the header does not tell it.
    """
    if contrast >= len(header.echo_times) or not header.echo_times[contrast] > 0:
        known = ", ".join(f"{1e3 * time:g}" for time in header.echo_times) or "none"
        raise DataError("TE", f"{known} ms for contrast {contrast}", "field_map=estimate needs the time from excitation to k = 0.")
    return header.echo_times[contrast]


def corrected(series: ImageSeries, problem: KSpaceProblem, value: str, seconds: float) -> ImageSeries:
    """A series without the off-resonance that its own phase tells (:mod:`recon_core.field_estimate`).

    Args:
        series: reconstructed as if on resonance.
        problem: of :func:`with_timing`.
        value: of the chain property ``field_map``.
        seconds: of :func:`echo_time`.
    """
    images, field = correct(series.images, CentreOut.of(problem), seconds, _start(problem, value))
    # The map of a frame is 0 where there is no signal.
    bright = images.abs() > 0.1 * images.abs().amax()
    most = float(np.quantile(field[bright].abs().numpy(), _MOST)) if bool(bright.any()) else 0.0
    note = f"off-resonance estimated from the phase at TE {1e3 * seconds:g} ms, a map a frame: {100 * _MOST:g} % within ±{most:.0f} Hz"
    return dataclasses.replace(series, images=images, notes=(*series.notes, note))


def sample_times(readouts: list[Readout]) -> Tensor:
    """Time of every sample from its readout's passage through k = 0 (``center_sample``), float64 ``[sample]``, s.

    Raises:
        DataError: no dwell time, or readouts that differ.
    """
    first = readouts[0].head
    for readout in readouts:
        own = readout.head
        if own.sample_time_us != first.sample_time_us or own.center_sample != first.center_sample:
            raise DataError(
                f"readout {readout.number}.sample_time_us",
                f"{own.sample_time_us:g} µs, center_sample {own.center_sample}; others {first.sample_time_us:g} µs, {first.center_sample}",
                "Send readouts of one kind, or leave the field map out.",
            )
    if not first.sample_time_us > 0:
        raise DataError(
            f"readout {readouts[0].number}.sample_time_us", f"{first.sample_time_us:g}", "A field map needs the time between samples in µs."
        )
    n = readouts[0].samples.shape[1]
    return (torch.arange(n, dtype=torch.float64) - first.center_sample) * (float(first.sample_time_us) * 1e-6)
