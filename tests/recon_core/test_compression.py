"""SVD coil compression keeps the energy there is and keeps white noise white."""

from __future__ import annotations

import torch

from recon_core.calibration.compression import compress, compression_matrix


def rank_two_scan(noise: float) -> torch.Tensor:
    """Eight coils that see two independent signals."""
    signals = torch.randn(2, 30, 40, dtype=torch.complex64) * torch.tensor([10.0, 3.0])[:, None, None]
    mix = torch.randn(8, 2, dtype=torch.complex64)
    return torch.einsum("cs,srk->crk", mix, signals) + noise * torch.randn(8, 30, 40, dtype=torch.complex64)


def test_two_virtual_coils_hold_a_rank_two_scan() -> None:
    samples = rank_two_scan(0.0)
    matrix = compression_matrix(samples, 2)
    assert matrix.shape == (2, 8)
    kept = compress(samples, matrix)
    assert kept.shape == (2, 30, 40)
    torch.testing.assert_close(kept.abs().square().sum(), samples.abs().square().sum(), rtol=1e-4, atol=0)
    restored = torch.einsum("vc,vrk->crk", matrix.conj(), kept)
    assert float((restored - samples).norm() / samples.norm()) < 1e-4


def test_energy_falls_from_coil_to_coil_and_no_other_choice_holds_more() -> None:
    samples = rank_two_scan(1.0)
    energies = compress(samples, compression_matrix(samples, 8)).abs().square().flatten(1).sum(1)
    assert bool((energies[:-1] >= energies[1:]).all())
    best = compress(samples, compression_matrix(samples, 3)).norm()
    for _ in range(20):
        other, _ = torch.linalg.qr(torch.randn(8, 3, dtype=torch.complex64))
        assert float(compress(samples, other.conj().T).norm()) < float(best)


def test_rows_are_orthonormal_so_that_white_noise_stays_white() -> None:
    matrix = compression_matrix(rank_two_scan(0.5), 4)
    torch.testing.assert_close(matrix @ matrix.conj().T, torch.eye(4, dtype=torch.complex64), rtol=0, atol=1e-5)
    white = compress(torch.randn(8, 20_000, dtype=torch.complex64), matrix)
    covariance = white @ white.conj().T / 20_000
    torch.testing.assert_close(covariance, torch.eye(4, dtype=torch.complex64), rtol=0, atol=0.05)


def test_more_virtual_coils_than_coils_keeps_them_all() -> None:
    samples = rank_two_scan(1.0)
    matrix = compression_matrix(samples, 32)
    assert matrix.shape == (8, 8)
    torch.testing.assert_close(compress(samples, matrix).norm(), samples.norm(), rtol=1e-4, atol=0)
