"""What a server counts, and where Prometheus reads it: ``serve --metrics-port``.

The endpoint serves ``/metrics`` and ``/healthz``, on loopback unless told otherwise. Without one nothing is counted (:data:`NO_METRICS`).
"""

from __future__ import annotations

import dataclasses
import importlib.util
import threading
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import TYPE_CHECKING, Any

from recon_core.errors import MissingPartError, ReconError

if TYPE_CHECKING:
    import ismrmrd

    from gadgets.wire_requests import Application

_LAG_BUCKETS = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0)


class Metrics:
    """What may be counted; this one counts nothing."""

    def received(self, frame: bool) -> None:
        """A readout came in, and completed a frame or not."""

    def skipped(self, frames: int) -> None:
        """Frames got no provisional image."""

    def sent(self, lag: float, age: float | None, error: float | None) -> None:
        """A provisional image left, ``lag`` seconds after its last readout came."""

    def refined(self, seconds: float) -> None:
        """The provisional model was refined in so many seconds."""

    def queues(self, frames: int, images: int) -> None:
        """So many frames wait for the solver, so many images for the sender."""


NO_METRICS = Metrics()


class PrometheusMetrics(Metrics):
    """Counts into a registry of its own.

    Raises:
        MissingPartError: prometheus_client is not installed.
    """

    def __init__(self) -> None:
        if importlib.util.find_spec("prometheus_client") is None:
            raise MissingPartError("--metrics-port", "prometheus_client is not installed", "pip install 'gadgetron-inr[metrics]'.")
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = CollectorRegistry()

        def made(kind: Any, name: str, text: str, **options: Any) -> Any:
            return kind(f"gadgetron_inr_{name}", text, registry=self.registry, **options)

        self.scans = made(Counter, "scans", "Scans begun.")
        self.running = made(Gauge, "scans_running", "Scans being reconstructed.")
        self.errors = made(Counter, "errors", "Requests and scans that ended with an error, by its class.", labelnames=("kind",))
        self.images = made(Counter, "images", "Images sent, provisional and final.")
        self._readouts = made(Counter, "online_readouts", "Imaging readouts received by scans with provisional images.")
        self._frames = made(Counter, "online_frames", "Frames completed by them.")
        self._skipped = made(Counter, "online_frames_skipped", "Frames given up as provisional image.")
        self._lag = made(
            Histogram, "online_lag_seconds", "Last readout of a frame received to its provisional image sent.", buckets=_LAG_BUCKETS
        )
        self._refined = made(Histogram, "online_refinement_seconds", "Duration of a refinement of the provisional model.")
        self._age = made(Gauge, "online_model_age_seconds", "Newest data in the model to the frame last sent.")
        self._error = made(Gauge, "online_held_out_error", "Residual of the frame last sent before it was used, in noise variances.")
        self._depth = made(Gauge, "online_queue_depth", "What waits, by queue.", labelnames=("queue",))
        made(Gauge, "gpu_memory_bytes", "GPU memory held by tensors.").set_function(_gpu_memory)

    def received(self, frame: bool) -> None:
        """See :class:`Metrics`."""
        self._readouts.inc()
        if frame:
            self._frames.inc()

    def skipped(self, frames: int) -> None:
        """See :class:`Metrics`."""
        self._skipped.inc(frames)

    def sent(self, lag: float, age: float | None, error: float | None) -> None:
        """See :class:`Metrics`."""
        self._lag.observe(lag)
        if age is not None and error is not None:
            self._age.set(age)
            self._error.set(error)

    def refined(self, seconds: float) -> None:
        """See :class:`Metrics`."""
        self._refined.observe(seconds)

    def queues(self, frames: int, images: int) -> None:
        """See :class:`Metrics`."""
        self._depth.labels("frames").set(frames)
        self._depth.labels("images").set(images)

    def page(self) -> bytes:
        """Everything in Prometheus' text format."""
        from prometheus_client import generate_latest

        return bytes(generate_latest(self.registry))

    def watch(self, application: Application) -> Application:
        """The application, its scans and errors counted."""
        inner = application.run

        def run(settings: Any, header: str, items: Iterable[Any], report: Callable[[str], None]) -> Iterator[ismrmrd.Image]:
            self.scans.inc()
            with self.running.track_inprogress(), self._faults():
                for image in inner(settings, header, items, report):
                    yield image
                    self.images.inc()

        def counted(call: Callable[..., Any]) -> Callable[..., Any]:
            def called(*args: Any) -> Any:
                with self._faults():
                    return call(*args)

            return called

        return dataclasses.replace(
            application,
            load=counted(application.load),
            parse=counted(application.parse),
            node_settings=counted(application.node_settings),
            permit=counted(application.permit),
            run=run,
        )

    def _faults(self) -> _Faults:
        return _Faults(self.errors)


class _Faults:
    """Counts the exception that leaves its block; the end of a closed generator is none."""

    def __init__(self, errors: Any) -> None:
        self._errors = errors

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None and issubclass(kind, Exception):
            self._errors.labels(kind.__name__).inc()


def _gpu_memory() -> float:
    import torch

    return float(torch.cuda.memory_allocated()) if torch.cuda.is_available() and torch.cuda.is_initialized() else 0.0


class MetricsServer:
    """``/metrics`` and ``/healthz`` over HTTP; a context manager.

    Args:
        metrics: what to show.
        port: 0 takes a free one, see :attr:`port`.
        host: address to listen at; they tell counts and times, nothing of a scan's content.

    Raises:
        ReconError: the port cannot be listened at.
    """

    def __init__(self, metrics: PrometheusMetrics, port: int, host: str = "127.0.0.1") -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path.split("?")[0] == "/metrics":
                    self._answer(200, "text/plain; version=0.0.4; charset=utf-8", metrics.page())
                elif self.path == "/healthz":
                    self._answer(200, "text/plain", b"ok\n")
                else:
                    self._answer(404, "text/plain", b"/metrics or /healthz\n")

            def _answer(self, status: int, kind: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """A look at the metrics every few seconds is not worth a line."""

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except OSError as error:
            raise ReconError(
                "--metrics-port", f"cannot listen at {host}:{port} ({error.strerror or error})", "Choose another port."
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)

    @property
    def port(self) -> int:
        """Port listened at."""
        return int(self._server.server_address[1])

    def __enter__(self) -> MetricsServer:
        """Start."""
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop, and free the port."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
