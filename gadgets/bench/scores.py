"""Scores of what a method made of one scan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gadgets.bench import map_scans, scans
from gadgets.bench.cases import Case, Region
from gadgets.bench.problems import compressed, predicted_error
from recon_core.calibration import calibrate
from recon_core.errors import DataError, SettingError
from recon_core.metrics import align, score
from recon_core.problem import KSpaceProblem

Images = NDArray[np.complex64]


class Scorer:
    """Scores images of one scan against its truth, or against the readouts that no method was given."""

    def __init__(self, case: Case, scan: scans.BenchScan) -> None:
        self.case, self.scan = case, scan
        self.judged: tuple[KSpaceProblem, torch.Tensor] | None = None
        if scan.everything is not None:
            training, calibration = calibrate(scan.problem, case.coils)
            assert training.sensitivities is not None
            self.judged = compressed(scan.everything, case.coils, like=scan.problem), training.sensitivities
            assert calibration.compression.shape[0] == self.judged[0].n_coils

    def __call__(self, images: Images, made: Mapping[str, NDArray[Any]] | None = None) -> dict[str, Any]:
        """Scores that the scan allows.

        Args:
            images: of the frames that were asked for.
            made: what else the method made, as its process stored it.

        Raises:
            DataError: of a protocol, a method that made no maps.
        """
        made = made or {}
        maps = made.get("coils")
        if self.scan.protocol is not None:
            if not made:
                raise DataError("maps", "none", "Give a method that makes parameter maps.")
            return map_scans.score(self.scan.protocol, images, made)
        found: dict[str, Any] = {}
        truth, moving = self.scan.truth, self.scan.moving
        if truth is not None and moving is not None:
            count = min(len(images), self.case.scored or len(images))
            images, truth = images[:count], truth[:count]
            found |= score(images, truth, moving)
            if self.case.regions:
                aligned, reference = align(images, truth)
                found["curves"] = {
                    name: curve_difference(np.abs(aligned), np.abs(reference), region) for name, region in self.case.regions.items()
                }
                found["curve_difference"] = max(found["curves"].values())
        if self.judged is not None and self.scan.withheld is not None:
            problem, ours = self.judged
            found["held_out_error"] = predicted_error(
                torch.from_numpy(images), problem, self.scan.withheld, ours if maps is None else torch.from_numpy(maps)
            )
        return found


def curve_difference(images: NDArray[Any], truth: NDArray[Any], region: Region) -> float:
    """RMS difference of a region's time courses over the true course's maximum; magnitudes ``[frame, y, x]``.

    Raises:
        SettingError: the region holds no signal.
    """
    box = (slice(None), slice(*region.y), slice(*region.x))
    part = truth[box]
    if part.size == 0 or not part[0].max() > 0:
        raise SettingError("regions", f"rows {region.y}, columns {region.x} hold no signal", "Give a box within the image.")
    chosen = part[0] > 0.5 * part[0].max()
    expected, found = (series[:, chosen].mean(axis=1) for series in (part, images[box]))
    return float(np.sqrt(np.mean((found - expected) ** 2)) / expected.max())
