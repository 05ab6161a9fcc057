"""Signal of a multi-contrast protocol as a function of tissue parameters, in seconds, radians and hertz.

Every model is a short sum of products of one factor an axis of the protocol (preparation × recovery × echo), so that signals, their
projection onto a temporal subspace and their energy are small contractions: 1280 contrasts need not be formed.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from recon_core.errors import DataError, SettingError

Factors = tuple[Tensor, Tensor, Tensor]

VOXELS_AT_ONCE = 8192
"""Preparations × echoes × components of so many stay within the cache."""


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What was played out; contrast number = (preparation · recoveries + recovery) · echoes + echo.

    Attributes:
        model: one of :data:`MODELS`.
        echo_times: seconds, one an echo; for ``decay`` the moments of the frames.
        repetition_time: seconds between excitations; None where the model does without.
        flip_angles: radians; one a preparation for ``spoiled``, one in all for ``t2_inversion``, none for ``decay``.
        preparations: seconds, durations τ of the T2 preparations; for ``t2_inversion`` only.
        recoveries: excitations after each preparation that are sampled; excitation n = 0 is the first.
    """

    model: str
    echo_times: tuple[float, ...]
    repetition_time: float | None = None
    flip_angles: tuple[float, ...] = ()
    preparations: tuple[float, ...] = ()
    recoveries: int = 1

    def __post_init__(self) -> None:
        """Check values and what the model needs.

        Raises:
            SettingError: no such model.
            DataError: names the entry of the protocol.
        """
        if self.model not in MODELS:
            raise SettingError("signal_model", f"unknown value {self.model!r}", f"Choose one of: {', '.join(MODELS)}.")
        for name, values in (("echo times", self.echo_times), ("flip angles", self.flip_angles), ("T2 preparations", self.preparations)):
            if not all(math.isfinite(v) and v >= 0 for v in values):
                raise DataError(f"protocol: {name}", f"{values}", "Give finite values that are not negative.")
        if not self.echo_times or any(b <= a for a, b in zip(self.echo_times, self.echo_times[1:], strict=False)):
            raise DataError("protocol: echo times", f"{self.echo_times}", "Give at least one, rising.")
        if self.recoveries < 1:
            raise DataError("protocol: recoveries", f"{self.recoveries}", "Give at least 1.")
        MODELS[self.model].check(self)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Numbers of preparations (flip angles or T2 preparations), recoveries and echoes."""
        outer = len(self.flip_angles) if self.model == SpoiledGradientEcho.name else max(1, len(self.preparations))
        return outer, self.recoveries, len(self.echo_times)

    @property
    def contrasts(self) -> int:
        """Number of contrasts."""
        return math.prod(self.shape)

    def contrast(self, preparation: int, recovery: int, echo: int) -> int:
        """Number of a contrast."""
        return (preparation * self.recoveries + recovery) * len(self.echo_times) + echo

    def place(self, contrast: int) -> tuple[int, int, int]:
        """Preparation, recovery and echo of a contrast."""
        rest, echo = divmod(contrast, len(self.echo_times))
        return (*divmod(rest, self.recoveries), echo)


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One tissue parameter.

    Attributes:
        name: as in maps and files.
        unit: empty for pure numbers.
        low: smallest value a fit may give.
        high: largest.
        start: where a fit without other knowledge starts.
        logarithmic: fitted as its logarithm (positive quantities over decades).
        grid: entries of a dictionary along it (of off-resonance: as many as its echoes ask for).
    """

    name: str
    unit: str
    low: float
    high: float
    start: float
    logarithmic: bool = False
    grid: int = 1


@dataclasses.dataclass(frozen=True, eq=False)
class ParameterMap:
    """One fitted quantity.

    Attributes:
        name: ``T1``, ``T2``, ``T2star``, ``R2star``, ``PD``, ``B``, ``phase`` or ``off_resonance``.
        unit: ``s``, ``1/s``, ``rad``, ``Hz``, or empty for pure numbers and arbitrary units.
        values: float32 ``[(z,) y, x]``; 0 where nothing was fitted.
        signed: values of both signs belong to it (phase, off-resonance, B).
    """

    name: str
    unit: str
    values: Tensor
    signed: bool = False

    def __post_init__(self) -> None:
        """Check type and finiteness.

        Raises:
            DataError: names the map.
        """
        if self.values.dtype != torch.float32 or self.values.ndim not in (2, 3):
            raise DataError(f"map {self.name}", f"{self.values.dtype} {tuple(self.values.shape)}", "Give float32 [(z,) y, x].")
        if not bool(torch.isfinite(self.values).all()):
            raise DataError(f"map {self.name}", "NaN or Inf", "The fit diverged: lower the learning rate.")


