"""``gadgetron-inr install``: our chains and the Python entry in a Gadgetron installation."""

from __future__ import annotations

import argparse
import shutil
import subprocess
from pathlib import Path

CHECK_SECONDS = 120.0


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "install",
        help="put our chains into a Gadgetron installation",
        description="Write every application's chain, in execute and connect form, and the Python entry into a Gadgetron installation. "
        "What is there and not ours, or ours and changed by hand, is not touched; then nothing is written at all.",
    )
    parser.add_argument("--prefix", metavar="GADGETRON_HOME", help="the installation (default: $GADGETRON_HOME, or gadgetron's on PATH)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    parser.add_argument("--uninstall", action="store_true", help="remove what was installed")
    parser.add_argument("--force", action="store_true", help="overwrite or remove also what is not ours or was changed by hand")
    parser.add_argument("--node", default="localhost:18000", metavar="HOST:PORT", help="resident node of the connect chains (%(default)s)")
    parser.add_argument("--noise-adjust", action="store_true", help="let Gadgetron whiten before us")
    parser.add_argument("--compress", type=int, metavar="COILS", help="let Gadgetron compress to so many coils before us")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Install or uninstall; 0 when done.

    Raises:
        ReconError: no installation there, or a file that may not be touched.
    """
    from gadgets import installation
    from gadgets.installation import State
    from gadgets.workers import host_and_port
    from recon_core.errors import SettingError

    prefix = installation.home(args.prefix)
    if args.uninstall:
        removed = installation.installed(prefix) if args.dry_run else installation.uninstall(prefix, args.force)
        refused = args.dry_run and not args.force and State.CHANGED in removed.values()
        for path, what in removed.items():
            note = f" ({what.value})" if what is State.CHANGED else ""
            verb = ("would refuse" if refused and what is State.CHANGED else "would remove") if args.dry_run else "removed"
            print(f"{verb} {prefix / path}{note}")
        if refused:
            print("nothing would be removed: give --force, or take the changes back")
        if not removed:
            print(f"nothing of ours in {prefix}")
        return 0
    if args.compress is not None and args.compress < 1:
        raise SettingError("--compress", f"{args.compress}", "Give at least 1 coil.")
    address, port = host_and_port("--node", args.node)
    made = installation.files(installation.Options(address, port, args.noise_adjust, args.compress))
    before = installation.states(prefix, made) if args.dry_run else installation.install(prefix, made, args.force)
    words = {
        State.ABSENT: ("would write", "wrote"),
        State.CURRENT: ("unchanged", "unchanged"),
        State.OURS: ("would replace", "replaced"),
        State.CHANGED: ("would refuse, changed by hand:", "overwrote, changed by hand:"),
        State.FOREIGN: ("would refuse, not ours:", "overwrote, not ours:"),
    }
    refused = args.dry_run and not args.force and bool({State.CHANGED, State.FOREIGN} & set(before.values()))
    if args.dry_run and args.force:
        words |= {
            State.CHANGED: ("would overwrite, changed by hand:", ""),
            State.FOREIGN: ("would overwrite, not ours:", ""),
        }
    for path, what in before.items():
        print(f"{words[what][0 if args.dry_run else 1]} {prefix / path}")
    if refused:
        print("nothing would be written: give --force, or move these files away")
    print(_python_of_gadgetron(prefix))
    return 0


def _python_of_gadgetron(prefix: Path) -> str:
    """Whether the Python that Gadgetron would start can run an execute node."""
    python = shutil.which("python", path=str(prefix / "bin")) or shutil.which("python") or shutil.which("python3")
    if python is None:
        return "no python on PATH: Gadgetron cannot start execute nodes; connect chains need none"
    script = "import gadgetron, importlib.metadata as m, gadgets.node; print(m.version('gadgetron-inr'))"
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, timeout=CHECK_SECONDS, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return f"execute chains will fail: {python} cannot run the node ({reason}); install this package there, or use connect chains"
    return f"execute chains run with {python}, gadgetron-inr {done.stdout.strip()}"
