"""Volumes slice by slice: one choice, one frozen temporal basis."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from functools import partial

import pytest
import torch

from recon_core import slices as module
from recon_core.calibration.temporal_basis import low_resolution_series, temporal_basis
from recon_core.errors import DataError
from recon_core.reconstruct import ReconstructionSettings, reconstruct
from recon_core.slices import reconstruct_slices, side_by_side, slice_parts
from recon_core.solvers.grasp_pro import GraspPro
from recon_core.threads import at_most_threads

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
    with at_most_threads(1):
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


@pytest.fixture
def threads():
    """Sets how many threads torch takes, for the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


FITS = """
import pathlib, pickle, sys
from recon_core.reconstruct import ReconstructionSettings
from recon_core.slices import reconstruct_slices

stack, fits = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())
images = []
for solver, asked in fits:
    settings = ReconstructionSettings(solver=solver, coils=3, holdout=0.0, device="cpu")
    images.append(reconstruct_slices(stack, settings, asked).series.images)
pathlib.Path(sys.argv[2]).write_bytes(pickle.dumps(images))
"""


def test_images_do_not_depend_on_the_number_of_cores(stack, tmp_path):
    """To the last bit, with slices one after another and side by side; networks too start from their seed alone."""
    (tmp_path / "stack").write_bytes(pickle.dumps((stack, [("grasp_pro", SETTINGS), ("hash_inr", {"steps": 3})])))
    images = []
    for count in ("1", "3"):
        # In processes of their own, as the number is a process's from its start.
        environment = {**os.environ, "OMP_NUM_THREADS": count}
        subprocess.run([sys.executable, "-c", FITS, tmp_path / "stack", tmp_path / count], env=environment, check=True, timeout=120)
        images.append(pickle.loads((tmp_path / count).read_bytes()))
    for one, three in zip(*images, strict=True):
        assert one.isfinite().all()
        assert one.abs().max() > 0
        assert torch.equal(one, three)


CPU = ReconstructionSettings(device="cpu")


def test_work_side_by_side_tells_its_lines_here(threads):
    threads(2)
    meet = threading.Barrier(2, timeout=20)

    def part(number: int, report):
        meet.wait()
        report(f"part {number} in {threading.current_thread().name}")
        return number

    def parts():
        (one,) = yield [lambda report: report("first") or 1]
        return one + sum((yield [partial(part, 2), partial(part, 3)]))

    told = []
    result = side_by_side(parts(), CPU, lambda line: told.append((threading.current_thread(), line)))
    assert result == 6
    assert told[0][1] == "first"
    assert {line.split(" in ")[0] for _, line in told[1:]} == {"part 2", "part 3"}
    assert all("slice" in line for _, line in told[1:])
    assert {thread for thread, _ in told} == {threading.current_thread()}


def test_an_error_ends_the_work(threads):
    """And what has not begun then never begins."""
    threads(2)
    begun = []

    def part(number: int, report):
        begun.append(number)
        if number == 0:
            raise DataError("samples", "bad", "Mend them.")
        time.sleep(0.1)

    def parts():
        yield [partial(part, number) for number in range(40)]

    with pytest.raises(DataError, match="bad"):
        side_by_side(parts(), CPU)
    assert len(begun) < 40


def test_no_slices():
    with pytest.raises((DataError, ValueError)):
        reconstruct_slices([], ReconstructionSettings(solver="cg_sense"))
