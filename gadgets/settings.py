"""Chain properties, a YAML settings file and overrides become one frozen, typed record.

Precedence, weakest first: settings file, chain property, override (``-s NAME=VALUE``).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from recon_core.errors import SettingError
from recon_core.options import build, option, unknown_name

SOLVER_PREFIX = "solver."
"""Properties of this prefix are settings of the solver."""
ONLINE_PREFIX = "online."
"""Properties of this prefix are settings of the provisional model (:class:`recon_core.online.model.OnlineSettings`)."""

SIGNAL_MODELS = ("spoiled", "t2_inversion", "decay")
"""Names of :data:`recon_core.signal_models.MODELS`, which brings torch: a node that refuses a scan does without."""

ENGINES = ("auto", "finufft", "cufinufft", "torchkbnufft", "nudft")
IMAGE_TYPES = ("magnitude", "float", "complex")
WEIGHTED = ("all", "ends", "none")
MAP_TYPES = ("both", "float32", "uint16")
FRAMINGS = ("count", "order", "counters", "gated")
GATINGS = ("ecg", "pulse", "stamps", "self")
VOLUMES = ("joint", "slices")
MODES = ("retrospective", "online", "both")
LATE_FRAMES = ("join", "skip", "wait")

LOCAL = "local"
"""``executor`` that is this process."""

_SCHEDULER = re.compile(r"(tcp|tls)://[^\s:/]+:\d{1,5}")
_PARSED = ("regions", "profiles")
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
_NESTED = {"solver_settings": SOLVER_PREFIX, "online_settings": ONLINE_PREFIX}


@dataclasses.dataclass(frozen=True)
class ChainSettings:
    """Every property of the chain's node, converted and checked.

    Make it with :func:`chain_settings`. A field of value None stands for ``auto``.

    Attributes:
        solver_settings: the solver settings that were given (name to converted value); the rest keeps the solver's defaults.
        online_settings: the same of the provisional model.
    """

    solver: str = option("subspace_inr", "Reconstruction method; `gadgetron-inr chain properties --solver NAME` lists its own settings.")
    readouts_per_frame: int = option(2, "Readouts (spokes, arms, lines) in one frame.", low=1)
    frame_stride: int | None = option(
        None, "Readouts from the start of one frame to the next; auto: `readouts_per_frame`, smaller: a sliding window.", low=1
    )
    framing: str = option(
        "count",
        "What makes a frame: count (`readouts_per_frame`), order (Cartesian phase encoding starts again), counters (the scanner's "
        "repetition and phase), gated (`cardiac_phases` × `respiratory_phases`).",
        choices=FRAMINGS,
    )
    gating: str = option(
        "ecg",
        "Heartbeats of framing=gated: ecg or pulse waveform, stamps (`physiology_time_stamp` of the readouts), self (k-space centre).",
        choices=GATINGS,
    )
    cardiac_phases: int = option(20, "Frames of a heartbeat, framing=gated.", low=1, high=1000)
    respiratory_phases: int = option(
        1, "Respiratory states, equally many readouts each, framing=gated; 1: breathing is ignored.", low=1, high=64
    )
    respiration: str = option("belt", "Breathing of framing=gated: belt (waveform) or self (k-space centre).", choices=("belt", "self"))
    matrix: tuple[int, ...] | None = option(
        None,
        "Image matrix, 8 pixels or more in plane: one number for every axis, or `nx,ny` or `nx,ny,nz`; auto: the header's reconSpace.",
        low=2,
    )
    dimension: int | None = option(None, "2 for slices, 3 for volumes; auto: from the header's matrices.", low=2, high=3)
    volume: str = option(
        "joint",
        "A 3D scan as one, or, for a stack of stars, in slices after a transform along kz; a frame then holds `readouts_per_frame` angles.",
        choices=VOLUMES,
    )
    coils: int = option(8, "Virtual coils kept by SVD compression, at most as many as were received.", low=1)
    device: str = option("auto", "Where to compute: auto (CUDA if there is one), cpu, cuda or cuda:N.")
    engine: str = option("auto", "NUFFT engine; auto: the fastest that works on the device.", choices=ENGINES)
    seed: int = option(0, "Seed of every random number.", low=0, high=2**31 - 1)
    holdout: float = option(0.05, "Share of readouts withheld to choose regularisation and stopping.", low=0.0, high=0.5)
    image_type: str = option(
        "magnitude",
        "What leaves the chain: magnitude (uint16, value = pixel · `RescaleSlope`), float (magnitude, float32) or complex (complex64).",
        choices=IMAGE_TYPES,
    )
    signal_model: str = option(
        "auto",
        "Signal model of a multi-contrast protocol; auto: t2_inversion where the header lists T2 preparations, spoiled where it lists "
        "several flip angles, else decay.",
        choices=("auto", *SIGNAL_MODELS),
    )
    weighted_images: str = option(
        "all",
        "Weighted images of a protocol that are sent: all, the first and last excitation after every preparation, none.",
        choices=WEIGHTED,
    )
    map_type: str = option(
        "both", "Parameter maps: uint16 (value = pixel · `RescaleSlope` + `RescaleIntercept`), float32, or both.", choices=MAP_TYPES
    )
    send_latents: bool = option(True, "Send what the manifold learned (principal components of the latents) as a second image series.")
    discard_readouts: int = option(0, "Imaging readouts left out at the start of the scan (approach to steady state).", low=0)
    whitened: bool | None = option(
        None, "Whether a stage before this one whitens (Gadgetron's NoiseAdjust); auto: where outer k-space shows what such a stage leaves."
    )
    compressed: bool | None = option(
        None,
        "Whether a stage before this one compresses coils, so that `coils` does not; auto: where fewer channels arrive than announced.",
    )
    time_tick_ms: float = option(2.5, "One tick of `acquisition_time_stamp`.", low=0.001, high=1e6, unit="ms")
    field_map: str = option(
        "",
        "Off-resonance: `estimate` (a map a frame from the images' phase at the header's TE; spiral arms), or a NumPy file in Hz, "
        "`[(z,) y, x]` or one a frame, over the reconstructed field of view; `estimate:FILE` mends a file's; none: on resonance.",
    )
    regions: str = option(
        "", "Discs whose mean magnitude over time is sent: `NAME=x,y[,z],radius`, in pixels, several separated by semicolons."
    )
    profiles: str = option(
        "", "Lines whose magnitude over time is sent: `NAME=x0,y0,x1,y1[,z]`, in pixels, several separated by semicolons."
    )
    executor: str = option(
        LOCAL, "Where slices, contrasts and sets are reconstructed: local, or side by side on a Dask scheduler, tcp://host:port."
    )
    executor_fallback: bool = option(False, "Reconstruct locally when the Dask scheduler is away, and say so in the images.")
    executor_patience_s: float = option(
        300.0, "Silence of a problem after which another Dask worker does it again.", low=1.0, high=86400.0, unit="s"
    )
    mode: str = option(
        "retrospective",
        "`retrospective`: images once the scan has ended; `online`: provisional ones while it runs; `both`: provisional, then final.",
        choices=MODES,
    )
    late_frames: str = option(
        "join",
        "Provisional frames when the machine is too slow: `join` neighbours, `skip` some, or let the data `wait` (for stored scans).",
        choices=LATE_FRAMES,
    )
    frame_deadline_ms: float = option(
        300.0, "Longest wait of a complete frame before it is given up as provisional image.", low=1.0, high=1e6, unit="ms"
    )
    settings: str = option("", "YAML file of further settings, relative to the working directory of the process that reconstructs.")
    solver_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    online_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what ranges and choices alone do not say.

        Raises:
            SettingError: names the field.
        """
        if _DEVICE.fullmatch(self.device) is None:
            raise SettingError("device", f"unknown value {self.device!r}", "Choose auto, cpu, cuda or cuda:N (N counts from 0).")
        if self.executor != LOCAL and _SCHEDULER.fullmatch(self.executor) is None:
            raise SettingError("executor", f"unknown value {self.executor!r}", "Choose local or a Dask scheduler, tcp://host:port.")
        if self.mode != "retrospective":
            # Provisional images are made of consecutive readouts of a slice, on resonance.
            for name, only in (("framing", "count"), ("volume", "joint"), ("field_map", "")):
                if getattr(self, name) != only:
                    given = f"{self.mode}, with {name}={getattr(self, name)}"
                    raise SettingError("mode", given, f"Set mode=retrospective, or {name}={only or 'nothing'}.")
            for name in ("regions", "profiles") if self.mode == "online" else ():
                if getattr(self, name).strip():
                    raise SettingError(name, "of mode=online, which has no final series", f"Set mode=both, or {name}=nothing.")
        if self.matrix is not None and len(self.matrix) not in (1, 2, 3):
            raise SettingError("matrix", f"{len(self.matrix)} numbers", "Give one number, `nx,ny` or `nx,ny,nz`.")
        if self.matrix is not None and self.dimension is not None and len(self.matrix) not in (1, self.dimension):
            raise SettingError(
                "matrix", f"{len(self.matrix)} numbers for dimension {self.dimension}", f"Give one number or {self.dimension} of them."
            )

    @property
    def stride(self) -> int:
        """Readouts from the start of one frame to the next."""
        return self.readouts_per_frame if self.frame_stride is None else self.frame_stride


