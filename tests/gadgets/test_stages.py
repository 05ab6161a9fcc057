"""The stages composed, with a stand-in for the solver where none is needed."""

from __future__ import annotations

import ismrmrd
import numpy as np
import pytest
import torch

from gadgets import stages
from gadgets.header import parse
from gadgets.settings import ChainSettings
from recon_core.problem import ImageSeries
from recon_core.reconstruct import Reconstruction

GRIDDING = ChainSettings(solver="gridding", readouts_per_frame=8, image_type="complex", device="cpu", coils=3)
NOISE, NAVIGATOR, DUMMY, CALIBRATION = 19, 23, 27, 20


class Recorder:
    """Stands in for the solver and keeps what it was given."""

    def __init__(self) -> None:
        self.problems = []
        self.common = []
        self.specific = []

    def __call__(self, problem, settings, solver_settings, progress):
        self.problems.append(problem)
        self.common.append(settings)
        self.specific.append(solver_settings)
        images = torch.full((problem.n_frames, *problem.shape), float(len(self.problems)), dtype=torch.complex64)
        return Reconstruction(ImageSeries(images, problem.frame_times), {})


def pixels(images) -> np.ndarray:
    return np.stack([image.data[0, 0] for image in images])


def test_a_scan_becomes_images_of_its_object(scans, heard):
    lines, report = heard
    blobs = (scans.Blob((40.0, 60.0, 0.0), 12.0, 1.0),)
    xml, acquisitions = scans.radial_scan(n=64, blobs=blobs, noise=0.005)
    settings = ChainSettings(solver="gridding", readouts_per_frame=32, image_type="complex", device="cpu")
    images = pixels(stages.run(settings, xml, acquisitions, report))
    y, x = np.meshgrid((np.arange(32) - 16) * 10.0, (np.arange(32) - 16) * 10.0, indexing="ij")
    wanted = np.exp(-((x - 40) ** 2 + (y - 60) ** 2) / (2 * 12.0**2))
    assert images.shape == (2, 32, 32)
    for image in np.abs(images):
        assert np.corrcoef(image.ravel(), wanted.ravel())[0, 1] > 0.98
    assert any("64 readouts, 3 channels, 2 frames of 32×32 pixels" in line for line in lines)


def test_only_imaging_readouts_are_reconstructed(scans, heard):
    lines, report = heard
    xml, imaging = scans.radial_scan()
    plain = pixels(stages.run(GRIDDING, xml, imaging))
    rubbish = 1e6 * np.ones((3, 64))
    mixed = list(imaging)
    for position, flag in ((0, DUMMY), (3, NAVIGATOR), (9, NAVIGATOR), (12, CALIBRATION)):
        mixed.insert(position, scans.acquisition(rubbish, flags=(flag,)))
    waveform = ismrmrd.Waveform.from_array(np.zeros((1, 5), dtype=np.uint32))
    mixed.insert(5, waveform)
    assert np.array_equal(pixels(stages.run(GRIDDING, xml, mixed, report)), plain)
    assert any("2 navigator" in line and "1 dummy" in line for line in lines)
    assert any("1 waveforms received" in line for line in lines)


def test_noise_readouts_whiten_the_scan(scans, heard):
    lines, report = heard
    xml, imaging = scans.radial_scan()
    random = np.random.default_rng(1)
    level = np.array([1.0, 10.0, 0.1])[:, None]
    noise = level * (random.standard_normal((3, 60000)) + 1j * random.standard_normal((3, 60000))) / np.sqrt(2)
    recorder = Recorder()
    list(stages.run(GRIDDING, xml, [scans.acquisition(noise, flags=(NOISE,)), *imaging], report, recorder))
    samples = recorder.problems[0].samples.numpy()
    raw = np.stack([a.data for a in imaging], axis=1)
    gain = np.linalg.norm(samples, axis=(1, 2)) / np.linalg.norm(raw, axis=(1, 2))
    assert gain == pytest.approx(1 / level[:, 0], rel=0.1)
    assert not any("no noise readouts" in line for line in lines)


def test_settings_reach_the_solver(scans):
    recorder = Recorder()
    settings = ChainSettings(solver="cg_sense", coils=2, seed=9, holdout=0.1, device="cpu", engine="nudft", solver_settings={"steps": 3})
    list(stages.run(settings, *scans.radial_scan(), method=recorder))
    common = recorder.common[0]
    assert (common.solver, common.coils, common.seed, common.holdout, common.device, common.engine) == (
        "cg_sense",
        2,
        9,
        0.1,
        "cpu",
        "nudft",
    )
    assert recorder.specific[0] == {"steps": 3}


