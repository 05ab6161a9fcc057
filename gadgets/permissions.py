"""Which Dask schedulers a peer on the wire may name.

What a scheduler returns is unpickled: whoever chooses it runs code in this process. A chain that lies on this machine names any; one that
arrives over a socket, from a client or from a Gadgetron whose own client may have sent it, only those that were listed here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from gadgets.settings import LOCAL, ChainSettings
from recon_core.errors import SettingError

VARIABLE = "GADGETRON_INR_EXECUTORS"
"""Environment variable with addresses that may be named, separated by spaces or commas; the one way for a node that Gadgetron starts."""


def listed(addresses: Iterable[str] = ()) -> frozenset[str]:
    """Schedulers that a peer may name: the given ones and those of the environment.

    Raises:
        SettingError: an address that is none.
    """
    found = frozenset((*addresses, *os.environ.get(VARIABLE, "").replace(",", " ").split()))
    for address in found:
        ChainSettings(executor=address)
    return found


def check(settings: ChainSettings, allowed: frozenset[str]) -> None:
    """Refuse a peer's settings whose scheduler is not listed; addresses are compared as written.

    Raises:
        SettingError: names the address.
    """
    if settings.executor != LOCAL and settings.executor not in allowed:
        raise SettingError(
            "executor",
            f"{settings.executor} is not among the Dask schedulers that a peer may name here",
            f"Start the server with --allow-executor {settings.executor} (a node: set {VARIABLE}), or set executor={LOCAL}.",
        )
