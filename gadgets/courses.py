"""Courses over time that leave beside the images: curves of regions, profiles along lines, breathing."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

import ismrmrd
import numpy as np
from numpy.typing import NDArray

from gadgets.assemble import Assembled
from gadgets.images import Numbering, course_image
from recon_core.errors import SettingError
from recon_core.problem import ImageSeries

_NAME = re.compile(r"[A-Za-z][\w-]*")


@dataclasses.dataclass(frozen=True)
class Region:
    """A disc of pixels in one slice.

    Attributes:
        name: told with its curve.
        x: centre, pixels from 0.
        y: as ``x``.
        radius: pixels.
        z: slice, from 0.
    """

    name: str
    x: float
    y: float
    radius: float
    z: int = 0

    def mask(self, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Its pixels in an image of shape ``((nz,) ny, nx)``; at least the one at its centre.

        Raises:
            SettingError: it lies outside the image.
        """
        ny, nx = shape[-2:]
        nz = shape[0] if len(shape) == 3 else 1
        if not (0 <= self.x <= nx - 1 and 0 <= self.y <= ny - 1 and 0 <= self.z < nz):
            place = f"({self.x:g}, {self.y:g}, {self.z})"
            raise SettingError("regions", f"{self.name} at {place} of {nx}×{ny}×{nz} pixels", "Count pixels and slices from 0.")
        y, x = np.mgrid[:ny, :nx]
        disc = np.hypot(y - self.y, x - self.x) <= max(self.radius, math.sqrt(0.5))
        if len(shape) == 2:
            return disc
        mask = np.zeros(shape, dtype=np.bool_)
        mask[self.z] = disc
        return mask


@dataclasses.dataclass(frozen=True)
class Line:
    """A straight line through one slice, pixels from 0.

    Attributes:
        name: told with its profile.
        start: ``(x, y)``.
        end: ``(x, y)``.
        z: slice.
    """

    name: str
    start: tuple[float, float]
    end: tuple[float, float]
    z: int = 0

    def check(self, shape: tuple[int, ...]) -> None:
        """See that it lies within an image of shape ``((nz,) ny, nx)``.

        Raises:
            SettingError: it leaves the image.
        """
        ny, nx = shape[-2:]
        nz = shape[0] if len(shape) == 3 else 1
        if not 0 <= self.z < nz:
            raise SettingError("profiles", f"{self.name}: slice {self.z} of {nz}", "Number slices from 0.")
        if not all(0 <= x <= nx - 1 and 0 <= y <= ny - 1 for x, y in (self.start, self.end)):
            raise SettingError("profiles", f"{self.name} leaves the image of {nx}×{ny} pixels", "Count pixels from 0.")


def parse_regions(text: str) -> tuple[Region, ...]:
    """Regions of the chain property: ``NAME=x,y,radius`` or ``NAME=x,y,z,radius``, several separated by semicolons.

    Raises:
        SettingError: names the part that cannot be read.
    """
    made = []
    for name, numbers in _parts("regions", text, (3, 4), "NAME=x,y,radius or NAME=x,y,z,radius"):
        z = 0 if len(numbers) == 3 else _whole("regions", name, numbers[2])
        if numbers[-1] < 0:
            raise SettingError("regions", f"{name}: radius {numbers[-1]:g}", "Give pixels, 0 or more.")
        made.append(Region(name, numbers[0], numbers[1], numbers[-1], z))
    return tuple(made)


def parse_lines(text: str) -> tuple[Line, ...]:
    """Lines of the chain property: ``NAME=x0,y0,x1,y1`` or ``NAME=x0,y0,x1,y1,z``, several separated by semicolons.

    Raises:
        SettingError: names the part that cannot be read.
    """
    made = []
    for name, numbers in _parts("profiles", text, (4, 5), "NAME=x0,y0,x1,y1 or NAME=x0,y0,x1,y1,z"):
        z = _whole("profiles", name, numbers[4]) if len(numbers) == 5 else 0
        made.append(Line(name, (numbers[0], numbers[1]), (numbers[2], numbers[3]), z))
    return tuple(made)


