"""The contract every registered solver keeps, and interpolation in time."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from recon_core.errors import DataError, SettingError
from recon_core.options import build
from recon_core.problem import KSpaceProblem
from recon_core.solvers import registry
from recon_core.solvers.base import Solver, interpolate_frames, rungs_beside

# Small enough to run in a blink; every other setting is the default.
QUICK: dict[str, dict[str, Any]] = {
    "gridding": {},
    "cg_sense": {"steps": 4, "damping": 0.05},
    "grasp": {"steps": 6, "strength": 0.01},
    "low_rank_sparse": {"steps": 6, "low_rank": 0.005, "sparse": 0.02},
    "inmr": {"steps": 12, "batch_frames": 4, "levels": 5, "log2_table": 10, "width": 16, "mapped": 8, "latent": 3, "smoothness": 0.5},
    "hash_inr": {"steps": 12, "batch_frames": 4, "levels": 4, "log2_table": 10, "width": 12, "depth": 2, "frame_step": 0.3},
    "stinr": {"steps": 12, "batch_frames": 4, "levels": 4, "log2_table": 10, "width": 12, "depth": 2, "variation": 0.1},
    "da_inr": {
        "steps": 6,
        "batch_frames": 2,
        "levels": 4,
        "log2_table": 10,
        "width": 12,
        "depth": 2,
        "time_octaves": 2,
        "extractor": "gradients",
    },
    "fmlp": {
        "steps": 12,
        "batch_frames": 2,
        "spatial_features": 24,
        "temporal_features": 8,
        "width": 16,
        "depth": 2,
        "temporal_bandwidth": 0.02,
    },
    "td_dip": {"steps": 12, "mapped": 12, "channels": 6, "turns": 0.8},
    "nik": {"steps": 60, "batch_frames": 4, "features": 24, "width": 16, "depth": 2, "temporal_bandwidth": 0.02},
    "kt_grappa": {"ridge": 1e-3, "frames": 2},
    "p_inr": {"steps": 12, "points": 256, "spatial_features": 24, "temporal_features": 8, "width": 12, "depth": 3},
    "kp_inr": {
        "steps": 12,
        "points": 128,
        "spatial_features": 24,
        "temporal_features": 8,
        "width": 12,
        "depth": 3,
        "channels": 2,
        "batch_frames": 4,
        "refreshes": 2,
        "first_guess": "zero",
    },
    "grasp_pro": {"strength": 2e-4, "rank": 4, "basis_width": 16, "steps": 20},
    "als_subspace": {"strength": 0.01, "smoothness": 0.1, "rank": 4, "basis_width": 16, "steps": 3, "inner": 4},
    "subspace_inr": {"strength": 0.02, "rank": 4, "basis_width": 16, "steps": 20, "field_steps": 5},
}
EVERY = registry.names()
CARTESIAN = {"kt_grappa", "p_inr", "kp_inr"}


@pytest.fixture(scope="module")
def scans(toy: ModuleType) -> dict[str, KSpaceProblem]:
    """Calibrated scans with the toy's own maps: spokes, and Cartesian lines."""
    made, _ = toy.toy_problem(n_frames=10, shape=(16, 14), coils=2, per_frame=3, noise=0.01)
    weights = made.trajectory.norm(dim=-1) * 0.02 + 0.01
    lines, _ = toy.toy_cartesian(n_frames=10, shape=(16, 14), coils=2, acceleration=2.5, calibration_lines=5, noise=0.01)
    maps = toy.toy_maps(2, (16, 14))
    return {"radial": made.replace(weights=weights, sensitivities=maps), "cartesian": lines.replace(sensitivities=maps)}


@pytest.fixture
def problem(scans: dict[str, KSpaceProblem], request: pytest.FixtureRequest) -> KSpaceProblem:
    """The scan that suits the method under test."""
    callspec = getattr(request.node, "callspec", None)
    name = callspec.params.get("name") if callspec is not None else None
    return scans["cartesian" if name in CARTESIAN else "radial"]


def made(name: str, seed: int = 0, **changes: Any) -> Solver[Any]:
    cls = registry.solver_class(name)
    return cls(build(cls.Settings, {**QUICK.get(name, {}), **changes}), engine="finufft", seed=seed)


