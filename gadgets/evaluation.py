"""Stored images against a simulated scan's truth."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
from numpy.typing import NDArray

from gadgets.part import PARTS
from gadgets.scanfile import Truth, read_images, read_truth
from recon_core.errors import DataError
from recon_core.metrics import align, score

_BEFORE = 0.05
"""Share of a scan, from its start, before the contrast agent arrives."""


def pixel_values(image: ismrmrd.Image) -> NDArray[Any]:
    """Pixels of a one-channel image ``[(z,) y, x]``: complex64, or real with ``RescaleSlope`` and ``RescaleIntercept`` applied.

    Raises:
        DataError: several channels, or a slope that is no number.
    """
    data = image.data
    if data.shape[0] != 1:
        raise DataError("images", f"{data.shape[0]} channels", "Give images with the coils combined.")
    pixels = data[0, 0] if data.shape[1] == 1 else data[0]
    if np.iscomplexobj(pixels):
        return pixels.astype(np.complex64)
    slope, intercept = (_number(image, name, default) for name, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0)))
    return (pixels * slope + intercept).astype(np.float32)


def _number(image: ismrmrd.Image, name: str, default: float) -> float:
    text = image.meta.get(name, default)
    try:
        return float(text)
    except (TypeError, ValueError) as error:
        raise DataError(name, f"{text!r} in image {image.image_index}", "Give a number.") from error


def image_series(
    path: str | Path, group: str | None = None, provisional: bool = False, part: Mapping[str, int] | None = None
) -> tuple[NDArray[Any], list[ismrmrd.Image]]:
    """The image series of a file as one array, and its images; that of the whole scan where provisional images precede it.

    Args:
        path: images.
        group: group of the run; None takes the only one.
        provisional: the images that came while the scan ran.
        part: which slice, contrast or set (:data:`gadgets.part.PARTS`) of a scan of several.

    Returns:
        ``[frame, (z,) y, x]``, complex64 or float32.

    Raises:
        DataError: no provisional images; several slices, contrasts or sets, or none as asked for.
    """
    series = read_images(path, group)
    final = [n for n, of in series.items() if "Provisional" not in of[0].meta]
    early = [n for n in series if n not in final]
    if provisional and not early:
        raise DataError("images", f"none in {path} is provisional", "Reconstruct with mode=online or both.")
    # With mode=online there is no other.
    images = _of_part(series[min(early if provisional else final or series)], part or {})
    return np.stack([pixel_values(image) for image in images]), images


def _of_part(images: list[ismrmrd.Image], part: Mapping[str, int]) -> list[ismrmrd.Image]:
    for name in PARTS:
        found = sorted({getattr(image, name) for image in images})
        if name in part:
            images = [image for image in images if getattr(image, name) == part[name]]
        if not images or (name not in part and len(found) > 1):
            problem = f"{part[name]} asked for of" if name in part else "one is a course of time, the series has"
            raise DataError(name, f"{problem} {', '.join(map(str, found))}", f"Name one with --{name}.")
    return images


def evaluate(path: str | Path, scan: str | Path, group: str | None = None, part: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Score a file's image series against the truth of the scan.

    Args:
        path: images written by ``replay``, ``recon`` or the stock client.
        scan: the simulated scan.
        group: group of the run; None takes the only one.
        part: which slice, contrast or set of a scan of several.

    Returns:
        As :func:`recon_core.metrics.score`.

    Raises:
        DataError: frames or matrix differ from the truth's.
    """
    truth = read_truth(scan)
    images, _ = image_series(path, group, part=part)
    check_same(images, truth)
    return score(images, truth.images, truth.moving)


