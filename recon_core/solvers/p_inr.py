"""P-INR: Cartesian k-space as a function of its coordinates, the positional branch of KP-INR alone (Lyu et al., 2025)."""

from __future__ import annotations

import abc
import dataclasses
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from recon_core.fields.kp import KpSizes, PositionalField
from recon_core.losses import high_dynamic_range
from recon_core.operators.cartesian import CartesianFrames, require_cartesian
from recon_core.options import option
from recon_core.problem import ImageSeries, KSpaceProblem
from recon_core.solvers.base import Solver, interpolate_frames

_POINTS_AT_ONCE = 1 << 15
_FLOOR = 1e-3


@dataclasses.dataclass(frozen=True)
class PInrSettings:
    """Settings of :class:`PInr`."""

    steps: int = option(1500, "optimiser steps", low=1, high=1_000_000)
    points: int = option(4096, "samples a step", low=1, high=1 << 24)
    learning_rate: float = option(2e-3, "AdamW's learning rate", low=1e-8, high=1.0)
    decay: float = option(0.95, "factor on the learning rate, sixty times a run", low=0.01, high=1.0)
    weight_decay: float = option(0.1, "AdamW's weight decay", low=0.0, high=10.0)
    spatial_features: int = option(480, "features of (kx, ky)", low=4, high=8192)
    temporal_features: int = option(96, "features of t", low=2, high=2048)
    support: float = option(0.25, "standard deviation of the random spatial frequencies, share of the field of view", low=1e-3, high=2.0)
    temporal_bandwidth: float = option(1.0, "standard deviation of the temporal frequencies, cycles per half scan", low=0.0, high=100.0)
    width: int = option(128, "hidden width", low=4, high=4096)
    depth: int = option(7, "layers", low=3, high=24)
    omega: float = option(1.0, "ω of the wavelets", low=1e-3, high=1000.0)
    sigma: float = option(0.5, "σ of the wavelets", low=0.0, high=1000.0)
    hdr_epsilon: float = option(1e-2, "ε of the HDR loss, in units of the samples' largest magnitude", low=1e-6, high=1e3)
    equalise: bool = option(True, "let the network see k-space divided by its mean magnitude about every point")


S = TypeVar("S", bound=PInrSettings)


