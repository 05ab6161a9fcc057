"""Run the methods of a case one by one and score what they give."""

from __future__ import annotations

import dataclasses
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gadgets.bench import bart, scans
from gadgets.bench.cases import Case, Region
from gadgets.bench.problems import compressed, predicted_error, save_problem
from gadgets.bench.worker import descend
from recon_core.calibration import calibrate
from recon_core.errors import ReconError, SettingError
from recon_core.metrics import align, score
from recon_core.options import build, unknown_name
from recon_core.problem import KSpaceProblem
from recon_core.solvers import registry

logger = logging.getLogger(__name__)

TIME_AVERAGE = "time_average"
PEERS = ("bart",)

Tell = Callable[[str], None]
Images = NDArray[np.complex64]


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """One method on one scan.

    Attributes:
        record: JSON-able: method, seed, seconds, memory, scores, settings chosen; or ``error``.
        images: complex64 ``[frame, (z,) y, x]``, None where the method failed.
    """

    record: dict[str, Any]
    images: Images | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class CaseResult:
    """All methods on all scans of a case.

    Attributes:
        case: the case.
        source: phantom and version, or the data's file.
        records: of all methods and seeds.
        first: the first seed's scan, for pictures.
        images: the first seed's images by method.
    """

    case: Case
    source: str
    records: list[dict[str, Any]]
    first: scans.BenchScan
    images: dict[str, Images]


def methods_of(case: Case, asked: Sequence[str] | None, dim: int) -> list[str]:
    """Solvers to run: those asked for, else the case's, else all that handle its dimensions; the time average first.

    Raises:
        SettingError: no such solver, or a setting that its solver does not have.
    """
    for solver, own in case.settings.items():
        build(registry.settings_class(solver), own, prefix=f"{case.name}.settings.{solver}.")
    names = list(asked or case.methods or [n for n in registry.names() if dim in registry.solver_class(n).dims])
    for name in names:
        if name != TIME_AVERAGE and name not in registry.names():
            raise unknown_name("methods", name, [TIME_AVERAGE, *registry.names()])
    return [TIME_AVERAGE, *(n for n in dict.fromkeys(names) if n != TIME_AVERAGE)]


def check_peers(peers: Sequence[str]) -> None:
    """Peers are known and installed.

    Raises:
        SettingError: no such peer.
        MissingPartError: not installed.
    """
    for peer in peers:
        if peer not in PEERS:
            raise unknown_name("peer", peer, PEERS)
        bart.version()


def run_case(
    case: Case,
    data: Path,
    methods: Sequence[str] | None = None,
    peers: Sequence[str] = (),
    device: str = "auto",
    tell: Tell | None = None,
    profile: bool = False,
) -> CaseResult:
    """Run a case.

    Args:
        case: the case.
        data: folder of real data.
        methods: solvers; None: the case's.
        peers: other programs.
        device: for our own solvers.
        tell: is told a line a method.
        profile: take down where each solver's time goes.

    Raises:
        ReconError: the scan cannot be made. A method that fails is told in its record instead.
    """
    say = tell or _log
    check_peers(peers)
    records: list[dict[str, Any]] = []
    first: scans.BenchScan | None = None
    images: dict[str, Images] = {}
    for seed in case.seeds:
        say(f"{case.name}: making the scan, seed {seed}")
        scan = scans.make(case, seed, data)
        for outcome in _run_scan(case, scan, seed, methods_of(case, methods, scan.problem.dim), peers, device, say, profile):
            records.append(outcome.record)
            if outcome.images is not None and seed == case.seeds[0]:
                images[outcome.record["method"]] = outcome.images
        first = first or scan
    if first is None:
        raise SettingError("seeds", "none", "Give at least one.")
    return CaseResult(case, first.source, records, first, images)


def _run_scan(
    case: Case,
    scan: scans.BenchScan,
    seed: int,
    methods: Sequence[str],
    peers: Sequence[str],
    device: str,
    say: Tell,
    profile: bool = False,
) -> Iterator[Outcome]:
    scorer = Scorer(case, scan)
    common = {"coils": case.coils, "holdout": case.holdout, "seed": seed, "device": device}
    for method in methods:
        job = {"kind": "solver", "method": method, "settings": dict(case.settings.get(method, {})), **common}
        if profile and method != TIME_AVERAGE:
            job["profile"] = True
        outcome = _scored(scorer, job, scan.problem, {"method": method, "seed": seed})
        say(_line(outcome.record))
        yield outcome
    if "bart" in peers:
        for outcome in _bart(case, scan, scorer, common, seed, say):
            say(_line(outcome.record))
            yield outcome


