"""The stages of the application, iterables to iterables, composed in :func:`run`.

One function serves a Gadgetron node, the embedded server and an in-process run on a file: only the source of ``items`` and the sink of
the images differ. Nothing outlives a call: buffers, noise and numbering are made for one scan.

items → :func:`sort` → :func:`keep_noise` → :func:`admitted` → :func:`buffer` → :func:`assembled` → :func:`reconstructed` → images

With ``mode=online`` or ``both`` :class:`gadgets.online.provisional.OnlineScan` stands before :func:`buffer` (which waits for the end of the
stream): it makes provisional images while readouts arrive, and hands on the readouts for the final series.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

import ismrmrd
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gadgets import flags
from gadgets.assemble import Assembled, assemble
from gadgets.binning.clock import readout_times
from gadgets.courses import Line, Region, check_places, courses, parse_lines, parse_regions
from gadgets.executor import Method, Reconstruct, Task, execute
from gadgets.field_map import corrected, echo_time, estimated
from gadgets.flags import Kind
from gadgets.framing import Physiology
from gadgets.header import ScanHeader, parse
from gadgets.images import Scale, clipped, emit, latent_image, magnitude_scale
from gadgets.metrics import NO_METRICS, Metrics
from gadgets.noise import NoiseReadouts
from gadgets.online.provisional import OnlineScan
from gadgets.online.provisional import numbering as numbering_for
from gadgets.protocol import one_contrast
from gadgets.quantitative import chosen_contrasts, map_images, weighted_images
from gadgets.readouts import Readout, admit
from gadgets.settings import ChainSettings
from gadgets.stack import Stack, assemble_stack
from gadgets.waveforms import Waveforms
from recon_core.errors import DataError, SettingError
from recon_core.problem import ImageSeries, KSpaceProblem
from recon_core.reconstruct import ReconstructionSettings, reconstruct
from recon_core.signal_models import Protocol as Contrasts
from recon_core.solvers.registry import solver_class

logger = logging.getLogger(__name__)

_PEAK = 4.0
"""Largest magnitude of an image over its mean, about that of a body that fills most of the field of view."""

Item: TypeAlias = ismrmrd.Acquisition | ismrmrd.Waveform
Report: TypeAlias = Callable[[str], None]


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Readouts that are reconstructed together.

    Attributes:
        readouts: in order of acquisition.
        times: float64 ``[readout]``, seconds from the scan's first imaging readout.
        total: number of groups of the scan.
        origin: time stamp of the scan's first imaging readout.
        is_clock: the scan's time stamps are a clock.
        brighter: largest sample of any group over this one's.
    """

    readouts: list[Readout]
    times: NDArray[np.float64]
    total: int
    origin: int = 0
    is_clock: bool = True
    brighter: float = 1.0


@dataclasses.dataclass
class Tally:
    """What came in, counted while it streams."""

    kinds: collections.Counter[Kind] = dataclasses.field(default_factory=collections.Counter)
    waveforms: Waveforms = dataclasses.field(default_factory=Waveforms)

    def left_out(self) -> str:
        """Readouts that are neither imaging nor noise, in words; empty if none."""
        parts = [f"{n} {kind.value}" for kind, n in self.kinds.items() if kind not in (Kind.IMAGING, Kind.NOISE)]
        return ", ".join(parts)


def sort(items: Iterable[Item], tally: Tally) -> Iterator[tuple[int, Kind, ismrmrd.Acquisition]]:
    """Number and classify the readouts; waveforms are gathered beside them."""
    number = 0
    for item in items:
        if isinstance(item, ismrmrd.Acquisition):
            kind = flags.kind(item)
            tally.kinds[kind] += 1
            yield number, kind, item
            number += 1
        else:
            tally.waveforms.add(item)


def keep_noise(
    readouts: Iterable[tuple[int, Kind, ismrmrd.Acquisition]], noise: NoiseReadouts
) -> Iterator[tuple[int, ismrmrd.Acquisition]]:
    """Noise readouts go into ``noise``, imaging readouts on, others nowhere."""
    for number, kind, acquisition in readouts:
        if kind is Kind.NOISE:
            noise.add(acquisition, number)
        elif kind is Kind.IMAGING:
            yield number, acquisition


