"""From whitened readouts to images: selection on held-out readouts, report, and what a wrong request is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recon_core import metrics
from recon_core import reconstruct as module
from recon_core.calibration.calibrate import Calibration, with_density
from recon_core.calibration.holdout import held_out_readouts
from recon_core.errors import DataError, MissingPartError, SettingError
from recon_core.operators.nufft import Nufft
from recon_core.problem import ImageSeries, KSpaceProblem
from recon_core.reconstruct import HeldOut, ReconstructionSettings, _Fit, preferred, reconstruct, resolve_device
from recon_core.solvers import registry
from recon_core.solvers.base import NoSettings, Solver

TINY: dict[str, Any] = {"steps": 10, "batch_frames": 4, "levels": 5, "width": 16, "mapped": 8, "latent": 3, "log2_table": 10}


def scan(toy: ModuleType, **changes: Any) -> tuple[KSpaceProblem, Tensor]:
    return toy.toy_problem(**{"n_frames": 14, "shape": (22, 20), "coils": 3, "per_frame": 4, "noise": 0.01, **changes})


def settings(solver: str, **changes: Any) -> ReconstructionSettings:
    return ReconstructionSettings(**{"solver": solver, "coils": 3, "device": "cpu", "holdout": 0.1, **changes})


@pytest.mark.parametrize(("solver", "own"), [("gridding", {}), ("cg_sense", {}), ("inmr", {**TINY, "steps": 200, "smoothness": 0.2})])
def test_whole_way(toy: ModuleType, solver: str, own: dict[str, Any]) -> None:
    problem, truth = scan(toy)
    told: list[str] = []
    result = reconstruct(problem, settings(solver), own, told.append)
    series, report = result.series, result.report
    assert series.images.shape == (14, 22, 20)
    assert torch.equal(series.times, problem.frame_times)
    assert (series.latents is not None) == (solver == "inmr")
    aligned, reference = metrics.align(series.images.numpy(), truth.numpy())
    limits = {"gridding": 0.7, "cg_sense": 0.35, "inmr": 0.35}
    assert float(np.linalg.norm(aligned - reference) / np.linalg.norm(reference)) < limits[solver]
    assert json.loads(json.dumps(report)) == report
    assert report["solver"] == solver
    assert (report["engine"], report["device"], report["virtual_coils"]) == ("finufft", "cpu", 3)
    assert report["seconds"]["total"] >= report["seconds"]["selection"] + report["seconds"]["fit"] > 0
    assert series.notes[0] == f"{solver} on cpu, finufft"
    assert bool(told) == (solver != "gridding")
    assert all(solver in line for line in told)


def test_scale_is_the_objects_own(toy: ModuleType) -> None:
    """Object × root-sum-of-squares of the coils (one here), without any alignment of scale."""
    problem, truth = scan(toy, per_frame=30, n_frames=4, noise=0.0)
    images = reconstruct(problem, settings("cg_sense"), {"damping": 1e-3, "steps": 20}).series.images
    ratio = images.abs()[:, 5:17, 5:15].mean() / truth.abs()[:, 5:17, 5:15].mean()
    assert float(ratio) == pytest.approx(1.0, abs=0.02)


def test_selection_keeps_the_candidate_that_predicts_best(toy: ModuleType) -> None:
    problem, _ = scan(toy)
    report = reconstruct(problem, settings("cg_sense")).report
    errors = [t["held_out_error"] for t in report["tried"]]
    assert [t["settings"]["damping"] for t in report["tried"]] == [1.0, 0.1, 0.01]
    assert report["settings"]["damping"] == report["tried"][errors.index(min(errors))]["settings"]["damping"]
    assert report["steps"] == 12


def test_a_later_candidate_has_to_be_better_by_the_solvers_evidence(toy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, _ = scan(toy)
    chosen = reconstruct(problem, settings("cg_sense")).report["settings"]["damping"]
    assert chosen < 1.0
    monkeypatch.setattr(registry.solver_class("cg_sense"), "evidence", 0.999)
    assert reconstruct(problem, settings("cg_sense")).report["settings"]["damping"] == 1.0


def test_noise_moves_the_choice_towards_damping(toy: ModuleType) -> None:
    chosen = [reconstruct(scan(toy, noise=n)[0], settings("cg_sense")).report["settings"]["damping"] for n in (0.0, 3.0)]
    assert chosen[1] > chosen[0]


def test_inmr_chooses_smoothness_and_the_step_to_stop_at(toy: ModuleType) -> None:
    problem, _ = scan(toy)
    result = reconstruct(problem, settings("inmr"), {**TINY, "steps": 50})
    tried = result.report["tried"]
    assert [t["settings"]["smoothness"] for t in tried] == [c.smoothness for c in _inmr_candidates(problem)]
    best = min(tried, key=lambda t: t["held_out_error"])
    assert result.report["settings"] == best["settings"]
    assert result.report["steps"] == best["step"] in (25, 50)
    assert any("chosen on held-out readouts: smoothness=" in note for note in result.series.notes)


def _inmr_candidates(problem: KSpaceProblem) -> list[Any]:
    cls = registry.solver_class("inmr")
    return cls.candidates(cls.Settings(), problem)


def test_what_the_user_sets_is_not_chosen_again(toy: ModuleType) -> None:
    problem, _ = scan(toy)
    report = reconstruct(problem, settings("cg_sense"), {"damping": "0.3", "steps": 5}).report
    assert report["tried"] == []
    assert report["settings"] == {"damping": 0.3, "steps": 5}
    inmr = reconstruct(problem, settings("inmr"), {**TINY, "smoothness": 7}).report
    assert [t["settings"]["smoothness"] for t in inmr["tried"]] == [7.0]


def test_without_held_out_readouts_the_middle_candidate_runs_to_its_end(toy: ModuleType) -> None:
    problem, _ = scan(toy)
    report = reconstruct(problem, settings("cg_sense", holdout=0.0)).report
    assert (report["tried"], report["settings"]["damping"], report["steps"]) == ([], 0.1, 12)


@pytest.mark.parametrize(("solver", "own"), [("cg_sense", {}), ("inmr", TINY)])
def test_repeats_bit_for_bit(toy: ModuleType, solver: str, own: dict[str, Any]) -> None:
    problem, _ = scan(toy)
    first = reconstruct(problem, settings(solver, seed=5), own)
    torch.rand(3)
    second = reconstruct(problem, settings(solver, seed=5), own)
    assert torch.equal(first.series.images, second.series.images)
    assert first.report["tried"] == second.report["tried"]
    if solver == "inmr":
        assert not torch.equal(first.series.images, reconstruct(problem, settings(solver, seed=6), own).series.images)


def test_the_problem_given_stays_as_it_was(toy: ModuleType) -> None:
    problem, _ = scan(toy)
    before = problem.samples.clone()
    reconstruct(problem, settings("inmr"), TINY)
    assert torch.equal(problem.samples, before)
    assert problem.weights is None
    assert problem.sensitivities is None


def test_coils_are_compressed(toy: ModuleType) -> None:
    problem, _ = scan(toy, coils=6)
    assert reconstruct(problem, settings("gridding", coils=2)).report["virtual_coils"] == 2


def test_cartesian_lines(toy: ModuleType) -> None:
    """Cartesian frames take the FFT, whatever the engine, and fold out."""
    shape, frames, per_frame = (24, 20), 6, 16
    truth, maps = toy.toy_series(1, shape)[0], toy.toy_maps(4, shape)
    inner, outer = torch.arange(-5, 5), torch.cat([torch.arange(-12, -5), torch.arange(5, 12)])
    lines = torch.stack([torch.cat([inner, outer[torch.randperm(14)[: per_frame - 10]]]) for _ in range(frames)]).flatten()
    trajectory = torch.zeros(frames * per_frame, shape[1], 2)
    trajectory[..., 0] = torch.arange(shape[1]) - shape[1] // 2
    trajectory[..., 1] = lines[:, None]
    samples = Nufft(trajectory.flatten(0, 1), shape, cartesian=True).forward(maps * truth).reshape(4, -1, shape[1])
    times = torch.arange(frames * per_frame, dtype=torch.float64)
    groups = tuple(torch.arange(i * per_frame, (i + 1) * per_frame) for i in range(frames))
    problem = KSpaceProblem(samples, trajectory, groups, times, torch.stack([times[g].mean() for g in groups]), shape, cartesian=True)
    result = reconstruct(problem, settings("cg_sense", coils=4), {"damping": 0.01, "steps": 40})
    assert result.report["engine"] == "fft"
    assert "fft" in result.series.notes[0]
    aligned, reference = metrics.align(result.series.images.numpy(), truth.expand(frames, *shape).numpy())
    assert float(np.linalg.norm(aligned - reference) / np.linalg.norm(reference)) < 0.08


def test_volume() -> None:
    """3D radial with two coils, end to end."""
    shape = (10, 12, 11)
    z, y, x = torch.meshgrid(*[torch.arange(n) / n - 0.5 for n in shape], indexing="ij")
    truth = torch.exp(-(z**2 + (y - 0.05) ** 2 + x**2) / 0.04).to(torch.complex64)
    field = torch.exp(0.6 * x) + 0j
    maps = torch.stack([field, 1 / field * torch.exp(1j * y)]).to(torch.complex64)
    maps = maps / maps.abs().square().sum(0).sqrt()
    direction = torch.nn.functional.normalize(torch.randn(900, 1, 3), dim=-1)
    trajectory = (direction * (torch.arange(14)[:, None] / 28) * torch.tensor([11.0, 12.0, 10.0])).to(torch.float32)
    samples = Nufft(trajectory.flatten(0, 1), shape, "nudft").forward(maps * truth).reshape(2, 900, 14)
    times = torch.arange(900, dtype=torch.float64)
    frames = tuple(torch.arange(i * 300, (i + 1) * 300) for i in range(3))
    problem = KSpaceProblem(samples, trajectory, frames, times, torch.stack([times[f].mean() for f in frames]), shape)
    series = reconstruct(problem, settings("cg_sense", coils=2), {"damping": 1e-3}).series
    aligned, reference = metrics.align(series.images.numpy(), truth.expand(3, *shape).numpy())
    assert float(np.linalg.norm(aligned - reference) / np.linalg.norm(reference)) < 0.1


class _Known(Solver[NoSettings]):
    """Gives images that are known beforehand."""

    name = "known"
    Settings = NoSettings
    total_steps = 1

    def __init__(self, series: Tensor, times: Tensor) -> None:
        super().__init__(NoSettings())
        self.series, self.times = series, times

    def start(self, problem: KSpaceProblem, previous: Solver[NoSettings] | None = None) -> None:
        raise NotImplementedError

    def _update(self) -> None:
        raise NotImplementedError

    def images(self, times: Tensor | None = None) -> ImageSeries:
        wanted = self.times if times is None else times
        frames = [int((self.times - t).abs().argmin()) for t in wanted]
        return ImageSeries(self.series[frames], wanted)


def test_held_out_error_of_the_truth_is_the_noise_floor(toy: ModuleType) -> None:
    """True maps and images leave the whitened noise only: one. Anything else is above."""
    problem, truth = scan(toy, n_frames=30, per_frame=6, noise=1.0)
    weighted = with_density(problem)
    held = held_out_readouts(problem, 0.3, 0)
    calibration = Calibration(torch.eye(3, dtype=torch.complex64), toy.toy_maps(3, (22, 20)), torch.ones(22, 20))
    judge = HeldOut(weighted, held, calibration, "finufft")
    best = judge.error(_Known(truth, problem.frame_times))
    assert best == pytest.approx(1.0, abs=0.05)
    assert judge.error(_Known(truth.mean(0).expand_as(truth).contiguous(), problem.frame_times)) > best
    # Energy that no image explains, density-weighted, outside the centre.
    outside = weighted.trajectory[held].norm(dim=-1) >= 2
    weights = weighted.weights[held] * outside
    expected = float((weights * problem.samples[:, held].abs().square()).sum() / (3 * weights.sum()))
    assert judge.error(_Known(torch.zeros_like(truth), problem.frame_times)) == pytest.approx(expected, rel=1e-3)


def test_held_out_readouts_without_a_frame_are_an_error(toy: ModuleType) -> None:
    problem, _ = scan(toy, n_frames=2, per_frame=2)
    alone = problem.replace(frames=(problem.frames[0],), frame_times=problem.frame_times[:1])
    calibration = Calibration(torch.eye(3, dtype=torch.complex64), toy.toy_maps(3, (22, 20)), torch.ones(22, 20))
    with pytest.raises(DataError, match="holdout"):
        HeldOut(with_density(alone), torch.tensor([False, False, False, True]), calibration, "finufft")


def test_unknown_solver_and_settings(toy: ModuleType) -> None:
    problem, _ = scan(toy, n_frames=2, per_frame=2)
    with pytest.raises(SettingError, match="Did you mean 'inmr'") as error:
        reconstruct(problem, settings("imnr"))
    assert error.value.field == "solver"
    with pytest.raises(SettingError, match="Did you mean 'smoothness'") as error:
        reconstruct(problem, settings("inmr"), {"smothness": 1})
    assert error.value.field == "solver.smothness"
    with pytest.raises(SettingError, match="at least 1"):
        reconstruct(problem, settings("cg_sense"), {"steps": 0})
    with pytest.raises(SettingError, match="engine"):
        reconstruct(problem, settings("gridding", engine="fftw"))


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    for name, words in [("cuda", "no CUDA device"), ("cuda:1", "no CUDA device"), ("tpu", "is no device"), ("meta", "not supported")]:
        with pytest.raises(MissingPartError, match=words) as error:
            resolve_device(name)
        assert error.value.field == "device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(MissingPartError, match="of 2 CUDA devices"):
        resolve_device("cuda:2")


def test_an_engine_of_the_other_device(toy: ModuleType) -> None:
    problem, _ = scan(toy, n_frames=2, per_frame=2)
    with pytest.raises(MissingPartError, match="cufinufft"):
        reconstruct(problem, settings("gridding", engine="cufinufft"))


def test_a_solver_of_other_dimensions(toy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, _ = scan(toy, n_frames=2, per_frame=2)
    monkeypatch.setattr(registry.solver_class("gridding"), "dims", (3,))
    with pytest.raises(DataError, match="the scan has 2"):
        reconstruct(problem, settings("gridding"))


@pytest.mark.parametrize("factor", [1e-8, 1e6])
@pytest.mark.parametrize(("solver", "own"), [("gridding", {}), ("cg_sense", {"damping": 0.1}), ("inmr", {**TINY, "smoothness": 1})])
def test_the_data_may_have_any_scale(toy: ModuleType, solver: str, own: dict[str, Any], factor: float) -> None:
    problem, _ = scan(toy, n_frames=6)
    usual = reconstruct(problem, settings(solver, holdout=0.0), own).series.images
    scaled = reconstruct(problem.replace(samples=factor * problem.samples), settings(solver, holdout=0.0), own).series.images
    torch.testing.assert_close(scaled / factor, usual, rtol=1e-2, atol=1e-2 * float(usual.abs().max()))


def test_progress_is_told_at_every_tenth() -> None:
    class Counting(Solver[NoSettings]):
        name = "counting"
        Settings = NoSettings
        total_steps = 40

        def start(self, problem: KSpaceProblem, previous: Solver[NoSettings] | None = None) -> None:
            raise NotImplementedError

        def _update(self) -> None:
            pass

        def images(self, times: Tensor | None = None) -> ImageSeries:
            raise NotImplementedError

        def objective(self) -> float:
            return float("nan") if self.step == self.breaks_at else 1.5

        breaks_at = -1

    told: list[str] = []
    solver = Counting(NoSettings())
    module.run(solver, told.append)
    assert told == [f"counting: step {4 * i} of 40, cost 1.5" for i in range(1, 11)]
    solver = Counting(NoSettings())
    solver.limit, told = 5, []
    module.run(solver, told.append)
    assert (solver.step, told[-1]) == (5, "counting: step 5 of 5, cost 1.5")
    broken = Counting(NoSettings())
    broken.breaks_at = 7
    with pytest.raises(DataError, match="cost nan at step 7"):
        module.run(broken)


def method(regularisation: Callable[[int], int | None]) -> type[Solver[Any]]:
    return type("Method", (), {"evidence_for": staticmethod(lambda *_: 0.0), "regularisation": staticmethod(regularisation)})


def test_what_held_out_readouts_do_not_tell_apart_is_regularised_most():
    """Frame by frame, so that what all settings miss alike does not count as uncertainty."""
    shared = torch.tensor([5.0, 0.1, 2.0, 9.0], dtype=torch.float64)

    def fit(settings: int, *more: float) -> _Fit:
        return _Fit(settings, 1, shared + torch.tensor(more, dtype=torch.float64))

    best, unsure, worse = fit(0, 0, 0, 0, 0), fit(1, 0.3, -0.2, 0.3, -0.2), fit(2, 0.3, 0.2, 0.3, 0.2)
    # Differences of 0.2 with a standard error of 0.58, of 1.0 with one of 0.12.
    assert preferred([best, unsure, worse], method(lambda settings: settings)) is unsure
    assert preferred([best, unsure, worse], method(lambda settings: -settings)) is best
    assert preferred([worse, unsure, best], method(lambda settings: None)) is best
    single = [_Fit(n, 1, torch.tensor([1.0 + n], dtype=torch.float64)) for n in range(2)]
    assert preferred(single, method(lambda settings: settings)) is single[0]
