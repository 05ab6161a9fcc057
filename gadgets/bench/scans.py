"""Scans of benchmark cases: whitened problems, with the truth kept apart from what methods are given."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gadgets import header, stages
from gadgets.bench import map_scans
from gadgets.bench.cases import Case
from gadgets.noise import NoiseReadouts
from gadgets.scanfile import read_scan
from gadgets.settings import ChainSettings
from recon_core.calibration.holdout import held_out_readouts
from recon_core.calibration.whitening import whiten, whitening_matrix
from recon_core.errors import DataError, SettingError
from recon_core.metrics import moving_region
from recon_core.operators.frames import FrameEncoding
from recon_core.operators.nufft import Nufft
from recon_core.options import build, option, unknown_name
from recon_core.phantoms import cardiac, dce, relaxometry, speech
from recon_core.phantoms.cardiac import CardiacScan
from recon_core.phantoms.measurement import SimulatedScan
from recon_core.phantoms.relaxometry import RelaxometryScan
from recon_core.phantoms.settings import CardiacSettings, DceSettings, SpeechSettings
from recon_core.problem import KSpaceProblem
from recon_core.stack_of_stars import decouple, sort_spokes
from recon_core.trajectories import (
    cartesian_interleaved_mask,
    cartesian_mask,
    golden_angle_radial,
    net_acceleration,
    resolution_limit,
)

logger = logging.getLogger(__name__)

MASKS = ("random", "uniform")
_FINER = 3
_WITHHOLDING_SEED = 20_251

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True, eq=False)
class BenchScan:
    """One scan of a case.

    Attributes:
        problem: what methods get: whitened readouts without maps and weights.
        truth: complex64 ``[frame, (z,) y, x]`` or None.
        moving: bool ``[(z,) y, x]`` or None.
        everything: the problem with the withheld readouts, where some were.
        withheld: bool ``[readout]`` of ``everything``, or None.
        protocol: a simulated protocol with the truth of its maps, or None.
    """

    problem: KSpaceProblem
    truth: NDArray[np.complex64] | None = None
    moving: NDArray[np.bool_] | None = None
    everything: KSpaceProblem | None = None
    withheld: Tensor | None = None
    protocol: RelaxometryScan | None = None


@dataclasses.dataclass(frozen=True)
class FileScan:
    """A scan from a file, frames as the chain would make them."""

    file: str = option("", "ISMRMRD file, relative to the data folder")
    readouts_per_frame: int = option(2, "readouts in one frame", low=1)
    matrix: tuple[int, ...] | None = option(None, "pixels nx,ny(,nz); auto: the header's", low=2)


@dataclasses.dataclass(frozen=True)
class ResampledScan:
    """A fully sampled Cartesian series, measured again along golden-angle spokes, or a part of its own lines."""

    file: str = option("", "ISMRMRD file of one channel, relative to the data folder")
    lines_per_frame: int = option(2, "lines of one full frame in the file", low=1)
    spokes_per_frame: int = option(8, "spokes in one frame", low=1)
    acceleration: float | None = option(
        None, "lines of a frame over those kept, outside the calibration lines; auto: spokes", low=1.0, high=64.0
    )
    mask: str = option("random", "lines kept, of every frame others: random and denser at the centre, or evenly spaced", choices=MASKS)
    calibration_lines: int = option(8, "central lines that every frame keeps", low=0, high=512)


@dataclasses.dataclass(frozen=True)
class _SliceChoice:
    """Which slice of a simulated volume is reconstructed."""

    slice: int | None = option(None, "slice, from 0; auto: the middle one", low=0)


_PHANTOMS: dict[str, tuple[Any, type]] = {
    "cardiac": (cardiac, CardiacSettings),
    "speech": (speech, SpeechSettings),
    "dce": (dce, DceSettings),
}


def source(case: Case) -> str:
    """What a case's data come from: the phantom with its version, or the file."""
    if case.scan["kind"] != "simulate":
        return str(case.scan.get("file", ""))
    phantom = str(case.scan.get("phantom", "cardiac"))
    if quantitative(case):
        return relaxometry.PHANTOM_VERSION
    if phantom not in _PHANTOMS:
        raise unknown_name(f"{case.name}.scan.phantom", phantom, [*_PHANTOMS, map_scans.PHANTOM])
    return str(_PHANTOMS[phantom][0].PHANTOM_VERSION)


