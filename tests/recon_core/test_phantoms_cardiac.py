"""The cardiac phantom and its simulation: physics, physiology, truth."""

import math

import numpy as np
import pytest
import torch

from recon_core.errors import SettingError
from recon_core.metrics import align, moving_region, psnr_db
from recon_core.options import build
from recon_core.phantoms.cardiac import CardiacObject, CardiacSettings, simulate
from recon_core.phantoms.coils import LoopArray, _loop_field, grid_axes
from recon_core.phantoms.measurement import sample_slice
from recon_core.phantoms.physiology import Physiology
from recon_core.phantoms.raster import capsule, noise_texture, share, superellipse

SMALL = {"matrix": (24, 24), "frames": 10, "coils": 3}


@pytest.fixture(scope="module")
def small():
    return simulate(CardiacSettings(**SMALL))


def _physiology(timing, duration, seed=0):
    return Physiology.make(timing, duration, np.random.default_rng(seed))


@pytest.mark.parametrize(("timing", "duration", "beat", "breath"), [("standard", 9.6, 0.25, 0.9), ("physiological", 60.0, 0.8, 4.0)])
def test_beats_and_breaths_have_the_promised_length_and_vary(timing, duration, beat, breath):
    person = _physiology(timing, duration)
    beats = np.diff(person.beats)
    assert beats.mean() == pytest.approx(beat, rel=0.08)
    assert 0.05 < beats.std() / beats.mean() < 0.25
    assert np.diff(person.breaths).mean() == pytest.approx(breath, rel=0.1)
    assert person.beats[0] <= 0
    assert person.breaths[0] <= 0
    assert person.beats[-2] > duration
    assert person.breaths[-2] > duration


@pytest.mark.parametrize("seed", range(20))
def test_motion_is_continuous_and_covers_the_scan(seed):
    person = _physiology("standard", 0.96, seed)
    times = np.arange(0, 0.96, 1e-4)
    contraction, breath = person.contraction(times), person.breath(times)
    assert 3 <= ((person.beats > 0) & (person.beats < 0.96)).sum() <= 5
    assert contraction.min() >= 0
    assert 0.7 < contraction.max() < 1.2
    assert 0.7 < breath.max() < 1.3
    assert np.abs(np.diff(contraction)).max() < 0.01
    assert np.abs(np.diff(breath)).max() < 0.002
    # The rest between beats is short against the time in motion; blood flows only while the ventricle contracts.
    assert (person.ejection(times)[np.gradient(contraction) < -1e-6] == 0).all()
    since = person.since_beat(times)
    assert since.min() >= 0
    assert np.isclose(times - since, person.beats[:, None], atol=1e-12).any(axis=0).all()


def test_strength_follows_filling():
    person = _physiology("physiological", 200.0)
    lengths = np.diff(person.beats)
    assert np.corrcoef(lengths[:-1], person.strengths[1 : len(lengths)])[0, 1] > 0.7


def test_an_unknown_timing_names_the_known_ones():
    with pytest.raises(SettingError, match="Did you mean 'standard'"):
        _physiology("standards", 1.0)


def test_a_loop_has_the_field_of_the_textbook_on_its_axis():
    radius, distance = 60.0, 90.0
    field = _loop_field(np.array([distance, 0.0, 0.0]), 0.0, radius, np.array([0.0]), np.array([0.0]))[0, 0]
    expected = 2 * math.pi * radius**2 / (radius**2 + distance**2 + 8.0**2) ** 1.5
    assert abs(field.real) == pytest.approx(expected, rel=0.01)
    assert abs(field.imag) < 1e-3 * expected
    # The same loop a quarter turn on has its field along y.
    turned = _loop_field(np.array([0.0, distance, 0.0]), math.pi / 2, radius, np.array([0.0]), np.array([0.0]))[0, 0]
    assert abs(turned.imag) == pytest.approx(expected, rel=0.01)


def test_maps_of_any_grid_sample_one_field():
    array = LoopArray(5, (90.0, 130.0), (300.0, 320.0), np.random.default_rng(4))
    coarse = array.maps(*grid_axes((20, 24), (300.0, 320.0)))
    fine = array.maps(*grid_axes((60, 72), (300.0, 320.0)))
    assert coarse.shape == (5, 20, 24)
    np.testing.assert_allclose(fine[:, ::3, ::3], coarse, rtol=1e-5)  # N//2 to N//2: 30 = 3 · 10
    middle = np.abs(coarse[:, 10, 12])
    assert middle.min() > 0.2 * middle.max()
    phase = np.angle(coarse[:, 5:15, 6:18] * coarse[0, 5:15, 6:18].conj())
    assert np.ptp(np.unwrap(phase[2].ravel())) > 0.2


