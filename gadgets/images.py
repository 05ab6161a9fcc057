"""A reconstructed series becomes MRD images: pixels, geometry, indices and both Meta dialects.

Meta fields of an image (:data:`META_FIELDS` and :data:`PROVISIONAL_META_FIELDS` list those of a dynamic series):

* MRD: ``DataRole``, ``ImageComments``, ``SeriesDescriptionAdditional``, ``ImageProcessingHistory``, ``Keep_image_geometry``,
  ``ImageRowDir``, ``ImageColumnDir``, ``RescaleSlope``, ``RescaleIntercept``, ``WindowCenter``, ``WindowWidth`` (as in DICOM: of rescaled
  values), ``EchoTime`` and ``InversionTime`` in ms where the header gives them, ``FrameTime_s``; of a protocol ``FlipAngle`` (degrees) and
  ``T2PreparationTime`` (ms); of parameter maps ``ParameterName`` and ``ParameterUnit``.
* MRD, of a provisional image also: ``Provisional``, ``LastReadout`` (number of its last readout in the stream, from 0), ``FrameLag_s``
  (from that readout's arrival to the image's making), ``FramesJoined``, ``ModelVersion``, ``ModelAge_s`` and ``HeldOutError``.
* Gadgetron: ``GADGETRON_DataRole``, ``GADGETRON_ImageComment``, ``GADGETRON_SeqDescription``, ``GADGETRON_ImageProcessingHistory``,
  ``GADGETRON_WindowCenter``, ``GADGETRON_WindowWidth`` (of stored values), ``GADGETRON_ScaleRatio`` (stored value of 1), ``GADGETRON_TE``,
  ``GADGETRON_TI``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ismrmrd
import numpy as np
from numpy.typing import NDArray

from gadgets.assemble import Assembled
from gadgets.header import ScanHeader
from recon_core.problem import ImageSeries

HISTORY = "gadgetron-inr"
FIRST_SERIES = 1

META_FIELDS = (
    *("DataRole", "ImageComments", "SeriesDescriptionAdditional", "ImageProcessingHistory", "Keep_image_geometry", "ImageRowDir"),
    *("ImageColumnDir", "RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "EchoTime", "InversionTime", "FrameTime_s"),
    *("GADGETRON_DataRole", "GADGETRON_ImageComment", "GADGETRON_SeqDescription", "GADGETRON_ImageProcessingHistory"),
    *("GADGETRON_WindowCenter", "GADGETRON_WindowWidth", "GADGETRON_ScaleRatio", "GADGETRON_TE", "GADGETRON_TI"),
)

PROVISIONAL_META_FIELDS = ("Provisional", "LastReadout", "FrameLag_s", "FramesJoined", "ModelVersion", "ModelAge_s", "HeldOutError")

# Brightest stored value of the image that sets the scale: fits the signed 16 bits of many viewers.
_FULL_SCALE = 32767
_LARGEST = 65535
_HEADROOM = 4
_WINDOW_PERCENTILE = 99.5
_UINT16 = 1 << 16
_SAME_TIME = 1e-6  # s


@dataclasses.dataclass(frozen=True)
class Scale:
    """How magnitudes are stored, one for a whole image series: value = slope · stored.

    Attributes:
        slope: magnitude of one stored unit.
        window: magnitude shown as white.
    """

    slope: float
    window: float


def magnitude_scale(images: NDArray[np.complex64], more_to_come: bool, expected: float = 0.0) -> Scale:
    """The scale of a series from its first slice.

    Args:
        images: complex64 ``[frame, (z,) y, x]``.
        more_to_come: further slices or contrasts will share the scale, which then leaves room for brighter ones.
        expected: largest magnitude to expect in these, as far as known; the first may lie outside the body.
    """
    magnitude = np.abs(images)
    largest = max(float(magnitude.max()), expected)
    if largest == 0:
        return Scale(1.0, 1.0)
    top = _FULL_SCALE // _HEADROOM if more_to_come else _FULL_SCALE
    window = float(np.percentile(magnitude, _WINDOW_PERCENTILE))
    return Scale(largest / top, max(window, expected) or largest)


@dataclasses.dataclass
class Numbering:
    """Running indices of one scan's images.

    Images of another shape cannot share a series in a file, so they open one of their own; the first series of ``roles`` is 1, the next 2.
    What is no role (curves, profiles, breathing) comes after all of them.

    Attributes:
        roles: what the scan sends, in the order of the series.
    """

    roles: tuple[str, ...] = ("images", "latents")
    _series: dict[tuple[str, tuple[int, ...]], int] = dataclasses.field(default_factory=dict)
    _images: dict[int, int] = dataclasses.field(default_factory=dict)

    def next(self, role: str, shape: tuple[int, ...]) -> tuple[int, int]:
        """Series index and image index (from 1) of the next image of ``role``."""
        key = (role, shape)
        if key not in self._series:
            first = FIRST_SERIES + self.roles.index(role) if role in self.roles else None
            taken = set(self._series.values())
            new = max({*taken, FIRST_SERIES + len(self.roles) - 1}) + 1
            self._series[key] = new if first is None or first in taken else first
        series = self._series[key]
        self._images[series] = self._images.get(series, 0) + 1
        return series, self._images[series] % _UINT16


def emit(
    series: ImageSeries,
    assembled: Assembled,
    header: ScanHeader,
    numbering: Numbering,
    scale: Scale | None,
    solver: str,
    *,
    real: bool = False,
    role: str = "images",
    first: int = 0,
    extra: Mapping[str, str] | None = None,
) -> Iterator[ismrmrd.Image]:
    """Images of one slice or volume, one a frame.

    Args:
        series: what the solver made.
        assembled: the problem it was made from.
        header: the scan's header.
        numbering: the scan's running indices.
        scale: scale of uint16 magnitudes; None sends the values themselves.
        solver: its name, for the series description.
        real: without a scale, send float32 magnitudes instead of complex64.
        role: one of the numbering's.
        first: number of the first frame in its slice.
        extra: further Meta fields.
    """
    frames = series.images.numpy()
    notes = [*assembled.notes, *series.notes]
    times = series.times.numpy()
    for frame, pixels in enumerate(frames):
        head = assembled.heads[representative(assembled, frame)]
        series_index, image_index = numbering.next(role, pixels.shape)
        data = _stored(pixels, scale, real)
        fields = geometry(head, assembled.field_of_view)
        image = ismrmrd.Image.from_array(
            data,
            transpose=False,
            image_type=ismrmrd.IMTYPE_COMPLEX if np.iscomplexobj(data) else ismrmrd.IMTYPE_MAGNITUDE,
            image_series_index=series_index,
            image_index=image_index,
            **{**fields, **_counters(assembled, frame, first)},
        )
        meta = _meta(head, header, notes, solver, scale, float(times[frame]))
        meta.update(extra or {})
        image.meta = meta
        yield image


def _counters(assembled: Assembled, frame: int, first: int) -> dict[str, int]:
    """Cardiac phase where frames are gated, repetition (respiratory state, or the number of a real-time frame)."""
    repetition = first + frame if assembled.repetitions is None else int(assembled.repetitions[frame])
    phase = {} if assembled.phases is None else {"phase": int(assembled.phases[frame])}
    return {"repetition": repetition % _UINT16, **phase}


def representative(assembled: Assembled, frame: int) -> int:
    """The readout whose header a frame's image inherits: nearest the k-space centre, then nearest in time, then the earlier.

    A gated frame without a readout inherits from the nearest frame that has some.
    """
    problem = assembled.problem
    occupied = [t for t, readouts in enumerate(problem.frames) if readouts.numel()]
    readouts = problem.frames[min(occupied, key=lambda t: abs(t - frame))].numpy()
    distance = assembled.center_distance[readouts]
    # Half a cycle apart is the same line; every spoke and arm crosses the centre.
    near = readouts[distance <= distance.min() + 0.5]
    lag = np.abs(problem.readout_times.numpy()[near] - float(problem.frame_times[frame]))
    # The middle of an even number lies between two; rounding errors of their times must not choose.
    return int(near[np.argmax(lag <= lag.min() + _SAME_TIME)])


def _stored(pixels: NDArray[np.complex64], scale: Scale | None, real: bool) -> NDArray[Any]:
    if scale is None:
        return np.ascontiguousarray(np.abs(pixels) if real else pixels, dtype=np.float32 if real else np.complex64)
    return np.clip(np.rint(np.abs(pixels) / scale.slope), 0, _LARGEST).astype(np.uint16)


def clipped(series: ImageSeries, scale: Scale | None) -> int:
    """Pixels of a series that its scale cannot hold."""
    return 0 if scale is None else int((series.images.abs() / scale.slope > _LARGEST + 0.5).sum())


def geometry(head: ismrmrd.AcquisitionHeader, field_of_view: tuple[float, float, float]) -> dict[str, Any]:
    """Image header fields that are inherited from a readout."""
    fields: dict[str, Any] = {
        name: getattr(head, name)
        for name in (
            *("measurement_uid", "position", "read_dir", "phase_dir", "slice_dir", "patient_table_position"),
            *("acquisition_time_stamp", "physiology_time_stamp", "user_int", "user_float"),
        )
    }
    fields.update({name: getattr(head.idx, name) for name in ("average", "slice", "contrast", "phase", "set")})
    fields["field_of_view"] = field_of_view
    return fields


def _meta(
    head: ismrmrd.AcquisitionHeader, header: ScanHeader, notes: Sequence[str], solver: str, scale: Scale | None, time: float
) -> ismrmrd.Meta:
    meta = common_meta(notes, solver, "Image")
    meta["Keep_image_geometry"] = 1
    meta["ImageRowDir"] = [f"{value:.8f}" for value in head.read_dir]
    meta["ImageColumnDir"] = [f"{value:.8f}" for value in head.phase_dir]
    meta["FrameTime_s"] = f"{time:.9g}"
    if scale is not None:
        meta["RescaleSlope"] = f"{scale.slope:.9g}"
        meta["RescaleIntercept"] = 0
        meta["WindowCenter"] = f"{scale.window / 2:.6g}"
        meta["WindowWidth"] = f"{scale.window:.6g}"
        meta["GADGETRON_WindowCenter"] = round(scale.window / scale.slope / 2)
        meta["GADGETRON_WindowWidth"] = round(scale.window / scale.slope)
        meta["GADGETRON_ScaleRatio"] = f"{1 / scale.slope:.9g}"
    for values, name, gadgetron in (
        (header.echo_times, "EchoTime", "GADGETRON_TE"),
        (header.inversion_times, "InversionTime", "GADGETRON_TI"),
    ):
        index = head.idx.contrast if name == "EchoTime" else head.idx.set
        if values:
            # A header that lists one value means all contrasts.
            value = values[index] if index < len(values) else values[-1]
            meta[name] = meta[gadgetron] = f"{1e3 * value:g}"
    return meta


def common_meta(notes: Sequence[str], description: str, role: str) -> ismrmrd.Meta:
    """What every image's Meta has, in both dialects."""
    meta = ismrmrd.Meta()
    meta["DataRole"] = meta["GADGETRON_DataRole"] = role
    if notes:
        meta["ImageComments"] = meta["GADGETRON_ImageComment"] = "; ".join(notes)
    meta["SeriesDescriptionAdditional"] = meta["GADGETRON_SeqDescription"] = description
    meta["ImageProcessingHistory"] = meta["GADGETRON_ImageProcessingHistory"] = [HISTORY, description]
    return meta


