"""The Cartesian cine chain from simulation to images over the socket."""

from __future__ import annotations

from pathlib import Path

import ismrmrd
import numpy as np
import pytest

from gadgets import chain, client, stages
from gadgets.cli import main
from gadgets.commands.replay import configuration
from gadgets.flags import Kind, kind
from gadgets.header import parse
from gadgets.scanfile import read_scan, read_truth
from gadgets.server import Server
from gadgets.simulation import store
from recon_core.errors import DataError
from recon_core.metrics import score
from recon_core.phantoms.cardiac import CardiacScan, CardiacSettings, simulate

SETTINGS = CardiacSettings(
    matrix=(40, 34),
    field_of_view=(300.0, 340.0),
    coils=5,
    frames=24,
    trajectory="cartesian",
    acceleration=4,
    calibration_lines=4,
    timing="physiological",
    detail=2,
    seed=3,
)


@pytest.fixture(scope="module")
def scan() -> CardiacScan:
    return simulate(SETTINGS)


@pytest.fixture(scope="module")
def stored(scan: CardiacScan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cine") / "scan.h5"
    store(path, scan)
    return path


def test_the_file_is_a_cartesian_scan(stored: Path, scan: CardiacScan) -> None:
    source = read_scan(stored)
    encoding = parse(source.header).encoding(0)
    assert encoding.is_cartesian
    assert encoding.encoded.matrix == (68, 40, 1)
    assert encoding.encoded.field_of_view[:2] == pytest.approx((680.0, 300.0))
    assert encoding.recon.matrix == (34, 40, 1)
    limit = encoding.limits["kspace_encoding_step_1"]
    assert (limit.minimum, limit.maximum, limit.center) == (0, 39, 20)
    assert "net_acceleration" in source.header
    imaging = [a for a in source.items() if isinstance(a, ismrmrd.Acquisition) and kind(a) is Kind.IMAGING]
    assert [a.idx.kspace_encode_step_1 for a in imaging] == scan.lines.tolist()
    assert [a.idx.repetition for a in imaging] == scan.frames.tolist()
    assert all(a.traj.size == 0 and a.center_sample == 34 for a in imaging)
    assert sum(a.is_flag_set(ismrmrd.ACQ_LAST_IN_REPETITION) for a in imaging) == 24
    assert scan.net_acceleration == pytest.approx(40 * 24 / len(imaging))
    assert 1 < scan.net_acceleration < 4


@pytest.mark.parametrize("name", ["cine.xml", "cine_connect.xml"])
def test_chain_holds_what_a_cine_needs(name: str) -> None:
    settings = chain.load(name).settings()
    assert settings.framing == "order"
    assert chain.load(name).properties == chain.load("cine.xml").properties


@pytest.mark.parametrize("framing", ["order", "counters"])
def test_images_over_the_socket_beat_the_time_average(framing: str, stored: Path) -> None:
    source, truth = read_scan(stored), read_truth(stored)
    overrides = {"image_type": "complex", "device": "cpu", "coils": "5", "framing": framing, "solver.steps": "40"}
    config, tick_ms = configuration("cine.xml", None, overrides)
    images: list[ismrmrd.Image] = []
    with Server("127.0.0.1", 0) as server:
        result = client.replay(source, config, server.host, server.port, on_image=images.append, tick_ms=tick_ms)
    assert result.error == ""
    assert [image.repetition for image in images] == list(range(24))
    series = np.stack([image.data[0, 0] for image in images])
    found = score(series, truth.images, truth.moving)
    assert found["psnr_db"] > found["time_average_psnr_db"]
    assert found["dynamic_error"] < 0.8
    times = [float(image.meta["FrameTime_s"]) for image in images]
    np.testing.assert_allclose(times, truth.times, atol=3e-3)


@pytest.mark.parametrize("gating", ["ecg", "stamps"])
def test_a_scan_of_one_beat_cannot_be_gated(gating: str, stored: Path) -> None:
    settings = chain.load("cine.xml").settings(
        {"framing": "gated", "gating": gating, "cardiac_phases": "5", "solver": "gridding", "coils": "5"}
    )
    source = read_scan(stored)
    with pytest.raises(DataError, match="heartbeats found"):
        list(stages.run(settings, source.header, source.items()))


def test_the_command_tells_the_net_acceleration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "scan.h5")
    options = ["--matrix", "20", "24", "--frames", "4", "--coils", "2", "--detail", "2", "--trajectory", "cartesian"]
    assert main(["simulate", "cardiac", path, *options, "--mask", "uniform", "--acceleration", "4", "--calibration-lines", "4"]) == 0
    said = capsys.readouterr().out
    assert "net R 2.67" in said
    assert "about 9.0 readouts" in said
