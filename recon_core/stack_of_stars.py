"""Stacks of stars (or of spirals): a Fourier transform along kz makes each slice a problem of its own.

A *spoke* is one angle with all its partitions. Within a spoke the order of the partitions does not matter; slice oversampling is removed
with the slices that are not kept; partitions that were not measured (partial kz) count as zero.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from recon_core.errors import DataError
from recon_core.problem import KSpaceProblem

_SAME = 0.05
"""Cycles per field of view by which the partitions of one spoke may lie apart in the plane."""


@dataclasses.dataclass(frozen=True, eq=False)
class Spokes:
    """Readouts of a volume, sorted into spokes.

    Attributes:
        readouts: int64 ``[spoke, partition]``, the readouts of every spoke by rising kz.
        partitions: int64 ``[partition]``, encoded partitions that are measured, relative to k = 0.
        ratio: reconstructed over encoded field of view along z.
        left_out: readouts that belong to no complete spoke.
    """

    readouts: Tensor
    partitions: Tensor
    ratio: float
    left_out: int = 0

    @property
    def n_spokes(self) -> int:
        """Number of complete spokes."""
        return self.readouts.shape[0]

    def times(self, problem: KSpaceProblem) -> Tensor:
        """Mean time of every spoke's readouts, float64 ``[spoke]``, s."""
        return problem.readout_times[self.readouts].mean(dim=1)


def sort_spokes(problem: KSpaceProblem, angles: Tensor, ratio: float) -> Spokes:
    """Find the spokes among a volume's readouts.

    Args:
        problem: three-dimensional; kz constant along a readout.
        angles: int64 ``[readout]``, a number that the partitions of one angle share (``kspace_encode_step_1``). It may come again for
            another spoke later on.
        ratio: reconstructed over encoded field of view along z, at most 1 with slice oversampling.

    Raises:
        DataError: no stack of stars: kz changes along a readout or lies between partitions, partitions of an angle differ in direction,
            or no spoke is complete.
    """
    trajectory = problem.trajectory.cpu()
    k_z = trajectory[..., 2]
    if float((k_z.max(dim=1).values - k_z.min(dim=1).values).max()) > _SAME:
        raise DataError(
            "trajectory", "kz changes along a readout", "Only stacks (kz constant along a readout) separate into slices: set volume=joint."
        )
    exact = k_z[:, 0].double() / ratio
    steps = exact.round()
    if float((exact - steps).abs().max()) > _SAME:
        raise DataError(
            "trajectory",
            f"kz of {float(exact[(exact - steps).abs().argmax()]):.4g} encoded partitions",
            "Store whole partitions (kspace_encode_step_2, or kz in units of the encoded field of view), or set volume=joint.",
        )
    partitions, column = torch.unique(steps.to(torch.int64), return_inverse=True)
    seen: dict[tuple[int, int], int] = {}
    spokes: dict[tuple[int, int], list[int]] = {}
    for readout, (angle, place) in enumerate(zip(angles.tolist(), column.tolist(), strict=True)):
        again = seen.get((angle, place), 0)
        seen[angle, place] = again + 1
        spokes.setdefault((angle, again), [-1] * len(partitions))[place] = readout
    whole = [rows for rows in spokes.values() if min(rows) >= 0]
    if not whole:
        raise DataError(
            "kspace_encode_step_1",
            f"none of {len(spokes)} angles has all {len(partitions)} partitions",
            "Number the angles in kspace_encode_step_1 and the partitions in kspace_encode_step_2, or set volume=joint.",
        )
    found = torch.tensor(whole, dtype=torch.int64)
    planar = trajectory[found][..., :2]
    apart = (planar - planar[:, :1]).abs().amax(dim=(1, 2, 3))
    if float(apart.max()) > _SAME:
        worst = int(found[int(apart.argmax()), 0])
        raise DataError(
            f"readout {worst}.traj",
            f"{float(apart.max()):.3g} cycles apart from other partitions with the same kspace_encode_step_1",
            "Give every angle a number of its own in kspace_encode_step_1, or set volume=joint.",
        )
    order = torch.argsort(problem.readout_times[found].mean(dim=1), stable=True)
    return Spokes(found[order], partitions, ratio, problem.n_readouts - found.numel())


def decouple(problem: KSpaceProblem, spokes: Spokes, frames: Sequence[Tensor]) -> list[KSpaceProblem]:
    """One problem a slice; its readouts are the spokes.

    Noise stays white and of unit variance, also where partitions are missing.

    Args:
        problem: the volume, uncalibrated.
        spokes: of :func:`sort_spokes`.
        frames: spokes of every frame, int64.

    Returns:
        ``nz`` problems of shape ``(ny, nx)``, slice 0 first.
    """
    nz = problem.shape[0]
    place = (torch.arange(nz, dtype=torch.float64) - nz // 2) / nz * spokes.ratio
    turns = torch.exp(2j * math.pi * place[:, None] * spokes.partitions) / math.sqrt(len(spokes.partitions))
    stacked = problem.samples[:, spokes.readouts.to(problem.device)]
    mask = None if problem.mask is None else problem.mask[spokes.readouts.to(problem.device)].all(dim=1)
    times = spokes.times(problem)
    planar = problem.trajectory[spokes.readouts[:, 0].to(problem.device)][..., :2].contiguous()
    frame_times = torch.stack([times[frame].mean() for frame in frames])
    return [
        KSpaceProblem(
            samples=torch.einsum("p,ctps->cts", turn.to(problem.samples.dtype).to(problem.device), stacked).contiguous(),
            trajectory=planar,
            frames=tuple(frames),
            readout_times=times,
            frame_times=frame_times,
            shape=problem.shape[1:],
            mask=mask,
            field_of_view=None if problem.field_of_view is None else problem.field_of_view[1:],
            sample_times=problem.sample_times,
            field_map=None if problem.field_map is None else problem.field_map.select(-3, number).contiguous(),
        )
        for number, turn in enumerate(turns)
    ]


def navigator_profiles(problem: KSpaceProblem, spokes: Spokes) -> Tensor:
    """Projections of the object onto z, one a spoke: the transform along kz of the samples nearest k_xy = 0.

    Returns:
        complex64 ``[coil, spoke, z]`` over the encoded slab, as many planes as measured partitions span.
    """
    planar = problem.trajectory[spokes.readouts[:, 0].to(problem.device)][..., :2].norm(dim=-1)
    centre = planar.argmin(dim=1)
    stacked = problem.samples[:, spokes.readouts.to(problem.device)]
    index = centre[None, :, None, None].expand(*stacked.shape[:3], 1)
    line = stacked.gather(3, index)[..., 0]
    n = 2 * int(spokes.partitions.abs().max()) + 1
    place = (torch.arange(n, dtype=torch.float64) - n // 2) / n
    turns = torch.exp(2j * math.pi * place[:, None] * spokes.partitions) / math.sqrt(n)
    return line @ turns.T.to(line.dtype).to(line.device)