def _bart(case: Case, scan: scans.BenchScan, scorer: Scorer, common: dict[str, Any], seed: int, say: Tell) -> Iterator[Outcome]:
    """GRASP by BART: at the λ chosen on held-out readouts and, where the truth is known, at the best of the grid."""
    settings = case.bart
    done: dict[float, Outcome] = {}

    def at(strength: float) -> Outcome:
        if strength not in done:
            job = {"kind": "bart", "strength": strength, "iterations": settings.iterations, **common}
            done[strength] = _scored(scorer, job, scan.problem, {"method": "bart", "seed": seed})
            say(f"bart at λ={strength:g}: {_line(done[strength].record)}")
        return done[strength]

    select = {"kind": "bart_selection", "strengths": list(settings.strengths), **common}
    chosen = run_job({**select, "iterations": settings.selection_iterations or settings.iterations}, scan.problem)[0]
    if "error" in chosen:
        yield Outcome({"method": "bart (held-out λ)", "seed": seed, "error": chosen["error"]})
        return
    by_held_out = at(chosen["strength"])
    yield _renamed(by_held_out, "bart (held-out λ)", tried=chosen["tried"])
    if scan.truth is None or by_held_out.images is None:
        return
    best, tried = descend(settings.strengths, lambda strength: -at(strength).record.get("psnr_db", -np.inf))
    yield _renamed(at(best), "bart (oracle λ)", tried=[{"strength": s, "psnr_db": -cost} for s, cost in sorted(tried.items())])


def _renamed(outcome: Outcome, name: str, **more: Any) -> Outcome:
    return Outcome({**outcome.record, "method": name, **more}, outcome.images)


def run_job(job: dict[str, Any], problem: KSpaceProblem) -> tuple[dict[str, Any], Images | None, Images | None]:
    """One job in a process of its own.

    Returns:
        Its report (``error`` in it where it failed), images and maps where it gave some.
    """
    with tempfile.TemporaryDirectory(prefix="gadgetron-inr-bench-") as name:
        folder = Path(name)
        save_problem(folder / "problem.pt", problem)
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, "-m", "gadgets.bench.worker", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        logger.debug("%s", done.stdout)
        report_file = folder / "report.json"
        if done.returncode != 0 or not report_file.exists():
            said = done.stderr.strip().splitlines() or ["nothing said"]
            logger.debug("%s", done.stderr)
            return {"error": f"process ended with {done.returncode}: {said[-1]}"}, None, None
        report = json.loads(report_file.read_text(encoding="utf-8"))
        images, maps = (np.load(f) if (f := folder / f"{kind}.npy").exists() else None for kind in ("images", "maps"))
        return report, images, maps


class Scorer:
    """Scores images of one scan against its truth, or against the readouts that no method was given."""

    def __init__(self, case: Case, scan: scans.BenchScan) -> None:
        self.case, self.scan = case, scan
        self.judged: tuple[KSpaceProblem, torch.Tensor] | None = None
        if scan.everything is not None:
            training, calibration = calibrate(scan.problem, case.coils)
            assert training.sensitivities is not None
            self.judged = compressed(scan.everything, case.coils, like=scan.problem), training.sensitivities
            assert calibration.compression.shape[0] == self.judged[0].n_coils

    def __call__(self, images: Images, maps: Images | None = None) -> dict[str, Any]:
        """Scores that the scan allows; ``maps`` are the method's own where it made some."""
        found: dict[str, Any] = {}
        truth, moving = self.scan.truth, self.scan.moving
        if truth is not None and moving is not None:
            found |= score(images, truth, moving)
            if self.case.regions:
                aligned, reference = align(images, truth)
                found["curves"] = {
                    name: curve_difference(np.abs(aligned), np.abs(reference), region) for name, region in self.case.regions.items()
                }
                found["curve_difference"] = max(found["curves"].values())
        if self.judged is not None and self.scan.withheld is not None:
            problem, ours = self.judged
            found["held_out_error"] = predicted_error(
                torch.from_numpy(images), problem, self.scan.withheld, ours if maps is None else torch.from_numpy(maps)
            )
        return found


def curve_difference(images: NDArray[Any], truth: NDArray[Any], region: Region) -> float:
    """RMS difference of a region's time courses over the true course's maximum; magnitudes ``[frame, y, x]``.

    Raises:
        SettingError: the region holds no signal.
    """
    box = (slice(None), slice(*region.y), slice(*region.x))
    part = truth[box]
    if part.size == 0 or not part[0].max() > 0:
        raise SettingError("regions", f"rows {region.y}, columns {region.x} hold no signal", "Give a box within the image.")
    chosen = part[0] > 0.5 * part[0].max()
    expected, found = (series[:, chosen].mean(axis=1) for series in (part, images[box]))
    return float(np.sqrt(np.mean((found - expected) ** 2)) / expected.max())


def _scored(scorer: Scorer, job: dict[str, Any], problem: KSpaceProblem, record: dict[str, Any]) -> Outcome:
    report, images, maps = run_job(job, problem)
    if images is None or "error" in report:
        return Outcome({**record, "error": report.get("error", "no images")})
    try:
        scores = scorer(images, maps)
    except ReconError as error:
        return Outcome({**record, "error": str(error)})
    return Outcome({**record, **report, **scores}, images)


def _line(record: dict[str, Any]) -> str:
    if "error" in record:
        return f"{record['method']}: {record['error']}"
    parts = [f"{record['seconds']:.1f} s", f"{record['memory']['above'] / 2**20:.0f} MiB"]
    for key, words in (("psnr_db", "{:.2f} dB"), ("dynamic_error", "dynamic error {:.3f}"), ("held_out_error", "held-out error {:.4g}")):
        if key in record:
            parts.append(words.format(record[key]))
    return f"{record['method']}: {', '.join(parts)}"


def _log(line: str) -> None:
    logger.info("%s", line)
