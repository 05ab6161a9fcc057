"""The embedded server as Gadgetron's clients and MRD consoles speak to it, in bytes made by struct."""

from __future__ import annotations

import json
import re
import socket
import struct

import ismrmrd
import numpy as np
import pytest
from gadgetron.external import constants as pypi_constants
from gadgetron.external import readers as pypi_readers
from gadgetron.external import writers as pypi_writers


def ids(messages) -> list[int]:
    return [number for number, _ in messages]


class TestGadgetronClient:
    def test_images_status_and_close(self, talk, raw, fake, pixel_sums, image_sums):
        scan = raw.scan(8)
        messages = talk(raw.config_name("cardiac.xml"), raw.header("<ismrmrdHeader>ü</ismrmrdHeader>"), scan)
        assert ids(messages) == [1022, 1022, 5, 4]
        np.testing.assert_allclose(image_sums(messages), pixel_sums(scan, 4), rtol=1e-6)
        assert messages[2][1] == "8 readouts"
        assert fake.ran[0][1] == "<ismrmrdHeader>ü</ismrmrdHeader>"

    def test_images_leave_while_readouts_arrive(self, dial, raw):
        scan = raw.scan(8)
        noise, spoke = 2 + 340 + 8 * 16 * 3, 2 + 340 + 8 * 16 + 8 * 16 * 3
        first = scan[: 2 * noise + 4 * spoke]
        with dial() as peer:
            peer.send(raw.config_name("cardiac"), raw.header(), first)
            head = peer.sock.recv(2)
            assert struct.unpack("<H", head) == (1022,)
            peer.send(scan[len(first) :])
            assert len(raw.parse(head + remaining(peer))) == 4

    def test_a_script_carries_its_properties(self, talk, raw, fake, chain_xml):
        messages = talk(raw.script(chain_xml(readouts_per_image="2")), raw.header(), raw.scan(8))
        assert ids(messages) == [1022] * 4 + [5, 4]
        assert fake.ran[0][0].properties == {"readouts_per_image": "2"}

    def test_unknown_chain_is_refused_with_the_known_ones(self, talk, raw, fake):
        messages = talk(raw.config_name("cardiacs.xml"), raw.header(), raw.scan())
        assert ids(messages) == [5, 4]
        assert messages[0][1] == (
            "[gadgetron-inr] ERROR: chain: unknown name 'cardiacs.xml'. Did you mean 'cardiac.xml'? Known: cardiac.xml, speech.xml."
        )
        assert not fake.ran

    @pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "pipelines/cardiac.xml"])
    def test_a_name_never_reaches_a_file(self, name, fake, raw):
        """The real chains, not the fake ones: a peer must not choose files of this machine."""
        from gadgets import chain
        from gadgets.wire_requests import default_application

        pytest.importorskip("gadgets.stages")
        assert default_application().load is chain.load_known
        with pytest.raises(ValueError, match=re.escape(f"unknown name {name!r}")):
            chain.load_known(name)

    def test_a_gadget_that_cannot_be_hosted_is_refused_by_name(self, talk, raw, chain_xml, fake):
        gadget = "<gadget><dll>gadgetron_mricore</dll><classname>NoiseAdjustGadget</classname></gadget>"
        messages = talk(raw.script(chain_xml(gadget)), raw.header(), raw.scan())
        assert ids(messages) == [5, 4]
        assert "NoiseAdjustGadget" in messages[0][1]
        assert not fake.ran

    def test_unknown_property_is_refused_with_the_nearest(self, talk, raw, chain_xml):
        messages = talk(raw.script(chain_xml(readout_per_image="2")), raw.header(), raw.scan())
        assert ids(messages) == [5, 4]
        assert "readout_per_image" in messages[0][1]
        assert "Did you mean 'readouts_per_image'?" in messages[0][1]

    @pytest.mark.parametrize("script", ["<configuration><stream>", "<other/>", "<?xml version='1.0'?><gadgetronStreamConfiguration/>"])
    def test_scripts_that_are_no_chains_are_refused(self, script, talk, raw):
        messages = talk(raw.script(script), raw.header(), raw.scan())
        assert ids(messages) == [5, 4]
        assert messages[0][1].startswith("[gadgetron-inr] ERROR: sent chain, line 1")

    def test_images_sent_before_an_error_stay_sent(self, talk, raw, chain_xml):
        messages = talk(raw.script(chain_xml(readouts_per_image="2", mode="refuse")), raw.header(), raw.scan(8))
        assert ids(messages) == [1022] * 4 + [5, 4]
        assert messages[-2][1] == "[gadgetron-inr] ERROR: mode: 'refuse' is refused. Choose another."

    def test_an_error_comes_at_once_and_close_only_behind_the_clients_close(self, dial, raw):
        """An earlier CLOSE would let the server's socket be closed under the client's sending: reset, and words lost."""
        scan = raw.scan(40)
        with dial() as peer:
            peer.send(raw.config_name("nothing.xml"), raw.header(), scan[:20000])
            words = peer.sock.recv(6, socket.MSG_WAITALL)
            number, length = struct.unpack("<HI", words)
            assert number == 5
            assert b"unknown name" in peer.sock.recv(length, socket.MSG_WAITALL)
            assert peer.silent()
            peer.send(scan[20000:])
            assert peer.rest() == [(4, None)]

    def test_a_fault_nobody_foresaw_is_told_and_logged(self, talk, raw, chain_xml, caplog):
        messages = talk(raw.script(chain_xml(mode="crash")), raw.header(), raw.scan())
        assert ids(messages) == [5, 4]
        assert "ZeroDivisionError: a fault nobody foresaw" in messages[0][1]
        assert any(record.exc_info and record.exc_info[0] is ZeroDivisionError for record in caplog.records)

    def test_an_application_that_stops_reading_early_is_drained(self, talk, raw, chain_xml):
        messages = talk(raw.script(chain_xml(mode="early")), raw.header(), raw.scan(50))
        assert messages == [(5, "enough"), (4, None)]

    def test_an_empty_scan_is_an_error(self, talk, raw):
        messages = talk(raw.config_name("cardiac.xml"), raw.header(), raw.CLOSE)
        assert ids(messages) == [5, 4]
        assert "no imaging readout" in messages[0][1]

    @pytest.mark.parametrize("config", ["cardiac.xml", "unknown.xml"])
    def test_a_connection_without_header_is_only_closed(self, config, talk, raw):
        """A client asking for a noise dependency is aborted by any TEXT."""
        assert talk(raw.config_name(config), raw.CLOSE) == [(4, None)]
        assert talk(raw.script("<configuration><version>2</version><stream/></configuration>"), raw.CLOSE) == [(4, None)]
        assert talk(raw.script("<broken"), raw.CLOSE) == [(4, None)]

    def test_a_connection_cut_before_its_header_is_told_nothing(self, dial, raw):
        with dial() as peer:
            peer.send(raw.config_name("cardiac.xml"))
            peer.sock.shutdown(socket.SHUT_WR)
            assert peer.rest() == [(4, None)]

    def test_only_close(self, talk, raw):
        assert talk(raw.CLOSE) == [(4, None)]

    def test_queries_are_answered_before_and_within_a_scan(self, talk, raw):
        known = talk(raw.query("gadgetron::info", 5), raw.query("gadgetron::info::memory", 2**40), raw.query("no::such", 6), raw.CLOSE)
        assert ids(known) == [7, 7, 7, 4]
        assert [answer[0] for _, answer in known[:3]] == [5, 2**40, 6]
        assert known[0][1][1].startswith("gadgetron-inr ")
        assert int(known[1][1][1]) > 1 << 28
        assert "unknown query 'no::such'" in known[2][1][1]
        assert "gadgetron::info" in known[2][1][1]
        scan = raw.scan(4)
        within = talk(
            raw.query("gadgetron::version", 1),
            raw.config_name("cardiac"),
            raw.query("gadgetron::version", 2),
            raw.header(),
            raw.query("gadgetron::version", 3),
            raw.query("ismrmrd::version", 4) + scan,
        )
        assert sorted(answer[0] for number, answer in within if number == 7) == [1, 2, 3, 4]
        assert [number for number in ids(within) if number != 7] == [1022, 5, 4]

    def test_queries_and_texts_among_readouts(self, talk, raw, caplog):
        caplog.set_level("INFO", "gadgets")
        readout = raw.acquisition(np.ones((2, 16)))
        between = raw.query("gadgetron::version", 9) + raw.text("patient moved")
        messages = talk(raw.config_name("cardiac"), raw.header(), readout, between, readout * 3, raw.CLOSE)
        assert sorted(ids(messages)[:2]) == [7, 1022]
        assert ids(messages)[2:] == [5, 4]
        assert "scan 1: peer says: patient moved" in caplog.messages

    @pytest.mark.parametrize(
        ("parts", "words"),
        [
            (lambda raw: (raw.header(), raw.scan(2)), "first message: Header"),
            (lambda raw: (raw.scan(2),), "first message: Acquisition"),
            (lambda raw: (raw.config_name("cardiac"), raw.scan(2)), "second message: Acquisition"),
            (lambda raw: (raw.config_name("cardiac"), raw.config_name("cardiac"), raw.CLOSE), "second message: ConfigFile"),
            (lambda raw: (raw.config_name("cardiac"), raw.header(), raw.header(), raw.scan(2)), "message: Header after 0 readouts"),
        ],
    )
    def test_messages_out_of_order_are_named(self, parts, words, talk, raw):
        messages = talk(*parts(raw))
        assert ids(messages) == [5, 4]
        assert words in messages[0][1]


