"""Joint-MAPLE in sense (Heydari et al., Magn Reson Med 2024;91:2294): parallel imaging, signal model, low rank and a network in one loss.

    L = ‖A U − y‖²/‖y‖² + a ‖A Φᴴ Î(P) − y‖²/‖y‖² + b ‖U − Φᴴ Î(P)‖²/‖U‖² + c Σ_p ‖B_p U‖_* / Σ_p ‖B_p U₀‖_*

over the weights of two CNNs, trained on the one scan: one makes the spatial bases U of a parallel-imaging reconstruction U₀, the other the
parameter maps P of a voxel-wise fit to it. Readouts kept for validation choose the epoch. What is ours is listed in
``docs/methods/joint_maple.md``.
"""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import Tensor, nn

from recon_core.fields.residual_cnn import ResidualCnn, as_bases, as_channels
from recon_core.operators.contrasts import ContrastTerm
from recon_core.options import option
from recon_core.parameter_fit import bounds, from_fitted, object_mask, parameter_maps, to_fitted
from recon_core.problem import KSpaceProblem
from recon_core.signal_models import ParameterMap
from recon_core.solvers.base import Solver
from recon_core.solvers.quantitative import QuantitativeSettings, QuantitativeSolver
from recon_core.solvers.zero_deepsub import solve

_RIDGE = 1e-2


@dataclasses.dataclass(frozen=True)
class JointMapleSettings(QuantitativeSettings):
    """Settings of :class:`JointMaple`."""

    epochs: int = option(100, "largest number of optimiser steps", low=1, high=100_000)
    patience: int = option(15, "steps without a better validation after which training ends", low=1)
    iterations: int = option(12, "conjugate-gradient iterations of the parallel-imaging reconstruction that the networks start from", low=1)
    blocks: int = option(3, "residual blocks of each network", low=1, high=100)
    channels: int = option(32, "width of the networks", low=4, high=512)
    learning_rate: float = option(1e-3, "Adam's learning rate", low=1e-7, high=1.0)
    validation: float = option(0.1, "share of the readouts kept for validation", low=0.01, high=0.9)
    model_data: float = option(1.0, "weight a of the model's own data term", low=0.0)
    model: float = option(0.1, "weight b of the bases' distance from the model", low=0.0)
    low_rank: float = option(0.01, "weight c of the nuclear norms of blocks of bases", low=0.0)
    block_size: int = option(8, "voxels of such a block along y and x", low=2, high=256)


