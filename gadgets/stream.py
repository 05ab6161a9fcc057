"""The wire: whole messages over a socket.

A :class:`Connection` serves every side of the protocol: server, client and external node. It never trusts a length: sizes are
checked before anything is allocated, and a stream that ends inside a message is an error that says where.
"""

from __future__ import annotations

import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from xml.etree import ElementTree as ET

import ismrmrd
import numpy as np

from gadgets.wire_messages import (
    ACQUISITION_HEADER_BYTES,
    CONFIG_NAME_BYTES,
    FOREIGN_IDS,
    IMAGE_HEADER_BYTES,
    IMAGE_TYPES,
    MAX_IMAGE_BYTES,
    MAX_READOUT_BYTES,
    MAX_TEXT_BYTES,
    U16,
    U32,
    U64,
    WAVEFORM_HEADER_BYTES,
    Close,
    ConfigFile,
    ConfigScript,
    DependencyStatus,
    DisconnectedError,
    EndOfStreamError,
    ErrorMessage,
    Header,
    Message,
    MessageId,
    ProtocolError,
    Query,
    Response,
    Text,
    encode,
)

__all__ = [
    "Close",
    "ConfigFile",
    "ConfigScript",
    "Connection",
    "DependencyStatus",
    "DisconnectedError",
    "EndOfStreamError",
    "ErrorMessage",
    "Header",
    "Message",
    "MessageId",
    "ProtocolError",
    "Query",
    "Response",
    "Text",
    "encode",
    "error_text",
    "is_error_text",
]

_ERROR_TEXT = re.compile(r"\s*(\[[^\]]*\]\s*)*ERROR:")
_ENCODING = re.compile(rb"""<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]+)["']""")
_TRUNCATED = "Send the message whole; the peer stopped, or a length field before it is wrong."


def error_text(error: BaseException) -> str:
    """An error as a TEXT to a client, in the form in which Gadgetron writes its own."""
    words = str(error) or type(error).__name__
    return f"[gadgetron-inr] ERROR: {words}"


def is_error_text(text: str) -> bool:
    """Whether a TEXT from a server tells an error (ours or Gadgetron's) rather than a status."""
    return _ERROR_TEXT.match(text) is not None


