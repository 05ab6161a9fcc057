"""Parameter maps and coil sensitivities held voxel by voxel, fitted to k-space through the signal model by Gauss-Newton steps.

    min  ½ Σ_t ‖M_t F S Φ_t Φᴴ Î(P) − y_t‖²  +  λ Σ_v ‖∇P(v)‖  +  λ_R Σ_v |∇R(v)|  +  ½ μ Σ_v ‖∇Q(v)‖²  +  ½ ν ‖Ŝ‖²

P are T1, T2, T2* (as logarithms) and the complex amplitude, in units in which a tissue edge is of order one; their gradients are joined in
one norm, since tissues end at the same places in all of them. R is the rate of a decay, which a few echoes tell far less well than the
amplitude: it has a norm and a weight of its own, and the amplitude is that in the middle of the echoes, where an error of one is none of
the other. Q are off-resonance and B, which are smooth. The maps are S = S₀ + F⁻¹ w Ŝ
with weights w that fall with |k| (Uecker et al., Magn Reson Med 2008;60:674). Total variation by iteratively reweighted squares; each
Gauss-Newton system by conjugate gradients, preconditioned voxel by voxel with the parameters' curvature; values at a bound that the
gradient pushes outwards stand still within a step (Bertsekas, SIAM J Control Optim 1982;20:221). Model-based reconstruction in
this form: Wang et al., Magn Reson Med 2018;79:730.
"""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import Tensor

from recon_core.operators.contrasts import ContrastTerm
from recon_core.operators.phase import smooth_phase
from recon_core.operators.proximal import finite_differences, finite_differences_adjoint
from recon_core.parameter_fit import ParameterFit, bounds, from_fitted, object_mask, signal_and_derivatives, to_fitted
from recon_core.signal_models import SignalModel

SMOOTH = ("off_resonance", "B")
RATES = ("R2star",)
_UNITS = {"T1": 0.5, "T2": 0.5, "T2star": 0.5, "R2star": 10.0, "off_resonance": 20.0, "B": 0.1}
_AMPLITUDE_UNIT = 0.3
# Below this gradient total variation turns quadratic: an edge's size is about 1.
_ROUNDED = 0.03
_DAMPING = 1e-2
# Sensitivities of coils about a head keep to some cycles a field of view.
_COIL_BAND, _COIL_POWER = 8.6, -8
_HALVINGS = 4
_PRIOR_STEPS = 10
# Two steps in a row that lower the objective by less are the last.
_LEAST_FALL = 0.01
_PATIENCE = 2


@dataclasses.dataclass(frozen=True)
class JointWeights:
    """Weights of the priors, for samples whose noise has unit variance.

    Attributes:
        variation: λ.
        smoothness: μ.
        coils: ν over the data term's mean curvature along a sensitivity.
        rate: λ_R times the noise of a rate (:attr:`JointMaps.rate_noise`); does nothing where the model has no rate.
    """

    variation: float
    smoothness: float
    coils: float
    rate: float = 0.0


