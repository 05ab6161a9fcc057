"""What goes wrong on a network: cuts, lies, silence, hang-ups, many scans; afterwards the server serves as before."""

from __future__ import annotations

import contextlib
import gc
import socket
import struct
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

import gadgets.server
from gadgets.server import STOP_SECONDS, Server
from gadgets.stream import Connection
from gadgets.wire_exchange import QUEUE_BYTES, Exchange
from recon_core.errors import ReconError


def ids(messages) -> list[int]:
    return [number for number, _ in messages]


@pytest.fixture
def serves_on(talk, raw, server):
    """The server is alive: a scan works, and no connection is left."""

    def check() -> None:
        assert ids(talk(raw.config_name("cardiac"), raw.header(), raw.scan(4))) == [1022, 5, 4]
        assert wait_until(lambda: server.scans == 0)

    return check


def wait_until(condition, seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def reset(sock: socket.socket) -> None:
    """Close with a reset instead of an orderly end, as a killed or unplugged client may."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


class TestBadInput:
    @pytest.mark.parametrize(
        ("start", "words"),
        [
            (lambda raw: struct.pack("<HI", 2, 0xFFFFFFFF), "config script length: 4294967295 bytes"),
            (lambda raw: raw.config_name("cardiac") + struct.pack("<HI", 3, 0xFFFFFFFF), "header length: 4294967295 bytes"),
            (lambda raw: raw.config_name("cardiac") + raw.header() + struct.pack("<HI", 5, 0xFFFFFFFF), "text length: 4294967295 bytes"),
            (
                lambda raw: raw.config_name("cardiac") + raw.header() + raw.acquisition(np.zeros((1, 4)), samples=65535, channels=65535),
                "number_of_samples 65535 × active_channels 65535",
            ),
            (lambda raw: b"GET / HTTP/1.1\r\n\r\n", "message id: unknown id"),
        ],
        ids=["script", "header", "text", "readout", "http"],
    )
    def test_lies_about_lengths_are_told(self, start, words, dial, raw, serves_on, server):
        memory = psutil.Process().memory_info().rss
        with dial() as peer:
            peer.send(start(raw))
            peer.send(bytes(4 << 20))  # the framing is lost: this is swallowed, so that the error is not lost in a reset
            peer.sock.shutdown(socket.SHUT_WR)
            messages = peer.rest()
        assert ids(messages) == [5, 4]
        assert words in messages[0][1]
        assert psutil.Process().memory_info().rss < memory + (100 << 20)
        serves_on()

    def test_a_stream_cut_inside_a_readout(self, dial, raw, serves_on, chain_xml):
        scan = raw.scan(8, noise=False)
        readout = 2 + 340 + 8 * 16 + 8 * 16 * 3
        with dial() as peer:
            peer.send(raw.script(chain_xml(readouts_per_image="2")), raw.header(), scan[: 5 * readout + 400])
            peer.sock.shutdown(socket.SHUT_WR)
            messages = peer.rest()
        assert ids(messages) == [1022, 1022, 5, 4]
        assert messages[2][1] == (
            f"[gadgetron-inr] ERROR: readout 5: stream ended after 398 of {readout - 2} bytes, {readout - 400} missing. "
            "Send the message whole; the peer stopped, or a length field before it is wrong."
        )
        serves_on()

    def test_a_stream_without_close(self, dial, raw, serves_on):
        with dial() as peer:
            peer.send(raw.config_name("cardiac"), raw.header(), raw.scan(8).removesuffix(raw.CLOSE))
            peer.sock.shutdown(socket.SHUT_WR)
            messages = peer.rest()
        assert ids(messages) == [1022, 1022, 5, 4]
        assert "stream: ended without CLOSE after 10 readouts" in messages[2][1]
        serves_on()

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_samples_that_are_not_finite(self, value, talk, raw, serves_on):
        good, bad = np.ones((2, 16), np.complex64), np.ones((2, 16), np.complex64)
        bad[1, 3] = value
        readouts = [raw.acquisition(bad if number == 5 else good) for number in range(8)]
        messages = talk(raw.config_name("cardiac"), raw.header(), *readouts, raw.CLOSE)
        assert ids(messages) == [1022, 5, 4]
        assert "readout 5: NaN or Inf" in messages[1][1]
        serves_on()

    def test_an_unknown_id_within_a_scan(self, dial, raw, serves_on):
        with dial() as peer:
            peer.send(raw.config_name("cardiac"), raw.header(), raw.scan(4).removesuffix(raw.CLOSE), struct.pack("<H", 999))
            peer.sock.shutdown(socket.SHUT_WR)
            messages = peer.rest()
        assert ids(messages) == [1022, 5, 4]
        assert "unknown id 999" in messages[1][1]
        serves_on()


class TestVanishingClients:
    @pytest.mark.parametrize("leave", [socket.socket.close, reset], ids=["close", "reset"])
    @pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
    def test_in_the_middle_of_sending(self, leave, share, dial, raw, serves_on, fake):
        stream = raw.config_name("cardiac") + raw.header() + raw.scan(40)
        peer = dial()
        peer.send(stream[: int(share * len(stream))])
        leave(peer.sock)
        serves_on()
        assert len(fake.ran) == 1 + (share > 0.2)

    @pytest.mark.parametrize("leave", [socket.socket.close, reset], ids=["close", "reset"])
    def test_while_the_scan_is_reconstructed(self, leave, dial, raw, serves_on, fake, chain_xml):
        """After CLOSE nothing more is read, and the reconstruction would run on for nobody."""
        peer = dial()
        peer.send(raw.script(chain_xml(mode="endless")), raw.header(), raw.scan(4))
        assert wait_until(lambda: fake.consumed == 4)
        assert not fake.ended.is_set()
        leave(peer.sock)
        assert fake.ended.wait(5)
        serves_on()

    def test_gadgetron_itself(self, dial, raw, serves_on, fake):
        """No TEXT may probe that peer: its reset is noticed by the watching receiver."""
        peer = dial()
        script = '<configuration><property name="mode" value="endless"/></configuration>'
        peer.send(raw.script(script), raw.header(), raw.scan(4))
        assert wait_until(lambda: fake.consumed == 4)
        reset(peer.sock)
        assert fake.ended.wait(5)
        serves_on()

    def test_a_peer_that_only_ends_its_sending_gets_its_images(self, dial, raw):
        with dial() as peer:
            peer.send(raw.config_name("cardiac"), raw.header(), raw.scan(8))
            peer.sock.shutdown(socket.SHUT_WR)
            assert ids(peer.rest()) == [1022, 1022, 5, 4]

    def test_a_connection_without_a_byte(self, dial, serves_on, caplog):
        caplog.set_level("INFO", "gadgets")
        dial().sock.close()
        serves_on()
        assert "scan 1: closed without a message" in caplog.messages
        assert not [record for record in caplog.records if record.levelname in ("ERROR", "WARNING")]


class TestBackPressure:
    def test_a_waiting_reconstruction_holds_the_client_back(self, dial, raw, fake, chain_xml):
        """Of 200 MB, only the queue and the sockets' buffers, which the kernel lets grow, fill while nothing is consumed."""
        readout = raw.acquisition(np.ones((32, 8000), np.complex64))
        total = 100
        sent = []

        def send() -> None:
            for _ in range(total):
                peer.send(readout)
                sent.append(len(readout))
            peer.send(raw.CLOSE)

        with dial() as peer:
            peer.send(raw.script(chain_xml(mode="hold", readouts_per_image="50")), raw.header())
            sender = threading.Thread(target=send)
            sender.start()
            stalled = wait_stalled(sent)
            assert 32 << 20 < stalled <= QUEUE_BYTES + largest_socket_buffers() + 3 * len(readout) < total * len(readout)
            fake.go.set()
            messages = peer.rest()
            sender.join(5)
        assert ids(messages) == [1022, 1022, 5, 4]
        assert fake.consumed == total

    def test_a_readout_larger_than_the_queue_passes(self, raw):
        ours, theirs = socket.socketpair()
        with ours, theirs, Exchange(Connection(ours), "small", tell=False, queue_bytes=10) as exchange:
            theirs.sendall(raw.acquisition(np.ones((1, 100))) * 3 + raw.CLOSE)
            assert len(list(exchange.items())) == 3


def largest_socket_buffers() -> int:
    """Bytes that the kernel's tuning may give a receiving and a sending socket together."""
    return sum(int(Path(f"/proc/sys/net/ipv4/tcp_{kind}").read_text(encoding="ascii").split()[2]) for kind in ("rmem", "wmem"))


def wait_stalled(sent: list[int]) -> int:
    """Bytes sent once nothing has moved for a while."""
    before = -1
    while (now := sum(sent)) != before:
        before = now
        time.sleep(0.8)
    return now


class TestManyScans:
    def test_ten_in_a_row_and_three_at_once(self, dial, raw, server, chain_xml, pixel_sums, image_sums):
        process = psutil.Process()
        threads = threading.active_count()
        random = np.random.default_rng(0)
        head = raw.script(chain_xml(readouts_per_image="10", size="512")) + raw.header()
        scans = []
        for _ in range(3):
            data = (random.standard_normal((40, 8, 512)) + 1j * random.standard_normal((40, 8, 512))).astype(np.complex64)
            scans.append(b"".join(raw.acquisition(readout) for readout in data) + raw.CLOSE)
        results: dict[int, list] = {}

        def one(number: int) -> None:
            with dial() as peer:
                peer.send(head)
                peer.send(scans[number % 3])
                results[number] = peer.rest()

        memory = []
        for number in range(10):
            one(number)
            assert wait_until(lambda: server.scans == 0)
            gc.collect()
            memory.append(process.memory_info().rss)
        together = [threading.Thread(target=one, args=(10 + number,)) for number in range(3)]
        for thread in together:
            thread.start()
        for thread in together:
            thread.join(20)
        assert sorted(results) == list(range(13))
        for number, messages in results.items():
            assert ids(messages) == [1022] * 4 + [5, 4]
            np.testing.assert_allclose(image_sums(messages), pixel_sums(scans[number % 3], 10), rtol=1e-5)
        assert memory[9] < 1.05 * memory[2]
        assert wait_until(lambda: server.scans == 0 and threading.active_count() <= threads)
        assert not process.children()

    def test_failing_scans_leave_nothing_behind(self, dial, raw, server, serves_on, chain_xml):
        process = psutil.Process()
        serves_on()
        threads, files = threading.active_count(), process.num_fds()
        stream = raw.script(chain_xml(mode="crash")) + raw.header() + raw.scan(40)
        for number in range(12):
            with dial() as peer:
                peer.send(stream if number % 2 else stream[: len(stream) // 2])
                if number % 2:
                    assert ids(peer.rest()) == [5, 4]
        serves_on()
        assert wait_until(lambda: threading.active_count() <= threads and process.num_fds() <= files)

    def test_an_idle_connection_costs_no_time(self, dial, raw, server):
        with dial(), dial() as waiting:
            waiting.send(raw.config_name("cardiac"), raw.header(), raw.scan(4)[:-2])
            assert wait_until(lambda: server.scans == 2)
            before = time.process_time()
            time.sleep(0.5)
            assert time.process_time() - before < 0.25


class TestOwnFaults:
    """Failures of the server itself."""

    def test_running_out_of_files_is_waited_out(self, server, dial, serves_on, monkeypatch, caplog):
        monkeypatch.setattr("gadgets.server.RETRY_SECONDS", 0.05)
        calls = []

        def fails_twice(sock):
            calls.append(sock)
            if len(calls) <= 2:
                raise OSError(24, "Too many open files")
            original(sock)

        original = gadgets.server._set_up
        monkeypatch.setattr("gadgets.server._set_up", fails_twice)
        for _ in range(2):
            with dial() as peer, contextlib.suppress(ConnectionResetError):
                assert peer.sock.recv(1) == b""
        serves_on()
        assert sum("connection cannot be taken" in message for message in caplog.messages) == 2

    def test_a_receiver_that_fails_is_no_end_of_scan(self, dial, raw, monkeypatch, serves_on):
        """Running out of memory must not pass for CLOSE: images of half a scan would look whole."""
        original = Connection.receive

        def fails(link):
            if link.readouts == 6:
                raise MemoryError("no memory for readout 6")
            return original(link)

        monkeypatch.setattr(Connection, "receive", fails)
        monkeypatch.setattr("gadgets.wire_session.LINGER_SECONDS", 0.1)
        with dial() as peer:
            peer.send(raw.config_name("cardiac"), raw.header(), raw.scan(8, noise=False))
            received = b""
            with contextlib.suppress(ConnectionResetError):
                while part := peer.sock.recv(1 << 16):
                    received += part
        monkeypatch.undo()
        messages = raw.parse(received)
        assert ids(messages) == [1022, 5, 4]
        assert "receiver: MemoryError: no memory for readout 6" in messages[1][1]
        serves_on()


class TestStopping:
    def test_readouts_that_wait_for_room_are_let_go(self, raw):
        """A receiver blocked by a full queue ends with its exchange."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            exchange = Exchange(Connection(ours), "full", tell=False, queue_bytes=10)
            exchange.start()
            theirs.sendall(raw.acquisition(np.ones((1, 100))) * 3)
            assert wait_until(lambda: exchange.connection.readouts == 2)
            exchange.close()
            assert not [thread for thread in threading.enumerate() if thread.name == "full receiver"]

    def test_running_scans_are_told(self, fake, raw, chain_xml):
        server = Server(port=0, application=fake.record)
        server.start()
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
            sock.sendall(raw.script(chain_xml(mode="endless")) + raw.header() + raw.scan(4))
            assert wait_until(lambda: fake.consumed == 4)
            assert server.stop()
            received = b""
            while part := sock.recv(1 << 16):
                received += part
        messages = raw.parse(received)
        assert ids(messages)[0] == 1022
        assert messages[-2] == (5, "[gadgetron-inr] ERROR: server: stops. Send the scan again when the server is back.")
        assert messages[-1] == (4, None)
        assert fake.ended.is_set()

    @pytest.mark.parametrize("share", [0.0, 0.2, 0.5])
    def test_connections_that_wait_for_input_end(self, share, fake, raw):
        stream = raw.config_name("cardiac") + raw.header() + raw.scan(40)
        server = Server(port=0, application=fake.record)
        server.start()
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
            sock.sendall(stream[: int(share * len(stream))])
            assert wait_until(lambda: server.scans == 1)
            start = time.monotonic()
            assert server.stop()
            assert time.monotonic() - start < STOP_SECONDS
            assert server.scans == 0

    def test_a_client_that_does_not_read_is_cut_off(self, fake, raw, chain_xml):
        """Its images fill the sockets, and the scan hangs in sending until its connection is cut."""
        server = Server(port=0, application=fake.record)
        server.start()
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
            sock.sendall(raw.script(chain_xml(readouts_per_image="1", size="60000")) + raw.header() + raw.scan(40))
            assert wait_until(lambda: fake.consumed > 5)
            # The scan collects garbage when it ends: a loaded machine needs a second for that.
            assert server.stop(3)
        assert server.scans == 0

    def test_a_computation_that_cannot_be_stopped_is_reported(self, fake, raw, chain_xml, caplog):
        server = Server(port=0, application=fake.record)
        server.start()
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
            sock.sendall(raw.script(chain_xml(mode="hold")) + raw.header() + raw.scan(4))
            assert wait_until(lambda: bool(fake.ran))
            assert not server.stop(0.1)
            assert "scan 1: still computing" in caplog.messages
            fake.go.set()
            assert wait_until(lambda: server.scans == 0)

    def test_a_stopped_server_takes_no_more(self, fake):
        server = Server(port=0, application=fake.record)
        server.start()
        port = server.port
        assert server.stop()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=1)

    def test_a_taken_port_is_named(self, server, fake):
        with pytest.raises(ReconError, match=rf"port: cannot listen at 127\.0\.0\.1:{server.port} \(.*in use.*\)\. Choose another"):
            Server(port=server.port, application=fake.record)

    def test_only_loopback_by_default(self, server):
        assert server.host == "127.0.0.1"
