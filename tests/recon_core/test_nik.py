"""NIK: k-space at the readouts' own times, images through the coil maps, and scans it does not suit."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from recon_core.calibration import calibrate
from recon_core.errors import DataError
from recon_core.fields.kspace import KSpaceField, Sine
from recon_core.losses import high_dynamic_range
from recon_core.operators.nufft import Nufft
from recon_core.problem import KSpaceProblem
from recon_core.solvers.nik import SELECTED_BANDWIDTHS, Nik, NikSettings

SMALL: dict[str, Any] = {
    "steps": 6,
    "features": 20,
    "temporal_features": 6,
    "width": 12,
    "depth": 2,
    "temporal_bandwidth": 0.02,
    "batch_frames": 4,
}


def solver(problem: KSpaceProblem, **changes: Any) -> Nik:
    made = Nik(NikSettings(**{**SMALL, **changes}), engine="finufft")
    made.start(problem)
    return made


@pytest.fixture(scope="module")
def scan(toy: ModuleType) -> KSpaceProblem:
    return calibrate(toy.toy_problem(n_frames=8, shape=(22, 18), coils=2, per_frame=5, noise=0.01)[0], 2)[0]


def test_every_sample_has_its_place_and_its_readouts_time(scan: KSpaceProblem) -> None:
    mask = torch.ones(scan.trajectory.shape[:2], dtype=torch.bool)
    mask[7, 5] = False
    made = solver(scan.replace(mask=mask))
    assert [len(part) for part in made.coordinates] == [5 * 44, 5 * 44 - 1, *[5 * 44] * 6]
    # Readout 12, the third of frame 2, five readouts to a frame; a frame's time is that of its third readout.
    rows = made.coordinates[2][2 * 44 : 3 * 44]
    torch.testing.assert_close(rows[:, :2], scan.trajectory[12])
    torch.testing.assert_close(rows[:, 2], torch.full((44,), 2.0), rtol=0, atol=1e-5)
    torch.testing.assert_close(made.coordinates[2][:44, 2], torch.full((44,), 2.0 - 2 / 5), rtol=0, atol=1e-5)


def test_cost_is_the_hdr_loss_of_scaled_samples(scan: KSpaceProblem) -> None:
    made = solver(scan, hdr_epsilon=0.3)
    measured = torch.cat([scan.samples[:, scan.frames[t]].flatten(1) for t in (1, 5)], dim=1)
    measured = measured / scan.samples.abs().max()
    predicted = made.field(torch.cat([made.coordinates[1], made.coordinates[5]])) * torch.cat([made.envelopes[1], made.envelopes[5]])
    expected = float(high_dynamic_range(predicted - measured, predicted, 0.3).detach())
    assert made._backward([1, 5]) == pytest.approx(expected, rel=1e-4)


def test_images_are_the_coil_combined_inverse_transform(scan: KSpaceProblem) -> None:
    """A field that knows the samples of a static object gives that object's low-passed image."""
    made = solver(scan)
    y, x = torch.meshgrid(torch.arange(22) / 22 - 0.5, torch.arange(18) / 18 - 0.5, indexing="ij")
    truth = torch.exp(-((y - 0.1) ** 2 + x**2) / 0.03) * torch.exp(1j * x)
    coils = scan.sensitivities * truth

    class Known(torch.nn.Module):
        def forward(self, coordinates: torch.Tensor) -> torch.Tensor:
            return Nufft(coordinates[:, :2].contiguous(), (22, 18), "nudft").forward(coils) / made._envelope(coordinates)

    made.field = Known()
    image = made.images().images[3] * made.frames.peak**-1
    error = (image - truth * made.frames.scale)[4:-4, 4:-4].abs().max() / made.frames.scale
    assert float(error) < 0.05


def test_nothing_is_made_up_beyond_the_sampled_disc(scan: KSpaceProblem) -> None:
    made = solver(scan)
    size = torch.tensor([18.0, 22.0])
    assert float((made.grid / size).norm(dim=1).max()) <= 0.5 + 1e-6
    assert 0.7 < len(made.grid) / (22 * 18) < 0.8


def test_first_sine_layer_and_its_start() -> None:
    first, hidden = Sine(40, 50, 30.0, True), Sine(50, 60, 30.0, False)
    assert float(first.linear.weight.detach().abs().max()) <= 1 / 40
    assert float(hidden.linear.weight.detach().abs().max()) <= (6 / 50) ** 0.5 / 30
    x = torch.randn(3, 40)
    torch.testing.assert_close(first(x), torch.sin(30 * torch.nn.functional.linear(x, first.linear.weight, first.linear.bias)))


def test_field_gives_all_coils() -> None:
    made = KSpaceField((0.2, 0.2), 0.1, (16, 4), 10, 2, 10.0, coils=3, seed=1)
    signal = made(torch.randn(7, 3))
    assert (signal.dtype, signal.shape) == (torch.complex64, (3, 7))
    # Without features of t that change, nothing moves.
    still = KSpaceField((0.2, 0.2), 0.0, (16, 4), 10, 2, 10.0, coils=3, seed=1)
    k = torch.randn(7, 2)
    early, late = (still(torch.cat([k, torch.full((7, 1), t)], dim=1)) for t in (0.0, 9.0))
    assert torch.equal(early, late)


def test_the_envelope_is_the_mean_magnitude_on_a_ring(scan: KSpaceProblem) -> None:
    """Samples whose magnitude depends on the distance alone are of order one after division, but within a ring of the centre."""
    radius = scan.trajectory.norm(dim=-1)
    fall = torch.exp(-radius / 6)
    turns = torch.exp(2j * torch.pi * torch.rand(scan.samples.shape, generator=torch.Generator().manual_seed(3)))
    made = solver(scan.replace(samples=(fall * turns).to(torch.complex64)))
    for points, envelope, target in zip(made.coordinates, made.envelopes, made.frames.targets, strict=True):
        away = points[:, :2].norm(dim=1) > 2
        ratio = target.abs() / made.frames.peak / envelope
        assert float((ratio[:, away] - 1).abs().max()) < 0.15


def test_cartesian_and_3d_scans_are_refused(scan: KSpaceProblem) -> None:
    Nik.suits(scan)
    with pytest.raises(DataError, match="Send radial or spiral readouts"):
        Nik.suits(scan.replace(cartesian=True))
    flat = torch.zeros(*scan.trajectory.shape[:2], 1)
    with pytest.raises(DataError, match="the scan has 3"):
        Nik.suits(scan.replace(trajectory=torch.cat([scan.trajectory, flat], dim=2), shape=(2, 22, 18), sensitivities=None))


def test_candidates() -> None:
    assert [c.temporal_bandwidth for c in Nik.candidates(NikSettings(), None)] == list(SELECTED_BANDWIDTHS)