def option_fields() -> dict[str, dataclasses.Field[Any]]:
    """The declared chain properties, by name, in the order of the manual."""
    return {f.name: f for f in dataclasses.fields(ChainSettings) if "doc" in f.metadata}


def chain_settings(properties: Mapping[str, str], overrides: Mapping[str, str] | None = None) -> ChainSettings:
    """Make the settings of a chain's node.

    Args:
        properties: the chain's properties; ``solver.NAME`` is setting NAME of the solver.
        overrides: the same names; they win over properties, as does a settings file that they name. One that the chain names is weaker
            than its properties.

    Raises:
        SettingError: unknown name (with the nearest known one), wrong type, out of range, or a bad settings file;
            the error's ``field`` is the property's name, or ``FILE: name`` for an entry of the settings file.
    """
    given: dict[str, Any] = {**properties, **(overrides or {})}
    sources = dict.fromkeys(given, "")
    path = str(given.get("settings", "")).strip()
    stronger = overrides if overrides and "settings" in overrides else given
    if path:
        for name, value in read_settings_file(path).items():
            if name not in stronger:
                given[name] = value
                sources[name] = f"{path}: "
    known = option_fields()
    plain: dict[str, Any] = {}
    solver_values: dict[str, Any] = {}
    online_values: dict[str, Any] = {}
    for name, value in given.items():
        if name.startswith(SOLVER_PREFIX):
            solver_values[name] = value
        elif name.startswith(ONLINE_PREFIX):
            online_values[name] = value
        elif name in known:
            # One at a time, so that the error tells where this one value came from.
            plain[name] = getattr(build(ChainSettings, {name: value}, prefix=sources[name]), name)
            if name in _PARSED:
                _parsed(name, plain[name], sources[name])
        else:
            raise unknown_name(f"{sources[name]}{name}", name, known, f"Settings of the solver are written {SOLVER_PREFIX}NAME.")
    settings = ChainSettings(**plain)
    return dataclasses.replace(
        settings,
        solver_settings=_solver_settings(settings.solver, solver_values, sources),
        online_settings=_online_settings(online_values, sources),
    )


