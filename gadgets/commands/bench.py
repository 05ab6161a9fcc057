"""``gadgetron-inr bench``: methods side by side on the same data."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Set
from pathlib import Path
from typing import Any


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "bench",
        help="compare methods on the same data",
        description="Run methods one by one, each in a process of its own, on benchmark cases, and print time, memory and quality. No "
        "method is given the truth: settings and stopping are chosen on held-out readouts.",
        epilog="Exit status 1 where a method or a case failed; the others are told all the same.",
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help="case or set by name, or YAML file; none: list what there is")
    parser.add_argument("--full", action="store_true", help="in full size, of cases that are smaller otherwise")
    parser.add_argument("--methods", metavar="A,B,…", help="solvers or rows to run (default: the case's, or all)")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME", help="another program to compare with: bart")
    parser.add_argument("--seeds", metavar="N,N,…", help="seeds instead of the case's")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--profile", action="store_true", help="where each solver's time goes, and its step against the machine's rates")
    parser.add_argument("--json", metavar="PATH", help="write results: a folder (a file a case) or one .json file")
    parser.add_argument("--resume", action="store_true", help="take rows that --json already holds from there")
    parser.add_argument("--pictures", metavar="DIR", help="write a PNG a case with the methods side by side")
    parser.add_argument("--readme", metavar="FILE", help="refresh the tables between the markers of this page")
    parser.add_argument("--data", metavar="DIR", help="folder of real data (default: $GADGETRON_INR_DATA, else ../shared/data)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the cases; 0 when every method of every case gave images.

    Raises:
        ReconError: a case, solver or peer is not known or not there.
    """
    import dataclasses

    from rich.console import Console

    from gadgets.bench import cases, machine, pictures, profile, runner, tables
    from recon_core.errors import ReconError, SettingError

    if not args.cases:
        print("\n".join(cases.known()))
        return 0
    if args.resume and args.json is None:
        raise SettingError("--resume", "without --json", "Name the folder or file that holds earlier results.")
    chosen = cases.load(args.cases, full=args.full)
    if args.seeds is not None:
        chosen = [dataclasses.replace(case, seeds=_seeds(args.seeds)) for case in chosen]
    titles = {row.title for case in chosen for row in case.rows or ()}
    methods = None if args.methods is None else _names(args.methods, titles)
    runner.check_peers(args.peer)
    if args.profile:
        profile.check()
    for case in chosen:
        runner.rows_of(case, methods, 2)
    console = Console(width=None if sys.stdout.isatty() else 160)
    results: list[dict[str, Any]] = []
    failed = False
    described = machine.describe()
    for case in chosen:
        own, others = tables.kept_records(Path(args.json), case.name) if args.resume else ([], [])

        def keep(result: runner.CaseResult, own: list[dict[str, Any]] = own) -> None:
            if args.json is not None:
                # Rows of an earlier run whose turn has not come yet must outlive an interruption.
                done = {(record["method"], record["seed"]) for record in result.records}
                later = [old for old in own if (old["method"], old["seed"]) not in done]
                so_far = dataclasses.replace(result, records=[*result.records, *later])
                tables.write_json([*results, tables.as_json(so_far, described)], Path(args.json))

        try:
            folder = data_folder(args.data)
            result = runner.run_case(case, folder, methods, args.peer, args.device, profile=args.profile, kept=[*own, *others], keep=keep)
        except ReconError as error:
            print(f"error: {case.name}: {error}", file=sys.stderr)
            failed = True
            continue
        failed |= any("error" in record for record in result.records)
        results.append(tables.as_json(result, described))
        if args.json is not None:
            tables.write_json(results, Path(args.json))
        console.print(tables.terminal_table(results[-1]))
        if args.profile:
            console.print(profile.stage_table(results[-1]))
            console.print(profile.floor_table(results[-1]))
        if args.pictures is not None:
            pictures.side_by_side(result, Path(args.pictures) / f"{case.name}.png")
    console.print(tables.MEASURED, style="dim")
    if args.readme is not None and results:
        tables.refresh_page(Path(args.readme), results)
    return int(failed)


def _names(text: str, titles: Set[str]) -> list[str]:
    """Names apart by commas; a row's title may itself have some."""
    words = [word.strip() for word in text.split(",")]
    names = []
    while words:
        length = next((n for n in range(len(words), 1, -1) if ", ".join(words[:n]) in titles), 1)
        names.append(", ".join(words[:length]))
        del words[:length]
    return [name for name in names if name]


def _seeds(text: str) -> tuple[int, ...]:
    from recon_core.errors import SettingError

    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError as error:
        raise SettingError("--seeds", f"{text!r} is no list of whole numbers", "Give for example 0,1,2.") from error


def data_folder(named: str | None) -> Path:
    """Where real data lie: as named, else by the environment, else beside the source tree."""
    if named is not None:
        return Path(named)
    by_environment = os.environ.get("GADGETRON_INR_DATA")
    return Path(by_environment) if by_environment else Path(__file__).resolve().parents[2].parent / "shared" / "data"