class KSpaceFit(Solver[S], Generic[S]):
    """A network fitted to the samples of Cartesian k-space, all coils at once; what was measured is kept (hard data consistency)."""

    dims = (2,)
    check_every = 100
    selection_matrix = 0.5
    fitted: ClassVar[tuple[str, ...]] = ("field", "optimiser", "schedule", "generator", "cost")
    field: nn.Module
    cost: float | None = None

    @classmethod
    def suits(cls, problem: KSpaceProblem) -> None:
        """See :class:`Solver`; k-space must be Cartesian.

        Raises:
            DataError: it is not, or 3D.
        """
        super().suits(problem)
        require_cartesian(cls.name, problem)

    @property
    def total_steps(self) -> int:
        """Optimiser steps."""
        return self.settings.steps

    @property
    def sizes(self) -> KpSizes:
        """Widths as set."""
        s = self.settings
        return KpSizes(s.spatial_features, s.temporal_features, s.support, s.temporal_bandwidth, s.width, s.depth, s.omega, s.sigma)

    def start(self, problem: KSpaceProblem, previous: Solver[S] | None = None) -> None:
        """See :class:`Solver`; a previous fit of the same network hands it on."""
        require_cartesian(self.name, problem)
        self.problem = problem
        self.step = 0
        self.cost = None
        self.frames = CartesianFrames.of(problem)
        self.scale = float(self.frames.samples.abs().max().clamp_min(1e-12))
        self.targets = self.frames.samples / self.scale
        self.envelope = self._envelope() if self.settings.equalise else torch.ones(problem.shape, device=problem.device)
        self.generator = torch.Generator().manual_seed(self.seed + 1)
        self.field = self._make().to(problem.device)
        if isinstance(previous, type(self)) and _shapes(previous.field) == _shapes(self.field):
            self.field.load_state_dict(previous.field.state_dict())
        settings = self.settings
        self.optimiser = torch.optim.AdamW(self.field.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
        each = max(1, self.total_steps // 60)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimiser, each, gamma=settings.decay)

    @abc.abstractmethod
    def _make(self) -> nn.Module:
        """The network, its weights seeded."""

    def _envelope(self) -> Tensor:
        """Mean magnitude of the samples about every point ``[y, x]``, coils and frames together: k-space falls by orders of magnitude."""
        power = self.targets.abs().square().mean(1).sum(0)
        visits = self.frames.measured.sum(0).to(power.dtype)
        blurred, weight = (_blur(_blur(part, 0), 1) for part in (power, visits))
        mean = (blurred / weight.clamp_min(1e-6)).sqrt()
        return mean.clamp_min(_FLOOR * float(mean.max()))

    def coordinates(self, frames: Tensor, places: Tensor) -> Tensor:
        """``[point, (kx, ky, t)]`` of points given by their frame and their place in the flattened grid."""
        ny, nx = self.problem.shape
        t = 2 * frames.to(torch.float32) / max(1, self.problem.n_frames - 1) - 1
        return torch.stack([(places % nx - nx // 2).to(torch.float32), (places // nx - ny // 2).to(torch.float32), t], dim=1)

    def _loss(self, predicted: Tensor, frames: Tensor, places: Tensor) -> Tensor:
        """HDR loss of predictions ``[point, coil]``, in units of the largest sample."""
        measured = self.targets.flatten(2)[frames, :, places]
        scaled = predicted * self.envelope.flatten()[places][:, None]
        return high_dynamic_range(scaled - measured, scaled, self.settings.hdr_epsilon)

    def _drawn(self, measured: Tensor) -> tuple[Tensor, Tensor]:
        """Frames and places of a random part of the measured samples of ``[frame, y, x]``."""
        found = torch.nonzero(measured.flatten(1))
        if len(found) > self.settings.points:
            found = found[torch.randint(len(found), (self.settings.points,), generator=self.generator).to(found.device)]
        return found[:, 0], found[:, 1]

    def _descend(self, loss: Tensor) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        self.schedule.step()
        self.cost = float(loss.detach())

    def objective(self) -> float | None:
        """Loss of the last step."""
        return self.cost

    @abc.abstractmethod
    def _predict(self) -> Tensor:
        """The network's k-space ``[frame, coil, y, x]``, divided by the envelope."""

    def _completed(self) -> Tensor:
        """Predicted k-space in the samples' units, measured samples put back."""
        return self.frames.consistent(self._predict() * self.envelope * self.scale)

    @torch.no_grad()
    def images(self, times: Tensor | None = None) -> ImageSeries:
        """See :class:`Solver`; between frames, and in frames without data, images are interpolated in time."""
        frame_times = self.problem.frame_times
        times = frame_times if times is None else times
        images = self.frames.combine(self._completed())
        return ImageSeries(interpolate_frames(images, frame_times, times, self.frames.occupied), times)


class PInr(KSpaceFit[PInrSettings]):
    """Coordinates (kx, ky, t), encoded, through a WIRE network to the signal of all coils."""

    name = "p_inr"
    off_resonance = False
    Settings = PInrSettings
    field: PositionalField

    def _make(self) -> nn.Module:
        ny, nx = self.problem.shape
        return PositionalField((ny, nx), self.problem.n_coils, self.sizes, self.seed)

    def _update(self) -> None:
        frames, places = self._drawn(self.frames.measured)
        self._descend(self._loss(self.field(self.coordinates(frames, places)), frames, places))

    def _predict(self) -> Tensor:
        ny, nx = self.problem.shape
        places = torch.arange(ny * nx, device=self.problem.device)
        made = []
        for frame in range(self.problem.n_frames):
            points = self.coordinates(torch.full_like(places, frame), places)
            made.append(torch.cat([self.field(part) for part in points.split(_POINTS_AT_ONCE)]))
        return torch.stack(made).permute(0, 2, 1).reshape(len(made), -1, ny, nx)


def _blur(image: Tensor, axis: int) -> Tensor:
    """Triangle-weighted mean over five neighbours along an axis, edges included."""
    n = image.shape[axis]
    out = torch.zeros_like(image)
    for shift, weight in ((-2, 1.0), (-1, 2.0), (0, 3.0), (1, 2.0), (2, 1.0)):
        low, high = max(0, -shift), min(n, n - shift)
        out.narrow(axis, low, high - low).add_(image.narrow(axis, low + shift, high - low), alpha=weight)
    return out


def _shapes(field: nn.Module) -> dict[str, torch.Size]:
    return {name: weights.shape for name, weights in field.state_dict().items()}


SOLVER = PInr