class TestMrdConsole:
    def test_a_bare_module_name(self, talk, raw, fake):
        for config in (raw.config_name("cardiac"), raw.script("cardiac"), raw.script("cardiac", nul=True)):
            assert ids(talk(config, raw.header(nul=True), raw.scan())) == [1022, 1022, 5, 4]
        assert [settings.chain for settings, _ in fake.ran] == ["cardiac.xml"] * 3
        assert fake.ran[0][1] == "<ismrmrdHeader/>"

    def test_parameters_override_the_chain_and_its_properties(self, talk, raw, fake):
        parameters = {"parameters": {"config": "speech", "customconfig": "", "readouts_per_image": 8, "via": False}}
        messages = talk(raw.config_name("cardiac"), raw.header(), raw.text(json.dumps(parameters), nul=True), raw.scan(8))
        assert ids(messages) == [1022, 5, 4]
        settings = fake.ran[0][0]
        assert settings.chain == "speech.xml"
        assert settings.properties == {"readouts_per_image": "8", "via": "False"}

    def test_customconfig_wins(self, talk, raw, fake):
        for parameters in ({"config": "nonsense", "customconfig": "speech"}, {"customconfig": "speech", "config": "nonsense"}):
            talk(raw.config_name("cardiac"), raw.header(), raw.text(json.dumps({"parameters": parameters})), raw.scan(8))
        assert [settings.chain for settings, _ in fake.ran] == ["speech.xml"] * 2

    def test_unknown_names_never_run_a_default(self, talk, raw, fake):
        messages = talk(raw.config_name("invertcontrast"), raw.header("Dummy XML header"), raw.scan())
        assert ids(messages) == [5, 4]
        assert "unknown name 'invertcontrast'" in messages[0][1]
        text = raw.text('{"parameters": {"config": "invertcontrast"}}')
        assert "Known: cardiac.xml" in talk(raw.config_name("cardiac"), raw.header(), text, raw.scan())[0][1]
        assert not fake.ran

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("{broken", "parameters: not JSON"),
            ("{}", "parameters: no object `parameters`"),
            ('{"parameters": [1]}', "parameters: no object `parameters`"),
            ('{"parameters": {"via": [1]}}', "parameters.via: [1] is not a single value"),
            ('{"parameters": {"readouts": "3"}}', "readouts: unknown name 'readouts'. Did you mean 'readouts_per_image'?"),
        ],
    )
    def test_bad_parameters_are_named(self, text, words, talk, raw):
        messages = talk(raw.config_name("cardiac"), raw.header(), raw.text(text), raw.scan())
        assert ids(messages) == [5, 4]
        assert words in messages[0][1]

    def test_other_text_is_logged(self, talk, raw, caplog):
        caplog.set_level("INFO", "gadgets")
        messages = talk(raw.config_name("cardiac"), raw.header(), raw.text("table moved"), raw.text("twice"), raw.scan())
        assert ids(messages) == [1022, 1022, 5, 4]
        assert "scan 1: peer says: table moved" in caplog.messages


