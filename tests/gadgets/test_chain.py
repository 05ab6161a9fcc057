"""Chain files: grammar, what can be hosted, a node's configuration, overrides."""

from __future__ import annotations

from pathlib import Path

import pytest

from gadgets import chain
from gadgets.commands import chain as command
from gadgets.settings import chain_settings
from recon_core.errors import SettingError

PROJECT = Path(__file__).resolve().parents[2]
CARDIAC = (PROJECT / "pipelines" / "cardiac.xml").read_text(encoding="utf-8")
SOLVERS = {
    "cardiac": "subspace_inr",
    "cine": "low_rank_sparse",
    "dce": "grasp_pro",
    "mpqmri": "lorein",
    "speech": "grasp_pro",
}
EXECUTE = '<execute name="gadgets.node" target="run" type="python"/>'
GADGET = "<gadget><name>Noise</name><dll>gadgetron_mricore</dll><classname>NoiseAdjustGadget</classname></gadget>"


def refused(text: str, **options) -> SettingError:
    with pytest.raises(SettingError) as caught:
        chain.parse(text, "case.xml", **options)
    return caught.value


def line_of(text: str, words: str) -> int:
    return text[: text.index(words)].count("\n") + 1


def test_packaged_chains_are_found_by_name_and_hold_valid_properties():
    names = {name for application in SOLVERS for name in (f"{application}.xml", f"{application}_connect.xml")}
    assert names <= set(chain.known())
    for name in chain.known():
        entry = chain.load(name)
        assert entry == chain.load(name.removesuffix(".xml")) == chain.load_known(name)
        assert entry.application in SOLVERS
        assert entry.settings() == chain_settings(entry.properties)
    for application, solver in SOLVERS.items():
        assert chain.load(application).settings().solver == chain.load(f"{application}_connect").settings().solver == solver


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_execute_and_connect_forms_differ_only_in_the_form(name):
    execute, connect = chain.load(name), chain.load(f"{name}_connect")
    assert (execute.form, execute.address, execute.port) == ("execute", None, None)
    assert (connect.form, connect.address, connect.port) == ("connect", "localhost", 18000)
    assert execute.properties == connect.properties


def test_load_takes_a_path_and_load_known_does_not(tmp_path: Path):
    path = tmp_path / "mine.xml"
    path.write_text(CARDIAC.replace('value="8"', 'value="5"'), encoding="utf-8")
    assert chain.load(path).settings().coils == 5
    assert chain.load(str(path)).name == "mine.xml"
    with pytest.raises(SettingError, match=r"cardiac\.xml"):
        chain.load_known(str(path))
    with pytest.raises(SettingError, match=r"cardiac\.xml"):
        chain.load_known("../pipelines/cardiac")


def test_unknown_chain_is_told_with_the_known_ones():
    with pytest.raises(SettingError, match=r"cardiac\.xml, cardiac_connect\.xml, cardiac_distributed\.xml, cine\.xml") as caught:
        chain.load("cardac.xml")
    assert "'cardiac.xml'" in caught.value.cure


def test_file_that_is_not_text_is_refused(tmp_path: Path):
    path = tmp_path / "latin.xml"
    path.write_bytes(CARDIAC.encode() + b"<!-- \xff -->")
    with pytest.raises(SettingError, match="UTF-8"):
        chain.load(path)


# (what is replaced, by what, words whose line the error names, words of the problem, words of the cure)
GRAMMAR = [
    ("<version>2</version>", "", "<configuration>", "no <version>", "<version>2</version>"),
    ("<version>2</version>", "<version>1</version>", "<version>", "version '1'", "version 2"),
    ("<version>2</version>", "<version>2</version><version>2</version>", "<version>2", "a second <version>", "Keep one"),
    ("<readers>", "<reders>", "</readers>", "mismatched tag", "Mend"),
    ("<stream>", "<stream><gadgit/>", "<gadgit/>", "unknown tag <gadgit> in <stream>", "Did you mean <gadget>?"),
    ("<slot>1008</slot>", "<slot>x</slot>", "<slot>x", "slot 'x'", "0 to 65535"),
    ("<slot>1008</slot>", "<slot>1008</slot><slots/>", "<slots/>", "unknown tag <slots>", "<slot>"),
    ("<slot>1008</slot>", "<slot/>", "<slot/>", "slot '' is not a message id", "0 to 65535"),
    (
        "<slot>1008</slot>\n            <dll>gadgetron_core_readers</dll>\n            <classname>AcquisitionReader",
        "<dll>gadgetron_core_readers</dll><classname>ImageReader",
        "<readers>",
        "no reader for readouts",
        "AcquisitionReader",
    ),
    ("<classname>ImageWriter</classname>", "<classname/>", "<classname/>", "<classname> is empty", "value"),
    ("<slot>1008</slot>", "<slot>1009</slot>", "<readers>", "no reader for readouts", "AcquisitionReader"),
    ("ImageWriter", "AcquisitionWriter", "<writers>", "no writer for images", "ImageWriter"),
    (EXECUTE, "", "<external>", "neither <execute> nor <connect>", EXECUTE),
    (EXECUTE, EXECUTE * 2, "<external>", "more than one", EXECUTE),
    (EXECUTE, '<execute name="gadgets.node" type="python"/>', "<execute", "no target", EXECUTE),
    (EXECUTE, '<execute target="run" type="python"/>', "<execute", "no name", EXECUTE),
    (EXECUTE, "<connect/>", "<connect/>", "no port", "port="),
    (EXECUTE, '<connect port="99999"/>', "<connect", "'99999'", "1 to 65535"),
    (EXECUTE, f"{EXECUTE}<configuration/>", "<configuration>\n                <property", "a second <configuration>", "Keep one"),
    ('<property name="coils" value="8"/>', '<property name="coils"/>', '<property name="coils"/>', "no value", "value="),
    ('<property name="coils" value="8"/>', '<property value="8"/>', '<property value="8"/>', "no name", "name="),
    ('name="coils"', 'name="seed"', '<property name="seed" value="0"/>', "'seed' is given twice", "line 32"),
    ('<property name="coils" value="8"/>', "<setting/>", "<setting/>", "unknown tag <setting>", "<property name="),
    (
        '<property name="coils" value="8"/>',
        "<property><name>coils</name><value>8</value></property>",
        "<property><name>",
        "child elements is lost",
        '<property name="',
    ),
    (
        "<stream>",
        f"<stream><parallelprocess><purestream>{EXECUTE}</purestream></parallelprocess>",
        "<execute",
        "in <purestream>",
        "<gadget>",
    ),
]


