"""The embedded server: Gadgetron's protocol for clients, for Gadgetron itself and for MRD consoles, many scans at once."""

from __future__ import annotations

import gc
import itertools
import logging
import selectors
import signal
import socket
import threading
import time
from types import FrameType, TracebackType
from typing import Any

from gadgets.wire_requests import Application, default_application
from gadgets.wire_session import Session
from recon_core.errors import ReconError

logger = logging.getLogger(__name__)

DEFAULT_PORT = 9002
STOP_SECONDS = 5.0
RETRY_SECONDS = 0.5


class Server:
    """Listens and serves every connection in a thread of its own.

    Args:
        host: address to listen at; loopback unless others must reach it, for the protocol knows no password.
        port: 0 takes a free one, see :attr:`port`.
        application: chains, settings and stages; the package's own when None.
        node: serve Gadgetron as the peer only, and refuse clients.

    Raises:
        ReconError: the address cannot be listened at.
    """

    def __init__(
        self, host: str = "127.0.0.1", port: int = DEFAULT_PORT, *, application: Application | None = None, node: bool = False
    ) -> None:
        self._application = application or default_application()
        self._node = node
        self._sessions: dict[Session, threading.Thread] = {}
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            self._listener = socket.create_server((host, port), family=family, backlog=64)
        except OSError as error:
            raise ReconError(
                "port", f"cannot listen at {host}:{port} ({error.strerror or error})", "Choose another --host or --port."
            ) from error
        # A connection can vanish between the selector's word and accept, which must not block then.
        self._listener.setblocking(False)
        self._wake, self._woken = socket.socketpair()

    @property
    def host(self) -> str:
        """Address listened at."""
        return str(self._listener.getsockname()[0])

    @property
    def port(self) -> int:
        """Port listened at."""
        return int(self._listener.getsockname()[1])

    @property
    def scans(self) -> int:
        """Connections being served."""
        with self._lock:
            return len(self._sessions)

    def __enter__(self) -> Server:
        """Start."""
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop."""
        self.stop()

    def start(self) -> None:
        """Accept connections from now on, in a thread."""
        self._thread = threading.Thread(target=self._accept, name="gadgetron-inr listener", daemon=True)
        self._thread.start()
        logger.info("listening at %s:%d%s", self.host, self.port, ", as a node of Gadgetron only" if self._node else "")

    def stop(self, seconds: float = STOP_SECONDS) -> bool:
        """Accept no more, tell running scans, and wait for their threads.

        Args:
            seconds: longest wait for scans to end by themselves, and again after their connections were cut.

        Returns:
            Whether all scans ended. One that does not is inside a computation; its thread ends with it, or with the process.
        """
        self._stopping.set()
        self._wake.close()
        if self._thread:
            self._thread.join()
            self._thread = None
        self._listener.close()
        self._woken.close()
        error = ReconError("server", "stops", "Send the scan again when the server is back.")
        for session in self._running():
            session.stop(error)
        if not self._join(seconds):
            for session in self._running():
                session.abort()
            self._join(seconds)
        left = self._running()
        for session in left:
            logger.warning("%s: still computing", session.name)
        return not left

    def _accept(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while not self._stopping.is_set():
                selector.select()
                if self._stopping.is_set():
                    return
                try:
                    self._handle(*self._listener.accept())
                except BlockingIOError:
                    continue
                except (OSError, RuntimeError) as error:
                    # Out of files or threads: the connection stays in the queue, so look again only after a while.
                    logger.error("connection cannot be taken: %s", error)
                    self._stopping.wait(RETRY_SECONDS)

    def _handle(self, sock: socket.socket, address: Any) -> None:
        """Serve an accepted connection in a thread of its own."""
        try:
            _set_up(sock)
            session = Session(sock, self._application, f"scan {next(self._numbers)}", node=self._node)
            thread = threading.Thread(target=self._serve, args=(session,), name=session.name, daemon=True)
            logger.info("%s: from %s:%s", session.name, address[0], address[1])
            with self._lock:
                thread.start()
                self._sessions[session] = thread
        except BaseException:
            sock.close()
            raise

    def _serve(self, session: Session) -> None:
        try:
            session.serve()
        finally:
            # Frames of errors hold readouts in cycles: nothing of this scan stays for the next.
            gc.collect()
            with self._lock:
                del self._sessions[session]

    def _running(self) -> list[Session]:
        with self._lock:
            return list(self._sessions)

    def _join(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        with self._lock:
            threads = list(self._sessions.values())
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)


def _set_up(sock: socket.socket) -> None:
    """Send small messages at once, and notice a peer whose cable was pulled: it sends nothing at all."""
    sock.setblocking(True)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # Probe after a minute of silence, give up three minutes later.
    for option, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 30), ("TCP_KEEPCNT", 6)):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def serve(host: str = "127.0.0.1", port: int = DEFAULT_PORT, *, application: Application | None = None, node: bool = False) -> int:
    """Serve until SIGTERM or SIGINT.

    Args:
        host: address to listen at.
        port: 0 takes a free one and logs it.
        application: chains, settings and stages; the package's own when None.
        node: serve Gadgetron as the peer only.

    Returns:
        Exit status: 0 when all scans ended in time.

    Raises:
        ReconError: the address cannot be listened at.
    """
    asked = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        asked.set()

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server = Server(host, port, application=application, node=node)
        server.start()
        asked.wait()
        logger.info("stopping")
        return 0 if server.stop() else 1
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
