"""Waiting OpenMP threads sleep, from before the libraries that start them are loaded."""

from __future__ import annotations

import os
import subprocess
import sys

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
