"""Declared settings: a frozen dataclass whose fields carry range, unit and meaning.

One declaration serves chain properties, YAML settings files, command-line overrides and documentation.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, TypeVar

from recon_core.errors import SettingError

T = TypeVar("T")
_TRUE = {"true", "1", "yes", "on"}
_FALSE = {"false", "0", "no", "off"}
_AUTO = "auto"


def option(
    default: Any,
    doc: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Iterable[str] | None = None,
    unit: str = "",
) -> Any:
    """Declare one setting as a dataclass field.

    Args:
        default: value when unset; a field of type ``X | None`` with default None reads ``auto``.
        doc: one sentence for the manual.
        low: smallest admitted value (inclusive).
        high: largest admitted value (inclusive).
        choices: admitted strings.
        unit: physical unit, empty for pure numbers.
    """
    metadata = {
        "doc": doc,
        "low": low,
        "high": high,
        "choices": tuple(choices) if choices is not None else None,
        "unit": unit,
    }
    return dataclasses.field(default=default, metadata=metadata)


def unknown_name(field: str, name: str, known: Iterable[str], cure: str = "") -> SettingError:
    """An error for a name that is not known, with the nearest one that is."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return SettingError(field, f"unknown name {name!r}", f"{hint}Known: {', '.join(names)}.{' ' + cure if cure else ''}")


def field_types(cls: type[Any]) -> dict[str, Any]:
    """Resolved annotation of every field of a settings dataclass."""
    return _hints(typing.cast("Hashable", cls))


@functools.cache
def _hints(cls: Hashable) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def build(cls: type[T], values: Mapping[str, Any], *, prefix: str = "") -> T:
    """Make a settings record from strings or YAML values.

    Args:
        cls: a dataclass whose fields were declared with :func:`option`.
        values: name to value; strings are converted to the field's type.
        prefix: put before field names in errors (``"solver settings."``, say).

    Raises:
        SettingError: unknown name, wrong type or out of range.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = field_types(cls)
    made: dict[str, Any] = {}
    for name, value in values.items():
        if name not in fields:
            raise unknown_name(f"{prefix}{name}", name, fields)
        converted = convert(f"{prefix}{name}", value, hints[name])
        check(f"{prefix}{name}", converted, fields[name].metadata)
        made[name] = converted
    return cls(**made)


def convert(field: str, value: Any, kind: Any) -> Any:
    """Convert a string or YAML value to the annotated type ``kind``."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        inner = [k for k in typing.get_args(kind) if k is not type(None)]
        if value is None or (isinstance(value, str) and value.strip().lower() == _AUTO):
            return None
        return convert(field, value, inner[0])
    if origin is tuple:
        items = list(value) if isinstance(value, (list, tuple)) else str(value).replace(",", " ").split()
        declared = typing.get_args(kind)
        kinds = [declared[0]] * len(items) if len(declared) == 2 and declared[1] is Ellipsis else list(declared)
        if len(kinds) != len(items):
            raise SettingError(field, f"{value!r} has {len(items)} entries", f"Give {len(kinds)}.")
        return tuple(convert(field, item, k) for item, k in zip(items, kinds, strict=True))
    try:
        return _scalar(value, kind)
    except (TypeError, ValueError) as error:
        raise SettingError(field, f"{value!r} is not {_article(kind)}", f"Give {_article(kind)}.") from error


def _article(kind: Any) -> str:
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}.get(kind, str(kind))


def _scalar(value: Any, kind: Any) -> Any:
    if kind is bool:
        if isinstance(value, bool):
            return value
        word = str(value).strip().lower()
        if word not in _TRUE | _FALSE:
            raise ValueError(word)
        return word in _TRUE
    if kind is int:
        if isinstance(value, bool):
            raise TypeError(value)
        number = float(value)
        if not number.is_integer():
            raise ValueError(value)
        return int(number)
    if kind is float:
        if isinstance(value, bool):
            raise TypeError(value)
        number = float(value)
        if not math.isfinite(number):
            raise ValueError(value)
        return number
    if kind is str:
        return str(value).strip()
    raise TypeError(f"settings cannot have type {kind}")


def check(field: str, value: Any, metadata: Mapping[str, Any]) -> None:
    """Check range and choices of a converted value.

    Raises:
        SettingError: out of range or not one of the choices.
    """
    if value is None:
        return
    for item in value if isinstance(value, tuple) else (value,):
        choices = metadata.get("choices")
        if choices is not None and item not in choices:
            near = difflib.get_close_matches(str(item), choices, n=1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise SettingError(field, f"unknown value {item!r}", f"{hint}Choose one of: {', '.join(choices)}.")
        low, high = metadata.get("low"), metadata.get("high")
        if low is not None and item < low:
            raise SettingError(field, f"{item} is below {low}", f"Give a value of at least {low}.")
        if high is not None and item > high:
            raise SettingError(field, f"{item} is above {high}", f"Give a value of at most {high}.")
