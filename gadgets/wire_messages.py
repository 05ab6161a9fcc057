"""Messages of the Gadgetron protocol, and the bytes they are sent as.

Everything is little-endian. A message is a u16 id and a payload whose form depends on the id. Readouts, images and waveforms
are the classes of ``ismrmrd``; what else travels is a small frozen record of this module.
"""

from __future__ import annotations

import ctypes
import dataclasses
import enum
import struct
from typing import TypeAlias

import ismrmrd
import numpy as np

from recon_core.errors import DataError


class MessageId(enum.IntEnum):
    """Ids of the messages that are read and written here."""

    CONFIG_FILE = 1
    CONFIG_SCRIPT = 2
    HEADER = 3
    CLOSE = 4
    TEXT = 5
    QUERY = 6
    RESPONSE = 7
    ERROR = 8
    ACQUISITION = 1008
    DEPENDENCY_STATUS = 1019
    IMAGE = 1022
    WAVEFORM = 1026


FOREIGN_IDS = {1018: "DICOM", 1023: "recon data", 1024: "an image array", 1050: "an acquisition bucket"}
"""Messages that travel between gadgets of a Gadgetron chain and have no place on this link."""

CONFIG_NAME_BYTES = 1024
MAX_TEXT_BYTES = 64 << 20
"""Longest configuration, header, text or attribute string that is believed."""
MAX_READOUT_BYTES = 256 << 20
"""Largest readout or waveform: 65535 complex samples of 512 channels."""
MAX_IMAGE_BYTES = 2 << 30
"""Largest image: 512 × 512 × 1024 complex64 voxels."""

U16, U32, U64 = struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<Q")

IMAGE_TYPES: dict[int, np.dtype] = {
    1: np.dtype(np.uint16),
    2: np.dtype(np.int16),
    3: np.dtype(np.uint32),
    5: np.dtype(np.float32),
    6: np.dtype(np.float64),
    7: np.dtype(np.complex64),
    8: np.dtype(np.complex128),
}
"""Pixel type of ``data_type``. 4 (int32) is left out: ``ismrmrd`` takes it for int64 and misreads the stream."""


class ProtocolError(DataError):
    """The peer's bytes do not follow the protocol."""


class EndOfStreamError(ProtocolError):
    """The peer stopped sending without CLOSE."""


class DisconnectedError(ProtocolError):
    """The peer is gone: nothing can be sent to it any more."""


@dataclasses.dataclass(frozen=True)
class ConfigFile:
    """Name of a chain that the server knows (id 1)."""

    name: str


@dataclasses.dataclass(frozen=True)
class ConfigScript:
    """A chain's XML, a node's ``<configuration>``, or an MRD client's module name (id 2)."""

    text: str


@dataclasses.dataclass(frozen=True)
class Header:
    """The ISMRMRD header as XML (id 3)."""

    text: str


@dataclasses.dataclass(frozen=True)
class Text:
    """A line for the user, or parameters of an MRD console as JSON (id 5)."""

    text: str


@dataclasses.dataclass(frozen=True)
class Query:
    """A question to the server (id 6)."""

    text: str
    correlation: int = 0


@dataclasses.dataclass(frozen=True)
class Response:
    """The answer to a query of that correlation id (id 7)."""

    text: str
    correlation: int = 0


@dataclasses.dataclass(frozen=True)
class ErrorMessage:
    """What went wrong, from an external node to Gadgetron only (id 8)."""

    text: str


@dataclasses.dataclass(frozen=True)
class DependencyStatus:
    """Whether a noise measurement is known to the server, as ISMRMRD meta XML (id 1019)."""

    text: str


@dataclasses.dataclass(frozen=True)
class Close:
    """Nothing more follows (id 4)."""


Message: TypeAlias = (
    ConfigFile
    | ConfigScript
    | Header
    | Text
    | Query
    | Response
    | ErrorMessage
    | DependencyStatus
    | Close
    | ismrmrd.Acquisition
    | ismrmrd.Image
    | ismrmrd.Waveform
)

_SHORT_TEXT: dict[type, MessageId] = {ConfigScript: MessageId.CONFIG_SCRIPT, Header: MessageId.HEADER, Text: MessageId.TEXT}
_LONG_TEXT: dict[type, MessageId] = {ErrorMessage: MessageId.ERROR, DependencyStatus: MessageId.DEPENDENCY_STATUS}


