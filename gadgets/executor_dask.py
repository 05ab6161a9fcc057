"""Problems of a scan on the workers of a Dask scheduler.

Scheduler and workers are Dask's own, started by Dask's own deployments; they need this package, in the version of this process.
A problem is one part of work, a volume in slices has many. A part travels with all it needs inside its task, so it lies with the scheduler
and outlives the worker that had it. Dask itself gives the tasks of a worker that died to another one. A worker that hangs is found here: a
part of which nothing was heard for ``executor_patience_s`` is done again elsewhere, and whichever is ready first counts.
"""

from __future__ import annotations

import dataclasses
import logging
import pickle
import queue
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from typing import Any, Generic, TypeVar

import dask
import distributed

from gadgets.executor import Method, SchedulerAwayError, Task
from gadgets.settings import ChainSettings
from recon_core.errors import DataError, MissingPartError, ReconError
from recon_core.reconstruct import Reconstruction
from recon_core.slices import Part, Parts

logger = logging.getLogger(__name__)

WAIT_SECONDS = 8.0
"""Longest wait for the scheduler and its first worker."""
GPU = "GPU"
"""Name of the resource that a worker with a GPU of its own offers."""

_LISTEN_SECONDS = 0.25
_LOOK_SECONDS = 2.0
_ANY_SIZE = "1 PiB"

# Before Python 3.11 the time-out of asyncio is not the built-in one.
_AWAY = (OSError, TimeoutError, distributed.TimeoutError)

T = TypeVar("T")


def work(payload: bytes, version: str, topic: str, attempt: str) -> bytes:
    """Do one part on a worker, telling each step to the topic.

    Raises:
        DataError: the worker has another version of this package.
        ReconError: what the part raises.
    """
    own = metadata.version("gadgetron-inr")
    worker = distributed.get_worker()
    if own != version:
        raise DataError("executor", f"worker {worker.address} has gadgetron-inr {own}, not {version}", "Install the same version on all.")

    said: list[str] = []

    def tell(line: str) -> None:
        if line:
            said.append(line)
        worker.log_event(topic, {"attempt": attempt, "worker": worker.address, "line": line})

    tell("")
    part: Part = pickle.loads(payload)
    # A result can overtake the words before it: it brings them along.
    return pickle.dumps((part(tell), said), protocol=5)


@dataclasses.dataclass(eq=False)
class _Attempt:
    """One try at a part.

    Attributes:
        worker: where it began; empty before it has.
        heard: monotonic time of its last word, or of its submission.
        passed_on: lines of its that the report got.
    """

    future: distributed.Future
    heard: float
    worker: str = ""
    passed_on: int = 0


@dataclasses.dataclass(eq=False)
class _Piece:
    """A part that was handed out: every try at it, and its result once it is done."""

    name: str
    payload: bytes
    attempts: dict[str, _Attempt] = dataclasses.field(default_factory=dict)
    done: bool = False
    result: Any = None


@dataclasses.dataclass(eq=False)
class _Running(Generic[T]):
    """A task that was taken up: its parts that were handed out last, and its result once there is one."""

    task: Task[T]
    parts: Parts
    pieces: list[_Piece] = dataclasses.field(default_factory=list)
    result: Reconstruction | None = None


