"""Case files of the benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest

from gadgets.bench import cases
from gadgets.bench.cases import Region, load, parse
from gadgets.bench.runner import TIME_AVERAGE, methods_of
from recon_core.errors import SettingError

SCAN = {"kind": "simulate", "frames": 4}


@pytest.mark.parametrize("name", cases.known())
def test_cases_of_the_source_tree_can_be_read(name: str) -> None:
    for case in load([name]):
        assert case.title
        assert case.scan["kind"] in cases.KINDS
        assert methods_of(case, None, 2)[0] == TIME_AVERAGE
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
    assert methods_of(case, None, 2) == [TIME_AVERAGE, "grasp"]
    assert methods_of(case, ["gridding"], 2) == [TIME_AVERAGE, "gridding"]


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
        methods_of(case, ["grsp"], 2)
    wrong = parse("c", {"title": "t", "scan": SCAN, "settings": {"grasp": {"strengths": 1}}})
    with pytest.raises(SettingError, match="Did you mean 'strength'"):
        methods_of(wrong, None, 2)
