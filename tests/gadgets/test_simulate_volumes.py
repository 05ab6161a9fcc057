"""Simulated speech and contrast-enhanced scans as other software reads them."""

import dataclasses

import ismrmrd
import ismrmrd.xsd
import numpy as np
import pytest

from gadgets import cli
from gadgets.flags import Kind, kind
from gadgets.header import parse
from gadgets.scanfile import read_scan, read_truth
from gadgets.simulation import Slice, header, store
from recon_core.phantoms import dce, speech
from recon_core.phantoms.settings import DceSettings, SpeechSettings

STARS = DceSettings(matrix=(20, 24), partitions=4, thickness=20.0, coils=2, frames=3, slice_oversampling=0.5, partial=0.7)


def _imaging(path):
    return [a for a in read_scan(path).items() if isinstance(a, ismrmrd.Acquisition) and kind(a) is Kind.IMAGING]


@pytest.fixture(scope="module")
def stars(tmp_path_factory):
    scan = dce.simulate(STARS)
    path = tmp_path_factory.mktemp("stars") / "scan.h5"
    store(path, scan)
    return scan, path


def test_a_stack_of_stars_says_where_each_readout_lies(stars):
    scan, path = stars
    imaging = _imaging(path)
    assert [a.idx.kspace_encode_step_1 for a in imaging] == scan.angles.tolist()
    assert [a.idx.kspace_encode_step_2 for a in imaging] == scan.partitions.tolist()
    encoding = parse(read_scan(path).header).encoding(0)
    assert encoding.encoded.matrix[2] == 6
    assert encoding.recon.matrix == (24, 20, 4)
    assert encoding.encoded.field_of_view[2] == pytest.approx(120)
    assert encoding.recon.field_of_view[2] == pytest.approx(80)
    limit = encoding.limits["kspace_encoding_step_2"]
    assert (limit.minimum, limit.maximum, limit.center) == (1, 5, 3)
    stored = np.stack([a.traj for a in imaging])
    assert np.abs(stored).max() <= 0.5 + 1e-6
    per_pixel = np.array(encoding.recon.field_of_view) / np.array(encoding.encoded.field_of_view) * np.array(encoding.encoded.matrix)
    np.testing.assert_allclose(stored * per_pixel, scan.trajectory, atol=1e-5)
    np.testing.assert_allclose(stored[:, 0, 2], (scan.partitions - 3) / 6, atol=1e-6)
    ismrmrd.xsd.CreateFromDocument(header(scan))


def test_its_truth_has_regions_curves_and_a_belt(stars):
    scan, path = stars
    truth = read_truth(path)
    assert truth.phantom == dce.PHANTOM_VERSION
    np.testing.assert_array_equal(truth.images, scan.truth)
    assert truth.field_maps is None
    assert set(truth.regions) == set(dce.REGIONS)
    for name in dce.REGIONS:
        np.testing.assert_array_equal(truth.regions[name], scan.regions[name])
        np.testing.assert_array_equal(truth.curves[name], scan.curves[name])
    waveforms = {item.waveform_id for item in read_scan(path).items() if isinstance(item, ismrmrd.Waveform)}
    assert waveforms == {2}


def test_speech_is_sagittal_and_keeps_its_field(tmp_path):
    scan = speech.simulate(SpeechSettings(matrix=(30, 24), coils=2, frames=5, detail=2, off_resonance=300.0))
    path = tmp_path / "speech.h5"
    store(path, scan)
    imaging = _imaging(path)
    np.testing.assert_array_equal(np.stack([a.data for a in imaging], axis=1), scan.samples)
    assert imaging[0].sample_time_us == pytest.approx(4.0)
    assert imaging[0].center_sample == 0
    assert list(imaging[0].slice_dir) == [-1, 0, 0]
    directions = Slice.sagittal().directions
    np.testing.assert_allclose(np.cross(directions[0], directions[1]), directions[2])
    truth = read_truth(path)
    np.testing.assert_array_equal(truth.field_maps, scan.field_maps)
    assert not [item for item in read_scan(path).items() if isinstance(item, ismrmrd.Waveform)]
    described = ismrmrd.xsd.CreateFromDocument(header(scan))
    named = {p.name: p.value for p in described.userParameters.userParameterLong}
    assert named["interleaves"] == scan.interleaves
    assert parse(header(scan)).echo_times == (pytest.approx(speech.ECHO_TIME),)


def test_the_commands_write_what_was_asked(tmp_path, capsys):
    options = ["--matrix", "26", "20", "--frames", "4", "--coils", "2", "--seed", "3"]
    assert cli.main(["simulate", "speech", str(tmp_path / "s.h5"), *options, "--off-resonance", "200", "--detail", "2"]) == 0
    stars = [*options, "--partitions", "3", "--order", "centre_out", "--spokes-per-frame", "1"]
    assert cli.main(["simulate", "dce", str(tmp_path / "d.h5"), *stars]) == 0
    said = capsys.readouterr().out
    assert "26×20 pixels" in said
    assert "26×20×3 pixels" in said
    assert read_truth(tmp_path / "s.h5").field_maps.shape == (4, 20, 26)
    assert read_truth(tmp_path / "d.h5").images.shape == (4, 3, 20, 26)
    same = speech.simulate(SpeechSettings(matrix=(20, 26), frames=4, coils=2, seed=3, off_resonance=200.0, detail=2))
    np.testing.assert_array_equal(read_truth(tmp_path / "s.h5").images, same.truth)


@pytest.mark.parametrize(
    ("phantom", "options", "words"),
    [
        ("speech", ["--off-resonance", "-3"], "off_resonance: -3.0 is below 0"),
        ("speech", ["--frames", "two"], "frames: 'two' is not a whole number"),
        ("dce", ["--partial", "0.2"], "partial: 0.2 is below 0.55"),
        ("dce", ["--matrix", "1", "2", "3"], "--matrix: 3 numbers"),
    ],
)
def test_settings_that_cannot_be_are_told(tmp_path, capsys, phantom, options, words):
    assert cli.main(["simulate", phantom, str(tmp_path / "scan.h5"), *options]) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "scan.h5").exists()


def test_every_declared_setting_has_an_option(capsys):
    for phantom, kind_ in (("speech", SpeechSettings), ("dce", DceSettings)):
        with pytest.raises(SystemExit):
            cli.main(["simulate", phantom, "--help"])
        told = capsys.readouterr().out
        named = {"field_of_view": "fov", "repetition_time": "tr"}
        assert all("--" + named.get(f.name, f.name).replace("_", "-") in told for f in dataclasses.fields(kind_))
