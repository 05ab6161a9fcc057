"""Scanner data through the stages (sources and licences: the data's READMEs)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gadgets import stages
from gadgets.scanfile import read_scan
from gadgets.settings import ChainSettings


def reconstructed(path, report=None, **settings: Any):
    scan = read_scan(path)
    images = list(stages.run(ChainSettings(device="cpu", **settings), scan.header, scan.items(), report))
    return [image for image in images if image.image_series_index == 1]


def magnitudes(images) -> np.ndarray:
    stacked = np.stack([image.data[0] * float(image.meta["RescaleSlope"]) for image in images])
    assert np.isfinite(stacked).all()
    return stacked


def psnr_db(image: np.ndarray, reference: np.ndarray) -> float:
    """After one least-squares scale, peak of the reference."""
    scale = (image * reference).sum() / np.square(image).sum()
    return float(20 * np.log10(reference.max() / np.sqrt(np.square(scale * image - reference).mean())))


def test_spiral_phantom_at_six_arms_a_frame(data_dir, heard):
    lines, report = heard
    path = data_dir / "acr_spiral_20ch" / "grid_slice.h5"
    frames = reconstructed(path, report, solver="cg_sense", readouts_per_frame=6, holdout=0.0, solver_settings={"damping": 0.1})
    assert len(frames) == 9
    assert tuple(frames[0].field_of_view) == (384.0, 384.0, 5.0)
    assert any("54 readouts, 20 channels, 9 frames of 192×192 pixels" in line for line in lines)
    whole = reconstructed(path, solver="cg_sense", readouts_per_frame=54, holdout=0.0, solver_settings={"damping": 0.01})
    reference = magnitudes(whole)[0, 0]
    # The phantom: a disc 170 mm wide around the centre of a field of 384 mm, with a dark grid in its upper part.
    inside = reference > 0.3 * reference.max()
    rows, columns = np.nonzero(inside)
    assert np.ptp(rows) * 2.0 == pytest.approx(190, abs=15)
    assert np.ptp(columns) * 2.0 == pytest.approx(190, abs=15)
    assert all(psnr_db(frame[0], reference) > 18 for frame in magnitudes(frames))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_static_phantom_stays_still_at_six_arms_a_frame(data_dir):
    """INMR, its λ and stopping held-out: every frame near what all arms give, and nothing moves that does not move."""
    path = data_dir / "acr_spiral_20ch" / "grid_slice.h5"
    reference = magnitudes(reconstructed(path, solver="cg_sense", readouts_per_frame=54))[0, 0]
    frames = magnitudes(reconstructed(path, solver="inmr", readouts_per_frame=6))[:, 0]
    assert len(frames) == 9
    assert min(psnr_db(frame, reference) for frame in frames) >= 28
    inside = reference > 0.2 * reference.max()
    assert frames.std(axis=0)[inside].mean() <= 0.05 * frames.mean(axis=0)[inside].mean()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_lung_volumes_at_full_matrix_decay(data_dir):
    path = data_dir / "lung_radial_3d" / "spokes_a.h5"
    series = magnitudes(reconstructed(path, solver="cg_sense", readouts_per_frame=115, dimension=3))
    assert series.size == 20 * 64**3
    assert (np.diff(series.reshape(20, -1).mean(axis=1)) < 0).all()


def test_lung_stream_gives_twenty_volumes(data_dir, heard):
    lines, report = heard
    path = data_dir / "lung_radial_3d" / "spokes_a.h5"
    settings = {"solver": "cg_sense", "readouts_per_frame": 115, "holdout": 0.0, "matrix": (32,), "dimension": 3}
    volumes = reconstructed(path, report, solver_settings={"damping": 0.1}, **settings)
    assert len(volumes) == 20
    assert "1 readout left over after the last whole frame joined it" in lines
    assert tuple(volumes[0].getHead().matrix_size) == (32, 32, 32)
    assert tuple(volumes[0].field_of_view) == (64.0, 64.0, 64.0)
    series = magnitudes(volumes)
    lungs = series[0] > 0.5 * np.percentile(series[0], 99)
    course = series[:, lungs].mean(axis=1)
    assert (np.diff(course) < 0).all()
    assert 3 < course[0] / course[-1] < 10
    # Two lungs and the airways fill part of the body, not the field of view.
    assert 0.02 < lungs.mean() < 0.3


def test_head_and_its_coils(data_dir):
    path = data_dir / "head_flash_16ch" / "invivo_head_16ch.h5"
    (image,) = reconstructed(path, solver="gridding", readouts_per_frame=128)
    head = magnitudes([image])[0, 0]
    assert head.shape == (128, 128)
    # The plain answer for fully sampled Cartesian data, by an FFT of our own.
    lines = np.stack([a.data for a in read_scan(path).items()], axis=1)
    coils = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(lines, axes=(1, 2))), axes=(1, 2))
    plain = np.sqrt(np.square(np.abs(coils)).sum(axis=0))
    # Inside the head: outside, the root-sum-of-squares of 16 coils' noise has a bias that the combined image lacks.
    inside = plain > 0.15 * plain.max()
    assert psnr_db(head[inside], plain[inside]) > 45


def test_three_echoes_are_three_problems(data_dir):
    images = reconstructed(data_dir / "gre_3echo_phantom" / "gre_3echo.h5", solver="gridding", readouts_per_frame=256)
    assert [(i.contrast, i.meta["EchoTime"], i.image_index) for i in images] == [(0, "4", 1), (1, "9", 2), (2, "15", 3)]
    means = magnitudes(images).mean(axis=(1, 2, 3))
    assert (np.diff(means) < 0).all()
    assert len({i.meta["RescaleSlope"] for i in images}) == 1


def test_undersampled_volumes(data_dir):
    path = data_dir / "hp_rat_kidney_bolus_3d" / "urea_vfa_full.h5"
    volumes = reconstructed(path, solver="gridding", readouts_per_frame=480)
    assert len(volumes) == 8
    assert tuple(volumes[0].getHead().matrix_size) == (80, 40, 12)
    energy = np.square(magnitudes(volumes)).sum(axis=(1, 2, 3))
    # Frame 0 is noise before the bolus arrives.
    assert energy[1] > 2 * energy[0]
