"""Case files of the benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest

from gadgets.bench import cases
from gadgets.bench.cases import Region, load, parse
from gadgets.bench.runner import TIME_AVERAGE, rows_of
from gadgets.bench.scans import quantitative
from recon_core.errors import SettingError

SCAN = {"kind": "simulate", "frames": 4}


@pytest.mark.parametrize("name", cases.known())
def test_cases_of_the_source_tree_can_be_read(name: str) -> None:
    for case in load([name]):
        assert case.title
        assert case.scan["kind"] in cases.KINDS
        first = rows_of(case, None, 2)[0].method
        assert first == (case.rows[0].method if quantitative(case) and case.rows else TIME_AVERAGE)
        # A case without any truth must withhold readouts, or nothing judges it.
        assert case.withhold > 0 or case.scan["kind"] != "file"


def test_the_standard_set() -> None:
    names = [case.name for case in load(["standard"])]
    assert names[0] == "cardiac_standard"
    assert {"rat_t2", "lung"} <= set(names)
    assert load(["rat_t2", "standard", "rat_t2"])[0].name == "rat_t2"
    assert len(load(["rat_t2", "standard"])) == len(names)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "title: Mine\nscan: {kind: simulate, frames: 9}\nseeds: [3, 4]\nwithhold: 0.1\nmethods: [grasp]\n"
        "settings: {grasp: {strength: 0.02}}\nbart: {iterations: 7, strengths: [0.1, 0.2]}\nregions: {a: {y: [1, 2], x: [3, 5]}}\n",
        encoding="utf-8",
    )
    (case,) = load([str(path)])
    assert (case.name, case.title, case.seeds, case.withhold) == ("mine", "Mine", (3, 4), 0.1)
    assert case.scan == {"kind": "simulate", "frames": 9}
    assert case.bart == cases.BartSettings(iterations=7, strengths=(0.1, 0.2))
    assert case.regions == {"a": Region(y=(1, 2), x=(3, 5))}
    assert [row.title for row in rows_of(case, None, 2)] == [TIME_AVERAGE, "grasp"]
    assert [row.title for row in rows_of(case, ["gridding"], 2)] == [TIME_AVERAGE, "gridding"]


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"scan": SCAN}, "c.title", "missing"),
        ({"title": "t"}, "c.scan", "no mapping"),
        ({"title": "t", "scan": {"kind": "simulated"}}, "c.scan.kind", "Did you mean 'simulate'"),
        ({"title": "t", "scan": SCAN, "seeds": []}, "c.seeds", "whole numbers"),
        ({"title": "t", "scan": SCAN, "seeds": [0.5]}, "c.seeds", "whole numbers"),
        ({"title": "t", "scan": SCAN, "seed": [1]}, "c.seed", "unknown name"),
        ({"title": "t", "scan": SCAN, "withhold": 0.9}, "c.withhold", "above"),
        ({"title": "t", "scan": SCAN, "bart": {"iteration": 3}}, "c.bart.iteration", "Did you mean 'iterations'"),
        ({"title": "t", "scan": SCAN, "regions": {"r": {"y": [1], "x": [1, 2]}}}, "c.regions.r.y", "2"),
        ({"title": "t", "scan": SCAN, "methods": "grasp"}, "c.methods", "no list"),
        ({"title": "t", "scan": SCAN, "methods": ["grasp"], "rows": []}, "c.methods", "beside rows"),
        ({"title": "t", "scan": SCAN, "rows": [{"name": "x"}]}, "c.rows[0].method", "missing"),
        ({"title": "t", "scan": SCAN, "rows": [{"method": "grasp", "setting": {}}]}, "c.rows[0].setting", "Did you mean 'settings'"),
        ({"title": "t", "scan": SCAN, "rows": [{"method": "grasp", "paper": {"psnr": 3}}]}, "c.rows[0].paper", "Did you mean 'psnr_db'"),
        ({"title": "t", "scan": SCAN, "rows": [{"method": "grasp"}, {"method": "grasp"}]}, "c.rows", "'grasp' twice"),
    ],
)
def test_faults_name_the_key(fields: dict, field: str, words: str) -> None:
    with pytest.raises(SettingError, match=words) as error:
        parse("c", fields)
    assert error.value.field == field


def test_faults_of_files(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="Did you mean 'standard'"):
        load(["standards"])
    broken = tmp_path / "broken.yaml"
    broken.write_text("title: [", encoding="utf-8")
    with pytest.raises(SettingError, match="not YAML"):
        load([str(broken)])
    mixed = tmp_path / "mixed.yaml"
    mixed.write_text("cases: [standard]\ntitle: x\n", encoding="utf-8")
    with pytest.raises(SettingError, match="'cases' only"):
        load([str(mixed)])


def test_unknown_methods_and_settings() -> None:
    case = parse("c", {"title": "t", "scan": SCAN})
    with pytest.raises(SettingError, match="Did you mean 'grasp'"):
        rows_of(case, ["grsp"], 2)
    wrong = parse("c", {"title": "t", "scan": SCAN, "settings": {"grasp": {"strengths": 1}}})
    with pytest.raises(SettingError, match="Did you mean 'strength'"):
        rows_of(wrong, None, 2)


ROWS = {
    "title": "t",
    "scan": {**SCAN, "matrix": [20, 20]},
    "settings": {"inmr": {"steps": 5, "width": 8}},
    "rows": [
        {"method": "inmr", "paper": {"psnr_db": 33.93}},
        {"method": "inmr", "name": "λ 0", "settings": {"smoothness": 0}},
        {"method": "grasp", "scan": {"readouts_per_frame": 5}, "frames": 2},
    ],
    "full": {
        "scan": {"matrix": [64, 64]},
        "settings": {"inmr": {"steps": 500}, "grasp": {"steps": 9}},
        "coils": 12,
        "rows": [{}, {}, {"scan": {"frames": 9}}],
    },
}


def test_rows_are_variants_of_methods_and_scans() -> None:
    case = parse("c", ROWS)
    rows = rows_of(case, None, 2)
    assert [row.title for row in rows] == ["time_average", "inmr", "λ 0", "time_average (5)", "grasp"]
    assert rows[2].settings == {"smoothness": 0}
    assert rows[1].paper == {"psnr_db": 33.93}
    assert (rows[3].scan, rows[4].scan, rows[4].frames) == ({"readouts_per_frame": 5}, {"readouts_per_frame": 5}, 2)
    # A method stands for all its rows, a name for its own.
    assert [row.title for row in rows_of(case, ["inmr"], 2)] == ["time_average", "inmr", "λ 0"]
    assert [row.title for row in rows_of(case, ["λ 0", "gridding"], 2)] == ["time_average", "λ 0", "gridding"]
    with pytest.raises(SettingError, match="Did you mean 'smoothness'"):
        rows_of(parse("c", {**ROWS, "rows": [{"method": "inmr", "settings": {"smoothnes": 0}}]}), None, 2)
    with pytest.raises(SettingError, match="Judge such a row by a truth"):
        rows_of(parse("c", {**ROWS, "withhold": 0.1}), None, 2)


def test_full_size_and_what_was_cut_for_the_reduced_one() -> None:
    reduced, full = parse("c", ROWS), parse("c", ROWS, full=True)
    assert reduced.scan["matrix"] == [20, 20]
    assert full.scan == {"kind": "simulate", "frames": 4, "matrix": [64, 64]}
    assert full.settings == {"inmr": {"steps": 500, "width": 8}, "grasp": {"steps": 9}}
    assert (reduced.name, full.name, full.coils, full.cut) == ("c", "c_full", 12, ())
    assert reduced.cut == (
        "scan.matrix [20, 20] (full size: [64, 64])",
        "settings.inmr.steps 5 (full size: 500)",
        "settings.grasp.steps default (full size: 9)",
        "rows.scan.frames default (full size: 9)",
        "coils default (full size: 12)",
    )
    assert rows_of(full, ["grasp"], 2)[1].scan == {"readouts_per_frame": 5, "frames": 9}
    with pytest.raises(SettingError, match="what is larger in full size"):
        parse("c", {"title": "t", "scan": SCAN}, full=True)
