"""k-t GRAPPA (Huang et al., Magn Reson Med 2005;54:1172): missing lines from their neighbours in k and time."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import torch
from torch import Tensor

from recon_core.errors import DataError
from recon_core.operators.cartesian import CartesianFrames, require_cartesian
from recon_core.options import option
from recon_core.problem import ImageSeries, KSpaceProblem
from recon_core.solvers.base import Solver, interpolate_frames

SELECTED_RIDGES = (1e-3, 1e-2, 0.1, 0.5)
_OFTEN = 0.75

Offset = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class KtGrappaSettings:
    """Settings of :class:`KtGrappa`."""

    lines: int = option(3, "phase-encoding lines to each side from which a line is made", low=0, high=32)
    frames: int = option(4, "frames to each side from which a line is made", low=0, high=64)
    columns: int = option(1, "samples to each side along the line", low=0, high=16)
    sources: int = option(8, "measured lines from which a line is made, the nearest ones", low=1, high=256)
    frame_distance: float = option(0.5, "distance of neighbouring frames, in lines, when the nearest are sought", low=0.01, high=100.0)
    ridge: float | None = option(
        None, "Tikhonov weight of the kernels, relative to the calibration data's mean energy; auto: held-out", low=0.0, high=10.0
    )


class KtGrappa(Solver[KtGrappaSettings]):
    """A missing sample is a linear combination of its measured neighbours in (ky, t), of all coils and of a few samples along kx.

    Kernels are learned by ridge regression on the calibration lines, which every frame has. One Gram matrix of the whole window serves
    all patterns of measured neighbours: a pattern's normal equations are a part of it.
    """

    name = "kt_grappa"
    off_resonance = False
    Settings = KtGrappaSettings
    dims = (2,)
    kspace: Tensor

    @classmethod
    def suits(cls, problem: KSpaceProblem) -> None:
        """See :class:`Solver`; k-space must be Cartesian.

        Raises:
            DataError: it is not, or 3D.
        """
        super().suits(problem)
        require_cartesian(cls.name, problem)

    @property
    def total_steps(self) -> int:
        """Everything in one."""
        return 1

    @classmethod
    def candidates(cls, settings: KtGrappaSettings, problem: KSpaceProblem) -> list[Any]:
        """A few ridges unless one is set."""
        if settings.ridge is not None:
            return [settings]
        return [dataclasses.replace(settings, ridge=value) for value in SELECTED_RIDGES]

    def start(self, problem: KSpaceProblem, previous: Solver[KtGrappaSettings] | None = None) -> None:
        """See :class:`Solver`; there is nothing to go on with."""
        self.suits(problem)
        self.problem = problem
        self.step = 0
        self.notes: list[str] = []
        self.frames = CartesianFrames.of(problem)
        self.kspace = self.frames.samples
        # A line counts as measured where all its samples are, partial echoes aside.
        measured = self.frames.measured
        columns = measured.any(0).any(0)
        self.lines = (measured[:, :, columns].all(2) & measured.any(2)).cpu()
        self.known: list[list[bool]] = self.lines.tolist()
        self.calibration = self._calibration()
        settings = self.settings
        reach = min(settings.lines, (self.calibration.shape[2] - 1) // 2)
        span = min(settings.frames, (self.frames.occupied.numel() - 1) // 2)
        self.window = list(itertools.product(range(-reach, reach + 1), range(-span, span + 1)))
        if len(self.window) < 2:
            raise DataError("frames", f"{self.frames.occupied.numel()} with a sample", "k-t GRAPPA needs neighbours in k or time.")

    def _calibration(self) -> Tensor:
        """Calibration lines ``[frame, coil, line, x]``: about the centre, in three quarters of the frames or more.

        What a frame lacks of them (a held-out line, say) is interpolated in time, for calibration only.
        """
        occupied = self.frames.occupied
        often = (self.lines[occupied].float().mean(0) >= _OFTEN).tolist()
        first = last = len(often) // 2
        while first > 0 and often[first - 1]:
            first -= 1
        while last < len(often) and often[last]:
            last += 1
        if first >= len(often) // 2 or last == len(often) // 2:
            problem = "no calibration lines about the centre that every frame has"
            raise DataError("trajectory", problem, "Acquire some, or choose another solver.")
        numbers = torch.arange(self.lines.shape[0], dtype=torch.float64)
        made = []
        for line in range(first, last):
            present = torch.nonzero(self.lines[:, line], as_tuple=True)[0]
            made.append(interpolate_frames(self.frames.samples[:, :, line], numbers, numbers, present))
        return torch.stack(made, dim=2)

    def _update(self) -> None:
        gram = self._gram()
        filled = self.frames.samples.clone()
        groups: dict[tuple[Offset, ...], list[tuple[int, int]]] = {}
        for frame in self.frames.occupied.tolist():
            for line in torch.nonzero(~self.lines[frame], as_tuple=True)[0].tolist():
                groups.setdefault(self._sources(frame, line), []).append((frame, line))
        orphans = len(groups.pop((), []))
        if orphans:
            self.notes.append(f"{orphans} lines without a measured neighbour in the window are left empty")
        for sources, targets in groups.items():
            weights = self._weights(gram, sources)
            for first in range(0, len(targets), 64):
                part = targets[first : first + 64]
                patches = torch.cat([self._shifted(self.frames.samples, part, source) for source in sources], dim=1)
                made = torch.einsum("os,psx->pox", weights, patches)
                for (frame, line), row in zip(part, made, strict=True):
                    filled[frame, :, line] = row
        self.kspace = self.frames.consistent(filled)

    def _sources(self, frame: int, line: int) -> tuple[Offset, ...]:
        """The nearest measured lines in the window, as offsets (lines, frames)."""
        found = []
        for dy, dt in self.window:
            y, t = line + dy, frame + dt
            if 0 <= t < self.lines.shape[0] and 0 <= y < self.lines.shape[1] and self.known[t][y]:
                found.append((dy**2 + (self.settings.frame_distance * dt) ** 2, dy, dt))
        return tuple(sorted((dy, dt) for _, dy, dt in sorted(found)[: self.settings.sources]))

    def _shifted(self, kspace: Tensor, targets: list[tuple[int, int]], source: Offset) -> Tensor:
        """Samples from which lines are made: ``[target, column offset · coil, x]`` at one offset of line and frame."""
        rows = torch.stack([kspace[frame + source[1], :, line + source[0]] for frame, line in targets])
        reach = self.settings.columns
        padded = torch.nn.functional.pad(rows, (reach, reach))
        n = rows.shape[2]
        return torch.cat([padded[:, :, shift : shift + n] for shift in range(2 * reach + 1)], dim=1)

    def _gram(self) -> Tensor:
        """``AᴴA`` of the whole window over all calibration samples, complex128; rows of A: one per target sample."""
        reach, span = max(dy for dy, _ in self.window), max(dt for _, dt in self.window)
        columns = self.settings.columns
        n_frames, _, n_lines, _ = self.calibration.shape
        total: Tensor | None = None
        for frame in range(span, n_frames - span):
            targets = [(frame, line) for line in range(reach, n_lines - reach)]
            parts = torch.cat([self._shifted(self.calibration, targets, offset) for offset in self.window], dim=1)
            inside = parts[:, :, columns : parts.shape[2] - columns]
            rows = inside.permute(0, 2, 1).reshape(-1, inside.shape[1])
            product = (rows.conj().T @ rows).to(torch.complex128)
            total = product if total is None else total + product
        if total is None:
            raise DataError("frames", f"{n_frames}, fewer than the window of {2 * span + 1}", "Lower solver.frames.")
        return total

    def _weights(self, gram: Tensor, sources: tuple[Offset, ...]) -> Tensor:
        """Kernel ``[coil, source · column · coil]`` of one pattern."""
        each = (2 * self.settings.columns + 1) * self.problem.n_coils
        places = [self.window.index(source) for source in sources]
        index = torch.cat([torch.arange(place * each, (place + 1) * each) for place in places]).to(gram.device)
        middle = self.window.index((0, 0)) * each + self.settings.columns * self.problem.n_coils
        target = torch.arange(middle, middle + self.problem.n_coils, device=gram.device)
        normal = gram[index[:, None], index[None]]
        ridge = SELECTED_RIDGES[1] if self.settings.ridge is None else self.settings.ridge
        level = ridge * normal.diagonal().real.mean().clamp_min(torch.finfo(torch.float64).tiny)
        normal = normal + level * torch.eye(len(index), dtype=normal.dtype, device=gram.device)
        solved = torch.linalg.solve(normal, gram[index[:, None], target[None]])
        return solved.T.to(torch.complex64)

    def images(self, times: Tensor | None = None) -> ImageSeries:
        """See :class:`Solver`; frames without data are interpolated in time."""
        frame_times = self.problem.frame_times
        times = frame_times if times is None else times
        images = interpolate_frames(self.frames.combine(self.kspace), frame_times, times, self.frames.occupied)
        return ImageSeries(images, times, notes=tuple(self.notes))


SOLVER = KtGrappa
