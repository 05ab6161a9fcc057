"""Entry of gadgetron-inr for the ``<execute>`` nodes of a Gadgetron; ``gadgetron-inr install`` copies this file into it.

Gadgetron starts ``python -m gadgetron PORT gadgetron_inr_node run``. An import that fails there reaches the client as nothing at all: the
chain ends well, without an image. This file therefore imports the package late, and tells Gadgetron when it cannot: all input is read to
its CLOSE, then ERROR is sent. It needs the standard library only.
"""

from __future__ import annotations

import logging
import socket
import struct
import sys
from typing import Any

_CLOSE, _ERROR, _ACQUISITION, _WAVEFORM = 4, 8, 1008, 1026
_TEXTS = (2, 3, 5)
_ACQUISITION_HEADER, _WAVEFORM_HEADER = 340, 40

logger = logging.getLogger("gadgetron_inr_node")


def run(connection: Any) -> None:
    """Reconstruct one scan, or tell Gadgetron why the package cannot be imported.

    Args:
        connection: ``gadgetron.external.Connection`` with configuration and header read.
    """
    try:
        from gadgets import node
    except Exception as error:  # the process's boundary: Gadgetron hears of nothing else
        words = (
            f"gadgetron-inr: {sys.executable} cannot import it ({type(error).__name__}: {error}). "
            f"Install it for this Python: {sys.executable} -m pip install gadgetron-inr."
        )
        logger.exception("%s", words)
        sock = connection.socket.socket
        _drain(sock)
        payload = words.encode()
        sock.sendall(struct.pack("<HQ", _ERROR, len(payload)) + payload)
    else:
        node.run(connection)


def _drain(sock: socket.socket) -> None:
    """Read to CLOSE, or to the end of a stream that cannot be followed further."""
    try:
        while (number := struct.unpack("<H", _read(sock, 2))[0]) != _CLOSE:
            _skip(sock, number)
    except (EOFError, OSError) as error:
        logger.error("input not read to its CLOSE: %s", error)


def _skip(sock: socket.socket, number: int) -> None:
    if number in _TEXTS:
        _read(sock, struct.unpack("<I", _read(sock, 4))[0])
    elif number == _ACQUISITION:
        head = _read(sock, _ACQUISITION_HEADER)
        samples, _, channels = struct.unpack_from("<3H", head, 34)
        (axes,) = struct.unpack_from("<H", head, 176)
        _read(sock, 4 * samples * axes + 8 * samples * channels)
    elif number == _WAVEFORM:
        samples, channels = struct.unpack_from("<HH", _read(sock, _WAVEFORM_HEADER), 28)
        _read(sock, 4 * samples * channels)
    else:
        raise EOFError(f"unknown message {number}")


def _read(sock: socket.socket, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        part = sock.recv(min(size - len(received), 1 << 20))
        if not part:
            raise EOFError("the stream ended")
        received += part
    return bytes(received)


if __name__ == "__main__":
    sys.exit("Gadgetron starts this: python -m gadgetron PORT gadgetron_inr_node run")
