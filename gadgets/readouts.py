"""One imaging readout, checked as it enters."""

from __future__ import annotations

import dataclasses

import ismrmrd
import numpy as np
from numpy.typing import NDArray

from gadgets.header import Encoding, ScanHeader
from recon_core.errors import DataError


@dataclasses.dataclass(frozen=True, eq=False)
class Readout:
    """An imaging readout of the stream.

    Attributes:
        number: its place among all readouts of the stream, from 0; messages name it.
        head: the acquisition header.
        samples: complex64 ``[coil, sample]``.
        trajectory: float32 ``[sample, column]`` as stored; no column where the readout carries none.
    """

    number: int
    head: ismrmrd.AcquisitionHeader
    samples: NDArray[np.complex64]
    trajectory: NDArray[np.float32]

    @property
    def key(self) -> tuple[int, int, int, int]:
        """What is reconstructed together: (encoding space, slice, contrast, set)."""
        return (self.head.encoding_space_ref, self.head.idx.slice, self.head.idx.contrast, self.head.idx.set)


def admit(acquisition: ismrmrd.Acquisition, number: int, header: ScanHeader, channels: int | None = None) -> Readout:
    """Check one imaging readout against the header.

    Args:
        acquisition: the readout.
        number: its place in the stream.
        header: the scan's header.
        channels: channels expected instead of the announced ones, where a stage before has compressed the coils.

    Raises:
        DataError: NaN or Inf, another channel count than announced, no sample, or more samples than a Cartesian line has.
    """
    head = acquisition.getHead()
    encoding = header.encoding(head.encoding_space_ref)
    samples = np.asarray(acquisition.data)
    trajectory = np.asarray(acquisition.traj)
    expected = header.channels if channels is None else channels
    if expected is not None and samples.shape[0] != expected:
        source = f"the header announces receiverChannels={header.channels}"
        raise DataError(
            f"readout {number}.active_channels",
            f"{samples.shape[0]} channels, {source}" + ("" if channels is None else f" and readouts before have {channels}"),
            "Send every readout with the announced channels, or correct the header.",
        )
    _check_length(head, number, encoding)
    if not np.isfinite(samples.view(np.float32)).all():
        coil = int(np.flatnonzero(~np.isfinite(samples.view(np.float32)).all(axis=1))[0])
        raise DataError(f"readout {number}", f"NaN or Inf in channel {coil}", "Leave out or repair that readout.")
    if not np.isfinite(trajectory).all():
        raise DataError(f"readout {number}.traj", "NaN or Inf", "Leave out or repair that readout's trajectory.")
    return Readout(number, head, samples, trajectory)


def _check_length(head: ismrmrd.AcquisitionHeader, number: int, encoding: Encoding) -> None:
    used = head.number_of_samples - head.discard_pre - head.discard_post
    if used < 1 or head.active_channels < 1:
        raise DataError(
            f"readout {number}.number_of_samples",
            f"{head.number_of_samples} samples in {head.active_channels} channels, of which {head.discard_pre} at the start and "
            f"{head.discard_post} at the end are discarded",
            "Send readouts with at least one used sample.",
        )
    announced = encoding.encoded.matrix[0]
    if encoding.is_cartesian and used > announced:
        raise DataError(
            f"readout {number}.number_of_samples",
            f"{used} samples, the header announces encodedSpace.matrixSize.x={announced}",
            "Send lines of at most the encoded matrix, or correct the header.",
        )


def check_uniform(readouts: list[Readout]) -> None:
    """All readouts of one slice have the same shape.

    Raises:
        DataError: names the first readout that differs, and how.
    """
    first = readouts[0]
    for readout in readouts[1:]:
        for field, value, expected in (
            ("number_of_samples", readout.samples.shape[1], first.samples.shape[1]),
            ("active_channels", readout.samples.shape[0], first.samples.shape[0]),
            ("trajectory_dimensions", readout.trajectory.shape[1], first.trajectory.shape[1]),
        ):
            if value != expected:
                raise DataError(
                    f"readout {readout.number}.{field}",
                    f"{value}, where readout {first.number} has {expected}",
                    "Send all readouts of a slice with the same length, channels and trajectory; mark others as what they are by flags.",
                )
