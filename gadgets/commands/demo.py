"""``gadgetron-inr demo``: a simulated heart goes over a socket as readouts and comes back as images."""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gadgets.scanfile import Scan

SOLVERS = ("gridding", "cg_sense", "inmr", "subspace_inr")
# Half of its default, so that the whole demo takes minutes; its stopping is held-out either way.
SHORTENED = {"inmr": {"solver.steps": "300"}}

logger = logging.getLogger(__name__)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "demo",
        help="simulate a beating heart, stream it through a server, score and show the images",
        description="Simulate a free-breathing cardiac scan, start a server on loopback, replay the scan through the chain cardiac.xml "
        "with several solvers, score the images against the truth, and draw them. Takes minutes.",
    )
    parser.add_argument("--output", default="demo", metavar="DIR", help="folder for scan, images and pictures (default: %(default)s)")
    parser.add_argument("--solvers", nargs="+", default=list(SOLVERS), metavar="NAME", help=f"solvers (default: {' '.join(SOLVERS)})")
    parser.add_argument("--matrix", type=int, default=96, metavar="N", help="pixels an axis (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=160, help="frames of two spokes (default: %(default)s)")
    parser.add_argument("--coils", type=int, default=8, help="receive coils (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the simulation (default: %(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run all of it; 1 when a replay failed.

    Raises:
        ReconError: unknown solver, or a setting out of range.
    """
    from gadgets.commands.show import draw
    from gadgets.evaluation import evaluate
    from gadgets.scanfile import read_scan
    from gadgets.server import Server
    from gadgets.simulation import store
    from recon_core.options import build, unknown_name
    from recon_core.phantoms.cardiac import CardiacSettings, simulate
    from recon_core.solvers import registry

    for name in args.solvers:
        if name not in registry.names():
            raise unknown_name("--solvers", name, registry.names())
    settings = build(CardiacSettings, {"matrix": (args.matrix, args.matrix), "frames": args.frames, "coils": args.coils, "seed": args.seed})
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    print(
        f"Simulating {args.frames} frames of 6 ms with 2 golden-angle spokes each, {args.matrix}×{args.matrix} pixels, {args.coils} coils."
    )
    print("Time-compressed: about 40 frames a beat and one breath in all.", flush=True)
    path = folder / "scan.h5"
    begin = time.perf_counter()
    store(path, simulate(settings))
    print(f"{path} made in {time.perf_counter() - begin:.1f} s", flush=True)
    scan = read_scan(path)
    rows: dict[str, dict[str, Any]] = {}
    pictures: list[Path] = []
    with Server("127.0.0.1", 0) as server:
        print(f"Server on 127.0.0.1:{server.port}; the scan goes there once for every solver, through cardiac.xml.", flush=True)
        for name in args.solvers:
            images = folder / f"{name}.h5"
            print(f"{name} ...", flush=True)
            seconds = replay(scan, images, name, server.port)
            if seconds is None:
                return 1
            rows[name] = {"seconds": seconds, **evaluate(images, path)}
            pictures += draw(images, folder, scan=path)
    (folder / "scores.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print_table(rows)
    print("Open these:")
    for picture in pictures:
        print(f"  {picture}")
    return 0


def replay(scan: Scan, images: Path, solver: str, port: int) -> float | None:
    """Send the scan through cardiac.xml with one solver; seconds from connection to the last word, None after an error (told)."""
    from gadgets import client
    from gadgets.commands.replay import configuration
    from gadgets.scanfile import ImageWriter

    # Complex images: a score of magnitudes would not see errors of phase.
    config, tick_ms = configuration(
        "cardiac.xml", None, {"solver": solver, "image_type": "complex", "readouts_per_frame": "2", **SHORTENED.get(solver, {})}
    )
    images.unlink(missing_ok=True)
    with ImageWriter(images, solver) as writer:
        result = client.replay(
            scan,
            config,
            "127.0.0.1",
            port,
            on_image=writer.write,
            on_text=lambda text: logger.debug("server: %s", text),
            tick_ms=tick_ms,
        )
    if result.error:
        print(f"error: {result.error}")
        return None
    return result.seconds


def print_table(rows: dict[str, dict[str, Any]]) -> None:
    """Print scores, the truth's own time average first: what any method must beat."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Scores of complex images against the truth (dynamic error 1: no motion recovered)")
    table.add_column("method")
    for name in ("seconds", "PSNR (dB)", "SSIM", "dynamic error"):
        table.add_column(name, justify="right")
    static = next(iter(rows.values()))
    table.add_row("time average of the truth", "", f"{static['time_average_psnr_db']:.1f}", f"{static['time_average_ssim']:.3f}", "1.00")
    for name, row in rows.items():
        psnr = f"{row['psnr_db']:.1f} ± {row['psnr_sd_db']:.1f}"
        table.add_row(name, f"{row['seconds']:.0f}", psnr, f"{row['ssim']:.3f}", f"{row['dynamic_error']:.2f}")
    Console().print(table)
