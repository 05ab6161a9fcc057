"""A sheet of parameter maps, beside the truth where it is known. Needs the extra ``pictures``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gadgets.map_simulation import MapTruth
from gadgets.pictures import middle_slice, new_figure
from recon_core.phantoms.relaxometry import CAPS

ERROR_SHARE = 0.25
"""Errors are shown up to this share of a map's window."""
_PERCENTILES = (0.5, 99.5)
_UNITS = {
    "T1": (1e3, "ms"),
    "T2": (1e3, "ms"),
    "T2star": (1e3, "ms"),
    "R2star": (1.0, "1/s"),
    "off_resonance": (1.0, "Hz"),
    "phase": (1.0, "rad"),
}


def window(name: str, values: NDArray[np.float32]) -> tuple[float, float]:
    """Black and white of a map: LoREIN's caps for relaxation times, else what nearly all fitted values lie between, and 0 below them.

    Voxels that read 0 were not fitted.
    """
    if name in CAPS:
        return 0.0, CAPS[name]
    fitted = values[values != 0]
    if not fitted.size:
        return 0.0, 1.0
    low, high = (float(np.percentile(fitted, share)) for share in _PERCENTILES)
    low = min(low, 0.0)
    return low, high if high > low else low + 1.0


def at_scale(name: str, found: NDArray[np.float32], truth: NDArray[np.float32], inside: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The map as it is compared with the truth: proton density up to one scale, times capped."""
    if name == "PD":
        found = found * float((found[inside] * truth[inside]).sum() / max(float(np.square(found[inside]).sum()), 1e-30))
    return np.minimum(found, CAPS.get(name, np.inf)).astype(np.float32)


def map_sheet(maps: Mapping[str, NDArray[np.float32]], path: str | Path, title: str, truth: MapTruth | None = None) -> None:
    """Write one PNG of the middle slice: a column a map, with bars in its unit; below it the truth and the error where they are known.

    Args:
        maps: float32 ``[(z,) y, x]`` by name; times in seconds.
        path: PNG file, replaced.
        title: above the maps.
        truth: of the simulated scan, at the same matrix; errors are those inside its brain.

    Raises:
        MissingPartError: matplotlib is absent.
    """
    rows = 1 if truth is None else 3
    figure = new_figure(2.3 * len(maps) + 0.3, 2.1 * rows + 0.5)
    axes = figure.subplots(rows, len(maps), squeeze=False)
    for column, (name, found) in enumerate(maps.items()):
        factor, unit = _UNITS.get(name, (1.0, ""))
        known = None if truth is None else truth.maps.get(name)
        panels = [("", found, window(name, found if known is None else known), "gray")]
        if truth is not None and known is not None:
            low, high = panels[0][2]
            scaled, capped = at_scale(name, found, known, truth.brain), np.minimum(known, CAPS.get(name, np.inf))
            panels = [
                ("", scaled, (low, high), "gray"),
                ("truth", np.where(truth.maps["PD"] > 0, known, 0.0), (low, high), "gray"),
                ("error", np.abs(scaled - capped) * truth.brain, (0.0, ERROR_SHARE * (high - low)), "inferno"),
            ]
        for row in range(rows):
            cell = axes[row, column]
            if row >= len(panels):
                cell.set_axis_off()
                continue
            what, values, (low, high), colours = panels[row]
            middle = middle_slice(values[None])[0]
            drawn = cell.imshow(
                np.ma.masked_equal(factor * middle, 0), cmap=colours, vmin=factor * low, vmax=factor * high, interpolation="nearest"
            )
            cell.set(xticks=[], yticks=[], facecolor="black")
            figure.colorbar(drawn, ax=cell, fraction=0.04, pad=0.02).ax.tick_params(labelsize=6)
            cell.set_title(f"{name} {what} ({unit})".replace("  ", " ").replace(" ()", ""), fontsize=8)
    figure.suptitle(title, fontsize=8)
    figure.savefig(path, dpi=110)
