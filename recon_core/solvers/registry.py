"""Solvers by name. A new method is one file here and one line in ``_MODULES`` or ``_QUANTITATIVE``."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from recon_core.options import build, unknown_name
from recon_core.problem import KSpaceProblem
from recon_core.solvers.base import Solver

_MODULES = {
    "als_subspace": "recon_core.solvers.als_subspace",
    "gridding": "recon_core.solvers.gridding",
    "cg_sense": "recon_core.solvers.cg_sense",
    "grasp_pro": "recon_core.solvers.grasp_pro",
    "grasp": "recon_core.solvers.grasp",
    "subspace_inr": "recon_core.solvers.subspace_inr",
    "low_rank_sparse": "recon_core.solvers.low_rank_sparse",
    "inmr": "recon_core.solvers.inmr",
    "hash_inr": "recon_core.solvers.hash_inr",
    "stinr": "recon_core.solvers.stinr",
    "da_inr": "recon_core.solvers.da_inr",
    "fmlp": "recon_core.solvers.fmlp",
    "td_dip": "recon_core.solvers.td_dip",
    "nik": "recon_core.solvers.nik",
    "kt_grappa": "recon_core.solvers.kt_grappa",
    "p_inr": "recon_core.solvers.p_inr",
    "kp_inr": "recon_core.solvers.kp_inr",
}

_QUANTITATIVE = {
    "parameter_fit": "recon_core.solvers.parameter_fit",
    "lrt": "recon_core.solvers.lrt",
    "summit": "recon_core.solvers.summit",
    "lorein": "recon_core.solvers.lorein",
    "zero_deepsub": "recon_core.solvers.zero_deepsub",
    "joint_maple": "recon_core.solvers.joint_maple",
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


def resume(saved: Mapping[str, Any], problem: KSpaceProblem, engine: str = "auto") -> Solver[Any]:
    """The solver of a saved fit (:meth:`Solver.state_dict`), ready to go on or to give images.

    Args:
        saved: what ``state_dict`` gave, or ``torch.load`` of it.
        problem: the calibrated problem it was fitted to.
        engine: NUFFT engine by name.

    Raises:
        SettingError: no such solver, or settings it does not know.
        DataError: the fit belongs to another kind of problem.
    """
    cls = solver_class(saved["solver"])
    solver = cls(build(cls.Settings, saved["settings"]), engine=engine, seed=saved["seed"])
    solver.start(problem)
    solver.load_state_dict(saved)
    return solver


def settings_class(name: str) -> type:
    """The settings dataclass of a solver.

    Raises:
        SettingError: no solver of that name.
    """
    return solver_class(name).Settings
