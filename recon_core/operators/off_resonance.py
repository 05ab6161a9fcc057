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
from recon_core.operators.toeplitz import dirichlet, ifft_crop, pad_fft, point_spread_spectrum
from recon_core.problem import KSpaceProblem
from recon_core.time_segments import segment_basis

TOLERANCE = 4e-3
"""Root-mean-square error of the segments' phase factor."""

_FRAMES_AT_ONCE = 16
_SEPARABLE_POINTS = 4096
"""Up to so many points matrix products of Dirichlet kernels, evaluated once for all pairs, cost less than NUFFTs."""


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
    products = [weights * in_time[first].conj() * in_time[second] for first, second in pairs(in_time.shape[0])]
    # A spectrum is linear in its weights, and real weights have a real one.
    parts = [part.contiguous() for product in products for part in (product.real, product.imag)]
    if len(shape) == 2 and points.shape[0] <= _SEPARABLE_POINTS:
        along_y, along_x = (dirichlet(2 * points[:, axis].double(), n) for axis, n in ((1, shape[0]), (0, shape[1])))
        spectra = [(along_y * part[:, None]).T @ along_x / math.prod(shape) for part in parts]
    else:
        spectra = [point_spread_spectrum(points, part, shape, engine) for part in parts]
    return torch.complex(torch.stack(spectra[::2]), torch.stack(spectra[1::2]))


def _convolve(spectra: Tensor, segments: Tensor, weighted: Tensor, dim: int) -> Tensor:
    """``Σ_lm c̄_l T_lm c_m x`` of images x ``[image, …]`` with spectra ``[image, pair, …]`` and c ``[image or 1, segment, …]``."""
    n = segments.shape[1]
    transformed = [pad_fft(segments[:, m] * weighted, dim) for m in range(n)]
    sums = [torch.zeros_like(part) for part in transformed]
    for index, (first, second) in enumerate(pairs(n)):
        spectrum = spectra[:, index]
        sums[first] += spectrum * transformed[second]
        if first != second:
            sums[second] += spectrum.conj() * transformed[first]
    total = torch.zeros_like(weighted)
    for own, part in zip(segments.unbind(1), sums, strict=True):
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
        in_space, spectra = self.segments.in_space, self.spectra[frames]
        own = in_space[frames] if in_space.shape[0] > 1 else in_space
        total = torch.zeros_like(images)
        for first in range(0, images.shape[0], _FRAMES_AT_ONCE):
            part = slice(first, first + _FRAMES_AT_ONCE)
            segments = own[part] if own.shape[0] > 1 else own
            for coil in self.sensitivities:
                total[part] += coil.conj() * _convolve(spectra[part], segments, coil * images[part], self.dim)
        return total

    def pooled(self) -> SegmentedNormal:
        """The normal operator of all frames' samples for one common image; maps of many frames count with their mean factors."""
        common = dataclasses.replace(self.segments, in_space=self.segments.in_space.mean(0, keepdim=True))
        return SegmentedNormal(self.spectra.sum(0, keepdim=True), common, self.sensitivities)


class SegmentedSubspaceNormal:
    """The quadratic data term of ``d_t = Σ_k V_kt U_k`` off resonance, as an operator on the bases U.

    K·L blocks instead of K: an application costs 2·K·L·C FFTs whatever the number of frames.

    Args:
        kernel: complex64 ``[pair, point, K, K]`` over the flattened doubled grid, symmetric in K.
        in_space: complex64 ``[segment, (z,) y, x]``.
        sensitivities: complex64 ``[coil, (z,) y, x]``.
    """

    def __init__(self, kernel: Tensor, in_space: Tensor, sensitivities: Tensor) -> None:
        self.kernel = kernel
        self.in_space = in_space
        self.sensitivities = sensitivities
        self.dim = sensitivities.ndim - 1
        self.rank = kernel.shape[2]

    def __repr__(self) -> str:
        coils, *shape = self.sensitivities.shape
        return f"SegmentedSubspaceNormal(K={self.rank}, {self.in_space.shape[0]} segments, {coils} coils, shape={tuple(shape)})"

    def __call__(self, bases: Tensor) -> Tensor:
        """Apply to bases ``[K, (z,) y, x]``."""
        grid = [2 * n for n in bases.shape[1:]]
        flat, sums = [], []
        for own in self.in_space:
            spectra = torch.stack([pad_fft(coil * own * bases, self.dim) for coil in self.sensitivities], dim=1)
            flat.append(spectra.flatten(2).permute(2, 0, 1).contiguous())
            sums.append(torch.zeros_like(flat[-1]))
        # The kernel is what has to be read: each of its blocks serves all coils at once.
        for kernel, (first, second) in zip(self.kernel, pairs(len(flat)), strict=True):
            sums[first] += torch.bmm(kernel, flat[second])
            if first != second:
                # V is real, hence the kernel symmetric: the block of the turned pair is the conjugate.
                sums[second] += torch.bmm(kernel, flat[first].conj()).conj()
        total = torch.zeros_like(bases)
        for own, part in zip(self.in_space, sums, strict=True):
            spectra = part.permute(1, 2, 0).reshape(self.rank, -1, *grid)
            for number, coil in enumerate(self.sensitivities):
                total += (coil * own).conj() * ifft_crop(spectra[:, number], self.dim)
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
        complex64 ``[pair, point, K, K]`` over the flattened doubled grid.
    """
    rank = temporal.shape[0]
    products = (temporal[:, None] * temporal[None]).flatten(0, 1).T.to(torch.complex64)
    n_pairs = len(pairs(frames[0][2].shape[0]))
    size = math.prod(2 * n for n in shape)
    kernel = torch.zeros((n_pairs * size, rank * rank), dtype=torch.complex64, device=temporal.device)
    for start in range(0, len(frames), _FRAMES_AT_ONCE):
        block = [pair_spectra(*frame, shape, engine).flatten() for frame in frames[start : start + _FRAMES_AT_ONCE]]
        kernel.addmm_(torch.stack(block).T, products[start : start + _FRAMES_AT_ONCE])
    return kernel.reshape(n_pairs, size, rank, rank)


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
