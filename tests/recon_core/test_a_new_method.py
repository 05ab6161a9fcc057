"""CONTRIBUTING's walk through, taken: a method in one file and one line is a solver like any other."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest
import torch

from recon_core.errors import DataError, SettingError
from recon_core.reconstruct import ReconstructionSettings, reconstruct
from recon_core.solvers import registry

METHOD = '''
"""A still image plus one that a learned curve plays: the smallest network of all."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from recon_core.errors import DataError
from recon_core.options import option
from recon_core.problem import KSpaceProblem
from recon_core.solvers.base import interpolate_at
from recon_core.solvers.fitting import FieldSettings, FieldSolver


@dataclasses.dataclass(frozen=True)
class PairSettings(FieldSettings):
    """Settings of :class:`Pair`."""

    steps: int = option(60, "optimiser steps", low=1)
    learning_rate: float = option(0.05, "Adam's learning rate", low=1e-7, high=1.0)
    curve: float | None = option(None, "size of the curve at the start; auto: held-out", low=0.0)


class PairField(nn.Module):
    def __init__(self, shape: tuple[int, ...], frames: int, curve: float, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.images = nn.Parameter(torch.zeros(2, *shape, 2))
        self.curve = nn.Parameter(curve * torch.randn(frames, 1, generator=generator))


class Pair(FieldSolver[PairSettings]):
    """d_t = a + c_t b."""

    name = "pair"
    Settings = PairSettings
    dims = (2,)
    field: PairField

    @classmethod
    def suits(cls, problem: KSpaceProblem) -> None:
        super().suits(problem)
        if problem.n_frames < 2:
            raise DataError("frames", "1", "Send at least two frames to pair.")

    @classmethod
    def candidates(cls, settings: PairSettings, problem: KSpaceProblem) -> list[PairSettings]:
        if settings.curve is not None:
            return [settings]
        return [dataclasses.replace(settings, curve=value) for value in (1.0, 0.1)]

    def _make(self) -> nn.Module:
        return PairField(self.problem.shape, self.problem.n_frames, self.settings.curve or 1.0, self.seed)

    def _render(self, positions: Tensor) -> Tensor:
        still, moving = torch.view_as_complex(self.field.images)
        return still + interpolate_at(self.field.curve, positions)[..., None] * moving


SOLVER = Pair
'''


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The file, where Python finds it, and its line in the registry."""
    (tmp_path / "pair_method.py").write_text(textwrap.dedent(METHOD), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(registry._MODULES, "pair", "pair_method")
    monkeypatch.delitem(sys.modules, "pair_method", raising=False)
    return "pair"


def test_it_reconstructs_with_settings_chosen_on_held_out_readouts(pair: str, toy: ModuleType) -> None:
    problem, _ = toy.toy_problem(n_frames=8, shape=(18, 16), coils=2, per_frame=5, noise=0.01)
    assert pair in registry.names()
    common = ReconstructionSettings(solver=pair, coils=2, device="cpu", holdout=0.1)
    result = reconstruct(problem, common)
    assert result.series.images.shape == (8, 18, 16)
    assert [tried["settings"]["curve"] for tried in result.report["tried"]] == [1.0, 0.1]
    assert result.report["steps"] in (25, 50, 60)
    assert any("chosen on held-out readouts: curve=" in note for note in result.series.notes)
    assert torch.equal(result.series.images, reconstruct(problem, common).series.images)
    with pytest.raises(SettingError, match="Did you mean 'curve'"):
        reconstruct(problem, common, {"curv": 1})


def test_it_refuses_what_it_does_not_suit(pair: str, toy: ModuleType) -> None:
    problem, _ = toy.toy_problem(n_frames=1, shape=(18, 16), coils=2, per_frame=5)
    with pytest.raises(DataError, match="at least two frames"):
        reconstruct(problem, ReconstructionSettings(solver=pair, coils=2, device="cpu"))


def test_its_fit_is_saved_and_gone_on_with(pair: str, toy: ModuleType) -> None:
    from recon_core.calibration import calibrate

    problem = calibrate(toy.toy_problem(n_frames=8, shape=(18, 16), coils=2, per_frame=5)[0], 2)[0]
    cls = registry.solver_class(pair)
    solver = cls(cls.Settings(steps=10), seed=2)
    solver.start(problem)
    for _ in range(5):
        solver.update()
    resumed = registry.resume(solver.state_dict(), problem)
    for fit in (solver, resumed):
        while not fit.done:
            fit.update()
    assert torch.equal(solver.images().images, resumed.images().images)
