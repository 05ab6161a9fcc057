"""Input that cannot be used gets an error that names field, value and cure; images already sent stay sent."""

from __future__ import annotations

import numpy as np
import pytest

from gadgets import stages
from gadgets.settings import ChainSettings
from recon_core.errors import DataError, ReconError, SettingError

SETTINGS = ChainSettings(solver="gridding", readouts_per_frame=4, device="cpu", coils=3)


def fault(xml, items, settings=SETTINGS) -> ReconError:
    with pytest.raises(ReconError) as caught:
        list(stages.run(settings, xml, items))
    error = caught.value
    assert error.field
    assert error.problem
    assert error.cure.endswith(".")
    return error


def with_changed(scans, number, change, n=12):
    xml, acquisitions = scans.radial_scan(n=n)
    changed = change(acquisitions[number])
    if changed is not None:
        acquisitions[number] = changed
    return xml, acquisitions


@pytest.mark.parametrize("text", ["", "no header here", "<config/>"])
def test_header_that_is_none(scans, text):
    error = fault(text, scans.radial_scan()[1])
    assert isinstance(error, DataError)
    assert error.field == "header"


def test_header_without_encoding(scans):
    xml = scans.Protocol().xml()
    xml = xml[: xml.index("<encoding>")] + xml[xml.index("</encoding>") + len("</encoding>") :]
    error = fault(xml, scans.radial_scan()[1])
    assert (error.field, error.problem) == ("header", "it has no encoding")


def test_header_is_checked_before_the_first_readout_is_read():
    def untouched():
        raise AssertionError("the stream was read")
        yield

    with pytest.raises(DataError, match="not XML"):
        next(stages.run(SETTINGS, "dummy", untouched()))


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("trajectory", ["radial", "spiral", "goldenangle", "other"])
def test_no_trajectory_where_one_is_needed(scans, trajectory, zero):
    traj = np.zeros((16, 2)) if zero else None
    error = fault(scans.Protocol(trajectory=trajectory).xml(), [scans.acquisition(np.ones((3, 16)), traj) for _ in range(8)])
    assert error.field == "readout 0.traj"
    assert trajectory in error.problem
    assert "HargreavesVDS2000" in error.cure


@pytest.mark.parametrize("factor", [2 * np.pi, 0.2])
def test_trajectory_in_other_units(scans, factor):
    """Radians, or cycles per mm of pixels of 5 mm."""
    xml, acquisitions = scans.radial_scan()
    for acquisition in acquisitions:
        acquisition.traj[:] = factor * acquisition.traj
    error = fault(xml, acquisitions)
    assert error.field.endswith(".traj")
    assert "0.5" in error.problem
    assert "cycles per pixel" in error.cure


def test_one_readout_without_a_trajectory(scans):
    def change(acquisition):
        acquisition.traj[:] = 0

    error = fault(*with_changed(scans, 5, change))
    assert error.field == "readout 5.traj"
    assert "all zero, as of 1 of" in error.problem


def test_spokes_under_a_cartesian_header(scans):
    _, spokes = scans.radial_scan(n=16)
    acquisitions = [scans.acquisition(a.data[:, ::2], a.traj[::2], kspace_encode_step_1=row) for row, a in enumerate(spokes)]
    error = fault(scans.Protocol(trajectory="cartesian").xml(), acquisitions)
    assert error.field.endswith(".traj")
    assert "leaves its line by" in error.problem
    assert "encoding.trajectory" in error.cure


def test_trajectory_of_one_column(scans):
    xml, acquisitions = scans.radial_scan()
    error = fault(xml, [scans.acquisition(a.data, a.traj[:, :1]) for a in acquisitions])
    assert error.field == "readout 0.traj"
    assert "1 column" in error.problem


def test_trajectory_that_is_not_finite(scans):
    def change(acquisition):
        acquisition.traj[3, 0] = np.nan

    assert fault(*with_changed(scans, 5, change)).field == "readout 5.traj"


@pytest.mark.parametrize("value", [np.nan, np.inf, 1j * np.inf])
def test_samples_that_are_not_finite(scans, value):
    def change(acquisition):
        acquisition.data[1, 7] = value

    error = fault(*with_changed(scans, 9, change))
    assert (error.field, error.problem) == ("readout 9", "NaN or Inf in channel 1")


def test_the_index_counts_every_readout_of_the_stream(scans):
    """As the sender counts: noise before the images included."""
    xml, acquisitions = scans.radial_scan()
    acquisitions[2].data[0, 0] = np.nan
    noise = scans.acquisition(np.random.default_rng(0).standard_normal((3, 100)), flags=(19,))
    assert fault(xml, [noise, noise, *acquisitions]).field == "readout 4"


def test_readout_of_another_length(scans):
    error = fault(*with_changed(scans, 6, lambda a: scans.acquisition(a.data[:, :50], a.traj[:50])))
    assert error.field == "readout 6.number_of_samples"
    assert error.problem == "50, where readout 0 has 64"


def test_channels_other_than_announced(scans):
    error = fault(*with_changed(scans, 4, lambda a: scans.acquisition(a.data[:2], a.traj)))
    assert error.field == "readout 4.active_channels"
    assert "2 channels" in error.problem
    assert "receiverChannels=3" in error.problem


