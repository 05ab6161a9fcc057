"""A multi-contrast protocol from the header and its readouts' counters, checked to be complete before anything is fitted.

Counters: ``contrast`` is the echo, ``set`` the flip angle or T2 preparation, ``segment`` (or ``repetition``, where no segment counts) the
excitation after the preparation. Header: ``TE`` one an echo, ``flipAngle_deg`` one a set for spoiled gradient echoes, user parameters
``T2prep_ms_0``, ``T2prep_ms_1``, … one a set for T2-prepared inversion recovery.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from gadgets.binning.by_count import Binning
from gadgets.header import ScanHeader
from gadgets.readouts import Readout, check_uniform
from recon_core.errors import DataError
from recon_core.problem import KSpaceProblem
from recon_core.signal_models import Protocol

PREPARATION = "T2prep_ms_"
_SHOWN = 3


def contrasts(problem: KSpaceProblem, readouts: list[Readout], header: ScanHeader, model: str) -> tuple[KSpaceProblem, Binning]:
    """Sort readouts into the contrasts of their protocol, which are the problem's frames.

    Args:
        problem: whitened readouts; its frames are replaced.
        readouts: the same readouts.
        header: the scan's header.
        model: as :func:`find_protocol` takes it.

    Returns:
        The problem of a protocol, and how it came about.

    Raises:
        DataError: as :func:`find_protocol`.
    """
    protocol, contrast = find_protocol(readouts, header, model)
    binning = Binning(tuple(np.flatnonzero(contrast == number) for number in range(protocol.contrasts)), describe(protocol))
    made = problem.replace(
        frames=tuple(torch.from_numpy(frame.copy()) for frame in binning.frames),
        frame_times=torch.arange(protocol.contrasts, dtype=torch.float64),
        protocol=protocol,
    )
    return made, binning


def one_contrast(readouts: Iterable[Readout], header: ScanHeader, solver: str) -> Iterator[Readout]:
    """Hand on the readouts of a scan whose course in time is to be reconstructed, and refuse those of a multi-contrast protocol.

    A protocol's recoveries and lines would pass for the frames of a motion, each of its echoes, flip angles and preparations for a scan.
    It is told by counters and header together: T2 preparations or several flip angles that the readouts count; or several echoes of
    Cartesian lines none of which comes twice.

    Args:
        readouts: imaging readouts in order of acquisition.
        header: the scan's header.
        solver: its name, for the message.

    Raises:
        DataError: the scan is a multi-contrast protocol.
    """
    prepared = any(name.startswith(PREPARATION) for name in header.user_doubles)
    listed = f"T2 preparations ({PREPARATION}n)" if prepared else f"{len(header.flip_angles)} flip angles"
    lists = prepared or len(header.flip_angles) > 1
    echoes = len(header.echo_times) > 1 and all(encoding.is_cartesian for encoding in header.encodings)
    seen: set[tuple[int, ...]] = set()
    last, repeated = 0, False
    for readout in readouts:
        index = readout.head.idx
        if lists and (index.set or (prepared and (index.segment or index.repetition))):
            counted = f"set {index.set}, segment {index.segment}, repetition {index.repetition}"
            raise _not_in_time(solver, f"its header lists {listed} and readout {readout.number} is of {counted}")
        if echoes and not repeated:
            last = max(last, index.contrast)
            place = (*readout.key, index.kspace_encode_step_1, index.kspace_encode_step_2)
            repeated = place in seen
            seen.add(place)
        yield readout
    if last and not repeated:
        raise _not_in_time(solver, f"it has {last + 1} echoes, of which no line comes twice")


def _not_in_time(solver: str, found: str) -> DataError:
    return DataError(
        "solver",
        f"{solver} models a course in time, the scan is a multi-contrast protocol: {found}",
        "Choose a solver of protocols (lorein, lrt, summit, parameter_fit), or cg_sense with framing=counters, a frame a contrast and set.",
    )


def find_protocol(readouts: list[Readout], header: ScanHeader, model: str = "auto") -> tuple[Protocol, NDArray[np.int64]]:
    """The protocol and every readout's contrast number.

    Args:
        readouts: all imaging readouts of one slice or volume.
        header: the scan's header.
        model: of :data:`recon_core.signal_models.MODELS`; ``auto``: ``t2_inversion`` where the header lists T2 preparations,
            ``spoiled`` where it lists several flip angles, else ``decay``.

    Raises:
        DataError: a contrast without readouts, lists that do not fit the counters, mixed encodings.
    """
    check_uniform(readouts)
    spaces = {r.head.encoding_space_ref: header.encoding(r.head.encoding_space_ref) for r in readouts}
    sizes = {(e.encoded.matrix, e.recon.matrix) for e in spaces.values()}
    if len(sizes) > 1:
        found = "; ".join(f"encoding {number}: {e.encoded.matrix}" for number, e in sorted(spaces.items()))
        raise DataError("encodedSpace.matrixSize", f"contrasts of different matrices ({found})", "Send all contrasts with one matrix.")
    preparations = _preparations(header)
    if model == "auto":
        model = "t2_inversion" if preparations else "spoiled" if len(header.flip_angles) > 1 else "decay"
    index = [r.head.idx for r in readouts]
    echo = np.array([i.contrast for i in index])
    outer = np.array([i.set for i in index])
    counter = "segment" if any(i.segment for i in index) else "repetition"
    recovery = np.array([getattr(i, counter) for i in index])
    sets = {"spoiled": len(header.flip_angles), "t2_inversion": len(preparations)}.get(model, 1)
    where = {"spoiled": "sequenceParameters.flipAngle_deg", "t2_inversion": f"userParameterDouble {PREPARATION}n"}.get(model, "set")
    _check_counter("contrast", echo, len(header.echo_times), "sequenceParameters.TE")
    _check_counter("set", outer, sets, where)
    recoveries = int(recovery.max()) + 1 if model == "t2_inversion" else 1
    if model == "t2_inversion" and header.inversion_times and len(header.inversion_times) != recoveries:
        raise DataError(
            counter,
            f"{recoveries} excitations after a preparation, the header lists {len(header.inversion_times)} TI",
            "Send the whole recovery, or correct sequenceParameters.TI.",
        )
    if model != "t2_inversion":
        # Repetitions of a steady state are averages.
        recovery = np.zeros_like(recovery)
    protocol = Protocol(
        model=model,
        echo_times=header.echo_times,
        repetition_time=header.repetition_time,
        flip_angles=() if model == "decay" else header.flip_angles,
        preparations=preparations if model == "t2_inversion" else (),
        recoveries=recoveries,
    )
    contrast = (outer * recoveries + recovery) * len(header.echo_times) + echo
    missing = np.setdiff1d(np.arange(protocol.contrasts), contrast)
    if len(missing):
        named = [f"set {p} {counter} {r} contrast {e}" for p, r, e in (protocol.place(int(m)) for m in missing[:_SHOWN])]
        more = ", …" if len(missing) > _SHOWN else ""
        raise DataError(
            "protocol",
            f"{len(missing)} of {protocol.contrasts} contrasts have no readout ({', '.join(named)}{more})",
            "Send the whole protocol, or correct the header's lists.",
        )
    return protocol, contrast.astype(np.int64)


def _preparations(header: ScanHeader) -> tuple[float, ...]:
    """Durations of the T2 preparations in seconds.

    Raises:
        DataError: their numbering has a gap.
    """
    named = {name.removeprefix(PREPARATION): value for name, value in header.user_doubles.items() if name.startswith(PREPARATION)}
    if sorted(named) != sorted(str(n) for n in range(len(named))):
        raise DataError(f"userParameterDouble {PREPARATION}n", f"numbered {', '.join(sorted(named))}", "Number them 0, 1, 2, …")
    return tuple(1e-3 * named[str(n)] for n in range(len(named)))


def _check_counter(name: str, values: NDArray[np.int64], listed: int, where: str) -> None:
    """Counters run from 0 to one less than what the header lists."""
    found = np.unique(values)
    if len(found) != listed or found[-1] != listed - 1:
        absent = [str(n) for n in range(listed) if n not in found]
        problem = f"{len(found)} values from {found[0]} to {found[-1]} received, the header lists {listed} in {where}"
        if absent:
            problem += f"; missing: {', '.join(absent)}"
        raise DataError(f"idx.{name}", problem, f"Send the whole protocol, or correct {where}.")


def describe(protocol: Protocol) -> str:
    """A protocol in words, for the log."""
    outer, recoveries, echoes = protocol.shape
    parts = [f"{echoes} echoes {1e3 * protocol.echo_times[0]:g} … {1e3 * protocol.echo_times[-1]:g} ms"]
    if protocol.model == "spoiled":
        parts.append(f"{outer} flip angles {', '.join(f'{math.degrees(a):g}' for a in protocol.flip_angles)}°")
    if protocol.preparations:
        parts.append(
            f"{outer} T2 preparations {', '.join(f'{1e3 * p:g}' for p in protocol.preparations)} ms, {recoveries} excitations each"
        )
    return f"{protocol.model}: {', '.join(parts)}"
