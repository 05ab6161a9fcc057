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

_PAPER = "paper: "
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
MEASURED = (
    "seconds: from samples in memory to images, maps and the choice of settings on held-out readouts included (bart: its calibration and "
    "one reconstruction, its sweep left out); memory: the process' largest resident memory above what it held with the samples loaded "
    "(bart: of its largest command); tensors: the most bytes that tensors held at once (seconds then include counting them); dynamic "
    "error: 1 means that no motion was recovered; T1, T2, T2*, PD, coils: NRMSE inside the object, times capped, PD up to one scale, coils "
    "of unit root-sum-of-squares up to a phase; worst curve: largest RMS difference of a region's time course, over its maximum; "
    "paper: as printed there, on its own data and machine"
)
_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("seconds", "seconds", "{:.1f}"),
    ("memory", "memory (MiB)", "{:.0f}"),
    ("tensors", "tensors (MiB)", "{:.0f}"),
    ("nrmse_T1", "T1 (%)", "{:.1f}"),
    ("nrmse_T2", "T2 (%)", "{:.1f}"),
    ("nrmse_T2star", "T2* (%)", "{:.1f}"),
    ("nrmse_PD", "PD (%)", "{:.1f}"),
    ("nrmse_coils", "coils (%)", "{:.1f}"),
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
        "cut": list(case.cut),
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
            values = [value for run in good if (value := _value(run, key)) is not None]
            if values:
                line[key] = {"mean": statistics.fmean(values), "sd": statistics.stdev(values) if len(values) > 1 else 0.0}
        if "paper" in runs[0]:
            line["paper"] = runs[0]["paper"]
        lines.append(line)
    return lines


def _value(run: dict[str, Any], key: str) -> float | None:
    if key in ("memory", "tensors"):
        found = run["memory"].get("above" if key == "memory" else key)
        return None if found is None else found / 2**20
    if key.startswith("nrmse_"):
        return 100 * run[key] if key in run else None
    return run.get(key)


def _cells(line: dict[str, Any], columns: Sequence[tuple[str, str, str]]) -> list[str]:
    cells = []
    for key, _, form in columns:
        if key.startswith(_PAPER):
            printed = line.get("paper", {}).get(key.removeprefix(_PAPER))
            cells.append("" if printed is None else f"{printed:g}")
            continue
        if key not in line:
            cells.append("")
            continue
        text = form.format(line[key]["mean"])
        cells.append(f"{text} ± {form.format(line[key]['sd'])}" if line["runs"] > 1 else text)
    return cells


def _used_columns(lines: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    measured = [column for column in _COLUMNS if any(column[0] in line for line in lines)]
    printed = [(_PAPER + key, _PAPER + heading, "") for key, heading, _ in _COLUMNS if any(key in line.get("paper", {}) for line in lines)]
    return [*measured, *printed]


def _notes(result: dict[str, Any]) -> str:
    """What a reader must know: the case's note, and what is smaller than in full size."""
    cut = f"Cut: {'; '.join(result['cut'])}." if result.get("cut") else ""
    return " ".join(part for part in (result["note"], cut) if part)


def terminal_table(result: dict[str, Any]) -> Table:
    """A case's summary for the terminal.

    Args:
        result: as :func:`as_json` gives it.
    """
    from rich.table import Table

    lines = result["summary"]
    columns = _used_columns(lines)
    seeds = f", mean ± sd over {len(result['seeds'])} seeds" if len(result["seeds"]) > 1 else ""
    table = Table(title=f"{result['title']}{seeds}", caption=_notes(result) or None)
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
    rows = [
        f"**{result['title']}**{seeds}. {_notes(result)}".rstrip(),
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
    written = []
    for result in results:
        path = where / f"{result['case']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        written.append(path)
    return written


def kept_records(where: Path, case: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Records in what :func:`write_json` wrote: of the case, and of others in the same folder, for tables share rows.

    Raises:
        DataError: a file is not one of these.
    """
    own = where if where.suffix == ".json" else where / f"{case}.json"
    beside = [] if where.suffix == ".json" else sorted(path for path in own.parent.glob("*.json") if path != own)
    found = [result for path in (own, *beside) if path.is_file() for result in _results(path)]
    mine, others = ([run for name, runs in found if (name == case) is same for run in runs] for same in (True, False))
    return mine, others


def _results(path: Path) -> list[tuple[str, list[dict[str, Any]]]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        results = content if isinstance(content, list) else [content]
        return [(result["case"], list(result["runs"])) for result in results]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(str(path), f"no results of the benchmark ({error!r})", "Name another file, or leave --resume out.") from error


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
