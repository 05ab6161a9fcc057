"""Whole scans through a process that behaves as Gadgetron does, in execute, connect and worker form, with the package's own stages."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import socket
import struct
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree as ET

import ismrmrd
import numpy as np
import pytest

from gadgets import chain, client, installation, stages
from gadgets.installation import CHAINS, MODULES, Options
from gadgets.scanfile import read_scan
from gadgets.server import Server
from gadgets.settings import chain_settings
from gadgets.simulation import store
from gadgets.stream import ConfigFile
from recon_core.phantoms.cardiac import CardiacSettings, simulate

ROOT = Path(__file__).resolve().parents[2]


def _stand_in() -> ModuleType:
    """The process beside this file."""
    spec = importlib.util.spec_from_file_location("gadgetron_stand_in", Path(__file__).with_name("stand_in.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


STAND_IN = _stand_in()
SMALL = CardiacSettings(matrix=(32, 24), field_of_view=(256.0, 192.0), coils=5, frames=12, readouts_per_frame=8, detail=2)
PROPERTIES = {
    "solver": "gridding",
    "readouts_per_frame": "32",
    "coils": "5",
    "device": "cpu",
    "image_type": "float",
    "send_latents": "false",
}


@dataclasses.dataclass
class Memory:
    """A scan in memory, as the client takes one."""

    header: str
    readouts: Sequence[ismrmrd.Acquisition | ismrmrd.Waveform]

    @property
    def n_acquisitions(self) -> int:
        return sum(isinstance(item, ismrmrd.Acquisition) for item in self.readouts)

    def items(self) -> Iterator[ismrmrd.Acquisition | ismrmrd.Waveform]:
        return iter(self.readouts)


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Memory:
    """Noise readouts, 96 spokes and waveforms."""
    path = tmp_path_factory.mktemp("scan") / "scan.h5"
    store(path, simulate(SMALL))
    stored = read_scan(path)
    assert stored.n_waveforms
    return Memory(stored.header, list(stored.items()))


@pytest.fixture(scope="module")
def expected(scan: Memory) -> list[np.ndarray]:
    """The images of the stages alone."""
    return [image.data[0, 0] for image in stages.run(chain_settings(PROPERTIES), scan.header, scan.items())]


class Site:
    """A Gadgetron with our chains, the resident node and two workers."""

    def __init__(self, home: Path) -> None:
        self.home = home
        (home / CHAINS).mkdir(parents=True)
        self.node = Server(port=0, node=True)
        self.workers = [Server(port=0), Server(port=0)]
        addresses = " ".join(f"127.0.0.1:{server.port}" for server in self.workers)
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "GADGETRON_REMOTE_WORKER_COMMAND": f"{sys.executable} -m gadgets.cli workers {addresses}",
        }
        self.gadgetron = STAND_IN.StandIn(home, sys.executable, environment)
        self.install()

    def install(self, noise_adjust: bool = False, coils: int | None = None, **properties: str) -> None:
        """Install our chains and set properties of all of them."""
        installation.install(self.home, installation.files(Options("127.0.0.1", self.node.port, noise_adjust, coils)), force=True)
        for path in (self.home / CHAINS).glob("inr_*.xml"):
            root = chain.tree(path.read_text(encoding="utf-8"))
            chain.set_properties(root, {**PROPERTIES, **properties})
            path.write_text(chain.serialised(root), encoding="utf-8")

    def send(self, name: str, scan: Memory) -> tuple[client.ReplayResult, list[ismrmrd.Image]]:
        images: list[ismrmrd.Image] = []
        return client.replay(scan, ConfigFile(name), "127.0.0.1", self.gadgetron.port, on_image=images.append), images

    def pixels(self, name: str, scan: Memory) -> list[np.ndarray]:
        result, images = self.send(name, scan)
        assert result.error == ""
        assert all(image.data.dtype == np.float32 for image in images)
        return [image.data[0, 0] for image in images]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    servers = [made.node, *made.workers]
    for server in servers:
        server.start()
    with made.gadgetron:
        yield made
    assert made.gadgetron.lost == [], "an error came before all input was read, and was lost"
    assert all(status == 0 for status in made.gadgetron.started)
    for server in servers:
        assert server.stop(), "a scan did not end"


def slices_of(scan: Memory, count: int) -> Memory:
    """The scan as several slices read in turn, each weaker than the one before; noise readouts say slice 0."""
    made = []
    for item in scan.items():
        noise = isinstance(item, ismrmrd.Acquisition) and item.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
        if noise or isinstance(item, ismrmrd.Waveform):
            made.append(item)
            continue
        for number in range(count):
            copy = ismrmrd.Acquisition(item.getHead(), item.data / (1 + number), item.traj)
            copy.idx.slice = number
            made.append(copy)
    return Memory(scan.header, made)


def error(one: np.ndarray, other: np.ndarray) -> float:
    assert np.isfinite(one).all()
    assert np.isfinite(other).all()
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def test_an_execute_node_gives_the_stages_images(site, scan, expected):
    images = site.pixels("inr_cardiac.xml", scan)
    assert len(images) == len(expected) == 3
    assert max(map(error, images, expected)) < 1e-5
    assert site.gadgetron.started == [0]


def test_a_resident_node_gives_the_stages_images(site, scan, expected):
    for _ in range(2):
        images = site.pixels("inr_cardiac_connect.xml", scan)
        assert max(map(error, images, expected)) < 1e-5
        assert len(images) == 3


def test_workers_get_slices_and_their_images_are_those_of_whole_scans(site, scan, expected):
    result, images = site.send("inr_cardiac_distributed.xml", slices_of(scan, 3))
    assert result.error == ""
    by_slice = {number: [image for image in images if image.slice == number] for number in range(3)}
    for number, part in by_slice.items():
        assert len(part) == 3
        # Gadgetron whitens here and the node there: the same but for the estimator and the order of channels.
        assert max(error(image.data[0, 0] * (1 + number), frame) for image, frame in zip(part, expected, strict=True)) < 0.02
        assert "whitened by a stage before this one" in part[0].meta["ImageComments"]
    assert sorted(image.image_index for image in images) == list(range(1, 10))
    one, other = (f"127.0.0.1:{server.port}" for server in site.workers)
    assert site.gadgetron.peers == [one, other, one]


def test_the_stand_in_tells_workers_what_gadgetron_told_them(transcript, raw):
    """The configuration that a real one sent, made again from the part of a chain that it came from."""
    recorded = ET.fromstring(raw.parse(transcript("worker_1_server_to_node"))[0][1])
    stream = recorded.find("stream")
    for external in stream.findall("external"):
        stream.remove(external)
    part = ET.Element("distributed")
    part.extend([recorded.find("readers"), recorded.find("writers"), stream])
    made = ET.fromstring(STAND_IN.as_worker_configuration(part))
    assert [(e.tag, e.attrib, (e.text or "").strip()) for e in made.iter()] == [
        (e.tag, e.attrib, (e.text or "").strip()) for e in recorded.iter()
    ]


@pytest.mark.parametrize("name", ["connect_1_server_to_node", "worker_1_server_to_node", "worker_2_server_to_node"])
def test_what_a_real_gadgetron_sent_is_reconstructed(name, transcript, raw):
    """Recorded readouts and header, our properties in the recorded configuration; the second worker got no noise readouts."""
    stream = transcript(name)
    script = raw.parse(stream)[0][1]
    asked = {**PROPERTIES, "readouts_per_frame": "6", "coils": "3"}
    inner = "".join(f'<property name="{key}" value="{value}" />' for key, value in asked.items())
    if name.startswith("connect"):
        ours = script.replace('<property name="via" value="connect" />', inner)
    else:
        ours = script.replace("OurRecon", "cardiac").replace('<property name="lambda" value="0.1" />', inner)
        ours = ours[: ours.index("<external>")] + ours[ours.rindex("</external>") + len("</external>") :]
    rest = stream[2 + 4 + len(script.encode()) :]
    with Server(port=0) as server, socket.create_connection(("127.0.0.1", server.port), timeout=60) as sock:
        sock.sendall(raw.script(ours) + rest)
        received = bytearray()
        while part := sock.recv(1 << 16):
            received += part
    messages = raw.parse(bytes(received))
    assert [number for number, _ in messages] == [1022] * (2 if name.startswith("connect") else 1) + [4], messages
    for _, (head, attributes, pixels) in messages[:-1]:
        image = np.frombuffer(pixels, np.float32)
        assert struct.unpack_from("<H", head, 2) == (5,)
        assert image.size == 16 * 16
        assert np.isfinite(image).all()
        assert image.max() > 0
        assert (b"no noise readouts" in attributes) == (name == "worker_2_server_to_node")


def test_gadgetrons_own_whitening_is_not_done_again(site, scan, expected):
    site.install(noise_adjust=True)
    images = site.pixels("inr_cardiac_connect.xml", scan)
    assert max(map(error, images, expected)) < 0.02


def test_gadgetrons_own_coil_compression_is_not_done_again(site, scan, expected):
    site.install(noise_adjust=True, coils=4, readouts_per_frame="96")
    result, (image,) = site.send("inr_cardiac_connect.xml", scan)
    assert result.error == ""
    assert "coils compressed by a stage before this one: 4 of 5 channels" in image.meta["ImageComments"]
    whole = stages.run(chain_settings({**PROPERTIES, "readouts_per_frame": "96"}), scan.header, scan.items())
    assert error(image.data[0, 0], next(whole).data[0, 0]) < 0.1


def test_a_third_column_of_density_weights_is_not_kz(site, scan, expected):
    """As Gadgetron's own spiral gadget hands trajectories on."""
    weighted = []
    for item in scan.items():
        if isinstance(item, ismrmrd.Acquisition) and item.traj.size:
            weight = np.linspace(0, 5, item.traj.shape[0], dtype=np.float32)[:, None]
            item = _with_trajectory(item, np.hstack([item.traj, weight]))
        weighted.append(item)
    images = site.pixels("inr_cardiac_connect.xml", Memory(scan.header, weighted))
    assert max(map(error, images, expected)) < 1e-5