def test_noise_covariance_is_full_and_positive():
    covariance = LoopArray(8, (90.0, 130.0), (320.0, 320.0), np.random.default_rng(1)).noise_covariance(np.random.default_rng(2))
    np.testing.assert_allclose(covariance, covariance.conj().T)
    assert np.linalg.eigvalsh(covariance).min() > 0.02
    assert np.trace(covariance).real == pytest.approx(8)
    deviation = np.sqrt(np.diag(covariance).real)
    correlation = np.abs(covariance) / np.outer(deviation, deviation) - np.eye(8)
    assert correlation.max() > 0.2


def test_shapes_have_their_area_with_partial_volume():
    x, y = torch.meshgrid(torch.arange(-20, 20, dtype=torch.float32), torch.arange(-20, 20, dtype=torch.float32), indexing="xy")
    for centre in ((0.0, 0.0), (0.31, -0.47)):
        area = float(share(superellipse(x, y, centre, (11.3, 7.2), 0.5), 1.0).sum())
        assert area == pytest.approx(math.pi * 11.3 * 7.2, rel=5e-3)
    squarer = float(share(superellipse(x, y, (0, 0), (11.3, 7.2), power=4.0), 1.0).sum())
    assert squarer == pytest.approx(4 * 11.3 * 7.2 * math.gamma(1.25) ** 2 / math.gamma(1.5), rel=1e-2)
    vessel = float(share(capsule(x, y, (-8, 2), (7, -3), 1.6), 1.0).sum())
    assert vessel == pytest.approx(3.2 * math.hypot(15, 5) + math.pi * 1.6**2, rel=2e-2)


def test_texture_is_correlated_over_its_scale_on_any_grid():
    points = torch.arange(-100.0, 100.0)
    texture = noise_texture(points, points, (4.0,), np.random.default_rng(0)).numpy()
    assert texture.mean() == pytest.approx(0, abs=0.15)
    assert texture.std() == pytest.approx(1, abs=0.15)
    near, far = ((texture[:, d:] * texture[:, :-d]).mean() for d in (2, 24))
    assert near > 0.7
    assert abs(far) < 0.3
    coarse = noise_texture(points[::5], points[::2], (4.0,), np.random.default_rng(0)).numpy()
    np.testing.assert_allclose(coarse, texture[::2, ::5], atol=1e-4)


@pytest.fixture(scope="module")
def anatomy():
    rng = np.random.default_rng(0)
    person = Physiology(np.arange(-1, 9) * 1.0, np.ones(10), np.arange(-10, 90, 10) * 1.0, np.ones(10))
    return CardiacObject((192, 192), (320.0, 320.0), person, rng)


def _at_mm(anatomy, image, x, y):
    """Mean magnitude of 3 × 3 pixels about a point of the chest of scale 1."""
    row, column = (round(v * anatomy.scale / 320 * 192) + 96 for v in (y, x))
    return float(image.abs()[row - 1 : row + 2, column - 1 : column + 2].mean())


def test_the_heart_beats_and_the_spine_stays(anatomy):
    diastole, systole = anatomy.at(0.0), anatomy.at(0.36)
    edge = (34 - 21 / math.sqrt(2), -14 - 21 / math.sqrt(2))  # blood at rest, muscle when contracted
    assert _at_mm(anatomy, diastole, *edge) > 0.8
    assert _at_mm(anatomy, systole, *edge) < 0.5
    change = (diastole - systole).abs()
    assert _at_mm(anatomy, change, 0, 58) < 0.02
    assert _at_mm(anatomy, change, -100, 40) < 0.05


def test_breathing_moves_the_diaphragm_not_the_back(anatomy):
    person = anatomy.physiology
    out, full = 0.0, 5.0
    assert person.contraction(out) == pytest.approx(person.contraction(full), abs=1e-9)
    assert person.breath(full) == pytest.approx(1.0)
    expired, inspired = anatomy.at(out), anatomy.at(full)
    # The liver's dome gives way to lung.
    before, after = (np.mean([_at_mm(anatomy, image, x, 15) for x in range(-80, -40, 3)]) for image in (expired, inspired))
    assert before > 0.25
    assert after < 0.6 * before
    assert abs(_at_mm(anatomy, inspired, 0, 79) - _at_mm(anatomy, expired, 0, 79)) < 0.05


