"""Where a scan's problems are fitted: in this process, or side by side on the workers of a Dask scheduler.

Slices, contrasts and sets are independent fits, and the slices of a stack of stars are once their temporal basis is known, so both give
the same images in the same order.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib import util
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from gadgets.settings import LOCAL, ChainSettings
from recon_core.errors import MissingPartError, ReconError
from recon_core.problem import KSpaceProblem
from recon_core.reconstruct import Reconstruction, ReconstructionSettings
from recon_core.slices import Parts, side_by_side, slice_parts

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Reconstruct(Protocol):
    """What turns a problem into images: :func:`recon_core.reconstruct.reconstruct`."""

    def __call__(
        self,
        problem: KSpaceProblem,
        settings: ReconstructionSettings,
        solver_settings: dict[str, Any],
        progress: Callable[[str], None] | None,
        times: Tensor | None = None,
    ) -> Reconstruction:
        """Reconstruct one problem."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Task(Generic[T]):
    """A problem to be reconstructed.

    Attributes:
        problem: whitened samples; several: the slices of one volume, reconstructed together.
        name: of the problem, for status lines; empty if the scan has only one.
        tag: comes back with the result.
        coils: virtual coils to keep; None: what the method says.
        times: moments (numbers of contrasts in a protocol) at which images are wanted; None: the frames'.
    """

    problem: KSpaceProblem | tuple[KSpaceProblem, ...]
    name: str
    tag: T
    coils: int | None = None
    times: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Method:
    """How problems are reconstructed.

    Attributes:
        reconstruct: what does it with one problem; for Dask importable by its name on the workers.
        common: what holds for every solver.
        solver_settings: the solver's own settings by name.
    """

    reconstruct: Reconstruct
    common: ReconstructionSettings
    solver_settings: dict[str, Any]

    def parts(self, task: Task[Any]) -> Parts:
        """The work on a problem: one part, or those of a volume slice by slice."""
        common = self.common if task.coils is None else dataclasses.replace(self.common, coils=task.coils)
        if isinstance(task.problem, tuple):
            return (yield from slice_parts(task.problem, common, self.solver_settings))
        wanted: dict[str, Any] = {} if task.times is None else {"times": task.times}
        result: Reconstruction
        (result,) = yield [partial(self.reconstruct, task.problem, common, dict(self.solver_settings), **wanted)]
        return result


class SchedulerAwayError(ReconError):
    """No Dask scheduler, or none with a worker, answers."""


def execute(
    tasks: Iterable[Task[T]], method: Method, settings: ChainSettings, report: Callable[[str], None]
) -> Iterator[tuple[T, Reconstruction]]:
    """Reconstruct problems.

    Args:
        tasks: taken one by one, when there is room for them.
        method: how.
        settings: where: ``executor``, ``executor_fallback`` and ``executor_patience_s``.
        report: gets status lines, in the caller's thread.

    Yields:
        Tag and result, in the order of ``tasks``.

    Raises:
        SchedulerAwayError: a Dask scheduler was asked for, is away, and ``executor_fallback`` is not set.
        MissingPartError: dask.distributed is not installed here, or no worker offers the GPU asked for.
        ReconError: what the method raises, or no worker brought a problem to its end.
    """
    if settings.executor == LOCAL:
        yield from _locally(tasks, method, report)
        return
    if util.find_spec("distributed") is None:
        raise MissingPartError("executor", f"{settings.executor} needs dask.distributed", "pip install 'gadgetron-inr[dask]'")
    from gadgets.executor_dask import DaskRun

    run: DaskRun[T] = DaskRun(method, settings, report)
    source = iter(tasks)
    try:
        yield from run.results(source)
    except SchedulerAwayError as error:
        if not settings.executor_fallback:
            raise
        note = f"Dask scheduler {settings.executor} away, reconstructed locally"
        logger.warning("%s: %s", note, error)
        report(note)
        for tag, result in _locally(itertools.chain(run.left(), source), method, report):
            yield tag, _noted(result, note)


def _locally(tasks: Iterable[Task[T]], method: Method, report: Callable[[str], None]) -> Iterator[tuple[T, Reconstruction]]:
    for task in tasks:
        yield task.tag, side_by_side(method.parts(task), method.common, report)


def _noted(result: Reconstruction, note: str) -> Reconstruction:
    return dataclasses.replace(result, series=dataclasses.replace(result.series, notes=(*result.series.notes, note)))
