"""A peer names no Dask scheduler that was not listed on the server: what a scheduler returns would be unpickled there."""

from __future__ import annotations

import dataclasses
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import ismrmrd
import numpy as np
import pytest
from gadgetron.external.connection import Connection as PypiConnection

from gadgets import chain, node
from gadgets.cli import build_parser, main
from gadgets.scanfile import write_scan
from gadgets.server import Server
from gadgets.stream import Close, ConfigScript, Connection, ErrorMessage, Header
from gadgets.wire_requests import Application, default_application
from recon_core.errors import SettingError

HEADER = (
    '<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><experimentalConditions>'
    "<H1resonanceFrequency_Hz>63500000</H1resonanceFrequency_Hz></experimentalConditions></ismrmrdHeader>"
)
OURS, OTHER = "tcp://10.0.0.1:8786", "tcp://10.0.0.2:8786"
REFUSED = f"executor: {OTHER} is not among the Dask schedulers that a peer may name here. Start the server with --allow-executor {OTHER}"


def sends_where(settings: Any, header: str, items: Any, report: Callable[[str], None], **_: Any) -> Iterator[ismrmrd.Image]:
    """Stages that tell only which scheduler would be used, and use none."""
    for _item in items:
        pass
    report(f"would run on {settings.executor}")
    yield ismrmrd.Image.from_array(np.ones((2, 2), np.float32), transpose=False)


@pytest.fixture
def application() -> Application:
    """The package's own, which admits one scheduler."""
    return dataclasses.replace(default_application(executors=[OURS]), run=sends_where)


@pytest.fixture
def exchange(application: Application) -> Iterator[Callable[..., bytes]]:
    with Server(port=0, application=application) as server:
        yield lambda *parts: _exchange(server.port, parts)


def _exchange(port: int, parts: tuple[bytes, ...]) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall(b"".join(parts))
        received = bytearray()
        while part := sock.recv(1 << 16):
            received += part
    return bytes(received)


def node_configuration(executor: str) -> str:
    return f'<?xml version="1.0"?>\n<configuration><property name="executor" value="{executor}"/></configuration>'


def worker_configuration(executor: str) -> str:
    return (
        '<configuration><version>2</version><stream key=""><gadget><dll>gadgetron_inr</dll><classname>cardiac</classname>'
        f'<property name="executor" value="{executor}"/></gadget></stream></configuration>'
    )


def test_a_script_is_refused_in_text(exchange, raw, chain_xml):
    messages = raw.parse(exchange(raw.script(chain_xml(executor=OTHER)), raw.header(), raw.scan()))
    assert [number for number, _ in messages] == [5, 4]
    assert messages[0][1].startswith(f"[gadgetron-inr] ERROR: {REFUSED}")


@pytest.mark.parametrize("configuration", [node_configuration, worker_configuration])
def test_a_gadgetron_is_refused_with_an_error(configuration, exchange, raw):
    messages = raw.parse(exchange(raw.script(configuration(OTHER)), raw.header(), raw.scan()))
    assert [number for number, _ in messages] == [8, 4]
    assert messages[0][1].startswith(REFUSED)


def test_a_listed_one_and_local_are_used(exchange, raw, chain_xml):
    for script in (
        chain_xml(executor=OURS),
        node_configuration(OURS),
        worker_configuration(OURS),
        chain_xml(executor="local"),
        chain_xml(),
    ):
        messages = raw.parse(exchange(raw.script(script), raw.header(), raw.scan()))
        assert [number for number, _ in messages if number != 5] == [1022, 4], messages
        if "<external>" in script:
            # To Gadgetron no status goes.
            assert f"would run on {OURS if OURS in script else 'local'}" in str(messages)


def test_a_settings_file_lends_a_peer_nothing(exchange, raw, chain_xml, tmp_path):
    """The file lies on the server, but the peer chose it."""
    path = tmp_path / "site.yaml"
    path.write_text(f"executor: {OTHER}\n")
    messages = raw.parse(exchange(raw.script(chain_xml(settings=str(path))), raw.header(), raw.scan()))
    assert [number for number, _ in messages] == [5, 4]
    assert REFUSED in messages[0][1]


def test_a_chain_that_lies_on_the_server_names_any(application, raw, chain_xml):
    kept = dataclasses.replace(application, load=lambda name: chain.parse(chain_xml(executor=OTHER), name))
    with Server(port=0, application=kept) as server:
        messages = raw.parse(_exchange(server.port, (raw.config_name("site.xml"), raw.header(), raw.scan())))
    assert [number for number, _ in messages if number != 5] == [1022, 4]
    assert any(f"would run on {OTHER}" in str(payload) for number, payload in messages if number == 5)


def test_a_node_that_gadgetron_starts_asks_the_environment(monkeypatch):
    def told(environment: str) -> list[Any]:
        monkeypatch.setenv("GADGETRON_INR_EXECUTORS", environment)
        made = dataclasses.replace(default_application(), run=sends_where)
        ours, theirs = socket.socketpair()
        ours.settimeout(10)
        with ours, theirs:
            link = Connection(ours)
            for message in (ConfigScript(node_configuration(OTHER)), Header(HEADER)):
                link.send(message)

            def process() -> None:
                with PypiConnection(theirs) as connection:
                    node.run(connection, made)

            thread = threading.Thread(target=process)
            thread.start()
            link.send(Close())
            answers = list(link.messages())
            thread.join(10)
            assert not thread.is_alive()
        return answers

    (error,) = told(OURS)
    assert isinstance(error, ErrorMessage)
    assert error.text.startswith(REFUSED)
    (image,) = told(f"{OURS}, {OTHER}")
    assert isinstance(image, ismrmrd.Image)


@pytest.mark.parametrize("address", ["10.0.0.1", "tcp://10.0.0.1", "http://10.0.0.1:8786"])
def test_an_address_that_is_none_ends_the_command(address):
    args = build_parser().parse_args(["serve", "--port", "0", "--allow-executor", OURS, "--allow-executor", address])
    assert args.allow_executor == [OURS, address]
    with pytest.raises(SettingError, match="Choose local or a Dask scheduler"):
        args.run(args)


def test_a_replay_with_a_server_of_its_own_names_any(tmp_path, monkeypatch, capsys):
    """The same person chooses both."""
    monkeypatch.setattr("gadgets.stages.run", sends_where)
    readout = ismrmrd.Acquisition.from_array(np.ones((2, 8), np.complex64), np.zeros((8, 2), np.float32))
    write_scan(tmp_path / "scan.h5", "<header/>", [readout] * 2)
    scan, out = str(tmp_path / "scan.h5"), str(tmp_path / "out.h5")
    assert main(["replay", scan, "--serve", "-s", f"executor={OTHER}", "-o", out]) == 0
    assert f"would run on {OTHER}" in capsys.readouterr().err
