"""The replay client against scripted peers, a real Gadgetron's bytes and the embedded server."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import ismrmrd
import numpy as np
import pytest

from gadgets import client
from gadgets.scanfile import Scan, read_scan, write_scan
from gadgets.stream import Close, ConfigFile, ConfigScript, Connection, ErrorMessage, Header, Query, Response, Text, encode
from recon_core.errors import DataError

pytestmark = pytest.mark.timeout(60)
CONFIG = ConfigFile("cardiac.xml")


def make_readout(number: int = 0, stamp: int = 0, samples: int = 16, noise: bool = False) -> ismrmrd.Acquisition:
    values = np.full((2, samples), number + 1j, np.complex64)
    readout = ismrmrd.Acquisition.from_array(values, np.zeros((samples, 2), np.float32))
    readout.scan_counter, readout.acquisition_time_stamp = number, stamp
    if noise:
        readout.set_flag(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
    return readout


def make_image(index: int = 0, series: int = 1, size: int = 8) -> ismrmrd.Image:
    image = ismrmrd.Image.from_array(np.full((size, size), index, np.float32), transpose=False)
    image.image_index, image.image_series_index = index, series
    return image


@pytest.fixture
def scan(tmp_path: Path) -> Scan:
    path = tmp_path / "scan.h5"
    write_scan(path, "<header/>", [make_readout(n, stamp=100 + 10 * n) for n in range(5)])
    return read_scan(path)


@contextlib.contextmanager
def peer(play: Callable[[Connection], None]) -> Iterator[tuple[str, int]]:
    """A server that takes one connection and does what it is told."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        faults: list[BaseException] = []

        def serve() -> None:
            try:
                sock, _ = listener.accept()
                with sock:
                    sock.settimeout(20)
                    play(Connection(sock))
            except BaseException as error:  # noqa: BLE001 - told to the test below
                faults.append(error)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[:2]
        thread.join(20)
        assert not thread.is_alive()
        if faults:
            raise faults[0]


def answer(*messages, before: Callable[[Connection], None] = Connection.drain) -> Callable[[Connection], None]:
    def play(connection: Connection) -> None:
        before(connection)
        for message in messages:
            if isinstance(message, bytes):
                connection.socket.sendall(message)
            else:
                connection.send(message)

    return play


