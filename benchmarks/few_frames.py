"""Both forms of the Gram operator where there are hardly more frames than bases: ``python benchmarks/few_frames.py [--json FILE]``.

K×K kernels (``SubspaceNormal``) and the frames' own spectra (``FrameSubspaceNormal``), timed in turn, round by round; random spectra and
maps. Figures are medians, ratios are taken within a round. Where the ratio is near one, ``subspace_form`` changes from one to the other.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from functools import partial
from pathlib import Path

from gadgets.openmp import sleep_while_waiting

sleep_while_waiting()  # as in all processes of ours; before torch and finufft are loaded

# ruff: noqa: E402
import torch
from gram import basis, side_by_side

from gadgets.bench.machine import describe
from recon_core.operators.subspace_normal import FrameSubspaceNormal, SubspaceNormal

CASES = [
    ("rat, 140 × 70", (70, 140), 20, 20, 1),
    ("phantom, 192²", (192, 192), 9, 9, 8),
    ("lung, 64³", (64, 64, 64), 20, 20, 1),
    ("lung at half the matrix", (32, 32, 32), 20, 20, 1),
    *((f"128², {frames} frames", (128, 128), 24, frames, 8) for frames in (24, 30, 36, 48)),
]
"""Name, shape, bases, frames, coils."""


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    for name, shape, rank, frames, coils in CASES:
        generator = torch.Generator().manual_seed(0)
        spectra = torch.rand(frames, *(2 * n for n in shape), generator=generator)
        maps = torch.randn(coils, *shape, dtype=torch.complex64, generator=generator) / coils**0.5
        bases = torch.randn(rank, *shape, dtype=torch.complex64, generator=generator)
        seconds, works = [], []
        for form in (SubspaceNormal, FrameSubspaceNormal):
            began = time.perf_counter()
            works.append(partial(form(spectra, maps, basis(rank, frames)), bases))
            seconds.append(time.perf_counter() - began)
        difference = float((works[0]() - works[1]()).norm() / works[0]().norm())
        rounds = side_by_side(works, args.rounds)
        kernels, own = (statistics.median(column) for column in zip(*rounds, strict=True))
        ratio = statistics.median(one / other for one, other in rounds)
        held = [4 * math.prod(spectra.shape[1:]) * count / 2**20 for count in (rank**2, frames)]
        rows.append(
            {
                "case": name,
                "rank": rank,
                "frames": frames,
                "coils": coils,
                "kernels": {"seconds": kernels, "setup": seconds[0], "mib": held[0]},
                "frames_own": {"seconds": own, "setup": seconds[1], "mib": held[1]},
                "ratio": ratio,
                "difference": difference,
            }
        )
        print(
            f"{name}: K×K kernels {1e3 * kernels:.0f} ms, {held[0]:.0f} MiB, set up in {seconds[0]:.2f} s;"
            f" frames' spectra {1e3 * own:.0f} ms, {held[1]:.0f} MiB: {ratio:.2f} times as fast; they differ by {difference:.0e}",
            flush=True,
        )
    if args.json is not None:
        args.json.write_text(json.dumps({"machine": describe(), "rows": rows}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
