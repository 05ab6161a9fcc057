"""The node's function on the PyPI package's connection, within this process."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator

import ismrmrd
import numpy as np
import pytest
from gadgetron.external.connection import Connection as PypiConnection

from gadgets import node
from gadgets.stream import Close, ConfigScript, Connection, ErrorMessage, Header
from gadgets.wire_requests import Application
from recon_core.errors import DataError

HEADER = (
    '<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><experimentalConditions>'
    "<H1resonanceFrequency_Hz>63500000</H1resonanceFrequency_Hz></experimentalConditions></ismrmrdHeader>"
)
CONFIGURATION = '<?xml version="1.0"?>\n<configuration>\n\t<property name="factor" value="2" />\n</configuration>\n'


def readout(value: float) -> ismrmrd.Acquisition:
    return ismrmrd.Acquisition.from_array(np.full((1, 4), value, np.complex64))


def double(settings, header, items, report) -> Iterator[ismrmrd.Image]:
    report("not told to Gadgetron")
    assert header == HEADER
    for item in items:
        value = float(abs(item.data[0, 0]))
        if value > 90:
            raise DataError("readout", f"{value:.0f} is too much", "Send less.")
        yield ismrmrd.Image.from_array(np.full((1, 1), float(settings["factor"]) * value, np.float32), transpose=False)


@pytest.fixture
def gadgetron() -> Iterator[tuple[Connection, threading.Thread]]:
    """Gadgetron's side of the link, and the node running on the other."""
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    application = Application(lambda name: None, lambda text, name: None, dict, double)

    def process() -> None:
        with PypiConnection(theirs) as connection:
            node.run(connection, application)

    thread = threading.Thread(target=process)
    thread.start()
    with ours, theirs:
        yield Connection(ours), thread
        ours.close()
        thread.join(10)
        assert not thread.is_alive()


def test_images_then_one_close(gadgetron):
    link, thread = gadgetron
    for message in (ConfigScript(CONFIGURATION), Header(HEADER), readout(1), readout(5), Close()):
        link.send(message)
    assert [float(image.data.item()) for image in link.messages()] == [2, 10]
    thread.join(10)
    assert link.socket.recv(1) == b""


def test_an_error_comes_behind_all_input(gadgetron):
    link, _ = gadgetron
    for message in (ConfigScript(CONFIGURATION), Header(HEADER), readout(1), readout(99), readout(2)):
        link.send(message)
    assert float(link.receive().data.item()) == 2
    link.socket.settimeout(0.2)
    with pytest.raises(TimeoutError):
        link.socket.recv(1)
    link.socket.settimeout(10)
    link.send(Close())
    assert list(link.messages()) == [ErrorMessage("readout: 99 is too much. Send less.")]


@pytest.mark.parametrize("configuration", ["<configuration><gadget/></configuration>", "<?xml version='1.0'?><chain/>"])
def test_a_configuration_without_properties_only_is_told(gadgetron, configuration):
    link, _ = gadgetron
    for message in (ConfigScript(configuration), Header(HEADER), Close()):
        link.send(message)
    (error,) = link.messages()
    assert "node configuration, line 1" in error.text


def test_a_gadgetron_that_resets_is_logged(caplog):
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, socket.create_connection(listener.getsockname()) as ours:
        theirs, _ = listener.accept()
        link = Connection(theirs)
        link.send(ConfigScript(CONFIGURATION))
        link.send(Header(HEADER))
        connection = PypiConnection(ours)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        node.run(connection, Application(lambda name: None, lambda text, name: None, dict, double))
    assert any("connection: lost" in message for message in caplog.messages)


def test_a_gadgetron_that_left_cannot_be_told(caplog):
    """An error whose way out is gone is logged, not raised."""

    def refuse(properties):
        raise DataError("factor", "2 is not admitted", "Leave it out.")

    ours, theirs = socket.socketpair()
    with ours, theirs:
        link = Connection(theirs)
        link.send(ConfigScript(CONFIGURATION))
        link.send(Header(HEADER))
        connection = PypiConnection(ours)
        theirs.close()
        node.run(connection, Application(lambda name: None, lambda text, name: None, refuse, double))
    assert any("factor: 2 is not admitted" in message for message in caplog.messages)
    assert any("Gadgetron left before it could be told" in message for message in caplog.messages)
