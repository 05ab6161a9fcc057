"""``gadgetron-inr recon``: reconstruct a stored scan in this process, with the stages that a server runs."""

from __future__ import annotations

import argparse
import collections
import datetime as dt
import time
from pathlib import Path


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command; options mean what they mean for ``replay``."""
    parser = subparsers.add_parser(
        "recon",
        help="reconstruct a stored scan in this process",
        description="Run a chain's stages on an ISMRMRD file, without a server, and store the images.",
        epilog="Exit status 1 on any error; images made before it are kept.",
    )
    parser.add_argument("scan", metavar="SCAN.h5", help="the scan")
    parser.add_argument("-c", "--config", default="cardiac.xml", metavar="CHAIN", help="known chain or chain file (default: %(default)s)")
    parser.add_argument("-o", "--outfile", default="out.h5", metavar="OUT.h5", help="file for the images (default: %(default)s)")
    parser.add_argument("-g", "--in-group", default="/dataset", metavar="GROUP", help="group of the scan (default: %(default)s)")
    parser.add_argument("-G", "--out-group", metavar="GROUP", help="group for the images (default: date and time)")
    parser.add_argument("-s", "--set", action="append", default=[], metavar="NAME=VALUE", help="override a chain property; can be repeated")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Reconstruct; 0 when all went well.

    Raises:
        ReconError: the chain, a setting or the scan cannot be used.
    """
    from gadgets import chain, stages
    from gadgets.scanfile import ImageWriter, read_scan
    from gadgets.settings import parse_assignments
    from recon_core.errors import SettingError

    out = Path(args.outfile)
    if out.resolve() == Path(args.scan).resolve():
        raise SettingError("-o", f"{args.outfile} is the scan itself", "Name another file for the images.")
    settings = chain.load(args.config).settings(parse_assignments(args.set))
    scan = read_scan(args.scan, args.in_group)
    group = args.out_group or dt.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S")
    existed = out.exists()
    series: collections.Counter[int] = collections.Counter()
    started = time.perf_counter()
    try:
        # Opened first: a path that cannot be written must not cost a reconstruction.
        with ImageWriter(out, group) as writer:
            for image in stages.run(settings, scan.header, scan.items()):
                writer.write(image)
                series[int(image.image_series_index)] += 1
    finally:
        if not existed and not series:
            out.unlink(missing_ok=True)
    counts = ", ".join(f"{count} in series {index}" for index, count in sorted(series.items()))
    print(f"{sum(series.values())} images ({counts}) in {out}, group {group!r}")
    print(f"{scan.n_acquisitions} readouts, {time.perf_counter() - started:.1f} s")
    return 0
