"""``gadgetron-inr chain check`` on chain files whose second line says what is expected."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gadgets.cli import main

CASES = sorted((Path(__file__).parent / "cases").glob("*.xml"))
NEEDS_GADGETRON = {"noise_adjust_first.xml", "parallel.xml", "foreign_node.xml"}


def expectation(path: Path) -> str:
    return re.search(r"<!-- expect: (.*?) -->", path.read_text(encoding="utf-8").splitlines()[1])[1]


def test_cases_are_there():
    assert {"ok", "error"} == {expectation(path).split()[0] for path in CASES}
    assert {path.name for path in CASES} > NEEDS_GADGETRON


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_check(path: Path, capsys: pytest.CaptureFixture[str]):
    expected = expectation(path)
    status = main(["chain", "check", str(path)])
    told = capsys.readouterr()
    if expected == "ok":
        assert (status, told.err) == (0, "")
        assert told.out.startswith(f"{path.name}: OK")
        return
    place, words = re.fullmatch(r"error (line \d+): (.*)", expected).groups()
    assert status == 1
    assert told.err.startswith(f"error: {path.name}, {place}: ")
    assert words in told.err
    assert told.err.rstrip().endswith((".", ")"))


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_check_for_a_real_gadgetron_admits_other_gadgets_and_nothing_else(path: Path, capsys: pytest.CaptureFixture[str]):
    status = main(["chain", "check", "--gadgetron", str(path)])
    assert (status == 0) == (expectation(path) == "ok" or path.name in NEEDS_GADGETRON), capsys.readouterr().err
