"""A small dynamic scan for tests of solvers: smooth object, known maps, golden-angle spokes, exact sums."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recon_core.operators.nufft import Nufft
from recon_core.problem import KSpaceProblem
from recon_core.trajectories import cartesian_lines, cartesian_mask

GOLDEN = math.pi * (math.sqrt(5) - 1) / 2


def blob(y: Tensor, x: Tensor, cy: float, cx: float, width: float) -> Tensor:
    return torch.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * width**2))


def toy_series(n_frames: int, shape: tuple[int, int]) -> Tensor:
    ny, nx = shape
    y, x = torch.meshgrid(torch.arange(ny) / ny - 0.5, torch.arange(nx) / nx - 0.5, indexing="ij")
    frames = []
    for t in range(n_frames):
        shift = 0.06 * math.sin(2 * math.pi * t / 12)
        body = (((y / 0.42) ** 2 + (x / 0.36) ** 2) < 1).float() * 0.6
        frames.append(body + blob(y, x, 0.05 + shift, 0.08, 0.08) + 0.5 * blob(y, x, -0.15, -0.1 - shift, 0.05))
    return torch.stack(frames).to(torch.complex64) * torch.exp(0.5j * (x + 2 * y))


def toy_maps(coils: int, shape: tuple[int, int]) -> Tensor:
    ny, nx = shape
    y, x = torch.meshgrid(torch.arange(ny) / ny - 0.5, torch.arange(nx) / nx - 0.5, indexing="ij")
    maps = []
    for c in range(coils):
        angle = 2 * math.pi * c / coils
        cy, cx = 0.6 * math.sin(angle), 0.6 * math.cos(angle)
        maps.append(blob(y, x, cy, cx, 0.5) * torch.exp(1j * (2 * cx * x - 1.5 * cy * y + angle)))
    stacked = torch.stack(maps).to(torch.complex64)
    return stacked / stacked.abs().square().sum(0).sqrt()


def toy_problem(
    n_frames: int = 24, shape: tuple[int, int] = (30, 26), coils: int = 3, per_frame: int = 3, noise: float = 0.0, seed: int = 0
) -> tuple[KSpaceProblem, Tensor]:
    """A problem without maps and its true series (unit root-sum-of-squares maps)."""
    generator = torch.Generator().manual_seed(seed)
    truth = toy_series(n_frames, shape)
    maps = toy_maps(coils, shape)
    n = n_frames * per_frame
    samples_per_readout = 2 * max(shape)
    radius = (torch.arange(samples_per_readout) - samples_per_readout // 2) / samples_per_readout
    angle = torch.arange(n) * GOLDEN
    spokes = torch.stack([angle.cos()[:, None] * radius * shape[1], angle.sin()[:, None] * radius * shape[0]], dim=-1)
    axes = [(torch.arange(m) - m // 2) / m for m in shape]
    position = torch.stack([r.flatten() for r in torch.meshgrid(*axes, indexing="ij")])
    data = []
    for i in range(n):
        kernel = torch.exp(-2j * torch.pi * (spokes[i] @ position.flip(0)))
        data.append((maps * truth[i // per_frame]).flatten(1).to(torch.complex64) @ kernel.T / math.sqrt(math.prod(shape)))
    samples = torch.stack(data, dim=1)
    samples = samples + noise * torch.randn(samples.shape, dtype=torch.complex64, generator=generator)
    times = torch.arange(n, dtype=torch.float64) * 0.003
    frames = tuple(torch.arange(i * per_frame, (i + 1) * per_frame) for i in range(n_frames))
    frame_times = torch.stack([times[f].mean() for f in frames])
    return KSpaceProblem(samples, spokes.to(torch.float32), frames, times, frame_times, shape), truth


def full_frame(shape: tuple[int, int] = (18, 14), coils: int = 2, spokes: int = 40) -> tuple[KSpaceProblem, Tensor]:
    """One smooth frame sampled beyond Nyquist, with its maps and weights, and the truth."""
    problem, _ = toy_problem(1, shape, coils, spokes)
    ny, nx = shape
    y, x = torch.meshgrid(torch.arange(ny) / ny - 0.5, torch.arange(nx) / nx - 0.5, indexing="ij")
    truth = (blob(y, x, 0.05, 0.1, 0.13) - 0.6 * blob(y, x, -0.1, -0.08, 0.11)) * torch.exp(1j * (x + 2 * y))
    maps = toy_maps(coils, shape)
    nufft = Nufft(problem.trajectory.flatten(0, 1), shape, "nudft")
    samples = nufft.forward((maps * truth).to(torch.complex64)).reshape(problem.samples.shape)
    weights = problem.trajectory.norm(dim=-1) * 0.02 + 0.01
    return problem.replace(samples=samples, weights=weights, sensitivities=maps), truth[None].to(torch.complex64)


def toy_cartesian(
    n_frames: int = 12,
    shape: tuple[int, int] = (30, 26),
    coils: int = 3,
    acceleration: float = 3.0,
    calibration_lines: int = 8,
    noise: float = 0.0,
    seed: int = 0,
) -> tuple[KSpaceProblem, Tensor]:
    """A problem of Cartesian lines without maps, each frame with lines of its own, and its true series."""
    generator = torch.Generator().manual_seed(seed)
    truth = toy_series(n_frames, shape)
    ny, nx = shape
    mask = cartesian_mask(n_frames, ny, acceleration, calibration_lines, seed)
    owner, lines = (torch.from_numpy(a) for a in mask.nonzero())
    y, x = ((torch.arange(n) - n // 2) / n for n in shape)
    along_x = torch.exp(-2j * torch.pi * (torch.arange(nx) - nx // 2)[:, None] * x[None])
    along_y = torch.exp(-2j * torch.pi * (torch.arange(ny) - ny // 2)[:, None] * y[None])
    full = along_y @ (toy_maps(coils, shape) * truth[:, None]) @ along_x.T / math.sqrt(math.prod(shape))
    samples = full[owner, :, lines].permute(1, 0, 2)
    samples = samples + noise * torch.randn(samples.shape, dtype=torch.complex64, generator=generator)
    times = torch.arange(len(lines), dtype=torch.float64) * 0.003
    frames = tuple(torch.nonzero(owner == t, as_tuple=True)[0] for t in range(n_frames))
    trajectory = torch.from_numpy(cartesian_lines(lines.numpy(), nx, ny))
    frame_times = torch.stack([times[f].mean() for f in frames])
    return KSpaceProblem(samples.to(torch.complex64), trajectory, frames, times, frame_times, shape, cartesian=True), truth
