"""Right-hand side of a subspace series: all K courses over all samples, against blocks of frames of low rank.

    python benchmarks/backprojection.py [frames]

V is what the subspace solvers find in a long scan: interpolated linearly between joined frames, here six. 96², two golden-angle spokes of
192 samples a frame, 8 coils, K = 24. Prints CPU seconds of one thread and the relative difference.
"""

from __future__ import annotations

import sys
import time

import torch

from recon_core.operators import frames as operators
from recon_core.operators.frames import FrameSamples, NufftOptions, subspace_backprojection
from recon_core.solvers.base import interpolate_frames
from recon_core.trajectories import golden_angle_radial

SHAPE, COILS, RANK, SPOKES, SAMPLES, JOINED = (96, 96), 8, 24, 2, 192, 6


def main(count: int) -> None:
    """Time both ways."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    spokes = torch.from_numpy(golden_angle_radial(count * SPOKES, SAMPLES, matrix=SHAPE, field_of_view=(300.0, 300.0)))
    points = spokes.reshape(count, SPOKES * SAMPLES, 2)
    shape = (COILS, SPOKES * SAMPLES)
    frames = [
        FrameSamples(p, torch.randn(shape, dtype=torch.complex64, generator=generator), torch.ones(len(p)), torch.arange(len(p)))
        for p in points
    ]
    maps = torch.randn((COILS, *SHAPE), dtype=torch.complex64, generator=generator)
    nodes = torch.randn((count // JOINED + 1, RANK), generator=generator)
    at = JOINED * torch.arange(len(nodes), dtype=torch.float64)
    temporal = interpolate_frames(nodes, at, torch.arange(count, dtype=torch.float64)).T
    found = []
    for name in ("blocks", "courses"):
        if name == "courses":
            operators._cost_by_blocks = lambda *_: float("inf")
        began = time.process_time()
        found.append(subspace_backprojection(frames, maps, temporal, NufftOptions()))
        print(f"{name:8s} {time.process_time() - began:.2f} s")
    print(f"relative difference {float((found[0] - found[1]).norm() / found[1].norm()):.1e}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 640)
