"""Encoding off resonance: A = Σ_l B_l F C_l, and its normal operators as convolutions.

With a field map f, a sample taken the time t into its readout carries exp(+i2πf t). The factors b_l(t) and c_l(f) of
:mod:`recon_core.time_segments` go before and behind ordinary Fourier transforms (Noll et al., IEEE Trans Med Imaging 1991;10:629; Sutton
et al., IEEE Trans Med Imaging 2003;22:178). AᴴWA is then a block of convolutions over pairs of segments, T_lm with the point spread of the
weights b̄_l w b_m (Fessler et al., IEEE Trans Signal Process 2005;53:3393), and T_ml the complex conjugate of T_lm, in the spectrum.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from recon_core.errors import DataError
from recon_core.operators.nufft import Nufft
from recon_core.operators.toeplitz import ifft_crop, pad_fft, point_spread_spectrum
from recon_core.problem import KSpaceProblem
from recon_core.time_segments import segment_basis

TOLERANCE = 4e-3
"""Root-mean-square error of the segments' phase factor."""

_FRAMES_AT_ONCE = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Segments:
    """The factors of one problem.

    Attributes:
        in_time: complex64 ``[segment, sample]``, b at the samples of a readout.
        in_space: complex64 ``[map, segment, (z,) y, x]``, c; one map, or one a frame.
    """

    in_time: Tensor
    in_space: Tensor

    @property
    def n_segments(self) -> int:
        """Number of segments."""
        return self.in_time.shape[0]

    def of_frame(self, frame: int) -> Tensor:
        """Factors c of a frame, complex64 ``[segment, (z,) y, x]``."""
        return self.in_space[frame if self.in_space.shape[0] > 1 else 0]


def segments_of(problem: KSpaceProblem, tolerance: float = TOLERANCE) -> Segments | None:
    """The factors for a problem's field map; None on resonance."""
    if problem.field_map is None or problem.sample_times is None:
        return None
    largest = float(problem.field_map.abs().max())
    # Less than a hundredth of a turn at a readout's end is below the operator's own accuracy.
    if largest * float(problem.sample_times.abs().max()) < 1e-3:
        return None
    basis = segment_basis(problem.sample_times, largest, tolerance)
    maps = problem.field_map if problem.field_map.ndim > problem.dim else problem.field_map[None]
    in_space = torch.stack([basis.in_space(one) for one in maps])
    return Segments(basis.in_time.to(problem.device), in_space.to(problem.device))


