"""Run the methods of a case one by one and score what they give."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gadgets.bench import bart, map_scans, scans
from gadgets.bench.cases import Case, Row
from gadgets.bench.problems import save_problem
from gadgets.bench.scores import Images, Scorer
from gadgets.bench.worker import descend
from recon_core.errors import ReconError, SettingError
from recon_core.options import build, unknown_name
from recon_core.problem import KSpaceProblem
from recon_core.solvers import registry

logger = logging.getLogger(__name__)

TIME_AVERAGE = "time_average"
PEERS = ("bart",)

Tell = Callable[[str], None]


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """One method on one scan.

    Attributes:
        record: JSON-able: method, seed, seconds, memory, scores, settings chosen; or ``error``.
        images: complex64 ``[frame, (z,) y, x]``, None where the method failed.
        made: what else it made, by name.
    """

    record: dict[str, Any]
    images: Images | None = None
    made: Mapping[str, NDArray[Any]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class CaseResult:
    """All methods on all scans of a case.

    Attributes:
        case: the case.
        source: phantom and version, or the data's file.
        records: of all methods and seeds.
        first: the first scan, for pictures; None where no row ran on it.
        images: the first scan's images by method, of the rows that ran.
        made: what else these made, by method and name.
    """

    case: Case
    source: str
    records: list[dict[str, Any]]
    first: scans.BenchScan | None
    images: dict[str, Images]
    made: dict[str, Mapping[str, NDArray[Any]]] = dataclasses.field(default_factory=dict)


def rows_of(case: Case, asked: Sequence[str] | None, dim: int) -> list[Row]:
    """Rows to run: those asked for by name or method, else the case's, else all solvers that handle its dimensions.

    Before the first row on every scan comes the time average; contrasts of a protocol have none.

    Raises:
        SettingError: no such solver, a setting that its solver does not have, or what a protocol does not allow.
    """
    for solver, own in case.settings.items():
        build(registry.settings_class(solver), own, prefix=f"{case.name}.settings.{solver}.")
    protocol = scans.quantitative(case)
    solvers = registry.quantitative_names() if protocol else registry.names()
    declared = list(case.rows or [Row(n) for n in solvers if dim in registry.solver_class(n).dims])
    if protocol and case.withhold:
        raise SettingError(f"{case.name}.withhold", "of a protocol", "Judge its maps by their truth.")
    rows = declared
    if asked:
        rows = [row for name in asked for row in [r for r in declared if name in (r.title, r.method)] or [Row(name)]]
    found: dict[str, Row] = {}
    for row in rows:
        if not protocol:
            average = Row(TIME_AVERAGE, _named(TIME_AVERAGE, row.scan), scan=row.scan)
            found.setdefault(average.title, average)
            if row.method == TIME_AVERAGE:
                continue
        if row.method not in solvers:
            raise unknown_name("methods", row.method, solvers if protocol else [TIME_AVERAGE, *solvers])
        if protocol and (row.frames is not None or row.every > 1):
            raise SettingError(f"{case.name}.{row.title}", "some frames of a protocol", "Leave frames and every out.")
        build(registry.settings_class(row.method), row.settings, prefix=f"{case.name}.{row.title}.settings.")
        if case.withhold and (row.frames is not None or row.every > 1):
            raise SettingError(f"{case.name}.withhold", "beside a row of some frames only", "Judge such a row by a truth.")
        found.setdefault(row.title, row)
    return list(found.values())


def _named(name: str, over: Mapping[str, Any]) -> str:
    """A row's name with what is particular to its scan."""
    return f"{name} ({', '.join(str(value) for value in over.values())})" if over else name


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