@pytest.mark.parametrize(("old", "new", "place", "problem", "cure"), GRAMMAR)
@pytest.mark.parametrize("host", [True, False])
def test_grammar_error_names_line_and_cure(old, new, place, problem, cure, host):
    assert old in CARDIAC
    text = CARDIAC.replace(old, new, 1)
    error = refused(text, host=host)
    assert error.field == f"case.xml, line {line_of(text, place)}"
    assert problem in error.problem
    assert cure in error.cure


def test_a_slot_left_out_is_the_class_own():
    text = CARDIAC.replace("<slot>1008</slot>", "").replace("<slot>1026</slot>", "")
    assert chain.parse(text).properties == chain.parse(CARDIAC).properties


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("", 1, "not well-formed"),
        ("cardiac", 1, "not well-formed"),
        ("<configuration>\n<version>2", 2, "not well-formed"),
        ("\n<gadgetronStreamConfiguration/>", 2, "version-1"),
        ("<ismrmrdHeader/>", 1, "not a chain"),
        ('<!DOCTYPE c [<!ENTITY a "b">]>\n<configuration/>', 1, "DTD"),
        ("<configuration>" + "<a>" * 100 + "</a>" * 100 + "</configuration>", 1, "elements deep"),
        ("<configuration><version>2</version><readers/><writers/></configuration>", 1, "no <stream>"),
        ("<configuration>\n<version>2</version><readers/><writers/>\n<stream/></configuration>", 3, "no reconstruction node"),
    ],
)
def test_text_that_is_no_chain_is_refused(text, line, problem):
    error = refused(text)
    assert error.field == f"case.xml, line {line}"
    assert problem in error.problem


@pytest.mark.parametrize(
    ("extra", "name"),
    [
        (GADGET, "gadget NoiseAdjustGadget named Noise of gadgetron_mricore"),
        ('<external><execute name="other.module" target="go" type="python"/></external>', "python node other.module.go"),
        ('<external><execute name="gadgets.node" target="walk" type="python"/></external>', "python node gadgets.node.walk"),
        ('<external><execute name="recon" type="matlab"/></external>', "matlab node recon"),
        (f"<parallelprocess><purestream>{GADGET}</purestream></parallelprocess>", "<parallelprocess> with gadget NoiseAdjustGadget"),
        (
            (
                f"<parallel><branch><dll>d</dll><classname>B</classname></branch><stream key='a'>{GADGET}</stream>"
                "<merge><dll>d</dll><classname>M</classname></merge></parallel>"
            ),
            "<parallel> with gadget NoiseAdjustGadget",
        ),
        (
            (
                "<distributed><readers/><writers/><distributor><dll>d</dll><classname>D</classname></distributor>"
                f"<stream>{GADGET}</stream></distributed>"
            ),
            "<distributed> with gadget NoiseAdjustGadget",
        ),
        (
            f"<puredistributed><readers/><writers/><purestream>{GADGET}</purestream></puredistributed>",
            "<puredistributed> with gadget NoiseAdjustGadget",
        ),
    ],
)
def test_what_cannot_be_hosted_is_refused_by_name_and_admitted_for_gadgetron(extra, name):
    text = CARDIAC.replace("<stream>", f"<stream>\n{extra}", 1)
    error = refused(text)
    assert error.field == f"case.xml, line {line_of(text, extra[:12])}"
    assert error.problem.startswith(name)
    assert "Gadgetron" in error.cure
    assert chain.parse(text, "case.xml", host=False).properties == chain.load("cardiac").properties


