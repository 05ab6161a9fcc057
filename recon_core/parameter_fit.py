"""Voxel-wise fit of tissue parameters to weighted images, or to their coefficients on a temporal subspace.

A dictionary gives the start; then Levenberg–Marquardt on all voxels at once, the complex amplitude solved for in closed form after every
step (variable projection; Golub and Pereyra, SIAM J Numer Anal 1973;10:413). Derivatives by forward-mode differentiation of the model.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from recon_core.errors import DataError
from recon_core.signal_models import VOXELS_AT_ONCE, Factors, Parameter, ParameterMap, SignalModel, over_preparations

MASK_SHARE = 0.08
STEPS = 20
_MASK_QUANTILE = 0.99
_ATOM_CHUNK = 4096
_ENTRIES_PER_TURN = 3
_FIRST_DAMPING = 1e-2
# Share of a voxel's cost: a change of a hundredth of a parameter's standard deviation.
_SETTLED = 1e-5


@dataclasses.dataclass(frozen=True, eq=False)
class ParameterFit:
    """What was fitted.

    Attributes:
        values: parameter name to float32 ``[voxel]``.
        amplitude: complex64 ``[voxel]``, A·exp(iφ0).
        residual: float32 ``[voxel]``, norm of what the model leaves.
    """

    values: dict[str, Tensor]
    amplitude: Tensor
    residual: Tensor


def to_fitted(parameter: Parameter, values: Tensor) -> Tensor:
    """A parameter as the fit sees it: its logarithm, or itself."""
    return values.log() if parameter.logarithmic else values


def from_fitted(model: SignalModel, fitted: Tensor) -> dict[str, Tensor]:
    """Inverse of :func:`to_fitted` for all parameters ``[parameter, voxel]``."""
    return {p.name: x.exp() if p.logarithmic else x for p, x in zip(model.parameters, fitted, strict=True)}


def bounds(model: SignalModel) -> tuple[Tensor, Tensor]:
    """Smallest and largest fitted values ``[parameter, 1]``; off-resonance within what neighbouring echoes can tell apart."""
    low, high = (torch.tensor([getattr(p, end) for p in model.parameters], dtype=torch.float32) for end in ("low", "high"))
    times = model.echo_times
    for number, parameter in enumerate(model.parameters):
        if parameter.name == "off_resonance":
            widest = 0.0 if len(times) < 2 else 0.5 / float(times.diff().min())
            low[number], high[number] = max(parameter.low, -widest), min(parameter.high, widest)
        elif parameter.logarithmic:
            low[number], high[number] = low[number].log(), high[number].log()
    return low[:, None], high[:, None]


def dictionary(model: SignalModel) -> Tensor:
    """Grid of fitted values ``[parameter, atom]``, from which the best match starts the fit."""
    low, high = bounds(model)
    axes = []
    for parameter, first, last in zip(model.parameters, low[:, 0].tolist(), high[:, 0].tolist(), strict=True):
        count = parameter.grid
        if parameter.name == "off_resonance":
            span = float(model.echo_times[-1] - model.echo_times[0])
            count = max(1, math.ceil((last - first) * span * _ENTRIES_PER_TURN)) | 1
        if count == 1:
            axes.append(torch.tensor([float(to_fitted(parameter, torch.tensor(parameter.start)))]))
            continue
        # In the middles of equal cells: the ends of the range are unlikely.
        axes.append(first + (last - first) * (torch.arange(count) + 0.5) / count)
    return torch.stack([g.flatten() for g in torch.meshgrid(*axes, indexing="ij")])


def signal_and_derivatives(model: SignalModel, fitted: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Signals for unit amplitude on a subspace, and their derivatives by every fitted value.

    Signals are sums of products of factors, and few factors depend on a parameter: what does not depend on it is summed once.

    Args:
        model: of the protocol.
        fitted: float32 ``[parameter, voxel]``.
        basis: complex64 ``[contrast, K]``, Φ.

    Returns:
        complex64 ``[K, voxel]`` and ``[parameter, K, voxel]``.
    """
    parts = [_chunk_with_derivatives(model, part, basis) for part in fitted.split(VOXELS_AT_ONCE, dim=1)]
    return torch.cat([p[0] for p in parts], dim=1), torch.cat([p[1] for p in parts], dim=2)


