"""Simulated multi-contrast protocols of benchmark cases, and the scores of what methods make of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recon_core.calibration.whitening import whiten, whitening_matrix
from recon_core.metrics import align, map_error, psnr_db
from recon_core.options import build
from recon_core.phantoms.relaxometry import CAPS, RelaxometryScan, simulate
from recon_core.phantoms.settings import RelaxometrySettings
from recon_core.problem import KSpaceProblem

PHANTOM = "mpqmri"
SCORED = ("T1", "T2", "T2star", "PD")


def make(own: Mapping[str, Any], prefix: str) -> RelaxometryScan:
    """Simulate a protocol.

    Args:
        own: settings of the phantom by name; lists stand for tuples.
        prefix: of a setting's name in errors.

    Returns:
        The scan with its truth.

    Raises:
        SettingError: a setting is unknown or out of range.
    """
    return simulate(build(RelaxometrySettings, own, prefix=prefix))


def whitened_problem(scan: RelaxometryScan) -> KSpaceProblem:
    """Whitened lines of a simulated protocol, one frame a contrast."""
    nz, ny, nx = scan.settings.matrix
    samples = whiten(torch.from_numpy(scan.samples), whitening_matrix(torch.from_numpy(scan.noise)))
    k = torch.zeros(samples.shape[1], nx, 3)
    k[..., 0] = torch.arange(nx) - nx // 2
    k[..., 1] = torch.from_numpy(scan.place[:, 1] - ny // 2)[:, None]
    k[..., 2] = torch.from_numpy(scan.place[:, 0] - nz // 2)[:, None]
    contrast = torch.from_numpy(scan.contrast)
    count = scan.protocol.contrasts
    return KSpaceProblem(
        samples,
        k,
        tuple(torch.nonzero(contrast == t)[:, 0] for t in range(count)),
        torch.arange(len(contrast), dtype=torch.float64) * (scan.protocol.repetition_time or 0.03) / len(scan.protocol.echo_times),
        torch.arange(count, dtype=torch.float64),
        (nz, ny, nx),
        cartesian=True,
        field_of_view=tuple(scan.settings.field_of_view),
        protocol=scan.protocol,
    )


def score(scan: RelaxometryScan, images: NDArray[Any], found: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """NRMSE of maps and coils, PSNR of weighted images; maps inside the brain, T1, T2, T2* capped as in LoREIN, PD with one free scale.

    Args:
        scan: with its truth.
        images: complex64 ``[contrast of scan.imaged, z, y, x]``.
        found: maps by name; ``coils`` and ``compression`` of the method.
    """
    scores: dict[str, Any] = {
        f"nrmse_{name}": map_error(found[name], scan.truth[name], scan.brain, CAPS.get(name), free_scale=name == "PD")
        for name in SCORED
        if name in scan.truth
    }
    recon, reference = align(images, scan.images)
    scores["psnr_db"] = float(psnr_db(recon, reference).mean())
    scores["nrmse_coils"] = coil_error(found["coils"], found["compression"], scan.sensitivities, scan.brain)
    return scores


def coil_error(coils: NDArray[Any], compression: NDArray[Any], truth: NDArray[Any], region: NDArray[np.bool_]) -> float:
    """NRMSE of virtual coils against true ones inside a region, both of unit root-sum-of-squares, one phase a voxel left free.

    Args:
        coils: complex ``[virtual, …]``.
        compression: complex ``[virtual, coil]``.
        truth: complex ``[coil, …]``, whitened.
        region: bool ``[…]``.
    """
    wanted = np.tensordot(compression, truth[:, region], axes=1)
    wanted = wanted / np.maximum(np.linalg.norm(wanted, axis=0), 1e-12)
    have = coils[:, region]
    have = have / np.maximum(np.linalg.norm(have, axis=0), 1e-12)
    turn = (have.conj() * wanted).sum(axis=0)
    have = have * turn / np.maximum(np.abs(turn), 1e-12)
    return float(np.linalg.norm(have - wanted) / np.linalg.norm(wanted))
