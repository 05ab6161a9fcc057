"""The embedded server as Gadgetron speaks to a node that it connects to, in bytes made by struct."""

from __future__ import annotations

import numpy as np
import pytest

from gadgets.server import Server

DECLARATION = '<?xml version="1.0"?>\n'


def ids(messages) -> list[int]:
    return [number for number, _ in messages]


def node_script(**properties: str) -> str:
    inner = "".join(f'\t<property name="{name}" value="{value}" />\n' for name, value in properties.items())
    return f"{DECLARATION}<configuration>\n{inner}</configuration>\n"


def worker_script(stream: str) -> str:
    return f'{DECLARATION}<configuration><version>2</version><readers/><writers/><stream key="">{stream}</stream></configuration>'


OURS = "<gadget><dll>gadgetron_inr</dll><classname>cardiac</classname>{}</gadget>"


def test_images_and_close_but_no_text(talk, raw, fake, pixel_sums, image_sums):
    scan = raw.scan(8)
    messages = talk(raw.script(node_script(readouts_per_image="2")), raw.header(), scan)
    assert ids(messages) == [1022] * 4 + [4]
    np.testing.assert_allclose(image_sums(messages), pixel_sums(scan, 2), rtol=1e-6)
    assert fake.ran[0][0].properties == {"readouts_per_image": "2"}


@pytest.mark.parametrize("script", [DECLARATION, "", DECLARATION + "<configuration/>\n"])
def test_a_node_without_properties(script, talk, raw, fake):
    assert ids(talk(raw.script(script), raw.header(), raw.scan(8))) == [1022] * 2 + [4]
    assert fake.ran[0][0].properties == {}


def test_an_error_waits_for_gadgetrons_close(dial, raw):
    """Gadgetron loses an ERROR that comes before all its input is read."""
    scan = raw.scan(40)
    with dial() as peer:
        peer.send(raw.script(node_script(readouts_per_images="2")), raw.header(), scan[:20000])
        assert peer.silent()
        peer.send(scan[20000:])
        messages = peer.rest()
    assert ids(messages) == [8, 4]
    assert messages[0][1] == (
        "readouts_per_images: unknown name 'readouts_per_images'. Did you mean 'readouts_per_image'? "
        "Known: lambda, mode, readouts_per_image, size, via."
    )


def test_images_before_an_error_stay_sent(talk, raw):
    messages = talk(raw.script(node_script(readouts_per_image="2", mode="refuse")), raw.header(), raw.scan(8))
    assert ids(messages) == [1022] * 4 + [8, 4]
    assert messages[-2][1] == "mode: 'refuse' is refused. Choose another."


def test_a_fault_nobody_foresaw_reaches_gadgetron(talk, raw):
    messages = talk(raw.script(node_script(mode="crash")), raw.header(), raw.scan(8))
    assert ids(messages) == [8, 4]
    assert "ZeroDivisionError: a fault nobody foresaw" in messages[0][1]


def test_properties_as_child_elements_are_understood_or_refused(talk, raw, fake):
    script = "<configuration><property><name>readouts_per_image</name><value>2</value></property></configuration>"
    messages = talk(raw.script(script), raw.header(), raw.scan(8))
    assert ids(messages) in ([1022] * 4 + [4], [8, 4])


def test_a_recon_message_is_named(talk, raw):
    messages = talk(raw.script(node_script()), raw.header(), b"\xff\x03" + bytes(64))
    assert ids(messages) == [8, 4]
    assert "1023 (recon data) is not taken here" in messages[0][1]


def test_an_image_among_readouts_is_named(talk, raw, transcript):
    image = transcript("connect_1_node_to_server")[:-2]
    messages = talk(raw.script(node_script()), raw.header(), image, raw.scan(8))
    assert ids(messages) == [8, 4]
    assert "message: Image after" in messages[0][1]


class TestWorker:
    def test_properties_of_the_gadget(self, talk, raw, fake):
        gadget = OURS.format('<property name="readouts_per_image" value="8"/><property><name>via</name><value>worker</value></property>')
        assert ids(talk(raw.script(worker_script(gadget)), raw.header(), raw.scan(8))) == [1022, 4]
        assert fake.ran[0][0].chain == "cardiac.xml"
        assert fake.ran[0][0].properties == {"readouts_per_image": "8", "via": "worker"}

    @pytest.mark.parametrize(
        ("stream", "words"),
        [
            ("", "no gadget"),
            (OURS.format("") * 2, "a second gadget 'cardiac'"),
            (
                "<gadget><dll>gadgetron_mricore</dll><classname>cardiac</classname></gadget>",
                "of library 'gadgetron_mricore' cannot be hosted",
            ),
            ("<gadget/>", "gadget '' of library ''"),
            ("<parallel/>", "<parallel> cannot be hosted in a distributed stream"),
            (OURS.format('<property value="1"/>'), "<property> has no name"),
            (OURS.format('<property name="via" value="1"/>' * 2), "property 'via' is given twice"),
            (OURS.format('<property name="vias" value="1"/>'), "unknown name 'vias'. Did you mean 'via'?"),
        ],
    )
    def test_what_cannot_be_hosted_is_named(self, stream, words, talk, raw, fake):
        messages = talk(raw.script(worker_script(stream)), raw.header(), raw.scan(8))
        assert ids(messages) == [8, 4]
        assert words in messages[0][1]
        assert not fake.ran


class TestNodeOnly:
    @pytest.fixture
    def server(self, fake):
        with Server(port=0, application=fake.record, node=True) as running:
            yield running

    def test_gadgetron_is_served(self, talk, raw):
        assert ids(talk(raw.script(node_script()), raw.header(), raw.scan(8))) == [1022] * 2 + [4]

    @pytest.mark.parametrize("client", ["name", "script"])
    def test_clients_are_refused(self, client, talk, raw, chain_xml, fake):
        config = raw.config_name("cardiac") if client == "name" else raw.script(chain_xml())
        messages = talk(config, raw.header(), raw.scan(8))
        assert ids(messages) == [8, 4]
        assert "only Gadgetron is served here" in messages[0][1]
        assert not fake.ran