class Connection:
    """Messages over a connected stream socket.

    One thread may receive while others send. The socket belongs to the caller, who closes it.

    Args:
        sock: connected, nothing of a message read from it yet.

    Attributes:
        readouts: acquisitions received so far.
        waveforms: waveforms received so far.
        images: images received so far.
        closed: the peer sent CLOSE.
        broken: no further message can be read: the stream ended, the peer left or the framing is lost.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.readouts = 0
        self.waveforms = 0
        self.images = 0
        self.closed = False
        self.broken = False
        self._sending = threading.Lock()

    def send(self, message: Message) -> None:
        """Send one message.

        Raises:
            DisconnectedError: the peer is gone.
            DataError: an array differs from its header.
        """
        payload = encode(message)
        with self._sending:
            try:
                self.socket.sendall(payload)
            except OSError as error:
                raise _gone(error) from error

    def receive(self) -> Message:
        """The next message.

        Raises:
            EndOfStreamError: the stream ended without CLOSE; inside a message it says which and how much is missing.
            ProtocolError: unknown id, absurd size or unreadable text.
            DisconnectedError: the connection was reset.
        """
        try:
            message = self._decode(U16.unpack(self._read(U16.size, "message id", first=True))[0])
        except ProtocolError:
            self.broken = True
            raise
        self.closed = self.closed or isinstance(message, Close)
        return message

    def messages(self) -> Iterator[Message]:
        """Messages up to CLOSE, which is not given out."""
        while not isinstance(message := self.receive(), Close):
            yield message

    def drain(self) -> None:
        """Read and forget up to the peer's CLOSE; at once where nothing more can be read.

        Closing earlier would reset the connection, and what was sent last would be lost with it.

        Raises:
            ProtocolError: the stream does not come to a CLOSE.
        """
        while not (self.closed or self.broken):
            self.receive()

    def linger(self, seconds: float) -> None:
        """End sending and swallow bytes until the peer closes, so that it reads our last words before a reset.

        For streams whose framing is lost: their CLOSE can no longer be found.

        Args:
            seconds: longest wait.
        """
        deadline = time.monotonic() + seconds
        scrap = bytearray(1 << 16)
        try:
            self.socket.shutdown(socket.SHUT_WR)
            while (left := deadline - time.monotonic()) > 0:
                self.socket.settimeout(left)
                if not self.socket.recv_into(scrap):
                    return
        except OSError:
            # Reset or timed out: the peer has left, or has had its time.
            return

    def _read(self, size: int, what: str, *, first: bool = False, before: int = 0, total: int | None = None) -> bytearray:
        """Exactly ``size`` bytes.

        Args:
            size: already checked against a limit.
            what: message or part of it, for the error.
            first: an end of stream before the first byte is one between messages.
            before: bytes of this message read earlier.
            total: length of the whole message.
        """
        buffer = bytearray(size)
        view = memoryview(buffer)
        done = 0
        while done < size:
            try:
                count = self.socket.recv_into(view[done:], 0, socket.MSG_WAITALL)
            except OSError as error:
                raise _gone(error) from error
            if count == 0:
                if first and done == 0:
                    raise EndOfStreamError("stream", f"ended without CLOSE after {self.readouts} readouts", "Send CLOSE (id 4) last.")
                whole = size + before if total is None else total
                have = before + done
                raise EndOfStreamError(what, f"stream ended after {have} of {whole} bytes, {whole - have} missing", _TRUNCATED)
            done += count
        return buffer

    def _decode(self, number: int) -> Message:
        if number in FOREIGN_IDS:
            cure = "Place the node where the chain hands on readouts (1008) and waveforms (1026)."
            raise ProtocolError("message id", f"{number} ({FOREIGN_IDS[number]}) is not taken here", cure)
        try:
            kind = MessageId(number)
        except ValueError as error:
            known = ", ".join(str(int(k)) for k in MessageId)
            raise ProtocolError("message id", f"unknown id {number}", f"Known: {known}. The stream may be out of step.") from error
        if kind is MessageId.ACQUISITION:
            return self._acquisition()
        if kind is MessageId.WAVEFORM:
            return self._waveform()
        if kind is MessageId.IMAGE:
            return self._image()
        if kind is MessageId.CLOSE:
            return Close()
        return self._record(kind)

    def _record(self, kind: MessageId) -> Message:
        if kind is MessageId.CONFIG_FILE:
            raw = bytes(self._read(CONFIG_NAME_BYTES, "config name"))
            return ConfigFile(_text(raw.split(b"\0", 1)[0], "config name").strip())
        if kind is MessageId.QUERY:
            reserved, correlation = (U64.unpack(self._read(U64.size, "query"))[0] for _ in range(2))
            if reserved:
                raise ProtocolError("query reserved", f"{reserved}", "Send 0.")
            return Query(self._counted(U64, "query"), correlation)
        if kind is MessageId.RESPONSE:
            correlation = U64.unpack(self._read(U64.size, "response"))[0]
            return Response(self._counted(U64, "response"), correlation)
        if kind is MessageId.ERROR:
            return ErrorMessage(self._counted(U64, "error message"))
        if kind is MessageId.DEPENDENCY_STATUS:
            return DependencyStatus(self._counted(U64, "dependency status"))
        if kind is MessageId.CONFIG_SCRIPT:
            return ConfigScript(self._counted(U32, "config script"))
        if kind is MessageId.HEADER:
            return Header(self._counted(U32, "header"))
        return Text(self._counted(U32, "text"))

    def _counted(self, count: struct.Struct, what: str) -> str:
        length = count.unpack(self._read(count.size, f"{what} length"))[0]
        _check_size(f"{what} length", length, MAX_TEXT_BYTES)
        return _text(bytes(self._read(length, what)), what)

    def _acquisition(self) -> ismrmrd.Acquisition:
        what = f"readout {self.readouts}"
        raw = self._read(ACQUISITION_HEADER_BYTES, f"header of {what}")
        head = ismrmrd.AcquisitionHeader.from_buffer_copy(raw)
        samples, channels, axes = head.number_of_samples, head.active_channels, head.trajectory_dimensions
        trajectory_bytes, data_bytes = 4 * samples * axes, 8 * samples * channels
        payload = trajectory_bytes + data_bytes
        _check_size(
            f"{what}: number_of_samples {samples} × active_channels {channels}, trajectory_dimensions {axes}",
            payload,
            MAX_READOUT_BYTES,
        )
        body = self._read(payload, what, before=len(raw), total=len(raw) + payload)
        self.readouts += 1
        trajectory = np.frombuffer(body, np.float32, samples * axes).reshape(samples, axes)
        data = np.frombuffer(body, np.complex64, samples * channels, offset=trajectory_bytes).reshape(channels, samples)
        return ismrmrd.Acquisition(head, data, trajectory)

    def _waveform(self) -> ismrmrd.Waveform:
        what = f"waveform {self.waveforms}"
        raw = self._read(WAVEFORM_HEADER_BYTES, f"header of {what}")
        head = ismrmrd.WaveformHeader.from_buffer_copy(raw)
        payload = 4 * head.number_of_samples * head.channels
        _check_size(f"{what}: number_of_samples {head.number_of_samples} × channels {head.channels}", payload, MAX_READOUT_BYTES)
        body = self._read(payload, what, before=len(raw), total=len(raw) + payload)
        self.waveforms += 1
        waveform = ismrmrd.Waveform(head)
        waveform.data[:] = np.frombuffer(body, np.uint32).reshape(waveform.data.shape)
        return waveform

    def _image(self) -> ismrmrd.Image:
        what = f"image {self.images}"
        raw = self._read(IMAGE_HEADER_BYTES, f"header of {what}")
        head = ismrmrd.ImageHeader.from_buffer_copy(raw)
        if head.data_type not in IMAGE_TYPES:
            known = ", ".join(f"{code} {dtype}" for code, dtype in IMAGE_TYPES.items())
            raise ProtocolError(f"{what}: data_type", f"{head.data_type}", f"Known: {known}.")
        length = U64.unpack(self._read(U64.size, f"attribute length of {what}"))[0]
        _check_size(f"{what}: attribute length", length, MAX_TEXT_BYTES)
        attributes = _text(bytes(self._read(length, f"attributes of {what}")), f"attributes of {what}")
        nx, ny, nz = head.matrix_size
        payload = nx * ny * nz * head.channels * IMAGE_TYPES[head.data_type].itemsize
        _check_size(f"{what}: matrix_size {nx} × {ny} × {nz} × channels {head.channels}", payload, MAX_IMAGE_BYTES)
        before = len(raw) + U64.size + length
        body = self._read(payload, what, before=before, total=before + payload)
        try:
            image = ismrmrd.Image(head, attributes)
        except (ET.ParseError, AssertionError) as error:
            raise ProtocolError(f"attributes of {what}", f"not ISMRMRD meta XML ({error})", "Send <ismrmrdMeta>, or none.") from error
        image.data[:] = np.frombuffer(body, IMAGE_TYPES[head.data_type]).reshape(image.data.shape)
        self.images += 1
        return image


def _check_size(field: str, value: int, limit: int) -> None:
    if value > limit:
        raise ProtocolError(field, f"{value} bytes", f"At most {limit} bytes are believed; the stream may be out of step.")


def _text(raw: bytes, what: str) -> str:
    """Text without trailing NULs, in the encoding that its XML declaration names, else UTF-8."""
    raw = raw.rstrip(b"\0")
    declared = _ENCODING.match(raw)
    encoding = declared[1].decode("ascii") if declared else "utf-8"
    try:
        return raw.decode("utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding)
    except (UnicodeDecodeError, LookupError) as error:
        raise ProtocolError(what, f"not {encoding} ({error})", "Send UTF-8.") from error


def _gone(error: OSError) -> DisconnectedError:
    return DisconnectedError("connection", f"lost ({error.strerror or error})", "Connect again; the peer left or the network failed.")
