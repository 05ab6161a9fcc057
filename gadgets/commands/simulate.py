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
        description="Simulate a free-breathing cardiac scan with an irregular beat and store it as an ISMRMRD file, "
        "noise readouts first, the truth in the group 'truth'.",
        epilog="The standard timing is compressed: about 40 frames of 6 ms a beat and one breath in 160 frames.",
    )
    parser.add_argument("phantom", choices=("cardiac",), help="what to simulate")
    parser.add_argument("out", metavar="OUT.h5", help="file to write; replaced if there")
    parser.add_argument("--matrix", type=int, nargs="+", default=[128], metavar="N", help="pixels: NX [NY] (default: 128)")
    parser.add_argument("--fov", type=float, nargs="+", default=[320.0], metavar="MM", help="field of view, mm: X [Y] (default: 320)")
    parser.add_argument("--coils", type=int, default=8, help="receive coils (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=160, help="frames (default: %(default)s)")
    parser.add_argument(
        "--readouts-per-frame", type=int, default=2, metavar="N", help="spokes or spiral arms in a frame (default: %(default)s)"
    )
    parser.add_argument(
        "--trajectory",
        choices=("radial", "spiral", "cartesian"),
        default="radial",
        help="golden-angle readouts, or lines by a mask in k and t (default: %(default)s)",
    )
    parser.add_argument(
        "--mask", choices=("random", "uniform"), default="random", help="lines of every Cartesian frame (default: %(default)s)"
    )
    parser.add_argument(
        "--acceleration",
        type=float,
        default=4.0,
        metavar="R",
        help="of Cartesian lines, outside the calibration lines (default: %(default)s)",
    )
    parser.add_argument(
        "--calibration-lines", type=int, default=8, metavar="N", help="central lines of every Cartesian frame (default: %(default)s)"
    )
    parser.add_argument("--interleaves", type=int, metavar="N", help="arms of a fully sampled spiral (default: as short as the TR asks)")
    parser.add_argument(
        "--timing", choices=("standard", "physiological"), default="standard", help="beat and breath (default: %(default)s)"
    )
    parser.add_argument("--tr", type=float, default=3.0, metavar="MS", help="time between readouts, ms (default: %(default)s)")
    parser.add_argument("--snr", type=float, default=35.0, help="mean signal over noise in one fully sampled image (default: %(default)s)")
    parser.add_argument(
        "--detail", type=int, default=3, metavar="N", help="object pixels per image pixel, at least 2 (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of anatomy details, beats and noise (default: %(default)s)")
    parser.add_argument("--oblique", action="store_true", help="a double-oblique slice off the isocentre")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Simulate and store; 0 when done.

    Raises:
        SettingError: a setting is out of range.
    """
    from gadgets.simulation import Slice, store
    from recon_core.options import build
    from recon_core.phantoms.cardiac import CardiacSettings, simulate

    settings = build(
        CardiacSettings,
        {
            "matrix": _axes("--matrix", args.matrix),
            "field_of_view": _axes("--fov", args.fov),
            "coils": args.coils,
            "frames": args.frames,
            "readouts_per_frame": args.readouts_per_frame,
            "trajectory": args.trajectory,
            "mask": args.mask,
            "acceleration": args.acceleration,
            "calibration_lines": args.calibration_lines,
            "interleaves": args.interleaves,
            "timing": args.timing,
            "repetition_time": args.tr,
            "snr": args.snr,
            "detail": args.detail,
            "seed": args.seed,
        },
    )
    begin = time.perf_counter()
    with _progress() as progress:
        scan = simulate(settings, progress)
    store(args.out, scan, Slice.oblique() if args.oblique else None)
    (ny, nx), readouts = settings.matrix, scan.trajectory.shape[0]
    compressed = " (time-compressed)" if settings.timing == "standard" else ""
    each = f"{settings.readouts_per_frame}"
    if settings.trajectory == "cartesian":
        each = f"about {readouts / settings.frames:.1f}"
    net = "" if scan.lines is None else f"net R {scan.net_acceleration:.2f}, "
    print(
        f"{args.out}: {settings.frames} frames of {each} {settings.trajectory} readouts, {net}{nx}×{ny} pixels, "
        f"{settings.coils} coils, {readouts * settings.repetition_time * 1e-3:.2f} s of scan{compressed}, "
        f"simulated in {time.perf_counter() - begin:.1f} s"
    )
    return 0


def _axes(name: str, values: list[Any]) -> tuple[Any, Any]:
    """One number or X Y from the command line, as (y, x)."""
    from recon_core.errors import SettingError

    if len(values) > 2:
        raise SettingError(name, f"{len(values)} numbers", "Give one, or X and Y.")
    return values[-1], values[0]


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
