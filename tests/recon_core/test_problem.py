"""The frozen records: what they refuse, and how readouts are left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from recon_core.errors import DataError
from recon_core.problem import ImageSeries, KSpaceProblem


@pytest.fixture
def problem(toy: ModuleType) -> KSpaceProblem:
    made, _ = toy.toy_problem(n_frames=4, shape=(12, 10), coils=2, per_frame=3)
    return made


def with_value(tensor: torch.Tensor, value: complex) -> torch.Tensor:
    changed = tensor.clone()
    changed.view(-1)[7] = value
    return changed


FAULTS: list[tuple[str, Callable[[KSpaceProblem], dict[str, Any]]]] = [
    ("samples", lambda p: {"samples": p.samples.to(torch.complex128)}),
    ("samples", lambda p: {"samples": p.samples[0]}),
    ("samples", lambda p: {"samples": with_value(p.samples, complex("nan"))}),
    ("samples", lambda p: {"samples": with_value(p.samples, complex(0, float("inf")))}),
    ("shape", lambda p: {"shape": (12,)}),
    ("shape", lambda p: {"shape": (12, 1)}),
    ("shape", lambda p: {"shape": (2, 3, 4, 5)}),
    ("trajectory", lambda p: {"trajectory": p.trajectory[:, :-1]}),
    ("trajectory", lambda p: {"trajectory": p.trajectory.double()}),
    ("trajectory", lambda p: {"shape": (3, 12, 10)}),
    ("trajectory", lambda p: {"trajectory": with_value(p.trajectory, float("nan"))}),
    ("readout_times", lambda p: {"readout_times": p.readout_times.float()}),
    ("frame_times", lambda p: {"frame_times": p.frame_times[:-1]}),
    ("frames", lambda p: {"frames": (), "frame_times": p.frame_times[:0]}),
    ("frames[1]", lambda p: {"frames": (p.frames[0], torch.tensor([12]), *p.frames[2:])}),
    ("frames[2]", lambda p: {"frames": (*p.frames[:2], torch.tensor([-1]), p.frames[3])}),
    ("frames[0]", lambda p: {"frames": (torch.tensor([0], dtype=torch.int32), *p.frames[1:])}),
    ("weights", lambda p: {"weights": torch.ones(12)}),
    ("weights", lambda p: {"weights": with_value(torch.ones(p.trajectory.shape[:2]), float("inf"))}),
    ("mask", lambda p: {"mask": torch.ones(p.trajectory.shape[:2])}),
    ("sensitivities", lambda p: {"sensitivities": torch.ones(3, 12, 10, dtype=torch.complex64)}),
    ("sensitivities", lambda p: {"sensitivities": with_value(torch.ones(2, 12, 10, dtype=torch.complex64), complex("nan"))}),
]


@pytest.mark.parametrize(("field", "change"), FAULTS)
def test_a_fault_is_told_by_its_field(problem: KSpaceProblem, field: str, change: Callable[[KSpaceProblem], dict[str, Any]]) -> None:
    with pytest.raises(DataError) as error:
        problem.replace(**change(problem))
    assert error.value.field == field
    assert error.value.cure


def test_counts(problem: KSpaceProblem) -> None:
    assert (problem.n_coils, problem.n_readouts, problem.n_frames, problem.dim) == (2, 12, 4, 2)
    assert problem.device == torch.device("cpu")
    with pytest.raises(dataclasses.FrozenInstanceError):
        problem.cartesian = True  # type: ignore[misc]


def test_leaving_readouts_out_renumbers_the_frames(problem: KSpaceProblem) -> None:
    overlapping = problem.replace(
        frames=(torch.tensor([0, 1, 2, 3]), torch.tensor([2, 3, 4, 5]), torch.tensor([11, 6]), torch.tensor([8])),
        weights=torch.rand(problem.trajectory.shape[:2]),
        mask=torch.rand(problem.trajectory.shape[:2]) > 0.5,
    )
    keep = torch.tensor([True, False, True, True, False, True, True, True, False, True, True, True])
    kept = overlapping.keep_readouts(keep)
    numbers = [0, 2, 3, 5, 6, 7, 9, 10, 11]
    assert kept.n_readouts == 9
    assert torch.equal(kept.samples, overlapping.samples[:, numbers])
    assert torch.equal(kept.trajectory, overlapping.trajectory[numbers])
    assert torch.equal(kept.readout_times, overlapping.readout_times[numbers])
    assert torch.equal(kept.weights, overlapping.weights[numbers])
    assert torch.equal(kept.mask, overlapping.mask[numbers])
    # The same physical readouts, in the frame's own order; a frame may end up empty.
    assert [[numbers[i] for i in f.tolist()] for f in kept.frames] == [[0, 2, 3], [2, 3, 5], [11, 6], []]
    assert torch.equal(kept.frame_times, overlapping.frame_times)


def test_to_moves_arrays_and_leaves_times_on_the_cpu(problem: KSpaceProblem) -> None:
    full = problem.replace(mask=torch.ones(problem.trajectory.shape[:2], dtype=torch.bool))
    moved = full.to("cpu")
    assert torch.equal(moved.samples, full.samples)
    assert torch.equal(moved.mask, full.mask)
    assert moved.readout_times.device.type == moved.frame_times.device.type == "cpu"
    assert all(torch.equal(a, b) for a, b in zip(moved.frames, full.frames, strict=True))


def test_image_series_checks() -> None:
    images = torch.zeros(3, 5, 4, dtype=torch.complex64)
    times = torch.arange(3, dtype=torch.float64)
    assert ImageSeries(images, times).latents is None
    for field, arguments in [
        ("images", (images.real, times)),
        ("images", (images[0], times)),
        ("times", (images, times.float())),
        ("times", (images, times[:2])),
        ("images", (with_value(images, complex("nan")), times)),
    ]:
        with pytest.raises(DataError) as error:
            ImageSeries(*arguments)
        assert error.value.field == field


@pytest.mark.parametrize("cartesian", [False, True])
def test_another_matrix_leaves_out_what_it_cannot_resolve(toy: ModuleType, cartesian: bool) -> None:
    made, _ = toy.toy_problem(n_frames=2, shape=(16, 12), coils=2, per_frame=3)
    trajectory = torch.round(made.trajectory) if cartesian else made.trajectory
    full = made.replace(trajectory=trajectory, cartesian=cartesian, mask=torch.rand(made.trajectory.shape[:2]) > 0.2)
    full = full.replace(weights=torch.ones(made.trajectory.shape[:2]), sensitivities=toy.toy_maps(2, (16, 12)))
    small = full.at_shape((8, 7))
    assert small.shape == (8, 7)
    assert torch.equal(small.samples, full.samples)
    assert small.weights is None
    assert small.sensitivities is None
    for kx, ky, used, before in zip(*trajectory.flatten(0, 1).T, small.mask.flatten(), full.mask.flatten(), strict=True):
        # On the grid an even matrix ends at N/2 − 1.
        fits = -3.5 <= float(kx) <= (3.0 if cartesian else 3.5) and -4 <= float(ky) <= (3 if cartesian else 4)
        assert bool(used) == (fits and bool(before))