class JointMaps:
    """The problem and its iterate.

    Args:
        model: of the protocol.
        basis: complex64 ``[contrast, K]``, Φ.
        term: data term on Φ's coefficients.
        sensitivities: complex64 ``[coil, (z,) y, x]``, where the coils start.
        extent: size of the image along its axes in one unit of length, ``((z,) y, x)``.
        weights: of the priors.

    Attributes:
        point: float32 ``[parameter + 2, voxel]``: fitted values over their units, then real and imaginary part of the amplitude.
        sensitivities: as they stand, of unit root-sum-of-squares.
        middle: seconds, moment of the echoes whose signal the amplitude's rows stand for; 0, the excitation, of models without a rate.
        rate_noise: what the samples' noise propagates to in the rate of the object's middle voxel, in the rate's unit.
        cost: value of the objective before the last step; None before the first.
        idle: steps in a row that hardly lowered it.
    """

    def __init__(
        self,
        model: SignalModel,
        basis: Tensor,
        term: ContrastTerm,
        sensitivities: Tensor,
        extent: tuple[float, ...],
        weights: JointWeights,
    ) -> None:
        self.model, self.basis, self.term, self.weights = model, basis, term, weights
        self.sensitivities = sensitivities
        self.shape = tuple(sensitivities.shape[1:])
        device = sensitivities.device
        names = [p.name for p in model.parameters]
        self.units = torch.tensor([_UNITS[name] for name in names], device=device)[:, None]
        low, high = bounds(model)
        self.low, self.high = low.to(device) / self.units, high.to(device) / self.units
        self.smooth, self.rates = (
            torch.tensor([name in kind for name in names] + [False, False], device=device) for kind in (SMOOTH, RATES)
        )
        self.average = term.gram.mean(0)
        self.axes = tuple(range(-len(self.shape), 0))
        squared = torch.zeros((), device=device)
        for axis, (n, length) in enumerate(zip(self.shape, extent, strict=True)):
            k = torch.fft.fftfreq(n, 1 / n, device=device) * (max(extent) / length)
            squared = squared + (k / _COIL_BAND).square().reshape([-1 if a == axis else 1 for a in range(len(self.shape))])
        self.band = (1 + squared) ** _COIL_POWER
        self.cost: float | None = None
        self.idle = 0
        self.middle, self.rate_noise = 0.0, 1.0
        self._made: tuple[Tensor, Tensor] | None = None

    def start(self, fit: ParameterFit, bases: Tensor, share: float) -> None:
        """Start from a voxel-wise fit; outside the object the parameters are the object's medians and the amplitude is 0.

        Args:
            fit: of every voxel of ``bases``.
            bases: complex64 ``[K, (z,) y, x]``.
            share: voxels below this share of the 99th percentile are outside.
        """
        inside = object_mask(bases, share).flatten()
        if not bool(inside.any()):
            inside = torch.ones_like(inside)
        fitted = torch.stack([to_fitted(p, fit.values[p.name]) for p in self.model.parameters]) / self.units
        fitted = torch.where(inside, fitted, fitted[:, inside].median(dim=1, keepdim=True).values)
        rate = fitted[self.rates[:-2]].sum(0) * self.units[self.rates[:-2]].sum()
        if bool(self.rates.any()):
            times = self.model.echo_times.to(rate)
            energy = torch.exp(-2 * rate.median() * times)
            self.middle = float((times * energy).sum() / energy.sum())
        amplitude = torch.where(inside, fit.amplitude * torch.exp(-self.middle * rate), torch.zeros_like(fit.amplitude))
        self.scale = _AMPLITUDE_UNIT * float(amplitude.abs()[inside].median().clamp_min(1e-12))
        self.phase = smooth_phase(amplitude.reshape(self.shape)).flatten()
        amplitude = amplitude * self.phase.conj() / self.scale
        self.point = torch.cat([fitted, amplitude.real[None], amplitude.imag[None]])
        if bool(self.rates.any()):
            along = self._jacobian()[self.rates].sum(0)[:, inside]
            curvature = (along.conj() * (self.average @ along)).real.sum(0)
            self.rate_noise = float(curvature.median().clamp_min(1e-12).rsqrt())

    def with_weights(self, weights: JointWeights) -> JointMaps:
        """The same problem with other weights, from where this one stands."""
        other = copy.copy(self)
        other.weights, other.cost, other.idle = weights, None, 0
        return other

    def values(self) -> tuple[dict[str, Tensor], Tensor]:
        """Parameters by name and the complex amplitude, ``[voxel]``."""
        return self._values(self.point)

    def bases(self) -> Tensor:
        """``Φᴴ Î``, complex64 ``[K, (z,) y, x]``."""
        if self._made is None or self._made[0] is not self.point:
            self._made = self.point, self._signal(self.point).reshape(-1, *self.shape)
        return self._made[1]

    def _values(self, point: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        return from_fitted(self.model, point[:-2] * self.units), self._unit(point) * torch.complex(point[-2], point[-1])

    def _unit(self, point: Tensor) -> Tensor:
        """Amplitude at the excitation for each unit of the point's last two rows."""
        rate = (point[:-2] * self.units)[self.rates[:-2]].sum(0)
        return self.scale * self.phase * torch.exp(self.middle * rate)

    def _signal(self, point: Tensor) -> Tensor:
        values, amplitude = self._values(point)
        return amplitude * self.model.project(values, self.basis)

    def _within(self, point: Tensor) -> Tensor:
        return torch.cat([torch.minimum(torch.maximum(point[:-2], self.low), self.high), point[-2:]])

    def _free(self, gradient: Tensor) -> Tensor:
        """1 where a step may move a value, 0 where it lies at a bound and would leave it: ``[parameter + 2, voxel]``."""
        inner, downhill = self.point[:-2], -gradient[:-2]
        held = ((inner <= self.low) & (downhill < 0)) | ((inner >= self.high) & (downhill > 0))
        return torch.cat([(~held).to(gradient.dtype), torch.ones_like(gradient[-2:])])

    def _prior(self, point: Tensor) -> tuple[float, Tensor]:
        """Value of the maps' priors and the weights of their squared differences, ``[parameter + 2, (z,) y, x]``."""
        squares = finite_differences(point.reshape(-1, *self.shape)).square().sum(0)
        weights = torch.full_like(squares, self.weights.smoothness)
        value = 0.5 * self.weights.smoothness * squares[self.smooth].sum(dtype=torch.float64)
        for joined, strength in ((~(self.smooth | self.rates), self.weights.variation), (self.rates, self.weights.rate / self.rate_noise)):
            if not bool(joined.any()):
                continue
            edge = (squares[joined].sum(0) + _ROUNDED**2).sqrt()
            value = value + strength * edge.sum(dtype=torch.float64)
            weights[joined] = strength / edge
        return float(value), weights

    def _wide(self, weights: Tensor, point: Tensor) -> Tensor:
        return finite_differences_adjoint(weights[None] * finite_differences(point.reshape(-1, *self.shape))).flatten(1)

    def _coils(self, spectra: Tensor) -> Tensor:
        return torch.fft.ifftn(self.band * spectra, dim=self.axes, norm="ortho")

    def _coils_adjoint(self, maps: Tensor) -> Tensor:
        return self.band * torch.fft.fftn(maps, dim=self.axes, norm="ortho")

    def _jacobian(self) -> Tensor:
        """Derivative of the coefficients by every parameter, complex64 ``[parameter + 2, K, voxel]``."""
        signal, derivatives = signal_and_derivatives(self.model, self.point[:-2] * self.units, self.basis)
        amplitude = self._values(self.point)[1]
        turned = self._unit(self.point) * signal
        derivatives[self.rates[:-2]] += self.middle * signal
        return torch.cat([amplitude * self.units[:, None] * derivatives, torch.stack([turned, 1j * turned])])

    def step(self, iterations: int, coils: bool = True) -> bool:
        """One Gauss-Newton step.

        Args:
            iterations: conjugate-gradient iterations.
            coils: whether the sensitivities move, too.

        Returns:
            Whether another step is worth while; if not, nothing has changed.
        """
        bases = self.bases()
        coefficients = bases.flatten(1)
        misfit, of_bases, of_maps = self.term.cost_and_gradients(bases, self.sensitivities, coils)
        prior, weights = self._prior(self.point)
        # Compared where every step begins: there the gauge is the same.
        fell = self.cost is None or misfit + prior < (1 - _LEAST_FALL) * self.cost
        self.idle = 0 if fell else self.idle + 1
        self.cost = misfit + prior
        if self.idle >= _PATIENCE:
            return False
        jacobian = self._jacobian()
        curvature = float((coefficients.conj() * (self.average @ coefficients)).real.sum(0).mean()) + 1e-30
        ridge = self.weights.coils * curvature

        def back(of_bases: Tensor) -> Tensor:
            return torch.einsum("pkv,kv->pv", jacobian.conj(), of_bases.flatten(1)).real

        gradient = back(of_bases) + self._wide(weights, self.point)
        free = self._free(gradient)

        def product(x: Tensor, s: Tensor | None) -> tuple[Tensor, Tensor | None]:
            along = torch.einsum("pkv,pv->kv", jacobian, x.to(jacobian.dtype)).reshape(bases.shape)
            of_u, of_s = self.term.curvature(bases, self.sensitivities, along, None if s is None else self._coils(s))
            moved = free * (back(of_u) + self._wide(weights, x)) + _DAMPING * x
            return moved, None if of_s is None or s is None else self._coils_adjoint(of_s) + ridge * s

        projected = torch.einsum("kl,plv->pkv", self.average, jacobian)
        blocks = torch.einsum("pkv,qkv->vpq", jacobian.conj(), projected).real
        diagonal = 2 * len(self.shape) * weights.flatten(1).T + _DAMPING
        inverse = torch.linalg.inv(blocks + torch.diag_embed(diagonal))
        coil_inverse = 1 / (curvature * self.band.square() + ridge)

        def within_voxels(x: Tensor, _: Tensor | None) -> tuple[Tensor, None]:
            return free * (torch.einsum("vpq,qv->pv", blocks, x) + self._wide(weights, x)) + _DAMPING * x, None

        def voxel_by_voxel(x: Tensor, _: Tensor | None) -> tuple[Tensor, None]:
            return free * torch.einsum("vpq,qv->pv", inverse, x), None

        def precondition(x: Tensor, s: Tensor | None) -> tuple[Tensor, Tensor | None]:
            # Fully sampled, the data would tie no voxel to another: that system holds the prior as it is and needs no transform.
            moved, _ = conjugate_gradients(within_voxels, voxel_by_voxel, (x, None), _PRIOR_STEPS)
            return moved, None if s is None else coil_inverse * s

        of_coils = None if of_maps is None else -self._coils_adjoint(of_maps)
        x, s = conjugate_gradients(product, precondition, (-free * gradient, of_coils), iterations)
        return self._move(x, None if s is None else self._coils(s), self.cost)

    def _move(self, step: Tensor, coils: Tensor | None, cost: float) -> bool:
        """Go along a step, or as far of it as lowers the objective; nothing changes where it does not fall at all."""
        share = 1.0
        for _ in range(_HALVINGS):
            point = self._within(self.point + share * step)
            maps = self.sensitivities if coils is None else self.sensitivities + share * coils
            bases = self._signal(point).reshape(-1, *self.shape)
            tried = self.term.cost_and_gradients(bases, maps, of_maps=False)[0]
            if tried + self._prior(point)[0] < cost:
                # The gauge: unit root-sum-of-squares, the amplitude takes the rest.
                size = (maps.abs().square().sum(0) + 1e-12).sqrt()
                self.sensitivities = maps / size
                self.point = torch.cat([point[:-2], point[-2:] * size.flatten()])
                self._made = self.point, bases * size
                return True
            share /= 2
        return False


Pair = tuple[Tensor, Tensor | None]


def conjugate_gradients(product: object, precondition: object, right: Pair, iterations: int) -> Pair:
    """Conjugate gradients from zero in parameters and, where there are some, coil coefficients.

    The preconditioner may itself be iterative: directions are those of the flexible form (Notay, SIAM J Sci Comput 2000;22:1444).
    """

    def dot(a: Pair, b: Pair) -> float:
        total = float((a[0] * b[0]).sum(dtype=torch.float64))
        if a[1] is not None and b[1] is not None:
            total += float((a[1].conj() * b[1]).real.sum(dtype=torch.float64))
        return total

    def add(a: Pair, factor: float, b: Pair) -> Pair:
        return a[0] + factor * b[0], None if a[1] is None or b[1] is None else a[1] + factor * b[1]

    x: Pair = (torch.zeros_like(right[0]), None if right[1] is None else torch.zeros_like(right[1]))
    residual, direction = right, precondition(*right)  # type: ignore[operator]
    energy = dot(residual, direction)
    for _ in range(iterations):
        if energy <= 0:
            break
        image = product(*direction)  # type: ignore[operator]
        length = energy / dot(direction, image)
        x, before = add(x, length, direction), residual
        residual = add(residual, -length, image)
        conditioned = precondition(*residual)  # type: ignore[operator]
        turned = dot(add(residual, -1.0, before), conditioned)
        direction, energy = add(conditioned, turned / energy, direction), dot(residual, conditioned)
    return x
