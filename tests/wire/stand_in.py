"""A process that behaves as Gadgetron 4.7 does, as far as recorded bytes, its source and what was seen of it show.

It looks chains up in its folder, refuses headers of another release, whitens, compresses, starts or joins one external node, or hands
slices to workers, and loses what the real one loses: an ERROR that comes before all input was handed on, a slice too short for PCA, images
that its default readers do not take. Nothing of the package's own wire code is in it.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import select
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import ismrmrd
import numpy as np

SECONDS = 120.0
RELEASE = 14  # minor version of its ismrmrd library
PIXELS = {1: 2, 3: 4, 5: 4, 6: 8, 7: 8}  # types that its default readers take
LAST_IN_SLICE = ismrmrd.ACQ_LAST_IN_SLICE
CLOSE = struct.pack("<H", 4)


class ToldError(Exception):
    """What a client is told as a TEXT."""


class Readout:
    """An acquisition: header, trajectory bytes, data [channel, sample]."""

    def __init__(self, head: ismrmrd.AcquisitionHeader, trajectory: bytes, data: np.ndarray) -> None:
        self.head, self.trajectory, self.data = head, trajectory, data

    def packed(self) -> bytes:
        self.head.active_channels = self.data.shape[0]
        return struct.pack("<H", 1008) + bytes(self.head) + self.trajectory + self.data.astype(np.complex64).tobytes()

    def is_noise(self) -> bool:
        return bool(self.head.flags & 1 << ismrmrd.ACQ_IS_NOISE_MEASUREMENT - 1)


class Stream:
    """Reads messages of a socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def take(self, size: int) -> bytes:
        received = bytearray()
        while len(received) < size:
            part = self.sock.recv(min(size - len(received), 1 << 20))
            if not part:
                raise EOFError
            received += part
        return bytes(received)

    def message(self) -> tuple[int, object]:
        """Id and content: text, :class:`Readout`, image bytes, waveform bytes or None."""
        (number,) = struct.unpack("<H", self.take(2))
        if number == 1:
            return number, self.take(1024).split(b"\0")[0].decode()
        if number in (2, 3, 5):
            return number, self.take(struct.unpack("<I", self.take(4))[0]).rstrip(b"\0").decode()
        if number == 4:
            return number, None
        if number == 8:
            return number, self.take(struct.unpack("<Q", self.take(8))[0]).decode()
        if number == 1008:
            head = ismrmrd.AcquisitionHeader.from_buffer_copy(self.take(340))
            trajectory = self.take(4 * head.number_of_samples * head.trajectory_dimensions)
            data = np.frombuffer(self.take(8 * head.number_of_samples * head.active_channels), np.complex64)
            return number, Readout(head, trajectory, data.reshape(head.active_channels, head.number_of_samples))
        if number == 1022:
            head = self.take(198)
            (kind,) = struct.unpack_from("<H", head, 2)
            if kind not in PIXELS:
                raise ToldError(f"image type {kind} has no reader")
            nx, ny, nz = struct.unpack_from("<3H", head, 16)
            (channels,) = struct.unpack_from("<H", head, 34)
            length = self.take(8)
            return number, head + length + self.take(struct.unpack("<Q", length)[0]) + self.take(PIXELS[kind] * nx * ny * nz * channels)
        if number == 1026:
            head = self.take(40)
            samples, channels = struct.unpack_from("<HH", head, 28)
            return number, head + self.take(4 * samples * channels)
        raise ToldError(f"unknown message {number}")


