"""What the solvers of an explicit frame series share: frame-wise normal operator, right-hand side, starting point."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from recon_core.calibration.temporal_basis import power_weighted
from recon_core.operators.frames import FrameEncoding
from recon_core.operators.off_resonance import SegmentedNormal
from recon_core.operators.proximal import largest_eigenvalue
from recon_core.operators.toeplitz import ToeplitzNormal
from recon_core.problem import KSpaceProblem

_AVERAGE_STEPS = 12


@dataclasses.dataclass(frozen=True, eq=False)
class SeriesDataTerm:
    """``½‖W^½ (E x − y)‖²`` of a frame series x, frame by frame on the Toeplitz form.

    Attributes:
        normal: EᴴWE.
        target: EᴴWy, complex64 ``[frame, (z,) y, x]``.
        energy: ``½‖W^½ y‖²``.
        lipschitz: bound on the largest eigenvalue of EᴴWE.
        occupied: int64, the frames that have samples (on the CPU).
    """

    normal: ToeplitzNormal | SegmentedNormal
    target: Tensor
    energy: float
    lipschitz: float
    occupied: Tensor

    @classmethod
    def of(cls, problem: KSpaceProblem, density_power: float, engine: str = "auto", seed: int = 0) -> SeriesDataTerm:
        """The data term of a calibrated problem.

        Args:
            problem: with maps; density weights where ``density_power`` is above 0.
            density_power: W = density compensation to this power, at most 1.
            engine: NUFFT engine by name.
            seed: of the power iteration's start.

        Raises:
            DataError: no maps, or no frame has a sample.
        """
        encoding = FrameEncoding(power_weighted(problem, density_power), engine)
        frames = encoding.frames
        normal = encoding.normal()
        target = encoding.backprojection(density=True)
        energy = sum(float((f.weights * f.samples.abs().square()).sum(dtype=torch.float64)) for f in frames)
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(target.shape, dtype=torch.complex64, generator=generator).to(target.device)
        term = cls(normal, target, 0.5 * energy, 1.0, encoding.occupied)
        # The power iteration ends a few per cent low.
        return dataclasses.replace(term, lipschitz=1.1 * largest_eigenvalue(term.normal, noise))

    def gradient(self, series: Tensor) -> tuple[Tensor, float]:
        """Gradient ``EᴴW(E x − y)`` at a series, and the data term's value there."""
        curved = self.normal(series)
        inner = (series.conj() * (0.5 * curved - self.target)).real.sum(dtype=torch.float64)
        return curved - self.target, self.energy + float(inner)

    def time_average(self) -> Tensor:
        """The one image that fits all frames best, ``[(z,) y, x]``, by a few conjugate-gradient steps: everything dynamic grows from it."""
        own = self.normal
        pooled = own.pooled() if isinstance(own, SegmentedNormal) else ToeplitzNormal(own.spectra.sum(0, keepdim=True), own.sensitivities)
        residual = self.target.sum(0, keepdim=True)
        image, direction = torch.zeros_like(residual), residual.clone()
        energy = residual.abs().square().sum()
        for _ in range(_AVERAGE_STEPS):
            if float(energy) == 0.0:
                break
            curved = pooled(direction)
            length = energy / (direction.conj() * curved).real.sum()
            image = image + length * direction
            residual = residual - length * curved
            new = residual.abs().square().sum()
            direction, energy = residual + (new / energy) * direction, new
        return image[0]
