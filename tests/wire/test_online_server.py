"""Images while the scan runs, over the socket: both series, lags at the client, disconnects, metrics."""

from __future__ import annotations

import dataclasses
import re
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError

import numpy as np
import pytest

from gadgets import client
from gadgets.commands.replay import configuration
from gadgets.metrics import MetricsServer, PrometheusMetrics
from gadgets.scanfile import Scan, read_scan
from gadgets.server import Server
from gadgets.simulation import store
from gadgets.stream import ConfigFile, Connection, Header
from gadgets.wire_requests import default_application
from recon_core.phantoms.cardiac import CardiacSettings, simulate

PROPERTIES = {
    "solver": "gridding",
    "mode": "both",
    "image_type": "complex",
    "device": "cpu",
    "coils": "3",
    "online.rank": "2",
    "online.calibration": "0.06",
    "online.start": "0.1",
    "online.settle": "0.2",
    "online.window": "0.3",
    "online.start_steps": "3",
    "online.steps": "1",
    "online.basis_width": "16",
    "online.every": "16",
}
FRAMES = 60


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Scan:
    path = tmp_path_factory.mktemp("online") / "scan.h5"
    store(path, simulate(CardiacSettings(matrix=(24, 32), coils=3, frames=FRAMES, detail=2, seed=1)))
    return read_scan(path)


@pytest.fixture
def metrics() -> PrometheusMetrics:
    return PrometheusMetrics()


@pytest.fixture
def serving(metrics: PrometheusMetrics) -> Iterator[Server]:
    before = set(threading.enumerate())
    server = Server(port=0, application=metrics.watch(default_application(metrics)))
    server.start()
    yield server
    assert server.stop(30)
    assert [thread.name for thread in threading.enumerate() if thread not in before] == []


def replayed(scan: Scan, server: Server, **changes: str) -> tuple[client.ReplayResult, dict[int, list[np.ndarray]]]:
    config, tick = configuration("cardiac.xml", None, {**PROPERTIES, **changes})
    images: dict[int, list[np.ndarray]] = {}
    result = client.replay(
        scan,
        config,
        "127.0.0.1",
        server.port,
        on_image=lambda image: images.setdefault(image.image_series_index, []).append(np.array(image.data)),
        tick_ms=tick,
    )
    assert result.error == ""
    return result, images


def test_both_series_arrive_and_the_lags_are_measured(scan, serving):
    result, images = replayed(scan, serving, late_frames="wait")
    _, alone = replayed(scan, serving, mode="retrospective")
    assert set(images) == {1, 2}
    np.testing.assert_array_equal(np.stack(images[2]), np.stack(alone[1]))
    assert len(result.lags) == len(images[1]) == FRAMES - 10
    assert all(0 < lag <= result.seconds for lag in result.lags)
    told = "\n".join(result.texts)
    assert f"{2 * FRAMES} readouts received: {2 * len(images[1])} in {len(images[1])} provisional images" in told
    assert re.search(r"median \d+ ms, 95th \d+ ms, 99th \d+ ms, worst \d+ ms", told)


def test_the_realtime_rule_accounts_for_every_readout(scan, serving):
    result, images = replayed(scan, serving, late_frames="join")
    found = re.search(
        r"(\d+) readouts received: (\d+) in .*?, (\d+) in \d+ frames skipped, (\d+) in .*?, (\d+) in no", "\n".join(result.texts)
    )
    received, *parts = (int(number) for number in found.groups())
    assert received == sum(parts) == 2 * FRAMES
    assert len(images[2]) == FRAMES


def open_files() -> int:
    """Files and sockets that this process holds open; 0 where the system does not tell."""
    held = Path("/proc/self/fd")
    return len(list(held.iterdir())) if held.is_dir() else 0


def test_ten_disconnects_leave_nothing_and_the_next_scan_is_normal(scan, serving):
    _, expected = replayed(scan, serving, late_frames="wait")
    before, files = threading.active_count(), open_files()
    config, _ = configuration("cardiac.xml", None, {**PROPERTIES, "late_frames": "join"})
    items = list(scan.items())
    for number in range(10):
        with client.connect("127.0.0.1", serving.port, 10) as sock:
            link = Connection(sock)
            link.send(config)
            link.send(Header(scan.header))
            for item in items[: 30 + 8 * number]:
                link.send(item)
    deadline = time.monotonic() + 60
    while (serving.scans or threading.active_count() > before or open_files() > files) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert serving.scans == 0
    assert threading.active_count() <= before
    assert open_files() <= files
    _, images = replayed(scan, serving, late_frames="wait")
    for series in (1, 2):
        np.testing.assert_array_equal(np.stack(images[series]), np.stack(expected[series]))


def value(page: str, name: str) -> float:
    return float(re.search(rf"^gadgetron_inr_{re.escape(name)} (\S+)$", page, re.MULTILINE)[1])


def test_metrics_and_health(scan, serving, metrics):
    with MetricsServer(metrics, 0) as endpoint:

        def get(path: str) -> tuple[int, str]:
            with urllib.request.urlopen(f"http://127.0.0.1:{endpoint.port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()

        assert get("/healthz") == (200, "ok\n")
        with pytest.raises(HTTPError, match="404"):
            get("/elsewhere")
        result, images = replayed(scan, serving, late_frames="wait")
        page = get("/metrics")[1]
    sent = len(images[1])
    assert value(page, "scans_total") == 1
    assert value(page, "scans_running") == 0
    assert value(page, "images_total") == result.images
    assert value(page, "online_readouts_total") == 2 * FRAMES
    assert value(page, "online_frames_total") == FRAMES
    assert value(page, "online_frames_skipped_total") == 0
    assert value(page, "online_lag_seconds_count") == sent
    assert value(page, "online_refinement_seconds_count") >= 2
    assert value(page, 'online_queue_depth{queue="frames"}') == 0
    assert value(page, "gpu_memory_bytes") >= 0


def test_errors_are_counted_by_class(scan, serving, metrics):
    refused = client.replay(scan, ConfigFile("nonsense.xml"), "127.0.0.1", serving.port)
    assert "nonsense.xml" in refused.error
    headless = dataclasses.replace(scan, header="<ismrmrdHeader/>")
    config, _ = configuration("cardiac.xml", None, PROPERTIES)
    assert "encoding" in client.replay(headless, config, "127.0.0.1", serving.port).error
    page = metrics.page().decode()
    assert value(page, 'errors_total{kind="SettingError"}') == 1
    assert value(page, 'errors_total{kind="DataError"}') == 1
    assert value(page, "scans_running") == 0
