"""A simulated scan as a scanner would have stored it: header, noise readouts, imaging readouts, ECG and breathing where there were."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
from numpy.typing import NDArray

from gadgets.header import Space
from gadgets.scanfile import Truth, write_scan, write_truth
from gadgets.simulated_protocol import Protocol, protocol
from gadgets.waveforms import ECG, RESPIRATION
from recon_core.phantoms.dce import DceScan
from recon_core.phantoms.measurement import SimulatedScan
from recon_core.phantoms.speech import SpeechScan

TICK = 2.5e-3
"""Seconds a time-stamp tick, as on Siemens scanners."""

_START = 15 * 3600.0  # s since midnight
_NOISE_LENGTH = 256
_WAVEFORM_BLOCK = 40
_RESONANCE_HZ = 63_870_000


@dataclasses.dataclass(frozen=True)
class Slice:
    """Where the slice lies in the patient (LPS).

    Attributes:
        position: of the scan's centre, mm.
        directions: rows are read, phase and slice direction.
    """

    position: tuple[float, float, float]
    directions: NDArray[np.float64]

    @classmethod
    def axial(cls) -> Slice:
        """Through the isocentre, read to the left, phase to the back."""
        return cls((0.0, 0.0, 0.0), np.eye(3))

    @classmethod
    def sagittal(cls) -> Slice:
        """Through the isocentre, read to the back, phase to the feet."""
        return cls((0.0, 0.0, 0.0), np.array([[0.0, 1.0, 0.0], [0.0, 0.0, -1.0], [-1.0, 0.0, 0.0]]))

    @classmethod
    def of(cls, scan: SimulatedScan) -> Slice:
        """Where the phantom's own plane lies."""
        return cls.sagittal() if isinstance(scan, SpeechScan) else cls.axial()

    @classmethod
    def oblique(cls) -> Slice:
        """A double-oblique slice off the centre."""
        turn, tilt = math.radians(35), math.radians(-25)
        about_z = np.array([[math.cos(turn), math.sin(turn), 0], [-math.sin(turn), math.cos(turn), 0], [0, 0, 1]])
        about_x = np.array([[1, 0, 0], [0, math.cos(tilt), math.sin(tilt)], [0, -math.sin(tilt), math.cos(tilt)]])
        return cls((23.5, -41.0, 17.25), about_z @ about_x)


def store(path: str | Path, scan: SimulatedScan, where: Slice | None = None) -> None:
    """Write a simulated scan as an ISMRMRD file, its truth in the group ``truth``.

    Noise readouts come first. Time stamps are whole ticks of 2.5 ms, rounded down, so that readouts of 3 ms are unevenly stamped.

    Args:
        path: file, replaced.
        scan: the simulation.
        where: the slice's place; None: the phantom's own plane through the isocentre.
    """
    about = protocol(scan)
    place = where or Slice.of(scan)
    acquisitions = [*_noise(scan, about, place), *_imaging(scan, about, place)]
    for number, acquisition in enumerate(acquisitions):
        acquisition.scan_counter = number
    write_scan(path, header(scan), acquisitions, waveforms(scan))
    write_truth(path, truth(scan))


def truth(scan: SimulatedScan) -> Truth:
    """What goes into the truth's group."""
    return Truth(
        scan.truth,
        scan.moving,
        scan.frame_times,
        protocol(scan).phantom,
        field_maps=scan.field_maps if isinstance(scan, SpeechScan) else None,
        regions=scan.regions if isinstance(scan, DceScan) else {},
        curves=scan.curves if isinstance(scan, DceScan) else {},
    )


def header(scan: SimulatedScan) -> str:
    """The ISMRMRD header, XML. It has no ``<version>``: a Gadgetron refuses another than its own."""
    about = protocol(scan)
    limits = "".join(
        f"<{name}><minimum>{limit.minimum}</minimum><maximum>{limit.maximum}</maximum><center>{limit.center}</center></{name}>"
        for name, limit in about.limits.items()
    )
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
  <measurementInformation>
    <patientPosition>HFS</patientPosition>
    <protocolName>{about.name}</protocolName>
  </measurementInformation>
  <acquisitionSystemInformation>
    <systemVendor>gadgetron-inr</systemVendor>
    <systemModel>simulator</systemModel>
    <systemFieldStrength_T>1.5</systemFieldStrength_T>
    <relativeReceiverNoiseBandwidth>1</relativeReceiverNoiseBandwidth>
    <receiverChannels>{about.coils}</receiverChannels>
  </acquisitionSystemInformation>
  <experimentalConditions>
    <H1resonanceFrequency_Hz>{_RESONANCE_HZ}</H1resonanceFrequency_Hz>
  </experimentalConditions>
  <encoding>
    <encodedSpace>{_space(about.encoded)}</encodedSpace>
    <reconSpace>{_space(about.recon)}</reconSpace>
    <encodingLimits>{limits}</encodingLimits>
    <trajectory>{about.trajectory}</trajectory>
  </encoding>
  <sequenceParameters>
    <TR>{about.repetition_time:g}</TR>
    <TE>{about.echo_time:g}</TE>
    <flipAngle_deg>{about.flip_angle:g}</flipAngle_deg>
  </sequenceParameters>
  <userParameters>{_user_parameters({"readouts_per_frame": about.readouts_per_frame, **about.parameters})}</userParameters>