def quantitative(case: Case) -> bool:
    """Whether a case's scan is a protocol, of which maps are made."""
    return case.scan["kind"] == "simulate" and case.scan.get("phantom") == map_scans.PHANTOM


def make(case: Case, seed: int, data: Path, progress: Progress | None = None) -> BenchScan:
    """The scan of a case.

    Args:
        case: the case.
        seed: of a simulated scan, and of random lines kept.
        data: folder of real data.
        progress: is told readouts done and in all of a simulation.

    Raises:
        SettingError: a setting of the scan is unknown or out of range.
        DataError: a file is absent or not what the case needs.
    """
    own = {key: value for key, value in case.scan.items() if key != "kind"}
    prefix = f"{case.name}.scan."
    if case.scan["kind"] == "simulate":
        made = _simulated(own, seed, prefix, progress)
    elif case.scan["kind"] == "resample":
        made = resampled(build(ResampledScan, own, prefix=prefix), data, seed)
    else:
        made = _from_file(build(FileScan, own, prefix=prefix), data)
    if case.withhold == 0:
        return made
    held = held_out_readouts(made.problem, case.withhold, _WITHHOLDING_SEED)
    return dataclasses.replace(made, problem=made.problem.keep_readouts(~held), everything=made.problem, withheld=held)


def _simulated(own: Mapping[str, Any], seed: int, prefix: str, progress: Progress | None) -> BenchScan:
    phantom = own.get("phantom", "cardiac")
    given = {**{k: v for k, v in own.items() if k != "phantom"}, "seed": seed}
    if phantom == map_scans.PHANTOM:
        scan_of_maps = map_scans.make(given, prefix)
        return BenchScan(map_scans.whitened_problem(scan_of_maps), protocol=scan_of_maps)
    if phantom not in _PHANTOMS:
        raise unknown_name(f"{prefix}phantom", str(phantom), [*_PHANTOMS, map_scans.PHANTOM])
    if phantom == "dce":
        return _one_slice(given, prefix, progress)
    module, kind = _PHANTOMS[phantom]
    settings: Any = build(kind, given, prefix=prefix)
    scan: SimulatedScan = module.simulate(settings, progress)
    problem = _whitened(scan, settings.matrix, settings.field_of_view)
    if isinstance(scan, CardiacScan) and scan.lines is not None:
        if settings.oversampling > 1:
            raise SettingError(
                f"{prefix}oversampling", f"{settings.oversampling} of Cartesian lines", "Give 1: no stage of the chain removes it."
            )
        owner = torch.from_numpy(scan.frames)
        frames = tuple(torch.nonzero(owner == t, as_tuple=True)[0] for t in range(settings.frames))
        problem = problem.replace(frames=frames, cartesian=True)
    return BenchScan(problem, scan.truth, scan.moving)


def _one_slice(own: Mapping[str, Any], prefix: str, progress: Progress | None) -> BenchScan:
    """A slice of a stack of stars: a Fourier transform along the partitions makes each slice a problem of its own."""
    number = build(_SliceChoice, {k: v for k, v in own.items() if k == "slice"}, prefix=prefix).slice
    settings: DceSettings = build(DceSettings, {k: v for k, v in own.items() if k != "slice"}, prefix=prefix)
    number = settings.partitions // 2 if number is None else number
    if number >= settings.partitions:
        raise SettingError(f"{prefix}slice", f"{number} of {settings.partitions}", "Slices count from 0.")
    scan = dce.simulate(settings, progress)
    fov = (settings.thickness * settings.partitions, *settings.field_of_view)
    volume = _whitened(scan, (settings.partitions, *settings.matrix), fov)
    spokes = sort_spokes(volume, torch.from_numpy(scan.angles), settings.partitions / settings.encoded)
    each = settings.spokes_per_frame
    frames = [torch.arange(t * each, (t + 1) * each) for t in range(settings.frames)]
    problem = decouple(volume, spokes, frames)[number]
    return BenchScan(problem, np.ascontiguousarray(scan.truth[:, number]), scan.moving[number])


