"""Curves of regions, profiles along lines, field maps from files."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from gadgets import stages
from gadgets.courses import Line, Region, parse_lines, parse_regions, profile, region_curves
from gadgets.scanfile import read_scan, read_truth
from gadgets.settings import ChainSettings
from gadgets.simulation import store
from recon_core.errors import DataError, SettingError
from recon_core.metrics import align
from recon_core.phantoms import speech
from recon_core.phantoms.settings import SpeechSettings
from recon_core.problem import ImageSeries


def series(shape=(5, 3, 12, 9)):
    values = np.random.default_rng(0).standard_normal((*shape, 2)).view(np.complex128)[..., 0].astype(np.complex64)
    return ImageSeries(torch.from_numpy(values), torch.arange(shape[0], dtype=torch.float64))


def test_regions_and_lines_are_read():
    assert parse_regions("") == ()
    assert parse_regions("aorta=4,7,1,2.5; liver = 2,3,4") == (Region("aorta", 4, 7, 2.5, 1), Region("liver", 2, 3, 4.0, 0))
    assert parse_lines("tongue=0,1,8,11;lip=1,1,1,5,2") == (Line("tongue", (0, 1), (8, 11)), Line("lip", (1, 1), (1, 5), 2))


@pytest.mark.parametrize("text", ["4,7,1", "a=1,2", "a=1,2,3,4,5", "a=1,x,3", "a=1,2,3;a=1,2,4", "a=1,2,inf", "a=1,2,0.5,3", "a=1,2,-3"])
def test_unreadable_regions_are_named(text):
    with pytest.raises(SettingError, match="regions"):
        parse_regions(text)


def test_curves_are_means_of_magnitudes():
    images = series()
    (curve,) = region_curves(images, (Region("a", x=3, y=5, radius=1.0, z=2),))
    cross = [(5, 3), (4, 3), (6, 3), (5, 2), (5, 4)]
    expected = np.mean([np.abs(images.images.numpy()[:, 2, y, x]) for y, x in cross], axis=0)
    np.testing.assert_allclose(curve, expected, rtol=1e-6)
    single = region_curves(images, (Region("a", x=3, y=5, radius=0.0, z=0),))[0]
    np.testing.assert_allclose(single, np.abs(images.images.numpy()[:, 0, 5, 3]), rtol=1e-6)
    with pytest.raises(SettingError, match="a at"):
        region_curves(images, (Region("a", x=9, y=5, radius=1.0),))


def test_profiles_run_from_start_to_end_between_pixels():
    images = series()
    magnitude = np.abs(images.images.numpy()[:, 1])
    along = profile(images, Line("a", (2.0, 3.0), (2.0, 8.0), 1))
    np.testing.assert_allclose(along, magnitude[:, 3:9, 2].T, rtol=1e-5)
    between = profile(images, Line("a", (0.5, 0.0), (7.5, 0.0), 1))
    np.testing.assert_allclose(between, ((magnitude[:, 0, :8] + magnitude[:, 0, 1:]) / 2).T, rtol=1e-5)
    for line in (Line("a", (0, 0), (9, 0), 1), Line("a", (0, 0), (1, 1), 3)):
        with pytest.raises(SettingError, match="profiles"):
            profile(images, line)


def test_the_chain_sends_curves_and_profiles_after_the_images(scans):
    settings = ChainSettings(solver="gridding", readouts_per_frame=8, regions="a=16,16,3;b=4,20,2", profiles="p=2,3,20,3")
    images = list(stages.run(settings, *scans.radial_scan(n=24)))
    # Series 2 is kept for latents, which gridding has none of.
    assert [i.image_series_index for i in images] == [1, 1, 1, 3, 4]
    curves, line = images[3], images[4]
    assert curves.data.shape[-2:] == (2, 3)
    assert line.data.shape[-2:] == (19, 3)
    assert curves.meta["SeriesDescriptionAdditional"] == "curves"
    assert "a, b" in curves.meta["ImageComments"]
    assert len(line.meta["FrameTimes_s"]) == 3
    assert np.isfinite(curves.data).all()
    assert curves.data.min() > 0
    with pytest.raises(SettingError, match="regions"):
        next(stages.run(dataclasses.replace(settings, regions="a=1"), *scans.radial_scan(n=24)))


def test_a_field_map_reaches_the_method(scans, tmp_path):
    given = np.linspace(-300, 300, 64 * 64, dtype=np.float64).reshape(64, 64)
    np.save(tmp_path / "field.npy", given)
    xml, acquisitions = scans.radial_scan(n=8)
    for acquisition in acquisitions:
        acquisition.sample_time_us = 5.0
        acquisition.center_sample = 32
    problems = []

    def method(problem, settings, solver_settings, progress):
        problems.append(problem)
        raise InterruptedError

    settings = ChainSettings(field_map=str(tmp_path / "field.npy"), readouts_per_frame=4)
    with pytest.raises(InterruptedError):
        list(stages.run(settings, xml, acquisitions, method=method))
    (problem,) = problems
    assert problem.field_map.shape == (32, 32)
    assert float(problem.field_map[16, 16]) == pytest.approx(given[32, 32], abs=0.1)
    assert float(problem.sample_times[32]) == 0
    assert float(problem.sample_times[0]) == pytest.approx(-32 * 5e-6)
    acquisitions[3].sample_time_us = 6.0
    with pytest.raises(DataError, match="sample_time_us"):
        list(stages.run(settings, xml, acquisitions, method=method))
    for acquisition in acquisitions:
        acquisition.sample_time_us = 0.0
    with pytest.raises(DataError, match="sample_time_us"):
        list(stages.run(settings, xml, acquisitions, method=method))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (np.zeros((4, 4), dtype=complex), "complex"),
        (np.zeros((5, 8, 8)), "5 maps"),
        (np.full((8, 8), np.nan), "finite"),
        (None, "cannot read"),
    ],
)
def test_field_maps_that_do_not_fit_are_told(scans, tmp_path, content, words):
    path = tmp_path / "field.npy"
    if content is not None:
        np.save(path, content)
    settings = ChainSettings(solver="gridding", field_map=str(path), readouts_per_frame=4)
    with pytest.raises(SettingError, match=words):
        list(stages.run(settings, *scans.radial_scan(n=8)))


@pytest.fixture(scope="module")
def speech_scan(tmp_path_factory):
    """Fully sampled frames of speech off resonance, and their truth."""
    scan = speech.simulate(SpeechSettings(matrix=(48, 48), coils=3, frames=3, readouts_per_frame=13, detail=3, off_resonance=250.0))
    path = tmp_path_factory.mktemp("speech") / "scan.h5"
    store(path, scan)
    return path, scan.truth


def test_a_map_is_estimated_from_the_images_phase(speech_scan, tmp_path):
    path, truth = speech_scan

    def error(**changed) -> float:
        scan = read_scan(path)
        settings = ChainSettings(solver="cg_sense", readouts_per_frame=13, image_type="complex", **changed)
        images = [i for i in stages.run(settings, scan.header, scan.items()) if i.image_series_index == 1]
        assert len(images) == 3
        assert ("off-resonance estimated from the phase at TE 0.8 ms" in images[0].meta["ImageComments"]) == bool(changed)
        found, reference = align(np.stack([i.data[0, 0] for i in images]), truth)
        return float(np.linalg.norm(found - reference) / np.linalg.norm(reference))

    assert error(field_map="estimate") < 0.7 * error()
    # A map that is wrong by a fifth, mended.
    wrong = tmp_path / "map.npy"
    np.save(wrong, 1.2 * read_truth(path).field_maps)
    assert error(field_map=f"estimate:{wrong}") < 0.7 * error()


def test_an_archive_is_no_field_map(scans, tmp_path):
    np.savez(tmp_path / "maps.npz", one=np.zeros((8, 8)), two=np.zeros((8, 8)))
    xml, acquisitions = scans.radial_scan(n=8)
    settings = ChainSettings(solver="gridding", field_map=str(tmp_path / "maps.npz"), readouts_per_frame=4)
    with pytest.raises(SettingError, match="several arrays"):
        list(stages.run(settings, xml, acquisitions))


def test_what_an_estimate_needs_is_asked_for_before_the_fit(speech_scan, scans):
    def method(*_):
        raise AssertionError("fitted")

    scan = read_scan(speech_scan[0])
    settings = ChainSettings(field_map="estimate", readouts_per_frame=13)
    with pytest.raises(DataError, match="TE"):
        list(stages.run(settings, scan.header.replace("<TE>0.8</TE>", ""), scan.items(), method=method))
    with pytest.raises(SettingError, match="cannot read"):
        list(stages.run(dataclasses.replace(settings, field_map="estimate:missing.npy"), scan.header, scan.items(), method=method))
    xml, acquisitions = scans.radial_scan(n=8)
    for acquisition in acquisitions:
        acquisition.sample_time_us = 5.0
    with pytest.raises(DataError, match="start at"):
        list(stages.run(settings, xml.replace("</sequenceParameters>", "<TE>2</TE></sequenceParameters>"), acquisitions, method=method))
