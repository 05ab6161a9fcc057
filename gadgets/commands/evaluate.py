"""``gadgetron-inr evaluate``: score images against a simulated scan's truth."""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gadgets.part import add_part_arguments, part_of

if TYPE_CHECKING:
    from gadgets.evaluation import Curve


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "evaluate",
        help="score images against a simulated truth",
        description="Score a reconstructed series against the truth in a simulated scan. One phase a pixel and one scale are free; "
        "images stored as magnitudes are scored as magnitudes. Of a simulated protocol the parameter maps are scored, of a "
        "contrast-enhanced scan the curves of its regions too: root-mean-square difference in % of the true maximum, and how late peak, "
        "half of the rise and a tenth of it (the bolus's arrival) come.",
    )
    parser.add_argument("images", metavar="OUT.h5", help="the images")
    parser.add_argument("scan", metavar="SCAN.h5", help="the simulated scan")
    parser.add_argument("-G", "--group", metavar="GROUP", help="group of the images (default: the only one)")
    parser.add_argument("--provisional", action="store_true", help="score the images that came while the scan ran")
    parser.add_argument("--after", type=float, default=0.0, metavar="S", help="of these only frames later than so many seconds")
    parser.add_argument("--curves", metavar="NAME", help="write the curves of regions to NAME.csv and NAME.png")
    parser.add_argument("--beside", metavar="OUT.h5", help="other images of the scan, for the curves")
    add_part_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Score and print; 0 when done."""
    from gadgets.evaluation import evaluate, evaluate_curves, evaluate_provisional
    from gadgets.map_simulation import evaluate_maps, has_map_truth

    if has_map_truth(args.scan):
        errors = evaluate_maps(args.images, args.scan, args.group)
        if args.json:
            print(json.dumps(errors, indent=2))
            return 0
        for name, value in errors.items():
            print(f"{name:16s}{value:.2f} Hz" if name.endswith("_hz") else f"{name:16s}NRMSE {value:.4f}")
        return 0
    if args.provisional:
        scores, curves = evaluate_provisional(args.images, args.scan, args.group, args.after, part_of(args)), {}
    else:
        asked = args.scan, args.group, part_of(args)
        scores, curves = evaluate(args.images, *asked), evaluate_curves(args.images, *asked)
    name, other = Path(args.images).stem, Path(args.beside or "").stem
    if name == other:
        name, other = args.images, args.beside
    series = {name: curves}
    if args.beside:
        series[other] = evaluate_curves(args.beside, args.scan, part=part_of(args))
    if args.curves:
        write_curves(args.curves, series, args.scan)
    if args.json:
        told = {
            name: {
                region: {
                    "difference_percent": c.difference,
                    "peak_shift": c.peak_shift,
                    "half_shift": c.half_shift,
                    "arrival_shift": c.arrival_shift,
                }
                for region, c in of.items()
            }
            for name, of in series.items()
        }
        print(json.dumps({**scores, **({"curves": told} if curves else {})}, indent=2))
        return 0
    gain = scores["psnr_db"] - scores["time_average_psnr_db"]
    print(f"frames          {scores['frames']}, scored as {scores['form']} images")
    print(f"PSNR            {scores['psnr_db']:.2f} ± {scores['psnr_sd_db']:.2f} dB")
    print(f"time average    {scores['time_average_psnr_db']:.2f} dB (of the truth itself: {gain:+.2f} dB to it)")
    print(f"SSIM            {scores['ssim']:.4f}")
    print(f"dynamic error   {scores['dynamic_error']:.3f} (1: no motion recovered)")
    for name, of in series.items():
        for region, curve in of.items():
            shifts = f"peak {curve.peak_shift:+d}, half of the rise {curve.half_shift:+.1f}, a tenth {curve.arrival_shift:+.1f} frames"
            print(f"{name:14s}  {region:14s}{curve.difference:6.2f} % RMS of the maximum, {shifts}")
    return 0


def write_curves(name: str, series: Mapping[str, Mapping[str, Curve]], scan: str) -> None:
    """Write ``NAME.csv`` (a row a frame) and ``NAME.png``.

    Args:
        name: of the files, without suffix.
        series: curves by region, by series.
        scan: the simulated scan, for the frames' times.

    Raises:
        DataError: the simulator knows no region.
    """
    from gadgets.pictures import curve_sheet
    from gadgets.scanfile import read_truth
    from recon_core.errors import DataError

    first = next(iter(series.values()))
    if not first:
        raise DataError("curves", f"no region is known of {scan}", "Leave --curves out, or simulate dce.")
    times = read_truth(scan).times
    columns = {"time_s": times, **{f"{region} truth": curve.truth for region, curve in first.items()}}
    columns |= {f"{region} {title}": curve.found for title, of in series.items() for region, curve in of.items()}
    with Path(f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(columns)
        rows.writerows([f"{value:.6g}" for value in row] for row in zip(*columns.values(), strict=True))
    curve_sheet(series, times, f"{name}.png")
