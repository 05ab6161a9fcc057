"""The speech phantom: motion without a period, off-resonance that moves, samples, truth."""

import dataclasses

import numpy as np
import pytest
import torch

from recon_core.errors import SettingError
from recon_core.metrics import moving_region
from recon_core.phantoms.articulation import ARTICULATORS, Articulation
from recon_core.phantoms.coils import grid_axes
from recon_core.phantoms.measurement import sample_slice
from recon_core.phantoms.speech import ECHO_TIME, SpeechObject, SpeechSettings, simulate
from recon_core.phantoms.susceptibility import bars, convolved, in_tissue

SMALL = SpeechSettings(matrix=(36, 30), field_of_view=(200.0, 180.0), frames=12, coils=3, detail=2, off_resonance=400.0)


@pytest.fixture(scope="module")
def small():
    return simulate(SMALL)


@pytest.fixture(scope="module")
def head():
    rng = np.random.default_rng(0)
    return SpeechObject((150, 144), (200.0, 200.0), Articulation.make(4.0, rng), rng, off_resonance=400.0)


@pytest.mark.parametrize("seed", range(10))
def test_articulators_move_continuously_within_their_ranges_and_never_repeat(seed):
    speaker = Articulation.make(6.0, np.random.default_rng(seed))
    times = np.arange(0, 6.0, 2e-3)
    courses = speaker.at(times)
    assert courses.shape == (3000, len(ARTICULATORS))
    assert speaker.knots[0] < 0
    assert speaker.knots[-1] > 6.0
    speed = np.abs(np.diff(courses, axis=0)).max(axis=0) / 2e-3
    assert speed[2] < 420  # mm/s
    lips, velum = courses[:, ARTICULATORS.index("lips")], courses[:, ARTICULATORS.index("velum")]
    assert lips.min() >= 0
    assert velum.min() >= 0
    assert velum.max() <= 1
    assert np.ptp(lips) > 5
    assert np.ptp(velum) > 0.7
    # No period: no shift of the tongue's course resembles the course itself.
    tongue = courses[:, 2] - courses[:, 2].mean()
    shifted = [np.corrcoef(tongue[lag:], tongue[:-lag])[0, 1] for lag in range(150, 1500, 10)]
    assert max(shifted) < 0.75


def _at(image, x, y):
    row, column = round(y / 200 * 150) + 75, round(x / 200 * 144) + 72
    return float(image[row - 1 : row + 2, column - 1 : column + 2].abs().mean())


def _posture(**moved):
    return np.array([moved.get(name, 0.0) for name in ARTICULATORS])


def test_articulators_do_what_their_names_say(head):
    def drawn(**moved):
        return head._posture(_posture(**moved))

    rest = _posture()
    assert len(rest) == len(ARTICULATORS)
    low, high = drawn(jaw=10, body_y=6), drawn(jaw=10, body_y=-9)
    assert _at(low[0], -12, 6) < 0.5 * _at(high[0], -12, 6)  # under the palate: air, then tongue
    assert _at(low[1], -12, 6) > 0.5 > _at(high[1], -12, 6)
    closed, opened = drawn(lips=0.0), drawn(lips=14.0, jaw=8.0)
    assert _at(closed[1], -76, 9) < 0.5 < _at(opened[1], -76, 12)
    down, up = drawn(velum=0.0), drawn(velum=1.0)
    assert _at(up[0], 10, -5) > _at(down[0], 10, -5) + 0.1  # closes the way to the nose
    assert _at(down[0], 34, 40) == pytest.approx(_at(up[0], 34, 40))  # the spine stays


def test_off_resonance_lies_at_air_and_moves_with_it(head):
    times = (0.3, 0.9)
    (_, first), (_, second) = (head.at_with_frequency(t) for t in times)
    for field in (first, second):
        assert float(field.abs().max()) <= 400.0
    signal, air = head._posture(head.articulation.at(times[0]))
    tissue = (signal > 0.1) & (air < 0.5)
    assert float(first[tissue].abs().quantile(0.99)) > 200
    near = torch.nn.functional.max_pool2d(air[None, None], 9, 1, 4)[0, 0] > 0.5
    assert float(first[tissue & near].abs().mean()) > 2.0 * float(first[tissue & ~near].abs().mean())
    change = (first - second).abs()
    assert _at(change, 10, -70) < 15  # the brain's field stays
    assert float(change[tissue].quantile(0.99)) > 60


@pytest.mark.parametrize("radius", [6.3, 14.0])
def test_air_makes_the_field_of_a_cylinder_in_tissue(radius):
    """Across the field a thin cylinder's shift is Δχ f0/2 · (a/r)² · cos 2φ outside, up to its surface."""
    shape, fov = (256, 192), (256.0, 192.0)
    y, x = np.meshgrid(np.arange(256) - 128.0, np.arange(192) - 96.0, indexing="ij")
    r = np.hypot(y, x)
    air = torch.from_numpy(np.clip(radius + 0.5 - r, 0, 1).astype(np.float32))
    field = in_tissue(convolved(air, bars(shape, fov)), air).numpy()
    expected = 0.5 * radius**2 * (y**2 - x**2) / np.maximum(r, 1) ** 4
    tissue = (r > radius + 0.6) & (r < 45)
    assert np.abs(field - expected)[tissue].max() < 0.05
    assert np.abs(field - expected)[tissue].mean() < 0.004
    # Pixels that the border cuts have the tissue's field, not a mixture with the air's (-1/6).
    border = np.abs(r - radius) < 0.5
    assert np.abs(field - 0.5 * (y**2 - x**2) / np.maximum(r, 1) ** 2)[border].max() < 0.15
    assert not field[r < radius - 9].any()


