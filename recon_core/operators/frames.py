"""Coil-weighted encoding of the frames of a problem, and what the acquired data say of each frame."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from recon_core.errors import DataError
from recon_core.operators.nufft import DEFAULT_TOLERANCE, Nufft
from recon_core.operators.off_resonance import (
    SegmentedNormal,
    SegmentedNufft,
    SegmentedSubspaceNormal,
    Segments,
    one_map,
    pair_spectra,
    segmented_kernel,
    segments_of,
)
from recon_core.operators.subspace_normal import FrameSubspaceNormal, SubspaceNormal, subspace_form
from recon_core.operators.toeplitz import ToeplitzNormal, point_spread_spectra
from recon_core.problem import KSpaceProblem

_BLOCK_FRAMES = 8
_BLOCK_ACCURACY = 1e-6
# On a CPU an FFT of so many values costs what spreading one point does.
_GRID_VALUES_A_POINT = 9


@dataclasses.dataclass(frozen=True, eq=False)
class FrameSamples:
    """The samples of one frame, unused ones left out.

    Attributes:
        points: float32 ``[point, axis]``, cycles per field of view.
        samples: complex64 ``[coil, point]``.
        weights: float32 ``[point]``, density compensation, or ones where the problem has none.
        places: int64 ``[point]``, number of the sample in its readout.
    """

    points: Tensor
    samples: Tensor
    weights: Tensor
    places: Tensor


@dataclasses.dataclass(frozen=True)
class NufftOptions:
    """How a problem's transforms are made: arguments of :class:`Nufft`."""

    engine: str = "auto"
    tolerance: float = DEFAULT_TOLERANCE
    cartesian: bool = False


def gather(problem: KSpaceProblem, readouts: Tensor) -> FrameSamples:
    """Points, samples and weights of some readouts (int64 indices), samples outside the mask left out."""
    samples = problem.samples[:, readouts].flatten(1)
    points = problem.trajectory[readouts].flatten(0, 1)
    weights = torch.ones_like(points[:, 0]) if problem.weights is None else problem.weights[readouts].flatten()
    places = torch.arange(problem.samples.shape[2], device=problem.device).repeat(readouts.numel())
    if problem.mask is not None:
        used = problem.mask[readouts].flatten()
        points, samples, weights, places = points[used], samples[:, used], weights[used], places[used]
    return FrameSamples(points, samples, weights, places)


def transform(
    problem: KSpaceProblem,
    samples: FrameSamples,
    frame: int,
    segments: Segments | None,
    engine: str = "auto",
    tolerance: float = DEFAULT_TOLERANCE,
) -> Nufft | SegmentedNufft:
    """What takes images to a frame's points, off-resonance included where the problem has ``segments``."""
    nufft = Nufft(samples.points, problem.shape, engine, tolerance, problem.cartesian)
    if segments is None:
        return nufft
    return SegmentedNufft(nufft, segments.in_time[:, samples.places], segments.of_frame(frame))


def occupied_frames(problem: KSpaceProblem) -> list[FrameSamples]:
    """The samples of every frame.

    Raises:
        DataError: no frame has one.
    """
    frames = [gather(problem, readouts) for readouts in problem.frames]
    if not any(f.points.shape[0] for f in frames):
        raise DataError("frames", f"none of {len(frames)} has a sample left", "Discard fewer readouts or samples.")
    return frames


def required_sensitivities(problem: KSpaceProblem) -> Tensor:
    """The coil sensitivities of a calibrated problem.

    Raises:
        DataError: the problem has none yet.
    """
    if problem.sensitivities is None:
        raise DataError("sensitivities", "missing", "Calibrate the problem first (recon_core.calibration.calibrate).")
    return problem.sensitivities


