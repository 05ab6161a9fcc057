"""``gadgetron-inr serve`` as a process: what it logs, how it ends, and a scan through the package's own stages."""

from __future__ import annotations

import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from gadgets.cli import build_parser
from gadgets.server import serve
from recon_core.errors import ReconError

SECONDS = 60.0
pytest.importorskip("gadgets.stages")


class Serving:
    """The command in a process of its own."""

    def __init__(self, *options: str) -> None:
        command = [sys.executable, "-m", "gadgets.cli", "serve", "--port", "0", *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.log = ""
        for line in self.process.stderr:
            self.log += line
            if found := re.search(r"listening at 127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
                return
        raise AssertionError(f"the server did not start: {self.log}")

    def talk(self, payload: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=SECONDS) as sock:
            sock.sendall(payload)
            received = bytearray()
            while part := sock.recv(1 << 16):
                received += part
        return bytes(received)

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        _, rest = self.process.communicate(timeout=SECONDS)
        self.log += rest
        return self.process.returncode


@pytest.fixture
def serving() -> Iterator[Serving]:
    made = Serving("--log-level", "debug")
    yield made
    if made.process.poll() is None:
        made.process.kill()
        made.process.communicate()


def header(matrix: int) -> str:
    space = f"<matrixSize><x>{matrix}</x><y>{matrix}</y><z>1</z></matrixSize><fieldOfView_mm><x>200</x><y>200</y><z>5</z></fieldOfView_mm>"
    return (
        '<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><acquisitionSystemInformation>'
        "<receiverChannels>3</receiverChannels></acquisitionSystemInformation>"
        "<experimentalConditions><H1resonanceFrequency_Hz>63500000</H1resonanceFrequency_Hz></experimentalConditions>"
        f"<encoding><encodedSpace>{space}</encodedSpace><reconSpace>{space}</reconSpace><encodingLimits/>"
        "<trajectory>radial</trajectory></encoding></ismrmrdHeader>"
    )


def spokes(raw, n_spokes: int, n_samples: int) -> bytes:
    """A Gaussian disc off the centre, in golden-angle spokes; three channels of different weight, two noise readouts first."""
    random = np.random.default_rng(0)
    noise = [
        raw.acquisition(random.standard_normal((3, n_samples)) + 1j * random.standard_normal((3, n_samples)), flags=1 << 18, counter=n)
        for n in range(2)
    ]
    radius = (np.arange(n_samples) - n_samples // 2) / n_samples
    readouts = []
    for number in range(n_spokes):
        angle = number * np.pi * (np.sqrt(5) - 1) / 2
        k = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)
        signal_of_disc = 1000 * np.exp(-((8 * radius) ** 2)) * np.exp(-2j * np.pi * (k @ np.array([3.0, 1.0])))
        samples = np.array([1.0, 0.5j, -0.3])[:, None] * signal_of_disc
        samples = samples + random.standard_normal(samples.shape) + 1j * random.standard_normal(samples.shape)
        readouts.append(raw.acquisition(samples, k.astype(np.float32), counter=number + 2))
    return b"".join(noise + readouts) + raw.CLOSE


def test_serves_refuses_and_ends_on_sigterm(serving, raw, chain_xml):
    refused = raw.parse(serving.talk(raw.config_name("nothing.xml") + raw.header(header(32)) + raw.scan(4)))
    assert [number for number, _ in refused] == [5, 4]
    assert "unknown name 'nothing.xml'" in refused[0][1]
    assert "cardiac.xml" in refused[0][1]

    script = chain_xml(solver="gridding", readouts_per_frame="16", image_type="magnitude", device="cpu", send_latents="false")
    messages = raw.parse(serving.talk(raw.script(script) + raw.header(header(32)) + spokes(raw, 32, 64)))
    images = [payload for number, payload in messages if number == 1022]
    assert len(images) == 2, messages
    assert messages[-1] == (4, None)
    for head, _, pixels in images:
        kind = {1: np.uint16, 5: np.float32}[struct.unpack_from("<H", head, 2)[0]]
        frame = np.frombuffer(pixels, kind).reshape(32, 32).astype(float)
        assert np.isfinite(frame).all()
        assert frame.max() > 4 * np.median(frame)

    bad = raw.acquisition(np.full((3, 64), np.nan), np.zeros((64, 2), np.float32))
    messages = raw.parse(serving.talk(raw.script(script) + raw.header(header(32)) + bad + raw.CLOSE))
    assert [number for number, _ in messages if number != 5] == [4]
    assert any("ERROR: readout 0" in str(payload) for number, payload in messages if number == 5)

    messages = raw.parse(serving.talk(raw.script(script) + raw.header("not XML") + spokes(raw, 32, 64)))
    assert [number for number, _ in messages] == [5, 4]
    assert "ERROR: header" in messages[0][1]

    assert serving.end(signal.SIGTERM) == 0
    assert "scan 1: from 127.0.0.1" in serving.log
    assert re.search(r"scan 2: ended, 34 readouts, 0 waveforms in, 2 images out", serving.log)
    assert "solver='gridding'" in serving.log
    assert "Traceback" not in serving.log


def test_sigint_during_a_scan_tells_the_client(serving, raw, chain_xml):
    with socket.create_connection(("127.0.0.1", serving.port), timeout=SECONDS) as sock:
        sock.sendall(raw.script(chain_xml()) + raw.header(header(32)) + raw.scan(4).removesuffix(raw.CLOSE))
        for line in serving.process.stderr:
            if "runs sent chain" in line:
                break
        status = serving.end(signal.SIGINT)
        received = bytearray()
        while part := sock.recv(1 << 16):
            received += part
    messages = raw.parse(bytes(received))
    assert [number for number, _ in messages] == [5, 4]
    assert "server: stops" in messages[0][1]
    assert status == 0


def test_a_taken_port_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        args = build_parser().parse_args(["serve", "--port", str(taken.getsockname()[1])])
        with pytest.raises(ReconError, match=r"port: cannot listen at 127\.0\.0\.1:"):
            args.run(args)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_ends_on_a_signal_and_gives_the_handlers_back(number, fake, caplog):
    caplog.set_level("INFO", "gadgets")
    before = signal.getsignal(number)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), number))
    timer.start()
    assert serve(port=0, application=fake.record) == 0
    assert signal.getsignal(number) is before
    assert "stopping" in caplog.messages


@pytest.mark.parametrize("port", ["-1", "65536", "http"])
def test_ports_that_are_none_are_refused(port, capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["serve", "--port", port])
    assert "port" in capsys.readouterr().err
