"""The simulated file as other software reads it."""

import ismrmrd
import ismrmrd.xsd
import numpy as np
import pytest

from gadgets import cli
from gadgets.flags import Kind, kind
from gadgets.header import parse
from gadgets.scanfile import read_scan, read_truth
from gadgets.simulated_protocol import protocol
from gadgets.simulation import Slice, header, store
from recon_core.phantoms.cardiac import PHANTOM_VERSION, CardiacSettings, simulate

SETTINGS = CardiacSettings(matrix=(21, 30), field_of_view=(240.0, 320.0), coils=3, frames=25, readouts_per_frame=2, detail=2)


@pytest.fixture(scope="module")
def scan():
    return simulate(SETTINGS)


@pytest.fixture(scope="module")
def stored(scan, tmp_path_factory):
    path = tmp_path_factory.mktemp("scan") / "scan.h5"
    store(path, scan, Slice.oblique())
    return path


def _acquisitions(path):
    return [item for item in read_scan(path).items() if isinstance(item, ismrmrd.Acquisition)]


def test_noise_comes_first_and_every_sample_is_there(stored, scan):
    acquisitions = _acquisitions(stored)
    kinds = [kind(a) for a in acquisitions]
    first = kinds.index(Kind.IMAGING)
    assert first >= 16
    assert set(kinds[:first]) == {Kind.NOISE}
    assert set(kinds[first:]) == {Kind.IMAGING}
    noise = np.concatenate([a.data for a in acquisitions[:first]], axis=1)
    np.testing.assert_array_equal(noise, scan.noise)
    assert noise.shape[1] > 1000
    np.testing.assert_array_equal(np.stack([a.data for a in acquisitions[first:]], axis=1), scan.samples)
    assert [a.scan_counter for a in acquisitions] == list(range(len(acquisitions)))


def test_the_header_is_complete_and_valid(stored, scan):
    text = read_scan(stored).header
    assert "<version>" not in text
    ours = parse(text)
    encoding = ours.encoding(0)
    assert encoding.recon.matrix == (30, 21, 1)
    assert encoding.recon.field_of_view[:2] == (320.0, 240.0)
    assert encoding.encoded.matrix[:2] == (60, 60)  # twice the samples of the larger field of view
    assert encoding.encoded.field_of_view[0] == pytest.approx(640.0)
    assert encoding.trajectory == "goldenangle"
    assert ours.channels == 3
    assert ours.repetition_time == pytest.approx(3e-3)
    schema = ismrmrd.xsd.CreateFromDocument(text)
    assert schema.encoding[0].encodingLimits.kspace_encoding_step_1.maximum == 49
    assert PHANTOM_VERSION in schema.measurementInformation.protocolName


def test_trajectories_are_cycles_per_encoded_pixel(stored, scan):
    traj = np.stack([a.traj for a in _acquisitions(stored) if kind(a) is Kind.IMAGING])
    assert np.abs(traj).max() <= 0.5 + 1e-6
    assert np.linalg.norm(traj, axis=-1).max() == pytest.approx(0.5, rel=1e-5)
    encoded = protocol(scan).encoded
    pixels, length = encoded.matrix[0], encoded.field_of_view[0]
    np.testing.assert_allclose(traj * pixels * np.array([320.0, 240.0]) / length, scan.trajectory, atol=1e-5)


def test_time_stamps_tick_every_2500_us(stored, scan):
    imaging = [a for a in _acquisitions(stored) if kind(a) is Kind.IMAGING]
    stamps = np.array([a.acquisition_time_stamp for a in imaging], dtype=np.int64)
    np.testing.assert_array_equal(stamps - stamps[0], np.floor(scan.times / 2.5e-3 + 1e-6))
    assert all(a.acquisition_time_stamp < stamps[0] for a in _acquisitions(stored) if kind(a) is Kind.NOISE)
    after_beat = np.array([a.physiology_time_stamp[0] for a in imaging]) * 2.5e-3
    np.testing.assert_allclose(after_beat, scan.physiology.since_beat(scan.times), atol=2.6e-3)


def test_flags_mark_the_ends(stored):
    imaging = [a for a in _acquisitions(stored) if kind(a) is Kind.IMAGING]
    assert imaging[0].is_flag_set(ismrmrd.ACQ_FIRST_IN_REPETITION)
    assert imaging[-1].is_flag_set(ismrmrd.ACQ_LAST_IN_MEASUREMENT)
    assert [a.is_flag_set(ismrmrd.ACQ_LAST_IN_REPETITION) for a in imaging].count(True) == 1
    assert list(imaging[0].channel_mask) == [0b111, *[0] * 15]
    assert imaging[7].center_sample == imaging[7].number_of_samples // 2


