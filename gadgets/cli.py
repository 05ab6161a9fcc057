"""The command ``gadgetron-inr``."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from importlib import metadata

from gadgets.openmp import sleep_while_waiting
from recon_core.errors import ReconError

COMMANDS = (
    *("demo", "simulate", "replay", "recon", "serve", "evaluate", "show", "bench", "chain", "doctor"),
    *("install", "workers", "openrecon"),
)
"""Modules of ``gadgets.commands``, in the order of the help text."""

logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """The parser with every command."""
    parser = argparse.ArgumentParser(
        prog="gadgetron-inr",
        description="Zero-shot neural reconstruction of dynamic MRI, online behind a Gadgetron server.",
        epilog="`gadgetron-inr COMMAND --help` tells a command's options.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {metadata.version('gadgetron-inr')}")
    parser.add_argument("-v", "--verbose", action="store_true", help="log details, and tracebacks of errors")
    parser.add_argument("--quiet", action="store_true", help="log warnings and errors only")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for name in COMMANDS:
        importlib.import_module(f"gadgets.commands.{name}").add_parser(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: without the program's name; the process's own when None.

    Returns:
        Exit status: 0 done, 1 an error (told on standard error), 2 wrong usage, 130 interrupted.
    """
    sleep_while_waiting()
    args = build_parser().parse_args(arguments)
    set_up_logging(args.verbose, args.quiet)
    try:
        status = int(args.run(args))
        sys.stdout.flush()
    except ReconError as error:
        return _tell(error, error)
    except BrokenPipeError as error:
        # The reader of our output (head, less) is gone. Python flushes again at exit, which must not fail a second time.
        logger.debug("standard output closed: %s", error)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _tell(f"{error.filename}: {error.strerror}" if error.filename else error, error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return status


def _tell(words: object, error: BaseException) -> int:
    print(f"error: {words}", file=sys.stderr)
    logger.debug("traceback of that error", exc_info=error)
    return 1


def set_up_logging(verbose: bool = False, quiet: bool = False) -> None:
    """Log to standard error: coloured on a terminal, plain lines with a date elsewhere."""
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    handler: logging.Handler
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        handler = RichHandler(console=Console(stderr=True), show_path=False, log_time_format="%X", rich_tracebacks=verbose)
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in ("gadgets", "recon_core"):
        package = logging.getLogger(name)
        package.handlers[:] = [handler]
        package.setLevel(level)
        package.propagate = False


if __name__ == "__main__":
    sys.exit(main())
