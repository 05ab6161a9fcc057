"""Zero-DeepSub in sense (Jun et al., Magn Reson Med 2024;91:2459): zero-shot self-supervised subspace reconstruction.

An unrolled network on the spatial bases, ``z = U + R_θ(U)``, ``U = argmin ‖A_Θ U − y_Θ‖² + μ ‖U − z‖²`` by conjugate gradients, is
trained on the one scan: part of the readouts (Γ) is kept for validation, the others are split anew in every epoch into those the data
term sees (Θ) and those the loss is taken over (Λ), as in zero-shot self-supervised learning (Yaman et al., ICLR 2022). The weights that
predict Γ best then reconstruct all readouts. What is ours is listed in ``docs/methods/zero_deepsub.md``.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from recon_core.fields.residual_cnn import ResidualCnn, as_bases, as_channels
from recon_core.operators.contrasts import ContrastTerm
from recon_core.options import option
from recon_core.problem import KSpaceProblem
from recon_core.solvers.base import Solver
from recon_core.solvers.quantitative import QuantitativeSettings, QuantitativeSolver

_START_WEIGHT = 0.05


@dataclasses.dataclass(frozen=True)
class ZeroDeepSubSettings(QuantitativeSettings):
    """Settings of :class:`ZeroDeepSub`."""

    epochs: int = option(60, "largest number of epochs (published code: 300)", low=1, high=100_000)
    patience: int = option(10, "epochs without a better validation after which training ends (published code: 25)", low=1)
    unrolls: int = option(1, "network and data consistency in turn so often (published code: 1)", low=1, high=50)
    blocks: int = option(4, "residual blocks of the network (published code: 15)", low=1, high=100)
    channels: int = option(32, "width of the network (ours)", low=4, high=512)
    iterations: int = option(8, "conjugate-gradient iterations of data consistency (published code: 10)", low=1, high=1000)
    learning_rate: float = option(1e-3, "Adam's learning rate (published code: 5e-4)", low=1e-7, high=1.0)
    validation: float = option(0.2, "share of the readouts kept for validation (published code: 0.2)", low=0.01, high=0.9)
    loss_share: float = option(0.4, "share of the others that the loss is taken over (published code: 0.4)", low=0.01, high=0.99)


class ZeroDeepSub(QuantitativeSolver[ZeroDeepSubSettings]):
    """Unrolled network on the bases, trained on the scan itself.

    Attributes:
        best: smallest relative error of the readouts kept for validation.
        loss: relative error over the last epoch's loss readouts; None before the first.
    """

    name = "zero_deepsub"
    Settings = ZeroDeepSubSettings

    @property
    def total_steps(self) -> int:
        """Epochs, and the reconstruction of all readouts."""
        return self.settings.epochs + 1

    def start(self, problem: KSpaceProblem, previous: Solver[ZeroDeepSubSettings] | None = None) -> None:
        """See :class:`Solver`; every scan starts anew."""
        super().start(problem, previous)
        settings = self.settings
        self.generator = torch.Generator().manual_seed(self.seed)
        held = self._draw(self.data.samples.shape[1], settings.validation)
        self.training, self.judge = self.data.keep(~held), ContrastTerm(self.data.keep(held), self.basis)
        self.seen = ContrastTerm(self.training, self.basis)
        # What μ is counted in: the data term's mean curvature along a coefficient.
        self.unit = float(self.term.gram.diagonal(dim1=1, dim2=2).real.mean()) + 1e-12
        self.bases = self._consistent(self.term, torch.zeros_like(self.term.adjoint(self.sensitivities)), 1e-3 * self.unit)
        axes = tuple(range(1, self.bases.ndim))
        self.scale = self.bases.abs().square().mean(axes, keepdim=True).sqrt() + 1e-12
        rank = self.bases.shape[0]
        self.net = ResidualCnn(2 * rank, 2 * rank, settings.channels, settings.blocks, self.seed).to(problem.device)
        self.log_weight = nn.Parameter(torch.tensor(_START_WEIGHT, device=problem.device).log())
        self.optimiser = torch.optim.Adam([*self.net.parameters(), self.log_weight], lr=settings.learning_rate)
        self.chosen = copy.deepcopy(self.net.state_dict()), self.log_weight.detach().clone()
        self.best, self.idle = float("inf"), 0
        self.loss: float | None = None

    def _draw(self, count: int, share: float) -> Tensor:
        """A seeded choice of readouts, bool ``[readout]`` with at least one and not all."""
        chosen = torch.zeros(count, dtype=torch.bool)
        chosen[torch.randperm(count, generator=self.generator)[: max(1, min(count - 1, round(share * count)))]] = True
        return chosen.to(self.problem.device)

    def _consistent(self, term: ContrastTerm, towards: Tensor, weight: Tensor | float) -> Tensor:
        found: Tensor = Consistency.apply(
            towards, torch.as_tensor(weight, device=towards.device), term, self.sensitivities, self.settings.iterations
        )
        return found

    def _unrolled(self, term: ContrastTerm) -> Tensor:
        """The bases as the network makes them from the readouts of a term."""
        weight = self.unit * self.log_weight.exp()
        bases = self._consistent(term, torch.zeros_like(self.bases), 1e-3 * self.unit)
        for _ in range(self.settings.unrolls):
            denoised = bases + self.scale * as_bases(self.net(as_channels(bases / self.scale)))
            bases = self._consistent(term, denoised, weight)
        return bases

    def _update(self) -> None:
        settings = self.settings
        if self.step == settings.epochs:
            self._finish()
            return
        if self.idle >= settings.patience:
            return
        chosen = self._draw(self.training.samples.shape[1], settings.loss_share)
        seen, asked = (ContrastTerm(self.training.keep(part), self.basis) for part in (~chosen, chosen))
        self.optimiser.zero_grad(set_to_none=True)
        bases = self._unrolled(seen)
        misfit, slope, _ = asked.cost_and_gradients(bases, self.sensitivities, of_maps=False)
        self.loss = _relative(misfit, asked)
        # The gradient of ‖y − ŷ‖/‖y‖ by the chain rule, through a stand-in of the quadratic's.
        ((slope.conj() * bases).real.sum() / (2 * asked.energy * max(self.loss, 1e-12))).backward()
        self.optimiser.step()
        with torch.no_grad():
            misfit = self.judge.cost_and_gradients(self._unrolled(self.seen), self.sensitivities, of_maps=False)[0]
        error = _relative(misfit, self.judge)
        self.idle += 1
        if error < self.best:
            self.best, self.idle = error, 0
            self.chosen = copy.deepcopy(self.net.state_dict()), self.log_weight.detach().clone()

    def _finish(self) -> None:
        self.net.load_state_dict(self.chosen[0])
        with torch.no_grad():
            self.log_weight.copy_(self.chosen[1])
            self.bases = self._unrolled(self.term)

    def objective(self) -> float | None:
        """Relative error over the last epoch's loss readouts."""
        return self.loss


