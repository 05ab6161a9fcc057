"""Off-resonance phase as a few products."""

import numpy as np
import pytest
import torch

from recon_core.errors import DataError
from recon_core.time_segments import segment_basis

TIMES = torch.arange(0, 2.5e-3, 4e-6, dtype=torch.float64)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-3, 1e-4])
def test_products_reach_the_accuracy_asked_for(tolerance):
    basis = segment_basis(TIMES, 400.0, tolerance)
    frequency = torch.from_numpy(np.random.default_rng(0).uniform(-400, 400, (31, 17))).float()
    exact = torch.exp(2j * torch.pi * TIMES[:, None, None] * frequency.double())
    made = torch.einsum("ls,lyx->syx", basis.in_time, basis.in_space(frequency))
    error = (made - exact).abs().square().mean().sqrt()
    assert float(error) < 1.5 * tolerance
    # Fewer products would not do: the number is not merely generous.
    assert 3 <= basis.n_segments <= 9


def test_more_accuracy_or_a_wider_band_takes_more_segments():
    few, more, wide = (segment_basis(TIMES, f, tol).n_segments for f, tol in ((400.0, 1e-2), (400.0, 1e-5), (1600.0, 1e-2)))
    assert few < more
    assert few < wide


def test_frequencies_at_and_beyond_the_ends():
    basis = segment_basis(TIMES, 400.0, 1e-4)
    ends = torch.tensor([-400.0, 400.0])
    exact = torch.exp(2j * torch.pi * TIMES[:, None] * ends.double())
    assert float((torch.einsum("ls,lf->sf", basis.in_time, basis.in_space(ends)) - exact).abs().max()) < 2e-3
    with pytest.raises(DataError, match="401 Hz"):
        basis.in_space(torch.tensor([401.0]))
    with pytest.raises(DataError, match="nan Hz"):
        basis.in_space(torch.tensor([float("nan")]))


def test_what_cannot_be():
    with pytest.raises(DataError, match="0 Hz"):
        segment_basis(TIMES, 0.0, 1e-3)
    with pytest.raises(DataError, match="sample times"):
        segment_basis(torch.tensor([0.0, float("inf")], dtype=torch.float64), 100.0, 1e-3)
