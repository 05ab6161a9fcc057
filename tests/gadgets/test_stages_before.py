"""Scans that Gadgetron's own stages have whitened or compressed: noticed, told, and not done twice."""

from __future__ import annotations

import ismrmrd
import numpy as np
import pytest
import torch

from gadgets import stages
from gadgets.noise import arrives_whitened
from gadgets.settings import ChainSettings
from recon_core.errors import DataError
from recon_core.problem import ImageSeries
from recon_core.reconstruct import Reconstruction

NOISE = ismrmrd.ACQ_IS_NOISE_MEASUREMENT
COVARIANCE = np.array([[1.0, 0.4j, 0.1], [-0.4j, 2.0, 0.3], [0.1, 0.3, 0.5]])


class Recorder:
    """Keeps what a solver would get."""

    def __init__(self) -> None:
        self.problems = []
        self.common = []

    def __call__(self, problem, settings, solver_settings, progress):
        self.problems.append(problem)
        self.common.append(settings)
        images = torch.ones((problem.n_frames, *problem.shape), dtype=torch.complex64)
        return Reconstruction(ImageSeries(images, problem.frame_times, None, ()), {"seconds": {"total": 0.0}})


def noisy(shape, covariance=COVARIANCE, level=1e-3, seed=0) -> np.ndarray:
    """Complex noise [coil, ...] with E[n nᴴ] = level²·covariance."""
    random = np.random.default_rng(seed)
    white = (random.standard_normal(shape) + 1j * random.standard_normal(shape)) / np.sqrt(2)
    return level * np.tensordot(np.linalg.cholesky(covariance), white, axes=1)


@pytest.fixture
def scan(scans):
    """A scan of a smooth object whose coils share their noise, and its noise readouts."""
    protocol = scans.Protocol(matrix=(48, 40, 1), fov=(240.0, 200.0, 8.0), encoded_matrix=(48, 40, 1), encoded_fov=(240.0, 200.0, 8.0))
    xml, imaging = scans.radial_scan(protocol, n=64, noise=0.0)
    top = max(np.abs(a.data).max() for a in imaging)
    for number, acquisition in enumerate(imaging):
        acquisition.data[:] = acquisition.data / top + noisy(acquisition.data.shape, seed=number)
    noise = [scans.acquisition(noisy((3, 4000), seed=1000 + n), flags=(NOISE,)) for n in range(4)]
    return xml, noise, imaging


def after_noise_adjust(scans, imaging, covariance=COVARIANCE, level=1e-3):
    """What Gadgetron's NoiseAdjust hands on: whitened, noise of real and imaginary part 1 each, noise readouts gone."""
    matrix = np.sqrt(2) * np.linalg.inv(np.linalg.cholesky(level**2 * covariance))
    return [scans.acquisition(matrix @ a.data, a.traj, acquisition_time_stamp=n) for n, a in enumerate(imaging)]


def after_pca(scans, imaging, coils):
    """What PCACoilGadget and CoilReductionGadget hand on."""
    stacked = np.concatenate([a.data for a in imaging], axis=1)
    rotation = np.linalg.svd(stacked, full_matrices=False)[0].conj().T[:coils]
    return [scans.acquisition(rotation @ a.data, a.traj, acquisition_time_stamp=n) for n, a in enumerate(imaging)]


def run(xml, items, report=None, **settings):
    recorder = Recorder()
    images = list(stages.run(ChainSettings(readouts_per_frame=8, **settings), xml, items, report, recorder))
    return recorder, images


def gram(problem) -> np.ndarray:
    """Inner products of the channels' samples' power, which no unitary mixture of channels changes."""
    samples = problem.samples.numpy().reshape(problem.n_coils, -1)
    return (samples.conj() * samples).sum(axis=0).real


@pytest.mark.parametrize("declared", [None, True])
def test_whitened_by_gadgetron_or_by_us_is_the_same(scans, scan, heard, declared):
    xml, noise, imaging = scan
    ours, _ = run(xml, [*noise, *imaging])
    lines, report = heard
    theirs, images = run(xml, after_noise_adjust(scans, imaging), report, whitened=declared)
    difference = gram(theirs.problems[0]) / gram(ours.problems[0])
    assert np.median(difference) == pytest.approx(1, abs=0.05)
    assert np.percentile(np.abs(difference - 1), 95) < 0.1
    word = "whitened by a stage before this one"
    assert any(word in line for line in lines)
    assert word in images[0].meta["ImageComments"]
    assert not any("no noise readouts" in line for line in lines)


def test_a_scan_that_nobody_whitened_is_not_taken_for_one(scans, scan, heard):
    xml, _, imaging = scan
    lines, report = heard
    _, images = run(xml, imaging, report)
    assert any("no noise readouts: noise level" in line for line in lines)
    assert "whitened by" not in images[0].meta["ImageComments"]


