"""Scores of stored images."""

import json
from pathlib import Path

import ismrmrd
import numpy as np
import pytest

from gadgets import cli
from gadgets.evaluation import Curve, arrival, evaluate, evaluate_provisional, image_series, pixel_values
from gadgets.scanfile import ImageWriter, Truth, write_scan, write_truth
from recon_core.errors import DataError
from recon_core.metrics import moving_region, score


@pytest.fixture
def truth():
    y, x = np.mgrid[-1:1:20j, -1:1:26j]
    radius = 0.5 + 0.2 * np.sin(np.linspace(0, 5, 9))
    images = (1 / (1 + np.exp((np.hypot(x, y)[None] - radius[:, None, None]) / 0.06)) * np.exp(1j * x)).astype(np.complex64)
    return Truth(images, moving_region(images), np.arange(9) * 0.006)


@pytest.fixture
def scan(truth, tmp_path):
    path = tmp_path / "scan.h5"
    write_scan(path, "<ismrmrdHeader/>", [])
    write_truth(path, truth)
    return path


def _store(path, series, group="run", slope=None, **head):
    with ImageWriter(path, group) as writer:
        for number, pixels in enumerate(series):
            image = ismrmrd.Image.from_array(pixels, transpose=False, image_series_index=1, image_index=number + 1, **head)
            if slope is not None:
                image.meta["RescaleSlope"] = f"{slope:.9g}"
            writer.write(image)
    return path


def _noisy(truth):
    rng = np.random.default_rng(0)
    noise = 0.05 * (rng.standard_normal(truth.images.shape) + 1j * rng.standard_normal(truth.images.shape))
    return (truth.images + noise).astype(np.complex64)


def test_complex_images_are_scored_as_they_are(tmp_path, truth, scan):
    noisy = _noisy(truth)
    result = evaluate(_store(tmp_path / "out.h5", 3 * noisy), scan)
    expected = score(noisy, truth.images, truth.moving)
    assert result["form"] == "complex"
    for name in ("psnr_db", "psnr_sd_db", "ssim", "dynamic_error", "time_average_psnr_db"):
        assert result[name] == pytest.approx(expected[name], rel=1e-5)


def test_magnitudes_are_scored_in_their_own_form(tmp_path, truth, scan):
    magnitude = np.abs(_noisy(truth))
    slope = float(magnitude.max()) / 30000
    path = _store(tmp_path / "out.h5", np.round(magnitude / slope).astype(np.uint16), slope=slope)
    result = evaluate(path, scan)
    assert result["form"] == "magnitude"
    assert result["psnr_db"] == pytest.approx(score(magnitude, truth.images, truth.moving)["psnr_db"], abs=0.01)
    values, images = image_series(path)
    np.testing.assert_allclose(values, magnitude, atol=slope)
    assert len(images) == 9


def test_the_final_series_counts_where_provisional_images_precede_it(tmp_path, truth, scan):
    path = tmp_path / "out.h5"
    with ImageWriter(path, "run") as writer:
        for number, pixels in enumerate(truth.images[:4]):
            image = ismrmrd.Image.from_array(pixels, transpose=False, image_series_index=1, image_index=number + 1)
            image.meta["Provisional"] = "1"
            writer.write(image)
    assert len(image_series(path)[1]) == 4
    with ImageWriter(path, "run") as writer:
        for series, frames in ((2, truth.images), (3, np.ones((1, 9, 4), dtype=np.complex64))):
            for number, pixels in enumerate(frames):
                writer.write(ismrmrd.Image.from_array(pixels, transpose=False, image_series_index=series, image_index=number + 1))
    assert evaluate(path, scan)["psnr_db"] > 60


def test_a_slope_of_each_image_counts(tmp_path, truth, scan):
    magnitude = np.abs(truth.images)
    for number, frame in enumerate(magnitude):
        slope = 1e-4 * (1 + number)
        _store(tmp_path / "out.h5", [np.round(frame / slope).astype(np.uint16)], slope=slope)
    assert evaluate(tmp_path / "out.h5", scan)["psnr_db"] > 60


def test_a_slope_that_is_no_number_is_told():
    image = ismrmrd.Image.from_array(np.ones((4, 4), dtype=np.uint16), transpose=False, image_index=3)
    image.meta["RescaleSlope"] = "steep"
    with pytest.raises(DataError, match="RescaleSlope: 'steep' in image 3"):
        pixel_values(image)


