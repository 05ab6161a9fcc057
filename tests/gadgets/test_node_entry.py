"""The entry that Gadgetron starts, where the package behind it cannot be imported."""

from __future__ import annotations

import builtins
import socket
import struct
import threading
from types import SimpleNamespace

import ismrmrd
import numpy as np
import pytest

from gadgets import node_entry
from gadgets.stream import Close, Connection, ErrorMessage, Text


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python in which the package does not import."""
    plain = builtins.__import__

    def refuse(name, globals=None, locals=None, fromlist=(), level=0):
        if name == "gadgets" and fromlist == ("node",):
            raise ModuleNotFoundError("No module named 'gadgets'")
        return plain(name, globals, locals, fromlist, level)

    monkeypatch.setattr(builtins, "__import__", refuse)


@pytest.fixture
def link(broken: None):
    """Gadgetron's side, with the entry running on the other."""
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    thread = threading.Thread(target=node_entry.run, args=(SimpleNamespace(socket=SimpleNamespace(socket=theirs)),))
    with ours, theirs:
        thread.start()
        yield Connection(ours)
        ours.close()
        thread.join(10)
        assert not thread.is_alive()


def test_gadgetron_is_told_behind_all_its_input(link):
    traj = np.zeros((5, 3), np.float32)
    for message in (
        ismrmrd.Acquisition.from_array(np.ones((2, 5), np.complex64), traj),
        ismrmrd.Waveform.from_array(np.ones((3, 7), np.uint32)),
        Text("a word"),
        ismrmrd.Acquisition.from_array(np.ones((1, 4), np.complex64)),
    ):
        link.send(message)
    link.socket.settimeout(0.3)
    with pytest.raises(TimeoutError):
        link.socket.recv(1)
    link.socket.settimeout(10)
    link.send(Close())
    told = link.receive()
    assert isinstance(told, ErrorMessage)
    assert "cannot import it (ModuleNotFoundError: No module named 'gadgets')" in told.text
    assert "-m pip install gadgetron-inr" in told.text


@pytest.mark.parametrize("stream", [b"", struct.pack("<H", 1008) + bytes(100), struct.pack("<H", 1023)])
def test_a_stream_that_cannot_be_followed_ends_it_all_the_same(link, stream, caplog):
    link.socket.sendall(stream)
    link.socket.shutdown(socket.SHUT_WR)
    assert isinstance(link.receive(), ErrorMessage)
    assert any("input not read to its CLOSE" in message for message in caplog.messages)


def test_where_the_package_imports_the_node_runs(monkeypatch):
    ran = []
    monkeypatch.setattr("gadgets.node.run", ran.append)
    node_entry.run("the connection")
    assert ran == ["the connection"]