def test_ecg_and_breathing_travel_along(stored, scan):
    items = list(read_scan(stored).items())
    records = [item for item in items if isinstance(item, ismrmrd.Waveform)]
    for identity, signal in ((0, None), (2, scan.physiology.breath)):
        mine = [r for r in records if r.waveform_id == identity]
        values = np.concatenate([r.data[0] for r in mine]).astype(float)
        assert len(values) == int(scan.times[-1] / 2.5e-3) + 1
        if signal is not None:
            np.testing.assert_allclose(values, 1000 + 2000 * signal(np.arange(len(values)) * 2.5e-3), atol=1)
    assert any(isinstance(item, ismrmrd.Waveform) for item in items[:-1])
    ecg = np.concatenate([r.data[0] for r in records if r.waveform_id == 0])
    beat = scan.physiology.beats[(scan.physiology.beats > 0.02) & (scan.physiology.beats < 0.12)]
    for at in beat:
        near = ecg[max(round(at / 2.5e-3) - 2, 0) : round(at / 2.5e-3) + 3]
        assert near.max() > 2700


def test_an_oblique_slice_has_orthonormal_directions(stored):
    head = _acquisitions(stored)[-1]
    directions = np.array([head.read_dir[:], head.phase_dir[:], head.slice_dir[:]])
    np.testing.assert_allclose(directions @ directions.T, np.eye(3), atol=1e-6)
    assert np.linalg.det(directions) == pytest.approx(1)
    assert np.abs(directions).max() < 0.95
    assert np.linalg.norm(head.position[:]) > 10


def test_the_truth_is_in_its_own_group(stored, scan):
    truth = read_truth(stored)
    np.testing.assert_array_equal(truth.images, scan.truth)
    np.testing.assert_array_equal(truth.moving, scan.moving)
    np.testing.assert_array_equal(truth.times, scan.frame_times)
    assert truth.phantom == PHANTOM_VERSION


def test_a_spiral_is_not_oversampled(capsys):
    scan = simulate(CardiacSettings(matrix=(24, 20), field_of_view=(300.0, 250.0), coils=2, frames=3, trajectory="spiral", detail=2))
    encoding = parse(header(scan)).encoding(0)
    assert encoding.trajectory == "spiral"
    assert encoding.encoded.matrix[:2] == (24, 24)
    assert encoding.encoded.field_of_view[0] == pytest.approx(300.0)


def test_the_command_writes_what_was_asked(tmp_path, capsys):
    path = tmp_path / "scan.h5"
    options = ["--matrix", "26", "17", "--fov", "300", "200", "--coils", "2", "--frames", "4", "--readouts-per-frame", "3", "--detail", "2"]
    assert cli.main(["simulate", "cardiac", str(path), *options, "--seed", "7", "--timing", "physiological", "--snr", "20"]) == 0
    said = capsys.readouterr().out
    assert "26×17" in said
    assert "time-compressed" not in said
    truth = read_truth(path)
    assert truth.images.shape == (4, 17, 26)
    assert sum(kind(a) is Kind.IMAGING for a in _acquisitions(path)) == 12
    recon = parse(read_scan(path).header).encoding(0).recon
    assert recon.matrix[:2] == (26, 17)
    assert recon.field_of_view[:2] == (300.0, 200.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--coils", "0"], "coils: 0 is below 1"),
        (["--matrix", "8", "9", "10"], "--matrix: 3 numbers"),
        (["--fov", "-5"], "field_of_view: -5.0 is below 50"),
        (["--detail", "1"], "detail: 1 is below 2"),
        (["--trajectory", "spiral", "--interleaves", "1", "--coils", "1", "--frames", "2"], "repetition_time"),
    ],
)
def test_settings_that_cannot_be_are_told(tmp_path, capsys, options, words):
    assert cli.main(["simulate", "cardiac", str(tmp_path / "scan.h5"), *options]) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "scan.h5").exists()


@pytest.mark.parametrize(("option", "owner"), [(["--protocol", "set2", "--echoes", "3"], "set1"), (["--recoveries", "20"], "set2")])
def test_a_setting_of_the_other_protocol_is_refused(tmp_path, capsys, option, owner):
    assert cli.main(["simulate", "mpqmri", str(tmp_path / "scan.h5"), *option]) == 1
    assert f"it is {owner}'s" in capsys.readouterr().err
