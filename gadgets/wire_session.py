"""One connection of the embedded server, from its first byte to CLOSE."""

from __future__ import annotations

import logging
import socket
import threading
import time
from contextlib import suppress

from gadgets import console
from gadgets.stream import (
    Close,
    ConfigFile,
    ConfigScript,
    Connection,
    DisconnectedError,
    EndOfStreamError,
    ErrorMessage,
    Header,
    Message,
    ProtocolError,
    Query,
    Text,
    error_text,
)
from gadgets.wire_exchange import Exchange
from gadgets.wire_requests import Application, Form, Request, dependency_status, recognise, resolve, respond
from recon_core.errors import ReconError

logger = logging.getLogger(__name__)

LINGER_SECONDS = 30.0
"""Longest wait for a peer whose stream lost its framing to read the error and close."""


class Session:
    """Serves one scan.

    Args:
        sock: accepted socket; closed by :meth:`serve`.
        application: chains, settings and stages.
        name: for the log.
        node: serve Gadgetron as the peer only, and refuse clients.
    """

    def __init__(self, sock: socket.socket, application: Application, name: str, *, node: bool = False) -> None:
        self.name = name
        self._socket = sock
        self._link = Connection(sock)
        self._application = application
        self._node_only = node
        self._to_gadgetron = node
        self._may_tell = True
        self._exchange: Exchange | None = None
        self._stopping: ReconError | None = None
        self._lock = threading.Lock()

    def serve(self) -> None:
        """Hold the conversation; every error is told to the peer and to the log."""
        start = time.monotonic()
        try:
            self._converse()
        except DisconnectedError as error:
            logger.warning("%s: %s", self.name, error)
        except ReconError as error:
            logger.error("%s: %s", self.name, error)
            self._tell(error)
        except Exception as error:  # the connection's boundary: the server must live on
            logger.exception("%s: failed", self.name)
            self._tell(error)
        finally:
            if self._exchange:
                self._exchange.close()
            self._socket.close()
            sent = self._exchange.images_sent if self._exchange else 0
            counts = (self._link.readouts, self._link.waveforms, sent)
            logger.info("%s: ended, %d readouts, %d waveforms in, %d images out, %.2f s", self.name, *counts, time.monotonic() - start)

    def stop(self, error: ReconError) -> None:
        """Ask the scan to end with this error: at its next request for readouts, report or image."""
        with self._lock:
            self._stopping = error
            if self._exchange:
                self._exchange.cancel(error)
        # Wakes a blocked read, and leaves the way out open for the error.
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)

    def abort(self) -> None:
        """Cut the connection, which also wakes a blocked write."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _converse(self) -> None:
        request = self._request()
        if request is None:
            return
        header = self._header(request)
        if header is None:
            return
        logger.info("%s: %s%s", self.name, request.form.value, f" {request.text!r}" if request.form is Form.NAME else "")
        name, properties, first = self._console()
        exchange = Exchange(self._link, self.name, first=first, tell=not self._to_gadgetron)
        with self._lock:
            exchange.start()
            self._exchange = exchange
            if self._stopping:
                exchange.cancel(self._stopping)
        chain, settings = resolve(request, self._application, name, properties)
        logger.info("%s: runs %s", self.name, chain)
        logger.debug("%s: %s", self.name, settings)
        exchange.relay(self._application.run(settings, header, exchange.items(), exchange.report))
        self._link.send(Close())

    def _request(self) -> Request | None:
        """The configuration, or None when there is none to serve (and what there was is answered)."""
        if self._closed_unused():
            logger.info("%s: closed without a message", self.name)
            return None
        message = self._next()
        if isinstance(message, Close):
            self._link.send(Close())
            return None
        if not isinstance(message, (ConfigFile, ConfigScript)):
            raise ProtocolError("first message", f"{type(message).__name__}", "Send a configuration (id 1 or 2) first.")
        request = recognise(message)
        self._to_gadgetron = self._node_only or request.from_gadgetron
        if self._node_only and not request.from_gadgetron:
            cure = "Ask a server started without --node."
            raise ProtocolError("configuration", f"a {request.form.value}; only Gadgetron is served here, as a node", cure)
        return request

    def _closed_unused(self) -> bool:
        try:
            return not self._socket.recv(1, socket.MSG_PEEK) and self._stopping is None
        except OSError:
            # A reset before the first byte: nobody is there to be told.
            return True

    def _header(self, request: Request) -> str | None:
        """The header's XML, or None for a connection without a scan (which is answered)."""
        # Behind CONFIG without HEADER may stand a client that asks for a noise dependency: a TEXT would abort it.
        self._may_tell = self._to_gadgetron
        try:
            message = self._next()
        except ProtocolError as error:
            self._may_tell = self._to_gadgetron or not isinstance(error, EndOfStreamError)
            raise
        self._may_tell = True
        if isinstance(message, Header):
            return message.text
        if isinstance(message, Close):
            if request.dependency:
                self._link.send(dependency_status())
            self._link.send(Close())
            return None
        raise ProtocolError("second message", f"{type(message).__name__}", "Send the ISMRMRD header (id 3) behind the configuration.")

    def _console(self) -> tuple[str | None, dict[str, str], Message]:
        """Chain name and properties from an MRD console's TEXT behind HEADER, and the message behind that."""
        name: str | None = None
        properties: dict[str, str] = {}
        while isinstance(message := self._next(), Text):
            if message.text.lstrip().startswith("{"):
                new_name, new_properties = console.read(message.text)
                name = new_name or name
                properties.update(new_properties)
            else:
                logger.info("%s: peer says: %s", self.name, message.text)
        return name, properties, message

    def _next(self) -> Message:
        """Next message that is not a query; queries are answered."""
        try:
            while isinstance(message := self._link.receive(), Query):
                self._link.send(respond(message))
        except ProtocolError:
            if self._stopping:
                raise self._stopping from None
            raise
        return message

    def _tell(self, error: Exception) -> None:
        """Tell the peer an error in the way that reaches it, then CLOSE.

        A client may have it at once; Gadgetron takes it only behind its own CLOSE. To either, closing before all input is read
        would reset the connection and lose the words.
        """
        if not isinstance(error, ReconError):
            error = ReconError("server", f"{type(error).__name__}: {error}", "See the server's log, and report it.")
        try:
            if self._may_tell and not self._to_gadgetron:
                self._link.send(Text(error_text(error)))
            if self._exchange:
                self._exchange.drain()
            else:
                self._drain()
            if self._to_gadgetron:
                self._link.send(ErrorMessage(str(error)))
            self._link.send(Close())
            if self._link.broken or self._stopping:
                self._link.linger(LINGER_SECONDS)
        except DisconnectedError as lost:
            logger.warning("%s: the peer left before it could be told: %s", self.name, lost)

    def _drain(self) -> None:
        try:
            self._link.drain()
        except DisconnectedError:
            raise
        except ProtocolError as error:
            logger.info("%s: input not read to its CLOSE: %s", self.name, error)