def noise_adjust(items: Iterable[Readout], bandwidth: float) -> Iterator[Readout]:
    """Whiten by the noise readouts before, noise of real and imaginary part 1 each; without any, hand on as it is."""
    covariance, count, dwell, whitener = None, 0, 0.0, None
    for item in items:
        if item.is_noise():
            data = item.data.astype(complex)
            covariance = (0 if covariance is None else covariance) + data @ data.conj().T
            count, dwell = count + data.shape[1], dwell or item.head.sample_time_us
            continue
        if covariance is not None:
            if whitener is None:
                ratio = 2 * item.head.sample_time_us / dwell * bandwidth if dwell and item.head.sample_time_us else 1.0
                whitener = math.sqrt(ratio) * np.linalg.inv(np.linalg.cholesky(covariance / (count - 1)))
            item.data = whitener @ item.data
        yield item


def pca(items: Iterable[Readout]) -> Iterator[Readout]:
    """Rotate every slice's coils onto its principal components, from its first hundred readouts or those to LAST_IN_SLICE."""
    waiting: dict[int, list[Readout]] = {}
    rotations: dict[int, np.ndarray] = {}
    for item in items:
        if item.is_noise():
            continue
        place = item.head.idx.slice
        if place in rotations:
            item.data = rotations[place] @ item.data
            yield item
            continue
        held = waiting.setdefault(place, [])
        held.append(item)
        if len(held) >= 100 or item.head.flags & 1 << LAST_IN_SLICE - 1:
            samples = np.concatenate([one.data for one in held], axis=1)
            rotations[place] = np.linalg.svd(samples - samples.mean(axis=1, keepdims=True), full_matrices=False)[0].conj().T
            for one in held:
                one.data = rotations[place] @ one.data
                yield one


def coil_reduction(items: Iterable[Readout], coils: int) -> Iterator[Readout]:
    """Keep the first coils."""
    for item in items:
        item.data = item.data[:coils]
        yield item


class Node:
    """A connection to an external node or a worker: what it answers, in a thread of its own.

    With ``half_closes`` it ends its sending behind CLOSE, as a peer on a stream may.

    Attributes:
        images: its images as they came.
        errors: what it told behind all input.
        lost: what it told too early.
    """

    half_closes = False

    def __init__(self, sock: socket.socket, configuration: str, header: str, on_image: Callable[[bytes], None]) -> None:
        self.sock = sock
        sock.settimeout(SECONDS)
        self.errors: list[str] = []
        self.lost: list[str] = []
        self.handed_on = threading.Event()
        self._on_image = on_image
        for number, text in ((2, configuration), (3, header)):
            payload = text.encode()
            sock.sendall(struct.pack("<HI", number, len(payload)) + payload)
        self._thread = threading.Thread(target=self._receive)
        self._thread.start()

    def send(self, payload: bytes) -> None:
        with contextlib.suppress(OSError):
            self.sock.sendall(payload)

    def close(self) -> None:
        self.handed_on.set()
        self.send(CLOSE)
        if self.half_closes:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_WR)
        self._thread.join(SECONDS)
        self.sock.close()

    def _receive(self) -> None:
        stream = Stream(self.sock)
        try:
            while True:
                number, content = stream.message()
                if number == 4:
                    return
                if number == 1022:
                    self._on_image(content)
                elif number == 8:
                    (self.errors if self.handed_on.is_set() else self.lost).append(content)
                else:
                    raise ToldError(f"message {number} from a node has no reader")
        except (EOFError, OSError):
            self.errors.append("the node ended without CLOSE")
        except ToldError as error:
            self.errors.append(str(error))


