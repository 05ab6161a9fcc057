"""Solvers by name. A new method is one file here and one line in ``_MODULES`` or ``_QUANTITATIVE``."""

from __future__ import annotations

import importlib
from typing import Any

from recon_core.options import unknown_name
from recon_core.solvers.base import Solver

_MODULES = {
    "gridding": "recon_core.solvers.gridding",
    "cg_sense": "recon_core.solvers.cg_sense",
    "grasp_pro": "recon_core.solvers.grasp_pro",
    "grasp": "recon_core.solvers.grasp",
    "subspace_inr": "recon_core.solvers.subspace_inr",
    "low_rank_sparse": "recon_core.solvers.low_rank_sparse",
    "inmr": "recon_core.solvers.inmr",
}

_QUANTITATIVE = {
    "parameter_fit": "recon_core.solvers.parameter_fit",
    "lrt": "recon_core.solvers.lrt",
    "summit": "recon_core.solvers.summit",
    "lorein": "recon_core.solvers.lorein",
}


def names() -> list[str]:
    """Every solver of dynamic scans, in alphabetical order."""
    return sorted(_MODULES)


def quantitative_names() -> list[str]:
    """Every solver of multi-contrast protocols, in alphabetical order."""
    return sorted(_QUANTITATIVE)


def all_names() -> list[str]:
    """Every solver, in alphabetical order."""
    return sorted({**_MODULES, **_QUANTITATIVE})


def solver_class(name: str) -> type[Solver[Any]]:
    """The class of a solver.

    Raises:
        SettingError: no solver of that name.
    """
    modules = {**_MODULES, **_QUANTITATIVE}
    if name not in modules:
        raise unknown_name("solver", name, modules)
    module = importlib.import_module(modules[name])
    found: type[Solver[Any]] = module.SOLVER
    return found


def settings_class(name: str) -> type:
    """The settings dataclass of a solver.

    Raises:
        SettingError: no solver of that name.
    """
    return solver_class(name).Settings
