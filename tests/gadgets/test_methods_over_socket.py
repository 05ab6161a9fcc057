"""Every method runs from a chain file over the socket on a scan that suits it, and refuses one that does not."""

from __future__ import annotations

from pathlib import Path

import ismrmrd
import numpy as np
import pytest

from gadgets import client
from gadgets.commands.replay import configuration
from gadgets.map_simulation import store as store_protocol
from gadgets.scanfile import Scan, read_scan, read_truth, write_scan
from gadgets.server import Server
from gadgets.simulation import store
from recon_core.phantoms.cardiac import CardiacSettings, simulate
from recon_core.phantoms.relaxometry import RelaxometrySettings
from recon_core.phantoms.relaxometry import simulate as simulate_protocol
from recon_core.solvers import registry

GRID = {"steps": "25", "levels": "4", "log2_table": "11", "width": "16", "depth": "2", "learning_rate": "0.03"}
KSPACE = {"spatial_features": "64", "temporal_features": "12", "depth": "3", "points": "512", "steps": "40", "width": "24"}
# λ, bandwidth and step are left to the held-out readouts wherever a method chooses them.
TINY: dict[str, dict[str, str]] = {
    "als_subspace": {"steps": "2", "rank": "6", "basis_steps": "10"},
    "cg_sense": {"steps": "8"},
    "da_inr": {**GRID, "time_octaves": "2"},
    "fmlp": {"steps": "50", "spatial_features": "48", "temporal_features": "12", "width": "32", "depth": "3"},
    "grasp": {"steps": "20"},
    "grasp_pro": {"steps": "20", "rank": "6", "basis_steps": "10"},
    "gridding": {},
    "hash_inr": {**GRID, "batch_frames": "4"},
    "inmr": {**GRID, "batch_frames": "4", "mapped": "8", "latent": "3"},
    "kp_inr": {**KSPACE, "steps": "20", "width": "16", "channels": "2", "batch_frames": "4", "refreshes": "2", "first_guess": "zero"},
    "kt_grappa": {"frames": "3"},
    "low_rank_sparse": {"steps": "15"},
    "nik": {"steps": "100", "features": "64", "width": "32", "depth": "2", "omega": "3", "learning_rate": "0.01"},
    "p_inr": KSPACE,
    "stinr": {**GRID, "batch_frames": "4"},
    "subspace_inr": {"steps": "15", "rank": "6", "basis_steps": "10", "field_steps": "10"},
    "td_dip": {"steps": "50", "channels": "8", "mapped": "32"},
}
METHODS = registry.names()
CARTESIAN = ("kp_inr", "kt_grappa", "p_inr")
PLANAR = ("da_inr", "td_dip")
FRAME_BY_FRAME = ("cg_sense", "gridding")
IN_TIME = [name for name in METHODS if name not in FRAME_BY_FRAME]
# Any dynamic scan suits them: every trajectory, slices and volumes.
ANY = ("als_subspace", "cg_sense", "fmlp", "grasp", "grasp_pro", "gridding", "hash_inr", "inmr", "low_rank_sparse", "stinr", "subspace_inr")


@pytest.fixture(scope="module")
def radial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A radial scan of 24 × 20 pixels, 8 frames of 8 spokes."""
    path = tmp_path_factory.mktemp("radial") / "scan.h5"
    store(path, simulate(CardiacSettings(matrix=(24, 20), coils=4, frames=8, readouts_per_frame=8, seed=1, detail=2)))
    return path


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Cartesian scan of 24 × 20 pixels, 8 frames of half the lines or more."""
    path = tmp_path_factory.mktemp("lines") / "scan.h5"
    made = CardiacSettings(
        matrix=(24, 20), coils=4, frames=8, trajectory="cartesian", acceleration=3, calibration_lines=6, seed=1, detail=2
    )
    store(path, simulate(made))
    return path


@pytest.fixture(scope="module")
def server():
    with Server("127.0.0.1", 0) as running:
        yield running


def replayed(server: Server, chain: str, scan: Scan, **overrides: str) -> tuple[client.ReplayResult, list[ismrmrd.Image]]:
    config, tick_ms = configuration(chain, None, {"device": "cpu", "coils": "4", **overrides})
    images: list[ismrmrd.Image] = []
    return client.replay(scan, config, server.host, server.port, on_image=images.append, tick_ms=tick_ms), images


def test_every_method_is_tried_and_those_that_refuse_nothing_are_known() -> None:
    assert sorted(TINY) == METHODS
    assert sorted((*CARTESIAN, *PLANAR, *ANY, "nik")) == METHODS