def _parsed(name: str, text: str, source: str) -> None:
    """See that a text of places can be read."""
    if not text:
        return
    from gadgets import courses

    try:
        courses.parse_regions(text) if name == "regions" else courses.parse_lines(text)
    except SettingError as error:
        raise SettingError(f"{source}{name}", error.problem, error.cure) from error


def _online_settings(values: Mapping[str, Any], sources: Mapping[str, str]) -> dict[str, Any]:
    """Settings of the provisional model, converted and checked against their declaration."""
    if not values:
        return {}
    from recon_core.online.model import OnlineSettings

    return _declared(OnlineSettings, values, ONLINE_PREFIX, sources, "the provisional model")


def _solver_settings(solver: str, values: Mapping[str, Any], sources: Mapping[str, str]) -> dict[str, Any]:
    """Settings of a solver, converted and checked against its declaration."""
    import recon_core.solvers.registry as registry

    if solver not in registry.all_names():
        raise unknown_name(f"{sources.get('solver', '')}solver", solver, registry.all_names())
    return _declared(registry.settings_class(solver), values, SOLVER_PREFIX, sources, f"solver {solver!r}")


def _declared(declared: type, values: Mapping[str, Any], prefix: str, sources: Mapping[str, str], whose: str) -> dict[str, Any]:
    """Settings of a prefix by their bare names, one at a time, so that an error tells where its value came from."""
    names = [f.name for f in dataclasses.fields(declared)]
    made: dict[str, Any] = {}
    for full_name, value in values.items():
        name = full_name.removeprefix(prefix)
        if name not in names:
            if not names:
                raise SettingError(f"{sources[full_name]}{full_name}", f"{whose} has no settings", "Leave it out.")
            raise unknown_name(f"{sources[full_name]}{full_name}", name, names, f"These are the settings of {whose}.")
        made[name] = getattr(build(declared, {name: value}, prefix=f"{sources[full_name]}{prefix}"), name)
    return made