class FrameEncoding:
    """Signal of frame images in every coil at the frame's own points; adjoint = backward.

    Args:
        problem: a calibrated problem.
        engine: NUFFT engine by name.
        tolerance: relative accuracy of the NUFFT.

    Attributes:
        occupied: int64, the frames that have samples (on the CPU).

    Raises:
        DataError: no maps, or no frame has a sample.
    """

    def __init__(self, problem: KSpaceProblem, engine: str = "auto", tolerance: float = DEFAULT_TOLERANCE) -> None:
        self.sensitivities = required_sensitivities(problem)
        self.frames = occupied_frames(problem)
        self.occupied = torch.tensor([t for t, f in enumerate(self.frames) if f.points.shape[0]], dtype=torch.int64)
        self.segments = segments_of(problem)
        self.nuffts = [transform(problem, f, t, self.segments, engine, tolerance) for t, f in enumerate(self.frames)]
        self.shape = problem.shape
        self.engine = engine

    def __repr__(self) -> str:
        return f"FrameEncoding({len(self.frames)} frames of {self.shape}, {self.sensitivities.shape[0]} coils)"

    def forward(self, image: Tensor, frame: int) -> Tensor:
        """Image ``[(z,) y, x]`` of one frame to samples ``[coil, point]``."""
        return self.nuffts[frame].forward(self.sensitivities * image)

    def adjoint(self, samples: Tensor, frame: int) -> Tensor:
        """Samples ``[coil, point]`` of one frame to its image ``[(z,) y, x]``."""
        return (self.sensitivities.conj() * self.nuffts[frame].adjoint(samples)).sum(0)

    def backprojection(self, density: bool = False) -> Tensor:
        """Adjoint of the acquired samples, frame by frame, ``[frame, (z,) y, x]``; density-weighted on request."""
        images = [self.adjoint(f.samples * f.weights if density else f.samples, number) for number, f in enumerate(self.frames)]
        return torch.stack(images)

    def energy(self) -> float:
        """Squared norm of all samples."""
        return float(sum(float(f.samples.abs().square().sum(dtype=torch.float64)) for f in self.frames))

    def normal(self) -> ToeplitzNormal | SegmentedNormal:
        """EᴴWE frame by frame, W the density weights."""
        if self.segments is None:
            return ToeplitzNormal(spectra_of(self.frames, self.shape, self.engine), self.sensitivities)
        in_time = self.segments.in_time
        pairwise = [pair_spectra(f.points, f.weights, in_time[:, f.places], self.shape, self.engine) for f in self.frames]
        return SegmentedNormal(torch.stack(pairwise), self.segments, self.sensitivities)


def spectra_of(frames: Sequence[FrameSamples], shape: Sequence[int], engine: str = "auto") -> Tensor:
    """Point-spread spectra of frames, float32 ``[frame, (2 nz,) 2 ny, 2 nx]`` (:func:`point_spread_spectra`)."""
    return point_spread_spectra([f.points for f in frames], [f.weights for f in frames], shape, engine)


def subspace_normal(
    frames: Sequence[FrameSamples], sensitivities: Tensor, temporal: Tensor, segments: Segments | None, engine: str = "auto"
) -> SubspaceNormal | FrameSubspaceNormal | SegmentedSubspaceNormal:
    """``Σ_t V_kt V_lt E_tᴴ W_t E_t``: the normal operator of a series ``Σ_k V_kt U_k`` on the bases U.

    Args:
        frames: points and weights of every frame.
        sensitivities: complex64 ``[coil, (z,) y, x]``.
        temporal: float32 ``[K, frame]``.
        segments: of :func:`segments_of`, with one field map for all frames; None on resonance.
        engine: NUFFT engine by name.

    Raises:
        DataError: the field map changes from frame to frame.
    """
    shape = tuple(sensitivities.shape[1:])
    if segments is None:
        return subspace_form(spectra_of(frames, shape, engine), sensitivities, temporal)
    in_space = one_map(segments)
    each = [(f.points, f.weights, segments.in_time[:, f.places]) for f in frames]
    return SegmentedSubspaceNormal(segmented_kernel(each, temporal, shape, engine), in_space, sensitivities)


