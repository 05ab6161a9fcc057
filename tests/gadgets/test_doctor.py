"""``gadgetron-inr doctor`` finds what works, what is missing and what is broken."""

from __future__ import annotations

import sys
from importlib import metadata
from types import ModuleType

import pytest
import torch

from gadgets.cli import main
from gadgets.commands import doctor
from gadgets.commands.doctor import BROKEN, MISSING, OK, Finding
from recon_core.operators import nufft

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")


def by_name(findings) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_report_of_this_machine(capsys: pytest.CaptureFixture[str]):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "everything required works" in out
    assert metadata.version("torch") in out
    assert "finufft on cpu" in out


def test_declared_packages_are_all_looked_at():
    found = by_name(doctor.packages())
    assert {"python", "numpy", "torch", "ismrmrd", "pyyaml", "scikit-image", "cufinufft"} <= set(found)
    assert "pytest" not in found
    assert found["numpy"] == Finding("package", "numpy", OK, metadata.version("numpy"), required=True)
    assert not found["cufinufft"].required


def test_missing_old_and_broken_packages_are_told_with_the_cure(monkeypatch: pytest.MonkeyPatch):
    absent = doctor._package("no-such-package", ">=1", None)
    assert (absent.state, absent.required) == (MISSING, True)
    assert "pip install 'no-such-package>=1'" in absent.words
    optional = doctor._package("no-such-package", ">=1", "cuda")
    assert "pip install 'gadgetron-inr[cuda]'" in optional.words
    old = doctor._package("numpy", ">=99.1", None)
    assert old.state == BROKEN
    assert "older than 99.1. pip install 'numpy>=99.1'" in old.words
    monkeypatch.setitem(sys.modules, "h5py", None)
    broken = doctor._package("h5py", ">=3", None)
    assert (broken.state, broken.required) == (BROKEN, True)
    assert "does not import" in broken.words


@pytest.mark.parametrize(("older", "newer"), [("2.9", "2.10"), ("1.26.4", "2"), ("1.9rc1", "1.10"), ("2.4.0+cpu", "2.4.1")])
def test_versions_compare_as_numbers(older: str, newer: str):
    assert doctor._numbers(older) < doctor._numbers(newer)


def test_something_required_that_is_broken_gives_status_1(monkeypatch, capsys: pytest.CaptureFixture[str]):
    findings = [Finding("package", "torch", BROKEN, "[odd] words", True), Finding("engine", "x", BROKEN, "", False)]
    monkeypatch.setattr(doctor, "diagnose", lambda: findings)
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "broken: torch\n" in out
    assert "[odd] words" in out
    monkeypatch.setattr(doctor, "diagnose", lambda: findings[1:])
    assert main(["doctor"]) == 0


def test_engines_are_run_and_agree_with_the_exact_sum():
    found = by_name(doctor.engines())
    for name in ("finufft on cpu", "nudft on cpu"):
        assert found[name].state == OK, found[name].words
        assert "error against the exact sum" in found[name].words
    assert found["finufft on cpu"].required
    assert not found["nudft on cpu"].required


@pytest.mark.parametrize("part", ["forward", "adjoint"])
def test_engine_with_wrong_numbers_is_broken(monkeypatch: pytest.MonkeyPatch, part: str):
    right = getattr(nufft.Nufft, part)
    monkeypatch.setattr(nufft.Nufft, part, lambda self, data: 1.01 * right(self, data))
    finding = doctor._run_engine("finufft", "cpu")
    assert finding.state == BROKEN
    assert "engine=NAME" in finding.words


def test_engine_that_raises_is_broken(monkeypatch: pytest.MonkeyPatch):
    def fail(self, data):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(nufft.Nufft, "forward", fail)
    finding = doctor._run_engine("nudft", "cpu")
    assert (finding.state, finding.required) == (BROKEN, False)
    assert "no kernel image" in finding.words


def test_unusable_engine_is_missing_with_its_cure(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(nufft, "engines", lambda: {"cufinufft": "not installed: pip install cufinufft"})
    assert doctor.engines() == [Finding("engine", "cufinufft", MISSING, "not installed: pip install cufinufft")]


def test_tinycudann_absent_broken_and_present(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor.util, "find_spec", lambda name: None)
    absent = doctor.tinycudann()
    assert absent.state == MISSING
    assert "was not run here" in absent.words
    assert "pip install" in absent.words
    monkeypatch.setattr(doctor.util, "find_spec", lambda name: True)
    monkeypatch.setitem(sys.modules, "tinycudann", None)
    assert doctor.tinycudann().state == BROKEN
    monkeypatch.setitem(sys.modules, "tinycudann", ModuleType("tinycudann"))
    assert doctor.tinycudann().state == OK


def test_devices(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cpu, cuda = doctor.devices()
    assert (cpu.state, cpu.required, cuda.state) == (OK, True, MISSING)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    properties = ModuleType("properties")
    properties.name, properties.total_memory = "A card", 8 * 2**30
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: properties)
    assert [f.words for f in doctor.devices()][1:] == ["A card, 8 GiB"] * 2


def test_without_torch_the_report_still_comes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert doctor.devices()[0].state == BROKEN
    assert doctor.engines()[0].required


def test_programs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/bin/gadgetron" if name == "gadgetron" else None)
    found = by_name(doctor.programs())
    assert (found["gadgetron"].state, found["gadgetron"].words) == (OK, "/bin/gadgetron")
    assert found["gadgetron_ismrmrd_client"].state == MISSING
