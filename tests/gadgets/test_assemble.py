"""Readouts to a problem: units, geometry, masks, noise."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from gadgets.assemble import assemble, dimension, image_shape
from gadgets.header import parse
from gadgets.noise import NoiseReadouts, noise_level
from gadgets.readouts import Readout, admit
from gadgets.settings import ChainSettings
from recon_core.errors import DataError, SettingError

SETTINGS = ChainSettings(readouts_per_frame=4)


def admitted(acquisitions, header) -> list[Readout]:
    return [admit(acquisition, number, header) for number, acquisition in enumerate(acquisitions)]


def made(xml, acquisitions, settings=SETTINGS, whitening=None, report=None):
    header = parse(xml)
    times = 0.003 * np.arange(len(acquisitions))
    return assemble(admitted(acquisitions, header), times, header, settings, whitening, report)


def plain(scans, k_per_pixel, xml, coils=3, seed=1, **fields):
    """Readouts of random samples with the given stored trajectory ``[readout, sample, column]``."""
    random = np.random.default_rng(seed)
    shape = (coils, *k_per_pixel.shape[:2])
    samples = random.standard_normal(shape) + 1j * random.standard_normal(shape)
    acquisitions = [scans.acquisition(samples[:, row], k_per_pixel[row], **fields) for row in range(len(k_per_pixel))]
    return xml, acquisitions


def stored(n=6, samples=16, columns=2, seed=2) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (n, samples, columns)).astype(np.float32)


def test_trajectory_is_per_reconstructed_field_of_view(scans):
    """Against the definition: a sample at k cycles/mm turns k·FOV times over the reconstructed field of view."""
    protocol = scans.Protocol(
        encoded_matrix=(100, 36, 1), encoded_fov=(600.0, 300.0, 8.0), matrix=(50, 30, 1), fov=(300.0, 250.0, 8.0), channels=3
    )
    k = np.random.default_rng(0).uniform(-0.05, 0.05, (5, 12, 2))
    problem = made(protocol.xml(), scans.non_cartesian(k, protocol)).problem
    assert problem.shape == (30, 50)
    assert problem.field_of_view == (250.0, 300.0)
    assert problem.trajectory.numpy() == pytest.approx(k * np.array([300.0, 250.0]), abs=1e-5)
    assert not problem.cartesian


def test_samples_beyond_the_resolution_are_masked(scans, heard):
    lines, report = heard
    k = stored()
    problem = made(*plain(scans, k, scans.Protocol(matrix=(24, 20, 1)).xml()), report=report).problem
    inside = (np.abs(k[..., 0] * 32) <= 12) & (np.abs(k[..., 1] * 32) <= 10)
    assert 0 < inside.sum() < inside.size
    assert (problem.mask.numpy() == inside).all()
    assert any("beyond the reconstructed resolution" in line for line in lines)


def test_matrix_keeps_the_field_of_view(scans):
    k = stored()
    xml, acquisitions = plain(scans, k, scans.Protocol().xml())
    small = made(xml, acquisitions, dataclasses.replace(SETTINGS, matrix=(16, 12))).problem
    assert small.shape == (12, 16)
    assert small.field_of_view == (320.0, 320.0)
    assert torch.equal(small.trajectory, made(xml, acquisitions).problem.trajectory)
    assert (small.mask.numpy() == ((np.abs(k[..., 0] * 32) <= 8) & (np.abs(k[..., 1] * 32) <= 6))).all()


def test_discarded_samples_are_masked(scans):
    xml, acquisitions = plain(scans, 0.9 * stored(), scans.Protocol().xml(), discard_pre=2, discard_post=3)
    mask = made(xml, acquisitions).problem.mask
    assert not mask[:, :2].any()
    assert not mask[:, -3:].any()
    assert mask[:, 2:-3].all()


def test_frames_and_times(scans, heard):
    lines, report = heard
    problem = made(*plain(scans, stored(n=10), scans.Protocol().xml()), report=report).problem
    assert [f.tolist() for f in problem.frames] == [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9]]
    assert problem.frame_times.tolist() == pytest.approx([0.0045, 0.0195])
    assert problem.readout_times.tolist() == pytest.approx(0.003 * np.arange(10))
    assert any("2 readouts left over" in line for line in lines)


VOLUME = {"encoded_matrix": (32, 32, 16), "encoded_fov": (320.0, 320.0, 128.0), "matrix": (32, 32, 8), "fov": (320.0, 320.0, 64.0)}
DESCRIBED = "<trajectoryDescription><identifier>HargreavesVDS2000</identifier></trajectoryDescription>"


@pytest.mark.parametrize("trajectory", ["spiral", "radial", "other"])
def test_third_column_of_a_slice_is_a_density_weight(scans, trajectory):
    k = stored(columns=3)
    problem = made(*plain(scans, k, scans.Protocol(trajectory=trajectory).xml())).problem
    assert problem.shape == (32, 32)
    assert problem.trajectory.numpy() == pytest.approx(k[..., :2] * 32, abs=1e-5)


def test_third_column_of_a_volume_is_kz(scans):
    k = stored(columns=3)
    problem = made(*plain(scans, k, scans.Protocol(**VOLUME).xml())).problem
    assert problem.shape == (8, 32, 32)
    assert problem.trajectory.numpy() == pytest.approx(k * np.array([32, 32, 16 * 64 / 128]), abs=1e-5)


@pytest.mark.parametrize(("columns", "description"), [(2, ""), (3, DESCRIBED)])
def test_stack_takes_kz_from_the_partition(scans, columns, description):
    """A planar trajectory in a volume, with or without a density weight that the description tells from kz."""
    k = stored(columns=columns)
    xml, acquisitions = plain(scans, k, scans.Protocol(**VOLUME, description=description).xml())
    for number, acquisition in enumerate(acquisitions):
        acquisition.idx.kspace_encode_step_2 = 5 + number
    trajectory = made(xml, acquisitions).problem.trajectory.numpy()
    assert trajectory[..., :2] == pytest.approx(k[..., :2] * 32, abs=1e-5)
    assert trajectory[..., 2] == pytest.approx(np.repeat((np.arange(5, 11)[:, None] - 8) * 0.5, 16, axis=1))


def test_dimension_comes_from_the_header(scans):
    flat, volume = (parse(p.xml()).encoding(0) for p in (scans.Protocol(), scans.Protocol(**VOLUME)))
    assert (dimension(flat, None), dimension(flat, 2), dimension(volume, None), dimension(volume, 3)) == (2, 2, 3, 3)
    for encoding, wrong in ((flat, 3), (volume, 2)):
        with pytest.raises(SettingError) as caught:
            dimension(encoding, wrong)
        assert caught.value.field == "dimension"


def test_image_shape(scans):
    flat, volume = (parse(p.xml()).encoding(0) for p in (scans.Protocol(), scans.Protocol(**VOLUME)))
    assert image_shape(flat, 2, (20,)) == (20, 20)
    assert image_shape(flat, 2, (20, 30)) == (30, 20)
    assert image_shape(volume, 3, (20, 30, 4)) == (4, 30, 20)
    assert image_shape(volume, 3, None) == (8, 32, 32)
    with pytest.raises(DataError, match=r"encoding\[0\]\.reconSpace\.matrixSize: 1×32 pixels of 32×32"):
        image_shape(parse(scans.Protocol(matrix=(1, 32, 1)).xml()).encoding(0), 2, None)
    with pytest.raises(SettingError, match="matrix: 3 numbers for a 2D scan"):
        image_shape(flat, 2, (20, 30, 4))
    for absurd in ((2,), (1_000_000,), (32, 400)):
        with pytest.raises(SettingError, match=r"matrix: .* pixels of 32×32 encoded ones. Give 8 pixels or more"):
            image_shape(flat, 2, absurd)


# Cartesian lines


def cartesian_problem(scans, protocol, settings=SETTINGS, **options):
    return made(protocol.xml(), scans.cartesian(protocol, **{"noise": 0.0, **options}), settings).problem


def expected_lines(scans, protocol, blobs, n_x, n_y) -> np.ndarray:
    """The blobs' k-space on the grid of the reconstructed field of view, from their Fourier integral."""
    grid = dataclasses.replace(protocol, encoded_matrix=(n_x, n_y, 1), encoded_fov=protocol.fov)
    return np.stack([line.data for line in scans.cartesian(grid, blobs=blobs, noise=0.0)], axis=1)


