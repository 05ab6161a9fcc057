"""Volumes slice by slice: one choice, one frozen temporal basis."""

from __future__ import annotations

import pickle

import pytest
import torch

from recon_core import slices as module
from recon_core.calibration.temporal_basis import low_resolution_series, temporal_basis
from recon_core.errors import DataError
from recon_core.reconstruct import ReconstructionSettings, reconstruct
from recon_core.slices import in_turn, reconstruct_slices, slice_parts
from recon_core.solvers.grasp_pro import GraspPro

SETTINGS = {"rank": 4, "steps": 10, "basis_width": 12, "basis_steps": 8, "strength": 1e-4}


@pytest.fixture(scope="module")
def stack(toy):
    bright, _ = toy.toy_problem(n_frames=12, shape=(18, 16))
    dim = bright.replace(samples=0.4 * bright.samples.roll(1, 2))
    return [dim, bright, dim.replace(samples=0.2 * bright.samples)]


def test_the_basis_is_that_of_all_slices_and_stays(stack, monkeypatch):
    seen = []
    original = GraspPro.start

    def start(self, problem, previous=None):
        original(self, problem, previous)
        seen.append((self.temporal.clone(), previous is not None))

    monkeypatch.setattr(GraspPro, "start", start)
    settings = ReconstructionSettings(solver="grasp_pro", coils=3, holdout=0.0)
    result = reconstruct_slices(stack, settings, SETTINGS)
    assert result.series.images.shape == (12, 3, 18, 16)
    series = [low_resolution_series(s, 12, 0.06, 8, 4, "finufft").flatten(1) for s in stack]
    expected, _ = temporal_basis(torch.cat(series, 1), 4)
    assert [handed for _, handed in seen] == [True] * 3
    for temporal, _ in seen:
        torch.testing.assert_close(temporal, expected)
    assert any("all 3 slices" in note for note in result.series.notes)
    assert result.series.latents.shape == (12, 4)


def test_settings_are_chosen_once_on_the_brightest_slice(stack, monkeypatch):
    chosen_on = []
    original = module.choose

    def choose(cls, asked, problem, *rest):
        chosen_on.append(float(problem.samples.abs().square().sum()))
        return original(cls, asked, problem, *rest)

    monkeypatch.setattr(module, "choose", choose)
    settings = ReconstructionSettings(solver="grasp_pro", coils=3, holdout=0.1)
    told = []
    result = reconstruct_slices(stack, settings, {**SETTINGS, "strength": "auto"}, told.append)
    assert chosen_on == [pytest.approx(float(stack[1].samples.abs().square().sum()))]
    assert any("slice 1" in note for note in result.series.notes)
    assert "grasp_pro: slice 3 of 3" in told


def test_a_method_without_a_temporal_basis_runs_slice_by_slice(stack):
    settings = ReconstructionSettings(solver="cg_sense", coils=3, holdout=0.0)
    result = reconstruct_slices(stack, settings, {"steps": 4, "damping": 0.1})
    alone = reconstruct(stack[2], settings, {"steps": 4, "damping": 0.1}).series.images
    torch.testing.assert_close(result.series.images[:, 2], alone)
    assert result.series.latents is None


def test_parts_need_nothing_but_themselves(stack):
    """Pickled and done in another order, they give the same images; no part holds another slice's samples."""
    settings = ReconstructionSettings(solver="grasp_pro", coils=3, holdout=0.1)
    asked = {**SETTINGS, "strength": "auto"}
    expected = reconstruct_slices(stack, settings, asked).series.images
    counts = []
    parts = slice_parts(stack, settings, asked)
    wanted = next(parts)
    try:
        while True:
            packed = [pickle.dumps(part) for part in wanted]
            counts.append(len(packed))
            assert max(map(len, packed)) < 2 * stack[0].samples.nbytes + 50_000
            results = [pickle.loads(one)(lambda line: None) for one in reversed(packed)]
            wanted = parts.send(results[::-1])
    except StopIteration as end:
        result = end.value
    assert counts == [1, 3, 3]
    assert torch.equal(result.series.images, expected)


def test_work_in_turn_tells_its_lines():
    def parts():
        (one,) = yield [lambda report: report("first") or 1]
        return one + sum((yield [lambda report: 2, lambda report: 3]))

    told: list[str] = []
    assert (in_turn(parts(), told.append), told) == (6, ["first"])


def test_no_slices():
    with pytest.raises((DataError, ValueError)):
        reconstruct_slices([], ReconstructionSettings(solver="cg_sense"))
