"""Many scans against one server process with a real solver: neither memory nor threads grow, and no scan touches another's images."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import psutil
import pytest

from gadgets import client
from gadgets.commands.replay import configuration
from gadgets.scanfile import Scan, read_scan
from gadgets.simulation import store
from recon_core.phantoms.cardiac import CardiacSettings, simulate

ORDER = "ABABABABAA"  # the third and the tenth are the same scan
SCANS = {
    "A": CardiacSettings(matrix=(48, 48), coils=6, frames=40, readouts_per_frame=2, detail=2, seed=1),
    "B": CardiacSettings(matrix=(30, 40), field_of_view=(240.0, 320.0), coils=4, frames=30, readouts_per_frame=3, detail=2, seed=2),
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scan]:
    folder = tmp_path_factory.mktemp("scans")
    for name, settings in SCANS.items():
        store(folder / f"{name}.h5", simulate(settings))
    return {name: read_scan(folder / f"{name}.h5") for name in SCANS}


@pytest.fixture
def serving() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The server in a process of its own, and its port."""
    command = [sys.executable, "-m", "gadgets.cli", "serve", "--port", "0"]
    with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "2"}, stderr=subprocess.PIPE, text=True) as process:
        try:
            first = process.stderr.readline()
            reader = threading.Thread(target=process.stderr.read)
            reader.start()
            yield process, int(re.search(r"listening at 127\.0\.0\.1:(\d+)", first)[1])
        finally:
            process.kill()
            reader.join()


def images_of(scan: Scan, readouts_per_frame: int, port: int) -> np.ndarray:
    config, _ = configuration("cardiac.xml", None, {"solver": "cg_sense", "readouts_per_frame": str(readouts_per_frame), "device": "cpu"})
    images: list[np.ndarray] = []
    result = client.replay(scan, config, "127.0.0.1", port, on_image=lambda image: images.append(image.data[0, 0]))
    assert result.error == ""
    return np.stack(images)


def settled(process: psutil.Process, threads: int) -> int:
    """Resident bytes once the scans' threads are gone."""
    deadline = time.monotonic() + 10
    while process.num_threads() > threads and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.num_threads() <= threads
    return process.memory_info().rss


def test_ten_in_a_row_and_three_at_once(stored, serving):
    process, port = serving
    watched = psutil.Process(process.pid)

    def one(name: str) -> np.ndarray:
        return images_of(stored[name], SCANS[name].readouts_per_frame, port)

    expected: dict[str, np.ndarray] = {}
    memory: list[int] = []
    for name in ORDER:
        images = one(name)
        assert len(images) == SCANS[name].frames
        np.testing.assert_array_equal(images, expected.setdefault(name, images))
        if not memory:
            time.sleep(0.5)
            # The listener, and OpenMP threads that wait for the next scan.
            threads, files = watched.num_threads(), watched.num_fds()
        memory.append(settled(watched, threads))
    together: dict[int, np.ndarray] = {}
    clients = [threading.Thread(target=lambda n=n, name=name: together.update({n: one(name)})) for n, name in enumerate("ABA")]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    assert sorted(together) == [0, 1, 2]
    for number, name in enumerate("ABA"):
        np.testing.assert_array_equal(together[number], expected[name])
    assert memory[9] < 1.05 * memory[2]
    settled(watched, threads)
    assert watched.num_fds() <= files
    assert watched.children() == []
    process.terminate()
    assert process.wait(20) == 0
