"""Options that name one part of a scan of several slices, contrasts or sets."""

from __future__ import annotations

import argparse

PARTS = ("slice", "contrast", "set")
"""Counters that are no time: a series holds the images of all their values."""


def add_part_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare ``--slice``, ``--contrast`` and ``--set``."""
    for name in PARTS:
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"which {name} of a scan of several")


def part_of(args: argparse.Namespace) -> dict[str, int]:
    """What was named."""
    return {name: getattr(args, name) for name in PARTS if getattr(args, name) is not None}
