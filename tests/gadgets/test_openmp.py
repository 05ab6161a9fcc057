"""Waiting OpenMP threads sleep, from before the libraries that start them are loaded."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

# What a process of ours has loaded when it sets the policy, and what the policy is once torch is there.
COMMAND = """
import sys
from gadgets import cli
cli.build_parser()
early = {"torch", "finufft"} & set(sys.modules)
cli.main(["chain", "list"])
import os, torch
print(sorted(early), os.environ["OMP_WAIT_POLICY"])
"""
NODE = """
import sys
import gadgetron.external
from gadgets import node
early = {"torch", "finufft"} & set(sys.modules)
try:
    node.run(None)
except AttributeError:
    pass  # there is no connection
import os
print(sorted(early), os.environ["OMP_WAIT_POLICY"])
"""


def test_threads_of_one_thread_only() -> None:
    """A limit holds where it was set, and ends; threads that begin meanwhile have all cores."""
    import torch

    from gadgets.openmp import at_most_threads

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    seen = {}
    try:
        with at_most_threads(1):
            seen["inside"] = torch.get_num_threads()
            other = threading.Thread(target=lambda: seen.update(other=torch.get_num_threads()))
            other.start()
            other.join()
        seen["after"] = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    assert seen == {"inside": 1, "other": 3, "after": 3}


def last_line(code: str, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", code], env={**clean, **environment}, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("code", [COMMAND, NODE], ids=["command", "node"])
def test_threads_sleep_and_no_library_was_loaded_before(code):
    assert last_line(code) == "[] PASSIVE"


@pytest.mark.parametrize("code", [COMMAND, NODE], ids=["command", "node"])
def test_the_users_setting_stays(code):
    assert last_line(code, OMP_WAIT_POLICY="ACTIVE") == "[] ACTIVE"
