"""``gadgetron-inr show``: a contact sheet and a cine of stored images, or a sheet of parameter maps."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gadgets.part import add_part_arguments, part_of

if TYPE_CHECKING:
    from gadgets.pictures import Shown


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "show",
        help="pictures of stored images",
        description="Draw a contact sheet (PNG: frames, a profile against time, latents) and a cine (GIF) of a reconstructed series; of a "
        "multi-contrast protocol its parameter maps (PNG).",
    )
    parser.add_argument("images", metavar="OUT.h5", help="the images")
    parser.add_argument("-o", "--output", default=".", metavar="DIR", help="folder for the pictures (default: the current one)")
    parser.add_argument("--scan", metavar="SCAN.h5", help="the simulated scan: adds truth and error; the cine shows the truth at the right")
    parser.add_argument("-G", "--group", metavar="GROUP", help="group of the images (default: the only one)")
    add_part_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draw and print the files' names; 0 when done."""
    print(*draw(args.images, args.output, scan=args.scan, group=args.group, part=part_of(args)), sep="\n")
    return 0


def draw(
    images: str | Path,
    output: str | Path,
    scan: str | Path | None = None,
    group: str | None = None,
    part: Mapping[str, int] | None = None,
) -> tuple[Path, ...]:
    """Write ``NAME.png`` and ``NAME.gif``, NAME being the images' file name; ``NAME.png`` alone where the images hold parameter maps.

    Args:
        images: file of images.
        output: folder, made when absent.
        scan: the simulated scan, for truth and error; None without.
        group: group of the run; None takes the only one.
        part: which slice, contrast or set of a scan of several.

    Returns:
        Paths of contact sheet and cine, or of the sheet of maps.

    Raises:
        DataError: the file holds no series that can be shown, or another than the scan's.
        MissingPartError: matplotlib or pillow is absent.
    """
    from gadgets.map_sheet import map_sheet
    from gadgets.map_simulation import check_maps, read_map_truth, stored_maps
    from gadgets.pictures import cine, contact_sheet

    folder = Path(output)
    sheet, film = (folder / f"{Path(images).stem}{ending}" for ending in (".png", ".gif"))
    if maps := stored_maps(images, group):
        known = None if scan is None else read_map_truth(scan)
        if known is not None:
            check_maps(maps, known)
        folder.mkdir(parents=True, exist_ok=True)
        map_sheet(maps, sheet, Path(images).name, known)
        return (sheet,)
    shown = load(images, scan, group, part)
    folder.mkdir(parents=True, exist_ok=True)
    contact_sheet(shown, sheet)
    cine(shown, film)
    return sheet, film


def load(path: str | Path, scan: str | Path | None, group: str | None, part: Mapping[str, int] | None = None) -> Shown:
    """Read what is shown: images, their times and pixel size, latents, truth."""
    import numpy as np

    from gadgets.evaluation import check_same, image_series
    from gadgets.pictures import Shown
    from gadgets.scanfile import read_images, read_truth

    pixels, images = image_series(path, group, part=part)
    truth = None if scan is None else read_truth(scan)
    if truth is not None:
        check_same(pixels, truth)
    named = [image.meta.get("FrameTime_s") for image in images]
    stamps = np.array([image.acquisition_time_stamp for image in images], dtype=np.float64)
    # Images of other software carry ticks of 2.5 ms only.
    times = (stamps - stamps[0]) * 2.5e-3 if None in named else np.array([float(str(t)) for t in named])
    others = [v[0] for number, v in sorted(read_images(path, group).items()) if number != images[0].image_series_index]
    latents = next((v.data[0, 0] for v in others if str(v.meta.get("SeriesDescriptionAdditional")) == "latents"), None)
    fx, fy, _ = images[0].field_of_view
    # The image's own property is transposed in ismrmrd 1.14.
    nx, ny, _ = images[0].getHead().matrix_size
    pixel = (fy / ny, fx / nx) if fx > 0 and fy > 0 else (1.0, 1.0)
    method = images[0].meta.get("SeriesDescriptionAdditional", "")
    return Shown(pixels, times, pixel, latents, f"{Path(path).name}  {method}".strip(), truth)
