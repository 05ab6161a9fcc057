"""ISMRMRD files: readouts and waveforms in, images out, and a simulated scan's truth.

The `ismrmrd` package reads one HDF5 row a call; these functions read and write in blocks, in the same layout.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import h5py
import ismrmrd
import ismrmrd.hdf5
import numpy as np
from numpy.typing import NDArray

from recon_core.errors import DataError, SettingError

Item: TypeAlias = ismrmrd.Acquisition | ismrmrd.Waveform

_BLOCK = 256
_COMPLEX_TYPES = {np.dtype("complex64"): "<f4", np.dtype("complex128"): "<f8"}


@dataclasses.dataclass(frozen=True)
class Truth:
    """What a simulator knows of its scan (scores: ``docs/conventions.md``).

    Attributes:
        images: complex64 ``[frame, (z,) y, x]``, object times root-sum-of-squares of the whitened true coil sensitivities.
        moving: bool ``[(z,) y, x]``, the moving region.
        times: float64 ``[frame]``, seconds from the first imaging readout.
        phantom: name and version of the phantom.
        field_maps: off-resonance in Hz, float32 ``[frame, y, x]``, where there was any.
        regions: bool ``[(z,) y, x]`` by name: tissues whose courses are known.
        curves: float32 ``[frame]`` by the same names: mean magnitude of ``images`` in the region.
    """

    images: NDArray[np.complex64]
    moving: NDArray[np.bool_]
    times: NDArray[np.float64]
    phantom: str = ""
    field_maps: NDArray[np.float32] | None = None
    regions: Mapping[str, NDArray[np.bool_]] = dataclasses.field(default_factory=dict)
    curves: Mapping[str, NDArray[np.float32]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Scan:
    """One dataset of an ISMRMRD file; readouts are read from disk as they are asked for.

    Attributes:
        path: the file.
        group: the dataset's HDF5 group.
        header: ISMRMRD header, XML text (empty when the file has none).
        n_acquisitions: number of acquisitions, noise readouts included.
        n_waveforms: number of waveform records.
    """

    path: Path
    group: str
    header: str
    n_acquisitions: int
    n_waveforms: int

    def items(self) -> Iterator[Item]:
        """Acquisitions in file order, each waveform before the first acquisition with a later time stamp.

        Raises:
            DataError: a record's length contradicts its header.
        """
        with _open(self.path, "r") as file:
            dataset = _group(file, self.group)
            waveforms = iter(sorted(_waveforms(dataset), key=lambda w: w.time_stamp))
            waiting = next(waveforms, None)
            for acquisition in _acquisitions(dataset):
                while waiting is not None and waiting.time_stamp <= acquisition.acquisition_time_stamp:
                    yield waiting
                    waiting = next(waveforms, None)
                yield acquisition
            while waiting is not None:
                yield waiting
                waiting = next(waveforms, None)


def read_scan(path: str | Path, group: str = "dataset") -> Scan:
    """Open an ISMRMRD file for reading.

    Args:
        path: the file.
        group: HDF5 group of the dataset, with or without a leading slash.

    Raises:
        DataError: not an HDF5 file, or no such dataset in it.
    """
    with _open(path, "r") as file:
        dataset = _group(file, group)
        if "xml" not in dataset and "data" not in dataset:
            raise DataError("group", f"{group!r} of {path} holds no ISMRMRD dataset", f"Groups there: {', '.join(file)}.")
        for name, fields in _FIELDS.items():
            _check_table(dataset, name, fields)
        header = dataset["xml"][0] if "xml" in dataset else b""
        try:
            text = header.decode("utf-8") if isinstance(header, bytes) else str(header)
        except UnicodeDecodeError as error:
            raise DataError("xml", f"not UTF-8 ({error})", "The file is damaged: write it again.") from error
        return Scan(
            path=Path(path),
            group=group,
            header=text,
            n_acquisitions=int(dataset["data"].shape[0]) if "data" in dataset else 0,
            n_waveforms=int(dataset["waveforms"].shape[0]) if "waveforms" in dataset else 0,
        )


def write_scan(
    path: str | Path,
    header: str,
    acquisitions: Sequence[ismrmrd.Acquisition],
    waveforms: Sequence[ismrmrd.Waveform] = (),
    group: str = "dataset",
) -> None:
    """Write an ISMRMRD file, replacing the file.

    Args:
        path: the file.
        header: ISMRMRD header, XML text.
        acquisitions: in stream order.
        waveforms: in any order.
        group: HDF5 group of the dataset.
    """
    with _open(path, "w") as file:
        dataset = file.require_group(group)
        dataset.create_dataset("xml", data=[header.encode("utf-8")], dtype=h5py.special_dtype(vlen=bytes))
        rows = np.empty(len(acquisitions), dtype=ismrmrd.hdf5.acquisition_dtype)
        for row, acquisition in zip(rows, acquisitions, strict=True):
            row["head"] = np.frombuffer(acquisition.getHead(), dtype=ismrmrd.hdf5.acquisition_header_dtype)[0]
            row["traj"] = np.ascontiguousarray(acquisition.traj, dtype=np.float32).ravel()
            row["data"] = np.ascontiguousarray(acquisition.data, dtype=np.complex64).view(np.float32).ravel()
        dataset.create_dataset("data", data=rows, maxshape=(None,), chunks=(64,))
        if waveforms:
            rows = np.empty(len(waveforms), dtype=ismrmrd.hdf5.waveform_dtype)
            for row, waveform in zip(rows, waveforms, strict=True):
                row["head"] = np.frombuffer(waveform.getHead(), dtype=ismrmrd.hdf5.waveform_header_dtype)[0]
                row["data"] = np.ascontiguousarray(waveform.data, dtype=np.uint32).ravel()
            dataset.create_dataset("waveforms", data=rows, maxshape=(None,), chunks=(64,))


def write_truth(path: str | Path, truth: Truth, group: str = "truth") -> None:
    """Add a simulated scan's truth to its file, replacing an earlier one of that group."""
    with _open(path, "a") as file:
        if group in file:
            del file[group]
        target = file.create_group(group)
        target.attrs["phantom"] = truth.phantom
        target.create_dataset("images", data=np.asarray(truth.images, dtype=np.complex64))
        target.create_dataset("moving", data=np.asarray(truth.moving, dtype=bool))
        target.create_dataset("times", data=np.asarray(truth.times, dtype=np.float64))
        if truth.field_maps is not None:
            target.create_dataset("field_maps", data=np.asarray(truth.field_maps, dtype=np.float32))
        for kind, members in (("regions", truth.regions), ("curves", truth.curves)):
            for name, values in members.items():
                target.create_dataset(f"{kind}/{name}", data=values)


