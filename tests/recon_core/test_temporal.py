"""Temporal coefficients in closed form, against dense least squares."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from recon_core.errors import DataError
from recon_core.operators.frames import FrameSamples, NufftOptions
from recon_core.operators.temporal import coupled_coefficients, second_difference_bands, temporal_system

COUNTS = (7, 9, 0, 5, 11, 6)
RANK = 3


def scan(shape: tuple[int, ...]) -> tuple[list[FrameSamples], Tensor, Tensor]:
    """Frames of unequal size (one empty), two coils and three bases, all random."""
    size = torch.tensor(shape[::-1], dtype=torch.float32)
    frames = [
        FrameSamples(
            (torch.rand(n, len(shape)) - 0.5) * size, torch.randn(2, n, dtype=torch.complex64), torch.rand(n) + 0.1, torch.arange(n)
        )
        for n in COUNTS
    ]
    return frames, torch.randn(2, *shape, dtype=torch.complex64), torch.randn(RANK, *shape, dtype=torch.complex64)


def exact_rows(frame: FrameSamples, sensitivities: Tensor, bases: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted Fourier sums of the bases in all coils as real rows ``[row, K]``, and the acquired samples ``[row]``."""
    shape = sensitivities.shape[1:]
    axes = [torch.arange(n, dtype=torch.float64) - n // 2 for n in shape]
    grids = torch.meshgrid(*axes, indexing="ij")
    phase = sum(
        frame.points[:, i].double()[:, None] * grid.flatten() / n
        for i, (grid, n) in enumerate(zip(reversed(grids), reversed(shape), strict=True))
    )
    kernel = torch.exp(-2j * math.pi * phase) / math.sqrt(math.prod(shape))
    root = frame.weights.double().sqrt()
    columns = torch.stack([(kernel @ (coil * bases).flatten(1).to(kernel.dtype).T) * root[:, None] for coil in sensitivities])
    acquired = frame.samples.to(kernel.dtype) * root
    return torch.view_as_real(columns).movedim(-1, 0).reshape(-1, bases.shape[0]), torch.view_as_real(acquired).movedim(-1, 0).flatten()


def dense(frames: list[FrameSamples], sensitivities: Tensor, bases: Tensor, weight: float) -> Tensor:
    """V by one dense least-squares solve of samples and second differences together."""
    matrices, sides = zip(*(exact_rows(f, sensitivities, bases) for f in frames), strict=True)
    differences = torch.zeros(len(frames) - 2, len(frames), dtype=torch.float64)
    for row in range(len(frames) - 2):
        differences[row, row : row + 3] = torch.tensor([1.0, -2.0, 1.0])
    smooth = math.sqrt(weight) * torch.kron(differences, torch.eye(RANK, dtype=torch.float64))
    whole = torch.cat([torch.block_diag(*matrices), smooth])
    side = torch.cat([*sides, torch.zeros(smooth.shape[0], dtype=torch.float64)])
    return torch.linalg.lstsq(whole, side[:, None]).solution.reshape(len(frames), RANK)


@pytest.mark.parametrize("shape", [(6, 9), (4, 5, 7)])
@pytest.mark.parametrize("engine", ["finufft", "nudft"])
def test_system_and_solution_are_those_of_the_dense_problem(shape: tuple[int, ...], engine: str) -> None:
    frames, sensitivities, bases = scan(shape)
    system = temporal_system(frames, sensitivities, bases, NufftOptions(engine, 1e-6))
    for t, frame in enumerate(frames):
        rows, side = exact_rows(frame, sensitivities, bases)
        torch.testing.assert_close(system.normal[t], rows.T @ rows, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(system.target[t], rows.T @ side, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(system.energy[t], side.square().sum(), rtol=1e-5, atol=1e-6)
    for weight in (0.3, 20.0):
        found = coupled_coefficients(system.normal, system.target, second_difference_bands(len(frames)), weight * torch.eye(RANK))
        assert bool(found.isfinite().all())
        torch.testing.assert_close(found, dense(frames, sensitivities, bases, weight), rtol=1e-3, atol=1e-4)


def test_cartesian_samples_by_the_exact_transform() -> None:
    shape = (6, 9)
    frames, sensitivities, bases = scan(shape)
    frames = [FrameSamples(f.points.round(), f.samples, f.weights, f.places) for f in frames]
    system = temporal_system(frames, sensitivities, bases, NufftOptions(cartesian=True))
    rows, side = exact_rows(frames[1], sensitivities, bases)
    torch.testing.assert_close(system.normal[1], rows.T @ rows, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(system.target[1], rows.T @ side, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 9])
def test_bands_are_those_of_second_differences(n: int) -> None:
    differences = torch.eye(n, dtype=torch.float64).diff(n=2, dim=0) if n > 2 else torch.zeros(0, n, dtype=torch.float64)
    wanted = differences.T @ differences
    bands = second_difference_bands(n)
    for s, t in itertools.product(range(3), range(n)):
        assert float(bands[s, t]) == (float(wanted[t + s, t]) if t + s < n else 0.0)


def test_any_coupling_of_frames_and_components() -> None:
    """First differences with a full matrix between components, as of a random walk with correlated steps."""
    n = 5
    factor = torch.randn(n, RANK, RANK, dtype=torch.float64)
    normal, target = factor @ factor.mT, torch.randn(n, RANK, dtype=torch.float64)
    tie = torch.tensor([[2.0, 0.5, -0.3], [0.5, 1.0, 0.2], [-0.3, 0.2, 0.7]], dtype=torch.float64)
    steps = torch.tensor([1.0, 0.5, 1.0, 0.25], dtype=torch.float64)
    differences = torch.eye(n, dtype=torch.float64).diff(dim=0)
    walk = differences.T @ (steps[:, None] * differences)
    bands = torch.stack([walk.diagonal(), torch.cat([walk.diagonal(-1), torch.zeros(1)])])
    found = coupled_coefficients(normal, target, bands, tie)
    wanted = torch.linalg.solve(torch.block_diag(*normal) + torch.kron(walk, tie), target.flatten()).reshape(n, RANK)
    torch.testing.assert_close(found, wanted)


def test_what_nothing_determines_is_an_error() -> None:
    with pytest.raises(DataError, match="not determined") as error:
        coupled_coefficients(torch.zeros(4, 2, 2), torch.ones(4, 2), second_difference_bands(4), torch.zeros(2, 2))
    assert error.value.field == "temporal coefficients"
