"""One method on one problem in a process of its own: ``python -m gadgets.bench.worker FOLDER``.

The folder holds ``problem.pt`` and ``job.json``; the truth is not there. What comes back: ``report.json``, ``images.npy`` where the method
gave images, and ``found.npz`` with what else it made: ``coils`` of a peer; of a protocol ``coils``, ``compression`` and maps by name.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gadgets.openmp import sleep_while_waiting

sleep_while_waiting()  # before torch and finufft are loaded

import numpy as np  # noqa: E402
import torch  # noqa: E402

from gadgets.bench import bart, profile  # noqa: E402
from gadgets.bench.machine import PeakMemory, TensorBytes  # noqa: E402
from gadgets.bench.problems import compressed, judge, load_problem, predicted_error  # noqa: E402
from recon_core.errors import ReconError  # noqa: E402
from recon_core.problem import ImageSeries, KSpaceProblem  # noqa: E402
from recon_core.reconstruct import ReconstructionSettings, reconstruct, resolve_device  # noqa: E402

_WARM_UP = 16
_WARM_UP_READOUTS = 64


def descend(values: Sequence[float], cost: Callable[[float], float]) -> tuple[float, dict[float, float]]:
    """The value of least cost on a grid, from its middle downhill: exact where the cost has one valley, with few evaluations.

    Returns:
        The value, and the costs of all values that were tried.
    """
    grid = sorted(values)
    tried: dict[float, float] = {}

    def at(index: int) -> float:
        if grid[index] not in tried:
            tried[grid[index]] = cost(grid[index])
        return tried[grid[index]]

    place = len(grid) // 2
    while True:
        around = [i for i in (place, place - 1, place + 1) if 0 <= i < len(grid)]
        best = min(around, key=at)
        if best == place:
            return grid[place], tried
        place = best


def warm_up(problem: KSpaceProblem, device: str) -> None:
    """Start thread pools, libraries and the device on a handful of readouts at a small matrix; not part of any time."""
    # The first optimiser of a process imports torch's compiler, which takes seconds.
    torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])
    first = torch.arange(problem.n_readouts) < _WARM_UP_READOUTS
    small = problem.keep_readouts(first).at_shape(tuple(min(n, _WARM_UP) for n in problem.shape))
    if small.mask is not None and not bool(small.mask.any()):
        return
    # The first lines of a protocol need not have its centre, from which maps of several coils would be estimated.
    coils = 4 if small.protocol is None else 1
    small = small.replace(
        frames=(torch.arange(small.n_readouts),),
        frame_times=small.readout_times.mean()[None],
        mask=small.mask,
        weights=None,
        protocol=None,
    )
    reconstruct(small, ReconstructionSettings(solver="cg_sense", device=device, holdout=0.0, coils=coils), {"steps": 2, "damping": 1.0})


def time_average(
    problem: KSpaceProblem, settings: ReconstructionSettings, times: torch.Tensor | None
) -> tuple[ImageSeries, dict[str, Any]]:
    """All readouts in one image, shown at every frame: what any dynamic method must beat."""
    times = problem.frame_times if times is None else times
    pooled = problem.replace(frames=(torch.arange(problem.n_readouts),), frame_times=problem.readout_times.mean()[None])
    still = reconstruct(pooled, settings, {"steps": 12, "damping": 0.01})
    return ImageSeries(still.series.images.expand(len(times), *problem.shape).contiguous(), times), still.report


def run_solver(job: dict[str, Any], problem: KSpaceProblem, folder: Path) -> dict[str, Any]:
    """A solver of the registry, or the time average."""
    own = {key: job[key] for key in ("coils", "holdout", "seed", "device")}
    taken: dict[str, Any] = {}
    # Other work of the machine changes rates by the minute: measured beside what they are compared with.
    rates = profile.measure_rates(tuple(2 * n for n in problem.shape), str(resolve_device(job["device"]))) if job.get("profile") else None
    times = torch.tensor(job["times"], dtype=torch.float64) if "times" in job else None
    tensors = TensorBytes() if job.get("tensor_bytes") else None
    memory = PeakMemory()
    started = time.perf_counter()
    with tensors or contextlib.nullcontext():
        if job["method"] == "time_average":
            series, report = time_average(problem, ReconstructionSettings(**{**own, "solver": "cg_sense", "holdout": 0.0}), times)
        else:
            with profile.profiled(job["method"], taken) if rates is not None else contextlib.nullcontext():
                result = reconstruct(problem, ReconstructionSettings(solver=job["method"], **own), job["settings"], _tell, times)
            series, report = result.series, result.report
            if series.maps and result.compression is not None and result.sensitivities is not None:
                maps = {found.name: found.values.numpy() for found in series.maps}
                coils = {"coils": result.sensitivities.numpy(), "compression": result.compression.numpy()}
                np.savez(folder / "found.npz", allow_pickle=False, **maps, **coils)
    seconds = time.perf_counter() - started
    used = memory.read() | ({} if tensors is None else {"tensors": tensors.peak})
    np.save(folder / "images.npy", series.images.numpy())
    if rates is not None:
        taken |= profile.against_floor(job["method"], report, taken["step_seconds"], problem.shape, problem.n_frames, rates)
    return {"seconds": seconds, "memory": used, "report": report, **({"profile": taken} if taken else {})}


def run_bart(job: dict[str, Any], problem: KSpaceProblem, folder: Path) -> dict[str, Any]:
    """BART's GRASP at one λ."""
    result = bart.Grasp(compressed(problem, job["coils"]), folder).reconstruct(job["strength"], job["iterations"])
    np.save(folder / "images.npy", result.images.numpy())
    np.savez(folder / "found.npz", coils=result.maps.numpy())
    report = {"settings": {"strength": job["strength"], "iterations": job["iterations"]}, "program": bart.version()}
    return {"seconds": result.seconds, "memory": {"peak": result.peak, "above": result.peak}, "report": report}


def select_bart(job: dict[str, Any], problem: KSpaceProblem, folder: Path) -> dict[str, Any]:
    """BART's λ by the rule of our own solvers: fitted without the held-out readouts, judged on them."""
    training, held = judge(problem, job["holdout"], job["seed"])
    small = compressed(training, job["coils"], like=training)
    whole = compressed(problem, job["coils"], like=training)
    program = bart.Grasp(small, folder)

    def cost(strength: float) -> float:
        result = program.reconstruct(strength, job["iterations"])
        error = predicted_error(result.images, whole, held, result.maps)
        _tell(f"held-out error {error:.4g} with λ={strength:g}")
        return error

    best, tried = descend(job["strengths"], cost)
    return {"strength": best, "tried": [{"strength": s, "held_out_error": e} for s, e in sorted(tried.items())]}


def _tell(line: str) -> None:
    print(line, flush=True)


KINDS: dict[str, Callable[[dict[str, Any], KSpaceProblem, Path], dict[str, Any]]] = {
    "solver": run_solver,
    "bart": run_bart,
    "bart_selection": select_bart,
}


def main(folder: Path) -> int:
    """Run the job in a folder; 0 when done or when the method refused, which its report tells."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    if job.get("profile"):
        # A kernel's time shall count for the stage that launched it.
        os.environ["CUDA_LAUNCH_BLOCKING"] = "1"
    problem = load_problem(folder / "problem.pt")
    try:
        if job["kind"] == "solver":
            warm_up(problem, job["device"])
        report = KINDS[job["kind"]](job, problem, folder)
    except ReconError as error:
        report = {"error": str(error)}
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
