"""Protocols in the benchmark: their way to a process of their own, scores of maps, what is refused, pictures."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gadgets import cli
from gadgets.bench import cases, problems, runner, scans, scores, worker
from recon_core.errors import DataError, SettingError

FIELDS: dict[str, Any] = {
    "title": "Tiny maps",
    "scan": {
        "kind": "simulate",
        "phantom": "mpqmri",
        "protocol": "set1",
        "echoes": 3,
        "matrix": [4, 16, 16],
        "field_of_view": [40, 220, 220],
        "coils": 3,
        "acceleration": 2,
        "snr": 200,
    },
    "coils": 3,
    "methods": ["parameter_fit"],
}


@pytest.fixture(scope="module")
def scan() -> scans.BenchScan:
    return scans.make(cases.parse("tiny", FIELDS), 0, Path())


def test_a_protocol_goes_round(tmp_path: Path, scan: scans.BenchScan) -> None:
    problems.save_problem(tmp_path / "p.pt", scan.problem)
    found = problems.load_problem(tmp_path / "p.pt")
    assert found.protocol == scan.problem.protocol
    assert found.protocol is not None
    assert found.protocol.contrasts == found.n_frames == 15
    assert torch.equal(found.samples, scan.problem.samples)


def test_the_truth_itself_scores_perfectly(scan: scans.BenchScan) -> None:
    assert scan.protocol is not None
    truth = scan.protocol
    made = {**truth.truth, "coils": truth.sensitivities, "compression": np.eye(3, dtype=np.complex64)}
    found = scores.Scorer(cases.parse("tiny", FIELDS), scan)(truth.images, made)
    assert set(found) == {"nrmse_T1", "nrmse_T2star", "nrmse_PD", "nrmse_coils", "psnr_db"}
    assert all(value < 1e-5 for name, value in found.items() if name != "psnr_db")
    assert found["psnr_db"] > 100
    # The gauge: PD up to one scale, coils up to a phase and their length; T1 up to nothing.
    turned = {**made, "PD": 3 * made["PD"], "T1": 1.1 * made["T1"], "coils": (2 * np.exp(0.7j) * made["coils"]).astype(np.complex64)}
    found = scores.Scorer(cases.parse("tiny", FIELDS), scan)(truth.images, turned)
    assert found["nrmse_PD"] < 1e-5
    assert found["nrmse_coils"] < 1e-5
    assert found["nrmse_T1"] == pytest.approx(0.1, abs=0.03)
    with pytest.raises(DataError, match="maps"):
        scores.Scorer(cases.parse("tiny", FIELDS), scan)(truth.images, {})


def test_the_worker_gives_maps_coils_and_the_images_asked_for(tmp_path: Path, scan: scans.BenchScan) -> None:
    assert scan.protocol is not None
    problems.save_problem(tmp_path / "problem.pt", scan.problem)
    job = {"kind": "solver", "method": "parameter_fit", "settings": {}, "coils": 2, "holdout": 0.05, "seed": 0, "device": "cpu"}
    (tmp_path / "job.json").write_text(json.dumps({**job, "times": scan.protocol.imaged.tolist()}), encoding="utf-8")
    assert worker.main(tmp_path) == 0
    assert "error" not in json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    with np.load(tmp_path / "found.npz") as found:
        assert found["coils"].shape == (2, 4, 16, 16)
        assert found["compression"].shape == (2, 3)
        assert found["T1"].shape == (4, 16, 16)
    assert np.load(tmp_path / "images.npy").shape == scan.protocol.images.shape


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"methods": ["time_average"]}, "time_average"),
        ({"methods": ["grasp"]}, "grasp"),
        ({"withhold": 0.1}, "withhold"),
        ({"methods": None, "rows": [{"method": "lrt", "frames": 3}]}, "frames"),
        ({"methods": None, "rows": [{"method": "lrt", "settings": {"strengths": 1}}]}, "strengths"),
    ],
)
def test_what_a_protocol_does_not_allow(change: dict[str, Any], words: str) -> None:
    fields = {key: value for key, value in {**FIELDS, **change}.items() if value is not None}
    with pytest.raises(SettingError, match=words):
        runner.rows_of(cases.parse("tiny", fields), None, 3)


def test_no_peer_makes_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "check_peers", lambda _: None)
    with pytest.raises(SettingError, match="peer"):
        runner.run_case(cases.parse("tiny", FIELDS), Path(), peers=("bart",))


def test_every_quantitative_method_is_there_by_default() -> None:
    fields = {key: value for key, value in FIELDS.items() if key != "methods"}
    titles = [row.title for row in runner.rows_of(cases.parse("tiny", fields), None, 3)]
    assert {"parameter_fit", "lrt", "summit", "lorein"} <= set(titles)


def test_command_writes_scores_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    case = tmp_path / "maps.yaml"
    case.write_text(json.dumps(FIELDS), encoding="utf-8")
    out = tmp_path / "out"
    assert cli.main(["bench", str(case), "--device", "cpu", "--json", str(out), "--pictures", str(out)]) == 0
    assert "T2* (%)" in capsys.readouterr().out
    written = json.loads((out / "maps.json").read_text(encoding="utf-8"))
    assert written["source"].startswith("head")
    (record,) = written["runs"]
    assert record["method"] == "parameter_fit"
    assert written["summary"][0]["nrmse_T1"]["mean"] == pytest.approx(100 * record["nrmse_T1"])
    assert 0 < record["nrmse_T1"] < 1
    with Image.open(out / "maps.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10


def test_the_cases_of_the_tree_are_the_reduced_protocols_of_the_paper() -> None:
    sizes = {"set1": ((16, 112, 112), 24, 12), "set2": ((14, 240, 240), 14, None)}
    for name in ("mpqmri_set1_r12", "mpqmri_set1_r27", "mpqmri_set2_r160", "mpqmri_set2_r480"):
        (reduced,), (full,) = cases.load([name]), cases.load([name], full=True)
        assert scans.quantitative(reduced)
        assert f"_r{reduced.scan['acceleration']}" in name
        matrix, coils, echoes = sizes[str(full.scan["protocol"])]
        assert (tuple(full.scan["matrix"]), full.scan["coils"], full.scan.get("echoes")) == (matrix, coils, echoes)
        assert dataclasses.replace(reduced, scan=full.scan).scan["acceleration"] == full.scan["acceleration"]