def read_truth(path: str | Path, group: str = "truth") -> Truth:
    """Read a simulated scan's truth.

    Raises:
        DataError: the file holds none.
    """
    with _open(path, "r") as file:
        if group not in file:
            raise DataError("group", f"{path} has no group {group!r}", "Only a simulated scan has a truth: give its file.")
        source = file[group]
        return Truth(
            images=source["images"][()],
            moving=source["moving"][()],
            times=source["times"][()],
            phantom=str(source.attrs.get("phantom", "")),
            field_maps=source["field_maps"][()] if "field_maps" in source else None,
            **{kind: {name: part[()] for name, part in source.get(kind, {}).items()} for kind in ("regions", "curves")},
        )


@dataclasses.dataclass
class _StoredSeries:
    """Datasets of one image series, open for appending."""

    header: h5py.Dataset
    attributes: h5py.Dataset
    data: h5py.Dataset
    shape: tuple[int, ...]
    stored: np.dtype[Any]
    count: int

    @classmethod
    def opened(cls, group: h5py.Group, shape: tuple[int, ...], stored: np.dtype[Any]) -> _StoredSeries:
        """Those of a group, made where they are not there; ``shape`` and type of a first image."""
        if "header" not in group:
            group.create_dataset("header", (0,), maxshape=(None,), dtype=ismrmrd.hdf5.image_header_dtype)
            group.create_dataset("attributes", (0,), maxshape=(None,), dtype=h5py.special_dtype(vlen=str))
            group.create_dataset("data", (0, *shape), maxshape=(None, *shape), dtype=stored)
        data = group["data"]
        return cls(group["header"], group["attributes"], data, data.shape[1:], data.dtype, data.shape[0])

    def append(self, header: np.void, attributes: str, pixels: NDArray[Any]) -> None:
        """One image more."""
        for dataset, value in ((self.header, header), (self.attributes, attributes), (self.data, pixels)):
            dataset.resize(self.count + 1, axis=0)
            dataset[self.count] = value
        self.count += 1