def subspace_backprojection(
    frames: Sequence[FrameSamples], sensitivities: Tensor, temporal: Tensor, nufft: NufftOptions, segments: Segments | None = None
) -> Tensor:
    """``Σ_t V_kt E_tᴴ W_t y_t``: the right-hand side of a series ``Σ_k V_kt U_k``, from one plan for the samples of all frames.

    Args:
        frames: samples, points and weights of every frame.
        sensitivities: complex64 ``[coil, (z,) y, x]``.
        temporal: float32 ``[K, frame]``.
        nufft: how the transform is made.
        segments: of :func:`segments_of`, with one field map for all frames; None on resonance.

    Returns:
        complex64 ``[K, (z,) y, x]``.

    Raises:
        DataError: the field map changes from frame to frame.
    """
    if segments is None and not nufft.cartesian and temporal.device.type == "cpu":
        blocks = _low_rank_blocks(temporal)
        if _cost_by_blocks(blocks, frames, sensitivities) < len(temporal) * sum(f.points.shape[0] for f in frames):
            return _backprojection_by_blocks(blocks, frames, sensitivities, nufft)
    counts = torch.tensor([f.points.shape[0] for f in frames], device=temporal.device)
    samples = torch.cat([f.samples * f.weights for f in frames], dim=1)
    shape = tuple(sensitivities.shape[1:])
    plain = Nufft(torch.cat([f.points for f in frames]), shape, nufft.engine, nufft.tolerance, nufft.cartesian)
    whole: Nufft | SegmentedNufft = plain
    if segments is not None:
        whole = SegmentedNufft(plain, segments.in_time[:, torch.cat([f.places for f in frames])], one_map(segments))
    courses = temporal.repeat_interleave(counts, dim=1)
    return torch.stack([(sensitivities.conj() * whole.adjoint(course * samples)).sum(0) for course in courses])


def _low_rank_blocks(temporal: Tensor) -> list[tuple[Tensor, Tensor]]:
    """V in blocks of neighbouring frames, each as a product ``[K, r] · [r, frame]`` of the lowest rank that single precision can tell."""
    blocks = []
    for part in temporal.split(_BLOCK_FRAMES, dim=1):
        left, values, right = torch.linalg.svd(part.double(), full_matrices=False)
        kept = int((values > _BLOCK_ACCURACY * values[0]).sum())
        blocks.append(((left[:, :kept] * values[:kept]).float(), right[:kept].float()))
    return blocks


def _cost_by_blocks(blocks: Sequence[tuple[Tensor, Tensor]], frames: Sequence[FrameSamples], sensitivities: Tensor) -> float:
    """In transformed points: a block's transforms each cost its points and an FFT of the doubled grid."""
    grid = 2 ** (sensitivities.ndim - 1) * sensitivities[0].numel() / _GRID_VALUES_A_POINT
    points = [sum(f.points.shape[0] for f in frames[n : n + _BLOCK_FRAMES]) for n in range(0, len(frames), _BLOCK_FRAMES)]
    return sum(len(right) * (count + grid) for (_, right), count in zip(blocks, points, strict=True))


def _backprojection_by_blocks(
    blocks: Sequence[tuple[Tensor, Tensor]], frames: Sequence[FrameSamples], sensitivities: Tensor, nufft: NufftOptions
) -> Tensor:
    """:func:`subspace_backprojection` where V is smooth: a block's few courses are transformed instead of all K."""
    shape = tuple(sensitivities.shape[1:])
    out = torch.zeros((len(blocks[0][0]), *shape), dtype=torch.complex64)
    for number, (left, right) in enumerate(blocks):
        part = frames[number * _BLOCK_FRAMES : (number + 1) * _BLOCK_FRAMES]
        counts = torch.tensor([f.points.shape[0] for f in part])
        if not int(counts.sum()) or not len(right):
            continue
        samples = torch.cat([f.samples * f.weights for f in part], dim=1)
        transform = Nufft(torch.cat([f.points for f in part]), shape, nufft.engine, nufft.tolerance)
        images = transform.adjoint(right.repeat_interleave(counts, dim=1)[:, None] * samples)
        out += torch.tensordot(left.to(out.dtype), (sensitivities.conj() * images).sum(1), dims=1)
    return out
