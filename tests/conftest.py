"""Shared fixtures: where real data and wire transcripts lie, seeds, logging."""

from __future__ import annotations

import io
import logging
import os
import random
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest

from gadgets.openmp import sleep_while_waiting

sleep_while_waiting()
import torch  # noqa: E402 - after the policy, which holds for what is loaded later

# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries under test may use the global generator
    torch.manual_seed(0)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call() -> Iterator[None]:
    """Undo what the command line set up: its handlers write to a stream that ends with the call, servers log a little longer."""
    try:
        return (yield)
    finally:
        for name in ("gadgets", "recon_core"):
            log = logging.getLogger(name)
            for handler in log.handlers:
                if isinstance(handler, logging.StreamHandler):
                    handler.setStream(io.StringIO())
            log.handlers.clear()
            log.propagate = True
            log.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real scanner data (``GADGETRON_INR_DATA``, else ``../shared/data``)."""
    path = Path(os.environ.get("GADGETRON_INR_DATA", PROJECT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"real scanner data not found at {path}; set GADGETRON_INR_DATA")
    return path


@pytest.fixture(scope="session")
def wire_dir() -> Path:
    """Folder of byte transcripts of a real Gadgetron server (``GADGETRON_INR_WIRE``, else ``../shared/wire``)."""
    path = Path(os.environ.get("GADGETRON_INR_WIRE", PROJECT.parent / "shared" / "wire"))
    if not path.is_dir():
        pytest.skip(f"wire transcripts not found at {path}; set GADGETRON_INR_WIRE")
    return path