@pytest.mark.parametrize("n_x", [24, 25])
def test_readout_oversampling_is_removed(scans, n_x):
    protocol = scans.Protocol(
        encoded_matrix=(2 * n_x, 20, 1),
        encoded_fov=(480.0, 240.0, 8.0),
        matrix=(n_x, 20, 1),
        fov=(240.0, 240.0, 8.0),
        trajectory="cartesian",
    )
    blobs = (scans.Blob((20.0, -10.0, 0.0), 12.0, 1.0),)
    problem = cartesian_problem(scans, protocol, blobs=blobs)
    k_x, k_y = np.arange(n_x) - n_x // 2, np.arange(20) - 10
    assert problem.cartesian
    assert problem.mask.all()
    assert problem.trajectory[0, :, 0].tolist() == k_x.tolist()
    assert problem.trajectory[:, 0, 1].tolist() == k_y.tolist()
    wanted = expected_lines(scans, protocol, blobs, n_x, 20)
    ratio = problem.samples.numpy() / problem.samples.numpy()[0, 10, n_x // 2]
    assert np.abs(ratio - wanted / wanted[0, 10, n_x // 2]).max() < 2e-3


def test_removing_oversampling_keeps_noise_white(scans):
    protocol = scans.Protocol(encoded_matrix=(128, 64, 1), encoded_fov=(640.0, 320.0, 8.0), matrix=(64, 64, 1), trajectory="cartesian")
    random = np.random.default_rng(0)
    lines = [
        scans.acquisition(
            random.standard_normal((3, 128)) + 1j * random.standard_normal((3, 128)), center_sample=64, kspace_encode_step_1=row
        )
        for row in range(64)
    ]
    problem = made(protocol.xml(), lines, whitening=torch.eye(3, dtype=torch.complex64))
    samples = problem.problem.samples.numpy()
    assert np.mean(np.abs(samples) ** 2) == pytest.approx(2.0, rel=0.03)
    assert abs(np.mean(samples[:, :, 1:] * samples[:, :, :-1].conj())) < 0.05


def test_partial_echo_and_reversed_lines(scans):
    protocol = scans.Protocol(trajectory="cartesian")
    full = cartesian_problem(scans, protocol)
    lines = []
    for number, line in enumerate(scans.cartesian(protocol, noise=0.0)):
        part = line.data[:, 10:]
        if number % 2:
            lines.append(scans.acquisition(part[:, ::-1], center_sample=15, kspace_encode_step_1=number, flags=(22,)))
        else:
            lines.append(scans.acquisition(part, center_sample=6, kspace_encode_step_1=number))
    problem = made(protocol.xml(), lines).problem
    assert problem.mask.sum(dim=1).unique().tolist() == [22]
    assert torch.equal(problem.trajectory, full.trajectory)
    scale = (full.samples[0, 16, 16] / problem.samples[0, 16, 16]).abs()
    kept = problem.mask.expand(3, -1, -1)
    assert torch.allclose(problem.samples[kept] * scale, full.samples[kept], rtol=1e-4, atol=1e-5 * float(full.samples.abs().max()))


def test_phase_encoding_center_comes_from_the_limits(scans):
    limits = "<kspace_encoding_step_1><minimum>0</minimum><maximum>31</maximum><center>12</center></kspace_encoding_step_1>"
    problem = cartesian_problem(scans, scans.Protocol(trajectory="cartesian", limits=limits))
    assert problem.cartesian
    # Lines above +15 lie outside the grid of 32.
    assert problem.trajectory[:, 0, 1].tolist()[:28] == list(range(-12, 16))
    assert problem.mask[:28].all()
    assert not problem.mask[28:].any()
    assert float(problem.trajectory.abs().max()) <= 16


def test_smaller_matrix_leaves_out_outer_lines(scans):
    settings = dataclasses.replace(SETTINGS, matrix=(20, 15))
    problem = cartesian_problem(scans, scans.Protocol(trajectory="cartesian"), settings)
    assert problem.shape == (15, 20)
    assert problem.trajectory[0, :, 0].tolist() == list(range(-10, 10))
    assert problem.mask.any(dim=1).nonzero()[:, 0].tolist() == list(range(16 - 7, 16 + 8))


def test_fields_of_view_that_do_not_fit_keep_fractional_k(scans):
    protocol = scans.Protocol(encoded_matrix=(32, 40, 1), encoded_fov=(320.0, 400.0, 8.0), matrix=(32, 32, 1), trajectory="cartesian")
    problem = cartesian_problem(scans, protocol)
    assert not problem.cartesian
    assert problem.trajectory[:, 0, 1].numpy() == pytest.approx((np.arange(40) - 20) * 0.8)


def test_readout_that_cannot_be_cropped_keeps_fractional_k(scans):
    """The reconstructed field of view is 33.6 of 36 pixels wide: k stays where it was measured, none beyond the resolution."""
    protocol = scans.Protocol(encoded_matrix=(36, 32, 1), encoded_fov=(343.0, 320.0, 8.0), matrix=(32, 32, 1), trajectory="cartesian")
    problem = cartesian_problem(scans, protocol)
    k = (np.arange(36) - 18) * 320 / 343
    assert not problem.cartesian
    assert problem.trajectory[3, :, 0].numpy() == pytest.approx(k[np.abs(k) <= 16], abs=1e-5)
    assert problem.mask.all()


def test_cartesian_volume(scans):
    protocol = scans.Protocol(**{**VOLUME, "matrix": (32, 32, 16), "fov": (320.0, 320.0, 128.0)}, trajectory="cartesian")
    lines = [
        scans.acquisition(np.ones((3, 32)), center_sample=16, kspace_encode_step_1=y, kspace_encode_step_2=z)
        for z in range(16)
        for y in (3, 20)
    ]
    problem = made(protocol.xml(), lines).problem
    assert problem.cartesian
    assert problem.shape == (16, 32, 32)
    assert problem.trajectory[:, 0, 1].tolist() == [-13, 4] * 16
    assert problem.trajectory[::2, 0, 2].tolist() == list(range(-8, 8))


def test_center_sample_outside_the_line(scans):
    lines = scans.cartesian(scans.Protocol(trajectory="cartesian"), noise=0.0)
    lines[3].center_sample = 3
    with pytest.raises(DataError, match=r"readout 3\.center_sample: 3 of 32"):
        made(scans.Protocol(trajectory="cartesian").xml(), lines)


def test_more_lines_than_encoded(scans):
    lines = scans.cartesian(scans.Protocol(trajectory="cartesian"), noise=0.0)
    lines[5].idx.kspace_encode_step_1 = 99
    with pytest.raises(DataError, match=r"kspace_encode_step_1: 0 to 99, the header announces 32"):
        made(scans.Protocol(trajectory="cartesian").xml(), lines)


def test_a_centre_that_puts_half_of_the_lines_outside_is_refused(scans):
    limits = "<kspace_encoding_step_1><minimum>0</minimum><maximum>31</maximum><center>0</center></kspace_encoding_step_1>"
    with pytest.raises(DataError, match=r"kspace_encoding_step_1\.center: 0, which puts 47 % of the steps \(0 to 31\)"):
        cartesian_problem(scans, scans.Protocol(trajectory="cartesian", limits=limits))


def test_partitions_of_a_slice_are_refused(scans):
    lines = scans.cartesian(scans.Protocol(trajectory="cartesian"), noise=0.0)
    for number, line in enumerate(lines):
        line.idx.kspace_encode_step_2 = number % 2
    with pytest.raises(DataError, match="kspace_encode_step_2: 0 to 1 in a slice"):
        made(scans.Protocol(trajectory="cartesian").xml(), lines)


# Noise


def coloured(n_coils=4, n=20000, seed=3):
    random = np.random.default_rng(seed)
    mixing = np.eye(n_coils) + 0.4 * (random.standard_normal((n_coils, n_coils)) + 1j * random.standard_normal((n_coils, n_coils)))
    white = (random.standard_normal((n_coils, n)) + 1j * random.standard_normal((n_coils, n))) / np.sqrt(2)
    return (3.0 * mixing @ white).astype(np.complex64)


def test_noise_readouts_whiten(scans):
    noise = NoiseReadouts()
    samples = coloured()
    for number, part in enumerate(np.split(samples, 10, axis=1)):
        noise.add(scans.acquisition(part, sample_time_us=5.0), number)
    assert len(noise) == 10
    matrix = noise.matrix(4, 5.0).numpy()
    covariance = np.cov(matrix @ coloured(seed=3)[:, :10000])
    assert np.abs(covariance - np.eye(4)).max() < 0.05
    # Half the dwell time is twice the bandwidth is twice the noise power: the matrix shrinks by √2.
    assert noise.matrix(4, 2.5).numpy() == pytest.approx(matrix / np.sqrt(2))
    # The noise readout's mean power is 0.8 of the power in the imaging band.
    assert noise.matrix(4, 5.0, bandwidth=0.8).numpy() == pytest.approx(matrix * np.sqrt(0.8))


def test_whitened_samples_reach_the_problem(scans):
    protocol = scans.Protocol(channels=4)
    random = np.random.default_rng(5)
    noise = NoiseReadouts()
    noise.add(scans.acquisition(coloured()), 0)
    k = random.uniform(-0.4, 0.4, (40, 500, 2))
    acquisitions = [scans.acquisition(part, k[row]) for row, part in enumerate(np.split(coloured(seed=3), 40, axis=1))]
    samples = made(protocol.xml(), acquisitions, whitening=noise.matrix(4)).problem.samples.numpy().reshape(4, -1)
    assert np.abs(np.cov(samples) - np.eye(4)).max() < 0.05


def test_without_noise_readouts_the_level_is_guessed_and_told(scans, heard):
    lines, report = heard
    random = np.random.default_rng(7)
    k = scans.spokes(60, 64, (0.5, 0.5))
    sigma = 4.0
    signal = 5000 * np.exp(-200 * np.square(k).sum(-1))
    noise = sigma / np.sqrt(2) * (random.standard_normal((3, 60, 64)) + 1j * random.standard_normal((3, 60, 64)))
    acquisitions = [scans.acquisition(signal[row] + noise[:, row], k[row]) for row in range(60)]
    result = made(scans.Protocol().xml(), acquisitions, report=report)
    assert noise_level((signal + noise).astype(np.complex64), k * 32, np.ones((60, 64), dtype=bool)) == pytest.approx(sigma, rel=0.05)
    outer = np.abs(k).max(axis=-1) > 0.47
    assert np.mean(np.abs(result.problem.samples.numpy()[:, outer]) ** 2) == pytest.approx(1.0, rel=0.1)
    assert any("no noise readouts" in line for line in lines)
    assert any("no noise readouts" in note for note in result.notes)


def test_noise_level_of_noiseless_data_stays_usable():
    samples = np.zeros((1, 4, 8), dtype=np.complex64)
    k = np.random.default_rng(0).uniform(-1, 1, (4, 8, 2))
    assert noise_level(samples, k, np.ones((4, 8), dtype=bool)) == 1.0
    samples[0, 0, 0] = 100.0
    assert noise_level(samples, k, np.ones((4, 8), dtype=bool)) == pytest.approx(0.01)


def test_noise_of_other_coils_is_refused(scans):
    noise = NoiseReadouts()
    noise.add(scans.acquisition(coloured()), 0)
    with pytest.raises(DataError, match="4 channels, imaging readouts have 3"):
        noise.matrix(3)
    with pytest.raises(DataError, match=r"readout 1\.active_channels: 2 channels"):
        noise.add(scans.acquisition(coloured(n_coils=2)), 1)


def test_noise_that_is_not_finite_is_refused(scans):
    bad = coloured()
    bad[1, 5] = np.nan
    with pytest.raises(DataError, match="readout 4: NaN or Inf in a noise readout"):
        NoiseReadouts().add(scans.acquisition(bad), 4)


def test_no_noise_no_matrix():
    assert NoiseReadouts().matrix(3) is None
