"""Scans of the benchmark: what methods are given and what they are not."""

from __future__ import annotations

from pathlib import Path

import ismrmrd
import numpy as np
import pytest
import torch

from gadgets.bench import scans
from gadgets.bench.cases import parse
from gadgets.scanfile import write_scan
from recon_core.errors import DataError, SettingError
from recon_core.metrics import score
from recon_core.operators.frames import FrameEncoding

NX, NY, FRAMES = 24, 16, 3
HEADER = f"""<?xml version="1.0" encoding="UTF-8"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
  <experimentalConditions><H1resonanceFrequency_Hz>63870000</H1resonanceFrequency_Hz></experimentalConditions>
  <encoding>
    <encodedSpace><matrixSize><x>{NX}</x><y>{NY}</y><z>1</z></matrixSize>
      <fieldOfView_mm><x>{NX}</x><y>{NY}</y><z>5</z></fieldOfView_mm></encodedSpace>
    <reconSpace><matrixSize><x>{NX}</x><y>{NY}</y><z>1</z></matrixSize>
      <fieldOfView_mm><x>{NX}</x><y>{NY}</y><z>5</z></fieldOfView_mm></reconSpace>
    <encodingLimits>
      <kspace_encoding_step_1><minimum>0</minimum><maximum>{NY - 1}</maximum><center>{NY // 2}</center></kspace_encoding_step_1>
    </encodingLimits>
    <trajectory>cartesian</trajectory>
  </encoding>
</ismrmrdHeader>
"""


def series() -> np.ndarray:
    """A smooth decaying object, complex ``[frame, y, x]``."""
    y, x = np.meshgrid(np.arange(NY) / NY - 0.5, np.arange(NX) / NX - 0.5, indexing="ij")
    body = np.exp(-((y / 0.2) ** 2 + (x / 0.25) ** 2)) + 0.7 * np.exp(-(((y - 0.15) / 0.08) ** 2 + ((x + 0.1) / 0.08) ** 2))
    return np.stack([body * np.exp(1j * x + 0.2j) * 0.7**t for t in range(FRAMES)]).astype(np.complex64)


def write_series(path: Path, lines: int = NY, channels: int = 1) -> None:
    spectra = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(series(), axes=(1, 2)), norm="ortho"), axes=(1, 2))
    rng = np.random.default_rng(5)
    spectra = spectra + 1e-3 * (rng.standard_normal(spectra.shape) + 1j * rng.standard_normal(spectra.shape))
    made = []
    for t in range(FRAMES):
        for ky in range(lines):
            readout = ismrmrd.Acquisition.from_array(np.repeat(spectra[t, ky][None], channels, axis=0).astype(np.complex64))
            readout.idx.kspace_encode_step_1 = ky
            readout.idx.repetition = t
            readout.center_sample = NX // 2
            readout.acquisition_time_stamp = t * lines + ky
            made.append(readout)
    write_scan(path, HEADER, made)


def test_simulated_scan_is_whitened_and_without_maps() -> None:
    case = parse("c", {"title": "t", "scan": {"kind": "simulate", "matrix": [24, 24], "frames": 6, "coils": 3, "readouts_per_frame": 2}})
    scan = scans.make(case, 1, Path())
    problem = scan.problem
    assert problem.sensitivities is None
    assert problem.weights is None
    assert scan.truth is not None
    assert scan.truth.shape == (6, 24, 24)
    assert problem.n_readouts == 12
    assert scans.source(case).startswith("cardiac")
    again, other = scans.make(case, 1, Path()), scans.make(case, 2, Path())
    assert torch.equal(problem.samples, again.problem.samples)
    assert not torch.equal(problem.samples, other.problem.samples)


def test_speech_comes_on_single_arms() -> None:
    fields = {"kind": "simulate", "phantom": "speech", "matrix": [24, 30], "frames": 5, "coils": 2, "detail": 2}
    case = parse("c", {"title": "t", "scan": fields})
    scan = scans.make(case, 1, Path())
    assert scan.problem.shape == (24, 30)
    assert [f.numel() for f in scan.problem.frames] == [1] * 5
    assert scans.source(case).startswith("speech")
    assert scan.truth is not None
    assert scan.truth.shape == (5, 24, 30)


