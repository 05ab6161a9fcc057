"""Every fitted method runs from a chain file over the socket on a scan that suits it, and refuses one that does not."""

from __future__ import annotations

from pathlib import Path

import ismrmrd
import numpy as np
import pytest

from gadgets import client
from gadgets.commands.replay import configuration
from gadgets.scanfile import Scan, read_scan, read_truth, write_scan
from gadgets.server import Server
from gadgets.simulation import store
from recon_core.phantoms.cardiac import CardiacSettings, simulate
from recon_core.solvers import registry
from recon_core.solvers.fitting import FieldSolver

GRID = {"steps": "25", "levels": "4", "log2_table": "11", "width": "16", "depth": "2", "learning_rate": "0.03"}
# λ, bandwidth and step are left to the held-out readouts wherever a method chooses them.
TINY: dict[str, dict[str, str]] = {
    "inmr": {**GRID, "batch_frames": "4", "mapped": "8", "latent": "3"},
    "hash_inr": {**GRID, "batch_frames": "4"},
    "stinr": {**GRID, "batch_frames": "4"},
    "da_inr": {**GRID, "time_octaves": "2"},
    "fmlp": {"steps": "50", "spatial_features": "48", "temporal_features": "12", "width": "32", "depth": "3"},
    "td_dip": {"steps": "50", "channels": "8", "mapped": "32"},
    "nik": {"steps": "100", "features": "64", "width": "32", "depth": "2", "omega": "3", "learning_rate": "0.01"},
}
METHODS = [name for name in registry.names() if issubclass(registry.solver_class(name), FieldSolver)]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A radial scan of 24 × 20 pixels, 8 frames of 8 spokes."""
    path = tmp_path_factory.mktemp("scan") / "scan.h5"
    store(path, simulate(CardiacSettings(matrix=(24, 20), coils=4, frames=8, readouts_per_frame=8, seed=1, detail=2)))
    return path


@pytest.fixture(scope="module")
def server():
    with Server("127.0.0.1", 0) as running:
        yield running


def replayed(server: Server, scan: Scan, **overrides: str) -> tuple[client.ReplayResult, list[ismrmrd.Image]]:
    config, tick_ms = configuration("cardiac.xml", None, {"readouts_per_frame": "8", "device": "cpu", **overrides})
    images: list[ismrmrd.Image] = []
    return client.replay(scan, config, server.host, server.port, on_image=images.append, tick_ms=tick_ms), images


def test_every_method_is_tried() -> None:
    assert sorted(TINY) == METHODS


@pytest.mark.parametrize("name", METHODS)
def test_method_runs_from_a_chain_over_the_socket(name, stored, server):
    own = {f"solver.{key}": value for key, value in TINY[name].items()}
    result, images = replayed(server, read_scan(stored), solver=name, image_type="complex", **own)
    assert result.error == ""
    frames = [image for image in images if image.image_series_index == 1]
    assert len(frames) == 8
    series = np.stack([image.data[0, 0] for image in frames])
    assert np.isfinite(series).all()
    truth = read_truth(stored).images
    likeness = np.corrcoef(np.abs(series.mean(axis=0)).ravel(), np.abs(truth.mean(axis=0)).ravel())[0, 1]
    assert likeness > 0.7
    comments = " ".join(str(frames[0].meta[key]) for key in frames[0].meta)
    assert f"{name} on cpu" in comments
    assert "chosen on held-out readouts" in comments


def test_what_replaces_a_part_is_told_in_the_images(stored, server):
    own = {f"solver.{key}": value for key, value in TINY["da_inr"].items()}
    _, images = replayed(server, read_scan(stored), solver="da_inr", holdout="0", **own)
    assert "fixed multi-scale gradients, not MDSR" in " ".join(str(images[0].meta[key]) for key in images[0].meta)


def test_cartesian_readouts_are_refused_by_nik(scans, server, tmp_path):
    protocol = scans.Protocol(trajectory="cartesian")
    write_scan(tmp_path / "lines.h5", protocol.xml(), scans.cartesian(protocol))
    result, images = replayed(server, read_scan(tmp_path / "lines.h5"), solver="nik", readouts_per_frame="32")
    assert images == []
    assert "nik models non-Cartesian k-space, the scan is Cartesian" in result.error
    assert "Send radial or spiral readouts" in result.error
