"""Temporal subspace of a protocol from simulated signals over tissue ranges (LoREIN, "Experiment design")."""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor

from recon_core.signal_models import Parameter, Protocol, signal_model

DRAWS = 3000
RANK = 15
ENERGY = 0.9999
OFF_RESONANCE_RANGE = 50.0
_SEED = 20_510
# Brain, from white matter to cerebrospinal fluid.
_RANGES = {"T1": (0.3, 5.0), "T2": (0.03, 2.0), "T2star": (0.008, 0.3), "R2star": (0.0, 200.0), "B": (-1.0, -0.7)}


@dataclasses.dataclass(frozen=True, eq=False)
class SignalSubspace:
    """Temporal basis Φ.

    Attributes:
        basis: complex64 ``[contrast, K]``, orthonormal columns.
        singular: float32 ``[K]``, singular values of the simulated signals, the first is 1.
        energy: share of the signals' energy that Φ holds.
    """

    basis: Tensor
    singular: Tensor
    energy: float


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
        low, high = (-off_resonance, off_resonance) if parameter.name == "off_resonance" else _RANGES[parameter.name]
        share = torch.rand(count, generator=generator, dtype=torch.float64)
        drawn[parameter.name] = low * (high / low) ** share if parameter.logarithmic else low + (high - low) * share
    if {"T2", "T2star"} <= set(drawn):
        drawn["T2star"] = torch.minimum(drawn["T2star"], drawn["T2"])
    return drawn


@functools.lru_cache(maxsize=4)
def _spectrum(protocol: Protocol, off_resonance: float) -> tuple[Tensor, Tensor]:
    """All temporal components of simulated signals and their energies, by falling energy; of the protocol alone, so kept."""
    model = signal_model(protocol)
    signals = model.signal(draw_tissues(model.parameters, DRAWS, off_resonance, _SEED))
    values, vectors = torch.linalg.eigh(signals @ signals.conj().T)
    return vectors.flip(1), values.flip(0).clamp_min(0)


def signal_subspace(protocol: Protocol, rank: int | None = RANK, off_resonance: float = OFF_RESONANCE_RANGE) -> SignalSubspace:
    """Leading temporal components of simulated signals.

    Args:
        protocol: what was played out.
        rank: components K, at most as many as contrasts; None: as many as hold :data:`ENERGY` of the signals' energy.
        off_resonance: largest |Δf| of the simulated signals, Hz.
    """
    vectors, energies = _spectrum(protocol, off_resonance)
    share = energies.cumsum(0) / energies.sum()
    kept = int((share < ENERGY).sum()) + 1 if rank is None else rank
    kept = min(kept, vectors.shape[0])
    singular = (energies[:kept] / energies[0]).sqrt().to(torch.float32)
    return SignalSubspace(vectors[:, :kept].to(torch.complex64).contiguous(), singular, float(share[kept - 1]))
