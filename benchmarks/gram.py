"""The K×K Gram operator against frame-wise NUFFTs and the exact Fourier sum: ``python benchmarks/gram.py [--json FILE]``.

Two golden-angle spokes a frame; plans, spectra and kernel are made beforehand for both and timed apart. Both are timed in turn, round by
round; figures are medians, ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from gadgets.openmp import sleep_while_waiting

sleep_while_waiting()  # as in all processes of ours; before torch and finufft are loaded

# ruff: noqa: E402
import torch
from torch import Tensor

from gadgets.bench.machine import describe
from recon_core.operators.frames import FrameEncoding
from recon_core.operators.subspace_normal import SubspaceNormal
from recon_core.operators.toeplitz import point_spread_spectrum
from recon_core.problem import KSpaceProblem
from recon_core.trajectories import golden_angle_radial

SPOKES = 2
EXACT_SHAPE = (30, 26)


def problem(shape: tuple[int, int], frames: int, coils: int) -> KSpaceProblem:
    """A calibrated problem with random maps and weights; its samples are zero."""
    generator = torch.Generator().manual_seed(0)
    readouts, length = SPOKES * frames, 2 * max(shape)
    trajectory = torch.from_numpy(golden_angle_radial(readouts, length, matrix=shape[::-1], field_of_view=(300.0, 300.0)))
    maps = torch.randn(coils, *shape, dtype=torch.complex64, generator=generator) / coils**0.5
    times = torch.arange(readouts, dtype=torch.float64) * 3e-3
    members = tuple(torch.arange(SPOKES * t, SPOKES * (t + 1)) for t in range(frames))
    return KSpaceProblem(
        torch.zeros(coils, readouts, length, dtype=torch.complex64),
        trajectory,
        members,
        times,
        torch.stack([times[m].mean() for m in members]),
        shape,
        weights=torch.rand(readouts, length, generator=generator),
        sensitivities=maps,
    )


def basis(rank: int, frames: int) -> Tensor:
    """Orthonormal rows float32 ``[K, frame]``."""
    generator = torch.Generator().manual_seed(1)
    return torch.linalg.qr(torch.randn(frames, rank, generator=generator))[0].T.contiguous()


def gram(given: KSpaceProblem, temporal: Tensor) -> SubspaceNormal:
    """The operator as the subspace solvers make it."""
    frames = FrameEncoding(given).frames
    spectra = torch.stack([point_spread_spectrum(f.points, f.weights, given.shape) for f in frames])
    assert given.sensitivities is not None
    return SubspaceNormal(spectra, given.sensitivities, temporal)


def frame_wise(encoding: FrameEncoding, temporal: Tensor, bases: Tensor) -> Tensor:
    """The same by a NUFFT and its adjoint a frame."""
    out = torch.zeros_like(bases)
    for number, frame in enumerate(encoding.frames):
        image = torch.tensordot(temporal[:, number].to(bases.dtype), bases, dims=1)
        back = encoding.adjoint(frame.weights * encoding.forward(image, number), number)
        out += temporal[:, number].reshape(-1, 1, 1) * back
    return out


def side_by_side(works: Sequence[Callable[[], object]], times: int) -> list[list[float]]:
    """Seconds of each work in each of so many rounds, after one to warm up: in turn, since machines change their pace."""
    rounds = []
    for _ in range(times + 1):
        taken = []
        for work in works:
            began = time.perf_counter()
            work()
            taken.append(time.perf_counter() - began)
        rounds.append(taken)
    return rounds[1:]


def difference(rank: int, coils: int) -> float:
    """Relative difference from the exact Fourier sum, at a size at which that sum is quick."""
    given = problem(EXACT_SHAPE, 40, coils)
    temporal = basis(rank, 40)
    bases = torch.randn(rank, *EXACT_SHAPE, dtype=torch.complex64, generator=torch.Generator().manual_seed(2))
    exact = frame_wise(FrameEncoding(given, "nudft"), temporal, bases)
    return float((gram(given, temporal)(bases) - exact).norm() / exact.norm())


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--matrix", type=int, default=128)
    parser.add_argument("--coils", type=int, default=8)
    parser.add_argument("--rank", type=int, default=24)
    parser.add_argument("--frames", type=int, nargs="+", default=[160, 640])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    shape = (args.matrix, args.matrix)
    rows = []
    for frames in args.frames:
        given = problem(shape, frames, args.coils)
        temporal = basis(args.rank, frames)
        bases = torch.randn(args.rank, *shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(2))
        began = time.perf_counter()
        operator = gram(given, temporal)
        setup = time.perf_counter() - began
        encoding = FrameEncoding(given)
        works = [partial(operator, bases), partial(frame_wise, encoding, temporal, bases)]
        rounds = side_by_side(works, args.rounds)
        one, each = (statistics.median(column) for column in zip(*rounds, strict=True))
        ratios = sorted(theirs / ours for ours, theirs in rounds)
        rows.append({"frames": frames, "gram": one, "frame_wise": each, "ratios": ratios, "setup": setup})
        print(
            f"{frames:5d} frames: Gram {one:.3f} s, frame-wise NUFFTs {each:.3f} s: {statistics.median(ratios):.1f} times as long"
            f" ({ratios[0]:.1f} to {ratios[-1]:.1f}), set up in {setup:.1f} s",
            flush=True,
        )
    error = difference(args.rank, args.coils)
    print(f"relative difference from the exact Fourier sum: {error:.1e}")
    if args.json is not None:
        record = {"machine": describe(), "matrix": args.matrix, "coils": args.coils, "rank": args.rank, "rows": rows, "difference": error}
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