class DaskRun(Generic[T]):
    """One scan's problems on a Dask scheduler.

    Args:
        method: how problems are reconstructed.
        settings: ``executor``, the scheduler's address, and ``executor_patience_s``.
        report: gets status lines, in the thread that asks for results.
    """

    def __init__(self, method: Method, settings: ChainSettings, report: Callable[[str], None]) -> None:
        self._method = method
        self._settings = settings
        self._report = report
        self._words: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        self._topic = f"gadgetron-inr-{uuid.uuid4()}"
        self._version = metadata.version("gadgetron-inr")
        self._running: list[_Running[T]] = []
        self._done = 0
        self._looked = 0.0
        self._threads: dict[str, int] = {}
        self._resources: dict[str, float] = {GPU: 1} if method.common.device.startswith("cuda") else {}

    def results(self, tasks: Iterator[Task[T]]) -> Iterator[tuple[T, Reconstruction]]:
        """Tag and result of every task, in order.

        Raises:
            SchedulerAwayError: the scheduler is away, or went away; :meth:`left` and ``tasks`` then have what was not yielded.
            MissingPartError: no worker offers a GPU, and one was asked for.
            ReconError: what the method raises, or no worker brought a problem to its end.
        """
        client = self._connect()
        try:
            self._check_workers(client)
            client.subscribe_topic(self._topic, self._hear)
            exhausted = False
            while True:
                self._look(client)
                while not exhausted and len(self._open()) < self._slots:
                    task = next(tasks, None)
                    if task is None:
                        exhausted = True
                        break
                    self._running.append(_Running(task, self._method.parts(task)))
                    self._go_on(client, self._running[-1])
                self._listen()
                self._collect(client)
                self._redo_silent(client)
                while self._running and self._running[0].result is not None:
                    ready = self._running.pop(0)
                    assert ready.result is not None
                    yield ready.task.tag, ready.result
                if exhausted and not self._running:
                    return
        finally:
            self._close(client)

    def left(self) -> list[Task[T]]:
        """Tasks that were handed out and whose results were not yielded."""
        return [running.task for running in self._running]

    def _open(self) -> list[_Piece]:
        """Parts that were handed out and are not done."""
        return [piece for running in self._running for piece in running.pieces if not piece.done]

    @property
    def _slots(self) -> int:
        return sum(self._threads.values())

    def _connect(self) -> distributed.Client:
        address = self._settings.executor
        try:
            return distributed.Client(address, timeout=WAIT_SECONDS / 2, set_as_default=False, name="gadgetron-inr")
        except _AWAY as error:
            raise SchedulerAwayError(
                "executor", f"no Dask scheduler answers at {address} ({type(error).__name__})", "Start one, or set executor=local."
            ) from error

    def _check_workers(self, client: distributed.Client) -> None:
        try:
            client.wait_for_workers(1, timeout=WAIT_SECONDS / 2)
        except _AWAY as error:
            raise SchedulerAwayError(
                "executor", f"the Dask scheduler at {self._settings.executor} has no worker", "Start `dask worker ADDRESS --nthreads 1`."
            ) from error
        if self._resources:
            offered = client.run_on_scheduler(_offers, GPU)
            if not offered:
                raise MissingPartError(
                    "executor",
                    f"device={self._method.common.device} asked for, but no worker at {self._settings.executor} offers the resource {GPU}",
                    f"Start workers with --resources '{GPU}=1', or set device=auto.",
                )

    def _look(self, client: distributed.Client) -> None:
        """Which workers there are, now and then.

        Raises:
            SchedulerAwayError: the scheduler went away.
        """
        now = time.monotonic()
        if self._threads and now - self._looked < _LOOK_SECONDS:
            return
        try:
            if client.status != "running":
                raise OSError(f"client is {client.status}")
            # No worker at this moment: one may come back, the problems lie with the scheduler.
            self._threads = client.nthreads(callback_timeout=WAIT_SECONDS) or self._threads
        except _AWAY as error:
            raise self._lost(error) from error
        self._looked = now

    def _lost(self, error: object) -> SchedulerAwayError:
        return SchedulerAwayError(
            "executor", f"the Dask scheduler at {self._settings.executor} went away ({error})", "Send the scan again."
        )

    def _go_on(self, client: distributed.Client, running: _Running[T]) -> None:
        """Hand out a task's next parts, or take its result where there are none left."""
        results = [piece.result for piece in running.pieces]
        try:
            wanted: Sequence[Part] = running.parts.send(results) if running.pieces else next(running.parts)
        except StopIteration as end:
            running.pieces, running.result = [], end.value
            self._done += 1
            working = sum(r.result is None for r in self._running)
            self._report(f"{running.task.name}done ({self._done} problems done, {working} running on {len(self._threads)} workers)")
            return
        running.pieces = [_Piece(running.task.name, pickle.dumps(part, protocol=5)) for part in wanted]
        for piece in running.pieces:
            self._submit(client, piece)

    def _submit(self, client: distributed.Client, piece: _Piece, workers: list[str] | None = None) -> None:
        attempt = str(uuid.uuid4())
        # The part in the task is what makes it survive a worker; Dask would warn of its size.
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": _ANY_SIZE}):
            future = client.submit(
                work,
                piece.payload,
                self._version,
                self._topic,
                attempt,
                key=f"gadgetron-inr-{attempt}",
                pure=False,
                workers=workers,
                resources=self._resources or None,
            )
        piece.attempts[attempt] = _Attempt(future, time.monotonic())
        future.add_done_callback(self._wake)

    def _hear(self, event: tuple[float, dict[str, str]]) -> None:
        """Called in Dask's thread."""
        self._words.put(event[1])

    def _wake(self, future: distributed.Future) -> None:
        """Called in Dask's thread: something is ready, so the wait for words may end."""
        self._words.put({})

    def _listen(self) -> None:
        """Pass on what workers say; waits a moment for the first word."""
        wait = _LISTEN_SECONDS
        while True:
            try:
                word = self._words.get(timeout=wait)
            except queue.Empty:
                return
            wait = 0.001
            for piece in self._open():
                attempt = piece.attempts.get(word.get("attempt", ""))
                if attempt is None:
                    continue
                attempt.heard = time.monotonic()
                if attempt.worker not in ("", word["worker"]):
                    self._report(f"{piece.name}worker {attempt.worker} was lost, begun again on {word['worker']}")
                attempt.worker = word["worker"]
                if word["line"]:
                    attempt.passed_on += 1
                    self._report(f"{piece.name}{word['line']}")

    def _collect(self, client: distributed.Client) -> None:
        """Fetch what is ready.

        Raises:
            ReconError: a task failed.
            SchedulerAwayError: the scheduler went away.
        """
        for piece in self._open():
            for number, attempt in list(piece.attempts.items()):
                status = attempt.future.status
                if status == "finished" and self._fetch(client, piece, number):
                    break
                if status == "error":
                    self._fail(piece, attempt)
                if status in ("cancelled", "lost"):
                    raise self._lost(status)
        for running in self._running:
            if running.result is None and all(piece.done for piece in running.pieces):
                self._go_on(client, running)

    def _fetch(self, client: distributed.Client, piece: _Piece, number: str) -> bool:
        """Whether the result of an attempt could be had."""
        try:
            packed = piece.attempts[number].future.result(timeout=self._settings.executor_patience_s)
        except _AWAY:
            # Its worker died or froze between fit and delivery.
            self._report(f"{piece.name}result not delivered in {self._settings.executor_patience_s:g} s: done again")
            del piece.attempts[number]
            self._submit(client, piece)
            return False
        piece.result, said = pickle.loads(packed)
        piece.done = True
        for line in said[piece.attempts[number].passed_on :]:
            self._report(f"{piece.name}{line}")
        client.cancel([a.future for a in piece.attempts.values()], force=True)
        piece.attempts.clear()
        piece.payload = b""
        return True

    def _fail(self, piece: _Piece, attempt: _Attempt) -> None:
        error = attempt.future.exception()
        if isinstance(error, ReconError):
            raise error
        raise ReconError(
            "executor",
            f"{piece.name}{type(error).__name__}: {error}",
            "See the worker's log; a worker that dies often lacks memory.",
        ) from error

    def _redo_silent(self, client: distributed.Client) -> None:
        """Have parts done elsewhere whose worker has said nothing for too long.

        Raises:
            ReconError: there is no other worker.
        """
        now = time.monotonic()
        silent = [
            piece for piece in self._open() if all(now - a.heard > self._settings.executor_patience_s for a in piece.attempts.values())
        ]
        if not silent:
            return
        try:
            processing = client.sync(client.scheduler.processing, workers=None, callback_timeout=WAIT_SECONDS)
        except _AWAY as error:
            raise self._lost(error) from error
        holders = {key: worker for worker, keys in processing.items() for key in keys}
        for piece in silent:
            tried: set[str] = set()
            waiting = False
            for attempt in piece.attempts.values():
                worker = attempt.worker or holders.get(attempt.future.key, "")
                if not worker or (not attempt.worker and self._speaks(worker, now)):
                    # Not begun: it waits its turn, at the scheduler or behind a part that goes on.
                    attempt.heard = now
                    waiting = True
                tried.add(worker)
            if waiting:
                continue
            others = sorted(set(self._threads) - tried)
            words = f"{piece.name}no word for {self._settings.executor_patience_s:g} s from {', '.join(sorted(tried))}"
            if not others:
                raise ReconError("executor", words, "Start more workers, or raise executor_patience_s.")
            self._report(f"{words}: done again elsewhere")
            self._submit(client, piece, others)

    def _speaks(self, worker: str, now: float) -> bool:
        return any(
            a.worker == worker and now - a.heard <= self._settings.executor_patience_s for p in self._open() for a in p.attempts.values()
        )

    def _close(self, client: distributed.Client) -> None:
        futures = [a.future for piece in self._open() for a in piece.attempts.values()]
        try:
            if futures and client.status == "running":
                client.cancel(futures, force=True)
            client.close(timeout=2)
        except (OSError, TimeoutError, RuntimeError) as error:
            logger.warning("Dask client not closed cleanly: %s", error)


def _offers(resource: str, dask_scheduler: Any) -> bool:
    """Whether a worker of this scheduler offers a resource."""
    return bool(dask_scheduler.resources.get(resource))
