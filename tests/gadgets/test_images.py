"""Images on the wire: indices, geometry, scale, Meta, latents."""

from __future__ import annotations

import ismrmrd
import numpy as np
import pytest
import torch

from gadgets import stages
from gadgets.images import META_FIELDS, Numbering, magnitude_scale, principal_components
from gadgets.settings import ChainSettings
from recon_core.problem import ImageSeries
from recon_core.reconstruct import Reconstruction

TILTED = {"position": (10.0, -20.0, 30.5), "read_dir": (0.0, 0.8, 0.6), "phase_dir": (1.0, 0.0, 0.0), "slice_dir": (0.0, 0.6, -0.8)}


def fake(latents: bool = True, brightness=lambda call: 1.0):
    """A reconstruction that costs nothing: random images, brighter by call."""
    calls = []

    def method(problem, settings, solver_settings, progress):
        calls.append(problem)
        random = torch.Generator().manual_seed(len(calls))
        images = brightness(len(calls)) * torch.randn((problem.n_frames, *problem.shape), dtype=torch.complex64, generator=random)
        learned = torch.randn((problem.n_frames, 3), generator=random) * torch.tensor([1.0, 5.0, 0.2]) if latents else None
        return Reconstruction(ImageSeries(images, problem.frame_times, learned, ("a note",)), {"seconds": {"total": 0.0}})

    method.calls = calls
    return method


def sent(scans, acquisitions, method, protocol=None, **settings):
    protocol = scans.Protocol() if protocol is None else protocol
    return list(stages.run(ChainSettings(**settings), protocol.xml(), acquisitions, method=method))


def readouts(scans, n=8, **fields):
    return scans.radial_scan(n=n, noise=0.01, **fields)[1]


def test_indices_and_header_fields(scans):
    """The table: what an image of frame f, slice s, contrast c carries."""
    acquisitions = [
        a
        for s in (0, 1)
        for c in (0, 1)
        for a in readouts(
            scans, slice=s, contrast=c, set=2, phase=3, average=1, measurement_uid=77, physiology_time_stamp=(5, 6, 7), **TILTED
        )
    ]
    for number, acquisition in enumerate(acquisitions):
        acquisition.acquisition_time_stamp = 1000 + number
    images = sent(scans, acquisitions, fake(), readouts_per_frame=4, image_type="complex")
    series = [i for i in images if i.image_series_index == 1]
    assert [i.image_index for i in series] == list(range(1, 9))
    assert [i.repetition for i in series] == [0, 1] * 4
    assert [(i.slice, i.contrast) for i in series] == [(0, 0)] * 2 + [(0, 1)] * 2 + [(1, 0)] * 2 + [(1, 1)] * 2
    assert [i.acquisition_time_stamp for i in series] == [1000 + 8 * g + 4 * f + 1 for g in range(4) for f in (0, 1)]
    for image in series:
        assert (image.set, image.phase, image.average, image.measurement_uid) == (2, 3, 1, 77)
        assert tuple(image.physiology_time_stamp) == (5, 6, 7)
        assert tuple(image.getHead().matrix_size) == (32, 32, 1)
        assert image.channels == 1
        assert tuple(image.field_of_view) == (320.0, 320.0, 8.0)
        for name, value in TILTED.items():
            assert tuple(getattr(image, name)) == pytest.approx(value)
        assert image.image_type == ismrmrd.IMTYPE_COMPLEX
        assert image.data.dtype == np.complex64


