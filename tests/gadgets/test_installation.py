"""Our files in a Gadgetron installation: written, told, kept apart from others', removed."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path

import pytest

from gadgets import chain, installation
from gadgets.cli import main
from gadgets.installation import CHAINS, MODULES, Options, State
from recon_core.errors import SettingError

ENTRY = MODULES / "gadgetron_inr_node.py"


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    (tmp_path / CHAINS).mkdir(parents=True)
    (tmp_path / CHAINS / "default.xml").write_text("<configuration/>")
    python_that(tmp_path, "echo 1.2.3")
    return tmp_path


def python_that(prefix: Path, does: str) -> Path:
    """The Python of the installation, made to do one thing."""
    python = prefix / "bin" / "python"
    python.parent.mkdir(exist_ok=True)
    python.write_text(f"#!/bin/sh\n{does}\n")
    python.chmod(0o755)
    return python


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def install(prefix: Path, *options: str) -> int:
    return main(["install", "--prefix", str(prefix), *options])


def test_every_application_is_there_in_both_forms_and_all_chains_are_good(prefix):
    assert install(prefix, "--node", "gpu.example:18001") == 0
    names = {path.name for path in (prefix / CHAINS).glob("inr_*.xml")}
    applications = {chain.load(name).application for name in chain.packaged()}
    assert names >= {f"inr_{application}{form}.xml" for application in applications for form in ("", "_connect")}
    assert "inr_cardiac_distributed.xml" in names
    for name in names:
        made = chain.parse((prefix / CHAINS / name).read_text(encoding="utf-8"), name, host=False)
        form = {"connect": "connect", "distributed": "distributed"}.get(name.removesuffix(".xml").rpartition("_")[2], "execute")
        assert made.form == form
        source = name if form == "distributed" else made.application
        assert made.settings() == chain.load(source.removeprefix("inr_")).settings()
        if form == "connect":
            assert (made.address, made.port) == ("gpu.example", 18001)
        if form == "execute":
            assert '<execute name="gadgetron_inr_node" target="run" type="python"' in made.text
    assert (prefix / ENTRY).is_file()


def test_what_is_written_is_told_and_a_second_time_changes_nothing(prefix, capsys):
    assert install(prefix) == 0
    told = capsys.readouterr().out
    written = set(tree(prefix)) - {str(CHAINS / "default.xml"), "bin/python"}
    for name in written:
        assert f"wrote {prefix / name}\n" in told
    assert told.count("wrote ") == len(written)
    assert f"execute chains run with {prefix / 'bin' / 'python'}, gadgetron-inr 1.2.3" in told
    before = tree(prefix)
    assert install(prefix) == 0
    told = capsys.readouterr().out
    assert told.count("unchanged ") == len(written)
    assert tree(prefix) == before


def test_a_dry_run_touches_nothing(prefix, capsys):
    before = tree(prefix)
    assert install(prefix, "--dry-run") == 0
    assert f"would write {prefix / CHAINS / 'inr_cardiac.xml'}" in capsys.readouterr().out
    assert tree(prefix) == before
    install(prefix)
    before = tree(prefix)
    assert install(prefix, "--dry-run", "--uninstall") == 0
    assert f"would remove {prefix / CHAINS / 'inr_cardiac.xml'}" in capsys.readouterr().out
    assert tree(prefix) == before


def test_what_others_wrote_is_never_overwritten_and_then_nothing_is(prefix, capsys):
    foreign = prefix / CHAINS / "inr_cardiac_connect.xml"
    foreign.write_text("<configuration>somebody else's</configuration>")
    before = tree(prefix)
    assert install(prefix) == 1
    error = capsys.readouterr().err
    assert f"nothing was overwritten: {foreign} is not ours" in error
    assert "--force" in error
    assert tree(prefix) == before
    assert install(prefix, "--dry-run") == 0
    told = capsys.readouterr().out
    assert f"would refuse, not ours: {foreign}" in told
    assert "nothing would be written" in told
    assert install(prefix, "--dry-run", "--force") == 0
    told = capsys.readouterr().out
    assert f"would overwrite, not ours: {foreign}" in told
    assert "nothing would" not in told
    assert install(prefix, "--force") == 0
    assert f"overwrote, not ours: {foreign}" in capsys.readouterr().out
    assert b"somebody" not in foreign.read_bytes()


def test_a_link_is_not_followed(prefix, tmp_path, capsys):
    elsewhere = tmp_path / "elsewhere.xml"
    elsewhere.write_text("kept")
    (prefix / CHAINS / "inr_cardiac.xml").symlink_to(elsewhere)
    assert install(prefix) == 1
    assert install(prefix, "--force") == 0
    assert elsewhere.read_text() == "kept"
    assert not (prefix / CHAINS / "inr_cardiac.xml").is_symlink()


def test_a_change_by_hand_is_kept(prefix, capsys):
    install(prefix)
    edited = prefix / CHAINS / "inr_cardiac.xml"
    edited.write_text(edited.read_text().replace('name="coils" value="8"', 'name="coils" value="12"'))
    for option in ("--node=other:1", "--uninstall"):
        assert install(prefix, option) == 1
        assert f"{edited} is ours, changed by hand" in capsys.readouterr().err
        assert 'value="12"' in edited.read_text()
    assert install(prefix, "--uninstall", "--dry-run") == 0
    told = capsys.readouterr().out
    assert f"would refuse {edited}" in told
    assert "nothing would be removed" in told
    assert install(prefix, "--uninstall", "--dry-run", "--force") == 0
    told = capsys.readouterr().out
    assert f"would remove {edited}" in told
    assert "nothing would" not in told
    assert install(prefix, "--uninstall", "--force") == 0
    assert f"removed {edited} (ours, changed by hand)" in capsys.readouterr().out
    assert not edited.exists()


def test_other_options_replace_what_we_wrote(prefix, capsys):
    install(prefix)
    assert install(prefix, "--noise-adjust", "--compress", "6") == 0
    told = capsys.readouterr().out
    assert f"replaced {prefix / CHAINS / 'inr_cardiac.xml'}" in told
    assert f"unchanged {prefix / ENTRY}" in told


def test_uninstalling_leaves_the_installation_as_it_was(prefix, capsys):
    before = tree(prefix)
    install(prefix)
    assert install(prefix, "--uninstall") == 0
    assert f"removed {prefix / ENTRY}" in capsys.readouterr().out
    assert tree(prefix) == before
    assert install(prefix, "--uninstall") == 0
    assert f"nothing of ours in {prefix}" in capsys.readouterr().out


def test_uninstalling_leaves_what_others_wrote(prefix):
    install(prefix)
    other = prefix / CHAINS / "inr_mine.xml"
    other.write_text("<configuration/>")
    assert install(prefix, "--uninstall") == 0
    assert other.is_file()


def class_names(text: str) -> list[str]:
    stream = text[text.index("<stream>") :]
    return [line.strip().removeprefix("<classname>").removesuffix("</classname>") for line in stream.splitlines() if "<classname>" in line]


@pytest.mark.parametrize("name", ["inr_cardiac.xml", "inr_cardiac_connect.xml", "inr_cardiac_distributed.xml"])
def test_stages_before_us_are_in_the_chain_and_our_node_is_told(name):
    text = installation.files(Options(noise_adjust=True, coils=6))[CHAINS / name].decode()
    made = chain.parse(text, name, host=False)
    assert made.settings().whitened is True
    assert made.settings().compressed is True
    assert class_names(text)[:3] == ["NoiseAdjustGadget", "PCACoilGadget", "CoilReductionGadget"]
    assert class_names(text).count("NoiseAdjustGadget") == 1
    assert '<property name="coils_out" value="6" />' in text
    plain = chain.parse(installation.files(Options())[CHAINS / name].decode(), name, host=False)
    assert plain.settings().compressed is None
    if made.form != "distributed":
        assert plain.settings().whitened is None
        assert class_names(plain.text) == []


def test_where_gadgetron_is(prefix, tmp_path, monkeypatch):
    monkeypatch.delenv("GADGETRON_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(SettingError, match="no gadgetron is on PATH"):
        installation.home(None)
    with pytest.raises(SettingError, match="holds no share/gadgetron/config: not a Gadgetron installation"):
        installation.home(str(tmp_path / "empty"))
    program = prefix / "bin" / "gadgetron"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    assert installation.home(None) == prefix.resolve()
    monkeypatch.setenv("PATH", os.devnull)
    monkeypatch.setenv("GADGETRON_HOME", str(prefix))
    assert installation.home(None) == prefix.resolve()


def test_a_python_that_lacks_the_package_is_told(prefix, capsys):
    python = python_that(prefix, "echo \"ModuleNotFoundError: No module named 'gadgets'\" >&2; exit 1")
    assert install(prefix) == 0
    told = capsys.readouterr().out
    assert f"execute chains will fail: {python} cannot run the node (ModuleNotFoundError: No module named 'gadgets')" in told


def test_the_python_of_these_tests_can_run_the_node(prefix, capsys):
    python_that(prefix, f'exec {sys.executable} "$@"')
    assert install(prefix, "--dry-run") == 0
    assert (
        f"execute chains run with {prefix / 'bin' / 'python'}, gadgetron-inr {metadata.version('gadgetron-inr')}" in capsys.readouterr().out
    )


def test_bad_options_are_named(prefix, capsys):
    assert install(prefix, "--node", "nowhere") == 1
    assert "--node: 'nowhere' is not HOST:PORT" in capsys.readouterr().err
    assert install(prefix, "--compress", "0") == 1
    assert "--compress: 0" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "<configuration/>", "# written by gadgetron-inr 1, sha256 1\n"])
def test_files_without_our_mark_are_foreign(tmp_path, text):
    path = tmp_path / "file"
    path.write_text(text)
    assert installation.state(path) is State.FOREIGN
    assert installation.state(tmp_path / "none") is State.ABSENT
