"""INMR's field: the split first layer is the concatenation of the paper; levels, latents and seeds."""

from __future__ import annotations

import pytest
import torch

from recon_core.encodings.hash_grid import HashGridLayout
from recon_core.fields.manifold import ENCODINGS, ManifoldField

LAYOUT = HashGridLayout(2, levels=4, features=2, log2_table=9, base=4, growth=1.6)


def field(seed: int = 0, depth: int = 2) -> ManifoldField:
    made = ManifoldField(LAYOUT, latent=3, mapped=5, width=12, depth=depth, seed=seed)
    made.encoding.params.data.uniform_(-1, 1, generator=torch.Generator().manual_seed(seed))
    return made


def test_split_layer_is_the_concatenation() -> None:
    """W [h(x); g(z)] of one layer on the concatenated features."""
    made = field()
    x, z = torch.rand(7, 2), torch.randn(3, 3)
    plan = made.encoding.plan(x)
    features = made.encoding(plan)
    mapped = made.mapping(z)
    joined = torch.cat([features.expand(3, -1, -1), mapped[:, None].expand(-1, 7, -1)], dim=-1)
    weight = torch.cat([made.spatial.weight, made.temporal.weight], dim=1)
    hidden = torch.nn.functional.linear(joined, weight, made.spatial.bias)
    expected = made.joint(hidden)
    signal = made(plan, z)
    assert signal.dtype == torch.complex64
    assert signal.shape == (3, 7)
    torch.testing.assert_close(signal, torch.complex(expected[..., 0], expected[..., 1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_depth_counts_hidden_layers(depth: int) -> None:
    made = field(depth=depth)
    linear = [m for m in made.joint if isinstance(m, torch.nn.Linear)]
    # The split layer is the first of them.
    assert len(linear) == depth
    assert linear[-1].out_features == 2


def test_frames_differ_by_their_latents_only() -> None:
    made = field()
    plan = made.encoding.plan(torch.rand(9, 2))
    z = torch.randn(2, 3)
    signal = made(plan, torch.stack([z[0], z[1], z[0]]))
    torch.testing.assert_close(signal[0], signal[2], rtol=0, atol=1e-6)
    assert float((signal[0] - signal[1]).detach().abs().max()) > 1e-3
    torch.testing.assert_close(made(plan, z[1:])[0], signal[1])


def test_levels_switched_off_do_not_matter() -> None:
    made = field()
    plan = made.encoding.plan(torch.rand(9, 2))
    z = torch.randn(1, 3)
    before = made(plan, z, 2).detach()
    made.encoding.params.data[LAYOUT.offsets()[2] :] += 3
    torch.testing.assert_close(made(plan, z, 2).detach(), before, rtol=0, atol=0)
    assert float((made(plan, z).detach() - before).abs().max()) > 1e-3


def test_seed_fixes_every_weight_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one = ManifoldField(LAYOUT, 3, 5, 12, 2, seed=1)
    assert torch.equal(torch.rand(1), expected)
    same, other = ManifoldField(LAYOUT, 3, 5, 12, 2, seed=1), ManifoldField(LAYOUT, 3, 5, 12, 2, seed=2)
    for name, weights in one.state_dict().items():
        assert torch.equal(weights, same.state_dict()[name])
        assert not torch.equal(weights, other.state_dict()[name]), name


def test_gradients_reach_weights_latents_and_table() -> None:
    made = field()
    z = torch.randn(2, 3, requires_grad=True)
    made(made.encoding.plan(torch.rand(30, 2)), z).abs().square().sum().backward()
    assert float(z.grad.abs().min()) > 0
    for name, weights in made.named_parameters():
        assert float(weights.grad.abs().max()) > 0, name


def test_encodings_by_name() -> None:
    assert set(ENCODINGS) == {"torch", "tinycudann"}
