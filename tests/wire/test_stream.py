"""The codec against bytes made by struct, by the ismrmrd and gadgetron packages, and against bad bytes."""

from __future__ import annotations

import ctypes
import socket
import struct
import threading
from collections.abc import Iterator

import gadgetron.external.readers as pypi_readers
import gadgetron.external.writers as pypi_writers
import ismrmrd
import numpy as np
import pytest

from gadgets.stream import (
    Close,
    ConfigFile,
    ConfigScript,
    Connection,
    DependencyStatus,
    DisconnectedError,
    EndOfStreamError,
    ErrorMessage,
    Header,
    ProtocolError,
    Query,
    Response,
    Text,
    encode,
    error_text,
    is_error_text,
)
from recon_core.errors import DataError


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, Connection]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(10)
        yield theirs, Connection(ours)


def decode(payload: bytes) -> list[object]:
    """Messages to the end of a stream that may be longer than a socket's buffer."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = threading.Thread(target=lambda: (theirs.sendall(payload), theirs.shutdown(socket.SHUT_WR)))
        sender.start()
        try:
            link = Connection(ours)
            found = []
            while not link.closed:
                found.append(link.receive())
            return found
        finally:
            ours.close()
            sender.join()


def acquisition(samples=16, channels=3, axes=2, seed=0) -> ismrmrd.Acquisition:
    random = np.random.default_rng(seed)
    data = (random.standard_normal((channels, samples)) + 1j * random.standard_normal((channels, samples))).astype(np.complex64)
    trajectory = random.standard_normal((samples, axes)).astype(np.float32)
    made = ismrmrd.Acquisition.from_array(data, trajectory, scan_counter=7, acquisition_time_stamp=99)
    made.idx.kspace_encode_step_1 = 5
    made.set_flag(ismrmrd.ACQ_LAST_IN_MEASUREMENT)
    return made


RECORDS = [
    ConfigFile("cardiac.xml"),
    ConfigScript("<configuration/>"),
    Header("<ismrmrdHeader>ü</ismrmrdHeader>"),
    Text("λ = 0.5"),
    Query("gadgetron::info", 2**63),
    Response("4.7", 2**63),
    ErrorMessage("no trajectory"),
    DependencyStatus("<ismrmrdMeta/>"),
    Close(),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_records_survive_both_ways(record):
    message = encode(record)
    assert decode(message + (b"" if isinstance(record, Close) else encode(Close())))[0] == record


def test_records_have_the_forms_of_the_protocol(raw):
    stream = b"".join(encode(record) for record in RECORDS)
    assert raw.parse(stream) == [
        (1, "cardiac.xml"),
        (2, "<configuration/>"),
        (3, "<ismrmrdHeader>ü</ismrmrdHeader>"),
        (5, "λ = 0.5"),
        (6, (2**63, "gadgetron::info")),
        (7, (2**63, "4.7")),
        (8, "no trajectory"),
        (1019, "<ismrmrdMeta/>"),
        (4, None),
    ]
    assert len(encode(ConfigFile("a"))) == 2 + 1024


def test_trailing_nuls_are_stripped_and_counted(raw):
    header = raw.counted(3, b"<a/>\0\0")
    script = raw.script("cardiac", nul=True)
    text = raw.text("{}", nul=True)
    assert decode(script + header + text + raw.CLOSE)[:3] == [ConfigScript("cardiac"), Header("<a/>"), Text("{}")]


def test_config_name_ends_at_its_first_nul(raw):
    name = raw.config_name("cardiac.xml")
    dirty = name[:2] + b"cardiac.xml\0garbage".ljust(1024, b"x")
    assert decode(dirty + raw.CLOSE)[0] == ConfigFile("cardiac.xml")


def test_text_follows_its_declared_encoding(raw):
    latin = '<?xml version="1.0" encoding="ISO-8859-1"?><a>Zürich</a>'
    assert decode(raw.counted(3, latin.encode("latin-1")) + raw.CLOSE)[0] == Header(latin)
    marked = b"\xef\xbb\xbf<a/>"
    assert decode(raw.counted(3, marked) + raw.CLOSE)[0] == Header("<a/>")
    with pytest.raises(ProtocolError, match=r"header: not utf-8 .* Send UTF-8"):
        decode(raw.counted(3, "<a>Zürich</a>".encode("latin-1")) + raw.CLOSE)
    with pytest.raises(ProtocolError, match="header: not klingon"):
        decode(raw.counted(3, '<?xml version="1.0" encoding="klingon"?><a/>') + raw.CLOSE)


def test_struct_made_readout_is_read_field_by_field(raw):
    random = np.random.default_rng(1)
    data = (random.standard_normal((3, 8)) + 1j * random.standard_normal((3, 8))).astype(np.complex64)
    trajectory = random.standard_normal((8, 2)).astype(np.float32)
    message = raw.acquisition(data, trajectory, flags=1 << 18, counter=4)
    (readout, _) = decode(message + raw.CLOSE)
    np.testing.assert_array_equal(readout.data, data)
    np.testing.assert_array_equal(readout.traj, trajectory)
    assert readout.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
    assert (readout.scan_counter, readout.acquisition_time_stamp, readout.idx.kspace_encode_step_1) == (4, 1004, 4)
    assert list(readout.position) == [0, 1, 2]
    assert list(readout.slice_dir) == [9, 10, 11]
    assert readout.center_sample == 4
    assert encode(readout) == message
    readout.data[:] = 0  # received arrays belong to the receiver, and can be written


def test_struct_made_waveform_is_read(raw):
    data = np.arange(40, dtype=np.uint32).reshape(2, 20)
    message = raw.waveform(data)
    (waveform, _) = decode(message + raw.CLOSE)
    np.testing.assert_array_equal(waveform.data, data)
    assert (waveform.waveform_id, waveform.sample_time_us, waveform.time_stamp) == (3, 2500.0, 1000)
    assert encode(waveform) == message


@pytest.mark.parametrize("shape", [(0, 3, 2), (16, 0, 2), (16, 3, 0), (1, 1, 3)])
def test_readouts_without_samples_channels_or_trajectory(shape):
    message = encode(acquisition(*shape))
    (readout, _) = decode(message + encode(Close()))
    assert readout.data.shape == (shape[1], shape[0])
    assert readout.traj.shape == (shape[0], shape[2])
    assert encode(readout) == message


class Wrapper:
    """A source and sink as the PyPI package wants them."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def read(self, size: int) -> bytes:
        return self.sock.recv(size, socket.MSG_WAITALL)

    def write(self, payload: bytes) -> None:
        self.sock.sendall(payload)


