"""Simulated scans of many kinds through the whole chain: over a socket and in process come the same images."""

from __future__ import annotations

import json
from pathlib import Path

import ismrmrd
import numpy as np
import pytest

from gadgets import chain, client, stages
from gadgets.cli import main
from gadgets.commands.replay import configuration
from gadgets.scanfile import Scan, read_scan, read_truth
from gadgets.server import Server
from gadgets.simulation import store
from recon_core.phantoms.cardiac import CardiacSettings, simulate

SCANS = {
    "square": CardiacSettings(matrix=(24, 24), coils=4, frames=12, readouts_per_frame=4, seed=1, detail=2),
    "odd": CardiacSettings(matrix=(27, 27), coils=3, frames=10, readouts_per_frame=5, seed=2, detail=2),
    "non-square field": CardiacSettings(
        matrix=(22, 31), field_of_view=(230.0, 320.0), coils=5, frames=9, readouts_per_frame=6, seed=3, detail=2
    ),
    "non-square pixels": CardiacSettings(
        matrix=(33, 20), field_of_view=(280.0, 300.0), coils=8, frames=8, readouts_per_frame=5, seed=4, detail=2
    ),
    "one coil": CardiacSettings(matrix=(24, 24), coils=1, frames=6, readouts_per_frame=12, seed=5, detail=2),
    "one spoke a frame": CardiacSettings(matrix=(20, 20), coils=6, frames=30, readouts_per_frame=1, seed=6, detail=2),
    "physiological": CardiacSettings(
        matrix=(24, 24), coils=4, frames=8, readouts_per_frame=7, timing="physiological", repetition_time=4.3, seed=7, detail=2
    ),
    "spiral": CardiacSettings(
        matrix=(25, 32), field_of_view=(240.0, 320.0), coils=4, frames=9, readouts_per_frame=3, trajectory="spiral", seed=8, detail=2
    ),
    "few arms": CardiacSettings(
        matrix=(21, 21), coils=5, frames=16, readouts_per_frame=1, trajectory="spiral", interleaves=4, seed=9, detail=2
    ),
}
SOLVERS = {
    "gridding": {},
    "cg_sense": {"solver.steps": "6", "solver.damping": "0.1"},
    # Its λ and its step are left to the held-out readouts; inmr is given them.
    "subspace_inr": {"solver.steps": "12", "solver.rank": "6", "solver.basis_steps": "15", "solver.field_steps": "10"},
    "inmr": {
        "solver.steps": "50",
        "solver.levels": "6",
        "solver.log2_table": "12",
        "solver.width": "32",
        "solver.batch_frames": "4",
        "solver.smoothness": "0.1",
    },
}


# Geometry is the frames' business, which the quick solvers show on every scan; of networks one scan a trajectory tells the rest.
FITTED_ON = ("non-square field", "one spoke a frame", "few arms")
RUNS = [(name, solver) for name in SCANS for solver in SOLVERS if solver in ("gridding", "cg_sense") or name in FITTED_ON]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("scans")
    paths = {name: folder / f"{number}.h5" for number, name in enumerate(SCANS)}
    for name, path in paths.items():
        store(path, simulate(SCANS[name]))
    return paths


@pytest.fixture(scope="module")
def server():
    with Server("127.0.0.1", 0) as running:
        yield running


def over_socket(server: Server, scan: Scan, overrides: dict[str, str]) -> list[ismrmrd.Image]:
    config, tick_ms = configuration("cardiac.xml", None, overrides)
    images: list[ismrmrd.Image] = []
    result = client.replay(scan, config, server.host, server.port, on_image=images.append, tick_ms=tick_ms)
    assert result.error == ""
    assert (result.images, result.readouts) == (len(images), scan.n_acquisitions)
    return images


def in_process(scan: Scan, overrides: dict[str, str]) -> list[ismrmrd.Image]:
    return list(stages.run(chain.load("cardiac.xml").settings(overrides), scan.header, scan.items()))


def check_same(ours: list[ismrmrd.Image], others: list[ismrmrd.Image]) -> None:
    """Images from a socket against images that were never serialised."""
    assert len(ours) == len(others)
    for one, other in zip(ours, others, strict=True):
        # The last field is the length of the attributes, known once they are sent.
        assert bytes(one.getHead())[:-4] == bytes(other.getHead())[:-4]
        assert one.meta == ismrmrd.Meta.deserialize(other.meta.serialize())
        assert one.data.dtype == other.data.dtype
        scale = np.abs(other.data).max()
        assert scale > 0
        np.testing.assert_allclose(one.data / scale, other.data / scale, rtol=0, atol=1e-5)