OFF_RESONANCE = Parameter("off_resonance", "Hz", -150.0, 150.0, 0.0)
T1 = Parameter("T1", "s", 0.05, 6.0, 1.2, logarithmic=True, grid=12)
T2 = Parameter("T2", "s", 0.005, 3.0, 0.09, logarithmic=True, grid=8)
T2STAR = Parameter("T2star", "s", 0.002, 1.0, 0.045, logarithmic=True, grid=7)
INVERSION = Parameter("B", "", -1.0, 1.0, -0.9)
R2STAR = Parameter("R2star", "1/s", 0.0, 1000.0, 20.0, grid=16)
LOWEST_RATE = -50.0
"""1/s, smallest rate where noise may drive a decay below zero."""


# Brain, from white matter to cerebrospinal fluid.
_TISSUE_RANGES = {"T1": (0.3, 5.0), "T2": (0.03, 2.0), "T2star": (0.008, 0.3), "R2star": (0.0, 200.0), "B": (-1.0, -0.7)}


class SignalModel(abc.ABC):
    """Signals of one protocol for unit amplitude; the amplitude A·exp(iφ0) multiplies them.

    Attributes:
        name: in :data:`MODELS`.
        parameters: without amplitude.
    """

    name: ClassVar[str]
    parameters: tuple[Parameter, ...]

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        self.echo_times = torch.tensor(protocol.echo_times, dtype=torch.float32)
        self.flip_angles = torch.tensor(protocol.flip_angles, dtype=torch.float32)
        self.preparations = torch.tensor(protocol.preparations, dtype=torch.float32)
        self.repetition_time = protocol.repetition_time or 0.0

    @classmethod
    @abc.abstractmethod
    def check(cls, protocol: Protocol) -> None:
        """Whether the protocol has what the model needs.

        Raises:
            DataError: names what is missing.
        """

    @abc.abstractmethod
    def factors(self, values: Mapping[str, Tensor], phasors: Tensor | None = None) -> list[Factors]:
        """Terms of the signal, each a product of factors ``[voxel, preparation]``, ``[voxel, recovery]``, ``[voxel, echo]``.

        Of a factor that is the same in all voxels one row is given.

        Args:
            values: parameter name to ``[voxel]``.
            phasors: complex ``[voxel, echo]``, e^{iφ_e} without the amplitude's phase; None: exp(i2πΔf·TE) of ``off_resonance``.
        """

    def _echo(self, rate: Tensor, values: Mapping[str, Tensor], phasors: Tensor | None) -> Tensor:
        times = self.echo_times.to(rate)
        if phasors is None:
            turn = 2 * math.pi * values["off_resonance"][:, None] * times
            phasors = torch.complex(turn.cos(), turn.sin())
        return torch.exp(-rate[:, None] * times) * phasors

    def _ones(self, like: Tensor, count: int) -> Tensor:
        return torch.ones((1, count), dtype=like.dtype, device=like.device)

    def signal(self, values: Mapping[str, Tensor], phasors: Tensor | None = None) -> Tensor:
        """Signals for unit amplitude, complex ``[contrast, voxel]``."""
        parts = []
        for outer, recovery, echo in self.factors(values, phasors):
            both = outer[:, :, None] * recovery[:, None, :]
            parts.append((both[..., None] * echo[:, None, None, :]).flatten(1))
        return torch.stack(parts).sum(0).T

    def project(self, values: Mapping[str, Tensor], basis: Tensor, phasors: Tensor | None = None) -> Tensor:
        """``Φᴴ`` times the signals for unit amplitude, complex ``[K, voxel]``.

        Args:
            values: parameter name to ``[voxel]``.
            basis: complex ``[contrast, K]``, Φ.
            phasors: as in :meth:`factors`.
        """
        voxels = next(iter(values.values())).shape[0]
        if voxels > VOXELS_AT_ONCE:
            parts = []
            for start in range(0, voxels, VOXELS_AT_ONCE):
                some = slice(start, start + VOXELS_AT_ONCE)
                inner = {name: value[some] for name, value in values.items()}
                parts.append(self.project(inner, basis, None if phasors is None else phasors[some]))
            return torch.cat(parts, dim=1)
        total = None
        for outer, recovery, echo in self.factors(values, phasors):
            part = (over_preparations(outer, self.over_recoveries(recovery, basis)) * echo[:, :, None]).sum(1)
            total = part if total is None else total + part
        assert total is not None
        return total.T

    def over_recoveries(self, recovery: Tensor, basis: Tensor) -> Tensor:
        """Sum over recoveries of a factor times conj(Φ), complex ``[voxel, preparation, echo, K]``.

        Args:
            recovery: real ``[voxel, recovery]``.
            basis: complex ``[contrast, K]``, Φ.
        """
        n_outer, n_recovery, n_echo = self.protocol.shape
        # The longest axis first, real against real parts: nothing of the size voxel × contrast is formed.
        conjugate = basis.conj().reshape(n_outer, n_recovery, n_echo, -1).transpose(0, 1).resolve_conj().contiguous()
        flat = torch.view_as_real(conjugate).reshape(n_recovery, -1)
        return torch.view_as_complex((recovery @ flat.to(recovery.dtype)).reshape(recovery.shape[0], n_outer, n_echo, -1, 2))

    def energy(self, values: Mapping[str, Tensor], phasors: Tensor | None = None) -> Tensor:
        """Sum over contrasts of |signal|² for unit amplitude, ``[voxel]``."""
        terms = self.factors(values, phasors)
        total = torch.zeros_like(terms[0][2][:, 0].real)
        for outer, recovery, echo in terms:
            for other_outer, other_recovery, other_echo in terms:
                product = (outer * other_outer).sum(1) * (recovery * other_recovery).sum(1)
                total = total + product * (echo.conj() * other_echo).sum(1).real
        return total