@pytest.mark.filterwarnings("ignore:This function currently returns:UserWarning")  # ismrmrd 1.14 reading
@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.uint32, np.float32, np.float64, np.complex64, np.complex128])
def test_images_to_and_from_the_pypi_package(pair, dtype):
    theirs, link = pair
    pixels = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).astype(dtype)
    image = ismrmrd.Image.from_array(pixels, transpose=False, image_series_index=3, image_index=9)
    image.meta = ismrmrd.Meta({"ImageComments": ["a", "b & <c>"], "WindowCenter": "512"})
    link.send(image)
    assert pypi_readers.read(Wrapper(theirs), struct.Struct("<H")) == 1022
    got = pypi_readers.read_image(Wrapper(theirs))
    np.testing.assert_array_equal(got.data, pixels)
    assert got.meta == image.meta
    assert (got.image_series_index, got.image_index, got.getHead().attribute_string_len) == (3, 9, len(image.attribute_string) + 1)

    pypi_writers.write_image(Wrapper(theirs), image)
    back = link.receive()
    np.testing.assert_array_equal(back.data, pixels)
    assert back.data.dtype == dtype
    assert back.meta == image.meta
    assert link.images == 1


def test_readouts_and_waveforms_to_and_from_the_pypi_package(pair):
    theirs, link = pair
    readout = acquisition()
    waveform = ismrmrd.Waveform.from_array(np.arange(40, dtype=np.uint32).reshape(2, 20), waveform_id=2)
    link.send(readout)
    link.send(waveform)
    assert pypi_readers.read(Wrapper(theirs), struct.Struct("<H")) == 1008
    assert pypi_readers.read_acquisition(Wrapper(theirs)) == readout
    assert pypi_readers.read(Wrapper(theirs), struct.Struct("<H")) == 1026
    assert pypi_readers.read_waveform(Wrapper(theirs)) == waveform

    pypi_writers.write_acquisition(Wrapper(theirs), readout)
    pypi_writers.write_waveform(Wrapper(theirs), waveform)
    assert link.receive() == readout
    assert link.receive() == waveform
    assert (link.readouts, link.waveforms) == (1, 1)


