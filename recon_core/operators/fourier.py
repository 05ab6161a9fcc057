"""Fourier transforms that read and write any strides: turned axes cost no copy of their own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import ducc0.fft
import torch
from torch import Tensor


def prepared_transform(source: Tensor, target: Tensor, axes: Sequence[int], inverse: bool = False) -> Callable[[], object]:
    """What writes the FFT of ``source`` along ``axes`` to ``target``, neither direction scaled; on a CPU on the calling thread alone.

    torch's own writes the last axis innermost and leaves the order of ``target`` to a copy, which takes longer than the transform. It is
    prepared once for a room that is filled again and again: while one thread is in Python the others wait.

    Args:
        source: complex64 of any strides.
        target: of the same shape, any strides; may be ``source``.
        axes: axes to transform, 0 first.
        inverse: the exponent's sign is positive.
    """
    if source.device.type == "cpu":
        there = target.numpy()
        return functools.partial(ducc0.fft.c2c, source.detach().numpy(), axes=tuple(axes), forward=not inverse, out=there, nthreads=1)
    return functools.partial(transform_by_torch, source, target, axes, inverse)


def transform_by_torch(source: Tensor, target: Tensor, axes: Sequence[int], inverse: bool = False) -> None:
    """The same where torch's transforms are the fast ones: on a GPU."""
    if inverse:
        target.copy_(torch.fft.ifftn(source, dim=tuple(axes), norm="forward"))
    else:
        target.copy_(torch.fft.fftn(source, dim=tuple(axes)))
