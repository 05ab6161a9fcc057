"""Transforms of any strides against the discrete sum."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from recon_core.operators.fourier import prepared_transform, transform_by_torch


def transform(*given: Any) -> None:
    prepared_transform(*given)()


@pytest.mark.parametrize("transform", [transform, transform_by_torch])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_turned_axes_are_the_exact_sum(transform, inverse: bool, order: tuple[int, int, int]) -> None:
    source = torch.randn(6, 5, 7, dtype=torch.complex64).permute(order)
    target = torch.empty(tuple(reversed(source.shape)), dtype=torch.complex64).permute(2, 1, 0)
    transform(source, target, (1,), inverse)
    n = source.shape[1]
    places = torch.arange(n, dtype=torch.float64)
    matrix = torch.exp((2j if inverse else -2j) * math.pi / n * places[:, None] * places)
    expected = torch.einsum("qp,apb->aqb", matrix, source.to(torch.complex128))
    torch.testing.assert_close(target.to(torch.complex128), expected, rtol=1e-5, atol=1e-5)


def test_several_axes_and_in_place() -> None:
    source = torch.randn(4, 6, 5, dtype=torch.complex64)
    expected = torch.fft.fftn(source, dim=(0, 2))
    transform(source, source, (0, 2))
    torch.testing.assert_close(source, expected)


def test_what_is_prepared_takes_what_the_source_then_holds() -> None:
    source, target = torch.zeros(3, 8, dtype=torch.complex64), torch.empty(3, 8, dtype=torch.complex64)
    work = prepared_transform(source, target, (1,))
    for _ in range(2):
        source.normal_()
        work()
        torch.testing.assert_close(target, torch.fft.fft(source))


def test_a_target_of_another_shape_is_refused() -> None:
    with pytest.raises(RuntimeError):
        transform(torch.zeros(4, 3, dtype=torch.complex64), torch.zeros(3, 4, dtype=torch.complex64), (0,))
