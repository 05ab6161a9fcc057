"""A volume slice by slice: settings chosen once, one temporal basis from all slices, frozen, only spatial bases a slice.

The work is cut into parts that need nothing of each other, so that they can be done side by side here or on several machines. Each part
uses one core wherever it is done: sums are then taken in the same order, and images are the same to the last bit.
"""

from __future__ import annotations

import dataclasses
import queue
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any

import torch
from torch import Tensor

from recon_core.calibration.calibrate import calibrate
from recon_core.errors import DataError
from recon_core.operators.nufft import resolve_engine
from recon_core.options import build
from recon_core.problem import ImageSeries, KSpaceProblem
from recon_core.reconstruct import Chosen, Reconstruction, ReconstructionSettings, choose, resolve_device, run
from recon_core.solvers.base import Solver
from recon_core.solvers.registry import solver_class
from recon_core.solvers.subspace import SubspaceSettings, SubspaceSolver, basis_from, basis_series
from recon_core.threads import at_most_threads

Report = Callable[[str], None]
Part = Callable[[Report], Any]
"""A piece of work that needs nothing but itself, and can be pickled: called with what takes its short lines."""
Parts = Generator[list[Part], list[Any], Reconstruction]
"""Work in parts: yields what can be done side by side, is sent the results in that order, returns the reconstruction."""

_LISTEN_SECONDS = 0.1


def reconstruct_slices(
    slices: Sequence[KSpaceProblem],
    settings: ReconstructionSettings,
    solver_settings: Mapping[str, Any] | None = None,
    progress: Report | None = None,
) -> Reconstruction:
    """Reconstruct the slices of a volume that were decoupled along kz.

    Regularisation and stopping are chosen on held-out readouts of the slice with most signal and hold for all. A subspace method's
    temporal basis comes from the low-resolution series of all slices together, is frozen, and is handed to every slice; other methods
    run slice by slice.

    Args:
        slices: whitened, uncalibrated problems with the same frames, slice 0 first.
        settings: solver, coils, device, engine, seed, held-out share.
        solver_settings: the solver's own settings by name.
        progress: is told short lines.

    Returns:
        A series of volumes ``[frame, z, y, x]``.

    Raises:
        SettingError: a setting is unknown or out of range.
        DataError: the data cannot be used.
        MissingPartError: a device or engine asked for is absent.
    """
    return side_by_side(slice_parts(slices, settings, solver_settings), settings, progress)


def side_by_side(parts: Parts, settings: ReconstructionSettings, progress: Report | None = None) -> Reconstruction:
    """Do work in parts here: on the CPU as many at a time as there are cores, on a GPU one after another.

    Args:
        parts: the work.
        settings: of which the device counts.
        progress: is told short lines, in the caller's thread.
    """
    report = progress or _silent
    at_once = 1 if resolve_device(settings.device).type == "cuda" else torch.get_num_threads()
    try:
        wanted = next(parts)
        while True:
            alone = at_once == 1 or len(wanted) == 1
            wanted = parts.send([part(report) for part in wanted] if alone else _in_threads(wanted, at_once, report))
    except StopIteration as end:
        result: Reconstruction = end.value
        return result


def _in_threads(wanted: Sequence[Part], at_once: int, report: Report) -> list[Any]:
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    with ThreadPoolExecutor(at_once, thread_name_prefix="slice") as pool:
        futures: list[Future[Any]] = [pool.submit(part, lines.put) for part in wanted]
        try:
            left = set(futures)
            while left:
                done, left = wait(left, _LISTEN_SECONDS, FIRST_EXCEPTION)
                while not lines.empty():
                    report(lines.get())
                for future in done:
                    future.result()
        finally:
            # After an error, or where the report has had enough, nothing more is begun.
            pool.shutdown(wait=False, cancel_futures=True)
        return [future.result() for future in futures]


