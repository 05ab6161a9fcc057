"""The data term of a window of frames as running sums: frames enter with their V and leave with the V with which they entered."""

from __future__ import annotations

import dataclasses
from collections import deque

import torch
from torch import Tensor

from recon_core.online.measured import MeasuredFrame
from recon_core.operators.subspace_normal import SubspaceNormal, subspace_kernel

_AT_ONCE = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """A frame inside the sums.

    Attributes:
        frame: what it measured.
        temporal: float32 ``[K]``, the V with which it entered.
        number: how many frames had entered before.
    """

    frame: MeasuredFrame
    temporal: Tensor
    number: int


class SummedNormal(SubspaceNormal):
    """A subspace normal operator from a kernel summed elsewhere (:func:`recon_core.operators.subspace_normal.subspace_kernel`)."""

    def __init__(self, kernel: Tensor, sensitivities: Tensor, rank: int) -> None:
        self.hold(kernel, sensitivities, rank)


class RunningSums:
    """Gram kernel and right-hand side of a sliding window with forgetting, in float64.

    A frame that entered n frames ago weighs ``forget^n``; it leaves with exactly that weight. :meth:`rebuild` starts anew from the
    frames themselves, which also ends the growth of rounding errors.

    Args:
        sensitivities: complex64 ``[coil, (z,) y, x]``.
        forget: weight of a frame relative to the next one, in (0, 1].

    Attributes:
        entries: the frames inside, oldest first.
    """

    def __init__(self, sensitivities: Tensor, forget: float = 1.0) -> None:
        self.sensitivities = sensitivities
        self.forget = forget
        self.entries: deque[Entry] = deque()
        self._entered = 0
        self._kernel: Tensor | None = None
        self._target: Tensor | None = None

    def __len__(self) -> int:
        return len(self.entries)

    def add(self, frames: list[MeasuredFrame], temporal: Tensor) -> None:
        """Let frames enter, oldest first, with V ``[K, frame]``."""
        if not frames:
            return
        if self._kernel is not None and self._target is not None:
            self._kernel *= self.forget ** len(frames)
            self._target *= self.forget ** len(frames)
        new = [Entry(frame, temporal[:, n].clone(), self._entered + n) for n, frame in enumerate(frames)]
        self._entered += len(frames)
        self._accumulate(new, 1.0)
        self.entries.extend(new)

    def drop(self, count: int) -> None:
        """Let the oldest frames leave."""
        self._accumulate([self.entries.popleft() for _ in range(count)], -1.0)

    def rebuild(self, temporal: Tensor) -> None:
        """Sum the frames inside again, with a new V ``[K, frame]``."""
        frames = [entry.frame for entry in self.entries]
        self.entries.clear()
        self._kernel = self._target = None
        self.add(frames, temporal)

    def temporal(self) -> Tensor:
        """V ``[K, frame]`` of the frames inside, as it entered."""
        return torch.stack([entry.temporal for entry in self.entries], dim=1)

    def largest_mass(self) -> float:
        """Largest eigenvalue of ``Σ_t w_t V_t V_tᵀ``, w the frames' weights as they stand."""
        weights = [self.forget ** (self._entered - 1 - entry.number) for entry in self.entries]
        rows = self.temporal().double().cpu()
        return float(torch.linalg.eigvalsh((rows * torch.tensor(weights, dtype=torch.float64)) @ rows.T)[-1])

    def normal(self) -> SummedNormal:
        """The Gram operator as it stands, float32."""
        assert self._kernel is not None
        return SummedNormal(self._kernel.float(), self.sensitivities, self.entries[0].temporal.shape[0])

    def target(self) -> Tensor:
        """The right-hand side as it stands, complex64 ``[K, (z,) y, x]``."""
        assert self._target is not None
        return self._target.to(torch.complex64)

    def _accumulate(self, entries: list[Entry], sign: float) -> None:
        for first in range(0, len(entries), _AT_ONCE):
            part = entries[first : first + _AT_ONCE]
            weight = torch.tensor([self.forget ** (self._entered - 1 - e.number) for e in part], dtype=torch.float64)
            temporal = torch.stack([e.temporal for e in part], dim=1)
            weights = weight.to(temporal)
            grid = [2 * n for n in self.sensitivities.shape[1:]]
            spectra = torch.stack([e.frame.spectrum for e in part]).unflatten(1, grid)
            kernel = subspace_kernel(spectra, temporal * weights.sqrt())
            adjoint = torch.stack([e.frame.adjoint for e in part])
            target = torch.tensordot((temporal * weights).to(adjoint.dtype), adjoint, dims=1)
            if self._kernel is None or self._target is None:
                self._kernel, self._target = torch.zeros_like(kernel, dtype=torch.float64), torch.zeros_like(target, dtype=torch.complex128)
            self._kernel.add_(kernel, alpha=sign)
            self._target.add_(target, alpha=sign)
