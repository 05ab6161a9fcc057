"""Frames of Cartesian k-space as arrays: what was measured where, and images from completed k-space."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from recon_core.errors import DataError
from recon_core.operators.frames import gather, required_sensitivities
from recon_core.problem import KSpaceProblem


def require_cartesian(name: str, problem: KSpaceProblem) -> None:
    """Refuse a problem whose samples do not lie on the grid of the image.

    Args:
        name: of the method, for the message.
        problem: any problem.

    Raises:
        DataError: the samples lie elsewhere.
    """
    if not problem.cartesian:
        raise DataError(
            "solver",
            f"{name} completes Cartesian k-space, the scan's samples lie off the grid",
            "Send Cartesian lines, or choose another solver.",
        )


@dataclasses.dataclass(frozen=True, eq=False)
class CartesianFrames:
    """k-space of every frame on the grid of the image, k = 0 at index N//2.

    Attributes:
        samples: complex64 ``[frame, coil, (z,) y, x]``, repeated samples averaged, zero where nothing was measured.
        measured: bool ``[frame, (z,) y, x]``.
        sensitivities: complex64 ``[coil, (z,) y, x]``.
        occupied: int64, the frames that have samples (on the CPU).
    """

    samples: Tensor
    measured: Tensor
    sensitivities: Tensor
    occupied: Tensor

    @classmethod
    def of(cls, problem: KSpaceProblem) -> CartesianFrames:
        """The frames of a calibrated Cartesian problem.

        Raises:
            DataError: no maps, or no frame has a sample.
        """
        maps = required_sensitivities(problem)
        shape, n_points = problem.shape, math.prod(problem.shape)
        samples = torch.zeros((problem.n_frames, problem.n_coils, n_points), dtype=torch.complex64, device=problem.device)
        visits = torch.zeros((problem.n_frames, n_points), device=problem.device)
        for frame, readouts in enumerate(problem.frames):
            part = gather(problem, readouts)
            index = torch.zeros(part.points.shape[0], dtype=torch.int64, device=problem.device)
            for axis, n in zip(reversed(range(problem.dim)), shape, strict=True):
                index = index * n + torch.round(part.points[:, axis]).to(torch.int64) + n // 2
            samples[frame].index_add_(1, index, part.samples)
            visits[frame].index_add_(0, index, torch.ones_like(part.points[:, 0]))
        measured = visits > 0
        occupied = torch.nonzero(measured.any(1), as_tuple=True)[0].cpu()
        if not occupied.numel():
            raise DataError("frames", f"none of {problem.n_frames} has a sample left", "Discard fewer readouts or samples.")
        samples = samples / visits.clamp_min(1)[:, None]
        return cls(samples.reshape(*samples.shape[:2], *shape), measured.reshape(-1, *shape), maps, occupied)

    def consistent(self, kspace: Tensor) -> Tensor:
        """Completed k-space ``[frame, coil, (z,) y, x]`` with every measured sample put back."""
        return torch.where(self.measured[:, None], self.samples, kspace)

    def combine(self, kspace: Tensor) -> Tensor:
        """Images ``[frame, (z,) y, x]`` of completed k-space: inverse transform, coils combined by their sensitivities."""
        dims = tuple(range(-(self.measured.ndim - 1), 0))
        coils = torch.fft.fftshift(torch.fft.ifftn(torch.fft.ifftshift(kspace, dim=dims), dim=dims, norm="ortho"), dim=dims)
        return (self.sensitivities.conj() * coils).sum(1)

    def kspace(self, images: Tensor) -> Tensor:
        """k-space ``[frame, coil, (z,) y, x]`` of images ``[frame, (z,) y, x]``: the adjoint of :meth:`combine`."""
        dims = tuple(range(-(self.measured.ndim - 1), 0))
        coils = torch.fft.ifftshift(self.sensitivities * images[:, None], dim=dims)
        return torch.fft.fftshift(torch.fft.fftn(coils, dim=dims, norm="ortho"), dim=dims)
