"""Misfits and penalties against their formulas, gradients included."""

from __future__ import annotations

import pytest
import torch

from recon_core.losses import high_dynamic_range, relative_l2, smooth_nuclear_norm, temporal_variation


def test_relative_l2_is_the_papers_sum_over_both_parts() -> None:
    residual, predicted = torch.randn(2, 3, 5, dtype=torch.complex64)
    expected = 0.0
    for r, p in ((residual.real, predicted.real), (residual.imag, predicted.imag)):
        expected += float((r**2 / (p**2 + 0.3)).mean())
    assert float(relative_l2(residual, predicted, 0.3)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", [relative_l2, high_dynamic_range])
def test_the_denominator_is_a_constant(loss) -> None:
    """The gradient is that of the weighted squares, as if the prediction below were another."""
    measured = torch.randn(7, dtype=torch.complex64)
    predicted = torch.randn(7, dtype=torch.complex64, requires_grad=True)
    loss(predicted - measured, predicted, 0.2).backward()
    fixed = predicted.detach().clone()
    again = fixed.clone().requires_grad_(True)
    loss(again - measured, fixed, 0.2).backward()
    torch.testing.assert_close(predicted.grad, again.grad)


def test_high_dynamic_range_weighs_by_what_is_predicted() -> None:
    residual, predicted = torch.tensor([1.0 + 0j, 1j]), torch.tensor([3.0 + 4j, 0.0])
    assert float(high_dynamic_range(residual, predicted, 0.5)) == pytest.approx((1 / 5.5**2 + 1 / 0.5**2) / 2)


def test_temporal_variation() -> None:
    images = torch.tensor([[0.0, 0.0], [3 + 4j, 0.0], [3 + 4j, 1.0]], dtype=torch.complex64)
    assert float(temporal_variation(images)) == pytest.approx((5 + 0 + 0 + 1) / 4)
    assert float(temporal_variation(images[:1])) == 0


def test_nuclear_norm_of_known_singular_values() -> None:
    left = torch.linalg.qr(torch.randn(4, 4, dtype=torch.complex128))[0]
    right = torch.linalg.qr(torch.randn(15, 4, dtype=torch.complex128))[0]
    values = torch.tensor([3.0, 1.0, 0.2, 0.0], dtype=torch.complex128)
    series = (left * values) @ right.conj().T
    assert float(smooth_nuclear_norm(series.reshape(4, 3, 5), 1e-7)) == pytest.approx(4.2, rel=1e-6)
    rounded = sum((v**2 + 0.25) ** 0.5 - 0.5 for v in (3.0, 1.0, 0.2, 0.0))
    assert float(smooth_nuclear_norm(series, 0.5)) == pytest.approx(rounded, rel=1e-9)


def test_gradient_of_the_nuclear_norm() -> None:
    """Against finite differences, at a matrix of deficient rank as well."""
    series = torch.randn(3, 7, dtype=torch.complex128)
    torch.autograd.gradcheck(lambda x: smooth_nuclear_norm(x, 0.3), series.requires_grad_(True))
    flat = torch.ones(3, 1, dtype=torch.complex128) @ torch.randn(1, 7, dtype=torch.complex128)
    torch.autograd.gradcheck(lambda x: smooth_nuclear_norm(x, 0.3), flat.requires_grad_(True))