class SegmentedNufft:
    """Images to samples off resonance, as :class:`Nufft`; gradient = adjoint.

    Args:
        nufft: the transform on resonance.
        in_time: complex64 ``[segment, point]``, b at every point.
        in_space: complex64 ``[segment, (z,) y, x]``, c.
    """

    def __init__(self, nufft: Nufft, in_time: Tensor, in_space: Tensor) -> None:
        self.nufft = nufft
        self.in_time = in_time
        self.in_space = in_space
        self.shape = nufft.shape
        self.n_points = nufft.n_points

    def __repr__(self) -> str:
        return f"SegmentedNufft({self.in_time.shape[0]} segments of {self.nufft!r})"

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[..., (z,) y, x]`` to samples ``[..., point]``."""
        parts = zip(self.in_time, self.in_space, strict=True)
        return torch.stack([b * self.nufft.forward(c * images) for b, c in parts]).sum(0)

    def adjoint(self, samples: Tensor) -> Tensor:
        """Samples ``[..., point]`` to images ``[..., (z,) y, x]``."""
        parts = zip(self.in_time, self.in_space, strict=True)
        return torch.stack([c.conj() * self.nufft.adjoint(b.conj() * samples) for b, c in parts]).sum(0)


def pairs(n_segments: int) -> list[tuple[int, int]]:
    """Pairs (l, m) of segments with l ≤ m, in the order of their spectra."""
    return [(first, second) for first in range(n_segments) for second in range(first, n_segments)]


def pair_spectra(points: Tensor, weights: Tensor, in_time: Tensor, shape: Sequence[int], engine: str = "auto") -> Tensor:
    """Spectra of the convolutions Fᴴ b̄_l W b_m F on the doubled grid.

    Args:
        points: float32 ``[point, axis]``, cycles per field of view.
        weights: float32 ``[point]``.
        in_time: complex64 ``[segment, point]``.
        shape: image shape.
        engine: NUFFT engine by name.

    Returns:
        complex64 ``[pair, (2 nz,) 2 ny, 2 nx]`` of the pairs l ≤ m; k = 0 at index 0.
    """
    made = []
    for first, second in pairs(in_time.shape[0]):
        product = weights * in_time[first].conj() * in_time[second]
        # A spectrum is linear in its weights, and real weights have a real one.
        parts = [point_spread_spectrum(points, part.contiguous(), shape, engine) for part in (product.real, product.imag)]
        made.append(torch.complex(*parts))
    return torch.stack(made)


def _convolve(spectra: Tensor, segments: Tensor, weighted: Tensor, dim: int) -> Tensor:
    """``Σ_lm c̄_l T_lm c_m x`` of images x ``[image, …]`` with spectra ``[image, pair, …]`` and c ``[image or 1, segment, …]``."""
    n = segments.shape[1]
    transformed = [pad_fft(segments[:, m] * weighted, dim) for m in range(n)]
    sums: list[Tensor | None] = [None] * n
    for index, (first, second) in enumerate(pairs(n)):
        spectrum = spectra[:, index]
        there = spectrum * transformed[second]
        sums[first] = there if sums[first] is None else sums[first] + there
        if first != second:
            back = spectrum.conj() * transformed[first]
            sums[second] = back if sums[second] is None else sums[second] + back
    total = torch.zeros_like(weighted)
    for own, part in zip(segments.unbind(1), sums, strict=True):
        assert part is not None
        total += own.conj() * ifft_crop(part, dim)
    return total


class SegmentedNormal:
    """Frame-wise AᴴWA with coils, off resonance.

    Args:
        spectra: complex64 ``[frame, pair, (2z,) 2y, 2x]`` of :func:`pair_spectra`.
        segments: the factors.
        sensitivities: complex64 ``[coil, (z,) y, x]``.
    """

    def __init__(self, spectra: Tensor, segments: Segments, sensitivities: Tensor) -> None:
        self.spectra = spectra
        self.segments = segments
        self.sensitivities = sensitivities
        self.dim = sensitivities.ndim - 1

    def __call__(self, images: Tensor, frames: slice = slice(None)) -> Tensor:
        """Apply to images ``[frame, (z,) y, x]`` of the frames in ``frames``."""
        in_space = self.segments.in_space
        own = in_space[frames] if in_space.shape[0] > 1 else in_space
        total = torch.zeros_like(images)
        for coil in self.sensitivities:
            total += coil.conj() * _convolve(self.spectra[frames], own, coil * images, self.dim)
        return total

    def pooled(self) -> SegmentedNormal:
        """The normal operator of all frames' samples for one common image; maps of many frames count with their mean factors."""
        common = dataclasses.replace(self.segments, in_space=self.segments.in_space.mean(0, keepdim=True))
        return SegmentedNormal(self.spectra.sum(0, keepdim=True), common, self.sensitivities)


