"""Chain properties, settings files and overrides."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gadgets import chain
from gadgets.settings import ENGINES, ChainSettings, as_text, chain_settings, option_fields, parse_assignments, read_settings_file
from recon_core.errors import SettingError


def refused(properties, overrides=None) -> SettingError:
    with pytest.raises(SettingError) as caught:
        chain_settings(properties, overrides)
    return caught.value


def test_texts_of_a_chain_become_typed_values():
    settings = chain_settings(
        {
            "solver": " cg_sense ",
            "readouts_per_frame": "6",
            "frame_stride": "3",
            "matrix": "64, 48",
            "device": "cuda:1",
            "holdout": "1e-1",
            "send_latents": "False",
            "dimension": "2",
            "solver.steps": "7",
            "solver.damping": "auto",
        }
    )
    assert (settings.solver, settings.readouts_per_frame, settings.frame_stride, settings.stride) == ("cg_sense", 6, 3, 3)
    assert (settings.matrix, settings.device, settings.holdout, settings.send_latents) == ((64, 48), "cuda:1", 0.1, False)
    assert settings.dimension == 2
    assert settings.solver_settings == {"steps": 7, "damping": None}


def test_nothing_given_gives_the_defaults_and_auto_is_none():
    settings = chain_settings({})
    assert settings == ChainSettings()
    assert settings.solver == "subspace_inr"
    assert settings.solver_settings == {}
    assert settings.frame_stride is None
    assert settings.stride == settings.readouts_per_frame == 2
    auto = chain_settings({"frame_stride": "auto", "matrix": "AUTO", "dimension": "auto", "device": "auto", "engine": "auto"})
    assert auto == settings


def test_override_beats_property_beats_file(tmp_path: Path):
    file = tmp_path / "fast.yaml"
    file.write_text("coils: 1\nseed: 11\nholdout: 0.2\nsolver: cg_sense\nsolver_settings:\n  steps: 3\n  damping: 0.5\n")
    settings = chain_settings(
        {"settings": str(file), "coils": "2", "seed": "12", "solver.steps": "4"},
        {"coils": "3", "solver.damping": "0.25"},
    )
    assert (settings.coils, settings.seed, settings.holdout) == (3, 12, 0.2)
    assert settings.solver == "cg_sense"
    assert settings.solver_settings == {"steps": 4, "damping": 0.25}


def test_a_file_that_an_override_names_beats_properties_and_no_other_override(tmp_path: Path):
    """As the manual's example: the chain sets readouts_per_frame and matrix itself."""
    file = tmp_path / "mine.yaml"
    file.write_text("readouts_per_frame: 4\nmatrix: [128, 96]\nseed: 5\nsolver_settings:\n  strength: 0.02\n")
    properties = chain.load_known("cardiac").properties
    settings = chain_settings(properties, {"settings": str(file), "seed": "6"})
    assert (settings.readouts_per_frame, settings.matrix, settings.seed) == (4, (128, 96), 6)
    assert settings.solver_settings == {"strength": 0.02}
    assert settings.coils == int(properties["coils"])


def test_settings_file_of_an_override_replaces_that_of_the_chain(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("coils: 1")
    (tmp_path / "b.yaml").write_text("seed: 2")
    settings = chain_settings({"settings": str(tmp_path / "a.yaml")}, {"settings": str(tmp_path / "b.yaml")})
    assert (settings.coils, settings.seed) == (8, 2)
    assert chain_settings({"settings": str(tmp_path / "a.yaml")}, {"settings": ""}).coils == 8


def test_relative_settings_file_counts_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "here.yaml").write_text("matrix: [32, 48]\nsend_latents: no\n")
    monkeypatch.chdir(tmp_path)
    settings = chain_settings({"settings": "here.yaml"})
    assert settings.matrix == (32, 48)
    assert settings.send_latents is False


