"""The stages of the application, iterables to iterables, composed in :func:`run`.

One function serves a Gadgetron node, the embedded server and an in-process run on a file: only the source of ``items`` and the sink of
the images differ. Nothing outlives a call: buffers, noise and numbering are made for one scan.

items → :func:`sort` → :func:`keep_noise` → :func:`admitted` → :func:`buffer` → :func:`assembled` → :func:`reconstructed` → images

A stage that reconstructs while readouts arrive would take the place of :func:`buffer` (which waits for the end of the stream) and leave
the others as they are.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeAlias

import ismrmrd
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gadgets import flags
from gadgets.assemble import Assembled, assemble
from gadgets.binning.clock import readout_times
from gadgets.flags import Kind
from gadgets.header import ScanHeader, parse
from gadgets.images import Numbering, Scale, clipped, emit, latent_image, magnitude_scale
from gadgets.noise import NoiseReadouts
from gadgets.quantitative import chosen_contrasts, map_images, weighted_images
from gadgets.readouts import Readout, admit
from gadgets.settings import ChainSettings
from recon_core.errors import DataError
from recon_core.problem import ImageSeries, KSpaceProblem
from recon_core.reconstruct import Reconstruction, ReconstructionSettings, reconstruct
from recon_core.signal_models import Protocol as Contrasts
from recon_core.solvers.registry import solver_class

logger = logging.getLogger(__name__)

Item: TypeAlias = ismrmrd.Acquisition | ismrmrd.Waveform
Report: TypeAlias = Callable[[str], None]


class Reconstruct(Protocol):
    """What turns a problem into images: :func:`recon_core.reconstruct.reconstruct`."""

    def __call__(
        self,
        problem: KSpaceProblem,
        settings: ReconstructionSettings,
        solver_settings: dict[str, Any],
        progress: Report | None,
        times: Tensor | None = None,
    ) -> Reconstruction:
        """Reconstruct one problem."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Readouts that are reconstructed together.

    Attributes:
        readouts: in order of acquisition.
        times: float64 ``[readout]``, seconds from the scan's first imaging readout.
        total: number of groups of the scan.
    """

    readouts: list[Readout]
    times: NDArray[np.float64]
    total: int


@dataclasses.dataclass
class Tally:
    """What came in, counted while it streams."""

    kinds: collections.Counter[Kind] = dataclasses.field(default_factory=collections.Counter)
    waveforms: int = 0

    def left_out(self) -> str:
        """Readouts that are neither imaging nor noise, in words; empty if none."""
        parts = [f"{n} {kind.value}" for kind, n in self.kinds.items() if kind not in (Kind.IMAGING, Kind.NOISE)]
        return ", ".join(parts)


def sort(items: Iterable[Item], tally: Tally) -> Iterator[tuple[int, Kind, ismrmrd.Acquisition]]:
    """Number and classify the readouts; waveforms are counted and set aside."""
    number = 0
    for item in items:
        if isinstance(item, ismrmrd.Acquisition):
            kind = flags.kind(item)
            tally.kinds[kind] += 1
            yield number, kind, item
            number += 1
        else:
            tally.waveforms += 1


def keep_noise(
    readouts: Iterable[tuple[int, Kind, ismrmrd.Acquisition]], noise: NoiseReadouts
) -> Iterator[tuple[int, ismrmrd.Acquisition]]:
    """Noise readouts go into ``noise``, imaging readouts on, others nowhere."""
    for number, kind, acquisition in readouts:
        if kind is Kind.NOISE:
            noise.add(acquisition, number)
        elif kind is Kind.IMAGING:
            yield number, acquisition


def admitted(readouts: Iterable[tuple[int, ismrmrd.Acquisition]], header: ScanHeader, discard: int = 0) -> Iterator[Readout]:
    """Imaging readouts checked against the header, without the first ``discard`` of the scan."""
    for position, (number, acquisition) in enumerate(readouts):
        if position >= discard:
            yield admit(acquisition, number, header)


def buffer(readouts: Iterable[Readout], header: ScanHeader, tick: float, report: Report, whole_protocol: bool = False) -> Iterator[Group]:
    """Wait for the end of the stream, then hand on slice by slice (and contrast, set, encoding space).

    Args:
        readouts: imaging readouts in order of acquisition.
        header: the scan's header.
        tick: seconds a tick of the time stamps.
        report: gets user-facing lines.
        whole_protocol: contrasts, sets and encoding spaces of a slice stay together.
    """
    groups: dict[tuple[int, int, int, int], list[Readout]] = {}
    places: dict[tuple[int, int, int, int], list[int]] = {}
    stamps: list[int] = []
    for readout in readouts:
        key = (0, readout.head.idx.slice, 0, 0) if whole_protocol else readout.key
        groups.setdefault(key, []).append(readout)
        places.setdefault(key, []).append(len(stamps))
        stamps.append(readout.head.acquisition_time_stamp)
    if not groups:
        return
    # Within one TR every slice and contrast is read once.
    spacing = None if header.repetition_time is None else header.repetition_time / len(groups)
    clock = readout_times(stamps, tick, spacing)
    if clock.note:
        report(clock.note)
    for key in sorted(groups):
        yield Group(groups.pop(key), clock.times[places[key]], len(places))


def assembled(
    groups: Iterable[Group], header: ScanHeader, settings: ChainSettings, noise: NoiseReadouts, report: Report
) -> Iterator[tuple[Group, Assembled]]:
    """Whitened problems, one a group."""
    for group in groups:
        first = group.readouts[0]
        whitening = noise.matrix(first.samples.shape[0], float(first.head.sample_time_us), header.noise_bandwidth)
        made = assemble(group.readouts, group.times, header, settings, whitening, report, quantitative(settings))
        problem = made.problem
        report(
            f"{_name(first, group.total)}{problem.n_readouts} readouts, {problem.n_coils} channels, {problem.n_frames} frames of "
            f"{'×'.join(str(n) for n in reversed(problem.shape))} pixels"
        )
        # The copies in the problem suffice from here on.
        group.readouts.clear()
        yield group, made


def _name(readout: Readout, total: int) -> str:
    if total == 1:
        return ""
    index = readout.head.idx
    return f"slice {index.slice}, contrast {index.contrast}, set {index.set}: "


def reconstructed(
    problems: Iterable[tuple[Group, Assembled]], settings: ChainSettings, report: Report, method: Reconstruct
) -> Iterator[tuple[Group, Assembled, ImageSeries]]:
    """Images of every problem."""
    common = ReconstructionSettings(
        **{f.name: getattr(settings, f.name) for f in dataclasses.fields(ReconstructionSettings)}  # same names in both records
    )
    for group, made in problems:
        protocol = made.problem.protocol
        # All images of a long protocol may not fit into memory: only those are asked for that leave.
        wanted = {} if protocol is None else {"times": _contrast_times(protocol, settings.weighted_images)}
        result = method(made.problem, common, dict(settings.solver_settings), report, **wanted)
        seconds = result.report.get("seconds", {}).get("total")
        took = "" if seconds is None else f" in {seconds:.1f} s"
        frames = "frames" if protocol is None else "contrasts"
        report(f"{settings.solver}: {made.problem.n_frames} {frames} reconstructed{took}")
        yield group, made, result.series


def quantitative(settings: ChainSettings) -> bool:
    """Whether the chain's solver takes a multi-contrast protocol."""
    return solver_class(settings.solver).quantitative