def encode(message: Message) -> bytes:
    """A message as it goes over the wire, id included.

    Raises:
        DataError: an array has another type or shape than its header announces, or a text is too long.
    """
    if isinstance(message, (ConfigScript, Header, Text)):
        return U16.pack(_SHORT_TEXT[type(message)]) + _counted(message.text, U32)
    if isinstance(message, (ErrorMessage, DependencyStatus)):
        return U16.pack(_LONG_TEXT[type(message)]) + _counted(message.text, U64)
    if isinstance(message, ismrmrd.Acquisition):
        return U16.pack(MessageId.ACQUISITION) + _acquisition(message)
    if isinstance(message, ismrmrd.Image):
        return U16.pack(MessageId.IMAGE) + _image(message)
    if isinstance(message, ismrmrd.Waveform):
        return U16.pack(MessageId.WAVEFORM) + _waveform(message)
    if isinstance(message, Close):
        return U16.pack(MessageId.CLOSE)
    if isinstance(message, Query):
        return U16.pack(MessageId.QUERY) + U64.pack(0) + U64.pack(message.correlation) + _counted(message.text, U64)
    if isinstance(message, Response):
        return U16.pack(MessageId.RESPONSE) + U64.pack(message.correlation) + _counted(message.text, U64)
    if isinstance(message, ConfigFile):
        return U16.pack(MessageId.CONFIG_FILE) + _config_name(message.name)
    raise DataError(
        "message", f"{type(message).__name__} cannot be sent", "Send readouts, waveforms, images or a record of gadgets.wire_messages."
    )


def _counted(text: str, count: struct.Struct) -> bytes:
    payload = text.encode()
    return count.pack(len(payload)) + payload


def _config_name(name: str) -> bytes:
    payload = name.encode()
    if len(payload) >= CONFIG_NAME_BYTES or b"\0" in payload:
        raise DataError("config name", f"{len(payload)} bytes", f"Give a name of at most {CONFIG_NAME_BYTES - 1} bytes without NUL.")
    return payload.ljust(CONFIG_NAME_BYTES, b"\0")


def _acquisition(readout: ismrmrd.Acquisition) -> bytes:
    head = readout.getHead()
    samples, trajectory = readout.data, readout.traj
    _expect("acquisition data", samples, (head.active_channels, head.number_of_samples), np.complex64)
    _expect("acquisition traj", trajectory, (head.number_of_samples, head.trajectory_dimensions), np.float32)
    return bytes(head) + trajectory.tobytes() + samples.tobytes()


def _waveform(waveform: ismrmrd.Waveform) -> bytes:
    head = waveform.getHead()
    _expect("waveform data", waveform.data, (head.channels, head.number_of_samples), np.uint32)
    return bytes(head) + waveform.data.tobytes()


def _image(image: ismrmrd.Image) -> bytes:
    head = image.getHead()
    pixels = image.data
    if head.data_type not in IMAGE_TYPES:
        raise DataError("image data_type", f"{head.data_type}", "Send uint16, float32 or complex64 pixels.")
    nx, ny, nz = head.matrix_size
    _expect("image data", pixels, (head.channels, nz, ny, nx), IMAGE_TYPES[head.data_type])
    attributes = image.attribute_string.encode()
    if attributes:
        # Gadgetron's own writer ends the string with a NUL and counts it; C readers rely on it.
        attributes += b"\0"
    head.attribute_string_len = len(attributes)
    return bytes(head) + U64.pack(len(attributes)) + attributes + pixels.tobytes()


def _expect(field: str, array: np.ndarray, shape: tuple[int, ...], dtype: np.dtype | type) -> None:
    if array.dtype != dtype or array.shape != tuple(shape):
        raise DataError(field, f"{array.dtype} {array.shape}", f"Give {np.dtype(dtype)} of shape {tuple(shape)}, as the header says.")


ACQUISITION_HEADER_BYTES = ctypes.sizeof(ismrmrd.AcquisitionHeader)
IMAGE_HEADER_BYTES = ctypes.sizeof(ismrmrd.ImageHeader)
WAVEFORM_HEADER_BYTES = ctypes.sizeof(ismrmrd.WaveformHeader)
