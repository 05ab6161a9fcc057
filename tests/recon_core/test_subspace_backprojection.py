"""The right-hand side of a subspace series in blocks of frames, where V is smooth, against all courses one by one."""

from __future__ import annotations

import pytest
import torch

from recon_core.operators import frames as operators
from recon_core.operators.frames import NufftOptions, occupied_frames, subspace_backprojection
from recon_core.solvers.base import interpolate_frames
from tests.recon_core.toy import toy_problem

RANK, FRAMES = 6, 45


@pytest.fixture(scope="module")
def parts():
    """Frames of a toy problem, one of them empty, and maps."""
    problem = toy_problem(n_frames=FRAMES, shape=(18, 14), coils=2, per_frame=3)[0]
    empty = tuple(f if n != 4 else f[:0] for n, f in enumerate(problem.frames))
    maps = torch.randn((2, 18, 14), dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    return occupied_frames(problem.replace(frames=empty)), maps


def one_by_one(frames, maps, temporal):
    return sum(
        temporal[:, t, None, None] * subspace_backprojection([frame], maps, torch.ones((1, 1)), NufftOptions("nudft"))
        for t, frame in enumerate(frames)
        if frame.points.shape[0]
    )


def test_smooth_courses_are_transformed_in_blocks_of_low_rank(parts, monkeypatch):
    frames, maps = parts
    nodes = torch.randn((FRAMES // 9 + 1, RANK), generator=torch.Generator().manual_seed(0))
    times = torch.arange(FRAMES, dtype=torch.float64)
    temporal = interpolate_frames(nodes, 9 * torch.arange(len(nodes), dtype=torch.float64), times).T
    blocks = operators._low_rank_blocks(temporal)
    assert [right.shape[1] for _, right in blocks] == [8, 8, 8, 8, 8, 5]
    assert max(len(right) for _, right in blocks) <= 3
    torch.testing.assert_close(torch.cat([left @ right for left, right in blocks], dim=1), temporal, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(operators, "_cost_by_blocks", lambda *_: 0.0)
    found = subspace_backprojection(frames, maps, temporal, NufftOptions("nudft"))
    torch.testing.assert_close(found, one_by_one(frames, maps, temporal), rtol=1e-4, atol=1e-3)


def test_courses_of_full_rank_cost_no_less_in_blocks(parts):
    frames, maps = parts
    temporal = torch.randn((RANK, FRAMES), generator=torch.Generator().manual_seed(0))
    blocks = operators._low_rank_blocks(temporal)
    direct = RANK * sum(f.points.shape[0] for f in frames)
    assert operators._cost_by_blocks(blocks, frames, maps) > 0.8 * direct
