"""Our own method: a self-calibrated temporal subspace, locally low rank, joined with a neural field of motion."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recon_core.fields.motion import MotionField
from recon_core.operators.blocks import image_wise
from recon_core.operators.frames import FrameSamples
from recon_core.operators.low_rank import LocallyLowRank
from recon_core.operators.phase import smooth_phase
from recon_core.operators.proximal import Fista, SpatialTv, product_of_differences
from recon_core.options import option
from recon_core.problem import ImageSeries, KSpaceProblem
from recon_core.solvers.base import Solver, interpolate_frames, rungs_beside
from recon_core.solvers.subspace import BASIS_STRENGTHS, RANKS, SubspaceSettings, SubspaceSolver

STRENGTHS = (0.011, 0.02, 0.035, 0.06, 0.1, 0.17, 0.3, 0.5)
FIELD_SHARES = (0.1, 0.2, 0.35)
# More components than the first need eight frames each, K×K kernels of at most 1 GiB, and readouts that they predict better by so much.
_FRAMES_A_COMPONENT, _KERNEL_VALUES, _EVIDENCE_FOR_RANK = 8, 1 << 28, 0.02
# Where noise or faults of the measurement limit: a smoother static basis, perhaps a still smoother one, and weights close to maximum
# likelihood.
_SMOOTH_STATIC, _SMOOTHER, _EVEN_POWER = 20.0, 5.0, 0.125
# A V less smooth follows the held-out readouts' neighbours too: that it predicts a little better says nothing.
_EVIDENCE_FOR_ROUGH = 0.03
_DUAL_STEPS = 3
_AVERAGED = 8
# A step of 1/L for the largest eigenvalue L wastes time where weak components, which are shrunk most, have that eigenvalue: steps begin
# longer, and the curvature met on the way shortens them.
_LIPSCHITZ_SHARE = 0.8
_BORNE = 1.25
_EVALUATED_FRAMES = 16
_FIELD_PIXELS = 1 << 19  # of all frames in one of its steps
_FIELD_VOXELS = 1 << 18  # the same of volumes, where a voxel takes several times as long
_MOVING_SHARE = 0.25  # of a volume's voxels, most of which are air


@dataclasses.dataclass(frozen=True)
class SubspaceInrSettings(SubspaceSettings):
    """Settings of :class:`SubspaceInr`."""

    rank: int | None = option(None, "temporal components K; auto: 24, of a long scan held-out, to 64", low=1, high=128)
    steps: int = option(36, "proximal gradient steps on the bases", low=1, high=10_000)
    strength: float | None = option(
        None, "threshold of a block's singular values, relative to the largest adjoint magnitude; auto: held-out", low=0.0
    )
    basis_strength: float | None = option(
        None, "λ of the low-resolution series' temporal total variation; auto: held-out, 0.06 or 0.01", low=0.0
    )
    continuation: float = option(5.0, "threshold of the first step over that of the last third", low=1.0, high=1e3)
    block: int = option(8, "pixels of a block along every axis", low=2, high=64)
    imaginary: float = option(2.0, "threshold of the imaginary parts, relative to that of the real ones", low=0.0, high=1e3)
    weak_power: float = option(0.2, "a weak basis is scaled by its singular value over the second one to this power", low=0.0, high=1.0)
    smooth: bool | None = option(None, "20 times the static_strength, where noise or faults of the data limit; auto: held-out")
    even: bool | None = option(None, "an eighth of the density_power, for nearly even weights where noise limits; auto: held-out")
    field: float | None = option(None, "share of the motion field in the images; auto: held-out, 0.1 to 0.35", low=0.0, high=1.0)
    field_steps: int = option(120, "Adam steps of the motion field", low=1, high=100_000)
    field_batch: int = option(8, "frames in one of these steps; of large volumes fewer", low=1, high=100_000)
    canonical: int = option(4, "canonical images L of the motion field", low=1, high=32)
    courses: int = option(6, "courses of motion J", low=1, high=64)


class SubspaceInr(SubspaceSolver[SubspaceInrSettings]):
    """``d_t = (1 − a) Σ_k V_kt U_k + a f(x, t)``: explicit bases U that are locally low rank, and a field f of motion fitted to them.

    U by accelerated proximal gradient steps on the K×K Toeplitz form, in maps that carry the object's smooth phase, so that U is nearly
    real. The field sees no k-space: canonical images moved by a neural displacement field cannot follow what is left of aliasing, which
    does not move with the tissue.

    Attributes:
        field: the motion field once it is being fitted.
    """

    name = "subspace_inr"
    Settings = SubspaceInrSettings
    check_every = 0
    field: MotionField | None = None
    cost: float | None
    largest: float
    peak: float
    courses: Tensor
    contrast: Tensor
    seen: Tensor

    @property
    def total_steps(self) -> int:
        """Steps on the bases, then on the field."""
        return self.settings.steps + (self.settings.field_steps if self.share > 0 else 0)

    @property
    def share(self) -> float:
        """Share of the field in the images."""
        return FIELD_SHARES[-1] if self.settings.field is None else self.settings.field

    @property
    def density_power(self) -> float:
        """See :class:`SubspaceSolver`; in 3D, where samples have a density of 1/|k|² and not 1/|k|, the power of the same conditioning."""
        power = self.settings.density_power * (_EVEN_POWER if self.settings.even else 1.0)
        return 1 - (1 - power) / max(1, self.problem.dim - 1)

    @classmethod
    def candidates(cls, settings: SubspaceInrSettings, problem: KSpaceProblem) -> list[Any]:
        """The lower thresholds unless one is set; without what comes to the best of them."""
        settings = dataclasses.replace(settings, rank=settings.rank or RANKS[0])
        if settings.strength is not None:
            return [settings]
        plain = dataclasses.replace(
            settings,
            field=settings.field or 0.0,
            basis_strength=BASIS_STRENGTHS[0] if settings.basis_strength is None else settings.basis_strength,
            smooth=bool(settings.smooth),
            even=bool(settings.even),
        )
        return [dataclasses.replace(plain, strength=value) for value in STRENGTHS[1::-1]]

    @classmethod
    def unguided(cls, settings: SubspaceInrSettings, problem: KSpaceProblem) -> Any:
        """See :class:`Solver`; the larger share of the field."""
        field = FIELD_SHARES[-1] if settings.field is None else settings.field
        return dataclasses.replace(super().unguided(settings, problem), field=field)

    @classmethod
    def refinements(
        cls, settings: SubspaceInrSettings, asked: SubspaceInrSettings, tried: Sequence[Any], problem: KSpaceProblem
    ) -> list[Any]:
        """Unless set: other thresholds as long as they help, more components, V less smooth, settings for bad data, shares of the field."""
        if settings.field == (asked.field or 0.0) and (beside := rungs_beside(settings, asked, tried, {"strength": STRENGTHS})):
            return beside
        rank = settings.rank or RANKS[0]
        larger = [value for value in _ranks(problem) if value > rank][:1] if asked.rank is None else []
        if larger and all((other.rank or RANKS[0]) < larger[0] for other in tried):
            return [dataclasses.replace(settings, rank=larger[0])]
        # Data that want the lowest threshold, or more components, are good; it would not hold down the noise of a rougher V either.
        bad = (settings.strength is None or settings.strength > STRENGTHS[0]) and (asked.rank is not None or rank == RANKS[0])
        limited = bad or asked.strength is not None
        weaker = [value for value in BASIS_STRENGTHS if value < (settings.basis_strength or 0.0)][:1]
        if limited and asked.basis_strength is None and weaker and all(other.basis_strength != weaker[0] for other in tried):
            return [dataclasses.replace(settings, basis_strength=weaker[0])]
        if limited and asked.smooth is None and not any(other.smooth for other in tried):
            return [dataclasses.replace(settings, smooth=True)]
        if settings.smooth and asked.smooth is None and all(other.static_strength == asked.static_strength for other in tried):
            return [dataclasses.replace(settings, static_strength=_SMOOTHER * settings.static_strength)]
        if limited and asked.even is None and not any(other.even for other in tried):
            # A lower threshold too: it is relative to an adjoint whose weights change.
            lower = [value for value in STRENGTHS if value < (settings.strength or 0.0)][-1:] if asked.strength is None else []
            return [dataclasses.replace(settings, even=True, strength=value) for value in (settings.strength, *lower)]
        known = {other.field for other in tried}
        return [dataclasses.replace(settings, field=value) for value in FIELD_SHARES if asked.field is None and value not in known]

    @classmethod
    def evidence_for(cls, settings: SubspaceInrSettings, instead_of: SubspaceInrSettings) -> float:
        """See :class:`Solver`."""
        if (settings.basis_strength or 0.0) < (instead_of.basis_strength or 0.0):
            return _EVIDENCE_FOR_ROUGH
        return _EVIDENCE_FOR_RANK if (settings.rank or 0) > (instead_of.rank or 0) else cls.evidence

    @classmethod
    def admissible(cls, settings: SubspaceInrSettings, asked: SubspaceInrSettings) -> bool:
        """See :class:`Solver`; thresholds are chosen without the field, which does not change their order and takes longer."""
        return asked.field is not None or settings.field != 0

    @classmethod
    def regularisation(cls, settings: SubspaceInrSettings) -> tuple[bool, bool, float, int]:
        """See :class:`Solver`; thresholds and the share of the field are left to the error, which has a minimum in each."""
        return bool(settings.even), bool(settings.smooth), settings.basis_strength or 0.0, -(settings.rank or RANKS[0])

    def start(self, problem: KSpaceProblem, previous: Solver[SubspaceInrSettings] | None = None) -> None:
        """See :class:`SubspaceSolver`."""
        super().start(problem, previous)
        self._restart()

    def _set_up(self, frames: Sequence[FrameSamples], spectra: Tensor | None, sensitivities: Tensor) -> None:
        super()._set_up(frames, spectra, sensitivities)
        self.phase = smooth_phase(self.target[0])
        self.normal.sensitivities = self.normal.sensitivities * self.phase
        self.aligned = self.target * self.phase.conj()

    def start_beside(self, other: Solver[SubspaceInrSettings]) -> None:
        """See :class:`SubspaceSolver`; a fit that differs in the field's share only goes on from the other's bases, and has its field."""
        super().start_beside(other)
        assert isinstance(other, SubspaceInr)
        if self.normal is other.normal:
            self.phase, self.aligned = other.phase, other.aligned
        self._restart()
        if other.step >= other.settings.steps and dataclasses.replace(other.settings, field=self.settings.field) == self.settings:
            self.bases = other.bases
            self.step = self.settings.steps
            if other.field is not None and other.step == other.total_steps and self.share > 0:
                self.field, self.peak, self.courses, self.contrast = other.field, other.peak, other.courses, other.contrast
                self.cost, self.step = other.cost, self.total_steps

    def _restart(self) -> None:
        self.warm = bool(self.bases.any())
        self.largest = float(self.target.abs().max())
        self.low_rank = LocallyLowRank(self.target.shape, self.settings.block, self.seed)
        self.variation = SpatialTv(self.target[:1].shape, _DUAL_STEPS, self.target.device)
        self.fista = Fista(self.bases * self.phase.conj())
        self.total = torch.zeros_like(self.target)
        self.bound = _LIPSCHITZ_SHARE * self.lipschitz
        self.last: tuple[Tensor, Tensor] | None = None
        self.image_of_x = torch.zeros_like(self.target)
        self.field = None
        self.cost = None

    def use_basis(self, temporal: Tensor, singular: Tensor) -> None:
        """See :class:`SubspaceSolver`; weak components are scaled down."""
        super().use_basis(temporal, singular)
        second = self.singular[min(1, len(self.singular) - 1)].clamp_min(1e-30)
        scale = (self.singular / second).clamp(1e-2, 1.0).pow(self.settings.weak_power)
        # A weak component, which holds more aliasing than signal, is damped by its scale; and it would otherwise dictate the step.
        self.temporal = self.temporal * scale[:, None]

    def _update(self) -> None:
        if self.step < self.settings.steps:
            self._update_bases()
        else:
            self._update_field()

    def _limit(self) -> float:
        """Threshold of singular values, in units of the right-hand side."""
        settings = self.settings
        strength = STRENGTHS[0] if settings.strength is None else settings.strength
        left = max(0.0, 1 - self.step / (0.7 * settings.steps))
        return strength * (1.0 if self.warm else settings.continuation**left) * self.largest

    def _curvature(self, image: Tensor) -> float:
        """Rayleigh quotient of the Gram operator along the last step; ``image`` is what it makes of the point now ahead.

        The operator is linear, so that its image of the iterate follows from those of the points ahead.
        """
        fista, last = self.fista, self.last
        at_x = torch.lerp(image, self.image_of_x, fista.pull / (1 + fista.pull)) if last is not None else image
        self.image_of_x = at_x
        if last is None:
            return 0.0
        length = product_of_differences(fista.x, last[0], fista.x, last[0])
        return product_of_differences(fista.x, last[0], at_x, last[1]) / length if length > 0 else 0.0

    def _update_bases(self) -> None:
        settings = self.settings
        ahead = self.fista.ahead
        image = self.normal(ahead)
        curvature = self._curvature(image)
        if curvature > _BORNE * self.bound:
            self.bound = curvature
            if self.fista.pull > 0:
                self.fista.restart(self.fista.x)
                ahead, image = self.fista.x, self.image_of_x
        self.last = (ahead, image)
        lipschitz = self.bound
        new = torch.empty_like(ahead)

        def descend(some: slice) -> None:
            torch.sub(image[some], self.aligned[some], out=new[some]).mul_(-1 / lipschitz).add_(ahead[some])

        image_wise(descend, new)
        strength = settings.static_strength * (_SMOOTH_STATIC if settings.smooth else 1.0)
        static = torch.full((1,), strength * self.largest / lipschitz, device=new.device)
        new[:1] = self.variation(new[:1], static)
        if len(new) > 1:
            limit = self._limit() / lipschitz
            new[1:] = self.low_rank(new[1:], limit, settings.imaginary * limit)
        self.fista.accept(new)
        averaged = min(_AVERAGED, settings.steps)
        # The grid of blocks is another one in every step: their mean shows none.
        if self.step >= settings.steps - averaged:
            self.total.add_(new, alpha=1 / averaged)
        self.bases = (self.total if self.step == settings.steps - 1 else new) * self.phase

    def _start_field(self) -> None:
        """Canonical images begin as the time average; courses are the leading temporal components, contrast's first one constant."""
        settings = self.settings
        self.courses = self.temporal - self.temporal.mean(1, keepdim=True)
        self.courses = self.courses / self.courses.std(1, keepdim=True, unbiased=False).clamp_min(1e-6)
        steady = torch.ones_like(self.courses[:1])
        self.contrast = torch.cat([steady, self.courses[1 : settings.canonical]])
        mean = torch.tensordot(self.temporal.mean(1).to(self.bases.dtype), self.bases, dims=1)
        self.peak = float(mean.abs().max()) or 1.0
        canonical = torch.zeros((len(self.contrast), *mean.shape), dtype=mean.dtype, device=mean.device)
        canonical[0] = mean / self.peak
        inside = self._moving() if self.problem.dim == 3 else None
        self.seen = self.bases if inside is None else self.bases[:, inside]
        self.field = MotionField(canonical, self.courses[: settings.courses], self.contrast, self.seed, inside)
        groups = [
            {"params": list(self.field.encoding.parameters()), "lr": 0.1},
            {"params": [self.field.mixing, self.field.canonical], "lr": 0.02},
        ]
        self.optimiser = torch.optim.Adam(groups, betas=(0.9, 0.99))
        schedule = [0.5 * (1 + math.cos(math.pi * i / settings.field_steps)) for i in range(settings.field_steps + 1)]
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, lambda i: schedule[i])
        self.generator = torch.Generator().manual_seed(self.seed)
        self.queue: list[int] = []

    def _moving(self) -> Tensor:
        """Bool ``[z, y, x]``: the voxels whose explicit course changes most."""
        offset = self.temporal - self.temporal.mean(1, keepdim=True)
        covariance = (offset @ offset.T).to(self.bases.dtype)
        change = (torch.tensordot(covariance, self.bases, dims=1) * self.bases.conj()).real.sum(0)
        most = change.flatten().topk(math.ceil(_MOVING_SHARE * change.numel())).indices
        return torch.zeros(change.numel(), dtype=torch.bool, device=change.device).index_fill_(0, most, True).reshape(change.shape)

    def _update_field(self) -> None:
        if self.field is None:
            self._start_field()
        assert self.field is not None
        count = self.problem.n_frames
        most = _FIELD_VOXELS if self.problem.dim == 3 else _FIELD_PIXELS
        wanted = min(self.settings.field_batch, count, max(1, most // self.seen[0].numel()))
        if len(self.queue) < wanted:
            self.queue += torch.randperm(count, generator=self.generator).tolist()
        batch, self.queue = torch.tensor(self.queue[:wanted], device=self.bases.device), self.queue[wanted:]
        with torch.no_grad():
            shown = torch.tensordot(self.temporal[:, batch].T.to(self.seen.dtype), self.seen, dims=1) / self.peak
        self.optimiser.zero_grad(set_to_none=True)
        loss = (self.field(batch) - shown).abs().square().mean()
        loss.backward()
        self.optimiser.step()
        self.schedule.step()
        self.cost = float(loss.detach())

    def objective(self) -> float | None:
        """Mean squared difference of the field from the explicit frames in the last step; None before it is fitted."""
        return self.cost

    @torch.no_grad()
    def images(self, times: Tensor | None = None) -> ImageSeries:
        """See :class:`SubspaceSolver`; the field's courses are interpolated linearly, too. Where it was not fitted it has no share."""
        series = super().images(times)
        if self.field is None:
            return series
        frame_times = self.problem.frame_times
        courses = interpolate_frames(self.courses.T, frame_times, series.times).T
        contrast = interpolate_frames(self.contrast.T, frame_times, series.times).T
        images = series.images
        for first in range(0, len(images), _EVALUATED_FRAMES):
            part = slice(first, first + _EVALUATED_FRAMES)
            moved = self.field.at(courses[: self.settings.courses, part], contrast[:, part]) * self.peak
            place = (part,) if self.field.inside is None else (part, self.field.inside)
            images[place] = torch.lerp(images[place], moved, self.share)
        return dataclasses.replace(series, images=images)


def _ranks(problem: KSpaceProblem) -> list[int]:
    """Numbers of components among which to choose; off resonance, with kernels of all pairs of segments, only the first."""
    if problem.field_map is not None:
        return [RANKS[0]]
    grid = math.prod(2 * n for n in problem.shape)
    return [rank for rank in RANKS if _FRAMES_A_COMPONENT * rank <= problem.n_frames and rank**2 * grid <= _KERNEL_VALUES]


SOLVER = SubspaceInr
