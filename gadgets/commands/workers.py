"""``gadgetron-inr workers``: the list that a Gadgetron asks for before it distributes."""

from __future__ import annotations

import argparse
import os
import sys

VARIABLE = "GADGETRON_INR_WORKERS"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "workers",
        help="list the workers of a distributed chain",
        description='Print ["host:port", …] of the workers that listen, for GADGETRON_REMOTE_WORKER_COMMAND; each is a '
        "`gadgetron-inr serve`. Those that do not listen are left out and told on standard error: Gadgetron would fail the scan on them.",
        epilog="Exit status 1, and no list, when none listens.",
    )
    parser.add_argument("workers", nargs="*", metavar="HOST:PORT", help=f"workers (default: ${VARIABLE}, separated by commas or spaces)")
    parser.add_argument("--timeout", type=float, default=2.0, metavar="SECONDS", help="longest wait for a worker (default: %(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the list.

    Raises:
        ReconError: no worker named, an address that is none.
    """
    from gadgets import workers
    from recon_core.errors import SettingError

    named = args.workers or os.environ.get(VARIABLE, "").replace(",", " ").split()
    if not named:
        raise SettingError("workers", f"none named, and {VARIABLE} is empty", "Name them: gadgetron-inr workers gpu1:9002 gpu2:9002.")
    if not 0 < args.timeout < float("inf"):
        raise SettingError("--timeout", f"{args.timeout}", "Give seconds above 0.")
    reasons = workers.listening(named, args.timeout)
    for address, reason in reasons.items():
        if reason:
            print(f"worker {address} left out: {reason}", file=sys.stderr)
    up = [address for address, reason in reasons.items() if not reason]
    if not up:
        print("error: no worker listens", file=sys.stderr)
        return 1
    print(workers.as_list(up))
    return 0
