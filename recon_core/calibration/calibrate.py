"""Calibrate a problem from its own readouts: coil compression, density compensation, sensitivities."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from recon_core.calibration.compression import compress, compression_matrix
from recon_core.calibration.density import density_weights
from recon_core.calibration.sensitivities import sensitivities
from recon_core.operators.frames import gather
from recon_core.problem import KSpaceProblem


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """What one set of readouts says of the coils.

    Attributes:
        compression: complex64 ``[virtual, coil]``.
        sensitivities: complex64 ``[virtual, (z,) y, x]``, unit root-sum-of-squares.
        eigenvalues: float32 ``[(z,) y, x]``, near 1 where the maps explain the data.
    """

    compression: Tensor
    sensitivities: Tensor
    eigenvalues: Tensor

    def apply(self, problem: KSpaceProblem) -> KSpaceProblem:
        """Compress a problem's samples and hand it the maps; its weights stay."""
        return problem.replace(samples=compress(problem.samples, self.compression), sensitivities=self.sensitivities)


def with_density(problem: KSpaceProblem, engine: str = "auto") -> KSpaceProblem:
    """The problem with density weights over all its readouts; weights it came with are kept."""
    if problem.weights is not None:
        return problem
    everything = torch.arange(problem.n_readouts, device=problem.device)
    found = density_weights(gather(problem, everything).points, problem.shape, engine, problem.cartesian)
    if problem.mask is None:
        weights = found.reshape(problem.trajectory.shape[:2])
    else:
        weights = torch.zeros(problem.trajectory.shape[:2], device=problem.device)
        weights[problem.mask] = found
    return problem.replace(weights=weights)


def calibrate(problem: KSpaceProblem, coils: int, engine: str = "auto") -> tuple[KSpaceProblem, Calibration]:
    """Compress to ``coils`` virtual coils and estimate their sensitivities from the time-averaged data.

    Args:
        problem: whitened, uncalibrated.
        coils: virtual coils wanted.
        engine: NUFFT engine by name.

    Returns:
        The calibrated problem and the calibration, to apply to held-out readouts.
    """
    weighted = with_density(problem, engine)
    used = gather(weighted, torch.arange(problem.n_readouts, device=problem.device))
    matrix = compression_matrix(used.samples, coils)
    maps, eigenvalues = sensitivities(used.points, compress(used.samples, matrix), used.weights, problem.shape, engine, problem.cartesian)
    calibration = Calibration(matrix, maps, eigenvalues)
    return calibration.apply(weighted), calibration
