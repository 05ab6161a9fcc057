"""Where a solver's time goes, and the floor of its step."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest
from rich.console import Console

from gadgets import cli
from gadgets.bench import profile
from recon_core.errors import MissingPartError
from recon_core.solvers import registry

FIELDS = {
    "title": "Tiny",
    "scan": {"kind": "simulate", "matrix": [24, 20], "frames": 8, "readouts_per_frame": 3, "coils": 3, "trajectory": "radial"},
    "coils": 3,
    "settings": {"als_subspace": {"rank": 3, "steps": 2, "basis_width": 16, "smoothness": 0.1}, "gridding": {}},
}
RATES = profile.Rates(matmul=1e9, fft=2e9, copy=1e8)


def test_every_stage_and_step_is_a_function_there_is() -> None:
    """A renamed function must not silently move its time into the rest."""
    names = [name for stage in profile.STAGES.values() for name in stage]
    names += [profile.SELECTION, *(step.function for step in profile.STEPS.values())]
    for name in names:
        code_name, file, line = profile.identifier(name).split("\x00")
        assert name.split(":")[1].endswith(code_name)
        assert f"def {code_name}(" in "".join(
            Path(file).read_text(encoding="utf-8").splitlines(keepends=True)[int(line) - 1 : int(line) + 4]
        )
    with pytest.raises(AttributeError):
        profile.identifier("recon_core.reconstruct:nothing")
    assert set(profile.STEPS) <= set(registry.names())


def spin(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def gram() -> None:
    spin(0.1)


def basis() -> None:
    spin(0.05)
    gram()


def select() -> None:
    basis()


def step() -> None:
    gram()
    spin(0.03)


def test_a_moment_counts_for_its_outermost_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    here = __name__
    monkeypatch.setattr(profile, "STAGES", {**dict.fromkeys(profile.STAGES, ()), "basis": (f"{here}:basis",), "Gram": (f"{here}:gram",)})
    monkeypatch.setattr(profile, "SELECTION", f"{here}:select")
    monkeypatch.setitem(profile.STEPS, "grasp", profile.Step(f"{here}:step", False))
    out: dict[str, object] = {}
    with profile.profiled("grasp", out):
        began = time.perf_counter()
        select()
        step()
        step()
        # Before the samples are sorted, which is not theirs.
        wall = time.perf_counter() - began
    stages = out["stages"]
    assert isinstance(stages, dict)
    assert stages["selection"]["basis"] >= 0.1
    assert stages["selection"]["Gram"] == 0
    assert stages["fit"]["Gram"] >= 0.13
    assert stages["fit"]["rest"] >= 0.03
    assert sum(sum(phase.values()) for phase in stages.values()) == pytest.approx(wall, rel=0.3)
    assert out["step_seconds"] == pytest.approx(sum(stages["fit"].values()), rel=0.3, abs=0.1)


def test_least_work_by_hand() -> None:
    """K = 2 bases (of 5 frames), 3 coils, 4×8 pixels: 8×16 = 128 points of the doubled grid, log₂ 128 = 7."""
    joint = profile.least_work("grasp_pro", {"rank": 2}, (4, 8), 5, 3)
    assert joint == {
        "transforms": 12,
        "fft_flops": 12 * 5 * 128 * 7,
        "flops": 4 * 4 * 3 * 128,
        "bytes": (4 * 4 + 16 * 2 * 3) * 128,
    }
    framewise = profile.least_work("grasp", {}, (4, 8), 5, 3)
    assert framewise == {"transforms": 30, "fft_flops": 30 * 5 * 128 * 7, "flops": 2 * 5 * 3 * 128, "bytes": (4 * 5 + 16 * 15) * 128}
    several = profile.least_work("als_subspace", {"rank": 2, "inner": 4}, (4, 8), 5, 3)
    assert several == {key: 4 * value for key, value in joint.items()}
    assert profile.least_work("grasp_pro", {"rank": 9}, (4, 8), 5, 3) == profile.least_work("grasp_pro", {"rank": 5}, (4, 8), 5, 3)
    assert profile.least_work("inmr", {}, (4, 8), 5, 3) is None


def test_floor_takes_the_slower_of_arithmetic_and_memory() -> None:
    assert profile.floor_seconds({"fft_flops": 4e9, "flops": 3e9, "bytes": 1e8}, RATES) == pytest.approx(2 + 3)
    assert profile.floor_seconds({"fft_flops": 4e9, "flops": 3e9, "bytes": 9e8}, RATES) == pytest.approx(2 + 9)


def test_step_against_floor() -> None:
    report = {"settings": {"rank": 2, "steps": 10}, "virtual_coils": 3, "steps": 14}
    found = profile.against_floor("subspace_inr", report, 1.0, (4, 8), 5, RATES)
    assert found["steps"] == 10
    assert found["step"] == pytest.approx(0.1)
    assert found["ratio"] == pytest.approx(0.1 / profile.floor_seconds(found["work"], RATES))
    assert set(profile.against_floor("inmr", report, 1.0, (4, 8), 5, RATES)) == {"rates"}


def test_rates_are_those_of_a_machine() -> None:
    rates = profile.measure_rates((16, 12), "cpu")
    assert all(math.isfinite(value) and value > 1e7 for value in (rates.matmul, rates.fft, rates.copy))


def test_command_tells_stages_and_floor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = tmp_path / "tiny.yaml"
    case.write_text(json.dumps(FIELDS), encoding="utf-8")
    out = tmp_path / "out"
    assert cli.main(["bench", str(case), "--profile", "--methods", "als_subspace,gridding", "--device", "cpu", "--json", str(out)]) == 0
    text = capsys.readouterr().out
    assert "seconds by stage" in text
    assert "against its floor" in text
    average, als, gridding = json.loads((out / "tiny.json").read_text(encoding="utf-8"))["runs"]
    assert "profile" not in average
    found = als["profile"]
    assert found["ratio"] > 1
    assert found["steps"] == als["report"]["steps"]
    assert found["step"] * found["steps"] <= sum(found["stages"]["fit"].values())
    total = sum(sum(phase.values()) for phase in found["stages"].values())
    assert total == pytest.approx(als["report"]["seconds"]["total"], rel=0.2)
    for stage in ("basis", "Gram", "right-hand side", "point spreads"):
        assert found["stages"]["fit"][stage] > 0
    assert found["stages"]["selection"]["held-out error"] > 0
    assert "ratio" not in gridding["profile"]


def test_absent_profiler_names_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingPartError, match=r"gadgetron-inr\[profile\]"):
        profile.check()


def test_tables_show_what_is_known() -> None:
    stages = {phase: dict.fromkeys(profile.COLUMNS, 0.0) for phase in ("selection", "fit")}
    stages["fit"]["Gram"] = 1.25
    known = profile.against_floor("grasp", {"settings": {"steps": 2}, "virtual_coils": 3, "steps": 2}, 0.5, (4, 8), 5, RATES)
    unknown = profile.against_floor("inmr", {"settings": {"steps": 2}, "virtual_coils": 3, "steps": 2}, 0.5, (4, 8), 5, RATES)
    result = {
        "title": "A case",
        "runs": [
            {"method": "grasp", "profile": {"stages": stages, **known}},
            {"method": "inmr", "profile": {"stages": stages, **unknown}},
            {"method": "time_average"},
        ],
    }
    console = Console(width=200, record=True)
    console.print(profile.stage_table(result))
    console.print(profile.floor_table(result))
    text = console.export_text()
    assert "1.25" in text
    assert "basis" not in text
    assert "250.0" in text
    assert "not known" in text
    assert "time_average" not in text
