"""A simulated scan as a scanner would have stored it: header, noise readouts, imaging readouts, ECG and breathing."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import ismrmrd
import numpy as np
from numpy.typing import NDArray

from gadgets.scanfile import Truth, write_scan, write_truth
from recon_core.phantoms.cardiac import PHANTOM_VERSION, CardiacScan
from recon_core.trajectories import resolution_limit

TICK = 2.5e-3
"""Seconds a time-stamp tick, as on Siemens scanners."""

ECG, RESPIRATION = 0, 2
"""Waveform ids as Siemens scanners use them."""

_START = 15 * 3600.0  # s since midnight
_THICKNESS = 8.0
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
    def oblique(cls) -> Slice:
        """A double-oblique slice off the centre."""
        turn, tilt = math.radians(35), math.radians(-25)
        about_z = np.array([[math.cos(turn), math.sin(turn), 0], [-math.sin(turn), math.cos(turn), 0], [0, 0, 1]])
        about_x = np.array([[1, 0, 0], [0, math.cos(tilt), math.sin(tilt)], [0, -math.sin(tilt), math.cos(tilt)]])
        return cls((23.5, -41.0, 17.25), about_z @ about_x)


def store(path: str | Path, scan: CardiacScan, where: Slice | None = None) -> None:
    """Write a simulated scan as an ISMRMRD file, its truth in the group ``truth``.

    Noise readouts come first. Time stamps are whole ticks of 2.5 ms, rounded down, so that readouts of 3 ms are unevenly stamped.

    Args:
        path: file, replaced.
        scan: the simulation.
        where: the slice's place; None: axial through the isocentre.
    """
    acquisitions = [*_noise(scan, where or Slice.axial()), *_imaging(scan, where or Slice.axial())]
    for number, acquisition in enumerate(acquisitions):
        acquisition.scan_counter = number
    write_scan(path, header(scan), acquisitions, waveforms(scan))
    write_truth(path, Truth(scan.truth, scan.moving, scan.frame_times, PHANTOM_VERSION))


def encoded_space(scan: CardiacScan) -> tuple[int, float]:
    """Pixels and field of view (mm) of the square encoded space.

    A pixel is the finer axis' pixel; spokes encode as many as they have samples, hence an oversampled field of view.
    """
    settings = scan.settings
    pixel = 1 / (2 * resolution_limit(settings.matrix, settings.field_of_view))
    radial = settings.trajectory == "radial"
    pixels = scan.trajectory.shape[1] if radial else math.ceil(max(settings.field_of_view) / pixel - 1e-6)
    return pixels, pixels * pixel


def header(scan: CardiacScan) -> str:
    """The ISMRMRD header, XML. It has no ``<version>``: a Gadgetron refuses another than its own."""
    settings = scan.settings
    pixels, length = encoded_space(scan)
    (ny, nx), (fy, fx) = settings.matrix, settings.field_of_view
    last = min(scan.trajectory.shape[0], 1 << 16) - 1
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
  <measurementInformation>
    <patientPosition>HFS</patientPosition>
    <protocolName>{PHANTOM_VERSION} {settings.timing} {settings.trajectory}, simulated</protocolName>
  </measurementInformation>
  <acquisitionSystemInformation>
    <systemVendor>gadgetron-inr</systemVendor>
    <systemModel>simulator</systemModel>
    <systemFieldStrength_T>1.5</systemFieldStrength_T>
    <relativeReceiverNoiseBandwidth>1</relativeReceiverNoiseBandwidth>
    <receiverChannels>{settings.coils}</receiverChannels>
  </acquisitionSystemInformation>
  <experimentalConditions>
    <H1resonanceFrequency_Hz>{_RESONANCE_HZ}</H1resonanceFrequency_Hz>
  </experimentalConditions>
  <encoding>
    <encodedSpace>{_space(pixels, pixels, length, length)}</encodedSpace>
    <reconSpace>{_space(nx, ny, fx, fy)}</reconSpace>
    <encodingLimits>
      <kspace_encoding_step_1><minimum>0</minimum><maximum>{last}</maximum><center>0</center></kspace_encoding_step_1>
    </encodingLimits>
    <trajectory>{"goldenangle" if settings.trajectory == "radial" else "spiral"}</trajectory>
  </encoding>
  <sequenceParameters>
    <TR>{settings.repetition_time:g}</TR>
    <TE>{settings.repetition_time / 2:g}</TE>
    <flipAngle_deg>50</flipAngle_deg>
  </sequenceParameters>
  <userParameters>
    <userParameterLong><name>readouts_per_frame</name><value>{settings.readouts_per_frame}</value></userParameterLong>
    <userParameterLong><name>seed</name><value>{settings.seed}</value></userParameterLong>
    <userParameterDouble><name>snr</name><value>{settings.snr:g}</value></userParameterDouble>
    <userParameterString><name>timing</name><value>{settings.timing}</value></userParameterString>
  </userParameters>
</ismrmrdHeader>
"""


