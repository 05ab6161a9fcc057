"""The peer ``bart`` (Uecker et al., ISMRM 2015;2486): its files, its commands, GRASP with its own ESPIRiT maps.

Everything is done by the program itself but coil compression, which every method shares. Indices of dimensions: ``doc/`` of BART.
"""

from __future__ import annotations

import dataclasses
import math
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon_core.errors import DataError, MissingPartError
from recon_core.operators.frames import FrameEncoding
from recon_core.problem import KSpaceProblem

_DIMS = 16
_COIL, _TIME = 3, 10
_TIME_FLAG = 1 << _TIME
_CALIBRATION_WIDTH = 24
_POLL_SECONDS = 0.02


def version() -> str:
    """Version of the installed program.

    Raises:
        MissingPartError: there is none.
    """
    if shutil.which("bart") is None:
        raise MissingPartError(
            "peer", "the program bart is not installed", "Install it (Debian: apt-get install bart) or leave --peer out."
        )
    done = subprocess.run(["bart", "version"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def write_cfl(path: Path, array: NDArray[Any]) -> None:
    """Write an array in BART's format: first dimension fastest, at most 16 dimensions."""
    dims = [*array.shape, *[1] * (_DIMS - array.ndim)]
    path.with_suffix(".hdr").write_text("# Dimensions\n" + " ".join(map(str, dims)) + "\n", encoding="ascii")
    np.asarray(array, dtype=np.complex64).ravel(order="F").tofile(path.with_suffix(".cfl"))


def read_cfl(path: Path) -> NDArray[np.complex64]:
    """Read an array in BART's format, with all its 16 dimensions.

    Raises:
        DataError: header and data disagree.
    """
    lines = path.with_suffix(".hdr").read_text(encoding="ascii").splitlines()
    dims = [int(n) for n in lines[1].split()]
    values = np.fromfile(path.with_suffix(".cfl"), dtype=np.complex64)
    if values.size != math.prod(dims):
        raise DataError(str(path), f"{values.size} values for dimensions {dims}", "The file is incomplete: is the disk full?")
    return values.reshape(dims, order="F")


@dataclasses.dataclass
class Bart:
    """Commands of the program in one folder, timed.

    Attributes:
        folder: where its files lie.
        seconds: wall time of all commands so far.
        peak: largest resident memory of any command so far, bytes.
    """

    folder: Path
    seconds: float = 0.0
    peak: int = 0

    def run(self, *arguments: str) -> None:
        """Run one command; arguments that name files are relative to the folder.

        Raises:
            DataError: the program failed; its own words are in the message.
        """
        started = time.perf_counter()
        with subprocess.Popen(["bart", *arguments], cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            while True:
                self.peak = max(self.peak, _resident_peak(process.pid))
                try:
                    output, _ = process.communicate(timeout=_POLL_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    continue
        self.seconds += time.perf_counter() - started
        if process.returncode != 0:
            said = output.decode("utf-8", "replace").strip()[-300:]
            raise DataError("bart", f"`bart {' '.join(arguments)}` ended with {process.returncode}: {said}", "Check its installation.")

    def read(self, name: str) -> NDArray[np.complex64]:
        """An array that a command wrote."""
        return read_cfl(self.folder / name)

    def write(self, name: str, array: NDArray[Any]) -> None:
        """An array for a command to read."""
        write_cfl(self.folder / name, array)


def _resident_peak(pid: int) -> int:
    """Largest resident memory of a running process so far, bytes; 0 where it has ended.

    getrusage would tell at least the size of the process that started it.
    """
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = [line.split()[1] for line in text.splitlines() if line.startswith("VmHWM")]
    return 1024 * int(found[0]) if found else 0


@dataclasses.dataclass(frozen=True, eq=False)
class BartResult:
    """What one reconstruction gave.

    Attributes:
        images: complex64 ``[frame, (z,) y, x]``, scaled to predict the samples.
        maps: complex64 ``[coil, (z,) y, x]``, BART's own.
        seconds: calibration and reconstruction, by the program's wall time.
        peak: largest resident memory of the program, bytes.
    """

    images: Tensor
    maps: Tensor
    seconds: float
    peak: int


class Grasp:
    """BART's GRASP on one problem: ``nufft -i`` and ``ecalib`` once, then ``pics -R T`` for every λ.

    Args:
        problem: whitened, coils already compressed.
        folder: for BART's files; exists.
    """

    def __init__(self, problem: KSpaceProblem, folder: Path) -> None:
        self.problem = problem
        self.bart = Bart(folder)
        self._write_frames()
        self.maps = self._calibrate()
        self.calibration_seconds = self.bart.seconds

    def _write_frames(self) -> None:
        """Trajectory, samples and pattern, one block of readouts a frame; short frames are filled with readouts of weight zero."""
        problem = self.problem
        n_samples, n_frames = problem.samples.shape[2], problem.n_frames
        most = max(frame.numel() for frame in problem.frames)
        trajectory = np.zeros((3, n_samples, most, n_frames), dtype=np.complex64)
        samples = np.zeros((n_samples, most, problem.n_coils, n_frames), dtype=np.complex64)
        pattern = np.zeros((n_samples, most, n_frames), dtype=np.complex64)
        used = _used(problem)
        for t, readouts in enumerate(problem.frames):
            here = slice(0, readouts.numel())
            trajectory[: problem.dim, :, here, t] = problem.trajectory[readouts].numpy().T
            pattern[:, here, t] = used[readouts].numpy().T
            samples[:, here, :, t] = (problem.samples[:, readouts] * used[readouts]).numpy().transpose(2, 1, 0)
        ones = (1,) * (_TIME - _COIL - 1)
        self.bart.write("traj", trajectory.reshape(3, n_samples, most, 1, *ones, n_frames))
        self.bart.write("ksp", samples.reshape(1, n_samples, most, problem.n_coils, *ones, n_frames))
        self.bart.write("pattern", pattern.reshape(1, n_samples, most, 1, *ones, n_frames))
        self.complete = bool((pattern == 1).all())

    def _calibrate(self) -> Tensor:
        problem = self.problem
        sizes = [*reversed(problem.shape), *[1] * (3 - problem.dim)]
        if problem.n_coils == 1:
            maps = np.ones((*sizes, 1), dtype=np.complex64)
            self.bart.write("sens", maps)
        else:
            used = _used(problem)
            points = np.zeros((3, int(used.sum())), dtype=np.complex64)
            points[: problem.dim] = problem.trajectory[used].numpy().T
            self.bart.write("trajall", points)
            self.bart.write("kspall", problem.samples[:, used].numpy().T[None, :, None, :])
            self.bart.run("nufft", "-i", "-d", ":".join(map(str, sizes)), "trajall", "kspall", "coilimages")
            self.bart.run("fft", "-u", str((1 << problem.dim) - 1), "coilimages", "grid")
            self.bart.run("ecalib", "-m1", "-r", ":".join(str(min(n, _CALIBRATION_WIDTH)) for n in sizes), "grid", "sens")
        stored = self.bart.read("sens").reshape((*sizes, problem.n_coils), order="F")
        return torch.from_numpy(np.ascontiguousarray(stored.T)).reshape(problem.n_coils, *problem.shape)

    def reconstruct(self, strength: float, iterations: int) -> BartResult:
        """One λ.

        Args:
            strength: λ of temporal total variation.
            iterations: of pics.
        """
        before = self.bart.seconds
        regularisation = f"T:{_TIME_FLAG}:0:{strength:g}"
        left_out = () if self.complete else ("-p", "pattern")
        self.bart.run("pics", "-d0", "-S", "-i", str(iterations), "-R", regularisation, *left_out, "-t", "traj", "ksp", "sens", "images")
        seconds = self.calibration_seconds + self.bart.seconds - before
        raw = self.bart.read("images")
        # [x, y, z, 1 …, frame] with the first dimension fastest is [frame, z, y, x] with the last one fastest.
        images = torch.from_numpy(np.ascontiguousarray(raw.T)).reshape(self.problem.n_frames, *self.problem.shape)
        return BartResult(scaled(self.problem, self.maps, images), self.maps, seconds, self.bart.peak)


def _used(problem: KSpaceProblem) -> Tensor:
    """Samples that count, bool ``[readout, sample]``."""
    return torch.ones(problem.trajectory.shape[:2], dtype=torch.bool) if problem.mask is None else problem.mask


def scaled(problem: KSpaceProblem, maps: Tensor, images: Tensor) -> Tensor:
    """Images times the one real factor with which they predict the samples best: programs differ in the scale of their transforms."""
    encoding = FrameEncoding(problem.replace(sensitivities=maps, weights=None))
    above, below = 0.0, 0.0
    for t in encoding.occupied.tolist():
        predicted = encoding.forward(images[t], t)
        above += float((predicted.conj() * encoding.frames[t].samples).real.sum(dtype=torch.float64))
        below += float(predicted.abs().square().sum(dtype=torch.float64))
    return images * (above / below if below else 1.0)
