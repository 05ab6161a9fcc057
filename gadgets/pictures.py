"""Pictures of a dynamic series: a contact sheet as PNG, a cine as GIF. Needs the extra ``pictures``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from recon_core.errors import MissingPartError
from recon_core.metrics import align

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from gadgets.evaluation import Curve
    from gadgets.scanfile import Truth

_FRAMES_SHOWN = 6
_WINDOW_PERCENTILE = 99.7
_CINE_PIXELS = 256
_CINE_GREYS = 64
_CINE_SECONDS = 0.05
_CINE_FRAMES = 240
_LATENTS_SHOWN = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Shown:
    """A series to be shown.

    Attributes:
        images: ``[frame, (z,) y, x]``, complex or magnitude.
        times: ``[frame]``, seconds.
        pixel: mm, ``(y, x)``.
        latents: ``[component, frame]`` or None.
        title: one line over the sheet.
        truth: what a simulator knows, frame by frame, or None.
    """

    images: NDArray[Any]
    times: NDArray[np.float64]
    pixel: tuple[float, float] = (1.0, 1.0)
    latents: NDArray[np.float32] | None = None
    title: str = ""
    truth: Truth | None = None


def new_figure(width: float, height: float) -> Figure:
    """An empty matplotlib figure without a screen, sizes in inches.

    Raises:
        MissingPartError: matplotlib is absent.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise _absent("matplotlib") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def curve_sheet(series: Mapping[str, Mapping[str, Curve]], times: NDArray[np.float64], path: str | Path) -> None:
    """Curves of regions against time, a panel a region, over the true one.

    Args:
        series: curves by region, by title of the series; all of the same regions.
        times: ``[frame]``, seconds.
        path: PNG file, replaced.

    Raises:
        MissingPartError: matplotlib is absent.
    """
    first = next(iter(series.values()))
    across = min(4, len(first))
    figure = new_figure(3.4 * across, 2.4 * -(-len(first) // across))
    panels = figure.subplots(-(-len(first) // across), across, squeeze=False).ravel()
    for panel, region in zip(panels, first, strict=False):
        panel.plot(times, first[region].truth, color="0.6", linewidth=3, label="truth")
        for title, of in series.items():
            panel.plot(times, of[region].found, linewidth=1, label=f"{title}: {of[region].difference:.1f} %")
        panel.set_title(region, fontsize=9)
        panel.set_xlabel("s", fontsize=8)
        panel.tick_params(labelsize=7)
        panel.legend(fontsize=7)
    for panel in panels[len(first) :]:
        panel.set_axis_off()
    figure.savefig(path, dpi=80)


def contact_sheet(shown: Shown, path: str | Path) -> None:
    """Frames, profile against time through what moves most, latents against time; truth and error where known.

    Args:
        shown: the series; of a volume the middle slice is shown.
        path: PNG file, replaced.

    Raises:
        MissingPartError: matplotlib is absent.
    """
    recon = np.abs(middle_slice(shown.images))
    rows = {"": recon}
    if shown.truth is not None:
        aligned, reference = (middle_slice(a) for a in align(shown.images, shown.truth.images))
        rows = {"": np.abs(aligned), "truth": np.abs(reference), "|error| × 5": 5 * np.abs(aligned - reference)}
    reference_row = rows.get("truth", rows[""])
    moving = middle_slice(shown.truth.moving[None])[0] if shown.truth is not None else None
    column = profile_column(reference_row, moving)
    white = float(np.percentile(reference_row, _WINDOW_PERCENTILE)) or 1.0
    picked = np.unique(np.linspace(0, len(recon) - 1, min(_FRAMES_SHOWN, len(recon))).round().astype(int))
    aspect = shown.pixel[0] / shown.pixel[1]
    latents = shown.latents is not None and shown.latents.size > 0
    height = 2.4 * len(rows) + (1.6 if latents else 0.0) + 0.6
    figure = new_figure(2.3 * len(picked) + 4.6, height)
    ratios = [2.4] * len(rows) + ([1.6] if latents else [])
    grid = figure.add_gridspec(len(ratios), len(picked) + 2, height_ratios=ratios)
    for row, (name, series) in enumerate(rows.items()):
        for place, frame in enumerate(picked):
            axes = figure.add_subplot(grid[row, place])
            axes.imshow(series[frame], cmap="gray", vmin=0, vmax=white, aspect=aspect, interpolation="nearest")
            _bare(axes)
            if row == 0:
                axes.set_title(f"{1e3 * shown.times[frame]:.0f} ms", fontsize=8)
                axes.axvline(column, color="tab:orange", linewidth=0.6, alpha=0.8)
            if place == 0 and name:
                axes.set_ylabel(name, fontsize=8)
        axes = figure.add_subplot(grid[row, len(picked) :])
        _profile(axes, series[:, :, column], shown.times, white)
        if row == 0:
            axes.set_title("profile along the orange line against time", fontsize=8)
        if row == len(rows) - 1:
            axes.set_xlabel("time (s)", fontsize=8)
    if latents and shown.latents is not None:
        axes = figure.add_subplot(grid[-1, :])
        for number, component in enumerate(shown.latents[:_LATENTS_SHOWN]):
            axes.plot(shown.times[: len(component)], component, linewidth=1, label=f"component {number + 1}")
        axes.set_xlim(shown.times[0], shown.times[-1])
        axes.set_xlabel("time (s)", fontsize=8)
        axes.set_ylabel("latents", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.legend(fontsize=7, ncols=_LATENTS_SHOWN, loc="upper right")
    figure.suptitle(shown.title, fontsize=9)
    figure.savefig(path, dpi=110)


def cine(shown: Shown, path: str | Path) -> None:
    """The series as an animated GIF, with the truth at its right where known.

    Frames are shown for 50 ms each, whatever their distance in time: a time-compressed scan would be too fast to see.

    Args:
        shown: the series; of a volume the middle slice is shown.
        path: GIF file, replaced.

    Raises:
        MissingPartError: pillow is absent.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise _absent("pillow") from error
    panels = [np.abs(middle_slice(shown.images))]
    if shown.truth is not None:
        panels = [np.abs(middle_slice(a)) for a in align(shown.images, shown.truth.images)]
    white = float(np.percentile(panels[-1], _WINDOW_PERCENTILE)) or 1.0
    step = -(-len(panels[0]) // _CINE_FRAMES)
    pictures = []
    for frame in range(0, len(panels[0]), step):
        grey = np.concatenate([np.clip(255 * panel[frame] / white, 0, 255) for panel in panels], axis=1).astype(np.uint8)
        rows, columns = panels[0].shape[1] * shown.pixel[0], grey.shape[1] * shown.pixel[1]
        zoom = _CINE_PIXELS / max(rows, columns / len(panels))
        size = (max(round(columns * zoom), 1), max(round(rows * zoom), 1))
        smooth = np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC))
        # Fewer greys than the eye tells apart make a file a third of the size.
        coarse = 256 // _CINE_GREYS
        pictures.append(Image.fromarray(smooth // coarse * coarse))
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=round(1e3 * _CINE_SECONDS), loop=0)


def middle_slice(images: NDArray[Any]) -> NDArray[Any]:
    """``[frame, y, x]`` of a series of slices, or of a volume's middle slice."""
    return images if images.ndim == 3 else images[:, images.shape[1] // 2]


def profile_column(magnitude: NDArray[Any], moving: NDArray[np.bool_] | None = None) -> int:
    """Column in which most changes in time, at least 5 % of the width from the edges.

    Args:
        magnitude: ``[frame, y, x]``.
        moving: bool ``[y, x]``, where to look; None: everywhere.
    """
    change = magnitude.std(axis=0)
    if moving is not None:
        change = change * moving
    # Neighbours count too: one noisy column is not what moves.
    energy = np.convolve((change**2).sum(axis=0), np.ones(5), mode="same")
    margin = magnitude.shape[2] // 20
    inside = slice(margin, magnitude.shape[2] - margin)
    return margin + int(np.argmax(energy[inside]))


def _profile(axes: Axes, profile: NDArray[Any], times: NDArray[np.float64], white: float) -> None:
    last = float(times[-1]) if times[-1] > times[0] else float(times[0]) + 1.0
    extent = (float(times[0]), last, float(profile.shape[1]), 0.0)
    axes.imshow(profile.T, cmap="gray", vmin=0, vmax=white, aspect="auto", interpolation="nearest", extent=extent)
    axes.set_yticks([])
    axes.tick_params(labelsize=7)


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])


def _absent(name: str) -> MissingPartError:
    return MissingPartError("pictures", f"{name} is not installed", "pip install 'gadgetron-inr[pictures]'")
