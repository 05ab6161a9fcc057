"""Readouts in, images out at the same time: a receiver thread, a bounded queue between, and a way to stop.

The receiver reads ahead of the reconstruction as far as the queue's bytes allow; then it stops reading, and the peer's sending
stops by itself. After the peer's CLOSE it watches for a hang-up. A reconstruction is stopped where it asks for readouts, reports
or sends: Python code cannot be interrupted safely anywhere else.
"""

from __future__ import annotations

import logging
import select
import socket
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import TypeAlias

import ismrmrd

from gadgets.stream import Close, Connection, DisconnectedError, Message, ProtocolError, Query, Text
from gadgets.wire_requests import respond
from recon_core.errors import ReconError

logger = logging.getLogger(__name__)

Item: TypeAlias = ismrmrd.Acquisition | ismrmrd.Waveform

QUEUE_BYTES = 64 << 20


class _Intake:
    """Bounded queue of one receiver and one reader.

    The reader gets everything put before a failure, then the failure; a cancellation overtakes what is queued.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._items: deque[tuple[Item, int]] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._failure: ReconError | None = None
        self._cancelled: ReconError | None = None
        self._discarding = False
        self._ended = False

    def put(self, item: Item) -> None:
        """Append; waits while the queue is full. Forgets the item once the reader wants no more."""
        size = item.data.nbytes + (item.traj.nbytes if isinstance(item, ismrmrd.Acquisition) else 0)
        with self._changed:
            self._changed.wait_for(lambda: self._unwanted() or not self._items or self._bytes + size <= self._capacity)
            if self._unwanted():
                return
            self._items.append((item, size))
            self._bytes += size
            self._changed.notify_all()

    def get(self) -> Item | None:
        """Next item, None after the last or once the reader wants no more.

        Raises:
            ReconError: the failure or cancellation.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._ended or self._discarding or self._failure or self._cancelled)
            if self._cancelled:
                raise self._cancelled
            if self._items:
                item, size = self._items.popleft()
                self._bytes -= size
                self._changed.notify_all()
                return item
            if self._failure:
                raise self._failure
            return None

    def check(self, *, pending: bool) -> None:
        """Raise a cancellation; with ``pending`` also a failure before which nothing is queued any more."""
        with self._changed:
            if self._cancelled:
                raise self._cancelled
            if pending and self._failure and not self._items:
                raise self._failure

    def fail(self, error: ReconError) -> None:
        """Let the reader meet this error behind what is queued; the first one counts."""
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()

    def cancel(self, error: ReconError) -> None:
        """Stop the reader at once, and forget what is queued; the first cancellation counts."""
        with self._changed:
            self._cancelled = self._cancelled or error
            self._forget()

    def end(self) -> None:
        """Nothing more will be put."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def discard(self) -> None:
        """The reader wants no more: forget what is queued and what is put."""
        with self._changed:
            self._discarding = True
            self._forget()

    def wait_end(self) -> None:
        """Wait until nothing more is put, or the reader is cancelled."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._cancelled)

    def _unwanted(self) -> bool:
        return self._discarding or self._failure is not None or self._cancelled is not None

    def _forget(self) -> None:
        self._items.clear()
        self._bytes = 0
        self._changed.notify_all()