def test_samples_are_the_exact_sum_with_phase_at_each_samples_own_time(head):
    rng = np.random.default_rng(5)
    maps = (rng.standard_normal((2, 150, 144)) + 1j * rng.standard_normal((2, 150, 144))).astype(np.complex64)
    trajectory = rng.uniform(-24, 24, (2, 9, 2)).astype(np.float32)
    moments, sample_times = np.array([0.1, 0.4]), np.linspace(0, 2.5e-3, 9)
    samples = sample_slice(head, maps, trajectory, moments, (50, 48), sample_times=sample_times, largest_frequency=400.0)
    y, x = (np.arange(n) / n - 0.5 for n in (150, 144))
    scale = (50 * 48) / (150 * 144) / np.sqrt(50 * 48)
    for number, moment in enumerate(moments):
        image, frequency = head.at_with_frequency(float(moment))
        for j, (k, t) in enumerate(zip(trajectory[number], sample_times, strict=True)):
            wave = np.exp(-2j * np.pi * (k[1] * y[:, None] + k[0] * x[None]) + 2j * np.pi * frequency.numpy().astype(float) * t)
            exact = scale * (maps * image.numpy() * wave).sum((1, 2))
            np.testing.assert_allclose(samples[:, number, j], exact, atol=2e-3 * np.abs(samples).max())
    still = sample_slice(head, maps, trajectory, moments, (50, 48))
    assert np.linalg.norm(still[:, :, 0] - samples[:, :, 0]) < 2e-3 * np.linalg.norm(samples[:, :, 0])
    assert np.linalg.norm(still[:, :, -1] - samples[:, :, -1]) > 0.2 * np.linalg.norm(samples[:, :, -1])


def test_the_published_design(small):
    scan = simulate(SpeechSettings(frames=2, coils=1, detail=2))
    assert scan.interleaves == 13
    assert 2.4e-3 < scan.trajectory.shape[1] * scan.dwell < 2.6e-3
    np.testing.assert_allclose(np.diff(scan.times), 6e-3)
    assert np.abs(scan.trajectory).max() == pytest.approx(42, rel=0.02)
    assert small.samples.shape == (3, 12, small.trajectory.shape[1])


def test_truth_field_and_moving_region(small):
    assert small.truth.shape == (12, 36, 30)
    assert small.field_maps.shape == (12, 36, 30)
    assert np.abs(small.field_maps).max() <= 400
    np.testing.assert_array_equal(small.moving, moving_region(small.truth))
    assert 0.02 < small.moving.mean() < 0.6
    # The phase of the echo time is the truth's own: it follows the field.
    quiet = simulate(dataclasses.replace(SMALL, off_resonance=0.0))
    assert quiet.field_maps is None
    bright = np.abs(quiet.truth[0]) > 0.5 * np.abs(quiet.truth[0]).max()
    turned = np.angle(small.truth[0] * quiet.truth[0].conj())[bright]
    expected = 2 * np.pi * ECHO_TIME * small.field_maps[0][bright]
    assert np.median(np.abs(np.angle(np.exp(1j * (turned - expected))))) < 0.15


def test_seeds_repeat_and_differ(small):
    again, other = simulate(SMALL), simulate(dataclasses.replace(SMALL, seed=1))
    np.testing.assert_array_equal(again.samples, small.samples)
    np.testing.assert_array_equal(again.truth, small.truth)
    assert np.linalg.norm(other.truth - small.truth) > 0.1 * np.linalg.norm(small.truth)
    few = simulate(dataclasses.replace(SMALL, coils=2))
    np.testing.assert_array_equal(few.articulation.targets, small.articulation.targets)


def test_noise_is_correlated_and_of_the_level_asked_for(small):
    quiet = simulate(dataclasses.replace(SMALL, snr=2.5e5))
    noise = (small.samples - quiet.samples).reshape(3, -1)
    covariance = noise @ noise.conj().T / noise.shape[1]
    expected = small.noise @ small.noise.conj().T / small.noise.shape[1]
    assert np.linalg.norm(covariance - expected) < 0.1 * np.linalg.norm(expected)
    assert np.abs(expected[0, 1]) > 0.02 * expected[0, 0].real
    body = np.abs(small.truth).mean(0)
    assert body[body > 0.15 * body.max()].mean() == pytest.approx(25, rel=1e-3)


def test_nothing_is_cut_off_at_the_edge(head):
    image = head.at(0.2).abs()
    for edge in (image[0], image[-1], image[:, 0], image[:, -1]):
        assert float(edge.max()) < 0.02
    y, x = grid_axes((150, 144), (200.0, 200.0))
    assert y[75] == x[72] == 0


def test_an_arm_that_does_not_fit_is_refused():
    with pytest.raises(SettingError, match="repetition_time"):
        simulate(SpeechSettings(matrix=(64, 64), frames=2, coils=1, interleaves=2))