def test_channels_that_change_where_none_are_announced(scans):
    _, acquisitions = with_changed(scans, 4, lambda a: scans.acquisition(a.data[:2], a.traj))
    error = fault(scans.Protocol(channels=None).xml(), acquisitions)
    assert (error.field, error.problem) == ("readout 4.active_channels", "2, where readout 0 has 3")


def test_trajectory_missing_in_one_readout(scans):
    error = fault(*with_changed(scans, 7, lambda a: scans.acquisition(a.data)))
    assert error.field == "readout 7.trajectory_dimensions"


def test_cartesian_line_longer_than_announced(scans):
    protocol = scans.Protocol(trajectory="cartesian")
    lines = scans.cartesian(protocol)
    lines[3] = scans.acquisition(np.ones((3, 40)), center_sample=20)
    error = fault(protocol.xml(), lines)
    assert error.field == "readout 3.number_of_samples"
    assert "encodedSpace.matrixSize.x=32" in error.problem


def test_readout_without_a_used_sample(scans):
    def change(acquisition):
        acquisition.discard_pre = 40
        acquisition.discard_post = 24

    assert fault(*with_changed(scans, 2, change)).field == "readout 2.number_of_samples"


def test_empty_scan(scans):
    error = fault(scans.Protocol().xml(), [])
    assert error.field == "readouts"
    assert "0 (none at all)" in error.problem


def test_scan_of_noise_and_dummies_only(scans):
    items = [scans.acquisition(np.ones((3, 16)), flags=(flag,)) for flag in (19, 27, 27)]
    error = fault(scans.Protocol().xml(), items)
    assert "1 noise, 2 dummy" in error.problem


def test_everything_discarded(scans):
    error = fault(*scans.radial_scan(n=8), ChainSettings(discard_readouts=8))
    assert "discard_readouts=8" in error.problem


def test_unknown_encoding_space(scans):
    def change(acquisition):
        acquisition.encoding_space_ref = 2

    assert fault(*with_changed(scans, 1, change)).field == "encoding_space_ref"


def test_dimension_against_the_header(scans):
    error = fault(*scans.radial_scan(), ChainSettings(dimension=3))
    assert isinstance(error, SettingError)
    assert error.field == "dimension"


def test_matrix_beyond_every_sample(scans):
    xml, acquisitions = scans.radial_scan()
    for acquisition in acquisitions:
        acquisition.traj[:] += 0.3 * np.sign(acquisition.traj) + 0.16
        acquisition.traj[:] = np.clip(acquisition.traj, -0.7, 0.7)
    assert fault(xml, acquisitions, ChainSettings(matrix=(8, 8))).field == "trajectory"


def test_images_sent_before_the_fault_stay_sent(scans):
    """The first slice is whole, the second is not."""
    good = scans.radial_scan(n=8, slice=0)[1]
    bad = scans.radial_scan(n=8, slice=1)[1]
    bad[5] = scans.acquisition(bad[5].data[:, :50], bad[5].traj[:50], slice=1)
    images = stages.run(SETTINGS, scans.Protocol().xml(), good + bad)
    assert [next(images).slice for _ in range(2)] == [0, 0]
    with pytest.raises(DataError) as caught:
        next(images)
    assert caught.value.field == "readout 13.number_of_samples"


def test_the_next_scan_is_not_harmed(scans):
    good = scans.radial_scan(n=8)
    before = [image.to_bytes() for image in stages.run(SETTINGS, *good)]
    fault(*with_changed(scans, 6, lambda a: scans.acquisition(a.data[:, :50], a.traj[:50])))
    assert [image.to_bytes() for image in stages.run(SETTINGS, *good)] == before


def oversampled(scans, **fields):
    protocol = scans.Protocol(encoded_matrix=(64, 32, 1), encoded_fov=(640.0, 320.0, 8.0), trajectory="cartesian", **fields)
    return protocol.xml(), scans.cartesian(protocol)


def test_a_field_of_view_narrower_than_two_pixels(scans):
    error = fault(*oversampled(scans, fov=(1.0, 320.0, 8.0)))
    assert (error.field, error.problem) == ("encoding[0].reconSpace.fieldOfView_mm.x", "1 of 640 mm encoded")


def test_a_field_map_of_cartesian_lines(scans, tmp_path):
    np.save(tmp_path / "field.npy", np.zeros((32, 32)))
    error = fault(*oversampled(scans), ChainSettings(solver="gridding", field_map=str(tmp_path / "field.npy")))
    assert (error.field, error.problem) == ("field_map", "with Cartesian readouts of 64 samples, 32 without oversampling")


def test_cartesian_lines_without_calibration_lines(scans):
    """Every fourth line alone, in all frames: maps made of them would be noise."""
    xml, lines = oversampled(scans)
    error = fault(xml, lines[::4], ChainSettings(solver="cg_sense", device="cpu", coils=3))
    assert error.field == "trajectory"
    assert error.problem.endswith("neighbouring lines about the k-space centre along y, too few for coil sensitivities")


@pytest.mark.parametrize(("name", "value"), [("regions", "aorta=40,3,2"), ("profiles", "tongue=0,0,31,40")])
def test_places_outside_the_image_are_told_before_a_fit(scans, name, value):
    def never(*_: object, **__: object):
        raise AssertionError("a fit was begun")

    xml, readouts = scans.radial_scan()
    with pytest.raises(SettingError, match=f"{name}: {value.partition('=')[0]}"):
        list(stages.run(ChainSettings(solver="gridding", **{name: value}), xml, readouts, method=never))
