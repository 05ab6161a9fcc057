"""Scans through the installed chains, inside an image, with tests/wire/stand_in.py beside this file.

``python through_gadgetron.py HOME SCAN OUT CHAIN…``: the stand-in behaves as Gadgetron does. It reads the chain, starts
``python -m gadgetron PORT gadgetron_inr_node run`` or joins the resident node, and hands on what the client sends.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from stand_in import StandIn  # type: ignore[import-not-found]  # lies beside this file in the image only

CHEAP = ("-s", "solver=cg_sense", "-s", "image_type=float", "-s", "send_latents=false")


def main(home: Path, scan: str, out: str, chains: list[str]) -> int:
    """Send the scan through every chain; 0 when every one gave images and no node failed."""
    with StandIn(home, sys.executable, dict(os.environ)) as gadgetron:
        where = ("-p", str(gadgetron.port), "-o", out)
        for name in chains:
            print(f"{name}:", flush=True)
            chain = str(home / "share/gadgetron/config" / name)
            if subprocess.run(["gadgetron-inr", "--quiet", "replay", scan, *where, "-C", chain, *CHEAP], check=False).returncode:
                return 1
    print(f"nodes started by `python -m gadgetron`: {len(gadgetron.started)}, with status {gadgetron.started}")
    return int(any(gadgetron.started) or bool(gadgetron.lost))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:4], sys.argv[4:]))
