"""ISMRMRD files as other software reads and writes them."""

from contextlib import closing

import h5py
import ismrmrd
import numpy as np
import pytest

from gadgets.scanfile import ImageWriter, Truth, image_groups, read_images, read_scan, read_truth, write_scan, write_truth
from recon_core.errors import DataError

HEADER = '<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"/>'


def _acquisitions(count=5, channels=3, samples=8, dims=2, step=4):
    rng = np.random.default_rng(1)
    made = []
    for number in range(count):
        data = (rng.standard_normal((channels, samples)) + 1j * rng.standard_normal((channels, samples))).astype(np.complex64)
        traj = rng.uniform(-0.5, 0.5, (samples, dims)).astype(np.float32)
        acquisition = ismrmrd.Acquisition.from_array(data, traj, acquisition_time_stamp=100 + step * number, scan_counter=number)
        acquisition.idx.kspace_encode_step_1 = number
        made.append(acquisition)
    return made


def _waveform(stamp, channels=2, samples=6):
    data = np.arange(channels * samples, dtype=np.uint32).reshape(channels, samples) + stamp
    return ismrmrd.Waveform.from_array(data, time_stamp=stamp, waveform_id=1, sample_time_us=2500.0)


def _image(number, series=1, shape=(4, 6), kind=np.complex64):
    rng = np.random.default_rng(number)
    data = (100 * (rng.standard_normal(shape) + 1j * rng.standard_normal(shape))) if kind == np.complex64 else rng.integers(0, 60000, shape)
    image = ismrmrd.Image.from_array(np.asarray(data, dtype=kind), transpose=False, image_series_index=series, image_index=number)
    image.meta["ImageComments"] = f"frame {number} λ"
    return image


def test_a_file_of_the_ismrmrd_package_reads_back_equal(tmp_path):
    path = tmp_path / "scan.h5"
    expected = _acquisitions()
    with closing(ismrmrd.Dataset(str(path), "dataset")) as dataset:
        dataset.write_xml_header(HEADER.encode())
        for acquisition in expected:
            dataset.append_acquisition(acquisition)
    scan = read_scan(path, "/dataset")
    assert (scan.header, scan.n_acquisitions, scan.n_waveforms) == (HEADER, 5, 0)
    assert list(scan.items()) == expected


def test_a_written_file_is_read_by_the_ismrmrd_package(tmp_path):
    path = tmp_path / "scan.h5"
    expected, waveforms = _acquisitions(), [_waveform(101)]
    write_scan(path, HEADER, expected, waveforms, group="other")
    with closing(ismrmrd.Dataset(str(path), "other", create_if_needed=False)) as dataset:
        assert dataset.read_xml_header().decode() == HEADER
        assert [dataset.read_acquisition(n) for n in range(dataset.number_of_acquisitions())] == expected
        assert np.array_equal(dataset.read_waveform(0).data, waveforms[0].data)
        assert dataset.read_waveform(0).time_stamp == 101


def test_more_acquisitions_than_a_block_keep_their_order(tmp_path):
    path = tmp_path / "scan.h5"
    write_scan(path, HEADER, _acquisitions(600, 1, 4))
    assert [a.scan_counter for a in read_scan(path).items()] == list(range(600))


def test_waveforms_merge_by_time_and_acquisitions_keep_file_order(tmp_path):
    path = tmp_path / "scan.h5"
    acquisitions = _acquisitions(4)  # stamps 100, 104, 108, 112
    acquisitions[1].acquisition_time_stamp, acquisitions[2].acquisition_time_stamp = 108, 104  # out of order stays as sent
    write_scan(path, HEADER, acquisitions, [_waveform(500), _waveform(107), _waveform(50)])
    order = [a.time_stamp if isinstance(a, ismrmrd.Waveform) else a.scan_counter for a in read_scan(path).items()]
    assert order == [50, 0, 107, 1, 2, 3, 500]


@pytest.mark.parametrize("field", ["data", "traj"])
def test_a_record_of_the_wrong_length_names_the_acquisition(tmp_path, field):
    path = tmp_path / "scan.h5"
    write_scan(path, HEADER, _acquisitions())
    with h5py.File(path, "r+") as file:
        row = file["dataset/data"][3]
        row[field] = row[field][:-2]
        file["dataset/data"][3] = row
    with pytest.raises(DataError, match=f"acquisition 3 {field}"):
        list(read_scan(path).items())


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("xml", np.empty((0,), "S4"), "xml: empty"),
        ("xml", np.bytes_(b"<a/>"), r"xml: \|S4 \(\)"),
        ("xml", np.array([b"\xff\xfe"]), "not UTF-8"),
        ("data", None, "data: a group"),
        ("data", np.zeros(3), "data: float64"),
        ("waveforms", np.zeros(3), "waveforms: float64"),
    ],
)
def test_damaged_tables_are_named(tmp_path, name, content, words):
    path = tmp_path / "scan.h5"
    write_scan(path, HEADER, _acquisitions(1))
    with h5py.File(path, "r+") as file:
        if name in file["dataset"]:
            del file["dataset"][name]
        if content is None:
            file["dataset"].create_group(name)
        else:
            file["dataset"][name] = content
    with pytest.raises(DataError, match=words):
        read_scan(path)