def test_meta_in_both_dialects(scans):
    protocol = scans.Protocol(sequence="<TR>4</TR><TE>1.5</TE><TE>4.25</TE><TI>60</TI>")
    acquisitions = [a for c in (0, 1) for a in readouts(scans, contrast=c, **TILTED)]
    images = sent(scans, acquisitions, fake(), protocol, readouts_per_frame=8, solver="cg_sense", send_latents=False)
    for image, echo in zip(images, ("1.5", "4.25"), strict=True):
        meta = ismrmrd.Meta.deserialize(image.attribute_string)
        slope = float(meta["RescaleSlope"])
        assert set(meta) == set(META_FIELDS)
        expected = {
            "DataRole": "Image",
            "GADGETRON_DataRole": "Image",
            "SeriesDescriptionAdditional": "cg_sense",
            "GADGETRON_SeqDescription": "cg_sense",
            "ImageProcessingHistory": ["gadgetron-inr", "cg_sense"],
            "GADGETRON_ImageProcessingHistory": ["gadgetron-inr", "cg_sense"],
            "Keep_image_geometry": "1",
            "RescaleIntercept": "0",
            "EchoTime": echo,
            "GADGETRON_TE": echo,
            "InversionTime": "60",
            "GADGETRON_TI": "60",
        }
        assert {name: meta[name] for name in expected} == expected
        assert "a note" in meta["ImageComments"]
        assert "no noise readouts" in meta["ImageComments"]
        assert meta["GADGETRON_ImageComment"] == meta["ImageComments"]
        assert [float(v) for v in meta["ImageRowDir"]] == pytest.approx(TILTED["read_dir"])
        assert [float(v) for v in meta["ImageColumnDir"]] == pytest.approx(TILTED["phase_dir"])
        assert float(meta["GADGETRON_ScaleRatio"]) == pytest.approx(1 / slope)
        assert float(meta["WindowCenter"]) == pytest.approx(float(meta["WindowWidth"]) / 2, rel=1e-4)
        assert float(meta["GADGETRON_WindowWidth"]) == pytest.approx(float(meta["WindowWidth"]) / slope, abs=1)


def test_magnitudes_share_one_scale(scans):
    """uint16 times RescaleSlope is the magnitude, over all frames and slices, also of a brighter second slice."""
    method = fake(latents=False, brightness=lambda call: 1.0 if call == 1 else 3.0)
    acquisitions = [a for s in (0, 1) for a in readouts(scans, slice=s)]
    exact = sent(scans, acquisitions, fake(latents=False, brightness=lambda call: 1.0 if call == 1 else 3.0), image_type="complex")
    images = sent(scans, acquisitions, method)
    slopes = {image.meta["RescaleSlope"] for image in images}
    assert len(slopes) == 1
    slope = float(slopes.pop())
    for image, truth in zip(images, exact, strict=True):
        assert image.data.dtype == np.uint16
        assert image.image_type == ismrmrd.IMTYPE_MAGNITUDE
        assert np.abs(image.data * slope - np.abs(truth.data)).max() <= 0.51 * slope


def test_single_slice_uses_the_whole_range():
    images = np.array([[[0.0, 2.0], [1.0, 0.5]]], dtype=np.complex64)
    assert magnitude_scale(images, more_to_come=False).slope == pytest.approx(2 / 32767)
    assert magnitude_scale(images, more_to_come=True).slope == pytest.approx(2 / 8191)
    assert magnitude_scale(np.zeros_like(images), more_to_come=False).slope == 1


@pytest.mark.parametrize("first", [0, 1])
def test_a_first_slice_outside_the_body_does_not_set_the_scale(scans, heard, first):
    """Its largest pixel is a three-hundredth of the next slice's."""
    lines, report = heard
    body = (scans.Blob((40.0, 60.0, 0.0), 22.0, 300.0), scans.Blob((-50.0, 10.0, 0.0), 60.0, 100.0))
    acquisitions = [
        a
        for s in (0, 1)
        for a in scans.radial_scan(
            n=64, slice=s, noise=0.02, seed=s, blobs=(scans.Blob((0.0, 0.0, 0.0), 22.0, 1.0),) if s == first else body
        )[1]
    ]
    settings = ChainSettings(solver="gridding", readouts_per_frame=32, device="cpu", whitened=True)
    images = list(stages.run(settings, scans.Protocol().xml(), acquisitions, report))
    assert not [line for line in lines if "clipped" in line]
    brightest = [max(int(image.data.max()) for image in images if image.slice == s) for s in (0, 1)]
    assert 2000 < brightest[1 - first] < 50_000
    assert brightest[first] < 0.05 * brightest[1 - first]
    window = {float(image.meta["GADGETRON_WindowWidth"]) for image in images}
    assert len(window) == 1
    assert 0.2 < window.pop() / brightest[1 - first] < 2


def test_clipping_is_told(scans, heard):
    lines, report = heard
    acquisitions = [a for s in (0, 1) for a in readouts(scans, slice=s)]
    method = fake(latents=False, brightness=lambda call: 1.0 if call == 1 else 100.0)
    images = list(stages.run(ChainSettings(), scans.Protocol().xml(), acquisitions, report, method))
    assert max(int(image.data.max()) for image in images) == 65535
    assert any("clipped" in line for line in lines)


def test_frame_times_are_told_in_seconds(scans):
    images = sent(scans, readouts(scans, n=8), fake(latents=False), readouts_per_frame=4)
    assert [float(i.meta["FrameTime_s"]) for i in images] == pytest.approx([1.5 * 0.0025, 5.5 * 0.0025])


