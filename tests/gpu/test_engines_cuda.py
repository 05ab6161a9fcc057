"""Engines and normal operators on CUDA against the exact sum on the CPU."""

from __future__ import annotations

import pytest
import torch

from recon_core.calibration.density import density_weights
from recon_core.calibration.sensitivities import sensitivities
from recon_core.errors import MissingPartError
from recon_core.operators.nufft import Nufft, engines, resolve_engine
from recon_core.operators.subspace_normal import FrameSubspaceNormal, SubspaceNormal
from recon_core.operators.toeplitz import ToeplitzNormal, point_spread_spectrum

SHAPES = [(18, 25), (31, 16), (8, 11, 14)]


def usable(engine: str) -> str:
    if engines()[engine]:
        pytest.skip(f"{engine}: {engines()[engine]}")
    return engine


def points_of(shape: tuple[int, ...], n: int = 400) -> torch.Tensor:
    return (torch.rand(n, len(shape)) - 0.5) * torch.tensor(shape[::-1], dtype=torch.float32)


def relative(result: torch.Tensor, expected: torch.Tensor) -> float:
    return float((result.cpu() - expected).norm() / expected.norm())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("engine", ["cufinufft", "torchkbnufft", "nudft"])
def test_agrees_with_the_exact_sum(engine: str, shape: tuple[int, ...]) -> None:
    points, images = points_of(shape), torch.randn(3, *shape, dtype=torch.complex64)
    oracle = Nufft(points, shape, "nudft")
    nufft = Nufft(points.cuda(), shape, usable(engine))
    samples = nufft.forward(images.cuda())
    assert samples.is_cuda
    assert relative(samples, oracle.forward(images)) < 1e-4
    assert relative(nufft.adjoint(samples), oracle.adjoint(samples.cpu())) < 1e-4


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("engine", ["cufinufft", "torchkbnufft", "nudft"])
def test_adjoint_and_gradient(engine: str, shape: tuple[int, ...]) -> None:
    nufft = Nufft(points_of(shape).cuda(), shape, usable(engine))
    x = torch.randn(1, *shape, dtype=torch.complex64, device="cuda", requires_grad=True)
    y = torch.randn(1, 400, dtype=torch.complex64, device="cuda")
    forward = nufft.forward(x)
    left, right = torch.vdot(forward.detach().flatten(), y.flatten()), torch.vdot(x.detach().flatten(), nufft.adjoint(y).flatten())
    assert float((left - right).abs()) < 1e-5 * float(forward.detach().norm() * y.norm())
    (0.5 * (forward - y).abs().square().sum()).backward()
    assert relative(x.grad, nufft.adjoint(forward.detach() - y).cpu()) < 1e-5


def test_cartesian_form() -> None:
    shape = (9, 14)
    grid = torch.meshgrid(*[torch.arange(s) - s // 2 for s in shape[::-1]], indexing="ij")
    points = torch.stack([g.flatten() for g in grid], dim=1).to(torch.float32)
    x = torch.randn(2, *shape, dtype=torch.complex64)
    result = Nufft(points.cuda(), shape, cartesian=True).forward(x.cuda())
    assert relative(result, Nufft(points, shape, cartesian=True).forward(x)) < 1e-5


def test_engine_names() -> None:
    assert resolve_engine("auto", "cuda") == ("torchkbnufft" if engines()["cufinufft"] else "cufinufft")
    with pytest.raises(MissingPartError, match="does not run on cuda"):
        resolve_engine("finufft", "cuda")


@pytest.mark.parametrize("shape", SHAPES)
def test_normal_operators(shape: tuple[int, ...]) -> None:
    points, weights = points_of(shape), torch.rand(400)
    maps = torch.randn(2, *shape, dtype=torch.complex64)
    images, temporal = torch.randn(3, *shape, dtype=torch.complex64), torch.randn(3, 4)
    cpu = torch.stack([point_spread_spectrum(points[i::4], weights[i::4], shape, "nudft") for i in range(4)])
    gpu = torch.stack([point_spread_spectrum(points[i::4].cuda(), weights[i::4].cuda(), shape) for i in range(4)])
    assert relative(gpu, cpu) < 2e-4
    assert relative(ToeplitzNormal(gpu[:3], maps.cuda())(images.cuda()), ToeplitzNormal(cpu[:3], maps)(images)) < 2e-4
    for form in (SubspaceNormal, FrameSubspaceNormal):
        subspace = form(gpu, maps.cuda(), temporal.cuda())(images.cuda())
        assert relative(subspace, SubspaceNormal(cpu, maps, temporal)(images)) < 2e-4


def test_density_and_maps() -> None:
    shape = (24, 20)
    points = points_of(shape, 3000)
    samples = torch.randn(3, 3000, dtype=torch.complex64)
    weights = density_weights(points, shape)
    assert relative(density_weights(points.cuda(), shape), weights) < 0.02
    maps, _ = sensitivities(points, samples, weights, shape)
    on_gpu, _ = sensitivities(points.cuda(), samples.cuda(), weights.cuda(), shape)
    agreement = (on_gpu.cpu().conj() * maps).sum(0).abs()
    assert float(agreement.median()) > 0.999
