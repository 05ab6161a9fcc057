"""Cartesian lines placed by their encoding steps, readout oversampling removed."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from gadgets.flags import is_reversed
from gadgets.header import Encoding
from gadgets.readouts import Readout
from recon_core.errors import DataError

_WHOLE = 1e-3
_ACROSS = 0.05
"""Cycles per pixel that a Cartesian line's own trajectory may move across the line."""
_MOST_OUTSIDE = 0.25
"""More of the lines beyond the encoded matrix than that: the header's centre is wrong."""


@dataclasses.dataclass(frozen=True, eq=False)
class Sampling:
    """Where samples lie in k-space.

    Attributes:
        samples: complex64 ``[coil, readout, sample]``.
        trajectory: float32 ``[readout, sample, axis]``, cycles per reconstructed field of view.
        mask: bool ``[readout, sample]``, False where a sample is not to be used.
        on_grid: every used sample has whole-numbered k within the grid of the image.
        note: what a reader should know, else empty.
    """

    samples: NDArray[np.complex64]
    trajectory: NDArray[np.float32]
    mask: NDArray[np.bool_]
    on_grid: bool = False
    note: str = ""


def used_samples(readouts: list[Readout]) -> NDArray[np.bool_]:
    """Bool ``[readout, sample]``, False for samples that the header of a readout discards."""
    sample = np.arange(readouts[0].samples.shape[1])
    first = np.array([r.head.discard_pre for r in readouts])[:, None]
    end = len(sample) - np.array([r.head.discard_post for r in readouts])[:, None]
    return (sample >= first) & (sample < end)


def steps(readouts: list[Readout], encoding: Encoding, axis: int) -> NDArray[np.float64]:
    """Position of every readout along an encoded axis (1: y, 2: z), cycles per reconstructed field of view."""
    name = f"kspace_encoding_step_{axis}"
    step = np.array([getattr(r.head.idx, f"kspace_encode_step_{axis}") for r in readouts], dtype=np.float64)
    limit = encoding.limits.get(name)
    matrix = encoding.encoded.matrix[axis]
    center = limit.center if limit is not None else matrix // 2
    span = int(step.max() - step.min()) + 1
    if span > matrix:
        raise DataError(
            f"kspace_encode_step_{axis}",
            f"{int(step.min())} to {int(step.max())}, the header announces {matrix} encoded pixels along {'xyz'[axis]}",
            "Correct encodedSpace.matrixSize or the encoding steps.",
        )
    outside = float((np.abs(step - center) > matrix / 2).mean())
    if outside > _MOST_OUTSIDE:
        beyond = f"{100 * outside:.0f} % of the steps ({int(step.min())} to {int(step.max())})"
        raise DataError(
            f"encodingLimits.{name}.center",
            f"{center}, which puts {beyond} beyond the encoded matrix of {matrix}",
            f"Give the step of the line through k = 0, {matrix // 2} where all lines are acquired.",
        )
    return (step - center) * _ratio(encoding, axis)


def _check_straight(readouts: list[Readout], dim: int) -> None:
    """Trajectories of lines are not needed, and do not leave their lines."""
    for readout in readouts:
        across = readout.trajectory[:, 1:dim]
        if across.size and float(np.ptp(across, axis=0).max()) > _ACROSS:
            raise DataError(
                f"readout {readout.number}.traj",
                f"leaves its line by {float(np.ptp(across, axis=0).max()):.3g} cycles per pixel, the header's trajectory is cartesian",
                "Correct encoding.trajectory (radial, spiral, other), or store lines without trajectories.",
            )


def _ratio(encoding: Encoding, axis: int) -> float:
    ratio = encoding.recon.field_of_view[axis] / encoding.encoded.field_of_view[axis]
    return 1.0 if abs(ratio - 1) < 1e-4 else ratio


