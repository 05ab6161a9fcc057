"""Calibrate a problem from its own readouts: coil compression, density compensation, sensitivities."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from recon_core.calibration.compression import compress, compression_matrix
from recon_core.calibration.density import density_weights
from recon_core.calibration.sensitivities import CALIBRATION_WIDTH, KERNEL_WIDTH, espirit, sensitivities
from recon_core.calibration.signal_subspace import signal_subspace
from recon_core.errors import DataError
from recon_core.operators.contrasts import ContrastTerm, HybridSamples
from recon_core.operators.frames import gather
from recon_core.problem import KSpaceProblem
from recon_core.signal_models import Protocol

# Against the best determined component; only breaks ties where a place was visited less often than there are components.
_RIDGE = 1e-3
_COMPONENTS = 6


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
    if problem.protocol is not None:
        return _calibrate_contrasts(problem, problem.protocol, coils)
    weighted = with_density(problem, engine)
    used = gather(weighted, torch.arange(problem.n_readouts, device=problem.device))
    matrix = compression_matrix(used.samples, coils)
    maps, eigenvalues = sensitivities(used.points, compress(used.samples, matrix), used.weights, problem.shape, engine, problem.cartesian)
    calibration = Calibration(matrix, maps, eigenvalues)
    return calibration.apply(weighted), calibration


def _calibrate_contrasts(problem: KSpaceProblem, protocol: Protocol, coils: int) -> tuple[KSpaceProblem, Calibration]:
    """Sensitivities of a multi-contrast scan, whose time average has no meaning: contrasts differ in sign and phase.

    At every phase-encoding place of the centre the few samples of its contrasts give the coefficients of the leading temporal components,
    coil by coil, by least squares with the simulated signals' energies as prior; ESPIRiT takes the strongest component.
    """
    if problem.weights is None:
        problem = problem.replace(weights=torch.ones(problem.trajectory.shape[:2], device=problem.device))
    used = problem.samples if problem.mask is None else problem.samples[:, problem.mask]
    matrix = compression_matrix(used.flatten(1), coils)
    compressed = problem.replace(samples=compress(problem.samples, matrix))
    shape = problem.shape
    if matrix.shape[0] == 1:
        ones = torch.ones((1, *shape), dtype=torch.complex64, device=problem.device)
        calibration = Calibration(matrix, ones, ones[0].real)
        return calibration.apply(problem), calibration
    subspace = signal_subspace(protocol, min(_COMPONENTS, protocol.contrasts))
    term = ContrastTerm(HybridSamples.of(compressed), subspace.basis)
    prior = (subspace.singular.clamp_min(1e-3) ** -2).to(problem.device)
    ridge = _RIDGE * float(term.gram.diagonal(dim1=1, dim2=2).real.mean()) + 1e-6
    system = term.gram + torch.diag_embed((ridge * prior).to(torch.complex64))
    solved = torch.linalg.solve(system, term.target.flatten(2))[:, 0].reshape(*shape[:-1], matrix.shape[0], shape[-1]).movedim(-2, 0)
    region = torch.fft.fftshift(torch.fft.fft(solved, norm="ortho"), dim=tuple(range(1, len(shape) + 1)))
    width = CALIBRATION_WIDTH if len(shape) == 2 else CALIBRATION_WIDTH * 2 // 3
    for axis, n in enumerate(shape, start=1):
        kept = min(n, width)
        region = region.narrow(axis, n // 2 - kept // 2, kept)
    if not bool(region.abs().sum() > 0):
        raise DataError("readouts", "none near the centre of k-space", "Sample the centre: coil sensitivities are estimated there.")
    maps, eigenvalues = espirit(region, shape, KERNEL_WIDTH if len(shape) == 2 else KERNEL_WIDTH - 2)
    calibration = Calibration(matrix, maps, eigenvalues)
    return calibration.apply(problem), calibration
