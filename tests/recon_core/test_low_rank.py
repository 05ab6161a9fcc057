"""The locally low-rank proximal map against an SVD."""

from __future__ import annotations

import pytest
import torch

from recon_core.operators.low_rank import LocallyLowRank


@pytest.mark.parametrize(("shape", "block"), [((5, 13, 18), 4), ((3, 9, 7), 8), ((4, 6, 5, 9), 3)])
def test_blocks_come_back_in_their_places(shape: tuple[int, ...], block: int) -> None:
    """Without a threshold the map is the identity, wherever the grid of blocks lies."""
    prox = LocallyLowRank(shape, block)
    bases = torch.randn(shape, dtype=torch.complex64)
    for _ in range(5):
        torch.testing.assert_close(prox(bases, 0.0, 0.0), bases, rtol=1e-4, atol=1e-5)


def test_singular_values_are_shrunk() -> None:
    """One block that is the whole image: σ (1 − (τ/σ)²) by an SVD, imaginary parts by their own threshold."""
    bases = torch.randn(3, 6, 5, dtype=torch.complex64)
    prox = LocallyLowRank(bases.shape, 100)
    expected = []
    for part, limit in ((bases.real, 3.0), (bases.imag, 5.0)):
        u, values, v = torch.linalg.svd(part.flatten(1).T, full_matrices=False)
        kept = values * (1 - (limit / values) ** 2).clamp_min(0)
        expected.append((u * kept @ v).T.reshape(bases.shape))
    # Only an unshifted grid holds the image in one block: one call in thirty.
    for _ in range(400):
        result = prox(bases, 3.0, 5.0)
        if torch.allclose(result, torch.complex(*expected), rtol=1e-3, atol=1e-4):
            return
    raise AssertionError("no grid of blocks held the whole image")


def test_strong_threshold_leaves_nothing() -> None:
    bases = torch.randn(4, 9, 8, dtype=torch.complex64)
    assert not LocallyLowRank(bases.shape, 4)(bases, 1e6, 1e6).any()


@pytest.mark.parametrize("threads", [1, 3])
def test_blocks_do_not_depend_on_threads(threads: int) -> None:
    bases = torch.randn(3, 21, 18, dtype=torch.complex64)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        result = LocallyLowRank(bases.shape, 4)(bases, 2.0, 3.0)
        torch.set_num_threads(2)
        assert torch.equal(LocallyLowRank(bases.shape, 4)(bases, 2.0, 3.0), result)
    finally:
        torch.set_num_threads(before)
