"""Readouts of one slice or volume become a :class:`~recon_core.problem.KSpaceProblem`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import ismrmrd
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gadgets import cartesian, spiral
from gadgets.cartesian import Sampling
from gadgets.field_map import echo_time, estimated, with_field_map, with_timing
from gadgets.framing import Physiology, framed
from gadgets.header import Encoding, ScanHeader
from gadgets.noise import NOISE_ADJUST_LEVEL, arrives_whitened, noise_level
from gadgets.protocol import contrasts
from gadgets.readouts import Readout, check_uniform
from gadgets.settings import ChainSettings
from recon_core.calibration.whitening import whiten
from recon_core.errors import DataError, SettingError
from recon_core.problem import KSpaceProblem

# ISMRMRD's ±0.5 cycles per pixel, with room for gradient delays; radians or cycles per field of view lie far beyond.
_LARGEST_STORED = 0.75
# Less is no resolution that a header would announce; 1/mm or 1/m stay below it where pixels are large.
_LEAST_STORED = 0.125
_LEAST_PIXELS = 8
_MOST_INTERPOLATED = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Assembled:
    """A problem and what its images inherit from the readouts.

    Attributes:
        problem: whitened samples, without sensitivities and weights.
        heads: acquisition headers ``[readout]``.
        center_distance: float64 ``[readout]``, smallest |k| of a readout's used samples, cycles per field of view.
        field_of_view: mm, (x, y, z).
        whitening: complex64 ``[coil, coil]``, what the samples were multiplied by.
        compressed: a stage before this one has compressed the coils.
        notes: what a reader of the images must know.
        phases: int64 ``[frame]``, cardiac phase of every frame; None where frames follow real time.
        repetitions: int64 ``[frame]``, repetition or respiratory state of every frame; None: the frame's number.
    """

    problem: KSpaceProblem
    heads: tuple[ismrmrd.AcquisitionHeader, ...]
    center_distance: NDArray[np.float64]
    field_of_view: tuple[float, float, float]
    whitening: Tensor
    compressed: bool = False
    notes: tuple[str, ...] = ()
    phases: NDArray[np.int64] | None = None
    repetitions: NDArray[np.int64] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an image, ``((nz,) ny, nx)``."""
        return self.problem.shape


def dimension(encoding: Encoding, requested: int | None) -> int:
    """2 for a slice, 3 for a volume; from the header's matrices, never from the width of a trajectory.

    Args:
        encoding: the encoding space.
        requested: the chain's ``dimension``, None for auto.

    Raises:
        SettingError: the request contradicts the header.
    """
    described = 3 if min(encoding.encoded.matrix[2], encoding.recon.matrix[2]) > 1 else 2
    if requested is not None and requested != described:
        z = (encoding.encoded.matrix[2], encoding.recon.matrix[2])
        raise SettingError(
            "dimension",
            f"{requested}, while the header describes {described}D (matrixSize.z {z[0]} encoded, {z[1]} reconstructed)",
            f"Set dimension={described} or auto, or correct the header.",
        )
    return described


def image_shape(encoding: Encoding, dim: int, matrix: tuple[int, ...] | None) -> tuple[int, ...]:
    """Image shape ``((nz,) ny, nx)``: the chain's ``matrix`` (nx, ny(, nz)), or the header's reconSpace; the field of view stays.

    Raises:
        SettingError: ``matrix`` has another number of axes, or is too small or too large to be meant.
        DataError: the header's reconSpace is.
    """
    if matrix is None:
        sizes: tuple[int, ...] = encoding.recon.matrix[:dim]
    elif len(matrix) == 1:
        sizes = matrix * dim
    elif len(matrix) == dim:
        sizes = matrix
    else:
        raise SettingError("matrix", f"{len(matrix)} numbers for a {dim}D scan", f"Give one number or {dim} of them.")
    largest = tuple(_MOST_INTERPOLATED * max(n, 2) for n in encoding.encoded.matrix[:dim])
    low = min(sizes) < 2 or min(sizes[:2]) < _LEAST_PIXELS
    if low or any(n > most for n, most in zip(sizes, largest, strict=True)):
        cure = f"Give {_LEAST_PIXELS} pixels or more in plane, 2 along z, and at most {_MOST_INTERPOLATED} times the encoded matrix"
        given = "×".join(map(str, sizes)) + f" pixels of {'×'.join(map(str, encoding.encoded.matrix[:dim]))} encoded ones"
        if matrix is not None:
            raise SettingError("matrix", given, f"{cure}.")
        raise DataError(f"encoding[{encoding.index}].reconSpace.matrixSize", given, f"{cure}, or set the chain's matrix.")
    return tuple(reversed(sizes))