def place(readouts: list[Readout], encoding: Encoding, shape: tuple[int, ...]) -> Sampling:
    """Lines to samples with k-space positions.

    Readout oversampling is removed (transform, crop to the reconstructed field of view, transform back), which puts the samples on
    the grid of the image. Where the fields of view do not allow it, samples keep their fractional k and ``on_grid`` is False.

    Args:
        readouts: lines of one slice or volume, same length.
        encoding: their encoding space.
        shape: image shape ``((nz,) ny, nx)``.

    Raises:
        DataError: samples outside the encoded matrix, or partitions of a slice.
    """
    partitions = {int(r.head.idx.kspace_encode_step_2) for r in readouts}
    if len(shape) == 2 and len(partitions) > 1:
        raise DataError(
            "kspace_encode_step_2",
            f"{min(partitions)} to {max(partitions)} in a slice",
            "Give matrixSize.z of encodedSpace and reconSpace of the volume, or send partitions as slices.",
        )
    _check_straight(readouts, len(shape))
    lines, used = _on_encoded_axis(readouts, encoding)
    n_encoded = encoding.encoded.matrix[0]
    ratio = _ratio(encoding, 0)
    cropped = round(n_encoded * ratio)
    if cropped < 2:
        raise DataError(
            f"encoding[{encoding.index}].reconSpace.fieldOfView_mm.x",
            f"{encoding.recon.field_of_view[0]:g} of {encoding.encoded.field_of_view[0]:g} mm encoded",
            "Give the width of the image.",
        )
    if ratio <= 1 and abs(n_encoded * ratio - cropped) < _WHOLE * n_encoded:
        lines, used = _crop(lines, used, cropped)
        k_read: NDArray[np.float64] = np.arange(cropped, dtype=np.float64) - cropped // 2
        whole = True
    else:
        k_read = (np.arange(n_encoded, dtype=np.float64) - n_encoded // 2) * ratio
        whole = False
    # Nothing is gained by carrying columns beyond the image's resolution.
    n_x = shape[-1]
    keep = (k_read >= -(n_x // 2)) & (k_read <= n_x - 1 - n_x // 2) if whole else np.abs(k_read) <= n_x / 2
    columns = [np.broadcast_to(k_read[keep], (len(readouts), int(keep.sum())))]
    for axis in range(1, len(shape)):
        k_step = steps(readouts, encoding, axis)
        whole = whole and bool((np.abs(k_step - np.round(k_step)) < _WHOLE).all())
        columns.append(np.broadcast_to(k_step[:, None], columns[0].shape))
    trajectory = np.stack(columns, axis=-1)
    mask = used[:, keep]
    if whole:
        # A line beyond the grid is masked; it is moved inside so that it can still be indexed.
        half = np.array([n // 2 for n in reversed(shape)])
        top = np.array(list(reversed(shape))) - 1 - half
        inside = np.clip(np.round(trajectory), -half, top)
        mask = mask & (np.abs(inside - trajectory) < 0.5).all(axis=-1)
        trajectory = inside
    return Sampling(np.ascontiguousarray(lines[:, :, keep]), trajectory.astype(np.float32), mask, on_grid=whole)


def _on_encoded_axis(readouts: list[Readout], encoding: Encoding) -> tuple[NDArray[np.complex64], NDArray[np.bool_]]:
    """Samples at their place on the encoded readout axis: complex64 ``[coil, readout, encoded x]`` and which of them are measured."""
    n_encoded = encoding.encoded.matrix[0]
    n_coils, n_samples = readouts[0].samples.shape
    lines = np.zeros((n_coils, len(readouts), n_encoded), dtype=np.complex64)
    measured = np.zeros((len(readouts), n_encoded), dtype=np.bool_)
    for row, (readout, used) in enumerate(zip(readouts, used_samples(readouts), strict=True)):
        backwards = is_reversed(readout.head)
        center = n_samples - 1 - readout.head.center_sample if backwards else readout.head.center_sample
        samples, used = (readout.samples[:, ::-1], used[::-1]) if backwards else (readout.samples, used)
        column = np.flatnonzero(used) - center + n_encoded // 2
        if column[0] < 0 or column[-1] >= n_encoded:
            raise DataError(
                f"readout {readout.number}.center_sample",
                f"{readout.head.center_sample} of {n_samples} samples puts samples outside the {n_encoded} encoded ones",
                "Give the index of the sample at k = 0.",
            )
        lines[:, row, column] = samples[:, used]
        measured[row, column] = True
    return lines, measured


def _crop(lines: NDArray[np.complex64], measured: NDArray[np.bool_], cropped: int) -> tuple[NDArray[np.complex64], NDArray[np.bool_]]:
    """Remove oversampling along the last axis; keeps noise variance and the centres of both domains."""
    n = lines.shape[-1]
    if cropped == n:
        return lines, measured
    image = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(lines, axes=-1), norm="ortho"), axes=-1)
    start = n // 2 - cropped // 2
    part = image[..., start : start + cropped]
    result = np.fft.fftshift(np.fft.fft(np.fft.ifftshift(part, axes=-1), norm="ortho"), axes=-1)
    # A new sample counts as measured where its k lies between measured samples.
    nearest = np.clip(np.round((np.arange(cropped) - cropped // 2) * n / cropped).astype(int) + n // 2, 0, n - 1)
    return result.astype(np.complex64), measured[:, nearest]
