"""What the solvers share that fit a network's images to the scan's own samples: scaling, batches, misfit, optimiser, warm start, saving."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from recon_core.losses import relative_l2
from recon_core.operators.frames import FrameEncoding
from recon_core.options import option
from recon_core.problem import ImageSeries, KSpaceProblem
from recon_core.solvers.base import Solver, frame_positions

FRAMES_EVALUATED = 16
_BRIGHT = 0.99


@dataclasses.dataclass(frozen=True)
class FieldSettings:
    """What every fitted network has; methods change the defaults."""

    steps: int = option(600, "optimiser steps", low=1, high=1_000_000)
    batch_frames: int = option(8, "frames a step", low=1, high=4096)
    learning_rate: float = option(5e-3, "Adam's learning rate, halved at half and three quarters of the run", low=1e-7, high=1.0)
    band_limit: bool = option(True, "images hold nothing from beyond the part of k-space that was sampled")


class ScaledFrames:
    """The samples of a problem's frames, scaled so that a network's output is of order one, and misfits of images to them.

    Args:
        problem: calibrated.
        engine: NUFFT engine by name.

    Attributes:
        encoding: images to samples.
        occupied: frames that have samples.
        scale: images in the problem's units are the network's times this.
        targets: scaled complex64 ``[coil, point]``, a frame each.
        peak: largest magnitude of the targets.
        energy: mean weighted energy of a frame with samples.
    """

    def __init__(self, problem: KSpaceProblem, engine: str) -> None:
        encoding = self.encoding = FrameEncoding(problem, engine)
        self.occupied: list[int] = encoding.occupied.tolist()
        average = torch.stack([encoding.adjoint(encoding.frames[t].samples * encoding.frames[t].weights, t) for t in self.occupied]).sum(0)
        bright = average.abs().flatten().kthvalue(max(1, round(_BRIGHT * average.numel()))).values
        self.scale = float(bright.clamp_min(1e-12))
        self.targets = [f.samples / self.scale for f in encoding.frames]
        self.peak = max(float(t.abs().max()) for t in self.targets if t.numel())
        total = sum(float((self.weight(t) * self.targets[t].abs().square()).sum(dtype=torch.float64)) for t in self.occupied)
        self.energy = total / len(self.occupied)
        self.magnitude = sum(float(self.parts(self.targets[t]).sum(dtype=torch.float64)) for t in self.occupied) / len(self.occupied)

    def weight(self, frame: int) -> Tensor:
        """Density weights of a frame's samples, float32 ``[point]``."""
        return self.encoding.frames[frame].weights

    @staticmethod
    def parts(samples: Tensor) -> Tensor:
        """Magnitudes of real and imaginary parts, ``[…, 2]``."""
        return torch.view_as_real(samples).abs()

    def residual(self, image: Tensor, frame: int) -> Tensor:
        """Predicted − measured, complex64 ``[coil, point]``."""
        return self.encoding.forward(image, frame) - self.targets[frame]

    def l2(self, image: Tensor, frame: int) -> Tensor:
        """Density-weighted squares; a zero image costs one in the mean over frames."""
        return (self.weight(frame) * self.residual(image, frame).abs().square()).sum() / self.energy

    def l1(self, image: Tensor, frame: int) -> Tensor:
        """Sum of the magnitudes of real and imaginary parts; a zero image costs one in the mean over frames."""
        return self.parts(self.residual(image, frame)).sum() / self.magnitude

    def relative(self, image: Tensor, frame: int, epsilon: float) -> Tensor:
        """Relative L2 with ε in units of :attr:`peak`."""
        residual = self.residual(image, frame)
        return relative_l2(residual, residual + self.targets[frame], (epsilon * self.peak) ** 2)


_MARGIN = 1.0