def assemble(
    readouts: list[Readout],
    times: NDArray[np.float64],
    header: ScanHeader,
    settings: ChainSettings,
    whitening: Tensor | None = None,
    report: Callable[[str], None] | None = None,
    physiology: Physiology | None = None,
    quantitative: bool = False,
) -> Assembled:
    """Make the problem of one slice or volume.

    Args:
        readouts: its imaging readouts in order of acquisition, at least one.
        times: float64 ``[readout]``, seconds from the scan's first imaging readout.
        header: the scan's header.
        settings: chain properties (matrix, dimension, frames, what was done before).
        whitening: complex64 ``[coil, coil]`` from noise readouts; None: whitened before, or the noise level is guessed from outer k-space.
        report: gets one line for everything that was decided without being asked for.
        physiology: heart and breath as the stream told them, for gating.
        quantitative: the readouts are those of a multi-contrast protocol; a frame is a contrast.

    Raises:
        DataError: readouts that differ in shape, no trajectory where one is needed, nothing within the resolution.
        SettingError: a setting contradicts the header.
    """
    tell = report if report is not None else _silent
    check_uniform(readouts)
    encoding = header.encoding(readouts[0].head.encoding_space_ref)
    dim = dimension(encoding, settings.dimension)
    shape = image_shape(encoding, dim, settings.matrix)
    sampling = cartesian.place(readouts, encoding, shape) if encoding.is_cartesian else _along_trajectory(readouts, encoding, shape)
    notes = [sampling.note] if sampling.note else []
    if not sampling.mask.any():
        raise DataError(
            "trajectory", "no sample lies within the reconstructed resolution", "Check units (±0.5 cycles per pixel) and matrix."
        )
    samples = torch.from_numpy(np.ascontiguousarray(sampling.samples))
    if whitening is None:
        whitened, note = arrives_whitened(sampling.samples, sampling.trajectory, sampling.mask, settings.whitened)
        level = NOISE_ADJUST_LEVEL if whitened else noise_level(sampling.samples, sampling.trajectory, sampling.mask)
        if note:
            notes.append(note)
        if not whitened:
            notes.append(f"no noise readouts: noise level {level:.3g} taken from outer k-space, coils not decorrelated")
        samples = samples / level
        whitening = torch.eye(samples.shape[0], dtype=torch.complex64) / level
    else:
        samples = whiten(samples, whitening)
    fewer = header.channels is not None and samples.shape[0] < header.channels
    compressed = fewer if settings.compressed is None else settings.compressed
    if compressed:
        notes.append(
            "coils compressed by a stage before this one" + (f": {samples.shape[0]} of {header.channels} channels" if fewer else "")
        )
    beyond = 1 - sampling.mask.mean()
    if beyond > 0:
        tell(f"{100 * beyond:.1f} % of the samples are discarded or lie beyond the reconstructed resolution and are left out")
    problem = KSpaceProblem(
        samples=samples.to(torch.complex64),
        trajectory=torch.from_numpy(np.ascontiguousarray(sampling.trajectory)),
        frames=(torch.arange(len(readouts)),),
        readout_times=torch.from_numpy(np.asarray(times, dtype=np.float64).copy()),
        frame_times=torch.tensor([float(np.mean(times))], dtype=torch.float64),
        shape=shape,
        mask=torch.from_numpy(np.ascontiguousarray(sampling.mask)),
        cartesian=sampling.on_grid,
        field_of_view=tuple(reversed(encoding.recon.field_of_view[:dim])),
    )
    if quantitative:
        problem, binning = contrasts(problem, readouts, header, settings.signal_model)
    else:
        problem, binning = framed(problem, readouts, encoding, settings, physiology or Physiology())
    if binning.phases is not None:
        notes.append(binning.note)
    elif binning.note:
        tell(binning.note)
    for note in notes:
        tell(note)
    if estimated(settings.field_map):
        # What would stop the correction stops the scan before its fit.
        echo_time(header, readouts[0].head.idx.contrast)
        problem = with_timing(problem, settings.field_map, readouts)
    elif settings.field_map:
        problem = with_field_map(problem, settings.field_map, readouts)
    distance = np.where(sampling.mask, np.linalg.norm(sampling.trajectory.astype(np.float64), axis=-1), np.inf).min(axis=1)
    return Assembled(
        problem=problem,
        heads=tuple(r.head for r in readouts),
        center_distance=distance,
        field_of_view=encoding.recon.field_of_view,
        whitening=whitening,
        compressed=compressed,
        notes=tuple(notes),
        phases=binning.phases,
        repetitions=binning.repetitions,
    )


