"""Spatial bases with total variation: what ``lrt`` ends with and ``lorein`` starts from."""

from __future__ import annotations

import torch
from torch import Tensor

from recon_core.operators.contrasts import ContrastTerm
from recon_core.operators.proximal import Fista, SpatialTv, largest_eigenvalue

_DUAL_STEPS = 3


class LowRankBlock:
    """``min_U ½ Σ_t ‖M_t F S Φ_t U − y_t‖² + λ Σ_k TV(U_k)`` by FISTA with restart.

    Args:
        term: the data term, samples whitened.
        sensitivities: complex64 ``[coil, (z,) y, x]``.
        strength: λ, in noise standard deviations.
        seed: of the power iteration.
        start: complex64 ``[K, (z,) y, x]``; None: zero.
    """

    def __init__(self, term: ContrastTerm, sensitivities: Tensor, strength: float, seed: int, start: Tensor | None = None) -> None:
        self.term, self.sensitivities = term, sensitivities
        self.target = term.adjoint(sensitivities)
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(self.target.shape, dtype=torch.complex64, generator=generator).to(self.target.device)
        self.lipschitz = 1.1 * largest_eigenvalue(lambda u: term.normal(u, sensitivities), noise)
        self.fista = Fista(torch.zeros_like(self.target) if start is None else start)
        self.prox = SpatialTv(self.target.shape, _DUAL_STEPS, self.target.device)
        self.use(strength)

    def use(self, strength: float) -> None:
        """Another λ from here on."""
        # The samples are whitened: a basis that few samples determine holds noise of about one unit.
        self.thresholds = torch.full((self.target.shape[0],), strength / self.lipschitz, device=self.target.device)

    @property
    def bases(self) -> Tensor:
        """U as it stands."""
        return self.fista.x

    def step(self) -> None:
        """One proximal gradient step."""
        ahead = self.fista.ahead
        gradient = self.term.normal(ahead, self.sensitivities) - self.target
        self.fista.accept(self.prox(ahead - gradient / self.lipschitz, self.thresholds))
