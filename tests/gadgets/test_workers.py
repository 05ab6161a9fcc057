"""The list of workers that a Gadgetron asks for."""

from __future__ import annotations

import json
import re
import socket

import pytest

from gadgets import workers
from gadgets.cli import main
from recon_core.errors import SettingError

# What Gadgetron's reader of the list takes: quoted host:port, IPv6 in brackets, white space ignored.
GADGETRONS_LIST = re.compile(r'\s*\[\s*"(?:[^:\[\]"]+|\[[^\]]+\]):[^"]+"(?:\s*,\s*"(?:[^:\[\]"]+|\[[^\]]+\]):[^"]+")*\s*\]\s*')


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def unused() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def test_workers_that_listen_are_listed_in_order(port, capsys, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        second = other.getsockname()[1]
        named = [f"localhost:{port}", f"127.0.0.1:{second}"]
        assert main(["workers", *named]) == 0
        told = capsys.readouterr()
        assert json.loads(told.out) == named
        assert GADGETRONS_LIST.fullmatch(told.out)
        assert told.err == ""
        monkeypatch.setenv("GADGETRON_INR_WORKERS", ", ".join(reversed(named)))
        assert main(["workers"]) == 0
        assert json.loads(capsys.readouterr().out) == named[::-1]


def test_a_worker_that_does_not_listen_is_left_out_and_told(port, capsys):
    gone = f"127.0.0.1:{unused()}"
    assert main(["workers", gone, f"127.0.0.1:{port}"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out) == [f"127.0.0.1:{port}"]
    assert f"worker {gone} left out: Connection refused" in told.err


def test_no_worker_at_all_is_an_error_and_no_list(capsys):
    assert main(["workers", f"127.0.0.1:{unused()}"]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert "no worker listens" in told.err


def test_none_named(capsys, monkeypatch):
    monkeypatch.delenv("GADGETRON_INR_WORKERS", raising=False)
    assert main(["workers"]) == 1
    assert "workers: none named" in capsys.readouterr().err
    assert main(["workers", "a:1", "--timeout", "0"]) == 1
    assert "--timeout" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "place"), [("gpu1:9002", ("gpu1", 9002)), ("[::1]:80", ("::1", 80)), (" a.b:1 ", ("a.b", 1))])
def test_addresses(text, place):
    assert workers.host_and_port("worker", text) == place


@pytest.mark.parametrize("text", ["gpu1", "gpu1:", ":9002", "gpu1:0", "gpu1:65536", "::1:9002", "a b:1", "http://a:1", '"a":1'])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(SettingError, match="is not HOST:PORT"):
        workers.host_and_port("worker", text)