def _whitened(scan: SimulatedScan, shape: tuple[int, ...], field_of_view: tuple[float, ...]) -> KSpaceProblem:
    each = len(scan.times) // len(scan.frame_times)
    return KSpaceProblem(
        samples=whiten(torch.from_numpy(scan.samples), whitening_matrix(torch.from_numpy(scan.noise))),
        trajectory=torch.from_numpy(scan.trajectory),
        frames=tuple(torch.arange(t * each, (t + 1) * each) for t in range(len(scan.frame_times))),
        readout_times=torch.from_numpy(scan.times),
        frame_times=torch.from_numpy(scan.frame_times),
        shape=shape,
        field_of_view=field_of_view,
    )


def _path(name: str, data: Path) -> Path:
    path = data / name
    if not path.is_file():
        raise DataError("data", f"{path} does not exist", "Name the folder of the data with --data or GADGETRON_INR_DATA.")
    return path


def read_problem(path: Path, readouts_per_frame: int, matrix: tuple[int, ...] | None) -> KSpaceProblem:
    """The one whitened problem of a file, by the chain's own stages.

    Raises:
        DataError: the file cannot be used, or holds several slices or contrasts.
    """
    scan = read_scan(path)
    described = header.parse(scan.header)
    settings = ChainSettings(readouts_per_frame=readouts_per_frame, matrix=matrix)
    noise = NoiseReadouts()
    readouts = stages.keep_noise(stages.sort(scan.items(), stages.Tally()), noise)
    groups = stages.buffer(stages.admitted(readouts, described), described, settings.time_tick_ms / 1000, _silent)
    made = [assembled.problem for _, assembled in stages.assembled(groups, described, settings, noise, _silent)]
    if len(made) != 1:
        raise DataError("file", f"{path} holds {len(made)} slices or contrasts", "Give a scan of one.")
    return made[0]


def _silent(_: str) -> None:
    return None


def _from_file(settings: FileScan, data: Path) -> BenchScan:
    problem = read_problem(_path(settings.file, data), settings.readouts_per_frame, settings.matrix)
    return BenchScan(problem)