def test_slices_contrasts_and_sets_are_apart(scans):
    """Interleaved as a scanner sends them; each problem gets its own readouts and their times."""
    groups = [(s, c, e) for s in (0, 1) for c in (0, 1) for e in (0, 3)]
    parts = {g: scans.radial_scan(n=6, slice=g[0], contrast=g[1], set=g[2], seed=i)[1] for i, g in enumerate(groups)}
    stream = [parts[g][row] for row in range(6) for g in groups]
    for number, acquisition in enumerate(stream):
        acquisition.acquisition_time_stamp = 400 + 2 * number
    recorder = Recorder()
    images = list(stages.run(ChainSettings(readouts_per_frame=3), scans.Protocol().xml(), stream, method=recorder))
    assert [(i.slice, i.contrast, i.set) for i in images] == [g for g in groups for _ in range(2)]
    for number, (problem, group) in enumerate(zip(recorder.problems, groups, strict=True)):
        raw = np.stack([a.data for a in parts[group]], axis=1)
        ratio = problem.samples.numpy() / raw
        assert np.ptp(np.abs(ratio)) < 1e-3 * np.abs(ratio).mean()
        assert problem.readout_times.tolist() == pytest.approx([0.005 * (8 * row + number) for row in range(6)])


def test_images_leave_before_the_next_slice_is_reconstructed(scans):
    recorder = Recorder()
    stream = [a for s in (0, 1) for a in scans.radial_scan(n=8, slice=s)[1]]
    images = stages.run(ChainSettings(readouts_per_frame=4), scans.Protocol().xml(), stream, method=recorder)
    next(images)
    assert len(recorder.problems) == 1
    next(images)
    next(images)
    assert len(recorder.problems) == 2


def test_the_first_readouts_can_be_discarded(scans, heard):
    lines, report = heard
    xml, acquisitions = scans.radial_scan(n=10)
    recorder = Recorder()
    settings = ChainSettings(readouts_per_frame=2, discard_readouts=4)
    list(stages.run(settings, xml, acquisitions, report, recorder))
    assert recorder.problems[0].n_readouts == 6
    assert recorder.problems[0].readout_times[0] == 0
    assert any("first 4 imaging readouts left out" in line for line in lines)


def test_time_tick_is_a_setting(scans):
    recorder = Recorder()
    list(stages.run(ChainSettings(time_tick_ms=10.0), *scans.radial_scan(n=4), method=recorder))
    assert recorder.problems[0].readout_times.tolist() == pytest.approx([0, 0.01, 0.02, 0.03])


def test_stamps_that_are_no_clock_are_spaced_by_the_repetition_time(scans, heard):
    lines, report = heard
    _, acquisitions = scans.radial_scan(n=4)
    for acquisition in acquisitions:
        acquisition.acquisition_time_stamp = 5
    recorder = Recorder()
    list(stages.run(ChainSettings(), scans.Protocol().xml(), acquisitions, report, recorder))
    assert recorder.problems[0].readout_times.tolist() == pytest.approx([0, 0.003, 0.006, 0.009])
    assert any("time stamps are all equal" in line for line in lines)


@pytest.mark.parametrize(("in_turns", "spacing"), [(True, 0.001), (False, 0.003)])
def test_slices_in_turns_share_a_repetition_time_and_others_do_not(scans, in_turns, spacing):
    parts = [scans.radial_scan(n=6, slice=s, acquisition_time_stamp=5)[1] for s in range(3)]
    stream = [part[row] for row in range(6) for part in parts] if in_turns else [a for part in parts for a in part]
    recorder = Recorder()
    list(stages.run(ChainSettings(), scans.Protocol().xml(), stream, method=recorder))
    times = np.stack([problem.readout_times.numpy() for problem in recorder.problems])
    order = np.arange(18).reshape(6, 3).T if in_turns else np.arange(18).reshape(3, 6)
    np.testing.assert_allclose(times, order * spacing, atol=1e-12)


def test_nothing_of_one_scan_reaches_the_next(scans):
    a, b = scans.radial_scan(seed=1), scans.radial_scan(seed=2, n=16)
    noise = scans.acquisition(np.random.default_rng(0).standard_normal((3, 500)), flags=(NOISE,))
    alone = [image.to_bytes() for image in stages.run(GRIDDING, *b)]
    list(stages.run(GRIDDING, a[0], [noise, *a[1]]))
    assert [image.to_bytes() for image in stages.run(GRIDDING, *b)] == alone


def test_the_stream_is_read_as_it_arrives(scans):
    """No list of the whole stream is asked for: a reader may block between readouts."""
    xml, acquisitions = scans.radial_scan(n=8)
    order = []

    def arriving():
        for number, acquisition in enumerate(acquisitions):
            order.append(number)
            yield acquisition

    images = stages.run(GRIDDING, xml, arriving())
    assert order == []
    next(images)
    assert order == list(range(8))


def test_no_readouts_no_groups(scans):
    assert list(stages.buffer([], parse(scans.Protocol().xml()), 0.0025, print)) == []


def test_a_fault_of_the_source_passes_through(scans):
    xml, acquisitions = scans.radial_scan(n=8)

    def cut():
        yield from acquisitions[:4]
        raise ConnectionResetError("peer vanished")

    with pytest.raises(ConnectionResetError, match="peer vanished"):
        list(stages.run(GRIDDING, xml, cut()))
