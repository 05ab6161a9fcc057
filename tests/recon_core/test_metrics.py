"""Scores: what they ignore, what they measure."""

import numpy as np
import pytest

from recon_core.errors import DataError
from recon_core.metrics import align, dynamic_error, moving_region, psnr_db, score, ssim


@pytest.fixture
def truth():
    y, x = np.mgrid[-1:1:24j, -1:1:30j]
    radius = 0.5 + 0.15 * np.sin(np.linspace(0, 6, 12))
    disc = 1 / (1 + np.exp((np.hypot(x, y)[None] - radius[:, None, None]) / 0.05))
    texture = 1 + 0.3 * np.sin(9 * x) * np.cos(7 * y)
    return (disc * texture * np.exp(1j * (0.5 * x - y**2))).astype(np.complex64)


@pytest.fixture
def noisy(truth):
    rng = np.random.default_rng(2)
    return truth + 0.03 * (rng.standard_normal(truth.shape) + 1j * rng.standard_normal(truth.shape)).astype(np.complex64)


def test_a_smooth_phase_of_the_maps_and_a_scale_change_nothing(truth, noisy):
    y, x = np.mgrid[-1:1:24j, -1:1:30j]
    moving = moving_region(truth)
    phase = np.exp(1j * (2 * x + 1.5 * y * x + 0.7))
    plain, turned = score(noisy, truth, moving), score(7.3 * phase * noisy, truth, moving)
    for name in ("psnr_db", "psnr_sd_db", "ssim", "dynamic_error", "time_average_psnr_db"):
        assert turned[name] == pytest.approx(plain[name], rel=1e-6)
    # The true maps times a smooth phase turn the truth instead; that changes nothing either.
    other = score(noisy, phase * truth, moving)
    assert other["psnr_db"] == pytest.approx(plain["psnr_db"], rel=1e-6)


def test_a_phase_that_changes_in_time_is_an_error(truth):
    wobble = np.exp(1j * np.linspace(-1, 1, len(truth)))[:, None, None]
    assert score(truth * wobble, truth, moving_region(truth))["psnr_db"] < 25


def test_psnr_is_peak_over_error(truth):
    off = truth + 0.05 * np.exp(1j * np.angle(truth))
    peak = np.abs(truth).max()
    np.testing.assert_allclose(psnr_db(off, truth), 20 * np.log10(peak / 0.05), rtol=1e-4)


def test_the_scale_is_real_and_least_squares(truth, noisy):
    recon, reference = align(noisy, truth)
    best = np.linalg.norm(recon - reference)
    assert best < np.linalg.norm(1.001 * recon - reference)
    assert best < np.linalg.norm(0.999 * recon - reference)


def test_the_time_average_has_a_dynamic_error_of_one(truth):
    static = np.broadcast_to(truth.mean(axis=0), truth.shape)
    result = score(static, truth, moving_region(truth))
    assert result["dynamic_error"] == pytest.approx(1.0, abs=1e-6)
    assert result["psnr_db"] == pytest.approx(result["time_average_psnr_db"], abs=0.1)
    half = static + 0.5 * (truth - static)
    assert dynamic_error(half, truth, moving_region(truth)) == pytest.approx(0.5, abs=1e-6)


def test_the_perfect_series_scores_perfectly(truth):
    result = score(truth, truth, moving_region(truth))
    assert result["ssim"] == pytest.approx(1.0)
    assert result["dynamic_error"] < 1e-6
    assert result["psnr_db"] > 100
    assert result["frames"] == 12
    assert result["form"] == "complex"


def test_magnitudes_are_scored_as_magnitudes(truth, noisy):
    moving = moving_region(truth)
    result = score(np.abs(noisy) * 40, truth, moving)
    assert result["form"] == "magnitude"
    same = score(np.round(np.abs(truth) * 1000).astype(np.uint16), truth, moving)
    assert same["psnr_db"] > 60
    magnitude = np.abs(truth)
    static = psnr_db(np.broadcast_to(magnitude.mean(0), magnitude.shape), magnitude).mean()
    assert same["time_average_psnr_db"] == pytest.approx(static, abs=1e-5)


def test_ssim_falls_with_blur_and_works_on_small_images(truth):
    blurred = (truth + np.roll(truth, 1, 1) + np.roll(truth, -1, 1)) / 3
    assert ssim(truth, truth).min() == pytest.approx(1)
    assert ssim(blurred, truth).max() < 0.995
    assert ssim(truth[:, :4, :6], truth[:, :4, :6]).mean() == pytest.approx(1)
    with pytest.raises(DataError, match="at least 3 pixels"):
        ssim(truth[:, :2], truth[:, :2])


def test_the_moving_region_is_where_the_truth_changes():
    truth = np.zeros((4, 3, 3), dtype=np.complex64)
    truth[:, 0, 0] = [0, 1, 0, 1]  # sd 0.5
    truth[:, 1, 1] = [0, 0.09, 0, 0.09]
    truth[:, 2, 2] = [0, 0.11j, 0, 0.11j]
    expected = np.zeros((3, 3), dtype=bool)
    expected[0, 0] = expected[2, 2] = True
    np.testing.assert_array_equal(moving_region(truth), expected)


def test_what_cannot_be_scored_is_refused(truth):
    moving = moving_region(truth)
    with pytest.raises(DataError, match="shape"):
        score(truth[:5], truth, moving)
    broken = truth.copy()
    broken[3, 2, 1] = np.nan
    with pytest.raises(DataError, match="NaN"):
        score(broken, truth, moving)
    with pytest.raises(DataError, match="does not change"):
        dynamic_error(truth, truth, np.zeros_like(moving))
    assert score(np.zeros_like(truth), truth, moving)["dynamic_error"] == pytest.approx(1.0)