def over_preparations(outer: Tensor, summed: Tensor) -> Tensor:
    """Sum over preparations of a factor ``[voxel, preparation]`` times ``[voxel, preparation, echo, K]``: ``[voxel, echo, K]``."""
    if summed.shape[0] == 1:
        return torch.tensordot(outer.to(summed.dtype), summed[0], dims=1)
    return (summed * outer[:, :, None, None]).sum(1)


class SpoiledGradientEcho(SignalModel):
    """Spoiled gradient echo in its steady state at several flip angles and echoes.

    LoREIN (Zhang et al.), eq. 10, with the printing slip mended: cos α multiplies E1 = exp(−TR/T1) instead of standing in its exponent.
    """

    name = "spoiled"
    parameters = (T1, T2STAR, OFF_RESONANCE)

    @classmethod
    def check(cls, protocol: Protocol) -> None:
        """See :class:`SignalModel`."""
        _need_repetition_time(protocol)
        if len(protocol.flip_angles) < 2 or len(set(protocol.flip_angles)) < len(protocol.flip_angles):
            raise DataError("protocol: flip angles", f"{protocol.flip_angles}", "T1 needs at least two different ones.")
        if protocol.recoveries != 1 or protocol.preparations:
            raise DataError("protocol: recoveries", f"{protocol.recoveries}", "A steady state has one; choose signal_model=t2_inversion.")

    def factors(self, values: Mapping[str, Tensor], phasors: Tensor | None = None) -> list[Factors]:
        """See :class:`SignalModel`."""
        e1 = torch.exp(-self.repetition_time / values["T1"])[:, None]
        angle = self.flip_angles.to(e1)
        steady = angle.sin() * (1 - e1) / (1 - e1 * angle.cos())
        return [(steady, self._ones(steady, 1), self._echo(1 / values["T2star"], values, phasors))]


