"""FMLP: its split first layer, its bandwidths, its candidates."""

from __future__ import annotations

from types import ModuleType

import torch

from recon_core.calibration import calibrate
from recon_core.fields.fourier import FourierField
from recon_core.solvers.fmlp import SELECTED_BANDWIDTHS, Fmlp, FmlpSettings


def test_split_layer_is_the_concatenation() -> None:
    field = FourierField((5.0, 5.0), 0.1, (12, 6), 10, 2, seed=3)
    points, times = torch.rand(7, 2), torch.tensor([0.0, 4.5])
    spatial = field.space(points)
    joined = torch.cat([spatial.expand(2, -1, -1), field.time(times[:, None])[:, None].expand(-1, 7, -1)], dim=2)
    weight = torch.cat([field.spatial.weight, field.temporal.weight], dim=1)
    expected = field.joint(torch.nn.functional.linear(joined, weight, field.spatial.bias))
    found = field(spatial, times)
    assert (found.dtype, found.shape) == (torch.complex64, (2, 7))
    torch.testing.assert_close(torch.view_as_real(found), expected, rtol=1e-4, atol=1e-5)


def test_hidden_layers_are_normalised_without_parameters() -> None:
    field = FourierField((5.0, 5.0), 0.1, (12, 6), 10, 4, seed=3)
    names = {name.split(".")[0] for name, _ in field.named_parameters()}
    assert names == {"spatial", "temporal", "joint"}
    norms = [layer for layer in field.joint if isinstance(layer, torch.nn.LayerNorm)]
    assert len(norms) == 4
    assert not any(list(norm.parameters()) for norm in norms)


def test_without_temporal_bandwidth_nothing_moves(toy: ModuleType) -> None:
    """The bandwidth is the prior along time: none leaves one image for all frames."""
    problem = calibrate(toy.toy_problem(n_frames=6, shape=(12, 10), coils=2)[0], 2)[0]
    change = []
    for bandwidth in (0.0, 0.02):
        solver = Fmlp(
            FmlpSettings(steps=8, batch_frames=3, spatial_features=24, temporal_features=8, width=16, depth=2, temporal_bandwidth=bandwidth)
        )
        solver.start(problem)
        while not solver.done:
            solver.update()
        images = solver.images().images
        change.append(float((images - images.mean(0)).norm() / images.norm()))
    assert change[0] < 1e-6
    assert change[1] > 1e-4


def test_candidates() -> None:
    assert [c.temporal_bandwidth for c in Fmlp.candidates(FmlpSettings(), None)] == list(SELECTED_BANDWIDTHS)
    given = FmlpSettings(temporal_bandwidth=0.1)
    assert Fmlp.candidates(given, None) == [given]
