"""The replay client: a stored scan goes to a server as its readouts did, images come back.

Stricter than the stock client, which ends well whatever happens. A replay has failed when the server told an error, when the
stream ended without CLOSE, when CLOSE came before the whole scan was sent, or when a scan gave no image at all: that is all
that a real Gadgetron shows of a node that crashed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator

import ismrmrd

from gadgets.scanfile import Item, Scan
from gadgets.stream import (
    Close,
    ConfigFile,
    ConfigScript,
    Connection,
    DependencyStatus,
    DisconnectedError,
    Header,
    ProtocolError,
    Query,
    Response,
    Text,
    is_error_text,
)
from recon_core.errors import DataError, ReconError

DEFAULT_PORT = 9002
CONNECT_SECONDS = 10.0
_LAST_WORDS_SECONDS = 5.0
# The element of that name that stands directly in the root: the first of its children.
_VERSION = re.compile(r"(?<=>)\s*<version>\s*(\d+)\s*</version>")

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ReplayResult:
    """How a replay went.

    Attributes:
        images: images received, all series.
        series: images of every series index.
        readouts: acquisitions sent.
        texts: what the server said, in order.
        error: why it failed, in the server's words where it had some; empty when all went well.
        seconds: from the connection to the server's last word.
        latency: seconds from the last readout sent to the last image received; None without images.
        lags: of every provisional image, seconds from the moment its last readout was sent to that at which the image was here; the wire in
            both directions is in it.
    """

    images: int = 0
    series: dict[int, int] = dataclasses.field(default_factory=dict)
    readouts: int = 0
    texts: tuple[str, ...] = ()
    error: str = ""
    seconds: float = 0.0
    latency: float | None = None
    lags: tuple[float, ...] = ()


def replay(
    scan: Scan,
    config: ConfigFile | ConfigScript,
    host: str,
    port: int,
    *,
    on_image: Callable[[ismrmrd.Image], None] = lambda image: None,
    on_text: Callable[[str], None] = lambda text: None,
    on_sent: Callable[[int], None] = lambda readouts: None,
    speed: float | None = None,
    tick_ms: float = 2.5,
    timeout: float = CONNECT_SECONDS,
) -> ReplayResult:
    """Send a scan and receive its images.

    Sending has a thread of its own: neither side waits for the other to read. Callbacks ``on_image`` and ``on_text`` run in
    the calling thread, ``on_sent`` in the sender's.

    Args:
        scan: the scan.
        config: the chain, by name or as XML.
        host: the server's address.
        port: the server's port.
        on_image: takes every image as it arrives.
        on_text: takes every text of the server.
        on_sent: takes the number of readouts sent so far.
        speed: pace of sending by the time stamps, 1 as on the scanner, 2 twice as fast; None: as fast as possible.
        tick_ms: one tick of the time stamps, in ms.
        timeout: longest wait for the connection, in seconds.

    Raises:
        DataError: no connection.
    """
    with connect(host, port, timeout) as sock:
        connection = Connection(sock)
        sender = _Sender(connection, scan, config, on_sent, speed, tick_ms)
        receiver = _Receiver(connection, on_image, on_text)
        sender.start()
        try:
            for text in receiver.errors():
                # The server only waits for our CLOSE now: a paced scan need not be played to its end.
                logger.debug("server told an error, sending stops: %s", text)
                sender.stop.set()
            sender.join(_LAST_WORDS_SECONDS)
            unsent = sender.is_alive()
        finally:
            sender.stop.set()
            with contextlib.suppress(OSError):  # already down
                sock.shutdown(socket.SHUT_RDWR)
            sender.join()
    return _result(scan, sender, receiver, unsent)


def query(host: str, port: int, config: ConfigFile | ConfigScript, timeout: float = CONNECT_SECONDS) -> ReplayResult:
    """Dependency query: the chain and CLOSE without any header; statuses come back as texts.

    Raises:
        DataError: no connection.
    """
    return _exchange(host, port, config, timeout)


def ask(host: str, port: int, question: str, timeout: float = CONNECT_SECONDS) -> ReplayResult:
    """Put a question to the server (``gadgetron::info``, say); the answers come back as texts.

    Raises:
        DataError: no connection.
    """
    result = _exchange(host, port, Query(question, correlation=1), timeout)
    if not result.error and not result.texts:
        return dataclasses.replace(result, error=f"the server has no answer to {question!r}")
    return result


def _exchange(host: str, port: int, opening: ConfigFile | ConfigScript | Query, timeout: float) -> ReplayResult:
    start = time.monotonic()
    with connect(host, port, timeout) as sock:
        connection = Connection(sock)
        receiver = _Receiver(connection, lambda image: None, lambda text: None)
        # A server that refuses may close while we still send: what it said is read all the same.
        with contextlib.suppress(DisconnectedError):
            connection.send(opening)
            connection.send(Close())
        for _ in receiver.errors():
            pass
    return ReplayResult(texts=tuple(receiver.texts), error=receiver.error, seconds=time.monotonic() - start)


@contextlib.contextmanager
def connect(host: str, port: int, timeout: float) -> Iterator[socket.socket]:
    """A connected socket, closed at the end.

    Raises:
        DataError: nobody listens there, no such host, or no answer in time.
    """
    try:
        sock = socket.create_connection((host, port), timeout=timeout)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error) or "no answer in time"
        raise DataError(
            "address", f"no connection to {host}:{port} ({reason})", "Start a server there (gadgetron-inr serve), or give -a and -p."
        ) from error
    with sock:
        sock.settimeout(None)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # A readout is worth a packet of its own: waiting to fill one would delay it.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield sock


class _Sender(threading.Thread):
    """Sends configuration, header, readouts and CLOSE; stops early when told to."""

    def __init__(
        self,
        connection: Connection,
        scan: Scan,
        config: ConfigFile | ConfigScript,
        on_sent: Callable[[int], None],
        speed: float | None,
        tick_ms: float,
    ) -> None:
        super().__init__(name="replay sender", daemon=True)
        self.connection = connection
        self.scan = scan
        self.config = config
        self.on_sent = on_sent
        self.pace = _Pace(speed, tick_ms)
        self.stop = threading.Event()
        self.readouts = 0
        self.complete = False
        self.last_readout = time.monotonic()
        self.moments: list[float] = []
        self.fault: Exception | None = None

    def run(self) -> None:
        try:
            self.connection.send(self.config)
            self.connection.send(Header(_without_version(self.scan.header)))
            self._items()
        except Exception as error:  # noqa: BLE001 - told by the receiving thread, which would otherwise wait for ever
            self.fault = error
        # CLOSE also after a file that broke off: the server then ends its scan in good order.
        with contextlib.suppress(DisconnectedError):
            self.connection.send(Close())

    def _items(self) -> None:
        for item in self.scan.items():
            self.pace.wait(item, self.stop)
            if self.stop.is_set():
                return
            if isinstance(item, ismrmrd.Acquisition):
                # Before it is sent: its image must not be here first.
                self.moments.append(time.monotonic())
            self.connection.send(item)
            if isinstance(item, ismrmrd.Acquisition):
                self.readouts += 1
                self.last_readout = time.monotonic()
                self.on_sent(self.readouts)
        self.complete = True


def _without_version(header: str) -> str:
    """The header without ``<version>``: a Gadgetron does not hand on one that names another release of the format than its own."""
    found = _VERSION.search(header)
    if found is None:
        return header
    logger.info("header sent without <version> (%s)", found[1])
    return header[: found.start()] + header[found.end() :]


class _Pace:
    """Waits until an item's time stamp; the clock starts with the first imaging readout, what lies before goes at once."""

    def __init__(self, speed: float | None, tick_ms: float) -> None:
        self.seconds_a_tick = None if speed is None else 1e-3 * tick_ms / speed
        self.start: tuple[float, int] | None = None

    def wait(self, item: Item, stop: threading.Event) -> None:
        if self.seconds_a_tick is None:
            return
        readout = isinstance(item, ismrmrd.Acquisition)
        stamp = item.acquisition_time_stamp if readout else item.time_stamp
        if self.start is None:
            if readout and not item.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT):
                self.start = (time.monotonic(), stamp)
            return
        began, first = self.start
        left = began + (stamp - first) * self.seconds_a_tick - time.monotonic()
        if left > 0:
            stop.wait(left)