class StandIn:
    """Serves clients until stopped.

    Args:
        home: the installation: chains in share/gadgetron/config, Python modules in share/gadgetron/python.
        python: what starts execute nodes.
        environment: of execute nodes and of the worker command.

    Attributes:
        started: exit statuses of execute nodes.
        lost: errors that nodes told too early, of all scans.
        peers: workers connected to, in order.
    """

    def __init__(self, home: Path, python: str, environment: dict[str, str]) -> None:
        self.home, self.python, self.environment = home, python, environment
        self.started: list[int] = []
        self.lost: list[str] = []
        self.peers: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._sessions: list[threading.Thread] = []
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._accept)

    def __enter__(self) -> StandIn:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._wake.close()
        self._thread.join()
        self._listener.close()
        self._woken.close()
        for session in self._sessions:
            session.join(SECONDS)
            assert not session.is_alive()

    def _accept(self) -> None:
        while self._woken not in select.select([self._listener, self._woken], [], [])[0]:
            sock, _ = self._listener.accept()
            sock.settimeout(SECONDS)
            session = threading.Thread(target=self._serve, args=(sock,))
            self._sessions.append(session)
            session.start()

    def _serve(self, sock: socket.socket) -> None:
        stream = Stream(sock)
        sending = threading.Lock()
        closed = False

        def send(payload: bytes) -> None:
            with sending, contextlib.suppress(OSError):
                sock.sendall(payload)

        def items() -> Iterator[Readout | bytes]:
            nonlocal closed
            while True:
                number, content = stream.message()
                if number == 4:
                    closed = True
                    return
                yield content

        errors: list[str] = []
        try:
            errors = self._scan(stream, items, send)
        except ToldError as error:
            errors = [str(error)]
        except (EOFError, OSError):
            # The client has left: the nodes are told by CLOSE, the client no more.
            closed = True
        with contextlib.suppress(EOFError, OSError):
            while not closed:
                next(items(), None)
        for text in errors:
            payload = f"[stand-in] ERROR: {text}".encode()
            send(struct.pack("<HI", 5, len(payload)) + payload)
        send(CLOSE)
        sock.close()

    def _scan(self, stream: Stream, items: Callable[[], Iterator[Readout | bytes]], send: Callable[[bytes], None]) -> list[str]:
        number, text = stream.message()
        if number == 1:
            path = self.home / "share/gadgetron/config" / text
            if not path.is_file():
                raise ToldError(f"unable to open {text}")
            text = path.read_text(encoding="utf-8")
        chain = ET.fromstring(text.encode())
        number, header = stream.message()
        assert number == 3
        release = re.search(r"<version>\s*(\d+)", header)
        if release and int(release[1]) != RELEASE:
            raise ToldError(f"header of version {release[1]}, not {RELEASE}")
        bandwidth = re.search(r"<relativeReceiverNoiseBandwidth>([^<]+)", header)
        counts: dict[int, int] = {}
        index = any(e.text == "ImageIndexGadget" for e in chain.iter("classname"))

        def forward(image: bytes) -> None:
            if index:
                head = bytearray(image)
                (series,) = struct.unpack_from("<H", head, SERIES)
                counts[series] = counts.get(series, 0) + 1
                struct.pack_into("<H", head, INDEX, counts[series])
                image = bytes(head)
            send(struct.pack("<H", 1022) + image)

        nodes: list[Node] = []
        children: list[subprocess.Popen[bytes]] = []
        waveforms: list[bytes] = []

        def readouts() -> Iterator[Readout]:
            for item in items():
                if isinstance(item, Readout):
                    yield item
                else:
                    waveforms.append(item)

        passing: Iterable[Readout] = readouts()
        target: Callable[[Readout], Node] | None = None
        try:
            for element in chain.find("stream"):
                name = element.findtext("classname")
                if name == "NoiseAdjustGadget":
                    passing = noise_adjust(passing, float(bandwidth[1]) if bandwidth else 0.793)
                elif name == "PCACoilGadget":
                    passing = pca(passing)
                elif name == "CoilReductionGadget":
                    passing = coil_reduction(passing, int(element.find("property").get("value")))
                elif element.tag == "external":
                    node = Node(*self._external(element, children), header, forward)
                    nodes.append(node)
                    target = lambda readout, node=node: node  # noqa: E731
                elif element.tag == "distributed":
                    target = self._distributor(element, header, forward, nodes)
                elif name != "ImageIndexGadget":
                    raise ToldError(f"no gadget {name}")
            for readout in passing:
                target(readout).send(readout.packed())
                while waveforms:
                    waveform = waveforms.pop(0)
                    # A distributor hands on acquisitions only.
                    if chain.find("stream/external") is not None:
                        nodes[0].send(struct.pack("<H", 1026) + waveform)
        finally:
            for node in nodes:
                node.close()
                self.lost += node.lost
            for child in children:
                self.started.append(child.wait(SECONDS))
        return [error for node in nodes for error in node.errors]

    def _external(self, element: ET.Element, children: list[subprocess.Popen[bytes]]) -> tuple[socket.socket, str]:
        inner = element.find("configuration")
        text = '<?xml version="1.0"?>\n' + ("" if inner is None else ET.tostring(inner, encoding="unicode"))
        connect = element.find("connect")
        if connect is not None:
            return socket.create_connection((connect.get("address"), int(connect.get("port"))), SECONDS), text
        execute = element.find("execute")
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(SECONDS)
            modules = str(self.home / "share/gadgetron/python")
            paths = os.pathsep.join([modules, self.environment.get("PYTHONPATH", "")])
            command = [self.python, "-m", "gadgetron", str(listener.getsockname()[1]), execute.get("name"), execute.get("target")]
            environment = {**self.environment, "PYTHONPATH": paths}
            children.append(subprocess.Popen(command, env=environment, cwd=self.home, stderr=subprocess.DEVNULL))
            return listener.accept()[0], text

    def _distributor(
        self, element: ET.Element, header: str, forward: Callable[[bytes], None], nodes: list[Node]
    ) -> Callable[[Readout], Node]:
        command = self.environment["GADGETRON_REMOTE_WORKER_COMMAND"]
        told = subprocess.run(command, shell=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=self.environment, check=False)
        listed = re.fullmatch(r'\s*\[(\s*"[^"]+"\s*(?:,\s*"[^"]+"\s*)*)\]\s*', told.stdout.decode())
        if listed is None:
            raise ToldError("no workers")
        peers = re.findall(r'"([^"]+)"', listed[1])
        assert element.find("distributor/property").attrib == {"name": "parallel_dimension", "value": "slice"}
        configuration = as_worker_configuration(element)
        by_slice: dict[int, Node] = {}

        def choose(readout: Readout) -> Node:
            place = readout.head.idx.slice
            if place not in by_slice:
                address = peers[len(by_slice) % len(peers)]
                self.peers.append(address)
                host, _, port = address.rpartition(":")
                by_slice[place] = Node(socket.create_connection((host.strip("[]"), int(port)), SECONDS), configuration, header, forward)
                nodes.append(by_slice[place])
            return by_slice[place]

        return choose


