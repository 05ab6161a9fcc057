"""``python -m gadgetron PORT MODULE run`` as Gadgetron starts it for an <execute> node: the test is the Gadgetron."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

SECONDS = 60.0
ROOT = Path(__file__).resolve().parents[2]
DECLARATION = '<?xml version="1.0"?>\n'
HEADER = (
    '<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><experimentalConditions>'
    "<H1resonanceFrequency_Hz>63500000</H1resonanceFrequency_Hz></experimentalConditions></ismrmrdHeader>"
)
# The same entry point as gadgets.node.run with a reconstruction that needs no torch.
CHEAP = textwrap.dedent("""
    import ismrmrd
    import numpy as np
    from gadgets import node
    from gadgets.wire_requests import Application
    from recon_core.errors import DataError, SettingError

    def settings(properties):
        if "bad" in properties:
            raise SettingError("bad", "'1' is not admitted", "Leave it out.")
        return properties

    def images(settings, header, items, report):
        report("started")
        assert header.startswith("<?xml")
        for number, item in enumerate(i for i in items if isinstance(i, ismrmrd.Acquisition)):
            if settings.get("crash") == str(number):
                raise ZeroDivisionError("a fault nobody foresaw")
            if not np.isfinite(item.data).all():
                raise DataError(f"readout {number}", "NaN or Inf", "Leave it out.")
            pixels = np.full((2, 3), np.abs(item.data).sum(), np.float32)
            yield ismrmrd.Image.from_array(pixels, transpose=False, image_index=number)

    def run(connection):
        node.run(connection, Application(None, None, settings, images))
