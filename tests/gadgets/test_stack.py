"""The DCE and speech chains on simulated scans, in process and over a socket."""

from __future__ import annotations

import numpy as np
import pytest

from gadgets import chain, cli, stages
from gadgets.scanfile import read_images, read_scan, read_truth
from gadgets.settings import ChainSettings, chain_settings
from gadgets.simulation import store
from recon_core.errors import SettingError
from recon_core.metrics import score
from recon_core.phantoms import dce
from recon_core.phantoms.settings import DceSettings

FAST = {"solver.rank": "4", "solver.steps": "12", "solver.basis_steps": "10", "solver.basis_width": "16", "holdout": "0"}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    settings = DceSettings(
        matrix=(24, 28),
        partitions=3,
        thickness=30.0,
        coils=4,
        frames=40,
        duration=40.0,
        order="centre_out",
        slice_oversampling=0.34,
        partial=0.9,
    )
    path = tmp_path_factory.mktemp("dce") / "scan.h5"
    store(path, dce.simulate(settings))
    return path


def _run(path, overrides, heard=None):
    scan = read_scan(path)
    settings = chain_settings({"solver": "grasp_pro", "volume": "slices", "readouts_per_frame": "2"}, overrides)
    return list(stages.run(settings, scan.header, scan.items(), heard.append if heard is not None else None))


def test_volumes_leave_the_chain_and_resemble_the_truth(stored):
    said = []
    truth = read_truth(stored)
    y, x = np.argwhere(truth.regions["aorta"][1]).mean(axis=0).round().astype(int)
    images = _run(stored, {**FAST, "image_type": "complex", "regions": f"aorta={x},{y},1,1"}, said)
    volumes = [i for i in images if i.image_series_index == 1]
    assert len(volumes) == 40
    assert volumes[0].data.shape == (1, 3, 24, 28)
    found = np.stack([v.data[0] for v in volumes])
    made = score(found, truth.images, truth.moving)
    assert made["dynamic_error"] < 0.7
    assert made["psnr_db"] > made["time_average_psnr_db"] + 1
    times = [float(v.meta["FrameTime_s"]) for v in volumes]
    np.testing.assert_allclose(times, truth.times, atol=6e-3)
    assert volumes[0].field_of_view[2] == pytest.approx(90)
    kinds = {i.meta["SeriesDescriptionAdditional"] for i in images if i.image_series_index > 1}
    assert kinds == {"latents", "curves", "respiration"}
    curve = next(i for i in images if i.meta["SeriesDescriptionAdditional"] == "curves").data.reshape(-1)
    assert abs(int(curve.argmax()) - int(truth.curves["aorta"].argmax())) <= 2
    signal = next(i for i in images if i.meta["SeriesDescriptionAdditional"] == "respiration").data.reshape(-1)
    belt = read_scan(stored)
    assert belt.n_waveforms > 0
    assert signal.shape == (80,)
    assert any("80 spokes of 4 partitions (4 encoded), 3 slices" in line for line in said)


def test_breathing_is_that_of_the_belt(stored):
    """The self-navigated signal follows the simulated belt."""
    scan = read_scan(stored)
    belt = np.concatenate([w.data[0] for w in scan.items() if hasattr(w, "waveform_id") and w.waveform_id == 2]).astype(float)
    images = _run(stored, {"solver": "gridding", "holdout": "0"})
    signal = next(i for i in images if i.meta["SeriesDescriptionAdditional"] == "respiration")
    times = np.array([float(t) for t in signal.meta["FrameTimes_s"]])
    true = np.interp(times, 2.5e-3 * np.arange(len(belt)), belt)
    assert abs(np.corrcoef(true, signal.data.reshape(-1))[0, 1]) > 0.7


def test_over_the_socket_as_in_process(stored, tmp_path, capsys):
    out = tmp_path / "out.h5"
    options = [part for name, value in {**FAST, "image_type": "complex"}.items() for part in ("-s", f"{name}={value}")]
    assert cli.main(["replay", str(stored), "-c", "dce.xml", "-o", str(out), "--serve", *options]) == 0
    capsys.readouterr()
    sent = read_images(out)
    here = _run(stored, {**FAST, "image_type": "complex"})
    assert len(sent[1]) == 40
    np.testing.assert_array_equal(np.stack([i.data for i in sent[1]]), np.stack([i.data for i in here if i.image_series_index == 1]))


def test_a_field_map_may_change_from_frame_to_frame(stored, tmp_path):
    one = np.full((3, 24, 28), 60.0, dtype=np.float32) * np.arange(1, 4)[:, None, None]
    own = np.repeat(one[None], 40, axis=0)
    own[20:] = 0
    for name, maps in (("one", one), ("own", own), ("few", own[:39])):
        np.save(tmp_path / f"{name}.npy", maps)

    def seen(name):
        given = {"solver": "gridding", "image_type": "complex", "field_map": name and str(tmp_path / f"{name}.npy")}
        return np.stack([i.data[0] for i in _run(stored, given) if i.image_series_index == 1])

    without, still, changing = seen(""), seen("one"), seen("own")
    scale = np.abs(without).max()
    assert np.abs(still - without).max() > 0.01 * scale
    np.testing.assert_allclose(changing[:20], still[:20], atol=1e-3 * scale)
    np.testing.assert_allclose(changing[20:], without[20:], atol=1e-3 * scale)
    with pytest.raises(SettingError, match="39 maps for 40 frames"):
        seen("few")


def test_what_does_not_separate_is_told(scans):
    settings = ChainSettings(solver="gridding", volume="slices")
    with pytest.raises(SettingError, match="one slice"):
        list(stages.run(settings, *scans.radial_scan(n=8)))
    flat = scans.Protocol(trajectory="cartesian")
    with pytest.raises(SettingError, match="Cartesian"):
        list(stages.run(settings, flat.xml(), scans.cartesian(flat)))


@pytest.mark.parametrize(
    ("name", "solver", "per_frame", "volume"), [("speech", "grasp_pro", 1, "joint"), ("dce", "grasp_pro", 2, "slices")]
)
def test_the_chains_say_what_they_do(name, solver, per_frame, volume):
    for form in ("", "_connect"):
        settings = chain_settings(chain.load(name + form).properties)
        assert (settings.solver, settings.readouts_per_frame, settings.volume) == (solver, per_frame, volume)


@pytest.mark.slow
def test_the_speech_chain_corrects_a_field_and_sends_profiles(tmp_path, capsys):
    path = tmp_path / "speech.h5"
    options = ["--matrix", "24", "--frames", "24", "--coils", "3", "--interleaves", "2", "--readout", "3", "--detail", "2"]
    assert cli.main(["simulate", "speech", str(path), *options, "--off-resonance", "400", "--tr", "6"]) == 0
    truth = read_truth(path)
    np.save(tmp_path / "field.npy", truth.field_maps.mean(axis=0))
    scores = {}
    for name, field in (("with", str(tmp_path / "field.npy")), ("without", "")):
        scan = read_scan(path)
        given = {"field_map": field, "profiles": "tongue=8,3,8,20", "image_type": "complex", **FAST}
        settings = chain_settings(chain.load("speech").properties, given)
        images = list(stages.run(settings, scan.header, scan.items()))
        found = np.stack([i.data[0, 0] for i in images if i.image_series_index == 1])
        scores[name] = score(found, truth.images, truth.moving)["psnr_db"]
        assert any(i.meta["SeriesDescriptionAdditional"] == "profile tongue" and i.data.shape[-2:] == (18, 24) for i in images)
    assert scores["with"] > scores["without"] + 0.3
    capsys.readouterr()
