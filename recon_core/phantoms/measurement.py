"""What all simulated scans share: k-space of a moving object, noise, truth.

An object is drawn on a grid finer than the reconstruction's at *every readout's own time*; its k-space is an exact non-uniform
Fourier sum of that grid times the coils' fields.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import finufft
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon_core.threads import at_most_threads
from recon_core.time_segments import segment_basis
from recon_core.trajectories import resolution_limit

_NOISE_SHAPE = (24, 256)
_WORKERS = 2
_PHASE_ERROR = 1e-4
_BODY = 0.15

Progress = Callable[[int, int], None]


class MovingObject(Protocol):
    """A slice of the body at any moment of a scan."""

    def at(self, time: float) -> Tensor:
        """Transverse magnetisation, complex64 ``[y, x]``."""
        ...


class OffResonantObject(MovingObject, Protocol):
    """A slice in which tissue is off the scanner's frequency."""

    def at_with_frequency(self, time: float) -> tuple[Tensor, Tensor]:
        """Magnetisation as :meth:`at`, and its off-resonance in Hz, float32 ``[y, x]``."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class SimulatedScan:
    """A simulated scan and its truth; units and axes: ``docs/conventions.md``.

    Attributes:
        samples: complex64 ``[coil, readout, sample]``, noisy, not whitened.
        noise: complex64 ``[coil, sample]`` of noise readouts, flattened.
        trajectory: float32 ``[readout, sample, axis]``, cycles per field of view.
        times: float64 ``[readout]``, s.
        dwell: time between samples, s.
        frame_times: float64 ``[frame]``, mean of its readouts' times, s.
        truth: complex64 ``[frame, (z,) y, x]`` in units of the whitened noise.
        moving: bool ``[(z,) y, x]``.
    """

    samples: NDArray[np.complex64]
    noise: NDArray[np.complex64]
    trajectory: NDArray[np.float32]
    times: NDArray[np.float64]
    dwell: float
    frame_times: NDArray[np.float64]
    truth: NDArray[np.complex64]
    moving: NDArray[np.bool_]


def each_readout(n_readouts: int, worker: Callable[[], Callable[[int], None]], progress: Progress | None = None) -> None:
    """Measure every readout (or angle of readouts), a few at once.

    Args:
        n_readouts: their number.
        worker: called once a thread (plans are no thread's but one's); what it returns measures one of them.
        progress: called with (done, in all).
    """
    done = itertools.count(1)

    # torch's own threads, on arrays this small, mostly wait for each other on a busy machine.
    @at_most_threads(1)
    def work(first: int) -> None:
        measure = worker()
        for number in range(first, n_readouts, _WORKERS):
            measure(number)
            if progress is not None:
                progress(next(done), n_readouts)

    with ThreadPoolExecutor(_WORKERS) as pool:
        for finished in [pool.submit(work, first) for first in range(_WORKERS)]:
            finished.result()


def slice_plan(shape: tuple[int, int], n_trans: int) -> finufft.Plan:
    """Plan of a Fourier sum over slices of ``shape`` (ny, nx), ``n_trans`` at once."""
    return finufft.Plan(2, shape, n_trans=n_trans, eps=1e-4, isign=-1, dtype="complex64", upsampfac=1.25, nthreads=1)


def set_points(plan: finufft.Plan, trajectory: NDArray[np.float32], shape: tuple[int, int]) -> None:
    """Give a plan the points of one readout ``[sample, (kx, ky)]``, cycles per field of view."""
    ny, nx = shape
    points = 2 * np.pi * trajectory / np.array([nx, ny], dtype=np.float32)
    plan.setpts(np.ascontiguousarray(points[:, 1]), np.ascontiguousarray(points[:, 0]))


def sample_slice(
    anatomy: MovingObject | OffResonantObject,
    maps: NDArray[np.complex64],
    trajectory: NDArray[np.float32],
    times: NDArray[np.float64],
    matrix: tuple[int, int],
    progress: Progress | None = None,
    *,
    sample_times: NDArray[np.float64] | None = None,
    largest_frequency: float = 0.0,
) -> NDArray[np.complex64]:
    """Noise-free samples of a moving slice: one Fourier sum a readout, of the object at that readout's time.

    Args:
        anatomy: the object.
        maps: complex64 ``[coil, y, x]`` on the object's grid.
        trajectory: float32 ``[readout, sample, 2]``, cycles per field of view.
        times: float64 ``[readout]``, s.
        matrix: pixels ``(ny, nx)`` of the reconstruction, which the samples' scale follows.
        progress: called with (readouts done, readouts in all).
        sample_times: float64 ``[sample]``, s from the excitation: phase exp(+i2π Δf t) accrues until then, sample by sample, of an
            anatomy that has frequencies. None: on resonance.
        largest_frequency: bound on the anatomy's off-resonance, Hz.

    Returns:
        complex64 ``[coil, readout, sample]``.
    """
    n_coils, n_readouts = len(maps), len(trajectory)
    shape = (maps.shape[1], maps.shape[2])
    # A sum over the fine grid stands for one over the reconstruction's pixels.
    coils = torch.from_numpy(maps * np.float32(math.sqrt(math.prod(matrix)) / math.prod(shape)))
    samples = np.empty((n_coils, n_readouts, trajectory.shape[1]), dtype=np.complex64)
    basis = None if sample_times is None else segment_basis(torch.from_numpy(sample_times), largest_frequency, _PHASE_ERROR)
    n_parts = 1 if basis is None else basis.n_segments

    def worker() -> Callable[[int], None]:
        plan = slice_plan(shape, n_parts * n_coils)

        def measure(number: int) -> None:
            if basis is None:
                parts = anatomy.at(float(times[number]))[None]
            else:
                image, frequency = anatomy.at_with_frequency(float(times[number]))  # type: ignore[union-attr]
                parts = image * basis.in_space(frequency)
            set_points(plan, trajectory[number], shape)
            weighted = (parts[:, None] * coils).reshape(n_parts * n_coils, *shape)
            measured = plan.execute((weighted[0] if len(weighted) == 1 else weighted).numpy()).reshape(n_parts, n_coils, -1)
            samples[:, number] = measured[0] if basis is None else np.einsum("lcs,ls->cs", measured, basis.in_time.numpy())

        return measure

    each_readout(n_readouts, worker, progress)
    return samples


def low_pass(image: Tensor, matrix: tuple[int, int], field_of_view: tuple[float, float], *, disc: bool = True) -> NDArray[np.complex64]:
    """Keep the acquired part of k-space of slices ``[..., y, x]`` and sample on the pixels of ``matrix``.

    Args:
        image: complex ``[..., y, x]`` on a finer grid.
        matrix: pixels ``(ny, nx)``.
        field_of_view: mm, ``(y, x)``.
        disc: spokes and spiral arms fill a disc; False: the whole rectangle, as Cartesian lines do.
    """
    dims = (-2, -1)
    spectrum = torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(image, dim=dims)), dim=dims)
    for axis, m in zip(dims, matrix, strict=True):
        spectrum = spectrum.narrow(axis, spectrum.shape[axis] // 2 - m // 2, m)
    if disc:
        ky, kx = ((torch.arange(m, dtype=torch.float32) - m // 2) / fov for m, fov in zip(matrix, field_of_view, strict=True))
        spectrum = spectrum * (ky[:, None] ** 2 + kx[None] ** 2 <= (resolution_limit(matrix, field_of_view) * 1.0001) ** 2)
    kept = torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=dims)), dim=dims)
    return (kept * (math.prod(matrix) / math.prod(image.shape[-2:]))).numpy()


def shading(maps: NDArray[np.complex64], covariance: NDArray[np.complex128]) -> NDArray[Any]:
    """Root-sum-of-squares of the whitened maps ``[coil, ...]``: what an image from unit-norm maps is multiplied by."""
    whiten = np.linalg.inv(np.linalg.cholesky(covariance))
    return np.linalg.norm(np.tensordot(whiten, maps, axes=1), axis=0)


def noise_level(truth: NDArray[Any], snr: float) -> float:
    """Standard deviation of the noise at which the body's mean signal in ``truth`` ``[frame, ...]`` has ``snr``."""
    magnitude = np.abs(truth).mean(axis=0)
    return float(magnitude[magnitude > _BODY * magnitude.max()].mean() / snr)


def add_noise(
    samples: NDArray[np.complex64], level: float, covariance: NDArray[np.complex128], rng: np.random.Generator
) -> NDArray[np.complex64]:
    """Add correlated noise to samples ``[coil, readout, sample]`` in place; returns noise readouts ``[coil, sample]``."""
    mix = level * np.linalg.cholesky(covariance)
    samples += np.tensordot(mix, _white(rng, samples.shape), axes=1).astype(np.complex64)
    recorded = np.tensordot(mix, _white(rng, (len(samples), *_NOISE_SHAPE)), axes=1)
    return recorded.reshape(len(samples), -1).astype(np.complex64)


def _white(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.complex128]:
    """Complex noise of unit variance."""
    noise: NDArray[np.complex128] = rng.standard_normal((*shape, 2)).view(np.complex128)[..., 0]
    return noise / math.sqrt(2)