def resampled(settings: ResampledScan, data: Path, seed: int = 0) -> BenchScan:
    """Spokes through a fully sampled series of real images; the full set is the truth.

    The images are interpolated to a grid three times finer before they are measured (zero-filled k-space), so that no method's own
    grid made the samples; the truth is low-passed to the disc that spokes cover. The series' own noise is in samples and truth alike.
    ``seed`` is that of the lines kept where they are random.

    Raises:
        DataError: the file is no fully sampled Cartesian series of one channel.
    """
    full = read_problem(_path(settings.file, data), settings.lines_per_frame, None)
    points = full.trajectory[full.frames[0]].flatten(0, 1)
    complete = full.cartesian and len(full.shape) == 2 and all(_complete(full, frame) for frame in full.frames)
    if not complete or full.n_coils != 1 or full.field_of_view is None:
        found = f"{settings.file}: {full.n_coils} channels, {points.shape[0]} samples in a frame of {full.shape}"
        raise DataError("file", found, "Give a fully sampled Cartesian slice series of one channel.")
    shape: tuple[int, int] = (full.shape[0], full.shape[1])
    fov: tuple[float, float] = (full.field_of_view[0], full.field_of_view[1])
    images = FrameEncoding(full.replace(sensitivities=torch.ones((1, *shape), dtype=torch.complex64))).backprojection()
    if settings.acceleration is not None:
        truth = images.numpy()
        return BenchScan(_masked(full, settings, seed), truth, moving_region(truth))
    each = settings.spokes_per_frame
    count = full.n_frames * each
    trajectory = torch.from_numpy(golden_angle_radial(count, 2 * max(shape), matrix=shape, field_of_view=fov))
    fine = _finer(images, _FINER)
    samples = torch.empty((1, count, trajectory.shape[1]), dtype=torch.complex64)
    for t in range(full.n_frames):
        part = slice(t * each, (t + 1) * each)
        nufft = Nufft(trajectory[part].flatten(0, 1), tuple(fine.shape[1:]), tolerance=1e-5)
        samples[0, part] = nufft.forward(fine[t]).reshape(each, -1) / _FINER
    times = torch.arange(count, dtype=torch.float64) / each
    frames = tuple(torch.arange(t * each, (t + 1) * each) for t in range(full.n_frames))
    problem = KSpaceProblem(
        samples, trajectory, frames, times, torch.stack([times[f].mean() for f in frames]), shape, field_of_view=full.field_of_view
    )
    truth = _within_disc(images, shape, fov).numpy()
    return BenchScan(problem, truth, moving_region(truth))


def _masked(full: KSpaceProblem, settings: ResampledScan, seed: int) -> KSpaceProblem:
    """A part of the lines, of every frame others."""
    assert settings.acceleration is not None
    ny = full.shape[0]
    if settings.mask == "random":
        mask = cartesian_mask(full.n_frames, ny, settings.acceleration, settings.calibration_lines, seed)
    else:
        mask = cartesian_interleaved_mask(full.n_frames, ny, settings.acceleration, settings.calibration_lines)
    keep = torch.zeros(full.n_readouts, dtype=torch.bool)
    for frame, kept in zip(full.frames, mask, strict=True):
        line = torch.round(full.trajectory[frame, 0, 1]).to(torch.int64) + ny // 2
        keep[frame] = torch.from_numpy(kept)[line]
    logger.info("net R %.2f", net_acceleration(mask))
    return full.keep_readouts(keep)


def _complete(problem: KSpaceProblem, frame: Tensor) -> bool:
    points = torch.round(problem.trajectory[frame].flatten(0, 1)).to(torch.int64)
    used = torch.ones(points.shape[0], dtype=torch.bool) if problem.mask is None else problem.mask[frame].flatten()
    return int(torch.unique(points[used], dim=0).shape[0]) == math.prod(problem.shape)


def _spectra(images: Tensor) -> Tensor:
    return torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(images, dim=(1, 2))), dim=(1, 2))


def _images(spectra: Tensor) -> Tensor:
    return torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(spectra, dim=(1, 2))), dim=(1, 2))


def _finer(images: Tensor, factor: int) -> Tensor:
    """Images ``[frame, y, x]`` on a grid ``factor`` times finer: zero-filled k-space."""
    spectra = _spectra(images)
    wide = torch.zeros((images.shape[0], *(factor * n for n in images.shape[1:])), dtype=images.dtype)
    y, x = (factor * n // 2 - n // 2 for n in images.shape[1:])
    wide[:, y : y + images.shape[1], x : x + images.shape[2]] = spectra
    return _images(wide) * factor**2


def _within_disc(images: Tensor, shape: tuple[int, int], field_of_view: tuple[float, float]) -> Tensor:
    """Images low-passed to the disc of k-space that spokes reach."""
    ky, kx = ((torch.arange(n, dtype=torch.float64) - n // 2) / fov for n, fov in zip(shape, field_of_view, strict=True))
    disc = ky[:, None] ** 2 + kx[None] ** 2 <= (resolution_limit(shape, field_of_view) * 1.0001) ** 2
    return _images(_spectra(images) * disc)
