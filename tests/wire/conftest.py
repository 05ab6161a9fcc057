"""Peers of the wire, written with struct alone, and an application cheap enough to be served many times."""

from __future__ import annotations

import dataclasses
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
import pytest

from gadgets import chain
from gadgets.server import Server
from gadgets.wire_requests import Application
from recon_core.errors import DataError, SettingError
from recon_core.options import unknown_name

SECONDS = 30.0
PIXEL_BYTES = {1: 2, 2: 2, 3: 4, 4: 4, 5: 4, 6: 8, 7: 8, 8: 16}
NOISE_FLAG = 1 << 18


class RawBytes:
    """Messages as bytes, independent of the package's codec and of the ismrmrd package."""

    CLOSE = struct.pack("<H", 4)

    @staticmethod
    def config_name(name: str) -> bytes:
        return struct.pack("<H1024s", 1, name.encode())

    @staticmethod
    def counted(number: int, text: str | bytes, nul: bool = False) -> bytes:
        payload = (text.encode() if isinstance(text, str) else text) + (b"\0" if nul else b"")
        return struct.pack("<HI", number, len(payload)) + payload

    @classmethod
    def script(cls, text: str, nul: bool = False) -> bytes:
        return cls.counted(2, text, nul)

    @classmethod
    def header(cls, text: str = "<ismrmrdHeader/>", nul: bool = False) -> bytes:
        return cls.counted(3, text, nul)

    @classmethod
    def text(cls, text: str, nul: bool = False) -> bytes:
        return cls.counted(5, text, nul)

    @staticmethod
    def query(text: str, correlation: int) -> bytes:
        return struct.pack("<HQQQ", 6, 0, correlation, len(text)) + text.encode()

    @staticmethod
    def acquisition(
        data: np.ndarray,
        trajectory: np.ndarray | None = None,
        *,
        flags: int = 0,
        counter: int = 0,
        samples: int | None = None,
        channels: int | None = None,
    ) -> bytes:
        """One readout: data complex64 [channel, sample], trajectory float32 [sample, axis]; counts can be made to lie."""
        data = np.ascontiguousarray(data, np.complex64)
        axes = 0 if trajectory is None else trajectory.shape[1]
        n_samples = data.shape[1] if samples is None else samples
        n_channels = data.shape[0] if channels is None else channels
        head = struct.pack("<HQIII3I", 1, flags, 77, counter, 1000 + counter, 1, 2, 3)
        head += struct.pack("<HHH16Q", n_samples, n_channels, n_channels, *([0] * 16))
        head += struct.pack("<5Hf", 0, 0, n_samples // 2, 0, axes, 4.0)
        head += struct.pack("<15f", *range(15))
        head += struct.pack("<9H8H8i8f", counter % 65536, *([0] * 16), *range(8), *range(8))
        assert len(head) == 340
        body = b"" if trajectory is None else np.ascontiguousarray(trajectory, np.float32).tobytes()
        return struct.pack("<H", 1008) + head + body + data.tobytes()

    @staticmethod
    def waveform(data: np.ndarray) -> bytes:
        channels, samples = data.shape
        # C alignment: 6 bytes behind the version, 2 before and 2 behind the 16-bit fields at the end.
        head = struct.pack("<H6xQIIIHHfH2x", 1, 0, 77, 1, 1000, samples, channels, 2500.0, 3)
        assert len(head) == 40
        return struct.pack("<H", 1026) + head + np.ascontiguousarray(data, np.uint32).tobytes()

    @staticmethod
    def parse(stream: bytes) -> list[tuple[int, Any]]:
        """Messages in a stream: (id, text, or header and payload bytes for arrays)."""
        found: list[tuple[int, Any]] = []
        at = 0

        def take(size: int) -> bytes:
            nonlocal at
            assert at + size <= len(stream), f"stream cut at {at}"
            at += size
            return stream[at - size : at]

        while at < len(stream):
            (number,) = struct.unpack("<H", take(2))
            if number == 1:
                found.append((number, take(1024).split(b"\0")[0].decode()))
            elif number in (2, 3, 5):
                found.append((number, take(struct.unpack("<I", take(4))[0]).decode()))
            elif number == 4:
                found.append((number, None))
            elif number == 6:
                reserved, correlation, length = struct.unpack("<QQQ", take(24))
                assert reserved == 0
                found.append((number, (correlation, take(length).decode())))
            elif number == 7:
                correlation, length = struct.unpack("<QQ", take(16))
                found.append((number, (correlation, take(length).decode())))
            elif number in (8, 1019):
                found.append((number, take(struct.unpack("<Q", take(8))[0]).decode()))
            elif number == 1008:
                head = take(340)
                samples, _, channels = struct.unpack_from("<3H", head, 34)
                (axes,) = struct.unpack_from("<H", head, 176)
                found.append((number, (head, take(4 * samples * axes), take(8 * samples * channels))))
            elif number == 1022:
                head = take(198)
                (kind,) = struct.unpack_from("<H", head, 2)
                nx, ny, nz = struct.unpack_from("<3H", head, 16)
                (channels,) = struct.unpack_from("<H", head, 34)
                attributes = take(struct.unpack("<Q", take(8))[0])
                found.append((number, (head, attributes, take(PIXEL_BYTES[kind] * nx * ny * nz * channels))))
            elif number == 1026:
                head = take(40)
                samples, channels = struct.unpack_from("<HH", head, 28)
                found.append((number, (head, take(4 * samples * channels))))
            else:
                raise AssertionError(f"unknown id {number} at {at - 2}")
        return found

    @classmethod
    def scan(cls, n_readouts: int = 8, n_samples: int = 16, n_channels: int = 3, seed: int = 0, *, noise: bool = True) -> bytes:
        """Noise readouts, spokes with a trajectory, a waveform and CLOSE."""
        random = np.random.default_rng(seed)
        made = b""
        for number in range(n_readouts + 2 * noise):
            data = random.standard_normal((n_channels, n_samples)) + 1j * random.standard_normal((n_channels, n_samples))
            if noise and number < 2:
                made += cls.acquisition(data, flags=NOISE_FLAG, counter=number)
                continue
            trajectory = random.uniform(-0.5, 0.5, (n_samples, 2)).astype(np.float32)
            made += cls.acquisition(data, trajectory, counter=number)
        return made + cls.waveform(random.integers(0, 1 << 20, (2, 20))) + cls.CLOSE


class Peer:
    """A client over a plain socket."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=SECONDS)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, *parts: bytes) -> None:
        self.sock.sendall(b"".join(parts))

    def rest(self) -> list[tuple[int, Any]]:
        """Everything up to the server's end of stream, as messages."""
        received = bytearray()
        while part := self.sock.recv(1 << 16):
            received += part
        return RawBytes.parse(bytes(received))

    def silent(self, seconds: float = 0.2) -> bool:
        """Whether nothing arrives for a while."""
        self.sock.settimeout(seconds)
        try:
            return not self.sock.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return True
        finally:
            self.sock.settimeout(SECONDS)


@dataclasses.dataclass(frozen=True)
class FakeSettings:
    """What the fake application runs with."""

    chain: str
    properties: dict[str, str]


@dataclasses.dataclass(frozen=True)
class FakeChain:
    """A chain whose properties are free but for their names."""

    name: str
    properties: dict[str, str]

    def settings(self, overrides: Mapping[str, str] | None = None) -> FakeSettings:
        return fake_settings(self.name, {**self.properties, **(overrides or {})})


def fake_settings(name: str, properties: Mapping[str, str]) -> FakeSettings:
    known = ("readouts_per_image", "via", "mode", "lambda", "size")
    for key in properties:
        if key not in known:
            raise unknown_name(key, key, known)
    return FakeSettings(name, dict(properties))


class FakeApplication:
    """One image for every so many readouts: pixel (0, 0) is the sum of their magnitudes.

    Attributes:
        ran: settings and header of every run.
        ended: set when a run ended, by whatever cause.
        consumed: readouts taken by all runs.
        go: runs of mode ``hold`` wait for it before they read.
    """

    def __init__(self) -> None:
        self.ran: list[tuple[FakeSettings, str]] = []
        self.ended = threading.Event()
        self.go = threading.Event()
        self.consumed = 0
        self.record = Application(self.load, self.parse, lambda properties: fake_settings("node", properties), self.run)

    @staticmethod
    def load(name: str) -> FakeChain:
        known = ["cardiac.xml", "speech.xml"]
        file_name = name if name.endswith(".xml") else f"{name}.xml"
        if file_name not in known:
            raise unknown_name("chain", name, known)
        return FakeChain(file_name, {"readouts_per_image": "4" if file_name == "cardiac.xml" else "2"})

    @staticmethod
    def parse(text: str, name: str) -> FakeChain:
        return FakeChain(name, chain.parse(text, name).properties)

    def run(self, settings: FakeSettings, header: str, items: Iterable[Any], report: Callable[[str], None]) -> Iterator[ismrmrd.Image]:
        self.ran.append((settings, header))
        try:
            yield from self._images(settings, items, report)
        finally:
            self.ended.set()

    def _images(self, settings: FakeSettings, items: Iterable[Any], report: Callable[[str], None]) -> Iterator[ismrmrd.Image]:
        per_image = int(settings.properties.get("readouts_per_image", 4))
        size = int(settings.properties.get("size", 5))
        mode = settings.properties.get("mode", "")
        if mode == "hold":
            assert self.go.wait(SECONDS)
        if mode == "early":
            report("enough")
            return
        total, count, sent = 0.0, 0, 0
        for item in items:
            if not isinstance(item, ismrmrd.Acquisition) or item.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT):
                continue
            self.consumed += 1
            if not np.isfinite(item.data).all():
                raise DataError(f"readout {self.consumed - 1}", "NaN or Inf", "Repair or leave out that readout.")
            if mode == "crash":
                raise ZeroDivisionError("a fault nobody foresaw")
            total += float(np.abs(item.data).sum())
            count += 1
            if count % per_image == 0:
                pixels = np.zeros((3, size), np.float32)
                pixels[0, 0] = total
                image = ismrmrd.Image.from_array(pixels, transpose=False, image_index=sent)
                image.meta = ismrmrd.Meta({"ImageComments": settings.chain})
                yield image
                total, sent = 0.0, sent + 1
        if not count:
            raise DataError("scan", "no imaging readout", "Send at least one.")
        if mode == "refuse":
            raise SettingError("mode", "'refuse' is refused", "Choose another.")
        while mode == "endless":
            report("still at it")
            threading.Event().wait(0.01)
        report(f"{count} readouts")


