"""Held-out readouts: a fair, seeded choice, and nothing of them in what is judged by them."""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from recon_core.calibration.holdout import ANGLE_BINS, held_out_readouts, owner_frames, readout_class
from recon_core.problem import ImageSeries, KSpaceProblem
from recon_core.reconstruct import ReconstructionSettings, _select
from recon_core.solvers.base import Solver
from recon_core.solvers.cg_sense import CgSense, CgSenseSettings
from recon_core.solvers.inmr import Inmr, InmrSettings


def scan(toy: ModuleType, n_frames: int = 40, per_frame: int = 3) -> KSpaceProblem:
    made, _ = toy.toy_problem(n_frames=n_frames, shape=(20, 18), coils=2, per_frame=per_frame, noise=0.01)
    return made


def test_share_and_spread_in_time_and_angle(toy: ModuleType) -> None:
    problem = scan(toy, 120, 3)
    held = held_out_readouts(problem, 0.05, 0)
    assert held.dtype == torch.bool
    assert int(held.sum()) == 18
    per_block = [int(part.sum()) for part in held.tensor_split(18)]
    assert per_block == [1] * 18
    classes = torch.bincount(readout_class(problem)[held], minlength=ANGLE_BINS)
    assert int(classes.max() - classes.min()) <= 1


def test_time_order_counts_not_the_order_in_memory(toy: ModuleType) -> None:
    problem = scan(toy, 40, 3)
    shuffled = problem.replace(readout_times=problem.readout_times[torch.randperm(120)])
    held = held_out_readouts(shuffled, 0.1, 0)
    in_time = held[torch.argsort(shuffled.readout_times)]
    assert [int(part.sum()) for part in in_time.tensor_split(12)] == [1] * 12


def test_seeded(toy: ModuleType) -> None:
    problem = scan(toy)
    assert torch.equal(held_out_readouts(problem, 0.1, 3), held_out_readouts(problem, 0.1, 3))
    assert not torch.equal(held_out_readouts(problem, 0.1, 3), held_out_readouts(problem, 0.1, 4))


@pytest.mark.parametrize("fraction", [0.0, -1.0])
def test_nothing_held_out_when_not_asked(toy: ModuleType, fraction: float) -> None:
    assert int(held_out_readouts(scan(toy, 10, 2), fraction, 0).sum()) == 0


def test_never_everything(toy: ModuleType) -> None:
    """Half of very few readouts leaves some to fit."""
    problem = scan(toy, 3, 1)
    assert 1 <= int(held_out_readouts(problem, 0.5, 0).sum()) <= 2


def test_classes_follow_direction_and_phase_encoding_step(toy: ModuleType) -> None:
    problem = scan(toy, 8, 1)
    angle = torch.arange(8) * (2 * torch.pi / 8) + 0.1
    radius = torch.linspace(0, 8, problem.trajectory.shape[1])
    arms = torch.stack([angle.cos()[:, None] * radius, angle.sin()[:, None] * radius], dim=-1).to(torch.float32)
    assert readout_class(problem.replace(trajectory=arms)).tolist() == list(range(8))
    lines = torch.zeros_like(arms)
    lines[..., 0] = torch.round(radius) - 4
    lines[..., 1] = torch.tensor([-8, -6, -4, -2, 0, 2, 4, 7])[:, None]
    found = readout_class(problem.replace(trajectory=lines, cartesian=True)).tolist()
    assert found == sorted(found)
    assert (found[0], found[-1]) == (0, ANGLE_BINS - 1)


def test_owner_is_the_nearest_frame_of_those_that_overlap(toy: ModuleType) -> None:
    problem = scan(toy, 4, 2).replace(
        frames=(torch.tensor([0, 1, 2, 3]), torch.tensor([2, 3, 4, 5]), torch.tensor([5, 6]), torch.tensor([], dtype=torch.int64)),
        readout_times=torch.arange(8, dtype=torch.float64),
        frame_times=torch.tensor([1.5, 3.5, 5.5, 7.0], dtype=torch.float64),
    )
    # Readout 5 is 1.5 s from frame 1, 0.5 s from frame 2; readout 7 is in no frame, though frame 3 is near in time.
    assert owner_frames(problem).tolist() == [0, 0, 0, 1, 1, 2, 2, -1]


@dataclasses.dataclass
class Trace:
    """Everything a fit saw and made."""

    problems: list[KSpaceProblem]
    images: list[Tensor]


def traced(cls: type[Solver[Any]]) -> tuple[type[Solver[Any]], Trace]:
    trace = Trace([], [])

    class Traced(cls):  # type: ignore[misc, valid-type]
        def start(self, problem: KSpaceProblem, previous: Solver[Any] | None = None) -> None:
            trace.problems.append(problem)
            super().start(problem, previous)

        def images(self, times: Tensor | None = None) -> ImageSeries:
            series = super().images(times)
            trace.images.append(series.images.clone())
            return series

    return Traced, trace


SMALL = InmrSettings(steps=6, batch_frames=10, levels=4, width=8, mapped=4, latent=3, log2_table=10)
FITS = [
    (CgSense, [CgSenseSettings(steps=3, damping=d) for d in (0.1, 0.01)]),
    (Inmr, [dataclasses.replace(SMALL, smoothness=s) for s in (2.0, 0.2)]),
]


def select(cls: type[Solver[Any]], candidates: list[Any], problem: KSpaceProblem) -> tuple[Trace, list[dict[str, Any]]]:
    traced_class, trace = traced(cls)
    settings = ReconstructionSettings(coils=2, holdout=0.1, device="cpu")
    _, tried = _select(traced_class, candidates[0], candidates, problem, settings, "finufft", None)
    return trace, tried


def problem_arrays(problem: KSpaceProblem) -> dict[str, Tensor]:
    arrays = {f.name: getattr(problem, f.name) for f in dataclasses.fields(problem)}
    return {name: a for name, a in arrays.items() if isinstance(a, Tensor)} | {f"frame {i}": f for i, f in enumerate(problem.frames)}


def same(one: Trace, other: Trace) -> bool:
    problems = all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in ((problem_arrays(p), problem_arrays(q)) for p, q in zip(one.problems, other.problems, strict=True))
    )
    return problems and all(torch.equal(a, b) for a, b in zip(one.images, other.images, strict=True))


@pytest.mark.parametrize(("cls", "candidates"), FITS)
def test_held_out_samples_change_nothing_before_the_refit(toy: ModuleType, cls: type[Solver[Any]], candidates: list[Any]) -> None:
    """Maps, compression, weights, navigator and every fitted image, bit for bit; only the judgement may differ."""
    problem = scan(toy)
    held = held_out_readouts(problem, 0.1, 0)
    altered = problem.samples.clone()
    altered[:, held] = 50 * torch.randn_like(altered[:, held])
    original, judged = select(cls, candidates, problem)
    after, judged_after = select(cls, candidates, problem.replace(samples=altered))
    assert len(original.problems) == len(candidates)
    assert len(original.images) >= len(candidates)
    assert same(original, after)
    assert [t["held_out_error"] for t in judged] != [t["held_out_error"] for t in judged_after]


def test_a_training_sample_does_change_the_fit(toy: ModuleType) -> None:
    """The comparison above would notice."""
    problem = scan(toy)
    training = torch.nonzero(~held_out_readouts(problem, 0.1, 0))[5]
    altered = problem.samples.clone()
    altered[:, training] *= 1.01
    original, _ = select(*FITS[0], problem)
    after, _ = select(*FITS[0], problem.replace(samples=altered))
    assert not same(original, after)
