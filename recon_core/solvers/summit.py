"""SUMMIT in the sense of LoREIN's paper: the parameter block alone (Lao et al.), with weighted nuclear norms and learned coil maps."""

from __future__ import annotations

from recon_core.solvers.field_blocks import FieldBlocks, FieldSettings


class Summit(FieldBlocks[FieldSettings]):
    """Parameter fields fitted to k-space through the signal model; no low-rank block guides them."""

    name = "summit"
    Settings = FieldSettings
    low_rank = False


SOLVER = Summit
