"""ESPIRiT maps against the toy's true maps."""

from __future__ import annotations

import math
from types import ModuleType

import pytest
import torch
from torch import Tensor

from recon_core.calibration.density import density_weights
from recon_core.calibration.sensitivities import calibration_region, espirit, measured_centre, sensitivities
from recon_core.errors import DataError
from recon_core.operators.nufft import Nufft

GOLDEN = math.pi * (math.sqrt(5) - 1) / 2


def radial_points(shape: tuple[int, int]) -> Tensor:
    n = 2 * max(shape)
    radius = (torch.arange(n) - n // 2) / n
    angle = (torch.arange(n) * GOLDEN)[:, None]
    return torch.stack([radius * angle.cos() * shape[1], radius * angle.sin() * shape[0]], dim=-1).flatten(0, 1).to(torch.float32)


def cartesian_points(shape: tuple[int, int]) -> Tensor:
    x, y = (torch.arange(n) - n // 2 for n in shape[::-1])
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1).to(torch.float32)


def scan(toy: ModuleType, shape: tuple[int, int], cartesian: bool, coils: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Points, samples, weights, true maps and object of a fully sampled static scan."""
    truth, maps = toy.toy_series(1, shape)[0], toy.toy_maps(coils, shape)
    points = cartesian_points(shape) if cartesian else radial_points(shape)
    samples = Nufft(points, shape, "nudft", cartesian=cartesian).forward(maps * truth)
    samples = samples + 0.003 * float(samples.abs().max()) * torch.randn_like(samples)
    return points, samples, density_weights(points, shape, cartesian=cartesian), maps, truth


def agreement(found: Tensor, maps: Tensor) -> Tensor:
    """|⟨found, true⟩| of every pixel, 1 where the directions in coil space agree."""
    return (found.conj() * maps).sum(0).abs()


@pytest.mark.parametrize("cartesian", [False, True])
@pytest.mark.parametrize("shape", [(32, 32), (33, 27), (26, 45), (20, 31)])
def test_maps_agree_with_the_true_ones_inside_the_object(toy: ModuleType, shape: tuple[int, int], cartesian: bool) -> None:
    points, samples, weights, maps, truth = scan(toy, shape, cartesian)
    found, eigenvalues = sensitivities(points, samples, weights, shape, cartesian=cartesian)
    assert found.shape == maps.shape
    assert found.dtype == torch.complex64
    inside = truth.abs() > 0.2
    assert float(agreement(found, maps)[inside].min()) > 0.99
    assert float(eigenvalues[inside].min()) > 0.9


@pytest.mark.parametrize("shape", [(32, 32), (27, 33)])
def test_unit_root_sum_of_squares_and_no_phase_in_the_first_coil(toy: ModuleType, shape: tuple[int, int]) -> None:
    points, samples, weights, _, _ = scan(toy, shape, False)
    found, _ = sensitivities(points, samples, weights, shape)
    torch.testing.assert_close(found.abs().square().sum(0), torch.ones(shape), rtol=0, atol=1e-4)
    assert float(found[0].imag.abs().max()) < 1e-4
    assert float(found[0].real.min()) > -1e-4


def test_eigenvalue_tells_object_from_empty_space(toy: ModuleType) -> None:
    shape = (40, 40)
    points, samples, weights, _, truth = scan(toy, shape, False)
    _, eigenvalues = sensitivities(points, samples, weights, shape)
    corner = torch.zeros(shape, dtype=torch.bool)
    corner[:3, :3] = corner[-3:, -3:] = True
    assert float(eigenvalues[truth.abs() > 0.2].min()) > float(eigenvalues[corner].max())


@pytest.mark.parametrize("shape", [(18, 21), (6, 8, 7)])
def test_a_single_coil_has_no_map(shape: tuple[int, ...]) -> None:
    points = torch.rand(50, len(shape))
    samples = torch.randn(1, 50, dtype=torch.complex64)
    found, eigenvalues = sensitivities(points, samples, torch.ones(50), shape)
    assert torch.equal(found, torch.ones(1, *shape, dtype=torch.complex64))
    assert torch.equal(eigenvalues, torch.ones(shape))


def test_volume(toy: ModuleType) -> None:
    """3D: coils that differ along z too, seen through a fully sampled volume."""
    shape = (10, 18, 16)
    z, y, x = torch.meshgrid(*[torch.arange(n) / n - 0.5 for n in shape], indexing="ij")
    truth = ((z / 0.4) ** 2 + (y / 0.4) ** 2 + (x / 0.35) ** 2 < 1).float() * (1 + 0.5 * torch.cos(9 * x))
    fields = [torch.exp(-((z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2)) for a, b, c in [(0.6, 0, 0), (0, 0.6, 0), (0, 0, 0.6)]]
    maps = torch.stack([f * torch.exp(1j * p * (x + z)) for f, p in zip(fields, (0.0, 1.0, -1.5), strict=True)]).to(torch.complex64)
    maps = maps / maps.abs().square().sum(0).sqrt()
    grid = torch.meshgrid(*[torch.arange(n) - n // 2 for n in shape[::-1]], indexing="ij")
    points = torch.stack([g.flatten() for g in grid], dim=1).to(torch.float32)
    samples = Nufft(points, shape, cartesian=True).forward(maps * truth)
    found, _ = sensitivities(points, samples, torch.ones(points.shape[0]), shape, cartesian=True)
    assert float(agreement(found, maps)[truth > 0.5].min()) > 0.99


def test_calibration_region_is_the_central_k_space(toy: ModuleType) -> None:
    """Radial samples to the grid: the same numbers as the Cartesian samples of the low-resolution image."""
    shape, small = (33, 28), (16, 15)
    points, samples, weights, maps, truth = scan(toy, shape, False, coils=2)
    region = calibration_region(points, samples, weights, small, "auto", False)
    grid = cartesian_points(small)
    expected = Nufft(grid, shape, "nudft").forward(maps * truth).reshape(2, *small)
    centre = (slice(None), slice(3, -3), slice(3, -3))
    error = (region[centre] - expected[centre]).norm() / expected[centre].norm()
    assert float(error) < 0.03


def test_maps_do_not_depend_on_the_data_scale(toy: ModuleType) -> None:
    points, samples, weights, maps, truth = scan(toy, (32, 32), True)
    found, _ = sensitivities(points, 1e4 * samples, weights, (32, 32), cartesian=True)
    assert float(agreement(found, maps)[truth.abs() > 0.2].min()) > 0.99


def test_espirit_of_constant_coils_is_their_ratio() -> None:
    """Coils that differ by constants only: the maps are those constants everywhere."""
    image = torch.randn(16, 16, dtype=torch.complex64)
    spectrum = torch.fft.fftshift(torch.fft.fft2(image), dim=(0, 1))
    gains = torch.tensor([0.6, 0.8j])
    maps, eigenvalues = espirit(gains[:, None, None] * spectrum, (20, 24))
    torch.testing.assert_close(maps, gains[:, None, None].expand(2, 20, 24), rtol=0, atol=1e-3)
    assert float(eigenvalues.max()) == pytest.approx(1.0, abs=1e-3)


def test_cartesian_maps_use_the_centre_without_gaps(toy: ModuleType) -> None:
    """Ten calibration lines, every fourth line beyond: holes in the calibration region would spoil the kernels."""
    shape = (36, 30)
    points, samples, _, maps, truth = scan(toy, shape, cartesian=True)
    line = points[:, 1]
    kept = ((line >= -5) & (line < 5)) | (torch.remainder(line, 4) == 0)
    points, samples = points[kept], samples[:, kept]
    assert measured_centre(points, (24, 24)) == (10, 24)
    assert measured_centre(points[points[:, 1] != -5], (24, 24)) == (9, 24)
    found, _ = sensitivities(points, samples, torch.ones(points.shape[0]), shape, cartesian=True)
    inside = truth.abs() > 0.3 * truth.abs().max()
    assert float(agreement(found, maps)[inside].mean()) > 0.995
    with pytest.raises(DataError, match="0 neighbouring lines about the k-space centre along y"):
        measured_centre(points[points[:, 1] != 0], (24, 24))


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e25, math.nan])
@pytest.mark.parametrize("cartesian", [False, True])
def test_slices_without_usable_signal_are_told(toy: ModuleType, scale: float, cartesian: bool) -> None:
    points, samples, weights, _, _ = scan(toy, (20, 18), cartesian)
    with pytest.raises(DataError, match="samples: magnitudes up to"):
        sensitivities(points, scale * samples, weights, (20, 18), cartesian=cartesian)
