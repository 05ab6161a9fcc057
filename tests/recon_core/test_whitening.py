"""Noise whitening: unit variance, no correlation, and what a broken noise scan is told."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from recon_core.calibration.whitening import noise_covariance, whiten, whitening_matrix
from recon_core.errors import DataError


def mixing(coils: int) -> Tensor:
    gains = torch.logspace(-3, 2, coils)
    return gains[:, None] * (torch.eye(coils, dtype=torch.complex64) + 0.5 * torch.randn(coils, coils, dtype=torch.complex64))


def test_whitened_noise_has_identity_covariance() -> None:
    mix = mixing(6)
    noise = mix @ torch.randn(6, 20_000, dtype=torch.complex64)
    matrix = whitening_matrix(noise)
    assert matrix.dtype == torch.complex64
    torch.testing.assert_close(noise_covariance(whiten(noise, matrix)), torch.eye(6, dtype=torch.complex64), rtol=0, atol=1e-3)
    fresh = whiten(mix @ torch.randn(6, 20_000, dtype=torch.complex64), matrix)
    variance = fresh.abs().square().mean(1)
    torch.testing.assert_close(variance, torch.ones(6), rtol=0, atol=0.05)
    covariance = fresh @ fresh.conj().T / 20_000
    assert float((covariance - torch.diag(covariance.diagonal())).abs().max()) < 0.05


def test_covariance_of_known_noise() -> None:
    """E[n nᴴ], not its conjugate: coil 1 is i times coil 0."""
    base = torch.randn(50_000, dtype=torch.complex64)
    noise = torch.stack([base, 1j * base + 0.1 * torch.randn(50_000, dtype=torch.complex64)])
    covariance = noise_covariance(noise)
    assert float(covariance[1, 0].imag) == pytest.approx(1.0, abs=0.02)
    assert float(covariance[0, 1].imag) == pytest.approx(-1.0, abs=0.02)
    assert float(covariance[1, 1].real) == pytest.approx(1.01, abs=0.02)


def test_constant_offset_is_no_noise() -> None:
    noise = torch.randn(3, 5000, dtype=torch.complex64)
    torch.testing.assert_close(noise_covariance(noise + 7.0), noise_covariance(noise), rtol=1e-3, atol=1e-4)


def test_whiten_keeps_the_axes_behind_the_coils() -> None:
    matrix = mixing(3)
    samples = torch.randn(3, 4, 5, dtype=torch.complex64)
    torch.testing.assert_close(whiten(samples, matrix), torch.einsum("ab,brs->ars", matrix, samples))


def test_a_dead_channel_is_named() -> None:
    noise = torch.randn(4, 1000, dtype=torch.complex64)
    noise[2] = 0
    with pytest.raises(DataError, match="channel 2") as error:
        whitening_matrix(noise)
    assert error.value.field == "noise covariance"
    assert "dead" in error.value.cure


def test_a_duplicated_channel_is_refused() -> None:
    noise = torch.randn(3, 1000, dtype=torch.complex64)
    noise[2] = noise[0]
    with pytest.raises(DataError, match="singular"):
        whitening_matrix(noise)


def test_too_few_and_broken_samples() -> None:
    with pytest.raises(DataError, match="7 samples for 4 coils"):
        whitening_matrix(torch.randn(4, 7, dtype=torch.complex64))
    noise = torch.randn(2, 100, dtype=torch.complex64)
    noise[1, 50] = complex(float("nan"), 0)
    with pytest.raises(DataError, match="NaN or Inf"):
        whitening_matrix(noise)
