"""Errors name the field, the value and the cure."""

from __future__ import annotations

import pytest

from recon_core.errors import DataError, MissingPartError, ReconError, SettingError


@pytest.mark.parametrize("kind", [SettingError, DataError, MissingPartError])
def test_the_message_has_all_three_parts(kind: type[ReconError]) -> None:
    error = kind("coils", "0 is below 1", "Give a value of at least 1.")
    assert str(error) == "coils: 0 is below 1. Give a value of at least 1."
    assert (error.field, error.problem, error.cure) == ("coils", "0 is below 1", "Give a value of at least 1.")
    assert isinstance(error, ReconError)
    assert isinstance(error, ValueError)


def test_kinds_can_be_told_apart() -> None:
    assert not issubclass(DataError, SettingError)
    assert not issubclass(SettingError, MissingPartError)