def _contrast_times(protocol: Contrasts, weighted: str) -> Tensor:
    return torch.tensor(chosen_contrasts(protocol, weighted), dtype=torch.float64)


def run(
    settings: ChainSettings,
    header_text: str,
    items: Iterable[Item],
    report: Report | None = None,
    method: Reconstruct | None = None,
) -> Iterator[ismrmrd.Image]:
    """Reconstruct one scan.

    Args:
        settings: chain properties.
        header_text: the ISMRMRD header, XML.
        items: the stream's readouts and waveforms, in order; its end is the end of the scan.
        report: gets user-facing status lines, and logs them or not; None: they are logged here.
        method: what reconstructs a problem; None: :func:`recon_core.reconstruct.reconstruct`.

    Yields:
        Images slice by slice as soon as one is done, then that slice's latents (series 2) or parameter maps.

    Raises:
        DataError: header or readouts cannot be used; an empty scan.
        SettingError: a setting contradicts the scan.
        MissingPartError: a device or engine asked for is absent.
    """
    tell = report or _log
    header = parse(header_text)
    tally, noise = Tally(), NoiseReadouts()
    imaging = admitted(keep_noise(sort(items, tally), noise), header, settings.discard_readouts)
    tick = settings.time_tick_ms / 1000
    groups = buffer(_told_at_end(imaging, tally, settings, tell), header, tick, tell, quantitative(settings))
    problems = assembled(groups, header, settings, noise, tell)
    numbering = Numbering()
    scale: Scale | None = None
    for group, made, series in reconstructed(problems, settings, tell, reconstruct if method is None else method):
        if settings.image_type == "magnitude":
            scale = scale or magnitude_scale(series.images.numpy(), more_to_come=group.total > 1)
            too_bright = clipped(series, scale)
            if too_bright:
                tell(f"{too_bright} pixels exceed the scale of the image series and are clipped")
        if made.problem.protocol is None:
            yield from emit(series, made, header, numbering, scale, settings.solver)
        else:
            if settings.weighted_images != "none":
                yield from weighted_images(series, made, header, numbering, scale, settings.solver)
            yield from map_images(series, made, numbering, settings.solver, settings.map_type)
        latents = latent_image(series, made, numbering, settings.solver) if settings.send_latents else None
        if latents is not None:
            yield latents


def _told_at_end(readouts: Iterable[Readout], tally: Tally, settings: ChainSettings, report: Report) -> Iterator[Readout]:
    """Say what the stream held once it has ended.

    Raises:
        DataError: no imaging readout is left.
    """
    kept = 0
    for readout in readouts:
        kept += 1
        yield readout
    left_out = tally.left_out()
    if left_out:
        report(f"readouts left out: {left_out}")
    if settings.discard_readouts and kept:
        report(f"first {settings.discard_readouts} imaging readouts left out (discard_readouts)")
    if tally.waveforms:
        report(f"{tally.waveforms} waveforms received and not used")
    if not kept:
        total = sum(tally.kinds.values())
        held = ", ".join(f"{n} {kind.value}" for kind, n in tally.kinds.items()) or "none at all"
        raise DataError(
            "readouts",
            f"no imaging readout among {total} ({held})" + (f", discard_readouts={settings.discard_readouts}" if total else ""),
            "Send a scan with imaging readouts, check their flags and discard_readouts.",
        )


def _log(line: str) -> None:
    logger.info("%s", line)