def read_settings_file(path: str | Path) -> dict[str, Any]:
    """Entries of a YAML settings file as properties.

    Top-level keys are chain properties; ``solver_settings`` and ``online_settings`` hold those of solver and provisional model.

    Args:
        path: relative paths count from the working directory.

    Returns:
        Property name to YAML value, unconverted; solver settings under ``solver.NAME``, the others under ``online.NAME``.

    Raises:
        SettingError: no such file, not YAML, not a mapping, a key twice.
    """
    label = str(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(
            "settings", f"cannot read {label!r} ({error})", f"Give the path of a YAML file; relative paths count from {Path.cwd()}."
        ) from error
    try:
        content = yaml.load(text, Loader=_UniqueKeys)
    except yaml.YAMLError as error:
        raise SettingError(label, f"not YAML ({_one_line(error)})", "Mend the file at that line.") from error
    if content is None:
        return {}
    entries: dict[str, Any] = {}
    for name, value in _mapping(label, content).items():
        if name == "settings":
            raise SettingError(f"{label}: settings", "a settings file cannot name another", "Write all settings into one file.")
        if name in _NESTED:
            nested = {} if value is None else _mapping(f"{label}: {name}", value)
            named = {f"{_NESTED[name]}{inner}": inner_value for inner, inner_value in nested.items()}
        else:
            named = {name: value}
        for full_name, full_value in named.items():
            if full_name in entries:
                raise SettingError(f"{label}: {full_name}", "given twice", "Keep one of the two.")
            if isinstance(full_value, Mapping):
                raise SettingError(f"{label}: {full_name}", "is a mapping", "Give a single value.")
            entries[full_name] = full_value
    return entries


def _mapping(field: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise SettingError(field, f"is a {type(value).__name__}, not a mapping", "Write one `name: value` a line.")
    for key in value:
        if not isinstance(key, str):
            raise SettingError(field, f"{key!r} is not a name", "Write one `name: value` a line, names as texts.")
    return value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


class _UniqueKeys(yaml.SafeLoader):
    """A safe YAML loader that refuses a key written twice, where PyYAML keeps the last one silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key_node.value!r} is given twice", key_node.start_mark)
                seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)


def parse_assignments(texts: Iterable[str], option_name: str = "-s") -> dict[str, str]:
    """``NAME=VALUE`` texts of the command line as overrides; a later one wins.

    Raises:
        SettingError: a text without ``=`` or without a name.
    """
    overrides: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise SettingError(option_name, f"{text!r} is not NAME=VALUE", f"Write {option_name} readouts_per_frame=4, for example.")
        overrides[name.strip()] = value.strip()
    return overrides


def as_text(value: Any) -> str:
    """A setting's value as a chain property has it: the inverse of conversion."""
    if value is None:
        return "auto"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return ",".join(as_text(item) for item in value)
    return str(value)