class Exchange:
    """One scan's traffic behind HEADER. Start and close it, or use it as a context manager: no thread is left behind.

    Args:
        connection: HEADER is read, of the rest at most ``first``.
        name: for the log and the receiver's thread.
        first: the message behind HEADER, when it was already read.
        tell: status lines may go to the peer as TEXT (a client), else to the log only (Gadgetron as the peer).
        queue_bytes: how far to read ahead.
    """

    def __init__(
        self,
        connection: Connection,
        name: str,
        *,
        first: Message | None = None,
        tell: bool,
        queue_bytes: int = QUEUE_BYTES,
    ) -> None:
        self.connection = connection
        self.images_sent = 0
        self._name = name
        self._tell = tell
        self._first = first
        self._intake = _Intake(queue_bytes)
        self._wake, self._woken = socket.socketpair()
        self._receiver = threading.Thread(target=self._receive, name=f"{name} receiver", daemon=True)

    def __enter__(self) -> Exchange:
        """Start."""
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close."""
        self.close()

    def start(self) -> None:
        """Start receiving."""
        self._receiver.start()

    def close(self) -> None:
        """Stop receiving and join the receiver."""
        self._intake.discard()
        if not (self.connection.closed or self.connection.broken):
            # Left without a drain: the peer is gone or the server stops. Only this wakes a blocked read.
            with suppress(OSError):
                self.connection.socket.shutdown(socket.SHUT_RD)
        self._wake.close()
        self._receiver.join()
        self._woken.close()

    def items(self) -> Iterator[Item]:
        """Readouts and waveforms in the order received, to the peer's CLOSE.

        Raises:
            ProtocolError: the stream is cut or cannot be read; raised behind what came before.
            ReconError: the scan was cancelled.
        """
        while (item := self._intake.get()) is not None:
            yield item

    def send(self, message: Message) -> None:
        """Send to the peer.

        Raises:
            DisconnectedError: the peer is gone.
            ReconError: the scan was cancelled.
        """
        self._intake.check(pending=False)
        self.connection.send(message)
        if isinstance(message, ismrmrd.Image):
            self.images_sent += 1

    def report(self, line: str) -> None:
        """Log a status line, and tell it to a client.

        Raises:
            ReconError: the scan was cancelled, or its stream is broken and nothing received before is left.
        """
        logger.info("%s: %s", self._name, line)
        self._intake.check(pending=True)
        if self._tell:
            self.connection.send(Text(line))

    def cancel(self, error: ReconError) -> None:
        """Stop the reconstruction at its next request, report or image, with this error."""
        self._intake.cancel(error)

    def relay(self, images: Iterator[ismrmrd.Image]) -> None:
        """Send images as they are made, forget the input that they did not ask for, and end their maker in any case.

        Raises:
            ReconError: what the maker raises, or the peer is gone, or the scan was cancelled.
        """
        try:
            for image in images:
                self.send(image)
        finally:
            # A maker that reads in a thread of its own ends it when it is closed: nothing may hold that thread up.
            self._intake.discard()
            close = getattr(images, "close", None)
            if close is not None:
                close()
        self.drain()
        self._intake.check(pending=False)

    def drain(self) -> None:
        """Forget all input up to the peer's CLOSE (or the end of a broken stream, or a cancellation)."""
        self._intake.discard()
        self._intake.wait_end()

    def _receive(self) -> None:
        try:
            if self._first is not None:
                self._take(self._first)
                self._first = None
            while not self.connection.closed:
                self._take(self.connection.receive())
        except DisconnectedError as error:
            self._intake.cancel(error)
        except ProtocolError as error:
            self._intake.fail(error)
        except Exception as error:  # the thread's boundary: the reader must not take this for the end of the scan
            logger.exception("%s: receiver failed", self._name)
            self.connection.broken = True
            self._intake.fail(ReconError("receiver", f"{type(error).__name__}: {error}", "See the server's log, and report it."))
        finally:
            self._intake.end()
        self._watch()

    def _take(self, message: Message) -> None:
        if isinstance(message, (ismrmrd.Acquisition, ismrmrd.Waveform)):
            self._intake.put(message)
        elif isinstance(message, Query):
            self.connection.send(respond(message))
        elif isinstance(message, Text):
            logger.info("%s: peer says: %s", self._name, message.text)
        elif not isinstance(message, Close):
            kind = type(message).__name__
            self._intake.fail(
                ProtocolError("message", f"{kind} after {self.connection.readouts} readouts", "Send readouts and waveforms, then CLOSE.")
            )

    def _watch(self) -> None:
        """Wait for the exchange's end, and cancel if the peer hangs up before.

        A peer that only ended its sending may still read; a hang-up shows as POLLHUP once both directions are down.
        """
        poller = select.poll()
        poller.register(self._woken, select.POLLIN)
        try:
            poller.register(self.connection.socket, 0)
        except (OSError, ValueError):
            logger.debug("%s: socket closed before its exchange ended", self._name)
            return
        ready = [number for number, _ in poller.poll()]
        if self._woken.fileno() not in ready:
            self._intake.cancel(DisconnectedError("connection", "the peer hung up", "Keep the connection open to the server's CLOSE."))