def admitted(
    readouts: Iterable[tuple[int, ismrmrd.Acquisition]], header: ScanHeader, discard: int = 0, compressed: bool | None = None
) -> Iterator[Readout]:
    """Imaging readouts checked against the header, without the first ``discard`` of the scan.

    A stage before this one may have compressed the coils, which the header does not tell: all readouts then have the channels of the
    first, unless ``compressed`` is False.
    """
    channels: int | None = None
    for position, (number, acquisition) in enumerate(readouts):
        if position < discard:
            continue
        if position == discard and compressed is not False and acquisition.active_channels < (header.channels or 0):
            channels = acquisition.active_channels
        yield admit(acquisition, number, header, channels)


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
    # Within one TR are read the slices and contrasts that are acquired in turns, not those that follow one another.
    in_turns = float(np.median(np.concatenate([np.diff(where) for where in places.values()] + [[1]])))
    spacing = None if header.repetition_time is None else header.repetition_time / in_turns
    clock = readout_times(stamps, tick, spacing)
    if clock.note:
        report(clock.note)
    largest = {key: _largest(found) for key, found in groups.items()} if len(groups) > 1 else {}
    for key in sorted(groups):
        brighter = max(largest.values()) / largest[key] if largest.get(key) else 1.0
        yield Group(groups.pop(key), clock.times[places[key]], len(places), stamps[0], not clock.note, brighter)


def _largest(readouts: list[Readout]) -> float:
    """Largest sample of some readouts, root of the sum of squares over coils."""
    return max(float(np.linalg.norm(readout.samples, axis=0).max()) for readout in readouts)


def assembled(
    groups: Iterable[Group],
    header: ScanHeader,
    settings: ChainSettings,
    noise: NoiseReadouts,
    report: Report,
    waveforms: Waveforms | None = None,
) -> Iterator[tuple[Group, Assembled]]:
    """Whitened problems, one a group; ``waveforms`` hold all of the scan by the time the first group comes."""
    for group in groups:
        first = group.readouts[0]
        whitening = None
        if not settings.whitened:
            whitening = noise.matrix(first.samples.shape[0], float(first.head.sample_time_us), header.noise_bandwidth)
        if settings.volume == "slices":
            made: Assembled = assemble_stack(group.readouts, group.times, header, settings, whitening, report)
        else:
            physiology = Physiology(waveforms or Waveforms(), group.origin, group.is_clock)
            made = assemble(group.readouts, group.times, header, settings, whitening, report, physiology, quantitative(settings))
        problem = made.problem
        report(
            f"{_name(first.head, group.total)}{problem.n_readouts} readouts, {problem.n_coils} channels, {problem.n_frames} frames of "
            f"{'×'.join(str(n) for n in reversed(problem.shape))} pixels"
        )
        # The copies in the problem suffice from here on.
        group.readouts.clear()
        yield group, made


def _with_places(
    problems: Iterable[tuple[Group, Assembled]], regions: tuple[Region, ...], lines: tuple[Line, ...]
) -> Iterator[tuple[Group, Assembled]]:
    for group, made in problems:
        check_places(made.shape, regions, lines)
        yield group, made


def _name(head: ismrmrd.AcquisitionHeader, total: int) -> str:
    if total == 1:
        return ""
    index = head.idx
    return f"slice {index.slice}, contrast {index.contrast}, set {index.set}: "


