"""``gadgetron-inr evaluate``: score images against a simulated scan's truth."""

from __future__ import annotations

import argparse
import json


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "evaluate",
        help="score images against a simulated truth",
        description="Score a reconstructed series against the truth in a simulated scan. One phase a pixel and one scale are free; "
        "images stored as magnitudes are scored as magnitudes. Of a simulated protocol the parameter maps are scored.",
    )
    parser.add_argument("images", metavar="OUT.h5", help="the images")
    parser.add_argument("scan", metavar="SCAN.h5", help="the simulated scan")
    parser.add_argument("-G", "--group", metavar="GROUP", help="group of the images (default: the only one)")
    parser.add_argument("--provisional", action="store_true", help="score the images that came while the scan ran")
    parser.add_argument("--after", type=float, default=0.0, metavar="S", help="of these only frames later than so many seconds")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Score and print; 0 when done."""
    from gadgets.evaluation import evaluate, evaluate_provisional
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
        scores = evaluate_provisional(args.images, args.scan, args.group, args.after)
    else:
        scores = evaluate(args.images, args.scan, args.group)
    if args.json:
        print(json.dumps(scores, indent=2))
        return 0
    gain = scores["psnr_db"] - scores["time_average_psnr_db"]
    print(f"frames          {scores['frames']}, scored as {scores['form']} images")
    print(f"PSNR            {scores['psnr_db']:.2f} ± {scores['psnr_sd_db']:.2f} dB")
    print(f"time average    {scores['time_average_psnr_db']:.2f} dB (of the truth itself: {gain:+.2f} dB to it)")
    print(f"SSIM            {scores['ssim']:.4f}")
    print(f"dynamic error   {scores['dynamic_error']:.3f} (1: no motion recovered)")
    return 0
