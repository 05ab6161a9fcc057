"""``gadgetron-inr chain``: list and check chain files, print what they may contain."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROPERTIES_NAME = "properties"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser("chain", help="list and check chain files", description="List and check Gadgetron chain files.")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    listing = actions.add_parser("list", help="the chains that come with the package")
    listing.set_defaults(run=run_list)

    check = actions.add_parser("check", help="check a chain's grammar and properties", description="Exit status 1 if something is wrong.")
    check.add_argument("file", metavar="FILE", help="a chain file, or the name of a chain of the package")
    check.add_argument("-s", "--set", action="append", default=[], metavar="NAME=VALUE", help="override a property; can be repeated")
    check.add_argument("--gadgetron", action="store_true", help="admit gadgets of other libraries: the chain is for a real Gadgetron")
    check.set_defaults(run=run_check)

    show = actions.add_parser("show", help="print a chain's XML")
    show.add_argument("file", metavar="FILE", help="a chain file, or the name of a chain of the package")
    show.add_argument("-s", "--set", action="append", default=[], metavar="NAME=VALUE", help="override a property; can be repeated")
    show.set_defaults(run=run_show)

    properties = actions.add_parser(PROPERTIES_NAME, help="table of chain properties, as Markdown")
    properties.add_argument("--solver", metavar="NAME", help="the settings of this solver instead")
    properties.add_argument("--online", action="store_true", help="the settings of the provisional model instead")
    properties.set_defaults(run=run_properties)


def run_list(args: argparse.Namespace) -> int:
    """Print name, form and solver of every chain of the package."""
    from rich.console import Console
    from rich.table import Table

    from gadgets import chain

    table = Table("chain", "form", "solver", "readouts a frame")
    for name in chain.packaged():
        entry = chain.load(name)
        settings = entry.settings()
        table.add_row(name, entry.form, settings.solver, str(settings.readouts_per_frame))
    Console().print(table)
    return 0


def run_check(args: argparse.Namespace) -> int:
    """Check one chain; print its effective settings."""
    from rich.console import Console
    from rich.table import Table

    from gadgets import chain
    from gadgets.settings import as_text, option_fields, parse_assignments

    overrides = parse_assignments(args.set)
    path = Path(args.file)
    checked = chain.parse(chain.read_text(path), path.name, host=not args.gadgetron) if path.is_file() else chain.load(args.file)
    settings = checked.settings(overrides)
    where = {
        "execute": "started for every scan",
        "connect": f"connects to {checked.address}:{checked.port}",
        "distributed": "parts of the scan go to workers",
    }[checked.form]
    print(f"{checked.name}: OK, {checked.form} form ({where})")
    table = Table("property", "value", "unit", "from")
    for name, field in option_fields().items():
        table.add_row(name, as_text(getattr(settings, name)), field.metadata["unit"], _source(name, checked, overrides, settings.settings))
    for prefix, values in (("solver.", settings.solver_settings), ("online.", settings.online_settings)):
        for name, value in values.items():
            table.add_row(f"{prefix}{name}", as_text(value), "", _source(f"{prefix}{name}", checked, overrides, settings.settings))
    Console().print(table)
    return 0


def _source(name: str, checked: Any, overrides: dict[str, str], settings_file: str) -> str:
    from gadgets.settings import read_settings_file

    if name in overrides:
        return "-s"
    if name in checked.properties:
        return f"line {checked.lines[name]}"
    if settings_file and name in read_settings_file(settings_file):
        return settings_file
    return "default"


def run_show(args: argparse.Namespace) -> int:
    """Print a chain's XML, with overrides if there are some."""
    from gadgets import chain
    from gadgets.settings import parse_assignments

    entry = chain.load(args.file)
    overrides = parse_assignments(args.set)
    if overrides:
        entry.settings(overrides)
    print(chain.with_overrides(entry, overrides) if overrides else entry.text, end="")
    return 0


def run_properties(args: argparse.Namespace) -> int:
    """Print the table that docs/chains.md holds, or that of a solver or of the provisional model."""
    if args.online:
        print(online_table(), end="")
    else:
        print(solver_table(args.solver) if args.solver else properties_table(), end="")
    return 0


def properties_table() -> str:
    """Markdown table of every chain property, from the declaration."""
    from gadgets.settings import ChainSettings, option_fields

    return _markdown(_rows(ChainSettings, list(option_fields().values())))


def online_table() -> str:
    """Markdown table of the provisional model's settings."""
    from gadgets.settings import ONLINE_PREFIX
    from recon_core.online.model import OnlineSettings

    return _markdown(_rows(OnlineSettings, list(dataclasses.fields(OnlineSettings)), ONLINE_PREFIX))


def solver_table(name: str) -> str:
    """Markdown table of one solver's settings.

    Raises:
        SettingError: no such solver.
    """
    import recon_core.solvers.registry as registry
    from gadgets.settings import SOLVER_PREFIX
    from recon_core.options import unknown_name

    if name not in registry.all_names():
        raise unknown_name("solver", name, registry.all_names())
    declared = registry.settings_class(name)
    return _markdown(_rows(declared, list(dataclasses.fields(declared)), SOLVER_PREFIX))


def _rows(cls: type, fields: list[dataclasses.Field[Any]], prefix: str = "") -> Iterator[tuple[str, ...]]:
    from gadgets.settings import as_text
    from recon_core.options import field_types

    hints = field_types(cls)
    for field in fields:
        default = as_text(field.default)
        unit = field.metadata.get("unit", "")
        meaning = field.metadata.get("doc", "") + (f" In {unit}." if unit else "")
        yield (
            f"`{prefix}{field.name}`",
            f"`{default}`" if default else "",
            _admitted(hints[field.name], field.metadata),
            meaning,
        )


def _admitted(kind: Any, metadata: Any) -> str:
    """What values a setting takes, in words."""
    choices, low, high = metadata.get("choices"), metadata.get("low"), metadata.get("high")
    if choices:
        return ", ".join(f"`{choice}`" for choice in choices)
    text = str(kind)
    if "bool" in text:
        return ("`auto`, " if "None" in text else "") + "`true`, `false`"
    words = next((word for key, word in (("tuple", "whole numbers"), ("int", "whole number"), ("float", "number")) if key in text), "text")
    if low is not None and high is not None:
        words += f" from {low} to {high}"
    elif low is not None:
        words += f" ≥ {low}"
    elif high is not None:
        words += f" ≤ {high}"
    return f"`auto` or {words}" if "None" in text else words


def _markdown(rows: Iterator[tuple[str, ...]]) -> str:
    lines = ["| property | default | admitted | meaning |", "| --- | --- | --- | --- |"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