def _with_trajectory(item: ismrmrd.Acquisition, traj: np.ndarray) -> ismrmrd.Acquisition:
    head = ismrmrd.AcquisitionHeader.from_buffer_copy(item.getHead())
    head.trajectory_dimensions = traj.shape[1]
    return ismrmrd.Acquisition(head, item.data, np.ascontiguousarray(traj, np.float32))


def test_a_header_of_another_release_is_sent_without_its_version(site, scan, expected):
    """A Gadgetron refuses it otherwise."""
    start = scan.header.index("<measurementInformation>")
    versioned = Memory(scan.header[:start] + "<version>8</version>\n  " + scan.header[start:], scan.readouts)
    images = site.pixels("inr_cardiac_connect.xml", versioned)
    assert max(map(error, images, expected)) < 1e-5
    with socket.create_connection(("127.0.0.1", site.gadgetron.port)) as sock:
        payload = versioned.header.encode()
        sock.sendall(struct.pack("<H1024sHI", 1, b"inr_cardiac_connect.xml", 3, len(payload)) + payload + struct.pack("<H", 4))
        assert b"header of version 8" in sock.recv(1000)


CHEAP = textwrap.dedent("""
    from gadgets import node
    from gadgets.wire_requests import Application
    from recon_core.errors import DataError

    def images(settings, header, items, report):
        raise DataError("matrix", "0", "Give at least 2 pixels.")
        yield

    def run(connection):
        node.run(connection, Application(None, None, dict, images))
""")