class T2PreparedInversion(SignalModel):
    """T2-prepared inversion recovery read by spoiled gradient echoes.

    LoREIN (Zhang et al.), eq. 9, with its printing slips mended: cos α multiplies E1 (twice), and the preparation's duration τ stands in
    exp(−τ/T2). B in (−1, 1) is near −1 for an inversion. The magnetisation before every preparation is the spoiled steady state.
    """

    name = "t2_inversion"
    parameters = (T1, T2, T2STAR, INVERSION, OFF_RESONANCE)

    @classmethod
    def check(cls, protocol: Protocol) -> None:
        """See :class:`SignalModel`."""
        _need_repetition_time(protocol)
        if len(protocol.flip_angles) != 1:
            raise DataError("protocol: flip angles", f"{len(protocol.flip_angles)} values", "T2-prepared inversion recovery has one.")
        if len(protocol.preparations) < 2 or len(set(protocol.preparations)) < len(protocol.preparations):
            raise DataError("protocol: T2 preparations", f"{protocol.preparations}", "T2 needs at least two different durations.")
        if protocol.recoveries < 2:
            raise DataError("protocol: recoveries", f"{protocol.recoveries}", "T1 needs at least two excitations after a preparation.")

    def factors(self, values: Mapping[str, Tensor], phasors: Tensor | None = None) -> list[Factors]:
        """See :class:`SignalModel`."""
        e1 = torch.exp(-self.repetition_time / values["T1"])[:, None]
        angle = self.flip_angles.to(e1)
        steady = angle.sin() * (1 - e1) / (1 - e1 * angle.cos())
        echo = self._echo(1 / values["T2star"], values, phasors) * steady
        prepared = values["B"][:, None] * torch.exp(-self.preparations.to(e1) / values["T2"][:, None]) - 1
        excitation = torch.arange(self.protocol.recoveries, device=e1.device, dtype=e1.dtype)
        # As exp(n·log q): a power with exponent 0 has no second derivative in forward mode at some torch versions.
        recovery = torch.exp(excitation * torch.log((e1 * angle.cos()).clamp_min(1e-12)))
        n_outer, n_recovery, _ = self.protocol.shape
        return [
            (self._ones(e1, n_outer), self._ones(e1, n_recovery), echo),
            (prepared, recovery, echo),
        ]


class MonoExponential(SignalModel):
    """Mono-exponential decay with the rate R2*."""

    name = "decay"
    parameters = (R2STAR, OFF_RESONANCE)

    @classmethod
    def check(cls, protocol: Protocol) -> None:
        """See :class:`SignalModel`."""
        if len(protocol.echo_times) < 2:
            raise DataError("protocol: echo times", f"{protocol.echo_times}", "A decay needs at least two.")
        if protocol.recoveries != 1 or protocol.preparations:
            raise DataError("protocol: recoveries", f"{protocol.recoveries}", "A decay has one.")

    def factors(self, values: Mapping[str, Tensor], phasors: Tensor | None = None) -> list[Factors]:
        """See :class:`SignalModel`."""
        rate = values["R2star"]
        ones = self._ones(rate[:, None], 1)
        return [(ones, ones, self._echo(rate, values, phasors))]


MODELS: dict[str, type[SignalModel]] = {m.name: m for m in (SpoiledGradientEcho, T2PreparedInversion, MonoExponential)}


def signal_model(protocol: Protocol, negative_rates: bool = False) -> SignalModel:
    """The model of a protocol.

    Args:
        protocol: what was played out.
        negative_rates: whether a decay's rate may fall to :data:`LOWEST_RATE`, so that means over voxels
            keep clear of the bound's bias.
    """
    model = MODELS[protocol.model](protocol)
    if negative_rates:
        model.parameters = tuple(dataclasses.replace(p, low=LOWEST_RATE) if p.name == R2STAR.name else p for p in model.parameters)
    return model


def _need_repetition_time(protocol: Protocol) -> None:
    if not protocol.repetition_time:
        raise DataError("protocol: TR", "not given", "Add sequenceParameters.TR to the header.")


def draw_tissues(parameters: tuple[Parameter, ...], count: int, off_resonance: float, seed: int) -> dict[str, Tensor]:
    """Random tissues: positive quantities uniform in their logarithm, the others uniform; T2* not above T2.

    Args:
        parameters: of the model.
        count: number of tissues.
        off_resonance: largest |Δf|, Hz.
        seed: of the draw.

    Returns:
        Parameter name to float64 ``[count]``.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for parameter in parameters:
        low, high = (-off_resonance, off_resonance) if parameter.name == "off_resonance" else _TISSUE_RANGES[parameter.name]
        share = torch.rand(count, generator=generator, dtype=torch.float64)
        drawn[parameter.name] = low * (high / low) ** share if parameter.logarithmic else low + (high - low) * share
    if {"T2", "T2star"} <= set(drawn):
        drawn["T2star"] = torch.minimum(drawn["T2star"], drawn["T2"])
    return drawn
