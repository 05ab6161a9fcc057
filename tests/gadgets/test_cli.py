"""The command line: commands, exit statuses, logging."""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
from importlib import metadata

import pytest

from gadgets import cli
from gadgets.cli import COMMANDS, main
from recon_core.errors import SettingError


def fake_command(monkeypatch: pytest.MonkeyPatch, function) -> None:
    def parser() -> argparse.ArgumentParser:
        made = argparse.ArgumentParser()
        made.set_defaults(run=function, verbose=False, quiet=False)
        return made

    monkeypatch.setattr(cli, "build_parser", parser)


def raising(error: BaseException):
    def function(args: argparse.Namespace) -> int:
        raise error

    return function


def test_every_command_has_help_and_needs_neither_torch_nor_pictures():
    code = (
        "import sys, json\n"
        "from gadgets.cli import build_parser\n"
        "parser = build_parser()\n"
        "commands = next(a for a in parser._actions if a.dest == 'command').choices\n"
        "assert all(c.format_help() for c in commands.values())\n"
        "heavy = {'torch', 'matplotlib', 'scipy', 'h5py', 'ismrmrd', 'finufft', 'rich'} & set(sys.modules)\n"
        "print(json.dumps([sorted(commands), sorted(heavy)]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    commands, heavy = json.loads(done.stdout)
    assert commands == sorted(COMMANDS)
    assert heavy == []


def test_version(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip() == f"gadgetron-inr {metadata.version('gadgetron-inr')}"


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["chain"], ["replay", "--nonsense"]])
def test_wrong_usage_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: gadgetron-inr" in capsys.readouterr().err


@pytest.mark.parametrize("status", [0, 1, 3])
def test_status_of_a_command_is_handed_on(monkeypatch: pytest.MonkeyPatch, status: int):
    fake_command(monkeypatch, lambda args: status)
    assert main([]) == status


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (SettingError("coils", "0 is below 1", "Give more."), 1, "error: coils: 0 is below 1. Give more.\n"),
        (FileNotFoundError(2, "No such file or directory", "/x.h5"), 1, "error: /x.h5: No such file or directory\n"),
        (OSError("disk on fire"), 1, "error: disk on fire\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_errors_are_told_in_one_line(monkeypatch, capsys: pytest.CaptureFixture[str], error, status, words):
    fake_command(monkeypatch, raising(error))
    assert main([]) == status
    assert capsys.readouterr().err == words


def test_fault_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch):
    fake_command(monkeypatch, raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        main([])


def test_verbose_shows_the_traceback_of_an_error(capsys: pytest.CaptureFixture[str]):
    assert main(["-v", "chain", "check", "nix"]) == 1
    told = capsys.readouterr().err
    assert "error: chain: unknown name 'nix'" in told
    assert "Traceback" in told
    assert main(["chain", "check", "nix"]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_reader_of_the_output_may_leave_early():
    program = f"{sys.executable} -m gadgets.cli chain properties | head -c 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "|"
    assert done.stderr == ""


@pytest.mark.parametrize(("options", "level"), [({}, logging.INFO), ({"verbose": True}, logging.DEBUG), ({"quiet": True}, logging.WARNING)])
def test_log_level(options, level):
    cli.set_up_logging(**options)
    assert logging.getLogger("gadgets").getEffectiveLevel() == level
    assert logging.getLogger("recon_core.solvers").getEffectiveLevel() == level


@pytest.mark.parametrize("terminal", [True, False])
def test_log_goes_to_standard_error(monkeypatch, capsys: pytest.CaptureFixture[str], terminal: bool):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    cli.set_up_logging()
    cli.set_up_logging()
    logging.getLogger("gadgets.test").info("one line")
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("one line") == 1


def test_chain_list(capsys: pytest.CaptureFixture[str]):
    assert main(["chain", "list"]) == 0
    out = capsys.readouterr().out
    assert "cardiac_connect.xml" in out
    assert "connect" in out


def test_chain_check_prints_effective_settings_and_where_they_come_from(tmp_path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "more.yaml"
    file.write_text("holdout: 0.25\n")
    assert main(["chain", "check", "cardiac", "-s", "coils=3", "-s", "solver=inmr", "-s", "solver.latent=4", "-s", f"settings={file}"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("cardiac.xml: OK, execute form")
    rows = {cells[1]: cells[2:5] for line in out.splitlines() if len(cells := [c.strip() for c in line.split("│")]) > 5}
    assert rows["coils"] == ["3", "", "-s"]
    assert rows["solver.latent"] == ["4", "", "-s"]
    assert rows["seed"] == ["0", "", "line 35"]
    assert rows["holdout"][0] == "0.25"
    assert rows["time_tick_ms"] == ["2.5", "ms", "default"]


def test_chain_show_applies_overrides(capsys: pytest.CaptureFixture[str]):
    assert main(["chain", "show", "cardiac_connect"]) == 0
    assert '<connect address="localhost" port="18000"/>' in capsys.readouterr().out
    assert main(["chain", "show", "cardiac", "-s", "coils=3"]) == 0
    assert '<property name="coils" value="3"' in capsys.readouterr().out
    assert main(["chain", "show", "cardiac", "-s", "coils=0"]) == 1


def test_chain_properties_of_a_solver(capsys: pytest.CaptureFixture[str]):
    assert main(["chain", "properties", "--solver", "inmr"]) == 0
    assert "| `solver.smoothness` | `auto` |" in capsys.readouterr().out
    assert main(["chain", "properties", "--solver", "inmrr"]) == 1
    assert "Did you mean 'inmr'" in capsys.readouterr().err