def finished(name: str, problem: KSpaceProblem, seed: int = 0) -> Solver[Any]:
    solver = made(name, seed)
    solver.start(problem)
    while not solver.done:
        solver.update()
    return solver


def test_registry() -> None:
    assert sorted(EVERY) == EVERY
    assert {"gridding", "cg_sense", "inmr"} <= set(EVERY)
    assert registry.settings_class("cg_sense")().steps == 12
    with pytest.raises(SettingError, match="Did you mean 'cg_sense'") as error:
        registry.solver_class("cg-sense")
    assert error.value.field == "solver"
    with pytest.raises(SettingError):
        registry.settings_class("nothing")


@pytest.mark.parametrize("name", EVERY)
def test_class_carries_its_name_and_declared_settings(name: str) -> None:
    cls = registry.solver_class(name)
    assert cls.name == name
    assert registry.settings_class(name) is cls.Settings
    assert set(cls.dims) <= {2, 3}
    assert build(cls.Settings, {}) == cls.Settings()


@pytest.mark.parametrize("name", EVERY)
def test_life_of_a_stepper(name: str, problem: KSpaceProblem) -> None:
    solver = made(name)
    assert solver.total_steps >= 1
    solver.start(problem)
    assert not solver.done
    for step in range(1, solver.total_steps + 1):
        before = solver.images()
        assert before.images.shape == (10, 16, 14)
        solver.update()
        assert solver.step == step
    assert solver.done
    after = solver.images()
    assert after.images.shape == (10, 16, 14)
    assert torch.equal(after.times, problem.frame_times)
    assert float((after.images - before.images).abs().max()) > 0
    assert not after.images.requires_grad


@pytest.mark.parametrize("name", EVERY)
def test_limit_ends_a_run_early_and_never_extends_it(name: str, problem: KSpaceProblem) -> None:
    solver = made(name)
    solver.limit = 1
    solver.start(problem)
    solver.update()
    assert solver.done
    solver.limit = solver.total_steps + 5
    assert solver.done == (solver.total_steps == 1)
    while not solver.done:
        solver.update()
    assert solver.step == solver.total_steps


@pytest.mark.parametrize("name", EVERY)
def test_same_seed_same_images_bit_for_bit(name: str, problem: KSpaceProblem) -> None:
    first = finished(name, problem, seed=3).images().images
    torch.randn(17)
    assert torch.equal(first, finished(name, problem, seed=3).images().images)


def test_another_seed_is_another_fit(problem: KSpaceProblem) -> None:
    assert not torch.equal(finished("inmr", problem, 0).images().images, finished("inmr", problem, 1).images().images)


@pytest.mark.parametrize("name", EVERY)
def test_a_second_start_forgets_the_first(name: str, problem: KSpaceProblem) -> None:
    """Scan B after A gives B's images as B alone."""
    other = problem.replace(samples=problem.samples.flip(1) * 3)
    solver = finished(name, other)
    solver.start(problem)
    assert solver.step == 0
    while not solver.done:
        solver.update()
    assert torch.equal(solver.images().images, finished(name, problem).images().images)


@pytest.mark.parametrize("name", EVERY)
def test_images_at_other_times(name: str, problem: KSpaceProblem) -> None:
    solver = finished(name, problem)
    at = problem.frame_times
    wanted = torch.tensor([-1.0, float(at[2]), float(at[2] + at[3]) / 2, float(at[7]), 99.0], dtype=torch.float64)
    found, frames = solver.images(wanted), solver.images().images
    assert torch.equal(found.times, wanted)
    assert found.images.shape == (5, 16, 14)
    for position, frame in ((0, 0), (1, 2), (3, 7), (4, 9)):
        torch.testing.assert_close(found.images[position], frames[frame], rtol=1e-4, atol=1e-5 * float(frames.abs().max()))
    between = found.images[2]
    assert float((between - frames[2]).norm()) <= float((frames[3] - frames[2]).norm()) * 1.01
    assert float((between - frames[3]).norm()) <= float((frames[3] - frames[2]).norm()) * 1.01


@pytest.mark.parametrize("name", EVERY)
def test_twice_the_signal_gives_twice_the_image(name: str, problem: KSpaceProblem) -> None:
    single = finished(name, problem).images().images
    double = finished(name, problem.replace(samples=2 * problem.samples)).images().images
    torch.testing.assert_close(double, 2 * single, rtol=1e-3, atol=1e-3 * float(single.abs().max()))