@pytest.fixture(scope="session")
def raw() -> type[RawBytes]:
    """Builder and parser of raw messages."""
    return RawBytes


@pytest.fixture
def fake() -> FakeApplication:
    return FakeApplication()


@pytest.fixture
def server(fake: FakeApplication) -> Iterator[Server]:
    """A running server of the fake application; the test fails if it cannot be stopped or leaves threads."""
    before = set(threading.enumerate())
    running = Server(port=0, application=fake.record)
    running.start()
    yield running
    fake.go.set()
    assert running.stop(), "a scan did not end"
    left = [thread.name for thread in threading.enumerate() if thread not in before]
    assert not left, f"threads left behind: {left}"


@pytest.fixture
def dial(server: Server) -> Callable[[], Peer]:
    """Connects to the running server."""
    return lambda: Peer(server.port)


@pytest.fixture
def talk(dial: Callable[[], Peer]) -> Callable[..., list[tuple[int, Any]]]:
    """Sends bytes and returns the server's messages to its end of stream."""

    def exchange(*parts: bytes) -> list[tuple[int, Any]]:
        with dial() as peer:
            peer.send(*parts)
            return peer.rest()

    return exchange


@pytest.fixture
def transcript(wire_dir: Path) -> Callable[[str], bytes]:
    """Bytes of a recorded stream."""
    return lambda name: (wire_dir / f"{name}.bin").read_bytes()


