"""Every byte recorded between a real Gadgetron 4.7.2, its client and nodes is understood, and what we write parses the same way."""

from __future__ import annotations

import collections
import socket
import struct
import threading

import ismrmrd
import numpy as np
import pytest

from gadgets.stream import Close, ConfigFile, ConfigScript, Connection, DependencyStatus, ErrorMessage, Header, Text, encode, is_error_text

# Messages of each kind, counted in a dump of the recordings.
TO_SERVER = {
    "image_1_client_to_server": {1: 1, 3: 1, 1008: 14, 1026: 3, 4: 1},
    "error_1_client_to_server": {2: 1, 3: 1, 1008: 14, 1026: 3, 4: 1},
    "unknown_chain_1_client_to_server": {1: 1, 3: 1, 1008: 14, 1026: 3, 4: 1},
    "dependency_1_client_to_server": {2: 1, 4: 1},
    "dependency_2_client_to_server": {1: 1, 3: 1, 1008: 14, 1026: 3, 4: 1},
    "connect_1_server_to_node": {2: 1, 3: 1, 1008: 14, 1026: 3, 4: 1},
    "error_1_server_to_node": {2: 1, 3: 1, 1008: 14, 1026: 3, 4: 1},
    "worker_1_server_to_node": {2: 1, 3: 1, 1008: 8, 4: 1},
    "worker_2_server_to_node": {2: 1, 3: 1, 1008: 6, 4: 1},
}
FROM_SERVER = {
    "image_1_server_to_client": {1022: 1, 4: 1},
    "error_1_server_to_client": {5: 1, 4: 1},
    "unknown_chain_1_server_to_client": {5: 1, 4: 1},
    "dependency_1_server_to_client": {1019: 1, 4: 1},
    "dependency_2_server_to_client": {1022: 1, 4: 1},
    "connect_1_node_to_server": {1022: 1, 4: 1},
    "error_1_node_to_server": {8: 1, 4: 1},
    "worker_1_node_to_server": {1022: 1, 4: 1},
    "worker_2_node_to_server": {1022: 1, 4: 1},
}
IDS = {
    ConfigFile: 1,
    ConfigScript: 2,
    Header: 3,
    Close: 4,
    Text: 5,
    ErrorMessage: 8,
    ismrmrd.Acquisition: 1008,
    DependencyStatus: 1019,
    ismrmrd.Image: 1022,
    ismrmrd.Waveform: 1026,
}


def read_all(stream: bytes) -> list:
    ours, theirs = socket.socketpair()
    sender = threading.Thread(target=lambda: (theirs.sendall(stream), theirs.shutdown(socket.SHUT_WR)))
    with ours, theirs:
        sender.start()
        link = Connection(ours)
        found = []
        while not link.closed:
            found.append(link.receive())
        assert ours.recv(1) == b"", "bytes behind CLOSE"
        sender.join()
    return found


@pytest.mark.parametrize(("name", "counts"), [*TO_SERVER.items(), *FROM_SERVER.items()])
def test_every_byte_is_read(name, counts, transcript):
    messages = read_all(transcript(name))
    assert collections.Counter(IDS[type(message)] for message in messages) == counts
    assert isinstance(messages[-1], Close)


@pytest.mark.parametrize(
    "name", [*TO_SERVER, *(name for name in FROM_SERVER if name not in ("image_1_server_to_client", "dependency_2_server_to_client"))]
)
def test_what_was_read_is_written_byte_for_byte(name, transcript):
    stream = transcript(name)
    assert b"".join(encode(message) for message in read_all(stream)) == stream


@pytest.mark.parametrize("name", ["image_1_server_to_client", "dependency_2_server_to_client"])
def test_images_with_attributes_are_written_alike(name, transcript, raw):
    """The same but for the white space of the attributes' XML, and ended by a counted NUL as Gadgetron's are."""
    stream = transcript(name)
    image, close = read_all(stream)
    rewritten = encode(image) + encode(close)
    (_, (head, attributes, pixels)), _ = raw.parse(stream)
    (_, (our_head, our_attributes, our_pixels)), _ = raw.parse(rewritten)
    assert our_pixels == pixels
    assert our_head[:-4] == head[:-4]
    for length, text in ((head[-4:], attributes), (our_head[-4:], our_attributes)):
        assert struct.unpack("<I", length)[0] == len(text)
        assert text.endswith(b">\n\0" if text is attributes else b">\0")
    assert ismrmrd.Meta.deserialize(our_attributes.rstrip(b"\0").decode()) == ismrmrd.Meta.deserialize(attributes.rstrip(b"\0").decode())
    again, _ = read_all(rewritten)
    assert encode(again) + encode(close) == rewritten


def test_the_recorded_scan_has_its_known_content(transcript):
    """3 channels, 2 noise readouts, 12 spokes × 32 samples with 2-column trajectories, repetitions 0 and 1, three waveforms of 2 × 20."""
    messages = read_all(transcript("image_1_client_to_server"))
    readouts = [m for m in messages if isinstance(m, ismrmrd.Acquisition)]
    assert messages[0] == ConfigFile("t_image.xml")
    assert messages[1].text.startswith("<?xml")
    assert messages[1].text.endswith("</ismrmrdHeader>")
    assert all(readout.data.shape == (3, 32) for readout in readouts)
    assert all(np.isfinite(readout.data).all() for readout in readouts)
    assert [readout.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT) for readout in readouts] == [True] * 2 + [False] * 12
    assert {readout.traj.shape for readout in readouts[2:]} == {(32, 2)}
    assert 0.4 < max(float(np.abs(readout.traj).max()) for readout in readouts[2:]) <= 0.5
    assert {readout.idx.repetition for readout in readouts[2:]} == {0, 1}
    assert readouts[-1].is_flag_set(ismrmrd.ACQ_LAST_IN_MEASUREMENT)
    assert all(m.data.shape == (2, 20) for m in messages if isinstance(m, ismrmrd.Waveform))


