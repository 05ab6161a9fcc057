"""Methods of a case side by side: frames, a profile against time, error maps. Needs the extra ``pictures``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gadgets.bench.map_pictures import maps_side_by_side
from gadgets.pictures import middle_slice, new_figure, profile_column
from recon_core.metrics import align

if TYPE_CHECKING:
    from gadgets.bench.runner import CaseResult

_FRAMES = 3
_WINDOW_PERCENTILE = 99.7
_ERROR_GAIN = 5


def side_by_side(result: CaseResult, path: Path) -> None:
    """Write one PNG (a protocol: its maps): a row a method; three frames, the profile through what moves most, errors of both.

    Args:
        result: of a case, its first seed is shown.
        path: PNG file, replaced.

    Raises:
        MissingPartError: matplotlib is absent.
    """
    if result.first is None:
        return
    if result.first.protocol is not None:
        maps_side_by_side(result, path)
        return
    truth, moving = result.first.truth, result.first.moving
    rows = _rows(result, truth)
    reference = rows[0][1]
    column = profile_column(reference, None if moving is None else middle_slice(moving[None])[0])
    white = float(np.percentile(reference, _WINDOW_PERCENTILE)) or 1.0
    picked = np.unique(np.linspace(0, len(reference) - 1, _FRAMES + 2).round().astype(int)[1:-1])
    columns = len(picked) + 1 + (2 if truth is not None else 0)
    ratio = reference.shape[1] / reference.shape[2]
    figure = new_figure(2.1 * columns + 1, 2.1 * min(ratio, 2) * len(rows) + 0.6)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, (name, series, miss) in enumerate(rows):
        panels: list[tuple[str, NDArray[Any], str]] = [(f"frame {frame}", series[frame], "equal") for frame in picked]
        panels.append(("profile, time →", series[:, :, column].T, "auto"))
        if truth is not None:
            panels.append((f"|error| × {_ERROR_GAIN}", _ERROR_GAIN * miss[picked[len(picked) // 2]], "equal"))
            panels.append((f"its profile × {_ERROR_GAIN}", _ERROR_GAIN * miss[:, :, column].T, "auto"))
        for place, (title, panel, aspect) in enumerate(panels):
            cell = axes[row, place]
            cell.imshow(panel, cmap="gray", vmin=0, vmax=white, aspect=aspect, interpolation="nearest")
            cell.set_xticks([])
            cell.set_yticks([])
            if row == 0:
                cell.set_title(title, fontsize=8)
        axes[row, 0].set_ylabel(name, fontsize=8)
    figure.suptitle(result.case.title, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _rows(result: CaseResult, truth: NDArray[np.complex64] | None) -> list[tuple[str, NDArray[Any], NDArray[Any]]]:
    """Name, magnitude and error ``[frame, y, x]`` of the truth and of every method; without a truth the error is zero."""
    rows: list[tuple[str, NDArray[Any], NDArray[Any]]] = []
    records = {record["method"]: record for record in reversed(result.records)}
    for method, images in result.images.items():
        record = records[method]
        if truth is not None:
            aligned, reference = (middle_slice(a) for a in align(images, truth[: len(images)]))
            if not rows:
                rows.append(("truth", np.abs(reference), np.zeros(reference.shape)))
            rows.append((f"{method}\n{record['psnr_db']:.1f} dB, {record['seconds']:.0f} s", np.abs(aligned), np.abs(aligned - reference)))
        else:
            magnitude = np.abs(middle_slice(images))
            rows.append((f"{method}\n{record['seconds']:.0f} s", magnitude, np.zeros(magnitude.shape)))
    return rows