def _parts(field: str, text: str, counts: tuple[int, ...], form: str) -> Iterator[tuple[str, list[float]]]:
    names: set[str] = set()
    for part in filter(None, (p.strip() for p in text.split(";"))):
        name, _, values = part.partition("=")
        name = name.strip()
        try:
            numbers = [float(v) for v in values.split(",")]
        except ValueError:
            numbers = []
        if _NAME.fullmatch(name) is None or len(numbers) not in counts or not all(map(math.isfinite, numbers)) or name in names:
            fault = "the name comes twice" if name in names else "it cannot be read"
            raise SettingError(field, f"{part!r}: {fault}", f"Write {form}, several separated by semicolons.")
        names.add(name)
        yield name, numbers


def _whole(field: str, name: str, value: float) -> int:
    if not value.is_integer():
        raise SettingError(field, f"{name}: slice {value:g}", "Number slices from 0.")
    return int(value)


def region_curves(series: ImageSeries, regions: tuple[Region, ...]) -> NDArray[np.float32]:
    """Mean magnitude in every region, ``[region, frame]``."""
    images = series.images.numpy()
    masks = [region.mask(images.shape[1:]) for region in regions]
    return np.stack([np.abs(images[:, mask]).mean(axis=1) for mask in masks]).astype(np.float32)


def profile(series: ImageSeries, line: Line) -> NDArray[np.float32]:
    """Magnitude along a line over time, ``[place, frame]``, one place a pixel, interpolated between pixels.

    Raises:
        SettingError: the line leaves the image.
    """
    images = series.images.numpy()
    line.check(images.shape[1:])
    if images.ndim == 4:
        images = images[:, line.z]
    count = max(2, math.ceil(math.dist(line.start, line.end)) + 1)
    x, y = (np.linspace(a, b, count) for a, b in zip(line.start, line.end, strict=True))
    ny, nx = images.shape[1:]
    left, top = np.minimum(x.astype(int), nx - 2), np.minimum(y.astype(int), ny - 2)
    u, v = x - left, y - top
    magnitude = np.abs(images)
    rows = [(1 - u) * magnitude[:, top + d, left] + u * magnitude[:, top + d, left + 1] for d in (0, 1)]
    return ((1 - v) * rows[0] + v * rows[1]).T.astype(np.float32)


def check_places(shape: tuple[int, ...], regions: tuple[Region, ...], lines: tuple[Line, ...]) -> None:
    """See before a fit that regions and lines lie within images of ``shape``.

    Raises:
        SettingError: one does not.
    """
    for region in regions:
        region.mask(shape)
    for line in lines:
        line.check(shape)


def courses(
    series: ImageSeries,
    made: Assembled,
    numbering: Numbering,
    regions: tuple[Region, ...] = (),
    lines: tuple[Line, ...] = (),
    breathing: tuple[NDArray[np.float32], NDArray[np.float64]] | None = None,
) -> Iterator[ismrmrd.Image]:
    """Curves, profiles and the respiratory signal as real images, a column a moment.

    Args:
        series: the reconstructed series.
        made: what it was made from.
        numbering: the scan's running indices.
        regions: whose curves are wanted.
        lines: whose profiles are wanted.
        breathing: respiratory signal ``[spoke]`` and the spokes' times, s.
    """
    times = series.times.numpy()
    if regions:
        names = ", ".join(region.name for region in regions)
        note = f"mean magnitude of regions over time: rows {names}; column = frame"
        yield course_image(region_curves(series, regions), times, made, numbering, "curves", note)
    for line in lines:
        note = f"magnitude along the line {line.name} over time: row = place from {line.start} to {line.end}, column = frame"
        yield course_image(profile(series, line), times, made, numbering, f"profile {line.name}", note)
    if breathing is not None:
        signal, moments = breathing
        note = "respiratory signal from the k-space centre: column = spoke; centred, unit variance, sign unknown"
        yield course_image(signal[None], moments, made, numbering, "respiration", note)