def sampled_disc(points: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor | None:
    """Which of an image's Fourier coefficients lie within the disc in (kx, ky) that the samples reach.

    A coefficient up to one cycle per field of view beyond the outermost sample still counts: the object is as large as the field of view.

    Args:
        points: of some frames, float32 ``[point, (kx, ky(, kz))]``, cycles per field of view.
        shape: of the image, ``((z,) y, x)``.

    Returns:
        bool ``[y, x]`` in the order of ``torch.fft.fftfreq``; None: all of them.
    """
    device = points[0].device
    ny, nx = shape[-2:]
    size = torch.tensor([nx, ny], device=device)
    reach = max(float((part[:, :2] / size).norm(dim=1).max()) for part in points if len(part)) + _MARGIN / min(ny, nx)
    radius = torch.hypot(torch.fft.fftfreq(ny, device=device)[:, None], torch.fft.fftfreq(nx, device=device)[None])
    inside = radius <= reach
    return None if bool(inside.all()) else inside


def levels_on(step: int, total: int, levels: int) -> int:
    """Levels of a hash encoding switched on: two, then one more every 1/levels of the first half of the run."""
    ramp = max(1.0, total / 2)
    return min(levels, 2 + math.floor(step / ramp * (levels - 1)))


S = TypeVar("S", bound=FieldSettings)


class FieldSolver(Solver[S]):
    """A network fitted to the samples of some frames a step.

    A method gives :meth:`_make` (the network), :meth:`_render` (its images of frames at any moments) and, where it differs, :meth:`_misfit`
    and :meth:`_penalty`.

    Attributes:
        field: the network.
        frames: the scaled samples.
        disc: which Fourier coefficients of an image were within reach of the samples; None: all, or no limit.
        warm: whether a previous fit is gone on with.
        notes: for the reader of the images.
    """

    check_every = 25
    selection_matrix = 0.5
    fitted: ClassVar[tuple[str, ...]] = ("field", "optimiser", "schedule", "generator", "queue", "warm", "cost")
    betas: ClassVar[tuple[float, float]] = (0.9, 0.99)
    field: nn.Module
    cost: float | None = None

    @property
    def total_steps(self) -> int:
        """Optimiser steps."""
        return self.settings.steps

    def start(self, problem: KSpaceProblem, previous: Solver[S] | None = None) -> None:
        """See :class:`Solver`; a previous fit of the same network hands it on.

        What was fitted with all levels goes on with all levels: a warm start skips coarse-to-fine schedules.
        """
        self.problem = problem
        self.step = 0
        self.cost = None
        self.notes: list[str] = []
        self.queue: list[Any] = []
        self.generator = torch.Generator().manual_seed(self.seed + 1)
        self.frames = ScaledFrames(problem, self.engine)
        self.disc = sampled_disc([part.points for part in self.frames.encoding.frames], problem.shape) if self.settings.band_limit else None
        self.field = self._make().to(problem.device)
        self._prepare()
        self.warm = isinstance(previous, type(self)) and _shapes(previous.field) == _shapes(self.field)
        if isinstance(previous, type(self)) and self.warm:
            self._take_over(previous)
        self.optimiser: torch.optim.Optimizer = self._optimiser()
        milestones = [max(1, self.total_steps // 2), max(2, self.total_steps * 3 // 4)]
        self.schedule = torch.optim.lr_scheduler.MultiStepLR(self.optimiser, milestones, gamma=0.5)

    @abc.abstractmethod
    def _make(self) -> nn.Module:
        """The network, its weights seeded."""

    def _prepare(self) -> None:
        """Whatever can be computed once, now that network and samples are there."""

    def _take_over(self, previous: Any) -> None:
        """Take the weights of a previous fit whose network has the same shapes."""
        self.field.load_state_dict(previous.field.state_dict())

    def _optimiser(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.field.parameters(), lr=self.settings.learning_rate, betas=self.betas, eps=1e-15)

    @abc.abstractmethod
    def _render(self, positions: Tensor) -> Tensor:
        """Images complex64 ``[frame, (z,) y, x]`` of order one at fractional frame numbers (float64, on the CPU)."""

    def _misfit(self, image: Tensor, frame: int) -> Tensor:
        """The data term of one frame."""
        return self.frames.l2(image, frame)

    def _penalty(self, images: Tensor) -> Tensor | None:
        """What else the images of a batch cost."""
        return None

    def _next_frames(self) -> list[int]:
        """The next batch: every frame comes once before any comes again."""
        occupied = self.frames.occupied
        wanted = min(self.settings.batch_frames, len(occupied))
        if len(self.queue) < wanted:
            order = torch.randperm(len(occupied), generator=self.generator)
            self.queue += [occupied[int(i)] for i in order]
        batch, self.queue = self.queue[:wanted], self.queue[wanted:]
        return batch

    def _update(self) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        self.cost = self._backward(self._next_frames())
        self.optimiser.step()
        self.schedule.step()

    def _backward(self, batch: list[int]) -> float:
        """Gradients of a batch's cost, and the cost."""
        images = self._render(torch.tensor(batch, dtype=torch.float64))
        present = [(image, frame) for image, frame in zip(images, batch, strict=True) if self.frames.targets[frame].numel()]
        cost = torch.stack([self._misfit(image, frame) for image, frame in present]).sum() / len(present)
        penalty = self._penalty(images)
        if penalty is not None:
            cost = cost + penalty
        cost.backward()
        return float(cost.detach())

    def objective(self) -> float | None:
        """Loss of the last step."""
        return self.cost

    @torch.no_grad()
    def images(self, times: Tensor | None = None) -> ImageSeries:
        """See :class:`Solver`; the network is asked at the times themselves."""
        times = self.problem.frame_times if times is None else times
        positions = frame_positions(self.problem.frame_times, times)
        images = torch.cat([self._limited(self._render(part)) for part in positions.split(FRAMES_EVALUATED)]) * self.frames.scale
        return ImageSeries(images, times, self._latents(positions), tuple(self.notes))

    def _limited(self, images: Tensor) -> Tensor:
        """Images without the corners of k-space that spokes and spirals leave out: the samples leave the network free there."""
        return images if self.disc is None else torch.fft.ifft2(torch.fft.fft2(images) * self.disc)

    def _latents(self, positions: Tensor) -> Tensor | None:
        """What the method learned of the moments, where it learned any."""
        return None


def _shapes(field: nn.Module) -> dict[str, torch.Size]:
    return {name: weights.shape for name, weights in field.state_dict().items()}