@pytest.fixture
def fail(site: Site, scan: Memory) -> Callable[[str], str]:
    """Sends the scan where it must fail; the error that the client gets."""

    def send(name: str, what: Memory = scan) -> str:
        result, images = site.send(name, what)
        assert images == []
        return result.error

    return send


def test_errors_of_execute_nodes_arrive_in_five_runs_of_five(site, fail):
    path = site.home / CHAINS / "inr_cardiac.xml"
    path.write_text(path.read_text().replace('name="gadgetron_inr_node"', 'name="cheap_node"'))
    (site.home / MODULES / "cheap_node.py").write_text(CHEAP)
    assert [fail("inr_cardiac.xml") for _ in range(5)] == ["[stand-in] ERROR: matrix: 0. Give at least 2 pixels."] * 5


def test_errors_of_resident_nodes_arrive_in_five_runs_of_five(site, fail):
    site.install(matrix="2,3,4")
    words = "[stand-in] ERROR: matrix: 3 numbers for a 2D scan. Give one number or 2 of them."
    assert [fail("inr_cardiac_connect.xml") for _ in range(5)] == [words] * 5


def test_errors_of_workers_arrive_in_five_runs_of_five(site, scan, fail):
    site.install(matrix="2,3,4")
    listed = ", ".join(f'"127.0.0.1:{server.port}"' for server in site.workers)
    site.gadgetron.environment["GADGETRON_REMOTE_WORKER_COMMAND"] = f"echo '[{listed}]'"
    slices = slices_of(scan, 2)
    for _ in range(5):
        told = fail("inr_cardiac_distributed.xml", slices)
        assert told.count("matrix: 3 numbers for a 2D scan. Give one number or 2 of them.") == 2


