"""Parameter maps become MRD images: unit, exact scaling and windowing in both Meta dialects.

Times leave in ms, rates in 1/s, off-resonance in Hz, phase in rad. A float32 map holds the value itself. A uint16 map holds
``value = RescaleSlope · stored + RescaleIntercept`` to half a step; the intercept is not zero where values of both signs occur.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import ismrmrd
import numpy as np
from numpy.typing import NDArray

from gadgets.assemble import Assembled
from gadgets.header import ScanHeader
from gadgets.images import Numbering, Scale, common_meta, emit, geometry, representative
from recon_core.problem import ImageSeries
from recon_core.signal_models import ParameterMap, Protocol

_LARGEST = 65535
_PERCENTILE = 98.0


@dataclasses.dataclass(frozen=True)
class MapScale:
    """Stored value to physical value, and what a viewer should show.

    Attributes:
        slope: of a stored unit.
        intercept: physical value of stored 0.
        centre: of the window, physical.
        width: of the window, physical.
    """

    slope: float
    intercept: float
    centre: float
    width: float


def physical(found: ParameterMap) -> tuple[NDArray[np.float32], str]:
    """Values float32 ``[(z,) y, x]`` in the unit they leave in, and that unit."""
    values = found.values.numpy()
    return (values * np.float32(1000), "ms") if found.unit == "s" else (values, found.unit)


def map_scale(values: NDArray[np.float32], found: ParameterMap) -> MapScale:
    """Scaling and window of a map; voxels that read 0 were not fitted and do not count for the window."""
    fitted = values[values != 0]
    if fitted.size == 0:
        return MapScale(1.0, 0.0, 0.5, 1.0)
    if not found.signed:
        largest, white = float(values.max()), float(np.percentile(fitted, _PERCENTILE))
        return MapScale(_written(largest / _LARGEST), 0.0, white / 2, white)
    if found.name == "phase":
        low, high = -math.pi, math.pi
        dark, white = low, high
    else:
        low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
        dark, white = (float(np.percentile(fitted, q)) for q in (100 - _PERCENTILE, _PERCENTILE))
    width = max(white - dark, 1e-6 * (high - low))
    return MapScale(_written((high - low) / _LARGEST), _written(low), (dark + white) / 2, width)


def _written(value: float) -> float:
    """A number as the Meta holds it: pixels are scaled by what a reader will read."""
    return float(f"{value:.9g}")


def stored(values: NDArray[np.float32], scale: MapScale) -> NDArray[np.uint16]:
    """Values as uint16."""
    return np.clip(np.rint((values.astype(np.float64) - scale.intercept) / scale.slope), 0, _LARGEST).astype(np.uint16)


def map_images(
    series: ImageSeries, assembled: Assembled, numbering: Numbering, solver: str, map_type: str = "both"
) -> Iterator[ismrmrd.Image]:
    """Every map of one slice or volume, a series of its own for each map and type.

    Args:
        series: with its maps.
        assembled: the problem it was made from.
        numbering: the scan's running indices.
        solver: its name.
        map_type: one of :data:`gadgets.settings.MAP_TYPES`.
    """
    head = assembled.heads[representative(assembled, 0)]
    notes = [*assembled.notes, *series.notes]
    for found in series.maps:
        values, unit = physical(found)
        scale = map_scale(values, found)
        for kind in ("uint16", "float32") if map_type == "both" else (map_type,):
            whole = kind == "uint16"
            data = stored(values, scale) if whole else np.ascontiguousarray(values)
            series_index, image_index = numbering.next(f"{found.name} {kind}", data.shape)
            image = ismrmrd.Image.from_array(
                data,
                transpose=False,
                image_type=ismrmrd.IMTYPE_MAGNITUDE if whole else ismrmrd.IMTYPE_REAL,
                image_series_index=series_index,
                image_index=image_index,
                **{**geometry(head, assembled.field_of_view), "contrast": 0, "set": 0},
            )
            meta = common_meta(notes, f"{found.name} map, {solver}", "Quantitative")
            meta["Keep_image_geometry"] = 1
            meta["ImageRowDir"] = [f"{value:.8f}" for value in head.read_dir]
            meta["ImageColumnDir"] = [f"{value:.8f}" for value in head.phase_dir]
            meta["ParameterName"] = found.name
            meta["ParameterUnit"] = unit or "1"
            slope, intercept = (scale.slope, scale.intercept) if whole else (1.0, 0.0)
            meta["RescaleSlope"] = f"{slope:.9g}"
            meta["RescaleIntercept"] = f"{intercept:.9g}"
            meta["WindowCenter"] = f"{scale.centre:.6g}"
            meta["WindowWidth"] = f"{scale.width:.6g}"
            meta["GADGETRON_WindowCenter"] = round((scale.centre - intercept) / slope)
            meta["GADGETRON_WindowWidth"] = max(1, round(scale.width / slope))
            meta["GADGETRON_ScaleRatio"] = f"{1 / slope:.9g}"
            image.meta = meta
            yield image


def chosen_contrasts(protocol: Protocol, weighted: str) -> list[int]:
    """Numbers of the contrasts whose images are wanted: all, or the first and last recovery of every preparation and echo.

    ``none`` gives the first contrast alone: a series cannot be empty.
    """
    if weighted == "all":
        return list(range(protocol.contrasts))
    if weighted == "none":
        return [0]
    outer, recoveries, echoes = protocol.shape
    return [protocol.contrast(p, r, e) for p in range(outer) for r in sorted({0, recoveries - 1}) for e in range(echoes)]


def weighted_images(
    series: ImageSeries,
    assembled: Assembled,
    header: ScanHeader,
    numbering: Numbering,
    scale: Scale | None,
    solver: str,
    *,
    real: bool = False,
) -> Iterator[ismrmrd.Image]:
    """Images of the contrasts in ``series.times``; ``contrast`` is the echo, ``set`` the preparation, ``repetition`` the recovery."""
    protocol = assembled.problem.protocol
    assert protocol is not None
    numbers = [int(t) for t in series.times.tolist()]
    frames = tuple(assembled.problem.frames[n] for n in numbers)
    part = assembled.problem.replace(frames=frames, frame_times=series.times, protocol=None)
    made = emit(series, dataclasses.replace(assembled, problem=part), header, numbering, scale, solver, real=real)
    for number, image in zip(numbers, made, strict=True):
        preparation, recovery, echo = protocol.place(number)
        image.contrast, image.set, image.repetition = echo, preparation, recovery
        meta = image.meta
        # A contrast is no moment in time.
        del meta["FrameTime_s"]
        meta["EchoTime"] = meta["GADGETRON_TE"] = f"{1e3 * protocol.echo_times[echo]:g}"
        if protocol.model == "t2_inversion":
            assert protocol.repetition_time is not None
            meta["InversionTime"] = meta["GADGETRON_TI"] = f"{1e3 * protocol.repetition_time * recovery:g}"
            meta["T2PreparationTime"] = f"{1e3 * protocol.preparations[preparation]:g}"
        if protocol.flip_angles:
            angle = protocol.flip_angles[preparation if protocol.model == "spoiled" else 0]
            meta["FlipAngle"] = f"{math.degrees(angle):g}"
        image.meta = meta
        yield image