def test_external_inside_distributed_is_refused_everywhere():
    text = CARDIAC.replace(
        "<stream>",
        "<stream><distributed><readers/><writers/><distributor><dll>d</dll><classname>D</classname></distributor>"
        f"<stream><external>{EXECUTE}</external></stream></distributed>",
        1,
    )
    for host in (True, False):
        assert "loses its target" in refused(text, host=host).problem


def test_two_nodes_are_refused():
    text = CARDIAC.replace("</stream>", f"<external>{EXECUTE}</external></stream>")
    assert "second external node" in refused(text).problem


def test_gadget_properties_may_be_child_elements_but_not_twice():
    pair = "<property><name>a</name><value>1</value></property>"
    text = CARDIAC.replace("<stream>", f"<stream>{GADGET.replace('</gadget>', pair + '</gadget>')}", 1)
    chain.parse(text, host=False)
    assert "'a' is given twice" in refused(text.replace(pair, pair * 2), host=False).problem


def test_namespaces_do_not_matter():
    text = CARDIAC.replace("<configuration>", '<configuration xmlns="http://gadgetron.sf.net/gadgetron">', 1)
    entry = chain.parse(text)
    assert entry.properties == chain.load("cardiac").properties
    again = chain.with_overrides(entry, {"coils": "3"})
    assert "ns0" not in again
    assert chain.parse(again).settings().coils == 3


@pytest.mark.parametrize(("name", "value", "words"), [("coils", "0", "0 is below 1"), ("coilz", "1", "'coils'"), ("solver.x", "1", "'x'")])
def test_bad_property_is_told_with_its_line(name, value, words):
    text = CARDIAC.replace('name="coils" value="8"', f'name="{name}" value="{value}"')
    with pytest.raises(SettingError, match=r"below|unknown") as caught:
        chain.parse(text, "case.xml").settings()
    assert caught.value.field == f"case.xml, line 32: property {name}"
    assert words in str(caught.value)


def test_bad_override_is_not_blamed_on_the_chain():
    with pytest.raises(SettingError, match="0 is below 1") as caught:
        chain.load("cardiac").settings({"coils": "0"})
    assert caught.value.field == "coils"


def test_overrides_replace_in_place_and_add_and_keep_the_rest():
    text = CARDIAC.replace('<property name="solver"', '<!-- kept -->\n<property name="solver"')
    entry = chain.parse(text, "case.xml")
    made = chain.with_overrides(entry, {"coils": "3", "solver.smoothness": "a<b&\"c'"})
    again = chain.parse(made, "made.xml")
    assert again.properties == {**entry.properties, "coils": "3", "solver.smoothness": "a<b&\"c'"}
    assert list(again.properties)[:-1] == list(entry.properties)
    assert "<!-- kept -->" in made
    assert chain.with_overrides(again, {}) == made


def test_overrides_of_a_node_without_configuration():
    start, end = CARDIAC.index("            <configuration>"), CARDIAC.index("</configuration>") + len("</configuration>")
    entry = chain.parse(CARDIAC[:start] + CARDIAC[end:])
    assert entry.properties == {}
    assert entry.settings() == chain_settings({})
    assert chain.parse(chain.with_overrides(entry, {"seed": "4"})).settings().seed == 4


def test_overrides_go_to_our_node_and_not_to_another():
    other = '<external><execute name="other" target="go" type="python"/><configuration/></external>'
    entry = chain.parse(CARDIAC.replace("<stream>", f"<stream>{other}"), host=False)
    again = chain.parse(chain.with_overrides(entry, {"seed": "4"}), host=False)
    assert again.properties["seed"] == "4"


@pytest.mark.parametrize("text", ["", '<?xml version="1.0"?>', '<?xml version="1.0" encoding="UTF-8"?>\n\0', "<configuration/>"])
def test_node_without_configuration_has_no_properties(text):
    assert chain.node_properties(text) == {}


def test_node_configuration_as_gadgetron_sends_it(wire_dir: Path):
    raw = (wire_dir / "connect_1_server_to_node.bin").read_bytes()
    length = int.from_bytes(raw[2:6], "little")
    assert chain.node_properties(raw[6 : 6 + length].decode()) == {"via": "connect"}


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("<configuration>\n<version>2</version></configuration>", 2, "<version> where properties are expected"),
        ("<parameters/>", 1, "<parameters> where properties are expected"),
        ("<configuration>\n<property name='a'/></configuration>", 2, "no value"),
        ("<configuration>", 1, "not well-formed"),
    ],
)
def test_bad_node_configuration_names_the_line(text, line, words):
    with pytest.raises(SettingError) as caught:
        chain.node_properties(text)
    assert caught.value.field == f"node configuration, line {line}"
    assert words in caught.value.problem


def test_manual_holds_the_table_of_properties():
    manual = (PROJECT / "docs" / "chains.md").read_text(encoding="utf-8")
    assert command.properties_table() in manual, "write the output of `gadgetron-inr chain properties` into docs/chains.md"
