"""``gadgetron-inr simulate``: a scan with a known truth, as an ISMRMRD file."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from recon_core.phantoms.settings import CardiacSettings, DceSettings, RelaxometrySettings, SpeechSettings

PHANTOMS = {
    "cardiac": (
        "a free-breathing cardiac scan with an irregular beat",
        "The standard timing is compressed: about 40 frames of 6 ms a beat and one breath in 160 frames.",
    ),
    "speech": (
        "speech without any period: tongue, lips, velum, jaw and larynx on single spiral arms",
        "84 pixels over 200 mm give the 13-arm design of public speech data; another matrix takes as many arms as end within --readout.",
    ),
    "dce": (
        "contrast agent passing through the liver under free breathing, on a golden-angle stack of stars",
        "The truth's group also holds regions (aorta, portal_vein, liver, cortex, spleen) and their true curves.",
    ),
    "mpqmri": (
        "a multi-contrast protocol of a head for quantitative maps, on Cartesian lines",
        "set1: 5 flip angles × echoes (T1, T2*); set2: 4 T2 preparations × recoveries × 4 echoes (T1, T2, T2*).",
    ),
}
SETTINGS: dict[str, type] = {
    "cardiac": CardiacSettings,
    "speech": SpeechSettings,
    "dce": DceSettings,
    "mpqmri": RelaxometrySettings,
}
_SHORT = {"field_of_view": "fov", "repetition_time": "tr"}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "simulate",
        help="make a scan with a known truth",
        description="Simulate a scan and store it as an ISMRMRD file, noise readouts first, its truth in a group of its own.",
    )
    phantoms = parser.add_subparsers(dest="phantom", metavar="PHANTOM", required=True)
    for name, (what, note) in PHANTOMS.items():
        phantom = phantoms.add_parser(name, help=what, description=f"Simulate {what}.", epilog=note)
        phantom.add_argument("out", metavar="OUT.h5", help="file to write; replaced if there")
        _add_options(phantom, SETTINGS[name])
        phantom.add_argument("--oblique", action="store_true", help="a double-oblique slice or slab off the isocentre")
    parser.set_defaults(run=run)


class _Given(argparse.Action):
    """Remembers which options were given; ranges and types are checked with the phantom's declared settings."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None) -> None:
        namespace.given = {**namespace.given, self.const: (option_string, values)}


def _add_options(parser: argparse.ArgumentParser, settings: type) -> None:
    """One option a declared setting."""
    parser.set_defaults(given={})
    for field in dataclasses.fields(settings):
        told = field.metadata
        flag = "--" + _SHORT.get(field.name, field.name).replace("_", "-")
        value: Any = field.default
        pair = isinstance(value, tuple)
        default = "auto" if value is None else " ".join(str(v) for v in value[::-1]) if pair else value
        unit = f", {told['unit']}" if told["unit"] else ""
        doc = told["doc"].rstrip(".")
        for arrays, arguments in (("(ny, nx)", "X [Y]"), ("(y, x)", "X [Y]"), ("(z, y, x)", "X Y Z")):
            doc = doc.replace(arrays, arguments)
        words = f"{doc}{unit} (default: {default})"
        extra: dict[str, Any] = {"choices": told["choices"]} if told["choices"] else {"metavar": "VALUE"}
        if pair:
            extra = {"nargs": "+", "metavar": "N"}
        parser.add_argument(flag, dest="given", action=_Given, const=field.name, help=words.replace("%", "%%"), **extra)


def run(args: argparse.Namespace) -> int:
    """Simulate and store; 0 when done.

    Raises:
        SettingError: a setting is out of range.
    """
    import importlib

    from gadgets.simulated_protocol import protocol
    from gadgets.simulation import Slice, store
    from recon_core.options import build

    kind = SETTINGS[args.phantom]
    axes = {field.name: len(field.default) for field in dataclasses.fields(kind) if isinstance(field.default, tuple)}
    given = {name: _axes(flag, value, axes[name]) if name in axes else value for name, (flag, value) in args.given.items()}
    settings: Any = build(kind, given)
    if args.phantom == "mpqmri":
        return _quantitative(args.out, settings, args.oblique)
    begin = time.perf_counter()
    with _progress() as progress:
        scan = importlib.import_module(f"recon_core.phantoms.{args.phantom}").simulate(settings, progress)
    store(args.out, scan, Slice.oblique() if args.oblique else None)
    about = protocol(scan)
    compressed = " (time-compressed)" if getattr(settings, "timing", "") == "standard" else ""
    each = f"{about.readouts_per_frame}"
    if about.repetition is not None:
        each = f"about {len(scan.times) / settings.frames:.1f}"
    net = f", net R {scan.net_acceleration:.2f}" if "net_acceleration" in about.parameters else ""
    size = "×".join(str(n) for n in scan.truth.shape[:0:-1])
    print(
        f"{args.out}: {about.name}: {settings.frames} frames of {each} readouts{net}, {size} pixels, "
        f"{settings.coils} coils, {scan.times[-1] + about.repetition_time * 1e-3:.2f} s of scan{compressed}, "
        f"simulated in {time.perf_counter() - begin:.1f} s"
    )
    return 0


def _quantitative(path: str, settings: Any, oblique: bool) -> int:
    from gadgets.map_simulation import store
    from gadgets.protocol import describe
    from gadgets.simulation import Slice
    from recon_core.phantoms.relaxometry import simulate

    begin = time.perf_counter()
    scan = simulate(settings)
    store(path, scan, Slice.oblique() if oblique else None)
    nz, ny, nx = settings.matrix
    lines = len(scan.contrast)
    print(
        f"{path}: {describe(scan.protocol)}; {scan.protocol.contrasts} contrasts of {nx}×{ny}×{nz} voxels, {settings.coils} coils, "
        f"{lines} lines (R = {ny * nz * scan.protocol.contrasts / lines:.1f}), simulated in {time.perf_counter() - begin:.1f} s"
    )
    return 0


def _axes(name: str, values: list[Any], count: int) -> tuple[Any, ...]:
    """One number or one an axis from the command line, X first, as ((z,) y, x).

    Raises:
        SettingError: another number of them.
    """
    from recon_core.errors import SettingError

    if len(values) not in (1, count):
        raise SettingError(name, f"{len(values)} numbers", f"Give one, or {' and '.join('XYZ'[:count])}.")
    return tuple(reversed(values)) if len(values) == count else tuple(values) * count


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int], None] | None]:
    """A bar on a terminal, nothing elsewhere."""
    if not sys.stdout.isatty():
        yield None
        return
    from rich.progress import Progress

    with Progress() as bar:
        task = bar.add_task("simulating readouts", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
