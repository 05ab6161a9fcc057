"""Benchmark cases: YAML files that say which scan, at which settings, with which seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from recon_core.errors import SettingError
from recon_core.options import build, option, unknown_name

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "cases"
"""Cases that come with the source tree."""

KINDS = ("simulate", "resample", "file")
_NESTED = ("scan", "settings", "bart", "regions", "methods", "seeds")


@dataclasses.dataclass(frozen=True)
class BartSettings:
    """How the peer ``bart`` is run."""

    iterations: int = option(100, "iterations of pics", low=1, high=10_000)
    selection_iterations: int | None = option(None, "iterations while λ is chosen on held-out readouts; auto: as many", low=1, high=10_000)
    strengths: tuple[float, ...] = option(
        (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08),
        "λ of temporal total variation, for samples that pics scales itself",
        low=0.0,
    )


@dataclasses.dataclass(frozen=True)
class Region:
    """Pixels of a box brighter than half of its brightest at the first frame: their mean magnitude makes a time course.

    Attributes:
        y: first row and the one after the last.
        x: first column and the one after the last.
    """

    y: tuple[int, int]
    x: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        name: the file's name without its ending.
        title: one line for tables.
        note: what a reader of its figures must know.
        scan: ``kind`` (simulate, resample or file) and that kind's settings.
        seeds: every method runs once a seed, on that seed's scan where it is simulated.
        coils: virtual coils, for every method.
        holdout: share of readouts on which a method chooses its settings.
        withhold: share of readouts that no method gets; they judge where no truth is known.
        settings: solver's own settings by solver.
        methods: solvers of the case; None: all that handle its dimensions.
        bart: how the peer runs.
        regions: time courses to compare, by name.
    """

    name: str
    title: str
    scan: Mapping[str, Any]
    note: str = ""
    seeds: tuple[int, ...] = (0,)
    coils: int = 8
    holdout: float = 0.05
    withhold: float = 0.0
    settings: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    methods: tuple[str, ...] | None = None
    bart: BartSettings = dataclasses.field(default_factory=BartSettings)
    regions: Mapping[str, Region] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _Plain:
    """What of a case is a plain value."""

    title: str = option("", "one line for tables")
    note: str = option("", "what a reader of the figures must know")
    coils: int = option(8, "virtual coils", low=1, high=256)
    holdout: float = option(0.05, "share of readouts on which methods choose", low=0.0, high=0.5)
    withhold: float = option(0.0, "share of readouts that no method gets", low=0.0, high=0.5)


def known(folder: Path = FOLDER) -> list[str]:
    """Names of the cases and sets that come with the source tree."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load(names: Iterable[str], folder: Path = FOLDER) -> list[Case]:
    """Cases by name or by path of a YAML file; the name of a set stands for its cases.

    Raises:
        SettingError: no such case, or a fault in its file.
    """
    found: dict[str, Case] = {}
    for name in names:
        for case in _load(name, folder):
            found.setdefault(case.name, case)
    return list(found.values())


def _load(name: str, folder: Path) -> list[Case]:
    path = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if not path.is_file():
        raise unknown_name("case", name, known(folder), "Or give the path of a YAML file.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise SettingError(str(path), f"not YAML ({error})".replace("\n", " "), "Mend the file.") from error
    fields = _mapping(str(path), content)
    if "cases" in fields:
        if set(fields) != {"cases"}:
            raise SettingError(str(path), f"a set of cases with {sorted(set(fields) - {'cases'})}", "A set has the key 'cases' only.")
        return [case for member in _list(f"{path}: cases", fields["cases"]) for case in _load(str(member), folder)]
    return [parse(path.stem, fields)]


def parse(name: str, fields: Mapping[str, Any]) -> Case:
    """A case from the mapping in its file.

    Raises:
        SettingError: names the key at fault.
    """
    plain = build(_Plain, {key: value for key, value in fields.items() if key not in _NESTED}, prefix=f"{name}.")
    if not plain.title:
        raise SettingError(f"{name}.title", "missing", "Say in one line what the case is.")
    scan = _mapping(f"{name}.scan", fields.get("scan"))
    if scan.get("kind") not in KINDS:
        raise unknown_name(f"{name}.scan.kind", str(scan.get("kind")), KINDS)
    seeds = tuple(_list(f"{name}.seeds", fields.get("seeds", [0])))
    if not seeds or not all(isinstance(seed, int) and seed >= 0 for seed in seeds):
        raise SettingError(f"{name}.seeds", f"{seeds}", "Give whole numbers from 0.")
    settings = {
        str(solver): _mapping(f"{name}.settings.{solver}", own)
        for solver, own in _mapping(f"{name}.settings", fields.get("settings", {})).items()
    }
    regions = {
        str(region): build(Region, _mapping(f"{name}.regions.{region}", box), prefix=f"{name}.regions.{region}.")
        for region, box in _mapping(f"{name}.regions", fields.get("regions", {})).items()
    }
    methods = fields.get("methods")
    return Case(
        name=name,
        scan=scan,
        seeds=seeds,
        settings=settings,
        methods=None if methods is None else tuple(str(m) for m in _list(f"{name}.methods", methods)),
        bart=build(BartSettings, _mapping(f"{name}.bart", fields.get("bart", {})), prefix=f"{name}.bart."),
        regions=regions,
        **dataclasses.asdict(plain),
    )


def _mapping(field: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise SettingError(field, f"{value!r} is no mapping", "Give names and values.")
    return {str(key): item for key, item in value.items()}


def _list(field: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise SettingError(field, f"{value!r} is no list", "Give a list, [a, b].")
    return value
