"""The description that an OpenRecon container carries in its label, made from a chain's own settings.

Facts about its form: the published OpenRecon packages and what their checks admit; :data:`SCHEMA` writes them down. Not verified
against a scanner.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from collections.abc import Mapping
from importlib import metadata, resources
from typing import Any

from gadgets.chain import Chain
from gadgets.console import Parameter, parameters
from gadgets.settings import ChainSettings
from recon_core.errors import SettingError
from recon_core.options import build, option, unknown_name

LABEL = "com.siemens-healthineers.magneticresonance.openrecon.metadata:1.1.0"
"""Key of the image label (VA60, VA61); its value is the base64 of the JSON."""

SCHEMA = "openrecon.schema.json"
REGULATORY = (
    *("device_trade_name", "production_identifier", "manufacturer_address", "made_in", "manufacture_date", "material_number"),
    *("gtin", "udi", "safety_advices", "special_operating_instructions", "additional_relevant_information"),
)
"""Texts of ``regulatory_information``; all must be there, empty or not."""

_VERSION = re.compile(r"\d+\.\d+\.\d+")


@dataclasses.dataclass(frozen=True)
class Container:
    """What the chain does not know of the container it runs in."""

    name: str = option("", "name and id, letters and digits; empty: inr and the chain's application")
    vendor: str = option("gadgetroninr", "who built the container")
    version: str = option("", "three numbers, as 1.0.0; empty: the package's")
    information: str = option("", "one sentence for the console; empty: solver and application")
    port: int = option(9002, "port that the server in the container listens at", low=1, high=65535)
    memory_mb: int = option(8192, "memory needed at least", low=1, unit="MB")
    cores: int = option(4, "processor cores needed at least", low=1)
    gpu_memory_mb: int = option(8192, "GPU memory needed at least, where a GPU is needed", low=1, unit="MB")
    qualification: str = option("RESEARCH", "what its images may be used for", choices=("PRODUCT", "SERVICE", "RESEARCH"))


def describe(chain: Chain, settings: ChainSettings, container: Container, regulatory: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The description of a container that runs one chain.

    Args:
        chain: the chain; the console's only ``config``.
        settings: its settings, overrides included; they are the parameters' defaults.
        container: the container.
        regulatory: texts of ``regulatory_information``; what is not given is empty, but for name and version.

    Raises:
        SettingError: a name or version that OpenRecon does not admit, an unknown regulatory text.
    """
    name = container.name or "inr" + re.sub(r"[^A-Za-z0-9]", "", chain.application)
    if re.fullmatch(r"[A-Za-z0-9]+", name) is None:
        raise SettingError("name", f"{name!r}", "Use letters and digits only.")
    version = container.version or metadata.version("gadgetron-inr")
    if _VERSION.fullmatch(version) is None:
        raise SettingError("version", f"{version!r}", "Give three numbers, as 1.0.0.")
    for key in regulatory or {}:
        if key not in REGULATORY:
            raise unknown_name("regulatory", key, REGULATORY)
    texts = dict.fromkeys(REGULATORY, "") | {"device_trade_name": name, "production_identifier": version} | dict(regulatory or {})
    information = container.information or f"{chain.application}: reconstruction by {settings.solver} without training data."
    return {
        "general": {
            "name": {"en": name},
            "version": version,
            "vendor": container.vendor,
            "information": {"en": information},
            "id": name,
            "regulatory_information": texts,
        },
        "reconstruction": _reconstruction(settings, container),
        "parameters": [_config(chain.application), *(_as_json(parameter) for parameter in parameters(settings))],
    }


def _reconstruction(settings: ChainSettings, container: Container) -> dict[str, Any]:
    needs_gpu = settings.device.startswith("cuda")
    return {
        "transfer_protocol": {"protocol": "ISMRMRD", "version": "1.4.1"},
        "port": container.port,
        "emitter": "raw",
        "injector": "compleximage" if settings.image_type == "complex" else "image",
        "can_process_adjustment_data": False,
        "can_use_gpu": settings.device != "cpu",
        "min_count_required_gpus": int(needs_gpu),
        "min_required_gpu_memory": container.gpu_memory_mb if needs_gpu else 0,
        "min_required_memory": container.memory_mb,
        "min_count_required_cpu_cores": container.cores,
        "content_qualification_type": container.qualification,
    }


def _config(application: str) -> dict[str, Any]:
    return {
        "id": "config",
        "label": {"en": "Chain"},
        "information": {"en": "Which chain the server runs."},
        "type": "choice",
        "values": [{"id": application, "name": {"en": application}}],
        "default": application,
    }


def _as_json(parameter: Parameter) -> dict[str, Any]:
    made: dict[str, Any] = {
        "id": parameter.id,
        "label": {"en": parameter.label},
        "information": {"en": parameter.information},
        "type": parameter.kind,
    }
    if parameter.kind == "choice":
        made["values"] = [{"id": value, "name": {"en": value}} for value in parameter.values]
    if parameter.minimum is not None:
        made["minimum"], made["maximum"] = parameter.minimum, parameter.maximum
    return {**made, "default": parameter.default}


def container_of(values: Mapping[str, str]) -> Container:
    """The container from texts.

    Raises:
        SettingError: unknown, of the wrong type or out of range.
    """
    return build(Container, values)


def as_json(description: Mapping[str, Any]) -> str:
    """The JSON, indented."""
    return json.dumps(description, indent=2, ensure_ascii=False) + "\n"


def as_base64(description: Mapping[str, Any]) -> str:
    """The label's value."""
    return base64.b64encode(json.dumps(description, ensure_ascii=False).encode()).decode("ascii")


def schema() -> str:
    """The JSON schema of a description."""
    return (resources.files("gadgets") / SCHEMA).read_text(encoding="utf-8")
