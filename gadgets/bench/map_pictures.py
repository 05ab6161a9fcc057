"""Parameter maps of a case's methods beside the truth. Needs the extra ``pictures``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gadgets.bench.map_scans import SCORED
from gadgets.map_sheet import ERROR_SHARE, at_scale, window
from gadgets.pictures import new_figure
from recon_core.phantoms.relaxometry import CAPS, RelaxometryScan

if TYPE_CHECKING:
    from gadgets.bench.runner import CaseResult


def maps_side_by_side(result: CaseResult, path: Path) -> None:
    """Write one PNG of the middle slice: a column the truth, one a method; two rows a map, its values and its errors in the brain.

    Args:
        result: of a case of a protocol; its first seed is shown.
        path: PNG file, replaced.

    Raises:
        MissingPartError: matplotlib is absent.
    """
    if result.first is None or result.first.protocol is None:
        return
    scan = result.first.protocol
    names = [name for name in SCORED if name in scan.truth]
    records = {record["method"]: record for record in reversed(result.records)}
    columns = ["truth", *result.made]
    figure = new_figure(1.55 * len(columns) + 0.5, 3.0 * len(names) + 0.5)
    axes = figure.subplots(2 * len(names), len(columns), squeeze=False)
    for number, name in enumerate(names):
        for place, method in enumerate(columns):
            values, errors, white = _panel(scan, name, result.made.get(method))
            title = "" if place == 0 else f"{100 * records[method][f'nrmse_{name}']:.1f} %"
            for cell, shown, limit, map_name in (
                (axes[2 * number, place], values, white, "gray"),
                (axes[2 * number + 1, place], errors, ERROR_SHARE * white, "inferno"),
            ):
                cell.set_xticks([])
                cell.set_yticks([])
                if place == 0 and map_name == "inferno":
                    cell.set_axis_off()
                    continue
                cell.imshow(shown, cmap=map_name, vmin=0, vmax=limit, interpolation="nearest")
            axes[2 * number + 1, place].set_title(title, fontsize=8)
        axes[2 * number, 0].set_ylabel(name, fontsize=8)
    for place, method in enumerate(columns):
        axes[0, place].set_title(method, fontsize=8)
    figure.suptitle(result.case.title, fontsize=8, wrap=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def _panel(scan: RelaxometryScan, name: str, made: Mapping[str, NDArray[Any]] | None) -> tuple[NDArray[Any], NDArray[Any], float]:
    """Values, errors inside the brain and white of the middle slice; the truth where nothing was made."""
    middle = scan.brain.shape[0] // 2
    truth, brain = scan.truth[name], scan.brain
    _, white = window(name, truth[brain])
    if made is None:
        return np.where(scan.truth["PD"] > 0, truth, 0)[middle], np.zeros(truth.shape[1:]), white
    found = at_scale(name, made[name], truth, brain)
    return found[middle], (np.abs(found - np.minimum(truth, CAPS.get(name, np.inf))) * brain)[middle], white
