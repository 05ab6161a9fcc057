"""Results of the benchmark as JSON, as a table in the terminal and as a table in a page."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recon_core.errors import DataError

if TYPE_CHECKING:
    from rich.table import Table

    from gadgets.bench.runner import CaseResult

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
MEASURED = (
    "seconds: from samples in memory to images, maps and the choice of settings on held-out readouts included (bart: its calibration and "
    "one reconstruction, its sweep left out); memory: the process' largest resident memory above what it held with the samples loaded "
    "(bart: of its largest command); dynamic error: 1 means that no motion was recovered; worst curve: largest RMS difference of a "
    "region's time course, over its maximum"
)
_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("seconds", "seconds", "{:.1f}"),
    ("memory", "memory (MiB)", "{:.0f}"),
    ("psnr_db", "PSNR (dB)", "{:.2f}"),
    ("ssim", "SSIM", "{:.3f}"),
    ("dynamic_error", "dynamic error", "{:.3f}"),
    ("curve_difference", "worst curve", "{:.3f}"),
    ("held_out_error", "held-out error", "{:.4g}"),
)


def as_json(result: CaseResult, machine: dict[str, Any]) -> dict[str, Any]:
    """Everything of a case that was measured, with what it was measured on."""
    case = result.case
    return {
        "case": case.name,
        "title": case.title,
        "note": case.note,
        "source": result.source,
        "scan": dict(case.scan),
        "seeds": list(case.seeds),
        "coils": case.coils,
        "holdout": case.holdout,
        "withhold": case.withhold,
        "machine": machine,
        "measured": MEASURED,
        "summary": summary(result.records),
        "runs": result.records,
    }


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds, method by method in order of the runs; failures by their words."""
    lines = []
    for method in dict.fromkeys(record["method"] for record in records):
        runs = [record for record in records if record["method"] == method]
        line: dict[str, Any] = {"method": method, "runs": len(runs)}
        errors = [run["error"] for run in runs if "error" in run]
        if errors:
            line["error"] = errors[0]
        good = [run for run in runs if "error" not in run]
        for key, _, _ in _COLUMNS:
            values = [run["memory"]["above"] / 2**20 if key == "memory" else run[key] for run in good if key in run]
            if values:
                line[key] = {"mean": statistics.fmean(values), "sd": statistics.stdev(values) if len(values) > 1 else 0.0}
        lines.append(line)
    return lines


def _cells(line: dict[str, Any], columns: Sequence[tuple[str, str, str]]) -> list[str]:
    cells = []
    for key, _, form in columns:
        if key not in line:
            cells.append("")
            continue
        text = form.format(line[key]["mean"])
        cells.append(f"{text} ± {form.format(line[key]['sd'])}" if line["runs"] > 1 else text)
    return cells


def _used_columns(lines: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    return [column for column in _COLUMNS if any(column[0] in line for line in lines)]


def terminal_table(result: dict[str, Any]) -> Table:
    """A case's summary for the terminal.

    Args:
        result: as :func:`as_json` gives it.
    """
    from rich.table import Table

    lines = result["summary"]
    columns = _used_columns(lines)
    seeds = f", mean ± sd over {len(result['seeds'])} seeds" if len(result["seeds"]) > 1 else ""
    table = Table(title=f"{result['title']}{seeds}", caption=result["note"] or None)
    table.add_column("method")
    for _, heading, _ in columns:
        table.add_column(heading, justify="right")
    for line in lines:
        if "error" in line and "seconds" not in line:
            table.add_row(line["method"], f"[red]{line['error']}[/red]")
        else:
            table.add_row(line["method"], *_cells(line, columns))
    return table


def page_table(result: dict[str, Any]) -> str:
    """A case's summary in Markdown."""
    lines = [line for line in result["summary"] if "seconds" in line]
    columns = _used_columns(lines)
    seeds = f"; mean ± standard deviation over {len(result['seeds'])} seeds" if len(result["seeds"]) > 1 else ""
    note = f" {result['note']}" if result["note"] else ""
    rows = [
        f"**{result['title']}**{seeds}.{note}",
        "",
        "| method | " + " | ".join(heading for _, heading, _ in columns) + " |",
        "| --- |" + " ---: |" * len(columns),
        *("| " + " | ".join([line["method"], *_cells(line, columns)]) + " |" for line in lines),
    ]
    return "\n".join(rows)


def write_json(results: Sequence[dict[str, Any]], where: Path) -> list[Path]:
    """Write one file a case into a folder, or all into one ``.json`` file."""
    if where.suffix == ".json":
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_text(json.dumps(list(results), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return [where]
    where.mkdir(parents=True, exist_ok=True)
    written = []
    for result in results:
        path = where / f"{result['case']}.json"
        path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        written.append(path)
    return written


def refresh_page(path: Path, results: Sequence[dict[str, Any]]) -> None:
    """Replace what stands between the two markers of a page by the results' tables.

    Raises:
        DataError: the page lacks a marker.
    """
    text = path.read_text(encoding="utf-8")
    begin, end = text.find(BEGIN), text.find(END)
    if begin < 0 or end < begin:
        raise DataError(str(path), f"has no {BEGIN} … {END}", "Put both markers where the table belongs.")
    machine = results[0]["machine"]
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    measured_on = f"Measured on {machine['cpu']}, {machine['cores']} cores{gpu}, {machine['date']}; {MEASURED}."
    body = "\n\n".join([*(page_table(result) for result in results), measured_on])
    path.write_text(text[: begin + len(BEGIN)] + "\n" + body + "\n" + text[end:], encoding="utf-8")