def test_a_package_that_cannot_be_imported_reaches_the_client(site, fail):
    """Without the entry, Gadgetron would end the scan well and show nothing."""
    broken = site.home / MODULES / "gadgets"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise ImportError('No module named torch')")
    told = fail("inr_cardiac.xml")
    assert f"gadgetron-inr: {sys.executable} cannot import it (ImportError: No module named torch)" in told
    assert "pip install gadgetron-inr" in told


def test_images_come_back_over_a_half_closed_link(site, scan, expected, monkeypatch):
    monkeypatch.setattr(STAND_IN.Node, "half_closes", True)
    assert max(map(error, site.pixels("inr_cardiac_connect.xml", scan), expected)) < 1e-5
    assert len(site.pixels("inr_cardiac_distributed.xml", scan)) == 3


def test_a_client_that_leaves_lets_nodes_and_workers_go(site, scan):
    for name in ("inr_cardiac_connect.xml", "inr_cardiac_distributed.xml"):
        with socket.create_connection(("127.0.0.1", site.gadgetron.port)) as sock:
            payload = scan.header.encode()
            sock.sendall(struct.pack("<H1024sHI", 1, name.encode(), 3, len(payload)) + payload)
            for item in scan.readouts[:20]:
                if isinstance(item, ismrmrd.Acquisition):
                    sock.sendall(struct.pack("<H", 1008) + bytes(item.getHead()) + item.traj.tobytes() + item.data.tobytes()[:100])
                    break


def test_no_worker_is_told(site, scan, fail):
    site.gadgetron.environment["GADGETRON_REMOTE_WORKER_COMMAND"] = f"{sys.executable} -m gadgets.cli workers 127.0.0.1:1"
    assert "no workers" in fail("inr_cardiac_distributed.xml", slices_of(scan, 2))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["inr_cardiac.xml", "inr_cardiac_connect.xml", "inr_cardiac_distributed.xml"])
def test_a_scan_of_183_megabytes(site, scan, name):
    channels, samples, count = 32, 256, 2800
    random = np.random.default_rng(0)
    basis = random.standard_normal((8, channels, samples)) + 1j * random.standard_normal((8, channels, samples))
    radius = (np.arange(samples) - samples // 2) / samples
    readouts = []
    for number in range(count):
        angle = number * np.pi * (np.sqrt(5) - 1) / 2
        k = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1).astype(np.float32)
        data = basis[number % 8] + 300 * np.exp(-((9 * radius) ** 2)) * np.exp(0.2j * np.arange(channels))[:, None]
        readout = ismrmrd.Acquisition.from_array(data.astype(np.complex64), k, acquisition_time_stamp=number)
        readout.idx.slice = number % 2
        readouts.append(readout)
    assert sum(readout.data.nbytes for readout in readouts) >= 183e6
    header = scan.header.replace("<receiverChannels>5<", f"<receiverChannels>{channels}<")
    site.install(readouts_per_frame="700", matrix="48", coils="4")
    result, images = site.send(name, Memory(header, readouts))
    assert result.error == ""
    assert sorted(image.slice for image in images) == [0, 0, 1, 1]
    for image in images:
        assert np.isfinite(image.data).all()
        assert image.data.max() > 5 * np.median(image.data)
