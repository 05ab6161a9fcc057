"""A volume slice by slice: settings chosen once, one temporal basis from all slices, frozen, only spatial bases a slice."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from recon_core.calibration.calibrate import calibrate
from recon_core.calibration.temporal_basis import low_resolution_series, temporal_basis
from recon_core.errors import DataError
from recon_core.operators.nufft import resolve_engine
from recon_core.options import build
from recon_core.problem import ImageSeries, KSpaceProblem
from recon_core.reconstruct import Reconstruction, ReconstructionSettings, choose, resolve_device, run
from recon_core.solvers.base import Solver
from recon_core.solvers.registry import solver_class
from recon_core.solvers.subspace import SubspaceSettings, SubspaceSolver


def reconstruct_slices(
    slices: Sequence[KSpaceProblem],
    settings: ReconstructionSettings,
    solver_settings: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] | None = None,
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
    started = time.perf_counter()
    tell = progress or _silent
    device = resolve_device(settings.device)
    engine = resolve_engine(settings.engine, device)
    cls = solver_class(settings.solver)
    chosen: Any = build(cls.Settings, dict(solver_settings or {}), prefix="solver.")
    if not slices:
        raise DataError("slices", "none", "Give at least one.")
    cls.suits(slices[0])
    brightest = max(range(len(slices)), key=lambda n: float(slices[n].samples.abs().square().sum(dtype=torch.float64)))
    notes = [f"{cls.name} on {device.type}, {engine}, slice by slice"]
    choice = choose(cls, chosen, slices[brightest].to(device), settings, engine, progress)
    chosen, limit = choice.settings, choice.limit
    if choice.note:
        notes.append(f"slice {brightest}: {choice.note}")
    selected = time.perf_counter()
    previous: Solver[Any] | None = None
    if isinstance(chosen, SubspaceSettings) and issubclass(cls, SubspaceSolver):
        previous = frozen(cls, chosen, *common_basis(slices, chosen, device, engine))
        notes.append(f"one temporal basis of {previous.temporal.shape[0]} components from all {len(slices)} slices")
    based = time.perf_counter()
    volumes: Tensor | None = None
    latents: Tensor | None = None
    for number, problem in enumerate(slices):
        calibrated, _ = calibrate(problem.to(device), settings.coils, engine)
        solver = cls(chosen, engine=engine, seed=settings.seed)
        solver.limit = limit
        solver.start(calibrated, previous)
        run(solver)
        series = solver.images()
        if volumes is None:
            volumes = torch.empty((series.images.shape[0], len(slices), *problem.shape), dtype=torch.complex64)
        volumes[:, number] = series.images.cpu()
        if previous is not None and series.latents is not None:
            latents = series.latents.cpu()
        tell(f"{cls.name}: slice {number + 1} of {len(slices)}")
    if volumes is None:
        raise DataError("slices", "none", "Give at least one.")
    finished = time.perf_counter()
    report = {
        "solver": cls.name,
        "engine": engine,
        "device": str(device),
        "settings": dataclasses.asdict(chosen),
        "tried": choice.tried,
        "seconds": {
            "selection": selected - started,
            "basis": based - selected,
            "fit": finished - based,
            "total": finished - started,
        },
    }
    return Reconstruction(ImageSeries(volumes, slices[0].frame_times, latents, tuple(notes)), report)


def common_basis(
    slices: Sequence[KSpaceProblem], settings: SubspaceSettings, device: torch.device | str, engine: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Temporal basis V of all slices together, float32 ``[K, frame]``, and its singular values."""
    small = [
        low_resolution_series(
            problem.to(device), settings.basis_width, settings.basis_strength, settings.basis_steps, settings.basis_coils, engine
        ).flatten(1)
        for problem in slices
    ]
    return temporal_basis(torch.cat(small, dim=1), settings.rank)


def frozen(cls: type[SubspaceSolver[Any]], settings: Any, temporal: Tensor, singular: Tensor) -> SubspaceSolver[Any]:
    """What to hand to :meth:`Solver.start` as the previous fit so that a given temporal basis is kept and the bases start anew."""
    made = cls(settings)
    made.use_basis(temporal, singular)
    made.bases = torch.empty(0, dtype=torch.complex64, device=temporal.device)
    return made


def _silent(_: str) -> None:
    return None
