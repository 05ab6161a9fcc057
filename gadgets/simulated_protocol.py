"""What the protocol of each simulated scan was: spaces, counters, times, the patient's signals."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gadgets.header import Limit, Space
from recon_core.phantoms import cardiac, dce, speech
from recon_core.phantoms.cardiac import CardiacScan
from recon_core.phantoms.dce import DceScan
from recon_core.phantoms.measurement import SimulatedScan
from recon_core.phantoms.physiology import Physiology
from recon_core.phantoms.speech import SpeechScan
from recon_core.trajectories import resolution_limit

_LARGEST_COUNTER = 1 << 16
_THICKNESS = {"cardiac": 8.0, "speech": 6.0}


@dataclasses.dataclass(frozen=True, eq=False)
class Protocol:
    """A simulated scan's protocol.

    Attributes:
        name: of the protocol.
        phantom: name and version.
        encoded: encoded space.
        recon: space to reconstruct.
        trajectory: ISMRMRD's word for it.
        step1: counter ``kspace_encode_step_1`` ``[readout]``.
        step2: counter ``kspace_encode_step_2`` ``[readout]``.
        limits: ranges of the counters.
        coils: receive coils.
        centre_sample: sample nearest k = 0.
        repetition_time: ms.
        echo_time: ms.
        flip_angle: degrees.
        readouts_per_frame: readouts of one frame of the truth.
        parameters: further user parameters by name.
        physiology: beats and breaths, where they were simulated.
        ecg: whether the heart was watched.
        repetition: counter ``repetition`` ``[readout]``, whose changes bear first and last flags; None: the scanner counts no frames.
    """

    name: str
    phantom: str
    encoded: Space
    recon: Space
    trajectory: str
    step1: NDArray[np.int64]
    step2: NDArray[np.int64]
    limits: Mapping[str, Limit]
    coils: int
    centre_sample: int
    repetition_time: float
    echo_time: float
    flip_angle: float
    readouts_per_frame: int
    parameters: Mapping[str, Any]
    physiology: Physiology | None = None
    ecg: bool = False
    repetition: NDArray[np.int64] | None = None

    @property
    def per_pixel(self) -> NDArray[np.float64]:
        """Cycles per encoded pixel of one cycle per reconstructed field of view, axes (x, y, z)."""
        axes = zip(self.encoded.field_of_view, self.encoded.matrix, self.recon.field_of_view, strict=True)
        return np.array([length / pixels / fov for length, pixels, fov in axes])


@functools.singledispatch
def protocol(scan: SimulatedScan) -> Protocol:
    """The protocol of a simulated scan."""
    raise TypeError(f"no protocol for {type(scan).__name__}")


@protocol.register
def _(scan: CardiacScan) -> Protocol:
    settings = scan.settings
    radial = settings.trajectory == "radial"
    encoded = _square(settings.matrix, settings.field_of_view, scan.trajectory.shape[1] if radial else None, _THICKNESS["cardiac"])
    counters, parameters = _one_counter(len(scan.times)), {"seed": settings.seed, "snr": settings.snr, "timing": settings.timing}
    repetition = None
    if scan.lines is not None:
        ny, nx, n_samples = *settings.matrix, scan.trajectory.shape[1]
        fy, fx = settings.field_of_view
        encoded = Space((n_samples, ny, 1), (fx * n_samples / nx, fy, _THICKNESS["cardiac"]))
        counters = {**counters, "step1": scan.lines, "limits": {"kspace_encoding_step_1": Limit(0, ny - 1, ny // 2)}}
        parameters["net_acceleration"] = scan.net_acceleration
        repetition = scan.frames % _LARGEST_COUNTER
    return Protocol(
        name=f"{cardiac.PHANTOM_VERSION} {settings.timing} {settings.trajectory}, simulated",
        phantom=cardiac.PHANTOM_VERSION,
        encoded=encoded,
        recon=_recon(settings.matrix, settings.field_of_view, _THICKNESS["cardiac"]),
        trajectory="goldenangle" if radial else settings.trajectory,
        **counters,
        coils=settings.coils,
        centre_sample=0 if settings.trajectory == "spiral" else scan.trajectory.shape[1] // 2,
        repetition_time=settings.repetition_time,
        echo_time=settings.repetition_time / 2,
        flip_angle=50,
        readouts_per_frame=settings.readouts_per_frame,
        parameters=parameters,
        physiology=scan.physiology,
        ecg=True,
        repetition=repetition,
    )


@protocol.register
def _(scan: SpeechScan) -> Protocol:
    settings = scan.settings
    return Protocol(
        name=f"{speech.PHANTOM_VERSION} spiral, simulated",
        phantom=speech.PHANTOM_VERSION,
        encoded=_square(settings.matrix, settings.field_of_view, None, _THICKNESS["speech"]),
        recon=_recon(settings.matrix, settings.field_of_view, _THICKNESS["speech"]),
        trajectory="spiral",
        **_one_counter(len(scan.times)),
        coils=settings.coils,
        centre_sample=0,
        repetition_time=settings.repetition_time,
        echo_time=1e3 * speech.ECHO_TIME,
        flip_angle=15,
        readouts_per_frame=settings.readouts_per_frame,
        parameters={
            "seed": settings.seed,
            "interleaves": scan.interleaves,
            "snr": settings.snr,
            "off_resonance_hz": settings.off_resonance,
        },
    )


@protocol.register
def _(scan: DceScan) -> Protocol:
    settings = scan.settings
    plane = _square(settings.matrix, settings.field_of_view, scan.trajectory.shape[1], 1.0)
    nz, encoded = settings.partitions, settings.encoded
    measured = settings.measured
    limits = _one_counter(int(scan.angles[-1]) + 1)["limits"]
    return Protocol(
        name=f"{dce.PHANTOM_VERSION} stack of stars {settings.order}, simulated",
        phantom=dce.PHANTOM_VERSION,
        encoded=Space((*plane.matrix[:2], encoded), (*plane.field_of_view[:2], encoded * settings.thickness)),
        recon=Space((settings.matrix[1], settings.matrix[0], nz), (*settings.field_of_view[::-1], nz * settings.thickness)),
        trajectory="goldenangle",
        step1=scan.angles % _LARGEST_COUNTER,
        step2=scan.partitions,
        limits={**limits, "kspace_encoding_step_2": Limit(measured[0], measured[-1], encoded // 2)},
        coils=settings.coils,
        centre_sample=scan.trajectory.shape[1] // 2,
        repetition_time=settings.repetition_time,
        echo_time=settings.repetition_time / 2,
        flip_angle=12,
        readouts_per_frame=settings.spokes_per_frame * len(measured),
        parameters={"seed": settings.seed, "spokes_per_frame": settings.spokes_per_frame, "snr": settings.snr, "order": settings.order},
        physiology=scan.physiology,
    )


def _one_counter(count: int) -> dict[str, Any]:
    """Readouts counted by ``kspace_encode_step_1`` alone, which starts anew at 65536."""
    last = min(count, _LARGEST_COUNTER) - 1
    return {
        "step1": np.arange(count, dtype=np.int64) % _LARGEST_COUNTER,
        "step2": np.zeros(count, dtype=np.int64),
        "limits": {"kspace_encoding_step_1": Limit(0, last, 0)},
    }


def _square(matrix: tuple[int, int], field_of_view: tuple[float, float], samples: int | None, thickness: float) -> Space:
    """The square encoded space of a slice.

    A pixel is the finer axis' pixel; spokes encode as many as they have samples, hence an oversampled field of view.
    """
    pixel = 1 / (2 * resolution_limit(matrix, field_of_view))
    pixels = math.ceil(max(field_of_view) / pixel - 1e-6) if samples is None else samples
    return Space((pixels, pixels, 1), (pixels * pixel, pixels * pixel, thickness))


def _recon(matrix: tuple[int, int], field_of_view: tuple[float, float], thickness: float) -> Space:
    return Space((matrix[1], matrix[0], 1), (field_of_view[1], field_of_view[0], thickness))
