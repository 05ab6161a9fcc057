"""Pictures are drawn from what is stored, and the demo draws them end to end."""

import builtins
import json

import h5py
import ismrmrd
import numpy as np
import pytest
from PIL import Image

from gadgets import cli, pictures
from gadgets.commands.show import load
from gadgets.map_sheet import at_scale, map_sheet, window
from gadgets.pictures import Shown, cine, contact_sheet, profile_column
from gadgets.scanfile import ImageWriter, Truth, write_scan, write_truth
from recon_core.errors import MissingPartError
from recon_core.metrics import moving_region


def _series(frames=8, shape=(24, 32)):
    y, x = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    radius = 0.4 + 0.15 * np.sin(np.linspace(0, 6, frames))
    return (1 / (1 + np.exp((np.hypot(x - 0.4, y)[None] - radius[:, None, None]) / 0.05))).astype(np.complex64)


@pytest.fixture
def stored(tmp_path):
    images, path = _series(), tmp_path / "out.h5"
    latents = np.stack([np.sin(np.linspace(0, 6, 8)), np.cos(np.linspace(0, 6, 8))]).astype(np.float32)
    with ImageWriter(path, "run") as writer:
        for number, pixels in enumerate(images):
            head = {"image_series_index": 1, "acquisition_time_stamp": 1000 + 4 * number, "field_of_view": (320.0, 240.0, 8.0)}
            writer.write(ismrmrd.Image.from_array(pixels, transpose=False, **head))
        image = ismrmrd.Image.from_array(latents, transpose=False, image_series_index=2)
        image.meta["SeriesDescriptionAdditional"] = "latents"
        writer.write(image)
    scan = tmp_path / "scan.h5"
    write_scan(scan, "<ismrmrdHeader/>", [])
    write_truth(scan, Truth(images, moving_region(images), np.arange(8) * 0.01))
    return path, scan


def test_what_is_stored_is_what_is_shown(stored):
    path, scan = stored
    shown = load(path, scan, None)
    np.testing.assert_allclose(shown.images, _series())
    np.testing.assert_allclose(shown.times, 0.01 * np.arange(8))
    assert shown.pixel == (10.0, 10.0)
    assert shown.latents.shape == (2, 8)
    assert shown.truth is not None
    assert load(path, None, "run").truth is None


def test_frame_times_of_the_meta_go_before_ticks(tmp_path):
    with ImageWriter(tmp_path / "out.h5", "run") as writer:
        for number, pixels in enumerate(_series(3)):
            image = ismrmrd.Image.from_array(pixels, transpose=False, image_series_index=1)
            image.meta["FrameTime_s"] = f"{0.0015 + 0.006 * number:g}"
            writer.write(image)
    shown = load(tmp_path / "out.h5", None, None)
    np.testing.assert_allclose(shown.times, [0.0015, 0.0075, 0.0135])
    assert shown.pixel == (1.0, 1.0)
    assert shown.latents is None


def test_the_command_draws_sheet_and_cine(stored, tmp_path, capsys):
    path, scan = stored
    assert cli.main(["show", str(path), "-o", str(tmp_path / "new" / "folder"), "--scan", str(scan)]) == 0
    sheet, film = capsys.readouterr().out.split()
    with Image.open(sheet) as picture:
        pixels = np.asarray(picture.convert("L"))
    assert min(pixels.shape) > 400
    assert pixels.std() > 30
    with Image.open(film) as animation:
        assert animation.n_frames == 8
        assert animation.info["loop"] == 0
        # Reconstruction beside truth; here both are the same.
        first = np.asarray(animation.convert("L")).astype(float)
        half = first.shape[1] // 2
        assert np.abs(first[:, :half] - first[:, half : 2 * half]).mean() < 6