def test_half_a_sample_is_told(tmp_path):
    path = tmp_path / "scan.h5"
    write_scan(path, HEADER, _acquisitions())
    with h5py.File(path, "r+") as file:
        row = file["dataset/data"][3]
        row["data"] = row["data"][:-1]
        file["dataset/data"][3] = row
    with pytest.raises(DataError, match="acquisition 3 data: 188 bytes"):
        list(read_scan(path).items())


def test_files_that_are_none_are_told(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_scan(tmp_path / "absent.h5")
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(DataError, match="cannot be opened as HDF5"):
        read_scan(tmp_path / "text.h5")
    write_scan(tmp_path / "scan.h5", HEADER, _acquisitions(1), group="mine")
    with pytest.raises(DataError, match="Groups there: mine"):
        read_scan(tmp_path / "scan.h5")
    with h5py.File(tmp_path / "empty.h5", "w") as file:
        file.create_group("dataset")
    with pytest.raises(DataError, match="no ISMRMRD dataset"):
        read_scan(tmp_path / "empty.h5")


@pytest.mark.parametrize("kind", [np.complex64, np.uint16, np.float32])
def test_images_are_stored_as_the_stock_client_stores_them(tmp_path, kind):
    ours, theirs = tmp_path / "ours.h5", tmp_path / "theirs.h5"
    images = [_image(n, kind=kind) for n in range(3)]
    with ImageWriter(ours, "/run") as writer:
        for image in images:
            writer.write(image)
        assert writer.count == 3
    with closing(ismrmrd.Dataset(str(theirs), "run")) as dataset:
        for image in images:
            dataset.append_image("image_1", image)
    with h5py.File(ours, "r") as a, h5py.File(theirs, "r") as b:
        for name in ("header", "attributes", "data"):
            assert a[f"run/image_1/{name}"].dtype == b[f"run/image_1/{name}"].dtype
            assert a[f"run/image_1/{name}"].shape == b[f"run/image_1/{name}"].shape
        assert np.array_equal(a["run/image_1/data"][()], b["run/image_1/data"][()])
        assert np.array_equal(a["run/image_1/attributes"][()], b["run/image_1/attributes"][()])
    for path in (ours, theirs):
        back = read_images(path)[1]
        assert [i.image_index for i in back] == [0, 1, 2]
        assert back[2].meta["ImageComments"] == "frame 2 λ"
        assert back[1].data.dtype == kind
        assert np.array_equal(back[1].data, images[1].data)


def test_series_are_kept_apart_and_runs_append(tmp_path):
    path = tmp_path / "out.h5"
    for number in range(2):
        with ImageWriter(path, "run") as writer:
            writer.write(_image(number, series=1))
            writer.write(_image(number, series=2, shape=(3, 3), kind=np.float32))
    back = read_images(path, "run")
    assert {n: len(v) for n, v in back.items()} == {1: 2, 2: 2}
    with ImageWriter(path, "run") as writer, pytest.raises(DataError, match="image series 1"):
        writer.write(_image(0, shape=(5, 6)))
    assert len(read_images(path, "run")[1]) == 2


def test_a_failing_run_keeps_its_images(tmp_path):
    path = tmp_path / "out.h5"

    def run():
        with ImageWriter(path, "run") as writer:
            writer.write(_image(0))
            raise ConnectionError

    with pytest.raises(ConnectionError):
        run()
    assert len(read_images(path)[1]) == 1


def test_several_runs_need_a_name(tmp_path):
    path = tmp_path / "out.h5"
    for group in ("a", "b"):
        with ImageWriter(path, group) as writer:
            writer.write(_image(0))
    assert image_groups(path) == ["a", "b"]
    with pytest.raises(DataError, match="groups with images: a, b"):
        read_images(path)
    with pytest.raises(DataError, match="Groups there: a, b"):
        read_images(path, "c")
    with pytest.raises(RuntimeError):
        ImageWriter(path, "a").write(_image(0))


def test_the_truth_reads_back(tmp_path):
    path = tmp_path / "scan.h5"
    write_scan(path, HEADER, _acquisitions())
    with pytest.raises(DataError, match="no group 'truth'"):
        read_truth(path)
    rng = np.random.default_rng(3)
    images = (rng.standard_normal((2, 3, 4)) + 1j).astype(np.complex64)
    truth = Truth(images, images[0].real > 0, np.array([0.003, 0.009]), "cardiac 1")
    for _ in range(2):
        write_truth(path, truth)
    back = read_truth(path)
    assert np.array_equal(back.images, images)
    assert back.images.dtype == np.complex64
    assert back.moving.dtype == bool
    assert np.array_equal(back.moving, truth.moving)
    assert np.array_equal(back.times, truth.times)
    assert back.phantom == "cardiac 1"
    assert read_scan(path).n_acquisitions == 5


def test_real_files_read(data_dir):
    scan = read_scan(data_dir / "acr_spiral_20ch" / "grid_slice.h5")
    items = list(scan.items())
    assert len(items) == scan.n_acquisitions == 54
    assert items[0].data.shape == (20, 310)
    assert np.abs(items[0].traj).max() <= 0.5 + 1e-6
