"""Chains that hand slices to workers: their grammar, their gadget's properties, and that they are for a real Gadgetron only."""

from __future__ import annotations

import pytest

from gadgets import chain
from gadgets.cli import main
from gadgets.commands.replay import configuration
from gadgets.settings import chain_settings
from recon_core.errors import SettingError

TEXT = chain.load("cardiac_distributed").text
GADGET = TEXT[TEXT.index("<gadget>\n                    <name>Reconstruction") : TEXT.index("</stream>\n        </distributed>")].rstrip()


def refused(text: str, **options) -> SettingError:
    with pytest.raises(SettingError) as caught:
        chain.parse(text, "case.xml", **options)
    return caught.value


def test_the_packaged_one_says_what_the_plain_one_says_but_for_what_a_worker_cannot_know():
    entry, plain = chain.load("cardiac_distributed.xml"), chain.load("cardiac")
    assert (entry.form, entry.application, entry.address, entry.port) == ("distributed", "cardiac", None, None)
    assert entry.properties == {**plain.properties, "image_type": "float", "whitened": "true"}
    assert entry.settings() == chain_settings(entry.properties)


def test_it_is_for_a_gadgetron_with_workers_only(capsys):
    assert "cardiac_distributed.xml" in chain.packaged()
    assert "cardiac_distributed.xml" not in chain.known()
    with pytest.raises(SettingError, match="unknown name"):
        chain.load_known("cardiac_distributed")
    assert "cannot run here" in refused(TEXT).problem
    assert main(["chain", "check", "--gadgetron", "cardiac_distributed"]) == 0
    assert "OK, distributed form (parts of the scan go to workers)" in capsys.readouterr().out
    assert main(["chain", "list"]) == 0
    assert "distributed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("<classname>cardiac</classname>", "<classname>cardiacs</classname>", "unknown chain 'cardiacs'"),
        (GADGET, f"{GADGET}<gadget><dll>gadgetron_mricore</dll><classname>X</classname></gadget>", "<gadget> beside it"),
        (GADGET, GADGET * 2, "a second gadget of ours"),
        (GADGET, "", "no reconstruction node in the stream"),
        ("</distributed>", f"</distributed>{GADGET}", "a second gadget of ours"),
        ("ImageReader", "BufferReader", "no ImageReader for the workers"),
        ("AcquisitionWriter", "BufferWriter", "no AcquisitionWriter for the workers"),
        ('<property name="coils"', '<property name="coil"', "coil: unknown name 'coil'"),
    ],
)
def test_what_workers_could_not_run_is_named_with_its_line(old, new, words):
    text = TEXT.replace(old, new, 1)
    assert text != TEXT
    with pytest.raises(SettingError) as caught:
        chain.parse(text, "case.xml", host=False).settings()
    assert words in str(caught.value)
    assert "case.xml, line " in str(caught.value)


def test_our_gadget_belongs_into_a_distributed_stream():
    start, end = TEXT.index("<distributed>"), TEXT.index("</distributed>") + len("</distributed>")
    error = refused(TEXT[:start] + GADGET + TEXT[end:], host=False)
    assert "a gadget of gadgetron_inr outside a distributed stream" in error.problem
    assert "<distributed>" in error.cure


def test_overrides_reach_the_gadget(tmp_path):
    path = tmp_path / "slices.xml"
    path.write_text(TEXT, encoding="utf-8")
    config, _ = configuration("", str(path), {"coils": "3", "solver.rank": "2"})
    made = chain.parse(config.text, "sent", host=False)
    assert made.form == "distributed"
    assert (made.settings().coils, made.settings().solver_settings) == (3, {"rank": 2})
    assert made.properties == {**chain.load("cardiac_distributed").properties, "coils": "3", "solver.rank": "2"}


def test_a_node_by_the_name_of_the_entry_is_ours():
    text = chain.load("cardiac").text.replace('name="gadgets.node"', 'name="gadgetron_inr_node"')
    made = chain.parse(text)
    assert made.form == "execute"
    assert chain.parse(chain.with_overrides(made, {"coils": "2"})).settings().coils == 2
