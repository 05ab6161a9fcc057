"""Fixtures of the reconstruction core's tests."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test draws the same numbers, whatever ran before it."""
    torch.manual_seed(20240229)


def load(name: str) -> ModuleType:
    """A helper module beside this file (test folders are no packages)."""
    spec = importlib.util.spec_from_file_location(f"recon_core_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    """A small dynamic scan."""
    return load("toy")


@pytest.fixture
def tinycudann(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A stand-in for tinycudann, found under its name."""
    module = load("tinycudann_stand_in")
    monkeypatch.setitem(sys.modules, "tinycudann", module)
    return module