class ImageWriter:
    """Stores images as the stock client does: ``<group>/image_<series>/{header,attributes,data}``, appending.

    A context manager; the file is made on entry, and every image is on disk when :meth:`write` returns,
    so that a scan that fails later keeps the images that came before.

    Args:
        path: HDF5 file, made when absent.
        group: group of this run, with or without a leading slash.
    """

    def __init__(self, path: str | Path, group: str) -> None:
        """Remember where to write; nothing is opened yet.

        Raises:
            SettingError: the group has no name.
        """
        if not group.strip("/ "):
            raise SettingError("group", f"{group!r} is no name", "Give the images a group of their own, such as run.")
        self.path = Path(path)
        self.group = group
        self.count = 0
        self._file: h5py.File | None = None
        # Looking a dataset and its type up costs as much as writing a small image.
        self._series: dict[int, _StoredSeries] = {}

    def __enter__(self) -> ImageWriter:
        """Open or make the file."""
        self._file = _open(self.path, "a")
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self._series.clear()

    def write(self, image: ismrmrd.Image) -> None:
        """Append one image to the series named in its header.

        Raises:
            DataError: its shape or type differs from that series' first image.
        """
        if self._file is None:
            raise RuntimeError("ImageWriter.write outside its context")
        index = image.image_series_index
        stored = _stored_type(image.data.dtype)
        if index not in self._series:
            self._series[index] = _StoredSeries.opened(self._file.require_group(f"{self.group}/image_{index}"), image.data.shape, stored)
        series = self._series[index]
        if series.shape != image.data.shape or series.stored != stored:
            raise DataError(
                f"image series {index}",
                f"an image of {image.data.dtype} {image.data.shape} after images of {series.stored} {series.shape}",
                "Give a new output group (-G) or another output file.",
            )
        attributes = image.attribute_string
        header = np.frombuffer(image.getHead(), dtype=ismrmrd.hdf5.image_header_dtype).copy()
        header["attribute_string_len"] = len(attributes.encode("utf-8"))
        series.append(header[0], attributes, np.ascontiguousarray(image.data).view(stored))
        self._file.flush()
        self.count += 1


def image_groups(path: str | Path) -> list[str]:
    """Groups of a file that hold images, in name order."""
    with _open(path, "r") as file:
        return [name for name in file if isinstance(file[name], h5py.Group) and any(_series_number(key) is not None for key in file[name])]


def read_images(path: str | Path, group: str | None = None) -> dict[int, list[ismrmrd.Image]]:
    """Read images stored by :class:`ImageWriter` or the stock client.

    Args:
        path: HDF5 file.
        group: group of the run; None takes the only one.

    Returns:
        Series index to images in order of arrival.

    Raises:
        DataError: no images, or several runs and none named.
    """
    if group is None:
        groups = image_groups(path)
        if len(groups) != 1:
            found = f"groups with images: {', '.join(groups)}" if groups else "no group with images"
            raise DataError("group", f"{path} has {found}", "Name one with -G." if groups else "Give a file written by replay or recon.")
        group = groups[0]
    with _open(path, "r") as file:
        source = _group(file, group)
        series = {number: key for key in source if (number := _series_number(key)) is not None}
        if not series:
            raise DataError("group", f"{group!r} of {path} holds no images", f"Groups there: {', '.join(file)}.")
        return {number: list(_images(source[series[number]])) for number in sorted(series)}


def _open(path: str | Path, mode: str) -> h5py.File:
    try:
        return h5py.File(path, mode)
    except OSError as error:
        if mode == "r" and not Path(path).exists():
            raise DataError("file", f"{path} does not exist", "Check the path.") from error
        cure = "Give an ISMRMRD (HDF5) file." if mode == "r" else "Give a path that can be written, not in use and not another format."
        raise DataError("file", f"{path} cannot be opened as HDF5 ({error})", cure) from error