def _relative(misfit: float, term: ContrastTerm) -> float:
    """``‖A U − y‖ / ‖y‖`` of a term's value."""
    return (max(misfit, 0.0) / max(term.energy, 1e-30)) ** 0.5


class Consistency(torch.autograd.Function):
    """``argmin_U ½‖A U − y‖² + ½ μ ‖U − z‖²``; its derivative solves the same system (implicit function theorem)."""

    @staticmethod
    def forward(ctx: Any, towards: Tensor, weight: Tensor, term: ContrastTerm, maps: Tensor, iterations: int) -> Tensor:
        """Solve from ``towards``, complex64 ``[K, (z,) y, x]``, by conjugate gradients."""
        ctx.term, ctx.maps, ctx.iterations = term, maps, iterations
        # From z: what is missing there alone has to be found.
        residual = term.adjoint(maps) - term.normal(towards, maps)
        found = towards + solve(term, maps, float(weight), residual, iterations)
        ctx.save_for_backward(towards, weight, found)
        return found

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients by z and μ."""
        towards, weight, found = ctx.saved_tensors
        along = solve(ctx.term, ctx.maps, float(weight), slopes[0], ctx.iterations)
        return weight * along, (along.conj() * (towards - found)).real.sum(), None, None, None


def solve(term: ContrastTerm, maps: Tensor, weight: float, right: Tensor, iterations: int) -> Tensor:
    """``(Aᴴ A + μ)⁻¹`` times ``right`` by conjugate gradients from zero.

    Args:
        term: the data term A.
        maps: complex64 ``[coil, (z,) y, x]``.
        weight: μ.
        right: complex64 ``[K, (z,) y, x]``.
        iterations: largest number.
    """
    x = torch.zeros_like(right)
    residual = direction = right
    energy = float(residual.abs().square().sum())
    first = energy
    for _ in range(iterations):
        if energy <= 1e-12 * first:
            break
        image = term.normal(direction, maps) + weight * direction
        length = energy / float((direction.conj() * image).real.sum())
        x, residual = x + length * direction, residual - length * image
        before, energy = energy, float(residual.abs().square().sum())
        direction = residual + energy / before * direction
    return x


SOLVER = ZeroDeepSub