def check_seen(images: list[ismrmrd.Image], path: Path) -> None:
    """The time mean is the truth's, in its place: mirrored, turned or moved by a pixel the truth is less like it."""
    truth = read_truth(path).images
    series = np.stack([image.data[0, 0] for image in images if image.image_series_index == 1])
    assert series.shape == truth.shape
    ours, theirs = np.abs(series.mean(axis=0)), np.abs(truth.mean(axis=0))
    wrong = [theirs[::-1], theirs[:, ::-1], theirs[::-1, ::-1], *([theirs.T] if theirs.shape[0] == theirs.shape[1] else [])]
    wrong += [np.roll(theirs, step, axis) for step in (-1, 1) for axis in (0, 1)]
    right, *others = (np.corrcoef(ours.ravel(), other.ravel())[0, 1] for other in (theirs, *wrong))
    assert right > 0.8
    assert right > max(others)


@pytest.mark.parametrize(("name", "solver"), RUNS, ids=lambda given: given)
def test_socket_and_process_give_the_same_images(name, solver, stored, server):
    scan, settings = read_scan(stored[name]), SCANS[name]
    overrides = {"solver": solver, "readouts_per_frame": str(settings.readouts_per_frame), "image_type": "complex", "device": "cpu"}
    overrides |= SOLVERS[solver]
    sent = over_socket(server, scan, overrides)
    check_same(sent, in_process(scan, overrides))
    check_seen(sent, stored[name])
    latents = [image for image in sent if image.image_series_index == 2]
    assert len(latents) == (solver in ("inmr", "subspace_inr"))


@pytest.mark.parametrize(
    ("solver", "overrides"),
    [
        ("cg_sense", {"frame_stride": "2"}),
        ("cg_sense", {"matrix": "18,13"}),
        ("cg_sense", {"coils": "2", "discard_readouts": "5"}),
        ("cg_sense", {"engine": "nudft"}),
        ("inmr", {"seed": "3"}),
        ("inmr", {"holdout": "0.2", "send_latents": "false"}),
    ],
    ids=lambda given: given if isinstance(given, str) else "-".join(given),
)
def test_properties_mean_the_same_on_both_ways(solver, overrides, stored, server):
    scan = read_scan(stored["non-square field"])
    plain = {"solver": solver, "readouts_per_frame": "6", "device": "cpu", **SOLVERS[solver], "solver.steps": "25"}
    sent = over_socket(server, scan, plain | overrides)
    check_same(sent, in_process(scan, plain | overrides))
    assert all(image.data.dtype == np.uint16 for image in sent if image.image_series_index == 1)
    before = in_process(scan, plain)
    assert len(before) != len(sent) or not np.array_equal(before[3].data, sent[3].data)


def test_commands_from_simulation_to_score(tmp_path, capsys):
    """The quick start of the README, with one log line for every status of the reconstruction."""
    scan, sent, made = (str(tmp_path / name) for name in ("scan.h5", "sent.h5", "made.h5"))
    size = ["--matrix", "24", "--frames", "20", "--coils", "4", "--readouts-per-frame", "4", "--detail", "2"]
    assert main(["simulate", "cardiac", scan, *size]) == 0
    chosen = ["-s", "solver=cg_sense", "-s", "readouts_per_frame=4", "-s", "image_type=complex"]
    capsys.readouterr()
    logs = []
    for command in (["replay", scan, "--serve", "-o", sent], ["recon", scan, "-o", made]):
        assert main([*command, *chosen]) == 0
        logs.append(capsys.readouterr().err.splitlines())
    for log in logs:
        assert sum("readouts, 4 channels, 20 frames of 24×24 pixels" in line for line in log) == 1
        assert sum("20 frames reconstructed" in line for line in log) == 1
    scores = []
    for images in (sent, made):
        assert main(["evaluate", images, scan, "--json"]) == 0
        scores.append(json.loads(capsys.readouterr().out))
    assert scores[0] == {name: pytest.approx(value, rel=1e-4) if name != "form" else "complex" for name, value in scores[1].items()}
    assert main(["show", sent, "--scan", scan, "-o", str(tmp_path)]) == 0
    assert {path.suffix for path in tmp_path.iterdir()} == {".h5", ".png", ".gif"}
