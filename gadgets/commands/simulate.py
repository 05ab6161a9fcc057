"""``gadgetron-inr simulate``: a scan with a known truth, as an ISMRMRD file."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "simulate",
        help="make a scan with a known truth",
        description="Simulate a scan and store it as an ISMRMRD file, noise readouts first, with its truth: a free-breathing cardiac scan "
        "with an irregular beat, or a multi-contrast protocol of a head for quantitative maps.",
        epilog="The standard timing of cardiac is compressed: about 40 frames of 6 ms a beat and one breath in 160 frames.",
    )
    parser.add_argument("phantom", choices=("cardiac", "mpqmri"), help="what to simulate")
    parser.add_argument("out", metavar="OUT.h5", help="file to write; replaced if there")
    parser.add_argument("--matrix", type=int, nargs="+", metavar="N", help="pixels: NX [NY [NZ]] (default: 128; mpqmri: 64 64 8)")
    parser.add_argument(
        "--fov", type=float, nargs="+", metavar="MM", help="field of view, mm: X [Y [Z]] (default: 320; mpqmri: 220 220 64)"
    )
    parser.add_argument("--coils", type=int, default=8, help="receive coils (default: %(default)s)")
    parser.add_argument("--snr", type=float, help="mean signal over noise in one fully sampled image (default: 35; mpqmri: 40)")
    parser.add_argument("--detail", type=int, metavar="N", help="object pixels per image pixel (default: 3; mpqmri: 2)")
    parser.add_argument("--seed", type=int, default=0, help="of anatomy details, beats, masks and noise (default: %(default)s)")
    parser.add_argument("--oblique", action="store_true", help="a double-oblique slice off the isocentre")
    cardiac = parser.add_argument_group("cardiac")
    cardiac.add_argument("--frames", type=int, default=160, help="frames (default: %(default)s)")
    cardiac.add_argument(
        "--readouts-per-frame", type=int, default=2, metavar="N", help="spokes or spiral arms in a frame (default: %(default)s)"
    )
    cardiac.add_argument(
        "--trajectory", choices=("radial", "spiral"), default="radial", help="golden-angle readouts (default: %(default)s)"
    )
    cardiac.add_argument("--interleaves", type=int, metavar="N", help="arms of a fully sampled spiral (default: as short as the TR asks)")
    cardiac.add_argument(
        "--timing", choices=("standard", "physiological"), default="standard", help="beat and breath (default: %(default)s)"
    )
    cardiac.add_argument("--tr", type=float, default=3.0, metavar="MS", help="time between readouts, ms (default: %(default)s)")
    quantitative = parser.add_argument_group("mpqmri")
    quantitative.add_argument(
        "--protocol",
        choices=("set1", "set2"),
        default="set1",
        help="set1: 5 flip angles × echoes (T1, T2*); set2: 4 T2 preparations × recoveries × 4 echoes (T1, T2, T2*) (default: %(default)s)",
    )
    quantitative.add_argument(
        "--acceleration", type=float, default=12.0, metavar="R", help="places times contrasts over lines measured (default: %(default)s)"
    )
    quantitative.add_argument("--echoes", type=int, default=6, help="echoes of set1, 12 in the paper (default: %(default)s)")
    quantitative.add_argument(
        "--recoveries", type=int, default=80, help="excitations after each preparation of set2 (default: %(default)s)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Simulate and store; 0 when done.

    Raises:
        SettingError: a setting is out of range.
    """
    return _cardiac(args) if args.phantom == "cardiac" else _quantitative(args)


def _given(**values: Any) -> dict[str, Any]:
    """What was given on the command line; the rest keeps the phantom's defaults."""
    return {name: value for name, value in values.items() if value is not None}


def _cardiac(args: argparse.Namespace) -> int:
    from gadgets.simulation import Slice, store
    from recon_core.options import build
    from recon_core.phantoms.cardiac import CardiacSettings, simulate

    settings = build(
        CardiacSettings,
        {
            **_given(snr=args.snr, detail=args.detail),
            "matrix": _axes("--matrix", args.matrix or [128], 2),
            "field_of_view": _axes("--fov", args.fov or [320.0], 2),
            "coils": args.coils,
            "frames": args.frames,
            "readouts_per_frame": args.readouts_per_frame,
            "trajectory": args.trajectory,
            "interleaves": args.interleaves,
            "timing": args.timing,
            "repetition_time": args.tr,
            "seed": args.seed,
        },
    )
    begin = time.perf_counter()
    with _progress() as progress:
        scan = simulate(settings, progress)
    store(args.out, scan, Slice.oblique() if args.oblique else None)
    (ny, nx), readouts = settings.matrix, scan.trajectory.shape[0]
    compressed = " (time-compressed)" if settings.timing == "standard" else ""
    print(
        f"{args.out}: {settings.frames} frames of {settings.readouts_per_frame} {settings.trajectory} readouts, {nx}×{ny} pixels, "
        f"{settings.coils} coils, {readouts * settings.repetition_time * 1e-3:.2f} s of scan{compressed}, "
        f"simulated in {time.perf_counter() - begin:.1f} s"
    )
    return 0


def _quantitative(args: argparse.Namespace) -> int:
    from gadgets.map_simulation import store
    from gadgets.protocol import describe
    from gadgets.simulation import Slice
    from recon_core.options import build
    from recon_core.phantoms.relaxometry import RelaxometrySettings, simulate

    settings = build(
        RelaxometrySettings,
        {
            **_given(snr=args.snr, detail=args.detail),
            "matrix": _axes("--matrix", args.matrix or [64, 64, 8], 3),
            "field_of_view": _axes("--fov", args.fov or [220.0, 220.0, 64.0], 3),
            "coils": args.coils,
            "protocol": args.protocol,
            "acceleration": args.acceleration,
            "echoes": args.echoes,
            "recoveries": args.recoveries,
            "seed": args.seed,
        },
    )
    begin = time.perf_counter()
    scan = simulate(settings)
    store(args.out, scan, Slice.oblique() if args.oblique else None)
    nz, ny, nx = settings.matrix
    lines = len(scan.contrast)
    print(
        f"{args.out}: {describe(scan.protocol)}; {scan.protocol.contrasts} contrasts of {nx}×{ny}×{nz} voxels, {settings.coils} coils, "
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