class JointMaple(QuantitativeSolver[JointMapleSettings]):
    """Weighted images and parameter maps of two CNNs, fitted jointly to the scan.

    Attributes:
        parts: the terms of the last step's loss, by name.
        best: smallest value of the validation readouts' data terms over their energy.
    """

    name = "joint_maple"
    Settings = JointMapleSettings

    @property
    def total_steps(self) -> int:
        """Optimiser steps."""
        return self.settings.epochs

    def start(self, problem: KSpaceProblem, previous: Solver[JointMapleSettings] | None = None) -> None:
        """See :class:`Solver`; every scan starts anew."""
        super().start(problem, previous)
        settings, device = self.settings, problem.device
        count = self.data.samples.shape[1]
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed))
        held = torch.zeros(count, dtype=torch.bool)
        held[order[: max(1, min(count - 1, round(settings.validation * count)))]] = True
        held = held.to(device)
        self.seen, self.judge = (ContrastTerm(self.data.keep(part), self.basis) for part in (~held, held))
        weight = _RIDGE * float(self.term.gram.diagonal(dim1=1, dim2=2).real.mean())
        self.first = solve(self.term, self.sensitivities, weight, self.term.adjoint(self.sensitivities), settings.iterations)
        self.bases = self.first
        self.scale = self.first.abs().square().mean(tuple(range(1, self.first.ndim)), keepdim=True).sqrt() + 1e-12
        self.mask = object_mask(self.first, settings.mask_share)
        self.mask = self.mask if bool(self.mask.any()) else torch.ones_like(self.mask)
        fit = self.fit_object()
        fitted = torch.stack([to_fitted(p, fit.values[p.name]) for p in self.model.parameters])[:, self.mask.flatten()]
        # Aliasing throws single voxels to the bounds: what the network starts from keeps to where most of them lie.
        ends = torch.quantile(fitted[:, :: max(1, fitted.shape[1] // 100_000)], torch.tensor([0.05, 0.95], device=device), dim=1)
        self.started = torch.minimum(torch.maximum(fitted, ends[0][:, None]), ends[1][:, None])
        self.spread = (ends[1] - ends[0])[:, None].clamp_min(1e-6)
        self.low, self.high = (b.to(device) for b in bounds(self.model))
        guess = torch.zeros((len(fitted), self.mask.numel()), device=device)
        guess[:, self.mask.flatten()] = (self.started - self.started.mean(1, keepdim=True)) / self.spread
        self.guess = guess.reshape(-1, *problem.shape)
        rank, parameters = self.first.shape[0], len(fitted)
        self.images_net = ResidualCnn(2 * rank, 2 * rank, settings.channels, settings.blocks, self.seed)
        self.maps_net = ResidualCnn(2 * rank + parameters, parameters, settings.channels, settings.blocks, self.seed + 1)
        self.nets = nn.ModuleList([self.images_net, self.maps_net]).to(device)
        self.optimiser = torch.optim.Adam(self.nets.parameters(), lr=settings.learning_rate)
        self.nuclear = float(self._nuclear(self.first)) + 1e-12
        self.parts: dict[str, float] = {}
        self.best, self.idle = float("inf"), 0
        self.chosen = copy.deepcopy(self.nets.state_dict())
        self._store()

    def _forward(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Bases U, fitted values ``[parameter, voxel of the mask]``, their amplitude, and ``Φᴴ Î(P)``."""
        seen = as_channels(self.first / self.scale)
        bases = self.first + self.scale * as_bases(self.images_net(seen))
        moved = self.maps_net(torch.cat([as_channels(bases / self.scale), self.guess])).flatten(1)[:, self.mask.flatten()]
        fitted = torch.minimum(torch.maximum(self.started + self.spread * moved, self.low), self.high)
        signal = self.model.project(from_fitted(self.model, fitted), self.basis)
        inside = bases.flatten(1)[:, self.mask.flatten()]
        amplitude = (signal.conj() * inside).sum(0) / signal.abs().square().sum(0).clamp_min(1e-20)
        whole = torch.zeros_like(bases.flatten(1))
        whole[:, self.mask.flatten()] = amplitude * signal
        return bases, fitted, amplitude, whole.reshape(bases.shape)

    def _nuclear(self, bases: Tensor) -> Tensor:
        """Sum of the nuclear norms of blocks, each the matrix of its voxels by components, components to unit size."""
        size, height, width = self.settings.block_size, bases.shape[-2], bases.shape[-1]
        scaled = bases / self.scale
        scaled = torch.nn.functional.pad(scaled, (0, -width % size, 0, -height % size))
        tiles = scaled.unfold(-2, size, size).unfold(-2, size, size).flatten(-2)
        matrices = tiles.reshape(bases.shape[0], -1, size * size).permute(1, 2, 0)
        # Through the small Gram matrix: its eigenvalues are the squared singular values.
        gram = matrices.mH @ matrices
        return torch.linalg.eigvalsh(gram).clamp_min(1e-8).sqrt().sum()

    def _update(self) -> None:
        settings = self.settings
        if self.idle >= settings.patience:
            return
        self.optimiser.zero_grad(set_to_none=True)
        bases, _, _, modelled = self._forward()
        loss = torch.zeros((), device=bases.device)
        parts: dict[str, float] = {}
        for name, weight, series in (("data", 1.0, bases), ("model_data", settings.model_data, modelled)):
            misfit, slope, _ = self.seen.cost_and_gradients(series, self.sensitivities, of_maps=False)
            parts[name] = weight * misfit / self.seen.energy
            loss = loss + weight * (slope.conj() * series).real.sum() / self.seen.energy
        inside = self.mask[None].expand_as(bases)
        apart = (bases - modelled)[inside].abs().square().sum() / bases.detach()[inside].abs().square().sum().clamp_min(1e-30)
        low_rank = self._nuclear(bases) / self.nuclear
        parts |= {"model": settings.model * float(apart.detach()), "low_rank": settings.low_rank * float(low_rank.detach())}
        (loss + settings.model * apart + settings.low_rank * low_rank).backward()
        self.optimiser.step()
        self.parts = parts
        self._validate()

    def _validate(self) -> None:
        with torch.no_grad():
            bases, _, _, modelled = self._forward()
        terms = ((1.0, bases), (self.settings.model_data, modelled))
        error = sum(w * self.judge.cost_and_gradients(x, self.sensitivities, of_maps=False)[0] for w, x in terms) / self.judge.energy
        self.idle += 1
        if error < self.best:
            self.best, self.idle = error, 0
            self.chosen = copy.deepcopy(self.nets.state_dict())
        if self.idle >= self.settings.patience or self.step == self.settings.epochs - 1:
            self.nets.load_state_dict(self.chosen)
            self.idle = self.settings.patience
            self._store()

    def _store(self) -> None:
        with torch.no_grad():
            self.bases, self.found, self.amplitude, _ = self._forward()

    def maps(self) -> tuple[ParameterMap, ...]:
        """Maps of the second network, where the object is."""
        return parameter_maps(self.model, from_fitted(self.model, self.found), self.amplitude, self.mask)

    def objective(self) -> float | None:
        """Sum of the last step's terms."""
        return sum(self.parts.values()) if self.parts else None


SOLVER = JointMaple