class _Receiver:
    """Reads to the server's CLOSE; remembers what it said."""

    def __init__(self, connection: Connection, on_image: Callable[[ismrmrd.Image], None], on_text: Callable[[str], None]) -> None:
        self.connection = connection
        self.on_image = on_image
        self.on_text = on_text
        self.began = self.ended = self.last_image = time.monotonic()
        self.series: dict[int, int] = {}
        self.provisional: list[tuple[int, float]] = []
        self.texts: list[str] = []
        self.error = ""

    def errors(self) -> Iterator[str]:
        """Receive everything; gives out every error that the server tells, as it tells it."""
        try:
            for message in self.connection.messages():
                if isinstance(message, ismrmrd.Image):
                    self.last_image = time.monotonic()
                    index = int(message.image_series_index)
                    self.series[index] = self.series.get(index, 0) + 1
                    last_readout = message.meta.get("LastReadout")
                    if last_readout is not None:
                        self.provisional.append((int(last_readout), self.last_image))
                    self.on_image(message)
                elif isinstance(message, (Text, Response, DependencyStatus)):
                    words = message.text.strip()
                    self.texts.append(words)
                    self.on_text(words)
                    if isinstance(message, Text) and is_error_text(message.text):
                        self.error = f"{self.error}\n{words}".strip()
                        yield words
                else:
                    name = type(message).__name__
                    raise ProtocolError("server", f"sent a {name}, which no client takes", "Use a server that speaks to clients.")
        except ProtocolError as error:
            self.error = self.error or str(error)
        self.ended = time.monotonic()


def _result(scan: Scan, sender: _Sender, receiver: _Receiver, unsent: bool) -> ReplayResult:
    """Put both threads' findings together."""
    images = sum(receiver.series.values())
    error = receiver.error
    if sender.fault is not None and not isinstance(sender.fault, DisconnectedError):
        if not isinstance(sender.fault, (ReconError, OSError)):
            raise sender.fault
        # What the server then says of a scan cut short is the consequence.
        error = f"{sender.fault}\n{error}".strip()
    if not error and (unsent or not sender.complete):
        error = f"the server ended the scan after {sender.readouts} of {scan.n_acquisitions} readouts without saying why"
    if not error and images == 0:
        said = f"It said: {' / '.join(receiver.texts)}" if receiver.texts else "It said nothing: look into its log"
        error = f"the server sent no image. {said}"
    return ReplayResult(
        images=images,
        series=receiver.series,
        readouts=sender.readouts,
        texts=tuple(receiver.texts),
        error=error,
        seconds=receiver.ended - receiver.began,
        latency=receiver.last_image - sender.last_readout if images else None,
        lags=tuple(at - sender.moments[number] for number, at in receiver.provisional if number < len(sender.moments)),
    )