def _chunk_with_derivatives(model: SignalModel, fitted: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    def factors(point: Tensor) -> tuple[Factors, ...]:
        return tuple(model.factors(from_fitted(model, point)))

    count, voxels = fitted.shape
    tangents = [torch.func.jvp(factors, (fitted,), (_unit(fitted, number),))[1] for number in range(count)]
    signal = torch.zeros((voxels, basis.shape[1]), dtype=basis.dtype, device=fitted.device)
    derivatives = torch.zeros((count, *signal.shape), dtype=basis.dtype, device=fitted.device)
    for term, (outer, recovery, echo) in enumerate(factors(fitted)):
        summed = model.over_recoveries(recovery, basis)
        along = over_preparations(outer, summed)
        signal += (along * echo[:, :, None]).sum(1)
        for number in range(count):
            of_outer, of_recovery, of_echo = tangents[number][term]
            if bool(of_outer.any()):
                derivatives[number] += (over_preparations(of_outer, summed) * echo[:, :, None]).sum(1)
            if bool(of_recovery.any()):
                moved = over_preparations(outer, model.over_recoveries(of_recovery, basis))
                derivatives[number] += (moved * echo[:, :, None]).sum(1)
            if bool(of_echo.any()):
                derivatives[number] += (along * of_echo[:, :, None]).sum(1)
    return signal.T, derivatives.transpose(1, 2)


def fit_parameters(model: SignalModel, coefficients: Tensor, basis: Tensor | None = None, steps: int = STEPS) -> ParameterFit:
    """Fit every voxel.

    Args:
        model: of the protocol.
        coefficients: complex64 ``[K, voxel]``, weighted images on Φ; ``[contrast, voxel]`` without basis.
        basis: complex64 ``[contrast, K]``, Φ with orthonormal columns; None: the weighted images themselves.
        steps: Levenberg–Marquardt steps.

    Raises:
        DataError: not finite, or not as many as the basis has.
    """
    if basis is None:
        basis = torch.eye(model.protocol.contrasts, dtype=torch.complex64, device=coefficients.device)
    if coefficients.ndim != 2 or coefficients.shape[0] != basis.shape[1]:
        raise DataError("coefficients", f"shape {tuple(coefficients.shape)} for {basis.shape[1]} components", "Give [K, voxel].")
    if not bool(torch.isfinite(torch.view_as_real(coefficients)).all()):
        raise DataError("weighted images", "NaN or Inf", "Repair the reconstruction.")
    basis = basis.to(coefficients.device)
    grid = dictionary(model).to(coefficients.device)
    atoms = model.project(from_fitted(model, grid), basis)
    parts = [_fit_chunk(model, part, basis, grid, atoms, steps) for part in coefficients.split(VOXELS_AT_ONCE, dim=1)]
    fitted = torch.cat([p[0] for p in parts], dim=1)
    return ParameterFit(from_fitted(model, fitted), torch.cat([p[1] for p in parts]), torch.cat([p[2] for p in parts]))


def _real(columns: Tensor) -> Tensor:
    """Complex ``[..., K, voxel]`` as real ``[voxel, ..., 2K]``: batches of small real products are fast, complex ones are not."""
    return torch.view_as_real(columns.movedim(-1, 0).contiguous()).flatten(-2)


def _match(data: Tensor, grid: Tensor, atoms: Tensor) -> Tensor:
    """Grid point of the atom that explains most of every voxel."""
    unit = atoms / torch.linalg.vector_norm(atoms, dim=0).clamp_min(1e-12)
    voxels = _real(data)
    best = torch.full((data.shape[1],), -1.0, device=data.device)
    index = torch.zeros(data.shape[1], dtype=torch.int64, device=data.device)
    for start in range(0, unit.shape[1], _ATOM_CHUNK):
        part = unit[:, start : start + _ATOM_CHUNK]
        share = (voxels @ _real(part).T).square_()
        share += (voxels @ _real(1j * part).T).square_()
        value, place = share.max(dim=1)
        better = value > best
        best, index = torch.where(better, value, best), torch.where(better, place + start, index)
    return grid[:, index].clone()


def _amplitude(signal: Tensor, data: Tensor) -> Tensor:
    return (signal.conj() * data).sum(0) / signal.abs().square().sum(0).clamp_min(1e-20)


def _fit_chunk(model: SignalModel, data: Tensor, basis: Tensor, grid: Tensor, atoms: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    def tried(point: Tensor, data: Tensor) -> tuple[Tensor, Tensor]:
        signal = model.project(from_fitted(model, point), basis)
        amplitude = _amplitude(signal, data)
        return amplitude, (amplitude * signal - data).abs().square().sum(0)

    x = _match(data, grid, atoms)
    amplitude, cost = tried(x, data)
    damping = torch.full_like(cost, _FIRST_DAMPING)
    moving = torch.arange(x.shape[1], device=x.device)
    for _ in range(steps):
        part, kept = data[:, moving], x[:, moving]
        trial = _stepped(model, kept, amplitude[moving], part, basis, damping[moving])
        new_amplitude, new_cost = tried(trial, part)
        fall = cost[moving] - new_cost
        better = fall > 0
        x[:, moving] = torch.where(better, trial, kept)
        amplitude[moving] = torch.where(better, new_amplitude, amplitude[moving])
        # Where a free step changes the cost by next to nothing, the rest of them would not change it either.
        settled = (fall.abs() <= _SETTLED * cost[moving]) & (damping[moving] <= _FIRST_DAMPING)
        cost[moving] = torch.where(better, new_cost, cost[moving])
        damping[moving] = torch.where(better, damping[moving] / 4, damping[moving] * 6).clamp(1e-7, 1e7)
        moving = moving[~settled]
        if not moving.numel():
            break
    return x, amplitude, cost.sqrt()


def _stepped(model: SignalModel, x: Tensor, amplitude: Tensor, data: Tensor, basis: Tensor, damping: Tensor) -> Tensor:
    """Fitted values ``[parameter, voxel]`` after a Levenberg–Marquardt step, within their bounds."""
    low, high = (b.to(data.device) for b in bounds(model))
    count = x.shape[0]
    signal, derivatives = signal_and_derivatives(model, x, basis)
    jacobian = _real(torch.cat([amplitude * derivatives, torch.stack([signal, 1j * signal])]))
    normal = (jacobian @ jacobian.mT).double()
    gradient = (jacobian @ _real(amplitude * signal - data)[:, :, None])[..., 0].double()
    # A value at its bound that would leave it stands still, and the others step as if it were known.
    held = ((x <= low) & (gradient.T[:count] > 0)) | ((x >= high) & (gradient.T[:count] < 0))
    free = torch.cat([~held, torch.ones_like(held[:1]), torch.ones_like(held[:1])]).T.double()
    normal, gradient = normal * free[:, :, None] * free[:, None, :], gradient * free
    diagonal = normal.diagonal(dim1=1, dim2=2)
    floor = 1e-9 * diagonal.amax(dim=1, keepdim=True) + 1e-30
    system = normal + torch.diag_embed(damping.double()[:, None] * diagonal + floor)
    step = torch.linalg.solve(system, gradient).T[:count].to(x.dtype)
    return torch.minimum(torch.maximum(x - step, low), high)


def _unit(x: Tensor, number: int) -> Tensor:
    tangent = torch.zeros_like(x)
    tangent[number] = 1
    return tangent


def object_mask(coefficients: Tensor, share: float = MASK_SHARE) -> Tensor:
    """Where there is something to fit: voxels whose norm over contrasts exceeds a share of the 99th percentile, bool ``[...]``.

    Args:
        coefficients: complex ``[K, ...]``.
        share: of the percentile.
    """
    norm = torch.linalg.vector_norm(coefficients, dim=0)
    # torch.quantile refuses large inputs.
    rank = max(1, round(_MASK_QUANTILE * norm.numel()))
    return norm > share * norm.flatten().kthvalue(rank).values


def fit_maps(
    model: SignalModel, coefficients: Tensor, basis: Tensor | None = None, mask: Tensor | None = None, steps: int = STEPS
) -> tuple[ParameterMap, ...]:
    """Maps of a volume.

    Args:
        model: of the protocol.
        coefficients: complex64 ``[K, (z,) y, x]``.
        basis: as in :func:`fit_parameters`.
        mask: bool ``[(z,) y, x]``, where to fit; None: :func:`object_mask`. Elsewhere the maps are 0.
        steps: Levenberg–Marquardt steps.
    """
    mask = object_mask(coefficients) if mask is None else mask
    fit = fit_parameters(model, coefficients[:, mask], basis, steps)
    return parameter_maps(model, fit.values, fit.amplitude, mask)


def parameter_maps(model: SignalModel, values: dict[str, Tensor], amplitude: Tensor, mask: Tensor) -> tuple[ParameterMap, ...]:
    """Fitted values as maps, the amplitude as proton density and phase.

    Args:
        model: of the protocol.
        values: parameter name to ``[voxel]``, the voxels of ``mask``.
        amplitude: complex64 ``[voxel]``.
        mask: bool ``[(z,) y, x]``.
    """

    def placed(name: str, unit: str, flat: Tensor, signed: bool = False) -> ParameterMap:
        volume = torch.zeros(mask.shape, dtype=torch.float32, device=flat.device)
        volume[mask] = flat.to(torch.float32)
        return ParameterMap(name, unit, volume, signed)

    made = []
    for parameter in model.parameters:
        flat = values[parameter.name]
        made.append(placed(parameter.name, parameter.unit, flat, signed=parameter.low < 0))
        if parameter.name == "R2star":
            # A rate at or below zero means: longer than can be told.
            made.append(placed("T2star", "s", 1 / flat.clamp_min(1.0)))
    return (*made, placed("PD", "", amplitude.abs()), placed("phase", "rad", amplitude.angle(), signed=True))
