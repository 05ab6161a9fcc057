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
PRINTED = ("psnr_db", "ssim", "seconds", "memory", "tensors")
"""What a paper's table may print of a row: PSNR (dB), SSIM, seconds, memory of the process or of its tensors (MB)."""

_NESTED = ("scan", "settings", "bart", "regions", "methods", "rows", "full", "seeds")


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
class Row:
    """One row of a case's table: a method, and what of the case is different for it.

    Attributes:
        name: of the row; None: the method's.
        method: a solver, or ``time_average``.
        settings: its own, over the case's.
        scan: settings of the scan, over the case's.
        frames: the method gets the first so many frames only; None: all.
        every: the method gets every n-th frame only and is asked for all of them (temporal super-resolution).
        paper: what a paper's table says of this row, by the names of :data:`PRINTED`.
    """

    method: str
    name: str | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    scan: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    frames: int | None = None
    every: int = 1
    paper: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def title(self) -> str:
        """What the row is called."""
        return self.name or self.method


@dataclasses.dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        name: the file's name without its ending, with its folder's where it lies in one.
        title: one line for tables.
        note: what a reader of its figures must know.
        scan: ``kind`` (simulate, resample or file) and that kind's settings.
        seeds: every method runs once a seed, on that seed's scan where it is simulated or its lines are random.
        coils: virtual coils, for every method.
        holdout: share of readouts on which a method chooses its settings.
        withhold: share of readouts that no method gets; they judge where no truth is known.
        settings: solver's own settings by solver.
        rows: methods of the case, with what differs for each; None: all solvers that handle its dimensions.
        scored: so many frames, from the first, count in the scores; None: all.
        tensor_bytes: take down the largest number of bytes that tensors held, which slows every operation.
        cut: what is smaller than in full size, in words.
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
    rows: tuple[Row, ...] | None = None
    bart: BartSettings = dataclasses.field(default_factory=BartSettings)
    regions: Mapping[str, Region] = dataclasses.field(default_factory=dict)
    scored: int | None = None
    tensor_bytes: bool = False
    cut: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class _PlainRow:
    """What of a row is a plain value."""

    method: str = option("", "a solver, or time_average")
    name: str | None = option(None, "of the row; auto: the method's")
    frames: int | None = option(None, "the method gets the first so many frames; auto: all", low=2)
    every: int = option(1, "the method gets every n-th frame, and is asked for all", low=1, high=64)


@dataclasses.dataclass(frozen=True)
class _Plain:
    """What of a case is a plain value."""

    title: str = option("", "one line for tables")
    note: str = option("", "what a reader of the figures must know")
    coils: int = option(8, "virtual coils", low=1, high=256)
    holdout: float = option(0.05, "share of readouts on which methods choose", low=0.0, high=0.5)
    withhold: float = option(0.0, "share of readouts that no method gets", low=0.0, high=0.5)
    scored: int | None = option(None, "frames that count in the scores, from the first; auto: all", low=2)
    tensor_bytes: bool = option(False, "take down the largest number of bytes that tensors held")


def known(folder: Path = FOLDER) -> list[str]:
    """Names of the cases and sets that come with the source tree."""
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def load(names: Iterable[str], folder: Path = FOLDER, full: bool = False) -> list[Case]:
    """Cases by name or by path of a YAML file; the name of a set stands for its cases.

    Args:
        names: of cases, sets and files.
        folder: where cases lie by name.
        full: in full size, where a case has one.

    Raises:
        SettingError: no such case, or a fault in its file.
    """
    found: dict[str, Case] = {}
    for name in names:
        for case in _load(name, folder, full):
            found.setdefault(case.name, case)
    return list(found.values())


def _load(name: str, folder: Path, full: bool) -> list[Case]:
    by_path = name.endswith((".yaml", ".yml"))
    path = Path(name) if by_path else folder / f"{name}.yaml"
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
        return [case for member in _list(f"{path}: cases", fields["cases"]) for case in _load(str(member), folder, full)]
    return [parse(path.stem if by_path else name, fields, full)]