def _group(file: h5py.File, group: str) -> h5py.Group:
    if group.strip("/") not in file:
        raise DataError("group", f"{file.filename} has no group {group!r}", f"Groups there: {', '.join(file) or 'none'}.")
    return file[group.strip("/")]


def _series_number(key: str) -> int | None:
    match = re.fullmatch(r"image_(\d+)", key)
    return int(match.group(1)) if match else None


def _stored_type(kind: np.dtype[Any]) -> np.dtype[Any]:
    part = _COMPLEX_TYPES.get(kind)
    return np.dtype([("real", part), ("imag", part)]) if part else kind.newbyteorder("<")


_FIELDS: dict[str, tuple[str, ...]] = {"xml": (), "data": ("head", "traj", "data"), "waveforms": ("head", "data")}


def _check_table(dataset: h5py.Group, name: str, fields: tuple[str, ...]) -> None:
    """Refuse what is no table of ISMRMRD records of that name."""
    if name not in dataset:
        return
    table = dataset[name]
    if not isinstance(table, h5py.Dataset) or table.ndim != 1 or not set(fields) <= set(table.dtype.names or ()):
        found = f"{table.dtype} {table.shape}" if isinstance(table, h5py.Dataset) else "a group"
        raise DataError(name, f"{found} in {dataset.name}", "It is not ISMRMRD, or damaged: write it again.")
    if name == "xml" and not table.shape[0]:
        raise DataError(name, f"empty in {dataset.name}", "It is not ISMRMRD, or damaged: write it again.")


def _blocks(table: h5py.Dataset) -> Iterator[tuple[int, Any]]:
    for start in range(0, table.shape[0], _BLOCK):
        try:
            rows = table[start : start + _BLOCK]
        except OSError as error:
            name = f"{table.name} from record {start}"
            raise DataError(name, f"cannot be read ({error})", "The file is damaged: write it again.") from error
        yield from enumerate(rows, start)


def _acquisitions(dataset: h5py.Group) -> Iterator[ismrmrd.Acquisition]:
    if "data" not in dataset:
        return
    for number, row in _blocks(dataset["data"]):
        acquisition = ismrmrd.Acquisition(ismrmrd.AcquisitionHeader.from_buffer_copy(row["head"].tobytes()))
        _fill(f"acquisition {number} data", acquisition.data, row["data"], np.complex64)
        _fill(f"acquisition {number} traj", acquisition.traj, row["traj"], np.float32)
        yield acquisition


def _waveforms(dataset: h5py.Group) -> Iterable[ismrmrd.Waveform]:
    if "waveforms" not in dataset:
        return
    for number, row in _blocks(dataset["waveforms"]):
        # The record has padding: copy into zeros, or its padding bytes are garbage.
        head = np.zeros(1, dtype=ismrmrd.hdf5.waveform_header_dtype)
        head[0] = row["head"]
        waveform = ismrmrd.Waveform(head.tobytes())
        _fill(f"waveform {number}", waveform.data, row["data"], np.uint32)
        yield waveform


def _fill(name: str, target: NDArray[Any], stored: NDArray[Any], kind: Any) -> None:
    if np.asarray(stored).nbytes % np.dtype(kind).itemsize:
        raise DataError(name, f"{np.asarray(stored).nbytes} bytes stored", "The file is damaged: write it again.")
    values = np.ascontiguousarray(stored).view(kind)
    if values.size != target.size:
        problem = f"{values.size} values stored, {target.size} announced by its header"
        raise DataError(name, problem, "The file is damaged: write it again.")
    target[...] = values.reshape(target.shape)


def _images(series: h5py.Group) -> Iterator[ismrmrd.Image]:
    for head, attributes, data in zip(series["header"][()], series["attributes"][()], series["data"], strict=True):
        text = attributes.decode("utf-8") if isinstance(attributes, bytes) else str(attributes)
        image = ismrmrd.Image(ismrmrd.ImageHeader.from_buffer_copy(head.tobytes()), text.rstrip("\0") or None)
        image.data[...] = np.ascontiguousarray(data).view(image.data.dtype).reshape(image.data.shape)
        yield image