@pytest.mark.parametrize("name", METHODS)
def test_method_runs_from_a_chain_over_the_socket(name, radial, lines, server):
    own = {f"solver.{key}": value for key, value in TINY[name].items()}
    chain, stored, more = ("cine.xml", lines, {}) if name in CARTESIAN else ("cardiac.xml", radial, {"readouts_per_frame": "8"})
    result, images = replayed(server, chain, read_scan(stored), solver=name, image_type="complex", **more, **own)
    assert result.error == ""
    frames = [image for image in images if image.image_series_index == 1]
    assert len(frames) == 8
    series = np.stack([image.data[0, 0] for image in frames])
    assert np.isfinite(series).all()
    truth = read_truth(stored).images
    assert series.shape == truth.shape
    likeness = np.corrcoef(np.abs(series.mean(axis=0)).ravel(), np.abs(truth.mean(axis=0)).ravel())[0, 1]
    assert likeness > 0.7
    comments = " ".join(str(frames[0].meta[key]) for key in frames[0].meta)
    assert f"{name} on cpu" in comments
    assert ("chosen on held-out readouts" in comments) == (name != "gridding")


def test_what_replaces_a_part_is_told_in_the_images(radial, server):
    own = {f"solver.{key}": value for key, value in TINY["da_inr"].items()}
    _, images = replayed(server, "cardiac.xml", read_scan(radial), solver="da_inr", readouts_per_frame="8", holdout="0", **own)
    assert "fixed multi-scale gradients, not MDSR" in " ".join(str(images[0].meta[key]) for key in images[0].meta)


def refused(server: Server, chain: str, scan: Scan, *words: str, **overrides: str) -> None:
    result, images = replayed(server, chain, scan, **overrides)
    assert images == []
    for part in words:
        assert part in result.error


@pytest.mark.parametrize("name", CARTESIAN)
def test_spokes_are_refused_by_methods_of_cartesian_kspace(name, radial, server):
    words = f"{name} completes Cartesian k-space, the scan's samples lie off the grid", "Send Cartesian lines"
    refused(server, "cine.xml", read_scan(radial), *words, solver=name, framing="count", readouts_per_frame="8")


def test_lines_are_refused_by_nik(lines, server):
    words = "nik models non-Cartesian k-space, the scan is Cartesian", "Send radial or spiral readouts"
    refused(server, "cine.xml", read_scan(lines), *words, solver="nik")


@pytest.mark.parametrize("name", PLANAR)
def test_volumes_are_refused_by_methods_of_slices(name, scans, server, tmp_path):
    protocol = scans.Protocol(encoded_matrix=(16, 16, 8), encoded_fov=(320.0, 320.0, 160.0), matrix=(16, 16, 8), fov=(320.0, 320.0, 160.0))
    flat = scans.spokes(24, 32, (0.025, 0.025))
    along = np.linspace(-0.02, 0.02, 24)[:, None, None] * np.linspace(-1, 1, 32)[None, :, None]
    write_scan(tmp_path / "volume.h5", protocol.xml(), scans.non_cartesian(np.concatenate([flat, along], axis=2), protocol))
    scan = read_scan(tmp_path / "volume.h5")
    refused(server, "cardiac.xml", scan, f"{name} handles (2,) dimensions, the scan has 3", solver=name, readouts_per_frame="8")


@pytest.mark.parametrize("name", registry.quantitative_names())
def test_a_scan_of_one_contrast_is_refused_by_methods_of_protocols(name, radial, server):
    result, images = replayed(server, "mpqmri.xml", read_scan(radial), solver=name)
    assert images == []
    assert result.error != ""


@pytest.fixture(scope="module")
def protocols(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Flip angles × echoes, and T2 preparations × recoveries × echoes."""
    folder = tmp_path_factory.mktemp("protocols")
    size = {"matrix": (4, 20, 16), "field_of_view": (40.0, 220.0, 200.0), "coils": 3, "acceleration": 2.0}
    for name, more in {"set1": {"echoes": 2}, "set2": {"recoveries": 3}}.items():
        store_protocol(folder / f"{name}.h5", simulate_protocol(RelaxometrySettings(protocol=name, **{**size, **more})))
    return {name: folder / f"{name}.h5" for name in ("set1", "set2")}


@pytest.mark.parametrize("name", IN_TIME)
def test_a_protocol_is_refused_by_methods_of_a_course_in_time(name, protocols, server):
    """Its contrasts would pass for the frames of a motion."""
    for protocol, listed in (("set1", "its header lists 5 flip angles"), ("set2", "its header lists T2 preparations (T2prep_ms_n)")):
        words = f"{name} models a course in time, the scan is a multi-contrast protocol", listed, "Choose a solver of protocols (lorein"
        refused(server, "mpqmri.xml", read_scan(protocols[protocol]), *words, solver=name)


@pytest.mark.parametrize("name", IN_TIME)
def test_a_single_frame_is_refused_by_methods_of_a_course_in_time(name, radial, lines, server):
    chain, stored = ("cine.xml", lines) if name in CARTESIAN else ("cardiac.xml", radial)
    scan = read_scan(stored)
    words = f"{name} models a course in time and needs at least two frames", "Lower readouts_per_frame"
    refused(server, chain, scan, "frames: 1 with readouts, of ", *words, solver=name, framing="count", readouts_per_frame="1000")