def test_noise_adjust_without_noise_hands_on_what_it_got_and_that_is_noticed(scans, scan, heard):
    """The chain says whitened; the samples cannot be."""
    xml, _, imaging = scan
    lines, report = heard
    told, images = run(xml, imaging, report, whitened=True)
    plain, _ = run(xml, imaging)
    assert np.array_equal(told.problems[0].samples, plain.problems[0].samples)
    assert any("declared whitened, but a channel's outer k-space is at" in line for line in lines)
    assert "declared whitened, but" in images[0].meta["ImageComments"]


def test_noise_readouts_of_a_whitened_scan_are_told_and_not_used(scans, scan, heard):
    xml, noise, imaging = scan
    lines, report = heard
    adjusted = after_noise_adjust(scans, imaging)
    with_noise, _ = run(xml, [*noise, *adjusted], report, whitened=True)
    without, _ = run(xml, adjusted, whitened=True)
    assert np.array_equal(with_noise.problems[0].samples, without.problems[0].samples)
    assert any("4 noise readouts not used" in line for line in lines)


def test_declared_not_whitened_is_never_doubted(scans, scan):
    xml, _, imaging = scan
    _, images = run(xml, after_noise_adjust(scans, imaging), whitened=False)
    assert "no noise readouts: noise level" in images[0].meta["ImageComments"]


@pytest.mark.parametrize(
    ("covariance", "level", "expected"),
    [
        (np.eye(3), np.sqrt(2), True),
        (np.eye(3), 1.0, False),
        (np.eye(3), 30.0, False),
        (np.diag([1.0, 2.0, 1.0]), np.sqrt(2), False),
        (np.array([[1.0, 0.4j, 0], [-0.4j, 1.0, 0], [0, 0, 1.0]]), np.sqrt(2), False),
    ],
)
def test_only_the_covariance_of_whitened_noise_is_believed_undeclared(covariance, level, expected):
    k = np.stack(np.broadcast_arrays(np.linspace(-20, 20, 80)[None, :], np.zeros((50, 1))), axis=-1).astype(np.float32)
    samples = noisy((3, 50, 80), covariance, level).astype(np.complex64)
    used = np.ones((50, 80), dtype=bool)
    assert arrives_whitened(samples, k, used, None)[0] is expected
    assert arrives_whitened(samples[:, :2], k[:2], used[:2], None) == (False, "")


def test_fewer_channels_than_announced_are_compressed_already(scans, scan, heard):
    """None of the channels that a compression before us left is thrown away, though `coils` is lower."""
    xml, _, imaging = scan
    lines, report = heard
    recorder, images = run(xml, after_pca(scans, imaging, 2), report, coils=1)
    assert recorder.problems[0].n_coils == 2
    assert recorder.common[0].coils == 2
    words = "coils compressed by a stage before this one: 2 of 3 channels"
    assert words in lines
    assert words in images[0].meta["ImageComments"]


def test_compression_can_be_declared_where_no_channel_is_missing(scans, scan):
    xml, _, imaging = scan
    recorder, images = run(xml, after_pca(scans, imaging, 3), coils=1, compressed=True)
    assert recorder.common[0].coils == 3
    assert "coils compressed by a stage before this one" in images[0].meta["ImageComments"]
    assert run(xml, imaging, coils=1)[0].common[0].coils == 1


def test_missing_channels_are_an_error_where_nobody_compresses(scans, scan):
    xml, _, imaging = scan
    with pytest.raises(DataError) as caught:
        run(xml, after_pca(scans, imaging, 2), compressed=False)
    assert (caught.value.field, "receiverChannels=3" in caught.value.problem) == ("readout 0.active_channels", True)


def test_compressed_readouts_keep_their_channels(scans, scan):
    xml, _, imaging = scan
    mixed = [*after_pca(scans, imaging[:5], 2), *imaging[5:]]
    with pytest.raises(DataError) as caught:
        run(xml, mixed)
    assert caught.value.field == "readout 5.active_channels"
    assert "3 channels, the header announces receiverChannels=3 and readouts before have 2" in caught.value.problem


def test_more_channels_than_announced_are_an_error(scans):
    _, imaging = scans.radial_scan()
    with pytest.raises(DataError, match="receiverChannels=2"):
        run(scans.Protocol(channels=2).xml(), imaging)


def test_float_images_hold_the_magnitudes_themselves(scans):
    xml, imaging = scans.radial_scan(n=16)
    settings = {"solver": "gridding", "readouts_per_frame": 8, "device": "cpu"}
    exact, real = (list(stages.run(ChainSettings(image_type=kind, **settings), xml, imaging)) for kind in ("complex", "float"))
    assert len(exact) == len(real) == 2
    for one, other in zip(exact, real, strict=True):
        assert other.data.dtype == np.float32
        assert other.image_type == ismrmrd.IMTYPE_MAGNITUDE
        assert np.array_equal(other.data, np.abs(one.data))
        assert "RescaleSlope" not in other.meta