class SegmentedSubspaceNormal:
    """The quadratic data term of ``d_t = Σ_k V_kt U_k`` off resonance, as an operator on the bases U.

    K·L blocks instead of K: an application costs 2·K·L·C FFTs whatever the number of frames.

    Args:
        kernel: complex64 ``[pair, K, K, point]`` over the flattened doubled grid, symmetric in K.
        in_space: complex64 ``[segment, (z,) y, x]``.
        sensitivities: complex64 ``[coil, (z,) y, x]``.
    """

    def __init__(self, kernel: Tensor, in_space: Tensor, sensitivities: Tensor) -> None:
        self.kernel = kernel
        self.in_space = in_space
        self.sensitivities = sensitivities
        self.dim = sensitivities.ndim - 1
        self.rank = kernel.shape[1]

    def __repr__(self) -> str:
        coils, *shape = self.sensitivities.shape
        return f"SegmentedSubspaceNormal(K={self.rank}, {self.in_space.shape[0]} segments, {coils} coils, shape={tuple(shape)})"

    def __call__(self, bases: Tensor) -> Tensor:
        """Apply to bases ``[K, (z,) y, x]``."""
        total = torch.zeros_like(bases)
        for coil in self.sensitivities:
            total += coil.conj() * self._convolve(coil * bases)
        return total

    def _convolve(self, weighted: Tensor) -> Tensor:
        transformed = [pad_fft(own * weighted, self.dim) for own in self.in_space]
        grid = transformed[0].shape[1:]
        flat = [part.reshape(self.rank, -1) for part in transformed]
        sums = [torch.zeros_like(flat[0]) for _ in flat]
        for kernel, (first, second) in zip(self.kernel, pairs(len(flat)), strict=True):
            for k in range(self.rank):
                sums[first][k] += (kernel[k] * flat[second]).sum(0)
                if first != second:
                    # V is real: the block of the turned pair is the conjugate.
                    sums[second][k] += (kernel[k].conj() * flat[first]).sum(0)
        total = torch.zeros_like(weighted)
        for own, part in zip(self.in_space, sums, strict=True):
            total += own.conj() * ifft_crop(part.reshape(self.rank, *grid), self.dim)
        return total


def segmented_kernel(
    frames: Sequence[tuple[Tensor, Tensor, Tensor]], temporal: Tensor, shape: Sequence[int], engine: str = "auto"
) -> Tensor:
    """``Σ_t V_kt V_lt T_t`` over pairs of segments, a few frames at a time.

    Args:
        frames: of every frame points, weights and in_time, as :func:`pair_spectra` takes them.
        temporal: float32 ``[K, frame]``.
        shape: image shape.
        engine: NUFFT engine by name.

    Returns:
        complex64 ``[pair, K, K, point]`` over the flattened doubled grid.
    """
    rank = temporal.shape[0]
    upper = torch.triu_indices(rank, rank, device=temporal.device)
    products = (temporal[upper[0]] * temporal[upper[1]]).to(torch.complex64)
    n_pairs = len(pairs(frames[0][2].shape[0]))
    size = math.prod(2 * n for n in shape)
    packed = torch.zeros((products.shape[0], n_pairs * size), dtype=torch.complex64, device=temporal.device)
    for start in range(0, len(frames), _FRAMES_AT_ONCE):
        block = [pair_spectra(*frame, shape, engine).flatten() for frame in frames[start : start + _FRAMES_AT_ONCE]]
        packed.addmm_(products[:, start : start + _FRAMES_AT_ONCE], torch.stack(block))
    packed = packed.reshape(-1, n_pairs, size)
    kernel = torch.empty((n_pairs, rank, rank, size), dtype=torch.complex64, device=temporal.device)
    kernel[:, upper[0], upper[1]] = packed.transpose(0, 1)
    kernel[:, upper[1], upper[0]] = packed.transpose(0, 1)
    return kernel


def one_map(segments: Segments) -> Tensor:
    """The factors c of a problem with one field map for all frames.

    Raises:
        DataError: there is one map a frame.
    """
    if segments.in_space.shape[0] > 1:
        raise DataError(
            "field map",
            f"{segments.in_space.shape[0]} maps, one a frame, for a method that shares images between frames",
            "Give one map, or take a solver that works frame by frame (cg_sense, grasp, low_rank_sparse, inmr).",
        )
    return segments.in_space[0]
