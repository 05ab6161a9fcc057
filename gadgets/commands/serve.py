"""``gadgetron-inr serve``: the embedded server."""

from __future__ import annotations

import argparse
import logging

logger = logging.getLogger(__name__)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "serve",
        help="serve scans to clients, to Gadgetron and to MRD consoles",
        description="Serve scans until SIGTERM or Ctrl-C: to Gadgetron clients (`gadgetron-inr replay`, gadgetron_ismrmrd_client), to a "
        "Gadgetron whose chain has a <connect> node, and to MRD consoles. The dialect is told from the configuration that the peer sends.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s, this machine only)")
    parser.add_argument("--port", type=_port, default=9002, help="port to listen at; 0 takes a free one (default: %(default)s)")
    parser.add_argument("--node", action="store_true", help="serve Gadgetron's <connect> nodes only, and refuse clients")
    parser.add_argument("--metrics-port", type=_port, metavar="PORT", help="serve /metrics (Prometheus) and /healthz; 0: any free port")
    parser.add_argument("--metrics-host", default="127.0.0.1", metavar="HOST", help="address of --metrics-port (default: %(default)s)")
    parser.add_argument(
        "--allow-executor",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="Dask scheduler that a sent chain may name as its executor, tcp://HOST:PORT; may be given again; others stand in "
        "$GADGETRON_INR_EXECUTORS, separated by spaces (default: none)",
    )
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), help="how much to log (default: info)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop."""
    from gadgets.server import serve

    if args.log_level:
        for name in ("gadgets", "recon_core"):
            logging.getLogger(name).setLevel(args.log_level.upper())
    from gadgets.wire_requests import default_application

    if args.metrics_port is None:
        return serve(args.host, args.port, application=default_application(executors=args.allow_executor), node=args.node)
    from gadgets.metrics import MetricsServer, PrometheusMetrics

    metrics = PrometheusMetrics()
    with MetricsServer(metrics, args.metrics_port, args.metrics_host) as endpoint:
        logger.info("metrics at http://%s:%d/metrics", args.metrics_host, endpoint.port)
        application = metrics.watch(default_application(metrics, args.allow_executor))
        return serve(args.host, args.port, application=application, node=args.node)


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 0xFFFF:
        raise argparse.ArgumentTypeError(f"{number} is not a port; give 0 to 65535")
    return number
