"""Declared settings: conversion from strings and YAML values, ranges, choices, and what a wrong one is told."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recon_core.errors import SettingError
from recon_core.options import build, check, convert, field_types, option, unknown_name


@dataclasses.dataclass(frozen=True)
class Settings:
    steps: int = option(12, "iterations", low=1, high=500)
    damping: float | None = option(None, "weight", low=0.0)
    engine: str = option("auto", "engine", choices=("auto", "finufft", "nudft"))
    annealed: bool = option(True, "whether")
    matrix: tuple[int, int] = option((64, 64), "pixels", low=2)
    decades: tuple[float, ...] = option((1.0, 0.1), "values", low=0.0)


@given(st.integers(-(2**53), 2**53))
def test_integers_from_text_and_numbers(value: int) -> None:
    for given_as in (value, str(value), f" {value} ", float(value)):
        made = convert("n", given_as, int)
        assert made == value
        assert type(made) is int


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_from_text_and_numbers(value: float) -> None:
    assert convert("x", repr(value), float) == value
    assert convert("x", value, float) == value


@given(st.floats(allow_nan=False, allow_infinity=False).filter(lambda v: not v.is_integer()))
def test_fractions_are_no_integers(value: float) -> None:
    with pytest.raises(SettingError, match="whole number"):
        convert("n", repr(value), int)


@given(st.sampled_from(["nan", "inf", "-inf", "Infinity", "NaN"]))
def test_numbers_are_finite(word: str) -> None:
    with pytest.raises(SettingError, match="n: "):
        convert("n", word, float)


@given(st.text().filter(lambda t: t.strip().lower() not in {"true", "1", "yes", "on", "false", "0", "no", "off"}))
def test_words_that_are_no_truth_values(word: str) -> None:
    with pytest.raises(SettingError, match="true or false"):
        convert("flag", word, bool)


@given(st.sampled_from(["True", "YES", "on", " 1 ", True]), st.sampled_from(["False", "no", "OFF", "0", False]))
def test_truth_values(yes: object, no: object) -> None:
    assert convert("flag", yes, bool) is True
    assert convert("flag", no, bool) is False


@given(st.text())
def test_texts_lose_only_the_blanks_around_them(text: str) -> None:
    assert convert("name", text, str) == text.strip()


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=6))
def test_tuples_of_any_length(values: list[int]) -> None:
    wanted = tuple(values)
    assert convert("t", values, tuple[int, ...]) == wanted
    assert convert("t", ", ".join(map(str, values)), tuple[int, ...]) == wanted
    assert convert("t", " ".join(map(str, values)), tuple[int, ...]) == wanted


def test_tuples_of_declared_length() -> None:
    assert convert("matrix", "128x96".replace("x", " "), tuple[int, int]) == (128, 96)
    with pytest.raises(SettingError, match="Give 2"):
        convert("matrix", "128 96 4", tuple[int, int])
    with pytest.raises(SettingError, match="whole number"):
        convert("matrix", "128 wide", tuple[int, int])


@pytest.mark.parametrize("value", [None, "auto", " AUTO "])
def test_auto_is_none_where_none_is_allowed(value: object) -> None:
    assert convert("damping", value, float | None) is None
    assert build(Settings, {"damping": value}).damping is None


@pytest.mark.parametrize("kind", [int, float])
def test_truth_values_are_no_numbers(kind: type) -> None:
    with pytest.raises(SettingError, match="number"):
        convert("steps", True, kind)


def test_a_number_with_words_is_refused_with_field_and_value() -> None:
    with pytest.raises(SettingError) as error:
        build(Settings, {"steps": "twelve"}, prefix="solver.")
    assert error.value.field == "solver.steps"
    assert "'twelve'" in error.value.problem
    assert error.value.cure == "Give a whole number."


@given(st.integers(-1000, 1000))
def test_range_is_inclusive(value: int) -> None:
    if 1 <= value <= 500:
        assert build(Settings, {"steps": value}).steps == value
    else:
        with pytest.raises(SettingError, match="at least 1" if value < 1 else "at most 500"):
            build(Settings, {"steps": value})


def test_range_holds_for_every_entry_of_a_tuple() -> None:
    with pytest.raises(SettingError, match="1 is below 2"):
        build(Settings, {"matrix": "64 1"})
    assert build(Settings, {"decades": [3, "0.5", 0]}).decades == (3.0, 0.5, 0.0)


def test_choices_name_the_nearest() -> None:
    with pytest.raises(SettingError, match="Did you mean 'finufft'") as error:
        build(Settings, {"engine": "finuft"})
    assert "auto, finufft, nudft" in error.value.cure
    with pytest.raises(SettingError, match="Choose one of"):
        build(Settings, {"engine": "xyz"})


def test_unknown_names_are_told_the_nearest_known_one() -> None:
    with pytest.raises(SettingError, match="Did you mean 'damping'") as error:
        build(Settings, {"dampin": 1}, prefix="solver.")
    assert error.value.field == "solver.dampin"
    assert "annealed" in error.value.cure
    assert "Did you mean" not in str(unknown_name("x", "qqq", ["abc"]))
    assert str(unknown_name("x", "qqq", ["abc"], "Ask.")).endswith("Known: abc. Ask.")


def test_defaults_stay_and_types_resolve() -> None:
    assert build(Settings, {}) == Settings()
    assert field_types(Settings)["steps"] is int
    metadata = {f.name: f.metadata for f in dataclasses.fields(Settings)}
    assert metadata["steps"]["doc"] == "iterations"
    assert metadata["engine"]["choices"] == ("auto", "finufft", "nudft")


def test_check_lets_none_pass_and_fractions_of_the_limit_not() -> None:
    check("x", None, {"low": 1.0})
    with pytest.raises(SettingError, match="below"):
        check("x", math.nextafter(1.0, 0.0), {"low": 1.0})


def test_a_type_no_setting_can_have_is_an_error() -> None:
    with pytest.raises(SettingError):
        convert("x", "{}", dict)