def _space(nx: int, ny: int, fx: float, fy: float) -> str:
    return (
        f"<matrixSize><x>{nx}</x><y>{ny}</y><z>1</z></matrixSize>"
        f"<fieldOfView_mm><x>{fx:.9g}</x><y>{fy:.9g}</y><z>{_THICKNESS:g}</z></fieldOfView_mm>"
    )


def ticks(seconds: float) -> int:
    """Time stamp of a moment, counted from the first imaging readout."""
    return math.floor((_START + seconds) / TICK + 1e-6)


def _acquisition(scan: CardiacScan, where: Slice, data: NDArray[np.complex64], traj: NDArray[np.float32] | None) -> ismrmrd.Acquisition:
    acquisition = ismrmrd.Acquisition.from_array(np.ascontiguousarray(data, dtype=np.complex64), traj)
    acquisition.measurement_uid = 1
    acquisition.sample_time_us = 1e6 * scan.dwell
    acquisition.position = where.position
    acquisition.read_dir, acquisition.phase_dir, acquisition.slice_dir = (tuple(row) for row in where.directions)
    for channel in range(scan.settings.coils):
        acquisition.channel_mask[channel // 64] |= 1 << channel % 64
    return acquisition


def _noise(scan: CardiacScan, where: Slice) -> list[ismrmrd.Acquisition]:
    blocks = scan.noise.reshape(scan.settings.coils, -1, _NOISE_LENGTH)
    made = []
    for number in range(blocks.shape[1]):
        acquisition = _acquisition(scan, where, blocks[:, number], None)
        acquisition.setFlag(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
        before = (blocks.shape[1] - number) * scan.settings.repetition_time * 1e-3
        acquisition.acquisition_time_stamp = ticks(-0.5 - before)
        made.append(acquisition)
    return made


def _imaging(scan: CardiacScan, where: Slice) -> list[ismrmrd.Acquisition]:
    pixels, length = encoded_space(scan)
    fov = np.array(scan.settings.field_of_view[::-1])
    traj = (scan.trajectory * (length / pixels / fov)).astype(np.float32)
    since_beat = scan.physiology.since_beat(scan.times)
    count = len(traj)
    made = []
    for number in range(count):
        acquisition = _acquisition(scan, where, scan.samples[:, number], traj[number])
        acquisition.center_sample = traj.shape[1] // 2 if scan.settings.trajectory == "radial" else 0
        acquisition.acquisition_time_stamp = ticks(float(scan.times[number]))
        acquisition.physiology_time_stamp[0] = int(since_beat[number] / TICK)
        acquisition.idx.kspace_encode_step_1 = number % (1 << 16)
        made.append(acquisition)
    for flag in (ismrmrd.ACQ_FIRST_IN_ENCODE_STEP1, ismrmrd.ACQ_FIRST_IN_SLICE, ismrmrd.ACQ_FIRST_IN_REPETITION):
        made[0].setFlag(flag)
    for flag in (
        *(ismrmrd.ACQ_LAST_IN_ENCODE_STEP1, ismrmrd.ACQ_LAST_IN_SLICE),
        *(ismrmrd.ACQ_LAST_IN_REPETITION, ismrmrd.ACQ_LAST_IN_MEASUREMENT),
    ):
        made[-1].setFlag(flag)
    return made


def waveforms(scan: CardiacScan) -> list[ismrmrd.Waveform]:
    """ECG and breathing belt at one sample a tick, in records of 0.1 s."""
    count = math.floor(float(scan.times[-1]) / TICK) + 1
    times = np.arange(count) * TICK
    beats = scan.physiology.beats
    width = 0.02 * float(np.diff(beats).mean())
    after = times[:, None] - beats[None]
    heart = np.exp(-0.5 * (after / width) ** 2).sum(1) + 0.2 * np.exp(-0.5 * ((after - 14 * width) / (3 * width)) ** 2).sum(1)
    signals = {ECG: 2048 + 1200 * heart, RESPIRATION: 1000 + 2000 * scan.physiology.breath(times)}
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
