"""The description of an OpenRecon container."""

from __future__ import annotations

import base64
import json
import re

import jsonschema
import pytest

from gadgets import chain, console, openrecon
from gadgets.cli import main
from gadgets.settings import ChainSettings, as_text, chain_settings
from recon_core.errors import SettingError
from recon_core.options import convert, field_types
from recon_core.solvers import registry

SCHEMA = json.loads(openrecon.schema())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def described(settings: dict[str, str] | None = None, regulatory: dict[str, str] | None = None, **container: str) -> dict:
    entry = chain.load_known("cardiac")
    return openrecon.describe(entry, entry.settings(settings), openrecon.container_of(container), regulatory)


@pytest.mark.parametrize("name", chain.known())
@pytest.mark.parametrize("solver", registry.names())
def test_every_chain_and_solver_gives_a_valid_description(name, solver):
    entry = chain.load_known(name)
    properties = {key: value for key, value in entry.properties.items() if not key.startswith("solver.")}
    settings = chain_settings(properties, {"solver": solver})
    made = json.loads(openrecon.as_json(openrecon.describe(entry, settings, openrecon.Container())))
    VALIDATOR.validate(made)
    assert made["parameters"][0]["default"] == entry.application


def test_the_schema_refuses_what_openrecon_does():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    good = described()

    def spoiled(change) -> bool:
        copy = json.loads(json.dumps(good))
        change(copy)
        return VALIDATOR.is_valid(copy)

    assert VALIDATOR.is_valid(good)
    spoilers = [
        lambda d: d["general"].update(version="1.0.0-rc1"),
        lambda d: d["general"]["regulatory_information"].pop("gtin"),
        lambda d: d["general"]["regulatory_information"].update(gtin=1),
        lambda d: d["general"].update(id="in r"),
        lambda d: d["reconstruction"].update(emitter="acquisition"),
        lambda d: d["reconstruction"].update(injector="raw"),
        lambda d: d["reconstruction"].update(port="9002"),
        lambda d: d["reconstruction"]["transfer_protocol"].update(version="1.4.0"),
        lambda d: d["reconstruction"].update(content_qualification_type="CLINICAL"),
        lambda d: d["parameters"].pop(0),
        lambda d: d["parameters"].append(d["parameters"][0]),
        lambda d: d["parameters"][1].update(id="readouts_per_frame"),
        lambda d: d["parameters"][1].update(default="2"),
        lambda d: d["parameters"][1].pop("maximum"),
        lambda d: d["parameters"][1].update(type="float"),
    ]
    assert [spoiled(change) for change in spoilers] == [False] * len(spoilers)


def console_of(description: dict, **changed: object) -> dict[str, str]:
    """What a console sends that shows these parameters: all of them, as texts."""
    values = {p["id"]: changed.get(p["id"], p["default"]) for p in description["parameters"]}
    name, properties = console.read(json.dumps({"parameters": {key: str(value) for key, value in values.items()}}))
    assert name == "cardiac"
    return properties


@pytest.mark.parametrize("overrides", [{}, {"solver": "grasp_pro", "coils": "5", "matrix": "64,48", "send_latents": "false"}])
def test_defaults_sent_back_are_the_chains_settings(overrides):
    entry = chain.load_known("cardiac")
    settings = entry.settings(overrides)
    sent = console_of(openrecon.describe(entry, settings, openrecon.Container()))
    back = chain_settings({"solver": settings.solver}, sent)
    for parameter in console.parameters(settings):
        value = (
            back.solver_settings[parameter.property[7:]] if parameter.property.startswith("solver.") else getattr(back, parameter.property)
        )
        assert as_text(value) == as_text(parameter.default), parameter.property


def others(parameter: dict) -> list[object]:
    """Values that are not the default, of which one is admitted at least."""
    kind, default = parameter["type"], parameter["default"]
    if kind == "boolean":
        return [not default]
    if kind == "choice":
        return [v["id"] for v in parameter["values"] if v["id"] != default]
    if kind in ("int", "double"):
        return [limit for limit in (parameter["minimum"], parameter["maximum"]) if limit != default]
    return [
        value for value in ("0.25", "0.125", "3", "48,32", "cuda:1", "tcp://localhost:8786", "a=1,2,3", "a=1,2,3,4") if value != default
    ]


