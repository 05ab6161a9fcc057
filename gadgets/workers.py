"""Addresses of remote workers, as a Gadgetron asks for them (``GADGETRON_REMOTE_WORKER_COMMAND``)."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from recon_core.errors import SettingError

_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([^:\[\]\s\"]+)):(\d{1,5})")
_AT_ONCE = 32


def host_and_port(field: str, text: str) -> tuple[str, int]:
    """``host:port`` or ``[IPv6]:port``.

    Raises:
        SettingError: neither.
    """
    found = _ADDRESS.fullmatch(text.strip())
    if found is None or not 1 <= int(found[3]) <= 65535:
        raise SettingError(field, f"{text!r} is not HOST:PORT", "Write localhost:9002, or [::1]:9002.")
    return found[1] or found[2], int(found[3])


def listening(addresses: Iterable[str], seconds: float) -> dict[str, str]:
    """Ask every address for a connection, all at once.

    Args:
        addresses: ``host:port``.
        seconds: longest wait for each.

    Returns:
        Address to reason why it does not listen, empty where it does; in the order given.

    Raises:
        SettingError: an address that is none.
    """
    places = {address: host_and_port("worker", address) for address in addresses}

    def reason(place: tuple[str, int]) -> str:
        try:
            with socket.create_connection(place, timeout=seconds):
                return ""
        except OSError as error:
            return error.strerror or str(error)

    with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
        return dict(zip(places, pool.map(reason, places.values()), strict=True))


def as_list(addresses: Iterable[str]) -> str:
    """The list that Gadgetron reads: ``["host:port", …]``."""
    return json.dumps(list(addresses))