@pytest.fixture(scope="session")
def chain_xml() -> Callable[..., str]:
    """A chain as XML: our node with properties, and gadgets around it."""

    def make(gadgets: str = "", **properties: str) -> str:
        inner = "".join(f'<property name="{name}" value="{value}"/>' for name, value in properties.items())
        return (
            '<?xml version="1.0" encoding="UTF-8"?>\n<configuration><version>2</version>'
            "<readers><reader><slot>1008</slot><dll>gadgetron_core_readers</dll><classname>AcquisitionReader</classname></reader>"
            "<reader><slot>1026</slot><dll>gadgetron_core_readers</dll><classname>WaveformReader</classname></reader></readers>"
            "<writers><writer><dll>gadgetron_core_writers</dll><classname>ImageWriter</classname></writer></writers>"
            f'<stream>{gadgets}<external><execute name="gadgets.node" target="run" type="python"/>'
            f"<configuration>{inner}</configuration></external></stream></configuration>"
        )

    return make


@pytest.fixture(scope="session")
def pixel_sums() -> Callable[[bytes, int], list[float]]:
    """What the fake application answers to a scan: sums of magnitudes of every so many imaging readouts, by struct alone."""

    def sums(scan: bytes, per_image: int) -> list[float]:
        magnitudes = [
            float(np.abs(np.frombuffer(payload[2], np.complex64)).sum())
            for number, payload in RawBytes.parse(scan)
            if number == 1008 and not struct.unpack_from("<Q", payload[0], 2)[0] & NOISE_FLAG
        ]
        whole = len(magnitudes) // per_image * per_image
        return [sum(magnitudes[i : i + per_image]) for i in range(0, whole, per_image)]

    return sums


@pytest.fixture(scope="session")
def image_sums() -> Callable[[list[tuple[int, Any]]], list[float]]:
    """First pixel of every image among a server's messages."""
    return lambda messages: [struct.unpack_from("<f", payload[2])[0] for number, payload in messages if number == 1022]
