"""External node of a Gadgetron chain: ``<execute name="gadgets.node" target="run" type="python"/>``.

Gadgetron starts ``python -m gadgetron PORT gadgets.node run`` for every scan. That package reads configuration and header and calls
:func:`run`; from there on this project's own codec reads the socket, because the package's spins for ever at an end of stream
and lets an exception vanish. Not in our hands: an end of stream inside the configuration or header, which it reads before.
"""

from __future__ import annotations

import logging
from typing import Any

from gadgets.chain import node_properties
from gadgets.openmp import sleep_while_waiting
from gadgets.stream import Connection, DisconnectedError, ErrorMessage
from gadgets.wire_exchange import Exchange
from gadgets.wire_requests import Application, default_application
from recon_core.errors import ReconError

logger = logging.getLogger(__name__)


def run(connection: Any, application: Application | None = None) -> None:
    """Reconstruct one scan of a Gadgetron chain.

    An error is told to Gadgetron as ERROR behind all input; the caller's connection sends CLOSE then, as after a good scan.

    Args:
        connection: ``gadgetron.external.Connection`` with configuration and header read.
        application: chains, settings and stages; the package's own when None.
    """
    sleep_while_waiting()
    link = Connection(connection.socket.socket)
    with Exchange(link, "node", tell=False) as exchange:
        try:
            chosen = application or default_application()
            settings = chosen.node_settings(node_properties(_text(connection.raw_bytes.config)))
            chosen.permit(settings)
            exchange.relay(chosen.run(settings, _text(connection.raw_bytes.header), exchange.items(), exchange.report))
        except DisconnectedError as error:
            logger.error("%s", error)
        except Exception as error:  # the process's boundary: Gadgetron hears of nothing else
            words = str(error) if isinstance(error, ReconError) else f"{type(error).__name__}: {error}"
            logger.exception("node failed: %s", words)
            exchange.drain()
            _tell(link, words)
    logger.info("%d readouts, %d waveforms in, %d images out", link.readouts, link.waveforms, exchange.images_sent)


def _tell(link: Connection, words: str) -> None:
    try:
        link.send(ErrorMessage(words))
    except DisconnectedError as error:
        logger.error("Gadgetron left before it could be told: %s", error)


def _text(raw: bytes) -> str:
    """Configuration or header without trailing NULs."""
    return bytes(raw).rstrip(b"\0").decode()