def principal_components(latents: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Principal components of latents over time, strongest first.

    Args:
        latents: ``[frame, dimension]``.

    Returns:
        float32 ``[component, frame]``, each centred; the sign is such that the frame farthest from the mean is positive.
    """
    centred = np.asarray(latents, dtype=np.float64)
    centred = centred - centred.mean(axis=0)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    components = (left * singular).T
    farthest = np.take_along_axis(components, np.abs(components).argmax(axis=1)[:, None], axis=1)
    return (components * np.where(farthest < 0, -1.0, 1.0)).astype(np.float32)


def course_image(
    values: NDArray[np.float32], times: NDArray[np.float64], assembled: Assembled, numbering: Numbering, description: str, note: str
) -> ismrmrd.Image:
    """Courses over time as a real image, row = course or place, column = moment.

    Args:
        values: ``[row, moment]``.
        times: of the columns, s.
        assembled: whose first frame's geometry is noted.
        numbering: the scan's running indices.
        description: series description.
        note: what rows and columns are.
    """
    head = assembled.heads[representative(assembled, 0)]
    series_index, image_index = numbering.next(description, values.shape)
    fields = geometry(head, (float(values.shape[1]), float(values.shape[0]), 1.0))
    image = ismrmrd.Image.from_array(
        np.ascontiguousarray(values, dtype=np.float32),
        transpose=False,
        image_type=ismrmrd.IMTYPE_REAL,
        image_series_index=series_index,
        image_index=image_index,
        **fields,
    )
    image.meta = common_meta([note], description, "Image")
    image.meta["Keep_image_geometry"] = 0
    image.meta["FrameTimes_s"] = [f"{time:.9g}" for time in times]
    return image


def latent_image(series: ImageSeries, assembled: Assembled, numbering: Numbering, solver: str) -> ismrmrd.Image | None:
    """The learned latents of one slice as a real image, row = principal component, column = frame; None without latents."""
    if series.latents is None:
        return None
    components = principal_components(series.latents.numpy())
    times = series.times.numpy()
    power = np.square(components.astype(np.float64)).sum(axis=1)
    share = 100 * power / max(power.sum(), np.finfo(np.float64).tiny)
    note = (
        f"principal components of the {solver} latents over time: row = component, column = frame; "
        f"{len(times)} frames from {times[0]:.4g} s to {times[-1]:.4g} s; variance {', '.join(f'{s:.3g} %' for s in share)}"
    )
    return course_image(components, times, assembled, numbering, "latents", note)