def test_nothing_lies_outside_the_body(anatomy):
    image = anatomy.at(0.3).abs()
    assert float(image[:20].max()) == float(image[-20:].max()) == 0.0
    assert float(image.max()) < 1.6


def test_samples_are_the_exact_sum_over_the_object_at_each_readouts_time(anatomy):
    rng = np.random.default_rng(5)
    maps = (rng.standard_normal((2, 192, 192)) + 1j * rng.standard_normal((2, 192, 192))).astype(np.complex64)
    trajectory = rng.uniform(-32, 32, (3, 4, 2)).astype(np.float32)
    times = np.array([0.0, 0.2, 0.34])
    calls = []
    samples = sample_slice(anatomy, maps, trajectory, times, (64, 64), lambda done, total: calls.append((done, total)))
    r = (np.arange(192) - 96) / 192
    for number, time in enumerate(times):
        weighted = maps * anatomy.at(time).numpy()
        for k, sample in zip(trajectory[number], samples[:, number].T, strict=True):
            wave = np.exp(-2j * np.pi * (k[1] * r[:, None] + k[0] * r[None]))
            # (64/192)² fine pixels stand for one, 1/√(64²) makes the sum unitary.
            exact = (weighted * wave).sum((1, 2)) * (64 / 192) ** 2 / 64
            np.testing.assert_allclose(sample, exact, rtol=2e-3, atol=2e-3 * np.abs(samples).max())
    assert sorted(calls) == [(1, 3), (2, 3), (3, 3)]


def test_a_full_scan_gives_the_truth_back_in_scale_and_place():
    """Fully sampled, hardly moving, hardly noisy: the whitened root-sum-of-squares image is the truth."""
    settings = CardiacSettings(matrix=(40, 30), field_of_view=(320.0, 240.0), coils=4, frames=2, readouts_per_frame=70, snr=1e4)
    settings = build(CardiacSettings, {**vars(settings), "repetition_time": 0.1, "timing": "physiological"})
    scan = simulate(settings)
    noise = scan.noise
    whiten = np.linalg.inv(np.linalg.cholesky(noise @ noise.conj().T / noise.shape[1]))
    samples = np.tensordot(whiten, scan.samples, axes=1)
    k = scan.trajectory.reshape(-1, 2).astype(np.float64)
    per_mm = np.hypot(k[:, 0] / 240, k[:, 1] / 320)
    # Each of 140 spokes owns half a turn over 140 of every ring; the centre shares one disc.
    spacing = np.diff(np.sort(np.unique(per_mm.round(9))))[:5].mean()
    area = np.where(per_mm < 1e-9, np.pi * spacing**2 / 4 / 140, np.pi * per_mm * spacing / 140) * 320 * 240
    y, x = (np.arange(n) - n // 2 for n in (40, 30))
    along_y, along_x = np.exp(2j * np.pi * k[:, 1, None] * y / 40), np.exp(2j * np.pi * k[:, 0, None] * x / 30)
    images = np.stack([along_y.T @ (weighted[:, None] * along_x) for weighted in samples.reshape(4, -1) * area]) / math.sqrt(40 * 30)
    combined = np.linalg.norm(images, axis=0)
    truth = np.abs(scan.truth).mean(0)
    assert psnr_db(combined[None], truth[None])[0] > 30
    scaled, _ = align(combined[None], truth[None])
    assert np.linalg.norm(scaled) / np.linalg.norm(combined) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("oversampling", [1, 2])
def test_full_cartesian_frames_give_the_truth_back(oversampling):
    settings = CardiacSettings(
        matrix=(30, 37),
        field_of_view=(260.0, 330.0),
        coils=3,
        frames=2,
        trajectory="cartesian",
        acceleration=1,
        oversampling=oversampling,
        snr=1e4,
        repetition_time=0.1,
        timing="physiological",
    )
    scan = simulate(settings)
    assert scan.samples.shape == (3, 60, 37 * oversampling)
    assert scan.net_acceleration == 1
    whiten = np.linalg.inv(np.linalg.cholesky(scan.noise @ scan.noise.conj().T / scan.noise.shape[1]))
    frame = np.tensordot(whiten, scan.samples[:, :30, ::oversampling], axes=1)
    if oversampling == 2:  # sample 37 is k = 0, even ones from there are the image's own
        frame = np.tensordot(whiten, scan.samples[:, :30, 37 % 2 :: 2], axes=1)
    images = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(frame, axes=(1, 2)), norm="ortho"), axes=(1, 2))
    combined, truth = np.linalg.norm(images, axis=0)[None], np.abs(scan.truth[:1])
    assert psnr_db(combined, truth)[0] > 35


