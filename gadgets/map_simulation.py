"""A simulated multi-contrast protocol as a scanner would have stored it, and the scores of maps against its truth."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import ismrmrd
import numpy as np
from numpy.typing import NDArray

from gadgets.evaluation import pixel_values
from gadgets.protocol import PREPARATION
from gadgets.scanfile import read_images, write_scan
from gadgets.simulation import Slice, ticks
from recon_core.errors import DataError
from recon_core.metrics import map_error
from recon_core.phantoms.relaxometry import CAPS, PHANTOM_VERSION, RelaxometryScan

TRUTH = "map_truth"
_DWELL = 5e-6
_NOISE_LENGTH = 256


@dataclasses.dataclass(frozen=True, eq=False)
class MapTruth:
    """What the simulator knows of its maps.

    Attributes:
        maps: name to float32 ``[z, y, x]``; times in seconds, off-resonance in Hz.
        brain: bool ``[z, y, x]``, where maps are scored.
        sensitivities: complex64 ``[coil, z, y, x]``, whitened.
        images: complex64 ``[contrast of imaged, z, y, x]``, in units of the noise.
        imaged: int64, contrast numbers.
        phantom: name and version.
    """

    maps: dict[str, NDArray[np.float32]]
    brain: NDArray[np.bool_]
    sensitivities: NDArray[np.complex64]
    images: NDArray[np.complex64]
    imaged: NDArray[np.int64]
    phantom: str = ""


def store(path: str | Path, scan: RelaxometryScan, where: Slice | None = None) -> None:
    """Write a simulated protocol as an ISMRMRD file, its truth in the group ``map_truth``.

    Noise readouts come first. Lines are in order of preparation, recovery and echo, one echo train a repetition time.

    Args:
        path: file, replaced.
        scan: the simulation.
        where: the slab's place; None: axial through the isocentre.
    """
    place = where or Slice.axial()
    acquisitions = [*_noise(scan, place), *_imaging(scan, place)]
    for number, acquisition in enumerate(acquisitions):
        acquisition.scan_counter = number
    write_scan(path, header(scan), acquisitions)
    truth = MapTruth(scan.truth, scan.brain, scan.sensitivities, scan.images, scan.imaged, PHANTOM_VERSION)
    with h5py.File(path, "a") as file:
        group = file.create_group(TRUTH)
        group.attrs["phantom"] = truth.phantom
        for name, values in truth.maps.items():
            group.create_dataset(f"maps/{name}", data=values)
        for name in ("brain", "sensitivities", "images", "imaged"):
            group.create_dataset(name, data=getattr(truth, name))


def has_map_truth(path: str | Path) -> bool:
    """Whether a file holds the truth of maps."""
    try:
        with h5py.File(path, "r") as file:
            return TRUTH in file
    except OSError as error:
        raise DataError("file", f"{path} cannot be opened as HDF5 ({error})", "Give the simulated scan.") from error


def read_map_truth(path: str | Path) -> MapTruth:
    """Read the truth of a simulated protocol.

    Raises:
        DataError: the file holds none.
    """
    if not has_map_truth(path):
        raise DataError("group", f"{path} has no group {TRUTH!r}", "Give a scan made by `gadgetron-inr simulate mpqmri`.")
    with h5py.File(path, "r") as file:
        group = file[TRUTH]
        arrays = {name: group[name][()] for name in ("brain", "sensitivities", "images", "imaged")}
        return MapTruth({name: group["maps"][name][()] for name in group["maps"]}, **arrays, phantom=str(group.attrs["phantom"]))


def header(scan: RelaxometryScan) -> str:
    """The ISMRMRD header, XML, with TE, TR, TI, flip angles and T2 preparations. It has no ``<version>``."""
    protocol = scan.protocol
    nz, ny, nx = scan.settings.matrix
    fz, fy, fx = scan.settings.field_of_view
    space = (
        f"<matrixSize><x>{nx}</x><y>{ny}</y><z>{nz}</z></matrixSize>"
        f"<fieldOfView_mm><x>{fx:.9g}</x><y>{fy:.9g}</y><z>{fz:.9g}</z></fieldOfView_mm>"
    )
    limits = "".join(
        f"<{name}><minimum>0</minimum><maximum>{count - 1}</maximum><center>{centre}</center></{name}>"
        for name, count, centre in (
            ("kspace_encoding_step_1", ny, ny // 2),
            ("kspace_encoding_step_2", nz, nz // 2),
            ("contrast", len(protocol.echo_times), 0),
            ("segment", protocol.recoveries, 0),
            ("set", protocol.shape[0], 0),
        )
    )
    repetition_time = protocol.repetition_time or 0.0
    sequence = f"<TR>{1e3 * repetition_time:.9g}</TR>"
    sequence += "".join(f"<TE>{1e3 * t:.9g}</TE>" for t in protocol.echo_times)
    if protocol.recoveries > 1:
        sequence += "".join(f"<TI>{1e3 * repetition_time * n:.9g}</TI>" for n in range(protocol.recoveries))
    sequence += "".join(f"<flipAngle_deg>{math.degrees(a):.9g}</flipAngle_deg>" for a in protocol.flip_angles)
    user = "".join(
        f"<userParameterDouble><name>{PREPARATION}{n}</name><value>{1e3 * t:.9g}</value></userParameterDouble>"
        for n, t in enumerate(protocol.preparations)
    )
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
  <measurementInformation>
    <patientPosition>HFS</patientPosition>
    <protocolName>{PHANTOM_VERSION} {protocol.model}, simulated</protocolName>
  </measurementInformation>
  <acquisitionSystemInformation>
    <systemVendor>gadgetron-inr</systemVendor>
    <systemModel>simulator</systemModel>
    <systemFieldStrength_T>3</systemFieldStrength_T>
    <relativeReceiverNoiseBandwidth>1</relativeReceiverNoiseBandwidth>
    <receiverChannels>{scan.settings.coils}</receiverChannels>
  </acquisitionSystemInformation>
  <experimentalConditions>
    <H1resonanceFrequency_Hz>127740000</H1resonanceFrequency_Hz>
  </experimentalConditions>
  <encoding>
    <encodedSpace>{space}</encodedSpace>
    <reconSpace>{space}</reconSpace>
    <encodingLimits>{limits}</encodingLimits>
    <trajectory>cartesian</trajectory>
  </encoding>
  <sequenceParameters>{sequence}</sequenceParameters>
  <userParameters>{user}
    <userParameterDouble><name>acceleration</name><value>{scan.settings.acceleration:g}</value></userParameterDouble>
  </userParameters>
</ismrmrdHeader>
"""


