"""Problems on their way to a process of their own, and what their withheld readouts say of images."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from recon_core.calibration.calibrate import Calibration, with_density
from recon_core.calibration.compression import compress, compression_matrix
from recon_core.calibration.holdout import held_out_readouts
from recon_core.operators.frames import gather
from recon_core.problem import ImageSeries, KSpaceProblem
from recon_core.reconstruct import HeldOut
from recon_core.signal_models import Protocol
from recon_core.solvers.base import Solver, interpolate_frames


def save_problem(path: Path, problem: KSpaceProblem) -> None:
    """Store every field of a problem; a protocol as plain values, so that no code is unpickled."""
    fields = {f.name: getattr(problem, f.name) for f in dataclasses.fields(problem)}
    if problem.protocol is not None:
        fields["protocol"] = dataclasses.asdict(problem.protocol)
    torch.save(fields, path)


def load_problem(path: Path) -> KSpaceProblem:
    """Read what :func:`save_problem` stored."""
    fields = torch.load(path, weights_only=True)
    if fields["protocol"] is not None:
        fields["protocol"] = Protocol(**fields["protocol"])
    return KSpaceProblem(**fields)


def compressed(problem: KSpaceProblem, coils: int, like: KSpaceProblem | None = None) -> KSpaceProblem:
    """The problem in virtual coils, those of the problem ``like`` (None: its own), as our own solvers make them."""
    source = problem if like is None else like
    used = gather(source, torch.arange(source.n_readouts)).samples
    return problem.replace(samples=compress(problem.samples, compression_matrix(used, coils)))


def judge(problem: KSpaceProblem, fraction: float, seed: int) -> tuple[KSpaceProblem, Tensor]:
    """The problem without its held-out readouts, and which these are (bool ``[readout]``)."""
    held = held_out_readouts(problem, fraction, seed)
    return problem.keep_readouts(~held), held


@dataclasses.dataclass
class _Finished:
    """Images that are there already, asked as a solver is."""

    images_of_frames: Tensor
    frame_times: Tensor

    def images(self, times: Tensor) -> ImageSeries:
        return ImageSeries(interpolate_frames(self.images_of_frames, self.frame_times, times), times)

    def coil_maps(self) -> None:
        """None: judged with the maps that were given."""


def predicted_error(images: Tensor, everything: KSpaceProblem, withheld: Tensor, maps: Tensor) -> float:
    """Held-out error of a series, as selection measures it: density-weighted mean |residual|² over noise variance without |k| < 2.

    Args:
        images: complex64 ``[frame, (z,) y, x]`` of ``everything``'s frames.
        everything: all readouts, coils compressed as the maps are.
        withheld: bool ``[readout]``.
        maps: complex64 ``[coil, (z,) y, x]``.
    """
    same = Calibration(torch.eye(everything.n_coils, dtype=torch.complex64), maps, torch.ones(everything.shape))
    finished: Any = _Finished(images, everything.frame_times)
    return HeldOut(with_density(everything), withheld, same, "auto").error(cast("Solver[Any]", finished))
