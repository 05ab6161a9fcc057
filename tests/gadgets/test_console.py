"""Properties as an MRD console shows and sends them."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from gadgets import chain, console
from gadgets.settings import ChainSettings, chain_settings, option_fields
from recon_core.errors import DataError, ReconError, SettingError
from recon_core.solvers import registry


def every_name() -> list[str]:
    settings = {f"solver.{field.name}" for solver in registry.names() for field in dataclasses.fields(registry.settings_class(solver))}
    return [*option_fields(), *sorted(settings)]


def shown(settings: ChainSettings | None = None) -> dict[str, console.Parameter]:
    return {p.property: p for p in console.parameters(ChainSettings() if settings is None else settings)}


def sent(values: dict[str, object]) -> str:
    return json.dumps({"parameters": values})


def test_ids_are_letters_and_digits_and_lead_back():
    names = every_name()
    ids = [console.parameter_id(name) for name in names]
    assert len(set(ids)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9]+", one) for one in ids)
    for name, one in zip(names, ids, strict=True):
        if name not in console.SERVERS_OWN:
            assert console.read(sent({one: "1"})) == (None, {name: "1"})
            assert console.read(sent({name: "1"})) == (None, {name: "1"})


@pytest.mark.parametrize("solver", registry.names())
def test_all_properties_are_shown_but_what_decides_on_others_or_names_files(solver):
    declared = {f"solver.{field.name}" for field in dataclasses.fields(registry.settings_class(solver))}
    assert set(shown(ChainSettings(solver=solver))) == (set(option_fields()) | declared) - {"solver", *console.SERVERS_OWN}


def test_kinds_limits_labels():
    parameters = shown(chain_settings({"coils": "12", "solver": "inmr", "solver.latent": "3", "matrix": "96,64"}))
    coils = parameters["coils"]
    assert (coils.kind, coils.default, coils.minimum, coils.maximum, coils.label) == ("int", 12, 1, 2**31 - 1, "Coils")
    assert (parameters["seed"].minimum, parameters["seed"].maximum) == (0, 2**31 - 1)
    latent = parameters["solver.latent"]
    assert (latent.id, latent.kind, latent.default, latent.minimum, latent.maximum) == ("solverLatent", "int", 3, 1, 64)
    assert (parameters["send_latents"].kind, parameters["send_latents"].default) == ("boolean", True)
    assert parameters["image_type"].values == ("magnitude", "float", "complex")
    assert parameters["dimension"].values == ("auto", "2", "3")
    assert parameters["whitened"].values == ("auto", "true", "false")
    assert (parameters["matrix"].kind, parameters["matrix"].default) == ("string", "96,64")
    assert (parameters["frame_stride"].kind, parameters["frame_stride"].default) == ("string", "auto")
    tick = parameters["time_tick_ms"]
    assert tick.label == "Time tick ms (ms)"
    assert tick.information.endswith("In ms.")
    for parameter in parameters.values():
        assert parameter.label[0].isupper()
        assert parameter.information
        assert "`" not in parameter.information


def test_a_number_is_a_double_only_where_a_console_can_hold_it():
    """Doubles of a console are multiples of 0.1; others travel as text, and keep their digits."""
    parameters = shown(chain_settings({"solver": "inmr"}))
    noise = parameters["solver.latent_noise"]
    assert (noise.kind, noise.default, noise.minimum, noise.maximum) == ("double", 0.3, 0.0, 10.0)
    assert (parameters["holdout"].kind, parameters["holdout"].default) == ("string", "0.05")
    assert (parameters["solver.learning_rate"].kind, parameters["solver.learning_rate"].default) == ("string", "0.005")
    assert shown(chain_settings({"solver": "inmr", "solver.latent_noise": "0.25"}))["solver.latent_noise"].kind == "string"


def test_texts_and_json_values_mean_the_same():
    text = {"readoutsPerFrame": "8", "sendLatents": "False", "holdout": "0.1", "matrix": "64", "imageType": "complex"}
    plain = {"readoutsPerFrame": 8, "sendLatents": False, "holdout": 0.1, "matrix": 64, "imageType": "complex"}
    made = [chain.load_known("cardiac").settings(console.read(sent(values))[1]) for values in (text, plain)]
    assert made[0] == made[1]
    assert (made[0].readouts_per_frame, made[0].send_latents, made[0].holdout, made[0].matrix) == (8, False, 0.1, (64,))


def test_an_empty_text_is_a_parameter_not_set():
    assert console.read(sent({"matrix": "", "config": " ", "coils": "4"})) == (None, {"coils": "4"})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"coils": "0"}, "coils: 0 is below 1"),
        ({"coils": "many"}, "coils: 'many' is not a whole number"),
        ({"sendLatents": "perhaps"}, "send_latents: 'perhaps' is not true or false"),
        ({"imageType": "phase"}, "image_type: unknown value 'phase'"),
        ({"readoutsPerFrames": "4"}, "Did you mean 'readouts_per_frame'?"),
        ({"solverLatents": "4"}, "unknown name 'solverLatents'"),
        ({"solverLatent": "4"}, "These are the settings of solver 'subspace_inr'"),
        ({"settings": "/etc/passwd"}, "a console cannot choose files of the server"),
        ({"fieldMap": "/etc/passwd"}, "a console cannot choose files of the server"),
        ({"solverWeightsFile": "/etc/passwd"}, "a console cannot choose files of the server"),
        ({"executor": "tcp://elsewhere:8786"}, "a console cannot choose machines of the server's network"),
        ({"coils": "4", "matrix": 64, "readoutsPerFrame": 2, "readouts_per_frame": 4}, "sets 'readouts_per_frame', which is given twice"),
    ],
)
def test_a_wrong_parameter_is_named(values, words):
    with pytest.raises(SettingError) as caught:
        chain.load_known("cardiac").settings(console.read(sent(values))[1])
    assert words in str(caught.value)


def test_what_is_no_console_json_is_told():
    for text in ("{", "[]", '{"parameters": 1}', '{"parameters": {"coils": null}}'):
        with pytest.raises(DataError, match="parameters"):
            console.read(text)
    assert issubclass(DataError, ReconError)
