"""The benchmark's runner, worker, scores and pictures."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gadgets.bench import machine, pictures, problems, runner, scans, scores, tables, worker
from gadgets.bench.cases import Region, Row, parse
from gadgets.commands.bench import _names
from recon_core.errors import SettingError
from recon_core.metrics import score

FIELDS = {
    "title": "Tiny",
    "note": "A note.",
    "scan": {"kind": "simulate", "matrix": [24, 24], "frames": 8, "readouts_per_frame": 3, "coils": 3, "trajectory": "radial"},
    "coils": 3,
    "settings": {"cg_sense": {"steps": 5, "damping": 0.1}},
}


@pytest.fixture(scope="module")
def scan() -> scans.BenchScan:
    return scans.make(parse("tiny", FIELDS), 0, Path())


# ---- choosing on a grid


@pytest.mark.parametrize("best", range(7))
def test_descend_finds_the_bottom_of_a_valley(best: int) -> None:
    grid = [0.1 * n for n in range(7)]
    asked = []

    def cost(value: float) -> float:
        asked.append(value)
        return abs(value - grid[best]) ** 1.5

    found, tried = worker.descend(grid[::-1], cost)
    assert found == grid[best]
    assert len(asked) == len(set(asked)) == len(tried)
    assert len(asked) <= abs(best - 3) + 3


def test_descend_of_one_value_and_of_equal_costs() -> None:
    assert worker.descend([0.3], lambda _: 1.0) == (0.3, {0.3: 1.0})
    assert worker.descend([1, 2, 3], lambda _: 1.0)[0] == 2


# ---- jobs


def test_problem_goes_round(tmp_path: Path, scan: scans.BenchScan) -> None:
    problems.save_problem(tmp_path / "p.pt", scan.problem)
    found = problems.load_problem(tmp_path / "p.pt")
    for field in dataclasses.fields(found):
        given, back = getattr(scan.problem, field.name), getattr(found, field.name)
        if isinstance(given, torch.Tensor):
            assert torch.equal(given, back)
        elif field.name == "frames":
            assert all(torch.equal(a, b) for a, b in zip(given, back, strict=True))
        else:
            assert given == back


def test_methods_are_given_the_problem_and_nothing_else(scan: scans.BenchScan, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder that a method's process reads holds no truth: the same files, whatever the truth is."""
    seen: list[dict[str, bytes]] = []

    def look(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        folder = Path(command[-1])
        seen.append({path.name: path.read_bytes() for path in folder.iterdir()})
        return subprocess.CompletedProcess(command, 3, "", "Traceback\nKeyError: 'x'")

    monkeypatch.setattr(subprocess, "run", look)
    assert scan.truth is not None
    blind = dataclasses.replace(scan, truth=np.zeros_like(scan.truth) + 1, moving=np.ones(scan.truth.shape[1:], dtype=bool))
    case = parse("tiny", FIELDS)
    for given in (scan, blind):
        part = runner.Part(case, {}, 0, Path(), "cpu")
        part.scan = given
        outcomes = list(runner._run_part(part, [Row("cg_sense")], {"cg_sense"}, lambda _: None))
        assert outcomes[0].record["method"] == "cg_sense"
        assert outcomes[0].record["error"] == "process ended with 3: KeyError: 'x'"
    assert set(seen[0]) == {"problem.pt", "job.json"}
    assert seen[0] == seen[1]


def test_a_refusal_is_told_in_the_report(tmp_path: Path, scan: scans.BenchScan) -> None:
    problems.save_problem(tmp_path / "problem.pt", scan.problem)
    job = {"kind": "solver", "method": "grasp", "settings": {"strength": -1}, "coils": 3, "holdout": 0.05, "seed": 0, "device": "cpu"}
    (tmp_path / "job.json").write_text(json.dumps(job), encoding="utf-8")
    assert worker.main(tmp_path) == 0
    assert "strength" in json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["error"]


def test_worker_gives_images_and_what_they_cost(tmp_path: Path, scan: scans.BenchScan) -> None:
    problems.save_problem(tmp_path / "problem.pt", scan.problem)
    common = {"coils": 3, "holdout": 0.05, "seed": 0, "device": "cpu", "kind": "solver"}
    (tmp_path / "job.json").write_text(json.dumps({"method": "cg_sense", "settings": {"damping": 0.1}, **common}), encoding="utf-8")
    assert worker.main(tmp_path) == 0
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["report"]["settings"]["damping"] == 0.1
    assert 0 < report["report"]["seconds"]["total"] <= report["seconds"]
    assert report["memory"]["peak"] > report["memory"]["above"] >= 0
    images = np.load(tmp_path / "images.npy")
    assert images.shape == (8, 24, 24)
    (tmp_path / "job.json").write_text(json.dumps({"method": "time_average", "settings": {}, **common}), encoding="utf-8")
    assert worker.main(tmp_path) == 0
    still = np.load(tmp_path / "images.npy")
    assert np.array_equal(still, np.broadcast_to(still[:1], still.shape))
    assert scan.truth is not None
    assert score(still, scan.truth, scan.moving)["psnr_db"] > 20


# ---- rows


ROWS = {
    **{key: value for key, value in FIELDS.items() if key != "settings"},
    "rows": [
        {"method": "gridding", "name": "first four", "frames": 4},
        {"method": "gridding", "name": "every other", "every": 2, "paper": {"psnr_db": 12.5}},
        {"method": "gridding", "scan": {"readouts_per_frame": 5}},
    ],
    "scored": 6,
}


def test_a_row_gets_its_own_frames_and_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, tuple[dict[str, Any], Any]] = {}
    scored: list[tuple[int, ...]] = []

    def job(asked: dict[str, Any], problem: Any) -> tuple[dict[str, Any], Any, None]:
        seen[f"{asked['method']} {problem.n_readouts}"] = asked, problem
        count = len(asked.get("times", problem.frame_times))
        report = {"seconds": 1.0, "memory": {"peak": 2, "above": 1}}
        return report, np.ones((count, 24, 24), dtype=np.complex64), None

    def look(images: Any, truth: Any, moving: Any) -> dict[str, Any]:
        scored.append((len(images), len(truth)))
        return {"psnr_db": 1.0}

    monkeypatch.setattr(runner, "run_job", job)
    monkeypatch.setattr(scores, "score", look)
    found = runner.run_case(parse("rows", ROWS), Path())
    assert [record["method"] for record in found.records] == ["time_average", "first four", "every other", "time_average (5)", "gridding"]
    assert scored == [(6, 6), (4, 4), (6, 6), (6, 6), (6, 6)]
    assert list(seen) == ["time_average 24", "gridding 12", "time_average 40", "gridding 40"]
    # "first four" and "every other" both have 12 readouts; the later one is kept.
    asked, problem = seen["gridding 12"]
    whole = scans.make(parse("rows", ROWS), 0, Path()).problem
    assert asked["times"] == whole.frame_times.tolist()
    assert torch.equal(problem.frame_times, whole.frame_times[::2])
    assert torch.equal(problem.samples, torch.cat([whole.samples[:, f] for f in whole.frames[::2]], dim=1))
    with pytest.raises(SettingError, match="9 of 8"):
        runner.Part(parse("rows", ROWS), {}, 0, Path(), "cpu").given(Row("gridding", frames=9))