@pytest.mark.parametrize("name", EVERY)
def test_a_frame_without_readouts_is_interpolated_in_time(name: str, problem: KSpaceProblem) -> None:
    keep = torch.ones(problem.n_readouts, dtype=torch.bool)
    keep[problem.frames[4]] = False
    keep[problem.frames[9]] = False
    series = finished(name, problem.keep_readouts(keep)).images().images
    assert series.shape == (10, 16, 14)
    size = series.abs().square().flatten(1).sum(1).sqrt()
    assert float(size[4]) > 0.5 * float(size.median())
    assert float(size[9]) > 0.5 * float(size.median())


@pytest.mark.parametrize("name", EVERY)
def test_a_saved_fit_goes_on_to_the_same_images(name: str, problem: KSpaceProblem, tmp_path: Path) -> None:
    """Saved half way, loaded from a file into a new solver, run to its end."""
    solver = made(name, seed=3)
    solver.start(problem)
    if not solver.fitted:
        with pytest.raises(SettingError, match=f"a fit of {name} cannot be saved"):
            solver.state_dict()
        return
    for _ in range(solver.total_steps // 2):
        solver.update()
    torch.save(solver.state_dict(), tmp_path / "fit.pt")
    half = solver.images().images
    while not solver.done:
        solver.update()
    resumed = registry.resume(torch.load(tmp_path / "fit.pt", weights_only=True), problem, engine="finufft")
    assert (resumed.step, resumed.settings) == (solver.total_steps // 2, solver.settings)
    assert torch.equal(resumed.images().images, half)
    while not resumed.done:
        resumed.update()
    assert torch.equal(resumed.images().images, solver.images().images)
    assert not torch.equal(half, solver.images().images)


def test_a_saved_fit_of_another_kind_is_refused(problem: KSpaceProblem) -> None:
    solver = finished("inmr", problem)
    saved = solver.state_dict()
    for key, value, words in (
        ("seed", 9, "saved seed: 9, here 0"),
        ("frames", 7, "saved frames: 7, here 10"),
        ("solver", "fmlp", "'fmlp'"),
    ):
        with pytest.raises(DataError, match=words):
            solver.load_state_dict({**saved, key: value})
    other = made("inmr", width=8)
    other.start(problem)
    with pytest.raises(DataError, match="saved settings"):
        other.load_state_dict(saved)


@pytest.mark.parametrize("name", EVERY)
def test_no_sample_at_all_is_an_error(name: str, problem: KSpaceProblem) -> None:
    nothing = torch.zeros(problem.trajectory.shape[:2], dtype=torch.bool)
    with pytest.raises(DataError, match="none of 10 has a sample left"):
        made(name).start(problem.replace(mask=nothing))


@pytest.mark.parametrize("name", sorted(CARTESIAN))
def test_readouts_off_the_grid_are_refused(name: str, scans: dict[str, KSpaceProblem]) -> None:
    for refuse in (made(name).start, registry.solver_class(name).suits):
        with pytest.raises(DataError, match=f"{name} completes Cartesian k-space") as error:
            refuse(scans["radial"])
        assert error.value.field == "solver"


@pytest.mark.parametrize("name", EVERY)
def test_a_single_frame_is_refused_by_methods_of_a_course_in_time(name: str, problem: KSpaceProblem) -> None:
    """Whether the others are empty or not there."""
    nothing = torch.zeros(0, dtype=torch.int64)
    for frames in (problem.frames[:1], (problem.frames[0], nothing)):
        static = problem.replace(frames=frames, frame_times=problem.frame_times[: len(frames)])
        if name in ("cg_sense", "gridding"):
            registry.solver_class(name).suits(static)
            continue
        with pytest.raises(DataError, match=f"1 with readouts, of {problem.n_readouts}; {name} models a course in time") as error:
            registry.solver_class(name).suits(static)
        assert error.value.field == "frames"
        assert "solver=cg_sense" in error.value.cure


@pytest.mark.parametrize("name", EVERY)
def test_maps_are_required(name: str, problem: KSpaceProblem) -> None:
    with pytest.raises(DataError, match="Calibrate"):
        made(name).start(problem.replace(sensitivities=None))


@pytest.mark.parametrize("name", EVERY)
def test_warm_start_is_never_worse_than_a_cold_one(name: str, problem: KSpaceProblem) -> None:
    """One more step after a finished fit predicts the data at least as well as one step from nothing."""

    def misfit(solver: Solver[Any]) -> float:
        images = solver.images().images
        from recon_core.operators.frames import FrameEncoding

        encoding = FrameEncoding(problem)
        return sum(
            float((f.weights * (encoding.forward(images[t], t) - f.samples).abs().square()).sum()) for t, f in enumerate(encoding.frames)
        )

    previous = finished(name, problem)
    warm, cold = made(name), made(name)
    warm.start(problem, previous)
    cold.start(problem)
    warm.update()
    cold.update()
    assert warm.step == 1
    assert misfit(warm) <= misfit(cold) * 1.0001


@pytest.mark.parametrize("name", EVERY)
def test_a_previous_fit_of_another_kind_is_ignored(name: str, problem: KSpaceProblem) -> None:
    other = finished("gridding" if name != "gridding" else "cg_sense", problem)
    solver = made(name)
    solver.start(problem, other)
    while not solver.done:
        solver.update()
    assert torch.equal(solver.images().images, finished(name, problem).images().images)


@pytest.mark.parametrize("name", EVERY)
def test_candidates_keep_what_the_user_set(name: str, problem: KSpaceProblem) -> None:
    cls = registry.solver_class(name)
    given = build(cls.Settings, QUICK.get(name, {}))
    assert cls.candidates(given, problem) == [given]
    for candidate in cls.candidates(cls.Settings(), problem):
        assert isinstance(candidate, cls.Settings)


def test_interpolation_in_time() -> None:
    images = torch.tensor([[1.0 + 1j], [3.0], [5.0]], dtype=torch.complex64)
    at = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)
    wanted = torch.tensor([-2.0, 0.5, 1.0, 2.5, 3.0, 9.0], dtype=torch.float64)
    found = interpolate_frames(images, at, wanted)[:, 0]
    torch.testing.assert_close(found, torch.tensor([1 + 1j, 2 + 0.5j, 3, 4.5, 5, 5], dtype=torch.complex64))
    assert interpolate_frames(images, at, at) is images
    without_the_second = interpolate_frames(images, at, at, torch.tensor([0, 2]))[:, 0]
    torch.testing.assert_close(without_the_second, torch.tensor([1 + 1j, (2 * (1 + 1j) + 5) / 3, 5], dtype=torch.complex64))
    alone = interpolate_frames(images, at, wanted, torch.tensor([1]))[:, 0]
    torch.testing.assert_close(alone, torch.full((6,), 3.0, dtype=torch.complex64))


@dataclasses.dataclass(frozen=True)
class Rungs:
    """Two settings with a ladder each."""

    first: float | None = None
    second: float | None = None


@pytest.mark.parametrize("best", [(1.0, 1.0), (16.0, 1.0), (4.0, 64.0), (1.0, 64.0)])
def test_ladders_are_climbed_to_the_best_rungs_and_no_further(best: tuple[float, float]) -> None:
    ladders = {"first": (1.0, 2.0, 4.0, 8.0, 16.0), "second": (1.0, 8.0, 64.0)}
    asked = Rungs()

    def error(made: Rungs) -> float:
        return abs(math.log2(made.first or 0) - math.log2(best[0])) + abs(math.log2(made.second or 0) - math.log2(best[1]))

    tried = [Rungs(4.0, 8.0)]
    while among := rungs_beside(min(tried, key=error), asked, tried, ladders):
        assert not set(among) & set(tried)
        tried += among
    assert min(tried, key=error) == Rungs(*best)
    assert len(tried) < 12


def test_what_is_set_is_not_climbed() -> None:
    ladders = {"first": (1.0, 2.0, 4.0), "second": (1.0, 8.0)}
    # 3 is on no ladder: it was asked for.
    assert rungs_beside(Rungs(3.0, 1.0), Rungs(first=3.0), [Rungs(3.0, 1.0)], ladders) == [Rungs(3.0, 8.0)]
    assert rungs_beside(Rungs(3.0, None), Rungs(3.0, None), [], ladders) == []