@pytest.mark.parametrize("order", ["linear", "centre_out"])
def test_a_slice_of_a_stack_of_stars_is_a_problem_of_its_own(order: str) -> None:
    """Densely sampled, its gridded image is the truth of that slice and of no other."""
    fields = {"kind": "simulate", "phantom": "dce", "matrix": [20, 24], "partitions": 4, "thickness": 25, "frames": 2, "coils": 1}
    fields |= {"spokes_per_frame": 32, "duration": 3, "order": order, "snr": 1000, "slice_oversampling": 0.5}
    scan = scans.make(parse("c", {"title": "t", "scan": {**fields, "slice": 1}}), 2, Path())
    problem = scan.problem
    assert problem.shape == (20, 24)
    assert [f.numel() for f in problem.frames] == [32, 32]
    assert float(problem.readout_times.diff().min()) == pytest.approx(3 / 64)
    calibrated = problem.replace(weights=problem.trajectory.norm(dim=-1), sensitivities=torch.ones((1, 20, 24), dtype=torch.complex64))
    images = FrameEncoding(calibrated).backprojection(density=True).numpy()
    assert scan.truth is not None
    own = score(images, scan.truth, scan.moving)["psnr_db"]
    other = scans.make(parse("c", {"title": "t", "scan": {**fields, "slice": 3}}), 2, Path())
    assert own > 22
    assert own > score(images, other.truth, other.moving)["psnr_db"] + 3


