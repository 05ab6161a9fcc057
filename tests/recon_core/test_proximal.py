"""Proximal maps against their definition, FISTA against a closed form."""

from __future__ import annotations

import pytest
import torch

from recon_core.operators import blocks
from recon_core.operators.proximal import (
    Fista,
    SpatialTv,
    TemporalTv,
    finite_differences,
    finite_differences_adjoint,
    largest_eigenvalue,
    product_of_differences,
    real_product,
)


@pytest.mark.parametrize("shape", [(3, 7, 5), (2, 4, 6, 5)])
def test_differences_are_adjoint(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.complex64)
    y = torch.randn(len(shape) - 1, *shape, dtype=torch.complex64)
    left = torch.vdot(finite_differences(x).flatten(), y.flatten())
    right = torch.vdot(x.flatten(), finite_differences_adjoint(y).flatten())
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)


def spatial_cost(x: torch.Tensor, image: torch.Tensor, thresholds: torch.Tensor) -> float:
    variation = finite_differences(x).abs().square().sum(0).sqrt().flatten(1).sum(1)
    return float(0.5 * (x - image).abs().square().sum() + (thresholds * variation).sum())


@pytest.mark.parametrize("shape", [(2, 9, 6), (2, 4, 5, 6)])
def test_spatial_tv_minimises_its_cost(shape: tuple[int, ...]) -> None:
    image = torch.randn(shape, dtype=torch.complex64)
    thresholds = torch.tensor([0.4, 0.1])
    found = SpatialTv(shape, 300)(image, thresholds)
    best = spatial_cost(found, image, thresholds)
    generator = torch.Generator().manual_seed(1)
    for scale in (1e-1, 1e-2, 1e-3):
        for _ in range(20):
            other = found + scale * torch.randn(shape, dtype=torch.complex64, generator=generator)
            assert spatial_cost(other, image, thresholds) > best
    assert spatial_cost(image, image, thresholds) > best


def test_spatial_tv_without_threshold_and_with_a_huge_one() -> None:
    image = torch.randn(2, 8, 6, dtype=torch.complex64)
    found = SpatialTv(image.shape, 3000)(image, torch.tensor([0.0, 1e3]))
    torch.testing.assert_close(found[0], image[0])
    torch.testing.assert_close(found[1], image[1].mean().expand(8, 6), rtol=1e-2, atol=1e-2)


def test_warm_dual_converges_over_calls() -> None:
    image, thresholds = torch.randn(1, 9, 8, dtype=torch.complex64), torch.tensor([0.3])
    exact = SpatialTv(image.shape, 2000)(image, thresholds)
    few = SpatialTv(image.shape, 3)
    errors = [float((few(image, thresholds) - exact).norm()) for _ in range(60)]
    assert errors[-1] < 0.05 * errors[0]


def test_temporal_tv_of_a_step_shrinks_it_by_the_closed_form() -> None:
    """For a single step between two plateaus of length n, TV moves each plateau by λ/n towards the other."""
    series = torch.cat([torch.zeros(10, 2), torch.ones(10, 2)]).to(torch.complex64) * 1j
    found = TemporalTv(series.shape, 3000)(series, 0.5)
    expected = torch.cat([torch.full((10, 2), 0.05), torch.full((10, 2), 0.95)]).to(torch.complex64) * 1j
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(TemporalTv(series.shape, 5)(series, 0.0), series)


def test_fista_solves_least_squares_faster_than_plain_steps() -> None:
    matrix = torch.randn(30, 12, dtype=torch.complex64)
    normal = matrix.conj().T @ matrix
    target = matrix.conj().T @ torch.randn(30, dtype=torch.complex64)
    exact = torch.linalg.solve(normal, target)
    step = 1 / (1.02 * largest_eigenvalue(lambda x: normal @ x, torch.randn(12, dtype=torch.complex64), 100))
    fista, plain = Fista(torch.zeros_like(exact)), torch.zeros_like(exact)
    for _ in range(60):
        fista.accept(fista.ahead - step * (normal @ fista.ahead - target))
        plain = plain - step * (normal @ plain - target)
    assert (fista.x - exact).norm() < 0.2 * (plain - exact).norm()


def test_real_product() -> None:
    a, b = (torch.randn(3, 4, 5, dtype=torch.complex64) for _ in range(2))
    assert real_product(a, b) == pytest.approx(float(torch.vdot(a.flatten(), b.flatten()).real), rel=1e-5)


def test_product_of_differences_in_pieces(monkeypatch) -> None:
    """Images of many pieces, shared out to any number of threads, give one sum, to the last bit."""
    a, b, c, d = (torch.randn(7, 6, 5, dtype=torch.complex64) for _ in range(4))
    expected = float(torch.vdot((a - b).flatten(), (c - d).flatten()).real)
    assert product_of_differences(a, b, c, d) == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr(blocks, "IN_CACHE", 2 * 30)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(product_of_differences(a, b, c, d))
    finally:
        torch.set_num_threads(before)
    assert results == [pytest.approx(expected, rel=1e-5)] * 3
    assert len(set(results)) == 1


def test_largest_eigenvalue() -> None:
    values = torch.tensor([0.5, 3.0, 7.0])
    assert largest_eigenvalue(lambda x: values * x, torch.ones(3), 60) == pytest.approx(7.0, rel=1e-3)
    assert largest_eigenvalue(lambda x: 0 * x, torch.ones(3)) == 0.0
