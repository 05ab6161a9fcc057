"""The ISMRMRD XML header as a small frozen record.

Only what a reconstruction needs is read, element by element, and nothing about the patient. The schema classes of the ``ismrmrd``
package are not used: they differ between 1.14 and 1.15, refuse elements of newer schemas, and do not say which element is at fault.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import TypeVar
from xml.etree import ElementTree as ET

from recon_core.errors import DataError

NAMESPACE = "http://www.ismrm.org/ISMRMRD"
TRAJECTORIES = ("cartesian", "epi", "radial", "goldenangle", "spiral", "other")

_DECLARATION = re.compile(r"^\ufeff?\s*<\?xml[^>]*\?>")
_AXES = ("x", "y", "z")
_LIMITS = ("kspace_encoding_step_0", "kspace_encoding_step_1", "kspace_encoding_step_2")

N = TypeVar("N", int, float)


@dataclasses.dataclass(frozen=True)
class Space:
    """Encoded or reconstructed space, axes in the order (x, y, z) of the header.

    Attributes:
        matrix: pixels.
        field_of_view: mm.
    """

    matrix: tuple[int, int, int]
    field_of_view: tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Limit:
    """Range of an encoding counter; ``center`` is the step of k = 0."""

    minimum: int
    maximum: int
    center: int


@dataclasses.dataclass(frozen=True)
class TrajectoryDescription:
    """Parameters from which a trajectory can be computed, by name."""

    identifier: str
    longs: Mapping[str, int]
    doubles: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Encoding:
    """One encoding space of the scan.

    Attributes:
        index: place in the header; readouts refer to it by ``encoding_space_ref``.
        encoded: the space that was encoded, readout oversampling included.
        recon: the space that is to be reconstructed.
        trajectory: one of :data:`TRAJECTORIES`.
        limits: ranges of ``kspace_encoding_step_0 … 2``, where given.
        description: trajectory description, where given.
    """

    index: int
    encoded: Space
    recon: Space
    trajectory: str
    limits: Mapping[str, Limit]
    description: TrajectoryDescription | None = None

    @property
    def is_cartesian(self) -> bool:
        """Lines placed by encoding steps, not by a trajectory."""
        return self.trajectory in ("cartesian", "epi")


@dataclasses.dataclass(frozen=True)
class ScanHeader:
    """What the reconstruction reads of the header.

    Attributes:
        encodings: encoding spaces, at least one.
        channels: receiver channels announced, None if the header does not say.
        frequency: hydrogen resonance frequency in Hz, None if not given or 0.
        repetition_time: TR in seconds, None if not given.
        echo_times: TE in seconds, one a contrast, possibly empty.
        inversion_times: TI in seconds, possibly empty.
        flip_angles: radians, possibly empty.
        user_doubles: user parameters that are floating-point numbers, by name.
        noise_bandwidth: relative receiver noise bandwidth, 1 if not given.
        protocol: protocol name, possibly empty.
    """

    encodings: tuple[Encoding, ...]
    channels: int | None = None
    frequency: float | None = None
    repetition_time: float | None = None
    echo_times: tuple[float, ...] = ()
    inversion_times: tuple[float, ...] = ()
    flip_angles: tuple[float, ...] = ()
    user_doubles: Mapping[str, float] = dataclasses.field(default_factory=dict)
    noise_bandwidth: float = 1.0
    protocol: str = ""

    def encoding(self, reference: int) -> Encoding:
        """The encoding space with index ``reference``.

        Raises:
            DataError: the header has no such space.
        """
        if not 0 <= reference < len(self.encodings):
            raise DataError(
                "encoding_space_ref",
                f"{reference} with {len(self.encodings)} encoding space(s) in the header",
                "Send readouts that refer to an encoding of the header.",
            )
        return self.encodings[reference]


def parse(text: str) -> ScanHeader:
    """Read an ISMRMRD header.

    Args:
        text: the XML; a trailing NUL, as MRD clients append, is allowed.

    Raises:
        DataError: not XML, not an ISMRMRD header, no encoding, or a value that cannot be used; names the element.
    """
    # A declared encoding no longer holds for decoded text, and would make the parser fail on it.
    plain = _DECLARATION.sub("", text.rstrip("\0 \r\n\t"))
    cure = "Send the ISMRMRD XML header of the scan (schema: ismrmrd.xsd)."
    try:
        root = ET.fromstring(plain)
    except ET.ParseError as error:
        raise DataError("header", f"not XML ({error}); it begins with {plain[:40]!r}", cure) from error
    if _local(root.tag) != "ismrmrdHeader":
        raise DataError("header", f"the root element is {_local(root.tag)!r}, not 'ismrmrdHeader'", cure)
    encodings = tuple(_encoding(node, index) for index, node in enumerate(_children(root, "encoding")))
    if not encodings:
        raise DataError("header", "it has no encoding", "Add an <encoding> with encodedSpace, reconSpace and trajectory.")
    system = _child(root, "acquisitionSystemInformation")
    sequence = _child(root, "sequenceParameters")
    user = _child(root, "userParameters")
    frequency = _optional(_child(root, "experimentalConditions"), "H1resonanceFrequency_Hz", float, "experimentalConditions")
    bandwidth = _optional(system, "relativeReceiverNoiseBandwidth", float, "acquisitionSystemInformation")
    repetition_times = _milliseconds(sequence, "TR")
    measurement = _child(root, "measurementInformation")
    protocol = _child(measurement, "protocolName") if measurement is not None else None
    return ScanHeader(
        encodings=encodings,
        channels=_channels(system),
        frequency=frequency or None,
        repetition_time=repetition_times[0] if repetition_times and repetition_times[0] > 0 else None,
        echo_times=_milliseconds(sequence, "TE"),
        inversion_times=_milliseconds(sequence, "TI"),
        flip_angles=tuple(math.radians(a) for a in _listed(sequence, "flipAngle_deg")),
        user_doubles={} if user is None else dict(_parameters(user, "userParameterDouble", float, "userParameters")),
        noise_bandwidth=bandwidth if bandwidth is not None and bandwidth > 0 else 1.0,
        protocol=(protocol.text or "").strip() if protocol is not None else "",
    )


def _channels(system: ET.Element | None) -> int | None:
    channels = _optional(system, "receiverChannels", int, "acquisitionSystemInformation")
    if channels is not None and channels < 1:
        raise DataError(
            "acquisitionSystemInformation.receiverChannels", f"{channels}", "Give the number of receiver channels, or leave it out."
        )
    return channels


def _encoding(node: ET.Element, index: int) -> Encoding:
    name = f"encoding[{index}]"
    trajectory_node = _child(node, "trajectory")
    trajectory = (trajectory_node.text or "").strip().lower() if trajectory_node is not None else ""
    if trajectory not in TRAJECTORIES:
        raise DataError(f"{name}.trajectory", f"{trajectory!r}", f"Give one of: {', '.join(TRAJECTORIES)}.")
    limits_node = _child(node, "encodingLimits")
    description = _child(node, "trajectoryDescription")
    return Encoding(
        index=index,
        encoded=_space(node, "encodedSpace", name),
        recon=_space(node, "reconSpace", name),
        trajectory=trajectory,
        limits={} if limits_node is None else dict(_limits(limits_node, f"{name}.encodingLimits")),
        description=None if description is None else _description(description, f"{name}.trajectoryDescription"),
    )


def _space(encoding: ET.Element, kind: str, name: str) -> Space:
    node = _required(encoding, kind, name)
    name = f"{name}.{kind}"
    matrix_node = _required(node, "matrixSize", name)
    view_node = _required(node, "fieldOfView_mm", name)
    matrix = tuple(_value(matrix_node, axis, int, f"{name}.matrixSize") for axis in _AXES)
    view = tuple(_value(view_node, axis, float, f"{name}.fieldOfView_mm") for axis in _AXES)
    for axis, pixels, length in zip(_AXES, matrix, view, strict=True):
        if pixels < 1:
            raise DataError(f"{name}.matrixSize.{axis}", f"{pixels}", "Give at least 1 pixel.")
        # The thickness of a single slice does not enter the reconstruction.
        if length <= 0 and not (axis == "z" and pixels == 1 and length == 0):
            raise DataError(f"{name}.fieldOfView_mm.{axis}", f"{length}", "Give a length above 0 mm.")
    return Space((matrix[0], matrix[1], matrix[2]), (view[0], view[1], view[2]))


def _limits(node: ET.Element, name: str) -> Iterator[tuple[str, Limit]]:
    for kind in _LIMITS:
        child = _child(node, kind)
        if child is not None:
            yield kind, Limit(*(_value(child, part, int, f"{name}.{kind}") for part in ("minimum", "maximum", "center")))


def _description(node: ET.Element, name: str) -> TrajectoryDescription:
    identifier = _child(node, "identifier")
    return TrajectoryDescription(
        identifier=(identifier.text or "").strip() if identifier is not None else "",
        longs=dict(_parameters(node, "userParameterLong", int, name)),
        doubles=dict(_parameters(node, "userParameterDouble", float, name)),
    )


def _parameters(node: ET.Element, kind: str, number: type[N], name: str) -> Iterator[tuple[str, N]]:
    for child in _children(node, kind):
        key = _child(child, "name")
        label = (key.text or "").strip() if key is not None else ""
        yield label, _value(child, "value", number, f"{name}.{label}")


def _listed(node: ET.Element | None, kind: str) -> tuple[float, ...]:
    if node is None:
        return ()
    return tuple(_number(f"sequenceParameters.{kind}", child.text, float) for child in _children(node, kind))


def _milliseconds(node: ET.Element | None, kind: str) -> tuple[float, ...]:
    return tuple(value / 1000 for value in _listed(node, kind))


def _optional(node: ET.Element | None, kind: str, number: type[N], name: str) -> N | None:
    child = None if node is None else _child(node, kind)
    return None if child is None else _number(f"{name}.{kind}", child.text, number)


def _value(node: ET.Element, kind: str, number: type[N], name: str) -> N:
    return _number(f"{name}.{kind}", _required(node, kind, name).text, number)


def _number(field: str, text: str | None, number: type[N]) -> N:
    try:
        value = number((text or "").strip())
    except ValueError as error:
        raise DataError(field, f"{text!r} is not a number", "Give a number.") from error
    if not math.isfinite(value):
        raise DataError(field, f"{value}", "Give a finite number.")
    return value


def _required(node: ET.Element, kind: str, name: str) -> ET.Element:
    child = _child(node, kind)
    if child is None:
        raise DataError(f"{name}.{kind}", "it is missing", f"Add <{kind}> to the header.")
    return child


def _child(node: ET.Element, kind: str) -> ET.Element | None:
    return next(_children(node, kind), None)


def _children(node: ET.Element, kind: str) -> Iterator[ET.Element]:
    # By local name: old converters write the header without, or with another, namespace.
    return (child for child in node if _local(child.tag) == kind)


def _local(tag: object) -> str:
    return tag.rsplit("}", 1)[-1] if isinstance(tag, str) else ""