@pytest.mark.parametrize("solver", registry.names())
def test_every_parameter_changed_alone_reaches_its_setting(solver):
    settings = chain_settings({"solver": solver})
    description = openrecon.describe(chain.load_known("cardiac"), settings, openrecon.Container())
    names = {p.id: p.property for p in console.parameters(settings)}
    declared = registry.settings_class(solver)
    for parameter in description["parameters"][1:]:
        name = names[parameter["id"]]
        owner = declared if name.startswith("solver.") else ChainSettings
        field = name.removeprefix("solver.")
        for value in others(parameter):
            try:
                back = chain_settings({"solver": solver}, console_of(description, **{parameter["id"]: value}))
            except SettingError as error:
                if parameter["type"] != "string":
                    raise AssertionError(f"{name} refuses {value!r}") from error
                continue
            got = back.solver_settings[field] if name.startswith("solver.") else getattr(back, field)
            assert got == convert(name, value, field_types(owner)[field])
            assert as_text(got) != as_text(parameter["default"])
            break
        else:
            raise AssertionError(f"no other value of {name} was admitted")


def test_needs_follow_the_settings():
    on_cpu = described({"device": "cpu", "image_type": "complex"})["reconstruction"]
    assert (on_cpu["can_use_gpu"], on_cpu["injector"], on_cpu["min_count_required_gpus"]) == (False, "compleximage", 0)
    on_gpu = described({"device": "cuda:0"}, gpu_memory_mb="4000")["reconstruction"]
    assert (on_gpu["can_use_gpu"], on_gpu["injector"]) == (True, "image")
    assert (on_gpu["min_count_required_gpus"], on_gpu["min_required_gpu_memory"]) == (1, 4000)
    either = described(memory_mb="999", cores="2", port="9012")["reconstruction"]
    assert (either["can_use_gpu"], either["min_count_required_gpus"], either["min_required_memory"]) == (True, 0, 999)
    assert (either["min_count_required_cpu_cores"], either["port"]) == (2, 9012)


def test_names_and_regulatory_texts():
    made = described(regulatory={"made_in": "DE", "udi": "(01)1"}, name="heart", vendor="clinic", version="2.3.4", qualification="SERVICE")
    assert made["general"]["name"] == {"en": "heart"}
    assert (made["general"]["id"], made["general"]["vendor"], made["general"]["version"]) == ("heart", "clinic", "2.3.4")
    texts = made["general"]["regulatory_information"]
    assert len(texts) == 11
    assert (texts["made_in"], texts["udi"], texts["gtin"], texts["production_identifier"]) == ("DE", "(01)1", "", "2.3.4")
    assert made["reconstruction"]["content_qualification_type"] == "SERVICE"
    VALIDATOR.validate(made)


@pytest.mark.parametrize(
    ("container", "regulatory", "words"),
    [
        ({"name": "my heart"}, {}, "name: 'my heart'"),
        ({"version": "1.0"}, {}, "version: '1.0'"),
        ({"cores": "0"}, {}, "cores: 0 is below 1"),
        ({"qualification": "CLINICAL"}, {}, "Choose one of: PRODUCT, SERVICE, RESEARCH"),
        ({}, {"made_inn": "DE"}, "Did you mean 'made_in'?"),
    ],
)
def test_what_openrecon_would_refuse_is_refused_here(container, regulatory, words):
    with pytest.raises(SettingError) as caught:
        described(None, regulatory, **container)
    assert words in str(caught.value)


def test_the_command_writes_json_base64_and_the_label(tmp_path, capsys):
    arguments = ["openrecon", "-c", "cardiac.xml", "-s", "coils=5", "--container", "name=heart", "--regulatory", "made_in=DE"]
    assert main(arguments) == 0
    plain = json.loads(capsys.readouterr().out)
    VALIDATOR.validate(plain)
    assert next(p["default"] for p in plain["parameters"] if p["id"] == "coils") == 5
    assert main([*arguments, "--format", "base64", "-o", str(tmp_path / "label.txt")]) == 0
    text = (tmp_path / "label.txt").read_text()
    assert json.loads(base64.b64decode(text)) == plain
    assert main([*arguments, "--format", "label"]) == 0
    line = re.fullmatch(r'LABEL "(\S+)"="(\S+)"\n', capsys.readouterr().out)
    assert line[1] == "com.siemens-healthineers.magneticresonance.openrecon.metadata:1.1.0"
    assert json.loads(base64.b64decode(line[2])) == plain
    assert main(["openrecon", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out) == SCHEMA


@pytest.mark.parametrize("name", ["solver", "field_map", "executor", "settings", "solver.weights_file"])
def test_what_no_console_can_send_is_not_described(name, capsys):
    assert main(["openrecon", "-s", f"{name}=inmr"]) == 1
    error = capsys.readouterr().err
    assert f"-s {name}: no console can send it" in error
    assert "-c" in error


def test_a_chain_that_no_console_can_ask_for_is_refused(capsys, tmp_path):
    path = tmp_path / "mine.xml"
    path.write_text(chain.load_known("cardiac").text, encoding="utf-8")
    assert main(["openrecon", "-c", str(path)]) == 1
    assert "unknown name" in capsys.readouterr().err