def test_the_cine_moves(tmp_path):
    images = _series(6)
    cine(Shown(images, np.arange(6.0)), tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as animation:
        frames = []
        for number in range(animation.n_frames):
            animation.seek(number)
            frames.append(np.asarray(animation.convert("L")).astype(float))
    order = np.argsort([frame.sum() for frame in frames])
    np.testing.assert_array_equal(order, np.argsort(np.abs(images).sum((1, 2))))


def test_long_series_are_thinned_for_the_cine(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "_CINE_FRAMES", 5)
    cine(Shown(_series(12), np.arange(12.0)), tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.n_frames <= 5


def test_volumes_show_their_middle_slice(tmp_path):
    volume = np.zeros((3, 5, 24, 32), dtype=np.complex64)
    volume[:, 2] = _series(3)
    truth = Truth(volume, np.ones(volume.shape[1:], bool), np.arange(3.0))
    for known in (None, truth):
        shown = Shown(volume, np.arange(3.0), truth=known)
        contact_sheet(shown, tmp_path / "a.png")
        cine(shown, tmp_path / "a.gif")
        with Image.open(tmp_path / "a.gif") as animation:
            assert np.asarray(animation.convert("L")).max() > 200


def test_one_frame_can_be_drawn(tmp_path):
    contact_sheet(Shown(_series(1), np.zeros(1)), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000


def test_the_profile_runs_through_what_moves():
    magnitude = np.abs(_series())
    assert 16 < profile_column(magnitude) < 32  # the disc lies right of the middle
    only_left = np.zeros((24, 32), dtype=bool)
    only_left[:, :20] = True
    assert profile_column(magnitude, only_left) < 22


def test_absent_parts_name_their_cure(tmp_path, monkeypatch):
    whole = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] in ("matplotlib", "PIL"):
            raise ImportError(name)
        return whole(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    for draw, ending in ((contact_sheet, "png"), (cine, "gif")):
        with pytest.raises(MissingPartError, match="pip install"):
            draw(Shown(_series(2), np.arange(2.0)), tmp_path / f"a.{ending}")


def test_the_demo_goes_from_simulation_to_pictures(tmp_path, capsys):
    options = ["--matrix", "24", "--frames", "8", "--coils", "3", "--solvers", "gridding", "cg_sense"]
    assert cli.main(["--quiet", "demo", "--output", str(tmp_path), *options]) == 0
    said = capsys.readouterr().out
    for word in ("time average of the truth", "gridding", "cg_sense", "SSIM", "gridding.png", "cg_sense.gif"):
        assert word in said
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["gridding"]["frames"] == 8
    assert scores["gridding"]["form"] == "complex"
    assert scores["cg_sense"]["seconds"] > 0
    for name in ("gridding.png", "gridding.gif", "cg_sense.png", "cg_sense.gif", "scan.h5"):
        assert (tmp_path / name).stat().st_size > 1000


def test_the_demo_refuses_an_unknown_solver(tmp_path, capsys):
    assert cli.main(["demo", "--output", str(tmp_path / "demo"), "--solvers", "griding"]) == 1
    assert "Did you mean 'gridding'" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


@pytest.fixture
def stored_maps(tmp_path):
    """Maps as a chain sends them (T1 in ms), and a scan's file that holds their truth."""
    generator = np.random.default_rng(0)
    t1 = generator.uniform(0.5, 2.0, (3, 10, 12)).astype(np.float32)
    density = generator.uniform(0.5, 1.0, t1.shape).astype(np.float32)
    path, scan = tmp_path / "maps.h5", tmp_path / "scan.h5"
    with ImageWriter(path, "run") as writer:
        for series, (name, unit, values) in enumerate((("T1", "ms", 1000 * t1), ("PD", "", 3 * density)), 3):
            image = ismrmrd.Image.from_array(values, transpose=False, image_series_index=series)
            image.meta.update({"ParameterName": name, "ParameterUnit": unit})
            writer.write(image)
    with h5py.File(scan, "w") as file:
        group = file.create_group("map_truth")
        group.attrs["phantom"] = "head 1"
        for name, values in (("T1", t1), ("PD", density)):
            group[f"maps/{name}"] = values
        group["brain"], group["imaged"] = np.ones(t1.shape, bool), np.zeros(1, np.int64)
        group["sensitivities"] = group["images"] = np.ones((1, *t1.shape), np.complex64)
    return path, scan


def test_maps_of_a_protocol_are_drawn_beside_the_truth(stored_maps, tmp_path, capsys):
    path, scan = stored_maps
    assert cli.main(["show", str(path), "-o", str(tmp_path / "alone")]) == 0
    assert cli.main(["show", str(path), "-o", str(tmp_path / "beside"), "--scan", str(scan)]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / folder / "maps.png") for folder in ("alone", "beside")]
    with Image.open(tmp_path / "alone" / "maps.png") as alone, Image.open(tmp_path / "beside" / "maps.png") as beside:
        assert alone.width == beside.width
        assert beside.height > 2 * alone.height


def test_maps_of_a_single_slice_are_drawn(tmp_path):
    map_sheet({"T1": np.linspace(0, 2, 120, dtype=np.float32).reshape(10, 12)}, tmp_path / "a.png", "one slice")
    assert (tmp_path / "a.png").stat().st_size > 2000


def test_maps_are_compared_up_to_the_scale_of_proton_density_and_capped():
    truth = np.array([[[1.0, 2.0]]], np.float32)
    np.testing.assert_allclose(at_scale("PD", 3 * truth, truth, truth > 0), truth)
    assert at_scale("T1", np.full((1, 1, 2), 9.0, np.float32), truth, truth > 0).max() == np.float32(3.5)
    assert window("T2", truth) == (0.0, 0.2)
    low, high = window("off_resonance", np.linspace(-20, 40, 1000, dtype=np.float32))
    assert -20 < low < -19 < 39 < high < 40
    unfitted = np.concatenate([np.zeros(900), np.linspace(-0.95, -0.85, 100)]).astype(np.float32)
    low, high = window("B", unfitted)
    assert -0.95 < low < high < -0.85
    assert window("PD", np.zeros((0,), np.float32)) == window("PD", np.zeros(4, np.float32)) == (0.0, 1.0)


def test_maps_of_another_matrix_are_refused(stored_maps, capsys):
    path, scan = stored_maps
    with h5py.File(scan, "a") as file:
        del file["map_truth/maps/T1"]
        file["map_truth/maps/T1"] = np.ones((3, 10, 11), np.float32)
    assert cli.main(["show", str(path), "--scan", str(scan)]) == 1
    assert "(3, 10, 12), the truth has (3, 10, 11)" in capsys.readouterr().err
