"""``gadgetron-inr doctor``: what is installed, what works here, what is missing and how to mend it."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import math
import platform
import re
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from importlib import metadata, util
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

DISTRIBUTION = "gadgetron-inr"
OK, MISSING, BROKEN = "ok", "missing", "broken"

_IMPORT_NAMES = {"pyyaml": "yaml", "pillow": "PIL", "scikit-image": "skimage", "prometheus-client": "prometheus_client"}
_LACKING = {
    "torchkbnufft": "engine torchkbnufft was not run; finufft does its work on the CPU",
    "cufinufft": "engine cufinufft was not run; on a GPU torchkbnufft is used",
    "distributed": "a chain's executor must be local",
    "matplotlib": "pictures (show, demo) cannot be drawn",
    "prometheus-client": "serve --metrics-port cannot serve metrics",
    "pillow": "cine GIFs cannot be written",
    "pyinstrument": "the benchmark cannot show where time goes (bench --profile)",
    "scikit-image": "SSIM cannot be computed (evaluate, demo)",
}
_OPTIONAL_EXTRAS = ("torchkbnufft", "cuda", "dask", "metrics", "pictures", "profile")
_ENGINE_ACCURACY = 1e-3


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        section: ``package``, ``device``, ``engine`` or ``program``.
        name: what was looked at.
        state: ``ok``, ``missing`` or ``broken``.
        words: version or result; for what is missing, what is lost and the cure.
        required: its failure makes the exit status 1.
    """

    section: str
    name: str
    state: str
    words: str
    required: bool = False


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "doctor",
        help="what is installed, what works here, what is missing",
        description="Really runs every engine on every device. Exit status 1 if something required is broken.",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the report."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    with warnings.catch_warnings():
        # What other packages deprecate is news for their authors.
        warnings.simplefilter("ignore", DeprecationWarning)
        findings = diagnose()
    table = Table("", "what", "state", "", box=box.SIMPLE, title=f"{DISTRIBUTION} {metadata.version(DISTRIBUTION)}", title_justify="left")
    colours = {OK: "green", MISSING: "yellow", BROKEN: "red"}
    section = ""
    for finding in findings:
        if finding.section != section:
            table.add_section()
        shown = finding.section if finding.section != section else ""
        table.add_row(shown, finding.name, f"[{colours[finding.state]}]{finding.state}[/]", finding.words.replace("[", "\\["))
        section = finding.section
    console = Console()
    # A report is for mailing: outside a terminal nothing may be cut off at 80 columns.
    (console if console.is_terminal else Console(width=200)).print(table)
    broken = [f.name for f in findings if f.required and f.state != OK]
    print(f"broken: {', '.join(broken)}" if broken else "everything required works")
    return 1 if broken else 0


def diagnose() -> list[Finding]:
    """Every finding, in the order of the report."""
    return [*packages(), tinycudann(), *devices(), *engines(), *programs()]


def packages() -> list[Finding]:
    """Python and the packages this one declares, required and optional."""
    found = [Finding("package", "python", OK, f"{platform.python_version()} at {sys.executable}", required=True)]
    for requirement in metadata.requires(DISTRIBUTION) or []:
        match = re.match(r"([A-Za-z0-9._-]+)\s*(?:\[[^\]]*\])?\s*([^;]*)(?:;.*extra\s*==\s*['\"]([^'\"]+)['\"])?", requirement)
        if match is None:
            continue
        name, versions, extra = match.group(1).lower(), match.group(2).strip(" ()"), match.group(3)
        if extra is None or extra in _OPTIONAL_EXTRAS:
            found.append(_package(name, versions, extra))
    return found


def _package(name: str, versions: str, extra: str | None) -> Finding:
    required = extra is None
    cure = f"pip install '{name}{versions}'" if required else f"pip install '{DISTRIBUTION}[{extra}]'"
    module = _IMPORT_NAMES.get(name, name)
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding("package", name, MISSING, f"{_LACKING.get(name, 'required')}. {cure}", required)
    try:
        importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 - a broken package may raise anything; the report tells it
        return Finding("package", name, BROKEN, f"{version} does not import ({type(error).__name__}: {error}). {cure}", required)
    lowest = re.search(r">=\s*([0-9.]+)", versions)
    if lowest is not None and _numbers(version) < _numbers(lowest.group(1)):
        return Finding("package", name, BROKEN, f"{version} is older than {lowest.group(1)}. {cure}", required)
    return Finding("package", name, OK, version, required)