def slice_parts(
    slices: Sequence[KSpaceProblem], settings: ReconstructionSettings, solver_settings: Mapping[str, Any] | None = None
) -> Parts:
    """The work of :func:`reconstruct_slices`: the choice, then the low-resolution series, then the slices."""
    started = time.perf_counter()
    if not slices:
        raise DataError("slices", "none", "Give at least one.")
    cls = solver_class(settings.solver)
    asked: Any = build(cls.Settings, dict(solver_settings or {}), prefix="solver.")
    cls.suits(slices[0])
    brightest = max(range(len(slices)), key=lambda n: float(slices[n].samples.abs().square().sum(dtype=torch.float64)))
    choice: Chosen
    (choice,) = yield [partial(_on_one_core, _choose, slices[brightest], asked, settings)]
    notes = [f"slice {brightest}: {choice.note}"] if choice.note else []
    selected = time.perf_counter()
    basis: tuple[Tensor, Tensor] | None = None
    if isinstance(choice.settings, SubspaceSettings) and issubclass(cls, SubspaceSolver):
        small = yield [partial(_on_one_core, _low_resolution, problem, choice.settings, settings) for problem in slices]
        basis = basis_from(torch.cat(small, dim=1), slices[0], choice.settings)
        notes.append(f"one temporal basis of {basis[0].shape[0]} components from all {len(slices)} slices")
    based = time.perf_counter()
    fits = yield [
        partial(_on_one_core, _fit, problem, choice, basis, settings, f"slice {number + 1} of {len(slices)}")
        for number, problem in enumerate(slices)
    ]
    latents = fits[-1][0].latents if basis is not None else None
    where = sorted({place for _, place in fits})
    volumes = torch.empty((fits[0][0].images.shape[0], len(slices), *slices[0].shape), dtype=torch.complex64)
    for number in range(len(slices)):
        # Taken out, so that the images are held once only.
        volumes[:, number] = fits.pop(0)[0].images
    finished = time.perf_counter()
    notes.insert(0, f"{cls.name} on {'; '.join(where)}, slice by slice")
    report = {
        "solver": cls.name,
        "where": where,
        "settings": dataclasses.asdict(choice.settings),
        "tried": choice.tried,
        "seconds": {
            "selection": selected - started,
            "basis": based - selected,
            "fit": finished - based,
            "total": finished - started,
        },
    }
    return Reconstruction(ImageSeries(volumes, slices[0].frame_times, latents, tuple(notes)), report)


def _on_one_core(work: Callable[..., Any], *arguments: Any) -> Any:
    with at_most_threads(1):
        return work(*arguments)


def _place(settings: ReconstructionSettings) -> tuple[torch.device, str]:
    """Device and NUFFT engine of the process that asks."""
    device = resolve_device(settings.device)
    return device, resolve_engine(settings.engine, device)


def _choose(problem: KSpaceProblem, asked: Any, settings: ReconstructionSettings, report: Report) -> Chosen:
    device, engine = _place(settings)
    return choose(solver_class(settings.solver), asked, problem.to(device), settings, engine, report)


def _low_resolution(problem: KSpaceProblem, chosen: SubspaceSettings, settings: ReconstructionSettings, report: Report) -> Tensor:
    """complex64 ``[joined frame, pixel]``."""
    device, engine = _place(settings)
    return basis_series(problem.to(device), chosen, engine).flatten(1).cpu()


def _fit(
    problem: KSpaceProblem, choice: Chosen, basis: tuple[Tensor, Tensor] | None, settings: ReconstructionSettings, name: str, report: Report
) -> tuple[ImageSeries, str]:
    """Images of one slice, and where they were made."""
    device, engine = _place(settings)
    cls = solver_class(settings.solver)
    previous: Solver[Any] | None = None
    if basis is not None and issubclass(cls, SubspaceSolver):
        previous = frozen(cls, choice.settings, *(part.to(device) for part in basis))
    calibrated, _ = calibrate(problem.to(device), settings.coils, engine)
    solver = cls(choice.settings, engine=engine, seed=settings.seed)
    solver.limit = choice.limit
    solver.start(calibrated, previous)
    run(solver)
    series = solver.images()
    report(f"{cls.name}: {name}")
    latents = None if series.latents is None else series.latents.cpu()
    return dataclasses.replace(series, images=series.images.cpu(), latents=latents), f"{device.type}, {engine}"


def frozen(cls: type[SubspaceSolver[Any]], settings: Any, temporal: Tensor, singular: Tensor) -> SubspaceSolver[Any]:
    """What to hand to :meth:`Solver.start` as the previous fit so that a given temporal basis is kept and the bases start anew."""
    made = cls(settings)
    made.use_basis(temporal, singular)
    made.bases = torch.empty(0, dtype=torch.complex64, device=temporal.device)
    return made


def _silent(_: str) -> None:
    return None
