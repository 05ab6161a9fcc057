"""The fields of LoREIN (Zhang et al., Figs. 2 and 3): spatial bases, coil sensitivities and tissue parameters of coordinates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from recon_core.encodings.hash_grid import HashGrid, HashGridLayout, growth_for, pixel_coordinates
from recon_core.fields.seeded import seeded
from recon_core.signal_models import Parameter, SignalModel

WIDTH = 64
HIDDEN = 3
_OFF_RESONANCE_UNIT = 30.0  # Hz


def layout_for(shape: tuple[int, ...], levels: int, base: int, finest: float, log2_table: int) -> HashGridLayout:
    """A hash encoding whose finest level has ``finest`` grid points a voxel along the longest axis."""
    growth = growth_for(base, max(base, finest * max(shape)), levels)
    return HashGridLayout(len(shape), levels, 2, log2_table, base, growth)


class GridField(nn.Module):
    """Hash encoding and MLPs (three hidden layers of 64, ReLU), evaluated on the image's voxels.

    Args:
        shape: image shape ``((nz,) ny, nx)``.
        layout: of the encoding.
        heads: outputs of every MLP; complex quantities have one MLP for their real and one for their imaginary part.
        seed: of all weights.
    """

    def __init__(self, shape: tuple[int, ...], layout: HashGridLayout, heads: tuple[int, ...], seed: int) -> None:
        super().__init__()
        with seeded(seed):
            self.encoding = HashGrid(layout, seed=seed)
            self.heads = nn.ModuleList(_mlp(self.encoding.out_dim, outputs) for outputs in heads)
        self.shape = shape
        self.plan = self.encoding.plan(pixel_coordinates(shape))

    def to_device(self, device: torch.device) -> GridField:
        """Move weights and the planned coordinates."""
        self.plan = type(self.plan)(self.plan.indices.to(device), self.plan.weights.to(device))
        return self.to(device)

    def forward(self) -> list[Tensor]:
        """One ``[output, voxel]`` a head."""
        features = self.encoding(self.plan)
        return [head(features).T for head in self.heads]


def _mlp(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(inputs, WIDTH), nn.ReLU()]
    for _ in range(HIDDEN - 1):
        layers += [nn.Linear(WIDTH, WIDTH), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, outputs))


class SharedFeatureAttention(nn.Module):
    """Weights every channel by what all channels have in common at a voxel and over the volume (our reading of Fig. 3)."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        conv = nn.Conv3d if dim == 3 else nn.Conv2d
        self.shared = conv(channels, channels // 4, 1)
        self.local = conv(channels // 4, channels, 1)
        self.overall = nn.Linear(channels // 4, channels)

    def forward(self, features: Tensor) -> Tensor:
        """``[1, channel, …]`` to the same shape."""
        shared = torch.relu(self.shared(features))
        overall = self.overall(shared.flatten(2).mean(2)).reshape(1, -1, *[1] * (features.ndim - 2))
        return features * torch.sigmoid(self.local(shared) + overall)


class BasesCnn(nn.Module):
    """Refines coarse bases: convolution down by two, attention, up again, added to what came in; starts as the identity.

    Args:
        rank: K.
        dim: spatial dimensions.
        channels: width (ours).
        seed: of the weights.
    """

    def __init__(self, rank: int, dim: int, channels: int, seed: int) -> None:
        super().__init__()
        conv, up = (nn.Conv3d, nn.ConvTranspose3d) if dim == 3 else (nn.Conv2d, nn.ConvTranspose2d)
        with seeded(seed):
            self.enter = conv(2 * rank, channels, 3, padding=1)
            self.down = conv(channels, channels, 3, stride=2, padding=1)
            self.attention = SharedFeatureAttention(channels, dim)
            self.up = up(channels, channels, 2, stride=2)
            self.leave = conv(channels, 2 * rank, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        bias = self.leave.bias
        assert bias is not None
        nn.init.zeros_(bias)

    def forward(self, bases: Tensor) -> Tensor:
        """Complex64 ``[K, (z,) y, x]`` to the same shape; odd sizes are padded and cut again."""
        channels = torch.cat([bases.real, bases.imag])[None]
        sizes = channels.shape[2:]
        padded = nn.functional.pad(channels, [p for n in reversed(sizes) for p in (0, n % 2)])
        fine = torch.relu(self.enter(padded))
        coarse = self.attention(torch.relu(self.down(fine)))
        refined = self.leave(torch.relu(self.up(coarse)) + fine)
        inside = (slice(None), slice(None), *(slice(0, n) for n in sizes))
        out = channels + refined[inside]
        real, imaginary = out[0].chunk(2)
        return torch.complex(real.contiguous(), imaginary.contiguous())


class CoilField(nn.Module):
    """Coil sensitivities of a coarse hash encoding, of unit root-sum-of-squares (the amplitude takes the rest: a gauge)."""

    def __init__(self, shape: tuple[int, ...], coils: int, seed: int) -> None:
        super().__init__()
        self.field = GridField(shape, layout_for(shape, 4, 2, 0.12, 12), (coils, coils), seed)

    def forward(self) -> Tensor:
        """Complex64 ``[coil, (z,) y, x]``."""
        real, imaginary = self.field()
        maps = torch.complex(real, imaginary)
        maps = maps / (maps.abs().square().sum(0) + 1e-8).sqrt()
        return maps.reshape(-1, *self.field.shape)


class ParameterFields(nn.Module):
    """One field a map: exponential for positive quantities, tanh for B, phases as unit complex numbers.

    Args:
        model: of the protocol.
        shape: image shape.
        layout: of the hash encodings.
        per_echo: one phase map an echo instead of φ0 + 2πΔf·TE.
        seed: of all weights.
    """

    def __init__(self, model: SignalModel, shape: tuple[int, ...], layout: HashGridLayout, per_echo: bool, seed: int) -> None:
        super().__init__()
        self.model, self.shape, self.per_echo = model, shape, per_echo
        smooth = HashGridLayout(layout.dim, layout.levels, layout.features, 12, 2, growth_for(2, max(shape) / 2, layout.levels))
        self.fitted = [p for p in model.parameters if not (per_echo and p.name == "off_resonance")]
        echoes = len(model.protocol.echo_times) if per_echo else 1
        self.amplitude = GridField(shape, layout, (1,), seed)
        self.phase = GridField(shape, smooth, (echoes, echoes), seed + 1)
        self.parameters_of = nn.ModuleDict(
            {
                p.name: GridField(shape, smooth if p.name == "off_resonance" else layout, (1,), seed + 2 + number)
                for number, p in enumerate(self.fitted)
            }
        )
        self.centre_on({p.name: p.start for p in self.fitted}, 1.0)

    def centre_on(self, values: Mapping[str, float], amplitude: float) -> None:
        """What the fields' zeros stand for: one value a parameter, within its bounds."""
        self.centres = {p.name: _raw(p, values[p.name]) for p in self.fitted}
        self.log_amplitude = math.log(max(amplitude, 1e-12))

    def values(self) -> tuple[dict[str, Tensor], Tensor, Tensor | None]:
        """Parameters by name ``[voxel]``, complex amplitude ``[voxel]`` and phasors ``[voxel, echo]`` or None."""
        values = {}
        for parameter in self.fitted:
            (raw,) = self.parameters_of[parameter.name]()
            values[parameter.name] = _bounded(parameter, raw[0] + self.centres[parameter.name])
        size = torch.exp(self.amplitude()[0][0] + self.log_amplitude)
        real, imaginary = self.phase()
        turn = torch.complex(real + 1e-3, imaginary)
        turn = turn / turn.abs().clamp_min(1e-6)
        if self.per_echo:
            return values, size.to(turn.dtype), turn.T
        return values, size * turn[0], None

    def projected(self, basis: Tensor) -> tuple[Tensor, Tensor]:
        """``Φᴴ Î_w`` as complex64 ``[K, (z,) y, x]`` and ``‖(I − ΦΦᴴ) Î_w‖²`` summed over voxels."""
        values, amplitude, phasors = self.values()
        inside = amplitude * self.model.project(values, basis, phasors)
        whole = amplitude.abs().square() * self.model.energy(values, phasors)
        outside = (whole - inside.abs().square().sum(0)).clamp_min(0).sum()
        return inside.reshape(-1, *self.shape), outside

    def series(self) -> Tensor:
        """All weighted images, complex64 ``[contrast, (z,) y, x]``."""
        values, amplitude, phasors = self.values()
        return (amplitude * self.model.signal(values, phasors)).reshape(-1, *self.shape)


def _raw(parameter: Parameter, value: float) -> float:
    """The field's output that stands for a value."""
    if parameter.logarithmic:
        return math.log(value)
    if parameter.name == "B":
        return math.atanh(max(-0.99, min(0.99, value)))
    return value / (_OFF_RESONANCE_UNIT if parameter.name == "off_resonance" else 1.0)


class _Clamp(torch.autograd.Function):
    """Bounds that a value may leave inwards: torch's clamp has no gradient beyond them, and what got there would stay for good."""

    @staticmethod
    def forward(ctx: Any, raw: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(raw)
        ctx.bounds = low, high
        return raw.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (raw,), (low, high) = ctx.saved_tensors, ctx.bounds
        outwards = ((raw <= low) & (gradient > 0)) | ((raw >= high) & (gradient < 0))
        return gradient * ~outwards, None, None


def within(raw: Tensor, low: float, high: float) -> Tensor:
    """Values within bounds, with the gradient of those that lie at one and would come back."""
    clamped: Tensor = _Clamp.apply(raw, low, high)
    return clamped


def _bounded(parameter: Parameter, raw: Tensor) -> Tensor:
    """A field's output as a value within the parameter's bounds."""
    if parameter.logarithmic:
        return torch.exp(within(raw, math.log(parameter.low), math.log(parameter.high)))
    if parameter.name == "B":
        return torch.tanh(raw)
    return within(raw * (_OFF_RESONANCE_UNIT if parameter.name == "off_resonance" else 1.0), parameter.low, parameter.high)
