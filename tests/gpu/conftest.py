"""Tests that need a CUDA device: skipped, with the reason, where there is none."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder ``gpu``, and skip it without a device."""
    for item in items:
        if HERE not in item.path.parents:
            continue
        item.add_marker(pytest.mark.gpu)
        if not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="torch finds no CUDA device"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(20240229)


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    """The small dynamic scan of ``tests/recon_core/toy.py``."""
    spec = importlib.util.spec_from_file_location("recon_core_toy", HERE.parent / "recon_core" / "toy.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
