"""Where a solver's time goes, and how far its step is from what the machine allows. Needs the extra ``profile``.

Stages are functions of :mod:`recon_core`, found by their code in a sampled call tree (pyinstrument); a moment counts for the outermost
of them on the stack, so that a basis owns the Gram applications made for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import inspect
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import benchmark

from recon_core.errors import MissingPartError

if TYPE_CHECKING:
    from rich.table import Table

INTERVAL = 0.001
SELECTION = "recon_core.reconstruct:_select"
STAGES: dict[str, tuple[str, ...]] = {
    "calibration": ("recon_core.calibration.calibrate:calibrate", "recon_core.calibration.calibrate:with_density"),
    "held-out error": ("recon_core.reconstruct:HeldOut.__init__", "recon_core.reconstruct:HeldOut.errors"),
    "basis": ("recon_core.solvers.subspace:SubspaceSolver._find_basis",),
    "point spreads": (
        "recon_core.operators.toeplitz:point_spread_spectra",
        "recon_core.operators.toeplitz:point_spread_spectrum",
        "recon_core.operators.subspace_normal:subspace_kernel",
    ),
    "right-hand side": (
        "recon_core.operators.frames:subspace_backprojection",
        "recon_core.operators.frames:FrameEncoding.backprojection",
    ),
    "Gram": ("recon_core.operators.subspace_normal:SubspaceNormal.__call__", "recon_core.operators.toeplitz:ToeplitzNormal.__call__"),
    "V": ("recon_core.operators.temporal:temporal_system", "recon_core.operators.temporal:coupled_coefficients"),
    "proximal map": (
        "recon_core.operators.proximal:SpatialTv.__call__",
        "recon_core.operators.proximal:TemporalTv.__call__",
        "recon_core.operators.low_rank:LocallyLowRank.__call__",
        "recon_core.solvers.low_rank_sparse:threshold_singular_values",
        "recon_core.solvers.low_rank_sparse:threshold_temporal_spectrum",
    ),
    "field": ("recon_core.solvers.subspace_inr:SubspaceInr._update_field", "recon_core.solvers.inmr:Inmr._update"),
    "images": (
        "recon_core.solvers.subspace:SubspaceSolver.images",
        "recon_core.solvers.subspace_inr:SubspaceInr.images",
        "recon_core.solvers.inmr:Inmr.images",
    ),
}
REST = "rest"
COLUMNS = (*STAGES, REST)


@dataclasses.dataclass(frozen=True)
class Step:
    """A solver's step and what it cannot do without.

    Attributes:
        function: ``module:name`` of the step.
        joint: the Gram operator couples K bases; else it acts on every frame.
        applications: settings of the solver to Gram applications a step.
    """

    function: str
    joint: bool
    applications: Callable[[Mapping[str, Any]], int] = lambda _: 1


STEPS: dict[str, Step] = {
    "als_subspace": Step("recon_core.solvers.als_subspace:AlsSubspace._update_bases", True, lambda settings: int(settings["inner"])),
    "cg_sense": Step("recon_core.solvers.cg_sense:CgSense._update", False),
    "grasp": Step("recon_core.solvers.grasp:Grasp._update", False),
    "grasp_pro": Step("recon_core.solvers.grasp_pro:GraspPro._update", True),
    "low_rank_sparse": Step("recon_core.solvers.low_rank_sparse:LowRankSparse._update", False),
    "subspace_inr": Step("recon_core.solvers.subspace_inr:SubspaceInr._update_bases", True),
}
"""Solvers whose least work is known; the others are shown without a floor."""


def check() -> None:
    """The profiler is there.

    Raises:
        MissingPartError: it is not.
    """
    if importlib.util.find_spec("pyinstrument") is None:
        raise MissingPartError("profile", "pyinstrument is not installed", "pip install 'gadgetron-inr[profile]'")


def identifier(name: str) -> str:
    """How the profiler calls the function ``module:qualified.name``; fails where there is none."""
    module, qualified = name.split(":")
    found = inspect.unwrap(operator.attrgetter(qualified)(importlib.import_module(module)))
    code = found.__code__
    return f"{code.co_name}\x00{code.co_filename}\x00{code.co_firstlineno}"


@contextlib.contextmanager
def profiled(method: str, out: dict[str, Any]) -> Iterator[None]:
    """Sample what runs inside and leave in ``out`` seconds by phase and stage, and inside the method's step.

    Args:
        method: solver by name.
        out: receives ``stages`` (``selection`` and ``fit``, stage to seconds) and ``step_seconds`` (of all steps of the fit).
    """
    from pyinstrument import Profiler

    profiler = Profiler(interval=INTERVAL, async_mode="disabled")
    with profiler:
        yield
    session = profiler.last_session
    root = None if session is None else session.root_frame(trim_stem=False)
    stages = {phase: dict.fromkeys(COLUMNS, 0.0) for phase in ("selection", "fit")}
    stage_of = {identifier(name): stage for stage, names in STAGES.items() for name in names}
    selection = identifier(SELECTION)
    step = identifier(STEPS[method].function) if method in STEPS else ""
    seconds = 0.0
    waiting = [] if root is None else [(root, "fit", REST)]
    while waiting:
        frame, phase, stage = waiting.pop()
        phase = "selection" if frame.identifier == selection else phase
        stage = stage_of.get(frame.identifier, REST) if stage == REST else stage
        stages[phase][stage] += frame.time - sum(child.time for child in frame.children)
        if phase == "fit" and frame.identifier == step:
            seconds += frame.time
        waiting += [(child, phase, stage) for child in frame.children]
    out |= {"stages": stages, "step_seconds": seconds}


@dataclasses.dataclass(frozen=True)
class Rates:
    """What the machine does, in the threads that the solver has.

    Attributes:
        matmul: flop/s of a float32 matrix product of 1024².
        fft: flop/s (5 n log₂ n a transform) of complex64 transforms of the doubled grid.
        copy: byte/s, read and written, of a copy of 64 MiB.
    """

    matmul: float
    fft: float
    copy: float


def measure_rates(grid: tuple[int, ...], device: str) -> Rates:
    """Measure the rates on a device, with transforms of ``grid``."""
    square = torch.randn(1024, 1024, device=device)
    images = torch.randn(4, *grid, dtype=torch.complex64, device=device)
    block = torch.empty(1 << 24, dtype=torch.float32, device=device)
    other = torch.empty_like(block)
    dims = tuple(range(1, images.ndim))

    def seconds(statement: str) -> float:
        names = {"square": square, "images": images, "block": block, "other": other, "dims": dims, "fftn": torch.fft.fftn}
        timer = benchmark.Timer(statement, globals=names, num_threads=torch.get_num_threads())
        return float(timer.blocked_autorange(min_run_time=0.2).median)

    return Rates(
        matmul=2 * 1024**3 / seconds("square @ square"),
        fft=len(images) * fft_flops(grid) / seconds("fftn(images, dim=dims)"),
        copy=2 * 4 * block.numel() / seconds("other.copy_(block)"),
    )


def fft_flops(grid: tuple[int, ...]) -> float:
    """Customary count of one complex transform, 5 n log₂ n."""
    n = math.prod(grid)
    return 5 * n * math.log2(n)


def least_work(method: str, settings: Mapping[str, Any], shape: tuple[int, ...], frames: int, coils: int) -> dict[str, float] | None:
    """What one step cannot do without: its Gram applications on the doubled grid.

    Args:
        method: solver by name.
        settings: its own settings.
        shape: of an image.
        frames: of the series.
        coils: virtual coils.

    Returns:
        ``transforms``, ``fft_flops``, ``flops`` (products with the kernel) and ``bytes`` (kernel read once, spectra read and written
        once); None where the method's least work is not known.
    """
    if method not in STEPS:
        return None
    step = STEPS[method]
    grid = tuple(2 * n for n in shape)
    points, times = math.prod(grid), step.applications(settings)
    images = min(int(settings["rank"]), frames) if step.joint else frames
    kernels = images * images if step.joint else images
    transforms = 2 * images * coils * times
    # A real number times a complex one and added: four operations, two where nothing is added.
    operations = (4 if step.joint else 2) * kernels * coils * points * times
    moved = (4 * kernels + 16 * images * coils) * points * times
    return {"transforms": transforms, "fft_flops": transforms * fft_flops(grid), "flops": operations, "bytes": moved}


def floor_seconds(work: Mapping[str, float], rates: Rates) -> float:
    """Time of the least work: transforms at their measured rate, products by arithmetic or by memory, whichever is slower."""
    return work["fft_flops"] / rates.fft + max(work["flops"] / rates.matmul, work["bytes"] / rates.copy)


def against_floor(
    method: str, report: Mapping[str, Any], step_seconds: float, shape: tuple[int, ...], frames: int, rates: Rates
) -> dict[str, Any]:
    """A step's measured time over its floor.

    Args:
        method: solver by name.
        report: of :func:`recon_core.reconstruct.reconstruct`.
        step_seconds: of all steps of the fit.
        shape: of an image.
        frames: of the series.
        rates: of the machine.

    Returns:
        ``rates`` and, where the method's least work is known, ``steps``, ``step`` (s), ``floor`` (s), ``ratio`` and the work.
    """
    work = least_work(method, report["settings"], shape, frames, report["virtual_coils"])
    found: dict[str, Any] = {"rates": dataclasses.asdict(rates)}
    if work is None:
        return found
    steps = min(report["steps"], report["settings"]["steps"])
    step, floor = step_seconds / steps, floor_seconds(work, rates)
    return {**found, "steps": steps, "step": step, "floor": floor, "ratio": step / floor, "work": work}


def stage_table(result: Mapping[str, Any]) -> Table:
    """Seconds by stage of every profiled method of a case, for the terminal."""
    from rich.table import Table

    runs = [run for run in result["runs"] if "profile" in run]
    used = [stage for stage in COLUMNS if any(seconds[stage] >= 0.005 for run in runs for seconds in run["profile"]["stages"].values())]
    table = Table(title=f"{result['title']}: seconds by stage")
    for heading in ("method", "phase", *used, "all"):
        table.add_column(heading, justify="left" if heading in ("method", "phase") else "right")
    for run in runs:
        for phase, seconds in run["profile"]["stages"].items():
            cells = [f"{seconds[stage]:.2f}" if seconds[stage] >= 0.005 else "" for stage in used]
            table.add_row(run["method"], phase, *cells, f"{sum(seconds.values()):.2f}")
    return table


def floor_table(result: Mapping[str, Any]) -> Table:
    """A step of every profiled method against its floor, for the terminal."""
    from rich.table import Table

    table = Table(title=f"{result['title']}: a step against its floor (transforms and kernel products at the rates measured)")
    for heading in (
        "method",
        "steps",
        "step (ms)",
        "floor (ms)",
        "ratio",
        "FFTs",
        "Gflop",
        "MB",
        "FFT Gflop/s",
        "matmul Gflop/s",
        "copy GB/s",
    ):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for run in (run for run in result["runs"] if "profile" in run):
        profile = run["profile"]
        rates = [f"{profile['rates'][name] / 1e9:.1f}" for name in ("fft", "matmul", "copy")]
        if "work" not in profile:
            table.add_row(run["method"], "", "", "not known", *[""] * 4, *rates)
            continue
        work = profile["work"]
        flops = (work["fft_flops"] + work["flops"]) / 1e9
        measured = [f"{1e3 * profile['step']:.1f}", f"{1e3 * profile['floor']:.1f}", f"{profile['ratio']:.1f}"]
        table.add_row(
            run["method"],
            str(profile["steps"]),
            *measured,
            f"{work['transforms']:.0f}",
            f"{flops:.2f}",
            f"{work['bytes'] / 1e6:.0f}",
            *rates,
        )
    return table