def test_channels_must_be_combined():
    image = ismrmrd.Image.from_array(np.ones((2, 1, 4, 4), dtype=np.complex64), transpose=False)
    with pytest.raises(DataError, match="2 channels"):
        pixel_values(image)


def test_volumes_keep_their_slices():
    image = ismrmrd.Image.from_array(np.ones((3, 4, 5), dtype=np.complex64), transpose=False)
    assert pixel_values(image).shape == (3, 4, 5)


def test_other_frames_or_pixels_are_refused(tmp_path, truth, scan):
    with pytest.raises(DataError, match="8 images, 9 frames"):
        evaluate(_store(tmp_path / "few.h5", truth.images[:8]), scan)
    with pytest.raises(DataError, match="matrix"):
        evaluate(_store(tmp_path / "small.h5", truth.images[:, :16]), scan)


def test_the_command_prints_json_and_words(tmp_path, truth, scan, capsys):
    path = _store(tmp_path / "out.h5", _noisy(truth))
    assert cli.main(["evaluate", str(path), str(scan), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {"psnr_db", "psnr_sd_db", "ssim", "dynamic_error", "time_average_psnr_db", "frames"} <= set(result)
    assert result["frames"] == 9
    assert cli.main(["evaluate", str(path), str(scan)]) == 0
    words = capsys.readouterr().out
    assert f"{result['psnr_db']:.2f}" in words
    assert "complex images" in words


@pytest.mark.parametrize("counter", ["slice", "contrast", "set"])
def test_slices_contrasts_and_sets_are_no_frames(tmp_path, truth, scan, capsys, counter):
    path = tmp_path / "out.h5"
    with ImageWriter(path, "run") as writer:
        for number in (0, 2):
            for pixels in truth.images:
                image = ismrmrd.Image.from_array((1 + number) * pixels, transpose=False, image_series_index=1)
                setattr(image, counter, number)
                writer.write(image)
    with pytest.raises(DataError, match=f"{counter}: one is a course of time, the series has 0, 2. Name one with --{counter}"):
        evaluate(path, scan)
    with pytest.raises(DataError, match=f"{counter}: 1 asked for of 0, 2"):
        evaluate(path, scan, part={counter: 1})
    assert evaluate(path, scan, part={counter: 2})["frames"] == len(truth.images)
    for command in (["evaluate", str(path), str(scan)], ["show", str(path), "-o", str(tmp_path)]):
        assert cli.main(command) == 1
        assert f"--{counter}" in capsys.readouterr().err
        assert cli.main([*command, f"--{counter}", "2"]) == 0


def test_several_runs_need_a_group(tmp_path, truth, scan, capsys):
    path = _store(_store(tmp_path / "out.h5", truth.images, "first"), _noisy(truth), "second")
    assert cli.main(["evaluate", str(path), str(scan)]) == 1
    assert "Name one with -G" in capsys.readouterr().err
    assert cli.main(["evaluate", str(path), str(scan), "-G", "first", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["psnr_db"] > 100


def test_a_real_scan_has_no_truth(tmp_path, truth, capsys):
    path = _store(tmp_path / "out.h5", truth.images)
    write_scan(tmp_path / "real.h5", "<ismrmrdHeader/>", [])
    assert cli.main(["evaluate", str(path), str(tmp_path / "real.h5")]) == 1
    assert "Only a simulated scan has a truth" in capsys.readouterr().err


def test_provisional_images_are_scored_against_the_truth_of_their_time(tmp_path, truth, scan, capsys):
    noisy = _noisy(truth)
    path = tmp_path / "out.h5"
    with ImageWriter(path, "run") as writer:
        for number in (2, 4, 7):
            image = ismrmrd.Image.from_array(noisy[number], transpose=False, image_series_index=1)
            image.meta |= {"Provisional": "1", "FrameTime_s": f"{0.006 * number + 0.002:.6f}"}
            writer.write(image)
        for pixels in truth.images:
            writer.write(ismrmrd.Image.from_array(pixels, transpose=False, image_series_index=2))
    late = [4, 7]
    result = evaluate_provisional(path, scan, after=0.02)
    assert result["frames"] == 2
    assert result["psnr_db"] == pytest.approx(score(noisy[late], truth.images[late], truth.moving)["psnr_db"], rel=1e-6)
    assert evaluate(path, scan)["psnr_db"] == 200
    assert cli.main(["evaluate", str(path), str(scan), "--provisional"]) == 0
    assert "frames          3" in capsys.readouterr().out
    with pytest.raises(DataError, match="none of 3 provisional"):
        evaluate_provisional(path, scan, after=1)


def test_no_provisional_image(tmp_path, truth, scan):
    with pytest.raises(DataError, match="is provisional"):
        evaluate_provisional(_store(tmp_path / "out.h5", truth.images), scan)


def _bolus(late: float) -> np.ndarray:
    frames = np.arange(40.0)
    return 1 + 2 * np.exp(-0.5 * ((frames - 15 - late) / 3) ** 2)


def test_curves_are_compared_with_the_true_ones():
    truth = _bolus(0.0)
    same = Curve(truth, truth)
    assert (same.difference, same.peak_shift, same.half_shift) == (0.0, 0, 0.0)
    late = Curve(_bolus(2.0), truth)
    assert late.peak_shift == 2
    assert late.half_shift == pytest.approx(2.0, abs=0.05)
    higher = Curve(truth + 0.3, truth)
    assert higher.difference == pytest.approx(10.0)
    # A constant is no delay.
    assert higher.half_shift == pytest.approx(0.0, abs=1e-9)
    assert Curve(_bolus(-1.5), truth).half_shift == pytest.approx(-1.5, abs=0.05)


def test_the_bolus_arrives_where_the_curve_passes_a_share_of_its_rise():
    ramp = np.array([2.0, 2.0, 2.0, 6.0, 10.0, 12.0, 7.0, 3.0])
    assert arrival(ramp) == pytest.approx(2 + 0.1 * 10 / 4)
    assert arrival(ramp, 0.5) == pytest.approx(3.25)
    # A bump before the upslope is no arrival; what comes after the peak neither.
    bumped = np.array([2.0, 4.0, 2.0, 6.0, 10.0, 12.0, 1.0, 12.0])
    assert arrival(bumped) == arrival(ramp)
    # No frame lies before the rise: it cannot be told.
    assert arrival(np.array([5.0, 4.0, 3.0])) == 0.0
    assert Curve(_bolus(2.0), _bolus(0.0)).arrival_shift == pytest.approx(2.0, abs=0.05)


def test_the_command_tells_curves_of_regions(tmp_path, capsys):
    pixels = np.full((40, 3, 8, 8), 0.5, dtype=np.complex64)
    region = np.zeros((3, 8, 8), dtype=bool)
    region[1, 2:5, 3:6] = True
    pixels[:, region] = _bolus(0.0)[:, None]
    truth = Truth(pixels, moving_region(pixels), np.arange(40) * 0.4, "dce", regions={"aorta": region}, curves={"aorta": _bolus(0.0)})
    path = tmp_path / "scan.h5"
    write_scan(path, "<ismrmrdHeader/>", [])
    write_truth(path, truth)
    late = pixels.copy()
    late[:, region] = _bolus(1.0)[:, None]
    files = [str(_store(tmp_path / name, series)) for name, series in (("good.h5", pixels), ("late.h5", late))]
    assert cli.main(["evaluate", files[0], str(path), "--beside", files[1], "--curves", str(tmp_path / "curves")]) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in told[-2:]] == [["good", "aorta"], ["late", "aorta"]]
    assert "0.00 % RMS" in told[-2]
    assert "peak +1, half of the rise +1.0, a tenth +1.0 frames" in told[-1]
    rows = (tmp_path / "curves.csv").read_text().splitlines()
    assert rows[0] == "time_s,aorta truth,aorta good,aorta late"
    assert len(rows) == 41
    assert (tmp_path / "curves.png").stat().st_size > 1000
    # Two runs of one name in two folders are still two.
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "good.h5").write_bytes(Path(files[1]).read_bytes())
    same = str(tmp_path / "elsewhere" / "good.h5")
    assert cli.main(["evaluate", files[0], str(path), "--beside", same]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[-2:]] == [files[0], same]
    assert cli.main(["evaluate", files[0], str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["curves"]["good"]["aorta"]["peak_shift"] == 0
