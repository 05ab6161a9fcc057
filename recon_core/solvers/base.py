"""What every solver is: a stepper, so that the caller owns deadline, progress, early stop and preemption."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from recon_core.problem import ImageSeries, KSpaceProblem
from recon_core.signal_models import ParameterMap

S = TypeVar("S")


class Solver(abc.ABC, Generic[S]):
    """A reconstruction method.

    Life: ``start(problem)``, ``update()`` until ``done``, ``images(times)`` at any time in between or after.

    Attributes:
        name: in the registry.
        Settings: frozen dataclass of the method's own settings, declared with :func:`recon_core.options.option`.
        dims: spatial dimensions the method handles.
        selection_matrix: share of the matrix size at which settings are chosen; dynamics live at low k, and a choice costs several fits.
        quantitative: the frames are the contrasts of a protocol, and the method gives parameter maps.
        check_every: steps between two looks at the held-out error when the stopping step is being chosen; 0: the method runs to its end.
    """

    name: ClassVar[str]
    Settings: ClassVar[type]
    dims: ClassVar[tuple[int, ...]] = (2, 3)
    selection_matrix: ClassVar[float] = 1.0
    quantitative: ClassVar[bool] = False
    check_every: ClassVar[int] = 0

    problem: KSpaceProblem

    def __init__(self, settings: S, *, engine: str = "auto", seed: int = 0) -> None:
        self.settings = settings
        self.engine = engine
        self.seed = seed
        self.step = 0
        self.limit: int | None = None

    @property
    @abc.abstractmethod
    def total_steps(self) -> int:
        """Steps of a full run."""

    @property
    def done(self) -> bool:
        """Whether the run has reached its end, or the step at which it was told to stop."""
        return self.step >= (self.total_steps if self.limit is None else min(self.limit, self.total_steps))

    @abc.abstractmethod
    def start(self, problem: KSpaceProblem, previous: Solver[S] | None = None) -> None:
        """Take a calibrated problem; ``previous`` (same method, same slice) gives a warm start where the method knows one."""

    def start_beside(self, other: Solver[S]) -> None:
        """Start afresh on the problem of another fit of this method, sharing what their settings have in common."""
        self.start(other.problem)

    def update(self) -> None:
        """One step."""
        self._update()
        self.step += 1

    @abc.abstractmethod
    def _update(self) -> None: ...

    @abc.abstractmethod
    def images(self, times: Tensor | None = None) -> ImageSeries:
        """The series as it stands, at the frames' times or at any others (float64 ``[time]``, seconds)."""

    def maps(self) -> tuple[ParameterMap, ...]:
        """Tissue parameters, where the method gives them."""
        return ()

    @classmethod
    def candidates(cls, settings: Any, problem: KSpaceProblem) -> list[Any]:
        """Settings among which held-out readouts choose; one entry: nothing is left to choose."""
        return [settings]

    @classmethod
    def refinements(cls, settings: Any, asked: Any) -> list[Any]:
        """Settings to try once the best of the candidates is known.

        Args:
            settings: the best candidate.
            asked: the settings as they were given.
        """
        return []

    def objective(self) -> float | None:
        """The cost of the last step, for logs, where the method has one."""
        return None


@dataclasses.dataclass(frozen=True)
class NoSettings:
    """A method without settings of its own."""


def interpolate_frames(images: Tensor, frame_times: Tensor, times: Tensor, occupied: Tensor | None = None) -> Tensor:
    """Linear interpolation along time of frames ``[frame, ...]``; constant beyond the ends.

    Args:
        images: of all frames.
        frame_times: float64 ``[frame]``, seconds, rising.
        times: float64, the times wanted, seconds.
        occupied: int64, the frames that count; the others, without data, are interpolated from them. None: all.
    """
    if occupied is not None and occupied.numel() < frame_times.shape[0]:
        images, frame_times = images[occupied.to(images.device)], frame_times[occupied]
    if times.shape == frame_times.shape and bool((times == frame_times).all()):
        return images
    position = np.interp(times.numpy(), frame_times.numpy(), np.arange(frame_times.shape[0], dtype=np.float64))
    lower = torch.from_numpy(np.floor(position).astype(np.int64)).clamp(0, images.shape[0] - 1)
    upper = (lower + 1).clamp_max(images.shape[0] - 1)
    fraction = torch.from_numpy((position - lower.numpy()).astype(np.float32)).to(images.device)
    fraction = fraction.reshape(-1, *[1] * (images.ndim - 1))
    return images[lower.to(images.device)] * (1 - fraction) + images[upper.to(images.device)] * fraction