def test_resampled_series(tmp_path: Path) -> None:
    write_series(tmp_path / "full.h5")
    scan = scans.resampled(scans.ResampledScan(file="full.h5", lines_per_frame=NY, spokes_per_frame=20), tmp_path)
    problem = scan.problem
    assert problem.shape == (NY, NX)
    assert problem.n_frames == FRAMES
    assert [f.numel() for f in problem.frames] == [20] * FRAMES
    assert scan.truth is not None
    assert scan.moving is not None
    # The first spoke runs along kx: every second sample is one of the file's own.
    full = scans.read_problem(tmp_path / "full.h5", NY, None)
    points = problem.trajectory[0]
    assert float(points[:, 1].abs().max()) < 1e-4
    whole = (points[:, 0] - points[:, 0].round()).abs() < 1e-4
    inside = whole & (points[:, 0].abs() < NX // 2)
    own = full.samples[0, NY // 2]
    expected = own[(points[inside, 0].round().to(torch.int64) + NX // 2)]
    assert int(inside.sum()) >= NX - 1
    assert float((problem.samples[0, 0, inside] - expected).norm() / expected.norm()) < 1e-3
    # The truth is the series itself, but for k-space beyond the disc and the noise.
    expected_images = series()
    scale = np.vdot(expected_images, scan.truth).real / np.vdot(expected_images, expected_images).real
    assert np.linalg.norm(scan.truth - scale * expected_images) < 0.02 * np.linalg.norm(scan.truth)


def test_densely_resampled_series_gives_the_truth_back(tmp_path: Path) -> None:
    """Samples and truth agree in scale, sign and centre: an adjoint of many spokes is the truth."""
    write_series(tmp_path / "full.h5")
    scan = scans.resampled(scans.ResampledScan(file="full.h5", lines_per_frame=NY, spokes_per_frame=64), tmp_path)
    radius = scan.problem.trajectory.norm(dim=-1)
    calibrated = scan.problem.replace(weights=radius, sensitivities=torch.ones((1, NY, NX), dtype=torch.complex64))
    images = FrameEncoding(calibrated).backprojection(density=True).numpy()
    assert scan.truth is not None
    assert scan.moving is not None
    assert score(images, scan.truth, scan.moving)["psnr_db"] > 30


@pytest.mark.parametrize(("lines", "channels"), [(NY - 2, 1), (NY, 2)])
def test_only_a_complete_series_of_one_channel_is_a_truth(tmp_path: Path, lines: int, channels: int) -> None:
    write_series(tmp_path / "part.h5", lines, channels)
    with pytest.raises(DataError, match="fully sampled"):
        scans.resampled(scans.ResampledScan(file="part.h5", lines_per_frame=lines), tmp_path)


@pytest.mark.parametrize("mask", ["random", "uniform"])
def test_a_part_of_the_lines_of_a_series(tmp_path: Path, mask: str) -> None:
    write_series(tmp_path / "full.h5")
    settings = scans.ResampledScan(file="full.h5", lines_per_frame=NY, acceleration=2, mask=mask, calibration_lines=4)
    scan = scans.resampled(settings, tmp_path)
    problem = scan.problem
    assert problem.cartesian
    assert problem.n_frames == FRAMES
    lines = [set(problem.trajectory[frame, 0, 1].tolist()) for frame in problem.frames]
    assert all({-2.0, -1.0, 0.0, 1.0} <= frame and len(frame) == 10 for frame in lines)
    assert lines[0] != lines[1]
    other = scans.resampled(settings, tmp_path, seed=1).problem
    same = [set(other.trajectory[frame, 0, 1].tolist()) for frame in other.frames] == lines
    assert same == (mask == "uniform")
    # What is left of the full set is measured, and predicted by the truth to rounding.
    ones = torch.ones((1, NY, NX), dtype=torch.complex64)
    encoding = FrameEncoding(problem.replace(sensitivities=ones))
    for t, part in enumerate(encoding.frames):
        predicted = encoding.forward(torch.from_numpy(scan.truth[t]), t)
        torch.testing.assert_close(predicted, part.samples, rtol=1e-4, atol=1e-4 * float(part.samples.abs().max()))


def test_a_simulated_cartesian_scan_lies_on_the_grid() -> None:
    own = {"kind": "simulate", "matrix": [20, 18], "coils": 2, "frames": 3, "detail": 2, "trajectory": "cartesian", "oversampling": 1}
    problem = scans.make(parse("case", {"title": "t", "scan": own}), 0, Path()).problem
    assert problem.cartesian
    assert [sorted(problem.trajectory[f, 0, 1].tolist()) == problem.trajectory[f, 0, 1].tolist() for f in problem.frames] == [True] * 3
    assert sum(f.numel() for f in problem.frames) == problem.n_readouts
    assert torch.equal(problem.trajectory, problem.trajectory.round())
    with pytest.raises(SettingError, match="oversampling: 2 of Cartesian lines"):
        scans.make(parse("case", {"title": "t", "scan": {**own, "oversampling": 2}}), 0, Path())


def test_withheld_readouts_are_not_in_the_problem(tmp_path: Path) -> None:
    write_series(tmp_path / "full.h5")
    fields = {"title": "t", "scan": {"kind": "file", "file": "full.h5", "readouts_per_frame": 8}, "withhold": 0.2}
    scan = scans.make(parse("c", fields), 0, tmp_path)
    assert scan.truth is None
    assert scan.everything is not None
    assert scan.withheld is not None
    held = int(scan.withheld.sum())
    assert held == pytest.approx(0.2 * FRAMES * NY, abs=2)
    assert scan.problem.n_readouts == FRAMES * NY - held
    assert torch.equal(scan.problem.samples, scan.everything.samples[:, ~scan.withheld])
    # The same readouts whatever the seed of the methods: their errors can be compared.
    assert torch.equal(scans.make(parse("c", fields), 7, tmp_path).withheld, scan.withheld)


def test_faults(tmp_path: Path) -> None:
    absent = parse("c", {"title": "t", "scan": {"kind": "file", "file": "none.h5"}})
    with pytest.raises(DataError, match="--data"):
        scans.make(absent, 0, tmp_path)
    with pytest.raises(SettingError, match="phantom"):
        scans.make(parse("c", {"title": "t", "scan": {"kind": "simulate", "phantom": "cardiak"}}), 0, tmp_path)
    stars = {"kind": "simulate", "phantom": "dce", "partitions": 4}
    with pytest.raises(SettingError, match="slice"):
        scans.make(parse("c", {"title": "t", "scan": {**stars, "slice": 4}}), 0, tmp_path)
    with pytest.raises(SettingError, match="Did you mean 'frames'"):
        scans.make(parse("c", {"title": "t", "scan": {"kind": "simulate", "frame": 3}}), 0, tmp_path)


def test_real_series_and_stream(data_dir: Path) -> None:
    rat = scans.resampled(
        scans.ResampledScan(file="hp_rat_kidney_t2series_2d/urea_full.h5", lines_per_frame=70, spokes_per_frame=8), data_dir
    )
    assert rat.truth is not None
    assert rat.truth.shape == (20, 70, 140)
    assert rat.problem.samples.shape == (1, 160, 280)
    course = np.abs(rat.truth).reshape(20, -1).max(axis=1)
    assert course[0] > 3 * course[-1]
    lung = scans.read_problem(data_dir / "lung_radial_3d" / "spokes_a.h5", 115, None)
    assert (lung.n_frames, lung.shape) == (20, (64, 64, 64))