def test_what_servers_and_nodes_said(transcript):
    (image, _) = read_all(transcript("image_1_server_to_client"))
    assert image.data.shape == (1, 2, 24, 32)
    assert image.meta["GADGETRON_DataRole"] == "Image"
    assert image.meta["ImageComments"] == ["a", "b & <c>"]
    (text, _) = read_all(transcript("error_1_server_to_client"))
    assert is_error_text(text.text)
    assert "matrix.x = 0" in text.text
    (unknown, _) = read_all(transcript("unknown_chain_1_server_to_client"))
    assert is_error_text(unknown.text)
    (error, _) = read_all(transcript("error_1_node_to_server"))
    assert error == ErrorMessage("node: matrix.x = 0 is not a size; set encodedSpace.matrixSize")
    (status, _) = read_all(transcript("dependency_1_server_to_client"))
    assert ismrmrd.Meta.deserialize(status.text) == {"status": "failed"}


class TestServer:
    """The recordings against our server, in the place of Gadgetron or of the node."""

    def test_client_asks_for_a_chain_that_is_not_ours(self, transcript, talk):
        messages = talk(transcript("unknown_chain_1_client_to_server"))
        assert [number for number, _ in messages] == [5, 4]
        name = read_all(transcript("unknown_chain_1_client_to_server"))[0].name
        assert f"unknown name '{name}'" in messages[0][1]
        assert "Known: cardiac.xml, speech.xml" in messages[0][1]

    @pytest.mark.parametrize("name", ["image_1_client_to_server", "dependency_2_client_to_server"])
    def test_clients_scan(self, name, transcript, talk, raw, fake, pixel_sums, image_sums):
        stream = transcript(name)
        stream = raw.config_name("cardiac.xml") + stream[2 + 1024 :]
        messages = talk(stream)
        np.testing.assert_allclose(image_sums(messages), pixel_sums(stream, 4), rtol=1e-6)
        assert [number for number, _ in messages] == [1022] * 3 + [5, 4]
        assert "<measurementID>m2</measurementID>" in fake.ran[0][1]

    def test_a_script_with_a_connect_node_is_hosted(self, transcript, talk, raw, fake, pixel_sums, image_sums):
        """The recorded chain leaves its readers' slots to their classes."""
        stream = transcript("error_1_client_to_server")
        script = raw.parse(stream)[0][1]
        assert "<slot>" not in script
        messages = talk(stream)
        assert [number for number, _ in messages] == [1022] * 3 + [5, 4]
        np.testing.assert_allclose(image_sums(messages), pixel_sums(stream[2 + 4 + len(script.encode()) :], 4), rtol=1e-6)
        assert fake.ran[0][0].properties == {"via": "connect"}

    def test_a_noise_dependency_is_answered_as_gadgetron_does(self, transcript, dial):
        with dial() as peer:
            peer.send(transcript("dependency_1_client_to_server"))
            received = b""
            while part := peer.sock.recv(1 << 16):
                received += part
        assert received == transcript("dependency_1_server_to_client")

    @pytest.mark.parametrize("name", ["connect_1_server_to_node", "error_1_server_to_node"])
    def test_gadgetron_connects_to_us_as_its_node(self, name, transcript, talk, fake, pixel_sums, image_sums):
        stream = transcript(name)
        messages = talk(stream)
        assert [number for number, _ in messages] == [1022] * 3 + [4]
        np.testing.assert_allclose(image_sums(messages), pixel_sums(stream, 4), rtol=1e-6)
        assert fake.ran[0][0].chain == "node"
        assert fake.ran[0][0].properties == {"via": "connect"}

    @pytest.mark.parametrize("name", ["worker_1_server_to_node", "worker_2_server_to_node"])
    def test_a_distributed_gadget_that_is_not_ours_is_refused_by_name(self, name, transcript, talk):
        messages = talk(transcript(name))
        assert [number for number, _ in messages] == [8, 4]
        assert "gadget 'OurRecon'" in messages[0][1]
        assert "Known: cardiac.xml" in messages[0][1]

    @pytest.mark.parametrize(("name", "images"), [("worker_1_server_to_node", 6), ("worker_2_server_to_node", 6)])
    def test_a_distributed_gadget_that_names_our_chain_is_served(self, name, images, transcript, talk, raw, fake, pixel_sums, image_sums):
        stream = transcript(name)
        script = raw.parse(stream)[0][1]
        ours = script.replace("OurRecon", "cardiac").replace(
            '<property name="lambda" value="0.1" />', '<property name="readouts_per_image" value="1" />'
        )
        ours = ours[: ours.index("<external>")] + ours[ours.rindex("</external>") + len("</external>") :]
        rest = stream[2 + 4 + len(script.encode()) :]
        messages = talk(raw.script(ours), rest)
        assert [number for number, _ in messages] == [1022] * images + [4]
        np.testing.assert_allclose(image_sums(messages), pixel_sums(rest, 1), rtol=1e-6)
        assert fake.ran[0][0].chain == "cardiac.xml"

    def test_external_nodes_in_a_distributed_stream_are_refused(self, transcript, talk, raw):
        stream = transcript("worker_1_server_to_node")
        script = raw.parse(stream)[0][1]
        messages = talk(raw.script(script.replace("OurRecon", "cardiac")), stream[2 + 4 + len(script.encode()) :])
        assert [number for number, _ in messages] == [8, 4]
        assert "<external> cannot be hosted" in messages[0][1]