def _acquisition(scan: RelaxometryScan, where: Slice, data: NDArray[np.complex64], time: float) -> ismrmrd.Acquisition:
    acquisition = ismrmrd.Acquisition.from_array(np.ascontiguousarray(data, dtype=np.complex64))
    acquisition.measurement_uid = 1
    acquisition.sample_time_us = 1e6 * _DWELL
    acquisition.position = where.position
    acquisition.read_dir, acquisition.phase_dir, acquisition.slice_dir = (tuple(row) for row in where.directions)
    acquisition.acquisition_time_stamp = ticks(time)
    for channel in range(scan.settings.coils):
        acquisition.channel_mask[channel // 64] |= 1 << channel % 64
    return acquisition


def _noise(scan: RelaxometryScan, where: Slice) -> list[ismrmrd.Acquisition]:
    blocks = scan.noise.reshape(scan.settings.coils, -1, _NOISE_LENGTH)
    made = []
    for number in range(blocks.shape[1]):
        acquisition = _acquisition(scan, where, blocks[:, number], 0.01 * (number - blocks.shape[1]) - 0.5)
        acquisition.setFlag(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
        made.append(acquisition)
    return made


def _imaging(scan: RelaxometryScan, where: Slice) -> list[ismrmrd.Acquisition]:
    protocol, made = scan.protocol, []
    spacing = (protocol.repetition_time or 0.03) / len(protocol.echo_times)
    for number, (contrast, (kz, ky)) in enumerate(zip(scan.contrast.tolist(), scan.place.tolist(), strict=True)):
        acquisition = _acquisition(scan, where, scan.samples[:, number], number * spacing)
        acquisition.center_sample = scan.samples.shape[2] // 2
        index = acquisition.idx
        index.kspace_encode_step_1, index.kspace_encode_step_2 = ky, kz
        index.set, index.segment, index.contrast = protocol.place(contrast)
        made.append(acquisition)
    made[0].setFlag(ismrmrd.ACQ_FIRST_IN_SLICE)
    made[-1].setFlag(ismrmrd.ACQ_LAST_IN_SLICE)
    made[-1].setFlag(ismrmrd.ACQ_LAST_IN_MEASUREMENT)
    return made


def stored_maps(path: str | Path, group: str | None = None) -> dict[str, NDArray[np.float32]]:
    """Maps of a file of images by name, float32 ones where there are, in seconds, hertz and radians."""
    found: dict[str, NDArray[np.float32]] = {}
    for images in read_images(path, group).values():
        meta = images[0].meta
        name = meta.get("ParameterName")
        if name is not None and (str(name) not in found or images[0].data.dtype == np.float32):
            values = pixel_values(images[0])
            found[str(name)] = (values / 1000 if meta.get("ParameterUnit") == "ms" else values).astype(np.float32)
    return found


def check_maps(maps: Mapping[str, NDArray[np.float32]], truth: MapTruth) -> None:
    """Refuse maps of another scan.

    Raises:
        DataError: another matrix than the truth's.
    """
    for name, found in maps.items():
        if name in truth.maps and found.shape != truth.maps[name].shape:
            raise DataError("matrix", f"{found.shape}, the truth has {truth.maps[name].shape}", "Reconstruct at the scan's matrix.")


def evaluate_maps(path: str | Path, scan: str | Path, group: str | None = None) -> dict[str, Any]:
    """NRMSE of every map that the truth has, inside the brain.

    T1, T2 and T2* are capped as in LoREIN; PD has one free scale. Off-resonance is told as a root-mean-square error in Hz.

    Args:
        path: images written by ``replay``, ``recon`` or the stock client.
        scan: the simulated scan.
        group: group of the run; None takes the only one.

    Raises:
        DataError: no map, or another matrix than the truth's.
    """
    truth = read_map_truth(scan)
    maps = stored_maps(path, group)
    known = [name for name in truth.maps if name in maps]
    if not known:
        raise DataError("images", f"no parameter map in {path}", "Reconstruct with mpqmri.xml.")
    check_maps(maps, truth)
    scores: dict[str, Any] = {}
    for name in known:
        if name == "off_resonance":
            difference = maps[name][truth.brain] - truth.maps[name][truth.brain]
            scores["off_resonance_rms_hz"] = float(np.sqrt(np.square(difference).mean()))
        else:
            scores[name] = map_error(maps[name], truth.maps[name], truth.brain, CAPS.get(name), free_scale=name == "PD")
    return scores
