"""Temporal subspace of a protocol from simulated signals over tissue ranges (LoREIN, "Experiment design")."""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor

from recon_core.signal_models import Protocol, draw_tissues, signal_model

DRAWS = 3000
RANK = 15
ENERGY = 0.9999
OFF_RESONANCE_RANGE = 50.0
_SEED = 20_510


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
