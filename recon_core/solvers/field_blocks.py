"""The neural fields of LoREIN (Zhang et al.): low-rank block and parameter block, and SUMMIT's parameter block alone.

``L = L_DC1 + L_DC2 + L_prior + Σ λ_i WNNM(P_i)`` (eqs. 17, 18): bases U of a hash field and a small CNN, parameter maps of one hash field
each, coil sensitivities of a coarse hash field, all fitted to the one scan. What the paper leaves open is listed in
``docs/methods/lorein.md``.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TypeVar

import torch
from torch import Tensor, nn

from recon_core.fields.parameters import BasesCnn, CoilField, GridField, ParameterFields, layout_for
from recon_core.operators.contrasts import exact_cost
from recon_core.options import option
from recon_core.parameter_fit import object_mask, parameter_maps, to_fitted
from recon_core.problem import ImageSeries, KSpaceProblem
from recon_core.signal_models import ParameterMap
from recon_core.solvers.base import Solver
from recon_core.solvers.quantitative import QuantitativeSettings, QuantitativeSolver

# Weights of the weighted nuclear norm (paper): proton density; T1, off-resonance and phase; T2 and T2*.
_WNNM = {"PD": 0.05, "T1": 0.2, "off_resonance": 0.2, "phase": 0.2, "B": 0.2, "T2": 2.0, "T2star": 2.0, "R2star": 2.0}
_COIL_STEPS = 120
_START_STEPS = 60


@dataclasses.dataclass(frozen=True)
class FieldSettings(QuantitativeSettings):
    """Settings of :class:`FieldBlocks`."""

    steps: int = option(
        200, "optimiser steps of the whole, halving the learning rate at two fifths and four fifths (paper: 200 epochs)", low=1
    )
    pretraining: int = option(20, "further steps of the low-rank block alone, first (paper: 20 epochs)", low=0, high=100_000)
    learning_rate: float = option(1e-3, "Adam's learning rate of fields and CNN (paper: 1e-3)", low=1e-7, high=1.0)
    table_learning_rate: float = option(1e-2, "Adam's learning rate of the hash tables (ours)", low=1e-7, high=1.0)
    levels: int = option(12, "levels of the hash encodings", low=1, high=24)
    base_resolution: int = option(4, "grid points an axis of the coarsest level", low=2, high=512)
    finest: float = option(1.0, "finest level's grid points over the largest matrix size", low=0.05, high=4.0)
    log2_table: int = option(19, "log2 of the largest hash table", low=8, high=24)
    channels: int = option(32, "width of the CNN (ours)", low=4, high=512)
    phase: str = option("linear", "linear: φ0 + 2πΔf·TE; echo: one phase map an echo", choices=("linear", "echo"))
    dc2: str = option(
        "subspace",
        "parameter block's data term: on the K×K form of its projection, or exact over all contrasts",
        choices=("subspace", "exact"),
    )
    wnnm: float = option(1e-4, "weight λ of the weighted nuclear norms against the data terms (ours)", low=0.0)
    coil_start: str = option("espirit", "coil field's start: fitted to ESPIRiT's maps, or random", choices=("espirit", "random"))
    parameter_start: str = option(
        "fit",
        "parameter fields' start: voxel-wise fit to the pre-trained block's images (without one, zero-filled), or constants",
        choices=("fit", "constant"),
    )


F = TypeVar("F", bound=FieldSettings)


class FieldBlocks(QuantitativeSolver[F]):
    """Both blocks, fitted by Adam.

    Attributes:
        scale: factor between the fields' output and the images.
        parts: the terms of the last step's loss, by name.
    """

    low_rank = True

    @property
    def total_steps(self) -> int:
        """Optimiser steps, pre-training included."""
        return self.settings.steps + self._pretraining

    @property
    def _pretraining(self) -> int:
        return self.settings.pretraining if self.low_rank else 0

    def start(self, problem: KSpaceProblem, previous: Solver[F] | None = None) -> None:
        """See :class:`Solver`; fields start anew in every scan."""
        super().start(problem, previous)
        settings, shape, device = self.settings, problem.shape, problem.device
        layout = layout_for(shape, settings.levels, settings.base_resolution, settings.finest, settings.log2_table)
        lines = self.data.samples.shape[1]
        zero_filled = self.term.adjoint(self.sensitivities) * (self.data.places * problem.n_frames / max(1, lines))
        norm = torch.linalg.vector_norm(zero_filled, dim=0).flatten()
        self.scale = float(norm.kthvalue(max(1, round(0.99 * norm.numel()))).values.clamp_min(1e-12))
        self.energy = self.term.energy
        # A weak component's output counts less: all of them are then of order one in the field.
        self.gains = (self.singular.clamp_min(1e-3).sqrt() * self.scale).reshape(-1, *[1] * problem.dim)
        rank = self.basis.shape[1]
        self.coils = CoilField(shape, self.sensitivities.shape[0], self.seed)
        self.parameters = ParameterFields(self.model, shape, layout, settings.phase == "echo", self.seed + 10)
        self.modules: list[nn.Module] = [self.coils, self.parameters]
        if self.low_rank:
            self.field = GridField(shape, layout, (rank, rank), self.seed + 1)
            self.cnn = BasesCnn(rank, problem.dim, settings.channels, self.seed + 2)
            self.modules += [self.field, self.cnn]
        for module in self.modules:
            module.to(device)
            for part in module.modules():
                if isinstance(part, GridField):
                    part.to_device(device)
        starts = {p.name: p.start for p in self.model.parameters}
        typical = self.model.energy({name: torch.tensor([value]) for name, value in starts.items()}).sqrt()
        self.parameters.centre_on(starts, 0.5 * self.scale / float(typical))
        if settings.coil_start == "espirit":
            self._fit_coils()
        if not self.low_rank and settings.parameter_start == "fit":
            self._start_parameters(zero_filled)
            self._scale_amplitude()
        weights, tables = self._groups()
        self.optimiser = torch.optim.Adam(
            [{"params": weights, "lr": settings.learning_rate}, {"params": tables, "lr": settings.table_learning_rate}],
            betas=(0.9, 0.99),
            eps=1e-15,
        )
        joint = settings.steps
        milestones = sorted({self._pretraining + max(1, joint * 2 // 5), self._pretraining + max(2, joint * 4 // 5)})
        self.schedule = torch.optim.lr_scheduler.MultiStepLR(self.optimiser, milestones, gamma=0.5)
        self.parts: dict[str, float] = {}
        self._store()

    def _groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Weights, and hash tables."""
        named = [(name, p) for module in self.modules for name, p in module.named_parameters()]
        return [p for n, p in named if "encoding" not in n], [p for n, p in named if "encoding" in n]

    def _fit_coils(self) -> None:
        optimiser = torch.optim.Adam(self.coils.parameters(), lr=1e-2)
        for _ in range(_COIL_STEPS):
            optimiser.zero_grad(set_to_none=True)
            (self.coils() - self.sensitivities).abs().square().mean().backward()
            optimiser.step()

    def _bases(self) -> Tensor:
        real, imaginary = self.field()
        coarse = torch.complex(real, imaginary).reshape(-1, *self.problem.shape)
        refined: Tensor = self.cnn(coarse)
        return self.gains * refined

    def _data_term(self, bases: Tensor, maps: Tensor) -> tuple[float, Tensor]:
        """Value, and a stand-in with the same gradient whose graph does not hold û (:meth:`ContrastTerm.cost_and_gradients`)."""
        value, of_bases, of_maps = self.term.cost_and_gradients(bases, maps)
        assert of_maps is not None
        return value, (of_bases.conj() * bases).real.sum() + (of_maps.conj() * maps).real.sum()

    def _update(self) -> None:
        joint = self.step >= self._pretraining
        if joint and self.step == self._pretraining and self.low_rank and self.settings.parameter_start == "fit":
            self._store()
            self._start_parameters(self.bases)
        self.optimiser.zero_grad(set_to_none=True)
        maps = self.coils()
        loss = torch.zeros((), device=maps.device)
        parts: dict[str, float] = {}
        bases = None
        if self.low_rank:
            bases = self._bases()
            parts["dc1"], stand_in = self._data_term(bases, maps)
            loss = loss + stand_in / self.energy
        if joint:
            loss = loss + self._parameter_terms(bases, maps, parts)
        loss.backward()
        self.optimiser.step()
        self.schedule.step()
        self.parts = {name: value / self.energy if name.startswith("dc") else value for name, value in parts.items()}

    def _parameter_terms(self, bases: Tensor | None, maps: Tensor, parts: dict[str, float]) -> Tensor:
        inside, outside = self.parameters.projected(self.basis)
        if self.settings.dc2 == "exact":
            everything = torch.arange(self.problem.n_frames)
            exact = exact_cost(self.data, self.parameters.series(), maps, everything)
            parts["dc2"], term = float(exact.detach()), exact
        else:
            parts["dc2"], term = self._data_term(inside, maps)
        loss = term / self.energy
        size = float((inside if bases is None else bases).detach().abs().square().sum()) + 1e-12
        prior = outside / size
        if bases is not None:
            prior = prior + (bases - inside).abs().square().sum() / size
        parts["prior"] = float(prior.detach())
        loss = loss + prior
        if self.settings.wnnm > 0:
            nuclear = self.settings.wnnm * self._nuclear()
            parts["wnnm"] = float(nuclear.detach())
            loss = loss + nuclear
        return loss

    def _nuclear(self) -> Tensor:
        """Weighted nuclear norms of the maps' slices, weights 1/(σ + ε) held fixed within a step (Gu et al., CVPR 2014)."""
        values, amplitude, _ = self.parameters.values()
        total = torch.zeros((), device=amplitude.device)
        for name, flat in {**values, "PD": amplitude.abs()}.items():
            slices = flat.reshape(-1, *self.problem.shape[-2:])
            slices = slices / slices.detach().square().mean().sqrt().clamp_min(1e-12)
            singular = torch.linalg.svdvals(slices)
            weights = 1 / (singular.detach() + 1e-2 * singular.detach().amax(dim=1, keepdim=True))
            total = total + _WNNM[name] * (weights * singular).mean()
        return total

    def _scale_amplitude(self) -> None:
        """Give the amplitude the one factor with which the parameter block's images predict the samples best."""
        with torch.no_grad():
            images, maps = self.parameters.projected(self.basis)[0], self.coils()
        value, gradient, _ = self.term.cost_and_gradients(images, maps, of_maps=False)
        # The cost of s times the images is ½ a s² − b s + E.
        slope = float((gradient.conj() * images).real.sum(dtype=torch.float64))
        curvature = 2 * (slope - (value - self.term.energy))
        factor = (curvature - slope) / max(curvature, 1e-30)
        self.parameters.log_amplitude += math.log(min(max(factor, 1e-3), 1e3))

    def _start_parameters(self, bases: Tensor) -> None:
        """Teach the parameter fields a voxel-wise fit to images ``[K, (z,) y, x]``; what their continuity rejects of it stays out."""
        self.bases = bases
        found = {m.name: m.values.flatten() for m in super().maps()}
        mask = object_mask(self.bases, self.settings.mask_share).flatten()
        if not bool(mask.any()):
            return
        fields = self.parameters
        fields.centre_on({p.name: float(found[p.name][mask].median()) for p in fields.fitted}, float(found["PD"][mask].median()))
        amplitude = torch.polar(found["PD"], torch.zeros_like(found["PD"]) if fields.per_echo else found["phase"])[mask]
        optimiser = torch.optim.Adam(fields.parameters(), lr=1e-2)
        for _ in range(_START_STEPS):
            optimiser.zero_grad(set_to_none=True)
            values, size, _ = fields.values()
            loss = (size[mask] - amplitude).abs().square().mean() / amplitude.abs().square().mean()
            for parameter in fields.fitted:
                wanted = found[parameter.name][mask]
                loss = loss + (to_fitted(parameter, values[parameter.name][mask]) - to_fitted(parameter, wanted)).square().mean() / (
                    to_fitted(parameter, wanted).var(correction=0) + 1e-6
                )
            loss.backward()
            optimiser.step()

    def _store(self) -> None:
        with torch.no_grad():
            self.bases = self._bases() if self.low_rank else self.parameters.projected(self.basis)[0]
            self.sensitivities = self.coils().detach()

    def images(self, times: Tensor | None = None) -> ImageSeries:
        """See :class:`QuantitativeSolver`."""
        self._store()
        return super().images(times)

    def maps(self) -> tuple[ParameterMap, ...]:
        """Maps of the parameter block."""
        self._store()
        with torch.no_grad():
            values, amplitude, phasors = self.parameters.values()
        mask = object_mask(self.bases, self.settings.mask_share)
        if phasors is not None:
            amplitude = amplitude * phasors[:, 0]
            values["off_resonance"] = torch.zeros_like(amplitude.real)
        flat = mask.flatten()
        made = parameter_maps(self.model, {k: v[flat] for k, v in values.items()}, amplitude[flat], mask)
        return made if phasors is None else tuple(m for m in made if m.name != "off_resonance")

    def coil_maps(self) -> Tensor | None:
        """Learned sensitivities, of unit root-sum-of-squares."""
        self._store()
        return self.sensitivities

    def objective(self) -> float | None:
        """Sum of the last step's terms."""
        return sum(self.parts.values()) if self.parts else None