def parse(name: str, fields: Mapping[str, Any], full: bool = False) -> Case:
    """A case from the mapping in its file.

    Args:
        name: of the case.
        fields: as in the file. ``full`` holds what is larger in full size, laid over the rest.
        full: in full size.

    Raises:
        SettingError: names the key at fault, or there is no full size.
    """
    larger = _mapping(f"{name}.full", fields.get("full", {}))
    if full and not larger:
        raise SettingError(f"{name}.full", "missing", "Run the case as it is, or say in its file what is larger in full size.")
    reduced = {key: value for key, value in fields.items() if key != "full"}
    whole = _merged(reduced, larger)
    differences = [found for found in _differences(reduced, whole) if found[0] != "note"]
    cut = tuple(dict.fromkeys(f"{place} {small} (full size: {large})" for place, small, large in differences))
    given = whole if full else reduced
    plain = build(_Plain, {key: value for key, value in given.items() if key not in _NESTED}, prefix=f"{name}.")
    if not plain.title:
        raise SettingError(f"{name}.title", "missing", "Say in one line what the case is.")
    scan = _mapping(f"{name}.scan", given.get("scan"))
    if scan.get("kind") not in KINDS:
        raise unknown_name(f"{name}.scan.kind", str(scan.get("kind")), KINDS)
    seeds = tuple(_list(f"{name}.seeds", given.get("seeds", [0])))
    if not seeds or not all(isinstance(seed, int) and seed >= 0 for seed in seeds):
        raise SettingError(f"{name}.seeds", f"{seeds}", "Give whole numbers from 0.")
    settings = {
        str(solver): _mapping(f"{name}.settings.{solver}", own)
        for solver, own in _mapping(f"{name}.settings", given.get("settings", {})).items()
    }
    regions = {
        str(region): build(Region, _mapping(f"{name}.regions.{region}", box), prefix=f"{name}.regions.{region}.")
        for region, box in _mapping(f"{name}.regions", given.get("regions", {})).items()
    }
    return Case(
        name=f"{name}_full" if full else name,
        scan=scan,
        seeds=seeds,
        settings=settings,
        rows=_rows(name, given),
        bart=build(BartSettings, _mapping(f"{name}.bart", given.get("bart", {})), prefix=f"{name}.bart."),
        regions=regions,
        cut=() if full else cut,
        **dataclasses.asdict(plain),
    )


def _rows(name: str, given: Mapping[str, Any]) -> tuple[Row, ...] | None:
    """Rows as declared: ``methods`` names solvers, ``rows`` also says what differs for each."""
    if "methods" in given and "rows" in given:
        raise SettingError(f"{name}.methods", "beside rows", "Give one of them.")
    if "methods" in given:
        return tuple(Row(str(method)) for method in _list(f"{name}.methods", given["methods"]))
    if "rows" not in given:
        return None
    rows = []
    for number, item in enumerate(_list(f"{name}.rows", given["rows"])):
        prefix = f"{name}.rows[{number}]."
        fields = _mapping(prefix[:-1], item)
        for key in fields:
            if key not in (known_keys := [field.name for field in dataclasses.fields(Row)]):
                raise unknown_name(f"{prefix}{key}", key, known_keys)
        nested = {key: _mapping(f"{prefix}{key}", fields.pop(key, {})) for key in ("settings", "scan", "paper")}
        for key in nested["paper"]:
            if key not in PRINTED:
                raise unknown_name(f"{prefix}paper", key, PRINTED)
        own = build(_PlainRow, fields, prefix=prefix)
        if not own.method:
            raise SettingError(f"{prefix}method", "missing", "Name a solver, or time_average.")
        rows.append(Row(own.method, own.name, nested["settings"], nested["scan"], own.frames, own.every, nested["paper"]))
    titles = [row.title for row in rows]
    twice = sorted({title for title in titles if titles.count(title) > 1})
    if twice:
        raise SettingError(f"{name}.rows", f"{twice[0]!r} twice", "Give each row a name of its own.")
    return tuple(rows)


def _merged(under: Any, over: Any) -> Any:
    """``over`` laid over ``under``: mappings key by key, as many mappings in a list one by one, anything else as a whole."""
    if isinstance(under, Mapping) and isinstance(over, Mapping):
        return {**under, **{key: _merged(under.get(key), value) for key, value in over.items()}}
    if _alike(under, over):
        return [_merged(a, b) for a, b in zip(under, over, strict=True)]
    return over


def _differences(a: Any, b: Any, place: str = "") -> list[tuple[str, Any, Any]]:
    """Places at which two nested mappings differ, with both values; what is not set is ``default``."""
    if isinstance(b, Mapping):
        a = a if isinstance(a, Mapping) else {}
        keys = [*a, *(key for key in b if key not in a)]
        return [found for key in keys for found in _differences(a.get(key), b.get(key), f"{place}.{key}" if place else str(key))]
    if _alike(a, b):
        return [found for one, other in zip(a, b, strict=True) for found in _differences(one, other, place)]
    return [] if a == b else [(place, "default" if a is None else a, "default" if b is None else b)]


def _alike(a: Any, b: Any) -> bool:
    lists = isinstance(a, list) and isinstance(b, list) and len(a) == len(b)
    return lists and all(isinstance(item, Mapping) for item in (*a, *b))


def _mapping(field: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise SettingError(field, f"{value!r} is no mapping", "Give names and values.")
    return {str(key): item for key, item in value.items()}


def _list(field: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise SettingError(field, f"{value!r} is no list", "Give a list, [a, b].")
    return value
