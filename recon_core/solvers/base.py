"""What every solver is: a stepper, so that the caller owns deadline, progress, early stop and preemption."""

from __future__ import annotations

import abc
import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from recon_core.errors import DataError, SettingError
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
        course: the frames are the course of one object in time, to which a scan of a single frame says nothing; False: each is
            reconstructed by itself.
        evidence: share by which a later candidate must lower the held-out error to be taken instead of an earlier one.
        check_every: steps between two looks at the held-out error when the stopping step is being chosen; 0: the method runs to its end.
        off_resonance: whether the method models a field map.
        fitted: attributes that :meth:`state_dict` saves; none: a fit cannot be saved.
    """

    name: ClassVar[str]
    Settings: ClassVar[type]
    dims: ClassVar[tuple[int, ...]] = (2, 3)
    selection_matrix: ClassVar[float] = 1.0
    quantitative: ClassVar[bool] = False
    course: ClassVar[bool] = True
    evidence: ClassVar[float] = 0.0
    check_every: ClassVar[int] = 0
    fitted: ClassVar[tuple[str, ...]] = ()
    off_resonance: ClassVar[bool] = True
    problem: KSpaceProblem

    def __init__(self, settings: S, *, engine: str = "auto", seed: int = 0) -> None:
        self.settings = settings
        self.engine = engine
        self.seed = seed
        self.step = 0
        self.limit: int | None = None

    @classmethod
    def suits(cls, problem: KSpaceProblem) -> None:
        """Refuse a problem that the method cannot reconstruct.

        Raises:
            DataError: says what the method needs.
        """
        if problem.dim not in cls.dims:
            raise DataError("solver", f"{cls.name} handles {cls.dims} dimensions, the scan has {problem.dim}", "Choose another solver.")
        if cls.quantitative != (problem.protocol is not None):
            needs = "a multi-contrast protocol" if cls.quantitative else "a dynamic scan"
            raise DataError("solver", f"{cls.name} is for {needs}", "Choose another solver or chain.")
        occupied = sum(1 for readouts in problem.frames if readouts.numel())
        if cls.course and not cls.quantitative and occupied < 2:
            raise DataError(
                "frames",
                f"{occupied} with readouts, of {problem.n_readouts}; {cls.name} models a course in time and needs at least two frames",
                "Lower readouts_per_frame, or reconstruct a static scan with solver=cg_sense.",
            )
        if problem.field_map is not None and not cls.off_resonance:
            raise DataError("field map", f"not modelled by {cls.name}", "Choose another solver, or leave field_map out.")

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

    def coil_maps(self) -> Tensor | None:
        """Coil sensitivities that the method has learned, complex64 ``[coil, (z,) y, x]``; None: it takes the problem's."""
        return None

    @classmethod
    def candidates(cls, settings: Any, problem: KSpaceProblem) -> list[Any]:
        """Settings among which held-out readouts choose; one entry: nothing is left to choose."""
        return [settings]

    @classmethod
    def unguided(cls, settings: Any, problem: KSpaceProblem) -> Any:
        """Settings where no readouts are held out to choose them: the middle candidate."""
        candidates = cls.candidates(settings, problem)
        return candidates[len(candidates) // 2]

    @classmethod
    def refinements(cls, settings: Any, asked: Any, tried: Sequence[Any], problem: KSpaceProblem) -> list[Any]:
        """Settings to try once the best of the candidates is known, and again once these are; none: the best stands.

        Args:
            settings: the best so far.
            asked: the settings as they were given.
            tried: all that were tried.
            problem: the whole scan, at full matrix.
        """
        return []

    @classmethod
    def regularisation(cls, settings: Any) -> Any:
        """What makes settings comparable, the greater the more regularised; None: the method has no such order.

        Of settings between which held-out readouts do not decide, the most regularised are chosen.
        """
        return None

    @classmethod
    def evidence_for(cls, settings: Any, instead_of: Any) -> float:
        """Share by which settings must lower the held-out error of those tried before to be taken instead."""
        return cls.evidence

    @classmethod
    def admissible(cls, settings: Any, asked: Any) -> bool:
        """Whether the choice may fall on these settings; others are tried only on the way."""
        return True

    def objective(self) -> float | None:
        """The cost of the last step, for logs, where the method has one."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """The fit as it stands, settings included, for ``torch.save``; :func:`recon_core.solvers.registry.resume` goes on from it.

        Samples and calibration are not in it: they belong to the problem.

        Raises:
            SettingError: the method keeps nothing that could be saved.
        """
        if not self.fitted:
            raise SettingError("solver", f"a fit of {self.name} cannot be saved", "Run it again: the same problem gives the same images.")
        fit = {name: _packed(getattr(self, name)) for name in self.fitted}
        return {**self._identity(), "step": self.step, "limit": self.limit, "fit": fit}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on with a saved fit, after ``start`` with the problem it was fitted to.

        Raises:
            DataError: the fit is another method's, has other settings, or belongs to another kind of problem.
        """
        for name, mine in self._identity().items():
            if saved.get(name) != mine:
                raise DataError(f"saved {name}", f"{saved.get(name)!r}, here {mine!r}", "Resume a fit with its own settings and problem.")
        for name in self.fitted:
            setattr(self, name, _unpacked(getattr(self, name), saved["fit"][name]))
        self.step, self.limit = saved["step"], saved["limit"]

    def _identity(self) -> dict[str, Any]:
        """What a saved fit must share with the solver that goes on with it."""
        own = dataclasses.asdict(self.settings)  # type: ignore[call-overload]
        sizes = {"shape": tuple(self.problem.shape), "frames": self.problem.n_frames, "coils": self.problem.n_coils}
        return {"solver": self.name, "settings": own, "seed": self.seed, **sizes}


def rungs_beside(settings: Any, asked: Any, tried: Sequence[Any], ladders: Mapping[str, Sequence[float]]) -> list[Any]:
    """For :meth:`Solver.refinements`: the rung above the best so far, else the one below, that was not tried yet; none: both are worse.

    Args:
        settings: the best so far.
        asked: the settings as they were given; what they set stays.
        tried: all that were tried.
        ladders: rising values of a setting by its name; climbed in this order.
    """
    for name, values in ladders.items():
        value = getattr(settings, name)
        if getattr(asked, name) is not None or value is None:
            continue
        place = values.index(value)
        for rung in (*values[place + 1 : place + 2], *values[max(place - 1, 0) : place]):
            other = dataclasses.replace(settings, **{name: rung})
            if other not in tried:
                return [other]
    return []


def _packed(value: Any) -> Any:
    """A copy that ``torch.save`` takes and ``torch.load`` gives back with ``weights_only``."""
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, Tensor):
        return value.detach().clone()
    return copy.deepcopy(value.state_dict() if hasattr(value, "state_dict") else value)