def test_images_come_back_and_the_scan_goes_out_whole(scan: Scan):
    received, images, sent = [], [], []

    def play(connection: Connection) -> None:
        received.extend(connection.messages())
        for index in range(3):
            connection.send(make_image(index, series=1 + index // 2))
        connection.send(Text("status: done"))
        connection.send(Close())

    with peer(play) as (host, port):
        result = client.replay(scan, CONFIG, host, port, on_image=images.append, on_sent=sent.append)
    assert result.error == ""
    assert (result.images, result.series, result.readouts) == (3, {1: 2, 2: 1}, 5)
    assert result.texts == ("status: done",)
    assert 0 <= result.latency <= result.seconds
    assert [image.image_index for image in images] == [0, 1, 2]
    assert np.all(images[2].data == 2)
    assert received[:2] == [CONFIG, Header("<header/>")]
    assert [message.scan_counter for message in received[2:]] == [0, 1, 2, 3, 4]
    assert sent == [1, 2, 3, 4, 5]
    assert all(np.all(message.data == message.scan_counter + 1j) for message in received[2:])


@pytest.mark.parametrize(
    ("name", "images", "words"),
    [("image_1", 1, ""), ("dependency_2", 1, ""), ("error_1", 0, "matrix.x = 0"), ("unknown_chain_1", 0, "ERROR")],
)
def test_answers_of_a_real_gadgetron(wire_dir: Path, scan: Scan, name: str, images: int, words: str):
    answered = (wire_dir / f"{name}_server_to_client.bin").read_bytes()
    with peer(answer(answered)) as (host, port):
        result = client.replay(scan, CONFIG, host, port)
    assert result.images == images
    if words:
        assert words in result.error
        assert result.error in result.texts
    else:
        assert result.error == ""


def test_a_recorded_scan_goes_out_as_the_stock_client_sent_it(wire_dir: Path, tmp_path: Path):
    recorded = (wire_dir / "image_1_client_to_server.bin").read_bytes()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(recorded)
        messages = list(Connection(theirs).messages())
    config, header, items = messages[0], messages[1], messages[2:]
    path = tmp_path / "recorded.h5"
    write_scan(
        path,
        header.text,
        [item for item in items if isinstance(item, ismrmrd.Acquisition)],
        [item for item in items if isinstance(item, ismrmrd.Waveform)],
    )
    taken = bytearray()

    def play(connection: Connection) -> None:
        while len(taken) < len(recorded) and (part := connection.socket.recv(1 << 16)):
            taken.extend(part)
        connection.send(make_image())
        connection.send(Close())

    with peer(play) as (host, port):
        assert client.replay(read_scan(path), config, host, port).error == ""
    assert bytes(taken) == recorded


def test_neither_side_waits_for_the_other_to_read(tmp_path: Path):
    path = tmp_path / "long.h5"
    write_scan(path, "", [make_readout(n, samples=20_000) for n in range(40)])  # 19 MB, more than sockets buffer
    pictures = [make_image(n, size=1024) for n in range(6)]  # 25 MB

    def play(connection: Connection) -> None:
        for picture in pictures:
            connection.send(picture)
        connection.drain()
        connection.send(Close())

    with peer(play) as (host, port):
        result = client.replay(read_scan(path), CONFIG, host, port)
    assert (result.error, result.images, result.readouts) == ("", 6, 40)


def test_error_keeps_the_images_before_it_and_is_the_last_word(scan: Scan):
    images = []
    words = "[gadgetron-inr] ERROR: matrix: 0 is below 2. Give a value of at least 2."
    with peer(answer(make_image(), Text("status: binned"), Text(words), Close())) as (host, port):
        result = client.replay(scan, CONFIG, host, port, on_image=images.append)
    assert len(images) == result.images == 1
    assert result.error == words
    assert result.texts == ("status: binned", words)


def test_an_error_ends_a_paced_scan_at_once(tmp_path: Path):
    path = tmp_path / "slow.h5"
    write_scan(path, "", [make_readout(n, stamp=1000 * n) for n in range(100)])  # 250 s on the scanner

    def play(connection: Connection) -> None:
        connection.send(Text("[gadgetron-inr] ERROR: chain: unknown name 'x'"))
        connection.drain()
        connection.send(Close())

    started = time.monotonic()
    with peer(play) as (host, port):
        result = client.replay(read_scan(path), ConfigFile("x"), host, port, speed=1.0)
    assert time.monotonic() - started < 10
    assert result.readouts < 100
    assert "unknown name 'x'" in result.error


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "ended without CLOSE"),
        ([make_image()], "ended without CLOSE"),
        ([encode(make_image())[:300]], "missing"),
        ([Close()], "sent no image. It said nothing"),
        ([Text("warming up"), Close()], "sent no image. It said: warming up"),
        ([b"\x63\x00"], "unknown id 99"),
        ([ErrorMessage("for Gadgetron only"), Close()], "sent a ErrorMessage"),
        ([Header("<header/>"), Close()], "sent a Header"),
    ],
)
def test_whatever_goes_wrong_is_an_error(scan: Scan, messages, words):
    with peer(answer(*messages)) as (host, port):
        result = client.replay(scan, CONFIG, host, port)
    assert words in result.error


def test_close_before_the_end_of_the_scan_is_an_error(tmp_path: Path):
    path = tmp_path / "slow.h5"
    write_scan(path, "", [make_readout(n, stamp=10_000 * n) for n in range(3)])

    def play(connection: Connection) -> None:
        for _ in range(3):
            connection.receive()
        connection.send(make_image())
        connection.send(Close())

    with peer(play) as (host, port), pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "_LAST_WORDS_SECONDS", 0.1)
        result = client.replay(read_scan(path), CONFIG, host, port, speed=1.0)
    assert result.images == 1
    assert "after 1 of 3 readouts" in result.error


def test_server_that_vanishes_while_we_send_is_told(tmp_path: Path):
    path = tmp_path / "long.h5"
    write_scan(path, "", [make_readout(n, samples=20_000) for n in range(40)])
    with peer(lambda connection: connection.receive() and None) as (host, port):
        result = client.replay(read_scan(path), CONFIG, host, port)
    assert result.readouts < 40
    assert "CLOSE" in result.error or "lost" in result.error


class BrokenScan(Scan):
    """A scan whose file breaks off after two readouts."""

    fault: Exception = DataError("readout 2", "10 values stored, 32 announced", "Write the file again.")

    def items(self):
        yield from list(super().items())[:2]
        raise self.fault