def test_finished_rows_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def job(asked: dict[str, Any], problem: Any) -> tuple[dict[str, Any], Any, None]:
        ran.append(asked["method"])
        if asked["method"] == "grasp":
            return {"error": "it broke"}, None, None
        return {"seconds": 1.0, "memory": {"peak": 2, "above": 1}}, np.ones((8, 24, 24), dtype=np.complex64), None

    monkeypatch.setattr(runner, "run_job", job)
    monkeypatch.setattr(scores, "score", lambda *_: {"psnr_db": 1.0})
    fields = {**FIELDS, "methods": ["cg_sense", "grasp", "gridding"]}
    after: list[int] = []
    first = runner.run_case(parse("tiny", fields), Path(), ["cg_sense", "grasp"], keep=lambda done: after.append(len(done.records)))
    assert after == [1, 2, 3]
    stored = json.loads(json.dumps(first.records))
    ran.clear()
    second = runner.run_case(parse("tiny", fields), Path(), kept=stored)
    assert ran == ["grasp", "gridding"]
    assert [record["method"] for record in second.records] == ["time_average", "cg_sense", "grasp", "gridding"]
    ran.clear()
    # Rows that are not asked for stay, and other settings are another question.
    changed = {**fields, "settings": {"cg_sense": {"steps": 6, "damping": 0.1}}}
    third = runner.run_case(parse("tiny", changed), Path(), ["gridding"], kept=json.loads(json.dumps(second.records)))
    assert ran == []
    assert [record["method"] for record in third.records] == ["time_average", "gridding"]
    runner.run_case(parse("tiny", changed), Path(), kept=stored)
    assert ran == ["cg_sense", "grasp", "gridding"]