""")


class Gadgetron:
    """Starts the node, accepts its connection, sends and receives bytes."""

    def __init__(self, module: str, folder: Path) -> None:
        self.listener = socket.create_server(("localhost", 0))
        self.listener.settimeout(SECONDS)
        port = str(self.listener.getsockname()[1])
        paths = os.pathsep.join([str(folder), str(ROOT)])
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "GADGETRON_EXTERNAL_LOG_LEVEL": "INFO"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gadgetron", port, module, "run"], env=environment, cwd=folder, stderr=subprocess.PIPE, text=True
        )
        self.sock, _ = self.listener.accept()
        self.sock.settimeout(SECONDS)

    def rest(self) -> bytes:
        received = bytearray()
        while part := self.sock.recv(1 << 16):
            received += part
        return bytes(received)

    def ended(self) -> tuple[int, str]:
        """Exit status and log."""
        _, log = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, log

    def close(self) -> None:
        self.sock.close()
        self.listener.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@pytest.fixture
def gadgetron(tmp_path) -> Iterator[Gadgetron]:
    (tmp_path / "cheap_node.py").write_text(CHEAP)
    parent = Gadgetron("cheap_node", tmp_path)
    yield parent
    parent.close()


def configuration(**properties: str) -> str:
    inner = "".join(f'\t<property name="{name}" value="{value}" />\n' for name, value in properties.items())
    return f"{DECLARATION}<configuration>\n{inner}</configuration>\n"


def test_a_recorded_scan_gives_images_and_one_close(gadgetron, transcript, raw, pixel_sums, image_sums):
    stream = transcript("connect_1_server_to_node")
    gadgetron.sock.sendall(stream)
    messages = raw.parse(gadgetron.rest())
    assert [number for number, _ in messages] == [1022] * 14 + [4]
    np.testing.assert_allclose(image_sums(messages)[2:], pixel_sums(stream, 1), rtol=1e-6)
    assert gadgetron.ended()[0] == 0


def test_no_configuration_at_all(gadgetron, raw):
    gadgetron.sock.sendall(raw.script(DECLARATION) + raw.header(HEADER) + raw.scan(2))
    assert [number for number, _ in raw.parse(gadgetron.rest())] == [1022] * 4 + [4]
    assert gadgetron.ended()[0] == 0


@pytest.mark.parametrize(
    ("properties", "images", "words"),
    [
        ({"bad": "1"}, 0, "bad: '1' is not admitted. Leave it out."),
        ({"crash": "3"}, 3, "ZeroDivisionError: a fault nobody foresaw"),
    ],
)
def test_an_error_waits_for_close_and_is_delivered_once(gadgetron, raw, properties, images, words):
    scan = raw.scan(40)
    sock = gadgetron.sock
    sock.sendall(raw.script(configuration(**properties)) + raw.header(HEADER) + scan[:20000])
    assert [number for number, _ in raw.parse(until_silent(sock))] == [1022] * images
    sock.sendall(scan[20000:])
    assert raw.parse(gadgetron.rest()) == [(8, words), (4, None)]
    status, log = gadgetron.ended()
    assert status == 0
    assert words in log


def until_silent(sock: socket.socket) -> bytes:
    """What arrives until nothing has for a second."""
    received = b""
    sock.settimeout(1.0)
    try:
        while part := sock.recv(1 << 16):
            received += part
    except TimeoutError:
        return received
    finally:
        sock.settimeout(SECONDS)
    raise AssertionError("the node closed early")


def test_not_finite(gadgetron, raw):
    bad = np.full((2, 8), np.nan, np.complex64)
    gadgetron.sock.sendall(
        raw.script(configuration()) + raw.header(HEADER) + raw.acquisition(np.ones((2, 8))) + raw.acquisition(bad) + raw.CLOSE
    )
    messages = raw.parse(gadgetron.rest())
    assert [number for number, _ in messages] == [1022, 8, 4]
    assert messages[1][1] == "readout 1: NaN or Inf. Leave it out."


@pytest.mark.parametrize("cut", ["between", "inside"])
def test_an_end_of_stream_ends_the_process(gadgetron, raw, cut):
    """The PyPI package's own reading spins here for ever, and Gadgetron waits for its child."""
    readout = raw.acquisition(np.ones((2, 8)))
    gadgetron.sock.sendall(raw.script(configuration()) + raw.header(HEADER) + readout + (b"" if cut == "between" else readout[:400]))
    gadgetron.sock.shutdown(socket.SHUT_WR)
    messages = raw.parse(gadgetron.rest())
    assert [number for number, _ in messages] == [1022, 8, 4]
    expected = {
        "between": "ended without CLOSE after 1 readouts",
        "inside": f"readout 1: stream ended after 398 of {len(readout) - 2} bytes",
    }
    assert expected[cut] in messages[1][1]
    gadgetron.ended()


def test_a_gadgetron_that_dies_ends_the_process(gadgetron, raw):
    gadgetron.sock.sendall(raw.script(configuration()) + raw.header(HEADER) + raw.acquisition(np.ones((2, 8))))
    gadgetron.sock.recv(2)
    gadgetron.sock.close()
    gadgetron.ended()


def test_waiting_for_readouts_costs_no_time(gadgetron, raw):
    gadgetron.sock.sendall(raw.script(configuration()) + raw.header(HEADER) + raw.acquisition(np.ones((2, 8))))
    assert len(gadgetron.sock.recv(1 << 16)) > 0
    child = psutil.Process(gadgetron.process.pid)
    before = sum(child.cpu_times()[:2])
    time.sleep(0.7)
    assert sum(child.cpu_times()[:2]) - before < 0.35
    gadgetron.sock.sendall(raw.CLOSE)
    assert gadgetron.rest()
    assert gadgetron.ended()[0] == 0


def test_the_packages_own_node_tells_gadgetron_an_unknown_property(tmp_path, transcript, raw):
    """The real entry point with the real settings, given the recorded scan and its property ``via``."""
    pytest.importorskip("gadgets.stages")
    parent = Gadgetron("gadgets.node", tmp_path)
    try:
        parent.sock.sendall(transcript("error_1_server_to_node"))
        messages = raw.parse(parent.rest())
        assert [number for number, _ in messages] == [8, 4]
        assert "via: unknown name 'via'" in messages[0][1]
        assert parent.ended()[0] == 0
    finally:
        parent.close()