def reconstructed(
    problems: Iterable[tuple[Group, Assembled]], settings: ChainSettings, report: Report, method: Reconstruct
) -> Iterator[tuple[Group, Assembled, ImageSeries]]:
    """Images of every problem."""
    common = ReconstructionSettings(
        **{f.name: getattr(settings, f.name) for f in dataclasses.fields(ReconstructionSettings)}  # same names in both records
    )
    tasks = (
        Task(
            made.slices if isinstance(made, Stack) else made.problem,
            _name(made.heads[0], group.total),
            (group, made),
            # All that a compression before this one has left is used.
            coils=made.problem.n_coils if made.compressed else None,
            # All images of a long protocol may not fit into memory: only those are asked for that leave.
            times=None if made.problem.protocol is None else _contrast_times(made.problem.protocol, settings.weighted_images),
        )
        for group, made in problems
    )
    for (group, made), result in execute(tasks, Method(method, common, dict(settings.solver_settings)), settings, report):
        seconds = result.report.get("seconds", {}).get("total")
        took = "" if seconds is None else f" in {seconds:.1f} s"
        frames = "frames" if made.problem.protocol is None else "contrasts"
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
    metrics: Metrics = NO_METRICS,
) -> Iterator[ismrmrd.Image]:
    """Reconstruct one scan.

    Args:
        settings: chain properties.
        header_text: the ISMRMRD header, XML.
        items: the stream's readouts and waveforms, in order; its end is the end of the scan.
        report: gets user-facing status lines, and logs them or not; None: they are logged here.
        method: what reconstructs a problem; None: :func:`recon_core.reconstruct.reconstruct`.
        metrics: where to count what happens while the scan runs.

    Yields:
        Images slice by slice as soon as one is done, then that slice's latents (series 2) or parameter maps, curves, profiles and
        respiratory signal. With ``mode=both`` provisional images come first, while the scan runs (series 1; images are series 2 then,
        latents 3); with ``mode=online`` nothing else comes.

    Raises:
        DataError: header or readouts cannot be used; an empty scan.
        SettingError: a setting contradicts the scan.
        MissingPartError: a device or engine asked for is absent.
    """
    tell = report or _log
    regions, lines = parse_regions(settings.regions), parse_lines(settings.profiles)
    header = parse(header_text)
    tally, noise = Tally(), NoiseReadouts()
    admissible = admitted(keep_noise(sort(items, tally), noise), header, settings.discard_readouts, settings.compressed)
    imaging: Iterable[Readout] = _told_at_end(admissible, tally, settings, tell)
    numbering = numbering_for(settings.mode)
    if solver_class(settings.solver).course and not quantitative(settings):
        imaging = one_contrast(imaging, header, settings.solver)
    if settings.mode != "retrospective":
        if quantitative(settings):
            raise SettingError("mode", f"{settings.mode}, with solver={settings.solver} of protocols", "Set mode=retrospective.")
        online = OnlineScan(header, settings, noise, numbering, tell, keep=settings.mode == "both", metrics=metrics)
        yield from online.images(imaging)
        if settings.mode == "online":
            return
        imaging = online.readouts
    groups = buffer(imaging, header, settings.time_tick_ms / 1000, tell, quantitative(settings))
    problems = _with_places(assembled(groups, header, settings, noise, tell, tally.waveforms), regions, lines)
    scale: Scale | None = None
    for group, made, series in reconstructed(problems, settings, tell, reconstruct if method is None else method):
        if estimated(settings.field_map):
            series = corrected(series, made.problem, settings.field_map, echo_time(header, made.heads[0].idx.contrast))
            tell(series.notes[-1])
        if settings.image_type == "magnitude":
            scale = scale or magnitude_scale(series.images.numpy(), group.total > 1, _brightest(made.problem, group))
            too_bright = clipped(series, scale)
            if too_bright:
                tell(f"{too_bright} pixels exceed the scale of the image series and are clipped")
        real = settings.image_type != "complex"
        if made.problem.protocol is None:
            yield from emit(series, made, header, numbering, scale, settings.solver, real=real)
        else:
            if settings.weighted_images != "none":
                yield from weighted_images(series, made, header, numbering, scale, settings.solver, real=real)
            yield from map_images(series, made, numbering, settings.solver, settings.map_type)
        latents = latent_image(series, made, numbering, settings.solver) if settings.send_latents else None
        if latents is not None:
            yield latents
        breathing = None
        if isinstance(made, Stack) and made.respiration is not None:
            breathing = made.respiration, made.problem.readout_times.numpy()
        yield from courses(series, made, numbering, regions, lines, breathing)


def _brightest(problem: KSpaceProblem, group: Group) -> float:
    """Magnitude to expect in the scan's brightest slice: its mean from its largest sample, which is k-space's centre, and room above."""
    if group.brighter <= 1:
        return 0.0
    largest = float(torch.linalg.vector_norm(problem.samples, dim=0).max())
    return _PEAK * group.brighter * largest / math.sqrt(math.prod(problem.shape))


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
    if settings.whitened and tally.kinds[Kind.NOISE]:
        report(f"{tally.kinds[Kind.NOISE]} noise readouts not used: the chain says that the samples are whitened")
    if len(tally.waveforms) and settings.framing != "gated":
        report(f"{len(tally.waveforms)} waveforms received and not used")
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