def test_a_row_of_a_neighbouring_table_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def job(asked: dict[str, Any], problem: Any) -> tuple[dict[str, Any], Any, None]:
        ran.append(asked["method"])
        return {"seconds": 1.0, "memory": {"peak": 2, "above": 1}}, np.ones((8, 24, 24), dtype=np.complex64), None

    monkeypatch.setattr(runner, "run_job", job)
    monkeypatch.setattr(scores, "score", lambda *_: {"psnr_db": 1.0})
    first = {**FIELDS, "rows": [{"name": "both", "method": "gridding", "paper": {"seconds": 3.0}}]}
    tables.write_json([tables.as_json(runner.run_case(parse("set/a", first), Path()), {})], tmp_path)
    ran.clear()
    second = {
        **FIELDS,
        "rows": [{"name": "eight", "method": "gridding"}, {"name": "six steps", "method": "cg_sense", "settings": {"steps": 6}}],
    }
    taken = runner.run_case(parse("set/b", second), Path(), kept=tables.kept_records(tmp_path, "set/b")[1])
    assert ran == ["cg_sense"]
    assert [(record["method"], "paper" in record) for record in taken.records] == [
        ("time_average", False),
        ("eight", False),
        ("six steps", False),
    ]
    # Memory by tensors was not measured there.
    runner.run_case(parse("set/b", {**second, "tensor_bytes": True}), Path(), kept=tables.kept_records(tmp_path, "set/b")[1])
    assert ran == ["cg_sense", "time_average", "gridding", "cg_sense"]


def test_rows_are_named_with_their_commas() -> None:
    titles = {"KP-INR, uniform 8×", "P-INR, uniform 8×", "both"}
    assert _names("KP-INR, uniform 8×,grasp,P-INR, uniform 8×", titles) == ["KP-INR, uniform 8×", "grasp", "P-INR, uniform 8×"]
    assert _names("cg_sense,,both, P-INR", titles) == ["cg_sense", "both", "P-INR"]


# ---- scores


def test_curve_difference_by_hand() -> None:
    truth = np.zeros((2, 4, 5))
    truth[:, 1, 1:3] = [[10, 8], [5, 4]]
    truth[:, 2, 1] = 1
    images = truth.copy()
    region = Region(y=(0, 4), x=(0, 5))
    assert scores.curve_difference(images, truth, region) == 0
    # Pixels above half of 10 are the two of the first row: true course 9, 4.5; one pixel 1 too bright in frame 0 makes 9.5.
    images[0, 1, 1] += 1
    images[0, 2, 1] += 50
    assert scores.curve_difference(images, truth, region) == pytest.approx(np.sqrt(0.5**2 / 2) / 9)
    with pytest.raises(SettingError, match="no signal"):
        scores.curve_difference(images, truth, Region(y=(3, 4), x=(0, 5)))