</ismrmrdHeader>
"""


def _user_parameters(values: Mapping[str, Any]) -> str:
    """As ISMRMRD wants them: whole numbers first, then other numbers, then texts."""
    kinds = (("Long", int), ("Double", float), ("String", str))
    return "".join(
        f"<userParameter{kind}><name>{name}</name><value>{value:g}</value></userParameter{kind}>"
        if kind == "Double"
        else f"<userParameter{kind}><name>{name}</name><value>{value}</value></userParameter{kind}>"
        for kind, own in kinds
        for name, value in values.items()
        if isinstance(value, own)
    )


def _space(space: Space) -> str:
    matrix, view = (
        "".join(f"<{axis}>{value:{form}}</{axis}>" for axis, value in zip("xyz", values, strict=True))
        for values, form in ((space.matrix, "d"), (space.field_of_view, ".9g"))
    )
    return f"<matrixSize>{matrix}</matrixSize><fieldOfView_mm>{view}</fieldOfView_mm>"


def ticks(seconds: float) -> int:
    """Time stamp of a moment, counted from the first imaging readout."""
    return math.floor((_START + seconds) / TICK + 1e-6)


def _acquisition(
    scan: SimulatedScan, about: Protocol, where: Slice, data: NDArray[np.complex64], traj: NDArray[np.float32] | None
) -> ismrmrd.Acquisition:
    acquisition = ismrmrd.Acquisition.from_array(np.ascontiguousarray(data, dtype=np.complex64), traj)
    acquisition.measurement_uid = 1
    acquisition.sample_time_us = 1e6 * scan.dwell
    acquisition.position = where.position
    acquisition.read_dir, acquisition.phase_dir, acquisition.slice_dir = (tuple(row) for row in where.directions)
    for channel in range(about.coils):
        acquisition.channel_mask[channel // 64] |= 1 << channel % 64
    return acquisition


def _noise(scan: SimulatedScan, about: Protocol, where: Slice) -> list[ismrmrd.Acquisition]:
    blocks = scan.noise.reshape(about.coils, -1, _NOISE_LENGTH)
    made = []
    for number in range(blocks.shape[1]):
        acquisition = _acquisition(scan, about, where, blocks[:, number], None)
        acquisition.setFlag(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
        before = (blocks.shape[1] - number) * about.repetition_time * 1e-3
        acquisition.acquisition_time_stamp = ticks(-0.5 - before)
        made.append(acquisition)
    return made


def _imaging(scan: SimulatedScan, about: Protocol, where: Slice) -> list[ismrmrd.Acquisition]:
    traj = (scan.trajectory * about.per_pixel[: scan.trajectory.shape[-1]]).astype(np.float32)
    since_beat = about.physiology.since_beat(scan.times) if about.physiology is not None and about.ecg else None
    ends = None if about.repetition is None else np.append(np.diff(about.repetition) != 0, True)
    made = []
    for number in range(len(traj)):
        # Lines have their place in the counters, as on a scanner.
        points = None if about.trajectory == "cartesian" else traj[number]
        acquisition = _acquisition(scan, about, where, scan.samples[:, number], points)
        acquisition.center_sample = about.centre_sample
        acquisition.acquisition_time_stamp = ticks(float(scan.times[number]))
        if since_beat is not None:
            acquisition.physiology_time_stamp[0] = int(since_beat[number] / TICK)
        acquisition.idx.kspace_encode_step_1 = int(about.step1[number])
        acquisition.idx.kspace_encode_step_2 = int(about.step2[number])
        if about.repetition is not None and ends is not None:
            acquisition.idx.repetition = int(about.repetition[number])
            if number == 0 or ends[number - 1]:
                acquisition.setFlag(ismrmrd.ACQ_FIRST_IN_REPETITION)
            if ends[number]:
                acquisition.setFlag(ismrmrd.ACQ_LAST_IN_REPETITION)
        made.append(acquisition)
    for flag in (ismrmrd.ACQ_FIRST_IN_ENCODE_STEP1, ismrmrd.ACQ_FIRST_IN_SLICE, ismrmrd.ACQ_FIRST_IN_REPETITION):
        made[0].setFlag(flag)
    for flag in (
        *(ismrmrd.ACQ_LAST_IN_ENCODE_STEP1, ismrmrd.ACQ_LAST_IN_SLICE),
        *(ismrmrd.ACQ_LAST_IN_REPETITION, ismrmrd.ACQ_LAST_IN_MEASUREMENT),
    ):
        made[-1].setFlag(flag)
    return made


def waveforms(scan: SimulatedScan) -> list[ismrmrd.Waveform]:
    """ECG and breathing belt at one sample a tick, in records of 0.1 s; only what was simulated."""
    about = protocol(scan)
    if about.physiology is None:
        return []
    count = math.floor(float(scan.times[-1]) / TICK) + 1
    times = np.arange(count) * TICK
    signals = {RESPIRATION: 1000 + 2000 * about.physiology.breath(times)}
    if about.ecg:
        beats = about.physiology.beats
        width = 0.02 * float(np.diff(beats).mean())
        after = times[:, None] - beats[None]
        heart = np.exp(-0.5 * (after / width) ** 2).sum(1) + 0.2 * np.exp(-0.5 * ((after - 14 * width) / (3 * width)) ** 2).sum(1)
        signals = {ECG: 2048 + 1200 * heart, **signals}
    made: list[ismrmrd.Waveform] = []
    for start in range(0, count, _WAVEFORM_BLOCK):
        for identity, signal in signals.items():
            block = signal[None, start : start + _WAVEFORM_BLOCK].round().astype(np.uint32)
            made.append(
                ismrmrd.Waveform.from_array(
                    block,
                    waveform_id=identity,
                    time_stamp=ticks(start * TICK),
                    sample_time_us=1e6 * TICK,
                    measurement_uid=1,
                    scan_counter=len(made),
                )
            )
    return made