def test_every_cut_is_told_and_none_spins(raw):
    """The stream ends after every possible number of bytes: always an error, with the right count inside a readout."""
    first, second = encode(acquisition(4, 2, 2)), encode(acquisition(4, 2, 2, seed=1))
    stream = first + second
    for length in range(len(stream)):
        with pytest.raises(EndOfStreamError) as caught:
            decode(stream[:length])
        index, at = divmod(length, len(first))
        error = caught.value
        body = len(first) - 2
        if at == 0:
            assert (error.field, error.problem) == ("stream", f"ended without CLOSE after {index} readouts")
        elif at == 1:
            assert error.field == "message id"
        elif at < 2 + 340:
            assert error.field == f"header of readout {index}"
            assert error.problem == f"stream ended after {at - 2} of 340 bytes, {342 - at} missing"
        else:
            assert error.field == f"readout {index}"
            assert error.problem == f"stream ended after {at - 2} of {body} bytes, {body - at + 2} missing"


FOUR_GB = 0xFFFFFFFF
HUGE = [
    (struct.pack("<HI", 2, FOUR_GB), "config script length"),
    (struct.pack("<HI", 3, FOUR_GB), "header length"),
    (struct.pack("<HI", 5, FOUR_GB), "text length"),
    (struct.pack("<HQ", 8, 2**63), "error message length"),
    (struct.pack("<HQ", 1019, 2**40), "dependency status length"),
    (struct.pack("<HQQQ", 6, 0, 1, 2**40), "query length"),
    (struct.pack("<HQQ", 7, 1, 2**40), "response length"),
]


@pytest.mark.parametrize(("start", "field"), HUGE, ids=[field for _, field in HUGE])
def test_absurd_lengths_are_refused_before_anything_is_allocated(start, field, monkeypatch):
    sizes = []

    class Watched(bytearray):
        def __init__(self, size):
            sizes.append(size)
            super().__init__(size)

    monkeypatch.setattr("gadgets.stream.bytearray", Watched, raising=False)
    with pytest.raises(ProtocolError, match=rf"^{field}: \d+ bytes\. At most 67108864 bytes"):
        decode(start + b"x" * 100)
    assert max(sizes) <= 8


def test_absurd_readouts_waveforms_and_images_are_refused(raw):
    lying = raw.acquisition(np.zeros((1, 4)), samples=65535, channels=65535)
    with pytest.raises(ProtocolError, match=r"readout 0: number_of_samples 65535 × active_channels 65535.*34358689800 bytes"):
        decode(lying)
    waveform = bytearray(raw.waveform(np.zeros((2, 20))))
    struct.pack_into("<HH", waveform, 2 + 28, 65535, 65535)
    with pytest.raises(ProtocolError, match="waveform 0: number_of_samples 65535 × channels 65535"):
        decode(bytes(waveform))
    head = ismrmrd.ImageHeader(data_type=7, channels=64, matrix_size=(65535, 65535, 65535))
    with pytest.raises(ProtocolError, match="image 0: matrix_size 65535 × 65535 × 65535 × channels 64"):
        decode(struct.pack("<H", 1022) + bytes(head) + struct.pack("<Q", 0))
    with pytest.raises(ProtocolError, match="image 0: attribute length"):
        decode(struct.pack("<H", 1022) + bytes(head) + struct.pack("<Q", 2**62))


@pytest.mark.parametrize("code", [0, 4, 9])
def test_pixel_types_that_cannot_be_read_are_named(code):
    head = ismrmrd.ImageHeader(data_type=code, channels=1, matrix_size=(2, 2, 1))
    with pytest.raises(ProtocolError, match=rf"image 0: data_type: {code}\. Known: .*5 float32"):
        decode(struct.pack("<H", 1022) + bytes(head) + struct.pack("<Q", 0) + bytes(16))