@pytest.mark.parametrize(
    ("properties", "field", "problem", "cure"),
    [
        ({"readout_per_frame": "2"}, "readout_per_frame", "'readout_per_frame'", "'readouts_per_frame'"),
        ({"readouts_per_frame": "0"}, "readouts_per_frame", "0 is below 1", "at least 1"),
        ({"readouts_per_frame": "two"}, "readouts_per_frame", "'two'", "whole number"),
        ({"readouts_per_frame": "2.5"}, "readouts_per_frame", "'2.5'", "whole number"),
        ({"readouts_per_frame": "auto"}, "readouts_per_frame", "'auto'", "whole number"),
        ({"frame_stride": "-1"}, "frame_stride", "-1 is below 1", "at least 1"),
        ({"matrix": "64,1"}, "matrix", "1 is below 2", "at least 2"),
        ({"matrix": "1,2,3,4"}, "matrix", "1 is below 2", "at least 2"),
        ({"matrix": "8,8,8,8"}, "matrix", "4 numbers", "nx,ny,nz"),
        ({"matrix": ""}, "matrix", "0 numbers", "one number"),
        ({"matrix": "8,8", "dimension": "3"}, "matrix", "2 numbers for dimension 3", "3 of them"),
        ({"dimension": "4"}, "dimension", "4 is above 3", "at most 3"),
        ({"engine": "finuft"}, "engine", "'finuft'", "'finufft'"),
        ({"device": "gpu"}, "device", "'gpu'", "cuda:N"),
        ({"device": "cuda:"}, "device", "'cuda:'", "cuda:N"),
        ({"image_type": "phase"}, "image_type", "'phase'", "magnitude, float, complex"),
        ({"holdout": "0.9"}, "holdout", "0.9 is above 0.5", "at most 0.5"),
        ({"holdout": "nan"}, "holdout", "'nan'", "number"),
        ({"send_latents": "maybe"}, "send_latents", "'maybe'", "true or false"),
        ({"time_tick_ms": "0"}, "time_tick_ms", "0.0 is below", "at least"),
        ({"solver": "imnr"}, "solver", "'imnr'", "'inmr'"),
        ({"solver": "cg_sense", "solver.step": "1"}, "solver.step", "'step'", "'steps'"),
        ({"solver": "cg_sense", "solver.steps": "0"}, "solver.steps", "0 is below 1", "at least 1"),
        ({"solver": "gridding", "solver.steps": "1"}, "solver.steps", "steps", "'gridding'"),
        ({"solver_settings": "x"}, "solver_settings", "'solver_settings'", "solver.NAME"),
        ({"settings": "/no/such.yaml"}, "settings", "/no/such.yaml", "path of a YAML file"),
    ],
)
def test_bad_property_names_field_value_and_cure(properties, field, problem, cure):
    error = refused(properties)
    assert error.field == field
    assert problem in (error.problem if field != "solver.steps" else str(error))
    assert cure in error.cure + error.problem


@pytest.mark.parametrize(
    ("text", "field", "words"),
    [
        ("coil: 8", "coil", "'coils'"),
        ("coils: many", "coils", "'many'"),
        ("coils: {a: 1}", "coils", "mapping"),
        ("solver: cg_sense\nsolver_settings: {stepz: 3}", "solver.stepz", "'steps'"),
        ("solver: cg_sense\nsolver_settings: {steps: -1}", "solver.steps", "-1 is below 1"),
        ("solver: nonsense", "solver", "'nonsense'"),
        ("solver_settings: 3", "solver_settings", "not a mapping"),
        ("solver_settings: {steps: 1}\nsolver.steps: 2", "solver.steps", "given twice"),
        ("coils: 8\ncoils: 9", "", "line 2"),
        ("settings: other.yaml", "settings", "cannot name another"),
        ("- coils", "", "not a mapping"),
        ("1: 2", "", "not a name"),
        ("coils: [1", "", "not YAML"),
        ("coils: !!python/object/apply:os.getcwd []", "", "not YAML"),
    ],
)
def test_bad_settings_file_is_named(tmp_path: Path, text, field, words):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    error = refused({"settings": str(file)})
    assert error.field.startswith(str(file))
    assert error.field.endswith(field)
    assert words in f"{error.problem} {error.cure}"