def test_latents_leave_as_an_image_series(scans):
    images = sent(scans, readouts(scans, n=40), fake(), readouts_per_frame=2)
    (latents,) = [i for i in images if i.image_series_index == 2]
    assert images[-1] is latents
    assert latents.image_type == ismrmrd.IMTYPE_REAL
    assert latents.data.dtype == np.float32
    assert latents.data.shape == (1, 1, 3, 20)
    meta = ismrmrd.Meta.deserialize(latents.attribute_string)
    assert meta["SeriesDescriptionAdditional"] == "latents"
    assert "row = component, column = frame" in meta["ImageComments"]
    assert [float(t) for t in meta["FrameTimes_s"]] == pytest.approx(0.0025 * (0.5 + 2 * np.arange(20)))
    power = np.square(latents.data[0, 0]).sum(axis=1)
    assert (np.diff(power) < 0).all()
    assert not [i for i in sent(scans, readouts(scans), fake(), send_latents=False) if i.image_series_index == 2]


def test_principal_components():
    random = np.random.default_rng(0)
    sources = np.stack([np.sin(np.arange(50) / 4), random.standard_normal(50) * 0.1], axis=1)
    mixed = sources @ np.array([[3.0, 4.0], [-0.4, 0.3]]) + 7
    components = principal_components(mixed)
    assert components.shape == (2, 50)
    assert components.mean(axis=1) == pytest.approx(0, abs=1e-5)
    assert abs(np.corrcoef(components)[0, 1]) < 1e-5
    assert abs(np.corrcoef(components[0], sources[:, 0])[0, 1]) > 0.999
    # Rotations of the latents, which the fit leaves open, change nothing.
    turned = mixed @ np.array([[0.6, 0.8], [-0.8, 0.6]])
    assert principal_components(turned) == pytest.approx(components, abs=1e-4)
    assert (np.take_along_axis(components, np.abs(components).argmax(axis=1)[:, None], axis=1) > 0).all()


def test_geometry_comes_from_the_line_nearest_the_center(scans):
    """Cartesian: the table moves during the scan; the central line's header counts, not the middle of the list."""
    protocol = scans.Protocol(trajectory="cartesian")
    lines = scans.cartesian(protocol)
    for number, line in enumerate(lines):
        line.position = (0.0, 0.0, float(number))
    lines = lines[8:] + lines[:8]
    (image,) = sent(scans, lines, fake(latents=False), protocol, readouts_per_frame=32)
    assert image.position[2] == 16


def test_volume_is_one_image(scans):
    protocol = scans.Protocol(
        encoded_matrix=(32, 32, 6), encoded_fov=(320.0, 320.0, 48.0), matrix=(32, 32, 6), fov=(320.0, 320.0, 48.0), channels=3
    )
    k = np.random.default_rng(0).uniform(-0.04, 0.04, (4, 20, 3))
    (image,) = sent(scans, scans.non_cartesian(k, protocol), fake(latents=False), protocol, readouts_per_frame=4)
    assert image.data.shape == (1, 6, 32, 32)
    assert tuple(image.getHead().matrix_size) == (32, 32, 6)
    assert tuple(image.field_of_view) == (320.0, 320.0, 48.0)


def test_images_of_another_shape_open_another_series():
    numbering = Numbering()
    assert [numbering.next("images", (4, 4)) for _ in range(2)] == [(1, 1), (1, 2)]
    assert numbering.next("latents", (2, 9)) == (2, 1)
    assert numbering.next("latents", (2, 8)) == (3, 1)
    assert numbering.next("images", (6, 6)) == (4, 1)
    assert numbering.next("images", (4, 4)) == (1, 3)


@pytest.mark.filterwarnings("ignore:This function currently returns:UserWarning")  # ismrmrd 1.14, of its own reader
def test_stored_bytes_survive_the_wire(scans):
    """Pixels in the array's order, x fastest: what a transposing constructor would turn."""
    protocol = scans.Protocol(matrix=(32, 20, 1), fov=(320.0, 200.0, 8.0))
    (image,) = sent(scans, readouts(scans), fake(latents=False), protocol, readouts_per_frame=8, image_type="complex")
    again = ismrmrd.Image.from_bytes(image.to_bytes())
    assert again.data.shape == (1, 1, 20, 32)
    wanted = torch.randn((1, 20, 32), dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    assert np.array_equal(again.data[0], wanted.numpy())
