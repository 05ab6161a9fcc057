"""Fixed trigonometric features."""

from __future__ import annotations

import math

import torch

from recon_core.encodings.fourier import FourierFeatures, octaves


def test_octaves_are_sines_and_cosines_of_doubling_frequencies() -> None:
    found = octaves(torch.tensor([[0.25, 0.1]]), 3)
    assert found.shape == (1, 12)
    expected = [f(math.pi * 2**i * x) for f in (math.sin, math.cos) for x in (0.25, 0.1) for i in range(3)]
    torch.testing.assert_close(found[0], torch.tensor(expected), rtol=0, atol=1e-6)
    assert octaves(torch.rand(4, 2), 0).shape == (4, 0)


def test_random_features() -> None:
    features = FourierFeatures((2.0, 0.0, 5.0), 4001, seed=1)
    assert features.out_dim == 4000
    torch.testing.assert_close(features.frequencies.std(1), torch.tensor([2.0, 0.0, 5.0]), rtol=0.05, atol=1e-6)
    point = torch.rand(3, 3)
    angles = 2 * math.pi * point @ features.frequencies
    torch.testing.assert_close(features(point), torch.cat([angles.sin(), angles.cos()], dim=1))
    assert torch.equal(FourierFeatures((1.0,), 8, seed=1).frequencies, FourierFeatures((1.0,), 8, seed=1).frequencies)
    assert not torch.equal(FourierFeatures((1.0,), 8, seed=1).frequencies, FourierFeatures((1.0,), 8, seed=2).frequencies)