def test_damaged_file_is_told_and_the_server_gets_its_close(scan: Scan):
    received = []

    def play(connection: Connection) -> None:
        received.extend(connection.messages())
        connection.send(make_image())
        connection.send(Close())

    with peer(play) as (host, port):
        result = client.replay(BrokenScan(**vars(scan)), CONFIG, host, port)
    assert len(received) == 4
    assert result.images == 1
    assert result.error.startswith("readout 2: 10 values stored")


def test_fault_of_the_program_in_the_sender_is_raised_and_not_swallowed(scan: Scan):
    def fail(readouts: int) -> None:
        raise ZeroDivisionError

    with peer(answer(make_image(), Close())) as (host, port), pytest.raises(ZeroDivisionError):
        client.replay(scan, CONFIG, host, port, on_sent=fail)


def test_image_that_cannot_be_stored_ends_the_replay(scan: Scan):
    def full(image: ismrmrd.Image) -> None:
        raise DataError("file", "no space left", "Free some.")

    before = threading.active_count()
    with peer(answer(make_image(), Close())) as (host, port), pytest.raises(DataError, match="no space left"):
        client.replay(scan, CONFIG, host, port, on_image=full)
    assert threading.active_count() == before


def test_readouts_arrive_no_faster_than_their_time_stamps(tmp_path: Path):
    path = tmp_path / "paced.h5"
    readouts = [make_readout(0, stamp=5, noise=True), *(make_readout(n, stamp=10_000 + 20 * n) for n in range(1, 5))]
    write_scan(path, "", readouts)  # 50 ms between readouts, the noise 25 s before
    times = []

    def play(connection: Connection) -> None:
        times.extend(time.monotonic() for message in connection.messages() if isinstance(message, ismrmrd.Acquisition))
        connection.send(make_image())
        connection.send(Close())

    with peer(play) as (host, port):
        assert client.replay(read_scan(path), CONFIG, host, port, speed=1.0).error == ""
    assert times[1] - times[0] < 5
    assert times[4] - times[1] > 0.13


class Waits(threading.Event):
    """Writes down for how long one would have waited."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds.append(timeout)
        return False


@pytest.mark.parametrize("speed", [1.0, 4.0, None])
def test_pace_counts_from_the_first_imaging_readout(speed: float | None):
    pace, waits = client._Pace(speed, tick_ms=10.0), Waits()
    waveform = ismrmrd.Waveform.from_array(np.zeros((1, 4), np.uint32))
    waveform.time_stamp = 90_000
    pace.wait(waveform, waits)
    pace.wait(make_readout(stamp=80_000, noise=True), waits)
    pace.wait(make_readout(stamp=100_000), waits)
    assert waits.seconds == []
    pace.wait(make_readout(stamp=110_000), waits)
    waveform.time_stamp = 120_000
    pace.wait(waveform, waits)
    pace.wait(make_readout(stamp=99_000), waits)
    assert waits.seconds == ([] if speed is None else pytest.approx([100 / speed, 200 / speed], abs=5))


@pytest.mark.parametrize("port", ["free", 99_999_999])
def test_no_server_is_an_error_that_says_where(scan: Scan, port):
    if port == "free":
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
    with pytest.raises(DataError, match=f"127.0.0.1:{port}") as caught:
        client.replay(scan, CONFIG, "127.0.0.1", port)
    assert "gadgetron-inr serve" in caught.value.cure


def test_question_and_dependency_query(wire_dir: Path):
    received = []

    def respond(connection: Connection) -> None:
        received.extend(connection.messages())
        connection.send(Response("4.7.2", received[0].correlation))
        connection.send(Close())

    with peer(respond) as (host, port):
        result = client.ask(host, port, "gadgetron::version")
    assert received == [Query("gadgetron::version", 1)]
    assert (result.texts, result.error) == (("4.7.2",), "")
    with peer(answer(Close())) as (host, port):
        assert "no answer to 'gadgetron::version'" in client.ask(host, port, "gadgetron::version").error
    status = (wire_dir / "dependency_1_server_to_client.bin").read_bytes()
    with peer(answer(status)) as (host, port):
        result = client.query(host, port, ConfigScript("<gadgetronStreamConfiguration/>"))
    assert "<value>failed</value>" in result.texts[0]
    assert result.error == ""