class TestPypiPackage:
    """The gadgetron and ismrmrd packages as a client: their writers to the server, their readers from it."""

    @pytest.mark.filterwarnings("ignore:This function currently returns:UserWarning")  # ismrmrd 1.14 reading
    def test_a_whole_scan(self, dial):
        random = np.random.default_rng(3)
        with dial() as peer:
            sink = Wrapper(peer.sock)
            sink.write(pypi_constants.GadgetMessageIdentifier.pack(pypi_constants.GADGET_MESSAGE_CONFIG))
            pypi_writers.write_byte_string(sink, b"cardiac", pypi_constants.uint32)
            sink.write(pypi_constants.GadgetMessageIdentifier.pack(pypi_constants.GADGET_MESSAGE_HEADER))
            pypi_writers.write_byte_string(sink, b"<ismrmrdHeader/>", pypi_constants.uint32)
            total = 0.0
            for number in range(4):
                data = (random.standard_normal((2, 64)) + 1j * random.standard_normal((2, 64))).astype(np.complex64)
                total += float(np.abs(data).sum())
                pypi_writers.write_acquisition(
                    sink, ismrmrd.Acquisition.from_array(data, np.zeros((64, 2), np.float32), scan_counter=number)
                )
            pypi_writers.write_waveform(sink, ismrmrd.Waveform.from_array(np.zeros((1, 5), np.uint32)))
            sink.write(pypi_constants.GadgetMessageIdentifier.pack(pypi_constants.GADGET_MESSAGE_CLOSE))

            assert pypi_readers.read(sink, pypi_constants.uint16) == pypi_constants.GADGET_MESSAGE_ISMRMRD_IMAGE
            image = pypi_readers.read_image(sink)
            assert image.data.shape == (1, 1, 3, 5)
            assert image.data[0, 0, 0, 0] == pytest.approx(total, rel=1e-6)
            assert image.meta["ImageComments"] == "cardiac.xml"
            assert pypi_readers.read(sink, pypi_constants.uint16) == pypi_constants.GADGET_MESSAGE_TEXT
            assert pypi_readers.read_byte_string(sink) == b"4 readouts"
            assert pypi_readers.read(sink, pypi_constants.uint16) == pypi_constants.GADGET_MESSAGE_CLOSE


class Wrapper:
    def __init__(self, sock) -> None:
        self.sock = sock

    def read(self, size: int) -> bytes:
        return self.sock.recv(size, socket.MSG_WAITALL)

    def write(self, payload) -> None:
        self.sock.sendall(payload)


def remaining(peer) -> bytes:
    received = b""
    while part := peer.sock.recv(1 << 16):
        received += part
    return received