SERIES = ismrmrd.ImageHeader.image_series_index.offset
INDEX = ismrmrd.ImageHeader.image_index.offset


def as_worker_configuration(distributed: ET.Element) -> str:
    """What Gadgetron sends to a worker: the part's readers and writers, and its inner stream written anew, comments and all else lost."""
    root = ET.Element("configuration")
    ET.SubElement(root, "version").text = "2"
    for tag in ("readers", "writers"):
        holder = ET.SubElement(root, tag)
        for entry in distributed.find(tag):
            made = ET.SubElement(holder, entry.tag)
            for part in ("dll", "classname"):
                ET.SubElement(made, part).text = entry.findtext(part)
    stream = ET.SubElement(root, "stream", key="")
    for gadget in distributed.find("stream"):
        if gadget.tag != "gadget":
            raise ToldError(f"<{gadget.tag}> in a distributed stream")
        made = ET.SubElement(stream, "gadget")
        for part in ("dll", "classname", "name"):
            ET.SubElement(made, part).text = gadget.findtext(part, gadget.findtext("classname"))
        for entry in gadget.findall("property"):
            ET.SubElement(made, "property", name=entry.get("name"), value=entry.get("value"))
    return '<?xml version="1.0"?>\n' + ET.tostring(root, encoding="unicode")