def _unpacked(current: Any, stored: Any) -> Any:
    """``stored`` in the place of ``current``; what others hold on to (parameters, generators) stays the same object."""
    if isinstance(current, torch.Generator):
        current.set_state(stored.cpu())
    elif isinstance(current, Tensor):
        current.data.copy_(stored)
    elif hasattr(current, "load_state_dict"):
        current.load_state_dict(stored)
    else:
        return copy.deepcopy(stored)
    return current


@dataclasses.dataclass(frozen=True)
class NoSettings:
    """A method without settings of its own."""


def frame_positions(frame_times: Tensor, times: Tensor) -> Tensor:
    """Times as fractional frame numbers (float64), constant beyond the ends.

    Args:
        frame_times: float64 ``[frame]``, seconds, rising.
        times: float64, the times wanted, seconds.
    """
    return torch.from_numpy(np.interp(times.numpy(), frame_times.numpy(), np.arange(frame_times.shape[0], dtype=np.float64)))


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
    return interpolate_at(images, frame_positions(frame_times, times))


def interpolate_at(values: Tensor, positions: Tensor) -> Tensor:
    """Linear interpolation of ``values[frame, ...]`` at fractional frame numbers (float64, on the CPU)."""
    lower = positions.floor().to(torch.int64).clamp(0, values.shape[0] - 1)
    upper = (lower + 1).clamp_max(values.shape[0] - 1)
    fraction = (positions - lower).to(torch.float32).to(values.device).reshape(-1, *[1] * (values.ndim - 1))
    return values[lower.to(values.device)] * (1 - fraction) + values[upper.to(values.device)] * fraction