def _silent(_: str) -> None:
    return None


def _along_trajectory(readouts: list[Readout], encoding: Encoding, shape: tuple[int, ...]) -> Sampling:
    """Samples of radial, spiral and other readouts; k from the readouts, or computed from the header's description."""
    dim = len(shape)
    samples = np.stack([r.samples for r in readouts], axis=1)
    used = cartesian.used_samples(readouts)
    scale = np.array(
        [
            n * recon / encoded
            for n, recon, encoded in zip(encoding.encoded.matrix, encoding.recon.field_of_view, encoding.encoded.field_of_view, strict=True)
            if encoded > 0
        ][:dim]
    )
    stored = np.stack([r.trajectory for r in readouts]).astype(np.float64)
    described = encoding.description is not None and encoding.description.identifier == spiral.IDENTIFIER
    note = ""
    if stored.shape[-1] == 0 or not stored.any():
        if not described:
            raise DataError(
                f"readout {readouts[0].number}.traj",
                f"the readouts carry no trajectory, which a {encoding.trajectory} scan needs",
                f"Store it in the readouts (±0.5 cycles per encoded pixel) or describe it in the header ({spiral.IDENTIFIER}).",
            )
        assert encoding.description is not None
        design = spiral.SpiralDesign.from_description(encoding.description)
        per_cm, on_arm = spiral.arms(design, [r.head.idx.kspace_encode_step_1 for r in readouts], samples.shape[-1])
        k = per_cm * (np.array(encoding.recon.field_of_view[:2]) / 10)
        used = used & (np.arange(samples.shape[-1]) < on_arm)
        note = f"trajectory computed from the header's {spiral.IDENTIFIER} description"
    else:
        # A third column is kz only in a volume whose trajectory is not described as a planar one; else a density weight.
        columns = 3 if dim == 3 and stored.shape[-1] >= 3 and not described else 2
        if stored.shape[-1] < 2:
            raise DataError(f"readout {readouts[0].number}.traj", f"{stored.shape[-1]} column", "Store kx and ky, or kx, ky and kz.")
        k = stored[..., :columns]
        _check_units(k, used, readouts)
        k = k * scale[:columns]
    if k.shape[-1] < dim:
        k_z = np.broadcast_to(cartesian.steps(readouts, encoding, 2)[:, None, None], (*k.shape[:2], 1))
        k = np.concatenate([k, k_z], axis=-1)
    within = (np.abs(k) <= np.array(list(reversed(shape))) / 2 + 1e-3).all(axis=-1)
    return Sampling(samples, k.astype(np.float32), used & within, note=note)


def _check_units(k: NDArray[np.float64], used: NDArray[np.bool_], readouts: list[Readout]) -> None:
    empty = np.flatnonzero(~k.any(axis=(1, 2)))
    if len(empty) and k.shape[1] > 1:
        raise DataError(
            f"readout {readouts[int(empty[0])].number}.traj",
            f"all zero, as of {len(empty)} of {len(readouts)} readouts",
            "Store the trajectory of every readout, or flag those that are navigators or dummies.",
        )
    largest = np.where(used, np.abs(k).max(axis=-1), 0).max(axis=1)
    worst = int(largest.argmax())
    if largest[worst] > _LARGEST_STORED:
        raise DataError(
            f"readout {readouts[worst].number}.traj",
            f"reaches {largest[worst]:.4g} cycles per pixel, the encoded matrix ends at 0.5",
            "Store the trajectory in cycles per pixel of the encoded matrix (±0.5).",
        )
    if used.any() and largest[worst] < _LEAST_STORED:
        raise DataError(
            f"readout {readouts[worst].number}.traj",
            f"reaches {largest[worst]:.4g} cycles per pixel and no readout more, the encoded matrix ends at 0.5",
            "Store the trajectory in cycles per pixel of the encoded matrix (±0.5), or correct encodedSpace.matrixSize.",
        )