def _numbers(version: str) -> tuple[int, ...]:
    """Leading numbers of a version, ``2.10.0rc1+cpu`` as (2, 10, 0)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match.group(0).split(".")) if match else ()


def tinycudann() -> Finding:
    """The fused hash encoding, which no package index carries."""
    if util.find_spec("tinycudann") is None:
        words = (
            "the tinycudann hash encoding was not run here; the torch hash encoding takes its place. With an NVIDIA GPU and nvcc: "
            "pip install 'git+https://github.com/NVlabs/tiny-cuda-nn#subdirectory=bindings/torch'"
        )
        return Finding("package", "tinycudann", MISSING, words)
    try:
        importlib.import_module("tinycudann")
    except Exception as error:  # noqa: BLE001 - it raises OSError or RuntimeError according to what the GPU lacks
        words = f"does not import ({error}); the torch hash encoding takes its place. Rebuild it for this GPU, or uninstall it"
        return Finding("package", "tinycudann", BROKEN, words)
    return Finding("package", "tinycudann", OK, "imports")


def devices() -> list[Finding]:
    """Where one can compute."""
    try:
        import torch
    except Exception as error:  # noqa: BLE001 - a broken torch may raise anything; the report tells it
        return [Finding("device", "cpu", BROKEN, f"torch does not import ({error})", required=True)]
    found = [Finding("device", "cpu", OK, f"{torch.get_num_threads()} threads, {platform.machine()}", required=True)]
    if not torch.cuda.is_available():
        built = torch.version.cuda
        reason = f"torch is built for CUDA {built} but sees no device" if built else "torch is built without CUDA"
        return [*found, Finding("device", "cuda", MISSING, f"{reason}; everything runs on the CPU")]
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        found.append(Finding("device", f"cuda:{number}", OK, f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"))
    return found


def engines() -> list[Finding]:
    """Every NUFFT engine, run on every device it is meant for, against the exact sum."""
    try:
        import torch

        from recon_core.operators import nufft
    except Exception as error:  # noqa: BLE001 - a broken torch may raise anything; the report tells it
        return [Finding("engine", "all", BROKEN, f"cannot be loaded ({type(error).__name__}: {error})", required=True)]
    present = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    found = []
    for name, reason in nufft.engines().items():
        if reason:
            found.append(Finding("engine", name, MISSING, reason))
            continue
        for device in present:
            if (name, device) in (("finufft", "cuda"), ("cufinufft", "cpu")):
                continue
            found.append(_run_engine(name, device))
    return found


def _run_engine(name: str, device: str) -> Finding:
    """Forward and adjoint of a small, odd, non-square case."""
    import torch

    from recon_core.operators.nufft import Nufft

    title, required = f"{name} on {device}", name == "finufft"
    shape, n_points = (9, 12), 40
    generator = torch.Generator().manual_seed(0)
    points = (torch.rand((n_points, 2), generator=generator) - 0.5) * torch.tensor([shape[1], shape[0]])
    image = torch.randn(shape, dtype=torch.complex64, generator=generator)
    samples = torch.randn(n_points, dtype=torch.complex64, generator=generator)
    exact = _exact_sum(image, points)
    try:
        operator = Nufft(points.to(device), shape, engine=name)
        start = time.perf_counter()
        forward = operator.forward(image.to(device)).cpu()
        adjoint = operator.adjoint(samples.to(device)).cpu()
        seconds = time.perf_counter() - start
    except Exception as error:  # noqa: BLE001 - a broken engine may raise anything; the report tells it
        return Finding("engine", title, BROKEN, f"{type(error).__name__}: {error}. Choose another with engine=NAME", required)
    forward_error = _relative(forward, exact)
    left, right = torch.vdot(forward, samples), torch.vdot(image.flatten(), adjoint.flatten())
    adjoint_error = float(abs(left - right) / abs(left))
    words = f"error against the exact sum {forward_error:.0e}, adjointness {adjoint_error:.0e}, {1e3 * seconds:.1f} ms"
    good = forward_error < _ENGINE_ACCURACY and adjoint_error < _ENGINE_ACCURACY
    return Finding("engine", title, OK if good else BROKEN, words if good else f"{words}. Choose another with engine=NAME", required)


def _exact_sum(image: Tensor, points: Tensor) -> Tensor:
    """The signal equation of docs/conventions.md, term by term in float64."""
    import torch

    ny, nx = image.shape
    y = (torch.arange(ny, dtype=torch.float64) - ny // 2) / ny
    x = (torch.arange(nx, dtype=torch.float64) - nx // 2) / nx
    phase = points[:, 0, None, None].double() * x + points[:, 1, None, None].double() * y[:, None]
    return (image * torch.exp(-2j * math.pi * phase)).sum((1, 2)) / math.sqrt(ny * nx)


def _relative(value: Tensor, reference: Tensor) -> float:
    return float((value - reference).abs().square().sum().sqrt() / reference.abs().square().sum().sqrt())


def programs() -> Iterator[Finding]:
    """Programs of a Gadgetron installation on the path."""
    for name, use in (
        ("gadgetron", "gadgetron-inr serve hosts the chains"),
        ("gadgetron_ismrmrd_client", "gadgetron-inr replay sends scans"),
    ):
        path = shutil.which(name)
        yield Finding("program", name, OK if path else MISSING, path or f"not on PATH; {use} without it")
