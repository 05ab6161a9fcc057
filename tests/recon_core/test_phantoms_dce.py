"""The contrast-enhanced phantom: curves, breathing, stack of stars, truth."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from recon_core.errors import SettingError
from recon_core.metrics import align, moving_region, psnr_db
from recon_core.phantoms.coils import LoopArray, grid_axes
from recon_core.phantoms.dce import REGIONS, DceObject, DceSettings, _sample, simulate
from recon_core.phantoms.enhancement import TISSUES, Enhancement, aorta_concentration
from recon_core.phantoms.physiology import Physiology

SMALL = DceSettings(matrix=(24, 28), partitions=4, field_of_view=(300.0, 340.0), thickness=20.0, coils=3, frames=6, slice_oversampling=0.5)


@pytest.fixture(scope="module")
def small():
    return simulate(SMALL)


@pytest.fixture(scope="module")
def person():
    return Enhancement.make(90.0, 8.0, np.random.default_rng(0))


def test_the_aorta_follows_parker():
    """Values of the published function, worked out by hand from its parameters, after its first two seconds."""
    t = np.array([10.2276, 21.9, 60.0])
    expected = []
    for m in t / 60:
        first = 0.809 / (0.0563 * math.sqrt(2 * math.pi)) * math.exp(-((m - 0.17046) ** 2) / (2 * 0.0563**2))
        second = 0.330 / (0.132 * math.sqrt(2 * math.pi)) * math.exp(-((m - 0.365) ** 2) / (2 * 0.132**2))
        expected.append(first + second + 1.05 * math.exp(-0.1685 * m) / (1 + math.exp(-38.078 * (m - 0.483))))
    np.testing.assert_allclose(aorta_concentration(t), expected, rtol=1e-9)
    assert aorta_concentration(np.array([-3.0, 0.0])).tolist() == [0, 0]
    peak = aorta_concentration(np.arange(0, 60, 0.1))
    assert 5.5 < peak.max() < 6.5
    assert peak.argmax() * 0.1 == pytest.approx(10.4, abs=0.5)


def test_tissues_enhance_in_the_order_of_the_circulation(person):
    times = np.arange(0, 90, 0.2)
    signal = dict(zip(TISSUES, person.signals(times), strict=True))
    rise = {name: signal[name] - signal[name][0] for name in TISSUES}
    half = {name: times[np.argmax(course > 0.5 * course.max())] for name, course in rise.items() if course.max() > 0}
    assert 8 < half["aorta"] < half["spleen"] < half["portal_vein"] < half["liver"]
    assert half["aorta"] < half["cortex"] < half["portal_vein"]
    assert 8 < half["portal_vein"] - half["aorta"] < 20
    assert rise["liver"].max() < 0.6 * rise["aorta"].max()
    assert float(np.abs(rise["fat"]).max()) == 0.0
    assert all(np.abs(course[times < 8]).max() < 1e-12 for course in rise.values())
    # What enters the gut leaves it: the delayed curve keeps the area.
    grid = person.grid
    aorta, portal = (np.cumsum(person.concentrations[TISSUES.index(n)]) for n in ("aorta", "portal_vein"))
    np.testing.assert_allclose(portal[grid > 75], aorta[(grid > 60)][: (grid > 75).sum()], rtol=0.05)


def _slab(**changes):
    settings = dataclasses.replace(SMALL, **changes)
    rng = np.random.default_rng(3)
    physiology = Physiology(np.arange(-1, 9) * 1.0, np.ones(10), np.arange(-10, 90, 10) * 1.0, np.ones(10))
    return settings, DceObject(settings, physiology, Enhancement.make(60.0, 8.0, rng), rng)


def test_breathing_moves_the_liver_down_and_leaves_spine_and_aorta():
    _, slab = _slab(matrix=(64, 64), partitions=8, thickness=12.0, field_of_view=(320.0, 320.0))
    centres = {}
    for name in ("liver", "aorta", "spleen"):
        rows = []
        for breath in (0.0, 1.0):
            share = slab.breathed(slab.body.shares[TISSUES.index(name)], breath)
            rows.append(float((share * slab.z[:, None, None]).sum() / share.sum()))
        centres[name] = rows[1] - rows[0]
    assert -12 * slab.scale < centres["liver"] < -3 * slab.scale
    assert abs(centres["aorta"]) < 1.5
    before, after = (slab.breathed(slab.body.shares[TISSUES.index("muscle")], b) for b in (0.0, 1.0))
    spine = (slice(None), int(62 * slab.scale / 320 * 128) + 64 - slab.rows.start, 64)
    assert float((before[spine] - after[spine]).abs().max()) < 0.15


def test_shares_are_shares():
    _, slab = _slab()
    total = slab.body.shares.sum(0)
    assert float(total.min()) >= 0
    assert float(total.max()) <= 1 + 1e-5
    assert float(slab.body.shares.min()) >= -1e-6


def test_maps_of_a_plane_are_those_of_the_loops_moved_the_other_way():
    array = LoopArray(4, (90.0, 130.0), (300.0, 320.0), np.random.default_rng(4))
    y, x = grid_axes((20, 24), (300.0, 320.0))
    middle, above = array.maps(y, x), array.maps(y, x, plane=30.0)
    moved = LoopArray(4, (90.0, 130.0), (300.0, 320.0), np.random.default_rng(4))
    moved.centres = moved.centres - np.array([0, 0, 30.0])
    moved._middle = moved._fields(0.0)
    np.testing.assert_allclose(moved.maps(y, x), above, rtol=1e-6)
    assert np.linalg.norm(above - middle) > 0.1 * np.linalg.norm(middle)


@pytest.mark.parametrize("order", ["linear", "centre_out"])
def test_samples_are_the_exact_sum_of_the_volume_at_each_readouts_time(order):
    settings, slab = _slab(order=order, coils=2, repetition_time=30.0)
    rng = np.random.default_rng(5)
    shape = (slab.shape[0], slab.rows.stop - slab.rows.start, slab.shape[2])
    maps = (rng.standard_normal((2, *shape)) + 1j * rng.standard_normal((2, *shape))).astype(np.complex64)
    each = settings.encoded
    k = rng.uniform(-10, 10, (2, 1, 5, 3)).repeat(each, axis=1).astype(np.float32)
    partitions = np.tile(np.arange(each), 2)
    k[..., 2] = ((partitions - each // 2) * settings.partitions / settings.encoded).reshape(2, each, 1)
    trajectory = k.reshape(2 * each, 5, 3)
    times = np.concatenate([first + 0.03 * np.arange(each) for first in (1.0, 14.0)])
    k_z = trajectory[:, 0, 2] / (settings.thickness * settings.partitions)
    samples = _sample(slab, maps, trajectory, k_z.astype(np.float64), times, settings, None)
    y = (np.arange(slab.shape[1]) / slab.shape[1] - 0.5)[slab.rows]
    x = np.arange(slab.shape[2]) / slab.shape[2] - 0.5
    z = slab.z.numpy().astype(float)
    voxels = settings.partitions * math.prod(settings.matrix)
    scale = voxels * settings.encoded / settings.partitions / math.prod(slab.shape) / math.sqrt(voxels)
    for number in (0, 1, each - 1, each, 2 * each - 2):
        weighted = maps * slab.at(float(times[number])).numpy()
        for j, (kx, ky, _) in enumerate(trajectory[number]):
            wave = np.exp(-2j * np.pi * (k_z[number] * z[:, None, None] + ky * y[None, :, None] + kx * x[None, None, :]))
            exact = scale * (weighted * wave).sum((1, 2, 3))
            np.testing.assert_allclose(samples[:, number, j], exact, atol=5e-3 * np.abs(samples).max())


def test_a_full_scan_gives_the_truth_back_in_scale_and_place():
    """Many angles of an unchanging moment: the whitened root-sum-of-squares volume is the truth."""
    settings = dataclasses.replace(SMALL, frames=2, spokes_per_frame=40, duration=4.0, coils=2, snr=1e4, slice_oversampling=0.25)
    scan = simulate(settings)
    whiten = np.linalg.inv(np.linalg.cholesky(scan.noise @ scan.noise.conj().T / scan.noise.shape[1]))
    samples = np.tensordot(whiten, scan.samples, axes=1)
    k = scan.trajectory.reshape(-1, 3).astype(np.float64)
    per_mm = np.hypot(k[:, 0] / 340, k[:, 1] / 300)
    spacing = np.diff(np.sort(np.unique(per_mm.round(6))))[:5].mean()
    area = np.where(per_mm < 1e-9, np.pi * spacing**2 / 4 / 80, np.pi * per_mm * spacing / 80) * 340 * 300
    area *= settings.partitions / settings.encoded
    z, y, x = (np.arange(n) - n // 2 for n in (4, 24, 28))
    along_z = np.exp(2j * np.pi * k[:, 2, None] * z / 4)
    plane = np.exp(2j * np.pi * k[:, 1, None] * y / 24)[:, :, None] * np.exp(2j * np.pi * k[:, 0, None] * x / 28)[:, None]
    weighted = samples.reshape(2, -1) * area
    volume = np.stack([np.einsum("cp,p,pyx->cyx", weighted, along_z[:, n], plane, optimize=True) for n in range(4)], axis=1)
    combined = np.linalg.norm(volume, axis=0) / math.sqrt(4 * 24 * 28)
    truth = np.abs(scan.truth).mean(0)
    assert psnr_db(combined[None], truth[None])[0] > 24
    scaled, _ = align(combined[None], truth[None])
    assert np.linalg.norm(scaled) / np.linalg.norm(combined) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("order", ["linear", "centre_out"])
def test_partial_partitions_and_their_order(order):
    scan = simulate(dataclasses.replace(SMALL, partial=0.7, order=order, frames=2, coils=1))
    measured = sorted(set(scan.partitions.tolist()))
    assert measured == [1, 2, 3, 4, 5]  # ceil(0.7 · 6) of 6, the far end of kz
    first = scan.partitions[:5]
    assert first[0] == (3 if order == "centre_out" else 1)
    assert np.abs(np.diff(np.abs(first - 3))).max() <= 1
    np.testing.assert_allclose(scan.trajectory[:, 0, 2], (scan.partitions - 3) * 4 / 6, rtol=1e-6)
    assert len(set(scan.angles[:5].tolist())) == 1
    angle = np.arctan2(scan.trajectory[:, -1, 1] / 300, scan.trajectory[:, -1, 0] / 340)
    assert np.ptp(angle[:5]) < 1e-6
    np.testing.assert_allclose(np.diff(scan.times[:5]), 4e-3)


def test_truth_regions_and_curves(small):
    assert small.truth.shape == (6, 4, 24, 28)
    np.testing.assert_array_equal(small.moving, moving_region(small.truth))
    assert set(small.regions) == set(small.curves) == set(REGIONS)
    for name, region in small.regions.items():
        assert region.any()
        np.testing.assert_allclose(small.curves[name], np.abs(small.truth[:, region]).mean(axis=1), rtol=1e-5)
    assert small.curves["aorta"].argmax() < small.curves["portal_vein"].argmax()
    assert small.curves["aorta"].max() > 3 * small.curves["aorta"][0]
    np.testing.assert_allclose(small.frame_times, small.times.reshape(6, -1).mean(axis=1))
    body = np.abs(small.truth).mean(0)
    assert body[body > 0.15 * body.max()].mean() == pytest.approx(25, rel=1e-3)


def test_seeds_repeat_and_differ(small):
    again, other = simulate(SMALL), simulate(dataclasses.replace(SMALL, seed=1))
    np.testing.assert_array_equal(again.samples, small.samples)
    assert np.linalg.norm(other.truth - small.truth) > 0.05 * np.linalg.norm(small.truth)
    assert torch.get_num_threads() >= 1


def test_angles_that_do_not_fit_are_refused():
    with pytest.raises(SettingError, match="duration"):
        simulate(dataclasses.replace(SMALL, duration=1.0, frames=200))
