"""The benchmark's command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gadgets import cli
from gadgets.bench import runner, scores, tables
from gadgets.commands.bench import data_folder

FIELDS = {
    "title": "Tiny",
    "note": "A note.",
    "scan": {"kind": "simulate", "matrix": [24, 24], "frames": 8, "readouts_per_frame": 3, "coils": 3, "trajectory": "radial"},
    "coils": 3,
    "settings": {"cg_sense": {"steps": 5, "damping": 0.1}},
}


def test_command_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = tmp_path / "tiny.yaml"
    case.write_text(json.dumps(FIELDS), encoding="utf-8")
    readme = tmp_path / "README.md"
    readme.write_text(f"{tables.BEGIN}\n{tables.END}\n", encoding="utf-8")
    arguments = ["bench", str(case), "--methods", "cg_sense", "--device", "cpu", "--readme", str(readme)]
    assert cli.main([*arguments, "--json", str(tmp_path / "out"), "--pictures", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert "time_average" in text
    assert "cg_sense" in text
    written = json.loads((tmp_path / "out" / "tiny.json").read_text(encoding="utf-8"))
    assert written["source"].startswith("cardiac")
    assert [run["method"] for run in written["runs"]] == ["time_average", "cg_sense"]
    assert all(run["psnr_db"] > 5 and run["seconds"] > 0 for run in written["runs"])
    assert written["runs"][0]["dynamic_error"] == pytest.approx(1, abs=0.05)
    assert written["machine"]["cores"] >= 1
    assert (tmp_path / "out" / "tiny.png").stat().st_size > 10_000
    assert "| cg_sense |" in readme.read_text(encoding="utf-8")
    assert cli.main([*arguments, "--json", str(tmp_path / "out"), "--resume"]) == 0
    again = json.loads((tmp_path / "out" / "tiny.json").read_text(encoding="utf-8"))
    assert again["runs"] == written["runs"]


def test_rows_whose_turn_has_not_come_outlive_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = tmp_path / "tiny.yaml"
    case.write_text(json.dumps({**FIELDS, "methods": ["cg_sense", "gridding"]}), encoding="utf-8")
    broken = False

    def job(asked: dict[str, Any], problem: Any) -> tuple[dict[str, Any], Any, None]:
        if broken:
            raise KeyboardInterrupt
        return {"seconds": 1.0, "memory": {"peak": 2, "above": 1}}, np.ones((8, 24, 24), dtype=np.complex64), None

    monkeypatch.setattr(runner, "run_job", job)
    monkeypatch.setattr(scores, "score", lambda *_: {"psnr_db": 1.0})
    command = ["bench", str(case), "--device", "cpu", "--json", str(tmp_path)]
    assert cli.main([*command, "--methods", "gridding"]) == 0
    broken = True
    assert cli.main([*command, "--resume"]) != 0
    left = json.loads((tmp_path / "tiny.json").read_text(encoding="utf-8"))
    assert [run["method"] for run in left["runs"]] == ["time_average", "gridding"]


def test_command_lists_cases(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench"]) == 0
    assert "cardiac_standard" in capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "unknown name 'nothing'"),
        (["cardiac_small", "--methods", "grsp"], "Did you mean 'grasp'"),
        (["cardiac_small", "--peer", "bert"], "Did you mean 'bart'"),
        (["cardiac_small", "--seeds", "a"], "--seeds"),
        (["rat_t2", "--data", "/nonexistent"], "--data"),
        (["cardiac_small", "--resume"], "without --json"),
        (["cardiac_small", "--full"], "full size"),
    ],
)
def test_command_faults(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", *arguments]) == 1
    assert words in capsys.readouterr().err


def test_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    assert data_folder("/there") == Path("/there")
    monkeypatch.setenv("GADGETRON_INR_DATA", "/elsewhere")
    assert data_folder(None) == Path("/elsewhere")
    monkeypatch.delenv("GADGETRON_INR_DATA")
    assert data_folder(None).name == "data"
