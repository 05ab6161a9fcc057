"""From whitened readouts to images: held-out selection, calibration, fit."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from recon_core.calibration import calibrate
from recon_core.calibration.calibrate import Calibration, with_density
from recon_core.calibration.holdout import CENTRE_RADIUS, held_out_readouts, owner_frames
from recon_core.errors import DataError, MissingPartError
from recon_core.operators.frames import FrameSamples, gather, transform
from recon_core.operators.nufft import resolve_engine
from recon_core.operators.off_resonance import segments_of
from recon_core.options import build, option
from recon_core.problem import ImageSeries, KSpaceProblem
from recon_core.solvers.base import Solver
from recon_core.solvers.registry import solver_class

log = logging.getLogger(__name__)

_FRAMES_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class ReconstructionSettings:
    """What holds for every solver."""

    solver: str = option("subspace_inr", "solver by name")
    coils: int = option(8, "virtual coils kept by SVD compression", low=1, high=256)
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    engine: str = option("auto", "NUFFT engine", choices=("auto", "finufft", "cufinufft", "torchkbnufft", "nudft"))
    seed: int = option(0, "seed of everything random", low=0, high=2**31 - 1)
    holdout: float = option(0.05, "share of readouts on which settings and stopping are chosen", low=0.0, high=0.5)


@dataclasses.dataclass(frozen=True, eq=False)
class Reconstruction:
    """Images and how they came about.

    Attributes:
        series: the images.
        report: JSON-able record: solver, engine, device, chosen settings, steps, held-out errors, seconds by stage.
        compression: complex64 ``[virtual, coil]``, from whitened coils to those of ``sensitivities``; None for slices put together.
        sensitivities: complex64 ``[virtual, (z,) y, x]``, as estimated or as the method has learned them.
    """

    series: ImageSeries
    report: dict[str, Any]
    compression: Tensor | None = None
    sensitivities: Tensor | None = None


def resolve_device(name: str) -> torch.device:
    """The torch device that ``name`` means.

    Raises:
        MissingPartError: CUDA asked for and absent, or no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise MissingPartError("device", f"{name!r} is no device", "Give auto, cpu, cuda or cuda:N.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise MissingPartError("device", f"{name!r} asked for, but torch finds no CUDA device", "Use device=cpu or device=auto.")
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise MissingPartError("device", f"{name!r} of {torch.cuda.device_count()} CUDA devices", "Give a lower number.")
    if device.type not in ("cpu", "cuda"):
        raise MissingPartError("device", f"{name!r} is not supported", "Give auto, cpu, cuda or cuda:N.")
    return device


class HeldOut:
    """Predicts held-out readouts from a solver's images (METHODS: density-weighted mean |residual|² over noise variance)."""

    def __init__(self, problem: KSpaceProblem, held: Tensor, calibration: Calibration, engine: str) -> None:
        weighted = calibration.apply(problem)
        owner = owner_frames(problem)
        self.times = problem.frame_times
        self.maps = calibration.sensitivities
        self.groups = []
        segments = segments_of(problem)
        for frame in sorted(set(owner[held].tolist()) - {-1}):
            readouts = torch.nonzero(held & (owner == frame), as_tuple=True)[0].to(problem.device)
            part = gather(weighted, readouts)
            outside = part.points.norm(dim=1) >= CENTRE_RADIUS
            part = FrameSamples(part.points[outside], part.samples[:, outside], part.weights[outside], part.places[outside])
            self.groups.append((frame, transform(problem, part, frame, segments, engine), part.samples, part.weights))
        if not self.groups:
            raise DataError(
                "holdout", "no held-out readout belongs to a frame", "Give the solver's weights and holdout=0, or send more readouts."
            )

    def error(self, solver: Solver[Any]) -> float:
        """The sum of :meth:`errors`."""
        return float(self.errors(solver).sum())

    def errors(self, solver: Solver[Any]) -> Tensor:
        """Error of the solver's images at the moments of the held-out readouts.

        Returns:
            float64 ``[frame with held-out readouts]``: each one's part of the error, whose sum is 1.0 at the noise floor.
        """
        learned = solver.coil_maps()
        maps = self.maps if learned is None else learned
        found, weight = [], 0.0
        for start in range(0, len(self.groups), _FRAMES_AT_ONCE):
            groups = self.groups[start : start + _FRAMES_AT_ONCE]
            images = solver.images(self.times[[frame for frame, *_ in groups]]).images
            for image, (_, nufft, samples, weights) in zip(images, groups, strict=True):
                residual = nufft.forward(maps * image) - samples
                found.append(float((weights * residual.abs().square()).sum(dtype=torch.float64)))
                weight += float(weights.sum(dtype=torch.float64)) * samples.shape[0]
        return torch.tensor(found, dtype=torch.float64) / weight


def run(solver: Solver[Any], progress: Callable[[str], None] | None = None) -> None:
    """Step a started solver to its end, telling progress at every tenth.

    Raises:
        DataError: the cost is no longer finite.
    """
    last = solver.total_steps if solver.limit is None else min(solver.limit, solver.total_steps)
    told = 0
    while not solver.done:
        solver.update()
        cost = solver.objective()
        if cost is not None and not cost < float("inf"):
            raise DataError("fit", f"cost {cost} at step {solver.step}", "Lower the learning rate or check the data's scale.")
        if progress is not None and last > 1 and solver.step * 10 // last > told:
            told = solver.step * 10 // last
            progress(f"{solver.name}: step {solver.step} of {last}" + ("" if cost is None else f", cost {cost:.4g}"))


@dataclasses.dataclass
class _Fit:
    """Settings that were tried, the step that was best, its errors, and the fit as long as it may be gone on from."""

    settings: Any
    step: int
    errors: Tensor
    solver: Solver[Any] | None = None

    @property
    def error(self) -> float:
        return float(self.errors.sum())


def preferred(fits: Sequence[_Fit], cls: type[Solver[Any]]) -> _Fit:
    """The fit to choose: the one that predicts best, or a more regularised one that is not told from it by one standard error.

    The few held-out readouts do not resolve differences of a few per cent (Breiman et al., Classification and Regression Trees, 1984,
    section 3.4.3). The standard error is that of the difference, frame by frame.

    Args:
        fits: those tried, in this order.
        cls: says what is more regularised, and by how much a later one must be better.
    """
    best = fits[0]
    for later in fits[1:]:
        if later.error < (1 - cls.evidence_for(later.settings, best.settings)) * best.error:
            best = later
    count = len(best.errors)
    if count < 2 or cls.regularisation(best.settings) is None:
        return best

    def near(fit: _Fit) -> bool:
        more = fit.errors - best.errors
        return float(more.sum()) <= count**0.5 * float(more.std())

    return max((fit for fit in fits if fit is best or near(fit)), key=lambda fit: (cls.regularisation(fit.settings), -fit.error))


def _select(
    cls: type[Solver[Any]],
    asked: Any,
    candidates: list[Any],
    problem: KSpaceProblem,
    settings: ReconstructionSettings,
    engine: str,
    progress: Callable[[str], None] | None,
) -> tuple[_Fit, list[dict[str, Any]]]:
    """Fit the candidates without the held-out readouts and keep the one that is preferred by how it predicts these."""
    held, whole = held_out_readouts(problem, settings.holdout, settings.seed), problem
    if cls.selection_matrix < 1:
        problem = problem.at_shape(tuple(max(min(n, 16), round(n * cls.selection_matrix)) for n in problem.shape))
    # Nothing of the held-out readouts may reach weights, compression, maps or fit.
    training, calibration = calibrate(problem.keep_readouts((~held).to(problem.device)), settings.coils, engine)
    judge = HeldOut(with_density(problem, engine), held, calibration, engine)
    fits: list[_Fit] = []
    tried = []

    def fit(candidate: Any, seen: list[Any]) -> None:
        solver = cls(candidate, engine=engine, seed=settings.seed)
        beside = preferred(fits, cls).solver if fits else None
        if beside is None:
            solver.start(training)
        else:
            solver.start_beside(beside)
        found: dict[int, Tensor] = {}
        while not solver.done:
            solver.update()
            if (cls.check_every and solver.step % cls.check_every == 0) or solver.done:
                found[solver.step] = judge.errors(solver)
        found = found or {solver.step: judge.errors(solver)}
        made = min((_Fit(candidate, step, errors, solver) for step, errors in found.items()), key=lambda made: (made.error, made.step))
        tried.append({"settings": dataclasses.asdict(candidate), "step": made.step, "held_out_error": made.error})
        if progress is not None:
            progress(f"{cls.name}: held-out error {made.error:.4g} at step {made.step} with {_differences(candidate, seen)}")
        fits.append(made)
        kept = preferred(fits, cls)
        for other in fits:
            if other is not kept:
                other.solver = None

    among = candidates
    while among:
        seen = [*(other.settings for other in fits), *among]
        for candidate in among:
            fit(candidate, seen)
        among = cls.refinements(preferred(fits, cls).settings, asked, [other.settings for other in fits], whole)
    return preferred([fit for fit in fits if cls.admissible(fit.settings, asked)], cls), tried


def _differences(candidate: Any, candidates: list[Any]) -> str:
    values = dataclasses.asdict(candidate)
    others = [c if isinstance(c, dict) else dataclasses.asdict(c) for c in candidates]
    differing = [name for name in values if len({repr(other[name]) for other in others}) > 1]
    return ", ".join(f"{name}={values[name]}" for name in differing) or "the settings given"


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Settings with nothing left open.

    Attributes:
        settings: of the solver.
        limit: step at which to stop; None: at the end.
        tried: what was tried, with its held-out error.
        note: what was chosen, in words; empty where nothing was.
    """

    settings: Any
    limit: int | None = None
    tried: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    note: str = ""


def choose(
    cls: type[Solver[Any]],
    asked: Any,
    problem: KSpaceProblem,
    settings: ReconstructionSettings,
    engine: str,
    progress: Callable[[str], None] | None = None,
) -> Chosen:
    """Choose on held-out readouts what ``asked`` leaves open, and the step at which to stop.

    Args:
        cls: the solver.
        asked: its settings as they were given.
        problem: whitened, uncalibrated, on the device.
        settings: coils, seed, held-out share; 0 takes the middle candidate.
        engine: NUFFT engine by name.
        progress: is told short lines.
    """
    candidates = cls.candidates(asked, problem)
    if settings.holdout == 0 or not (
        len(candidates) > 1 or cls.check_every > 0 or cls.refinements(candidates[0], asked, candidates, problem)
    ):
        return Chosen(cls.unguided(asked, problem))
    choice, tried = _select(cls, asked, candidates, problem, settings, engine, progress)
    limit = choice.step if cls.check_every else None
    told = _differences(choice.settings, [t["settings"] for t in tried]) + (f", {limit} steps" if limit else "")
    return Chosen(choice.settings, limit, tried, f"chosen on held-out readouts: {told}")


def reconstruct(
    problem: KSpaceProblem,
    settings: ReconstructionSettings,
    solver_settings: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] | None = None,
    times: Tensor | None = None,
) -> Reconstruction:
    """Reconstruct a whitened, uncalibrated problem.

    Settings left on auto, and the step to stop at, are chosen on held-out readouts; then everything is estimated and fitted again on all.

    Args:
        problem: samples of all physical coils, without sensitivities.
        settings: solver, coils, device, engine, seed, held-out share.
        solver_settings: the solver's own settings by name.
        progress: is told short lines.
        times: float64 ``[time]``, seconds (numbers of contrasts in a protocol): moments at which images are wanted; None: the frames'.

    Raises:
        SettingError: a setting is unknown or out of range.
        DataError: the data cannot be used.
        MissingPartError: a device or engine asked for is absent.
    """
    started = time.perf_counter()
    device = resolve_device(settings.device)
    engine = resolve_engine(settings.engine, device)
    cls = solver_class(settings.solver)
    chosen: Any = build(cls.Settings, dict(solver_settings or {}), prefix="solver.")
    cls.suits(problem)
    notes = [f"{cls.name} on {device.type}, {'fft' if problem.cartesian else engine}"]
    problem = problem.to(device)
    choice = choose(cls, chosen, problem, settings, engine, progress)
    chosen, limit, tried = choice.settings, choice.limit, choice.tried
    if choice.note:
        notes.append(choice.note)
    selected = time.perf_counter()
    calibrated, calibration = calibrate(problem, settings.coils, engine)
    calibrated_at = time.perf_counter()
    solver = cls(chosen, engine=engine, seed=settings.seed)
    solver.limit = limit
    solver.start(calibrated)
    run(solver, progress)
    series = solver.images(times)
    maps = solver.maps()
    learned = solver.coil_maps()
    finished = time.perf_counter()
    report = {
        "solver": cls.name,
        "engine": "fft" if problem.cartesian else engine,
        "device": str(device),
        "virtual_coils": int(calibration.compression.shape[0]),
        "settings": dataclasses.asdict(chosen),
        "steps": solver.step,
        "tried": tried,
        "seconds": {
            "selection": selected - started,
            "calibration": calibrated_at - selected,
            "fit": finished - calibrated_at,
            "total": finished - started,
        },
    }
    log.info("%s: %.1f s, %d steps", cls.name, finished - started, solver.step)
    cpu = dataclasses.replace(
        series,
        images=series.images.cpu(),
        latents=None if series.latents is None else series.latents.cpu(),
        notes=(*notes, *series.notes),
        maps=tuple(dataclasses.replace(m, values=m.values.cpu()) for m in maps),
    )
    sensitivities = calibration.sensitivities if learned is None else learned
    return Reconstruction(cpu, report, calibration.compression.cpu(), sensitivities.cpu())