class Part:
    """A case on one scan of one seed; the scan is made when the first row needs it.

    Attributes:
        case: with the settings of this scan.
        over: what of the scan differs from the case's.
        seed: of scan and methods.
    """

    def __init__(self, case: Case, over: Mapping[str, Any], seed: int, data: Path, device: str) -> None:
        self.case = dataclasses.replace(case, scan={**case.scan, **over})
        self.over, self.seed = over, seed
        self._data, self._device = data, device

    @functools.cached_property
    def scan(self) -> scans.BenchScan:
        """The scan with its truth."""
        return scans.make(self.case, self.seed, self._data)

    @functools.cached_property
    def scorer(self) -> Scorer:
        """Scores images of this scan."""
        return Scorer(self.case, self.scan)

    @property
    def common(self) -> dict[str, Any]:
        """What every job on this scan is told."""
        return {"coils": self.case.coils, "holdout": self.case.holdout, "seed": self.seed, "device": self._device}

    def asked(self, row: Row) -> dict[str, Any]:
        """What a row is asked for, as it lies in a record: an equal record need not be made again."""
        own = {**self.case.settings.get(row.method, {}), **row.settings}
        frames = {"frames": row.frames, "every": row.every, "scored": self.case.scored}
        asked = {"method": row.method, "settings": own, "scan": self.case.scan, "source": scans.source(self.case), **frames}
        if self.case.tensor_bytes:
            asked["tensor_bytes"] = True
        if self.case.regions:
            asked["regions"] = {name: dataclasses.asdict(region) for name, region in self.case.regions.items()}
        known: dict[str, Any] = json.loads(json.dumps({**asked, "withhold": self.case.withhold, **self.common}))
        return known

    def given(self, row: Row) -> KSpaceProblem:
        """What a row's method gets: the problem, or some of its frames with their readouts."""
        problem = self.scan.problem
        if row.frames is None and row.every == 1:
            return problem
        chosen = range(0, row.frames or problem.n_frames, row.every)
        if chosen.stop > problem.n_frames:
            raise SettingError(f"{row.title}: frames", f"{chosen.stop} of {problem.n_frames}", "Ask for no more than the scan has.")
        frames = tuple(problem.frames[t] for t in chosen)
        keep = torch.zeros(problem.n_readouts, dtype=torch.bool)
        keep[torch.cat(frames)] = True
        return problem.replace(frames=frames, frame_times=problem.frame_times[list(chosen)]).keep_readouts(keep)


def run_case(
    case: Case,
    data: Path,
    methods: Sequence[str] | None = None,
    peers: Sequence[str] = (),
    device: str = "auto",
    tell: Tell | None = None,
    profile: bool = False,
    kept: Sequence[dict[str, Any]] = (),
    keep: Callable[[CaseResult], None] | None = None,
) -> CaseResult:
    """Run a case.

    Args:
        case: the case.
        data: folder of real data.
        methods: rows or solvers; None: the case's.
        peers: other programs.
        device: for our own solvers.
        tell: is told a line a method.
        profile: take down where each solver's time goes.
        kept: records of an earlier run: rows asked for in the same way are taken from them.
        keep: is given what there is after every row.

    Raises:
        ReconError: the scan cannot be made. A method that fails is told in its record instead.
    """
    say = tell or _log
    check_peers(peers)
    if peers and scans.quantitative(case):
        raise SettingError("peer", f"{peers[0]} on a protocol", "No other program makes maps here: leave --peer out.")
    result = CaseResult(case, scans.source(case), [], None, {})
    for seed in case.seeds:
        base = Part(case, {}, seed, data, device)
        dim = 2 if case.rows else base.scan.problem.dim
        rows = rows_of(case, methods, dim)
        asked = {row.title for row in rows}
        rows += [row for row in rows_of(case, None, dim) if kept and row.title not in asked]
        overs: list[Mapping[str, Any]] = []
        for row in rows:
            if row.scan not in overs:
                overs.append(row.scan)
        for number, over in enumerate(overs):
            part = Part(case, over, seed, data, device) if over else base
            first = number == 0 and seed == case.seeds[0]
            outcomes = _run_part(part, [row for row in rows if row.scan == over], asked, say, profile, kept)
            for outcome in itertools.chain(outcomes, _bart(part, say, kept) if "bart" in peers else ()):
                result.records.append(outcome.record)
                if outcome.images is not None and first:
                    result.images[outcome.record["method"]] = outcome.images
                    result.made[outcome.record["method"]] = outcome.made
                    result = dataclasses.replace(result, first=part.scan)
                if keep is not None:
                    keep(result)
    if not result.records:
        raise SettingError("seeds", "none", "Give at least one.")
    return result


def _run_part(
    part: Part, rows: Sequence[Row], asked: Set[str], say: Tell, profile: bool = False, kept: Sequence[dict[str, Any]] = ()
) -> Iterator[Outcome]:
    """Rows one by one: those kept from an earlier run, and those that are asked for by name."""
    for row in rows:
        asked_for = part.asked(row)
        record: dict[str, Any] = {"method": row.title, "seed": part.seed, "asked": asked_for}
        if row.paper:
            record["paper"] = dict(row.paper)
        earlier = [old for old in kept if "error" not in old and old.get("asked") == asked_for]
        if earlier:
            # In another table the row has another name, and the paper may have printed something else beside it.
            taken = {**{key: value for key, value in earlier[0].items() if key != "paper"}, **record}
            say(f"kept: {_line(taken)}")
            yield Outcome(taken)
            continue
        if row.title not in asked:
            continue
        job = {"kind": "solver", "method": row.method, "settings": asked_for["settings"], **part.common}
        if profile and row.method != TIME_AVERAGE:
            job["profile"] = True
        if part.case.tensor_bytes:
            job["tensor_bytes"] = True
        if row.every > 1:
            job["times"] = part.scan.problem.frame_times[: row.frames].tolist()
        if part.scan.protocol is not None:
            job["times"] = part.scan.protocol.imaged.tolist()
        outcome = _scored(part.scorer, job, part.given(row), record)
        say(_line(outcome.record))
        yield outcome