@pytest.mark.parametrize("attributes", [b"<not-closed", b"<other/>"])
def test_attributes_that_are_no_meta_are_named(attributes):
    head = ismrmrd.ImageHeader(data_type=5, channels=1, matrix_size=(2, 2, 1))
    with pytest.raises(ProtocolError, match="attributes of image 0: not ISMRMRD meta XML"):
        decode(struct.pack("<H", 1022) + bytes(head) + struct.pack("<Q", len(attributes)) + attributes + bytes(16))


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (1023, "recon data"),
        (1024, "image array"),
        (1050, "acquisition bucket"),
        (1018, "DICOM"),
        (4711, "unknown id 4711"),
        (0, "unknown id 0"),
    ],
)
def test_foreign_and_unknown_ids_are_named(number, words, pair):
    theirs, link = pair
    theirs.sendall(struct.pack("<H", number) + bytes(50))
    with pytest.raises(ProtocolError, match=words):
        link.receive()
    assert link.broken


def test_a_query_with_reserved_bits_is_refused():
    with pytest.raises(ProtocolError, match="query reserved: 5"):
        decode(struct.pack("<HQQQ", 6, 5, 1, 0))


@pytest.mark.parametrize(
    ("spoil", "field"),
    [
        (lambda: ismrmrd.Acquisition(data=np.zeros((2, 4), np.complex128)), "acquisition data"),
        (lambda: ismrmrd.Acquisition(data=np.zeros((2, 4), np.complex64), trajectory=np.zeros((4, 2))), "acquisition traj"),
        (lambda: wrong_samples(), "acquisition data"),
        (lambda: ismrmrd.Image(ismrmrd.ImageHeader(data_type=4, channels=1, matrix_size=(2, 2, 1))), "image data_type"),
        (lambda: ConfigFile("x" * 1024), "config name"),
        (lambda: ConfigFile("a\0b"), "config name"),
        (lambda: "a text", "message"),
    ],
)
def test_what_would_corrupt_the_stream_is_not_sent(spoil, field, pair):
    theirs, link = pair
    with pytest.raises(DataError) as caught:
        link.send(spoil())
    assert caught.value.field == field
    theirs.setblocking(False)
    with pytest.raises(BlockingIOError):
        theirs.recv(1)


def wrong_samples() -> ismrmrd.Acquisition:
    readout = acquisition()
    readout._head.number_of_samples = 5
    return readout


def test_a_reset_is_a_disconnection(pair):
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, socket.create_connection(listener.getsockname()) as ours:
        theirs, _ = listener.accept()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        link = Connection(ours)
        with pytest.raises(DisconnectedError, match=r"connection: lost .*Connect again"):
            link.receive()
        assert link.broken
        with pytest.raises(DisconnectedError):
            link.send(Text("anyone?"))


def test_drain_forgets_to_close_and_stops_where_nothing_can_follow(pair, raw):
    theirs, link = pair
    theirs.sendall(raw.scan(3) + raw.text("behind CLOSE"))
    link.drain()
    assert (link.readouts, link.waveforms, link.closed) == (5, 1, True)
    link.drain()  # CLOSE was seen: reads no further
    assert link.receive() == Text("behind CLOSE")


def test_messages_end_at_close(pair, raw):
    theirs, link = pair
    theirs.sendall(raw.text("a") + raw.text("b") + raw.CLOSE)
    assert list(link.messages()) == [Text("a"), Text("b")]
    assert link.closed


def test_linger_swallows_until_the_peer_closes(pair):
    theirs, link = pair
    done = threading.Event()
    thread = threading.Thread(target=lambda: (link.linger(10), done.set()))
    thread.start()
    theirs.sendall(bytes(1 << 20))
    assert theirs.recv(1) == b""  # our sending ended at once
    assert not done.is_set()
    theirs.shutdown(socket.SHUT_WR)
    thread.join(5)
    assert done.is_set()


def test_linger_gives_up_in_time(pair):
    _, link = pair
    link.linger(0.05)


def test_error_texts_are_told_from_status():
    assert is_error_text(error_text(DataError("readout 3", "NaN or Inf", "Leave it out.")))
    assert error_text(DataError("a", "b", "C.")) == "[gadgetron-inr] ERROR: a: b. C."
    assert error_text(KeyError()) == "[gadgetron-inr] ERROR: KeyError"
    assert is_error_text("[Connection Main Thread/Stream/external] ERROR: Errors received: \nnode")
    assert not is_error_text("fitted 160 frames, held-out ERROR: 1.02")
    assert not is_error_text("")


def test_headers_have_the_sizes_of_the_protocol():
    sizes = [ctypes.sizeof(head) for head in (ismrmrd.AcquisitionHeader, ismrmrd.ImageHeader, ismrmrd.WaveformHeader)]
    assert sizes == [340, 198, 40]