def evaluate_provisional(
    path: str | Path, scan: str | Path, group: str | None = None, after: float = 0.0, part: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Score a file's provisional images, each against the frame of truth nearest to its mean time.

    Args:
        path: images of a run with ``mode=online`` or ``both``.
        scan: the simulated scan.
        group: group of the run; None takes the only one.
        after: images of frames up to here are left out, seconds from the first imaging readout.
        part: which slice, contrast or set of a scan of several.

    Returns:
        As :func:`recon_core.metrics.score`.

    Raises:
        DataError: no provisional image is left, or its matrix differs from the truth's.
    """
    truth = read_truth(scan)
    images, stored = image_series(path, group, provisional=True, part=part)
    times = np.array([float(image.meta["FrameTime_s"]) for image in stored])
    kept = times > after
    if not kept.any():
        raise DataError("after", f"{after:g} s: none of {len(stored)} provisional images is later", "Give an earlier time.")
    nearest = np.abs(truth.times[None] - times[kept, None]).argmin(axis=1)
    seen = dataclasses.replace(truth, images=truth.images[nearest])
    check_same(images[kept], seen)
    return score(images[kept], seen.images, truth.moving)


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """Mean magnitude of a region over time, beside the true one.

    Attributes:
        found: float64 ``[frame]``, scaled as the scores scale the series.
        truth: float64 ``[frame]``.
    """

    found: NDArray[np.float64]
    truth: NDArray[np.float64]

    @property
    def difference(self) -> float:
        """Root-mean-square difference, % of the true curve's maximum."""
        return float(100 * np.sqrt(np.mean((self.found - self.truth) ** 2)) / self.truth.max())

    @property
    def peak_shift(self) -> int:
        """Frames by which the curve's largest value comes late."""
        return int(self.found.argmax()) - int(self.truth.argmax())

    @property
    def half_shift(self) -> float:
        """Frames by which the rise to half of the enhancement comes late, between frames."""
        return arrival(self.found, 0.5) - arrival(self.truth, 0.5)

    @property
    def arrival_shift(self) -> float:
        """Frames by which the bolus arrives late: :func:`arrival` at a tenth of the rise."""
        return arrival(self.found) - arrival(self.truth)


def arrival(curve: NDArray[Any], share: float = 0.1) -> float:
    """Bolus arrival time: the frame, between whole ones, at which a curve on its upslope last passes a share of its rise.

    The rise goes from the mean of the first twentieth of the frames (at least one) to the largest value. Between frames the curve is
    taken as straight.

    Args:
        curve: ``[frame]``.
        share: of the rise, between 0 and 1.

    Returns:
        Frames from the first; that of the largest value where no frame before it lies below the share.
    """
    top = int(curve.argmax())
    before = float(curve[: max(1, round(_BEFORE * len(curve)))].mean())
    level = before + share * (float(curve[top]) - before)
    below = np.flatnonzero(curve[:top] < level)
    if len(below) == 0:
        return float(top)
    last = int(below[-1])
    return last + (level - float(curve[last])) / float(curve[last + 1] - curve[last])


def evaluate_curves(
    path: str | Path, scan: str | Path, group: str | None = None, part: Mapping[str, int] | None = None
) -> dict[str, Curve]:
    """Courses of the regions that the simulator knows, by name; empty where it knows none.

    Args:
        path: images, as for :func:`evaluate`.
        scan: the simulated scan.
        group: group of the run; None takes the only one.
        part: which slice, contrast or set of a scan of several.

    Raises:
        DataError: frames or matrix differ from the truth's.
    """
    truth = read_truth(scan)
    if not truth.regions:
        return {}
    images, _ = image_series(path, group, part=part)
    check_same(images, truth)
    magnitude = np.abs(align(images, truth.images)[0])
    return {
        name: Curve(magnitude[:, mask].mean(1), truth.curves[name].astype(np.float64)) for name, mask in truth.regions.items() if mask.any()
    }


def check_same(images: NDArray[Any], truth: Truth) -> None:
    """Frames and matrix of a series are the truth's.

    Raises:
        DataError: they are not.
    """
    if len(images) != len(truth.images):
        cure = "Reconstruct with the simulation's readouts_per_frame and no frame_stride."
        raise DataError("frames", f"{len(images)} images, {len(truth.images)} frames of truth", cure)
    if images.shape != truth.images.shape:
        problem = f"{images.shape[1:]} pixels, the truth has {truth.images.shape[1:]}"
        raise DataError("matrix", problem, "Reconstruct at the simulation's matrix.")