def _bart(part: Part, say: Tell, kept: Sequence[dict[str, Any]] = ()) -> Iterator[Outcome]:
    """GRASP by BART: at the λ chosen on held-out readouts and, where the truth is known, at the best of the grid."""
    settings = part.case.bart
    done: dict[float, Outcome] = {}
    asked = {**part.asked(Row("bart")), "bart": json.loads(json.dumps(dataclasses.asdict(settings)))}
    # The first of a name: a neighbouring case may hold the same.
    earlier = list({old["method"]: old for old in reversed(kept) if "error" not in old and old.get("asked") == asked}.values())[::-1]
    if earlier:
        say(f"kept: {'; '.join(_line(old) for old in earlier)}")
        yield from (Outcome(old) for old in earlier)
        return

    def named(outcome: Outcome, name: str, **more: Any) -> Outcome:
        return Outcome({**outcome.record, "method": _named(name, part.over), "asked": asked, **more}, outcome.images)

    def at(strength: float) -> Outcome:
        if strength not in done:
            job = {"kind": "bart", "strength": strength, "iterations": settings.iterations, **part.common}
            done[strength] = _scored(part.scorer, job, part.scan.problem, {"method": "bart", "seed": part.seed})
            say(f"bart at λ={strength:g}: {_line(done[strength].record)}")
        return done[strength]

    select = {"kind": "bart_selection", "strengths": list(settings.strengths), **part.common}
    chosen = run_job({**select, "iterations": settings.selection_iterations or settings.iterations}, part.scan.problem)[0]
    if "error" in chosen:
        yield named(Outcome({"seed": part.seed, "error": chosen["error"]}), "bart (held-out λ)")
        return
    by_held_out = at(chosen["strength"])
    yield named(by_held_out, "bart (held-out λ)", tried=chosen["tried"])
    if part.scan.truth is None or by_held_out.images is None:
        return
    best, tried = descend(settings.strengths, lambda strength: -at(strength).record.get("psnr_db", -np.inf))
    yield named(at(best), "bart (oracle λ)", tried=[{"strength": s, "psnr_db": -cost} for s, cost in sorted(tried.items())])


def run_job(job: dict[str, Any], problem: KSpaceProblem) -> tuple[dict[str, Any], Images | None, dict[str, NDArray[Any]]]:
    """One job in a process of its own.

    Returns:
        Its report (``error`` in it where it failed), images where it gave some, and what else it made by name.
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
            return {"error": f"process ended with {done.returncode}: {said[-1]}"}, None, {}
        report = json.loads(report_file.read_text(encoding="utf-8"))
        images = np.load(f) if (f := folder / "images.npy").exists() else None
        made: dict[str, NDArray[Any]] = {}
        if (f := folder / "found.npz").exists():
            with np.load(f) as stored:
                made = dict(stored)
        return report, images, made


def _scored(scorer: Scorer, job: dict[str, Any], problem: KSpaceProblem, record: dict[str, Any]) -> Outcome:
    report, images, made = run_job(job, problem)
    if images is None or "error" in report:
        return Outcome({**record, "error": report.get("error", "no images")})
    try:
        scores = scorer(images, made)
    except ReconError as error:
        return Outcome({**record, "error": str(error)})
    return Outcome({**record, **report, **scores}, images, made)


def _line(record: dict[str, Any]) -> str:
    if "error" in record:
        return f"{record['method']}: {record['error']}"
    parts = [f"{record['seconds']:.1f} s", f"{record['memory']['above'] / 2**20:.0f} MiB"]
    parts += [f"{name} {100 * record[f'nrmse_{name}']:.1f} %" for name in map_scans.SCORED if f"nrmse_{name}" in record]
    for key, words in (("psnr_db", "{:.2f} dB"), ("dynamic_error", "dynamic error {:.3f}"), ("held_out_error", "held-out error {:.4g}")):
        if key in record:
            parts.append(words.format(record[key]))
    return f"{record['method']}: {', '.join(parts)}"


def _log(line: str) -> None:
    logger.info("%s", line)
