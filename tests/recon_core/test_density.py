"""Density compensation against areas known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from recon_core.calibration.density import density_weights
from recon_core.operators.nufft import Nufft

GOLDEN = math.pi * (math.sqrt(5) - 1) / 2


def spokes(n: int, samples: int, shape: tuple[int, int]) -> Tensor:
    radius = (torch.arange(samples) - samples // 2) / samples
    angle = (torch.arange(n) * GOLDEN)[:, None]
    plane = torch.stack([radius * angle.cos() * shape[1], radius * angle.sin() * shape[0]], dim=-1)
    return plane.flatten(0, 1).to(torch.float32)


def test_radial_weights_are_each_samples_share_of_its_ring() -> None:
    """2π|k|dk shared by the ring's 2n samples, in 1/FOV²: shape and absolute scale."""
    shape, n, samples = (32, 32), 80, 64
    points = spokes(n, samples, shape)
    weights = density_weights(points, shape)
    radius = points.norm(dim=1)
    ring = math.pi * radius * 0.5 / n
    inner = (radius > 2) & (radius < 14)
    assert float((weights[inner] / ring[inner]).mean()) == pytest.approx(1.0, abs=0.02)
    for k in torch.arange(2.0, 14.0, 0.5):
        here = (radius - k).abs() < 0.01
        # Golden-angle gaps differ by up to 1.6: the ring's mean is the area, not every sample's share.
        assert float(weights[here].mean() / ring[here].mean()) == pytest.approx(1.0, abs=0.06), k


def test_whole_area_is_shared_out() -> None:
    shape = (24, 24)
    points = spokes(70, 48, shape)
    assert float(density_weights(points, shape).sum()) == pytest.approx(math.pi * 12**2, rel=0.12)


@pytest.mark.parametrize("shape", [(24, 24), (21, 30)])
def test_weighted_adjoint_inverts_full_sampling(shape: tuple[int, int]) -> None:
    """Fᴴ W F is the identity on an image well inside the field of view."""
    points = spokes(2 * max(shape), 2 * max(shape), shape)
    weights = density_weights(points, shape)
    y, x = torch.meshgrid(*[torch.arange(n) / n - 0.5 for n in shape], indexing="ij")
    image = torch.exp(-(y**2 + (x - 0.05) ** 2) / 0.02).to(torch.complex64)
    nufft = Nufft(points, shape)
    error = (nufft.adjoint(weights * nufft.forward(image)) - image).norm() / image.norm()
    assert float(error) < 0.005


def test_engines_agree() -> None:
    points = spokes(11, 40, (20, 17))
    torch.testing.assert_close(
        density_weights(points, (20, 17), "nudft"), density_weights(points, (20, 17), "finufft"), rtol=0.02, atol=1e-3
    )


def test_volumes_too_and_always_positive() -> None:
    """3D radial: a shell's volume 4πk²dk shared by its samples."""
    shape, n = (10, 12, 12), 600
    z = 2 * (torch.arange(n) + 0.5) / n - 1
    turn = torch.arange(n) * math.pi * (3 - math.sqrt(5))
    direction = torch.stack([(1 - z**2).sqrt() * turn.cos(), (1 - z**2).sqrt() * turn.sin(), z], dim=-1)
    radius = torch.arange(12) / 2
    points = (direction[:, None] * radius[:, None] * torch.tensor([1.0, 1.0, 10 / 12])).flatten(0, 1).to(torch.float32)
    weights = density_weights(points, shape)
    assert float(weights.min()) > 0
    shell = (4 * math.pi * radius**2 * 0.5 / n * 10 / 12)[None].expand(n, -1).flatten()
    inside = (shell > shell.unique()[3]) & (shell < shell.unique()[-2])
    y, x = (torch.arange(12) / 12 - 0.5 for _ in range(2))
    z = torch.arange(10) / 10 - 0.5
    image = torch.exp(-(z[:, None, None] ** 2 + y[:, None] ** 2 + x**2) / 0.03).to(torch.complex64)
    nufft = Nufft(points, shape)
    assert float((nufft.adjoint(weights * nufft.forward(image)) - image).norm() / image.norm()) < 0.03
    assert float((weights[inside] / shell[inside]).mean()) == pytest.approx(1.0, abs=0.08)


def test_weights_are_positive_where_readouts_repeat() -> None:
    points = spokes(5, 40, (20, 20))
    once = density_weights(points, (20, 20))
    thrice = density_weights(points.repeat(3, 1), (20, 20))
    assert float(once.min()) > 0
    torch.testing.assert_close(thrice, once.repeat(3) / 3, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 6)])
def test_cartesian_weight_is_one_over_the_visits(shape: tuple[int, ...]) -> None:
    grid = torch.meshgrid(*[torch.arange(n) - n // 2 for n in shape[::-1]], indexing="ij")
    every = torch.stack([g.flatten() for g in grid], dim=1).to(torch.float32)
    visits = torch.randint(1, 4, (every.shape[0],))
    points = every.repeat_interleave(visits, dim=0)
    shuffled = torch.randperm(points.shape[0])
    weights = density_weights(points[shuffled], shape, cartesian=True)
    torch.testing.assert_close(weights, (1.0 / visits.repeat_interleave(visits).float())[shuffled])
    nufft = Nufft(points[shuffled], shape, cartesian=True)
    image = torch.randn(shape, dtype=torch.complex64)
    torch.testing.assert_close(nufft.adjoint(weights * nufft.forward(image)), image, rtol=1e-4, atol=1e-5)