def test_empty_settings_file_and_empty_mapping_set_nothing(tmp_path: Path):
    file = tmp_path / "empty.yaml"
    file.write_text("")
    assert read_settings_file(file) == {}
    file.write_text("solver_settings:\n")
    assert chain_settings({"settings": str(file)}).solver_settings == {}


def test_property_hides_a_bad_value_of_the_file_only_where_it_replaces_it(tmp_path: Path):
    file = tmp_path / "bad.yaml"
    file.write_text("coils: 0\n")
    assert chain_settings({"settings": str(file), "coils": "4"}).coils == 4
    assert refused({"settings": str(file), "seed": "4"}).field == f"{file}: coils"


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        chain_settings({}).coils = 3  # type: ignore[misc]


def test_every_property_is_declared_with_its_meaning():
    fields = option_fields()
    assert set(fields) == {f.name for f in dataclasses.fields(ChainSettings)} - {"solver_settings", "online_settings"}
    assert all(field.metadata["doc"].endswith(".") for field in fields.values())


valid = st.fixed_dictionaries(
    {},
    optional={
        "solver": st.sampled_from(["gridding", "cg_sense", "inmr"]),
        "readouts_per_frame": st.integers(1, 10**6),
        "frame_stride": st.none() | st.integers(1, 10**6),
        "matrix": st.none() | st.lists(st.integers(2, 4096), min_size=1, max_size=3).map(tuple),
        "coils": st.integers(1, 1000),
        "device": st.sampled_from(["auto", "cpu", "cuda", "cuda:0", "cuda:12"]),
        "engine": st.sampled_from(ENGINES),
        "seed": st.integers(0, 2**31 - 1),
        "holdout": st.floats(0, 0.5),
        "image_type": st.sampled_from(["magnitude", "float", "complex"]),
        "send_latents": st.booleans(),
        "discard_readouts": st.integers(0, 10**9),
        "time_tick_ms": st.floats(0.001, 1e6),
    },
)


@given(valid)
def test_values_survive_the_way_through_texts(values):
    settings = chain_settings({name: as_text(value) for name, value in values.items()})
    assert {name: getattr(settings, name) for name in values} == values
    assert settings == ChainSettings(**values)


@given(st.sampled_from(sorted(option_fields())), st.text(max_size=20))
def test_any_text_is_a_valid_value_or_an_error_that_names_the_property(name, text):
    if name == "settings":
        text = ""
    settings = error = None
    try:
        settings = chain_settings({name: text})
    except SettingError as caught:
        error = caught
    if settings is None:
        assert error.field == name
        assert error.cure
    else:
        assert chain_settings({name: as_text(getattr(settings, name))}) == settings


def test_assignments_of_the_command_line():
    assert parse_assignments(["a=1", " b = x=y ", "a=2", "c="]) == {"a": "2", "b": "x=y", "c": ""}
    for text in ("coils", "=3", ""):
        with pytest.raises(SettingError, match="is not NAME=VALUE") as caught:
            parse_assignments([text])
        assert repr(text) in str(caught.value)


def test_settings_of_the_provisional_model(tmp_path):
    file = tmp_path / "online.yaml"
    file.write_text("mode: both\nonline_settings: {rank: 6, window: 2}\n")
    settings = chain_settings({"settings": str(file), "online.rank": "5"})
    assert (settings.mode, settings.online_settings) == ("both", {"rank": 5, "window": 2.0})
    for bad, words in (({"online.rnk": "1"}, "'rank'"), ({"online.rank": "0"}, "below 1"), ({"mode": "live"}, "'live'")):
        with pytest.raises(SettingError, match=words):
            chain_settings(bad)


def test_signal_models_are_those_of_the_solvers():
    from gadgets.settings import SIGNAL_MODELS
    from recon_core.signal_models import MODELS

    assert tuple(MODELS) == SIGNAL_MODELS
