"""A stack of stars on its way through the stages: readouts to spokes, slices, a volume series, a respiratory signal."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from gadgets.assemble import Assembled, assemble
from gadgets.binning.by_count import by_count
from gadgets.field_map import estimated, with_field_map
from gadgets.header import ScanHeader
from gadgets.readouts import Readout
from gadgets.settings import ChainSettings
from recon_core.calibration.respiration import respiratory_signal
from recon_core.errors import DataError, SettingError
from recon_core.problem import KSpaceProblem
from recon_core.stack_of_stars import Spokes, decouple, navigator_profiles, sort_spokes


@dataclasses.dataclass(frozen=True, eq=False)
class Stack(Assembled):
    """A stack of stars, decoupled: ``problem`` is the middle slice's, ``heads`` are one a spoke.

    Attributes:
        slices: one problem a slice, slice 0 first.
        respiration: float32 ``[spoke]``, centred and of unit variance; None where none was found.
    """

    slices: tuple[KSpaceProblem, ...] = ()
    respiration: NDArray[np.float32] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """See :class:`Assembled`."""
        return len(self.slices), *self.problem.shape


def assemble_stack(
    readouts: list[Readout],
    times: NDArray[np.float64],
    header: ScanHeader,
    settings: ChainSettings,
    whitening: torch.Tensor | None,
    report: Callable[[str], None],
) -> Stack:
    """Make the slices of one volume; a frame holds ``readouts_per_frame`` spokes.

    Args:
        readouts: its imaging readouts in order of acquisition.
        times: float64 ``[readout]``, seconds from the scan's first imaging readout.
        header: the scan's header.
        settings: chain properties.
        whitening: complex64 ``[coil, coil]``, or None.
        report: gets user-facing lines.

    Raises:
        DataError: the readouts are no stack of stars.
        SettingError: the scan has one slice, or is Cartesian; frames are asked for that are not made by counting.
    """
    if settings.framing != "count":
        raise SettingError("framing", f"{settings.framing} with volume=slices", "Set framing=count: frames are made of whole angles.")
    # Frames are made of spokes below, and may have a field map each; readout by readout there are none yet.
    map_file = "" if estimated(settings.field_map) else settings.field_map
    whole = dataclasses.replace(
        settings, readouts_per_frame=len(readouts), frame_stride=None, field_map="" if map_file else settings.field_map
    )
    volume = assemble(readouts, times, header, whole, whitening, report)
    encoding = header.encoding(readouts[0].head.encoding_space_ref)
    if volume.problem.dim != 3 or encoding.is_cartesian:
        found = "a Cartesian scan" if encoding.is_cartesian else "a scan of one slice (matrixSize.z 1)"
        raise SettingError("volume", f"slices, for {found}", "Set volume=joint, or correct the header's matrix.")
    ratio = encoding.recon.field_of_view[2] / encoding.encoded.field_of_view[2]
    angles = torch.tensor([r.head.idx.kspace_encode_step_1 for r in readouts], dtype=torch.int64)
    spokes = sort_spokes(volume.problem, angles, ratio)
    _describe(spokes, volume.problem, encoding.encoded.matrix[2], report)
    binning = by_count(spokes.n_spokes, settings.readouts_per_frame, settings.frame_stride)
    if binning.note:
        report(binning.note.replace("readout", "spoke") if "readouts_per_frame" not in binning.note else binning.note)
    frames = [torch.from_numpy(frame.copy()) for frame in binning.frames]
    problem = volume.problem
    if map_file:
        of_readouts = tuple(spokes.readouts[frame].reshape(-1).sort().values for frame in frames)
        frame_times = torch.stack([problem.readout_times[rows].mean() for rows in of_readouts])
        problem = with_field_map(problem.replace(frames=of_readouts, frame_times=frame_times), map_file, readouts)
    slices = decouple(problem, spokes, frames)
    middle = int(spokes.partitions.abs().argmin())
    return Stack(
        problem=slices[len(slices) // 2],
        heads=tuple(readouts[int(row)].head for row in spokes.readouts[:, middle]),
        center_distance=np.zeros(spokes.n_spokes),
        field_of_view=volume.field_of_view,
        whitening=volume.whitening,
        compressed=volume.compressed,
        notes=volume.notes,
        slices=tuple(slices),
        respiration=_respiration(volume.problem, spokes, report),
    )


def _describe(spokes: Spokes, problem: KSpaceProblem, encoded: int, report: Callable[[str], None]) -> None:
    count = len(spokes.partitions)
    report(f"{spokes.n_spokes} spokes of {count} partitions ({encoded} encoded), {problem.shape[0]} slices")
    if count < encoded:
        report(f"partial kz: {encoded - count} of {encoded} partitions were not measured and count as zero")
    if spokes.left_out:
        report(f"{spokes.left_out} readouts belong to no complete spoke and are left out")
    own = problem.readout_times[spokes.readouts]
    lasting = float((own.max(dim=1).values - own.min(dim=1).values).median())
    total = float(problem.readout_times.max() - problem.readout_times.min())
    if lasting > 0.5 * total > 0:
        report(f"the partitions of one angle are spread over {lasting:.3g} s of {total:.3g} s: what moves in between is averaged")


def _respiration(problem: KSpaceProblem, spokes: Spokes, report: Callable[[str], None]) -> NDArray[np.float32] | None:
    try:
        signal, share = respiratory_signal(navigator_profiles(problem, spokes).cpu(), spokes.times(problem))
    except DataError as error:
        report(f"no respiratory signal: {error}")
        return None
    report(f"respiratory signal from the k-space centre: {100 * share:.0f} % of its power lies between 0.1 and 0.5 Hz")
    return signal.numpy()
