"""Every engine against the exact Fourier sum, adjointness and gradient, on asymmetric sizes."""

from __future__ import annotations

import pytest
import torch

from recon_core.errors import DataError, MissingPartError, SettingError
from recon_core.operators.nufft import Nufft, engines, resolve_engine

CPU_ENGINES = ["finufft", "torchkbnufft", "nudft"]
SHAPES = [(18, 25), (31, 16), (8, 11, 14)]


def points_of(kind: str, shape: tuple[int, ...], n: int = 150) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    sizes = torch.tensor(shape[::-1], dtype=torch.float32)
    if kind == "random":
        return (torch.rand(n, len(shape), generator=generator) - 0.5) * sizes
    if kind == "radial":
        angle = torch.arange(10).repeat_interleave(n // 10) * 1.9416
        radius = torch.linspace(-0.5, 0.499, n // 10).repeat(10)
        plane = torch.stack([radius * angle.cos(), radius * angle.sin(), radius * 0.3], dim=1)[:, : len(shape)]
        return plane * sizes
    if kind == "spiral":
        u = torch.linspace(0, 1, n)
        spiral = torch.stack([u * (40 * u).cos(), u * (40 * u).sin(), u - 0.5], dim=1)[:, : len(shape)]
        return 0.5 * spiral * sizes
    grid = torch.meshgrid(*[torch.arange(s) - s // 2 for s in shape[::-1]], indexing="ij")
    return torch.stack([g.flatten() for g in grid], dim=1).to(torch.float32)


def exact(points: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """The signal equation of docs/conventions.md, written out in float64."""
    shape = images.shape[1:]
    axes = [(torch.arange(n, dtype=torch.float64) - n // 2) / n for n in shape]
    position = torch.stack([r.flatten() for r in torch.meshgrid(*axes, indexing="ij")])
    phase = points.double() @ position.flip(0)
    kernel = torch.exp(-2j * torch.pi * phase)
    return (kernel @ images.flatten(1).to(torch.complex128).T).T / images[0].numel() ** 0.5


@pytest.mark.parametrize("kind", ["random", "radial", "spiral", "cartesian"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("engine", CPU_ENGINES)
def test_agrees_with_the_exact_sum(engine: str, shape: tuple[int, ...], kind: str) -> None:
    points = points_of(kind, shape)
    images = torch.randn(3, *shape, dtype=torch.complex64)
    tolerance = 1e-4 if engine == "torchkbnufft" else 1e-5
    result = Nufft(points, shape, engine, tolerance).forward(images)
    expected = exact(points, images)
    assert torch.isfinite(torch.view_as_real(result)).all()
    error = float((result - expected).norm() / expected.norm())
    assert error < tolerance


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("engine", [*CPU_ENGINES, "fft"])
def test_adjoint(engine: str, shape: tuple[int, ...]) -> None:
    points = points_of("cartesian" if engine == "fft" else "radial", shape)
    nufft = Nufft(points, shape, "nudft" if engine == "fft" else engine, cartesian=engine == "fft")
    x = torch.randn(2, *shape, dtype=torch.complex64)
    y = torch.randn(2, points.shape[0], dtype=torch.complex64)
    left = torch.vdot(nufft.forward(x).flatten(), y.flatten())
    right = torch.vdot(x.flatten(), nufft.adjoint(y).flatten())
    assert abs(left - right) / (nufft.forward(x).norm() * y.norm()) < 1e-5


@pytest.mark.parametrize("engine", CPU_ENGINES)
def test_gradient_is_the_adjoint(engine: str) -> None:
    shape = (12, 17)
    points = points_of("spiral", shape)
    nufft = Nufft(points, shape, engine)
    x = torch.randn(1, *shape, dtype=torch.complex64, requires_grad=True)
    y = torch.randn(1, points.shape[0], dtype=torch.complex64)
    (0.5 * (nufft.forward(x) - y).abs().square().sum()).backward()
    with torch.no_grad():
        expected = nufft.adjoint(nufft.forward(x) - y)
    torch.testing.assert_close(x.grad, expected, rtol=1e-4, atol=1e-5)


def test_cartesian_form_is_unitary_and_exact() -> None:
    shape = (9, 14)
    points = points_of("cartesian", shape)
    nufft = Nufft(points, shape, cartesian=True)
    x = torch.randn(2, *shape, dtype=torch.complex64)
    torch.testing.assert_close(nufft.forward(x), exact(points, x).to(torch.complex64), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(nufft.adjoint(nufft.forward(x)), x, rtol=1e-4, atol=1e-5)
    with pytest.raises(DataError, match="off the grid"):
        Nufft(points + 0.3, shape, cartesian=True)


def test_points_beyond_one_period_and_no_points() -> None:
    shape = (10, 12)
    points = points_of("random", shape) * 2.5
    x = torch.randn(1, *shape, dtype=torch.complex64)
    expected = exact(points, x)
    assert float((Nufft(points, shape, "finufft").forward(x) - expected).norm() / expected.norm()) < 1e-4
    assert Nufft(points[:0], shape, "finufft").adjoint(x[:, 0, :0]).abs().sum() == 0


def test_engine_names() -> None:
    assert engines()["nudft"] == ""
    assert resolve_engine("auto", "cpu") == "finufft"
    with pytest.raises(SettingError, match="Did you mean 'finufft'"):
        resolve_engine("finuft", "cpu")
    with pytest.raises(MissingPartError, match="cufinufft"):
        resolve_engine("cufinufft", "cpu")


@pytest.mark.parametrize("batch", [1, 3, 4, 5])
def test_repeats_bit_for_bit_with_several_threads(batch: int) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        shape = (64, 64)
        points = (torch.rand(30_000, 2) - 0.5) * 64
        samples = torch.randn(batch, 30_000, dtype=torch.complex64)
        nufft = Nufft(points, shape, "finufft")
        images = nufft.adjoint(samples)
        assert all(torch.equal(nufft.adjoint(samples), images) for _ in range(8))
        assert torch.equal(Nufft(points, shape, "finufft").adjoint(samples), images)
        forward = nufft.forward(images)
        assert all(torch.equal(nufft.forward(images), forward) for _ in range(8))
    finally:
        torch.set_num_threads(threads)
