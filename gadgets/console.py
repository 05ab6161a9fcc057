"""Chain properties as parameters of an MRD console (FIRE, OpenRecon): ids, types, limits and labels, and a console's values back.

A console shows what :func:`parameters` declares and sends, behind the header, a TEXT ``{"parameters": {ID: VALUE, …}}`` in which values
are often texts. :func:`read` turns that into a chain's name and properties; conversion and limits are those of every other property.
Not verified against a scanner: OpenRecon's rules for ids (letters and digits) and doubles (multiples of 0.1) are those that published
OpenRecon packages are checked by.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from gadgets.settings import SOLVER_PREFIX, ChainSettings, as_text, option_fields
from recon_core.errors import DataError, SettingError
from recon_core.options import field_types

SERVERS_OWN = {
    "settings": "files of the server",
    "field_map": "files of the server",
    "executor": "machines of the server's network",
    "solver.weights_file": "files of the server",
}
"""Properties that a console may not set, and what it would choose with them."""
NOT_SHOWN = ("solver", *SERVERS_OWN)
"""Properties that a console is not shown: the solver decides which others there are."""

_CHAIN_KEYS = ("config", "customconfig")
_STEP = 0.1
_INT32 = 2**31
_MOST_CHOICES = 16
_CURE = 'Send {"parameters": {"config": "NAME", "PROPERTY": "VALUE", …}}.'


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One property as a console shows it.

    Attributes:
        id: letters and digits only.
        property: name of the chain property.
        kind: ``boolean``, ``choice``, ``int``, ``double`` or ``string``.
        label: a few words.
        information: what it does, with its unit.
        default: the chain's value, of the kind.
        values: what may be chosen (``choice``).
        minimum: smallest value (``int`` and ``double``).
        maximum: largest value (``int`` and ``double``).
    """

    id: str
    property: str
    kind: str
    label: str
    information: str
    default: bool | int | float | str
    values: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None


def parameter_id(name: str) -> str:
    """The id of a property: ``readouts_per_frame`` is ``readoutsPerFrame``, ``solver.latent_size`` is ``solverLatentSize``."""
    first, *others = re.split(r"[._]", name)
    return first + "".join(part[:1].upper() + part[1:] for part in others)


def parameters(settings: ChainSettings) -> list[Parameter]:
    """What a console shows of a chain: its properties, then the settings of its solver, all with the chain's own values."""
    import recon_core.solvers.registry as registry

    hints = field_types(ChainSettings)
    shown = [
        _parameter(name, field, hints[name], getattr(settings, name)) for name, field in option_fields().items() if name not in NOT_SHOWN
    ]
    declared = registry.settings_class(settings.solver)
    hints = field_types(declared)
    for field in dataclasses.fields(declared):
        if SOLVER_PREFIX + field.name in NOT_SHOWN:
            continue
        value = settings.solver_settings.get(field.name, field.default)
        shown.append(_parameter(SOLVER_PREFIX + field.name, field, hints[field.name], value))
    return shown


def _parameter(name: str, field: dataclasses.Field[Any], hint: Any, value: Any) -> Parameter:
    unit = field.metadata.get("unit", "")
    information = field.metadata.get("doc", "").replace("`", "") + (f" In {unit}." if unit else "")
    words = name.removeprefix(SOLVER_PREFIX).replace("_", " ")
    label = words[:1].upper() + words[1:] + (f" ({unit})" if unit else "")
    return Parameter(parameter_id(name), name, label=label, information=information, **_typed(hint, field.metadata, value))


def _typed(hint: Any, metadata: Mapping[str, Any], value: Any) -> dict[str, Any]:
    """Kind, default and limits; what no kind of a console can hold exactly is a text, which the server checks."""
    optional = typing.get_origin(hint) in (typing.Union, types.UnionType)
    inner = next(kind for kind in typing.get_args(hint) if kind is not type(None)) if optional else hint
    low, high = metadata.get("low"), metadata.get("high")
    values: tuple[str, ...] = ()
    if metadata.get("choices"):
        values = tuple(metadata["choices"])
    elif optional and inner is bool:
        values = ("true", "false")
    elif optional and inner is int and low is not None and high is not None and high - low < _MOST_CHOICES:
        values = tuple(str(number) for number in range(int(low), int(high) + 1))
    if values:
        if optional and "auto" not in values:
            values = ("auto", *values)
        return {"kind": "choice", "default": as_text(value), "values": values}
    if hint is bool:
        return {"kind": "boolean", "default": value}
    if hint is int:
        minimum = -_INT32 if low is None else int(low)
        maximum = _INT32 - 1 if high is None else int(high)
        return {"kind": "int", "default": value, "minimum": minimum, "maximum": maximum}
    if hint is float and all(limit is not None and _on_step(limit) for limit in (low, high, value)):
        return {"kind": "double", "default": value, "minimum": low, "maximum": high}
    return {"kind": "string", "default": as_text(value)}


def _on_step(value: float) -> bool:
    return abs(value / _STEP - round(value / _STEP)) < 1e-9


def read(text: str) -> tuple[str | None, dict[str, str]]:
    """Chain name and properties in the JSON that a console sends.

    ``parameters.customconfig``, else ``parameters.config``, names the chain; every other parameter is a property of it, under its id or
    its own name. A text left empty is a parameter not set.

    Raises:
        DataError: not such JSON.
        SettingError: a parameter twice, or one that a console may not set.
    """
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError("parameters", f"not JSON ({error})", _CURE) from error
    given = content.get("parameters") if isinstance(content, dict) else None
    if not isinstance(given, dict):
        raise DataError("parameters", "no object `parameters`", _CURE)
    name: str | None = None
    found: dict[str, str] = {}
    for key, value in given.items():
        if isinstance(value, (dict, list)) or value is None:
            raise DataError(f"parameters.{key}", f"{json.dumps(value)} is not a single value", _CURE)
        words = str(value).strip()
        if not words:
            continue
        if key in _CHAIN_KEYS:
            name = words if name is None or key == "customconfig" else name
            continue
        property_name = _property(key)
        if property_name in SERVERS_OWN:
            raise SettingError(f"parameters.{key}", f"a console cannot choose {SERVERS_OWN[property_name]}", "Leave it out.")
        if property_name in found:
            raise SettingError(f"parameters.{key}", f"sets {property_name!r}, which is given twice", "Send one of the two.")
        found[property_name] = words
    return name, found


def _property(key: str) -> str:
    """The property that a console means; a name that is none stays, for the chain to refuse it with the nearest known one."""
    if key.isidentifier() and key.islower():
        return key
    return next((name for name in _names() if parameter_id(name) == key), key)


def _names() -> Iterator[str]:
    """Every chain property, then the settings of every solver."""
    yield from option_fields()
    import recon_core.solvers.registry as registry

    for solver in registry.names():
        yield from (SOLVER_PREFIX + field.name for field in dataclasses.fields(registry.settings_class(solver)))