def test_withheld_readouts_judge(scan: scans.BenchScan) -> None:
    case = parse("tiny", {**FIELDS, "withhold": 0.2})
    made = scans.make(case, 0, Path())
    scorer = scores.Scorer(case, made)
    assert made.truth is not None
    good = scorer(made.truth)["held_out_error"]
    nothing = scorer(0 * made.truth)["held_out_error"]
    still = scorer(np.broadcast_to(made.truth.mean(0), made.truth.shape).astype(np.complex64))["held_out_error"]
    # The truth's phase is not that of the estimated maps, so that it predicts only in part; magnitudes are what counts below.
    assert min(good, still) > 0
    assert nothing > 1
    report, images, _ = runner.run_job(
        {"kind": "solver", "method": "time_average", "settings": {}, "coils": 3, "holdout": 0.0, "seed": 0, "device": "cpu"}, made.problem
    )
    assert images is not None, report
    assert scorer(images)["held_out_error"] < 0.3 * nothing


# ---- machine


_TAKES_FORTY_MEGABYTES = """
import json
import numpy as np
from gadgets.bench.machine import PeakMemory
memory = PeakMemory()
block = np.ones(40_000_000, dtype=np.uint8)
assert block.sum() == 40_000_000
del block
print(json.dumps(memory.read()))
"""


def test_peak_memory_sees_what_was_taken_and_given_back() -> None:
    """In a process of its own, as it is used: what other tests leave for the garbage collector would count."""
    done = subprocess.run([sys.executable, "-c", _TAKES_FORTY_MEGABYTES], capture_output=True, text=True, check=True)
    used = json.loads(done.stdout)
    if sys.platform == "linux":
        assert 38_000_000 < used["above"] < 80_000_000
    assert used["peak"] >= used["above"]


def test_tensor_bytes_are_those_that_live_at_once() -> None:
    with machine.TensorBytes() as counted:
        a = torch.ones(1000)
        b = a.reshape(10, 100)
        assert counted.now == 4000
        del a
        assert counted.now == 4000
        c = (b * 2).sum()
        assert counted.peak == 8004
        del b, c
        assert counted.now == 0
    # What the backward pass needs is held until then: ten exponentials of 400 bytes, beside what it makes on its way.
    with machine.TensorBytes() as forward:
        weight = torch.zeros(100, requires_grad=True)
        chain = weight
        for _ in range(10):
            chain = chain.exp()
        cost = chain.sum()
        assert forward.now == 11 * 400 + 4
        del chain
        cost.backward()
    assert 11 * 400 + 4 < forward.peak <= 15 * 400
    del cost
    assert forward.now == 2 * 400


def test_machine() -> None:
    found = machine.describe()
    assert found["cores"] >= 1
    assert found["cpu"]
    assert set(found["packages"]) >= {"torch", "finufft"}
    assert json.dumps(found)


# ---- pictures


@pytest.mark.parametrize("known", [True, False])
def test_pictures(tmp_path: Path, scan: scans.BenchScan, known: bool) -> None:
    from PIL import Image

    assert scan.truth is not None
    first = scan if known else dataclasses.replace(scan, truth=None, moving=None)
    made = [{"method": m, "seed": 0, "seconds": 1.0, "psnr_db": 30.0} for m in ("grasp", "inmr")]
    images = {"grasp": scan.truth * 1.01, "inmr": np.roll(scan.truth, 1, axis=2)}
    shown = runner.CaseResult(parse("tiny", FIELDS), "phantom", made, first, images)
    pictures.side_by_side(shown, tmp_path / "new" / "tiny.png")
    with Image.open(tmp_path / "new" / "tiny.png") as picture:
        assert picture.width > picture.height if not known else picture.width > 400
        assert np.asarray(picture.convert("L")).std() > 10
