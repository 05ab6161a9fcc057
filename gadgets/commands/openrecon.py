"""``gadgetron-inr openrecon``: the description of an OpenRecon container, from a chain's settings."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "openrecon",
        help="describe a chain for an OpenRecon container",
        description="Write the JSON that an OpenRecon container carries in its label: general part, needs, and every property of the chain "
        "as a parameter of the console, with type, limits, label and the chain's value as default.",
        epilog="Not verified against a scanner.",
    )
    parser.add_argument("-c", "--config", default="cardiac.xml", metavar="CHAIN", help="known chain (default: %(default)s)")
    parser.add_argument("-s", "--set", action="append", default=[], metavar="NAME=VALUE", help="override a property; can be repeated")
    parser.add_argument(
        "--container",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the container: name, vendor, version, information, port, memory_mb, cores, gpu_memory_mb, qualification",
    )
    parser.add_argument(
        "--regulatory", action="append", default=[], metavar="NAME=TEXT", help="a text of regulatory_information; can be repeated"
    )
    parser.add_argument(
        "--format",
        choices=("json", "base64", "label"),
        default="json",
        help="the JSON, its base64, or the LABEL line of a Dockerfile (default: %(default)s)",
    )
    parser.add_argument("-o", "--outfile", metavar="FILE", help="write there instead of to standard output")
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of the description instead")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the description.

    Raises:
        ReconError: unknown chain, bad setting.
    """
    from gadgets import chain, openrecon
    from gadgets.console import NOT_SHOWN
    from gadgets.settings import parse_assignments
    from recon_core.errors import SettingError

    if args.schema:
        text = openrecon.schema()
    else:
        # What a console asks for by name is loaded by name: only known chains will do.
        entry = chain.load_known(args.config)
        container = openrecon.container_of(parse_assignments(args.container, "--container"))
        overrides = parse_assignments(args.set)
        for name in overrides:
            if name in NOT_SHOWN:
                cure = (
                    f"Leave it out; another chain of the container is described with -c (this one has {name}={entry.properties.get(name)})."
                )
                raise SettingError(f"-s {name}", "no console can send it, the container would run without", cure)
        description = openrecon.describe(entry, entry.settings(overrides), container, parse_assignments(args.regulatory, "--regulatory"))
        text = {
            "json": lambda: openrecon.as_json(description),
            "base64": lambda: openrecon.as_base64(description) + "\n",
            "label": lambda: f'LABEL "{openrecon.LABEL}"="{openrecon.as_base64(description)}"\n',
        }[args.format]()
    if args.outfile is None:
        print(text, end="")
    else:
        Path(args.outfile).write_text(text, encoding="utf-8")
    return 0
