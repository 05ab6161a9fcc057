"""The benchmark's tables and records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gadgets.bench import tables
from recon_core.errors import DataError


def records() -> list[dict[str, Any]]:
    made = []
    for seed, psnr in ((0, 30.0), (1, 34.0)):
        memory = {"peak": 300 * 2**20, "above": 100 * 2**20}
        made.append({"method": "grasp", "seed": seed, "seconds": 2.0 + seed, "memory": memory, "psnr_db": psnr, "ssim": 0.9})
    return [*made, {"method": "inmr", "seed": 0, "error": "it broke"}]


def result() -> dict[str, Any]:
    return {"case": "c", "title": "A case", "note": "A note.", "seeds": [0, 1], "summary": tables.summary(records()), "machine": MACHINE}


MACHINE = {"cpu": "a processor", "cores": 2, "gpu": None, "date": "2024-02-29"}


def test_summary() -> None:
    grasp, inmr = tables.summary(records())
    assert grasp["runs"] == 2
    assert grasp["psnr_db"] == {"mean": 32.0, "sd": pytest.approx(2 * 2**0.5)}
    assert grasp["seconds"]["mean"] == 2.5
    assert grasp["memory"]["mean"] == 100
    assert "dynamic_error" not in grasp
    assert inmr == {"method": "inmr", "runs": 1, "error": "it broke"}


def test_terminal_table(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    Console(width=120).print(tables.terminal_table(result()))
    text = capsys.readouterr().out
    assert "32.00 ± 2.83" in text
    assert "it broke" in text
    assert "dynamic" not in text


def test_what_a_paper_printed_stands_beside_it() -> None:
    made = [{**record, "paper": {"psnr_db": 33.9}} for record in records()[:2]]
    shown = {**result(), "summary": tables.summary([*made, records()[2]]), "cut": ["scan.matrix [8, 8] (full size: [9, 9])"]}
    lines = tables.page_table(shown).splitlines()
    assert lines[0].endswith("A note. Cut: scan.matrix [8, 8] (full size: [9, 9]).")
    assert lines[2].endswith("| SSIM | paper: PSNR (dB) |")
    assert lines[4].endswith("| 0.900 ± 0.000 | 33.9 |")


def test_page_is_refreshed_between_its_markers(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n", encoding="utf-8")
    tables.refresh_page(page, [result()])
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{tables.BEGIN}\n")
    assert text.endswith(f"{tables.END}\nafter\n")
    assert "old" not in text
    assert "| grasp | 2.5 ± 0.7 | 100 ± 0 | 32.00 ± 2.83 | 0.900 ± 0.000 |" in text
    assert "a processor, 2 cores, 2024-02-29" in text
    assert "inmr" not in text
    tables.refresh_page(page, [result()])
    assert page.read_text(encoding="utf-8") == text
    page.write_text("no markers", encoding="utf-8")
    with pytest.raises(DataError, match="markers"):
        tables.refresh_page(page, [result()])


def test_json_folder_and_file(tmp_path: Path) -> None:
    assert tables.write_json([result()], tmp_path / "results") == [tmp_path / "results" / "c.json"]
    assert json.loads((tmp_path / "results" / "c.json").read_text(encoding="utf-8"))["title"] == "A case"
    tables.write_json([result(), result()], tmp_path / "sub" / "all.json")
    assert len(json.loads((tmp_path / "sub" / "all.json").read_text(encoding="utf-8"))) == 2