def test_the_noise_level_is_the_snr_asked_for(small):
    body = np.abs(small.truth).mean(0)
    assert body[body > 0.15 * body.max()].mean() == pytest.approx(35, rel=1e-3)
    quiet = simulate(CardiacSettings(**SMALL, snr=3.5e5))
    noise = (small.samples - quiet.samples).reshape(3, -1)
    covariance = noise @ noise.conj().T / noise.shape[1]
    expected = small.noise @ small.noise.conj().T / small.noise.shape[1]
    assert np.linalg.norm(covariance - expected) < 0.15 * np.linalg.norm(expected)
    np.testing.assert_allclose(quiet.truth * 1e-4, small.truth, rtol=1e-4, atol=1e-4)


def test_seeds_repeat_and_differ(small):
    again, other = simulate(CardiacSettings(**SMALL)), simulate(CardiacSettings(**SMALL, seed=1))
    np.testing.assert_array_equal(again.samples, small.samples)
    np.testing.assert_array_equal(again.truth, small.truth)
    assert np.linalg.norm(other.truth - small.truth) > 0.1 * np.linalg.norm(small.truth)


def test_the_objects_detail_hardly_matters():
    """The same person drawn finer gives almost the same samples: the simulation's grid is fine enough."""
    settings = {"matrix": (40, 40), "frames": 3, "coils": 2, "snr": 1e6}
    plain, finer = (simulate(CardiacSettings(**settings, detail=detail)) for detail in (3, 6))
    assert np.linalg.norm(finer.samples - plain.samples) < 0.02 * np.linalg.norm(plain.samples)
    assert np.linalg.norm(finer.truth - plain.truth) < 0.02 * np.linalg.norm(plain.truth)


def test_a_person_is_the_same_at_every_matrix_and_with_every_array():
    few, many = (simulate(CardiacSettings(matrix=(n, n), coils=4, frames=3, snr=1e6)) for n in (24, 36))
    fine = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(many.truth[0])))[6:30, 6:30]
    fine = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(fine)))
    assert np.corrcoef(np.abs(few.truth[0]).ravel(), np.abs(fine).ravel())[0, 1] > 0.97
    other = simulate(CardiacSettings(matrix=(24, 24), coils=2, frames=3))
    np.testing.assert_array_equal(few.physiology.beats, other.physiology.beats)


def test_truth_and_times_belong_to_the_frames(small):
    assert small.truth.shape == (10, 24, 24)
    np.testing.assert_allclose(small.times, 0.003 * np.arange(20))
    np.testing.assert_allclose(small.frame_times, 0.0015 + 0.006 * np.arange(10))
    np.testing.assert_array_equal(small.moving, moving_region(small.truth))
    assert 0.02 < small.moving.mean() < 0.8


@pytest.mark.parametrize("trajectory", ["radial", "spiral"])
def test_odd_and_oblong_matrices(trajectory):
    settings = CardiacSettings(
        matrix=(27, 33), field_of_view=(250.0, 330.0), coils=2, frames=3, readouts_per_frame=3, trajectory=trajectory, detail=2
    )
    scan = simulate(settings)
    assert scan.truth.shape == (3, 27, 33)
    assert scan.samples.shape[:2] == (2, 9)
    edge = np.abs(scan.trajectory).max(axis=(0, 1))
    np.testing.assert_allclose(edge, [0.054 * 330, 0.054 * 250], rtol=0.08)
    assert scan.dwell * scan.trajectory.shape[1] <= 0.6 * 3e-3 + 1e-9


def test_one_coil_works():
    scan = simulate(CardiacSettings(matrix=(20, 20), coils=1, frames=2, readouts_per_frame=1, detail=2))
    assert scan.samples.shape == (1, 2, 40)
    assert np.isfinite(scan.samples).all()


def test_an_arm_longer_than_the_repetition_time_is_refused():
    with pytest.raises(SettingError, match="repetition_time"):
        simulate(CardiacSettings(matrix=(64, 64), frames=2, coils=1, trajectory="spiral", interleaves=1))


def test_settings_out_of_range_are_refused():
    with pytest.raises(SettingError, match="coils: 0 is below 1"):
        build(CardiacSettings, {"coils": 0})
