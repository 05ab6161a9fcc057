"""Calibration as a whole: compression, weights and maps from the scan's own readouts."""

from __future__ import annotations

from types import ModuleType

import torch

from recon_core.calibration import calibrate
from recon_core.calibration.calibrate import with_density
from recon_core.calibration.density import density_weights
from recon_core.operators.frames import FrameEncoding


def test_calibrated_problem_explains_its_data(toy: ModuleType) -> None:
    """With the estimated maps, the sum-of-squares-scaled truth predicts the compressed samples."""
    problem, truth = toy.toy_problem(n_frames=24, shape=(30, 26), coils=4, per_frame=3, noise=0.002)
    calibrated, calibration = calibrate(problem, 4)
    assert calibrated.sensitivities.shape == (4, 30, 26)
    torch.testing.assert_close(calibrated.sensitivities.abs().square().sum(0), torch.ones(30, 26), rtol=0, atol=1e-4)
    true_virtual = torch.einsum("vc,cyx->vyx", calibration.compression, toy.toy_maps(4, (30, 26)))
    inside = truth.abs().mean(0) > 0.2
    agreement = (calibrated.sensitivities.conj() * true_virtual).sum(0).abs()
    assert float(agreement[inside].min()) > 0.98
    # The maps leave one phase a pixel free: give it to the truth, then predict.
    phase = (calibrated.sensitivities.conj() * true_virtual).sum(0)
    encoding = FrameEncoding(calibrated)
    predicted = torch.cat([encoding.forward(truth[t] * phase, t) for t in range(24)], dim=1)
    measured = torch.cat([f.samples for f in encoding.frames], dim=1)
    assert float((predicted - measured).norm() / measured.norm()) < 0.05


def test_compression_reduces_coils_and_can_be_applied_to_others(toy: ModuleType) -> None:
    problem, _ = toy.toy_problem(n_frames=12, shape=(24, 20), coils=6, per_frame=3)
    calibrated, calibration = calibrate(problem, 3)
    assert calibrated.n_coils == 3
    assert calibration.compression.shape == (3, 6)
    applied = calibration.apply(problem)
    assert torch.equal(applied.samples, calibrated.samples)
    assert torch.equal(applied.sensitivities, calibrated.sensitivities)
    assert applied.weights is None
    assert float(calibrated.samples.norm()) > 0.98 * float(problem.samples.norm())


def test_weights_cover_the_mask_only(toy: ModuleType) -> None:
    problem, _ = toy.toy_problem(n_frames=6, shape=(16, 20), coils=2, per_frame=3)
    mask = torch.rand(problem.trajectory.shape[:2]) > 0.4
    weighted = with_density(problem.replace(mask=mask))
    assert float(weighted.weights[~mask].abs().max()) == 0
    expected = density_weights(problem.trajectory[mask], problem.shape)
    torch.testing.assert_close(weighted.weights[mask], expected)


def test_weights_given_are_kept(toy: ModuleType) -> None:
    problem, _ = toy.toy_problem(n_frames=4, shape=(16, 20), coils=2, per_frame=2)
    given = torch.rand(problem.trajectory.shape[:2])
    assert torch.equal(with_density(problem.replace(weights=given)).weights, given)
    assert torch.equal(calibrate(problem.replace(weights=given), 2)[0].weights, given)


def test_masked_samples_reach_nothing(toy: ModuleType) -> None:
    problem, _ = toy.toy_problem(n_frames=10, shape=(18, 20), coils=3, per_frame=3)
    mask = torch.rand(problem.trajectory.shape[:2]) > 0.2
    clean, first = calibrate(problem.replace(mask=mask), 2)
    broken = torch.where(mask, problem.samples, 1e5 * torch.randn_like(problem.samples))
    _, second = calibrate(problem.replace(mask=mask, samples=broken), 2)
    assert torch.equal(first.compression, second.compression)
    assert torch.equal(first.sensitivities, second.sensitivities)
    assert clean.weights is not None
